"""Parts: functions with the hyper-parameters that they run with. A method is a row of parts."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Mapping
from functools import cache, partial
from types import CodeType, FunctionType, MappingProxyType
from typing import Any, TypeVar, get_type_hints

from torch import Tensor

from kit.core.errors import KitError, unknown_name
from kit.core.parameters import check_value

Function = TypeVar("Function", bound=Callable)

#: What the loop hands to every training attack by keyword; these are no hyper-parameters.
SUPPLIED = frozenset({"generator", "watch", "steps", "step_size", "validate", "trained_loss"})


@cache
def list_hyper_parameters(fn: Callable) -> Mapping[str, tuple[Any, Any]]:
    """List the hyper-parameters of a part's function as {name: (annotation, default)}.

    They are its keyword-only parameters without the ones in `SUPPLIED`.
    """
    hints = get_type_hints(fn, include_extras=True)
    return MappingProxyType(
        {
            p.name: (hints[p.name], p.default)
            for p in inspect.signature(fn).parameters.values()
            if p.kind is p.KEYWORD_ONLY and p.name not in SUPPLIED
        }
    )


class Part(partial):
    """A function and the hyper-parameters that it runs with: a `functools.partial` with ranges.

    Make one with `part`, vary it with `but`. A part is never changed in place.
    """

    @property
    def fn(self) -> Callable:
        """The function."""
        return self.func

    @property
    def params(self) -> Mapping[str, Any]:
        """{name: value} of its hyper-parameters."""
        return MappingProxyType(self.keywords)

    @property
    def name(self) -> str:
        """The function's name."""
        return self.func.__name__

    def but(self, **changes: Any) -> Part:
        """Return this part with some hyper-parameters changed.

        Raises:
            KitError: A name is unknown or a value is out of its range.
        """
        allowed = list_hyper_parameters(self.func)
        for name in changes:
            if name not in allowed:
                raise unknown_name(f"parameter of {self.name}", name, allowed)
        checked = {k: check_value(f"{self.name}.{k}", v, allowed[k][0]) for k, v in changes.items()}
        return Part(self.func, **{**self.keywords, **checked})

    def config(self) -> dict:
        """Return its name and hyper-parameters as JSON values.

        A function from outside the kit adds a hash of its code: its name promises nothing about
        what it computed last week.
        """
        own = (self.func.__module__ or "").split(".")[0] == "kit"
        code = {} if own else {"code": function_digest(self.func)}
        return {"fn": self.name, **self.keywords} | code

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Part):
            return NotImplemented
        return self.func is other.func and self.keywords == other.keywords

    def __hash__(self) -> int:
        return hash((self.func, tuple(self.keywords)))

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.keywords.items())})"


def part(fn: Callable, **params: Any) -> Part:
    """Make a part of `fn` with its default hyper-parameters, changed by `params`.

    Raises:
        KitError: A name is unknown or a value is out of its range.
    """
    defaults = {name: default for name, (_, default) in list_hyper_parameters(fn).items()}
    return Part(fn, **defaults).but(**params)


# ---------------------------------------------------------------------------------------- schedules


def controls(*paths: str) -> Callable[[Function], Function]:
    """State which hyper-parameters a schedule controls, by their dotted names."""

    def state(schedule: Function) -> Function:
        schedule.controls = paths  # type: ignore[attr-defined]  # a function takes any attribute
        return schedule

    return state


def controlled_by(schedule: Part) -> tuple[str, ...]:
    """Return the dotted names of the hyper-parameters that a schedule has stated to control.

    A schedule of one's own without this statement is asked for its first epoch.
    """
    stated = getattr(schedule.fn, "controls", None)
    return tuple(schedule(1, 1)) if stated is None else stated


def attacks_first(stages: Function) -> Function:
    """State that a batch is attacked before its first step, not before the step on x_adv."""
    stages.attacks_first = True  # type: ignore[attr-defined]  # a function takes any attribute
    return stages


# ------------------------------------------------------------------------------- a function's name


def function_digest(fn: Callable) -> str:
    """Hash a function's bytecode, names, constants and what it closes over to 12 hex digits.

    Where its file has it does not matter, and neither does the process. Globals that it reads are
    not followed.

    Raises:
        KitError: The function closes over something that no key can name.
    """
    closed = [_closed_value(cell.cell_contents, fn) for cell in fn.__closure__ or ()]
    return hashlib.sha256(repr((_code_value(fn.__code__), closed)).encode()).hexdigest()[:12]


def _closed_value(value: Any, fn: Callable) -> Any:
    """A closed-over value as something that prints alike in every process."""
    if isinstance(value, Part):
        return value.config()
    if isinstance(value, FunctionType):
        return function_digest(value)
    if isinstance(value, Tensor):
        numbers = value.detach().cpu().contiguous().flatten().tolist()
        return str(value.dtype), tuple(value.shape), numbers
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return type(value).__name__, [_closed_value(field, fn) for field in fields]
    if isinstance(value, (tuple, list)):
        return [_closed_value(v, fn) for v in value]
    if isinstance(value, (int, float, str, bytes, type(None))):
        return repr(value)
    raise KitError(
        f"{fn.__name__} closes over a {type(value).__name__}, which no run's key can name; hand it "
        "numbers, text, tensors or parts, best as keyword-only parameters"
    )


def _code_value(value: Any) -> Any:
    """A code object or a set as something that prints alike in every process."""
    if isinstance(value, CodeType):
        return (
            value.co_code,
            value.co_names,
            [_code_value(constant) for constant in value.co_consts],
        )
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)
