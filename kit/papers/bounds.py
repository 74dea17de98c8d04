"""Bounds such as "> 0": what a claim expects of a number."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from kit.core.errors import KitError

RELATIONS: dict[str, Callable[[Any, Any], Any]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
}


@dataclass(frozen=True)
class Bound:
    """What a value must keep to, such as "> 0"."""

    relation: str
    number: Decimal

    def __str__(self) -> str:
        return f"{self.relation} {self.number}"

    def keeps(self, values: Any) -> Any:
        """Say of a value, or of each value of an array, whether it is on the claimed side.

        Decimals are compared exactly, floating-point numbers with the nearest such number.
        """
        number = self.number if isinstance(values, Decimal) else float(self.number)
        return RELATIONS[self.relation](values, number)


def parse_bound(text: str) -> Bound:
    """Parse a bound such as ">= -0.3".

    Raises:
        KitError: It is not one of RELATIONS and a number.
    """
    relation, _, number = text.partition(" ")
    with contextlib.suppress(InvalidOperation):
        if relation in RELATIONS:
            return Bound(relation, Decimal(number))
    raise KitError(
        f"'{text}' is not a bound; a bound is one of {' '.join(RELATIONS)}, a space and a number, "
        "such as '> 0'"
    )
