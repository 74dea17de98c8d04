"""What would decide a claim that is undecided: how many times the evidence that there is.

An interval shrinks with the square root of what it rests on. So the numbers that leave a claim open
also tell about how many times the seeds and test images would decide it, if the numbers stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kit.evaluation.result_tables import count_seeds
from kit.evaluation.statistics import normal_point
from kit.papers.bounds import parse_bound
from kit.papers.claim_verdict import CONFIDENCE, FEWEST_SEEDS, NOT_RUN, Estimate, read_estimate

#: A number that takes more than this many times the evidence is too close to its bound to be told
#: from it.
MOST_TIMES = 100

#: What stands for any number of times, where a number lies on its bound.
FARTHEST = 1e6

#: Below it, the approximation cannot tell what is wanted from what is there.
NEARLY = 1.15


@dataclass(frozen=True)
class Wanted:
    """What an undecided claim lacks.

    `times` the evidence would show `verdict` by the number in `what`, if that stays; inf where
    `what` else is wanted.
    """

    times: float
    verdict: str
    what: str

    @property
    def how_often(self) -> str:
        """How many times the evidence, in words."""
        if math.isinf(self.times):
            return ""
        if self.times > MOST_TIMES:
            return f"more than {MOST_TIMES}"
        return f"about {self.times:.2g}" if self.times > NEARLY else "hardly more than 1"

    @property
    def words(self) -> str:
        """What is wanted, in a sentence."""
        if math.isinf(self.times):
            return self.what
        return (
            f"{self.how_often} times the seeds and test images, if the numbers stay; then it "
            f"{self.verdict}: {self.what}"
        )


def read_estimates(statement: Mapping[str, Any]) -> list[Estimate]:
    """Read the estimates in a statement's record: a table's has one, a figure's may have more."""
    if "value" in statement:
        return [read_estimate({"name": "", **statement})]
    return [read_estimate(record) for record in statement.get("estimates", ())]


def evidence_factor(estimate: Estimate, together: int = 1) -> float:
    """Return how many times its evidence would decide an estimate, if it stays where it is.

    As many more seeds and as many more test images. `together` is how many are tried at once: they
    make it stricter to fail. Where few seeds are behind it, it is an upper end: Student's t falls
    with more of them. inf for an estimate on its bound, or for one that is no number.
    """
    bound = parse_bound(estimate.expected)
    number = float(bound.number)
    distance = abs(estimate.value - number)
    if not distance or any(map(math.isnan, estimate.interval)):
        return math.inf
    above = estimate.value > number
    half_width = estimate.value - estimate.low if above else estimate.high - estimate.value
    count = 1 if bound.keeps(estimate.value) else together
    stricter = normal_point(1 - (1 - CONFIDENCE) / count) / normal_point(CONFIDENCE)
    return (stricter * half_width / distance) ** 2


def find_wanted(statements: Sequence[Mapping[str, Any]]) -> Wanted:
    """Say what would decide a claim, of which no statement fails and not all hold.

    `statements` are records of tables' or of figures' statements. One that fails is enough for the
    claim to fail; to hold, it takes all.
    """
    tried = [s for s in statements if s.get("seeds", 0) >= FEWEST_SEEDS]
    together = max(1, sum(len(read_estimates(statement)) for statement in tried))
    found = [
        (evidence_factor(estimate, together), str(statement["statement"]), estimate)
        for statement in tried
        if statement["verdict"] == "undecided"
        for estimate in read_estimates(statement)
        if not estimate.keeps() and not math.isnan(estimate.value)
    ]
    against = [item for item in found if not parse_bound(item[2].expected).keeps(item[2].value)]
    if against:
        return _describe("fails", *min(against, key=lambda item: item[0]))
    few = [s["seeds"] for s in statements if 0 < s.get("seeds", 0) < FEWEST_SEEDS]
    if few:
        return _other(f"{FEWEST_SEEDS} seeds; {count_seeds(min(few))} decide nothing")
    if unrun := [s for s in statements if s["verdict"] == NOT_RUN]:
        return _other(f"a statement that was not run: {unrun[0]['why']}")
    if not found:  # the record does not list what was not run, nor has it a number
        return _other("what was not run of it here")
    return _describe("holds", *max(found, key=lambda item: item[0]))


def _other(what: str) -> Wanted:
    return Wanted(math.inf, "", what)


def _describe(verdict: str, times: float, statement: str, estimate: Estimate) -> Wanted:
    name = f"{statement}: {estimate.name}" if estimate.name else statement
    value, low, high = (f"{number:.3g}" for number in estimate.interval)
    what = f"{name} {value} [{low}, {high}], expected {estimate.expected}"
    return Wanted(min(times, FARTHEST), verdict, what)
