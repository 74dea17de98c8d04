"""Stored runs between machines: verify them, export them to an archive, import them from one.

An archive is a tar of run folders behind a manifest with the SHA-256 of every file. Images that a
user brought for an adopted network travel with it. What comes in is unpacked beside the runs,
verified, and moved to its place, done.json last; nothing in it is executed, and no name in it leads
elsewhere.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from kit.core.errors import KitError
from kit.core.files import (
    file_digest,
    home,
    load_arrays,
    load_checkpoint,
    lock_folder,
    write_bytes,
)
from kit.data.own_images import check_own_file, find_own_file, is_own
from kit.evaluation.accuracy import read_evaluation
from kit.experiments.runs import Run, find_run, is_done, read_run_record, run_folders, runs_folder
from kit.experiments.specification import RunSpec, resolve
from kit.models.architectures import find_builder
from kit.training.adoption import KeptNetwork

MANIFEST_NAME = "manifest.json"

_EXPECTED = "Expected is a file that `python -m kit runs export` wrote"

#: Files of a run that travel; what was quarantined, locked or half written stays.
ARCHIVED_FILES = re.compile(
    r"(run|done|branched)\.json|history\.csv|final\.npz|[\w.-]+\.ckpt|(epochs|evaluations)/\w+\.npz|"
    r"snapshots/\w+\.ckpt"
)

#: A user's images in an archive; their name is a digest of them.
OWN_IMAGES = re.compile(r"own/[0-9a-f]{12}\.npz")


def run_files(folder: Path) -> list[str]:
    """List the names, below its folder, of the files that make up a run."""
    names = (
        path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()
    )
    return [name for name in names if ARCHIVED_FILES.fullmatch(name)]


def verify_run(folder: Path) -> list[str]:
    """List what is wrong with a stored run, a line for each file; [] if nothing is.

    Every file must be whole and belong to the run. Checkpoints have a SHA-256, arrays a CRC;
    done.json has the SHA-256 of every file of a finished run, and the key is compared with the
    settings'.
    """
    problems: list[str] = []
    record = _attempt(problems, read_run_record, folder, "run.json")
    if record is not None:
        problems += _wrong_settings(folder, record)
    done = _attempt(problems, read_run_record, folder, "done.json") if is_done(folder) else None
    written = done["files"] if done else {}
    for name, digest in written.items():
        if not (folder / name).exists():
            problems.append(f"{folder / name} is missing")
        elif _attempt(problems, file_digest, folder / name) != digest:
            problems.append(f"{folder / name} is damaged, or not what the training wrote")
    for name in run_files(folder):
        if name.startswith("evaluations/"):
            key = folder.name.rsplit("-", 1)[-1]
            _attempt(problems, read_evaluation, folder / name, key)
        elif name not in written and name.endswith((".npz", ".ckpt")):
            read: Callable[[Path], Any] = load_arrays if name.endswith(".npz") else load_checkpoint
            _attempt(problems, read, folder / name)
    return problems


def _attempt(problems: list[str], read: Callable[..., Any], *words: object) -> Any:
    """What `read` reads; None where it fails, and what is wrong is added to `problems`."""
    try:
        return read(*words)
    except KitError as error:
        problems.append(str(error))
        return None


def _wrong_settings(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """What is wrong with the settings that run.json records; [] if they have the run's key."""
    try:
        key = resolve(RunSpec(**record["spec"])).key
        if key == record["key"]:
            return []
        return [
            f"{folder.name}: run.json's settings have the key {key} in this version of the kit; a "
            "run of those settings is trained anew"
        ]
    except (KitError, KeyError, TypeError) as error:
        return [f"{folder / 'run.json'} names no run of this kit: {error}"]


def _own_code(folder: Path) -> str:
    """Return the architecture of a network that only the process knows which adopted it, or ""."""
    model = read_run_record(folder, "run.json")["spec"].get("overrides", {}).get("model", "")
    try:
        known = not model or not isinstance(find_builder(model), KeptNetwork)
    except KitError:
        known = False
    return "" if known else model


def select_folders(keys: Sequence[str]) -> list[Path]:
    """List the folders of the named runs, or of all.

    Raises:
        KitError: A name fits no run, or several.
    """
    return [find_run(key).folder for key in keys] if keys else run_folders()


def export_runs(path: Path, keys: Sequence[str] = ()) -> list[Run]:
    """Write runs, or all, to a tar at `path`, each verified before.

    The images that a user brought for an adopted network are written with it.

    Raises:
        KitError: A run is unfinished or damaged, or its own images are; there are no runs, or the
            file cannot be written.
    """
    folders = select_folders(keys)
    if not folders:
        raise KitError(
            "there are no stored runs to export; `python -m kit train METHOD` makes one, and "
            "KIT_HOME says where they are looked for"
        )
    for folder in folders:
        if not is_done(folder):
            raise KitError(
                f"{folder.name} is not finished; train it to its end first, or name the runs to "
                "export"
            )
        if model := _own_code(folder):
            raise KitError(
                f"{folder.name}: the network '{model}' is defined by code that no archive holds. "
                "Adopt it by a row of kit.MODELS, or name the runs to export"
            )
        if problems := verify_run(folder):
            raise KitError(
                f"{folder.name} is damaged, nothing was exported: {problems[0]}. Restore it, or "
                "name the runs to export"
            )
    members = _archived_images(folders) | {
        f"{folder.name}/{name}": folder / name for folder in folders for name in run_files(folder)
    }
    manifest = {
        name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in members.items()
    }
    partial = path.with_name(f".{path.name}.tmp")
    try:
        with tarfile.open(partial, "w") as archive:
            head = tarfile.TarInfo(MANIFEST_NAME)
            blob = json.dumps(manifest, indent=1).encode()
            head.size = len(blob)
            archive.addfile(head, io.BytesIO(blob))
            for name, file in members.items():
                archive.add(file, name, recursive=False)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise KitError(
            f"cannot write {path}: {error.strerror or error}. Name a file in a folder that is "
            "there and can be written"
        ) from error
    return [find_run(folder.name) for folder in folders]


def _archived_images(folders: Sequence[Path]) -> dict[str, Path]:
    """Return {name in an archive: file} of the images that a user brought for these runs.

    Raises:
        KitError: They are not here, or damaged.
    """
    files = {}
    names = dict.fromkeys(find_run(folder.name).plan.recipe.data for folder in folders)
    for name in filter(is_own, names):
        file = find_own_file(name, home() / "data")
        check_own_file(file)
        files[f"own/{file.name}"] = file
    return files


def import_runs(path: Path) -> list[tuple[str, str]]:
    """Import the runs of the archive at `path`.

    Returns:
        (folder name, "imported" or "already there") of each run.

    Raises:
        KitError: The file is no archive of this kit, holds anything that its manifest does not
            name, or holds a run that does not pass `verify_run`; then nothing of it is kept.
    """
    runs_folder().mkdir(parents=True, exist_ok=True)
    found = []
    with tempfile.TemporaryDirectory(dir=runs_folder(), prefix=".import-") as place:
        folders = _unpack_archive(path, Path(place))
        for folder in folders:
            if problems := verify_run(folder):
                raise KitError(
                    f"{path}: {folder.name} is not whole, nothing was imported: {problems[0]}. "
                    "Export it again where it comes from"
                )
            if not is_done(folder):
                raise KitError(
                    f"{path}: {folder.name} is not finished, nothing was imported. Export it again "
                    "when it is finished"
                )
        _take_own_images(Path(place), path)
        for folder in folders:
            target = runs_folder() / folder.name
            with lock_folder(target):
                there = is_done(target)
                if not there:
                    # done.json is moved last: it says that all the others are there.
                    for name in sorted(run_files(folder), key=lambda name: name == "done.json"):
                        (target / name).parent.mkdir(parents=True, exist_ok=True)
                        shutil.move(folder / name, target / name)
            found.append((folder.name, "already there" if there else "imported"))
    return found


def _take_own_images(place: Path, path: Path) -> None:
    """Move a user's images from where the archive `path` was unpacked to where runs look for them.

    Raises:
        KitError: They are not those of their name.
    """
    images = sorted(place.glob("own/*.npz"))
    problems: list[str] = []
    for file in images:
        _attempt(problems, check_own_file, file)
    if problems:
        raise KitError(f"{path}: {problems[0]}; nothing was imported")
    kept = home() / "data" / "own"
    for file in images:
        kept.mkdir(parents=True, exist_ok=True)
        if not (kept / file.name).exists():
            shutil.move(file, kept / file.name)


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    assert stream is not None, f"{member.name} is no regular file"
    return stream.read()


def _unpack_archive(path: Path, place: Path) -> list[Path]:
    """Unpack an archive below `place`, and list its run folders.

    Every file is as the manifest has it, and there is no other.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            first = archive.next()
            if (
                first is None
                or first.name != MANIFEST_NAME
                or not first.isreg()
                or first.size > 2**26
            ):
                raise KitError(
                    f"{path} is not an archive of runs: it does not begin with a manifest. "
                    f"{_EXPECTED}"
                )
            manifest = json.loads(_read_member(archive, first))
            if not isinstance(manifest, dict) or not manifest:
                raise KitError(
                    f"{path} is not an archive of runs: its manifest is empty. {_EXPECTED}"
                )
            left, largest = dict(manifest), path.stat().st_size
            while (member := archive.next()) is not None:
                folder, _, name = member.name.partition("/")
                plain = OWN_IMAGES.fullmatch(member.name) or (
                    re.fullmatch(r"[\w][\w.-]*", folder)
                    and ARCHIVED_FILES.fullmatch(name)
                    and ".." not in member.name
                )
                if (
                    not plain
                    or not member.isreg()
                    or member.size > largest
                    or member.name not in left
                ):
                    raise KitError(
                        f"{path} holds '{member.name}', which is not a file of a run; nothing was "
                        f"imported. {_EXPECTED}"
                    )
                blob = _read_member(archive, member)
                if hashlib.sha256(blob).hexdigest() != left.pop(member.name):
                    raise KitError(
                        f"{path}: '{member.name}' is damaged; nothing was imported. Copy the "
                        "archive again, or export it again"
                    )
                write_bytes(place / PurePosixPath(member.name), blob)
    except FileNotFoundError as error:
        raise KitError(f"there is no file {path}. {_EXPECTED}") from error
    except KitError:
        raise
    except Exception as error:  # tarfile, json and the decoding of names each have their own
        raise KitError(f"cannot read {path} as an archive of runs: {error}. {_EXPECTED}") from error
    if left:
        raise KitError(
            f"{path} lacks {len(left)} files of its manifest, say '{next(iter(left))}'; nothing "
            "was imported. Copy the archive again, or export it again"
        )
    return [
        folder for folder in sorted(place.iterdir()) if folder.is_dir() and folder.name != "own"
    ]
