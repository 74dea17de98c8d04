"""Batch reproduction: train each run once, run the notebooks, say what was made.

Trainings and notebooks are tasks of one engine, `kit.jobs.local_engine.run_locally` or another; a
notebook is run as soon as its runs have ended; one that fails does not stop the others; and one
whose stamp still fits is not run again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from kit.core.errors import KitError
from kit.core.progress import format_duration
from kit.data.datasets import fetch_dataset
from kit.experiments.specification import Plan
from kit.jobs.batch_tasks import (
    evaluation_tasks,
    group_evaluations,
    group_trainings,
    notebook_tasks,
    training_tasks,
    untrained_runs,
)
from kit.jobs.flops import total_flops
from kit.jobs.forecast import epochs_to_train, forecast_evaluations, forecast_seconds
from kit.jobs.local_engine import run_locally
from kit.jobs.notebook_jobs import NotebookJob, needed_runs
from kit.jobs.order import order_tasks
from kit.jobs.progress_report import BatchProgress, print_summary
from kit.jobs.report import describe_reports
from kit.jobs.tasks import Engine, Place, Task, simulate_tasks
from kit.models.architectures import SMALL

#: TFLOP/s of one GPU that a plan's hours are stated for.
ACHIEVED_TFLOPS = 100


def show_plan(jobs: list[NotebookJob], place: Place) -> None:
    """Print what would run, what is there already, and how long training and attacks would take."""
    left = epochs_to_train(needed_runs(jobs))
    for plan, epochs in left:
        state = "trained" if not epochs else f"to train, {epochs} of {plan.recipe.epochs} epochs"
        print(f"  run       {plan.spec}: {state}")
    for job in jobs:
        print(
            f"  notebook  {job.name}: {'up to date' if job.is_done() else 'to run'} -> {job.folder}"
        )
    lists = group_trainings(untrained_runs(jobs).values(), place)
    groups = group_evaluations(jobs, lists)
    if not lists and not groups:
        return
    tasks = training_tasks(lists, place)
    attacks = evaluation_tasks(groups, lists, place)
    parts = [f"training {sum(map(len, lists.values()))} runs"] if lists else []
    parts += [f"attacking {sum(map(len, groups.values()))}"] if groups else []
    work = " and ".join(parts)
    try:
        seconds = forecast_seconds(lists, place) | forecast_evaluations(groups, place)
        took = simulate_tasks(tasks | attacks, place, seconds)
        print(
            f"{work}, {place.words}, takes about {format_duration(took)} here, as timed steps "
            "tell; drawing comes on top"
        )
    except KitError as error:
        print(f"{work}, {place.words}: its duration is unknown: {error}")
    if any(epochs and plan.recipe.model not in SMALL for plan, epochs in left):
        print(_gpu_hours(lists, tasks, {plan.key: (plan, epochs) for plan, epochs in left}, place))


def _gpu_hours(
    lists: Mapping[str, list[Plan]],
    tasks: Mapping[str, Task],
    left: Mapping[str, tuple[Plan, int]],
    place: Place,
) -> str:
    """What the deep networks compute, and how long that takes at ACHIEVED_TFLOPS."""
    try:
        operations = {
            title: total_flops(left[plan.key] for plan in plans if plan.recipe.model not in SMALL)
            for title, plans in lists.items()
        }
    except KitError as error:
        return f"what the deep networks compute is unknown: {error}"
    seconds = {title: count / (ACHIEVED_TFLOPS * 1e12) for title, count in operations.items()}
    several = (
        f", {format_duration(simulate_tasks(tasks, place, seconds))} on {place.gpus} of them"
        if place.gpus
        else ""
    )
    return (
        f"the deep networks compute {sum(operations.values()):.2e} floating-point operations: "
        f"{format_duration(sum(seconds.values()))} on a GPU that achieves {ACHIEVED_TFLOPS} "
        f"TFLOP/s{several}; computed, not measured"
    )


def reproduce(
    jobs: list[NotebookJob],
    place: Place,
    *,
    engine: Engine = run_locally,
    fresh: bool = False,
    compiled: bool = False,
) -> int:
    """Train what is missing, run what is not up to date, print a table.

    `fresh`: run what is up to date, too; `compiled`: compile the passes of networks.

    Returns:
        0, or 1 if any task failed.

    Raises:
        KitError: A data set of a notebook that is due cannot be had here; nothing was started.
    """
    started = time.monotonic()
    needs = untrained_runs(jobs)
    ordered = sorted(jobs, key=lambda job: list(needs).index(job.label))
    due = [job for job in ordered if fresh or not job.is_done()]
    lists = group_trainings(needs.values(), place)
    groups = group_evaluations(ordered, lists)
    attacks = f", {sum(map(len, groups.values()))} to evaluate" if groups else ""
    if engine is run_locally:
        _fetch_data(due)
    print(
        f"{len(needed_runs(jobs))} runs, {sum(map(len, lists.values()))} to train{attacks}; "
        f"{len(jobs)} notebooks, {len(due)} to run; {place.words}",
        flush=True,
    )
    tasks = training_tasks(lists, place, compiled) | evaluation_tasks(groups, lists, place)
    tasks |= notebook_tasks(due, lists, groups, compiled)
    tasks = order_tasks(tasks, [job.label for job in due])
    news = BatchProgress(lists, groups, {job.label: job for job in due})
    engine(tasks, place, news.tick, news.finished)
    print_summary(jobs, news.seconds, news.failures, time.monotonic() - started)
    print(describe_reports(job.folder for job in jobs), flush=True)
    return 1 if news.failures else 0


def _fetch_data(jobs: Iterable[NotebookJob]) -> None:
    """Have the data of notebooks here before the first task asks for them."""
    for name in sorted({plan.recipe.data for job in jobs for plan in job.values.plans}):
        fetch_dataset(name)
