"""A prediction that is sealed before the result is shown:

a number first, then the run, then the paper.
"""

from __future__ import annotations

import math
from typing import ClassVar

from matplotlib.text import Annotation

from kit.core.errors import KitError
from kit.core.parameters import Real, check_value
from kit.figures import style as s
from kit.widgets.panel import Action, Number, Panel, attended


class Scale(Panel):
    """An axis on which a prediction stands, and later the results; `results` is {} before they are
    revealed.
    """

    source = "-"
    #: By question, limits and unit, of this kernel: the sealed numbers, and the panels that a seal
    #: opens.
    seals: ClassVar[dict[tuple, float]] = {}
    closed_yet: ClassVar[dict[tuple, list[Scale]]] = {}

    def __init__(
        self,
        name: str,
        question: str,
        low: float,
        high: float,
        unit: str,
        results: dict[str, tuple],
        paper: float | None = None,
    ):
        self.name, self.title, self.question = name, question, question
        self.size = (7.5, 2.2 if results else 1.3)
        self.low, self.high, self.unit, self.results, self.paper = low, high, unit, results, paper
        super().__init__()

    @property
    def key(self) -> tuple:
        return self.question, self.low, self.high, self.unit

    @property
    def sealed(self) -> float | None:
        """The sealed number; None before."""
        return self.seals.get(self.key)

    def controls(self, values):
        if self.sealed is not None or self.results:
            return []
        step = 10 ** math.floor(math.log10((self.high - self.low) / 50))
        return [
            Number("prediction", (self.low + self.high) / 2, self.low, self.high, step, self.unit),
            Action("seal", self.seal, "it cannot be moved afterwards"),
        ]

    def seal(self) -> None:
        """Commit the number that the slider shows, for as long as this kernel lives."""
        if self.sealed is None:
            self.seals[self.key] = self.values["prediction"]
        for panel in self.closed_yet.pop(self.key, []):
            panel.rebuild()

    def reveal(
        self, own: float, low: float | None = None, high: float | None = None, n: int | None = None
    ) -> Panel:
        """The prediction beside the `own` result, its 95 % interval from `low` to `high` (of `n`
        images), and the paper's.

        It stays closed until the prediction is sealed, and opens by itself then. Where nobody could
        predict it shows the results alone. Errors: `KitError` for a result that is no number, or an
        interval that does not hold it.
        """
        check_value("own", own, Real)
        low, high = (
            own if end is None else check_value("own's interval", end, Real) for end in (low, high)
        )
        if not low <= own <= high:
            raise KitError(
                f"own = {own:g} lies outside its interval, {low:g} to {high:g}; give low and high "
                f"around it"
            )
        results = {"this run": (own, low, high, n)}
        if self.paper is not None:
            results["the paper"] = (self.paper, self.paper, self.paper, None)
        panel = Scale("revealed", self.question, self.low, self.high, self.unit, results)
        if panel.closed:
            self.closed_yet.setdefault(self.key, []).append(panel)
        return panel

    # ---- the picture

    @property
    def closed(self) -> bool:
        """Are there results that may not be seen yet?"""
        return bool(self.results) and self.sealed is None and attended()

    def build(self, figure, values):
        shown = {} if self.closed else self.results
        names = ["this run", "the paper"] if self.results else []
        axes = figure.subplots()
        ends = [self.low, self.high, *[end for result in shown.values() for end in result[1:3]]]
        rim = 0.02 * (self.high - self.low)
        axes.set(
            xlim=(min(ends) - rim, max(ends) + rim),
            ylim=(1.5 - len(names) * 1.05, 2.5),
            xlabel=self.unit,
        )
        axes.set_yticks(
            [2, 1, 0][: 1 + len(names)],
            ["prediction", *[name if name in shown else "" for name in names]],
        )
        axes.tick_params(axis="y", length=0)
        axes.set_title(self.question, wrap=True)
        axes.grid(axis="x")
        for line, (name, tint, mark) in enumerate(
            (("this run", s.VERMILLION, "o"), ("the paper", s.BLACK, "D"))
        ):
            if name in shown:
                value, low, high, _ = shown[name]
                axes.errorbar(
                    value,
                    1 - line,
                    xerr=[[value - low], [high - value]],
                    fmt=mark,
                    color=tint,
                    markersize=7,
                    capsize=3,
                    elinewidth=1.5,
                )
                self._tell(self._words_at(axes, 1 - line, tint), low, high, f"{value:.4g}")
        (self.mark,) = axes.plot([], [], "s", markersize=9, color=s.BLUE)
        (self.line,) = axes.plot([], [], ":", color=s.BLUE, linewidth=1.5)
        self.number = self._words_at(axes, 2, s.BLUE)
        return [self.line, self.mark, self.number]

    def _words_at(self, axes, y: float, tint: str) -> Annotation:
        return axes.annotate(
            "",
            (self.low, y),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            color=tint,
            fontweight="bold",
            annotation_clip=False,
            bbox={"color": "white", "pad": 0.5},
        )

    def _tell(self, words: Annotation, low: float, high: float, text: str) -> None:
        """Set words right of what reaches from low to high, or left of it in the right third of the
        axis.
        """
        right = high < self.low + 0.68 * (self.high - self.low)
        words.xy = (high if right else low, words.xy[1])
        words.set(text=text, ha="left" if right else "right", position=(10 if right else -10, 0))

    def update(self, values):
        fixed = self.sealed
        value = fixed if fixed is not None else values.get("prediction")
        there = value is not None and (fixed is not None or value != (self.low + self.high) / 2)
        self.mark.set_data([value] if there else [], [2] if there else [])
        self.mark.set_markerfacecolor(s.BLUE if fixed is not None else "white")
        self.line.set_data(
            [value, value] if there and self.results else [],
            [-0.6, 2] if there and self.results else [],
        )
        where = value if there else self.low
        self._tell(
            self.number,
            where,
            where,
            f"{value:.4g}, {'sealed' if fixed is not None else 'not sealed yet'}"
            if there
            else "not sealed yet"
            if attended()
            else "none: nobody was here to predict",
        )
        return self._results() if self.results and not self.closed else self._words(value, there)

    def _words(self, value: float | None, there: bool) -> str:
        scale = f"from {self.low:g} to {self.high:g} {self.unit}".rstrip()
        if self.sealed is not None:
            return f"{self.question} The prediction {self._of(value)} is sealed ({scale})."
        if self.results:
            return f"{self.question} The result is closed: set the slider above ({scale}) and press seal; it opens here."
        if there:
            return f"{self.question} The slider says {self._of(value)}, not sealed yet ({scale})."
        if not attended():
            return f"{self.question} No prediction, {scale}: skipped, nobody was here to predict."
        return f"{self.question} No prediction yet: set the slider, {scale}, and press seal."

    def _of(self, value: float) -> str:
        return f"{value:.4g} {self.unit}".rstrip()

    def _results(self) -> str:
        own, low, high, n = self.results["this run"]
        count = f", n = {n}" if n is not None else ""
        interval = f" (95 % interval {low:.4g} to {high:.4g}{count})" if high > low else count
        words = [f"This run: {self._of(own)}{interval}."]
        if "the paper" in self.results:
            words.append(f"The paper prints {self._of(self.results['the paper'][0])}.")
        if self.sealed is None:
            return " ".join(["No prediction was made: nobody was here to predict.", *words])
        off, inside = self.sealed - own, low <= self.sealed <= high and high > low
        how = (
            "inside the interval"
            if inside
            else "exactly that"
            if not off
            else (f"{abs(off):.3g} too {'high' if off > 0 else 'low'}")
        )
        return " ".join([f"The prediction was {self._of(self.sealed)}, {how}.", *words])


def sealed(
    question: str,
    low: float = 0.0,
    high: float = 100.0,
    unit: str = "%",
    paper: float | None = None,
) -> Panel:
    """A number that is committed before a result is seen: a slider from `low` to `high` in `unit`,
    and a seal.

    `reveal(own, low, high, n)` of what it returns shows the prediction, one's own result with its
    interval, and the number that the paper prints (`paper`, in the same unit; not shown before) on
    one axis. A sealed number stays for as long as the kernel lives, also when the cell is run
    again. Where nobody is there to predict, nothing is predicted and it says so.

    Errors: `KitError` for an empty question, limits that are no numbers or the wrong way round.
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
    return Scale("sealed", question, float(low), float(high), unit, {}, paper)
