"""Criterion x normaliser: does CLIRAT's lead over MAIL-AT come from CL-PM or from the batch mean?

CLIRAT's rows differ from MAIL's in both, so their difference alone cannot say. All four
combinations can: the lead is exactly the sum of the two main effects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from kit.attacks.table import attack_label
from kit.core.errors import KitError
from kit.core.parameters import Natural, check_value
from kit.evaluation.result_tables import count_seeds
from kit.evaluation.statistics import grand_contrast, grand_mean
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData, format_points
from kit.figures.run_outputs import describe_setting, right_under_attack
from kit.methods.table import SQUARES
from kit.papers.claim_verdict import FEWEST_SEEDS, Estimate

MARGINS = {"pm": "PM", "cl-pm": "CL-PM"}

NORMALISERS = {"factor": "times 3\n(MAIL's code)", "batch_mean": "batch mean 1\n(CLIRAT)"}

#: Shares of (PM x 3, PM mean, CL-PM x 3, CL-PM mean), the order of SQUARES' rows, in each effect.
EFFECTS = {
    "criterion": (-0.5, -0.5, 0.5, 0.5),
    "normaliser": (-0.5, 0.5, -0.5, 0.5),
    "both": (-1, 0, 0, 1),
    "criterion - normaliser": (0, -1, 1, 0),
    "interaction": (1, -1, -1, 1),
}


# ------------------------------------------------------------------------------------------ compute


def compute_normalisers(
    runs: Sequence[Run],
    *,
    base: Literal["at", "trades", "mart"] = "at",
    attack: str = "pgd100",
    n: int = 0,
) -> FigureData:
    """Accuracy of the four rows under `attack`, and the effects of criterion and normaliser.

    base: which square of SQUARES; n: the first n test images, 0 for all. Runs of other rows are
    left out.
    """
    check_value("base", base, Literal["at", "trades", "mart"])
    if check_value("n", n, Natural) == 1:
        raise KitError(
            "n=1 leaves no spread to compare; it must be at least 2, or 0 for all test images"
        )
    for run in runs:
        run.check_trained_here("the criterion and the normaliser that it was trained with")
    groups = group_square(runs, base)
    right = {
        row: np.stack([right_under_attack(run, "last", attack, n) for run in mine])
        for row, mine in groups.items()
    }
    cells = {
        row: {
            "criterion": criterion,
            "normaliser": normaliser,
            "accuracy": grand_mean(right[row]),
            "by_seed": right[row].mean(axis=1),
            "mean_weight": _mean_weight(groups[row]),
        }
        for (criterion, normaliser), row in SQUARES[base].items()
    }
    first = groups[SQUARES[base]["pm", "factor"]][0]
    facts = {
        "base": base,
        "attack": attack,
        "n": right[first.method].shape[1],
        "seeds": len(right[first.method]),
        "cells": cells,
        "effects": {
            name: grand_contrast([right[row] for row in cells], shares)
            for name, shares in EFFECTS.items()
        },
    }
    epochs = first.plan.recipe.epochs
    return FigureData(facts, f"{describe_setting(first, seed=False)}, {epochs} epochs")


def group_square(runs: Sequence[Run], base: str) -> dict[str, list[Run]]:
    """{row: its runs in the order of their seeds} of the base's square, in its order.

    Raises:
        KitError: A row or a seed is missing, or the runs differ in their settings.
    """
    groups = {
        row: sorted((run for run in runs if run.method == row), key=lambda run: run.spec.seed)
        for row in SQUARES[base].values()
    }
    if missing := [row for row, mine in groups.items() if not mine]:
        raise KitError(
            f"criterion x normaliser of {base} also needs a run of {', '.join(missing)}: "
            + "; ".join(
                f"python -m kit train {row} --recipe {runs[0].spec.recipe}" for row in missing
            )
        )
    if len({run.plan.recipe for mine in groups.values() for run in mine}) > 1:
        raise KitError(
            "criterion x normaliser needs runs of one recipe with the same overrides; these differ "
            "in their settings"
        )
    seeds = {row: [run.spec.seed for run in mine] for row, mine in groups.items()}
    first = next(iter(seeds.values()))
    if any(mine != first or len(set(mine)) < len(mine) for mine in seeds.values()):
        have = "; ".join(f"{row} has {' '.join(map(str, mine))}" for row, mine in seeds.items())
        raise KitError(
            f"criterion x normaliser needs every row once with the same seeds, but {have}"
        )
    return groups


def _mean_weight(runs: Sequence[Run]) -> float:
    """The mean weight since burn-in ended, over epochs and seeds."""
    return float(np.mean([run.history.weight[run.plan.burn_in :].mean() for run in runs]))


# --------------------------------------------------------------------------------------------- draw


def draw_normalisers(data: FigureData) -> Drawing:
    """Draw the four accuracies as two lines (A), and the effects with their intervals (B)."""
    drawing = Drawing(7.6, 3.2)
    left, right = drawing.subplots(1, 2, width_ratios=(5, 4))
    _draw_cells(left, data.facts)
    _draw_effects(right, data.facts)
    return drawing


def _draw_cells(panel: Axes, facts: Mapping) -> None:
    """A line a criterion, over the normalisers: means with intervals, and thin lines of seeds."""
    looks = {"pm": (s.GREEN, "o", -0.05), "cl-pm": (s.BLUE, "D", 0.05)}
    for criterion, (tint, marker, shift) in looks.items():
        cells = [cell for cell in facts["cells"].values() if cell["criterion"] == criterion]
        rows = np.array([cell["accuracy"] for cell in cells])
        places = np.arange(len(cells)) + shift
        panel.errorbar(
            places,
            rows[:, 0],
            yerr=[rows[:, 0] - rows[:, 1], rows[:, 2] - rows[:, 0]],
            color=tint,
            marker=marker,
            markersize=5,
            capsize=3,
            label=f"{MARGINS[criterion]} ({'MAIL' if criterion == 'pm' else 'CLIRAT'})",
        )
        if facts["seeds"] > 1:
            each = np.array([cell["by_seed"] for cell in cells])
            panel.plot(places, each, color=tint, linewidth=0.7, alpha=0.45)
    panel.set(
        xticks=range(len(NORMALISERS)),
        xlim=(-0.4, 1.4),
        xlabel="what the weights are normalised by" + ("; thin: one seed" * (facts["seeds"] > 1)),
        ylabel=f"accuracy under {attack_label(facts['attack'])} (axis not from 0)",
        title="A  Four combinations",
    )
    panel.set_xticklabels(NORMALISERS.values())
    panel.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    panel.grid(axis="y", linewidth=0.4)
    low, high = panel.get_ylim()
    panel.set_ylim(low, high + 0.25 * (high - low))  # room for the legend
    panel.legend(loc="upper left")
    s.share_axis(panel)


def _draw_effects(panel: Axes, facts: Mapping) -> None:
    names = {
        "criterion": ("criterion:\nCL-PM less PM", s.BLACK),
        "normaliser": ("normaliser:\nmean 1 less times 3", s.BLACK),
        "both": (f"both, as in MAIL's code:\n{_lead(facts['base'])}", s.GREY),
        "interaction": ("interaction", s.GREY),
    }
    for place, (name, (_, tint)) in enumerate(names.items()):
        middle, low, high = (100 * value for value in facts["effects"][name])
        panel.errorbar(
            middle, place, xerr=[[middle - low], [high - middle]], fmt="o", color=tint, capsize=3
        )
        s.write_above(panel, middle, place, f"{middle:+.1f}", offset=6)
    panel.axvline(0, color=s.GREY, linewidth=0.8)
    panel.set(
        yticks=range(len(names)),
        ylim=(len(names) - 0.5, -0.6),
        xlabel="points of accuracy, 95 %",
        title="B  Effects",
    )
    panel.set_yticklabels([words for words, _ in names.values()])


def _lead(base: str) -> str:
    """CLIRAT less MAIL, as the papers' code has them: MAIL's print has mean 1, too."""
    square = SQUARES[base]
    return f"{s.label(square['cl-pm', 'batch_mean'])} less {s.label(square['pm', 'factor'])}"


# --------------------------------------------------------------------------------- decide, describe


def decide_normalisers(data: FigureData) -> list[Claim]:
    """Decide whether CL-PM helps at an equal normaliser, and what most of CLIRAT's lead is."""
    facts = data.facts
    effects = facts["effects"]
    few = (
        ""
        if facts["seeds"] >= FEWEST_SEEDS
        else f"; it takes {FEWEST_SEEDS} seeds, here {'is' if facts['seeds'] == 1 else 'are'} "
        f"{count_seeds(facts['seeds'])}"
    )
    here = {name: format_points(effect) for name, effect in effects.items()}
    controls = " and ".join(
        s.label(SQUARES[facts["base"]][key]) for key in (("pm", "batch_mean"), ("cl-pm", "factor"))
    )
    lead, more = effects["both"], effects["criterion - normaliser"]
    return [
        Claim(
            f"at an equal normaliser CL-PM is more robust than PM (controls: {controls})",
            "CLIRAT's tables differ in the normaliser, too",
            f"CL-PM - PM {here['criterion']} points{few}",
            (Estimate("criterion", "> 0", *effects["criterion"]),),
            seeds=facts["seeds"],
        ),
        Claim(
            f"most of the lead of {_lead(facts['base'])} is the criterion's",
            "the normaliser is not discussed",
            f"lead {here['both']} = criterion {here['criterion']} + normaliser "
            f"{here['normaliser']} points{few}",
            (Estimate("lead", "> 0", *lead), Estimate("criterion - normaliser", "> 0", *more)),
            seeds=facts["seeds"],
        ),
    ]


def describe_normalisers(data: FigureData) -> str:
    """The caption: the four accuracies, their mean weights, and the effects."""
    facts = data.facts
    cells = ", ".join(
        f"{s.label(row)} {cell['accuracy'][0]:.1%} (mean weight {cell['mean_weight']:.3f})"
        for row, cell in facts["cells"].items()
    )
    effects = {name: format_points(effect) for name, effect in facts["effects"].items()}
    of = (
        f"{facts['seeds']} seeds, intervals of other seeds and images"
        if facts["seeds"] > 1
        else "one seed, intervals of other images alone"
    )
    thin = " A thin line is one seed." * (facts["seeds"] > 1)
    return (
        f"{data.setting}, all four combinations of criterion and normaliser, "
        f"{attack_label(facts['attack'])}, n = {facts['n']} test images, {of}. {cells}. The lead "
        f"of {_lead(facts['base'])}, {effects['both']} points, is the sum of two main effects: "
        f"criterion {effects['criterion']}, normaliser {effects['normaliser']}; interaction "
        f"{effects['interaction']}. The accuracy axis does not begin at 0.{thin}"
    )
