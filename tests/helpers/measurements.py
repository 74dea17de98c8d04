"""What was measured for README, as files: a benchmark writes one, and README shows what it says."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.bench import processor
from tests.helpers.settings import ROOT

#: What `kit bench --json` measured, the medians of `bench_widgets`, and what `tests/faults` tried.
SPEED = ROOT / "figures" / "speed.json"
LATENCIES = ROOT / "figures" / "widgets" / "latencies.json"
FAULTS = ROOT / "figures" / "faults.json"


def describe_machine() -> dict[str, Any]:
    """Say when and on what something is measured, as JSON values."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cores": os.cpu_count(),
        "processor": processor(),
    }


def write_rows(path: Path, rows: list[Any], **more: Any) -> None:
    """Write what was measured, with the machine and whatever else belongs to it."""
    record = {"machine": describe_machine(), **more, "rows": rows}
    path.write_text(json.dumps(record, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    """Read what was written there."""
    return json.loads(path.read_text())


def latency_words(record: dict[str, Any]) -> str:
    """README's sentence on how fast a widget answers a key, on one line."""
    machine = record["machine"]
    medians = sorted(
        (row["milliseconds"], row["widget"].replace("-", " ")) for row in record["rows"]
    )
    listed = ", ".join(f"{name} {time:.0f}" for time, name in medians)
    return (
        f"From a key press to the new picture in JupyterLab takes {medians[0][0]:.0f} to "
        f"{medians[-1][0]:.0f} ms: {listed} (medians of {record['presses']} presses, "
        f"{machine['cores']} cores, {machine['date']}; `python -m tests.benchmarks.bench_widgets`)."
    )


def faults_table(record: dict[str, Any]) -> str:
    """README's table of faults and how they ended, with a line on when and where."""
    machine = record["machine"]
    rows = [f"| {row['fault']} | {row['times']:,} | {row['outcome']} |" for row in record["rows"]]
    words = f"{machine['cores']} cores, {machine['date']}."
    return "\n".join(["| fault | times | outcome |", "|---|---:|---|", *rows, "", words])
