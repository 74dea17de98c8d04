"""Friendly PGD: an example stops soon after it is misclassified."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kit.attacks.contract import check_inputs, frozen
from kit.attacks.projected_gradient_descent import OBJECTIVES, TrainedLoss, Watch, start_point
from kit.core import tensors
from kit.core.parameters import Count, Natural, NonNegative
from kit.core.random_streams import Streams, draw_noise, given_or_numbered
from kit.core.threat import Threat


def friendly_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    generator: Streams | torch.Generator | None = None,
    watch: Watch | None = None,
    steps: Count = 10,
    step_size: NonNegative | None = None,
    validate: bool = True,
    trained_loss: TrainedLoss | None = None,
    tau: Natural = 0,
    omega: NonNegative = 0.001,
    loss: Literal["ce", "kl", "margin"] = "ce",
    init: Literal["none", "uniform", "gaussian"] | Tensor = "uniform",
) -> Tensor:
    """PGD in which an example stops once it was misclassified at τ + 1 evaluation points.

    The start is one of them. Every start is clipped to [0, 1], and each step adds ω N(0, 1) before
    the projection. Examples keep their places (FAT's code returns them in the order in which they
    stop); one that has stopped costs no more passes. `trained_loss` is what every training attack
    is handed; this one does not use it. See `pgd` for the rest.

    Raises:
        KitError: `check_inputs` refuses the inputs.

    Source: FAT and its code.
    """
    if validate:
        check_inputs(model, x, y)
    step_size = 2.5 * threat.eps / steps if step_size is None else step_size
    source = given_or_numbered(generator, x)
    with frozen(model):
        with torch.no_grad():
            logits_nat = model(x) if loss == "kl" else None
        x_t, patience = start_point(x, threat, init, source).clamp(0, 1), torch.full_like(y, tau)
        rows = torch.arange(len(y), device=y.device)
        latest: Tensor | None = None  # (N, K) logits of each example's last pass
        for t in range(steps):
            active = x_t[rows].detach().requires_grad_(True)
            with torch.enable_grad():
                logits = model(active)
                clean = None if logits_nat is None else logits_nat[rows]
                gradient = tensors.image_gradient(
                    OBJECTIVES[loss](logits, y[rows], clean).sum(), active
                )
            answers = logits.detach()
            latest = answers if latest is None else latest.index_copy(0, rows, answers)
            if watch is not None:
                watch(t, x_t, latest)
            wrong = logits.argmax(dim=1) != y[rows]
            goes_on = ~wrong | (patience[rows] > 0)
            patience[rows] -= wrong.long()
            noise = omega * draw_noise(source, "normal", x)[rows] if omega else 0.0
            step = step_size * tensors.ascent_direction(gradient, threat.norm) + noise
            moved = tensors.project(active.detach() + step, x[rows], threat)
            rows = rows[goes_on]
            x_t = x_t.detach().index_copy(0, rows, moved[goes_on])
            if not len(rows):
                break
    return x_t
