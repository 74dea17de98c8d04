"""CSA/CSE s. III and V, Propositions 1 and 2: are networks with Min-Max parameters more robust?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import nn

from kit.attacks.projected_gradient_descent import pgd
from kit.core.random_streams import Streams
from kit.evaluation.statistics import (
    Interval,
    paired_difference,
    rank_correlation,
    share_with_interval,
)
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.attacked_images import first_images
from kit.figures.base import Claim, Drawing, FigureData, format_points
from kit.figures.csa_cse_parameters import measure_shape
from kit.figures.run_outputs import describe_setting, protected_class
from kit.methods.regularisers import conv_weights, penalised_weights
from kit.papers.claim_verdict import Estimate, exactly

#: What makes parameters Min-Max: {key of `measure_shape`: words}.
SHAPES = {"below_0.05": "share near zero", "max": "largest parameter"}

#: The same as an axis says it, of all convolutions together.
SHAPE_AXES = {"below_0.05": "share with |w| < 0.05", "max": "largest |w|"}

#: Exponents of the sizes |w|. Above 1, small parameters become smaller and large ones larger. The
#: two ends are each other's inverse, so that both change a network by as much.
EXPONENTS = (0.8, 0.9, 1.0, 1 / 0.9, 1.25)

#: The networks whose parameters are changed: one trained without attacks, and one with them.
CHANGED = ("std", "adv")

ATTACK_STEPS = 20

PARTS_OF_SHARE = ("share", "low", "high")


def compute_min_max_robustness(runs: Mapping[str, Run], *, n: int = 300) -> FigureData:
    """How the shape of the parameters goes with robustness, and what changing the shape does.

    Observed: the networks of one seed at the end of training, and each of them along the way; the
    protected class's accuracy under the training attack beside the shape of all convolutions'
    parameters. Changed: every parameter of a trained convolution becomes sign(w) |w|^a, scaled to
    the norm that the convolution had, and the first `n` test images are attacked again.
    """
    for run in runs.values():
        run.check_trained_here("snapshots of its training")
    protected = protected_class(runs["csa"])
    paths = {method: _follow_training(run, protected) for method, run in runs.items()}
    ends = {method: path[-1] for method, path in paths.items()}
    right = {method: _right_by_exponent(runs[method], n) for method in CHANGED}
    facts = {
        "n": n,
        "protected": runs["csa"].record["classes"][protected],
        "n_protected": int((runs["csa"].final["test_y"] == protected).sum()),
        "ends": ends,
        "over_networks": {key: correlate(list(ends.values()), key) for key in SHAPES},
        "along_training": {
            key: _mean_of_known([correlate(path, key) for path in paths.values()]) for key in SHAPES
        },
        "exponents": list(EXPONENTS),
        "robust": {
            method: [share_with_interval(found) for found in rows] for method, rows in right.items()
        },
        "more_less_min_max": {
            method: paired_difference(~rows[0], ~rows[-1]) for method, rows in right.items()
        },
    }
    return FigureData(facts, describe_setting(runs["csa"]), extras={"paths": paths})


def _follow_training(run: Run, protected: int) -> list[dict[str, float]]:
    """The shape of a run's parameters at each kept epoch, and the protected class's accuracy.

    The last entry is of the finished network, on all test images; the others are of the probe.
    """
    moments = [_measure(run, epoch, run.epoch(epoch), protected) for epoch in run.snapshots[:-1]]
    return [*moments, _measure(run, "last", run.final, protected)]


def _measure(
    run: Run, which: str | int, arrays: Mapping[str, np.ndarray], protected: int
) -> dict[str, float]:
    values = torch.cat([w.detach().flatten() for w in penalised_weights(run.model(which))])
    shape = measure_shape(values.double().numpy())
    mine = arrays["test_y"] == protected
    right = arrays["test_logits_adv"][mine].argmax(1) == protected
    return {key: shape[key] for key in SHAPES} | {"protected": float(right.mean())}


def correlate(found: Sequence[Mapping[str, float]], key: str) -> float | None:
    """Rank correlation of a shape with the protected class's accuracy; None if one is constant."""
    columns = [np.array([one[name] for one in found]) for name in (key, "protected")]
    if any(np.ptp(column) == 0 for column in columns):
        return None
    return rank_correlation(*columns)


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def stretch_sizes(model: nn.Module, exponent: float) -> None:
    """Turn each parameter w of a network's convolutions into c sign(w) |w|^exponent, in place.

    c keeps the norm of each convolution, so that the scale of its answers hardly changes.
    """
    with torch.no_grad():
        for weight in conv_weights(model).values():
            stretched = weight.sign() * weight.abs() ** exponent
            weight.copy_(stretched * (weight.norm() / stretched.norm()))


def _right_by_exponent(run: Run, n: int) -> list[np.ndarray]:
    """(n,) bool for each of EXPONENTS: which of the first n test images withstand PGD."""
    rows = []
    for exponent in EXPONENTS:
        model, images = first_images(run, n)
        stretch_sizes(model, exponent)
        x, y = images.x(), images.y
        start = Streams(images.ids, run.spec.seed, "min-max")
        x_adv = pgd(model, x, y, run.plan.recipe.threat, generator=start, steps=ATTACK_STEPS)
        with torch.no_grad():
            rows.append((model(x_adv).argmax(dim=1) == y).cpu().numpy())
    return rows


def draw_min_max_robustness(data: FigureData) -> Drawing:
    """Draw accuracy over both shapes (a, b), and over the exponent of changed networks (c)."""
    drawing = Drawing(8.4, 3.0)
    *observed, changed = drawing.subplots(1, 3)
    for axes, key, letter in zip(observed, SHAPES, "ab", strict=True):
        _draw_observed(axes, data, key)
        axes.set_title(f"{letter}  {SHAPES[key].capitalize()}")
    observed[0].set_ylabel(f"accuracy of class {data.facts['protected']} under attack")
    s.share_axis(observed[0], "x")
    observed[0].plot([], [], color=s.GREY, linewidth=0.8, alpha=0.5, label="along training")
    observed[0].legend(loc="best", fontsize=7.5)
    _draw_changed(changed, data.facts)
    return drawing


def _draw_observed(axes: Axes, data: FigureData, key: str) -> None:
    """Each network's way through training as a thin line, its end as a dot."""
    for method, path in data.extras["paths"].items():
        across, up = ([one[name] for one in path] for name in (key, "protected"))
        tint = s.colour(method)
        axes.plot(across, up, color=tint, linewidth=0.8, alpha=0.5)
        axes.plot(across[-1], up[-1], "o", color=tint, markersize=6, label=s.label(method))
    rho = data.facts["over_networks"][key]
    axes.set(
        xlabel=f"{SHAPE_AXES[key]}, all convolutions\nends: ρ {_correlation_words(rho)}",
        ylim=(-0.03, 1.03),
    )
    s.share_axis(axes)


def _draw_changed(axes: Axes, facts: Mapping) -> None:
    for method, robust in facts["robust"].items():
        share, low, high = (np.array([one[key] for one in robust]) for key in PARTS_OF_SHARE)
        axes.errorbar(
            facts["exponents"],
            share,
            yerr=[share - low, high - share],
            marker="o",
            markersize=5,
            capsize=2,
            color=s.colour(method),
            linestyle=s.dash(method),
            label=s.label(method),
        )
    axes.axvline(1, color=s.GREY, linewidth=0.8, linestyle=":")
    axes.set(
        xlabel="exponent of $|w|$; > 1: Min-Max",
        ylabel=f"accuracy under PGD-{ATTACK_STEPS}, n = {facts['n']}",
        title="c  Shape changed alone",
        xscale="log",
        ylim=(-0.03, 1.03),
    )
    axes.set_xticks(facts["exponents"], [f"{exponent:.3g}" for exponent in facts["exponents"]])
    axes.minorticks_off()
    s.share_axis(axes)
    axes.legend(loc="best", fontsize=7.5)


def decide_min_max_robustness(data: FigureData) -> list[Claim]:
    """Decide whether more Min-Max goes with more robust, and whether making it so does."""
    facts = data.facts
    groups = {
        "over_networks": "networks whose parameters are more Min-Max are more robust",
        "along_training": "a network becomes more robust as its parameters become more Min-Max",
    }
    changed = facts["more_less_min_max"]
    return [
        *(
            Claim(
                f"{words} (CSA/CSE s. V)",
                "in words",
                ", ".join(
                    f"ρ of {SHAPES[k]} {_correlation_words(rho)}" for k, rho in facts[group].items()
                ),
                tuple(
                    exactly(f"rank correlation, {SHAPES[key]}", rho, "> 0")
                    for key, rho in facts[group].items()
                    if rho is not None
                ),
                number=90,
            )
            for group, words in groups.items()
        ),
        Claim(
            "making parameters more Min-Max makes a network more robust (CSA/CSE s. III, "
            "Propositions 1 and 2)",
            "in words",
            ", ".join(f"{s.label(m)} {format_points(found)}" for m, found in changed.items())
            + " points from less to more",
            tuple(
                Estimate(f"{s.label(m)}, more - less Min-Max", "> 0", *found)
                for m, found in changed.items()
            ),
            number=105,
        ),
    ]


def _correlation_words(rho: float | None) -> str:
    return "none" if rho is None else f"{rho:+.2f}"


def describe_min_max_robustness(data: FigureData) -> str:
    """The caption: correlations, and what changed parameters do."""
    facts = data.facts
    ends, way = (
        " and ".join(_correlation_words(rho) for rho in facts[group].values())
        for group in ("over_networks", "along_training")
    )
    changed: Mapping[str, Interval] = facts["more_less_min_max"]
    words = ", ".join(f"{s.label(m)} {format_points(d)} points" for m, d in changed.items())
    return (
        "CSA/CSE claims that few large and many small parameters make a network robust. "
        f"{data.setting}: over {len(facts['ends'])} trained networks, the rank correlation of the "
        f"protected class's accuracy under attack (n = {facts['n_protected']}) with the share of "
        f"|w| below 0.05 and with the largest |w|, in all convolutions, is {ends}; "
        f"along training it is {way} on average. Thin lines are each network's way through "
        "training; the axes of (a) and (b) do not start at 0. Networks differ in more than their "
        "parameters' shape, so (c) changes that alone: "
        "|w| to a power, each convolution's norm kept. From exponent "
        f"{facts['exponents'][0]:g} to {facts['exponents'][-1]:g}, accuracy under "
        f"PGD-{ATTACK_STEPS} changes by {words} (n = {facts['n']}, paired, 95 %)."
    )
