"""The benchmark goes on where a contestant cannot."""

from __future__ import annotations

import json
import subprocess
import sys
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
    assert f"| step-resnet18 | {broken} |  | cannot run: this cpu computes no such format |" in page


def test_one_table_for_both_kinds_of_vectors(monkeypatch, tmp_path):
    """Contestants shown an older processor are told so; a file keeps the rows of either."""

    def run(words, env, **_):
        older = env.get("ATEN_CPU_CAPABILITY") == "avx2" and env["ONEDNN_MAX_CPU_ISA"] == "AVX2"
        seconds = 2.0 if words[4] == "kit" and not older else 6.0
        answer = {"cpu": 1.0, "result": 0.5, "forwards": 1, "backwards": 1}
        answer |= {"seconds": seconds, "images a second": 1 / seconds}
        return SimpleNamespace(returncode=0, stdout=json.dumps(answer), stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(bench, "processor", lambda: "a processor")
    for more in ([], ["--as", "avx2"], ["--as", "avx2"]):
        path = tmp_path / "speed.json"
        words = ["bench", "--rounds", "3", "--only", "step-digits", "--json", str(path), *more]
        monkeypatch.setattr(sys, "argv", words)
        bench.main()
    record = json.loads(path.read_text())
    times = {(row["who"], row["as"]): row["times"] for row in record["rows"]}
    assert times == {
        ("plain", "native"): 1,
        ("plain", "avx2"): 1,
        ("kit", "native"): 3,
        ("kit", "avx2"): 1,
    }
    assert "| step-digits | kit | 2 | 3.00 [3.00, 3.00] | 1.00 [1.00, 1.00] |" in bench.markdown(
        record
    )
    monkeypatch.setattr(bench, "processor", lambda: "another processor")
    bench.main()
    left = json.loads(path.read_text())["rows"]
    assert {row["as"] for row in left} == {"avx2"}, "rows of another machine are not mixed in"
