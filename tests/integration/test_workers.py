"""The local engine:

tasks in order, each once those it waits for have ended; deaths of workers; the imagined schedule.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from kit.core.errors import KitError
from kit.jobs.local_engine import run_locally
from kit.jobs.tasks import Place, Task, simulate_tasks, startable_tasks
from tests.helpers.processes import PATIENCE, wait_until

CPU = torch.device("cpu")


def place(slots: int) -> Place:
    return Place(CPU, slots)


def done(tasks: dict[str, Task], slots: int) -> dict[str, tuple[Exception | None, float]]:
    """{task: (error, seconds)} in the order of their ends."""
    ended = {}
    run_locally(
        tasks, place(slots), lambda running: None, lambda name, *end: ended.__setitem__(name, end)
    )
    assert ended.keys() == tasks.keys()
    return ended


def span(folder: str, name: str, until: str = "") -> float:
    """Write down when it began and ended, which is when another one has written, if it waits for
    one.
    """
    began = time.monotonic()
    wait_until(lambda: not until or (Path(folder) / until).exists())
    (Path(folder) / name).write_text(f"{began} {time.monotonic()}")
    return 1.0


def refuse(folder: str, name: str) -> float:
    span(folder, name)
    raise KitError("no such thing")


def fine(value: float) -> float:
    return value


def killed(mark: str, times: int) -> float:
    with open(mark, "a") as file:
        file.write("x")
    if os.path.getsize(mark) <= times:
        os.kill(os.getpid(), 9)
    return 3.0


def kill_always() -> float:
    os.kill(os.getpid(), 9)
    return 0.0


def test_a_task_begins_when_those_it_waits_for_have_ended_well_or_badly(tmp_path):
    """And not when all others have: `slow` ends only after `behind`."""
    here = str(tmp_path)
    tasks = {
        "slow": Task(span, (here, "slow", "behind")),
        "bad": Task(refuse, (here, "bad")),
        "behind": Task(span, (here, "behind"), after=frozenset({"bad"})),
        "last": Task(span, (here, "last"), after=frozenset({"slow", "behind"})),
    }
    ended = done(tasks, 2)
    assert str(ended["bad"][0]) == "no such thing" and [
        name for name, (error, _) in ended.items() if error
    ] == ["bad"]
    began, over = zip(
        *(map(float, (tmp_path / name).read_text().split()) for name in tasks), strict=True
    )
    began, over = dict(zip(tasks, began, strict=True)), dict(zip(tasks, over, strict=True))
    assert (
        over["bad"] <= began["behind"] <= over["slow"] <= began["last"]
        and over["slow"] - began["slow"] < PATIENCE
    )


def test_tasks_begin_in_order_as_many_as_there_is_room_for():
    left = {
        name: Task(fine, after=frozenset(after))
        for name, after in {"a": "", "b": "a", "c": "", "d": "bc"}.items()
    }
    assert startable_tasks(left, []) == ["a", "c"] and startable_tasks(left, ["a"]) == ["c"]
    del left["a"]
    assert startable_tasks(left, ["c"]) == ["b"]
    order = list(done({name: Task(fine, (1.0,)) for name in "abcdef"}, 1))
    assert order == list("abcdef")


@pytest.mark.parametrize(
    "engine",
    [lambda tasks: done(tasks, 1), lambda tasks: simulate_tasks(tasks, place(1), {})],
    ids=["pooled", "simulated"],
)
def test_tasks_that_could_never_begin_are_refused(engine):
    with pytest.raises(KitError, match=r"'a' waits for 'x', but there is no such task\. Tasks: a"):
        engine({"a": Task(fine, (1.0,), after=frozenset("x"))})
    with pytest.raises(KitError, match=r"wait for each other: .*a"):
        engine(
            {
                "a": Task(fine, (1.0,), after=frozenset("b")),
                "b": Task(fine, (1.0,), after=frozenset("a")),
            }
        )


@pytest.mark.slow
def test_a_worker_that_is_killed_is_tried_again(tmp_path):
    """The operating system kills a worker: its task is tried up to twice more alone, the others are
    not lost, and what waits for it goes on.
    """
    tasks = {
        "fine": Task(fine, (1.0,)),
        "killed": Task(killed, (str(tmp_path / "once"), 1)),
        "killed always": Task(kill_always),
        "fine too": Task(fine, (2.0,)),
        "behind": Task(fine, (4.0,), after=frozenset({"killed always"})),
    }
    ended = done(tasks, 2)
    assert (
        ended["fine"] == (None, 1.0)
        and ended["fine too"] == (None, 2.0)
        and ended["killed"] == (None, 3.0)
    )
    assert isinstance(ended["killed always"][0], KitError) and "killed twice" in str(
        ended["killed always"][0]
    )
    assert ended["behind"] == (None, 4.0)
    # among others it may lose its first try to another one's death; by itself it has all three
    assert done({"killed": Task(killed, (str(tmp_path / "twice"), 2))}, 1) == {
        "killed": (None, 3.0)
    }


def test_workers_share_the_cores_and_the_environment_comes_back(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    before = dict(os.environ)
    ended = done({str(i): Task(threads) for i in range(4)}, 4)
    assert {seconds for _, seconds in ended.values()} == {2.0} and dict(os.environ) == before


def threads() -> float:
    assert os.environ["KIT_LIVE"] == os.environ["KIT_WIDGETS"] == "0"
    return float(os.environ["OMP_NUM_THREADS"])


# ----------------------------------------------------------------------------------------- imagined


def test_the_imagined_schedule():
    """Three tasks in two rooms, and one that waits; on GPUs by their shares."""
    tasks = {
        "a": Task(fine),
        "b": Task(fine),
        "c": Task(fine),
        "d": Task(fine, after=frozenset("a")),
    }
    seconds = {"a": 5.0, "b": 2.0, "c": 2.0, "d": 1.0}
    assert simulate_tasks(tasks, place(1), seconds) == 10
    assert simulate_tasks(tasks, place(2), seconds) == 6  # a, then d, beside b and c
    assert simulate_tasks(tasks, place(9), seconds) == 6
    quarters = {str(i): Task(fine, share=0.25) for i in range(4)} | {"whole": Task(fine)}
    each = dict.fromkeys(quarters, 3.0)
    assert simulate_tasks(quarters, Place(torch.device("cuda"), 4, gpus=1), each) == 6
    assert simulate_tasks(quarters, Place(torch.device("cuda"), 8, gpus=2), each) == 3
    assert simulate_tasks(quarters, Place(torch.device("cuda"), 2, gpus=2), each) == 9, (
        "no more tasks than CPUs"
    )
    assert simulate_tasks({}, place(2), {}) == 0
