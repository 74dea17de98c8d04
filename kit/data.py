"""Data sets as tensors: a split is one uint8 tensor on the device, and augmentation is batched.

Names: digits (inside scikit-learn, the default), mnist, fashion-mnist, cifar10, cifar100, svhn (downloaded and
verified by torchvision into `data/`), mixture (two Gaussian classes, drawn here; see `kit.mixture`), and
folder:<path>, any tree with train/<class>/ and test/<class>/ images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kit import mixture
from kit.store import home
from kit.types import KitError, Streams, generator, unknown

DIGITS_TEST = 497        # leaves 1,300 for training and validation
MIXTURE_SIZES = {"train": 5_000, "test": 10_000}


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8, labels (N,) int64, and ids (N,) int64 that never change for an image."""

    images: Tensor
    y: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def x(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Float images in [0, 1]."""
        return self.images[rows].float() / 255

    def take(self, rows: Tensor | slice) -> Split:
        return Split(self.images[rows], self.y[rows], self.ids[rows])

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.y.to(device), self.ids.to(device))


@dataclass(frozen=True)
class DataSet:
    """Three splits of one data set. `validation` is cut from the training images, for choosing "best"."""

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.train.images.shape[1:])

    def to(self, device: torch.device) -> DataSet:
        return replace(self, train=self.train.to(device), validation=self.validation.to(device),
                       test=self.test.to(device))

    def fingerprint(self) -> str:
        """12 hex digits over every image and label: whether two machines hold the same data."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            for tensor in (split.images, split.y):
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def mean_std(self) -> tuple[Tensor, Tensor]:
        """Per channel, over the training images, in [0, 1]."""
        levels = torch.arange(256, dtype=torch.float64) / 255
        counts = torch.stack([torch.bincount(channel.flatten().long(), minlength=256)
                              for channel in self.train.images.transpose(0, 1).cpu()]).double()
        counts = counts / counts.sum(dim=1, keepdim=True)
        mean = (counts * levels).sum(dim=1)
        variance = (counts * (levels - mean[:, None]) ** 2).sum(dim=1)
        return mean.float(), variance.sqrt().clamp_min(1e-6).float()


Arrays = tuple[np.ndarray, np.ndarray]   # images uint8 (N, H, W) or (N, H, W, C), labels (N,)


def _digits(root: Path) -> tuple[Arrays, Arrays, tuple[str, ...]]:
    from sklearn.datasets import load_digits
    bundle = load_digits()
    images = np.round(bundle.images * (255 / 16)).astype(np.uint8)
    order = torch.randperm(len(images), generator=generator("digits", "split")).numpy()
    test, train = order[:DIGITS_TEST], order[DIGITS_TEST:]
    return (images[train], bundle.target[train]), (images[test], bundle.target[test]), tuple("0123456789")


def _mixture(root: Path) -> tuple[Arrays, Arrays, tuple[str, ...]]:
    parts = []
    for part, n in MIXTURE_SIZES.items():
        x, labels = mixture.sample(mixture.MIXTURE, n, generator("mixture", part))
        parts.append((mixture.images(mixture.MIXTURE, x).numpy(), labels.numpy()))
    return parts[0], parts[1], mixture.CLASSES


def _torchvision(kind: str, **splits: dict) -> Callable[[Path], tuple[Arrays, Arrays, tuple[str, ...]]]:
    def load(root: Path) -> tuple[Arrays, Arrays, tuple[str, ...]]:
        import torchvision.datasets
        parts, classes = [], ()
        for arguments in splits.values():
            try:
                split = getattr(torchvision.datasets, kind)(str(root), download=True, **arguments)
            except Exception as error:   # torchvision, urllib, zlib and pickle each have their own
                raise KitError(
                    f"{kind} could not be read from or downloaded to {root} ({type(error).__name__}: "
                    f"{str(error).splitlines()[0] if str(error) else 'no details'}). Check the network, or delete "
                    f"the damaged file below {root} and run again; another folder is chosen with KIT_HOME") from error
            labels = np.asarray(getattr(split, "targets", None) if hasattr(split, "targets") else split.labels)
            images = np.asarray(split.data)
            parts.append((images.transpose(0, 2, 3, 1) if kind == "SVHN" else images, labels))
            classes = tuple(map(str, getattr(split, "classes", range(10))))
        return parts[0], parts[1], classes
    return load


_BY_TRAIN = {"train": {"train": True}, "test": {"train": False}}

DATA = {
    "digits": _digits,
    "mnist": _torchvision("MNIST", **_BY_TRAIN),
    "fashion-mnist": _torchvision("FashionMNIST", **_BY_TRAIN),
    "cifar10": _torchvision("CIFAR10", **_BY_TRAIN),
    "cifar100": _torchvision("CIFAR100", **_BY_TRAIN),
    "svhn": _torchvision("SVHN", train={"split": "train"}, test={"split": "test"}),
    "mixture": _mixture,
}
EXPECTED = {"mnist": (60_000, 10_000), "fashion-mnist": (60_000, 10_000), "cifar10": (50_000, 10_000),
            "cifar100": (50_000, 10_000), "svhn": (73_257, 26_032)}


def _folder(path: Path) -> tuple[Arrays, Arrays, tuple[str, ...]]:
    from torchvision.datasets import ImageFolder
    parts, classes = [], []
    for name in ("train", "test"):
        try:
            tree = ImageFolder(str(path / name))
        except FileNotFoundError as error:
            raise KitError(f"{path / name} is not a folder of images; expected {path}/train/<class>/*.png (or .jpg) "
                           f"and {path}/test/<class>/*.png: {error}") from error
        images = []
        for file, _ in tree.samples:
            try:
                images.append(np.asarray(tree.loader(file)))
            except Exception as error:
                raise KitError(f"{file} is not a readable image ({type(error).__name__}); delete or replace it") from error
            if images[-1].shape != images[0].shape:
                raise KitError(f"{file} is {images[-1].shape[1]}x{images[-1].shape[0]} pixels, the images before it "
                               f"{images[0].shape[1]}x{images[0].shape[0]}; a data set has one size")
        parts.append((np.stack(images), np.asarray(tree.targets)))
        classes.append(tuple(tree.classes))
    if classes[0] != classes[1]:
        odd = sorted(set(classes[0]) ^ set(classes[1]))
        raise KitError(f"{path}: train/ and test/ have different classes ({', '.join(odd[:5])} is in one only)")
    if parts[0][0].shape[1:] != parts[1][0].shape[1:]:
        raise KitError(f"{path}: images in train/ and test/ differ in size")
    return parts[0], parts[1], classes[0]


def folder_path(name: str) -> Path:
    """The path of a `folder:<path>` name; a relative one is looked for here, then beside `data/`."""
    path = Path(name.removeprefix("folder:")).expanduser()
    return path if path.is_absolute() or path.exists() else home() / path


def check_data_name(name: str) -> None:
    """`KitError` unless `load` knows it; a folder must exist."""
    if name.startswith("folder:"):
        if not folder_path(name).is_dir():
            raise KitError(f"there is no folder {folder_path(name)}; expected one with train/<class>/ and test/<class>/")
    elif name not in DATA:
        raise unknown("data set", name, [*DATA, "folder:<path>"])


def _split(name: str, part: str, arrays: Arrays, first_id: int, num_classes: int) -> Split:
    images, labels = arrays
    if images.dtype != np.uint8 or len(images) != len(labels) or not len(labels):
        raise KitError(f"{name}, {part}: {len(images)} images of type {images.dtype} and {len(labels)} labels; "
                       "expected as many labels as uint8 images, and at least one. Delete the files and run again")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise KitError(f"{name}, {part}: labels run from {labels.min()} to {labels.max()}, expected 0 to "
                       f"{num_classes - 1}. Delete the files and run again")
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    tensor = tensor[:, None] if tensor.dim() == 3 else tensor.permute(0, 3, 1, 2).contiguous()
    ids = torch.arange(first_id, first_id + len(labels))
    return Split(tensor, torch.from_numpy(labels.astype(np.int64)), ids)


def load(name: str, *, validation: int = 0, train_size: int = 0, root: Path | None = None) -> DataSet:
    """The data set `name` on the CPU, with `validation` training images held out and at most `train_size` (0 = all) used.

    The held-out and the used images are a fixed random choice, the same for every seed. Test ids follow the
    training ids. Errors: `KitError` for an unknown name, and for missing, truncated or foreign files.
    """
    check_data_name(name)
    if name.startswith("folder:"):
        train, test, classes = _folder(folder_path(name))
    else:
        train, test, classes = DATA[name](root or home() / "data")
    for part, arrays, expected in zip(("train", "test"), (train, test), EXPECTED.get(name, (None, None)), strict=True):
        if expected is not None and len(arrays[1]) != expected:
            raise KitError(f"{name}, {part}: {len(arrays[1])} images, expected {expected}; the file is truncated or "
                           f"foreign. Delete it below {root or home() / 'data'} and run again")
    train = _split(name, "train", train, 0, len(classes))
    test = _split(name, "test", test, len(train), len(classes))
    if validation + 1 > len(train) or (train_size and validation + train_size > len(train)):
        raise KitError(f"{name} has {len(train)} training images; validation={validation} and "
                       f"train_size={train_size or 'all'} do not fit")
    order = torch.randperm(len(train), generator=generator(name.split("/")[-1], "validation"))
    kept = order[validation:validation + train_size] if train_size else order[validation:]
    return DataSet(name, classes, train.take(kept.sort().values), train.take(order[:validation].sort().values), test)


# ---------------------------------------------------------------------------------------------- augmentation

Augment = Literal["none", "crop", "crop-flip"]


def augment(x: Tensor, which: Augment, streams: Streams) -> Tensor:
    """Random crops of the image padded by 4 black pixels, and mirror images, for a whole batch at once.

    What happens to an image depends on its id and the stream's name alone. x (N, C, H, W).
    """
    if which == "none":
        return x
    n, _, height, width = x.shape
    dice = streams.uniform(x.new_empty(n, 3))
    padded = F.pad(x, (4, 4, 4, 4))
    top, left = ((dice[:, i, None] * 9).long() for i in (0, 1))
    rows = top + torch.arange(height, device=x.device)
    columns = left + torch.arange(width, device=x.device)
    if which == "crop-flip":
        columns = columns.flip(1).where(dice[:, 2, None] < 0.5, columns)
    picks = torch.arange(n, device=x.device)[:, None, None]
    return padded[picks, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
