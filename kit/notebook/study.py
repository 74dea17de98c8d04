"""What a notebook calls: `begin` checks its parameters, then a `Study` holds its runs, figures and
verdicts.

study = kit.begin("02_confused_labels", globals())
bars = study.draw("confused-labels", method)
study.check(bars)
study.finish()
"""

from __future__ import annotations

import ast
import contextlib
import html
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from kit.core.errors import KitError, unknown_name
from kit.core.files import write_json
from kit.evaluation.accuracy import evaluate
from kit.evaluation.result_tables import ResultTable, result_table
from kit.experiments.devices import pick_device
from kit.experiments.provenance import git_commit, versions
from kit.experiments.runs import Run
from kit.experiments.specification import RunSpec
from kit.figures.base import Drawing, plain
from kit.figures.table import draw, output_folder
from kit.notebook.parameter_cells import (
    check_parameters,
    declared_parameters,
    grid_options,
    grid_points,
    needed_specs,
    needed_tables,
    wanted_attacks,
    wanted_seeds,
)
from kit.papers.measured_cells import PaperTable, measured, trained_run
from kit.papers.table_runs import chosen_tables
from kit.papers.verdicts import compare
from kit.training.runner import run, run_many
from kit.widgets.panel import Panel, attended

_VERDICT_MARKS = {"holds": "✓ holds here", "fails": "✗ fails here", "undecided": "? undecided here"}


def begin_study(notebook: str, namespace: Mapping[str, Any]) -> Study:
    """Check the parameters of the running notebook and say in one line what it runs on. Pass
    `globals()`.

    Errors: `KitError` for a parameter that is unknown (one that papermill injected), of the wrong
    type or out of range.
    """
    cells = [cell for cell in namespace.get("In", []) if cell.strip()]
    parameters = next(
        (found for cell in reversed(cells) if (found := declared_parameters(cell))), None
    )
    if parameters is None:
        raise KitError(
            "no parameters cell was run in this notebook; run the cell tagged 'parameters' first"
        )
    given = {}
    for cell in cells:
        if cell.startswith("# Parameters"):  # papermill writes this line above what it injects
            given |= {name: namespace[name] for name in _assigned_names(cell) if name in namespace}
    values = check_parameters(
        parameters, given | {name: namespace[name] for name in parameters if name in namespace}
    )
    study = Study(notebook, values, needed_specs(values))
    v = versions()
    print(
        f"kit {v['kit']} {git_commit()} · torch {v['torch']} · {pick_device()} · "
        + " · ".join(f"{name} {value}" for name, value in values.items() if value != "")
    )
    return study


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
    """The state of one notebook:

    its parameter values, its runs by method, what it drew and concluded.
    """

    notebook: str
    values: dict[str, Any]
    specs: list[RunSpec]
    drawings: list[Drawing | ResultTable] = field(default_factory=list)
    verdicts: list[dict[str, str]] = field(default_factory=list)
    opened: dict[str, Run] = field(default_factory=dict)  # by the spec in words
    started: float = field(default_factory=time.monotonic)

    @property
    def folder(self) -> Path:
        """Where its pictures and its stamp go."""
        return output_folder(self.values.get("recipe", "digits"))

    def run(self, method: str) -> Run:
        """The run of a method that the parameters name: trained now, resumed, or opened."""
        spec = next((spec for spec in self.specs if spec.method == method), None)
        if spec is None:
            raise unknown_name(
                "method in this notebook's parameters", method, {spec.method for spec in self.specs}
            )
        return self._open(spec)

    def _train(self, specs: list[RunSpec]) -> None:
        """Many at once. What cannot be trained says so when it is opened."""
        with contextlib.suppress(KitError):
            run_many(specs, quiet=True)

    def _open(self, spec: RunSpec) -> Run:
        if str(spec) not in self.opened:
            self.opened[str(spec)] = run(spec)
        return self.opened[str(spec)]

    def runs(self, methods: str) -> dict[str, Run]:
        """{method: Run} of several names with spaces between."""
        self._train([spec for spec in self.specs if spec.method in methods.split()])
        return {method: self.run(method) for method in methods.split()}

    def grid(self, setting: str) -> list[Run]:
        """The runs at the values of one setting of the `grid` parameter, every method, in order."""
        points = grid_points(self.values)
        if setting not in points:
            raise unknown_name("setting in the grid parameter", setting, points)
        wanted = [
            spec
            for spec in self.specs
            if any(spec.overrides.items() >= point.items() for point in points[setting])
        ]
        self._train(wanted)
        return [self._open(spec) for spec in wanted]

    def draw(self, figure: str, methods: str | list[Run] = "", **options) -> Drawing:
        """Draw a figure of kit.FIGURES from the runs of `methods` (names, or runs; all that are
        open), and save it in the study's folder.
        """
        torch.manual_seed(0)
        given = (
            self.runs(methods).values()
            if isinstance(methods, str) and methods
            else methods or self.opened.values()
        )
        runs = list(given)
        drawing = draw(figure, runs, folder=self.folder, **options)
        self.drawings.append(drawing)
        return drawing

    def show(self, panel: Panel) -> Panel:
        """A widget for this cell to show.

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
            self.drawings.append(panel.figure)
        return panel

    def table(self, title: str, name: str) -> ResultTable:
        """All runs that the parameters ask for, under their `attacks`, as a table that is saved in
        the study's folder. A run that cannot be trained is left out and named.
        """
        self._train(self.specs)
        runs, missing = [], {}
        for spec in self.specs:
            try:
                runs.append(self._open(spec))
            except KitError as error:
                missing[str(spec)] = str(error)
        table = result_table(title, runs, wanted_attacks(self.values), missing=missing)
        table.save(self.folder, name)
        self.drawings.append(table)
        return table

    def measured_tables(self) -> list[PaperTable]:
        """Each printed table of the `tables` parameter beside what its runs measure, saved in the
        study's folder as say vir-table-1; runs are trained and evaluated now where they are not.
        """
        self._train([spec for spec, _ in needed_tables(self.values)])
        for spec, asks in needed_tables(self.values):
            opened = self.opened[str(spec)] = trained_run(spec) or self._open(
                spec
            )  # without a line for each of many
            for attack, n, which in asks:
                evaluate(opened, [attack], n=n, which=which, quiet=True)
        found = []
        for paper, name in chosen_tables(self.values["tables"]):
            found.append(
                measured(paper, name, seeds=wanted_seeds(self.values), **grid_options(self.values))
            )
            found[-1].save(self.folder, f"{paper}-table-{name[1:]}")
        self.drawings += found
        return found

    def compare(self) -> pd.DataFrame:
        """The claims of the papers that the `tables` parameter names, with verdicts from what was
        measured.
        """
        papers = dict.fromkeys(paper for paper, _ in chosen_tables(self.values["tables"]))
        options = grid_options(self.values) | {
            "seeds": wanted_seeds(self.values),
            "settings": self.values["overrides"],
        }
        return pd.concat([compare(paper, **options) for paper in papers])

    def check(self, *drawings: Drawing) -> Verdicts:
        """Set what the papers say beside what these drawings show. -> the table of their claims."""
        found = [claim.record() for drawing in drawings for claim in drawing.claims]
        names = {record["claim"] for record in found}
        self.verdicts = [record for record in self.verdicts if record["claim"] not in names] + found
        return Verdicts(found)

    def finish(self) -> None:
        """Write the stamp by which a batch run knows that the notebook came to its end."""
        write_json(
            self.folder / f"{self.notebook}.json",
            plain(
                {
                    "notebook": self.notebook,
                    "stamp": os.environ.get("KIT_STAMP", ""),
                    "parameters": self.values,
                    "runs": {words: opened.key for words, opened in self.opened.items()},
                    "verdicts": self.verdicts,
                    "figures": [path.name for drawing in self.drawings for path in drawing.files],
                    "seconds": round(time.monotonic() - self.started, 1),
                }
            ),
        )
        print(
            f"{self.notebook}: {len(self.drawings)} figures and {len(self.verdicts)} checks in "
            f"{time.monotonic() - self.started:.0f} s -> {self.folder}"
        )


@dataclass(frozen=True)
class Verdicts:
    """Claims as a table, in text and in HTML."""

    rows: list[dict[str, str]]

    def __repr__(self) -> str:
        return "\n".join(
            f"{_VERDICT_MARKS[row['verdict']]}: {row['claim']}\n    paper: {row['printed']}\n    "
            f"here:  {row['here']}"
            for row in self.rows
        )

    def _repr_html_(self) -> str:
        head = "".join(
            f"<th style='text-align:left'>{name}</th>"
            for name in ("claim", "paper", "these runs", "")
        )
        cells = [
            (row["claim"], row["printed"], row["here"], _VERDICT_MARKS[row["verdict"]])
            for row in self.rows
        ]
        cell = "<td style='text-align:left;vertical-align:top'>{}</td>"
        body = "".join(
            f"<tr>{''.join(cell.format(html.escape(text)) for text in row)}</tr>" for row in cells
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
