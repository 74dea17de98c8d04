"""Batch reproduction: check the whole plan, train each run once, run the notebooks, say what was made.

The plan is read off the notebooks' own parameters. Trainings and notebooks run in worker processes that share the
cores; one that fails does not stop the others; a notebook whose stamp still fits is not run again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit import params, store
from kit.evaluate import evaluate
from kit.figures import output_folder
from kit.forecast import epochs_to_train, training_seconds
from kit.papers.grid import Ask
from kit.papers.measured import is_kept, trained_run
from kit.progress import duration, live
from kit.recipes import FIELDS
from kit.runs import device as pick_device
from kit.runs import folder_of
from kit.spec import Plan, RunSpec, companies, resolve
from kit.train import TOGETHER, run, run_many
from kit.types import KitError, unknown


def notebooks_folder() -> Path:
    return Path(__file__).resolve().parent.parent / "notebooks"


@dataclass(frozen=True)
class Job:
    """One notebook with the parameter values it is run with, and the folder that its results go to."""

    path: Path
    values: Mapping[str, Any]
    folder: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def label(self) -> str:
        """Its name in progress lines; the seed only where several are run."""
        return f"{self.name}, {self.folder.name}" if self.folder.name.startswith("seed-") else self.name

    @property
    def output(self) -> Path:
        return self.folder / self.path.name

    def stamp(self) -> str:
        """Hash of the notebook's code, its values, the keys of its runs, and the kit's source."""
        code = [cell["source"] for cell in json.loads(self.path.read_text())["cells"] if cell["cell_type"] == "code"]
        keys = [resolve(spec).key for spec in params.specs_of(self.values)]
        words = json.dumps([code, dict(self.values), keys, source_digest()], sort_keys=True)
        return hashlib.sha256(words.encode()).hexdigest()

    def is_done(self) -> bool:
        """Did it come to its end with this very stamp, and is everything that it made still there?"""
        path = self.folder / f"{self.name}.json"
        try:
            record = store.read_json(path)
        except KitError:
            return False
        return record.get("stamp") == self.stamp() and self.output.exists() and all(
            (self.folder / name).exists() for name in record.get("figures", []))


def source_digest() -> str:
    """Hash of the kit's own source files."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------- the plan

def choose(only: list[str]) -> list[Path]:
    """The notebooks whose names begin with one of `only`, in order; if it is empty the numbered ones, which draw the figures
    and take minutes. `tables` are asked for by name: they train every method with several seeds."""
    paths = sorted(notebooks_folder().glob("*.ipynb"))
    if not paths:
        raise KitError(f"there are no notebooks in {notebooks_folder()}; run this from a checkout of the project")
    words = [word.removesuffix(".ipynb") for word in only]
    for word in words:
        if not any(path.stem.startswith(word) for path in paths):
            raise unknown("notebook", word, [path.stem for path in paths])
    return [p for p in paths if (any(map(p.stem.startswith, words)) if words else p.stem[0].isdecimal())]


def plan(only: list[str], given: Mapping[str, Any], seeds: list[int] | None, out: Path | None) -> list[Job]:
    """One job per notebook and seed, every value checked.

    A given name that notebooks declare goes to those that do; any other is a setting of every run, and goes behind the
    notebook's own overrides.
    """
    tables = {path: params.of_notebook(path) for path in choose(only)}
    names = {name for table in tables.values() for name in table}
    settings = {name: value for name, value in given.items() if name not in names}
    for name in settings:
        if name not in FIELDS and name != "burn_in" and "." not in name:
            raise unknown("notebook parameter or run setting", name, names | {*FIELDS, "burn_in"})
    words = " ".join(f"{name}={json.dumps(value, separators=(',', ':'))}" for name, value in settings.items())
    jobs = []
    several = {"seeds": " ".join(map(str, seeds))} if seeds else {}
    seeds = seeds or [0]
    for seed in seeds:
        for path, table in tables.items():
            if "seeds" in table and seed != seeds[0]:
                continue     # one notebook for all of them
            mine = {name: value for name, value in {**several, **given, "seed": seed}.items() if name in table}
            if words:
                mine["overrides"] = f"{mine.get('overrides', table['overrides'].default)} {words}".strip()
            values = params.check(table, mine)
            folder = out or output_folder(values.get("recipe", "digits"))
            alone = len(seeds) == 1 or "seeds" in table
            jobs.append(Job(path, values, folder if alone else folder / f"seed-{seed}"))
    return jobs


def runs_of(jobs: list[Job]) -> list[RunSpec]:
    """Every run that the jobs need, once, in the order in which they are asked for."""
    unique = {}
    for job in jobs:
        for spec in params.specs_of(job.values):
            unique.setdefault(resolve(spec).key, spec)
    return list(unique.values())


def asks_for(jobs: list[Job]) -> dict[str, list[Ask]]:
    """{key of a run: what its notebooks evaluate it under}."""
    wanted: dict[str, list[Ask]] = {}
    for job in jobs:
        for spec, asks in params.asks_of(job.values):
            known = wanted.setdefault(resolve(spec).key, [])
            known += [ask for ask in asks if ask not in known]
    return wanted


def is_trained(spec: RunSpec) -> bool:
    return trained_run(spec) is not None


def is_ready(spec: RunSpec, asks: list[Ask]) -> bool:
    """Is it trained, and are its evaluations kept?"""
    trained = trained_run(spec)
    return trained is not None and all(is_kept(trained, ask) for ask in asks)


# ---------------------------------------------------------------------------------------------- workers

@contextlib.contextmanager
def worker_environment(jobs: int) -> Iterator[None]:
    """Child processes share the cores: two OpenMP pools on the same cores would spin each other to a standstill."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    wanted = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "KIT_LIVE": "0", "KIT_WIDGETS": "0"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def train_some(some: list[tuple[dict, list[Ask]]], device: str) -> float:
    """In a worker: train runs quietly, as one program where they fit together, and evaluate each under what its notebooks
    will ask for. -> the seconds it took. Errors: `KitError` that names the runs it failed at, after the others."""
    started, failures = time.monotonic(), []
    with contextlib.suppress(KitError):      # who cannot be trained says why below
        run_many([RunSpec(**words) for words, _ in some], device=device, quiet=True)
    for words, asks in some:
        try:
            trained = run(RunSpec(**words), device=device, quiet=True)
            for attack, n, which in asks:
                evaluate(trained, [attack], n=n, which=which, device=device, quiet=True)
        except KitError as error:
            failures.append(f"{RunSpec(**words)}: {error}" if len(some) > 1 else str(error))
    if failures:
        raise KitError("; ".join(failures))
    return time.monotonic() - started


def execute(path: str, output: str, values: dict, folder: str, stamp: str) -> float:
    """In a worker: run one notebook. -> its seconds. Its cells' and its kernel's chatter goes to a log beside the output."""
    started = time.monotonic()
    os.environ.update(KIT_OUT=folder, KIT_STAMP=stamp)
    os.environ.pop("JPY_SESSION_NAME", None)
    partial = Path(output).with_suffix(".partial.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with open(Path(output).with_suffix(".log"), "w") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
        import papermill
        try:
            papermill.execute_notebook(path, str(partial), parameters=values, progress_bar=False, log_output=False,
                                       request_save_on_cell_execute=False, cwd=str(Path(path).parent))
        except papermill.exceptions.PapermillExecutionError as error:
            os.replace(partial, output)
            first = f"{error.ename}: {error.evalue}" if error.ename != "KitError" else error.evalue
            raise KitError(f"cell {error.exec_count}: {first.splitlines()[0]}") from None
    os.replace(partial, output)
    return time.monotonic() - started


def pooled(tasks: dict[str, tuple[Callable, tuple]], jobs: int, tick: Callable[[set[str]], None],
           finished: Callable[[str, Exception | None, float], None]) -> None:
    """Run tasks, which return their seconds, in `jobs` worker processes. `finished` hears of each end, `tick` of the time
    between. A worker's death takes all tasks with it that have not ended: they are tried again, one by one, up to twice."""
    alone: list[str] = []
    with worker_environment(jobs):
        with _workers(jobs) as pool:
            futures: dict[Future, str] = {pool.submit(fn, *args): name for name, (fn, args) in tasks.items()}
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                tick({futures[future] for future in waiting if future.running()})
                for future in done:
                    if isinstance(future.exception(), BrokenProcessPool):
                        alone.append(futures[future])
                    else:
                        _report(future, futures[future], finished)
        for name in alone:
            _report(_alone(*tasks[name]), name, finished)


@contextlib.contextmanager
def _workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one. Ctrl-C ends them at once: all that they do can be gone on with."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_die_with, initargs=(os.getpid(),)) as pool:
        try:
            yield pool
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _die_with(parent: int) -> None:
    """A worker ends when the process that started it does, however that ends. Its notebooks' kernels watch it in turn."""
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


def _alone(fn: Callable, args: tuple, tries: int = 2) -> Future:
    with _workers(1) as pool:
        future = pool.submit(fn, *args)
        wait([future])
    again = isinstance(future.exception(), BrokenProcessPool) and tries > 1
    return _alone(fn, args, tries - 1) if again else future


def _report(future: Future, name: str, finished: Callable[[str, Exception | None, float], None]) -> None:
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        error = KitError("its process was killed twice, most likely because memory ran out; try --jobs 1")
    finished(name, error, 0.0 if error else future.result())


# ---------------------------------------------------------------------------------------------- the batch

def show_plan(jobs: list[Job], *, workers: int, device: str = "auto") -> None:
    """What would run, what is there already, and how long the trainings would take here."""
    left = epochs_to_train(runs_of(jobs))
    for plan, epochs in left:
        state = "trained" if not epochs else f"to train, {epochs} of {plan.recipe.epochs} epochs"
        print(f"  run       {plan.spec}: {state}")
    for job in jobs:
        print(f"  notebook  {job.name}: {'up to date' if job.is_done() else 'to run'} -> {job.folder}")
    if any(epochs for _, epochs in left):
        runs = f"training {sum(epochs > 0 for _, epochs in left)} runs, {workers} at a time,"
        try:
            seconds = training_seconds(runs_of(jobs), pick_device(device), workers)
            print(f"{runs} takes about {duration(seconds)} here, as a timed step tells; attacks and drawing come on top")
        except KitError as error:
            print(f"{runs} takes no one knows how long: {error}")


def reproduce(jobs: list[Job], *, workers: int, device: str = "auto", fresh: bool = False) -> int:
    """Train what is missing, run what is not up to date, print a table. -> 0, or 1 if anything failed."""
    pick_device(device)
    started = time.monotonic()
    specs = runs_of(jobs)
    asks = asks_for(jobs)
    missing = {str(spec): spec for spec in specs if not is_ready(spec, asks[resolve(spec).key])}
    untrained = sum(not is_trained(spec) for spec in missing.values())
    due = [job for job in jobs if fresh or not job.is_done()]
    attack = f", {len(missing) - untrained} to evaluate" if len(missing) > untrained else ""
    print(f"{len(specs)} runs, {untrained} to train{attack}; {len(jobs)} notebooks, {len(due)} to run; {workers} at a time",
          flush=True)
    failures: dict[str, str] = {}
    _train(missing, asks, workers, device, failures)
    seconds = _run_notebooks(due, workers, failures)
    _summary(jobs, seconds, failures, time.monotonic() - started)
    return 1 if failures else 0


def _train(missing: dict[str, RunSpec], asks: dict[str, list[Ask]], workers: int, device: str,
           failures: dict[str, str]) -> None:
    began, finished_count = time.monotonic(), 0
    most = min(TOGETHER[pick_device(device).type], -(-len(missing) // workers))
    waves = companies([resolve(spec) for spec in missing.values()], most)
    lists = {_title(plans): plans for wave in waves for plans in wave}

    def done_epochs(plan: Plan) -> int:
        return sum(1 for _ in (folder_of(plan) / "epochs").glob("*.npz"))

    def tick(running: set[str]) -> None:
        if live() and running:
            states = ", ".join(f"{lists[name][0].spec.method} {done_epochs(lists[name][0])}/{lists[name][0].recipe.epochs}"
                               for name in sorted(running))
            sys.stdout.write(f"\r  training {finished_count}/{len(missing)}: {states}".ljust(100)[:100])
            sys.stdout.flush()

    def finished(name: str, error: Exception | None, seconds: float) -> None:
        nonlocal finished_count
        finished_count += len(lists[name])
        if error is not None:
            failures[name] = str(error)
        left = (time.monotonic() - began) / finished_count * (len(missing) - finished_count)
        state = f"failed: {error}" if error else f"ready in {duration(seconds)}"
        print(f"{chr(13) if live() else ''}  [{finished_count}/{len(missing)}] {name}: {state}"
              f"{f' ({duration(left)} left)' if left >= 1 else ''}".ljust(100), flush=True)

    if missing:
        tasks = {name: (train_some, ([(plan.spec.words(), asks[plan.key]) for plan in plans], device))
                 for name, plans in lists.items()}
        pooled(tasks, min(workers, len(tasks)), tick, finished)


def _title(plans: list[Plan]) -> str:
    return f"{plans[0].spec}" + (f" and {len(plans) - 1} more" if len(plans) > 1 else "")


def _run_notebooks(due: list[Job], workers: int, failures: dict[str, str]) -> dict[str, float]:
    seconds: dict[str, float] = {}
    labels = {job.label: job for job in due}

    def finished(name: str, error: Exception | None, took: float) -> None:
        seconds[name] = took
        if error is None and not labels[name].is_done():
            error = KitError("it ended without its stamp: study.finish() was not reached")
        if error is not None:
            failures[name] = str(error)
        print(f"  {name}: {f'failed: {error}' if error else f'made in {duration(took)}'}", flush=True)

    if due:
        tasks = {name: (execute, (str(job.path), str(job.output), dict(job.values), str(job.folder), job.stamp()))
                 for name, job in labels.items()}
        pooled(tasks, min(workers, len(due)), lambda running: None, finished)
    return seconds


def _summary(jobs: list[Job], seconds: dict[str, float], failures: dict[str, str], total: float) -> None:
    width = max(len(job.label) for job in jobs) + 2
    print(f"\n{'notebook':<{width}}{'state':<12}{'seconds':>8}  figures")
    for job in jobs:
        state = "failed" if job.label in failures else "made" if job.label in seconds else "up to date"
        try:
            figures = [f[:-4] for f in store.read_json(job.folder / f"{job.name}.json")["figures"] if f.endswith(".png")]
        except KitError:
            figures = []
        made = ", ".join(figures) if state != "failed" else "-"
        print(f"{job.label:<{width}}{state:<12}{seconds.get(job.label, 0):>8.1f}  {made}")
    for folder in sorted({job.folder for job in jobs}):
        print(f"results in {folder}")
    for name, error in failures.items():
        print(f"FAILED {name}: {error}")
    print(f"{duration(total)} in all", flush=True)
