"""Image folders are decoded once: what is kept, and what happens where it is not as it was."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from kit.data import decoded_images, image_folders
from kit.data.datasets import load_dataset
from kit.data.decoded_images import HEADER_BYTES
from kit.data.image_folders import load_folder

PER_CLASS = 12


def write_noise(root: Path) -> Path:
    """Two classes of 12 training and 12 test images each, of random pixels, as PNG."""
    rng = np.random.default_rng(1)
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            (root / part / name).mkdir(parents=True)
            for i in range(PER_CLASS):
                pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i:02d}.png")
    return root


@pytest.fixture
def tree(tmp_path, fresh_home) -> Path:
    return write_noise(tmp_path / "insects")


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the files that are decoded, in the order in which they are."""
    seen, real = [], image_folders.decode

    def watched(file, shape=None):
        if shape is not None:  # without it, only the size is looked at
            seen.append(file.name)
        return real(file, shape)

    monkeypatch.setattr(image_folders, "decode", watched)
    return seen


def load(tree: Path, **sizes: int) -> str:
    return load_dataset(f"folder:{tree}", **sizes).fingerprint()


def kept_file(home: Path) -> Path:
    (file,) = (home / "data/decoded").glob("insects-*/images")
    return file


def test_images_are_listed_as_torchvision_lists_them(tmp_path):
    """In its order, at any depth, whatever the case of the ending; other files are left alone."""
    root = write_noise(tmp_path / "deep")
    for part in ("train", "test"):
        ant = root / part / "ant"
        for shade, place in enumerate(("b", "b/c", "b-d", "B")):
            (ant / place).mkdir()
            Image.new("RGB", (6, 6), (shade, 0, 0)).save(ant / place / "x.PNG")
        shutil.copy(ant / "01.png", ant / "Z.png")
        (ant / "notes.txt").write_text("no image")
    (root / "train/bee/linked").symlink_to(root / "train/ant/b")
    train, _, classes = load_folder(root, tmp_path)
    theirs = ImageFolder(str(root / "train"))
    assert list(classes) == theirs.classes and train.y.tolist() == theirs.targets
    ours = train.read(torch.arange(len(train))).permute(0, 2, 3, 1).numpy()
    for image, (picture, _) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(image, np.asarray(picture))


def test_a_second_start_decodes_nothing(tree, decoded):
    first = load(tree)
    assert len(decoded) == 4 * PER_CLASS
    assert load(tree) == first and len(decoded) == 4 * PER_CLASS


def test_only_the_images_asked_for_are_decoded(tree, decoded):
    """And a larger run adds those that are missing."""
    small = load(tree, validation=4, train_size=6)
    assert len(decoded) == 4 + 6 + 2 * PER_CLASS
    whole = load(tree, validation=4)
    assert len(decoded) == 4 * PER_CLASS
    assert load(tree, validation=4, train_size=6) == small != whole
    assert len(decoded) == 4 * PER_CLASS


@pytest.mark.parametrize("change", ["pixels", "another", "renamed"])
def test_a_changed_folder_is_decoded_anew(change, tree, decoded, capsys):
    before, file = load(tree), tree / "train/ant/03.png"
    if change == "renamed":
        file.rename(tree / "train/ant/99.png")
    else:
        place = file if change == "pixels" else tree / "train/ant/50.png"
        Image.new("RGB", (6, 6), (1, 2, 3)).save(place)
    decoded.clear()
    assert load(tree) != before
    assert len(decoded) == 4 * PER_CLASS + (change == "another")
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("cut", "is cut short; it is made anew"),
        ("empty", "is no file of decoded images; it is made anew"),
        ("foreign", "is no file of decoded images; it is made anew"),
        ("a folder", "cannot be used (Is a directory)"),
    ],
)
def test_a_file_that_is_not_as_it_was(damage, words, tree, fresh_home, decoded, capsys):
    """One sentence, and the same images; where it can be made anew, it is."""
    whole, file = load(tree), kept_file(fresh_home)
    blob = file.read_bytes()
    if damage == "a folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes({"cut": blob[:-7], "empty": b"", "foreign": b"{}" + blob[2:]}[damage])
    assert load(tree) == whole
    said = capsys.readouterr().out
    assert words in said and said.count("WARNING") == 1
    decoded.clear()
    assert load(tree) == whole
    assert len(decoded) == (4 * PER_CLASS if damage == "a folder" else 0)


def test_every_flipped_bit_is_noticed(tree, fresh_home, decoded):
    """In an image or its checksum: that image is decoded again, and kept again."""
    whole, file = load(tree), kept_file(fresh_home)
    blob = file.read_bytes()
    for place in (HEADER_BYTES + 3, HEADER_BYTES + 8 * 4 * PER_CLASS + 5, len(blob) - 1):
        file.write_bytes(blob[:place] + bytes([blob[place] ^ 4]) + blob[place + 1 :])
        decoded.clear()
        assert load(tree) == whole and len(decoded) == 1
        assert file.read_bytes() == blob


def test_an_interrupted_start_is_gone_on_with(tree, decoded, monkeypatch):
    monkeypatch.setattr(image_folders, "DECODED_AT_ONCE", 5)
    monkeypatch.setattr(image_folders, "DECODING_THREADS", 1)
    watched = image_folders.decode

    def stopped(file, shape=None):
        if len(decoded) == 12:
            raise KeyboardInterrupt
        return watched(file, shape)

    monkeypatch.setattr(image_folders, "decode", stopped)
    with pytest.raises(KeyboardInterrupt):
        load(tree)
    monkeypatch.setattr(image_folders, "decode", watched)
    load(tree)
    assert len(decoded) == 12 + 4 * PER_CLASS - 10, "two pieces of five were kept"


@pytest.mark.parametrize("after", [0, 7])
def test_a_full_disk_stops_nothing(after, tree, decoded, monkeypatch, capsys):
    real, written = decoded_images._write_at, []

    def full(target, payload, place):
        written.append(place)
        if len(written) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(target, payload, place)

    monkeypatch.setattr(decoded_images, "_write_at", full)
    first = load(tree)
    said = capsys.readouterr().out
    assert said.count("WARNING") == 1 and "cannot be used (No space left on device)" in said
    monkeypatch.undo()
    assert load(tree) == first


def test_a_disk_that_cannot_be_written_to_stops_nothing(tree, fresh_home, decoded, capsys):
    (fresh_home / "data").mkdir(exist_ok=True)
    (fresh_home / "data/decoded").write_text("in the way of the folder")
    first = load(tree)
    said = capsys.readouterr().out
    assert said.count("WARNING") == 1 and "cannot be used" in said
    assert load(tree) == first and len(decoded) == 8 * PER_CLASS


def test_two_processes_may_begin_at_once(tree, fresh_home, decoded):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        a, b = pool.map(load, [tree, tree])
    assert a == b == load(tree) and not decoded
