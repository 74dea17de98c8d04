"""CSA/CSE s. III: whom does a cost protect at whose cost, and what brings Min-Max parameters?"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes

from kit.attacks.table import attack_label
from kit.evaluation.accuracy import evaluate
from kit.evaluation.statistics import Interval, paired_difference, share_with_interval
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData, format_points
from kit.figures.csa_cse_parameters import measure_shape
from kit.figures.run_outputs import describe_setting, protected_class
from kit.methods.regularisers import conv_weights
from kit.papers.claim_verdict import Estimate, exactly

#: Points of accuracy that "unharmed" allows.
UNHARMED = 0.5

#: The order that Fig. 4 gives its networks, the least protected first.
PROTECTION = ("adv", "csa-l2", "csa")

# ---------------------------------------------------------------------------- the protected class


def compute_class_protection(runs: Mapping[str, Run], *, attack: str = "pgd20") -> FigureData:
    """Accuracy of the protected class and of all classes, without attack and under one.

    Beside them stand the paired differences that the paper speaks of: of the protected class from
    one network of Fig. 4 to the next, and of all classes from STD to CSA and to CSE. Adopted
    networks have their accuracies beside them.
    """
    first = next(iter(runs.values()))
    protected = protected_class(runs["csa"])
    attacks = ("natural", attack)
    broken: dict[str, dict[str, np.ndarray]] = {name: {} for name in attacks}
    y = np.array([])
    for method, run in runs.items():
        examples = evaluate(run, attacks, quiet=True).attrs["examples"]
        y = examples["natural"]["y"]
        for name in attacks:
            broken[name][method] = examples[name]["broken"]
    mine = y == protected
    rows = {"class": mine, "all": np.ones_like(mine)}
    accuracy = {
        name: {
            group: {method: share_with_interval(~b[rows[group]]) for method, b in found.items()}
            for group in rows
        }
        for name, found in broken.items()
    }
    steps = {
        f"{s.label(after)} - {s.label(before)}": paired_difference(
            broken[attack][before][mine], broken[attack][after][mine]
        )
        for before, after in pairwise(PROTECTION)
    }
    above_std = {
        method: {name: paired_difference(b["std"], b[method]) for name, b in broken.items()}
        for method in ("csa", "cse")
    }
    facts = {
        "attack": attack,
        "protected": first.record["classes"][protected],
        "n": len(y),
        "n_protected": int(mine.sum()),
        "accuracy": accuracy,
        "steps": steps,
        "above_std": above_std,
    }
    return FigureData(facts, describe_setting(first))


def draw_class_protection(data: FigureData) -> Drawing:
    """Draw the protected class (a) and all classes (b), without attack and under one."""
    facts, drawing = data.facts, Drawing(7.2, 3.0)
    panels = drawing.subplots(1, 2, sharey=True)
    titles = (
        f"a  Class {facts['protected']}, protected (n = {facts['n_protected']})",
        f"b  All classes (n = {facts['n']})",
    )
    for axes, group, title in zip(panels, ("class", "all"), titles, strict=True):
        _draw_protection(axes, facts, group)
        axes.set_title(title)
    panels[0].set_ylabel("accuracy / %")
    panels[1].set_ylabel("accuracy / %")
    panels[0].legend(loc="lower left", fontsize=7.5)
    return drawing


def _draw_protection(axes: Axes, facts: Mapping, group: str) -> None:
    looks = {"natural": (s.SKY, "o", -0.12), facts["attack"]: (s.VERMILLION, "s", 0.12)}
    methods: list[str] = []
    for name, (tint, marker, shift) in looks.items():
        found = facts["accuracy"][name][group]
        methods = list(found)
        share, low, high = (
            100 * np.array([one[key] for one in found.values()]) for key in ("share", "low", "high")
        )
        axes.errorbar(
            np.arange(len(methods)) + shift,
            share,
            yerr=[share - low, high - share],
            fmt=marker,
            markersize=5,
            color=tint,
            capsize=3,
            label=attack_label(name),
        )
    axes.set(xticks=range(len(methods)), ylim=(0, 103))
    axes.set_xticklabels([s.label(method) for method in methods])


def decide_class_protection(data: FigureData) -> list[Claim]:
    """Decide whether protection rises from ADV over CSA+L2 to CSA, and what all classes pay."""
    facts = data.facts
    under = attack_label(facts["attack"])
    rising = tuple(Estimate(name, "> 0", *step) for name, step in facts["steps"].items())
    measured = ", ".join(
        f"{name} {format_points(step, ' points')}" for name, step in facts["steps"].items()
    )
    order = " < ".join(map(s.label, PROTECTION))
    what = f"the protected class under {under}: {order}"
    return [
        *(
            Claim(f"{what} ({where})", "a curve", measured, rising, number=number)
            for number, where in ((74, "CSA Fig. 4"), (104, "CSA s. III-C"))
        ),
        *(
            Claim(
                f"{s.label(method)} against STD over all classes: unharmed without attack, better "
                f"under {under} (CSA/CSE abstract)",
                "no table has it",
                ", ".join(
                    f"{attack_label(a)} {format_points(d, ' points')}" for a, d in found.items()
                ),
                (
                    _in_percent("natural", found["natural"], f">= -{UNHARMED:g}"),
                    _in_percent(facts["attack"], found[facts["attack"]], "> 0"),
                ),
                number=88,
            )
            for method, found in facts["above_std"].items()
        ),
    ]


def _in_percent(name: str, difference: Interval, expected: str) -> Estimate:
    """A difference of accuracies in points."""
    value, low, high = (100 * edge for edge in difference)
    return Estimate(f"{name}, points", expected, value, low, high)


def describe_class_protection(data: FigureData) -> str:
    """The caption: what the cost brings the protected class, and all of them."""
    facts = data.facts
    under = facts["attack"]
    gains = "; ".join(
        f"{s.label(method)} {format_points(found['natural'], ' points')} without attack and "
        f"{format_points(found[under], ' points')} under it"
        for method, found in facts["above_std"].items()
    )
    steps = ", ".join(
        f"{name} {format_points(step, ' points')}" for name, step in facts["steps"].items()
    )
    return (
        f"CSA protects class {facts['protected']}. {data.setting}: under {attack_label(under)} "
        f"its accuracy changes by {steps} ({facts['n_protected']} images). Over all classes, "
        f"against STD: {gains} ({facts['n']} images; paired 95 % intervals)."
    )


# --------------------------------------------------------------------- where Min-Max comes from


def compute_min_max_origin(runs: Mapping[str, Run], *, layer: int = 0) -> FigureData:
    """Sizes of one convolution's parameters: at the start, after STD, and after ADV.

    Both runs of a seed start from the same values, so that what differs is what training did.
    `layer` counts convolutions from the input.
    """
    std, adv = runs["std"], runs["adv"]
    name = list(conv_weights(std.model()))[layer]
    networks = {
        "initial": std.model("initial"),
        "std": std.model("last"),
        "adv": adv.model("last"),
    }
    values = {
        which: conv_weights(network)[name].detach().flatten().double().numpy()
        for which, network in networks.items()
    }
    shapes = {which: measure_shape(v) for which, v in values.items()}
    return FigureData(
        {"layer": name, "n": len(values["initial"]), "networks": shapes},
        describe_setting(std),
        extras={"values": values, "layer": layer},
    )


def draw_min_max_origin(data: FigureData) -> Drawing:
    """Draw the cumulative share of parameters by their size, for each of the three networks."""
    drawing = Drawing(4.6, 3.5)
    axes = drawing.subplots()
    looks = {"initial": ("start", s.BLACK, ":"), "std": ("STD", s.colour("std"), "-")} | {
        "adv": (s.label("adv"), s.colour("adv"), "-")
    }
    for which, values in data.extras["values"].items():
        name, tint, line = looks[which]
        sizes = np.sort(np.abs(values))
        share = 100 * np.arange(1, len(sizes) + 1) / len(sizes)
        found = data.facts["networks"][which]
        words = f"{name}: {found['below_0.05']:.1%} below 0.05, largest {found['max']:.2f}"
        axes.step(sizes, share, where="post", color=tint, linestyle=line, label=words)
    axes.plot([0.05, 0.05], [0, 100], color=s.BLACK, linewidth=0.7, linestyle="--")
    axes.set(
        xscale="log",
        xlim=(1e-3, None),
        ylim=(0, 102),
        yticks=(0, 25, 50, 75, 100),
        xlabel=f"size $|w|$ (convolution {data.extras['layer'] + 1}, n = {data.facts['n']})",
        ylabel="parameters up to that size / %",
        title="Sizes before and after training",
    )
    drawing.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize=7.5)
    return drawing


def decide_min_max_origin(data: FigureData) -> list[Claim]:
    """Decide whether ADV has more parameters near zero, and larger ones, than STD has."""
    networks = data.facts["networks"]
    parts = {"below_0.05": "share near zero", "max": "largest parameter"}
    return [
        Claim(
            f"{words}: ADV above STD, from the same start (CSA s. III)",
            "in words",
            f"start {networks['initial'][key]:.3g}, STD {networks['std'][key]:.3g}, ADV "
            f"{networks['adv'][key]:.3g}",
            (exactly(f"{words}, ADV - STD", networks["adv"][key] - networks["std"][key], "> 0"),),
            number=103,
        )
        for key, words in parts.items()
    ]


def describe_min_max_origin(data: FigureData) -> str:
    """The caption: near-zero shares and largest parameters of the three networks."""
    networks = data.facts["networks"]
    near, largest = (
        " / ".join(form.format(found[key]) for found in networks.values())
        for key, form in (("below_0.05", "{:.1%}"), ("max", "{:.2f}"))
    )
    return (
        "CSA says that adversarial training brings Min-Max parameters. "
        f"{data.setting}, convolution {data.extras['layer'] + 1} at the start / after STD / after "
        f"ADV: {near} of its {data.facts['n']} parameters have |w| < 0.05, and the largest is "
        f"{largest}."
    )
