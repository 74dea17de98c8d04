"""What a newcomer meets first: the bare command, captions, papermill's own help, folders."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from html import unescape
from itertools import pairwise
from pathlib import Path

import nbformat
import papermill
import pytest
from PIL import Image

import kit
from kit.core import files
from kit.core.errors import KitError
from kit.figures.base import Claim, Drawing
from kit.figures.table import notice_claims
from kit.jobs import command_line
from kit.jobs.command_parser import make_parser
from kit.notebook import course
from kit.notebook.parameter_cells import Parameter, name_variant, notebook_parameters
from kit.papers.claim_verdict import Estimate
from kit.papers.figure_verdicts import read_stamps
from tests.benchmarks import stopwatch
from tests.helpers.course import GENERATED, course_notebooks, with_made_cells
from tests.helpers.settings import ROOT, TINY, settings_words
from tests.helpers.wording import attack_keys_in

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_no_words_say_what_to_do_first(capsys):
    """Eight lines; each names a notebook that is there, or words that the parser takes."""
    assert command_line.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and max(map(len, lines)) <= 100
    for line in lines[1:]:
        words = re.split(r"  +", line.strip())[0].split()
        if words[:2] == ["jupyter", "lab"]:
            assert (ROOT / words[2]).exists()
        elif words[3:] != ["--help"]:
            assert words[:3] == ["python", "-m", "kit"]
            make_parser().parse_args(words[3:])


# ------------------------------------------------------------------------------------------- course


def test_the_course_is_every_numbered_notebook():
    """In an order without gaps: each is linked from the one before it and from the one after it."""
    mine = [path.stem for path in NOTEBOOKS if not path.stem.startswith("teach_")]
    names = list(course.LESSONS)
    assert sorted(names) == sorted(mine)
    for before, after in pairwise(names):
        assert f"]({after}.ipynb)" in course.head(before)
        assert f"]({before}.ipynb)" in course.head(after) and f"({after}.ipynb)" in course.tail(
            before
        )


@pytest.mark.parametrize("path", course_notebooks(), ids=lambda p: p.stem)
def test_a_notebook_has_its_head_and_its_end(path):
    """Made from the table, up to date, and every link leads to a file that is there."""
    assert path.read_text() == with_made_cells(path), "python -m tests.helpers.course"
    book = nbformat.read(path, as_version=4)
    tags = [tag for cell in book.cells for tag in cell.metadata.get("tags", [])]
    assert tags.count("navigation") == tags.count("next") == 1
    assert "study.learned()" in [cell.source for cell in book.cells]
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("http"):
            assert (path.parent / link.partition("#")[0]).resolve().exists(), link


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_prose_names_attacks_as_papers_do(path):
    """PGD-100 and not pgd100; a key stands in code alone."""
    for cell in nbformat.read(path, as_version=4).cells:
        assert cell.cell_type != "markdown" or not attack_keys_in(cell.source), cell.id


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_wrapped_prose_is_what_it_looks_like(path):
    """No number at the start of a line begins a list in mid-sentence; no formula is torn apart; no
    line is wider than 100 but for formulas, code, tables, headings and cells that are made.
    """
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            prose = re.sub(r"\$\$.*?\$\$|```.*?```|`[^`]*`", "", cell.source, flags=re.DOTALL)
            wide = [line for line in prose.split("\n") if len(line) > 100]
            is_made = set(cell.metadata.get("tags", [])) & set(GENERATED)
            assert is_made or all(line[0] in "|#" for line in wide), wide
            assert not re.search(r"\w\n1[.)] ", cell.source), cell.id
            formulas = re.findall(r"(?<!\$)\$(?!\$)([^$]*)\$", cell.source)
            assert not any("\n" in formula for formula in formulas), cell.id


def test_the_papers_and_the_words_are_in_the_start():
    table = course.papers_table()
    assert all(paper.label in table for paper in kit.papers.PAPERS.values())
    assert not (course.glossary()[["term", "meaning", "notebook"]] == "").any(axis=None)
    assert course.glossary()["term"].is_unique
    assert set(course.glossary()["notebook"]) <= set(course.LESSONS)
    with pytest.raises(KitError):
        course.cite("nobody")


def test_the_map_has_every_figure_and_its_minutes(tmp_path, monkeypatch):
    """A time measured here comes before the committed one; where there is none it says so."""
    monkeypatch.setenv("KIT_OUT", str(tmp_path))
    monkeypatch.setattr(course, "MINUTES", tmp_path / "minutes.csv")
    rows = [line for line in course.figure_map().splitlines() if line.startswith("| CLIRAT")]
    assert len(rows) == 5 and all(line.endswith("| ? | ? |") for line in rows)
    (tmp_path / "minutes.csv").write_text(
        "notebook,seconds,training_seconds,measured\n02_confused_labels,20,200,then\n"
    )
    assert "| 5 | 20 s | 2 min 00 s |" in course.figure_map()
    assert "about 20 s where its runs are trained, about 2 min 00 s from nothing" in course.head(
        "02_confused_labels"
    )
    files.write_json(tmp_path / "02_confused_labels.json", {"seconds": 5, "training_seconds": 10})
    assert "| 5 | 5 s | 10 s |" in course.figure_map()


def test_the_stopwatch_takes_what_the_run_noted(tmp_path, monkeypatch):
    """A row has the load of the time when the notebook ran; older stamps change no row; what was
    not timed is said, and so is that a notebook has no picture.
    """
    monkeypatch.setenv("KIT_OUT", str(tmp_path))
    for module in (course, stopwatch):
        monkeypatch.setattr(module, "MINUTES", tmp_path / "minutes.csv")
    kept = "03_margin_or_steps,14.5,48.5,,then\n"
    columns = "notebook,seconds,training_seconds,first_picture_seconds,measured\n"
    (tmp_path / "minutes.csv").write_text(columns + kept)
    old = {"seconds": 5, "training_seconds": 10}
    files.write_json(tmp_path / "03_margin_or_steps.json", old)
    new = {"ended": "2026-01-02", "cores": 2, "load": 2.4, "first_picture_seconds": 3.2}
    files.write_json(tmp_path / "02_confused_labels.json", old | new)
    files.write_json(tmp_path / "05_class_confusion.json", old | new | {"load": 2.6})
    files.write_json(
        tmp_path / "00_start.json", old | new | {"load": None, "first_picture_seconds": None}
    )
    assert stopwatch.main() == 0
    assert kept in (tmp_path / "minutes.csv").read_text()
    table = course.stopwatch_table()
    for wanted in (
        "ipynb) | 5 | 3 s | 5 s | 10 s | 2026-01-02, 2 cores, a quiet machine |",
        "ipynb) | 12 | 3 s | 5 s | 10 s | 2026-01-02, 2 cores, a busy machine |",
        "ipynb) | 0 | no picture | 5 s | 10 s | 2026-01-02, 2 cores, a machine of unknown load |",
        "ipynb) | 3 | not timed yet | 14 s | 39 s | then |",
    ):
        assert wanted in table, table
    assert re.search(r"imports of PyTorch and the kit\. A fresh kernel .*: \d+\.\d s \(", table)


def test_the_scoreboard_is_counted():
    board, said = kit.papers.scoreboard(), course.summarise_scoreboard()
    assert f"of {len(board)} claims {(board['digits'] == 'holds').sum()} hold" in said


# ----------------------------------------------------------------------------------------- captions


def picture_of(page: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^']+)", page)[1])))


def test_a_figure_shows_its_caption():
    """In HTML, beside a picture with an alternative text; the fallback is a smaller picture."""
    drawing = Drawing(3, 2)
    drawing.subplots().plot([0, 1], [1, 0])
    drawing.title, drawing.caption, drawing.notice = (
        "a < b",
        "The 'line' falls & ends.",
        "It falls.",
    )
    data, metadata = drawing._repr_mimebundle_()
    page = data["text/html"]
    shown = unescape(re.search(r"<figcaption>(.*)</figcaption>", page)[1])
    assert drawing.caption in shown and f"What to notice: {drawing.notice}" in shown
    assert "alt='a &lt; b'" in page and metadata["image/png"]["alt"] == "a < b"
    whole, small = picture_of(page), Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert whole.size == small.size and len(data["image/png"]) < len(page) / 2
    drawing.title = drawing.notice = ""
    assert "alt='The &#x27;line&#x27; falls &amp; ends.'" in drawing._repr_html_()
    assert "notice" not in drawing._repr_html_()


def test_what_to_notice_is_what_the_runs_say():
    estimate = Estimate("gap", "> 0", 0.3, 0.2, 0.4)
    unclear = Claim("a grows", "p", "+1", (Estimate("gap", "> 0", 0.1, -0.2, 0.4),))
    clear = Claim("b grows", "p", "+2", (estimate,))
    assert notice_claims([]) == ""
    assert "a grows. These runs leave it undecided: +1." in notice_claims([unclear])
    assert "b grows (one of 2 statements here). These runs agree: +2." in notice_claims(
        [unclear, clear]
    )


def test_every_figure_says_what_to_notice(home, tiny_run):
    for name in ("confused-label-counts", "softmax-pair", "every-weight", "mini-batch"):
        drawing = kit.draw(name, tiny_run("mail-at"))
        assert drawing.title and len(re.findall(r"\.(?: |$)", drawing.notice)) >= 2, drawing.notice


# ---------------------------------------------------------------------------------------- papermill


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_papermill_lists_every_parameter(path, caplog):
    """With its default and its meaning, and without a complaint."""
    listed = papermill.inspect_notebook(str(path))
    declared = notebook_parameters(path)
    assert list(listed) == list(declared) and "Unable to parse" not in caplog.text
    for name, parameter in declared.items():
        assert listed[name]["help"] == parameter.meaning
        assert listed[name]["default"].strip("\"'") == str(parameter.default)


def test_other_values_have_a_folder_of_their_own():
    cell = {
        "seed": Parameter("int", 0),
        "recipe": Parameter("str", "digits"),
        "overrides": Parameter("str", ""),
    }
    usual = {"seed": 0, "recipe": "mnist", "overrides": ""}
    assert name_variant(cell, usual) == ""
    assert name_variant(cell, usual | {"seed": 3}) == "seed-3"
    names = [name_variant(cell, usual | {"overrides": f"{'x' * 200}:{i}"}) for i in range(2)]
    assert names[0] != names[1] and max(map(len, names)) <= 80
    assert re.fullmatch(r"[\w.-]+", name_variant(cell, usual | {"overrides": "a:[1, 2] ../b=3"}))


def test_a_run_with_another_seed_overwrites_nothing(home, tmp_path, monkeypatch, tiny_run):
    """A folder each, named in the output; what is tried by hand decides no claim."""
    monkeypatch.setenv("KIT_OUT", str(tmp_path))
    monkeypatch.delenv("KIT_STAMP", raising=False)
    path = tmp_path / "tiny.ipynb"
    cells = [
        'method: str = "at"  # method\nrecipe: str = "digits"  # recipe\nseed: int = 0  # seed\n'
        f"overrides: str = {settings_words(TINY)!r}  # settings",
        'import kit\nstudy = kit.begin("tiny", globals())',
        'study.draw("confused-label-counts", method)',
        "study.finish()",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    book.cells[0].metadata["tags"] = ["parameters"]
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(book, path)
    said = {}
    for folder, given in (
        (".", {}),
        ("seed-1", {"seed": 1}),
        ("method-mail-at", {"method": "mail-at"}),
    ):
        out = tmp_path / "out.ipynb"
        papermill.execute_notebook(path, out, parameters=given, progress_bar=False)
        said[folder] = str([c.outputs for c in nbformat.read(out, 4).cells if "outputs" in c])
        assert (tmp_path / folder / "confused-label-counts.png").exists()
        assert str(Path(tmp_path, folder)) in said[folder]
    specs = [
        files.read_json(tmp_path / folder / "confused-label-counts.json")["runs"][0]["spec"]
        for folder in said
    ]
    assert [(s["method"], s["seed"]) for s in specs] == [("at", 0), ("at", 1), ("mail-at", 0)]
    assert sorted(stamp.seeds for stamp in read_stamps("digits")) == [(0,), (1,)]


#: A kernel that takes half a second longer over its last message, and is interrupted in it.
BUSY_KERNEL = """import time
handlers = get_ipython().kernel.shell_handlers
answer = handlers["kernel_info_request"]
async def answer_slowly(*message):
    await answer(*message)
    time.sleep(0.5)
handlers["kernel_info_request"] = answer_slowly"""


def test_a_refusal_is_the_last_word(home, tmp_path):
    """Also where papermill ends the kernel while it is busy."""
    cells = [
        "seed: int = 0  # seed; at least 0",
        BUSY_KERNEL,
        'import kit\nstudy = kit.begin("refused", globals())',
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    book.cells[0].metadata["tags"] = ["parameters"]
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(book, tmp_path / "refused.ipynb")
    words = ["refused.ipynb", "out.ipynb", "-p", "seed", "-1", "--no-progress-bar"]
    done = subprocess.run(
        [sys.executable, "-m", "papermill", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1 and "KeyboardInterrupt" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("KitError: seed")


# ------------------------------------------------------------------------------------------ folders


def test_a_small_folder_takes_its_recipe(tmp_path, capsys):
    """CIFAR-10's row holds out more than a small folder has: less is held out, and it is said."""
    for part, count in (("train", 12), ("test", 2)):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (i, 100, 0)).save(tmp_path / part / name / f"{i}.png")
    recipe = kit.experiments.recipes.find_recipe(f"folder:{tmp_path}")
    for size, said in ((0, ""), (10_000, ", train_size=22 takes the place of 10000")):
        data = kit.data.datasets.load_dataset(
            recipe.data, validation=recipe.validation, train_size=size
        )
        assert (len(data.train), len(data.validation), len(data.test)) == (22, 2, 4)
        words = f"24 training images: validation=2 takes the place of {recipe.validation}{said}\n"
        assert capsys.readouterr().out.endswith(words)
    with pytest.raises(KitError, match="do not fit"):
        kit.data.datasets.load_dataset("digits", validation=2000)
