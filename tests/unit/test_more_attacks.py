"""Momentum, basic iterative, line-search, margin-decomposing, minimal-norm and SPSA attacks: the
exact distances on linear models, second implementations, and what an
`AttackResult` promises.
"""

from __future__ import annotations

import copy
import importlib
import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from kit.attacks.basic_iterative import bia
from kit.attacks.carlini_wagner import cw_l2
from kit.attacks.clean_images import predict
from kit.attacks.contract import AttackTrace, frozen
from kit.attacks.fast_minimum_norm import fmn
from kit.attacks.line_search_pgd import LINE_SEARCH, lmpgd
from kit.attacks.margin_decomposition import md, mdmt, stage_objective, step_length
from kit.attacks.momentum_iterative import mifgsm
from kit.attacks.simultaneous_perturbation import estimate, spsa
from kit.attacks.table import ATTACKS as ROWS
from kit.attacks.tracker import ROUNDING, AttackResult, AttackTracker
from kit.core import tensors
from kit.core.errors import KitError
from kit.core.parts import part
from kit.core.random_streams import Streams
from kit.core.threat import Threat
from tests.helpers.attack_problems import (
    DISTANCE,
    NORMS,
    THREATS,
    Mixed,
    calls_of,
    linear_problem,
    random,
    streams,
)

#: Every attack of these files, at settings that take a fraction of a second on small networks.
BUDGET = {
    "mifgsm": partial(mifgsm, steps=12, step_size=0.02),
    "bia": partial(bia, steps=8, step_size=0.03),
    "lmpgd": partial(lmpgd, steps=5),
    "md": partial(md, steps=12, change_point=5),
    "md-dlr": partial(md, steps=12, change_point=5, dlr=True),
    "mdmt": partial(mdmt, steps=6, change_point=3),
    "spsa": partial(spsa, steps=6, samples=40, lr=0.02),
}
MINIMAL = {
    "fmn": partial(fmn, steps=40),
    "cw-l2": partial(cw_l2, steps=30, search_steps=4, lr=0.05, initial_const=0.1),
}
ATTACKS = {**BUDGET, **MINIMAL}
EVERY = pytest.mark.parametrize("name", ATTACKS)
BOTH_NORMS = pytest.mark.parametrize("threat", THREATS, ids=str)


def distance(name: str, delta: Tensor, threat: Threat) -> Tensor:
    """What an attack's `size` is measured in."""
    return tensors.norm(delta, "l2" if name == "cw-l2" else threat.norm)


# ------------------------------------------------------------------------------------ linear models

LONG = {
    "mifgsm": partial(mifgsm, steps=40),
    "bia": partial(bia, steps=40, step_size=0.01),
    "lmpgd": partial(lmpgd, steps=10),
    "md": md,
    "mdmt": mdmt,
    "spsa": partial(spsa, steps=100, samples=64),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", LONG)
def test_a_budget_attack_crosses_a_boundary_in_reach_and_no_other(name, norm):
    model, x, y = linear_problem(norm, DISTANCE[norm])
    for factor, broken in ((0.95, 0), (1.05, 12)):
        result = LONG[name](
            model, x, y, Threat(norm, factor * DISTANCE[norm]), generator=streams(12)
        )
        assert int(result.broken.sum()) == broken, factor
        assert torch.equal(predict(model, result.x_adv) != y, result.broken)


@pytest.mark.parametrize("name", ["mifgsm", "bia", "lmpgd", "spsa"])
def test_the_point_after_the_last_step_counts(name):
    """One step is enough here, and nothing comes after it."""
    model, x, y = linear_problem("linf", DISTANCE["linf"])
    attack = partial(
        ATTACKS[name].func, steps=1, **({"lr": 1.0} if name == "spsa" else {"step_size": 1.0})
    )
    result = attack(model, x, y, Threat("linf", 1.5 * DISTANCE["linf"]))
    assert bool(result.broken.all()) and int(result.step.min()) > 0


@pytest.mark.parametrize(("name", "norm"), [("fmn", "linf"), ("fmn", "l2"), ("cw-l2", "l2")])
def test_a_minimal_norm_attack_finds_the_distance(name, norm):
    """Within 5 % of the truth and never below it; what is broken is what lies within the ball."""
    model, x, y = linear_problem(norm, DISTANCE[norm])
    attack = (
        fmn
        if name == "fmn"
        else partial(cw_l2, steps=120, search_steps=6, lr=0.03, initial_const=0.1)
    )
    for factor in (0.95, 1.05):
        result = attack(model, x, y, Threat(norm, factor * DISTANCE[norm]))
        assert torch.equal(predict(model, result.x_adv) != y, torch.ones(12, dtype=torch.bool))
        ratio = result.size / DISTANCE[norm]
        assert float(ratio.min()) >= 1 - 1e-9 and float(ratio.max()) <= 1.05
        assert torch.equal(result.broken, torch.full((12,), factor > 1))


# --------------------------------------------------------------------------- second implementations


def test_adam_is_torchs():
    x = random(3, 1, 2, 2).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.03)
    ours, moments = x.detach().clone(), torch.zeros(2, 3, 1, 2, 2, dtype=torch.float64)
    for t in range(1, 8):
        x.grad = gradient = random(3, 1, 2, 2, seed=t) - 0.4
        optimizer.step()
        step, moments = tensors.adam_step(gradient, moments, t)
        ours = ours - 0.03 * step
        torch.testing.assert_close(ours, x.detach(), rtol=0, atol=1e-12)


def test_margin_decomposition_steps():
    """Two cosines of 30 steps, from 2 eps; the first runs from step 1 to the change point, the
    second starts after it.
    """
    lengths = [step_length(t, 50, 20, 0.1) for t in range(50)]
    assert lengths[1] == lengths[21] == pytest.approx(0.2)
    assert lengths[0] == pytest.approx(0.1 * (1 + math.cos(math.pi / 30)))
    assert lengths[20] == pytest.approx(0.1 * (1 + math.cos(19 * math.pi / 30)))
    assert lengths[36] == pytest.approx(0.1) and lengths[49] == pytest.approx(
        0.1 * (1 + math.cos(28 * math.pi / 30))
    )


def test_margin_decomposition_stages():
    logits = torch.tensor([[5.0, 1.0, 3.0, -2.0], [0.5, 4.0, 2.0, -1.0]], dtype=torch.float64)
    y, rows, target = torch.tensor([0, 2]), torch.tensor([1, 4]), torch.tensor([9, 1, 9, 9, 3])
    for settings, rivals in (({}, [3.0, 4.0]), ({"target": target}, [1.0, -1.0])):

        def stage(t, raise_rival=False, settings=settings, **more):
            settings = {**settings, **more, "raise_rival": raise_rival}
            return stage_objective(logits, y, rows=rows, t=t, change_point=2, **settings).tolist()

        margins = [rivals[0] - 5, rivals[1] - 2]
        assert stage(0) == stage(0, raise_rival=True) == [5, 2]
        assert stage(1) == [-5, -2] and stage(1, raise_rival=True) == rivals
        assert stage(2) == stage(2, raise_rival=True) == margins
        assert stage(2, dlr=True) == pytest.approx([margins[0] / 7, margins[1] / 5.5])


@pytest.fixture
def network() -> nn.Module:
    """A small network, in train mode, whose images of `batch` are half broken by these attacks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = Mixed().double()
    with torch.no_grad():
        net.head.weight.mul_(6)
    return net


@pytest.fixture
def batch(network) -> tuple[Tensor, Tensor]:
    """12 images with the network's own answer as their label, but for the last two; a corner at the
    walls.
    """
    x = random(12, 1, 8, 8, seed=7)
    x[:, :, :2, :2], x[:, :, 6:, 6:] = 0, 1
    y = predict(copy.deepcopy(network).eval(), x)
    return x, torch.cat([y[:10], (y[10:] + 1) % 10])


def gradient_of(network: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    image = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(-network(image[None]).log_softmax(dim=1)[0, label], image)
    return gradient


def allowed(point: Tensor, image: Tensor, threat: Threat) -> Tensor:
    """The ball, then [0, 1]."""
    delta = point - image
    if threat.norm == "linf":
        return (image + delta.clamp(-threat.eps, threat.eps)).clamp(0, 1)
    return (image + delta * min(1.0, threat.eps / max(float(delta.norm()), 1e-12))).clamp(0, 1)


def uphill(direction: Tensor, threat: Threat) -> Tensor:
    return direction.sign() if threat.norm == "linf" else direction / direction.norm()


@BOTH_NORMS
@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_momentum_step_by_step(decay, threat, network, batch):
    x, y = batch
    network.eval()
    seen = []
    mifgsm(
        network,
        x,
        y,
        threat,
        steps=6,
        step_size=threat.eps / 3,
        decay=decay,
        watch=lambda t, x_t, z: seen.append(x_t),
    )
    for i in range(len(x)):
        now, g = x[i], torch.zeros_like(x[i])
        for x_t in seen:
            torch.testing.assert_close(x_t[i], now, rtol=0, atol=1e-10)
            gradient = gradient_of(network, now, y[i])
            g = decay * g + gradient / gradient.abs().sum()
            now = allowed(now + threat.eps / 3 * uphill(g, threat), x[i], threat)


@BOTH_NORMS
def test_line_search_and_look_ahead_step_by_step(threat, network, batch):
    x, y = batch
    network.eval()
    seen, size, chosen = [], threat.eps / 4, set()
    lmpgd(
        network,
        x,
        y,
        threat,
        steps=5,
        step_size=size,
        momentum=0.8,
        watch=lambda t, x_t, z: seen.append((x_t, z)),
    )
    for i in range(len(x)):
        before = now = x[i]
        for x_t, logits in seen:
            torch.testing.assert_close(x_t[i], now, rtol=0, atol=1e-10)
            torch.testing.assert_close(logits[i], network(now[None])[0], rtol=1e-9, atol=1e-9)
            ahead = allowed(now + 0.8 * (now - before), x[i], threat)
            direction = uphill(gradient_of(network, ahead, y[i]), threat)
            tried = [
                allowed(ahead + size * factor * direction, x[i], threat)
                for factor in (0.25, 0.5, 1, 2, 4)
            ]
            losses = [-network(point[None]).log_softmax(dim=1)[0, y[i]].item() for point in tried]
            chosen.add(losses.index(max(losses)))
            before, now = now, tried[losses.index(max(losses))]
    assert len(chosen) >= 3, "the line search has something to choose"


def test_spsa_estimates_its_gradient_from_these_answers(network, batch):
    """Block for block of the drawn signs, again in loops; and on a linear model the mean of many
    comes near the gradient.
    """
    x, y = batch
    network.eval()
    look, own = AttackTracker(network, x, y, THREATS[0], "inside", "linf"), streams(12)
    rows = torch.tensor([2, 7])
    got = estimate(look, x[rows], rows, own, 3, 0.01, 20)
    signs = [Streams(torch.tensor([2, 7]), "test", "directions", 3)]
    drawn = torch.cat([signs[0].uniform(x.new_zeros(2, n, 1, 8, 8)) for n in (16, 4)], dim=1)
    for i, row in enumerate(rows.tolist()):
        total = torch.zeros(1, 8, 8, dtype=torch.float64)
        for pattern in drawn[i]:
            v = torch.where(pattern > 0.5, -1.0, 1.0).double()
            up, down = (
                tensors.margin(network((x[row] + side * 0.01 * v)[None]), y[row : row + 1]).item()
                for side in (1, -1)
            )
            total += (up - down) / 0.02 * v
        torch.testing.assert_close(got[i], total / 20, rtol=0, atol=1e-9)
    assert look.forwards.tolist() == [1 + 40 * (i in (2, 7)) for i in range(12)]

    model, x, y = linear_problem("l2", 0.1)
    look = AttackTracker(model, x, y, Threat("l2", 0.1), "inside", "l2")
    got = estimate(look, x, torch.arange(12), own, 1, 0.001, 4000).flatten(1).detach()
    truth = torch.where(y == 0, 1.0, -1.0).double()[:, None] * model.w.detach()
    # each of 16 entries has the variance of the 15 others, over the number of samples
    spread = model.w.detach().norm().item() / math.sqrt(4000)
    assert 0.1 * spread < float((got - truth).abs().max()) < 5 * spread


# --------------------------------------------------------------------------- what a result promises


@EVERY
@BOTH_NORMS
def test_results_are_what_the_network_says(name, threat, network, batch):
    """Flags, margins and sizes recomputed from x_adv; budget attacks stay in the ball, all stay in
    [0, 1].
    """
    x, y = batch
    before = x.clone()
    result = ATTACKS[name](network, x, y, threat, generator=streams(12))
    assert (
        torch.equal(x, before) and result.x_adv.dtype == x.dtype and not result.x_adv.requires_grad
    )
    assert float(result.x_adv.min()) >= 0 and float(result.x_adv.max()) <= 1
    network.eval()
    wrong, size = predict(network, result.x_adv) != y, distance(name, result.x_adv - x, threat)
    found, margin = result.size.isfinite(), tensors.margin(network(result.x_adv).detach(), y)
    torch.testing.assert_close(result.size[found], size[found], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(result.margin[found], margin[found], rtol=1e-9, atol=1e-9)
    if name in BUDGET:
        assert (
            torch.equal(wrong, result.broken)
            and bool((size <= threat.eps + 1e-9).all())
            and bool(found.all())
        )
    else:
        assert torch.equal(wrong, found) and torch.equal(result.x_adv[~found], x[~found])
        if name == "fmn" or threat.norm == "l2":
            assert torch.equal(result.broken, found & (result.size <= threat.eps + ROUNDING))
    assert result.by == tuple(
        "clean" if i >= 10 else name.replace("md-dlr", "md") if broken else ""
        for i, broken in enumerate(result.broken.tolist())
    )
    assert result.size[10:].tolist() == [0, 0] and result.step[10:].tolist() == [0, 0]
    assert torch.equal(result.x_adv[10:], x[10:]), "what is wrong from the start stays as it is"
    assert 2 < int(result.broken.sum()) < 12 or name in ("spsa", "cw-l2"), "a test of both kinds"


@EVERY
def test_passes_are_counted_and_broken_examples_dropped(name, network, batch):
    x, y = batch
    inputs = calls_of(network)
    result = ATTACKS[name](network, x, y, THREATS[0], generator=streams(12), validate=False)
    assert int(result.forwards.sum()) == sum(map(len, inputs))
    assert result.forwards[10:].tolist() == [1, 1] and result.backwards[10:].tolist() == [0, 0]
    if name in BUDGET:
        robust = result.forwards[~result.broken]
        assert bool((robust == robust[0]).all()) and bool(
            (result.forwards[result.broken] <= robust[0]).all()
        )
    exact = {
        "mifgsm": 0,
        "bia": 0,
        "md": 0,
        "md-dlr": 0,
        "mdmt": 0,
        "spsa": 0,
        "lmpgd": len(LINE_SEARCH) - 1,
    }
    if (
        name in exact
    ):  # the pass that broke an example is its last; a line search tries its other steps, too
        late = (result.forwards - 1 - result.step)[result.broken]
        assert int(late.min()) >= 0 and int(late.max()) <= exact[name]
    if name == "spsa":
        assert int(result.backwards.sum()) == 0


@EVERY
def test_the_model_and_the_random_state_come_back(name, network, batch):
    network.head.weight.requires_grad_(False)
    network.body[1].eval()
    before = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    state = torch.random.get_rng_state()
    with torch.no_grad():
        ATTACKS[name](network, *batch, THREATS[0])
    assert torch.equal(state, torch.random.get_rng_state())
    assert [module.training for module in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()].count(False) == 1
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@EVERY
@BOTH_NORMS
def test_neither_batch_size_nor_mates_nor_order_matter(name, threat, network, batch):
    x, y = batch
    whole = ATTACKS[name](network, x, y, threat, generator=streams(12))
    for rows in (torch.tensor([3]), torch.tensor([11, 0, 5, 8, 9])):
        alone = ATTACKS[name](network, x[rows], y[rows], threat, generator=Streams(rows, "test"))
        for field in ("x_adv", "margin", "size"):
            torch.testing.assert_close(
                getattr(alone, field), getattr(whole, field)[rows], rtol=1e-7, atol=1e-7
            )
        for field in ("broken", "step", "forwards", "backwards"):
            assert torch.equal(getattr(alone, field), getattr(whole, field)[rows]), field


@pytest.mark.parametrize("name", ["md", "mdmt", "spsa"])
def test_draws_follow_the_example(name, network, batch):
    """The same image under two ids is attacked differently, under one id alike; without streams
    twice alike.
    """
    x, y = (v[:1].expand(3, *v.shape[1:]) for v in batch)
    inputs = calls_of(network)
    ATTACKS[name](
        network,
        x,
        y,
        THREATS[0],
        generator=Streams(torch.tensor([4, 5, 4]), "test"),
        validate=False,
    )
    first = inputs[1].reshape(
        2 if name == "spsa" else 1, 3, -1
    )  # the starts, or the first probes (side, example, ...)
    assert torch.equal(first[:, 0], first[:, 2])
    assert float(((first[:, 0] - first[:, 1]).abs() > 1e-6).double().mean()) > 0.3, (
        "different all over"
    )
    again = [ATTACKS[name](network, x, y, THREATS[0]) for _ in range(2)]
    assert torch.equal(again[0].x_adv, again[1].x_adv)


@pytest.mark.parametrize("norm", NORMS)
@EVERY
def test_no_radius_no_change(name, norm, network, batch):
    x, y = batch
    result = ATTACKS[name](network, x, y, Threat(norm, 0.0), generator=streams(12))
    assert result.broken.tolist() == [False] * 10 + [True] * 2
    if name in BUDGET:
        assert torch.equal(result.x_adv, x)
    else:
        assert bool((result.size[:10] > ROUNDING).all()), "a minimal-norm attack looks further"


@EVERY
@pytest.mark.parametrize("classes", [2, 3, 4, 8])
def test_few_classes(name, classes):
    """Any number of classes from two; where an attack is then another one, its notes say so."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(classes)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, classes)
        ).double()
    with torch.no_grad():
        model[1].weight.mul_(5)
        model[3].bias.zero_()
    x = random(10, 1, 4, 4, seed=classes)
    y = predict(model, x)
    for norm in NORMS:
        result = ATTACKS[name](model, x, y, Threat(norm, 2.0), generator=streams(10))
        assert bool(result.broken.any()) and torch.equal(
            predict(model, result.x_adv) != y,
            result.size.isfinite() if name in MINIMAL else result.broken,
        )
        notes = " ".join(result.notes)
        assert (f"{classes} targets" in notes) == (name == "mdmt")
        assert ("three classes" in notes) == (name == "md-dlr" and classes == 2)
        assert ("sum of the logits" in notes) == (name == "md-dlr" and classes > 2)


def test_two_classes_leave_dlr_undivided(network):
    model, x, y = linear_problem(
        "linf", DISTANCE["linf"]
    )  # logits sum to 0 here: division would make noise of it
    threat = Threat("linf", 0.98 * DISTANCE["linf"])
    got = [md(model, x, y, threat, dlr=dlr, generator=streams(12)) for dlr in (False, True)]
    assert torch.equal(got[0].x_adv, got[1].x_adv) and not got[0].notes and got[1].notes


def test_mdmt_attacks_every_target_in_turn(monkeypatch):
    """Ranks 9 to 1 of the clean logits, then the last; with five classes ranks 4 to 1, then the
    last. Each twice.
    """
    targets = []

    def spy(look, x_t, ascended, steps, change_point):
        targets.append((ascended.keywords["target"].tolist(), ascended.keywords["raise_rival"]))

    monkeypatch.setattr("kit.attacks.margin_decomposition.decompose", spy)
    for classes, expected in (
        (12, [*range(3, 12), 0]),
        (10, [*range(1, 10), 0]),
        (5, [1, 2, 3, 4, 0]),
    ):
        targets.clear()
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, classes)).double()
        with torch.no_grad():
            model[1].weight.zero_()
            model[1].bias.copy_(torch.arange(classes))
        result = mdmt(
            model,
            random(2, 1, 2, 2),
            torch.zeros(2, dtype=torch.int64),
            THREATS[0],
            steps=3,
            change_point=1,
        )
        assert targets == [([target] * 2, which) for target in expected for which in (False, True)]
        assert bool(result.notes) == (classes < 10)


# ----------------------------------------------------------------------------------------- watching


@pytest.mark.parametrize("name", ["mifgsm", "bia", "lmpgd"])
@BOTH_NORMS
def test_watch_sees_every_example_walk_to_the_end(name, threat, network, batch):
    """Logits of the points shown; the flags are those of an unwatched call, and of the path."""
    x, y = batch
    steps, seen = ATTACKS[name].keywords["steps"], []
    path = AttackTrace(y, steps)
    plain = ATTACKS[name](network, x, y, threat)

    def watch(t: int, x_t: Tensor, logits: Tensor) -> None:
        seen.append((t, x_t.clone()))
        path(t, x_t, logits)
        with frozen(network):
            torch.testing.assert_close(network(x_t).detach(), logits, rtol=1e-9, atol=1e-9)

    watched = ATTACKS[name](network, x, y, threat, watch=watch)
    assert [t for t, _ in seen] == list(range(steps)) and torch.equal(seen[0][1], x)
    assert all(
        len(x_t) == 12 and bool((tensors.norm(x_t - x, threat.norm) <= threat.eps + 1e-9).all())
        for _, x_t in seen
    )
    assert torch.equal(watched.broken, plain.broken)
    assert bool(watched.broken[path.lps < steps].all())
    assert bool((watched.margin <= plain.margin + 1e-9).all()), "who runs on may find worse"
    assert int(watched.forwards.min()) == int(watched.forwards.max()) > int(plain.forwards.min())


def test_without_decay_there_is_no_momentum(network, batch):
    ends = []
    for attack in (partial(mifgsm, decay=0.0), bia):
        attack(
            network,
            *batch,
            THREATS[0],
            steps=6,
            step_size=0.01,
            watch=lambda t, x_t, z: ends.append(x_t),
        )
    assert torch.equal(ends[5], ends[11]) and not torch.equal(ends[0], ends[5])


def test_l2_basic_iterative_attack_clips_before_it_shortens():
    """At a wall the clip frees length for the other pixels:

    an L2 projection that came first would leave it unused.
    """
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
    x, y = torch.tensor([0.0, 0.9], dtype=torch.float64).view(1, 1, 1, 2), torch.tensor([0])
    seen = []
    bia(
        model,
        x,
        y,
        Threat("l2", 0.3),
        steps=2,
        step_size=1.0,
        watch=lambda t, x_t, z: seen.append(x_t),
    )
    torch.testing.assert_close(seen[1].flatten(), torch.tensor([0.0, 0.6], dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e30])
@pytest.mark.parametrize("name", ["md", "mdmt", "fmn"])
def test_tiny_and_huge_gradients_lead_the_same_way(name, scale):
    """In single precision, where their squares leave the range."""
    model, x, y = linear_problem("l2", DISTANCE["l2"], torch.float32, scale)
    assert bool(ATTACKS[name](model, x, y, Threat("l2", 1.2 * DISTANCE["l2"])).broken.all())


@pytest.mark.parametrize("gap", [1.0, 40.0, 80.0])
@pytest.mark.parametrize("name", ["mifgsm", "bia", "lmpgd"])
def test_confidence_shortens_no_step(name, gap):
    """At a gap of 80 logits cross-entropy's gradient is 2e-35 of what it is without."""
    model, x, y = linear_problem("l2", DISTANCE["l2"], torch.float32)
    with torch.no_grad():
        model.scale = gap / float(tensors.margin(model(x), y).mean())
    assert bool(ATTACKS[name](model, x, y, Threat("l2", 1.2 * DISTANCE["l2"])).broken.all())


# -------------------------------------------------------------------------------- each attack's own


def test_cw_l2_measures_in_l2_whatever_the_threat_is(network, batch):
    x, y = batch
    l2, linf = (
        MINIMAL["cw-l2"](network, x, y, threat)
        for threat in (Threat("l2", 0.3), Threat("linf", 0.05))
    )
    assert torch.equal(l2.x_adv, linf.x_adv) and torch.equal(l2.size, linf.size) and not l2.notes
    assert "L2" in linf.notes[0] and "0.05" in linf.notes[0]
    near = tensors.norm(linf.x_adv - x, "linf") <= 0.05
    assert bool(linf.broken[near & linf.size.isfinite()].all()), (
        "broken looks at the ball that was asked for"
    )
    assert 2 < int(linf.broken.sum()) < 12 and not torch.equal(l2.broken, linf.broken)


@pytest.mark.parametrize("reach", [0.9, 1.1])
def test_cw_inside_the_ball_breaks_what_the_ball_holds(reach):
    """On a linear network, whose distance is known: nothing short of it, and everything beyond."""
    model, x, y = linear_problem("linf", DISTANCE["linf"], torch.float64)
    threat = Threat("linf", reach * DISTANCE["linf"])
    result = ROWS["cw-linf"](model, x, y, threat, Streams(torch.arange(12), 0))
    assert result.broken.tolist() == [reach > 1] * len(x) and not result.notes
    moved = tensors.norm(result.x_adv - x, "linf")
    assert bool((moved <= threat.eps + 1e-9).all()) and bool((moved > 0).all()) == (reach > 1)


@pytest.mark.slow
def test_cw_l2_raises_its_constant_until_something_breaks(network, batch):
    """From a constant far too small, and from one far too large, it comes to similar distances; one
    round cannot.
    """
    x, y = (v[:10] for v in batch)
    settings = {"steps": 100, "lr": 0.02}
    low, high = (
        cw_l2(network, x, y, Threat("l2"), initial_const=c, search_steps=9, **settings).size
        for c in (1e-4, 20.0)
    )
    apart = (low / high - 1).abs()
    assert bool(low.isfinite().all()) and float(apart.median()) < 0.02 and float(apart.max()) < 0.25
    single = cw_l2(network, x, y, Threat("l2"), initial_const=1e-4, search_steps=1, **settings)
    assert int(single.size.isfinite().sum()) <= 1


def test_cw_l2_moves_pixels_of_zero_and_one():
    """Whose w would be infinite.

    Each of 16 pixels can only go inwards, and together they reach the boundary.
    """
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()
    x = (torch.arange(16).double() % 2).view(1, 1, 4, 4)
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([x.flatten() - 0.5, 0.5 - x.flatten()]))
        model[1].bias.copy_(torch.tensor([-3.5, 3.5]))  # z_0 - z_1 = 1 at x, and falls by 1 a pixel
    result = cw_l2(
        model,
        x,
        torch.tensor([0]),
        Threat("l2", 0.3),
        steps=120,
        search_steps=6,
        lr=0.1,
        initial_const=0.1,
    )
    assert result.size.item() == pytest.approx(1 / 4, rel=0.05) and bool(result.broken)


@pytest.mark.slow
def test_cw_l2_stops_where_nothing_improves(network, batch):
    """Fewer passes for distances that are hardly longer, and other numbers of passes for other
    examples.
    """
    x, y = (v[:10] for v in batch)
    settings = {"steps": 100, "search_steps": 5, "lr": 0.02, "initial_const": 0.1}
    lazy, keen = (
        cw_l2(network, x, y, Threat("l2"), abort_early=early, **settings) for early in (True, False)
    )
    assert keen.forwards.tolist() == [1 + 5 * 100] * 10
    assert bool((lazy.forwards < keen.forwards).all()) and len(lazy.forwards.unique()) > 1
    assert float((lazy.size / keen.size).max()) < 1.05


def test_fmn_goes_on_after_a_success(network, batch):
    """More steps, nearer images; every unbroken example is passed once a step."""
    x, y = batch
    sizes = [fmn(network, x, y, Threat("linf"), steps=steps) for steps in (3, 20, 100)]
    assert all(
        result.forwards[:10].tolist() == [1 + steps] * 10
        for result, steps in zip(sizes, (3, 20, 100), strict=True)
    )
    means = [float(result.size[:10].mean()) for result in sizes]
    assert means[0] > means[1] > means[2] > 0


def test_fmn_where_the_gradient_vanishes():
    """A network whose answer never changes, a tie among them:

    nothing is found, and nothing asked is NaN.
    """
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    inputs = calls_of(model)
    x, y = random(3, 1, 2, 2), torch.tensor([0, 0, 1])
    for second in (0.0, 2.0):
        with torch.no_grad():
            model[1].weight.zero_()
            model[1].bias.copy_(torch.tensor([2.0, second, 0.0]))
        for norm in NORMS:
            result = fmn(model, x, y, Threat(norm))
            assert result.size.tolist() == [math.inf, math.inf, 0] and torch.equal(result.x_adv, x)
    assert all(bool(x_t.isfinite().all()) for x_t in inputs)


def test_spsa_keeps_its_batches_small(network, batch, monkeypatch):
    """Whatever the number of samples; the result does not depend on the size of a pass."""
    spsa_module = importlib.import_module(
        "kit.attacks.simultaneous_perturbation"
    )  # the package has the function under that name
    x, y = batch
    whole = BUDGET["spsa"](network, x, y, THREATS[0], generator=streams(12))
    monkeypatch.setattr(spsa_module, "IMAGES_PER_PASS", 2 * spsa_module.DIRECTIONS)
    inputs = calls_of(network)
    small = BUDGET["spsa"](network, x, y, THREATS[0], generator=streams(12))
    assert max(map(len, inputs)) == 2 * spsa_module.DIRECTIONS
    torch.testing.assert_close(small.x_adv, whole.x_adv, rtol=0, atol=1e-9)


def test_spsa_survives_probes_that_are_no_numbers():
    """Where both of two pixels are above 0.8 the network returns NaN, as half of the probes learn;
    the rest is enough.
    """

    class Cliff(nn.Module):
        def forward(self, x):
            value = x.flatten(1).sum(dim=1) - 38
            return torch.stack([value, -value], dim=1).where(
                (x[:, 0, 0, :2].amin(dim=1) <= 0.8)[:, None], torch.nan
            )

    x = torch.full((2, 1, 8, 8), 0.6, dtype=torch.float64)
    x[:, 0, 0, :2] = 0.7999
    result = spsa(Cliff(), x, torch.tensor([0, 1]), Threat("linf", 0.05), steps=10, samples=32)
    assert result.by == ("spsa", "clean") and bool(result.x_adv.isfinite().all())


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("attack", "settings", "words"),
    [
        (mifgsm, {"steps": 0}, "steps"),
        (mifgsm, {"step_size": -0.1}, "step_size"),
        (mifgsm, {"decay": -1.0}, "decay"),
        (bia, {"steps": 2.5}, "whole number"),
        (bia, {"step_size": math.nan}, "step_size"),
        (lmpgd, {"momentum": 1.5}, "momentum"),
        (lmpgd, {"step_size": -1.0}, "step_size"),
        (lmpgd, {"steps": 0}, "steps"),
        (md, {"steps": 20}, "below steps"),
        (md, {"change_point": 0}, "change_point"),
        (md, {"dlr": 1}, "True or False"),
        (mdmt, {"steps": 5, "change_point": 5}, "below steps"),
        (spsa, {"samples": 0}, "samples"),
        (spsa, {"delta": 0.0}, "delta"),
        (spsa, {"lr": math.inf}, "lr"),
        (fmn, {"steps": 0}, "steps"),
        (cw_l2, {"search_steps": 0}, "search_steps"),
        (cw_l2, {"initial_const": 0.0}, "initial_const"),
        (cw_l2, {"abort_early": "no"}, "True or False"),
    ],
)
def test_settings_out_of_range_are_refused(attack, settings, words, network, batch):
    with pytest.raises(KitError, match=words):
        attack(network, *batch, THREATS[0], validate=False, **settings)


@EVERY
def test_bad_input_is_refused(name, network, batch):
    x, y = batch
    for bad_x, bad_y, words in (
        (x * 255, y, "pixels run"),
        (x, y + 10, "labels run"),
        (x[:3], y, "3 images"),
    ):
        with pytest.raises(KitError, match=words):
            ATTACKS[name](network, bad_x, bad_y, THREATS[0])


@pytest.mark.parametrize("name", ["md", "mdmt", "spsa"])
@pytest.mark.parametrize(
    "source",
    [torch.Generator(), Streams(torch.arange(5), "test"), 7],
    ids=["torch", "five", "seed"],
)
def test_streams_for_other_examples_are_refused(name, source, network, batch):
    with pytest.raises(KitError, match="Streams"):
        ATTACKS[name](network, *batch, THREATS[0], generator=source)


def test_the_attacks_are_parts_with_checked_settings():
    """So they can be rows: their keyword-only settings are hyper-parameters with ranges."""
    assert part(spsa, samples=64).config() == {
        "fn": "spsa",
        "delta": 0.001,
        "lr": 0.01,
        "samples": 64,
    }
    assert part(md, dlr=True).params["change_point"] == 20 and part(mifgsm).params == {"decay": 1.0}
    assert (
        part(lmpgd).params == {"momentum": 0.9}
        and part(bia).params == {"l2": False}
        and part(fmn).params == {}
    )
    assert part(cw_l2, search_steps=3).params["initial_const"] == 0.001
    with pytest.raises(KitError, match="out of range"):
        part(spsa, samples=0)


def test_a_result_names_what_is_robust(network, batch):
    result = BUDGET["bia"](network, *batch, THREATS[0])
    assert isinstance(result, AttackResult) and torch.equal(result.robust, ~result.broken)
