"""How long each notebook takes: from the stamps of `reproduce` into figures/minutes.csv.

    python -m kit reproduce              # trains what is missing
    python -m kit reproduce --fresh      # each notebook again, its runs trained
    python -m tests.benchmarks.stopwatch # writes the table
    python -m tests.helpers.course       # and the notebooks' heads
    python -m tests.helpers.layout       # and README's table

`seconds` are those of the notebook alone, `training_seconds` those of all its trainings, each on
one core as it was trained. `measured` says when and on what, and how busy the machine was.
"""

from __future__ import annotations

import csv
import os
import sys
from datetime import UTC, datetime

from kit.core.files import read_json
from kit.experiments.runs import output_folder
from kit.notebook.course import LESSONS, MINUTES, widget_lessons


def main(recipe: str = "digits") -> int:
    """Write the row of every notebook that has a stamp; the others keep theirs. -> 0."""
    load, cores = os.getloadavg()[2], os.cpu_count() or 1
    state = "a busy machine" if load > cores + 0.5 else "a quiet machine"
    measured = f"{datetime.now(UTC):%Y-%m-%d}, {cores} cores, {state}"
    rows: dict[str, dict] = {}
    if MINUTES.exists():
        with open(MINUTES, newline="") as file:
            rows = {row["notebook"]: row for row in csv.DictReader(file)}
    names = [*LESSONS, *widget_lessons()]
    for name in names:
        path = output_folder(recipe) / f"{name}.json"
        if path.exists() and "training_seconds" in (stamp := read_json(path)):
            rows[name] = {
                "notebook": name,
                "seconds": stamp["seconds"],
                "training_seconds": stamp["training_seconds"],
                "measured": measured,
            }
    with open(MINUTES, "w", newline="") as file:
        columns = ("notebook", "seconds", "training_seconds", "measured")
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in names if name in rows)
    print(f"{len(rows)} notebooks in {MINUTES}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
