"""What the work of a budget takes on a device: timed for seconds, or computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from kit.experiments.runs import is_done, run_folder, run_of
from kit.experiments.specification import Plan, resolve
from kit.jobs.budget_questions import (
    NeededWork,
    QuestionList,
)
from kit.jobs.evaluation_costs import EvaluationClock
from kit.jobs.flops import RunFlops, count_flops
from kit.jobs.forecast import measure_cost
from kit.papers.claim_verdict import FEWEST_SEEDS
from kit.papers.measured_cells import is_kept
from kit.papers.table_runs import Evaluation


class Rate(NamedTuple):
    """Seconds of a run on a device: of one epoch, and of the pass over all images at its end."""

    epoch: float
    final: float


@dataclass
class BudgetCosts:
    """What work takes on a device, as was timed there or computed, and what is done already.

    `rates` are of runs by their keys, `asked` of evaluations and pictures. `pace` is how much
    longer work took than it was reckoned with.
    """

    plans: Mapping[str, Plan]
    rates: Mapping[str, Rate]
    asked: Mapping[NeededWork, float]
    pace: float = 1.0
    done: frozenset[NeededWork] = frozenset()
    reached: Mapping[str, float] = field(default_factory=dict)

    def look_what_is_done(self) -> None:
        """Read from the runs' folders which epochs and evaluations are there."""
        self.reached = {key: count_epochs(plan) for key, plan in self.plans.items()}
        self.done = frozenset(
            (key, ask)
            for key, ask in self.asked
            if self.reached[key] == math.inf
            and (not isinstance(ask, Evaluation) or is_kept(run_of(self.plans[key]), ask))
        )

    def __call__(self, needs: Collection[NeededWork]) -> float:
        """Return the seconds of all these together, each run and each burn-in once."""
        keys = {key for key, _ in needs}
        leaders: dict[str, str] = {}
        for key in sorted(keys, key=lambda key: self.plans[key].burn_in):
            leaders[self.plans[key].burn_in_key] = key
        total = sum(self.asked[need] for need in needs if need not in self.done)
        for key in keys:
            plan, there = self.plans[key], self.reached.get(key, 0)
            leader = self.plans[leaders[plan.burn_in_key]]
            if leader.key != key and leader.burn_in <= plan.shared_epochs:
                there = max(there, leader.burn_in)
            if there != math.inf:
                rate = self.rates[key]
                total += (plan.recipe.epochs - there) * rate.epoch + rate.final
        return self.pace * total


def count_epochs(plan: Plan) -> float:
    """Count the epochs of a run that are on the disk; infinitely many if it is finished."""
    folder = run_folder(plan)
    return math.inf if is_done(folder) else sum(1 for _ in (folder / "epochs").glob("*.npz"))


#: It tells the rate of a plan's run, and the seconds of n images' evaluation under an attack.
Clock = tuple[Callable[[Plan], Rate], Callable[[Plan, Evaluation], float]]

#: Seconds that a picture is reckoned with.
PICTURE_SECONDS = 2.0


def reckon_costs(found: QuestionList, clock: Clock) -> BudgetCosts:
    """Reckon what the questions' work takes by a clock; runs of one method cost alike."""
    rate_of, seconds_of = clock
    rates: dict[tuple, Rate] = {}
    seconds: dict[tuple, float] = {}

    def kind(plan: Plan) -> tuple:
        return plan.spec.method, str(plan.spec.overrides)

    for plan in found.plans.values():
        if kind(plan) not in rates:
            rates[kind(plan)] = rate_of(plan)
    asked = {}
    for key, ask in found.needs:
        plan = found.plans[key]
        known = plan.recipe.model, ask
        if known not in seconds:
            seconds[known] = (
                seconds_of(plan, ask) if isinstance(ask, Evaluation) else PICTURE_SECONDS
            )
        asked[key, ask] = seconds[known]
    return BudgetCosts(
        found.plans, {key: rates[kind(plan)] for key, plan in found.plans.items()}, asked
    )


def timed_clock(device: torch.device) -> Clock:
    """Return a clock that times one kind of run for each network, and passes by batch size.

    Other methods take as much longer as they compute more.
    """
    known: dict[str, tuple[RunFlops, Rate]] = {}
    flops: dict[tuple[str, ...], RunFlops] = {}

    def rate_of(plan: Plan) -> Rate:
        # An epoch takes as long in a short schedule as in a long one.
        kind = plan.spec.method, str(plan.spec.overrides), plan.recipe.model
        if kind not in flops:
            flops[kind] = count_flops(plan)
        mine = flops[kind]
        if plan.recipe.model not in known:
            known[plan.recipe.model] = mine, measure_rate(plan, device)
        its, rate = known[plan.recipe.model]
        return Rate(rate.epoch * mine.epoch / its.epoch, rate.final * mine.final / its.final)

    return rate_of, EvaluationClock(device)


def measure_rate(plan: Plan, device: torch.device) -> Rate:
    """Time epochs of a run; of a small network as it is trained, with other seeds beside it."""
    beside = FEWEST_SEEDS if plan.stack_key else 1
    cost = measure_cost([resolve(replace(plan.spec, seed=i)) for i in range(beside)], device)
    return Rate(cost.epoch / beside, cost.final / beside)
