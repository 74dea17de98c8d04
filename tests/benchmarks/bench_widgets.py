"""From a key press to the frame that shows its picture, in JupyterLab. Not a test: run it on a
quiet machine.

    python -m tests.benchmarks.bench_widgets [--presses 20] [--shots FOLDER] [--record]

Each teaching notebook is run in a headless Chromium, and the first slider of its widget moved by
the arrow keys, 350 ms apart. `train_live` is left out: its sliders set up a training, and draw
nothing. Printed are the median in milliseconds, and how many pictures a key held for 20 presses, 33
ms apart, showed. `--record` writes the medians where README takes them from.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from tests.helpers.lab import PanelOnPage, chromium, held, jupyterlab, latency, run_all, watched
from tests.helpers.measurements import LATENCIES, latency_words, write_rows
from tests.helpers.settings import ROOT

SETTINGS = "epochs=24 milestones=[15,19] probe=50"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--presses", type=int, default=20)
    options.add_argument(
        "--shots", type=Path, help="folder for a picture of each widget as the page shows it"
    )
    options.add_argument("--record", action="store_true", help=f"write {LATENCIES.name}")
    given, rows = options.parse_args(), []
    with tempfile.TemporaryDirectory() as base, chromium() as browser:
        os.environ.setdefault("KIT_HOME", base)
        with jupyterlab(Path(base), SETTINGS) as (url, token, _):
            print(f"{'widget':20} median ms   n   held key: pictures of 20, blank")
            for path in sorted((ROOT / "notebooks").glob("teach_*.ipynb")):
                if path.stem in ("teach_lecture", "teach_train_live"):
                    continue
                page, _, _ = watched(browser, url)
                run_all(page, url, token, path.stem, seconds=600)
                name = path.stem.removeprefix("teach_").replace("_", "-")
                panel = PanelOnPage(page, name)
                if given.shots:
                    panel.box.screenshot(path=str(given.shots / f"{name}.png"))
                if panel.box.locator(".noUi-handle").count():
                    median = latency(panel, name, panel.slider(), given.presses)
                    shown, blank = held(panel, name, panel.slider())
                    rows.append({"widget": name, "milliseconds": median})
                    print(
                        f"{name:20} {median:9.0f} {given.presses:4d}   {shown} of 20, "
                        f"{blank} blank",
                        flush=True,
                    )
                page.close()
    if given.record:
        write_rows(LATENCIES, rows, presses=given.presses)
        print(latency_words(json.loads(LATENCIES.read_text())))


if __name__ == "__main__":
    main()
