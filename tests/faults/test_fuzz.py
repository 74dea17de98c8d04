"""Damaged files and senseless settings, by the thousand: an error in words or the undisturbed
result, nothing in between.

KIT_FUZZ=2000 damages so many files and tries so many settings; by default it is a few dozen of each
kind.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import tarfile
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from PIL import Image

import kit
from kit.attacks.table import ATTACKS
from kit.core import files
from kit.core.errors import KitError
from kit.core.threat import Threat
from kit.data import datasets
from kit.experiments.recipes import RECIPE_FIELDS, find_recipe
from kit.experiments.runs import Run, cached_dataset, find_run, run_folder, run_folders, runs_folder
from kit.experiments.specification import RunSpec, parse_overrides, resolve
from kit.jobs import archive, notebook_jobs, reproduction
from kit.jobs.command_line import main
from kit.notebook import parameter_cells
from kit.training import loop, runner
from tests.helpers.data_files import write_mnist
from tests.helpers.processes import PATIENCE
from tests.helpers.run_files import contents
from tests.helpers.settings import TINY

COUNT = int(os.environ.get("KIT_FUZZ", "0"))
SMALL = {
    **TINY,
    "epochs": 4,
    "milestones": [3],
    "train_size": 60,
    "validation": 20,
    "probe": 10,
    "steps": 1,
    "burn_in": 2,
}
ATTACKED = ("natural", "fgsm")


def trying(share: float, default: int) -> Callable:
    """hypothesis' settings:

    a share of KIT_FUZZ, or else `default`, examples; the same ones every time.
    """
    return settings(
        max_examples=round(COUNT * share) or default,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def soon(seconds: int = PATIENCE) -> Iterator[None]:
    """Nothing may hang."""

    def late(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def hasty(tmp_path, monkeypatch):
    """A home of its own, whose files need not reach the disk."""
    monkeypatch.setenv("KIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def rows_of(seen: Counter) -> list[list]:
    """[[what, how often, outcome], ...] for the table, from {(what, outcome): how often}."""
    rows = []
    for what in dict.fromkeys(what for what, _ in seen):
        mine = {outcome: n for (name, outcome), n in seen.items() if name == what}
        rows.append(
            [
                what,
                sum(mine.values()),
                ", ".join(f"{n} {outcome}" for outcome, n in sorted(mine.items())),
            ]
        )
    return rows


# ------------------------------------------------------------------------------------------- damage


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def foreign(mark: Path) -> dict[str, list[bytes]]:
    """{ending:

    files that are something else, some of which would execute code}; `mark` is what that would
    leave behind.
    """

    def bytes_of(write: Callable, *args, **kwargs) -> bytes:
        buffer = io.BytesIO()
        write(buffer, *args, **kwargs)
        return buffer.getvalue()

    values = [
        [],
        "text",
        3,
        None,
        True,
        {},
        {"spec": 3, "key": []},
        {"epochs": 10**30, "files": 3},
        {"sha256": "0" * 64},
        [{"spec": {}}],
        {"spec": {"method": "at"}},
        {"model": {}, "epoch": "x", "optimizer": 3, "history": None},
    ]
    evil = [
        pickle.dumps(Evil(mark)),
        bytes_of(lambda buffer: torch.save(Evil(mark), buffer)),
        bytes_of(lambda buffer: np.savez(buffer, y=np.array([Evil(mark)], dtype=object))),
        bytes_of(
            lambda buffer: np.save(buffer, np.array([Evil(mark)], dtype=object), allow_pickle=True)
        ),
    ]
    signed = [
        files.MAGIC + hashlib.sha256(payload).digest() + payload
        for payload in [
            evil[1],
            *(bytes_of(lambda buffer, v=v: torch.save(v, buffer)) for v in values),
        ]
    ]
    arrays = [
        bytes_of(np.save, np.arange(3)),
        bytes_of(np.savez),
        bytes_of(np.savez, y=np.arange(3)),
        bytes_of(np.savez, image=np.zeros((2, 2)), label="x"),
    ]
    text = [
        b"",
        b"\n",
        b"epoch,loss\n1,0.5\n",
        b"a,b\n" * 1000,
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"9" * 10_000,
        b'{"a":' * 50_000,
        b"NaN",
        b'{"key": "\\ud800"}',
        bytes(1000),
    ]
    text += [json.dumps(value).encode() for value in values]
    return {
        "ckpt": [*evil, *signed, b""],
        "npz": [*evil, *arrays, b""],
        "json": text,
        "csv": text,
        "tar": [*evil, *(_archive_of(manifest) for manifest in text)],
    }


def _archive_of(manifest: bytes) -> bytes:
    tree, head = io.BytesIO(), tarfile.TarInfo(archive.MANIFEST_NAME)
    head.size = len(manifest)
    with tarfile.open(fileobj=tree, mode="w") as tar:
        tar.addfile(head, io.BytesIO(manifest))
    return tree.getvalue()


WAYS = (
    "cut",
    "bits",
    "noise",
    "insert",
    "twice",
    "zeros",
    "gap",
    "digit",
    "value",
    "swap",
    "foreign",
)
SEEDS = st.integers(0, 2**62)


def damaged(
    blob: bytes, name: str, way: str, dice: random.Random, others: list[bytes], strangers: dict
) -> bytes:
    """A file's bytes after one mishap, say a few flipped bits, or another file in its place."""
    at, length = dice.randrange(len(blob)) if blob else 0, dice.choice([1, 2, 8, 64, 512, 4096])
    if way == "swap":
        return dice.choice(others)
    if way == "foreign":
        return dice.choice(strangers.get(name.rpartition(".")[2], strangers["npz"]))
    if way == "value":
        return _another_value(blob, dice)
    if way == "digit":
        digits = [i for i, byte in enumerate(blob) if byte in b"0123456789"]
        at = dice.choice(digits) if digits else at
        return blob[:at] + dice.choice(b"0123456789").to_bytes() + blob[at + 1 :]
    if way == "bits":
        changed = bytearray(blob)
        for _ in range(length.bit_length() if blob else 0):
            changed[dice.randrange(len(blob))] ^= 1 << dice.randrange(8)
        return bytes(changed)
    return {
        "cut": blob[:at],
        "noise": blob[:at] + dice.randbytes(length) + blob[at + length :],
        "insert": blob[:at] + dice.randbytes(length) + blob[at:],
        "twice": blob[: at + length] + blob[at:],
        "zeros": blob[:at] + bytes(length) + blob[at + length :],
        "gap": blob[:at] + blob[at + length :],
    }[way]


def _another_value(blob: bytes, dice: random.Random) -> bytes:
    """A JSON file in which one value is another or missing; anything else gets a line in front."""
    try:
        record = json.loads(blob)
    except ValueError:
        return b"{}\n" + blob
    place = record
    while True:
        name = dice.choice(list(place))
        if not isinstance(place[name], dict) or not place[name] or dice.random() < 0.3:
            break
        place = place[name]
    if dice.random() < 0.3:
        del place[name]
    else:
        place[name] = dice.choice(
            [None, 0, -1, 3, 1e300, "", "x", [], {}, [place[name]], True, 10**40]
        )
    return json.dumps(record).encode()


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def laid(files: dict[str, bytes], folder: Path) -> None:
    """`folder` with these files and no others."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, blob in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(blob)


# --------------------------------------------------------------------------------------------- runs


def _bytes(arrays: dict[str, np.ndarray]) -> dict[str, tuple]:
    return {
        name: (str(values.dtype), values.shape, values.tobytes()) for name, values in arrays.items()
    }


def _listed(run: Run) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["list", "runs"]) == 0
    line = next(line for line in out.getvalue().splitlines() if run.folder.name in line)
    if f"{run.folder}/run.json" in line:  # what is wrong with it, in the settings' place
        raise KitError(line)
    return line


def _opened(run: Run) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        kit.run(run.spec)
    return out.getvalue().splitlines()[-1]


def _evaluated(run: Run) -> tuple:
    table = kit.evaluate(run, ATTACKED, n=10, quiet=True)
    return table.drop(columns="seconds").to_csv(), {
        name: _bytes(table.attrs["examples"][name]) for name in ATTACKED
    }


def answers(run: Run) -> dict[str, object]:
    """What can be asked of a stored run; None where the answer is a `KitError`. Seconds are left
    out: they are never twice the same.
    """

    def network(which):
        return lambda run: {
            k: v.numpy().tobytes() for k, v in run.model(which).state_dict().items()
        }

    questions = {
        "history": lambda run: run.history.drop(columns="seconds").to_csv(),
        "final": lambda run: _bytes(run.final),
        "record": lambda run: (
            run.record["classes"],
            run.record["spec"],
            run.record["data_fingerprint"],
        ),
        "done": lambda run: (run.done["epochs"], run.done["constant"]),
        "evaluation": _evaluated,
        "listed": _listed,
        "data": lambda run: run.data().fingerprint(),
        "found": lambda run: str(find_run(run.key).spec),
        **{
            f"epoch {n}": lambda run, n=n: _bytes(run.epoch(n))
            for n in range(1, SMALL["epochs"] + 1)
        },
        **{f"network {w}": network(w) for w in ("last", "best", 1, 2, 3, 4)},
    }
    found = {}
    for name, ask in questions.items():
        try:
            found[name] = ask(Run(run.spec, run.folder))
        except KitError:
            found[name] = None
    return found


@pytest.fixture
def kin(hasty):
    """Two finished and evaluated runs that differ in their seed."""
    runs = [kit.run("mail-at", seed=seed, overrides=SMALL, quiet=True) for seed in (0, 1)]
    for run in runs:
        kit.evaluate(run, ATTACKED, n=10, quiet=True)
    return runs


@pytest.fixture
def mark(tmp_path):
    """Where code that was executed would show."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "a file's code was executed"


def test_files_of_finished_runs(kin, mark, record_property):
    """Whatever happens to one file of a run:

    each answer is the undisturbed one or an error, and `verify` sees it.
    """
    run, other = kin
    whole, calm, strangers, seen = files_in(run.folder), answers(run), foreign(mark), Counter()
    assert None not in calm.values() and archive.verify_run(run.folder) == []
    others = [*whole.values(), *files_in(other.folder).values()]
    opened, text = _opened(run), [name for name in whole if name.endswith(("json", "csv"))]

    @trying(0.3, 25)
    @given(seed=SEEDS)
    def attempt(seed):
        laid(whole, run.folder)
        dice = random.Random(seed)
        name, way = dice.choice([*text * 3, *whole]), dice.choice(WAYS)
        bad = damaged(whole[name], name, way, dice, others, strangers)
        (run.folder / name).write_bytes(
            files_in(other.folder).get(name, bad) if dice.random() < 0.05 else bad
        )
        with soon():
            now = answers(run)
            try:
                assert _opened(run) == opened
            except KitError:
                now["opened"] = None
            problems = archive.verify_run(run.folder)
        for question, answer in now.items():
            assert answer is None or answer == calm[question], (
                f"{way} in {name}: {question} is silently another"
            )
        refused = None in now.values()
        assert bool(problems) or not refused, f"{way} in {name}: verify calls it whole"
        seen[
            f"{_kind(name)} of a finished run", "refused in words" if refused else "unaffected"
        ] += 1

    attempt()
    record_property("faults", rows_of(seen))


def _kind(name: str) -> str:
    return (
        f"{name.split('/')[0]}/"
        if "/" in name
        else "burn-in checkpoint"
        if "burn-in" in name
        else name
    )


def test_files_of_unfinished_runs(hasty, mark, record_property, monkeypatch):
    """Whatever happens to one file of a run that was interrupted: asked for again, it, or a run
    that shares its burn-in, ends bit for bit as undisturbed, or an error says why not. No damaged
    file gives another answer afterwards.
    """
    calm, ends = {}, {}
    for method in ("mail-at", "clirat"):
        whole = kit.run(method, overrides=SMALL, quiet=True)
        ends[method] = contents(whole.folder)
        kit.evaluate(whole, ATTACKED, n=10, quiet=True)
        calm[method] = answers(whole)
    shutil.rmtree(runs_folder())
    real = loop.train_epoch

    def stopped(state, split, epoch):
        if epoch == 4:
            raise KeyboardInterrupt
        return real(state, split, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_epoch", stopped)
        for seed in (1, 0):
            with pytest.raises(KeyboardInterrupt):
                kit.run("mail-at", seed=seed, overrides=SMALL, quiet=True)
    folder, other = (
        run_folder(resolve(RunSpec("mail-at", seed=seed, overrides=SMALL))) for seed in (0, 1)
    )
    begun, seen, strangers = files_in(folder), Counter(), foreign(mark)
    others = [*begun.values(), *files_in(other).values()]
    assert {
        "last.ckpt",
        "previous.ckpt",
        "best.ckpt",
        "best-in-burn-in.ckpt",
        "epochs/0003.npz",
    } < set(begun)
    shutil.rmtree(runs_folder())
    likely = [name for name in begun if name.endswith(".ckpt")]

    @trying(0.2, 10)
    @given(seed=SEEDS)
    def attempt(seed):
        shutil.rmtree(runs_folder(), ignore_errors=True)
        laid(begun, folder)
        dice = random.Random(seed)
        name, way, method = (
            dice.choice([*likely * 3, *begun]),
            dice.choice(WAYS),
            dice.choice(["mail-at", "clirat"]),
        )
        (folder / name).write_bytes(damaged(begun[name], name, way, dice, others, strangers))
        alone = method == "mail-at"
        told = (
            f"{_kind(name)} of an interrupted run"
            if alone
            else "a file of a run that another branches from"
        )
        with soon():
            try:
                run = kit.run(method, overrides=SMALL, quiet=True)
            except KitError:
                seen[told, "refused in words"] += 1
                return
            checkpoint = contents(run.folder) if not name.startswith("epochs") else None
            now = answers(run)
        for question, answer in now.items():
            assert answer is None or answer == calm[method][question], (
                f"{way} in {name}: {question} is silently another"
            )
        assert checkpoint in (None, ends[method])
        if None in now.values():
            seen[told, "refused in words"] += 1
            return
        again = any(folder.glob("*.damaged-*")) or (
            method == "clirat" and not (run.folder / "branched.json").exists()
        )
        seen[told, "recovered from" if again else "unaffected"] += 1

    attempt()
    record_property("faults", rows_of(seen))


def test_archives(kin, mark, tmp_path, monkeypatch, record_property):
    """A damaged archive is refused and leaves nothing, or its runs arrive as they were."""
    run, sound, bad = kin[0], tmp_path / "sound.tar", tmp_path / "bad.tar"
    archive.export_runs(sound, [run.key])
    blob, whole, strangers, seen = (
        sound.read_bytes(),
        contents(run.folder),
        foreign(mark),
        Counter(),
    )
    others = [*files_in(run.folder).values()]
    monkeypatch.setenv("KIT_HOME", str(tmp_path / "there"))

    @trying(0.2, 30)
    @given(seed=SEEDS)
    def attempt(seed):
        dice = random.Random(seed)
        bad.write_bytes(damaged(blob, bad.name, dice.choice(WAYS), dice, others, strangers))
        shutil.rmtree(tmp_path / "there", ignore_errors=True)
        with soon():
            try:
                archive.import_runs(bad)
            except KitError:
                assert not files_in(tmp_path / "there"), "something stays behind"
                seen["archive of runs", "refused in words"] += 1
            else:
                (folder,) = run_folders()
                assert archive.verify_run(folder) == [] and contents(folder) == whole
                seen["archive of runs", "unaffected"] += 1

    attempt()
    record_property("faults", rows_of(seen))


# --------------------------------------------------------------------------------------------- data


def painted(root: Path, ending: str) -> Path:
    """A tree of images: two classes, two for training and one for testing in each."""
    slope = np.add.outer(np.arange(8), np.arange(8))
    for part, count in (("train", 2), ("test", 1)):
        for name in "ab":
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                shade = np.stack(
                    [slope * 9, slope * 5 + 40 * i, slope * 3 + ord(name)], axis=2
                ).astype(np.uint8)
                picture = Image.fromarray(shade)
                (picture.quantize(16) if i and ending == "png" else picture).save(
                    root / part / name / f"{i}.{ending}"
                )
    return root


def drawn(root: Path) -> str:
    """The name of digits with 50 generated images behind them."""
    dice = np.random.default_rng(6)
    np.savez(
        root / "made.npz",
        image=dice.integers(0, 256, (50, 8, 8), dtype=np.uint8),
        label=np.arange(50) % 10,
    )
    return f"digits+npz:{root}/made.npz"


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, tuple[Path, str]]:
    """{what: (the folder with its files, the data set's name)}"""
    root = tmp_path_factory.mktemp("sets")
    write_mnist(root / "idx", "MNIST", (40, 20))
    (root / "made").mkdir()
    return {
        "file of generated images": (root / "made", drawn(root / "made")),
        "PNG image": (painted(root / "png", "png"), f"folder:{root}/png"),
        "JPEG image": (painted(root / "jpg", "jpg"), f"folder:{root}/jpg"),
        "MNIST file": (root / "idx", "mnist"),
    }


def test_data_files(sets, mark, tmp_path, monkeypatch, record_property):
    """A damaged file of a data set is refused or read as it was. Where the format has no checksum,
    or another image lies in its place, other pixels can be read: then the fingerprint is another,
    by which runs know their images.
    """

    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setitem(datasets.EXPECTED, "mnist", (40, 20))
    strangers, seen = foreign(mark), Counter()
    files = {what: files_in(root) for what, (root, _) in sets.items()}
    calm = {what: datasets.load_dataset(name, root=root) for what, (root, name) in sets.items()}
    unchecked = ("JPEG image", "MNIST file")

    @trying(0.3, 40)
    @given(seed=SEEDS)
    def attempt(seed):
        dice = random.Random(seed)
        what, way = dice.choice(sorted(sets)), dice.choice(WAYS)
        (root, name), whole = sets[what], files[what]
        laid(whole, root)
        file = dice.choice(sorted(whole))
        bad = damaged(
            whole[file],
            file,
            way,
            dice,
            [blob for each in files.values() for blob in each.values()],
            strangers,
        )
        (root / file).write_bytes(bad)
        with soon():
            try:
                found = datasets.load_dataset(name, root=root)
            except KitError as error:
                assert str(error)
                seen[what, "refused in words"] += 1
                return
        if found.fingerprint() == calm[what].fingerprint():
            assert found.train.ids.tolist() == calm[what].train.ids.tolist()
            seen[what, "unaffected"] += 1
            return
        assert what in unchecked or way == "swap", f"{way} in {file}: other images are read"
        seen[what, "known by its fingerprint"] += 1

    attempt()
    for what, (root, _) in sets.items():
        laid(files[what], root)
    record_property("faults", rows_of(seen))


def test_a_run_knows_its_images_by_their_fingerprint(sets, fresh_home, hasty):
    """The other half of that: one other pixel, and the run that was trained on them is refused."""
    root, name = sets["JPEG image"]
    run = kit.run(
        "std",
        name,
        overrides={
            "model": "cnn",
            "epochs": 1,
            "milestones": [],
            "train_size": 3,
            "validation": 1,
            "batch_size": 3,
            "steps": 1,
            "probe": 2,
            "augment": "none",
        },
        quiet=True,
    )
    file = next(root.rglob("*.jpg"))
    whole, pixels = file.read_bytes(), np.asarray(Image.open(file)).copy()
    pixels[0, 0] ^= 255
    Image.fromarray(pixels).save(file)
    cached_dataset.cache_clear()
    try:
        with pytest.raises(KitError, match="has changed since"):
            run.data()
    finally:
        file.write_bytes(whole)
        cached_dataset.cache_clear()


# ----------------------------------------------------------------------------------------- settings

PLACES = st.sampled_from(
    [
        "~nobody",
        "folder:",
        "folder:~nobody/x",
        "folder:" + "x" * 5000,
        "folder:/" + "x" * 5000,
        "folder:\0",
        "digits+npz:",
        "digits+npz:~nobody/x",
        "digits+npz:\ud800",
        "folder:\ud800:paper",
        "digits:paper",
        "mnist:paper",
        "digits",
        "wrn-010-1",
        "wrn-99999999999999999999-1",
        "wrn-１６-1",
    ]
)
ODD_WORDS = st.sampled_from(
    [
        "",
        " ",
        ".",
        "..",
        "x" * 5000,
        "weight.",
        ".slope",
        "attack..init",
        "\ud800",
        "１",
        "1/0",
        "1/" + "9" * 5000,
        "all",
        "at",
        "9" * 400 + "/3",
        "9" * 5000,
        "[" * 3000,
        '{"a":1}',
        "1e999",
        "-0.0",
        "NaN",
        "-Infinity",
        "null",
        "true",
        "True",
        "٣",
        "[1,2",
        "[20,10]",
        "0x10",
        "__class__",
    ]
)
ODD_NUMBERS = st.sampled_from(
    [
        True,
        False,
        -0.0,
        0.0,
        0.5,
        -1,
        3,
        10**18,
        2**63,
        -(2**63),
        1e308,
        5e-324,
        1 + 1j,
        float("nan"),
        float("inf"),
    ]
) | st.builds(pow, st.just(10), st.just(5000))  # so large that Python refuses to print it
TEXT = st.text(max_size=12) | PLACES | ODD_WORDS
NUMBERS = st.integers(-3, 300) | st.floats() | ODD_NUMBERS
NESTED = st.recursive(
    NUMBERS | TEXT | st.none() | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
        | st.tuples(inner)
    ),
    max_leaves=4,
)
ODD = NUMBERS | TEXT | ODD_NUMBERS | PLACES | ODD_WORDS | NESTED
HYPER = sorted({path for method in kit.METHODS.values() for path in method.hyper_parameters()})
NAMES = st.sampled_from([*RECIPE_FIELDS, "burn_in", *HYPER])
#: Values that some setting or other takes, so that not all is refused.
FITTING = (
    st.integers(0, 30)
    | st.floats(0, 1)
    | st.sampled_from(
        [
            "linf",
            "l2",
            "cnn",
            "digits",
            "none",
            "ce",
            "crop",
            "fp32",
            [2],
            [1, 3],
            True,
            -0.0,
            0.0,
            0,
            1,
        ]
    )
)
METHOD = st.sampled_from(sorted(kit.METHODS))
OVERRIDES = (
    st.dictionaries(NAMES, FITTING, max_size=2)
    | st.dictionaries(NAMES, ODD, min_size=1, max_size=1)
    | st.dictionaries(NAMES | NUMBERS | TEXT, FITTING, max_size=2)
)


def test_run_settings(home, record_property):
    """A RunSpec is refused in words or resolved; plans share a key exactly where all that decides
    the result is equal, and a run's words, read back from its run.json, are the same run.
    """
    seen, keys = Counter(), {}
    one = st.builds(
        lambda name, value: {name: value},
        st.sampled_from(["method", "recipe", "seed", "overrides"]),
        ODD,
    )

    @trying(0.4, 150)
    @example({"overrides": {"eps": 0.0}})
    @example({"seed": 10**5000})
    @example({"recipe": "folder:~nobody/x"})
    @given(
        given=one
        | st.builds(lambda place: {"recipe": place}, PLACES)
        | st.fixed_dictionaries({"method": METHOD, "overrides": OVERRIDES})
        | st.builds(lambda some: {"overrides": some}, OVERRIDES)
    )
    def attempt(given):
        with soon():
            try:
                plan = resolve(RunSpec(**{"method": "mail-at", **given}))
            except KitError as error:
                assert 0 < len(str(error)) < 10_000
                seen["settings of a run", "refused in words"] += 1
                return
            config = json.dumps(plan.config(), sort_keys=True)
            assert keys.setdefault(plan.key, config) == config, "two settings share a key"
            assert json.loads(config) == plan.config(), "what decides the result is JSON"
            again = resolve(RunSpec(**json.loads(json.dumps(plan.spec.words()))))
            assert (again.key, again.burn_in_key, again.stack_key) == (
                plan.key,
                plan.burn_in_key,
                plan.stack_key,
            )
            assert (
                plan.folder_name.endswith(plan.key) and str(plan.spec) and str(plan.recipe.threat)
            )
            for name, value in plan.spec.overrides.items():
                with contextlib.suppress(KitError):  # where a whole number is meant, 1.0 is none
                    other = resolve(
                        RunSpec(
                            plan.spec.method,
                            overrides={**plan.spec.overrides, name: _otherwise(value)},
                        )
                    )
                    assert other.key == plan.key or plan.spec.recipe != "digits", (
                        "one setting has two keys"
                    )
        seen["settings of a run", "accepted"] += 1

    attempt()
    assert seen["settings of a run", "accepted"] > 5
    record_property("faults", rows_of(seen))


def _otherwise(value: object) -> object:
    """The same value, written otherwise."""
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return -float(value) if value == 0 else float(value)
    return tuple(value) if isinstance(value, list) else value


def test_overrides_in_words(home, record_property):
    """What stands behind --set, and in a notebook's `overrides`."""
    seen = Counter()
    value = TEXT | ODD_WORDS | st.integers(0, 9).map(str) | st.floats(0, 1).map(str)
    word = st.tuples(NAMES | TEXT, st.sampled_from(["=", "=", "=", "==", "", " = "]), value).map(
        "".join
    )

    @trying(0.15, 100)
    @example("eps=1/" + "9" * 5000, "at")
    @example("eps=" + "9" * 400 + "/3", "at")
    @example("milestones=" + "[" * 3000, "at")
    @example("milestones=[1, 2]", "at")
    @example("eps=0.1 eps=0.2", "at")
    @given(text=word | st.lists(word, max_size=3).map(" ".join) | TEXT, method=METHOD)
    def attempt(text, method):
        with soon():
            try:
                resolve(RunSpec(method, overrides=parse_overrides(text)))
            except KitError:
                seen["overrides in words", "refused in words"] += 1
            else:
                seen["overrides in words", "accepted"] += 1

    attempt()
    assert seen["overrides in words", "accepted"]
    record_property("faults", rows_of(seen))


def test_notebook_parameters(home, record_property):
    names, seen = ("02_", "07_", "08_", "11_", "teach_train_live"), Counter()
    tables = [
        parameter_cells.notebook_parameters(path)
        for path in notebook_jobs.choose_notebooks(list(names))
    ]

    @trying(0.15, 60)
    @given(table=st.sampled_from(tables), given=st.data())
    def attempt(table, given):
        values = given.draw(
            st.dictionaries(st.sampled_from([*table]) | TEXT, ODD | ODD_WORDS | METHOD, max_size=2)
        )
        with soon():
            try:
                found = parameter_cells.check_parameters(table, values)
            except KitError:
                seen["notebook parameters", "refused in words"] += 1
            else:
                assert set(found.given) == set(table) and found.plans
                seen["notebook parameters", "accepted"] += 1

    attempt()
    record_property("faults", rows_of(seen))


def test_parts_of_settings(home, record_property):
    """Threats, recipes' fields, attacks' and methods' own settings, given by name from Python."""
    seen = Counter()

    def accept(what: str, make: Callable) -> object:
        with soon():
            try:
                found = make()
            except KitError as error:
                assert str(error)
                seen[what, "refused in words"] += 1
            else:
                seen[what, "accepted"] += 1
                return found

    @trying(0.15, 100)
    @given(
        norm=st.sampled_from(["linf", "l2"]) | ODD,
        eps=st.floats(0, 1.7e308) | ODD,
        method=METHOD,
        row=st.sampled_from(sorted(kit.RECIPES)),
        fields=st.dictionaries(st.sampled_from(RECIPE_FIELDS) | TEXT, ODD, max_size=2),
        attack=st.sampled_from(sorted(ATTACKS)),
        given=st.data(),
    )
    def attempt(norm, eps, row, fields, method, attack, given):
        threat = accept("threat", lambda: Threat(norm, eps))
        assert threat is None or (threat.eps >= 0 and str(threat))
        accept("fields of a recipe", lambda: find_recipe(row).override(**fields))
        changes = given.draw(
            st.dictionaries(
                st.sampled_from([*ATTACKS[attack].defaults, "steps"]) | TEXT, ODD, max_size=2
            )
        )
        other = accept("settings of an attack", lambda: ATTACKS[attack].but(**changes))
        assert other is None or json.dumps(other.config())
        part = kit.METHODS[method].loss
        changes = given.draw(
            st.dictionaries(st.sampled_from([*part.params, "beta"]) | TEXT, ODD, max_size=2)
        )
        accept("settings of a part", lambda: part.but(**changes))

    attempt()
    record_property("faults", rows_of(seen))


WORDS = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=8
) | st.sampled_from(
    [
        "at",
        "mail-at",
        "digits",
        "mnist",
        "pgd20",
        "clirat",
        "vir",
        "--set",
        "--seed",
        "--seeds",
        "--recipe",
        "--only",
        "--n",
        "--jobs",
        "--attacks",
        "--device",
        "cpu",
        "cuda:99",
        "0",
        "1",
        "-1",
        "01",
        "9" * 5000,
        "epochs=0",
        "eps=1/0",
        "lr=nan",
        "a=b",
        "weight.slope=x",
        "seeds=0",
        "attacks=pgd21",
        "overrides=eps=-1",
        "milestones=[3,2]",
        "steps=2",
        "--",
        "-h",
    ]
)
COMMANDS = st.sampled_from(
    [
        [],
        ["list"],
        ["list", "runs"],
        ["explain"],
        ["compare", "clirat"],
        ["compare", "--set"],
        ["train"],
        ["evaluate"],
        ["train", "at", "--set"],
        ["audit", "x"],
        ["runs"],
        ["runs", "verify"],
        ["runs", "import"],
        ["reproduce", "--plan"],
        ["reproduce", "--plan", "--only", "02", "--set"],
    ]
)


def test_command_lines(tmp_path, monkeypatch, record_property):
    """Any words behind `python -m kit`: it ends with 0, 1 or 2, and bad input in one line."""

    def never(*args, **kwargs):
        raise KitError("not in this test")

    monkeypatch.setenv("KIT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "fit_plans", never)
    monkeypatch.setattr(reproduction, "forecast_seconds", never)
    monkeypatch.setattr(reproduction, "reproduce", never)
    seen = Counter()

    @trying(0.15, 40)
    @given(command=COMMANDS, words=st.lists(WORDS, max_size=4))
    def attempt(command, words):
        with (
            soon(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()) as complaint,
        ):
            try:
                code = main([*command, *words])
            except SystemExit as end:  # argparse's way to end
                code = end.code
        assert code in (0, 1, 2) and "Traceback" not in complaint.getvalue()
        assert code != 2 or complaint.getvalue().strip()
        seen["command lines", "accepted" if code == 0 else "refused in words"] += 1

    attempt()
    record_property("faults", rows_of(seen))
