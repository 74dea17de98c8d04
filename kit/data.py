"""Data sets as tensors: a split is one uint8 tensor on the device, and augmentation is batched.

Names: digits (inside scikit-learn, the default), mnist, fashion-mnist, cifar10, cifar100, svhn (downloaded and
verified by torchvision into `data/`), mixture (two Gaussian classes, drawn here; see `kit.mixture`), and
folder:<path>, any tree with train/<class>/ and test/<class>/ images, or TinyImageNet as it is unpacked. +npz:<file>
behind any of them adds generated images to those for training.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kit import mixture
from kit.store import home, located
from kit.types import KitError, Streams, generator, unknown

DIGITS_TEST = 497        # leaves 1,300 for training and validation
MIXTURE_SIZES = {"train": 5_000, "test": 10_000}
ANNOTATIONS = "val_annotations.txt"   # of TinyImageNet
CHUNK = 4096             # images read or counted at a time


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
                digest.update(tensor.cpu().contiguous().view(-1).numpy())
        return digest.hexdigest()[:12]

    def mean_std(self) -> tuple[Tensor, Tensor]:
        """Per channel, over the training images, in [0, 1]."""
        levels = torch.arange(256, dtype=torch.float64) / 255
        counts = sum(torch.stack([channel.flatten().bincount(minlength=256) for channel in images.transpose(0, 1).cpu()])
                     for images in self.train.images.split(CHUNK)).double()
        counts = counts / counts.sum(dim=1, keepdim=True)
        mean = (counts * levels).sum(dim=1)
        variance = (counts * (levels - mean[:, None]) ** 2).sum(dim=1)
        return mean.float(), variance.sqrt().clamp_min(1e-6).float()


Arrays = tuple[np.ndarray, np.ndarray]   # images uint8 (N, H, W) or (N, H, W, C), labels (N,)
Samples = list[tuple[str, int]]          # (file, label)


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


def base_of(name: str) -> str:
    """A data set's name without the file of generated images."""
    return name.partition("+npz:")[0]


def folder_path(name: str) -> Path:
    """The path of a `folder:<path>` name; a relative one is looked for here, then beside `data/`."""
    return located(base_of(name).removeprefix("folder:"))


def generated_path(name: str) -> Path | None:
    """The file of a `<data set>+npz:<file>` name, found like a folder; None where there is none."""
    return located(name.partition("+npz:")[2]) if "+npz:" in name else None


def absolute(name: str) -> str:
    """The name with absolute paths: however a place is written, it is one data set."""
    base, file = base_of(name), generated_path(name)
    base = f"folder:{folder_path(base).resolve()}" if base.startswith("folder:") else base
    return f"{base}+npz:{file.resolve()}" if file else base


def check_data_name(name: str) -> None:
    """`KitError` unless `load` knows it; a folder and a file must exist."""
    base, file = base_of(name), generated_path(name)
    if base.startswith("folder:"):
        if not folder_path(base).is_dir():
            raise KitError(f"there is no folder {folder_path(base)}; expected one with train/<class>/ and test/<class>/")
    elif base not in DATA:
        raise unknown("data set", base, [*DATA, "folder:<path>", "<data set>+npz:<file>"])
    if file and not file.is_file():
        raise KitError(f"there is no file {file}; expected an .npz of generated images, with arrays image and label")


# ---------------------------------------------------------------------------------------------- folders

def _folder(path: Path) -> tuple[Arrays, Arrays, tuple[str, ...]]:
    train, classes = _classified(path, "train")
    test = _tested(path, classes)
    parts = [(_pixels(samples), np.asarray([label for _, label in samples])) for samples in (train, test)]
    if parts[0][0].shape[1:] != parts[1][0].shape[1:]:
        raise KitError(f"{path}: images in train/ and test/ differ in size")
    return parts[0], parts[1], classes


def _classified(path: Path, part: str) -> tuple[Samples, tuple[str, ...]]:
    """The images of path/part/<class>/, at any depth, and the classes in alphabetical order."""
    from torchvision.datasets import ImageFolder
    try:
        tree = ImageFolder(str(path / part))
    except FileNotFoundError as error:
        raise KitError(f"{path / part} is not a folder of images; expected {path}/train/<class>/*.png (or .jpg) "
                       f"and {path}/test/<class>/*.png: {error}") from error
    return tree.samples, tuple(tree.classes)


def _tested(path: Path, classes: tuple[str, ...]) -> Samples:
    """The images of test/ or, where it holds none of the classes (TinyImageNet's has no labels), of val/."""
    part = next((p for p in ("test", "val") if any((path / p / name).is_dir() for name in classes)), "")
    if not part and (path / "val" / ANNOTATIONS).is_file():
        return _annotated(path / "val", classes)
    samples, found = _classified(path, part or "test")
    if found != classes:
        odd = sorted(set(found) ^ set(classes))
        raise KitError(f"{path}: train/ and {part or 'test'}/ have different classes ({', '.join(odd[:5])} is in one only)")
    return samples


def _annotated(folder: Path, classes: tuple[str, ...]) -> Samples:
    """TinyImageNet's val/: images/ and a table of file, class ("wnid") and bounding box, with tabs between."""
    table, labels = folder / ANNOTATIONS, {}
    for number, line in enumerate(table.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        file, wnid = [*line.split("\t"), ""][:2]
        if wnid not in classes or file in labels:
            wrong = f"{file} was there before" if file in labels else f"'{wnid}' is no class of train/"
            raise KitError(f"{table}, line {number}: {wrong}. Expected for each image a line of its name, one of the "
                           f"{len(classes)} wnids of train/ and a box, with tabs between; unpack the archive again")
        labels[file] = classes.index(wnid)
    found = {file.name for file in (folder / "images").glob("*.JPEG")}
    if odd := sorted(found ^ set(labels)):
        raise KitError(f"{folder}: {odd[0]} is in {'images/' if odd[0] in found else ANNOTATIONS} only; expected every "
                       f"image in images/ and in {ANNOTATIONS}. Unpack the archive again")
    if not labels:
        raise KitError(f"{folder} holds no image; expected TinyImageNet's images/ and {ANNOTATIONS}")
    return [(str(folder / "images" / file), labels[file]) for file in sorted(labels)]


def _pixels(samples: Samples) -> np.ndarray:
    """The images (N, H, W, 3) of files of one size."""
    from PIL import Image
    from torchvision.datasets.folder import default_loader
    images = None
    for row, (file, _) in enumerate(samples):
        try:
            with Image.open(file) as picture:
                picture.verify()      # compares a PNG's checksums, which decoding does not
            image = np.asarray(default_loader(file))
            images = np.empty((len(samples), *image.shape), np.uint8) if images is None else images
        except Exception as error:
            raise KitError(f"{file} is not a readable image ({type(error).__name__}); delete or replace it") from error
        if image.shape != images.shape[1:]:
            raise KitError(f"{file} is {image.shape[1]}x{image.shape[0]} pixels, the images before it "
                           f"{images.shape[2]}x{images.shape[1]}; a data set has one size")
        images[row] = image
    return images


# ---------------------------------------------------------------------------------------------- generated images

@contextlib.contextmanager
def _archive(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except KitError:
        raise
    except Exception as error:   # zipfile, zlib, struct, tokenize and numpy each have their own
        raise KitError(f"{file} is not a readable .npz ({type(error).__name__}: {error}); it is cut short, damaged or "
                       "something else. Expected what numpy.savez writes; get it again") from error


def _header(archive: zipfile.ZipFile, name: str) -> tuple[IO[bytes], tuple[int, ...], bool, np.dtype]:
    """An array's bytes, shape, Fortran order and type. Only its header is read; objects would follow as a pickle."""
    stream = archive.open(f"{name}.npy")
    read = (np.lib.format.read_array_header_1_0 if np.lib.format.read_magic(stream) == (1, 0) else
            np.lib.format.read_array_header_2_0)
    return stream, *read(stream)


def _labels(file: Path, picture: tuple[int, ...], num_classes: int) -> np.ndarray:
    """The labels (N,) of a file of generated images, once what both arrays' headers say is right. Errors: `KitError`."""
    wanted = f"expected image (N, {', '.join(map(str, picture))}) of uint8 and label (N,) of integers, in C order"
    with _archive(file) as archive:
        here = sorted(member.removesuffix(".npy") for member in archive.namelist())
        if missing := sorted({"image", "label"} - set(here)):
            raise KitError(f"{file} lacks {' and '.join(missing)}, it has {', '.join(here) or 'nothing'}; {wanted}")
        _, pixels, fortran, kind = _header(archive, "image")
        stream, shape, _, integers = _header(archive, "label")
        if not (kind == np.uint8 and pixels[1:] == picture and not fortran and integers.kind in "iu"
                and shape == pixels[:1] != (0,)):
            raise KitError(f"{file} has image {pixels} of {kind}{' in Fortran order' if fortran else ''} and label {shape} "
                           f"of {integers}; {wanted}")
        labels = np.frombuffer(stream.read(), integers).reshape(shape)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise KitError(f"{file}: labels run from {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1}")
    return labels.astype(np.int64)


def _read_images(file: Path, rows: np.ndarray, into: Tensor) -> None:
    """The file's images `rows` (sorted) to `into` (len(rows), C, H, W), in chunks: the file may exceed the memory."""
    with _archive(file) as archive:
        stream, (n, *picture), _, _ = _header(archive, "image")
        for first in range(0, n, CHUNK):
            count = min(CHUNK, n - first)
            chunk = np.frombuffer(stream.read(count * math.prod(picture)), np.uint8).reshape(count, *picture)
            begin, end = np.searchsorted(rows, [first, first + count])
            into[begin:end] = _channels_first(chunk[rows[begin:end] - first])
        if stream.read():        # also what makes zipfile compare the checksum
            raise KitError(f"{file}: image has more bytes than {(n, *picture)}; it is damaged. Get it again")


def _with_generated(base: Split, file: Path, num_classes: int, first_id: int, train_size: int) -> Split:
    """`base` and behind it the file's images, with ids from `first_id`; of both `train_size` at random (0 = all)."""
    channels, *size = base.images.shape[1:]
    labels = torch.from_numpy(_labels(file, (*size, channels) if channels > 1 else tuple(size), num_classes))
    total = len(base) + len(labels)
    if train_size > total:
        raise KitError(f"train_size={train_size}, but there are {len(base)} training images and {len(labels)} in {file}")
    order = torch.randperm(total, generator=generator(file.name, "generated"))
    kept = order[:train_size].sort().values if train_size else torch.arange(total)
    own, drawn = kept[kept < len(base)], kept[kept >= len(base)] - len(base)
    try:
        images = base.images.new_empty(len(kept), *base.images.shape[1:])
    except RuntimeError as error:
        raise KitError(f"{len(kept)} images do not fit into the memory; train_size=1000000 uses a million") from error
    images[:len(own)] = base.images[own]
    _read_images(file, drawn.numpy(), images[len(own):])
    return Split(images, torch.cat([base.y[own], labels[drawn]]), torch.cat([base.ids[own], first_id + drawn]))


def _channels_first(images: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    return tensor[:, None] if tensor.dim() == 3 else tensor.permute(0, 3, 1, 2).contiguous()


def _split(name: str, part: str, arrays: Arrays, first_id: int, num_classes: int) -> Split:
    images, labels = arrays
    if images.dtype != np.uint8 or len(images) != len(labels) or not len(labels):
        raise KitError(f"{name}, {part}: {len(images)} images of type {images.dtype} and {len(labels)} labels; "
                       "expected as many labels as uint8 images, and at least one. Delete the files and run again")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise KitError(f"{name}, {part}: labels run from {labels.min()} to {labels.max()}, expected 0 to "
                       f"{num_classes - 1}. Delete the files and run again")
    ids = torch.arange(first_id, first_id + len(labels))
    return Split(_channels_first(images), torch.from_numpy(labels.astype(np.int64)), ids)


def load(name: str, *, validation: int = 0, train_size: int = 0, root: Path | None = None) -> DataSet:
    """The data set `name` on the CPU, with `validation` training images held out and at most `train_size` (0 = all) used.

    The held-out and the used images are a fixed random choice, the same for every seed. Test ids follow the training
    ids, and those of generated images the test ids; they are in `train` only. Errors: `KitError` for an unknown name, and
    for missing, truncated or foreign files.
    """
    check_data_name(name)
    base, file = base_of(name), generated_path(name)
    if base.startswith("folder:"):
        train, test, classes = _folder(folder_path(base))
    else:
        train, test, classes = DATA[base](root or home() / "data")
    for part, arrays, expected in zip(("train", "test"), (train, test), EXPECTED.get(base, (None, None)), strict=True):
        if expected is not None and len(arrays[1]) != expected:
            raise KitError(f"{base}, {part}: {len(arrays[1])} images, expected {expected}; the file is truncated or "
                           f"foreign. Delete it below {root or home() / 'data'} and run again")
    train = _split(base, "train", train, 0, len(classes))
    test = _split(base, "test", test, len(train), len(classes))
    if validation + 1 > len(train) or (train_size and not file and validation + train_size > len(train)):
        raise KitError(f"{base} has {len(train)} training images; validation={validation} and "
                       f"train_size={train_size or 'all'} do not fit")
    order = torch.randperm(len(train), generator=generator(base.split("/")[-1], "validation"))
    kept = order[validation:] if file else order[validation:][:train_size or None]
    used = train.take(kept.sort().values)
    if file:
        used = _with_generated(used, file, len(classes), len(train) + len(test), train_size)
    return DataSet(name, classes, used, train.take(order[:validation].sort().values), test)


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
