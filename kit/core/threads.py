"""Work in several threads: what two cores can do for networks too small for both."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

_current = threading.local()

_end_times = [float("inf")]  # the moments by which this process's work must end, the innermost last


class _Abandoned(Exception):
    """Nobody waits for this work any more."""


class OutOfTime(Exception):
    """The moment has come by which this work had to end; what is saved of it is kept."""


@contextlib.contextmanager
def end_by(moment: float) -> Iterator[None]:
    """Within, long work raises `OutOfTime` once `time.monotonic()` is past `moment`.

    That is where it calls `stop_if_abandoned`, in whichever thread of this process. An earlier
    moment around it stays.
    """
    _end_times.append(min(moment, _end_times[-1]))
    try:
        yield
    finally:
        _end_times.pop()


def stop_if_abandoned(*_: Any) -> None:
    """Stop this work where whoever asked for it has gone, or its time is over.

    Work that takes long calls it now and then. It serves as a forward hook, too.

    Raises:
        OutOfTime: It is later than `end_by` says.
    """
    if time.monotonic() > _end_times[-1]:
        raise OutOfTime
    if getattr(_current, "gone", None) is not None and _current.gone.is_set():
        raise _Abandoned


def run_in_threads(work: Callable[..., Any], jobs: Iterable[tuple], threads: int) -> Iterator[Any]:
    """Yield `work(*job)` of each job, as they are done.

    With one thread they come in order, each computed when its answer is asked for. Whoever stops
    listening, by Ctrl-C say, stops the threads where they next call `stop_if_abandoned`.
    """
    if threads <= 1:
        yield from (work(*job) for job in jobs)
        return
    gone = threading.Event()

    def attend(job: tuple) -> Any:
        _current.gone = gone
        return work(*job)

    with ThreadPoolExecutor(threads) as pool:
        try:
            for done in as_completed([pool.submit(attend, job) for job in jobs]):
                yield done.result()
        finally:
            gone.set()
            pool.shutdown(cancel_futures=True)
