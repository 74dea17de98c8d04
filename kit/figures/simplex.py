"""Triangles of three probabilities: MAIL's regions of the margin (Fig. 3), and MR's examples of
equal margin (Fig. 1).

A point (p_y, p_2, rest) that sums to 1 is drawn at x = p_y - p_2 and height √3 · rest, so that the
sides are equal and every line of equal margin is upright.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Polygon
from matplotlib.patheffects import withStroke
from torch import Tensor

from kit.core.errors import KitError, unknown_name
from kit.core.parameters import Count, Range, check_value
from kit.core.tensors import true_and_top_other
from kit.evaluation.statistics import wilson
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing
from kit.figures.reading import epoch_probabilities, probabilities, setting
from kit.methods.criteria import (
    probabilistic_margin,
    reweighted_margin,
    top2_ratio,
    true_class_similarity,
)
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import METHODS, Method

HEIGHT = math.sqrt(3)

CORNERS = np.array([(1, 0), (-1, 0), (0, HEIGHT)])

FROM_WRONG_TO_SAFE = LinearSegmentedColormap.from_list(
    "pm", [s.VERMILLION, "#FBE3D3", "#FFFFFF", "#D6E8F4", s.BLUE]
)

REGIONS = {"safe": s.BLUE, "boundary": "#777777", "wrong": s.VERMILLION}

TEXT_POINTS = ((0.4, 0.6), (0.5, 0.5), (0.6, 0.4))  # of MAIL s. 3.1: (p_i, p_j)


def weigh(method: Method, probs: Tensor, y: Tensor) -> np.ndarray:
    """(N,) what a method that reads nothing but the attacked image's probabilities multiplies the
    losses with.
    """
    return method.weigh(StepOutputs(y, probs.log())).numpy()


def triangle(axes) -> Polygon:
    """The frame of a simplex on bare axes; -> its outline, to clip with."""
    outline = Polygon(
        CORNERS, closed=True, facecolor="none", edgecolor=s.BLACK, linewidth=0.9, zorder=3
    )
    axes.add_patch(outline)
    axes.set(xlim=(-1.12, 1.12), ylim=(-0.04, HEIGHT + 0.14), aspect="equal", yticks=[])
    for edge in axes.spines.values():
        edge.set_visible(False)
    return outline


# -------------------------------------------------------------------------------------- MAIL Fig. 3


def regions(
    run: Run,
    *,
    near: Annotated[float, Range(0, 1, above=True)] = 0.1,
    counted: Literal["frozen", "on the fly"] = "frozen",
) -> Drawing:
    """The simplex of three classes by PM, with MAIL's three regions; and the training images in
    each, per epoch.

    The paper gives no limits: |PM| <= `near` is the class boundary's surroundings, beyond it lie
    the safe and the wrong region. `counted`: "frozen" takes the stored probe after each epoch, "on
    the fly" all images as trained on.
    """
    check_value("near", near, Annotated[float, Range(0, 1, above=True)])
    if counted not in ("frozen", "on the fly"):
        raise unknown_name("way of counting", counted, ("frozen", "on the fly"))
    epochs = np.arange(1, len(run.history) + 1)
    margins = [
        probabilistic_margin(*epoch_probabilities(run, int(e), counted)).numpy() for e in epochs
    ]
    n = len(margins[0])
    counts = {
        "safe": np.array([(m > near).sum() for m in margins]),
        "wrong": np.array([(m < -near).sum() for m in margins]),
    }
    counts["boundary"] = n - counts["safe"] - counts["wrong"]
    drawing = Drawing(7.8, 3.4)
    left, right = drawing.subplots(1, 2, width_ratios=(6, 5))
    points = _pm_simplex(drawing, left, near)
    bands = _region_curves(right, epochs, counts, run.plan.burn_in)
    right.set_title(f"b  {s.label(run.method)}, n = {n}")
    drawing.facts = {
        "near": near,
        "counted": counted,
        "n": n,
        "epochs": epochs,
        "counts": counts,
        "bands": bands,
        "points": points,
        "misclassified": [int((m < 0).sum()) for m in margins],
    }
    printed = (-0.2, 0.0, 0.2)
    exact = all(
        abs(points[pair] - value) < 1e-9 for pair, value in zip(TEXT_POINTS, printed, strict=True)
    )
    drawing.claims = [
        Claim(
            "PM is 0 on the class boundary, positive where safe, negative where wrong (MAIL s. "
            "3.1, Fig. 3)",
            "-0.2, 0 and +0.2 at (0.4, 0.6), (0.5, 0.5) and (0.6, 0.4)",
            ", ".join(f"{points[pair]:+.1f}" for pair in TEXT_POINTS),
            holds=exact,
            fails=not exact,
        )
    ]
    words = "; ".join(
        f"{name} {b['share'][0]:.0%} in epoch 1, {b['share'][-1]:.0%} [{b['low'][-1]:.0%}, "
        f"{b['high'][-1]:.0%}] in epoch {epochs[-1]}"
        for name, b in bands.items()
    )
    drawing.caption = (
        "MAIL Fig. 3 sketches three regions by PM: safe, around the class boundary, and wrong. "
        "Left, all probabilities of "
        f"three classes with true class i; around the boundary is read as |PM| of at most "
        f"{near:g}, and MAIL-AT's weight "
        f"stands beside PM. Right, {n} training images ({counted}) of {s.label(run.method)} on "
        f"{setting(run)}: {words}; "
        "bands are 95 %."
    )
    return drawing


def _region_curves(
    axes, epochs: np.ndarray, counts: dict[str, np.ndarray], burn_in: int
) -> dict[str, dict]:
    """Share of the images in each region per epoch with Wilson's interval; -> {region:

    share, low and high}.
    """
    bands, n = {}, sum(c[0] for c in counts.values())
    for name, tint in REGIONS.items():
        low, high = np.array([wilson(int(c), int(n)) for c in counts[name]]).T
        bands[name] = {"share": counts[name] / n, "low": low, "high": high}
        axes.fill_between(epochs, low, high, color=tint, alpha=0.15, linewidth=0)
        axes.plot(epochs, counts[name] / n, color=tint)
    ends = [bands[name]["share"][-1] for name in REGIONS]
    for name, height in zip(REGIONS, _apart(ends, 0.07), strict=True):
        axes.annotate(
            name,
            (1, height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            color=REGIONS[name],
            va="center",
            fontsize=8.5,
        )
    if 0 < burn_in < len(epochs):
        axes.axvline(burn_in + 0.5, color=s.GREY, linewidth=0.8, linestyle=":")
        axes.annotate(
            "weights begin",
            (burn_in + 0.5, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -8),
            textcoords="offset points",
            fontsize=7.5,
            color="#555555",
        )
    axes.set(
        xlabel="training epoch",
        ylabel="training images under attack",
        ylim=(0, 1),
        xlim=(1, max(len(epochs), 2)),
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    s.share_axis(axes)
    return bands


def _apart(heights: list[float], gap: float) -> list[float]:
    """The heights moved so that neighbours are at least `gap` apart, their order kept."""
    order, moved = np.argsort(heights, kind="stable"), [0.0] * len(heights)
    lowest = -math.inf
    for place in order:
        lowest = moved[place] = max(heights[place], lowest + gap)
    return moved


def _pm_simplex(drawing: Drawing, axes, near: float) -> dict:
    """PM of true class i over the simplex (i, j, k); -> {(p_i, p_j):

    PM} of the text's three points.
    """
    x, up = np.meshgrid(np.linspace(-1, 1, 321), np.linspace(0, HEIGHT, 281))
    p_k = up / HEIGHT
    probs = torch.from_numpy(
        np.stack([(1 - p_k + x) / 2, (1 - p_k - x) / 2, p_k], axis=-1).reshape(-1, 3)
    )
    pm = (
        probabilistic_margin(probs, torch.zeros(len(probs), dtype=torch.int64))
        .numpy()
        .reshape(x.shape)
    )
    outline = triangle(axes)
    picture = axes.imshow(
        pm, extent=(-1, 1, 0, HEIGHT), origin="lower", cmap=FROM_WRONG_TO_SAFE, vmin=-1, vmax=1
    )
    lines = axes.contour(
        x,
        up,
        pm,
        levels=sorted({-near, 0.0, near}),
        colors="#444444",
        linewidths=(0.7, 1.2, 0.7),
        linestyles=("-", "--", "-"),
    )
    for artist in (picture, lines):
        artist.set_clip_path(outline)
    for words, place in (("safe", (0.52, 0.25)), ("wrong", (-0.5, 0.25)), ("wrong", (0.0, 1.12))):
        axes.annotate(words, place, ha="center", va="center", fontsize=8.5, fontweight="bold")
    axes.annotate(
        "around the\nboundary",
        (0.3, 0.8),
        xytext=(0.72, 1.25),
        fontsize=8.5,
        ha="center",
        va="center",
        fontweight="bold",
        arrowprops={"arrowstyle": "-", "linewidth": 0.8},
    )
    for name, place, offset in zip(
        ("i (true)", "j", "k"), CORNERS, ((0, -9), (0, -9), (0, 7)), strict=True
    ):
        axes.annotate(
            name,
            place,
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            annotation_clip=False,
        )
    points = {}
    for p_i, p_j in TEXT_POINTS:
        one = torch.tensor([[p_i, p_j, 0.0]], dtype=torch.float64)
        points[(p_i, p_j)] = float(probabilistic_margin(one, torch.tensor([0])))
        axes.plot(p_i - p_j, 0, "o", color=s.BLACK, markersize=5, clip_on=False, zorder=5)
    axes.set(
        xticks=[p_i - p_j for p_i, p_j in TEXT_POINTS],
        xlabel="PM of the three points in the text",
        title="a  Three classes, three regions",
    )
    axes.set_xticklabels([_signed(points[pair]) for pair in TEXT_POINTS], fontsize=7)
    axes.tick_params(axis="x", length=0, pad=5)
    levels = torch.tensor((-1, -0.5, 0, 0.5, 1), dtype=torch.float64)
    mail = METHODS["mail-at"]
    weights = mail.normaliser(mail.weight(-levels))
    bar = drawing.colorbar(picture, ax=axes, shrink=0.72, ticks=levels.tolist()).ax
    bar.set_yticklabels(
        [f"{_signed(float(pm))}   {weight:.2f}" for pm, weight in zip(levels, weights, strict=True)]
    )
    bar.set_title("      PM    weight", loc="center", fontsize=7.5, fontweight="normal")
    return points


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−") if abs(value) > 1e-9 else "0"


# ---------------------------------------------------------------------------------------- MR Fig. 1


def same_margin(
    run: Run,
    *,
    tau: Annotated[float, Range(2)] = 2.0,
    n: Count = 300,
    first: int = -1,
    second: int = -1,
) -> Drawing:
    """The same training images under attack, sized by MAIL's weight and by MR's; and both along
    lines of equal margin.

    Of each of the first `n` images p_y, p_2 (the largest other class) and the rest are drawn.
    `first` and `second` are ids of the two that are compared; else two of about equal margin are,
    whose weights MR moves farthest apart. The margin is p_y - p_2, with which Eqs. 15 and 16 weigh
    the vulnerable; Eq. 4 prints the other sign.
    """
    check_value("n", n, Count)
    probs, y = probabilities(run.final, "train_logits_adv")
    if probs.shape[1] < 3:
        raise KitError(
            f"{run.plan.recipe.data} has two classes, where the margin says all; take a recipe "
            f"with more"
        )
    probs, y, ids = probs[:n], y[:n], run.final["train_ids"][:n]
    methods = {"MAIL": METHODS["mail-at"], "MR": METHODS["mr-mail"].override("criterion.tau", tau)}
    weights = {name: weigh(method, probs, y) for name, method in methods.items()}
    p_y, p_2 = (values.numpy() for values in true_and_top_other(probs, y))
    margin, ratio = probabilistic_margin(probs, y).numpy(), top2_ratio(probs, y).numpy()
    pair = _pair(margin, weights["MR"], ids, first, second)
    drawing = Drawing(8.0, 3.0)
    panels = drawing.subplots(1, 3, width_ratios=(10, 10, 8))
    for panel, (name, w), letter in zip(panels, weights.items(), "ab", strict=False):
        _weight_simplex(panel, p_y, p_2, w, probs.shape[1], pair)
        panel.set_title(f"{letter}  {name}'s weights")
    lines = sweep(methods, probs.shape[1])
    _sweep_lines(panels[2], lines)
    values = {
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
    drawing.facts = {"n": len(y), "tau": tau, "pair": compared, "sweep": lines}
    drawing.claims = _sweep_claims(lines)
    a, b = compared
    grows = [claim.here.partition(",")[0].removeprefix("in ") for claim in drawing.claims]
    drawing.caption = (
        "MR Fig. 1 claims that of two examples of equal margin MR gives the one near several "
        "classes more weight. "
        f"{len(y)} training images of {s.label(run.method)} on {setting(run)} under attack: area "
        f"by weight, blue right, "
        "orange wrong, height the probability of all but two classes (in grey p_2 would not be the "
        "largest). "
        f"x_1 (m = {a['m']:+.3f}, o = {a['o']:.2f}) and x_2 (m = {b['m']:+.3f}, o = {b['o']:.2f}) "
        f"get "
        f"{a['weights']['MAIL']:.2f} and {b['weights']['MAIL']:.2f} from MAIL, "
        f"{a['weights']['MR']:.2f} and "
        f"{b['weights']['MR']:.2f} from MR (tau {tau:g}). Right, at one m: MR's weight grows as o "
        f"falls in {grows[0]} where "
        f"m < 0 and in {grows[1]} where m > 0."
    )
    return drawing


def _pair(
    margin: np.ndarray, weights: np.ndarray, ids: np.ndarray, first: int, second: int
) -> tuple[int, int]:
    """Rows of x_1 and x_2: as asked for, else the misclassified pair with the largest difference in
    weight, less 20 times its difference in margin.
    """
    for asked in (first, second):
        if asked >= 0 and asked not in ids:
            raise KitError(
                f"image {asked} is not among the {len(ids)} that are drawn; choose one of those, "
                f"such as "
                f"{', '.join(map(str, ids[:3]))}, or draw more of them with n"
            )
    wrong = np.flatnonzero(margin < 0)
    pool = wrong if len(wrong) > 1 else np.arange(len(margin))
    ones, twos = (np.flatnonzero(ids == asked) if asked >= 0 else pool for asked in (first, second))
    gain = (weights[ones][:, None] - weights[twos][None, :]) - 20 * np.abs(
        margin[ones][:, None] - margin[twos][None, :]
    )
    i, j = np.unravel_index(gain.argmax(), gain.shape)
    return int(ones[i]), int(twos[j])


def _weight_simplex(
    axes, p_y: np.ndarray, p_2: np.ndarray, weights: np.ndarray, k: int, pair: tuple[int, int]
) -> None:
    """Images in the simplex (p_y, p_2, rest), area by weight, those of `pair` named; upright lines
    of equal margin, rays of equal o.
    """
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
    top = 1 / (k - 1)  # above it p_2 could not be the largest other
    axes.add_patch(
        Polygon(
            [(1, 0), (-top, HEIGHT * (1 - top)), (0, HEIGHT)],
            facecolor="#E9EAEC",
            edgecolor="none",
            zorder=1,
        )
    )
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


def sweep(methods: dict[str, Method], k: int) -> dict[float, dict]:
    """{m: o from its lowest to 1, and each method's weights there}, with what is left spread evenly
    over k - 2 classes.

    From p_y = p_2 + m and p_2 = o (1 - p_y) follows p_2 = o (1 - m)/(1 + o); p_y >= 0 asks for o >=
    -m.
    """
    lines = {}
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


def _sweep_lines(axes, lines: dict[float, dict]) -> None:
    """MR's weight (full) and MAIL's (dashed) against o, one colour for each side of the boundary."""
    for m in (-0.6, -0.4, -0.2, 0.2):
        tint, line = s.BLUE if m > 0 else s.ORANGE, lines[m]
        axes.plot(line["o"], line["weights"]["MR"], color=tint)
        axes.plot(line["o"], line["weights"]["MAIL"], color=tint, linewidth=1, linestyle="--")
        axes.annotate(
            f"$m$ {_signed(m)}",
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


def _percent(shares: Iterable[float]) -> str:
    low, high = min(shares), max(shares)
    return f"{low:.0%} to {high:.0%}" if high > low else f"{low:.0%}"


def _sweep_claims(lines: dict[float, dict]) -> list[Claim]:
    """Does MR's weight grow as o falls, at every step of every line?

    On each side of the boundary.
    """
    claims = []
    for side, sign in (("misclassified", -1), ("correctly classified", 1)):
        mine = {m: line["grows"]["MR"] for m, line in lines.items() if m * sign > 0}
        claims.append(
            Claim(
                f"at equal margin the weight grows as the top-2 ratio falls: {side} examples (MR "
                f"s. 3.2, Fig. 1c)",
                "x_1, near several boundaries, weighs more; on which side is not said",
                f"in {_percent(mine.values())} of the steps of o, m from {min(mine):+.1f} to "
                f"{max(mine):+.1f}",
                holds=min(mine.values()) == 1,
                fails=min(mine.values()) < 0.5,
            )
        )
    return claims
