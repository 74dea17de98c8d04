"""The papers' printed settings, as runs: which recipe and overrides train what a paper trained.

`hyperparameters.csv` has what is printed. `recipes.csv` names the recipe of a paper's data set
where it is not <data set>:paper. `readings.csv` says how a cell is read that is not a plain number:
its columns up to `method` select rows by pattern, `column` and `printed` name a cell, `taken` is
the value for the run ("" keeps that of the recipe or the method's row), and the first fit counts.
Its `kind` is

* words: the same in the kit's words,
* choice: the print says two things, one is taken,
* silent: nothing is printed,
* departure: the run differs from the print.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import pandas as pd

from kit.core.errors import KitError, unknown_name
from kit.data.datasets import DATA
from kit.experiments.recipes import find_recipe
from kit.experiments.specification import Plan, RunSpec, parse_value, resolve
from kit.methods.table import METHODS
from kit.papers.printed_attacks import attack_of, attack_settings
from kit.papers.printed_data import PAPERS, cells_of, read_table, rows_of_paper, table_name

Row = Mapping[str, str]

#: What selects a printed row.
KEYS = ("paper", "dataset", "model", "method")

#: From the best to the worst.
STATUSES = ("equal", "read", "departs", "unexplained")


class Column(NamedTuple):
    """A printed setting: how a plan's value is read, and which overrides set it.

    `read` returns None where the method has no such setting.
    """

    read: Callable[[Plan], Any]
    write: Callable[[Any, Plan], dict[str, Any]]


class Reading(NamedTuple):
    """What was made of a printed cell that is not a plain number."""

    column: str
    printed: str
    taken: Any
    kind: str
    why: str


def _field(name: str) -> Column:
    """A field of the recipe."""
    return Column(lambda plan: getattr(plan.recipe, name), lambda value, _: {name: value})


def _number_of(*paths: str) -> Column:
    """The method's number of the first of these names that it has."""

    def read(plan: Plan) -> Any:
        numbers = plan.method.hyper_parameters()
        return next((numbers[path] for path in paths if path in numbers), None)

    def write(value: Any, plan: Plan) -> dict[str, Any]:
        numbers = plan.method.hyper_parameters()
        return {next(path for path in paths if path in numbers): value}

    return Column(read, write)


def _attacked(column: Column) -> Column:
    """A setting that a method without an attack has not."""
    return column._replace(read=lambda plan: column.read(plan) if plan.method.attack else None)


#: A method's own numbers, by the papers' symbols.
METHOD_NUMBERS = {
    "gamma": _number_of("criterion.gamma", "weight.slope", "regulariser.strength"),
    "beta": _number_of("weight.bias", "weight.offset"),
    "alpha": _number_of("criterion.alpha", "weight.alpha"),
    "tau": _number_of("criterion.tau"),
    "lambda_tradeoff": _number_of("loss.beta", "weight.shift"),
    "cost_c": _number_of("loss.cost"),
}

COLUMNS = {
    "model": _field("model"),
    "epochs": _field("epochs"),
    "batch": _field("batch_size"),
    "optimizer": Column(
        lambda plan: "nesterov" if plan.recipe.nesterov else plan.recipe.optimizer,
        lambda value, _: (
            {"optimizer": "sgd", "nesterov": True}
            if value == "nesterov"
            else {"optimizer": value, "nesterov": False}
        ),
    ),
    "lr": _field("lr"),
    "momentum": _field("momentum"),
    "weight_decay": _field("weight_decay"),
    "lr_milestones": Column(
        lambda plan: (
            list(plan.recipe.milestones)
            if plan.recipe.schedule == "milestones"
            else plan.recipe.schedule
        ),
        lambda value, _: (
            {"schedule": "cosine"}
            if value == "cosine"
            else {"milestones": [int(epoch) for epoch in _as_list(value)]}
        ),
    ),
    "lr_factor": Column(
        lambda plan: plan.recipe.lr_factor if plan.recipe.milestones else None,
        lambda value, _: {"lr_factor": value},
    ),
    "warm_up": _field("warm_up"),
    "eps": _attacked(_field("eps")),
    "step_size": _attacked(
        Column(
            lambda plan: plan.recipe.step * plan.recipe.eps,
            lambda value, plan: {"step": value / plan.recipe.eps},
        )
    ),
    "steps": _attacked(_field("steps")),
    "init": _number_of("attack.init"),
    "input_normalisation": Column(
        lambda plan: list(plan.recipe.mean_std) or "none",
        lambda value, _: {"mean_std": [] if value == "none" else list(value)},
    ),
    "generated_share": _field("generated_share"),
    "validation": _field("validation"),
    "selection_steps": _field("selection_steps"),
    **METHOD_NUMBERS,
    # last: its share follows the number of epochs
    "burn_in_epochs": Column(
        lambda plan: plan.burn_in if plan.method.reweights else None,
        lambda value, _: {"burn_in": value},
    ),
}


@dataclass(frozen=True)
class Settings:
    """What a paper prints for one of its runs, and what the run resolves to."""

    paper: str
    printed: Mapping[str, str]  # the row of hyperparameters.csv
    spec: RunSpec
    values: Mapping[str, Any]  # of `COLUMNS`, from the resolved run; None: the method has no such
    readings: tuple[Reading, ...]
    unexplained: tuple[
        str, ...
    ]  # columns that differ from the print, or are silent, with no reason

    def __getitem__(self, column: str) -> Any:
        """Return what the run resolves to, say for "epochs"."""
        if column not in self.values:
            raise unknown_name("printed setting", column, self.values)
        return self.values[column]

    @property
    def departures(self) -> dict[str, str]:
        """{column: why} where the run differs from the print."""
        return {reading.column: reading.why for reading in self.of_kind("departure")}

    def of_kind(self, *kinds: str) -> list[Reading]:
        """List the readings of these kinds."""
        return [reading for reading in self.readings if reading.kind in kinds]

    @property
    def status(self) -> str:
        """Say equal, read (equal, with a stated reading), departs or unexplained."""
        if self.unexplained:
            return "unexplained"
        if self.departures:
            return "departs"
        return "read" if self.of_kind("choice", "silent") else "equal"

    def table(self) -> pd.DataFrame:
        """List each setting as printed, as it is run, and why where that is not the same."""
        whys = {reading.column: reading.why for reading in self.readings}
        return pd.DataFrame(
            [
                (column, self.printed.get(column, ""), value, whys.get(column, ""))
                for column, value in self.values.items()
                if value is not None
            ],
            columns=["setting", "printed", "run", "why"],
        ).set_index("setting")


# ------------------------------------------------------------------------------------ one run's own


def settings(
    paper: str,
    *,
    method: str | None = None,
    data: str | None = None,
    model: str | None = None,
    table: str | int | None = None,
    recipe: str | None = None,
    seed: int = 0,
) -> Settings:
    """Find the settings that a paper prints for a run, and the run that has them.

    What is left out may stay so where the paper, or its table, has one choice. `method` is the
    paper's name or that of the kit's row. `recipe` names images that the kit cannot download, say
    folder:<path>:paper for VIR's TinyImageNet.

    Raises:
        KitError: The paper, or its table, has no such data set, network or method; it names those
            that it has. Or its images are the user's to give.
    """
    PAPERS[paper]
    rows, where = training_rows(paper), paper
    if table is not None:
        where = f"{paper}, table {table_name(paper, table)[1:]}"
        cells = cells_of(paper, table)
        rows = [
            row for row in rows if any(_is_of_cell(row, cell) for cell in cells.to_dict("records"))
        ]
    for column, wanted in (("dataset", data), ("model", model), ("method", method)):
        rows = _choose(rows, column, wanted, where)
    return settings_of_row(rows[0], own_recipe=recipe, seed=seed)


def _choose(rows: list[dict[str, str]], column: str, wanted: str | None, where: str) -> list:
    """Select the rows with the wanted value, or with the only one there is."""
    word = {"dataset": "data set", "model": "network", "method": "method"}[column]
    choices = list(dict.fromkeys(row[column] for row in rows))
    if wanted is None and len(choices) == 1:
        return rows
    if wanted is None:
        argument = "data" if column == "dataset" else column
        raise KitError(
            f"{where} has several {word}s; give {argument}=, one of: {', '.join(choices)}"
        )
    found = [row for row in rows if wanted in (row[column], row["row"] if word == "method" else "")]
    if not found and column == "dataset":
        found = [row for row in rows if row[column].startswith(f"{wanted} ")]
    elif column == "dataset":  # with more images where the network is another
        found += [row for row in rows if row[column].startswith(f"{wanted} ")]
    if not found:
        raise unknown_name(f"{word} of {where} with settings", wanted, choices)
    return found


def settings_of_row(
    row: Row, method: str = "", *, own_recipe: str | None = None, seed: int = 0
) -> Settings:
    """Make the run of a printed row.

    `method` is another row of `METHODS` with the same schedule, whose own numbers are kept: one of
    VIR's factors alone, say.

    Raises:
        KitError: No row of `METHODS` computes it, or its images are the user's to give.
    """
    paper, name = row["paper"], method or row["row"]
    if name not in METHODS:
        raise KitError(f"no row of kit.METHODS computes {paper}'s {row['method']}")
    known, images = recipe_of(paper, row["dataset"])
    if images and own_recipe is None:
        raise KitError(
            f"the kit has no images of {paper}'s {row['dataset']}; give them as recipe={images}"
        )
    columns = [c for c in COLUMNS if not method or method == row["row"] or c not in METHOD_NUMBERS]
    return _settle(row, name, own_recipe or known, columns, seed)


@cache
def recipe_of(paper: str, dataset: str) -> tuple[str, str]:
    """Return (recipe, how to name images of one's own) of a paper's data set.

    The second is "" where the kit loads the images itself.
    """
    for line in read_table("recipes").to_dict("records"):
        if (line["paper"], line["dataset"]) == (paper, dataset):
            return line["recipe"], line["images"]
    return f"{dataset}:paper", ""


def _settle(row: Row, method: str, recipe: str, columns: Sequence[str], seed: int) -> Settings:
    """Set column by column what the print wants and the run has not yet."""
    read = {column: find_reading(row, column) for column in columns}
    wanted = {
        column: parse_printed(row.get(column, "")) if reading is None else reading.taken
        for column, reading in read.items()
    }
    plan = resolve(RunSpec(method, recipe, seed))
    for column in columns:
        value = COLUMNS[column].read(plan)
        if None not in (value, wanted[column]) and not _is_same(value, wanted[column]):
            changes = COLUMNS[column].write(wanted[column], plan)
            plan = resolve(replace(plan.spec, overrides={**plan.spec.overrides, **changes}))
    values = {column: COLUMNS[column].read(plan) for column in COLUMNS}
    used = tuple(r for c, r in read.items() if r and (values[c] is not None or r.printed))
    unexplained = tuple(
        column
        for column in columns
        if not _is_explained(row.get(column, ""), wanted[column], values[column], read[column])
    )
    return Settings(row["paper"], row, plan.spec, values, used, unexplained)


def _is_explained(printed: str, wanted: Any, value: Any, reading: Reading | None) -> bool:
    """Say whether a run's value is what was wanted, and is wanted for a reason."""
    if value is None:  # the method has no such setting
        return not printed or reading is not None
    if wanted is None:  # the recipe's or the row's own was kept
        return reading is not None
    return _is_same(value, wanted)


# --------------------------------------------------------------------------------- rows and reading


def find_reading(row: Row, column: str) -> Reading | None:
    """Find how a cell of a printed row is read; None where its text is a plain number."""
    printed = row.get(column, "")
    for line in _readings():
        selects = all(fnmatchcase(row[key], line[key]) for key in KEYS)
        if selects and fnmatchcase(column, line["column"]) and line["printed"] == printed:
            taken = parse_printed(line["taken"])
            return Reading(column, printed, taken, line["kind"], line["why"])
    return None


@cache
def _readings() -> list[dict[str, str]]:
    return read_table("readings").to_dict("records")


def parse_printed(text: str) -> Any:
    """Read "", "8/255", "75;90" or a word as None, a number, a list or the word."""
    if ";" in text:
        return [parse_value(word) for word in text.split(";")]
    return parse_value(text) if text else None


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _is_same(value: Any, wanted: Any) -> bool:
    """Compare numbers up to rounding, and lists item by item."""
    if isinstance(value, list) or isinstance(wanted, list):
        mine, theirs = _as_list(value), _as_list(wanted)
        return len(mine) == len(theirs) and all(map(_is_same, mine, theirs))
    if isinstance(value, str) or isinstance(wanted, str):
        return value == wanted
    return math.isclose(value, wanted, rel_tol=1e-9)


def training_rows(paper: str | None = None) -> list[dict[str, str]]:
    """List the printed rows of runs that some row of `METHODS` trains, one a combination of values.

    A later row of a run that has been printed inherits what it leaves out. `line` is the number of
    the row in the table.

    Raises:
        KitError: There is no such paper.
    """
    found: list[dict[str, str]] = []
    first: dict[tuple[str, ...], dict[str, str]] = {}
    for line, printed in enumerate(
        rows_of_paper(read_table("hyperparameters"), paper).to_dict("records")
    ):
        if not printed["row"] or not printed["dataset"]:
            continue
        for row in expand_row({**printed, "line": str(line)}):
            before = first.setdefault(tuple(row[key] for key in KEYS), row)
            found.append({key: value or before[key] for key, value in row.items()})
    return found


def expand_row(row: Row) -> Iterator[dict[str, str]]:
    """Yield a printed row with each of its data sets, networks and values of the method's numbers.

    Of a range, 7..13, its ends.
    """
    lists = {key: row[key].split(";") for key in ("dataset", "model")} | {
        key: row[key].replace("..", ";").split(";") for key in METHOD_NUMBERS
    }
    for values in product(*lists.values()):
        yield {**row, **dict(zip(lists, values, strict=True))}


def row_of_cell(cell: Row) -> dict[str, str] | None:
    """Find the printed row of a table's cell; None where the paper states no settings of it."""
    return _first_rows().get(tuple(cell[key] for key in KEYS))


@cache
def _first_rows() -> dict[tuple[str, ...], dict[str, str]]:
    """The first printed row of each paper, data set (without more images), network and method."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for row in training_rows():
        base = row["dataset"].partition(" ")[0]
        found.setdefault((row["paper"], base, row["model"], row["method"]), row)
    return found


def _is_of_cell(row: Row, cell: Row) -> bool:
    same = all(row[key] == cell[key] for key in ("model", "method"))
    return same and row["dataset"].partition(" ")[0] == cell["dataset"]


# ------------------------------------------------------------------------------------------- report


def compare_settings(paper: str | None = None) -> pd.DataFrame:
    """Compare every printed row with what its runs resolve to.

    Columns: paper, dataset, model, method, status and why. A row is `equal`; or `read`, equal where
    the print is silent or says two things, with a stated reading; or `departs`, with the reason; or
    `unexplained`, which a test refuses. `attrs["caption"]` has the counts.

    Raises:
        KitError: There is no such paper.
    """
    printed = rows_of_paper(read_table("hyperparameters"), paper).to_dict("records")
    runs: dict[str, list[Settings]] = {}
    for row in training_rows(paper):
        recipe, _ = recipe_of(row["paper"], row["dataset"])
        runs.setdefault(row["line"], []).append(_settle(row, row["row"], recipe, [*COLUMNS], 0))
    lines = []
    for line, row in enumerate(printed):
        if row["method"].startswith("eval:"):
            status, why = compare_attack(row)
        elif str(line) in runs:
            status, why = _worst(runs[str(line)])
        else:
            reading = find_reading({**row, "row": ""}, "row")
            status, why = ("unexplained", "no run") if reading is None else ("departs", reading.why)
        lines.append({key: row[key] for key in KEYS} | {"status": status, "why": why})
    frame = pd.DataFrame(lines)
    counts = frame["status"].value_counts()
    frame.attrs["caption"] = (
        f"{len(frame)} printed rows: {counts.get('equal', 0)} equal; {counts.get('read', 0)} equal "
        "where the print speaks, with a stated reading where it is silent or says two things; "
        f"{counts.get('departs', 0)} depart with a reason; {counts.get('unexplained', 0)} "
        "unexplained"
    )
    return frame


def compare_attack(row: Row) -> tuple[str, str]:
    """Compare a printed attack at evaluation with its row of `kit.ATTACKS`: status, and why."""
    dataset = row["dataset"].partition(";")[0]
    recipe = find_recipe(recipe_of(row["paper"], dataset)[0]) if dataset in DATA else None
    name = attack_of(row["paper"], row["method"].removeprefix("eval:"))
    found = attack_settings(name, recipe.eps if recipe else 8 / 255)
    status, whys = "equal", []
    for column, value in found.items():
        reading = find_reading(row, column)
        wanted = parse_printed(row[column]) if reading is None else reading.taken
        if not _is_explained(row[column], wanted, value, reading):
            status = "unexplained"
            whys.append(f"{column}: {row[column] or 'silent'}, the run has {value}")
        elif reading is not None and value is not None and reading.kind != "words":
            kind = "departs" if reading.kind == "departure" else "read"
            status = max(status, kind, key=STATUSES.index)
            whys.append(f"{column}: {reading.why}")
    return status, "; ".join(whys)


def _worst(runs: Sequence[Settings]) -> tuple[str, str]:
    """Return the status of a row's runs, and why it is not equal."""
    status = max((run.status for run in runs), key=STATUSES.index)
    kinds = {"departs": ("departure",), "read": ("choice", "silent")}.get(status, ())
    whys = [f"{r.column}: {r.why}" for run in runs for r in run.of_kind(*kinds)]
    whys += [f"{column}: unexplained" for run in runs for column in run.unexplained]
    return status, "; ".join(dict.fromkeys(whys))
