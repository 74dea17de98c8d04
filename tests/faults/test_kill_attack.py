"""kill -9 in the middle of an AutoAttack: what was finished is not computed again."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

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
from tests.helpers.settings import ROOT

CHILD = """
import sys, time, torch
sys.path.insert(0, {root!r})
from kit.attacks.auto_attack import VERSIONS, autoattack
from kit.core.threat import Threat
from tests.helpers.attack_problems import SHORT, dense, predicted, random
torch.set_num_threads(1)
VERSIONS["standard"] = SHORT
network = dense()
network[0].register_forward_hook(lambda *_: time.sleep(0.003))
x = random(24, 1, 8, 8, seed=7)
y = predicted(dense(), x)
autoattack(network, x, y, Threat("linf", 0.01), batch_size=6, state=sys.argv[1])
"""


@pytest.mark.slow
def test_a_killed_process_is_taken_up_by_another(tmp_path, monkeypatch):
    """kill -9 in the middle of it; then to the end in this process, as if nothing had been."""
    monkeypatch.setitem(VERSIONS, "standard", SHORT)
    child = subprocess.Popen([sys.executable, "-c", CHILD.format(root=str(ROOT)), str(tmp_path)])
    deadline = time.monotonic() + 120
    while (
        len(list(tmp_path.rglob("*.pt"))) < 3
        and child.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.005)
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
