"""TODO methods.step_outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from kit.core.random_streams import Streams

# ------------------------------------------------------------------------------------- what is seen


@dataclass(frozen=True)
class StepOutputs:
    """What one training step sees of each example; every part of a method reads from here.

    Logits are (N, K), the rest (N,). A field that no part of the method asks for is None and was
    never computed. `kappa`, `lps` and `p_flip` come from the inner attack's own forward passes
    (eval mode); the logits are the outer pass of the training step (train mode).
    """

    y: Tensor  # labels
    logits_adv: Tensor  # of the training input: x_adv, or x where the stage is clean
    logits_nat: Tensor | None = None
    kappa: Tensor | None = None  # evaluation points classified correctly, 0..steps (GAIRAT)
    lps: Tensor | None = None  # first misclassified step, `steps` if none
    p_flip: Tensor | None = None  # p_y at that step
    steps: int = 0  # inner attack steps
    streams: Streams | None = None  # for parts that draw
    logits_second: Tensor | None = (
        None  # (N, K), of the second attack's images where a method has one
    )

    @cached_property
    def probs_adv(self) -> Tensor:
        return self.logits_adv.softmax(dim=1)

    @cached_property
    def probs_nat(self) -> Tensor:
        return self.logits_nat.softmax(dim=1)

    def detach(self) -> StepOutputs:
        """The same values without a gradient: what criteria and weights may look at."""
        return self._each(Tensor.detach)

    def take(self, rows: slice, streams: Streams) -> StepOutputs:
        """Some of the examples, whose streams are `streams`."""
        return dataclasses.replace(self._each(lambda values: values[rows]), streams=streams)

    def _each(self, change: Callable[[Tensor], Tensor]) -> StepOutputs:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return StepOutputs(
            **{k: change(v) if isinstance(v, Tensor) else v for k, v in fields.items()}
        )
