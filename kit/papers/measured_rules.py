"""The rules of rules.csv on measured cells: what finished runs show, with a test.

Cells are accuracies on the same images, so what is tested are differences in pairs: images are
drawn anew (Poisson weights), and so are seeds, as Student's t says of so few; with one seed, what
other seeds would show is unknown. Each cell gets two invented images, one for what the
rule expects and one against it, as Agresti and Min (2005) do for paired proportions, so that a
handful of images decides nothing. A statement holds if it keeps its bound in 97.5 % of the draws;
one of m statements that could be decided fails if it keeps it in at most 2.5 % / m. Fewer than
FEWEST_SEEDS seeds decide nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import permutations, product
from typing import Any, Protocol

import numpy as np

from kit.evaluation.result_tables import count_seeds
from kit.evaluation.statistics import draw_seed_weights
from kit.experiments.runs import Run
from kit.methods.table import controls_between
from kit.papers.claim_verdict import FEWEST_SEEDS, NOT_RUN, ClaimVerdict, combine_verdicts
from kit.papers.measured_cells import observed
from kit.papers.rule_language import (
    REDUCTIONS,
    STEP_BOUNDS,
    Bound,
    Expression,
    Rule,
    reduce_values,
)
from kit.papers.table_runs import Need

DRAWS, LEVEL = 2000, 0.025

#: What was observed of one cell: its run, which images (n,) are right, which of them (n,) count.
Observation = tuple[Run, np.ndarray, np.ndarray]

#: The cells of an expression's terms: (sign, the cells of which the larger counts).
NeededTerm = tuple[int, list[Need]]


@dataclass(frozen=True)
class MeasuredSum:
    """An expression of a rule on measured cells, or why it was not run.

    `value` is its value (points, or a fraction in CSA's tables), `draws` (DRAWS,) the value in each
    draw; it rests on `n` images, `seeds` seeds and `runs`. Where it was not run, `why` says so, and
    `missing_tables` are the tables whose runs are still to be made. It is `elsewhere` if the scale
    does not have its network or data set.
    """

    text: str
    value: float = float("nan")
    draws: np.ndarray | None = None
    n: int = 0
    seeds: int = 0
    runs: frozenset[str] = frozenset()
    why: str = ""
    missing_tables: frozenset[str] = frozenset()
    elsewhere: bool = False


@dataclass(frozen=True)
class Statement:
    """A sum and its bound.

    `sure`, `possible` (DRAWS,): is the bound kept whatever the cells that were not run would show,
    and could it be? None where nothing was run. `possible` may be the worst of several `parts`.
    """

    sum: MeasuredSum
    expected: str
    sure: np.ndarray | None = None
    possible: np.ndarray | None = None
    parts: int = 1

    @property
    def is_tried(self) -> bool:
        """Whether it was run with as many seeds as decide something."""
        return self.sure is not None and self.sum.seeds >= FEWEST_SEEDS

    def verdict(self, of: int) -> str:
        """Say holds, fails, undecided or not run, as one of so many that are tried."""
        if self.sure is None or self.possible is None:
            return NOT_RUN
        if not self.is_tried:
            return "undecided"
        return (
            "holds"
            if self.sure.mean() >= 1 - LEVEL
            else "fails"
            if self.possible.mean() <= LEVEL / of
            else "undecided"
        )

    def record(self, verdict: str) -> dict[str, Any]:
        """Write it as a record, with the 95 % interval of its value or why there is none."""
        record = {"statement": self.sum.text, "expected": self.expected, "verdict": verdict}
        if self.sure is None or self.sum.draws is None:
            return record | {"why": self.sum.why}
        low, high = np.quantile(self.sum.draws, (LEVEL, 1 - LEVEL))
        return record | {
            "value": self.sum.value,
            "low": round(float(low), 4),
            "high": round(float(high), 4),
            "n": self.sum.n,
            "seeds": self.sum.seeds,
        }


@dataclass
class Cells:
    """A paper's cells on a recipe: what measures each, and what was observed, read once.

    With `own_scale` a cell that stands for another data set or network than its own is not counted.
    """

    needs: list[Need]
    seeds: Sequence[int]
    own_scale: bool = False
    known: dict[tuple, Observation | None] = field(default_factory=dict)

    def measure(self, expression: Expression) -> MeasuredSum:
        """Measure a sum; see `measure_expression`."""
        return measure_expression(self, expression)

    def find(self, words: str) -> Need:
        """Return the cell that carries all `words`.

        There is one: the rule would otherwise have failed on the printed tables.
        """
        wanted = set(words.split())
        return next(need for need in self.needs if need.tags >= wanted)

    def observed(self, need: Need, seed: int) -> Observation | None:
        """Return what was observed of a cell with one seed; None where that was not run."""
        key = (str(need.spec(seed)), need.ask, need.protected)
        if key not in self.known:
            self.known[key] = observed(need, seed)
        return self.known[key]

    def read(self, need: Need, seed: int) -> Observation:
        """Return what was observed of a cell with a seed that has run it."""
        found = self.observed(need, seed)
        assert found is not None, f"{need.spec(seed)} was not run"
        return found

    def missing_tables(self, needs: Sequence[Need]) -> frozenset[str]:
        """Name the tables, such as clirat-1, of those cells that no seed has run."""
        return frozenset(
            f"{need.cell['paper']}-{need.cell['table'][1:]}"
            for need in needs
            if not any(self.observed(need, seed) for seed in self.seeds)
        )


# -------------------------------------------------------------------------------------------- draws


@cache
def _image_weights(n: int) -> np.ndarray:
    """(DRAWS, n) how often each image is drawn; an image's draws are the same whatever n."""
    return np.random.default_rng(0).poisson(1.0, (n, DRAWS)).astype(np.float32).T


@cache
def _seed_weights(seeds: int) -> np.ndarray:
    """(DRAWS, seeds) weights of the seeds."""
    return draw_seed_weights(seeds, DRAWS)


@cache
def _invented_weights() -> np.ndarray:
    """(DRAWS, 2) how often the invented image for, and that against, is drawn."""
    return np.random.default_rng(2).poisson(1.0, (DRAWS, 2))


def draw_accuracy(right: np.ndarray, counts: np.ndarray, favourable: bool) -> np.ndarray:
    """Draw the accuracy of one cell anew, (DRAWS,), in [0, 1].

    right: (seeds, n); counts: (n,) which images matter; favourable: does the rule's sum grow with
    the cell?
    """
    weights, extra = _image_weights(len(counts))[:, counts], _invented_weights()
    hits = weights @ right[:, counts].T.astype(np.float32) + extra[:, [0 if favourable else 1]]
    total = np.maximum(weights.sum(axis=1) + extra.sum(axis=1), 1)
    return (hits * _seed_weights(len(right))).sum(axis=1) / total


# --------------------------------------------------------------------------------------------- sums


class Measures(Protocol):
    """Whatever can say what a sum of cells comes to: `Cells`, or numbers that were planted."""

    def measure(self, expression: Expression) -> MeasuredSum:
        """Return the sum's value and its draws, or why it was not run."""
        ...


def measure_expression(cells: Cells, expression: Expression) -> MeasuredSum:
    """Measure a sum, on the images and seeds that all of its cells share."""
    text = expression.text
    terms = [(term.sign, [cells.find(words) for words in term.cells]) for term in expression.terms]
    needs = [need for _, choices in terms for need in choices]
    if why := next((need.reason for need in needs if need.reason), ""):
        return MeasuredSum(text, why=why)
    if why := _same_run(terms):
        return MeasuredSum(text, why=why, elsewhere=True)
    if cells.own_scale and (why := next(filter(None, (n.stands_for_another for n in needs)), "")):
        return MeasuredSum(text, why=why, elsewhere=True)
    seeds = [seed for seed in cells.seeds if all(cells.observed(need, seed) for need in needs)]
    if not seeds:
        missing = cells.missing_tables(needs)
        return MeasuredSum(text, why="its runs are not there yet", missing_tables=missing)
    n = min(len(cells.read(need, seed)[1]) for need in needs for seed in seeds)
    for need in needs:
        if not cells.read(need, seeds[0])[2][:n].any():
            why = f"no image of class {need.protected} is among the first {n}"
            return MeasuredSum(text, why=why)
    return _add_terms(cells, text, terms, seeds, n)


def _same_run(terms: Sequence[NeededTerm]) -> str:
    """Why a difference says nothing: it sets a network against itself.

    That is so where a recipe has one network and data set for both sides; "" elsewhere.
    """
    single = [
        (sign, (str(need.spec(0)), need.ask, need.protected))
        for sign, (need, *others) in terms
        if not others
    ]
    if {key for sign, key in single if sign > 0} & {key for sign, key in single if sign < 0}:
        return (
            "compares two networks or data sets, and this recipe has one of each: --recipe "
            "cifar10:paper has both"
        )
    return ""


def _add_terms(
    cells: Cells, text: str, terms: Sequence[NeededTerm], seeds: Sequence[int], n: int
) -> MeasuredSum:
    """The sum of terms whose cells were all run, on the first `n` images."""
    value, draws = 0.0, np.zeros(DRAWS)
    runs: set[str] = set()
    images: list[int] = []
    for sign, choices in terms:
        points, drawn = [], []
        for need in choices:
            found = [cells.read(need, seed) for seed in seeds]
            right, counts = np.stack([flags[:n] for _, flags, _ in found]), found[0][2][:n]
            images.append(int(counts.sum()))
            scale = 100 if need.cell["unit"] == "percent" else 1
            points.append(scale * float(right[:, counts].mean()))
            drawn.append(scale * draw_accuracy(right, counts, sign > 0))
            runs |= {run.key for run, *_ in found}
        value, draws = value + sign * max(points), draws + sign * np.max(drawn, axis=0)
    return MeasuredSum(text, round(value, 6), draws, min(images), len(seeds), frozenset(runs))


# --------------------------------------------------------------------------------------- statements


def measure_rule(cells: Measures, rule: Rule) -> list[Statement]:
    """Measure what a rule states; one that only gives a number states nothing."""
    if rule.take in STEP_BOUNDS:
        bound = STEP_BOUNDS[rule.take]
        return [_state(cells.measure(step), bound) for step in rule.steps]
    if rule.bound is None:
        return []
    sums = [cells.measure(part) for part in rule.expressions]
    if rule.take == "most":
        return [_state_most(rule.summary, sums, rule.bound)]
    if rule.take not in REDUCTIONS:
        return [_state(part, rule.bound) for part in sums]
    statement = _state(_reduce_sums(rule, sums), rule.bound)
    if rule.take == "mean":
        return [statement]
    if rule.take == "range":
        pairs = permutations(rule.expressions, 2)
        sums = [cells.measure(one.minus(other)) for one, other in pairs]
    return [_limit_by_parts(statement, sums, rule.bound)]


def _union(sets: Sequence[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*sets)


def _reduce_sums(rule: Rule, sums: Sequence[MeasuredSum]) -> MeasuredSum:
    """One number of several sums, if all of them were run."""
    if gaps := [part for part in sums if part.why]:
        missing = _union([part.missing_tables for part in gaps])
        elsewhere = all(part.elsewhere for part in sums)
        return MeasuredSum(
            rule.summary, why=gaps[0].why, missing_tables=missing, elsewhere=elsewhere
        )
    return MeasuredSum(
        rule.summary,
        round(float(reduce_values(rule.take, [part.value for part in sums])), 6),
        reduce_values(rule.take, [part.draws for part in sums]),
        min(part.n for part in sums),
        min(part.seeds for part in sums),
        _union([part.runs for part in sums]),
    )


def _keep_draws(part: MeasuredSum, bound: Bound) -> np.ndarray:
    """(DRAWS,) in which draws a sum that was run keeps a bound."""
    assert part.draws is not None, f"{part.text} was not run"
    return bound.keeps(np.round(part.draws, 6))


def _state(part: MeasuredSum, bound: Bound) -> Statement:
    if part.why:
        return Statement(part, str(bound))
    kept = _keep_draws(part, bound)
    return Statement(part, str(bound), kept, kept)


def _limit_by_parts(statement: Statement, parts: Sequence[MeasuredSum], bound: Bound) -> Statement:
    """A statement on an extreme, with what single values, or differences of pairs, allow.

    An extreme of noisy values lies further out than that of the true ones: a bound on it fails
    only where a single part breaks it.
    """
    if statement.sure is None:
        return statement
    # The difference of a network to itself is not run.
    ran = [part for part in parts if not part.why]
    worst = min((_keep_draws(part, bound) for part in ran), key=np.mean)
    return replace(statement, possible=worst, parts=len(parts))


def _state_most(text: str, sums: Sequence[MeasuredSum], bound: Bound) -> Statement:
    """Do more than half keep the bound? What was not run might or might not."""
    expected, text = f"> {len(sums) / 2:g}", f"{text} {bound}"
    ran = [part for part in sums if not part.why]
    gaps = [part for part in sums if part.why]
    missing = _union([part.missing_tables for part in gaps])
    if not ran:
        return Statement(MeasuredSum(text, why=gaps[0].why, missing_tables=missing), expected)
    kept = np.sum([_keep_draws(part, bound) for part in ran], axis=0)
    total = MeasuredSum(
        f"{text} ({len(ran)} run)" if gaps else text,
        float(sum(bool(bound.keeps(part.value)) for part in ran)),
        kept,
        min(part.n for part in ran),
        min(part.seeds for part in ran),
        _union([part.runs for part in ran]),
        missing_tables=missing,
    )
    return Statement(total, expected, 2 * kept > len(sums), 2 * (kept + len(gaps)) > len(sums))


# ------------------------------------------------------------------------------------------- claims


def decide_by_rules(
    cells: Measures, rules: Sequence[Rule], *, across: bool = False
) -> ClaimVerdict:
    """Decide a claim by its rules: it fails if one statement does, and holds if all do.

    A statement that is not tried cannot fail by chance, so it makes the others' test no stricter.
    Statements on a network or a data set that is `elsewhere` decide nothing here; only a claim that
    is `across` several waits for them.
    """
    found = [statement for rule in rules for statement in measure_rule(cells, rule)]
    tried = max(1, sum(statement.is_tried for statement in found))
    words = [statement.verdict(tried) for statement in found]
    records = [part.record(word) for part, word in zip(found, words, strict=True)]
    if not across and not all(part.sum.elsewhere for part in found):
        for record, part in zip(records, found, strict=True):
            record |= {"elsewhere": True} if part.sum.elsewhere else {}
    mine = [record for record in records if "elsewhere" not in record]
    others = len(records) - len(mine)
    return ClaimVerdict(
        combine_verdicts([record["verdict"] for record in mine]),
        _describe_records(mine)
        + f"; {others} more on a network or data set that is not there" * bool(others),
        records,
        sorted(_union([part.sum.runs for part in found])),
        sorted(_union([part.sum.missing_tables for part in found])),
    )


def name_controls(cells: Cells, rules: Sequence[Rule]) -> str:
    """Say which compared rows differ in criterion and normaliser, and which differ in one."""
    found: dict[tuple[str, ...], tuple[str, ...]] = {}
    for terms in (expression.terms for rule in rules for expression in rule.expressions):
        added, taken = (
            [
                cells.find(words).method
                for term in terms
                if term.sign == sign
                for words in term.cells
            ]
            for sign in (1, -1)
        )
        found |= {
            pair: between for pair in product(added, taken) if (between := controls_between(*pair))
        }
    return "".join(
        f"; {one} and {other} differ in criterion and normaliser, controls that differ in one: "
        f"{', '.join(between)}"
        for (one, other), between in found.items()
    )


def _describe_records(records: Sequence[Mapping[str, Any]]) -> str:
    """How many statements came out how, and the one that says most about the verdict."""
    tally = Counter(record["verdict"] for record in records)
    counts = ", ".join(
        f"{tally[word]} {word}" for word in ("holds", "fails", "undecided", NOT_RUN) if tally[word]
    )
    telling = next(
        record
        for word in ("fails", "undecided", "holds", NOT_RUN)
        for record in records
        if record["verdict"] == word
    )
    if "why" in telling:
        return f"{counts} of {len(records)}: {telling['why']}"
    interval = f"{telling['value']:.4g} [{telling['low']:.4g}, {telling['high']:.4g}]"
    return (
        f"{counts} of {len(records)}; {telling['verdict']}: {telling['statement']} "
        f"{telling['expected']}: {interval}, n = {telling['n']}, {count_seeds(telling['seeds'])}"
    )
