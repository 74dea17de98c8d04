"""JupyterLab in a headless Chromium, as a person uses it:

started with its token, driven by mouse and keyboard.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.settings import ROOT

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-quic",
]
REQUIRED = os.environ.get("KIT_REQUIRE_BROWSER") == "1"


def missing(reason: str) -> None:
    """Skip with the reason, or fail where a browser was promised."""
    (pytest.fail if REQUIRED else pytest.skip)(reason)


@contextmanager
def chromium() -> Iterator:
    """The system's Chromium, driven by playwright."""
    executable = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if executable is None:
        missing("no Chromium on this machine (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=executable, headless=True, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def jupyterlab(
    base: Path, overrides: str, app: str = "jupyterlab"
) -> Iterator[tuple[str, str, Path]]:
    """JupyterLab on loopback with its token, private settings, and copies of the notebooks whose
    runs take `overrides`. -> its address, its token, and where the notebooks put their pictures.
    """
    import nbformat  # other tests run where there is none

    root = base / "notebooks"
    root.mkdir()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        book = nbformat.read(path, as_version=4)
        for cell in book.cells:
            if "parameters" in cell.metadata.get("tags", []):
                lines = [
                    line
                    if not line.startswith("overrides:")
                    else f"overrides: str = {overrides!r}  # test size"
                    for line in cell.source.splitlines()
                ]
                cell.source = "\n".join(lines)
        nbformat.write(book, root / path.name)
    settings = base / "settings/@jupyterlab/apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false, "doNotDisturbMode": true}'
    )
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    token = secrets.token_hex(16)
    private = (
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "IPYTHONDIR",
        "JUPYTERLAB_WORKSPACES_DIR",
        "MPLCONFIGDIR",
    )
    environment = {
        **os.environ,
        **{name: str(base / name.lower()) for name in private},
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTERLAB_SETTINGS_DIR": str(base / "settings"),
        "KIT_OUT": str(base / "out"),
    }
    environment.pop("KIT_WIDGETS", None)
    with open(base / "server.log", "w") as log:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                app,
                "--no-browser",
                "--allow-root",
                "--ServerApp.ip=127.0.0.1",
                f"--ServerApp.port={port}",
                "--ServerApp.port_retries=0",
                f"--IdentityProvider.token={token}",
                f"--ServerApp.root_dir={root}",
            ],
            env=environment,
            stdout=log,
            stderr=log,
            cwd=base,
        )
    deadline = time.monotonic() + 60
    while (
        time.monotonic() < deadline and f"127.0.0.1:{port}" not in (base / "server.log").read_text()
    ):
        assert server.poll() is None, (base / "server.log").read_text()
        time.sleep(0.2)
    try:
        yield f"http://127.0.0.1:{port}", token, base / "out"
    finally:
        server.terminate()
        try:
            server.wait(timeout=120)  # it waits for its kernels, which a busy machine makes long
        except subprocess.TimeoutExpired:
            server.kill()


def watched(browser, url: str, **size: int) -> tuple:
    """A new page, and two lists that fill:

    what it asks of other machines, and what its console complains of.
    """
    page = browser.new_page(
        viewport={"width": size.get("width", 1300), "height": size.get("height", 1400)}
    )
    foreign, complaints = [], []
    page.on(
        "request",
        lambda request: (
            foreign.append(request.url)
            if not request.url.startswith((url, url.replace("http", "ws"), "data:", "blob:"))
            else None
        ),
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page, foreign, complaints


def run_all(
    page, url: str, token: str, name: str, seconds: int = 300, app: str = "jupyterlab"
) -> None:
    """Open a notebook, wait for its kernel, choose Run All Cells, wait for the last line."""
    folder = "lab/tree" if app == "jupyterlab" else "notebooks"
    page.goto(f"{url}/{folder}/{name}.ipynb?token={token}&reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=180_000)
    if (
        app == "jupyterlab"
    ):  # the toolbar says idle before a kernel exists; the status bar tells the truth
        page.wait_for_function(
            "document.querySelector('#jp-main-statusbar')?.innerText.includes('| Idle')",
            timeout=180_000,
        )
    else:
        page.wait_for_timeout(
            5000
        )  # Notebook 7 has no status bar; cells that are run too early wait for the kernel
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()
    done = page.locator(".jp-OutputArea-output", has_text=f"{name}: ")
    failed = page.locator(".jp-RenderedText[data-mime-type*='error']")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not done.count():
        assert not failed.count(), failed.first.inner_text()
        page.evaluate(
            "const n = document.querySelector('.jp-WindowedPanel-outer'); if (n) n.scrollTop = "
            "n.scrollHeight"
        )
        page.wait_for_timeout(300)
    assert done.count(), "the last cell was not reached"


class PanelOnPage:
    """One panel of the kit on a page, by its DOM class."""

    def __init__(self, page, name: str):
        self.page, self.name, self.box = page, name, page.locator(f".kit-{name}").first
        page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
        self.box.wait_for(state="attached", timeout=120_000)
        self.box.scroll_into_view_if_needed()

    @property
    def image(self):
        return self.box.locator("img").first

    def shown(self) -> str:
        return self.image.get_attribute("src")

    def sentence(self) -> str:
        """The panel's sentence; by `textContent`, for a cell out of view has no `innerText`."""
        return (self.box.locator(".kit-sentence").text_content() or "").strip()

    def trouble(self) -> str:
        line = self.box.locator(".kit-trouble")
        return (line.text_content() or "").strip() if line.count() else ""

    def slider(self, number: int = 0):
        return self.box.locator(".noUi-handle").nth(number)

    def field(self, name: str):
        """The named number field, list, box or button."""
        return self.box.get_by_label(name, exact=True).first

    def is_complete(self, seconds: float = 120.0) -> bool:
        """Does it come to show a picture whose alternative text is its sentence, and no trouble?"""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            drawn = self.image.evaluate("image => image.complete && image.naturalWidth > 300")
            if (
                drawn
                and self.sentence()
                and self.image.get_attribute("alt") == self.sentence()
                and not self.trouble()
            ):
                return True
            self.page.wait_for_timeout(100)
        return False

    def changes(self, act, seconds: float = 60.0) -> bool:
        """Do something; does the picture change, and come to rest?"""
        before = self.shown()
        act()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.shown() != before:
                self.page.wait_for_timeout(200)
                return True
            self.page.wait_for_timeout(30)
        return False

    def settle(self, seconds: float = 180.0) -> None:
        """Wait for the answers to what was set: an idle kernel, fields that stay a second."""
        fields = self.box.locator(".kit-controls input[type=text]")
        values, begun = None, time.monotonic()
        deadline = begun + seconds
        while time.monotonic() < deadline:
            shown = fields.evaluate_all("all => all.map(one => one.value)")
            idle = self.page.evaluate(
                "document.querySelector('#jp-main-statusbar')?.innerText.includes('| Idle')"
            )
            if not idle or shown != values:
                values, begun = shown, time.monotonic()
            elif time.monotonic() >= begun + 1:
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"{self.name} does not come to rest: {values}")

    def press(self, handle, key: str) -> None:
        handle.focus()
        self.page.keyboard.press(key)


LATENCY = """
(name) => { window.kitTimes = []; window.kitBlank = 0; window.kitShown = 0;
  if (window.kitWatched) return;      // listeners stay; two would count every picture twice
  window.kitWatched = true; let pressed = 0;
  const box = document.querySelector('.kit-' + name);
  document.addEventListener('keydown', event => { pressed = event.timeStamp; }, true);
  document.addEventListener('load', event => {
    if (event.target.tagName !== 'IMG' || !box.contains(event.target)) return;
    window.kitShown += 1;
    if (!event.target.naturalWidth) window.kitBlank += 1;
    requestAnimationFrame(() => {
      if (pressed) window.kitTimes.push(performance.now() - pressed);
      pressed = 0;
    });
  }, true); }
"""


def latency(panel: PanelOnPage, name: str, handle, presses: int = 20) -> float:
    """Median milliseconds from a key press to the frame that shows its picture."""
    panel.page.evaluate(LATENCY, name)
    handle.focus()
    for i in range(presses + 2):
        panel.page.keyboard.press("ArrowRight" if i % 8 < 4 else "ArrowLeft")
        panel.page.wait_for_timeout(350)
    times = panel.page.evaluate("window.kitTimes")[2:]
    assert len(times) >= presses * 0.8, f"{len(times)} of {presses} presses drew a picture"
    assert panel.page.evaluate("window.kitBlank") == 0
    return statistics.median(times)


def held(panel: PanelOnPage, name: str, handle) -> tuple[int, int]:
    """A key held for 20 presses, 33 ms apart.

    -> pictures shown, and how many of them were blank.
    """
    panel.page.evaluate(LATENCY, name)
    handle.focus()
    for _ in range(20):
        panel.page.keyboard.press("ArrowRight")
        panel.page.wait_for_timeout(33)
    panel.page.wait_for_timeout(1500)
    return panel.page.evaluate("window.kitShown"), panel.page.evaluate("window.kitBlank")
