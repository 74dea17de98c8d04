"""A `Run`, the handle on the folder of one training, and what its files hold.

run.json                settings, names, versions
history.csv             one line an epoch
epochs/0001.npz         logits after that epoch
last.ckpt, best.ckpt    network (and optimizer)
final.npz               a pass over all images at the end
done.json               written last, with all checksums

A network that was trained elsewhere and adopted has no history, and one epoch: its state as it is.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from kit.core.environment import output_choice
from kit.core.errors import KitError
from kit.core.files import file_digest, home, load_arrays, load_checkpoint, read_sealed_json
from kit.data.datasets import load_dataset
from kit.data.splits import DataSet
from kit.experiments.specification import REVISION, Plan, RunSpec, resolve
from kit.models.architectures import build_network


@lru_cache(maxsize=4)
def cached_dataset(name: str, validation: int, train_size: int, home: Path) -> DataSet:
    """Take `load_dataset`, remembered: the notebooks of a process share one copy.

    `home` is part of the key.
    """
    return load_dataset(name, validation=validation, train_size=train_size, root=home / "data")


def open_dataset(plan: Plan) -> DataSet:
    """Return the images that a plan trains and tests on.

    Raises:
        KitError: They cannot be read, or lack the generated ones of which batches take a share.
    """
    r = plan.recipe
    found = cached_dataset(r.data, r.validation, r.train_size, home())
    return found.separate_generated() if r.generated_share else found


def observed_images(plan: Plan, dataset: DataSet) -> DataSet:
    """Return the images of a plan's run: all, or the first ones if it is of an adopted network."""
    if not plan.spec.adopted:
        return dataset
    first = slice(0, plan.spec.adopted["images"])
    names = ("train", "validation", "test")
    return replace(dataset, **{name: getattr(dataset, name).take(first) for name in names})


def initial_network(plan: Plan, dataset: DataSet) -> nn.Module:
    """Build the plan's network at its initial parameters.

    Raises:
        KitError: `mean_std` does not have a mean and a deviation for each channel.
    """
    given, channels = plan.recipe.mean_std, dataset.shape[0]
    if given and len(given) != 2 * channels:
        raise KitError(
            f"mean_std={list(given)} has {len(given)} numbers; {plan.recipe.data} has {channels} "
            f"channel(s), so it must have {2 * channels}: a mean a channel, then a deviation a "
            "channel"
        )
    normalise = dataset.mean_std() if plan.recipe.normalise else None
    if given:
        normalise = torch.tensor(given[:channels]), torch.tensor(given[channels:])
    return build_network(
        plan.recipe.model, dataset.shape, len(dataset.classes), seed=plan.seed, normalise=normalise
    )


@dataclass(frozen=True)
class Run:
    """A trained run: `spec` is the name it was asked for by, `folder` where its files are."""

    spec: RunSpec
    folder: Path

    @cached_property
    def plan(self) -> Plan:
        """Its resolved specification."""
        return resolve(self.spec)

    @property
    def key(self) -> str:
        """The 12 hex digits of its settings."""
        return self.plan.key

    @property
    def method(self) -> str:
        """The name of its method."""
        return self.spec.method

    @property
    def learned_nothing(self) -> bool:
        """Whether every image gets the same class, so that nothing can be judged by it."""
        return bool(self.done["constant"])

    @property
    def is_adopted(self) -> bool:
        """Tell whether the network was trained elsewhere (`kit.adopt`)."""
        return bool(self.spec.adopted)

    def __repr__(self) -> str:
        if self.is_adopted:
            done = self.done
            return (
                f"Run({self.spec}; clean {done['clean']:.1%}, robust {done['robust']:.1%}; "
                f"{self.key})"
            )
        last = self.history.iloc[-1]
        return (
            f"Run({self.spec}; {len(self.history)} epochs; held-out clean {last.clean:.1%}, "
            f"robust {last.robust:.1%}; {self.key})"
        )

    @cached_property
    def record(self) -> dict:
        """What run.json says: settings, versions, device, fingerprint of the data."""
        return read_run_record(self.folder, "run.json")

    @cached_property
    def done(self) -> dict:
        """What done.json says: seconds, epochs, and the SHA-256 of every file."""
        return read_run_record(self.folder, "done.json")

    def file(self, name: str) -> Path:
        """Return the path of one of its files.

        Raises:
            KitError: The training is done, and the file is not what it wrote.
        """
        path = self.folder / name
        if is_done(self.folder) and file_digest(path) != read_run_record(self.folder, "done.json")[
            "files"
        ].get(name):
            raise KitError(
                f"{path} is damaged, or is not what the training wrote; restore it, or delete "
                f"{self.folder} to train again"
            )
        return path

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row an epoch.

        Its columns are loss, clean and robust accuracy of the held-out probe, mean weight, seconds,
        ...

        Raises:
            KitError: The run was adopted, or its file is damaged.
        """
        self.check_trained_here("a history of its epochs")
        return pd.read_csv(self.file("history.csv"))

    @cached_property
    def epochs(self) -> int:
        """The number of epochs that are stored; the last one is the network as it is now."""
        return 1 if self.is_adopted else len(self.history)

    def check_trained_here(self, needed: str) -> None:
        """Refuse an adopted run, of whose training nothing is known.

        Raises:
            KitError: The run was adopted; the error names what is `needed`.
        """
        if self.is_adopted:
            raise KitError(
                f"{self.spec}: this needs {needed}, and an adopted network was trained elsewhere. "
                f"Take a run that was trained here (python -m kit train METHOD --recipe "
                f"{self.spec.recipe}), or ask about the network as it is"
            )

    def check_revision(self) -> None:
        """Refuse a run that another revision of the training made: its numbers do not mix.

        Raises:
            KitError: It names the run, both revisions, and what to do.
        """
        made = self.record["config"]["revision"]
        if made != REVISION:
            raise KitError(
                f"{self.folder.name} ({self.spec}) was trained by revision {made} of the kit's "
                f"training, and this is revision {REVISION}: their numbers do not mix. Train it "
                f"again: python -m kit train {self.method} --recipe {self.spec.recipe} --seed "
                f"{self.spec.seed}; then draw what rests on it again"
            )

    def moment(self, epoch: int) -> str:
        """Say which state of the network an epoch is, such as "after epoch 3"."""
        return "as adopted" if self.is_adopted else f"after epoch {epoch}"

    def data(self) -> DataSet:
        """Open its data set: of an adopted run, the images that it was observed on.

        Raises:
            KitError: The images are not those that it was trained on.
        """
        found = open_dataset(self.plan)
        if found.fingerprint() != self.record["data_fingerprint"]:
            raise KitError(
                f"{self.plan.recipe.data} has changed since {self.folder.name} was trained on it; "
                f"restore the images, or delete {self.folder} to train again"
            )
        return observed_images(self.plan, found)

    @cached_property
    def snapshots(self) -> list[int]:
        """The epochs after which the network was kept, about twelve.

        They are for learning curves under any attack.
        """
        return sorted(
            int(path.stem)
            for path in (self.folder / "snapshots").glob("*.ckpt")
            if path.stem.isdecimal()
        )

    def model(self, which: str | int = "last", device: torch.device | str = "cpu") -> nn.Module:
        """Load its network in eval mode.

        `which` is last, best (on the held-out images), initial, or an epoch in `snapshots`.

        Raises:
            KitError: There is no such network, or its file is damaged.
        """
        if which == "initial":
            self.check_trained_here("the network at its initial parameters")
        if which not in ("last", "best", "initial", *self.snapshots) or isinstance(which, bool):
            kept = ", ".join(map(str, self.snapshots)) or "none"
            raise KitError(
                f"{self.spec} has no network {which!r}. Choices: last, best, initial, or an epoch "
                f"that was kept: {kept}"
            )
        net = initial_network(self.plan, self.data())
        if which != "initial":
            name = f"{which}.ckpt" if isinstance(which, str) else f"snapshots/{which:04d}.ckpt"
            state = load_checkpoint(self.file(name))["model"]
            try:
                net.load_state_dict(state)
            except RuntimeError as error:  # names or shapes
                raise KitError(
                    f"kit.MODELS['{self.plan.recipe.model}'] builds another network than that of "
                    f"{self.spec}; give the row back the function that it was made with"
                ) from error
        return net.to(device).eval()

    def epoch(self, number: int) -> dict[str, np.ndarray]:
        """Load what was stored after epoch `number` (1-based).

        The names are those of `kit.training.observation.observe_split`.

        Raises:
            KitError: There is no such epoch, or its file is damaged.
        """
        if not 1 <= number <= self.epochs:
            raise KitError(f"{self.folder.name} has epochs 1 to {self.epochs}, not {number}")
        return load_arrays(self.file(f"epochs/{number:04d}.npz"))

    @cached_property
    def final(self) -> dict[str, np.ndarray]:
        """The pass over all images with the finished network.

        The names are those of `epoch`; all training images are included.
        """
        return load_arrays(self.file("final.npz"))


def run_of(plan: Plan) -> Run:
    """Return the handle of a plan's run, whose spec is not resolved again."""
    found = Run(plan.spec, run_folder(plan))
    vars(found)["plan"] = plan  # where `cached_property` keeps it
    return found


def run_folder(plan: Plan) -> Path:
    """Return the folder of a plan's run, whether it is there or not."""
    return runs_folder() / plan.folder_name


def is_done(folder: Path) -> bool:
    """Tell whether the training in a run's folder came to its end; done.json is written last."""
    return (folder / "done.json").exists()


def read_run_record(folder: Path, name: str) -> dict:
    """Read run.json or done.json of a run's folder.

    Raises:
        KitError: The file was altered, or is another run's.
    """
    record = read_sealed_json(folder / name)
    if not folder.name.endswith(f"-{record.get('key')}"):
        raise KitError(
            f"{folder / name} is of the run {record.get('key')}; restore it, or delete {folder} to "
            f"train again"
        )
    return record


def find_run(key: str) -> Run:
    """Return the stored run whose key or folder begins with `key`.

    Raises:
        KitError: None or several do; it names those that there are.
    """
    matches = [
        f
        for f in run_folders()
        if f.name.startswith(key) or f.name.rsplit("-", 1)[-1].startswith(key)
    ]
    if len(matches) != 1:
        have = ", ".join(f.name for f in run_folders()) or "none yet"
        raise KitError(f"{len(matches) or 'no'} stored runs match '{key}'. Runs: {have}")
    return Run(RunSpec(**read_run_record(matches[0], "run.json")["spec"]), matches[0])


def runs_folder() -> Path:
    """Return the folder in which all runs are."""
    return home() / "data" / "runs"


def run_folders() -> list[Path]:
    """Return every run folder, oldest first by name; a folder without run.json is none."""
    root = runs_folder()
    return sorted(path.parent for path in root.glob("*/run.json")) if root.is_dir() else []


def count_runs_by_seed(recipe: str) -> dict[int, int]:
    """{seed: how many runs of it were begun on a recipe}, in order of the seeds."""
    found: Counter[int] = Counter()
    for folder in run_folders():
        with contextlib.suppress(KitError):  # what is damaged has no seed to tell
            spec = read_run_record(folder, "run.json")["spec"]
            if spec["recipe"] == recipe:
                found[spec["seed"]] += 1
    return dict(sorted(found.items()))


def stored_seeds(recipe: str) -> list[int]:
    """Return the seeds of the runs that were begun on a recipe, in order."""
    return list(count_runs_by_seed(recipe))


def output_folder(recipe: str) -> Path:
    """Return where the pictures and stamps of a recipe go: KIT_OUT, else figures/out/<recipe>/."""
    name = re.sub(r"[^\w.-]+", "-", recipe).strip("-")
    return output_choice() or home() / "figures" / "out" / name
