"""A machine that one has for minutes is taken away at any moment: what was kept can be read."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

import kit
from kit.experiments.specification import RunSpec
from tests.benchmarks import gpu_minutes
from tests.benchmarks.gpu_minutes import MOST_BYTES, MOST_FILES, Keeper
from tests.helpers.processes import PATIENCE
from tests.helpers.settings import ROOT, TINY


@pytest.fixture
def tiny_digits(fresh_home, monkeypatch) -> Path:
    monkeypatch.setitem(kit.RECIPES, "digits", kit.RECIPES["digits"].override(**TINY))
    return fresh_home


def check_kept(out: Path) -> dict[str, int]:
    """Each kept file can be read and is within the limits. -> how many rows or parts it has."""
    found = sorted(out.iterdir())
    assert len(found) <= MOST_FILES
    counts = {}
    for path in found:
        payload = path.read_bytes()
        assert len(payload) <= MOST_BYTES
        if path.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(payload.decode())))
            assert all(None not in row and None not in row.values() for row in rows)
            counts[path.name] = len(rows)
        elif path.suffix == ".json":
            counts[path.name] = len(json.loads(payload)["parts"])
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                counts[path.name] = sum(arrays[name].nbytes > 0 for name in arrays.files)
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None
                counts[path.name] = len(archive.namelist())
    return counts


def test_what_is_kept_is_what_was_measured(tiny_digits, tmp_path):
    """Verdicts and logits come back as they were; an unfinished run has its epochs there."""
    run = kit.run("at", quiet=True)
    table = kit.evaluate(run, ["natural", "pgd20"], quiet=True)
    log = tmp_path / "log"
    log.write_text("said")
    keeper = Keeper(tmp_path / "out", "digits")
    keeper.keep(log, {"parts": {}})
    assert check_kept(tmp_path / "out")["epochs.csv"] == TINY["epochs"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/accuracies.csv").read_text())))
    assert {
        (row["scale"], row["method"], row["attack"]): float(row["accuracy"]) for row in rows
    } == {("digits", "at", attack): table.loc[attack, "accuracy"] for attack in table.index}
    with np.load(tmp_path / "out/examples.npz") as kept:
        broken = kept[f"{run.key}/pgd20/0/last/broken"]
        there = np.unpackbits(broken, count=int(kept[f"{run.key}/pgd20/0/last/n"])).astype(bool)
        np.testing.assert_array_equal(there, table.attrs["examples"]["pgd20"]["broken"])
        logits = kept[f"{run.key}/logits_adv"]
        assert logits.dtype == np.float16
        np.testing.assert_allclose(logits, run.final["test_logits_adv"], rtol=1e-3, atol=1e-3)


def test_rows_of_a_short_schedule_say_so(fresh_home, tmp_path, monkeypatch):
    row = kit.RECIPES["digits"].override(**{**TINY, "epochs": 12, "milestones": [8, 9]})
    monkeypatch.setitem(kit.RECIPES, "digits", row)
    name = "digits, 4 of 12 epochs"
    kit.run(RunSpec("at", name), quiet=True)
    Keeper(tmp_path / "out", "digits").keep(tmp_path / "log", {"parts": {}})
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/epochs.csv").read_text())))
    assert [row["scale"] for row in rows] == [name] * 4


def test_many_runs_stay_within_the_limits(tiny_digits, tmp_path, monkeypatch):
    """Verdicts are kept of all, logits of as many as there is room for."""
    runs = kit.run_many([RunSpec("at", seed=seed) for seed in range(3)], quiet=True)
    for run in runs:
        kit.evaluate(run, ["natural"], quiet=True)
    one = sum(run.final[f"test_{name}"].nbytes // 2 for run in runs for name in ("logits_adv",))
    monkeypatch.setattr(gpu_minutes, "MOST_BYTES", one)
    Keeper(tmp_path / "out", "digits").keep(tmp_path / "log", {"parts": {}})
    assert (tmp_path / "out/examples.npz").stat().st_size <= one
    with np.load(tmp_path / "out/examples.npz") as kept:
        assert all(f"{run.key}/natural/0/last/broken" in kept for run in runs)
        logits = [run.key for run in runs if f"{run.key}/logits_adv" in kept]
    assert 0 < len(logits) < 3


def test_half_written_runs_stop_nothing(tiny_digits, tmp_path):
    run = kit.run("at", quiet=True)
    (run.folder / "history.csv").write_text("epoch,lo")
    torn = run.folder.with_name("digits-000000000000")
    torn.mkdir()
    (torn / "run.json").write_text('{"spec": {')
    keeper = Keeper(tmp_path / "out", "digits")
    keeper.keep(tmp_path / "log", {"parts": {}})
    check_kept(tmp_path / "out")


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """At most the last minute is lost; nothing that was started goes on."""
    words = ["-m", "tests.benchmarks.gpu_minutes", "--recipe", "digits", "--minutes", "1.5"]
    draw, out = random.Random(0), tmp_path / "out"
    environment = {**os.environ, "KIT_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    reached = 0
    for _ in range(int(os.environ.get("KIT_FAULTS", "3"))):
        process = subprocess.Popen(
            [sys.executable, *words, "--device", "cpu", "--out", str(out)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        time.sleep(draw.uniform(0, 90))
        killed_at = time.time()
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not out.exists():
            continue
        check_kept(out)
        for history in (tmp_path / "home").glob("data/runs/*/history.csv"):
            if history.stat().st_mtime < killed_at - 60:
                assert history.stat().st_mtime <= (out / "epochs.csv").stat().st_mtime
                reached += 1
    done = subprocess.run(
        [sys.executable, *words, "--device", "cpu", "--out", str(out)],
        env=environment,
        cwd=ROOT,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode in (0, 1)
    assert "log.txt" in {path.name for path in out.iterdir()} and check_kept(out)
