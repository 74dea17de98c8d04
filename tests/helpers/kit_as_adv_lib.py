"""The kit's attacks under the names and settings of adversarial-library, for that library's tests.

It is a plugin of pytest: `python -m pytest -p tests.helpers.kit_as_adv_lib CHECKOUT/tests/...` runs
them against the kit. What the kit has not, a targeted attack say, is skipped.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from kit.attacks.auto_pgd import apgd
from kit.attacks.carlini_wagner import cw_l2
from kit.attacks.fast_adaptive_boundary import fab
from kit.attacks.fast_minimum_norm import fmn
from kit.attacks.pgd_evaluation import pgd_search
from kit.core.random_streams import Streams
from kit.core.threat import Threat

NORMS = {2: "l2", math.inf: "linf"}

#: Radii that hold every image of these tests, for attacks that look for the nearest.
LARGEST = {"l2": 100.0, "linf": 1.0}

#: Name there: (attack here, {setting there: setting here}, what is set besides).
ATTACKS: dict[str, tuple[Callable, dict[str, str], dict]] = {
    "fmn": (fmn, {"steps": "steps"}, {}),
    "fab": (fab, {"n_iter": "steps"}, {"targeted": False}),
    "carlini_wagner_l2": (cw_l2, {"max_iterations": "steps", "learning_rate": "lr"}, {}),
    "apgd": (apgd, {"n_iter": "steps"}, {"loss": "dlr"}),
    "pgd_linf": (pgd_search, {"steps": "steps"}, {}),
}


def adapt(name: str) -> Callable[..., Tensor]:
    """Return the attack as that library calls it: images and labels in, images out."""

    def call(
        model: nn.Module, inputs: Tensor, labels: Tensor, targeted: bool = False, **given: float
    ) -> Tensor:
        if name not in ATTACKS:
            pytest.skip(f"the kit has no {name}")
        if targeted:
            pytest.skip("the kit's attacks have no targets of one's own")
        attack, renamed, settings = ATTACKS[name]
        norm = "linf" if name.endswith("_linf") else NORMS[given.pop("norm", 2)]
        eps = next((given.pop(word) for word in ("eps", "ε") if word in given), LARGEST[norm])
        if size := given.pop("absolute_step_size", None):
            settings = settings | {"step": size / eps}
        settings = settings | {renamed[word]: value for word, value in given.items()}
        images = inputs.reshape(len(inputs), -1, 1, 1)
        streams = Streams(torch.arange(len(labels)))
        result = attack(model, images, labels, Threat(norm, eps), generator=streams, **settings)
        return result.x_adv.reshape(inputs.shape)

    return call


class _Attacks(ModuleType):
    def __getattr__(self, name: str) -> Callable[..., Tensor]:
        if name.startswith("__"):  # what Python asks any module for
            raise AttributeError(name)
        return adapt(name)


def pytest_configure() -> None:
    """Stand in for the library."""
    library = ModuleType("adv_lib")
    library.attacks = _Attacks("adv_lib.attacks")  # type: ignore[attr-defined]
    sys.modules |= {"adv_lib": library, "adv_lib.attacks": library.attacks}
