"""Two methods' weights of the same stored images, side by side: what if the other had weighed?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from kit.evaluation.counterfactual import WeightOrder, summarise_weights
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.methods.table import METHODS
from kit.widgets.controls import Choice, Number
from kit.widgets.method_controls import parameter_controls, round_up, with_parameters
from kit.widgets.panel import Panel
from kit.widgets.stored_probe import (
    LINE_GREY,
    TEXT_GREY,
    Probe,
    class_shares,
    draw_class_steps,
    prepare_class_axes,
)
from kit.widgets.thumbnails import Dots

#: Rows that weigh; the others' weights are all 1, and there is nothing to compare.
WEIGHING = tuple(name for name, row in METHODS.items() if row.reweights)

SIDES = ("a", "b")

#: Images by the labels that beat the true one under attack, as `kit.whatif` groups them: (group, in
#: words, colour, marker).
GROUP_STYLES = (
    ("robust_share", "right under attack", s.BLUE, "o"),
    ("one_label_share", "one confused label", s.ORANGE, "s"),
    ("several_labels_share", "several", s.VERMILLION, "^"),
)

#: Weights over their mean that agree to so many places are the same weight.
ROUNDED = 9

WEIGHT_TICKS = (0, 0.1, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # in units of the mean


# -------------------------------------------------------------------------------- what it computes


@dataclass(frozen=True)
class TwoWeights:
    """What methods a and b make of the same n images; dicts are by side."""

    values: dict[str, Any]  # the controls that it was computed for
    groups: dict[str, np.ndarray]  # {group: (n,) bool}
    relative: dict[str, np.ndarray]  # (n,) the weights over their mean
    summary: dict[str, dict[str, float]]  # as `kit.whatif` computes it, b being the reference
    cuts: dict[str, float]  # the least relative weight of the most-weighted tenth
    tenth: int  # how many images that is
    shares: dict[str, np.ndarray]  # (K,) of the weight, by class
    weight_top: float  # where the axes of the weights end
    class_top: float  # where the axis of the shares ends
    different: dict[str, int]  # how many different weights there are

    @property
    def frame(self) -> tuple[float, float]:
        """The picture is drawn anew where this changes."""
        return self.weight_top, self.class_top


def weigh_twice(probe: Probe, values: Mapping[str, Any]) -> TwoWeights:
    """Weigh a run's probe by method a with the numbers of `values`, and by b as its row has it."""
    epoch, (outputs, groups) = values["epoch"], probe.at(values["epoch"])
    rows = {"a": with_parameters(values["a"], values), "b": METHODS[values["b"]]}
    weights = {side: probe.weigh(row, epoch, values[side]) for side, row in rows.items()}
    orders = {side: WeightOrder(w) for side, w in weights.items()}
    relative = {side: w / (w.mean() or 1.0) for side, w in weights.items()}
    shares = {side: class_shares(w, outputs) for side, w in weights.items()}
    return TwoWeights(
        values=dict(values),
        groups=groups,
        relative=relative,
        summary={side: summarise_weights(w, orders["b"], groups) for side, w in weights.items()},
        cuts={
            side: np.partition(w, -orders[side].tenth)[-orders[side].tenth] / (w.mean() or 1.0)
            for side, w in weights.items()
        },
        tenth=orders["b"].tenth,
        shares=shares,
        weight_top=round_up(1.04 * max(w.max() for w in relative.values())),
        class_top=round_up(1.04 * float(np.max(np.nan_to_num(list(shares.values()))))),
        different={side: len(np.unique(w.round(ROUNDED))) for side, w in relative.items()},
    )


def name_sides(values: Mapping[str, Any]) -> dict[str, str]:
    """What the two methods are called; where they are the same, each says which it is."""
    same = values["a"] == values["b"]
    return {side: s.label(values[side]) + (f" ({side})" if same else "") for side in SIDES}


def tint_sides(values: Mapping[str, Any]) -> dict[str, str]:
    """The methods' colours; of two that share one the second is black."""
    a, b = s.colour(values["a"]), s.colour(values["b"])
    return {"a": a, "b": b if b != a else s.BLACK}


def describe_two_weights(facts: TwoWeights, run: Run, epochs: int) -> str:
    """What the picture shows, with its numbers."""
    values, names, n = facts.values, name_sides(facts.values), len(facts.relative["a"])
    moment = "as adopted" if run.is_adopted else f"after epoch {values['epoch']} of {epochs}"
    rank, overlap = facts.summary["a"]["spearman"], facts.summary["a"]["top_overlap"]
    agreement = (
        f"their rank correlation is {rank:.3f} and of their most-weighted {facts.tenth} images "
        f"they share {overlap:.0%}"
        if np.isfinite(rank)
        else "one of them weighs all images alike, so there is no order to compare"
    )
    effective, robust, most = {}, {}, {}
    for side in SIDES:
        effective[side] = n * facts.summary[side]["effective_sample_share"]
        robust[side] = facts.summary[side]["robust_share"]
        heaviest = int(np.argmax(np.nan_to_num(facts.shares[side])))
        most[side] = f"{run.record['classes'][heaviest]} ({facts.shares[side][heaviest]:.0%})"
    return (
        f"{n} training images of {s.label(run.method)} {moment}, "
        f"weighed by {names['a']} and {names['b']}: {agreement}. Effective sample size "
        f"{effective['a']:.1f} and {effective['b']:.1f}; on images right under attack "
        f"{robust['a']:.0%} and {robust['b']:.0%} of the weight; most on class {most['a']} and "
        f"{most['b']}.{_describe_columns(facts, names)}"
    )


def _describe_columns(facts: TwoWeights, names: Mapping[str, str]) -> str:
    """Say which methods give a few weights only, each to many images; "" where none does."""
    n = len(facts.relative["a"])
    few = {names[side]: facts.different[side] for side in SIDES}
    return "".join(
        f" {name} gives {count} different weights only." if count > 1 else f" {name} gives one."
        for name, count in few.items()
        if 4 * count <= n
    )


# ---------------------------------------------------------------------------------- how it is drawn


class WhatIf(Panel):
    """The panel of `whatif`."""

    name, title, size = "whatif", "What if another method had weighed?", (9.0, 3.8)
    source = "each method's own, see kit.explain(method)"
    rebuilds = frozenset(SIDES)

    def __init__(self, run: Run):
        self.probe = Probe(run)
        self.known_facts: TwoWeights | None = None  # the last ones
        self.first = run.method if run.method in WEIGHING else "mail-at"
        super().__init__((run,))

    # ---- its controls

    def controls(self, values):
        """The two methods, the epoch, and the numbers of method a."""
        last, second = self.probe.epochs, "clirat" if self.first != "clirat" else "mail-at"
        when = "the training epoch whose probe is weighed"
        return [
            Choice("a", self.first, WEIGHING, "the method whose numbers can be changed"),
            Choice("b", second, WEIGHING, "the method it is compared with"),
            Number("epoch", last, 1, last, 1, when, integer=True, plays=True),
            *parameter_controls(values.get("a", self.first), "criterion", "weight"),
        ]

    def set(self, **values):
        """Set controls; a change of method begins with the method's own numbers."""
        with self._lock:
            self._set_choices_first(SIDES, ("epoch",), values, super().set)

    def image_dots(self):
        """Every image at its two weights."""
        facts, names = self.facts(self.values), name_sides(self.values)
        outputs, _ = self.probe.at(self.values["epoch"])
        assert outputs.streams is not None, "a probe has them"

        def describe(row: int) -> str:
            return ", ".join(f"{names[side]} ×{facts.relative[side][row]:.3g}" for side in SIDES)

        places = np.stack([facts.relative["b"], facts.relative["a"]], axis=1)
        return [Dots(self.cloud, places, outputs.streams.ids.numpy(), describe)]

    # ---- numbers

    def facts(self, values: Mapping[str, Any]) -> TwoWeights:
        """All numbers of the picture at these values; the last ones are remembered."""
        if self.known_facts is None or self.known_facts.values != values:
            self.known_facts = weigh_twice(self.probe, values)
        return self.known_facts

    def redraw(self):
        """Where the axes no longer fit, they are drawn anew as well."""
        if self.facts(self.values).frame != self.frame:
            self.rebuild()
        else:
            super().redraw()

    # ---- what stands still

    def build(self, figure, values):
        """Draw the axes for the present numbers."""
        facts = self.facts(values)
        self.frame = facts.frame
        names, tints = name_sides(values), tint_sides(values)
        places = figure.add_gridspec(2, 2, width_ratios=(10, 8))
        moving = self._build_cloud(figure.add_subplot(places[:, 0]), facts, names, tints)
        figure.legend(
            handles=self.dots,
            loc="outside lower left",
            ncols=3,
            handletextpad=0.1,
            columnspacing=1.2,
        )
        upper, lower = figure.add_subplot(places[0, 1]), figure.add_subplot(places[1, 1])
        moving += self._build_classes(upper, facts.class_top, tints)
        return moving + self._build_meters(lower, names, tints)

    def _build_cloud(
        self, axes: Axes, facts: TwoWeights, names: dict[str, str], tints: dict[str, str]
    ) -> list[Artist]:
        """Every image at its two weights."""
        self.cloud, top = axes, facts.weight_top
        ticks = [tick for tick in WEIGHT_TICKS if tick <= top]
        for set_scale, set_ticks in (
            (axes.set_xscale, axes.set_xticks),
            (axes.set_yscale, axes.set_yticks),
        ):
            set_scale("function", functions=(lambda w: np.sqrt(np.clip(w, 0, None)), np.square))
            set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set(
            xlim=(0, top),
            ylim=(0, top),
            xlabel=f"{names['b']}'s weight ÷ its mean  (axes widened near 0)",
            ylabel=f"{names['a']}'s weight ÷ its mean",
        )
        axes.set_title("The same images, weighed twice")
        axes.plot([0, top], [0, top], color=LINE_GREY, linewidth=0.9)
        axes.text(
            0.97,
            0.92,
            "alike",
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=7.5,
            color=TEXT_GREY,
        )
        self.cuts = [
            axes.axhline(0, color=tints["a"], linewidth=0.9, linestyle=":"),
            axes.axvline(0, color=tints["b"], linewidth=0.9, linestyle=":"),
        ]
        style: dict[str, Any] = {
            "markersize": 5,
            "alpha": 0.65,
            "markeredgewidth": 0,
            "clip_on": False,
        }
        self.dots = [
            axes.plot([], [], marker, color=tint, label=words, **style)[0]
            for _, words, tint, marker in GROUP_STYLES
        ]
        return [*self.cuts, *self.dots]

    def _build_classes(self, axes: Axes, top: float, tints: dict[str, str]) -> list[Artist]:
        classes = self.probe.run.record["classes"]
        count = len(classes)
        prepare_class_axes(axes, classes, top)
        axes.set_title("Weight by class")
        self.by_class = [
            draw_class_steps(axes, count, fill=True, color=tints["a"], alpha=0.35),
            draw_class_steps(axes, count, color=tints["b"], linewidth=1.4, baseline=None),
        ]
        return list(self.by_class)

    def _build_meters(
        self, axes: Axes, names: dict[str, str], tints: dict[str, str]
    ) -> list[Artist]:
        places, sides = (3.6, 2.9, 1.2, 0.5), SIDES * 2
        axes.set(xlim=(0, 1), ylim=(-0.6, 4.7))
        axes.set_yticks(places, [names[side] for side in sides], fontsize=7.5)
        axes.tick_params(axis="y", length=0)
        for tick, side in zip(axes.get_yticklabels(), sides, strict=True):
            tick.set_color(tints[side])
        s.share_axis(axes, "x")
        self.meters = [
            axes.barh(
                place,
                0,
                height=0.6,
                color=tints[side],
                alpha=0.35 if side == "a" else 1,
                fill=side == "a",
                edgecolor=tints[side],
                linewidth=1.2,
            )[0]
            for place, side in zip(places, sides, strict=True)
        ]
        for place, words in (
            (4.0, "effective sample size"),
            (1.6, "weight on images right under attack"),
        ):
            axes.text(0.01, place, words, fontsize=8, va="bottom")
        self.agreement = axes.text(0.01, -0.2, "", fontsize=8, va="center")
        return [*self.meters, self.agreement]

    # ---- what moves

    def update(self, values):
        """Move the dots, the cuts and the bars."""
        facts = self.facts(values)
        for dots, (group, *_) in zip(self.dots, GROUP_STYLES, strict=True):
            members = facts.groups[group]
            dots.set_data(facts.relative["b"][members], facts.relative["a"][members])
        self.cuts[0].set_ydata([facts.cuts["a"]] * 2)
        self.cuts[1].set_xdata([facts.cuts["b"]] * 2)
        for steps, side in zip(self.by_class, SIDES, strict=True):
            steps.set_data(np.nan_to_num(facts.shares[side]))
        shares = [
            facts.summary[side][key]
            for key in ("effective_sample_share", "robust_share")
            for side in SIDES
        ]
        for bar, share in zip(self.meters, shares, strict=True):
            bar.set_width(np.nan_to_num(share))
        rank, overlap = facts.summary["a"]["spearman"], facts.summary["a"]["top_overlap"]
        self.agreement.set_text(
            f"rank correlation {rank:.3f}, top tenths share {overlap:.0%}"
            if np.isfinite(rank)
            else ""
        )
        return describe_two_weights(facts, self.probe.run, self.probe.epochs)


def whatif(run: Run) -> Panel:
    """Two methods' weights of the same images, with nothing trained again.

    They are what the stored probe of `run` after an epoch would have been given by method a, whose
    numbers can be changed, and by method b as its row has it.

    Every image is a dot at its two weights, each divided by its method's mean, with which a factor
    common to all images drops out; on the grey line both treat it alike, and dotted lines cut off
    each method's most-weighted tenth. Beside it stand each class's share of the total weight,
    Kish's effective sample sizes, the shares of the weight on images that are right under attack,
    the rank correlation, and the share that the two tenths have in common: all as `kit.whatif`
    computes them, past burn-in, whatever the epoch.

    `a` and `b` are rows of `kit.METHODS` that give examples weights. Rows whose weights are all 1
    are left out, and so are CSA and CSE, whose costs by class are in the loss; in no row is the
    factor counted that MART's loss holds. What it cannot know: under other weights the network
    would have become another one.

    Raises:
        KitError: the run's logits were not stored or are not finite, a number is out of range, or
            weights are negative or not finite.

    Source: each method's own, `kit.explain(method)`.
    """
    return WhatIf(run)
