"""What every widget of kit.widgets.WIDGETS must do, by iteration over the table."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from kit.core.errors import KitError
from kit.evaluation.accuracy import evaluate
from kit.widgets import WIDGETS
from kit.widgets.boundary_panel import boundary
from kit.widgets.controls import Action, Choice, Number, Text, Toggle
from kit.widgets.counterfactual_panel import whatif
from kit.widgets.inspector_panel import inspect
from kit.widgets.live_training_panel import train_live
from kit.widgets.mirage_panel import mirage
from kit.widgets.panel_view import PanelView
from kit.widgets.race_panel import race
from kit.widgets.sealed_panel import sealed
from kit.widgets.simplex_panel import simplex
from kit.widgets.weighting_panel import weighting_curves

#: How a widget is made from tiny runs; `runs` makes one, say runs("mail-at").
MAKERS = {
    "weighting-curves": lambda runs: weighting_curves(runs("mail-at")),
    "whatif": lambda runs: whatif(runs("mail-at")),
    "inspect": lambda runs: inspect(runs("mail-at")),
    "simplex": lambda runs: simplex(runs("mail-at")),
    "boundary": lambda runs: boundary(),
    "race": lambda runs: race(runs("at")),
    "train-live": lambda runs: train_live(runs("mail-at").spec),
    "mirage": lambda runs: mirage([attacked(runs(method)) for method in ("at", "mail-at")], n=20),
    "sealed": lambda runs: sealed("How many of ten?", 0, 10, "images", paper=7),
}

#: Controls that another setting makes idle: (widget, control) and what must be set to wake it.
AWAKE = {
    ("mirage", "any attack so far"): {"step": 3},
}


def attacked(run):
    """The run, with the evaluations of the first steps of the audit."""
    evaluate(run, ["natural", "fgsm", "pgd20", "pgd100"], n=20, quiet=True)
    return run


@pytest.fixture(params=list(WIDGETS))
def panel(request, home, tiny_run):
    return MAKERS[request.param](tiny_run)


def others(control) -> list:
    """The other values that a hand would try."""
    if isinstance(control, Number):
        middle = control.low + round((control.high - control.low) / 2 / control.step) * control.step
        return [
            int(v) if control.integer else v
            for v in (control.low, control.high, middle)
            if v != control.value
        ]
    if isinstance(control, Choice):
        rest = [option for option in control.options if option != control.value]
        return rest[:: max(len(rest) // 4, 1)]  # of forty methods a few: each draws everything anew
    return [not control.value] if isinstance(control, Toggle) else []


def state(panel) -> tuple[str, bytes]:
    return panel.sentence, panel.png()


def test_tables_name_each_other():
    assert set(MAKERS) == set(WIDGETS)


def test_says_and_shows_something(panel):
    assert panel.name and panel.title and panel.source and panel.shown_controls
    assert any(character.isdigit() for character in panel.sentence) and not panel.trouble
    picture = np.asarray(Image.open(io.BytesIO(panel.png())))
    assert (
        picture.shape[:2] == (round(panel.size[1] * 100), round(panel.size[0] * 100))
        and picture.std() > 5
    )
    names = [control.name for control in panel.shown_controls]
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_no_control_is_dead(panel):
    """Each value that a hand would try is taken, and one of them at least changes what is shown."""
    first = dict(panel.values)
    for control in list(panel.shown_controls):
        tried = others(control)
        panel.set(**{name: value for name, value in first.items() if name in panel.values})
        panel.set(**AWAKE.get((panel.name, control.name), {}))
        before = state(panel)
        changed = False
        for value in tried:
            panel.set(**{control.name: value})
            assert panel.values[control.name] == (
                pytest.approx(value) if isinstance(value, float) else value
            )
            assert panel.sentence and not panel.trouble
            changed |= state(panel) != before
        assert changed or not tried, f"{control.name} of {panel.name} changes nothing"


@pytest.mark.slow
def test_back_again_is_the_same_picture(panel):
    before = state(panel)
    for control in panel.shown_controls:
        value = (others(control) or [None])[0]
        if value is not None and control.name in panel.values:
            old = dict(panel.values)
            panel.set(**{control.name: value})
            panel.set(**{name: v for name, v in old.items() if name in panel.values})
            panel.set(**{name: v for name, v in old.items() if name in panel.values})
    assert state(panel) == before


def test_out_of_range_is_refused(panel):
    before, values = state(panel), dict(panel.values)
    for control in panel.shown_controls:
        wrong = {
            Number: [control.high + 1, float("nan"), "x"] if isinstance(control, Number) else [],
            Choice: ["no such"],
            Toggle: [],
            Text: [],
            Action: [],
        }[type(control)]
        for value in wrong:
            with pytest.raises(KitError, match=r"from|Choices|mean"):
                panel.set(**{control.name: value})
    assert panel.values == values and state(panel) == before


def test_headless_is_a_picture(panel, monkeypatch):
    monkeypatch.setenv("KIT_WIDGETS", "0")
    data, _ = panel._repr_mimebundle_()
    assert set(data) == {"text/html", "image/png", "text/plain"}
    assert data["text/plain"] == panel.sentence


def test_live_is_a_widget(panel, monkeypatch):
    monkeypatch.setenv("KIT_WIDGETS", "1")
    data, _ = panel._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert set(panel.view.fields) == {
        control.name for control in panel.shown_controls if not isinstance(control, Action)
    }
    assert panel.sentence.split()[0] in panel.view.words.value


#: What a hand may type into a number field; of each, the number it means or None.
TYPED = {
    "nonsense": None,
    "": None,
    "3,7": None,
    "3.7.1": None,
    "1_0": None,
    "nan": None,
    "inf": None,
    "-1e400": None,
    "0x10": None,
    "3.7": 3.7,
    " 1e1 ": 10,
    "−0.3": -0.3,
    "2.0": 2,
}


def test_no_field_changes_what_was_typed(panel, monkeypatch):
    """Each field takes the very number, or refuses beside itself and keeps the last valid one."""
    monkeypatch.setenv("KIT_WIDGETS", "1")
    panel._repr_mimebundle_()
    view, first = panel.view, dict(panel.values)
    for control in [c for c in panel.shown_controls if isinstance(c, Number)]:
        for typed, meant in TYPED.items():
            held = panel.values[control.name]
            view.fields[control.name][0].value = typed
            field, slider = view.fields[control.name]  # made anew where a change lays out anew
            taken = panel.values[control.name]
            allowed = (
                meant is not None
                and control.low <= meant <= control.high
                and not (control.integer and meant % 1)
            )
            refused = view.notes[control.name].value
            if refused:
                assert taken == held, f"{control.name} turned {typed!r} into {taken}"
                assert control.name in refused and 'role="alert"' in refused
            else:
                assert allowed and taken == meant, f"{control.name} took {typed!r} as {taken}"
            assert float(field.value) == taken
            assert abs(slider.value - taken) < control.step
        panel.set(**{control.name: first[control.name]})  # others may depend on it
    assert not view.alarm.value


#: The widgets in which a dot is an image.
WITH_DOTS = ("simplex", "whatif")


def test_every_dot_that_is_an_image_has_a_thumbnail(panel):
    """Under the pointer are the image itself, as its id names it, and its class; beside all dots
    there is nothing, and other widgets say that they have none.
    """
    assert bool(panel.image_dots()) == (panel.name in WITH_DOTS)
    if not panel.image_dots():
        return
    split, width, height = panel.runs[0].data().train, *panel.figure.bbox.size
    for dots in panel.image_dots():
        pixels = dots.axes.transData.transform(dots.places)
        for row in range(0, len(dots.ids), 7):
            found = panel.find_thumbnail(*(pixels[row] / (width, height)))
            number = int(re.match(r"image (\d+), class", found.words)[1])
            (place,) = (split.ids == number).nonzero()[0].tolist()
            (mine,) = np.flatnonzero(dots.ids == number)
            assert np.allclose(pixels[mine], pixels[row], atol=1e-6), "another dot's image"
            label = panel.runs[0].record["classes"][int(split.y[place])]
            assert f"class {label}: {dots.describe(mine)}" in found.words
            shown = Image.open(io.BytesIO(base64.b64decode(found.source.partition(",")[2])))
            image = split.x(slice(place, place + 1))[0].permute(1, 2, 0).numpy()
            small = np.asarray(shown.resize(image.shape[1::-1], Image.Resampling.NEAREST)) / 255
            assert np.allclose(small, 1 - image if image.shape[2] == 1 else image, atol=1 / 255)
    assert panel.find_thumbnail(0.999, 0.999) is None


@pytest.mark.parametrize("name", WITH_DOTS)
def test_keys_reach_every_image_beside_its_dot(name, home, tiny_run):
    """Each image once, from left to right, with the words that the pointer finds at its dot; at
    either end the keys stay. A change of the picture takes the thumbnail away.
    """
    panel = MAKERS[name](tiny_run)
    view = panel.view = PanelView(panel)
    images = {int(one) for dots in panel.image_dots() for one in dots.ids}
    found, places = [], []
    for pressed in range(1, len(images) + 3):
        view.lens.stepped = pressed
        assert view.lens.number == min(pressed, len(images)) and view.lens.count == len(images)
        assert view.lens.source.startswith("data:image/png")
        found.append(int(re.match(r"image (\d+), class", view.lens.words)[1]))
        places.append(view.lens.dot)
        width, height = panel.figure.bbox.size
        across, up = view.lens.dot
        near = [
            row
            for dots in panel.image_dots()
            for row, pixel in enumerate(dots.axes.transData.transform(dots.places))
            if np.allclose(pixel, (across * width, up * height), atol=1e-6)
            and dots.ids[row] == found[-1]
        ]
        assert near, "no dot of the image is there"
    assert len(set(found)) == len(images) and set(found) == images
    assert [across for across, _ in places] == sorted(across for across, _ in places)
    view.lens.stepped -= 10
    assert view.lens.number == len(images) - 10
    view.lens.stepped -= 10 * len(images)
    assert view.lens.number == 1 and view.lens.words and not panel.trouble
    panel.set(epoch=1)
    assert not view.lens.words
    view.lens.pointed = [0.999, 0.999]
    assert not view.lens.dot, "a thumbnail of the pointer stands beside the pointer"


@pytest.mark.parametrize("name", WITH_DOTS)
def test_the_view_shows_the_thumbnail_until_the_picture_changes(name, home, tiny_run):
    panel = MAKERS[name](tiny_run)
    view = panel.view = PanelView(panel)
    dots = panel.image_dots()[0]
    view.lens.pointed = [0.999, 0.999]
    assert not view.lens.words
    place = dots.axes.transData.transform(dots.places[0]) / panel.figure.bbox.size
    view.lens.pointed = place.tolist()
    assert "class" in view.lens.words and view.lens.source.startswith("data:image/png")
    panel.set(epoch=1)
    assert not view.lens.words
