"""`StepOutputs`, the one record from which every part of a method reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from kit.core.errors import KitError
from kit.core.parts import Function
from kit.core.random_streams import Streams


@dataclass(frozen=True)
class StepOutputs:
    """What one training step computed of each example.

    Logits are (N, K), the rest (N,). A field that no part of the method reads is None and was
    never computed. `kappa`, `lps` and `p_flip` come from the inner attack's own forward passes
    (eval mode); the logits are those of the training step's outer passes (train mode).
    """

    y: Tensor  # labels
    logits_adv: Tensor  # of the training input: x_adv, or x where the stage is clean
    logits_nat: Tensor | None = None
    kappa: Tensor | None = None  # evaluation points classified correctly, 0..steps (GAIRAT)
    lps: Tensor | None = None  # first misclassified step, `steps` if there is none
    p_flip: Tensor | None = None  # p_y at that step
    steps: int = 0  # steps of the inner attack
    streams: Streams | None = None  # for parts that draw
    logits_second: Tensor | None = None  # of the second attack's images, where there is one

    @cached_property
    def probs_adv(self) -> Tensor:
        """Softmax of `logits_adv`, (N, K)."""
        return self.logits_adv.softmax(dim=1)

    @cached_property
    def probs_nat(self) -> Tensor:
        """Softmax of `logits_nat`, (N, K)."""
        assert self.logits_nat is not None  # a part that reads it has stated so
        return self.logits_nat.softmax(dim=1)

    def detach(self) -> StepOutputs:
        """Return the same values without a gradient: what criteria and weights may read."""
        nat, second = self.logits_nat, self.logits_second
        return replace(
            self,
            logits_adv=self.logits_adv.detach(),
            logits_nat=None if nat is None else nat.detach(),
            logits_second=None if second is None else second.detach(),
        )

    def take(self, rows: slice, streams: Streams) -> StepOutputs:
        """Return some of the examples, whose streams are `streams`."""
        values = {name: getattr(self, name) for name in FIELD_NAMES}
        tensors: dict[str, Any] = {
            name: value[rows] for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors, streams=streams)


FIELD_NAMES = tuple(field.name for field in fields(StepOutputs))

#: What a part can read.
READABLE = (*FIELD_NAMES, "probs_adv", "probs_nat")


def check_fields(reader: str, names: tuple[str, ...]) -> None:
    """Refuse names that no field of `StepOutputs` has.

    Raises:
        KitError: A name is unknown; it names the fields that there are.
    """
    for name in names:
        if name not in READABLE:
            raise KitError(
                f"{reader} reads '{name}', which a step does not compute. Fields: "
                f"{', '.join(READABLE)}"
            )


def reads(*names: str) -> Callable[[Function], Function]:
    """State which fields of `StepOutputs` a function reads; what nobody reads is not computed.

    A function of StepOutputs without this statement is taken to read all of them.

    Raises:
        KitError: A name is unknown; it names the fields that there are.
    """

    def state(fn: Function) -> Function:
        check_fields(fn.__name__, names)
        # functions take attributes, which their type does not say
        fn.reads = frozenset(names)  # type: ignore[attr-defined]
        return fn

    return state


def fields_read_by(fn: Callable) -> frozenset[str]:
    """Return the fields of `StepOutputs` that a function has stated to read; all if none."""
    return getattr(fn, "reads", frozenset(READABLE))
