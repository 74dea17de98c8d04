"""The kit's one module of statistics: by hand, by SciPy, and nowhere else."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from kit.evaluation import statistics as st

KIT = Path(st.__file__).parents[1]


def test_no_other_module_has_an_interval_of_its_own():
    """Neither the normal quantile nor a correlation of SciPy's outside this module."""
    for path in KIT.rglob("*.py"):
        if path != Path(st.__file__):
            text = path.read_text()
            assert not re.search(r"1\.9(6\b|5996)", text), path
            if "figures" in path.parts:
                assert not re.search(r"spearmanr|pearsonr|\bdef bootstrap|ddof=1\) / ", text), path


def test_shares():
    hit = np.array([True] * 3 + [False] * 17)
    found = st.share_with_interval(hit)
    assert (found["k"], found["n"], found["share"]) == (3, 20, 0.15)
    assert (found["low"], found["high"]) == st.wilson(3, 20)
    assert st.share_with_interval(np.zeros(0, bool)) == {
        "k": 0,
        "n": 0,
        "share": 0.0,
        "low": 0.0,
        "high": 1.0,
    }
    variance = 0.3 * 0.7 / 50 + 0.5 * 0.5 / 50
    assert st.two_standard_errors(0.3, 0.5, 50) == pytest.approx(2 * math.sqrt(variance))


def test_the_mean_of_differences_is_the_paired_difference():
    a, b = np.random.default_rng(0).random((2, 40)) < 0.5
    difference = a.astype(float) - b
    assert st.paired_difference(a, b) == st.mean_interval(difference)
    assert st.grand_difference(~a[None], ~b[None]) == st.paired_difference(a, b)
    error = stats.sem(difference)
    assert st.mean_interval(difference) == pytest.approx(
        (
            difference.mean(),
            difference.mean() - st.Z_95 * error,
            difference.mean() + st.Z_95 * error,
        )
    )
    assert stats.norm.ppf(0.975) == pytest.approx(st.Z_95, abs=1e-6)


def test_rank_correlations_are_scipys():
    random = np.random.default_rng(0)
    a, b = random.integers(0, 6, 50), random.normal(size=50)
    expected = stats.spearmanr(a, b)
    assert st.spearman(a, b) == pytest.approx((expected.statistic, expected.pvalue))
    assert st.rank_correlation(a, b) == pytest.approx(expected.statistic)
    constant = np.ones(50)
    assert math.isnan(st.spearman(a, constant)[0]) and st.spearman(a, constant)[1] == 1
    assert math.isnan(st.rank_correlation(constant, b))


def test_a_bootstrapped_mean_is_near_the_normal_interval():
    values = np.random.default_rng(1).normal(size=400)
    middle, low, high = st.bootstrap_interval(lambda rows: float(values[rows].mean()), 400)
    assert (middle, low, high) == pytest.approx(st.mean_interval(values), abs=0.02)
    assert st.bootstrap_interval(lambda rows: float(values[rows].mean()), 400) == (
        middle,
        low,
        high,
    )
    assert all(map(math.isnan, st.bootstrap_interval(lambda rows: 0.0, 2)))


def test_rank_correlations_of_columns_are_scipys():
    random = np.random.default_rng(3)
    columns = np.column_stack([random.normal(size=40), random.integers(0, 4, 40), np.ones(40)])
    values = columns[:, 0] + random.normal(size=40)
    values[:2] = np.inf  # what an attack did not find ranks highest
    found = st.rank_correlations(columns, values)
    for k in (0, 1):
        assert found[k] == pytest.approx(stats.spearmanr(columns[:, k], values).statistic)
    assert math.isnan(found[2])
    assert np.isnan(st.rank_correlations(columns[:2], values[:2])).all()


def test_the_bootstrap_over_seeds_knows_both_sources():
    """Means of 5 seeds and 200 images: with the seeds' spread alone, and with the images'.

    One statement more makes the interval wider, and one seed has the images' spread alone.
    """
    random = np.random.default_rng(4)
    seed_effect, noise = random.normal(size=5), random.normal(size=(5, 200))

    def half(values: np.ndarray, **options: int) -> float:
        seeds, n = values.shape
        middle, low, high = st.bootstrap_over_seeds(
            lambda seed, rows: float(values[seed][rows].mean()), seeds, n, **options
        )
        assert middle == pytest.approx(values.mean()) and low <= middle <= high
        return (high - low) / 2

    flat = np.repeat(seed_effect[:, None], 200, axis=1)
    between = math.sqrt(seed_effect.var() / 5)
    assert half(flat) == pytest.approx(st.Z_95 * between, rel=0.15)
    shared = np.repeat(noise[:1], 5, axis=0)
    assert half(shared) == pytest.approx(st.Z_95 * noise[0].std() / math.sqrt(200), rel=0.15)
    assert half(noise[:1]) == pytest.approx(half(shared), rel=0.1)
    assert half(noise, statements=3) > 1.1 * half(noise)
    assert all(math.isnan(v) for v in st.interval_of_draws(0.0, np.full(9, np.nan)))
