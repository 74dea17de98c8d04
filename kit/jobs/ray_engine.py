"""Tasks on a Ray cluster.

Nothing else of the kit knows Ray, and it is imported where it is wanted. A task is a process
somewhere in the cluster, with the checkout, the virtual environment and KIT_HOME at the same paths
as here. If its machine is lost, Ray starts it again on another one, where it goes on from its last
checkpoint.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, TextIO

import torch

from kit.core.environment import (
    changed_environment,
    ray_address,
    ray_task_variables,
    ray_variables,
)
from kit.core.errors import KitError
from kit.core.files import CHECKOUT, home
from kit.jobs.tasks import (
    Finished,
    Place,
    Task,
    Tick,
    check_tasks,
    startable_tasks,
)

#: How often a task is begun again whose machine or process was lost. What fails in words is not.
RETRIES = 3

#: Seconds in which a cluster must answer.
ANSWER_SECONDS = 5


def cluster_place(cpus: float, gpus: float, device: str = "auto") -> Place:
    """Return what a cluster of so many CPUs and GPUs offers.

    Every task takes one CPU and, where networks are trained on GPUs, its share of one. A deep
    network takes one CPU, too, where there are no GPUs: programs side by side use cores better than
    the threads of one program do, no machine is too small for a task, and the number of threads,
    which changes roundings, is always one.

    Raises:
        KitError: The cluster has no such device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise KitError(f"there is no device '{device}' in a cluster. Choices: auto, cpu, cuda")
    if device == "cuda" and gpus < 1:
        raise KitError("device=cuda: the cluster has no GPU; take auto or cpu")
    if cpus < 1:
        raise KitError(
            "the cluster has no CPU to work on; add a node to it, for instance with `ray start "
            "--address=...`"
        )
    if device == "cpu" or gpus < 1:
        return Place(torch.device("cpu"), int(cpus))
    # The smallest tasks take a quarter of a GPU each.
    return Place(torch.device("cuda"), int(min(cpus, 4 * gpus)), int(gpus))


@contextlib.contextmanager
def join_cluster(address: str, jobs: int, device: str = "auto") -> Iterator[Place]:
    """Connect this process to a Ray cluster within the block, which gets what the cluster offers.

    `address` is host:port of its head; local, a cluster of `jobs` CPUs on this machine alone, which
    ends with the block; or auto, that of RAY_ADDRESS if it is set, else local.

    Raises:
        KitError: Ray is not installed, or nothing answers there.
    """
    address = ray_address() or "local" if address == "auto" else address
    check_address(address)
    quiet = ray_variables(RETRIES, loopback=address == "local")
    with changed_environment(quiet), contextlib.redirect_stdout(_OneThread(sys.stdout)):
        ray = _import_ray()
        try:
            _connect(ray, address, jobs)
            there = ray.cluster_resources()
            place = cluster_place(there.get("CPU", 0), there.get("GPU", 0), device)
            nodes = sum(node["Alive"] for node in ray.nodes())
            print(
                f"Ray: {nodes} node{'s' * (nodes > 1)}, {there.get('CPU', 0):.0f} CPUs, "
                f"{there.get('GPU', 0):.0f} GPUs",
                flush=True,
            )
            yield place
        finally:
            ray.shutdown()


class _OneThread:
    """A stdout that only the thread that made it writes to.

    Ray's own threads would report every lost process there.
    """

    def __init__(self, stdout: TextIO):
        self.stdout, self.thread = stdout, threading.get_ident()

    def write(self, text: str) -> int:
        return self.stdout.write(text) if threading.get_ident() == self.thread else len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stdout, name)


def run_on_ray(tasks: Mapping[str, Task], place: Place, tick: Tick, finished: Finished) -> None:
    """Do `tasks` in the cluster that `join_cluster` has connected this process to.

    Ray queues those for which there is no room yet.

    Raises:
        KitError: A task waits for one that is not there, or for itself.
    """
    import ray

    check_tasks(tasks)
    begin = ray.remote(_run_task).options
    left = dict(tasks)
    busy: dict[Any, str] = {}
    try:
        while left:
            for name in startable_tasks(left, busy.values()):
                task = left[name]
                needs = begin(
                    name=name,
                    num_cpus=1,
                    num_gpus=task.share if place.gpus else 0,
                    max_retries=RETRIES,
                    retry_exceptions=False,
                )
                busy[needs.remote(task)] = name
            done, _ = ray.wait(list(busy), timeout=0.5)
            # Ray begins them in order, and does not say which have begun.
            tick(list(busy.values())[: place.slots])
            for reference in done:
                name = busy.pop(reference)
                del left[name]
                finished(name, *_outcome(ray, reference))
    except BaseException:
        for reference in busy:
            ray.cancel(reference, force=True)
        raise


def _run_task(task: Task) -> float:
    return task.work(*task.args)


def _outcome(ray: ModuleType, reference: object) -> tuple[Exception | None, float]:
    """(what is wrong, seconds) of a task that has ended."""
    try:
        return None, ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # The cause is what was raised there.
        return error.cause, 0.0
    except ray.exceptions.RayError:
        return KitError(
            f"its machine or process was lost {RETRIES + 1} times, perhaps because memory ran "
            "out; run the same command again to continue"
        ), 0.0


# --------------------------------------------------------------------------------------- connecting


def check_address(address: str) -> None:
    """Check the address of a cluster's head.

    Raises:
        KitError: It is none of auto, local and host:port.
    """
    if address not in ("auto", "local") and not re.fullmatch(r"[^\s:/]+:\d+", address):
        raise KitError(
            f"--address {address}: it must be the head node's host:port, say 10.0.0.5:6379. "
            "Choices: auto, local, HOST:PORT"
        )


def _import_ray() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise KitError("Ray is not installed; pip install -r requirements-cluster.txt") from error
    return ray


def _connect(ray: ModuleType, address: str, jobs: int) -> None:
    words = {
        "runtime_env": {"env_vars": ray_task_variables(CHECKOUT, home())},
        "log_to_driver": False,
        "logging_level": "ERROR",
    }
    if address == "local":
        words |= {"num_cpus": jobs, "include_dashboard": False}
    elif ":" in address:
        _check_answers(address)
    try:
        ray.init(address=address, **words)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        why = str(error).splitlines()[0]
        raise KitError(
            f"no Ray cluster at {address}: {why}. It must have the same versions of Ray and "
            "Python; if it was started with a token, set RAY_AUTH_MODE=token here. Choices: auto, "
            "local, HOST:PORT"
        ) from error


def _check_answers(address: str) -> None:
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise KitError(
            f"no Ray cluster at {address}: {error}. `ray start --head --port {port}` starts one "
            "there; --address local needs none"
        ) from error
