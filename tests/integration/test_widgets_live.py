"""Training beside the notebook: the child process, and the widget that shows it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from kit.core import files
from kit.core.errors import KitError
from kit.experiments.specification import RunSpec
from kit.widgets.child_process import Training, while_busy
from kit.widgets.controls import Action
from kit.widgets.live_training_panel import train_live
from tests.helpers.settings import ROOT, TINY

LONG = {**TINY, "epochs": 200, "milestones": [150]}


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def training(fresh_home):
    """`training(method, **overrides)`; what is still at work at the end of the test is stopped."""
    made = []

    def make(method="mail-at", **overrides):
        made.append(Training(RunSpec(method, "digits", 0, {**LONG, **overrides})))
        return made[-1]

    yield make
    for one in made:
        one.stop()


# -------------------------------------------------------------------------------- the child process


@pytest.mark.slow
def test_it_trains_to_the_end_what_a_plain_run_trains(training, tiny_run, fresh_home, monkeypatch):
    mine = training(**TINY)
    assert (mine.state, mine.epochs, mine.total) == ("not started", 0, 3)
    mine.start()
    assert mine.state == "training"
    until(lambda: not mine.busy)
    assert mine.state == "done" and mine.epochs == 3
    before = (mine.folder / "done.json").stat().st_mtime_ns
    mine.start()
    assert mine.state == "done" and (mine.folder / "done.json").stat().st_mtime_ns == before
    monkeypatch.setenv("KIT_HOME", str(fresh_home / "other"))
    plain = tiny_run("mail-at")
    assert plain.folder != mine.folder
    assert plain.history.drop(columns="seconds").equals(mine.history.drop(columns="seconds"))


@pytest.mark.slow
def test_pause_stop_and_resume(training):
    mine, again = training(), training()
    mine.start()
    until(lambda: mine.epochs >= 2)
    mine.pause()
    assert mine.state == again.state == "paused", "two of the same spec are one training"
    time.sleep(0.5)  # the step that was under way
    rested = mine.epochs
    time.sleep(1.5)
    assert mine.epochs == rested and mine.busy
    again.start()
    assert mine.state == "training"
    until(lambda: mine.epochs > rested)
    mine.pause()
    mine.stop()
    assert mine.state == "stopped" and not mine.busy
    kept, history = mine.epochs, mine.history
    there = [
        path for name in ("last.ckpt", "previous.ckpt") if (path := mine.folder / name).exists()
    ]  # as `_resume` looks
    assert files.load_checkpoint(there[0])["epoch"] in (kept, kept - 1)
    mine.start()
    until(lambda: mine.epochs > kept + 1)
    mine.stop()
    assert mine.history.iloc[:kept].drop(columns="seconds").equals(history.drop(columns="seconds"))
    assert mine.history.epoch.tolist() == list(range(1, mine.epochs + 1))


@pytest.mark.slow
@pytest.mark.parametrize("paused", [False, True])
def test_the_child_dies_with_its_kernel(fresh_home, paused):
    """A killed kernel leaves no training behind, at work or paused, and its lock is free."""
    code = f"""
import time
from kit.experiments.specification import RunSpec
from kit.widgets.child_process import Training
t = Training(RunSpec("at", "digits", 0, {LONG!r}))
t.start()
while not t.epochs: time.sleep(0.05)
if {paused}: t.pause()
print(t.child.process.pid, t.folder, flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as kernel:
        pid, folder = kernel.stdout.readline().split()
        os.kill(int(pid), 0)
        kernel.send_signal(signal.SIGKILL)

    def gone() -> bool:
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().rsplit(")", 1)[1].split()[0] == "Z"  # nobody collects it here
        except OSError:
            return True

    until(gone, 10)
    with files.lock_folder(files.Path(folder), lambda: pytest.fail("the lock is still held")):
        pass


@pytest.mark.slow
def test_what_fails_says_why(training):
    mine = training(batch_size=100_000)
    mine.start()
    until(lambda: not mine.busy)
    assert mine.state.startswith("failed: batch_size=100000 is larger than the 600 training images")


@pytest.mark.slow
def test_a_killed_child_is_a_failure_and_can_be_started_again(training):
    mine = training()
    mine.start()
    until(lambda: mine.epochs)
    mine.child.process.kill()
    until(lambda: not mine.busy)
    assert mine.state == (
        "failed: its process was ended by signal 9 and left no message; start it again"
    )
    mine.start()
    assert mine.state == "training"


def test_nothing_happens_to_what_is_not_there(training):
    mine = training()
    mine.pause()
    mine.stop()
    assert mine.state == "not started" and not mine.folder.exists() and mine.history.empty
    with pytest.raises(KitError, match="no method 'nosuch'"):
        training("nosuch")


def test_while_busy_looks_until_it_is_over():
    left, looks = [3], []

    def look():
        left[0] -= 1
        looks.append(left[0])

    async def kernel():
        await while_busy(lambda: left[0] > 0, look, every=0.01)

    asyncio.run(kernel())
    assert looks == [2, 1, 0, -1], "every time while busy, and once more"
    assert while_busy(lambda: True, look) is None, "no loop runs here"


# --------------------------------------------------------------------------------------- the widget


def buttons(panel) -> list[str]:
    return [control.name for control in panel.shown_controls if isinstance(control, Action)]


def test_a_finished_run_is_shown_with_its_numbers(tiny_run):
    run = tiny_run("mail-at")
    panel = train_live(run.spec)
    last = run.history.iloc[-1]
    weights = np.sort(run.epoch(3)["train_weight"].astype(float))
    for words in (
        f"epoch 3 of 3, loss {last.loss:.2f}",
        f"{last.clean:.0%} are right clean and {last.robust:.0%} under PGD",
        f"tenth of the training images carries {weights[-60:].sum() / weights.sum():.0%}",
    ):
        assert words in panel.sentence
    for line, name in ((panel.loss, "loss"), (panel.clean, "clean"), (panel.robust, "robust")):
        assert np.allclose(line.get_ydata(), run.history[name])
    heights = np.array([bar.get_height() for bar in panel.bars])
    inside = ((weights >= 0.1) & (weights < 1)).sum() / ((weights >= 1e-4) & (weights < 1e2)).sum()
    assert heights.max() == 1 and heights[12:16].sum() / heights.sum() == pytest.approx(
        inside, abs=0.02
    )
    assert buttons(panel) == [] and panel.runs, "nothing is left to start"


def test_what_is_not_trained_says_how_to_start_and_trains_nothing(fresh_home):
    panel = train_live("clirat", overrides={"epochs": 5, "milestones": [2]})
    assert "0 of 5 epochs" in panel.sentence and not list(fresh_home.rglob("*.npz"))
    assert (
        "python -m kit train clirat --recipe digits --seed 0 --set epochs=5 milestones=[2]"
        in panel.sentence
    )
    assert buttons(panel) == ["start"]
    panel.set(method="at", epochs=7)
    assert (
        panel.training.spec.method == "at"
        and panel.training.total == 7
        and "--set epochs=7" in panel.sentence
    )
    with pytest.raises(KitError, match=r"Did you mean 'weight\.slope'"):
        train_live("clirat", overrides={"weight.slpe": 5})
    own = train_live("mail-at", overrides={"weight.slope": 5.0})
    with pytest.raises(KitError, match="at"):
        own.set(method="at")
    assert own.values["method"] == own.training.spec.method == "mail-at"


@pytest.mark.slow
def test_buttons_as_a_kernel_serves_them(fresh_home, monkeypatch):
    """start, pause, go on, stop, resume on an event loop: the picture follows by itself."""
    monkeypatch.setenv("KIT_WIDGETS", "1")
    panel = train_live("mail-at", overrides={**LONG, "epochs": 150})
    panel._repr_mimebundle_()

    async def shown(epoch: int) -> None:
        deadline = time.monotonic() + 60
        while (
            not (found := re.search(r"is training: epoch (\d+) of 150", panel.sentence))
            or int(found[1]) < epoch
        ):
            assert time.monotonic() < deadline, panel.sentence
            await asyncio.sleep(0.1)

    async def hand() -> None:
        panel.press("start")
        assert buttons(panel) == ["pause", "stop"] and not panel.values
        await shown(2)
        panel.press("pause")
        assert "is paused" in panel.sentence and buttons(panel) == ["go on", "stop"]
        panel.press("go on")
        await shown(panel.training.epochs + 2)
        panel.press("stop")
        assert (
            "was stopped" in panel.sentence
            and buttons(panel) == ["resume"]
            and panel.values["method"] == "mail-at"
        )
        await asyncio.wait_for(panel.watch, 5)

    try:
        asyncio.run(hand())
        assert panel.sentence.split(".")[0] in panel.view.words.value, "the page shows it, too"
        with pytest.raises(KitError, match="nothing is training"):
            panel.stop()
    finally:
        panel.training.stop()


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [{}, {"seed": 5}, {"method": "at", "epochs": 190}])
def test_a_cell_that_is_run_again_finds_its_training(fresh_home, chosen):
    """Its new panel shows the same process, also after another choice, and stop there ends it."""

    def panel():
        return train_live("mail-at", overrides=LONG)

    first = panel()
    if chosen:
        first.set(**chosen)
    first.press("start")
    process = first.training.child.process
    try:
        until(lambda: first.training.epochs >= 2)
        second = panel()
        assert second.training.child.process is process, "a second process"
        assert buttons(second) == ["pause", "stop"]
        epoch = int(re.search(r"is training: epoch (\d+) of", second.sentence)[1])
        assert 2 <= epoch == len(second.loss.get_xdata())
        with pytest.raises(KitError, match="training already"):
            second.start()
        second.press("pause")
        assert buttons(panel()) == ["go on", "stop"]
        second.press("stop")
        first.catch_up()
        for one in (first, second):
            assert "was stopped" in one.sentence and buttons(one) == ["resume"]
            assert chosen.items() <= one.values.items()
        assert not first.training.busy and panel().training.spec.overrides == LONG
    finally:
        first.training.stop()


@pytest.mark.slow
def test_a_training_that_fails_says_so_in_the_panel(fresh_home):
    panel = train_live("at", overrides={**LONG, "batch_size": 100_000})

    async def hand() -> None:
        panel.press("start")
        await asyncio.wait_for(panel.watch, 60)

    asyncio.run(hand())
    assert "failed: batch_size=100000 is larger" in panel.sentence and buttons(panel) == ["start"]


def test_a_finished_run_is_replayed_and_another_seed_can_start(home, tiny_run):
    panel = train_live(tiny_run("mail-at").spec)
    assert buttons(panel) == [] and panel.values["epoch"] == 3
    panel.set(epoch=1)
    assert "epoch 1 of 3" in panel.sentence and list(panel.loss.get_xdata()) == [1]
    panel.set(seed=5)
    assert buttons(panel) == ["start"] and "seed 5" in panel.sentence
    panel.set(seed=0)
    assert buttons(panel) == [] and panel.training.state == "done"
