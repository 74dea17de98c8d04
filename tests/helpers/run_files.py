"""What files have been written, and what those of two runs must have in common."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from kit.core import files


def written_files(folder: Path) -> dict[str, tuple[int, int]]:
    """{file: when it was written, its size} of all files that a reader would open."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # it has just gone
                if not name.startswith("."):
                    facts = os.stat(path := os.path.join(root, name))
                    found[path] = (facts.st_mtime_ns, facts.st_size)
    return found


def contents(folder) -> dict[str, bytes | list]:
    """What must be equal bit for bit: all but seconds and run.json's circumstances."""
    found = {}
    for path in sorted(folder.rglob("*.npz")):
        found[path.name] = {k: v.tobytes() for k, v in files.load_arrays(path).items()}
    state = files.load_checkpoint(folder / "last.ckpt")
    found["model"] = {k: v.numpy().tobytes() for k, v in state["model"].items()}
    found["momentum"] = [
        v["momentum_buffer"].numpy().tobytes() for v in state["optimizer"]["state"].values()
    ]
    found["history"] = [
        {k: v for k, v in row.items() if k != "seconds"} for row in state["history"]
    ]
    return found
