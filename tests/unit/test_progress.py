"""The line of progress: in place where somebody watches, line by line elsewhere."""

from __future__ import annotations

import contextlib
import gc
import time
import weakref

import pytest
import torch
from torch import nn

from kit.attacks.table import ATTACKS
from kit.core import progress
from kit.core.progress import Progress, followed, silenced
from kit.core.random_streams import Streams
from kit.core.threat import Threat


@pytest.fixture(params=["0", "1"])
def live(request, monkeypatch) -> bool:
    """Lines come in hundredths of a second; in place, and one below the other."""
    monkeypatch.setenv("KIT_LIVE", request.param)
    monkeypatch.setattr(progress, "REDRAWN_AFTER", 0.01)
    monkeypatch.setattr(progress, "WRITTEN_AFTER", 0.01)
    return request.param == "1"


def wait_for(capsys, words: str) -> str:
    """What is written until the words are; work of its own never ends by itself."""
    seen, until = "", time.monotonic() + 30
    while words not in seen and time.monotonic() < until:
        time.sleep(0.01)
        seen += capsys.readouterr().out
    assert words in seen
    return seen


def test_lines_come_while_nothing_is_updated(live, capsys):
    with Progress("counting", 4) as line:
        line.update(1, "one sheep")
        seen = wait_for(capsys, "25%  one sheep, 0 s so far")
        assert seen.count("counting") >= 1 and ("\r" in seen) == live
        line.close("4 sheep")
    last = capsys.readouterr().out
    assert last.endswith("4 sheep\n") or last.rstrip(" \n").endswith("4 sheep")
    time.sleep(0.05)
    assert capsys.readouterr().out == ""


def test_a_part_shows_its_own_line(live, capsys):
    """While it is at work the whole says nothing; then it does again."""
    with Progress("the whole", 2) as whole:
        with Progress("a part", 2):
            wait_for(capsys, "a part")
            capsys.readouterr()
            assert "the whole" not in wait_for(capsys, "a part")
        whole.update(1)
        wait_for(capsys, "the whole")


def test_batches_are_named(live, capsys):
    with Progress("training", 3):
        for number in followed("abc", "batch"):
            if number == "b":
                wait_for(capsys, "training  ")
                wait_for(capsys, "batch 2 of 3")


def test_parts_of_parts_are_named_behind_one_another():
    """Only while they last, and where there is more than one."""
    with Progress("training", 3) as line:
        for part in followed("ab", "part"):
            for _ in followed("c", "restart"):
                for step in followed("def", "step"):
                    if step == "e":
                        break
                    seen = line.line()
            assert "restart" not in seen and "step 1 of 3" in seen
            assert f"part {'ab'.index(part) + 1} of 2, step" in seen
            assert "step" not in line.line() and "part" in line.line()
        assert "part" not in line.line()


@pytest.mark.parametrize(
    "attack", ["pgd20", "cw-l2", "apgd-t", "fab-t", "fmn100", "square", "spsa100", "md"]
)
def test_a_long_attack_says_how_far_a_batch_is(attack):
    """Its passes are counted in the line of the work that asked for it."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x, threat = torch.rand(4, 1, 8, 8), Threat("linf", 1e-6)
    row, seen = ATTACKS[attack], set()
    few = {"steps": 3, "samples": 4, "queries": 60, "search_steps": 2, "change_point": 1}
    row = row.but(**{name: value for name, value in few.items() if name in row.defaults})
    with Progress("an attack", 1, quiet=False) as line, torch.no_grad():
        net.register_forward_hook(lambda *_: seen.add(line.part()))
        row(net, x, net(x).argmax(1), threat, Streams(torch.arange(4)))
    assert {words for words in seen if " of " in words}, seen
    assert line.part() == ""


def test_nothing_is_said_of_what_is_quiet_or_brief(live, monkeypatch, capsys):
    with Progress("quiet", 1, quiet=True) as line:
        line.update(1)
        time.sleep(0.05)
        line.close("done")
    with silenced(), Progress("silenced", 1) as line:
        time.sleep(0.05)
        line.close("done")
    monkeypatch.setattr(progress, "REDRAWN_AFTER", 60)
    monkeypatch.setattr(progress, "WRITTEN_AFTER", 60)
    with Progress("brief", 1, brief=True) as line:
        line.update(1)
        line.close("done")
    assert capsys.readouterr().out == ""


def test_the_kernel_of_a_batch_run_keeps_the_last_line_alone(monkeypatch, capsys):
    monkeypatch.setenv("KIT_LIVE", "0")
    monkeypatch.setenv("KIT_STAMP", "abc")
    monkeypatch.setattr(progress, "WRITTEN_AFTER", 0.01)
    with Progress("in a notebook", 2) as line:
        line.update(1)
        time.sleep(0.05)
        line.close("two")
    assert capsys.readouterr().out == "in a notebook  two\n"


def test_what_is_left_follows_from_the_pace(monkeypatch):
    """Half of what was to be done took 10 s; what was done before does not count."""
    now = iter([100.0] * 3 + [110.0, 114.0, 114.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now, 114.0))
    monkeypatch.setenv("KIT_LIVE", "0")
    line = Progress("training", 10, done=2)
    line.started = 100.0
    line.done, line.updated = 6, 110.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: 114.0)
    assert line.line() == "training  60%  14 s so far, 6 s left"


@pytest.mark.parametrize("end", ["over", "stopped"])
def test_work_that_has_ended_leaves_no_thread_and_holds_nothing(end, monkeypatch, live):
    """A thread that lets go of tensors while Python ends would abort the process."""

    def slow(self: Progress) -> None:
        self.ended.wait()
        time.sleep(0.2)

    class Batch:
        pass

    monkeypatch.setattr(Progress, "_beat", slow)
    batches = [Batch()]
    kept = weakref.ref(batches[0])
    with contextlib.suppress(KeyboardInterrupt), Progress("training", 1) as line:
        for _ in followed(batches, "batch"):
            if end == "stopped":
                raise KeyboardInterrupt
    del batches, _
    assert not line.beat.is_alive()
    gc.collect()
    assert kept() is None
