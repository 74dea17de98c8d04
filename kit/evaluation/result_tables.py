"""A grid of runs as a table: methods by attacks, over seeds, with intervals.

It is shown as a DataFrame, Markdown, LaTeX and CSV.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from kit.core.errors import KitError
from kit.core.files import write_bytes
from kit.evaluation.accuracy import evaluate
from kit.evaluation.statistics import grand_mean
from kit.experiments.provenance import git_commit, versions
from kit.experiments.runs import Run


@dataclass(frozen=True)
class ResultTable:
    """A table of results over seeds; `cells` has one row a method and attack.

    Its columns are mean, sd (of the seeds' accuracies), low, high, seeds, n, note. Accuracies are
    shares in [0, 1]; an image counts as right if no iterate of the attack breaks it.
    """

    title: str
    cells: pd.DataFrame
    runs: tuple[Run, ...]
    missing: dict[str, str] = field(default_factory=dict)  # run -> why there is none
    files: list[Path] = field(default_factory=list)

    @cached_property
    def wide(self) -> pd.DataFrame:
        """Methods by attacks, in percent: "72.3 ± 1.2" (mean and standard deviation over seeds)."""
        text = {
            key: f"{100 * row['mean']:.1f}"
            + (f" ± {100 * row['sd']:.1f}" if row["seeds"] > 1 else "")
            for key, row in self.cells.iterrows()
        }
        table = pd.Series(text).unstack(sort=False)
        table.index.name, table.columns.name = "method", None
        table["half-width"] = [
            f"{100 * (rows['high'] - rows['low']).max() / 2:.1f}"
            for _, rows in self.cells.groupby(level=0, sort=False)
        ]
        notes = self.cells.groupby(level=0, sort=False)["note"].first()
        return table.assign(note=notes) if notes.any() else table

    @property
    def caption(self) -> str:
        """What the numbers are: seeds, images, half-width, and the runs that are missing."""
        seeds, n = self.cells["seeds"], self.cells["n"]
        lost = "".join(f" Not trained: {name} ({why})." for name, why in self.missing.items())
        return (
            f"{self.title}. Accuracy in percent, mean ± standard deviation over "
            f"{count_seeds(int(seeds.min()), int(seeds.max()))}, n = {format_span(n)} "
            f"test images; half-width: of the widest 95 % interval in the row.{lost}"
        )

    def markdown(self) -> str:
        """Write the table as Markdown, with its caption."""
        rows = [
            [name, *map(str, row)]
            for name, row in zip(self.wide.index, self.wide.to_numpy(), strict=True)
        ]
        lines = [["method", *self.wide.columns], ["---"] + ["---:"] * len(self.wide.columns), *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{self.caption}\n"

    def latex(self) -> str:
        """Write the table as a tabular for booktabs."""
        lines = [" & ".join(map(_escape_latex, ("method", *self.wide.columns))) + r" \\ \midrule"]
        lines += [
            " & ".join(map(_escape_latex, (name, *row))) + r" \\"
            for name, row in zip(self.wide.index, self.wide.to_numpy(), strict=True)
        ]
        return (
            "\\begin{tabular}{l"
            + "r" * len(self.wide.columns)
            + "}\n\\toprule\n"
            + "\n".join(lines)
            + f"\n\\bottomrule\n\\end{{tabular}}\n% {self.caption}\n"
        )

    def save(self, folder: Path, name: str) -> None:
        """Write NAME.md, NAME.tex, NAME.csv (the cells), and NAME.json with the runs behind it."""
        record = {
            "table": name,
            "title": self.title,
            "caption": self.caption,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "commit": git_commit(),
            "missing": self.missing,
            "runs": [
                {
                    "key": run.key,
                    "spec": run.record["spec"],
                    "device": run.record["device"],
                    "data_fingerprint": run.record["data_fingerprint"],
                }
                for run in self.runs
            ],
        }
        payloads = {
            "md": self.markdown(),
            "tex": self.latex(),
            "csv": self.cells.round(5).to_csv(),
            "json": json.dumps(record, indent=1) + "\n",
        }
        for ending, text in payloads.items():
            path = folder / f"{name}.{ending}"
            write_bytes(path, text.encode())
            self.files.append(path)

    def __repr__(self) -> str:
        return f"{self.wide.to_string()}\n{self.caption}"

    def _repr_html_(self) -> str:
        return f"{self.wide.to_html(border=0)}<p>{self.caption}</p>"


def result_table(
    title: str,
    runs: Sequence[Run],
    attacks: Sequence[str],
    *,
    missing: dict[str, str] | None = None,
    device: str = "auto",
) -> ResultTable:
    """Evaluate `runs` under `attacks` and lay the results out.

    Results are kept with each run: asking again costs nothing. Runs of one method that differ in
    their seed alone are one row.

    Raises:
        KitError: There are no runs at all, or an attack is unknown.
    """
    if not runs:
        raise KitError(
            f"there are no runs for '{title}': "
            f"{'; '.join((missing or {}).values()) or 'none was given'}"
        )
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.method, []).append(run)
    cells = {}
    for method, mine in groups.items():
        tables = [evaluate(run, attacks, device=device, quiet=True) for run in mine]
        note = (
            "constant"
            if all(run.done["constant"] for run in mine)
            else f"{sum(run.done['constant'] for run in mine)} constant"
            if any(run.done["constant"] for run in mine)
            else ""
        )
        for attack in attacks:
            right = np.stack([~table.attrs["examples"][attack]["broken"] for table in tables])
            mean, low, high = grand_mean(right)
            sd = float(right.mean(axis=1).std(ddof=1)) if len(mine) > 1 else float("nan")
            cells[method, attack] = {
                "mean": mean,
                "sd": sd,
                "low": low,
                "high": high,
                "seeds": len(mine),
                "n": right.shape[1],
                "note": note,
            }
    frame = pd.DataFrame.from_dict(cells, orient="index")
    frame.index = pd.MultiIndex.from_tuples(frame.index, names=["method", "attack"])
    return ResultTable(title, frame, tuple(runs), dict(missing or {}))


def format_span(values: pd.Series) -> str:
    """Write "3", or "1 to 3" where the values differ."""
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"


def count_seeds(least: int, most: int | None = None) -> str:
    """Write a number of seeds in words: "one seed", "3 seeds", "1 to 3 seeds"."""
    if most in (None, least):
        return "one seed" if least == 1 else f"{least} seeds"
    return f"{least} to {most} seeds"


def _escape_latex(word: object) -> str:
    return str(word).replace("±", r"$\pm$").replace("%", r"\%").replace("_", r"\_")
