"""Data sets that come with the install or are drawn here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from kit.core.random_streams import named_generator
from kit.data.gaussian_mixture import MIXTURE, MIXTURE_CLASSES, mixture_images, sample_mixture
from kit.data.splits import Arrays

DIGITS_TEST = 497  # leaves 1,300 for training and validation

MIXTURE_SIZES = {"train": 5_000, "test": 10_000}


def digits_arrays(root: Path) -> tuple[Arrays, Arrays, tuple[str, ...]]:
    """The digits of scikit-learn as (training arrays, test arrays, classes); `root` is not used.

    The grey values 0 to 16 become 0 to 255.
    """
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = np.round(bundle.images * (255 / 16)).astype(np.uint8)
    order = torch.randperm(len(images), generator=named_generator("digits", "split")).numpy()
    test, train = order[:DIGITS_TEST], order[DIGITS_TEST:]
    return (
        (images[train], bundle.target[train]),
        (images[test], bundle.target[test]),
        tuple("0123456789"),
    )


def mixture_arrays(root: Path) -> tuple[Arrays, Arrays, tuple[str, ...]]:
    """The data set `mixture` as (training arrays, test arrays, classes); `root` is not used.

    See `kit.data.gaussian_mixture`.
    """
    parts = []
    for part, n in MIXTURE_SIZES.items():
        x, labels = sample_mixture(MIXTURE, n, named_generator("mixture", part))
        parts.append((mixture_images(MIXTURE, x).numpy(), labels.numpy()))
    return parts[0], parts[1], MIXTURE_CLASSES
