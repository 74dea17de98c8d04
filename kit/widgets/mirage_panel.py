"""The mirage meter:

how robust a network looks under one attack, and what is left of it under the next.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from kit.core.errors import KitError
from kit.core.parameters import Natural, check_value
from kit.evaluation.accuracy import evaluate
from kit.evaluation.masking_rules import (
    AUTOATTACK_PARTS,
    RULES,
    Evidence,
    Finding,
    Light,
    worst_light,
)
from kit.evaluation.robustness_audit import COLOURS
from kit.evaluation.statistics import wilson
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.audit_steps import MARKERS
from kit.papers.measured_cells import is_kept
from kit.papers.table_runs import Evaluation
from kit.widgets.panel import Number, Panel, Toggle

#: The rungs and what is evaluated for each: ever stronger attacks, and AutoAttack, here the union
#: of its four on all images (ATTACKS["aa"] runs each on what the one before left, from other random
#: starts, and may differ by an image).
STEPS = {
    "natural": ("natural",),
    "fgsm": ("fgsm",),
    "pgd20": ("pgd20",),
    "pgd100": ("pgd100",),
    "cw20": ("cw20",),
    **{name: (name,) for name in AUTOATTACK_PARTS},
    "aa": AUTOATTACK_PARTS,
}

LIGHT_LABELS = {"natural": "no attack", "fgsm": "PGD-1 (FGSM)", "cw20": "CW", "aa": "AutoAttack"}

#: The rules that the rungs' verdicts are enough for; and those that the stored logits of the clean
#: images are enough for, which can warn, but make no light green.
STEPS_DONE = (
    "a stronger attack finds more",
    "black boxes find nothing of their own",
    "the margin finds little more than the cross-entropy",
    "Square gains nothing",
)

CLEAN = ("logits do not saturate", "predictions are numbers and vary")

MOST = 6


class Mirage(Panel):
    name, title, size = "mirage", "How much of it is a mirage?", (8.6, 3.6)
    source = "MAIL s. 4.2, Table 2; rules: kit.evaluation.masking_rules"

    def __init__(self, runs: tuple[Run, ...], n: int):
        self.n = n
        self.broken = {run.method: stored(run, n) for run in runs}
        self.lights = {}  # (method, rung) -> findings, once they were judged
        super().__init__(runs)

    def controls(self, values):
        return [
            Number(
                "rung",
                0,
                0,
                len(STEPS) - 1,
                1,
                "of the ladder of attacks, the strongest last",
                True,
                True,
            ),
            Toggle(
                "any attack so far",
                False,
                "an image counts as right if no rung up to this one breaks it",
            ),
        ]

    # ---- what is known

    def verdicts(self, run: Run, rung: int, union: bool) -> np.ndarray | None:
        """(n,) bool, broken at this rung, or at any up to it; None where an attack that this needs
        was not run.
        """
        names = list(STEPS)[: rung + 1] if union else [list(STEPS)[rung]]
        needed = [attack for name in names for attack in STEPS[name]]
        if any(attack not in self.broken[run.method] for attack in needed):
            return None
        return np.any([self.broken[run.method][attack] for attack in needed], axis=0)

    def missing(self, run: Run, rung: int, union: bool) -> list[str]:
        """The attacks that this rung needs and that were not run."""
        names = list(STEPS)[: rung + 1] if union else [list(STEPS)[rung]]
        return list(
            dict.fromkeys(
                attack
                for name in names
                for attack in STEPS[name]
                if attack not in self.broken[run.method]
            )
        )

    def findings(self, run: Run, rung: int) -> list[Finding]:
        """What the rules say of the rungs up to this one."""
        if (run.method, rung) not in self.lights:
            names = {attack for name in list(STEPS)[: rung + 1] for attack in STEPS[name]} - {
                "natural"
            }
            known = {
                attack: broken
                for attack, broken in self.broken[run.method].items()
                if attack in names
            }
            self.lights[run.method, rung] = audited(run, known, self.n)
        return self.lights[run.method, rung]

    # ---- the picture

    def build(self, figure, values):
        axes, words = figure.subplots(1, 2, width_ratios=[1.15, 1])
        place = np.arange(len(self.runs))
        axes.set(ylim=(0, 1.08), xlim=(-0.6, len(self.runs) - 0.4), xticks=place)
        axes.set_xticklabels(
            [s.label(run.method) for run in self.runs],
            fontweight="bold",
            fontsize=9 if len(self.runs) < 4 else 7,
        )
        axes.grid(axis="y")
        s.share_axis(axes)
        self.bars = axes.bar(
            place, 0, 0.6, color=[s.colour(run.method) for run in self.runs], alpha=0.85
        )
        self.stems = [axes.plot([], [], color=s.BLACK, linewidth=1.5)[0] for _ in self.runs]
        self.numbers = [
            axes.text(x, 0, "", ha="center", va="bottom", fontsize=9.5, fontweight="bold")
            for x in place
        ]
        for x, run in zip(place, self.runs, strict=True):
            if "natural" in self.broken[run.method]:
                top = 1 - self.broken[run.method]["natural"].mean()
                axes.plot(
                    [x - 0.3, x - 0.3, x + 0.3, x + 0.3],
                    [0, top, top, 0],
                    color=s.GREY,
                    linewidth=1,
                    linestyle=":",
                )
        words.set(xlim=(0, 1), ylim=(0, 1))
        words.set_title("Signs of masking, up to this rung")
        words.axis("off")
        rows = 1 - (np.arange(len(self.runs)) + 0.5) / len(self.runs)
        self.marks = [words.plot([0.03], [y], "s", markersize=13)[0] for y in rows]
        self.lines = [
            words.text(0.09, y, "", va="center", fontsize=8.5, linespacing=1.25) for y in rows
        ]
        self.attack = axes.set_title("")
        return [*self.bars, *self.stems, *self.numbers, *self.marks, *self.lines, self.attack]

    def update(self, values):
        rung, union = values["rung"], values["any attack so far"]
        under = f"any attack up to {attack_name(rung)}" if union and rung else attack_name(rung)
        self.attack.set_text(f"Accuracy under {under}")
        told, gone, fired = [], [], []
        for place, run in enumerate(self.runs):
            who, broken = s.label(run.method), self.verdicts(run, rung, union)
            told += self._stand(place, who, broken)
            if broken is None:
                names = self.missing(run, rung, union)
                gone.append(
                    f"{who} was not run under {', '.join(names)}: "
                    f"{mirage_command(run, names, self.n)}"
                )
            fired += self._light(place, who, self.findings(run, rung))
        right = [f"Under {under}, right (95 % interval): {'; '.join(told)}."] if told else []
        lights = [light_of(self.findings(run, rung)) for run in self.runs]
        rest = "Nothing is judged yet." if set(lights) == {"not judged"} else "No rule warns."
        return " ".join([*right, *(f"{words}." for words in gone), *(fired or [rest])])

    def _stand(self, place: int, who: str, broken: np.ndarray | None) -> list[str]:
        """Set one bar, its interval and its number. -> the number in words."""
        if broken is None:
            self.bars[place].set_height(0)
            self.stems[place].set_data([], [])
            self.numbers[place].set(text="not run", y=0.02)
            return []
        right, n = int((~broken).sum()), len(broken)
        low, high = wilson(right, n)
        self.bars[place].set_height(right / n)
        self.stems[place].set_data([place, place], [low, high])
        self.numbers[place].set(text=f"{right / n:.0%}", y=high + 0.01)
        return [f"{who} {right / n:.0%} ({low:.0%} to {high:.0%}) of {n}"]

    def _light(self, place: int, who: str, findings: list[Finding]) -> list[str]:
        """Set one light and its words. -> the most serious warning, in words."""
        light = light_of(findings)
        warned = [
            finding
            for wanted in ("red", "amber")
            for finding in findings
            if finding.light == wanted
        ]
        self.marks[place].set(marker=MARKERS[light], color=COLOURS[light])
        told = {"green": "no rule warns", "not judged": "too little was run to judge"}.get(
            light
        ) or "\n".join(
            textwrap.fill(f"not so: {finding.rule}", 46, break_on_hyphens=False)
            for finding in warned[: 2 if len(self.runs) < 4 else 1]
        )
        self.lines[place].set(text=f"{who}: {light}\n{told}", color=COLOURS[light])
        more = (
            f" {len(warned) - 1} more rule{'s' * (len(warned) > 2)} warn{'s' * (len(warned) == 2)}."
            * (len(warned) > 1)
        )
        return [f"{who} is {light}: {warned[0].sentence}{more}"] if warned else []


def light_of(findings: Sequence[Finding]) -> Light:
    """The most serious light; green only if a rule about the attacks says so."""
    return worst_light(
        [
            finding.light
            for finding in findings
            if finding.rule in STEPS_DONE or finding.light in ("red", "amber")
        ]
    )


def attack_name(rung: int) -> str:
    """A rung's name in words."""
    name = list(STEPS)[rung]
    return LIGHT_LABELS.get(name) or s.attack_label(name)


def mirage_command(run: Run, names: Sequence[str], n: int) -> str:
    """What evaluates a run outside a notebook."""
    return f"python -m kit evaluate {run.key} --attacks {','.join(names)} --n {n}"


def stored(run: Run, n: int) -> dict[str, np.ndarray]:
    """{attack:

    (n,) bool, broken} of the attacks of the ladder that were run and kept; nothing is computed.
    """
    names = list(dict.fromkeys(attack for rung in STEPS.values() for attack in rung))
    kept = [name for name in names if is_kept(run, Evaluation(name, n))]
    examples = evaluate(run, kept, n=n, quiet=True).attrs["examples"] if kept else {}
    return {name: examples[name]["broken"] for name in kept}


def audited(run: Run, broken: Mapping[str, np.ndarray], n: int) -> list[Finding]:
    """The findings of the rules that need no more than these verdicts, and the stored logits of the
    clean images.
    """
    final = run.final
    if "test_logits_nat" not in final:
        raise KitError(
            f"{run.spec} stored no logits of clean test images; delete {run.folder} and train it "
            f"again"
        )
    part = slice(0, n or None)
    logits = final["test_logits_nat"][part].astype(np.float64)
    seen = Evidence(
        final["test_ids"][part], final["test_y"][part], logits, logits, np.ones(len(logits)), broken
    )
    return [
        Finding(name, light, sentence, tuple(map(int, ids)))
        for name in (*STEPS_DONE, *CLEAN)
        for light, sentence, ids in [RULES[name](seen)]
    ]


def mirage(runs: Sequence[Run] | Mapping[str, Run], n: int = 100) -> Panel:
    """Bars of accuracy that sink as the attack gets stronger, from none over PGD to AutoAttack, and
    a light that says when a rule against masking fires.

    runs: one to six, of different methods on one data set; n: the first n test images (0 = all).
    All is read from what `kit.evaluate` kept with the runs, on these n: an attack that was not run
    is named with the command that runs it. The dotted outline is the accuracy without an attack;
    intervals are Wilson's, 95 %. The light judges the rungs up to the one that is set by the rules
    of `kit.audit` that need no more; the other four are the audit's.

    Errors: `KitError` for no runs, too many, two of one method, different data, or n below 0.
    Source: MAIL s. 4.2 and Table 2, `kit.evaluation.masking_rules`.
    """
    runs = tuple(runs.values()) if isinstance(runs, Mapping) else tuple(runs)
    check_value("n", n, Natural)
    methods = [run.method for run in runs]
    if not 1 <= len(runs) <= MOST or len(set(methods)) < len(methods):
        raise KitError(
            f"mirage takes one to {MOST} runs of different methods, not "
            f"{', '.join(methods) or 'none'}"
        )
    if len({run.record["data_fingerprint"] for run in runs}) > 1:
        raise KitError(
            "mirage compares runs on the same images; these were trained on different data"
        )
    return Mirage(runs, n)
