"""The page of a folder of results: whole by itself, escaped, and as far as the results go."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kit.core.errors import KitError
from kit.jobs import command_line
from kit.jobs.command_parser import make_parser
from kit.jobs.report import PAGE, describe_reports, newest_results, render_report, write_report
from kit.jobs.result_folder import notebook_command, read_folder
from kit.papers.printed_rules import claims

pytestmark = pytest.mark.usefixtures("fresh_home")

EVIL = "<script>alert('x')</script>\"&"


def run(method="at", seed=0, commit="aaa", **overrides) -> dict:
    spec = {"method": method, "recipe": "digits", "seed": seed, "overrides": overrides}
    return {
        "key": f"{method}{seed:04d}",
        "spec": spec,
        "commit": commit,
        "config": {"epochs": 3},
        "versions": {"torch": "2.11"},
    }


def statement(number: int | None = 1, **changes) -> dict:
    given = {
        "number": number,
        "claim": "several outnumber one",
        "printed": "no numbers",
        "here": "ratio 0.4",
        "reading": "fails",
        "exact": None,
        "seeds": 3,
        "dead": [],
        "estimates": [
            {"name": "share", "expected": "> 0.5", "value": 0.2, "low": 0.1, "high": 0.3}
        ],
    }
    return {**given, **changes}


def png(size: int = 40) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "png")
    return buffer.getvalue()


def write_picture(folder: Path, name: str = "confused-labels", **changes) -> Path:
    record = {
        "figure": name,
        "title": "several or one",
        "source": "CLIRAT Fig. 1A",
        "caption": "What is seen, n = 30.",
        "claims": [statement()],
        "runs": [run(), run("mail-at")],
        "made": "2026-01-01T00:00:00+00:00",
        "versions": {"kit": "0.1.0"},
        "commit": "bbb",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.png").write_bytes(png())
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**record, **changes}))
    return path


def write_stamp(folder: Path, name="02_confused_labels", figures=(), **changes) -> None:
    record = {
        "notebook": name,
        "parameters": {"method": "mail-at", "recipe": "digits", "seeds": "0 1 2"},
        "runs": {"at on digits, seed 0": "at0000"},
        "verdicts": [statement()],
        "figures": list(figures),
    }
    (folder / f"{name}.json").write_text(json.dumps({**record, **changes}))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two seeds of one picture, another picture, a table, and the notebook's stamp."""
    for place in ("", "seed-1"):
        write_picture(tmp_path / place)
    write_picture(tmp_path, "leave-out", claims=[])
    record = {"table": "t", "title": "T", "caption": "C.", "runs": [run()], "made": "x"}
    (tmp_path / "t.json").write_text(json.dumps({**record, "versions": {}}))
    (tmp_path / "t.md").write_text(f"| method | natural |\n| --- | ---: |\n| {EVIL} | 12.3 |\n")
    write_stamp(tmp_path, figures=["confused-labels.png", "seed-1/confused-labels.png", "t.md"])
    return tmp_path


class Page(HTMLParser):
    """A page's elements, its text and the texts of its commands."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.words, self.commands, self.inside = "", [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside = tag
        if tag == "pre":
            self.commands.append("")

    def handle_data(self, data):
        self.words += data
        if self.inside == "pre":
            self.commands[-1] += data

    def handle_endtag(self, tag):
        self.inside = ""

    def values(self, tag: str, attribute: str) -> list[str]:
        return [found[attribute] for t, found in self.elements if t == tag and attribute in found]


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text())


def test_the_page_is_whole_by_itself(folder):
    page = page_of(folder)
    assert not page.values("link", "href") and not page.values("script", "src")
    assert all(src.startswith("data:image/") for src in page.values("img", "src"))
    assert all(href.startswith("#") for href in page.values("a", "href"))
    assert "url(" not in (folder / PAGE).read_text() and "http:" not in page.words


def test_it_can_be_read_by_ear_and_by_keyboard(folder):
    page = page_of(folder)
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    assert {href[1:] for href in page.values("a", "href")} <= set(ids)
    assert len(page.values("img", "src")) == 3 and all(
        "n = 30" in a for a in page.values("img", "alt")
    )
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    first_link = next(found for tag, found in page.elements if tag == "a")
    assert first_link["href"] == "#content"


def test_all_that_is_there_is_shown(folder):
    page = page_of(folder)
    for words in ("several or one", "What is seen", "CLIRAT Fig. 1A", "ratio 0.4", "mail-at0000"):
        assert words in page.words
    assert "12.3" in page.words and "commit bbb" in page.words
    assert all(claim in page.words for claim in claims()["claim"])


def test_every_command_is_one(folder):
    words = [text.split() for text in page_of(folder).commands]
    kit = [command[3:] for command in words if command[:3] == ["python", "-m", "kit"]]
    assert ["train", "mail-at", "--recipe", "digits", "--seed", "0"] in kit
    assert any(command[:3] == ["reproduce", "--only", "02_confused_labels"] for command in kit)
    for command in kit:
        make_parser().parse_args(command)


@pytest.mark.parametrize(
    "notebook, given, command",
    [
        ("02_confused_labels", {"method": "mail-at", "seed": 1}, "--seeds 1"),
        ("02_confused_labels", {"method": "clirat", "seed": 1}, "--seeds 1 --set method=clirat"),
        (
            "04_min_max",
            {"methods": "std csa", "overrides": "eps=0.2 lr=0.02 milestones=[]"},
            "--set eps=0.2 methods=std,csa",
        ),
        ("of-another", {"a": "b c"}, "--set a=b,c"),
    ],
)
def test_what_is_the_notebooks_own_is_left_out(notebook, given, command):
    found = notebook_command({"notebook": notebook, "parameters": given})
    assert found == f"python -m kit reproduce --only {notebook} {command}"


def test_values_that_set_cannot_carry_go_by_papermill():
    grid = "weight.slope=1,2 weight.bias=0"
    found = notebook_command({"notebook": "11_slope_and_offset", "parameters": {"grid": grid}})
    assert found == f"papermill notebooks/11_slope_and_offset.ipynb out.ipynb -p grid '{grid}'"


def test_the_board_is_by_the_results(folder):
    text = write_report(folder).read_text()
    row = re.search(r'<tr id="claim-1".*?</tr>', text, flags=re.DOTALL)[0]
    assert 'data-verdicts="fails' in row and "share 0.2 [0.1, 0.3]" in Page(row).words
    assert text.count('<tr id="claim-') == len(claims())


def test_what_would_decide_an_undecided_claim_is_said(folder):
    wide = {"name": "share", "expected": "> 0.5", "value": 0.4, "low": 0.2, "high": 0.6}
    write_stamp(folder, verdicts=[statement(reading="undecided", estimates=[wide])])
    words = page_of(folder).words
    assert "What would decide it: about 4 times the seeds and test images." in words
    assert words.count("What would decide it") == 1


@pytest.mark.parametrize("field", ["title", "source", "caption", "made", "commit"])
def test_it_escapes_what_records_say(folder, field):
    write_picture(folder, **{field: EVIL})
    text = write_report(folder).read_text()
    assert "<script>alert" not in text and EVIL in Page(text).words


def test_it_escapes_runs_and_statements(folder):
    write_picture(folder, claims=[statement(here=EVIL)], runs=[run(EVIL)])
    (folder / f"{EVIL[8:13]}.txt").touch()
    text = write_report(folder).read_text()
    assert "<script>alert" not in text and Page(text).words.count(EVIL) >= 3


def test_the_smaller_picture_is_shown(folder):
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'></svg>"
    (folder / "leave-out.svg").write_bytes(svg)
    (folder / "confused-labels.svg").write_bytes(b"<svg>" + b" " * 99_999 + b"</svg>")
    shown = {p.name: p.image for p in read_folder(folder).pictures if not p.place}
    assert shown["leave-out"] == f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    assert shown["confused-labels"].startswith("data:image/png;base64,")


# ------------------------------------------------------------------------------------- bad input


def without(name: str):
    def damage(path: Path) -> None:
        record = json.loads(path.read_text())
        del record[name]
        path.write_text(json.dumps(record))

    return damage


def changed(**values):
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    "damage, words",
    [
        (
            lambda path: path.write_text(path.read_text()[:50]),
            "leave-out.json is left out: it is damaged",
        ),
        (lambda path: path.write_bytes(b"\xff\x00"), "leave-out.json is left out: it is damaged"),
        (lambda path: path.write_text("[1, 2]"), "not a record of the kit"),
        (lambda path: path.write_text('{"a": 1}'), "not a record of the kit"),
        (without("caption"), "not a complete record of a figure: caption"),
        (changed(versions=3), "not a complete record of a figure: versions"),
        (changed(runs=[{"key": "a"}]), "not a complete record of a figure: runs"),
        (changed(claims=["x"]), "not a complete record of a figure: claims"),
        (lambda path: path.with_suffix(".png").unlink(), "its picture is missing or damaged"),
        (lambda path: path.with_suffix(".png").write_bytes(png()[:200]), "missing or damaged"),
    ],
)
def test_what_is_damaged_is_said_and_the_rest_is_shown(folder, damage, words):
    damage(folder / "leave-out.json")
    page = page_of(folder)
    assert words in " ".join(page.words.split()) and len(page.values("img", "src")) == 2


@pytest.mark.parametrize("verdicts", [[statement(9999)], ["x"], [{"number": 1}]])
def test_statements_that_the_kit_does_not_know_decide_nothing(folder, verdicts):
    write_stamp(folder, verdicts=verdicts)
    assert '<tr id="claim-1" data-paper="clirat" data-verdicts="not-run' in (
        write_report(folder).read_text()
    )


def test_a_foreign_stamp_is_said(folder):
    write_stamp(folder, verdicts=[{"number": 1, "estimates": 3}])
    assert "no claim is decided by the results on digits" in write_report(folder).read_text()


def test_an_unknown_recipe_decides_nothing(folder):
    write_stamp(folder, parameters={"recipe": "of-another-kit"})
    assert (
        "no claim is decided by the results on of-another-kit" in write_report(folder).read_text()
    )


def test_runs_of_two_revisions_are_marked(folder):
    write_picture(folder, "leave-out", runs=[run(commit="aaa"), run("mail-at", commit="ccc")])
    page = page_of(folder)
    assert "its runs are of different revisions of the kit: aaa, ccc" in page.words
    assert page.words.count("different revisions") == 1


def test_a_notebook_that_did_not_end_is_named(folder):
    for name in ("seed-0/09_same_margin.partial.ipynb", "seed-1/09_same_margin.ipynb"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "02_confused_labels.ipynb").write_text("{}")
    (problem,) = read_folder(folder).problems
    assert "begun and did not end: 09_same_margin (in seed-0, seed-1). What they drew" in problem


def test_many_notebooks_that_did_not_end_are_one_sentence(folder):
    for name in ("09_same_margin", "10_learning_curves"):
        (folder / f"{name}.partial.ipynb").write_text("{}")
    (problem,) = read_folder(folder).problems
    assert "did not end: 09_same_margin, 10_learning_curves. What" in problem


def test_no_results_are_one_sentence(tmp_path):
    with pytest.raises(KitError, match="not a folder of results"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(KitError, match="holds no picture and no table"):
        read_folder(tmp_path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(KitError, match=r"a\.json is left out: it is damaged"):
        read_folder(tmp_path)


def test_the_newest_folder_is_taken(monkeypatch, fresh_home, capsys):
    with pytest.raises(KitError, match="no results in"):
        newest_results()
    root = fresh_home / "figures" / "out"
    for age, name in enumerate(("mnist", "digits", "cifar10")):
        path = write_picture(root / name)
        os.utime(path, (1e9 - age, 1e9 - age))
    assert newest_results() == root / "mnist"
    assert command_line.main(["report"]) == 0
    assert capsys.readouterr().out.strip() == str(root / "mnist" / PAGE)


def test_seeds_share_a_page(folder):
    words = describe_reports([folder / "seed-1", folder, folder / "seed-2"])
    assert words == f"all of it on one page: {folder / PAGE}"
    assert describe_reports([folder / "none"]).startswith("no page of")


def test_two_pages_of_one_folder_are_alike(folder):
    made = re.compile(r"<footer>.*</footer>", flags=re.DOTALL)
    first, second = (render_report(read_folder(folder)) for _ in range(2))
    assert made.sub("", first) == made.sub("", second)
