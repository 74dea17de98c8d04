"""Optimizer, schedule of the rate and their refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kit.core.errors import KitError
from kit.experiments.recipes import DEFAULTS, LATER_FIELDS, RECIPES
from kit.experiments.specification import RunSpec, resolve
from kit.training.optimizer import learning_rate, make_optimizer

CPU = torch.device("cpu")
DIGITS = RECIPES["digits"]


def steps_of(recipe, count: int = 4) -> list[float]:
    """What a parameter at 1 is after each step down x^4 / 4, with the kit's optimizer."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    optimizer, found = make_optimizer(model, recipe, CPU), []
    for _ in range(count):
        optimizer.zero_grad()
        (model.weight**4 / 4).sum().backward()
        optimizer.step()
        found.append(float(model.weight.detach()))
    return found


def test_sgd_and_nesterov_by_hand():
    for nesterov in (False, True):
        recipe = DIGITS.override(lr=0.1, momentum=0.8, weight_decay=0.3, nesterov=nesterov)
        x, velocity, expected = 1.0, 0.0, []
        for _ in range(4):
            gradient = x**3 + 0.3 * x
            velocity = 0.8 * velocity + gradient
            x -= 0.1 * (gradient + 0.8 * velocity if nesterov else velocity)
            expected.append(x)
        assert steps_of(recipe) == pytest.approx(expected, rel=1e-12)


def test_adam_by_hand():
    """Kingma and Ba's algorithm 1, with the recipe's momentum as the first decay rate."""
    recipe = DIGITS.override(optimizer="adam", lr=0.1, momentum=0.8, weight_decay=0.3)
    x, first, second, expected = 1.0, 0.0, 0.0, []
    for t in range(1, 5):
        gradient = x**3 + 0.3 * x
        first = 0.8 * first + 0.2 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        x -= 0.1 * (first / (1 - 0.8**t)) / (math.sqrt(second / (1 - 0.999**t)) + 1e-8)
        expected.append(x)
    assert steps_of(recipe) == pytest.approx(expected, rel=1e-12)


def test_milestones_and_warm_up():
    recipe = DIGITS.override(epochs=6, lr=1.0, milestones=[3, 5], lr_factor=0.5)
    assert [learning_rate(recipe, e) for e in range(1, 7)] == [1, 1, 1, 0.5, 0.5, 0.25]
    warmed = recipe.override(warm_up=3)
    assert [learning_rate(warmed, e) for e in range(1, 7)] == [0.25, 0.5, 0.75, 0.5, 0.5, 0.25]


def test_cosine_rises_then_falls_to_the_end():
    recipe = DIGITS.override(epochs=400, lr=0.2, schedule="cosine", warm_up=10)
    rates = torch.tensor([learning_rate(recipe, e) for e in range(1, 401)], dtype=torch.float64)
    assert (rates[:11].diff() > 0).all() and (rates[10:].diff() < 0).all()
    assert rates[10] == 0.2 and 0 < rates[-1] < 1e-4
    # half way down, the rate is half
    assert rates[10 + 195] == pytest.approx(0.1)
    # the first and the second half of the fall mirror each other
    torch.testing.assert_close(rates[11:] + rates[11:].flip(0), torch.full((389,), 0.2).double())


def test_old_runs_keep_their_keys():
    """A field that came later, at its default, is in no key; any other value of it is."""
    plan = resolve(RunSpec("mail-at"))
    assert not set(LATER_FIELDS) & set(plan.config()["recipe"])
    assert DIGITS.override(**{f: DEFAULTS[f] for f in LATER_FIELDS}).config() == DIGITS.config()
    assert DIGITS.override(nesterov=True).config() == {**DIGITS.config(), "nesterov": True}


def test_runs_that_differ_in_the_optimizer_are_one_stack():
    keys = {
        resolve(RunSpec("at", overrides=overrides)).stack_key
        for overrides in ({}, {"optimizer": "adam"}, {"schedule": "cosine", "warm_up": 2})
    }
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"epochs": 20}, r"milestones=\[25, 30\] are a schedule longer than the run of 20 epochs"),
        ({"milestones": [41]}, "longer than the run of 40 epochs; set epochs to at least 41"),
        ({"warm_up": 40}, "warm_up=40 is longer than the run of 40 epochs; it must be 0 to 39"),
        ({"nesterov": True, "momentum": 0}, "needs SGD with momentum.*sgd with momentum=0"),
        ({"nesterov": True, "optimizer": "adam"}, "needs SGD with momentum.*this is adam"),
        ({"optimizer": "adan"}, "no value of optimizer 'adan'.*sgd"),
        ({"schedule": "linear"}, "no value of schedule 'linear'.*cosine"),
        ({"generated_share": 1}, r"generated_share=1\.0 is out of range"),
        ({"mean_std": [0.5, 0]}, "out of range; it must be above 0"),
    ],
)
def test_what_cannot_be_followed_is_refused(overrides, words):
    with pytest.raises(KitError, match=words) as caught:
        resolve(RunSpec("at", overrides=overrides))
    assert "\n" not in str(caught.value)


def test_a_cosine_reads_no_milestones():
    recipe = resolve(RunSpec("at", overrides={"epochs": 5, "schedule": "cosine"})).recipe
    assert learning_rate(recipe, 1) == recipe.lr
