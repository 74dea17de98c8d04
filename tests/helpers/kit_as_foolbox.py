"""The kit's attacks as attacks of foolbox, for that library's own tests.

It is a plugin of pytest: `python -m pytest -p tests.helpers.kit_as_foolbox CHECKOUT/tests/...` runs
them against the kit. Foolbox's models, images, criteria and base classes stay as they are. An
attack that the kit has not is skipped, and so is a setting or a criterion that it has not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from kit.attacks.basic_iterative import bia
from kit.attacks.carlini_wagner import cw_l2
from kit.attacks.fast_minimum_norm import fmn
from kit.attacks.momentum_iterative import mifgsm
from kit.attacks.pgd_evaluation import pgd_search
from kit.core.random_streams import Streams
from kit.core.threat import Threat


@dataclasses.dataclass(frozen=True)
class Counterpart:
    """An attack of the kit, and how its settings are called there.

    `step` is the setting for the length of a step: in units of eps ("step") or in pixels
    ("step_size"). Without a `rel_stepsize` of foolbox's the attack has none.
    """

    fn: Callable
    norm: str
    steps: int = 1
    rel_stepsize: float = 0.0
    step: str = ""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    renamed: dict[str, str] = dataclasses.field(default_factory=dict)
    nearest: bool = False


def _fgsm(norm: str) -> Counterpart:
    return Counterpart(pgd_search, norm, 1, 1.0, "step", {"init": "none"})


def _pgd(norm: str, rel_stepsize: float) -> Counterpart:
    return Counterpart(pgd_search, norm, 50, rel_stepsize, "step")


CW = {"steps": "steps", "binary_search_steps": "search_steps", "stepsize": "lr",
      "initial_const": "initial_const"}  # fmt: skip

#: Name there: the attack here, with the defaults of foolbox.
COUNTERPARTS = {
    "LinfFastGradientAttack": _fgsm("linf"),
    "L2FastGradientAttack": _fgsm("l2"),
    "LinfProjectedGradientDescentAttack": _pgd("linf", 1 / 30),
    "L2ProjectedGradientDescentAttack": _pgd("l2", 0.025),
    "LinfBasicIterativeAttack": Counterpart(bia, "linf", 10, 0.2, "step_size"),
    "L2BasicIterativeAttack": Counterpart(bia, "l2", 10, 0.2, "step_size"),
    "LinfMomentumIterativeFastGradientMethod": Counterpart(mifgsm, "linf", 10, 0.2, "step_size"),
    "L2MomentumIterativeFastGradientMethod": Counterpart(mifgsm, "l2", 10, 0.2, "step_size"),
    "L2CarliniWagnerAttack": Counterpart(cw_l2, "l2", 1000, renamed=CW, nearest=True),
    "L2FMNAttack": Counterpart(fmn, "l2", 100, renamed={"steps": "steps"}, nearest=True),
    "LInfFMNAttack": Counterpart(fmn, "linf", 100, renamed={"steps": "steps"}, nearest=True),
}

#: What foolbox's tests need beside the attack that they test: images to begin from.
KEPT = {"DatasetAttack"}

#: Radii that hold every image of the unit box with as many pixels as ImageNet's.
LARGEST = {"l2": 1000.0, "linf": 1.0}


class Network(nn.Module):
    """A model of foolbox as a network."""

    def __init__(self, model: Any):
        super().__init__()
        self.inner = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Raw logits (N, K) of raw images."""
        return self.inner(x)


def run_counterpart(
    row: Counterpart, given: dict[str, Any], model: Any, inputs: Any, labels: Any, eps: float
) -> Any:
    """Attack as the kit does; what it says of ball and verdict must be what foolbox finds."""
    settings = row.settings | {"steps": given.pop("steps", row.steps)}
    length = given.pop("abs_stepsize", None) or given.pop("rel_stepsize", row.rel_stepsize) * eps
    if row.step:
        settings[row.step] = length / eps if row.step == "step" else length
    if given.keys() - row.renamed.keys():
        pytest.skip(f"the kit's attack has no {', '.join(given.keys() - row.renamed.keys())}")
    settings |= {row.renamed[name]: value for name, value in given.items()}
    x, y = inputs.raw, labels.raw
    streams = Streams(torch.arange(len(y)))
    result = row.fn(Network(model), x, y, Threat(row.norm, eps), generator=streams, **settings)
    delta = (result.x_adv - x).flatten(1)
    size = delta.abs().amax(1) if row.norm == "linf" else delta.norm(dim=1)
    assert bool((size <= eps * (1 + 1e-5)).all()), "an image is outside the ball"
    assert torch.equal(model(result.x_adv).argmax(-1) != y, result.broken), "another verdict"
    return result.x_adv


def adapt(name: str, theirs: type, base: Any) -> type:
    """Return a class of that name whose instances attack with the kit."""
    row = COUNTERPARTS.get(name)

    fixed = row is not None and not row.nearest

    class Adapted(base.FixedEpsilonAttack if fixed else base.MinimizationAttack):
        def __init__(self, *args: Any, **settings: Any):
            self.args, self.settings, self.theirs = args, settings, theirs

        @property
        def distance(self) -> Any:
            return self.theirs(*self.args, **self.settings).distance

        def __repr__(self) -> str:
            words = ", ".join(f"{key}={value}" for key, value in self.settings.items())
            return f"{type(self).__name__}({words})"

        def value_and_grad(self, *args: Any) -> None:
            """Exist: foolbox asks whether it does, and then makes a subclass."""

        def run(self, model: Any, inputs: Any, criterion: Any, **kwargs: Any) -> Any:
            if row is None or type(self).__name__ != name:
                pytest.skip(f"the kit has no {type(self).__name__}")
            criterion = base.get_criterion(criterion)
            if not isinstance(criterion, base.Misclassification):
                pytest.skip("the kit's attacks have no targets of one's own")
            if "starting_points" in kwargs:
                pytest.skip("the kit's attacks begin at the clean image")
            eps = LARGEST[row.norm]
            eps = eps if row.nearest else min(float(kwargs["epsilon"]), eps)
            x, restore_type = base.ep.astensor_(inputs)
            labels = criterion.labels
            found = run_counterpart(row, dict(self.settings), model, x, labels, eps)
            return restore_type(base.ep.astensor(found))

    Adapted.__name__ = Adapted.__qualname__ = name
    return Adapted


def pytest_configure() -> None:
    """Put the kit's attacks in the place of foolbox's."""
    from foolbox import attacks
    from foolbox.attacks import base
    from foolbox.criteria import Misclassification

    base.Misclassification = Misclassification  # type: ignore[attr-defined]
    for word, value in list(vars(attacks).items()):
        made = isinstance(value, type) and issubclass(value, attacks.Attack)
        if made and value is not attacks.Attack and value.__name__ not in KEPT:
            setattr(attacks, word, adapt(value.__name__, value, base))
