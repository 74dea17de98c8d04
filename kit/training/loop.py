"""The one loop: epochs, and what is done after each of them, in the order of reading.

Every random number comes from a stream named after the seed, its purpose and the epoch (and per
example its id), so a run that was interrupted continues from its last checkpoint and ends bit for
bit as if it had not been.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kit.core.distributed import unwrap_distributed
from kit.core.errors import KitError
from kit.core.progress import Progress, followed, format_duration, silenced
from kit.core.random_streams import Streams, named_generator
from kit.core.tensors import per_example_cross_entropy
from kit.core.threads import stop_if_abandoned
from kit.data.augmentation import augment
from kit.data.splits import DataSet, Split
from kit.experiments.devices import threads_for
from kit.experiments.recipes import Recipe
from kit.experiments.runs import Run, open_dataset
from kit.experiments.specification import Plan
from kit.methods.regularisers import conv_weights, fuzziness
from kit.methods.table import Method
from kit.methods.weights import check_weights
from kit.training.checkpoint import (
    TrainingState,
    align_epochs,
    begin_training,
    finish_run,
    run_warning,
    save_epoch,
    save_final,
)
from kit.training.observation import accuracies, kept_outputs, observe_split, stored_array
from kit.training.optimizer import learning_rate
from kit.training.perturbed_step import train_step_perturbed
from kit.training.precision import resolve_precision
from kit.training.stacked_step import Learner, train_step_stacked
from kit.training.step import Batch, StepRecord, attack_batch, train_step

#: What training computed in one epoch: the mean loss, and {name: (n, ...)} in the split's order.
Trained = tuple[float, dict[str, np.ndarray]]


def fit_plans(
    plans: Sequence[Plan], device: torch.device, *, quiet: bool = False, compiled: bool = False
) -> None:
    """Train plans that fit together, each from where it stands to its end.

    The caller holds their locks. Those that are behind go first, so that after an interruption all
    are soon in step again.

    Raises:
        KitError: The device computes no such precision, a batch is larger than the data set, or a
            training diverges.
    """
    recipe, started = plans[0].recipe, time.monotonic()
    resolve_precision(recipe.precision, device)  # refuses what the device has not
    with silenced(quiet):
        host_data = open_dataset(plans[0])
    check_batch_size(plans[0], host_data)
    data = host_data.to(device)
    states = [
        begin_training(plan, host_data, device, quiet=quiet, compiled=compiled) for plan in plans
    ]
    if len(states) > 1:
        align_epochs(states, device)
    total = recipe.epochs + final_pass_in_epochs(plans[0], data)
    first = min(state.epoch for state in states)
    progress = Progress(_title(plans), total, done=first, quiet=quiet)
    with progress, threads_for(recipe.model, device):
        while going := [state for state in states if state.goes_on]:
            reached = min(state.epoch for state in going)
            run_epoch([state for state in going if state.epoch == reached], data)
            progress.update(reached + 1, summary(going[0]))
        final_pass(states, data)
    took = format_duration(time.monotonic() - started)
    for state in states:
        finish_run(state)
        progress.title = str(state.plan.spec)
        progress.close(_last_line(state, took, len(states)))


def run_epoch(states: Sequence[TrainingState], data: DataSet) -> None:
    """Take one epoch of each: train, observe the probes, refuse a network that has diverged, save.

    A crash before the save repeats all of it.
    """
    epoch, started = states[0].epoch + 1, time.monotonic()
    for state in states:
        set_learning_rate(state, epoch)
    if len(states) == 1:
        trained = [train_epoch(states[0], data.train, epoch)]
    else:
        trained = train_epoch_stacked(states, data.train, epoch)
    probes = observe_probes(states, data)
    seconds = (time.monotonic() - started) / len(states)
    for state, (loss, arrays), observed in zip(states, trained, probes, strict=True):
        kept = record_epoch(state, data, loss, arrays, observed, seconds)
        save_epoch(state, kept)


# --------------------------------------------------------------------------------------- one epoch


def train_epoch(
    state: TrainingState,
    split: Split,
    epoch: int,
    take_step: Callable[..., StepRecord] | None = None,
    model: torch.nn.Module | None = None,
) -> Trained:
    """Pass once over the training images, in steps of one network.

    The arrays are what the last stage of each step computed, counted on the fly: the network moves
    from batch to batch, and its batch norms use batch statistics. `take_step` is the step (the
    method's own if None), `model` what it passes images through (the state's network if None).
    """
    plan, recipe = state.plan, state.plan.recipe
    method = plan.method.at(epoch, recipe.epochs)
    stages = method.stages(epoch, recipe.epochs)
    reweight = method.reweights and epoch > plan.burn_in
    take_step = take_step or (train_step_perturbed if method.perturb else train_step)
    model = state.model if model is None else model
    order = image_order(plan, split, epoch)
    losses: list[Tensor] = []
    kept: list[dict[str, Tensor]] = []
    attacks_first = method.attacks_first
    for rows in followed(batch_rows(plan, split, order, epoch), "batch"):
        stop_if_abandoned()
        batches: Iterable[Batch] = load_batches(plan, split, rows, epoch, len(stages))
        if attacks_first:
            batches = attack_ahead(model, method, stages, batches, recipe, reweight=reweight)
        for adversarial, batch in zip(stages, batches, strict=True):
            parts = model, state.optimizer, method, batch, recipe
            record = take_step(*parts, adversarial=adversarial, reweight=reweight)
            losses.append(record.loss)
        n = len(rows.own)
        kept.append(kept_outputs(record.outputs, n) | {"weight": record.weights[:n]})
    return collect(losses, kept, order)


def train_epoch_stacked(states: Sequence[TrainingState], split: Split, epoch: int) -> list[Trained]:
    """Take `train_epoch` of networks that fit together, each over the images in its own order."""
    recipe = states[0].plan.recipe
    methods = [state.plan.method.at(epoch, recipe.epochs) for state in states]
    stages = methods[0].stages(epoch, recipe.epochs)
    learners = [
        Learner(
            state.model, state.optimizer, method, method.reweights and epoch > state.plan.burn_in
        )
        for state, method in zip(states, methods, strict=True)
    ]
    orders = [image_order(state.plan, split, epoch) for state in states]
    losses: list[list[Tensor]] = [[] for _ in states]
    kept: list[list[dict[str, Tensor]]] = [[] for _ in states]
    parts = [
        batch_rows(state.plan, split, order, epoch)
        for state, order in zip(states, orders, strict=True)
    ]
    for all_rows in followed(list(zip(*parts, strict=True)), "batch"):
        stop_if_abandoned()
        loaded = [
            load_batches(state.plan, split, rows, epoch, len(stages))
            for state, rows in zip(states, all_rows, strict=True)
        ]
        for adversarial, *batches in zip(stages, *loaded, strict=True):
            records = train_step_stacked(learners, batches, recipe, adversarial=adversarial)
            for mine, record in zip(losses, records, strict=True):
                mine.append(record.loss)
        for arrays, record, rows in zip(kept, records, all_rows, strict=True):
            n = len(rows.own)
            arrays.append(kept_outputs(record.outputs, n) | {"weight": record.weights[:n]})
    return [collect(*each) for each in zip(losses, kept, orders, strict=True)]


def image_order(plan: Plan, split: Split, epoch: int) -> Tensor:
    """Return the rows (n,) of the training images in the order of an epoch."""
    order = torch.randperm(len(split), generator=named_generator(plan.seed, "order", epoch))
    return order.to(split.y.device)


class BatchRows(NamedTuple):
    """The rows of a batch: of its images, and of the generated ones behind them, if any."""

    own: Tensor
    generated: Tensor | None


def batch_rows(plan: Plan, split: Split, order: Tensor, epoch: int) -> list[BatchRows]:
    """List the batches of an epoch, in which each image of the split comes once.

    Generated images are drawn so that every batch has their share, in a new order each epoch, all
    of them before one comes again.
    """
    recipe = plan.recipe
    own = order.split(recipe.own_batch_size)
    if split.generated is None:
        return [BatchRows(rows, None) for rows in own]
    ratio = (recipe.batch_size - recipe.own_batch_size) / recipe.own_batch_size
    counts = [round(len(rows) * ratio) for rows in own]
    source = named_generator(plan.seed, "generated", epoch)
    drawn = torch.randperm(len(split.generated), generator=source)
    drawn = drawn[torch.arange(sum(counts)) % len(drawn)].to(order.device)
    return [BatchRows(*rows) for rows in zip(own, drawn.split(counts), strict=True)]


def load_batches(
    plan: Plan, split: Split, rows: BatchRows, epoch: int, count: int
) -> Iterator[Batch]:
    """Yield the batch of these rows `count` times, augmented once, with fresh streams each time."""
    x, y, ids = split.x(rows.own), split.y[rows.own], split.ids[rows.own]
    if rows.generated is not None:
        assert split.generated is not None  # `batch_rows` draws from it
        made = split.generated.take(rows.generated)
        x, y, ids = torch.cat([x, made.x()]), torch.cat([y, made.y]), torch.cat([ids, made.ids])
    if plan.recipe.augment != "none":
        x = augment(x, plan.recipe.augment, Streams(ids, plan.seed, "augment", epoch))
    for _ in range(count):
        yield Batch(x, y, Streams(ids, plan.seed, "attack", epoch))


def attack_ahead(
    model: torch.nn.Module,
    method: Method,
    stages: Sequence[bool],
    batches: Iterable[Batch],
    recipe: Recipe,
    *,
    reweight: bool,
) -> list[Batch]:
    """Attack a batch for all its steps on x_adv while the network is as it was before the first."""
    bare = unwrap_distributed(model)
    return [
        attack_batch(bare, method, batch, recipe, reweight=reweight) if adversarial else batch
        for adversarial, batch in zip(stages, batches, strict=True)
    ]


def collect(losses: list[Tensor], kept: list[dict[str, Tensor]], order: Tensor) -> Trained:
    """Put the batches of an epoch together, in the order of the split."""
    back = order.argsort()
    arrays = {name: stored_array(torch.cat([r[name] for r in kept])[back]) for name in kept[0]}
    return float(torch.stack(losses).mean()), arrays


def set_learning_rate(state: TrainingState, epoch: int) -> None:
    """Set the rate of an epoch."""
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.plan.recipe, epoch)


# ----------------------------------------------------------------------------------- after an epoch


def observe_probes(
    states: Sequence[TrainingState],
    data: DataSet,
    observe: Callable[..., list[dict[str, np.ndarray]]] = observe_split,
) -> list[dict[str, dict[str, np.ndarray]]]:
    """Attack the first images of each split; returns for each network {split: arrays}.

    The validation images, which choose the best epoch, may take more steps than the others.
    """
    models, plans = [state.model for state in states], [state.plan for state in states]
    splits = {"seen": data.train, "validation": data.validation, "test": data.test}
    recipe = plans[0].recipe
    first, steps = slice(0, recipe.probe), {"validation": recipe.selection_steps}
    found = {
        name: observe(models, plans, split.take(first), "probe", steps.get(name, 0))
        for name, split in splits.items()
        if len(split)
    }
    return [{name: arrays[i] for name, arrays in found.items()} for i in range(len(states))]


def record_epoch(
    state: TrainingState,
    data: DataSet,
    loss: float,
    arrays: dict[str, np.ndarray],
    probes: dict[str, dict[str, np.ndarray]],
    seconds: float,
) -> dict[str, np.ndarray]:
    """Take an epoch into the state's history.

    Returns the arrays to keep of it: what training computed and what the probes show.

    Raises:
        KitError: A weight, the loss or a parameter is not finite.
    """
    plan, epoch = state.plan, state.epoch + 1
    weigher = plan.method.weight or plan.method.select
    name = f"{plan.spec.method}, epoch {epoch}: {weigher}"
    check_weights(torch.from_numpy(arrays["weight"]), name)
    kept = {f"train_{name}": values for name, values in arrays.items()}
    for name, probe in probes.items():
        kept |= {f"{name}_{key}": values for key, values in probe.items()}
    row = {
        "epoch": epoch,
        "lr": learning_rate(plan.recipe, epoch),
        "loss": loss,
        "weight": float(arrays["weight"].mean(dtype=np.float64)),
    }
    logits = torch.from_numpy(arrays["logits_adv"]).float()
    row["ce"] = float(per_example_cross_entropy(logits, data.train.y.cpu()).mean())
    for name, probe in probes.items():
        row[f"clean_{name}"], row[f"robust_{name}"] = accuracies(probe)
    held_out = "validation" if len(data.validation) else "test"
    row |= {"clean": row[f"clean_{held_out}"], "robust": row[f"robust_{held_out}"]}
    with torch.no_grad():
        for layer, weight in conv_weights(state.model).items():
            row[f"fuzziness.{layer}"] = float(fuzziness(weight))
    row["constant"] = float(len(np.unique(kept["seen_logits_nat"].argmax(1))) == 1)
    row["seconds"] = seconds
    check_health(state, row)
    state.epoch = epoch
    state.history.append(row)
    return kept


def check_health(state: TrainingState, row: dict[str, float]) -> None:
    """Refuse a network that has diverged.

    Raises:
        KitError: The loss or a parameter is not finite.
    """
    finite = all(bool(p.isfinite().all()) for p in state.model.state_dict().values())
    if np.isfinite(row["loss"]) and finite:
        return
    kept = "No epoch was completed"
    if state.epoch:
        kept = f"The last good checkpoint (epoch {state.epoch}) is kept in {state.folder}"
    raise KitError(
        f"training diverged in epoch {row['epoch']}: {'the loss' if finite else 'a parameter'} "
        f"is not finite (lr {row['lr']:g}). {kept}. Lower lr or eps, or raise burn_in"
    )


def final_pass(
    states: Sequence[TrainingState],
    data: DataSet,
    observe: Callable[..., list[dict[str, np.ndarray]]] = observe_split,
    *,
    save: bool = True,
) -> None:
    """Attack all training and test images with the finished networks, and keep what they show."""
    models, plans = [state.model for state in states], [state.plan for state in states]
    found: list[dict[str, np.ndarray]] = [{} for _ in states]
    for name, split in (("train", data.train), ("test", data.test)):
        observed = observe(models, plans, split, "final")
        for arrays, mine in zip(found, observed, strict=True):
            arrays |= {f"{name}_{key}": values for key, values in mine.items()}
    for state, arrays in zip(states, found, strict=True) if save else ():
        save_final(state, arrays)


def final_pass_in_epochs(plan: Plan, data: DataSet) -> float:
    """Estimate how many epochs take as long as the final pass.

    An image that is attacked takes about as long as one that is trained on.
    """
    probes = sum(min(plan.recipe.probe, len(s)) for s in (data.train, data.validation, data.test))
    return (len(data.train) + len(data.test)) / (len(data.train) + probes)


# ------------------------------------------------------------------------------------------- words


def check_batch_size(plan: Plan, data: DataSet) -> None:
    """Refuse batches that are larger than the data set.

    Raises:
        KitError: There are fewer training images than a batch has.
    """
    batch_size, images = plan.recipe.own_batch_size, len(data.train)
    if batch_size > images:
        raise KitError(
            f"batch_size={batch_size} is larger than the {images} training images of "
            f"{plan.recipe.data}; it must be 1 to {images}"
        )


def _title(plans: Sequence[Plan]) -> str:
    return f"{plans[0].spec}" + (f" and {len(plans) - 1} more" if len(plans) > 1 else "")


def summary(state: TrainingState) -> str:
    """Say how far a training is, and what its last epoch showed."""
    row = state.history[-1]
    return (
        f"epoch {state.epoch} of {state.plan.recipe.epochs}: loss {row['loss']:.3f}  "
        f"clean {row['clean']:.1%}  robust {row['robust']:.1%}"
    )


def _last_line(state: TrainingState, took: str, networks: int) -> str:
    last = state.history[-1]
    others = f", {networks} networks at once" if networks > 1 else ""
    return (
        f"trained {state.epoch} epochs in {took}{others}: held-out clean {last['clean']:.1%}, "
        f"robust {last['robust']:.1%} ({state.plan.key})"
        f"{run_warning(Run(state.plan.spec, state.folder))}"
    )
