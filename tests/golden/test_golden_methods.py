"""WMMR, GAIR-TRADES and CSE's released regulariser against their authors' own numbers; sources in
golden/README.md.
"""

from __future__ import annotations

import pytest
import torch

from kit.attacks.contract import AttackTrace
from kit.attacks.projected_gradient_descent import pgd, trained_loss_pgd
from kit.methods.regularisers import conv_l1_minus_l2
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import METHODS
from tests.helpers.golden import Bench, Recorded, close, load_arrays
from tests.helpers.stepping import take_step

GOLDEN = load_arrays("methods/methods")


def logits(classes: str, which: str) -> torch.Tensor:
    return GOLDEN[f"{classes}_{which}_logits"].double().requires_grad_()


@pytest.mark.parametrize("classes", ["K10", "K100"])
@pytest.mark.parametrize("name", ["wmmr_at_alpha0.5", "wmmr_at_alpha2", "wmmr_trades_alpha2_b5"])
def test_wmmr_gradient_runs_through_the_weight(classes, name):
    """Loss and both gradients; detached weights would give another gradient, which the test shows,
    too.
    """
    alpha = float(name.split("alpha")[1].split("_")[0])
    method = METHODS["wmmr" if "_at_" in name else "wmmr-trades"].override("weight.alpha", alpha)
    nat, adv, y = logits(classes, "nat"), logits(classes, "adv"), GOLDEN[f"{classes}_y"]
    seen = StepOutputs(y, adv, nat)
    weighted, plain = method.loss(seen)
    weights = method.weigh(seen)
    assert weights.requires_grad
    # the official trade-off row has no clean term of its own: its stored loss is the weighted part
    total = (weights * weighted + plain).mean()
    robust = (weights * weighted).mean()
    official = GOLDEN[f"{classes}_{name}_f64_loss"]
    loss = total if torch.allclose(total, official, rtol=1e-6) else robust
    close(loss, official)
    loss.backward()
    gradient = GOLDEN[f"{classes}_{name}_f64_gadv"]
    # rows of ties have no gradient but a choice of subgradients
    clear = (
        adv.detach().scatter(1, y[:, None], -torch.inf).topk(2, dim=1).values.diff(dim=1).abs()
        > 1e-9
    ).squeeze(1)
    close(adv.grad[clear], gradient[clear], rtol=1e-5, atol=2e-7)
    detached = torch.autograd.grad(
        (weights.detach() * method.loss(StepOutputs(y, adv, nat))[0]).mean(), adv
    )[0]
    assert not torch.allclose(
        detached[clear].float(), gradient[clear].float(), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("which", ["M", "C"])
def test_wmmr_attack(which):
    """The attack on the weighted loss from the recorded start, network in eval mode; a plain attack
    ends elsewhere.
    """
    bench, name = Bench(which), f"{which}_wmmr_pgd_margin_eval"
    start = (GOLDEN[f"{name}_rand"].double() - 0.5) * 2 * bench.eps
    settings = {"init": start, "steps": 10, "step_size": bench.step_size}
    own = METHODS["wmmr"].override("weight.alpha", 2.0).trained_loss
    x_adv = trained_loss_pgd(
        bench.net, bench.x, bench.y, bench.threat, trained_loss=own, **settings
    )
    close(x_adv - bench.x, GOLDEN[f"{name}_delta"], rtol=0, atol=1e-6)
    plain = pgd(bench.net, bench.x, bench.y, bench.threat, **settings)
    assert not torch.equal(plain, x_adv)


class Two(Recorded):
    """The first draw for the KL attack, the second for the CW attack."""

    def __init__(self, first, second):
        self.left = [first.double(), second.double()]

    def normal(self, like):
        return self.left.pop(0)


@pytest.mark.parametrize("which", ["M", "C"])
def test_gair_trades(which):
    """Both attacks, the loss mixed by κ's weight, and its gradients."""
    bench, name = Bench(which), f"{which}_gair_rst_trades_b6_L-1"
    noises = [GOLDEN[f"{name}_noise{i}"].double() for i in (0, 1)]
    method = METHODS["gair-trades"]
    path = AttackTrace(bench.y, 10)
    for part, noise, delta, watch in (
        (method.attack, noises[0], "delta", path),
        (method.second_attack, noises[1], "delta_cw", None),
    ):
        x_adv = part(
            bench.net,
            bench.x,
            bench.y,
            bench.threat,
            generator=Recorded(noise, bench.eps),
            watch=watch,
            steps=10,
            step_size=bench.step_size,
        )
        close(x_adv - bench.x, GOLDEN[f"{name}_{delta}"], rtol=0, atol=1e-6)
    optimizer = torch.optim.SGD(bench.net.parameters(), lr=0.0)
    plan = bench.plan(method)
    done = take_step(bench.net, optimizer, plan.method, plan.recipe, bench.x, bench.y, Two(*noises))
    close(done.loss, GOLDEN[f"{name}_loss"])


@pytest.mark.parametrize(
    ("name", "layers"), [("mnist_l1_minus_l2_conv1", 1), ("cifar_l1_minus_l2_conv1_conv2", 2)]
)
@pytest.mark.parametrize("which", ["M", "C"])
def test_released_cse_regulariser(which, name, layers):
    """What its loss adds to the cost-sensitive loss is a multiple of L1 - L2 that is the same for
    both networks.
    """
    bench, added = Bench(which), METHODS["csa"].override("loss.protected", 3)
    weighted, _ = added.loss(StepOutputs(bench.y, bench.net(bench.x)))
    extra = GOLDEN[f"{which}_cse_loss_{name}"] - weighted.mean()
    close(
        extra / conv_l1_minus_l2(bench.net, strength=1.0, layers=layers),
        torch.tensor(1.0),
        rtol=1e-6,
    )
