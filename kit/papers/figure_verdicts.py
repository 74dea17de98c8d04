"""Claims as figures decide them: from what finished notebooks measured, over their seeds.

A notebook's stamp, `<notebook>.json` in the recipe's folder of results, or in that of a seed,
carries one record for each statement that its figures make on a claim. The record names the claim
by its `number`, the row of claims.csv; a record whose number is None is about no claim of that
list. Nothing is read from prose.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from kit.core.errors import KitError
from kit.core.files import read_json
from kit.data.datasets import dataset_claimed
from kit.evaluation.result_tables import count_seeds
from kit.experiments.recipes import RECIPES, find_recipe
from kit.experiments.runs import output_folder
from kit.experiments.specification import parse_overrides
from kit.papers.claim_verdict import (
    NOT_RUN,
    ClaimVerdict,
    combine_estimates,
    combine_verdicts,
    decide,
    read_estimate,
)
from kit.papers.printed_data import proofs, read_table

#: What a statement of a stamp has beside its number: see `kit.figures.base.Claim.record`.
STATEMENT_PARTS = ("claim", "here", "exact", "seeds", "dead", "estimates")


@dataclass(frozen=True)
class NotebookStamp:
    """What a finished notebook left: its records, the keys of its runs, and what these trained.

    `seeds` is the one that its runs have, or the several of a notebook that takes them at once.
    `drawn` are the figures that it saved: any may have been left out. None where it does not say.
    """

    notebook: str
    seeds: tuple[int, ...]
    records: Sequence[Mapping[str, Any]]
    runs: frozenset[str]
    dataset: str
    model: str
    drawn: frozenset[str] | None = None

    def drew(self, figures: Collection[str]) -> bool:
        """Say whether it drew one of these figures, as far as it says."""
        return self.drawn is None or not self.drawn.isdisjoint(figures)


def read_stamps(recipe: str) -> list[NotebookStamp]:
    """Read the stamps of the notebooks that were finished on a recipe, in all its folders.

    A stamp whose records carry no number or no estimates is of an older kit and is left out.

    Raises:
        KitError: A statement of one cannot be decided; see `check_stamp`.
    """
    records = map(read_json, sorted(output_folder(recipe).rglob("*.json")))
    stamps = [stamp for record in records if (stamp := stamp_of(record, recipe))]
    for stamp in stamps:
        check_stamp(stamp)
    return stamps


def stamp_of(record: Any, recipe: str) -> NotebookStamp | None:
    """Take what a JSON file holds as the stamp of a notebook; None if it is none on the recipe."""
    if not isinstance(record, dict) or not {"notebook", "verdicts", "runs"} <= set(record):
        return None
    parameters = {"recipe": recipe, "overrides": "", **record.get("parameters", {})}
    current = all({"number", "estimates"} <= set(found) for found in record["verdicts"])
    # No paper's claim is about such a network, or about settings tried by hand.
    tried = not re.fullmatch(r"|seed-\d+", record.get("variant", ""))
    foreign = record.get("adopted", False) or tried
    if not current or foreign or parameters["recipe"] != recipe:
        return None
    trained = trained_on(recipe, parse_overrides(parameters["overrides"]))
    runs = frozenset(record["runs"].values())
    several = str(parameters.get("seeds", parameters.get("seed", 0)))
    seeds = tuple(map(int, several.replace(",", " ").split()))
    saved = record.get("figures")
    drawn = None if saved is None else frozenset(Path(name).stem for name in saved)
    return NotebookStamp(record["notebook"], seeds, record["verdicts"], runs, *trained, drawn)


def check_stamp(stamp: NotebookStamp) -> None:
    """Refuse statements that cannot be decided: parts are missing, or there is no such claim.

    Raises:
        KitError: It names the notebook, the statement and what is wrong.
    """
    for found in stamp.records:
        _check_statement(found, stamp.notebook)


def _check_statement(found: Mapping[str, Any], notebook: str) -> None:
    again = f"run the notebook {notebook} again, or delete what it wrote"
    if missing := [part for part in STATEMENT_PARTS if part not in found]:
        raise KitError(
            f"a statement that {notebook} made on claim {found['number']} has no "
            f"{', '.join(missing)}; {again}"
        )
    seeds, count = found["seeds"], len(read_table("claims"))
    if not isinstance(seeds, int) or seeds < 1:
        raise KitError(
            f"a statement of {notebook} rests on seeds={seeds!r}, not on 1 or more; {again}"
        )
    if found["number"] is not None and found["number"] not in range(1, count + 1):
        raise KitError(
            f"{notebook} made a statement on claim {found['number']!r}; claims are 1 to {count}; "
            f"{again}"
        )


def trained_on(recipe: str, overrides: Mapping[str, Any]) -> tuple[str, str]:
    """Return the data set and the network that a recipe trains, with these overrides.

    A folder with CIFAR-10's classes counts as CIFAR-10; see `kit.data.datasets.dataset_claimed`.
    """
    row = find_recipe(recipe)
    return dataset_claimed(overrides.get("data", row.data)), overrides.get("model", row.model)


def is_about(claim: pd.Series, dataset: str, model: str) -> bool:
    """Say whether a claim is about this data set and network; one that names none is about all."""
    datasets, models = claim["datasets"].split(), claim["models"].split()
    return dataset in (datasets or [dataset]) and model in (models or [model])


def decide_by_figures(
    number: int, claim: pd.Series, stamps: Sequence[NotebookStamp], trained: tuple[str, str]
) -> ClaimVerdict:
    """Decide a claim by what finished notebooks wrote of it, or name those that decide it.

    Each statement on the claim is decided over the seeds that have it; see
    `kit.papers.claim_verdict.decide`. `trained` is the data set and the network of the runs that
    are asked for.
    """
    fitting = [stamp for stamp in stamps if is_about(claim, stamp.dataset, stamp.model)]
    mine = [
        replace(stamp, records=[r for r in stamp.records if r["number"] == number])
        for stamp in fitting
    ]
    found = [statement for _, statement in decide_statements(mine)]
    if not found:
        if proof := proofs().get(number):
            return ClaimVerdict(proof.verdict, f"by mathematics, on every scale: {proof.because}")
        figures = claim["figures"].split()
        finished = {stamp.notebook for stamp in fitting if stamp.drew(figures)}
        return _name_what_decides(claim, trained, finished)
    return ClaimVerdict(
        combine_verdicts([statement["verdict"] for statement in found]),
        "; ".join(map(_describe_statement, found)),
        found,
        sorted({key for statement in found for key in statement["runs"]}),
    )


def decide_statements(
    stamps: Sequence[NotebookStamp],
) -> Iterator[tuple[int | None, dict[str, Any]]]:
    """Yield (number of the claim or None, decision) of every statement that the stamps make.

    The statements on one claim are tried together: each decision has the keys of the "runs" whose
    notebooks made it. A claim about other data or another network than a stamp's is left out.
    """
    listed = read_table("claims").astype({"number": int}).set_index("number")
    statements: dict[tuple[int | None, str], dict[tuple[int, ...], Mapping[str, Any]]] = {}
    runs: dict[tuple[int | None, str], set[str]] = {}
    for stamp in stamps:
        for record in stamp.records:
            number = record["number"]
            if number is None or is_about(listed.loc[number], stamp.dataset, stamp.model):
                key = number, record["claim"]
                statements.setdefault(key, {}).setdefault(stamp.seeds, record)
                runs.setdefault(key, set()).update(stamp.runs)
    together: Counter[int] = Counter()
    for (number, _), by_seed in statements.items():
        if number is not None:
            together[number] += max(len(record["estimates"]) for record in by_seed.values())
    for (number, text), by_seed in statements.items():
        count = 0 if number is None else together[number]
        yield number, decide_statement(text, by_seed, count) | {"runs": sorted(runs[number, text])}


def decide_statement(
    text: str, by_seed: Mapping[tuple[int, ...], Mapping[str, Any]], together: int = 0
) -> dict[str, Any]:
    """Decide one statement by the records of its seeds: a record with its verdict and estimates.

    Seeds whose runs learned nothing are left out, and counted. `together` as in
    `kit.papers.claim_verdict.decide`.
    """
    records = list(by_seed.values())
    if exact := [record["reading"] for record in records if record["exact"] is not None]:
        here = records[0]["here"]
        return {"statement": text, "verdict": combine_verdicts(exact), "seeds": 0, "here": here}
    alive = {seeds: record for seeds, record in by_seed.items() if not record["dead"]}
    estimates = {
        seeds: list(map(read_estimate, record["estimates"])) for seeds, record in alive.items()
    }
    # An estimate over several seeds has their spread in it, and others may share its seeds: the
    # one over most speaks alone.
    widest = max(alive, key=lambda seeds: alive[seeds]["seeds"], default=())
    several = alive[widest]["seeds"] if alive else 0
    given = [estimates[widest]] if several > 1 else list(filter(None, estimates.values()))
    seeds = several if several > 1 else len(given)
    return {
        "statement": text,
        "verdict": decide(given, seeds, together) if any(given) else "undecided",
        "seeds": seeds,
        "left_out": len(records) - len(alive),
        "estimates": [estimate.record() for estimate in combine_estimates(given)],
        "here": records[0]["here"],
    }


def _describe_statement(record: Mapping[str, Any]) -> str:
    """One statement in words: its verdict, and what it rests on."""
    if not record["seeds"]:
        return f"{record['verdict']}: {record['statement']}: {record['here']}"
    numbers = ", ".join(
        f"{e['name']} {e['value']:.3g} [{e['low']:.3g}, {e['high']:.3g}], expected {e['expected']}"
        for e in record["estimates"]
    )
    left_out = f", {record['left_out']} that learned nothing left out" * bool(record["left_out"])
    return (
        f"{record['verdict']} ({count_seeds(record['seeds'])}{left_out}): {record['statement']}: "
        f"{numbers or record['here']}"
    )


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
