"""Which processes work in a home, and waiting for what they must do."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

#: Seconds after which a test gives up. No test that passes waits so long, on slow machines either.
PATIENCE = 900


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Wait until `condition`, for so many seconds at most. -> did it come?"""
    limit = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < limit:
        time.sleep(0.05)
    return bool(found)


def working_in(home: Path) -> dict[int, str]:
    """{process: its command line} of those that work in `home`, by their environment."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"KIT_HOME={home}".encode() in entry.read_bytes().split(b"\0"):
                words = (entry.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(entry.parent.name)] = words
    return {process: words for process, words in found.items() if words}


def alive(home: Path) -> list[str]:
    """The command lines of the processes that work in `home`."""
    return list(working_in(home).values())
