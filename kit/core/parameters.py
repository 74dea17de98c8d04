"""Ranges of hyper-parameters, and the one place that validates a value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from kit.core.errors import KitError, describe_value, unknown_name

# ------------------------------------------------------------------------------------------- values


@dataclass(frozen=True)
class Range:
    """An allowed interval; `above=True` leaves its lower end out."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        if self.high < math.inf and self.low > -math.inf:
            return f"{'above ' if self.above else ''}{self.low:g} to {self.high:g}"
        if self.low > -math.inf:
            return f"{'above' if self.above else 'at least'} {self.low:g}"
        return f"at most {self.high:g}" if self.high < math.inf else "any number"


Real = Annotated[float, Range()]

Positive = Annotated[float, Range(0, above=True)]

NonNegative = Annotated[float, Range(0)]

Share = Annotated[float, Range(0, 1)]

Count = Annotated[int, Range(1)]

Natural = Annotated[int, Range(0)]


def check_value(name: str, value: Any, annotation: Any) -> Any:
    """Return `value` as its annotation wants it; an int is fine where a float is meant.

    `annotation`: a type, a `Literal`, a tuple of one kind, or one of these with a `Range`. Of a
    union the first member counts.

    Raises:
        KitError: The value is of another type, none of the choices, or out of its range.
    """
    expected, ranges = annotation, []
    if get_origin(annotation) is Annotated:
        expected, *ranges = get_args(annotation)
    kind = get_origin(expected)
    # say a name or a tensor: what a row or a user's text gives is the first
    if kind in (Union, UnionType):
        return check_value(name, value, get_args(expected)[0])
    if kind is Literal:
        return _check_choice(name, value, get_args(expected))
    if kind is tuple:
        return _check_list(name, value, get_args(expected)[0])
    return _check_range(name, _check_type(name, value, expected), ranges)


def _check_choice(name: str, value: Any, choices: tuple) -> Any:
    if not any(isinstance(value, type(choice)) and value == choice for choice in choices):
        raise unknown_name(f"value of {name}", value, map(str, choices))
    return value


def _check_list(name: str, value: Any, item: Any) -> tuple:
    if not isinstance(value, (list, tuple)):
        raise KitError(f"{name}={describe_value(value)} must be a list such as [10, 20]")
    return tuple(check_value(f"{name}[{i}]", v, item) for i, v in enumerate(value))


def _check_type(name: str, value: Any, expected: type) -> Any:
    """The value, an int as a float where a float is expected."""
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 10**300 else math.inf
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        kinds = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
        raise KitError(
            f"{name}={describe_value(value)} is {type(value).__name__}; it must be "
            f"{kinds[expected]}"
        )
    return value


def _check_range(name: str, value: Any, ranges: list[Range]) -> Any:
    """The value, if it is finite and in the ranges; text is in every range."""
    if isinstance(value, (int, float)):
        fits = math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63
        for allowed in ranges or [Range()]:
            if not fits or value not in allowed:
                raise KitError(
                    f"{name}={describe_value(value)} is out of range; it must be {allowed}"
                )
    return value + 0.0 if isinstance(value, float) else value  # -0.0 is 0.0: one number, one key
