"""A budget of minutes: which runs and evaluations decide the most claims in it, and doing them.

Steps and passes are timed on the device for seconds (`kit.jobs.budget_costs`), and the questions
that bring most are chosen (`kit.jobs.budget_questions`). Where the full schedule cannot fit it is
shortened in proportion, and the recipe's name says so. What is finished counts as done, so a second
budget goes on where the first one stopped.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from kit.core.errors import KitError, describe_value
from kit.core.files import read_json, write_json
from kit.core.progress import format_duration
from kit.core.threads import OutOfTime, end_by
from kit.evaluation.accuracy import evaluate
from kit.experiments.devices import DeviceLost
from kit.experiments.recipes import find_recipe, shortened_name, unshortened_name
from kit.experiments.runs import Run, is_done, output_folder, run_folder, run_of
from kit.experiments.specification import RunSpec, burn_in_leaders_first, resolve
from kit.figures.base import plain
from kit.figures.table import FIGURES, draw
from kit.jobs.budget_costs import (
    BudgetCosts,
    Clock,
    count_epochs,
    reckon_costs,
    timed_clock,
)
from kit.jobs.budget_questions import (
    CORE_METHODS,
    PICTURE_EVALUATIONS,
    PICTURES,
    BudgetQuestion,
    QuestionList,
    choose_questions,
    list_questions,
)
from kit.models.architectures import SMALL
from kit.papers.claim_verdict import FEWEST_SEEDS
from kit.papers.measured_cells import is_kept
from kit.papers.record import measure_scale, write_record
from kit.papers.table_runs import Evaluation
from kit.training.runner import run, run_many

#: The first of them: the schedule is as long as lets their questions fit.
FIRST_METHODS = CORE_METHODS[:5]

#: The shortest schedule: its burn-in, both milestones and its end are still different epochs.
LEAST_EPOCHS = 8

#: Lengths of the schedule that are tried, as shares of the full one.
SCHEDULE_SHARES = (1.0, 0.75, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.125, 0.1, 0.08)

#: The share of a budget that is kept for pictures and the record, and the most of it in seconds.
RESERVED_SHARE, MOST_RESERVED = 0.1, 40.0


def parse_duration(text: str) -> float:
    """Return the seconds of 90s, 12m or 1.5h.

    Raises:
        KitError: It is no duration, or it is none at all.
    """
    words = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(s|m|min|h)", text.strip())
    seconds = float(words[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[words[2]] if words else 0.0
    if not 0 < seconds < math.inf:
        raise KitError(
            f"budget={describe_value(text)} is not a duration above 0; write a number with s, "
            "m or h behind it, such as 90s, 12m or 1.5h"
        )
    return seconds


# ----------------------------------------------------------------------------------- the schedule


@dataclass
class BudgetPlan:
    """What a budget is spent on: a recipe, perhaps shortened, its questions, what they cost.

    `chosen` are those that fit; `given_up` are those whose runs could not be trained.
    """

    found: QuestionList
    costs: BudgetCosts
    chosen: list[BudgetQuestion] = field(default_factory=list)
    given_up: list[BudgetQuestion] = field(default_factory=list)

    @property
    def due(self) -> list[BudgetQuestion]:
        """The questions that need something still, and are not given up."""
        return [
            question
            for question in self.found.questions
            if not question.needs <= self.costs.done and question not in self.given_up
        ]

    @property
    def recipe(self) -> str:
        """The recipe's name, which says by how much its schedule is shortened."""
        return self.found.recipe

    def seconds(self, questions: Iterable[BudgetQuestion]) -> float:
        """Return the seconds of some questions together."""
        return self.costs(frozenset().union(*(question.needs for question in questions)))


def time_for_work(budget: float) -> float:
    """Return the seconds of a budget that are left for runs when pictures have theirs."""
    return budget - min(RESERVED_SHARE * budget, MOST_RESERVED)


def budget_for_work(seconds: float) -> float:
    """Return the budget that leaves so many seconds for runs."""
    return min(seconds / (1 - RESERVED_SHARE), seconds + MOST_RESERVED)


def plan_budget(recipe: str, budget: float, clock: Clock) -> BudgetPlan:
    """Choose the length of the schedule, and what to do within a budget of seconds.

    A schedule that was begun is gone on with. Else it is the longest in which the questions on
    `FIRST_METHODS` fit, or the shortest where they do not.

    Raises:
        KitError: Nothing fits; it says what would.
    """
    names = schedule_names(recipe)
    names = [name for name in names if is_begun(name)][:1] or names
    plan_of = cache(lambda name: plan_schedule(name, budget, clock))
    # What fits in a schedule fits in every shorter one.
    place = bisect_left(names, True, key=lambda name: _answers_the_first(plan_of(name)))
    plan = plan_of(names[min(place, len(names) - 1)])
    if plan.due and not plan.chosen:
        least = min(plan.due, key=lambda question: plan.costs(question.needs))
        enough = math.ceil(budget_for_work(plan.costs(least.needs)))
        raise KitError(
            f"a budget of {budget:g}s is too small for anything on {plan.recipe}; the least that "
            f"would do is {enough}s, for {least.title}: {FEWEST_SEEDS} seeds of "
            f"{', '.join(least.methods)}"
        )
    return plan


def plan_schedule(recipe: str, budget: float, clock: Clock) -> BudgetPlan:
    """Choose what to do within a budget of seconds on this very recipe; perhaps nothing fits."""
    found = list_questions(recipe)
    costs = reckon_costs(found, clock)
    costs.look_what_is_done()
    plan = BudgetPlan(found, costs)
    plan.chosen = list(choose_questions(plan.due, costs, time_for_work(budget)))
    return plan


def schedule_names(recipe: str) -> list[str]:
    """List the names of a recipe's schedules, the longest first; its own if it is shortened."""
    if recipe != unshortened_name(recipe):
        return [recipe]
    epochs = find_recipe(recipe).epochs
    least = min(LEAST_EPOCHS, epochs)
    lengths = [*(max(round(share * epochs), least) for share in SCHEDULE_SHARES), least]
    return [shortened_name(recipe, length) for length in dict.fromkeys(lengths)]


def is_begun(recipe: str) -> bool:
    """Say whether a run of the first methods was begun on a recipe."""
    return any(
        count_epochs(resolve(RunSpec(method, recipe, seed)))
        for method in FIRST_METHODS
        for seed in range(FEWEST_SEEDS)
    )


def _answers_the_first(plan: BudgetPlan) -> bool:
    first = [question for question in plan.due if set(question.methods) <= set(FIRST_METHODS)]
    return all(question in plan.chosen for question in first)


def describe_plan(plan: BudgetPlan, budget: float, clock: Clock, place: str) -> str:
    """Say what a budget is spent on, what that takes, and what the full list would take."""
    there = len(plan.found.questions) - len(plan.due)
    lines = [
        f"{plan.recipe}: {len(plan.chosen)} of {len(plan.found.questions)} questions in "
        f"{format_duration(plan.seconds(plan.chosen))} of {format_duration(budget)} on {place}"
        + (f"; {there} are answered already" if there else "")
    ]
    for i, question in enumerate(plan.chosen):
        more = plan.seconds(plan.chosen[: i + 1]) - plan.seconds(plan.chosen[:i])
        share = "" if question.worth == 1 else f" ({question.worth:.0%} of its statements)"
        lines.append(
            f"  {question.title}{share}: {FEWEST_SEEDS} seeds of {', '.join(question.methods)}; "
            f"{format_duration(more)}"
        )
    full = unshortened_name(plan.recipe)
    whole = list_questions(full)
    seconds = reckon_costs(whole, clock)(whole.needs)
    lines.append(
        f"the full list on {full}: {len(whole.questions)} questions, "
        f"{len(whole.plans)} runs of {find_recipe(full).epochs} epochs, {seconds / 60:,.0f} minutes"
    )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------ the spending


def spend_budget(
    recipe: str,
    budget: float,
    device: torch.device,
    *,
    started: float | None = None,
    only_plan: bool = False,
) -> str:
    """Answer what a budget of seconds can answer, draw and record it; say what is done.

    The budget runs from `started`, as `time.monotonic()` said then; from now if it is not given.

    Returns:
        The recipe's name, perhaps that of a shortened one.

    Raises:
        KitError: The budget is too small for anything, or the device was lost.
    """
    ends = (time.monotonic() if started is None else started) + budget
    clock = timed_clock(device)
    plan = plan_budget(recipe, budget, clock)
    print(describe_plan(plan, budget, clock, str(device)), flush=True)
    if only_plan:
        return plan.recipe
    lost: DeviceLost | None = None
    try:
        answer_questions(plan, ends - budget + time_for_work(budget), device)
    except DeviceLost as error:  # pictures need no device
        lost = error
    write_results(plan.recipe, plan.found.questions)
    if lost is not None:
        raise lost
    left = max(0.0, ends - time.monotonic())
    print(f"{format_duration(left)} of the budget are left", flush=True)
    return plan.recipe


def answer_questions(plan: BudgetPlan, ends: float, device: torch.device) -> None:
    """Train and evaluate for one question after the other, until none fits before `ends`.

    What a question took corrects what the others are reckoned with. One whose runs cannot be
    trained is given up, and says why.

    Raises:
        DeviceLost: The device was lost.
    """
    costs = plan.costs
    while True:
        left = ends - time.monotonic()
        question = next(choose_questions(plan.due, costs, left), None)
        if question is None:
            return
        reckoned, started = costs(question.needs) / costs.pace, time.monotonic()
        try:
            answer_question(plan, question, ends, device)
        except OutOfTime:
            print(f"{question.title}: its time is over; finished epochs are kept", flush=True)
            return
        except DeviceLost:
            raise
        except KitError as error:
            print(f"{question.title}: given up: {error}", flush=True)
            plan.given_up.append(question)
            continue
        finally:
            costs.look_what_is_done()
        took = time.monotonic() - started
        costs.pace = max(took / reckoned, 0.1) if reckoned > 1 else costs.pace
        print(f"{question.title}: measured in {format_duration(took)}", flush=True)


def answer_question(
    plan: BudgetPlan, question: BudgetQuestion, ends: float, device: torch.device
) -> None:
    """Train and evaluate what a question needs; training ends in time to evaluate.

    Networks that fit together are trained as one program; others are evaluated before the next one
    is trained, so that whatever ends this leaves what can be used.

    Raises:
        OutOfTime: It did not come to its end before `ends`.
    """
    keys = {key for key, _ in question.needs}
    plans = burn_in_leaders_first(p for key, p in plan.found.plans.items() if key in keys)
    groups = [plans] if plans[0].recipe.model in SMALL else [[each] for each in plans]
    for some in groups:
        mine = {each.key for each in some}
        asks = [
            (key, ask)
            for key, ask in sorted(question.needs - plan.costs.done, key=str)
            if key in mine and isinstance(ask, Evaluation)
        ]
        later = plan.costs.pace * sum(plan.costs.asked[need] for need in asks)
        with end_by(ends - later):
            run_many(some, device=str(device))
        with end_by(ends):
            for key, (attack, n, which) in asks:
                trained = run(plan.found.plans[key], device=str(device), quiet=True)
                evaluate(trained, [attack], n=n, which=which, device=str(device))


# -------------------------------------------------------------------------------------- the results


def write_results(recipe: str, questions: Sequence[BudgetQuestion]) -> list[Path]:
    """Draw what finished runs show, and write the record of their recipe beside the pictures.

    What cannot be drawn says so in a line. Pictures of one run are drawn for each seed.

    Returns:
        The files that were written.
    """
    methods = dict.fromkeys(method for question in questions for method in question.methods)
    done = {
        seed: {
            method: run_of(plan)
            for method in methods
            if is_done(run_folder(plan := resolve(RunSpec(method, recipe, seed))))
        }
        for seed in range(FEWEST_SEEDS)
    }
    folder, written = output_folder(recipe), []
    for seed, runs in done.items():
        drawn = [name for name in PICTURES if not FIGURES[name].any]
        written += _draw_stamped(drawn, recipe, runs, folder / f"seed-{seed}", {"seed": seed})
    shared = [method for method in methods if all(method in runs for runs in done.values())]
    runs = {f"{method} {seed}": mine[method] for seed, mine in done.items() for method in shared}
    drawn = [name for name in PICTURES if FIGURES[name].any]
    seeds = " ".join(map(str, done))
    written += _draw_stamped(drawn, recipe, runs, folder, {"seeds": seeds})
    if any(done.values()):
        try:
            write_record(measure_scale(recipe), folder / "measured.csv")
            written.append(folder / "measured.csv")
        except KitError as error:
            print(f"the record: {error}", flush=True)
    return written


def _draw_stamped(
    names: Sequence[str],
    recipe: str,
    runs: Mapping[str, Run],
    folder: Path,
    parameters: Mapping[str, Any],
) -> list[Path]:
    """Draw pictures, and leave a stamp that holds what they decide, as a notebook does.

    Where a stamp of these very runs is there, they are drawn already.
    """
    path, keys = folder / "budget.json", {str(found.spec): found.key for found in runs.values()}
    taken = {
        name: mine
        for name in names
        if (mine := [found for found in runs.values() if found.method in FIGURES[name].methods])
        and {found.method for found in mine} == set(FIGURES[name].methods)
        and (
            name not in PICTURE_EVALUATIONS
            or all(is_kept(found, PICTURE_EVALUATIONS[name]) for found in mine)
        )
    }
    with contextlib.suppress(KitError, KeyError, TypeError):  # a damaged or foreign one is replaced
        before = read_json(path)
        if (before["runs"], before["pictures"]) == (keys, list(taken)):
            return []
    drawings = []
    for name, mine in taken.items():
        try:
            drawings.append(draw(name, mine, folder=folder))
        except KitError as error:
            print(f"{name}: {error}", flush=True)
    if not drawings:
        return []
    stamp = {
        "notebook": "budget",
        "parameters": {"recipe": recipe, **parameters},
        "runs": keys,
        "pictures": list(taken),
        "verdicts": [claim.record() for drawing in drawings for claim in drawing.claims],
    }
    write_json(path, plain(stamp))
    return [*(file for drawing in drawings for file in drawing.files), path]
