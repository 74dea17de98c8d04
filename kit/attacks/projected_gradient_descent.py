"""FGSM and PGD: signed or normalised gradient steps, projected back into the threat's ball."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from kit.attacks.contract import check_inputs, frozen
from kit.attacks.objectives import OBJECTIVES
from kit.attacks.starts import Watch, start_point
from kit.core import tensors
from kit.core.parameters import Count, NonNegative, check_value
from kit.core.random_streams import Streams
from kit.core.threat import Threat


def pgd(
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
    loss: Literal["ce", "kl", "margin"] | Callable = "ce",
    init: Literal["none", "uniform", "gaussian"] | Tensor = "uniform",
) -> Tensor:
    """Projected gradient ascent (Madry et al., 2018). -> the last iterate x_adv, in the ball and in
    [0, 1].

    x (N, C, H, W) in [0, 1]; y (N,) int64; `step_size` in pixels (default 2.5 eps / steps). `loss`:
    a name, or a function (logits, y, clean logits or None) -> (N,) to ascend. `init`: none (x),
    uniform (in the ball, then clipped), gaussian (x + 0.001 N(0, 1), not clipped before the first
    gradient, as the TRADES family's code does), or a start perturbation shaped like x. `watch(t,
    x_t, logits_t)` is called at the `steps` evaluation points, the start included and the returned
    point not: that one has had no forward pass.

    The model is attacked in eval mode and handed back as it was. Errors: `KitError` for images
    outside [0, 1], labels the model does not know, NaN logits, or a model that returns
    probabilities (`validate=False` for a caller that has checked its data once, as the training
    loop has).
    """
    if validate:
        check_inputs(model, x, y)
        check_value("steps", steps, Count)
        if not callable(loss):
            check_value("loss", loss, Literal["ce", "kl", "margin"])
        if step_size is not None:
            check_value("step_size", step_size, NonNegative)
    step_size = 2.5 * threat.eps / steps if step_size is None else step_size
    objective = loss if callable(loss) else OBJECTIVES[loss]
    with frozen(model):
        logits_nat = None
        if loss == "kl":
            with torch.no_grad():
                logits_nat = model(x)
        x_t = start_point(x, threat, init, generator)
        for t in range(steps):
            x_t = x_t.detach().requires_grad_(True)
            with torch.enable_grad():
                logits = model(x_t)
                # summed, not averaged: an example's gradient must not depend on its batch's size
                (gradient,) = torch.autograd.grad(objective(logits, y, logits_nat).sum(), x_t)
            x_t = x_t.detach()
            if watch is not None:
                watch(t, x_t, logits.detach())
            x_t = tensors.project(
                x_t + step_size * tensors.ascent_direction(gradient, threat.norm), x, threat
            )
    return x_t


def own_loss_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    own: Callable[[Tensor, Tensor], Tensor],
    init: Literal["none", "uniform", "gaussian"] | Tensor = "uniform",
    **supplied,
) -> Tensor:
    """PGD on the loss that is trained, `own` (logits, y) -> (N,), with its weights or class costs.
    See `pgd`.

    WMMR's code maximises exp(-α PM) CE; CSA Eq. 4 may be read so that the maximum covers the class
    costs, too.
    """
    return pgd(
        model,
        x,
        y,
        threat,
        loss=lambda logits, labels, _: own(logits, labels),
        init=init,
        **supplied,
    )
