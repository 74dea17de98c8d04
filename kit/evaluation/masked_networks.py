"""Masked networks: an honest network with a fault planted in it, which `kit.audit` must find.

To an attacker who knows the fault none of these networks is more robust than the one inside; to
some attack each seems to be.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kit.core.random_streams import named_generator
from kit.experiments.specification import RunSpec

#: A run whose cross-entropy misleads: GAIRAT's weights learnt on an attack of 5 steps. PGD
#: overstates its robustness by more than a third (54.8 % against 33.4 % in print). "the margin
#: finds little more than the cross-entropy" must fire.
MASKED_GAIRAT = RunSpec("gairat", "digits", 0, {"steps": 5, "epochs": 30, "milestones": [20]})


class FunctionLayer(nn.Module):
    """A function of a batch as a layer."""

    def __init__(self, fn: Callable[[Tensor], Tensor]):
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to a batch."""
        return self.fn(x)


def quantised_network(model: nn.Module, levels: int = 256) -> nn.Module:
    """Round pixels to `levels` grey levels first; rounding has the gradient 0.

    With 256 levels no stored image changes. Every attack that follows the input's gradient stays
    where it starts; black boxes and transferred images do not mind. "gradients do not vanish" must
    fire.
    """
    return nn.Sequential(
        FunctionLayer(lambda x: (x * (levels - 1)).round() / (levels - 1)), model
    ).eval()


def saturated_network(model: nn.Module, factor: float = 1e3) -> nn.Module:
    """Multiply the logits by `factor`: the softmax is then 0 or 1 to the last bit.

    The cross-entropy has no slope in float32. No prediction changes, and neither does the margin's
    sign; DLR was made for such networks (Croce and Hein, 2020). "logits do not saturate" must fire.
    """
    return nn.Sequential(model, FunctionLayer(lambda logits: factor * logits)).eval()


def noisy_network(model: nn.Module, spread: float = 0.1) -> nn.Module:
    """Add Gaussian noise of standard deviation `spread` to the pixels, drawn anew in each pass.

    The passes are numbered, so that a whole audit can be repeated. "two passes agree" must fire.
    """
    passes = 0

    def disturb(x: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        noise = torch.randn(
            x.shape, generator=named_generator("zoo", "noise", passes), dtype=x.dtype
        )
        return x + spread * noise.to(x.device)

    return nn.Sequential(FunctionLayer(disturb), model).eval()


def flat_network(model: nn.Module, bend: float = 8.0) -> nn.Module:
    """Squash logits into [-1, 0], which keeps their order: the top one becomes 0, the lowest -1.

    As after strong label smoothing no class is ever far ahead and the loss is nearly flat. The
    squashing, -(e^{b u} - 1) / (e^b - 1) with u the distance to the top logit in units of the whole
    range, is steepest for the least likely classes, so that the cross-entropy's gradient is about
    them, who never win, and not about the rival. "the margin finds little more than the
    cross-entropy" must fire.
    """

    def squash(logits: Tensor) -> Tensor:
        top, low = (edge(logits.detach(), dim=1, keepdim=True) for edge in (torch.amax, torch.amin))
        distance = (top - logits) / (top - low).clamp_min(1e-12)
        return -torch.expm1(bend * distance) / torch.expm1(torch.tensor(bend))

    return nn.Sequential(model, FunctionLayer(squash)).eval()
