"""Tables over seeds:

means and intervals recounted, gaps named and never zero, files that read back.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

import kit
from kit.core.errors import KitError
from kit.evaluation.result_tables import result_table
from kit.evaluation.statistics import grand_mean, wilson
from kit.figures.table import FIGURES
from tests.helpers.settings import TINY

ATTACKS = ["natural", "pgd10"]


@pytest.fixture
def table(tiny_run):
    runs = [tiny_run(method, seed) for seed in (0, 1) for method in ("at", "mail-at")]
    return result_table(
        "Two methods", runs, ATTACKS, missing={"mart on digits, seed 1": "it diverged"}
    )


def test_cells_are_recounted(table):
    """Every cell from the per-example flags, with plain loops."""
    assert list(table.cells.index) == [(m, a) for m in ("at", "mail-at") for a in ATTACKS]
    for (method, attack), cell in table.cells.iterrows():
        shares, right = [], []
        for run in (r for r in table.runs if r.method == method):
            flags = kit.evaluate(run, [attack], quiet=True).attrs["examples"][attack]["broken"]
            right.append([not b for b in flags])
            shares.append(sum(right[-1]) / len(flags))
        mean = sum(shares) / 2
        assert (
            cell["mean"] == pytest.approx(mean)
            and cell["seeds"] == 2
            and cell["n"] == len(right[0])
        )
        assert cell["sd"] == pytest.approx(abs(shares[0] - shares[1]) / math.sqrt(2))
        images = [*((a + b) / 2 for a, b in zip(*right, strict=True)), 0.0, 1.0]
        centre, n = sum(images) / len(images), len(images)
        of_images = 1.959964 * math.sqrt(sum((v - centre) ** 2 for v in images)) / n
        half = math.hypot(of_images, 12.706205 * cell["sd"] / math.sqrt(2))  # t of one degree
        assert cell["high"] == pytest.approx(min(centre + half, 1))


def test_interval_of_one_seed_is_wilsons():
    right = np.arange(50)[None, :] < 40
    assert grand_mean(right) == (0.8, *wilson(40, 50))


def test_interval_covers():
    """Of 400 tables with known truth (seeds and images both random) about 95 % cover it; not much
    less is allowed.
    """
    dice, covered = np.random.default_rng(0), 0
    for _ in range(400):
        seeds, images = dice.normal(0, 0.3, (5, 1)), dice.normal(0, 1.0, (1, 200))
        right = seeds + images + dice.normal(0, 0.5, (5, 200)) > 0
        _, low, high = grand_mean(right)
        covered += low <= 0.5 <= high
    assert covered / 400 > 0.9


def test_text_forms(table, tmp_path):
    """Markdown, LaTeX, CSV and JSON say the same, and name what is missing."""
    table.save(tmp_path, "two")
    assert {path.name for path in table.files} == {"two.md", "two.tex", "two.csv", "two.json"}
    cells = pd.read_csv(tmp_path / "two.csv")
    first = f"{100 * cells['mean'][0]:.1f} ± {100 * cells['sd'][0]:.1f}"
    assert first in (tmp_path / "two.md").read_text()
    tex = (tmp_path / "two.tex").read_text()
    assert first.replace("±", r"$\pm$") in tex and tex.count(r"\\") == 3 and "\\toprule" in tex
    record = json.loads((tmp_path / "two.json").read_text())
    assert len(record["runs"]) == 4 and record["missing"] == {
        "mart on digits, seed 1": "it diverged"
    }
    for text in (repr(table), table._repr_html_(), table.markdown()):
        assert "Not trained: mart on digits, seed 1 (it diverged)" in text and "mail-at" in text
    assert "mart" not in table.wide.index, "what was not run is no number"


def test_constant_networks_are_marked(fresh_home):
    run = kit.run("std", overrides={**TINY, "lr": 1e-9, "epochs": 1, "milestones": []}, quiet=True)
    note = result_table("x", [run], ["natural"]).wide.get("note")
    assert (note is not None and note.iloc[0] == "constant") == bool(run.done["constant"])


def test_errors(tiny_run):
    with pytest.raises(KitError, match=r"no runs for 'empty': it diverged"):
        result_table("empty", [], ATTACKS, missing={"at": "it diverged"})
    with pytest.raises(KitError, match="no attack 'pgd11'"):
        result_table("x", [tiny_run("at")], ["pgd11"])


def test_the_picture_shows_the_table(tiny_run, tmp_path):
    runs = [tiny_run(method, seed) for seed in (0, 1) for method in ("at", "mail-at")]
    drawing = FIGURES["every-method"].make(runs, attacks="natural pgd10")
    cells = result_table("", runs, ATTACKS).cells
    assert set(drawing.facts) == {"at", "mail-at"}
    assert drawing.facts["at"]["pgd10"] == pytest.approx(
        cells.loc[("at", "pgd10"), ["mean", "low", "high"]].tolist()
    )
    rows = [label.get_text() for label in drawing.axes[0].get_yticklabels()]
    assert rows == sorted(rows, key=lambda m: drawing.facts[m]["pgd10"][0])
