"""The tasks of a batch: trainings, evaluations and notebooks, and what each waits for."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from kit.core.environment import changed_environment, notebook_variables
from kit.core.errors import KitError
from kit.evaluation.accuracy import evaluate
from kit.experiments.runs import run_of
from kit.experiments.specification import Plan, RunSpec, group_for_stacking, resolve
from kit.jobs.notebook_jobs import NotebookJob, is_trained
from kit.jobs.order import order_by_training, shared_burn_ins
from kit.jobs.tasks import Place, Task
from kit.models.architectures import SMALL
from kit.notebook.journal import journal_path, note_cell
from kit.papers.measured_cells import is_kept
from kit.papers.table_runs import Evaluation
from kit.training.runner import STACKED_NETWORKS, run_many

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
