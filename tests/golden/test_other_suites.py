"""Other libraries' own tests, run against the kit's attacks.

A library's package does not hold its tests, so a checkout of it is named in the environment.
Nothing of it is copied.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]

#: A checkout of github.com/jeromerony/adversarial-library (BSD 3-Clause), read at 9dec220.
CHECKOUT = os.environ.get("KIT_ADVERSARIAL_LIBRARY", "")


@pytest.mark.skipif(
    not CHECKOUT, reason="KIT_ADVERSARIAL_LIBRARY names no checkout of adversarial-library"
)
def test_adversarial_librarys_own_tests(tmp_path):
    """FMN, FAB, CW, APGD and PGD on linear networks, whose nearest image is known: 72 cases."""
    theirs, report = Path(CHECKOUT) / "tests" / "test_attacks.py", tmp_path / "report.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull,
         "-p", "tests.helpers.kit_as_adv_lib", "--rootdir", str(tmp_path), "--tb=short",
         f"--junitxml={report}", str(theirs)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "skipped", "failures", "errors")}
    assert counts["failures"] == counts["errors"] == 0
    assert counts["tests"] - counts["skipped"] >= 72, counts
