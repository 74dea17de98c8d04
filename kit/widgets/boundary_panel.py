"""A plane with three to five classes: an example is dragged through it, and an attack pulls it over
a boundary.

A small network is trained on blobs at first use, in about a second. Everything else is the kit's
own: the attack is `kit.attacks.pgd` on points of the unit square, and weights come from the rows of
`kit.METHODS`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Circle, Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor, nn

from kit.attacks.contract import AttackTrace, frozen
from kit.attacks.projected_gradient_descent import pgd
from kit.core.errors import KitError
from kit.core.random_streams import derive_seed, named_generator
from kit.core.tensors import per_example_cross_entropy
from kit.core.threat import Threat
from kit.figures import style as s
from kit.methods.criteria import confused_label_margin, probabilistic_margin
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import METHODS
from kit.widgets.panel import Choice, Number, Panel, Toggle

#: The methods whose weights are shown; each reads something else of the example.
SHOWN = ("mail-at", "clirat", "gairat", "mr-mail", "wmmr-mr", "vir-at")

TINTS = (s.ORANGE, s.SKY, s.GREEN, s.PURPLE, s.BLUE)

PER_CLASS, SPREAD = 30, 0.13

WEIGHTING_METHODS = (0.05, 20.0)  # the shown range of a weight over the average one

MOST_STEPS = 20


@dataclass(frozen=True)
class Plane:
    """A trained classifier of the unit square, its training points x (n, 2) and their labels y
    (n,).
    """

    model: nn.Module
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class AttackedPoint:
    """Examples after their attack:

    iterates (steps + 1, N, 2), the clean points first, and what a method sees of them.
    """

    iterates: Tensor
    seen: StepOutputs


@lru_cache(maxsize=3)
def plane_images(classes: int) -> Plane:
    """The same network in every process:

    blobs around a circle, two hidden layers of 24, 150 steps of Adam.
    """
    turn = 2 * math.pi * (torch.arange(classes) + 0.3) / classes
    centres = 0.5 + 0.29 * torch.stack([turn.cos(), turn.sin()], dim=1)
    y = torch.arange(classes).repeat_interleave(PER_CLASS)
    noise = torch.randn(len(y), 2, generator=named_generator("boundary", classes))
    x = (centres[y] + SPREAD * noise).clamp(0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("boundary", classes, "network"))
        model = nn.Sequential(
            nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, classes)
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        per_example_cross_entropy(model(x), y).mean().backward()
        optimizer.step()
    return Plane(model.eval().requires_grad_(False), x, y)


def attack_point(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int, step: float
) -> AttackedPoint:
    """PGD from the points x (N, 2) in [0, 1]² themselves; `step` is its step size in units of eps."""
    path, iterates = AttackTrace(y, steps), []

    def watch(t: int, x_t: Tensor, logits: Tensor) -> None:
        path(t, x_t, logits)
        iterates.append(x_t)

    end = pgd(
        model,
        x,
        y,
        threat,
        watch=watch,
        steps=steps,
        step_size=step * threat.eps,
        init="none",
        validate=False,
    )
    with frozen(model), torch.no_grad():
        nat, adv = model(x), model(end)
    return AttackedPoint(
        torch.stack([*iterates, end]),
        StepOutputs(y, adv.double(), nat.double(), kappa=path.kappa, lps=path.lps, steps=steps),
    )


@lru_cache(maxsize=32)
def crowd(classes: int, threat: Threat, steps: int, step: float) -> StepOutputs:
    """The training points after the same attack: those beside whom an example is weighed."""
    field = plane_images(classes)
    return attack_point(field.model, field.x, field.y, threat, steps, step).seen


def relative_weights(one: StepOutputs, others: StepOutputs) -> dict[str, float]:
    """{method:

    the example's weight over the mean weight of the batch of it and the others}, past burn-in.
    """
    names = ("y", "logits_adv", "logits_nat", "kappa", "lps")
    batch = StepOutputs(
        **{name: torch.cat([getattr(one, name), getattr(others, name)]) for name in names},
        steps=one.steps,
    )
    found = {}
    for name in SHOWN:
        weights = METHODS[name].weigh(batch)
        found[name] = float(weights[0] / weights.mean())
    return found


def boundary() -> Boundary:
    """An example dragged through the decision regions of a two-dimensional classifier, with its
    attack and its weights.

    Left, the unit square with the network's regions, its training points, the ball of radius eps
    around the example, and the path of PGD from the example. Right, PM and CL-PM (of the attacked
    end, or of the clean point), LPS and κ, and what six methods weigh the example by, in multiples
    of the mean weight among the attacked training points and itself. Dragging or the arrow keys
    move the example. LPS jumps where PM slides; CL-PM leaves PM where two rivals beat the true
    class, so near the point where three regions meet. Takes no run and no arguments; values out of
    range are a `KitError`. The network is the kit's own; PM is MAIL Eq. 4, CL-PM CLIRAT Eq. 7, LPS
    MAIL section 3, κ GAIRAT's code.
    """
    return Boundary()


class Boundary(Panel):
    name, title, size = "boundary", "An example near the boundary", (8.8, 4.1)
    source = "MAIL Eq. 4, section 3; CLIRAT Eq. 7; GAIRAT; MR Eq. 14; VIR Eqs. 5-6"
    rebuilds, pointed_at = frozenset({"classes"}), True

    def controls(self, values):
        classes = values.get("classes", 3)
        if classes not in (3, 4, 5):
            raise KitError(f"classes = {classes} must be a whole number from 3 to 5")
        return [
            Number("x", 0.6, 0.0, 1.0, 0.005, "place of the example"),
            Number("y", 0.62, 0.0, 1.0, 0.005, "place of the example"),
            Choice("true", "A", tuple("ABCDE"[:classes]), "the example's true class"),
            Number("classes", 3, 3, 5, 1, "how many regions", integer=True),
            Choice("norm", "linf", ("linf", "l2"), "the norm of the ball"),
            Number("eps", 0.12, 0.01, 0.3, 0.01, "radius of the ball"),
            Number("steps", 10, 1, MOST_STEPS, 1, "steps of PGD", integer=True),
            Number("step", 0.1, 0.05, 1.0, 0.05, "step size of PGD, in units of eps"),
            Toggle("attacked", True, "PM and CL-PM of the attacked end; else of the clean point"),
        ]

    # ---- what stands still

    def build(self, figure, values):
        grid = figure.add_gridspec(3, 2, width_ratios=(10, 9), height_ratios=(2, 2, 6))
        self.map = figure.add_subplot(grid[:, 0])
        _class_regions(self.map, plane_images(values["classes"]))
        moving = self._example()
        moving += self._gauges(figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1]))
        return moving + self._bars(figure.add_subplot(grid[2, 1]))

    def _example(self) -> list:
        outline = {"facecolor": "none", "edgecolor": s.BLACK, "linewidth": 1.1, "linestyle": "--"}
        self.square = self.map.add_patch(Rectangle((0, 0), 0, 0, **outline))
        self.circle = self.map.add_patch(Circle((0, 0), 0, **outline))
        (self.path,) = self.map.plot([], [], "-o", color=s.BLACK, markersize=3, linewidth=1.1)
        (self.dot,) = self.map.plot(
            [], [], "o", markersize=11, markeredgecolor=s.BLACK, markeredgewidth=1.6, clip_on=False
        )
        (self.end,) = self.map.plot(
            [], [], "X", markersize=9, color=s.BLACK, markeredgecolor="white", clip_on=False
        )
        return [self.square, self.circle, self.path, self.dot, self.end]

    def _gauges(self, margins: Axes, steps: Axes) -> list:
        margins.set(xlim=(-1, 1), ylim=(-0.6, 1.6), yticks=(1, 0), yticklabels=("PM", "CL-PM"))
        margins.axvline(0, color=s.GREY, linewidth=0.8)
        steps.set(
            xlim=(0, MOST_STEPS),
            ylim=(-0.6, 1.6),
            yticks=(1, 0),
            yticklabels=("LPS", "κ"),
            xlabel="attack steps",
        )
        steps.xaxis.get_major_locator().set_params(integer=True)
        self.margins = margins.hlines([1, 0], 0, 0, colors=[s.GREEN, s.BLUE], linewidth=8)
        self.counts = steps.hlines([1, 0], 0, 0, colors=[s.VERMILLION, s.PURPLE], linewidth=8)
        (self.limit,) = steps.plot([], [], color=s.BLACK, linewidth=1.6)
        self.numbers = [
            axes.annotate(
                "",
                (1, height),
                xycoords=("axes fraction", "data"),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                annotation_clip=False,
            )
            for axes in (margins, steps)
            for height in (1, 0)
        ]
        self.heading = margins.set_title("")
        return [self.margins, self.counts, self.limit, *self.numbers, self.heading]

    def _bars(self, axes: Axes) -> list:
        places = np.arange(len(SHOWN))[::-1]
        axes.set(
            xscale="log",
            xlim=WEIGHTING_METHODS,
            ylim=(-0.6, len(SHOWN) - 0.4),
            yticks=places,
            yticklabels=[s.label(name) for name in SHOWN],
            title="Weight over the average weight",
        )
        axes.set_xticks([0.05, 0.2, 1, 5, 20], labels=["1/20", "1/5", "1", "5", "20"])
        axes.minorticks_off()
        axes.axvline(1, color=s.GREY, linewidth=0.8)
        self.bars = axes.hlines(
            places, 1, 1, colors=[s.colour(name) for name in SHOWN], linewidth=9
        )
        self.factors = [
            axes.annotate(
                "",
                (1, place),
                xycoords=("axes fraction", "data"),
                xytext=(5, 0),
                va="center",
                textcoords="offset points",
                fontsize=8.5,
                annotation_clip=False,
            )
            for place in places
        ]
        axes.annotate(
            "<0.01×",
            (1, 0),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            fontsize=8.5,
            alpha=0,
        )  # keeps room for the widest number when the figure is laid out
        return [self.bars, *self.factors]

    # ---- what moves

    def struck(self, values: dict) -> AttackedPoint:
        """The example after its attack."""
        label = torch.tensor(["ABCDE".index(values["true"])])
        return attack_point(
            plane_images(values["classes"]).model,
            torch.tensor([[values["x"], values["y"]]]),
            label,
            Threat(values["norm"], values["eps"]),
            values["steps"],
            values["step"],
        )

    def update(self, values):
        struck = self.struck(values)
        seen, threat = struck.seen, Threat(values["norm"], values["eps"])
        self._move_example(values, struck.iterates[:, 0].numpy(), int(seen.y))
        probs = seen.probs_adv if values["attacked"] else seen.probs_nat
        margins = [
            float(quantity(probs, seen.y))
            for quantity in (probabilistic_margin, confused_label_margin)
        ]
        counts = [int(seen.lps), int(seen.kappa)]
        for lines, ends in ((self.margins, margins), (self.counts, counts)):
            lines.set_segments(
                [[(0, height), (end, height)] for height, end in zip((1, 0), ends, strict=True)]
            )
        self.limit.set_data([values["steps"]] * 2, [-0.6, 1.6])
        words = [*(f"{margin:+.2f}".replace("-", "−") for margin in margins), *map(str, counts)]
        for text, word in zip(self.numbers, words, strict=True):
            text.set_text(word)
        where = "the attacked end" if values["attacked"] else "the clean point"
        self.heading.set_text(f"Margins of {where}")
        weights = relative_weights(
            seen, crowd(values["classes"], threat, values["steps"], values["step"])
        )
        self._move_bars(weights)
        return self._said(values, seen, where, words, weights)

    def _move_example(self, values: dict, iterates: np.ndarray, label: int) -> None:
        (x, y), eps, square = iterates[0], values["eps"], values["norm"] == "linf"
        self.square.set_visible(square)
        self.circle.set_visible(not square)
        self.square.set_bounds(x - eps, y - eps, 2 * eps, 2 * eps)
        self.circle.set_center((x, y))
        self.circle.set_radius(eps)
        self.path.set_data(iterates[:, 0], iterates[:, 1])
        self.dot.set_data([x], [y])
        self.dot.set_markerfacecolor(TINTS[label])
        self.end.set_data(iterates[-1:, 0], iterates[-1:, 1])

    def _move_bars(self, weights: dict[str, float]) -> None:
        low, high = WEIGHTING_METHODS
        self.bars.set_segments(
            [
                [(1, place), (min(max(weights[name], low), high), place)]
                for place, name in enumerate(reversed(SHOWN))
            ][::-1]
        )
        for text, weight in zip(self.factors, weights.values(), strict=True):
            text.set_text(_times(weight))

    def _said(
        self,
        values: dict,
        seen: StepOutputs,
        where: str,
        words: list[str],
        weights: dict[str, float],
    ) -> str:
        before, after = (
            "ABCDE"[int(logits.argmax())] for logits in (seen.logits_nat, seen.logits_adv)
        )
        steps, lps, true = values["steps"], int(seen.lps), values["true"]
        right = int(seen.logits_adv.argmax()) == int(seen.y)
        fell = (
            f"LPS {lps} of {steps}"
            if lps < steps or right
            else f"LPS {lps} of {steps}: only the last step"
        )
        most, least = (pick(weights, key=weights.get) for pick in (max, min))
        return (
            f"An example of class {true} at ({values['x']:.2f}, {values['y']:.2f}) is called "
            f"{before}, and {after} "
            f"after the attack ({fell}; κ {words[3]}). Of {where} PM is {words[0]} and CL-PM "
            f"{words[1]}. "
            f"{s.label(most)} weighs it most, {_times(weights[most])} the average, "
            f"{s.label(least)} least, "
            f"{_times(weights[least])}."
        )

    # ---- the hand

    def point(self, axes, x, y, begins):
        if axes is self.map:
            self.set(x=_inside(x), y=_inside(y))

    def nudge(self, right, up):
        self.set(
            x=_inside(self.values["x"] + 0.01 * right), y=_inside(self.values["y"] + 0.01 * up)
        )


def _inside(value: float) -> float:
    """The nearest place on the sliders, whose step is 1/200."""
    return round(200 * min(max(value, 0.0), 1.0)) / 200


def _times(weight: float) -> str:
    return "<0.01×" if weight < 0.005 else f"{weight:.2f}×" if weight < 9.995 else f"{weight:.0f}×"


def _class_regions(axes: Axes, field: Plane) -> None:
    """The most likely class as a tint, the stronger the likelier; lines where the answer changes;
    the training points.
    """
    side = torch.linspace(0, 1, 201)
    across, up = torch.meshgrid(side, side, indexing="xy")
    with torch.no_grad():
        probs = field.model(torch.stack([across.flatten(), up.flatten()], dim=1)).softmax(dim=1)
    likely, answer = (values.numpy().reshape(201, 201) for values in probs.max(dim=1))
    tints = np.array([to_rgb(tint) for tint in TINTS])
    strength = 0.5 * likely[..., None]
    axes.imshow(
        1 - strength * (1 - tints[answer]),
        extent=(0, 1, 0, 1),
        origin="lower",
        interpolation="bilinear",
    )
    labels = field.y.numpy()
    for label in range(probs.shape[1]):
        axes.contour(
            side,
            side,
            (answer == label).astype(float),
            levels=[0.5],
            colors="white",
            linewidths=1.2,
        )
        mine = field.x[labels == label].numpy()
        axes.plot(
            *mine.T,
            ".",
            color=tints[label],
            markersize=5,
            markeredgecolor="#555555",
            markeredgewidth=0.4,
        )
        middle = np.clip(0.5 + 1.45 * (mine.mean(axis=0) - 0.5), 0.05, 0.95)
        axes.annotate(
            "ABCDE"[label],
            middle,
            ha="center",
            va="center",
            fontsize=13,
            fontweight="bold",
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        aspect="equal",
        xticks=(0, 0.5, 1),
        yticks=(0, 0.5, 1),
        title="Drag the example",
    )
