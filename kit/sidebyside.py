"""Work on copies of one network in several threads: what two cores can do for a network too small for both."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from torch import nn


class _Stopped(Exception):
    """The thread that asked for the work has gone."""


def side_by_side(model: nn.Module, work: Callable[..., Any], jobs: Iterable[tuple], threads: int) -> Iterator[Any]:
    """`work(network, *job)` of each job, as they are done; with one thread in order and on `model` itself, when asked for.

    With several, each has a copy of the network. Whoever stops listening, by Ctrl-C say, stops them at their next pass.
    """
    if threads == 1:
        yield from (work(model, *job) for job in jobs)
        return
    gone, networks = threading.Event(), queue.SimpleQueue()

    def halt(*_: Any) -> None:
        if gone.is_set():
            raise _Stopped

    for _ in range(threads):
        twin = copy.deepcopy(model)
        twin.register_forward_pre_hook(halt)
        networks.put(twin)

    def attend(job: tuple) -> Any:
        network = networks.get()
        try:
            return work(network, *job)
        finally:
            networks.put(network)

    with ThreadPoolExecutor(threads) as pool:
        try:
            for done in as_completed([pool.submit(attend, job) for job in jobs]):
                yield done.result()
        finally:
            gone.set()
            pool.shutdown(cancel_futures=True)
