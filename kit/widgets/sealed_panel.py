"""A prediction is sealed before the result is shown: a number first, then run and paper."""

from __future__ import annotations

import contextlib
import secrets
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Annotation

from kit.core.errors import KitError
from kit.core.files import read_json, write_json
from kit.core.parameters import Real, check_value
from kit.evaluation.accuracy import evaluate
from kit.evaluation.masking_rules import AUTOATTACK_PARTS
from kit.evaluation.statistics import paired_difference
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.papers.printed_data import read_table
from kit.widgets.controls import Action, Number, Text
from kit.widgets.panel import Panel, attended

OWN_RESULT, PAPER_RESULT = "this run", "the paper"

#: Tint and marker.
RESULT_STYLES = {OWN_RESULT: (s.VERMILLION, "o"), PAPER_RESULT: (s.BLACK, "D")}

#: On the vertical axis; the class's predictions stand below one's own, and the results below these.
PREDICTION_HEIGHT, CLASS_HEIGHT = 2, 1.5

#: The share of the axis, from the left, in which a number stands right of its mark.
ROOM_ON_THE_RIGHT = 0.68


# ------------------------------------------------------------------------------- the data it needs


@dataclass(frozen=True)
class Question:
    """What is to be predicted, on which scale; two that are equal have one seal."""

    words: str
    low: float
    high: float
    unit: str

    @property
    def scale(self) -> str:
        """The scale in words."""
        return f"from {self.low:g} to {self.high:g} {self.unit}".rstrip()

    def format(self, value: float) -> str:
        """A value with its unit."""
        return f"{value:.4g} {self.unit}".rstrip()

    def check(self, typed: object) -> str:
        """Return a typed prediction as it is kept; "" where there is none.

        Raises:
            KitError: It is no number of the scale.
        """
        words = str(typed).strip()
        scale = Number("prediction", self.low, self.low, self.high)
        return f"{scale.parse(words):.10g}" if words else ""


@dataclass(frozen=True)
class Result:
    """A number that was measured, and its 95 % interval over n images, where there is one."""

    value: float
    low: float
    high: float
    n: int | None = None


def printed_fall(method: str) -> float | None:
    """How many points a method loses from PGD-100 to AutoAttack in MAIL's Table 2.

    None where the table does not have it.

    Source: MAIL Table 2.
    """
    rows = read_table("results").query("paper == 'mail' and table == 'T2' and row == @method")
    printed = dict(zip(rows["attack"], rows["mean"], strict=True))
    if not {"pgd100", "aa"} <= printed.keys():
        return None
    return round(float(printed["pgd100"]) - float(printed["aa"]), 2)


def measured_fall(run: Run, n: int) -> dict[str, float]:
    """How many points a run loses from PGD-100 to AutoAttack on its first `n` test images.

    AutoAttack is the union of its four, each on all images, as the audit and `mirage` have it.

    Returns:
        What `reveal` takes: own, low and high (95 %) in points, and n.
    """
    examples = evaluate(run, ["pgd100", *AUTOATTACK_PARTS], n=n, quiet=True).attrs["examples"]
    union = np.any([examples[attack]["broken"] for attack in AUTOATTACK_PARTS], axis=0)
    fall = paired_difference(union, examples["pgd100"]["broken"])
    own, low, high = (round(100 * float(value), 1) for value in fall)
    return {"own": own, "low": low, "high": high, "n": len(union)}


def keep_prediction(folder: Path, question: Question, prediction: float) -> None:
    """Keep a sealed prediction in the class's folder: a small file of its own, without a name."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"question": question.words, "unit": question.unit, "prediction": prediction}
    write_json(folder / f"prediction-{secrets.token_hex(4)}.json", record)


def read_predictions(folder: Path, question: Question) -> list[float]:
    """Read what the class has predicted of this question; files of other kinds do not count."""
    found = []
    for path in sorted(folder.glob("prediction-*.json")):
        with contextlib.suppress(KitError, TypeError, KeyError, ValueError):
            record = read_json(path)
            if (record["question"], record["unit"]) == (question.words, question.unit):
                found.append(float(record["prediction"]))
    return found


# -------------------------------------------------------------------------------- what it computes


def describe_class(question: Question, own: Result, predictions: Sequence[float]) -> str:
    """The class's predictions in words; "" where there are none."""
    if not predictions:
        return ""
    inside = sum(own.low <= value <= own.high for value in predictions)
    middle = question.format(statistics.median(predictions))
    return (
        f" The class sealed {len(predictions)} prediction{'' if len(predictions) == 1 else 's'}: "
        f"{inside} inside the interval, median {middle}."
    )


def describe_results(
    question: Question, results: dict[str, Result], prediction: float | None
) -> str:
    """The prediction, one's own result and the paper's in words."""
    own = results[OWN_RESULT]
    count = f", n = {own.n}" if own.n is not None else ""
    interval = (
        f" (95 % interval {own.low:.4g} to {own.high:.4g}{count})" if own.high > own.low else count
    )
    words = [f"This run: {question.format(own.value)}{interval}."]
    if PAPER_RESULT in results:
        words.append(f"The paper prints {question.format(results[PAPER_RESULT].value)}.")
    if prediction is None:
        first = "No prediction was made: nobody was here to predict."
    else:
        how = compare_with_result(prediction, own)
        first = f"The prediction was {question.format(prediction)}, {how}."
    return " ".join([first, *words])


def compare_with_result(prediction: float, own: Result) -> str:
    """How far a prediction is from the result, in words."""
    off = prediction - own.value
    if own.low <= prediction <= own.high and own.high > own.low:
        return "inside the interval"
    return f"{abs(off):.3g} too {'high' if off > 0 else 'low'}" if off else "exactly that"


# ---------------------------------------------------------------------------------- how it is drawn


class Scale(Panel):
    """An axis on which a prediction stands, and later the results.

    `results` is {} before they are revealed.
    """

    source = "-"
    #: Of this kernel, by question: the sealed numbers, and the panels that a seal opens.
    seals: ClassVar[dict[Question, float]] = {}
    closed_yet: ClassVar[dict[Question, list[Scale]]] = {}

    def __init__(
        self,
        name: str,
        question: Question,
        results: dict[str, Result],
        paper: float | None = None,
        folder: Path | None = None,
    ):
        self.name, self.title = name, question.words
        self.size = (7.5, 2.2 if results else 1.3)
        self.question, self.results, self.paper = question, results, paper
        self.folder = folder  # where the class's predictions are kept
        super().__init__()

    # ---- its controls, and what is sealed

    @property
    def sealed(self) -> float | None:
        """The sealed number; None before."""
        return self.seals.get(self.question)

    @property
    def closed(self) -> bool:
        """Are there results that may not be seen yet?"""
        return bool(self.results) and self.sealed is None and attended()

    def controls(self, values):
        """The prediction and its seal, as long as it is open; a result looks for the class's.

        The field is empty at first: a number to begin with would draw predictions towards it.
        """
        if self.results:
            new = Action("show the class", self.look_again, "read what was sealed since")
            return [new] if self.folder is not None and not self.closed else []
        if self.sealed is not None:
            return []
        return [
            Text("prediction", "", f"a number {self.question.scale}", self.question.check),
            Action("seal", self.seal, "it cannot be moved afterwards"),
        ]

    def look_again(self) -> None:
        """Nothing to do: the picture is drawn anew, and reads the folder."""

    def seal(self) -> None:
        """Commit the number that was typed, for as long as this kernel lives.

        Raises:
            KitError: Nothing was typed yet.
        """
        if self.sealed is None:
            if not self.values["prediction"]:
                raise KitError(
                    f"there is no prediction yet; type a number {self.question.scale}, then seal it"
                )
            prediction = float(self.values["prediction"])
            if self.folder is not None:
                keep_prediction(self.folder, self.question, prediction)
            self.seals[self.question] = prediction
        for panel in self.closed_yet.pop(self.question, []):
            panel.open()

    def open(self) -> None:
        """Show the result, now that the prediction is sealed."""
        self._take_controls()
        self.rebuild()

    def reveal(
        self, own: float, low: float | None = None, high: float | None = None, n: int | None = None
    ) -> Panel:
        """Show the prediction beside the `own` result, its interval and the paper's number.

        The 95 % interval goes from `low` to `high`, over `n` images. The panel stays closed until
        the prediction is sealed, and opens by itself then. Where nobody could predict it shows the
        results alone.

        Raises:
            KitError: the result is no number, or the interval does not hold it.
        """
        check_value("own", own, Real)
        low, high = (
            own if end is None else check_value("own's interval", end, Real) for end in (low, high)
        )
        if not low <= own <= high:
            raise KitError(
                f"own = {own:g} lies outside its interval, {low:g} to {high:g}; give low and high "
                "around it"
            )
        results = {OWN_RESULT: Result(own, low, high, n)}
        if self.paper is not None:
            results[PAPER_RESULT] = Result(self.paper, self.paper, self.paper)
        panel = Scale("revealed", self.question, results, folder=self.folder)
        if panel.closed:
            self.closed_yet.setdefault(self.question, []).append(panel)
        return panel

    # ---- what stands still

    def build(self, figure, values):
        """Draw the scale, and the results that may be seen."""
        shown = {} if self.closed else self.results
        axes = figure.subplots()
        self._build_axes(axes, shown)
        self.predictions = (
            read_predictions(self.folder, self.question) if shown and self.folder else []
        )
        if self.predictions:
            axes.set_yticks([*axes.get_yticks(), CLASS_HEIGHT], [*self.row_names, "the class"])
            heights = [CLASS_HEIGHT] * len(self.predictions)
            axes.plot(self.predictions, heights, "|", markersize=12, color=s.BLUE, alpha=0.6)
        for line, (name, (tint, mark)) in enumerate(RESULT_STYLES.items()):
            if name in shown:
                self._draw_result(axes, 1 - line, shown[name], tint, mark)
        (self.mark,) = axes.plot([], [], "s", markersize=9, color=s.BLUE)
        (self.line,) = axes.plot([], [], ":", color=s.BLUE, linewidth=1.5)
        self.number = self._words_at(axes, PREDICTION_HEIGHT, s.BLUE)
        return [self.line, self.mark, self.number]

    def _build_axes(self, axes: Axes, shown: dict[str, Result]) -> None:
        low, high = self.question.low, self.question.high
        names = list(RESULT_STYLES) if self.results else []
        ends = [low, high, *(end for result in shown.values() for end in (result.low, result.high))]
        rim = 0.02 * (high - low)
        axes.set(
            xlim=(min(ends) - rim, max(ends) + rim),
            ylim=(1.5 - len(names) * 1.05, 2.5),
            xlabel=self.question.unit,
        )
        self.row_names = ["prediction", *[name if name in shown else "" for name in names]]
        axes.set_yticks([PREDICTION_HEIGHT, 1, 0][: 1 + len(names)], self.row_names)
        axes.tick_params(axis="y", length=0)
        axes.set_title(self.question.words, wrap=True)
        axes.grid(axis="x")

    def _draw_result(self, axes: Axes, y: float, result: Result, tint: str, mark: str) -> None:
        axes.errorbar(
            result.value,
            y,
            xerr=[[result.value - result.low], [result.high - result.value]],
            fmt=mark,
            color=tint,
            markersize=7,
            capsize=3,
            elinewidth=1.5,
        )
        words = self._words_at(axes, y, tint)
        self._place_words(words, result.low, result.high, f"{result.value:.4g}")

    def _words_at(self, axes: Axes, y: float, tint: str) -> Annotation:
        return axes.annotate(
            "",
            (self.question.low, y),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            color=tint,
            fontweight="bold",
            annotation_clip=False,
            bbox={"color": "white", "pad": 0.5},
        )

    def _place_words(self, words: Annotation, low: float, high: float, text: str) -> None:
        """Set words right of what reaches from low to high; left of it in the axis' right third."""
        scale = self.question
        right = high < scale.low + ROOM_ON_THE_RIGHT * (scale.high - scale.low)
        words.xy = (high if right else low, words.xy[1])
        words.set(text=text, ha="left" if right else "right", position=(10 if right else -10, 0))

    # ---- what moves

    def update(self, values):
        """Move the prediction."""
        typed = values.get("prediction")
        value = self.sealed if self.sealed is not None else float(typed) if typed else None
        self._move_prediction(value)
        if self.results and not self.closed:
            return describe_results(self.question, self.results, self.sealed) + describe_class(
                self.question, self.results[OWN_RESULT], self.predictions
            )
        return self._describe_prediction(value)

    def _move_prediction(self, value: float | None) -> None:
        """Show the prediction; None where there is none yet."""
        sealed, with_line = self.sealed is not None, value is not None and bool(self.results)
        self.mark.set_data(*(([value], [PREDICTION_HEIGHT]) if value is not None else ([], [])))
        self.mark.set_markerfacecolor(s.BLUE if sealed else "white")
        self.line.set_data(
            *(([value, value], [-0.6, PREDICTION_HEIGHT]) if with_line else ([], []))
        )
        if value is not None:
            words = f"{value:.4g}, {'sealed' if sealed else 'not sealed yet'}"
        else:
            words = "not sealed yet" if attended() else "none: nobody was here to predict"
        where = self.question.low if value is None else value
        self._place_words(self.number, where, where, words)

    def _describe_prediction(self, value: float | None) -> str:
        words, scale, how = self.question.words, self.question.scale, self.question.format
        if self.sealed is not None:
            return f"{words} The prediction {how(self.sealed)} is sealed ({scale})."
        if self.results:
            return (
                f"{words} The result is closed: type your prediction above ({scale}) and press "
                "seal; it opens here."
            )
        if value is not None:
            return f"{words} The field says {how(value)}, not sealed yet ({scale})."
        if not attended():
            return f"{words} No prediction, {scale}: skipped, nobody was here to predict."
        return f"{words} No prediction yet: type a number, {scale}, and press seal."


def sealed(
    question: str,
    low: float = 0.0,
    high: float = 100.0,
    unit: str = "%",
    paper: float | None = None,
    folder: str | Path = "",
) -> Panel:
    """A number that is committed before a result is seen: an empty field, and a seal.

    The number lies between `low` and `high` in `unit`. `reveal(own, low, high, n)` of what it
    returns shows the prediction, one's own result with its interval, and the number that the paper
    prints (`paper`, in the same unit; not shown before) on one axis. A sealed number stays for as
    long as the kernel lives, also when the cell is run again. Each sealed number is kept in
    `folder` as a small file, and the result shows all that are there on one scale; "" keeps none.
    Where nobody is there to predict, nothing is predicted and it says so.

    Raises:
        KitError: the question is empty, or limits are no numbers or the wrong way round.
    """
    for name, value in (
        ("low", low),
        ("high", high),
        *([("paper", paper)] if paper is not None else []),
    ):
        check_value(name, value, Real)
    if not question.strip():
        raise KitError("the question is empty; say what is to be predicted")
    if not low < high:
        raise KitError(f"low = {low:g} must be below high = {high:g}")
    place = Path(folder).expanduser() if folder else None
    return Scale("sealed", Question(question, float(low), float(high), unit), {}, paper, place)
