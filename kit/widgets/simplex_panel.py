"""Two methods' weights over the simplex of three probabilities, a run's examples on it, and a point
on a line of equal margin.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Polygon
from matplotlib.patheffects import withStroke
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
from kit.widgets.panel import Choice, Control, Number, Panel

#: Methods whose weight reads the attacked image's probabilities and nothing else. The normaliser is
#: left out: on this picture there is no batch, and over a batch it is one factor for all.
READERS: dict[str, Method] = {
    name: replace(row, normaliser=part(unnormalised))
    for name, row in METHODS.items()
    if row.weight is not None
    and row.select is None
    and set(row.criterion.reads) <= {"probs_adv", "y"}
}


THIRD, REST = "third class", "all others"

KINDS = {
    "none": (s.BLUE, "o"),
    "one": (s.ORANGE, "^"),
    "several": (s.GREEN, "s"),
}  # confused labels

GREYS = LinearSegmentedColormap.from_list("weight", ["#FFFFFF", "#D5D0DC", "#8F86A0"])

HALO = [withStroke(linewidth=2.2, foreground="white")]

DRAWN = 300  # examples at most

STEP = 0.02  # of the point


@dataclass(frozen=True)
class Examples:
    """Training images under attack after one epoch."""

    probs: Tensor  # (n, K) float64
    y: Tensor  # (n,)
    kind: np.ndarray  # (n,) 0, 1 or 2: no confused label, one, several


def spread(p_y: np.ndarray, p_2: np.ndarray, k: int) -> Tensor:
    """(n, k) probabilities of true class 0 and largest rival 1, what is left spread evenly over the
    k - 2 others.
    """
    rest = np.clip(1 - p_y - p_2, 0, 1) / (k - 2)
    return torch.from_numpy(np.stack([p_y, p_2] + [rest] * (k - 2), axis=1).clip(0, 1))


def end_of_line(margin: float, k: int) -> float:
    """How much the others can hold together at this margin:

    p_y must stay >= 0, and p_2 the largest of k - 1 rivals.
    """
    return min(1 + margin, (1 - margin) * (k - 2) / k)


def places(probs: Tensor, y: Tensor, corner: str) -> np.ndarray:
    """(n, 2) where examples lie:

    by p_y, p_2 and all the rest, or by p_y, p_2 and p_3, divided by their sum.
    """
    rivals = probs.scatter(1, y[:, None], -1.0).topk(2, dim=1).values.numpy()
    p_y = probs.gather(1, y[:, None]).squeeze(1).numpy()
    p_2, top = rivals[:, 0], rivals[:, 1] if corner == THIRD else 1 - p_y - rivals[:, 0]
    total = p_y + p_2 + top
    return np.stack([(p_y - p_2) / total, HEIGHT * top / total], axis=1)


class Simplex(Panel):
    name, title, source = (
        "simplex",
        "What a method reads off the simplex",
        "CLIRAT Fig. 2; MAIL Fig. 3; MR Fig. 1",
    )
    size, rebuilds, pointed_at = (9.0, 3.5), frozenset({"left", "right", "shows", "corner"}), True

    def __init__(self, run: Run | None):
        self.run = run
        self.kept: dict[int, Examples] = {}
        self.classes = 3 if run is None else len(run.record["classes"])
        if self.classes < 3:
            raise KitError(
                f"{run.plan.recipe.data} has two classes, where the margin says all; take a run "
                f"with more"
            )
        super().__init__(() if run is None else (run,))

    def controls(self, values: dict) -> list[Control]:
        names = tuple(READERS)
        given: list[Control] = [
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
                -0.96,
                0.96,
                STEP,
                "p_y - p_2 of the point, and of every point of its line",
            ),
            Number(
                "climb",
                0.0,
                0.0,
                1.0,
                STEP,
                "how far up the line: 0 at its foot, 1 where p_2 ceases to be largest",
                plays=True,
            ),
        ]
        if self.run is not None:
            if self.classes > 3:
                given.append(
                    Choice("corner", THIRD, (THIRD, REST), "what the top corner stands for")
                )
            last = len(self.run.history)
            given.append(
                Number(
                    "epoch",
                    last,
                    1,
                    last,
                    1,
                    "examples as they are after it",
                    integer=True,
                    plays=True,
                )
            )
        return given

    # ---- numbers

    def k(self, values: dict) -> int:
        """Classes of the filled map."""
        return self.classes if values.get("corner") == REST else 3

    def read(self, name: str, probs: Tensor, y: Tensor) -> np.ndarray:
        """(n,) weight or score, as chosen."""
        if self.values["shows"] == "weight":
            return weigh(READERS[name], probs, y)
        return READERS[name].criterion.score(StepOutputs(y, probs.log())).numpy()

    def examples(self, epoch: int) -> Examples:
        if epoch not in self.kept:
            probs, y = (values[:DRAWN] for values in epoch_probabilities(self.run, epoch, "frozen"))
            self.kept[epoch] = Examples(probs, y, confused_labels(probs, y).clamp_max(2).numpy())
        return self.kept[epoch]

    def line(self, values: dict) -> tuple[np.ndarray, Tensor]:
        """Along the line of equal margin:

        what the others hold (101,), and the probabilities; the last row is the point.
        """
        m, k = values["margin"], self.k(values)
        others = end_of_line(m, k) * np.append(np.linspace(0, 1, 101), values["climb"])
        return others, spread((1 - others + m) / 2, (1 - others - m) / 2, k)

    # ---- what stands still

    def build(self, figure, values: dict) -> list:
        *self.triangles, curves = figure.subplots(1, 3, width_ratios=(10, 10, 7))
        self.names, k = (values["left"], values["right"]), self.k(values)
        self.clouds, self.rules, self.dots = [], [], []
        limits = []
        for axes, name in zip(self.triangles, self.names, strict=True):
            low, high = self._fill(axes, name, k)
            limits += [low, high]
            axes.set_title(f"{s.label(name)}: {values['shows']} {low:.2f} (white) to {high:.2f}")
            if self.run is not None:
                look = {"alpha": 0.8, "edgecolor": "white", "linewidth": 0.5, "zorder": 4}
                self.clouds.append(
                    [
                        axes.scatter([], [], marker=mark, color=tint, **look)
                        for tint, mark in KINDS.values()
                    ]
                )
            self.rules += axes.plot([], [], color=s.VERMILLION, linewidth=1.6, zorder=5)
            self.dots += axes.plot(
                [], [], "o", color=s.VERMILLION, markeredgecolor="black", markersize=8, zorder=6
            )
        self._axes_of_the_line(curves, min(limits), max(limits), values["shows"], k)
        return [
            *(cloud for clouds in self.clouds for cloud in clouds),
            *self.rules,
            *self.dots,
            *self.curves,
            *self.ends,
            *self.notes,
        ]

    def _fill(self, axes, name: str, k: int) -> tuple[float, float]:
        """A triangle filled with what the method reads, iso-lines, and where labels get confused.

        -> its least and most.
        """
        x, up = np.meshgrid(np.linspace(-1, 1, 141), np.linspace(0, HEIGHT, 123))
        others = up / HEIGHT
        p_y, p_2 = (1 - others + x) / 2, (1 - others - x) / 2
        probs = spread(p_y.ravel().clip(0, 1), p_2.ravel().clip(0, 1), k)
        field = self.read(name, probs, torch.zeros(len(probs), dtype=torch.int64)).reshape(x.shape)
        inside = (p_y >= -1e-9) & (p_2 >= -1e-9)
        if k > 3:
            inside &= p_2 >= others / (k - 2)
        low, high = (
            round(float(end), 6) + 0.0 for end in (field[inside].min(), field[inside].max())
        )
        outline = triangle(axes)
        picture = axes.imshow(
            field, extent=(-1, 1, 0, HEIGHT), origin="lower", cmap=GREYS, vmin=low, vmax=high
        )
        levels = low + (high - low) * np.array([0.1, 0.3, 0.5, 0.7, 0.9])
        lines = axes.contour(
            x, up, field, levels=levels, colors="#5E5570", linewidths=0.7, linestyles="-"
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
            peak = 1 / (k - 1)
            axes.add_patch(
                Polygon(
                    [(1, 0), (-peak, HEIGHT * (1 - peak)), (0, HEIGHT)],
                    facecolor="#E9EAEC",
                    zorder=2.5,
                )
            )
        self._words(axes, k)
        return low, high

    def _words(self, axes, k: int) -> None:
        """Corners, and how many labels are confused where."""
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
        regions = {"none": (0.42, 0.05), "one": (-0.76, 0.05)} | (
            {"several": (-0.24, 0.98)} if k == 3 else {}
        )
        for kind, place in regions.items():
            axes.annotate(
                kind,
                place,
                ha="center",
                fontsize=8,
                fontweight="bold",
                color=KINDS[kind][0],
                zorder=7,
                path_effects=HALO,
            )
        if self.run is None or axes is not self.triangles[0]:
            return
        axes.annotate(
            "confused labels", (-1.08, HEIGHT + 0.02), fontsize=7.5, annotation_clip=False
        )
        for row, (kind, (tint, mark)) in enumerate(KINDS.items(), 1):
            height = HEIGHT + 0.02 - 0.15 * row
            axes.plot(-1.03, height + 0.035, mark, color=tint, markersize=5, clip_on=False)
            axes.annotate(kind, (-0.95, height), fontsize=7.5, annotation_clip=False)

    def _axes_of_the_line(self, axes, low: float, high: float, shows: str, k: int) -> None:
        pad = 0.05 * (high - low)
        axes.set(
            xlim=(0, 1),
            ylim=(low - pad, high + pad),
            title=f"{shows} along the red line",
            xlabel="$p_3$" if k == 3 else "probability of all others",
        )
        self.curves, self.ends, self.notes = [], [], []
        for name in self.names:
            self.curves += axes.plot([], [], color=s.colour(name), linestyle=s.dash(name))
            self.ends += axes.plot(
                [], [], "o", color=s.colour(name), markeredgecolor="black", markersize=6
            )
            self.notes.append(
                axes.annotate(
                    s.label(name),
                    (0, 0),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    color=s.colour(name),
                    annotation_clip=False,
                    path_effects=HALO,
                )
            )
        self.apart = 0.09 * (high - low)

    # ---- what moves

    def update(self, values: dict) -> str:
        others, probs = self.line(values)
        y = torch.zeros(len(probs), dtype=torch.int64)
        m, top = values["margin"], others[100]
        read = [self.read(name, probs, y) for name in self.names]
        ends = [curve[100] for curve in read]
        for number, curve in enumerate(read):
            self.rules[number].set_data([m, m], [0, HEIGHT * top])
            self.dots[number].set_data([m], [HEIGHT * others[-1]])
            self.curves[number].set_data(others[:-1], curve[:-1])
            self.ends[number].set_data([others[-1]], [curve[-1]])
            lift = self.apart * np.sign(ends[number] - ends[1 - number] or number - 0.5)
            near = abs(ends[0] - ends[1]) < self.apart
            self.notes[number].xy = (top, ends[number] + (lift / 2 if near else 0))
        return self._said_of_the_point(
            values, others, probs[-1].tolist(), read
        ) + self._show_examples(values)

    def _said_of_the_point(
        self, values: dict, others: np.ndarray, p: list[float], read: list[np.ndarray]
    ) -> str:
        words = []
        for name, curve in zip(self.names, read, strict=True):
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
        shared = (
            f"{others[-1]:.2f}" if k == 3 else f"{others[-1]:.2f} shared evenly by {k - 2} others"
        )
        return (
            f"{'Three' if k == 3 else k} classes: at margin {values['margin']:+.2f} with p = "
            f"({p[0]:.2f}, {p[1]:.2f}, "
            f"{shared}) {count} label{' is' if count == 1 else 's are'} confused, and "
            f"{', '.join(words)}."
        )

    def _show_examples(self, values: dict) -> str:
        if self.run is None:
            return ""
        found = self.examples(values["epoch"])
        at, shares = places(found.probs, found.y, values.get("corner", REST)), []
        for name, clouds in zip(self.names, self.clouds, strict=True):
            weights = weigh(READERS[name], found.probs, found.y)
            area = 10 + 14 * np.minimum(weights / weights.mean(), 8)
            shares.append(weights[found.kind == 2].sum() / weights.sum())
            for kind, cloud in enumerate(clouds):
                cloud.set_offsets(at[found.kind == kind])
                cloud.set_sizes(area[found.kind == kind])
        none, one, several = np.bincount(found.kind, minlength=3)
        return (
            f" After epoch {values['epoch']} of {s.label(self.run.method)}, of {len(at)} training "
            f"images under attack "
            f"{none} have no confused label, {one} one and {several} several; the several would "
            f"get {shares[0]:.1%} of "
            f"{s.label(self.names[0])}'s weight and {shares[1]:.1%} of {s.label(self.names[1])}'s."
        )

    # ---- a hand on the picture

    def point(self, axes, x: float, y: float, begins: bool) -> None:
        margin, others = (x, y / HEIGHT) if axes in self.triangles else (self.values["margin"], x)
        margin = STEP * round(float(np.clip(margin, -0.96, 0.96)) / STEP)
        end = end_of_line(margin, self.k(self.values))
        self.set(margin=margin, climb=STEP * round(float(np.clip(others / end, 0, 1)) / STEP))

    def nudge(self, right: int, up: int) -> None:
        self.set(
            margin=float(np.clip(self.values["margin"] + STEP * right, -0.96, 0.96)),
            climb=float(np.clip(self.values["climb"] + STEP * up, 0, 1)),
        )


def simplex(run: Run | None = None) -> Panel:
    """Weights (before the normaliser) or scores of two methods over the simplex of probabilities
    under attack, with iso-lines; a point that climbs a line of equal margin; and `run`'s training
    images, area by weight.

    The filled map is that of three classes (p_y, p_2, p_3), the true one at the right corner. A
    run's examples have more: with `corner` "third class" they lie at (p_y, p_2, p_3) divided by
    their sum, which keeps how many labels are confused (none, one, several) but not the margin;
    with "all others" at (p_y, p_2, what is left), which keeps the margin, on the map of a K-class
    prediction whose rest is spread evenly over K - 2 classes (grey where p_2 would not be the
    largest). Weights and shares in the sentence are those of the full probabilities. The methods
    are all whose weight reads nothing but these, with the table's hyper-parameters; the images are
    the first 300 of the run's training probe.

    Errors: `KitError` for a run with two classes, or one that stored no attacked logits. Source:
    CLIRAT Eq. 7, Fig. 2; MAIL Eq. 4, Fig. 3; MR Eqs. 7, 14, Fig. 1.
    """
    return Simplex(run)
