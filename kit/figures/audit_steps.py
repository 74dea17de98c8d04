"""The ladder of an audit:

accuracy with its interval, attack by attack, and the lights of the rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kit.core.errors import KitError
from kit.core.parameters import Count, Natural, check_value
from kit.evaluation.accuracy import evaluate
from kit.evaluation.masking_rules import AUTOATTACK_PARTS, RULES
from kit.evaluation.robustness_audit import COLOURS, Audit, audit, transfer_images
from kit.evaluation.statistics import wilson
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing
from kit.figures.reading import setting

#: A light is told by its shape, too.
MARKERS = {"red": "X", "amber": "^", "green": "o", "not judged": "s"}


def audit_steps(audits: Mapping[str, Audit]) -> Drawing:
    """Accuracy under each attack, in the ladder's order, one line a method; below it the ten rules'
    lights.

    Errors: `KitError` for no audits, or one in which nothing was attacked.
    """
    if not audits or any(report.ladder.empty for report in audits.values()):
        raise KitError(
            "the ladder needs audits in which at least one attack was run: ladder({'at': "
            "kit.audit(run)})"
        )
    attacks = list(
        dict.fromkeys(name for report in audits.values() for name in report.ladder.index)
    )
    attacks.sort(
        key=lambda name: ("aa", "worst case").index(name) + 1 if name in ("aa", "worst case") else 0
    )
    place = {name: i for i, name in enumerate(attacks)}
    drawing = Drawing(7.5, 4.4 + 0.22 * len(audits))
    upper, lower = drawing.subplots(2, 1, height_ratios=[4.2, 0.5 + 0.3 * len(audits)])
    for number, (method, report) in enumerate(audits.items()):
        table, shift = report.ladder, 0.16 * (number - (len(audits) - 1) / 2)
        x = [place[name] + shift for name in table.index]
        upper.errorbar(
            x,
            table["accuracy"],
            yerr=[table["accuracy"] - table["low"], table["high"] - table["accuracy"]],
            fmt="o",
            markersize=4,
            capsize=2,
            elinewidth=1,
            color=s.colour(method),
            label=s.label(method),
        )
        for rule, finding in enumerate(report.findings):
            lower.plot(
                rule, number, MARKERS[finding.light], color=COLOURS[finding.light], markersize=9
            )
    upper.set_xticks(
        range(len(attacks)),
        [s.attack_label(name) if name != "worst case" else name for name in attacks],
        rotation=40,
        ha="right",
    )
    upper.set(
        ylabel="accuracy", ylim=(0, 1.02), title="The same images under ever stronger attacks"
    )
    upper.grid(axis="y")
    s.share_axis(upper)
    upper.legend()
    lower.set_yticks(range(len(audits)), [s.label(method) for method in audits])
    lower.set_xticks(range(len(RULES)), [str(rule + 1) for rule in range(len(RULES))])
    lower.set(
        ylim=(len(audits) - 0.5, -0.5),
        xlabel="rule (✖ red, ▲ amber, ● green, ■ not judged)",
        title="Signs of masking",
    )
    drawing.facts = {method: report.record() for method, report in audits.items()}
    drawing.caption = " ".join(
        [
            "Accuracy with 95 % intervals; aa is the union of AutoAttack's four attacks, worst "
            "case that of all.",
            *(_sentence(method, report) for method, report in audits.items()),
        ]
    )
    return drawing


def draw_step(runs: Sequence[Run], *, n: int = 100) -> Drawing:
    """The audits of several runs on the same `n` test images side by side (0 = all), and the gap
    between PGD-100 and AutoAttack: how much larger than AT's is it? That gap is what MAIL calls
    obfuscated gradients.
    """
    audits = {run.method: audit(run, n=n, quiet=True) for run in runs}
    drawing = audit_steps(audits)
    drawing.caption = f"{setting(runs[0])}. {drawing.caption}"
    lost = {
        method: _lost(report)
        for method, report in audits.items()
        if {"pgd100", *AUTOATTACK_PARTS} <= set(report.examples)
    }
    drawing.facts["gap"] = {
        method: dict(zip(("mean", "low", "high"), mean_interval(values), strict=True))
        for method, values in lost.items()
    }
    for method, printed in (
        ("gairat", "21.46 points on ResNet-18, AT's 4.01"),
        ("mail-at", "11.03 points, AT's 4.01"),
    ):
        if {method, "at"} <= set(lost) and len(lost[method]) == len(lost["at"]):
            mean, low, high = mean_interval(lost[method] - lost["at"])
            drawing.claims.append(
                Claim(
                    f"{s.label(method)} loses more than AT between PGD-100 and AutoAttack (MAIL s. "
                    f"4.2, Table 2)",
                    printed,
                    f"{100 * mean:+.1f} points more than AT [{100 * low:+.1f}, {100 * high:+.1f}], "
                    f"n = {len(lost['at'])}",
                    holds=low > 0,
                    fails=high < 0,
                )
            )
    return drawing


def _lost(report: Audit) -> np.ndarray:
    """Per image that both attacks saw:

    1 where AutoAttack breaks it and PGD-100 does not, -1 the other way round.
    """
    seen = report.examples[["pgd100", *AUTOATTACK_PARTS]].dropna().astype(bool)
    return (
        seen[list(AUTOATTACK_PARTS)].any(axis=1).to_numpy().astype(float)
        - seen["pgd100"].to_numpy()
    )


def black_box(runs: Sequence[Run], *, n: int = 100, spsa: int = 20) -> Drawing:
    """Accuracy of each run under PGD-100, under Square and SPSA, which ask for logits alone, and
    under images made for the next of the runs. Whoever is weaker there than under PGD-100 hides its
    gradients.

    All on the first `n` test images (0 = all), SPSA on `spsa`. Errors: `KitError` for a single run,
    which has no other to take images from, or for a size below 1.
    """
    if len(runs) < 2:
        raise KitError(
            "black-box needs at least two runs: each is attacked with images made for another"
        )
    check_value("n", n, Natural)
    check_value("spsa", spsa, Count)
    attacks, facts = ("pgd100", "square", "spsa100", "transfer"), {}
    for run, other in zip(runs, [*runs[1:], runs[0]], strict=True):
        sizes = {"pgd100": n, "square": n, "spsa100": spsa}
        broken = {
            name: evaluate(run, [name], n=size, quiet=True).attrs["examples"][name]["broken"]
            for name, size in sizes.items()
        }
        images = run.data().test.take(slice(0, n or None))
        broken["transfer"] = transfer_images(
            other.model(), run.model(), images, run.plan.recipe.threat
        )["broken"]
        facts[run.method] = {
            "source": other.method,
            **{name: _share(values) for name, values in broken.items()},
            "square_less_pgd": mean_interval(broken["pgd100"].astype(float) - broken["square"]),
        }
    drawing = Drawing(7.2, 1.3 + 0.42 * len(runs))
    axes = drawing.subplots()
    looks = dict(
        zip(
            attacks,
            (
                (s.BLACK, "o", "PGD-100, white box"),
                (s.BLUE, "s", "Square"),
                (s.ORANGE, "D", "SPSA"),
                (s.GREEN, "^", "images made for another run"),
            ),
            strict=True,
        )
    )
    for line, fact in enumerate(facts.values()):
        for place, (name, (tint, marker, _)) in enumerate(looks.items()):
            share, low, high, _ = fact[name]
            axes.errorbar(
                share,
                line + 0.17 * (place - 1.5),
                xerr=[[share - low], [high - share]],
                fmt=marker,
                color=tint,
                markersize=4.5,
                elinewidth=1,
                capsize=0,
            )
    for tint, marker, words in looks.values():
        axes.plot([], [], marker, color=tint, label=words, markersize=4.5)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=4,
        fontsize=8,
        borderaxespad=0.2,
        handletextpad=0.2,
    )
    axes.set(
        yticks=range(len(facts)),
        ylim=(len(facts) - 0.5, -0.5),
        xlim=(0, 1),
        xlabel="accuracy, 95 % interval",
    )
    axes.set_yticklabels([s.label(method) for method in facts])
    s.share_axis(axes, "x")
    axes.set_title("Without gradients", pad=22)
    drawing.facts = {
        method: {
            key: list(value) if isinstance(value, tuple) else value for key, value in fact.items()
        }
        for method, fact in facts.items()
    }
    drawing.claims = [
        _hides(method, fact["square_less_pgd"], fact["square"][3])
        for method, fact in facts.items()
        if method in ("at", "gairat")
    ]
    words = "; ".join(
        f"{s.label(method)} {fact['pgd100'][0]:.1%} under PGD-100, {fact['square'][0]:.1%} under "
        f"Square, "
        f"{fact['spsa100'][0]:.1%} under SPSA, {fact['transfer'][0]:.1%} on images made for "
        f"{s.label(fact['source'])}"
        for method, fact in facts.items()
    )
    drawing.caption = (
        "VIR Table 5 attacks without gradients, and finds GAIRAT weaker there (51.97 % under "
        "Square on WRN-34-10) than "
        f"under PGD-100 (57.09 %). {setting(runs[0])}, n = {len(broken['square'])}, SPSA "
        f"{len(broken['spsa100'])}: {words}."
    )
    return drawing


def _hides(method: str, difference: tuple[float, float, float], n: int) -> Claim:
    mean, low, high = (100 * value for value in difference)
    here = f"Square less PGD-100 {mean:+.1f} points [{low:+.1f}, {high:+.1f}], n = {n}"
    if method == "gairat":
        return Claim(
            "GAIRAT is weaker under black-box attacks than under PGD-100 (VIR s. 5.5, Tables 2, 5)",
            "51.97 against 57.09",
            here,
            holds=high < 0,
            fails=low > 0,
        )
    return Claim(
        "AT is not weaker under black-box attacks than under PGD-100 (VIR Tables 2, 5)",
        "60.12 against 54.45",
        here,
        holds=low > 0,
        fails=high < 0,
    )


def _share(broken: np.ndarray) -> tuple[float, float, float, int]:
    right = int((~broken).sum())
    return (right / len(broken), *wilson(right, len(broken)), len(broken))


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) of paired differences, 95 %, normal; no spread is seen in a single value."""
    half = 1.959964 * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("inf")
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def _sentence(method: str, report: Audit) -> str:
    last = report.ladder.iloc[-1]
    doubts = [
        f"{finding.light}: {finding.rule}"
        for finding in report.findings
        if finding.light in ("red", "amber")
    ]
    return (
        f"{s.label(method)}: {last['accuracy']:.1%} [{last['low']:.1%}, {last['high']:.1%}] in the "
        f"{report.ladder.index[-1]} (n = {int(last['n'])}), {'; '.join(doubts) or 'no rule fires'}."
    )
