"""Notebook parameters, checked: the parameters cell is their only declaration.

    method: str = "mail-at"   # the method to look at; a name of kit.METHODS
    seed: int = 0             # random seed; at least 0
    split: str = "train"      # images to count; one of train, test

Each line has one equals sign: papermill's own reader skips a line with two. Settings of runs are
written with colons there, such as "epochs:30 weight.slope:5".

papermill only warns about a name that does not exist, and hands `-p fast false` over as text; here
both are errors, before a kernel starts in a batch run, and in the first lines of the notebook
otherwise.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import re
import tokenize
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from kit.attacks.table import ATTACKS
from kit.core.errors import KitError, describe_value, unknown_name
from kit.core.files import locate
from kit.core.parameters import Range, check_value
from kit.core.registry import split_names
from kit.experiments.recipes import find_recipe
from kit.experiments.specification import (
    Plan,
    RunSpec,
    parse_overrides,
    parse_value,
    resolve,
    split_setting,
    split_settings,
)
from kit.methods.table import METHODS
from kit.papers.table_runs import Evaluation, asked, chosen_tables, grid

#: Parameters that name a file, and what it holds.
FILES = {"path": "a checkpoint such as model.pt", "data": "an .npz with arrays x and y"}

_TYPES = {"int": int, "float": float, "str": str, "bool": bool}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell.

    It has the type, the default, and what stands behind the # (meaning; allowed values).
    """

    kind: str
    default: Any
    meaning: str = ""

    @property
    def annotation(self) -> Any:
        """The type, with the values that the meaning allows behind its first semicolon.

        Read are "one of train, test", "0.001 to 1" and "at least 0"; other words allow everything.
        """
        allowed = self.meaning.partition(";")[2].strip()
        words = allowed.split()
        if words[:2] == ["one", "of"] and len(words) > 2:
            choices = allowed.removeprefix("one of").split(",")
            return Literal[tuple(choice.strip() for choice in choices)]
        kind = _TYPES[self.kind]
        if words[:2] == ["at", "least"] and (low := _number(words[2:3])) is not None:
            return Annotated[kind, Range(low)]
        if words[1:2] == ["to"]:
            low, high = _number(words[:1]), _number(words[2:3])
            if low is not None and high is not None:
                return Annotated[kind, Range(low, high)]
        return kind


def _number(words: list[str]) -> float | None:
    try:
        return float(words[0].rstrip(",;.")) if words else None
    except ValueError:
        return None


@dataclass(frozen=True)
class NotebookValues:
    """A notebook's parameters, checked, parsed and resolved: once in a process.

    `given` has each parameter's value as its cell declares it. `grid`: {setting: its overrides, one
    a value}; one setting is varied at a time, the others stay. `listed`: {a parameter that ends in
    `_runs`: the runs that it lists}. `tables` are (paper, table) pairs.
    `evaluations` has every run that is asked for with all that it is evaluated under, and
    `table_evaluations` the runs of the `tables` alone, each with what those print.
    """

    given: Mapping[str, Any]
    recipe: str
    overrides: Mapping[str, Any]
    seeds: tuple[int, ...]
    attacks: tuple[str, ...]
    strong_n: int
    fast_n: int
    grid: Mapping[str, list[dict[str, Any]]]
    listed: Mapping[str, tuple[Plan, ...]]
    tables: tuple[tuple[str, str], ...]
    evaluations: tuple[tuple[Plan, list[Evaluation]], ...]
    table_evaluations: tuple[tuple[Plan, list[Evaluation]], ...]

    @property
    def plans(self) -> list[Plan]:
        """Every run that is asked for."""
        return [plan for plan, _ in self.evaluations]

    def plans_of(self, methods: Collection[str]) -> list[Plan]:
        """Return the runs of some methods; those that a `..._runs` parameter lists are not theirs.

        A run that is asked for both ways is.
        """
        apart = {id(plan) for plans in self.listed.values() for plan in plans}
        return [
            plan for plan in self.plans if plan.spec.method in methods and id(plan) not in apart
        ]

    @property
    def specs(self) -> list[RunSpec]:
        """Every run that is asked for, as it is named."""
        return [plan.spec for plan in self.plans]

    @property
    def table_options(self) -> dict[str, Any]:
        """What the functions about printed tables in `kit.papers` are called with."""
        return {
            "recipe": self.recipe,
            "overrides": dict(self.overrides),
            "strong_n": self.strong_n,
            "fast_n": self.fast_n,
        }


def declared_parameters(source: str) -> dict[str, Parameter]:
    """Read the parameters that a cell declares.

    They are {} if any line of it is something else than an annotated literal.
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
        if (
            not isinstance(node, ast.AnnAssign)
            or not isinstance(node.target, ast.Name)
            or node.value is None
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
    """Read the declared parameters of a notebook file: its cell tagged `parameters`.

    Raises:
        KitError: The file is no notebook, or has no such cell.
    """
    try:
        cells = json.loads(path.read_text())["cells"]
    except (OSError, ValueError, KeyError) as error:
        raise KitError(
            f"{path} is not a readable notebook ({type(error).__name__}); restore it from the "
            "project"
        ) from error
    for cell in cells:
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            found = declared_parameters("".join(cell["source"]))
            if found:
                return found
            raise KitError(
                f"{path.name}: its parameters cell must hold lines such as `seed: int = 0  # "
                "meaning` only"
            )
    raise KitError(f"{path.name} has no cell tagged 'parameters'; tag the one that declares them")


def check_parameters(
    parameters: Mapping[str, Parameter], given: Mapping[str, Any]
) -> NotebookValues:
    """Check all values, the given ones in place of the defaults.

    Raises:
        KitError: A name is unknown, a value is of the wrong type or out of range, or there is no
            such method, recipe, override, seed, attack or table.
    """
    for name in given:
        if name not in parameters:
            raise unknown_name("notebook parameter", name, parameters)
        left_out = name.endswith("_methods") and given[name] == NO_METHODS
        if left_out and NO_METHODS not in re.findall(r"\w+", parameters[name].meaning):
            raise KitError(
                f"{name}=none: this notebook needs these runs; name methods, or all. Choices: "
                f"{', '.join(METHODS)}"
            )
    return parse_values(
        {
            name: check_value(name, given.get(name, p.default), p.annotation)
            for name, p in parameters.items()
        }
    )


def parse_values(values: Mapping[str, Any]) -> NotebookValues:
    """Parse what a notebook's parameters ask for.

    The runs are each name in `method`, `methods` and `..._methods` ("all" for every row; "none" in
    `..._methods`: its figure is left out), with its `recipe` ("" for digits), `seed` or `seeds`,
    and `overrides`; none where `path` names a checkpoint, which takes their place; each of them
    again at every point of a `grid`, such as "weight.slope=7,8,9 weight.bias=-0.2,-0.5"; `norm` and
    `eps` (0: the recipe's) are their threat; and those that the papers' printed `tables` take, say
    "clirat-1 mail-2" or all, strong attacks on the first `strong_n` images, others on the first
    `fast_n`. These runs are evaluated under the `attacks`. A parameter `..._runs` lists more:
    methods, then their own `recipe`, `seed` and settings, each with one value or several, such as
    "std at recipe=mixture seed=0,1,2"; without a recipe they are on the notebook's, with its
    `overrides`, and a seed +1 is the notebook's first and one more.

    Raises:
        KitError: Any word is wrong; all runs are resolved here.
    """
    recipe = values.get("recipe") or "digits"
    strong_n, fast_n = values.get("strong_n", 100), values.get("fast_n", 0)
    for name in FILES.keys() & values.keys():
        find_file(name, values[name])
    attacks = tuple(split_names(values.get("attacks", "")))
    for name in attacks:
        ATTACKS[name]
    overrides, seeds = parse_overrides(values.get("overrides", "")), _parse_seeds(values)
    tables = tuple(chosen_tables(values["tables"])) if "tables" in values else ()
    needs = [
        need
        for paper, table in tables
        for need in grid(
            paper, table, recipe=recipe, overrides=overrides, strong_n=strong_n, fast_n=fast_n
        )
    ]
    by_table = asked(needs, seeds)
    overrides |= _parse_threat(values, recipe)
    names, points = _method_names(values), _parse_grid(values.get("grid", ""))
    specs = [
        RunSpec(name, recipe, seed, overrides | point)
        for seed in seeds
        for name in names
        for point in [{}, *(point for mine in points.values() for point in mine)]
    ]
    specs += [spec for spec, _ in by_table if spec not in specs]
    plans = [resolve(spec) for spec in specs]  # also where a checkpoint takes their place: a check
    if values.get("path"):
        plans = []
    listed = {
        name: tuple(map(resolve, _runs_of_choices(name, text, recipe, seeds[0], overrides)))
        for name, text in values.items()
        if name.endswith("_runs")
    }
    return NotebookValues(
        given=dict(values),
        recipe=recipe,
        overrides=overrides,
        seeds=tuple(seeds),
        attacks=attacks,
        strong_n=strong_n,
        fast_n=fast_n,
        grid=points,
        listed=listed,
        tables=tables,
        evaluations=tuple(
            (
                plan,
                [Evaluation(name) for name in attacks]
                + [ask for spec, asks in by_table if spec == plan.spec for ask in asks],
            )
            for plan in plans
        )
        + tuple((plan, []) for several in listed.values() for plan in several),
        table_evaluations=tuple((plans[specs.index(spec)], asks) for spec, asks in by_table),
    )


def find_file(parameter: str, text: str) -> str:
    """Return the absolute path of the file that a parameter names, "" where it names none.

    Raises:
        KitError: There is no such file.
    """
    if not text:
        return ""
    place = locate(text)
    if not place.is_file():
        raise KitError(f"{parameter}: there is no file {place}; expected {FILES[parameter]}")
    return str(place.absolute())


def name_variant(parameters: Mapping[str, Parameter], given: Mapping[str, Any]) -> str:
    """Name a folder for values that differ from the defaults, "" where none does.

    A recipe has a folder of its own already, and another seed is `seed-<n>`, as in a batch.
    """
    changed = {
        name: value
        for name, value in given.items()
        if name != "recipe" and value != parameters[name].default
    }
    words = "_".join(f"{name}-{value}" for name, value in sorted(changed.items()))
    name = re.sub(r"[^\w.-]+", "-", words).strip("-")
    # File systems take 255 bytes; the hash keeps long names apart.
    return (
        name if len(name) <= 80 else f"{name[:70]}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"
    )


def _parse_threat(values: Mapping[str, Any], recipe: str) -> dict[str, Any]:
    """Return {field of the recipe: value} of `norm` and `eps`, where they are not the recipe's."""
    asked_for = {name: values[name] for name in ("norm", "eps") if values.get(name)}
    usual = find_recipe(recipe) if asked_for else None
    return {name: v for name, v in asked_for.items() if v != getattr(usual, name)}


#: What a parameter `..._methods` says for no run at all: its figure is left out.
NO_METHODS = "none"


def _method_names(values: Mapping[str, Any]) -> list[str]:
    """The rows of kit.METHODS that the parameters name, each once."""
    names: list[str] = []
    for parameter, value in values.items():
        if parameter in ("method", "methods") or parameter.endswith("_methods"):
            words = split_names(value)
            if not words:
                raise KitError(
                    f"{parameter} is empty; it must name methods, or all. Choices: "
                    f"{', '.join(METHODS)}"
                )
            if words == [NO_METHODS] and parameter.endswith("_methods"):
                continue
            words = list(METHODS) if words == ["all"] else words
            names += [name for name in words if name not in names]
    return names


def _parse_grid(text: str) -> dict[str, list[dict[str, Any]]]:
    points: dict[str, list[dict[str, Any]]] = {}
    for word in text.split():
        name, choices = split_setting(word)
        if not name or not all(choices.split(",")):
            raise KitError(
                f"grid: {describe_value(word)} must be one setting with its values, commas "
                "between them, such as weight.slope=7,8,9"
            )
        if name in points:
            raise KitError(f"grid: {describe_value(name)} is there twice; name each setting once")
        points[name] = [parse_overrides(f"{name}={choice}") for choice in choices.split(",")]
    return points


def _runs_of_choices(
    parameter: str, text: str, recipe: str, first_seed: int, overrides: Mapping[str, Any]
) -> list[RunSpec]:
    """The runs of a `..._runs` parameter: every method with every choice of each setting."""
    words = split_settings(text.replace(", ", " "))
    methods = [word for word in words if not re.search("[=:]", word)]
    settings = dict(_parse_choices(parameter, word) for word in words if word not in methods)
    if not methods:
        raise KitError(
            f"{parameter}={describe_value(text)} names no method; it must begin with methods, "
            f"settings behind them, such as at seed=+0,+1. Choices: {', '.join(METHODS)}"
        )
    [recipe_of_its_own] = settings.pop("recipe", [""])[:1]
    seeds = [_seed_number(parameter, word, first_seed) for word in settings.pop("seed", ["+0"])]
    shared = {} if recipe_of_its_own else overrides
    points = product(*([(name, value) for value in some] for name, some in settings.items()))
    return [
        RunSpec(
            method,
            recipe_of_its_own or recipe,
            seed,
            {**shared, **{name: parse_value(value) for name, value in point}},
        )
        for method, point, seed in product(methods, list(points), seeds)
    ]


def _parse_choices(parameter: str, word: str) -> tuple[str, list[str]]:
    name, choices = split_setting(word)
    found = choices.split(",")
    if not all(found):
        raise KitError(
            f"{parameter}: {describe_value(word)} must be one setting with its values, commas "
            "between them, such as seed=0,1,2"
        )
    return name, found


def _seed_number(parameter: str, word: str, first: int) -> int:
    if not word.removeprefix("+").isdecimal() or len(word) > 18:
        raise KitError(
            f"{parameter}: seed={describe_value(word)} must be a whole number, or one behind a + "
            "that is added to the notebook's own seed"
        )
    return int(word) + (first if word.startswith("+") else 0)


def _parse_seeds(values: Mapping[str, Any]) -> list[int]:
    """The numbers in `seeds`, or the one `seed`."""
    if "seeds" not in values:
        return [values.get("seed", 0)]
    words = split_names(values["seeds"])
    seeds = [int(word) for word in words if word.isdecimal() and len(word) < 19]
    if not words or len(set(seeds)) != len(words):
        raise KitError(
            f"seeds={describe_value(values['seeds'])} must be different whole numbers with spaces "
            'between, such as "0 1 2"'
        )
    return seeds
