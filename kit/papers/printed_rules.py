"""The papers' claims, and what their own printed tables say of them.

Each verdict is recomputed from the printed means by the rules of rules.csv
(`kit.papers.rule_language`); none is typed in. All arithmetic is exact, in decimals.

A verdict says that printed numbers are on the claimed side of a bound. It is no test of
significance, and no reproduction.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import pandas as pd

from kit.core.errors import KitError
from kit.papers.printed_data import PAPERS, cell_tags, read_table, rows_of_paper
from kit.papers.rule_language import (
    REDUCTIONS,
    STEP_BOUNDS,
    Expression,
    Rule,
    parse_expression,
    read_rules,
    reduce_values,
)


class Outcome(NamedTuple):
    """What one statement of a rule comes to: a number, and how many of its parts keep the bound.

    A statement without a bound has no parts.
    """

    number: Decimal
    held: int
    of: int


@cache
def _tagged_means(paper: str) -> list[tuple[frozenset[str], str]]:
    """The words that each cell of a paper carries, and its printed mean."""
    cells = read_table("results").query("paper == @paper")
    return [(cell_tags(cell), cell["mean"]) for cell in cells.to_dict("records")]


def _cell(paper: str, words: str) -> Decimal:
    """The printed mean of the one cell that carries all `words`."""
    found = [mean for tags, mean in _tagged_means(paper) if tags.issuperset(words.split())]
    if len(found) != 1 or not found[0]:
        what = "is blank" if len(found) == 1 else f"names {len(found)} cells"
        raise KitError(
            f"'{words}' {what} in {paper}'s tables; it must name exactly one printed cell, by its "
            "table, method, attack and, where these are not enough, data set, model, checkpoint or "
            "variant"
        )
    return Decimal(found[0])


def _add_cells(paper: str, expression: Expression) -> Decimal:
    """The sum of a paper's printed means, exactly."""
    return sum(
        (term.sign * max(_cell(paper, words) for words in term.cells) for term in expression.terms),
        Decimal(),
    )


def value(paper: str, expression: str) -> Decimal:
    """Add printed means exactly.

    value("clirat", "T1 clirat aa - T1 at aa") is -1.37.

    Raises:
        KitError: There is no such paper, or a cell does not exist, is blank, or is not named
            uniquely.
    """
    PAPERS[paper]
    return _add_cells(paper, parse_expression(expression))


def _outcomes(rule: Rule, values: Sequence[Decimal]) -> list[Outcome]:
    """What each statement comes to that a rule makes of its sums' values."""
    if rule.take in STEP_BOUNDS:
        kept = [STEP_BOUNDS[rule.take].keeps(after - before) for before, after in pairwise(values)]
        return [Outcome(Decimal(sum(kept)), sum(kept), len(kept))]
    bound = rule.bound
    if rule.take in ("count", "most"):
        count = sum(bound.keeps(number) for number in values) if bound else 0
        most = Outcome(Decimal(count), int(2 * count > len(values)), 1)
        return [most if rule.take == "most" else Outcome(Decimal(count), count, len(values))]
    numbers = [reduce_values(rule.take, values)] if rule.take in REDUCTIONS else values
    if bound is None:
        return [Outcome(number, 0, 0) for number in numbers]
    return [Outcome(number, int(bound.keeps(number)), 1) for number in numbers]


def _agree(said: str, computed: Decimal) -> bool:
    """Say whether `said` is a rounding of `computed` to as many decimals."""
    number = Decimal(said)
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int), f"{said} is no finite number"
    return abs(number - computed) * 2 <= Decimal(1).scaleb(exponent)


def _check_rule(paper: str, rule: Rule) -> list[dict[str, object]]:
    """The rows of `checks` that one rule makes."""
    outcomes = _outcomes(rule, [_add_cells(paper, part) for part in rule.expressions])
    texts = [rule.summary] if rule.take else [part.text for part in rule.expressions]
    said = rule.said or ("",) * len(outcomes)
    return [
        {
            "claim": rule.claim,
            "paper": paper,
            "statement": text,
            "expected": str(rule.bound or rule.take),
            "from_tables": float(number),
            "held": held,
            "of": of,
            "said": words,
            "said_by": rule.said_by,
            "agrees": _agree(words, number) if words else None,
        }
        for text, (number, held, of), words in zip(texts, outcomes, said, strict=True)
    ]


@cache
def _checks() -> pd.DataFrame:
    listed = read_table("claims")
    papers = {int(number): paper for number, paper in zip(listed.number, listed.paper, strict=True)}
    rules = [rule for rules in read_rules().values() for rule in rules]
    return pd.DataFrame([row for rule in rules for row in _check_rule(papers[rule.claim], rule)])


def checks(paper: str | None = None) -> pd.DataFrame:
    """List every comparison behind the verdicts, one a row, recomputed from the printed means.

    `from_tables` is the number that comes out (points, fractions in CSA's tables, or a count),
    `held` of `of` its parts keep what is `expected` (0 of 0: a number only). `said` is the number
    given elsewhere, `said_by` by whom: "text" is the paper's prose, "record" the kit's list of
    claims. `agrees`: is it a rounding of what comes out?

    Raises:
        KitError: There is no such paper.
    """
    return rows_of_paper(_checks(), paper)


def _verdict(held: int, of: int) -> str:
    return "" if of == 0 else "holds" if held == of else "fails" if held == 0 else "partly"


def claims(paper: str | None = None) -> pd.DataFrame:
    """List the claims, by number: in our words, where made, and what tables say of them.

    `printed` are the numbers that the paper gives, `check` is what would decide the claim.
    `decided_by` is what it takes: "tables" (arithmetic on printed means), "figure" (drawn, not
    printed), "mathematics" or "runs" (the paper has no numbers for it). Where it is "tables",
    `verdict` is recomputed by the rules of rules.csv: holds (all comparisons), partly, fails
    (none); `held` counts them and `numbers` the given numbers that agree with the tables. It says
    nothing of significance. `remark` is ours.

    Links are ids with spaces between: `tables` are the paper's tables that the rules read,
    `figures` the rows of `kit.FIGURES` that show what it is about. A claim that no table decides
    may be about some data sets or networks only: `datasets`, `models`. `across` is "yes" for one
    that says itself that it is about several: where one of them is not there, it stays open.

    Raises:
        KitError: There is no such paper.
    """
    listed = rows_of_paper(read_table("claims"), paper)
    by = {int(number): group for number, group in _checks().groupby("claim")}
    listed["number"] = listed["number"].astype(int)
    sums = {
        number: (int(group["held"].sum()), int(group["of"].sum())) for number, group in by.items()
    }
    listed["verdict"] = [_verdict(*sums.get(number, (0, 0))) for number in listed["number"]]
    listed["held"] = [
        "{} of {}".format(*sums[number]) if number in sums else "" for number in listed["number"]
    ]
    given = {number: group["agrees"].dropna() for number, group in by.items()}
    listed["numbers"] = [
        f"{int(given[number].sum())} of {len(given[number])} agree"
        if len(given.get(number, ()))
        else ""
        for number in listed["number"]
    ]
    remark = listed.pop("remark")
    return listed.assign(remark=remark).set_index("number")
