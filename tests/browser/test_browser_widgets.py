"""Widgets as a person uses them:

JupyterLab in a headless Chromium, sliders by keyboard, drags by mouse.
"""

from __future__ import annotations

import os

import pytest

from tests.helpers.lab import PanelOnPage, jupyterlab, run_all, watched
from tests.helpers.settings import ROOT, TINY, settings_words

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("teach_*.ipynb"))


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_widget_works_by_keyboard(name, browser, lab):
    """All cells run; every panel has a picture with its sentence, and its first slider moves both;
    nobody else is asked.
    """
    url, token, _ = lab
    page, foreign, complaints = watched(browser, url)
    run_all(page, url, token, name)
    page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
    names = page.locator(".kit-panel").evaluate_all(
        "panels => panels.map(p => [...p.classList].find(c => /^kit-(?!panel|photo)/.test(c)))"
    )
    assert names
    for widget in names:
        panel = PanelOnPage(page, widget.removeprefix("kit-"))
        assert panel.is_complete(), f"{widget}: {panel.sentence()!r} {panel.trouble()!r}"
        if panel.box.locator(".noUi-handle").count():
            moves = [
                panel.changes(lambda key=key, p=panel: p.press(p.slider(), key), 5)
                for key in ("ArrowRight", "ArrowLeft")
            ]
            assert any(moves), f"{widget}: no arrow key changed the picture"
        if shots := os.environ.get("KIT_SCREENSHOTS"):
            panel.box.screenshot(path=f"{shots}/{widget}.png")
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
