"""One line that says how far a long piece of work is.

It is rewritten in a terminal and in a live notebook, and written anew every few seconds where
output is a pipe or a file. In the kernel of a batch run only the last line is written: what such a
notebook prints is kept with it.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from kit.core.environment import is_kernel_attended, live_choice, notebook_stamp

#: Seconds between two lines of one work: rewritten in place, and one below the other.
REDRAWN_AFTER, WRITTEN_AFTER = 0.5, 5.0


def is_live() -> bool:
    """Is somebody watching?

    KIT_LIVE=0 or 1 decides; else a terminal, or a JupyterLab or Voila session.
    """
    forced = live_choice()
    return sys.stdout.isatty() or is_kernel_attended() if forced is None else forced


def format_duration(seconds: float) -> str:
    """A duration as people write it: 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


_silenced: contextvars.ContextVar[bool] = contextvars.ContextVar("silenced", default=False)

_output = threading.RLock()
_open: list[Progress] = []  # that of a part of the work stands behind that of the whole


@contextlib.contextmanager
def silenced(quiet: bool = True) -> Iterator[None]:
    """Within, work that nobody asked to be quiet writes no progress either."""
    token = _silenced.set(quiet or _silenced.get())
    try:
        yield
    finally:
        _silenced.reset(token)


class Progress:
    """A line of progress on work of `total` parts, for a `with` around the work.

    `update` it as often as you like. While the work goes on its line is written every few seconds,
    also between two updates; while a part of it shows a line of its own, that alone is. `total`: 0
    where it is unknown. `done`: parts that were done before. `quiet` writes nothing at all; `brief`
    writes nothing about work that is over before its first line.
    """

    def __init__(
        self, title: str, total: float, *, done: float = 0, quiet: bool = False, brief: bool = False
    ):
        self.title, self.total, self.first, self.brief = title, total, done, brief
        self.done, self.text = float(done), ""
        self.part: Callable[[], str] = str  # the words on a part of the next; none

        self.quiet, self.live = quiet or _silenced.get(), is_live()
        self.every = REDRAWN_AFTER if self.live else WRITTEN_AFTER
        self.started = self.drawn = self.updated = time.monotonic()
        self.ended, self.thread = threading.Event(), threading.get_ident()
        self.beat = threading.Thread(target=self._beat, name=title, daemon=True)

    def __enter__(self) -> Progress:
        """Begin to write lines; in the kernel of a batch run none but the last."""
        if not self.quiet and (self.live or not notebook_stamp()):
            with _output:
                _open.append(self)
            self.beat.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Write no more lines."""
        self._end()

    def update(self, done: float, text: str = "") -> None:
        """Take note that `done` of the total is done, with a word on it."""
        self.done, self.text, self.part, self.updated = done, text, str, time.monotonic()
        self._write_if_due()

    def close(self, text: str) -> None:
        """Write the last line, which stays."""
        self._end()
        over_at_once = time.monotonic() - self.started < self.every
        if not (self.quiet or (self.brief and over_at_once)):
            _write(f"{self.title}  {text}", self.live, end="\n")

    def line(self) -> str:
        """What is written now: how much is done, words on it, and how long it takes."""
        share = self.done / self.total if self.total else 0.0
        bar = "█" * int(share * 20) + "░" * (20 - int(share * 20)) if self.live else ""
        now, fresh = time.monotonic(), self.done - self.first
        words = [self.text, self.part(), f"{format_duration(now - self.started)} so far"]
        if fresh > 0:
            pace = (self.updated - self.started) / fresh
            left = pace * (self.total - self.done) - (now - self.updated)
            words.append(f"{format_duration(max(0.0, left))} left")
        shown = [self.title, f"{bar} {share:.0%}".strip() if self.total else ""]
        return "  ".join(filter(None, [*shown, ", ".join(filter(None, words))]))

    def _beat(self) -> None:
        while not self.ended.wait(self.every):
            with contextlib.suppress(ValueError, OSError):  # output was closed
                self._write_if_due()

    def _write_if_due(self) -> None:
        with _output:
            due = time.monotonic() - self.drawn >= self.every * 0.9
            if due and self in _open and self._is_foremost():
                self.drawn = time.monotonic()
                _write(self.line(), self.live, end="" if self.live else "\n")

    def _is_foremost(self) -> bool:
        """Does no part of this work show a line of its own? A live line is one for all threads."""
        behind = _open[_open.index(self) + 1 :]
        return not any(self.live or other.thread == self.thread for other in behind)

    def _end(self) -> None:
        self.ended.set()
        with _output:
            if self in _open:
                _open.remove(self)
                if self.live and _width:
                    _write("", True, end="\r")
        # The thread may be the last that holds this work's tensors. Python would abort if it let go
        # of them while the process ends.
        self.part = str
        if self.beat.is_alive():
            self.beat.join()


T = TypeVar("T")


def followed(parts: Sequence[T], name: str) -> Iterator[T]:
    """The parts of what this thread is at, one after the other; its line shows which is at hand.

    `name` is what a part is called. Parts of parts are shown behind one another; a part that is the
    only one is not.
    """
    with _output:
        mine = [progress for progress in _open if progress.thread == threading.get_ident()]
    if not mine or len(parts) < 2:
        yield from parts
        return
    line, outer = mine[-1], mine[-1].part
    try:
        for number, part in enumerate(parts, 1):
            line.part = partial(_name_part, outer, f"{name} {number} of {len(parts)}")
            yield part
    finally:
        line.part = outer


def _name_part(outer: Callable[[], str], words: str) -> str:
    return ", ".join(filter(None, [outer(), words]))


_width = 0  # of the live line that the next one covers


def _write(line: str, live: bool, end: str) -> None:
    global _width
    with _output:
        sys.stdout.write(("\r" + line.ljust(_width) if live else line) + end)
        sys.stdout.flush()
        _width = len(line) if live and not end else 0
