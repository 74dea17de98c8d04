"""What is said while the tasks of a batch are done, and the table at its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Mapping, Sequence

from kit.core.errors import KitError
from kit.core.files import read_json
from kit.core.progress import WRITTEN_AFTER, format_duration, is_live
from kit.experiments.runs import run_folder, run_of
from kit.experiments.specification import Plan
from kit.jobs.batch_tasks import Evaluations
from kit.jobs.notebook_jobs import NotebookJob
from kit.jobs.order import work_of_lists
from kit.notebook.journal import Journal, journal_path, read_journal
from kit.papers.measured_cells import is_kept


class BatchProgress:
    """What is said while the tasks are done: a line when one has ended, and of each new picture.

    It remembers what has failed, and each notebook's seconds.
    """

    def __init__(
        self,
        lists: Mapping[str, list[Plan]],
        groups: Mapping[str, Evaluations],
        books: Mapping[str, NotebookJob],
    ):
        self.lists, self.groups, self.books = lists, groups, books
        self.seconds: dict[str, float] = {}
        self.failures: dict[str, str] = {}
        self.shown: dict[str, int] = {}  # pictures of each notebook
        self.began = self.said = time.monotonic()
        self.trained, self.runs = 0, sum(map(len, lists.values()))
        self.work = dict(zip(lists, work_of_lists(lists.values()), strict=True))
        self.worked = 0

    def tick(self, running: Collection[str]) -> None:
        """Say what is being done: in the line that stands there, else in a new one now and then."""
        if not running:
            return
        for name in running:
            self._name_pictures(name)
        states = ", ".join(self._state(name) for name in sorted(running))
        count = f"{self.trained}/{self.runs} trained; " if self.runs else ""
        line = f"  {count}now {states}"[:100]
        if is_live():
            sys.stdout.write(f"\r{line.ljust(100)}")
            sys.stdout.flush()
        elif time.monotonic() - self.said >= WRITTEN_AFTER:
            self.said = time.monotonic()
            print(line, flush=True)

    def _state(self, name: str) -> str:
        if name in self.books:
            return f"drawing {name}: {self._journal(name).cell or 'starting'}"
        if name in self.groups:
            plans = [plan for plan, _ in self.groups[name]]
            kept = [is_kept(run_of(p), ask) for p, asks in self.groups[name] for ask in asks]
            return f"attacks on {_methods(plans)} {sum(kept)}/{len(kept)}"
        plans = self.lists[name]
        done = sum(1 for _ in (run_folder(plans[0]) / "epochs").glob("*.npz"))
        return f"{_methods(plans)} {done}/{plans[0].recipe.epochs}"

    def _journal(self, name: str) -> Journal:
        job = self.books[name]
        return read_journal(journal_path(job.folder, job.name))

    def _name_pictures(self, name: str) -> None:
        """Say which pictures a notebook has drawn since it was last looked at."""
        if name in self.books:
            pictures = self._journal(name).pictures
            for picture in pictures[self.shown.get(name, 0) :]:
                self._say(f"  {picture}")
            self.shown[name] = len(pictures)

    def finished(self, name: str, error: BaseException | None, seconds: float) -> None:
        """Say how a task has ended."""
        rest = ""
        if name in self.lists:
            self.trained += len(self.lists[name])
            self.worked += self.work[name]
            pace = (time.monotonic() - self.began) / self.worked
            left = pace * (sum(self.work.values()) - self.worked)
            title = f"[{self.trained}/{self.runs}] {name}"
            well = f"ready in {format_duration(seconds)}"
            rest = f" ({format_duration(left)} left)" if left >= 1 else ""
        elif name in self.groups:
            title, well = name, f"made in {format_duration(seconds)}"
        else:
            self._name_pictures(name)
            job = self.books[name]
            journal_path(job.folder, job.name).unlink(missing_ok=True)
            self.seconds[name] = seconds
            if error is None and not job.is_done():
                error = KitError(
                    "it ended without its stamp: study.finish() was not reached, which must be the "
                    "last line of its last cell, or the kit was changed while it ran; run it again"
                )
            title, well = name, f"made in {format_duration(seconds)}"
        if error is not None:
            self.failures[name] = str(error)
        self._say(f"  {title}: {f'failed: {error}' if error else well}{rest}")

    def _say(self, line: str) -> None:
        """Write a line that stays."""
        self.said = time.monotonic()
        print(f"\r{line.ljust(100)}" if is_live() else line, flush=True)


def _methods(plans: Sequence[Plan]) -> str:
    return plans[0].spec.method + (f" and {len(plans) - 1} more" if len(plans) > 1 else "")


def print_summary(
    jobs: list[NotebookJob], seconds: dict[str, float], failures: dict[str, str], total: float
) -> None:
    """Print each notebook's state, seconds and pictures, where they are, and what has failed."""
    width = max(len(job.label) for job in jobs) + 2
    print(f"\n{'notebook':<{width}}{'state':<12}{'seconds':>8}  figures")
    for job in jobs:
        state = (
            "failed" if job.label in failures else "made" if job.label in seconds else "up to date"
        )
        try:
            figures = [
                f[:-4]
                for f in read_json(job.folder / f"{job.name}.json")["figures"]
                if f.endswith(".png")
            ]
        except KitError:
            figures = []
        made = ", ".join(figures) if state != "failed" else "-"
        print(f"{job.label:<{width}}{state:<12}{seconds.get(job.label, 0):>8.1f}  {made}")
    for folder in sorted({job.folder for job in jobs}):
        print(f"results in {folder}")
    for name, error in failures.items():
        print(f"FAILED {name}: {error}")
    print(f"{format_duration(total)} in all", flush=True)
