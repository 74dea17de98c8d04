"""Momentum, basic iterative, margin-decomposing and minimal-norm attacks against their authors'
own numbers; sources in README.md beside this file.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from kit.attacks.basic_iterative import bia
from kit.attacks.carlini_wagner import cw_l2
from kit.attacks.fast_minimum_norm import fmn
from kit.attacks.margin_decomposition import decompose, mdmt, stage_objective
from kit.attacks.momentum_iterative import mifgsm
from kit.attacks.tracker import AttackTracker
from kit.core.threat import Threat
from tests.helpers.attack_problems import (
    NORMS,
)
from tests.helpers.golden import Bench, load_arrays

GOLDEN = load_arrays("attacks/more_attacks")


class RunsOn(AttackTracker):
    """Nothing is ever broken, so no example is dropped; keeps the latest misclassified image, as
    MDAttack's code does.
    """

    latest = None

    def keep(self, x_t: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        margin = super().keep(x_t, logits, rows)
        self.broken = torch.zeros_like(self.broken)
        self.latest = self.x.clone() if self.latest is None else self.latest
        wrong = logits.argmax(dim=1) != self.y[rows]
        self.latest[rows[wrong]] = x_t[wrong]
        return margin


def compare(delta: Tensor, key: str) -> None:
    torch.testing.assert_close(delta, GOLDEN[key].double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("which", ["M", "C"])
def test_fmn_finds_the_authors_distances(which, norm, monkeypatch):
    """Exactly where it aims at the boundary as they do; the kit's aim a little beyond it finds as
    much and once more.
    """
    bench, key = Bench(which), f"{which}_fmn_{norm}_steps100"
    threat, found = Threat(norm, bench.eps), GOLDEN[f"{key}_is_adv"]
    result = fmn(bench.net, bench.x, bench.y, threat, steps=100)
    assert bool(result.size.isfinite().all()) and int((~found).sum()) == (
        (which, norm) == ("C", "l2")
    )
    torch.testing.assert_close(result.size[found], GOLDEN[f"{key}_dist"][found], rtol=2e-3, atol=0)
    monkeypatch.setattr("kit.attacks.fast_minimum_norm.OVERSHOOT", 0.0)
    result = fmn(bench.net, bench.x, bench.y, threat, steps=100)
    assert torch.equal(result.size.isfinite(), found)
    torch.testing.assert_close(result.size[found], GOLDEN[f"{key}_dist"][found], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "norm", "steps"),
    [("MIA", "linf", 20), ("LinfBIA_default_steps", "linf", 10), ("L2BIA_default_steps", "l2", 10)],
)
@pytest.mark.parametrize("which", ["M", "C"])
def test_iterates_are_advertorchs(which, name, norm, steps):
    """advertorch returns the point after the last step:

    with a step more it is the last evaluation point.
    """
    bench = Bench(which)
    attack = (
        partial(mifgsm, step_size=bench.step_size / 2)
        if name == "MIA"
        else partial(bia, step_size=0.05)
    )
    seen = []
    attack(
        bench.net,
        bench.x,
        bench.y,
        Threat(norm, bench.eps),
        steps=steps + 1,
        watch=lambda t, x_t, z: seen.append(x_t),
    )
    assert len(seen) == steps + 1
    compare(seen[-1] - bench.x, f"{which}_advertorch_{name}_delta")


@pytest.mark.parametrize("dlr", [False, True])
@pytest.mark.parametrize("which", ["M", "C"])
def test_margin_decomposition_is_the_authors(which, dlr):
    bench, key = Bench(which), f"{which}_mda_md{'_dlr' if dlr else ''}"
    look = RunsOn(bench.net, bench.x, bench.y, bench.threat, "inside", "linf")
    for noise, raise_rival in zip(GOLDEN[f"{key}_noise"].double(), (False, True), strict=True):
        decompose(
            look,
            bench.x + noise,
            partial(stage_objective, raise_rival=raise_rival, change_point=20, dlr=dlr),
            50,
            20,
        )
    compare(look.latest - bench.x, f"{key}_delta")


def test_multi_targeted_margin_decomposition_is_the_authors(monkeypatch):
    """The attack itself, but that it starts from the recorded points and never drops an example.

    20 steps, change at 10.
    """
    bench, noises = Bench("M"), iter(GOLDEN["M_mda_mdmt_noise"].double())
    x, y, looks = bench.x[:8], bench.y[:8], []

    def recorded(*given):
        looks.append(RunsOn(*given))
        return looks[-1]

    monkeypatch.setattr("kit.attacks.tracker.AttackTracker", recorded)
    monkeypatch.setattr(
        "kit.attacks.margin_decomposition.start_point", lambda x, *_: x + next(noises)
    )
    mdmt(bench.net, x, y, bench.threat, steps=20, change_point=10)
    assert next(noises, None) is None, "all 20 runs took place"
    compare(looks[0].latest - x, "M_mda_mdmt_delta")


@pytest.mark.parametrize("which", ["M", "C"])
def test_cw_l2_finds_advertorchs_distances(which):
    """In single precision, as recorded, with every round run to its end."""
    bench, key = Bench(which), f"{which}_advertorch_CWL2_it60_bs3_f32"
    result = cw_l2(
        bench.net.float(),
        bench.x[:8].float(),
        bench.y[:8],
        Threat("l2", 1.0),
        steps=60,
        search_steps=3,
        lr=0.05,
        initial_const=1.0,
        abort_early=False,
    )
    fooled = GOLDEN[f"{key}_fooled"]
    assert torch.equal(result.size.isfinite(), fooled)
    torch.testing.assert_close(
        result.size[fooled], GOLDEN[f"{key}_l2dist"][fooled], rtol=1e-3, atol=0
    )


def test_every_golden_array_is_compared():
    names = {
        "fmn_linf_steps100_dist",
        "fmn_linf_steps100_is_adv",
        "fmn_l2_steps100_dist",
        "fmn_l2_steps100_is_adv",
        "advertorch_MIA_delta",
        "advertorch_LinfBIA_default_steps_delta",
        "advertorch_L2BIA_default_steps_delta",
        "advertorch_CWL2_it60_bs3_f32_l2dist",
        "advertorch_CWL2_it60_bs3_f32_fooled",
        "mda_md_noise",
        "mda_md_delta",
        "mda_md_dlr_noise",
        "mda_md_dlr_delta",
    }
    assert set(GOLDEN) == {f"{which}_{name}" for which in "MC" for name in names} | {
        "M_mda_mdmt_noise",
        "M_mda_mdmt_delta",
    }
