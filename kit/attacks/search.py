"""What evaluation asks first: the clean images, and PGD with restarts, every pass counted."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kit import functional as f
from kit.attacks.gradient import OBJECTIVES, start
from kit.attacks.oracle import AttackResult, classes, oracle
from kit.types import Count, NonNegative, Streams, Threat, check_value


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """(N,) class of each image, -1 where the logits are not finite."""
    return classes(model(x))


def natural(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, generator: Streams | None = None,
            validate: bool = True) -> AttackResult:
    """No attack: who is right on the clean images?"""
    with oracle(model, x, y, threat, validate=validate) as look:
        return look.result("natural")


def pgd_search(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, generator: Streams | None = None,
               validate: bool = True, steps: Count = 20, step: NonNegative = 0.1, restarts: Count = 1,
               loss: Literal["ce", "margin"] = "ce", init: Literal["none", "uniform", "gaussian"] = "uniform",
               stop_early: bool = False) -> AttackResult:
    """PGD as an evaluation: broken if any iterate of any start is misclassified; `step` in units of eps.

    `prediction` is the class of the first start's last iterate, which most papers count. With `stop_early` an example leaves
    where it breaks: the same examples are broken, with fewer passes, and `prediction` is the class that it was taken for.
    x (N, C, H, W) in [0, 1]; y (N,) int64. Errors: `KitError` for settings out of range, and those of `check_inputs`.
    """
    for name, value, kind in (("steps", steps, Count), ("step", step, NonNegative), ("restarts", restarts, Count),
                              ("loss", loss, Literal["ce", "margin"]), ("stop_early", stop_early, bool)):
        check_value(name, value, kind)
    with oracle(model, x, y, threat, validate=validate) as look:
        streams = look.streams(generator, "pgd")
        first = None
        for _ in range(restarts):
            x_0 = start(x, threat, init, streams)
            rows = look.unbroken() if stop_early else look.rows
            x_t = x_0[rows]
            for _ in range(steps if len(rows) else 0):
                gradient, _, _ = look.gradient(x_t, rows, lambda logits, y: OBJECTIVES[loss](logits, y, None))
                if stop_early:
                    rows, x_t, gradient = f.those(~look.broken[rows], rows, x_t, gradient)
                if not len(rows):
                    break
                moved = x_t + step * threat.eps * f.ascent_direction(gradient, threat.norm)
                x_t = f.project(moved, x.index_select(0, rows), threat)
            logits = look.logits(x_t, rows) if len(rows) else None
            first = logits if first is None else first
        if not stop_early and first is not None:
            look.prediction = classes(first)
        return look.result("pgd")
