"""Ctrl-C, full disks and folders that vanish: in words, soon, and nothing finished is lost."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import kit
from kit.core import files
from kit.core.errors import KitError
from kit.training import loop
from tests.helpers.processes import alive
from tests.helpers.run_files import contents
from tests.helpers.settings import ROOT, TINY

LONG = [
    f"{name}={value}".replace(" ", "")
    for name, value in {**TINY, "epochs": 400, "milestones": []}.items()
]
SOON = 5  # seconds; alone on a machine it takes less than 2


def stopped(
    words: list[str], home: Path, ready: Callable[[], bool]
) -> tuple[float, subprocess.CompletedProcess]:
    """Start a command in a process group, wait until `ready`, press Ctrl-C.

    -> seconds until it ended, and how.
    """
    environment = {**os.environ, "KIT_HOME": str(home), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "kit", *words],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # ignored in the background
    deadline = time.monotonic() + 120
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    os.killpg(process.pid, signal.SIGINT)
    started = time.monotonic()
    out, err = process.communicate(timeout=60)
    return time.monotonic() - started, subprocess.CompletedProcess(
        words, process.returncode, out, err
    )


@pytest.mark.slow
def test_ctrl_c_in_training(tmp_path):
    seconds, ended = stopped(
        ["train", "at", "--set", *LONG], tmp_path, lambda: any(tmp_path.rglob("epochs/0002.npz"))
    )
    assert (
        seconds < SOON
        and ended.returncode == 130
        and "the same command goes on there" in ended.stderr
    )
    kept = [
        files.load_checkpoint(path)["epoch"]
        for name in ("last.ckpt", "previous.ckpt")
        for path in tmp_path.rglob(name)
    ]
    assert "Traceback" not in ended.stderr and max(kept) >= 1


@pytest.mark.slow
def test_ctrl_c_in_an_evaluation(tmp_path, tiny_run):
    run = tiny_run("at")
    shutil.copytree(run.folder, tmp_path / "data/runs" / run.folder.name)
    begun = time.monotonic()
    seconds, ended = stopped(
        ["evaluate", run.key, "--attacks", "aa,spsa100"],
        tmp_path,
        lambda: time.monotonic() > begun + 12,
    )
    assert seconds < SOON and ended.returncode == 130 and "Traceback" not in ended.stderr


@pytest.mark.slow
def test_ctrl_c_in_reproduce(tmp_path):
    """Workers and kernels are gone, too."""
    seconds, ended = stopped(
        ["reproduce", "--only", "02", "--jobs", "2", "--set", *LONG],
        tmp_path,
        lambda: any(tmp_path.rglob("epochs/0001.npz")),
    )
    assert (
        seconds < SOON
        and ended.returncode == 130
        and "the same command goes on there" in ended.stderr
    )
    deadline = time.monotonic() + 10
    while alive(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not alive(tmp_path) and "Traceback" not in ended.stderr


def test_every_write_may_fail(tmp_path, monkeypatch):
    """The disk is full at the first, the second, ... write of a run: a clear error each time, what
    was saved is whole, and asking again goes on from there to the undisturbed end.
    """
    overrides = {**TINY, "train_size": 200, "steps": 2}
    monkeypatch.setenv("KIT_HOME", str(tmp_path / "calm"))
    calm = contents(kit.run("mail-at", overrides=overrides, quiet=True).folder)
    monkeypatch.setenv("KIT_HOME", str(tmp_path / "full"))
    real, left, failures = os.fsync, 0, 0

    def full(descriptor):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    while True:
        left = failures // 4  # the space of none, none, none, none, one, one, ... further writes
        try:
            run = kit.run("mail-at", overrides=overrides, quiet=True)
            break
        except KitError as error:
            failures += 1
            assert "No space left on device" in str(
                error
            ) and "What was saved before is intact" in str(error)
            for path in tmp_path.glob("full/**/*.ckpt"):
                files.load_checkpoint(path)
            assert not list(tmp_path.glob("full/**/.*.tmp"))
    assert failures > 10 and contents(run.folder) == calm


def test_a_folder_that_vanishes(fresh_home, monkeypatch):
    """Deleted or made read-only while it is trained in:

    an error that says so, and asking again trains the run.
    """
    real = loop.train_epoch

    def vanish(states, split, epoch):
        if epoch == 2:
            shutil.rmtree(states[0].folder)
        return real(states, split, epoch)

    monkeypatch.setattr(loop, "train_epoch", vanish)
    with pytest.raises(
        KitError, match=r"was deleted or moved while it was trained in\. Ask for the run again"
    ):
        kit.run("at", overrides=TINY, quiet=True)
    monkeypatch.setattr(loop, "train_epoch", real)
    assert len(kit.run("at", overrides=TINY, quiet=True).history) == 3


@pytest.mark.slow
def test_many_small_runs_leave_nothing_behind(fresh_home, record_property):
    """Memory, threads and open files stay flat over a hundred runs in one process; KIT_SOAK=500 for
    more.
    """
    tiny = {**TINY, "epochs": 1, "milestones": [], "train_size": 60, "probe": 10, "steps": 1}

    def held() -> tuple[int, int, int]:
        pages = int(Path("/proc/self/statm").read_text().split()[1]) * 4 // 1024
        return pages, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    count, seen = int(os.environ.get("KIT_SOAK", "100")), []
    for seed in range(count):
        run = kit.run("mail-at", seed=seed, overrides=tiny, quiet=True)
        kit.evaluate(run, "natural", n=10, quiet=True)
        seen.append(held())
    before, after = seen[count // 4], seen[-1]
    assert after[0] - before[0] < 60 and after[1:] == before[1:], (before, after)
    memory, files, threads = ([each[i] for each in (seen[0], before, after)] for i in range(3))
    record_property(
        "faults",
        [
            [
                "runs trained and evaluated in one process",
                count,
                f"after the first, {count // 4 + 1} and all: {memory} MB, {files} open files, "
                f"{threads} "
                "threads",
            ]
        ],
    )
