"""Test images under attacks at several radii, for the gallery and the curves of attacks."""

from __future__ import annotations

import dataclasses
import math

from torch import nn

from kit.attacks.carlini_wagner import cw_l2
from kit.attacks.fast_adaptive_boundary import fab
from kit.attacks.fast_minimum_norm import fmn
from kit.attacks.table import ATTACKS, Attack, attack_label
from kit.attacks.tracker import ROUNDING, AttackResult
from kit.core.errors import KitError, unknown_name
from kit.core.parameters import Count, Positive, check_value
from kit.core.random_streams import Streams
from kit.core.threat import Norm, Threat
from kit.data.splits import Split
from kit.evaluation.statistics import share_with_interval
from kit.experiments.devices import pick_device
from kit.experiments.runs import Run

#: Attacks that look for the nearest adversarial image: one search answers for every radius.
NEAREST = (cw_l2, fmn, fab)


#: CW-L2's 1,000 steps a round take minutes; with few long steps its distances are 2 % larger on
#: average, 17 % at worst (20 digits).
SHORT_SEARCH = {cw_l2: {"steps": 100, "search_steps": 8, "lr": 0.1}}


NORM_LABELS = {"linf": "L∞", "l2": "L2"}

#: {attack: [(result, its threat) of each radius]}.
AttackedImages = dict[str, list[tuple[AttackResult, Threat]]]


# ------------------------------------------------------------------------------------ what is asked


def first_images(run: Run, n: int) -> tuple[nn.Module, Split]:
    """The run's network and its first `n` test images, on the kit's device.

    Raises:
        KitError: if the data set has fewer.
    """
    check_value("n", n, Count)
    test = run.data().test
    if n > len(test):
        raise KitError(
            f"n={n}: {run.plan.recipe.data} has {len(test)} test images; take at most as many"
        )
    return run.model(device=pick_device()), test.take(slice(0, n)).to(pick_device())


def parse_image_numbers(examples: str, n: int) -> list[int]:
    """The numbers of test images in `examples`, "" for none.

    Raises:
        KitError: for one that is not 0 to n - 1.
    """
    for word in examples.split():
        if not word.isdecimal() or int(word) >= n:
            raise KitError(
                f"example {word} must be the number of one of the {n} test images looked at, 0 to "
                f"{n - 1}"
            )
    return [int(word) for word in examples.split()]


def parse_radii(eps: str, default: list[float]) -> list[float]:
    """The numbers in `eps`, increasing; `default` where it is empty.

    Raises:
        KitError: for what is no number above 0.
    """
    try:
        radii = [check_value("eps", float(word), Positive) for word in eps.split()]
    except ValueError as error:
        raise KitError(
            f'eps={eps!r} must be radii above 0 with spaces between, such as "0.1 0.2" ({error})'
        ) from None
    return sorted(set(radii)) or default


def parse_attacks(attacks: str) -> list[str]:
    """The words of `attacks`, each once and each one that `resolve_attack` knows.

    Raises:
        KitError: for none, or one that it does not know.
    """
    names = list(dict.fromkeys(attacks.split()))
    if not names:
        raise KitError(f"attacks={attacks!r} names none. Choices: {', '.join(ATTACKS)}")
    for name in names:
        resolve_attack(name, "linf")
    return names


def resolve_attack(name: str, own: Norm) -> tuple[Attack, Norm]:
    """(attack, its norm) of a row of ATTACKS, in the run's `own` norm or another, say bia:l2.

    Raises:
        KitError: for an unknown attack or norm, or CW-L2 in L-inf.
    """
    row, _, norm = name.partition(":")
    attack = ATTACKS[row]
    if norm and norm not in NORM_LABELS:
        raise unknown_name("norm", norm, NORM_LABELS)
    if attack.fn is cw_l2 and finds_nearest(attack):
        if norm == "linf":
            raise KitError(f"{row} minimises the L2 norm; write {row} or {row}:l2")
        norm = "l2"
    chosen: Norm = "linf" if norm == "linf" else "l2" if norm == "l2" else own
    short = SHORT_SEARCH.get(attack.fn, {}) if finds_nearest(attack) else {}
    return attack.but(**short), chosen


def finds_nearest(attack: Attack) -> bool:
    """Tell whether one search of the attack answers for every radius."""
    return attack.fn in NEAREST and attack.settings.get("box") != "ball"


def equal_volume(eps: float, own: str, norm: str, pixels: int) -> float:
    """The radius of the `norm` ball of the same volume as the `own` ball of radius `eps`.

    [0, 1] is left out of account. An L-inf ball of d pixels has volume (2 eps)^d, an L2 ball
    π^(d/2) r^d / Γ(d/2 + 1).
    """
    if norm == own:
        return eps
    # r / eps
    ratio = 2 * math.exp(math.lgamma(pixels / 2 + 1) / pixels) / math.sqrt(math.pi)
    return eps * ratio if norm == "l2" else eps / ratio


def attack_images(
    model: nn.Module, images: Split, own: Norm, names: list[str], radii: list[float]
) -> AttackedImages:
    """Run every attack at every radius, as if these were the run's eps.

    Steps that a row gives in pixels would reach too short in a large ball and too far in a small
    one: here they are 2.5 radius / steps, PGD's default.
    """
    x, y, found = images.x(), images.y, {}
    pixels = x[0].numel()
    for name in names:
        attack, norm = resolve_attack(name, own)
        threats = [Threat(norm, equal_volume(eps, own, norm, pixels)) for eps in radii]

        def search(threat: Threat, attack: Attack = attack, name: str = name) -> AttackResult:
            if attack.defaults.get("step_size"):
                steps = {**attack.defaults, **attack.settings}["steps"]
                attack = attack.but(step_size=2.5 * threat.eps / steps)
            return attack(model, x, y, threat, Streams(images.ids, "gallery", name))

        if finds_nearest(attack):
            nearest = search(threats[-1])
            found[name] = [
                (dataclasses.replace(nearest, broken=nearest.size <= threat.eps + ROUNDING), threat)
                for threat in threats
            ]
        else:
            found[name] = [(search(threat), threat) for threat in threats]
    return found


def attack_and_norm_label(name: str) -> str:
    """BIA (L2) for bia:l2."""
    row, _, norm = name.partition(":")
    return attack_label(row) + (f" ({NORM_LABELS[norm]})" if norm else "")


def count_broken(found: AttackedImages) -> dict[str, list[dict]]:
    """Per attack and radius: how many images are broken, of how many, with Wilson's interval."""
    facts: dict[str, list[dict]] = {}
    for name, results in found.items():
        facts[name] = []
        for result, threat in results:
            counted = share_with_interval(result.broken.cpu().numpy())
            del counted["n"]
            facts[name].append({"norm": threat.norm, "radius": threat.eps, **counted})
    return facts


def count_wrong_when_clean(found: AttackedImages) -> int:
    """How many images need no attack."""
    result, _ = next(iter(found.values()))[0]
    return sum(by == "clean" for by in result.by)
