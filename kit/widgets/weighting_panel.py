"""Weighting curves:

what each method multiplies a loss with, over its own score, with a slider for each of its numbers.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import StepPatch
from torch import Tensor

from kit.core.errors import KitError
from kit.core.parts import Part
from kit.core.random_streams import Streams
from kit.evaluation.counterfactual import (
    WeightOrder,
    checked_weights,
    example_groups,
    stored_outputs,
    summarise_weights,
)
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.explanation import EPOCHS
from kit.methods.criteria import Criterion
from kit.methods.formulas import part_formula, plain_text
from kit.methods.notes import RANGES
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import METHODS, Method
from kit.widgets.controls import (
    CURVED,
    choose_first,
    nice,
    parameters,
    presets,
    sliders,
    with_parameters,
)
from kit.widgets.panel import Action, Choice, Number, Panel

OWN = "own numbers"

RIGHT, WRONG = (
    "#A9CDE4",
    "#F3C9A5",
)  # images right and wrong under attack: light, the curves run over them

GREYS = {"line": "#B5B5B5", "text": "#6E6E6E", "images": "#333333"}

KEPT = {
    f"seen_{name}" for name in ("logits_adv", "logits_nat", "kappa", "lps", "p_flip", "y", "ids")
}

PINS = ("--", "-.", ":", (0, (5, 1, 1, 1)))


class Probe:
    """What a run stored of its probe after each epoch, read once each."""

    def __init__(self, run: Run):
        self.run, self.epochs = run, len(run.history)
        self.read: dict[int, tuple[StepOutputs, dict[str, np.ndarray]]] = {}

    def at(self, epoch: int) -> tuple[StepOutputs, dict[str, np.ndarray]]:
        """(what was seen, {group: (n,) in it}). `KitError` where the run kept no logits."""
        if epoch not in self.read:
            missing = sorted(KEPT - self.run.epoch(epoch).keys())
            if missing:
                raise KitError(
                    f"{self.run.folder.name} stored no {', '.join(missing)} after epoch {epoch}; "
                    f"without what "
                    "its probe answered no weight can be told. Delete the run and train it again"
                )
            outputs, ids = stored_outputs(self.run, epoch, "frozen")
            outputs = replace(outputs, streams=Streams(ids, self.run.plan.seed, "whatif", epoch))
            self.read[epoch] = outputs, example_groups(outputs)
        outputs, groups = self.read[epoch]
        return replace(
            outputs, streams=Streams(outputs.streams.ids, *outputs.streams.parts)
        ), groups  # draws begin anew

    def weigh(self, row: Method, epoch: int, words: str) -> np.ndarray:
        """(n,) the weights that the row gives in that epoch, past burn-in."""
        return checked_weights(
            row.at(epoch, self.epochs), self.at(epoch)[0], f"{words}, epoch {epoch},"
        )


def shares_of(w: np.ndarray, outputs: StepOutputs) -> np.ndarray:
    """(K,) each class's share of the total weight; NaN where all weights are 0."""
    totals = np.bincount(outputs.y.numpy(), w, outputs.logits_adv.shape[1])
    return totals / w.sum() if w.sum() else totals * np.nan


def normalised(normaliser: Part, batch: Tensor, raw: Tensor) -> Tensor:
    """What becomes of weights `raw` (M,) where the normaliser sees the weights `batch` (N,): every
    normaliser of the kit is a straight line, and two weights of the batch fix it.
    """
    if len(batch) > 1 and bool((batch == batch[0]).all()):
        batch = batch.clone()
        batch[0] *= 1 + 1e-6
    done, low, high = normaliser(batch), batch.argmin(), batch.argmax()
    spread = batch[high] - batch[low]
    slope = (done[high] - done[low]) / spread if spread > 0 else 0.0
    return done[low] + slope * (raw - batch[low])


def apart(heights: list[float], gap: float) -> np.ndarray:
    """Heights from 0 to 1 moved so that neighbours are at least `gap` apart, their order kept."""
    order, moved = np.argsort(heights, kind="stable"), np.clip(np.array(heights, float), 0, 1)
    for below, above in pairwise(order):
        moved[above] = max(moved[above], moved[below] + gap)
    if len(order):
        moved[order[-1]] = min(moved[order[-1]], 1.0)
    for above, below in pairwise(order[::-1]):
        moved[below] = min(moved[below], moved[above] - gap)
    return moved


def class_axes(axes: Axes, classes: list[str], top: float) -> None:
    """Shares by class: the classes' names along x where there is room for them."""
    count = len(classes)
    step, short = (1, all(len(name) <= 2 for name in classes)) if count <= 20 else (10, True)
    axes.set_xticks(
        range(0, count, step),
        [classes[k] if count <= 20 else str(k) for k in range(0, count, step)],
        rotation=0 if short else 90,
    )
    axes.tick_params(axis="x", length=0, labelsize=7)
    axes.set(xlim=(-0.6, count - 0.4), ylim=(0, top))
    s.share_axis(axes)


def class_steps(axes: Axes, count: int, **look: Any) -> StepPatch:
    """An outline, or with fill=True bars, over the classes; still flat."""
    return axes.stairs(np.zeros(count), np.arange(count + 1) - 0.5, **look)


# ---------------------------------------------------------------------------------------- the panel


class WeightingCurves(Panel):
    name, title, size = "weighting-curves", "What a method makes of a score", (9.0, 3.8)
    source = "each method's own, see kit.explain(method)"
    rebuilds = frozenset(
        {"method"} | {path for name in CURVED for path in parameters(name, ("criterion",))}
    )

    def __init__(self, run: Run | None):
        self.probe = Probe(run) if run else None
        self.epochs = self.probe.epochs if self.probe else EPOCHS
        self.first = run.method if run and run.method in CURVED else "mail-at"
        self.pinned: list[tuple[str, Method, str]] = []
        self.told: dict[str, Any] = {}
        super().__init__((run,) if run else ())

    # ---- controls

    def controls(self, values):
        method = values.get("method", self.first)
        settings = presets(method, self.epochs)
        own = next(iter(settings.values()))
        given = [
            Choice("method", self.first, CURVED, "a row of kit.METHODS that weighs by a score")
        ]
        if len(own) > 1:
            given.append(Choice("preset", next(iter(settings)), (*settings, OWN), "whose numbers"))
        return [
            *given,
            Number(
                "epoch",
                self.epochs,
                1,
                self.epochs,
                1,
                "the training epoch",
                integer=True,
                plays=True,
            ),
            Number(
                "burn_in",
                own["burn_in"],
                0,
                self.epochs - 1,
                1,
                "epochs in which every weight is 1",
                integer=True,
            ),
            *sliders(method),
            Action("compare", self.pin, "keep today's curve as a thin one"),
            Action("clear", self.unpin, "remove the curves that were kept"),
        ]

    def set(self, **values):
        with self._lock:
            choose_first(self, ("method",), ("epoch",), values, self._set)

    def _set(self, **values):
        """A preset brings its numbers, unless they are given as well; numbers of one's own are no
        preset.
        """
        settings = presets(values.get("method", self.values["method"]), self.epochs)
        chosen = values.get("preset", OWN)
        values = dict(settings.get(chosen, {})) | values
        if "preset" in self.values and "method" not in values:
            then = self.values | values
            numbers = settings.get(then["preset"], {})
            values["preset"] = (
                then["preset"] if all(then[path] == v for path, v in numbers.items()) else OWN
            )
        super().set(**values)

    def pin(self):
        row, values = (
            with_parameters(self.values["method"], self.values),
            parameters(self.values["method"]),
        )
        changed = ", ".join(
            f"{path.partition('.')[2]} {self.values[path]:.4g}"
            for path, value in values.items()
            if self.values[path] != value
        )
        kept = (self.values["method"], row, changed or f"row {self.values['method']}")
        if kept in self.pinned:
            raise KitError("this curve is kept already; move a slider first")
        if len(self.pinned) == len(PINS):
            raise KitError(f"{len(PINS)} curves are kept; clear them first")
        self.pinned.append(kept)

    def unpin(self):
        if not self.pinned:
            raise KitError("no curve is kept; compare keeps one")
        self.pinned.clear()

    # ---- numbers

    def _range(self, criterion: Criterion) -> tuple[float, float]:
        """The score's own range; a score without an upper end ends at about twice the run's largest
        of the last epoch.
        """
        low, high = RANGES.get(criterion.quantity.name, lambda _: (-1.0, 1.0))(
            criterion.quantity.params
        )
        if criterion.safe_end > 0:
            return -high, -low
        if self.probe:
            high = min(high, nice(2 * float(criterion.score(self.probe.at(self.epochs)[0]).max())))
        return low, high

    def _others(self, method: str) -> list[tuple[str, Method]]:
        """(label, row) of each curve over the same score that some row has, the chosen row's own
        numbers first.
        """
        found: dict[tuple, list[str]] = {}
        for name in (method, *CURVED):
            row = METHODS[name]
            if row.criterion == METHODS[method].criterion:
                names = found.setdefault(
                    (str(row.weight), str(row.normaliser), str(row.schedule)), []
                )
                names += [name] if name not in names else []
        return [
            (s.label(names[0]) + (f" +{len(names) - 1}" if names[1:] else ""), METHODS[names[0]])
            for names in found.values()
        ]

    def _curve(self, row: Method, epoch: int) -> np.ndarray:
        """(M,) the row's weight over the grid of scores: after its normaliser, which sees the run's
        images, or, without a run, scores that lie as evenly as the grid.
        """
        row = row.at(epoch, self.epochs)
        raw = row.weight(self.grid)
        batch = row.weight(row.criterion.score(self.probe.at(epoch)[0])) if self.probe else raw
        return normalised(row.normaliser, batch, raw).numpy()

    def _told(self, values: dict[str, Any]) -> dict[str, Any]:
        """All numbers of the picture at these values; the last ones are remembered."""
        if self.told and self.told["values"] == values and self.told["grid"] is self.grid:
            return self.told
        epoch, row = values["epoch"], with_parameters(values["method"], values)
        burning = epoch <= values["burn_in"]
        told = {
            "values": dict(values),
            "grid": self.grid,
            "row": row,
            "burning": burning,
            "now": np.ones(len(self.grid)) if burning else self._curve(row, epoch),
            "thin": [
                self._curve(other, epoch)
                for other in (*(row for _, row in self.others), *(row for _, row, _ in self.kept))
            ],
        }
        told["top"] = nice(
            1.04 * max(curve.max() for curve in (told["now"], *told["thin"][len(self.others) :]))
        )
        ends = [curve[-1] / told["top"] for curve in told["thin"]]
        told["frame"] = [told["top"], *np.clip(np.round(ends, 1), 0, 1.1)]
        if self.probe:
            outputs, groups = self.probe.at(epoch)
            w = (
                np.ones(len(outputs.y))
                if burning
                else self.probe.weigh(row, epoch, values["method"])
            )
            told |= {
                "w": w,
                "score": row.criterion.score(outputs).numpy(),
                "right": groups["robust_share"],
                "shares": shares_of(w, outputs),
                "images": shares_of(np.ones(len(w)), outputs),
                "facts": summarise_weights(w, WeightOrder(w), groups),
            }
            told["class_top"] = nice(1.04 * float(np.nanmax([*told["shares"], *told["images"]])))
            told["frame"].append(told["class_top"])
        self.told = told
        return told

    def redraw(self):
        """Where axes or labels no longer fit, what stands still is drawn anew as well."""
        if self._told(self.values)["frame"] != self.frame:
            self.rebuild()
        else:
            super().redraw()

    # ---- what stands still

    def build(self, figure, values):
        row = with_parameters(values["method"], values)
        low, high = self._range(row.criterion)
        self.grid = torch.linspace(low, high, 241, dtype=torch.float64)
        self.others = self._others(values["method"])
        self.kept = [kept for kept in self.pinned if kept[1].criterion.title == row.criterion.title]
        told, tint = self._told(values), s.colour(values["method"])
        self.frame = told["frame"]
        places = figure.add_gridspec(2, 3, width_ratios=(10, 2.1, 6.4 if self.probe else 0.1))
        self.axes = figure.add_subplot(places[:, 0])
        sign = "−" if row.criterion.safe_end > 0 else ""
        self.axes.set(
            xlim=(low, high),
            ylim=(0, told["top"]),
            ylabel="weight w",
            xlabel=f"score s = {sign}{row.criterion.symbol}   (right: more vulnerable)",
        )
        self.axes.set_title(s.label(values["method"]), color=tint)
        self.axes.set_title(
            f"v = {plain_text(part_formula(row.weight))},   w = "
            f"{plain_text(part_formula(row.normaliser))}",
            loc="right",
            fontweight="normal",
            fontsize=8.5,
        )
        images = self._images() if self.probe else []
        self._thin(told, tint)
        (self.line,) = self.axes.plot(self.grid, told["now"], color=tint, linewidth=2.8)
        return [
            *images,
            *self.lines,
            self.line,
            *(self._bars(figure, places, told, tint) if self.probe else []),
        ]

    def _thin(self, told: dict, tint: str) -> None:
        """The other rows' curves in grey, those that were kept in the method's colour, all named at
        their ends.
        """
        looks = [{"color": GREYS["line"], "linewidth": 0.9}] * len(self.others)
        looks += [
            {"color": tint, "linewidth": 1.1, "linestyle": dash}
            for dash, _ in zip(PINS, self.kept, strict=False)
        ]
        words = [*(words for words, _ in self.others), *(words for *_, words in self.kept)]
        ends = [curve[-1] / told["top"] for curve in told["thin"]]
        self.lines = [
            self.axes.plot(self.grid, curve, **look)[0]
            for curve, look in zip(told["thin"], looks, strict=True)
        ]
        for text, end, height, look in zip(words, ends, apart(ends, 0.052), looks, strict=True):
            text = text if len(text) <= 20 else text[:19] + "…"
            label = self.axes.text(
                1.015,
                height,
                text + (" ↑" if end > 1 else ""),
                transform=self.axes.transAxes,
                va="center",
                fontsize=7.5,
                color=tint if look["color"] == tint else GREYS["text"],
            )
            label.set_in_layout(False)

    def _images(self) -> list[Artist]:
        edges, across = np.linspace(*self.axes.get_xlim(), 41), self.axes.get_xaxis_transform()
        self.bins = [
            self.axes.stairs(np.zeros(40), edges, fill=True, color=tint, transform=across, zorder=0)
            for tint in (WRONG, RIGHT)
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

    def _bars(self, figure, places, told: dict, tint: str) -> list[Artist]:
        upper, lower = figure.add_subplot(places[0, 2]), figure.add_subplot(places[1, 2])
        classes = self.probe.run.record["classes"]
        class_axes(upper, classes, told["class_top"])
        upper.set_title("Weight by class (line: images)")
        self.by_class = [
            class_steps(upper, len(classes), fill=True, color=tint, alpha=0.55),
            class_steps(upper, len(classes), color=GREYS["images"], linewidth=1.0, baseline=None),
        ]
        self.meters = lower.barh([1, 0], [0, 0], height=0.4, color=tint, alpha=0.55)
        lower.set(xlim=(0, 1), ylim=(-0.35, 1.7), yticks=[])
        s.share_axis(lower, "x")
        for place, words in (
            (1, "effective sample size"),
            (0, "weight on images still right (line: images)"),
        ):
            lower.text(0.01, place + 0.27, words, fontsize=8, va="bottom")
        (self.marker,) = lower.plot([0, 0], [-0.25, 0.25], color=GREYS["images"], linewidth=1.4)
        self.counted = [lower.text(0, place, "", fontsize=8, va="center") for place in (1, 0)]
        return [*self.by_class, *self.meters, self.marker, *self.counted]

    # ---- what moves

    def update(self, values):
        told = self._told(values)
        for line, curve in zip((*self.lines, self.line), (*told["thin"], told["now"]), strict=True):
            line.set_ydata(curve)
        numbers = {OWN: "with numbers of one's own", None: "as in its row"}.get(
            values.get("preset"), f"as in '{values.get('preset')}'"
        )
        now = (
            "every weight is still 1"
            if told["burning"]
            else f"the weight goes from {told['now'][0]:.3g} at a score of "
            f"{self.grid[0]:.3g} to {told['now'][-1]:.3g} at {self.grid[-1]:.3g}"
        )
        pinned = (
            f" Kept: {'; '.join(f'{s.label(name)}, {words}' for name, _, words in self.kept)}."
            if self.kept
            else ""
        )
        return (
            f"{s.label(values['method'])} {numbers}, epoch {values['epoch']} of {self.epochs}, "
            f"burn-in "
            f"{values['burn_in']}: {now}"
            + (self._count(told) if self.probe else "; no run is given, so no images are counted.")
            + pinned
        )

    def _count(self, told: dict) -> str:
        """The run's images: how their scores lie, and who has the weight."""
        right, shares, score, n = told["right"], told["shares"], told["score"], len(told["w"])
        low, high = self.axes.get_xlim()
        heights = [
            np.histogram(np.clip(score[of], low, high), 40, (low, high))[0]
            for of in (right | True, right)
        ]
        for steps, height in zip(self.bins, heights, strict=True):
            steps.set_data(0.3 * height / heights[0].max())
        for steps, values in zip(self.by_class, (shares, told["images"]), strict=True):
            steps.set_data(np.nan_to_num(values))
        effective, robust = told["facts"]["effective_sample_share"], told["facts"]["robust_share"]
        self.marker.set_xdata([right.mean()] * 2)
        for bar, text, share, words in zip(
            self.meters,
            self.counted,
            (effective, robust),
            (f"{effective * n:.1f} of {n}", f"{robust:.0%}"),
            strict=True,
        ):
            bar.set_width(np.nan_to_num(share))
            text.set(x=np.nan_to_num(share) + 0.015 if share < 0.75 else 0.6, text=words)
        beyond = int(((score < low - 1e-9) | (score > high + 1e-9)).sum())
        outside = (
            f" {beyond} images lie beyond the axis and are drawn at its end." if beyond else ""
        )
        most = int(np.nanargmax(shares)) if told["w"].sum() else 0
        return (
            f". On {n} training images of {s.label(self.probe.run.method)} the mean weight is "
            f"{told['facts']['mean_weight']:.3g} and the effective sample size "
            f"{effective * n:.1f}; {robust:.0%} of the "
            f"weight is on the {right.mean():.0%} that are still right under attack, and class "
            f"{self.probe.run.record['classes'][most]} has most, {shares[most]:.0%}.{outside}"
        )


def weighting_curves(run: Run | None = None) -> Panel:
    """Every method's weight over its own score, with a slider for each of its numbers: how steep,
    how far to the right, how much for the safest.

    run: a trained run, whose probe after each epoch lies behind the curve as a histogram of scores,
    right and wrong under attack; beside it each class's share of the total weight, Kish's effective
    sample size (Σw)²/Σw², and the share of the weight on images that are right under attack.
    Without a run only the curves; a normaliser that divides by the batch's mean then sees scores
    that are spread evenly over the axis.

    `method` has the rows of `kit.METHODS` whose weight is a function of a score (not those that
    also leave examples out). Thin grey curves are the rows with the same score, the chosen one's
    own numbers among them ("+2": two more rows have that very curve, "↑": it leaves the axes); a
    row with another score shares no axis with them. `preset` brings the numbers of a row or of a
    paper (`kit.papers`), `burn_in` epochs have weight 1, `compare` keeps a curve, four at most, and
    `clear` removes them.

    Errors: `KitError` for a run whose logits were not stored or are not finite, for a number out of
    range, and for weights that are negative or not finite. Source: each method's own,
    `kit.explain(method)`.
    """
    return WeightingCurves(run)
