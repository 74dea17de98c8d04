"""Data sets as tensors: a split is one uint8 tensor on the device, and augmentation is batched.

Names: digits (inside scikit-learn, the default), mnist, fashion-mnist, cifar10, cifar100, svhn
(downloaded and verified by torchvision into `data/`), mixture (two Gaussian classes, drawn here;
see `kit.data.gaussian_mixture`), and folder:<path>, any tree with train/<class>/ and test/<class>/
images, or TinyImageNet as it is unpacked. +npz:<file> behind any of them adds generated images to
the training images. own:<digest> are images that were given to `kit.adopt`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kit.core.errors import KitError, unknown_name
from kit.core.files import home, locate
from kit.core.random_streams import named_generator
from kit.data.bundled import digits_arrays, mixture_arrays
from kit.data.downloads import torchvision_loader
from kit.data.generated_images import add_generated_images
from kit.data.image_folders import load_folder
from kit.data.own_images import check_own_name, is_own, load_own_images
from kit.data.splits import Arrays, DataSet, Images, Split, images_in_memory, stratified_order

_BY_TRAIN = {"train": {"train": True}, "test": {"train": False}}


DATA = {
    "digits": digits_arrays,
    "mnist": torchvision_loader("MNIST", **_BY_TRAIN),
    "fashion-mnist": torchvision_loader("FashionMNIST", **_BY_TRAIN),
    "cifar10": torchvision_loader("CIFAR10", **_BY_TRAIN),
    "cifar100": torchvision_loader("CIFAR100", **_BY_TRAIN),
    "svhn": torchvision_loader("SVHN", train={"split": "train"}, test={"split": "test"}),
    "mixture": mixture_arrays,
}

EXPECTED = {
    "mnist": (60_000, 10_000),
    "fashion-mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "svhn": (73_257, 26_032),
}

#: CIFAR-10's classes in the order of its labels: a folder of its images is known by them.
CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def base_of(name: str) -> str:
    """A data set's name without the file of generated images."""
    return name.partition("+npz:")[0]


def folder_path(name: str) -> Path:
    """The path of a `folder:<path>` name.

    A relative one is searched for here, then beside `data/`.
    """
    return locate(base_of(name).removeprefix("folder:"))


def dataset_claimed(name: str) -> str:
    """The data set as claims name it.

    A folder with CIFAR-10's ten classes is cifar10, whatever the format of its images, if no class
    has more than CIFAR-10's 5,000 for training (CINIC-10 has the same classes, and more). Any other
    name loses only its file of generated images.
    """
    base = base_of(name)
    if not base.startswith("folder:"):
        return base
    parts = {path.name: path for path in (folder_path(base) / "train").glob("*") if path.is_dir()}
    is_cifar10 = parts.keys() == set(CIFAR10_CLASSES) and all(
        sum(1 for _ in part.iterdir()) <= 5_000 for part in parts.values()
    )
    return "cifar10" if is_cifar10 else base


def generated_path(name: str) -> Path | None:
    """The file of a `<data set>+npz:<file>` name, found like a folder, or None."""
    return locate(name.partition("+npz:")[2]) if "+npz:" in name else None


def absolute_name(name: str) -> str:
    """The name with absolute paths: however a place is written, it is one data set."""
    base, file = base_of(name), generated_path(name)
    base = f"folder:{folder_path(base).resolve()}" if base.startswith("folder:") else base
    return f"{base}+npz:{file.resolve()}" if file else base


def check_data_name(name: str) -> None:
    """Refuse a name that `load_dataset` does not know; a folder and a file must exist.

    Raises:
        KitError: The name is unknown, names no folder or no file, or its folder or file is missing.
    """
    if is_own(name):
        check_own_name(name)
        return
    base, file = base_of(name), generated_path(name)
    if base == "folder:":
        raise KitError(
            "folder: names no folder; write folder:<path>, where <path> holds train/<class>/ and "
            "test/<class>/"
        )
    if name.endswith("+npz:"):
        raise KitError(
            f"{name} names no file; write {base}+npz:<file>, where <file> holds arrays image and "
            "label"
        )
    if base.startswith("folder:"):
        if not folder_path(base).is_dir():
            raise KitError(
                f"there is no folder {folder_path(base)}; expected one with train/<class>/ and "
                "test/<class>/"
            )
    elif base not in DATA:
        raise unknown_name("data set", base, [*DATA, "folder:<path>", "<data set>+npz:<file>"])
    if file and not file.is_file():
        raise KitError(
            f"there is no file {file}; expected an .npz of generated images, with arrays image and "
            "label"
        )


def _check_arrays(name: str, part: str, arrays: Arrays, num_classes: int) -> Images:
    images, labels = arrays
    if images.dtype != np.uint8 or len(images) != len(labels) or not len(labels):
        raise KitError(
            f"{name}, {part}: {len(images)} images of type {images.dtype} and {len(labels)} "
            "labels; expected as many labels as uint8 images, and at least one. Delete the files "
            "and run again"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise KitError(
            f"{name}, {part}: labels run from {labels.min()} to {labels.max()}, expected 0 to "
            f"{num_classes - 1}. Delete the files and run again"
        )
    return images_in_memory(arrays)


def _list_images(base: str, root: Path) -> tuple[Images, Images, tuple[str, ...]]:
    """The training images and the test images of a data set, and its classes."""
    if base.startswith("folder:"):
        return load_folder(folder_path(base), root)
    train, test, classes = DATA[base](root)
    for part, arrays, expected in zip(
        ("train", "test"), (train, test), EXPECTED.get(base, (None, None)), strict=True
    ):
        if expected is not None and len(arrays[1]) != expected:
            raise KitError(
                f"{base}, {part}: {len(arrays[1])} images, expected {expected}; the file is "
                f"truncated or foreign. Delete it below {root} and run again"
            )
    count = len(classes)
    return (
        _check_arrays(base, "train", train, count),
        _check_arrays(base, "test", test, count),
        classes,
    )


def fit_to_folder(count: int, validation: int, train_size: int) -> tuple[int, int]:
    """Fit (validation, train_size) to a folder of `count` training images.

    A folder has CIFAR-10's row and may be smaller. Where the two do not fit, at most a tenth of the
    folder is held out, and `train_size` is at most the rest.
    """
    if validation + max(train_size, 1) <= count:
        return validation, train_size
    validation = min(validation, count // 10)
    return validation, min(train_size, count - validation)


def load_dataset(
    name: str, *, validation: int = 0, train_size: int = 0, root: Path | None = None
) -> DataSet:
    """Load the data set `name` on the CPU.

    `validation` training images are held out, and at most `train_size` (0 = all) of the others are
    used: a fixed stratified choice, the same for every seed. Of a folder they are no more than it
    has (`fit_to_folder`), and a user's own images (own:) are taken as they are. In each split every
    prefix is a stratified sample (`stratified_order`). Ids count the images in the order of the
    files. Test ids follow the training ids, and the ids of generated images follow the test ids;
    generated images are in `train` only.

    Raises:
        KitError: The name is unknown, a file is missing, truncated or foreign, or the data set has
            fewer training images than are asked for.
    """
    check_data_name(name)
    if is_own(name):
        return load_own_images(name, root or home() / "data")
    base, file = base_of(name), generated_path(name)
    train, test, classes = _list_images(base, root or home() / "data")
    if base.startswith("folder:") and not file:
        asked_for = validation, train_size
        validation, train_size = fit_to_folder(len(train), *asked_for)
        names = ("validation", "train_size")
        changed = [
            f"{name}={now} takes the place of {before}"
            for name, now, before in zip(names, (validation, train_size), asked_for, strict=True)
            if now != before
        ]
        if changed:
            print(f"{base} has {len(train)} training images: {', '.join(changed)}")
    if validation + 1 > len(train) or (
        train_size and not file and validation + train_size > len(train)
    ):
        raise KitError(
            f"{base} has {len(train)} training images; validation={validation} and "
            f"train_size={train_size or 'all'} do not fit"
        )
    order = stratified_order(train.y, named_generator(base.split("/")[-1], "validation"))
    held_out, rest = order[:validation], order[validation:]
    if file:
        own, first_id = _read_split(train, rest), len(train) + len(test)
        used = add_generated_images(own, file, len(classes), first_id, train_size)
    else:
        used = _read_split(train, _stratify(train, rest[: train_size or None]))
    return DataSet(
        name,
        classes,
        used,
        _read_split(train, _stratify(train, held_out)),
        _read_split(test, _stratify(test, torch.arange(len(test))), first_id=len(train)),
    )


def fetch_dataset(name: str, root: Path | None = None) -> None:
    """Download a data set that is not here yet, and read its files once.

    Names of other kinds, which are never downloaded, are left alone.

    Raises:
        KitError: It cannot be had, or its files are damaged.
    """
    if base_of(name) in EXPECTED:
        _list_images(base_of(name), root or home() / "data")


def _stratify(images: Images, rows: Tensor) -> Tensor:
    """The rows in their one order: every prefix is a stratified sample, whatever the run's seed."""
    return rows[stratified_order(images.y[rows], named_generator("order", len(rows)))]


def _read_split(images: Images, rows: Tensor, first_id: int = 0) -> Split:
    """The split of the images `rows`; ids count from `first_id`."""
    return Split(images.read(rows), images.y[rows], first_id + rows)
