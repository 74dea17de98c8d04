"""FGSM: one step along the gradient's sign."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kit.attacks.projected_gradient_descent import Watch, pgd
from kit.core.random_streams import Streams
from kit.core.threat import Threat


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    generator: Streams | torch.Generator | None = None,
    watch: Watch | None = None,
    validate: bool = True,
) -> Tensor:
    """One step of length eps from the clean image (Goodfellow et al., 2015).

    It draws nothing and returns x_adv (N, C, H, W). See `pgd` for the rest.

    Raises:
        KitError: `check_inputs` refuses the inputs.
    """
    return pgd(
        model,
        x,
        y,
        threat,
        watch=watch,
        steps=1,
        step_size=threat.eps,
        init="none",
        validate=validate,
    )


def one_step_fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    generator: Streams | torch.Generator | None = None,
    watch: Watch | None = None,
    validate: bool = True,
    **supplied: Any,
) -> Tensor:
    """FGSM as a training attack; see `fgsm`.

    `supplied` is what every training attack is handed beside: the steps, their length and the
    trained loss. This attack uses none of them.

    Source: CSA Eqs. 5-7.
    """
    return fgsm(model, x, y, threat, generator=generator, watch=watch, validate=validate)
