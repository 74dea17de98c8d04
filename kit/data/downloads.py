"""Data sets that torchvision downloads and verifies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from kit.core.errors import KitError
from kit.data.splits import Arrays


def torchvision_loader(
    kind: str, **splits: dict
) -> Callable[[Path], tuple[Arrays, Arrays, tuple[str, ...]]]:
    """Make the loader of torchvision's data set `kind`, which downloads and verifies it.

    `splits`: the arguments of each split, training first. The loader takes the folder of data sets
    and returns (training arrays, test arrays, classes).

    Raises:
        KitError: The loader could not read or download the data set.
    """

    def load(root: Path) -> tuple[Arrays, Arrays, tuple[str, ...]]:
        import torchvision.datasets

        parts: list[Arrays] = []
        classes: tuple[str, ...] = ()
        for arguments in splits.values():
            try:
                split = getattr(torchvision.datasets, kind)(str(root), download=True, **arguments)
            except Exception as error:  # torchvision, urllib, zlib and pickle each have their own
                raise KitError(
                    f"{kind} could not be read from or downloaded to {root} "
                    f"({type(error).__name__}: {_first_line(error)}). Check the network, or delete "
                    f"the damaged file below {root} and run again. KIT_HOME chooses another folder"
                ) from error
            labels = np.asarray(split.targets if hasattr(split, "targets") else split.labels)
            images = np.asarray(split.data)
            parts.append((images.transpose(0, 2, 3, 1) if kind == "SVHN" else images, labels))
            # MNIST's names are "0 - zero" and so on: the digit says it, and fits below a picture.
            classes = tuple(
                str(name).partition(" - ")[0] for name in getattr(split, "classes", range(10))
            )
        return parts[0], parts[1], classes

    return load


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else "no details"
