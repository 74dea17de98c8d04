"""MR Fig. 1: examples of equal margin, sized by MAIL's and by MR's weight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Polygon
from matplotlib.patheffects import withStroke

from kit.core.errors import KitError
from kit.core.parameters import Count, Range, check_value
from kit.core.tensors import true_and_top_other
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData
from kit.figures.run_outputs import describe_setting, probabilities
from kit.figures.simplex import CORNERS, HEIGHT, signed, triangle, weigh
from kit.methods.criteria import (
    probabilistic_margin,
    reweighted_margin,
    top2_ratio,
    true_class_similarity,
)
from kit.methods.table import METHODS, Method


def compute_same_margin(
    run: Run,
    *,
    tau: Annotated[float, Range(1)] = 2.0,
    n: Count = 300,
    first: int = -1,
    second: int = -1,
) -> FigureData:
    """MAIL's and MR's weights of the same training images under attack, and along equal margins.

    Of each of the first `n` images p_y, p_2 (the largest other class) and the rest are drawn.
    `first` and `second` are ids of the two that are compared; else two of about equal margin are,
    whose weights MR moves farthest apart. The margin is p_y - p_2, with which Eqs. 15 and 16 weigh
    the vulnerable; Eq. 4 prints the other sign.

    Raises:
        KitError: for two classes, where the margin says all, or an image that is not drawn.
    """
    check_value("n", n, Count)
    probs, y = probabilities(run.final, "train_logits_adv")
    if probs.shape[1] < 3:
        raise KitError(
            f"{run.plan.recipe.data} has two classes, where the margin says all; take a recipe "
            "with more"
        )
    probs, y, ids = probs[:n], y[:n], run.final["train_ids"][:n]
    methods = {"MAIL": METHODS["mail-at"], "MR": METHODS["mr-mail"].override("criterion.tau", tau)}
    weights = {name: weigh(method, probs, y) for name, method in methods.items()}
    p_y, p_2 = (values.numpy() for values in true_and_top_other(probs, y))
    margin, ratio = probabilistic_margin(probs, y).numpy(), top2_ratio(probs, y).numpy()
    pair = choose_same_margin(margin, weights["MR"], ids, first, second)
    values: dict[str, Any] = {
        "id": ids,
        "y": y,
        "m": margin,
        "p_y": p_y,
        "o": ratio,
        "s": tau - ratio,
        "c": true_class_similarity(probs, y),
        "m_tilde": reweighted_margin(probs, y, tau=tau),
    }
    compared = [
        {name: value[row].item() for name, value in values.items()}
        | {"weights": {name: float(w[row]) for name, w in weights.items()}}
        for row in pair
    ]
    lines = sweep_top2_ratio(methods, probs.shape[1])
    facts = {"n": len(y), "tau": tau, "pair": compared, "sweep": lines}
    extras = {
        "p_y": p_y,
        "p_2": p_2,
        "weights": weights,
        "num_classes": probs.shape[1],
        "rows": pair,
    }
    return FigureData(facts, describe_setting(run), run.method, extras)


def choose_same_margin(
    margin: np.ndarray, weights: np.ndarray, ids: np.ndarray, first: int, second: int
) -> tuple[int, int]:
    """Rows of x_1 and x_2, as asked for.

    Else the misclassified pair with the largest difference in weight, less 20 times its difference
    in margin.
    """
    for asked in (first, second):
        if asked >= 0 and asked not in ids:
            raise KitError(
                f"image {asked} is not among the {len(ids)} that are drawn; choose one of those, "
                f"such as {', '.join(map(str, ids[:3]))}, or draw more of them with n"
            )
    wrong = np.flatnonzero(margin < 0)
    pool = wrong if len(wrong) > 1 else np.arange(len(margin))
    ones, twos = (np.flatnonzero(ids == asked) if asked >= 0 else pool for asked in (first, second))
    gain = (weights[ones][:, None] - weights[twos][None, :]) - 20 * np.abs(
        margin[ones][:, None] - margin[twos][None, :]
    )
    i, j = np.unravel_index(gain.argmax(), gain.shape)
    return int(ones[i]), int(twos[j])


def sweep_top2_ratio(methods: dict[str, Method], k: int) -> dict[float, dict]:
    """{m: o from its lowest to 1, and each method's weights there} of softmaxes over k classes.

    What is left is spread evenly over k - 2 classes. From p_y = p_2 + m and p_2 = o (1 - p_y)
    follows p_2 = o (1 - m)/(1 + o); p_y >= 0 asks for o >= -m.
    """
    lines: dict[float, dict[str, Any]] = {}
    for m in (-0.8, -0.6, -0.4, -0.2, -0.1, 0.1, 0.2, 0.4, 0.6, 0.8):
        o = np.linspace(max(1 / (k - 1), -m), 1, 101)
        p_2 = o * (1 - m) / (1 + o)
        rest = np.clip(1 - 2 * p_2 - m, 0, 1) / max(k - 2, 1)
        probs = torch.from_numpy(np.stack([p_2 + m, p_2] + [rest] * (k - 2), axis=1).clip(0, 1))
        y = torch.zeros(len(o), dtype=torch.int64)
        lines[m] = {
            "o": o,
            "weights": {name: weigh(method, probs, y) for name, method in methods.items()},
        }
        lines[m]["grows"] = {
            name: float((np.diff(w) < -1e-12).mean()) for name, w in lines[m]["weights"].items()
        }
    return lines


def draw_same_margin(data: FigureData) -> Drawing:
    """Draw the images in the simplex by both weights, and the weights along equal margins."""
    extras = data.extras
    drawing = Drawing(8.0, 3.0)
    panels = drawing.subplots(1, 3, width_ratios=(10, 10, 8))
    for panel, (name, weights), letter in zip(
        panels, extras["weights"].items(), "ab", strict=False
    ):
        _draw_simplex_frame(panel, extras["num_classes"])
        _draw_weighed_images(panel, extras["p_y"], extras["p_2"], weights, extras["rows"])
        panel.set_title(f"{letter}  {name}'s weights")
    _draw_sweep(panels[2], data.facts["sweep"])
    return drawing


def _draw_simplex_frame(axes: Axes, k: int) -> None:
    """Draw the simplex (p_y, p_2, rest): upright lines of equal margin, rays of equal o."""
    triangle(axes)
    for m in (-0.8, -0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6, 0.8):
        axes.plot(
            [m, m],
            [0, HEIGHT * (1 - abs(m))],
            color=s.BLACK if m == 0 else "#CFCFCF",
            linewidth=0.7,
            zorder=1,
        )
    for o in (0.75, 0.5, 0.25):
        if o > 1 / (k - 1):
            axes.plot(
                [1, -o],
                [0, HEIGHT * (1 - o)],
                color=s.GREEN,
                linewidth=0.7,
                linestyle=":",
                zorder=1,
            )
            axes.annotate(
                f"$o$ {o:g}",
                (-o, HEIGHT * (1 - o)),
                xytext=(-3, 2),
                textcoords="offset points",
                ha="right",
                fontsize=7,
                color=s.GREEN,
            )
    # Above it p_2 could not be the largest other.
    top = 1 / (k - 1)
    axes.add_patch(
        Polygon(
            [(1, 0), (-top, HEIGHT * (1 - top)), (0, HEIGHT)],
            facecolor="#E9EAEC",
            edgecolor="none",
            zorder=1,
        )
    )
    axes.annotate(
        "rest = 1",
        CORNERS[2],
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        fontsize=7.5,
        annotation_clip=False,
    )
    axes.set(xticks=(-1, -0.4, 0, 0.4, 1), xlabel="margin $m = p_y - p_2$")
    axes.set_xticklabels(("−1\n$p_2$ = 1", "−0.4", "0", "0.4", "1\n$p_y$ = 1"), fontsize=7.5)


def _draw_weighed_images(
    axes: Axes, p_y: np.ndarray, p_2: np.ndarray, weights: np.ndarray, pair: tuple[int, int]
) -> None:
    """Draw images in the simplex, area by weight, those of `pair` named."""
    across, up, area = p_y - p_2, HEIGHT * np.clip(1 - p_y - p_2, 0, 1), 2 + 26 * weights
    axes.scatter(
        across,
        up,
        s=area,
        alpha=0.6,
        linewidth=0,
        zorder=4,
        color=np.where(p_y > p_2, s.BLUE, s.ORANGE),
    )
    for i, row in enumerate(pair, 1):
        axes.scatter(
            across[row],
            up[row],
            s=area[row],
            facecolor="none",
            edgecolor=s.BLACK,
            linewidth=1.2,
            zorder=5,
        )
        axes.annotate(
            f"$x_{i}$",
            (across[row], up[row]),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            zorder=6,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        axes.annotate(
            f"$x_{i}$: {weights[row]:.2f}",
            (1, 1.05 - 0.08 * i),
            xycoords="axes fraction",
            ha="right",
            va="top",
        )


def _draw_sweep(axes: Axes, lines: dict[float, dict]) -> None:
    """Draw MR's weight (full) and MAIL's (dashed) against o, a colour for each side."""
    for m in (-0.6, -0.4, -0.2, 0.2):
        tint, line = s.BLUE if m > 0 else s.ORANGE, lines[m]
        axes.plot(line["o"], line["weights"]["MR"], color=tint)
        axes.plot(line["o"], line["weights"]["MAIL"], color=tint, linewidth=1, linestyle="--")
        axes.annotate(
            f"$m$ {signed(m)}",
            (1, line["weights"]["MR"][-1]),
            xytext=(3, 0),
            textcoords="offset points",
            color=tint,
            fontsize=7.5,
            va="center",
            annotation_clip=False,
        )
    axes.set(
        xlabel="top-2 ratio $o$",
        ylabel="weight: MR full, MAIL dashed",
        yscale="log",
        ylim=(1e-3, 5),
        xlim=(0, 1),
        title="c  At one margin",
    )


def _growth(lines: dict[float, dict], sign: int) -> dict[float, float]:
    """{m: in which share of the steps MR's weight grows as o falls} where m has that sign."""
    return {m: line["grows"]["MR"] for m, line in lines.items() if m * sign > 0}


def _format_range(shares: Iterable[float]) -> str:
    low, high = min(shares), max(shares)
    return f"{low:.0%} to {high:.0%}" if high > low else f"{low:.0%}"


def decide_same_margin(data: FigureData) -> list[Claim]:
    """Decide whether MR's weight grows as o falls, at every step, on each side of the boundary."""
    claims = []
    for side, sign in (("misclassified", -1), ("correctly classified", 1)):
        mine = _growth(data.facts["sweep"], sign)
        claims.append(
            Claim(
                f"at equal margin the weight grows as the top-2 ratio falls: {side} examples (MR "
                "s. 3.2, Fig. 1c)",
                "x_1, near several boundaries, weighs more; on which side is not said",
                f"in {_format_range(mine.values())} of the steps of o, m from {min(mine):+.1f} to "
                f"{max(mine):+.1f}",
                exact=min(mine.values()) == 1,
                number=99,
            )
        )
    return claims


def describe_same_margin(data: FigureData) -> str:
    """The caption: the weights of both images, and where MR's weight grows."""
    facts = data.facts
    a, b = facts["pair"]
    wrong, right = (_format_range(_growth(facts["sweep"], sign).values()) for sign in (-1, 1))
    return (
        "MR Fig. 1 claims that of two examples of equal margin MR gives the one near several "
        f"classes more weight. {facts['n']} training images of {s.label(data.method)} on "
        f"{data.setting} under attack: area by weight, blue right, orange wrong, height the "
        "probability of all but two classes (in grey p_2 would not be the largest). x_1 (m = "
        f"{a['m']:+.3f}, o = {a['o']:.2f}) and x_2 (m = {b['m']:+.3f}, o = {b['o']:.2f}) get "
        f"{a['weights']['MAIL']:.2f} and {b['weights']['MAIL']:.2f} from MAIL, "
        f"{a['weights']['MR']:.2f} and {b['weights']['MR']:.2f} from MR (tau {facts['tau']:g}). "
        f"Right, at one m: MR's weight grows as o falls in {wrong} of the steps of o where m < 0 "
        f"and in {right} of the steps of o where m > 0."
    )
