"""APGD, FAB, Square and AutoAttack: second implementations, exact distances on linear models, what
a result promises, and a journal that survives an interruption.
"""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from kit.attacks import auto_pgd
from kit.attacks.auto_attack import VERSIONS, autoattack
from kit.attacks.auto_pgd import apgd, apgd_objective, ascend_targets, targets_of, touching
from kit.attacks.fast_adaptive_boundary import fab, search_boundary, to_hyperplane
from kit.attacks.padded_batches import padded_batch_sizes, padded_size
from kit.attacks.square_attack import (
    AHEAD,
    bumps,
    repaint,
    shift_mass,
    square,
    square_pattern,
    stripes,
    window_side,
)
from kit.attacks.tracker import STEEP, AttackTracker
from kit.core import tensors
from kit.core.errors import KitError
from kit.core.random_streams import Streams
from kit.core.threat import Threat
from tests.helpers.attack_problems import (
    DISTANCE,
    NORMS,
    SHORT,
    RunsOn,
    calls_of,
    dense,
    linear_problem,
    predicted,
    random,
    same_result,
    streams,
)

THREATS = (Threat("linf", 0.05), Threat("l2", 0.3))
BOTH_NORMS = pytest.mark.parametrize("threat", THREATS, ids=str)

#: Every attack at settings that take a fraction of a second on small networks.
ATTACKS = {
    "apgd-ce": partial(apgd, steps=20),
    "apgd-dlr": partial(apgd, steps=20, loss="dlr", restarts=2),
    "apgd-t": partial(apgd, steps=10, loss="targeted"),
    "fab-t": partial(fab, steps=10, goal="inside"),
    "fab": partial(fab, steps=10, goal="inside", targeted=False, restarts=2),
    "fab-nearest": partial(fab, steps=10),
    "square": partial(square, queries=100),
}
EVERY = pytest.mark.parametrize("name", ATTACKS)


@pytest.fixture
def short(monkeypatch):
    """AutoAttack in three attacks that take a fraction of a second."""
    monkeypatch.setitem(VERSIONS, "standard", SHORT)


@pytest.fixture
def network() -> nn.Module:
    """Small, in train mode, float64."""
    return dense()


@pytest.fixture
def batch(network) -> tuple[Tensor, Tensor]:
    """16 images with the network's own answer as their label, but for the last two; a corner at the
    walls.
    """
    x = random(16, 1, 8, 8, seed=7)
    x[:, :, :2, :2], x[:, :, 6:, 6:] = 0, 1
    y = predicted(network, x)
    return x, torch.cat([y[:14], (y[14:] + 1) % 10])


# ------------------------------------------------------------------------------------ linear models

LONG = {
    "apgd-ce": apgd,
    "apgd-dlr": partial(apgd, loss="dlr"),
    "apgd-t": partial(apgd, loss="targeted"),
    "fab-t": fab,
    "fab": partial(fab, targeted=False),
    "square": partial(square, queries=800),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", LONG)
def test_a_boundary_in_reach_is_crossed_and_no_other(name, norm):
    """Square's L2 windows of 3 x 3 cannot shape 4 x 4 pixels closely, so it gets more room."""
    model, x, y = linear_problem(norm, DISTANCE[norm])
    far = 2.0 if (name, norm) == ("square", "l2") else 1.05
    for factor, n in ((0.95, 3), (far, 12)):
        result = LONG[name](model, x[:n], y[:n], Threat(norm, factor * DISTANCE[norm]))
        assert int(result.broken.sum()) == (n if factor > 1 else 0), factor
        if "fab" not in name:
            assert torch.equal(predicted(model, result.x_adv) != y[:n], result.broken)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targeted", [True, False])
def test_fab_finds_the_distance(targeted, norm):
    """Within 5 % of the truth and never below it; whatever the threat's radius is."""
    model, x, y = linear_problem(norm, DISTANCE[norm])
    for factor in (0.95, 3.0):
        result = fab(model, x, y, Threat(norm, factor * DISTANCE[norm]), targeted=targeted)
        assert bool((predicted(model, result.x_adv) != y).all())
        ratio = result.size / DISTANCE[norm]
        assert float(ratio.min()) >= 1 - 1e-9 and float(ratio.max()) <= 1.05
        assert torch.equal(result.broken, torch.full((12,), factor > 1))


# --------------------------------------------------------------------------- second implementations


def test_dlr_by_hand():
    logits = torch.tensor(
        [[1.0, 4.0, 2.0, -1.0, 0.5], [7.0, 3.0, 6.0, 5.0, 0.0]], dtype=torch.float64
    )
    y, target = torch.tensor([1, 3]), torch.tensor([0, 4])
    assert tensors.dlr(logits, y).tolist() == pytest.approx(
        [-(4 - 2) / (4 - 1), -(5 - 7) / (7 - 5)]
    )
    assert tensors.targeted_margin(logits, y, target).tolist() == [-3, -5]
    assert tensors.targeted_dlr(logits, y, target).tolist() == pytest.approx(
        [-3 / (4 - 0.75), -5 / (7 - 4)]
    )
    torch.testing.assert_close(
        tensors.dlr(3 * logits + 5, y), tensors.dlr(logits, y), rtol=1e-9, atol=0
    )


def allowed(point: Tensor, image: Tensor, threat: Threat) -> Tensor:
    """The ball, then [0, 1]."""
    delta = point - image
    if threat.norm == "linf":
        return (image + delta.clamp(-threat.eps, threat.eps)).clamp(0, 1)
    return (image + delta * min(1.0, threat.eps / max(float(delta.norm()), 1e-12))).clamp(0, 1)


def apgd_by_the_book(
    loss_of, x: Tensor, x_0: Tensor, threat: Threat, checkpoints: list[int]
) -> tuple[float, Tensor]:
    """Algorithm 1 for one image, with whole histories: (best loss, its image)."""

    def value_and_gradient(point):
        point = point.clone().requires_grad_()
        value = loss_of(point)
        return value.item(), torch.autograd.grad(value, point)[0]

    points, (value, gradient) = [x_0, x_0], value_and_gradient(x_0)
    losses, best, eta, halvings, bests = (
        [0.0],
        (value, x_0, gradient),
        2 * threat.eps,
        [True],
        [value],
    )
    last = 0
    for k in range(1, checkpoints[-1] + 1):
        uphill = gradient.sign() if threat.norm == "linf" else gradient / gradient.norm()
        z = allowed(points[-1] + eta * uphill, x, threat)
        share = 1.0 if k == 1 else 0.75
        points.append(
            allowed(
                points[-1] + share * (z - points[-1]) + (1 - share) * (points[-1] - points[-2]),
                x,
                threat,
            )
        )
        value, gradient = value_and_gradient(points[-1])
        losses.append(value)
        best = max(best, (value, points[-1], gradient), key=lambda entry: entry[0])
        if k in checkpoints:
            rises = sum(
                np.float32(losses[i]) > np.float32(losses[i - 1]) for i in range(last + 1, k + 1)
            )
            halved = rises <= 0.75 * (k - last) or (not halvings[-1] and best[0] == bests[-1])
            if halved:
                eta, points[-1], gradient = eta / 2, best[1], best[2]
            halvings.append(halved)
            bests.append(best[0])
            last = k
    return best[0], best[1]


@BOTH_NORMS
@pytest.mark.parametrize(
    ("steps", "checkpoints"),
    [(100, [22, 41, 57, 70, 80, 87, 93, 99]), (50, [11, 21, 30, 38, 45, 50])],
)
def test_apgd_by_the_book(steps, checkpoints, threat, network, batch):
    """Both norms; the last checkpoint is where the walk by the book ends, with our image."""
    (x, y), network = batch, network.eval()
    look = RunsOn(network, x, y, threat, "inside", threat.norm)
    x_0 = touching(x, threat, streams(16))
    _, best, x_best = ascend_targets(look, x_0, look.rows, apgd_objective(look, "ce"), y, steps)
    for i in range(0, 16, 3):

        def loss_of(point, i=i):
            return tensors.per_example_cross_entropy(network(point[None]), y[i : i + 1])[0]

        expected, image = apgd_by_the_book(
            loss_of, x[i], x_0[i], threat, sorted({*checkpoints, steps})
        )
        assert best[i].item() == pytest.approx(expected, abs=1e-7)
        torch.testing.assert_close(x_best[i], image, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("losses", "halved_before"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], []),
        (
            [0, -1, 1, 2, 3, 4, 5, 6, 7, 8],
            [4],
        ),  # the first is no rise over 0, and three of four are not enough
        ([10, 1, 2, 3, 4, 5, 6, 7, 1, 1], [7, 9]),
    ],
)  # nothing better than the start: no matter at 4, but at 7; then no rises
def test_when_steps_are_halved(losses, halved_before, network, batch, monkeypatch):
    """20 steps have checkpoints after 4, 7, 9, 10, ...; the loss follows a script, and ten step
    sizes are watched.
    """
    (x, y), sizes, script, moved = (
        batch,
        [],
        iter([*map(float, losses), *[99.0] * 20]),
        auto_pgd.next_iterate,
    )
    monkeypatch.setattr(
        auto_pgd, "next_iterate", lambda *given: sizes.append(given[4].item()) or moved(*given)
    )
    look = RunsOn(network.eval(), x[:1], y[:1], THREATS[0], "inside", "linf")
    ascend_targets(
        look, x[:1], look.rows[:1], lambda logits, *_: 0 * logits.sum(dim=1) + next(script), y, 20
    )
    expected = [0.1 / 2 ** sum(t >= edge for edge in halved_before) for t in range(10)]
    assert sizes[:10] == pytest.approx(expected)


@pytest.mark.parametrize("norm", NORMS)
def test_starts_touch_the_ball(norm):
    x, threat = torch.full((40, 1, 4, 4), 0.5, dtype=torch.float64), Threat(norm, 0.1)
    x_0 = touching(x, threat, streams(40))
    torch.testing.assert_close(
        tensors.norm(x_0 - x, norm), torch.full((40,), 0.1, dtype=torch.float64)
    )
    assert float((x_0 - x).mean().abs()) < 0.01 and len((x_0 - x).flatten(1).unique(dim=0)) == 40


def hyperplanes() -> tuple[Tensor, Tensor, Tensor]:
    """60 points in 8 dimensions, some at the walls; hyperplanes on both sides, some with zero
    weights, some out of reach.
    """
    points, w = random(60, 8, seed=1), random(60, 8, seed=2) - 0.5
    points[::3, :2], points[1::3, 2:4], w[::4, 5] = 0, 1, 0
    return (
        points,
        w * torch.logspace(-8, 3, 60, dtype=torch.float64)[:, None],
        torch.zeros(60, dtype=torch.float64),
    )


def test_projection_in_linf_is_a_linear_programme():
    """min t with |d_i| <= t, w · d = -value, 0 <= point + d <= 1; and the corner where there is no
    such d.
    """
    points, w, value = hyperplanes()
    value = (random(60, seed=3) - 0.5) * 3 * w.abs().sum(dim=1)
    d, infeasible = to_hyperplane(points, w, value, "linf"), 0
    for i in range(60):
        n = 8
        inequality = np.block([[np.eye(n), -np.ones((n, 1))], [-np.eye(n), -np.ones((n, 1))]])
        scale = float(w[i].abs().max())
        equality, wanted = [[*(w[i] / scale).tolist(), 0]], [-float(value[i]) / scale]
        box = [*((-p, 1 - p) for p in points[i].tolist()), (0, None)]
        solved = linprog([0] * n + [1], inequality, np.zeros(2 * n), equality, wanted, box)
        if solved.success:
            assert d[i].abs().max().item() == pytest.approx(solved.fun, abs=1e-8)
            assert float(value[i] + w[i] @ d[i]) == pytest.approx(0, abs=1e-8 * scale)
        else:
            infeasible += 1
            down = torch.where(value[i] * w[i] > 0, -points[i], 1 - points[i]).where(w[i] != 0, 0)
            torch.testing.assert_close(d[i], down, rtol=0, atol=1e-9)
        assert bool(((points[i] + d[i] >= -1e-12) & (points[i] + d[i] <= 1 + 1e-12)).all())
    assert 10 < infeasible < 50


def test_projection_in_l2_by_bisection():
    """The shortest d is -λ w clipped to the box (Karush, Kuhn and Tucker); λ by bisection."""
    points, w, value = hyperplanes()
    value = (random(60, seed=4) - 0.5) * w.abs().sum(dim=1)
    d, reached = to_hyperplane(points, w, value, "l2"), 0
    for i in range(60):
        direction, wanted = w[i] / w[i].abs().max(), float(value[i] / w[i].abs().max())
        low, high = (-1e9, 0.0) if wanted < 0 else (0.0, 1e9)
        for _ in range(200):
            middle = (low + high) / 2
            moved = torch.minimum(torch.maximum(-middle * direction, -points[i]), 1 - points[i])
            low, high = (middle, high) if wanted + float(direction @ moved) > 0 else (low, middle)
        torch.testing.assert_close(d[i], moved, rtol=0, atol=1e-7)
        reached += abs(wanted + float(direction @ d[i])) < 1e-9
    assert 20 < reached < 60


def test_no_gradient_no_way():
    """A gradient of zero, and answers that are no numbers, move nothing."""
    points = random(3, 1, 2, 2)
    for norm in NORMS:
        assert not bool(
            to_hyperplane(points, torch.zeros_like(points), torch.ones(3).double(), norm).any()
        )
        d = to_hyperplane(
            points, torch.ones_like(points), torch.tensor([0.1, math.nan, 0.1]).double(), norm
        )
        assert not bool(d[1].any()) and bool((d[[0, 2]] < 0).any())


@BOTH_NORMS
@pytest.mark.parametrize("targeted", [True, False])
def test_fab_by_the_book(targeted, threat, network, batch):
    """Algorithm 1 for single images, again in loops; the projections are those proved above."""
    (x, y), network = batch, network.eval()
    look = AttackTracker(network, x, y, threat, "nearest", threat.norm)
    target = targets_of(look)[2]
    search_boundary(look, x[:14], look.rows[:14], target[:14] if targeted else None, 12)

    def length(d):
        return float(d.abs().max() if threat.norm == "linf" else d.norm())

    for i in range(0, 14, 2):
        now, nearest = x[i], math.inf
        for _ in range(12):
            point = now.clone().requires_grad_()
            logits = network(point[None])[0]
            if (
                int(logits.argmax()) != y[i]
            ):  # a point gone back may still be misclassified, and is nearer
                nearest = min(nearest, length(now - x[i]))
            planes = []
            for j in [int(target[i])] if targeted else [j for j in range(10) if j != y[i]]:
                gradient = torch.autograd.grad(logits[j] - logits[y[i]], point, retain_graph=True)[
                    0
                ]
                dual = gradient.abs().sum() if threat.norm == "linf" else gradient.norm()
                lead = (logits[j] - logits[y[i]]).item()
                planes.append((abs(lead) / float(dual), lead, gradient))
            _, value, w = min(planes, key=lambda plane: plane[0])
            values = torch.tensor([value, value + float((w * (x[i] - now)).sum())]).double()
            d_t, d = to_hyperplane(
                torch.stack([now, x[i]]), torch.stack([w, w]), values, threat.norm
            )
            alpha = min(length(d_t) / (length(d_t) + length(d)), 0.1)
            now = ((1 - alpha) * (now + 1.05 * d_t) + alpha * (x[i] + 1.05 * d)).clamp(0, 1)
            if int(network(now[None]).argmax()) != y[i]:
                nearest = min(nearest, length(now - x[i]))
                now = x[i] + 0.9 * (now - x[i])
        assert look.size[i].item() == pytest.approx(nearest, abs=1e-8)


def test_windows_shrink_on_schedule():
    x = torch.zeros(1, 3, 32, 32)
    sides = [
        window_side(query, x, 0.8) for query in (0, 10, 11, 51, 201, 501, 1001, 2001, 4001, 4999)
    ]
    assert sides == [29, 29, 20, 14, 10, 7, 5, 4, 3, 3]
    assert (
        window_side(0, torch.zeros(1, 1, 4, 9), 1.0) == 4
        and window_side(9999, torch.zeros(1, 1, 4, 4), 0.8) == 1
    )


def test_square_pattern_by_the_book():
    """Nested squares: 1 / (k + 1)² is added to those within distance k of a bump's centre."""
    for side in (1, 2, 3, 5, 6, 9):
        got, expected = square_pattern(side), np.zeros((side, side))
        for top, height, sign in ((0, side // 2, 1), (side // 2, side - side // 2, -1)):
            bump = np.zeros((height, side))
            for k in range(max(height // 2, side // 2) + 1):
                for i in range(height):
                    for j in range(side):
                        bump[i, j] += (
                            max(abs(i - height // 2), abs(j - side // 2)) <= k and 1 / (k + 1) ** 2
                        )
            expected[top : top + height] = sign * bump / max(np.sqrt((bump**2).sum()), 1e-12)
        np.testing.assert_allclose(got, expected / np.sqrt((expected**2).sum()), atol=1e-12)


def test_repainted_windows():
    """One window of the right side, each channel at +eps or -eps of x; every place of the image is
    reached.
    """
    x, u = random(400, 2, 6, 5), random(400, 7, seed=1)
    best, covered = (x + 0.02).clamp(0, 1), torch.zeros(6, 5)
    tried, new = repaint(best, x, torch.arange(400), 3, u, 0.1)
    assert len(new) == 400, "each changes something"
    up, down = (x + 0.1).clamp(0, 1), (x - 0.1).clamp(0, 1)
    signs = set()
    for i in range(400):
        row, column = int(u[i, 0] * 4), int(u[i, 1] * 3)
        expected = best[i].clone()
        for c in range(2):
            source = up if u[i, 5 + c] >= 0.5 else down
            expected[c, row : row + 3, column : column + 3] = source[
                i, c, row : row + 3, column : column + 3
            ]
        torch.testing.assert_close(tried[i], expected, rtol=0, atol=1e-12)
        covered[row : row + 3, column : column + 3] += 1
        signs.add((bool(u[i, 5] < 0.5), bool(u[i, 6] < 0.5)))
    assert bool((covered > 0).all()) and len(signs) == 4
    assert torch.equal(best, (x + 0.02).clamp(0, 1)), "the best image so far is not painted over"


def test_what_would_not_change_is_not_tried():
    """Again and again of five images, painted all over:

    one in four proposals for two channels paints what is there.
    """
    x, u = random(5, 2, 6, 5), random(400, 7, seed=1)
    its, best = torch.arange(400) % 5, (x + 0.1).clamp(0, 1)
    tried, new = repaint(best, x, its, 3, u, 0.1)
    assert (
        torch.equal(new, (u[:, 5:] < 0.5).any(dim=1).nonzero().squeeze(1)) and 250 < len(new) < 350
    )
    assert bool((tried != best[its[new]]).flatten(1).any(dim=1).all())
    one_by_one = torch.cat(
        [repaint(best, x, its[i : i + 1], 3, u[i : i + 1], 0.1)[0] for i in range(400)]
    )
    assert torch.equal(tried, one_by_one)


def test_shifted_mass_by_the_book():
    """Square's L2 proposal, image by image and channel by channel."""
    x, u, eps, side = 0.3 + 0.4 * random(12, 2, 9, 8), random(12, 7, seed=1), 0.5, 3
    best = (x + 0.05 * (random(12, 2, 9, 8, seed=2) - 0.5)).clamp(0, 1)
    mixed = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    tried, new = shift_mass(best, x, mixed, 2, u[mixed], eps)
    assert torch.equal(new, torch.arange(12))
    tried = tried[mixed.argsort()]
    for i in range(12):
        delta = (best - x)[i].clone()
        (a, b), (c, d) = ((int(u[i, k] * 7), int(u[i, k + 1] * 6)) for k in (0, 2))
        unused = max(eps**2 - float(delta.norm()) ** 2, 0) / 2
        bump = square_pattern(side).T if u[i, 4] > 0.5 else square_pattern(side)
        new = torch.zeros(2, 3, 3, dtype=torch.float64)
        for k in range(2):
            covered = torch.zeros(9, 8, dtype=torch.bool)
            covered[a : a + 3, b : b + 3] = covered[c : c + 3, d : d + 3] = True
            mass = float((delta[k][covered] ** 2).sum())
            old = delta[k, a : a + 3, b : b + 3]
            mixed = bump * (1 if u[i, 5 + k] >= 0.5 else -1) + old / old.norm()
            new[k] = mixed / mixed.norm() * math.sqrt(unused + mass)
        delta[:, c : c + 3, d : d + 3] = 0
        delta[:, a : a + 3, b : b + 3] = new
        torch.testing.assert_close(
            tried[i], (x[i] + eps * delta / delta.norm()).clamp(0, 1), rtol=0, atol=1e-9
        )


@BOTH_NORMS
@pytest.mark.parametrize("queries", [12, 330])
def test_square_walks_as_if_it_tried_one_after_the_other(
    threat, queries, network, batch, monkeypatch
):
    """The walk image by image and proposal by proposal, on the numbers that were drawn."""
    x, y = (v[:14] for v in batch)
    drawn, draw = [], Streams.uniform
    monkeypatch.setattr(Streams, "uniform", lambda *words: drawn.append(draw(*words)) or drawn[-1])
    first, propose = (stripes, repaint) if threat.norm == "linf" else (bumps, shift_mass)
    begin = first(x, threat, streams(14))
    assert bool(((tensors.norm(begin - x, threat.norm) / threat.eps - 1).abs() < 0.3).all()), (
        "a start at the radius"
    )
    starts, drawn[:] = len(drawn), []
    result = square(network, x, y, threat, queries=queries, validate=False, generator=streams(14))
    u = torch.cat(drawn[starts:], dim=1)
    assert (
        u.shape == (14, queries, 6)
        and len(u.unique()) > 0.99 * u.numel()
        and 0.48 < float(u.mean()) < 0.52
    )
    judge, moves, in_vain = copy.deepcopy(network).eval().requires_grad_(False), 0, 0
    for i in range(14):
        best, its = begin[i : i + 1], torch.zeros(1, dtype=torch.int64)
        margin, passes = float(tensors.margin(judge(best), y[i : i + 1])), 2
        for query in range(queries):
            if margin <= 0:
                break
            tried, new = propose(
                best, x[i : i + 1], its, window_side(query, x, 0.8), u[i : i + 1, query], threat.eps
            )
            passes += len(new)
            if len(new) and threat.norm == "linf":
                changed = (tried != best)[0, 0].nonzero()
                assert int((changed.amax(dim=0) - changed.amin(dim=0)).max()) < window_side(
                    query, x, 0.8
                )
            if len(new) and (lower := float(tensors.margin(judge(tried), y[i : i + 1]))) < margin:
                best, margin, moves = tried, lower, moves + 1
        torch.testing.assert_close(result.x_adv[i : i + 1], best, rtol=0, atol=1e-12)
        assert float(result.margin[i]) == pytest.approx(margin, abs=1e-12) and bool(
            result.broken[i]
        ) == (margin <= 0)
        again = 0 if result.broken[i] else 1  # what holds is looked at once more
        in_vain += int(result.forwards[i]) - passes - again
        assert int(result.forwards[i]) >= passes + again
    assert 1 <= int(result.broken.sum()) <= 13 and moves > 20, "a test of both kinds"
    assert in_vain <= (AHEAD - 1) * moves and (queries < 300 or in_vain > 0)


# ----------------------------------------------------------------------------- batches of few sizes


def test_batches_are_filled_up_to_few_sizes():
    assert [padded_size(n) for n in (0, 1, 31, 32, 33, 64, 65, 150, 257, 4500)] == [
        0,
        1,
        31,
        32,
        34,
        64,
        68,
        152,
        272,
        4608,
    ]
    sizes = [padded_size(n) for n in range(1, 5000)]
    assert all(n <= size <= 1.0625 * n for n, size in enumerate(sizes, 1)) and sizes == sorted(
        sizes
    )
    assert len({size for size in sizes if 256 <= size < 512}) == 16


@pytest.mark.parametrize("n", [45, 64, 150])
def test_a_filled_batch_answers_as_it_was(n):
    """A network sees the last image again; gradients, logits and counts are those of the images
    that were given.
    """
    network, x = dense(), random(n, 1, 8, 8)
    y, seen = predicted(network, x), []
    plain = x.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(
        tensors.per_example_cross_entropy(copy.deepcopy(network).eval()(plain), y).sum(), plain
    )
    network[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    with padded_batch_sizes(network.eval()):
        given = x.clone().requires_grad_(True)
        logits = network(given)
        (gradient,) = torch.autograd.grad(tensors.per_example_cross_entropy(logits, y).sum(), given)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    assert len(logits) == n and len(seen[0]) == padded_size(n)
    assert torch.equal(seen[0][n:], seen[0][n - 1 : n].expand(padded_size(n) - n, -1))
    result = ATTACKS["apgd-ce"](network, x, y, THREATS[0], validate=False)
    assert len(result.broken) == n and {len(inputs) for inputs in seen} <= set(
        map(padded_size, range(n + 1))
    )
    network(x)
    assert len(seen[-1]) == n, "the hooks are gone"


# --------------------------------------------------------------------------- what a result promises


@EVERY
@BOTH_NORMS
def test_results_are_what_the_network_says(name, threat, network, batch):
    """Flags, margins and sizes recomputed from x_adv; in the ball, in [0, 1], and nothing else is
    touched.
    """
    x, y = batch
    before, state, modes = (
        x.clone(),
        torch.random.get_rng_state(),
        [module.training for module in network.modules()],
    )
    weights = copy.deepcopy(network.state_dict())
    result = ATTACKS[name](network, x, y, threat, generator=streams(16))
    assert torch.equal(x, before) and torch.equal(state, torch.random.get_rng_state())
    assert modes == [module.training for module in network.modules()] and all(
        p.requires_grad for p in network.parameters()
    )
    assert all(torch.equal(weights[key], value) for key, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters()) and not result.x_adv.requires_grad
    wrong, size = predicted(network, result.x_adv) != y, tensors.norm(result.x_adv - x, threat.norm)
    found = result.size.isfinite()
    torch.testing.assert_close(result.size[found], size[found], rtol=1e-9, atol=1e-12)
    assert torch.equal(result.prediction, predicted(network, result.x_adv))
    assert float(result.x_adv.min()) >= 0 and float(result.x_adv.max()) <= 1
    if name != "fab-nearest":
        assert torch.equal(wrong, result.broken) and float(size.max()) <= threat.eps + 1e-9
    else:
        assert torch.equal(wrong, found) and torch.equal(
            result.broken, found & (result.size <= threat.eps + 1e-6)
        )
    assert result.by[14:] == ("clean", "clean") and result.step[14:].tolist() == [0, 0]
    assert torch.equal(result.x_adv[14:], x[14:]), "what is wrong from the start stays as it is"
    assert 2 < int(result.broken.sum()) < 16, "a test of both kinds"


@EVERY
def test_passes_are_counted_and_broken_examples_leave(name, network, batch):
    x, y = batch
    inputs = calls_of(network)
    result = ATTACKS[name](network, x, y, THREATS[0], generator=streams(16), validate=False)
    assert int(result.forwards.sum()) == sum(map(len, inputs))
    assert result.forwards[14:].tolist() == [1, 1] and result.backwards[14:].tolist() == [0, 0]
    if name == "square":
        assert int(result.backwards.sum()) == 0
        assert int(result.forwards[~result.broken].min()) > 50 and int(
            result.forwards.max()
        ) < 103 + 20 * (AHEAD - 1)
    if name in ("apgd-ce", "apgd-dlr", "apgd-t"):
        passes = {"apgd-ce": 21, "apgd-dlr": 2 * 21, "apgd-t": 9 * 11}[name]
        assert result.forwards[~result.broken].unique().tolist() == [1 + passes]
        assert torch.equal(result.backwards, result.forwards - 1)
    if name == "fab-t":
        assert result.forwards[~result.broken].unique().tolist() == [1 + 9 * 20]
        assert result.backwards[~result.broken].unique().tolist() == [9 * 10]
    late = (result.forwards - 1 - result.step)[result.broken]
    # the pass that breaks an example is its last, but where FAB looks at all classes first
    assert name == "fab-nearest" or int(late.max()) <= (
        18 if name == "fab" else 1 if name == "fab-t" else 0
    )


@EVERY
@BOTH_NORMS
def test_neither_batch_size_nor_mates_nor_order_matter(name, threat, network, batch):
    """In float64, where the last bit of a kernel is far below any decision."""
    x, y = batch
    whole = ATTACKS[name](network, x, y, threat, generator=streams(16))
    for rows in (torch.tensor([3]), torch.tensor([15, 0, 5, 8, 9, 2])):
        alone = ATTACKS[name](network, x[rows], y[rows], threat, generator=Streams(rows, "test"))
        for field in ("broken", "step", "forwards", "backwards", "prediction"):
            assert torch.equal(getattr(alone, field), getattr(whole, field)[rows]), field
        torch.testing.assert_close(alone.x_adv, whole.x_adv[rows], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab", "square"])
def test_draws_follow_the_example(name, network, batch):
    """The same image under two ids is attacked differently, under one id alike; without streams
    twice alike.
    """
    x, y = (v[:1].expand(3, *v.shape[1:]) for v in batch)
    inputs = calls_of(network)
    threat = Threat("linf", 0.001)
    result = ATTACKS[name](
        network, x, y, threat, generator=Streams(torch.tensor([4, 5, 4]), "test"), validate=False
    )
    assert torch.equal(result.x_adv[0], result.x_adv[2]) and torch.equal(
        result.forwards[0], result.forwards[2]
    )
    if name == "square":
        assert float((result.x_adv[0] - result.x_adv[1]).abs().max()) > 1e-6
        inputs = inputs[:2]  # later, as many as change something
    tried = [
        images.unflatten(0, (-1, 3)) for images in inputs if len(images) % 3 == 0
    ]  # (targets at once, 3, ...)
    assert any(float((images[:, 0] - images[:, 1]).abs().max()) > 1e-6 for images in tried)
    assert all(torch.equal(images[:, 0], images[:, 2]) for images in tried)
    again = [ATTACKS[name](network, *batch, threat) for _ in range(2)]
    assert torch.equal(again[0].x_adv, again[1].x_adv)


@EVERY
@pytest.mark.parametrize("norm", NORMS)
def test_no_radius_no_change(name, norm, network, batch):
    result = ATTACKS[name](network, *batch, Threat(norm, 0.0), generator=streams(16))
    assert result.broken.tolist() == [False] * 14 + [True] * 2
    assert name == "fab-nearest" or torch.equal(result.x_adv, batch[0])


@EVERY
@pytest.mark.parametrize("classes", [2, 3, 4, 8])
def test_few_classes(name, classes):
    """Any number of classes from two; where an attack is then another one, its notes say so."""
    model = dense(classes, classes)
    x = random(10, 1, 8, 8, seed=classes)
    y = predicted(model, x)
    for norm, eps in (("linf", 0.3), ("l2", 2.5)):
        result = ATTACKS[name](model, x, y, Threat(norm, eps), generator=streams(10))
        assert bool(result.broken.any())
        notes = " ".join(result.notes)
        assert (f"{classes - 1} targets, not 9" in notes) == (
            name in ("apgd-t", "fab-t", "fab-nearest")
        )
        undefined = {"apgd-dlr": classes < 3, "apgd-t": classes < 4}.get(name, False)
        assert ("the margin takes its place" in notes) == undefined


def test_a_targeted_attack_aims_at_the_strongest_rivals():
    """Ranks 2 to 10 of the clean logits in turn; all others where there are fewer."""
    for width in (12, 10, 4, 2):
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, width)).double()
        with torch.no_grad():
            model[1].weight.zero_()
            model[1].bias.copy_(torch.arange(width))
        look = AttackTracker(
            model, random(2, 1, 2, 2), torch.full((2,), width - 1), THREATS[0], "inside", "linf"
        )
        expected = list(range(width - 2, max(width - 11, -1), -1))
        assert [target.tolist() for target in targets_of(look)] == [[j, j] for j in expected]


# --------------------------------------------------------------------------------------- no numbers


class Cliff(nn.Module):
    """Linear, but NaN where any pixel exceeds 0.8; the first pixel's gradient is NaN everywhere if
    `steep`.
    """

    def __init__(self, steep: bool = False):
        super().__init__()
        self.steep = steep

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1).sum(dim=1) - 32
        if self.steep:
            value = value + (0 * x[:, 0, 0, 0]).abs().sqrt()  # 0 with a gradient of NaN
        logits = torch.stack([value, -value, value - 99, value - 99], dim=1)
        return logits.where((x.amax(dim=(1, 2, 3)) <= 0.8)[:, None], torch.nan)


def test_an_infinite_gradient_can_be_reckoned_with():
    """A root's, at 0. Between it and its opposite one may choose, which takes their difference."""
    x, y = torch.zeros(2, 1, 1, 2), torch.zeros(2, dtype=torch.int64)
    x[1] = 0.25
    look = AttackTracker(nn.Flatten(), x, y, Threat("linf", 0.1), "inside", "linf")
    gradient, _, _ = look.gradient(
        x, look.rows, lambda logits, y: logits[:, 0].sqrt() - logits[:, 1].sqrt()
    )
    torch.testing.assert_close(
        gradient.flatten(1), torch.tensor([[STEEP, -STEEP], [1.0, -1.0]]), rtol=1e-6, atol=0
    )
    which = torch.tensor([True, False])
    assert torch.equal(
        tensors.where(which, gradient, -gradient),
        gradient * torch.tensor([1, -1])[:, None, None, None],
    )


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"])
def test_an_image_without_an_answer_is_broken(name):
    """Whatever class argmax makes of NaN.

    And where a pixel's gradient is NaN, the others still lead on.
    """
    x = torch.full((2, 1, 8, 8), 0.7, dtype=torch.float64)
    x[1] = 0.55
    y = torch.zeros(2, dtype=torch.int64)
    result = ATTACKS[name](Cliff(), x, y, Threat("linf", 0.12), generator=streams(2))
    assert bool(result.x_adv.isfinite().all())
    if name != "fab-t":  # it walks along the linearisation, away from the cliff
        assert result.broken.tolist() == [
            name in ("square", "apgd-ce", "apgd-dlr", "apgd-t"),
            bool(result.broken[1]),
        ]
        assert result.prediction[0] == -1
    steep = ATTACKS[name](Cliff(steep=True), x, y, Threat("linf", 0.09), generator=streams(2))
    assert bool(steep.x_adv.isfinite().all()) and steep.broken.tolist() == [False, True]


def test_fab_comes_back_from_where_there_is_no_answer():
    """Its first step ends in NaN; it goes back from there, tenth by tenth, to the edge at a
    distance of 0.01.
    """
    x, y = torch.full((2, 1, 8, 8), 0.4, dtype=torch.float64), torch.ones(2, dtype=torch.int64)
    x[0, 0, 0, 0] = 0.79
    result = fab(Cliff(), x, y, Threat("linf", 0.05), steps=40)
    assert bool(result.x_adv.isfinite().all()) and result.prediction.tolist() == [-1, 0]
    assert 0.01 <= float(result.size[0]) < 0.0125 and result.broken.tolist() == [True, False]


@pytest.mark.parametrize("name", [*ATTACKS, "autoattack"])
def test_a_network_without_answers_scores_nothing(name, batch):
    x, y = batch
    attack = {**ATTACKS, "autoattack": autoattack}[name]
    for bad in (math.nan, math.inf):
        model = dense()
        with torch.no_grad():
            model[4].bias[3] = bad
        with pytest.raises(KitError, match="NaN or infinite logits"):
            attack(model, x, y, THREATS[0])
        unchecked = attack(model, x, y, THREATS[0], validate=False)
        assert bool(unchecked.broken.all()) and set(unchecked.by) == {"clean"}
    for model, images, labels, words in (
        (nn.Sequential(dense(), nn.Softmax(dim=1)), x, y, "probabilities"),
        (dense(), x * 255, y, "pixels run"),
        (dense(), x, y + 10, "labels run"),
        (dense(), x[:3], y, "3 images"),
    ):
        with pytest.raises(KitError, match=words):
            attack(model, images, labels, THREATS[0])


@pytest.mark.parametrize(
    ("attack", "settings", "words"),
    [
        (apgd, {"steps": 0}, "steps"),
        (apgd, {"loss": "kl"}, "Choices: ce, dlr, targeted"),
        (apgd, {"restarts": 0}, "restarts"),
        (apgd, {"passes": 1.5}, "whole number"),
        (fab, {"goal": "far"}, "inside, nearest"),
        (fab, {"targeted": 1}, "True or"),
        (fab, {"steps": -1}, "steps"),
        (square, {"queries": 0}, "queries"),
        (square, {"share": 2.0}, "share"),
        (autoattack, {"version": "custom"}, "plus, rand, standard"),
        (autoattack, {"batch_size": 0}, "batch_size"),
        (autoattack, {"seed": -1}, "seed"),
        (autoattack, {"generator": 7}, "Streams"),
        (apgd, {"generator": 7}, "Streams"),
    ],
)
def test_settings_out_of_range_are_refused(attack, settings, words, network, batch):
    with pytest.raises(KitError, match=words):
        attack(network, *batch, THREATS[0], **settings)


def test_square_needs_images(network, batch):
    with pytest.raises(KitError, match="two sides"):
        square(network, batch[0].flatten(1), batch[1], THREATS[0])


# ------------------------------------------------------------------------------ randomised networks


class Noisy(nn.Module):
    """Adds the next of a list of offsets to the margin, over and over; remembers how often it was
    asked.
    """

    def __init__(self, offsets: list[float]):
        super().__init__()
        self.offsets, self.calls = offsets, 0

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1).mean(dim=1) - 0.3 + self.offsets[self.calls % len(self.offsets)]
        self.calls += 1
        return torch.stack([value, -value], dim=1)


def test_a_gradient_is_a_mean_over_passes(network, batch):
    """Gradient, objective and logits of a network that answers differently each time; the mean
    decides what is broken.
    """
    x, y = torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    look = AttackTracker(Noisy([0.0, -2.0, 4.0]), x, y, THREATS[0], "inside", "linf")
    gradient, value, logits = look.gradient(x, look.rows, tensors.per_example_cross_entropy, 3)
    margins = [2 * (0.2 + offset) for offset in (-2.0, 4.0, 0.0)]
    assert value.item() == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 3)
    assert logits[0, 0].item() == pytest.approx(0.2 + 2 / 3) and not bool(look.broken)
    slope = sum(-2 / (1 + math.exp(m)) for m in margins) / 3
    torch.testing.assert_close(gradient, torch.full_like(x, slope / 64), rtol=1e-9, atol=0)
    assert look.forwards.tolist() == [4] and look.backwards.tolist() == [3]


def test_rand_averages_twenty_passes():
    x, y = torch.full((3, 1, 8, 8), 0.5, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    model = Noisy([0.0, 0.2, -0.2, 0.1, -0.1])
    for eps, broken in ((0.15, False), (0.3, True)):
        result = autoattack(model, x, y, Threat("linf", eps), version="rand", validate=False)
        assert result.broken.tolist() == [broken] * 3
        if not broken:
            assert result.backwards.tolist() == [2 * 101 * 20] * 3 and any(
                "DLR needs" in note for note in result.notes
            )


# --------------------------------------------------------------------------------------- autoattack


def test_the_versions_are_the_authors():
    order = {
        version: [
            (name, {"restarts": 1, "passes": 1, "queries": 0, **row.params})
            for name, row in rows.items()
        ]
        for version, rows in VERSIONS.items()
    }
    assert [name for name, _ in order["standard"]] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert [name for name, _ in order["plus"]] == [
        "apgd-ce",
        "apgd-dlr",
        "fab",
        "square",
        "apgd-t",
        "fab-t",
    ]
    assert [(name, row["passes"]) for name, row in order["rand"]] == [
        ("apgd-ce", 20),
        ("apgd-dlr", 20),
    ]
    assert [row["restarts"] for _, row in order["plus"]] == [5, 5, 5, 1, 1, 1] and order["plus"][3][
        1
    ]["queries"] == 5000
    assert (
        all(row["restarts"] == 1 for _, row in order["standard"])
        and order["plus"][2][1]["targeted"] is False
    )


@BOTH_NORMS
def test_autoattack_is_its_attacks_in_turn(threat, network, batch, short):
    """On what the ones before left standing; passes add up; `by` and `step` tell which and when."""
    x, y = batch
    threat = Threat(threat.norm, 0.4 * threat.eps)
    result = autoattack(network, x, y, threat, seed=5)
    standing, forwards, by = torch.arange(16), torch.zeros(16, dtype=torch.int64), [""] * 16
    for name, attack in SHORT.items():
        alone = attack(
            network,
            x[standing],
            y[standing],
            threat,
            generator=Streams(standing, "autoattack", 5, name),
        )
        for i, row in enumerate(standing.tolist()):
            if alone.broken[i]:
                by[row] = "clean" if alone.step[i] == 0 else name
                assert result.step[row] == forwards[row] + alone.step[i] and torch.equal(
                    result.x_adv[row], alone.x_adv[i]
                )
        forwards[standing] += alone.forwards
        standing = standing[~alone.broken]
    assert result.by == tuple(by) and torch.equal(result.forwards, forwards)
    assert 4 <= int(result.broken.sum()) < 16 and torch.equal(
        predicted(network, result.x_adv) != y, result.broken
    )


def test_no_batch_changes_autoattack(network, batch, short):
    x, y = batch
    whole = autoattack(network, x, y, Threat("linf", 0.02))
    inputs = calls_of(network)
    small = autoattack(network, x, y, Threat("linf", 0.02), batch_size=3, validate=False)
    assert max(map(len, inputs)) == 3 * AHEAD and whole.by == small.by
    torch.testing.assert_close(small.x_adv, whole.x_adv, rtol=0, atol=1e-9)
    order = torch.tensor([4, 15, 0, 9, 2])
    mixed = autoattack(
        network, x[order], y[order], Threat("linf", 0.02), generator=Streams(order, "autoattack", 0)
    )
    assert mixed.by == tuple(whole.by[i] for i in order.tolist())
    torch.testing.assert_close(mixed.x_adv, whole.x_adv[order], rtol=0, atol=1e-9)


class Stops(nn.Module):
    """Raises after a number of passes, as a preempted job would."""

    def __init__(self, net: nn.Module, passes: int):
        super().__init__()
        self.net = net
        self.left = passes

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise InterruptedError
        return self.net(x)


def test_an_interrupted_attack_goes_on_where_it_stopped(network, batch, short, tmp_path):
    x, y = batch
    settings = {"batch_size": 5, "seed": 3, "validate": False}
    whole = autoattack(Stops(network, 10**9), x, y, Threat("linf", 0.02), **settings)
    passes, interruptions = 80, 0
    while True:
        model = Stops(network, passes)
        try:
            resumed = autoattack(
                model, x, y, Threat("linf", 0.02), state=tmp_path / "aa", **settings
            )
            break
        except InterruptedError:
            interruptions += 1
            assert interruptions < 40
            passes += 20
    assert interruptions >= 2 and same_result(resumed, whole)
    model = Stops(network, 0)
    assert same_result(
        autoattack(model, x, y, Threat("linf", 0.02), state=tmp_path / "aa", **settings), whole
    ), "nothing to do"
    settings["batch_size"] = 4
    assert same_result(
        autoattack(model, x, y, Threat("linf", 0.02), state=tmp_path / "aa", **settings), whole
    ), "in other batches"


def test_damaged_pieces_are_computed_again(network, batch, short, tmp_path):
    x, y = batch
    settings = {"batch_size": 5, "state": tmp_path / "aa"}
    whole = autoattack(network, x, y, Threat("linf", 0.02), **settings)
    pieces = sorted((tmp_path / "aa").rglob("*.pt"))
    assert len(pieces) >= 6
    content = [path.read_bytes() for path in pieces]
    pieces[0].write_bytes(content[0][:-100])
    pieces[1].write_bytes(b"")
    pieces[2].write_bytes(bytes(byte ^ 1 for byte in content[2]))
    pieces[-1].unlink()
    inputs = calls_of(network)
    assert same_result(autoattack(network, x, y, Threat("linf", 0.02), **settings), whole)
    assert inputs and [path.read_bytes() for path in pieces] == content


def test_a_state_of_something_else_is_refused(network, batch, short, tmp_path):
    x, y = batch
    state, threat = tmp_path / "aa", Threat("linf", 0.02)
    autoattack(network, x, y, threat, state=state)
    changed = dense()
    with torch.no_grad():
        changed[1].bias[0] += 1e-3
    for arguments, settings, words in (
        ((changed, x, y, threat), {}, "its network differs"),
        ((network, x.flip(0), y, threat), {}, "its images differs"),
        ((network, x, y.flip(0), threat), {}, "its labels differs"),
        ((network, x, y, Threat("linf", 0.020001)), {}, "its threat, radius differ"),
        ((network, x, y, Threat("l2", 0.02)), {}, "its threat differs"),
        ((network, x, y, threat), {"version": "rand"}, "its attacks differs"),
        ((network, x, y, threat), {"seed": 1}, "its streams differs"),
        ((network, x, y, threat), {"generator": streams(16)}, "its streams differs"),
    ):
        with pytest.raises(KitError, match=f"belongs to another evaluation: {words}"):
            autoattack(*arguments, state=state, **settings)
    # without its record a folder's pieces are not trusted, only overwritten
    (state / "state.json").unlink()
    fresh = autoattack(changed, x, y, threat, state=state)
    assert same_result(fresh, autoattack(changed, x, y, threat))
    (state / "state.json").write_text("{")
    with pytest.raises(KitError, match=r"state\.json"):
        autoattack(changed, x, y, threat, state=state)
