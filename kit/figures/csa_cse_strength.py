"""CSE's γ, which the paper does not state: what the fuzziness term does at each value of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from kit.core.errors import KitError
from kit.core.parameters import Count, check_value
from kit.evaluation.result_tables import count_seeds
from kit.evaluation.statistics import (
    grand_contrast,
    grand_difference,
    grand_mean,
    mean_interval,
)
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData, format_points
from kit.figures.csa_cse_fuzziness import network_fuzziness
from kit.figures.run_outputs import describe_setting, right_under_attack
from kit.methods.table import METHODS
from kit.papers.claim_verdict import Estimate

STRENGTH = "regulariser.strength"

#: What each attack needs of the gradient, and its look.
STRENGTH_ATTACKS = {
    "natural": ("clean images", s.GREY, "o"),
    "pgd20": ("PGD-20 on cross-entropy", s.BLUE, "s"),
    "cw20": ("PGD-20 on the margin", s.ORANGE, "^"),
    "square": ("Square, without gradients", s.VERMILLION, "D"),
}


def compute_fuzziness_strength(runs: Sequence[Run], *, n: int = 100) -> FigureData:
    """Eq. 8 and accuracies of the last network at each γ, and the γ that the rule chooses.

    `runs` are of one method and differ in γ and seed alone. The first `n` test images are attacked.
    The rule is that of `choose_strength`, on validation images: it looks at no attack and at no
    test image. `dead` counts at each γ the networks that learned nothing.

    Raises:
        KitError: The runs differ in more, have no γ, or lack a seed at some γ.
    """
    check_value("n", n, Count)
    values = group_by_strength(runs)
    groups = list(values.values())
    first = groups[0][0]
    right = {
        name: [
            np.stack([right_under_attack(run, "last", name, n) for run in mine]) for mine in groups
        ]
        for name in STRENGTH_ATTACKS
    }
    clean = [np.stack([_validation_right(run) for run in mine]) for mine in groups]
    losses = [grand_difference(clean[0], mine) for mine in clean]
    dead = [sum(run.learned_nothing for run in mine) for mine in groups]
    facts = {
        "values": list(values),
        "seeds": len(groups[0]),
        "n": right["natural"][0].shape[1],
        "n_validation": clean[0].shape[1],
        "fuzziness": [
            _over_seeds([network_fuzziness(run.model("last")) for run in mine]) for mine in groups
        ],
        "accuracy": {name: [grand_mean(mine) for mine in found] for name, found in right.items()},
        "gain": {
            name: [grand_difference(found[0], mine) for mine in found]
            for name, found in right.items()
        },
        "pgd20 less square": [
            grand_contrast([pgd, right["pgd20"][0], square, right["square"][0]], [1, -1, -1, 1])
            for pgd, square in zip(right["pgd20"], right["square"], strict=True)
        ],
        "clean_validation_difference": losses,
        "dead": dead,
        "chosen": choose_strength(list(values), losses, dead),
        "row": METHODS[first.method].hyper_parameters()[STRENGTH],
    }
    extras = {
        "dead": {
            str(run.spec): value
            for value, mine in values.items()
            for run in mine
            if run.learned_nothing
        }
    }
    return FigureData(facts, describe_setting(first, seed=False), first.method, extras)


def group_by_strength(runs: Sequence[Run]) -> dict[float, list[Run]]:
    """{γ: its runs by seed}, γ increasing; the same seeds everywhere.

    Raises:
        KitError: as `compute_fuzziness_strength`.
    """
    runs = sorted({run.key: run for run in runs}.values(), key=lambda run: run.spec.seed)
    settings = [dict(run.plan.method.hyper_parameters()) for run in runs]
    if any(STRENGTH not in mine for mine in settings):
        raise KitError(
            f"this figure needs runs with {STRENGTH}, such as cse, not of "
            f"{', '.join(dict.fromkeys(run.method for run in runs))}"
        )
    values: dict[float, list[Run]] = {}
    for run, mine in zip(runs, settings, strict=True):
        values.setdefault(mine.pop(STRENGTH), []).append(run)
    same = [(run.method, run.plan.recipe, mine) for run, mine in zip(runs, settings, strict=True)]
    if any(mine != same[0] for mine in same):
        raise KitError(
            "these runs differ in more than γ and the seed; give runs of one method and recipe "
            "with the same other overrides"
        )
    seeds = {value: [run.spec.seed for run in mine] for value, mine in sorted(values.items())}
    if len({tuple(mine) for mine in seeds.values()}) > 1:
        words = "; ".join(f"{value:g} has {' '.join(map(str, v))}" for value, v in seeds.items())
        raise KitError(f"every γ needs the same seeds, but {words}")
    return dict(sorted(values.items()))


def choose_strength(
    values: Sequence[float],
    losses: Sequence[tuple[float, float, float]],
    dead: Sequence[int],
) -> float:
    """The last γ before one that costs clean accuracy, or at which a network learned nothing.

    `values` increase; `losses` are (difference to the first value, low, high), and one costs where
    its interval lies below 0. `dead` counts the networks that learned nothing: one of them makes
    the interval so wide that no loss could be seen, so such a γ ends the search.
    """
    chosen = values[0]
    for value, (_, _, high), nothing in zip(values, losses, dead, strict=True):
        if high < 0 or nothing:
            break
        chosen = value
    return chosen


def _validation_right(run: Run) -> np.ndarray:
    arrays = run.epoch(len(run.history))  # a training that collapses stops early
    split = "validation" if "validation_y" in arrays else "seen"
    return arrays[f"{split}_logits_nat"].argmax(axis=1) == arrays[f"{split}_y"]


def _over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    middle, low, high = mean_interval(np.array(values))
    return (middle, low, high) if math.isfinite(low) else (middle, middle, middle)


def draw_fuzziness_strength(data: FigureData) -> Drawing:
    """Draw fuzziness (a) and accuracies (b) over γ, and mark the γ of the rule and dead networks.

    Attacks stand a little beside one another, so that their bars do not hide each other.
    """
    facts = data.facts
    drawing = Drawing(7.8, 3.3)
    left, right = drawing.subplots(1, 2, width_ratios=(1, 1.5))
    places = np.arange(len(facts["values"]))
    dead = np.array(facts["dead"]) > 0
    _draw_with_bars(left, places, facts["fuzziness"], dead, color=s.PURPLE, marker="o")
    line = left.axhline(math.log(2), color=s.BLACK, linewidth=0.8, linestyle=":")
    line.set_label("a: ln 2, as if all weights were 0")
    left.set(ylabel="fuzziness of all convolutions", title="a  Fuzziness (Eq. 8)")
    left.margins(y=0.15)
    shifts = np.linspace(-0.2, 0.2, len(STRENGTH_ATTACKS))
    for shift, (name, (_, tint, marker)) in zip(shifts, STRENGTH_ATTACKS.items(), strict=True):
        found = facts["accuracy"][name]
        _draw_with_bars(right, places + shift, found, dead, color=tint, marker=marker)
    right.set(
        ylabel=f"accuracy, n = {facts['n']} test images", title="b  Accuracy", ylim=(-0.03, 1.03)
    )
    s.share_axis(right)
    for axes in (left, right):
        axes.set_xticks(places, [f"{value:g}" for value in facts["values"]])
        axes.set_xlabel("γ, the weight of the fuzziness\n(evenly spaced, not to scale)")
        axes.axvspan(
            facts["values"].index(facts["chosen"]) - 0.3,
            facts["values"].index(facts["chosen"]) + 0.3,
            color=s.GREEN,
            alpha=0.2,
            linewidth=0,
            zorder=0,
        )
    cross = right.plot([], [], label="a network there learned nothing", **_CROSS)
    right.legend(
        handles=[
            *(
                right.plot([], [], color=tint, marker=marker, markersize=4, label=words)[0]
                for words, tint, marker in STRENGTH_ATTACKS.values()
            ),
            *(cross if dead.any() else ()),
            line,
            s.legend_patch("#CCECE3", "the γ of the rule"),
        ],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        fontsize=7.5,
    )
    return drawing


#: How a point is marked over which a network learned nothing.
_CROSS: dict[str, Any] = {
    "color": s.BLACK,
    "linestyle": "",
    "marker": "x",
    "markersize": 8,
    "markeredgewidth": 1.2,
    "zorder": 5,
}


def _draw_with_bars(
    axes: Axes,
    places: np.ndarray,
    found: Sequence[tuple[float, float, float]],
    dead: np.ndarray,
    **look: Any,
) -> None:
    middle, low, high = np.array(found).T
    axes.errorbar(
        places,
        middle,
        np.abs([middle - low, high - middle]),
        markersize=4,
        linewidth=1.2,
        elinewidth=0.8,
        capsize=2,
        **look,
    )
    axes.plot(places[dead], middle[dead], **_CROSS)


def decide_fuzziness_strength(data: FigureData) -> list[Claim]:
    """Decide whether the term hides gradients, at the γ of the rule against the least γ.

    It does if accuracy under PGD rises, and by more than under Square, which sees no gradient.
    """
    facts, used = data.facts, (data.facts["values"][0], data.facts["chosen"])
    place = facts["values"].index(facts["chosen"])
    pgd, square = facts["gain"]["pgd20"][place], facts["gain"]["square"][place]
    return [
        Claim(
            "regularising fuzziness obfuscates gradients (CSE s. IV-B)",
            "no numbers",
            f"γ {facts['chosen']:g} against {facts['values'][0]:g}: {format_points(pgd)} points "
            f"under PGD-20, {format_points(square)} under Square, n = {facts['n']}, "
            f"{count_seeds(facts['seeds'])}",
            (
                Estimate("gain under PGD-20", "> 0", *pgd),
                Estimate(
                    "gain under PGD-20 - under Square", "> 0", *facts["pgd20 less square"][place]
                ),
            ),
            number=85,
            seeds=facts["seeds"],
            left_out=tuple(
                run for run, value in data.extras.get("dead", {}).items() if value not in used
            ),
        )
    ]


def describe_fuzziness_strength(data: FigureData) -> str:
    """The caption: what the rule chooses, and what its γ brings under each attack."""
    facts = data.facts
    place = facts["values"].index(facts["chosen"])
    at: Mapping[str, tuple] = {name: found[place] for name, found in facts["accuracy"].items()}
    first = facts["values"][0]
    return (
        "CSE adds γ times its fuzziness (Eq. 10) and states no γ. "
        f"{data.setting}, {count_seeds(facts['seeds'])}: from γ {first:g} to {facts['chosen']:g} "
        f"fuzziness goes from {facts['fuzziness'][0][0]:.4f} to "
        f"{facts['fuzziness'][place][0]:.4f}. Accuracy on n = {facts['n']} test images is then "
        f"{at['natural'][0]:.1%} without attack, {at['pgd20'][0]:.1%} under PGD-20 on "
        f"cross-entropy, {at['cw20'][0]:.1%} under PGD-20 on the margin and "
        f"{at['square'][0]:.1%} under Square. Larger weights make larger logits, whose "
        "cross-entropy has hardly a gradient: what PGD on it cannot break, the others may. The "
        f"rule reads clean accuracy on {facts['n_validation']} validation images. It climbs from "
        f"γ {first:g}, and stops before a γ whose accuracy is lower than at {first:g} beyond its "
        "95 % interval, or at which a network learned nothing. Here it takes "
        f"γ {facts['chosen']:g}; the kit's method {data.method} has {facts['row']:g}."
        f"{_describe_dead(facts)} Bars: 95 %, over seeds and images."
    )


def _describe_dead(facts: Mapping[str, Any]) -> str:
    """The sentence on networks that learned nothing; "" where there are none."""
    found = [
        f"{count} of {facts['seeds']} at γ {value:g}"
        for value, count in zip(facts["values"], facts["dead"], strict=True)
        if count
    ]
    if not found:
        return ""
    return (
        f" Networks that learned nothing, and give every image one class: {', '.join(found)} "
        "(crosses)."
    )
