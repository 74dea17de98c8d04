"""Images and labels that a user brings: as a split, and kept by name for a network's run.

Their name is own:<digest of what they are>. They lie in `data/own/`, once for all networks that are
observed on them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kit.core.errors import KitError
from kit.core.files import load_arrays, locate, save_arrays
from kit.core.random_streams import named_generator
from kit.core.tensors import check_images
from kit.data.splits import DataSet, Split, stratified_order

_ARRAYS = "x (N, C, H, W), uint8 or floats in [0, 1], and y (N,), whole numbers"

DATA_EXPECTED = (
    "expected (x, y), a torch Dataset or DataLoader of such pairs, an .npz with arrays x and y, or "
    f"a data set of the kit: {_ARRAYS}"
)

#: What stands before the digest in the name of images that a user brought.
OWN = "own:"


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
    if isinstance(data, (str, Path)):
        data = read_pairs(locate(str(data)))
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
            f"data holds {type(values).__name__} that are not numbers; {DATA_EXPECTED}"
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


def read_pairs(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the arrays x and y of an .npz file.

    Raises:
        KitError: The file is missing or damaged, or holds other arrays.
    """
    if not path.is_file():
        raise KitError(f"there is no file {path}; expected an .npz with arrays x and y")
    arrays = load_arrays(path)
    if not {"x", "y"} <= arrays.keys():
        names = [*arrays][:6] + (["..."] if len(arrays) > 6 else [])
        raise KitError(
            f"{path} holds the arrays {', '.join(names) or 'none'}; expected an .npz with {_ARRAYS}"
        )
    return arrays["x"], arrays["y"]


# ------------------------------------------------------------------------------------ kept by name


def is_own(name: str) -> bool:
    """Tell whether a data set's name is that of images that a user brought."""
    return name.startswith(OWN)


def check_own_name(name: str) -> None:
    """Refuse a name of a user's images that no images can have.

    Raises:
        KitError: It holds no digest.
    """
    if not re.fullmatch(rf"{OWN}[0-9a-f]{{12}}", name):
        raise KitError(
            f"'{name}' is not a name of own images. kit.adopt(..., data=(x, y)) gives them their "
            f"name: {OWN} and 12 hex digits"
        )


def data_set_of(split: Split, num_classes: int, n: int = 0) -> DataSet:
    """Make a data set of a user's images, which are its training images and its test images.

    Of more than `n` (0 = all) a stratified sample is taken. Ids are their places in what the user
    gave. Floats that are whole 255ths become bytes, so that one set of images has one name.

    Raises:
        KitError: There are none, they are not square or of a single class, or a label is no class.
    """
    if len(split) == 0:
        raise KitError("data holds no images")
    channels, height, width = split.images.shape[1:]
    if channels == height != width and width in (1, 3):
        raise KitError(
            f"data has images of shape {tuple(split.images.shape)}, whose channels seem to come "
            "last; expected (N, C, H, W), so pass x.transpose(0, 3, 1, 2)"
        )
    if height != width:
        raise KitError(
            f"data has images of {height}x{width}; a run's are square. kit.evaluate and kit.audit "
            "take images of any shape"
        )
    low, high = int(split.y.min()), int(split.y.max())
    if low < 0 or high >= num_classes:
        raise KitError(
            f"labels run from {low} to {high}; the network has {num_classes} outputs and knows 0 "
            f"to {num_classes - 1}"
        )
    if low == high:
        raise KitError(
            f"all {len(split)} images are of class {low}; nothing is judged on one class, so "
            "shuffle the data"
        )
    order = stratified_order(split.y.cpu(), named_generator("order", len(split)))[: n or None]
    split = split.take(order.to(split.y.device)).to(torch.device("cpu"))
    kept = Split(_as_bytes(split.images), split.y, split.ids)
    return _data_set(_name_images(kept, num_classes), kept, num_classes)


def _name_images(kept: Split, num_classes: int) -> str:
    """Return the name of images: what they are decides it, and nothing else does."""
    digest = hashlib.sha256(f"{num_classes} {kept.images.dtype} {kept.images.shape}".encode())
    for tensor in (kept.images, kept.y, kept.ids):
        digest.update(tensor.contiguous().view(-1).numpy().data)
    return f"{OWN}{digest.hexdigest()[:12]}"


def _as_bytes(images: Tensor) -> Tensor:
    """The images as bytes where nothing is lost by it, else as float32."""
    if images.dtype == torch.uint8:
        return images
    images = images.float()
    pixels = (images * 255).round().to(torch.uint8)
    return pixels if torch.equal(pixels.float() / 255, images) else images


def _data_set(name: str, images: Split, num_classes: int) -> DataSet:
    classes = tuple(map(str, range(num_classes)))
    return DataSet(name, classes, images, images.take(slice(0, 0)), images)


def keep_own_images(data: DataSet, root: Path) -> None:
    """Write a user's data set below `root`, where `load_own_images` finds it by its name."""
    path = own_images_file(data.name, root)
    if not path.exists():
        images = data.test
        arrays = {"x": images.images, "y": images.y, "ids": images.ids}
        save_arrays(
            path,
            {name: values.numpy() for name, values in arrays.items()}
            | {"num_classes": np.asarray(len(data.classes))},
        )


def load_own_images(name: str, root: Path) -> DataSet:
    """Read a user's data set of that name.

    Raises:
        KitError: It is not there, or damaged.
    """
    images, num_classes = _read_kept(find_own_file(name, root))
    return _data_set(name, images, num_classes)


def find_own_file(name: str, root: Path) -> Path:
    """Return where the images of that name are kept below `root`.

    Raises:
        KitError: They are not there.
    """
    path = own_images_file(name, root)
    if not path.exists():
        raise KitError(
            f"the images {name} are not here: there is no {path}. Copy the file from where the "
            "network was adopted, or adopt it again with the same data"
        )
    return path


def check_own_file(path: Path) -> None:
    """Refuse a file of a user's images that are not those of its name.

    Raises:
        KitError: It is damaged, or holds other images.
    """
    if _name_images(*_read_kept(path)) != f"{OWN}{path.stem}":
        raise KitError(
            f"{path} is damaged, or holds other images than its name says; copy it again from "
            "where the network was adopted, or adopt the network again with the same data"
        )


def _read_kept(path: Path) -> tuple[Split, int]:
    arrays = load_arrays(path)
    if not {"x", "y", "ids", "num_classes"} <= arrays.keys():
        raise KitError(
            f"{path} does not hold images that a network was adopted on: arrays x, y, ids and "
            "num_classes were expected. Copy it again, or adopt the network again"
        )
    x, y, ids = (torch.from_numpy(arrays[part]) for part in ("x", "y", "ids"))
    return Split(x, y, ids), int(arrays["num_classes"])


def own_images_file(name: str, root: Path) -> Path:
    """Return where a user's images of that name are kept below `root`."""
    return root / "own" / f"{name.removeprefix(OWN)}.npz"
