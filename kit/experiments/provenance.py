"""Where a result comes from: versions and the checkout's commit."""

from __future__ import annotations

import platform
import subprocess
from functools import lru_cache

import numpy as np
import torch

from kit.core.files import PACKAGE


def versions() -> dict[str, str]:
    return {
        "kit": "0.1.0",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


@lru_cache(maxsize=1)
def git_commit() -> str:
    """The checkout's git commit, "+" behind it if files were changed, "" outside a checkout."""

    def git(*words: str) -> str:
        try:
            return subprocess.run(
                ["git", *words], cwd=PACKAGE, capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ""

    head = git("rev-parse", "--short=12", "HEAD")
    return head + ("+" if head and git("status", "--porcelain", "--untracked-files=no") else "")
