"""Notebooks and the batch that runs them:

clean files, real runs through papermill, failures that are named.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
import torch
from nbconvert import HTMLExporter

import kit
from kit.core import files
from kit.core.errors import KitError
from kit.experiments.runs import find_run
from kit.experiments.specification import resolve
from kit.figures.table import FIGURES
from kit.jobs import batch_tasks, command_line, notebook_jobs, reproduction
from kit.jobs.tasks import Place
from kit.notebook import parameter_cells
from kit.notebook.study import Study
from tests.helpers.settings import ROOT, TINY

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PLAIN_TORCH = "01_from_scratch"  # builds the parts themselves, so it may use torch
FIGURE_BOOKS = [
    path for path in NOTEBOOKS if path.stem[0].isdecimal()
]  # what `reproduce` runs by itself
SETTINGS = " ".join(f"{k}={json.dumps(v, separators=(',', ':'))}" for k, v in TINY.items())


def kit_command(*words: str, **environment: str) -> subprocess.CompletedProcess:
    """`python -m kit ...` from the checkout, two processes at most."""
    return subprocess.run(
        [sys.executable, "-m", "kit", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


# ---------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_file(path):
    """Valid, without outputs, short cells, one annotated parameters cell, a title, and the stamp at
    the end.
    """
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert re.fullmatch(r"(\d\d|tables|teach)_[a-z0-9_]+", path.stem)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), (
        "committed with outputs"
    )
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    assert code[-1].source.strip() == "study.finish()"
    most = 24 if path.stem == PLAIN_TORCH else 16
    assert all(len(cell.source.splitlines()) <= most for cell in code), "logic belongs in kit/"
    names = {
        node.id
        for cell in code
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Name)
    }
    assert not {"torch", "np", "plt"} & names or path.stem == PLAIN_TORCH
    for name, parameter in parameter_cells.notebook_parameters(path).items():
        assert parameter.meaning, f"{name} does not say what it means"
    parameters = parameter_cells.notebook_parameters(path)
    plans = parameter_cells.check_parameters(parameters, {}).plans
    assert bool(plans) == ("overrides" in parameters), "what trains takes settings"


def test_every_figure_is_in_a_notebook():
    text = " ".join(path.read_text() for path in NOTEBOOKS)
    assert not [name for name in FIGURES if f'\\"{name}\\"' not in text]


# ------------------------------------------------------------------------------------- running them

MAKERS = ("draw", "show", "table", "measured_tables")
SOME = ["01_one_loop", "02_confused_labels", "05_class_confusion"]  # the slow tests run all of them


@pytest.fixture(scope="module")
def batch_run(home, tmp_path_factory):
    """Some notebooks on seconds of training, once, through `python -m kit reproduce`."""
    out = tmp_path_factory.mktemp("out")
    done = kit_command(
        "reproduce", "--only", *SOME, "--set", *SETTINGS.split(), "--out", str(out), "--jobs", "2"
    )
    return done, out


def figures_on_page(name: str, out: Path) -> list[str]:
    """`nbconvert --to html`: a figure with a visible caption and an alternative text for each that
    was drawn. -> the figures.
    """
    page, _ = HTMLExporter().from_filename(str(out / f"{name}.ipynb"))
    figures = re.findall(r"<figure class=.kit-figure.>.*?</figure>", page, re.DOTALL)
    drawn = [f for f in files.read_json(out / f"{name}.json")["figures"] if f.endswith("png")]
    assert len(figures) == len(drawn)
    for figure in figures:
        assert re.search(r"<img alt=(['\"]).{10,}?\1", figure)
        assert re.search(r"<figcaption>\s*<p>[^<]{40,}</p>", figure)
    assert "No description has been provided" not in page
    return figures


def made_everything(done: subprocess.CompletedProcess, out: Path, books: list[Path]) -> None:
    """No cell failed, every picture is in the notebook, on its web page and in the folder, every
    check left its verdict.
    """
    assert done.returncode == 0, done.stdout + done.stderr
    for path in books:
        stamp = files.read_json(out / f"{path.stem}.json")
        text = path.read_text()
        assert stamp["figures"] or not any(f"study.{made}" in text for made in MAKERS)
        assert bool(stamp["verdicts"]) == ("study.check" in text)
        first = stamp["first_picture_seconds"]
        assert (first is not None) == bool(stamp["figures"]) and (first or 0) <= stamp["seconds"]
        executed = nbformat.read(out / path.name, as_version=4)
        outputs = [
            output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs
        ]
        assert not [o for o in outputs if o.output_type == "error"]
        pictures = [
            o
            for o in outputs
            if "class='kit-figure'" in "".join(o.get("data", {}).get("text/html", ""))
        ]
        assert len(pictures) == sum(f.endswith(".png") for f in stamp["figures"])
        assert not [o for o in outputs if "widget" in " ".join(o.get("data", {}))]
        assert path.stem in done.stdout
        figures_on_page(path.stem, out)
    text = " ".join(path.read_text() for path in books)
    for name in (name for name in FIGURES if f'\\"{name}\\"' in text):
        for ending in ("png", "svg", "json"):
            assert (out / f"{name}.{ending}").stat().st_size > 500


def test_a_web_page_of_a_notebook_says_what_to_notice(batch_run):
    _, out = batch_run
    for name in SOME:
        figures = figures_on_page(name, out)
        assert figures and all("<p>What to notice: " in figure for figure in figures)


def test_reproduce_makes_everything(batch_run):
    made_everything(*batch_run, [path for path in FIGURE_BOOKS if path.stem in SOME])


@pytest.mark.slow
def test_reproduce_makes_every_numbered_notebook(home, tmp_path):
    made_everything(
        kit_command("reproduce", "--set", *SETTINGS.split(), "--out", str(tmp_path), "--jobs", "2"),
        tmp_path,
        FIGURE_BOOKS,
    )


@pytest.mark.slow
def test_reproduce_makes_every_lesson(home, tmp_path):
    """Nobody is there: each lesson's widgets are pictures, and nothing hangs."""
    lessons = [path for path in NOTEBOOKS if path.stem.startswith("teach_")]
    assert len(lessons) >= 10
    done = kit_command(
        "reproduce",
        "--only",
        "teach",
        "--set",
        *SETTINGS.split(),
        "--out",
        str(tmp_path),
        "--jobs",
        "2",
    )
    made_everything(done, tmp_path, lessons)


def test_second_call_runs_nothing(batch_run):
    _, out = batch_run
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    done = kit_command("reproduce", "--only", *SOME, "--set", *SETTINGS.split(), "--out", str(out))
    assert done.returncode == 0 and "0 to train" in done.stdout and "0 to run" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.slow
def test_a_lost_figure_is_made_again(batch_run):
    _, out = batch_run
    (out / "confusion.svg").unlink()
    done = kit_command("reproduce", "--only", *SOME, "--set", *SETTINGS.split(), "--out", str(out))
    assert done.returncode == 0 and f"{len(SOME)} notebooks, 1 to run" in done.stdout
    assert (out / "confusion.svg").exists()


def test_plain_papermill(batch_run, home, tmp_path, monkeypatch):
    """Without the batch:

    `papermill notebooks/02_confused_labels.ipynb out.ipynb -p method clirat`.
    """
    monkeypatch.setenv("KIT_OUT", str(tmp_path))
    papermill.execute_notebook(
        ROOT / "notebooks/02_confused_labels.ipynb",
        tmp_path / "out.ipynb",
        progress_bar=False,
        parameters={"method": "clirat", "overrides": SETTINGS},
    )
    [drawn] = tmp_path.glob("method-clirat*/confused-labels.json")
    record = files.read_json(drawn)
    assert record["runs"][0]["spec"]["method"] == "clirat" and "CLIRAT" in record["caption"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"metod": "clirat"}, "Did you mean 'method'"),
        pytest.param({"seed": "three"}, "whole number", marks=pytest.mark.slow),
        pytest.param({"method": "clirrat"}, "Did you mean 'clirat'", marks=pytest.mark.slow),
    ],
)
def test_plain_papermill_refuses_wrong_words(given, words, home, tmp_path):
    with pytest.raises(papermill.exceptions.PapermillExecutionError, match=words):
        papermill.execute_notebook(
            ROOT / "notebooks/02_confused_labels.ipynb",
            tmp_path / "out.ipynb",
            progress_bar=False,
            parameters=given,
        )
    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    failed = [
        o for c in cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"
    ]
    assert len(failed) == 1 and len(failed[0].traceback) == 1, "the sentence, without a traceback"


@pytest.fixture(scope="module")
def field_files(home, tmp_path_factory):
    """A checkpoint, and images of the user's own: in one folder, named as on a user's machine."""
    folder = tmp_path_factory.mktemp("field")
    run = kit.run("at", overrides=TINY, quiet=True)
    test = run.data().test.take(slice(0, 60))
    torch.save({"state_dict": run.model().state_dict()}, folder / "net.pt")
    np.savez(folder / "own.npz", x=test.images.numpy(), y=test.y.numpy())
    return folder


def test_the_notebook_of_your_network_takes_your_images(field_files, tmp_path, monkeypatch):
    """From the user's folder, as `kit.adopt(data=...)` does; nothing of a recipe's is said."""
    monkeypatch.setenv("KIT_OUT", str(tmp_path))
    monkeypatch.chdir(field_files)
    papermill.execute_notebook(
        ROOT / "notebooks/14_your_network.ipynb",
        tmp_path / "out.ipynb",
        progress_bar=False,
        parameters={"path": "net.pt", "data": "own.npz", "eps": 0.15, "images": 10},
    )
    [stamp] = tmp_path.rglob("14_your_network.json")
    record = files.read_json(stamp)
    run = find_run(*record["runs"].values())
    assert run.is_adopted and run.plan.recipe.data.startswith("own:")
    assert len(run.data().test) == 60 and run.plan.recipe.threat == kit.Threat("linf", 0.15)
    captions = [
        files.read_json(path)["caption"] for path in stamp.parent.rglob("your-network/*.json")
    ]
    assert len(captions) == 3 and all("60 images of one's own" in text for text in captions)
    assert {found["record"] for found in record["verdicts"]} == {"not there"}


def test_a_batch_takes_your_files_from_where_it_was_called(field_files, home, monkeypatch):
    """A checkpoint takes the place of the run that else stands in: none is trained."""
    monkeypatch.chdir(field_files)
    given = {"path": "net.pt", "data": "own.npz", "eps": 0.15}
    [job] = notebook_jobs.plan_jobs(["14"], given, None, None)
    assert job.values.given["path"] == str(field_files / "net.pt")
    assert job.values.given["data"] == str(field_files / "own.npz")
    assert job.values.plans == [] == notebook_jobs.needed_runs([job])
    [alone] = notebook_jobs.plan_jobs(["14"], {}, None, None)
    assert [plan.spec.method for plan in alone.values.plans] == ["at"]
    for name in ("path", "data"):
        with pytest.raises(KitError, match=f"{name}: there is no file .*nowhere; expected a"):
            notebook_jobs.plan_jobs(["14"], given | {name: "nowhere"}, None, None)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"data": "own.npz"}, "data has no threat; set eps"),
        ({"data": "net.pt", "eps": 0.15}, r"holds the arrays .*\.\.\.; expected an .npz with x"),
        ({"data": "own.npz", "eps": 8.0}, "Is 8/255 meant"),
        ({"path": "own.npz"}, "not a checkpoint of PyTorch"),
    ],
)
def test_a_study_refuses_wrong_files_in_one_sentence(given, words, field_files, monkeypatch):
    monkeypatch.chdir(field_files)
    path = ROOT / "notebooks/14_your_network.ipynb"
    parameters = parameter_cells.notebook_parameters(path)
    usual = {name: parameter.default for name, parameter in parameters.items()}
    given = usual | {"path": "net.pt"} | given
    with pytest.raises(KitError, match=words) as caught:
        values = parameter_cells.check_parameters(parameters, given)
        study = Study("14_your_network", values)
        study.adopt(given["path"], data=given["data"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--recipe", "digit"], "Did you mean 'digits'"),
        (["--recipe", "folder:/nowhere"], "no folder /nowhere"),
        (["--only", "97"], "there is no notebook '97'"),
        (["--only", "2"], "Did you mean '02_confused_labels'"),
        (["--recipe", "folder:"], "folder: names no folder; write folder:<path>"),
        (["--recipe", "digits+npz:"], "names no file; write digits+npz:<file>"),
        (["--recipe", "digits", "--set", "recipe=mnist"], "both choose the recipe"),
        (["--seeds", "1", "2", "--set", "seed=3"], "both choose the seed"),
        (["--set", "epochs=1", "epochs=2"], "'epochs=1' and 'epochs=2' set the same thing"),
        (["--set", "epochs=1", "--set", "epochs=2"], "'epochs=1' and 'epochs=2'"),
        (["--set", "milestones=[1, 2"], "a list without its end"),
        (["--set", "milestones=[2, 1]"], "must be increasing epochs"),
        (["--set", "metod=at"], "Did you mean 'method'"),
        (["--set", "layer=two"], "whole number"),
        (["--set", "seed"], "name=value"),
        (["--set", "weight.slop=3"], "Did you mean 'weight.slope'"),
        (["--only", "02", "--set", "epochs=0"], "at least 1"),
        (["--seeds", "-1"], "at least 0"),
        (["--seeds", "1", "1"], "names a seed twice"),
        (["--device", "tpu"], "auto, cpu, cuda, mps"),
        (["--jobs", "-2"], "at least 1"),
        (["--out", __file__], "is a file; it must be a folder"),
        (["--address", "local"], "add --on ray"),
        (["--on", "ray", "--address", "nowhere"], "Choices: auto, local, HOST:PORT"),
        (["--on", "ray", "--gpus", "2"], "--gpus 2 is for --plan"),
        (["--on", "ray", "--plan", "--device", "cuda"], "the cluster has no GPU"),
        (["--on", "ray", "--plan", "--device", "mps"], "Choices: auto, cpu, cuda"),
    ],
)
def test_reproduce_refuses_wrong_words_before_anything_runs(words, expected, home, capsys):
    assert command_line.main(["reproduce", *words]) == 2
    text = capsys.readouterr().err.strip()
    assert expected in text and len(text.splitlines()) == 1


BROKEN = {
    "cells": [
        {
            "cell_type": "code",
            "id": "a",
            "metadata": {"tags": ["parameters"]},
            "execution_count": None,
            "outputs": [],
            "source": 'method: str = "at"  # method\nrecipe: str = "digits"  # recipe\nseed: int = '
            "0  # seed\n"
            'overrides: str = ""  # settings',
        },
        {
            "cell_type": "code",
            "id": "b",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": "CODE",
        },
    ],
    "metadata": {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    },
    "nbformat": 4,
    "nbformat_minor": 5,
}


def test_failures_are_named_and_stop_nothing_else(home, tmp_path, monkeypatch, capsys, tiny_run):
    """One notebook raises, one kills its kernel, one never stamps, one is fine:

    three named failures, exit code 1.
    """
    code = {
        "01_raises": "1 / 0",
        "02_dies": "import os; os._exit(1)",
        "03_no_stamp": "print('done')",
        "04_fine": 'import kit; s = kit.begin("04_fine", globals()); s.draw("pm-by-lps", method); '
        "s.finish()",
    }
    for name, source in code.items():
        (tmp_path / f"{name}.ipynb").write_text(
            json.dumps(BROKEN).replace("CODE", source.replace('"', '\\"'))
        )
    monkeypatch.setattr(notebook_jobs, "notebooks_folder", lambda: tmp_path)
    tiny_run("at")
    jobs = notebook_jobs.plan_jobs([], {"overrides": SETTINGS}, [0], tmp_path / "out")
    assert len(notebook_jobs.needed_runs(jobs)) == 1
    assert reproduction.reproduce(jobs, Place(torch.device("cpu"), 1)) == 1
    text = capsys.readouterr().out
    assert "FAILED 01_raises: cell 3: ZeroDivisionError" in text, text
    assert "FAILED 02_dies" in text and "FAILED 03_no_stamp: it ended without its stamp" in text
    assert re.search(r"04_fine +made", text) and (tmp_path / "out/pm-by-lps.png").exists()
    page = tmp_path / "out/report.html"
    assert text.splitlines()[-1] == f"all of it on one page: {page}"
    assert "were begun and did not end: 01_raises, " in page.read_text()


def test_plan_shares_runs_and_seeds_get_their_own_folder(home, tmp_path):
    jobs = notebook_jobs.plan_jobs(["02", "05"], {}, [0, 1], tmp_path)
    assert [(job.name, job.folder.name) for job in jobs] == [
        ("02_confused_labels", "seed-0"),
        ("05_class_confusion", "seed-0"),
        ("02_confused_labels", "seed-1"),
        ("05_class_confusion", "seed-1"),
    ]
    specs = [plan.spec for plan in notebook_jobs.needed_runs(jobs)]
    mixture = [spec for spec in specs if spec.recipe == "mixture"]
    assert len(specs) == 2 * 11 + len(mixture), "both seeds' notebooks draw the same Gaussians"
    assert len({(s.method, s.recipe, s.seed) for s in specs}) == len(specs) and len(mixture) == 6


def test_settings_take_the_place_of_the_notebooks_own(home):
    """Its other settings stay; a seed that is set is the seed of every run."""
    [job] = notebook_jobs.plan_jobs(
        ["04_min_max"], {"epochs": 5, "milestones": [1, 2], "seed": 7}, None, None
    )
    assert job.values.overrides == {"eps": 0.1, "lr": 0.02, "epochs": 5, "milestones": [1, 2]}
    assert job.values.seeds == (7,) and job.values.specs[0].seed == 7
    assert not job.folder.name.startswith("seed-")


def test_a_setting_reaches_every_run_whatever_other_notebooks_call_their_parameters(home):
    """01_from_scratch and 14 have their own eps, 08 its own step; the others' runs take them."""
    given = {"epochs": 5, "milestones": [2], "eps": 0.05, "step": 0.5}
    jobs = {job.name: job.values for job in notebook_jobs.plan_jobs([], given, None, None)}
    for name, values in jobs.items():
        for spec in values.specs:
            plan = resolve(spec)
            if plan.spec.recipe == "digits":
                recipe = plan.recipe
                assert (recipe.epochs, recipe.milestones) == (5, (2,)), name
                assert recipe.step == (0.25 if name == "08_path_dependence" else 0.5), name
                assert recipe.eps == 0.05, name
    assert jobs["08_path_dependence"].given["step"] == 0.5
    assert jobs["14_your_network"].given["eps"] == jobs["01_from_scratch"].given["eps"] == 0.05
    with pytest.raises(KitError, match="notebook parameter or run setting"):
        notebook_jobs.plan_jobs(["02"], {"epsilon": 0.1}, None, None)


def test_a_notebook_waits_for_its_own_runs_alone(fresh_home):
    """And takes as much of a GPU as its networks need."""
    jobs, place = (
        notebook_jobs.plan_jobs(["01_one", "04"], {}, None, None),
        Place(torch.device("cpu"), 2),
    )
    lists = batch_tasks.group_trainings(batch_tasks.untrained_runs(jobs).values(), place)
    tasks = batch_tasks.notebook_tasks(jobs, lists, {})
    for job in jobs:
        wanted = {plan.key for plan in job.values.plans}
        assert tasks[job.label].after == {
            title for title, plans in lists.items() if wanted & {plan.key for plan in plans}
        }
        assert 0 < len(tasks[job.label].after) < len(lists) and tasks[job.label].share == 0.25
    assert not batch_tasks.notebook_tasks(jobs, {}, {})["04_min_max"].after, "its runs are there"
    deep = notebook_jobs.plan_jobs(["01_one"], {"overrides": "model=resnet18"}, None, None)
    assert batch_tasks.notebook_tasks(deep, {}, {})["01_one_loop"].share == 1


# ------------------------------------------------------------------------------- the other commands


def test_train_evaluate_list(home, tiny_run, capsys):
    def said(*words: str, code: int = 0) -> str:
        assert command_line.main(list(words)) == code
        captured = capsys.readouterr()
        return captured.out if code == 0 else captured.err

    assert "held-out" in said("train", "mart", "--set", *SETTINGS.split())
    key = tiny_run("mart").key
    assert re.search(
        r"pgd10 +0\.\d+", said("evaluate", key[:8], "--attacks", "natural, pgd10", "--n", "50")
    )
    assert re.search(rf"{key} +done +mart on digits", said("list", "runs"))
    for table in ("methods", "attacks", "recipes", "criteria", "weights", "figures"):
        assert len(said("list", table).splitlines()) > 3
    assert "no stored runs match 'zzz'" in said("evaluate", "zzz", code=2)
    assert "Did you mean 'mail-at'" in said("train", "mael-at", code=2)
    assert "no attack 'aaa'" in said("evaluate", key[:8], "--attacks", "aaa", code=2)
    assert "names no attack" in said("evaluate", key[:8], "--attacks", " , ", code=2)
