"""Shared fixtures: a home of its own for every test run, and a few tiny trained runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.helpers.lab import chromium, jupyterlab
from tests.helpers.measurements import FAULTS, describe_machine, faults_table, write_rows
from tests.helpers.settings import ROOT, TINY, settings_words

os.environ.setdefault("OMP_NUM_THREADS", "1")

# A slow machine fails no property.
settings.register_profile("kit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kit")


#: `-m fast` takes these files whole, but for their slow tests: formulas, criteria, weights, losses,
#: the step, tables and values, data, the papers' printed numbers, the architecture, and the
#: authors' own outputs.
FAST = {
    "golden/test_golden.py",
    "golden/test_golden_auto_attack.py",
    "golden/test_golden_methods.py",
    "golden/test_golden_train.py",
    "properties/test_criteria_ranges.py",
    "properties/test_projections.py",
    "unit/test_architecture.py",
    "unit/test_criteria.py",
    "unit/test_data.py",
    "unit/test_formulas.py",
    "unit/test_losses.py",
    "unit/test_models.py",
    "unit/test_papers.py",
    "unit/test_statistics.py",
    "unit/test_step.py",
    "unit/test_store.py",
    "unit/test_types.py",
    "unit/test_weights.py",
}


def is_fast(path: Path) -> bool:
    """Is a test file one of those that `-m fast` takes?"""
    return path.relative_to(Path(__file__).parent).as_posix() in FAST


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the files that `-m fast` would import to take nothing of them."""
    is_test = collection_path.match("test_*.py")
    return (
        True
        if config.option.markexpr == "fast" and is_test and not is_fast(collection_path)
        else None
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is fast by the file it lies in."""
    for item in items:
        if is_fast(item.path) and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.fast)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory) -> Path:
    """KIT_HOME for the whole run:

    nothing is read from or written to the checkout's data/ and figures/.
    """
    path = tmp_path_factory.mktemp("home")
    before = os.environ.get("KIT_HOME")
    os.environ["KIT_HOME"] = str(path)
    real = ROOT / "data"
    (path / "data").mkdir()
    for name in ("MNIST", "cifar10-jpeg"):
        if (real / name).is_dir():
            (path / "data" / name).symlink_to(real / name)
    yield path
    if before is None:
        os.environ.pop("KIT_HOME")
    else:
        os.environ["KIT_HOME"] = before


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that keeps the table of faults."""
    parser.addoption(
        "--record-faults", action="store_true", help=f"write {FAULTS.name}, which README shows"
    )


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Write what tests/faults tried and how it ended, where they were asked to try more than usual
    or to keep it.
    """
    rows = [
        {"fault": what, "times": times, "outcome": outcome}
        for report in terminalreporter.getreports("passed")
        for name, found in report.user_properties
        if name == "faults"
        for what, times, outcome in found
    ]
    rows.sort(key=lambda row: row["fault"])
    if rows and {"KIT_FAULTS", "KIT_FUZZ", "KIT_SOAK"} & set(os.environ):
        terminalreporter.write_line(
            "\n" + faults_table({"machine": describe_machine(), "rows": rows})
        )
    if rows and config.getoption("--record-faults"):
        write_rows(FAULTS, rows)


@pytest.fixture
def fresh_home(tmp_path, monkeypatch) -> Path:
    """A KIT_HOME for one test alone."""
    monkeypatch.setenv("KIT_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def tiny_run(home):
    """`tiny_run("mail-at")` trains or opens a run of seconds; overrides go on top of TINY."""
    import kit

    def make(method: str, seed: int = 0, **overrides):
        return kit.run(method, seed=seed, overrides={**TINY, **overrides}, quiet=True)

    return make


@pytest.fixture
def copy_of(tmp_path, monkeypatch):
    """`copy_of(run)` copies a run's folder into a home of its own, to be damaged at will."""
    from kit.experiments.runs import Run

    def make(run):
        target = tmp_path / "data" / "runs" / run.folder.name
        shutil.copytree(run.folder, target)
        monkeypatch.setenv("KIT_HOME", str(tmp_path))
        return Run(run.spec, target)

    return make


@pytest.fixture(
    scope="module"
)  # it keeps an event loop running, which other modules' tests bring themselves
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def lab(home, tmp_path_factory):
    """JupyterLab with its token, and copies of the notebooks at test size."""
    with jupyterlab(tmp_path_factory.mktemp("lab"), settings_words(TINY)) as started:
        yield started
