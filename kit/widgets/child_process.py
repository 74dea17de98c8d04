"""Work beside the notebook: a child process that can be paused and stopped, and trainings in it.

The work is done in a process and not in a thread. Python lets one thread run at a time, so a
training thread would make every slider wait for it, and nothing could stop it within an epoch.

The protocol: the child is told a function of a module and its arguments, as JSON, and listens to a
pipe. A line pauses it or lets it go on; when the pipe is closed it ends at once. The operating
system closes the pipe when the kernel dies, however it dies, so no training is ever left behind,
not even a paused one (a process that SIGSTOP stopped would be). What went wrong is the last line of
its standard error. Ending at once is safe: files are written in one step, and `kit.run` goes on
from the last finished epoch.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import io
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar

import pandas as pd

from kit.core.environment import environment_for_child
from kit.core.errors import KitError
from kit.core.files import CHECKOUT
from kit.experiments.runs import Run, is_done, run_folder
from kit.experiments.specification import RunSpec, resolve

PAUSE, GO_ON = b"pause\n", b"go on\n"

#: The child's exit code where its pipe was closed.
PIPE_CLOSED = 130

COMMAND = "from kit.widgets.child_process import serve; serve()"


# ------------------------------------------------------------------------------------- in the child


def serve() -> None:
    """Do the work that the last argument names, and obey the lines on standard input meanwhile."""
    gate = threading.Lock()

    def wait_at_gate(*_: object) -> None:
        # It runs in the main thread, between two of its steps.
        with gate:
            pass

    def listen() -> None:
        for line in sys.stdin.buffer:
            if line == PAUSE and gate.acquire(blocking=False):
                _thread.interrupt_main()
            elif line == GO_ON and gate.locked():
                gate.release()
        os._exit(PIPE_CLOSED)

    signal.signal(signal.SIGINT, wait_at_gate)
    threading.Thread(target=listen, daemon=True).start()
    try:
        function, arguments = json.loads(sys.argv[-1])
        pkgutil.resolve_name(function)(*arguments)
        code = 0
    except Exception as error:
        code = 1
        words = error if isinstance(error, KitError) else f"{type(error).__name__}: {error}"
        print(words, file=sys.stderr, flush=True)
    # The listener still waits for a line.
    os._exit(code)


def train_run(words: dict[str, Any]) -> None:
    """Train the run that `RunSpec.words` describes."""
    # The kernel that only watches need not load it.
    from kit.training.runner import run

    run(RunSpec(**words), quiet=True)


# ------------------------------------------------------------------------------------ in the kernel


@dataclass
class Child:
    """A process that was started here; make one with `start_child`."""

    process: subprocess.Popen
    log: IO[bytes]  # its standard error
    paused: bool = False
    was_stopped: bool = False  # by `stop`, while it was at work

    @property
    def alive(self) -> bool:
        """Whether it is there, at work or paused."""
        return self.process.poll() is None

    def pause(self) -> None:
        """Halt it between two steps; it keeps its memory, and loses nothing."""
        self._send(PAUSE)

    def go_on(self) -> None:
        """Let it work on after a pause."""
        self._send(GO_ON)

    @property
    def _pipe(self) -> IO[bytes]:
        assert self.process.stdin is not None, "start_child opens it"
        return self.process.stdin

    def _send(self, line: bytes) -> None:
        if self.alive:
            try:
                self._pipe.write(line)
                self._pipe.flush()
            except OSError:
                # It has just ended.
                return
            self.paused = line == PAUSE

    def stop(self) -> None:
        """End it at once."""
        self.was_stopped = self.was_stopped or self.alive
        self.process.kill()
        self.process.wait()
        # There may be a line that it did not read.
        with contextlib.suppress(OSError):
            self._pipe.close()

    @property
    def complaint(self) -> str:
        """Why it failed: the last line that it wrote, or how its process ended."""
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").split("\n")
        code = self.process.returncode
        how = f"with exit code {code}" if code is None or code >= 0 else f"by signal {-code}"
        return next(
            (line for line in reversed(lines) if line.strip()),
            f"its process was ended {how} and left no message; start it again",
        )


def start_child(work: Callable[..., None], *arguments: Any) -> Child:
    """Call `work(*arguments)` in a process beside this one.

    `work` is a function of a module of the kit, and the arguments are JSON values: both are told to
    the child in words.
    """
    message = json.dumps([f"{work.__module__}:{work.__qualname__}", arguments])
    log = tempfile.TemporaryFile()  # noqa: SIM115 - read when the child has ended
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, message],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=log,
        start_new_session=True,  # interrupting a cell does not interrupt it
        env=environment_for_child(CHECKOUT),
    )
    return Child(process, log)


def read_history(folder: Path) -> pd.DataFrame:
    """A row a finished epoch, as `Run.history`, while the run may still be at work.

    There are no rows before the first epoch is finished.
    """
    try:
        return pd.read_csv(io.BytesIO((folder / "history.csv").read_bytes()))
    except OSError:
        return pd.DataFrame(columns=["epoch", "loss", "clean", "robust"])


@dataclass
class Training:
    """One run that is trained in the background.

    `state` is "not started", "training", "paused", "stopped", "done" or "failed: " and why. Two of
    the same spec in one kernel are the same training. A method that was added to kit.METHODS in the
    notebook is not known to the child: that training fails, and says so.

    Raises:
        KitError: the spec has an unknown name or an unfit value.
    """

    spec: RunSpec
    folder: Path = field(init=False)
    total: int = field(init=False)  # epochs
    _children: ClassVar[dict[Path, Child]] = {}  # by folder, of this kernel

    def __post_init__(self):
        plan = resolve(self.spec)
        self.folder, self.total = run_folder(plan), plan.recipe.epochs

    @property
    def child(self) -> Child | None:
        """Its process; None where none was started in this kernel."""
        return self._children.get(self.folder)

    # ---- what a hand does

    def start(self) -> None:
        """Begin, resume where it was stopped, or go on after a pause.

        Nothing happens where it is training or done.
        """
        if child := self._working_child:
            child.go_on()
        elif self.state != "done":
            self._children[self.folder] = start_child(train_run, self.spec.words())

    def pause(self) -> None:
        """Halt it between two steps; nothing happens where it is not training."""
        if child := self._working_child:
            child.pause()

    def stop(self) -> None:
        """End it; the epochs that are finished are kept, and `start` goes on behind them."""
        if child := self._working_child:
            child.stop()

    # ---- how far it is

    @property
    def busy(self) -> bool:
        """Whether its process is there, at work or paused."""
        return self._working_child is not None

    @property
    def _working_child(self) -> Child | None:
        """Its process, where it is there, at work or paused."""
        child = self.child
        return child if child is not None and child.alive else None

    @property
    def state(self) -> str:
        """One of the words that the class names."""
        if child := self._working_child:
            return "paused" if child.paused else "training"
        if is_done(self.folder):
            return "done"
        if self.child is not None and not self.child.was_stopped:
            return f"failed: {self.child.complaint}"
        return "stopped" if self.epochs or self.child else "not started"

    @property
    def history(self) -> pd.DataFrame:
        """A row a finished epoch, as `Run.history`; no rows before the first."""
        return read_history(self.folder)

    @property
    def epochs(self) -> int:
        """How many epochs are finished; `total` is how many there will be."""
        return len(self.history)

    @property
    def run(self) -> Run:
        """Its run, as far as it is: `epoch(number)` for those that are finished."""
        return Run(self.spec, self.folder)


def while_busy(
    busy: Callable[[], bool], watch: Callable[[], None], every: float = 0.5
) -> asyncio.Task | None:
    """Call `watch` every so many seconds while `busy()`, and once more when it is over.

    It runs on the kernel's own event loop, between messages: two panels never draw at the same time
    (matplotlib's settings are shared), and a kernel that is at work on a cell is not disturbed.
    None, and nothing happens, where no loop runs.
    """

    async def follow() -> None:
        while busy():
            await asyncio.sleep(every)
            watch()
        watch()

    try:
        return asyncio.get_running_loop().create_task(follow())
    except RuntimeError:
        return None
