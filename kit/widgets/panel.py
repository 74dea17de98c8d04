"""What every widget of the kit is: one figure under a few controls, a sentence, and a line for what
went wrong.

A widget is a subclass of `Panel` that says which controls it has, draws what stands still, and
moves what moves:

    class Halves(Panel):
        name, title, size = "halves", "A line that bends", (6.0, 2.5)

        def controls(self, values):
            return [Number("slope", 1.0, 0.0, 5.0, 0.1)]

        def build(self, figure, values):
            self.line, = figure.subplots().plot([0, 1], [0, 5])
            return [self.line]

        def update(self, values):
            self.line.set_ydata([0, values["slope"]])
            return f"The line ends at {values['slope']:g}."

What stands still is drawn once and kept as pixels; a change draws the moving artists over it and
sends a PNG. That is several times faster than drawing the figure anew, and the page never shows an
empty picture. Where nobody is there to move a slider (papermill, nbconvert) no widget is made at
all: the same cell shows the picture of the default setting.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from PIL import Image

from kit.core.environment import is_kernel_attended, widgets_choice
from kit.core.errors import KitError, unknown_name
from kit.experiments.runs import Run
from kit.figures.base import Drawing
from kit.figures.style import styled

DPI = 100


def attended() -> bool:
    """Is somebody there to move a slider?

    KIT_WIDGETS=0 or 1 decides; else a kernel of JupyterLab, Notebook or Voila.
    """
    said = widgets_choice()
    return is_kernel_attended() if said is None else said


# ----------------------------------------------------------------------------------------- controls


@dataclass(frozen=True)
class Number:
    """A slider with a number field; `integer` counts in whole steps, `plays` puts a play button
    beside it.
    """

    name: str
    value: float
    low: float
    high: float
    step: float = 0.01
    meaning: str = ""
    integer: bool = False
    plays: bool = False

    def check(self, value: Any) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not self.low <= value <= self.high
        ):
            raise KitError(
                f"{self.name} = {value} is out of range: it goes from {self.low:g} to {self.high:g}"
            )
        if self.integer and int(value) != value:
            raise KitError(
                f"{self.name} = {value} must be a whole number from {self.low:g} to {self.high:g}"
            )
        if self.integer:
            return int(value)
        # a slider sends low + k · step with its rounding
        return float(self.value) if abs(value - self.value) < 1e-9 else float(f"{value:.10g}")


@dataclass(frozen=True)
class Choice:
    """One of several words."""

    name: str
    value: str
    options: tuple[str, ...]
    meaning: str = ""

    def check(self, value: Any) -> str:
        if value not in self.options:
            raise unknown_name(self.name, str(value), self.options)
        return value


@dataclass(frozen=True)
class Toggle:
    """On or off."""

    name: str
    value: bool
    meaning: str = ""

    def check(self, value: Any) -> bool:
        return bool(value)


@dataclass(frozen=True)
class Text:
    """A line of words; `checked` refuses what makes no sense with a `KitError`."""

    name: str
    value: str
    meaning: str = ""
    checked: Callable[[str], str] = str

    def check(self, value: Any) -> str:
        return self.checked(value)


@dataclass(frozen=True)
class Action:
    """A button: `press()` may change anything of the panel, which is drawn anew afterwards."""

    name: str
    press: Callable[[], None]
    meaning: str = ""


Control = Number | Choice | Toggle | Text | Action


# ---------------------------------------------------------------------------------------- the panel


class Panel:
    """A figure with controls. `values` is what is set, `sentence` says in words what the picture
    shows, `trouble` what went wrong last, "" if nothing. `set` and `press` do what a hand does.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    source: ClassVar[str] = "-"
    size: ClassVar[tuple[float, float]] = (7.0, 3.0)  # inches
    rebuilds: ClassVar[frozenset[str]] = (
        frozenset()
    )  # a change of these draws what stands still, and the controls, anew
    pointed_at: ClassVar[bool] = (
        False  # the picture takes mouse and arrow keys: `point` and `nudge`
    )
    photo: ClassVar[bool] = False  # shows photographs, which a dark page must not invert

    def __init__(self, runs: tuple[Run, ...] = ()):
        self.runs = runs
        self.figure = Drawing(*self.size)
        self.figure.set_dpi(DPI)
        self.sentence = self.trouble = ""
        self.face = None
        self._lock = threading.RLock()
        self._moving: list[Artist] = []
        self._still: Any = None
        self.given: tuple[Control, ...] = ()
        self.values: dict[str, Any] = {}
        self._take_controls()
        self.rebuild()

    # ---- what a widget says

    def controls(self, values: dict[str, Any]) -> list[Control]:
        """The controls at these values ({} at first), in order."""
        raise NotImplementedError

    def build(self, figure: Drawing, values: dict[str, Any]) -> list[Artist]:
        """Draw on the empty figure; -> the artists that `update` will move."""
        raise NotImplementedError

    def update(self, values: dict[str, Any]) -> str:
        """Move the moving artists; -> what the picture shows now, a sentence with its numbers."""
        raise NotImplementedError

    def point(self, axes: Axes, x: float, y: float, begins: bool) -> None:
        """The mouse is down at (x, y) of `axes`, in its data; `begins` with the press, not while
        held. Change values.
        """

    def nudge(self, right: int, up: int) -> None:
        """Arrow keys on the picture: so many steps. Change values."""

    # ---- what a hand does

    def set(self, **values: Any) -> None:
        """Set controls by name, check them, and draw.

        Errors: `KitError`, and nothing is changed.
        """
        with self._lock:
            known = {
                control.name: control for control in self.given if not isinstance(control, Action)
            }
            for name in values:
                if name not in known:
                    raise unknown_name(f"control of {self.name}", name, known)
            checked = {name: known[name].check(value) for name, value in values.items()}
            before = dict(self.values)
            try:
                self.values |= checked
                if self.rebuilds & {name for name in checked if checked[name] != before[name]}:
                    self._take_controls()
                    self.rebuild()
                else:
                    self.redraw()
            except BaseException:
                self.values = before
                self._take_controls()
                self.rebuild()
                raise

    def press(self, name: str) -> None:
        """Press a button by its name."""
        actions = {control.name: control for control in self.given if isinstance(control, Action)}
        if name not in actions:
            raise unknown_name(f"button of {self.name}", name, actions)
        actions[name].press()
        with self._lock:
            self._take_controls()
            self.rebuild()

    # ---- drawing

    def _take_controls(self) -> None:
        """The controls at today's values; a control that is new begins at its own value."""
        for _ in range(2):  # a choice may be gone, and others hang on it
            self.given = tuple(self.controls(self.values))
            values = {}
            for control in self.given:
                if isinstance(control, Action):
                    continue
                try:
                    values[control.name] = control.check(
                        self.values.get(control.name, control.value)
                    )
                except KitError:
                    values[control.name] = control.value
            self.values = values
        if self.face:
            self.face.lay_out()

    def rebuild(self) -> None:
        """Draw what stands still and what moves."""
        with self._lock, styled():
            self.figure.clear()
            self.figure.set_layout_engine("constrained")
            self._moving = self.build(self.figure, self.values)
            self.sentence = self.update(self.values)
            self.figure.canvas.draw()
            self.figure.set_layout_engine(
                "none"
            )  # laid out once: nothing jumps when a slider moves
            for artist in self._moving:
                artist.set_animated(True)
            self.figure.canvas.draw()
            self._still = self.figure.canvas.copy_from_bbox(self.figure.bbox)
            self._show()

    def redraw(self) -> None:
        """Draw what moves over what stands still."""
        with self._lock, styled():
            self.sentence = self.update(self.values)
            self._show()

    def _show(self) -> None:
        self.figure.caption, self.trouble = self.sentence, ""
        self.figure.facts = dict(self.values)
        if self.face:
            self.face.show()

    def png(self) -> bytes:
        """The picture as it stands, quickly made: light compression, screen size."""
        with self._lock, styled():
            canvas = self.figure.canvas
            canvas.restore_region(self._still)
            for artist in self._moving:
                (artist.axes or self.figure).draw_artist(artist)
            buffer = io.BytesIO()
            Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(
                buffer, "png", compress_level=1
            )
            return buffer.getvalue()

    def locate(self, x: float, y: float) -> tuple[Axes, float, float] | None:
        """The axes at a place of the picture, from (0, 0) lower left to (1, 1) upper right, and the
        place in their data.
        """
        pixel = (x * self.figure.bbox.width, y * self.figure.bbox.height)
        for axes in self.figure.axes:
            if axes.bbox.contains(*pixel):
                return (axes, *map(float, axes.transData.inverted().transform(pixel)))
        return None

    # ---- faces

    def __repr__(self) -> str:
        return f"{self.title}: {self.sentence}"

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        data, metadata = self.figure._repr_mimebundle_()
        if attended():
            if self.face is None:
                from kit.widgets.panel_view import Face

                self.face = Face(self)
            shown = self.face.box._repr_mimebundle_()
            data |= shown[0] if isinstance(shown, tuple) else shown
        return data, metadata
