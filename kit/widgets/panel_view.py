"""A panel on a page: ipywidgets above a picture. Imported only where somebody is there to look."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable

import ipywidgets as w
from matplotlib.axes import Axes

from kit.core.errors import KitError
from kit.widgets.keys import Keys, Pad
from kit.widgets.panel import Action, Choice, Control, Number, Panel, Toggle

# A dark page turns the picture's lightness round and keeps its hues, so that it is no white slab
# there.
STYLE = """<style>
.kit-panel { max-width: 100%; overflow: hidden; }
.kit-panel img { max-width: 100%; height: auto; display: block; }
.kit-panel img:focus-visible { outline: 2px solid var(--jp-brand-color1, #0072B2); }
.kit-sentence { color: var(--jp-ui-font-color1, inherit); margin: 2px 4px; line-height: 1.35; white-space: normal; }
.kit-trouble { color: #D55E00; font-weight: 600; margin: 2px 4px; line-height: 1.35; white-space: normal; }
[data-jp-theme-light="false"] .kit-panel:not(.kit-photo) img { filter: invert(0.93) hue-rotate(180deg); }
</style>"""


class Face:
    """The panel on a page:

    ipywidgets that hand every change to the panel, and say what it refuses.
    """

    def __init__(self, panel: Panel):
        self.panel = panel
        self.fields: dict[str, list] = {}  # control name -> the ipywidgets that show its value
        self.laid_out: tuple = ()
        self.quiet = False  # values are being set from the panel: no change of a hand
        self.style, self.words, self.alarm = w.HTML(STYLE), w.HTML(), w.HTML()
        self.rows = w.Box(layout={"flex_flow": "row wrap", "width": "100%"})
        if panel.pointed_at:
            self.picture = Pad(panel.title)
            self.picture.observe(self._pointed, "pointed")
            self.picture.observe(self._nudged, "nudged")
        else:
            self.picture = w.HTML()
        self.box = w.VBox([self.style, self.rows, self.picture, self.words, self.alarm, Keys()])
        for name in ("kit-panel", f"kit-{panel.name}", *(("kit-photo",) if panel.photo else ())):
            self.box.add_class(name)
        self.held: Axes | None = None
        self.lay_out()
        self.show()

    # ---- from the panel to the page

    def lay_out(self) -> None:
        """Make the controls, if they are others than before."""
        if tuple(self.panel.given) == self.laid_out:
            return
        self.laid_out = tuple(self.panel.given)
        self.fields = {}
        self.rows.children = [self._made(control) for control in self.panel.given]

    def show(self) -> None:
        """The picture, the sentence and the controls as the panel has them."""
        source = "data:image/png;base64," + base64.b64encode(self.panel.png()).decode()
        sentence = html.escape(self.panel.sentence)
        if self.panel.pointed_at:
            self.picture.alt, self.picture.src = self.panel.sentence, source
        else:
            self.picture.value = f'<img decoding="sync" alt="{sentence}" src="{source}">'
        self.words.value = f'<p class="kit-sentence" aria-live="polite">{sentence}</p>'
        self.alarm.value = ""
        self.quiet = True
        try:
            for name, fields in self.fields.items():
                for field in fields:
                    if name in self.panel.values and field.value != self.panel.values[name]:
                        field.value = self.panel.values[name]
        finally:
            self.quiet = False

    def refuse(self, error: Exception) -> None:
        """One line under the picture, and the controls go back to what holds."""
        known = isinstance(error, KitError)
        words = str(error) if known else f"This did not work: {type(error).__name__}: {error}"
        self.show()
        self.panel.trouble = " ".join(words.split())
        self.alarm.value = (
            f'<p class="kit-trouble" role="alert">{html.escape(self.panel.trouble)}</p>'
        )

    # ---- from the page to the panel

    def attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self.refuse(error)

    def _changed(self, name: str, change: dict) -> None:
        if not self.quiet:
            self.attempt(lambda: self.panel.set(**{name: change["new"]}))

    def _pointed(self, change: dict) -> None:
        x, y, press = change["new"]
        begins = press != change["old"][2]
        if begins:
            found = self.panel.locate(x, y)
            self.held = found[0] if found else None
        if self.held is not None:
            pixel = (x * self.panel.figure.bbox.width, y * self.panel.figure.bbox.height)
            place = self.held.transData.inverted().transform(pixel)
            self.attempt(
                lambda: self.panel.point(self.held, float(place[0]), float(place[1]), begins)
            )

    def _nudged(self, change: dict) -> None:
        right, up = (new - old for new, old in zip(change["new"], change["old"], strict=True))
        self.attempt(lambda: self.panel.nudge(right, up))

    def _made(self, control: Control):
        """One control as ipywidgets.

        A slider has no name for a screen reader, so a named number field stands beside it.
        """
        name = control.name
        said = {
            "description": name,
            "tooltip": control.meaning or name,
            "style": {"description_width": "initial"},
        }
        if isinstance(control, Action):
            button = w.Button(description=name, tooltip=control.meaning or name)
            button.on_click(lambda _: self.attempt(lambda: self.panel.press(name)))
            return button
        value = self.panel.values[name]
        if isinstance(control, Number):
            # a slider takes its low end and whole steps from there only: its default must be one of
            # them
            low = (
                control.value
                - math.floor((control.value - control.low) / control.step + 1e-9) * control.step
            )
            limits = {"min": low, "max": control.high, "step": control.step, "value": value}
            kinds = (w.IntText, w.IntSlider) if control.integer else (w.FloatText, w.FloatSlider)
            text = kinds[0](
                value=value, step=control.step, layout={"width": f"{7 * len(name) + 95}px"}, **said
            )
            slider = kinds[1](
                **limits,
                readout=False,
                layout={"width": "170px"},
                tooltip=f"{name}: {control.meaning}",
            )
            shown, parts = [text, slider], [text, slider]
            if control.plays:
                play = w.Play(**limits, interval=400, tooltip=f"play {name}")
                w.jslink((play, "value"), (slider, "value"))
                shown.append(play)
            made = w.HBox(shown, layout={"margin": "0 16px 0 0"})
        elif isinstance(control, Choice):
            made = w.Dropdown(
                options=control.options, value=value, layout={"width": "max-content"}, **said
            )
            parts = [made]
        elif isinstance(control, Toggle):
            made = w.Checkbox(
                value=value,
                indent=False,
                layout={"width": "max-content", "margin": "2px 16px 2px 4px"},
                **said,
            )
            parts = [made]
        else:
            made = w.Text(value=value, continuous_update=False, **said)
            parts = [made]
        for part in parts:
            part.observe(lambda change: self._changed(name, change), "value")
        self.fields[name] = parts
        return made
