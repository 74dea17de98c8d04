"""From words to a plan: a `RunSpec` names a run, `resolve` checks every word and fixes all numbers.

This is the one place where names become objects. A run's key hashes what is resolved, not what it
is called: two names for the same settings share a run, and a changed default never reuses an old
one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

from kit.core.errors import KitError, describe_value, unknown_name
from kit.core.parameters import Natural, check_value
from kit.data.datasets import absolute_name
from kit.data.own_images import is_own
from kit.experiments.recipes import RECIPE_FIELDS, Recipe, find_recipe
from kit.methods.table import METHODS, PART_NAMES, Method, check_override
from kit.models.architectures import SMALL

#: Raised by one whenever training would give other numbers for the same settings.
REVISION = 2

#: Attacks that pass all images in every step, so that several networks can take theirs as one.
STACKABLE_ATTACKS = ("pgd", "trained_loss_pgd")

#: The row of a network that was trained elsewhere: nothing is known of its method.
ADOPTED = METHODS["std"].but("a network that was trained elsewhere", "adopted")

#: Fields of a recipe in which runs that are trained as one program may differ.
OWN_FIELDS = (
    "lr",
    "optimizer",
    "momentum",
    "nesterov",
    "weight_decay",
    "schedule",
    "milestones",
    "lr_factor",
    "warm_up",
)


@dataclass(frozen=True)
class RunSpec:
    """A run as a user names it.

    `overrides` changes fields of the recipe ("epochs"), hyper-parameters of the method's parts
    ("weight.slope") or "burn_in", the number of epochs in which all weights are 1.

    `adopted` is of a network that was trained elsewhere (see `kit.adopt`): the SHA-256 of its
    "weights", and how many "images" of a split are observed. `method` is then the network's name.
    """

    method: str
    recipe: str = "digits"
    seed: int = 0
    overrides: Mapping[str, Any] = field(default_factory=dict)
    adopted: Mapping[str, Any] = field(default_factory=dict)

    def words(self) -> dict[str, Any]:
        """Return it as JSON values, which `RunSpec(**words)` takes back."""
        return {
            "method": self.method,
            "recipe": self.recipe,
            "seed": self.seed,
            "overrides": dict(self.overrides),
            **({"adopted": dict(self.adopted)} if self.adopted else {}),
        }

    def __str__(self) -> str:
        extras = "".join(
            f", {k}={v:.6g}" if isinstance(v, float) else f", {k}={v}"
            for k, v in self.overrides.items()
        )
        if self.adopted:
            return f"{self.method}, adopted on {self.recipe}{extras}"
        return f"{self.method} on {self.recipe}, seed {self.seed}{extras}"


@dataclass(frozen=True)
class Plan:
    """A resolved spec: every number is fixed and valid."""

    spec: RunSpec
    method: Method
    recipe: Recipe
    burn_in: int

    @cached_property
    def seed(self) -> int:
        """The seed of all that is random in it."""
        return self.spec.seed

    def config(self) -> dict:
        """Return all that decides the result, as JSON values."""
        return {
            "revision": REVISION,
            "seed": self.seed,
            "burn_in": self.burn_in,
            "method": self.method.config(),
            "recipe": self.recipe.config() | {"data": absolute_name(self.recipe.data)},
            **({"adopted": dict(self.spec.adopted)} if self.spec.adopted else {}),
        }

    @cached_property
    def key(self) -> str:
        """12 hex digits of the settings' SHA-256."""
        return hashlib.sha256(json.dumps(self.config(), sort_keys=True).encode()).hexdigest()[:12]

    @cached_property
    def burn_in_key(self) -> str:
        """12 hex digits of what it computes while every weight is 1.

        Runs that differ in their weights alone share it.
        """
        config = self.config()
        slots = ["criterion", "weight", "normaliser", "select"]
        if all(path.partition(".")[0] in slots for path in self.method.scheduled):
            slots.append("schedule")
        config["method"] |= dict.fromkeys(slots)
        # a clean pass moves the batch norms
        config |= {"burn_in": None, "reads_clean": self.method.reads_clean}
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def shared_epochs(self) -> int:
        """How many epochs others may share: its burn-in, or all if it never reweights."""
        return self.burn_in if self.method.reweights else self.recipe.epochs

    @cached_property
    def stack_key(self) -> str:
        """12 hex digits of what runs have in common that can be trained as one program.

        It is "" if the run is trained alone. Data, sizes, threat and attack are shared; optimizers,
        rates, seeds, weights, losses and class costs are each network's own.
        """
        method = self.method
        timed = {path.partition(".")[0] for path in method.scheduled}
        alone = (
            self.recipe.model not in SMALL
            or method.perturb
            or method.attacks_first
            or timed & {"attack", "second_attack", "stages"}
        )
        if alone or any(
            attack and attack.name not in STACKABLE_ATTACKS
            for attack in (method.attack, method.second_attack)
        ):
            return ""
        shared = {
            name: value for name, value in self.recipe.config().items() if name not in OWN_FIELDS
        }
        parts = {
            slot: part.config() if (part := getattr(method, slot)) else None
            for slot in ("attack", "second_attack", "stages")
        }
        words = {"recipe": shared, "reads_clean": method.reads_clean, **parts}
        return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def folder_name(self) -> str:
        """The name of the run's folder: its data and its key."""
        places = self.recipe.data.removeprefix("folder:").split("+npz:")
        data = re.sub(
            r"[^\w.-]+", "-", "-".join(place.rstrip("/").split("/")[-1] for place in places)
        )
        return f"{data}-{self.key}"


def resolve(spec: RunSpec) -> Plan:
    """Resolve a spec: check every name and value, and fix all numbers.

    Raises:
        KitError: A name is unknown or a value unfit; it names the choices.
    """
    for name, kind in (("method", str), ("recipe", str), ("seed", Natural)):
        check_value(name, getattr(spec, name), kind)
    if not isinstance(spec.overrides, Mapping):
        raise KitError(
            f"overrides={describe_value(spec.overrides)} must be a dict of settings, such as "
            '{"epochs": 30}'
        )
    method = ADOPTED if spec.adopted else METHODS[spec.method]
    chosen = find_recipe(spec.recipe)
    choices = [*RECIPE_FIELDS, "burn_in", *method.hyper_parameters()]
    for path in spec.overrides:
        if isinstance(path, str) and "." in path and path.partition(".")[0] in PART_NAMES:
            check_override(method, path)
        elif path not in choices:
            raise unknown_name(f"setting of {spec.method} on {spec.recipe}", path, choices)
    chosen = chosen.override(**{k: v for k, v in spec.overrides.items() if k in RECIPE_FIELDS})
    for path, value in spec.overrides.items():
        if "." in path:
            method = method.override(path, value)
    if is_own(chosen.data) and not spec.adopted:
        raise KitError(
            f"{chosen.data} are the images that an adopted network is observed on, the same ones "
            "for training and test. No network can be trained on them; put the images into folders "
            "and take recipe=folder:<path>"
        )
    if spec.adopted:  # its training is over: one state, which is its last
        chosen = replace(chosen, epochs=1, milestones=())
    usual = min(round(method.burn_in * chosen.epochs), chosen.epochs - 1) if method.reweights else 0
    burn_in = check_value("burn_in", spec.overrides.get("burn_in", usual), Natural)
    if burn_in and not method.reweights:
        raise KitError(
            f"burn_in={burn_in}: {spec.method} never reweights, so it has no burn-in; leave it out"
        )
    if burn_in and burn_in >= chosen.epochs:
        raise KitError(
            f"burn_in={burn_in} leaves no epoch of {chosen.epochs} to reweight; it must be 0 to "
            f"{chosen.epochs - 1}"
        )
    return Plan(spec, method, chosen, burn_in)


def burn_in_leaders_first(plans: Iterable[Plan]) -> list[Plan]:
    """Return the plans in an order in which every shared burn-in is trained once.

    Of runs that differ in their weights alone the first is one that reweights, for it leaves its
    burn-in to the others.
    """
    plans = list(plans)
    first = list(_leaders(plans).values())
    return first + [plan for plan in plans if not any(plan is leader for leader in first)]


def _leaders(plans: Iterable[Plan]) -> dict[str, Plan]:
    """Return {burn-in key: the plan that trains it, one that reweights if there is any}."""
    leaders: dict[str, Plan] = {}
    for plan in plans:
        if plan.burn_in_key not in leaders or (
            plan.burn_in and not leaders[plan.burn_in_key].burn_in
        ):
            leaders[plan.burn_in_key] = plan
    return leaders


def group_for_stacking(
    plans: Sequence[Plan], most: int, burn_ins: Collection[str] = ()
) -> tuple[list[list[Plan]], list[list[Plan]]]:
    """Group `plans` into lists of at most `most` that are trained as one program each.

    Returns the lists of those that leave their burn-in to the others, then the lists of these.
    `burn_ins` are the keys of those that other runs have left before.
    """
    leading = {plan.key for key, plan in _leaders(plans).items() if key not in burn_ins}
    waves: tuple[dict[str, list[Plan]], ...] = ({}, {})
    for plan in plans:
        waves[plan.key not in leading].setdefault(plan.stack_key or plan.key, []).append(plan)
    first, then = (
        [some[i : i + most] for some in wave.values() for i in range(0, len(some), most)]
        for wave in waves
    )
    return first, then


def split_setting(word: str) -> tuple[str, str]:
    """Return the name and the value of "name=value" or "name:value"; ("", "") for anything else.

    The colon is for the parameters cells of notebooks: papermill lists no parameter whose line has
    two equals signs.
    """
    found = re.fullmatch(r"([^=:\s]+)[=:](.+)", word, re.DOTALL)
    return (found[1], found[2]) if found else ("", "")


def split_settings(text: str) -> list[str]:
    """Return the words of a text such as "weight.slope=5 milestones=[75, 90]".

    Spaces part them, but not inside a list.
    """
    words: list[str] = []
    depth = 0  # of brackets in a value that begins with one
    for part in text.split():
        if depth:
            words[-1] += f" {part}"
            depth += part.count("[") - part.count("]")
        else:
            words.append(part)
            if split_setting(part)[1].startswith("["):
                depth = part.count("[") - part.count("]")
        depth = max(depth, 0)
    return words


def parse_overrides(text: str) -> dict[str, Any]:
    """Return {name: value} of "weight.slope=5 eps=8/255 milestones=[75, 90]".

    A colon may stand for the equals sign.

    Raises:
        KitError: A word is no name=value, a list does not end, or a name is given twice.
    """
    pairs: dict[str, Any] = {}
    words: dict[str, str] = {}
    for word in split_settings(text):
        name, value = split_setting(word)
        if not name:
            raise KitError(
                f"{describe_value(word)} is not a setting; write name=value, several with spaces "
                'between, for instance "weight.slope=5 epochs=30"'
            )
        if value.startswith("[") and value.count("[") > value.count("]"):
            raise KitError(
                f"{describe_value(word)} is a list without its end; write it in brackets, such as "
                "milestones=[75, 90]"
            )
        if name in pairs:
            raise KitError(
                f"{describe_value(words[name])} and {describe_value(word)} set the same thing; "
                f"give {describe_value(name)} once"
            )
        pairs[name], words[name] = parse_value(value), word
    return pairs


def parse_value(text: str) -> Any:
    """Return a number, fraction, True/False, [list] or else the text itself.

    Raises:
        KitError: A fraction divides by zero or has too many digits.
    """
    if re.fullmatch(r"[+-]?\d+(\.\d*)?/\d+", text):
        number, _, divisor = text.partition("/")
        try:
            return float(Fraction(number) / int(divisor))
        except ZeroDivisionError:
            raise KitError(f"{text} divides by zero") from None
        except (ValueError, OverflowError):
            raise KitError(f"{describe_value(text)} is too long a number") from None
    try:
        # "words" in quotes lose them
        return json.loads({"True": "true", "False": "false"}.get(text, text))
    except (ValueError, RecursionError):
        try:
            return float(text)
        except ValueError:
            return text
