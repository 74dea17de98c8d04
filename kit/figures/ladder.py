"""The ladder of an audit: accuracy with its interval, attack by attack, and the lights of the rules."""

from __future__ import annotations

from collections.abc import Mapping

from kit.audit import COLOURS, Audit
from kit.figures import style as s
from kit.figures.drawing import Drawing
from kit.masking import RULES
from kit.types import KitError

#: A light is told by its shape, too.
SHAPES = {"red": "X", "amber": "^", "green": "o", "not judged": "s"}


def ladder(audits: Mapping[str, Audit]) -> Drawing:
    """Accuracy under each attack, in the ladder's order, one line a method; below it the ten rules' lights.

    Errors: `KitError` for no audits, or one in which nothing was attacked.
    """
    if not audits or any(report.ladder.empty for report in audits.values()):
        raise KitError("the ladder needs audits in which at least one attack was run: ladder({'at': kit.audit(run)})")
    attacks = list(dict.fromkeys(name for report in audits.values() for name in report.ladder.index))
    attacks.sort(key=lambda name: ("aa", "worst case").index(name) + 1 if name in ("aa", "worst case") else 0)
    place = {name: i for i, name in enumerate(attacks)}
    drawing = Drawing(7.5, 4.4 + 0.22 * len(audits))
    upper, lower = drawing.subplots(2, 1, height_ratios=[4.2, 0.5 + 0.3 * len(audits)])
    for number, (method, report) in enumerate(audits.items()):
        table, shift = report.ladder, 0.16 * (number - (len(audits) - 1) / 2)
        x = [place[name] + shift for name in table.index]
        upper.errorbar(x, table["accuracy"], yerr=[table["accuracy"] - table["low"], table["high"] - table["accuracy"]],
                       fmt="o", markersize=4, capsize=2, elinewidth=1, color=s.colour(method), label=s.label(method))
        for rule, finding in enumerate(report.findings):
            lower.plot(rule, number, SHAPES[finding.light], color=COLOURS[finding.light], markersize=9)
    upper.set_xticks(range(len(attacks)), [s.attack_label(name) if name != "worst case" else name for name in attacks],
                     rotation=40, ha="right")
    upper.set(ylabel="accuracy", ylim=(0, 1.02), title="The same images under ever stronger attacks")
    upper.grid(axis="y")
    s.share_axis(upper)
    upper.legend()
    lower.set_yticks(range(len(audits)), [s.label(method) for method in audits])
    lower.set_xticks(range(len(RULES)), [str(rule + 1) for rule in range(len(RULES))])
    lower.set(ylim=(len(audits) - 0.5, -0.5), xlabel="rule (✖ red, ▲ amber, ● green, ■ not judged)",
              title="Signs of masking")
    drawing.facts = {method: report.record() for method, report in audits.items()}
    drawing.caption = " ".join([
        "Accuracy with 95 % intervals; aa is the union of AutoAttack's four attacks, worst case that of all.",
        *(_sentence(method, report) for method, report in audits.items())])
    return drawing


def _sentence(method: str, report: Audit) -> str:
    last = report.ladder.iloc[-1]
    doubts = [f"{finding.light}: {finding.rule}" for finding in report.findings if finding.light in ("red", "amber")]
    return (f"{s.label(method)}: {last['accuracy']:.1%} [{last['low']:.1%}, {last['high']:.1%}] in the "
            f"{report.ladder.index[-1]} (n = {int(last['n'])}), {'; '.join(doubts) or 'no rule fires'}.")
