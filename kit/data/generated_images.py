"""Files of generated images, read in chunks and added to a training split."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from kit.core.errors import KitError
from kit.core.random_streams import named_generator
from kit.data.splits import CHUNK, Split, channels_first, stratified_order

# --------------------------------------------------------------------------------- generated images


@contextlib.contextmanager
def _open_archive(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except KitError:
        raise
    except Exception as error:  # zipfile, zlib, struct, tokenize and numpy each have their own
        raise KitError(
            f"{file} is not a readable .npz ({type(error).__name__}: {error}); the file is cut "
            "short or damaged, or numpy.savez did not write it. Copy or download it again"
        ) from error


def _read_header(
    archive: zipfile.ZipFile, name: str
) -> tuple[IO[bytes], tuple[int, ...], bool, np.dtype]:
    """An array's bytes, shape, Fortran order and type.

    Only its header is read; objects would follow as a pickle.
    """
    stream = archive.open(f"{name}.npy")
    read = (
        np.lib.format.read_array_header_1_0
        if np.lib.format.read_magic(stream) == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    return stream, *read(stream)


def _read_labels(file: Path, picture: tuple[int, ...], num_classes: int) -> np.ndarray:
    """The labels (N,) of a file of generated images, once both arrays' headers are found right.

    Raises:
        KitError: An array is missing, or has another shape, type or order than expected.
    """
    wanted = (
        f"expected image (N, {', '.join(map(str, picture))}) of uint8 and label (N,) of integers, "
        "in C order"
    )
    with _open_archive(file) as archive:
        here = sorted(member.removesuffix(".npy") for member in archive.namelist())
        if missing := sorted({"image", "label"} - set(here)):
            raise KitError(
                f"{file} lacks {' and '.join(missing)}, it has {', '.join(here) or 'nothing'}; "
                f"{wanted}"
            )
        _, pixels, fortran, kind = _read_header(archive, "image")
        stream, shape, _, integers = _read_header(archive, "label")
        if not (
            kind == np.uint8
            and pixels[1:] == picture
            and not fortran
            and integers.kind in "iu"
            and shape == pixels[:1] != (0,)
        ):
            raise KitError(
                f"{file} has image {pixels} of {kind}{' in Fortran order' if fortran else ''} and "
                f"label {shape} of {integers}; {wanted}"
            )
        labels = np.frombuffer(stream.read(), integers).reshape(shape)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise KitError(
            f"{file}: labels run from {labels.min()} to {labels.max()}, expected 0 to "
            f"{num_classes - 1}"
        )
    return labels.astype(np.int64)


def _read_images(file: Path, rows: np.ndarray, into: Tensor, places: Tensor) -> None:
    """Read the file's images `rows` (sorted) into the `places` (len(rows),) of `into` (N, C, H, W).

    They are read in chunks: the file may exceed the memory.
    """
    with _open_archive(file) as archive:
        stream, (n, *picture), _, _ = _read_header(archive, "image")
        for first in range(0, n, CHUNK):
            count = min(CHUNK, n - first)
            chunk = np.frombuffer(stream.read(count * math.prod(picture)), np.uint8).reshape(
                count, *picture
            )
            begin, end = np.searchsorted(rows, [first, first + count])
            into[places[begin:end]] = channels_first(chunk[rows[begin:end] - first])
        if stream.read():  # also what makes zipfile compare the checksum
            raise KitError(
                f"{file}: image has more bytes than {(n, *picture)}; it is damaged. Get it again"
            )


def add_generated_images(
    base: Split, file: Path, num_classes: int, first_id: int, train_size: int
) -> Split:
    """Add the file's images to `base`, with ids from `first_id`, in an order as `stratified_order`.

    Of both, the first `train_size` of that order are kept (0 = all).

    Raises:
        KitError: The file does not fit, there are fewer than `train_size` images, or the images do
            not fit into the memory.
    """
    channels, *size = base.images.shape[1:]
    labels = torch.from_numpy(
        _read_labels(file, (*size, channels) if channels > 1 else tuple(size), num_classes)
    )
    total = len(base) + len(labels)
    if train_size > total:
        raise KitError(
            f"train_size={train_size}, but there are {len(base)} training images and {len(labels)} "
            f"in {file}"
        )
    y, ids = (
        torch.cat([base.y, labels]),
        torch.cat([base.ids, first_id + torch.arange(len(labels))]),
    )
    order = stratified_order(y, named_generator(file.name, "generated"))[: train_size or None]
    own = (order < len(base)).nonzero().squeeze(1)
    drawn, place = (order[order >= len(base)] - len(base)).sort()
    place = (order >= len(base)).nonzero().squeeze(1)[place]
    try:
        images = base.images.new_empty(len(order), *base.images.shape[1:])
    except RuntimeError as error:
        raise KitError(
            f"{len(order)} images do not fit into memory; set train_size, say to 1000000"
        ) from error
    images[own] = base.images[order[own]]
    _read_images(file, drawn.numpy(), images, place)
    return Split(images, y[order], ids[order])
