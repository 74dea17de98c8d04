"""VIR, appendix A: two Gaussian classes, by closed form and by trained linear networks.

Theorem 1 says that of two classes the one of larger variance has the larger natural risk under the
best linear classifier. VIR calls that class +1 and `kit.data.gaussian_mixture` calls it -1; turning
x into -x makes one of the other, so no risk depends on it. The figure names classes by "harder" and
"easier".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from kit.attacks.table import attack_label
from kit.core.errors import KitError
from kit.data.gaussian_mixture import MIXTURE, MIXTURE_CLASSES, optimal_risks
from kit.evaluation.accuracy import evaluate
from kit.evaluation.mixture_risks import class_risks
from kit.evaluation.result_tables import count_seeds
from kit.evaluation.statistics import Interval, grand_mean, mean_interval
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData, format_points
from kit.figures.run_outputs import check_seeds, describe_setting
from kit.papers.claim_verdict import Estimate

#: {method: what `optimal_risks` calls its training}.
TRAININGS = {"std": "standard", "at": "adversarial"}

#: {kind of risk: the attack under which it is measured}.
RISK_ATTACKS = {"natural": "natural", "robust": "pgd20"}

#: The classes by difficulty, as names of `MIXTURE_CLASSES`.
GAUSSIAN_CLASSES = dict(zip(("harder", "easier"), MIXTURE_CLASSES, strict=True))


# ------------------------------------------------------------------------------------------ compute


def compute_two_gaussians(runs: Sequence[Run]) -> FigureData:
    """Risk of each class, natural and under attack, at the optimum and of trained networks.

    `runs` are of standard and of adversarial training on `mixture`, one of each for every seed.
    What a trained network risks is known in closed form from its weights, and measured on the test
    images.

    Raises:
        KitError: A method or a seed is missing, or the runs are no linear networks on `mixture`.
    """
    groups = {method: [run for run in runs if run.method == method] for method in TRAININGS}
    seeds = {method: [run.spec.seed for run in mine] for method, mine in groups.items()}
    if not seeds["std"] or sorted(seeds["std"]) != sorted(seeds["at"]):
        raise KitError(
            "the two Gaussian classes need runs of std and at with the same seeds on recipe "
            f"mixture, but the seeds are {seeds}"
        )
    for mine in groups.values():
        check_seeds(mine, "the two Gaussian classes")
    weights = {method: [class_risks(run) for run in mine] for method, mine in groups.items()}
    recipe = groups["at"][0].plan.recipe
    best = optimal_risks(MIXTURE, recipe.eps / MIXTURE.scale, recipe.norm)
    facts = {
        "seeds": len(groups["at"]),
        "n_per_class": len(groups["at"][0].data().test) // len(GAUSSIAN_CLASSES),
        "ratio": MIXTURE.ratio,
        "risks": {
            kind: {
                f"{training}, {which}": {
                    "optimum": float(best.loc[(training, name), kind]),
                    "weights": [float(table.loc[name, kind]) for table in weights[method]],
                    "measured": measure_error(groups[method], attack, name),
                }
                for method, training in TRAININGS.items()
                for which, name in GAUSSIAN_CLASSES.items()
            }
            for kind, attack in RISK_ATTACKS.items()
        },
        "hard less easy": {
            training: mean_interval(gap_of_classes(weights[method]))
            for method, training in TRAININGS.items()
        },
        "adversarial less standard": {
            which: mean_interval(natural_of(weights["at"], name) - natural_of(weights["std"], name))
            for which, name in GAUSSIAN_CLASSES.items()
        },
    }
    return FigureData(facts, describe_setting(groups["at"][0], seed=False))


def natural_of(tables: Sequence[pd.DataFrame], name: str) -> np.ndarray:
    """(seeds,) natural risk of a class, by the closed form of the trained weights."""
    return np.array([table.loc[name, "natural"] for table in tables])


def gap_of_classes(tables: Sequence[pd.DataFrame]) -> np.ndarray:
    """(seeds,) natural risk of the harder class less that of the easier one."""
    return natural_of(tables, GAUSSIAN_CLASSES["harder"]) - natural_of(
        tables, GAUSSIAN_CLASSES["easier"]
    )


def measure_error(runs: Sequence[Run], attack: str, name: str) -> Interval:
    """Share of a class's test images that fall, over seeds and images."""
    broken = []
    for run in runs:
        found = evaluate(run, [attack], quiet=True).attrs["examples"][attack]
        broken.append(found["broken"][found["y"] == MIXTURE_CLASSES.index(name)])
    return grand_mean(np.stack(broken))


# --------------------------------------------------------------------------------------------- draw


def draw_two_gaussians(data: FigureData) -> Drawing:
    """Draw a panel a kind of risk: the optimum as a bar, trained networks as marks on it."""
    drawing = Drawing(7.8, 3.3)
    panels = drawing.subplots(1, 2)
    titles = ("Natural risk", f"Risk under attack ({attack_label(RISK_ATTACKS['robust'])})")
    for panel, (kind, found), title in zip(
        panels, data.facts["risks"].items(), titles, strict=True
    ):
        _draw_risks(panel, found)
        panel.set(title=title, ylabel=f"{kind} risk")
    panels[0].legend(loc="upper center", fontsize=7)
    return drawing


def _draw_risks(panel: Axes, found: dict[str, dict]) -> None:
    for place, (name, risk) in enumerate(found.items()):
        first = place == 0
        tint = "#F3C9A9" if name.endswith("harder") else "#CFE3F1"
        panel.bar(place, risk["optimum"], color=tint, width=0.75)
        panel.plot(
            [place - 0.15] * len(risk["weights"]),
            risk["weights"],
            "_",
            color=s.BLUE,
            markersize=12,
            label="trained networks, closed form" if first else None,
        )
        middle, low, high = risk["measured"]
        panel.errorbar(
            place + 0.15,
            middle,
            yerr=[[middle - low], [high - middle]],
            fmt="o",
            markersize=4,
            color=s.BLACK,
            capsize=3,
            label="trained networks, measured" if first else None,
        )
    words = [
        "\n".join([*name.split(", "), "optimum", f"{risk['optimum']:.1%}"])
        for name, risk in found.items()
    ]
    panel.set_xticks(range(len(found)), words)
    panel.set_ylim(0, 1.35 * max(max(r["optimum"], r["measured"][2]) for r in found.values()))
    s.share_axis(panel)


# ------------------------------------------------------------------------------------------- decide


def decide_two_gaussians(data: FigureData) -> list[Claim]:
    """Decide Theorem 1, at the optimum and in trained networks, and what attacks in training do."""
    facts = data.facts
    risks = facts["risks"]["natural"]
    hard, easy = (risks[f"standard, {which}"]["optimum"] for which in GAUSSIAN_CLASSES)
    gap = facts["hard less easy"]["standard"]
    change = facts["adversarial less standard"]
    return [
        Claim(
            "the class of larger variance has the larger natural risk, at the optimum (VIR App. A)",
            "Theorem 1, closed forms",
            f"{hard:.1%} and {easy:.1%} where one class is {facts['ratio']:g} times as wide",
            exact=hard > easy,
            number=53,
        ),
        Claim(
            "and in linear networks of standard training (VIR App. A)",
            "Theorem 1, closed forms",
            f"difference {format_points(gap, ' points')} over {count_seeds(facts['seeds'])}",
            (Estimate("hard - easy", "> 0", *gap),),
            number=53,
            seeds=facts["seeds"],
        ),
        Claim(
            "adversarial training makes the harder class's natural risk larger and the easier "
            "one's smaller (VIR App. A)",
            "no numbers",
            f"harder {format_points(change['harder'], ' points')}, easier "
            f"{format_points(change['easier'], ' points')} over {count_seeds(facts['seeds'])}",
            (
                Estimate("harder", "> 0", *change["harder"]),
                Estimate("easier", "< 0", *change["easier"]),
            ),
            seeds=facts["seeds"],
        ),
    ]


def describe_two_gaussians(data: FigureData) -> str:
    """The caption: both classes' natural risk at the optimum, and in trained networks."""
    facts = data.facts
    words = "; ".join(
        f"{name} {risk['optimum']:.1%} at the optimum, {np.mean(risk['weights']):.1%} by the "
        f"trained weights, {risk['measured'][0]:.1%} measured"
        for name, risk in facts["risks"]["natural"].items()
    )
    return (
        "VIR's Theorem 1: of two Gaussian classes the wider one has the larger natural risk. "
        f"{data.setting}, {count_seeds(facts['seeds'])}, {facts['n_per_class']} test images a "
        f"class, natural risks: {words}. Bars are the optimum, which has the least risk over "
        "both classes together; marks are trained networks."
    )
