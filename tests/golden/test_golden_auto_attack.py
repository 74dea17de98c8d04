"""APGD, FAB, Square and AutoAttack against auto-attack's own numbers; sources in README.md beside
this file.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kit.attacks import auto_pgd
from kit.attacks.auto_attack import VERSIONS, autoattack
from kit.attacks.auto_pgd import apgd_objective, ascend_targets, targets_of
from kit.attacks.fast_adaptive_boundary import fab, search_boundary
from kit.attacks.square_attack import (
    square,
)
from kit.attacks.tracker import AttackTracker
from kit.core import tensors
from kit.core.threat import Threat
from tests.helpers.attack_problems import RunsOn, predicted
from tests.helpers.golden import LOGITS, Bench, load_arrays

GOLDEN, MNIST = load_arrays("autoattack/attacks"), load_arrays("autoattack/mnist")


@pytest.mark.parametrize(
    ("name", "loss", "steps"),
    [
        ("ce_n100", "ce", 100),
        ("ce_n20", "ce", 20),
        ("dlr_n100", "dlr", 100),
        ("dlr-targeted_n100", "targeted", 100),
    ],
)
def test_apgd_is_the_authors(name, loss, steps, monkeypatch):
    """From the recorded start, in float64; the step sizes of the official code are float32 even
    then.
    """
    bench, key, moved = Bench("M"), f"M_apgd_{name}", auto_pgd.next_iterate
    monkeypatch.setattr(
        auto_pgd,
        "next_iterate",
        lambda x_t, x_old, x, gradient, step, threat, share: moved(
            x_t, x_old, x, gradient, step.float().double(), threat, share
        ),
    )
    look = RunsOn(bench.net, bench.x, bench.y, bench.threat, "inside", "linf")
    drawn = 2 * GOLDEN[f"{key}_rand"].double() - 1
    x_0 = (bench.x + bench.eps * drawn / drawn.abs().amax(dim=(1, 2, 3), keepdim=True)).clamp(0, 1)
    look.latest, look.fallen = x_0.clone(), torch.zeros_like(look.broken)
    target = GOLDEN[f"{key}_target"] if loss == "targeted" else bench.y
    rows, best, x_best = ascend_targets(
        look, x_0, look.rows, apgd_objective(look, loss), target, steps
    )
    assert torch.equal(rows, look.rows) and torch.equal(~look.fallen, GOLDEN[f"{key}_acc"])
    torch.testing.assert_close(best, GOLDEN[f"{key}_best_loss"], rtol=1e-9, atol=1e-6)
    for ours, theirs in ((x_best, "best_delta"), (look.latest, "adv_delta")):
        torch.testing.assert_close(
            ours - bench.x, GOLDEN[f"{key}_{theirs}"].double(), rtol=0, atol=1e-6
        )


def test_targets_are_the_authors():
    bench = Bench("M")
    look = AttackTracker(bench.net, bench.x, bench.y, bench.threat, "inside", "linf")
    stored = GOLDEN["M_apgd_dlr-targeted_n100_target"]
    assert any(torch.equal(target, stored) for target in targets_of(look))


@pytest.mark.slow
def test_fab_finds_the_authors_distances():
    """In single precision, as recorded: a target after the other, until one lies in the ball."""
    bench = Bench("M")
    x, threat = bench.x.float(), bench.threat
    look = AttackTracker(bench.net.float(), x, bench.y, threat, "nearest", "linf")
    for target in targets_of(look):
        rows = look.unbroken()
        search_boundary(look, x[rows], rows, target[rows], 100)
    fooled, stored = GOLDEN["M_fab_t_f32_fooled"], tensors.norm(GOLDEN["M_fab_t_f32_delta"], "linf")
    assert torch.equal(look.broken, fooled) and 28 <= int(fooled.sum()) < 32
    assert float((look.size / stored - 1)[fooled & (stored > 0)].abs().max()) < 1e-3
    # the attack itself does not stop at a first success, and comes nearer
    nearest = fab(bench.net, x[:1], bench.y[:1], threat)
    assert float(nearest.size[0]) < 0.8 * float(stored[0]) and nearest.forwards.tolist() == [
        1 + 9 * 200
    ]


@pytest.mark.parametrize("width", ["K10", "K100"])
def test_difference_of_logits_ratios_are_the_authors(width):
    logits, y = LOGITS[f"{width}_adv_logits"], LOGITS[f"{width}_y"]
    torch.testing.assert_close(
        tensors.dlr(logits, y), GOLDEN[f"{width}_aa_dlr_f64"], rtol=1e-9, atol=1e-9
    )
    for rank in (2, 3, 4, 10):
        stored, target = (
            GOLDEN[f"{width}_aa_dlr_targeted_rank{rank}_{what}"] for what in ("f64", "target")
        )
        torch.testing.assert_close(
            tensors.targeted_dlr(logits, y, target), stored, rtol=1e-9, atol=1e-9
        )


def mnist() -> tuple[nn.Module, Tensor, Tensor]:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 16, 4, 2, 1), nn.Conv2d(16, 32, 4, 2, 1)
            self.fc1, self.fc2 = nn.Linear(1568, 64), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.fc1(self.conv2(self.conv1(x).relu()).relu().flatten(1)).relu())

    net = Net()
    net.load_state_dict(
        {
            key.removeprefix("param_"): value
            for key, value in MNIST.items()
            if key.startswith("param_")
        }
    )
    return net, MNIST["images_u8"] / 255, MNIST["labels"]


@pytest.mark.slow
def test_autoattack_is_as_strong_as_the_authors():
    """Robust accuracy of 200 MNIST images after each attack:

    never over theirs by more than 0.01, and within 0.02.
    """
    net, x, y = mnist()
    result = autoattack(net, x, y, Threat("linf", 0.25))
    broken_by, standing = np.array(result.by), torch.ones(len(x), dtype=torch.bool)
    assert torch.equal(torch.from_numpy(broken_by == "clean"), ~MNIST["flags_clean"])
    for name in ("clean", *VERSIONS["standard"]):
        standing &= torch.from_numpy(broken_by != name)
        if name != "clean":
            theirs = [
                float(MNIST[f"eps0.25_seed{seed}_standard_flags_after_{name}"].float().mean())
                for seed in (0, 1)
            ]
            ours = float(standing.float().mean())
            assert min(theirs) - 0.02 <= ours <= max(theirs) + 0.01, name
    assert torch.equal(standing, result.robust) and torch.equal(
        predicted(net, result.x_adv) != y, result.broken
    )
    assert float((result.x_adv - x).abs().max()) <= 0.25 + 1e-6


@pytest.mark.slow
def test_fab_and_square_alone_are_as_strong_as_the_authors():
    net, x, y = mnist()
    ours = float(fab(net, x, y, Threat("linf", 0.25), goal="inside").robust.float().mean())
    theirs = float(MNIST["eps0.25_seed0_alone_flags_fab-t"].float().mean())
    assert theirs - 0.02 <= ours <= theirs + 0.01
    ours = float(square(net, x, y, Threat("linf", 0.25), queries=1000).robust.float().mean())
    theirs = [
        float(MNIST[f"eps0.25_seed{seed}_alone_flags_square1000"].float().mean()) for seed in (0, 1)
    ]
    assert min(theirs) - 0.02 <= ours <= max(theirs) + 0.01


def test_every_golden_array_is_compared():
    runs = ("ce_n100", "ce_n20", "dlr_n100", "dlr-targeted_n100")
    names = {
        f"M_apgd_{run}_{what}"
        for run in runs
        for what in ("rand", "best_delta", "best_loss", "acc", "adv_delta")
    }
    names |= {"M_apgd_dlr-targeted_n100_target", "M_fab_t_f32_delta", "M_fab_t_f32_fooled"}
    for width in ("K10", "K100"):
        names |= {f"{width}_aa_dlr_f64"} | {
            f"{width}_aa_dlr_targeted_rank{rank}_{what}"
            for rank in (2, 3, 4, 10)
            for what in ("f64", "target")
        }
    assert set(GOLDEN) == names
    flags = {
        f"eps0.25_seed{seed}_standard_flags_after_{name}"
        for seed in (0, 1)
        for name in VERSIONS["standard"]
    }
    alone = {"eps0.25_seed0_alone_flags_fab-t"} | {
        f"eps0.25_seed{seed}_alone_flags_square1000" for seed in (0, 1)
    }
    layers = {
        f"param_{layer}.{what}"
        for layer in ("conv1", "conv2", "fc1", "fc2")
        for what in ("weight", "bias")
    }
    assert set(MNIST) == flags | alone | layers | {"images_u8", "labels", "flags_clean"}
