"""CLIRAT Fig. 4: what gamma and beta do to each accuracy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from kit.core.errors import KitError
from kit.evaluation.result_tables import count_seeds
from kit.evaluation.statistics import grand_difference, grand_mean, rank_trend, spearman_interval
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData
from kit.figures.run_outputs import CRITERION_LABELS, describe_setting, right_under_attack
from kit.methods.table import METHODS
from kit.papers.claim_verdict import Estimate

WEIGHT_SETTINGS = ("weight.slope", "weight.bias")

_LETTERS = {"weight.slope": "γ", "weight.bias": "β"}


def compute_slope_and_offset(
    runs: Sequence[Run], *, attacks: str = "natural pgd20 pgd100 apgd-ce cw20", n: int = 0
) -> FigureData:
    """Accuracy in the last epoch over gamma (weight.slope) and beta (weight.bias).

    attacks: names of kit.ATTACKS, natural among them; add aa for AutoAttack. n: the first n test
    images, 0 for all.
    """
    names = attacks.split()
    known = set(names) <= set(CRITERION_LABELS)
    if "natural" not in names or not known or len(set(names)) < len(names):
        raise KitError(
            f"attacks={attacks!r} must name natural and others, each once. Choices: "
            f"{', '.join(CRITERION_LABELS)}"
        )
    series, own = group_by_setting(runs), METHODS[runs[0].method].hyper_parameters()
    facts: dict = {
        path: {
            "values": list(values),
            "held": held,
            "criteria": {name: _measure_trend(values, own[path], name, n) for name in names},
        }
        for path, (values, held) in series.items()
    }
    first = next(iter(series["weight.slope"][0].values()))
    facts["n"] = len(right_under_attack(first[0], "last", "natural", n))
    facts["seeds"] = len(first)
    return FigureData(facts, describe_setting(first[0], seed=False), extras={"names": names})


def group_by_setting(runs: Sequence[Run]) -> dict[str, tuple[dict[float, list[Run]], float]]:
    """{setting: ({value: its runs by seed}, value of the other setting)}.

    Where both vary, the other's commonest value is held.

    Raises:
        KitError: for several methods, a method without gamma and beta, runs that differ in more
            than these, or seeds that some values lack.
    """
    runs = sorted({run.key: run for run in runs}.values(), key=lambda run: run.spec.seed)
    points = [run.plan.method.hyper_parameters() for run in runs]
    if (
        any(path not in point for point in points for path in WEIGHT_SETTINGS)
        or len({run.method for run in runs}) > 1
    ):
        raise KitError(
            f"γ and β need runs of one method with {' and '.join(WEIGHT_SETTINGS)}, such as clirat "
            f"or mail-at, not of {', '.join(dict.fromkeys(run.method for run in runs))}"
        )
    rest = [
        {path: value for path, value in point.items() if path not in WEIGHT_SETTINGS}
        for point in points
    ]
    if any(
        (run.plan.recipe, run.plan.burn_in, mine)
        != (runs[0].plan.recipe, runs[0].plan.burn_in, rest[0])
        for run, mine in zip(runs, rest, strict=True)
    ):
        raise KitError(
            "these runs differ in more than γ and β; give runs of one recipe with the same other "
            "overrides"
        )
    found = {}
    for path, other in (WEIGHT_SETTINGS, WEIGHT_SETTINGS[::-1]):
        usual = METHODS[runs[0].method].hyper_parameters()[other]
        held = _commonest([point[other] for point in points], usual)
        values: dict[float, list[Run]] = {}
        for run, point in zip(runs, points, strict=True):
            if point[other] == held:
                values.setdefault(point[path], []).append(run)
        found[path] = (dict(sorted(values.items())), held)
        _check_same_seeds(path, found[path][0])
    return found


def _commonest(values: Sequence[float], usual: float) -> float:
    """The value that occurs most often; of equals `usual`."""
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], value == usual))


def _check_same_seeds(path: str, values: Mapping[float, list[Run]]) -> None:
    seeds = {value: [run.spec.seed for run in mine] for value, mine in values.items()}
    if len({tuple(mine) for mine in seeds.values()}) > 1:
        raise KitError(
            f"every value of {path} needs the same seeds, but "
            + "; ".join(
                f"{value:g} has {' '.join(map(str, mine))}" for value, mine in seeds.items()
            )
        )


def _measure_trend(values: Mapping[float, list[Run]], usual: float, name: str, n: int) -> dict:
    """Accuracy at each value with its interval, and its rank correlation with the value.

    Differences are paired, to the value nearest `usual`.
    """
    found = [
        np.stack([right_under_attack(run, "last", name, n) for run in mine])
        for mine in values.values()
    ]
    reference = min(range(len(found)), key=lambda i: abs(list(values)[i] - usual))
    means = [grand_mean(mine) for mine in found]
    rho, p = rank_trend(np.array(list(values)), np.stack([mine.mean(axis=1) for mine in found]))
    return {
        "accuracy": [mean for mean, _, _ in means],
        "interval": [[low, high] for _, low, high in means],
        "difference": [grand_difference(found[reference], mine) for mine in found],
        "reference": reference,
        "spearman": rho,
        "p": p,
    }


def draw_slope_and_offset(data: FigureData) -> Drawing:
    """Draw a panel per criterion, gamma above and beta below."""
    names = data.extras["names"]
    drawing = Drawing(7.8, 4.2)
    rows = drawing.subplots(2, len(names), sharey="col", squeeze=False)
    for axes, path, other in zip(rows, WEIGHT_SETTINGS, WEIGHT_SETTINGS[::-1], strict=True):
        fact = data.facts[path]
        for panel, trend in zip(axes, fact["criteria"].values(), strict=True):
            _draw_trend(panel, fact["values"], trend)
            rho = (
                "no ρ"
                if trend["spearman"] is None
                else f"ρ {trend['spearman']:+.2f}, p {trend['p']:.2g}"
            )
            panel.set_title(rho, fontsize=8, fontweight="normal")
            panel.set_xlabel(f"{_LETTERS[path]}  ({_LETTERS[other]} = {fact['held']:g})")
        axes[0].set_ylabel(f"test accuracy, n = {data.facts['n']}")
    for panel, name in zip(rows[0], names, strict=True):
        panel.annotate(
            CRITERION_LABELS[name],
            (0, 1),
            xycoords="axes fraction",
            xytext=(0, 20),
            textcoords="offset points",
            fontweight="bold",
        )
    _equal_spans(rows.T)
    seeds = data.facts["seeds"]
    several = f"means of {seeds} seeds" if seeds > 1 else "one seed"
    drawing.supxlabel(
        f"{several}; bars: paired 95 % intervals against the white mark",
        fontsize=8,
        color=s.SMALL_PRINT,
    )
    return drawing


def _draw_trend(panel: Axes, xs: Sequence[float], trend: Mapping) -> None:
    """Draw one criterion over one setting; bars are paired, so the reference has none."""
    y, reference = np.array(trend["accuracy"]), trend["reference"]
    half = np.array([high - d for d, _, high in trend["difference"]])
    half[reference] = np.nan  # its difference to itself is 0
    panel.errorbar(
        xs,
        y,
        half,
        color=s.BLUE,
        marker="o",
        markersize=4,
        linewidth=1.2,
        elinewidth=0.8,
        capsize=2,
    )
    panel.plot(
        xs[reference],
        y[reference],
        "o",
        color="white",
        markeredgecolor=s.BLUE,
        markersize=5,
        zorder=5,
    )
    panel.grid(axis="y", linewidth=0.4)
    panel.margins(x=0.15)
    panel.set_xticks(sorted({xs[0], xs[reference], xs[-1]}))
    s.share_axis(panel)


def _equal_spans(columns: np.ndarray) -> None:
    """Make all columns as high as the one that varies most; none goes far above 100 %."""
    limits = [column[0].get_ylim() for column in columns]
    span = max(high - low for low, high in limits)
    for column, (low, high) in zip(columns, limits, strict=True):
        top = min((low + high + span) / 2, 1.01)
        column[0].set_ylim(top - span, top)


def decide_slope_and_offset(data: FigureData) -> list[Claim]:
    """Decide for gamma and for beta whether PGD goes one way and the others go the other."""
    return [
        decide_opposite_trends(data.facts[path], letter, data.facts["seeds"])
        for path, letter in _LETTERS.items()
    ]


def decide_opposite_trends(held: Mapping, symbol: str, seeds: int) -> Claim:
    """Decide whether the trends of PGD-20, PGD-100 are opposite to those of NAT, CW, AA."""
    trends, count = held["criteria"], len(held["values"])
    products = [
        _opposite(trends, a, b, count * seeds)
        for a in ("pgd20", "pgd100")
        for b in ("natural", "cw20", "aa")
        if {a, b} <= set(trends)
    ]
    words = ", ".join(
        f"{CRITERION_LABELS[name]} "
        + ("none" if t["spearman"] is None else f"{t['spearman']:+.2f} (p {t['p']:.2g})")
        for name, t in trends.items()
    )
    few = (
        ""
        if 2 / math.factorial(count) ** seeds <= 0.05
        else "; so few networks cannot reach p 0.05"
    )
    return Claim(
        f"{symbol} moves accuracy under PGD one way, on clean images and under CW, AA the other "
        "(CLIRAT Fig. 4)",
        "curves, no numbers",
        f"ρ over {count} values, {count_seeds(seeds)}: {words}{few}",
        tuple(products),
        number=13,
        seeds=seeds,
    )


def _opposite(trends: Mapping, a: str, b: str, n: int) -> Estimate:
    """The product of two trends over n networks; where they are opposite it is below 0.

    Its interval is the widest product of the two correlations' own (see `spearman_interval`).
    """
    (of_a, *ends_a), (of_b, *ends_b) = (
        spearman_interval(trends[name]["spearman"], n) for name in (a, b)
    )
    products = [x * y for x in ends_a for y in ends_b]
    return Estimate(f"ρ of {a} x ρ of {b}", "< 0", of_a * of_b, min(products), max(products))


def _find_mark(held: Mapping) -> float:
    """The value that the others are compared with: the method's own, or that nearest to it."""
    return held["values"][next(iter(held["criteria"].values()))["reference"]]


def describe_slope_and_offset(data: FigureData) -> str:
    """The caption: what the bars, the marks and ρ are."""
    facts = data.facts
    marks = ", ".join(f"{_LETTERS[path]} = {_find_mark(facts[path]):g}" for path in WEIGHT_SETTINGS)
    return (
        "CLIRAT Fig. 4 claims that suitable γ and β raise accuracy under PGD while clean accuracy, "
        f"CW and AA tend to fall. {data.setting}, {count_seeds(facts['seeds'])}, "
        f"n = {facts['n']} test images, last epoch. Bars: 95 % of the paired difference to the "
        f"open mark ({marks}), which has none. All columns span as many points. ρ: Spearman's rank "
        "correlation over runs; p by shuffling the values within each seed, so that the noise of "
        "training counts."
    )
