"""Weighting curves: what each method multiplies a loss with, over its own score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from torch import Tensor

from kit.core.errors import KitError
from kit.core.parts import Part
from kit.evaluation.counterfactual import WeightOrder, summarise_weights
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.explanation import EPOCHS
from kit.methods.criteria import Criterion
from kit.methods.formulas import part_formula, plain_text
from kit.methods.notes import RANGES
from kit.methods.table import METHODS, Method
from kit.widgets.controls import Action, Choice, Number
from kit.widgets.method_controls import (
    CURVED,
    parameter_controls,
    presets,
    round_up,
    weighing_parts,
    weight_parameters,
    with_parameters,
)
from kit.widgets.panel import Panel
from kit.widgets.stored_probe import (
    IMAGES_GREY,
    LINE_GREY,
    TEXT_GREY,
    Probe,
    class_shares,
    draw_class_steps,
    prepare_class_axes,
)

OWN_NUMBERS = "own numbers"  # the preset of numbers that nobody states

RIGHT_TINT, WRONG_TINT = "#A9CDE4", "#F3C9A5"  # of images: light, the curves run over them

PIN_DASHES = ("--", "-.", ":", (0, (5, 1, 1, 1)))  # of the curves that were kept

GRID_POINTS, HISTOGRAM_BINS = 241, 40  # along the score

LABEL_GAP_OF_CURVES = 0.052  # of the axes' height, between the names at the curves' ends

LONGEST_LABEL = 20  # characters


# -------------------------------------------------------------------------------- what it computes


def normalise_curve(normaliser: Part, batch: Tensor, raw: Tensor) -> Tensor:
    """What becomes of weights `raw` (M,) where the normaliser sees the weights `batch` (N,).

    Every normaliser of the kit is a straight line, and two weights of the batch fix it.
    """
    if len(batch) > 1 and bool((batch == batch[0]).all()):
        batch = batch.clone()
        batch[0] *= 1 + 1e-6
    done, low, high = normaliser(batch), batch.argmin(), batch.argmax()
    width = batch[high] - batch[low]
    slope = (done[high] - done[low]) / width if width > 0 else 0.0
    return done[low] + slope * (raw - batch[low])


def spread_apart(heights: Sequence[float], gap: float) -> np.ndarray:
    """Heights from 0 to 1, moved so that neighbours are at least `gap` apart, their order kept."""
    order, moved = np.argsort(heights, kind="stable"), np.clip(np.array(heights, float), 0, 1)
    for below, above in pairwise(order):
        moved[above] = max(moved[above], moved[below] + gap)
    if len(order):
        moved[order[-1]] = min(moved[order[-1]], 1.0)
    for above, below in pairwise(order[::-1]):
        moved[below] = min(moved[below], moved[above] - gap)
    return moved


def score_range(criterion: Criterion, probe: Probe | None) -> tuple[float, float]:
    """The score's own range.

    A score without an upper end ends at about twice the run's largest of the last epoch.
    """
    quantity = criterion.quantity
    low, high = RANGES.get(quantity.name, lambda _: (-1.0, 1.0))(quantity.params)
    if criterion.safe_end > 0:
        return -high, -low
    if probe:
        largest = float(criterion.score(probe.at(probe.epochs)[0]).max())
        high = min(high, round_up(2 * largest))
    return low, high


def rows_with_the_score_of(method: str) -> list[tuple[str, Method]]:
    """(label, row) of each curve over the same score that some row has.

    The chosen row's own numbers come first.
    """
    found: dict[tuple, list[str]] = {}
    for name in (method, *CURVED):
        row = METHODS[name]
        if row.criterion == METHODS[method].criterion:
            names = found.setdefault((str(row.weight), str(row.normaliser), str(row.schedule)), [])
            names += [name] if name not in names else []
    return [
        (s.label(names[0]) + (f" +{len(names) - 1}" if names[1:] else ""), METHODS[names[0]])
        for names in found.values()
    ]


@dataclass(frozen=True)
class KeptCurve:
    """A curve that "compare" keeps."""

    method: str
    row: Method
    words: str  # what is special about its numbers


@dataclass(frozen=True)
class ImageFacts:
    """What a row makes of the n images of a run's probe."""

    w: np.ndarray  # (n,)
    score: np.ndarray  # (n,)
    right: np.ndarray  # (n,) bool, right under attack
    shares: np.ndarray  # (K,) of the weight, by class
    images: np.ndarray  # (K,) of the images, by class
    summary: dict[str, float]  # as `kit.whatif` computes it
    class_top: float  # where the axis of the shares ends


def weigh_images(probe: Probe, row: Method, name: str, epoch: int, burning: bool) -> ImageFacts:
    """Weigh a run's probe after an epoch; while `burning` every weight is 1."""
    outputs, groups = probe.at(epoch)
    w = np.ones(len(outputs.y)) if burning else probe.weigh(row, epoch, name)
    shares, images = class_shares(w, outputs), class_shares(np.ones(len(w)), outputs)
    return ImageFacts(
        w=w,
        score=weighing_parts(row)[0].score(outputs).numpy(),
        right=groups["robust_share"],
        shares=shares,
        images=images,
        summary=summarise_weights(w, WeightOrder(w), groups),
        class_top=round_up(1.04 * float(np.nanmax([*shares, *images]))),
    )


@dataclass(frozen=True)
class CurveFacts:
    """All numbers of the picture at some values."""

    values: dict[str, Any]
    grid: Tensor  # (M,) the scores
    burning: bool  # every weight is still 1
    curve: np.ndarray  # (M,) the chosen row's weights
    thin: list[np.ndarray]  # those of the other rows, then those that were kept
    top: float  # where the axis of the weights ends
    images: ImageFacts | None  # None without a run
    frame: list[float]  # the picture is drawn anew where this changes


def describe_images(
    facts: ImageFacts, limits: tuple[float, float], label: str, classes: list[str]
) -> str:
    """Who has the weight, in words; `limits` are the ends of the axis of scores."""
    n, summary = len(facts.w), facts.summary
    effective, robust = summary["effective_sample_share"], summary["robust_share"]
    low, high = limits
    beyond = int(((facts.score < low - 1e-9) | (facts.score > high + 1e-9)).sum())
    outside = f" {beyond} images lie beyond the axis and are drawn at its end." if beyond else ""
    most = int(np.nanargmax(facts.shares)) if facts.w.sum() else 0
    return (
        f". On {n} training images of {label} the mean weight is {summary['mean_weight']:.3g} and "
        f"the effective sample size {effective * n:.1f}; {robust:.0%} of the weight is on the "
        f"{facts.right.mean():.0%} that are still right under attack, and class {classes[most]} "
        f"has most, {facts.shares[most]:.0%}.{outside}"
    )


# ---------------------------------------------------------------------------------- how it is drawn


class WeightingCurves(Panel):
    """The panel of `weighting_curves`."""

    name, title, size = "weighting-curves", "What a method makes of a score", (9.0, 3.8)
    source = "each method's own, see kit.explain(method)"
    rebuilds = frozenset(
        {"method"} | {path for name in CURVED for path in weight_parameters(name, ("criterion",))}
    )

    def __init__(self, run: Run | None):
        self.probe = Probe(run) if run else None
        self.epochs = self.probe.epochs if self.probe else EPOCHS
        self.first = run.method if run and run.method in CURVED else "mail-at"
        self.pinned: list[KeptCurve] = []
        self.known_facts: CurveFacts | None = None  # the last ones
        super().__init__((run,) if run else ())

    # ---- its controls

    def controls(self, values):
        """The method, its preset, the epoch, burn-in, and the method's numbers."""
        method, last = values.get("method", self.first), self.epochs
        settings = presets(method, last)
        own = next(iter(settings.values()))
        names = (*settings, OWN_NUMBERS)
        preset = Choice("preset", next(iter(settings)), names, "whose numbers")
        return [
            Choice("method", self.first, CURVED, "a row of kit.METHODS that weighs by a score"),
            *([preset] if len(own) > 1 else []),
            Number("epoch", last, 1, last, 1, "the training epoch", integer=True, plays=True),
            Number(
                "burn_in",
                own["burn_in"],
                0,
                last - 1,
                1,
                "epochs in which every weight is 1",
                integer=True,
            ),
            *parameter_controls(method),
            Action("compare", self.pin, "keep today's curve as a thin one"),
            Action("clear", self.unpin, "remove the curves that were kept"),
        ]

    def set(self, **values):
        """Set controls; a change of method begins with the method's own numbers."""
        with self._lock:
            self._set_choices_first(("method",), ("epoch",), values, self._set_numbers)

    def _set_numbers(self, **values):
        """A preset brings its numbers, unless they are given as well.

        Numbers that the preset does not have are own numbers.
        """
        settings = presets(values.get("method", self.values["method"]), self.epochs)
        values = dict(settings.get(values.get("preset", OWN_NUMBERS), {})) | values
        if "preset" in self.values and "method" not in values:
            values = self.check(values)  # a slider sends a number with the error of a sum
            then = self.values | values
            numbers = settings.get(then["preset"], {})
            holds = all(then[path] == number for path, number in numbers.items())
            values["preset"] = then["preset"] if holds else OWN_NUMBERS
        super().set(**values)

    def pin(self) -> None:
        """Keep the present curve.

        Raises:
            KitError: It is kept already, or too many are.
        """
        name = self.values["method"]
        changed = ", ".join(
            f"{path.partition('.')[2]} {self.values[path]:.4g}"
            for path, value in weight_parameters(name).items()
            if self.values[path] != value
        )
        kept = KeptCurve(name, with_parameters(name, self.values), changed or f"row {name}")
        if kept in self.pinned:
            raise KitError("this curve is kept already; move a slider first")
        if len(self.pinned) == len(PIN_DASHES):
            raise KitError(
                f"{len(PIN_DASHES)} curves are kept and there is no room for more; clear them first"
            )
        self.pinned.append(kept)

    def unpin(self) -> None:
        """Remove the curves that were kept.

        Raises:
            KitError: There are none.
        """
        if not self.pinned:
            raise KitError("no curve is kept; compare keeps one")
        self.pinned.clear()

    # ---- numbers

    def _weights_on_grid(self, row: Method, epoch: int) -> np.ndarray:
        """(M,) the row's weight over the grid of scores, after its normaliser.

        The normaliser sees the run's images, or, without a run, scores that lie as evenly as the
        grid.
        """
        row = row.at(epoch, self.epochs)
        criterion, weight = weighing_parts(row)
        raw = weight(self.grid)
        batch = weight(criterion.score(self.probe.at(epoch)[0])) if self.probe else raw
        return normalise_curve(row.normaliser, batch, raw).numpy()

    def facts(self, values: Mapping[str, Any]) -> CurveFacts:
        """All numbers of the picture at these values; the last ones are remembered."""
        known = self.known_facts
        if known is None or known.values != values or known.grid is not self.grid:
            known = self.known_facts = self._compute_facts(values)
        return known

    def _compute_facts(self, values: Mapping[str, Any]) -> CurveFacts:
        name, epoch = values["method"], values["epoch"]
        row, burning = with_parameters(name, values), epoch <= values["burn_in"]
        curve = np.ones(len(self.grid)) if burning else self._weights_on_grid(row, epoch)
        rows = [*(other for _, other in self.others), *(kept.row for kept in self.kept)]
        thin = [self._weights_on_grid(other, epoch) for other in rows]
        top = round_up(1.04 * max(w.max() for w in (curve, *thin[len(self.others) :])))
        ends = [w[-1] / top for w in thin]
        frame = [top, *np.clip(np.round(ends, 1), 0, 1.1)]
        images = None
        if self.probe:
            images = weigh_images(self.probe, row, name, epoch, burning)
            frame.append(images.class_top)
        return CurveFacts(dict(values), self.grid, burning, curve, thin, top, images, frame)

    def redraw(self):
        """Where axes or labels no longer fit, what stands still is drawn anew as well."""
        if self.facts(self.values).frame != self.frame:
            self.rebuild()
        else:
            super().redraw()

    # ---- what stands still

    def build(self, figure, values):
        """Draw the axes for the present method and score."""
        row = with_parameters(values["method"], values)
        criterion, _ = weighing_parts(row)
        low, high = score_range(criterion, self.probe)
        self.grid = torch.linspace(low, high, GRID_POINTS, dtype=torch.float64)
        self.others = rows_with_the_score_of(values["method"])
        self.kept = [
            kept for kept in self.pinned if weighing_parts(kept.row)[0].title == criterion.title
        ]
        facts, tint = self.facts(values), s.colour(values["method"])
        self.frame = facts.frame
        places = figure.add_gridspec(2, 3, width_ratios=(10, 3, 6 if self.probe else 0.1))
        self.axes = figure.add_subplot(places[:, 0])
        self._build_axes(row, values["method"], (low, high), facts.top)
        images = self._build_histogram() if self.probe else []
        self._build_thin(facts, tint)
        (self.line,) = self.axes.plot(self.grid, facts.curve, color=tint, linewidth=2.8)
        moving = [*images, *self.lines, self.line]
        if facts.images:
            upper, lower = figure.add_subplot(places[0, 2]), figure.add_subplot(places[1, 2])
            moving += self._build_classes(upper, facts.images.class_top, tint)
            moving += self._build_meters(lower, tint)
        return moving

    def _build_axes(self, row: Method, name: str, limits: tuple[float, float], top: float) -> None:
        criterion, weight = weighing_parts(row)
        sign = "−" if criterion.safe_end > 0 else ""
        self.axes.set(
            xlim=limits,
            ylim=(0, top),
            ylabel="weight w",
            xlabel=f"score s = {sign}{criterion.symbol}   (right: more vulnerable)",
        )
        self.axes.set_title(s.label(name), color=s.colour(name))
        v, w = (plain_text(part_formula(part)) for part in (weight, row.normaliser))
        self.axes.set_title(f"v = {v},   w = {w}", loc="right", fontweight="normal", fontsize=8.5)

    def _build_thin(self, facts: CurveFacts, tint: str) -> None:
        """The other rows' curves in grey, and those that were kept in the method's colour.

        All are named at their ends.
        """
        styles = [{"color": LINE_GREY, "linewidth": 0.9}] * len(self.others)
        styles += [
            {"color": tint, "linewidth": 1.1, "linestyle": dash}
            for dash, _ in zip(PIN_DASHES, self.kept, strict=False)
        ]
        self.lines = [
            self.axes.plot(self.grid, curve, **style)[0]
            for curve, style in zip(facts.thin, styles, strict=True)
        ]
        words = [*(label for label, _ in self.others), *(kept.words for kept in self.kept)]
        ends = [curve[-1] / facts.top for curve in facts.thin]
        heights = spread_apart(ends, LABEL_GAP_OF_CURVES)
        for text, end, height, style in zip(words, ends, heights, styles, strict=True):
            if len(text) > LONGEST_LABEL:
                text = text[: LONGEST_LABEL - 1] + "…"
            label = self.axes.text(
                1.015,
                height,
                text + (" ↑" if end > 1 else ""),
                transform=self.axes.transAxes,
                va="center",
                fontsize=7.5,
                color=tint if style["color"] == tint else TEXT_GREY,
            )
            label.set_in_layout(False)

    def _build_histogram(self) -> list[Artist]:
        """How the run's images lie along the score, all of them and those that are right."""
        low, high = self.axes.get_xlim()
        edges = np.linspace(low, high, HISTOGRAM_BINS + 1)
        across = self.axes.get_xaxis_transform()
        flat = np.zeros(HISTOGRAM_BINS)
        self.bins = [
            self.axes.stairs(flat, edges, fill=True, color=tint, transform=across, zorder=0)
            for tint in (WRONG_TINT, RIGHT_TINT)
        ]
        for place, (words, tint) in enumerate(
            (("images right under attack", "#3F7499"), ("images wrong", "#A9652A"))
        ):
            self.axes.text(
                0.01,
                0.98 - 0.055 * place,
                words,
                transform=self.axes.transAxes,
                fontsize=7.5,
                color=tint,
                va="top",
            )
        return list(self.bins)

    def _build_classes(self, axes: Axes, top: float, tint: str) -> list[Artist]:
        assert self.probe is not None, "only a run's images have classes"
        classes = self.probe.run.record["classes"]
        prepare_class_axes(axes, classes, top)
        axes.set_title("Weight by class (line: images)")
        self.by_class = [
            draw_class_steps(axes, len(classes), fill=True, color=tint, alpha=0.55),
            draw_class_steps(axes, len(classes), color=IMAGES_GREY, linewidth=1.0, baseline=None),
        ]
        return list(self.by_class)

    def _build_meters(self, axes: Axes, tint: str) -> list[Artist]:
        self.meters = axes.barh([1, 0], [0, 0], height=0.4, color=tint, alpha=0.55)
        axes.set(xlim=(0, 1), ylim=(-0.35, 1.7), yticks=[])
        s.share_axis(axes, "x")
        for place, words in (
            (1, "effective sample size"),
            (0, "weight on images still right (line: images)"),
        ):
            axes.text(0.01, place + 0.27, words, fontsize=8, va="bottom")
        (self.marker,) = axes.plot([0, 0], [-0.25, 0.25], color=IMAGES_GREY, linewidth=1.4)
        self.counted = [axes.text(0, place, "", fontsize=8, va="center") for place in (1, 0)]
        return [*self.meters, self.marker, *self.counted]

    # ---- what moves

    def update(self, values):
        """Move the curves, the histogram and the bars."""
        facts = self.facts(values)
        for line, curve in zip((*self.lines, self.line), (*facts.thin, facts.curve), strict=True):
            line.set_ydata(curve)
        images = "; no run is given, so no images are counted."
        if facts.images:
            self._show_histogram(facts.images)
            self._show_shares(facts.images)
            run = self.probe.run
            images = describe_images(
                facts.images, self.axes.get_xlim(), s.label(run.method), run.record["classes"]
            )
        return self._describe_curve(values, facts) + images + self._describe_kept()

    def _describe_curve(self, values: Mapping[str, Any], facts: CurveFacts) -> str:
        preset = values.get("preset")
        numbers = {OWN_NUMBERS: "with your own numbers", None: "as in its row"}.get(
            preset, f"as in '{preset}'"
        )
        curve, grid = facts.curve, facts.grid
        now = (
            "every weight is still 1"
            if facts.burning
            else f"the weight goes from {curve[0]:.3g} at a score of {grid[0]:.3g} to "
            f"{curve[-1]:.3g} at {grid[-1]:.3g}"
        )
        return (
            f"{s.label(values['method'])} {numbers}, epoch {values['epoch']} of {self.epochs}, "
            f"burn-in {values['burn_in']}: {now}"
        )

    def _describe_kept(self) -> str:
        if not self.kept:
            return ""
        words = "; ".join(f"{s.label(kept.method)}, {kept.words}" for kept in self.kept)
        return f" Kept: {words}."

    def _show_histogram(self, facts: ImageFacts) -> None:
        low, high = self.axes.get_xlim()
        score = np.clip(facts.score, low, high)
        everybody, right = (
            np.histogram(some, HISTOGRAM_BINS, (low, high))[0]
            for some in (score, score[facts.right])
        )
        for steps, height in zip(self.bins, (everybody, right), strict=True):
            steps.set_data(0.3 * height / everybody.max())

    def _show_shares(self, facts: ImageFacts) -> None:
        for steps, shares in zip(self.by_class, (facts.shares, facts.images), strict=True):
            steps.set_data(np.nan_to_num(shares))
        n, summary = len(facts.w), facts.summary
        effective, robust = summary["effective_sample_share"], summary["robust_share"]
        self.marker.set_xdata([facts.right.mean()] * 2)
        for bar, text, share, words in zip(
            self.meters,
            self.counted,
            (effective, robust),
            (f"{effective * n:.1f} of {n}", f"{robust:.0%}"),
            strict=True,
        ):
            bar.set_width(np.nan_to_num(share))
            text.set(x=np.nan_to_num(share) + 0.015 if share < 0.75 else 0.6, text=words)


def weighting_curves(run: Run | None = None) -> Panel:
    """Every method's weight over its own score, with a slider for each of its numbers.

    The numbers say how steep a curve is, how far to the right it lies, and how much it leaves for
    the safest.

    run: a trained run, whose probe after each epoch lies behind the curve as a histogram of scores,
    right and wrong under attack; beside it each class's share of the total weight, Kish's effective
    sample size (Σw)²/Σw², and the share of the weight on images that are right under attack.
    Without a run there are only the curves; a normaliser that divides by the batch's mean then sees
    scores that are spread evenly over the axis.

    `method` has the rows of `kit.METHODS` whose weight is a function of a score (not those that
    also leave examples out). Thin grey curves are the rows with the same score, the chosen one's
    own numbers among them ("+2": two more rows have that very curve, "↑": it leaves the axes); a
    row with another score shares no axis with them. `preset` brings the numbers of a row or of a
    paper (`kit.papers`), `burn_in` epochs have weight 1, `compare` keeps a curve, four at most, and
    `clear` removes them.

    Raises:
        KitError: the run's logits were not stored or are not finite, a number is out of range, or
            weights are negative or not finite.

    Source: each method's own, `kit.explain(method)`.
    """
    return WeightingCurves(run)
