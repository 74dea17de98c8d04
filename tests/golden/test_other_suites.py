"""Other libraries' own tests, run against the kit's attacks.

A library's package does not hold its tests, so a checkout of it is named in the environment.
Nothing of it is copied.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]

#: A checkout of github.com/jeromerony/adversarial-library (BSD 3-Clause), read at 9dec220.
ADVERSARIAL_LIBRARY = os.environ.get("KIT_ADVERSARIAL_LIBRARY", "")

#: A checkout of github.com/bethgelab/foolbox (MIT), read at 2513a9a.
FOOLBOX = os.environ.get("KIT_FOOLBOX", "")

#: What foolbox imports and the kit does not.
FOOLBOX_NEEDS = ("eagerpy", "git", "scipy", "requests")


def count_passed(plugin: str, theirs: Path, folder: Path, *words: str) -> int:
    """Run a library's tests under one of our plugins; return how many passed, where none failed."""
    report, checkout = folder / "report.xml", theirs.parents[1]
    paths = [str(ROOT), str(checkout), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull,
         "-p", plugin, "--rootdir", str(folder), "--tb=short",
         f"--junitxml={report}", *words, str(theirs)],
        capture_output=True,
        text=True,
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "skipped", "failures", "errors")}
    assert counts["failures"] == counts["errors"] == 0
    return counts["tests"] - counts["skipped"]


@pytest.mark.skipif(
    not ADVERSARIAL_LIBRARY, reason="KIT_ADVERSARIAL_LIBRARY names no checkout of it"
)
def test_adversarial_librarys_own_tests(tmp_path):
    """FMN, FAB, CW, APGD and PGD on linear networks, whose nearest image is known: 72 cases."""
    theirs = Path(ADVERSARIAL_LIBRARY) / "tests" / "test_attacks.py"
    assert count_passed("tests.helpers.kit_as_adv_lib", theirs, tmp_path) >= 72


@pytest.mark.skipif(not FOOLBOX, reason="KIT_FOOLBOX names no checkout of foolbox")
def test_foolboxs_own_tests(tmp_path):
    """FGSM, PGD, BIA, MI-FGSM in two norms and CW-L2 on two models: 18 cases.

    Accuracy falls, and by foolbox's count the images lie in the ball and are what the kit says.
    """
    if missing := [name for name in FOOLBOX_NEEDS if importlib.util.find_spec(name) is None]:
        pytest.skip(f"foolbox needs {', '.join(missing)}")
    theirs = Path(FOOLBOX).resolve() / "tests" / "test_attacks.py"
    words = ["--backend", "pytorch", "--skipslow", "-k", "untargeted and pytorch_simple"]
    assert count_passed("tests.helpers.kit_as_foolbox", theirs, tmp_path, *words) >= 18
