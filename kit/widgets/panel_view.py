"""A panel on a page: ipywidgets above a picture. Imported only where somebody is there to look."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import ipywidgets
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kit.core.errors import KitError
from kit.widgets.controls import Action, Choice, Control, Number, Text, Toggle
from kit.widgets.keys import KeyGuard, Lens, Pad, WidthWatch
from kit.widgets.stacked_picture import Span, group_columns, place_in_stack, place_in_whole
from kit.widgets.thumbnails import Dots, Stop, Thumbnail

# On a dark page the picture's lightness is turned round and its hues are kept, so that it is no
# white slab there.
STYLE = """<style>
.kit-panel { max-width: 100%; overflow: hidden; position: relative; }
.kit-panel img { max-width: 100%; height: auto; display: block; }
.kit-panel img:focus-visible { outline: 2px solid var(--jp-brand-color1, #0072B2); }
.kit-sentence, .kit-trouble { margin: 2px 4px; line-height: 1.35; white-space: normal; }
.kit-sentence { color: var(--jp-ui-font-color1, inherit); }
.kit-controls .widget-hbox { flex-wrap: wrap; }
.kit-controls .jupyter-widgets { max-width: calc(100% - 4px); } /* they have margins */
.kit-trouble { color: #B34700; font-weight: 600; max-width: 26em; }
.kit-thumbnail {
  position: absolute; z-index: 1; margin: 0; padding: 4px; max-width: 14em; pointer-events: none;
  background: var(--jp-layout-color1, white); border: 1px solid var(--jp-border-color1, #999);
  color: var(--jp-ui-font-color1, inherit); font-size: 12px; line-height: 1.3;
}
.kit-thumbnail img { filter: none !important; }
.kit-ring {
  position: absolute; z-index: 1; box-sizing: border-box; width: 18px; height: 18px;
  margin: -9px; border-radius: 50%; border: 2px solid black; outline: 2px solid white;
  pointer-events: none;
}
.kit-step {
  display: inline-block; margin: 2px 4px; padding: 0 4px; cursor: default;
  color: var(--jp-ui-font-color1, inherit);
}
.kit-step:focus { outline: 2px solid var(--jp-brand-color1, #0072B2); }
/* Jupyter marks what has lost its kernel: a control there would do nothing. */
.kit-panel.jupyter-widgets-disconnected::before {
  content: "The kernel was restarted. Run this cell again to use its controls.";
  display: block; margin: 4px; color: #B34700;
  font: 600 14px/1.35 var(--jp-ui-font-family, sans-serif);
}
.kit-panel.jupyter-widgets-disconnected :is(.kit-controls, .kit-step) { display: none; }
.kit-panel .jupyter-widgets-disconnected::before { content: none; }
[data-jp-theme-light="false"] .kit-panel:not(.kit-photo) img {
  filter: invert(0.93) hue-rotate(180deg);
}
</style>"""


def _as_typed(value: Any) -> str:
    """A value as its field has it; a number without the zeros that nobody types."""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _kind(control: Control) -> tuple:
    """What may not change in a control that stays on the page: all but limits and options."""
    if isinstance(control, Number) and not control.plays:
        return Number, control.name, control.symbol, control.integer, control.step
    if isinstance(control, Choice | Action):
        return type(control), control.name
    return (control,)


def _lowest(control: Number) -> float:
    """Where the slider of a control begins.

    A slider takes its low end and whole steps from there only: the default must be one of them.
    """
    return control.value - math.floor((control.value - control.low) / control.step + 1e-9) * (
        control.step
    )


class ShownPanel(Protocol):
    """What the view asks of a panel; see `kit.widgets.Panel`."""

    name: str
    title: str
    photo: bool
    pointed_at: bool
    sentence: str
    trouble: str
    shown_controls: tuple[Control, ...]
    values: dict[str, Any]
    columns: list[Span]

    @property
    def figure(self) -> Figure:
        """What it draws on."""

    def set(self, **values: Any) -> None:
        """Set controls by name."""

    def press(self, name: str) -> None:
        """Press a button."""

    def point(self, axes: Axes, x: float, y: float, begins: bool) -> None:
        """The mouse is down at a place of the axes."""

    def nudge(self, right: int, up: int) -> None:
        """Arrow keys were pressed on the picture."""

    def locate(self, x: float, y: float) -> tuple[Axes, float, float] | None:
        """The axes at a place of the picture, and the place in their data."""

    def image_dots(self) -> list[Dots]:
        """The dots of the picture that are images."""

    def find_thumbnail(self, x: float, y: float) -> Thumbnail | None:
        """The image behind the dot at a place of the picture."""

    def find_stop(self, number: int) -> Stop:
        """The image of a number, from left to right."""

    def png(self, stacked: Sequence[Span] = ()) -> bytes:
        """The picture as it stands, spans of it one below the other."""


class PanelView:
    """A panel as ipywidgets, which hand every change to it and say what it refuses."""

    def __init__(self, panel: ShownPanel):
        self.panel = panel
        #: Control name -> the ipywidgets that show its value, and the line for what was refused.
        self.fields: dict[str, list] = {}
        self.notes: dict[str, ipywidgets.HTML] = {}
        self.laid_out: tuple[Control, ...] = ()
        self.quiet = False  # values are being set from the panel: no change of a hand
        self.held: Axes | None = None  # what the mouse was pressed on
        self.rows = ipywidgets.Box(layout={"flex_flow": "row wrap", "width": "100%"})
        self.rows.add_class("kit-controls")
        self.words, self.alarm = ipywidgets.HTML(), ipywidgets.HTML()
        self.watch = WidthWatch()
        self.watch.observe(lambda _: self._fit_width(), "width")
        self.stacked: list[Span] = []  # as the picture is shown
        self.lens = Lens()
        self.lens.observe(self._on_hover, "pointed")
        self.lens.observe(self._on_step, "stepped")
        if panel.pointed_at:
            self.picture = Pad(panel.title)
            self.picture.observe(self._on_mouse, "pointed")
            self.picture.observe(self._on_arrow_key, "nudged")
        else:
            self.picture = ipywidgets.HTML()
        self.box = ipywidgets.VBox(
            [
                ipywidgets.HTML(STYLE),
                self.rows,
                self.alarm,
                self.picture,
                *([self.lens] if panel.image_dots() else []),
                self.words,
                KeyGuard(),
                self.watch,
            ]
        )
        for name in ("kit-panel", f"kit-{panel.name}", *(("kit-photo",) if panel.photo else ())):
            self.box.add_class(name)
        self.lay_out()
        self.show()

    # ---- from the panel to the page

    def lay_out(self) -> None:
        """Make the controls, if they are others than before.

        A control that has other limits or options keeps its place on the page, and the focus.
        """
        if self.panel.shown_controls == self.laid_out:
            return
        made = dict(zip(map(_kind, self.laid_out), self.rows.children, strict=True))
        fields, notes = self.fields, self.notes
        self.laid_out = self.panel.shown_controls
        self.fields, self.notes, rows = {}, {}, []
        for control in self.laid_out:
            row = made.get(_kind(control))
            if row is None:
                row = self._make(control)
            else:
                self.notes[control.name] = notes[control.name]
                if control.name in fields:
                    self.fields[control.name] = fields[control.name]
                    self._renew(control)
            rows.append(row)
        if tuple(rows) != self.rows.children:
            self.rows.children = rows

    def _renew(self, control: Control) -> None:
        """Give a control on the page its new limits or options, and its value."""
        value = self.panel.values[control.name]
        self.quiet = True
        try:
            for field in self.fields[control.name]:
                if isinstance(control, Choice) and field.options != control.options:
                    field.options, field.value = control.options, value
                elif isinstance(control, Number) and not isinstance(field, ipywidgets.Text):
                    with field.hold_trait_notifications():
                        field.min, field.max, field.value = _lowest(control), control.high, value
        finally:
            self.quiet = False

    def _fit_width(self) -> None:
        """Stack the picture's columns where the page is too narrow for it, and only then."""
        if self._stack() != self.stacked:
            self.show()

    def _stack(self) -> list[Span]:
        return group_columns(self.panel.columns, self.watch.width or math.inf)

    def show(self) -> None:
        """Show the picture, the sentence and the controls as the panel has them."""
        self.stacked = self._stack()
        picture = self.panel.png(self.stacked)
        source = "data:image/png;base64," + base64.b64encode(picture).decode()
        sentence = html.escape(self.panel.sentence)
        if self.panel.pointed_at:
            self.picture.alt, self.picture.src = self.panel.sentence, source
        else:
            self.picture.value = f'<img decoding="sync" alt="{sentence}" src="{source}">'
        self.words.value = f'<p class="kit-sentence" aria-live="polite">{sentence}</p>'
        self.lens.words = ""  # the dot that it belongs to may have moved
        for note in (self.alarm, *self.notes.values()):
            note.value = ""
        self.quiet = True
        try:
            for name, fields in self.fields.items():
                for field in fields:
                    if name in self.panel.values:
                        self._show_value(field, self.panel.values[name])
        finally:
            self.quiet = False

    @staticmethod
    def _show_value(field: ipywidgets.Widget, value: Any) -> None:
        """Set a field to a value, in words where words are typed into it."""
        shown = _as_typed(value) if isinstance(field, ipywidgets.Text) else value
        if field.value != shown:
            field.value = shown

    def refuse(self, error: Exception, control: str = "") -> None:
        """Say beside the control what went wrong, and set all controls back to what holds."""
        known = isinstance(error, KitError)
        words = str(error) if known else f"This did not work: {type(error).__name__}: {error}"
        self.show()
        self.panel.trouble = " ".join(words.split())
        self.notes.get(
            control, self.alarm
        ).value = f'<p class="kit-trouble" role="alert">{html.escape(self.panel.trouble)}</p>'

    # ---- from the page to the panel

    def attempt(self, action: Callable[[], None], control: str = "") -> None:
        """Do what a hand asks for; where that fails, `refuse` it beside the control."""
        try:
            action()
        except Exception as error:
            self.refuse(error, control)

    def _on_change(self, name: str, change: dict) -> None:
        """Hand on what was set; what was typed is read here, so that nothing drops a letter."""
        if self.quiet:
            return
        control = next(one for one in self.laid_out if one.name == name)

        def hand_on() -> None:
            value = change["new"]
            if isinstance(control, Number) and isinstance(value, str):
                value = control.parse(value)
            self.panel.set(**{control.name: value})

        self.attempt(hand_on, control.name)

    def _on_mouse(self, change: dict) -> None:
        """Hand on where the mouse is, in the data of the axes that it was pressed on."""
        x, y, press = change["new"]
        x, y = place_in_whole(x, y, self.stacked)
        begins = press != change["old"][2]
        if begins:
            found = self.panel.locate(x, y)
            self.held = found[0] if found else None
        held = self.held
        if held is not None:
            pixel = (x * self.panel.figure.bbox.width, y * self.panel.figure.bbox.height)
            place = held.transData.inverted().transform(pixel)
            self.attempt(lambda: self.panel.point(held, float(place[0]), float(place[1]), begins))

    def _on_hover(self, change: dict) -> None:
        """Show the image behind the dot under the pointer."""
        across, up = change["new"]

        def show_image() -> None:
            found = self.panel.find_thumbnail(*place_in_whole(across, up, self.stacked))
            with self.lens.hold_sync():
                self.lens.dot = []
                self.lens.source = found.source if found else ""
                self.lens.words = found.words if found else ""

        self.attempt(show_image)

    def _on_step(self, change: dict) -> None:
        """Show the image as many dots further as arrow keys were pressed, beside its dot."""

        def show_image() -> None:
            found = self.panel.find_stop(self.lens.number + change["new"] - change["old"])
            with self.lens.hold_sync():
                self.lens.number, self.lens.count = found.number, found.count
                self.lens.dot = list(place_in_stack(*found.place, self.stacked))
                self.lens.source = found.thumbnail.source
                self.lens.words = found.thumbnail.words

        self.attempt(show_image)

    def _on_arrow_key(self, change: dict) -> None:
        right, up = (new - old for new, old in zip(change["new"], change["old"], strict=True))
        self.attempt(lambda: self.panel.nudge(right, up))

    # ---- the controls

    def _make(self, control: Control) -> ipywidgets.Widget:
        """One control as ipywidgets, above the line for what is refused there."""
        note = self.notes[control.name] = ipywidgets.HTML(layout={"margin": "0"})
        return ipywidgets.VBox([self._make_fields(control), note])

    def _make_fields(self, control: Control) -> ipywidgets.Widget:
        if isinstance(control, Action):
            return self._make_button(control)
        makers: dict[type, Callable[..., tuple[ipywidgets.Widget, list]]] = {
            Number: self._make_number,
            Choice: self._make_choice,
            Toggle: self._make_toggle,
            Text: self._make_text,
        }
        made, fields = makers[type(control)](control, self.panel.values[control.name])
        for field in fields:
            field.observe(lambda change: self._on_change(control.name, change), "value")
        self.fields[control.name] = fields
        return made

    def _make_button(self, control: Action) -> ipywidgets.Button:
        button = ipywidgets.Button(
            description=control.name,
            tooltip=control.meaning or control.name,
            layout={"width": "max-content"},
        )
        button.on_click(
            lambda _: self.attempt(lambda: self.panel.press(control.name), control.name)
        )
        return button

    @staticmethod
    def _named(control: Control) -> dict[str, Any]:
        return {
            "description": control.name,
            "tooltip": control.meaning or control.name,
            "style": {"description_width": "initial"},
        }

    def _make_number(self, control: Number, value: float) -> tuple[ipywidgets.Widget, list]:
        """A slider has no name for a screen reader, so a named number field stands beside it."""
        name, step, named = control.name, control.step, self._named(control)
        named["description"] = f"{name} {control.symbol}".strip()
        limits = {"min": _lowest(control), "max": control.high, "step": step, "value": value}
        make_slider = ipywidgets.IntSlider if control.integer else ipywidgets.FloatSlider
        # words, not a number field: that one turns 3.7 into 37 before anybody can refuse it
        field = ipywidgets.Text(
            value=_as_typed(value),
            continuous_update=False,
            layout={"width": f"{7 * len(named['description']) + 85}px"},
            **named,
        )
        slider = make_slider(
            **limits, readout=False, layout={"width": "170px"}, tooltip=f"{name}: {control.meaning}"
        )
        shown = [field, slider]
        if control.plays:
            play = ipywidgets.Play(**limits, interval=400, tooltip=f"play {name}")
            ipywidgets.jslink((play, "value"), (slider, "value"))
            shown.append(play)
        return ipywidgets.HBox(shown, layout={"margin": "0 16px 0 0"}), [field, slider]

    def _make_choice(self, control: Choice, value: str) -> tuple[ipywidgets.Widget, list]:
        made = ipywidgets.Dropdown(
            options=control.options,
            value=value,
            layout={"width": "max-content"},
            **self._named(control),
        )
        return made, [made]

    def _make_toggle(self, control: Toggle, value: bool) -> tuple[ipywidgets.Widget, list]:
        made = ipywidgets.Checkbox(
            value=value,
            indent=False,
            layout={"width": "max-content", "margin": "2px 16px 2px 4px"},
            **self._named(control),
        )
        return made, [made]

    def _make_text(self, control: Text, value: str) -> tuple[ipywidgets.Widget, list]:
        made = ipywidgets.Text(value=value, continuous_update=False, **self._named(control))
        return made, [made]
