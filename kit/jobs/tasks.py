"""Tasks and the places where they are done; nothing here knows what they do.

`kit.jobs.local_engine.run_locally` is the engine for this machine, `kit.jobs.ray_engine.run_on_ray`
the one for a cluster; `simulate_tasks` goes through the same tasks without doing them. Each starts
a task once those that it waits for have ended, well or badly, in the order of the tasks.
"""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import torch

from kit.core.environment import changed_environment, worker_variables
from kit.core.errors import KitError


@dataclass(frozen=True)
class Task:
    """The call `work(*args)`, which returns its seconds, made once the tasks in `after` have ended.

    `share` is how much of a GPU it gets, where tasks are given GPUs.
    """

    work: Callable[..., float]
    args: tuple = ()
    after: frozenset[str] = frozenset()
    share: float = 1.0


@dataclass(frozen=True)
class Place:
    """Where tasks are done.

    `device` is what networks are trained on there, and `slots` is how many tasks are done at a
    time. `gpus` are the GPUs that tasks get their share of: 0 on CPUs, and where all of them use
    the one GPU together.
    """

    device: torch.device
    slots: int
    gpus: int = 0

    @property
    def words(self) -> str:
        """How many tasks at a time, as progress lines say it."""
        return f"{self.slots} at a time" + (f" on {self.gpus} GPUs" if self.gpus else "")


#: It is told now and then which tasks have been started.
Tick = Callable[[Collection[str]], None]

#: It is told of each task's end: name, error, seconds.
Finished = Callable[[str, BaseException | None, float], None]

#: It does tasks at a place, and tells the other two.
Engine = Callable[[Mapping[str, Task], Place, Tick, Finished], None]


def check_tasks(tasks: Mapping[str, Task]) -> None:
    """Check that every task can start.

    Raises:
        KitError: A task waits for one that is not there, or for itself.
    """
    for name, task in tasks.items():
        if lost := task.after - tasks.keys():
            raise KitError(
                f"the task '{name}' waits for '{min(lost)}', but there is no such task. Tasks: "
                f"{', '.join(tasks)}"
            )
    try:
        TopologicalSorter({name: task.after for name, task in tasks.items()}).prepare()
    except CycleError as error:
        raise KitError(f"these tasks wait for each other: {', '.join(error.args[1])}") from error


def startable_tasks(left: Mapping[str, Task], busy: Collection[str]) -> list[str]:
    """List the tasks that may start now, in order.

    `left` are those that have not ended. One may start that is not busy and waits for none of them.
    """
    return [
        name for name, task in left.items() if name not in busy and not task.after & left.keys()
    ]


def simulate_tasks(tasks: Mapping[str, Task], place: Place, seconds: Mapping[str, float]) -> float:
    """Say after how many seconds the last of `tasks` has ended, if they take `seconds`.

    Each is done in the first room that it finds.
    """
    check_tasks(tasks)
    left, now = dict(tasks), 0.0
    busy: list[tuple[float, str, int, float]] = []
    free = [1.0] * (place.gpus or place.slots)
    while left:
        for name in startable_tasks(left, [name for _, name, *_ in busy]):
            need = left[name].share if place.gpus else 1.0
            rooms = [i for i, room in enumerate(free) if room >= need]
            if rooms and len(busy) < place.slots:
                free[rooms[0]] -= need
                heapq.heappush(busy, (now + seconds[name], name, rooms[0], need))
        now, name, room, need = heapq.heappop(busy)
        free[room] += need
        del left[name]
    return now


def threads_per_worker(jobs: int) -> int:
    """Count the threads of each of `jobs` processes on this machine."""
    return max(1, (os.cpu_count() or 1) // jobs)


@contextlib.contextmanager
def worker_environment(jobs: int) -> Iterator[None]:
    """Within, processes that are started share this machine's cores, and nobody watches them."""
    with changed_environment(worker_variables(threads_per_worker(jobs))):
        yield
