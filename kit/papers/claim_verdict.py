"""What is decided of a claim: from estimates and their bounds, over seeds, to one word.

Tables and figures alike give estimates: a number, its interval, and what the claim expects of it.
A claim holds where every estimate keeps its bound, and fails where one breaks it, each with 95 %
confidence over other seeds and images of the same kind. Fewer than `FEWEST_SEEDS` seeds decide
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kit.evaluation.statistics import Interval, combine_seeds
from kit.papers.bounds import parse_bound

#: What is said of a cell, a statement or a claim where its runs are missing.
NOT_RUN = "not run"

#: The verdicts, the most telling first.
VERDICTS = ("fails", "undecided", "holds", NOT_RUN)

#: The glyph of each verdict.
VERDICT_GLYPHS = {"holds": "✓", "fails": "✗", "undecided": "?", NOT_RUN: "·"}

#: Seeds that "holds" or "fails" takes; with fewer, nobody knows what the next seed would show.
FEWEST_SEEDS = 3

#: The confidence of an interval that decides.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number that a claim is about, with its 95 % interval, and the bound that is expected.

    `low` and `high` are over the images of one run, or over seeds and images. They are the value
    itself where a run's number does not depend on test images (a share of its parameters, say).
    `expected` is such as "> 0".
    """

    name: str
    expected: str
    value: float
    low: float
    high: float

    @property
    def interval(self) -> Interval:
        """(value, low, high)."""
        return self.value, self.low, self.high

    def keeps(self) -> bool:
        """Say whether the whole interval is on the expected side."""
        return self._is_number() and all(self._ends_keep())

    def breaks(self) -> bool:
        """Say whether the whole interval is on the other side."""
        return self._is_number() and not any(self._ends_keep())

    def _ends_keep(self) -> list[bool]:
        bound = parse_bound(self.expected)
        return [bool(bound.keeps(end)) for end in (self.low, self.high)]

    def _is_number(self) -> bool:
        return not any(map(math.isnan, self.interval))

    def record(self) -> dict[str, Any]:
        """Write it as JSON values."""
        return {
            "name": self.name,
            "expected": self.expected,
            "value": self.value,
            "low": self.low,
            "high": self.high,
        }


def exactly(name: str, value: float, expected: str) -> Estimate:
    """A number of one run that no draw of test images changes: only other seeds do."""
    return Estimate(name, expected, value, value, value)


def read_estimate(record: Mapping[str, Any]) -> Estimate:
    """Read what `Estimate.record` wrote; a number that was none is NaN."""
    value, low, high = (
        math.nan if record[name] is None else float(record[name])
        for name in ("value", "low", "high")
    )
    return Estimate(record["name"], record["expected"], value, low, high)


def reading(estimates: Sequence[Estimate]) -> str:
    """What the estimates of one run, or of all seeds together, say by themselves.

    holds: each keeps its bound; fails: one breaks it; else undecided.
    """
    if any(estimate.breaks() for estimate in estimates):
        return "fails"
    holds = bool(estimates) and all(estimate.keeps() for estimate in estimates)
    return "holds" if holds else "undecided"


def combine_estimates(
    by_seed: Sequence[Sequence[Estimate]], level: float = CONFIDENCE
) -> list[Estimate]:
    """One estimate of each name from the seeds' estimates, in the order of the first seed.

    A name that a seed lacks counts with the seeds that have it.
    """
    named: dict[str, list[Estimate]] = {}
    for estimate in (estimate for found in by_seed for estimate in found):
        named.setdefault(estimate.name, []).append(estimate)
    return [
        Estimate(name, found[0].expected, *combine_seeds([e.interval for e in found], level))
        for name, found in named.items()
    ]


def decide(
    by_seed: Sequence[Sequence[Estimate]], seeds: int | None = None, together: int = 0
) -> str:
    """Decide a statement by the estimates of each seed: holds, fails, undecided or not run.

    `seeds` is how many seeds they rest on, where one entry is already over several. To hold, every
    estimate must keep its bound. To fail, one of m must break it, at 1 - (1 - `CONFIDENCE`) / m,
    where m is the number of estimates, or those of all statements that are tried `together`.
    """
    if not by_seed:
        return NOT_RUN
    if (len(by_seed) if seeds is None else seeds) < FEWEST_SEEDS:
        return "undecided"
    count = max(together, *map(len, by_seed), 1)
    stricter = combine_estimates(by_seed, 1 - (1 - CONFIDENCE) / count)
    if any(estimate.breaks() for estimate in stricter):
        return "fails"
    return "holds" if reading(combine_estimates(by_seed)) == "holds" else "undecided"


@dataclass(frozen=True)
class ClaimVerdict:
    """The verdict on a claim, in words, and what it rests on.

    `verdict` is holds, fails, undecided or not run; `statements` are records, `runs` keys. What
    would have to be run still: the printed tables (`missing_tables`, such as clirat-1), or the
    `notebooks`; on another recipe than the one asked for, if `recipe` is one.
    """

    verdict: str
    here: str
    statements: Sequence[Mapping[str, Any]] = ()
    runs: Sequence[str] = ()
    missing_tables: Sequence[str] = ()
    notebooks: Sequence[str] = ()
    recipe: str = ""


def combine_verdicts(verdicts: Sequence[str]) -> str:
    """Decide of several: fails if one does; what all are, if they are alike; else undecided."""
    kinds = set(verdicts)
    return "fails" if "fails" in kinds else kinds.pop() if len(kinds) == 1 else "undecided"
