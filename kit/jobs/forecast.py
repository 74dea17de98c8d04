"""How long the trainings and the evaluations will take.

Epochs are counted, steps are timed on this device, and nothing is kept. What is timed is what will
be done: networks that are trained together are timed together, and so are their probes, the files
of an epoch and the last pass over all images. `python -m tests.benchmarks.check_forecast` sets it
beside real runs.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from kit.core.files import home, write_json
from kit.core.progress import Progress
from kit.data.splits import DataSet, Split
from kit.experiments.devices import pick_device, threads_for
from kit.experiments.runs import is_done, run_folder
from kit.experiments.specification import (
    Plan,
    burn_in_leaders_first,
    group_for_stacking,
)
from kit.jobs.evaluation_costs import EvaluationClock
from kit.jobs.flops import count_flops, sample_data
from kit.jobs.tasks import Place, Task, simulate_tasks, threads_per_worker
from kit.models.architectures import SMALL
from kit.papers.table_runs import Evaluation
from kit.training.checkpoint import TrainingState, initial_state
from kit.training.loop import run_epoch, train_epoch, train_epoch_stacked
from kit.training.observation import observe_split
from kit.training.runner import STACKED_NETWORKS

#: Images that a timed epoch has in each split.
TIMED_IMAGES = 256

#: The least such images of deep networks on a CPU, where many would take minutes, and operations
#: that take about a second there: with fewer, setting up would be most of what is timed.
FEW_TIMED_IMAGES, TIMED_OPERATIONS = 4, 5e10

#: Seconds after which a piece of work is not timed once more on a CPU.
TIMING_SECONDS = 0.5


def epochs_to_train(plans: Iterable[Plan]) -> list[tuple[Plan, int]]:
    """List (plan, epochs to train) in the order of `burn_in_leaders_first`.

    Epochs that are trained already, or shared with an earlier run, are not counted.
    """
    left: list[tuple[Plan, int]] = []
    reached: dict[str, int] = {}
    for plan in burn_in_leaders_first(plans):
        folder, shared = run_folder(plan), reached.get(plan.burn_in_key, 0)
        there = sum(1 for _ in (folder / "epochs").glob("*.npz"))
        shared = shared if shared <= plan.shared_epochs else 0
        left.append((plan, 0 if is_done(folder) else plan.recipe.epochs - max(there, shared)))
        if plan.burn_in:
            reached.setdefault(plan.burn_in_key, plan.burn_in)
    return left


# -------------------------------------------------------------------------------------- one program


class TrainingCost(NamedTuple):
    """Seconds of networks that are trained together.

    They are those of an epoch of the last one's kind, and those of the pass over all images.
    """

    epoch: float
    final: float


def measure_cost(plans: Sequence[Plan], device: torch.device) -> TrainingCost:
    """Measure the cost of `plans`, which fit together, by epochs on a few images.

    They are trained in a folder that is gone afterwards. Small networks are trained on one thread,
    as they would be; that others are trained beside them is not counted.
    """
    recipe = plans[0].recipe
    small = recipe.model in SMALL
    host, sizes = sample_data(plans[0], _timed_images(plans[0], device))
    data = host.to(device)
    home().mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=home(), prefix=".forecast-") as folder,
        threads_for(recipe.model, device),
    ):
        states = [_state_before_last(plan, host, device, Path(folder) / plan.key) for plan in plans]
        networks = [state.model for state in states]
        step = _median_seconds(
            lambda: _train_epoch(states, data.train, recipe.epochs), device, small
        ) / len(data.train)
        observing = _median_seconds(
            lambda: observe_split(networks, plans, data.test, "forecast"), device, small
        ) / len(data.test)
        whole = (
            _median_seconds(lambda: _run_last_epoch(states, data), device, small) if small else 0.0
        )
    here, there = (
        step * n[0] + observing * sum(min(recipe.probe, part) for part in n)
        for n in (tuple(map(len, (data.train, data.validation, data.test))), sizes)
    )
    return TrainingCost(there + max(0.0, whole - here), observing * (sizes.train + sizes.test))


def _timed_images(plan: Plan, device: torch.device) -> int:
    """How many images a run is timed with."""
    if plan.recipe.model in SMALL or device.type != "cpu":
        return TIMED_IMAGES
    _, sizes = sample_data(plan, 1)
    for_each = count_flops(plan).final / (sizes.train + sizes.test)
    return int(min(TIMED_IMAGES, max(FEW_TIMED_IMAGES, TIMED_OPERATIONS // for_each)))


def _state_before_last(
    plan: Plan, host: DataSet, device: torch.device, folder: Path
) -> TrainingState:
    """A network at its beginning, in a folder of its own.

    It does not reweight: some weights of a network that has learned nothing yet would be refused,
    and they take no time to speak of.
    """
    plan = replace(plan, burn_in=plan.recipe.epochs + 1)
    write_json(folder / "run.json", {})
    return initial_state(plan, host, device, folder)


def _train_epoch(states: Sequence[TrainingState], split: Split, epoch: int) -> None:
    """Train networks that fit together for an epoch."""
    if len(states) == 1:
        train_epoch(states[0], split, epoch)
    else:
        train_epoch_stacked(states, split, epoch)


def _run_last_epoch(states: Sequence[TrainingState], data: DataSet) -> None:
    """An epoch with its probes and files."""
    for state in states:
        state.epoch, state.history = state.plan.recipe.epochs - 1, []
    run_epoch(states, data)


def _median_seconds(work: Callable[[], object], device: torch.device, short: bool) -> float:
    """How long `work` takes.

    It is the median of five, warmed up, or of as many as `TIMING_SECONDS` allow. What is not short
    is timed once on a CPU, and twice elsewhere.
    """
    found: list[float] = []
    for _ in range(6 if short else 1 + (device.type != "cpu")):
        if sum(found) > TIMING_SECONDS and device.type == "cpu":
            break
        started = time.monotonic()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.monotonic() - started)
    return median(found[len(found) > 1 :])


# --------------------------------------------------------------------------------------------- many


class CostClock:
    """A clock that times each kind of program once.

    Of deep networks it times one for each architecture and data set: the others take as much longer
    as they compute more.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.known: dict[tuple, tuple[Plan, TrainingCost]] = {}

    def __call__(self, plans: Sequence[Plan]) -> TrainingCost:
        """Say what networks cost that are trained together."""
        plan = plans[0]
        if plan.recipe.model in SMALL:
            return self._once((plan.stack_key or plan.key, len(plans)), plans)[1]
        timed, known = self._once(
            (plan.recipe.model, plan.recipe.data, plan.recipe.precision), plans
        )
        mine, its = count_flops(plan), count_flops(timed)
        return TrainingCost(
            known.epoch * mine.epoch / its.epoch, known.final * mine.final / its.final
        )

    def _once(self, kind: tuple, plans: Sequence[Plan]) -> tuple[Plan, TrainingCost]:
        if kind not in self.known:
            self.known[kind] = plans[0], measure_cost(plans, self.device)
        return self.known[kind]


def forecast_seconds(lists: Mapping[str, Sequence[Plan]], place: Place) -> dict[str, float]:
    """Forecast the seconds of each list of runs that one process of the place trains.

    Steps are timed here.

    Raises:
        KitError: This machine has no such device.
    """
    clock, threads = CostClock(pick_device(str(place.device))), threads_per_worker(place.slots)
    epochs = {
        plan.key: n
        for plan, n in epochs_to_train(plan for plans in lists.values() for plan in plans)
    }
    found: dict[str, float] = {}
    with _torch_threads(threads), Progress("timing steps", len(lists), brief=True) as progress:
        for title, plans in lists.items():
            progress.update(len(found), title)
            found[title] = _list_seconds(plans, epochs, clock, threads)
    return found


def forecast_evaluations(
    groups: Mapping[str, Iterable[tuple[Plan, Iterable[Evaluation]]]], place: Place
) -> dict[str, float]:
    """Forecast the seconds of each group of evaluations that one process of the place makes.

    Passes are timed here.

    Raises:
        KitError: This machine has no such device.
    """
    clock = EvaluationClock(pick_device(str(place.device)))
    with _torch_threads(threads_per_worker(place.slots)):
        return {
            title: sum(clock(plan, ask) for plan, asks in some for ask in asks)
            for title, some in groups.items()
        }


@contextlib.contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    """Within, PyTorch computes on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _list_seconds(
    plans: Sequence[Plan], epochs: Mapping[str, int], clock: CostClock, threads: int
) -> float:
    """The seconds of runs as `kit.training.runner.run_many` trains them.

    It trains them in programs, small ones on as many threads as there are.
    """
    due = [plan for plan in plans if not is_done(run_folder(plan))]
    side = threads if due and due[0].recipe.model in SMALL and clock.device.type == "cpu" else 1
    total = 0.0
    for wave in group_for_stacking(
        due, min(STACKED_NETWORKS[clock.device.type], -(-len(due) // side))
    ):
        programs = {str(i): _program_seconds(some, epochs, clock) for i, some in enumerate(wave)}
        # The tasks are not done: only their order and their seconds count.
        total += simulate_tasks(
            {name: Task(float) for name in programs}, Place(clock.device, side), programs
        )
    return total


def _program_seconds(plans: Sequence[Plan], epochs: Mapping[str, int], clock: CostClock) -> float:
    """The seconds of networks that are trained in step.

    Those that have more epochs to go than others go through them without those.
    """
    ahead, total = 0, clock(plans).final
    ordered = sorted(plans, key=lambda plan: epochs[plan.key])
    for i, plan in enumerate(ordered):
        if epochs[plan.key] > ahead:
            total += (epochs[plan.key] - ahead) * clock(ordered[i:]).epoch
            ahead = epochs[plan.key]
    return total
