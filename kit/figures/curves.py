"""CLIRAT's learning curves: AT, MAIL-AT and CLIRAT along the way, under six criteria."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kit.core.errors import KitError
from kit.core.parameters import Natural, check_value
from kit.evaluation.accuracy import evaluate
from kit.evaluation.statistics import paired_difference
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing
from kit.figures.reading import setting

#: The papers' names of what CLIRAT measures. APGD is APGD on cross-entropy, CW is PGD-20 on the
#: margin loss.
NAMES = {
    "natural": "NAT",
    "pgd20": "PGD-20",
    "pgd100": "PGD-100",
    "apgd-ce": "APGD",
    "cw20": "CW",
    "aa": "AA",
}

#: Asked of the networks since the end of burn-in alone: before it the methods do not differ, and
#: these take longest.
SINCE_BURN_IN = ("pgd100", "apgd-ce")

COMPARED = ("at", "mail-at", "clirat")

_DASHES = {"natural": "-", "pgd20": "-", "pgd100": "--", "apgd-ce": ":", "cw20": "-", "aa": ":"}


@dataclass(frozen=True)
class Curve:
    """Who was right: `right` is (epochs, seeds, images) bool."""

    epochs: list[int]
    right: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        return self.right.mean(axis=(1, 2))

    def at(self, epoch: int) -> np.ndarray:
        """(seeds, images)"""
        return self.right[self.epochs.index(epoch)]


# --------------------------------------------------------------------------------- what is measured


def by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """{method:

    its runs by seed}, AT, MAIL-AT and CLIRAT first. `KitError` where one is missing, or they do not
    match.
    """
    groups: dict[str, list[Run]] = {method: [] for method in COMPARED}
    for run in sorted(runs, key=lambda run: run.spec.seed):
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


def kept_by(run: Run, runs: Sequence[Run]) -> dict[int, Run]:
    """{epoch: a run that kept this run's network of that epoch}. Runs that differ in their weights
    alone are one network until burn-in ends, so that is evaluated once.
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


def measured(runs: Sequence[Run], n: int, aa: int) -> dict[str, dict[str, Curve]]:
    """{method:

    {attack: Curve}} on the first n test images; AutoAttack for the last `aa` epochs that were kept.
    """
    check_value("aa", aa, Natural)
    if check_value("n", n, Natural) == 1:
        raise KitError(
            "n=1 leaves no spread to compare; it must be at least 2, or 0 for all test images"
        )
    groups = by_method(runs)
    begin = weights_begin(runs)
    found: dict[str, dict[str, Curve]] = {}
    for method, mine in groups.items():
        kept = [kept_by(run, runs) for run in mine]
        epochs = sorted(set.intersection(*map(set, kept)))
        since = [epoch for epoch in epochs if epoch >= begin]
        late = dict.fromkeys(SINCE_BURN_IN, since) | {"aa": epochs[-aa:] if aa else []}
        found[method] = {
            name: Curve(
                wanted,
                np.stack(
                    [
                        [right(keepers[epoch], epoch, name, n) for keepers in kept]
                        for epoch in wanted
                    ]
                ),
            )
            for name in NAMES
            if (wanted := late.get(name, epochs))
        }
    return found


def weights_begin(runs: Sequence[Run]) -> int:
    """The last epoch of CLIRAT's burn-in."""
    return next(run.plan.burn_in for run in runs if run.method == "clirat")


def right(run: Run, which: str | int, attack: str, n: int) -> np.ndarray:
    """(n,) which of the first n test images one of a run's networks gets right under an attack."""
    return ~evaluate(run, [attack], n=n, which=which, quiet=True).attrs["examples"][attack][
        "broken"
    ]


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """(accuracy of b minus that of a, low, high), 95 %, of `right` (seeds, images) on the same
    images and seeds.

    One seed: of these two networks on other images. Several: of other seeds and images, as
    `kit.evaluation.statistics.grand_mean`.
    """
    if len(a) == 1:
        return paired_difference(~a[0], ~b[0])
    d = b.astype(float) - a
    half = 1.959964 * math.sqrt(
        d.mean(axis=1).var(ddof=1) / d.shape[0] + d.mean(axis=0).var(ddof=1) / d.shape[1]
    )
    return float(d.mean()), float(d.mean() - half), float(d.mean() + half)


# ------------------------------------------------------------------------------ the learning curves


def learning_curves(runs: Sequence[Run], *, n: int = 100, aa: int = 0) -> Drawing:
    """Accuracy over epochs: natural (A), under PGD-20, PGD-100 and APGD (B), under CW and AA (C).

    n: the first n test images, 0 for all; aa: how many of the last networks AutoAttack sees.
    """
    found = measured(runs, n, aa)
    drawing = Drawing(7.8, 3.1)
    titles = {
        "A  Natural": ["natural"],
        "B  PGD, APGD": ["pgd20", *SINCE_BURN_IN],
        f"C  CW{', AA' * bool(aa)}": ["cw20", "aa"],
    }
    for panel, (title, names) in zip(drawing.subplots(1, 3), titles.items(), strict=True):
        names = [name for name in names if name in found["at"]]
        _draw(panel, found, names, weights_begin(runs))
        panel.set_title(title)
        if len(names) > 1:
            panel.legend(
                [Line2D([], [], color=s.GREY, **_look(name)) for name in names],
                [NAMES[name] for name in names],
                loc="lower right",
                fontsize=7.5,
                handlelength=2.6,
            )
    _mark(drawing.axes[0], weights_begin(runs))
    return _told(drawing, found, runs, "Fig. 3")


def learning_curves_each(runs: Sequence[Run], *, n: int = 100, aa: int = 0) -> Drawing:
    """The same, one panel per criterion.

    Where AA is not asked, its place has the differences in the last epoch.
    """
    found = measured(runs, n, aa)
    drawing = Drawing(7.8, 4.8)
    panels = drawing.subplots(2, 3).ravel()
    for panel, name in zip(panels, NAMES, strict=True):
        if name in found["at"]:
            _draw(panel, found, [name], weights_begin(runs))
            panel.set_title(NAMES[name])
        else:
            _ends(panel, gaps_of(found))
    for panel in panels[::3]:
        _mark(panel, weights_begin(runs))
    return _told(drawing, found, runs, "Fig. 5")


def _look(name: str) -> dict:
    return {
        "linestyle": _DASHES[name],
        **({"marker": "D", "markersize": 4, "clip_on": False} if name == "aa" else {}),
    }


def _mark(panel: Axes, begin: int) -> None:
    panel.set_ylabel("test accuracy")
    panel.annotate(
        "weights begin",
        (begin, 0),
        xycoords=("data", "axes fraction"),
        xytext=(2, 3),
        textcoords="offset points",
        fontsize=7,
        color=s.GREY,
    )


def _draw(
    panel: Axes, found: Mapping[str, Mapping[str, Curve]], names: Sequence[str], begin: int
) -> None:
    """Lines of all methods, black while they are one network, their names at the ends. With several
    seeds a thin line each for the first criterion.
    """
    ends, floor = {}, 1.0
    for name in names:
        curves = {method: mine[name] for method, mine in found.items() if name in mine}
        together = sum(
            all(np.array_equal(curve.right[i], curves["at"].right[i]) for curve in curves.values())
            for i, epoch in enumerate(curves["at"].epochs)
            if epoch <= begin
        )
        for method, curve in curves.items():
            for part, tint in (
                (slice(0, together), s.BLACK),
                (slice(max(together - 1, 0), None), s.colour(method)),
            ):
                panel.plot(
                    curve.epochs[part], curve.mean[part], color=tint, **_look(name), linewidth=1.6
                )
                if curve.right.shape[1] > 1 and name == names[0]:
                    panel.plot(
                        curve.epochs[part],
                        curve.right.mean(axis=2)[part],
                        color=tint,
                        linewidth=0.6,
                        alpha=0.4,
                    )
            ends.setdefault(method, float(curve.mean[-1]))
            floor = min(
                [floor, *curve.right.mean(axis=2)[np.array(curve.epochs) >= 0.4 * begin].ravel()]
            )
    panel.axvline(begin, color=s.GREY, linewidth=0.8, linestyle=":", zorder=0)
    top = min(panel.dataLim.y1 + 0.04, 1.01)
    panel.set(
        xlabel="epoch",
        xlim=(1, max(curves["natural"].epochs[-1] for curves in found.values())),
        ylim=(max(floor - 0.25 * (top - floor), 0), top),
    )  # the first epochs' rise would flatten what follows
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    panel.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    panel.grid(axis="y", linewidth=0.4)
    s.share_axis(panel)
    low, high = panel.get_ylim()
    for (method, _), height in zip(
        sorted(ends.items(), key=lambda end: end[1]),
        apart(sorted(ends.values()), 0.075 * (high - low)),
        strict=True,
    ):
        panel.annotate(
            s.label(method),
            (1, height),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            va="center",
            textcoords="offset points",
            color=s.colour(method),
            fontsize=7.5,
        )


def _ends(panel: Axes, gaps: Mapping[str, Mapping]) -> None:
    """CLIRAT against MAIL-AT and AT in the last epoch, paired."""
    for shift, place, pair in ((-0.14, "right", "clirat - mail-at"), (0.14, "left", "clirat - at")):
        rows = np.array(list(gaps[pair].values())) * 100
        tint, words = s.colour(pair.split(" - ")[1]), f"above {s.label(pair.split(' - ')[1])}"
        panel.errorbar(
            rows[:, 0],
            np.arange(len(rows)) + shift,
            xerr=(rows[:, 2] - rows[:, 0]),
            fmt="o",
            markersize=3.5,
            color=tint,
            elinewidth=1,
        )
        panel.annotate(
            words,
            (0.02 if place == "left" else 0.98, 0.02),
            xycoords="axes fraction",
            ha=place,
            color=tint,
            fontsize=7.5,
        )
    panel.axvline(0, color=s.GREY, linewidth=0.8)
    panel.set(
        yticks=range(len(rows)),
        ylim=(len(rows) + 0.3, -0.6),
        xlabel="points, 95 %",
        title="CLIRAT at the end",
    )
    panel.set_yticklabels([NAMES[name] for name in gaps[pair]], fontsize=7.5)


def gaps_of(
    found: Mapping[str, Mapping[str, Curve]],
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """{"clirat - mail-at": {attack: difference in the last epoch}} of the three methods."""
    ends = {
        method: {name: curve.right[-1] for name, curve in curves.items()}
        for method, curves in found.items()
    }
    return {
        f"{b} - {a}": {
            name: difference(ends[a][name], ends[b][name]) for name in ends[a] if name in ends[b]
        }
        for a, b in (("mail-at", "clirat"), ("at", "clirat"), ("at", "mail-at"))
    }


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Sorted heights, moved as little as keeps neighbours `gap` apart:

    those that touch become a stack round their mean.
    """
    stacks: list[list[float]] = []
    for height in heights:
        stacks.append([height])
        while (
            len(stacks) > 1
            and _middle(stacks[-1]) - _middle(stacks[-2])
            < gap * (len(stacks[-1]) + len(stacks[-2])) / 2
        ):
            stacks[-2:] = [stacks[-2] + stacks[-1]]
    return [
        _middle(stack) + gap * (i - (len(stack) - 1) / 2)
        for stack in stacks
        for i in range(len(stack))
    ]


def _middle(stack: list[float]) -> float:
    return sum(stack) / len(stack)


def _told(
    drawing: Drawing, found: Mapping[str, Mapping[str, Curve]], runs: Sequence[Run], place: str
) -> Drawing:
    """Facts, claims and caption, the same for both pictures."""
    begin, last = (
        weights_begin(runs),
        {method: curves["natural"].epochs[-1] for method, curves in found.items()},
    )
    after = next((epoch for epoch in found["clirat"]["natural"].epochs if epoch > begin), None)
    gaps, everywhere = gaps_of(found), ("natural", "pgd20", "cw20")
    jumps = {
        method: {
            name: difference(curves[name].at(begin), curves[name].at(after)) for name in everywhere
        }
        for method, curves in found.items()
        if {begin, after} <= set(curves["natural"].epochs)
    }
    control = {
        name: difference(found["at"][name].at(after), found["clirat"][name].at(after))
        for name in everywhere
        if {"at", "clirat"} <= set(jumps)
    }
    _, seeds, n = found["at"]["natural"].right.shape
    drawing.facts = {
        "n": n,
        "seeds": seeds,
        "burn_in": begin,
        "last_epoch": last,
        "difference": gaps,
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
    drawing.claims = _claims(gaps, jumps, control, place)
    who = (
        f"{seeds} seeds"
        if seeds > 1
        else "one seed, so intervals are of other images, not of other seeds"
    )
    falls = (
        ", the epoch after which the learning rate falls, too"
        if begin in runs[0].plan.recipe.milestones
        else ""
    )
    asked = (
        f", AA of the last {len(found['at']['aa'].epochs)}"
        if "aa" in found["at"]
        else ", AA of none"
    )
    words = ", ".join(
        f"{NAMES[name]} {_points(*d)}" for name, d in gaps["clirat - mail-at"].items()
    )
    kept = len(found["clirat"]["natural"].epochs)
    drawing.caption = (
        f"CLIRAT {place} claims that CLIRAT ends above MAIL-AT under PGD and APGD and loses "
        f"nothing elsewhere. "
        f"{setting(runs[0]).rsplit(', seed', 1)[0]}, {kept} networks along each run, n = {n} test "
        f"images, {who}. Weights "
        f"begin after epoch {begin}{falls}. PGD-100 and APGD are asked of the networks from there "
        f"on{asked}. "
        f"CLIRAT - MAIL-AT at the end, in points: {words}."
    )
    return drawing


def _points(d: float, low: float, high: float) -> str:
    return f"{100 * d:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _claims(
    gaps: Mapping[str, Mapping], jumps: Mapping[str, Mapping], control: Mapping, place: str
) -> list[Claim]:
    """A claim on several attacks holds where it holds for each of them.

    "Loses nothing": not more than half a point.
    """

    def claim(words: str, printed: str, pair: str, names: Sequence[str], bound: float) -> Claim:
        rows = {name: gaps[pair][name] for name in names if name in gaps[pair]}
        here = ", ".join(f"{NAMES[name]} {_points(*row)}" for name, row in rows.items())
        return Claim(
            f"{words} (CLIRAT {place})",
            printed,
            here or "AA was not asked for: aa=1",
            holds=bool(rows) and all(low > bound for _, low, _ in rows.values()),
            fails=any(high < bound for _, _, high in rows.values()),
        )

    pair, half = "clirat - mail-at", -0.005
    found = [
        claim(
            "CLIRAT ends above MAIL-AT under PGD and APGD",
            "+1.75, +1.70, +3.13 points in T1",
            pair,
            ("pgd20", *SINCE_BURN_IN),
            0.0,
        ),
        claim(
            "CLIRAT loses nothing to MAIL-AT on clean images and under CW",
            "-0.14, -0.06 points in T1",
            pair,
            ("natural", "cw20"),
            half,
        ),
        claim(
            "CLIRAT loses nothing to MAIL-AT under AA", "-0.97 points in T1", pair, ("aa",), half
        ),
        claim(
            "CLIRAT costs no clean accuracy against AT",
            "-2.04 points in T1, though s. 5 says none",
            "clirat - at",
            ("natural",),
            half,
        ),
    ]
    if control:
        _, low, high = control["pgd20"]
        rise = {method: _points(*jumps[method]["pgd20"]) for method in ("clirat", "at")}
        found.append(
            Claim(
                f"accuracy under PGD jumps as the weights begin, beyond AT's (CLIRAT {place})",
                "curves, no numbers",
                f"PGD-20: CLIRAT {rise['clirat']}, AT {rise['at']}; CLIRAT - AT after it "
                f"{_points(*control['pgd20'])}",
                holds=low > 0,
                fails=high < 0,
            )
        )
    return found
