"""What was decided of a claim: a record that tables and figures fill in alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: What is said of a cell, a statement or a claim where its runs are missing.
NOT_RUN = "not run"


@dataclass(frozen=True)
class ClaimVerdict:
    """The verdict on a claim, in words, and what it rests on.

    `verdict` is confirmed, refuted, undecided or not run; `statements` are records, `runs` keys.
    What would have to be run still: the printed tables (`missing_tables`, such as clirat-1), or the
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
    """Decide of several: refuted if one is; what all are, if they are alike; else undecided."""
    kinds = set(verdicts)
    return "refuted" if "refuted" in kinds else kinds.pop() if len(kinds) == 1 else "undecided"
