"""The environment variables that the kit reads and hands on: this module alone knows them.

Read, each by one function:

    KIT_HOME          home_choice          folder of data, runs and figures
    KIT_OUT           output_choice        folder of pictures and notebooks' records
    KIT_STAMP         notebook_stamp       what a batch run knows a finished notebook by
    KIT_LIVE          live_choice          0 or 1: is progress rewritten in place?
    KIT_WIDGETS       widgets_choice       0 or 1: is somebody there to move a slider?
    KIT_COMPILE       is_compile_wanted    1: the passes of networks are compiled
    JPY_SESSION_NAME  is_kernel_attended   set by JupyterLab and Notebook
    VOILA_KERNEL_ID   is_kernel_attended   set by Voila
    WORLD_SIZE        launched_process     set by torchrun, as is LOCAL_RANK
    RAY_ADDRESS       ray_address          where the Ray cluster is
    PYTHONPATH        path_for_child       where Python looks for modules

Handed to processes that the kit starts: what the functions `..._variables` return. Within one
process settings travel as arguments.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

# --------------------------------------------------------------------------------------------- read


def home_choice() -> Path | None:
    """KIT_HOME: the folder of data, runs and figures; None where it is not set."""
    return _folder("KIT_HOME")


def output_choice() -> Path | None:
    """KIT_OUT: the folder of pictures and of notebooks' records; None where it is not set."""
    return _folder("KIT_OUT")


def _folder(name: str) -> Path | None:
    text = os.environ.get(name)
    return Path(text) if text else None


def notebook_stamp() -> str:
    """KIT_STAMP: the hash that a notebook's record repeats; "" outside a batch run."""
    return os.environ.get("KIT_STAMP", "")


def live_choice() -> bool | None:
    """KIT_LIVE: is progress rewritten in place? None unless it is 0 or 1."""
    return _switch("KIT_LIVE")


def widgets_choice() -> bool | None:
    """KIT_WIDGETS: is somebody there to move a slider? None unless it is 0 or 1."""
    return _switch("KIT_WIDGETS")


def _switch(name: str) -> bool | None:
    return {"0": False, "1": True}.get(os.environ.get(name, ""))


def is_compile_wanted(asked: bool | None = None) -> bool:
    """KIT_COMPILE=1: the passes of networks are compiled, where nobody `asked` for either."""
    return os.environ.get("KIT_COMPILE") == "1" if asked is None else asked


def is_kernel_attended() -> bool:
    """Is this the kernel of a JupyterLab, Notebook or Voila session?"""
    return bool(os.environ.get("JPY_SESSION_NAME") or os.environ.get("VOILA_KERNEL_ID"))


class LaunchedProcess(NamedTuple):
    """This process among the ones that torchrun started.

    `world_size`: how many there are in all. `local_rank`: the place of this one on its host.
    """

    world_size: int
    local_rank: int


def launched_process() -> LaunchedProcess:
    """WORLD_SIZE and LOCAL_RANK of torchrun; one process at place 0 where it started none."""
    return LaunchedProcess(
        int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    )


def ray_address() -> str | None:
    """RAY_ADDRESS: host:port of a Ray cluster's head; None where it is not set."""
    return os.environ.get("RAY_ADDRESS")


# ---------------------------------------------------------------------------- for child processes


def path_for_child(checkout: Path) -> str:
    """PYTHONPATH by which another process imports the kit of `checkout`."""
    return os.pathsep.join([str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])])


def environment_for_child(checkout: Path) -> dict[str, str]:
    """The whole environment of a quiet process that imports the kit of `checkout`."""
    return {**os.environ, "PYTHONPATH": path_for_child(checkout), "KIT_LIVE": "0"}


def kernel_environment(given: Mapping[str, str] | None) -> dict[str, str]:
    """The whole environment that a kernel is given: this process's own if nobody chose another."""
    return dict(os.environ if given is None else given)


def end_with_parent() -> None:
    """End this process of `multiprocessing` as soon as the one that asked for it has ended.

    It waits for a pipe to close, so that a parent that is gone already is noticed too; a number of
    a process read too late would be that of another one.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("this process was not started by multiprocessing: it has no parent")

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def become_kernel(environment: Mapping[str, str]) -> None:
    """Give this process, a fork, the environment of a kernel.

    JPY_PARENT_PID=1 tells ipykernel not to watch any process: `end_with_parent` does that.
    """
    os.environ.clear()
    os.environ.update(environment, JPY_PARENT_PID="1")


def worker_variables(threads: int) -> dict[str, str]:
    """What a worker process finds: its share of the cores, and that nobody watches.

    Two OpenMP pools on the same cores would spin each other to a standstill.
    """
    return {
        "OMP_NUM_THREADS": f"{threads}",
        "MKL_NUM_THREADS": f"{threads}",
        "KIT_LIVE": "0",
        "KIT_WIDGETS": "0",
    }


def notebook_variables(folder: Path | str, stamp: str, compiled: bool) -> dict[str, str]:
    """What the kernel of a notebook in a batch run finds: no person, and where its results go."""
    return {
        "KIT_OUT": str(folder),
        "KIT_STAMP": stamp,
        "JPY_SESSION_NAME": "",
        **({"KIT_COMPILE": "1"} if compiled else {}),
    }


def ray_variables(retries: int, loopback: bool) -> dict[str, str]:
    """The variables that Ray finds when it starts.

    It sends no reports to its makers, and begins a failed task again `retries` times. `loopback`:
    Ray listens to this machine alone.
    """
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_task_oom_retries": f"{retries}",
        **({"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} if loopback else {}),
    }


def ray_task_variables(checkout: Path, home: Path) -> dict[str, str]:
    """What a task finds on its machine of a cluster: the kit, the place of the runs, one thread."""
    return {
        "KIT_HOME": str(home.resolve()),
        "PYTHONPATH": path_for_child(checkout),
        **worker_variables(1),
        **({"KIT_COMPILE": "1"} if is_compile_wanted() else {}),
    }


@contextlib.contextmanager
def changed_environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Within, the variables are as `wanted`, for this process and for the ones that it starts."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
