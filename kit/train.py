"""The one loop. `run` trains, resumes or opens; `fit` is the loop over epochs; `kit.minibatch.step` is one step.

Every random number comes from a stream named after the seed, its purpose and the epoch (and per example its id),
so a run that was interrupted continues from its last checkpoint and ends bit for bit as if it had not been.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from kit import regularisers, store
from kit.attacks import Path, frozen, pgd
from kit.data import DataSet, Split, augment
from kit.functional import cross_entropy
from kit.minibatch import step
from kit.precision import chosen
from kit.progress import Progress, duration
from kit.runs import Run, build_model, commit, dataset, folder_of, threads_for, versions
from kit.runs import device as pick_device
from kit.spec import Plan, RunSpec, resolve
from kit.types import KitError, Seen, Streams, generator, part
from kit.weights import check_weights

#: What looks at a network after each epoch, the same for every method: the recipe's steps, from beside the image.
PROBE = part(pgd, loss="ce", init="gaussian")
PROBE_BATCH = 256
COLLAPSE_PATIENCE = 3
SNAPSHOTS = 12


def run(method: str | RunSpec, recipe: str = "digits", seed: int = 0, *, overrides: Mapping[str, Any] | None = None,
        device: str = "auto", quiet: bool = False) -> Run:
    """Train `method` on `recipe`, or resume it, or open it if it is finished; asking again costs nothing.

    Give names, or one `RunSpec`. `overrides` changes numbers by name, say {"weight.slope": 5.0, "epochs": 30}. A run
    that another process is training is waited for. Errors: `KitError` for an unknown name or unfit value (before
    anything is trained), unreadable data, or a training that diverges; its last good checkpoint is kept.
    """
    spec = method if isinstance(method, RunSpec) else RunSpec(method, recipe, seed, dict(overrides or {}))
    plan = resolve(spec)
    where = pick_device(device)
    folder = folder_of(plan)
    if not (folder / "done.json").exists():
        with store.lock(folder, lambda: print(f"{spec}: another process is training it; waiting", flush=True)):
            if not (folder / "done.json").exists():
                fit(plan, folder, where, quiet=quiet)
                return Run(spec, folder)
    opened = Run(spec, folder)
    if not quiet:
        print(f"{spec}: opened, trained in {duration(opened.done['seconds'])} ({plan.key}){warning(opened)}", flush=True)
    return opened


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

def train_epoch(model: nn.Module, optimiser: torch.optim.Optimizer, plan: Plan, split: Split,
                epoch: int) -> tuple[float, dict[str, np.ndarray]]:
    """One pass over the training images. -> mean loss, and what the last stage of each step saw, in split order.

    The arrays are counted on the fly: the network moves from batch to batch, and its batch norms use batch statistics.
    """
    recipe, seed, method = plan.recipe, plan.seed, plan.method.at(epoch, plan.recipe.epochs)
    order = torch.randperm(len(split), generator=generator(seed, "order", epoch)).to(split.y.device)
    kept, losses = [], []
    for rows in order.split(recipe.batch_size):
        ids, y = split.ids[rows], split.y[rows]
        x = augment(split.x(rows), recipe.augment, Streams(ids, seed, "augment", epoch))
        for attacked in method.stages(epoch, recipe.epochs):
            done = step(model, optimiser, method, recipe, x, y, Streams(ids, seed, "attack", epoch), attacked=attacked,
                        reweighted=method.reweights and epoch > plan.burn_in)
            losses.append(done.loss)
        kept.append(_record(done.seen) | {"weight": done.weights})
    back = order.argsort()
    arrays = {name: _array(torch.cat([k[name] for k in kept])[back]) for name in kept[0]}
    return float(torch.stack(losses).mean()), arrays


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


def observe(model: nn.Module, plan: Plan, split: Split, purpose: str) -> dict[str, np.ndarray]:
    """Clean and attacked logits (n, K), kappa, lps, p_flip, y and ids (n,) of a split, with a frozen network.

    The attack is `PROBE` with the recipe's threat and steps. Its random start depends on seed, purpose and image id.
    """
    recipe, kept = plan.recipe, []
    with frozen(model):
        for rows in torch.arange(len(split), device=split.y.device).split(PROBE_BATCH):
            x, y, path = split.x(rows), split.y[rows], Path(split.y[rows], recipe.steps)
            x_adv = PROBE(model, x, y, recipe.threat, generator=Streams(split.ids[rows], plan.seed, purpose), watch=path,
                          validate=False, steps=recipe.steps, step_size=recipe.step * recipe.eps)
            with torch.no_grad():
                nat, adv = model(x), model(x_adv)
            p_last = adv.softmax(dim=1).gather(1, y[:, None]).squeeze(1)
            p_flip = path.p_flip.where(path.lps < recipe.steps, p_last)
            kept.append(_record(Seen(y, adv, nat, kappa=path.kappa, lps=path.lps, p_flip=p_flip)))
    arrays = {name: _array(torch.cat([k[name] for k in kept])) for name in kept[0]}
    return arrays | {"y": _array(split.y), "ids": split.ids.cpu().numpy()}


def accuracies(arrays: dict[str, np.ndarray]) -> tuple[float, float]:
    """(clean, robust) accuracy of what `observe` returned; a NaN is never correct."""
    def right(logits: np.ndarray) -> float:
        return float(((logits.argmax(1) == arrays["y"]) & np.isfinite(logits).all(1)).mean())
    return right(arrays["logits_nat"]), right(arrays["logits_adv"])


# ---------------------------------------------------------------------------------------------- the loop

@dataclass
class State:
    """All that a run needs to go on after an epoch; what is saved in last.ckpt."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    epoch: int
    history: list[dict[str, float]]

    def save(self, path: FilePath) -> None:
        store.save(path, {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(),
                          "epoch": self.epoch, "history": self.history})

    def load(self, path: FilePath, device: torch.device) -> None:
        saved = store.load(path, device)
        self.model.load_state_dict(saved["model"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.epoch, self.history = saved["epoch"], saved["history"]


def fit(plan: Plan, folder: FilePath, device: torch.device, *, quiet: bool = False) -> None:
    """Train `plan` in `folder` from its last checkpoint, or from the start, to done.json. The caller holds the lock."""
    recipe, started = plan.recipe, time.monotonic()
    chosen(recipe.precision, device)     # refuses what the device has not
    host_data = dataset(plan)
    if recipe.batch_size > len(host_data.train):
        raise KitError(f"batch_size={recipe.batch_size} is larger than the {len(host_data.train)} training images of "
                       f"{recipe.data}; it must be 1 to {len(host_data.train)}")
    data, model = host_data.to(device), build_model(plan, host_data).to(device)
    optimiser = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum,
                                weight_decay=recipe.weight_decay)
    state = State(model, optimiser, 0, [])
    _describe(plan, folder, host_data, device)
    _resume(state, folder, device, quiet)
    if state.epoch == 0:
        _branch(state, plan, folder, device)
    progress = Progress(str(plan.spec), recipe.epochs, done=state.epoch, quiet=quiet)
    with threads_for(recipe.model, device):
        while state.epoch < recipe.epochs and not collapsed(state.history):
            epoch_of(state, plan, data, folder)
            last = state.history[-1]
            progress.update(state.epoch, f"loss {last['loss']:.3f}  clean {last['clean']:.1%}  robust {last['robust']:.1%}")
        finish(state, plan, data, folder)
    seconds = sum(row["seconds"] for row in state.history)
    last = state.history[-1]
    store.write_json(folder / "done.json", {"epochs": state.epoch, "seconds": round(seconds, 2),
                                            "constant": bool(last["constant"])})
    progress.close(f"trained {state.epoch} epochs in {duration(time.monotonic() - started)}: held-out clean "
                   f"{last['clean']:.1%}, robust {last['robust']:.1%} ({plan.key}){warning(Run(plan.spec, folder))}")


def epoch_of(state: State, plan: Plan, data: DataSet, folder: FilePath) -> None:
    """One epoch: train, look at the probes, refuse a sick network, save. A crash before the save repeats it all."""
    recipe, epoch, started = plan.recipe, state.epoch + 1, time.monotonic()
    rate = recipe.lr * recipe.lr_factor ** sum(epoch > milestone for milestone in recipe.milestones)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    loss, arrays = train_epoch(state.model, state.optimiser, plan, data.train, epoch)
    weigher = plan.method.weight or plan.method.select
    check_weights(torch.from_numpy(arrays["weight"]), f"{plan.spec.method}, epoch {epoch}: {weigher}")
    row = {"epoch": epoch, "lr": rate, "loss": loss, "weight": float(arrays["weight"].mean(dtype=np.float64))}
    row["ce"] = float(cross_entropy(torch.from_numpy(arrays["logits_adv"]).float(), data.train.y.cpu()).mean())
    kept = {f"train_{name}": values for name, values in arrays.items()}
    for name, split in (("seen", data.train), ("validation", data.validation), ("test", data.test)):
        if len(split):
            probe = observe(state.model, plan, split.take(slice(0, recipe.probe)), "probe")
            row[f"clean_{name}"], row[f"robust_{name}"] = accuracies(probe)
            kept |= {f"{name}_{key}": values for key, values in probe.items()}
    held_out = "validation" if len(data.validation) else "test"
    row |= {"clean": row[f"clean_{held_out}"], "robust": row[f"robust_{held_out}"]}
    with torch.no_grad():
        row |= {f"fuzziness.{layer}": float(regularisers.fuzziness(w))
                for layer, w in regularisers.conv_weights(state.model).items()}
    row["constant"] = float(len(np.unique(kept["seen_logits_nat"].argmax(1))) == 1)
    row["seconds"] = time.monotonic() - started
    check_health(state, row, folder)
    state.epoch = epoch
    state.history.append(row)
    store.save_arrays(folder / "epochs" / f"{epoch:04d}.npz", kept)
    best = not len(data.validation) or row["robust"] > max((r["robust"] for r in state.history[:-1]), default=-1)
    if best:
        store.save(folder / "best.ckpt", {"model": state.model.state_dict(), "epoch": epoch})
    store.write(folder / "history.csv", pd.DataFrame(state.history).to_csv(index=False).encode())
    if is_snapshot(epoch, plan):
        store.save(folder / "snapshots" / f"{epoch:04d}.ckpt", {"model": state.model.state_dict(), "epoch": epoch})
    state.save(folder / "last.ckpt")
    if epoch == plan.burn_in:
        shutil.copyfile(folder / "best.ckpt", folder / "best-in-burn-in.ckpt")
        state.save(folder / f"burn-in-{plan.trunk}.ckpt")


def is_snapshot(epoch: int, plan: Plan) -> bool:
    """Is the network kept after this epoch? About twelve are, evenly spaced, and those where burn-in and training end."""
    epochs = plan.recipe.epochs
    return epoch % -(-epochs // SNAPSHOTS) == 0 or epoch in (plan.burn_in, epochs)


def _branch(state: State, plan: Plan, folder: FilePath, device: torch.device) -> None:
    """Begin where a run that differs in its weights alone ended its burn-in, if there is one: nothing is trained twice.

    Its epochs are this run's epochs, bit for bit. Anything missing or damaged there, and training starts from epoch 1.
    """
    for checkpoint in sorted(folder.parent.glob(f"*/burn-in-{plan.trunk}.ckpt")):
        try:
            reached = store.load(checkpoint)["epoch"]
            if reached > plan.trunk_epochs:
                continue
            numbers = range(1, reached + 1)
            epochs = [f"epochs/{number:04d}.npz" for number in numbers]
            snapshots = [f"snapshots/{number:04d}.ckpt" for number in numbers if is_snapshot(number, plan)]
            for name in epochs:
                store.load_arrays(checkpoint.parent / name)
            for name in snapshots:
                store.load(checkpoint.parent / name)
            best = store.load(checkpoint.parent / "best-in-burn-in.ckpt")
        except KitError:
            continue
        for name in epochs + snapshots:
            store.write(folder / name, (checkpoint.parent / name).read_bytes())
        store.save(folder / "best.ckpt", best)
        state.load(checkpoint, device)
        store.write_json(folder / "branched.json", {"from": checkpoint.parent.name, "epoch": state.epoch})
        return


def check_health(state: State, row: dict[str, float], folder: FilePath) -> None:
    """`KitError` for a loss or parameter that is no number."""
    kept = (f"The last good checkpoint (epoch {state.epoch}) is kept in {folder}" if state.epoch else
            "No epoch was completed")
    finite = all(bool(p.isfinite().all()) for p in state.model.state_dict().values())
    if not np.isfinite(row["loss"]) or not finite:
        raise KitError(f"training diverged in epoch {row['epoch']}: {'a parameter' if finite is False else 'the loss'} "
                       f"is not finite (lr {row['lr']:g}). {kept}. Lower lr or eps, or raise burn_in")


def collapsed(history: list[dict[str, float]]) -> bool:
    """Did a network that had learned something come to one answer for all images, and stay there for three epochs? Going on
    would cost hours and change nothing; the run ends there, and says so whenever it is opened."""
    learned = any(row["clean_seen"] > 0.5 for row in history)
    return learned and len(history) > COLLAPSE_PATIENCE and all(row["constant"] for row in history[-COLLAPSE_PATIENCE:])


def finish(state: State, plan: Plan, data: DataSet, folder: FilePath) -> None:
    """A last pass over all training and test images with the finished network."""
    arrays = {}
    for name, split in (("train", data.train), ("test", data.test)):
        arrays |= {f"{name}_{key}": values for key, values in observe(state.model, plan, split, "final").items()}
    store.save_arrays(folder / "final.npz", arrays)


def _describe(plan: Plan, folder: FilePath, data: DataSet, device: torch.device) -> None:
    """run.json, written at the start; a resumed run must find the same images."""
    path, fingerprint = folder / "run.json", data.fingerprint()
    if path.exists():
        before = store.read_json(path)
        if before["data_fingerprint"] != fingerprint:
            raise KitError(f"{plan.recipe.data} has changed since {folder.name} was begun; restore the images, or delete "
                           f"{folder} to train afresh")
        return
    spec = plan.spec
    store.write_json(path, {
        "spec": {"method": spec.method, "recipe": spec.recipe, "seed": spec.seed, "overrides": dict(spec.overrides)},
        "key": plan.key, "config": plan.config(), "classes": list(data.classes), "data_fingerprint": fingerprint,
        "versions": versions(), "commit": commit(), "device": _device_name(device), "threads": torch.get_num_threads(),
        "precision": chosen(plan.recipe.precision, device)})


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _resume(state: State, folder: FilePath, device: torch.device, quiet: bool) -> None:
    """Load last.ckpt if it is there. A damaged one is set aside and the run starts afresh, which gives the same end."""
    path = folder / "last.ckpt"
    if not path.exists():
        return
    try:
        state.load(path, device)
    except KitError as error:
        kept = store.set_aside(path)
        if not quiet:
            print(f"{error}; kept as {kept.name}, training starts again from the first epoch", flush=True)

