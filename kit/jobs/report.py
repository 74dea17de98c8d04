"""One page of what was made: pictures, verdicts, tables, runs, and how to make each again.

`python -m kit report` writes `report.html` into a folder of results. The page holds all that it
shows and asks no network for anything.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from kit.core.environment import output_choice
from kit.core.errors import KitError
from kit.core.files import home, write_bytes
from kit.experiments.provenance import git_commit, versions
from kit.experiments.specification import parse_overrides
from kit.figures.table import FIGURES
from kit.jobs.result_folder import Picture, ResultFolder, StoredTable, read_folder, revisions_of
from kit.papers.claim_verdict import VERDICT_GLYPHS
from kit.papers.figure_verdicts import NotebookStamp, stamp_of
from kit.papers.printed_data import PAPERS
from kit.papers.printed_rules import claims
from kit.papers.record import RECORD, scoreboard
from kit.papers.verdicts import TABLES_NOTEBOOK, compare

#: The page's name in the folder that it is about.
PAGE = "report.html"


@dataclass(frozen=True)
class BoardRow:
    """A claim of the scoreboard: `verdicts` by column, and what the folder's results say of it.

    `here` are those words, `command` what would make what is missing; "" where there is nothing.
    """

    number: int
    paper: str
    claim: str
    printed: str
    verdicts: Mapping[str, str]
    here: str = ""
    command: str = ""


def write_report(folder: Path) -> Path:
    """Write the page of a folder of results into it, and return its path.

    Raises:
        KitError: The folder holds no result, or cannot be written.
    """
    path = folder / PAGE
    write_bytes(path, render_report(read_folder(folder)).encode())
    return path


def describe_reports(folders: Iterable[Path]) -> str:
    """Write the page of each folder of results, those of seeds in one, and say where they are.

    A page that is newer than all that it is made from stays.
    """
    lines = []
    for folder in sorted({f.parent if f.name.startswith("seed-") else f for f in folders}):
        try:
            page = folder / PAGE if is_up_to_date(folder) else write_report(folder)
            lines.append(f"all of it on one page: {page}")
        except KitError as error:
            lines.append(f"no page of {folder} was written: {error}")
    return "\n".join(lines)


def is_up_to_date(folder: Path) -> bool:
    """Say whether the folder's page is newer than its results and the record beside them."""
    page = folder / PAGE
    made_from = [path for path in folder.rglob("*") if path.is_file() and path != page]
    newest = max(
        (path.stat().st_mtime for path in [*made_from, RECORD] if path.exists()), default=0
    )
    return page.exists() and page.stat().st_mtime > newest


def newest_results() -> Path:
    """Return the folder in which the latest result was written: KIT_OUT, or one of figures/out/.

    Raises:
        KitError: There is none.
    """
    if chosen := output_choice():
        return chosen
    root = home() / "figures" / "out"
    times = {
        folder: max((path.stat().st_mtime for path in folder.rglob("*.json")), default=0.0)
        for folder in (sorted(root.iterdir()) if root.is_dir() else [])
        if folder.is_dir()
    }
    if not any(times.values()):
        raise KitError(f"there are no results in {root} yet; make some: python -m kit reproduce")
    return max(times, key=lambda folder: times[folder])


def render_report(results: ResultFolder) -> str:
    """Make the page as HTML; what is no HTML of the kit's own is escaped."""
    problems = list(results.problems)
    if len(revisions := revisions_of([run.record for run in results.runs.values()])) > 1:
        problems.append(
            f"The runs are of {len(revisions)} revisions of the kit: {', '.join(revisions)}. Each "
            "picture and run says which"
        )
    columns, board = make_board(results, problems)
    environment = Environment(
        loader=PackageLoader("kit.jobs"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["settings"] = lambda record: json.dumps(
        record, indent=1, ensure_ascii=False
    )
    return environment.get_template("report.html").render(
        results=results,
        title=", ".join(results.recipes) or results.folder.name,
        columns=columns,
        board=board,
        counts=_count_board(columns, board),
        glyphs=VERDICT_GLYPHS,
        papers={paper: row.label for paper, row in PAPERS.items()},
        figures=_group_pictures(results.pictures),
        tables=_group_tables(results.tables),
        problems=problems,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        commit=git_commit(),
    )


# ----------------------------------------------------------------------------------- the scoreboard


def make_board(results: ResultFolder, problems: list[str]) -> tuple[list[str], list[BoardRow]]:
    """List the claims with a verdict from these results, and from each scale of the record.

    What cannot be decided is left out, and a sentence about it is added to `problems`.
    """
    found = {}
    for recipe in results.recipes:
        try:
            found[f"{recipe}, here"] = _decide(results, recipe)
        except (KitError, KeyError, TypeError, ValueError) as error:  # stamps of another hand
            problems.append(f"no claim is decided by the results on {recipe}: {error}")
    try:
        record = scoreboard() if RECORD.exists() else pd.DataFrame()
    except KitError as error:
        problems.append(f"the record is left out: {error}")
        record = pd.DataFrame()
    scales = {
        f"{name}, record": record[name]
        for name in record.columns
        if name not in ("paper", "claim", "printed")
    }
    rows = []
    for number, claim in claims().iterrows():
        here = [table.loc[number] for table in found.values()]
        verdicts = {name: table.loc[number, "verdict"] for name, table in found.items()}
        verdicts |= {name: column[number] for name, column in scales.items()}
        rows.append(
            BoardRow(
                int(number),
                claim["paper"],
                claim["claim"],
                claim["verdict"],
                verdicts,
                " ".join(map(_describe_decision, here)),
                next((row["command"] for row in here if row["command"]), ""),
            )
        )
    return [*found, *scales], rows


def _describe_decision(row: pd.Series) -> str:
    """What these results say of a claim, and what would decide it if they do not."""
    return f"{row['here']}. What would decide it: {row['wanted']}" if row["wanted"] else row["here"]


def _decide(results: ResultFolder, recipe: str) -> pd.DataFrame:
    """`compare` on the stamps of this folder, with the settings of its printed tables."""
    stamps: list[NotebookStamp] = []
    options: dict[str, Any] = {}
    for record in results.stamps:
        if stamp := stamp_of(record, recipe):
            stamps.append(stamp)
        if record["notebook"] == TABLES_NOTEBOOK:
            given = record["parameters"]
            options = {
                "overrides": parse_overrides(given.get("overrides", "")),
                "strong_n": given.get("strong_n", 100),
                "fast_n": given.get("fast_n", 0),
            }
    return compare(recipe=recipe, stamps=stamps, **options)


def _count_board(
    columns: Iterable[str], board: Iterable[BoardRow]
) -> dict[str, dict[str, Counter[str]]]:
    """{paper: {column: how often each verdict}}."""
    counts: dict[str, dict[str, Counter[str]]] = {}
    for row in board:
        for column in columns:
            tally = counts.setdefault(row.paper, {}).setdefault(column, Counter())
            tally[row.verdicts[column]] += 1
    return counts


# --------------------------------------------------------------------------------- pictures, tables


def _group_pictures(pictures: Iterable[Picture]) -> dict[str, list[Picture]]:
    """{figure: its pictures, one a seed}, in the order of the kit's figures; others come last."""
    grouped: dict[str, list[Picture]] = {}
    for picture in pictures:
        grouped.setdefault(picture.name, []).append(picture)
    order = [*FIGURES, *(name for name in grouped if name not in FIGURES)]
    return {name: grouped[name] for name in order if name in grouped}


def _group_tables(tables: Iterable[StoredTable]) -> dict[str, list[StoredTable]]:
    grouped: dict[str, list[StoredTable]] = {}
    for table in tables:
        grouped.setdefault(table.name, []).append(table)
    return grouped
