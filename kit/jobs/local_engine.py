"""The engine for this machine: tasks in processes, some of which may die on the way."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from kit.core.environment import end_with_parent
from kit.core.errors import KitError
from kit.jobs.tasks import (
    Finished,
    Place,
    Task,
    Tick,
    check_tasks,
    startable_tasks,
    worker_environment,
)


def run_locally(tasks: Mapping[str, Task], place: Place, tick: Tick, finished: Finished) -> None:
    """Do `tasks` in processes of this machine, `place.slots` at a time.

    A worker's death takes the tasks with it that were running: they are tried again, one by one, up
    to twice.

    Raises:
        KitError: A task waits for one that is not there, or for itself.
    """
    check_tasks(tasks)
    left = dict(tasks)
    jobs = max(1, min(place.slots, len(tasks)))

    def end(name: str, future: Future) -> None:
        del left[name]
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            error = KitError(
                "its process was killed twice, most likely because memory ran out; try --jobs 1"
            )
        finished(name, error, 0.0 if error else future.result())

    with worker_environment(jobs):
        while left:
            for name in _until_one_dies(left, jobs, tick, end):
                end(name, _retry_alone(tasks[name]))


def _until_one_dies(
    left: Mapping[str, Task], jobs: int, tick: Tick, end: Callable[[str, Future], None]
) -> list[str]:
    """Do what is `left`, from which `end` takes what is done.

    Returns:
        The tasks that a worker's death has interrupted; if no worker dies all is done, and there
        are none.
    """
    busy: dict[Future, str] = {}
    with _workers(jobs) as pool, contextlib.suppress(BrokenProcessPool):
        while left:
            for name in startable_tasks(left, busy.values())[: jobs - len(busy)]:
                busy[pool.submit(left[name].work, *left[name].args)] = name
            done, _ = wait(busy, timeout=0.5, return_when=FIRST_COMPLETED)
            tick(busy.values())
            for future in done:
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise error
                end(busy.pop(future), future)
    died = [
        name for future, name in busy.items() if isinstance(future.exception(), BrokenProcessPool)
    ]
    for future, name in busy.items():
        if name not in died:
            end(name, future)
    return died


def _retry_alone(task: Task, tries: int = 2) -> Future:
    with _workers(1) as pool:
        future = pool.submit(task.work, *task.args)
        wait([future])
    again = isinstance(future.exception(), BrokenProcessPool) and tries > 1
    return _retry_alone(task, tries - 1) if again else future


@contextlib.contextmanager
def _workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one, however it ends; kernels that they ask for end with them.

    Ctrl-C ends them at once: all that they do can be gone on with.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=end_with_parent) as pool:
        try:
            yield pool
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
