"""Adversarial weight perturbation: a step is taken where the loss near the parameters is worst.

Source: Wu et al. 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kit.core.distributed import average_tensors
from kit.core.parameters import NonNegative


@contextmanager
def perturb_weights(
    model: nn.Module, loss: Callable[[], Tensor], *, gamma: NonNegative = 0.01
) -> Iterator[None]:
    """Shift every weight tensor W, inside, to W + γ ‖W‖ g / ‖g‖, g the gradient of `loss()`.

    Tensors of two or more dimensions are shifted. The shift is subtracted again at the end, so that
    an optimizer's step taken inside stays. Each tensor has a radius of its own, as in the authors'
    code (other versions use one ratio for the whole network). The running statistics of batch norms
    are not changed by the pass that finds g. γ = 0 leaves everything as it is.
    """
    if gamma == 0:
        yield
        return
    weights: list[Tensor] = [
        p for name, p in model.named_parameters() if name.endswith("weight") and p.dim() > 1
    ]
    before = [buffer.clone() for buffer in model.buffers()]
    gradients = average_tensors(torch.autograd.grad(loss(), weights))
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)
        shifts = [
            gamma * w.norm() / g.norm().clamp_min(1e-20) * g
            for w, g in zip(weights, gradients, strict=True)
        ]
        torch._foreach_add_(weights, shifts)
    yield
    with torch.no_grad():
        torch._foreach_sub_(weights, shifts)
