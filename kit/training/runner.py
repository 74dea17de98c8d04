"""`run` and `run_many`: train what is asked for, resume it, or open it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from kit.core.environment import is_compile_wanted
from kit.core.errors import KitError
from kit.core.files import lock_folder
from kit.core.progress import format_duration
from kit.core.threads import run_in_threads
from kit.experiments.devices import (
    DeviceLost,
    lost_device_told,
    pick_device,
    spare_threads,
    threads_for,
)
from kit.experiments.runs import Run, is_done, run_folder, run_of
from kit.experiments.specification import Plan, RunSpec, group_for_stacking, resolve
from kit.models.architectures import SMALL
from kit.training.checkpoint import run_warning
from kit.training.loop import fit_plans

#: Networks in one program. On CPUs more than a few gain nothing.
STACKED_NETWORKS = {"cpu": 5, "cuda": 64, "mps": 16}


def run(
    method: str | RunSpec | Plan,
    recipe: str = "digits",
    seed: int = 0,
    *,
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    quiet: bool = False,
    compiled: bool | None = None,
) -> Run:
    """Train `method` on `recipe`, resume it, or open it if it is finished.

    Asking again costs nothing. Give names, one `RunSpec`, or a `Plan` that is resolved already.
    `overrides` changes numbers by name, say {"weight.slope": 5.0, "epochs": 30}. `compiled` tells
    whether the network's passes are compiled (None: as KIT_COMPILE says). A run that another
    process is training is waited for.

    Raises:
        KitError: A name is unknown or a value unfit (before anything is trained), data cannot be
            read, or the training diverges; its last good checkpoint is kept.
    """
    if isinstance(method, Plan):
        plan = method
    elif isinstance(method, RunSpec):
        plan = resolve(method)
    else:
        plan = resolve(RunSpec(method, recipe, seed, dict(overrides or {})))
    where = pick_device(device)
    with unfinished([plan]) as todo:
        if todo:
            fit_plans(todo, where, quiet=quiet, compiled=is_compile_wanted(compiled))
    opened = run_of(plan)
    if not todo and not quiet:
        report_opened(opened)
    return opened


def run_many(
    specs: Iterable[RunSpec | Plan],
    *,
    device: str = "auto",
    quiet: bool = False,
    compiled: bool | None = None,
) -> list[Run]:
    """Take `run` of each of `specs`, many small networks at a time.

    Those that fit together (see `Plan.stack_key`) are trained as one program, and on a CPU as many
    programs side by side as PyTorch has threads. What is random in a run is its own, so each ends
    as if trained alone, up to the rounding of sums that are added in another order (which on a CPU
    networks without pools do not have: they end bit for bit as if alone). Checkpoints,
    resuming and errors are those of `run`; a network that diverges does not stop the others.

    Raises:
        DeviceLost: The device was lost; nothing more is tried.
        KitError: Some runs could not be trained; it names all of them, after the others are.
    """
    asked = [spec if isinstance(spec, Plan) else resolve(spec) for spec in specs]
    plans = {plan.key: plan for plan in asked}
    where, compiled = pick_device(device), is_compile_wanted(compiled)
    failures: dict[str, str] = {}
    for small in (True, False):
        due = [
            plan
            for plan in plans.values()
            if not is_done(run_folder(plan)) and (plan.recipe.model in SMALL) == small
        ]
        with threads_for(due[0].recipe.model, where) if due else contextlib.nullcontext():
            threads = spare_threads()
            most = min(STACKED_NETWORKS[where.type], -(-len(due) // threads))
            for wave in group_for_stacking(due, most):
                jobs = [(some, where, quiet, compiled) for some in wave]
                for failed in run_in_threads(_train_or_split, jobs, min(threads, len(jobs))):
                    failures |= failed
    if failures:
        raise KitError(
            f"{len(failures)} of {len(plans)} runs could not be trained"
            f"{'' if len(failures) == len(plans) else '; the others are'}. {_by_cause(failures)}"
        )
    return [run_of(plan) for plan in asked]


def _by_cause(failures: Mapping[str, str]) -> str:
    """Say what is wrong with which runs: each cause once."""
    causes: dict[str, list[str]] = {}
    for name, error in failures.items():
        causes.setdefault(error, []).append(name)
    return "; ".join(f"{', '.join(names)}: {error}" for error, names in causes.items())


def _train_or_split(
    plans: list[Plan], device: torch.device, quiet: bool, compiled: bool
) -> dict[str, str]:
    """Train them as one program, else one by one; return {run: what is wrong} of failures."""
    try:
        with unfinished(plans) as todo:
            if todo:
                fit_plans(todo, device, quiet=quiet, compiled=compiled)
    except DeviceLost:  # which the others would find lost, too
        raise
    except KitError as error:
        if len(plans) == 1:
            return {str(plans[0].spec): str(error)}
        # one of them stopped all: each goes on for itself, from its last checkpoint
        parts = [[plan] for plan in plans]
    except torch.OutOfMemoryError:
        half = len(plans) // 2
        print(f"out of memory; going on with {half} networks at a time", flush=True)
        parts = [plans[:half], plans[half:]]
    else:
        return {}
    failures: dict[str, str] = {}
    for part in parts:
        failures |= _train_or_split(part, device, quiet, compiled)
    return failures


@contextlib.contextmanager
def unfinished(plans: Sequence[Plan]) -> Iterator[list[Plan]]:
    """Hold those of `plans` that are not finished, alone on this machine, and yield them.

    Raises:
        DeviceLost: The device was lost.
        KitError: A batch of a single plan does not fit into the memory of its device.
    """
    todo = [plan for plan in plans if not is_done(run_folder(plan))]
    with contextlib.ExitStack() as locks:
        # in one order everywhere, so that nobody waits in a circle
        for plan in sorted(todo, key=lambda plan: plan.key):
            locks.enter_context(lock_folder(run_folder(plan), partial(_say_waiting, plan)))
        try:
            with lost_device_told():
                yield [plan for plan in todo if not is_done(run_folder(plan))]
        except torch.OutOfMemoryError as error:
            if len(plans) > 1:
                raise
            raise KitError(
                f"batch_size={plans[0].recipe.batch_size} does not fit into the device's memory; "
                "lower it, or take another device. Finished epochs are kept"
            ) from error


def _say_waiting(plan: Plan) -> None:
    print(f"{plan.spec}: another process is training it; waiting", flush=True)


def report_opened(run: Run) -> None:
    """Say that a run was there already."""
    took = format_duration(run.done["seconds"])
    print(f"{run.spec}: opened, trained in {took} ({run.plan.key}){run_warning(run)}", flush=True)
