"""What is checked without running the kit: lint, format, layout, notebooks' heads, pages, types.

    .ci/check           # says what is wrong; changes nothing
    .ci/check --fix     # mends what can be mended: lint, format, layout, heads, pages

CI runs it, and so does pre-commit; it is `python -m tests.check`. The type checker runs where
pyproject.toml configures one.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from typing import NamedTuple

from tests.helpers.settings import ROOT

PLACES = ("kit", "tests", "notebooks")
RUFF = (sys.executable, "-m", "ruff")
#: {section of pyproject.toml: the command that reads it}
TYPE_CHECKERS = {
    "basedpyright": (sys.executable, "-m", "basedpyright"),
    "mypy": (sys.executable, "-m", "mypy"),
}


class Check(NamedTuple):
    """A command that says what is wrong, and the one that mends it; () where none can."""

    title: str
    command: tuple[str, ...]
    mend: tuple[str, ...] = ()


def checks() -> list[Check]:
    """List the checks in their order, the quick ones first."""
    layout = (sys.executable, "-m", "tests.helpers.layout")
    course = (sys.executable, "-m", "tests.helpers.course")
    pages = (sys.executable, "-m", "tests.helpers.pages")
    found = [
        Check("lint", (*RUFF, "check", *PLACES), (*RUFF, "check", "--fix", *PLACES)),
        Check("format", (*RUFF, "format", "--check", *PLACES), (*RUFF, "format", *PLACES)),
        Check("layout", (*layout, "--check"), layout),
        Check("course", (*course, "--check"), course),
        Check("pages", (*pages, "--check"), pages),
    ]
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    found += [Check("types", command) for tool, command in TYPE_CHECKERS.items() if tool in tools]
    return found


def main(words: list[str]) -> int:
    """Run every check, also after one that failed. -> 0, or 1 where one of them failed."""
    if set(words) - {"--fix"}:
        print("usage: .ci/check [--fix]", file=sys.stderr)
        return 2
    failed = []
    for check in checks():
        command = check.mend if words and check.mend else check.command
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            failed.append(check.title)
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
