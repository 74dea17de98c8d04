"""Projections, ascent directions and norms, at points drawn at random."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.core import tensors
from kit.core.threat import Threat
from tests.helpers.attack_problems import (
    NORMS,
    random,
)

quick = settings(deadline=None, max_examples=100, derandomize=True, database=None)


@st.composite
def points(draw, size: int = 6):
    """(x_adv, x, threat):

    clean pixels in the box, some at its walls, a point anywhere, and a radius from 0.
    """
    pixel = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0]))
    x = torch.tensor(draw(st.lists(pixel, min_size=size, max_size=size)), dtype=torch.float64)
    far = torch.tensor(
        draw(st.lists(st.floats(-3, 4), min_size=size, max_size=size)), dtype=torch.float64
    )
    near = draw(st.sampled_from([1.0, 0.1, 1e-3, 0.0]))
    threat = Threat(
        draw(st.sampled_from(NORMS)), draw(st.sampled_from([0.0, 1e-6, 8 / 255, 0.3, 1.5, 10.0]))
    )
    return (x + near * (far - x)).view(1, 1, 2, 3), x.view(1, 1, 2, 3), threat


@quick
@given(points())
def test_projection_lands_in_the_ball_and_in_the_box_and_stays(case):
    x_adv, x, threat = case
    got = tensors.project(x_adv, x, threat)
    assert float(tensors.norm(got - x, threat.norm)) <= threat.eps + 1e-9
    assert float(got.min()) >= 0 and float(got.max()) <= 1
    torch.testing.assert_close(tensors.project(got, x, threat), got, rtol=0, atol=1e-9)


@quick
@given(points())
def test_projection_leaves_allowed_points_alone(case):
    x_adv, x, threat = case
    inside = x_adv.clamp(0, 1)
    delta = inside - x
    inside = x + delta * min(
        1.0, 0.999 * threat.eps / max(float(tensors.norm(delta, threat.norm)), 1e-12)
    )
    torch.testing.assert_close(tensors.project(inside, x, threat), inside, rtol=0, atol=1e-12)


@quick
@given(points(), points())
def test_projection_is_the_nearest_allowed_point(case, other):
    """No other allowed point is nearer: always in L-inf, and in L2 where the box does not bind."""
    x_adv, x, threat = case
    got = tensors.project(x_adv, x, threat)
    rival = tensors.project(other[0], x, threat)
    unboxed = x + (x_adv - x) * min(1.0, threat.eps / max(float((x_adv - x).norm()), 1e-12))
    if threat.norm == "linf" or bool(((unboxed >= 0) & (unboxed <= 1)).all()):
        assert float((got - x_adv).norm()) <= float((rival - x_adv).norm()) + 1e-9


def test_projection_in_single_precision_stays_in_the_ball():
    x, x_adv = (
        random(50, 1, 4, 4, dtype=torch.float32),
        3 * random(50, 1, 4, 4, seed=1, dtype=torch.float32) - 1,
    )
    for norm in NORMS:
        got = tensors.project(x_adv, x, Threat(norm, 8 / 255))
        assert bool((tensors.norm(got - x, norm) <= 8 / 255 + 1e-6).all())
        assert bool((tensors.norm(got - x, norm) > 4 / 255).all()), "and no shorter than it must be"


@quick
@given(
    st.lists(st.floats(-1, 1), min_size=4, max_size=4),
    st.lists(st.floats(-1, 1), min_size=4, max_size=4),
    st.sampled_from([1e-25, 1e-15, 1e-6, 1.0, 1e6]),
    st.sampled_from(NORMS),
)
def test_ascent_direction_is_steepest_and_of_unit_length(gradient, other, scale, norm):
    """However small the gradient is; and a gradient of zero moves nothing."""
    g = torch.tensor(gradient, dtype=torch.float64).round(decimals=3).view(1, 1, 2, 2) * scale
    direction = tensors.ascent_direction(g, norm)
    if not bool(g.any()):
        assert not bool(direction.any())
        return
    assert float(tensors.norm(direction, norm)) == pytest.approx(1)
    rival = torch.tensor(other, dtype=torch.float64).view(1, 1, 2, 2)
    rival = rival / tensors.norm(rival, norm).clamp_min(1)
    assert float((g * direction).sum()) >= float((g * rival).sum()) - 1e-9 * scale


@pytest.mark.parametrize("norm", NORMS)
def test_no_gradient_no_step(norm):
    """Alone in a batch with others."""
    g = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    assert tensors.ascent_direction(g, norm)[0].tolist() == [[[0, 0], [0, 0]]]
    assert float(tensors.norm(tensors.ascent_direction(g, norm), norm)[1]) == pytest.approx(1)


def test_norms():
    delta = torch.tensor([[3.0, -4.0], [0.0, 0.0]]).view(2, 1, 1, 2)
    assert tensors.norm(delta, "linf").tolist() == [4, 0] and tensors.norm(
        delta, "l2"
    ).tolist() == [5, 0]
