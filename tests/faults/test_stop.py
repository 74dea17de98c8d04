"""Ctrl-C, full disks and folders that vanish: in words, soon, and nothing finished is lost."""

from __future__ import annotations

import contextlib
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
from tests.helpers.processes import PATIENCE, alive, wait_until
from tests.helpers.run_files import contents, written_files
from tests.helpers.settings import ROOT, TINY

LONG = [
    f"{name}={value}".replace(" ", "")
    for name, value in {**TINY, "epochs": 400, "milestones": []}.items()
]
SOON = 5  # seconds; alone on a machine it takes less than 2


def press_ctrl_c(
    words: list[str], home: Path, ready: Callable[[set[Path]], bool]
) -> tuple[float, float, list[Path], str]:
    """Start a command in a process group, wait until it is `ready`, as the files in its home tell,
    and press Ctrl-C.

    -> seconds until its first file, seconds from Ctrl-C to its end, the arrays that it wrote in
    these, and its last words
    """
    environment = {**os.environ, "KIT_HOME": str(home), "PYTHONPATH": str(ROOT)}
    before, started = written(home), time.monotonic()
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
    try:
        wait_until(lambda: written(home) != before or process.poll() is not None)
        began = time.monotonic() - started
        wait_until(lambda: ready(written(home)) or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        assert ready(written(home)), "it stands still"
        os.killpg(process.pid, signal.SIGINT)
        before, started = written(home), time.monotonic()
        out, err = process.communicate(timeout=PATIENCE)
        ended = time.monotonic() - started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130 and "Traceback" not in err, out + err
    return began, ended, [path for path in written(home) - before if path.suffix == ".npz"], err


def stopped(
    words: list[str],
    tmp_path: Path,
    ready: Callable[[set[Path]], bool],
    before: Callable[[Path], object] = Path.mkdir,
    workers: int = 1,
) -> tuple[Path, str]:
    """At Ctrl-C a command leaves its work, but for what each of its `workers` was just writing, and
    is gone soon: in fewer seconds than it took to write its first file, or than SOON.

    Something else may need the machine just then, so it has three tries to be soon. `before` makes
    the home of each. -> the home, and the command's last words
    """
    for home in (tmp_path / name for name in ("first", "second", "third")):
        before(home)
        began, ended, more, said = press_ctrl_c(words, home, ready)
        assert len(more) <= workers, f"it went on: {more}"
        if ended < max(SOON, began):
            return home, said
    raise AssertionError(f"it took {began:.0f} s to begin, and {ended:.0f} s to end")


def written(home: Path) -> set[Path]:
    return set(map(Path, written_files(home)))


@pytest.mark.slow
def test_ctrl_c_in_training(tmp_path):
    home, words = stopped(
        ["train", "at", "--set", *LONG],
        tmp_path,
        lambda paths: any(path.match("epochs/0002.npz") for path in paths),
    )
    assert "the same command goes on there" in words
    kept = [
        files.load_checkpoint(path)["epoch"]
        for name in ("last.ckpt", "previous.ckpt")
        for path in home.rglob(name)
    ]
    assert max(kept) >= 1


@pytest.mark.slow
def test_ctrl_c_in_an_evaluation(tmp_path, tiny_run):
    """Images under no attack have their file, and AutoAttack has its first batch."""
    run = tiny_run("at")

    def in_the_attack(paths: set[Path]) -> bool:
        whole = {path for path in paths if path.parent.name == "evaluations"}
        batches = {path for path in paths if path.parent.suffix == ".partial"}
        return bool(whole) and any(path.parent.with_suffix(".npz") not in whole for path in batches)

    def copied(home: Path) -> None:
        folder = home / "data/runs" / run.folder.name
        shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("evaluations"))

    words = ["evaluate", run.key, "--attacks", "natural,aa,spsa100"]
    stopped(words, tmp_path, in_the_attack, before=copied)


@pytest.mark.slow
def test_ctrl_c_in_reproduce(tmp_path):
    """Workers and kernels are gone, too, and none has trained to its end before."""
    home, words = stopped(
        ["reproduce", "--only", "02", "--jobs", "2", "--set", *LONG],
        tmp_path,
        lambda paths: any(path.match("epochs/0001.npz") for path in paths),
        workers=2,
    )
    assert "the same command goes on there" in words
    assert wait_until(lambda: not alive(home)), "orphans"
    assert not any(home.rglob("done.json"))


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

    def vanish(state, split, epoch):
        if epoch == 2:
            shutil.rmtree(state.folder)
        return real(state, split, epoch)

    monkeypatch.setattr(loop, "train_epoch", vanish)
    with pytest.raises(
        KitError, match=r"was deleted or moved while its run was trained\. Ask for the run again"
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
