"""Images and labels that a user brings, as a split that attacks and audits take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kit.core.errors import KitError
from kit.core.tensors import check_images
from kit.core.threat import Threat
from kit.data.splits import DataSet, Split
from kit.experiments.devices import pick_device

DATA_EXPECTED = (
    "expected (x, y), a torch Dataset or DataLoader of such pairs, or a data set of the kit: x "
    "(N, C, H, W), uint8 or floats in [0, 1], y (N,) whole numbers"
)


def split_of(data: Any, n: int = 0) -> Split:
    """Return images and labels as a split, the first `n` (0 = all); ids count them.

    Of a data set of the kit these are its test images.

    Raises:
        KitError: They are no images and labels, of different number, or out of range.
    """
    if isinstance(data, DataSet):
        data = data.test
    if isinstance(data, Split):
        return data.take(slice(0, n or None))
    if isinstance(data, DataLoader):
        pairs = _first_pairs(data, n, batches=True)
    elif isinstance(data, (tuple, list)) and len(data) == 2:
        pairs = (data[0], data[1])
    elif isinstance(data, Dataset):
        pairs = _first_pairs(data, n, batches=False)
    else:
        raise KitError(f"data is of type {type(data).__name__}; {DATA_EXPECTED}")
    x, y = (_as_tensor(values) for values in pairs)
    if x.dim() != 4 or y.dim() != 1 or len(x) != len(y) or y.is_floating_point():
        raise KitError(
            f"data has images of shape {tuple(x.shape)} and labels of shape {tuple(y.shape)}, "
            f"{y.dtype}; {DATA_EXPECTED}"
        )
    if x.dtype != torch.uint8:
        check_images(x)
    split = Split(x.detach(), y.long(), torch.arange(len(y)).to(y.device))
    return split.take(slice(0, n or None))


def _as_tensor(values: Any) -> Tensor:
    try:
        return values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))
    except TypeError as error:
        raise KitError(
            f"data holds {type(values).__name__} of no number; {DATA_EXPECTED}"
        ) from error


def _first_pairs(source: Any, n: int, *, batches: bool) -> tuple[Tensor, Tensor]:
    """Read images and labels until there are `n` (0 = all)."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    count = 0
    for item in source if batches else (source[i] for i in range(len(source))):
        if not isinstance(item, Sequence) or len(item) < 2 or not isinstance(item[0], Tensor):
            kind = type(item[0]).__name__ if isinstance(item, Sequence) and item else type(item)
            raise KitError(
                f"data gives images of type {kind}; {DATA_EXPECTED}. Give torchvision's data sets "
                "transform=ToTensor()"
            )
        x, y = item[0], torch.as_tensor(item[1])
        images.append(x if batches else x[None])
        labels.append(y if batches else y[None])
        count += len(images[-1])
        if n and count >= n:
            break
    if not images:
        raise KitError("data holds no images")
    return torch.cat(images), torch.cat(labels)


def attacked_images(
    model: nn.Module, data: Any, threat: Threat | None, n: int, device: str
) -> tuple[Split, Threat]:
    """Return the images that a network is attacked on, where the network is, and the threat.

    Raises:
        KitError: Data or threat are missing or unfit, or the network is on another device.
    """
    if data is None or not isinstance(threat, Threat):
        raise KitError(
            "a network that is no run brings neither images nor a threat; pass data=(x, y) and "
            "threat=kit.Threat('linf', 8 / 255), or make a run of it with kit.adopt"
        )
    if threat.doubt:
        raise KitError(threat.doubt)
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device != "auto" and pick_device(device).type != where.type:
        raise KitError(f"device={device}, and the network is on {where}; move it there first")
    return split_of(data, n).to(where), threat
