"""Batch reproduction: check the plan, train each run once, run the notebooks, say what was made.

The plan is read off the notebooks' own parameters, and checked as a whole before anything runs.
Trainings and notebooks are tasks of one engine, `kit.jobs.local_engine.run_locally` or another; a
notebook is run as soon as its runs have ended; one that fails does not stop the others; and one
whose stamp still fits is not run again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.core.environment import changed_environment, notebook_variables
from kit.core.errors import KitError, unknown_name
from kit.core.files import CHECKOUT, PACKAGE, read_json
from kit.core.progress import WRITTEN_AFTER, format_duration, is_live
from kit.evaluation.accuracy import evaluate
from kit.experiments.recipes import RECIPE_FIELDS, is_quick
from kit.experiments.runs import is_done, run_folder, run_of
from kit.experiments.specification import (
    Plan,
    RunSpec,
    group_for_stacking,
    resolve,
    split_setting,
    split_settings,
)
from kit.figures.table import output_folder
from kit.jobs.flops import total_flops
from kit.jobs.forecast import epochs_to_train, forecast_seconds
from kit.jobs.local_engine import run_locally
from kit.jobs.order import order_by_training, order_tasks, shared_burn_ins, work_of_lists
from kit.jobs.report import describe_reports
from kit.jobs.tasks import Engine, Place, Task, simulate_tasks
from kit.models.architectures import SMALL
from kit.notebook.journal import Journal, journal_path, note_cell, read_journal
from kit.notebook.parameter_cells import (
    NotebookValues,
    Parameter,
    check_parameters,
    notebook_parameters,
)
from kit.papers.measured_cells import is_kept
from kit.papers.table_runs import Evaluation
from kit.training.runner import STACKED_NETWORKS, run_many

#: TFLOP/s of one GPU that a plan's hours are stated for.
ACHIEVED_TFLOPS = 100


def notebooks_folder() -> Path:
    """Return the folder where the checkout has its notebooks."""
    return CHECKOUT / "notebooks"


@dataclass(frozen=True)
class NotebookJob:
    """One notebook, the parameter values it is run with, and the folder of its results."""

    path: Path
    values: NotebookValues
    folder: Path

    @property
    def name(self) -> str:
        """The notebook's file name without its ending."""
        return self.path.stem

    @property
    def label(self) -> str:
        """Its name in progress lines; the seed only where several are run."""
        return (
            f"{self.name}, {self.folder.name}"
            if self.folder.name.startswith("seed-")
            else self.name
        )

    @property
    def output(self) -> Path:
        """The notebook as it was run."""
        return self.folder / self.path.name

    def stamp(self) -> str:
        """Hash the notebook's code, its values, the keys of its runs, and the kit's source."""
        code = [
            cell["source"]
            for cell in json.loads(self.path.read_text())["cells"]
            if cell["cell_type"] == "code"
        ]
        keys = [plan.key for plan in self.values.plans]
        words = json.dumps([code, dict(self.values.given), keys, source_digest()], sort_keys=True)
        return hashlib.sha256(words.encode()).hexdigest()

    def is_done(self) -> bool:
        """Say whether it ended with this very stamp, and all that it made is still there."""
        path = self.folder / f"{self.name}.json"
        try:
            record = read_json(path)
        except KitError:
            return False
        return (
            isinstance(record, dict)
            and record.get("stamp") == self.stamp()
            and self.output.exists()
            and all((self.folder / name).exists() for name in record.get("figures", []))
        )


def source_digest() -> str:
    """Hash the kit's own source files."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------- the plan


def choose_notebooks(only: list[str]) -> list[Path]:
    """List the notebooks whose names begin with one of `only`, in order.

    If it is empty these are the numbered ones, which draw the figures and take minutes. `tables`
    are asked for by name: they train every method with several seeds.

    Raises:
        KitError: There are no notebooks, or none of such a name.
    """
    paths = sorted(notebooks_folder().glob("*.ipynb"))
    if not paths:
        raise KitError(
            f"there are no notebooks in {notebooks_folder()}; run this from a checkout of the "
            "project"
        )
    words = [word.removesuffix(".ipynb") for word in only]
    for word in words:
        if not any(path.stem.startswith(word) for path in paths):
            number = f"{int(word):02d}_" if word.isdecimal() and len(word) < 3 else None
            guess = next((p.stem for p in paths if number and p.stem.startswith(number)), "")
            raise unknown_name("notebook", word, [path.stem for path in paths], guess)
    return [
        p for p in paths if (any(map(p.stem.startswith, words)) if words else p.stem[0].isdecimal())
    ]


def plan_jobs(
    only: list[str], given: Mapping[str, Any], seeds: list[int] | None, out: Path | None
) -> list[NotebookJob]:
    """Make one job per notebook and seed, every value checked.

    A notebook that declares a given name takes it as its parameter. For every other notebook it is
    a setting of its runs, if it is one, and takes the place of the notebook's own. Those of the
    notebook make quick recipes quicker; recipes of the papers' scale go without.

    Raises:
        KitError: A name or a value is wrong, or the seed is chosen twice.
    """
    tables = {path: notebook_parameters(path) for path in choose_notebooks(only)}
    names = {name for table in tables.values() for name in table}
    # A notebook that trains nothing takes no settings; those beside others are not for it.
    some_train = any("overrides" in table for table in tables.values())
    settings = {name: value for name, value in given.items() if is_run_setting(name)}
    for name in given.keys() - settings.keys() - names:
        raise unknown_name(
            "notebook parameter or run setting", name, names | {*RECIPE_FIELDS, "burn_in"}
        )
    if seeds and "seed" in given:
        raise KitError(
            f"--seeds {' '.join(map(str, seeds))} and --set seed={given['seed']} both choose the "
            "seed; give one of them"
        )
    if seeds and len(set(seeds)) < len(seeds):
        raise KitError(f"--seeds {' '.join(map(str, seeds))} names one twice; each is run once")
    several = {"seeds": " ".join(map(str, seeds))} if seeds else {}
    jobs = []
    for seed in seeds or [given.get("seed", 0)]:
        for path, table in tables.items():
            # Such a notebook is run once for all seeds.
            alone = "seeds" in table
            if alone and seeds and seed != seeds[0]:
                continue
            mine = {
                name: value
                for name, value in {**several, **given, "seed": seed}.items()
                if name in table
            }
            recipe = mine.get("recipe", table["recipe"].default) if "recipe" in table else ""
            if "overrides" in table and recipe and not is_quick(recipe):
                mine.setdefault("overrides", "")
            others = {name: value for name, value in settings.items() if name not in table}
            if others and ("overrides" in table or not some_train):
                mine["overrides"] = _changed_overrides(path, table, mine, others)
            values = check_parameters(table, mine)
            folder = out or output_folder(values.recipe)
            one = alone or not seeds or len(seeds) == 1
            jobs.append(NotebookJob(path, values, folder if one else folder / f"seed-{seed}"))
    return jobs


def is_run_setting(name: str) -> bool:
    """Say whether a name is that of a recipe's field or, with a point, of a method's number."""
    return name in RECIPE_FIELDS or name == "burn_in" or "." in name


def _changed_overrides(
    path: Path,
    table: Mapping[str, Parameter],
    given: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> str:
    """A notebook's `overrides` with `settings` in place of those of its own."""
    if "overrides" not in table:
        raise KitError(
            f"{path.stem} takes no settings of runs such as {next(iter(settings))}; choose others "
            "with --only, or leave the setting out"
        )
    own = given.get("overrides")
    if own is None:
        words = split_settings(table["overrides"].default)
        own = " ".join(word for word in words if split_setting(word)[0] not in settings)
    changed = [
        f"{name}={json.dumps(value, separators=(',', ':'))}" for name, value in settings.items()
    ]
    return " ".join([own, *changed]).strip()


def needed_runs(jobs: Sequence[NotebookJob]) -> list[Plan]:
    """List every run that the jobs need, once, in the order in which they are asked for."""
    unique: dict[str, Plan] = {}
    for job in jobs:
        for plan in job.values.plans:
            unique.setdefault(plan.key, plan)
    return list(unique.values())


def is_trained(plan: Plan) -> bool:
    """Say whether its training came to its end."""
    return is_done(run_folder(plan))


# -------------------------------------------------------------------------------------- in a worker


def train_runs(some: list[dict], device: str, compiled: bool | None = None) -> float:
    """Train runs quietly; those that fit together are trained as one program.

    Returns:
        The seconds it took.

    Raises:
        KitError: Some runs failed; it names them, after the others are done.
    """
    started = time.monotonic()
    plans = [resolve(RunSpec(**words)) for words in some]
    run_many(plans, device=device, quiet=True, compiled=compiled)
    return time.monotonic() - started


def evaluate_runs(some: list[tuple[dict, list[Evaluation]]], device: str) -> float:
    """Evaluate runs quietly, each under what a notebook will ask for.

    A run that could not be trained is left out: its training has said why.

    Returns:
        The seconds it took.
    """
    started = time.monotonic()
    for words, asks in some:
        plan = resolve(RunSpec(**words))
        if is_trained(plan):
            for attack, n, which in asks:
                evaluate(run_of(plan), [attack], n=n, which=which, device=device, quiet=True)
    return time.monotonic() - started


def run_notebook(
    path: str, output: str, values: dict, folder: str, stamp: str, compiled: bool = False
) -> float:
    """Run one notebook.

    Its cells' and its kernel's chatter goes to a log beside the output.

    Returns:
        Its seconds.

    Raises:
        KitError: A cell failed.
    """
    started = time.monotonic()
    partial = Path(output).with_suffix(".partial.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    journal, log = journal_path(Path(folder), Path(path).stem), Path(output).with_suffix(".log")
    journal.unlink(missing_ok=True)
    with changed_environment(notebook_variables(folder, stamp, compiled)), _stderr_to(log):
        import papermill

        from kit.jobs.batch_kernels import batch_engine

        try:
            with batch_engine(log, functools.partial(note_cell, journal)) as engine:
                papermill.execute_notebook(
                    path,
                    str(partial),
                    engine_name=engine,
                    parameters=values,
                    progress_bar=False,
                    log_output=False,
                    request_save_on_cell_execute=False,
                    cwd=str(Path(path).parent),
                )
        except papermill.exceptions.PapermillExecutionError as error:
            os.replace(partial, output)
            first = f"{error.ename}: {error.evalue}" if error.ename != "KitError" else error.evalue
            raise KitError(f"cell {error.exec_count}: {first.splitlines()[0]}") from None
    os.replace(partial, output)
    return time.monotonic() - started


@contextlib.contextmanager
def _stderr_to(log: Path) -> Iterator[None]:
    """Within, what this process and those that it starts write to stderr goes to a file."""
    here, before = sys.stderr.fileno(), os.dup(sys.stderr.fileno())
    try:
        log.unlink(missing_ok=True)
        with open(log, "a") as file:
            os.dup2(file.fileno(), here)
        yield
    finally:
        os.dup2(before, here)
        os.close(before)


# ---------------------------------------------------------------------------------------- the tasks


#: What a task evaluates: runs, each under what a notebook wants.
Evaluations = list[tuple[Plan, list[Evaluation]]]


def untrained_runs(jobs: Sequence[NotebookJob]) -> dict[str, list[Plan]]:
    """Return the runs of each job that are not trained, in the order of `order_by_training`.

    Each is with the first job that needs it.
    """
    return order_by_training(
        {job.label: [plan for plan in job.values.plans if not is_trained(plan)] for job in jobs}
    )


def group_trainings(needs: Iterable[Sequence[Plan]], place: Place) -> dict[str, list[Plan]]:
    """Group runs by the task that trains them, under its title.

    `needs` are the runs of each notebook, in order: no notebook waits for another's. Those that
    leave their burn-in to others come first.
    """
    needs = list(needs)
    most = min(STACKED_NETWORKS[place.device.type], -(-sum(map(len, needs)) // place.slots))
    lists: dict[str, list[Plan]] = {}
    burn_ins: dict[str, int] = {}
    for plans in needs:
        for wave in group_for_stacking(plans, most, burn_ins):
            lists |= {_group_title(some): some for some in wave}
        burn_ins |= shared_burn_ins(plans)
    return lists


def _group_title(plans: Sequence[Plan]) -> str:
    return f"{plans[0].spec}" + (f" and {len(plans) - 1} more" if len(plans) > 1 else "")


def group_evaluations(
    jobs: Sequence[NotebookJob], lists: Mapping[str, list[Plan]]
) -> dict[str, Evaluations]:
    """Group what is to be evaluated by the task that does it, under its title.

    It is what the first of the jobs wants that wants it, of runs that are trained together.
    """
    title_of = {plan.key: title for title, plans in lists.items() for plan in plans}
    groups: dict[str, Evaluations] = {}
    planned: dict[str, list[Evaluation]] = {}
    for job in jobs:
        for plan, asks in job.values.evaluations:
            known = planned.setdefault(plan.key, [])
            new = [
                ask
                for ask in dict.fromkeys(asks)
                if ask not in known and not (is_trained(plan) and is_kept(run_of(plan), ask))
            ]
            if new:
                title = f"attacks on {title_of.get(plan.key, plan.spec)} for {job.label}"
                groups.setdefault(title, []).append((plan, new))
                known += new
    return groups


def training_tasks(
    lists: Mapping[str, list[Plan]], place: Place, compiled: bool = False
) -> dict[str, Task]:
    """Make a task of each list of runs.

    It waits for the lists before it whose burn-in it shares, so that every burn-in is trained once.
    """
    leaders: dict[str, tuple[str, Plan]] = {}
    tasks = {}
    for title, plans in lists.items():
        after = set()
        for plan in plans:
            other, leader = leaders.get(plan.burn_in_key, (title, plan))
            if other != title and leader.burn_in <= plan.shared_epochs:
                after.add(other)
        for plan in plans:
            if plan.burn_in:
                leaders.setdefault(plan.burn_in_key, (title, plan))
        # None: as KIT_COMPILE says where it is trained.
        words = ([plan.spec.words() for plan in plans], str(place.device), compiled or None)
        tasks[title] = Task(train_runs, words, frozenset(after), gpu_share(plans))
    return tasks


def evaluation_tasks(
    groups: Mapping[str, Evaluations], lists: Mapping[str, list[Plan]], place: Place
) -> dict[str, Task]:
    """Make a task of each group of evaluations; it waits for the lists that its runs are in."""
    tasks = {}
    for title, some in groups.items():
        plans = [plan for plan, _ in some]
        words = [(plan.spec.words(), asks) for plan, asks in some]
        tasks[title] = Task(
            evaluate_runs, (words, str(place.device)), _lists_with(plans, lists), gpu_share(plans)
        )
    return tasks


def notebook_tasks(
    due: Sequence[NotebookJob],
    lists: Mapping[str, list[Plan]],
    groups: Mapping[str, Evaluations],
    compiled: bool = False,
) -> dict[str, Task]:
    """Make a task of each notebook.

    It waits for the lists that its runs are in, and for what evaluates them.
    """
    tasks = {}
    for job in due:
        asked = {(plan.key, ask) for plan, asks in job.values.evaluations for ask in asks}
        evaluated = {
            title
            for title, some in groups.items()
            if any((plan.key, ask) in asked for plan, asks in some for ask in asks)
        }
        words = (
            str(job.path),
            str(job.output),
            dict(job.values.given),
            str(job.folder),
            job.stamp(),
            compiled,
        )
        after = _lists_with(job.values.plans, lists) | evaluated
        tasks[job.label] = Task(run_notebook, words, after, gpu_share(job.values.plans))
    return tasks


def _lists_with(plans: Sequence[Plan], lists: Mapping[str, list[Plan]]) -> frozenset[str]:
    keys = {plan.key for plan in plans}
    return frozenset(
        title for title, some in lists.items() if any(plan.key in keys for plan in some)
    )


def gpu_share(plans: Sequence[Plan]) -> float:
    """Say how much of a GPU a task of `plans` needs: small networks leave most of one idle."""
    return 0.25 if all(plan.recipe.model in SMALL for plan in plans) else 1.0


# ---------------------------------------------------------------------------------------- the batch


def show_plan(jobs: list[NotebookJob], place: Place) -> None:
    """Print what would run, what is there already, and how long the trainings would take."""
    left = epochs_to_train(needed_runs(jobs))
    for plan, epochs in left:
        state = "trained" if not epochs else f"to train, {epochs} of {plan.recipe.epochs} epochs"
        print(f"  run       {plan.spec}: {state}")
    for job in jobs:
        print(
            f"  notebook  {job.name}: {'up to date' if job.is_done() else 'to run'} -> {job.folder}"
        )
    if not any(epochs for _, epochs in left):
        return
    lists = group_trainings(untrained_runs(jobs).values(), place)
    tasks = training_tasks(lists, place)
    runs = f"training {sum(epochs > 0 for _, epochs in left)} runs, {place.words}"
    try:
        seconds = simulate_tasks(tasks, place, forecast_seconds(lists, place))
        print(
            f"{runs}, takes about {format_duration(seconds)} here, as timed steps tell; attacks "
            "and drawing come on top"
        )
    except KitError as error:
        print(f"{runs}: its duration is unknown: {error}")
    if any(epochs and plan.recipe.model not in SMALL for plan, epochs in left):
        print(_gpu_hours(lists, tasks, {plan.key: (plan, epochs) for plan, epochs in left}, place))


def _gpu_hours(
    lists: Mapping[str, list[Plan]],
    tasks: Mapping[str, Task],
    left: Mapping[str, tuple[Plan, int]],
    place: Place,
) -> str:
    """What the deep networks compute, and how long that takes at ACHIEVED_TFLOPS."""
    try:
        operations = {
            title: total_flops(left[plan.key] for plan in plans if plan.recipe.model not in SMALL)
            for title, plans in lists.items()
        }
    except KitError as error:
        return f"what the deep networks compute is unknown: {error}"
    seconds = {title: count / (ACHIEVED_TFLOPS * 1e12) for title, count in operations.items()}
    several = (
        f", {format_duration(simulate_tasks(tasks, place, seconds))} on {place.gpus} of them"
        if place.gpus
        else ""
    )
    return (
        f"the deep networks compute {sum(operations.values()):.2e} floating-point operations: "
        f"{format_duration(sum(seconds.values()))} on a GPU that achieves {ACHIEVED_TFLOPS} "
        f"TFLOP/s{several}; computed, not measured"
    )


def reproduce(
    jobs: list[NotebookJob],
    place: Place,
    *,
    engine: Engine = run_locally,
    fresh: bool = False,
    compiled: bool = False,
) -> int:
    """Train what is missing, run what is not up to date, print a table.

    `fresh`: run what is up to date, too; `compiled`: compile the passes of networks.

    Returns:
        0, or 1 if any task failed.
    """
    started = time.monotonic()
    needs = untrained_runs(jobs)
    ordered = sorted(jobs, key=lambda job: list(needs).index(job.label))
    due = [job for job in ordered if fresh or not job.is_done()]
    lists = group_trainings(needs.values(), place)
    groups = group_evaluations(ordered, lists)
    attacks = f", {sum(map(len, groups.values()))} to evaluate" if groups else ""
    print(
        f"{len(needed_runs(jobs))} runs, {sum(map(len, lists.values()))} to train{attacks}; "
        f"{len(jobs)} notebooks, {len(due)} to run; {place.words}",
        flush=True,
    )
    tasks = training_tasks(lists, place, compiled) | evaluation_tasks(groups, lists, place)
    tasks |= notebook_tasks(due, lists, groups, compiled)
    tasks = order_tasks(tasks, [job.label for job in due])
    news = _ProgressReport(lists, groups, {job.label: job for job in due})
    engine(tasks, place, news.tick, news.finished)
    _print_summary(jobs, news.seconds, news.failures, time.monotonic() - started)
    print(describe_reports(job.folder for job in jobs), flush=True)
    return 1 if news.failures else 0


class _ProgressReport:
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
                    "last line of its last cell"
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


def _print_summary(
    jobs: list[NotebookJob], seconds: dict[str, float], failures: dict[str, str], total: float
) -> None:
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
