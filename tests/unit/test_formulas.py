"""What is shown is what is computed:

every formula's LaTeX is evaluated, by a parser of its own, against the code.
"""

from __future__ import annotations

import inspect
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import nn

from kit.core.errors import KitError
from kit.core.parts import Part, list_hyper_parameters, part
from kit.core.random_streams import Streams
from kit.methods import criteria, formulas, schedules, weight_perturbation, weights
from kit.methods.criteria import CRITERIA, Criterion
from kit.methods.formulas import (
    FORMULAS,
    NOTATION,
    PREDICTIONS,
    SYMBOLS,
    argument_names,
    criterion_formula,
    format_number,
    formula,
    part_formula,
    plain_text,
)
from kit.methods.losses import LOSSES
from kit.methods.regularisers import REGULARISERS, conv_weights
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import METHODS, PART_NAMES
from kit.methods.weights import WEIGHTS

N, CLASSES, STEPS = 24, 6, 10


# -------------------------------------------------------------------------------- a LaTeX evaluator


class NotUnderstood(Exception):
    """Something that the evaluator does not know; nothing is skipped."""


@dataclass(frozen=True)
class Scope:
    """What letters mean:

    `scalars` alone, `indexed` under a subscript, `ranges` the values that an index runs over.
    """

    scalars: dict = field(default_factory=dict)
    indexed: dict = field(default_factory=dict)
    ranges: dict = field(default_factory=dict)

    def plus(self, **changes) -> Scope:
        return Scope(
            *({**getattr(self, f), **changes.get(f, {})} for f in ("scalars", "indexed", "ranges"))
        )


Node = Callable[[dict], object]  # {index: value} -> value
FUNCTIONS = {
    r"\sigma": lambda v: 1 / (1 + np.exp(-v)),
    r"\exp": np.exp,
    r"\log": np.log,
    r"\tanh": np.tanh,
}
RELATIONS = {
    "=": lambda a, b: a == b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    r"\ne": lambda a, b: a != b,
    r"\le": lambda a, b: a <= b,
}
OPENERS = (
    "(",
    "|",
    r"\frac",
    r"\sqrt",
    r"\sum",
    r"\max",
    r"\mathbf",
    r"\lfloor",
    r"\lVert",
    r"\begin{cases}",
    r"\bar",
    r"\operatorname{mean}",
    *FUNCTIONS,
)


class Parser:
    """Recursive descent over the LaTeX of methods/formulas.py."""

    def __init__(self, text: str, scope: Scope):
        names = sorted({*scope.scalars, *scope.indexed}, key=len, reverse=True)
        known = "|".join(
            re.escape(name) + r"(?![A-Za-z])" * (name[0] == "\\" and name[-1].isalpha())
            for name in names
        )
        pattern = (
            rf"\s+|(?P<name>{known or '(?!)'})|\\left(?=\()|\\right(?=\))|(?P<number>\d+(?:\.\d+)?)"
            r"|(?P<token>\\text\{[^{}]*\}|\\(?:begin|end)\{cases\}|\\operatorname\{mean\}|\\[A-Za-z]+|\\\\|[-+/^_(){}\[\]|,:=<>&a-z])"
        )
        self.scope, self.tokens, at = scope, [], 0
        while at < len(text):
            found = re.compile(pattern).match(text, at)
            if found is None:
                raise NotUnderstood(f"'{text[at : at + 20]}' in {text}")
            if found.lastgroup:
                self.tokens.append((found.lastgroup, found[0]))
            at = found.end()
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def kind(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        found = self.peek()
        if not found or (expected and found != expected):
            raise NotUnderstood(f"'{found or 'end'}' where {expected or 'something'} should be")
        self.at += 1
        return found

    def accept(self, token: str) -> bool:
        self.at += (hit := self.kind() == "token" and self.peek() == token)
        return hit

    def whole(self) -> Node:
        node = self.sum()
        if self.peek():
            raise NotUnderstood(f"'{self.peek()}' after the end")
        return node

    def sum(self) -> Node:
        node = self.product()
        while self.peek() in ("+", "-"):
            node = self.binary(
                operator.add if self.take() == "+" else operator.sub, node, self.product()
            )
        return node

    def product(self) -> Node:
        if self.accept("-"):
            inner = self.product()
            return lambda at: -inner(at)
        node = self.power()
        while True:
            if self.accept("/"):
                node = self.binary(operator.truediv, node, self.power())
            elif self.accept(r"\cdot") or (
                self.kind() in ("name", "number")
                or (self.peek() in OPENERS and not (self.peek() == "|" and self.inside_bars))
            ):
                node = self.binary(operator.mul, node, self.power())
            else:
                return node

    inside_bars = False

    def power(self) -> Node:
        base = self.atom()
        if not self.accept("^"):
            return base
        exponent = self.braced() if self.peek() == "{" else self.atom()
        return lambda at: base(at) ** exponent(at)

    def braced(self, opening: str = "{", closing: str = "}") -> Node:
        self.take(opening)
        node = self.sum()
        self.take(closing)
        return node

    def atom(self) -> Node:
        if self.kind() == "number":
            value = float(self.take())
            return lambda at: value
        if self.kind() == "name":
            return self.name()
        token = self.take()
        handlers = {
            "(": lambda: self.closed(")"),
            "|": self.size,
            r"\frac": self.fraction,
            r"\lVert": self.norm,
            r"\sum": lambda: self.fold(sum),
            r"\max": self.largest,
            r"\mathbf": self.indicator,
            r"\begin{cases}": self.cases,
            r"\sqrt": lambda: self.apply(np.sqrt, self.braced()),
            r"\lfloor": lambda: self.apply(math.floor, self.closed(r"\rfloor")),
            r"\bar": lambda: self.apply(np.mean, self.atom()),
            r"\operatorname{mean}": lambda: self.apply(np.mean, self.braced("(", ")")),
        }
        if token in handlers:
            return handlers[token]()
        if token in FUNCTIONS:
            return self.apply(FUNCTIONS[token], self.power())
        raise NotUnderstood(f"'{token}'")

    def name(self) -> Node:
        name, scope = self.take(), self.scope
        if not self.accept("_"):
            if name not in scope.scalars:
                raise NotUnderstood(f"{name} without an index")
            return lambda at: scope.scalars[name]
        index = self.take()
        if name not in scope.indexed or not (index in scope.scalars or index in scope.ranges):
            raise NotUnderstood(f"{name}_{index}")
        return lambda at: scope.indexed[name][at[index] if index in at else scope.scalars[index]]

    def closed(self, closing: str) -> Node:
        node = self.sum()
        self.take(closing)
        return node

    def size(self) -> Node:
        self.inside_bars = True
        node = self.closed("|")
        self.inside_bars = False
        return self.apply(np.abs, node)

    def norm(self) -> Node:
        node = self.closed(r"\rVert")
        self.take("_")
        order = int(self.take())
        return lambda at: np.linalg.norm(np.ravel(node(at)), order)

    @staticmethod
    def binary(fn: Callable, left: Node, right: Node) -> Node:
        return lambda at: fn(left(at), right(at))

    @staticmethod
    def apply(fn: Callable, node: Node) -> Node:
        return lambda at: fn(node(at))

    def fraction(self) -> Node:
        above, below = self.braced(), self.braced()
        return self.binary(operator.truediv, above, below)

    def largest(self) -> Node:
        if self.peek() == "_":
            return self.fold(max)
        self.take("(")
        first = self.sum()
        self.take(",")
        second = self.closed(")")
        return self.binary(max, first, second)

    def fold(self, fn: Callable) -> Node:
        """A sum or maximum over an index, with a condition on it:

        j, j \\ne y, l \\le n, or j : condition.
        """
        self.take("_")
        self.take("{")
        index, start = self.take(), self.at
        if index not in self.scope.ranges:
            raise NotUnderstood(f"an index {index} that runs over nothing")
        condition = None
        if self.accept(":"):
            condition = self.condition()
        elif self.peek() != "}":
            self.at = start
            relation, right = self.take(), self.sum()
            if relation not in RELATIONS:
                raise NotUnderstood(f"'{relation}' after an index")
            condition = lambda at: RELATIONS[relation](at[index], right(at))  # noqa: E731
        self.take("}")
        body = self.product() if fn is sum else self.power()
        values = self.scope.ranges[index]
        return lambda at: fn(
            body({**at, index: value})
            for value in values
            if condition is None or condition({**at, index: value})
        )

    def condition(self) -> Node:
        def one() -> Node:
            left, relation, right = self.side(), self.take(), self.side()
            if relation not in RELATIONS:
                raise NotUnderstood(f"the relation '{relation}'")
            return lambda at: RELATIONS[relation](left(at), right(at))

        parts = [one()]
        while self.accept(r"\lor"):
            parts.append(one())
        return lambda at: any(test(at) for test in parts)

    def side(self) -> Node:
        if self.kind() == "token" and self.peek() in self.scope.ranges:  # an index alone
            index = self.take()
            return lambda at: at[index]
        return self.sum()

    def indicator(self) -> Node:
        if self.take() != "1":
            raise NotUnderstood("a bold letter that is no indicator")
        self.take("[")
        test = self.condition()
        self.take("]")
        return lambda at: float(test(at))

    def cases(self) -> Node:
        branches = []
        while not self.accept(r"\end{cases}"):
            value = self.sum()
            self.take("&")
            word = self.take()
            if word not in (r"\text{if }", r"\text{otherwise}"):
                raise NotUnderstood(word)
            branches.append((value, self.condition() if word == r"\text{if }" else lambda at: True))
            self.accept(r"\\")
        return lambda at: next(value(at) for value, test in branches if test(at))


def evaluate(text: str, scope: Scope) -> tuple[object, list[str]]:
    """(value of a right-hand side, its words).

    Past the first comma stand definitions, read in order, and words.
    """
    main, *rest = text.split(r",\quad ")
    words = []
    for segment in rest:
        if segment.startswith(r"\text{"):
            words.append(segment)
            continue
        left, equals, right = segment.partition(" = ")
        if not equals:
            raise NotUnderstood(segment)
        scope = scope.plus(scalars={left: Parser(right, scope).whole()({})})
    return Parser(main, scope).whole()({}), words


KNOWN = Scope(
    {"y": 1, "a": 3.0, r"\gamma": 0.5, "-m": 7.0}, {"p": {0: 0.2, 1: 0.3, 2: 0.5}}, {"j": range(3)}
)


@pytest.mark.parametrize(
    ("latex", "value"),
    [
        (r"-a^2", -9),
        (r"2 - 3 - 4", -5),
        (r"\frac{1}{2} a", 1.5),
        (r"a \cdot 10^{-2}", 0.03),
        (r"\lfloor a/2 \rfloor - 1", 0),
        (r"\sum_{j} p_j a - 1", 2),
        (r"\sum_{j \ne y} p_j^2", 0.29),
        (r"\max_{j \ne y} p_j - p_y", 0.2),
        (r"\max(a, 4) - 1", 3),
        (r"\sum_{j : p_j > p_y} (p_j - p_y)", 0.2),
        (r"\mathbf 1[a = 3] + \mathbf 1[p_y > a \lor a < 4]", 2),
        (r"\exp(-\gamma a) \log 2", math.exp(-1.5) * math.log(2)),
        (r"\tanh(\gamma) + \sigma(0)", math.tanh(0.5) + 0.5),
        (r"\begin{cases} 1 & \text{if } a < 2 \\ a & \text{otherwise} \end{cases}", 3),
        (r"\sqrt{a} |1 - a|", 2 * 3**0.5),
        (r"b a + 1,\quad b = 2,\quad \text{for all}", 7),
        (r"-m", 7),
        (r"\left( 1 + a \right) a", 12),
    ],
)
def test_the_evaluator_computes(latex, value):
    assert evaluate(latex, KNOWN)[0] == pytest.approx(value, rel=1e-14)


@pytest.mark.parametrize(
    "latex",
    [
        "",
        "a +",
        "(a",
        "a)",
        r"\sin a",
        "z",
        "p",
        "a_j",
        "p_k",
        r"\sum_{k} a",
        r"\foo",
        r"\text{words}",
        "a 1 ]",
        "a!",
        r"\frac{1}",
        r"\sum_{j \in y} p_j",
        r"\mathbf E[a = 1]",
        r"a,\quad b",
        r"a,\quad b = \pi",
        r"\mathbf 1[a]",
        r"\max(a)",
        r"\gammaa",
        r"\begin{cases} 1 & \text{perhaps } a < 2 \end{cases}",
    ],
)
def test_the_evaluator_refuses(latex):
    with pytest.raises(NotUnderstood):
        evaluate(latex, KNOWN)


# --------------------------------------------------------------------------- one batch, one network


def batch() -> StepOutputs:
    """N examples, half of them mostly right; the first has a class of probability 1e-18, where
    MART's 1e-12 counts.
    """
    draw = torch.Generator().manual_seed(5)
    nat, adv, second = (
        2 * torch.randn(N, CLASSES, generator=draw, dtype=torch.float64) for _ in range(3)
    )
    y = torch.randint(CLASSES, (N,), generator=draw)
    adv[torch.arange(N // 2), y[: N // 2]] += 3
    adv[0, (int(y[0]) + 1) % CLASSES] = -40
    kappa, lps = (
        torch.randint(STEPS + 1, (N,), generator=draw).double(),
        torch.randint(STEPS, (N,), generator=draw),
    )
    flip = torch.rand(N, generator=draw, dtype=torch.float64)
    return StepOutputs(
        y, adv, nat, kappa, lps, flip, STEPS, Streams(torch.arange(N), "lottery"), second
    )


def scope_of(seen: StepOutputs, n: int) -> Scope:
    """The letters of the n-th example."""
    second = seen.logits_second.softmax(1)
    indexed = {
        letter: dict(enumerate(values[n].tolist()))
        for letter, values in (
            ("p", seen.probs_nat),
            (r"\hat p", seen.probs_adv),
            (r"\tilde p", second),
        )
    }
    scalars = {
        "y": int(seen.y[n]),
        r"\kappa": float(seen.kappa[n]),
        r"\mathrm{LPS}": float(seen.lps[n]),
        "K": seen.steps,
        "m": N,
        r"p_y(x + \delta^{(t)})": float(seen.p_flip[n]),
    }
    return Scope(scalars, indexed, {"j": range(CLASSES), "i": range(N)})


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 2), nn.Flatten(), nn.Linear(8, 3)
    ).double()


def tensor_scope(name: str, model: nn.Module) -> Scope:
    """What W means to a regulariser: all convolutions in one, or tensor by tensor from 1 on."""
    convolutions = [w.detach().numpy().ravel() for w in conv_weights(model).values()]
    if name == "conv_fuzziness":
        return Scope({"W": np.concatenate(convolutions)})
    every = [
        p.detach().numpy().ravel() for key, p in model.named_parameters() if key.endswith("weight")
    ]
    tensors = {
        "weight_norms": every,
        "conv_l1_minus_l2": convolutions,
        "conv_kurtosis": convolutions,
    }.get(name)
    assert tensors is not None, f"tell tensor_scope in this file what W means in FORMULAS[{name!r}]"
    return Scope({}, {"W": dict(enumerate(tensors, 1))}, {"l": range(1, len(tensors) + 1)})


def letters_of(chosen: Part) -> dict[str, float]:
    return {letter: chosen.params[name] for name, letter in SYMBOLS.get(chosen.name, {}).items()}


def choices(rule: str | tuple) -> tuple[str, dict]:
    """(choosing parameter or "", {its value: formula}) of an entry of FORMULAS or LOSSES."""
    return (
        rule if isinstance(rule, tuple) and isinstance(rule[1], dict) else ("", {"": "".join(rule)})
    )


def other_settings(fn: Callable) -> list[dict]:
    """A part's defaults, other numbers than these, and with them each value of its choosing
    parameter.
    """
    choosing, formulas_of = choices(FORMULAS.get(fn.__name__, ""))
    moved = {}
    for name, (_, default) in list_hyper_parameters(fn).items():
        if name != choosing and type(default) in (int, float):
            moved[name] = (
                default + 1
                if type(default) is int
                else 0.75 * default + (0.625 if default > 1 else 0.1)
            )
    return [{}, moved] + [{**moved, choosing: value} for value in formulas_of if choosing]


def close(shown: list[float], computed: torch.Tensor, what: str) -> None:
    np.testing.assert_allclose(
        shown, computed.detach().double().numpy(), rtol=1e-9, atol=1e-12, err_msg=what
    )


# ----------------------------------------------------------------------- every part has its formula


def functions(module, *but: str) -> list[Callable]:
    return [
        fn
        for name, fn in vars(module).items()
        if inspect.isfunction(fn)
        and fn.__module__ == module.__name__
        and not name.startswith("_")
        and name not in but
    ]


QUANTITIES = functions(criteria)
NORMALISERS = [
    fn
    for fn in functions(weights, "check_weights")
    if [*inspect.signature(fn).parameters][:1] == ["weights"]
]
SELECTIONS = [fn for fn in functions(weights) if "probs_adv" in inspect.signature(fn).parameters]
TIMETABLES = [fn for fn in functions(schedules) if isinstance(fn(1, 1), dict)]
STAGES = [fn for fn in functions(schedules) if fn not in TIMETABLES]
#: A dict, not a set: the order in which tests are collected must be one for all processes.
ATTACKS = dict.fromkeys(
    attack.fn
    for row in METHODS.values()
    for attack in (row.attack, row.second_attack)
    if attack is not None
)


COMPUTING = [
    *QUANTITIES,
    *WEIGHTS.values(),
    *NORMALISERS,
    *TIMETABLES,
    *REGULARISERS.values(),
    *LOSSES.values(),
]
PARTS = {
    fn.__name__: fn
    for fn in (*COMPUTING, *SELECTIONS, *STAGES, *ATTACKS, weight_perturbation.perturb_weights)
}


def test_every_part_has_a_formula():
    used = [
        getattr(row, slot) for row in METHODS.values() for slot in PART_NAMES if slot != "criterion"
    ]
    used += [row.quantity for row in CRITERIA.values()]
    names = set(PARTS) | {chosen.name for chosen in used if chosen is not None}
    assert {fn.__name__ for fn in functions(weights, "check_weights")} <= names, (
        "all of kit/weights.py is some part"
    )
    missing = sorted(names - set(FORMULAS) - set(LOSSES))
    assert not missing, (
        f"add to FORMULAS in methods/formulas.py, their letters to SYMBOLS: {', '.join(missing)}"
    )
    missing = sorted(set(LOSSES) - set(formulas.LOSS_FORMULAS))
    assert not missing, (
        f"add (weighted part, plain part) to LOSSES in methods/formulas.py: {', '.join(missing)}"
    )
    assert (
        set(FORMULAS) <= names and set(formulas.LOSS_FORMULAS) <= names and set(SYMBOLS) <= names
    ), "and none is left over"


@pytest.mark.parametrize("name", PARTS)
def test_every_number_has_a_letter_in_its_formula(name):
    """A parameter is either the one that chooses among formulas, or a letter; every letter is used,
    no two are the same.
    """
    fn, letters = PARTS[name], SYMBOLS.get(name, {})
    choosing, shown = choices(FORMULAS.get(name) or formulas.LOSS_FORMULAS[name])
    given = {
        key for key in list_hyper_parameters(fn) if fn not in ATTACKS or key in ("tau", "omega")
    } - {choosing}
    assert given == set(letters), (
        f"SYMBOLS[{name!r}] in methods/formulas.py must give a letter to each of {sorted(given)}"
    )
    assert len(set(letters.values())) == len(letters)
    for letter in letters.values():
        pattern = r"(?<![A-Za-z\\])" + re.escape(letter) + r"(?![A-Za-z])"
        assert all(re.search(pattern, text) for text in shown.values()), (
            f"{letter} is not in the formula of {name}"
        )


# --------------------------------------------------------------------------- each part, any numbers


def shown_and_computed(fn: Callable, params: dict) -> tuple[list, torch.Tensor]:
    """What a part's formula gives for each example (epoch, or network), and what the part does."""
    seen, chosen, name = batch(), part(fn, **params), fn.__name__
    letters = letters_of(chosen)
    scopes = [scope_of(seen, n).plus(scalars=letters) for n in range(N)]
    text = part_formula(chosen)
    if fn in QUANTITIES:
        fields = tuple(
            {"probs": "probs_adv"}.get(argument, argument) for argument in argument_names(fn)
        )
        text = criterion_formula(Criterion("", chosen, fields, 1, "q", ""))
        computed = chosen(*(getattr(seen, field) for field in fields))
        return [evaluate(text, scope)[0] for scope in scopes], computed
    values = torch.linspace(-0.7, 0.7, N, dtype=torch.float64)
    if fn in WEIGHTS.values():
        scopes = [
            scope.plus(scalars={"s": s}) for scope, s in zip(scopes, values.tolist(), strict=True)
        ]
        return [evaluate(text, scope)[0] for scope in scopes], chosen(values)
    if fn in NORMALISERS:
        values = values.exp()
        scopes = [
            scope.plus(scalars={"v": v}, indexed={"v": dict(enumerate(values.tolist()))})
            for scope, v in zip(scopes, values.tolist(), strict=True)
        ]
        return [evaluate(text, scope)[0] for scope in scopes], chosen(values)
    if fn in REGULARISERS.values():
        return [evaluate(text, tensor_scope(name, network()).plus(scalars=letters))[0]], chosen(
            network()
        )[None]
    if fn in TIMETABLES:
        computed = [float(*chosen(t, 120).values()) for t in range(1, 121)]
        shown = [evaluate(text, Scope({**letters, "t": t, "T": 120}))[0] for t in range(1, 121)]
        return shown, torch.tensor(computed, dtype=torch.float64)
    weighted, plainly = chosen(seen)
    text, bare = formulas.LOSS_FORMULAS[name]
    shown = [evaluate(text, scope)[0] for scope in scopes] + [
        evaluate(bare or "0", scope)[0] for scope in scopes
    ]
    return shown, torch.cat([weighted, plainly.expand(N)])


@pytest.mark.parametrize("fn", COMPUTING, ids=lambda fn: fn.__name__)
def test_a_part_computes_its_formula(fn):
    for params in other_settings(fn):
        shown, computed = shown_and_computed(fn, params)
        close(shown, computed, f"{fn.__name__} {params}")


def mutants(text: str) -> list[str]:
    """`text` with each + and - turned round, one at a time; 1e-12 beside 1.0001 - p cannot be
    noticed.
    """
    signs = [
        found.start()
        for found in re.finditer(r"[-+]", text)
        if not text[found.start() :].startswith("+ 10^{-12})")
    ]
    return [text[:at] + {"+": "-", "-": "+"}[text[at]] + text[at + 1 :] for at in signs]


@pytest.mark.parametrize("fn", COMPUTING, ids=lambda fn: fn.__name__)
def test_a_changed_sign_is_noticed(fn, monkeypatch):
    """So the comparison above would see it."""
    name, params = fn.__name__, other_settings(fn)[-1]
    if fn in LOSSES.values():
        table, (left, right) = formulas.LOSS_FORMULAS, formulas.LOSS_FORMULAS[name]
        changed = [(text, right) for text in mutants(left)] + [
            (left, text) for text in mutants(right)
        ]
    else:
        table, changed = FORMULAS, mutants(part_formula(part(fn, **params)))
    for wrong in changed:
        monkeypatch.setitem(table, name, wrong)
        with np.errstate(all="ignore"), pytest.raises((AssertionError, NotUnderstood)):
            close(*shown_and_computed(fn, params), wrong)


def test_perturbed_weights_stand_where_the_formula_says():
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss() -> torch.Tensor:
        return model(x).square().mean()

    found = dict(zip(before, torch.autograd.grad(loss(), [*model.parameters()]), strict=True))
    with weight_perturbation.perturb_weights(model, loss, gamma=0.3):
        for name, p in model.named_parameters():
            if name.endswith("weight") and p.dim() > 1:
                scope = Scope(
                    {"W": before[name].numpy(), "g": found[name].numpy(), r"\gamma_W": 0.3}
                )
                close(evaluate(FORMULAS["perturb_weights"], scope)[0], p, name)
            else:
                assert torch.equal(p, before[name]), f"{name} is no weight tensor"


# ------------------------------------------------------------------------ every row, as it is shown


@pytest.mark.parametrize("name", METHODS)
def test_a_row_computes_what_it_shows(name):
    """Each line of the shown block, read from the LaTeX itself, with its own numbers, in one epoch
    past burn-in.
    """
    epoch, row = 100, METHODS[name]
    method, seen, model = row.at(epoch, 120), batch(), network()
    block = formula(row).latex.removeprefix("\\begin{aligned}\n").removesuffix("\n\\end{aligned}")
    lines = dict(line.split(" &= ") for line in block.split(" \\\\\n"))
    scopes = [scope_of(seen, n).plus(scalars={"t": epoch, "T": 120}) for n in range(N)]
    weighted, bare = method.loss(seen)
    weights = method.weigh(seen).detach()
    timed = row.schedule(epoch, 120) if row.schedule else {}
    penalty = float(method.regulariser(model).detach()) if method.regulariser else 0.0

    def check(left: str, computed: torch.Tensor) -> list[str]:
        nonlocal scopes
        values, words = zip(*(evaluate(lines[left], scope) for scope in scopes), strict=True)
        close(values, computed, f"{name}: {left} = {lines.pop(left)}")
        together = {left: dict(enumerate(values))}
        scopes = [
            scope.plus(scalars={left: value}, indexed=together)
            for scope, value in zip(scopes, values, strict=True)
        ]
        return words[0]

    words = [lines.pop(left) for left in (r"\hat p", r"\tilde p") if left in lines]
    assert all(text.startswith(r"\text{prediction for }") for text in words)
    assert len(words) == (2 if row.second_attack else 1)
    for path, value in timed.items():
        slot, _, parameter = path.partition(".")
        check(
            SYMBOLS[getattr(row, slot).name][parameter],
            torch.full((N,), value, dtype=torch.float64),
        )
    if method.weight:
        check(formulas.axis_symbol(row.criterion), method.criterion.value(seen))
        check("v", method.weight(method.criterion.score(seen)))
    if method.select:
        assert lines.pop("k") == FORMULAS["drop_confused"][1][method.select.params["which"]]
        keep = method.select(replace(seen, streams=batch().streams))
        weights = replace(method, select=None).weigh(seen) * keep
        scopes = [
            scope.plus(scalars={"k": float(kept)}) for scope, kept in zip(scopes, keep, strict=True)
        ]
    if method.reweights:
        words = check("w", weights)
        first = round(row.burn_in * 120)
        assert words == [r"\text{with its gradient}"] * (not row.detach) + (
            [rf"\text{{but 1 in the first {first} of 120 epochs}}"] if first else []
        )
    check(r"\ell", weights * weighted + bare)
    if method.regulariser:
        values, _ = evaluate(lines["R"], tensor_scope(method.regulariser.name, model))
        close([values], torch.tensor([penalty], dtype=torch.float64), lines.pop("R"))
        scopes = [scope.plus(scalars={"R": values}) for scope in scopes]
    check(r"\mathcal L", ((weights * weighted + bare).mean() + penalty).expand(N))
    if method.perturb:
        assert lines.pop("W'").startswith(FORMULAS["perturb_weights"])
    assert not lines, "nothing is shown that was not checked"


@pytest.mark.parametrize("name", METHODS)
def test_a_letter_has_one_meaning_in_a_row(name):
    """The numbers of one row do not contradict each other."""
    found = re.findall(r",\\quad (\S+) = (\S+?)(?=,| \\\\|\n)", formula(METHODS[name]).latex)
    given = [pair for pair in found if pair[0] not in ("s", r"\rho")]
    assert len(dict(given)) == len(given), given


@pytest.mark.parametrize("name", METHODS)
def test_text_is_one_plain_line(name):
    shown = formula(METHODS[name])
    assert not set("\\\n&$⟦⟧") & set(shown.text) and repr(shown) == shown.text
    assert shown.text.count("{") == shown.text.count("}") and shown.text.count(
        "("
    ) == shown.text.count(")")
    assert shown._repr_latex_() == f"$${shown.latex}$$"
    for value in (
        value
        for path, value in METHODS[name].hyper_parameters().items()
        if path.split(".")[0] in ("weight", "loss", "regulariser")
    ):
        assert re.search(
            rf"= {re.escape(plain_text(format_number(value)))}(?=[,;]|$)", shown.text
        ), value


def test_text_of_two_rows():
    assert formula(METHODS["mail-at"]).text == (
        "p̂ = prediction for x̂, found by PGD on the cross-entropy; PM^adv = p̂_y - max_{j ≠ y} "
        "p̂_j; "
        "v = σ(γ (s + β)), s = -PM^adv, γ = 10, β = -0.5; w = M v, M = 3, but 1 in the first 75 of "
        "120 epochs; "
        "ℓ = w (-log p̂_y); L = 1/m Σ_i ℓ_i"
    )
    assert (
        "ℓ = w β_KL Σ_j p_j log (p_j/p̂_j) - log p_y, β_KL = 5"
        in formula(METHODS["clir-trades"]).text
    )
    assert "but 1 in the first 25 of 40 epochs" in formula(METHODS["clir-trades"], epochs=40).text


@pytest.mark.parametrize(
    "value", [0, 3, 10.0, -0.5, 5 / 11, -1 / 3, 1e-5, 2.5e-12, 0.007, 1 / 255, math.pi, 123456789.0]
)
def test_numbers_are_exact(value):
    assert evaluate(format_number(value), Scope())[0] == pytest.approx(value, rel=1e-15)


def test_a_part_of_ones_own_appears_by_its_name():
    """Also where it has the name of one of the kit's: its formula is not the kit's."""

    def sigmoid(score, *, steep: float = 2.0):
        return score

    def margin_squared(probs, y):
        return probs[:, 0]

    mine = part(margin_squared)
    row = METHODS["mail-at"].but(
        "mine",
        "here",
        weight=part(sigmoid, steep=2.0),
        criterion=Criterion("mine", mine, ("probs_nat", "y"), -1, "my score", "here"),
    )
    assert (
        "my score = margin_squared(" in formula(row).text
        and "v = sigmoid(score, steep = 2.0)" in formula(row).text
    )


def test_what_epochs_may_be():
    with pytest.raises(KitError, match="at least 1"):
        formula(METHODS["at"], epochs=0)


def test_notation_names_every_prediction():
    assert all(
        plain_text(letter) in NOTATION for field, letter in PREDICTIONS.items() if field != "probs"
    )
