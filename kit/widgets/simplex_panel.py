"""Two methods' weights over the simplex of three probabilities, and a run's examples on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from torch import Tensor

from kit.core.errors import KitError
from kit.core.parts import part
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.run_outputs import epoch_probabilities
from kit.figures.simplex import CORNERS, HEIGHT, triangle, weigh
from kit.methods.criteria import confused_labels
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import METHODS, Method
from kit.methods.weights import unnormalised
from kit.widgets.controls import Choice, Control, Number
from kit.widgets.panel import Panel
from kit.widgets.thumbnails import Dots

#: Methods whose weight reads the attacked image's probabilities and nothing else. The normaliser is
#: left out: on this picture there is no batch, and over a batch it is one factor for all.
READERS: dict[str, Method] = {
    name: replace(row, normaliser=part(unnormalised))
    for name, row in METHODS.items()
    if row.weight is not None
    and row.select is None
    and set(row.criterion.reads) <= {"probs_adv", "y"}
}

#: What the top corner stands for.
THIRD, REST = "third class", "all others"

#: How many labels are confused: (colour, marker).
CONFUSION_STYLES = {
    "none": (s.BLUE, "o"),
    "one": (s.ORANGE, "^"),
    "several": (s.GREEN, "s"),
}

WEIGHT_COLOURS = LinearSegmentedColormap.from_list("weight", ["#FFFFFF", "#D5D0DC", "#8F86A0"])

HALO = [withStroke(linewidth=2.2, foreground="white")]

MOST_EXAMPLES = 300

#: A step of the margin, and of the rise.
POINT_STEP = 0.02

LARGEST_MARGIN = 0.96

#: Points of the line of equal margin, its ends included.
LINE_POINTS = 101


# -------------------------------------------------------------------------------- what it computes


@dataclass(frozen=True)
class Examples:
    """Training images under attack after one epoch."""

    probs: Tensor  # (n, K) float64
    y: Tensor  # (n,)
    ids: np.ndarray  # (n,)
    kind: np.ndarray  # (n,) 0, 1 or 2: no confused label, one, several


def read_examples(run: Run, epoch: int) -> Examples:
    """Read the first images of a run's probe.

    Raises:
        KitError: The run stored no attacked logits of them.
    """
    probs, y = (values[:MOST_EXAMPLES] for values in epoch_probabilities(run, epoch, "frozen"))
    ids = run.epoch(epoch)["seen_ids"][:MOST_EXAMPLES]
    return Examples(probs, y, ids, confused_labels(probs, y).clamp_max(2).numpy())


def spread_rest(p_y: np.ndarray, p_2: np.ndarray, k: int) -> Tensor:
    """(n, k) probabilities of true class 0 and largest rival 1.

    What is left is spread evenly over the k - 2 others.
    """
    rest = np.clip(1 - p_y - p_2, 0, 1) / (k - 2)
    return torch.from_numpy(np.stack([p_y, p_2] + [rest] * (k - 2), axis=1).clip(0, 1))


def end_of_line(margin: float, k: int) -> float:
    """How much the others can hold together at this margin.

    p_y must stay at least 0, and p_2 the largest of k - 1 rivals.
    """
    return min(1 + margin, (1 - margin) * (k - 2) / k)


def equal_margin_line(margin: float, rise: float, k: int) -> tuple[np.ndarray, Tensor]:
    """Along the line of equal margin: what the others hold, and the probabilities.

    Both have LINE_POINTS + 1 rows; the last one is the point that has risen so far.
    """
    shares = np.append(np.linspace(0, 1, LINE_POINTS), rise)
    others = end_of_line(margin, k) * shares
    return others, spread_rest((1 - others + margin) / 2, (1 - others - margin) / 2, k)


def place_examples(probs: Tensor, y: Tensor, corner: str) -> np.ndarray:
    """(n, 2) where examples lie on the triangle.

    By p_y, p_2 and all the rest, or by p_y, p_2 and p_3, divided by their sum.
    """
    rivals = probs.scatter(1, y[:, None], -1.0).topk(2, dim=1).values.numpy()
    p_y = probs.gather(1, y[:, None]).squeeze(1).numpy()
    p_2, top = rivals[:, 0], rivals[:, 1] if corner == THIRD else 1 - p_y - rivals[:, 0]
    total = p_y + p_2 + top
    return np.stack([(p_y - p_2) / total, HEIGHT * top / total], axis=1)


def read_quantity(name: str, quantity: str, probs: Tensor, y: Tensor) -> np.ndarray:
    """(n,) a method's "weight" or "score" of examples."""
    if quantity == "weight":
        return weigh(READERS[name], probs, y)
    criterion = READERS[name].criterion
    assert criterion is not None, f"{name} weighs by no score"
    return criterion.score(StepOutputs(y, probs.log())).numpy()


@dataclass(frozen=True)
class TriangleMap:
    """What a method reads on a grid over the triangle; `low` and `high` are its ends inside."""

    x: np.ndarray
    up: np.ndarray
    field: np.ndarray
    low: float
    high: float


@lru_cache(maxsize=64)
def map_triangle(name: str, quantity: str, k: int) -> TriangleMap:
    """Read a method's weight or score everywhere on the triangle of k classes."""
    x, up = np.meshgrid(np.linspace(-1, 1, 141), np.linspace(0, HEIGHT, 123))
    others = up / HEIGHT
    p_y, p_2 = (1 - others + x) / 2, (1 - others - x) / 2
    probs = spread_rest(p_y.ravel().clip(0, 1), p_2.ravel().clip(0, 1), k)
    y = torch.zeros(len(probs), dtype=torch.int64)
    field = read_quantity(name, quantity, probs, y).reshape(x.shape)
    inside = (p_y >= -1e-9) & (p_2 >= -1e-9)
    if k > 3:
        inside &= p_2 >= others / (k - 2)
    low, high = (round(float(end), 6) + 0.0 for end in (field[inside].min(), field[inside].max()))
    return TriangleMap(x, up, field, low, high)


# ---------------------------------------------------------------------------------- how it is drawn


def draw_map(axes: Axes, found: TriangleMap, k: int) -> None:
    """Fill a triangle with what a method reads, with iso-lines, and where labels get confused."""
    outline = triangle(axes)
    picture = axes.imshow(
        found.field,
        extent=(-1, 1, 0, HEIGHT),
        origin="lower",
        cmap=WEIGHT_COLOURS,
        vmin=found.low,
        vmax=found.high,
    )
    levels = found.low + (found.high - found.low) * np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    lines = axes.contour(
        found.x,
        found.up,
        found.field,
        levels=levels,
        colors="#5E5570",
        linewidths=0.7,
        linestyles="-",
    )
    for artist in (picture, lines):
        artist.set_clip_path(outline)
    for foot, top in (
        ((0, 0), (0, HEIGHT)),
        ((-1, 0), (1 / (k - 1), HEIGHT * (k - 2) / (k - 1))),
    ):
        axes.plot(
            *zip(foot, top, strict=True),
            color=s.BLACK,
            linewidth=1,
            linestyle="--",
            zorder=2,
            clip_path=outline,
        )
    if k > 3:
        # There p_2 would not be the largest rival.
        peak = 1 / (k - 1)
        corners = [(1, 0), (-peak, HEIGHT * (1 - peak)), (0, HEIGHT)]
        axes.add_patch(Polygon(corners, facecolor="#E9EAEC", zorder=2.5))


def name_corners(axes: Axes, k: int) -> list[Annotation]:
    """Write what the corners stand for.

    Returns:
        How many labels are confused where: words that are to stand above the examples.
    """
    top = "$p_3$ = 1" if k == 3 else "all others"
    for words, place, shift in zip(
        ("$p_y$ = 1", "$p_2$ = 1", top), CORNERS, ((0, -8), (0, -8), (0, 7)), strict=True
    ):
        axes.annotate(
            words,
            place,
            xytext=shift,
            textcoords="offset points",
            ha="center",
            va="center",
            annotation_clip=False,
        )
    axes.set_xticks([])
    regions = {"none": (0.42, 0.05), "one": (-0.76, 0.05)}
    if k == 3:
        regions["several"] = (-0.24, 0.98)
    return [
        axes.annotate(
            kind,
            place,
            ha="center",
            fontsize=8,
            fontweight="bold",
            color=CONFUSION_STYLES[kind][0],
            zorder=7,
            path_effects=HALO,
        )
        for kind, place in regions.items()
    ]


def draw_marker_legend(axes: Axes) -> None:
    """Write which marker has how many confused labels."""
    axes.annotate("confused labels", (-1.08, HEIGHT + 0.02), fontsize=7.5, annotation_clip=False)
    for row, (kind, (tint, mark)) in enumerate(CONFUSION_STYLES.items(), 1):
        height = HEIGHT + 0.02 - 0.15 * row
        axes.plot(-1.03, height + 0.035, mark, color=tint, markersize=5, clip_on=False)
        axes.annotate(kind, (-0.95, height), fontsize=7.5, annotation_clip=False)


class Simplex(Panel):
    """The panel of `simplex`."""

    name, title = "simplex", "What a method reads off the simplex"
    source = "CLIRAT Fig. 2; MAIL Fig. 3; MR Fig. 1"
    size, pointed_at = (9.0, 3.5), True
    rebuilds = frozenset({"left", "right", "shows", "corner"})

    def __init__(self, run: Run | None):
        self.run = run
        self.read: dict[int, Examples] = {}  # by epoch
        self.classes = 3 if run is None else len(run.record["classes"])
        if run is not None and self.classes < 3:
            raise KitError(
                f"{run.plan.recipe.data} has two classes, where the margin alone says everything; "
                "take a run with three or more"
            )
        super().__init__(() if run is None else (run,))

    # ---- its controls

    def controls(self, values: dict) -> list[Control]:
        """The two methods, the point, and the epoch of the examples."""
        names = tuple(READERS)
        wanted: list[Control] = [
            Choice("left", "mail-at", names, "method of the left triangle"),
            Choice("right", "clirat", names, "method of the right triangle"),
            Choice(
                "shows",
                "weight",
                ("weight", "score"),
                "what fills the triangles; the score is what is weighed",
            ),
            Number(
                "margin",
                -0.3,
                -LARGEST_MARGIN,
                LARGEST_MARGIN,
                POINT_STEP,
                "p_y - p_2 of the point, and of every point of its line",
            ),
            Number(
                "rise",
                0.0,
                0.0,
                1.0,
                POINT_STEP,
                "how far up the line: 0 at its foot, 1 where p_2 ceases to be largest",
                plays=True,
            ),
        ]
        if self.run is None:
            return wanted
        if self.classes > 3:
            wanted.append(Choice("corner", THIRD, (THIRD, REST), "what the top corner stands for"))
        last = self.run.epochs
        epochs = Number("epoch", last, 1, last, 1, "examples as they are after it", True, True)
        return [*wanted, epochs]

    def point(self, axes: Axes, x: float, y: float, begins: bool) -> None:
        """Move the point to the mouse: on a triangle, or along the line beside it."""
        on_triangle = axes in self.triangles
        margin, others = (x, y / HEIGHT) if on_triangle else (self.values["margin"], x)
        clipped = float(np.clip(margin, -LARGEST_MARGIN, LARGEST_MARGIN))
        margin = POINT_STEP * round(clipped / POINT_STEP)
        share = float(np.clip(others / end_of_line(margin, self.k(self.values)), 0, 1))
        self.set(margin=margin, rise=POINT_STEP * round(share / POINT_STEP))

    def nudge(self, right: int, up: int) -> None:
        """Move the point by steps of its two sliders."""
        margin, rise = self.values["margin"], self.values["rise"]
        self.set(
            margin=float(np.clip(margin + POINT_STEP * right, -LARGEST_MARGIN, LARGEST_MARGIN)),
            rise=float(np.clip(rise + POINT_STEP * up, 0, 1)),
        )

    def image_dots(self):
        """The run's examples on both triangles."""
        if self.run is None:
            return []
        found = self.examples(self.values["epoch"])
        at = place_examples(found.probs, found.y, self.values.get("corner", REST))
        confused = ("no confused label", "one confused label", "several confused labels")

        def describe(row: int) -> str:
            return f"p_y = {found.probs[row, found.y[row]]:.2f}, {confused[found.kind[row]]}"

        return [Dots(axes, at, found.ids, describe) for axes in self.triangles]

    # ---- numbers

    def k(self, values: Mapping[str, Any]) -> int:
        """Classes of the filled map."""
        return self.classes if values.get("corner") == REST else 3

    def examples(self, epoch: int) -> Examples:
        """The run's examples after an epoch, read once."""
        if epoch not in self.read:
            assert self.run is not None, "only a run has examples"
            self.read[epoch] = read_examples(self.run, epoch)
        return self.read[epoch]

    # ---- what stands still

    def build(self, figure, values: dict) -> list[Artist]:
        """Fill both triangles, and set the axes beside them up."""
        *self.triangles, curves = figure.subplots(1, 3, width_ratios=(10, 10, 7))
        self.names, k = (values["left"], values["right"]), self.k(values)
        maps = [map_triangle(name, values["shows"], k) for name in self.names]
        self.regions: list[Annotation] = []
        self.clouds: list[list[PathCollection]] = []
        self.rules: list[Line2D] = []
        self.dots: list[Line2D] = []
        for axes, name, found in zip(self.triangles, self.names, maps, strict=True):
            draw_map(axes, found, k)
            self.regions += name_corners(axes, k)
            if self.run is not None and axes is self.triangles[0]:
                draw_marker_legend(axes)
            axes.set_title(
                f"{s.label(name)}: {values['shows']} {found.low:.2f} (white) to {found.high:.2f}"
            )
            self._build_moving(axes)
        low, high = min(found.low for found in maps), max(found.high for found in maps)
        self._build_curves(curves, low, high, values["shows"], k)
        return [
            *(cloud for clouds in self.clouds for cloud in clouds),
            *self.regions,
            *self.rules,
            *self.dots,
            *self.curves,
            *self.ends,
            *self.notes,
        ]

    def _build_moving(self, axes: Axes) -> None:
        """The examples, the line of equal margin and the point on one triangle."""
        if self.run is not None:
            style: dict[str, Any] = {
                "alpha": 0.8,
                "edgecolor": "white",
                "linewidth": 0.5,
                "zorder": 4,
            }
            self.clouds.append(
                [
                    axes.scatter([], [], marker=mark, color=tint, **style)
                    for tint, mark in CONFUSION_STYLES.values()
                ]
            )
        self.rules += axes.plot([], [], color=s.VERMILLION, linewidth=1.6, zorder=5)
        self.dots += axes.plot(
            [], [], "o", color=s.VERMILLION, markeredgecolor="black", markersize=8, zorder=6
        )

    def _build_curves(self, axes: Axes, low: float, high: float, shows: str, k: int) -> None:
        """The axes along the line, from `low` to `high`."""
        pad = 0.05 * (high - low)
        axes.set(
            xlim=(0, 1),
            ylim=(low - pad, high + pad),
            title=f"{shows} along the red line",
            xlabel="$p_3$" if k == 3 else "probability of all others",
        )
        self.curves, self.ends, self.notes = [], [], []
        for name in self.names:
            tint = s.colour(name)
            self.curves += axes.plot([], [], color=tint, linestyle=s.dash(name))
            self.ends += axes.plot([], [], "o", color=tint, markeredgecolor="black", markersize=6)
            self.notes.append(
                axes.annotate(
                    s.label(name),
                    (0, 0),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    color=tint,
                    annotation_clip=False,
                    path_effects=HALO,
                )
            )
        # This far apart stay the two names.
        self.least_gap = 0.09 * (high - low)

    # ---- what moves

    def update(self, values: dict) -> str:
        """Move the point, its line and the examples."""
        k = self.k(values)
        others, probs = equal_margin_line(values["margin"], values["rise"], k)
        y = torch.zeros(len(probs), dtype=torch.int64)
        found = [read_quantity(name, values["shows"], probs, y) for name in self.names]
        self._move_point(values["margin"], others, found)
        return self._describe_point(values, others, probs[-1].tolist(), found) + (
            self._show_examples(values) if self.run is not None else ""
        )

    def _move_point(self, margin: float, others: np.ndarray, found: list[np.ndarray]) -> None:
        """Move the line, the point and both methods' curves along it."""
        end_others, ends = others[-2], [curve[-2] for curve in found]
        for number, curve in enumerate(found):
            self.rules[number].set_data([margin, margin], [0, HEIGHT * end_others])
            self.dots[number].set_data([margin], [HEIGHT * others[-1]])
            self.curves[number].set_data(others[:-1], curve[:-1])
            self.ends[number].set_data([others[-1]], [curve[-1]])
            lift = self.least_gap * np.sign(ends[number] - ends[1 - number] or number - 0.5)
            near = abs(ends[0] - ends[1]) < self.least_gap
            self.notes[number].xy = (end_others, ends[number] + (lift / 2 if near else 0))

    def _describe_point(
        self,
        values: Mapping[str, Any],
        others: np.ndarray,
        p: list[float],
        found: list[np.ndarray],
    ) -> str:
        words = []
        for name, curve in zip(self.names, found, strict=True):
            here, foot = float(curve[-1]), float(curve[0])
            than = (
                f"×{here / foot:.2f} of"
                if values["shows"] == "weight"
                else f"{here - foot:+.2f} from"
            )
            words.append(
                f"{s.label(name)}'s {values['shows']} is {here:.3g} ({than} the line's foot)"
            )
        k, count = self.k(values), int(confused_labels(torch.tensor([p]), torch.tensor([0])))
        shared = "" if k == 3 else f" shared evenly by {k - 2} others"
        return (
            f"{'Three' if k == 3 else k} classes: at margin {values['margin']:+.2f} with p = "
            f"({p[0]:.2f}, {p[1]:.2f}, {others[-1]:.2f}{shared}) {count} "
            f"label{' is' if count == 1 else 's are'} confused, and {', '.join(words)}."
        )

    def _show_examples(self, values: Mapping[str, Any]) -> str:
        """Move the run's examples, and say how many have confused labels and who weighs them."""
        assert self.run is not None, "only a run has examples"
        found = self.examples(values["epoch"])
        at, shares = place_examples(found.probs, found.y, values.get("corner", REST)), []
        for name, clouds in zip(self.names, self.clouds, strict=True):
            weights = weigh(READERS[name], found.probs, found.y)
            area = 10 + 14 * np.minimum(weights / weights.mean(), 8)
            shares.append(weights[found.kind == 2].sum() / weights.sum())
            for kind, cloud in enumerate(clouds):
                cloud.set_offsets(at[found.kind == kind])
                cloud.set_sizes(area[found.kind == kind])
        none, one, several = np.bincount(found.kind, minlength=3)
        return (
            f" Of {len(at)} training images of {s.label(self.run.method)} "
            f"{self.run.moment(values['epoch'])}, under attack {none} have no confused label, "
            f"{one} one and {several} several; "
            f"the several would get {shares[0]:.1%} of {s.label(self.names[0])}'s weight and "
            f"{shares[1]:.1%} of {s.label(self.names[1])}'s."
        )


def simplex(run: Run | None = None) -> Panel:
    """Weights or scores of two methods over the simplex of three probabilities under attack.

    Weights are those before the normaliser. The picture has iso-lines, a point that rises along a
    line of equal margin, and `run`'s training images, their area by weight.

    The filled map is that of three classes (p_y, p_2, p_3), the true one at the right corner. A
    run's examples have more: with `corner` "third class" they lie at (p_y, p_2, p_3) divided by
    their sum, which keeps how many labels are confused (none, one, several) but not the margin;
    with "all others" at (p_y, p_2, what is left), which keeps the margin, on the map of a K-class
    prediction whose rest is spread evenly over K - 2 classes (grey where p_2 would not be the
    largest). Weights and shares in the sentence are those of the full probabilities. The methods
    are all whose weight reads nothing but these, with the table's hyper-parameters; the images are
    the first 300 of the run's training probe.

    Raises:
        KitError: the run has two classes, or stored no attacked logits.

    Source: CLIRAT Eq. 7, Fig. 2; MAIL Eq. 4, Fig. 3; MR Eqs. 7, 14, Fig. 1.
    """
    return Simplex(run)
