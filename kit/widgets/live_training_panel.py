"""A network that trains while one watches: loss, accuracies and weights, epoch by epoch."""

from __future__ import annotations

import json
from asyncio import Task
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from kit.core.errors import KitError
from kit.core.files import load_arrays
from kit.experiments.specification import RunSpec, resolve
from kit.figures import style as s
from kit.widgets.child_process import Training, while_busy
from kit.widgets.controls import Action, Choice, Number
from kit.widgets.panel import Panel, attended

#: One method a paper, to choose from; the one that was asked for comes first.
OFFERED_METHODS = (
    "at",
    "trades",
    "mart",
    "gairat",
    "mail-at",
    "clirat",
    "vir-at",
    "mr-mail",
    "csa",
    "cse",
)

#: Weights are counted in quarters of a decade; what lies outside is counted in the first and the
#: last bar.
WEIGHT_EDGES = np.logspace(-4, 2, 25)

CHANCE_LOSS = float(np.log(10))  # of ten classes that are all alike

LONGEST = 120  # epochs that the slider offers

LABEL_GAP = 0.09  # of the accuracy axis, between the two labels


# -------------------------------------------------------------------------------- what it computes


@dataclass(frozen=True)
class WeightSpread:
    """How the weights of one epoch spread over the training images."""

    shares: np.ndarray  # (24,) the share of the images between each pair of WEIGHT_EDGES
    heaviest: float | None  # share of the weight on the heaviest tenth; None where all are 0


def read_weights(folder: Path, epoch: int) -> WeightSpread:
    """The spread of the weights that a run stored after an epoch; epoch 0 has none."""
    if not epoch:
        return WeightSpread(np.zeros(24), None)
    arrays = load_arrays(folder / "epochs" / f"{epoch:04d}.npz")
    weights = arrays["train_weight"].astype(float)
    clipped = weights.clip(WEIGHT_EDGES[0], WEIGHT_EDGES[-1])
    tenth = np.sort(weights)[-max(1, len(weights) // 10) :].sum()
    return WeightSpread(
        shares=np.histogram(clipped, WEIGHT_EDGES)[0] / len(weights),
        heaviest=tenth / weights.sum() if weights.sum() else None,
    )


def label_heights(clean: float, robust: float) -> tuple[float, float]:
    """Where the labels of two accuracies stand, the larger one at least LABEL_GAP higher."""
    if clean >= robust:
        return max(clean, robust + LABEL_GAP), robust
    return clean, max(robust, clean + LABEL_GAP)


def training_command(spec: RunSpec) -> str:
    """The command that trains a run outside a notebook."""
    words = "".join(
        f" {name}={json.dumps(value, separators=(',', ':'))}"
        for name, value in spec.overrides.items()
    )
    return (
        f"python -m kit train {spec.method} --recipe {spec.recipe} --seed {spec.seed}"
        f"{' --set' if words else ''}{words}"
    )


def describe_beginning(training: Training, state: str) -> str:
    """What there is to say of a training before its first epoch is finished."""
    who, total = s.label(training.spec.method), training.total
    if state in ("training", "paused"):
        return f"{who} is starting: 0 of {total} epochs."
    what = "is not trained yet" if state == "not started" else state
    how = "press start" if attended() else f"start it with {training_command(training.spec)}"
    whose = f"{who} on {training.spec.recipe}, seed {training.spec.seed}"
    return f"{whose}, {what}: 0 of {total} epochs. To see it, {how}."


def describe_progress(
    training: Training, state: str, history: pd.DataFrame, heaviest: float | None
) -> str:
    """What there is to say of a training with finished epochs."""
    last, number = history.iloc[-1], len(history)
    what = {
        "training": "is training",
        "paused": "is paused",
        "stopped": "was stopped, its epochs are kept",
        "done": "is done",
    }.get(state, state)
    share = (
        f" The heaviest tenth of the training images carries {heaviest:.0%} of the weight."
        if heaviest is not None
        else ""
    )
    return (
        f"{s.label(training.spec.method)} {what}: epoch {number} of {training.total}, loss "
        f"{last.loss:.2f}; of the held-out images {last.clean:.0%} are right clean and "
        f"{last.robust:.0%} under PGD.{share}"
    )


# ---------------------------------------------------------------------------------- how it is drawn


class TrainLive(Panel):
    """The panel of `train_live`."""

    name, title, size = "train-live", "A network in training", (9.0, 3.2)
    source = "the loop of kit.training.loop; accuracies of its held-out probe"
    rebuilds = frozenset({"method", "epochs", "seed"})
    #: What was started last from a panel that was asked for this folder's run, in this kernel.
    _started: ClassVar[dict[Path, Training]] = {}

    def __init__(self, spec: RunSpec):
        self.asked = Training(spec)
        # A cell that is run again finds what its former panel has in training.
        last = self._started.get(self.asked.folder, self.asked)
        self.training = last if last.busy else self.asked
        self.methods = tuple(dict.fromkeys((spec.method, *OFFERED_METHODS)))
        self.longest = max(LONGEST, self.asked.total)
        self.last_seed = max(99, spec.seed)
        self.watch: Task | None = None
        # What the picture was drawn for.
        self.shown: tuple[int, str] = (0, "")
        super().__init__((self.training.run,) if self.training.state == "done" else ())

    # ---- its controls

    def controls(self, values):
        """Method and length before it trains, and the buttons that fit its state."""
        if not self.training.busy:
            self._take_choices(values)
        training, state = self.training, self.training.state
        if training.busy:
            pause = Action("pause", self.pause, "halt between two steps; nothing is lost")
            go_on = Action("go on", self.start, "after the pause")
            stop = Action("stop", self.stop, "end it and keep the finished epochs")
            return [pause if state == "training" else go_on, stop]
        choices = [
            Choice("method", training.spec.method, self.methods, "that is trained"),
            Number("epochs", training.total, 2, self.longest, 1, "how long", integer=True),
            Number(
                "seed", training.spec.seed, 0, self.last_seed, 1, "of the network", integer=True
            ),
        ]
        if state == "done":
            last = training.epochs
            replay = Number("epoch", last, 1, last, 1, "replay the stored epochs", True, True)
            return [*choices, replay]
        name = "resume" if training.epochs else "start"
        return [*choices, Action(name, self.start, "train in the background")]

    def _take_choices(self, values: Mapping[str, Any]) -> None:
        """Turn to another training where another method, length or seed was chosen."""
        spec, total = self.training.spec, self.training.total
        method, epochs = values.get("method", spec.method), values.get("epochs", total)
        seed = values.get("seed", spec.seed)
        if (method, epochs, seed) != (spec.method, total, spec.seed):
            length = {} if epochs == total else {"epochs": epochs}
            overrides = {**spec.overrides, **length}
            self.training = Training(RunSpec(method, spec.recipe, seed, overrides))

    def start(self) -> None:
        """Start, resume or go on.

        Raises:
            KitError: It is training already.
        """
        if self.training.busy and self.training.state != "paused":
            raise KitError("it is training already; pause or stop it")
        self.training.start()
        self._started[self.asked.folder] = self.training
        self.follow()

    def pause(self) -> None:
        """Halt the training.

        Raises:
            KitError: Nothing is training.
        """
        if self.training.state != "training":
            raise KitError("nothing is training; press start first")
        self.training.pause()

    def stop(self) -> None:
        """End the training.

        Raises:
            KitError: Nothing is training.
        """
        if not self.training.busy:
            raise KitError("nothing is training; press start first")
        self.training.stop()

    # ---- while it trains

    def follow(self) -> None:
        """Redraw twice a second at most while it trains, where a kernel's event loop runs."""
        if self.watch is None or self.watch.done():
            self.watch = while_busy(lambda: self.training.busy, self.catch_up)

    def catch_up(self) -> None:
        """Draw what has changed since the last picture, if anything has."""
        state, before = self._progress(), self.shown
        if state == before:
            return
        with self._lock:
            if state[1] != before[1] or self.training.history.loss.max() > self.top:
                self._take_controls()
                self.rebuild()
            else:
                self.redraw()

    def _progress(self) -> tuple[int, str]:
        return self.training.epochs, self.training.state

    # ---- what stands still

    def build(self, figure, values):
        """Draw the axes for the present training."""
        if self.training.busy:
            self.follow()
        loss, accuracy, weight = figure.subplots(1, 3, width_ratios=[1, 1.25, 1.05])
        moving = self._build_curves(loss, accuracy)
        return [*moving, *self._build_weights(weight), self._build_stage(loss)]

    def _build_curves(self, loss: Axes, accuracy: Axes) -> list[Artist]:
        total, burn_in = self.training.total, resolve(self.training.spec).burn_in
        self.top = 1.3 * max([CHANCE_LOSS, *self.training.history.loss])
        loss.set(title="Training loss", xlabel="epoch", xlim=(0, total), ylim=(0, self.top))
        accuracy.set(
            title="Accuracy, held out", xlabel="epoch", xlim=(0, 1.42 * total), ylim=(0, 1.02)
        )
        accuracy.spines["bottom"].set_bounds(0, total)
        s.share_axis(accuracy)
        ticks = MaxNLocator(5, integer=True).tick_values(0, total)
        for axes in (loss, accuracy):
            axes.set_xticks([tick for tick in ticks if tick <= total])
            if burn_in:
                axes.axvline(burn_in, color=s.GREY, linewidth=1, linestyle=":")
        if burn_in:
            accuracy.text(burn_in, 0.01, " weights begin", fontsize=8, color="#595959")
        (self.loss,) = loss.plot([], [], "o-", markersize=3, color=s.BLACK)
        (self.clean,) = accuracy.plot([], [], "o-", markersize=3, color=s.BLUE)
        (self.robust,) = accuracy.plot([], [], "o-", markersize=3, color=s.VERMILLION)
        self.labels = [
            accuracy.text(
                1.05 * total, 0, "", color=line.get_color(), va="center", fontweight="bold"
            )
            for line in (self.clean, self.robust)
        ]
        return [self.loss, self.clean, self.robust, *self.labels]

    def _build_weights(self, axes: Axes) -> list[Artist]:
        axes.set(
            title="Weights, last epoch",
            xlabel="weight of an image",
            xscale="log",
            xlim=(WEIGHT_EDGES[0], WEIGHT_EDGES[-1]),
            ylim=(0, 1.25),
            yticks=[],
        )
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks([1e-4, 1e-2, 1, 1e2], ["≤ 0.0001", "0.01", "1", "≥ 100"])
        axes.axvline(1, color=s.GREY, linewidth=1, linestyle=":")
        self.bars = axes.bar(
            WEIGHT_EDGES[:-1],
            np.zeros(24),
            np.diff(WEIGHT_EDGES),
            align="edge",
            color=s.colour(self.training.spec.method),
            edgecolor="white",
            linewidth=0.5,
        )
        self.tallest = axes.text(0.02, 0.9, "", transform=axes.transAxes, fontsize=8)
        return [*self.bars, self.tallest]

    def _build_stage(self, loss: Axes) -> Artist:
        self.stage = loss.text(
            0.98,
            0.99,
            "",
            transform=loss.transAxes,
            ha="right",
            va="top",
            fontsize=8.5,
            bbox={"color": "white", "pad": 1},
        )
        return self.stage

    # ---- what moves

    def update(self, values):
        """Draw the finished epochs; of a training that is done, those up to the chosen one."""
        history, self.shown = self.training.history, self._progress()
        if self.shown[1] == "done":
            history = history.iloc[: values.get("epoch", len(history))]
        epoch, state = len(history), self.shown[1]
        for line, name in ((self.loss, "loss"), (self.clean, "clean"), (self.robust, "robust")):
            line.set_data(history.epoch, history[name])
        self._show_labels(history)
        weights = read_weights(self.training.folder, epoch)
        self._show_weights(weights, epoch)
        self.stage.set_text(f"{state.partition(':')[0]}\n{epoch} of {self.training.total} epochs")
        if not epoch:
            return describe_beginning(self.training, state)
        return describe_progress(self.training, state, history, weights.heaviest)

    def _show_labels(self, history: pd.DataFrame) -> None:
        """The last accuracies beside their lines, never one over the other."""
        for label in self.labels:
            label.set_text("")
        if len(history):
            last = history.iloc[-1]
            heights = label_heights(last.clean, last.robust)
            for label, name, y in zip(self.labels, ("clean", "robust"), heights, strict=True):
                label.set(text=f"{name} {last[name]:.0%}", y=y)

    def _show_weights(self, weights: WeightSpread, epoch: int) -> None:
        tallest = weights.shares.max()
        for bar, share in zip(self.bars, weights.shares, strict=True):
            bar.set_height(share / max(tallest, 1e-9))
        self.tallest.set_text(f"tallest bar: {tallest:.0%} of the images" if epoch else "none yet")


def train_live(
    method: str | RunSpec = "mail-at",
    recipe: str = "digits",
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
) -> Panel:
    """Watch a network train: loss and accuracies by epoch, and the weights of the last epoch.

    Give names, or one `RunSpec`, as to `kit.run`. "start" trains in a process beside the kernel,
    "pause" halts it, "stop" ends it and keeps the finished epochs, from which "resume" goes on.
    Robust is the accuracy under the recipe's PGD after each epoch, on the first `probe` held-out
    images. A finished run is shown as it is. A second widget for the same names shows the training
    that the first one has started, also of another method or seed, for as long as it goes on: a
    cell can be run again. Where nobody can press a button nothing is trained: the picture is that
    of the stored epochs, or says how to start.

    Raises:
        KitError: a name is unknown, or a value is unfit.

    Source: the loop of `kit.training.loop`.
    """
    spec = (
        method
        if isinstance(method, RunSpec)
        else RunSpec(method, recipe, seed, dict(overrides or {}))
    )
    return TrainLive(spec)
