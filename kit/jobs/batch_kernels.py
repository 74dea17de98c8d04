"""How papermill runs a notebook in a batch: cells are counted, and kernels start quickly.

A kernel that starts by itself imports PyTorch and the kit anew, which takes longer than most cells.
A worker that runs notebooks one after the other imports them once, in a server that does nothing
else, and each kernel is a fork of it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner
from papermill.engines import NBClientEngine, papermill_engines

from kit.core.environment import become_kernel, end_with_parent, kernel_environment

#: What the server of kernels has imported: what nearly every notebook imports.
PRELOADED = [
    "ipykernel.kernelapp",
    "matplotlib.backends.backend_agg",
    "matplotlib_inline.backend_inline",
    "sklearn.datasets",
    "kit.notebook.study",
]


class CountingEngine(NBClientEngine):
    """papermill's own engine, which tells before each code cell how many there are."""

    #: It is called with the number of a cell and how many there are.
    tell: Callable[[int, int], None] = staticmethod(lambda number, total: None)

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> Any:
        """Run the cells of a notebook."""
        cells = [i for i, cell in enumerate(nb_man.nb.cells) if cell.cell_type == "code"]
        start = nb_man.cell_start

        def start_and_tell(cell: Any, cell_index: int | None = None, **rest: Any) -> Any:
            if cell_index in cells:
                cls.tell(cells.index(cell_index) + 1, len(cells))
            return start(cell, cell_index, **rest)

        nb_man.cell_start = start_and_tell
        return super().execute_managed_notebook(nb_man, kernel_name, **options)


@contextmanager
def batch_engine(log: Path, tell: Callable[[int, int], None]) -> Iterator[str]:
    """Within, papermill has an engine of the name that is yielded.

    `tell` is called with the number of each code cell and how many there are; what a forked kernel
    has to say goes to `log`.
    """
    factory = KernelProvisionerFactory.instance()
    usual, name = factory.default_provisioner_name, "kit-forked"
    papermill_engines.register("kit", CountingEngine)
    CountingEngine.tell, ForkedKernel.log = staticmethod(tell), log
    if can_fork():
        factory.provisioners[name] = EntryPoint(
            name, f"{__name__}:{ForkedKernel.__name__}", factory.GROUP_NAME
        )
        factory.default_provisioner_name = name
    try:
        yield "kit"
    finally:
        factory.default_provisioner_name = usual


def can_fork() -> bool:
    """Is this a worker, which runs many notebooks, on a system that forks?"""
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    return forks and multiprocessing.parent_process() is not None


class ForkedKernel(LocalProvisioner):
    """A kernel of this machine that begins as a fork of a process with everything imported."""

    log = Path(os.devnull)
    process: Any = None

    async def launch_kernel(self, cmd: list[str], **options: Any) -> KernelConnectionInfo:
        """Start the kernel; one of another kind than Python's is started as usual."""
        if "ipykernel_launcher" not in cmd:
            return await super().launch_kernel(cmd, **options)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        folder = str(options.get("cwd") or Path.cwd())
        words = cmd[cmd.index("ipykernel_launcher") :]
        given = words, folder, kernel_environment(options.get("env")), self.log
        kernel = context.Process(target=serve_kernel, args=given, daemon=True)
        kernel.start()
        self.process = _ProcessHandle(kernel)
        self.pid, self.pgid, self.cwd = kernel.pid, None, folder
        return self.connection_info


class _ProcessHandle:
    """A process of `multiprocessing` as `LocalProvisioner` handles one of `subprocess`."""

    stdin = stdout = stderr = None

    def __init__(self, process: BaseProcess):
        self.process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, signum: int) -> None:
        if self.pid and self.process.is_alive():
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.process.kill()

    def terminate(self) -> None:
        self.process.terminate()


def serve_kernel(words: list[str], folder: str, environment: dict[str, str], log: Path) -> None:
    """Be a kernel until it is shut down, or until the worker that asked for it ends."""
    end_with_parent()
    import matplotlib
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()  # Ctrl-C is for the process that waits
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    become_kernel(environment)
    # A kernel names its back end before matplotlib is imported, and here it has been.
    matplotlib.rcParams["backend"] = "module://matplotlib_inline.backend_inline"
    sys.argv = words
    IPKernelApp.launch_instance()
