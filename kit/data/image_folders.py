"""Folders of images as data sets, TinyImageNet's layout among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kit.core.errors import KitError
from kit.data.splits import Arrays

ANNOTATIONS = "val_annotations.txt"  # of TinyImageNet

Samples = list[tuple[str, int]]  # (file, label)


# ------------------------------------------------------------------------------------------ folders


def load_folder(path: Path) -> tuple[Arrays, Arrays, tuple[str, ...]]:
    """Load a folder of images as (training arrays, test arrays, classes).

    `path` holds train/<class>/ and test/<class>/, or is TinyImageNet as it is unpacked.

    Raises:
        KitError: A folder is missing, the two have different classes, or an image cannot be read or
            has another size.
    """
    train, classes = _classified(path, "train")
    test = _tested(path, classes)
    parts = [
        (_pixels(samples), np.asarray([label for _, label in samples])) for samples in (train, test)
    ]
    if parts[0][0].shape[1:] != parts[1][0].shape[1:]:
        raise KitError(f"{path}: images in train/ and test/ differ in size")
    return parts[0], parts[1], classes


def _classified(path: Path, part: str) -> tuple[Samples, tuple[str, ...]]:
    """The images of path/part/<class>/, at any depth, and the classes in alphabetical order."""
    from torchvision.datasets import ImageFolder

    try:
        tree = ImageFolder(str(path / part))
    except FileNotFoundError as error:
        raise KitError(
            f"{path / part} is not a folder of images; expected {path}/train/<class>/*.png (or "
            f".jpg) and {path}/test/<class>/*.png: {error}"
        ) from error
    return tree.samples, tuple(tree.classes)


def _tested(path: Path, classes: tuple[str, ...]) -> Samples:
    """The images of test/, or of val/ where test/ holds none of the classes.

    TinyImageNet's test/ has no labels.
    """
    part = next(
        (p for p in ("test", "val") if any((path / p / name).is_dir() for name in classes)), ""
    )
    if not part and (path / "val" / ANNOTATIONS).is_file():
        return _annotated(path / "val", classes)
    samples, found = _classified(path, part or "test")
    if found != classes:
        odd = sorted(set(found) ^ set(classes))
        raise KitError(
            f"{path}: train/ and {part or 'test'}/ have different classes ({', '.join(odd[:5])} is "
            "in one only)"
        )
    return samples


def _annotated(folder: Path, classes: tuple[str, ...]) -> Samples:
    """The images of TinyImageNet's val/.

    It holds images/ and a table of file, class ("wnid") and bounding box, with tabs between.
    """
    table = folder / ANNOTATIONS
    labels: dict[str, int] = {}
    lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        file, wnid = [*line.split("\t"), ""][:2]
        if wnid not in classes or file in labels:
            wrong = (
                f"{file} was there before" if file in labels else f"'{wnid}' is no class of train/"
            )
            raise KitError(
                f"{table}, line {number}: {wrong}. Expected for each image a line of its name, one "
                f"of the {len(classes)} wnids of train/ and a box, with tabs between; unpack the "
                "archive again"
            )
        labels[file] = classes.index(wnid)
    found = {file.name for file in (folder / "images").glob("*.JPEG")}
    if odd := sorted(found ^ set(labels)):
        raise KitError(
            f"{folder}: {odd[0]} is in {'images/' if odd[0] in found else ANNOTATIONS} only; "
            f"expected every image in images/ and in {ANNOTATIONS}. Unpack the archive again"
        )
    if not labels:
        raise KitError(
            f"{folder} holds no image; expected TinyImageNet's images/ and {ANNOTATIONS}"
        )
    return [(str(folder / "images" / file), labels[file]) for file in sorted(labels)]


def _pixels(samples: Samples) -> np.ndarray:
    """The images (N, H, W, 3) of files of one size."""
    from PIL import Image
    from torchvision.datasets.folder import default_loader

    images: np.ndarray = np.empty(0, np.uint8)  # until the first image tells the size
    for row, (file, _) in enumerate(samples):
        try:
            with Image.open(file) as picture:
                picture.verify()  # compares a PNG's checksums, which decoding does not
            image = np.asarray(default_loader(file))
            if row == 0:
                images = np.empty((len(samples), *image.shape), np.uint8)
        except Exception as error:
            raise KitError(
                f"{file} is not a readable image ({type(error).__name__}); delete or replace it"
            ) from error
        if image.shape != images.shape[1:]:
            raise KitError(
                f"{file} is {image.shape[1]}x{image.shape[0]} pixels, the images before it "
                f"{images.shape[2]}x{images.shape[1]}; a data set has one size"
            )
        images[row] = image
    return images
