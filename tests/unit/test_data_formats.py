"""Data sets in their real formats, written by the test: CIFAR's batches, SVHN's .mat, TinyImageNet
as it is unpacked, and generated images in an .npz. Each of them also trains.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import random
import shutil
import tracemalloc
import urllib.request
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets as tv
from PIL import Image

import kit
from kit.core.errors import KitError
from kit.data import datasets, generated_images
from kit.data.datasets import EXPECTED, load_dataset
from kit.data.generated_images import add_generated_images
from kit.data.image_folders import decode
from kit.data.splits import Split
from kit.experiments.recipes import RECIPES, find_recipe
from kit.experiments.specification import RunSpec, resolve
from tests.helpers.data_files import in_file_order

#: One pass of mail-at over a few images; momentum and rate stay those of the recipe.
ONE_STEP = {
    "model": "wrn-10-1",
    "epochs": 1,
    "milestones": [],
    "batch_size": 8,
    "steps": 1,
    "probe": 4,
    "validation": 2,
    "train_size": 16,
}
CIFAR_FOLDER = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
CIFAR_FILES = {
    "cifar10": [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"],
    "cifar100": ["train", "test"],
}


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """What torchvision does not accept as downloaded it cannot download."""

    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)


def write_cifar(
    root: Path, name: str, per_file: int, monkeypatch
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """CIFAR's pickled batches and meta file, of `per_file` images each, whose checksums torchvision
    is told to expect.

    -> images (n, 3, 32, 32) and labels of each file.
    """
    folder, rng, written = (
        root / CIFAR_FOLDER[name],
        np.random.default_rng(3),
        {"train": [], "test": []},
    )
    folder.mkdir(parents=True)
    classes = {"cifar10": 10, "cifar100": 100}[name]
    names = [f"class {i}" for i in range(classes)]
    meta = (
        {"label_names": names}
        if name == "cifar10"
        else {"fine_label_names": names, "coarse_label_names": ["c"] * 20}
    )
    (folder / ("batches.meta" if name == "cifar10" else "meta")).write_bytes(
        pickle.dumps(meta, protocol=2)
    )
    for file in CIFAR_FILES[name]:
        images = rng.integers(0, 256, (per_file, 3, 32, 32), dtype=np.uint8)
        labels = rng.integers(0, classes, per_file)
        labels[0] = classes - 1
        key = "labels" if name == "cifar10" else "fine_labels"
        entry = {
            "data": images.reshape(per_file, 3072),
            key: labels.tolist(),
            "batch_label": file,
            "filenames": [f"{i}.png" for i in range(per_file)],
        }
        if name == "cifar100":
            entry["coarse_labels"] = [0] * per_file
        (folder / file).write_bytes(pickle.dumps(entry, protocol=2))
        written["test" if file.startswith("test") else "train"].append((images, labels))
    kind = {"cifar10": tv.CIFAR10, "cifar100": tv.CIFAR100}[name]
    sums = [[file, md5(folder / file)] for file in CIFAR_FILES[name]]
    monkeypatch.setattr(kind, "train_list", sums[:-1])
    monkeypatch.setattr(kind, "test_list", sums[-1:])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(folder / kind.meta["filename"])})
    monkeypatch.setitem(EXPECTED, name, (per_file * (len(sums) - 1), per_file))
    return written


def write_svhn(
    root: Path, sizes: tuple[int, int], monkeypatch
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """SVHN's two .mat files: X (32, 32, 3, n) and y (n, 1), where the digit 0 is labelled 10."""
    root.mkdir(parents=True, exist_ok=True)
    rng, written = np.random.default_rng(4), {}
    for part, n in zip(("train", "test"), sizes, strict=True):
        images, labels = rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), np.arange(n) % 10
        file = root / f"{part}_32x32.mat"
        digits = np.where(labels == 0, 10, labels).astype(np.uint8)
        scipy.io.savemat(file, {"X": images.transpose(2, 3, 1, 0), "y": digits[:, None]})
        monkeypatch.setitem(
            tv.SVHN.split_list, part, [tv.SVHN.split_list[part][0], file.name, md5(file)]
        )
        written[part] = [(images, labels)]
    monkeypatch.setitem(EXPECTED, "svhn", sizes)
    return written


def write_format(
    name: str, root: Path, monkeypatch
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    if name == "svhn":
        return write_svhn(root, (30, 20), monkeypatch)
    return write_cifar(root, name, 6 if name == "cifar10" else 30, monkeypatch)


def trained(data_name: str, **overrides) -> kit.Run:
    """One epoch of the recipe of that name; what it stored has the shape of its data."""
    run = kit.run("mail-at", data_name, overrides=ONE_STEP | overrides, quiet=True)
    whole = run.data()
    assert len(run.history) == 1 and np.isfinite(run.history.loss).all()
    assert run.final["train_logits_adv"].shape == (len(whole.train), len(whole.classes))
    assert run.final["train_ids"].tolist() == whole.train.ids.tolist()
    assert run.final["test_logits_nat"].shape == (len(whole.test), len(whole.classes))
    return run


# ----------------------------------------------------------------------------------- CIFAR and SVHN


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_files_are_read_as_written(name, tmp_path, monkeypatch):
    """Pixels with their axes in order, labels, class names, and ids that go on from training to
    test images.
    """
    written = write_format(name, tmp_path, monkeypatch)
    whole = load_dataset(name, root=tmp_path)
    for given, part in ((whole.train, "train"), (whole.test, "test")):
        split = in_file_order(given)
        np.testing.assert_array_equal(
            split.images.numpy(), np.concatenate([images for images, _ in written[part]])
        )
        np.testing.assert_array_equal(
            split.y.numpy(), np.concatenate([labels for _, labels in written[part]])
        )
        assert given.images.is_contiguous()
    ids = torch.cat([whole.train.ids.sort().values, whole.test.ids.sort().values])
    assert ids.tolist() == list(range(len(whole.train) + len(whole.test)))
    assert len(whole.classes) == (100 if name == "cifar100" else 10)
    assert whole.classes[3] == ("3" if name == "svhn" else "class 3") and whole.shape == (3, 32, 32)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_whole_files_of_another_size_are_refused(name, tmp_path, monkeypatch):
    write_format(name, tmp_path, monkeypatch)
    n = EXPECTED[name][0]
    monkeypatch.setitem(EXPECTED, name, (n + 1, EXPECTED[name][1]))
    with pytest.raises(
        KitError,
        match=rf"{name}, train: {n} images, expected {n + 1}; the file is truncated or foreign",
    ):
        load_dataset(name, root=tmp_path)


def exploding(path: Path) -> bytes:
    """A pickle that creates a file when it is read."""

    class Bomb:
        def __reduce__(self):
            return (open, (str(path), "w"))

    return pickle.dumps(Bomb(), protocol=2)


@pytest.mark.parametrize("file", [*CIFAR_FILES["cifar100"], "meta"])
def test_a_foreign_pickle_is_never_opened(file, tmp_path, monkeypatch):
    """torchvision compares each file's MD5 first; what differs is refused, and its code does not
    run.
    """
    write_cifar(tmp_path, "cifar100", 6, monkeypatch)
    bomb, mark = tmp_path / "cifar-100-python" / file, tmp_path / "exploded"
    bomb.write_bytes(exploding(mark))
    with pytest.raises(
        KitError,
        match=r"CIFAR100 could not be read from or downloaded to .*delete the damaged file",
    ):
        load_dataset("cifar100", root=tmp_path)
    assert not mark.exists()
    pickle.loads(bomb.read_bytes()).close()
    assert mark.exists(), "it would have run"


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_one_wrong_byte_is_found(name, tmp_path, monkeypatch):
    write_format(name, tmp_path, monkeypatch)
    file = tmp_path / (
        "cifar-10-batches-py/data_batch_3" if name == "cifar10" else "test_32x32.mat"
    )
    blob = bytearray(file.read_bytes())
    blob[len(blob) // 2] ^= 1
    file.write_bytes(blob)
    with pytest.raises(
        KitError,
        match=r"could not be read from or downloaded to .*no route.*delete the damaged file",
    ):
        load_dataset(name, root=tmp_path)


@pytest.mark.parametrize("name", ["cifar100", "svhn"])
def test_cifar100_and_svhn_train(name, fresh_home, monkeypatch):
    write_format(name, fresh_home / "data", monkeypatch)
    run = trained(name)
    assert run.final["train_logits_adv"].shape == (16, 100 if name == "cifar100" else 10)
    assert resolve(RunSpec("at", f"{name}:paper")).recipe.model == "resnet18"


# ------------------------------------------------------------------------------------- TinyImageNet

WNIDS = ["n02124075", "n01443537", "n04067472"]


def colour(i: int) -> tuple[int, int, int]:
    return 20 + i % 10 * 22, 20 + i // 10 * 11, 128


def write_tiny(root: Path, wnids: list[str] = WNIDS, per_class: int = 2) -> Path:
    """The tree as the archive unpacks it.

    Each class has its colour; test/ is without labels, and white.
    """

    def picture(path: Path, shade: tuple[int, int, int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), shade).save(path, "JPEG", quality=95)

    lines = []
    for i, wnid in enumerate(wnids):
        for j in range(per_class):
            picture(root / "train" / wnid / "images" / f"{wnid}_{j}.JPEG", colour(i))
        boxes = "".join(f"{wnid}_{j}.JPEG\t0\t10\t63\t58\n" for j in range(per_class))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(boxes)
        picture(root / "val/images" / f"val_{len(wnids) - i}.JPEG", colour(i))
        picture(root / "test/images" / f"test_{i}.JPEG", (255, 255, 255))
        lines.append(f"val_{len(wnids) - i}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (root / "val/val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (root / "words.txt").write_text("".join(f"{wnid}\tsome words\n" for wnid in wnids))
    return root


@pytest.fixture
def tiny(tmp_path) -> Path:
    return write_tiny(tmp_path / "tiny-imagenet-200")


def test_tiny_imagenet_is_read_as_it_is_unpacked(tiny):
    """Its classes are the wnids in alphabetical order, and its labelled val/ is the test split."""
    whole = load_dataset(f"folder:{tiny}")
    assert whole.classes == tuple(sorted(WNIDS)) and whole.shape == (3, 64, 64)
    train, test = in_file_order(whole.train), in_file_order(whole.test)
    assert train.y.tolist() == [0, 0, 1, 1, 2, 2] and test.ids.tolist() == [6, 7, 8]
    for split in (whole.train, whole.test):
        for image, label in zip(split.images, split.y.tolist(), strict=True):
            wanted = torch.tensor(colour(WNIDS.index(whole.classes[label])))
            assert (image.float().mean(dim=(1, 2)) - wanted).abs().max() < 3
    by_name = [WNIDS[3 - int(name[4])] for name in ("val_1.JPEG", "val_2.JPEG", "val_3.JPEG")]
    assert [whole.classes[label] for label in test.y] == by_name


def test_all_200_classes(tmp_path):
    wnids = [f"n{7919 * (i + 1) % 99991:08d}" for i in range(200)]
    whole = load_dataset(f"folder:{write_tiny(tmp_path / 'tiny', wnids, 1)}", validation=20)
    assert len(whole.classes) == 200 and whole.test.y.sort().values.tolist() == list(range(200))
    assert (len(whole.train), len(whole.validation), len(whole.test)) == (180, 20, 200)


def test_a_test_folder_with_classes_goes_before_val(tiny):
    for i, wnid in enumerate(WNIDS):
        (tiny / "test" / wnid).mkdir()
        Image.new("RGB", (64, 64), (i, i, i)).save(tiny / "test" / wnid / "0.png")
        shutil.copytree(tiny / "train" / wnid, tiny / "val" / wnid)
    shutil.rmtree(tiny / "test/images")
    test = in_file_order(load_dataset(f"folder:{tiny}").test)
    assert [int(image.max()) for image in test.images] == [
        WNIDS.index(name) for name in sorted(WNIDS)
    ]


def test_a_val_folder_sorted_into_classes_is_read(tiny):
    """As the scripts that go round leave it: val/<wnid>/."""
    for line in (tiny / "val/val_annotations.txt").read_text().splitlines():
        file, wnid = line.split("\t")[:2]
        (tiny / "val" / wnid).mkdir()
        (tiny / "val/images" / file).rename(tiny / "val" / wnid / file)
    (tiny / "val/images").rmdir()
    assert in_file_order(load_dataset(f"folder:{tiny}").test).y.tolist() == [0, 1, 2]


def annotate(tiny: Path, change) -> None:
    table = tiny / "val/val_annotations.txt"
    table.write_text("".join(change(table.read_text().splitlines(keepends=True))))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda lines: lines[:2],
            r"val: val_1\.JPEG is in images/ only; expected every image in images/ and in",
        ),
        (
            lambda lines: [*lines, f"val_9.JPEG\t{WNIDS[0]}\t0\t0\t9\t9\n"],
            r"val: val_9\.JPEG is in val_annotations\.txt only",
        ),
        (
            lambda lines: [lines[0], lines[1].replace(WNIDS[1], "n00000000"), lines[2]],
            r"val_annotations\.txt, line 2: 'n00000000' is not a class of train/\. Expected "
            r".* one of the 3 wnids",
        ),
        (lambda lines: [*lines, lines[0]], r"line 4: val_3\.JPEG was there before"),
        (lambda lines: [lines[0], "\n", *lines[1:]], r"line 2: '' is not a class of train/"),
        (
            lambda lines: [line.replace("\t", " ") for line in lines],
            r"line 1: '' is not a class of train/.*with tabs between",
        ),
        (lambda lines: ["\0\1\2"], r"line 1: '' is not a class of train/"),
        (lambda lines: [], r"val_1\.JPEG is in images/ only"),
    ],
)
def test_annotations_that_do_not_fit_are_named(change, words, tiny):
    annotate(tiny, change)
    with pytest.raises(KitError, match=words):
        load_dataset(f"folder:{tiny}")


def test_an_unpacked_archive_without_images_is_named(tiny):
    annotate(tiny, lambda lines: [])
    shutil.rmtree(tiny / "val/images")
    with pytest.raises(
        KitError,
        match=r"val holds no image; expected TinyImageNet's images/ and val_annotations\.txt",
    ):
        load_dataset(f"folder:{tiny}")


def test_a_class_that_was_not_unpacked_is_named(tiny):
    shutil.rmtree(tiny / "train" / WNIDS[1])
    with pytest.raises(KitError, match=rf"line 2: '{WNIDS[1]}' is not a class of train/"):
        load_dataset(f"folder:{tiny}")
    (tiny / "train" / WNIDS[1] / "images").mkdir(parents=True)
    with pytest.raises(KitError, match=rf"train is not a folder of images.*{WNIDS[1]}"):
        load_dataset(f"folder:{tiny}")


def test_without_annotations_the_test_folder_is_asked_for(tiny):
    (tiny / "val/val_annotations.txt").unlink()
    with pytest.raises(KitError, match=r"train/ and test/ have different classes \(images, "):
        load_dataset(f"folder:{tiny}")
    shutil.rmtree(tiny / "test")
    with pytest.raises(
        KitError, match=r"test is not a folder of images; expected .*train/<class>/\*\.png"
    ):
        load_dataset(f"folder:{tiny}")


def test_tiny_imagenet_trains(fresh_home):
    place = write_tiny(fresh_home / "data/tiny-imagenet-200", per_class=4)
    run = trained(f"folder:{place}", train_size=8)
    assert run.final["train_logits_adv"].shape == (8, 3)
    paper = find_recipe("folder:data/tiny-imagenet-200:paper")
    assert (paper.epochs, paper.milestones, paper.model) == (120, (75, 90), "resnet18")


def test_the_list_of_recipes_says_how_images_come_in():
    assert "folder:<path>:paper" in str(RECIPES) and "TinyImageNet" in str(RECIPES)
    with pytest.raises(
        KitError, match=r"no recipe 'tinyimagenet'.*<data set>\+npz:<file>.*folder:<path>"
    ):
        find_recipe("tinyimagenet")


# --------------------------------------------------------------------------------- generated images


def generated(n: int, *picture: int, seed: int = 5) -> dict[str, np.ndarray]:
    """Images (n, *picture) and labels in the order of the classes, as the published files have
    them.
    """
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (n, *picture), dtype=np.uint8),
        "label": np.sort(rng.integers(0, 10, n)),
    }


@pytest.fixture
def made(tmp_path) -> tuple[Path, dict[str, np.ndarray]]:
    """300 pictures of the digits' size in made.npz, and what is in it."""
    arrays = generated(300, 8, 8)
    np.savez(tmp_path / "made.npz", **arrays)
    return tmp_path / "made.npz", arrays


def test_generated_images_follow_the_training_images(made):
    """By their ids, which lie beyond the test images'; all else is as without them."""
    file, arrays = made
    plain, whole = (
        load_dataset("digits", validation=130),
        load_dataset(f"digits+npz:{file}", validation=130),
    )
    assert (
        len(whole.train) == 1470
        and whole.name == f"digits+npz:{file}"
        and whole.classes == plain.classes
    )
    train, real = in_file_order(whole.train), in_file_order(plain.train)
    assert torch.equal(train.images[:1170], real.images) and torch.equal(train.y[:1170], real.y)
    np.testing.assert_array_equal(train.images[1170:, 0].numpy(), arrays["image"])
    np.testing.assert_array_equal(train.y[1170:].numpy(), arrays["label"])
    assert train.ids.tolist() == [*real.ids.tolist(), *range(1797, 2097)]
    for part in ("validation", "test"):
        for field in ("images", "y", "ids"):
            assert torch.equal(
                getattr(getattr(whole, part), field), getattr(getattr(plain, part), field)
            )
    assert whole.fingerprint() != plain.fingerprint()


@pytest.mark.parametrize("chunk", [7, 300, 4096])
def test_a_training_size_counts_both(chunk, made, monkeypatch):
    """A fixed random choice of real and generated images; more of them is the same ones and others;
    an id is one image.
    """
    file, arrays = made
    monkeypatch.setattr(generated_images, "CHUNK", chunk)
    plain = load_dataset("digits", validation=130)
    pictures = dict(
        zip(
            plain.train.ids.tolist(),
            zip(plain.train.images[:, 0].numpy(), plain.train.y.tolist(), strict=True),
            strict=True,
        )
    )
    pictures |= {
        1797 + i: (image, label)
        for i, (image, label) in enumerate(zip(*arrays.values(), strict=True))
    }
    small, large = (
        load_dataset(f"digits+npz:{file}", validation=130, train_size=n).train for n in (200, 500)
    )
    for split in (small, large):
        ids = split.ids.tolist()
        assert len(set(ids)) == len(ids) and set(ids) <= set(pictures)
        assert 0.1 < np.mean([i >= 1797 for i in ids]) < 0.3, "300 of 1,470 are generated"
        for i, image, label in zip(ids, split.images[:, 0].numpy(), split.y.tolist(), strict=True):
            np.testing.assert_array_equal(image, pictures[i][0])
            assert label == pictures[i][1]
    assert (len(small), len(large)) == (200, 500) and set(small.ids.tolist()) < set(
        large.ids.tolist()
    )


def test_more_than_both_is_refused(made):
    assert len(load_dataset(f"digits+npz:{made[0]}", validation=130, train_size=1470).train) == 1470
    with pytest.raises(
        KitError,
        match=r"train_size=1471, but there are 1170 training images and 300 in .*made\.npz",
    ):
        load_dataset(f"digits+npz:{made[0]}", validation=130, train_size=1471)
    with pytest.raises(KitError, match=r"digits has 1300 training images; validation=1300"):
        load_dataset(f"digits+npz:{made[0]}", validation=1300)


def test_a_moved_or_compressed_file_gives_the_same_images(made, tmp_path):
    first = load_dataset(f"digits+npz:{made[0]}", train_size=100).train
    (tmp_path / "there").mkdir()
    np.savez_compressed(tmp_path / "there/made.npz", **made[1])
    again = load_dataset(f"digits+npz:{tmp_path}/there/made.npz", train_size=100).train
    assert (
        torch.equal(first.ids, again.ids)
        and torch.equal(first.images, again.images)
        and torch.equal(first.y, again.y)
    )


@pytest.mark.parametrize("kind", ["<i8", "<i4", "|u1", ">i4", "<u8"])
def test_labels_of_any_integer_type(kind, made):
    file, arrays = made
    np.savez(file, image=arrays["image"], label=arrays["label"].astype(kind))
    train = in_file_order(load_dataset(f"digits+npz:{file}").train)
    assert train.y[1300:].tolist() == arrays["label"].tolist()


def test_colours_keep_their_axes(tmp_path):
    """On a folder of colour images, height and width different."""
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            Image.new("RGB", (5, 7)).save(tmp_path / "pets" / part / name / "0.png")
    arrays = generated(20, 7, 5, 3)
    np.savez(tmp_path / "pets.npz", image=arrays["image"], label=arrays["label"] % 2)
    whole = load_dataset(f"folder:{tmp_path}/pets+npz:{tmp_path}/pets.npz")
    assert (
        whole.shape == (3, 7, 5)
        and whole.classes == ("a", "b")
        and whole.train.images.is_contiguous()
    )
    images = in_file_order(whole.train).images[2:]
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), arrays["image"])


def test_a_large_file_is_read_in_chunks(tmp_path, monkeypatch):
    """18 MB of images, ten of which are used, take less than 3 MB on the way."""
    arrays = generated(6000, 32, 32, 3)
    np.savez(tmp_path / "large.npz", **arrays)
    monkeypatch.setattr(generated_images, "CHUNK", 128)
    few = Split(
        torch.zeros(4, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(4, dtype=torch.int64),
        torch.arange(4),
    )
    tracemalloc.start()
    drawn = add_generated_images(few, tmp_path / "large.npz", 10, 8, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(drawn) == 10 and peak < 3e6
    generated_ones = drawn.take(drawn.ids >= 8)
    np.testing.assert_array_equal(
        generated_ones.images.permute(0, 2, 3, 1).numpy(),
        arrays["image"][generated_ones.ids.numpy() - 8],
    )


def test_what_does_not_fit_into_memory_is_said(made, monkeypatch):
    def full(*args, **kwargs):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(torch.Tensor, "new_empty", full)
    with pytest.raises(KitError, match=r"1600 images do not fit into memory; set train_size"):
        load_dataset(f"digits+npz:{made[0]}")


def objects(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Labels as an array of objects, whose pickle creates a file beside it."""
    np.savez(file, **arrays)
    label = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        label, {"descr": "|O", "fortran_order": False, "shape": (300,)}
    )
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("image.npy", "w") as image:
            np.lib.format.write_array(image, arrays["image"])
        archive.writestr("label.npy", label.getvalue() + exploding(file.with_name("exploded")))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda a: {"image": a["image"]},
            r"lacks label, it has image; expected image \(N, 8, 8\) of uint8 and label \(N,\)",
        ),
        (
            lambda a: {"images": a["image"], "labels": a["label"]},
            r"lacks image and label, it has images, labels",
        ),
        (lambda a: {}, r"lacks image and label, it has nothing"),
        (
            lambda a: a | {"image": a["image"] / np.float32(255)},
            r"has image \(300, 8, 8\) of float32 and label \(300,\)",
        ),
        (lambda a: a | {"image": a["image"].astype(np.int8)}, r"has image \(300, 8, 8\) of int8"),
        (lambda a: a | {"image": a["image"][:, :7]}, r"has image \(300, 7, 8\) of uint8"),
        (lambda a: a | {"image": a["image"][..., None]}, r"has image \(300, 8, 8, 1\) of uint8"),
        (
            lambda a: a | {"image": a["image"][:299]},
            r"has image \(299, 8, 8\) of uint8 and label \(300,\)",
        ),
        (
            lambda a: a | {"image": np.asfortranarray(a["image"])},
            r"of uint8 in Fortran order and .*in C order",
        ),
        (
            lambda a: {"image": a["image"][:0], "label": a["label"][:0]},
            r"has image \(0, 8, 8\) of uint8 and label \(0,\)",
        ),
        (
            lambda a: a | {"image": np.uint8(3), "label": 3},
            r"has image \(\) of uint8 and label \(\) of int64",
        ),
        (
            lambda a: a | {"label": a["label"].astype(np.float64)},
            r"label \(300,\) of float64; expected .*integers",
        ),
        (lambda a: a | {"label": a["label"][:, None]}, r"label \(300, 1\) of int64"),
        (lambda a: a | {"label": np.eye(10, dtype=int)[a["label"]]}, r"label \(300, 10\) of int64"),
        (lambda a: a | {"label": a["label"] > 4}, r"label \(300,\) of bool"),
        (lambda a: a | {"label": a["label"].astype(object)}, r"label \(300,\) of object"),
        (lambda a: a | {"label": a["label"] + 1}, r"labels run from \d to 10, expected 0 to 9"),
        (lambda a: a | {"label": a["label"] - 1}, r"labels run from -1 to \d, expected 0 to 9"),
        (
            lambda a: a | {"label": a["label"].astype(np.uint64) + np.uint64(2**63)},
            r"labels run from 92\d+ to 92\d+, exp",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named(change, words, made):
    """The file, what was found and what was expected."""
    file, arrays = made
    np.savez(file, **change(arrays))
    with pytest.raises(KitError, match=rf"made\.npz:? .*{words}"):
        load_dataset(f"digits+npz:{file}")


def test_a_pickle_in_a_file_is_never_opened(made):
    objects(*made)
    with pytest.raises(KitError, match=r"label \(300,\) of object; expected"):
        load_dataset(f"digits+npz:{made[0]}")
    assert not made[0].with_name("exploded").exists()
    with np.load(made[0], allow_pickle=True) as archive:
        archive["label"].close() if hasattr(archive["label"], "close") else None
    assert made[0].with_name("exploded").exists(), "it would have run"


def lie(shape: tuple[int, ...], data_bytes: bytes) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return stream.getvalue() + data_bytes


@pytest.mark.parametrize(
    ("n", "words"),
    [(250, r"image has more bytes than \(250, 8, 8\)"), (350, r"not a readable \.npz.*reshape")],
)
def test_a_header_that_lies_is_found(n, words, made):
    file, arrays = made
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("image.npy", lie((n, 8, 8), arrays["image"].tobytes()))
        archive.writestr("label.npy", lie((n,), bytes(n)))
    with pytest.raises(KitError, match=words):
        load_dataset(f"digits+npz:{file}")


@pytest.mark.parametrize(
    "blob", [b"", b"not a zip", b"PK\x05\x06" + bytes(18), b"\x93NUMPY\x01\x00" + bytes(70)]
)
def test_what_is_no_npz_is_named(blob, made):
    made[0].write_bytes(blob)
    with pytest.raises(
        KitError, match=r"made\.npz (is not a readable \.npz|lacks image and label)"
    ):
        load_dataset(f"digits+npz:{made[0]}")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_no_damage_gives_wrong_images(write, tmp_path):
    """A file cut anywhere is refused; one with any byte changed is refused or gives the images that
    were written.
    """
    file, arrays = tmp_path / "made.npz", generated(6, 2, 2)
    write(file, **arrays)
    few = Split(
        torch.zeros(1, 1, 2, 2, dtype=torch.uint8),
        torch.zeros(1, dtype=torch.int64),
        torch.arange(1),
    )
    blob, harmless = file.read_bytes(), 0
    for i in range(len(blob)):
        if i % 5 == 0:
            file.write_bytes(blob[:i])
            with pytest.raises(KitError, match=r"made\.npz"):
                add_generated_images(few, file, 10, 2, 0)
        file.write_bytes(blob[:i] + bytes([blob[i] ^ 1 << i % 8]) + blob[i + 1 :])
        try:
            got = in_file_order(add_generated_images(few, file, 10, 2, 0))
        except KitError as error:
            assert "made.npz" in str(error)
        else:
            harmless += 1
            np.testing.assert_array_equal(got.images[1:, 0].numpy(), arrays["image"])
            np.testing.assert_array_equal(got.y[1:].numpy(), arrays["label"])
    assert harmless < len(blob), "most bytes matter; dates do not"


@pytest.mark.parametrize("colours", [0, 16])
def test_a_damaged_png_is_never_other_pixels(colours, tmp_path):
    """Decoding alone overlooks some flipped bits, in palettes for instance."""
    slope = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8)
    path, dice = tmp_path / "a.png", random.Random(0)
    picture = Image.fromarray(np.stack([slope * 4, slope * 2, slope], axis=2))
    (picture.quantize(colours) if colours else picture).save(path)
    blob, whole = path.read_bytes(), decode(path)
    for _ in range(400):
        bad = bytearray(blob)
        for _ in range(dice.choice([1, 2, 4])):
            bad[dice.randrange(len(bad))] ^= 1 << dice.randrange(8)
        path.write_bytes(bad)
        try:
            np.testing.assert_array_equal(decode(path), whole)
        except KitError as error:
            assert "a.png is not a readable image" in str(error)


# -------------------------------------------------------------------------------------- their names


def test_generated_images_are_known_by_their_place(made, fresh_home, monkeypatch):
    """However it is written, a file is one run; another file, or none, is another run."""
    file = made[0]
    monkeypatch.chdir(file.parent)
    ways = [
        f"digits+npz:{file}",
        "digits+npz:made.npz",
        "digits+npz:./x/../made.npz",
        f"digits+npz:{file}:quick",
    ]
    (file.parent / "x").mkdir()
    plans = [resolve(RunSpec("at", way)) for way in ways]
    plans.append(resolve(RunSpec("at", overrides={"data": "digits+npz:made.npz"})))
    assert (
        len({plan.key for plan in plans}) == 1
        and plans[0].folder_name == f"digits-made.npz-{plans[0].key}"
    )
    shutil.copy(file, file.parent / "other.npz")
    assert (
        len(
            {
                plans[0].key,
                resolve(RunSpec("at")).key,
                resolve(RunSpec("at", "digits+npz:other.npz")).key,
            }
        )
        == 3
    )
    folder = write_tiny(fresh_home / "data/tiny")
    plan = resolve(RunSpec("at", f"folder:{folder}/+npz:made.npz:paper"))
    assert plan.config()["recipe"][
        "data"
    ] == f"folder:{folder}+npz:{file}" and plan.folder_name.startswith("tiny-made.npz-")
    assert plan.recipe.epochs == 120 and datasets.folder_path(plan.recipe.data) == folder


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("cifar10+npz:{}", "cifar10"),
        ("cifar10+npz:{}:paper", "cifar10:paper"),
        ("svhn+npz:{}:paper", "svhn:paper"),
        ("digits+npz:{}", "digits"),
    ],
)
def test_the_recipe_is_the_base_sets(name, row, made):
    found, base = find_recipe(name.format(made[0])).config(), RECIPES[row].config()
    assert found.pop("data") == f"{base.pop('data')}+npz:{made[0]}" and found == base


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "digits+npz:/no/such.npz",
            r"no file /no/such\.npz; expected an \.npz of generated images, with arrays image",
        ),
        ("digits+npz:", "no file"),
        ("digits+npz:{}/..", "no file"),
        ("digit+npz:{}", r"no data set 'digit'\. Did you mean 'digits'\?.*<data set>\+npz:<file>"),
        ("npz:{}", r"no recipe 'npz:.*<data set>\+npz:<file>"),
        ("cifar10:paper+npz:{}", r"no data set 'cifar10:paper'\. Did you mean 'cifar10'"),
        ("digits+npz:{}:paper", r"no recipe 'digits:paper'\. Did you mean"),
        ("folder:/no/such+npz:{}", "no folder /no/such;"),
    ],
)
def test_names_that_do_not_exist_are_refused(name, words, made):
    with pytest.raises(KitError, match=words):
        resolve(RunSpec("at", name.format(made[0])))


def test_cifar10_trains_with_generated_images(fresh_home, monkeypatch):
    """The published files' arrays beside CIFAR-10:

    both kinds are trained on, and only real ones are tested on.
    """
    write_cifar(fresh_home / "data", "cifar10", 6, monkeypatch)
    np.savez(fresh_home / "data/1m.npz", **generated(20, 32, 32, 3))
    run = trained("cifar10+npz:data/1m.npz", train_size=0)
    assert (
        sorted(run.final["train_ids"].tolist())[-20:] == list(range(36, 56))
        and len(run.final["train_ids"]) == 48
    )
    assert sorted(run.final["test_ids"].tolist()) == list(range(30, 36))
    np.savez(fresh_home / "data/1m.npz", **generated(20, 32, 32, 3, seed=6))
    from kit.experiments.runs import cached_dataset

    cached_dataset.cache_clear()
    with pytest.raises(KitError, match=r"has changed since .* was trained on it"):
        run.data()
