"""A network that trains while one watches: loss, accuracies and weights, epoch by epoch."""

from __future__ import annotations

import json
from asyncio import Task
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator, NullLocator

from kit.core.errors import KitError
from kit.core.files import load_arrays
from kit.experiments.specification import RunSpec, resolve
from kit.figures import style as s
from kit.widgets.child_process import Training, while_busy
from kit.widgets.panel import Action, Choice, Number, Panel, attended

#: One method a paper, to choose from; the one that was asked for comes first.
METHODS = ("at", "trades", "mart", "gairat", "mail-at", "clirat", "vir-at", "mr-mail", "csa", "cse")

#: Weights are counted in quarters of a decade; what lies outside is counted in the first and the
#: last bar.
EDGES = np.logspace(-4, 2, 25)

CHANCE = float(np.log(10))  # the loss of ten classes that are all alike

MOST_EPOCHS = 120


class TrainLive(Panel):
    name, title, size = "train-live", "A network in training", (9.0, 3.2)
    source = "the loop of kit.training.loop; accuracies of its held-out probe"
    rebuilds = frozenset({"method", "epochs"})

    def __init__(self, spec: RunSpec):
        self.training = Training(spec)
        self.methods = tuple(dict.fromkeys((spec.method, *METHODS)))
        self.longest = max(MOST_EPOCHS, self.training.total)
        self.watch: Task | None = None
        self.shown: tuple = ()
        super().__init__((self.training.run,) if self.training.state == "done" else ())

    def controls(self, values):
        state = self.training.state
        if not self.training.busy:
            spec, total = self.training.spec, self.training.total
            method, epochs = values.get("method", spec.method), values.get("epochs", total)
            if (method, epochs) != (spec.method, total):
                self.training = Training(
                    RunSpec(method, spec.recipe, spec.seed, {**spec.overrides, "epochs": epochs})
                )
                state = self.training.state
        if self.training.busy:
            halt = Action("pause", self.pause, "halt between two steps; nothing is lost")
            return [
                halt if state == "training" else Action("go on", self.start, "after the pause"),
                Action("stop", self.stop, "end it and keep the finished epochs"),
            ]
        given = [
            Choice("method", self.training.spec.method, self.methods, "that is trained"),
            Number("epochs", self.training.total, 2, self.longest, 1, "how long", integer=True),
        ]
        start = Action(
            "resume" if self.training.epochs else "start", self.start, "train in the background"
        )
        return given if state == "done" else [*given, start]

    # ---- what the buttons do

    def start(self) -> None:
        if self.training.busy and self.training.state != "paused":
            raise KitError("it is training already; pause or stop it")
        self.training.start()
        self.follow()

    def pause(self) -> None:
        if self.training.state != "training":
            raise KitError("nothing is training; press start first")
        self.training.pause()

    def stop(self) -> None:
        if not self.training.busy:
            raise KitError("nothing is training; press start first")
        self.training.stop()

    # ---- while it trains

    def follow(self) -> None:
        """Redraw twice a second at most while it trains, where a kernel's event loop runs."""
        if self.watch is None or self.watch.done():
            self.watch = while_busy(lambda: self.training.busy, self.look)

    def look(self) -> None:
        """Draw what has changed since the last look, if anything has."""
        state, before = self._state(), self.shown
        if state == before:
            return
        with self._lock:
            if state[1] != before[1] or self.training.history.loss.max() > self.top:
                self._take_controls()
                self.rebuild()
            else:
                self.redraw()

    def _state(self) -> tuple[int, str]:
        return self.training.epochs, self.training.state

    # ---- the picture

    def build(self, figure, values):
        if self.training.busy:
            self.follow()
        total, history, plan = (
            self.training.total,
            self.training.history,
            resolve(self.training.spec),
        )
        self.top = 1.3 * max([CHANCE, *history.loss])
        loss, accuracy, weight = figure.subplots(1, 3, width_ratios=[1, 1.25, 1.05])
        loss.set(title="Training loss", xlabel="epoch", xlim=(0, total), ylim=(0, self.top))
        accuracy.set(
            title="Accuracy, held out", xlabel="epoch", xlim=(0, 1.42 * total), ylim=(0, 1.02)
        )
        accuracy.spines["bottom"].set_bounds(0, total)
        s.share_axis(accuracy)
        for axes in (loss, accuracy):
            axes.set_xticks(
                [
                    tick
                    for tick in MaxNLocator(5, integer=True).tick_values(0, total)
                    if tick <= total
                ]
            )
            if plan.burn_in:
                axes.axvline(plan.burn_in, color=s.GREY, linewidth=1, linestyle=":")
        if plan.burn_in:
            accuracy.text(plan.burn_in, 0.01, " weights begin", fontsize=8, color="#595959")
        weight.set(
            title="Weights, last epoch",
            xlabel="weight of an image",
            xscale="log",
            xlim=(EDGES[0], EDGES[-1]),
            ylim=(0, 1.25),
            yticks=[],
        )
        weight.xaxis.set_minor_locator(NullLocator())
        weight.set_xticks([1e-4, 1e-2, 1, 1e2], ["≤ 0.0001", "0.01", "1", "≥ 100"])
        weight.axvline(1, color=s.GREY, linewidth=1, linestyle=":")
        tint = s.colour(self.training.spec.method)
        (self.loss,) = loss.plot([], [], "o-", markersize=3, color=s.BLACK)
        (self.clean,) = accuracy.plot([], [], "o-", markersize=3, color=s.BLUE)
        (self.robust,) = accuracy.plot([], [], "o-", markersize=3, color=s.VERMILLION)
        self.labels = [
            accuracy.text(
                1.05 * total, 0, "", color=line.get_color(), va="center", fontweight="bold"
            )
            for line in (self.clean, self.robust)
        ]
        self.bars = weight.bar(
            EDGES[:-1],
            np.zeros(24),
            np.diff(EDGES),
            align="edge",
            color=tint,
            edgecolor="white",
            linewidth=0.5,
        )
        self.tallest = weight.text(0.02, 0.9, "", transform=weight.transAxes, fontsize=8)
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
        return [
            self.loss,
            self.clean,
            self.robust,
            *self.labels,
            *self.bars,
            self.tallest,
            self.stage,
        ]

    def update(self, values):
        history, self.shown = self.training.history, self._state()
        for line, name in ((self.loss, "loss"), (self.clean, "clean"), (self.robust, "robust")):
            line.set_data(history.epoch, history[name])
        self._label(history)
        heaviest = self._weigh(len(history))
        state = self.shown[1].partition(":")[0]
        self.stage.set_text(f"{state}\n{len(history)} of {self.training.total} epochs")
        return self._words(history, heaviest)

    def _label(self, history: pd.DataFrame) -> None:
        """The last accuracies beside their lines, never one over the other."""
        for label in self.labels:
            label.set_text("")
        if len(history):
            last = history.iloc[-1]
            high = max(last.clean, last.robust + 0.09) if last.clean >= last.robust else last.clean
            for label, name, y in zip(
                self.labels, ("clean", "robust"), (high, last.robust), strict=True
            ):
                label.set(text=f"{name} {last[name]:.0%}", y=y)
            if last.clean < last.robust:
                self.labels[1].set_y(max(last.robust, last.clean + 0.09))

    def _weigh(self, epoch: int) -> float | None:
        """Draw the weights of an epoch.

        -> the share of their sum on the heaviest tenth of the images.
        """
        counts, heaviest = np.zeros(24), None
        if epoch:
            weights = load_arrays(self.training.folder / "epochs" / f"{epoch:04d}.npz")[
                "train_weight"
            ].astype(float)
            counts = np.histogram(weights.clip(EDGES[0], EDGES[-1]), EDGES)[0] / len(weights)
            tenth = np.sort(weights)[-max(1, len(weights) // 10) :].sum()
            heaviest = tenth / weights.sum() if weights.sum() else None
        for bar, count in zip(self.bars, counts, strict=True):
            bar.set_height(count / max(counts.max(), 1e-9))
        self.tallest.set_text(
            f"tallest bar: {counts.max():.0%} of the images" if epoch else "none yet"
        )
        return heaviest

    def _words(self, history: pd.DataFrame, heaviest: float | None) -> str:
        training, state = self.training, self.shown[1]
        who, total = s.label(training.spec.method), training.total
        if not len(history) and state in ("training", "paused"):
            return f"{who} is starting: 0 of {total} epochs."
        if not len(history):
            what = "is not trained yet" if state == "not started" else state
            how = "press start" if attended() else f"start it with {command(training.spec)}"
            whose = f"{who} on {training.spec.recipe}, seed {training.spec.seed}"
            return f"{whose}, {what}: 0 of {total} epochs. To see it, {how}."
        last = history.iloc[-1]
        share = (
            f" The heaviest tenth of the training images carries {heaviest or 0:.0%} of the weight."
        )
        what = {
            "training": "is training",
            "paused": "is paused",
            "stopped": "was stopped, its epochs are kept",
            "done": "is done",
        }.get(state, state)
        return (
            f"{who} {what}: epoch {len(history)} of {total}, loss {last.loss:.2f}; of the held-out "
            f"images "
            f"{last.clean:.0%} are right clean and {last.robust:.0%} under "
            f"PGD.{share if heaviest is not None else ''}"
        )


def command(spec: RunSpec) -> str:
    """What trains a run outside a notebook."""
    words = "".join(
        f" {name}={json.dumps(value, separators=(',', ':'))}"
        for name, value in spec.overrides.items()
    )
    return f"python -m kit train {spec.method} --recipe {spec.recipe} --seed {spec.seed}{' --set' if words else ''}{words}"


def train_live(
    method: str | RunSpec = "mail-at",
    recipe: str = "digits",
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
) -> Panel:
    """Watch a network train: loss, clean and robust accuracy by epoch, and how its weights spread
    in the last one.

    Give names, or one `RunSpec`, as to `kit.run`. start trains in a process beside the kernel,
    pause halts it, stop ends it and keeps the finished epochs, from which resume goes on. Robust is
    the accuracy under the recipe's PGD after each epoch, on the first `probe` held-out images. A
    finished run is shown as it is. Where nobody can press a button nothing is trained: the picture
    is that of the stored epochs, or says how to start.

    Errors: `KitError` for an unknown name or an unfit value. Source: the loop of
    `kit.training.loop`.
    """
    spec = (
        method
        if isinstance(method, RunSpec)
        else RunSpec(method, recipe, seed, dict(overrides or {}))
    )
    return TrainLive(spec)
