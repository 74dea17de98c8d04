"""The one loop. `run` trains, resumes or opens; `fit` is the loop over epochs; `kit.minibatch.steps` is one step.

One network, or several small ones that go through the program side by side: the loop is the same.

Every random number comes from a stream named after the seed, its purpose and the epoch (and per example its id),
so a run that was interrupted continues from its last checkpoint and ends bit for bit as if it had not been.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from kit import processes, regularisers, store
from kit.attacks import Path, frozen, pgd
from kit.data import DataSet, Split, augment
from kit.functional import cross_entropy
from kit.minibatch import Learner, steps
from kit.models import SMALL
from kit.precision import chosen
from kit.progress import Progress, duration
from kit.runs import Run, dataset, folder_of, is_done, spare_threads, threads_for
from kit.runs import device as pick_device
from kit.sidebyside import side_by_side, still_wanted
from kit.spec import Plan, RunSpec, companies, resolve
from kit.state import State, begin, collapsed, is_snapshot, keep_step
from kit.together import together
from kit.types import Joined, KitError, Seen, Streams, generator, part
from kit.weights import check_weights

#: What looks at a network after each epoch, the same for every method: the recipe's steps, from beside the image.
PROBE = part(pgd, loss="ce", init="gaussian")
PROBE_BATCH = 256
#: Networks in one program. On CPUs more than a few gain nothing.
TOGETHER = {"cpu": 5, "cuda": 64, "mps": 16}


def run(method: str | RunSpec, recipe: str = "digits", seed: int = 0, *, overrides: Mapping[str, Any] | None = None,
        device: str = "auto", quiet: bool = False) -> Run:
    """Train `method` on `recipe`, or resume it, or open it if it is finished; asking again costs nothing.

    Give names, or one `RunSpec`. `overrides` changes numbers by name, say {"weight.slope": 5.0, "epochs": 30}. A run
    that another process is training is waited for. Errors: `KitError` for an unknown name or unfit value (before
    anything is trained), unreadable data, or a training that diverges; its last good checkpoint is kept.
    """
    spec = method if isinstance(method, RunSpec) else RunSpec(method, recipe, seed, dict(overrides or {}))
    plan = resolve(spec)
    where, quiet = pick_device(device), quiet or not processes.leads()
    trained = train([plan], where, quiet=quiet)
    opened = Run(spec, folder_of(plan))
    if not quiet and not trained:
        print(f"{spec}: opened, trained in {duration(opened.done['seconds'])} ({plan.key}){warning(opened)}", flush=True)
    return opened


def run_many(specs: Iterable[RunSpec], *, device: str = "auto", quiet: bool = False) -> list[Run]:
    """`run` for each of `specs`, many small networks at a time: those that fit together (see `Plan.company`) are trained as
    one program, and on a CPU as many programs side by side as PyTorch has threads.

    What is random in a run is its own, so each ends as if trained alone, up to the rounding of sums that are added in
    another order. Checkpoints, resuming and errors are those of `run`; a network that diverges does not stop the others.
    Errors: `KitError` that names all runs that could not be trained, after all others have been.
    """
    specs = list(specs)
    plans = {plan.key: plan for plan in map(resolve, specs)}
    where, failures = pick_device(device), {}
    for small in (True, False):
        due = [plan for plan in plans.values() if not is_done(folder_of(plan)) and (plan.recipe.model in SMALL) == small]
        with threads_for(due[0].recipe.model, where) if due else contextlib.nullcontext():
            threads = spare_threads()
            for wave in companies(due, min(TOGETHER[where.type], -(-len(due) // threads))):
                jobs = [(some, where, quiet) for some in wave]
                for failed in side_by_side(_train_each, jobs, min(threads, len(jobs))):
                    failures |= failed
    if failures:
        words = "; ".join(f"{name}: {error}" for name, error in failures.items())
        raise KitError(f"{len(failures)} of {len(plans)} runs could not be trained; the others are. {words}")
    return [Run(spec, folder_of(resolve(spec))) for spec in specs]


def _train_each(plans: list[Plan], device: torch.device, quiet: bool) -> dict[str, str]:
    """`train` them together, else one by one. -> {run: what is wrong} of those that cannot be."""
    try:
        train(plans, device, quiet=quiet)
    except KitError as error:
        if len(plans) == 1:
            return {str(plans[0].spec): str(error)}
    except torch.OutOfMemoryError:
        half = len(plans) // 2
        print(f"out of memory; going on with {half} networks at a time", flush=True)
        return _train_each(plans[:half], device, quiet) | _train_each(plans[half:], device, quiet)
    else:
        return {}
    # one of them stopped all: each goes on for itself, from its last checkpoint
    return {name: error for plan in plans for name, error in _train_each([plan], device, quiet).items()}


def train(plans: Sequence[Plan], device: torch.device, *, quiet: bool = False) -> bool:
    """Train those of `plans`, which fit together, that are not finished, alone on this machine. -> was there any?"""
    todo = [plan for plan in plans if not is_done(folder_of(plan))]
    with contextlib.ExitStack() as locks:
        for plan in sorted(todo, key=lambda plan: plan.key):     # in one order everywhere, so that nobody waits in a circle
            words = f"{plan.spec}: another process is training it; waiting"
            if processes.leads():
                locks.enter_context(store.lock(folder_of(plan), partial(print, words, flush=True)))
        left = processes.agreed([i for i, plan in enumerate(todo) if not is_done(folder_of(plan))])
        todo = [todo[i] for i in left]
        try:
            if todo:
                fit(todo, device, quiet=quiet)
        except torch.OutOfMemoryError as error:
            if len(plans) > 1:
                raise
            raise KitError(f"batch_size={plans[0].recipe.batch_size} does not fit into the memory of {device}; lower it, or "
                           "take another device. Finished epochs are kept") from error
    return bool(todo)


def warning(run: Run) -> str:
    """What to know before using a finished run; "" if nothing."""
    if not run.done["constant"]:
        return ""
    history = run.history
    since = len(history) - int(history.constant[::-1].cumprod().sum()) + 1
    fell = collapsed(history.to_dict("records"))
    state = f"it collapsed in epoch {since} and was stopped" if fell else "it has learned nothing"
    return f". WARNING: {state}, every image gets the same class. Lower lr or eps, or raise burn_in"


# ---------------------------------------------------------------------------------------------- one epoch

def train_epoch(crew: Sequence[State], split: Split, epoch: int) -> list[tuple[float, dict[str, np.ndarray]]]:
    """One pass over the training images. -> of each network its mean loss, and what the last stage of each step saw, in
    split order. The networks fit together; each goes through the images in an order of its own.

    The arrays are counted on the fly: the network moves from batch to batch, and its batch norms use batch statistics.
    """
    recipe = crew[0].plan.recipe
    learners = [Learner(processes.spread(s.model), s.optimiser, s.plan.method.at(epoch, recipe.epochs),
                        s.plan.method.reweights and epoch > s.plan.burn_in) for s in crew]
    orders = [torch.randperm(len(split), generator=generator(s.plan.seed, "order", epoch)).to(split.y.device) for s in crew]
    kept: list[list[dict[str, Tensor]]] = [[] for _ in crew]
    losses: list[list[Tensor]] = [[] for _ in crew]
    for batches in zip(*(order.split(recipe.batch_size) for order in orders), strict=True):
        still_wanted()
        ids = [split.ids[rows] for rows in batches]
        y = torch.cat([split.y[rows] for rows in batches])
        x = torch.cat([augment(split.x(rows), recipe.augment, Streams(mine, s.plan.seed, "augment", epoch))
                       for rows, mine, s in zip(batches, ids, crew, strict=True)])
        for attacked in learners[0].method.stages(epoch, recipe.epochs):
            streams = [Streams(mine, s.plan.seed, "attack", epoch) for mine, s in zip(ids, crew, strict=True)]
            done = steps(learners, recipe, x, y, streams, attacked=attacked)
            for mine, each in zip(losses, done, strict=True):
                mine.append(each.loss)
        for mine, each in zip(kept, done, strict=True):
            mine.append(_record(each.seen) | {"weight": each.weights})
    found = []
    for order, records, mine in zip(orders, kept, losses, strict=True):
        back = order.argsort()
        arrays = {name: _array(torch.cat([record[name] for record in records])[back]) for name in records[0]}
        found.append((float(torch.stack(mine).mean()), arrays))
    return found


def _record(seen: Seen) -> dict[str, Tensor]:
    """The fields of `Seen` worth keeping, detached."""
    names = ("logits_adv", "logits_nat", "kappa", "lps", "p_flip")
    return {name: value.detach() for name in names if (value := getattr(seen, name)) is not None}


def _array(values: Tensor) -> np.ndarray:
    """Steps as bytes, and logits of many images in half precision."""
    array = values.cpu().numpy()
    if array.dtype == np.int64:
        return array.astype(np.uint8 if array.max(initial=0) < 256 else np.int32)
    return array.astype(np.float16) if array.nbytes > 4e6 else array


def observe(models: Sequence[nn.Module], plans: Sequence[Plan], split: Split, purpose: str) -> list[dict[str, np.ndarray]]:
    """Clean and attacked logits (n, K), kappa, lps, p_flip, y and ids (n,) of a split, with frozen networks.

    The attack is `PROBE` with the recipe's threat and steps. Its random start depends on seed, purpose and image id.
    """
    recipe, network, n = plans[0].recipe, together(models), len(split)
    kept: list[list[dict[str, Tensor]]] = [[] for _ in models]
    with frozen(network):
        for rows in torch.arange(n, device=split.y.device)[processes.share(n)].split(PROBE_BATCH):
            x, y = split.x(rows).repeat(len(models), 1, 1, 1), split.y[rows].repeat(len(models))
            streams, path = [Streams(split.ids[rows], plan.seed, purpose) for plan in plans], Path(y, recipe.steps)
            x_adv = PROBE(network, x, y, recipe.threat, generator=Joined(streams), watch=path, validate=False,
                          steps=recipe.steps, step_size=recipe.step * recipe.eps)
            with torch.no_grad():
                nat, adv = network(x), network(x_adv)
            p_last = adv.softmax(dim=1).gather(1, y[:, None]).squeeze(1)
            p_flip = path.p_flip.where(path.lps < recipe.steps, p_last)
            seen = Seen(y, adv, nat, kappa=path.kappa, lps=path.lps, p_flip=p_flip)
            for i, mine in enumerate(kept):
                mine.append(_record(seen.take(slice(i * len(rows), (i + 1) * len(rows)), streams[i])))
    shared = {"y": _array(split.y), "ids": split.ids.cpu().numpy()}
    return [{name: _array(processes.whole(torch.cat([record[name] for record in mine]), n)) for name in mine[0]} | shared
            for mine in kept]


def accuracies(arrays: dict[str, np.ndarray]) -> tuple[float, float]:
    """(clean, robust) accuracy of what `observe` returned; a NaN is never correct."""
    def right(logits: np.ndarray) -> float:
        return float(((logits.argmax(1) == arrays["y"]) & np.isfinite(logits).all(1)).mean())
    return right(arrays["logits_nat"]), right(arrays["logits_adv"])


# ---------------------------------------------------------------------------------------------- the loop

def fit(plans: Sequence[Plan], device: torch.device, *, quiet: bool = False) -> None:
    """Train `plans`, which fit together, each from where it stands to done.json. The caller holds their locks.

    Those that are behind go first, so that after an interruption all are soon in step again.
    """
    recipe, started = plans[0].recipe, time.monotonic()
    chosen(recipe.precision, device)     # refuses what the device has not
    with processes.leader_first():
        host_data = dataset(plans[0])
    if recipe.batch_size > len(host_data.train):
        raise KitError(f"batch_size={recipe.batch_size} is larger than the {len(host_data.train)} training images of "
                       f"{recipe.data}; it must be 1 to {len(host_data.train)}")
    last = len(host_data.train) % recipe.batch_size or recipe.batch_size
    if last < processes.count():
        raise KitError(f"batch_size={recipe.batch_size} leaves {last} of {len(host_data.train)} images to the last batch, "
                       f"fewer than the {processes.count()} processes; change batch_size or train_size, or start fewer")
    data = host_data.to(device)
    crew = [begin(plan, host_data, device, quiet=quiet) for plan in plans]
    keep_step(crew, device)
    title = str(plans[0].spec) if len(plans) == 1 else f"{plans[0].spec} and {len(plans) - 1} more"
    progress = Progress(title, recipe.epochs, done=min(state.epoch for state in crew), quiet=quiet)
    with threads_for(recipe.model, device):
        while going := [state for state in crew if state.goes_on]:
            reached = min(state.epoch for state in going)
            epoch_of([state for state in going if state.epoch == reached], data)
            last = going[0].history[-1]
            progress.update(reached + 1, f"loss {last['loss']:.3f}  clean {last['clean']:.1%}  robust {last['robust']:.1%}")
        finish(crew, data)
    took = duration(time.monotonic() - started) + (f", {len(plans)} networks at once" if len(plans) > 1 else "")
    for state in crew if processes.leads() else ():
        last, seconds = state.history[-1], sum(row["seconds"] for row in state.history)
        files = state.files | {"last.ckpt": store.digest(state.folder / "last.ckpt")}
        store.write_sealed(state.folder / "done.json", {
            "key": state.plan.key, "epochs": state.epoch, "seconds": round(seconds, 2), "constant": bool(last["constant"]),
            "files": files})
        (state.folder / "previous.ckpt").unlink(missing_ok=True)
        progress.title = str(state.plan.spec)
        progress.close(f"trained {state.epoch} epochs in {took}: held-out clean {last['clean']:.1%}, robust "
                       f"{last['robust']:.1%} ({state.plan.key}){warning(Run(state.plan.spec, state.folder))}")
    processes.meet()     # the run is there for all


def epoch_of(crew: Sequence[State], data: DataSet) -> None:
    """One epoch of each: train, look at the probes, refuse a sick network, save. A crash before the save repeats it all."""
    epoch, started = crew[0].epoch + 1, time.monotonic()
    for state in crew:
        for group in state.optimiser.param_groups:
            group["lr"] = rate_at(state.plan, epoch)
    trained = train_epoch(crew, data.train, epoch)
    models, plans = [state.model for state in crew], [state.plan for state in crew]
    probes = {name: observe(models, plans, split.take(slice(0, plans[0].recipe.probe)), "probe")
              for name, split in (("seen", data.train), ("validation", data.validation), ("test", data.test)) if len(split)}
    for i, (state, (loss, arrays)) in enumerate(zip(crew, trained, strict=True)):
        mine = {name: probe[i] for name, probe in probes.items()}
        kept = record(state, data, loss, arrays, mine, (time.monotonic() - started) / len(crew))
        if processes.leads():
            save(state, kept)


def rate_at(plan: Plan, epoch: int) -> float:
    recipe = plan.recipe
    return recipe.lr * recipe.lr_factor ** sum(epoch > milestone for milestone in recipe.milestones)


def record(state: State, data: DataSet, loss: float, arrays: dict[str, np.ndarray], probes: dict[str, dict[str, np.ndarray]],
           seconds: float) -> dict[str, np.ndarray]:
    """Take an epoch into the state's history. -> the arrays to keep of it: what training saw and what the probes show."""
    plan, epoch = state.plan, state.epoch + 1
    weigher = plan.method.weight or plan.method.select
    check_weights(torch.from_numpy(arrays["weight"]), f"{plan.spec.method}, epoch {epoch}: {weigher}")
    row = {"epoch": epoch, "lr": rate_at(plan, epoch), "loss": loss,
           "weight": float(arrays["weight"].mean(dtype=np.float64))}
    row["ce"] = float(cross_entropy(torch.from_numpy(arrays["logits_adv"]).float(), data.train.y.cpu()).mean())
    kept = {f"train_{name}": values for name, values in arrays.items()}
    for name, probe in probes.items():
        row[f"clean_{name}"], row[f"robust_{name}"] = accuracies(probe)
        kept |= {f"{name}_{key}": values for key, values in probe.items()}
    held_out = "validation" if len(data.validation) else "test"
    row |= {"clean": row[f"clean_{held_out}"], "robust": row[f"robust_{held_out}"]}
    with torch.no_grad():
        row |= {f"fuzziness.{layer}": float(regularisers.fuzziness(w))
                for layer, w in regularisers.conv_weights(state.model).items()}
    row["constant"] = float(len(np.unique(kept["seen_logits_nat"].argmax(1))) == 1)
    row["seconds"] = seconds
    check_health(state, row)
    state.epoch = epoch
    state.history.append(row)
    return kept


def save(state: State, kept: dict[str, np.ndarray]) -> None:
    """Write down an epoch: its arrays, the network, and last of all the checkpoint."""
    plan, folder, epoch, row, files = state.plan, state.folder, state.epoch, state.history[-1], state.files
    if not (folder / "run.json").exists():
        raise KitError(f"{folder} was deleted or moved while it was trained in. Ask for the run again to train it afresh")
    best = "validation_y" not in kept or row["robust"] > max((r["robust"] for r in state.history[:-1]), default=-1)
    network, name = {"model": state.model.state_dict(), "epoch": epoch}, f"{epoch:04d}"
    files[f"epochs/{name}.npz"] = store.save_arrays(folder / "epochs" / f"{name}.npz", kept)
    if best:
        files["best.ckpt"] = store.save(folder / "best.ckpt", network)
    history = pd.DataFrame(state.history).to_csv(index=False).encode()
    files["history.csv"] = store.write(folder / "history.csv", history)
    if is_snapshot(epoch, plan):
        files[f"snapshots/{name}.ckpt"] = store.save(folder / "snapshots" / f"{name}.ckpt", network)
    state.advance()
    if epoch == plan.burn_in:
        shutil.copyfile(folder / "best.ckpt", folder / "best-in-burn-in.ckpt")
        state.save(folder / f"burn-in-{plan.trunk}.ckpt")


def check_health(state: State, row: dict[str, float]) -> None:
    """`KitError` for a loss or parameter that is no number."""
    kept = (f"The last good checkpoint (epoch {state.epoch}) is kept in {state.folder}" if state.epoch else
            "No epoch was completed")
    finite = all(bool(p.isfinite().all()) for p in state.model.state_dict().values())
    if not np.isfinite(row["loss"]) or not finite:
        raise KitError(f"training diverged in epoch {row['epoch']}: {'a parameter' if finite is False else 'the loss'} "
                       f"is not finite (lr {row['lr']:g}). {kept}. Lower lr or eps, or raise burn_in")


def finish(crew: Sequence[State], data: DataSet) -> None:
    """A last pass over all training and test images with the finished networks."""
    found: list[dict[str, np.ndarray]] = [{} for _ in crew]
    for name, split in (("train", data.train), ("test", data.test)):
        seen = observe([state.model for state in crew], [state.plan for state in crew], split, "final")
        for arrays, mine in zip(found, seen, strict=True):
            arrays |= {f"{name}_{key}": values for key, values in mine.items()}
    for state, arrays in zip(crew, found, strict=True):
        if processes.leads():
            state.files["final.npz"] = store.save_arrays(state.folder / "final.npz", arrays)
