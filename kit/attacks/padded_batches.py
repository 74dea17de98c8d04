"""Batches of few sizes, because a CPU makes a convolution's code anew for every size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def padded_size(n: int) -> int:
    """The least allowed size of a batch that is no smaller than `n`.

    Sixteen sizes are allowed between two powers of two.
    """
    grain = max(2 ** n.bit_length() // 32, 1)
    return -(-n // grain) * grain


@contextmanager
def padded_batch_sizes(model: nn.Module) -> Iterator[None]:
    """Within, the model's batches on CPUs are filled up to a `padded_size` with their last image.

    The logits of the images added are cut off. A scripted program takes no hooks, and is passed
    batches as they are.
    """
    if isinstance(model, torch.jit.ScriptModule):
        yield
        return
    sizes: list[int] = []

    def fill(model: nn.Module, inputs: tuple) -> tuple:
        x, *rest = inputs
        sizes.append(len(x))
        more = padded_size(len(x)) - len(x) if x.device.type == "cpu" and len(x) else 0
        return (torch.cat([x, x[-1:].expand(more, *x.shape[1:])]), *rest) if more else inputs

    def cut(model: nn.Module, inputs: tuple, logits: Tensor) -> Tensor:
        n = sizes.pop()
        return logits if len(logits) == n else logits[:n]

    hooks = model.register_forward_pre_hook(fill), model.register_forward_hook(cut)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
