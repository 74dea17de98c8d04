"""Splits and data sets: uint8 images, labels, and ids that never change for an image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kit.core.errors import KitError

CHUNK = 4096  # images read or counted at a time


@dataclass(frozen=True)
class Split:
    """Images with their labels and ids, in an order in which every prefix is a stratified sample.

    Images (N, C, H, W) uint8 (a user's own may be floats in [0, 1]), labels (N,) int64, and ids
    (N,) int64 that never change for an image. `generated` are images of which each training batch
    takes its share, where a recipe has one.
    """

    images: Tensor
    y: Tensor
    ids: Tensor
    generated: Split | None = None

    def __len__(self) -> int:
        return len(self.y)

    def x(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Float images in [0, 1] of `rows`, (n, C, H, W)."""
        images = self.images[rows]
        return images.float() / 255 if images.dtype == torch.uint8 else images

    def take(self, rows: Tensor | slice) -> Split:
        """The images `rows` with their labels and ids."""
        return Split(self.images[rows], self.y[rows], self.ids[rows])

    def to(self, device: torch.device) -> Split:
        """The split on `device`."""
        generated = None if self.generated is None else self.generated.to(device)
        return Split(self.images.to(device), self.y.to(device), self.ids.to(device), generated)


@dataclass(frozen=True)
class DataSet:
    """Three splits of one data set.

    `validation` is cut from the training images, for choosing "best".
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> DataSet:
        """The data set on `device`."""
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
        )

    def fingerprint(self) -> str:
        """12 hex digits over every image and label: whether two machines hold the same data."""
        digest = hashlib.sha256()
        made = [self.train.generated] if self.train.generated is not None else []
        for split in (self.train, *made, self.validation, self.test):
            for tensor in (split.images, split.y):
                digest.update(tensor.cpu().contiguous().view(-1).numpy().data)
        return digest.hexdigest()[:12]

    def separate_generated(self) -> DataSet:
        """Take the generated images out of the training images: each batch gets its share of them.

        Raises:
            KitError: All training images are of one kind.
        """
        made = self.train.ids > self.test.ids.max()  # their ids follow the test images'
        count, total = int(made.sum()), len(self.train)
        if count in (0, total):
            raise KitError(
                f"generated_share needs images of both kinds, and of the {total} training images "
                f"of {self.name} {count} are generated; write <data set>+npz:<file>, and raise "
                "train_size where it leaves too few"
            )
        own = replace(self.train.take(~made), generated=self.train.take(made))
        return replace(self, train=own)

    def mean_std(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, (C,), over the training images in [0, 1]."""
        if self.train.images.is_floating_point():  # a user's own
            deviation, mean = torch.std_mean(self.train.images.double(), (0, 2, 3), correction=0)
            return mean.float(), deviation.clamp_min(1e-6).float()
        levels = torch.arange(256, dtype=torch.float64) / 255
        counts = torch.zeros(self.shape[0], len(levels), dtype=torch.int64)
        for images in self.train.images.split(CHUNK):
            for count, channel in zip(counts, images.transpose(0, 1).cpu(), strict=True):
                count += channel.flatten().bincount(minlength=256)
        shares = counts.double() / counts.double().sum(dim=1, keepdim=True)
        mean = (shares * levels).sum(dim=1)
        variance = (shares * (levels - mean[:, None]) ** 2).sum(dim=1)
        return mean.float(), variance.sqrt().clamp_min(1e-6).float()


def stratified_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw an order (N,) of images in which every prefix is a stratified sample.

    Any first n images hold each class in proportion to its share of all N `labels` (N,), as evenly
    as counts allow: of classes of one size, no class is ahead of another by more than one image.

    The k-th image of a class of m stands at (k + 1/2) / m of the way. Images at one place, and the
    images of a class among themselves, are in random order.
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    y = labels[shuffled]
    counts, by_class = y.bincount(), y.argsort(stable=True)
    first = counts.cumsum(0) - counts
    k = torch.empty_like(y)
    k[by_class] = torch.arange(len(y)) - first[y[by_class]]
    return shuffled[((k + 0.5) / counts[y].double()).argsort(stable=True)]


Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 (N, H, W) or (N, H, W, C), labels (N,)


@dataclass(frozen=True)
class Images:
    """The labels (N,) int64 of one part of a data set, and what reads the images asked for.

    `read(rows)`: images (n, C, H, W) uint8 of the rows (n,).
    """

    y: Tensor
    read: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.y)


def images_in_memory(arrays: Arrays) -> Images:
    """Images and labels that were read as a whole."""
    images, labels = arrays

    def read(rows: Tensor) -> Tensor:
        _, *size = images.shape
        height, width, channels = *size[:2], (*size, 1)[2]
        chosen = torch.empty(len(rows), channels, height, width, dtype=torch.uint8)
        for some, place in zip(rows.split(CHUNK), chosen.split(CHUNK), strict=True):
            place.copy_(channels_first(images[some.numpy()]))
        return chosen

    return Images(torch.from_numpy(labels.astype(np.int64)), read)


def channels_first(images: np.ndarray) -> Tensor:
    """Images (N, H, W) or (N, H, W, C) as a tensor (N, C, H, W)."""
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    return tensor[:, None] if tensor.dim() == 3 else tensor.permute(0, 3, 1, 2).contiguous()
