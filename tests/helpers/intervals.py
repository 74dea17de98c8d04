"""The kit's intervals once more, in plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import stats


def paired(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of differences of n images, and of two invented ones, 1 and -1."""
    more = [*map(float, differences), 1.0, -1.0]
    centre = sum(more) / len(more)
    half = 1.959964 * math.sqrt(sum((d - centre) ** 2 for d in more)) / len(more)
    return sum(differences) / len(differences), centre - half, centre + half


def over_seeds(differences: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """The same of several seeds: Student's t for their means, added in quadrature."""
    seeds = len(differences)
    means = [sum(row) / len(row) for row in differences]
    images = [sum(column) / seeds for column in zip(*differences, strict=True)]
    mean, low, high = paired(images)
    spread = math.sqrt(sum((m - mean) ** 2 for m in means) / (seeds - 1))
    of_seeds = stats.t.ppf(0.975, seeds - 1) * spread / math.sqrt(seeds)
    half = math.hypot((high - low) / 2, of_seeds)
    return mean, (low + high) / 2 - half, (low + high) / 2 + half
