"""Attacks:

exact on linear models, inside the ball and the box, leaving everything as found, and refusing bad
input.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from kit.attacks.clean_images import natural, predict
from kit.attacks.contract import AttackTrace, check_inputs, frozen
from kit.attacks.fast_gradient_sign import fgsm
from kit.attacks.friendly_pgd_attack import friendly_pgd
from kit.attacks.pgd_evaluation import pgd_search
from kit.attacks.projected_gradient_descent import pgd
from kit.attacks.table import ATTACKS
from kit.attacks.tracker import AttackResult
from kit.core import tensors
from kit.core.errors import KitError
from kit.core.parts import part
from kit.core.random_streams import Streams
from kit.core.threat import Threat
from tests.helpers.attack_problems import (
    DISTANCE,
    NORMS,
    PIXELS,
    THREATS,
    Mixed,
    calls_of,
    linear_problem,
    random,
    streams,
)

#: The rows of evaluation by PGD; the others have their own files.
PGD_ROWS = {name: row for name, row in ATTACKS.items() if row.fn in (natural, pgd_search)}


# ------------------------------------------------------------------------------------ linear models


def long_pgd(
    loss: str, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, **supplied
) -> Tensor:
    return pgd(model, x, y, threat, loss=loss, steps=40, step_size=0.25 * threat.eps, **supplied)


PGD_RUNS = {loss: functools.partial(long_pgd, loss) for loss in ("ce", "margin", "kl")}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", ["fgsm", "ce", "margin", "kl"])
def test_no_attack_crosses_a_boundary_out_of_reach(norm, attack):
    """At 0.95 of the distance nothing in the ball is misclassified, whatever the loss and the
    start.
    """
    model, x, y = linear_problem(norm, DISTANCE[norm])
    run = PGD_RUNS.get(attack, fgsm)
    x_adv = run(model, x, y, Threat(norm, 0.95 * DISTANCE[norm]), generator=streams(12))
    assert torch.equal(predict(model, x_adv), y)
    margin = tensors.margin(model(x_adv), y)
    if attack != "kl":
        assert bool((margin < tensors.margin(model(x), y)).all()), "but it came nearer"


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", ["fgsm", "ce", "margin"])
def test_every_attack_crosses_a_boundary_in_reach(norm, attack):
    model, x, y = linear_problem(norm, DISTANCE[norm])
    run = PGD_RUNS.get(attack, fgsm)
    x_adv = run(model, x, y, Threat(norm, 1.05 * DISTANCE[norm]), generator=streams(12))
    assert bool((predict(model, x_adv) != y).all())


@pytest.mark.parametrize("norm", NORMS)
def test_kl_follows_its_random_start_across_the_boundary(norm):
    """KL grows away from the clean prediction:

    a start that lowers p_y is driven over the boundary, the others back.
    """
    model, x, y = linear_problem(norm, DISTANCE[norm])
    starts = []
    x_adv = PGD_RUNS["kl"](
        model,
        x,
        y,
        Threat(norm, 1.05 * DISTANCE[norm]),
        generator=streams(12),
        watch=lambda t, x_t, logits: starts.append(tensors.margin(logits, y)),
    )
    lowered = starts[0] < tensors.margin(model(x), y)
    assert 2 <= int(lowered.sum()) <= 10
    assert torch.equal(predict(model, x_adv) != y, lowered)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("attack", "gap"),
    [("fgsm", 1), ("ce", 1), ("margin", 1), ("fgsm", 40), ("ce", 40), ("margin", 400)],
)
def test_confidence_does_not_shorten_the_step(norm, attack, gap):
    """Scaling the logits moves no boundary:

    the same images fall, though at a gap of 40 p_j is 4e-18.
    """
    model, x, y = linear_problem(norm, DISTANCE[norm])
    with torch.no_grad():
        model.scale = gap / float(tensors.margin(model(x), y).mean())
        assert tensors.margin(model(x), y).tolist() == pytest.approx([gap] * 12)
    x_adv = PGD_RUNS.get(attack, fgsm)(
        model, x, y, Threat(norm, 1.05 * DISTANCE[norm]), generator=streams(12)
    )
    assert bool((predict(model, x_adv) != y).all())


@pytest.mark.parametrize("name", [n for n in PGD_ROWS if n != "natural"])
def test_every_row_breaks_what_is_in_reach_and_nothing_else(name):
    """On the linear model a row's flags are the closed form, in both norms."""
    for norm in NORMS:
        model, x, y = linear_problem(norm, DISTANCE[norm])
        for factor, expected in ((0.95, 0), (1.2, 12)):
            with frozen(model):
                outcome = ATTACKS[name](
                    model, x, y, Threat(norm, factor * DISTANCE[norm]), streams(12)
                )
            assert int(outcome.broken.sum()) == int((outcome.prediction != y).sum()) == expected, (
                norm,
                factor,
            )


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_step_by_step(norm):
    """Three steps with cross-entropy on the linear model, again in plain loops."""
    model, x, y = linear_problem(norm, DISTANCE[norm])
    threat, size = Threat(norm, 0.1), 0.06
    seen = []
    x_adv = pgd(
        model,
        x,
        y,
        threat,
        steps=3,
        step_size=size,
        init="none",
        watch=lambda t, x_t, logits: seen.append(x_t.clone()),
    )
    w = model.w.tolist()
    for i in range(len(x)):
        clean = x[i].flatten().tolist()
        now, sign = list(clean), 1 if y[i] == 0 else -1
        path = [list(now)]
        for _ in range(3):
            g = sum(a * (b - 0.5) for a, b in zip(w, now, strict=True))
            slope = -sign / (1 + math.exp(sign * g))  # d CE / d g
            gradient = [slope * a for a in w]
            length = math.sqrt(sum(v * v for v in gradient))
            step = [math.copysign(1, v) if norm == "linf" else v / length for v in gradient]
            delta = [a + size * s - c for a, s, c in zip(now, step, clean, strict=True)]
            reach = math.sqrt(sum(v * v for v in delta))
            if norm == "linf":
                delta = [min(max(v, -0.1), 0.1) for v in delta]
            elif reach > 0.1:
                delta = [v * 0.1 / reach for v in delta]
            now = [min(max(c + v, 0), 1) for c, v in zip(clean, delta, strict=True)]
            path.append(now)
        for t, expected in enumerate(path):
            got = seen[t][i] if t < 3 else x_adv[i]
            assert got.flatten().tolist() == pytest.approx(expected, abs=1e-12), (i, t)


@pytest.mark.parametrize("loss", ["ce", "kl", "margin"])
def test_each_loss_has_its_own_direction(loss):
    """Three linear classes, one L2 step from a given start: towards Σ p_j w_j - w_y, Σ (q_j - p_j)
    w_j, or w_j - w_y of the strongest other class.
    """
    w, shift = random(3, PIXELS, seed=11) - 0.5, 0.02 * (random(5, 1, 4, 4, seed=12) - 0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 3, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(w)
    x, y = 0.4 + 0.2 * random(5, 1, 4, 4, seed=13), torch.tensor([0, 1, 2, 0, 1])
    got = (
        pgd(model, x, y, Threat("l2", 0.2), loss=loss, init=shift, steps=1, step_size=0.05)
        - x
        - shift
    ) / 0.05
    for i in range(5):
        z = [
            [sum(a * b for a, b in zip(row, image, strict=True)) for row in w.tolist()]
            for image in (x[i].flatten().tolist(), (x + shift)[i].flatten().tolist())
        ]
        p, q = ([math.exp(v) / sum(map(math.exp, side)) for v in side] for side in z)
        pull = [b - a for a, b in zip(p, q, strict=True)] if loss == "kl" else list(q)
        if loss == "margin":
            top = max((j for j in range(3) if j != y[i]), key=lambda j: z[1][j])
            pull = [float(j == top) for j in range(3)]
        if loss != "kl":
            pull[y[i]] -= 1
        direction = [sum(pull[j] * w[j, k].item() for j in range(3)) for k in range(PIXELS)]
        length = math.sqrt(sum(v * v for v in direction))
        assert got[i].flatten().tolist() == pytest.approx([v / length for v in direction], abs=1e-9)


# ------------------------------------------------------------------------------ a network to attack


@pytest.fixture
def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = Mixed().double()
    with torch.no_grad():
        net.head.weight.mul_(6)
        net.body[1].running_mean.copy_(random(8, seed=5) - 0.5)
        net.body[4].running_var.copy_(random(8, seed=6) + 0.5)
    return net


@pytest.fixture
def batch(network) -> tuple[Tensor, Tensor]:
    """20 images with the network's own answer as their label, but for the last two."""
    x = random(20, 1, 8, 8, seed=7)
    y = predict(copy.deepcopy(network).eval(), x)
    return x, torch.cat([y[:18], (y[18:] + 1) % 10])


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("name", PGD_ROWS)
def test_every_image_that_a_row_tries_is_allowed(name, threat, network, batch):
    """Each start, iterate and end lies in [0, 1] and in the ball."""
    x, y = batch
    inputs = calls_of(network)
    with frozen(network):
        ATTACKS[name](network, x, y, threat, streams(20))
    row = ATTACKS[name].config()
    assert len(inputs) == 1 + (row.get("steps", -1) + 1) * row.get("restarts", 1)
    for x_t in inputs:
        assert float(x_t.min()) >= 0 and float(x_t.max()) <= 1
        assert bool((tensors.norm(x_t - x, threat.norm) <= threat.eps + 1e-9).all())
    if name != "natural":
        assert bool((tensors.norm(inputs[-1] - x, threat.norm) > 0.5 * threat.eps).all())


@pytest.mark.parametrize("init", ["none", "uniform", "gaussian"])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_the_result_is_allowed_whatever_the_start(init, threat, network, batch):
    """The Gaussian start is not projected, the result is. x itself stays as it was."""
    x, y = batch
    before = x.clone()
    x_adv = pgd(network, x, y, threat, generator=streams(20), init=init, steps=3)
    assert (
        torch.equal(x, before)
        and not x_adv.requires_grad
        and x_adv.dtype == x.dtype
        and x_adv.shape == x.shape
    )
    assert float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1
    assert bool((tensors.norm(x_adv - x, threat.norm) <= threat.eps + 1e-9).all())


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_starts_are_what_they_say(threat, network, batch):
    """none:

    x. uniform: all over the ball. gaussian: 0.001 wide, neither projected nor clipped. A tensor: x
    + that.
    """
    x, y = batch
    x = x.clone()
    x[:, :, :4] = 0  # at the wall, where a clip shows

    def first(init) -> Tensor:
        seen = []
        pgd(
            network,
            x,
            y,
            threat,
            generator=streams(20),
            init=init,
            steps=1,
            watch=lambda t, x_t, z: seen.append(x_t),
        )
        return seen[0]

    assert torch.equal(first("none"), x)
    uniform = first("uniform") - x
    assert float((uniform + x).min()) >= 0
    length = tensors.norm(uniform[:, :, 4:], threat.norm) / threat.eps
    assert (
        bool((length <= 1 + 1e-9).all())
        and float(length.max()) > 0.6
        and uniform.unique().numel() > 600
    )
    gaussian = (first("gaussian") - x) / 0.001
    assert (
        float(gaussian.std()) == pytest.approx(1, abs=0.1)
        and float((gaussian + x / 0.001).min()) < 0
    )
    unit = first("unit") - x
    assert float(unit.min()) >= 0 and float(unit.max()) <= 1
    assert float(unit.mean()) == pytest.approx(0.5, abs=0.05) and float((unit + x).max()) > 1
    shift = 0.01 * (random(*x.shape, seed=9) - 0.5)
    assert torch.equal(first(shift), x + shift)


@pytest.mark.parametrize("norm", NORMS)
def test_uniform_start_fills_the_ball_evenly(norm):
    """Away from the walls:

    each L-inf coordinate is U(-eps, eps); the L2 radius has the distribution r^d.
    """
    x = torch.full((4000, 1, 1, 3), 0.5, dtype=torch.float64)
    seen = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).double()
    pgd(
        model,
        x,
        torch.zeros(4000, dtype=torch.int64),
        Threat(norm, 0.2),
        generator=streams(4000),
        steps=1,
        watch=lambda t, x_t, z: seen.append((x_t - x).flatten(1) / 0.2),
    )
    delta = seen[0]
    assert delta.mean(dim=0).tolist() == pytest.approx([0] * 3, abs=0.04)
    if norm == "linf":
        assert delta.var(dim=0).tolist() == pytest.approx([1 / 3] * 3, rel=0.06)
    else:
        shares = [float((delta.norm(dim=1) <= r).double().mean()) for r in (0.3, 0.5, 0.8, 1.0)]
        assert shares == pytest.approx([r**3 for r in (0.3, 0.5, 0.8, 1.0)], abs=0.03)


@pytest.mark.parametrize("norm", NORMS)
def test_no_radius_no_change(norm, network, batch):
    x, y = batch
    for attack in (fgsm, pgd):
        assert torch.equal(attack(network, x, y, Threat(norm, 0.0), generator=streams(20)), x)
    for name, row in PGD_ROWS.items():
        with frozen(network):
            outcome = row(network, x, y, Threat(norm, 0.0), streams(20))
            assert torch.equal(outcome.prediction, predict(network, x)), name
        assert outcome.broken.tolist() == [False] * 18 + [True] * 2


def test_larger_radius_breaks_more(network, batch):
    """And at eps 1, where every image of the box is in the ball, a long attack breaks all."""
    x, y = batch
    broken = []
    with frozen(network):
        for eps in (0.0, 0.01, 0.03, 0.1, 1.0):
            broken.append(
                int(ATTACKS["cw100"](network, x, y, Threat("linf", eps), streams(20)).broken.sum())
            )
    assert (
        broken == sorted(broken) and broken[0] == 2 and broken[-1] == 20 and len(set(broken)) >= 4
    )


def test_fgsm_is_one_pgd_step_without_a_start(network, batch):
    x, y = batch
    for threat in THREATS:
        with frozen(network):
            expected = pgd(network, x, y, threat, steps=1, step_size=threat.eps, init="none")
        assert torch.equal(fgsm(network, x, y, threat), expected)
        row = ATTACKS["fgsm"](network, x, y, threat, streams(len(x)))
        with frozen(network):
            assert torch.equal(row.prediction, predict(network, expected))


# ----------------------------------------------------------------------------- everything as it was


def record(network: nn.Module) -> dict:
    return {
        "modes": [(name, module.training) for name, module in network.named_modules()],
        "flags": [(name, p.requires_grad) for name, p in network.named_parameters()],
        "grads": [
            (name, None if p.grad is None else p.grad.tolist())
            for name, p in network.named_parameters()
        ],
        "state": {name: t.tolist() for name, t in network.state_dict().items()},
        "random": torch.get_rng_state().tolist(),
    }


@pytest.fixture
def odd(network) -> nn.Module:
    """Partly in training mode, partly frozen, with a gradient on two tensors."""
    network.train()
    network.body[1].eval()
    network.head.bias.requires_grad_(False)
    network.head.weight.grad = torch.full_like(network.head.weight, 0.25)
    network.body[0].bias.grad = torch.ones_like(network.body[0].bias)
    return network


def short_pgd(loss: str, init: str, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return pgd(net, x, y, THREATS[1], generator=streams(20), steps=2, loss=loss, init=init)


USES = {
    "fgsm": lambda net, x, y: fgsm(net, x, y, THREATS[0]),
    **{
        f"pgd {loss} {init}": functools.partial(short_pgd, loss, init)
        for loss, init in itertools.product(
            ("ce", "kl", "margin"), ("none", "uniform", "gaussian", "unit")
        )
    },
    "pgd with a generator": lambda net, x, y: pgd(
        net, x, y, THREATS[0], generator=torch.Generator().manual_seed(1)
    ),
    "check_inputs": check_inputs,
}


@pytest.mark.parametrize("use", USES)
def test_the_model_and_the_random_state_come_back(use, odd, batch):
    """Modes of each module, gradient flags, gradients, batch-norm buffers and the global random
    numbers.
    """
    before = record(odd)
    modes = []
    odd.head.register_forward_hook(lambda *_: modes.append((odd.training, odd.body[5].training)))
    USES[use](odd, *batch)
    assert record(odd) == before
    assert modes and set(modes) == {(False, False)}, "and it was attacked in eval mode"


def test_frozen_asks_for_no_parameter_gradients(odd, batch):
    """Inside, a backward pass reaches the pixels and no parameter."""
    x = batch[0].clone().requires_grad_(True)
    before = record(odd)
    with frozen(odd) as model:
        assert model is odd and not any(p.requires_grad for p in odd.parameters())
        odd(x).sum().backward()
    assert bool(x.grad.any()) and record(odd) == before


@pytest.mark.parametrize("name", PGD_ROWS)
def test_rows_leave_the_model_and_the_random_state_alone(name, odd, batch):
    before = record(odd)
    with frozen(odd):
        ATTACKS[name](odd, *batch, THREATS[0], streams(20))
    assert record(odd) == before


def test_the_model_comes_back_after_an_error(odd, batch):
    before = record(odd)

    def stop(t, x_t, logits):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        pgd(odd, *batch, THREATS[0], generator=streams(20), watch=stop)
    with pytest.raises(KitError):
        pgd(odd, batch[0], batch[1][:3], THREATS[0])
    assert record(odd) == before


def test_attacks_work_where_gradients_are_off(network, batch):
    with torch.no_grad():
        quiet = pgd(network, *batch, THREATS[0], generator=streams(20))
        assert not torch.is_grad_enabled()
    assert torch.equal(quiet, pgd(network, *batch, THREATS[0], generator=streams(20)))


def test_without_streams_the_global_state_is_left_alone(network, batch):
    """Streams numbered by place are drawn from instead: a call is the same again."""
    before = torch.get_rng_state()
    for attack in (pgd, friendly_pgd):
        first, again = (attack(network, *batch, THREATS[1], steps=2) for _ in range(2))
        assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())


# -------------------------------------------------------------------------------------- batch mates


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("name", PGD_ROWS)
def test_neither_batch_size_nor_mates_nor_order_matter(name, threat, network, batch):
    """Some alone, in odd pieces and shuffled: the same outcome for each image."""
    x, y = batch
    ids = 1000 + 7 * torch.arange(20)
    with frozen(network):

        def run(rows: Tensor) -> AttackResult:
            return ATTACKS[name](network, x[rows], y[rows], threat, Streams(ids[rows], "test"))

        whole = run(torch.arange(20))
        shuffled = torch.randperm(20, generator=torch.Generator().manual_seed(4))
        alone = [*torch.arange(5).split(1), torch.arange(5, 18), *torch.arange(18, 20).split(1)]
        splits = [list(torch.arange(20).split(7)), list(shuffled.split(20))]
        if ATTACKS[name].settings.get("steps", 0) <= 20:
            splits.append(alone)
        for pieces in splits:
            outcomes, back = [run(rows) for rows in pieces], torch.cat(pieces).argsort()
            assert torch.equal(torch.cat([o.prediction for o in outcomes])[back], whole.prediction)
            assert torch.equal(torch.cat([o.broken for o in outcomes])[back], whole.broken)


@pytest.mark.parametrize("loss", ["ce", "kl", "margin"])
@pytest.mark.parametrize("init", ["uniform", "gaussian"])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_attacked_images_depend_on_their_id_alone(threat, init, loss, network, batch):
    x, y = batch
    ids = torch.arange(20) * 3

    def run(rows, name: object = 0) -> Tensor:
        source = Streams(ids[rows], "test", name)
        return pgd(
            network, x[rows], y[rows], threat, generator=source, init=init, loss=loss, steps=4
        )

    whole, order = run(torch.arange(20)), torch.arange(20).flip(0)
    torch.testing.assert_close(run(order), whole[order], rtol=0, atol=1e-9)
    torch.testing.assert_close(
        torch.cat([run(torch.tensor([i])) for i in range(20)]), whole, rtol=0, atol=1e-9
    )
    assert not torch.allclose(run(torch.arange(20), 1), whole, atol=1e-9), (
        "other streams start elsewhere"
    )


# --------------------------------------------------------------------------- the watch and the path


def test_watch_sees_the_start_and_every_evaluation_point(network, batch):
    """t = 0..steps-1 with the logits of just that image; the returned point is the one after the
    last.
    """
    x, y = batch
    for steps in (1, 2, 5):
        calls, threat = [], THREATS[0]
        x_adv = pgd(
            network,
            x,
            y,
            threat,
            steps=steps,
            step_size=0.01,
            init="none",
            watch=lambda t, x_t, z, calls=calls: calls.append((t, x_t.clone(), z.clone())),
        )
        assert [t for t, _, _ in calls] == list(range(steps)) and torch.equal(calls[0][1], x)
        with frozen(network):
            for _, x_t, logits in calls:
                torch.testing.assert_close(logits, network(x_t).detach())
                assert not logits.requires_grad and not x_t.requires_grad
        last = calls[-1][1]
        moved = tensors.norm(x_adv - last, "linf")
        assert bool((moved <= 0.01 + 1e-12).all()) and bool((moved > 0).all())


def test_default_step_is_two_and_a_half_radii_over_the_steps(network, batch):
    x, y = batch
    kept = []
    pgd(
        network,
        x,
        y,
        Threat("linf", 0.08),
        steps=10,
        init="none",
        watch=lambda t, x_t, z: kept.append(x_t),
    )
    inner = (x > 0.05) & (x < 0.95)
    step = (kept[1] - kept[0]).abs()[inner]
    assert step[step > 0].tolist() == pytest.approx([0.02] * int((step > 0).sum())) and bool(
        (step > 0).any()
    )


def path_by_hand(
    y: list[int], logits: list[list[list[float]]]
) -> list[tuple[int, int, float | None]]:
    """(kappa, lps, p_flip) of each example, from logits[t][i][k]."""
    found = []
    for i, label in enumerate(y):
        kappa, lps, p_flip = 0, len(logits), None
        for t, rows in enumerate(logits):
            z = rows[i]
            right = z.index(max(z)) == label
            kappa += right
            if not right and p_flip is None:
                lps = t
                p_flip = math.exp(z[label]) / sum(math.exp(v) for v in z)
        found.append((kappa, lps, p_flip))
    return found


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_path_counts_what_a_loop_counts(steps):
    """On random logits, where examples cross the boundary to and fro."""
    logits = 2 * random(steps, 60, 3, seed=steps) - 1
    y = torch.arange(60) % 3
    logits[:, :6, :].scatter_(
        2, y[:6].view(1, 6, 1).expand(steps, 6, 1), 5.0
    )  # six are never crossed
    path = AttackTrace(y, steps)
    for t in range(steps):
        path(t, torch.empty(60, 1, 1, 1), logits[t])
    expected = path_by_hand(y.tolist(), logits.tolist())
    assert path.kappa.tolist() == [e[0] for e in expected]
    assert path.lps.tolist() == [e[1] for e in expected]
    for got, (_, _, p_flip) in zip(path.p_flip.tolist(), expected, strict=True):
        assert math.isnan(got) if p_flip is None else got == pytest.approx(p_flip)
    assert path.lps[:6].tolist() == path.kappa[:6].tolist() == [steps] * 6
    if steps > 1:
        assert bool((path.kappa > path.lps).any()), (
            "some came back, so that kappa is not the first crossing"
        )


def test_path_never_counts_logits_that_are_no_numbers():
    """As everywhere else, an example with NaN logits is not classified correctly."""
    path = AttackTrace(torch.tensor([1, 0]), 2)
    path(0, torch.empty(2, 1), torch.tensor([[0.0, math.nan], [math.nan, math.nan]]))
    assert path.kappa.tolist() == [0, 0] and path.lps.tolist() == [0, 0]


# ----------------------------------------------------------------------------------------- outcomes


@pytest.mark.parametrize("threat", [Threat("linf", 0.012), Threat("l2", 0.06)], ids=str)
@pytest.mark.parametrize("name", PGD_ROWS)
def test_any_iterate_counts_at_least_what_the_last_does(name, threat, network, batch):
    x, y = batch
    with frozen(network):
        outcome = ATTACKS[name](network, x, y, threat, streams(20))
        clean_wrong = predict(network, x) != y
    assert (
        outcome.prediction.shape == outcome.broken.shape == (20,)
        and outcome.broken.dtype == torch.bool
    )
    last_wrong = outcome.prediction != y
    assert bool(outcome.broken[last_wrong].all()) and bool(outcome.broken[clean_wrong].all())
    assert 2 <= int(outcome.broken.sum()) < 20, (
        "neither nothing nor everything, or the test says little"
    )


@pytest.mark.parametrize(
    ("plan", "prediction", "broken"),
    [
        (["right", "right", "right"], 0, False),
        (["right", "right", "wrong"], 1, True),  # only the returned point
        (["right", "wrong", "right"], 0, True),  # on the way, and back again
        (["wrong", "right", "right"], 0, True),  # the random start
        (["right", "right", "right", "right", "right", "wrong"], 0, True),  # the second restart
        (
            ["right", "right", "wrong", "right", "right", "right"],
            1,
            True,
        ),  # the first restart is the prediction
        (["right", "right", "right", "right", "wrong", "right"], 0, True),
    ],
)
@pytest.mark.parametrize("stop_early", [False, True])
def test_broken_is_any_iterate_of_any_restart(plan, prediction, broken, stop_early):
    """The prediction is the first restart's last iterate.

    The network answers by a script, the clean image rightly.
    """
    script = iter(["right", *plan])

    class Scripted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sign = 1.0 if next(script) == "right" else -1.0
            return torch.stack([sign + 0 * x.sum(), -sign + 0 * x.sum()]).view(1, 2)

    x = torch.full((1, 1, 2, 2), 0.1)
    outcome = pgd_search(
        Scripted(),
        x,
        torch.tensor([0]),
        Threat(),
        generator=streams(1),
        validate=False,
        steps=2,
        restarts=len(plan) // 3,
        stop_early=stop_early,
    )
    assert outcome.broken.item() == broken
    at = plan.index("wrong") + 1 if broken else -1
    assert outcome.step.item() == at and outcome.by == (("pgd",) if broken else ("",))
    if stop_early:
        assert outcome.forwards.item() == (at if broken else len(plan)) + 1, (
            "an image that is broken costs no more"
        )
        assert outcome.prediction.item() == int(broken)
    else:
        assert (
            outcome.forwards.item() == len(plan) + 1
            and outcome.backwards.item() == len(plan) // 3 * 2
        )
        assert outcome.prediction.item() == prediction


class Ridge(nn.Module):
    """One pixel with a margin of 1 - 90u² - 4u around grey: within 0.1 only the bright end is
    wrong, and from a start below u = -0.022 the gradient leads to the dark end.
    """

    def forward(self, x: Tensor) -> Tensor:
        u = x.flatten(1).mean(dim=1) - 0.5
        margin = 1 - 90 * u**2 - 4 * u
        return torch.stack([margin, -margin], dim=1)


def test_restarts_only_add():
    """The first of five starts is the single run's:

    same predictions, no image is whole again, and many fall late.
    """
    x, y = torch.full((200, 1, 1, 1), 0.5), torch.zeros(200, dtype=torch.int64)
    one, five = (
        ATTACKS[name](Ridge(), x, y, Threat("linf", 0.1), streams(200))
        for name in ("pgd20", "pgd20x5")
    )
    assert torch.equal(one.prediction, five.prediction)
    assert bool(five.broken[one.broken].all())
    shares = [float(outcome.broken.double().mean()) for outcome in (one, five)]
    assert shares == pytest.approx([0.61, 1 - 0.39**5], abs=0.12)


def test_predict_gives_nan_logits_no_class():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x = torch.full((4, 1, 2, 2), 0.5)
    x[1], x[2] = math.nan, math.inf
    with torch.no_grad():
        assert predict(model, x).tolist()[1:3] == [-1, -1]
        assert predict(model, x)[0] == model(x)[0].argmax() == predict(model, x)[3]


def test_rows_describe_themselves_and_differ():
    """Each row's configuration has all that decides its outcome, and no two agree."""
    configs = [str(row.config()) for row in ATTACKS.values()]
    assert len(set(configs)) == len(ATTACKS)
    assert ATTACKS["pgd20x5"].config() == ATTACKS["pgd20"].config() | {"restarts": 5}
    assert ATTACKS["pgd20"].but(steps=40).config() == ATTACKS["pgd20"].config() | {"steps": 40}
    with pytest.raises(KitError, match="Did you mean 'steps'"):
        ATTACKS["pgd20"].but(step_s=3)
    for row in ATTACKS.values():
        assert row.title and row.source and set(row.settings) <= set(row.defaults)


# ----------------------------------------------------------------------------------------- refusals


def flat_net(classes: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(4, classes))


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] / 0 * 0 - 1


class Pixels(nn.Module):
    """No batch of logits: one number per image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(dim=1)


X, Y = random(4, 1, 2, 2, dtype=torch.float32), torch.tensor([0, 1, 2, 0])


def with_pixel(value: float) -> Tensor:
    x = X.clone()
    x[2, 0, 1, 1] = value
    return x


REFUSED = {
    "pixel above 1": (
        lambda: (flat_net(), with_pixel(1.5), Y),
        r"pixels run from .* to 1\.5.*\[0, 1\]",
    ),
    "pixel below 0": (
        lambda: (flat_net(), with_pixel(-0.1), Y),
        r"pixels run from -0\.1.*\[0, 1\]",
    ),
    "bytes as floats": (lambda: (flat_net(), 255 * X, Y), r"pixels run.*Scale the images"),
    "NaN pixel": (lambda: (flat_net(), with_pixel(math.nan), Y), r"pixels run from nan"),
    "infinite pixel": (lambda: (flat_net(), with_pixel(math.inf), Y), r"pixels run from .* to inf"),
    "bytes": (lambda: (flat_net(), (255 * X).byte(), Y), r"dtype torch\.uint8.*expected floats"),
    "label too large": (
        lambda: (flat_net(), X, Y + 1),
        r"labels run from 1 to 3; a model with 3 outputs knows 0 to 2",
    ),
    "label below 0": (lambda: (flat_net(), X, Y - 1), r"labels run from -1 to 1"),
    "float labels": (
        lambda: (flat_net(), X, Y.float()),
        r"labels have dtype torch\.float32.*expected int64",
    ),
    "column of labels": (lambda: (flat_net(), X, Y[:, None]), r"labels have .*shape \(4, 1\)"),
    "one label short": (lambda: (flat_net(), X, Y[:3]), r"4 images came with 3 labels"),
    "no images": (lambda: (flat_net(), X[:0], Y[:0]), r"no images to attack"),
    "probabilities": (
        lambda: (nn.Sequential(flat_net(), nn.Softmax(dim=1)), X, Y),
        r"returns probabilities.*softmax",
    ),
    "NaN logits": (lambda: (Broken(), X, Y), r"NaN or infinite logits for 4 of 4 images"),
    "one output per image": (
        lambda: (Pixels(), X, Y),
        r"returned shape \(4,\) for 4 images; expected logits \(N, K\)",
    ),
    "a single class": (lambda: (flat_net(1), X, torch.zeros_like(Y)), r"returned shape \(4, 1\)"),
}


@pytest.mark.parametrize(
    "attack",
    [fgsm, pgd, lambda net, x, y, _: check_inputs(net, x, y)],
    ids=["fgsm", "pgd", "check"],
)
@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_words(case, attack):
    make, words = REFUSED[case]
    with pytest.raises(KitError, match=words):
        attack(*make(), Threat())


def test_good_input_is_not_refused():
    for x in (X, torch.zeros_like(X), torch.ones_like(X), X[:1]):
        check_inputs(flat_net(), x, Y[: len(x)])


def test_bad_settings_of_pgd_are_refused():
    net = flat_net()
    with pytest.raises(KitError, match="init='sphere' is none of: none, uniform, gaussian, unit"):
        pgd(net, X, Y, Threat(), init="sphere")
    with pytest.raises(
        KitError, match=r"start perturbation has shape \(1, 2, 2\), the images \(4, 1, 2, 2\)"
    ):
        pgd(net, X, Y, Threat(), init=torch.zeros(1, 2, 2))
    with pytest.raises(KitError, match="3 example ids cannot seed a batch of 4"):
        pgd(net, X, Y, Threat(), generator=streams(3))


@pytest.mark.parametrize(
    "bad", [{"loss": "hinge"}, {"steps": 0}, {"steps": -2}, {"step_size": -0.1}], ids=str
)
def test_settings_outside_their_range_are_refused(bad):
    """Also where pgd is called as a function, without a `Part` in between."""
    with pytest.raises(KitError, match=next(iter(bad))):
        pgd(flat_net(), X, Y, Threat(), **bad)


def test_settings_of_a_part_are_checked():
    with pytest.raises(KitError, match=r"no value of pgd\.loss 'hinge'.*ce, kl, margin"):
        part(pgd, loss="hinge")
    with pytest.raises(KitError, match=r"no parameter of pgd 'eps'.*init, loss"):
        part(pgd, eps=0.1)


@pytest.mark.parametrize("name", [n for n in PGD_ROWS if n != "natural"])
def test_attacks_do_more_than_noise(name, network, batch):
    """In single precision:

    images that signs thrown at random leave alone are broken at the same eps.
    """
    net, x = network.float(), batch[0].float()
    with frozen(net):
        y = predict(net, x)
        noise = (random(20, 1, 8, 8, seed=8, dtype=torch.float32) - 0.5).sign()
        unlucky = predict(net, (x + 0.03 * noise).clamp(0, 1)) != y
        outcome = ATTACKS[name](net, x, y, Threat("linf", 0.03), streams(20))
    assert int(outcome.broken.sum()) >= int(unlucky.sum()) + 8
