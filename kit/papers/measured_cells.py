"""Printed tables beside measured ones.

This reads finished runs and evaluations that were kept; it trains and attacks nothing. A grid that
is half done shows what is there, and "not run" for the rest: never a zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from kit.evaluation.accuracy import evaluate, evaluation_file, widest_evaluation
from kit.evaluation.result_tables import ResultTable, count_seeds, format_span
from kit.evaluation.statistics import grand_mean
from kit.experiments.runs import Run, is_done, run_folder
from kit.experiments.specification import RunSpec, resolve
from kit.papers.claim_verdict import NOT_RUN
from kit.papers.printed_data import PAPERS, table, table_name
from kit.papers.table_runs import Evaluation, Need, cell_label, grid


def trained_run(spec: RunSpec) -> Run | None:
    """Open the run of a spec, if its training came to its end; None if not."""
    folder = run_folder(resolve(spec))
    return Run(spec, folder) if is_done(folder) else None


def is_kept(run: Run, ask: Evaluation) -> bool:
    """Say whether this evaluation was made, on the test images, and kept with the run."""
    return evaluation_file(run, ask.attack, n=ask.n, which=ask.which)[1].exists()


def observed(need: Need, seed: int) -> tuple[Run, np.ndarray, np.ndarray] | None:
    """Read what was observed of a cell with one seed; None where that was not run.

    Of several evaluations on as many images as the cell asks for, or more, the one on most counts.

    Returns:
        The run, which images (n,) it gets right under the attack, and which of them (n,) count.
    """
    if need.ask is None:
        return None
    run = trained_run(need.spec(seed))
    if run is None:
        return None
    attack, asked, which = need.ask
    n = widest_evaluation(run, attack, n=asked, which=which)
    if n is None:
        return None
    examples = evaluate(run, [attack], n=n, which=which, quiet=True).attrs["examples"][attack]
    counts = (
        np.full(len(examples["y"]), True)
        if need.protected is None
        else examples["y"] == need.protected
    )
    return run, ~examples["broken"], counts


@dataclass(frozen=True)
class PaperTable(ResultTable):
    """A printed table with its measured cells.

    `cells` has one row a printed row and attack: printed and printed_sd as the paper has them,
    mean, sd, low, high in the same unit, seeds, n, and why it was not run (missing numbers, no
    zeros).
    """

    @cached_property
    def wide(self) -> pd.DataFrame:
        """Printed rows by attacks.

        "48.21 ± 0.08 / 37.0 ± 1.2" is as printed / as measured, ± standard deviations.
        """
        text = self.cells.apply(self._words, axis=1)
        wide = text.unstack(sort=False)
        wide.index.name, wide.columns.name = "method", None
        half = (self.cells["high"] - self.cells["low"]).groupby(level=0, sort=False).max() / 2
        return wide.assign(
            **{"half-width": [self._number(value) if value == value else "" for value in half]}
        )

    def _number(self, value: float) -> str:
        return f"{value:.1f}" if self.cells["unit"].iloc[0] == "percent" else f"{value:.3f}"

    def _words(self, cell: pd.Series) -> str:
        if np.isnan(cell["mean"]):
            return f"{cell['printed'] or '–'} / {NOT_RUN}"
        spread = f" ± {self._number(cell['sd'])}" if cell["seeds"] > 1 else ""
        return f"{cell['printed'] or '–'} / {self._number(cell['mean'])}{spread}"

    @property
    def caption(self) -> str:
        """The title, the size of what was measured, and what was not run."""
        ran = self.cells.dropna(subset="mean")
        size = (
            "none was run yet"
            if ran.empty
            else (
                f"{count_seeds(int(ran['seeds'].min()), int(ran['seeds'].max()))}, "
                f"{format_span(ran['n'])} test images a cell; half-width of a row's widest 95 % "
                "interval"
            )
        )
        gaps = "".join(f" Not run in {count}: {why}." for why, count in self.missing.items())
        return f"{self.title}: {size}.{gaps}"


def measured(
    paper: str,
    name: str | int,
    *,
    recipe: str = "digits",
    seeds: Sequence[int] = (0,),
    overrides: Mapping[str, Any] | None = None,
    strong_n: int = 100,
    fast_n: int = 0,
) -> PaperTable:
    """Set measured cells beside the printed ones of a table, from what is finished.

    Means are over seeds and images, with `kit.evaluation.statistics.grand_mean`'s interval; an
    image counts as right if no iterate of the attack breaks it. Overrides, strong_n and fast_n
    as in `grid`.

    Raises:
        KitError: There is no such paper, table or recipe.
    """
    printed = table(paper, name)
    planned = grid(
        paper, name, recipe=recipe, overrides=overrides, strong_n=strong_n, fast_n=fast_n
    )
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    runs: dict[str, Run] = {}
    for need in planned:
        found = [item for seed in seeds if (item := observed(need, seed))]
        runs |= {run.key: run for run, *_ in found}
        rows[cell_label(need.cell, printed.index.names), need.cell["attack"]] = {
            "printed": need.cell["printed"],
            "printed_mean": need.cell["mean"],
            "printed_sd": need.cell["std"],
            **_cell_numbers(found, 100 if need.cell["unit"] == "percent" else 1),
            "unit": need.cell["unit"],
            "why": "" if found else need.reason or "its run is not there yet",
        }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index = pd.MultiIndex.from_tuples(rows, names=["method", "attack"])
    data = " and ".join(sorted({need.cell["dataset"] for need in planned}))
    what = (
        "accuracy of the protected class as a fraction"
        if "fraction" in set(frame["unit"])
        else "accuracy in percent"
    )
    title = (
        f"{PAPERS[paper].label}, table {table_name(paper, name)[1:]}, {what}: as printed ({data}) "
        f"/ measured on {recipe}{_with_settings(overrides or {})}"
    )
    return PaperTable(title, frame, tuple(runs.values()), _gaps(frame))


def _with_settings(overrides: Mapping[str, Any]) -> str:
    changed = " ".join(f"{name}={value}".replace(" ", "") for name, value in overrides.items())
    return f" with {changed}" if changed else ""


def _cell_numbers(
    found: Sequence[tuple[Run, np.ndarray, np.ndarray]], scale: int
) -> dict[str, float]:
    """mean, sd, low, high, seeds and n of one cell; missing numbers where nothing was run."""
    n = min((len(flags) for _, flags, _ in found), default=0)  # the seeds' first images in common
    if not found or not found[0][2][:n].any():
        return dict.fromkeys(("mean", "sd", "low", "high"), float("nan")) | {"seeds": 0, "n": 0}
    right = np.stack([flags[:n][counts[:n]] for _, flags, counts in found])
    mean, low, high = grand_mean(right)
    sd = float(right.mean(axis=1).std(ddof=1)) if len(right) > 1 else float("nan")
    return {
        "mean": mean * scale,
        "sd": sd * scale,
        "low": low * scale,
        "high": high * scale,
        "seeds": len(right),
        "n": right.shape[1],
    }


def _gaps(frame: pd.DataFrame) -> dict[str, str]:
    """{reason: how many cells share it}."""
    return {
        why: f"{count} of {len(frame)} cells"
        for why, count in Counter(filter(None, frame["why"])).items()
    }
