"""CLIRAT Figs. 3 and 5: AT, MAIL-AT with two normalisers, and CLIRAT, under six criteria."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kit.attacks.table import attack_label
from kit.core.errors import KitError
from kit.core.parameters import Natural, check_value
from kit.evaluation.statistics import Interval, grand_difference
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData, format_points
from kit.figures.run_outputs import CRITERION_LABELS, describe_setting, right_under_attack
from kit.papers.claim_verdict import Estimate

#: Measured since the end of burn-in alone: before it the methods do not differ, and
#: these take longest.
SINCE_BURN_IN = ("pgd100", "apgd-ce")

#: MAIL-AT multiplies its weights by 3 and CLIRAT's average 1. `CONTROL` is MAIL-AT with CLIRAT's
#: normaliser, so that it differs from CLIRAT in the criterion alone.
CONTROL = "mail-at-printed"

COMPARED = ("at", "mail-at", CONTROL, "clirat")

_DASHES = {"natural": "-", "pgd20": "-", "pgd100": "--", "apgd-ce": ":", "cw20": "-", "aa": ":"}

#: Of these a panel with several criteria shows the last epoch alone.
_END_MARKS = {"pgd100": "s", "apgd-ce": "^"}


@dataclass(frozen=True)
class Curve:
    """Which images were right along the way: `right` is (epochs, seeds, images) bool."""

    epochs: list[int]
    right: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """(epochs,) accuracy over all seeds and images."""
        return self.right.mean(axis=(1, 2))

    def at(self, epoch: int) -> np.ndarray:
        """(seeds, images) of one epoch."""
        return self.right[self.epochs.index(epoch)]


#: {method: {attack: its curve}}.
Curves = Mapping[str, Mapping[str, Curve]]


# --------------------------------------------------------------------------------- what is measured


def group_by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """{method: its runs in the order of their seeds}, those of `COMPARED` first.

    Raises:
        KitError: if a method or a seed is missing, the recipes differ, or a run kept no networks.
    """
    groups: dict[str, list[Run]] = {method: [] for method in COMPARED}
    for run in sorted(runs, key=lambda run: run.spec.seed):
        run.check_trained_here("a history of its epochs")
        groups.setdefault(run.method, []).append(run)
    if missing := [method for method, mine in groups.items() if not mine]:
        raise KitError(
            f"the learning curves also need a run of {', '.join(missing)}: "
            + "; ".join(
                f"python -m kit train {method} --recipe {runs[0].spec.recipe}" for method in missing
            )
        )
    if len({run.plan.recipe for run in runs}) > 1:
        raise KitError(
            "the learning curves need runs of one recipe with the same overrides; these differ in "
            "their settings"
        )
    seeds = {method: [run.spec.seed for run in mine] for method, mine in groups.items()}
    if any(mine != seeds["at"] or len(set(mine)) < len(mine) for mine in seeds.values()):
        have = "; ".join(
            f"{method} has {' '.join(map(str, mine))}" for method, mine in seeds.items()
        )
        raise KitError(
            f"the learning curves need every method once with the same seeds, but {have}"
        )
    for run in runs:
        if not run.snapshots:
            raise KitError(
                f"{run.spec} kept no networks along the way; delete {run.folder} and train it again"
            )
    return groups


def find_kept_networks(run: Run, runs: Sequence[Run]) -> dict[int, Run]:
    """{epoch: a run that kept this run's network of that epoch}.

    Runs that differ in their weights alone are one network until burn-in ends, so that one is
    evaluated once.
    """
    found: dict[int, Run] = {}
    for other in runs:
        here = [
            (r.plan.burn_in_key, r.record["device"], r.record["versions"]) for r in (run, other)
        ]
        shared = min(run.plan.shared_epochs, other.plan.shared_epochs) if here[0] == here[1] else 0
        for epoch in other.snapshots:
            if epoch <= shared or other is run:
                found.setdefault(epoch, other)
    return dict(sorted(found.items()))


def measure_curves(runs: Sequence[Run], n: int, aa: int) -> Curves:
    """{method: {attack: Curve}} on the first n test images.

    AutoAttack sees the last `aa` networks that were kept.

    Raises:
        KitError: for n = 1 or a negative number, and see `group_by_method`.
    """
    check_value("aa", aa, Natural)
    if check_value("n", n, Natural) == 1:
        raise KitError(
            "n=1 leaves no spread to compare; it must be at least 2, or 0 for all test images"
        )
    groups = group_by_method(runs)
    begin = burn_in_end(runs)
    found: dict[str, dict[str, Curve]] = {}
    for method, mine in groups.items():
        kept = [find_kept_networks(run, runs) for run in mine]
        epochs = sorted(set.intersection(*map(set, kept)))
        since = [epoch for epoch in epochs if epoch >= begin]
        late = dict.fromkeys(SINCE_BURN_IN, since) | {"aa": epochs[-aa:] if aa else []}
        found[method] = {
            name: Curve(
                wanted,
                np.stack(
                    [
                        [right_under_attack(keepers[epoch], epoch, name, n) for keepers in kept]
                        for epoch in wanted
                    ]
                ),
            )
            for name in CRITERION_LABELS
            if (wanted := late.get(name, epochs))
        }
    return found


def burn_in_end(runs: Sequence[Run]) -> int:
    """The last epoch of CLIRAT's burn-in."""
    return next(run.plan.burn_in for run in runs if run.method == "clirat")


# ------------------------------------------------------------------------------------------ compute


def compute_learning_curves(runs: Sequence[Run], *, n: int = 100, aa: int = 0) -> FigureData:
    """Accuracy over epochs under six criteria, and paired differences at burn-in and at the end.

    n: the first n test images, 0 for all; aa: how many of the last networks AutoAttack sees.
    """
    found, begin = measure_curves(runs, n, aa), burn_in_end(runs)
    after = next((epoch for epoch in found["clirat"]["natural"].epochs if epoch > begin), None)
    everywhere = ("natural", "pgd20", "cw20")
    jumps: dict[str, dict[str, Interval]] = {}
    control: dict[str, Interval] = {}
    if after is not None:
        jumps = {
            method: {
                name: grand_difference(curves[name].at(begin), curves[name].at(after))
                for name in everywhere
            }
            for method, curves in found.items()
            if {begin, after} <= set(curves["natural"].epochs)
        }
        control = {
            name: grand_difference(found["at"][name].at(after), found["clirat"][name].at(after))
            for name in everywhere
            if {"at", "clirat"} <= set(jumps)
        }
    _, seeds, n = found["at"]["natural"].right.shape
    facts = {
        "n": n,
        "seeds": seeds,
        "burn_in": begin,
        "last_epoch": {method: curves["natural"].epochs[-1] for method, curves in found.items()},
        "difference": end_differences(found),
        "jump_to": after,
        "jump": jumps,
        "clirat - at after the jump": control,
        "methods": {
            method: {
                name: {"epochs": curve.epochs, "accuracy": curve.mean}
                for name, curve in curves.items()
            }
            for method, curves in found.items()
        },
    }
    extras = {"curves": found, "rate_falls": begin in runs[0].plan.recipe.milestones}
    return FigureData(facts, describe_setting(runs[0], seed=False), extras=extras)


def end_differences(found: Curves) -> dict[str, dict[str, Interval]]:
    """{"clirat - mail-at": {attack: difference in the last epoch}} of the methods."""
    ends = {
        method: {name: curve.right[-1] for name, curve in curves.items()}
        for method, curves in found.items()
    }
    return {
        f"{b} - {a}": {
            name: grand_difference(ends[a][name], ends[b][name])
            for name in ends[a]
            if name in ends[b]
        }
        for a, b in (
            (CONTROL, "clirat"),
            ("mail-at", "clirat"),
            ("at", "clirat"),
            ("at", "mail-at"),
        )
    }


# --------------------------------------------------------------------------------------------- draw


def draw_learning_curves(data: FigureData) -> Drawing:
    """Draw natural accuracy (A), that under PGD-20, PGD-100 and APGD (B), under CW and AA (C)."""
    found, begin = data.extras["curves"], data.facts["burn_in"]
    drawing = Drawing(8.8, 3.1)
    titles = {
        "A  Natural": ["natural"],
        "B  PGD, APGD": ["pgd20", *SINCE_BURN_IN],
        "C  CW, AA" if "aa" in found["at"] else "C  CW": ["cw20", "aa"],
    }
    for panel, (title, names) in zip(drawing.subplots(1, 3), titles.items(), strict=True):
        names = [name for name in names if name in found["at"]]
        _draw_curves(panel, found, names, begin)
        panel.set_title(title, pad=22)
        if len(names) > 1:
            panel.legend(
                [_legend_mark(name) for name in names],
                [
                    f"{CRITERION_LABELS[name]}{', end' if name in _END_MARKS else ''}"
                    for name in names
                ],
                loc="lower left",
                bbox_to_anchor=(0, 0.99),  # inside it would lie over lines
                ncols=len(names),
                fontsize=7,
                handlelength=1.4,
                handletextpad=0.4,
                columnspacing=0.9,
                borderaxespad=0,
            )
    _mark_burn_in(drawing.axes[0], data)
    _name_accuracy(drawing, data)
    return drawing


def draw_learning_curves_each(data: FigureData) -> Drawing:
    """Draw one panel a criterion.

    Where AA is not measured, its place has the differences in the last epoch.
    """
    found, begin = data.extras["curves"], data.facts["burn_in"]
    drawing = Drawing(8.8, 4.8)
    panels = drawing.subplots(2, 3).ravel()
    for panel, (name, words) in zip(panels, CRITERION_LABELS.items(), strict=True):
        if name in found["at"]:
            _draw_curves(panel, found, [name], begin)
            panel.set_title(words)
        else:
            _draw_end_differences(panel, data.facts["difference"])
    for panel in panels[::3]:
        _mark_burn_in(panel, data)
    _name_accuracy(drawing, data)
    return drawing


def _curve_look(name: str) -> dict:
    return {
        "linestyle": _DASHES[name],
        **({"marker": "D", "markersize": 4, "clip_on": False} if name == "aa" else {}),
    }


def _legend_mark(name: str) -> Line2D:
    if name in _END_MARKS:
        return Line2D([], [], color=s.GREY, marker=_END_MARKS[name], linestyle="", markersize=5)
    return Line2D([], [], color=s.GREY, **_curve_look(name))


def _mark_burn_in(panel: Axes, data: FigureData) -> None:
    """Name the epoch in which weights begin, and the black line if there is one."""
    if any(line.get_color() == s.BLACK and np.size(line.get_xdata()) > 1 for line in panel.lines):
        panel.annotate(
            "black: all\nmethods",
            (0.02, 0.98),
            xycoords="axes fraction",
            va="top",
            fontsize=7,
            color=s.BLACK,
        )
    panel.annotate(
        "weights begin",
        (data.facts["burn_in"], 0),
        xycoords=("data", "axes fraction"),
        xytext=(2, 3),
        textcoords="offset points",
        fontsize=7,
        color=s.GREY,
    )


def _name_accuracy(drawing: Drawing, data: FigureData) -> None:
    """Name the y axis of all panels once: it is longer than one of them."""
    seeds = data.facts["seeds"]
    several = f", mean and range of {seeds} seeds" if seeds > 1 else ", one seed"
    drawing.supylabel(f"test accuracy, n = {data.facts['n']}{several}", fontsize=8)


def _draw_curves(panel: Axes, found: Curves, names: Sequence[str], begin: int) -> None:
    """Draw all methods' lines, their names at the ends, black while they are one network."""
    ends: dict[str, float] = {}
    floor = 1.0
    for name in names:
        curves = {method: mine[name] for method, mine in found.items() if name in mine}
        shared = _count_shared_epochs(curves, begin)
        for method, curve in curves.items():
            _draw_curve(panel, method, curve, shared, name, first=name == names[0])
            ends.setdefault(method, float(curve.mean[-1]))
            each = curve.right.mean(axis=2)
            floor = min([floor, *each[np.array(curve.epochs) >= 0.4 * begin].ravel()])
    panel.axvline(begin, color=s.GREY, linewidth=0.8, linestyle=":", zorder=0)
    top = min(panel.dataLim.y1 + 0.04, 1.01)
    # The first epochs' rise would flatten what follows, so the axis begins at the later floor.
    panel.set(
        xlabel="epoch",
        xlim=(1, max(curves["natural"].epochs[-1] for curves in found.values())),
        ylim=(max(floor - 0.25 * (top - floor), 0), top),
    )
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    panel.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    panel.grid(axis="y", linewidth=0.4)
    s.share_axis(panel)
    _name_methods(panel, ends, 8 if _END_MARKS.keys() & names[1:] else 3)


def _count_shared_epochs(curves: Mapping[str, Curve], begin: int) -> int:
    """The number of epochs in burn-in at which all methods are right on the same images."""
    return sum(
        all(np.array_equal(curve.right[i], curves["at"].right[i]) for curve in curves.values())
        for i, epoch in enumerate(curves["at"].epochs)
        if epoch <= begin
    )


def _draw_curve(
    panel: Axes, method: str, curve: Curve, shared: int, name: str, *, first: bool
) -> None:
    """Draw a line, black for the first `shared` epochs, with a band that holds all seeds.

    A criterion that is not the `first` of its panel has no band, or its end alone: lines upon lines
    hide each other.
    """
    if not first and name in _END_MARKS:
        panel.plot(
            curve.epochs[-1:],
            curve.mean[-1:],
            _END_MARKS[name],
            color=s.colour(method),
            markersize=5,
            clip_on=False,
        )
        return
    for part, tint in (
        (slice(0, shared), s.BLACK),
        (slice(max(shared - 1, 0), None), s.colour(method)),
    ):
        epochs = curve.epochs[part]
        panel.plot(epochs, curve.mean[part], color=tint, **_curve_look(name), linewidth=1.6)
        drawn_before = tint == s.BLACK and method != "at"
        if curve.right.shape[1] > 1 and first and not drawn_before:
            each = curve.right.mean(axis=2)[part]
            low, high = each.min(axis=1), each.max(axis=1)
            panel.fill_between(epochs, low, high, color=tint, alpha=0.12, linewidth=0)


def _name_methods(panel: Axes, ends: Mapping[str, float], gap: int) -> None:
    """Write the methods' names right of the panel, `gap` points off, where their lines end."""
    low, high = panel.get_ylim()
    in_order = sorted(ends.items(), key=lambda end: end[1])
    heights = s.spread_labels([end for _, end in in_order], 0.075 * (high - low))
    for (method, _), height in zip(in_order, heights, strict=True):
        panel.annotate(
            s.label(method),
            (1, height),
            xycoords=("axes fraction", "data"),
            xytext=(gap, 0),
            va="center",
            textcoords="offset points",
            color=s.colour(method),
            fontsize=7.5,
        )


def _draw_end_differences(panel: Axes, gaps: Mapping[str, Mapping]) -> None:
    """Draw CLIRAT against its control and MAIL-AT in the last epoch, paired, as the caption has."""
    pairs = ((-0.14, f"clirat - {CONTROL}"), (0.14, "clirat - mail-at"))
    for shift, pair in pairs:
        rows = np.array(list(gaps[pair].values())) * 100
        other = pair.split(" - ")[1]
        panel.errorbar(
            rows[:, 0],
            np.arange(len(rows)) + shift,
            xerr=(rows[:, 2] - rows[:, 0]),
            fmt="o",
            markersize=3.5,
            color=s.colour(other),
            elinewidth=1,
            label=f"minus {s.label(other)}",
        )
    panel.legend(loc="lower center", bbox_to_anchor=(0.45, 0.99), fontsize=7, borderaxespad=0)
    panel.axvline(0, color=s.GREY, linewidth=0.8)
    panel.set(
        yticks=range(len(rows)),
        ylim=(len(rows) - 0.4, -0.6),
        xlabel="points, 95 %",
    )
    panel.set_title("CLIRAT at the end", pad=26)
    panel.set_yticklabels([CRITERION_LABELS[name] for name in gaps[pair]], fontsize=7.5)


# --------------------------------------------------------------------------------- decide, describe


def decide_learning_curves(data: FigureData) -> list[Claim]:
    """Decide the claims of CLIRAT Fig. 3, which are those of Fig. 5, too."""
    return _decide_curves(data.facts)


#: (words, what was printed, the pair compared, under which attacks, the bound, row of claims.csv).
#: "Loses nothing": not more than half a point.
_CURVE_CLAIMS = (
    (
        "CLIRAT ends above MAIL-AT of its own normaliser under PGD and APGD",
        "+1.75, +1.70, +3.13 points in T1",
        f"clirat - {CONTROL}",
        ("pgd20", *SINCE_BURN_IN),
        0.0,
        5,
    ),
    (
        "CLIRAT loses nothing to MAIL-AT of its own normaliser on clean images and under CW",
        "-0.14, -0.06 points in T1",
        f"clirat - {CONTROL}",
        ("natural", "cw20"),
        -0.005,
        7,
    ),
    (
        "CLIRAT loses nothing to MAIL-AT of its own normaliser under AA",
        "-0.97 points in T1",
        f"clirat - {CONTROL}",
        ("aa",),
        -0.005,
        7,
    ),
    (
        "CLIRAT costs no clean accuracy against AT",
        "-2.04 points in T1, though s. 5 says none",
        "clirat - at",
        ("natural",),
        -0.005,
        11,
    ),
)


def _decide_curves(facts: Mapping) -> list[Claim]:
    """A claim on several attacks holds where it holds for each of them."""
    found = []
    for words, printed, pair, names, bound, number in _CURVE_CLAIMS:
        gaps = facts["difference"][pair]
        rows = {name: gaps[name] for name in names if name in gaps}
        here = f"{_name_pair(pair)} {_in_points(rows)}"
        if pair.endswith(CONTROL):
            both = {name: facts["difference"]["clirat - mail-at"][name] for name in rows}
            here += f"; with both criterion and normaliser, CLIRAT - MAIL-AT {_in_points(both)}"
        found.append(
            Claim(
                f"{words} (CLIRAT Fig. 3)",
                printed,
                here if rows else "AA was not run (aa=1)",
                tuple(Estimate(f"{pair}, {n}", f"> {bound}", *row) for n, row in rows.items()),
                number=number,
                seeds=facts["seeds"],
            )
        )
    control = facts["clirat - at after the jump"]
    return [*found, _decide_jump(facts, control["pgd20"])] if control else found


def _name_pair(pair: str) -> str:
    return " - ".join(s.label(method) for method in pair.split(" - "))


def _in_points(rows: Mapping[str, Interval]) -> str:
    return ", ".join(f"{CRITERION_LABELS[name]} {format_points(row)}" for name, row in rows.items())


def _decide_jump(facts: Mapping, control: Interval) -> Claim:
    rise = {method: format_points(facts["jump"][method]["pgd20"]) for method in ("clirat", "at")}
    return Claim(
        "accuracy under PGD jumps as the weights begin, beyond AT's (CLIRAT Fig. 3)",
        "curves, no numbers",
        f"PGD-20: CLIRAT {rise['clirat']}, AT {rise['at']}; CLIRAT - AT after it "
        f"{format_points(control)}",
        (Estimate("clirat - at after the jump", "> 0", *control),),
        seeds=facts["seeds"],
    )


def describe_learning_curves(data: FigureData) -> str:
    """The caption of Fig. 3."""
    return _describe_curves(data, "Fig. 3")


def describe_learning_curves_each(data: FigureData) -> str:
    """The caption of Fig. 5."""
    return _describe_curves(data, "Fig. 5")


def _describe_curves(data: FigureData, place: str) -> str:
    facts, methods = data.facts, data.facts["methods"]
    who = (
        f"{facts['seeds']} seeds"
        if facts["seeds"] > 1
        else "one seed, so intervals are of other images, not of other seeds"
    )
    falls = ", the epoch after which the learning rate falls, too" * data.extras["rate_falls"]
    strongest = (
        f"AA on the last {len(methods['at']['aa']['epochs'])}"
        if "aa" in methods["at"]
        else "AA is not measured"
    )
    like, both = (
        _in_points(facts["difference"][f"clirat - {method}"]) for method in (CONTROL, "mail-at")
    )
    kept = len(methods["clirat"]["natural"]["epochs"])
    return (
        f"CLIRAT {place} claims that CLIRAT ends above MAIL-AT under PGD and APGD and loses "
        f"nothing elsewhere. {data.setting}, {kept} networks along each run, n = {facts['n']} test "
        f"images, {who}. Weights begin after epoch {facts['burn_in']}{falls}. Black: all methods, "
        "while they are one network. PGD-100 and APGD are measured only from there on; "
        f"{strongest}. At the end, in points, CLIRAT less "
        f"{s.label(CONTROL)}, which has the same normaliser: {like}; less MAIL-AT, which has "
        f"another: {both}."
    )


def notice_learning_curves_each(data: FigureData) -> str:
    """Under how many criteria CLIRAT ends clear of its control, and on which side."""
    intervals = data.facts["difference"][f"clirat - {CONTROL}"]
    above = [attack_label(name) for name, (_, low, _) in intervals.items() if low > 0]
    below = [attack_label(name) for name, (_, _, high) in intervals.items() if high < 0]
    return (
        f"CLIRAT ends clearly above {s.label(CONTROL)}, which differs from it in the criterion "
        f"alone, under {', '.join(above) or 'no attack'}. It ends clearly below it under "
        f"{', '.join(below) or 'none'}, of {len(intervals)} criteria."
    )
