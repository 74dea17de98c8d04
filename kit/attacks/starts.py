"""TODO attacks.starts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kit.core import tensors
from kit.core.errors import KitError
from kit.core.random_streams import Streams, draw_noise
from kit.core.threat import Threat

Watch = Callable[[int, Tensor, Tensor], None]


def start_point(
    x: Tensor, threat: Threat, init: str | Tensor, source: Streams | torch.Generator | None
) -> Tensor:
    """The first iterate; see `pgd`."""
    if isinstance(init, Tensor):
        if init.shape != x.shape:
            raise KitError(
                f"the start perturbation has shape {tuple(init.shape)}, the images {tuple(x.shape)}"
            )
        return x + init
    if init == "none":
        return x
    if init == "gaussian":
        return x + 0.001 * draw_noise(source, "normal", x)
    if init != "uniform":
        raise KitError(f"init={init!r} is none of: none, uniform, gaussian, or a tensor")
    if threat.norm == "linf":
        return (x + threat.eps * (2 * draw_noise(source, "uniform", x) - 1)).clamp(0, 1)
    direction = draw_noise(source, "normal", x)
    radius = draw_noise(source, "uniform", x.flatten(1)[:, :1]).squeeze(1) ** (1 / x[0].numel())
    return (
        x + threat.eps * tensors.per_example(radius, x) * tensors.ascent_direction(direction, "l2")
    ).clamp(0, 1)
