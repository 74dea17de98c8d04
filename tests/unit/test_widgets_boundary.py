"""The plane under the hand:

the kit's attack step by step, margins and weights computed a second time by hand.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

import kit
from kit.core.errors import KitError
from kit.core.threat import Threat
from kit.methods.step_outputs import StepOutputs
from kit.widgets.boundary_panel import (
    WEIGHING_METHODS,
    attack_plane,
    attack_point,
    boundary,
    relative_weights,
    train_plane,
)


@pytest.fixture
def panel():
    return boundary()


def softmax(model, point):
    with torch.no_grad():
        return model(torch.tensor([point], dtype=torch.float32))[0].double().softmax(0).tolist()


@pytest.mark.parametrize("classes", [3, 4, 5])
def test_the_network_knows_its_plane(classes):
    plane = train_plane(classes)
    with torch.no_grad():
        right = (plane.model(plane.x).argmax(1) == plane.y).double().mean()
    assert (
        right > 0.75
        and plane.x.min() >= 0
        and plane.x.max() <= 1
        and set(plane.y.tolist()) == set(range(classes))
    )


def test_the_network_is_the_same_every_time_and_leaves_the_random_state():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = train_plane.__wrapped__(3)
    assert torch.equal(torch.rand(3), expected)
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.model.parameters(), train_plane(3).model.parameters(), strict=True)
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_path_is_projected_gradient_ascent(norm):
    """By a literal loop:

    ascend the cross-entropy, return to the ball, then to the square; the start is the clean point.
    """
    model, x, y, eps, step = (
        train_plane(4).model,
        torch.tensor([[0.52, 0.97], [0.31, 0.4]]),
        torch.tensor([1, 3]),
        0.12,
        0.3,
    )
    attacked_point = attack_point(model, x, y, Threat(norm, eps), 6, step)
    assert attacked_point.iterates.shape == (7, 2, 2) and torch.equal(attacked_point.iterates[0], x)
    for row in range(2):
        clean, at = x[row].double().numpy(), x[row].double().numpy()
        for t in range(6):
            point = torch.tensor(at, dtype=torch.float32, requires_grad=True)
            (gradient,) = torch.autograd.grad(-model(point[None]).log_softmax(1)[0, y[row]], point)
            g = gradient.double().numpy()
            if norm == "linf":
                at = np.clip(at + step * eps * np.sign(g), clean - eps, clean + eps)
            else:
                delta = at + step * eps * g / np.hypot(*g) - clean
                at = clean + delta * min(1.0, eps / max(np.hypot(*delta), 1e-12))
            at = np.clip(at, 0, 1)
            np.testing.assert_allclose(attacked_point.iterates[t + 1, row].numpy(), at, atol=2e-5)


def test_steps_are_counted_along_the_path(panel):
    """LPS is the first evaluation point that is misclassified, κ how many are right; the last
    iterate is none of them.
    """
    panel.set(x=0.66, y=0.6, steps=9)
    attacked_point = panel.attack(panel.values)
    answers = [
        int(np.argmax(softmax(train_plane(3).model, point)))
        for point in attacked_point.iterates[:-1, 0].tolist()
    ]
    assert len(answers) == 9
    wrong = [t for t, answer in enumerate(answers) if answer != 0]
    assert (
        int(attacked_point.outputs.lps) == (wrong[0] if wrong else 9)
        and 0 < int(attacked_point.outputs.lps) < 9
    )
    assert int(attacked_point.outputs.kappa) == answers.count(0)
    assert f"LPS {wrong[0]} of 9; κ {answers.count(0)}" in panel.sentence


@pytest.mark.parametrize("attacked", [True, False])
def test_margins_are_those_of_the_chosen_point(panel, attacked):
    panel.set(x=0.5, y=0.5, attacked=attacked)
    point = panel.attack(panel.values).iterates[-1 if attacked else 0, 0].tolist()
    p = softmax(train_plane(3).model, point)
    pm = p[0] - max(p[1:])
    cl_pm = sum(p[0] - other for other in p[1:] if other > p[0]) or pm
    assert cl_pm < pm < 0, "here two rivals beat the true class"
    said = [
        float(word.replace("−", "-"))
        for word in re.findall(r"PM (?:is )?([−+]\d\.\d\d)", panel.sentence)
    ]
    assert said == pytest.approx([pm, cl_pm], abs=0.00501)
    ends = [segment[1, 0] for segment in panel.margins.get_segments()]
    assert ends == pytest.approx([pm, cl_pm], abs=1e-6)


def test_cl_pm_parts_from_pm_where_two_rivals_win_and_nowhere_else(panel):
    """One rival alone, or none: the two margins agree."""
    parted = agreed = 0
    for x, y in ((0.5, 0.5), (0.55, 0.55), (0.2, 0.8), (0.85, 0.3), (0.9, 0.9)):
        panel.set(x=x, y=y, attacked=False)
        p = softmax(train_plane(3).model, (x, y))
        ends = [segment[1, 0] for segment in panel.margins.get_segments()]
        several = sum(other > p[0] for other in p[1:]) > 1
        assert (abs(ends[0] - ends[1]) > 1e-6) == several
        parted, agreed = parted + several, agreed + (not several)
    assert parted and agreed


def test_weights_are_relative_to_the_batch_of_all(panel):
    """MAIL's, CLIRAT's, WMMR's, GAIRAT's and VIR's formulas, over the mean of the example and the
    attacked points.
    """
    panel.set(x=0.57, y=0.61)
    one, others = panel.attack(panel.values).outputs, attack_plane(3, Threat("linf", 0.12), 10, 0.1)
    logits = np.concatenate([one.logits_adv.numpy(), others.logits_adv.numpy()])
    clean = np.concatenate([one.logits_nat.numpy(), others.logits_nat.numpy()])
    y = np.concatenate([one.y.numpy(), others.y.numpy()])
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (logits, clean))
    rows = np.arange(len(y))
    true = p[rows, y]
    gaps = true[:, None] - p
    rivals = np.where(np.eye(3, dtype=bool)[y], np.inf, gaps)
    pm = rivals.min(1)
    cl = np.where(pm < 0, np.minimum(gaps, 0).sum(1), pm)
    kappa = np.concatenate([one.kappa.numpy(), others.kappa.numpy()])
    expected = {
        "mail-at": 1 / (1 + np.exp(10 * (pm + 0.5))),
        "clirat": 1 / (1 + np.exp(10 * (cl + 0.5))),
        "gairat": (1 + np.tanh(-1 + 5 * (5 - kappa) / 5)) / 2,
        "wmmr-mr": np.exp(-2 * pm),
        "vir-at": 7 * np.exp(-10 * q[rows, y]) * (q * np.log(q / p)).sum(1) + 0.007,
    }
    found = relative_weights(one, others)
    assert tuple(found) == WEIGHING_METHODS and len(y) == 91
    for name, weights in expected.items():
        assert found[name] == pytest.approx(weights[0] / weights.mean(), rel=1e-6), name
    shown = dict(
        zip(WEIGHING_METHODS, (segment[1, 0] for segment in panel.bars.get_segments()), strict=True)
    )
    assert shown == pytest.approx(found) and [t.get_text() for t in panel.factors] == [
        f"{w:.2f}×" for w in found.values()
    ]


def test_every_shown_method_reweights_and_reads_what_is_there():
    seen = attack_plane(3, Threat("linf", 0.1), 4, 0.25)
    assert isinstance(seen, StepOutputs)
    assert all(kit.METHODS[name].weigh(seen).shape == (90,) for name in WEIGHING_METHODS)


def test_mouse_and_arrow_keys_move_the_example(panel):
    axes = panel.map
    panel.point(axes, 0.25, 0.75, True)
    assert (panel.values["x"], panel.values["y"]) == (0.25, 0.75)
    panel.point(axes, 1.4, -0.2, False)
    assert (panel.values["x"], panel.values["y"]) == (1, 0), (
        "a drag that leaves the square stays at its edge"
    )
    panel.nudge(-3, 2)
    assert (panel.values["x"], panel.values["y"]) == pytest.approx((0.97, 0.02))
    panel.nudge(0, -50)
    assert panel.values["y"] == 0
    panel.point(axes, 0.1234, 0.5678, False)
    assert (panel.values["x"], panel.values["y"]) == (0.125, 0.57), (
        "a place that the sliders have, too"
    )
    before = dict(panel.values)
    panel.point(panel.bars.axes, 2.0, 3.0, True)
    assert panel.values == before, "beside the square there is nothing to drag"


def test_the_ball_is_that_of_the_norm(panel):
    panel.set(x=0.3, y=0.4, eps=0.2)
    assert panel.square.get_visible() and not panel.circle.get_visible()
    assert panel.square.get_bbox().bounds == pytest.approx((0.1, 0.2, 0.4, 0.4))
    panel.set(norm="l2")
    assert (
        panel.circle.get_visible()
        and not panel.square.get_visible()
        and panel.circle.get_radius() == 0.2
    )
    end = panel.attack(panel.values).iterates[-1, 0].tolist()
    assert math.dist(end, (0.3, 0.4)) <= 0.2 + 1e-6


def test_a_class_that_is_gone_is_no_choice(panel):
    panel.set(classes=5, true="A")
    panel.set(true="E")
    assert "class E" in panel.sentence
    panel.set(classes=3)
    assert panel.values["true"] == "A"
    with pytest.raises(KitError, match="Choices: A, B, C"):
        panel.set(true="E")
