"""The record: what was measured of each claim, at each scale, in one table that is committed.

`figures/measured.csv` has a row an estimate: the claim and the statement that it decides, the
scale (a recipe), the number with its interval and bound, the seeds behind it, and what it was made
with. The scoreboard, the gallery and README are made from it.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import pandas as pd

from kit.core.errors import KitError
from kit.core.files import CHECKOUT, write_bytes
from kit.experiments.recipes import find_recipe
from kit.experiments.runs import find_run
from kit.papers.claim_verdict import NOT_RUN, VERDICTS
from kit.papers.evidence_wanted import Wanted, find_wanted, read_estimates
from kit.papers.figure_verdicts import decide_statements, read_stamps
from kit.papers.printed_data import proofs
from kit.papers.printed_rules import claims
from kit.papers.verdicts import compare

#: The table that is committed.
RECORD = CHECKOUT / "figures" / "measured.csv"

#: Its columns. `claim` is the number of a row of claims.csv, "" for a statement of the kit's own,
#: and `claim_verdict` what `compare` says of that claim; `verdict` is the statement's; `seeds` is 0
#: where arithmetic decides; `torch` and `commit` are what the runs were trained with.
RECORD_COLUMNS = (
    "scale",
    "claim",
    "claim_verdict",
    "statement",
    "verdict",
    "estimate",
    "expected",
    "value",
    "low",
    "high",
    "seeds",
    "source",
    "torch",
    "commit",
)

#: What names a row: no two may share it.
KEY = ["scale", "claim", "statement", "estimate"]


def measure_scale(recipe: str, **options: Any) -> list[dict[str, Any]]:
    """Make the rows of one scale from what is finished on it; `options` are those of `compare`.

    Raises:
        KitError: Nothing is finished there, a notebook's record is damaged, or it names a run that
            is not there or is of another revision.
    """
    compared = compare(recipe=recipe, **options)
    verdicts = compared["verdict"].to_dict()
    found = [
        (number, statement, "figures")
        for number, statement in decide_statements(read_stamps(recipe))
    ]
    for number, claim in compared[compared["decided_by"] == "tables"].iterrows():
        found += [
            (number, _as_estimates(statement) | {"runs": claim["runs"]}, "tables")
            for statement in claim["statements"]
            if "value" in statement  # it was run, and by tables
        ]
    rows = [
        {"scale": recipe, "claim_verdict": verdicts.get(number, ""), "source": source, **row}
        for number, statement, source in found
        for row in _statement_rows(number, statement)
    ]
    if not rows:
        raise KitError(
            f"nothing is finished on {recipe}; make it with: python -m kit reproduce --recipe "
            f"{recipe} --seeds 0 1 2"
        )
    return rows


def _as_estimates(statement: Mapping[str, Any]) -> dict[str, Any]:
    """A table's statement in the form of a figure's."""
    return {
        **{name: statement[name] for name in ("statement", "verdict", "seeds")},
        "estimates": [estimate.record() for estimate in read_estimates(statement)],
    }


def _statement_rows(number: int | None, statement: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    made = made_with(tuple(statement["runs"]))
    empty = {"name": "", "expected": "", "value": None, "low": None, "high": None}
    for estimate in statement.get("estimates") or [empty]:
        yield {
            "claim": "" if number is None else number,
            "statement": statement["statement"],
            "verdict": statement["verdict"],
            "estimate": estimate["name"],
            **{name: estimate[name] for name in ("expected", "value", "low", "high")},
            "seeds": statement["seeds"],
            "torch": made["torch"],
            "commit": made["commit"],
        }


@cache
def made_with(keys: tuple[str, ...]) -> dict[str, str]:
    """What the runs of these keys were trained with: torch's versions and the kit's commits.

    Runs that were trained before it was noted name no instructions of their processor.

    Raises:
        KitError: A run is not there, or is of another revision.
    """
    runs = [find_run(key) for key in keys]
    for run in runs:
        run.check_revision()
    records = [run.record for run in runs]
    known = {record["instructions"] for record in records if "instructions" in record}
    return {
        "instructions": " ".join(sorted(known)),
        "torch": " ".join(sorted({record["versions"]["torch"] for record in records})),
        "commit": " ".join(sorted({record["commit"] for record in records})),
    }


def write_record(rows: Sequence[Mapping[str, Any]], path: Path = RECORD) -> None:
    """Write the rows of a scale into the table, in place of those that it had; others stay.

    Raises:
        KitError: A row, or what the table had, is not of the record; nothing is written.
    """
    scales = {str(row["scale"]) for row in rows}
    kept = [
        row
        for row in (read_record(path).to_dict("records") if path.exists() else [])
        if row["scale"] not in scales
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, RECORD_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in sorted([*kept, *rows], key=_order):
        writer.writerow({name: _written(row[name]) for name in RECORD_COLUMNS})
    check_record(_parse(text.getvalue()), path)
    write_bytes(path, text.getvalue().encode())


def _order(row: Mapping[str, Any]) -> tuple:
    number = row["claim"]
    return str(row["scale"]), int(number) if number != "" else 10_000, str(row["statement"])


def _written(value: Any) -> str:
    if value is None or value != value:  # a number that is none
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _parse(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)


def read_record(path: Path = RECORD) -> pd.DataFrame:
    """Read the record, checked; all values are text, as in the file.

    Raises:
        KitError: It is missing, or a row is not of the record.
    """
    if not path.exists():
        raise KitError(f"there is no {path}; make it with: python -m kit record")
    table = _parse(path.read_text())
    check_record(table, path)
    return table


def check_record(table: pd.DataFrame, path: Path) -> None:
    """Refuse rows that name an unknown claim, scale or verdict, have no seeds, or are there twice.

    Raises:
        KitError: It names the row, what is wrong, and what was expected.
    """
    if missing := [name for name in RECORD_COLUMNS if name not in table]:
        raise KitError(f"{path} lacks the columns {', '.join(missing)}; write it again")
    known = {str(number) for number in claims().index}
    for line, row in enumerate(table.to_dict("records"), 2):
        where = f"{path}, line {line}"
        if row["claim"] and row["claim"] not in known:
            raise KitError(
                f"{where}: there is no claim {row['claim']}; claims are 1 to {len(known)}"
            )
        said = [row["verdict"], row["claim_verdict"]] if row["claim"] else [row["verdict"]]
        for word in said:
            if word not in VERDICTS:
                raise KitError(
                    f"{where}: '{word}' is not a verdict; expected one of {', '.join(VERDICTS)}"
                )
        if not row["seeds"].isdecimal():
            raise KitError(f"{where}: '{row['seeds']}' is not a number of seeds")
        if not re.fullmatch("folder:.+", row["scale"]):  # a folder may be on another machine
            find_recipe(row["scale"])
    twice = table[table.duplicated(KEY)]
    if len(twice):
        row = twice.iloc[0]
        raise KitError(
            f"{path} has two rows for claim {row['claim'] or '-'} on {row['scale']}: "
            f"{row['statement']} {row['estimate']}; delete one"
        )


def scoreboard(path: Path = RECORD) -> pd.DataFrame:
    """List the claims by scale: one column a scale of the record, each with the claim's verdict.

    Columns: paper, claim, printed (what the paper's own tables say), and one a scale: holds, fails,
    undecided, or not run, as `compare` said when the record was written. What mathematics decides
    is decided on every scale; `attrs["exact"]` lists these claims, and those of which each row of
    the record is arithmetic.

    Raises:
        KitError: There is no record, or it is damaged.
    """
    table, listed = read_record(path), claims()
    board = listed[["paper", "claim", "verdict"]].rename(columns={"verdict": "printed"})
    proven = {number: proof.verdict for number, proof in proofs().items()}
    for scale in dict.fromkeys(table["scale"]):
        mine = table[(table["scale"] == scale) & (table["claim"] != "")]
        found = dict(zip(mine["claim"].astype(int), mine["claim_verdict"], strict=True))
        board[scale] = [(proven | found).get(number, NOT_RUN) for number in board.index]
    decided = table[(table["claim"] != "") & (table["claim_verdict"] != "undecided")]
    measured = set(decided.loc[decided["seeds"] != "0", "claim"].astype(int))
    board.attrs["exact"] = sorted({*decided["claim"].astype(int)} - measured | {*proven})
    return board


def open_claims(path: Path = RECORD) -> pd.DataFrame:
    """List the claims that no scale of the record decides, with what would decide each.

    Columns: paper, claim, scale (where the least additional evidence would decide it, "" where it
    was not run), and wanted. The nearest comes first.

    Raises:
        KitError: There is no record, or it is damaged.
    """
    table, board = read_record(path), scoreboard(path)
    scales = [name for name in board.columns if name not in ("paper", "claim", "printed")]
    left = board[~board[scales].isin(["holds", "fails"]).any(axis=1)]
    unrun = {scale: _compare_unrun(scale) for scale in ("digits", *scales)}
    rows = {}
    for number, claim in left.iterrows():
        found = {
            scale: find_wanted(
                _gather_statements(
                    table[table["claim"].eq(str(number)) & table["scale"].eq(scale)],
                    unrun[scale].loc[number, "statements"],
                )
            )
            for scale in scales
            if claim[scale] == "undecided"
        }
        scale = min(found, key=lambda name: found[name].times, default="")
        nothing = Wanted(math.inf, "", _how_to_run(unrun["digits"].loc[number]))
        rows[number] = [claim["paper"], claim["claim"], scale, found.get(scale, nothing)]
    columns = ["paper", "claim", "scale", "wanted"]
    listed = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("number")
    times = attrgetter("times")
    return listed.sort_values("wanted", key=lambda column: column.map(times), kind="stable")


@cache
def _compare_unrun(scale: str) -> pd.DataFrame:
    """What `compare` says of a scale without any run; a folder's settings are those of cifar10."""
    return compare(recipe=re.sub("^folder:[^:,]*", "cifar10", scale), seeds=(), stamps=())


def _gather_statements(
    rows: pd.DataFrame, listed: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Gather the record's rows of one claim on one scale into statements.

    Where tables were run they alone decide, as in `compare`; those of the `listed` statements that
    the record does not have were not run.
    """
    by_tables = rows[rows["source"] == "tables"]
    rows = by_tables if len(by_tables) else rows
    found = [
        {
            "statement": text,
            "verdict": mine["verdict"].iloc[0],
            "seeds": int(mine["seeds"].iloc[0]),
            "estimates": [
                {
                    "name": row["estimate"],
                    "expected": row["expected"],
                    **{name: float(row[name] or "nan") for name in ("value", "low", "high")},
                }
                for row in mine.to_dict("records")
                if row["expected"]
            ],
        }
        for text, mine in rows.groupby("statement", sort=False)
    ]
    texts = tuple(statement["statement"] for statement in found)
    gaps = [
        statement
        for statement in listed
        if "elsewhere" not in statement
        and not any(text.startswith(statement["statement"]) for text in texts)
    ]
    return [*found, *(gaps if len(by_tables) else ())]


def _how_to_run(claim: pd.Series) -> str:
    """What runs a claim that was not run: why it was not, and the command."""
    command = f" (`{claim['command']}`)" if claim["command"] else ""
    why = next((s["why"] for s in claim["statements"] if "why" in s), claim["here"])
    return f"{why}{command}"
