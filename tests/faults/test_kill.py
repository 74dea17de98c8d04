"""kill -9 at random moments:

what was finished stays and is not repeated, and the end is the undisturbed one.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.context import ForkProcess
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
from kit.jobs.batch_kernels import serve_kernel
from tests.helpers.processes import PATIENCE, alive, wait_until
from tests.helpers.run_files import contents, written_files
from tests.helpers.settings import ROOT, TINY

#: Kills in each test. With KIT_FAULTS=50 most of the time goes to `reproduce`, which takes seconds
#: to start.
KILLS = int(os.environ.get("KIT_FAULTS", "5"))
LONG = {**TINY, "epochs": 8, "milestones": [4]}


class Moments:
    """Random moments in work that writes files. They are told by these files, so that they lie in
    the middle of the work on every machine, be it fast or slow.

    A moment comes after so many changes of the files, from none to `most`, and then after a part
    of the longest time that has passed between two changes. About a quarter come before any change.
    """

    def __init__(self, most: int, seed: int):
        self.draw, self.most = random.Random(seed), most
        self.longest = [0.0, 0.0]  # seconds until the first change, and between two of them

    def reached(self, folder: Path, works: Callable[[], bool]) -> bool:
        """Wait for the next moment of work in `folder`. -> whether it still `works` then."""
        changes, part = max(0, self.draw.randint(-self.most // 4, self.most)), self.draw.random()
        seen, count, since = written_files(folder), 0, time.monotonic()
        while count < changes and works():
            time.sleep(0.002)
            assert time.monotonic() < since + PATIENCE, "the work stands still"
            if (now := written_files(folder)) != seen:
                passed = time.monotonic() - since
                self.longest[count > 0] = max(self.longest[count > 0], passed)
                seen, count, since = now, count + 1, since + passed
        limit = time.monotonic() + part * self.longest[count > 0]
        while time.monotonic() < limit and works():
            time.sleep(0.002)
        return works()


def child(work: Callable[[], None]) -> ForkProcess:
    """A forked process that does `work` and ends.

    It shares nothing but what was imported: that saves its five seconds.
    """

    def alone() -> None:
        torch.set_num_threads(1)
        work()

    process = ForkProcess(target=alone, daemon=True)
    process.start()
    return process


def killed_until_done(
    work: Callable[[], None],
    is_done: Callable[[], bool],
    afresh: Callable[[], None],
    most: int,
    look: Callable[[], None] = lambda: None,
) -> int:
    """Run `work` again and again, killed at random `Moments` of up to `most` changed files, until
    it was killed KILLS times and is done; if it is done before, `afresh` forgets everything.
    -> kills that left something to go on from.
    """
    moments, kills, useful = Moments(most, seed=0), 0, 0
    while kills < KILLS:
        if is_done():
            afresh()
        process = child(work)
        if moments.reached(runs_folder(), process.is_alive):
            process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            useful += any(runs_folder().rglob("*.ckpt"))
        else:
            assert process.exitcode == 0 and is_done(), "it ended by itself, but not at its end"
        look()
    if not is_done():
        process = child(work)
        process.join(PATIENCE)
        assert process.exitcode == 0 and is_done(), "undisturbed it does not come to its end"
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
                12 * len(methods),
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
                work, is_done, lambda target=target: shutil.rmtree(target / "evaluations"), 6
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


def ask_for_kernel(folder: Path) -> None:
    """Be a worker that asks for a kernel and waits for it."""
    words = ["ipykernel_launcher", "-f", str(folder / "ready")]
    given = words, str(folder), dict(os.environ), folder / "log"
    kernel = multiprocessing.get_context("forkserver").Process(target=serve_kernel, args=given)
    kernel.start()
    (folder / "begun").touch()
    kernel.join()


@pytest.mark.skipif(os.name == "nt", reason="no forks there")
@pytest.mark.parametrize("moment", ["begun", "ready"])
def test_a_kernel_ends_with_its_worker(moment, tmp_path, monkeypatch):
    """So does the server that it is a fork of. One that has begun waits for a reader of its log."""
    resource_tracker.ensure_running()  # it is this process's, and not of that home
    monkeypatch.setenv("KIT_HOME", str(tmp_path))
    if moment == "begun":
        os.mkfifo(tmp_path / "log")
    worker = multiprocessing.get_context("spawn").Process(target=ask_for_kernel, args=(tmp_path,))
    worker.start()
    assert wait_until((tmp_path / moment).exists)
    worker.kill()
    worker.join()
    assert wait_until(lambda: not alive(tmp_path), seconds=60), alive(tmp_path)


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
    moments, trained, home, kills = Moments(30, seed=1), {}, tmp_path / "0", 0
    while kills < KILLS:
        environment = {**os.environ, "KIT_HOME": str(home), "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(words, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
        if moments.reached(home, lambda process=process: process.poll() is None):
            process.kill()
        if process.wait() != -signal.SIGKILL:
            assert process.returncode == 0
            whole_files(home)
            home, trained = tmp_path / str(len(list(tmp_path.iterdir()))), {}
            continue
        kills += 1
        assert wait_until(lambda home=home: not alive(home)), f"orphans: {alive(home)}"
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
