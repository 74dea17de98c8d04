"""Friendly PGD: an example stops soon after it is misclassified."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kit.attacks.contract import check_inputs, frozen
from kit.attacks.projected_gradient_descent import OBJECTIVES, TrainedLoss, Watch, start_point
from kit.core import tensors
from kit.core.parameters import Count, Natural, NonNegative
from kit.core.random_streams import Streams, streams_of
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
    stop). One that has stopped stays where it is and is passed through the network with the others:
    to leave it out, the host would have to wait in each step for which ones have. `trained_loss` is
    what every training attack is handed; this one does not use it. See `pgd` for the rest.

    Raises:
        KitError: `check_inputs` refuses the inputs.

    Source: FAT and its code.
    """
    if validate:
        check_inputs(model, x, y)
    step_size = 2.5 * threat.eps / steps if step_size is None else step_size
    streams = streams_of(generator, x)
    with frozen(model):
        with torch.no_grad():
            logits_nat = model(x) if loss == "kl" else None
        x_t = start_point(x, threat, init, streams).clamp(0, 1)
        project = tensors.projection(x, threat)
        patience, goes_on = torch.full_like(y, tau), torch.ones_like(y, dtype=torch.bool)
        for t in range(steps):
            point = x_t.detach().requires_grad_(True)
            with torch.enable_grad():
                logits = model(point)
                gradient = tensors.image_gradient(OBJECTIVES[loss](logits, y, logits_nat), point)
            if watch is not None:
                watch(t, x_t, logits.detach())
            wrong = logits.argmax(dim=1) != y
            goes_on = goes_on & (~wrong | (patience > 0))
            patience = patience - wrong.long()
            noise = omega * streams.normal(x) if omega else 0.0
            step = step_size * tensors.ascent_direction(gradient, threat.norm) + noise
            x_t = tensors.where(goes_on, project(x_t + step), x_t)
    return x_t
