"""A notebook as a person uses it: JupyterLab in a headless Chromium, run top to bottom, pictures on the page."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, TINY

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--disable-dev-shm-usage", "--disable-quic"]
SETTINGS = " ".join(f"{k}={json.dumps(v, separators=(',', ':'))}" for k, v in TINY.items())
REQUIRED = os.environ.get("KIT_REQUIRE_BROWSER") == "1"


def missing(reason: str) -> None:
    """Skip with the reason, or fail where a browser was promised."""
    (pytest.fail if REQUIRED else pytest.skip)(reason)


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        missing("no Chromium on this machine (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=executable, headless=True, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def lab(home, tmp_path_factory):
    """JupyterLab on loopback with its token, private settings, and copies of the notebooks at test size."""
    base = tmp_path_factory.mktemp("lab")
    root = base / "notebooks"
    root.mkdir()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        book = nbformat.read(path, as_version=4)
        for cell in book.cells:
            if "parameters" in cell.metadata.get("tags", []):
                lines = [line if not line.startswith("overrides:") else f"overrides: str = {SETTINGS!r}  # test size"
                         for line in cell.source.splitlines()]
                cell.source = "\n".join(lines)
        nbformat.write(book, root / path.name)
    settings = base / "settings/@jupyterlab/apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false, "doNotDisturbMode": true}')
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    token = secrets.token_hex(16)
    private = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTERLAB_WORKSPACES_DIR",
               "MPLCONFIGDIR")
    environment = {**os.environ, **{name: str(base / name.lower()) for name in private}, "JUPYTER_PREFER_ENV_PATH": "1",
                   "JUPYTERLAB_SETTINGS_DIR": str(base / "settings"), "KIT_OUT": str(base / "out")}
    with open(base / "server.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
             f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
             f"--ServerApp.root_dir={root}"], env=environment, stdout=log, stderr=log, cwd=base)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and f"127.0.0.1:{port}" not in (base / "server.log").read_text():
        assert server.poll() is None, (base / "server.log").read_text()
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}", token, base / "out"
    server.terminate()
    server.wait(timeout=20)


def run_all(page, url: str, token: str, name: str, seconds: int = 150) -> None:
    """Open a notebook, wait for its kernel, choose Run All Cells, wait for the last line."""
    page.goto(f"{url}/lab/tree/{name}.ipynb?token={token}&reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    # the toolbar says idle before a kernel exists; the status bar tells the truth
    page.wait_for_function("document.querySelector('#jp-main-statusbar')?.innerText.includes('| Idle')", timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()
    done = page.locator(".jp-OutputArea-output", has_text=f"{name}: ")
    failed = page.locator(".jp-RenderedText[data-mime-type*='error']")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not done.count():
        assert not failed.count(), failed.first.inner_text()
        page.evaluate("const n = document.querySelector('.jp-WindowedPanel-outer'); if (n) n.scrollTop = n.scrollHeight")
        page.wait_for_timeout(300)
    assert done.count(), "the last cell was not reached"


@pytest.mark.browser
@pytest.mark.parametrize("name", ["02_confused_labels", "04_min_max"])
def test_notebook_runs_in_jupyterlab(name, browser, lab):
    """Every cell runs, every figure is a picture with a text alternative, and the page asks nobody else for anything."""
    url, token, out = lab
    page = browser.new_page(viewport={"width": 1300, "height": 5200})
    foreign, complaints = [], []
    page.on("request", lambda request: foreign.append(request.url) if not request.url.startswith(
        (url, url.replace("http", "ws"), "data:", "blob:")) else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    run_all(page, url, token, name)
    pictures = page.locator(".jp-RenderedImage img")
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
