"""MAIL Fig. 1c: AT and GAIRAT under PGD, CW and AutoAttack."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from kit.attacks.table import attack_label
from kit.core.parameters import Count, check_value
from kit.evaluation.accuracy import evaluate
from kit.evaluation.statistics import Interval, difference_interval, paired_difference, wilson
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData, format_points
from kit.figures.run_outputs import describe_setting
from kit.papers.claim_verdict import Estimate

#: MAIL Table 2: (54.81 - 48.91) - (39.86 - 51.61), in points.
PRINTED_INTERACTION = 17.65


def compute_pgd_against_cw(runs: Mapping[str, Run], *, aa: Count = 100) -> FigureData:
    """AT and GAIRAT on clean images, under PGD-100, CW and AutoAttack, and the interaction.

    Adopted networks have their accuracies beside them.
    The interaction is GAIRAT - AT under PGD minus the same under CW or AutoAttack, paired over
    images. AutoAttack sees the first `aa` test images.
    """
    first = next(iter(runs.values()))
    subset = min(check_value("aa", aa, Count), len(first.final["test_y"]))
    attacks = {"natural": 0, "pgd100": 0, "cw20": 0, "aa": subset}
    right = {
        method: {
            name: ~evaluate(run, [name], n=n, quiet=True).attrs["examples"][name]["broken"]
            for name, n in attacks.items()
        }
        for method, run in runs.items()
    }
    facts = {
        "n": {name: len(right["at"][name]) for name in attacks},
        "accuracy": {
            method: {
                name: (float(flags.mean()), *wilson(int(flags.sum()), len(flags)))
                for name, flags in found.items()
            }
            for method, found in right.items()
        },
        "pgd100_where_aa": {
            method: (
                float(found["pgd100"][:subset].mean()),
                *wilson(int(found["pgd100"][:subset].sum()), subset),
            )
            for method, found in right.items()
        },
        "gain": {
            name: paired_difference(~right["at"][name], ~right["gairat"][name]) for name in attacks
        },
        "interaction": {name: measure_interaction(right, name) for name in ("cw20", "aa")},
        "printed": PRINTED_INTERACTION,
    }
    return FigureData(facts, describe_setting(first))


def measure_interaction(right: dict[str, dict[str, np.ndarray]], other: str) -> Interval:
    """GAIRAT minus AT under PGD-100 minus the same under `other`.

    Over the images that both attacks saw.
    """
    n = len(right["at"][other])
    gain = {
        name: right["gairat"][name][:n].astype(float) - right["at"][name][:n]
        for name in ("pgd100", other)
    }
    difference = gain["pgd100"] - gain[other]
    return difference_interval(difference)


def draw_pgd_against_cw(data: FigureData) -> Drawing:
    """Draw accuracy as bars per attack, and the interaction beside the printed one."""
    drawing = Drawing(7.2 + 0.5 * len(data.facts["accuracy"]), 3.1)
    bars, dots = drawing.subplots(1, 2, width_ratios=(5, 3))
    _draw_paired_bars(bars, *_list_bars(data.facts))
    _draw_interaction(dots, data.facts["interaction"], data.facts["n"])
    return drawing


def _list_bars(facts: dict) -> tuple[dict[str, dict], list[str]]:
    """({network: {what: accuracy}}, what stands below each group of bars).

    Where AutoAttack sees fewer images, PGD-100 on these stands beside it: the difference of the two
    is taken on them.
    """
    n, whole = facts["n"], facts["accuracy"]
    words = {name: f"{_attack_or_clean(name)}\nn = {size}" for name, size in n.items()}
    if n["aa"] == n["pgd100"]:
        return whole, list(words.values())
    *others, last = words
    accuracy = {
        method: {name: found[name] for name in others}
        | {"same": facts["pgd100_where_aa"][method], last: found[last]}
        for method, found in whole.items()
    }
    return accuracy, [
        *(words[name] for name in others),
        f"PGD-100\nfirst {n['aa']}",
        f"{_attack_or_clean(last)}\nfirst {n['aa']}",
    ]


def _attack_or_clean(name: str) -> str:
    return name if name == "natural" else attack_label(name)


def _draw_paired_bars(axes: Axes, accuracy: dict[str, dict], names: list[str]) -> None:
    """Draw accuracy with Wilson's interval, bars of all networks per attack."""
    width = 0.76 / len(accuracy)
    for rank, (method, found) in enumerate(accuracy.items()):
        share, low, high = np.array(list(found.values())).T
        place = np.arange(len(share)) + (rank - (len(accuracy) - 1) / 2) * width
        axes.bar(
            place,
            share,
            width * 0.94,
            color=s.colour(method),
            yerr=np.clip([share - low, high - share], 0, None),
            ecolor="#333333",
            error_kw={"linewidth": 1},
            capsize=2,
        )
        for x, value, top in zip(place, share, high, strict=True):
            s.write_above(axes, x, top, f"{100 * value:.0f}")
        axes.annotate(
            s.label(method),
            (1, 0.97 - 0.09 * rank),
            xycoords="axes fraction",
            ha="right",
            va="top",
            color=s.colour(method),
            fontsize=9,
            fontweight="bold",
        )
    axes.set(
        xticks=range(len(names)),
        ylim=(0, 1.08),
        ylabel="test accuracy, 95 % interval",
        title=" and ".join(map(s.label, accuracy)),
    )
    axes.set_xticklabels(names, fontsize=7.5)
    s.share_axis(axes)


def _draw_interaction(axes: Axes, interaction: dict[str, Interval], n: dict[str, int]) -> None:
    for i, (mean, low, high) in enumerate(interaction.values()):
        axes.errorbar(
            100 * mean,
            i,
            xerr=[[100 * (mean - low)], [100 * (high - mean)]],
            fmt="o",
            color=s.BLUE,
            capsize=3,
        )
        s.write_above(axes, 100 * mean, i, f"{100 * mean:+.1f}", offset=7, size=8.5)
    axes.plot(PRINTED_INTERACTION, 0, "D", color=s.BLACK, markersize=5)
    words = f"paper {PRINTED_INTERACTION:+.2f}"
    s.write_above(axes, PRINTED_INTERACTION, 0, words, offset=-13)
    axes.axvline(0, color=s.GREY, linewidth=0.8, zorder=0)
    axes.set(
        yticks=range(2),
        ylim=(1.6, -0.6),
        xlabel="points, 95 % interval",
        title="GAIRAT's gain over AT:\nPGD-100 minus ...",
    )
    axes.set_yticklabels([f"under {attack_label(name)}\nn = {n[name]}" for name in interaction])
    axes.margins(x=0.15)


def decide_pgd_against_cw(data: FigureData) -> list[Claim]:
    """Decide the three signs of the figure and of Table 2, and their interaction."""
    gain, n = data.facts["gain"], data.facts["n"]
    signs = (
        ("GAIRAT beats AT under PGD-100", "pgd100", 1, "54.81 against 48.91"),
        ("GAIRAT falls below AT under CW", "cw20", -1, "39.86 against 51.61"),
        ("GAIRAT falls below AT under AutoAttack", "aa", -1, "33.35 against 44.90"),
    )
    claims = []
    for words, name, sign, printed in signs:
        expected = "> 0" if sign > 0 else "< 0"
        claims.append(
            Claim(
                f"{words} (MAIL Fig. 1c, T2)",
                printed,
                f"{format_points(gain[name], ' points')}, n = {n[name]}",
                (Estimate(f"GAIRAT - AT, {name}", expected, *gain[name]),),
                number=18,
            )
        )
    interaction = data.facts["interaction"]["cw20"]
    return [
        *claims,
        Claim(
            "GAIRAT's gain under PGD is not there under CW (MAIL Fig. 1c)",
            f"{PRINTED_INTERACTION:+.2f} points",
            f"{format_points(interaction, ' points')}, n = {n['cw20']}",
            (Estimate("gain under PGD - gain under CW", "> 0", *interaction),),
            number=18,
        ),
    ]


def describe_pgd_against_cw(data: FigureData) -> str:
    """The caption: GAIRAT minus AT under each attack, and the interaction."""
    facts = data.facts
    gains = "; ".join(
        f"{_attack_or_clean(name)} {format_points(facts['gain'][name], ' points')}, n = {n}"
        for name, n in facts["n"].items()
    )
    interaction = format_points(facts["interaction"]["cw20"], " points")
    few = facts["n"]["aa"]
    same = " and ".join(
        f"{s.label(method)} {facts['pgd100_where_aa'][method][0]:.1%}"
        for method in ("at", "gairat")
    )
    on_these = (
        f" AA takes long, so it sees the first {few} images; on these PGD-100 leaves {same}."
        if few < facts["n"]["pgd100"]
        else ""
    )
    return (
        "MAIL Fig. 1c claims that GAIRAT beats AT under PGD and falls far below it under CW. "
        f"{data.setting}: GAIRAT minus AT, paired, 95 %: {gains}. Gain under PGD-100 minus gain "
        f"under CW {interaction}; from the paper's Table 2 {PRINTED_INTERACTION:+.2f} on CIFAR-10."
        f"{on_these}"
    )
