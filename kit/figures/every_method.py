"""Accuracy of every method with 95 % intervals: clean, under PGD and under the margin attack."""

from __future__ import annotations

from collections.abc import Sequence

from kit.attacks.table import attack_label
from kit.evaluation.result_tables import result_table
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Drawing, FigureData
from kit.figures.run_outputs import describe_setting
from kit.methods.table import METHODS

#: (colour, marker) of the attacks, in their order.
_MARKS = ((s.GREY, "o"), (s.BLUE, "s"), (s.VERMILLION, "D"), (s.GREEN, "^"), (s.PURPLE, "v"))


def compute_every_method(
    runs: Sequence[Run], *, attacks: str = "natural pgd100 cw20"
) -> FigureData:
    """{method: {attack: [accuracy, low, high]}}, methods in the order of accuracy under the last.

    Runs of one method that differ in their seed alone are one row.
    """
    names = attacks.split()
    table = result_table("", runs, names)
    order = table.cells["mean"].unstack(sort=False)[names[-1]].sort_values().index
    facts = {
        method: {
            attack: [float(table.cells.loc[(method, attack)][k]) for k in ("mean", "low", "high")]
            for attack in names
        }
        for method in order
    }
    extras = {"attacks": names, "words": table.caption.lstrip(". ")}
    return FigureData(facts, describe_setting(runs[0], seed=False), extras=extras)


def draw_every_method(data: FigureData) -> Drawing:
    """Draw a row per method with a mark and an interval per attack."""
    facts, places = data.facts, range(len(data.facts))
    drawing = Drawing(7.2, max(2.4, 0.21 * len(facts) + 1.1))
    axes = drawing.subplots()
    looks = dict(zip(data.extras["attacks"], _MARKS, strict=False))
    for attack, (tint, marker) in looks.items():
        mean, low, high = zip(*(fact[attack] for fact in facts.values()), strict=True)
        axes.hlines(places, low, high, color=tint, linewidth=1, alpha=0.6)
        axes.plot(
            mean,
            places,
            marker,
            color=tint,
            markersize=3.5,
            linewidth=0,
            label=attack_label(attack),
        )
    axes.set_yticks(places, [_name_row(method) for method in facts], fontsize=8)
    axes.set(
        xlabel="accuracy, 95 % interval", xlim=(0, 1.0), ylim=(-1, len(facts)), title="Every method"
    )
    axes.grid(axis="y", linewidth=0.4)
    s.share_axis(axes, "x")
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=len(looks), fontsize=7.5
    )
    return drawing


def _name_row(method: str) -> str:
    """The method's name, and how many steps it takes a batch where that is not one."""
    row = METHODS.get(method)  # an adopted network's name is no row
    steps = len(row.stages(1, 2)) if row else 1
    return f"{method} ({steps} steps a batch)" if steps > 1 else method


def describe_every_method(data: FigureData) -> str:
    """The caption: seeds and images behind the table, and the order of the rows."""
    last = attack_label(data.extras["attacks"][-1])
    return f"{data.setting}. {data.extras['words']} Sorted by {last}."


def notice_every_method(data: FigureData) -> str:
    """Which method is ahead under the last attack, and under the one before it."""
    attacks = data.extras["attacks"]
    best = {
        attack: max(data.facts, key=lambda method: data.facts[method][attack][0])
        for attack in attacks
    }
    return (
        "The best mean belongs to "
        + ", ".join(f"{method} under {attack_label(attack)}" for attack, method in best.items())
        + ". Compare intervals before you call one method better than another."
    )
