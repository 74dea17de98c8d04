"""The scoreboard over two disjoint sets of seeds: which seeds count, and what changed."""

from __future__ import annotations

import pandas as pd
import pytest

from kit.core.errors import KitError
from kit.core.files import write_json
from kit.figures.base import plain
from kit.papers import rule_checks
from kit.papers.rule_checks import (
    check_against,
    check_stability,
    compare_boards,
    list_apart,
    list_board,
    report_changes,
)

#: Verdicts of four claims with the first and with the second half of the seeds.
FIRST = ["holds", "holds", "undecided", "not run"]
SECOND = ["holds", "fails", "holds", "holds"]

#: What the halves measured of each: 0.1 around these.
VALUES = ([0.2, 0.2, 0.04, 0.0], [0.2, -0.2, 0.12, 0.2])


def statements(value: float) -> list[dict]:
    estimate = {"name": "it", "expected": "> 0", "value": value}
    return [{"statement": "s", "estimates": [estimate | {"low": value - 0.1, "high": value + 0.1}]}]


@pytest.fixture
def halves(monkeypatch):
    """Six whole seeds, and two of which a notebook trained a few runs; returns what was asked."""
    asked = []

    def compare(*, recipe, seeds):
        asked.append(list(seeds))
        verdicts = FIRST if len(asked) == 1 else SECOND
        values = VALUES[0] if len(asked) == 1 else VALUES[1]
        rows = {
            "paper": "vir",
            "claim": list("abcd"),
            "on": recipe,
            "seeds": [seeds] * 4,
            "runs": [[]] * 4,
            "verdict": verdicts,
            "statements": [statements(value) for value in values],
        }
        return pd.DataFrame(rows, index=pd.Index([1, 2, 3, 4], name="number"))

    runs = {0: 30, 1: 30, 2: 28, 3: 30, 4: 30, 5: 31, 6: 3, 7: 3}
    monkeypatch.setattr(rule_checks, "count_runs_by_seed", lambda recipe: runs)
    monkeypatch.setattr(rule_checks, "compare", compare)
    monkeypatch.setattr(rule_checks, "claims", lambda: compare(recipe="", seeds=[]))
    monkeypatch.setattr(rule_checks, "made_with", lambda runs: {"torch": "", "instructions": ""})
    return runs, asked


def test_seeds_of_a_few_runs_are_in_neither_half(halves):
    _, asked = halves
    check_stability("digits")
    assert asked == [[0, 1, 2], [3, 4, 5]]


def test_seeds_of_many_more_runs_leave_no_other_out(halves):
    """Three seeds have the printed tables, too."""
    runs, asked = halves
    runs |= dict.fromkeys((0, 1, 2), 140)
    check_stability("digits")
    assert asked == [[0, 1, 2], [3, 4, 5]]


def test_a_change_is_named_and_a_reversal_is_more_than_a_change(halves):
    found = check_stability("digits")
    assert found["changed"].tolist() == [False, True, True, False], "not run is no change"
    assert found["reversed"].tolist() == [False, True, False, False]
    said = report_changes(found)
    assert said.startswith(
        "seeds 0 1 2 against seeds 3 4 5: 3 claims were run, 3 decided by either; 2 changed, "
        "1 reversed"
    )
    assert "2 vir: holds -> fails: b" in said and "4 vir" not in said


def test_a_change_says_whether_the_halves_differ_or_are_too_few(halves):
    """b: 0.2 against -0.2, each 0.1 to both sides. c: 0.04 and 0.12 lie in each other's."""
    lines = report_changes(check_stability("digits")).splitlines()
    assert lines[1].endswith("b; the two differ in s it")
    assert lines[2].endswith("so the seeds are too few")


def test_other_estimates_are_no_sign_of_few_seeds():
    """A statement that one side words otherwise, or that has an estimate more."""
    columns = {"paper": ["vir"], "claim": ["a"]}
    one, other = (
        pd.DataFrame(columns | {"verdict": [verdict], "statements": [statements(0.2)]}, index=[1])
        for verdict in ("holds", "undecided")
    )
    other.at[1, "statements"][0]["statement"] = "s in other words"
    said = report_changes(compare_boards(one, other, ("one", "other")))
    assert said.endswith("a; the two do not rest on the same estimates")


def test_another_install_is_set_beside_what_is_here(halves, tmp_path):
    """The file is what `compare --json` wrote there; the verdicts here are the second half's."""
    _, asked = halves
    path = tmp_path / "there.json"
    rows = list_board(rule_checks.compare(recipe="digits", seeds=[0, 1, 2]))
    write_json(path, plain(rows))
    found = check_against(path)
    assert asked[-1] == [0, 1, 2], "the seeds that count are those of the file"
    assert found["reversed"].tolist() == [False, True, False, False]
    assert report_changes(found).startswith("there (nothing was run) against here (nothing was")


@pytest.mark.parametrize("damage", ["other claims", "another scale", "no list", "cut rows"])
def test_a_file_of_something_else_is_refused(halves, tmp_path, damage):
    there = rule_checks.compare(recipe="digits", seeds=[0, 1, 2]).reset_index()
    rows = there.to_dict("records")
    rows = {
        "other claims": rows[1:],
        "another scale": [row | {"on": "mnist"} for row in rows],
        "no list": {"rows": rows},
        "cut rows": [{"number": row["number"]} for row in rows],
    }[damage]
    path = tmp_path / "there.json"
    write_json(path, plain(rows))
    with pytest.raises(KitError, match="is of mnist" if "scale" in damage else "compare .*--json"):
        check_against(path)


def test_a_tables_statement_is_its_own_estimate():
    one, other = (
        [{"statement": "s", "expected": "> 0", "value": v, "low": v - 1, "high": v + 1}]
        for v in (2.0, 4.0)
    )
    assert list_apart(one, other) == ["s"] and list_apart(one, one) == []
    assert list_apart(one, [{"statement": "s", "verdict": "not run"}]) == []


def test_too_few_seeds_say_what_makes_more(halves):
    runs, _ = halves
    for seed in (4, 5):
        del runs[seed]
    with pytest.raises(KitError, match="reproduce --recipe digits --seeds 0 1 2 3 4 5"):
        check_stability("digits")
