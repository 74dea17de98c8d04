"""Widgets as a person uses them:

JupyterLab in a headless Chromium, sliders by keyboard, drags by mouse.
"""

from __future__ import annotations

import io
import os
import re
import time

import numpy as np
import pytest
from PIL import Image

from tests.helpers.lab import PanelOnPage, jupyterlab, run_all, watched
from tests.helpers.settings import ROOT, TINY, settings_words
from tests.integration.test_widgets_lessons import offers

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("teach_*.ipynb"))


#: What a panel is as the page has it: how many pixels of its picture one pixel of the screen shows,
#: whether anything sticks out, and by what a dark page turns the picture's lightness round.
MEASURE = """panel => {
  const image = panel.querySelector("img"), controls = panel.querySelectorAll(".kit-controls *");
  const right = panel.getBoundingClientRect().right;
  return {
    scale: image.clientWidth / image.naturalWidth, tall: image.naturalHeight,
    wide: image.naturalWidth, room: panel.clientWidth, filter: getComputedStyle(image).filter,
    outside: [...controls].filter(one => one.getBoundingClientRect().right > right + 4).length,
  };
}"""

#: Of a panel's controls: those that the Tab key has to reach.
CONTROLS = ".kit-controls :is(input, select, button, .noUi-handle):not([disabled])"


#: Where the handle of a slider stands.
PLACE = "handle => handle.parentElement.style.transform"


def move_by_keyboard(page, panel: PanelOnPage) -> None:
    """The Tab key reaches every control of a panel, and an arrow key moves each slider."""
    everything, number = panel.box.locator(CONTROLS), 0
    everything.first.focus()
    while number < everything.count():  # a slider may bring a button, or take one away
        assert everything.nth(number).evaluate("one => one === document.activeElement"), number
        handle = page.locator(":focus")
        if handle.get_attribute("role") == "slider":
            before = handle.evaluate(PLACE)
            page.keyboard.press("ArrowLeft")
            if handle.evaluate(PLACE) == before:  # it was at its end
                page.keyboard.press("ArrowRight")
            assert handle.evaluate(PLACE) != before, f"control {number} stands still"
        page.keyboard.press("Tab")
        number += 1


def fits(found: dict, before: dict) -> bool:
    """Does a panel fit its page, with text that can be read, and stacked if it was wide?"""
    is_stacked = before["wide"] <= 800 or found["tall"] > before["tall"]
    shown = found["wide"] * found["scale"]
    return is_stacked and not found["outside"] and found["scale"] > 0.3 and shown <= found["room"]


def fit_widths(page, panels: list[PanelOnPage]) -> None:
    """At 800 pixels the picture's columns are stacked; there and at 400 nothing sticks out."""
    wide = [panel.box.evaluate(MEASURE) for panel in panels]
    for width in (800, 400):
        page.set_viewport_size({"width": width, "height": 1400})
        if width == 400:  # the list of files takes what there is; a click on its tab closes it
            page.locator(".jp-SideBar.jp-mod-left .lm-TabBar-tab.lm-mod-current").click()
        for panel, before in zip(panels, wide, strict=True):
            panel.box.scroll_into_view_if_needed()
            deadline = time.monotonic() + 120
            while not fits(found := panel.box.evaluate(MEASURE), before):
                assert time.monotonic() < deadline, f"at {width}: {found}, before {before}"
                page.wait_for_timeout(100)


def refuse_nonsense(panel: PanelOnPage) -> None:
    """Every field of a panel refuses words that mean nothing there, beside itself, and keeps what
    it had.
    """
    fields = panel.box.locator(".kit-controls input[type=text]:visible")
    alert = panel.box.get_by_role("alert")
    panel.settle()  # a busy kernel may still have to answer what the keys set before
    for number in range(fields.count()):
        field = fields.nth(number)
        before = field.input_value()
        field.fill(f"nonsense {number}")
        field.press("Enter")
        alert.get_by_text(f"nonsense {number}'").wait_for(timeout=60_000)
        assert field.input_value() == before, f"field {number} became {field.input_value()}"
        below = alert.bounding_box()["y"] - field.bounding_box()["y"]
        assert 0 < below < 60, f"the refusal of field {number} stands elsewhere"


def press_every_try(panel: PanelOnPage, settings: list[dict]) -> None:
    """Each button "Try" of a panel sets what the lesson says of it, and nothing breaks."""
    for number, wanted in enumerate(settings, 1):
        panel.box.get_by_role("button", name=f"Try {number}", exact=True).click()
        for name, value in wanted.items():
            # a slider's letter stands behind its name
            field = panel.box.get_by_label(re.compile(rf"^{re.escape(name)}( \S+)?$")).first
            deadline = time.monotonic() + 60
            while (shown := read_field(field)) != value:
                assert time.monotonic() < deadline, f"Try {number}: {name} is {shown}, not {value}"
                panel.page.wait_for_timeout(50)
        assert panel.is_complete(), f"Try {number}: {panel.sentence()!r} {panel.trouble()!r}"


def read_field(field) -> bool | float | str:
    """What a field shows: a box's tick, a number, or words."""
    if field.get_attribute("type") == "checkbox":
        return field.is_checked()
    words = field.input_value()
    try:
        return float(words)
    except ValueError:
        return words


def find_thumbnail(page, panel: PanelOnPage) -> None:
    """A dot shows its image beside the pointer, within the panel and with words, until the pointer
    leaves it. Where the left axes have colours there are dots, and lines.
    """
    thumbnail = panel.box.locator(".kit-thumbnail")
    panel.box.scroll_into_view_if_needed()
    here, frame = panel.image.bounding_box(), panel.box.bounding_box()
    pixels = np.asarray(Image.open(io.BytesIO(panel.image.screenshot())).convert("RGB"), dtype=int)
    rows, columns = np.nonzero(np.ptp(pixels, axis=2) > 90)
    left = (columns < 0.45 * pixels.shape[1]) & (rows < 0.85 * pixels.shape[0])
    order = np.random.default_rng(0).permutation(np.flatnonzero(left))
    for row, column in zip(rows[order[:100]], columns[order[:100]], strict=True):
        page.mouse.move(here["x"] + float(column), here["y"] + float(row))
        page.wait_for_timeout(600)
        if thumbnail.is_visible():
            break
    assert thumbnail.is_visible(), "no dot shows its image"
    assert "class" in thumbnail.locator("figcaption").text_content()
    assert thumbnail.locator("img").evaluate("image => image.complete && image.naturalWidth > 50")
    if shots := os.environ.get("KIT_SCREENSHOTS"):
        panel.box.screenshot(path=f"{shots}/thumbnail.png")
    found = thumbnail.bounding_box()
    assert frame["x"] <= found["x"] and found["x"] + found["width"] <= frame["x"] + frame["width"]
    page.mouse.move(1, 1)
    thumbnail.wait_for(state="hidden", timeout=20_000)


def find_thumbnail_by_keys(page, panel: PanelOnPage) -> None:
    """Tab leads from the last control or the picture to the line below it. Arrow keys there show
    one image after the other beside its dot, and a screen reader hears what is said of it. The
    thumbnail goes with the focus, and no mouse is needed.
    """
    thumbnail, ring = panel.box.locator(".kit-thumbnail"), panel.box.locator(".kit-ring")
    line = panel.box.get_by_role("spinbutton", name="image of a dot")
    panel.box.locator(CONTROLS).last.focus()
    for _ in range(3):
        page.keyboard.press("Tab")
        if line.evaluate("line => line === document.activeElement"):
            break
    assert line.evaluate("line => line === document.activeElement"), "Tab does not reach the line"
    assert not thumbnail.is_visible()
    picture, told = panel.shown(), []
    for key, number in (("ArrowRight", 1), ("ArrowRight", 2), ("Shift+ArrowUp", 12), ("End", 12)):
        page.keyboard.press(key)
        line.get_by_text(f"({number} of ").wait_for(timeout=20_000)
        thumbnail.wait_for(timeout=20_000)
        told.append(line.get_attribute("aria-valuetext"))
        assert thumbnail.locator("figcaption").text_content() == told[-1]
        assert thumbnail.locator("img").get_attribute("alt") == told[-1]
        assert thumbnail.locator("img").evaluate("image => image.complete && image.naturalWidth")
        spot, mark, frame = (one.bounding_box() for one in (thumbnail, ring, panel.box))
        assert frame["x"] <= spot["x"] and spot["x"] + spot["width"] <= frame["x"] + frame["width"]
        assert (
            min(
                abs(mark["x"] + mark["width"] / 2 - edge)
                for edge in (spot["x"], spot["x"] + spot["width"])
            )
            < 20
        ), "the thumbnail is not beside its dot"
        if shots := os.environ.get("KIT_SCREENSHOTS"):
            panel.box.screenshot(path=f"{shots}/{panel.name}-keys-{number}.png")
    page.keyboard.press("ArrowLeft")
    line.get_by_text("(11 of ").wait_for(timeout=20_000)
    assert len(set(told)) == 3 and all("class" in words for words in told)
    assert panel.shown() == picture, "the keys changed more than the thumbnail"
    page.keyboard.press("Shift+Tab")
    thumbnail.wait_for(state="hidden", timeout=20_000)
    assert not ring.is_visible()


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_widget_on_a_page(name, browser, lab):
    """All cells run; every panel has a picture with its sentence, in the page's theme and with text
    of its full size; the keyboard alone moves it; its fields refuse nonsense, its buttons "Try" set
    it, and its dots show their images to the pointer and to the keys; it fits on narrow pages;
    nobody else is asked.
    """
    url, token, _ = lab
    page, foreign, complaints = watched(browser, url, width=1400)
    run_all(page, url, token, name)
    page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
    names = page.locator(".kit-panel").evaluate_all(
        "panels => panels.map(p => [...p.classList].find(c => /^kit-(?!panel|photo)/.test(c)))"
    )
    assert names
    tries = {
        f"kit-{widget}": settings
        for widget, settings in offers(ROOT / "notebooks" / f"{name}.ipynb")
    }
    panels = [PanelOnPage(page, widget.removeprefix("kit-")) for widget in names]
    for widget, panel in zip(names, panels, strict=True):
        panel.box.scroll_into_view_if_needed()
        assert panel.is_complete(), f"{widget}: {panel.sentence()!r} {panel.trouble()!r}"
        found = panel.box.evaluate(MEASURE)
        assert found["scale"] >= 1 and found["filter"] == "none" and not found["outside"], found
        if panel.box.locator(".noUi-handle").count():
            moves = [
                panel.changes(lambda key=key, p=panel: p.press(p.slider(), key), 20)
                for key in ("ArrowRight", "ArrowLeft")
            ]
            assert any(moves), f"{widget}: no arrow key changed the picture"
        if panel.box.locator(CONTROLS).count():
            move_by_keyboard(page, panel)
        press_every_try(panel, tries.get(widget, []))
        if shots := os.environ.get("KIT_SCREENSHOTS"):
            panel.box.screenshot(path=f"{shots}/{widget}.png")
        page.evaluate("document.body.dataset.jpThemeLight = 'false'")
        is_photo = "kit-photo" in panel.box.get_attribute("class")
        assert (panel.box.evaluate(MEASURE)["filter"] == "none") == is_photo
        page.evaluate("document.body.dataset.jpThemeLight = 'true'")
        if widget in ("kit-simplex", "kit-whatif"):
            find_thumbnail_by_keys(page, panel)
            find_thumbnail(page, panel)
    for panel in dict(zip(names, panels, strict=True)).values():
        refuse_nonsense(panel)
    fit_widths(page, panels)
    # anywidget says so where a busy kernel answers late, and tries again: the panels were complete
    complaints = [words for words in complaints if "Failed to initialize model" not in words]
    assert not foreign and not complaints
    page.close()


@pytest.mark.browser
@pytest.mark.slow
def test_notebook_7(browser, tmp_path, home):
    """A slider keeps its arrow keys, though a heading is the active cell and Notebook 7 folds
    sections with them.
    """
    with jupyterlab(tmp_path, settings_words(TINY), app="notebook") as (url, token, _):
        page, foreign, _ = watched(browser, url)  # the console has complaints of Notebook's own
        run_all(page, url, token, "teach_boundary", app="notebook")
        page.locator(".jp-MarkdownCell h2").first.click()
        panel = PanelOnPage(page, "boundary")
        assert panel.is_complete()
        for key in ("ArrowRight", "ArrowLeft"):
            assert panel.changes(lambda key=key: panel.press(panel.slider(), key), 5), (
                f"{key} did nothing"
            )
        assert not foreign
        page.close()


@pytest.mark.browser
@pytest.mark.slow
def test_typed_nonsense_and_a_lost_kernel(browser, lab):
    """A field takes the very number or says beside itself why not; a panel whose kernel was
    restarted says what to do, in place of controls that do nothing.
    """
    url, token, _ = lab
    page, _, complaints = watched(browser, url)
    run_all(page, url, token, "teach_boundary")
    panel = PanelOnPage(page, "boundary")
    field, alert = panel.field("steps"), panel.box.get_by_role("alert")
    for typed in ("3.7", "many", "-7"):
        field.fill(typed)
        field.press("Enter")
        alert.get_by_text(typed).wait_for(timeout=20_000)
        assert field.input_value() == "10", f"{typed} became {field.input_value()}"
        below = alert.bounding_box()["y"] - field.bounding_box()["y"]
        assert 0 < below < 60, "the refusal stands elsewhere"
    field.fill("1e1")
    field.press("Enter")
    alert.wait_for(state="detached", timeout=20_000)
    assert field.input_value() == "10"
    assert panel.changes(lambda: panel.box.get_by_role("button", name="Try 2").click())
    assert panel.field("x").input_value() == "0.5"
    if shots := os.environ.get("KIT_SCREENSHOTS"):
        panel.box.screenshot(path=f"{shots}/boundary.png")
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.locator(".lm-Menu-itemLabel", has_text="Restart Kernel…").first.click()
    page.locator(".jp-Dialog .jp-mod-accept").click()
    page.locator(".kit-boundary.jupyter-widgets-disconnected").wait_for(timeout=60_000)
    words = panel.box.evaluate("box => getComputedStyle(box, '::before').content")
    assert "Run this cell again" in words and not panel.slider().is_visible()
    if shots:
        panel.box.screenshot(path=f"{shots}/boundary-restarted.png")
    assert not complaints
    page.close()


@pytest.mark.browser
@pytest.mark.slow
def test_a_reloaded_page_finds_its_network_in_training(browser, tmp_path, home):
    """The page comes back with the picture, the buttons and the news of the training that goes on;
    its cell, run again, shows the same one, and stop there ends it.
    """
    settings = settings_words({**TINY, "epochs": 2000, "milestones": [1500]})

    def epoch(panel: PanelOnPage, at_least: int) -> int:
        deadline = time.monotonic() + 120
        while True:
            found = re.search(r"is training: epoch (\d+) of 2000", panel.sentence())
            if found and int(found[1]) >= at_least:
                return int(found[1])
            assert time.monotonic() < deadline, panel.sentence()
            panel.page.wait_for_timeout(100)

    with jupyterlab(tmp_path, settings) as (url, token, _):
        page, _, complaints = watched(browser, url)
        run_all(page, url, token, "teach_train_live")
        panel = PanelOnPage(page, "train-live")
        panel.field("seed").fill("7")
        panel.field("seed").press("Enter")
        panel.box.get_by_role("button", name="start", exact=True).click()
        before = epoch(panel, 2)
        page.keyboard.press("Control+s")
        page.wait_for_timeout(2000)
        page.goto(f"{url}/lab/tree/teach_train_live.ipynb?token={token}")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=180_000)
        panel = PanelOnPage(page, "train-live")
        assert panel.is_complete()
        after = epoch(panel, before + 1)
        if shots := os.environ.get("KIT_SCREENSHOTS"):
            panel.box.screenshot(path=f"{shots}/train-live-reloaded.png")
        page.locator(".jp-CodeCell", has_text="train_live(").click()
        page.keyboard.press("Control+Enter")
        page.wait_for_timeout(2000)
        panel = PanelOnPage(page, "train-live")
        epoch(panel, after + 1)
        panel.box.get_by_role("button", name="stop", exact=True).click()
        panel.box.get_by_role("button", name="resume", exact=True).wait_for(timeout=60_000)
        panel.box.get_by_text("was stopped").wait_for(timeout=60_000)
        assert panel.field("seed").input_value() == "7" and not complaints
        page.close()
