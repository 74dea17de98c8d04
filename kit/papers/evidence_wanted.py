"""How much more evidence would decide an undecided claim.

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
from kit.papers.rule_language import COUNT_BEGINS

#: A number that takes more than this many times the evidence is too close to its bound to be told
#: from it.
MOST_TIMES = 100

#: So close to 1 is within the error of the approximation.
NEARLY = 1.15


@dataclass(frozen=True)
class Wanted:
    """What an undecided claim lacks.

    `times` is how many times the evidence would give `verdict`, if the number in `what` stays. It
    is inf where more of the same evidence does not help; `what` then says what does.
    """

    times: float
    verdict: str
    what: str

    @property
    def how_often(self) -> str:
        """How many times the evidence, in words; "" where more of it does not help."""
        if math.isinf(self.times):
            return ""
        if self.times > MOST_TIMES:
            return f"more than {MOST_TIMES}"
        return f"about {self.times:.2g}" if self.times > NEARLY else "slightly more than 1"

    @property
    def words(self) -> str:
        """What is wanted, in a sentence or two."""
        if math.isinf(self.times):
            return self.what
        return (
            f"{self.how_often} times the seeds and test images. If the number stays, the claim "
            f"then {self.verdict}: {self.what}"
        )


def read_estimates(statement: Mapping[str, Any]) -> list[Estimate]:
    """Read the estimates in a statement's record: a table's has one, a figure's may have more."""
    if "value" in statement:
        return [read_estimate({"name": "", **statement})]
    return [read_estimate(record) for record in statement.get("estimates", ())]


def evidence_factor(estimate: Estimate, together: int = 1) -> float:
    """Return how many times its evidence would decide an estimate, if its value stays.

    Evidence grows in seeds and in test images alike. `together` estimates are tried at once, which
    makes it stricter to fail. It is a normal approximation: with few seeds it is too high far from
    1, and may be too low near 1. inf for an estimate on its bound, or for one that is no number.
    """
    bound = parse_bound(estimate.expected)
    number = float(bound.number)
    distance = abs(estimate.value - number)
    if not distance or not math.isfinite(distance):
        return math.inf
    above = estimate.value > number
    half_width = estimate.value - estimate.low if above else estimate.high - estimate.value
    count = 1 if bound.keeps(estimate.value) else together
    stricter = normal_point(1 - (1 - CONFIDENCE) / count) / normal_point(CONFIDENCE)
    return (stricter * half_width / distance) ** 2


def find_wanted(statements: Sequence[Mapping[str, Any]]) -> Wanted:
    """Say what would decide a claim, of which no statement fails and not all hold.

    `statements` are records of tables' or of figures' statements. One that fails is enough for the
    claim to fail; to hold, it takes all. A count of differences ("most of 16") does not shrink with
    its evidence, so nothing is foretold of it.
    """
    tried = [s for s in statements if s.get("seeds", 0) >= FEWEST_SEEDS]
    together = max(1, sum(len(read_estimates(statement)) for statement in tried))
    left = [s for s in tried if s["verdict"] == "undecided"]
    found = [
        (evidence_factor(estimate, together), statement["statement"], estimate)
        for statement in left
        if not _is_count(statement)
        for estimate in read_estimates(statement)
        if not estimate.keeps() and math.isfinite(estimate.value)
    ]
    against = [item for item in found if _is_against(item[2])]
    if against:
        return _describe("fails", *min(against, key=lambda item: item[0]))
    if few := [s["seeds"] for s in statements if 0 < s.get("seeds", 0) < FEWEST_SEEDS]:
        return _other(f"{FEWEST_SEEDS} seeds; it has {count_seeds(min(few))}")
    if unrun := [s for s in statements if s["verdict"] == NOT_RUN and "elsewhere" not in s]:
        return _other(f"runs for {unrun[0]['statement']}: {unrun[0]['why']}")
    if counts := [s["statement"] for s in left if _is_count(s)]:
        return _other(f"a clearer sign of more of these differences: {counts[0]}")
    if silent := [s["statement"] for s in left if not any(map(_is_number, read_estimates(s)))]:
        return _other(f"a number for {silent[0]}: there is none yet")
    if on_bound := [item for item in found if math.isinf(item[0])]:
        return _other(f"a number off its bound: {_numbers(*on_bound[0][1:])}")
    if not found:
        return _other("runs of networks that learn: those of a statement learned nothing")
    return _describe("holds", *max(found, key=lambda item: item[0]))


def _is_count(statement: Mapping[str, Any]) -> bool:
    return str(statement["statement"]).startswith(COUNT_BEGINS)


def _is_number(estimate: Estimate) -> bool:
    return math.isfinite(estimate.value)


def _is_against(estimate: Estimate) -> bool:
    """Say whether the value itself is on the other side of its bound, and not on it."""
    bound = parse_bound(estimate.expected)
    return estimate.value != float(bound.number) and not bound.keeps(estimate.value)


def _other(what: str) -> Wanted:
    return Wanted(math.inf, "", what)


def _describe(verdict: str, times: float, statement: str, estimate: Estimate) -> Wanted:
    return Wanted(times, verdict, _numbers(statement, estimate))


def _numbers(statement: str, estimate: Estimate) -> str:
    name = f"{statement}: {estimate.name}" if estimate.name else statement
    value, low, high = (f"{number:.3g}" for number in estimate.interval)
    return f"{name} {value} [{low}, {high}], expected {estimate.expected}"
