"""Runs between machines:

what is damaged is named, what is foreign stays out, what arrives is what left.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import tarfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import kit
from kit.core import files
from kit.core.errors import KitError
from kit.data import own_images
from kit.experiments.runs import cached_dataset, find_run, run_folders, runs_folder
from kit.jobs import archive
from kit.jobs.command_line import main
from tests.helpers.settings import TINY


@pytest.fixture
def two(tmp_path, monkeypatch, tiny_run):
    """A home with two finished runs, one of them evaluated."""
    runs = [tiny_run("at"), tiny_run("mail-at")]
    others = shutil.ignore_patterns("evaluations")  # other tests may have asked for more
    for run in runs:
        shutil.copytree(run.folder, tmp_path / "data/runs" / run.folder.name, ignore=others)
    monkeypatch.setenv("KIT_HOME", str(tmp_path))
    kit.evaluate(kit.run(runs[0].spec, quiet=True), "natural", quiet=True)
    return run_folders()


def contents(folder):
    return {name: (folder / name).read_bytes() for name in archive.run_files(folder)}


def test_from_one_home_to_another(two, tmp_path, monkeypatch, capsys):
    """Every file arrives as it was, the run opens without training, and a second import changes
    nothing.
    """
    assert (
        main(["runs", "export", str(tmp_path / "all.tar")]) == 0
        and "2 runs in" in capsys.readouterr().out
    )
    sent = {folder.name: contents(folder) for folder in two}
    monkeypatch.setenv("KIT_HOME", str(tmp_path / "other"))
    for word in ("imported", "already there"):
        assert main(["runs", "import", str(tmp_path / "all.tar")]) == 0
        assert [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()] == [
            word,
            word,
        ]
    assert {folder.name: contents(folder) for folder in run_folders()} == sent
    assert not list(runs_folder().glob(".import-*"))
    assert any("evaluations/" in name for files in sent.values() for name in files)
    kit.run("mail-at", overrides=TINY)
    assert "opened" in capsys.readouterr().out
    assert main(["runs", "verify"]) == 0 and "2 of 2 runs are whole" in capsys.readouterr().out


def test_some_runs_by_key(two, tmp_path):
    key = two[1].name.rsplit("-", 1)[1]
    assert [run.folder for run in archive.export_runs(tmp_path / "one.tar", [key[:8]])] == [two[1]]
    with tarfile.open(tmp_path / "one.tar") as tar:
        assert {name.split("/")[0] for name in tar.getnames()[1:]} == {two[1].name}


def test_every_file_is_looked_at(two, capsys):
    """A byte flipped in the middle of any file is found and named; so is a missing file."""
    for name in archive.run_files(two[0]):
        path, middle = two[0] / name, (two[0] / name).stat().st_size // 2
        whole = path.read_bytes()
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 0x15]) + whole[middle + 1 :])
        assert any(path.name in problem for problem in archive.verify_run(two[0])), name
        path.write_bytes(whole)
    assert archive.verify_run(two[0]) == []
    for name in ("epochs/0002.npz", "last.ckpt", "run.json", "history.csv", "final.npz"):
        path = two[0] / name
        path.rename(two[0] / "aside")
        assert any(path.name in problem for problem in archive.verify_run(two[0])), name
        (two[0] / "aside").rename(path)
    (two[0] / "best.ckpt").unlink()
    assert main(["runs", "verify"]) == 1
    said = capsys.readouterr().out
    assert "best.ckpt is missing" in said and "1 of 2 runs are whole" in said


def test_a_run_of_other_settings_is_told(two):
    record = files.read_json(two[0] / "run.json")
    del record["sha256"]
    record["spec"]["overrides"]["lr"] = 0.06
    files.write_sealed_json(two[0] / "run.json", record)
    assert "a run of those settings is trained anew" in archive.verify_run(two[0])[0]
    files.write_sealed_json(
        two[0] / "run.json", {"spec": {"method": "nobody"}, "key": record["key"]}
    )
    assert "names no run of this kit" in archive.verify_run(two[0])[0]


def test_only_whole_runs_leave(two, tmp_path, monkeypatch):
    with pytest.raises(KitError, match="cannot write"):
        archive.export_runs(tmp_path / "nowhere/a.tar")
    with pytest.raises(KitError, match="no stored runs match 'zzz'"):
        archive.export_runs(tmp_path / "a.tar", ["zzz"])
    (two[0] / "done.json").unlink()
    with pytest.raises(KitError, match="is not finished"):
        archive.export_runs(tmp_path / "a.tar")
    (two[1] / "best.ckpt").write_bytes(b"x")
    with pytest.raises(KitError, match=r"is damaged, nothing was exported: .*best.ckpt"):
        archive.export_runs(tmp_path / "a.tar", [two[1].name])
    monkeypatch.setenv("KIT_HOME", str(tmp_path / "empty"))
    with pytest.raises(KitError, match="no stored runs to export"):
        archive.export_runs(tmp_path / "a.tar")
    assert not list(tmp_path.glob("*.tar")) and not list(tmp_path.glob(".*tmp"))


@pytest.fixture
def on_own_images(tmp_path, monkeypatch, tiny_run):
    """A home with a network that was adopted on images of one's own."""
    net, images = tiny_run("at").model(), tiny_run("at").data().test.take(slice(0, 60))
    monkeypatch.setenv("KIT_HOME", str(tmp_path))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    threat = kit.Threat("linf", 0.1)
    return kit.adopt(tmp_path / "net.pt", data=images, threat=threat, name="mine", quiet=True)


def test_own_images_travel_with_the_network(on_own_images, tmp_path, monkeypatch, capsys):
    key, images = on_own_images.key, on_own_images.data().test.images
    assert main(["runs", "export", str(tmp_path / "one.tar")]) == 0
    monkeypatch.setenv("KIT_HOME", str(tmp_path / "other"))
    cached_dataset.cache_clear()
    for _ in range(2):
        assert main(["runs", "import", str(tmp_path / "one.tar")]) == 0
    arrived = find_run(key)
    assert torch.equal(arrived.data().test.images, images)
    accuracy = kit.evaluate(arrived, "natural", quiet=True).accuracy["natural"]
    assert accuracy == kit.evaluate(on_own_images, "natural", quiet=True).accuracy["natural"]


def test_own_images_are_read_once_for_all_runs_that_have_them(on_own_images, tmp_path, monkeypatch):
    data = on_own_images.data().test
    keys = [
        kit.adopt(tmp_path / "net.pt", data=(data.images, data.y), threat=kit.Threat("linf", 0.1),
                  name=name, quiet=True).key
        for name in ("b", "c")
    ]  # fmt: skip
    read = []
    monkeypatch.setattr(
        own_images, "load_arrays", lambda path: (read.append(path), files.load_arrays(path))[1]
    )
    assert len(archive.export_runs(tmp_path / "both.tar", keys)) == 2
    assert len(read) == 1


@pytest.mark.parametrize("same_process", [True, False])
def test_a_network_of_ones_own_code_is_refused_by_its_name(
    same_process, two, tmp_path, monkeypatch
):
    """Nothing could build it elsewhere; the runs beside it can be named."""
    net = nn.Sequential(kit.run("at", overrides=TINY, quiet=True).model())
    images = kit.run("at", overrides=TINY, quiet=True).data().test.take(slice(0, 60))
    threat = kit.Threat("linf", 0.1)
    run = kit.adopt(net, data=images, threat=threat, name="own-code", quiet=True)
    if not same_process:
        monkeypatch.delitem(kit.MODELS, "own-code")
    with pytest.raises(KitError, match=r"'own-code' is defined by code .* name the runs"):
        archive.export_runs(tmp_path / "a.tar")
    assert len(archive.export_runs(tmp_path / "a.tar", [two[0].name])) == 1
    assert run.folder in run_folders()


def test_own_images_that_are_not_what_their_name_says_stay_out(
    on_own_images, tmp_path, monkeypatch
):
    (file,) = tmp_path.glob("data/own/*.npz")
    arrays = files.load_arrays(file)
    archive.export_runs(tmp_path / "one.tar")
    with tarfile.open(tmp_path / "one.tar") as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()[1:]}
    file.unlink()
    files.save_arrays(file, arrays | {"y": arrays["y"][::-1].copy()})
    with pytest.raises(KitError, match="holds other images than its name says"):
        archive.export_runs(tmp_path / "two.tar")
    tar_of(tmp_path / "foreign.tar", members | {f"own/{file.name}": file.read_bytes()})
    file.unlink()
    with pytest.raises(KitError, match=r"the images own:\w+ are not here"):
        archive.export_runs(tmp_path / "two.tar")
    monkeypatch.setenv("KIT_HOME", str(tmp_path / "other"))
    with pytest.raises(KitError, match="holds other images than its name says"):
        archive.import_runs(tmp_path / "foreign.tar")
    assert not run_folders() and not list((tmp_path / "other").rglob("*.npz"))


def tar_of(
    path, files: dict[str, bytes], manifest: dict | None = None, kind: bytes = tarfile.REGTYPE
) -> None:
    manifest = (
        {name: hashlib.sha256(blob).hexdigest() for name, blob in files.items()}
        if manifest is None
        else manifest
    )
    with tarfile.open(path, "w") as tar:
        for name, blob in {archive.MANIFEST_NAME: json.dumps(manifest).encode(), **files}.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = (
                len(blob),
                tarfile.REGTYPE if name == archive.MANIFEST_NAME else kind,
            )
            member.linkname = "/etc/passwd" if kind != tarfile.REGTYPE else ""
            tar.addfile(member, io.BytesIO(blob))


class Evil:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('owned').write_text('x')",)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.ckpt",
        "/tmp/outside.ckpt",
        "a/../../outside.ckpt",
        "run/evil.py",
        "run/epochs/../../../x.npz",
        ".lock/run.json",
        "run/.lock",
        "run",
    ],
)
def test_no_name_leads_elsewhere(name, tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_HOME", str(tmp_path / "home"))
    tar_of(tmp_path / "evil.tar", {name: b"x"})
    with pytest.raises(KitError, match="which is not a file of a run; nothing was imported"):
        archive.import_runs(tmp_path / "evil.tar")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["evil.tar"]


def test_what_is_no_run_stays_out(two, tmp_path, monkeypatch):
    """Links, code in pickles, files that no manifest names, missing ones, and a run that is whole
    but unfinished.
    """
    name, files = two[0].name, contents(two[0])
    monkeypatch.setenv("KIT_HOME", str(tmp_path / "other"))
    monkeypatch.chdir(tmp_path)
    good = {f"{name}/{key}": blob for key, blob in files.items()}
    cases = {
        "which is not a file of a run": lambda: tar_of(
            tmp_path / "x.tar", {f"{name}/run.json": b""}, kind=tarfile.SYMTYPE
        ),
        "is damaged": lambda: tar_of(tmp_path / "x.tar", good, dict.fromkeys(good, "0" * 64)),
        "lacks 1 files of its manifest": lambda: tar_of(
            tmp_path / "x.tar",
            {k: v for k, v in good.items() if "final" not in k},
            {k: hashlib.sha256(v).hexdigest() for k, v in good.items()},
        ),
        "is not whole, nothing was imported": lambda: tar_of(
            tmp_path / "x.tar", good | {f"{name}/best.ckpt": pickle.dumps(Evil())}
        ),
        "is not finished": lambda: tar_of(
            tmp_path / "x.tar", {k: v for k, v in good.items() if "done" not in k}
        ),
        "its manifest is empty": lambda: tar_of(tmp_path / "x.tar", {}),
        "as an archive of runs": lambda: (tmp_path / "x.tar").write_bytes(b"no tar" * 200),
        "there is no file": lambda: (tmp_path / "x.tar").unlink(),
    }
    for words, make in cases.items():
        make()
        with pytest.raises(KitError, match=words):
            archive.import_runs(tmp_path / "x.tar")
    assert not run_folders() and not (tmp_path / "owned").exists()
    assert not list(runs_folder().iterdir())


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damage_to_an_archive_is_refused(two, tmp_path, data):
    """Flip a byte of an archive, or cut it:

    either its runs arrive whole, or nothing does and a `KitError` says why.
    """
    whole = tmp_path / "whole.tar"
    if not whole.exists():
        archive.export_runs(whole, [two[0].name])
    blob = bytearray(whole.read_bytes())
    at = data.draw(st.integers(0, len(blob) - 1))
    if data.draw(st.booleans()):
        blob[at] ^= data.draw(st.integers(1, 255))
    else:
        del blob[at:]
    (tmp_path / "bad.tar").write_bytes(bytes(blob))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KIT_HOME", str(tmp_path / "fuzzed"))
        try:
            archive.import_runs(tmp_path / "bad.tar")
        except KitError:
            assert not run_folders()
        else:
            assert contents(run_folders()[0]) == contents(two[0])
        shutil.rmtree(tmp_path / "fuzzed")
