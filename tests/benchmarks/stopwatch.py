"""How long each notebook takes: from the stamps of `reproduce` into figures/minutes.csv.

    python -m kit reproduce                       # trains what is missing
    python -m kit reproduce --fresh               # each notebook again, its runs trained
    python -m kit reproduce --fresh --only teach  # and the lessons
    python -m tests.benchmarks.stopwatch          # writes the table
    python -m tests.helpers.course                # and the notebooks' heads
    python -m tests.helpers.layout                # and README's table

`seconds` are those of the notebook alone, `first_picture_seconds` those until its first picture or
widget, `training_seconds` those of all its trainings, each on one core as it was trained. The row
`imports` is what a fresh kernel imports before; it is timed now. `measured` says when and on what,
and how busy the machine was while the notebook ran.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from kit.core.files import read_json
from kit.experiments.provenance import machine_load
from kit.experiments.runs import output_folder
from kit.notebook.course import IMPORTS, LESSONS, MINUTES, NO_PICTURE, widget_lessons

COLUMNS = ("notebook", "seconds", "training_seconds", "first_picture_seconds", "measured")

#: A machine is busy if more processes than cores, and this, want one: a batch fills all cores.
SPARE = 0.5


def describe_machine(date: str, cores: int, load: float | None) -> str:
    """Say when and on what a time was taken."""
    state = "busy" if load is not None and load > cores + SPARE else "quiet"
    known = "a machine of unknown load" if load is None else f"a {state} machine"
    return f"{date}, {cores} cores, {known}"


def row_of(name: str, stamp: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a notebook, from the stamp of its last run."""
    first = stamp["first_picture_seconds"]
    return {
        "notebook": name,
        "seconds": stamp["seconds"],
        "training_seconds": stamp["training_seconds"],
        "first_picture_seconds": NO_PICTURE if first is None else first,
        "measured": describe_machine(stamp["ended"], stamp["cores"], stamp["load"]),
    }


def time_imports() -> dict[str, Any]:
    """Time what a fresh kernel imports, the second time: then the disk has been read."""
    load = machine_load()
    for _ in range(2):
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", "import kit; kit.begin"], check=True)
        seconds = time.monotonic() - started
    return {
        "notebook": IMPORTS,
        "seconds": round(seconds, 1),
        "training_seconds": 0,
        "first_picture_seconds": "",
        "measured": describe_machine(f"{datetime.now(UTC):%Y-%m-%d}", os.cpu_count() or 1, load),
    }


def main(recipe: str = "digits") -> int:
    """Write the row of every notebook whose stamp has all of it; the others keep theirs. -> 0."""
    rows: dict[str, dict] = {}
    if MINUTES.exists():
        with open(MINUTES, newline="") as file:
            rows = {row["notebook"]: row for row in csv.DictReader(file)}
    names = [*LESSONS, *widget_lessons()]
    for name in names:
        path = output_folder(recipe) / f"{name}.json"
        if path.exists() and "first_picture_seconds" in (stamp := read_json(path)):
            rows[name] = row_of(name, stamp)
    rows[IMPORTS] = time_imports()
    with open(MINUTES, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in (IMPORTS, *names) if name in rows)
    print(f"{len(rows)} rows in {MINUTES}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
