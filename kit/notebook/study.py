"""What a notebook calls: it begins a study, draws, checks and finishes.

    study = kit.begin("02_confused_labels", globals())
    bars = study.draw("confused-labels", method)
    study.check(bars)
    study.finish()

`begin` checks the notebook's parameters; then a `Study` holds its runs, figures and verdicts.
"""

from __future__ import annotations

import ast
import contextlib
import html
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from torch import nn

from kit.core.environment import notebook_stamp
from kit.core.errors import KitError, unknown_name
from kit.core.files import write_json
from kit.core.registry import split_names
from kit.core.threat import Threat
from kit.data.own_images import is_own
from kit.evaluation.accuracy import evaluate
from kit.evaluation.result_tables import ResultTable, result_table
from kit.experiments.devices import pick_device
from kit.experiments.provenance import git_commit, machine_load, versions
from kit.experiments.recipes import RECIPE_FIELDS
from kit.experiments.runs import Run, is_done, run_folder
from kit.experiments.specification import Plan, RunSpec
from kit.figures.base import Claim, Drawing, plain
from kit.figures.table import draw, output_folder
from kit.notebook.course import LESSONS, Markdown
from kit.notebook.journal import journal_path, note_pictures
from kit.notebook.parameter_cells import (
    NO_METHODS,
    NotebookValues,
    check_parameters,
    declared_parameters,
    name_variant,
)
from kit.papers.measured_cells import PaperTable, measured
from kit.papers.record import RECORD, read_record
from kit.papers.verdicts import compare
from kit.training.adoption import adopt
from kit.training.runner import run, run_many
from kit.widgets.panel import Panel, attended

#: What a study makes: it has `files`.
Made = TypeVar("Made", Drawing, ResultTable)

#: What these runs show by themselves. A verdict takes several seeds; the record has it.
_VERDICT_MARKS = {"holds": "✓ so here", "fails": "✗ not so here", "undecided": "? undecided here"}

#: How many statements came to what, in a list.
_LEARNED = {"holds": "so in these runs", "fails": "not so", "undecided": "undecided"}


def begin_study(notebook: str, namespace: Mapping[str, Any]) -> Study:
    """Check the parameters of the running notebook and say in one line what it runs on.

    Pass `globals()`.

    Raises:
        KitError: A parameter is unknown (one that papermill injected), of the wrong type or out of
            range.
    """
    if not attended():
        _quiet_shutdown(namespace)
    cells = [cell for cell in namespace.get("In", []) if cell.strip()]
    parameters = next(
        (found for cell in reversed(cells) if (found := declared_parameters(cell))), None
    )
    if parameters is None:
        raise KitError(
            "no parameters cell was run in this notebook; run the cell tagged 'parameters' first"
        )
    given: dict[str, Any] = {}
    for cell in cells:
        # papermill writes this line above what it injects.
        if cell.startswith("# Parameters"):
            given |= {name: namespace[name] for name in _assigned_names(cell) if name in namespace}
    values = check_parameters(
        parameters, given | {name: namespace[name] for name in parameters if name in namespace}
    )
    # A batch run names its folders itself.
    variant = "" if notebook_stamp() else name_variant(parameters, values.given)
    study = Study(notebook, values, variant)
    v = versions()
    print(
        f"kit {v['kit']} {git_commit()} · torch {v['torch']} · {pick_device()} · "
        + " · ".join(f"{name} {value}" for name, value in values.given.items() if value != "")
    )
    if variant:
        print(f"Other values than the notebook's own: what is made goes to {study.folder}")
    return study


def _quiet_shutdown(namespace: Mapping[str, Any]) -> None:
    """Keep one line off the terminal with which an unattended kernel may end.

    Whoever ends a kernel interrupts it first. A kernel that is still busy with its last message
    logs that as an error, below the notebook's own: a refusal is to be the last word.
    """
    shell = namespace["get_ipython"]() if "get_ipython" in namespace else None
    if kernel := getattr(shell, "kernel", None):
        kernel.log.addFilter(
            lambda record: "KeyboardInterrupt caught in kernel" not in record.getMessage()
        )


def _assigned_names(source: str) -> list[str]:
    return [
        target.id
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]


@dataclass
class Study:
    """The state of one notebook: its parameters, its runs, what it drew and concluded.

    `variant` is the folder of its results within the recipe's, "" where all values are defaults, so
    that a run with another seed or other settings overwrites nothing.
    """

    notebook: str
    values: NotebookValues
    variant: str = ""
    drawings: list[Drawing | ResultTable] = field(default_factory=list)
    verdicts: list[dict[str, str]] = field(default_factory=list)
    #: The runs that are open, by their specification in words.
    opened: dict[str, Run] = field(default_factory=dict)
    #: The seconds that the training of each run took, by its key, of all that were drawn.
    trained: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    #: The seconds from `started` to the first figure, table of results or widget.
    first_picture: float | None = None
    #: Of the machine when the notebook began.
    load: float | None = field(default_factory=machine_load)

    @property
    def folder(self) -> Path:
        """Where its pictures and its stamp go."""
        return output_folder(self.values.recipe) / self.variant

    @property
    def specs(self) -> list[RunSpec]:
        """The runs that the parameters ask for."""
        return self.values.specs

    def run(self, method: str) -> Run:
        """Train, resume or open the run of a method that the parameters name.

        Raises:
            KitError: They name no such method, or its run cannot be trained.
        """
        plans = self.values.plans_of([method])
        if not plans:
            known = {s.method for s in self.specs if self.values.plans_of([s.method])}
            raise unknown_name("method in this notebook's parameters", method, known)
        return self._open(plans[0])

    def _train(self, plans: Sequence[Plan]) -> None:
        """Many at once. What cannot be trained says so when it is opened."""
        with contextlib.suppress(KitError):
            run_many(plans, quiet=True)

    def _open(self, plan: Plan, *, quiet: bool = False) -> Run:
        words = str(plan.spec)
        if words not in self.opened:
            self.opened[words] = run(plan, quiet=quiet)
        return self.opened[words]

    def runs(self, methods: str) -> dict[str, Run]:
        """Return {method: its run} of several names with spaces or commas between."""
        names = split_names(methods)
        self._train(self.values.plans_of(names))
        return {method: self.run(method) for method in names}

    def every_seed(self, method: str) -> list[Run]:
        """Return the runs of a method, one for each of the parameters' seeds.

        Raises:
            KitError: They name no such method, or its run cannot be trained.
        """
        self.run(method)  # refuses a method that is not there
        return self._train_all(self.values.plans_of([method]))

    def grid(self, setting: str) -> list[Run]:
        """Return the runs at the values of one setting of the `grid` parameter.

        They are those of every method, in order.

        Raises:
            KitError: The parameter has no such setting.
        """
        points = self.values.grid
        if setting not in points:
            raise unknown_name("setting in the grid parameter", setting, points)
        wanted = [
            plan
            for plan in self.values.plans
            if any(plan.spec.overrides.items() >= point.items() for point in points[setting])
        ]
        return self._train_all(wanted)

    def listed(self, parameter: str) -> list[Run]:
        """Return the runs that a parameter `..._runs` lists, in its order.

        Raises:
            KitError: There is no such parameter, or a run cannot be trained.
        """
        if parameter not in self.values.listed:
            raise unknown_name("parameter that lists runs", parameter, self.values.listed)
        return self._train_all(self.values.listed[parameter])

    def _train_all(self, plans: Sequence[Plan]) -> list[Run]:
        self._train(plans)
        return [self._open(plan, quiet=len(plans) > 1) for plan in plans]

    def adopt(
        self,
        path: str,
        architecture: str = "",
        *,
        data: str = "",
        normalise: bool = False,
        n: int = 2000,
    ) -> Run:
        """Make a run of the checkpoint at `path`, under the recipe and threat of the parameters.

        Where `path` is "" the weights of the first run stand in, as if they came from elsewhere.
        `data`, `normalise` and `n` are as in `kit.adopt`; images of one's own have the parameters'
        `norm` and `eps` for their threat.

        Raises:
            KitError: See `kit.adopt`.
        """
        given, fields = self.values.given, dict(self.values.overrides)
        threat = None
        if data and given["eps"]:
            threat = Threat(given["norm"], given["eps"])
            fields = {name: v for name, v in fields.items() if name not in ("norm", "eps")}
        elif data and not given["recipe"] and "eps" not in fields:
            raise KitError(
                "data has no threat; set eps to its radius, such as 0.031 for 8/255, and norm; "
                "or set recipe to the one whose threat is meant"
            )
        network: str | nn.Module = path
        name = ""
        if not path:
            plan = self.values.plans[0]
            network, name = self._open(plan, quiet=True).model(), f"{plan.spec.method}-again"
            architecture = plan.recipe.model
        adopted = adopt(
            network,
            given["recipe"],
            data=data or None,
            threat=threat,
            name=name,
            architecture=architecture,
            normalise=normalise or None,
            n=n,
            overrides={k: v for k, v in fields.items() if k in RECIPE_FIELDS},
        )
        self.opened[str(adopted.spec)] = adopted
        return adopted

    def draw(
        self,
        figure: str,
        methods: str | list[Run] | Mapping[str, Run] = "",
        *,
        under: str = "",
        **options,
    ) -> Drawing:
        """Draw a figure of kit.FIGURES, and save it in the study's folder, or `under` it.

        It is drawn from the runs of `methods`: names, or runs as `kit.draw` takes them; all open
        ones if there are none. With the methods "none" it is left out: nothing is saved, and what
        comes back says so and makes no claim.

        Raises:
            KitError: The figure, a method or an option is unknown, or a run cannot be trained.
        """
        if methods == NO_METHODS:
            return _leave_out(figure)
        given = (
            self.runs(methods).values()
            if isinstance(methods, str) and methods
            else methods or self.opened.values()
        )
        runs = given if isinstance(given, Mapping) else list(given)
        self._count_training(runs.values() if isinstance(runs, Mapping) else runs)
        return self._keep(draw(figure, runs, folder=self.folder / under, **options))

    def _keep(self, drawing: Made) -> Made:
        """Remember what was made, and name its pictures to whoever waits for this notebook."""
        self._note_picture()
        self.drawings.append(drawing)
        if notebook_stamp():
            pictures = [path for path in drawing.files if path.suffix == ".png"]
            note_pictures(journal_path(self.folder, self.notebook), pictures)
        return drawing

    def _note_picture(self) -> None:
        """Take down when the first picture was there."""
        if self.first_picture is None:
            self.first_picture = time.monotonic() - self.started

    def _count_training(self, runs: Iterable[Run]) -> None:
        self.trained |= {run.key: run.done["seconds"] for run in runs if not run.is_adopted}

    def show(self, panel: Panel) -> Panel:
        """Return a widget for this cell to show.

        Where nobody is there to use it, its picture is saved in the study's folder.
        """
        if not attended():
            panel.figure.save(
                self.folder,
                f"widget-{panel.name}",
                panel.runs,
                title=panel.title,
                source=panel.source,
                options=panel.values,
                seconds=0.0,
            )
            self._keep(panel.figure)
        self._note_picture()
        return panel

    def table(self, title: str, name: str) -> ResultTable:
        """Make a table of all runs that the parameters ask for, under their `attacks`.

        It is saved in the study's folder. A run that cannot be trained is left out and named.
        """
        self._train(self.values.plans)
        runs, missing = [], {}
        for plan in self.values.plans:
            try:
                runs.append(self._open(plan))
            except KitError as error:
                missing[str(plan.spec)] = str(error)
        table = result_table(title, runs, list(self.values.attacks), missing=missing)
        table.save(self.folder, name)
        return self._keep(table)

    def measured_tables(self) -> list[PaperTable]:
        """Set each printed table of the `tables` parameter beside what its runs measure.

        It is saved in the study's folder as say vir-table-1; runs are trained and evaluated now
        where they are not.
        """
        values = self.values
        self._train([plan for plan, _ in values.table_evaluations])
        for plan, asks in values.table_evaluations:
            there = is_done(run_folder(plan))
            # Many runs that are trained already need no line each.
            opened = self._open(plan, quiet=there)
            for attack, n, which in asks:
                evaluate(opened, [attack], n=n, which=which, quiet=True)
        found = []
        for paper, name in values.tables:
            found.append(measured(paper, name, seeds=values.seeds, **values.table_options))
            found[-1].save(self.folder, f"{paper}-table-{name[1:]}")
            self._keep(found[-1])
        return found

    def compare(self) -> pd.DataFrame:
        """List the claims of the papers that the `tables` parameter names, each with its verdict.

        Verdicts come from what was measured.
        """
        papers = dict.fromkeys(paper for paper, _ in self.values.tables)
        options = self.values.table_options | {
            "seeds": self.values.seeds,
            "settings": self.values.given["overrides"],
        }
        return pd.concat([compare(paper, **options) for paper in papers])

    def check(self, *drawings: Drawing) -> Verdicts:
        """Set what the papers say beside what these drawings show: a table of their claims.

        Beside each stands what the record says of it on this recipe, over its seeds.
        """
        claims = [claim for drawing in drawings for claim in drawing.claims]
        own = any(is_own(run.plan.recipe.data) for run in self.opened.values())
        record = {} if own else record_of(self.values.recipe)  # nothing is known of such images
        found = [claim.record() | {"record": _record_beside(claim, record)} for claim in claims]
        names = {record["claim"] for record in found}
        self.verdicts = [record for record in self.verdicts if record["claim"] not in names] + found
        return Verdicts(found)

    def learned(self) -> Markdown:
        """Say what the notebook was for, and what its checks came to in these runs."""
        lines = []
        if self.notebook in LESSONS:
            goals = LESSONS[self.notebook].goals
            lines += ["You can now", "", *(f"* {goal}." for goal in goals), ""]
        by_reading: dict[str, list[str]] = {"holds": [], "fails": [], "undecided": []}
        for verdict in self.verdicts:
            by_reading[verdict["reading"]].append(verdict["claim"])
        if self.verdicts:
            counts = ", ".join(
                f"{len(found)} {_LEARNED[reading]}" for reading, found in by_reading.items()
            )
            n = len(self.verdicts)
            lines += [f"The notebook checked {n} statement{'s' * (n > 1)}: {counts}.", ""]
            lines += [
                f"* {_VERDICT_MARKS[reading]}: {claim}"
                for reading, found in by_reading.items()
                for claim in found
            ]
            lines += ["", "Runs of one seed are an example. The record has several seeds."]
        return Markdown("\n".join(lines))

    def finish(self) -> None:
        """Write the stamp by which a batch run knows that the notebook came to its end."""
        self._count_training(self.opened.values())
        loads = [load for load in (self.load, machine_load()) if load is not None]
        first = self.first_picture
        write_json(
            self.folder / f"{self.notebook}.json",
            plain(
                {
                    "notebook": self.notebook,
                    "stamp": notebook_stamp(),
                    "parameters": self.values.given,
                    "variant": self.variant,
                    "runs": {words: opened.key for words, opened in self.opened.items()},
                    "verdicts": self.verdicts,
                    "adopted": any(run.is_adopted for run in self.opened.values()),
                    "figures": [
                        path.relative_to(self.folder).as_posix()
                        for drawing in self.drawings
                        for path in drawing.files
                    ],
                    "seconds": round(time.monotonic() - self.started, 1),
                    "training_seconds": round(sum(self.trained.values()), 1),
                    "first_picture_seconds": None if first is None else round(first, 1),
                    "ended": f"{datetime.now(UTC):%Y-%m-%d}",
                    "cores": os.cpu_count(),
                    "load": round(max(loads), 2) if loads else None,
                }
            ),
        )
        print(
            f"{self.notebook}: {len(self.drawings)} figures and {len(self.verdicts)} checks in "
            f"{time.monotonic() - self.started:.0f} s -> {self.folder}"
        )


def record_of(recipe: str) -> dict[str, list[dict[str, str]]]:
    """Read what the committed record has of a recipe: {statement: its rows}; {} if nothing.

    A record that is damaged stops no notebook: it is said, and counts as nothing.
    """
    found: dict[str, list[dict[str, str]]] = {}
    if not RECORD.exists():
        return found
    try:
        table = read_record()
    except KitError as error:
        print(f"WARNING: the record is left out: {error}")
        return found
    for row in table[table["scale"] == recipe].to_dict("records"):
        found.setdefault(row["statement"], []).append(row)
    return found


def _record_beside(claim: Claim, record: Mapping[str, list[dict[str, str]]]) -> str:
    """The record's verdict on a claim, and whether this run is within the record's intervals."""
    rows = record.get(claim.claim)
    if not rows:
        return "not there"
    if claim.exact is not None:
        return rows[0]["verdict"]
    known = {row["estimate"]: row for row in rows if row["value"]}
    pairs = [(mine, known[mine.name]) for mine in claim.estimates if mine.name in known]
    inside = all(float(r["low"]) <= mine.value <= float(r["high"]) for mine, r in pairs)
    where = "within" if inside else "outside"
    place = f"; this run is {where} the 95 % interval of its mean" if pairs else ""
    return f"{rows[0]['verdict']}, {rows[0]['seeds']} seeds{place}"


@dataclass(frozen=True)
class Verdicts:
    """Claims as a table, in text and in HTML."""

    rows: list[dict[str, str]]

    def __repr__(self) -> str:
        return "\n".join(
            f"{_VERDICT_MARKS[row['reading']]}: {row['claim']}\n    paper: {row['printed']}\n    "
            f"here:  {row['here']}\n    record: {row['record']}"
            for row in self.rows
        )

    def _repr_html_(self) -> str:
        head = "".join(
            f"<th style='text-align:left'>{name}</th>"
            for name in ("claim", "paper", "these runs", "", "the record")
        )
        cells = [
            (
                row["claim"],
                row["printed"],
                row["here"],
                _VERDICT_MARKS[row["reading"]],
                row["record"],
            )
            for row in self.rows
        ]
        cell = "<td style='text-align:left;vertical-align:top'>{}</td>"
        body = "".join(
            f"<tr>{''.join(cell.format(html.escape(text)) for text in row)}</tr>" for row in cells
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _leave_out(figure: str) -> Drawing:
    """Say in the place of a figure that it is left out."""
    drawing = Drawing(5.0, 0.5)
    drawing.title = f"{figure} is left out"
    drawing.caption = f"{drawing.title}, because the parameter with its methods is none."
    drawing.text(0.01, 0.5, drawing.title, va="center")
    return drawing
