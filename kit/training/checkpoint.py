"""A network in training, as it stands on disk: begun, resumed, started from a sibling, saved."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from kit.core.errors import KitError
from kit.core.files import (
    file_digest,
    load_checkpoint,
    quarantine,
    save_arrays,
    save_checkpoint,
    write_bytes,
    write_json,
    write_sealed_json,
)
from kit.data.splits import DataSet
from kit.experiments.provenance import git_commit, versions
from kit.experiments.runs import Run, initial_network, read_run_record, run_folder
from kit.experiments.specification import Plan
from kit.training.optimizer import make_optimizer
from kit.training.precision import compile_network, resolve_precision

COLLAPSE_PATIENCE = 3

SNAPSHOT_COUNT = 12


@dataclass
class TrainingState:
    """A network in training: its plan, its folder, and what last.ckpt keeps.

    The checkpoint keeps all that the training needs to go on after an epoch.
    """

    plan: Plan
    folder: Path
    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    # SHA-256 of each file written so far; done.json has them all
    files: dict[str, str] = field(default_factory=dict)

    def contents(self) -> dict:
        """Return what a checkpoint keeps."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "history": self.history,
            "files": self.files,
            "key": self.plan.key,
            "burn_in_key": self.plan.burn_in_key,
        }

    def save(self, path: Path) -> str:
        """Write a checkpoint at `path`, and return its SHA-256."""
        return save_checkpoint(path, self.contents())

    def load(self, path: Path, device: torch.device) -> None:
        """Go back to the checkpoint at `path`.

        Raises:
            KitError: It is damaged, or not one of this run.
        """
        saved = load_checkpoint(path, device)
        if not self.owns(saved):
            raise KitError(f"the checkpoint {path} is not one of this run")
        self.put(saved)

    def owns(self, saved: object) -> bool:
        """Tell whether this is a state of this run, or of the burn-in that it shares."""
        if not isinstance(saved, dict) or not self.contents().keys() <= saved.keys():
            return False
        return saved["key"] == self.plan.key or (
            saved["burn_in_key"] == self.plan.burn_in_key
            and saved["epoch"] <= self.plan.shared_epochs
        )

    def put(self, saved: dict) -> None:
        """Take over the network, the optimizer and the history of a checkpoint's contents."""
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.epoch, self.history, self.files = saved["epoch"], saved["history"], saved["files"]

    def advance(self) -> None:
        """Save last.ckpt; the one that it replaces stays as previous.ckpt until the run is done."""
        last = self.folder / "last.ckpt"
        if last.exists():
            last.replace(self.folder / "previous.ckpt")
        self.save(last)

    @property
    def goes_on(self) -> bool:
        """Tell whether there is an epoch left to train: it has neither ended nor collapsed."""
        return self.epoch < self.plan.recipe.epochs and not has_collapsed(self.history)


def begin_training(
    plan: Plan,
    host_data: DataSet,
    device: torch.device,
    *,
    quiet: bool = False,
    compiled: bool = False,
    processes: int = 1,
) -> TrainingState:
    """Begin or go on with a run, as it stands on disk.

    It starts at its last checkpoint, where a sibling ended its burn-in, or at its first parameters.
    `compiled`: compile the network's passes. `processes` is how many train it, for the record.

    Raises:
        KitError: Its images have changed since it was begun.
    """
    state = initial_state(plan, host_data, device)
    compiled = compiled and compile_network(
        state.model, host_data.train.x(slice(0, plan.recipe.batch_size)).to(device)
    )
    write_run_record(plan, state.folder, host_data, device, compiled, processes)
    _resume(state, device, quiet)
    if state.epoch == 0:
        _start_from_shared_burn_in(state, device)
    return state


def initial_state(
    plan: Plan, host_data: DataSet, device: torch.device, folder: Path | None = None
) -> TrainingState:
    """Return a run at its first parameters, in its folder or another."""
    recipe, model = plan.recipe, initial_network(plan, host_data).to(device)
    optimizer = make_optimizer(model, recipe, device)
    return TrainingState(plan, folder or run_folder(plan), model, optimizer)


def write_run_record(
    plan: Plan,
    folder: Path,
    data: DataSet,
    device: torch.device,
    compiled: bool = False,
    processes: int = 1,
) -> None:
    """Write run.json at the start of a run; a resumed run must find the same images.

    Raises:
        KitError: The images have changed since it was begun.
    """
    path, fingerprint = folder / "run.json", data.fingerprint()
    if path.exists():
        before = read_run_record(folder, "run.json")
        if before["data_fingerprint"] != fingerprint:
            raise KitError(
                f"{plan.recipe.data} has changed since {folder.name} was begun; restore the "
                f"images, or delete {folder} to train afresh"
            )
        return
    gpu = device.type == "cuda"
    write_sealed_json(
        path,
        {
            "spec": plan.spec.words(),
            "kind": "adopted" if plan.spec.adopted else "trained",
            "key": plan.key,
            "config": plan.config(),
            "classes": list(data.classes),
            "data_fingerprint": fingerprint,
            "versions": versions(),
            "commit": git_commit(),
            "device": torch.cuda.get_device_name(device) if gpu else device.type,
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "processes": processes,
            "precision": resolve_precision(plan.recipe.precision, device),
            "compiled": compiled,
        },
    )


def save_epoch(state: TrainingState, kept: dict[str, np.ndarray]) -> None:
    """Write an epoch down: its arrays, the network, and last of all the checkpoint.

    Raises:
        KitError: The run's folder was deleted or moved.
    """
    plan, folder, epoch, files = state.plan, state.folder, state.epoch, state.files
    if not (folder / "run.json").exists():
        raise KitError(
            f"{folder} was deleted or moved while its run was trained. Ask for the run again to "
            "train it afresh"
        )
    row, earlier = state.history[-1], state.history[:-1]
    is_best = row["robust"] > max((before["robust"] for before in earlier), default=-1)
    network, name = {"model": state.model.state_dict(), "epoch": epoch}, f"{epoch:04d}"
    files[f"epochs/{name}.npz"] = save_arrays(folder / "epochs" / f"{name}.npz", kept)
    if is_best or "validation_y" not in kept:  # without held-out images the last epoch is the best
        files["best.ckpt"] = save_checkpoint(folder / "best.ckpt", network)
    history = pd.DataFrame(state.history).to_csv(index=False).encode()
    files["history.csv"] = write_bytes(folder / "history.csv", history)
    if is_snapshot(epoch, plan):
        snapshot = folder / "snapshots" / f"{name}.ckpt"
        files[f"snapshots/{name}.ckpt"] = save_checkpoint(snapshot, network)
    state.advance()
    if epoch == plan.burn_in:
        shutil.copyfile(folder / "best.ckpt", folder / "best-in-burn-in.ckpt")
        state.save(folder / f"burn-in-{plan.burn_in_key}.ckpt")


def save_final(state: TrainingState, arrays: dict[str, np.ndarray]) -> None:
    """Write down what the finished network shows of all images."""
    state.files["final.npz"] = save_arrays(state.folder / "final.npz", arrays)


def finish_run(state: TrainingState) -> None:
    """Write done.json, which has the checksums of all other files, and drop what is not needed."""
    last, seconds = state.history[-1], sum(row["seconds"] for row in state.history)
    files = state.files | {"last.ckpt": file_digest(state.folder / "last.ckpt")}
    record = {
        "key": state.plan.key,
        "epochs": state.epoch,
        "seconds": round(seconds, 2),
        "constant": bool(last["constant"]),
        "files": files,
    }
    write_sealed_json(state.folder / "done.json", record)
    (state.folder / "previous.ckpt").unlink(missing_ok=True)


def has_collapsed(history: list[dict[str, float]]) -> bool:
    """Tell whether a network that had learned something has come to one answer for all images.

    It must have stayed there for three epochs. Going on would cost hours and change nothing; the
    run ends there, and says so whenever it is opened.
    """
    learned = any(row["clean_seen"] > 0.5 for row in history)
    return (
        learned
        and len(history) > COLLAPSE_PATIENCE
        and all(row["constant"] for row in history[-COLLAPSE_PATIENCE:])
    )


def is_snapshot(epoch: int, plan: Plan) -> bool:
    """Tell whether the network is kept after this epoch.

    About twelve are kept, evenly spaced, and the networks where burn-in and training end.
    """
    epochs = plan.recipe.epochs
    return epoch % -(-epochs // SNAPSHOT_COUNT) == 0 or epoch in (plan.burn_in, epochs)


def _start_from_shared_burn_in(state: TrainingState, device: torch.device) -> None:
    """Begin where a run that differs in its weights alone ended its burn-in, if there is one.

    So nothing is trained twice: its epochs are this run's epochs, bit for bit. If anything is
    missing or damaged there, or its images are others, training starts from epoch 1.
    """
    plan, folder = state.plan, state.folder
    for checkpoint in sorted(folder.parent.glob(f"*/burn-in-{plan.burn_in_key}.ckpt")):
        sibling = checkpoint.parent
        try:
            saved = load_checkpoint(checkpoint, device)
            if (
                not state.owns(saved)
                or read_run_record(sibling, "run.json")["data_fingerprint"]
                != read_run_record(folder, "run.json")["data_fingerprint"]
            ):
                continue
            numbers = range(1, saved["epoch"] + 1)
            names = [f"epochs/{number:04d}.npz" for number in numbers]
            names += [
                f"snapshots/{number:04d}.ckpt" for number in numbers if is_snapshot(number, plan)
            ]
            sources = {name: sibling / name for name in names} | {
                "best.ckpt": sibling / "best-in-burn-in.ckpt"
            }
            if any(file_digest(path) != saved["files"].get(name) for name, path in sources.items()):
                continue
        except KitError:
            continue
        state.put(saved)
        state.files = {
            name: write_bytes(folder / name, path.read_bytes()) for name, path in sources.items()
        }
        state.files["branched.json"] = write_json(
            folder / "branched.json", {"from": sibling.name, "epoch": state.epoch}
        )
        return


def _resume(state: TrainingState, device: torch.device, quiet: bool) -> None:
    """Load the last checkpoint that is whole.

    A damaged one is quarantined; training goes on from the one before it, or afresh, which gives
    the same end.
    """
    for path in (state.folder / "last.ckpt", state.folder / "previous.ckpt"):
        if path.exists():
            try:
                state.load(path, device)
                return
            except KitError as error:
                kept = quarantine(path)
                if not quiet:
                    print(
                        f"{error}; kept as {kept.name}, training goes on from an earlier epoch",
                        flush=True,
                    )


def align_epochs(states: Sequence[TrainingState], device: torch.device) -> None:
    """Bring networks that are trained as one program to one epoch.

    They were interrupted while they were saved. Those ahead by one epoch go back by it, so that all
    repeat it together and end bit for bit as if nothing had happened.
    """
    least = min(state.epoch for state in states)
    for state in states:
        path = state.folder / "previous.ckpt"
        if state.epoch == least + 1 and path.exists() and load_checkpoint(path)["epoch"] == least:
            state.load(path, device)


def run_warning(run: Run) -> str:
    """Say what to know before using a finished run; "" if nothing."""
    if not run.learned_nothing:
        return ""
    history = run.history
    since = len(history) - int(history.constant[::-1].cumprod().sum()) + 1
    fell = has_collapsed(history.to_dict("records"))
    state = f"it collapsed in epoch {since} and was stopped" if fell else "it has learned nothing"
    return f". WARNING: {state}, every image gets the same class. Lower lr or eps, or raise burn_in"
