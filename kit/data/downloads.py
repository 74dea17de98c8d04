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
    def load(root: Path) -> tuple[Arrays, Arrays, tuple[str, ...]]:
        import torchvision.datasets

        parts, classes = [], ()
        for arguments in splits.values():
            try:
                split = getattr(torchvision.datasets, kind)(str(root), download=True, **arguments)
            except Exception as error:  # torchvision, urllib, zlib and pickle each have their own
                raise KitError(
                    f"{kind} could not be read from or downloaded to {root} "
                    f"({type(error).__name__}: "
                    f"{str(error).splitlines()[0] if str(error) else 'no details'}). Check the "
                    f"network, or delete "
                    f"the damaged file below {root} and run again; another folder is chosen with "
                    f"KIT_HOME"
                ) from error
            labels = np.asarray(
                getattr(split, "targets", None) if hasattr(split, "targets") else split.labels
            )
            images = np.asarray(split.data)
            parts.append((images.transpose(0, 2, 3, 1) if kind == "SVHN" else images, labels))
            classes = tuple(map(str, getattr(split, "classes", range(10))))
        return parts[0], parts[1], classes

    return load
