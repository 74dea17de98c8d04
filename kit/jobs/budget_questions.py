"""What a budget can answer: claims of the papers as questions, each with the work that it needs.

A question is three seeds of each of its runs, for fewer decide nothing, and what is made of them.
`choose_questions` takes, one after the other, the one that brings the most answers for the seconds
that it adds: shared runs and burn-ins count once.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import pandas as pd

from kit.experiments.recipes import shortened_name, unshortened_name
from kit.experiments.specification import Plan, RunSpec, resolve
from kit.figures.table import FIGURES
from kit.papers.claim_verdict import FEWEST_SEEDS
from kit.papers.figure_verdicts import is_about, trained_on
from kit.papers.measured_rules import Cells
from kit.papers.printed_data import PAPERS, main_setting
from kit.papers.printed_rules import claims
from kit.papers.rule_language import REDUCTIONS, STEP_BOUNDS, Expression, Rule, Term, read_rules
from kit.papers.table_runs import Evaluation, Need, chosen_tables, grid

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

#: What a question needs: a run's key, and what is made of the run: an evaluation, or a picture.
NeededWork = tuple[str, Hashable]


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
