"""Ten rules that tell robustness from masking.

A robust network has no adversarial image. A masked one has some that the attacks do not find.

What to check is taken from the sources below; the thresholds are the kit's, each with its reason. A
rule that lacks an attack or has too few images says "not judged": it is never green for want of
evidence.

Source: Athalye et al., "Obfuscated gradients give a false sense of security" (2018, s. 3.1);
Carlini et al., "On evaluating adversarial robustness" (2019); the warnings of auto-attack's code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import binomtest

from kit.attacks.table import attack_label

Light = Literal["red", "amber", "green", "not judged"]


#: Chance of a red light by noise alone, per test; and of an amber one where three attacks are
#: compared in pairs.
SURE, DOUBT = 0.01, 0.02


#: Of 50 images without a fault it may still be in 6 % of all (rule of three); with fewer, a rule's
#: green would say nothing.
FEWEST = 50


#: Share of images that black boxes may break beyond the white boxes: auto-attack's code warns above
#: 0.2 points.
BLACK_BOX_GAIN = 0.002


#: Of the images that PGD leaves, AutoAttack breaks 3 to 15 % under AT, TRADES and MART in the
#: papers' tables, 17 to 27 % under MAIL-AT and up to 39 % under GAIRAT (54.8 % under PGD, 33.4 %
#: under AutoAttack).
MARGIN_GAP = 0.15


#: A gradient below this is lost beside the rounding of the logits that it comes from; one image in
#: a hundred may have it.
VANISHED, VANISHED_SHARE = 1e-10, 0.01


#: Share of the loss's rise along PGD-100 that may fall into the last tenth of its steps; an even
#: rise has 0.1 there.
STILL_RISING = 0.05


#: Gap of the two largest logits, above which 1 - p_y is below half a unit of float32 at 1 and the
#: cross-entropy rounds to 0; and above which the softmax itself underflows (-log of the smallest
#: normal number), and with it the gradient.
LOSS_ROUNDS_TO_0, SOFTMAX_UNDERFLOWS = 24 * math.log(2), -math.log(np.finfo(np.float32).tiny)


#: Two passes over one batch agree to rounding, in units of the batch's largest logit (GPU kernels
#: may sum in another order).
SAME = 1e-3


PGD_ATTACKS = ("fgsm", "pgd10", "pgd20", "pgd100")

#: AutoAttack's four; the first three use gradients.
AUTOATTACK_PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")

MARGIN_ATTACKS = ("cw20", "md")

WHITE_BOXES = (*PGD_ATTACKS, *MARGIN_ATTACKS, *AUTOATTACK_PARTS[:3], "fmn100")

BLACK_BOXES = ("square", "spsa100", "transfer")


@dataclass(frozen=True)
class Evidence:
    """What the rules read.

    Arrays are of the first images of the split; those that were not made are None.
    """

    ids: np.ndarray  # (n,) int64
    y: np.ndarray  # (n,) int64
    logits: np.ndarray  # (n, K) of the clean images
    again: np.ndarray  # (n, K) the same in a second pass
    slope: np.ndarray  # (n,) largest |∂ cross-entropy / ∂ pixel| at the clean image
    broken: Mapping[str, np.ndarray]  # attack -> (m,) bool, m <= n
    losses: np.ndarray | None = None  # (m, 100) cross-entropy along PGD-100, nats
    unbounded: np.ndarray | None = None  # (m,) bool, broken by PGD-100 where every image is allowed

    def common(self, names: tuple[str, ...]) -> int:
        """Count the images on which all of `names` were run.

        Attacks that were not run at all do not count; it is 0 where none was run.
        """
        return min((len(self.broken[name]) for name in names if name in self.broken), default=0)

    def any_of(self, names: tuple[str, ...], count: int) -> np.ndarray:
        """Return (count,) bool: broken by any of `names`."""
        return np.any([self.broken[name][:count] for name in names if name in self.broken], axis=0)


@dataclass(frozen=True)
class Finding:
    """What a rule says, in one sentence, and the ids of the images behind it."""

    rule: str
    light: Light
    sentence: str
    ids: tuple[int, ...] = ()

    def record(self) -> dict:
        """Return it as JSON values."""
        return {
            "rule": self.rule,
            "light": self.light,
            "sentence": self.sentence,
            "ids": list(self.ids),
        }


Verdict = tuple[Light, str, np.ndarray]  # light, sentence, ids

NO_IDS = np.zeros(0, dtype=np.int64)


def light_beyond(count: int, n: int, tolerated: float) -> Light:
    """Judge whether `count` of `n` images exceed the share `tolerated`.

    red: not by chance (exact binomial test); amber: perhaps. Few images can be red alone.
    """
    if not n or count / n <= tolerated:
        return green_if_enough(n)
    if binomtest(count, n, tolerated, alternative="greater").pvalue < SURE:
        return "red"
    return "amber" if n >= FEWEST else "not judged"


def green_if_enough(n: int) -> Light:
    """Return green for a rule that found nothing, if it had enough images to find it."""
    return "green" if n >= FEWEST else "not judged"


def _too_few(light: Light) -> str:
    return (
        f" That is too little to judge by; take at least {FEWEST} images."
        if light == "not judged"
        else ""
    )


def _labels(*names: str) -> str:
    return ", ".join(map(attack_label, names))


def stronger_leaves_more(evidence: Evidence) -> Verdict:
    """PGD-20 does what FGSM does and more, PGD-100 more still.

    Where they break fewer images, the gradients mislead.
    """
    lights: list[Light] = []
    words, ids, n = [], NO_IDS, 0
    for weak, strong in (("fgsm", "pgd20"), ("pgd20", "pgd100"), ("fgsm", "pgd100")):
        if weak not in evidence.broken or strong not in evidence.broken:
            continue
        n = evidence.common((weak, strong))
        lost = evidence.broken[weak][:n] & ~evidence.broken[strong][:n]
        won = int((evidence.broken[strong][:n] & ~evidence.broken[weak][:n]).sum())
        p = (
            binomtest(int(lost.sum()), int(lost.sum()) + won, alternative="greater").pvalue
            if lost.any()
            else 1.0
        )
        if p < DOUBT:
            lights.append("red" if p < SURE else "amber")
        else:
            lights.append(green_if_enough(n))
        if p < DOUBT:
            words.append(
                f"{attack_label(strong)} misses {int(lost.sum())} images that "
                f"{attack_label(weak)} breaks and breaks {won} others"
            )
            ids = np.union1d(ids, evidence.ids[:n][lost])
    if not lights:
        return "not judged", f"This rule needs two of {_labels('fgsm', 'pgd20', 'pgd100')}.", NO_IDS
    if words:
        return (
            worst_light(lights),
            f"A weaker attack finds more: {'; '.join(words)} (of {n}).",
            ids,
        )
    light = worst_light(lights)
    return (
        light,
        f"PGD with more steps breaks no fewer of {n} images, apart from noise.{_too_few(light)}",
        NO_IDS,
    )


def black_beats_white(evidence: Evidence) -> Verdict:
    """An attack that uses no gradient knows less.

    Where it finds more, the gradients hide something.
    """
    if "pgd20" not in evidence.broken and "pgd100" not in evidence.broken:
        return "not judged", f"This rule needs one of {_labels('pgd20', 'pgd100')}.", NO_IDS
    lights: list[Light] = []
    words, ids = [], NO_IDS
    for name in BLACK_BOXES:
        if name in evidence.broken:
            n = evidence.common((*WHITE_BOXES, name))
            only = evidence.broken[name][:n] & ~evidence.any_of(WHITE_BOXES, n)
            lights.append(light_beyond(int(only.sum()), n, BLACK_BOX_GAIN))
            words.append(f"{attack_label(name)} {int(only.sum())} of {n}")
            ids = np.union1d(ids, evidence.ids[:n][only])
    if not lights:
        return (
            "not judged",
            f"This rule needs {_labels('square', 'spsa100')} or a transfer from another run.",
            NO_IDS,
        )
    light = worst_light(lights)
    return (
        light,
        f"Attacks without gradients break images that no attack with gradients breaks: "
        f"{', '.join(words)}.{_too_few(light)}",
        ids,
    )


def margin_beats_cross_entropy(evidence: Evidence) -> Verdict:
    """Reweighting can make the cross-entropy a poor guide.

    PGD on it then stops short of what the margin finds.
    """
    pgd = next((name for name in ("pgd100", "pgd20") if name in evidence.broken), None)
    named = (
        tuple(AUTOATTACK_PARTS)
        if all(name in evidence.broken for name in AUTOATTACK_PARTS)
        else MARGIN_ATTACKS
    )
    n = min(evidence.common((pgd,)), evidence.common(named)) if pgd else 0
    if pgd is None or not n:
        return (
            "not judged",
            f"This rule needs one of {_labels('pgd20', 'pgd100')}, and AutoAttack's four or an "
            f"attack on the margin ({_labels(*MARGIN_ATTACKS)}).",
            NO_IDS,
        )
    left = ~evidence.broken[pgd][:n]
    found, kept = left & evidence.any_of(named, n), int(left.sum())
    who = "AutoAttack" if named == AUTOATTACK_PARTS else "an attack on the margin"
    light = light_beyond(int(found.sum()), kept, MARGIN_GAP)
    sentence = (
        f"Of {kept} images that {attack_label(pgd)} leaves, {who} breaks {int(found.sum())} "
        f"({found.sum() / max(kept, 1):.0%}; "
        f"printed results of methods without weights stay below {MARGIN_GAP:.0%}).{_too_few(light)}"
    )
    return light, sentence, evidence.ids[:n][found]


def unbounded_fails(evidence: Evidence) -> Verdict:
    """Where any image is allowed everything can be broken.

    An attack that cannot do so is blind, at every eps.
    """
    if evidence.unbounded is None:
        return "not judged", "PGD-100 without a bound was not run.", NO_IDS
    n, left = len(evidence.unbounded), ~evidence.unbounded
    chance = 1 / evidence.logits.shape[1]
    light = light_beyond(int(left.sum()), n, chance)
    sentence = (
        f"Where any image is allowed, PGD-100 leaves {int(left.sum())} of {n} "
        f"(chance: {chance:.0%}).{_too_few(light)}"
    )
    return light, sentence, evidence.ids[:n][left]


def gradients_vanish(evidence: Evidence) -> Verdict:
    """A gradient of 0 points nowhere: attacks that follow it stay where they are."""
    gone = ~(evidence.slope >= VANISHED)  # NaN, too
    n, zero = len(evidence.slope), int((evidence.slope == 0).sum())
    light = light_beyond(int(gone.sum()), n, VANISHED_SHARE)
    sentence = (
        f"The loss has a gradient of exactly 0 at {zero} of {n} clean images, and one below "
        f"{VANISHED:g} at {int(gone.sum())}.{_too_few(light)}"
    )
    return light, sentence, evidence.ids[gone]


def loss_still_rises(evidence: Evidence) -> Verdict:
    """An attack whose loss still rises when it ends was stopped too early.

    Or its steps lead nowhere for long.
    """
    if evidence.losses is None:
        return "not judged", "The loss along PGD-100 was not recorded.", NO_IDS
    best = np.maximum.accumulate(evidence.losses, axis=1).astype(np.float64)
    n, total = len(best), best[:, -1] - best[:, 0]
    late = best[:, -1] - best[:, -1 - best.shape[1] // 10]
    if not total.mean() > 0:
        return "not judged", f"The loss does not rise along PGD-100 on any of {n} images.", NO_IDS
    excess = late - STILL_RISING * total
    sure = excess.mean() > 2.33 * excess.std() / math.sqrt(n)  # one-sided 1 %
    light = green_if_enough(n)
    if excess.mean() > 0:
        light = "red" if sure else "amber"
    sentence = (
        f"The last tenth of PGD-100's steps brings {late.mean() / total.mean():.1%} of the loss's "
        f"rise on {n} images (at most {STILL_RISING:.0%} where an attack has converged)."
        f"{_too_few(light)}"
    )
    return light, sentence, evidence.ids[:n][excess > 0] if light in ("red", "amber") else NO_IDS


def logits_saturate(evidence: Evidence) -> Verdict:
    """Very large logits make the softmax 0 or 1 to the last bit.

    Then the cross-entropy has no slope in float32.
    """
    top = np.sort(evidence.logits.astype(np.float64), axis=1)
    gap, n = top[:, -1] - top[:, -2], len(top)
    median = float(np.median(gap))
    light = green_if_enough(n)
    if median > LOSS_ROUNDS_TO_0:
        light = "red" if median > SOFTMAX_UNDERFLOWS else "amber"
    sentence = (
        f"The two largest logits lie {median:.3g} apart (median of {n}). Above "
        f"{LOSS_ROUNDS_TO_0:.0f} the loss rounds to 0. Above {SOFTMAX_UNDERFLOWS:.0f} "
        f"the softmax rounds to 0, too.{_too_few(light)}"
    )
    return (
        light,
        sentence,
        evidence.ids[gap > LOSS_ROUNDS_TO_0] if light in ("red", "amber") else NO_IDS,
    )


def square_gains(evidence: Evidence) -> Verdict:
    """Square, AutoAttack's last member, should find next to nothing that the three before it left.

    This is AutoAttack's own warning.
    """
    if any(name not in evidence.broken for name in AUTOATTACK_PARTS):
        return "not judged", f"This rule needs {_labels(*AUTOATTACK_PARTS)}.", NO_IDS
    n = evidence.common(AUTOATTACK_PARTS)
    gained = evidence.broken["square"][:n] & ~evidence.any_of(AUTOATTACK_PARTS[:3], n)
    light = light_beyond(int(gained.sum()), n, BLACK_BOX_GAIN)
    sentence = (
        f"After {_labels(*AUTOATTACK_PARTS[:3])}, Square breaks {int(gained.sum())} more of {n} "
        f"images ({100 * gained.mean():.1f} points; tolerated: "
        f"{100 * BLACK_BOX_GAIN:.1f}).{_too_few(light)}"
    )
    return light, sentence, evidence.ids[:n][gained]


def answers_change(evidence: Evidence) -> Verdict:
    """A network that answers differently each time blurs gradients.

    It needs attacks that average (aa-rand).
    """
    differs = ~(
        np.abs(evidence.logits - evidence.again).max(axis=1) <= SAME * np.abs(evidence.logits).max()
    )
    n = len(differs)
    light = light_beyond(int(differs.sum()), n, 0.0)
    sentence = (
        f"A second pass over the same images gives other logits for {int(differs.sum())} of {n}."
        f"{_too_few(light)}"
    )
    return light, sentence, evidence.ids[differs]


def answers_are_useless(evidence: Evidence) -> Verdict:
    """A network that names the same class for every image is robust and useless.

    NaN is no answer at all.
    """
    sick = ~np.isfinite(evidence.logits).all(axis=1)
    if sick.any():
        return (
            "red",
            f"The logits of {int(sick.sum())} of {len(sick)} clean images are NaN or infinite.",
            evidence.ids[sick],
        )
    classes, n = np.unique(evidence.logits.argmax(axis=1)), len(sick)
    if len(classes) == 1 and len(np.unique(evidence.y)) > 1:
        return (
            "red",
            f"The network takes all of {n} images, of {len(np.unique(evidence.y))} classes, for "
            f"class {classes[0]}.",
            evidence.ids,
        )
    light = green_if_enough(n)
    return (
        light,
        f"The logits of {n} images are finite and name {len(classes)} classes.{_too_few(light)}",
        NO_IDS,
    )


#: The ten rules in their order.
RULES: Mapping[str, Callable[[Evidence], Verdict]] = {
    "a stronger attack finds more": stronger_leaves_more,
    "black boxes find nothing of their own": black_beats_white,
    "the margin finds little more than the cross-entropy": margin_beats_cross_entropy,
    "without a bound everything breaks": unbounded_fails,
    "gradients do not vanish": gradients_vanish,
    "the attack's loss has converged": loss_still_rises,
    "logits do not saturate": logits_saturate,
    "Square gains nothing": square_gains,
    "two passes agree": answers_change,
    "predictions are numbers and vary": answers_are_useless,
}


def apply_rules(evidence: Evidence) -> tuple[Finding, ...]:
    """Return the rules' findings, in order.

    Where logits are not finite, only the last rule has anything to say.
    """
    sick = not np.isfinite(evidence.logits).all()
    findings = []
    for name, rule in RULES.items():
        verdict: Verdict = ("not judged", "The network's logits are not finite.", NO_IDS)
        if not sick or rule is answers_are_useless:
            verdict = rule(evidence)
        findings.append(Finding(name, verdict[0], verdict[1], tuple(int(i) for i in verdict[2])))
    return tuple(findings)


def worst_light(lights: list[Light]) -> Light:
    """Return the most serious light; what was not judged counts least."""
    by_gravity: tuple[Light, ...] = ("red", "amber", "green")
    return next((light for light in by_gravity if light in lights), "not judged")
