"""What an attack's passes would else waste on CPUs: on the gradient of a first layer, and on
batches of ever new sizes.

On CPUs a convolution from a grey image spends more time on its input's gradient than most networks
on all the rest: a LeNet's first layer takes 11 ms for 128 images, where a convolution of each
channel by itself and a sum take 2. (Layers from more channels keep the usual way.) Training never
asks for it; an attack asks for nothing else.

A convolution's code is made anew for each size of a batch, which takes as long as a pass of 40
images; an attack that drops broken examples would pay that at each step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Convolution(torch.autograd.Function):
    """conv2d from groups of one channel, whose backward pass yields the input's gradient alone."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Conv2d) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.layer, ctx.groups, ctx.size = layer, x.shape[1], x.shape[2:]
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, ctx.groups)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        (weight,), layer, groups = ctx.saved_tensors, ctx.layer, ctx.groups
        rest = [
            size - 1 - padding
            for size, padding in zip(layer.kernel_size, layer.padding, strict=True)
        ]
        if layer.stride == layer.dilation == (1, 1) and min(rest) >= 0:
            each = F.conv2d(gradient, weight.flip(2, 3), None, 1, rest, 1, len(weight))
            image = each.unflatten(1, (groups, -1)).sum(dim=2)
        else:
            kernels = weight.view(groups, -1, weight[0].numel()).transpose(1, 2)
            columns = kernels @ gradient.flatten(2).unflatten(1, (groups, -1))
            image = F.fold(
                columns.flatten(1, 2),
                ctx.size,
                layer.kernel_size,
                layer.dilation,
                layer.padding,
                layer.stride,
            )
        return image, None, None, None


def input_convolution(
    layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int = 1
) -> Tensor:
    """`layer`'s convolution with these parameters, of `groups` layers side by side. From grey
    images it takes the short way back where the gradient of `x` (N, groups · C, H, W) alone is
    wanted; the values are the same up to rounding.
    """
    if (
        x.device.type == "cpu"
        and x.dim() == 4
        and torch.is_grad_enabled()
        and x.requires_grad
        and weight.shape[1] == 1
        and not weight.requires_grad
        and not torch.is_autocast_enabled("cpu")
    ):
        return _Convolution.apply(x, weight, bias, layer)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, groups)


@contextmanager
def fast_input_gradients(model: nn.Module) -> Iterator[None]:
    """Within, the model's plain convolutions from one channel are `convolution`; the layers are
    handed back as they were.
    """
    layers = [
        m
        for m in model.modules()
        if type(m) is nn.Conv2d
        and m.in_channels == 1
        and m.padding_mode == "zeros"
        and not isinstance(m.padding, str)
        and "_conv_forward" not in vars(m)
    ]
    for layer in layers:
        layer._conv_forward = partial(input_convolution, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer._conv_forward
