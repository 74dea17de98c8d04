"""The papers' printed numbers, settings and figures, read from the CSV files beside this one.

Nothing here was measured by the kit. A cell says what a paper prints; `row` names the row of
`kit.METHODS` that computes the same method, and `overrides` the hyper-parameters in which the cell
departs from that row. drawings.csv joins what the kit draws to the papers: a row is a figure of
`kit.FIGURES`, with the paper, the number and the panels ("c d") of the paper's figure that it
stands for (empty where it is the kit's own), and the notebook that draws it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from kit.core.errors import unknown_name
from kit.core.registry import Registry
from kit.methods.table import METHODS

FOLDER = Path(__file__).parent

#: CSA numbers its tables so.
ROMAN = {"i": 1, "ii": 2, "iii": 3, "iv": 4}

#: What rows can differ in besides the method and its hyper-parameters: these come first in a
#: table's index.
SETTINGS = ("dataset", "model", "checkpoint", "protected_class")


@dataclass(frozen=True)
class Paper:
    """One of the five papers.

    `title` says what it is about, `label` is how the kit's figures cite it, and `weighs_by` says
    what it weighs examples by.
    """

    title: str
    label: str
    weighs_by: str


PAPERS = Registry(
    "paper",
    {
        "clirat": Paper(
            "reweighting by the margin to every label that beats the true one",
            "CLIRAT",
            "CL-PM: the margin to the strongest other label, or, where the example is "
            "misclassified, the sum of the margins to all its confused labels (Eq. 7)",
        ),
        "mail": Paper(
            "reweighting by the probabilistic margin in place of attack steps",
            "MAIL",
            "PM: the true label's probability minus that of the strongest other label (Eq. 4)",
        ),
        "vir": Paper(
            "reweighting by how vulnerable the clean example is, times how far the attack moves "
            "its prediction",
            "VIR",
            "an exponential of the true label's clean probability times the divergence between "
            "clean and adversarial prediction, plus a constant (Eqs. 5, 6, 8)",
        ),
        "mr": Paper(
            "a margin corrected for how the remaining probability is spread",
            "MR",
            "the probabilistic margin, times (τ minus the top-2 ratio), times a cosine similarity "
            "(Eqs. 7, 11, 14)",
        ),
        "csa": Paper(
            "protecting one class by the costs of mistakes, with fewer in-between parameters",
            "CSA/CSE",
            "no weights of examples: mistakes that involve the protected class cost c, others cost "
            "1 (Eqs. 3, 4)",
        ),
    },
)


@cache
def read_table(name: str) -> pd.DataFrame:
    """Read a CSV file of this folder, all text.

    The frame is shared: select from it, never write to it.
    """
    return pd.read_csv(FOLDER / f"{name}.csv", dtype=str, keep_default_na=False)


class Proof(NamedTuple):
    """A claim that needs no run: its verdict, and because of what."""

    verdict: str
    because: str


@cache
def proofs() -> dict[int, Proof]:
    """Return what mathematics decides, by the claims' numbers."""
    return {
        int(row.claim): Proof(row.verdict, row.because) for row in read_table("proofs").itertuples()
    }


def rows_of_paper(frame: pd.DataFrame, paper: str | None) -> pd.DataFrame:
    """Select the rows of one paper, or of all where `paper` is None.

    Raises:
        KitError: There is no such paper.
    """
    if paper is None:
        return frame.copy()
    PAPERS[paper]
    return frame[frame["paper"] == paper].reset_index(drop=True)


def results(paper: str | None = None) -> pd.DataFrame:
    """List every cell of the printed tables, one a row, in the order of the papers.

    `mean` and `std` are numbers in `unit` (percent, or fraction in CSA's tables; missing where the
    cell is blank or has no deviation), `printed` is the cell's text. `method` is the paper's name,
    `row` the kit's ("" where it has none), `overrides` what to set on that row, say
    "criterion.alpha=1".

    Raises:
        KitError: There is no such paper.
    """
    cells = rows_of_paper(read_table("results"), paper)
    cells["printed"] = cells["mean"] + (" ± " + cells["std"]).where(cells["std"] != "", "")
    for column in ("mean", "std"):
        cells[column] = pd.to_numeric(cells[column])
    return cells


def tables(paper: str) -> list[str]:
    """List the names of a paper's tables of results.

    CSA's roman numerals are written as numbers: Table II is T2.
    """
    return list(results(paper)["table"].unique())


def table_name(paper: str, table: str | int) -> str:
    """Write 1, "1", "T1", "I" or "Table I" as "T1".

    Raises:
        KitError: The paper has no such table; it names those that it has.
    """
    text = str(table).strip().lower().removeprefix("table").strip()
    text = str(ROMAN.get(text, text.removeprefix("t")))
    if f"T{text}" not in tables(paper):
        raise unknown_name(f"table of {paper}", table, tables(paper))
    return f"T{text}"


def cells_of(paper: str, table: str | int) -> pd.DataFrame:
    """List one table's cells, with the parts of `variant` as columns of their own.

    Such a column is "" where a row has no such part.
    """
    cells = results(paper)
    cells = cells[cells["table"] == table_name(paper, table)].reset_index(drop=True)
    parts = pd.DataFrame(
        [dict(word.split("=") for word in variant.split()) for variant in cells["variant"]]
    )
    return pd.concat([cells, parts.reindex(cells.index).fillna("")], axis=1)


def table(paper: str, name: str | int) -> pd.DataFrame:
    """Lay out a printed table, methods by attacks, cells as printed.

    A cell is such as "85.64 ± 0.25"; empty where the paper leaves a blank. The index holds the
    method and whatever else tells its rows apart (model, data set, α, ...). `attrs["caption"]` says
    what is common to all rows, `attrs["cells"]` has the cells one by one.

    Raises:
        KitError: There is no such paper or table.
    """
    cells = cells_of(paper, name)
    keys = [
        "dataset",
        "model",
        "checkpoint",
        *cells.columns[cells.columns.get_loc("printed") + 1 :],
    ]
    varying = [key for key in keys if cells.groupby("method")[key].nunique().max() > 1]
    before = [key for key in varying if key in SETTINGS]
    index = [*before, "method", *[key for key in varying if key not in before]]
    if before:
        cells = pd.concat([group for _, group in cells.groupby(before, sort=False)])
    wide = cells.set_index([*index, "attack"])["printed"].unstack(sort=False)
    wide.columns.name = None
    common = [
        cells[key].iloc[0] for key in ("dataset", "model", "checkpoint") if key not in varying
    ]
    what = cells["metric"].iloc[0].replace("_", " ")
    spread = ", mean ± standard deviation" if cells["std"].notna().any() else ""
    wide.attrs["caption"] = (
        f"{PAPERS[paper].label}, {table_name(paper, name)}: {', '.join(filter(None, common))}; "
        f"{what} as a {cells['unit'].iloc[0]}{spread}, as printed"
    ).replace("a percent", "percentage")
    wide.attrs["cells"] = cells.to_dict("records")
    return wide


def hyper_parameters(paper: str | None = None, method: str | None = None) -> pd.DataFrame:
    """List the settings that the papers state, as text; an empty cell was not stated.

    One row a data set, model and method; `eval:...` rows are the settings of attacks at evaluation.
    `method` may be the paper's name or that of the kit's row.

    Raises:
        KitError: There is no such paper, or no settings of such a method.
    """
    settings = rows_of_paper(read_table("hyperparameters"), paper)
    if method is None:
        return settings
    chosen = settings[(settings["method"] == method) | (settings["row"] == method)].reset_index(
        drop=True
    )
    if chosen.empty:
        whose = f" of {paper}" if paper else ""
        raise unknown_name(
            f"method{whose} with settings",
            method,
            set(settings["method"]) | set(settings["row"]) - {""},
        )
    return chosen


def figures(paper: str | None = None) -> pd.DataFrame:
    """List the papers' 22 figures.

    Columns: what each shows, the statistic that decides its claim, the control that it lacks, and
    `drawn_by`: the kit's figures that stand for it or for one of its panels, for `kit.draw`, with
    commas between.

    Raises:
        KitError: There is no such paper.
    """
    listed = rows_of_paper(read_table("figures"), paper)
    drawn: dict[tuple[str, str], list[str]] = {}
    for row in read_table("drawings").itertuples():
        drawn.setdefault((row.paper, row.number), []).append(row.figure)
    listed["drawn_by"] = [
        ", ".join(drawn.get((row.paper, row.figure), ())) for row in listed.itertuples()
    ]
    return listed


@cache
def figures_by_number() -> dict[str, str]:
    """Read which figure of the kit is drawn for a paper's own number: {"mail-4": "pm-by-lps"}.

    Where several stand for one number the first row of drawings.csv counts. The dictionary is
    shared: read it, never write to it.
    """
    found: dict[str, str] = {}
    for row in read_table("drawings").query("paper != ''").itertuples():
        for panel in row.panels.split() or [""]:
            found.setdefault(f"{row.paper}-{row.number}{panel}", row.figure)
    return found


@cache
def main_setting(paper: str) -> tuple[str, str]:
    """Return the data set and network of a paper's first table, which a quick recipe stands for."""
    first = read_table("results").query("paper == @paper").iloc[0]
    return first["dataset"], first["model"]


def cell_tags(cell: Mapping[str, str]) -> frozenset[str]:
    """Return the words that name a cell in a rule: see `kit.papers.rule_language`."""
    columns = ("table", "method", "attack", "dataset", "model", "checkpoint")
    return frozenset([*(cell[column] for column in columns), *cell["variant"].split()])


def unmatched() -> list[str]:
    """List the printed methods, with variant, that no row of `kit.METHODS` computes."""
    cells = read_table("results")
    without = cells[~cells["row"].isin(list(METHODS))]
    return sorted({f"{c.paper} {c.method} {c.variant}".strip() for c in without.itertuples()})
