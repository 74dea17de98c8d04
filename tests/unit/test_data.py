"""Data:

splits that share no image, files in their real formats, folders of images, refusals, and
augmentation.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from kit.core import files
from kit.core.errors import KitError
from kit.core.random_streams import Streams
from kit.data import splits
from kit.data.augmentation import augment
from kit.data.datasets import CIFAR10_CLASSES, DATA, EXPECTED, dataset_claimed, load_dataset
from kit.data.splits import Split
from kit.experiments.recipes import find_recipe
from tests.helpers.data_files import idx, in_file_order, write_mnist


def pixels(split: Split) -> list[bytes]:
    return [image.numpy().tobytes() for image in split.images]


# ------------------------------------------------------------------------------------------- digits


def test_digits_are_split_once_and_for_all():
    """1,300 + 497 images; with their labels they are scikit-learn's, each in exactly one split."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    whole = load_dataset("digits", validation=130)
    assert (len(whole.train), len(whole.validation), len(whole.test)) == (1170, 130, 497)
    assert whole.shape == (1, 8, 8) and whole.classes == tuple("0123456789")
    ours = Counter()
    for split in (whole.train, whole.validation, whole.test):
        assert split.images.dtype == torch.uint8 and split.y.dtype == split.ids.dtype == torch.int64
        ours.update(zip(pixels(split), split.y.tolist(), strict=True))
    theirs = Counter(
        (np.round(image * 255 / 16).astype(np.uint8).tobytes(), int(y))
        for image, y in zip(bundle.images, bundle.target, strict=True)
    )
    assert ours == theirs
    assert sorted(
        torch.cat([whole.train.ids, whole.validation.ids, whole.test.ids]).tolist()
    ) == list(range(1797))
    assert whole.train.images.max() == 255 and whole.train.images.min() == 0


def test_digits_are_the_same_each_time():
    """On every machine and in every release: the fingerprint of the split is written down here."""
    first, again = load_dataset("digits", validation=130), load_dataset("digits", validation=130)
    assert first.fingerprint() == again.fingerprint() == "240418003906"
    assert torch.equal(first.train.ids, again.train.ids) and torch.equal(
        first.validation.ids, again.validation.ids
    )


def test_every_class_is_in_every_split():
    whole = load_dataset("digits", validation=130)
    for split in (whole.train, whole.validation, whole.test):
        assert split.y.bincount(minlength=10).min() >= 5


@pytest.mark.parametrize(
    ("validation", "train_size"), [(0, 0), (130, 0), (130, 240), (0, 100), (1200, 100), (1299, 1)]
)
def test_validation_is_cut_from_training(validation, train_size):
    """Disjoint and of the asked size; the test images never change."""
    whole, cut = (
        load_dataset("digits"),
        load_dataset("digits", validation=validation, train_size=train_size),
    )
    assert len(cut.validation) == validation and len(cut.train) == (train_size or 1300 - validation)
    train, held_out = cut.train.ids.tolist(), cut.validation.ids.tolist()
    assert not set(train) & set(held_out) and set(train) | set(held_out) <= set(
        whole.train.ids.tolist()
    )
    assert len(set(train)) == len(train) and len(set(held_out)) == len(held_out)
    assert torch.equal(cut.test.images, whole.test.images)
    by_id = {
        i: (image, y)
        for i, image, y in zip(
            whole.train.ids.tolist(), pixels(whole.train), whole.train.y.tolist(), strict=True
        )
    }
    for split in (cut.train, cut.validation):
        for i, image, y in zip(split.ids.tolist(), pixels(split), split.y.tolist(), strict=True):
            assert by_id[i] == (image, y), "an id is one image, whatever is cut"


def test_held_out_images_do_not_depend_on_the_training_size():
    ids = [
        load_dataset("digits", validation=130, train_size=size).validation.ids
        for size in (0, 100, 500)
    ]
    assert torch.equal(ids[0], ids[1]) and torch.equal(ids[0], ids[2])
    small, large = (
        set(load_dataset("digits", train_size=size).train.ids.tolist()) for size in (100, 500)
    )
    assert small < large


@pytest.mark.parametrize(("validation", "train_size"), [(1300, 0), (1200, 101), (0, 1301)])
def test_more_images_than_there_are(validation, train_size):
    with pytest.raises(
        KitError, match=rf"digits has 1300 training images; validation={validation}.*do not fit"
    ):
        load_dataset("digits", validation=validation, train_size=train_size)


def test_fingerprint_sees_one_pixel_one_label_and_one_image_moved():
    whole = load_dataset("digits", validation=130)
    found = {whole.fingerprint()}
    for name in ("train", "validation", "test"):
        split = getattr(whole, name)
        images, y = split.images.clone(), split.y.clone()
        images[3, 0, 4, 4] ^= 1
        y[5] = (y[5] + 1) % 10
        for changed in (
            Split(images, split.y, split.ids),
            Split(split.images, y, split.ids),
            split.take(slice(1, None)),
        ):
            found.add(dataclasses.replace(whole, **{name: changed}).fingerprint())
    assert len(found) == 10 and all(re.fullmatch("[0-9a-f]{12}", text) for text in found)


@pytest.mark.parametrize("chunk", [4, 4096])
def test_mean_and_standard_deviation_are_the_training_images(chunk, monkeypatch):
    """Against numpy, for one channel and for three, one of which is constant; images are counted
    some at a time.
    """
    monkeypatch.setattr(splits, "CHUNK", chunk)
    digits = load_dataset("digits", validation=130)
    g = torch.Generator().manual_seed(0)
    colour = torch.randint(0, 256, (9, 3, 5, 5), generator=g, dtype=torch.uint8)
    colour[:, 2] = 51
    split = Split(colour, torch.zeros(9, dtype=torch.int64), torch.arange(9))
    for whole in (digits, dataclasses.replace(digits, train=split)):
        mean, std = whole.mean_std()
        x = whole.train.images.numpy().astype(np.float64) / 255
        assert mean.tolist() == pytest.approx(x.mean(axis=(0, 2, 3)).tolist(), rel=1e-6)
        assert std.tolist() == pytest.approx(
            np.maximum(x.std(axis=(0, 2, 3)), 1e-6).tolist(), rel=1e-5
        )
        assert bool((std > 0).all()), "a constant channel can still be divided by it"


def test_a_split_scales_and_takes():
    split = load_dataset("digits").test
    x = split.x(slice(0, 7))
    assert x.dtype == torch.float32 and x.shape == (7, 1, 8, 8) and len(split) == 497
    assert x.flatten().tolist() == pytest.approx(
        [v / 255 for v in split.images[:7].flatten().tolist()]
    )
    rows = torch.tensor([9, 2])
    taken = split.take(rows)
    assert (
        taken.ids.tolist() == split.ids[rows].tolist()
        and taken.y.tolist() == split.y[rows].tolist()
    )
    assert torch.equal(taken.images, split.images[rows]) and torch.equal(split.x()[rows], taken.x())


# ---------------------------------------------------------------------------------- every other row


MNIST_KINDS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}


def test_every_row_is_tested():
    """`mixture` is drawn, not read; test_mixture.py has its tests, and test_data_formats.py those
    of the colour sets.
    """
    assert {"digits", "mixture", *MNIST_KINDS, "cifar10", "cifar100", "svhn"} == set(DATA)
    assert set(EXPECTED) == set(DATA) - {"digits", "mixture"}


@pytest.mark.parametrize("name", MNIST_KINDS)
def test_idx_files_are_read_as_written(name, tmp_path, monkeypatch):
    """The real format, with fewer images than the real set: pixels, labels and splits."""
    written = write_mnist(tmp_path, MNIST_KINDS[name], (40, 20))
    monkeypatch.setitem(EXPECTED, name, (40, 20))
    whole = load_dataset(name, root=tmp_path, validation=10)
    assert whole.shape == (1, 28, 28) and len(whole.classes) == 10 and len(whole.validation) == 10
    for split, (images, labels), first in (
        (whole.train, written["train"], 0),
        (whole.validation, written["train"], 0),
        (whole.test, written["t10k"], 40),
    ):
        rows = split.ids.numpy() - first
        np.testing.assert_array_equal(split.images.numpy()[:, 0], images[rows])
        np.testing.assert_array_equal(split.y.numpy(), labels[rows])


def test_a_home_is_where_the_files_are_looked_for(fresh_home, monkeypatch):
    write_mnist(fresh_home / "data", "MNIST", (40, 20))
    monkeypatch.setitem(EXPECTED, "mnist", (40, 20))
    assert len(load_dataset("mnist").train) == 40


@pytest.mark.parametrize("name", MNIST_KINDS)
def test_too_few_images_are_foreign_or_truncated(name, tmp_path):
    """Whole files of another size are refused by count, for either split."""
    write_mnist(tmp_path, MNIST_KINDS[name], (40, 20))
    with pytest.raises(
        KitError, match=rf"{name}, train: 40 images, expected 60000.*truncated or foreign"
    ) as caught:
        load_dataset(name, root=tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_too_few_test_images(tmp_path, monkeypatch):
    write_mnist(tmp_path, "MNIST", (40, 20))
    monkeypatch.setitem(EXPECTED, "mnist", (40, 10_000))
    with pytest.raises(KitError, match=r"mnist, test: 20 images, expected 10000"):
        load_dataset("mnist", root=tmp_path)


@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_damaged_idx_files_are_named(damage, tmp_path):
    write_mnist(tmp_path, "MNIST", (40, 20))
    file = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    blob = file.read_bytes()
    file.write_bytes(
        {"cut": blob[: len(blob) // 2], "empty": b"", "noise": bytes(range(256)) * 9}[damage]
    )
    with pytest.raises(
        KitError,
        match=r"MNIST could not be read from or downloaded to .*delete the damaged file.*KIT_HOME",
    ):
        load_dataset("mnist", root=tmp_path)


def test_more_labels_than_images(tmp_path, monkeypatch):
    write_mnist(tmp_path, "MNIST", (40, 20))
    (tmp_path / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(idx(np.zeros(41)))
    monkeypatch.setitem(EXPECTED, "mnist", (41, 20))
    with pytest.raises(
        KitError, match=r"mnist, train: 40 images of type uint8 and 41 labels; expected as many"
    ):
        load_dataset("mnist", root=tmp_path)


def test_labels_that_are_no_classes(tmp_path, monkeypatch):
    write_mnist(tmp_path, "MNIST", (40, 20), classes=12)
    monkeypatch.setitem(EXPECTED, "mnist", (40, 20))
    with pytest.raises(KitError, match=r"mnist, train: labels run from 0 to 11, expected 0 to 9"):
        load_dataset("mnist", root=tmp_path)


def test_no_network_and_no_files(tmp_path, monkeypatch):
    """A download that fails is one sentence with a way out, not a traceback of urllib."""

    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", unreachable)
    with pytest.raises(
        KitError, match=r"MNIST could not be read from or downloaded.*Check the network"
    ):
        load_dataset("mnist", root=tmp_path)


@pytest.mark.real
def test_real_mnist():
    """Its 60,000 + 10,000 images; the counts per digit are those of the published set.

    A copy that went through another image format differs by a grey level here and there: mean and
    deviation are loose.
    """
    if not (files.home() / "data/MNIST/raw").is_dir():
        pytest.skip("real MNIST is not in data/MNIST/raw of the checkout")
    whole = load_dataset("mnist", validation=1000)
    assert (len(whole.train), len(whole.validation), len(whole.test)) == (59_000, 1000, 10_000)
    assert whole.classes == tuple("0123456789")
    labels = torch.cat([whole.train.y, whole.validation.y])
    assert labels.bincount().tolist() == [
        5923,
        6742,
        5958,
        6131,
        5842,
        5421,
        5918,
        6265,
        5851,
        5949,
    ]
    assert whole.test.y.bincount().tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
    mean, std = load_dataset("mnist").mean_std()
    assert (mean.item(), std.item()) == pytest.approx((0.1307, 0.3081), abs=3e-4)


# ------------------------------------------------------------------------------------------ folders


def write_tree(root: Path, classes: dict[str, list[str]], size: tuple[int, int] = (9, 9)) -> Path:
    """root/train/<class>/0.png ...

    with a colour for each class; two images in train/, one in test/.
    """
    for part, names in classes.items():
        for i, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            for j in range(2 if part == "train" else 1):
                colour = (10 * i + j, 100 + i, 255 - 10 * i)
                Image.new("RGB", size, colour).save(root / part / name / f"{j}.png")
    return root


CLASSES = ["zebra", "ant", "cat"]


@pytest.fixture
def tree(tmp_path) -> Path:
    return write_tree(tmp_path / "animals", {"train": CLASSES, "test": CLASSES})


def test_a_folder_is_a_data_set(tree):
    """Classes in alphabetical order, RGB pixels as in the files, ids that go on from train/ to
    test/.
    """
    whole = load_dataset(f"folder:{tree}")
    assert whole.classes == ("ant", "cat", "zebra") and whole.shape == (3, 9, 9)
    train, test = in_file_order(whole.train), in_file_order(whole.test)
    assert train.y.tolist() == [0, 0, 1, 1, 2, 2] and test.y.tolist() == [0, 1, 2]
    assert train.ids.tolist() == list(range(6)) and test.ids.tolist() == [6, 7, 8]
    written = {sorted(CLASSES).index(name): i for i, name in enumerate(CLASSES)}
    for split, per_class in ((train, 2), (test, 1)):
        for row, (image, label) in enumerate(zip(split.images, split.y.tolist(), strict=True)):
            i, j = written[label], row % per_class
            assert image.flatten(1).unique(dim=1).squeeze(1).tolist() == [
                10 * i + j,
                100 + i,
                255 - 10 * i,
            ]


def test_a_folder_with_the_classes_of_cifar10_is_about_cifar10(tmp_path):
    """Whatever file lies beside them; with a class more or less it is a data set of its own."""
    name = f"folder:{tmp_path}"
    assert dataset_claimed(name) == name
    for part in CIFAR10_CLASSES:
        assert dataset_claimed(name) == name
        (tmp_path / "train" / part).mkdir(parents=True)
    (tmp_path / "train" / ".listing").touch()
    assert dataset_claimed(name) == "cifar10" == dataset_claimed("cifar10")
    assert dataset_claimed(f"{name}+npz:more.npz") == "cifar10"
    (tmp_path / "train" / "zebra").mkdir()
    assert dataset_claimed(name) == name
    (tmp_path / "train" / "zebra").rmdir()
    for number in range(5_001):
        (tmp_path / "train" / "cat" / f"{number}.png").touch()
    assert dataset_claimed(name) == name, "CINIC-10 has the same classes and more images"


def test_a_folder_can_be_split_and_is_fingerprinted(tree):
    whole, cut = (
        load_dataset(f"folder:{tree}"),
        load_dataset(f"folder:{tree}", validation=2, train_size=3),
    )
    assert (len(cut.train), len(cut.validation), len(cut.test)) == (3, 2, 3)
    assert not set(cut.train.ids.tolist()) & set(cut.validation.ids.tolist())
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tree / "train/cat/0.png")
    assert load_dataset(f"folder:{tree}").fingerprint() != whole.fingerprint()


def test_a_moved_folder_is_held_out_alike(tree, tmp_path):
    """What is held out follows from the folder's own name, not from where it lies."""
    first = load_dataset(f"folder:{tree}", validation=2).validation.ids
    moved = tmp_path / "elsewhere" / "animals"
    moved.parent.mkdir()
    tree.rename(moved)
    assert torch.equal(load_dataset(f"folder:{moved}", validation=2).validation.ids, first)


def test_jpegs_and_grey_pictures_are_read_as_colour(tmp_path):
    root = write_tree(tmp_path / "mixed", {"train": ["a", "b"], "test": ["a", "b"]})
    Image.new("L", (9, 9), 77).save(root / "train/a/2.png")
    Image.new("RGB", (9, 9), (200, 200, 200)).save(root / "train/b/2.jpg")
    train = in_file_order(load_dataset(f"folder:{root}").train)
    assert train.images[2].unique().tolist() == [77] and len(train) == 6
    assert abs(int(train.images[5].float().mean()) - 200) <= 2


def test_a_relative_folder_is_looked_for_here_and_then_at_home(
    fresh_home, monkeypatch, tmp_path_factory
):
    write_tree(fresh_home / "data/pets", {"train": ["a", "b"], "test": ["a", "b"]})
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    assert len(load_dataset("folder:data/pets").train) == 4
    write_tree(elsewhere / "data/pets", {"train": ["a", "b", "c"], "test": ["a", "b", "c"]})
    assert len(load_dataset("folder:data/pets").train) == 6
    assert (
        find_recipe("folder:data/pets:paper").epochs == 120
        and find_recipe("folder:data/pets").data == "folder:data/pets"
    )


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_missing_half_is_named(missing, tree):
    (tree / missing).rename(tree / "other")
    with pytest.raises(
        KitError, match=rf"{missing} is not a folder of images; expected .*train/<class>/\*\.png"
    ):
        load_dataset(f"folder:{tree}")


def test_an_empty_class_is_named(tree):
    (tree / "train/dog").mkdir()
    with pytest.raises(KitError, match=r"train is not a folder of images.*dog"):
        load_dataset(f"folder:{tree}")


def test_different_classes_are_named(tree):
    (tree / "test/zebra").rename(tree / "test/zebu")
    with pytest.raises(KitError, match=r"train/ and test/ have different classes \(zebra, zebu"):
        load_dataset(f"folder:{tree}")


def test_a_class_in_one_half_only(tree):
    write_tree(tree, {"test": ["yak"]})
    with pytest.raises(KitError, match=r"different classes \(yak is in one only\)"):
        load_dataset(f"folder:{tree}")


def test_an_image_of_another_size_is_named(tree):
    Image.new("RGB", (7, 11)).save(tree / "train/cat/odd.png")
    with pytest.raises(
        KitError,
        match=r"cat/odd\.png is 7x11 pixels, the images before it 9x9; a data set has one size",
    ):
        load_dataset(f"folder:{tree}")


def test_halves_of_different_size(tmp_path):
    root = write_tree(tmp_path / "sizes", {"train": ["a", "b"]}, (9, 9))
    write_tree(root, {"test": ["a", "b"]}, (8, 8))
    with pytest.raises(KitError, match=r"images in train/ and test/ differ in size"):
        load_dataset(f"folder:{root}")


@pytest.mark.parametrize("damage", ["noise", "cut", "empty"])
def test_a_corrupt_image_is_named(damage, tree):
    file = tree / "train/cat/1.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(file)
    blob = file.read_bytes()
    file.write_bytes(
        {"noise": b"not a picture", "cut": blob[: len(blob) // 2], "empty": b""}[damage]
    )
    with pytest.raises(
        KitError, match=r"cat/1\.png is not a readable image .*delete or replace it"
    ):
        load_dataset(f"folder:{tree}")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_image_is_named(tree):
    (tree / "train/cat/1.png").chmod(0)
    with pytest.raises(KitError, match=r"cat/1\.png is not a readable image"):
        load_dataset(f"folder:{tree}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mnst", r"no data set 'mnst'\. Did you mean 'mnist'\?.*cifar10.*folder:<path>"),
        ("CIFAR-10", "no data set 'CIFAR-10'"),
        ("", "no data set ''"),
        ("folder:", r"^folder: names no folder; write folder:<path>"),
        (
            "folder:/no/such/place",
            r"no folder /no/such/place; expected one with train/<class>/ and test/<class>/",
        ),
    ],
)
def test_unknown_names_are_refused(name, words, fresh_home):
    with pytest.raises(KitError, match=words):
        load_dataset(name)


# ------------------------------------------------------------------------------------- augmentation


def crops(image: np.ndarray, flip: bool) -> dict[bytes, tuple[int, int, bool]]:
    """Every legal outcome for one image (C, H, W):

    its bytes, and the corner and mirror that give it.
    """
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
    found = {}
    for top in range(9):
        for left in range(9):
            cut = padded[:, top : top + height, left : left + width]
            found[cut.tobytes()] = top, left, False
            if flip:
                found[np.ascontiguousarray(cut[:, :, ::-1]).tobytes()] = top, left, True
    return found


def noise(n: int, *shape: int) -> torch.Tensor:
    """Images whose every crop is different: no pixel is black."""
    return 0.1 + 0.9 * torch.rand(n, *shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 10)])
@pytest.mark.parametrize("which", ["crop", "crop-flip"])
def test_each_image_becomes_one_of_its_legal_crops(which, shape):
    """81 corners, twice as many with mirror images; channels move together."""
    x = noise(60, *shape)
    got = augment(x, which, Streams(torch.arange(60), "augment", 1))
    assert got.shape == x.shape and got.dtype == x.dtype
    seen = []
    for before, after in zip(x.numpy(), got.numpy(), strict=True):
        legal = crops(before, which == "crop-flip")
        assert len(legal) == (162 if which == "crop-flip" else 81) and after.tobytes() in legal
        seen.append(legal[after.tobytes()])
    assert len(set(seen)) > 30, "different images are cropped differently"


def test_every_crop_happens_about_as_often():
    """One image under 4,000 ids:

    each corner row and column a ninth of the time, a mirror image half of it.
    """
    n = 4000
    image = noise(1, 1, 6, 6)
    got = augment(
        image.expand(n, -1, -1, -1), "crop-flip", Streams(torch.arange(n), "augment", 1)
    ).numpy()
    legal = crops(image[0].numpy(), True)
    assert len(legal) == 162
    found = Counter(legal[after.tobytes()] for after in got)
    assert len(found) == 162
    for axis in (0, 1):
        shares = Counter()
        for place, times in found.items():
            shares[place[axis]] += times
        assert [shares[i] for i in range(9)] == pytest.approx(
            [n / 9] * 9, abs=90
        )  # 4.5 standard deviations
    assert sum(times for place, times in found.items() if place[2]) == pytest.approx(n / 2, abs=130)


def test_augmentation_depends_on_the_id_alone():
    """Order, mates and batch size do not matter; epochs do."""
    x, ids = noise(24, 1, 8, 8), 50 + 3 * torch.arange(24)
    whole = augment(x, "crop-flip", Streams(ids, 0, "augment", 1))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        augment(x[order], "crop-flip", Streams(ids[order], 0, "augment", 1)), whole[order]
    )
    alone = [
        augment(x[i : i + 1], "crop-flip", Streams(ids[i : i + 1], 0, "augment", 1))
        for i in range(24)
    ]
    assert torch.equal(torch.cat(alone), whole)
    assert not torch.equal(augment(x, "crop-flip", Streams(ids, 0, "augment", 2)), whole)


def test_crop_and_crop_flip_share_their_corners():
    """The mirror is one more die: without it the same corner comes out."""
    x, ids = noise(40, 1, 8, 8), torch.arange(40)
    plain, flipped = (augment(x, which, Streams(ids, 0)) for which in ("crop", "crop-flip"))
    same = (plain == flipped).flatten(1).all(dim=1)
    assert 8 < int(same.sum()) < 32
    for i in (~same).nonzero().squeeze(1).tolist():
        place, mirrored = (
            crops(x[i].numpy(), False)[plain[i].numpy().tobytes()],
            crops(x[i].numpy(), True),
        )
        assert mirrored[flipped[i].numpy().tobytes()] == (place[0], place[1], True)


def test_none_is_the_identity():
    x = noise(5, 1, 8, 8)
    assert torch.equal(augment(x, "none", Streams(torch.arange(5))), x)


def test_augmentation_leaves_its_input_alone():
    x = noise(5, 1, 8, 8)
    before = x.clone()
    augment(x, "crop-flip", Streams(torch.arange(5)))
    assert torch.equal(x, before)
