"""The papers' claims held against measured numbers, by the rules that also read the printed ones.

Where tables decide a claim, `kit.papers.measured_rules` puts measured cells into its rules; where a
figure does, `kit.papers.figure_verdicts` takes what finished notebooks wrote of it.
"""

from __future__ import annotations

import shlex
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from kit.experiments.runs import stored_seeds
from kit.papers.claim_verdict import NOT_RUN, ClaimVerdict
from kit.papers.consistency import copied_cells, resolution, text_against_table
from kit.papers.evidence_wanted import find_wanted
from kit.papers.figure_verdicts import (
    NotebookStamp,
    decide_by_figures,
    read_stamps,
    trained_on,
)
from kit.papers.measured_rules import Cells, decide_by_rules, name_controls
from kit.papers.printed_data import tables
from kit.papers.printed_rules import claims
from kit.papers.rule_language import read_rules
from kit.papers.table_runs import chosen_tables, grid

#: The notebook that trains and evaluates what printed tables take.
TABLES_NOTEBOOK = "tables_of_the_papers"


def compare(
    paper: str | None = None,
    *,
    recipe: str = "digits",
    seeds: Sequence[int] | None = None,
    overrides: Mapping[str, Any] | None = None,
    strong_n: int = 100,
    fast_n: int = 0,
    settings: str | None = None,
    stamps: Sequence[NotebookStamp] | None = None,
) -> pd.DataFrame:
    """List the claims of a paper, or of all, with a verdict from what is finished on a recipe.

    Columns: paper, claim, decided_by, printed (the verdict of the papers' own numbers), verdict
    (holds, fails, undecided, not run), on (the recipe), seeds (those that count), here (in words),
    wanted (what would decide it, "" if it is not undecided), statements (a list of records), runs
    (keys that it rests on), command (what makes the runs that are missing, "" if none are;
    `settings` is what it puts behind --set, the overrides if not given). A claim of several
    statements fails if one does, and holds if all do. Statements on a network or data set that the
    recipe does not have are left out, save where the claim is about several. `seeds` are those that
    count, all that are there if not given. Claims that no table decides, or whose tables are not
    run, take what finished notebooks measured: `stamps`, or those in the recipe's folder. A claim
    about other data or another network than the recipe's, or than a quick recipe stands for, is not
    run there.

    Raises:
        KitError: There is no such paper or recipe.
    """
    if settings is None:
        settings = " ".join(
            f"{name}={value}".replace(" ", "") for name, value in (overrides or {}).items()
        )
    listed = claims(paper)
    stamps = read_stamps(recipe) if stamps is None else stamps
    trained = trained_on(recipe, overrides or {})
    if seeds is None:
        seeds = stored_seeds(recipe)
    else:
        stamps = [stamp for stamp in stamps if set(stamp.seeds) <= set(seeds)]
    cells = {}
    for name in dict.fromkeys(listed["paper"]):
        planned = [
            need
            for _, table in chosen_tables(name)
            for need in grid(
                name,
                table,
                recipe=recipe,
                overrides=overrides,
                strong_n=strong_n,
                fast_n=fast_n,
            )
        ]
        cells[name] = Cells(planned, seeds, own_scale=True)
    rows = {}
    for number, claim in listed.iterrows():
        found = decide_by_figures(number, claim, stamps, trained)
        if claim["decided_by"] == "tables":
            mine, rules = cells[claim["paper"]], read_rules()[number]
            by_tables = decide_by_rules(mine, rules, across=claim["across"] == "yes")
            by_tables = replace(by_tables, here=by_tables.here + name_controls(mine, rules))
            if by_tables.verdict != NOT_RUN or found.verdict == NOT_RUN:
                found = by_tables
        rows[number] = {
            "paper": claim["paper"],
            "claim": claim["claim"],
            "decided_by": claim["decided_by"],
            "printed": claim["verdict"],
            "on": recipe,
            "seeds": list(seeds),
            "verdict": found.verdict,
            "here": found.here,
            "wanted": _wanted(found),
            "statements": list(found.statements),
            "runs": list(found.runs),
            "command": _command(found, recipe, seeds, settings),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("number")


def _wanted(found: ClaimVerdict) -> str:
    """What would decide a claim that is undecided; "" for others."""
    return find_wanted(found.statements).words if found.verdict == "undecided" else ""


def _command(found: ClaimVerdict, recipe: str, seeds: Sequence[int], settings: str) -> str:
    """The command that makes what is missing for a verdict; "" if nothing is."""
    only = [TABLES_NOTEBOOK] if found.missing_tables else found.notebooks
    if not only:
        return ""
    recipe = found.recipe or recipe
    where = f" --recipe {shlex.quote(recipe)}" if recipe != "digits" else ""
    which = f" --seeds {' '.join(map(str, seeds))}" if seeds else ""
    words = [f"tables={','.join(found.missing_tables)}"] if found.missing_tables else []
    words += settings.split()
    behind = f" --set {' '.join(words)}" if words else ""
    return f"python -m kit reproduce --only {' '.join(only)}{where}{which}{behind}"


# ----------------------------------------------------------------------------------------- in words


def report(compared: pd.DataFrame, width: int = 100) -> str:
    """Write what `compare` found, for reading.

    Each claim has its verdict; then comes what the printed numbers alone say.
    """
    recipe = compared["on"].iloc[0]
    lines = _folded(
        f"Claims of the papers, measured on {recipe}. A verdict is about {recipe} and these runs: "
        "whether a claim holds at the papers' own scale, only runs at that scale can say. At quick "
        "scale all of the papers' networks and data sets are the recipe's own, so two tables may "
        "be one measurement.",
        "",
        width,
    )
    for number, row in compared.iterrows():
        printed = f" [printed numbers: {row['printed']}]" if row["printed"] else ""
        claim = f"{number:>2} {row['paper']}: {row['claim']}{printed}"
        lines += ["", *_folded(claim, "   ", width)]
        place = f" on {recipe}" if row["verdict"] != NOT_RUN else ""
        lines += _folded(f"   {row['verdict'].upper()}{place}: {row['here']}", "      ", width)
        if row["wanted"]:
            lines += _folded(f"   What would decide it: {row['wanted']}", "      ", width)
        lines += [f"      {row['command']}"] if row["command"] else []
    tally = Counter(compared["verdict"])
    counts = ", ".join(f"{n} {word} on {recipe}" for word, n in tally.most_common())
    lines += ["", f"{len(compared)} claims: {counts}"]
    for paper in dict.fromkeys(compared["paper"]):
        lines += _folded(f"{paper}, printed numbers alone: {describe_paper(paper)}", "   ", width)
    return "\n".join(lines)


def _folded(text: str, indent: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False)


def describe_paper(paper: str) -> str:
    """Say in one sentence what follows from a paper's printed numbers: images, copies, slips."""
    readings = Counter(
        reading for table in tables(paper) for reading in resolution(paper, table)["reading"]
    )
    images = ", ".join(f"{count} {reading}" for reading, count in readings.items())
    copies = copied_cells()
    mine = copies[
        (copies["first"].str.startswith(paper) | copies["second"].str.startswith(paper))
        & (copies["kind"] != "same model again")
    ]
    slips = text_against_table(paper)
    return (
        f"columns by the images behind them: {images}; {len(mine)} pairs of rows share more cells "
        f"than chance; {int((~slips['agrees']).sum())} of {len(slips)} numbers given elsewhere "
        "are off."
    )
