"""What every widget of the kit is: a figure with controls and a sentence.

The figure stands under a few controls; below it are the sentence, which says what the picture
shows, and a line for what went wrong. A widget is a subclass of `Panel` that says which controls it
has, draws what stands still, and moves what moves:

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, Self

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.text import Text
from PIL import Image

from kit.core.environment import is_kernel_attended, widgets_choice
from kit.core.errors import KitError, unknown_name
from kit.experiments.runs import Run
from kit.figures.base import Drawing
from kit.figures.style import styled
from kit.widgets.controls import Action, Control
from kit.widgets.stacked_picture import Span, find_columns, stack_columns
from kit.widgets.thumbnails import Dots, Stop, Thumbnail, Thumbnails, find_nearest, order_images

SCREEN_DPI = 100

#: In points: no text of a panel is smaller. It is 12 pixels, legible from the last row.
LEAST_FONT = 12 * 72 / SCREEN_DPI


def attended() -> bool:
    """Say whether somebody is there to move a slider.

    KIT_WIDGETS=0 or 1 decides; without it, the answer is yes in a kernel of JupyterLab, Notebook or
    Voila.
    """
    said = widgets_choice()
    return is_kernel_attended() if said is None else said


class Panel:
    """A figure with controls.

    `values` is what is set, `sentence` says in words what the picture shows, and `trouble` says
    what went wrong last ("" if nothing). `set` and `press` do what a hand does.
    """

    name: str = ""
    title: str = ""
    source: str = "-"
    #: In inches.
    size: tuple[float, float] = (7.0, 3.0)
    #: A change of these controls draws everything anew, and asks for the controls again.
    rebuilds: frozenset[str] = frozenset()
    #: The picture takes the mouse and the arrow keys: `point` and `nudge`.
    pointed_at: bool = False
    #: It shows photographs, which a dark page must not invert.
    photo: bool = False

    def __init__(self, runs: tuple[Run, ...] = ()):
        self.runs = runs
        self.figure = Drawing(*self.size)
        self.figure.set_dpi(SCREEN_DPI)
        self.sentence = self.trouble = ""
        self.view: Any = None  # the ipywidgets that show it, once it is on a page
        self.shown_controls: tuple[Control, ...] = ()
        self.values: dict[str, Any] = {}
        self._tries: tuple[Action, ...] = ()  # the buttons of `offer`
        self._lock = threading.RLock()
        self._delayed: list[bool] | None = None  # within `_drawn_once`: whether each draws anew
        self._moving: list[Artist] = []
        self._still: Any = None  # the pixels of what stands still
        self.columns: list[Span] = []  # of the picture, for a page that is too narrow for it
        self._take_controls()
        self.rebuild()

    # ---- what a widget says

    def controls(self, values: dict[str, Any]) -> list[Control]:
        """The controls at these values ({} at first), in order."""
        raise NotImplementedError

    def build(self, figure: Drawing, values: dict[str, Any]) -> list[Artist]:
        """Draw on the empty figure, and return the artists that `update` will move."""
        raise NotImplementedError

    def update(self, values: dict[str, Any]) -> str:
        """Move the moving artists, and return what the picture shows: a sentence with numbers."""
        raise NotImplementedError

    def point(self, axes: Axes, x: float, y: float, begins: bool) -> None:
        """Change values while the mouse is down at (x, y) of `axes`, in its data.

        `begins` is True for the press itself, and False while the button is held.
        """

    def nudge(self, right: int, up: int) -> None:
        """Change values for arrow keys on the picture: so many steps."""

    def image_dots(self) -> list[Dots]:
        """The dots of the picture, as it stands, that are images of `runs[0]`."""
        return []

    def offer(self, *settings: Mapping[str, Any]) -> Self:
        """Put buttons "Try 1", "Try 2", ... on the panel, one for each of these settings."""
        self._tries = tuple(
            Action(
                f"Try {number}",
                partial(self.set, **values),
                ", ".join(f"{name} = {value}" for name, value in values.items()),
                sets=True,
            )
            for number, values in enumerate(settings, 1)
        )
        self._take_controls()
        return self

    # ---- what a hand does

    def set(self, **values: Any) -> None:
        """Set controls by name, check them, and draw.

        Raises:
            KitError: a name or a value is refused. Nothing is changed then.
        """
        with self._lock:
            checked = self.check(values)
            before = dict(self.values)
            try:
                self.values |= checked
                changed = {name for name in checked if checked[name] != before[name]}
                if anew := bool(self.rebuilds & changed):
                    self._take_controls()
                self._draw(anew)
            except BaseException:
                self._restore(before)
                raise

    def check(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the controls of these names keep of the values.

        Raises:
            KitError: a name or a value is refused.
        """
        known = {
            control.name: control
            for control in self.shown_controls
            if not isinstance(control, Action)
        }
        for name in values:
            if name not in known:
                raise unknown_name(f"control of {self.name}", name, known)
        return {name: known[name].check(value) for name, value in values.items()}

    def press(self, name: str) -> None:
        """Press a button by its name.

        Raises:
            KitError: there is no such button, or it cannot do its work now.
        """
        actions = {
            control.name: control for control in self.shown_controls if isinstance(control, Action)
        }
        if name not in actions:
            raise unknown_name(f"button of {self.name}", name, actions)
        actions[name].press()
        if actions[name].sets:
            return
        with self._lock:
            self._take_controls()
            self.rebuild()

    def _set_choices_first(
        self,
        choices: tuple[str, ...],
        kept: tuple[str, ...],
        wanted: dict[str, Any],
        set_values: Callable[..., None],
    ) -> None:
        """Set `wanted` where other controls depend on some `choices`: all of it, or nothing.

        The choices are set one by one; with each, all values but the choices and the `kept` begin
        anew. The rest of `wanted` follows.
        """
        before, begun = dict(self.values), False
        try:
            with self._drawn_once():
                for name in choices:
                    if name in wanted and wanted[name] != self.values[name]:
                        begun = True
                        self.values = {
                            other: value
                            for other, value in self.values.items()
                            if other in (*choices, *kept)
                        }
                        set_values(**{name: wanted[name]})
                if rest := {name: value for name, value in wanted.items() if name not in choices}:
                    set_values(**rest)
        except BaseException:
            if begun:
                self._restore(before)
            raise

    @contextmanager
    def _drawn_once(self) -> Iterator[None]:
        """Draw at the end what changes several controls, and not with each of them."""
        self._delayed = []
        try:
            yield
        finally:
            delayed, self._delayed = self._delayed, None
        if delayed:
            self._draw(any(delayed))

    def _draw(self, anew: bool) -> None:
        """Draw everything `anew`, or what moves; not yet within `_drawn_once`."""
        if self._delayed is not None:
            self._delayed.append(anew)
        elif anew:
            self.rebuild()
        else:
            self.redraw()

    def _restore(self, values: dict[str, Any]) -> None:
        """Go back to earlier values."""
        self.values = values
        self._take_controls()
        self.rebuild()

    # ---- drawing

    def _take_controls(self) -> None:
        """Ask for the controls at today's values; a control that is new begins at its own value."""
        for _ in range(2):  # an option may be gone, and other controls may depend on it
            self.shown_controls = (*self.controls(self.values), *self._tries)
            values = {}
            for control in self.shown_controls:
                if isinstance(control, Action):
                    continue
                try:
                    values[control.name] = control.check(
                        self.values.get(control.name, control.value)
                    )
                except KitError:
                    values[control.name] = control.value
            self.values = values
        if self.view:
            self.view.lay_out()

    def rebuild(self) -> None:
        """Draw what stands still and what moves."""
        with self._lock, styled():
            self.figure.clear()
            self.figure.set_layout_engine("constrained")
            self._moving = self.build(self.figure, self.values)
            for words in self.figure.findobj(Text):
                words.set_fontsize(max(words.get_fontsize(), LEAST_FONT))
            self.sentence = self.update(self.values)
            # laid out once: nothing jumps when a slider moves
            layout = self.figure.get_layout_engine()
            assert layout is not None, "it was set above"
            layout.execute(self.figure)
            self.figure.set_layout_engine("none")
            for artist in self._moving:
                artist.set_animated(True)
            self.figure.canvas.draw()
            self._still = self.figure.canvas.copy_from_bbox(self.figure.bbox)
            self.columns = find_columns(self.figure)
            self._show()

    def redraw(self) -> None:
        """Draw what moves over what stands still."""
        with self._lock, styled():
            self.sentence = self.update(self.values)
            self._show()

    def _show(self) -> None:
        self.figure.caption, self.trouble = self.sentence, ""
        self.figure.facts = dict(self.values)
        if self.view:
            self.view.show()

    def png(self, stacked: Sequence[Span] = ()) -> bytes:
        """The picture as it stands, quickly made: light compression, screen size.

        `stacked` are spans of it that stand one below the other.
        """
        with self._lock, styled():
            canvas = self.figure.canvas
            canvas.restore_region(self._still)
            for artist in self._moving:
                (artist.axes or self.figure).draw_artist(artist)
            buffer = io.BytesIO()
            pixels = np.asarray(canvas.buffer_rgba())[..., :3]
            if stacked:
                pixels = stack_columns(pixels, stacked)
            Image.fromarray(pixels).save(buffer, "png", compress_level=1)
            return buffer.getvalue()

    def locate(self, x: float, y: float) -> tuple[Axes, float, float] | None:
        """The axes at a place of the picture, and the place in their data; None beside all axes.

        The place is given in shares, from (0, 0) at the lower left to (1, 1) at the upper right.
        """
        pixel = (x * self.figure.bbox.width, y * self.figure.bbox.height)
        for axes in self.figure.axes:
            if axes.bbox.contains(*pixel):
                across, up = axes.transData.inverted().transform(pixel)
                return axes, float(across), float(up)
        return None

    def find_thumbnail(self, x: float, y: float) -> Thumbnail | None:
        """The image behind the dot at a place of the picture, as `locate` has it; None beside all.

        Raises:
            KitError: the run's images are not there, or have changed.
        """
        with self._lock:
            pixel = (x * self.figure.bbox.width, y * self.figure.bbox.height)
            found = find_nearest(self.image_dots(), pixel)
            return self.thumbnails.show(*found) if found else None

    def find_stop(self, number: int) -> Stop:
        """The image of a number from 1, from left to right; the nearest one where there is none.

        Raises:
            KitError: the run's images are not there, or have changed.
        """
        with self._lock:
            images = order_images(self.image_dots())
            number = min(max(number, 1), len(images))
            dots, row = images[number - 1]
            x, y = dots.axes.transData.transform(dots.places[row]) / self.figure.bbox.size
            shown = self.thumbnails.show(dots, row)
            return Stop(number, len(images), (float(x), float(y)), shown)

    @cached_property
    def thumbnails(self) -> Thumbnails:
        """The images behind the dots."""
        return Thumbnails(self.runs[0])

    # ---- on a page

    def __repr__(self) -> str:
        return f"{self.title}: {self.sentence}"

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        data, metadata = self.figure._repr_mimebundle_()
        if attended():
            if self.view is None:
                from kit.widgets.panel_view import PanelView  # loads ipywidgets

                self.view = PanelView(self)
            shown = self.view.box._repr_mimebundle_()
            data |= shown[0] if isinstance(shown, tuple) else shown
        return data, metadata
