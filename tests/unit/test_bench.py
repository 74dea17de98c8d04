"""The benchmark goes on where a contestant cannot."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace

import pytest

from tests.benchmarks import bench


@pytest.mark.parametrize("broken", ["plain", "bf16"])
def test_a_contestant_that_cannot_run_is_a_row_that_says_so(broken, monkeypatch):
    """It is tried once; the others are compared with the first that can run."""
    tried = []

    def run(words, **_):
        name = words[4]
        tried.append(name)
        if name == broken:
            error = "Traceback ...\nkit.core.errors.KitError: this cpu computes no such format\n"
            return SimpleNamespace(returncode=1, stdout="", stderr=error)
        seconds = {"plain": 4.0, "kit": 2.0}.get(name, 1.0)
        answer = {"seconds": seconds, "result": 0.5, "images a second": 1 / seconds}
        return SimpleNamespace(returncode=0, stdout=f"words\n{json.dumps(answer)}\n", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    rows = {row["who"]: row for row in bench.race("step-resnet18", 3, 10, 1, "cpu")}
    assert list(rows) == list(bench.WORK["step-resnet18"])
    assert rows[broken]["cannot"] == "this cpu computes no such format"
    assert tried.count(broken) == 1 and tried.count("kit") == 3
    assert rows["kit"]["times"] == (1 if broken == "plain" else 2)
    page = bench.markdown(
        {
            "machine": dict.fromkeys(("date", "torch", "machine", "device", "threads"), "-"),
            "rows": list(rows.values()),
        }
    )
    assert f"| step-resnet18 | {broken} | cannot run: this cpu computes no such format |" in page
