"""Where a result comes from: versions and the checkout's commit."""

from __future__ import annotations

import os
import platform
import subprocess
import tomllib
from functools import lru_cache
from importlib import metadata

import numpy as np
import torch

from kit.core.files import CHECKOUT, PACKAGE


@lru_cache(maxsize=1)
def kit_version() -> str:
    """Return the kit's version, which pyproject.toml states.

    A checkout that is not installed has one, too.
    """
    try:
        return metadata.version("irat-kit")
    except metadata.PackageNotFoundError:
        try:
            return tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
        except (OSError, ValueError, KeyError):
            return "unknown"


def versions() -> dict[str, str]:
    """Return the versions that a run or a picture was made with."""
    return {
        "kit": kit_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def machine_load() -> float | None:
    """How many processes wanted a core in the last minute, on average; None if it is unknown."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none
        return None


@lru_cache(maxsize=1)
def git_commit() -> str:
    """Return the checkout's git commit, with "+" if files were changed; "" outside a checkout."""

    def git(*words: str) -> str:
        try:
            return subprocess.run(
                ["git", *words], cwd=PACKAGE, capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ""

    head = git("rev-parse", "--short=12", "HEAD")
    return head + ("+" if head and git("status", "--porcelain", "--untracked-files=no") else "")
