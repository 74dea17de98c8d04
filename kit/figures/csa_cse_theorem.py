"""CSE's Theorem 1: is the mean gradient smaller where weights are 0 or 1 than where uniform?

Both losses are softmax's cross-entropy on K logits w_k x; only the weights differ. In one they are
0 or 1, B(1, p_1), as Min-Max makes them; in the other they are U(0, 1).
"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes

from kit.core.parameters import Count, Positive, check_value
from kit.evaluation.statistics import Interval, mean_interval
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData
from kit.figures.run_outputs import describe_setting
from kit.methods.regularisers import penalised_weights

#: Numbers of classes, and inputs x, of the panel on where the inequality ends.
THEOREM_CLASSES = (2, 10, 100)
INPUTS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)

#: p_1 at which both sides are printed: the inequality holds at the first.
SHOWN = (0.03, 0.05)

P_1 = np.geomspace(0.001, 0.5, 120)


def compute_theorem(run: Run, *, x: Positive = 3.0, draws: Count = 20_000) -> FigureData:
    """|E dL/dx| and E|dL/dx| under both kinds of weights, by p_1, and where the inequality ends.

    The 0-1 side is an exact sum, the uniform side a mean of `draws` draws (seed 0) with its 95 %
    interval. `run` gives K, the number of its classes, and the p_1 of its first convolution: the
    share of weights larger than half the largest.

    Raises:
        KitError: `x` or `draws` is out of range, or the network has no convolution.
    """
    check_value("x", x, Positive)
    check_value("draws", draws, Count)
    classes = len(run.record["classes"])
    weights = penalised_weights(run.model("last"), 1)[0].detach().abs()
    uniform, uniform_size = uniform_gradients(classes, x, draws)
    facts = {
        "classes": classes,
        "x": x,
        "draws": draws,
        "seed": 0,
        "uniform": uniform,
        "uniform_size": uniform_size,
        "at": {p: binary_gradients(classes, x, p) for p in SHOWN},
        "ends": largest_p(classes, x, uniform[0]),
        "ends_by_input": {
            k: [largest_p(k, z, uniform_gradients(k, z, draws)[0][0]) for z in INPUTS]
            for k in THEOREM_CLASSES
        },
        "p_1_of_network": float((weights > weights.max() / 2).double().mean()),
        "n_weights": weights.numel(),
    }
    curves = np.array([binary_gradients(classes, x, p) for p in P_1])
    return FigureData(
        facts, describe_setting(run), run.method, {"mean": curves[:, 0], "size": curves[:, 1]}
    )


def binary_gradients(classes: int, x: float, p_1: float) -> tuple[float, float]:
    """(E dL/dx, E|dL/dx|) for K weights from B(1, p_1), exactly; L is -log softmax(w x)_1.

    dL/dx is Σ_k w_k q_k - w_1 with q = softmax(w x): with n weights of 1 the sum is
    n e^x / (n e^x + K - n), and n - w_1 is binomial.
    """
    others = np.arange(classes)
    chance = np.array(
        [math.comb(classes - 1, m) * p_1**m * (1 - p_1) ** (classes - 1 - m) for m in others]
    )
    mean = size = 0.0
    for own, probability in ((0, 1 - p_1), (1, p_1)):
        n = others + own
        # e^x is divided out, so that a large x does not overflow
        gradient = n / (n + (classes - n) * math.exp(-x)) - own
        mean += probability * float(chance @ gradient)
        size += probability * float(chance @ np.abs(gradient))
    return mean, size


def uniform_gradients(classes: int, x: float, draws: int) -> tuple[Interval, Interval]:
    """(E dL/dx, E|dL/dx|) for K weights from U(0, 1), each with its 95 % interval over draws."""
    weights = np.random.default_rng(0).random((draws, classes))
    exponent = np.exp(x * (weights - weights.max(axis=1, keepdims=True)))
    expected = (weights * exponent).sum(axis=1) / exponent.sum(axis=1)
    # E w_1 is ½, and its own noise is left out of the mean
    return mean_interval(expected - 0.5), mean_interval(np.abs(expected - weights[:, 0]))


def largest_p(classes: int, x: float, uniform: float) -> float:
    """The p_1 up to which |E dL/dx| of 0-1 weights is at most `uniform`; 0.5 if it always is."""
    above = [p for p in P_1 if abs(binary_gradients(classes, x, p)[0]) > uniform]
    return float(above[0]) if above else float(P_1[-1])


def draw_theorem(data: FigureData) -> Drawing:
    """Draw both sides of the theorem (a), the size of the gradient (b), and its end (c)."""
    facts, drawing = data.facts, Drawing(8.4, 3.3)
    a, b, c = drawing.subplots(1, 3)
    place = f"K = {facts['classes']}, x = {facts['x']:g}"
    _draw_sides(a, data.extras["mean"], facts["uniform"])
    a.plot(SHOWN, [abs(facts["at"][p][0]) for p in SHOWN], "o", color=s.VERMILLION, markersize=5)
    a.set(title="a  Theorem 1", ylabel=f"$|E\\,dL/dx|$, {place}")
    a.axvspan(P_1[0], facts["ends"], color=s.GREEN, alpha=0.12, linewidth=0)
    a.annotate(
        f"holds up to\n$p_1$ = {facts['ends']:.3f}",
        (P_1[0] * 1.15, 0.97),
        xycoords=("data", "axes fraction"),
        va="top",
        fontsize=7.5,
        color="#00674C",
    )
    _draw_sides(b, data.extras["size"], facts["uniform_size"])
    b.set(title="b  Size of the gradient", ylabel=f"$E\\,|dL/dx|$, {place}")
    b.legend(loc="upper left", fontsize=7.5)
    for k, tint in zip(THEOREM_CLASSES, (s.SKY, s.BLUE, s.BLACK), strict=True):
        c.plot(
            INPUTS, facts["ends_by_input"][k], "o-", markersize=3.5, color=tint, label=f"K = {k}"
        )
    c.set(
        title="c  Where it ends",
        xlabel="input $x$",
        ylabel="largest $p_1$ that keeps the inequality",
        yscale="log",
    )
    c.legend(loc="lower left", fontsize=7.5)
    return drawing


def _draw_sides(axes: Axes, binary: np.ndarray, uniform: Interval) -> None:
    axes.plot(P_1, np.abs(binary), color=s.VERMILLION, label="weights 0 or 1, $B(1, p_1)$")
    middle, low, high = uniform
    axes.axhspan(low, high, color=s.BLUE, alpha=0.25, linewidth=0)
    axes.axhline(middle, color=s.BLUE, label="weights $U(0, 1)$")
    axes.set(xscale="log", xlabel="$p_1$, share of weights that are 1")
    axes.set_ylim(0, 1.35 * max(float(np.abs(binary).max()), high))


def decide_theorem(data: FigureData) -> list[Claim]:
    """Decide whether |E dL/dx| is no larger for 0-1 weights at the two p_1 shown.

    It holds if it is no larger at both, and fails if it is larger at one, beyond the interval.
    """
    facts = data.facts
    _, low, high = facts["uniform"]
    sides = {p: abs(mean) for p, (mean, _) in facts["at"].items()}
    words = ", ".join(f"{side:.3f} at p₁ {p:g}" for p, side in sides.items())
    return [
        Claim(
            "the mean gradient is no larger where weights are 0 or 1 than where they are uniform, "
            "p₁ far below 1 (CSE Theorem 1)",
            "p₁ ≪ 1",
            f"K {facts['classes']}, x {facts['x']:g}: {words}; uniform {facts['uniform'][0]:.3f} "
            f"[{low:.3f}, {high:.3f}], {facts['draws']} draws",
            exact=_no_larger(list(sides.values()), low, high),
            number=91,
        )
    ]


def _no_larger(sides: list[float], low: float, high: float) -> bool | None:
    """Whether no side is above an interval; None where a side is within it."""
    if any(side > high for side in sides):
        return False
    return True if all(side <= low for side in sides) else None


def describe_theorem(data: FigureData) -> str:
    """The caption: both sides at the p_1 shown, and the p_1 of the run's own network."""
    facts = data.facts
    sides = " and ".join(f"{abs(mean):.3f} at p₁ = {p:g}" for p, (mean, _) in facts["at"].items())
    ends = [end for found in facts["ends_by_input"].values() for end in found]
    sizes = " and ".join(f"{size:.3f}" for _, size in facts["at"].values())
    return (
        "CSE's Theorem 1 says that softmax's mean gradient is no larger where weights are 0 or 1, "
        "B(1, p₁) with p₁ far below 1, than where they are U(0, 1). With K = "
        f"{facts['classes']} classes and x = {facts['x']:g} the left side is {sides}, exactly, and "
        f"the right side {facts['uniform'][0]:.3f} ({facts['draws']} draws, seed {facts['seed']}; "
        f"95 %: [{facts['uniform'][1]:.3f}, {facts['uniform'][2]:.3f}]): the inequality holds up "
        f"to p₁ = {facts['ends']:.3f}. That end lies between {min(ends):.3f} and {max(ends):.3f} "
        "for other K and x (c): that p₁ is far below 1 does not suffice. A perturbation meets the "
        "gradient of "
        f"one network, whose mean size (b) is {sizes} against {facts['uniform_size'][0]:.3f}. In "
        f"the first convolution of {s.label(data.method)} ({data.setting}) the share of weights "
        f"above half the largest is {facts['p_1_of_network']:.2f} (n = {facts['n_weights']})."
    )
