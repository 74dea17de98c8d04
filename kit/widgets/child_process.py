"""Training beside the notebook: a child process that can be paused and stopped, and whose epochs
are read from its folder.

A process and not a thread: Python lets one thread run at a time, so a training thread would make
every slider wait for it, and nothing could stop it within an epoch. The child listens to a pipe. A
line halts it or lets it go on; when the pipe is closed it ends at once. The operating system closes
the pipe when the kernel dies, however it dies, so no training is ever left behind, not even a
halted one (a stopped process, as by SIGSTOP, would be). Ending at once is safe: files are written
in one step, and `kit.run` goes on from the last finished epoch.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, ClassVar

import pandas as pd

from kit.core.environment import environment_for_child
from kit.core.errors import KitError
from kit.core.files import CHECKOUT
from kit.experiments.runs import Run, is_done, run_folder
from kit.experiments.specification import RunSpec, resolve

PAUSE, GO_ON = b"pause\n", b"go on\n"

CHILD_STOPPED = 130

COMMAND = "from kit.widgets.child_process import obey; obey()"


# ------------------------------------------------------------------------------------- in the child


def obey() -> None:
    """Train the spec that the last argument names, and do what the lines on standard input say
    until they end.
    """
    gate = threading.Lock()

    def halt(*_: object) -> None:  # runs in the main thread, between two of its steps
        with gate:
            pass

    def listen() -> None:
        for line in sys.stdin.buffer:
            if line == PAUSE and gate.acquire(blocking=False):
                _thread.interrupt_main()
            elif line == GO_ON and gate.locked():
                gate.release()
        os._exit(CHILD_STOPPED)

    signal.signal(signal.SIGINT, halt)
    threading.Thread(target=listen, daemon=True).start()
    try:
        from kit.training.runner import run

        run(RunSpec(**json.loads(sys.argv[-1])), quiet=True)
        code = 0
    except Exception as error:
        code = 1
        print(
            error if isinstance(error, KitError) else f"{type(error).__name__}: {error}",
            file=sys.stderr,
            flush=True,
        )
    os._exit(code)  # the listener still waits for a line


# ------------------------------------------------------------------------------------ in the kernel


@dataclass
class Child:
    """A process that was started here."""

    process: subprocess.Popen
    log: IO[bytes]
    halted: bool = False
    ended: bool = False  # by us

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def say(self, line: bytes) -> None:
        if self.alive:
            try:
                self.process.stdin.write(line)
                self.process.stdin.flush()
            except OSError:  # it has just ended
                return
            self.halted = line == PAUSE

    def end(self) -> None:
        self.ended = self.ended or self.alive
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):  # a line that it did not read
            self.process.stdin.close()

    @property
    def complaint(self) -> str:
        """The last line that it wrote."""
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").split("\n")
        return next(
            (line for line in reversed(lines) if line.strip()),
            f"its process ended with {self.process.returncode}",
        )


@dataclass
class Training:
    """One run that is trained in the background. `state` is "not started", "training", "paused",
    "stopped", "done" or "failed: " and why. Two of the same spec in one kernel are the same
    training.

    Errors: `KitError` for a spec with an unknown name or unfit value. A method that was added to
    kit.METHODS in the notebook is not known to the child: that training fails, and says so.
    """

    spec: RunSpec
    folder: Path = field(init=False)
    total: int = field(init=False)  # epochs
    _children: ClassVar[dict[Path, Child]] = {}  # by folder, of this kernel

    def __post_init__(self):
        plan = resolve(self.spec)
        self.folder, self.total = run_folder(plan), plan.recipe.epochs

    @property
    def _child(self) -> Child | None:
        return self._children.get(self.folder)

    # ---- what a hand does

    def start(self) -> None:
        """Begin, resume where it was stopped, or go on after a pause.

        Nothing if it is training or done.
        """
        if self.busy:
            self._child.say(GO_ON)
        elif self.state != "done":
            spec = {
                "method": self.spec.method,
                "recipe": self.spec.recipe,
                "seed": self.spec.seed,
                "overrides": dict(self.spec.overrides),
            }
            log = tempfile.TemporaryFile()  # noqa: SIM115 - read when the child has ended
            process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # interrupting a cell does not halt it
                env=environment_for_child(CHECKOUT),
            )
            self._children[self.folder] = Child(process, log)

    def pause(self) -> None:
        """Halt it between two steps; it keeps its memory, and loses nothing.

        Nothing if it is not training.
        """
        if self.busy:
            self._child.say(PAUSE)

    def stop(self) -> None:
        """End it; the epochs that are finished are kept, and `start` goes on behind them."""
        if self.busy:
            self._child.end()

    # ---- how far it is

    @property
    def busy(self) -> bool:
        """Is its process there, at work or paused?"""
        return self._child is not None and self._child.alive

    @property
    def state(self) -> str:
        if self.busy:
            return "paused" if self._child.halted else "training"
        if is_done(self.folder):
            return "done"
        if self._child is not None and not self._child.ended:
            return f"failed: {self._child.complaint}"
        return "stopped" if self.epochs or self._child else "not started"

    @property
    def history(self) -> pd.DataFrame:
        """A row a finished epoch, as `Run.history`; no rows before the first."""
        try:
            return pd.read_csv(io.BytesIO((self.folder / "history.csv").read_bytes()))
        except OSError:
            return pd.DataFrame(columns=["epoch", "loss", "clean", "robust"])

    @property
    def epochs(self) -> int:
        """How many epochs are finished; `total` is how many there will be."""
        return len(self.history)

    @property
    def run(self) -> Run:
        """Its run, as far as it is: `epoch(number)` for those that are finished."""
        return Run(self.spec, self.folder)


def while_busy(
    busy: Callable[[], bool], look: Callable[[], None], every: float = 0.5
) -> asyncio.Task | None:
    """Call `look` every so many seconds while `busy()`, and once more when it is over.

    It runs on the kernel's own event loop, between messages: two panels never draw at the same time
    (matplotlib's settings are shared), and a kernel that is at work on a cell is not disturbed.
    None, and nothing happens, where no loop runs.
    """

    async def watch() -> None:
        while busy():
            await asyncio.sleep(every)
            look()
        look()

    try:
        return asyncio.get_running_loop().create_task(watch())
    except RuntimeError:
        return None
