"""The plan's minutes: what is trained once is counted once, what is trained together is timed
together, and nothing is left behind. Whether the minutes are true
`tests/benchmarks/check_forecast.py` measures.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import kit
from kit.core.errors import KitError
from kit.core.random_streams import Streams
from kit.experiments.runs import initial_network, run_folder
from kit.experiments.specification import RunSpec, burn_in_leaders_first, resolve
from kit.jobs import (
    batch_tasks,
    evaluation_costs,
    flops,
    forecast,
    notebook_jobs,
    ray_engine,
    reproduction,
)
from kit.jobs.forecast import TrainingCost, epochs_to_train, forecast_seconds, measure_cost
from kit.jobs.tasks import Place, simulate_tasks
from kit.papers.table_runs import Evaluation
from tests.helpers.settings import TINY
from tests.helpers.stepping import take_step

SETTINGS = {**TINY, "epochs": 4}
CPU = torch.device("cpu")


def specs(*methods: str, **settings) -> list[RunSpec]:
    return [RunSpec(method, overrides={**SETTINGS, **settings}) for method in methods]


def lists_of(asked: list[RunSpec], slots: int) -> dict:
    return batch_tasks.group_trainings([[resolve(spec) for spec in asked]], Place(CPU, slots))


def test_a_shared_burn_in_is_counted_once_as_it_is_trained_once(home):
    """at, clirat and mail-at share epochs until burn-in ends; whoever reweights first leaves them
    to the others.
    """
    asked = specs("at", "std", "clirat", "mail-at")
    plans = [resolve(spec) for spec in asked]
    assert [plan.spec.method for plan in burn_in_leaders_first(plans)] == [
        "clirat",
        "std",
        "at",
        "mail-at",
    ]
    burn_in = plans[2].burn_in
    assert 0 < burn_in < 4
    expected = {"clirat": 4, "std": 4, "at": 4 - burn_in, "mail-at": 4 - burn_in}
    assert {plan.spec.method: epochs for plan, epochs in epochs_to_train(plans)} == expected
    trained = {}
    for plan in burn_in_leaders_first(plans):
        run = kit.run(plan.spec, quiet=True)
        branched = run.folder / "branched.json"
        trained[run.method] = 4 - (burn_in if branched.exists() else 0)
    assert trained == expected
    assert all(epochs == 0 for _, epochs in epochs_to_train(plans))
    assert set(forecast_seconds(lists_of(asked, 1), Place(CPU, 1)).values()) == {0}


def test_lists_wait_for_the_burn_in_that_they_share(fresh_home):
    asked = specs("at", "std", "clirat", "mail-at")
    lists = lists_of(asked, 2)
    tasks = batch_tasks.training_tasks(lists, Place(CPU, 2))
    first = {title: plans[0].spec.method for title, plans in lists.items()}
    led = {first[title]: [first[other] for other in task.after] for title, task in tasks.items()}
    assert led == {"clirat": [], "std": [], "at": ["clirat"]}


def test_the_sum(fresh_home, monkeypatch):
    """Programs of one kind are timed once; a network that has more epochs to go than its company
    goes through them alone.
    """
    timed = []

    def fake(plans, device):
        timed.append([plan.spec.method for plan in plans])
        return TrainingCost(epoch=10.0 + len(plans), final=100.0)

    monkeypatch.setattr(forecast, "measure_cost", fake)
    monkeypatch.setattr(forecast, "threads_per_worker", lambda jobs: 1)
    lists = {
        seed: [
            resolve(RunSpec(method, seed=seed, overrides=SETTINGS))
            for method in ("mart", "mail-mart")
        ]
        for seed in (0, 1)
    }
    assert len({plan.stack_key for plans in lists.values() for plan in plans}) == 1
    assert forecast_seconds(lists, Place(CPU, 1)) == dict.fromkeys(
        lists, 4 * 12 + 100.0
    ) and timed == [["mart", "mail-mart"]]
    folder = run_folder(lists[0][1])
    (folder / "epochs").mkdir(parents=True)
    (folder / "epochs/0001.npz").touch()  # mail-mart has 3 epochs to go, mart 4
    assert forecast_seconds(lists, Place(CPU, 1)) == {0: 3 * 12 + 11 + 100.0, 1: 4 * 12 + 100.0}
    assert timed[1:] == [["mart", "mail-mart"], ["mart"]]


def test_deep_networks_are_timed_once_and_take_as_much_longer_as_they_compute_more(
    fresh_home, monkeypatch
):
    timed = []
    monkeypatch.setattr(
        forecast,
        "measure_cost",
        lambda plans, device: timed.append(plans[0].spec.method) or TrainingCost(23.0, 5.0),
    )
    lists = {
        name: [
            resolve(
                RunSpec(
                    name, "cifar10:paper", overrides={"epochs": 2, "milestones": [], "probe": 1}
                )
            )
        ]
        for name in ("at", "trades", "std")
    }
    seconds = forecast_seconds(lists, Place(CPU, 1))
    assert timed == ["at"] and seconds["at"] == 2 * 23 + 5
    assert seconds["trades"] == pytest.approx(2 * 27 + 5, rel=0.001) and seconds[
        "std"
    ] == pytest.approx(2 * 3 + 5, rel=0.01)


@pytest.mark.parametrize(
    "methods",
    [["std"], ["mail-at", "clirat-drop-multiple"], ["csa-halves"], ["fat"], ["at-awp"]],
    ids=" ".join,
)
def test_timed_epochs_leave_nothing_behind(methods, home):
    before, files = torch.get_rng_state(), sorted(home.rglob("*"))
    plans = [resolve(spec) for spec in specs(*methods)]
    found = measure_cost(plans, CPU)
    assert 0 < found.epoch < 600 and 0 < found.final < 600
    assert torch.equal(before, torch.get_rng_state()) and sorted(home.rglob("*")) == files


def test_what_is_timed_is_what_is_trained(home, monkeypatch):
    """As many networks as one program has, on a training epoch, a look and a whole epoch with its
    files.
    """
    crews = []
    for name in ("train_epoch_stacked", "run_epoch"):
        real = getattr(forecast, name)
        monkeypatch.setattr(
            forecast,
            name,
            lambda states, *rest, real=real, name=name: (
                crews.append((name, len(states))) or real(states, *rest)
            ),
        )
    measure_cost([resolve(spec) for spec in specs("mart", "mail-mart", "vir-at")], CPU)
    assert set(crews) == {("train_epoch_stacked", 3), ("run_epoch", 3)}


# --------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("std", 3),
        ("at", 2 * 10 + 3),
        ("vir-at", 2 * 10 + 3 + 1),
        ("mart", 2 * 10 + 2 * 3),
        ("trades", 2 * 10 + 1 + 2 * 3),
        ("adv", 3 + 2 * 10 + 3),
        ("at-awp", 2 * 10 + 2 * 3),
        ("cse", 3),
    ],
)
def test_passes(method, expected):
    """Ten attack steps of two, three an update; VIR's clean pass has no gradient, TRADES' attack
    one clean pass.
    """
    assert flops.count_passes(resolve(RunSpec(method, "cifar10:paper"))) == expected


class Counter(TorchDispatchMode):
    """PyTorch's formulas for the operations of each call, those of gradients too."""

    total = 0

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        out = call(*args, **(kwargs or {}))
        if call._overloadpacket in flop_registry:
            self.total += flop_registry[call._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def test_operations_against_a_real_step(home):
    """Around a training step of the small network; its first layer needs no gradient of the images
    in the update.
    """
    plan = resolve(specs("at", eps=0.1)[0])
    host, sizes = flops.sample_data(plan, 8)
    assert sizes == (600, 60, 497) and len(host.train) == 8
    model = initial_network(plan, host)
    with Counter() as counter:
        take_step(
            model,
            torch.optim.SGD(model.parameters(), lr=0.0),
            plan.method,
            plan.recipe,
            host.train.x(),
            host.train.y,
            Streams(host.train.ids, 0, "count"),
        )
    probes = sum(min(plan.recipe.probe, n) for n in sizes) * (2 * plan.recipe.steps + 2)
    forward = (
        flops.count_flops(plan).final / (sizes.train + sizes.test) / (2 * plan.recipe.steps + 2)
    )
    assert flops.count_flops(plan).epoch - probes * forward == pytest.approx(
        counter.total / 8 * 600, rel=0.03
    )


def test_no_image_is_needed_of_data_sets_that_are_downloaded(fresh_home):
    """ResNet-18 with the CIFAR stem takes 0.56e9 multiplications and additions an image."""
    plan = resolve(RunSpec("at", "cifar10:paper"))
    host, sizes = flops.sample_data(plan, 4)
    assert sizes == (50_000, 0, 10_000) and (len(host.train), len(host.validation)) == (4, 0)
    assert flops.count_flops(plan).final / 60_000 / 22 / 2 == pytest.approx(0.556e9, rel=0.01)
    svhn = resolve(RunSpec("at", "svhn", overrides={"train_size": 10_000}))
    assert flops.sample_data(svhn, 4)[1] == (10_000, 1_000, 26_032)
    held_out = resolve(RunSpec("at", "cifar10:paper", overrides={"validation": 1_000}))
    assert flops.sample_data(held_out, 4)[1] == (49_000, 1_000, 10_000)
    assert flops.sample_data(resolve(RunSpec("at", "cifar100:paper")), 200)[0].train.y.max() == 99
    assert flops.total_flops([(plan, 0)]) == 0
    mine = flops.count_flops(plan)
    assert flops.total_flops([(plan, 3), (plan, 0)]) == 3 * mine.epoch + mine.final


# ---------------------------------------------------------------------------------- what is printed


def test_the_plan_is_printed_also_where_data_is_missing(home, monkeypatch, capsys):
    jobs = notebook_jobs.plan_jobs(
        ["02"], {"overrides": "epochs=4 milestones=[] probe=20"}, None, None
    )
    reproduction.show_plan(jobs, Place(CPU, 2))
    text = capsys.readouterr().out
    assert (
        "mail-at on digits, seed 0, epochs=4, milestones=[], probe=20: to train, 4 of 4 epochs"
        in text
    )
    assert (
        re.search(r"training 5 runs, 2 at a time, takes about \d+ s here", text)
        and "deep" not in text
    )

    def missing(*_):
        raise KitError("no such images")

    monkeypatch.setattr(reproduction, "forecast_seconds", missing)
    reproduction.show_plan(jobs, Place(CPU, 2))
    assert "its duration is unknown: no such images" in capsys.readouterr().out


def test_attacks_are_reckoned_by_their_counted_passes(home, monkeypatch):
    """By hand: one way forwards of natural images; 20 gradients of PGD-20, its last look, and the
    images that break early saved half; two batches take twice as long as one.
    """
    plan = resolve(RunSpec("at", overrides=TINY))
    monkeypatch.setattr(evaluation_costs, "measure_passes", lambda plan, device, batch: (1.0, 10.0))
    asks = Evaluation("natural", 200), Evaluation("pgd20", 200), Evaluation("pgd20", 300)
    natural, pgd, twice = (
        forecast.forecast_evaluations({"of it": [(plan, [ask])]}, Place(CPU, 2))["of it"]
        for ask in asks
    )
    forwards, backwards = evaluation_costs.count_attack_passes("pgd20")
    assert natural == 1.0 and backwards == 20 / 2
    assert pgd == forwards + 10 * backwards and twice == 2 * pgd
    together = forecast.forecast_evaluations({"all": [(plan, asks[:2])]}, Place(CPU, 2))
    assert together["all"] == natural + pgd


def test_a_plan_tells_of_attacks_on_runs_that_are_trained(home, tmp_path, capsys):
    values = {"tables": "clirat-1", "strong_n": 3, **TINY}
    jobs = notebook_jobs.plan_jobs(["tables_of_the_papers"], values, [0], tmp_path)
    for job in jobs:
        kit.run_many(job.values.specs, quiet=True)
    reproduction.show_plan(jobs, Place(CPU, 2))
    text = capsys.readouterr().out
    assert "to train" not in text
    assert re.search(r"attacking 9, 2 at a time, takes about \d+ s here", text), text


def test_gpu_hours_where_no_gpu_is(home, monkeypatch, capsys):
    """A cluster that is not there:

    the schedule of what is computed, two runs side by side on two GPUs.
    """
    values = {"recipe": "cifar10:paper", "region_methods": "trades", "bar_methods": "at trades"}
    jobs = notebook_jobs.plan_jobs(["03"], values, None, None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reproduction.show_plan(jobs, ray_engine.cluster_place(16, 2))
    text = capsys.readouterr().out
    at, trades = (
        flops.total_flops([(resolve(RunSpec(name, "cifar10:paper")), 120)])
        for name in ("at", "trades")
    )
    assert "its duration is unknown: device=cuda" in text
    assert f"compute {at + trades:.2e} floating-point operations" in text
    minutes = [f"{round(count / 1e14) // 60} min" for count in (at + trades, max(at, trades))]
    assert re.search(
        rf"{minutes[0]} .*achieves 100 TFLOP/s, "
        rf"{minutes[1]} .*on 2 of them; computed, not measured",
        text,
    )


def test_the_forecast_schedules_what_is_submitted(home):
    """Two programs of one length side by side take its time; what waits for them comes on top."""
    lists = lists_of(specs("mail-at", "at", "std", "clirat"), 2)
    tasks = batch_tasks.training_tasks(lists, Place(CPU, 2))
    assert simulate_tasks(tasks, Place(CPU, 2), dict.fromkeys(tasks, 5.0)) == 10
