"""CSA/CSE Figs. 3 and 4: does training push parameters to the extremes (Min-Max)?"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from kit.core.errors import KitError, unknown_name
from kit.evaluation.statistics import share_with_interval
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData
from kit.figures.run_outputs import describe_setting
from kit.methods.regularisers import conv_weights
from kit.methods.table import METHODS
from kit.papers.claim_verdict import Estimate, exactly


def compute_parameters(runs: Mapping[str, Run], *, layer: int = 0) -> FigureData:
    """Sizes of one convolution's parameters in each network, and where they rise in order.

    `layer` counts convolutions from the input. The order is that of `runs`; it is looked at in the
    tenth of positions where the first network's parameters are largest. Adopted networks are
    measured beside the methods, and have no part in the order.

    Raises:
        KitError: The convolution is of another size in another network.
    """
    values = {method: layer_weights(run, layer)[1] for method, run in runs.items()}
    _check_sizes(values, layer)
    first = next(iter(runs.values()))
    shapes = {method: measure_shape(v) for method, v in values.items()}
    methods = {method: shape for method, shape in shapes.items() if method in METHODS}
    order = np.argsort(-np.abs(next(iter(values.values()))))
    top = order[: max(1, len(order) // 10)]
    rising = np.ones(len(top), dtype=bool)
    for lower, upper in pairwise([values[method] for method in methods]):
        rising &= np.abs(lower)[top] < np.abs(upper)[top]
    counted = share_with_interval(rising)
    low, *_, high = methods.values()
    facts = {
        "layer": layer_weights(first, layer)[0],
        "methods": methods,
        "beside": {method: shape for method, shape in shapes.items() if method not in methods},
        "near_zero_ratio": _ratio(high["below_0.05"], low["below_0.05"]),
        "max_ratio": _ratio(high["max"], low["max"]),
        "order_in_top_tenth": {name: counted[name] for name in ("share", "low", "high", "n")},
    }
    initial = None if first.is_adopted else layer_weights(first, layer, "initial")[1]
    extras = {"values": values, "order": order, "layer": layer, "initial": initial}
    return FigureData(facts, describe_setting(first), extras=extras)


def _check_sizes(values: Mapping[str, np.ndarray], layer: int) -> None:
    """Refuse networks whose parameters cannot be set side by side, position by position."""
    if len({len(v) for v in values.values()}) > 1:
        found = ", ".join(f"{len(v)} in {method}" for method, v in values.items())
        raise KitError(
            f"convolution {layer + 1} has other numbers of parameters: {found}. Sizes are compared "
            "position by position, so take networks of one architecture"
        )


def layer_weights(run: Run, layer: int, which: str = "last") -> tuple[str, np.ndarray]:
    """(name, flat float64 values) of convolution number `layer` of a run's network `which`.

    Raises:
        KitError: if there is no such convolution.
    """
    layers = list(conv_weights(run.model(which)).items())
    if not 0 <= layer < len(layers):
        raise unknown_name("convolution", layer, map(str, range(len(layers))))
    name, weight = layers[layer]
    return name, weight.detach().flatten().double().numpy()


def measure_shape(values: np.ndarray) -> dict[str, float]:
    """Shares near zero, extremes and tail weight: how Min-Max a set of parameters is."""
    size = np.abs(values)
    return {
        "n": len(values),
        **{f"below_{t}": float((size < t).mean()) for t in (0.01, 0.05, 0.1)},
        "below_5_percent_of_max": float((size < 0.05 * size.max()).mean()),
        "max": float(size.max()),
        "p99": float(np.percentile(size, 99)),
        "kurtosis": float(stats.kurtosis(values, fisher=False)),
    }


def _ratio(a: float, b: float) -> float:
    return a / b if b else float("nan")


def draw_parameters(data: FigureData) -> Drawing:
    """Draw the distribution of the parameters (a), and their sizes position by position (b)."""
    drawing = Drawing(7.2, 3.3)
    left, right = drawing.subplots(1, 2)
    _draw_distribution(left, data)
    _draw_sizes(right, data)
    # below both panels, for the curves may be anywhere in theirs
    named = left.get_legend_handles_labels()
    drawing.legend(*named, loc="outside lower center", ncols=len(named[0]), fontsize=7.5)
    return drawing


def _draw_distribution(axes: Axes, data: FigureData) -> None:
    """Draw which share of the parameters is at most so large; the initial network is in grey."""
    shapes = data.facts["methods"] | data.facts["beside"]
    if (initial := data.extras["initial"]) is not None:
        axes.ecdf(np.abs(initial), color=s.GREY, linewidth=1.2, linestyle=":", label="initial")
    for method, v in data.extras["values"].items():
        shape = shapes[method]
        axes.ecdf(
            np.abs(v),
            color=s.colour(method),
            linewidth=1.6,
            label=f"{s.label(method)}, max {shape['max']:.2f}",
        )
        axes.plot(0.05, shape["below_0.05"], "o", color=s.colour(method), markersize=4)
    axes.axvline(0.05, color=s.GREY, linewidth=0.8)
    axes.text(0.054, 0.02, "0.05", va="bottom", fontsize=8, color=s.SMALL_PRINT)
    count = len(data.extras["order"])
    axes.set(
        xlabel=f"size $|w|$ (convolution {data.extras['layer'] + 1}, n = {count})",
        ylabel="share with $|w| \\leq x$",
        title="a  Cumulative distribution",
        xscale="log",
        xlim=(0.004, None),
    )
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    s.share_axis(axes)


def _draw_sizes(axes: Axes, data: FigureData) -> None:
    values = data.extras["values"]
    for method, v in values.items():
        axes.plot(
            np.abs(v)[data.extras["order"]],
            marker=".",
            markersize=4,
            linewidth=0,
            alpha=0.8,
            color=s.colour(method),
            label=s.label(method),
        )
    axes.set(
        xlabel=f"position, sorted by size in {s.label(next(iter(values)))}",
        ylabel="size $|w|$",
        title="b  Size, position by position",
    )
    axes.legend(loc="upper right")


def decide_parameters(data: FigureData) -> list[Claim]:
    """Decide whether near-zero parameters and the largest ones order as the methods are given.

    Fig. 3 (claim 73) compares CSA with ADV, Fig. 4 (claim 74) has CSA+L2 between them.
    """
    facts, methods = data.facts, data.facts["methods"]
    number = 74 if "csa-l2" in methods else 73
    names = " < ".join(map(s.label, methods))
    near, largest = ([shape[key] for shape in methods.values()] for key in ("below_0.05", "max"))
    return [
        Claim(
            f"near-zero parameters: {names} (CSA Figs. 3, 4)",
            "several times as many in CSA as in ADV",
            " / ".join(f"{share:.1%}" for share in near)
            + f" have |w| < 0.05; {facts['near_zero_ratio']:.2f} times",
            (
                *_steps_up(list(methods), near, "share near 0"),
                exactly("near-zero ratio", facts["near_zero_ratio"], "> 2"),
            ),
            number=number,
        ),
        Claim(
            f"largest parameters: {names} (CSA Figs. 3, 4)",
            "larger in CSA than in ADV",
            " / ".join(f"{value:.2f}" for value in largest),
            _steps_up(list(methods), largest, "largest"),
            number=number,
        ),
    ]


def _steps_up(methods: list[str], values: list[float], what: str) -> tuple[Estimate, ...]:
    """By how much each method's value is above the one before it."""
    steps = zip(pairwise(methods), pairwise(values), strict=True)
    return tuple(
        exactly(f"{what}, {after} - {before}", high - low, "> 0")
        for (before, after), (low, high) in steps
    )


def describe_parameters(data: FigureData) -> str:
    """The caption: the ratios of each network to the first, and where sizes rise in order."""
    facts, (base, *others) = data.facts, data.facts["methods"].values()
    methods = list(facts["methods"])
    top, first = facts["order_in_top_tenth"], s.label(methods[0])
    ratios = "; ".join(
        f"{s.label(method)} has {_ratio(shape['below_0.05'], base['below_0.05']):.2f} times "
        f"{first}'s share below 0.05 and {_ratio(shape['max'], base['max']):.2f} times its largest"
        for method, shape in zip(methods[1:], others, strict=True)
    )
    return (
        "CSA/CSE claims more near-zero and larger extreme parameters in the order "
        f"{', '.join(map(s.label, methods))}. {data.setting}, convolution "
        f"{data.extras['layer'] + 1}: {ratios}; at the "
        f"{top['n']} largest positions of {first} sizes rise in that order in {top['share']:.0%} "
        f"[{top['low']:.0%}, {top['high']:.0%}]."
    )
