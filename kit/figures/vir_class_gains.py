"""VIR Fig. 2: confusion matrices of VIR-AT and VIR-TRADES, and whom they help."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from kit.attacks.table import attack_label
from kit.evaluation.accuracy import evaluate
from kit.evaluation.class_tables import confusion
from kit.evaluation.statistics import contrast_interval
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData, format_points
from kit.figures.run_outputs import describe_setting
from kit.papers.claim_verdict import Estimate

#: Each method of VIR, what it builds on, and the network that says which classes are hard: one that
#: is neither.
BASE_METHODS = {"vir-at": ("at", "trades"), "vir-trades": ("trades", "at")}


def compute_class_gains(runs: Mapping[str, Run], *, attack: str = "pgd100") -> FigureData:
    """Recall of VIR-AT and VIR-TRADES by class, and its paired difference to AT and TRADES.

    As in the matrices, an image counts as right if the attack's last iterate is. A class is hard if
    its recall under the other base method is below that method's mean: chosen by the method
    compared with, the hard classes would seem to gain by chance alone, as what is low by bad luck
    is less so in the next network.
    """
    first = next(iter(runs.values()))
    classes = first.record["classes"]
    tables = {method: evaluate(run, [attack], quiet=True) for method, run in runs.items()}
    examples = {method: table.attrs["examples"][attack] for method, table in tables.items()}
    right = {method: found["prediction"] == found["y"] for method, found in examples.items()}
    y = examples["at"]["y"]
    methods = {
        method: measure_gains(right[method], right[base], right[other], y, classes)
        for method, (base, other) in BASE_METHODS.items()
    }
    counts = {method: confusion(tables[method], attack) for method in BASE_METHODS}
    return FigureData(
        {"attack": attack, "n": len(y), "methods": methods},
        describe_setting(first),
        extras={"counts": counts, "classes": classes},
    )


def measure_gains(
    new: np.ndarray, base: np.ndarray, other: np.ndarray, y: np.ndarray, classes: list[str]
) -> dict:
    """Per class recall of `new` and its difference to `base`; and means of it over classes.

    Those are over hard classes, over all, and the difference of the two, each with a paired 95 %
    interval. All but `classes` are (n,), the first three bool.
    """
    labels = range(len(classes))
    d = [new[y == k].astype(float) - base[y == k] for k in labels]
    recall, under_base, under_other = (
        np.array([right[y == k].mean() if (y == k).any() else math.nan for k in labels])
        for right in (new, base, other)
    )
    there = np.isfinite(recall)
    hard = there & (under_other < np.nanmean(under_other))
    everyone, hardest = there / there.sum(), hard / max(hard.sum(), 1)
    worst = int(np.nanargmin(recall))
    return {
        "recall": recall,
        "base_recall": under_base,
        "difference": [contrast_interval(d, one) for one in np.eye(len(classes))],
        "mean": float(np.nanmean(recall)),
        "worst": [classes[worst], float(recall[worst])],
        "hard": [classes[k] for k in labels if hard[k]],
        "is_hard": hard,
        "n_per_class": [len(mine) for mine in d],
        "hard_gain": contrast_interval(d, hardest),
        "mean_gain": contrast_interval(d, everyone),
        "hard_above_mean": contrast_interval(d, hardest - everyone),
    }


def draw_class_gains(data: FigureData) -> Drawing:
    """Draw both matrices, and beside each the difference in recall, class by class."""
    attack, classes = data.facts["attack"], data.extras["classes"]
    drawing = Drawing(7.8, 3.3)
    panels = drawing.subplots(1, 4, sharey=True, width_ratios=(1.25, 0.62, 1.25, 0.62))
    for (method, (base, _)), matrix, gain in zip(
        BASE_METHODS.items(), panels[::2], panels[1::2], strict=True
    ):
        found = data.facts["methods"][method]
        s.draw_confusion(matrix, data.extras["counts"][method], classes, square=False)
        matrix.set_title(
            f"{s.label(method)}, {attack_label(attack)}\n"
            f"mean recall {found['mean']:.1%}, worst {found['worst'][1]:.0%}",
            fontsize=8.5,
        )
        _draw_gains(gain, found, f"minus {s.label(base)}")
    panels[0].set_ylabel("true class")
    limit = max(abs(edge) for gain in panels[1::2] for edge in gain.get_xlim())
    for gain in panels[1::2]:
        gain.set_xlim(-limit, limit)
    return drawing


def _draw_gains(panel: Axes, found: Mapping, title: str) -> None:
    """Draw a mark for each row of the matrix beside it; filled where the class is hard."""
    for row, ((d, low, high), hard) in enumerate(
        zip(found["difference"], found["is_hard"], strict=True)
    ):
        height = row + 0.5  # where the heat map has the middle of its row
        panel.plot([100 * low, 100 * high], [height, height], color=s.BLUE, linewidth=1)
        panel.plot(
            100 * d,
            height,
            "o",
            markersize=4,
            color=s.BLUE if hard else "white",
            markeredgecolor=s.BLUE,
        )
    panel.axvline(0, color=s.GREY, linewidth=0.8)
    panel.set_title(title, fontsize=8.5, fontweight="normal")
    panel.set_xlabel("points")
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", labelsize=6.5)


def decide_class_gains(data: FigureData) -> list[Claim]:
    """Decide for both methods whether they help the hard classes, and those more than average."""
    return [
        claim
        for method in BASE_METHODS
        for claim in _decide_helped(method, data.facts["methods"][method])
    ]


def _decide_helped(method: str, found: Mapping) -> list[Claim]:
    """A NaN, where a class has no two images, is undecided."""
    rows = (
        (found["hard_gain"], "improves the harder classes", "matrices, no numbers"),
        (
            found["hard_above_mean"],
            "improves the harder classes more than the average one",
            "class 3 (cat) most",
        ),
    )
    return [
        Claim(
            f"{s.label(method)} {words} (VIR s. 5.5, Fig. 2)",
            printed,
            f"{format_points(row)} points, hard: {', '.join(found['hard']) or 'none'}",
            (Estimate(words, "> 0", *row),) if found["hard"] else (),
            number=33,
        )
        for row, words, printed in rows
    ]


def describe_class_gains(data: FigureData) -> str:
    """The caption: what both methods gain on the hard classes and on all."""
    facts = data.facts
    words = "; ".join(
        f"{s.label(m)} {format_points(f['hard_gain'])} on {', '.join(f['hard'])}, "
        f"{format_points(f['mean_gain'])} on all"
        for m, f in facts["methods"].items()
    )
    return (
        f"VIR Fig. 2 claims that VIR improves the harder classes. {data.setting}, n = {facts['n']} "
        f"test images, last iterate of {attack_label(facts['attack'])}. Beside each matrix "
        "(percent of the row) the difference in recall to the method it builds on, paired, 95 %; "
        "filled marks are hard classes, those below the mean under the other base method. Mean "
        f"over classes, in points: {words}."
    )
