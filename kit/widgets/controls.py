"""Sliders for the hyper-parameters of a method's parts, made from the parts' own signatures, and
the numbers that rows and papers give them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from kit.core.parameters import Range
from kit.core.parts import Part, list_hyper_parameters
from kit.experiments.specification import parse_overrides
from kit.figures.explanation import EPOCHS, explain
from kit.methods.criteria import Criterion
from kit.methods.formulas import SYMBOLS
from kit.methods.table import METHODS, Method
from kit.papers.printed_data import PAPERS, read_table
from kit.widgets.panel import Choice, Control, Number, Panel, Toggle

#: The rows whose weight is a function of a score; where examples are left out as well
#: (clirat-drop-...) it is not.
CURVED = tuple(
    name for name, row in METHODS.items() if row.weight is not None and row.select is None
)


def parameters(
    name: str, slots: tuple[str, ...] = ("criterion", "weight", "normaliser", "schedule")
) -> dict[str, Any]:
    """{dotted name: value} of a row's hyper-parameters in these parts, as overrides name them."""
    return {
        path: value
        for path, value in METHODS[name].hyper_parameters().items()
        if path.partition(".")[0] in slots
    }


def with_parameters(name: str, values: dict[str, Any]) -> Method:
    """The row with those of `values` that are its hyper-parameters."""
    row = METHODS[name]
    for path in parameters(name):
        row = row.override(path, values[path]) if path in values else row
    return row


def sliders(name: str, *slots: str) -> list[Control]:
    """A control for every hyper-parameter of a row's parts, as its annotation in the part's
    signature allows. Where that has no end, a slider reaches two and a half times as far as the row
    and the papers do.
    """
    return [
        _control(name, path, value)
        for path, value in parameters(name, *([slots] if slots else [])).items()
    ]


def part_of(row: Method, slot: str) -> Part:
    chosen = getattr(row, slot)
    return chosen.quantity if isinstance(chosen, Criterion) else chosen


def _control(name: str, path: str, value: Any) -> Control:
    slot, _, parameter = path.partition(".")
    annotation, _ = list_hyper_parameters(part_of(METHODS[name], slot).fn)[parameter]
    meaning = explain(name).hyper_parameters[path][1]
    if annotation is bool:
        return Toggle(path, value, meaning)
    if get_origin(annotation) is Literal:
        return Choice(path, value, get_args(annotation), meaning)
    kind, *ranges = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    allowed = ranges[0] if ranges else Range()
    reach = nice(2.5 * max(abs(setting.get(path, 0)) for _, setting in printed(name)))
    step = 1 if kind is int else 10.0 ** math.floor(math.log10(reach / 100))
    low = max(allowed.low, -reach) + (step if allowed.above else 0)
    return Number(
        path, value, low, min(allowed.high, max(reach, low + 1)), step, meaning, integer=kind is int
    )


def nice(value: float) -> float:
    """The smallest of 1, 2, 3, 5, 10, ...

    times a power of ten that is not below `value`; 1 for 0.
    """
    if value <= 0:
        return 1.0
    scale = 10.0 ** math.floor(math.log10(value))
    return next(step * scale for step in (1, 2, 3, 5, 10) if step * scale >= value * (1 - 1e-9))


@cache
def printed(name: str) -> list[tuple[str, dict[str, Any]]]:
    """[(who says so, {dotted name: value, and burn_in as a share of the epochs})] of a row: its
    own, those of rows that differ from it in numbers alone, and what the papers print of it in
    their settings and tables (`kit.papers`).
    """
    own = parameters(name) | {"burn_in": METHODS[name].burn_in}
    found: list[tuple[str, dict[str, Any]]] = [(f"row {name}", own)]
    found += [
        (f"row {other}", own | parameters(other) | {"burn_in": METHODS[other].burn_in})
        for other in CURVED
        if other != name and _kind(METHODS[other]) == _kind(METHODS[name])
    ]
    for line in read_table("hyperparameters").query("row == @name").itertuples():
        if changes := _settings(name, line):
            found.append((f"{PAPERS[line.paper].label}, {line.dataset}", own | changes))
    for line in read_table("results").query("row == @name and overrides != ''").itertuples():
        changes = parse_overrides(line.overrides)
        if changes.keys() <= own.keys():
            found.append(
                (f"{PAPERS[line.paper].label} {line.table}: {line.overrides}", own | changes)
            )
    return found


def presets(name: str, epochs: int) -> dict[str, dict[str, Any]]:
    """{who says so: {dotted name: value, and burn_in in epochs}} for a run of so many epochs, which
    may make two alike: a paper that says the same as another stands in its name, further rows and
    tables do not.
    """
    names: list[tuple[list[str], dict[str, Any]]] = []
    for words, values in printed(name):
        values = values | {"burn_in": min(round(values["burn_in"] * epochs), epochs - 1)}
        known = next((others for others, same in names if same == values), None)
        if known is None:
            names.append(([words], values))
        elif "," in words and not any(other.startswith(words.partition(",")[0]) for other in known):
            known.append(words.partition(",")[0])
    return {" = ".join(words): values for words, values in names}


def _kind(row: Method) -> tuple:
    """What two rows share that differ in numbers alone."""
    read_by = row.criterion
    return (
        read_by.quantity.fn,
        read_by.reads,
        read_by.safe_end,
        row.weight.fn,
        row.normaliser.fn,
        row.schedule.fn if row.schedule else None,
    )


def _settings(name: str, line: Any) -> dict[str, Any]:
    """The numbers of a paper's line of settings that belong to the row's parts; {} where one is a
    list, none is there, or burn-in is not stated.
    """
    letters = {
        SYMBOLS.get(part_of(METHODS[name], path.partition(".")[0]).name, {}).get(
            path.partition(".")[2]
        ): path
        for path in parameters(name)
    }
    changes: dict[str, Any] = {}
    for letter in ("gamma", "beta", "alpha", "tau"):
        text, path = getattr(line, letter), letters.get(rf"\{letter}")
        if text and path:
            if not re.fullmatch(r"-?\d+(\.\d+)?", text):
                return {}
            # MR writes σ(-γ (m + β)) with β = 0.5 where MAIL has σ(-γ (PM - β)) with β = -0.5
            changes[path] = -float(text) if (line.paper, letter) == ("mr", "beta") else float(text)
    first = re.match(r"\d+", line.burn_in_epochs)
    return (
        changes | {"burn_in": int(first[0]) / int(line.epochs or EPOCHS)}
        if changes and first
        else {}
    )


def choose_first(
    panel: Panel, choices: tuple[str, ...], kept: tuple[str, ...], given: dict, set_: Callable
) -> None:
    """Set the choices on which other controls hang one by one, all but the `kept` values beginning
    anew with each, then the rest. All or nothing.
    """
    before, begun = dict(panel.values), False
    try:
        for name in choices:
            if name in given and given[name] != panel.values[name]:
                begun, panel.values = (
                    True,
                    {k: v for k, v in panel.values.items() if k in (*choices, *kept)},
                )
                set_(**{name: given[name]})
        if rest := {name: value for name, value in given.items() if name not in choices}:
            set_(**rest)
    except BaseException:
        if begun:
            panel.values = before
            panel._take_controls()
            panel.rebuild()
        raise
