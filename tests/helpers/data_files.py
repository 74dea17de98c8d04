"""Data files as they lie after a download, written by the tests."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from kit.data.splits import Arrays, Split


def idx(array: np.ndarray) -> bytes:
    """The format of MNIST's files:

    two zero bytes, the type, the number of axes, each axis, the bytes.
    """
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        + array.astype(np.uint8).tobytes()
    )


def write_mnist(
    root: Path, name: str, sizes: tuple[int, int], classes: int = 10
) -> dict[str, Arrays]:
    """Files as they lie after a download; -> the images and labels in them."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    kept, rng = {}, np.random.default_rng(0)
    for part, n in zip(("train", "t10k"), sizes, strict=True):
        images, labels = (
            rng.integers(0, 256, (n, 28, 28), dtype=np.uint8),
            np.arange(n, dtype=np.uint8) % classes,
        )
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
        kept[part] = images, labels
    return kept


def in_file_order(split: Split) -> Split:
    """The split in the order of the files, which its ids count."""
    return split.take(split.ids.argsort())
