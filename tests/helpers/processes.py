"""Which processes work in a home."""

from __future__ import annotations

from pathlib import Path


def alive(home: Path) -> list[str]:
    """Processes that work in `home`, by their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"KIT_HOME={home}".encode() in entry.read_bytes().split(b"\0"):
                found.append((entry.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [words for words in found if words]
