"""The records everything else is made of: errors, tables, parts, threats, random streams, and `Seen`.

What computes is a function and what is remembered is a frozen record, so a method is nothing but a row of
functions with their hyper-parameters (`Part`). Hyper-parameters carry their range in their annotation
(`Annotated[float, Range(0)]`), and `check_value` is the only place that validates one.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from types import CodeType, FunctionType, MappingProxyType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor


class KitError(ValueError):
    """Something a user can mend: what is wrong, what was expected, what to do."""

    def _render_traceback_(self) -> list[str]:  # IPython's hook: in a notebook the sentence is enough
        return [f"KitError: {self}"]


def shown(value: object) -> str:
    """A value as an error names it: whatever it is, in at most a hundred characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):     # Python prints no number of more than 4,300 digits
        text = f"something of type {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def unknown(kind: str, name: object, choices: Iterable[str]) -> KitError:
    """The error for a name that does not exist, with the nearest one that does."""
    choices = sorted(choices)
    text = name if isinstance(name, str) and len(name) <= 1000 else shown(name)
    near = difflib.get_close_matches(text, choices, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return KitError(f"there is no {kind} '{text}'.{hint} Choices: {', '.join(choices) or 'none'}")


class Table(dict):
    """A dict of named rows: an unknown name says which exist, and it prints as a table."""

    def __init__(self, kind: str, rows: Mapping[str, Any]):
        super().__init__(rows)
        self.kind = kind

    def __missing__(self, name: object):
        raise unknown(self.kind, name, self)

    def rows(self) -> list[tuple[str, str]]:
        return [(name, describe(row)) for name, row in self.items()]

    def __repr__(self) -> str:
        width = max((len(name) for name in self), default=0)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in self.rows())

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><th style='text-align:left'>{n}</th><td style='text-align:left'>{t}</td></tr>"
                        for n, t in self.rows())
        return f"<table>{cells}</table>"


def describe(row: Any) -> str:
    """One line about a row of a table: its title, or the first line of its docstring."""
    text = getattr(row, "title", None) or inspect.getdoc(getattr(row, "fn", row)) or ""
    return text.split("\n")[0]


# ---------------------------------------------------------------------------------------------- values

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
    """`value` as its annotation wants it (an int is fine where a float is meant), else a `KitError`."""
    expected, ranges = annotation, ()
    if get_origin(annotation) is Annotated:
        expected, *ranges = get_args(annotation)
    if get_origin(expected) in (Union, UnionType):  # say a name or a tensor: a row or a user's text is the first
        return check_value(name, value, get_args(expected)[0])
    if get_origin(expected) is Literal:
        if not any(isinstance(value, type(choice)) and value == choice for choice in get_args(expected)):
            raise unknown(f"value of {name}", value, map(str, get_args(expected)))
        return value
    if get_origin(expected) is tuple:
        if not isinstance(value, (list, tuple)):
            raise KitError(f"{name}={shown(value)} must be a list such as [10, 20]")
        item = get_args(expected)[0]
        return tuple(check_value(f"{name}[{i}]", v, item) for i, v in enumerate(value))
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 10 ** 300 else math.inf
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        kind = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}[expected]
        raise KitError(f"{name}={shown(value)} is {type(value).__name__}; it must be {kind}")
    if isinstance(value, (int, float)):
        fits = math.isfinite(value) if isinstance(value, float) else abs(value) < 2 ** 63
        for allowed in ranges or [Range()]:
            if not fits or value not in allowed:
                raise KitError(f"{name}={shown(value)} is out of range; it must be {allowed}")
    return value + 0.0 if isinstance(value, float) else value     # -0.0 is 0.0: one number, one key


# ---------------------------------------------------------------------------------------------- parts

#: Keyword arguments that the loop hands to a part on each call; they are not hyper-parameters.
SUPPLIED = frozenset({"generator", "watch", "steps", "step_size", "validate", "own"})


@cache
def hyper_parameters(fn: Callable) -> Mapping[str, tuple[Any, Any]]:
    """{name: (annotation, default)} of a part's function: its keyword-only parameters but the supplied ones."""
    hints = get_type_hints(fn, include_extras=True)
    return MappingProxyType({
        p.name: (hints[p.name], p.default) for p in inspect.signature(fn).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in SUPPLIED})


@dataclass(frozen=True)
class Part:
    """A function and the hyper-parameters it runs with. Make one with `part`, vary it with `but`."""

    fn: Callable
    params: Mapping[str, Any]

    def __call__(self, *args, **supplied):
        return self.fn(*args, **self.params, **supplied)

    @property
    def name(self) -> str:
        return self.fn.__name__

    @property
    def sees(self) -> tuple[str, ...]:
        """The fields of `Seen` it reads: the names of its positional parameters."""
        return tuple(p.name for p in inspect.signature(self.fn).parameters.values() if p.kind is not p.KEYWORD_ONLY)

    def takes(self, name: str) -> bool:
        """Is `name` one of its function's parameters?"""
        return name in inspect.signature(self.fn).parameters

    def read(self, seen: Seen, fields: tuple[str, ...] = ()):
        """Call it on `seen`: its positional parameters are the fields that they are named after (or `fields`)."""
        return self(*(getattr(seen, name) for name in fields or self.sees))

    def but(self, **changes) -> Part:
        """This part with some hyper-parameters changed; unknown or unfit ones raise `KitError`."""
        allowed = hyper_parameters(self.fn)
        for name in changes:
            if name not in allowed:
                raise unknown(f"parameter of {self.name}", name, allowed)
        checked = {k: check_value(f"{self.name}.{k}", v, allowed[k][0]) for k, v in changes.items()}
        return Part(self.fn, MappingProxyType({**self.params, **checked}))

    def config(self) -> dict:
        """Name and hyper-parameters; for a function from outside the kit also a hash of its code, since its name promises
        nothing about what it computed last week."""
        own = (self.fn.__module__ or "").split(".")[0] == "kit"
        return {"fn": self.name, **self.params} | ({} if own else {"code": function_digest(self.fn)})

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.params.items())})"


def function_digest(fn: Callable) -> str:
    """12 hex digits over a function's bytecode, names, constants and what it closes over; where its file has it does not
    matter, and neither does the process. Globals that it reads are not followed."""
    closed = [_fixed(cell.cell_contents, fn) for cell in fn.__closure__ or ()]
    return hashlib.sha256(repr((_code(fn.__code__), closed)).encode()).hexdigest()[:12]


def _fixed(value: Any, fn: Callable) -> Any:
    """A closed-over value as something that prints alike in every process, whole; else a `KitError`."""
    if isinstance(value, FunctionType):
        return function_digest(value)
    if isinstance(value, Part):
        return value.config()
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().cpu().contiguous().flatten().tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, [_fixed(getattr(value, field.name), fn) for field in dataclasses.fields(value)]
    if isinstance(value, (int, float, str, bytes, type(None), tuple, list)):
        return [_fixed(v, fn) for v in value] if isinstance(value, (tuple, list)) else repr(value)
    raise KitError(f"{fn.__name__} closes over a {type(value).__name__}, which no run's key can name; hand it numbers, "
                   "text, tensors or parts, best as keyword-only parameters")


def _code(value: Any) -> Any:
    """Code objects and sets as values that print alike in every process."""
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, [_code(constant) for constant in value.co_consts]
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def part(fn: Callable, **params) -> Part:
    """`fn` with its default hyper-parameters, changed by `params`."""
    defaults = {name: default for name, (_, default) in hyper_parameters(fn).items()}
    return Part(fn, MappingProxyType(defaults)).but(**params)


# ---------------------------------------------------------------------------------------------- threat

@dataclass(frozen=True)
class Threat:
    """The set of allowed perturbations: an L-inf or L2 ball of radius `eps` (pixels in [0, 1])."""

    norm: Literal["linf", "l2"] = "linf"
    eps: NonNegative = 8 / 255

    def __post_init__(self):
        for field, hint in get_type_hints(type(self), include_extras=True).items():
            object.__setattr__(self, field, check_value(f"Threat.{field}", getattr(self, field), hint))

    def __str__(self) -> str:
        name = {"linf": "L∞", "l2": "L2"}[self.norm]
        over_255 = self.eps * 255
        whole = 0 < over_255 < 1e9 and abs(over_255 - round(over_255)) < 1e-9
        return f"{name} eps {f'{round(over_255)}/255' if whole else f'{self.eps:g}'}"


# ---------------------------------------------------------------------------------------------- randomness

def derive(*parts: object) -> int:
    """A 63-bit seed from anything printable: the same words give the same stream on every machine."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU random stream named by `parts`, say (seed, "order", epoch)."""
    return torch.Generator().manual_seed(derive(*parts))


def _as_int64(number: int) -> int:
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number


def _mix(bits: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014) on int64 tensors; products wrap."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ ((bits >> shift) & ((1 << (64 - shift)) - 1))) * _as_int64(factor)
    return bits ^ ((bits >> 31) & ((1 << 33) - 1))


class Streams:
    """One random stream per example: what an example draws depends on its id alone.

    Batch size, batch mates, order and device do not matter. Each call draws anew. `ids` is (N,) int64.
    """

    def __init__(self, ids: Tensor, *parts: object):
        self.ids, self.parts, self.draws = ids, parts, 0

    def uniform(self, like: Tensor) -> Tensor:
        """U[0, 1) in the shape and dtype of `like` (N, ...), 24 bits each."""
        if len(like) != len(self.ids):
            raise KitError(f"{len(self.ids)} example ids cannot seed a batch of {len(like)}")
        width = math.prod(like.shape[1:])
        self.draws += 1
        start = _as_int64(derive(*self.parts, self.draws))
        ids = self.ids.to(like.device)
        per_example = _mix(ids * _as_int64(0x9E3779B97F4A7C15) + start)
        place = torch.arange(1, width + 1, device=like.device) * _as_int64(0xD1B54A32D192ED03)
        bits = _mix(per_example[:, None] + place[None, :])
        return (((bits >> 40) & 0xFFFFFF).to(like.dtype) / (1 << 24)).view(like.shape)

    def of(self, ids: Tensor) -> Streams:
        """The same streams, as far as they have been drawn from, of other examples."""
        streams = Streams(ids, *self.parts)
        streams.draws = self.draws
        return streams

    def normal(self, like: Tensor) -> Tensor:
        """N(0, 1) in the shape of `like`, by Box and Muller."""
        radius = (-2 * torch.log1p(-self.uniform(like))).sqrt()
        return radius * torch.cos(2 * math.pi * self.uniform(like))


class Joined(Streams):
    """The streams of several batches that go through a program as one, the first batch's examples first."""

    def __init__(self, several: Sequence[Streams]):
        self.several, self.ids = several, torch.cat([streams.ids for streams in several])

    def uniform(self, like: Tensor) -> Tensor:
        parts = like.split([len(streams.ids) for streams in self.several])
        return torch.cat([streams.uniform(part) for streams, part in zip(self.several, parts, strict=True)])


def draw(source: Streams | torch.Generator | None, kind: Literal["uniform", "normal"], like: Tensor) -> Tensor:
    """U[0, 1) or N(0, 1) like `like`, from per-example streams, a generator, or torch's global one (None)."""
    if isinstance(source, Streams):
        return getattr(source, kind)(like)
    sample = torch.rand if kind == "uniform" else torch.randn
    device = source.device if source is not None else like.device
    return sample(like.shape, generator=source, device=device, dtype=like.dtype).to(like.device)


# ---------------------------------------------------------------------------------------------- what is seen

@dataclass(frozen=True)
class Seen:
    """What one training step sees of each example; every part of a method reads from here.

    Logits are (N, K), the rest (N,). A field that no part of the method asks for is None and was never
    computed. `kappa`, `lps` and `p_flip` come from the inner attack's own forward passes (eval mode); the
    logits are the outer pass of the training step (train mode).
    """

    y: Tensor                        # labels
    logits_adv: Tensor               # of the training input: x_adv, or x where the stage is clean
    logits_nat: Tensor | None = None
    kappa: Tensor | None = None      # evaluation points classified correctly, 0..steps (GAIRAT)
    lps: Tensor | None = None        # first misclassified step, `steps` if none
    p_flip: Tensor | None = None     # p_y at that step
    steps: int = 0                   # inner attack steps
    streams: Streams | None = None   # for parts that draw
    logits_second: Tensor | None = None   # (N, K), of the second attack's images where a method has one

    @cached_property
    def probs_adv(self) -> Tensor:
        return self.logits_adv.softmax(dim=1)

    @cached_property
    def probs_nat(self) -> Tensor:
        return self.logits_nat.softmax(dim=1)

    def detach(self) -> Seen:
        """The same values without a gradient: what criteria and weights may look at."""
        return self._each(Tensor.detach)

    def take(self, rows: slice, streams: Streams) -> Seen:
        """Some of the examples, whose streams are `streams`."""
        return dataclasses.replace(self._each(lambda values: values[rows]), streams=streams)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Seen:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Seen(**{k: change(v) if isinstance(v, Tensor) else v for k, v in fields.items()})
