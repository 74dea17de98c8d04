"""The gradient with respect to images, at a first layer's real cost.

On CPUs a convolution from a grey image spends more time on its input's gradient than most networks on all the rest: a
LeNet's first layer takes 11 ms for 128 images, where a matrix product and a fold take 3. (From three channels the fold is
the slower way.) Training never asks for it; an attack asks for nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Convolution(torch.autograd.Function):
    """conv2d whose backward pass yields the input's gradient alone, Wᵀ g folded back onto the image."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Conv2d) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.layer, ctx.size = layer, x.shape[2:]
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        (weight,), layer = ctx.saved_tensors, ctx.layer
        columns = weight.flatten(1).t() @ gradient.flatten(2)
        return F.fold(columns, ctx.size, layer.kernel_size, layer.dilation, layer.padding, layer.stride), None, None, None


def _forward(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.dim() == 4 and x.device.type == "cpu" and torch.is_grad_enabled() and x.requires_grad \
            and not torch.is_autocast_enabled("cpu"):
        return _Convolution.apply(x, weight, bias, layer)
    return nn.Conv2d._conv_forward(layer, x, weight, bias)


@contextmanager
def quick_input_gradients(model: nn.Module) -> Iterator[None]:
    """Within, convolutions from one channel take the short way back to their input. Their parameters get no gradient there,
    so none may want one. The values are the same up to rounding; the layers are handed back as they were."""
    layers = [m for m in model.modules() if type(m) is nn.Conv2d and m.in_channels == 1 and m.groups == 1
              and m.padding_mode == "zeros" and not isinstance(m.padding, str) and "_conv_forward" not in vars(m)]
    for layer in layers:
        layer._conv_forward = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer._conv_forward
