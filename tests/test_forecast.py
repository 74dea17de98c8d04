"""The plan's minutes: what is trained once is counted once, and a timed step leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY

import kit
from kit import batch, forecast
from kit.forecast import epochs_to_train, leaders_first, seconds_per_epoch, training_seconds
from kit.spec import RunSpec, resolve
from kit.types import KitError

SETTINGS = {**TINY, "epochs": 4}


def specs(*methods: str, **settings) -> list[RunSpec]:
    return [RunSpec(method, overrides={**SETTINGS, **settings}) for method in methods]


def test_a_shared_burn_in_is_counted_once_as_it_is_trained_once(home):
    """at, clirat and mail-at share epochs until burn-in ends; whoever reweights first leaves them to the others."""
    asked = specs("at", "std", "clirat", "mail-at")
    assert [spec.method for spec in leaders_first(asked)] == ["clirat", "std", "at", "mail-at"]
    burn_in = resolve(asked[2]).burn_in
    assert 0 < burn_in < 4
    expected = {"clirat": 4, "std": 4, "at": 4 - burn_in, "mail-at": 4 - burn_in}
    assert {plan.spec.method: epochs for plan, epochs in epochs_to_train(asked)} == expected
    trained = {}
    for spec in leaders_first(asked):
        run = kit.run(spec, quiet=True)
        branched = run.folder / "branched.json"
        trained[run.method] = 4 - (burn_in if branched.exists() else 0)
    assert trained == expected
    assert all(epochs == 0 for _, epochs in epochs_to_train(asked))
    assert training_seconds(asked, torch.device("cpu"), 1) == 0


def test_the_sum(home, monkeypatch):
    """Epochs times seconds over workers; one run of each recipe and attack is timed."""
    timed = []
    monkeypatch.setattr(forecast, "seconds_per_epoch", lambda plan, device: timed.append(plan.spec.method) or 3.0)
    asked = specs("at", "clirat", "trades", lr=0.01) + specs("at", lr=0.01, eps=0.3)
    epochs = sum(count for _, count in epochs_to_train(asked))
    assert training_seconds(asked, torch.device("cpu"), 2) == epochs * 3 / 2
    assert sorted(timed) == ["at", "clirat", "trades"], "at shares clirat's recipe and attack, at another eps it does not"


@pytest.mark.parametrize("method", ["std", "mail-at", "csa-halves", "fat", "at-awp"])
def test_a_timed_step_leaves_nothing_behind(method, home):
    before, files = torch.get_rng_state(), sorted(home.rglob("*"))
    assert 0 < seconds_per_epoch(resolve(specs(method)[0]), torch.device("cpu")) < 600
    assert torch.equal(before, torch.get_rng_state()) and sorted(home.rglob("*")) == files


def test_the_plan_is_printed_also_where_data_is_missing(home, monkeypatch, capsys):
    jobs = batch.plan(["02"], {"overrides": "epochs=4 probe=20"}, None, None)
    batch.show_plan(jobs, workers=2)
    text = capsys.readouterr().out
    assert "mail-at on digits, seed 0, epochs=4, probe=20: to train, 4 of 4 epochs" in text and "takes about" in text

    def missing(*_):
        raise KitError("no such images")
    monkeypatch.setattr(batch, "training_seconds", missing)
    batch.show_plan(jobs, workers=2)
    assert "how long: no such images" in capsys.readouterr().out
