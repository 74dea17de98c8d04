"""A weighting curve drawn by hand, trained, and set beside the papers' methods under the same
settings.

What is drawn is a method like any other: `own_curve` is its row, `points` its weight function, and
the eight heights are its hyper-parameters, so every curve has a run of its own that is trained
once.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path as FilePath

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor

from kit.attacks.table import ATTACKS as EVERY_ATTACK
from kit.core.errors import KitError
from kit.core.files import CHECKOUT, load_arrays
from kit.core.parameters import NonNegative
from kit.core.parts import part
from kit.evaluation.accuracy import evaluate
from kit.experiments.recipes import RECIPE_FIELDS
from kit.experiments.runs import Run, is_done, run_folder
from kit.experiments.specification import RunSpec, resolve
from kit.figures import style as s
from kit.figures.run_outputs import probabilities
from kit.methods.criteria import CRITERIA, probabilistic_margin
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import METHODS, Method
from kit.methods.weights import batch_mean
from kit.widgets.child_process import while_busy
from kit.widgets.panel import Action, Number, Panel, Toggle

POINTS = 8

RIVALS = ("at", "gairat", "mail-at", "clirat")

ATTACKS = ("natural", "pgd20")

#: Half the epochs of the recipe digits, for races without a run.
QUICK = {"epochs": 20, "milestones": [12, 15]}

BINS = np.linspace(-1, 1, 21)

#: The first lines of the process that trains: it ends when the notebook closes its pipe, so no
#: training is left behind.
CHILD = """import os, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(130)), daemon=True).start()
"""


def points(score: Tensor, *, heights: tuple[NonNegative, ...] = (1.0,) * POINTS) -> Tensor:
    """Weights on straight lines between `heights`, which stand evenly from score -1 (safe) to 1
    (misclassified), (N,).

    Scores beyond that range take the outer heights. Errors: `KitError` for fewer than two heights,
    or none above 0.
    """
    if len(heights) < 2 or not max(heights) > 0:
        raise KitError(
            f"heights={list(heights)} must be two or more numbers of at least 0, one of them above "
            f"0"
        )
    table = torch.tensor(heights, dtype=score.dtype, device=score.device)
    place = (score.clamp(-1, 1) + 1) / 2 * (len(heights) - 1)
    left = place.floor().long().clamp(0, len(heights) - 2)
    return table[left] + (place - left) * (table[left + 1] - table[left])


def own_curve(heights: tuple[float, ...] = (1.0,) * POINTS) -> Method:
    """The row of a drawn curve: AT with weights `points` of PM under attack, mean 1 over the batch,
    after MAIL's burn-in.

        kit.METHODS["own-curve"] = kit.widgets.own_curve()
        kit.run("own-curve", overrides={"weight.heights": [0, 0, 0, 0.5, 1, 1, 1, 1]})

    With equal heights it is AT. Errors: `KitError` for a height that is negative or no number.
    """
    return METHODS["at"].but(
        "weights from a curve drawn by hand",
        "-",
        criterion=CRITERIA["pm"],
        weight=part(points, heights=heights),
        normaliser=part(batch_mean),
        burn_in=METHODS["mail-at"].burn_in,
    )


def race(run: Run | None = None) -> Race:
    """Draw a weighting curve, see whom it weighs, train it, and compare it with AT, GAIRAT, MAIL-AT
    and CLIRAT.

    Eight points give w at evenly spaced scores (-PM of the attacked image, from -1, safe, to 1);
    weights are normalised to mean 1 over the batch. Behind the curve stand the scores of `run`'s
    training images under attack, by its finished network: as counted, and as the curve weighs them.
    Beside it the share of the weight per class, and accuracy under no attack and under PGD-20 with
    95 % intervals, of what has been trained so far.

    "train it" trains and evaluates the curve and then those rivals that are missing, in a process
    beside the notebook, with the recipe and settings of `run` (without one: digits, 20 epochs) and
    the chosen seed; "stop" ends it, and finished epochs are kept. The curve of the last race stays
    as a dashed line, with its accuracy, while others are drawn. "code" shows the line of Python
    that makes the same run. Without `run` there are no scores to weigh. Errors: `KitError` for a
    run that stored no logits, for a curve of zeros, and for "stop" where nothing is trained. The
    curve is the reader's own; PM is MAIL Eq. 4.
    """
    return Race(run)


class Race(Panel):
    name, title, size = "race", "A weighting curve of one's own", (9.0, 3.9)
    source = "MAIL Eq. 4 for the score; the curve is drawn by hand"
    pointed_at = True

    def __init__(self, run: Run | None):
        self.run = run
        self.recipe = run.spec.recipe if run else "digits"
        given = (
            {name: value for name, value in run.spec.overrides.items() if name in RECIPE_FIELDS}
            if run
            else QUICK
        )
        self.settings = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in given.items()
        }
        self.held = POINTS - 1  # the point that the mouse or the arrow keys move
        self.tables: dict[str, pd.DataFrame] = {}  # run key -> accuracies
        self.child: subprocess.Popen | None = None
        self.racing: list[RunSpec] = []  # what it trains
        self.raced: list[float] = []  # the curve that was sent into the race last
        if run:
            probs, self.y = probabilities(run.final, "train_logits_adv")
            self.seen = StepOutputs(self.y, probs.log())
            self.scores = -probabilistic_margin(probs, self.y)
        super().__init__((run,) if run else ())

    def controls(self, values):
        at = [f"{score:+.2f}" for score in np.linspace(-1, 1, POINTS)]
        mail = METHODS["mail-at"].weight(torch.linspace(-1, 1, POINTS)).tolist()
        heights = [
            Number(f"w{i + 1}", round(mail[i], 2), 0.0, 1.0, 0.01, f"weight at score {at[i]}")
            for i in range(POINTS)
        ]
        seed = self.run.spec.seed if self.run else 0
        return [
            *heights,
            Number("seed", seed, 0, max(9, seed), 1, "of every run in the race", integer=True),
            Toggle("code", False, "show the line of Python that trains this curve"),
            Action("flat", lambda: self.take([1.0] * POINTS), "all alike: adversarial training"),
            Action("as MAIL-AT", lambda: self.take(mail), "MAIL-AT's curve at the eight points"),
            Action(
                "train it",
                self.start,
                "train and evaluate this curve, and the rivals that are missing",
            ),
            Action("stop", self.stop, "end the training; finished epochs are kept"),
        ]

    # ---- the curve as a method

    @staticmethod
    def heights(values: dict) -> list[float]:
        return [values[f"w{i + 1}"] for i in range(POINTS)]

    def take(self, heights: list[float]) -> None:
        self.values |= {f"w{i + 1}": round(height, 2) for i, height in enumerate(heights)}

    def spec(self, method: str, heights: list[float] | None = None) -> RunSpec:
        """The run of a curve (the present one) or of a rival with the race's settings."""
        own = (
            {"weight.heights": heights or self.heights(self.values)}
            if method == "own-curve"
            else {}
        )
        return RunSpec(method, self.recipe, self.values["seed"], {**self.settings, **own})

    def line(self, method: str = "own-curve") -> str:
        """One line of Python that trains, resumes or opens it."""
        spec = self.spec(method)
        known = (
            'kit.METHODS["own-curve"] = kit.widgets.own_curve(); ' if method == "own-curve" else ""
        )
        return (
            f"import kit; {known}run = kit.run({method!r}, recipe={spec.recipe!r}, "
            f"seed={spec.seed}, "
            f"overrides={spec.overrides!r})"
        )

    def result(self, method: str, heights: list[float] | None = None) -> pd.DataFrame | None:
        """Accuracies of a run that is trained and evaluated; None if it is not."""
        with _registered():
            plan = resolve(self.spec(method, heights))
            folder = run_folder(plan)
            if plan.key not in self.tables and is_done(folder) and _evaluated(folder):
                self.tables[plan.key] = evaluate(Run(plan.spec, folder), ATTACKS, quiet=True)
        return self.tables.get(plan.key)

    def missing(self) -> list[str]:
        """The entrants of this race that have no result yet, in the order in which they are
        trained.
        """
        return [method for method in ("own-curve", *RIVALS) if self.result(method) is None]

    # ---- training beside the notebook

    @property
    def busy(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def start(self) -> None:
        if self.busy:
            raise KitError("the race is on already; wait for its end, or press stop")
        queue, self.raced = self.missing(), self.heights(self.values)
        if not queue:
            return
        steps = [
            f"{self.line(method)}\nkit.evaluate(run, {list(ATTACKS)}, quiet=True)\n"
            for method in queue
        ]
        places = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - read when the child has ended
        self.child = subprocess.Popen(
            [sys.executable, "-c", CHILD + "".join(steps) + "os._exit(0)"],
            stdin=subprocess.PIPE,
            stderr=self.log,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # interrupting a cell does not end it
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places), "KIT_LIVE": "0"},
        )
        self.racing = [self.spec(method) for method in queue]
        while_busy(lambda: self.busy, self.redraw)

    def stop(self) -> None:
        if not self.busy:
            raise KitError('nothing is being trained; press "train it" first')
        self.child.stdin.close()
        self.child.wait(timeout=20)

    def news(self) -> str:
        """How far the training is, or how it ended; "" where there is nothing to say."""
        if self.child is None:
            return ""
        for spec in self.racing:
            with _registered():
                plan = resolve(spec)
            folder = run_folder(plan)
            if not (is_done(folder) and _evaluated(folder)):
                path = folder / "history.csv"
                epochs = len(path.read_text().splitlines()) - 1 if path.exists() else 0
                break
        else:
            return ""
        where = f"{_name(spec.method)}, epoch {epochs} of {plan.recipe.epochs}"
        if self.busy:
            return f" Training {where} ..."
        if self.child.returncode == 130:
            return f' Stopped at {where}; "train it" goes on from there.'
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").split("\n")
        return f" Training failed at {where}: {next((x for x in reversed(lines) if x.strip()), 'it was killed')}"

    # ---- what stands still

    def build(self, figure, values):
        grid = figure.add_gridspec(2, 3, width_ratios=(10, 5, 7), height_ratios=(3, 2))
        self.curve, below = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
        moving = self._curve(self.curve) + self._histogram(below)
        moving += self._classes(figure.add_subplot(grid[:, 1])) + self._finish(
            figure.add_subplot(grid[:, 2])
        )
        return moving

    def _curve(self, axes: Axes) -> list:
        axes.set(
            xlim=(-1.04, 1.04),
            ylim=(-0.06, 1.08),
            ylabel="w",
            yticks=(0, 0.5, 1),
            title="Drag the points (dotted: MAIL-AT)",
        )
        axes.axvline(0, color=s.GREY, linewidth=0.8)
        axes.tick_params(labelbottom=False)
        fine = torch.linspace(-1, 1, 101)
        axes.plot(
            fine,
            METHODS["mail-at"].weight(fine),
            color=s.colour("mail-at"),
            linewidth=1,
            linestyle=":",
        )
        (self.drawn,) = axes.plot([], [], "-o", color=s.BLACK, markersize=7, clip_on=False)
        (self.ghost,) = axes.plot([], [], "--", color=s.GREY, linewidth=1.2)
        (self.ring,) = axes.plot(
            [],
            [],
            "o",
            markersize=13,
            markerfacecolor="none",
            markeredgecolor=s.VERMILLION,
            clip_on=False,
        )
        return [self.ghost, self.drawn, self.ring]

    def _histogram(self, axes: Axes) -> list:
        axes.set(xlim=(-1.04, 1.04), xlabel="score −PM, right of 0 misclassified")
        axes.axvline(0, color=s.GREY, linewidth=0.8)
        if self.run is None:
            return _without_run(axes)
        shares = np.histogram(self.scores, BINS)[0] / len(self.y)
        axes.stairs(shares, BINS, fill=True, color="#D0D0D0")
        self.weighed = axes.stairs(shares, BINS, color=s.BLUE, linewidth=1.8)
        _shares(axes, "y")
        self.effective = axes.set_title("")
        return [self.weighed, self.effective]

    def _classes(self, axes: Axes) -> list:
        axes.set_title("Weight per class")
        if self.run is None:
            return _without_run(axes)
        names = self.run.record["classes"]
        edges = np.arange(len(names) + 1) - 0.5
        axes.stairs(
            np.bincount(self.y, minlength=len(names)) / len(self.y),
            edges,
            fill=True,
            color="#D0D0D0",
            orientation="horizontal",
        )
        self.by_class = axes.stairs(
            np.zeros(len(names)), edges, color=s.BLUE, linewidth=1.8, orientation="horizontal"
        )
        axes.set(
            ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)) if len(names) <= 12 else []
        )
        if len(names) <= 12:
            axes.set_yticklabels(names)
        _shares(axes, "x")
        return [self.by_class]

    def _finish(self, axes: Axes) -> list:
        entrants, places = ("own-curve", *RIVALS), np.arange(len(RIVALS) + 1)
        axes.set(
            xlim=(0, 1),
            ylim=(len(RIVALS) + 0.6, -0.6),
            yticks=places,
            yticklabels=map(_name, entrants),
            title="Accuracy   ● PGD-20   ○ natural",
        )
        axes.grid(axis="x")
        s.share_axis(axes, "x")
        tints = [s.colour(method) for method in entrants]
        self.intervals = [axes.hlines(places, 0, 0, colors=tints, linewidth=2.2) for _ in ATTACKS]
        self.dots = [
            axes.scatter(
                np.zeros(len(places)),
                places,
                s=52,
                zorder=3,
                edgecolors=tints,
                linewidths=1.6,
                facecolors="white" if attack == "natural" else tints,
            )
            for attack in ATTACKS
        ]
        self.absent = [
            axes.annotate("", (0.03, place), va="center", fontsize=8.5, color="#666666")
            for place in places
        ]
        return [*self.intervals, *self.dots, *self.absent]

    # ---- what moves

    def update(self, values):
        heights = self.heights(values)
        row = own_curve(tuple(heights))
        row.weight(torch.zeros(1))  # refuses a curve of zeros
        places = np.linspace(-1, 1, POINTS)
        self.drawn.set_data(places, heights)
        self.ring.set_data([places[self.held]], [heights[self.held]])
        words = (
            self._weigh(row)
            if self.run
            else (
                f"The curve goes from w = {heights[0]:.2f} for the safest examples to "
                f"{heights[-1]:.2f} for the most wrong. "
                "Without a run there are no scores to weigh."
            )
        )
        words += self._placed() + self.news()
        return words + (f" As Python: {self.line()}" if values["code"] else "")

    def _weigh(self, row: Method) -> str:
        weights = row.weigh(self.seen).numpy()
        shares, wrong, n = weights / weights.sum(), self.scores.numpy() > 0, len(weights)
        names = self.run.record["classes"]
        by_class = np.bincount(self.y, shares, len(names))
        self.weighed.set_data(np.histogram(self.scores, BINS, weights=shares)[0])
        self.by_class.set_data(by_class)
        effective, top = 1 / (shares**2).sum(), int(by_class.argmax())
        self.effective.set_text(f"{n} scores count like {effective:.0f}")
        counted = float((self.y == top).double().mean())
        return (
            f"Under this curve {n} training images of {s.label(self.run.method)} count like "
            f"{effective:.0f} of equal "
            f"weight. The misclassified are {wrong.mean():.0%} of the images and have "
            f"{shares[wrong].sum():.0%} of the "
            f"weight; class {names[top]} has the largest share, {by_class[top]:.0%} (of the images "
            f"{counted:.0%})."
        )

    def _placed(self) -> str:
        """Move the accuracies; -> those under PGD-20 in words.

        A curve without one gives way to that of the last race.
        """
        found = {method: self.result(method) for method in ("own-curve", *RIVALS)}
        earlier = found["own-curve"] is None and bool(self.raced)
        if earlier:
            found["own-curve"] = self.result("own-curve", self.raced)
        self.ghost.set_data(
            np.linspace(-1, 1, POINTS), self.raced if earlier else [np.nan] * POINTS
        )
        for attack, dots, lines in zip(ATTACKS, self.dots, self.intervals, strict=True):
            rows = [
                (np.nan,) * 3
                if table is None
                else tuple(table.loc[attack, ["accuracy", "low", "high"]])
                for table in found.values()
            ]
            dots.set_offsets([(row[0], place) for place, row in enumerate(rows)])
            lines.set_segments(
                [[(row[1], place), (row[2], place)] for place, row in enumerate(rows)]
            )
        for text, table in zip(self.absent, found.values(), strict=True):
            text.set_text("not trained" if table is None else "")
        own = "the dashed curve" if earlier else "own curve"
        said = []
        for method, table in found.items():
            if table is not None:
                accuracy, low, high = table.loc["pgd20", ["accuracy", "low", "high"]]
                said.append(
                    f"{own if method == 'own-curve' else _name(method)} {accuracy:.1%} [{low:.0%}, "
                    f"{high:.0%}]"
                )
        seed = f" Seed {self.values['seed']}"
        return (
            f"{seed}, accuracy under PGD-20: {', '.join(said)}."
            if said
            else f"{seed}: nothing is trained yet."
        )

    # ---- the hand

    def point(self, axes, x, y, begins):
        if axes is not self.curve:
            return
        if begins:
            self.held = int(np.clip(np.round((x + 1) / 2 * (POINTS - 1)), 0, POINTS - 1))
        self.lift(y)

    def nudge(self, right, up):
        self.held = int(np.clip(self.held + right, 0, POINTS - 1))
        self.lift(self.values[f"w{self.held + 1}"] + 0.05 * up)

    def lift(self, height: float) -> None:
        """Set the held point, to two decimals, within its range."""
        self.set(**{f"w{self.held + 1}": round(min(max(height, 0.0), 1.0), 2)})


@contextlib.contextmanager
def _registered() -> Iterator[None]:
    """Within, own-curve is a name of kit.METHODS; the table is handed back as it was."""
    known = METHODS.get("own-curve")
    METHODS["own-curve"] = known or own_curve()
    try:
        yield
    finally:
        if known is None:
            del METHODS["own-curve"]


def _evaluated(folder: FilePath) -> bool:
    """Are the race's attacks on all test images among a run's stored evaluations?"""
    found = []
    for path in (folder / "evaluations").glob("*.npz"):
        settings = json.loads(str(load_arrays(path)["settings"]))
        if (settings["split"], settings["n"], settings["which"]) == ("test", 0, "last"):
            found.append(settings["attack"])
    return all(json.loads(json.dumps(EVERY_ATTACK[name].config())) in found for name in ATTACKS)


def _name(method: str) -> str:
    return "own curve" if method == "own-curve" else s.label(method)


def _shares(axes: Axes, which: str) -> None:
    """Shares from 0 to 1, small ones drawn wide: their square roots are even."""
    getattr(axes, f"set_{which}scale")("function", functions=(np.sqrt, np.square))
    getattr(axes, f"set_{which}lim")(0, 1)
    getattr(axes, f"set_{which}ticks")([0.02, 0.1, 0.3, 1])
    s.share_axis(axes, which)


def _without_run(axes: Axes) -> list:
    axes.tick_params(left=False, labelleft=False, bottom=False, labelbottom=False)
    axes.annotate(
        "no run, no scores",
        (0.5, 0.5),
        xycoords="axes fraction",
        ha="center",
        color="#666666",
        fontsize=8.5,
    )
    return []
