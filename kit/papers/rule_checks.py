"""Whether rules can tell, and whether verdicts stay.

A rule's "fails" counts only if it says "holds" on a case that is built to hold, and its "holds"
only if it fails on one built to fail. `check_rules` tries every claim that tables decide on four
such cases. `check_stability` decides the whole scoreboard twice, with seeds of which none is used
twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit.core.errors import KitError
from kit.core.files import read_json
from kit.evaluation.result_tables import count_seeds
from kit.experiments.runs import count_runs_by_seed
from kit.papers.bounds import Bound
from kit.papers.claim_verdict import (
    FEWEST_SEEDS,
    NOT_RUN,
    Estimate,
    combine_verdicts,
    read_estimate,
)
from kit.papers.measured_rules import DRAWS, MeasuredSum, decide_by_rules
from kit.papers.printed_rules import claims, value
from kit.papers.record import made_with
from kit.papers.rule_language import STEP_BOUNDS, Expression, Rule, read_rules
from kit.papers.verdicts import compare

#: What a claim's own tables say of it -> what its rules must say of the same numbers as measured.
EXPECTED_VERDICTS = {"holds": "holds", "fails": "fails", "partly": "fails"}

#: What every cell shows where there is no effect.
NO_EFFECT = 50.0

#: The verdicts that decide something, each the other's opposite.
DECIDED = ("holds", "fails")


@dataclass(frozen=True)
class PlantedSums:
    """Sums of cells whose values were chosen, without any noise: {text of the sum: its value}."""

    values: Mapping[str, float]

    def measure(self, expression: Expression) -> MeasuredSum:
        """Return the planted value of a sum, or of the difference of two."""
        found = self.values.get(expression.text)
        if found is None:
            found = next(
                self.values[first] - self.values[second]
                for first in self.values
                if expression.text.startswith(f"{first} - ")
                for second in [expression.text.removeprefix(f"{first} - ")]
                if second in self.values
            )
        draws = np.full(DRAWS, found)
        return MeasuredSum(expression.text, found, draws, n=1, seeds=FEWEST_SEEDS)


def check_rules(paper: str | None = None) -> pd.DataFrame:
    """Try the rules of every claim that tables decide on four cases: what they say of each.

    Columns: printed (the printed numbers as if measured), kept (numbers on the claimed side),
    broken (numbers on the other side), none (every cell alike); `expected` is what the first must
    be, and `tells` whether all is as it must be: kept holds, broken fails, and none does not hold.
    A claim that says that nothing is lost holds where nothing differs; `none` is not asked of it.

    Raises:
        KitError: There is no such paper.
    """
    rows = {}
    listed = claims(paper)
    for number, claim in listed[listed["decided_by"] == "tables"].iterrows():
        rules = [rule for rule in read_rules()[number] if rule.bound or rule.take in STEP_BOUNDS]
        if not rules:
            continue
        printed = {
            part.text: float(value(claim["paper"], part.text))
            for rule in rules
            for part in rule.expressions
        }
        cases: dict[str, Callable[[Rule], dict[str, float]]] = {
            "printed": partial(_take, printed),
            "kept": lambda rule: _planted(rule, kept=True),
            "broken": lambda rule: _planted(rule, kept=False),
            "none": _without_effect,
        }
        found = {
            name: combine_verdicts(
                [decide_by_rules(PlantedSums(plant(rule)), [rule]).verdict for rule in rules]
            )
            for name, plant in cases.items()
        }
        expected = EXPECTED_VERDICTS[claim["verdict"]]
        rows[number] = {
            "paper": claim["paper"],
            "expected": expected,
            **found,
            "tells": found["printed"] == expected
            and found["kept"] == "holds"
            and found["broken"] == "fails"
            and (found["none"] != "holds" or _allows_no_effect(rules)),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("number")


def _take(values: dict[str, float], rule: Rule) -> dict[str, float]:
    return values


def _without_effect(rule: Rule) -> dict[str, float]:
    """The value of each of a rule's sums where all cells are alike."""
    return {
        part.text: NO_EFFECT * sum(term.sign for term in part.terms) for part in rule.expressions
    }


def _allows_no_effect(rules: Sequence[Rule]) -> bool:
    """Say whether every rule tolerates a difference of 0, as one against a loss does."""
    return all(rule.bound is not None and bool(rule.bound.keeps(0.0)) for rule in rules)


def _planted(rule: Rule, *, kept: bool) -> dict[str, float]:
    """Values of a rule's sums that keep, or break, its bound by one point."""
    texts = [expression.text for expression in rule.expressions]
    if rule.take in STEP_BOUNDS:
        up = (rule.take == "rising") == kept
        return {text: float(i if up else -i) for i, text in enumerate(texts)}
    assert rule.bound is not None, f"{rule.text} states nothing"
    if rule.take == "range":
        apart = _beyond(rule.bound, kept)
        return {text: apart * (i % 2) for i, text in enumerate(texts)}
    return dict.fromkeys(texts, _beyond(rule.bound, kept))


def _beyond(bound: Bound, kept: bool) -> float:
    """A number one beyond a bound, on its side or on the other."""
    number = float(bound.number)
    return next(x for x in (number + 1, number - 1, number) if bool(bound.keeps(x)) == kept)


# --------------------------------------------------------------------------------------- stability

#: What a file of verdicts has of each claim.
BOARD_COLUMNS = ("number", "paper", "claim", "on", "seeds", "verdict", "statements", "runs")


def check_stability(recipe: str = "digits", **options: Any) -> pd.DataFrame:
    """Decide every claim twice, with the first half of the seeds that are there and the second.

    A seed with less than half of the runs that the others have is left out: notebooks that train a
    few runs of several seeds would leave halves without most claims. Some seeds may have many more,
    of the printed tables: what one half alone has run is not compared. Columns are those of
    `compare_boards`, `options` those of `compare`.

    Raises:
        KitError: There are fewer than twice `FEWEST_SEEDS` seeds.
    """
    runs = count_runs_by_seed(recipe)
    most = sorted(runs.values(), reverse=True)[: FEWEST_SEEDS + 1]  # the last is in another half
    seeds = [seed for seed, count in runs.items() if 2 * count >= most[-1]]
    half = len(seeds) // 2
    if half < FEWEST_SEEDS:
        raise KitError(
            f"{recipe} has runs of {count_seeds(len(seeds))}; two disjoint sets take "
            f"{2 * FEWEST_SEEDS}: python -m kit reproduce --recipe {recipe} --seeds "
            f"{' '.join(map(str, range(2 * FEWEST_SEEDS)))}"
        )
    halves = seeds[:half], seeds[half:]
    first, second = (compare(recipe=recipe, seeds=some, **options) for some in halves)
    one, other = (f"seeds {' '.join(map(str, some))}" for some in halves)
    return compare_boards(first, second, (one, other))


def list_board(compared: pd.DataFrame) -> list[dict[str, Any]]:
    """List what `compare` found, with what each claim's runs were trained with."""
    rows = compared.reset_index().to_dict("records")
    return [row | {"made_with": made_with(tuple(row["runs"]))} for row in rows]


def check_against(
    path: Path, recipe: str = "digits", seeds: Sequence[int] | None = None, **options: Any
) -> pd.DataFrame:
    """Decide every claim here, and set it against a JSON file of `list_board` from elsewhere.

    Elsewhere is another version of PyTorch, another processor or other seeds; the file's seeds
    count here if not given. Columns are those of `compare_boards`, `options` those of `compare`.

    Raises:
        KitError: The file is not such a list, or of another scale or of other claims.
    """
    there = read_json(path)
    listed = there if isinstance(there, list) else []
    rows = [row for row in listed if isinstance(row, dict) and set(row) >= set(BOARD_COLUMNS)]
    numbers = [row["number"] for row in rows]
    if len(rows) != len(listed) or numbers != claims().index.tolist():
        raise KitError(
            f"{path} is not a list of these {len(claims())} claims; write one there, with this "
            f"version of the kit: python -m kit compare --recipe {recipe} --json FILE"
        )
    if scales := {row["on"] for row in rows} - {recipe}:
        raise KitError(f"{path} is of {', '.join(sorted(scales))}, but this is {recipe}")
    first = pd.DataFrame(rows).set_index("number")
    counted = rows[0]["seeds"] if seeds is None else seeds
    here = compare(recipe=recipe, seeds=counted, **options)
    return compare_boards(
        first, here, (f"{path.stem} ({_list_installs(first)})", f"here ({_list_installs(here)})")
    )


def _list_installs(board: pd.DataFrame) -> str:
    """The versions of torch and the instructions of the processors behind a board."""
    words = set()
    for row in board[board["runs"].map(len) > 0].to_dict("records"):
        made = row.get("made_with") or made_with(tuple(row["runs"]))
        words |= {*made["torch"].split(), *made["instructions"].split()}
    return "torch " + ", ".join(sorted(words)) if words else "nothing was run"


def compare_boards(
    first: pd.DataFrame, second: pd.DataFrame, sides: tuple[str, str]
) -> pd.DataFrame:
    """Set two results of `compare` side by side.

    Columns: paper, claim, first, second (verdicts), ran (on both sides), changed, reversed, apart
    (the estimates by which they differ, see `list_apart`), alike (whether both have the same
    estimates). What mathematics decides is not run.
    """
    found = pd.DataFrame(
        {
            "paper": first["paper"],
            "claim": first["claim"],
            "first": first["verdict"],
            "second": second["verdict"],
        }
    )
    measured = [side["statements"].map(len) > 0 for side in (first, second)]
    verdicts = found[["first", "second"]]
    found["ran"] = (verdicts != NOT_RUN).all(axis=1) & measured[0] & measured[1]
    found["changed"] = found["ran"] & (found["first"] != found["second"])
    found["reversed"] = found["changed"] & verdicts.isin(DECIDED).all(axis=1)
    pairs = list(zip(first["statements"], second["statements"], strict=True))
    found["apart"] = [list_apart(*both) for both in pairs]
    found["alike"] = [
        _estimates_of(one).keys() == _estimates_of(other).keys() for one, other in pairs
    ]
    found.attrs["sides"] = sides
    return found


def list_apart(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Name the estimates of a claim of which one side's value lies outside the other's interval.

    Where there is none, both measured the same, and another verdict comes from their seeds being
    few.
    """
    mine, theirs = _estimates_of(first), _estimates_of(second)
    return [
        name
        for name, one in mine.items()
        if (other := theirs.get(name)) is not None
        and not (one.low <= other.value <= one.high and other.low <= one.value <= other.high)
    ]


def _estimates_of(statements: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    """A claim's estimates: of a table's statement one, of a figure's those that it names."""
    found = {}
    for statement in statements:
        own = [{"name": "", **statement}] if "value" in statement else []
        for record in statement.get("estimates", own):
            found[f"{statement['statement']} {record['name']}".strip()] = read_estimate(record)
    return found


# ----------------------------------------------------------------------------------------- in words


def report_rules(checked: pd.DataFrame) -> str:
    """Write what `check_rules` found: how many rules can tell, and those that cannot."""
    lines = [
        f"{int(checked['tells'].sum())} of {len(checked)} claims that tables decide have rules "
        "that can tell: printed numbers, an effect, its reverse, and none."
    ]
    for number, row in checked[~checked["tells"]].iterrows():
        lines.append(
            f"   {number} {row['paper']}: printed numbers {row['printed']} (expected "
            f"{row['expected']}), kept {row['kept']}, broken {row['broken']}, none {row['none']}"
        )
    return "\n".join(lines)


def report_changes(found: pd.DataFrame) -> str:
    """Write what `compare_boards` found: what changed between the two sides, and what turned."""
    first, second = found.attrs["sides"]
    ran = found[found["ran"]]
    decided = ran[ran["first"].isin(DECIDED) | ran["second"].isin(DECIDED)]
    lines = [
        f"{first} against {second}: {len(ran)} claims were run, {len(decided)} decided by either; "
        f"{int(found['changed'].sum())} changed, {int(found['reversed'].sum())} reversed"
    ]
    for number, row in found[found["changed"]].iterrows():
        lines.append(
            f"   {number} {row['paper']}: {row['first']} -> {row['second']}: {row['claim']}; "
            f"{_why_changed(row)}"
        )
    return "\n".join(lines)


def _why_changed(row: pd.Series) -> str:
    if row["apart"]:
        return f"the two differ in {', '.join(row['apart'])}"
    if not row["alike"]:
        return "the two do not rest on the same estimates"
    return "each one's estimates lie in the other's intervals, so the seeds are too few"
