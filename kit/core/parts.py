"""TODO core.parts."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import CodeType, FunctionType, MappingProxyType
from typing import Any, get_type_hints

from torch import Tensor

from kit.core.errors import KitError, unknown_name
from kit.core.parameters import check_value
from kit.methods.step_outputs import StepOutputs

# -------------------------------------------------------------------------------------------- parts

#: Keyword arguments that the loop hands to a part on each call; they are not hyper-parameters.
SUPPLIED = frozenset({"generator", "watch", "steps", "step_size", "validate", "own"})


@cache
def list_hyper_parameters(fn: Callable) -> Mapping[str, tuple[Any, Any]]:
    """{name:

    (annotation, default)} of a part's function: its keyword-only parameters but the supplied ones.
    """
    hints = get_type_hints(fn, include_extras=True)
    return MappingProxyType(
        {
            p.name: (hints[p.name], p.default)
            for p in inspect.signature(fn).parameters.values()
            if p.kind is p.KEYWORD_ONLY and p.name not in SUPPLIED
        }
    )


@dataclass(frozen=True)
class Part:
    """A function and the hyper-parameters it runs with.

    Make one with `part`, vary it with `but`.
    """

    fn: Callable
    params: Mapping[str, Any]

    def __call__(self, *args, **supplied):
        return self.fn(*args, **self.params, **supplied)

    @property
    def name(self) -> str:
        return self.fn.__name__

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of `Seen` it reads: the names of its positional parameters."""
        return tuple(
            p.name
            for p in inspect.signature(self.fn).parameters.values()
            if p.kind is not p.KEYWORD_ONLY
        )

    def takes(self, name: str) -> bool:
        """Is `name` one of its function's parameters?"""
        return name in inspect.signature(self.fn).parameters

    def read(self, outputs: StepOutputs, fields: tuple[str, ...] = ()):
        """Call it on `seen`:

        its positional parameters are the fields that they are named after (or `fields`).
        """
        return self(*(getattr(outputs, name) for name in fields or self.reads))

    def but(self, **changes) -> Part:
        """This part with some hyper-parameters changed; unknown or unfit ones raise `KitError`."""
        allowed = list_hyper_parameters(self.fn)
        for name in changes:
            if name not in allowed:
                raise unknown_name(f"parameter of {self.name}", name, allowed)
        checked = {k: check_value(f"{self.name}.{k}", v, allowed[k][0]) for k, v in changes.items()}
        return Part(self.fn, MappingProxyType({**self.params, **checked}))

    def config(self) -> dict:
        """Name and hyper-parameters; for a function from outside the kit also a hash of its code,
        since its name promises nothing about what it computed last week.
        """
        own = (self.fn.__module__ or "").split(".")[0] == "kit"
        return {"fn": self.name, **self.params} | (
            {} if own else {"code": function_digest(self.fn)}
        )

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.params.items())})"


def function_digest(fn: Callable) -> str:
    """12 hex digits over a function's bytecode, names, constants and what it closes over; where its
    file has it does not matter, and neither does the process. Globals that it reads are not
    followed.
    """
    closed = [_fixed(cell.cell_contents, fn) for cell in fn.__closure__ or ()]
    return hashlib.sha256(repr((_code(fn.__code__), closed)).encode()).hexdigest()[:12]


def _fixed(value: Any, fn: Callable) -> Any:
    """A closed-over value as something that prints alike in every process, whole; else a
    `KitError`.
    """
    if isinstance(value, FunctionType):
        return function_digest(value)
    if isinstance(value, Part):
        return value.config()
    if isinstance(value, Tensor):
        return (
            str(value.dtype),
            tuple(value.shape),
            value.detach().cpu().contiguous().flatten().tolist(),
        )
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, [
            _fixed(getattr(value, field.name), fn) for field in dataclasses.fields(value)
        ]
    if isinstance(value, (int, float, str, bytes, type(None), tuple, list)):
        return [_fixed(v, fn) for v in value] if isinstance(value, (tuple, list)) else repr(value)
    raise KitError(
        f"{fn.__name__} closes over a {type(value).__name__}, which no run's key can name; hand it "
        f"numbers, "
        "text, tensors or parts, best as keyword-only parameters"
    )


def _code(value: Any) -> Any:
    """Code objects and sets as values that print alike in every process."""
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, [_code(constant) for constant in value.co_consts]
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def part(fn: Callable, **params) -> Part:
    """`fn` with its default hyper-parameters, changed by `params`."""
    defaults = {name: default for name, (_, default) in list_hyper_parameters(fn).items()}
    return Part(fn, MappingProxyType(defaults)).but(**params)
