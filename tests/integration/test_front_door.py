"""What stands before any training: a quick help, dependencies that are declared, output that every
terminal can print, environment variables that one module reads.
"""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
import time
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision.datasets

from kit.core import environment, files
from kit.core.environment import changed_environment
from kit.core.errors import KitError
from kit.experiments import provenance
from kit.experiments.recipes import find_recipe
from kit.experiments.specification import RunSpec, parse_overrides, split_settings
from kit.jobs import command_line, notebook_jobs, reproduction
from kit.jobs.tasks import Place
from kit.training import runner
from tests.helpers.settings import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = ("torch", "pandas", "matplotlib", "numpy", "scipy")


def python(*words: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        check=False,
    )


# -------------------------------------------------------------------------------- a quick beginning


@pytest.mark.parametrize(
    "code",
    [
        "import kit",
        "import kit; dir(kit); kit.KitError",
        "import kit.jobs.command_line as c; c.main(['--help'])",
        "import kit.jobs.command_line as c; c.main(['reproduce', '--help'])",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code):
    text = (
        f"import sys\ntry:\n    {code}\nexcept SystemExit: pass\n"
        f"print(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)"
    )
    done = python("-c", text)
    assert done.returncode == 0 and done.stderr.strip() == "[]", done.stderr


def test_the_help_comes_at_once():
    """It takes no longer than Python itself and a few small modules: measured against importing
    what the kit needs from the standard library, so that no machine is too slow for it.
    """
    standard = "import argparse, contextlib, difflib, importlib, pathlib, sys"

    def seconds(*words: str) -> float:
        taken = []
        for _ in range(5):
            began = time.perf_counter()
            assert python(*words).returncode == 0
            taken.append(time.perf_counter() - began)
        return min(taken)

    assert seconds("-m", "kit", "--help") < 3 * seconds("-c", standard) + 0.05


# ---------------------------------------------------------------------------------------- packaging


def third_party(folder: Path) -> set[str]:
    """Distributions whose modules the files of a folder import."""
    found, known = set(), packages_distributions()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in (name.split(".")[0] for name in names):
                if name not in sys.stdlib_module_names and name != "kit":
                    found |= {each.lower() for each in known.get(name, [name])}
    return found


def test_what_is_imported_is_declared():
    declared = {word.partition(">=")[0].lower() for word in PROJECT["dependencies"]}
    named = PROJECT["optional-dependencies"]
    extra = {word.partition(">=")[0] for word in named["cluster"] + named["networks"]}
    assert third_party(ROOT / "kit") <= declared | extra
    assert extra == {"ray", "safetensors", "timm"} and not extra & declared


def test_the_kit_imports_no_tests():
    tests = {path.stem for path in (ROOT / "tests").rglob("*.py")} - {"__init__"}
    for path in (ROOT / "kit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & {"tests", *tests}


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("requirements.txt", "-e ."),
        ("requirements-cluster.txt", "-e .[cluster]"),
        ("tests/requirements.txt", "-e .[cluster,test]"),
    ],
)
def test_requirements_point_at_the_project(file, words):
    lines = [line for line in (ROOT / file).read_text().splitlines() if line[:1] != "#"]
    assert lines == [words]
    assert set(PROJECT["optional-dependencies"]) >= {"cluster", "test"}


def test_the_version_stands_in_one_place(monkeypatch):
    assert provenance.kit_version() == PROJECT["version"] == provenance.versions()["kit"]

    def missing(name: str) -> str:
        raise provenance.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(provenance.metadata, "version", missing)
    provenance.kit_version.cache_clear()
    try:
        assert provenance.kit_version() == PROJECT["version"], "of a checkout, not installed"
    finally:
        provenance.kit_version.cache_clear()
    for path in (ROOT / "kit").rglob("*.py"):
        assert f'"{PROJECT["version"]}"' not in path.read_text(), path


def test_bench_needs_a_checkout(tmp_path, monkeypatch, capsys):
    """It runs the checkout's own file in a process of its own; without one it says what to do."""
    monkeypatch.setattr(files, "CHECKOUT", tmp_path)
    assert command_line.main(["bench", "--quick"]) == 2
    assert "bench needs a checkout of the project" in capsys.readouterr().err
    script = tmp_path / "tests/benchmarks/bench.py"
    script.parent.mkdir(parents=True)
    script.write_text("import sys; sys.exit(7 if sys.argv[1:] == ['--quick'] else 1)")
    assert command_line.main(["bench", "--quick"]) == 7


# -------------------------------------------------------------------------------------- environment


def test_one_module_reads_the_environment():
    """No other file of the kit names `os.environ` or `os.getenv`."""
    readers = set()
    for path in (ROOT / "kit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv"):
                readers.add(path)
    assert readers == {Path(environment.__file__)}


def test_variables_are_typed(monkeypatch, tmp_path):
    for name in ("KIT_HOME", "KIT_OUT", "KIT_LIVE", "KIT_WIDGETS", "KIT_COMPILE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert environment.home_choice() is environment.output_choice() is None
    assert environment.live_choice() is environment.widgets_choice() is None
    assert environment.launched_process() == (1, 0) and not environment.is_compile_wanted()
    wanted = {
        "KIT_HOME": str(tmp_path),
        "KIT_OUT": "",
        "KIT_LIVE": "0",
        "KIT_WIDGETS": "1",
        "KIT_COMPILE": "1",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "3",
    }
    with changed_environment(wanted):
        assert environment.home_choice() == tmp_path and environment.output_choice() is None
        assert environment.live_choice() is False and environment.widgets_choice() is True
        assert environment.launched_process() == (4, 3) and environment.is_compile_wanted()
    assert environment.home_choice() is None and "LOCAL_RANK" not in os.environ


def test_compiling_is_an_argument(monkeypatch, fresh_home):
    """--compile reaches the training of this process and the tasks of others as an argument, and
    the kernel of a notebook as a variable. Without it KIT_COMPILE decides.
    """
    heard = []
    monkeypatch.setattr(
        runner, "fit_plans", lambda plans, device, *, quiet, compiled: heard.append(compiled)
    )
    monkeypatch.delenv("KIT_COMPILE", raising=False)
    for given, variable in ((True, "0"), (None, "1"), (None, "0"), (False, "1")):
        with changed_environment({"KIT_COMPILE": variable}):
            runner.run("at", compiled=given, quiet=True)
            runner.run_many([RunSpec("at"), RunSpec("trades")], compiled=given, quiet=True)
    assert [heard[i : i + 3] for i in range(0, 12, 3)] == [[True] * 3] * 2 + [[False] * 3] * 2

    tasks = {}

    def engine(given, place, tick, finished):
        tasks.update(given)

    jobs = notebook_jobs.plan_jobs(["02"], {}, None, None)
    for compiled in (True, False):
        reproduction.reproduce(
            jobs, Place(torch.device("cpu"), 1), engine=engine, compiled=compiled
        )
        heard = {(task.work.__name__, task.args[-1]) for task in tasks.values()}
        assert heard == {("train_runs", compiled or None), ("run_notebook", compiled)}
    assert "KIT_COMPILE" not in os.environ
    assert environment.notebook_variables("out", "stamp", True)["KIT_COMPILE"] == "1"
    assert "KIT_COMPILE" not in environment.notebook_variables("out", "stamp", False)


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("milestones=[1, 2]", {"milestones": [1, 2]}),
        ("milestones=[ 1 , 2 ] epochs=4", {"milestones": [1, 2], "epochs": 4}),
        ("epochs=4 milestones=[] eps=8/255", {"epochs": 4, "milestones": [], "eps": 8 / 255}),
        ('names=["a b", [1, 2]] x=True', {"names": ["a b", [1, 2]], "x": True}),
        ("data=folder:/a[b x=1", {"data": "folder:/a[b", "x": 1}),
    ],
)
def test_lists_may_have_spaces(text, settings):
    assert parse_overrides(text) == settings
    assert len(split_settings(text)) == len(settings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs=1 epochs=2", "'epochs=1' and 'epochs=2' set the same thing; give 'epochs' once"),
        ("epochs=1 lr=1 epochs=1", "set the same thing"),
        ("milestones=[1, 2", "a list without its end"),
        ("epochs", "'epochs' is not a setting; write name=value"),
        ("epochs = 3", "'epochs' is not a setting; write name=value"),
        ("=3", "is not a setting"),
        ("epochs=1/0", "divides by zero"),
    ],
)
def test_settings_are_refused_in_words(text, words):
    with pytest.raises(KitError) as error:
        parse_overrides(text)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "command", [["list", "methods"], ["list", "weights"], ["explain", "vir-at"]]
)
def test_any_terminal_can_print_it(command):
    """Where the output's encoding lacks a character a question mark stands for it."""
    full = python("-m", "kit", *command, PYTHONIOENCODING="utf-8")
    plain = python("-m", "kit", *command, PYTHONIOENCODING="ascii")
    assert full.returncode == plain.returncode == 0, plain.stderr
    assert plain.stderr == "" and plain.stdout.isascii() and "?" in plain.stdout
    assert not full.stdout.isascii()
    assert len(full.stdout) == len(plain.stdout)


def test_output_is_as_it_was_after_a_command(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    assert command_line.main(["list", "weights"]) == 0
    assert stream.errors == "strict"


def test_data_that_cannot_be_had_are_refused_once(fresh_home, monkeypatch, capsys):
    """A batch whose data set is neither here nor to be downloaded starts nothing."""

    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", unreachable)
    asked = ["reproduce", "--recipe", "mnist", "--only", "02", "03", "--seeds", "0", "1"]
    assert command_line.main(asked) == 2
    said = capsys.readouterr()
    assert said.err.count("MNIST could not be read from or downloaded") == 1
    assert "Check the network" in said.err and not said.out
    assert not list(fresh_home.rglob("run.json")) and not list(fresh_home.rglob("*.ipynb"))


@pytest.mark.parametrize("name", ["folder:", "folder::paper", "digits+npz:"])
def test_a_data_set_without_its_place_is_refused(name):
    with pytest.raises(KitError, match="names no f"):
        find_recipe(name)
