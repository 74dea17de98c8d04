"""Notebook parameters, checked: the parameters cell is their only declaration.

    method: str = "mail-at"   # the method to look at; a name of kit.METHODS
    seed: int = 0             # random seed; at least 0
    split: str = "train"      # images to count; one of train, test

papermill only warns about a name that does not exist, and hands `-p fast false` over as text; here
both are errors, before a kernel starts in a batch run, and in the first lines of the notebook
otherwise.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from kit.attacks.table import ATTACKS
from kit.core.errors import KitError, unknown_name
from kit.core.parameters import Range, check_value
from kit.experiments.specification import RunSpec, parse_overrides, resolve
from kit.methods.table import METHODS
from kit.papers.table_runs import Evaluation, asked, chosen_tables, grid

_TYPES = {"int": int, "float": float, "str": str, "bool": bool}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell:

    type, default, and what stands behind the # (meaning; allowed values).
    """

    kind: str
    default: Any
    meaning: str = ""

    @property
    def annotation(self) -> Any:
        allowed = self.meaning.partition(";")[2].strip()
        if choices := re.match(r"one of (.+)$", allowed):
            return Literal[tuple(word.strip() for word in choices[1].split(","))]
        if bounds := re.match(r"(-?[\d.]+) to (-?[\d.]+)", allowed):
            return Annotated[_TYPES[self.kind], Range(float(bounds[1]), float(bounds[2]))]
        if bound := re.match(r"at least (-?[\d.]+)", allowed):
            return Annotated[_TYPES[self.kind], Range(float(bound[1]))]
        return _TYPES[self.kind]


def declared_parameters(source: str) -> dict[str, Parameter]:
    """The parameters that a cell declares; {} if any line of it is something else than an annotated
    literal.
    """
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return {}
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for node in body:
        literal = (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and node.value is not None
        )
        if (
            not literal
            or not isinstance(node.annotation, ast.Name)
            or node.annotation.id not in _TYPES
        ):
            return {}
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            return {}
        found[node.target.id] = Parameter(
            node.annotation.id, default, comments.get(node.lineno, "")
        )
    return found


def notebook_parameters(path: Path) -> dict[str, Parameter]:
    """The declared parameters of a notebook file: its cell tagged `parameters`."""
    try:
        cells = json.loads(path.read_text())["cells"]
    except (OSError, ValueError, KeyError) as error:
        raise KitError(f"{path} is no readable notebook ({type(error).__name__})") from error
    for cell in cells:
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            found = declared_parameters("".join(cell["source"]))
            if found:
                return found
            raise KitError(
                f"{path.name}: its parameters cell must hold lines such as `seed: int = 0  # "
                f"meaning` only"
            )
    raise KitError(f"{path.name} has no cell tagged 'parameters'")


def check_parameters(
    parameters: Mapping[str, Parameter], given: Mapping[str, Any]
) -> dict[str, Any]:
    """All values, the given ones checked:

    names, types, ranges, and every method, recipe and override they speak of.
    """
    for name in given:
        if name not in parameters:
            raise unknown_name("notebook parameter", name, parameters)
    values = {
        name: check_value(name, given.get(name, p.default), p.annotation)
        for name, p in parameters.items()
    }
    needed_evaluations(values)
    return values


def needed_specs(values: Mapping[str, Any]) -> list[RunSpec]:
    """The runs that a notebook's parameters ask for: each name in `method`, `methods` and
    `..._methods` ("all" for every row), with its recipe, seed or seeds, and overrides; and each of
    them again at every point of a `grid`, such as "weight.slope=7,8,9 weight.bias=-0.2,-0.5"; and
    those that the papers' printed `tables` take, say "clirat-1 mail-2" or all. All are resolved
    here, so a wrong word fails now.
    """
    names = []
    for parameter, value in values.items():
        if parameter in ("method", "methods") or parameter.endswith("_methods"):
            if not value.split():
                raise KitError(
                    f"{parameter} is empty; it must name methods, or all. Choices: "
                    f"{', '.join(METHODS)}"
                )
            words = list(METHODS) if value == "all" else value.split()
            names += [name for name in words if name not in names]
    overrides = parse_overrides(values.get("overrides", ""))
    points = [{}] + [point for mine in grid_points(values).values() for point in mine]
    specs = [
        RunSpec(name, values.get("recipe", "digits"), seed, overrides | point)
        for seed in wanted_seeds(values)
        for name in names
        for point in points
    ]
    specs += [spec for spec, _ in needed_tables(values) if spec not in specs]
    for spec in specs:
        resolve(spec)
    return specs


def needed_tables(values: Mapping[str, Any]) -> list[tuple[RunSpec, list[Evaluation]]]:
    """The runs that the `tables` parameter takes, each with what it is evaluated under; strong
    attacks on the first `strong_n` images.
    """
    if "tables" not in values:
        return []
    needs = [
        need
        for paper, table in chosen_tables(values["tables"])
        for need in grid(paper, table, **grid_options(values))
    ]
    return asked(needs, wanted_seeds(values))


def grid_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `kit.papers.table_runs` is called with."""
    return {
        "recipe": values.get("recipe", "digits"),
        "overrides": parse_overrides(values.get("overrides", "")),
        "strong_n": values.get("strong_n", 100),
    }


def needed_evaluations(values: Mapping[str, Any]) -> list[tuple[RunSpec, list[Evaluation]]]:
    """Every run that the parameters ask for, with what it is evaluated under:

    the `attacks`, or what its tables take.
    """
    wanted, by_table = [Evaluation(name) for name in wanted_attacks(values)], needed_tables(values)
    return [
        (spec, wanted + [ask for other, asks in by_table if other == spec for ask in asks])
        for spec in needed_specs(values)
    ]


def grid_points(values: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """{setting:

    its overrides, one a value} of the `grid` parameter: one setting is varied at a time, the others
    stay.
    """
    points: dict[str, list[dict[str, Any]]] = {}
    for word in values.get("grid", "").split():
        name, sign, choices = word.partition("=")
        if not sign or not all(choices.split(",")) or name in points:
            raise KitError(
                f"grid: {word!r} must be one setting with its values, such as weight.slope=7,8,9, "
                f"each named "
                "once"
            )
        points[name] = [parse_overrides(f"{name}={choice}") for choice in choices.split(",")]
    return points


def wanted_seeds(values: Mapping[str, Any]) -> list[int]:
    """The numbers in `seeds`, or the one `seed`."""
    if "seeds" not in values:
        return [values.get("seed", 0)]
    words = values["seeds"].split()
    seeds = [int(word) for word in words if word.isdecimal() and len(word) < 19]
    if not words or len(set(seeds)) != len(words):
        raise KitError(
            f"seeds={values['seeds']!r} must be different whole numbers with spaces between, such "
            f'as "0 1 2"'
        )
    return seeds


def wanted_attacks(values: Mapping[str, Any]) -> list[str]:
    """The names in `attacks`:

    what every run of the notebook is evaluated under; [] if it does not say.
    """
    names = values.get("attacks", "").split()
    for name in names:
        ATTACKS[name]
    return names
