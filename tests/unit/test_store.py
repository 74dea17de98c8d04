"""Files: written whole or not at all, refused when damaged, locked while in use."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit.core import files
from kit.core.errors import KitError
from kit.experiments.runs import run_folders, runs_folder

STATE = {"model": {"w": torch.arange(6.0).view(2, 3)}, "epoch": 3, "history": [{"loss": 0.5}]}


def test_round_trip(tmp_path):
    files.save_checkpoint(tmp_path / "a.ckpt", STATE)
    back = files.load_checkpoint(tmp_path / "a.ckpt")
    assert (
        torch.equal(back["model"]["w"], STATE["model"]["w"]) and back["history"] == STATE["history"]
    )
    arrays = {"x": np.arange(5, dtype=np.uint8), "y": np.ones((2, 2), np.float16)}
    files.save_arrays(tmp_path / "a.npz", arrays)
    assert all(
        np.array_equal(v, arrays[k]) and v.dtype == arrays[k].dtype
        for k, v in files.load_arrays(tmp_path / "a.npz").items()
    )
    assert not list(tmp_path.glob(".*tmp"))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damage_is_refused(tmp_path, data):
    """Flip a byte, cut the end, or append:

    never a wrong state, always a `KitError` that names the file.
    """
    path = tmp_path / "a.ckpt"
    files.save_checkpoint(path, STATE)
    blob = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(blob) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "append"]))
    if how == "flip":
        blob[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(blob[:at]) if how == "cut" else bytes(blob) + b"x" * (how == "append"))
    with pytest.raises(KitError, match=r"a\.ckpt"):
        files.load_checkpoint(path)


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(KitError):
        files.load_checkpoint(tmp_path / "plain.ckpt")
    torch.save(Evil(), tmp_path / "inner.pt")
    payload = (tmp_path / "inner.pt").read_bytes()
    import hashlib

    (tmp_path / "signed.ckpt").write_bytes(files.MAGIC + hashlib.sha256(payload).digest() + payload)
    with pytest.raises(KitError, match="foreign"):
        files.load_checkpoint(tmp_path / "signed.ckpt")
    np.save(tmp_path / "a.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(KitError):
        files.load_arrays(tmp_path / "a.npz")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("blob", [b"", b"{", b"[" * 100_000, b"9" * 5000, b"\xff", None])
def test_what_is_no_json_is_named(blob, tmp_path):
    if blob is not None:
        (tmp_path / "a.json").write_bytes(blob)
    for read in (files.read_json, files.read_sealed_json):
        with pytest.raises(KitError, match=r"a\.json is missing or is not JSON"):
            read(tmp_path / "a.json")


def test_a_sealed_record_is_as_it_was_written(tmp_path):
    """Any other value, missing or further key is refused; the order and white space of JSON do not
    matter.
    """
    path, record = (
        tmp_path / "a.json",
        {"key": "abc", "seconds": 3.5, "files": {"a": "1", "b": "2"}},
    )
    files.write_sealed_json(path, record)
    written = files.read_json(path)
    assert files.read_sealed_json(path) == record
    path.write_text(json.dumps(dict(reversed(written.items()))))
    assert files.read_sealed_json(path) == record
    (tmp_path / "b.json").write_bytes(path.read_bytes())
    with pytest.raises(KitError, match="was altered"):
        files.read_sealed_json(tmp_path / "b.json")
    for wrong in (
        written | {"seconds": 3.6},
        written | {"new": 1},
        {"sha256": written["sha256"]},
        record,
        [written],
        "text",
        written | {"files": {"a": "1"}},
        written | {"sha256": None},
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(
            KitError, match=r"a\.json was altered, or comes from a version .* delete its folder"
        ):
            files.read_sealed_json(path)


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    """Disk full at any moment: an error that says so, the old content, no debris."""
    path = tmp_path / "a.ckpt"
    files.save_checkpoint(path, STATE)
    before = path.read_bytes()
    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:

            def full(*arguments):
                raise OSError(28, "No space left on device")

            patch.setattr(files.os, call, full)
            with pytest.raises(KitError, match="No space left"):
                files.save_checkpoint(path, {"epoch": 4})
        assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_lock_excludes_and_dies_with_its_owner(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from kit.core import files\n"
        "with files.lock_folder(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout.readline().strip() == "held"
    told = []
    killer = subprocess.Popen(
        [sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({owner.pid}, 9)"]
    )
    started = time.monotonic()
    with files.lock_folder(tmp_path, lambda: told.append(True)):
        assert told == [True] and time.monotonic() - started > 0.5
    killer.wait()
    owner.wait()


def test_home_is_chosen_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_HOME", str(tmp_path))
    assert runs_folder() == tmp_path / "data" / "runs" and run_folders() == []
    monkeypatch.delenv("KIT_HOME")
    assert (files.home() / "kit" / "core" / "files.py").exists()
