"""Folders of images as data sets, TinyImageNet's layout among them.

The names of the files say which images there are; an image is decoded when it is asked for, by
several threads, and kept decoded (`kit.data.decoded_images`).
"""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kit.core.errors import KitError
from kit.core.progress import Progress
from kit.core.threads import run_in_threads, stop_if_abandoned
from kit.data.decoded_images import DecodedImages
from kit.data.splits import Images

ANNOTATIONS = "val_annotations.txt"  # of TinyImageNet

#: What the name of an image ends with; other files are left alone.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

DECODED_AT_ONCE = 256  # images that a thread decodes before they are kept

#: Pillow decodes outside Python's lock; twice the cores, as threads also wait for the disk.
DECODING_THREADS = min(8, 2 * (os.cpu_count() or 1))

Samples = tuple[list[str], list[int]]  # files, relative to the data set's folder, and their labels


# ------------------------------------------------------------------------------------------ folders


def load_folder(path: Path, root: Path) -> tuple[Images, Images, tuple[str, ...]]:
    """List a folder of images as (training images, test images, classes).

    `path` holds train/<class>/ and test/<class>/, or is TinyImageNet as it is unpacked. Decoded
    images are kept below `root`. Images are read when they are asked for; a `KitError` says then
    that one cannot be read or has another size than the first.

    Raises:
        KitError: A folder is missing, the two have different classes, or the first images of the
            two cannot be read or differ in size.
    """
    listed = FolderListing(path)
    train, classes = listed.classes("train")
    test = listed.test(classes)
    folder = ImageFolder.open(path, train[0], test[0], listed.fingerprint(), root / "decoded")
    read_train = partial(folder.read, title=f"{path.name}, train")
    read_test = partial(folder.read, title=f"{path.name}, test", first=len(train[0]))
    return (
        Images(torch.tensor(train[1]), read_train),
        Images(torch.tensor(test[1]), read_test),
        classes,
    )


class FolderListing:
    """Lists the images below a folder, and takes a fingerprint of all that were listed."""

    def __init__(self, path: Path):
        import PIL

        self.path, self.digest = path, hashlib.sha256(f"Pillow {PIL.__version__}".encode())

    def fingerprint(self) -> str:
        """The SHA-256 over the files' names, sizes and times, and the decoder that reads them."""
        return self.digest.hexdigest()

    def images(self, folder: str) -> list[str]:
        """The images below path/folder, at any depth, each relative to `path`.

        Raises:
            OSError: The folder is missing or cannot be read.
        """
        found: dict[str, list[os.DirEntry]] = {}
        pending = [folder]
        while pending:
            place = pending.pop()
            with os.scandir(self.path / place) as here:
                entries = sorted(here, key=lambda entry: entry.name)
            folders = [entry for entry in entries if entry.is_dir()]
            pending += [f"{place}/{entry.name}" for entry in folders]
            found[place] = [e for e in entries if e.name.lower().endswith(EXTENSIONS)]
            found[place] = [entry for entry in found[place] if entry not in folders]
        return [self._stamp(place, entry) for place in sorted(found) for entry in found[place]]

    def _stamp(self, place: str, entry: os.DirEntry) -> str:
        """Take a file into the fingerprint; returns its name."""
        file = f"{place}/{entry.name}"
        try:
            now = entry.stat()
            times = f"{now.st_size} {now.st_mtime_ns} {now.st_ctime_ns}"
        except OSError:  # who reads the image will say so
            times = "unknown"
        self.digest.update(os.fsencode(f"\0{file}\0{times}"))
        return file

    def classes(self, part: str) -> tuple[Samples, tuple[str, ...]]:
        """The images of path/part/<class>/, and the classes in alphabetical order.

        Raises:
            KitError: There is no such folder, or a class without an image.
        """
        folder = self.path / part
        try:
            classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
            found = {name: self.images(f"{part}/{name}") for name in classes}
            empty = [name for name, files in found.items() if not files]
            wrong = f"no image in {', '.join(empty)}" if empty else "" if classes else "no classes"
        except OSError as error:
            wrong = str(error)
        if wrong:
            raise KitError(
                f"{folder} is not a folder of images; expected {self.path}/train/<class>/*.png (or "
                f".jpg) and {self.path}/test/<class>/*.png: {wrong}"
            )
        labels = [label for label, name in enumerate(classes) for _ in found[name]]
        return ([file for name in classes for file in found[name]], labels), tuple(classes)

    def test(self, classes: tuple[str, ...]) -> Samples:
        """The images of test/, or of val/ where test/ holds none of the classes.

        TinyImageNet's test/ has no labels.
        """
        path = self.path
        part = next(
            (p for p in ("test", "val") if any((path / p / name).is_dir() for name in classes)), ""
        )
        if not part and (path / "val" / ANNOTATIONS).is_file():
            return self.annotated(classes)
        samples, found = self.classes(part or "test")
        if found != classes:
            odd = sorted(set(found) ^ set(classes))
            raise KitError(
                f"{path}: train/ and {part or 'test'}/ have different classes "
                f"({', '.join(odd[:5])} is in one only)"
            )
        return samples

    def annotated(self, classes: tuple[str, ...]) -> Samples:
        """The images of TinyImageNet's val/.

        It holds images/ and a table of file, class ("wnid") and bounding box, with tabs between.
        """
        folder = self.path / "val"
        table = folder / ANNOTATIONS
        labels: dict[str, int] = {}
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            file, wnid = [*line.split("\t"), ""][:2]
            if wnid not in classes or file in labels:
                wrong = (
                    f"{file} was there before"
                    if file in labels
                    else f"'{wnid}' is not a class of train/"
                )
                raise KitError(
                    f"{table}, line {number}: {wrong}. Expected for each image a line of its name, "
                    f"one of the {len(classes)} wnids of train/ and a box, with tabs between; "
                    "unpack the archive again"
                )
            labels[file] = classes.index(wnid)
        listed = self.images("val/images") if (folder / "images").is_dir() else []
        found = {file.removeprefix("val/images/") for file in listed if file.endswith(".JPEG")}
        if odd := sorted(found ^ set(labels)):
            raise KitError(
                f"{folder}: {odd[0]} is in {'images/' if odd[0] in found else ANNOTATIONS} only; "
                f"expected every image in images/ and in {ANNOTATIONS}. Unpack the archive again"
            )
        if not labels:
            raise KitError(
                f"{folder} holds no image; expected TinyImageNet's images/ and {ANNOTATIONS}"
            )
        files = sorted(labels)
        return [f"val/images/{file}" for file in files], [labels[file] for file in files]


# --------------------------------------------------------------------------------------- decoding


@dataclass(frozen=True)
class ImageFolder:
    """The files of a data set, and what is kept of them decoded.

    `files` are relative to `path`; `shape` is (C, H, W) of the first, and of all others.
    """

    path: Path
    files: list[str]
    shape: tuple[int, int, int]
    kept: DecodedImages

    @classmethod
    def open(
        cls, path: Path, train: list[str], test: list[str], fingerprint: str, cache: Path
    ) -> ImageFolder:
        """Learn the size of the images from what is kept below `cache`, or else from the first.

        Raises:
            KitError: The first image of a part cannot be read, or the two differ in size.
        """
        place = path.resolve()
        folder = cache / f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:12]}"
        files = train + test
        kept = DecodedImages(folder, fingerprint, len(files))
        shape = kept.shape()
        if shape is None:
            channels, height, width = decode(path / train[0]).shape
            shape = channels, height, width
            if decode(path / test[0]).shape != shape:
                raise KitError(f"{path}: images in train/ and test/ differ in size")
        return cls(path, files, shape, kept)

    def read(self, rows: Tensor, *, title: str, first: int = 0) -> Tensor:
        """The images (n, C, H, W) of the files first + `rows` (n,).

        Those that are not kept are decoded by several threads, and kept. `title` names them in the
        line of progress.

        Raises:
            KitError: An image cannot be read, or has another size.
        """
        wanted = rows.numpy() + first
        images = np.empty((len(wanted), *self.shape), np.uint8)
        missing = self.kept.read(wanted, images, np.arange(len(wanted)))
        if len(missing):
            with self.kept.held(self.shape):  # another process may just have decoded them
                missing = self.kept.read(wanted, images, missing)
                self._decode(wanted, images, missing, title)
        return torch.from_numpy(images)

    def _decode(
        self, wanted: np.ndarray, images: np.ndarray, missing: np.ndarray, title: str
    ) -> None:
        """Decode the images at the places `missing` of `wanted`, and keep them."""
        chunks = [missing[i : i + DECODED_AT_ONCE] for i in range(0, len(missing), DECODED_AT_ONCE)]
        threads, done = min(len(chunks), DECODING_THREADS), 0

        def work(places: np.ndarray) -> np.ndarray:
            for place in places.tolist():
                stop_if_abandoned()
                images[place] = decode(self.path / self.files[wanted[place]], self.shape)
            return places

        with Progress(f"decoding {title}", len(missing), brief=True) as progress:
            for places in run_in_threads(work, [(chunk,) for chunk in chunks], threads):
                self.kept.write(wanted[places], images[places])
                done += len(places)
                progress.update(done, f"{done} of {len(missing)} images")
            progress.close(f"{done} images")


def decode(file: Path, shape: tuple[int, int, int] | None = None) -> np.ndarray:
    """The image (3, H, W) in a file, in RGB, uint8.

    Raises:
        KitError: The file is no image, is damaged, or its image has another shape than `shape`.
    """
    from PIL import Image

    try:
        blob = file.read_bytes()
        with Image.open(io.BytesIO(blob)) as picture:
            if picture.format == "PNG":  # compare its checksums, which decoding does not
                picture.verify()
                picture = Image.open(io.BytesIO(blob))
            image = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    except Exception as error:  # Pillow's formats each have their own
        raise KitError(
            f"{file} is not a readable image ({type(error).__name__}); delete or replace it"
        ) from error
    if shape is not None and image.shape != shape:
        raise KitError(
            f"{file} is {image.shape[2]}x{image.shape[1]} pixels, the images before it "
            f"{shape[2]}x{shape[1]}; a data set has one size"
        )
    return image
