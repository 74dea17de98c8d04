"""Criteria of predictions drawn at random: ranges, order and sign."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.methods import criteria

quick = settings(deadline=None, max_examples=80, derandomize=True, database=None)


@st.composite
def predictions(draw):
    """(probs (N, K), y):

    softmaxes from nearly uniform to saturated, with rounding so that ties happen.
    """
    k, n = draw(st.integers(2, 12)), draw(st.integers(1, 6))
    scale, digits = draw(st.sampled_from([0.1, 1.0, 5.0, 60.0])), draw(st.sampled_from([1, 6]))
    numbers = draw(st.lists(st.floats(-1, 1), min_size=n * k, max_size=n * k))
    logits = torch.tensor([scale * round(v, digits) for v in numbers], dtype=torch.float64).view(
        n, k
    )
    y = torch.tensor(draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n)))
    return logits.softmax(dim=1), y


@quick
@given(predictions())
def test_margins_stay_in_range_and_order(batch):
    probs, y = batch
    margin, confused = (
        criteria.probabilistic_margin(probs, y),
        criteria.confused_label_margin(probs, y),
    )
    count = criteria.confused_labels(probs, y)
    for value in (margin, confused):
        assert bool((value >= -1 - 1e-12).all()) and bool((value <= 1 + 1e-12).all())
    assert torch.equal(margin < 0, count > 0) and bool((count < probs.shape[1]).all())
    assert bool((confused <= margin + 1e-12).all())
    torch.testing.assert_close(confused[count <= 1], margin[count <= 1], rtol=0, atol=1e-12)
    clear = (probs - probs.gather(1, y[:, None]) > 1e-9).sum(dim=1) >= 2
    assert bool((confused[clear] < margin[clear]).all())


@quick
@given(predictions())
def test_ratio_and_similarity_stay_in_range(batch):
    probs, y = batch
    o, c = criteria.top2_ratio(probs, y), criteria.true_class_similarity(probs, y)
    assert bool((o >= 1 / (probs.shape[1] - 1) - 1e-12).all()) and bool((o <= 1 + 1e-12).all())
    assert bool((c >= 0).all()) and bool((c <= 1 + 1e-12).all())


@quick
@given(predictions(), st.floats(2, 6), st.booleans())
def test_reweighting_keeps_the_margins_sign(batch, tau, similarity):
    probs, y = batch
    plain = criteria.probabilistic_margin(probs, y)
    scaled = criteria.reweighted_margin(probs, y, tau=tau, similarity=similarity)
    assert bool((scaled * plain >= 0).all())
    assert bool((scaled.abs() <= tau * plain.abs() + 1e-12).all())


@quick
@given(predictions(), st.floats(0, 1))
def test_discrepancy_is_a_divergence(batch, t):
    """Zero against itself, not negative, and entropy lies in [0, log K]."""
    probs, _ = batch
    other = (1 - t) * probs + t * probs.flip(1)
    assert criteria.discrepancy(probs, probs).tolist() == pytest.approx([0] * len(probs), abs=1e-12)
    assert bool((criteria.discrepancy(probs, other) >= -1e-12).all())
    h = criteria.entropy(probs)
    assert bool((h >= -1e-12).all()) and bool((h <= math.log(probs.shape[1]) + 1e-12).all())


@quick
@given(predictions(), st.floats(0, 1))
def test_margin_difference_is_in_range(batch, p_flip):
    probs, y = batch
    got = criteria.margin_difference(probs, y, torch.full((len(y),), p_flip, dtype=torch.float64))
    assert got.tolist() == pytest.approx(
        [p[t] - p_flip for p, t in zip(probs.tolist(), y.tolist(), strict=True)]
    )
    assert bool((got.abs() <= 1).all())
