"""What a notebook of a batch run has come to, for whoever waits for it.

Its kernel and the process that runs its cells write lines into one file beside its results; the
process that shows progress reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Journal(NamedTuple):
    """The cell that is being run, as "cell 5 of 12", and the pictures that are there."""

    cell: str = ""
    pictures: tuple[str, ...] = ()


def journal_path(folder: Path, notebook: str) -> Path:
    """Return where a notebook's journal is while it runs."""
    return folder / f"{notebook}.journal"


def note_cell(path: Path, number: int, total: int) -> None:
    """Take down that a cell begins."""
    _append(path, f"cell {number} of {total}")


def note_pictures(path: Path, pictures: list[Path]) -> None:
    """Take down that pictures are there."""
    for picture in pictures:
        _append(path, f"picture {picture}")


def _append(path: Path, line: str) -> None:
    with open(path, "a") as file:
        file.write(f"{line}\n")


def read_journal(path: Path) -> Journal:
    """Read a notebook's journal; an empty one if there is none."""
    try:
        # behind the last line end one may be half written
        *lines, _ = path.read_text().split("\n")
    except OSError:
        return Journal()
    cells = [line for line in lines if line.startswith("cell ")]
    pictures = (line.removeprefix("picture ") for line in lines if line.startswith("picture "))
    return Journal(cells[-1] if cells else "", tuple(pictures))
