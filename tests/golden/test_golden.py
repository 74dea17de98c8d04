"""Our numbers are the authors' numbers: stored outputs of their own code, see golden/README.md.

Everything is computed in float64, so that nothing but a different formula can make a difference.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kit.attacks.clean_images import predict
from kit.attacks.contract import AttackTrace as AttackPath
from kit.attacks.fast_gradient_sign import fgsm
from kit.attacks.projected_gradient_descent import OBJECTIVES, pgd
from kit.core.tensors import margin, per_example_cross_entropy
from kit.methods.criteria import CRITERIA
from kit.methods.losses import LOSSES
from kit.methods.regularisers import cost_matrix
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import METHODS, Method
from kit.methods.weights import affine, batch_mean, exponential, sigmoid, tanh
from tests.helpers.golden import (
    FOLDER,
    GAIRAT,
    LOGITS,
    MODELS,
    Bench,
    Golden,
    Recorded,
    close,
)
from tests.helpers.stepping import take_step


def seen_of(classes: str, dtype: torch.dtype = torch.float64) -> StepOutputs:
    """The stored logits of `K10` or `K100`, with gradients wanted."""
    nat, adv = (
        LOGITS[f"{classes}_{side}_logits"].to(dtype, copy=True).requires_grad_()
        for side in ("nat", "adv")
    )
    return StepOutputs(y=LOGITS[f"{classes}_y"], logits_adv=adv, logits_nat=nat)


def keys(golden: Golden, pattern: str) -> pytest.MarkDecorator:
    """One test for each key that matches; its groups become the arguments named in the pattern."""
    names = list(re.compile(pattern).groupindex)
    found = golden.keys(pattern)
    values = [re.fullmatch(pattern, key).groups() for key in found]
    return pytest.mark.parametrize(
        ["key", *names], [(key, *v) for key, v in zip(found, values, strict=True)], ids=found
    )


# -------------------------------------------------------------------------------- criteria, weights


@keys(LOGITS, r"(?P<classes>K\d+)_mail_PM_(?P<side>nat|adv)_f64")
def test_probabilistic_margin(key, classes, side):
    """MAIL's code returns max - p_y, minus the paper's margin:

    our value has the paper's sign, our score the code's.
    """
    criterion, seen = CRITERIA["pm" if side == "adv" else "pm-nat"], seen_of(classes)
    close(-criterion.value(seen), LOGITS[key])
    close(criterion.score(seen), LOGITS[key])


@keys(LOGITS, r"(?P<classes>K\d+)_mail_w_(?P<side>nat|adv)_b(?P<bias>.+)_s(?P<slope>\d+)_f64")
def test_mail_weights(key, classes, side, bias, slope):
    method = METHODS["mail-at" if side == "adv" else "mail-at-nat"]
    method = method.override("weight.bias", float(bias)).override("weight.slope", float(slope))
    close(method.weigh(seen_of(classes)), LOGITS[key])


@keys(
    GAIRAT,
    r"gair_(?P<function>Tanh|Sigmoid|Discrete)_K(?P<steps>\d+)_L(?P<shift>.+)_(?P<which>grid|batch)",
)
def test_gairat_weights(key, function, steps, shift, which):
    """The official weights are float32 and have mean 1, so their error is absolute:

    1 + tanh cancels where small.
    """
    steps, shift = int(steps), float(shift)
    # kappa counts 0..steps; the stored grid is that of 10 steps
    kappa = GAIRAT[f"gair_kappa_{which}"] if steps == 10 else torch.arange(steps + 1).double()
    score = CRITERIA["kappa"].score(
        StepOutputs(y=kappa, logits_adv=kappa, kappa=kappa, steps=steps)
    )
    weights = {
        "Tanh": lambda: tanh(score, shift=shift, slope=5.0),
        "Sigmoid": lambda: sigmoid(score, slope=5.0, bias=shift / 5),
        # (K + 1 - kappa) / (K + 1), for even K
        "Discrete": lambda: affine(
            score, slope=(steps // 2) / (steps + 1), offset=(steps // 2 + 1) / (steps + 1)
        ),
    }[function]()
    close(batch_mean(weights), GAIRAT[key], atol=1e-6)


def test_gairat_burn_in():
    """Lambda is infinite, so all weights are equal, in as many epochs of 120 as our burn-in has."""
    official = GAIRAT["gairat_Lambda_fixed_epochs120_by_epoch"][1:].isinf()  # epochs 1..120
    ours = torch.arange(1, 121) <= round(METHODS["gairat"].burn_in * 120)
    assert torch.equal(ours, official)


# --------------------------------------------------------------------------------- losses of logits

#: The rows of our table that say what the official functions compute. MAIL's repository has plain
#: losses too.
ROWS = {
    "at": METHODS["at"],
    "trades_b1": METHODS["trades"].override("loss.beta", 1.0),
    "trades_b6": METHODS["trades"],
    "trades_linf_b6": METHODS["trades"],
    "mart_b5": METHODS["mart"],
    "mart_b6": METHODS["mart"].override("loss.beta", 6.0),
    "mailrepo_at": METHODS["at"],
    "mailrepo_trades_b5": METHODS["trades"].override("loss.beta", 5.0),
    "mailrepo_mart_b6": METHODS["mart"].override("loss.beta", 6.0),
    "mail_at": METHODS["mail-at"],
    "mail_trades_b5": METHODS["mail-trades"],
    "mail_mart_b6": METHODS["mail-mart"],
    "gairat_train": METHODS["gairat"],
    "csa_loss_p3_c10": METHODS["csa"].override("loss.protected", 3).override("loss.cost", 10.0),
    "csa_loss": METHODS["csa"].override("loss.protected", 3).override("loss.cost", 10.0),
    "csa_l2_loss_wd0.01": METHODS["csa-l2"]
    .override("loss.protected", 3)
    .override("regulariser.strength", 0.01),
}


def loss_of(method: Method, seen: StepOutputs) -> Tensor:
    weighted, plain = method.loss(seen)
    return (method.weigh(seen) * weighted + plain).mean()


def gradient(logits: Tensor) -> Tensor:
    return torch.zeros_like(logits) if logits.grad is None else logits.grad


def pool_ties(values: Tensor, seen: StepOutputs) -> Tensor:
    """`values` (N, K) with the mean in place of the entries whose class ties for the largest
    adversarial other.

    There the maximum has no gradient but a choice of subgradients: MART's code takes that of one of
    the tied classes, amax shares it equally between them.
    """
    others = seen.logits_adv.detach().scatter(1, seen.y[:, None], -torch.inf)
    tied = (others == others.amax(dim=1, keepdim=True)).to(values)
    return values * (1 - tied) + tied * (values * tied).sum(1, keepdim=True) / tied.sum(
        1, keepdim=True
    )


@keys(LOGITS, r"(?P<classes>K\d+)_(?P<name>(?!wmmr)\w+)_f64_loss")
def test_losses_and_their_gradients(key, classes, name):
    seen = seen_of(classes)
    loss = loss_of(ROWS[name], seen)
    loss.backward()
    close(loss, LOGITS[key])
    sides = {"gadv": seen.logits_adv} | (
        {} if name.startswith("csa") else {"gnat": seen.logits_nat}
    )
    for side, logits in sides.items():
        ours, official = (
            gradient(logits),
            LOGITS[key.removesuffix("loss") + side],
        )  # official: rounded to float32
        if "mart" in name:
            ours, official = pool_ties(ours, seen), pool_ties(official, seen)
        close(ours, official)


@keys(LOGITS, r"(?P<classes>K\d+)_(?P<name>\w+)_f32_gnat_rows52-55")
def test_an_underflowed_softmax_costs_no_gradient(key, classes, name):
    """In float32 the official gradient of the clean logits is NaN where a clean probability
    underflows; ours is not.
    """
    assert LOGITS[key].isnan().any(dim=1).all()
    seen = seen_of(classes, torch.float32)
    loss_of(ROWS[name], seen).backward()
    ours, official = gradient(seen.logits_nat), LOGITS[f"{classes}_{name}_f64_gnat"]
    assert (
        ours.dtype == torch.float32
        and ours.isfinite().all()
        and gradient(seen.logits_adv).isfinite().all()
    )
    assert official[52:56].isfinite().all()
    close(ours, official, rtol=0, atol=1e-6 * float(official.abs().max()))


@keys(LOGITS, r"(?P<classes>K\d+)_fat_(?P<loss>MART|TRADES)_loss_b(?P<beta>\d)_f64")
def test_losses_of_friendly_adversarial_training(key, classes, loss, beta):
    weighted, plain = Method("", "", loss=METHODS[loss.lower()].loss.but(beta=float(beta))).loss(
        seen_of(classes)
    )
    close((weighted + plain).mean(), LOGITS[key])


@keys(
    LOGITS,
    r"(?P<classes>K\d+)_wmmr_(?P<base>at|trades)_alpha(?P<alpha>[\d.]+)(?P<more>\w*)_f64_loss",
)
def test_wmmr_losses(key, classes, base, alpha, more):
    """Values only: WMMR's code lets the gradient run through its weights, we never do."""
    seen = seen_of(classes)
    weights = exponential(CRITERIA["pm"].score(seen), alpha=float(alpha))
    if more.endswith("normalized"):
        weights = batch_mean(weights)
    weighted, plain = (
        LOSSES["cross_entropy"](seen) if base == "at" else LOSSES["trades"](seen, beta=5.0)
    )
    close((weights * weighted + plain).mean(), LOGITS[key])


@keys(LOGITS, r"K10_csa_cost_matrix_p(?P<protected>\d)_c(?P<cost>\d+)")
def test_cost_matrix(key, protected, cost):
    assert torch.equal(cost_matrix(10, int(protected), float(cost)), LOGITS[key])


@keys(LOGITS, r"(?P<classes>K\d+)_aa_square_(?P<what>margin|ce)_f64")
def test_margin_and_cross_entropy_of_logits(key, classes, what):
    """Square minimises both, so its cross-entropy is minus ours."""
    seen = seen_of(classes)
    value = (
        margin(seen.logits_adv, seen.y)
        if what == "margin"
        else -per_example_cross_entropy(seen.logits_adv, seen.y)
    )
    close(value, LOGITS[key])


@keys(LOGITS, r"(?P<classes>K\d+)_(?:gairat|mail)_cwloss_conf(?P<confidence>\d+)_f64")
def test_cw_loss_is_our_margin_objective_where_its_clamp_is_open(key, classes, confidence):
    """The official sum counts min(objective - confidence, 0); where it counts 0 its attack has
    stopped moving.
    """
    seen, confidence = seen_of(classes), int(confidence)
    objective = OBJECTIVES["margin"](seen.logits_adv, seen.y, None)
    is_open = objective < confidence
    assert is_open.any() and not is_open.all()
    close((objective[is_open] - confidence).sum(), LOGITS[key])


# ------------------------------------------------------------------------------- two small networks


def nets(pattern: str) -> pytest.MarkDecorator:
    """One test for each network and each name (the pattern's one group) found in it."""
    cases = {
        (which, re.fullmatch(pattern, key)[1]): None
        for which, golden in MODELS.items()
        for key in golden.keys(pattern)
    }
    return pytest.mark.parametrize(
        ("which", "name"), list(cases), ids=["-".join(case) for case in cases]
    )


@nets("(logits)_eval")
def test_the_networks_are_the_stored_ones(which, name):
    bench = Bench(which)
    close(bench.net(bench.x), bench.golden[f"{name}_eval"])
    close(bench.net.train()(bench.x), bench.golden[f"{name}_train"])


@nets(r"(at|gairat_train|(?:mail_|trades_|mart_)\w+)_loss")
def test_training_steps(which, name):
    """A whole step:

    attack, outer passes, weights, loss, gradients, and what it does to the batch norms.
    """
    bench, method = Bench(which), ROWS[name]
    plan, golden = bench.plan(method), bench.golden
    path = AttackPath(bench.y, 10)
    bench.compare_delta(
        name,
        method.attack(
            bench.net,
            bench.x,
            bench.y,
            bench.threat,
            generator=bench.recorded(name),
            watch=path,
            steps=10,
            step_size=bench.step_size,
        ),
    )
    modes = []
    hook = bench.net.register_forward_hook(lambda net, *_: modes.append(net.training))
    done = take_step(
        bench.net,
        torch.optim.SGD(bench.net.parameters(), lr=0.0),
        plan.method,
        plan.recipe,
        bench.x,
        bench.y,
        bench.recorded(name),
    )
    hook.remove()
    close(done.loss, golden[f"{name}_loss"])
    bench.compare_gradient_norms(name)
    if name == "gairat_train":
        close(done.outputs.kappa, golden[f"{name}_kappa"], rtol=0, atol=0)
        return  # neither its forward passes nor its batch norms are stored
    # TRADES' own code passes x through the network once more after x_adv. The loss and its gradient
    # are those of two passes, but the running statistics are not; ours become equal with that third
    # pass.
    extra_passes = 1 if name == "trades_linf_b6" else 0
    official_modes = golden[f"{name}_train_mode_calls"].tolist()
    assert modes == sorted(modes), "the attack (eval) comes before the outer passes (train)"
    assert sum(modes) + extra_passes == sum(official_modes)
    if (
        method.attack.params["loss"] == "ce"
    ):  # with KL the official code recomputes the clean logits in each step
        assert modes == official_modes
    if which == "C":
        bench.net.train()
        for _ in range(extra_passes):
            bench.net(bench.x)
        stored = golden.starting(f"{name}_after_")
        assert len(stored) == 4
        for buffer, official in stored.items():
            close(bench.net.get_buffer(buffer), official)


@nets(r"gapgd_(\w+)_delta")
def test_gairat_attacks_and_kappa(which, name):
    """Uniform starts are clipped to [0, 1], the gaussian one is not; kappa counts the points still
    right.
    """
    bench = Bench(which)
    loss, init = {"cent": "ce", "cw": "margin", "kl": "kl"}[name.split("_")[0]], name.split("_")[1]
    init = {"uniform": "uniform", "gauss": "gaussian"}[init]
    path = AttackPath(bench.y, 10)
    x_adv = pgd(
        bench.net,
        bench.x,
        bench.y,
        bench.threat,
        generator=bench.recorded(f"gapgd_{name}"),
        watch=path,
        steps=10,
        step_size=bench.step_size,
        loss=loss,
        init=init,
    )
    bench.compare_delta(f"gapgd_{name}", x_adv)
    close(path.kappa, bench.golden[f"gapgd_{name}_kappa"], rtol=0, atol=0)


@nets("mail_evalpgd_(cent|cw)_delta")
def test_mail_evaluation_attacks(which, name):
    """MAIL's evaluation does not clip its uniform start, so the start is given here."""
    bench, name = Bench(which), f"mail_evalpgd_{name}"
    x_adv = pgd(
        bench.net,
        bench.x,
        bench.y,
        bench.threat,
        steps=20,
        step_size=bench.step_size / 2,
        validate=False,
        loss="ce" if name.endswith("cent") else "margin",
        init=bench.golden[f"{name}_noise"],
    )
    bench.compare_delta(name, x_adv)
    errors = [(predict(bench.net, images) != bench.y).sum() for images in (bench.x, x_adv)]
    close(torch.stack(errors), bench.golden[f"{name}_err"], rtol=0, atol=0)


# advertorch's L2 PGD, like TRADES' L2 attack, clips to [0, 1] first and to the ball last; we do it
# in the other order, which keeps the result in [0, 1] exactly. The two iterates differ, so those
# arrays are not kept.
ADVERTORCH: dict[str, Callable[[Bench], Tensor]] = {
    "FGSM": lambda b: fgsm(b.net, b.x, b.y, b.threat),
    "LinfPGD_norand": lambda b: pgd(
        b.net, b.x, b.y, b.threat, steps=20, step_size=b.step_size / 2, init="none"
    ),
    "LinfPGD_rand": lambda b: pgd(
        b.net,
        b.x,
        b.y,
        b.threat,
        steps=20,
        step_size=b.step_size / 2,
        init="uniform",
        generator=Recorded(b.golden["advertorch_LinfPGD_rand_noise"], eps=1.0),
    ),
}


@nets(r"advertorch_(\w+)_delta")
def test_advertorch_attacks(which, name):
    bench = Bench(which)
    bench.compare_delta(f"advertorch_{name}", ADVERTORCH[name](bench))


@nets(r"(csa_loss|csa_l2_loss_wd0\.01)")
def test_cost_sensitive_losses_of_a_network(which, name):
    """On clean images, in eval mode."""
    bench, method = Bench(which), ROWS[name]
    assert all(not module.training for module in bench.net.modules())
    loss = loss_of(method, StepOutputs(y=bench.y, logits_adv=bench.net(bench.x)))
    if method.regulariser is not None:
        loss = loss + method.regulariser(bench.net)
    loss.backward()
    close(loss, bench.golden[name])
    bench.compare_gradient_norms(name)


# ------------------------------------------------------------------------------ nothing is left out


RAN: set[str] = set()


@pytest.fixture(autouse=True)
def remembered(request):
    """Which tests of this file ran in this process; `--dist loadfile` runs them all in one."""
    RAN.add(request.node.nodeid)


def test_every_stored_array_is_read(request):
    """The last test: an array that none of the others looked at would only seem to be covered."""
    mine = [item for item in request.session.items if item.path == Path(__file__)]
    all_asked = {name for name in globals() if name.startswith("test_")} <= {
        item.function.__name__ for item in mine
    }
    if not all_asked or {item.nodeid for item in mine} - RAN or request.session.testsfailed:
        pytest.skip("needs all tests of this file, passed, in one process")
    goldens = (LOGITS, GAIRAT, *MODELS.values())
    stored = {f"{path.name}:{key}" for path in FOLDER.glob("*.npz") for key in np.load(path).files}
    assert stored == set().union(*(golden.arrays for golden in goldens))
    assert stored == set().union(*(golden.read for golden in goldens))
