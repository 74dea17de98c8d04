"""Work in several threads: what two cores can do for networks too small for both."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

_current = threading.local()


class _Abandoned(Exception):
    """Nobody waits for this work any more."""


def stop_if_abandoned(*_: Any) -> None:
    """Stop this work where whoever asked for it has gone.

    Work that takes long calls it now and then. It serves as a forward hook, too.
    """
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
