"""FAT, adversarial weight perturbation, WMMR in train mode and CSE's kurtosis against their
authors' own numbers; sources in golden/README.md.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kit.attacks.friendly_pgd_attack import friendly_pgd
from kit.attacks.projected_gradient_descent import pgd, trained_loss_pgd
from kit.core.parts import part
from kit.methods.regularisers import conv_kurtosis
from kit.methods.schedules import friendlier_first
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import METHODS
from kit.methods.weight_perturbation import perturb_weights
from kit.methods.weights import batch_mean
from kit.training.step import Batch, compute_loss, forward
from tests.helpers.golden import Bench, Recorded, close, load_arrays

GOLDEN, LOGITS = load_arrays("methods/fat_awp"), load_arrays("methods/methods")


class InPlace(Recorded):
    """FAT draws noise for the examples that are still in its loop; each row goes to its example's
    place.
    """

    def __init__(self, bench, name: str):
        super().__init__(
            GOLDEN[f"{name}_noise"].double() if f"{name}_noise" in GOLDEN else None, bench.eps
        )
        self.uniform_start, self.steps = "uniform" in name, []
        order, counts = (
            GOLDEN[f"{name}_source_row"],
            GOLDEN.get(f"{name}_omega_draw_counts", torch.tensor([])).tolist(),
        )
        for count, draws in zip(
            counts, GOLDEN[f"{name}_omega_draws"].split(counts) if counts else (), strict=True
        ):
            step = torch.zeros_like(bench.x)
            step[order[len(order) - count :].sort().values] = draws.double().view(
                count, *bench.x.shape[1:]
            )
            self.steps.append(step)

    def normal(self, like):
        return self.steps.pop(0) if self.uniform_start else self.noise


@pytest.mark.parametrize(
    ("name", "tau", "loss", "init", "omega"),
    [
        ("C_fat_tau0_uniform_cent", 0, "ce", "uniform", 0.0),
        ("C_fat_tau2_uniform_cent", 2, "ce", "uniform", 0.001),
        ("C_fat_tau1_normal_kl", 1, "kl", "gaussian", 0.0),
        ("C_fat_tau0_norand_cent", 0, "ce", "none", 0.0),
    ],
)
def test_fat_attack(name, tau, loss, init, omega):
    """The official output, in the order of leaving, is ours at its source rows; labels stay in
    place.
    """
    bench, points = Bench("C"), []
    rows = GOLDEN[f"{name}_source_row"]
    x_adv = friendly_pgd(
        bench.net,
        bench.x,
        bench.y,
        bench.threat,
        generator=InPlace(bench, name),
        steps=10,
        omega=omega,
        step_size=bench.step_size,
        tau=tau,
        loss=loss,
        init=init,
        validate=False,
        watch=lambda t, x_t, logits: points.append(x_t),
    )
    close((x_adv - bench.x)[rows], GOLDEN[f"{name}_delta_in_output_order"], rtol=0, atol=1e-6)
    assert torch.equal(bench.y[rows], GOLDEN[f"{name}_target"])
    ways = zip(points, [*points[1:], x_adv], strict=True)
    moved = sum(int((here != there).flatten(1).any(dim=1).sum()) for here, there in ways)
    assert moved == int(GOLDEN[f"{name}_count"]) < 120, "who has stopped stays"


def test_fat_timetable():
    """τ by epoch of 120 (1-based; the stored vector begins with epoch 0)."""
    official = GOLDEN["fat_tau_by_epoch"].tolist()[1:121]
    assert [friendlier_first(epoch, 120)["attack.tau"] for epoch in range(1, 121)] == official
    assert METHODS["fat"].at(51, 120).attack.params["tau"] == 1


@pytest.mark.parametrize("which", ["M", "C"])
@pytest.mark.parametrize(("name", "method"), [("at", "at-awp"), ("trades", "trades-awp")])
def test_weight_perturbation(which, name, method):
    """The shift of each tensor before γ, and the loss of the perturbed network in train mode, on
    the stored images.
    """
    bench, row = Bench(which), METHODS[method]
    gamma = row.perturb.params["gamma"]
    x_adv = bench.x + bench.golden["at_delta"].double()
    batch = Batch(bench.x, bench.y, None, x_adv=x_adv, trace=_Path())

    def loss_here() -> torch.Tensor:
        outputs = forward(bench.net, row, batch)
        return compute_loss(bench.net, row, outputs, reweight=False).loss

    before = {key: p.detach().clone() for key, p in bench.net.named_parameters()}
    stats = {key: value.clone() for key, value in bench.net.named_buffers()}
    with perturb_weights(bench.net, loss_here, gamma=gamma):
        moved = {key: (p.detach() - before[key]) / gamma for key, p in bench.net.named_parameters()}
        assert all(torch.equal(value, stats[key]) for key, value in bench.net.named_buffers()), (
            "not seen by batch norms"
        )
        loss = loss_here()
    stored = {
        key.split("_diff_")[1]: value
        for key, value in GOLDEN.items()
        if key.startswith(f"{which}_awp_{name}_diff_")
    }
    assert len(stored) == (4 if which == "M" else 3)
    for key, shift in moved.items():
        close(shift, stored.get(key, torch.zeros_like(shift)), rtol=1e-5, atol=1e-7)
    close(loss, GOLDEN[f"{which}_awp_{name}_loss_perturbed_train"])
    for key, p in bench.net.named_parameters():
        close(p, before[key], rtol=0, atol=1e-12)


class _Path:
    """No attack was watched: every count is as after none."""

    steps, kappa, lps = 10, torch.zeros(()), torch.full((), 10)

    def flip_probability(self, logits_adv: torch.Tensor) -> torch.Tensor:
        return torch.zeros(())


class AsGiven(nn.Module):
    """Keeps the network in the mode that it was given in, whatever an attack asks for."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def train(self, mode: bool = True):
        return self

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("which", ["M", "C"])
@pytest.mark.parametrize(
    "name",
    [
        "wmmr_pgd_margin_train",
        "wmmr_pgd_baseline_train",
        "awp_attack_pgd_train",
        "awp_attack_pgd_eval",
    ],
)
def test_attacks_in_train_mode(which, name):
    """WMMR and AT-AWP attack the network in train mode, where an example depends on its batch: the
    kit does not, and only a network that stays in train mode by itself shows that nothing else
    differs.
    """
    bench = Bench(which)
    net = AsGiven(bench.net.train(name.endswith("_train")))
    noise = GOLDEN.get(f"{which}_{name}_rand")
    start = (
        (noise.double() - 0.5) * 2 * bench.eps
        if noise is not None
        else GOLDEN[f"{which}_{name}_noise"].double()
    )
    settings = {"steps": 10, "step_size": bench.step_size, "validate": False}
    if "awp" in name:
        start = (bench.x + start).clamp(0, 1) - bench.x
        if which == "C":
            net = nn.Sequential(_Cifar(), net)
    if "margin" in name:
        own = METHODS["wmmr"].override("weight.alpha", 2.0).trained_loss
        x_adv = trained_loss_pgd(
            net, bench.x, bench.y, bench.threat, trained_loss=own, init=start, **settings
        )
    else:
        x_adv = pgd(net, bench.x, bench.y, bench.threat, init=start, **settings)
    close(x_adv - bench.x, GOLDEN[f"{which}_{name}_delta"], rtol=0, atol=1e-6)


class _Cifar(nn.Module):
    """AT-AWP's normalisation."""

    def forward(self, x):
        mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
        return (x - x.new_tensor(mean).view(3, 1, 1)) / x.new_tensor(std).view(3, 1, 1)


@pytest.mark.parametrize("classes", ["K10", "K100"])
def test_normalised_wmmr_trades(classes):
    """Divided by the sum of the weights, through which no gradient runs."""
    y, adv, nat = (LOGITS[f"{classes}_{name}"] for name in ("y", "adv_logits", "nat_logits"))
    adv, nat = adv.double().requires_grad_(), nat.double()
    row = METHODS["wmmr-trades"].but(
        "normalised", "Zeng et al. 2021, its code", normaliser=part(batch_mean)
    )
    weighted, plain = row.loss(StepOutputs(y, adv, nat))
    loss = (row.weigh(StepOutputs(y, adv, nat)) * weighted + plain).mean()
    stored = f"{classes}_wmmr_trades_alpha2_b5_normalized_f64"
    close(loss, GOLDEN[f"{stored}_loss"])
    loss.backward()
    clear = (
        adv.detach().scatter(1, y[:, None], -torch.inf).topk(2, dim=1).values.diff(dim=1).abs()
        > 1e-9
    ).squeeze(1)
    close(adv.grad[clear], GOLDEN[f"{stored}_gadv"][clear], rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize("which", ["M", "C"])
def test_kurtosis(which):
    """What the second choice of CSE's code subtracts from the cost-sensitive loss."""
    bench, costs = Bench(which), METHODS["csa"].override("loss.protected", 3)
    weighted, _ = costs.loss(StepOutputs(bench.y, bench.net(bench.x)))
    close(conv_kurtosis(bench.net), GOLDEN[f"{which}_cse2_loss_kurtosis_conv1"] - weighted.mean())
