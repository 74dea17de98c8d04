"""The image behind a dot, as a thumbnail beside the pointer or beside the dot itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from kit.data.splits import Split
from kit.experiments.runs import Run

#: In pixels of the picture: a dot is meant when the pointer is as near as this.
REACH = 8

#: In pixels: the shorter side of a thumbnail, if a whole number of screen pixels an image pixel
#: gives it.
THUMBNAIL_SIDE = 96


@dataclass(frozen=True)
class Dots:
    """Training images that stand on `axes` as dots, each at its place in the data of the axes."""

    axes: Axes
    places: np.ndarray  # (n, 2)
    ids: np.ndarray  # (n,)
    describe: Callable[[int], str]  # what is said of the image in a row


@dataclass(frozen=True)
class Thumbnail:
    """An image, in words and as the source of an <img>."""

    words: str
    source: str


@dataclass(frozen=True)
class Stop:
    """An image on the way through all of them: its number, its dot and its thumbnail."""

    number: int  # from 1
    count: int
    place: tuple[float, float]  # of the dot, in shares of the picture from its lower left
    thumbnail: Thumbnail


def order_images(dots: Sequence[Dots]) -> list[tuple[Dots, int]]:
    """List every image once, at the first of its dots, with its row: from left to right."""
    found: dict[int, tuple[Dots, int]] = {}
    for some in dots:
        for row in np.lexsort((some.places[:, 1], some.places[:, 0])).tolist():
            found.setdefault(int(some.ids[row]), (some, row))
    return list(found.values())


def find_nearest(dots: Sequence[Dots], pixel: tuple[float, float]) -> tuple[Dots, int] | None:
    """Find the dot nearest to a pixel of the picture, and its row; None where none is in reach."""
    nearest, found = float(REACH), None
    for some in dots:
        if not len(some.places):
            continue
        away = np.hypot(*(some.axes.transData.transform(some.places) - pixel).T)
        row = int(away.argmin())
        if away[row] <= nearest:
            nearest, found = float(away[row]), (some, row)
    return found


class Thumbnails:
    """The training images of a run as thumbnails; its data are opened for the first of them."""

    def __init__(self, run: Run):
        self.run = run

    @cached_property
    def images(self) -> Split:
        """All training images."""
        return self.run.data().train

    @cached_property
    def rows(self) -> dict[int, int]:
        """{id of an image: its row}."""
        return {int(one): row for row, one in enumerate(self.images.ids)}

    def show(self, dots: Dots, row: int) -> Thumbnail:
        """Show the image behind a dot.

        Raises:
            KitError: the run's images are not there, or have changed.
        """
        number = int(dots.ids[row])
        place = self.rows[number]
        pixels = self.images.x(slice(place, place + 1))[0].permute(1, 2, 0).numpy()
        label = self.run.record["classes"][int(self.images.y[place])]
        return Thumbnail(f"image {number}, class {label}: {dots.describe(row)}", as_source(pixels))


def as_source(pixels: np.ndarray) -> str:
    """Pixels (H, W, C) in [0, 1] as the source of an <img>, enlarged; in grey, 1 is black."""
    shades = np.round(255 * pixels).astype(np.uint8)
    if shades.shape[2] == 1:
        shades = np.repeat(255 - shades, 3, axis=2)
    times = max(1, round(THUMBNAIL_SIDE / min(shades.shape[:2])))
    buffer = io.BytesIO()
    Image.fromarray(shades.repeat(times, axis=0).repeat(times, axis=1)).save(buffer, "png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
