"""A budget of minutes: which runs and evaluations decide the most claims in it, and doing them.

Steps and passes are timed on the device for seconds. `choose_questions` then takes, one after the
other, the question that brings the most answers for the seconds that it adds: shared runs and
burn-ins count once, and a question is three seeds of each of its runs, for fewer decide nothing.
Where the full schedule cannot fit it is shortened in proportion, and the recipe's name says so.
What is finished counts as done, so a second budget goes on where the first one stopped.
"""

from __future__ import annotations

import contextlib
import math
import re
import textwrap
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pandas as pd
import torch

from kit.attacks.contract import frozen
from kit.attacks.table import ATTACKS
from kit.core.errors import KitError, describe_value
from kit.core.files import read_json, write_json
from kit.core.progress import format_duration
from kit.core.random_streams import Streams
from kit.core.threads import OutOfTime, end_by
from kit.core.threat import Threat
from kit.evaluation.accuracy import ATTACK_BATCH, evaluate
from kit.experiments.devices import DeviceLost, threads_for
from kit.experiments.recipes import find_recipe, shortened_name, unshortened_name
from kit.experiments.runs import Run, is_done, output_folder, run_folder, run_of
from kit.experiments.specification import Plan, RunSpec, burn_in_leaders_first, resolve
from kit.figures.base import plain
from kit.figures.table import FIGURES, draw
from kit.jobs.flops import RunFlops, count_flops, sample_data
from kit.jobs.forecast import measure_cost
from kit.models.architectures import SMALL, build_network
from kit.papers.claim_verdict import FEWEST_SEEDS
from kit.papers.figure_verdicts import is_about, trained_on
from kit.papers.measured_cells import is_kept
from kit.papers.measured_rules import Cells
from kit.papers.printed_data import PAPERS, main_setting
from kit.papers.printed_rules import claims
from kit.papers.record import measure_scale, write_record
from kit.papers.rule_language import REDUCTIONS, STEP_BOUNDS, Expression, Rule, Term, read_rules
from kit.papers.table_runs import Evaluation, Need, chosen_tables, grid
from kit.training.runner import run, run_many

#: The methods that matter most, in order; each with those that share its burn-in, and the twins
#: that have another's normaliser. Of questions that are equally cheap the earlier one is taken.
CORE_METHODS = (
    "at",
    "mail-at",
    "clirat",
    "mail-at-printed",
    "clirat-x3",
    "vir-at",
    "vir-at-mean",
    "gairat",
    "trades",
    "mail-trades",
    "mail-trades-mean",
    "vir-trades",
    "vir-trades-mean",
    "mr-mail",
    "wmmr",
)

#: The first of them: the schedule is as long as lets their questions fit.
FIRST_METHODS = CORE_METHODS[:5]

#: The shortest schedule: its burn-in, both milestones and its end are still different epochs.
LEAST_EPOCHS = 8

#: Lengths of the schedule that are tried, as shares of the full one.
SCHEDULE_SHARES = (1.0, 0.75, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.125, 0.1, 0.08)

#: Pictures that take nothing but what runs stored: no network passes an image for them.
PICTURES = (
    "confused-labels",
    "confused-label-counts",
    "pm-and-cl-pm",
    "margin-regions",
    "pm-by-lps",
    "margin-by-probability",
    "same-margin",
    "similarity-by-error",
    "similarity-pair",
    "mail-normalisation",
    "class-weights",
    "criterion-and-normaliser",
)

#: What some of them take beside it: an evaluation of each run, which must be kept.
PICTURE_EVALUATIONS = {"criterion-and-normaliser": Evaluation("pgd100")}

#: The share of a budget that is kept for pictures and the record, and the most of it in seconds.
RESERVED_SHARE, MOST_RESERVED = 0.1, 40.0

#: The share of images for which a search runs to its end; those that break leave it early.
WITHSTANDING_SHARE = 0.5

#: Images that passes of deep networks are timed with on a CPU.
TIMED_PASS_IMAGES = 8

#: What a question needs: a run's key, and what is made of the run: an evaluation, or a picture.
NeededWork = tuple[str, Hashable]


def parse_duration(text: str) -> float:
    """Return the seconds of 90s, 12m or 1.5h.

    Raises:
        KitError: It is no duration, or it is none at all.
    """
    words = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(s|m|min|h)", text.strip())
    seconds = float(words[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[words[2]] if words else 0.0
    if not 0 < seconds < math.inf:
        raise KitError(
            f"budget={describe_value(text)} is no duration above 0; write a number with s, m or h "
            "behind it, such as 90s, 12m or 1.5h"
        )
    return seconds


# --------------------------------------------------------------------------------------- the choice


@dataclass(frozen=True)
class BudgetQuestion:
    """What some runs decide together: a claim of a paper, or what tells its causes apart.

    `worth` is the share of its statements that these runs decide.
    """

    title: str
    needs: frozenset[NeededWork]
    worth: float = 1.0
    methods: tuple[str, ...] = ()


#: It says how many seconds some work takes together, where what is shared is done once.
WorkCost = Callable[[Collection[NeededWork]], float]


def choose_questions(
    questions: Sequence[BudgetQuestion], cost: WorkCost, seconds: float
) -> Iterator[BudgetQuestion]:
    """Yield the questions to answer within `seconds`, in the order in which to do it.

    Each is the one that brings the most answers for each second that it adds to those before it;
    others that its work answers, too, count with it. Of equals the first is taken.
    """
    left, needs = list(questions), frozenset[NeededWork]()
    while left:
        spent = cost(needs)
        best, most = None, 0.0
        for question in left:
            more = needs | question.needs
            total = cost(more)
            answers = sum(other.worth for other in left if other.needs <= more)
            gain = answers / max(total - spent, 1e-9)
            if total <= seconds and gain > most:
                best, most = question, gain
        if best is None:
            return
        yield best
        left.remove(best)
        needs |= best.needs


# ------------------------------------------------------------------------------------ the questions


@dataclass
class QuestionList:
    """The questions that a recipe's runs decide, and the plans of these runs by their keys."""

    recipe: str
    questions: list[BudgetQuestion] = field(default_factory=list)
    plans: dict[str, Plan] = field(default_factory=dict)

    keys: dict[str, str] = field(default_factory=dict)

    def key(self, spec: RunSpec) -> str:
        """Return the key of a run, whose plan is then known."""
        if (words := str(spec)) not in self.keys:
            plan = resolve(spec)
            self.plans[plan.key], self.keys[words] = plan, plan.key
        return self.keys[words]

    def add(
        self, title: str, needs: Iterable[tuple[RunSpec, Hashable]], worth: float = 1.0
    ) -> None:
        """Add a question of runs and what is made of each, unless some are of other methods."""
        listed = list(needs)
        methods = {spec.method for spec, _ in listed}
        if listed and methods <= set(CORE_METHODS):
            needed = frozenset((self.key(spec), ask) for spec, ask in listed)
            ordered = tuple(sorted(methods, key=CORE_METHODS.index))
            self.questions.append(BudgetQuestion(title, needed, worth, ordered))

    def on(self, recipe: str) -> QuestionList:
        """Return the same questions of the same runs on another recipe."""
        other = QuestionList(recipe)
        for question in self.questions:
            specs = [(self.plans[key].spec, ask) for key, ask in question.needs]
            needs = [(replace(spec, recipe=recipe), ask) for spec, ask in specs]
            other.add(question.title, needs, question.worth)
        return other

    @property
    def needs(self) -> frozenset[NeededWork]:
        """All that they need."""
        return frozenset().union(*(question.needs for question in self.questions))


def list_questions(recipe: str, seeds: Sequence[int] = range(FEWEST_SEEDS)) -> QuestionList:
    """List what runs of core methods decide on a recipe, the core methods' first.

    A claim that tables decide counts with its statements on the paper's first network and data.
    """
    if recipe == unshortened_name(recipe):
        return _questions_on(recipe, tuple(seeds))
    # All lengths of a schedule ask the same.
    one_epoch = shortened_name(unshortened_name(recipe), 1)
    return _questions_on(one_epoch, tuple(seeds)).on(recipe)


@cache
def _questions_on(recipe: str, seeds: tuple[int, ...]) -> QuestionList:
    found = QuestionList(recipe)
    for paper in PAPERS:
        _add_table_claims(found, paper, seeds)
    _add_normaliser_twins(found, seeds)
    _add_picture_claims(found, seeds)
    found.questions.sort(key=lambda question: CORE_METHODS.index(question.methods[-1]))
    return found


def _add_table_claims(found: QuestionList, paper: str, seeds: Sequence[int]) -> None:
    planned = [
        need
        for _, table in chosen_tables(paper)
        for need in grid(paper, table, recipe=found.recipe)
    ]
    cells, rules = Cells(planned, seeds, own_scale=True), read_rules()
    for number, claim in claims(paper).iterrows():
        statements = [
            [cells.find(words) for term in _terms(parts) for words in term.cells]
            for rule in rules.get(number, ())
            for parts in _statements(rule)
        ]
        here = [some for some in statements if all(_is_here(need, found.recipe) for need in some)]
        needs = [(need.spec(seed), need.ask) for some in here for need in some for seed in seeds]
        found.add(_claim_title(number, claim), needs, len(here) / max(1, len(statements)))


def _claim_title(number: int, claim: pd.Series) -> str:
    text = textwrap.shorten(claim["claim"], 60, placeholder=" ...")
    return f"claim {number} ({PAPERS[claim['paper']].label}: {text})"


def _statements(rule: Rule) -> list[Sequence[Expression]]:
    """The sums of each statement that a rule makes; one that only gives a number makes none."""
    if rule.take in STEP_BOUNDS:
        return [[step] for step in rule.steps] if len(rule.expressions) > 1 else []
    if rule.bound is None:
        return []
    together = rule.take in ("most", *REDUCTIONS)
    return [rule.expressions] if together else [[part] for part in rule.expressions]


def _terms(parts: Sequence[Expression]) -> Iterator[Term]:
    return (term for part in parts for term in part.terms)


def _is_here(need: Need, recipe: str) -> bool:
    """Say whether this recipe's runs measure a cell, as one of its own network and data."""
    own = (need.cell["dataset"], need.cell["model"]) == main_setting(need.cell["paper"])
    return need.ask is not None and need.recipe == recipe and own


def _add_normaliser_twins(found: QuestionList, seeds: Sequence[int]) -> None:
    """Criterion or normaliser: the four corners of a square, in the picture that compares them."""
    [(picture, evaluation)] = PICTURE_EVALUATIONS.items()
    needs = [
        (RunSpec(method, found.recipe, seed), ask)
        for method in FIGURES[picture].methods
        for seed in seeds
        for ask in (evaluation, picture)
    ]
    found.add("criterion or normaliser", needs)


def _add_picture_claims(found: QuestionList, seeds: Sequence[int]) -> None:
    trained = trained_on(found.recipe, {})
    for number, claim in claims().iterrows():
        pictures = [name for name in claim["figures"].split() if name in PICTURES]
        if claim["decided_by"] == "figure" and is_about(claim, *trained):
            needs = [
                (RunSpec(method, found.recipe, seed), name)
                for name in pictures
                for method in FIGURES[name].methods
                for seed in seeds
            ]
            found.add(_claim_title(number, claim), needs)


# --------------------------------------------------------------------------------------- the costs


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
    passes: dict[tuple[str, int], tuple[float, float]] = {}

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

    def seconds_of(plan: Plan, ask: Evaluation) -> float:
        _, sizes = sample_data(plan, 1)
        images = min(ask.n or sizes.test, sizes.test)
        batch = min(images, ATTACK_BATCH[device.type])
        if (plan.recipe.model, batch) not in passes:
            passes[plan.recipe.model, batch] = measure_passes(plan, device, batch)
        forward, backward = passes[plan.recipe.model, batch]
        forwards, backwards = count_attack_passes(ask.attack)
        return math.ceil(images / batch) * (forwards * forward + backwards * backward)

    return rate_of, seconds_of


def measure_rate(plan: Plan, device: torch.device) -> Rate:
    """Time epochs of a run; of a small network as it is trained, with other seeds beside it."""
    beside = FEWEST_SEEDS if plan.stack_key else 1
    cost = measure_cost([resolve(replace(plan.spec, seed=i)) for i in range(beside)], device)
    return Rate(cost.epoch / beside, cost.final / beside)


def measure_passes(plan: Plan, device: torch.device, batch: int) -> tuple[float, float]:
    """Time a batch's way forwards, and its gradient beside that, in eval mode, in seconds."""
    few = batch if device.type != "cpu" or plan.recipe.model in SMALL else TIMED_PASS_IMAGES
    host, _ = sample_data(plan, min(batch, few))
    x = host.test.x().to(device)
    network = build_network(plan.recipe.model, host.shape, len(host.classes)).to(device)

    def forward() -> None:
        with torch.no_grad():
            network(x)

    def both() -> None:
        image = x.clone().requires_grad_()
        torch.autograd.grad(network(image).square().sum(), image)

    with threads_for(plan.recipe.model, device), frozen(network):
        one, two = (_median_pass(work, device) * batch / len(x) for work in (forward, both))
    return one, max(0.0, two - one)


def _median_pass(work: Callable[[], None], device: torch.device, times: int = 5) -> float:
    found = []
    for _ in range(times + 1):
        started = time.monotonic()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.monotonic() - started)
    return median(found[1:])


@cache
def count_attack_passes(attack: str) -> tuple[float, float]:
    """Count an attack's passes of an image, forwards and gradients, over those that break early.

    They are counted on a linear network that withstands it; of `WITHSTANDING_SHARE` of the images a
    search takes as many.
    """
    shape, n = (1, 4, 4), 4
    network = build_network("linear", shape, 10).eval()
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = network(x).argmax(1)
    with threads_for("linear", torch.device("cpu")), frozen(network):
        result = ATTACKS[attack](
            network, x, y, Threat("linf", 1e-6), Streams(torch.arange(n), 0, "count")
        )
    forwards, backwards = (float(values.max()) for values in (result.forwards, result.backwards))
    share = WITHSTANDING_SHARE if forwards > 1 else 1.0
    return share * forwards, share * backwards


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
