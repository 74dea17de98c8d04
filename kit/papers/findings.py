"""The record's most interesting numbers, a sentence each.

findings.csv names them, the most interesting first: a statement of the record, one of its
estimates, the unit to write it in, and what the number is. All numbers come from the record.
"""

from __future__ import annotations

import pandas as pd

from kit.papers.claim_verdict import VERDICT_GLYPHS
from kit.papers.printed_data import read_table

#: How many there are on the first page.
MOST = 10

#: {unit: how one number is written in it}. Points are of percent.
UNITS = {
    "share": lambda value: f"{100 * value:.0f}%",
    "points": lambda value: f"{100 * value:+.1f}",
    "number": lambda value: f"{value:.3g}",
}


def write_findings(record: pd.DataFrame, most: int = MOST) -> list[str]:
    """Write the record's findings, at most so many: decided ones first, each with its scales.

    A number stands with its 95 % interval, its scale, its seeds and the verdict on its statement.
    """
    found = []
    for row in read_table("findings").itertuples():
        mine = record[
            (record["statement"] == row.statement)
            & (record["estimate"] == row.estimate)
            & (record["value"] != "")
        ]
        if mine.empty:
            continue
        write = UNITS[row.unit]
        unit = " points" if row.unit == "points" else ""
        measured = "; ".join(
            f"**{write(float(m.value))}{unit}** [{write(float(m.low))}, {write(float(m.high))}] on "
            f"{m.scale} ({m.seeds} seeds: {VERDICT_GLYPHS[m.verdict]} {m.verdict})"
            for m in mine.itertuples()
        )
        decided = bool(set(mine["verdict"]) & {"holds", "fails"})
        found.append((not decided, f"{row.text}: {measured}."))
    return [sentence for _, sentence in sorted(found, key=lambda pair: pair[0])[:most]]
