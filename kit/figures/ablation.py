"""CLIRAT's ablation: what gamma and beta do to each accuracy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from kit.core.errors import KitError
from kit.evaluation.statistics import grand_mean
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing
from kit.figures.curves import NAMES, difference, right
from kit.figures.reading import setting
from kit.methods.table import METHODS

#: What the claim sets against each other: PGD in blue, clean images and the attacks on margins in
#: red.
_TINTS = dict.fromkeys(("pgd20", "pgd100"), s.BLUE) | dict.fromkeys(
    ("natural", "cw20", "aa"), s.VERMILLION
)

_PERMUTATIONS = 4999


def slope_and_offset(
    runs: Sequence[Run], *, attacks: str = "natural pgd20 pgd100 apgd-ce cw20", n: int = 0
) -> Drawing:
    """Accuracy in the last epoch over gamma (weight.slope) and beta (weight.bias), a panel per
    criterion.

    attacks: names of kit.ATTACKS, natural among them; add aa for AutoAttack. n: the first n test
    images, 0 for all.
    """
    names = attacks.split()
    if "natural" not in names or not set(names) <= set(NAMES) or len(set(names)) < len(names):
        raise KitError(
            f"attacks={attacks!r} must name natural and others, each once. Choices: "
            f"{', '.join(NAMES)}"
        )
    series, own = over(runs), METHODS[runs[0].method].hyper_parameters()
    drawing = Drawing(7.8, 4.2)
    rows = drawing.subplots(2, len(names), sharey="col", squeeze=False)
    facts: dict = {}
    for axes, (path, symbol, other) in zip(
        rows, (("weight.slope", "γ", "β"), ("weight.bias", "β", "γ")), strict=True
    ):
        values, held = series[path]
        facts[path] = {
            "values": list(values),
            "held": held,
            "criteria": {name: _trend(values, own[path], name, n) for name in names},
        }
        for panel, (name, trend) in zip(axes, facts[path]["criteria"].items(), strict=True):
            _over(panel, list(values), trend, _TINTS.get(name, s.GREY))
            rho = (
                "no ρ"
                if trend["spearman"] is None
                else f"ρ {trend['spearman']:+.2f}, p {trend['p']:.2g}"
            )
            panel.set_title(rho, fontsize=8, fontweight="normal")
            panel.set_xlabel(f"{symbol}  ({other} = {held:g})")
        axes[0].set_ylabel("test accuracy")
    for panel, name in zip(rows[0], names, strict=True):
        panel.annotate(
            NAMES[name],
            (0, 1),
            xycoords="axes fraction",
            xytext=(0, 20),
            textcoords="offset points",
            fontweight="bold",
        )
    _equal_spans(rows.T)
    first = next(iter(series["weight.slope"][0].values()))
    seeds, n = len(first), len(right(first[0], "last", "natural", n))
    drawing.claims = [
        _opposite(facts["weight.slope"], "γ", seeds),
        _opposite(facts["weight.bias"], "β", seeds),
    ]
    drawing.facts = facts | {"n": n, "seeds": seeds}
    drawing.caption = (
        "CLIRAT Fig. 4 claims that suitable γ and β raise accuracy under PGD while clean accuracy, "
        "CW and AA tend to fall. "
        f"{setting(first[0]).rsplit(', seed', 1)[0]}, {seeds} seed(s), n = {n} test images, last "
        f"epoch. Bars: 95 % of the "
        f"paired difference to the open mark (γ = {own['weight.slope']:g}, β = "
        f"{own['weight.bias']:g}, or what is nearest). "
        "All columns span as many points. ρ: Spearman's rank correlation over runs; p by shuffling "
        "the values within each "
        "seed, so that the noise of training counts."
    )
    return drawing


def over(runs: Sequence[Run]) -> dict[str, tuple[dict[float, list[Run]], float]]:
    """{setting: ({value: its runs by seed}, value of the other)}: where both vary, the other's
    commonest value is held.

    Errors: `KitError` for several methods, a method without gamma and beta, runs that differ in
    more than these, or seeds that some values lack.
    """
    runs = sorted({run.key: run for run in runs}.values(), key=lambda run: run.spec.seed)
    points = [run.plan.method.hyper_parameters() for run in runs]
    paths = ("weight.slope", "weight.bias")
    if (
        any(path not in point for point in points for path in paths)
        or len({run.method for run in runs}) > 1
    ):
        raise KitError(
            f"γ and β need runs of one method with {' and '.join(paths)}, such as clirat or "
            f"mail-at, not of "
            f"{', '.join(dict.fromkeys(run.method for run in runs))}"
        )
    rest = [{path: value for path, value in point.items() if path not in paths} for point in points]
    if any(
        (run.plan.recipe, run.plan.burn_in, mine)
        != (runs[0].plan.recipe, runs[0].plan.burn_in, rest[0])
        for run, mine in zip(runs, rest, strict=True)
    ):
        raise KitError(
            "these runs differ in more than γ and β; give runs of one recipe with the same other "
            "overrides"
        )
    own, found = METHODS[runs[0].method].hyper_parameters(), {}
    for path, other in (paths, paths[::-1]):
        counts = Counter(point[other] for point in points)
        held = max(counts, key=lambda value: (counts[value], value == own[other]))
        values: dict[float, list[Run]] = {}
        for run, point in zip(runs, points, strict=True):
            if point[other] == held:
                values.setdefault(point[path], []).append(run)
        seeds = {value: [run.spec.seed for run in mine] for value, mine in sorted(values.items())}
        if len({tuple(mine) for mine in seeds.values()}) > 1:
            raise KitError(
                f"every value of {path} needs the same seeds, but "
                + "; ".join(
                    f"{value:g} has {' '.join(map(str, mine))}" for value, mine in seeds.items()
                )
            )
        found[path] = (dict(sorted(values.items())), held)
    return found


def _trend(values: Mapping[float, list[Run]], usual: float, name: str, n: int) -> dict:
    """Accuracy at each value with its interval, the paired difference to the value nearest `usual`,
    and rank correlation.
    """
    found = [np.stack([right(run, "last", name, n) for run in mine]) for mine in values.values()]
    reference = min(range(len(found)), key=lambda i: abs(list(values)[i] - usual))
    means = [grand_mean(mine) for mine in found]
    rho, p = rank_trend(np.array(list(values)), np.stack([mine.mean(axis=1) for mine in found]))
    return {
        "accuracy": [mean for mean, _, _ in means],
        "interval": [[low, high] for _, low, high in means],
        "difference": [difference(found[reference], mine) for mine in found],
        "reference": reference,
        "spearman": rho,
        "p": p,
    }


def rank_trend(x: np.ndarray, accuracy: np.ndarray) -> tuple[float | None, float]:
    """(Spearman's ρ of x (values,) and accuracy (values, seeds) less each seed's mean, p of a
    two-sided permutation test that shuffles each seed's values). Networks are shuffled, not images,
    so the noise of training counts. (None, 1) for fewer than three values or accuracies that are
    all equal.
    """
    centred = np.round(accuracy - accuracy.mean(axis=0), 9)
    if len(x) < 3 or np.ptp(centred) == 0:
        return None, 1.0
    ranks = stats.rankdata(centred).reshape(centred.shape)
    rho = float(stats.spearmanr(np.repeat(x, centred.shape[1]), centred.ravel()).statistic)
    away = stats.rankdata(x) - (len(x) + 1) / 2
    shuffled = np.random.default_rng(0).permuted(
        np.broadcast_to(ranks, (_PERMUTATIONS, *ranks.shape)), axis=1
    )
    there, here = (
        np.abs(np.einsum("v,pvs->p", away, shuffled)),
        abs(float(away @ ranks.sum(axis=1))),
    )
    return rho, float((1 + (there >= here - 1e-9).sum()) / (1 + _PERMUTATIONS))


def _over(panel: Axes, xs: Sequence[float], trend: Mapping, tint: str) -> None:
    """One criterion over one setting; bars are paired, so the value compared with has none."""
    y, reference = np.array(trend["accuracy"]), trend["reference"]
    half = np.array([high - d for d, _, high in trend["difference"]])
    panel.errorbar(
        xs, y, half, color=tint, marker="o", markersize=4, linewidth=1.2, elinewidth=0.8, capsize=2
    )
    panel.plot(
        xs[reference],
        y[reference],
        "o",
        color="white",
        markeredgecolor=tint,
        markersize=5,
        zorder=5,
    )
    panel.grid(axis="y", linewidth=0.4)
    panel.margins(x=0.15)
    panel.set_xticks(sorted({xs[0], xs[reference], xs[-1]}))
    s.share_axis(panel)


def _equal_spans(columns: Sequence[Sequence[Axes]]) -> None:
    """Every column as many points high as the one that varies most; none goes far above 100 %."""
    limits = [column[0].get_ylim() for column in columns]
    span = max(high - low for low, high in limits)
    for column, (low, high) in zip(columns, limits, strict=True):
        top = min((low + high + span) / 2, 1.01)
        column[0].set_ylim(top - span, top)


def _opposite(held: Mapping, symbol: str, seeds: int) -> Claim:
    """PGD-20 and PGD-100 against NAT, CW and AA:

    every pair of opposite signs, each beyond chance.
    """
    trends, count = held["criteria"], len(held["values"])
    signs = {
        name: np.sign(trend["spearman"]) if trend["p"] <= 0.05 else 0
        for name, trend in trends.items()
    }
    products = [
        signs[a] * signs[b]
        for a in ("pgd20", "pgd100")
        for b in ("natural", "cw20", "aa")
        if {a, b} <= set(signs)
    ]
    words = ", ".join(
        f"{NAMES[name]} "
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
        f"(CLIRAT Fig. 4)",
        "curves, no numbers",
        f"ρ over {count} values, {seeds} seed(s): {words}{few}",
        holds=bool(products) and all(product < 0 for product in products),
        fails=any(product > 0 for product in products),
    )
