"""One line that says how far a long piece of work is.

It is rewritten in a terminal and in a live notebook, and written once at the end everywhere else
(papermill, pipes, logs).
"""

from __future__ import annotations

import sys
import time

from kit.core.environment import is_kernel_attended, live_choice


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


class Progress:
    """A line of progress: `update` it as often as you like, it is redrawn at most twice a second.

    `quiet` writes nothing at all.
    """

    def __init__(self, title: str, total: int, *, done: int = 0, quiet: bool = False):
        self.title, self.total, self.first = title, total, done
        self.started = self.drawn = time.monotonic()
        self.quiet, self.live, self.width = quiet, is_live(), 0

    def update(self, done: int, text: str = "") -> None:
        """Show that `done` of the total is done, with a word on it."""
        now = time.monotonic()
        if self.quiet or not self.live or (now - self.drawn < 0.5 and done < self.total):
            return
        self.drawn = now
        share = done / self.total
        bar = "█" * int(share * 20) + "░" * (20 - int(share * 20))
        fresh = done - self.first
        left = (
            f", {format_duration((now - self.started) / fresh * (self.total - done))} left"
            if fresh
            else ""
        )
        self._write(f"\r{self.title}  {bar} {done}/{self.total}  {text}{left}")

    def close(self, text: str) -> None:
        """Write the last line, which stays."""
        if not self.quiet:
            self._write(("\r" if self.live else "") + f"{self.title}  {text}", end="\n")

    def _write(self, line: str, end: str = "") -> None:
        padded = line.ljust(self.width)
        self.width = len(line)
        sys.stdout.write(padded + end)
        sys.stdout.flush()
