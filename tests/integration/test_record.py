"""The record: checked rows, verdicts that follow from them, pages that are made of them."""

from __future__ import annotations

import re

import pytest

import kit
from kit.core.errors import KitError
from kit.core.files import read_json, write_json
from kit.experiments import runs
from kit.figures.claim_board import draw_claim_board
from kit.jobs import command_line
from kit.jobs.gallery import (
    CHECKS,
    gallery,
    scale_folder,
    scoreboard_page,
    write_tables,
)
from kit.papers import record
from kit.papers.claim_verdict import VERDICT_GLYPHS, Estimate
from kit.papers.figure_verdicts import check_stamp, is_about, stamp_of
from kit.papers.findings import UNITS, write_findings
from kit.papers.printed_data import proofs, read_table
from kit.papers.printed_rules import claims
from tests.helpers.pages import old_pages
from tests.helpers.settings import ROOT

NUMBERS = {"expected": "> 0", "value": 0.25, "low": 0.125, "high": 0.5}


def row(claim=1, verdict="holds", **changes) -> dict:
    given = {
        "scale": "digits",
        "claim": claim,
        "claim_verdict": verdict if claim else "",
        "statement": "several outnumber one",
        "verdict": verdict,
        "estimate": "gap",
        **NUMBERS,
        "seeds": 3,
        "source": "figures",
        "torch": "2.11",
        "commit": "abc",
    }
    return {**given, **changes}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "measured.csv"
    rows = [row(), row(2, "undecided", value=float("nan"), low=None), row("", statement="own")]
    record.write_record(rows, path)
    table = record.read_record(path)
    assert list(table.columns) == list(record.RECORD_COLUMNS) and len(table) == 3
    assert table.iloc[0][["claim", "value", "low", "high", "seeds"]].tolist() == [
        "1",
        "0.25",
        "0.125",
        "0.5",
        "3",
    ]
    assert table.iloc[1]["value"] == "" and table.iloc[2]["claim"] == ""


def test_what_no_scale_decides_is_listed_with_what_would(tmp_path):
    """Once each, the nearest first; what is decided anywhere is not."""
    path = tmp_path / "measured.csv"
    wide = {"value": 0.25, "low": -0.25, "high": 0.75}
    wider = {"value": 0.25, "low": -1.25, "high": 1.75}
    rows = [
        row(2, "undecided", **wider),
        row(5, "undecided", **wider),
        row(5, "undecided", scale="mnist", **wide),
        row(7, "undecided", **wide),
        row(7, "fails", scale="mnist"),
        # where tables decide a claim, a figure's statement on it does not count
        row(18, "undecided", **wide),
        row(18, "undecided", source="tables", statement="T1 x", estimate="", **wider),
    ]
    record.write_record(rows, path)
    listed = record.open_claims(path)
    assert listed.index[:2].tolist() == [5, 2] and listed.index.is_unique
    assert listed.loc[5, "scale"] == "mnist" and listed.loc[2, "scale"] == "digits"
    assert listed.loc[5, "wanted"].times == pytest.approx(4)
    assert set(listed.index) == {*claims().index} - {7, *proofs()}
    assert all(wanted.words for wanted in listed["wanted"])
    assert listed.loc[18, "wanted"].what.startswith("runs for T2 gairat"), "it takes all to hold"
    unrun = listed[listed["scale"] == ""]["wanted"]
    assert "python -m kit reproduce --only 02_confused_labels" in unrun[1].words


def test_a_scale_is_replaced_and_others_stay(tmp_path):
    path = tmp_path / "measured.csv"
    record.write_record([row(), row(2)], path)
    record.write_record([row(scale="mnist", verdict="fails")], path)
    record.write_record([row(verdict="undecided")], path)
    table = record.read_record(path)
    assert table[["scale", "claim", "verdict"]].to_numpy().tolist() == [
        ["digits", "1", "undecided"],
        ["mnist", "1", "fails"],
    ]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row(999)], "no claim 999"),
        ([row(scale="digitz")], "no recipe 'digitz'"),
        ([row(scale="folder:")], "folder: names no folder"),
        ([row(verdict="confirmed")], "'confirmed' is not a verdict; expected one of fails"),
        ([row(claim_verdict="")], "'' is not a verdict; expected one of fails"),
        ([row(seeds=None)], "'' is not a number of seeds"),
        ([row(), row()], "two rows for claim 1 on digits: several outnumber one gap; delete one"),
    ],
)
def test_wrong_rows_are_refused_and_nothing_is_overwritten(rows, words, tmp_path):
    path = tmp_path / "measured.csv"
    record.write_record([row()], path)
    before = path.read_bytes()
    with pytest.raises(KitError, match=words):
        record.write_record(rows, path)
    assert path.read_bytes() == before
    with pytest.raises(KitError, match="python -m kit record"):
        record.read_record(tmp_path / "none.csv")


STATEMENT = {
    "number": 1,
    "claim": "several outnumber one",
    "here": "3 and 1",
    "reading": "holds",
    "exact": None,
    "seeds": 1,
    "dead": [],
    "estimates": [{"name": "gap", **NUMBERS}],
}


@pytest.mark.parametrize(
    "found, words",
    [
        ({**STATEMENT, "number": 4711}, "on claim 4711; claims are 1 to"),
        ({**STATEMENT, "seeds": 0}, "rests on seeds=0"),
        ({k: v for k, v in STATEMENT.items() if k != "seeds"}, "has no seeds; run the notebook"),
    ],
)
def test_a_notebook_whose_statement_cannot_be_decided_is_named(found, words):
    stamp = {"notebook": "02_confused_labels", "verdicts": [found], "runs": {}}
    check_stamp(stamp_of(stamp | {"verdicts": [STATEMENT]}, "digits"))
    with pytest.raises(KitError, match=words):
        check_stamp(stamp_of(stamp, "digits"))


def test_runs_that_are_not_there_or_of_another_revision_are_refused(tiny_run, monkeypatch):
    run = tiny_run("at")
    assert record.made_with((run.key,))["torch"]
    record.made_with.cache_clear()
    monkeypatch.setattr(runs, "REVISION", runs.REVISION + 1)
    with pytest.raises(KitError, match=r"trained by revision .* their numbers do not mix"):
        record.made_with((run.key,))
    with pytest.raises(KitError, match="their numbers do not mix"):
        kit.draw("score-paths", run)
    with pytest.raises(KitError, match="no stored runs match"):
        record.made_with(("0123456789ab",))


def test_the_scoreboard_is_of_the_record(tmp_path):
    """The verdict on a claim is what `compare` said, whatever its statements are by themselves."""
    path = tmp_path / "measured.csv"
    rows = [
        row(1),
        row(2, statement="a", claim_verdict="fails"),
        row(2, "fails", statement="b"),
        row(5, "fails", statement="from a figure", claim_verdict="holds"),
        row(5, "holds", statement="from a table", source="tables"),
        row(78, "holds", statement="more than one estimate", estimate="x"),
        row(78, "holds", statement="more than one estimate", estimate="y"),
        row(1, "undecided", scale="mnist"),
    ]
    record.write_record(rows, path)
    board = record.scoreboard(path)
    assert len(board) == len(claims()) and list(board.columns[-2:]) == ["digits", "mnist"]
    assert board.loc[[1, 2, 5, 78, 90], "digits"].tolist() == [
        "holds",
        "fails",
        "holds",
        "holds",
        "not run",
    ]
    mnist = board["mnist"].drop(index=list(proofs()))
    assert mnist.value_counts().to_dict() == {"not run": len(mnist) - 1, "undecided": 1}
    assert all(board["mnist"][number] == proof.verdict for number, proof in proofs().items())


def test_a_picture_of_the_board_names_every_claim(tmp_path):
    """Each claim stands once a scale in its words, and its glyph once in the picture."""
    path = tmp_path / "measured.csv"
    record.write_record([row(1), row(2, "fails"), row(1, "undecided", scale="mnist")], path)
    board = record.scoreboard(path)
    drawing = draw_claim_board(board)
    digits, mnist = re.findall(r"(?:digits|mnist): (.*?)\.", drawing.caption)
    for words in (digits, mnist):
        assert sorted(map(int, re.findall(r"\d+", words))) == sorted(board.index)
    proven = {
        word: [n for n, proof in proofs().items() if proof.verdict == word]
        for word in ("holds", "fails")
    }
    told = {word: ", ".join(map(str, numbers)) for word, numbers in proven.items()}
    assert f"holds 1, {told['holds']}; fails 2, {told['fails']}; not run 4" in digits
    words = {part.split(" ")[0]: part for part in mnist.split("; ")}
    assert words["holds"] == f"holds {told['holds']}" and words["undecided"] == "undecided 1"
    drawn = [text.get_text() for text in drawing.axes[0].texts]
    assert drawn.count("✓") == 1 + 2 * len(proven["holds"])
    assert drawn.count("✗") == 1 + 2 * len(proven["fails"]) and drawn.count("?") == 1
    assert drawn.count("·") == 2 * len(board) - 3 - 2 * len(proofs())
    # what mathematics decides is told from what was measured
    assert {int(text[1:-1]) for text in drawn if text.startswith("(")} == set(proofs())


def test_findings_are_the_records_numbers(tmp_path):
    """Decided ones come first, each number with its interval, seeds and verdict, scale by scale."""
    listed = read_table("findings")
    assert not listed.duplicated(["statement", "estimate"]).any() and set(listed["unit"]) <= set(
        UNITS
    )
    path = tmp_path / "measured.csv"
    first, last = listed.iloc[0], listed[listed["unit"] == "points"].iloc[-1]
    rows = [
        row(1, "undecided", statement=first["statement"], estimate=first["estimate"]),
        row(2, "fails", statement=last["statement"], estimate=last["estimate"], seeds=5),
        row(2, statement=last["statement"], estimate=last["estimate"], scale="mnist"),
        row(3, statement="of no interest"),
    ]
    record.write_record(rows, path)
    found = write_findings(record.read_record(path))
    assert (
        len(found) == 2 and found[0].startswith(last["text"]) and found[1].startswith(first["text"])
    )
    assert (
        "**+25.0 points** [+12.5, +50.0] on digits (5 seeds: ✗ fails); **+25.0 points**" in found[0]
    )
    assert len(write_findings(record.read_record(path), 1)) == 1


# --------------------------------------------------------------------------- what is committed


def test_every_finding_is_in_the_record():
    """A statement that was renamed would leave the first page in silence."""
    table = record.read_record()
    known = set(zip(table["statement"], table["estimate"], strict=True))
    listed = read_table("findings")
    assert set(zip(listed["statement"], listed["estimate"], strict=True)) <= known


def test_the_pages_are_those_of_the_record():
    """Gallery and scoreboard: whoever changes a picture, its JSON or the record makes them anew."""
    assert old_pages() == [], "python -m tests.check --fix writes them"


def drawn_figures() -> dict:
    """{figure: its committed record} of those that are drawn on digits."""
    folder = scale_folder("digits", ROOT)
    return {
        n: read_json(folder / f"{n}.json") for n in kit.FIGURES if (folder / f"{n}.json").exists()
    }


def test_every_figure_is_in_the_gallery():
    """With its picture, or named among those that are not drawn, with the command that does."""
    page, drawn = gallery(ROOT), drawn_figures()
    assert len(drawn) > 0.9 * len(kit.FIGURES)
    missing = page[page.find("Not drawn at this scale") :] if len(drawn) < len(kit.FIGURES) else ""
    for name, figure in kit.FIGURES.items():
        if name in drawn:
            assert drawn[name]["figure"] == name
            assert (scale_folder("digits", ROOT) / f"{name}.png").exists()
            assert f"## {name}: {figure.title}" in page and f"](digits/{name}.png)" in page
        else:
            assert f"{name} (`--only " in missing


def test_statements_of_pictures_are_in_the_record():
    """A statement that a committed picture makes has its row, with three seeds or by arithmetic.

    What is about another data set or network than digits' has none.
    """
    table, listed = record.read_record(), claims()
    digits = table[table["scale"] == "digits"]
    for name, drawn in drawn_figures().items():
        for claim in drawn["claims"]:
            number = claim["number"]
            if number and not is_about(listed.loc[number], "digits", "cnn"):
                continue
            rows = digits[digits["statement"] == claim["claim"]]
            assert len(rows), f"{name}: {claim['claim']}"
            for found in rows.to_dict("records"):
                assert found["verdict"] == "undecided" or int(found["seeds"]) in (0, *range(3, 99))


def test_verdicts_of_the_record_follow_from_its_numbers():
    """No row says "holds" whose own interval breaks its bound, nor "fails" where all keep it."""
    table = record.read_record()
    for _, rows in table[table["value"] != ""].groupby(["scale", "claim", "statement"]):
        estimates = [
            Estimate(r["estimate"], r["expected"], *map(float, (r["value"], r["low"], r["high"])))
            for r in rows.to_dict("records")
        ]
        verdict = rows.iloc[0]["verdict"]
        if verdict == "holds":
            assert all(estimate.keeps() for estimate in estimates), rows
        if verdict == "fails":
            assert any(estimate.breaks() for estimate in estimates), rows


def test_the_scoreboard_counts_every_claim():
    page = scoreboard_page(ROOT)
    numbers = re.findall(r"^\| (\d+) \|", page, flags=re.MULTILINE)
    assert list(map(int, numbers)) == claims().index.tolist()
    assert all(mark in page for mark in VERDICT_GLYPHS.values())


def test_printed_tables_stand_beside_measured_ones(tiny_run, tmp_path, monkeypatch):
    """With what was run, "not run" for the rest, the settings of the runs, and LaTeX by command."""
    run = tiny_run("at")
    kit.evaluate(run, ["natural"], quiet=True)
    [page] = write_tables("digits", tmp_path, overrides=dict(run.spec.overrides), seeds=[0])
    text = page.read_text()
    accuracy = f"{100 * kit.evaluate(run, ['natural'], quiet=True).loc['natural', 'accuracy']:.1f}"
    assert page == tmp_path / "figures/digits/tables.md" and f"/ {accuracy}" in text
    assert "not run" in text and "with epochs=" in text and "## clirat-1" in text
    assert write_tables("mnist", tmp_path) == []


def test_tables_by_command(home, capsys):
    assert command_line.main(["tables", "vir-4", "--latex"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("\\begin{tabular}") and "not run" in text
    assert command_line.main(["tables", "vir-4"]) == 0
    assert capsys.readouterr().out.startswith("| method |")
    assert command_line.main(["tables", "nix"]) == 2


def test_the_scoreboard_says_how_far_to_trust_it(tmp_path):
    """With the numbers of the scale's checks, and nothing where a scale was never checked."""
    record.write_record([row(), row(scale="mnist")], tmp_path / "figures" / "measured.csv")
    found = {
        "date": "2026-01-02",
        "rules": "64 of 64 rules can tell.",
        "coverage": {"cases": 7, "least": 0.93, "most": 0.981},
        "stability": ["seeds 0 1 2 against seeds 3 4 5: 1 changed", "   15 clirat: holds -> fails"],
        "installs": [["there against here: 2 changed", "   1 vir: holds -> undecided"]],
    }
    write_json(scale_folder("digits", tmp_path) / CHECKS, found)
    page = scoreboard_page(tmp_path)
    assert "How far to trust these verdicts on digits (2026-01-02)" in page
    assert "64 of 64 rules can tell." in page and "93.0% to 98.1% of simulations" in page
    assert "seeds 3 4 5: 1 changed: 15 clirat: holds -> fails." in page
    assert "there against here: 2 changed: 1 vir: holds -> undecided." in page
    assert "on mnist (" not in page


def test_committed_facts_name_no_folder_of_one_machine():
    """A folder of images is named as it lies in everyone's home."""
    committed = sorted((ROOT / "figures").rglob("*.json"))
    facts = [path for path in committed if "folder:" in path.read_text()]
    assert facts, "the record has a scale of images in a folder"
    assert [path.name for path in facts if '"folder:/' in path.read_text()] == []
