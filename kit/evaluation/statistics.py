"""All the statistics of the kit: intervals, paired differences, means over seeds and images."""

from __future__ import annotations

import math

import numpy as np


def wilson(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    share, square = successes / n, z * z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def paired_difference(broken_a: np.ndarray, broken_b: np.ndarray) -> tuple[float, float, float]:
    """(accuracy of b minus accuracy of a, low, high) on the same images, 95 % (normal, of the
    paired differences).
    """
    difference = broken_a.astype(float) - broken_b.astype(float)
    half = 1.959964 * difference.std(ddof=1) / math.sqrt(len(difference))
    return (
        float(difference.mean()),
        float(difference.mean() - half),
        float(difference.mean() + half),
    )


def grand_mean(right: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) of `right` (seeds, images) bool, 95 %: of other seeds and other images of
    the same kind.

    One seed: Wilson's interval over the images. Several: normal, with the variance of the seeds'
    means over their number plus the variance of the images' means over theirs (which counts the
    noise of single cells twice: rather wide than narrow). With three seeds the first part is itself
    uncertain; read close calls with care.
    """
    seeds, n = right.shape
    mean = float(right.mean())
    if seeds == 1:
        return mean, *wilson(int(right.sum()), n)
    half = 1.959964 * math.sqrt(
        right.mean(axis=1).var(ddof=1) / seeds + right.mean(axis=0).var(ddof=1) / n
    )
    return mean, max(0.0, mean - half), min(1.0, mean + half)
