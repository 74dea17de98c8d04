"""A subset is a sample: in every split of every data set, and for whatever takes the first images.

On disk the images of most data sets come class by class.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import kit
from kit.data.datasets import DATA, EXPECTED, load_dataset
from kit.data.splits import DataSet, stratified_order
from kit.experiments.specification import RunSpec, resolve
from kit.figures.attacked_images import first_images
from tests.helpers.settings import TINY

COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))


def is_stratified(labels: np.ndarray, tolerance: float = 1.0) -> bool:
    """Whether each prefix holds each class within `tolerance` images of its share.

    A class of share s can be off by 1/2 + s C / 2 of C classes, as each class's count is rounded by
    itself; one more where images stand at one place.
    """
    classes, y = np.unique(labels, return_inverse=True)
    seen = np.cumsum(np.eye(len(classes))[y], axis=0)
    share = seen[-1] / len(y)
    due = np.arange(1, len(y) + 1)[:, None] * share
    bound = 0.5 + share * len(classes) / 2 + tolerance
    return bool((np.abs(seen - due) <= bound).all())


def classes_apart(labels: np.ndarray) -> int:
    """By how many images the commonest class of any prefix is ahead of the rarest."""
    seen = np.cumsum(np.eye(labels.max() + 1)[labels], axis=0)
    return int((seen.max(axis=1) - seen.min(axis=1)).max())


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 99))
def test_every_prefix_holds_every_class(counts, seed):
    """Of classes of any sizes; all images are there once."""
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    order = stratified_order(y, torch.Generator().manual_seed(seed))
    assert order.sort().values.tolist() == list(range(len(y)))
    assert is_stratified(y[order].numpy())
    assert len(set(counts)) > 1 or classes_apart(y[order].numpy()) <= 1


def test_a_class_that_is_not_there():
    order = stratified_order(torch.tensor([3, 3, 0, 0]), torch.Generator().manual_seed(0))
    assert sorted(order[:2].tolist()) in ([0, 2], [0, 3], [1, 2], [1, 3])


def write_classes(root) -> str:
    """A folder of 3 classes, 60 and 20 images each, 8x8 pixels of noise around one colour."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 20)):
        for name, colour in zip("abc", COLOURS, strict=True):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                noise = rng.normal(0, 60, (8, 8, 3))
                image = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
                Image.fromarray(image).save(root / part / name / f"{i:02d}.png")
    return f"folder:{root}"


def sorted_by_class(n: int, *picture: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((n, *picture), np.uint8), np.arange(n) * 10 // n


@pytest.fixture(params=[*DATA, "folder", "generated"])
def data_set(request, tmp_path, monkeypatch) -> DataSet:
    """Every data set, from arrays or files that come class by class."""
    name = request.param
    if name == "folder":
        return load_dataset(write_classes(tmp_path / "colours"), validation=30, train_size=90)
    if name == "generated":
        images, labels = sorted_by_class(700, 8, 8)
        np.savez(tmp_path / "made.npz", image=images, label=labels)
        return load_dataset(f"digits+npz:{tmp_path}/made.npz", validation=130, train_size=900)
    if name in EXPECTED:
        monkeypatch.setitem(EXPECTED, name, (600, 200))
        parts = sorted_by_class(600, 8, 8, 3), sorted_by_class(200, 8, 8, 3)
        monkeypatch.setitem(DATA, name, lambda root: (*parts, tuple("0123456789")))
    return load_dataset(name, validation=130, train_size=400)


def test_every_split_of_every_data_set(data_set):
    for split in (data_set.train, data_set.validation, data_set.test):
        assert is_stratified(split.y.numpy())
        assert len(set(split.ids.tolist())) == len(split)
    few = data_set.test.y[:30].bincount(minlength=len(data_set.classes))
    assert (few > 0).all(), "thirty images show every class"


def test_the_order_is_one_for_all_seeds():
    first, second = (resolve(RunSpec("at", seed=seed, overrides=TINY)).recipe for seed in (0, 1))
    assert first == second
    once, again = load_dataset("digits", validation=60), load_dataset("digits", validation=60)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(once, part).ids, getattr(again, part).ids)


def test_whatever_takes_the_first_images(fresh_home, tmp_path):
    """Probes of each split, evaluation, audit and galleries, on a folder of sorted images."""
    recipe = write_classes(tmp_path / "colours")
    settings = {**TINY, "model": "cnn", "train_size": 90, "validation": 30, "probe": 9, "epochs": 1}
    run = kit.run("at", recipe, overrides={**settings, "milestones": []}, quiet=True)
    for name in ("seen", "validation", "test"):
        assert np.bincount(run.epoch(1)[f"{name}_y"]).tolist() == [3, 3, 3], name
    y = {
        int(i): int(label) for i, label in zip(run.data().test.ids, run.data().test.y, strict=True)
    }

    def classes(ids) -> list[int]:
        return np.bincount([y[int(i)] for i in ids], minlength=3).tolist()

    table = kit.evaluate(run, ["natural", "aa"], n=6, quiet=True)
    for attack in ("natural", "aa"):
        assert classes(table.attrs["examples"][attack]["ids"]) == [2, 2, 2]
    assert classes(kit.audit(run, n=12, quiet=True).examples.index) == [4, 4, 4]
    assert classes(first_images(run, 6)[1].ids) == [2, 2, 2]
