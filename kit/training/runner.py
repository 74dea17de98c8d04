"""TODO training.runner."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from kit.core.distributed import broadcast, is_main
from kit.core.environment import is_compile_wanted
from kit.core.errors import KitError
from kit.core.files import lock_folder
from kit.core.progress import format_duration
from kit.core.threads import run_in_threads
from kit.experiments.devices import pick_device, spare_threads, threads_for
from kit.experiments.runs import Run, is_done, run_folder, run_of
from kit.experiments.specification import Plan, RunSpec, group_for_stacking, resolve
from kit.models.architectures import SMALL
from kit.training.checkpoint import run_warning
from kit.training.loop import fit_plans

#: Networks in one program. On CPUs more than a few gain nothing.
STACKED_NETWORKS = {"cpu": 5, "cuda": 64, "mps": 16}


def run(
    method: str | RunSpec,
    recipe: str = "digits",
    seed: int = 0,
    *,
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    quiet: bool = False,
    compiled: bool | None = None,
) -> Run:
    """Train `method` on `recipe`, or resume it, or open it if it is finished.

    Asking again costs nothing. Give names, or one `RunSpec`. `overrides` changes numbers by name,
    say {"weight.slope": 5.0, "epochs": 30}. `compiled`: are the network's passes compiled (None: as
    KIT_COMPILE says)? A run that another process is training is waited for. Errors: `KitError` for
    an unknown name or unfit value (before anything is trained), unreadable data, or a training that
    diverges; its last good checkpoint is kept.
    """
    spec = (
        method
        if isinstance(method, RunSpec)
        else RunSpec(method, recipe, seed, dict(overrides or {}))
    )
    return run_plan(resolve(spec), device=device, quiet=quiet, compiled=compiled)


def run_plan(
    plan: Plan, *, device: str = "auto", quiet: bool = False, compiled: bool | None = None
) -> Run:
    """`run` of a spec that is resolved already."""
    where, quiet = pick_device(device), quiet or not is_main()
    trained = train_plans([plan], where, quiet=quiet, compiled=_compile_choice(compiled))
    opened = run_of(plan)
    if not quiet and not trained:
        print(
            f"{plan.spec}: opened, trained in {format_duration(opened.done['seconds'])} "
            f"({plan.key}){run_warning(opened)}",
            flush=True,
        )
    return opened


def run_many(
    specs: Iterable[RunSpec],
    *,
    device: str = "auto",
    quiet: bool = False,
    compiled: bool | None = None,
) -> list[Run]:
    """`run` for each of `specs`, many small networks at a time.

    Those that fit together (see `Plan.stack_key`) are trained as one program, and on a CPU as many
    programs side by side as PyTorch has threads.

    What is random in a run is its own, so each ends as if trained alone, up to the rounding of sums
    that are added in another order. Checkpoints, resuming and errors are those of `run`; a network
    that diverges does not stop the others. Errors: `KitError` that names all runs that could not be
    trained, after all others have been.
    """
    return run_plans(
        [resolve(spec) for spec in specs], device=device, quiet=quiet, compiled=compiled
    )


def run_plans(
    asked: Sequence[Plan],
    *,
    device: str = "auto",
    quiet: bool = False,
    compiled: bool | None = None,
) -> list[Run]:
    """`run_many` of specs that are resolved already."""
    plans = {plan.key: plan for plan in asked}
    where, failures = pick_device(device), {}
    compiled = _compile_choice(compiled)
    for small in (True, False):
        due = [
            plan
            for plan in plans.values()
            if not is_done(run_folder(plan)) and (plan.recipe.model in SMALL) == small
        ]
        with threads_for(due[0].recipe.model, where) if due else contextlib.nullcontext():
            threads = spare_threads()
            for wave in group_for_stacking(
                due, min(STACKED_NETWORKS[where.type], -(-len(due) // threads))
            ):
                jobs = [(some, where, quiet, compiled) for some in wave]
                for failed in run_in_threads(_train_or_split, jobs, min(threads, len(jobs))):
                    failures |= failed
    if failures:
        words = "; ".join(f"{name}: {error}" for name, error in failures.items())
        raise KitError(
            f"{len(failures)} of {len(plans)} runs could not be trained; the others are. {words}"
        )
    return [run_of(plan) for plan in asked]


def _compile_choice(compiled: bool | None) -> bool:
    return is_compile_wanted() if compiled is None else compiled


def _train_or_split(
    plans: list[Plan], device: torch.device, quiet: bool, compiled: bool
) -> dict[str, str]:
    """Train them together, else one by one. -> {run: what is wrong} of those that cannot be."""
    try:
        train_plans(plans, device, quiet=quiet, compiled=compiled)
    except KitError as error:
        if len(plans) == 1:
            return {str(plans[0].spec): str(error)}
    except torch.OutOfMemoryError:
        half = len(plans) // 2
        print(f"out of memory; going on with {half} networks at a time", flush=True)
        return _train_or_split(plans[:half], device, quiet, compiled) | _train_or_split(
            plans[half:], device, quiet, compiled
        )
    else:
        return {}
    # one of them stopped all: each goes on for itself, from its last checkpoint
    return {
        name: error
        for plan in plans
        for name, error in _train_or_split([plan], device, quiet, compiled).items()
    }


def train_plans(
    plans: Sequence[Plan], device: torch.device, *, quiet: bool = False, compiled: bool = False
) -> bool:
    """Train those of `plans`, which fit together, that are not finished, alone on this machine.

    -> was there any?
    """
    todo = [plan for plan in plans if not is_done(run_folder(plan))]
    with contextlib.ExitStack() as locks:
        for plan in sorted(
            todo, key=lambda plan: plan.key
        ):  # in one order everywhere, so that nobody waits in a circle
            words = f"{plan.spec}: another process is training it; waiting"
            if is_main():
                locks.enter_context(
                    lock_folder(run_folder(plan), partial(print, words, flush=True))
                )
        left = broadcast([i for i, plan in enumerate(todo) if not is_done(run_folder(plan))])
        todo = [todo[i] for i in left]
        try:
            if todo:
                fit_plans(todo, device, quiet=quiet, compiled=compiled)
        except torch.OutOfMemoryError as error:
            if len(plans) > 1:
                raise
            raise KitError(
                f"batch_size={plans[0].recipe.batch_size} does not fit into the memory of "
                f"{device}; lower it, or "
                "take another device. Finished epochs are kept"
            ) from error
    return bool(todo)
