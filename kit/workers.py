"""Tasks, and the local processes that do them. Knows nothing of what they do.

`pooled` is the engine for this machine, `kit.cluster.scattered` the one for a cluster; `simulated` goes through the same
tasks in imagination. Each starts a task once those that it waits for have ended, well or badly, in the order of the tasks.
"""

from __future__ import annotations

import contextlib
import heapq
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import torch

from kit.types import KitError


@dataclass(frozen=True)
class Task:
    """`work(*args)`, which returns its seconds, once the tasks named in `after` have ended. `share`: of a GPU, where tasks
    are given GPUs."""

    work: Callable[..., float]
    args: tuple = ()
    after: frozenset[str] = frozenset()
    share: float = 1.0


@dataclass(frozen=True)
class Place:
    """Where tasks are done: what its networks are trained on, how many tasks at a time, and the GPUs that tasks get their
    share of; 0 on CPUs, and where all of them use the one GPU together."""

    device: torch.device
    slots: int
    gpus: int = 0

    @property
    def words(self) -> str:
        return f"{self.slots} at a time" + (f" on {self.gpus} GPUs" if self.gpus else "")


Tick = Callable[[Collection[str]], None]                            # hears now and then which tasks have been started
Finished = Callable[[str, Exception | None, float], None]           # hears of each end: name, error, seconds
Engine = Callable[[Mapping[str, Task], Place, Tick, Finished], None]


def check(tasks: Mapping[str, Task]) -> None:
    """`KitError` if a task waits for one that is not there, or for itself."""
    for name, task in tasks.items():
        if lost := task.after - tasks.keys():
            raise KitError(f"the task '{name}' waits for '{min(lost)}', which is none. Tasks: {', '.join(tasks)}")
    try:
        TopologicalSorter({name: task.after for name, task in tasks.items()}).prepare()
    except CycleError as error:
        raise KitError(f"these tasks wait for each other: {', '.join(error.args[1])}") from error


def startable(left: Mapping[str, Task], busy: Collection[str]) -> list[str]:
    """The tasks of `left`, those that have not ended, that may start now, in order: not busy, and waiting for none of it."""
    return [name for name, task in left.items() if name not in busy and not task.after & left.keys()]


def simulated(tasks: Mapping[str, Task], place: Place, seconds: Mapping[str, float]) -> float:
    """After how long has the last of `tasks` ended, if they take `seconds`, each in the first room that it finds?"""
    check(tasks)
    left, now, busy = dict(tasks), 0.0, []
    free = [1.0] * (place.gpus or place.slots)
    while left:
        for name in startable(left, [name for _, name, *_ in busy]):
            need = left[name].share if place.gpus else 1.0
            rooms = [i for i, room in enumerate(free) if room >= need]
            if rooms and len(busy) < place.slots:
                free[rooms[0]] -= need
                heapq.heappush(busy, (now + seconds[name], name, rooms[0], need))
        now, name, room, need = heapq.heappop(busy)
        free[room] += need
        del left[name]
    return now


# ---------------------------------------------------------------------------------------------- local processes

def pooled(tasks: Mapping[str, Task], place: Place, tick: Tick, finished: Finished) -> None:
    """Do `tasks` in processes of this machine, `place.slots` at a time.

    A worker's death takes the tasks with it that were running: they are tried again, one by one, up to twice.
    """
    check(tasks)
    left = dict(tasks)
    jobs = max(1, min(place.slots, len(tasks)))

    def end(name: str, future: Future) -> None:
        del left[name]
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            error = KitError("its process was killed twice, most likely because memory ran out; try --jobs 1")
        finished(name, error, 0.0 if error else future.result())

    with worker_environment(jobs):
        while left:
            for name in _until_one_dies(left, jobs, tick, end):
                end(name, _alone(tasks[name]))


def _until_one_dies(left: Mapping[str, Task], jobs: int, tick: Tick, end: Callable[[str, Future], None]) -> list[str]:
    """Do what is `left`, from which `end` takes what is done. -> the tasks that a worker's death has interrupted, if one
    dies; else all is done."""
    busy: dict[Future, str] = {}
    with _workers(jobs) as pool, contextlib.suppress(BrokenProcessPool):
        while left:
            for name in startable(left, busy.values())[:jobs - len(busy)]:
                busy[pool.submit(left[name].work, *left[name].args)] = name
            done, _ = wait(busy, timeout=0.5, return_when=FIRST_COMPLETED)
            tick(busy.values())
            for future in done:
                if isinstance(future.exception(), BrokenProcessPool):
                    raise future.exception()
                end(busy.pop(future), future)
    died = [name for future, name in busy.items() if isinstance(future.exception(), BrokenProcessPool)]
    for future, name in busy.items():
        if name not in died:
            end(name, future)
    return died


def _alone(task: Task, tries: int = 2) -> Future:
    with _workers(1) as pool:
        future = pool.submit(task.work, *task.args)
        wait([future])
    again = isinstance(future.exception(), BrokenProcessPool) and tries > 1
    return _alone(task, tries - 1) if again else future


@contextlib.contextmanager
def _workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one. Ctrl-C ends them at once: all that they do can be gone on with."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_die_with, initargs=(os.getpid(),)) as pool:
        try:
            yield pool
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _die_with(parent: int) -> None:
    """A worker ends when the process that started it does, however that ends. Its notebooks' kernels watch it in turn."""
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


def threads_each(jobs: int) -> int:
    """Threads of each of `jobs` processes on this machine."""
    return max(1, (os.cpu_count() or 1) // jobs)


def environment(threads: int) -> dict[str, str]:
    """What a worker process finds: its share of the cores, for two OpenMP pools on the same cores would spin each other to a
    standstill; and that nobody watches."""
    return {"OMP_NUM_THREADS": f"{threads}", "MKL_NUM_THREADS": f"{threads}", "KIT_LIVE": "0", "KIT_WIDGETS": "0"}


@contextlib.contextmanager
def worker_environment(jobs: int) -> Iterator[None]:
    """Within, processes that are started inherit their `environment`."""
    with changed_environment(environment(threads_each(jobs))):
        yield


@contextlib.contextmanager
def changed_environment(wanted: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
