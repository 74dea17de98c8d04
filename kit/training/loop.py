"""The one loop. `run` trains, resumes or opens; `fit` is the loop over epochs;
`kit.training.step.train_stacked_step` is one step.

One network, or several small ones that go through the program side by side: the loop is the same.

Every random number comes from a stream named after the seed, its purpose and the epoch (and per
example its id), so a run that was interrupted continues from its last checkpoint and ends bit for
bit as if it had not been.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kit.core.distributed import barrier, is_main, main_first, process_count, wrap_distributed
from kit.core.errors import KitError
from kit.core.files import file_digest, save_arrays, save_checkpoint, write_bytes, write_sealed_json
from kit.core.progress import Progress, format_duration
from kit.core.random_streams import Streams, named_generator
from kit.core.tensors import per_example_cross_entropy
from kit.core.threads import stop_if_abandoned
from kit.data.augmentation import augment
from kit.data.splits import DataSet, Split
from kit.experiments.devices import threads_for
from kit.experiments.runs import Run, open_dataset
from kit.experiments.specification import Plan
from kit.methods.regularisers import conv_weights, fuzziness
from kit.methods.weights import check_weights
from kit.training.checkpoint import (
    TrainingState,
    align_epochs,
    begin_training,
    is_snapshot,
    run_warning,
)
from kit.training.observation import accuracies, kept_outputs, observe_split, stored_array
from kit.training.precision import resolve_precision
from kit.training.step import Learner, train_stacked_step

# ---------------------------------------------------------------------------------------- one epoch


def train_epoch(
    states: Sequence[TrainingState], split: Split, epoch: int
) -> list[tuple[float, dict[str, np.ndarray]]]:
    """One pass over the training images. -> of each network its mean loss, and what the last stage
    of each step saw, in split order. The networks fit together; each goes through the images in an
    order of its own.

    The arrays are counted on the fly: the network moves from batch to batch, and its batch norms
    use batch statistics.
    """
    recipe = states[0].plan.recipe
    learners = [
        Learner(
            wrap_distributed(s.model),
            s.optimizer,
            s.plan.method.at(epoch, recipe.epochs),
            s.plan.method.reweights and epoch > s.plan.burn_in,
        )
        for s in states
    ]
    orders = [
        torch.randperm(len(split), generator=named_generator(s.plan.seed, "order", epoch)).to(
            split.y.device
        )
        for s in states
    ]
    kept: list[list[dict[str, Tensor]]] = [[] for _ in states]
    losses: list[list[Tensor]] = [[] for _ in states]
    for batches in zip(*(order.split(recipe.batch_size) for order in orders), strict=True):
        stop_if_abandoned()
        ids = [split.ids[rows] for rows in batches]
        y = torch.cat([split.y[rows] for rows in batches])
        x = torch.cat(
            [
                augment(split.x(rows), recipe.augment, Streams(mine, s.plan.seed, "augment", epoch))
                for rows, mine, s in zip(batches, ids, states, strict=True)
            ]
        )
        for attacked in learners[0].method.stages(epoch, recipe.epochs):
            streams = [
                Streams(mine, s.plan.seed, "attack", epoch)
                for mine, s in zip(ids, states, strict=True)
            ]
            done = train_stacked_step(learners, recipe, x, y, streams, attacked=attacked)
            for mine, each in zip(losses, done, strict=True):
                mine.append(each.loss)
        for mine, each in zip(kept, done, strict=True):
            mine.append(kept_outputs(each.outputs) | {"weight": each.weights})
    found = []
    for order, records, mine in zip(orders, kept, losses, strict=True):
        back = order.argsort()
        arrays = {
            name: stored_array(torch.cat([record[name] for record in records])[back])
            for name in records[0]
        }
        found.append((float(torch.stack(mine).mean()), arrays))
    return found


# ----------------------------------------------------------------------------------------- the loop


def fit_plans(
    plans: Sequence[Plan], device: torch.device, *, quiet: bool = False, compiled: bool = False
) -> None:
    """Train `plans`, which fit together, each from where it stands to done.json. The caller holds
    their locks.

    Those that are behind go first, so that after an interruption all are soon in step again.
    """
    recipe, started = plans[0].recipe, time.monotonic()
    resolve_precision(recipe.precision, device)  # refuses what the device has not
    with main_first():
        host_data = open_dataset(plans[0])
    if recipe.batch_size > len(host_data.train):
        raise KitError(
            f"batch_size={recipe.batch_size} is larger than the {len(host_data.train)} training "
            f"images of "
            f"{recipe.data}; it must be 1 to {len(host_data.train)}"
        )
    last = len(host_data.train) % recipe.batch_size or recipe.batch_size
    if last < process_count():
        raise KitError(
            f"batch_size={recipe.batch_size} leaves {last} of {len(host_data.train)} images to the "
            f"last batch, "
            f"fewer than the {process_count()} processes; change batch_size or train_size, or "
            f"start fewer"
        )
    data = host_data.to(device)
    states = [
        begin_training(plan, host_data, device, quiet=quiet, compiled=compiled) for plan in plans
    ]
    align_epochs(states, device)
    title = str(plans[0].spec) if len(plans) == 1 else f"{plans[0].spec} and {len(plans) - 1} more"
    progress = Progress(
        title, recipe.epochs, done=min(state.epoch for state in states), quiet=quiet
    )
    with threads_for(recipe.model, device):
        while going := [state for state in states if state.goes_on]:
            reached = min(state.epoch for state in going)
            run_epoch([state for state in going if state.epoch == reached], data)
            last = going[0].history[-1]
            progress.update(
                reached + 1,
                f"loss {last['loss']:.3f}  clean {last['clean']:.1%}  robust {last['robust']:.1%}",
            )
        final_pass(states, data)
    took = format_duration(time.monotonic() - started) + (
        f", {len(plans)} networks at once" if len(plans) > 1 else ""
    )
    for state in states if is_main() else ():
        last, seconds = state.history[-1], sum(row["seconds"] for row in state.history)
        files = state.files | {"last.ckpt": file_digest(state.folder / "last.ckpt")}
        write_sealed_json(
            state.folder / "done.json",
            {
                "key": state.plan.key,
                "epochs": state.epoch,
                "seconds": round(seconds, 2),
                "constant": bool(last["constant"]),
                "files": files,
            },
        )
        (state.folder / "previous.ckpt").unlink(missing_ok=True)
        progress.title = str(state.plan.spec)
        progress.close(
            f"trained {state.epoch} epochs in {took}: held-out clean {last['clean']:.1%}, robust "
            f"{last['robust']:.1%} "
            f"({state.plan.key}){run_warning(Run(state.plan.spec, state.folder))}"
        )
    barrier()  # the run is there for all


def run_epoch(states: Sequence[TrainingState], data: DataSet) -> None:
    """One epoch of each:

    train, look at the probes, refuse a sick network, save. A crash before the save repeats it all.
    """
    epoch, started = states[0].epoch + 1, time.monotonic()
    for state in states:
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(state.plan, epoch)
    trained = train_epoch(states, data.train, epoch)
    models, plans = [state.model for state in states], [state.plan for state in states]
    probes = {
        name: observe_split(models, plans, split.take(slice(0, plans[0].recipe.probe)), "probe")
        for name, split in (
            ("seen", data.train),
            ("validation", data.validation),
            ("test", data.test),
        )
        if len(split)
    }
    for i, (state, (loss, arrays)) in enumerate(zip(states, trained, strict=True)):
        mine = {name: probe[i] for name, probe in probes.items()}
        kept = record_epoch(
            state, data, loss, arrays, mine, (time.monotonic() - started) / len(states)
        )
        if is_main():
            save_epoch(state, kept)


def learning_rate(plan: Plan, epoch: int) -> float:
    recipe = plan.recipe
    return recipe.lr * recipe.lr_factor ** sum(epoch > milestone for milestone in recipe.milestones)


def record_epoch(
    state: TrainingState,
    data: DataSet,
    loss: float,
    arrays: dict[str, np.ndarray],
    probes: dict[str, dict[str, np.ndarray]],
    seconds: float,
) -> dict[str, np.ndarray]:
    """Take an epoch into the state's history.

    -> the arrays to keep of it: what training saw and what the probes show.
    """
    plan, epoch = state.plan, state.epoch + 1
    weigher = plan.method.weight or plan.method.select
    check_weights(
        torch.from_numpy(arrays["weight"]), f"{plan.spec.method}, epoch {epoch}: {weigher}"
    )
    row = {
        "epoch": epoch,
        "lr": learning_rate(plan, epoch),
        "loss": loss,
        "weight": float(arrays["weight"].mean(dtype=np.float64)),
    }
    row["ce"] = float(
        per_example_cross_entropy(
            torch.from_numpy(arrays["logits_adv"]).float(), data.train.y.cpu()
        ).mean()
    )
    kept = {f"train_{name}": values for name, values in arrays.items()}
    for name, probe in probes.items():
        row[f"clean_{name}"], row[f"robust_{name}"] = accuracies(probe)
        kept |= {f"{name}_{key}": values for key, values in probe.items()}
    held_out = "validation" if len(data.validation) else "test"
    row |= {"clean": row[f"clean_{held_out}"], "robust": row[f"robust_{held_out}"]}
    with torch.no_grad():
        row |= {
            f"fuzziness.{layer}": float(fuzziness(w))
            for layer, w in conv_weights(state.model).items()
        }
    row["constant"] = float(len(np.unique(kept["seen_logits_nat"].argmax(1))) == 1)
    row["seconds"] = seconds
    check_health(state, row)
    state.epoch = epoch
    state.history.append(row)
    return kept


def save_epoch(state: TrainingState, kept: dict[str, np.ndarray]) -> None:
    """Write down an epoch: its arrays, the network, and last of all the checkpoint."""
    plan, folder, epoch, row, files = (
        state.plan,
        state.folder,
        state.epoch,
        state.history[-1],
        state.files,
    )
    if not (folder / "run.json").exists():
        raise KitError(
            f"{folder} was deleted or moved while it was trained in. Ask for the run again to "
            f"train it afresh"
        )
    best = "validation_y" not in kept or row["robust"] > max(
        (r["robust"] for r in state.history[:-1]), default=-1
    )
    network, name = {"model": state.model.state_dict(), "epoch": epoch}, f"{epoch:04d}"
    files[f"epochs/{name}.npz"] = save_arrays(folder / "epochs" / f"{name}.npz", kept)
    if best:
        files["best.ckpt"] = save_checkpoint(folder / "best.ckpt", network)
    history = pd.DataFrame(state.history).to_csv(index=False).encode()
    files["history.csv"] = write_bytes(folder / "history.csv", history)
    if is_snapshot(epoch, plan):
        files[f"snapshots/{name}.ckpt"] = save_checkpoint(
            folder / "snapshots" / f"{name}.ckpt", network
        )
    state.advance()
    if epoch == plan.burn_in:
        shutil.copyfile(folder / "best.ckpt", folder / "best-in-burn-in.ckpt")
        state.save(folder / f"burn-in-{plan.burn_in_key}.ckpt")


def check_health(state: TrainingState, row: dict[str, float]) -> None:
    """`KitError` for a loss or parameter that is no number."""
    kept = (
        f"The last good checkpoint (epoch {state.epoch}) is kept in {state.folder}"
        if state.epoch
        else "No epoch was completed"
    )
    finite = all(bool(p.isfinite().all()) for p in state.model.state_dict().values())
    if not np.isfinite(row["loss"]) or not finite:
        raise KitError(
            f"training diverged in epoch {row['epoch']}: "
            f"{'a parameter' if finite is False else 'the loss'} "
            f"is not finite (lr {row['lr']:g}). {kept}. Lower lr or eps, or raise burn_in"
        )


def final_pass(states: Sequence[TrainingState], data: DataSet) -> None:
    """A last pass over all training and test images with the finished networks."""
    found: list[dict[str, np.ndarray]] = [{} for _ in states]
    for name, split in (("train", data.train), ("test", data.test)):
        outputs = observe_split(
            [state.model for state in states], [state.plan for state in states], split, "final"
        )
        for arrays, mine in zip(found, outputs, strict=True):
            arrays |= {f"{name}_{key}": values for key, values in mine.items()}
    for state, arrays in zip(states, found, strict=True):
        if is_main():
            state.files["final.npz"] = save_arrays(state.folder / "final.npz", arrays)
