"""The page of results in a headless Chromium: its filter, its keyboard, two widths, no requests."""

from __future__ import annotations

import pytest

from tests.integration.test_report import write_picture, write_stamp


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    from kit.jobs.report import write_report

    folder = tmp_path_factory.mktemp("results")
    write_picture(folder)
    write_stamp(folder, figures=["confused-labels.png"])
    return write_report(folder).as_uri()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_in_a_browser(browser, address, width, scheme):
    """Nothing is wider than the window, nobody else is asked, and the filter hides what it says."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    rows = page.locator(".board tbody tr:visible")
    everything = rows.count()
    page.get_by_label("Paper").select_option("clirat")
    page.get_by_label("Words").fill("confused LABEL")
    assert 0 < rows.count() < everything
    assert all("confused label" in text.lower() for text in rows.all_text_contents())
    assert page.locator("#filter output").inner_text() == f"{rows.count()} of {everything} claims"
    page.locator("img").first.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('img').naturalWidth > 0", timeout=20_000)
    page.evaluate("location.hash = 'claim-50'")
    page.wait_for_function("document.getElementById('claim-50').checkVisibility()", timeout=20_000)
    assert {url.split(":")[0] for url in asked} <= {"file", "data"} and not complaints
    page.close()


@pytest.mark.browser
def test_without_javascript_everything_is_there(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert not page.locator("#filter").is_visible() and page.locator("#claim-50").is_visible()
    context.close()
