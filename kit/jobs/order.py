"""In which order notebooks and their runs are done, so that pictures come early and steadily."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from kit.experiments.specification import Plan, burn_in_leaders_first
from kit.jobs.tasks import Task

Label = TypeVar("Label")


def order_by_training(needs: Mapping[Label, Sequence[Plan]]) -> dict[Label, list[Plan]]:
    """Order notebooks so that each needs the least training beside what those before it need.

    `needs` has the runs of each that are not trained yet. Returned are, in order, those that no
    earlier notebook needs. Of equal ones the first that is given comes first.
    """
    left, order = dict(needs), {}
    planned: set[str] = set()
    burn_ins: dict[str, int] = {}
    while left:
        own = {label: _left_out(plans, planned) for label, plans in left.items()}
        label = min(own, key=lambda label: training_work(own[label], burn_ins))
        order[label] = own[label]
        planned |= {plan.key for plan in own[label]}
        burn_ins = shared_burn_ins(own[label]) | burn_ins
        del left[label]
    return order


def order_tasks(tasks: Mapping[str, Task], wanted: Sequence[str]) -> dict[str, Task]:
    """Put each of the `wanted` tasks, in order, right behind what it waits for; then the others.

    So a notebook's runs come before runs that no earlier notebook needs.
    """
    ordered: dict[str, Task] = {}

    def add(name: str) -> None:
        if name not in ordered:
            for earlier in filter(tasks[name].after.__contains__, tasks):
                add(earlier)
            ordered[name] = tasks[name]

    for name in [*wanted, *tasks]:
        add(name)
    return ordered


def training_work(plans: Sequence[Plan], burn_ins: Mapping[str, int]) -> int:
    """Count how often a training image is passed through a network until `plans` are trained.

    `burn_ins` are those that earlier runs leave behind: {burn-in key: epochs}.
    """
    reached, total = dict(burn_ins), 0
    for plan in burn_in_leaders_first(plans):
        begun = reached.get(plan.burn_in_key, 0)
        epochs = plan.recipe.epochs - (begun if begun <= plan.shared_epochs else 0)
        total += epochs * (1 + (plan.recipe.steps if plan.method.attack else 0))
        reached |= shared_burn_ins([plan]) if plan.burn_in_key not in reached else {}
    return total


def work_of_lists(lists: Iterable[Sequence[Plan]]) -> list[int]:
    """Return the `training_work` of lists of runs that are trained one after the other."""
    burn_ins: dict[str, int] = {}
    work = []
    for plans in lists:
        work.append(training_work(plans, burn_ins))
        burn_ins = shared_burn_ins(plans) | burn_ins
    return work


def shared_burn_ins(plans: Sequence[Plan]) -> dict[str, int]:
    """Return the burn-ins that runs leave to others: {burn-in key: epochs}."""
    return {plan.burn_in_key: plan.burn_in for plan in plans if plan.burn_in}


def _left_out(plans: Sequence[Plan], keys: set[str]) -> list[Plan]:
    return list({plan.key: plan for plan in plans if plan.key not in keys}.values())
