"""kill -9 in the middle of an AutoAttack: what was finished is not computed again."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from kit.attacks.auto_attack import VERSIONS, autoattack
from kit.core.threat import Threat
from tests.helpers.attack_problems import (
    SHORT,
    calls_of,
    dense,
    predicted,
    random,
    same_result,
)
from tests.helpers.processes import wait_until
from tests.helpers.settings import ROOT

CHILD = """
import sys, time, torch
from pathlib import Path
sys.path.insert(0, {root!r})
from kit.attacks.auto_attack import VERSIONS, autoattack
from kit.core.threat import Threat
from tests.helpers.attack_problems import SHORT, dense, predicted, random
torch.set_num_threads(1)
VERSIONS["standard"] = SHORT
network = dense()
def stay(*_):      # in the middle of the fourth piece, until it is killed there
    while len(list(Path(sys.argv[1]).rglob("*.pt"))) >= 3:
        time.sleep(0.01)
network[0].register_forward_hook(stay)
x = random(24, 1, 8, 8, seed=7)
y = predicted(dense(), x)
autoattack(network, x, y, Threat("linf", 0.01), batch_size=6, state=sys.argv[1])
"""


@pytest.mark.slow
def test_a_killed_process_is_taken_up_by_another(tmp_path, monkeypatch):
    """kill -9 in the middle of it; then to the end in this process, as if nothing had been."""
    monkeypatch.setitem(VERSIONS, "standard", SHORT)
    child = subprocess.Popen([sys.executable, "-c", CHILD.format(root=str(ROOT)), str(tmp_path)])
    wait_until(lambda: len(list(tmp_path.rglob("*.pt"))) >= 3 or child.poll() is not None)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it was killed at work"
    done = len(list(tmp_path.rglob("*.pt")))
    assert done >= 3
    network, x = dense(), random(24, 1, 8, 8, seed=7)
    y, threat = predicted(network, x), Threat("linf", 0.01)
    whole = autoattack(network, x, y, threat, batch_size=6)
    inputs = calls_of(network)
    resumed = autoattack(network, x, y, threat, batch_size=6, state=tmp_path, validate=False)
    assert same_result(resumed, whole) and len(list(tmp_path.rglob("*.pt"))) > done
    assert sum(map(len, inputs)) < int(whole.forwards.sum()), (
        "what was finished was not computed again"
    )
