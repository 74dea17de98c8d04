"""Which notebooks are run, with which values, and which runs they need: the plan of a batch.

It is read off the notebooks' own parameters, and checked as a whole before anything runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.core.errors import KitError, unknown_name
from kit.core.files import CHECKOUT, PACKAGE, read_json
from kit.experiments.recipes import RECIPE_FIELDS, is_quick
from kit.experiments.runs import is_done, run_folder
from kit.experiments.specification import Plan, split_setting, split_settings
from kit.figures.table import output_folder
from kit.notebook.parameter_cells import (
    FILES,
    NotebookValues,
    Parameter,
    check_parameters,
    find_file,
    notebook_parameters,
)


def notebooks_folder() -> Path:
    """Return the folder where the checkout has its notebooks."""
    return CHECKOUT / "notebooks"


@dataclass(frozen=True)
class NotebookJob:
    """One notebook, the parameter values it is run with, and the folder of its results."""

    path: Path
    values: NotebookValues
    folder: Path

    @property
    def name(self) -> str:
        """The notebook's file name without its ending."""
        return self.path.stem

    @property
    def label(self) -> str:
        """Its name in progress lines; the seed only where several are run."""
        return (
            f"{self.name}, {self.folder.name}"
            if self.folder.name.startswith("seed-")
            else self.name
        )

    @property
    def output(self) -> Path:
        """The notebook as it was run."""
        return self.folder / self.path.name

    def stamp(self) -> str:
        """Hash the notebook's code, its values, the keys of its runs, and the kit's source."""
        code = [
            cell["source"]
            for cell in json.loads(self.path.read_text())["cells"]
            if cell["cell_type"] == "code"
        ]
        keys = [plan.key for plan in self.values.plans]
        words = json.dumps([code, dict(self.values.given), keys, source_digest()], sort_keys=True)
        return hashlib.sha256(words.encode()).hexdigest()

    def is_done(self) -> bool:
        """Say whether it ended with this very stamp, and all that it made is still there."""
        path = self.folder / f"{self.name}.json"
        try:
            record = read_json(path)
        except KitError:
            return False
        return (
            isinstance(record, dict)
            and record.get("stamp") == self.stamp()
            and self.output.exists()
            and all((self.folder / name).exists() for name in record.get("figures", []))
        )


def source_digest() -> str:
    """Hash the kit's own source files."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def choose_notebooks(only: list[str]) -> list[Path]:
    """List the notebooks whose names begin with one of `only`, in order.

    If it is empty these are the numbered ones, which draw the figures and take minutes. `tables`
    are asked for by name: they train every method with several seeds.

    Raises:
        KitError: There are no notebooks, or none of such a name.
    """
    paths = sorted(notebooks_folder().glob("*.ipynb"))
    if not paths:
        raise KitError(
            f"there are no notebooks in {notebooks_folder()}; run this from a checkout of the "
            "project"
        )
    words = [word.removesuffix(".ipynb") for word in only]
    for word in words:
        if not any(path.stem.startswith(word) for path in paths):
            number = f"{int(word):02d}_" if word.isdecimal() and len(word) < 3 else None
            guess = next((p.stem for p in paths if number and p.stem.startswith(number)), "")
            raise unknown_name("notebook", word, [path.stem for path in paths], guess)
    return [
        p for p in paths if (any(map(p.stem.startswith, words)) if words else p.stem[0].isdecimal())
    ]


def plan_jobs(
    only: list[str], given: Mapping[str, Any], seeds: list[int] | None, out: Path | None
) -> list[NotebookJob]:
    """Make one job per notebook and seed, every value checked.

    A notebook that declares a given name takes it as its parameter. For every other notebook it is
    a setting of its runs, if it is one, and takes the place of the notebook's own. Those of the
    notebook make quick recipes quicker; recipes of the papers' scale go without.

    Raises:
        KitError: A name or a value is wrong, or the seed is chosen twice.
    """
    tables = {path: notebook_parameters(path) for path in choose_notebooks(only)}
    names = {name for table in tables.values() for name in table}
    # A notebook that trains nothing takes no settings; those beside others are not for it.
    some_train = any("overrides" in table for table in tables.values())
    settings = {name: value for name, value in given.items() if is_run_setting(name)}
    for name in given.keys() - settings.keys() - names:
        raise unknown_name(
            "notebook parameter or run setting", name, names | {*RECIPE_FIELDS, "burn_in"}
        )
    if seeds and "seed" in given:
        raise KitError(
            f"--seeds {' '.join(map(str, seeds))} and --set seed={given['seed']} both choose the "
            "seed; give one of them"
        )
    if seeds and len(set(seeds)) < len(seeds):
        raise KitError(f"--seeds {' '.join(map(str, seeds))} names a seed twice; name each once")
    several = {"seeds": " ".join(map(str, seeds))} if seeds else {}
    jobs = []
    for seed in seeds or [given.get("seed", 0)]:
        for path, table in tables.items():
            # Such a notebook is run once for all seeds.
            alone = "seeds" in table
            if alone and seeds and seed != seeds[0]:
                continue
            mine = {
                name: value
                for name, value in {**several, **given, "seed": seed}.items()
                if name in table
            }
            # A notebook runs in a folder of its own, and a user's file is named from here.
            mine |= {name: find_file(name, str(mine[name])) for name in FILES.keys() & mine.keys()}
            recipe = mine.get("recipe", table["recipe"].default) if "recipe" in table else ""
            if "overrides" in table and recipe and not is_quick(recipe):
                mine.setdefault("overrides", "")
            others = {name: value for name, value in settings.items() if name not in table}
            if others and ("overrides" in table or not some_train):
                mine["overrides"] = _changed_overrides(path, table, mine, others)
            values = check_parameters(table, mine)
            folder = out or output_folder(values.recipe)
            one = alone or not seeds or len(seeds) == 1
            jobs.append(NotebookJob(path, values, folder if one else folder / f"seed-{seed}"))
    return jobs


def is_run_setting(name: str) -> bool:
    """Say whether a name is that of a recipe's field or, with a point, of a method's number."""
    return name in RECIPE_FIELDS or name == "burn_in" or "." in name


def _changed_overrides(
    path: Path,
    table: Mapping[str, Parameter],
    given: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> str:
    """A notebook's `overrides` with `settings` in place of those of its own."""
    if "overrides" not in table:
        raise KitError(
            f"{path.stem} takes no settings of runs such as {next(iter(settings))}; choose others "
            "with --only, or leave the setting out"
        )
    own = given.get("overrides")
    if own is None:
        words = split_settings(table["overrides"].default)
        own = " ".join(word for word in words if split_setting(word)[0] not in settings)
    changed = [
        f"{name}={json.dumps(value, separators=(',', ':'))}" for name, value in settings.items()
    ]
    return " ".join([own, *changed]).strip()


def needed_runs(jobs: Sequence[NotebookJob]) -> list[Plan]:
    """List every run that the jobs need, once, in the order in which they are asked for."""
    unique: dict[str, Plan] = {}
    for job in jobs:
        for plan in job.values.plans:
            unique.setdefault(plan.key, plan)
    return list(unique.values())


def is_trained(plan: Plan) -> bool:
    """Say whether its training came to its end."""
    return is_done(run_folder(plan))
