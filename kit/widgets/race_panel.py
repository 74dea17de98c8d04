"""A weighting curve drawn by hand is trained, and set beside the papers' methods."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from torch import Tensor

from kit.attacks.table import ATTACKS
from kit.core.errors import KitError
from kit.core.files import load_arrays
from kit.evaluation.accuracy import evaluate
from kit.experiments.recipes import RECIPE_FIELDS
from kit.experiments.runs import Run, is_done
from kit.experiments.specification import RunSpec
from kit.figures import style as s
from kit.figures.run_outputs import probabilities
from kit.methods.criteria import probabilistic_margin
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import METHODS, Method
from kit.widgets.child_process import Child, read_history, start_child, while_busy
from kit.widgets.controls import Action, Number, Toggle
from kit.widgets.drawn_curve import (
    CURVE_POINTS,
    OWN_CURVE,
    open_run,
    own_curve,
    train_entrants,
)
from kit.widgets.method_controls import weighing_parts
from kit.widgets.panel import Panel

#: In the order in which they are trained and stand below each other.
ENTRANTS = (OWN_CURVE, "at", "gairat", "mail-at", "clirat")

RACE_ATTACKS = ("natural", "pgd20")

#: Half the epochs of the recipe digits, for races without a run.
QUICK_SETTINGS = {"epochs": 20, "milestones": [12, 15]}

SCORE_BINS = np.linspace(-1, 1, 21)

#: The scores at which the points of a curve stand.
PLACES = np.linspace(-1, 1, CURVE_POINTS)

IMAGES_TINT, NOTE_TINT = "#D0D0D0", "#666666"


# -------------------------------------------------------------------------------- what it computes


@dataclass(frozen=True)
class Scores:
    """A run's n training images under attack, by its finished network."""

    outputs: StepOutputs
    score: Tensor  # (n,) -PM, from -1, safe, to 1
    classes: tuple[str, ...]

    @property
    def y(self) -> Tensor:
        """(n,) the true classes."""
        return self.outputs.y


def read_scores(run: Run) -> Scores:
    """Read the scores of a run's training images.

    Raises:
        KitError: The run stored no logits of them.
    """
    probs, y = probabilities(run.final, "train_logits_adv")
    return Scores(
        StepOutputs(y, probs.log()), -probabilistic_margin(probs, y), tuple(run.record["classes"])
    )


@dataclass(frozen=True)
class WeighedScores:
    """What a curve makes of a run's scores."""

    histogram: np.ndarray  # (20,) the share of the weight in each of SCORE_BINS
    by_class: np.ndarray  # (K,) the share of the weight
    effective: float  # how many images of equal weight they count like
    wrong_images: float  # share of the images that are misclassified
    wrong_weight: float  # share of the weight that they have
    heaviest: int  # the class with the largest share of the weight
    heaviest_images: float  # its share of the images


def weigh_scores(row: Method, scores: Scores) -> WeighedScores:
    """Weigh a run's images by a curve; all images are one batch."""
    weights = row.weigh(scores.outputs).numpy()
    shares, wrong = weights / weights.sum(), scores.score.numpy() > 0
    by_class = np.bincount(scores.y, shares, len(scores.classes))
    heaviest = int(by_class.argmax())
    return WeighedScores(
        histogram=np.histogram(scores.score, SCORE_BINS, weights=shares)[0],
        by_class=by_class,
        effective=1 / (shares**2).sum(),
        wrong_images=wrong.mean(),
        wrong_weight=shares[wrong].sum(),
        heaviest=heaviest,
        heaviest_images=float((scores.y == heaviest).double().mean()),
    )


def has_result(folder: Path) -> bool:
    """Is the run in a folder finished, and evaluated under RACE_ATTACKS on all test images?"""
    if not is_done(folder):
        return False
    found = []
    for path in (folder / "evaluations").glob("*.npz"):
        settings = json.loads(str(load_arrays(path)["settings"]))
        if (settings["split"], settings["n"], settings["which"]) == ("test", 0, "last"):
            found.append(settings["attack"])
    return all(json.loads(json.dumps(ATTACKS[name].config())) in found for name in RACE_ATTACKS)


def entrant_name(method: str) -> str:
    """A method as the panel calls it."""
    return "own curve" if method == OWN_CURVE else s.label(method)


def list_results(found: Mapping[str, pd.DataFrame | None], own: str, seed: int) -> str:
    """The accuracies under PGD-20 in words; `own` is what the drawn curve is called."""
    words = []
    for method, table in found.items():
        if table is not None:
            accuracy, low, high = table.loc["pgd20", ["accuracy", "low", "high"]]
            name = own if method == OWN_CURVE else entrant_name(method)
            words.append(f"{name} {accuracy:.1%} [{low:.0%}, {high:.0%}]")
    if not words:
        return f" Seed {seed}: nothing is trained yet."
    return f" Seed {seed}, accuracy under PGD-20: {', '.join(words)}."


# ---------------------------------------------------------------------------------- how it is drawn


def draw_share_axis(axes: Axes, which: str) -> None:
    """Shares from 0 to 1, small ones drawn wide: their square roots are even."""
    getattr(axes, f"set_{which}scale")("function", functions=(np.sqrt, np.square))
    getattr(axes, f"set_{which}lim")(0, 1)
    getattr(axes, f"set_{which}ticks")([0.02, 0.1, 0.3, 1])
    s.share_axis(axes, which)


def draw_without_run(axes: Axes) -> list[Artist]:
    """Say on empty axes that there is nothing to show; nothing of it moves."""
    axes.tick_params(left=False, labelleft=False, bottom=False, labelbottom=False)
    axes.annotate(
        "no run, no scores",
        (0.5, 0.5),
        xycoords="axes fraction",
        ha="center",
        color=NOTE_TINT,
        fontsize=8.5,
    )
    return []


class Race(Panel):
    """The panel of `race`."""

    name, title, size = "race", "Your own weighting curve", (9.0, 3.9)
    source = "MAIL Eq. 4 for the score; the curve is drawn by hand"
    pointed_at = True

    def __init__(self, run: Run | None):
        self.run = run
        self.recipe = run.spec.recipe if run else "digits"
        settings = (
            {name: value for name, value in run.spec.overrides.items() if name in RECIPE_FIELDS}
            if run
            else QUICK_SETTINGS
        )
        self.settings = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in settings.items()
        }
        self.held = CURVE_POINTS - 1  # the point that the mouse or the arrow keys move
        self.tables: dict[str, pd.DataFrame] = {}  # run key -> accuracies
        self.child: Child | None = None
        self.racing: list[RunSpec] = []  # what it trains
        self.raced: list[float] = []  # the curve that was sent into the race last
        self.scores = read_scores(run) if run else None
        super().__init__((run,) if run else ())

    # ---- its controls

    def controls(self, values):
        """The heights of the curve, the seed, and the buttons."""
        mail = METHODS["mail-at"].weight(torch.linspace(-1, 1, CURVE_POINTS)).tolist()
        heights = [
            Number(f"w{i + 1}", round(mail[i], 2), 0.0, 1.0, 0.01, f"weight at score {place:+.2f}")
            for i, place in enumerate(PLACES)
        ]
        seed = self.run.spec.seed if self.run else 0
        flat = [1.0] * CURVE_POINTS
        return [
            *heights,
            Number("seed", seed, 0, max(9, seed), 1, "of every run in the race", integer=True),
            Toggle("code", False, "show the line of Python that trains this curve"),
            Action("flat", lambda: self.take(flat), "all alike: adversarial training"),
            Action("as MAIL-AT", lambda: self.take(mail), "MAIL-AT's curve at the eight points"),
            Action(
                "train it",
                self.start,
                "train and evaluate this curve, and the rivals that are missing",
            ),
            Action("stop", self.stop, "end the training; finished epochs are kept"),
        ]

    @staticmethod
    def heights(values: Mapping[str, Any]) -> list[float]:
        """The heights of the curve at these values."""
        return [values[f"w{i + 1}"] for i in range(CURVE_POINTS)]

    def take(self, heights: Sequence[float]) -> None:
        """Set the curve's heights, to two decimals."""
        self.values |= {f"w{i + 1}": round(height, 2) for i, height in enumerate(heights)}

    def point(self, axes, x, y, begins):
        """Lift the point that is nearest to where the mouse was pressed."""
        if axes is not self.curve:
            return
        if begins:
            nearest = np.round((x + 1) / 2 * (CURVE_POINTS - 1))
            self.held = int(np.clip(nearest, 0, CURVE_POINTS - 1))
        self.lift(y)

    def nudge(self, right, up):
        """Take another point, or lift the one that is held by twentieths."""
        self.held = int(np.clip(self.held + right, 0, CURVE_POINTS - 1))
        self.lift(self.values[f"w{self.held + 1}"] + 0.05 * up)

    def lift(self, height: float) -> None:
        """Set the held point, to two decimals, within its range."""
        self.set(**{f"w{self.held + 1}": round(min(max(height, 0.0), 1.0), 2)})

    # ---- the curve and its rivals as runs

    def spec(self, method: str, heights: list[float] | None = None) -> RunSpec:
        """The run of the present curve, of `heights`, or of a rival, with the race's settings."""
        own = (
            {"weight.heights": heights or self.heights(self.values)} if method == OWN_CURVE else {}
        )
        return RunSpec(method, self.recipe, self.values["seed"], {**self.settings, **own})

    def line(self) -> str:
        """One line of Python that trains, resumes or opens the present curve's run."""
        spec = self.spec(OWN_CURVE)
        return (
            f'import kit; kit.METHODS["{OWN_CURVE}"] = kit.widgets.own_curve(); '
            f"run = kit.run({spec.method!r}, recipe={spec.recipe!r}, seed={spec.seed}, "
            f"overrides={spec.overrides!r})"
        )

    def result(self, method: str, heights: list[float] | None = None) -> pd.DataFrame | None:
        """Accuracies of a run that is trained and evaluated; None if it is not."""
        run = open_run(self.spec(method, heights))
        if run.key not in self.tables and has_result(run.folder):
            self.tables[run.key] = evaluate(run, RACE_ATTACKS, quiet=True)
        return self.tables.get(run.key)

    def missing(self) -> list[str]:
        """The entrants that have no result yet, in the order in which they are trained."""
        return [method for method in ENTRANTS if self.result(method) is None]

    def evaluate_trained(self) -> Race:
        """Evaluate the rivals that are trained and have no result yet, so that they are shown."""
        for method in self.missing():
            rival = open_run(self.spec(method))
            if is_done(rival.folder):
                evaluate(rival, RACE_ATTACKS, quiet=True)
        self.redraw()
        return self

    # ---- training beside the notebook

    @property
    def busy(self) -> bool:
        """Is a race being trained?"""
        return self.child is not None and self.child.alive

    def start(self) -> None:
        """Train and evaluate the present curve and the rivals that have no result.

        Raises:
            KitError: a race is being trained already.
        """
        if self.busy:
            raise KitError("a race is being trained already; wait for its end, or press stop")
        queue, self.raced = self.missing(), self.heights(self.values)
        if not queue:
            return
        self.racing = [self.spec(method) for method in queue]
        self.child = start_child(
            train_entrants, [spec.words() for spec in self.racing], list(RACE_ATTACKS)
        )
        while_busy(lambda: self.busy, self.redraw)

    def stop(self) -> None:
        """End the training; finished epochs are kept.

        Raises:
            KitError: Nothing is being trained.
        """
        if self.child is None or not self.child.alive:
            raise KitError('nothing is being trained; press "train it" first')
        self.child.stop()

    def news(self) -> str:
        """How far the training is, or how it ended; "" where there is nothing to say."""
        if self.child is None:
            return ""
        runs = (open_run(spec) for spec in self.racing)
        run = next((run for run in runs if not has_result(run.folder)), None)
        if run is None:
            return ""
        epochs = len(read_history(run.folder))
        where = f"{entrant_name(run.method)}, epoch {epochs} of {run.plan.recipe.epochs}"
        if self.busy:
            return f" Training {where} ..."
        if self.child.was_stopped:
            return f' Stopped at {where}; "train it" goes on from there.'
        return f" Training failed at {where}: {self.child.complaint}"

    # ---- what stands still

    def build(self, figure, values):
        """Draw the axes."""
        grid = figure.add_gridspec(2, 3, width_ratios=(10, 5, 7), height_ratios=(3, 2))
        self.curve, below = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
        moving = self._build_curve(self.curve) + self._build_histogram(below)
        moving += self._build_classes(figure.add_subplot(grid[:, 1]))
        moving += self._build_accuracies(figure.add_subplot(grid[:, 2]))
        return moving

    def _build_curve(self, axes: Axes) -> list[Artist]:
        axes.set(
            xlim=(-1.04, 1.04),
            ylim=(-0.06, 1.08),
            ylabel="w",
            yticks=(0, 0.5, 1),
            title="Drag the points (dotted: MAIL-AT)",
        )
        axes.axvline(0, color=s.GREY, linewidth=0.8)
        axes.tick_params(labelbottom=False)
        fine, mail = torch.linspace(-1, 1, 101), METHODS["mail-at"].weight
        axes.plot(fine, mail(fine), color=s.colour("mail-at"), linewidth=1, linestyle=":")
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

    def _build_histogram(self, axes: Axes) -> list[Artist]:
        axes.set(xlim=(-1.04, 1.04), xlabel="score −PM, right of 0 misclassified")
        axes.set_xticks((-1, -0.5, 0, 0.5, 1))
        axes.axvline(0, color=s.GREY, linewidth=0.8)
        if self.scores is None:
            return draw_without_run(axes)
        shares = np.histogram(self.scores.score, SCORE_BINS)[0] / len(self.scores.y)
        axes.stairs(shares, SCORE_BINS, fill=True, color=IMAGES_TINT)
        self.weighed = axes.stairs(shares, SCORE_BINS, color=s.BLUE, linewidth=1.8)
        draw_share_axis(axes, "y")
        self.effective = axes.set_title("")
        return [self.weighed, self.effective]

    def _build_classes(self, axes: Axes) -> list[Artist]:
        axes.set_title("Weight per class")
        if self.scores is None:
            return draw_without_run(axes)
        names, y = self.scores.classes, self.scores.y
        edges = np.arange(len(names) + 1) - 0.5
        axes.stairs(
            np.bincount(y, minlength=len(names)) / len(y),
            edges,
            fill=True,
            color=IMAGES_TINT,
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
        draw_share_axis(axes, "x")
        return [self.by_class]

    def _build_accuracies(self, axes: Axes) -> list[Artist]:
        places = np.arange(len(ENTRANTS))
        axes.set(
            xlim=(0, 1),
            ylim=(len(ENTRANTS) - 0.4, -0.6),
            yticks=places,
            yticklabels=map(entrant_name, ENTRANTS),
            title="● PGD-20   ○ natural",
            xlabel="accuracy",
        )
        axes.grid(axis="x")
        s.share_axis(axes, "x")
        tints = [s.colour(method) for method in ENTRANTS]
        self.intervals = [
            axes.hlines(places, 0, 0, colors=tints, linewidth=2.2) for _ in RACE_ATTACKS
        ]
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
            for attack in RACE_ATTACKS
        ]
        self.absent = [
            axes.annotate("", (0.03, place), va="center", fontsize=8.5, color=NOTE_TINT)
            for place in places
        ]
        return [*self.intervals, *self.dots, *self.absent]

    # ---- what moves

    def update(self, values):
        """Draw the curve, and what it makes of the scores; refuse a curve of zeros."""
        heights = self.heights(values)
        row = own_curve(tuple(heights))
        _, weight = weighing_parts(row)
        # It refuses a curve of zeros.
        weight(torch.zeros(1))
        self.drawn.set_data(PLACES, heights)
        self.ring.set_data([PLACES[self.held]], [heights[self.held]])
        words = (
            self._show_weights(row, self.scores) if self.scores else self._describe_curve(heights)
        )
        words += self._show_accuracies() + self.news()
        return words + (f" As Python: {self.line()}" if values["code"] else "")

    @staticmethod
    def _describe_curve(heights: list[float]) -> str:
        return (
            f"The curve goes from w = {heights[0]:.2f} for the safest examples to "
            f"{heights[-1]:.2f} for the most wrong. Without a run there are no scores to weigh."
        )

    def _show_weights(self, row: Method, scores: Scores) -> str:
        """Move the histogram and the bars by class, and say what they show."""
        assert self.run is not None, "the scores are of a run's images"
        found, n = weigh_scores(row, scores), len(scores.y)
        self.weighed.set_data(found.histogram)
        self.by_class.set_data(found.by_class)
        self.effective.set_text(f"{n} scores count like {found.effective:.0f}")
        return (
            f"Under this curve {n} training images of {s.label(self.run.method)} count like "
            f"{found.effective:.0f} of equal weight. The misclassified are "
            f"{found.wrong_images:.0%} of the images and have {found.wrong_weight:.0%} of the "
            f"weight; class {scores.classes[found.heaviest]} has the largest share, "
            f"{found.by_class[found.heaviest]:.0%} (of the images {found.heaviest_images:.0%})."
        )

    def _show_accuracies(self) -> str:
        """Move the accuracies, and say those under PGD-20.

        A curve without a result gives way to that of the last race.
        """
        found = {method: self.result(method) for method in ENTRANTS}
        earlier = found[OWN_CURVE] is None and bool(self.raced)
        if earlier:
            found[OWN_CURVE] = self.result(OWN_CURVE, self.raced)
        self.ghost.set_data(PLACES, self.raced if earlier else [np.nan] * CURVE_POINTS)
        for attack, dots, lines in zip(RACE_ATTACKS, self.dots, self.intervals, strict=True):
            rows = [
                (np.nan,) * 3
                if table is None
                else tuple(table.loc[attack, ["accuracy", "low", "high"]])
                for table in found.values()
            ]
            dots.set_offsets([(accuracy, place) for place, (accuracy, *_) in enumerate(rows)])
            lines.set_segments(
                [[(low, place), (high, place)] for place, (_, low, high) in enumerate(rows)]
            )
        for text, table in zip(self.absent, found.values(), strict=True):
            text.set_text("not trained" if table is None else "")
        own = "the dashed curve" if earlier else entrant_name(OWN_CURVE)
        return list_results(found, own, self.values["seed"])


def race(run: Run | None = None) -> Race:
    """Draw a weighting curve, train it, and compare it with AT, GAIRAT, MAIL-AT and CLIRAT.

    Eight points give w at evenly spaced scores (-PM of the attacked image, from -1, safe, to 1);
    weights are normalised to mean 1 over the batch. Behind the curve stand the scores of `run`'s
    training images under attack, by its finished network: as counted, and as the curve weighs them.
    Beside it stand the share of the weight per class, and the accuracy under no attack and under
    PGD-20 with 95 % intervals, of what has been trained so far. Without `run` there are no scores
    to weigh.

    "train it" trains and evaluates the curve and then those rivals that are missing, in a process
    beside the notebook, with the recipe and settings of `run` (without one: digits, 20 epochs) and
    the chosen seed; "stop" ends it, and finished epochs are kept. The curve of the last race stays
    as a dashed line, with its accuracy, while others are drawn. "code" shows the line of Python
    that makes the same run.

    Raises:
        KitError: the run stored no logits, the curve has no point above 0, or "stop" is pressed
            where nothing is trained.

    Source: the curve is the reader's own; PM is MAIL Eq. 4.
    """
    return Race(run)
