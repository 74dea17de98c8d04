"""In which number format a network computes while it is attacked in training. The update is always fp32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from kit.types import KitError

Precision = Literal["auto", "fp32", "bf16"]


def chosen(precision: str, device: torch.device) -> str:
    """fp32 or bf16 for `precision` on a device; auto: bf16 on GPUs that have it. `KitError` where bf16 is asked and missing.

    Half of a bf16 attack's pixels may take another sign path on a small network, a fifth on a deep one; loss and update stay
    within one to three percent.
    """
    there = {"cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
             "cpu": lambda: torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported(),
             }.get(device.type, lambda: False)()
    if precision == "bf16" and not there:
        raise KitError(f"precision=bf16: this {device.type} computes no bf16; take precision=fp32, or auto")
    return "bf16" if precision == "bf16" or (precision == "auto" and there and device.type == "cuda") else "fp32"


@contextmanager
def attacked_in(precision: str, model: nn.Module, device: torch.device) -> Iterator[None]:
    """Within, the network's convolutions and products are computed in the chosen format; logits have the images' type."""
    if chosen(precision, device) == "fp32":
        yield
        return
    handle = model.register_forward_hook(lambda _, images, logits: logits.to(images[0].dtype))
    try:
        with torch.autocast(device.type, torch.bfloat16):
            yield
    finally:
        handle.remove()
