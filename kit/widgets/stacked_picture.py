"""A wide picture on a narrow page: its columns stand one below the other, at their full size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure

#: From left to right, in pixels.
Span = tuple[int, int]

#: A picture is shrunk as far as this before its columns are stacked.
SMALLEST_SCALE = 0.85


def find_columns(figure: Figure) -> list[Span]:
    """Find the columns of a drawn figure: spans that its axes, with their labels, do not cross."""
    boxes = [box for axes in figure.axes if (box := axes.get_tightbbox()) is not None]
    joined: list[list[float]] = []
    for left, right in sorted((box.x0, box.x1) for box in boxes):
        if joined and left <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], right)
        else:
            joined.append([left, right])
    middles = [round((before[1] + after[0]) / 2) for before, after in pairwise(joined)]
    return list(pairwise([0, *middles, round(figure.bbox.width)]))


def group_columns(columns: Sequence[Span], room: float) -> list[Span]:
    """Join neighbouring columns for as long as they fit into `room` pixels side by side."""
    groups: list[Span] = []
    for left, right in columns:
        if groups and right - groups[-1][0] <= room / SMALLEST_SCALE:
            groups[-1] = (groups[-1][0], right)
        else:
            groups.append((left, right))
    return groups


def stack_columns(pixels: np.ndarray, groups: Sequence[Span]) -> np.ndarray:
    """Stack spans of a picture (height, width, 3), each filled up to the width of the widest.

    Returns:
        (height · groups, the widest span, 3).
    """
    if len(groups) == 1:
        return pixels
    widest = max(right - left for left, right in groups)
    stacked = np.full((len(pixels) * len(groups), widest, 3), pixels[0, 0], pixels.dtype)
    for row, (left, right) in enumerate(groups):
        stacked[row * len(pixels) : (row + 1) * len(pixels), : right - left] = pixels[:, left:right]
    return stacked


def place_in_stack(x: float, y: float, groups: Sequence[Span]) -> tuple[float, float]:
    """Find where a place of the whole picture lies in the stacked one; both in shares.

    It is the way back from `place_in_whole`.
    """
    pixel, widest = x * groups[-1][1], max(right - left for left, right in groups)
    row = max(number for number, (left, _) in enumerate(groups) if left <= pixel or not number)
    return (pixel - groups[row][0]) / widest, 1 - (row + 1 - y) / len(groups)


def place_in_whole(x: float, y: float, groups: Sequence[Span]) -> tuple[float, float]:
    """Find where a place of the stacked picture lies in the whole one; both in shares.

    They go from (0, 0) at the lower left to (1, 1) at the upper right.
    """
    from_top = (1 - y) * len(groups)
    row = min(max(int(from_top), 0), len(groups) - 1)
    left, widest = groups[row][0], max(right - left for left, right in groups)
    return (left + x * widest) / groups[-1][1], 1 - (from_top - row)
