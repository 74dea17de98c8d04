"""kill -9 at random moments:

what was finished stays and is not repeated, and the end is the undisturbed one.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import kit
from kit.core import files
from kit.evaluation.accuracy import ATTACK_BATCH, evaluate
from kit.experiments.runs import Run, run_folder, runs_folder
from kit.experiments.specification import RunSpec, resolve
from kit.jobs import archive
from tests.helpers.processes import alive
from tests.helpers.run_files import contents
from tests.helpers.settings import ROOT, TINY

#: Kills in each test. With KIT_FAULTS=50 seven minutes go to `reproduce`, which takes seconds to
#: start.
KILLS = int(os.environ.get("KIT_FAULTS", "5"))
LONG = {**TINY, "epochs": 8, "milestones": [4]}


def child(work: Callable[[], None]) -> int:
    """A forked process that does `work` and ends.

    It shares nothing but what was imported: that saves its five seconds.
    """
    pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)
            work()
        finally:
            os._exit(0)
    return pid


def killed_until_done(
    work: Callable[[], None],
    is_done: Callable[[], bool],
    afresh: Callable[[], None],
    longest: float,
    look: Callable[[], None] = lambda: None,
) -> int:
    """Run `work` again and again, killed at random moments of up to `longest` seconds, until it was
    killed KILLS times and is done; if it is done before, `afresh` forgets everything. -> kills that
    left something to go on from.
    """
    draw, kills, useful = random.Random(0), 0, 0
    while kills < KILLS or not is_done():
        if is_done():
            afresh()
        pid, limit = (
            child(work),
            time.monotonic() + (draw.uniform(0, longest) if kills < KILLS else 600),
        )
        while time.monotonic() < limit and os.waitpid(pid, os.WNOHANG) == (0, 0):
            time.sleep(0.002)
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            kills += 1
            useful += any(runs_folder().rglob("*.ckpt"))
        except (ProcessLookupError, ChildProcessError):
            pass
        look()
    return useful


def whole_files(home: Path) -> None:
    """No file that a reader would open is half written."""
    for path in home.rglob("*.ckpt"):
        files.load_checkpoint(path)
    for path in home.rglob("[!.]*.npz"):
        files.load_arrays(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "methods", [["mail-at"], ["clirat", "csa", "gairat"]], ids=["one", "many at once"]
)
def test_training(methods, tmp_path, monkeypatch, record_property):
    """Bit for bit the undisturbed end; and an epoch that was finished is never begun again."""
    specs = [RunSpec(method, overrides=LONG) for method in methods]
    ends = {}
    for name in ("calm", "killed"):
        monkeypatch.setenv("KIT_HOME", str(tmp_path / name))
        folders, reached = [run_folder(resolve(spec)) for spec in specs], dict.fromkeys(methods, 0)

        def look(folders=folders, reached=reached):
            for method, folder in zip(methods, folders, strict=True):
                kept = [
                    files.load_checkpoint(folder / f)["epoch"]
                    for f in ("last.ckpt", "previous.ckpt")
                    if (folder / f).exists()
                ]
                assert max(kept, default=0) >= reached[method], "a finished epoch was lost"
                reached[method] = max(kept, default=0)

        def afresh(reached=reached):
            shutil.rmtree(runs_folder())
            reached.update(dict.fromkeys(reached, 0))

        if name == "calm":
            kit.run_many(specs, quiet=True)
        else:
            useful = killed_until_done(
                lambda: kit.run_many(specs, quiet=True),
                lambda folders=folders: all((f / "done.json").exists() for f in folders),
                afresh,
                0.8 * len(methods),
                look,
            )
            assert useful > KILLS / 3, "most kills were in the middle of something"
            whole_files(tmp_path / name)
            assert not any(map(archive.verify_run, folders)), "done.json knows other files"
        ends[name] = [contents(folder) for folder in folders]
    assert ends["calm"] == ends["killed"]
    record_property(
        "faults",
        [
            [
                f"kill -9 in the training of {len(methods)} at once",
                KILLS,
                f"all survived, {useful} in the middle of something: the undisturbed end, bit for "
                f"bit",
            ]
        ],
    )


@pytest.mark.slow
def test_evaluation(tmp_path, monkeypatch, tiny_run, record_property):
    """AutoAttack in batches of eight: every field of every example as undisturbed."""
    trained, ends = tiny_run("at"), {}
    monkeypatch.setitem(ATTACK_BATCH, "cpu", 8)
    for name in ("calm", "killed"):
        target = tmp_path / name / "data/runs" / trained.folder.name
        shutil.copytree(trained.folder, target, ignore=shutil.ignore_patterns("evaluations"))
        monkeypatch.setenv("KIT_HOME", str(tmp_path / name))
        run = Run(trained.spec, target)

        def work(run=run):
            evaluate(run, ["apgd-ce", "aa"], n=24, quiet=True)

        def is_done(target=target):
            return len(list((target / "evaluations").glob("*.npz"))) == 2

        if name == "calm":
            work()
        else:
            killed_until_done(
                work, is_done, lambda target=target: shutil.rmtree(target / "evaluations"), 3.0
            )
        ends[name] = evaluate(run, ["apgd-ce", "aa"], n=24, quiet=True).attrs["examples"]
        assert not list((target / "evaluations").glob("*.partial"))
    for attack, arrays in ends["calm"].items():
        for key, values in arrays.items():
            np.testing.assert_array_equal(values, ends["killed"][attack][key])
    record_property(
        "faults",
        [
            [
                "kill -9 in an evaluation under AutoAttack",
                KILLS,
                "all survived: the undisturbed verdicts",
            ]
        ],
    )


@pytest.mark.slow
def test_reproduce(tmp_path, record_property):
    """Killed again and again, with its workers and kernels gone soon after; then it ends, and
    trains nothing twice. If it ends before it was killed often enough, it begins again from
    nothing.
    """
    words = [
        sys.executable,
        "-m",
        "kit",
        "reproduce",
        "--only",
        "02",
        "--jobs",
        "2",
        "--set",
        *(f"{name}={value}".replace(" ", "") for name, value in TINY.items()),
    ]
    draw, trained, home, kills = random.Random(1), {}, tmp_path / "0", 0
    while kills < KILLS:
        environment = {**os.environ, "KIT_HOME": str(home), "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(words, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            assert process.wait(timeout=draw.uniform(2, 12)) == 0
            whole_files(home)
            home, trained = tmp_path / str(len(list(tmp_path.iterdir()))), {}
            continue
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        deadline = time.monotonic() + 20
        while alive(home) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not alive(home), "orphans"
        now = {path: path.stat().st_mtime_ns for path in home.rglob("done.json")}
        assert trained.items() <= now.items(), "a finished run was touched"
        trained = now
    done = subprocess.run(
        words, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        trained.items()
        <= {path: path.stat().st_mtime_ns for path in home.rglob("done.json")}.items()
    )
    whole_files(home)
    record_property(
        "faults",
        [["kill -9 in `reproduce`", KILLS, "all survived: no orphans, nothing trained twice"]],
    )
