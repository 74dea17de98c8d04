"""The controls that a panel can have.

They are records that say what a control is called, what it may be set to, and what it is for. They
know no page; `panel_view` makes ipywidgets of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kit.core.errors import KitError, describe_value, unknown_name


@dataclass(frozen=True)
class Number:
    """A slider with a number field.

    `integer` counts in whole steps, `plays` puts a play button beside it, `meaning` is the tooltip,
    and `symbol` is the letter that formulas have for it.
    """

    name: str
    value: float
    low: float
    high: float
    step: float = 0.01
    meaning: str = ""
    integer: bool = False
    plays: bool = False
    symbol: str = ""

    def parse(self, typed: str) -> float:
        """Return the number that somebody typed; a copied minus sign counts as a hyphen.

        Raises:
            KitError: The words are no number, or one that `check` refuses.
        """
        words = typed.strip().replace("\N{MINUS SIGN}", "-")
        try:
            if "_" in words:
                raise ValueError("Python reads 1_0 as 10; a person may mean anything")
            number = int(words) if words.isdecimal() else float(words)
        except ValueError:
            raise KitError(
                f"{self.name} = {describe_value(typed)} is not a number; type one from "
                f"{self.low:g} to {self.high:g}, with a point before any decimals"
            ) from None
        return self.check(number)

    def check(self, value: Any) -> float:
        """Return the value, rounded as a slider rounds.

        Raises:
            KitError: It is no number, lies outside the range, or has a fraction where whole numbers
                are counted.
        """
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not self.low <= value <= self.high:
            raise KitError(
                f"{self.name} = {describe_value(value)} is out of range; it must be a number from "
                f"{self.low:g} to {self.high:g}"
            )
        if self.integer and int(value) != value:
            raise KitError(
                f"{self.name} = {value} has a fraction; it must be a whole number from "
                f"{self.low:g} to {self.high:g}"
            )
        if self.integer:
            return int(value)
        # a slider sends low + k · step with the error of that sum
        return float(self.value) if abs(value - self.value) < 1e-9 else float(f"{value:.10g}")


@dataclass(frozen=True)
class Choice:
    """One of several words."""

    name: str
    value: str
    options: tuple[str, ...]
    meaning: str = ""

    def check(self, value: Any) -> str:
        """Return the value.

        Raises:
            KitError: It is none of the options.
        """
        if value not in self.options:
            raise unknown_name(f"choice for {self.name}", value, self.options)
        return value


@dataclass(frozen=True)
class Toggle:
    """On or off."""

    name: str
    value: bool
    meaning: str = ""

    def check(self, value: Any) -> bool:
        """The value as True or False."""
        return bool(value)


@dataclass(frozen=True)
class Text:
    """A line of words.

    `checked` gives back the words as they are kept, and raises a KitError for what makes no sense.
    """

    name: str
    value: str
    meaning: str = ""
    checked: Callable[[str], str] = str

    def check(self, value: Any) -> str:
        """Return the words as they are kept.

        Raises:
            KitError: `checked` refuses them.
        """
        return self.checked(value)


@dataclass(frozen=True)
class Action:
    """A button.

    `press()` may change anything of the panel, which is drawn anew afterwards; not where it only
    `sets` controls, which draws by itself.
    """

    name: str
    press: Callable[[], None]
    meaning: str = ""
    sets: bool = False


Control = Number | Choice | Toggle | Text | Action
