"""MAIL Fig. 3: safe, boundary and wrong region by margin, and the training images in each."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from kit.core.errors import unknown_name
from kit.core.parameters import Range, check_value
from kit.evaluation.statistics import wilson
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData
from kit.figures.run_outputs import describe_setting, epoch_probabilities
from kit.figures.simplex import CORNERS, HEIGHT, signed, triangle
from kit.methods.criteria import probabilistic_margin
from kit.methods.table import METHODS

FROM_WRONG_TO_SAFE = LinearSegmentedColormap.from_list(
    "pm", [s.VERMILLION, "#FBE3D3", "#FFFFFF", "#D6E8F4", s.BLUE]
)

REGION_COLOURS = {"safe": s.BLUE, "boundary": "#777777", "wrong": s.VERMILLION}

TEXT_POINTS = ((0.4, 0.6), (0.5, 0.5), (0.6, 0.4))  # of MAIL s. 3.1: (p_i, p_j)


def compute_margin_regions(
    run: Run,
    *,
    near: Annotated[float, Range(0, 1, above=True)] = 0.1,
    counted: Literal["frozen", "on the fly"] = "frozen",
) -> FigureData:
    """Training images in each of MAIL's three regions, per epoch; and PM of the text's points.

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
    facts = {
        "near": near,
        "counted": counted,
        "n": n,
        "epochs": epochs,
        "counts": counts,
        "bands": {name: _share_per_epoch(counts[name], n) for name in REGION_COLOURS},
        "points": {pair: _margin_of_point(*pair) for pair in TEXT_POINTS},
        "misclassified": [int((m < 0).sum()) for m in margins],
    }
    return FigureData(facts, describe_setting(run), run.method, {"burn_in": run.plan.burn_in})


def _share_per_epoch(counts: np.ndarray, n: int) -> dict[str, np.ndarray]:
    low, high = np.array([wilson(int(c), int(n)) for c in counts]).T
    return {"share": counts / n, "low": low, "high": high}


def _margin_of_point(p_i: float, p_j: float) -> float:
    """PM of true class i where the third class has probability 0."""
    one = torch.tensor([[p_i, p_j, 0.0]], dtype=torch.float64)
    return float(probabilistic_margin(one, torch.tensor([0])))


def draw_margin_regions(data: FigureData) -> Drawing:
    """Draw the simplex of three classes by PM, and the share of each region per epoch."""
    facts = data.facts
    drawing = Drawing(7.8, 3.4)
    left, right = drawing.subplots(1, 2, width_ratios=(6, 5))
    _draw_margin_simplex(left, facts["near"], facts["points"])
    _add_weight_scale(drawing, left)
    _draw_region_curves(right, facts, data.extras["burn_in"])
    right.set_title(f"b  {s.label(data.method)}, n = {facts['n']}")
    return drawing


def _draw_region_curves(axes: Axes, facts: dict, burn_in: int) -> None:
    """Draw the share of the images in each region per epoch with Wilson's interval."""
    epochs, bands = facts["epochs"], facts["bands"]
    for name, tint in REGION_COLOURS.items():
        band = bands[name]
        axes.fill_between(epochs, band["low"], band["high"], color=tint, alpha=0.15, linewidth=0)
        axes.plot(epochs, band["share"], color=tint)
    ends = [bands[name]["share"][-1] for name in REGION_COLOURS]
    for name, height in zip(REGION_COLOURS, s.spread_labels(ends, 0.07), strict=True):
        axes.annotate(
            name,
            (1, height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            color=REGION_COLOURS[name],
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
            color=s.SMALL_PRINT,
        )
    axes.set(
        xlabel="training epoch",
        ylabel="training images under attack",
        ylim=(0, 1),
        xlim=(1, max(len(epochs), 2)),
    )
    s.whole_numbers(axes)
    s.share_axis(axes)


def _draw_margin_simplex(axes: Axes, near: float, points: dict) -> None:
    """Draw PM of true class i over the simplex (i, j, k), with the text's three points."""
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
    for p_i, p_j in TEXT_POINTS:
        axes.plot(p_i - p_j, 0, "o", color=s.BLACK, markersize=5, clip_on=False, zorder=5)
    axes.set(
        xticks=[p_i - p_j for p_i, p_j in TEXT_POINTS],
        xlabel="PM of the three points in the text",
        title="a  Three classes, three regions",
    )
    axes.set_xticklabels([signed(points[pair]) for pair in TEXT_POINTS], fontsize=7)
    axes.tick_params(axis="x", length=0, pad=5)


def _add_weight_scale(drawing: Drawing, axes: Axes) -> None:
    """Add the scale of the picture in `axes`: PM, and MAIL-AT's weight beside it."""
    levels = torch.tensor((-1, -0.5, 0, 0.5, 1), dtype=torch.float64)
    mail = METHODS["mail-at"]
    weights = mail.normaliser(mail.weight(-levels))
    bar = drawing.colorbar(axes.images[0], ax=axes, shrink=0.72, ticks=levels.tolist()).ax
    bar.set_yticklabels(
        [f"{signed(float(pm))}   {weight:.2f}" for pm, weight in zip(levels, weights, strict=True)]
    )
    bar.set_title("      PM    weight", loc="center", fontsize=7.5, fontweight="normal")


def decide_margin_regions(data: FigureData) -> list[Claim]:
    """Decide whether PM of the text's three points is -0.2, 0 and +0.2."""
    points = data.facts["points"]
    printed = (-0.2, 0.0, 0.2)
    exact = all(
        abs(points[pair] - value) < 1e-9 for pair, value in zip(TEXT_POINTS, printed, strict=True)
    )
    return [
        Claim(
            "PM is 0 on the class boundary, positive where safe, negative where wrong (MAIL s. "
            "3.1, Fig. 3)",
            "-0.2, 0 and +0.2 at (0.4, 0.6), (0.5, 0.5) and (0.6, 0.4)",
            ", ".join(f"{points[pair]:+.1f}" for pair in TEXT_POINTS),
            exact=exact,
        )
    ]


def describe_margin_regions(data: FigureData) -> str:
    """The caption: how large the regions are at first and at the end."""
    facts = data.facts
    words = "; ".join(
        f"{name} {b['share'][0]:.0%} in epoch 1, {b['share'][-1]:.0%} [{b['low'][-1]:.0%}, "
        f"{b['high'][-1]:.0%}] in epoch {facts['epochs'][-1]}"
        for name, b in facts["bands"].items()
    )
    return (
        "MAIL Fig. 3 sketches three regions by PM: safe, around the class boundary, and wrong. "
        "Left, all probabilities of three classes with true class i; around the boundary is read "
        f"as |PM| of at most {facts['near']:g}, and MAIL-AT's weight stands beside PM. Right, "
        f"{facts['n']} training images ({facts['counted']}) of {s.label(data.method)} on "
        f"{data.setting}: {words}; bands are 95 %. A network that has hardly been trained finds "
        "all classes nearly as likely, so that in the first epochs every PM is near 0."
    )
