"""The papers' claims, and what their own printed tables say of them: each verdict is recomputed,
none is typed in.

A rule of rules.csv compares sums of printed means. Its expression is made of cells, "T1 clirat
pgd20 - T1 mail-at pgd20": a cell is named by words that it, and it alone, carries (table, method,
attack, data set, model, checkpoint, part of the variant); " / " between two cells takes the larger.
`over` fills the {letters} with each listed value in turn, and `take` says what is done with the
values that come out: TAKES below. All arithmetic is exact, in decimals.

A verdict says that printed numbers are on the claimed side of a bound. It is no test of
significance, and no reproduction.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from itertools import pairwise, product

import pandas as pd

from kit.core.errors import KitError, unknown_name
from kit.papers.printed_data import read_table, rows_of_paper

RELATIONS: dict[str, Callable[[Decimal, Decimal], bool]] = {
    ">": Decimal.__gt__,
    ">=": Decimal.__ge__,
    "<": Decimal.__lt__,
    "<=": Decimal.__le__,
    "=": Decimal.__eq__,
}

#: What becomes of a rule's values: one number of them, on which the bound is tried.
REDUCED: dict[str, Callable[[list[Decimal]], Decimal]] = {
    "min": min,
    "max": max,
    "mean": lambda values: sum(values) / len(values),
    "range": lambda values: max(values) - min(values),
}

#: All that `take` can say. "": each value by itself; count: how many keep the bound; most: is that
#: more than half? rising, falling: steps from one value to the next in that direction.
TAKES = ("", "count", "most", "rising", "falling", *REDUCED)


@cache
def _tagged(paper: str) -> list[tuple[frozenset[str], str]]:
    """The words that each cell of a paper carries, and its printed mean."""
    columns = ("table", "method", "attack", "dataset", "model", "checkpoint")
    cells = read_table("results").query("paper == @paper")
    return [
        (frozenset([*(cell[c] for c in columns), *cell["variant"].split()]), cell["mean"])
        for cell in cells.to_dict("records")
    ]


def _cell(paper: str, words: str) -> Decimal:
    """The printed mean of the one cell that carries all `words`."""
    found = [mean for tags, mean in _tagged(paper) if tags.issuperset(words.split())]
    if len(found) != 1 or not found[0]:
        what = "is blank" if len(found) == 1 else f"names {len(found)} cells"
        raise KitError(
            f"'{words}' {what} in {paper}'s tables; it must name exactly one printed cell, by its "
            f"table, method, "
            "attack and, where these do not do, data set, model, checkpoint or variant"
        )
    return Decimal(found[0])


def value(paper: str, expression: str) -> Decimal:
    """A sum of printed means, exactly: value("clirat", "T1 clirat aa - T1 at aa") is -1.37.

    Errors: `KitError` for an unknown paper, or a cell that does not exist, is blank, or is not
    named uniquely.
    """
    rows_of_paper(read_table("results"), paper)
    first, *rest = re.split(r" ([+-]) ", expression)
    signed = [("+", first), *zip(rest[::2], rest[1::2], strict=True)]
    terms = (
        (sign, max(_cell(paper, words) for words in term.split(" / "))) for sign, term in signed
    )
    return sum((term if sign == "+" else -term for sign, term in terms), Decimal())


def _filled(expression: str, over: str) -> list[str]:
    """The expression once for each combination of what `over` lists:

    "a=pgd20 aa;m=clirat/mail-at" ({m[0]}, {m[1]}).
    """
    axes = [axis.split("=", 1) for axis in over.split(";") if axis]
    choices = [
        [word.split("/") if "/" in word else word for word in words.split()] for _, words in axes
    ]
    return [
        expression.format(**dict(zip((name for name, _ in axes), chosen, strict=True)))
        for chosen in product(*choices)
    ]


def _outcomes(take: str, expect: str, values: list[Decimal]) -> list[tuple[Decimal, int, int]]:
    """(number, parts that keep the bound, parts) for each statement that a rule makes; no bound:

    no parts.
    """
    if take not in TAKES:
        raise unknown_name("way to take a rule's values", take, TAKES[1:])
    if take in ("rising", "falling"):
        steps = sum(b > a if take == "rising" else b < a for a, b in pairwise(values))
        return [(Decimal(steps), steps, len(values) - 1)]
    relation, bound = expect.split() if expect else (None, None)

    def holds(number: Decimal) -> bool:
        return bool(relation) and RELATIONS[relation](number, Decimal(bound))

    count = sum(map(holds, values))
    if take == "count":
        return [(Decimal(count), count, len(values))]
    if take == "most":
        return [(Decimal(count), int(2 * count > len(values)), 1)]
    numbers = [REDUCED[take](values)] if take else values
    return [(number, int(holds(number)), int(bool(relation))) for number in numbers]


def _agree(said: str, computed: Decimal) -> bool:
    """Is `said` a rounding of `computed` to as many decimals?"""
    return abs(Decimal(said) - computed) * 2 <= Decimal(1).scaleb(Decimal(said).as_tuple().exponent)


@cache
def _checks() -> pd.DataFrame:
    papers = dict(zip(read_table("claims")["number"], read_table("claims")["paper"], strict=True))
    found = []
    for rule in read_table("rules").itertuples():
        paper = papers[rule.claim]
        filled = _filled(rule.expression, rule.over)
        outcomes = _outcomes(rule.take, rule.expect, [value(paper, text) for text in filled])
        said = rule.said.split() or [""] * len(outcomes)
        texts = [f"{rule.take} of {len(filled)}: {rule.expression}"] if rule.take else filled
        for text, (number, held, of), words in zip(texts, outcomes, said, strict=True):
            found.append(
                {
                    "claim": int(rule.claim),
                    "paper": paper,
                    "statement": text,
                    "expected": rule.expect or rule.take,
                    "from_tables": float(number),
                    "held": held,
                    "of": of,
                    "said": words,
                    "said_by": rule.said_by,
                    "agrees": _agree(words, number) if words else None,
                }
            )
    return pd.DataFrame(found)


def checks(paper: str | None = None) -> pd.DataFrame:
    """Every comparison behind the verdicts, one a row, recomputed from the printed means.

    `from_tables` is the number that comes out (points, fractions in CSA's tables, or a count),
    `held` of `of` its parts keep what is `expected` (0 of 0: a number only). `said` is the number
    given elsewhere, `said_by` by whom: "text" is the paper's prose, "record" the kit's list of
    claims. `agrees`: is it a rounding of what comes out?
    """
    return rows_of_paper(_checks(), paper)


def _verdict(held: int, of: int) -> str:
    return "" if of == 0 else "holds" if held == of else "fails" if held == 0 else "partly"


def claims(paper: str | None = None) -> pd.DataFrame:
    """The 91 claims, by number: in our words, where made, numbers given, what would decide it, and
    what tables say.

    `decided_by` is what it takes: "tables" (arithmetic on printed means), "figure" (drawn, not
    printed), "mathematics" or "runs" (the paper has no numbers for it). Where it is "tables",
    `verdict` is recomputed by the rules of rules.csv: holds (all comparisons), partly, fails
    (none); `held` counts them and `numbers` the given numbers that agree with the tables. It says
    nothing of significance. `remark` is ours. Errors: `KitError` for an unknown paper.
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
