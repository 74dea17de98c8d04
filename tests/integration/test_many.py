"""Many networks at once:

the same steps, the same runs, and one that fails takes no other with it.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
import torch

import kit
from kit.core import files
from kit.core.errors import KitError
from kit.core.random_streams import JoinedStreams, Streams
from kit.experiments.runs import run_folder
from kit.experiments.specification import RunSpec, group_for_stacking, resolve
from kit.methods.table import METHODS
from kit.models import architectures
from kit.models.stacking import StackedNetworks, stack_networks
from kit.training import runner
from kit.training.runner import STACKED_NETWORKS, run_many
from kit.training.stacked_step import Learner, train_step_stacked
from kit.training.step import Batch
from tests.helpers.run_files import contents
from tests.helpers.settings import TINY
from tests.helpers.stepping import take_step

PLANS = {name: resolve(RunSpec(name, overrides={"steps": 4})) for name in METHODS}
COMPANIES = defaultdict(list)
for name, plan in PLANS.items():
    COMPANIES[plan.stack_key].append(name)
ALONE = COMPANIES.pop("")


def test_who_goes_alone():
    """Attacks of another shape, perturbed parameters, and batches that are attacked ahead."""
    assert set(ALONE) == {"fat", "at-awp", "trades-awp", "csa-attack-first", "csa-fgsm"}
    assert resolve(RunSpec("at", overrides={"model": "resnet18"})).stack_key == ""
    assert len(COMPANIES) < 15 and max(map(len, COMPANIES.values())) > 15
    same = resolve(
        RunSpec(
            "clirat",
            seed=3,
            overrides={"steps": 4, "lr": 0.1, "weight.slope": 2.0, "milestones": []},
        )
    )
    assert same.stack_key == PLANS["at"].stack_key
    for other in (
        {"eps": 0.1},
        {"steps": 5},
        {"attack.init": "none"},
        {"epochs": 41},
        {"batch_size": 32},
        {"probe": 9},
    ):
        assert resolve(RunSpec("at", overrides={"steps": 4, **other})).stack_key not in (
            "",
            PLANS["at"].stack_key,
        )


@pytest.mark.parametrize("model", ["cnn", "lenet", "lenet-5-16-unpadded", "linear"])
def test_networks_do_not_see_each_other(model):
    """Logits, and the gradients of images and parameters, are each network's own, to 1e-12 in
    float64.
    """
    size = 28 if model.startswith("lenet") else 8
    stats = (torch.tensor([0.3]), torch.tensor([0.5]))
    nets = [
        architectures.build_network(model, (1, size, size), 10, seed=i, normalise=stats).double()
        for i in range(3)
    ]
    x = torch.rand(3 * 5, 1, size, size, dtype=torch.float64, requires_grad=True)
    upstream = torch.rand(3 * 5, 10, dtype=torch.float64)
    parameters = [p for net in nets for p in net.parameters()]
    at_once = stack_networks(nets)(x)
    alone = torch.cat([net(part) for net, part in zip(nets, x.split(5), strict=True)])
    gradients = [
        torch.autograd.grad((out * upstream).sum(), [x, *parameters]) for out in (at_once, alone)
    ]
    torch.testing.assert_close(at_once, alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert stack_networks(nets[:1]) is nets[0]
    with pytest.raises(KitError, match="networks with a BatchNorm2d are trained one by one"):
        StackedNetworks([architectures.build_network("resnet18", (3, 8, 8), 10) for _ in range(2)])


@pytest.mark.parametrize("names", COMPANIES.values(), ids=lambda names: names[0])
def test_steps_of_many_are_the_steps_of_each(names):
    """Every company of methods in one program, rates and reweighting their own: parameters, weights
    and losses as one by one, to 1e-10 in float64. The streams are each network's own, too.
    """
    recipe, epochs = PLANS[names[0]].recipe, 40
    apart, joint = [], []
    for i, name in enumerate(names):
        net = architectures.build_network("cnn", (1, 8, 8), 10, seed=i).double()
        for learners, mine in ((apart, net), (joint, copy.deepcopy(net))):
            optimizer = torch.optim.SGD(mine.parameters(), lr=0.01 * (i + 1), momentum=0.9)
            learners.append(
                Learner(
                    mine,
                    optimizer,
                    METHODS[name].at(30, epochs),
                    METHODS[name].reweights and i % 3 > 0,
                )
            )
    draw = torch.Generator().manual_seed(0)
    for number in range(2):
        x = torch.rand(len(names) * 12, 1, 8, 8, dtype=torch.float64, generator=draw)
        y = torch.randint(0, 10, (len(names) * 12,), generator=draw)

        def streams(number=number):
            return [Streams(torch.arange(12) + i, i, number) for i in range(len(names))]

        for attacked in joint[0].method.stages(30, epochs):
            batches = map(Batch, x.split(12), y.split(12), streams())
            stacked = train_step_stacked(joint, list(batches), recipe, adversarial=attacked)
            single = [
                take_step(
                    one.model,
                    one.optimizer,
                    one.method,
                    recipe,
                    part,
                    labels,
                    own,
                    attacked=attacked,
                    reweighted=one.reweight,
                )
                for one, part, labels, own in zip(
                    apart, x.split(12), y.split(12), streams(), strict=True
                )
            ]
            for one, other in zip(stacked, single, strict=True):
                torch.testing.assert_close(one.weights, other.weights, rtol=1e-9, atol=1e-10)
                torch.testing.assert_close(one.loss, other.loss, rtol=1e-9, atol=1e-10)
    for one, other in zip(joint, apart, strict=True):
        torch.testing.assert_close(
            dict(one.model.state_dict()), dict(other.model.state_dict()), rtol=1e-9, atol=1e-10
        )


def test_joined_streams_draw_what_each_would():
    def streams():
        return [Streams(torch.arange(n), n, "s") for n in (3, 5)]

    joined, apart = JoinedStreams(streams()), streams()
    like = torch.empty(8, 2, 2)
    for kind in ("uniform", "normal", "uniform"):
        each = [getattr(s, kind)(part) for s, part in zip(apart, like.split([3, 5]), strict=True)]
        torch.testing.assert_close(getattr(joined, kind)(like), torch.cat(each))


# --------------------------------------------------------------------------------------------- runs

METHODS_TOGETHER = ("mail-at", "clirat", "at", "mr-mail", "csa")


def specs_of(**changes) -> list[RunSpec]:
    return [
        RunSpec(name, seed=seed, overrides={**TINY, **changes})
        for seed in (0, 1)
        for name in METHODS_TOGETHER
    ]


def test_many_runs_are_the_runs_one_by_one(tmp_path, monkeypatch):
    """Same files, same images, nearly the same numbers:

    roundings differ, and where they turn a sign, paths do.
    """
    found, specs = {}, specs_of(train_size=200)
    for way in ("one by one", "together"):
        monkeypatch.setenv("KIT_HOME", str(tmp_path / way))
        alone = way == "one by one"
        found[way] = (
            [kit.run(s, quiet=True) for s in specs] if alone else kit.run_many(specs, quiet=True)
        )
        assert [run.spec for run in found[way]] == specs
    for one, other in zip(*found.values(), strict=True):
        assert one.key == other.key and set(one.history) == set(other.history)
        first, second = one.history.iloc[0], other.history.iloc[0]
        assert first.loss == pytest.approx(second.loss, rel=2e-3) and first.lr == second.lr
        assert one.history.robust.iloc[-1] == pytest.approx(other.history.robust.iloc[-1], abs=0.12)
        for name, values in one.final.items():
            assert (
                values.shape == other.final[name].shape and values.dtype == other.final[name].dtype
            )
        np.testing.assert_array_equal(one.final["test_ids"], other.final["test_ids"])
        assert (one.folder / "last.ckpt").exists() and kit.evaluate(
            other, "natural", quiet=True
        ).n.iloc[0] == 497
    branched = [(run.folder / "branched.json").exists() for run in found["together"]]
    assert sum(branched) == 6, (
        "runs that differ in their weights alone still share their burn-in, in both seeds"
    )


def test_the_small_network_ends_bit_for_bit_as_if_alone(tmp_path, monkeypatch):
    """So its numbers depend neither on the plan nor on how many tasks are done at a time."""
    found = {}
    specs = [
        RunSpec(name, seed=seed, overrides=TINY)
        for name, seed in (("trades", 0), ("vir-trades", 1))
    ]
    for way in ("alone", "together"):
        monkeypatch.setenv("KIT_HOME", str(tmp_path / way))
        found[way] = (
            [kit.run(spec, quiet=True) for spec in specs]
            if way == "alone"
            else run_many(specs, quiet=True)
        )
    for one, other in zip(*found.values(), strict=True):
        pd.testing.assert_frame_equal(
            one.history.drop(columns="seconds"),
            other.history.drop(columns="seconds"),
            rtol=0,
            atol=0,
        )
        for name, values in one.final.items():
            np.testing.assert_array_equal(values, other.final[name])


def test_asking_again_costs_nothing(fresh_home, monkeypatch, capsys):
    specs = [
        RunSpec("at", seed=seed, overrides={**TINY, "epochs": 1, "milestones": []})
        for seed in (0, 1)
    ]
    first = run_many([*specs, specs[0]])
    assert [run.spec.seed for run in first] == [
        0,
        1,
        0,
    ] and "2 networks at once" in capsys.readouterr().out
    monkeypatch.setattr(runner, "fit_plans", None)
    assert [run.key for run in run_many(specs)] == [run.key for run in first[:2]]


def test_one_that_fails_takes_no_other_along(fresh_home):
    """It diverges, and the error names it; the others end as if it had not been there, up to
    roundings.
    """
    good = [RunSpec("at", seed=seed, overrides=TINY) for seed in (0, 1)]
    bad = RunSpec("at", seed=2, overrides={**TINY, "lr": 1e30})
    with pytest.raises(
        KitError, match=r"1 of 3 runs could not be trained.*seed 2, .*diverged in epoch 1"
    ):
        run_many([good[0], bad, good[1]], quiet=True)
    assert all((run_folder(resolve(spec)) / "done.json").exists() for spec in good)
    assert not (run_folder(resolve(bad)) / "done.json").exists()


def test_out_of_memory_halves_the_company(fresh_home, monkeypatch, capsys):
    real = runner.fit_plans

    def narrow(plans, device, **words):
        if len(plans) > 2:
            raise torch.OutOfMemoryError("too large")
        real(plans, device, **words)

    monkeypatch.setattr(runner, "fit_plans", narrow)
    specs = [
        RunSpec("at", seed=seed, overrides={**TINY, "epochs": 1, "milestones": []})
        for seed in range(4)
    ]
    monkeypatch.setitem(STACKED_NETWORKS, "cpu", 4)
    torch.set_num_threads(1)
    assert (
        len(run_many(specs, quiet=True)) == 4
        and "going on with 2 networks at a time" in capsys.readouterr().out
    )

    def none(plans, device, **words):
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(runner, "fit_plans", none)
    with pytest.raises(
        KitError, match="batch_size=20 does not fit into the device's memory; lower it"
    ):
        kit.run("at", seed=9, overrides=TINY, quiet=True)
    with pytest.raises(KitError, match=r"2 of 2 runs could not be trained\. at .*seed 11") as told:
        run_many([RunSpec("at", seed=seed, overrides=TINY) for seed in (10, 11)], quiet=True)
    assert str(told.value).count("does not fit into the device's memory") == 1  # each cause once


def test_two_threads_train_what_one_does(tmp_path, monkeypatch):
    """Side by side, bit for bit:

    initial parameters are drawn from the one global state, in turn.
    """
    specs = [
        RunSpec(name, overrides={**TINY, "epochs": 2, "train_size": 200})
        for name in ("at", "gairat", "trades", "std")
    ]
    ends = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        monkeypatch.setenv("KIT_HOME", str(tmp_path / str(threads)))
        torch.set_num_threads(threads)
        try:
            ends.append([contents(run.folder) for run in run_many(specs, quiet=True)])
        finally:
            torch.set_num_threads(before)
    assert ends[0] == ends[1]


def test_leaders_come_first():
    specs = specs_of()
    first, then = group_for_stacking([resolve(spec) for spec in specs], 3)
    assert [len(some) for some in first] == [2, 2] and [len(some) for some in then] == [3, 3]
    assert all(len({plan.stack_key for plan in some}) == 1 for some in (*first, *then))
    assert {plan.spec.method for some in then for plan in some} == {"clirat", "at", "mr-mail"}
    trunks = [plan.burn_in_key for some in first for plan in some]
    assert len(set(trunks)) == len(trunks) == 4


SCRIPT = """import sys, json, kit
kit.run_many([kit.RunSpec(*words) for words in json.loads(sys.argv[1])], quiet=True)"""


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(tmp_path):
    """kill -9 twice, between the saves of two networks, and all end bit for bit the same."""
    specs = [
        RunSpec(
            name,
            seed=seed,
            overrides={**TINY, "epochs": 5, "burn_in": 0} | ({} if name != "at" else {"lr": 0.04}),
        )
        for seed in (0, 1)
        for name in ("mail-at", "clirat")
    ]
    words = json.dumps([[s.method, s.recipe, s.seed, dict(s.overrides)] for s in specs])

    def start(home):
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, words], env={**os.environ, "KIT_HOME": str(home)}
        )

    homes = [tmp_path / name for name in ("calm", "killed")]
    assert start(homes[0]).wait() == 0
    folders = [run_folder(resolve(spec)).name for spec in specs]
    for after in (1, 3):
        process = start(homes[1])
        watched = homes[1] / "data/runs" / folders[after % 4] / f"epochs/{after:04d}.npz"
        while process.poll() is None and not watched.exists():
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(homes[1]).wait() == 0
    for name in folders:
        calm, killed = (contents(home / "data/runs" / name) for home in homes)
        assert calm == killed
        assert files.read_json(homes[1] / "data/runs" / name / "done.json")["epochs"] == 5
