"""Memory that a network's pass has freed is kept for the next one.

A pass on a CPU makes and drops tensors of megabytes. The C library gives such memory back to the
system each time and gets it again page by page: a quarter to a half of the time that a small
network takes on batches of hundreds.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt(3)

KEPT_BYTES = 256 * 2**20  # bytes: what is freed stays with the process up to here


def keep_freed_memory() -> bool:
    """Ask glibc to keep up to 256 MiB of freed memory.

    -> whether it will; other C libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(_MMAP_THRESHOLD, KEPT_BYTES // 8)) and bool(
        library.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
    )
