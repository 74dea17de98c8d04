"""How robust a network looks under one attack, and what is left of it under the next."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from kit.attacks.table import attack_label
from kit.core.errors import KitError
from kit.core.parameters import Natural, check_value
from kit.evaluation.accuracy import evaluate
from kit.evaluation.audit_report import COLOURS
from kit.evaluation.masking_rules import (
    AUTOATTACK_PARTS,
    RULES,
    Evidence,
    Finding,
    Light,
    worst_light,
)
from kit.evaluation.statistics import wilson
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.audit_steps import MARKERS
from kit.papers.measured_cells import is_kept
from kit.papers.table_runs import Evaluation
from kit.widgets.controls import Number, Toggle
from kit.widgets.notes import Notes, count_images
from kit.widgets.panel import Panel

#: The steps and what is evaluated for each: ever stronger attacks, and AutoAttack, here the union
#: of its four on all images (ATTACKS["aa"] runs each on what the one before left, from other random
#: starts, and may differ by an image).
STEP_ATTACKS = {
    "natural": ("natural",),
    "fgsm": ("fgsm",),
    "pgd20": ("pgd20",),
    "pgd100": ("pgd100",),
    "cw20": ("cw20",),
    **{name: (name,) for name in AUTOATTACK_PARTS},
    "aa": AUTOATTACK_PARTS,
}

STEP_LABELS = {
    "natural": "no attack",
    "fgsm": "PGD-1 (FGSM)",
    "cw20": "CW",
    "square": "Square",
    "aa": "AutoAttack",
}

#: The rules that the verdicts of the steps are enough for.
VERDICT_RULES = (
    "a stronger attack finds more",
    "black boxes find nothing of their own",
    "the margin finds little more than the cross-entropy",
    "Square gains nothing",
)

#: Those that the stored logits of the clean images are enough for: they can warn, but make no light
#: green.
LOGIT_RULES = ("logits do not saturate", "predictions are numbers and vary")

#: What was seen where a rule warns; `by` attacks the margin, `pgd` is the strongest that was run.
WARNINGS = {
    "a stronger attack finds more": "a weaker attack breaks {images} that a stronger one left",
    "black boxes find nothing of their own": (
        "an attack without gradients breaks {images} that attacks with gradients left"
    ),
    "the margin finds little more than the cross-entropy": "{by} breaks {images} that {pgd} left",
    "Square gains nothing": "Square breaks {images} that the rest of AutoAttack left",
    "logits do not saturate": "the logits of {images} are saturated",
    "predictions are numbers and vary": "the network gives NaN, or the same class for all images",
}

MOST_RUNS = 6

WARNING_WIDTH = 46  # characters a line

ANY_SO_FAR = "any attack so far"  # the name of a control


# ------------------------------------------------------------------------------- the data it needs


def read_verdicts(run: Run, n: int) -> dict[str, np.ndarray]:
    """{attack: (n,) bool, broken} of the steps' attacks that were run and kept.

    Nothing is computed.
    """
    names = list(dict.fromkeys(attack for attacks in STEP_ATTACKS.values() for attack in attacks))
    kept = [name for name in names if is_kept(run, Evaluation(name, n))]
    examples = evaluate(run, kept, n=n, quiet=True).attrs["examples"] if kept else {}
    return {name: examples[name]["broken"] for name in kept}


# -------------------------------------------------------------------------------- what it computes


def needed_attacks(step: int, union: bool) -> list[str]:
    """The attacks of a step, or of all steps up to it."""
    steps = list(STEP_ATTACKS.values())
    chosen = steps[: step + 1] if union else steps[step : step + 1]
    return list(dict.fromkeys(attack for attacks in chosen for attack in attacks))


def step_name(step: int) -> str:
    """A step's attack in words."""
    name = list(STEP_ATTACKS)[step]
    return STEP_LABELS.get(name) or attack_label(name)


def apply_few_rules(run: Run, broken: Mapping[str, np.ndarray], n: int) -> list[Finding]:
    """The findings of the rules that need no more than these verdicts and the stored clean logits.

    Raises:
        KitError: the run stored no logits of clean test images.
    """
    final = run.final
    if "test_logits_nat" not in final:
        raise KitError(
            f"{run.spec} stored no logits of clean test images; delete {run.folder} and train it "
            "again"
        )
    part = slice(0, n or None)
    logits = final["test_logits_nat"][part].astype(np.float64)
    evidence = Evidence(
        final["test_ids"][part], final["test_y"][part], logits, logits, np.ones(len(logits)), broken
    )
    return [
        Finding(name, light, sentence, tuple(map(int, ids)))
        for name in (*VERDICT_RULES, *LOGIT_RULES)
        for light, sentence, ids in [RULES[name](evidence)]
    ]


def light_of(findings: Sequence[Finding]) -> Light:
    """The most serious light; green only if a rule about the attacks says so."""
    return worst_light(
        [
            finding.light
            for finding in findings
            if finding.rule in VERDICT_RULES or finding.light in ("red", "amber")
        ]
    )


def warnings_of(findings: Sequence[Finding]) -> list[Finding]:
    """Those that warn, the red ones first."""
    return [finding for light in ("red", "amber") for finding in findings if finding.light == light]


def describe_warning(finding: Finding, names: Collection[str]) -> str:
    """What a rule saw where it warns, in the positive; `names` are the attacks that were run."""
    return WARNINGS[finding.rule].format(
        images=count_images(len(finding.ids)),
        by="AutoAttack" if {*AUTOATTACK_PARTS} <= {*names} else "CW",
        pgd=attack_label("pgd100" if "pgd100" in names else "pgd20"),
    )


def evaluation_command(run: Run, names: Sequence[str], n: int) -> str:
    """The command that evaluates a run outside a notebook."""
    return f"python -m kit evaluate {run.key} --attacks {','.join(names)} --n {n}"


# ---------------------------------------------------------------------------------- how it is drawn


class Mirage(Panel):
    """The panel of `mirage`."""

    name, title, size = "mirage", "How much of it is a mirage?", (8.6, 3.6)
    source = "MAIL s. 4.2, Table 2; rules: kit.evaluation.masking_rules"

    def __init__(self, runs: tuple[Run, ...], n: int):
        self.n = n
        self.broken = {run.method: read_verdicts(run, n) for run in runs}
        self.known_findings: dict[tuple[str, int], list[Finding]] = {}  # by method and step
        super().__init__(runs)

    # ---- its controls

    def controls(self, values):
        """The step, and whether the steps before it count."""
        last = len(STEP_ATTACKS) - 1
        return [
            Number(
                "step", 0, 0, last, 1, "of the audit: the strongest attack comes last", True, True
            ),
            Toggle(
                ANY_SO_FAR, False, "an image counts as right if no attack up to this step breaks it"
            ),
        ]

    # ---- numbers

    def verdicts(self, run: Run, step: int, union: bool) -> np.ndarray | None:
        """(n,) bool: broken at this step, or at any up to it; None where an attack is missing."""
        if self.missing(run, step, union):
            return None
        known = self.broken[run.method]
        return np.any([known[attack] for attack in needed_attacks(step, union)], axis=0)

    def missing(self, run: Run, step: int, union: bool) -> list[str]:
        """The attacks that this step needs and that were not run."""
        known = self.broken[run.method]
        return [attack for attack in needed_attacks(step, union) if attack not in known]

    def findings(self, run: Run, step: int) -> list[Finding]:
        """What the rules say of the steps up to this one."""
        key = run.method, step
        if key not in self.known_findings:
            known = self.attacked(run, step)
            self.known_findings[key] = apply_few_rules(run, known, self.n)
        return self.known_findings[key]

    def attacked(self, run: Run, step: int) -> dict[str, np.ndarray]:
        """{attack: (n,) bool, broken} of the attacks up to this step that were run."""
        names = {*needed_attacks(step, union=True)} - {"natural"}
        known = self.broken[run.method]
        return {attack: broken for attack, broken in known.items() if attack in names}

    def notes(self) -> Notes:
        """What these networks lose from PGD-100 to AutoAttack, and which lights warn from where."""
        return Notes(
            tuple(
                f"{s.label(run.method)}: {self._describe_fall(run)} {self._describe_lights(run)}"
                for run in self.runs
            )
        )

    def _describe_fall(self, run: Run) -> str:
        before, last = list(STEP_ATTACKS).index("pgd100"), len(STEP_ATTACKS) - 1
        weak, strong = self.verdicts(run, before, False), self.verdicts(run, last, False)
        if weak is None or strong is None:
            return "PGD-100 or AutoAttack was not run."
        return (
            f"PGD-100 leaves {1 - weak.mean():.0%} of {count_images(len(weak))}, AutoAttack "
            f"{1 - strong.mean():.0%}. AutoAttack breaks {int((strong & ~weak).sum())} of the "
            f"{int((~weak).sum())} that PGD-100 left."
        )

    def _describe_lights(self, run: Run) -> str:
        lights = [light_of(self.findings(run, step)) for step in range(len(STEP_ATTACKS))]
        warned = [
            f"{light} from {step_name(lights.index(light))} (step {lights.index(light)}) on"
            for light in ("amber", "red")
            if light in lights
        ]
        return f"Its light is {' and '.join(warned)}." if warned else "No rule warns."

    # ---- what stands still

    def build(self, figure, values):
        """Draw the bars, and the lights beside them."""
        axes, words = figure.subplots(1, 2, width_ratios=[1.15, 1])
        return [*self._build_bars(axes), *self._build_lights(words), self.attack]

    def _build_bars(self, axes: Axes) -> list[Artist]:
        place = np.arange(len(self.runs))
        axes.set(ylim=(0, 1.08), xlim=(-0.6, len(self.runs) - 0.4), xticks=place)
        axes.set_xticklabels(
            [s.label(run.method) for run in self.runs],
            fontweight="bold",
            fontsize=9 if len(self.runs) < 4 else 7,
        )
        axes.grid(axis="y")
        s.share_axis(axes)
        tints = [s.colour(run.method) for run in self.runs]
        self.bars = axes.bar(place, 0, 0.6, color=tints, alpha=0.85)
        self.stems = [axes.plot([], [], color=s.BLACK, linewidth=1.5)[0] for _ in self.runs]
        self.numbers = [
            axes.text(float(x), 0, "", ha="center", va="bottom", fontsize=9.5, fontweight="bold")
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
        self.attack = axes.set_title("")
        return [*self.bars, *self.stems, *self.numbers]

    def _build_lights(self, axes: Axes) -> list[Artist]:
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.set_title("Signs of masking, up to this step")
        axes.axis("off")
        rows = 1 - (np.arange(len(self.runs)) + 0.5) / len(self.runs)
        self.marks = [axes.plot([0.03], [y], "s", markersize=13)[0] for y in rows]
        self.lines = [
            axes.text(0.09, y, "", va="center", fontsize=8.5, linespacing=1.25) for y in rows
        ]
        return [*self.marks, *self.lines]

    # ---- what moves

    def update(self, values):
        """Set the bars and the lights to the step."""
        step, union = values["step"], values[ANY_SO_FAR]
        under = f"any attack up to {step_name(step)}" if union and step else step_name(step)
        self.attack.set_text(f"Accuracy under {under}")
        right, absent, warned = [], [], []
        for place, run in enumerate(self.runs):
            who, broken = s.label(run.method), self.verdicts(run, step, union)
            right += self._show_accuracy(place, who, broken)
            if names := self.missing(run, step, union):
                command = evaluation_command(run, names, self.n)
                attacks = ", ".join(map(attack_label, names))
                absent.append(f"{who} was not run under {attacks}: {command}.")
            warned += self._show_light(place, run, step)
        lights = {light_of(self.findings(run, step)) for run in self.runs}
        calm = "Nothing is judged yet." if lights == {"not judged"} else "No rule warns."
        beginning = [f"Under {under}, right (95 % interval): {'; '.join(right)}."] if right else []
        return " ".join([*beginning, *absent, *(warned or [calm])])

    def _show_accuracy(self, place: int, who: str, broken: np.ndarray | None) -> list[str]:
        """Set one bar, its interval and its number, and return the number in words."""
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

    def _show_light(self, place: int, run: Run, step: int) -> list[str]:
        """Set one light and its words, and return the most serious warning in words."""
        who, findings = s.label(run.method), self.findings(run, step)
        light, warned = light_of(findings), warnings_of(findings)
        calm = {"green": "no rule warns", "not judged": "too little was run to judge"}
        sentences = [describe_warning(finding, self.attacked(run, step)) for finding in warned]
        words = calm.get(light) or "\n".join(
            textwrap.fill(warning, WARNING_WIDTH, break_on_hyphens=False)
            for warning in sentences[: 2 if len(self.runs) < 4 else 1]
        )
        self.marks[place].set(marker=MARKERS[light], color=COLOURS[light])
        self.lines[place].set(text=f"{who}: {light}\n{words}", color=COLOURS[light])
        if not warned:
            return []
        more = {0: "", 1: " 1 more rule warns."}.get(
            len(warned) - 1, f" {len(warned) - 1} more rules warn."
        )
        return [f"{who} is {light}: {sentences[0]}. {warned[0].sentence}{more}"]


def mirage(runs: Sequence[Run] | Mapping[str, Run], n: int = 100) -> Panel:
    """Bars of accuracy sink as the attack gets stronger, and a light says when a rule warns.

    The steps go from no attack over PGD to AutoAttack; the rules are those against masking.

    runs: one to six, of different methods on one data set; n: the first n test images (0 = all).
    All is read from what `kit.evaluate` kept with the runs, on these n: an attack that was not run
    is named with the command that runs it. The dotted outline is the accuracy without an attack;
    intervals are Wilson's, 95 %. The light judges the steps up to the one that is set by the rules
    of `kit.audit` that need no more; the other four are the audit's.

    Raises:
        KitError: there are no runs, too many, two of one method, or runs on different data; or n is
            below 0.

    Source: MAIL s. 4.2 and Table 2, `kit.evaluation.masking_rules`.
    """
    runs = tuple(runs.values()) if isinstance(runs, Mapping) else tuple(runs)
    check_value("n", n, Natural)
    methods = [run.method for run in runs]
    if not 1 <= len(runs) <= MOST_RUNS or len(set(methods)) < len(methods):
        raise KitError(
            f"mirage takes one to {MOST_RUNS} runs of different methods, not "
            f"{', '.join(methods) or 'none'}; leave some out"
            if runs
            else "mirage needs a run and was given none; hand it one to six runs"
        )
    if len({run.record["data_fingerprint"] for run in runs}) > 1:
        raise KitError(
            "mirage compares runs on the same images, and these were trained on different data; "
            "take runs of one data set"
        )
    return Mirage(runs, n)
