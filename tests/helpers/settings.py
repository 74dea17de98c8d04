"""Where the checkout is, and the settings of runs that take seconds."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


#: Seconds of training: enough to reach every line of the loop, burn-in and rate drop included.
TINY = {
    "epochs": 3,
    "train_size": 600,
    "validation": 60,
    "milestones": [2],
    "steps": 4,
    "probe": 60,
    "eps": 0.1,
    "batch_size": 20,
    "lr": 0.05,
}


def settings_words(overrides: dict) -> str:
    return " ".join(f"{k}={json.dumps(v, separators=(',', ':'))}" for k, v in overrides.items())
