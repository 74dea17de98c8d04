"""Intervals, paired differences, bootstrap and rank correlations, one of each for the whole kit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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


# ------------------------------------------------------------------------- means over images, seeds


def mean_interval(values: np.ndarray) -> Interval:
    """Mean of `values` (n,), 95 %, by Student's t; infinitely wide for one value."""
    if len(values) < 2:
        return float(values.mean()), -math.inf, math.inf
    return _around(values.mean(), t_95(len(values)) * values.std(ddof=1) / math.sqrt(len(values)))


def t_95(n: int, level: float = 0.95) -> float:
    """How many standard errors a two-sided interval of `level` from n values reaches."""
    from scipy import stats

    return float(stats.t.ppf((1 + level) / 2, n - 1))


def paired_difference(broken_a: np.ndarray, broken_b: np.ndarray) -> Interval:
    """Accuracy of b minus accuracy of a on the same images, 95 %, see `difference_interval`."""
    return difference_interval(broken_a.astype(float) - broken_b.astype(float))


def difference_interval(differences: np.ndarray) -> Interval:
    """Mean of the images' `differences` (n,), 95 %: each in [-1, 1], or of two such in [-2, 2].

    Normal, of n images and two invented ones, one for and one against. Without them a few images,
    or none, that differ would give far too narrow an interval.

    Source: Agresti and Min, 2005.
    """
    centre, half = _with_invented(differences)
    return float(differences.mean()), centre - half, centre + half


def grand_mean(right: np.ndarray) -> Interval:
    """Mean of `right` (seeds, images) bool, 95 %: of other seeds and images of the same kind.

    One seed: Wilson's interval over the images. Several: Student's t for the seeds' means and the
    normal distribution for the images' means, in quadrature. The noise of single cells is counted
    in both: rather wide than narrow.
    """
    seeds, n = right.shape
    mean = float(right.mean())
    if seeds == 1:
        return mean, *wilson(int(right.sum()), n)
    images = right.mean(axis=0)
    extended = np.append(images, [0.0, 1.0])
    half = math.hypot(_seed_half_width(right.mean(axis=1)), Z_95 * _standard_error(extended))
    centre = float(extended.mean())
    return mean, max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


def grand_difference(right_a: np.ndarray, right_b: np.ndarray) -> Interval:
    """Accuracy of b minus that of a, 95 %, of (seeds, images) bool on the same seeds and images.

    One seed: of these two networks on other images. Several: of other seeds and images, as in
    `grand_mean`.
    """
    return grand_contrast([right_a, right_b], [-1, 1])


def grand_contrast(rights: Sequence[np.ndarray], shares: Sequence[float]) -> Interval:
    """Σ share x accuracy, 95 %, of several (seeds, images) bool on the same seeds and images.

    Its interval is that of `grand_difference`, which is the contrast with shares -1 and 1. It ends
    where accuracies end: few seeds that differ widely would promise differences beyond 100 points.
    """
    parts = [share * right.astype(float) for share, right in zip(shares, rights, strict=True)]
    contrast = np.sum(parts, axis=0)
    centre, half = _with_invented(contrast.mean(axis=0))
    if len(contrast) > 1:
        half = math.hypot(_seed_half_width(contrast.mean(axis=1)), half)
    least = sum(share for share in shares if share < 0)
    most = sum(share for share in shares if share > 0)
    return float(contrast.mean()), max(least, centre - half), min(most, centre + half)


def combine_seeds(found: Sequence[Interval], level: float = 0.95) -> Interval:
    """One number of several seeds from each seed's own number and its 95 % interval over images.

    Mean over the seeds. The interval's halves add in quadrature what the seeds' spread says of
    other seeds (Student's t) and what each seed's interval says, on average, of other images, which
    the seeds share. One seed: its interval, at another level where asked for.
    """
    values, low, high = np.array(found, dtype=float).T
    middle = float(values.mean())
    seeds = _seed_half_width(values, level) if len(values) > 1 else 0.0
    wider = normal_point(level) / Z_95
    below, above = (float(part.mean()) * wider for part in (values - low, high - values))
    return middle, middle - math.hypot(seeds, below), middle + math.hypot(seeds, above)


def contrast_interval(groups: Sequence[np.ndarray], shares: np.ndarray) -> Interval:
    """Σ share x group mean of differences in [-1, 1], 95 % (normal, groups independent).

    Each group has two invented images more, as in `difference_interval`. NaN where a group whose
    share is not 0 has fewer than two values.
    """
    used = [(share, group) for share, group in zip(shares, groups, strict=True) if share]
    if any(len(group) < 2 for _, group in used):
        return math.nan, math.nan, math.nan
    extended = [(share, np.append(group, [1.0, -1.0])) for share, group in used]
    value = sum(share * group.mean() for share, group in used)
    centre = sum(share * group.mean() for share, group in extended)
    half = Z_95 * math.hypot(*(share * _standard_error(group) for share, group in extended))
    return float(value), float(centre - half), float(centre + half)


def _with_invented(differences: np.ndarray) -> tuple[float, float]:
    """Centre and half-width of differences and two invented ones, 1 and -1."""
    extended = np.append(differences, [1.0, -1.0])
    return float(extended.mean()), Z_95 * _standard_error(extended)


def _standard_error(values: np.ndarray) -> float:
    return float(values.std() / math.sqrt(len(values)))


def _seed_half_width(means: np.ndarray, level: float = 0.95) -> float:
    return t_95(len(means), level) * float(means.std(ddof=1)) / math.sqrt(len(means))


def normal_point(level: float) -> float:
    """How many standard errors a two-sided normal interval of `level` reaches."""
    from scipy import stats

    return Z_95 if level == 0.95 else float(stats.norm.ppf((1 + level) / 2))


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


def spearman_interval(rho: float | None, n: int) -> Interval:
    """95 % interval of Spearman's rank correlation of n pairs; (0, -1, 1) where there is none.

    Fisher's z with the standard error sqrt((1 + ρ² / 2) / (n - 3)).

    Source: Bonett and Wright, 2000.
    """
    if rho is None or n < 4:
        return rho or 0.0, -1.0, 1.0
    z = math.atanh(min(max(rho, -1 + 1e-9), 1 - 1e-9))
    half = Z_95 * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return rho, math.tanh(z - half), math.tanh(z + half)


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
    returns one number or k. Images are drawn with replacement, from a fixed seed, each for all
    seeds alike; the seeds are weighed as `draw_seed_weights` does.
    """
    random = np.random.default_rng(0)
    weights = draw_seed_weights(seeds, BOOTSTRAP_DRAWS)

    def of_seeds(rows: np.ndarray) -> np.ndarray:
        return np.stack([np.atleast_1d(statistic(seed, rows)) for seed in range(seeds)])

    draws = [mine @ of_seeds(random.integers(0, n, n)) for mine in weights]
    return of_seeds(np.arange(n)).mean(axis=0), np.stack(draws)


def draw_seed_weights(seeds: int, draws: int) -> np.ndarray:
    """(draws, seeds) weights of the seeds, each row's sum 1, from a fixed seed.

    The weighted mean of any values lies about their mean as Student's t says that the mean of other
    seeds would: a normal draw of the deviations over the root of a χ² of seeds - 1.
    """
    if seeds == 1:
        return np.ones((draws, 1))
    random = np.random.default_rng(1)
    deviations = random.standard_normal((draws, seeds))
    deviations -= deviations.mean(axis=1, keepdims=True)
    return 1 / seeds + deviations / np.sqrt(random.chisquare(seeds - 1, (draws, 1)) * seeds)


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
