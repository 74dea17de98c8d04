"""How long will it take? One step is taken and timed on this device, and epochs are counted; nothing is kept."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from kit.minibatch import step
from kit.runs import build_model, dataset, folder_of, is_done, threads_for
from kit.spec import Plan, RunSpec, leaders_first, resolve
from kit.train import PROBE_BATCH, observe
from kit.types import Streams


def epochs_to_train(specs: Iterable[RunSpec]) -> list[tuple[Plan, int]]:
    """[(plan, epochs)] in the order of `leaders_first`, without what is trained already or shared with an earlier one."""
    left, reached = [], {}
    for plan in map(resolve, leaders_first(specs)):
        folder, shared = folder_of(plan), reached.get(plan.trunk, 0)
        there = sum(1 for _ in (folder / "epochs").glob("*.npz"))
        shared = shared if shared <= plan.trunk_epochs else 0
        left.append((plan, 0 if is_done(folder) else plan.recipe.epochs - max(there, shared)))
        if plan.burn_in:
            reached.setdefault(plan.trunk, plan.burn_in)
    return left


def seconds_per_epoch(plan: Plan, device: torch.device) -> float:
    """Of the last epoch's kind, probes included, from the second of two steps on the first images of its data set.

    A network is trained on one thread or all, as it would be; that other runs are trained beside it is not counted.
    """
    host = dataset(plan)
    recipe = plan.recipe
    rows = torch.arange(min(recipe.batch_size, len(host.train)))
    split = host.train.take(rows).to(device)
    model = build_model(plan, host).to(device)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0)
    method = plan.method.at(recipe.epochs, recipe.epochs)
    with threads_for(recipe.model, device):
        for _ in range(2):
            _wait(device)
            started = time.monotonic()
            for attacked in method.stages(recipe.epochs, recipe.epochs):
                step(model, optimiser, method, recipe, split.x(), split.y, Streams(split.ids, 0, "forecast"),
                     attacked=attacked,
                     reweighted=method.reweights)
            _wait(device)
            one = time.monotonic() - started
        started = time.monotonic()
        (seen,) = observe([model], [plan], split.take(slice(0, PROBE_BATCH)), "forecast")
        _wait(device)
        look = (time.monotonic() - started) / len(seen["y"])
    probed = sum(min(recipe.probe, len(part)) for part in (host.train, host.validation, host.test))
    return one * len(host.train) / len(rows) + look * probed


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def training_seconds(specs: Iterable[RunSpec], device: torch.device, workers: int) -> float:
    """Of all `specs` together, `workers` at a time. One run of each recipe and kind of attack is timed."""
    total, timed = 0.0, {}
    for plan, epochs in epochs_to_train(specs):
        if not epochs:
            continue
        kind = repr((plan.recipe, [str(part) for part in (plan.method.attack, plan.method.second_attack)]))
        if kind not in timed:
            timed[kind] = seconds_per_epoch(plan, device)
        total += epochs * timed[kind]
    return total / workers
