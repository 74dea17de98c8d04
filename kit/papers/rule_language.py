"""The language of rules.csv: each row is parsed once into a typed record.

A rule compares sums of cells. Its expression is made of cells, "T1 clirat pgd20 - T1 mail-at
pgd20": a cell is named by words that it, and it alone, carries (table, method, attack, data set,
model, checkpoint, part of the variant); " / " between two cells takes the larger. `over` fills the
{letters} of the expression with each listed value in turn, and `take` says what is done with the
values that come out: one of TAKES.

Printed means (`kit.papers.printed_rules`) and measured cells (`kit.papers.measured_rules`) are put
into the same records; nothing else reads the text of a rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, partial
from itertools import pairwise, product
from typing import Any

import numpy as np

from kit.core.errors import unknown_name
from kit.papers.bounds import Bound, parse_bound
from kit.papers.printed_data import read_table

#: What makes one number of a rule's values, along the first axis; the bound is tried on it.
REDUCTIONS: dict[str, Callable[[np.ndarray], Any]] = {
    "min": partial(np.min, axis=0),
    "max": partial(np.max, axis=0),
    "mean": partial(np.mean, axis=0),
    "range": partial(np.ptp, axis=0),
}


#: Takes that compare each value with the one before it, and what the difference must keep to.
STEP_BOUNDS = {"rising": Bound(">", Decimal(0)), "falling": Bound("<", Decimal(0))}

#: Where the text of a statement that counts differences begins.
COUNT_BEGINS = "most of "

#: All that `take` can say. "": each value by itself; count: how many keep the bound; most: whether
#: more than half do; rising, falling: steps from one value to the next in that direction; the rest:
#: one number of all values.
TAKES = ("", "count", "most", *STEP_BOUNDS, *REDUCTIONS)


@dataclass(frozen=True)
class Term:
    """One term of a sum: its sign, 1 or -1, and the cells of which the larger counts, by name."""

    sign: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Expression:
    """A sum of cells, as text and as its terms."""

    text: str
    terms: tuple[Term, ...]

    def minus(self, other: Expression) -> Expression:
        """Return the difference to another sum."""
        turned = tuple(Term(-term.sign, term.cells) for term in other.terms)
        return Expression(f"{self.text} - {other.text}", self.terms + turned)


@dataclass(frozen=True)
class Rule:
    """One row of rules.csv: its sums, what is taken of their values, and the bound if it has one.

    `text` is the expression as written; `said` are the numbers that `said_by` gives for what comes
    out, as printed: the paper's prose ("text") or the kit's list of claims ("record").
    """

    claim: int
    text: str
    expressions: tuple[Expression, ...]
    take: str = ""
    bound: Bound | None = None
    said: tuple[str, ...] = ()
    said_by: str = ""

    @property
    def summary(self) -> str:
        """The rule in words where one number comes of all its sums."""
        return f"{self.take} of {len(self.expressions)}: {self.text}"

    @property
    def steps(self) -> tuple[Expression, ...]:
        """The differences from one sum to the next."""
        return tuple(after.minus(before) for before, after in pairwise(self.expressions))


def parse_expression(text: str) -> Expression:
    """Parse a sum such as "T1 clirat aa - T1 at aa"."""
    first, *rest = re.split(r" ([+-]) ", text)
    signed = [("+", first), *zip(rest[::2], rest[1::2], strict=True)]
    return Expression(
        text,
        tuple(Term(1 if sign == "+" else -1, tuple(term.split(" / "))) for sign, term in signed),
    )


def fill_expression(text: str, over: str) -> list[str]:
    """Write an expression once for each combination of what `over` lists.

    `over` is such as "a=pgd20 aa;m=clirat/mail-at": {a} stands for each of two words in turn, and
    {m[0]}, {m[1]} for the two parts of one.
    """
    axes = [axis.split("=", 1) for axis in over.split(";") if axis]
    choices = [
        [word.split("/") if "/" in word else word for word in words.split()] for _, words in axes
    ]
    names = [name for name, _ in axes]
    return [text.format(**dict(zip(names, chosen, strict=True))) for chosen in product(*choices)]


def parse_rule(row: Mapping[str, str]) -> Rule:
    """Parse a row of rules.csv.

    Raises:
        KitError: Its `take` or its bound is not of the language.
    """
    if row["take"] not in TAKES:
        raise unknown_name("way to take a rule's values", row["take"], TAKES[1:])
    return Rule(
        claim=int(row["claim"]),
        text=row["expression"],
        expressions=tuple(map(parse_expression, fill_expression(row["expression"], row["over"]))),
        take=row["take"],
        bound=parse_bound(row["expect"]) if row["expect"] else None,
        said=tuple(row["said"].split()),
        said_by=row["said_by"],
    )


@cache
def read_rules() -> dict[int, tuple[Rule, ...]]:
    """Read rules.csv: {number of a claim: its rules}, in the order of the file.

    The dictionary is shared: read it, never write to it.
    """
    found: dict[int, list[Rule]] = {}
    for row in read_table("rules").to_dict("records"):
        rule = parse_rule(row)
        found.setdefault(rule.claim, []).append(rule)
    return {number: tuple(rules) for number, rules in found.items()}


def reduce_values(take: str, values: Sequence[Any]) -> Any:
    """Make one number of several as `take`, one of REDUCTIONS, says; exact for Decimals.

    Arrays are reduced element by element.
    """
    exact = all(isinstance(value, Decimal) for value in values)
    return REDUCTIONS[take](np.array(values, dtype=object) if exact else np.array(values))
