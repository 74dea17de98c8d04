"""How often the kit's 95 % intervals hold the truth: every kind, on data whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from kit.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    bootstrap_over_seeds,
    combine_seeds,
    contrast_interval,
    correlation_interval,
    grand_difference,
    grand_mean,
    mean_interval,
    median_interval,
    paired_difference,
    ratio_interval,
    spearman_interval,
    wilson,
)

#: One experiment: given a generator, an interval and the truth that it is about.
Experiment = Callable[[np.random.Generator], tuple[Interval, float]]


def measure_coverage(simulations: int = 1000) -> pd.DataFrame:
    """Simulate every interval; one row a case, with how often it held the truth.

    Columns: interval, case, coverage, error (the standard error of the coverage). Nominal is 0.95.
    """
    rows = []
    for interval, case, experiment in experiments():
        random = np.random.default_rng(0)
        held = 0
        for _ in range(simulations):
            (_, low, high), truth = experiment(random)
            held += low <= truth <= high
        share = held / simulations
        error = math.sqrt(max(share * (1 - share), 0.25 / simulations) / simulations)
        rows.append({"interval": interval, "case": case, "coverage": share, "error": error})
    return pd.DataFrame(rows)


def experiments() -> Iterator[tuple[str, str, Experiment]]:
    """Yield (interval, case in words, experiment)."""
    for n, p in ((50, 0.02), (100, 0.5), (497, 0.1), (2000, 0.35)):
        yield "share", f"n = {n}, p = {p}", _share(n, p)
    yield "ratio", "n = 200, 60 % several", _odds(200, 0.6)
    for n, lost, won in ((50, 0.02, 0.02), (497, 0.005, 0.0), (497, 0.03, 0.01), (2000, 0.1, 0.1)):
        yield "paired difference", f"n = {n}, {lost:.1%} lost, {won:.1%} won", _pairs(n, lost, won)
    for seeds in (1, 3, 5):
        yield "accuracy over seeds", f"{seeds} seeds, 300 images", _seeds(seeds, 300)
        yield "difference over seeds", f"{seeds} seeds, 300 images", _seed_gap(seeds, 300)
    for seeds in (3, 5):
        yield "estimates of seeds combined", f"{seeds} seeds, 300 images", _combined(seeds, 300)
        yield "mean of seeds", f"{seeds} values", _mean_of_seeds(seeds)
        yield "bootstrap over seeds", f"{seeds} seeds, 100 images", _bootstrap_seeds(seeds, 100)
    yield "contrast of classes", "10 classes of 50 images", _contrast(10, 50)
    yield "median", "n = 40", _median(40)
    yield "correlation (bootstrap)", "n = 200, r = 0.7", _correlation(200, 0.7)
    yield "mean (bootstrap)", "n = 100", _bootstrap_mean(100)
    yield "rank correlation", "n = 30, ρ near 0.6", _ranks(30, 0.6)


def _share(n: int, p: float) -> Experiment:
    def experiment(random: np.random.Generator) -> tuple[Interval, float]:
        hits = int(random.binomial(n, p))
        return (hits / n, *wilson(hits, n)), p

    return experiment


def _odds(n: int, p: float) -> Experiment:
    def experiment(random: np.random.Generator) -> tuple[Interval, float]:
        several = int(random.binomial(n, p))
        return ratio_interval(several, n - several), p / (1 - p)

    return experiment


def _pairs(n: int, lost: float, won: float) -> Experiment:
    """Two networks on n images, of which b loses and wins some shares."""

    def experiment(random: np.random.Generator) -> tuple[Interval, float]:
        kind = random.random(n)
        broken_a = (kind < won) | (kind > 0.6)
        broken_b = (kind >= won) & (kind < won + lost) | (kind > 0.6)
        return paired_difference(broken_a, broken_b), won - lost

    return experiment


#: Spread of images, of a network on an image, and of networks, in a probit model of being right.
IMAGES, CELLS, NETWORKS = 1.0, 0.5, 0.15


def _draw_right(
    random: np.random.Generator, images: np.ndarray, seeds: int, level: float
) -> np.ndarray:
    """(seeds, images) bool of networks of one kind on the same images."""
    networks = random.normal(0, NETWORKS, (seeds, 1))
    return images + networks + random.normal(0, CELLS, (seeds, len(images))) + level > 0


def _true_share(level: float) -> float:
    spread = math.sqrt(IMAGES**2 + CELLS**2 + NETWORKS**2)
    return 0.5 * (1 + math.erf(level / spread / math.sqrt(2)))


def _seeds(seeds: int, n: int) -> Experiment:
    """One seed says nothing of other seeds: its truth is that of its own network."""

    def experiment(random: np.random.Generator) -> tuple[Interval, float]:
        images = random.normal(0, IMAGES, n)
        if seeds > 1:
            return grand_mean(_draw_right(random, images, seeds, 0.3)), _true_share(0.3)
        truth = 0.5 * (1 + math.erf(0.3 / math.hypot(IMAGES, CELLS) / math.sqrt(2)))
        right = images + random.normal(0, CELLS, (1, n)) + 0.3 > 0
        return grand_mean(right), truth

    return experiment


def _seed_gap(seeds: int, n: int) -> Experiment:
    def experiment(random: np.random.Generator) -> tuple[Interval, float]:
        images = random.normal(0, IMAGES, n)
        if seeds > 1:
            a, b = (_draw_right(random, images, seeds, level) for level in (0.0, 0.3))
            return grand_difference(a, b), _true_share(0.3) - 0.5
        truth = 0.5 * math.erf(0.3 / math.hypot(IMAGES, CELLS) / math.sqrt(2))
        a, b = (images + random.normal(0, CELLS, (1, n)) + level > 0 for level in (0.0, 0.3))
        return grand_difference(a, b), truth

    return experiment


def _combined(seeds: int, n: int) -> Experiment:
    def experiment(random: np.random.Generator) -> tuple[Interval, float]:
        images = random.normal(0, IMAGES, n)
        a, b = (_draw_right(random, images, seeds, level) for level in (0.0, 0.3))
        found = [paired_difference(~one, ~other) for one, other in zip(a, b, strict=True)]
        return combine_seeds(found), _true_share(0.3) - 0.5

    return experiment


def _mean_of_seeds(seeds: int) -> Experiment:
    return lambda random: (mean_interval(random.normal(0.4, 0.03, seeds)), 0.4)


def _contrast(classes: int, n: int) -> Experiment:
    """The gain of the first three classes above the mean gain."""
    gains = np.where(np.arange(classes) < 3, 0.1, 0.02)
    shares = np.where(np.arange(classes) < 3, 1 / 3, 0.0) - 1 / classes

    def experiment(random: np.random.Generator) -> tuple[Interval, float]:
        groups = [(random.random(n) < gain).astype(float) for gain in gains]
        return contrast_interval(groups, shares), float(shares @ gains)

    return experiment


def _median(n: int) -> Experiment:
    return lambda random: (median_interval(random.exponential(1.0, n)), math.log(2))


def _correlation(n: int, r: float) -> Experiment:
    def experiment(random: np.random.Generator) -> tuple[Interval, float]:
        a = random.normal(size=n)
        b = r * a + math.sqrt(1 - r * r) * random.normal(size=n)
        return correlation_interval(a, b), r

    return experiment


def _bootstrap_mean(n: int) -> Experiment:
    def experiment(random: np.random.Generator) -> tuple[Interval, float]:
        values = random.normal(size=n)
        return bootstrap_interval(lambda rows: float(values[rows].mean()), n), 0.0

    return experiment


def _bootstrap_seeds(seeds: int, n: int) -> Experiment:
    def experiment(random: np.random.Generator) -> tuple[Interval, float]:
        values = random.normal(0, 0.1, (seeds, 1)) + random.normal(size=n)
        return bootstrap_over_seeds(lambda k, rows: float(values[k][rows].mean()), seeds, n), 0.0

    return experiment


def _ranks(n: int, r: float) -> Experiment:
    from scipy.stats import spearmanr

    def experiment(random: np.random.Generator) -> tuple[Interval, float]:
        a = random.normal(size=n)
        b = r * a + math.sqrt(1 - r * r) * random.normal(size=n)
        truth = 6 / math.pi * math.asin(r / 2)
        return spearman_interval(float(spearmanr(a, b).statistic), n), truth

    return experiment
