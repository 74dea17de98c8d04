"""Claims that no table decides: the verdicts that finished notebooks wrote of their figures.

A notebook's stamp, `<notebook>.json` in the recipe's folder of results, carries one record for each
claim that its figures decided. The record names the claim by its `number`, the row of claims.csv; a
record whose number is None is about no claim of that list. Nothing is read from prose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kit.core.files import read_json
from kit.data.datasets import base_of
from kit.experiments.recipes import RECIPES, find_recipe
from kit.experiments.runs import output_folder
from kit.experiments.specification import parse_overrides
from kit.papers.claim_verdict import NOT_RUN, ClaimVerdict, combine_verdicts
from kit.papers.printed_data import read_table

#: What a figure's record says -> the verdict on the claim.
VERDICT_WORDS = {"holds": "confirmed", "fails": "refuted", "undecided": "undecided"}


@dataclass(frozen=True)
class NotebookStamp:
    """What a finished notebook left: its records, the keys of its runs, and what these trained."""

    notebook: str
    records: Sequence[Mapping[str, Any]]
    runs: frozenset[str]
    dataset: str
    model: str


def read_stamps(recipe: str) -> list[NotebookStamp]:
    """Read the stamps of the notebooks that were finished on a recipe, those of seeds included.

    A stamp whose records carry no number is of an older kit and is left out.
    """
    folder = output_folder(recipe)
    paths = [path for words in ("*.json", "seed-*/*.json") for path in sorted(folder.glob(words))]
    found = []
    for record in map(read_json, paths):
        if isinstance(record, dict) and {"notebook", "verdicts", "runs"} <= set(record):
            parameters = {"recipe": recipe, "overrides": "", **record.get("parameters", {})}
            numbered = all("number" in verdict for verdict in record["verdicts"])
            if numbered and parameters["recipe"] == recipe:
                trained = trained_on(recipe, parse_overrides(parameters["overrides"]))
                runs = frozenset(record["runs"].values())
                found.append(NotebookStamp(record["notebook"], record["verdicts"], runs, *trained))
    return found


def trained_on(recipe: str, overrides: Mapping[str, Any]) -> tuple[str, str]:
    """Return the data set and the network that a recipe trains, with these overrides."""
    row = find_recipe(recipe)
    return base_of(overrides.get("data", row.data)), overrides.get("model", row.model)


def is_about(claim: pd.Series, dataset: str, model: str) -> bool:
    """Say whether a claim is about this data set and network; one that names none is about all."""
    datasets, models = claim["datasets"].split(), claim["models"].split()
    return dataset in (datasets or [dataset]) and model in (models or [model])


def decide_by_figures(
    number: int, claim: pd.Series, stamps: Sequence[NotebookStamp], trained: tuple[str, str]
) -> ClaimVerdict:
    """Take the verdict that finished notebooks wrote of a claim, or name those that decide it.

    `trained` is the data set and the network of the runs that are asked for.
    """
    fitting = [stamp for stamp in stamps if is_about(claim, stamp.dataset, stamp.model)]
    found: list[dict[str, Any]] = []
    runs: set[str] = set()
    for stamp in fitting:
        mine = [
            {"notebook": stamp.notebook, **record}
            for record in stamp.records
            if record["number"] == number
        ]
        found += [record for record in mine if record not in found]
        runs |= stamp.runs if mine else set()
    if not found:
        return _name_what_decides(claim, trained, {stamp.notebook for stamp in fitting})
    words = [VERDICT_WORDS[record["verdict"]] for record in found]
    here = "; ".join(
        f"{word}: {record['claim']}: {record['here']}"
        for word, record in zip(words, found, strict=True)
    )
    return ClaimVerdict(combine_verdicts(words), here, found, sorted(runs))


def _name_what_decides(
    claim: pd.Series, trained: tuple[str, str], finished: set[str]
) -> ClaimVerdict:
    """Not run: the figures of the kit that show it, and the notebooks that are not finished."""
    figures = claim["figures"].split()
    if claim["decided_by"] == "mathematics":
        here = f"decided by mathematics: {claim['remark']}"
    else:
        here = "" if figures else f"no table and no figure of the kit decides it: {claim['check']}"
    if not figures:
        return ClaimVerdict(NOT_RUN, here)
    drawings = read_table("drawings")
    drawn_in = drawings[drawings["figure"].isin(figures)]["notebook"]
    notebooks = sorted(set(drawn_in) - finished)
    if not is_about(claim, *trained):
        return _refuse_recipe(claim, trained, notebooks)
    drawn = f"drawn by {', '.join(figures)}{'' if notebooks else ', with no verdict on this'}"
    return ClaimVerdict(NOT_RUN, "; ".join(filter(None, (here, drawn))), notebooks=notebooks)


def _refuse_recipe(
    claim: pd.Series, trained: tuple[str, str], notebooks: Sequence[str]
) -> ClaimVerdict:
    """Not run: the claim is about other data or another network than what is trained."""
    about = " on ".join(
        " and ".join(claim[column].split()) for column in ("models", "datasets") if claim[column]
    )
    dataset, model = trained
    here = f"it is about {about}, and these runs are {model} on {dataset}"
    recipes = [name for name, row in RECIPES.items() if is_about(claim, row.data, row.model)]
    if not recipes:
        return ClaimVerdict(NOT_RUN, here)
    return ClaimVerdict(NOT_RUN, here, notebooks=notebooks, recipe=recipes[0])
