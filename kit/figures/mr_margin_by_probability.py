"""MR Fig. 2: examples of different p_y share a margin."""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np
from matplotlib.axes import Axes

from kit.evaluation.statistics import bootstrap_interval, correlation_interval
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData
from kit.figures.run_outputs import IMAGE_KINDS, describe_setting, image_probabilities
from kit.methods.criteria import probabilistic_margin
from kit.papers.claim_verdict import Estimate

WIDTH = 0.05  # of a margin bin


def compute_margin_by_probability(
    run: Run, *, which: Literal["nat", "adv"] = "adv", split: Literal["train", "test"] = "test"
) -> FigureData:
    """Margin p_2 - p_y (MR Eq. 4 as printed) against p_y, and p_y in bins of the margin.

    The paper does not say whether its examples are natural or adversarial, nor of which set.
    """
    probs, y = image_probabilities(run, split, which)
    k = probs.shape[1]
    p_y = probs.gather(1, y[:, None]).squeeze(1).numpy()
    margin = -probabilistic_margin(probs, y).numpy()
    below, above = margin < (1 - p_y) / (k - 1) - p_y - 1e-9, margin > 1 - 2 * p_y + 1e-9
    facts = {
        "n": len(y),
        "which": which,
        "split": split,
        "bins": bin_margins(p_y, margin, k),
        "share_02_06": float(((p_y >= 0.2) & (p_y <= 0.6)).mean()),
        "pearson": correlation_interval(p_y, margin),
        "outside_band": int((below | above).sum()),
    }
    extras = {"p_y": p_y, "margin": margin, "num_classes": k}
    return FigureData(facts, describe_setting(run), run.method, extras)


def bin_margins(p_y: np.ndarray, margin: np.ndarray, k: int) -> list[dict]:
    """Of five bins of the margin around 0: n, range, SD and middle 90 % of p_y.

    `allowed` is what a softmax over k classes allows anywhere in the bin.
    """
    found = []
    for centre in np.arange(-2, 3) * WIDTH:
        below, above = centre - WIDTH / 2, centre + WIDTH / 2
        mine = p_y[(margin >= below) & (margin < above)]
        entry = {
            "centre": float(centre),
            "n": len(mine),
            "allowed": (
                max((1 - (k - 1) * above) / k, 0.0),
                min((1 - below) / 2, 1.0),
            ),
        }
        if len(mine):
            span = bootstrap_interval(partial(_middle_width, mine), len(mine))
            entry |= {
                "low": float(mine.min()),
                "high": float(mine.max()),
                "mean": float(mine.mean()),
                "quartiles": np.percentile(mine, [25, 50, 75]).tolist(),
                "span": span,
                "sd": float(mine.std(ddof=1)) if len(mine) > 1 else 0.0,
            }
        found.append(entry)
    return found


def _middle_width(values: np.ndarray, rows: np.ndarray) -> float:
    """The width of the middle 90 % of some values."""
    return float(np.subtract(*np.percentile(values[rows], [95, 5])))


def draw_margin_by_probability(data: FigureData) -> Drawing:
    """Draw the cloud between the bounds of any softmax, and p_y in bins of the margin."""
    drawing = Drawing(7.6, 3.4)
    left, right = drawing.subplots(1, 2, width_ratios=(6, 5))
    _draw_margin_against_p(left, data)
    _draw_margin_bins(right, data.facts["bins"])
    return drawing


def _draw_margin_against_p(axes: Axes, data: FigureData) -> None:
    p_y, margin, k = (data.extras[name] for name in ("p_y", "margin", "num_classes"))
    grid = np.linspace(0, 1, 201)
    lowest, highest = np.maximum((1 - grid) / (k - 1), 0) - grid, 1 - 2 * grid
    axes.fill_between(grid, lowest, highest, color="#EEF0F2", linewidth=0, zorder=0)
    for correct, tint, words, place in (
        (True, s.BLUE, "right", (0.86, -0.40)),
        (False, s.ORANGE, "wrong", (0.50, 0.42)),
    ):
        mine = (margin < 0) == correct
        axes.scatter(p_y[mine], margin[mine], s=9, color=tint, alpha=0.6, linewidth=0)
        axes.annotate(f"{words} ({mine.sum()})", place, color=tint, fontsize=8.5, ha="center")
    for words, place, angle in (
        ("one rival class", (0.225, 0.67), -39),
        ("rest even", (0.42, -0.49), -24),
    ):
        axes.annotate(
            words,
            place,
            rotation=angle,
            fontsize=7.5,
            color=s.SMALL_PRINT,
            ha="center",
            va="center",
        )
    axes.axhspan(-2.5 * WIDTH, 2.5 * WIDTH, color=s.SKY, alpha=0.2, linewidth=0, zorder=0)
    axes.annotate(
        "the bins of b",
        (1, 2.5 * WIDTH),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 2),
        textcoords="offset points",
        ha="right",
        fontsize=7.5,
        color=s.BLUE,
    )
    kind = IMAGE_KINDS[data.facts["which"]]
    axes.set(
        xlabel="$p_y$",
        ylabel="margin $p_2 - p_y$ (Eq. 4 as printed)",
        xlim=(-0.02, 1.02),
        ylim=(-1.05, 1.05),
        title=f"a  {s.label(data.method)}, {data.facts['split']} images {kind}",
    )


def _draw_margin_bins(axes: Axes, bins: list[dict]) -> None:
    """Draw per bin what a softmax allows (grey), range (thin) and quartiles (thick) of p_y.

    A mean with its SD would reach beyond what is possible.
    """
    axes.axvspan(0.2, 0.6, color=s.GREEN, alpha=0.12, linewidth=0, zorder=0)
    for b in bins:
        low, high = b["allowed"]
        axes.barh(b["centre"], high - low, left=low, height=0.6 * WIDTH, color="#DCDFE3")
        if b["n"]:
            axes.hlines(b["centre"], b["low"], b["high"], color=s.BLACK, linewidth=1)
            first, median, third = b["quartiles"]
            axes.hlines(b["centre"], first, third, color=s.BLUE, linewidth=4)
            axes.plot(median, b["centre"], "o", color="white", markersize=3)
        axes.annotate(
            f"n = {b['n']}",
            (1, b["centre"]),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 0),
            textcoords="offset points",
            fontsize=7.5,
            ha="right",
            va="center",
        )
    axes.annotate(
        "the paper's 0.2 to 0.6",
        (0.4, 2.5 * WIDTH),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=7.5,
        color=s.GREEN,
    )
    axes.annotate(
        "grey: all that a softmax allows",
        (0.03, 0.02),
        xycoords="axes fraction",
        fontsize=7.5,
        color=s.SMALL_PRINT,
    )
    axes.set(
        xlabel="$p_y$: median, quartiles (thick), range (thin)",
        ylabel="margin $p_2 - p_y$, bins of 0.05",
        xlim=(0, 0.78),
        yticks=[b["centre"] for b in bins],
        ylim=(-3.1 * WIDTH, 3.1 * WIDTH),
        title="b  At one margin",
    )


def _describe_bin(b: dict) -> str:
    if b["n"] < 3:
        return "too few examples to say"
    low, high = b["span"][1:]
    return (
        f"SD {b['sd']:.3f}, range {b['low']:.2f} to {b['high']:.2f}, middle 90 % over "
        f"{b['span'][0]:.2f} [{low:.2f}, {high:.2f}]"
    )


def _fullest_bin(facts: dict) -> dict:
    return max(facts["bins"], key=lambda b: b["n"])


def decide_margin_by_probability(data: FigureData) -> list[Claim]:
    """Decide whether 90 % of the examples of the fullest bin differ in p_y by more than 0.1.

    With a single rival class a bin's width lets p_y vary by 0.025; more than 0.1 is no matter of
    rounding.
    """
    fullest = _fullest_bin(data.facts)
    enough = fullest["n"] >= 10
    return [
        Claim(
            "examples of about equal margin differ in p_y: 90 % of them by more than 0.1 (MR s. "
            "3.1, Fig. 2)",
            "p_y from 0.2 to 0.6",
            f"margin near {fullest['centre']:g}, n = {fullest['n']}: {_describe_bin(fullest)}",
            (Estimate("span of p_y", "> 0.1", *fullest["span"]),) if enough else (),
            number=55,
        )
    ]


def describe_margin_by_probability(data: FigureData) -> str:
    """The caption: p_y in the fullest bin, and the correlation of margin and p_y."""
    facts, k, fullest = data.facts, data.extras["num_classes"], _fullest_bin(data.facts)
    r, low, high = facts["pearson"]
    return (
        "MR Fig. 2 claims that examples with p_y from 0.2 to 0.6 can have about the same margin, "
        "p_2 - p_y with Eq. 4's sign as printed (same-margin has p_y - p_2). "
        f"{s.label(data.method)} on {data.setting}, {facts['n']} {facts['split']} images "
        f"{IMAGE_KINDS[facts['which']]}, {facts['share_02_06']:.0%} of them with such a p_y: "
        f"where the margin is within {WIDTH / 2:g} of {fullest['centre']:g}, the bin with most "
        f"examples (n = {fullest['n']}), p_y has {_describe_bin(fullest)}. Overall margin and p_y "
        f"have r = {r:.3f} [{low:.3f}, "
        f"{high:.3f}]. Grey: all that a softmax over {k} classes allows; p_y = 0.6 asks for a "
        f"margin of at most -0.2, p_y = 0.2 for one of at least {0.8 / (k - 1) - 0.2:+.2f}."
    )
