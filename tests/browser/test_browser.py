"""A notebook as a person uses it:

JupyterLab in a headless Chromium, run top to bottom, pictures on the page.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.helpers.lab import run_all, watched


@pytest.mark.browser
@pytest.mark.parametrize(
    "name", ["02_confused_labels", pytest.param("04_min_max", marks=pytest.mark.slow)]
)
def test_notebook_runs_in_jupyterlab(name, browser, lab):
    """Every cell runs, every figure is a picture with a text alternative, and the page asks nobody
    else for anything.
    """
    url, token, out = lab
    page, foreign, complaints = watched(browser, url, height=5200)
    run_all(page, url, token, name)
    pictures = page.locator(".kit-figure img")
    stamp = json.loads((Path(out) / f"{name}.json").read_text())
    drawn = [figure for figure in stamp["figures"] if figure.endswith(".png")]
    page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
    page.wait_for_timeout(500)
    assert pictures.count() == len(drawn) >= 4
    for i in range(pictures.count()):
        assert pictures.nth(i).evaluate("image => image.complete && image.naturalWidth > 300")
    assert page.locator("table", has_text="these runs").count() >= 1
    assert not foreign and not complaints
    if shots := os.environ.get("KIT_SCREENSHOTS"):
        page.screenshot(path=f"{shots}/{name}.png", full_page=False)
    page.close()
