"""CSE s. III-C and IV: what CSE's training costs beside ADV's, and how well it converges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from kit.data.datasets import dataset_claimed
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData
from kit.figures.run_outputs import describe_setting
from kit.papers.claim_verdict import exactly
from kit.training.step_cost import count_passes

#: A training has converged where the last fifth of its epochs moves its loss by less than this
#: share of all that it has fallen by.
STILL_MOVING = 0.05

#: The data on which CSE is said to converge worse than STD, and those on which both converge.
HARDER_ON, CONVERGES_ON = "mnist", "cifar10"


def compute_training_cost(runs: Mapping[str, Run]) -> FigureData:
    """Passes of a training step, and the cross-entropy of STD and CSE after each epoch.

    Both losses are the cross-entropy alone, without CSE's other terms. Epochs are counted to the
    loss at which the slower of the two ends.
    """
    methods = {
        method: {"passes": count_passes(run.plan), "epochs": len(run.history)}
        for method, run in runs.items()
    }
    curves = {method: runs[method].history.ce.to_numpy() for method in ("std", "cse")}
    classes = len(runs["cse"].record["classes"])
    level = max(float(ce[-1]) for ce in curves.values())
    for method, ce in curves.items():
        methods[method] |= {
            "final_ce": float(ce[-1]),
            "epochs_to_level": count_epochs_to_loss(ce, level),
            "still_moving": share_of_last_fifth(ce, math.log(classes)),
        }
    facts = {
        "data": dataset_claimed(runs["cse"].plan.recipe.data),
        "methods": methods,
        "level": level,
        "chance": math.log(classes),
    }
    return FigureData(facts, describe_setting(runs["cse"]), extras={"curves": curves})


def count_epochs_to_loss(losses: np.ndarray, level: float) -> int:
    """After how many epochs losses (epochs,) are first at most `level`; all, if they never are."""
    reached = np.flatnonzero(losses <= level)
    return int(reached[0]) + 1 if len(reached) else len(losses)


def share_of_last_fifth(losses: np.ndarray, start: float) -> float:
    """By which share of its whole fall from `start` a loss still moves in its last fifth of epochs.

    Up or down: a loss that rises has not converged. 1 where it never fell.
    """
    last = max(1, len(losses) // 5)
    before = losses[-last - 1] if len(losses) > last else start
    fall = start - losses[-1]
    return float(abs(before - losses[-1]) / fall) if fall > 0 else 1.0


def draw_training_cost(data: FigureData) -> Drawing:
    """Draw passes of a step (a), and cross-entropy by epoch with the level that is compared (b)."""
    drawing = Drawing(7.4, 2.9)
    left, right = drawing.subplots(1, 2, width_ratios=(1, 1.5))
    _draw_passes(left, data.facts["methods"])
    _draw_losses(right, data)
    return drawing


def _draw_passes(axes: Axes, methods: Mapping[str, Mapping]) -> None:
    names = list(methods)
    passes = [methods[name]["passes"] for name in names]
    axes.barh(range(len(names)), passes, height=0.6, color=[s.colour(name) for name in names])
    for place, count in enumerate(passes):
        axes.annotate(
            f"{count:g}", (count, place), xytext=(3, 0), textcoords="offset points", va="center"
        )
    axes.set(
        yticks=range(len(names)),
        yticklabels=[s.label(name) for name in names],
        xlim=(0, 1.15 * max(passes)),
        xlabel="passes of an image in a training step",
        title="a  What a step costs",
    )
    axes.invert_yaxis()


def _draw_losses(axes: Axes, data: FigureData) -> None:
    facts = data.facts
    for method, ce in data.extras["curves"].items():
        reached = facts["methods"][method]["epochs_to_level"]
        look: dict[str, Any] = {"color": s.colour(method), "linestyle": s.dash(method)}
        axes.plot(range(1, len(ce) + 1), ce, label=f"{s.label(method)}: epoch {reached}", **look)
        axes.plot(reached, ce[reached - 1], "o", color=s.colour(method), markersize=6)
    axes.axhline(facts["level"], color=s.GREY, linewidth=0.8, linestyle=":")
    axes.set(
        xlabel="epoch",
        ylabel="cross-entropy in training",
        yscale="log",
        title="b  Epochs to the same loss (dotted)",
    )
    s.whole_numbers(axes)
    axes.legend(loc="upper right")


def decide_training_cost(data: FigureData) -> list[Claim]:
    """Decide what CSE saves in a step, what it needs in epochs, and whether it converges.

    Each statement on convergence is about the data that the paper names there.
    """
    facts, methods = data.facts, data.facts["methods"]
    cse, std = methods["cse"], methods["std"]
    apart = cse["final_ce"] - std["final_ce"]
    return [
        Claim(
            "CSE trains faster than adversarial training (CSE s. III-C)",
            "in words",
            f"{cse['passes']:g} passes of an image in a step, ADV {methods['adv']['passes']:g}",
            (exactly("passes, CSE - ADV", cse["passes"] - methods["adv"]["passes"], "< 0"),),
            number=89,
        ),
        Claim(
            "CSE takes more iterations than STD (CSE s. IV-A)",
            "in words",
            f"epoch {cse['epochs_to_level']} against {std['epochs_to_level']} at a cross-entropy "
            f"of {facts['level']:.3g}",
            (exactly("epochs, CSE - STD", cse["epochs_to_level"] - std["epochs_to_level"], "> 0"),),
            number=89,
        ),
        Claim(
            "CSE converges worse than STD (CSE Fig. 5a)",
            "the higher curve, on MNIST",
            f"cross-entropy ends at {cse['final_ce']:.3g}, STD's at {std['final_ce']:.3g}",
            (exactly("final cross-entropy, CSE - STD", apart, "> 0"),),
            number=_if_about(data, HARDER_ON),
        ),
        Claim(
            "STD and CSE both converge (CSE Fig. 5d)",
            "flat at the end, on CIFAR-10",
            ", ".join(
                f"{s.label(m)}: the last fifth of the epochs moves it by "
                f"{found['still_moving']:.1%} of the fall"
                for m, found in (("std", std), ("cse", cse))
            ),
            tuple(
                exactly(f"{s.label(m)}, share of the last fifth", share, f"< {STILL_MOVING}")
                for m, share in (("std", std["still_moving"]), ("cse", cse["still_moving"]))
            ),
            number=_if_about(data, CONVERGES_ON),
        ),
    ]


def _if_about(data: FigureData, dataset: str) -> int | None:
    """The claim on convergence, where it speaks of this data set; None on others."""
    return 79 if data.facts["data"] == dataset else None


def describe_training_cost(data: FigureData) -> str:
    """The caption: passes, epochs to the same loss, and how the losses end."""
    facts, methods = data.facts, data.facts["methods"]
    passes = ", ".join(f"{s.label(m)} {found['passes']:g}" for m, found in methods.items())
    cse, std = methods["cse"], methods["std"]
    return (
        "CSE claims to train faster than adversarial training, in more iterations than STD, and to "
        f"converge worse than STD on MNIST. {data.setting}: a training step passes an image "
        f"{passes} times (a gradient for the image counts as one pass more, one for the parameters "
        f"as two; CSE's own term reads the parameters alone). A cross-entropy of "
        f"{facts['level']:.3g}, at which the slower one ends, is reached by STD in epoch "
        f"{std['epochs_to_level']} and by CSE in epoch {cse['epochs_to_level']}; they end "
        f"at {std['final_ce']:.3g} and {cse['final_ce']:.3g}."
    )
