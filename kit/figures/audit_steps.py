"""Audits side by side: the attacks in order of strength, and the lights of the ten rules."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from kit.attacks.table import ATTACKS, attack_label
from kit.core.errors import KitError
from kit.evaluation.audit_report import COLOURS, Audit
from kit.evaluation.masking_rules import AUTOATTACK_PARTS, RULES
from kit.evaluation.robustness_audit import audit
from kit.evaluation.statistics import difference_interval
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData, format_points
from kit.figures.run_outputs import describe_setting
from kit.papers.claim_verdict import Estimate

#: A light is told by its shape, too.
MARKERS = {"red": "X", "amber": "^", "green": "o", "not judged": "s"}

#: (method, what MAIL Table 2 prints, row of claims.csv).
_PRINTED_GAPS = (
    ("gairat", "21.46 points on ResNet-18, AT's 4.01", 19),
    ("mail-at", "11.03 points, AT's 4.01", None),
)


def compute_audit_steps(runs: Sequence[Run], *, n: int = 100, minutes: float = 0.0) -> FigureData:
    """Audit several runs on the same `n` test images (0 = all), and measure AutoAttack's gap.

    Of each audit, attacks that are not expected to fit into `minutes` are left out (0 = none).
    The gap is how much accuracy falls from PGD-100 to AutoAttack, and how much larger it is than
    AT's. MAIL calls it obfuscated gradients.
    """
    audits = {run.method: audit(run, n=n, budget=minutes or None, quiet=True) for run in runs}
    return compare_audits(audits, describe_setting(runs[0]))


def compare_audits(audits: Mapping[str, Audit], setting: str = "") -> FigureData:
    """{method: its audit} as the facts of this figure.

    Raises:
        KitError: for no audits, or one in which nothing was attacked.
    """
    if not audits or any(report.steps.empty for report in audits.values()):
        raise KitError(
            "this figure needs audits in which at least one attack was run: "
            "compare_audits({'at': kit.audit(run)})"
        )
    gaps = {
        method: _count_gap(report)
        for method, report in audits.items()
        if {"pgd100", *AUTOATTACK_PARTS} <= set(report.examples)
    }
    facts = {method: report.record() for method, report in audits.items()}
    facts["gap"] = {
        method: dict(zip(("mean", "low", "high"), difference_interval(values), strict=True))
        for method, values in gaps.items()
    }
    above = {
        method: (*difference_interval(gaps[method] - gaps["at"]), len(gaps["at"]))
        for method, *_ in _PRINTED_GAPS
        if {method, "at"} <= set(gaps) and len(gaps[method]) == len(gaps["at"])
    }
    return FigureData(facts, setting, extras={"audits": audits, "above_at": above})


def _count_gap(report: Audit) -> np.ndarray:
    """(n,) 1 where AutoAttack breaks an image and PGD-100 does not, -1 the other way round."""
    both = report.examples[["pgd100", *AUTOATTACK_PARTS]].dropna().astype(bool)
    return (
        both[list(AUTOATTACK_PARTS)].any(axis=1).to_numpy().astype(float)
        - both["pgd100"].to_numpy()
    )


def draw_audit_steps(data: FigureData) -> Drawing:
    """Draw accuracy under each attack, one column of marks a method; below it the rules' lights."""
    audits = data.extras["audits"]
    drawing = Drawing(7.5, 5.4 + 0.24 * len(audits))
    upper, lower = drawing.subplots(2, 1, height_ratios=[3.6, 0.5 + 0.24 * len(audits)])
    _draw_accuracies(upper, audits)
    _draw_lights(lower, audits)
    return drawing


def _draw_accuracies(axes: Axes, audits: Mapping[str, Audit]) -> None:
    last = ("aa", "worst case")
    names = dict.fromkeys(name for report in audits.values() for name in report.steps.index)
    attacks = sorted(names, key=lambda name: last.index(name) + 1 if name in last else 0)
    place = {name: i for i, name in enumerate(attacks)}
    for number, (method, report) in enumerate(audits.items()):
        table, shift = report.steps, 0.16 * (number - (len(audits) - 1) / 2)
        axes.errorbar(
            [place[name] + shift for name in table.index],
            table["accuracy"],
            yerr=[table["accuracy"] - table["low"], table["high"] - table["accuracy"]],
            fmt="o",
            markersize=4,
            capsize=2,
            elinewidth=1,
            clip_on=False,  # 0 % is there to be seen
            color=s.colour(method),
            label=s.label(method),
        )
    most = max(int(report.steps["n"].max()) for report in audits.values())
    axes.set_xticks(
        range(len(attacks)),
        [_name_attack(name, audits, most) for name in attacks],
        rotation=40,
        ha="right",
    )
    axes.set(ylabel="accuracy, 95 % interval", ylim=(0, 1.02))
    axes.set_title(f"Accuracy under each attack, n = {most} where no other n is named", pad=20)
    axes.grid(axis="y")
    s.share_axis(axes)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=min(len(audits), 6), borderaxespad=0.1
    )


def _name_attack(name: str, audits: Mapping[str, Audit], most: int) -> str:
    """The attack's name; with its n where it saw fewer images than the others."""
    sizes = {int(r.steps.loc[name, "n"]) for r in audits.values() if name in r.steps.index}
    label = name if name == "worst case" else attack_label(name)
    fewer = "" if sizes == {most} else f" (n = {', '.join(map(str, sorted(sizes)))})"
    return label + fewer


def _draw_lights(axes: Axes, audits: Mapping[str, Audit]) -> None:
    for number, report in enumerate(audits.values()):
        for rule, finding in enumerate(report.findings):
            axes.plot(
                rule, number, MARKERS[finding.light], color=COLOURS[finding.light], markersize=9
            )
    axes.set_yticks(range(len(audits)), [s.label(method) for method in audits])
    names = [textwrap.fill(rule, 24, break_on_hyphens=False) for rule in RULES]
    axes.set_xticks(range(len(RULES)), names, rotation=40, ha="right", fontsize=7.5)
    axes.set(
        ylim=(len(audits) - 0.5, -0.5),
        xlabel="expected of an unmasked network",
        title="Signs of masking: ✖ red, ▲ amber, ● green, ■ not judged",
    )


def decide_audit_steps(data: FigureData) -> list[Claim]:
    """Decide whether GAIRAT's and MAIL-AT's gaps are wider than AT's."""
    claims = []
    for method, printed, number in _PRINTED_GAPS:
        if method in data.extras["above_at"]:
            *interval, n = data.extras["above_at"][method]
            claims.append(
                Claim(
                    f"{s.label(method)} loses more than AT between PGD-100 and AutoAttack (MAIL "
                    "s. 4.2, Table 2)",
                    printed,
                    f"{format_points(interval, ' points more than AT')}, n = {n}",
                    (Estimate(f"{method} - at", "> 0", *interval),),
                    number=number,
                )
            )
    return claims


def describe_audit_steps(data: FigureData) -> str:
    """The caption: the worst case of each run, and what the rules that fire found.

    A rule is named by what is expected, so its name would say the contrary of what was found.
    """
    return " ".join(
        [
            *([f"{data.setting}."] if data.setting else []),
            "Accuracy with 95 % intervals; aa is the union of AutoAttack's four attacks, worst "
            "case that of all.",
            *(_describe_audit(method, report) for method, report in data.extras["audits"].items()),
        ]
    )


def _describe_audit(method: str, report: Audit) -> str:
    last = report.steps.iloc[-1]
    doubts = [
        f"{finding.light}: {finding.sentence.rstrip('.')}"
        for finding in report.findings
        if finding.light in ("red", "amber")
    ]
    calm = "nothing could be judged" if report.light == "not judged" else "no rule fires"
    left = ", ".join(attack_label(name) for name in report.missing if name in ATTACKS)
    return (
        f"{s.label(method)}: {last['accuracy']:.1%} [{last['low']:.1%}, {last['high']:.1%}] in the "
        f"{report.steps.index[-1]} (n = {int(last['n'])}), {'; '.join(doubts) or calm}."
        f"{f' Not run: {left}.' if left else ''}"
    )
