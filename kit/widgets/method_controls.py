"""Controls for the hyper-parameters of a method, and the numbers that rows and papers give them.

The controls are made from the signatures of the method's parts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from kit.core.parameters import Range
from kit.core.parts import Part, list_hyper_parameters
from kit.experiments.specification import parse_overrides
from kit.figures.explanation import EPOCHS, explain
from kit.methods.criteria import Criterion
from kit.methods.formulas import SYMBOLS, plain_text
from kit.methods.table import METHODS, Method
from kit.papers.printed_data import PAPERS, read_table
from kit.widgets.controls import Choice, Control, Number, Toggle

#: The rows whose weight is a function of a score. Those that leave examples out as well
#: (clirat-drop-...) are none of them.
CURVED = tuple(
    name for name, row in METHODS.items() if row.weight is not None and row.select is None
)

WEIGHT_SLOTS = ("criterion", "weight", "normaliser", "schedule")

#: The letters in which papers print their settings.
PRINTED_LETTERS = ("gamma", "beta", "alpha", "tau")


# ------------------------------------------------------------------------------ a row's own numbers


def weight_parameters(name: str, slots: tuple[str, ...] = WEIGHT_SLOTS) -> dict[str, Any]:
    """{dotted name: value} of a row's hyper-parameters in these parts, as overrides name them."""
    return {
        path: value
        for path, value in METHODS[name].hyper_parameters().items()
        if path.partition(".")[0] in slots
    }


def with_parameters(name: str, values: Mapping[str, Any]) -> Method:
    """Return the row with those of `values` that are its hyper-parameters."""
    row = METHODS[name]
    for path in weight_parameters(name):
        row = row.override(path, values[path]) if path in values else row
    return row


def weighing_parts(row: Method) -> tuple[Criterion, Part]:
    """Return the criterion and the weight function of a row that weighs by a score."""
    assert row.criterion is not None and row.weight is not None, f"{row.title} weighs by no score"
    return row.criterion, row.weight


def part_of(row: Method, slot: str) -> Part:
    """The part in a row's slot; of a criterion the part that computes its quantity."""
    chosen = getattr(row, slot)
    return chosen.quantity if isinstance(chosen, Criterion) else chosen


# ----------------------------------------------------------------------------------- their controls


def parameter_controls(name: str, *slots: str) -> list[Control]:
    """A control for every hyper-parameter of a row's parts, as its annotation says.

    Where the annotation has no end, a slider reaches two and a half times as far as the row and the
    papers do.
    """
    return [
        _parameter_control(name, path, value)
        for path, value in weight_parameters(name, slots or WEIGHT_SLOTS).items()
    ]


def _parameter_control(name: str, path: str, value: Any) -> Control:
    slot, _, parameter = path.partition(".")
    annotation, _ = list_hyper_parameters(part_of(METHODS[name], slot).fn)[parameter]
    meaning = explain(name).hyper_parameters[path][1]
    if annotation is bool:
        return Toggle(path, value, meaning)
    if get_origin(annotation) is Literal:
        return Choice(path, value, get_args(annotation), meaning)
    kind, *ranges = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    allowed = ranges[0] if ranges else Range()
    reach = round_up(2.5 * max(abs(setting.get(path, 0)) for _, setting in stated_settings(name)))
    step = 1 if kind is int else 10.0 ** math.floor(math.log10(reach / 100))
    low = max(allowed.low, -reach) + (step if allowed.above else 0)
    high = min(allowed.high, max(reach, low + 1))
    symbol = plain_text(SYMBOLS.get(part_of(METHODS[name], slot).name, {}).get(parameter, ""))
    return Number(path, value, low, high, step, meaning, integer=kind is int, symbol=symbol)


def round_up(value: float) -> float:
    """The smallest number 1, 2, 3, 5 or 10 times a power of ten that is not below `value`.

    1 for 0 and below.
    """
    if value <= 0:
        return 1.0
    scale = 10.0 ** math.floor(math.log10(value))
    return next(step * scale for step in (1, 2, 3, 5, 10) if step * scale >= value * (1 - 1e-9))


# ---------------------------------------------------------------- what rows and papers set them to


@cache
def stated_settings(name: str) -> list[tuple[str, dict[str, Any]]]:
    """[(who states them, {dotted name: value, and burn_in as a share of the epochs})] of a row.

    First its own, then those of rows that differ from it in numbers alone, then what the papers
    print of it in their settings and tables (`kit.papers`).
    """
    own = weight_parameters(name) | {"burn_in": METHODS[name].burn_in}
    return [
        (f"row {name}", own),
        *_settings_of_rows(name),
        *_settings_of_papers(name, own),
        *_settings_of_tables(name, own),
    ]


def _settings_of_rows(name: str) -> list[tuple[str, dict[str, Any]]]:
    functions = _part_functions(METHODS[name])
    return [
        (f"row {other}", weight_parameters(other) | {"burn_in": METHODS[other].burn_in})
        for other in CURVED
        if other != name and _part_functions(METHODS[other]) == functions
    ]


def _settings_of_papers(name: str, own: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    lines = read_table("hyperparameters").query("row == @name").itertuples()
    return [
        (f"{PAPERS[line.paper].label}, {line.dataset}", own | changes)
        for line in lines
        if (changes := _printed_numbers(name, line))
    ]


def _settings_of_tables(name: str, own: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    lines = read_table("results").query("row == @name and overrides != ''").itertuples()
    return [
        (f"{PAPERS[line.paper].label} {line.table}: {line.overrides}", own | changes)
        for line in lines
        if (changes := parse_overrides(line.overrides)).keys() <= own.keys()
    ]


def _part_functions(row: Method) -> tuple:
    """What two rows share that differ in numbers alone."""
    criterion, weight = weighing_parts(row)
    return (
        criterion.quantity.fn,
        criterion.reads,
        criterion.safe_end,
        weight.fn,
        row.normaliser.fn,
        row.schedule.fn if row.schedule else None,
    )


def _printed_numbers(name: str, line: Any) -> dict[str, Any]:
    """The numbers of a paper's line of settings that belong to the row's parts.

    {} where one of them is a list, where none is there, and where burn-in is not stated.
    """
    #: {how the papers write it: dotted name}
    paths: dict[str | None, str] = {}
    for path in weight_parameters(name):
        slot, _, parameter = path.partition(".")
        paths[SYMBOLS.get(part_of(METHODS[name], slot).name, {}).get(parameter)] = path
    changes: dict[str, Any] = {}
    for letter in PRINTED_LETTERS:
        text, dotted = getattr(line, letter), paths.get(rf"\{letter}")
        if text and dotted:
            if not re.fullmatch(r"-?\d+(\.\d+)?", text):
                return {}
            # MR writes σ(-γ (m + β)) with β = 0.5 where MAIL has σ(-γ (PM - β)) with β = -0.5
            changes[dotted] = (
                -float(text) if (line.paper, letter) == ("mr", "beta") else float(text)
            )
    first = re.match(r"\d+", line.burn_in_epochs)
    if not changes or not first:
        return {}
    return changes | {"burn_in": int(first[0]) / int(line.epochs or EPOCHS)}


def presets(name: str, epochs: int) -> dict[str, dict[str, Any]]:
    """{who states them: {dotted name: value, and burn_in in epochs}} for a run of so many epochs.

    So many epochs may make two settings alike. A paper that says the same as another then stands in
    its name; further rows and tables do not.
    """
    merged: list[tuple[list[str], dict[str, Any]]] = []
    for who, values in stated_settings(name):
        values = values | {"burn_in": min(round(values["burn_in"] * epochs), epochs - 1)}
        known = next((others for others, same in merged if same == values), None)
        paper, is_paper, _ = who.partition(",")
        if known is None:
            merged.append(([who], values))
        elif is_paper and not any(other.startswith(paper) for other in known):
            known.append(paper)
    return {" = ".join(words): values for words, values in merged}
