"""Stored runs between machines: verified, written to one archive, read from one.

An archive is a tar of run folders behind a manifest with the SHA-256 of every file. What comes in
is unpacked beside the runs, verified, and moved to its place, done.json last; nothing in it is
executed, and no name in it leads elsewhere.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from kit.core.errors import KitError
from kit.core.files import file_digest, load_arrays, load_checkpoint, lock_folder, write_bytes
from kit.evaluation.accuracy import read_evaluation
from kit.experiments.runs import Run, find_run, is_done, read_run_record, run_folders, runs_folder
from kit.experiments.specification import RunSpec, resolve

MANIFEST_NAME = "manifest.json"

_EXPECTED = "Expected is a file that `python -m kit runs export` wrote"

#: Files of a run that travel; what was set aside, locked or half written stays.
ARCHIVED_FILES = re.compile(
    r"(run|done|branched)\.json|history\.csv|final\.npz|[\w.-]+\.ckpt|(epochs|evaluations)/\w+\.npz|"
    r"snapshots/\w+\.ckpt"
)


def run_files(folder: Path) -> list[str]:
    """The names, below its folder, of the files that make up a run."""
    names = (
        path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()
    )
    return [name for name in names if ARCHIVED_FILES.fullmatch(name)]


def verify_run(folder: Path) -> list[str]:
    """What is wrong with a stored run, a line for each file; [] if all of it is whole.

    Checkpoints have a SHA-256, arrays a CRC; done.json has the SHA-256 of every file of a finished
    run, and the key is compared with the settings'.
    """
    problems = []

    def attempt(look: Callable, *words: object) -> Any:
        try:
            return look(*words)
        except KitError as error:
            problems.append(str(error))
            return None

    record = attempt(read_run_record, folder, "run.json")
    if record is not None:
        try:
            key = resolve(RunSpec(**record["spec"])).key
            if key != record["key"]:
                problems.append(
                    f"{folder.name}: run.json's settings have the key {key} in this version of the "
                    f"kit; a run "
                    "of those settings is trained anew"
                )
        except (KitError, KeyError, TypeError) as error:
            problems.append(f"{folder / 'run.json'} names no run of this kit: {error}")
    done = attempt(read_run_record, folder, "done.json") if is_done(folder) else None
    written = done["files"] if done else {}
    for name, digest in written.items():
        if not (folder / name).exists():
            problems.append(f"{folder / name} is missing")
        elif attempt(file_digest, folder / name) != digest:
            problems.append(f"{folder / name} is damaged, or not what the training wrote")
    for name in run_files(folder):
        if name.startswith("evaluations/"):
            attempt(read_evaluation, folder / name, folder.name.rsplit("-", 1)[-1])
        elif name not in written and name.endswith((".npz", ".ckpt")):
            attempt(load_arrays if name.endswith(".npz") else load_checkpoint, folder / name)
    return problems


def select_folders(keys: Sequence[str]) -> list[Path]:
    """The folders of the named runs, or of all. `KitError` for a name that fits none or several."""
    return [find_run(key).folder for key in keys] if keys else run_folders()


def export_runs(path: Path, keys: Sequence[str] = ()) -> list[Run]:
    """Write runs (all, where none is named) to a tar at `path`, each verified before.

    Raises:
        KitError: for an unfinished or damaged run, no runs, or a file that cannot be written.
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
        if problems := verify_run(folder):
            raise KitError(
                f"{folder.name} is damaged, nothing was exported: {problems[0]}. Restore it, or "
                "name the runs to export"
            )
    names = [(folder, name) for folder in folders for name in run_files(folder)]
    manifest = {
        f"{folder.name}/{name}": hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for folder, name in names
    }
    partial = path.with_name(f".{path.name}.tmp")
    try:
        with tarfile.open(partial, "w") as archive:
            head = tarfile.TarInfo(MANIFEST_NAME)
            blob = json.dumps(manifest, indent=1).encode()
            head.size = len(blob)
            archive.addfile(head, io.BytesIO(blob))
            for folder, name in names:
                archive.add(folder / name, f"{folder.name}/{name}", recursive=False)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise KitError(
            f"cannot write {path}: {error.strerror or error}. Name a file in a folder that is "
            "there and can be written"
        ) from error
    return [find_run(folder.name) for folder in folders]


def import_runs(path: Path) -> list[tuple[str, str]]:
    """Runs from the archive at `path`. -> (folder name, "imported" or "already there") of each.

    Errors: `KitError` for a file that is no archive of this kit, holds anything that its manifest
    does not name, or a run that does not pass `verify`; then nothing of it is kept.
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
                    "when it is"
                )
        for folder in folders:
            target = runs_folder() / folder.name
            with lock_folder(target):
                there = is_done(target)
                if not there:
                    for name in sorted(
                        run_files(folder), key=lambda name: name == "done.json"
                    ):  # done.json last
                        (target / name).parent.mkdir(parents=True, exist_ok=True)
                        shutil.move(folder / name, target / name)
            found.append((folder.name, "already there" if there else "imported"))
    return found


def _unpack_archive(path: Path, place: Path) -> list[Path]:
    """The run folders of an archive, unpacked below `place`.

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
                    f"{path} is no archive of runs: it does not begin with a manifest. {_EXPECTED}"
                )
            manifest = json.loads(archive.extractfile(first).read())
            if not isinstance(manifest, dict) or not manifest:
                raise KitError(f"{path} is no archive of runs: its manifest is empty. {_EXPECTED}")
            left, largest = dict(manifest), path.stat().st_size
            while (member := archive.next()) is not None:
                folder, _, name = member.name.partition("/")
                plain = (
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
                        f"{path} holds '{member.name}', which is no file of a run; nothing was "
                        f"imported. {_EXPECTED}"
                    )
                blob = archive.extractfile(member).read()
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
    return [folder for folder in sorted(place.iterdir()) if folder.is_dir()]
