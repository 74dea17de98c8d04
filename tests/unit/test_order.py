"""The order of notebooks and runs: pictures come early, and nobody waits for others' runs."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from kit.experiments.specification import RunSpec
from kit.jobs import batch_tasks, notebook_jobs
from kit.jobs.order import order_by_training, order_tasks, training_work, work_of_lists
from kit.jobs.tasks import Place, Task, simulate_tasks

CPU2 = Place(torch.device("cpu"), 2)


@pytest.fixture
def jobs(fresh_home):
    return notebook_jobs.plan_jobs([], {}, None, None)


def planned(jobs):
    """(runs of each notebook in order, lists of trainings, all tasks in order)."""
    needs = batch_tasks.untrained_runs(jobs)
    ordered = sorted(jobs, key=lambda job: list(needs).index(job.label))
    lists = batch_tasks.group_trainings(needs.values(), CPU2)
    groups = batch_tasks.group_evaluations(ordered, lists)
    tasks = batch_tasks.training_tasks(lists, CPU2)
    tasks |= batch_tasks.evaluation_tasks(groups, lists, CPU2)
    tasks |= batch_tasks.notebook_tasks(ordered, lists, groups)
    return needs, lists, order_tasks(tasks, list(needs))


def test_a_notebooks_runs_come_before_runs_that_no_earlier_notebook_needs(jobs):
    needs, lists, tasks = planned(jobs)
    assert tasks.keys() >= needs.keys() and tasks.keys() >= lists.keys()
    by_label = {job.label: job for job in jobs}
    allowed: set[str] = set()
    done: set[str] = set()
    labels = iter(needs)
    label = next(labels)
    for name in tasks:
        allowed |= {plan.key for plan in by_label[label].values.plans}
        if name in lists:
            assert {plan.key for plan in lists[name]} <= allowed, f"{name} comes before {label}"
            done |= {plan.key for plan in lists[name]}
        if name == label:
            assert {plan.key for plan in by_label[label].values.plans} <= done
            label = next(labels, label)
    assert name == label, "the last task is the last notebook"


def test_no_notebook_waits_for_runs_that_are_not_its_own(jobs):
    _, lists, tasks = planned(jobs)
    for job in jobs:
        own = {plan.key for plan in job.values.plans}
        earlier = {plan.key for name in tasks for plan in lists.get(name, ())}
        for title in tasks[job.label].after & lists.keys():
            keys = {plan.key for plan in lists[title]}
            assert keys & own and keys <= earlier


def test_the_first_picture_takes_one_run_and_the_others_follow_steadily(jobs):
    """As if every epoch took a second, and every notebook ten."""
    needs, lists, tasks = planned(jobs)
    work = {name: training_work(plans, {}) / 10 for name, plans in lists.items()}
    ends = {}
    for last in needs:
        some = {}
        for name, task in tasks.items():
            some[name] = task
            if name == last:
                break
        ends[last] = simulate_tasks(some, CPU2, {name: work.get(name, 10.0) for name in some})
    times = list(ends.values())
    assert times[0] < 0.1 * times[-1] and times == sorted(times)
    gaps = [after - before for before, after in pairwise(times)]
    assert (
        sum(time < times[-1] / 2 for time in times) >= len(times) / 2
        and max(gaps[:-1]) < 0.35 * times[-1]
    )


def test_equal_notebooks_stay_in_order_and_a_shared_burn_in_is_counted_once(jobs):
    every = [plan for job in jobs for plan in job.values.plans]
    first = [p for p in every if p.spec == RunSpec(p.spec.method, "digits", 0)]
    plans = {plan.spec.method: plan for plan in first}
    needs = {"b": [plans["mail-at"]], "a": [plans["at"]], "c": [plans["at"], plans["clirat"]]}
    assert list(order_by_training(needs)) == ["b", "a", "c"]
    assert order_by_training(needs)["c"] == [plans["clirat"]]
    alone = training_work([plans["at"]], {})
    shared = training_work([plans["at"]], {plans["mail-at"].burn_in_key: plans["mail-at"].burn_in})
    assert shared == alone * 15 / 40
    assert training_work([plans["mail-at"], plans["at"]], {}) == alone + shared
    assert work_of_lists([[plans["mail-at"]], [plans["at"]]]) == [alone, shared]
    assert work_of_lists([[plans["at"]], [plans["mail-at"]]]) == [alone, alone]


def test_what_nobody_wants_comes_last():
    tasks = {"a": Task(float), "b": Task(float, after=frozenset("a")), "c": Task(float)}
    assert list(order_tasks(tasks, ["c"])) == ["c", "a", "b"]
    assert list(order_tasks(tasks, ["b"])) == ["a", "b", "c"]
