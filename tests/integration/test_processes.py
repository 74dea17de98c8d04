"""One network in several processes:

the steps of one process, the same store, and resuming in another number of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import kit
from kit.core import distributed, files
from kit.core.errors import KitError
from kit.experiments.runs import Run, is_done, run_folders
from kit.experiments.specification import RunSpec, resolve
from kit.methods.table import METHODS
from kit.training import distributed_loop
from tests.helpers import shares
from tests.helpers.processes import PATIENCE
from tests.helpers.settings import ROOT, TINY, settings_words

TOLERANCE = 1e-4  # of parameters and losses after four epochs in fp32; they were 1e-7 apart


def torchrun(count: int, *words: str, home: Path) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "KIT_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "KIT_LIVE": "0",
    }
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(count),
        *words,
    ]
    return subprocess.run(
        command,
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


@pytest.mark.slow
def test_steps_in_shares_are_the_steps_of_one(tmp_path):
    """Every method, batches of 21 in two processes: parameters, weights, losses and all that was
    seen as in one process, to 1e-10 in float64. Of a network with batch norms, whose statistics are
    each process's own, only that both agree.
    """
    ended = torchrun(
        2, "tests/helpers/shares.py", "steps", str(tmp_path / "two.npz"), home=tmp_path
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    two, one = np.load(tmp_path / "two.npz"), shares.states(list(METHODS))
    assert set(one) == {name for name in two.files if not name.startswith("norms ")} and len(
        one
    ) > 8 * len(METHODS)
    for name, values in one.items():
        assert values.shape == two[name].shape, name
        np.testing.assert_allclose(two[name], values, rtol=1e-10, atol=1e-10, err_msg=name)
    moved = [name for name in two.files if name.startswith("norms ") and "running_var" in name]
    assert len(moved) > 10 and all(
        np.isfinite(two[name]).all() and (two[name] != 1).any() for name in moved
    )


TRAIN = [
    "train",
    "clirat",
    "--set",
    *settings_words({**TINY, "train_size": 605, "epochs": 4}).split(),
]


def compared(a: Run, b: Run) -> None:
    """Every image once, in the same order; networks alike up to what roundings become in four
    epochs.
    """
    for name, values in a.final.items():
        assert values.shape == b.final[name].shape
        if name.endswith(("_ids", "_y")):
            np.testing.assert_array_equal(values, b.final[name])
        elif "logits" in name:
            assert (values.argmax(1) == b.final[name].argmax(1)).mean() > 0.99
    for epoch in range(1, 5):
        for name, values in a.epoch(epoch).items():
            assert values.shape == b.epoch(epoch)[name].shape
    for ours, theirs in zip(a.model().parameters(), b.model().parameters(), strict=True):
        np.testing.assert_allclose(ours.detach(), theirs.detach(), atol=TOLERANCE)
    np.testing.assert_allclose(a.history.loss, b.history.loss, rtol=TOLERANCE)


@pytest.mark.slow
def test_a_run_goes_on_in_another_number_of_processes(tmp_path, monkeypatch):
    """Two train two epochs and die, three train the next, two the last:

    the end of one process alone.
    """
    monkeypatch.setenv("KIT_HOME", str(tmp_path / "alone"))
    single = kit.run("clirat", overrides={**TINY, "train_size": 605, "epochs": 4}, quiet=True)
    home = tmp_path / "several"
    folder = home / "data/runs" / single.folder.name
    for count, epochs in ((2, 2), (3, 3)):
        ended = torchrun(count, "tests/helpers/shares.py", "until", str(epochs), *TRAIN, home=home)
        assert files.load_checkpoint(folder / "last.ckpt")["epoch"] == epochs, ended.stderr[-3000:]
        assert len(list((folder / "epochs").glob("*.npz"))) == epochs and not is_done(folder)
    for line in ("trained 4 epochs", "opened, trained in"):
        ended = torchrun(2, "-m", "kit", *TRAIN, home=home)
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert ended.stdout.count(line) == 1 and ended.stdout.count("Run(clirat on digits") == 1
    several = Run(single.spec, folder)
    assert several.record["processes"] == 2 and single.record["processes"] == 1
    compared(several, single)


def test_too_many_processes_are_refused(fresh_home, monkeypatch):
    """Before anything is trained or written."""
    monkeypatch.setattr(distributed_loop, "process_count", lambda: 6)
    plan = resolve(RunSpec("at", overrides={**TINY, "train_size": 605}))
    with pytest.raises(
        KitError, match="leaves 5 of 605 images to the last batch, fewer than the 6 processes"
    ):
        distributed_loop.fit_distributed(plan, torch.device("cpu"), quiet=True)
    assert run_folders() == []


def test_one_process(monkeypatch):
    """Nothing is joined, and nothing is shared out; a process without a GPU of its own is told what
    to do.
    """
    with distributed.join_processes("cuda") as device:
        assert (
            device == "cuda"
            and distributed.process_count() == 1
            and distributed.is_main()
            and distributed.own_rows(7) == slice(0, 7)
        )
    monkeypatch.setenv("WORLD_SIZE", "999")
    monkeypatch.setenv("LOCAL_RANK", "998")
    with pytest.raises(KitError, match="no GPU of its own"), distributed.join_processes("cuda"):
        pass
