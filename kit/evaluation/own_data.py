"""A network that is no run, the images that a user brings for it, and the threat."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kit.core.errors import KitError
from kit.core.threat import Threat
from kit.data.own_images import split_of
from kit.data.splits import Split
from kit.experiments.devices import pick_device


def attacked_images(
    model: nn.Module, data: Any, threat: Threat | None, n: int, device: str
) -> tuple[Split, Threat]:
    """Return the images that a network is attacked on, where the network is, and the threat.

    Raises:
        KitError: Data or threat are missing or unfit, or the network is on another device.
    """
    if data is None or not isinstance(threat, Threat):
        raise KitError(
            "a network that is not a run has neither images nor a threat; pass data=(x, y) and "
            "threat=kit.Threat('linf', 8 / 255), or make a run of it with kit.adopt"
        )
    if threat.doubt:
        raise KitError(threat.doubt)
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device != "auto" and pick_device(device).type != where.type:
        raise KitError(f"device={device}, but the network is on {where}; move the network first")
    return split_of(data, n).to(where), threat
