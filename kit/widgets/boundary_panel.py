"""An example is dragged through a plane with three to five classes, and attacked.

A small network is trained on blobs at first use, in about a second. Everything else is the kit's
own: the attack is `kit.attacks.pgd` on points of the unit square, and weights come from the rows of
`kit.METHODS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Circle, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
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
from kit.widgets.controls import Choice, Number, Toggle
from kit.widgets.panel import Panel

#: The methods whose weights are shown; each reads something else of the example.
WEIGHING_METHODS = ("mail-at", "clirat", "gairat", "mr-mail", "wmmr-mr", "vir-at")

CLASS_LETTERS = "ABCDE"

CLASS_TINTS = (s.ORANGE, s.SKY, s.GREEN, s.PURPLE, s.BLUE)

POINTS_PER_CLASS, BLOB_WIDTH = 30, 0.13

#: The shown range of a weight over the average one.
WEIGHT_RANGE = (0.05, 20.0)

MOST_STEPS = 20


# ------------------------------------------------------------------------------- the data it needs


@dataclass(frozen=True)
class Plane:
    """A trained classifier of the unit square, and the n points that it was trained on."""

    model: nn.Module
    x: Tensor  # (n, 2)
    y: Tensor  # (n,)


@lru_cache(maxsize=3)
def train_plane(classes: int) -> Plane:
    """Blobs around a circle and a network of two hidden layers of 24, trained 150 steps of Adam.

    It is the same in every process.
    """
    turn = 2 * math.pi * (torch.arange(classes) + 0.3) / classes
    centres = 0.5 + 0.29 * torch.stack([turn.cos(), turn.sin()], dim=1)
    y = torch.arange(classes).repeat_interleave(POINTS_PER_CLASS)
    noise = torch.randn(len(y), 2, generator=named_generator("boundary", classes))
    x = (centres[y] + BLOB_WIDTH * noise).clamp(0, 1)
    # Layers draw from the global state: it is put back.
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


# -------------------------------------------------------------------------------- what it computes


@dataclass(frozen=True)
class AttackedPoint:
    """N examples after their attack."""

    iterates: Tensor  # (steps + 1, N, 2), the clean points first
    outputs: StepOutputs


def attack_point(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int, step: float
) -> AttackedPoint:
    """PGD from the points x (N, 2) in [0, 1]² themselves; its `step` size is in units of eps."""
    trace, iterates = AttackTrace(y, steps), []

    def watch(t: int, x_t: Tensor, logits: Tensor) -> None:
        trace(t, x_t, logits)
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
        StepOutputs(y, adv.double(), nat.double(), kappa=trace.kappa, lps=trace.lps, steps=steps),
    )


@lru_cache(maxsize=32)
def attack_plane(classes: int, threat: Threat, steps: int, step: float) -> StepOutputs:
    """The training points after the same attack: those beside whom an example is weighed."""
    plane = train_plane(classes)
    return attack_point(plane.model, plane.x, plane.y, threat, steps, step).outputs


def relative_weights(one: StepOutputs, others: StepOutputs) -> dict[str, float]:
    """{method: the example's weight over the mean weight of the batch of it and the others}.

    All methods are past their burn-in.
    """
    names = ("y", "logits_adv", "logits_nat", "kappa", "lps")
    joined: dict[str, Any] = {
        name: torch.cat([getattr(one, name), getattr(others, name)]) for name in names
    }
    batch = StepOutputs(**joined, steps=one.steps)
    found = {}
    for name in WEIGHING_METHODS:
        weights = METHODS[name].weigh(batch)
        found[name] = float(weights[0] / weights.mean())
    return found


def snap(value: float) -> float:
    """The nearest place on the sliders, which reach from 0 to 1 in steps of 1/200."""
    return round(200 * min(max(value, 0.0), 1.0)) / 200


def format_factor(weight: float) -> str:
    """A weight over the average weight, in words."""
    return "<0.01×" if weight < 0.005 else f"{weight:.2f}×" if weight < 9.995 else f"{weight:.0f}×"


def describe_point(
    values: Mapping[str, Any], outputs: StepOutputs, numbers: list[str], weights: dict[str, float]
) -> str:
    """What the picture shows; `numbers` are PM, CL-PM, LPS and κ in words."""
    assert outputs.logits_nat is not None and outputs.lps is not None, "the point was attacked"
    before, after = (
        CLASS_LETTERS[int(logits.argmax())] for logits in (outputs.logits_nat, outputs.logits_adv)
    )
    steps, lps = values["steps"], int(outputs.lps)
    stays_right = int(outputs.logits_adv.argmax()) == int(outputs.y)
    only_last = "" if lps < steps or stays_right else ": only the last step"
    most, least = (pick(weights, key=weights.__getitem__) for pick in (max, min))
    return (
        f"An example of class {values['true']} at ({values['x']:.2f}, {values['y']:.2f}) is called "
        f"{before}, and {after} after the attack (LPS {lps} of {steps}{only_last}; κ {numbers[3]})."
        f" Of {measured_point(values)} PM is {numbers[0]} and CL-PM {numbers[1]}. {s.label(most)} "
        f"weighs it most, {format_factor(weights[most])} the average, {s.label(least)} least, "
        f"{format_factor(weights[least])}."
    )


def measured_point(values: Mapping[str, Any]) -> str:
    """Whose margins are shown, in words."""
    return "the attacked end" if values["attacked"] else "the clean point"


# ---------------------------------------------------------------------------------- how it is drawn


def draw_class_regions(axes: Axes, plane: Plane) -> None:
    """Tint the square by the most likely class, with lines where it changes, and the points.

    A tint is the stronger the likelier its class is.
    """
    side = torch.linspace(0, 1, 201)
    across, up = torch.meshgrid(side, side, indexing="xy")
    with torch.no_grad():
        probs = plane.model(torch.stack([across.flatten(), up.flatten()], dim=1)).softmax(dim=1)
    likely, answer = (values.numpy().reshape(201, 201) for values in probs.max(dim=1))
    tints = np.array([to_rgb(tint) for tint in CLASS_TINTS])
    strength = 0.5 * likely[..., None]
    axes.imshow(
        1 - strength * (1 - tints[answer]),
        extent=(0, 1, 0, 1),
        origin="lower",
        interpolation="bilinear",
    )
    labels = plane.y.numpy()
    for label in range(probs.shape[1]):
        region = (answer == label).astype(float)
        axes.contour(side, side, region, levels=[0.5], colors="white", linewidths=1.2)
        draw_class_points(
            axes, plane.x[labels == label].numpy(), tints[label], CLASS_LETTERS[label]
        )
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        aspect="equal",
        xticks=(0, 0.5, 1),
        yticks=(0, 0.5, 1),
        title="Drag the example",
    )


def draw_class_points(axes: Axes, points: np.ndarray, tint: np.ndarray, letter: str) -> None:
    """The training points (n, 2) of one class, and its letter beyond them."""
    axes.plot(
        *points.T,
        ".",
        color=tint,
        markersize=5,
        markeredgecolor="#555555",
        markeredgewidth=0.4,
    )
    middle = np.clip(0.5 + 1.45 * (points.mean(axis=0) - 0.5), 0.05, 0.95)
    axes.annotate(
        letter,
        middle,
        ha="center",
        va="center",
        fontsize=13,
        fontweight="bold",
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )


def draw_number(axes: Axes, height: float) -> Annotation:
    """An empty text right of the axes, at a height of their data."""
    return axes.annotate(
        "",
        (1, height),
        xycoords=("axes fraction", "data"),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=8.5,
        annotation_clip=False,
    )


class Boundary(Panel):
    """The panel of `boundary`."""

    name, title, size = "boundary", "An example near the boundary", (8.8, 4.1)
    source = "MAIL Eq. 4, section 3; CLIRAT Eq. 7; GAIRAT; MR Eq. 14; VIR Eqs. 5-6"
    rebuilds, pointed_at = frozenset({"classes"}), True

    # ---- its controls

    def controls(self, values):
        """The example, its classes, and the attack."""
        classes = values.get("classes", 3)
        if classes not in (3, 4, 5):
            raise KitError(f"classes = {classes} must be a whole number from 3 to 5")
        return [
            Number("x", 0.6, 0.0, 1.0, 0.005, "place of the example"),
            Number("y", 0.62, 0.0, 1.0, 0.005, "place of the example"),
            Choice("true", "A", tuple(CLASS_LETTERS[:classes]), "the example's true class"),
            Number("classes", 3, 3, 5, 1, "how many regions", integer=True),
            Choice("norm", "linf", ("linf", "l2"), "the norm of the ball"),
            Number("eps", 0.12, 0.01, 0.3, 0.01, "radius of the ball"),
            Number("steps", 10, 1, MOST_STEPS, 1, "steps of PGD", integer=True),
            Number("step", 0.1, 0.05, 1.0, 0.05, "step size of PGD, in units of eps"),
            Toggle("attacked", True, "PM and CL-PM of the attacked end; else of the clean point"),
        ]

    def point(self, axes, x, y, begins):
        """Move the example to the mouse."""
        if axes is self.map:
            self.set(x=snap(x), y=snap(y))

    def nudge(self, right, up):
        """Move the example by hundredths."""
        self.set(x=snap(self.values["x"] + 0.01 * right), y=snap(self.values["y"] + 0.01 * up))

    # ---- what stands still

    def build(self, figure, values):
        """Draw the regions, and set the axes beside them up."""
        grid = figure.add_gridspec(3, 2, width_ratios=(10, 9), height_ratios=(2, 2, 6))
        self.map = figure.add_subplot(grid[:, 0])
        draw_class_regions(self.map, train_plane(values["classes"]))
        moving = self._build_example()
        moving += self._build_gauges(figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1]))
        return moving + self._build_bars(figure.add_subplot(grid[2, 1]))

    def _build_example(self) -> list[Artist]:
        outline: dict[str, Any] = {
            "facecolor": "none",
            "edgecolor": s.BLACK,
            "linewidth": 1.1,
            "linestyle": "--",
        }
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

    def _build_gauges(self, margins: Axes, steps: Axes) -> list[Artist]:
        margins.set(xlim=(-1, 1), ylim=(-0.6, 1.6), yticks=(1, 0), yticklabels=("PM", "CL-PM"))
        margins.axvline(0, color=s.GREY, linewidth=0.8)
        steps.set(
            xlim=(0, MOST_STEPS),
            ylim=(-0.6, 1.6),
            yticks=(1, 0),
            yticklabels=("LPS", "κ"),
            xlabel="attack steps",
        )
        s.whole_numbers(steps)
        self.margins = margins.hlines([1, 0], 0, 0, colors=[s.GREEN, s.BLUE], linewidth=8)
        self.counts = steps.hlines([1, 0], 0, 0, colors=[s.VERMILLION, s.PURPLE], linewidth=8)
        (self.limit,) = steps.plot([], [], color=s.BLACK, linewidth=1.6)
        self.numbers = [draw_number(axes, height) for axes in (margins, steps) for height in (1, 0)]
        self.heading = margins.set_title("")
        return [self.margins, self.counts, self.limit, *self.numbers, self.heading]

    def _build_bars(self, axes: Axes) -> list[Artist]:
        count = len(WEIGHING_METHODS)
        places = np.arange(count)[::-1]
        axes.set(
            xscale="log",
            xlim=WEIGHT_RANGE,
            ylim=(-0.6, count - 0.4),
            yticks=places,
            yticklabels=[s.label(name) for name in WEIGHING_METHODS],
            title="Weight over the average weight",
        )
        axes.set_xticks([0.05, 0.2, 1, 5, 20], labels=["1/20", "1/5", "1", "5", "20"])
        axes.minorticks_off()
        axes.axvline(1, color=s.GREY, linewidth=0.8)
        tints = [s.colour(name) for name in WEIGHING_METHODS]
        self.bars = axes.hlines(places, 1, 1, colors=tints, linewidth=9)
        self.factors = [draw_number(axes, place) for place in places]
        # It keeps room for the widest number when the figure is laid out.
        axes.annotate(
            "<0.01×",
            (1, 0),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            fontsize=8.5,
            alpha=0,
        )
        return [self.bars, *self.factors]

    # ---- what moves

    def attack(self, values: Mapping[str, Any]) -> AttackedPoint:
        """Attack the example as the values say."""
        return attack_point(
            train_plane(values["classes"]).model,
            torch.tensor([[values["x"], values["y"]]]),
            torch.tensor([CLASS_LETTERS.index(values["true"])]),
            Threat(values["norm"], values["eps"]),
            values["steps"],
            values["step"],
        )

    def update(self, values):
        """Attack the example and move everything that depends on it."""
        attacked = self.attack(values)
        outputs, threat = attacked.outputs, Threat(values["norm"], values["eps"])
        self._move_example(values, attacked.iterates[:, 0].numpy(), int(outputs.y))
        numbers = self._move_gauges(values, outputs)
        batch = attack_plane(values["classes"], threat, values["steps"], values["step"])
        weights = relative_weights(outputs, batch)
        self._move_bars(weights)
        return describe_point(values, outputs, numbers, weights)

    def _move_example(self, values: Mapping[str, Any], iterates: np.ndarray, label: int) -> None:
        (x, y), eps, square = iterates[0], values["eps"], values["norm"] == "linf"
        self.square.set_visible(square)
        self.circle.set_visible(not square)
        self.square.set_bounds(x - eps, y - eps, 2 * eps, 2 * eps)
        self.circle.set_center((x, y))
        self.circle.set_radius(eps)
        self.path.set_data(iterates[:, 0], iterates[:, 1])
        self.dot.set_data([x], [y])
        self.dot.set_markerfacecolor(CLASS_TINTS[label])
        self.end.set_data(iterates[-1:, 0], iterates[-1:, 1])

    def _move_gauges(self, values: Mapping[str, Any], outputs: StepOutputs) -> list[str]:
        """Set PM, CL-PM, LPS and κ, and return them in words."""
        probs = outputs.probs_adv if values["attacked"] else outputs.probs_nat
        margins = [
            float(quantity(probs, outputs.y))
            for quantity in (probabilistic_margin, confused_label_margin)
        ]
        assert outputs.lps is not None and outputs.kappa is not None, "the point was attacked"
        counts = [int(outputs.lps), int(outputs.kappa)]
        for lines, ends in ((self.margins, margins), (self.counts, counts)):
            lines.set_segments(
                [[(0, height), (end, height)] for height, end in zip((1, 0), ends, strict=True)]
            )
        self.limit.set_data([values["steps"]] * 2, [-0.6, 1.6])
        words = [*(f"{margin:+.2f}".replace("-", "−") for margin in margins), *map(str, counts)]
        for text, word in zip(self.numbers, words, strict=True):
            text.set_text(word)
        self.heading.set_text(f"Margins of {measured_point(values)}")
        return words

    def _move_bars(self, weights: dict[str, float]) -> None:
        low, high = WEIGHT_RANGE
        places = range(len(weights))[::-1]
        self.bars.set_segments(
            [
                [(1, place), (min(max(weight, low), high), place)]
                for place, weight in zip(places, weights.values(), strict=True)
            ]
        )
        for text, weight in zip(self.factors, weights.values(), strict=True):
            text.set_text(format_factor(weight))


def boundary() -> Boundary:
    """An example is dragged through the regions of a two-dimensional classifier, and attacked.

    Left stand the unit square with the network's regions, its training points, the ball of radius
    eps around the example, and the path of PGD from the example. Right stand PM and CL-PM (of the
    attacked end, or of the clean point), LPS and κ, and what six methods weigh the example by, in
    multiples of the mean weight among the attacked training points and itself. Dragging or the
    arrow keys move the example. LPS jumps where PM slides; CL-PM leaves PM where two rivals beat
    the true class, so near the point where three regions meet.

    It takes no run and no arguments; the network is the kit's own.

    Raises:
        KitError: Only later, by `set`: a control is set out of its range.

    Source: PM is MAIL Eq. 4, CL-PM CLIRAT Eq. 7, LPS MAIL section 3, κ GAIRAT's code.
    """
    return Boundary()
