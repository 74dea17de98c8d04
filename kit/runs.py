"""A `Run` is a handle on the folder of one training: its network, its history, what it saw of every example.

    run.json           settings, names, versions            last.ckpt, best.ckpt   network (and optimiser)
    history.csv        one line an epoch                    epochs/0001.npz        logits after that epoch
    final.npz          a pass over all images at the end    done.json              written last, with all checksums
"""

from __future__ import annotations

import contextlib
import contextvars
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from kit import data, models, store
from kit.spec import Plan, RunSpec, resolve
from kit.types import KitError


def device(name: str = "auto") -> torch.device:
    """auto is CUDA where there is one, then Apple's MPS, then the CPU. `KitError` for one that is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if there[kind]))
    kind = name.split(":")[0]
    if kind not in there:
        raise KitError(f"there is no device '{name}'. Choices: auto, cpu, cuda, mps")
    if not there[kind]:
        raise KitError(f"device={name}: this machine has no {kind} that PyTorch can use; take cpu or auto")
    return torch.device(name)


@lru_cache(maxsize=4)
def load_data(name: str, validation: int, train_size: int, home: Path) -> data.DataSet:
    """`data.load`, remembered: the notebooks of a process share one copy. `home` is part of the key."""
    return data.load(name, validation=validation, train_size=train_size, root=home / "data")


def dataset(plan: Plan) -> data.DataSet:
    r = plan.recipe
    return load_data(r.data, r.validation, r.train_size, store.home())


def build_model(plan: Plan, dataset: data.DataSet) -> nn.Module:
    """The plan's network at its initial parameters."""
    normalise = dataset.mean_std() if plan.recipe.normalise else None
    return models.build(plan.recipe.model, dataset.shape, len(dataset.classes), seed=plan.seed, normalise=normalise)


@contextlib.contextmanager
def threads_for(model_name: str, device: torch.device) -> Iterator[None]:
    """Small networks run fastest on one thread, and then do not depend on how many there are. See `spare_threads`."""
    before = torch.get_num_threads()
    alone = device.type == "cpu" and model_name in models.SMALL
    token = _SIDE_BY_SIDE.set(max(before, _SIDE_BY_SIDE.get()) if alone else 1)
    if alone:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        _SIDE_BY_SIDE.reset(token)
        torch.set_num_threads(before)


_SIDE_BY_SIDE: contextvars.ContextVar[int] = contextvars.ContextVar("_SIDE_BY_SIDE", default=1)


def spare_threads() -> int:
    """How many threads may work side by side: as many as PyTorch had where `threads_for` took it down to one, else 1."""
    return _SIDE_BY_SIDE.get()


def versions() -> dict[str, str]:
    return {"kit": "0.1.0", "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


@lru_cache(maxsize=1)
def commit() -> str:
    """The checkout's git commit, "+" behind it if files were changed, "" outside a checkout."""
    def git(*words: str) -> str:
        try:
            return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True,
                                  timeout=10, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ""
    head = git("rev-parse", "--short=12", "HEAD")
    return head + ("+" if head and git("status", "--porcelain", "--untracked-files=no") else "")


@dataclass(frozen=True)
class Run:
    """A trained run. `spec` is the name it was asked for by, `folder` where it lives."""

    spec: RunSpec
    folder: Path

    @cached_property
    def plan(self) -> Plan:
        return resolve(self.spec)

    @property
    def key(self) -> str:
        return self.plan.key

    @property
    def method(self) -> str:
        return self.spec.method

    def __repr__(self) -> str:
        last = self.history.iloc[-1]
        return (f"Run({self.spec}; {len(self.history)} epochs; held-out clean {last.clean:.1%}, "
                f"robust {last.robust:.1%}; {self.key})")

    @cached_property
    def record(self) -> dict:
        """run.json: settings, versions, device, fingerprint of the data."""
        return read_record(self.folder, "run.json")

    @cached_property
    def done(self) -> dict:
        """done.json: seconds, epochs, and the SHA-256 of every file."""
        return read_record(self.folder, "done.json")

    def file(self, name: str) -> Path:
        """The path of one of its files. Once the training is done, `KitError` unless it is what the training wrote."""
        path = self.folder / name
        if is_done(self.folder) and store.digest(path) != read_record(self.folder, "done.json")["files"].get(name):
            raise KitError(f"{path} is damaged, or not what the training wrote; restore it, or delete {self.folder} to "
                           "train again")
        return path

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row an epoch: loss, clean and robust accuracy of the held-out probe, mean weight, seconds, ..."""
        return pd.read_csv(self.file("history.csv"))

    def data(self) -> data.DataSet:
        """Its data set. `KitError` if the images are not those it was trained on."""
        found = dataset(self.plan)
        if found.fingerprint() != self.record["data_fingerprint"]:
            raise KitError(f"{self.plan.recipe.data} has changed since {self.folder.name} was trained on it; restore the "
                           f"images, or delete {self.folder} to train again")
        return found

    @cached_property
    def snapshots(self) -> list[int]:
        """The epochs after which the network was kept, for learning curves under any attack; about twelve."""
        return sorted(int(path.stem) for path in (self.folder / "snapshots").glob("*.ckpt")
                      if path.stem.isdecimal())

    def model(self, which: str | int = "last", device: torch.device | str = "cpu") -> nn.Module:
        """The network in eval mode; `which` is last, best (on the held-out images), initial, or an epoch in `snapshots`."""
        if which not in ("last", "best", "initial", *self.snapshots) or isinstance(which, bool):
            kept = ", ".join(map(str, self.snapshots)) or "none"
            raise KitError(f"{self.spec} has no network {which!r}. Choices: last, best, initial, or an epoch that was kept: "
                           f"{kept}")
        net = build_model(self.plan, self.data())
        if which != "initial":
            name = f"{which}.ckpt" if isinstance(which, str) else f"snapshots/{which:04d}.ckpt"
            net.load_state_dict(store.load(self.file(name))["model"])
        return net.to(device).eval()

    def epoch(self, number: int) -> dict[str, np.ndarray]:
        """What was stored after epoch `number` (1-based); the names are those of `kit.train.observe`."""
        if not 1 <= number <= len(self.history):
            raise KitError(f"{self.folder.name} has epochs 1 to {len(self.history)}, not {number}")
        return store.load_arrays(self.file(f"epochs/{number:04d}.npz"))

    @cached_property
    def final(self) -> dict[str, np.ndarray]:
        """The pass over all images with the finished network; names as in `epoch`, all training images included."""
        return store.load_arrays(self.file("final.npz"))


def folder_of(plan: Plan) -> Path:
    return store.runs_folder() / plan.folder_name


def is_done(folder: Path) -> bool:
    """Did the training in a run's folder come to its end? done.json is written last."""
    return (folder / "done.json").exists()


def read_record(folder: Path, name: str) -> dict:
    """run.json or done.json of a run's folder. `KitError` if it was altered or is another run's."""
    record = store.read_sealed(folder / name)
    if not folder.name.endswith(f"-{record.get('key')}"):
        raise KitError(f"{folder / name} is of the run {record.get('key')}; restore it, or delete {folder} to train again")
    return record


def find(key: str) -> Run:
    """The stored run whose key or folder begins with `key`. `KitError` if none or several do."""
    matches = [f for f in store.run_folders() if f.name.startswith(key) or f.name.rsplit("-", 1)[-1].startswith(key)]
    if len(matches) != 1:
        have = ", ".join(f.name for f in store.run_folders()) or "none yet"
        raise KitError(f"{len(matches) or 'no'} stored runs match '{key}'. Runs: {have}")
    return Run(RunSpec(**read_record(matches[0], "run.json")["spec"]), matches[0])
