"""Panels without a browser:

values, sentences, what is refused, and how they are shown. Real ones: tests/test_browser.py.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from kit.core.errors import KitError
from kit.figures.base import Drawing
from kit.widgets.controls import Action, Choice, Number, Text, Toggle
from kit.widgets.panel import Panel
from kit.widgets.stacked_picture import (
    find_columns,
    group_columns,
    place_in_stack,
    place_in_whole,
    stack_columns,
)


class Bars(Panel):
    """Two bars that a slider moves; the other controls do what their kind is for."""

    name, title, size, rebuilds = "bars", "Two bars", (4.0, 2.0), frozenset({"colour"})
    built = 0

    def controls(self, values):
        given = [
            Number("height", 2.0, 0.0, 5.0, 0.5, "of the left bar"),
            Choice("colour", "red", ("red", "blue")),
            Toggle("mirrored", False),
            Text("words", "none", checked=self.words),
            Action("double", self.double),
        ]
        if values.get("colour") == "blue":
            given.append(Number("count", 3, 1, 9, 1, integer=True, plays=True))
        return given

    def words(self, text):
        if not text:
            raise KitError("words must not be empty")
        return text

    def double(self):
        if self.values["height"] > 2.5:
            raise KitError("too high to double")
        self.values["height"] *= 2

    def build(self, figure, values):
        self.built += 1
        axes = figure.subplots()
        axes.set(ylim=(0, 5), xlim=(-1, 2))
        self.bars = axes.bar([0, 1], [1, 1], color=values["colour"])
        return list(self.bars)

    def update(self, values):
        if values["height"] == 5:
            raise ZeroDivisionError("five is a trap")
        self.bars[0].set_height(values["height"])
        return f"The left bar is {values['height']:g} high & {values['colour']}."


def pixels(panel):
    return np.asarray(Image.open(io.BytesIO(panel.png())))


def test_a_slider_moves_the_picture_and_the_sentence():
    panel = Bars()
    before = pixels(panel)
    assert before.shape == (200, 400, 3) and "is 2 high" in panel.sentence
    panel.set(height=3.5)
    assert panel.built == 1, "what stands still is not drawn again"
    assert "is 3.5 high" in panel.sentence and (pixels(panel) != before).any()
    panel.set(height=2)
    assert np.array_equal(pixels(panel), before), "nothing of an earlier picture stays"


def test_moving_over_the_still_picture_is_drawing_it_anew():
    moved, drawn = Bars(), Bars()
    moved.set(height=4)
    drawn.set(height=4)
    drawn.rebuild()
    assert np.array_equal(pixels(moved), pixels(drawn))


def test_controls_that_hang_on_another():
    panel = Bars()
    assert "count" not in panel.values
    panel.set(colour="blue")
    assert panel.built == 2 and panel.values["count"] == 3
    panel.set(count=7, height=1)
    panel.set(colour="red")
    assert "count" not in panel.values and panel.values["height"] == 1


def test_buttons():
    panel = Bars()
    panel.press("double")
    assert panel.values["height"] == 4 and "is 4 high" in panel.sentence
    with pytest.raises(KitError, match="too high"):
        panel.press("double")
    with pytest.raises(KitError, match="no button of bars 'treble'"):
        panel.press("treble")


def test_a_try_draws_once():
    panel = Bars().offer({"height": 3.0}, {"colour": "blue"})
    for name, built in (("Try 1", 1), ("Try 2", 2)):
        panel.press(name)
        assert panel.built == built, "what stands still is drawn where it changes, and once"
    assert panel.values["height"] == 3 and panel.values["colour"] == "blue"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"height": 9}, "from 0 to 5"),
        ({"height": "high"}, "from 0 to 5"),
        ({"height": float("nan")}, "from 0 to 5"),
        ({"height": True}, "from 0 to 5"),
        ({"colour": "rde"}, "Did you mean 'red'"),
        ({"words": ""}, "must not be empty"),
        ({"heigth": 1}, "Did you mean 'height'"),
        ({"height": 1, "colour": "green"}, "colour"),
    ],
)
def test_what_is_refused_changes_nothing(values, words):
    panel = Bars()
    before, set_ = pixels(panel), dict(panel.values)
    with pytest.raises(KitError, match=words):
        panel.set(**values)
    assert panel.values == set_ and np.array_equal(pixels(panel), before)


def test_headless_is_a_picture_without_a_widget(monkeypatch):
    monkeypatch.setenv("KIT_WIDGETS", "0")
    panel = Bars()
    data, metadata = panel._repr_mimebundle_()
    assert set(data) == {"text/html", "image/png", "text/plain"} and panel.view is None
    assert data["text/plain"] == panel.sentence == metadata["image/png"]["alt"]


def test_live_is_a_widget_and_a_picture(monkeypatch):
    monkeypatch.setenv("KIT_WIDGETS", "1")
    panel = Bars()
    data, _ = panel._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"} <= set(data)
    assert (
        panel._repr_mimebundle_()[0]["application/vnd.jupyter.widget-view+json"]
        == data["application/vnd.jupyter.widget-view+json"]
    )


def test_fields_hand_over_what_is_typed_and_take_back_what_is_refused(monkeypatch):
    monkeypatch.setenv("KIT_WIDGETS", "1")
    panel = Bars()
    panel._repr_mimebundle_()
    view, (text, slider) = panel.view, panel.view.fields["height"]
    first = view.picture.value
    slider.value = 3.0
    assert (
        (panel.values["height"], text.value) == (3.0, "3")
        and view.picture.value != first
        and "&amp; red" in view.picture.value
    )
    text.value = "77"
    note = view.notes["height"]
    assert (panel.values["height"], text.value, slider.value) == (3.0, "3", 3.0)
    assert "from 0 to 5" in note.value and "Traceback" not in note.value and panel.trouble
    text.value = "5"
    assert (panel.values["height"], text.value) == (3.0, "3") and "five is a trap" in note.value
    slider.value = 1.0
    assert note.value == "" and not panel.trouble
    view.fields["colour"][0].value = "blue"
    assert len(view.fields["count"]) == 2 and "blue" in view.words.value
    buttons = [row.children[0] for row in view.rows.children]
    next(made for made in buttons if getattr(made, "description", "") == "double").click()
    assert text is view.fields["height"][0] and view.fields["height"][0].value == "2"


class Dot(Panel):
    name, title, pointed_at, size = "dot", "A dot to drag", True, (4.0, 2.0)

    def controls(self, values):
        return [Number("x", 0.5, 0.0, 1.0, 0.01)]

    def build(self, figure, values):
        self.axes = figure.subplots()
        self.axes.set(xlim=(0, 1), ylim=(0, 1))
        (self.dot,) = self.axes.plot([0.5], [0.5], "o")
        return [self.dot]

    def update(self, values):
        self.dot.set_xdata([values["x"]])
        return f"x is {values['x']:.2f}"

    def point(self, axes, x, y, begins):
        self.set(x=min(max(x, 0), 1))

    def nudge(self, right, up):
        self.set(x=self.values["x"] + right * 0.01)


def test_a_picture_that_is_dragged(monkeypatch):
    monkeypatch.setenv("KIT_WIDGETS", "1")
    panel = Dot()
    panel._repr_mimebundle_()
    pad, box = panel.view.picture, panel.figure.axes[0].bbox

    def at(share):
        return [(box.x0 + share * box.width) / panel.figure.bbox.width, 0.5]

    pad.pointed = [*at(0.25), 1]
    assert panel.values["x"] == pytest.approx(0.25) and panel.sentence == pad.alt == "x is 0.25"
    pad.pointed = [*at(1.2), 1]
    assert panel.values["x"] == 1, "a drag that leaves the axes goes on"
    pad.pointed = [0.001, 0.001, 2]
    pad.pointed = [*at(0.5), 2]
    assert panel.values["x"] == 1, "a press beside the axes holds nothing"
    pad.nudged = [-3, 0]
    pad.nudged = [-5, 2]
    assert panel.values["x"] == pytest.approx(0.95)


class Third(Panel):
    name, title, size = "third", "A default between the steps", (4.0, 2.0)

    def controls(self, values):
        return [Number("x", 1 / 3, 0.0, 1.0, 0.25)]

    def build(self, figure, values):
        (self.mark,) = figure.subplots().plot([0.5], [0.5], "o")
        return [self.mark]

    def update(self, values):
        self.mark.set_xdata([values["x"]])
        return f"x is {values['x']:.2f}"


def test_a_slider_can_stand_at_every_default(monkeypatch):
    """A browser's slider knows its low end and whole steps from there:

    it would move what lies between by itself.
    """
    monkeypatch.setenv("KIT_WIDGETS", "1")
    panel = Third()
    panel._repr_mimebundle_()
    slider = panel.view.fields["x"][1]
    steps = (slider.value - slider.min) / slider.step
    assert (
        panel.values["x"] == slider.value == 1 / 3
        and slider.min >= 0
        and steps == pytest.approx(round(steps))
    )
    slider.value = slider.min + 2 * slider.step + 1e-13
    assert panel.values["x"] == pytest.approx(7 / 12, abs=1e-9) and panel.values["x"] == float(
        f"{panel.values['x']:.10g}"
    )


def test_columns_are_stacked_on_a_narrow_page():
    """Nothing of the picture is lost, and a place of the stack is that place of the whole."""
    figure = Drawing(8, 2)
    figure.set_dpi(100)
    for axes in figure.subplots(1, 3):
        axes.set_title("a title")
    figure.canvas.draw()
    columns = find_columns(figure)
    assert len(columns) == 3 and columns[0][0] == 0 and columns[-1][1] == 800
    assert group_columns(columns, 800) == [(0, 800)]
    groups = group_columns(columns, 500)
    assert groups == [(0, columns[1][1]), columns[2]]
    pixels = np.random.default_rng(0).integers(0, 255, (200, 800, 3), np.uint8)
    stacked = stack_columns(pixels, groups)
    height, width, _ = stacked.shape
    assert (height, width) == (400, groups[0][1])
    for column, row in ((10, 50), (100, 399), (width - 1, 0)):
        x, y = place_in_whole((column + 0.5) / width, 1 - (row + 0.5) / height, groups)
        assert place_in_stack(x, y, groups) == pytest.approx(
            ((column + 0.5) / width, 1 - (row + 0.5) / height)
        )
        here = int(x * 800), int((1 - y) * 200)
        if here[0] < 800:
            assert (stacked[row, column] == pixels[here[1], here[0]]).all()
