"""The loop of one network in several processes: `torchrun -m kit train`.

Every process goes through the epochs; the main one alone reads checkpoints and writes files.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from kit.core.distributed import (
    barrier,
    broadcast,
    gather,
    is_main,
    main_first,
    own_rows,
    process_count,
    wrap_distributed,
)
from kit.core.environment import is_compile_wanted
from kit.core.errors import KitError
from kit.core.files import lock_folder
from kit.core.progress import Progress, silenced
from kit.data.splits import DataSet, Split
from kit.experiments.devices import pick_device, threads_for
from kit.experiments.runs import Run, is_done, open_dataset, run_folder
from kit.experiments.specification import Plan, RunSpec, resolve
from kit.training.checkpoint import (
    TrainingState,
    begin_training,
    finish_run,
    initial_state,
    save_epoch,
)
from kit.training.distributed_step import train_step_distributed
from kit.training.loop import (
    check_batch_size,
    final_pass,
    final_pass_in_epochs,
    observe_probes,
    record_epoch,
    set_learning_rate,
    summary,
    train_epoch,
)
from kit.training.observation import observe_rows, stored_array
from kit.training.precision import resolve_precision
from kit.training.runner import report_opened


def run_distributed(
    spec: RunSpec, *, device: str = "auto", quiet: bool = False, compiled: bool | None = None
) -> Run:
    """Take `kit.run` in all processes that `kit.core.distributed.join_processes` has joined.

    Raises:
        KitError: As `kit.run`; also where the last batch has fewer images than there are processes.
    """
    plan, where = resolve(spec), pick_device(device)
    quiet = quiet or not is_main()
    if is_main():
        with lock_folder(run_folder(plan)):
            done = _fit_if_needed(plan, where, quiet, is_compile_wanted(compiled))
    else:
        done = _fit_if_needed(plan, where, quiet, is_compile_wanted(compiled))
    opened = Run(spec, run_folder(plan))
    if done and not quiet:
        report_opened(opened)
    return opened


def _fit_if_needed(plan: Plan, device: torch.device, quiet: bool, compiled: bool) -> bool:
    """Train the run unless the main process finds it finished; returns whether it did."""
    done = broadcast([is_done(run_folder(plan))])[0]
    if not done:
        fit_distributed(plan, device, quiet=quiet, compiled=compiled)
    return done


def fit_distributed(
    plan: Plan, device: torch.device, *, quiet: bool = False, compiled: bool = False
) -> None:
    """Train one plan in all processes, from where it stands to its end."""
    recipe = plan.recipe
    resolve_precision(recipe.precision, device)
    with main_first(), silenced(quiet):  # the main process downloads, the others find the files
        host_data = open_dataset(plan)
    check_batch_size(plan, host_data)
    check_last_batch(plan, host_data)
    data = host_data.to(device)
    if is_main():
        state = begin_training(
            plan, host_data, device, quiet=quiet, compiled=compiled, processes=process_count()
        )
    else:
        state = initial_state(plan, host_data, device)
    state.put(broadcast(state.contents(), device))
    total = recipe.epochs + final_pass_in_epochs(plan, data)
    progress = Progress(str(plan.spec), total, done=state.epoch, quiet=quiet)
    with progress, threads_for(recipe.model, device):
        while state.goes_on:
            run_epoch_distributed(state, data)
            progress.update(state.epoch, summary(state))
        final_pass([state], data, observe_split_distributed, save=is_main())
    if is_main():
        finish_run(state)
        progress.close(f"trained {state.epoch} epochs in {process_count()} processes ({plan.key})")
    barrier()  # the run is there for all


def run_epoch_distributed(state: TrainingState, data: DataSet) -> None:
    """Take `kit.training.loop.run_epoch` in all processes."""
    epoch, started = state.epoch + 1, time.monotonic()
    set_learning_rate(state, epoch)
    network = wrap_distributed(state.model)
    loss, arrays = train_epoch(state, data.train, epoch, train_step_distributed, network)
    (probes,) = observe_probes([state], data, observe_split_distributed)
    kept = record_epoch(state, data, loss, arrays, probes, time.monotonic() - started)
    if is_main():
        save_epoch(state, kept)


def observe_split_distributed(
    models: Sequence[nn.Module],
    plans: Sequence[Plan],
    split: Split,
    purpose: str,
    steps: int = 0,
) -> list[dict[str, np.ndarray]]:
    """Take `observe_split`, each process its share of the images; all have the whole."""
    n = len(split)
    found = observe_rows(models, plans, split, purpose, torch.arange(n)[own_rows(n)], steps)
    labels = {"y": stored_array(split.y), "ids": split.ids.cpu().numpy()}
    return [
        {name: stored_array(gather(values, n)) for name, values in mine.items()} | labels
        for mine in found
    ]


def check_last_batch(plan: Plan, data: DataSet) -> None:
    """Refuse a data set whose last batch does not suffice for all processes.

    Raises:
        KitError: The last batch has fewer images than there are processes.
    """
    batch_size, images, processes = plan.recipe.own_batch_size, len(data.train), process_count()
    last = images % batch_size or batch_size
    if last < processes:
        raise KitError(
            f"batch_size={batch_size} leaves {last} of {images} images to the last batch, fewer "
            f"than the {processes} processes; change batch_size or train_size, or start fewer"
        )
