"""The table `ATTACKS` gives the attacks for evaluation their settings.

Attacks are functions of `(model, x, y, threat, ...)`. `fgsm`, `pgd` and their kin return x_adv and
are what methods train on; all that search return an `AttackResult`, which says of each example
whether, by what, when and how far it was broken, and what that cost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Any, get_type_hints

from torch import Tensor, nn

from kit.attacks.auto_attack import autoattack
from kit.attacks.auto_pgd import apgd
from kit.attacks.basic_iterative import bia
from kit.attacks.carlini_wagner import cw_l2
from kit.attacks.clean_images import natural
from kit.attacks.fast_adaptive_boundary import fab
from kit.attacks.fast_minimum_norm import fmn
from kit.attacks.line_search_pgd import lmpgd
from kit.attacks.margin_decomposition import md, mdmt
from kit.attacks.momentum_iterative import mifgsm
from kit.attacks.pgd_evaluation import pgd_search
from kit.attacks.simultaneous_perturbation import spsa
from kit.attacks.square_attack import square
from kit.attacks.tracker import AttackResult
from kit.core.errors import unknown_name
from kit.core.parameters import check_value
from kit.core.random_streams import Streams
from kit.core.registry import Registry
from kit.core.threat import Threat


@dataclass(frozen=True)
class Attack:
    """An attack with the settings that it is run with.

    The threat comes from the run that is evaluated.
    """

    title: str
    source: str
    fn: Callable[..., AttackResult]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, Any]:
        """All settings that the function knows, with its defaults."""
        # these have no influence on what it does
        aside = ("generator", "validate", "watch", "state", "batch_size")
        return {
            p.name: p.default
            for p in signature(self.fn).parameters.values()
            if p.kind is Parameter.KEYWORD_ONLY and p.name not in aside
        }

    def but(self, **changes: Any) -> Attack:
        """The attack with other settings, say ATTACKS["pgd20"].but(steps=40).

        Raises:
            KitError: A setting is unknown or out of range.
        """
        hints, defaults, checked = get_type_hints(self.fn, include_extras=True), self.defaults, {}
        for name, value in changes.items():
            if name not in defaults:
                raise unknown_name(f"setting of {self.fn.__name__}", name, defaults)
            usual = value is None and defaults[name] is None
            checked[name] = (
                None if usual else check_value(f"{self.fn.__name__}.{name}", value, hints[name])
            )
        return replace(self, settings=MappingProxyType({**self.settings, **checked}))

    def config(self) -> dict[str, Any]:
        """All that decides what it does, as JSON values."""
        return {"attack": self.fn.__name__, **self.defaults, **self.settings}

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, streams: Streams
    ) -> AttackResult:
        """Attack one batch whose images have passed `check_inputs`."""
        return self.fn(model, x, y, threat, generator=streams, validate=False, **self.settings)


def _pgd(title: str, source: str, steps: int, step: float, **settings: Any) -> Attack:
    return Attack(title, source, pgd_search, {"steps": steps, "step": step, **settings})


ATTACKS = Registry(
    "attack",
    {
        "natural": Attack("clean images", "-", natural),
        "fgsm": _pgd(
            "one step of length eps, no random start", "Goodfellow et al. 2015", 1, 1.0, init="none"
        ),
        "pgd10": _pgd(
            "PGD-10 on cross-entropy, steps of eps/4 (the training attack's)", "VIR s. 5", 10, 1 / 4
        ),
        "pgd20": _pgd("PGD-20 on cross-entropy, steps of eps/10", "MAIL's code", 20, 1 / 10),
        "pgd100": _pgd("PGD-100 on cross-entropy, steps of eps/10", "MAIL's code", 100, 1 / 10),
        "pgd20x5": _pgd(
            "PGD-20 with five random starts", "the strongest start counts", 20, 1 / 10, restarts=5
        ),
        "cw20": _pgd(
            "PGD-20 on the margin loss, steps of eps/10 (the papers' CW)",
            "MAIL's code",
            20,
            1 / 10,
            loss="margin",
        ),
        "cw100": _pgd(
            "PGD-100 on the margin loss, steps of eps/10", "MR s. 4", 100, 1 / 10, loss="margin"
        ),
        "pgd20-eighth": _pgd("PGD-20 on cross-entropy, steps of eps/8", "VIR s. 5", 20, 1 / 8),
        "pgd100-eighth": _pgd("PGD-100 on cross-entropy, steps of eps/8", "VIR s. 5", 100, 1 / 8),
        "cw20-eighth": _pgd(
            "PGD-20 on the margin loss, steps of eps/8", "VIR s. 5", 20, 1 / 8, loss="margin"
        ),
        "mia": Attack(
            "momentum iterative attack, 40 steps", "Dong et al. 2018; advertorch's defaults", mifgsm
        ),
        "bia": Attack(
            "basic iterative attack, 10 steps; LinfBIA or L2BIA by the threat",
            "Kurakin et al. 2017; advertorch's defaults",
            bia,
        ),
        "l2bia": Attack(
            "BIA in an L2 ball of radius eps, whatever the threat: hardly leaves the image",
            "CSA/CSE Tables II-IV",
            bia,
            {"l2": True},
        ),
        "lm-pgd50": Attack(
            "PGD with line search and Nesterov momentum, 50 steps",
            "the kit's own; MAIL Fig. 1a",
            lmpgd,
        ),
        "fmn100": Attack(
            "fast minimum-norm attack, 100 steps", "Pintor et al. 2021; VIR s. 5", fmn
        ),
        "cw-l2": Attack(
            "Carlini and Wagner's L2 attack, 1,000 steps a round",
            "Carlini and Wagner 2017",
            cw_l2,
            {"steps": 1000},
        ),
        "cw-linf": Attack(
            "Carlini and Wagner's attack inside the L-inf ball, 3 rounds of 40 steps",
            "CSA/CSE s. IV; its settings are not stated",
            cw_l2,
            {"box": "ball", "steps": 40, "search_steps": 3, "initial_const": 1.0, "lr": 0.3},
        ),
        "md": Attack("margin decomposition, 2 runs of 50 steps", "Ma et al. 2023", md),
        "mdmt": Attack("margin decomposition against up to 10 targets", "Ma et al. 2023", mdmt),
        "apgd-ce": Attack("APGD on cross-entropy, 100 steps", "Croce and Hein 2020", apgd),
        "apgd-dlr": Attack(
            "APGD on the difference of logits ratio", "Croce and Hein 2020", apgd, {"loss": "dlr"}
        ),
        "apgd-t": Attack(
            "APGD on the targeted DLR, up to 9 targets",
            "Croce and Hein 2020",
            apgd,
            {"loss": "targeted"},
        ),
        "fab-t": Attack(
            "targeted FAB, 100 steps, up to 9 targets: minimal norm", "Croce and Hein 2020", fab
        ),
        "square": Attack(
            "Square, 5,000 queries: sees no gradient", "Andriushchenko et al. 2020", square
        ),
        "aa": Attack("AutoAttack, standard", "Croce and Hein 2020", autoattack),
        "aa-plus": Attack(
            "AutoAttack, plus", "Croce and Hein 2020", autoattack, {"version": "plus"}
        ),
        "aa-rand": Attack(
            "AutoAttack for randomised networks",
            "Croce and Hein 2020",
            autoattack,
            {"version": "rand"},
        ),
        "mde": Attack(
            "margin decomposition ensemble",
            "Ma et al. 2023; VIR s. 5",
            autoattack,
            {"version": "mde"},
        ),
        "spsa100": Attack(
            "SPSA, 100 steps of 256 samples: sees no gradient", "Uesato et al. 2018; VIR s. 5", spsa
        ),
    },
)

#: Names that are words and no acronyms. "transfer" is the audit's: images made for another network.
_IN_WORDS = {"natural": "natural", "square": "Square", "transfer": "transfer"}


def attack_label(name: str) -> str:
    """Name an attack as a reader knows it: PGD-100 for pgd100, FGSM for fgsm, Square for square."""
    if name in _IN_WORDS:
        return _IN_WORDS[name]
    match = re.fullmatch(r"([a-z]+)(\d+)(x\d+)?", name)
    return f"{match[1].upper()}-{match[2]}{match[3] or ''}" if match else name.upper()
