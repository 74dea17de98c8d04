"""The input's gradient of a convolution from one channel, which CPUs compute slowly.

On CPUs a convolution from a grey image spends more time on its input's gradient than most networks
on all the rest: a LeNet's first layer takes 11 ms for 128 images, where a convolution of each
channel by itself and a sum take 2. Layers from more channels keep the usual way. Training never
asks for this gradient; an attack asks for nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Pair = tuple[int, ...]  # two numbers; torch's layers declare no length


class _GreyConvolution(torch.autograd.Function):
    """conv2d from groups of one channel, whose backward pass yields the input's gradient alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry, ctx.groups, ctx.size = (stride, padding, dilation), x.shape[1], x.shape[2:]
        if ctx.groups == 1:
            return F.conv2d(x, weight, bias, stride, padding, dilation)
        return _convolve_groups(x, weight, bias, stride, padding, dilation)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), groups = ctx.saved_tensors, ctx.groups
        stride, padding, dilation = ctx.geometry
        kernel_size = tuple(weight.shape[2:])
        rest = [size - 1 - pad for size, pad in zip(kernel_size, padding, strict=True)]
        if stride == dilation == (1, 1) and min(rest) >= 0:
            each = F.conv2d(gradient, weight.flip(2, 3), None, 1, rest, 1, len(weight))
            image = each.unflatten(1, (groups, -1)).sum(dim=2)
        else:
            kernels = weight.view(groups, -1, weight[0].numel()).transpose(1, 2)
            columns = kernels @ gradient.flatten(2).unflatten(1, (groups, -1))
            image = F.fold(columns.flatten(1, 2), ctx.size, kernel_size, dilation, padding, stride)
        return image, None, None, None, None, None


def _convolve_groups(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
) -> Tensor:
    """Take conv2d of each channel (N, 1, H, W) by itself: the same sums as if it were alone."""
    groups = x.shape[1]
    if not x.is_contiguous():
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    biases = [None] * groups if bias is None else bias.chunk(groups)
    parts = zip(x.split(1, dim=1), weight.chunk(groups), biases, strict=True)
    return torch.cat(
        [F.conv2d(h.contiguous(), w, b, stride, padding, dilation) for h, w, b in parts], dim=1
    )


def input_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair = (1, 1),
    padding: Pair | str = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Take `conv2d`, with the short way back where the gradient of grey images alone is wanted.

    The values are the same up to rounding. x (N, groups · C, H, W).
    """
    grey = weight.shape[1] == 1 and x.dim() == 4 and x.shape[1] == groups
    wanted = torch.is_grad_enabled() and x.requires_grad and not weight.requires_grad
    plain = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if grey and wanted and plain and not isinstance(padding, str):
        return _GreyConvolution.apply(x, weight, bias, stride, padding, dilation)
    if grey and plain and groups > 1 and x.is_contiguous():
        return _convolve_groups(x, weight, bias, stride, padding, dilation)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


class GreyConv2d(nn.Conv2d):
    """A convolution that takes `input_convolution`, for first layers of the kit's own networks."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            return super()._conv_forward(input, weight, bias)
        return input_convolution(
            input, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )


class _FastInputGradients(TorchFunctionMode):
    """Within, every `conv2d` of this thread is `input_convolution`.

    It costs some microseconds an operation, so it is for networks from elsewhere only.
    """

    def __torch_function__(
        self, func: Callable, types: Sequence, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        function = input_convolution if func is F.conv2d else func
        return function(*args, **(kwargs or {}))


def fast_input_gradients(model: nn.Module) -> AbstractContextManager:
    """Within, the model's convolutions from one channel give their input's gradient quickly.

    Nothing of the model is changed. A model without such a layer, or with a `GreyConv2d` in its
    place, is left alone.
    """
    layers = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    slow = any(conv.in_channels == 1 and not isinstance(conv, GreyConv2d) for conv in layers)
    return _FastInputGradients() if slow else contextlib.nullcontext()
