"""The kit's one module of statistics: by hand, by SciPy, and nowhere else."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from kit.evaluation import statistics as st
from kit.evaluation.coverage import experiments, measure_coverage
from tests.helpers.intervals import paired

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


def test_the_mean_of_differences_is_the_paired_difference():
    a, b = np.random.default_rng(0).random((2, 40)) < 0.5
    difference = a.astype(float) - b
    assert st.paired_difference(a, b) == st.difference_interval(difference)
    assert st.grand_difference(~a[None], ~b[None]) == st.paired_difference(a, b)
    error = stats.sem(difference)
    assert st.mean_interval(difference) == pytest.approx(
        (
            difference.mean(),
            difference.mean() - stats.t.ppf(0.975, 39) * error,
            difference.mean() + stats.t.ppf(0.975, 39) * error,
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


def test_a_few_images_or_none_that_differ_are_no_certainty():
    """Two networks alike on all 50 images: other images may well tell them apart."""
    same = np.zeros(50, bool)
    middle, low, high = st.paired_difference(same, same)
    assert middle == 0 and low < -0.02 and high > 0.02
    one = same.copy()
    one[3] = True
    middle, low, high = st.paired_difference(same, one)
    assert middle == -1 / 50 and low < -0.06 and high > 0, "one image decides nothing"


@pytest.mark.parametrize("n", [50, 497])
def test_paired_differences_are_held_as_often_as_said(n):
    """Simulated for 20,000 pairs at once; Wald's interval held 0.81 and 0.87 of them."""
    dice = np.random.default_rng(0)
    for lost, won in ((0.02, 0.0), (0.005, 0.0), (0.002, 0.002), (0.03, 0.01), (0.3, 0.1)):
        counts = dice.multinomial(n, [won, lost, 1 - won - lost], 20_000)
        kinds, times = np.unique(counts, axis=0, return_counts=True)
        held = 0
        for (up, down, same), count in zip(kinds, times, strict=True):
            differences = np.repeat([1.0, -1.0, 0.0], [up, down, same])
            _, low, high = st.difference_interval(differences)
            held += count * (low <= won - lost <= high)
        assert held / 20_000 > 0.94, (lost, won)


def test_seeds_and_images_both_widen_an_interval():
    alike = [(0.2, 0.1, 0.3)] * 3
    assert st.combine_seeds(alike) == pytest.approx((0.2, 0.1, 0.3))
    assert st.combine_seeds(alike[:1]) == pytest.approx((0.2, 0.1, 0.3))
    values = np.array([0.1, 0.2, 0.3])
    no_images = [(v, v, v) for v in values]
    assert st.combine_seeds(no_images) == pytest.approx(st.mean_interval(values))
    both = st.combine_seeds([(v, v - 0.1, v + 0.1) for v in values])
    assert both[2] - both[0] == pytest.approx(math.hypot(st.mean_interval(values)[2] - 0.2, 0.1))
    wider = st.combine_seeds(no_images, level=0.99)
    assert wider[1] < st.combine_seeds(no_images)[1]


@pytest.mark.slow
def test_every_interval_holds_the_truth_as_often_as_it_says():
    """Of 400 simulations each; Wilson's is known to hold less near 0 and 1, the others do not."""
    found = measure_coverage(400)
    assert len(found) == len(list(experiments()))
    short = found[found["coverage"] + 3 * found["error"] < 0.95]
    assert set(short["interval"]) <= {"share"}, short
    assert found["coverage"].min() > 0.88


def test_every_interval_of_the_module_is_simulated():
    """Whoever adds an interval adds its simulation."""
    from kit.evaluation import coverage

    named = {
        name
        for name, value in vars(st).items()
        if callable(value)
        and getattr(value, "__annotations__", {}).get("return") == "Interval"
        and not name.startswith("_")
    }
    # what `paired_difference`, `grand_difference` and `bootstrap_over_seeds` are made of
    parts = {"difference_interval", "grand_contrast", "interval_of_draws"}
    assert named - parts <= set(vars(coverage))


def test_a_contrast_is_a_difference_of_weighted_accuracies():
    """With shares -1 and 1 it is `grand_difference`; of one seed the images alone are counted."""
    dice = np.random.default_rng(1)
    a, b, c = (dice.random((3, 40)) < share for share in (0.4, 0.6, 0.7))
    assert st.grand_contrast([a, b], [-1, 1]) == st.grand_difference(a, b)
    mean, low, high = st.grand_contrast([a, b, c], [-1, 0.5, 0.5])
    assert mean == pytest.approx((b.mean() + c.mean()) / 2 - a.mean()) and low < mean < high
    each = (b[0].astype(float) + c[0]) / 2 - a[0]
    found = st.grand_contrast([a[:1], b[:1], c[:1]], [-1, 0.5, 0.5])
    assert found == pytest.approx(paired(each))


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
    between = stats.t.ppf(0.975, 4) * seed_effect.std(ddof=1) / math.sqrt(5)
    assert half(flat) == pytest.approx(between, rel=0.15)
    shared = np.repeat(noise[:1], 5, axis=0)
    assert half(shared) == pytest.approx(st.Z_95 * noise[0].std() / math.sqrt(200), rel=0.15)
    assert half(noise[:1]) == pytest.approx(half(shared), rel=0.1)
    assert half(noise, statements=3) > 1.1 * half(noise)
    assert all(math.isnan(v) for v in st.interval_of_draws(0.0, np.full(9, np.nan)))
