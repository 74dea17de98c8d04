"""Memory that a network's pass has freed is kept for the next one, while the process computes.

A pass on a CPU makes and drops tensors of megabytes. The C library gives such memory back to the
system each time and gets it again page by page: a quarter to a half of the time that a small
network takes on batches of hundreds.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt(3)

KEPT_BYTES = 256 * 2**20  # what is freed stays with the process up to here

DEFAULT_BYTES = 128 * 2**10  # glibc's own, of both thresholds

_lock = threading.Lock()
_open_blocks = 0


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within, glibc keeps up to 256 MiB of freed memory; other C libraries are left alone.

    Blocks are counted, over threads too: when the last one ends, the thresholds are glibc's
    defaults again, 128 KiB, and what was kept goes back to the system, which takes milliseconds.
    glibc cannot be asked what the thresholds were before, nor told to adapt them by itself again,
    as it does in a process where nobody has set them.
    """
    global _open_blocks
    with _lock:
        _open_blocks += 1
        if _open_blocks == 1:
            _set_thresholds(KEPT_BYTES // 8, KEPT_BYTES)
    try:
        yield
    finally:
        with _lock:
            _open_blocks -= 1
            if _open_blocks == 0:
                _set_thresholds(DEFAULT_BYTES, DEFAULT_BYTES)
                _give_back()


def is_glibc() -> bool:
    """Is this process's C library glibc, whose thresholds can be set?"""
    return sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def _set_thresholds(mapped: int, trimmed: int) -> None:
    """From how many bytes memory is mapped by itself, and how many freed ones are given back."""
    if is_glibc():
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, mapped)
        library.mallopt(_TRIM_THRESHOLD, trimmed)


def _give_back() -> None:
    if is_glibc():
        ctypes.CDLL(None).malloc_trim(0)
