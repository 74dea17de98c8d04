"""What if another method had weighed?

Two methods' weights of the same stored images, side by side.
"""

from __future__ import annotations

import numpy as np

from kit.evaluation.counterfactual import WeightOrder, summarise_weights
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.methods.table import METHODS
from kit.widgets.controls import choose_first, nice, sliders, with_parameters
from kit.widgets.panel import Choice, Number, Panel
from kit.widgets.weighting_panel import GREYS, Probe, class_axes, class_steps, shares_of

#: Rows that weigh; the others' weights are all 1, and there is nothing to compare.
WEIGHING = tuple(name for name, row in METHODS.items() if row.reweights)

#: Images by the labels that beat the true one under attack, as `kit.whatif` groups them: (group, in
#: words, colour, marker).
GROUPS = (
    ("robust_share", "right under attack", s.BLUE, "o"),
    ("one_label_share", "one confused label", s.ORANGE, "s"),
    ("several_labels_share", "several", s.VERMILLION, "^"),
)

TICKS = (0, 0.1, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # weights in units of their mean


class WhatIf(Panel):
    name, title, size = "whatif", "What if another method had weighed?", (9.0, 3.8)
    source = "each method's own, see kit.explain(method)"
    rebuilds = frozenset({"a", "b"})

    def __init__(self, run: Run):
        self.probe, self.told = Probe(run), {}
        self.first = run.method if run.method in WEIGHING else "mail-at"
        super().__init__((run,))

    # ---- controls

    def controls(self, values):
        last = self.probe.epochs
        return [
            Choice("a", self.first, WEIGHING, "the method whose numbers can be changed"),
            Choice(
                "b",
                "clirat" if self.first != "clirat" else "mail-at",
                WEIGHING,
                "the method it is compared with",
            ),
            Number(
                "epoch",
                last,
                1,
                last,
                1,
                "the training epoch whose probe is weighed",
                integer=True,
                plays=True,
            ),
            *sliders(values.get("a", self.first), "criterion", "weight"),
        ]

    def set(self, **values):
        with self._lock:
            choose_first(self, ("a", "b"), ("epoch",), values, super().set)

    # ---- numbers

    def _told(self, values: dict) -> dict:
        """All numbers of the picture at these values; the last ones are remembered."""
        if self.told and self.told["values"] == values:
            return self.told
        epoch, (outputs, groups) = values["epoch"], self.probe.at(values["epoch"])
        rows = {"a": with_parameters(values["a"], values), "b": METHODS[values["b"]]}
        weights = {side: self.probe.weigh(row, epoch, values[side]) for side, row in rows.items()}
        orders = {side: WeightOrder(w) for side, w in weights.items()}
        told = {
            "values": dict(values),
            "groups": groups,
            "relative": {side: w / (w.mean() or 1.0) for side, w in weights.items()},
            "facts": {
                side: summarise_weights(w, orders["b"], groups) for side, w in weights.items()
            },
            "cuts": {
                side: np.partition(w, -orders[side].tenth)[-orders[side].tenth] / (w.mean() or 1.0)
                for side, w in weights.items()
            },
            "tenth": orders["b"].tenth,
            "shares": {side: shares_of(w, outputs) for side, w in weights.items()},
        }
        told["frame"] = {
            "weight": nice(1.04 * max(w.max() for w in told["relative"].values())),
            "class": nice(1.04 * float(np.max(np.nan_to_num(list(told["shares"].values()))))),
        }
        self.told = told
        return told

    def redraw(self):
        """Where the axes no longer fit, they are drawn anew as well."""
        if self._told(self.values)["frame"] != self.frame:
            self.rebuild()
        else:
            super().redraw()

    # ---- what stands still

    def build(self, figure, values):
        told = self._told(values)
        self.frame = told["frame"]
        places = figure.add_gridspec(2, 2, width_ratios=(10, 8))
        axes = figure.add_subplot(places[:, 0])
        names, tints = self._names(values), self._tints(values)
        top = self.frame["weight"]
        for set_scale, set_ticks in (
            (axes.set_xscale, axes.set_xticks),
            (axes.set_yscale, axes.set_yticks),
        ):
            set_scale("function", functions=(lambda w: np.sqrt(np.clip(w, 0, None)), np.square))
            ticks = [tick for tick in TICKS if tick <= top]
            set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set(
            xlim=(0, top),
            ylim=(0, top),
            xlabel=f"{names['b']}'s weight ÷ its mean  (axes widened near 0)",
            ylabel=f"{names['a']}'s weight ÷ its mean",
        )
        axes.set_title("The same images, weighed twice")
        axes.plot([0, top], [0, top], color=GREYS["line"], linewidth=0.9)
        axes.text(
            0.97,
            0.92,
            "alike",
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=7.5,
            color=GREYS["text"],
        )
        self.cuts = [
            axes.axhline(0, color=tints["a"], linewidth=0.9, linestyle=":"),
            axes.axvline(0, color=tints["b"], linewidth=0.9, linestyle=":"),
        ]
        self.dots = [
            axes.plot(
                [],
                [],
                marker,
                color=tint,
                markersize=5,
                alpha=0.65,
                markeredgewidth=0,
                label=words,
                clip_on=False,
            )[0]
            for _, words, tint, marker in GROUPS
        ]
        figure.legend(
            handles=self.dots,
            loc="outside lower left",
            ncols=3,
            handletextpad=0.1,
            columnspacing=1.2,
        )
        return [*self.cuts, *self.dots, *self._bars(figure, places, names, tints)]

    def _bars(self, figure, places, names: dict, tints: dict) -> list:
        upper, lower = figure.add_subplot(places[0, 1]), figure.add_subplot(places[1, 1])
        classes = self.probe.run.record["classes"]
        class_axes(upper, classes, self.frame["class"])
        upper.set_title("Weight by class")
        self.by_class = [
            class_steps(upper, len(classes), fill=True, color=tints["a"], alpha=0.35),
            class_steps(upper, len(classes), color=tints["b"], linewidth=1.4, baseline=None),
        ]
        places, sides = (3.6, 2.9, 1.2, 0.5), ("a", "b", "a", "b")
        lower.set(xlim=(0, 1), ylim=(-0.6, 4.7))
        lower.set_yticks(places, [names[side] for side in sides], fontsize=7.5)
        lower.tick_params(axis="y", length=0)
        for tick, side in zip(lower.get_yticklabels(), sides, strict=True):
            tick.set_color(tints[side])
        s.share_axis(lower, "x")
        self.meters = [
            lower.barh(
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
            lower.text(0.01, place, words, fontsize=8, va="bottom")
        self.agreement = lower.text(0.01, -0.2, "", fontsize=8, va="center")
        return [*self.by_class, *self.meters, self.agreement]

    def _names(self, values: dict) -> dict[str, str]:
        same = values["a"] == values["b"]
        return {
            "a": s.label(values["a"]) + (" (a)" if same else ""),
            "b": s.label(values["b"]) + (" (b)" if same else ""),
        }

    @staticmethod
    def _tints(values: dict) -> dict[str, str]:
        """The methods' colours; of two that share one the second is black."""
        a, b = s.colour(values["a"]), s.colour(values["b"])
        return {"a": a, "b": b if b != a else s.BLACK}

    # ---- what moves

    def update(self, values):
        told = self._told(values)
        facts, relative, names, n = (
            told["facts"],
            told["relative"],
            self._names(values),
            len(told["relative"]["a"]),
        )
        for dots, (group, *_) in zip(self.dots, GROUPS, strict=True):
            mask = told["groups"][group]
            dots.set_data(relative["b"][mask], relative["a"][mask])
        self.cuts[0].set_ydata([told["cuts"]["a"]] * 2)
        self.cuts[1].set_xdata([told["cuts"]["b"]] * 2)
        for steps, side in zip(self.by_class, "ab", strict=True):
            steps.set_data(np.nan_to_num(told["shares"][side]))
        shares = [
            facts[side][key] for key in ("effective_sample_share", "robust_share") for side in "ab"
        ]
        for bar, share in zip(self.meters, shares, strict=True):
            bar.set_width(np.nan_to_num(share))
        rank, overlap = facts["a"]["spearman"], facts["a"]["top_overlap"]
        blank = not np.isfinite(rank)
        self.agreement.set_text(
            "" if blank else f"rank correlation {rank:.3f}, top tenths share {overlap:.0%}"
        )
        classes = self.probe.run.record["classes"]
        most = {side: int(np.argmax(np.nan_to_num(told["shares"][side]))) for side in "ab"}
        agree = (
            "one of them weighs all images alike, so there is no order to compare"
            if blank
            else f"their rank correlation is {rank:.3f} and of their most-weighted {told['tenth']} "
            f"images they share "
            f"{overlap:.0%}"
        )
        return (
            f"{n} training images of {s.label(self.probe.run.method)} after epoch "
            f"{values['epoch']} of "
            f"{self.probe.epochs}, weighed by {names['a']} and {names['b']}: {agree}. Effective "
            f"sample size "
            f"{n * shares[0]:.1f} and {n * shares[1]:.1f}; on images right under attack "
            f"{shares[2]:.0%} and "
            f"{shares[3]:.0%} of the weight; most on class {classes[most['a']]} "
            f"({told['shares']['a'][most['a']]:.0%}) and {classes[most['b']]} "
            f"({told['shares']['b'][most['b']]:.0%})."
        )


def whatif(run: Run) -> Panel:
    """Two methods' weights of the same images, with nothing trained again: what the stored probe of
    `run` after an epoch would have been given by method a, whose numbers can be changed, and by
    method b as its row has it.

    Every image is a dot at its two weights, each divided by its method's mean, with which a factor
    common to all images drops out; on the grey line both treat it alike, and dotted lines cut off
    each method's most-weighted tenth. Beside it each class's share of the total weight, Kish's
    effective sample sizes, the shares of the weight on images that are right under attack, the rank
    correlation, and the share that the two tenths have in common: all as `kit.whatif` computes
    them, past burn-in, whatever the epoch.

    `a` and `b` are rows of `kit.METHODS` that give examples weights. Left out are rows whose
    weights are all 1; CSA and CSE, whose costs by class are in the loss; and in no row is the
    factor that MART's loss holds counted. What it cannot know: under other weights the network
    would have become another one.

    Errors: `KitError` for a run whose logits were not stored or are not finite, a number out of
    range, and weights that are negative or not finite. Source: each method's own,
    `kit.explain(method)`.
    """
    return WhatIf(run)
