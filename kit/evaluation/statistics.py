"""Intervals, paired differences, bootstrap and rank correlations, one of each for the whole kit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

# SciPy is imported where ranks and quantiles are computed: `kit.evaluate` needs none of it, and the
# import takes longer than a small evaluation.

#: The 97.5 % point of the normal distribution: 95 % intervals reach so many standard errors.
Z_95 = 1.959964

#: Draws of a bootstrap, and orders of a permutation test.
BOOTSTRAP_DRAWS, PERMUTATIONS = 1000, 4999

#: (estimate, low, high): a number with its 95 % interval.
Interval = tuple[float, float, float]


# -------------------------------------------------------------------------------- shares and counts


def wilson(successes: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """95 % interval of a share; (0, 1) for n = 0.

    Source: Wilson, 1927.
    """
    if n == 0:
        return 0.0, 1.0
    share, square = successes / n, z * z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def share_with_interval(hit: np.ndarray) -> dict[str, float]:
    """Count of `hit` (n,) bool as {k, n, share, low, high}, with Wilson's interval."""
    k, n = int(hit.sum()), len(hit)
    low, high = wilson(k, n)
    return {"k": k, "n": n, "share": k / max(n, 1), "low": low, "high": high}


def ratio_interval(several: int, one: int) -> Interval:
    """Ratio several / one, from Wilson's interval for the share; NaN and (0, inf) for 0 of 0."""
    n = several + one
    if n == 0:
        return float("nan"), 0.0, float("inf")
    low, high = wilson(several, n)
    odds = [
        share / (1 - share) if share < 1 else float("inf") for share in (several / n, low, high)
    ]
    return odds[0], odds[1], odds[2]


def two_standard_errors(share_a: float, share_b: float, n: int) -> float:
    """Twice the standard error of the difference of two independent shares, each of n images."""
    return 2 * math.sqrt((share_a * (1 - share_a) + share_b * (1 - share_b)) / n)


# ----------------------------------------------------------------------------- means, normal theory


def mean_interval(values: np.ndarray) -> Interval:
    """Mean of `values` (n,), 95 %, normal; infinitely wide for one value, which shows no spread."""
    half = _half_width(values) if len(values) > 1 else float("inf")
    return _around(values.mean(), half)


def paired_difference(broken_a: np.ndarray, broken_b: np.ndarray) -> Interval:
    """Accuracy of b minus accuracy of a on the same images, 95 % (normal, of the differences)."""
    difference = broken_a.astype(float) - broken_b.astype(float)
    return _around(difference.mean(), _half_width(difference))


def grand_mean(right: np.ndarray) -> Interval:
    """Mean of `right` (seeds, images) bool, 95 %: of other seeds and images of the same kind.

    One seed: Wilson's interval over the images. Several: normal, with the variance of the seeds'
    means over their number plus the variance of the images' means over theirs (which counts the
    noise of single cells twice: rather wide than narrow). With three seeds the first part is itself
    uncertain; read close calls with care.
    """
    seeds, n = right.shape
    mean = float(right.mean())
    if seeds == 1:
        return mean, *wilson(int(right.sum()), n)
    half = _grand_half_width(right)
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def grand_difference(right_a: np.ndarray, right_b: np.ndarray) -> Interval:
    """Accuracy of b minus that of a, 95 %, of (seeds, images) bool on the same seeds and images.

    One seed: of these two networks on other images. Several: of other seeds and images, with the
    variance of `grand_mean`.
    """
    if len(right_a) == 1:
        return paired_difference(~right_a[0], ~right_b[0])
    difference = right_b.astype(float) - right_a
    return _around(difference.mean(), _grand_half_width(difference))


def contrast_interval(groups: Sequence[np.ndarray], shares: np.ndarray) -> Interval:
    """Σ share x group mean, 95 % (normal, groups independent).

    NaN where a group whose share is not 0 has fewer than two values.
    """
    used = [(share, group) for share, group in zip(shares, groups, strict=True) if share]
    if any(len(group) < 2 for _, group in used):
        return math.nan, math.nan, math.nan
    value = sum(share * group.mean() for share, group in used)
    half = Z_95 * math.sqrt(sum(share**2 * group.var(ddof=1) / len(group) for share, group in used))
    return _around(value, half)


def _half_width(values: np.ndarray) -> float:
    return Z_95 * values.std(ddof=1) / math.sqrt(len(values))


def _grand_half_width(values: np.ndarray) -> float:
    """Of (seeds, images): the variances of both means over their numbers are added."""
    seeds, images = values.shape
    return Z_95 * math.sqrt(
        values.mean(axis=1).var(ddof=1) / seeds + values.mean(axis=0).var(ddof=1) / images
    )


def _around(middle: float, half: float) -> Interval:
    return float(middle), float(middle - half), float(middle + half)


# ------------------------------------------------------------------------ whatever the distribution


def median_interval(values: np.ndarray) -> Interval:
    """Median, 95 % between order statistics; below n = 6 the interval is the range."""
    from scipy import stats

    ordered, n = np.sort(values), len(values)
    below = int(stats.binom.ppf(0.025, n, 0.5))
    return (
        float(np.median(ordered)),
        float(ordered[max(below - 1, 0)]),
        float(ordered[min(n - below, n - 1)]),
    )


def bootstrap_interval(statistic: Callable[[np.ndarray], float], n: int) -> Interval:
    """`statistic` of all n rows, 95 % over draws of n rows with replacement from a fixed seed.

    `statistic` takes row numbers. NaN for fewer than three rows, and where the statistic is no
    number.
    """
    if n < 3:
        return float("nan"), float("nan"), float("nan")
    random = np.random.default_rng(0)
    draws = [statistic(random.integers(0, n, n)) for _ in range(BOOTSTRAP_DRAWS)]
    found = [value for value in draws if np.isfinite(value)] or [float("nan")]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(statistic(np.arange(n))), float(low), float(high)


# ------------------------------------------------------------------------------------- correlations


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation; NaN where either is constant."""
    spread = a.std() * b.std()
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread > 0 else float("nan")


def correlation_interval(a: np.ndarray, b: np.ndarray) -> Interval:
    """Pearson's correlation, 95 %, see `bootstrap_interval`."""
    return bootstrap_interval(lambda rows: pearson(a[rows], b[rows]), len(a))


def spearman(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """(Spearman's rank correlation, two-sided p); (NaN, 1) where either is constant."""
    from scipy import stats

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan, 1.0
    found = stats.spearmanr(a, b)
    return float(found.statistic), float(found.pvalue)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation, quick enough for a bootstrap; NaN where either is constant."""
    from scipy.stats import rankdata

    return pearson(rankdata(a), rankdata(b))


def rank_correlations(columns: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each column of (n, k) with `values` (n,), (k,).

    NaN where a column or the values are constant, and for fewer than three rows.
    """
    from scipy.stats import rankdata

    if len(values) < 3:
        return np.full(columns.shape[1], math.nan)
    ranks = rankdata(np.column_stack([columns, values]), axis=0)
    ranks -= ranks.mean(axis=0)
    squares = (ranks**2).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return ranks[:, :-1].T @ ranks[:, -1] / np.sqrt(squares[:-1] * squares[-1])


def rank_trend(x: np.ndarray, accuracy: np.ndarray) -> tuple[float | None, float]:
    """(Spearman's ρ, two-sided p) of x (values,) and accuracy (values, seeds).

    Each seed's mean is taken off its accuracies. The test permutes each seed's values: networks are
    shuffled, not images, so the noise of training counts. It is (None, 1) for fewer than three
    values or accuracies that are all equal.
    """
    from scipy.stats import rankdata

    centred = np.round(accuracy - accuracy.mean(axis=0), 9)
    if len(x) < 3 or np.ptp(centred) == 0:
        return None, 1.0
    ranks = rankdata(centred).reshape(centred.shape)
    rho, _ = spearman(np.repeat(x, centred.shape[1]), centred.ravel())
    away = rankdata(x) - (len(x) + 1) / 2
    shuffled = np.random.default_rng(0).permuted(
        np.broadcast_to(ranks, (PERMUTATIONS, *ranks.shape)), axis=1
    )
    there = np.abs(np.einsum("v,pvs->p", away, shuffled))
    here = abs(float(away @ ranks.sum(axis=1)))
    return rho, float((1 + (there >= here - 1e-9).sum()) / (1 + PERMUTATIONS))


# -------------------------------------------------------------------------------- several seeds


def draw_over_seeds(
    statistic: Callable[[int, np.ndarray], np.ndarray | float], seeds: int, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of `statistic` over the seeds, (k,), and that of each draw of a bootstrap, (draws, k).

    `statistic` takes the number of a seed and row numbers of the n images that the seeds share, and
    returns one number or k. Seeds and images are drawn with replacement, from a fixed seed; each
    image for all seeds alike. With one seed images alone are drawn.
    """

    def mean(chosen: Iterable[int], rows: np.ndarray) -> np.ndarray:
        return np.mean([np.atleast_1d(statistic(seed, rows)) for seed in chosen], axis=0)

    random = np.random.default_rng(0)
    draws = [
        mean(random.integers(0, seeds, seeds).tolist(), random.integers(0, n, n))
        for _ in range(BOOTSTRAP_DRAWS)
    ]
    return mean(range(seeds), np.arange(n)), np.stack(draws)


def interval_of_draws(value: float, draws: np.ndarray, *, statements: int = 1) -> Interval:
    """`value` with the middle 95 % of those `draws` that are numbers.

    `statements` that are tested together share the 5 % (Bonferroni).
    """
    found = draws[np.isfinite(draws)]
    if not len(found):
        return math.nan, math.nan, math.nan
    low, high = np.percentile(found, [2.5 / statements, 100 - 2.5 / statements])
    return float(value), float(low), float(high)


def bootstrap_over_seeds(
    statistic: Callable[[int, np.ndarray], float], seeds: int, n: int, *, statements: int = 1
) -> Interval:
    """Mean of `statistic` over the seeds, 95 % over other seeds and images: `draw_over_seeds`."""
    value, draws = draw_over_seeds(statistic, seeds, n)
    return interval_of_draws(value[0], draws[:, 0], statements=statements)
