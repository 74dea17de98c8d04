"""Files that survive: atomic writes, checksums and locks. It knows nothing of training.

Everything lives below `home()`: `data/` for data sets, `data/runs/<name>-<key>/` for runs. A file
is written beside its place and moved there in one step, so that a reader sees the old one or the
new one, never half of one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kit.core.environment import home_choice
from kit.core.errors import KitError, describe_value

#: The folder of the package, and the checkout that holds it.
PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent

MAGIC = b"irat-kit checkpoint 1\n"


def home() -> Path:
    """Where data, runs and figures go: KIT_HOME, else the folder that holds the `kit` package."""
    return home_choice() or CHECKOUT


def locate(path: str) -> Path:
    """The path that a user wrote; a relative one is searched for here, then in `home()`.

    Raises:
        KitError: This machine can have no such path.
    """
    try:
        found = Path(path).expanduser()
        found = found if found.is_absolute() or found.exists() else home() / found
        found.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, of no user, with a zero in it
        raise KitError(
            f"{describe_value(path)} is not a path that this machine can read: "
            f"{getattr(error, 'strerror', None) or error}"
        ) from error
    return found


# -------------------------------------------------------------------------------------------- files


def write_bytes(path: Path, payload: bytes) -> str:
    """Write `payload` to `path` in one step and return its SHA-256 once it is on the disk.

    Raises:
        KitError: The file cannot be written; what was saved before is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise KitError(
            f"cannot write {path}: {error.strerror or error}. What was saved before is intact; "
            "make room or choose another folder with KIT_HOME"
        ) from error
    return hashlib.sha256(payload).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of the file at `path`, in hex digits.

    Raises:
        KitError: The file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise KitError(f"cannot read {path}: {error.strerror or error}") from error


def write_json(path: Path, record: Any) -> str:
    """Write `record` as JSON to `path`, in one step, and return the file's SHA-256."""
    return write_bytes(path, (json.dumps(record, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """The record in the JSON file at `path`.

    Raises:
        KitError: The file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise KitError(
            f"{path} is missing or is not JSON ({error}); delete its folder to start that "
            "work afresh"
        ) from error


def write_sealed_json(path: Path, record: dict[str, Any]) -> str:
    """Write a JSON file that begins with the SHA-256 of its name and the rest.

    It returns the SHA-256 of the file.
    """
    return write_json(path, {"sha256": _seal(path, record), **record})


def read_sealed_json(path: Path) -> dict[str, Any]:
    """The record that `write_sealed_json` wrote.

    Raises:
        KitError: A value in it was altered since, or the file had another name.
    """
    record = read_json(path)
    if not isinstance(record, dict) or record.pop("sha256", None) != _seal(path, record):
        raise KitError(
            f"{path} was altered, or comes from a version of the kit that wrote no checksum into "
            "it; restore it, or delete its folder to start that work afresh"
        )
    return record


def _seal(path: Path, record: dict[str, Any]) -> str:
    return hashlib.sha256(f"{path.name} {json.dumps(record, sort_keys=True)}".encode()).hexdigest()


def save_checkpoint(path: Path, state: Any) -> str:
    """Write a checkpoint behind a SHA-256 of its bytes, and return the file's SHA-256.

    `state`: tensors, numbers, text, lists and dicts.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    return write_bytes(path, MAGIC + hashlib.sha256(payload).digest() + payload)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Any:
    """The checkpoint at `path`, on `device`. No code from it is run.

    Raises:
        KitError: The file is missing, truncated, altered or foreign.
    """
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise KitError(
            f"cannot read the checkpoint {path}: {error.strerror or error}. Restore it, or delete "
            "its folder to start that work afresh"
        ) from error
    head = len(MAGIC)
    seal, payload = blob[head : head + 32], blob[head + 32 :]
    if not blob.startswith(MAGIC):
        raise KitError(
            f"{path} is not a checkpoint of this kit: it begins with other bytes. Restore it, or "
            "delete its folder to start that work afresh"
        )
    if hashlib.sha256(payload).digest() != seal:
        raise KitError(
            f"the checkpoint {path} is damaged: its checksum does not match. Restore it, or delete "
            "its folder to start that work afresh"
        )
    try:
        return torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    except Exception as error:  # pickle, zip and torch each have their own
        raise KitError(
            f"{path} is a foreign checkpoint: it holds something other than tensors, numbers and "
            "text, and nothing of it was run"
        ) from error


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """Write named arrays as one .npz, and return the file's SHA-256.

    Each entry carries a CRC.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy declares allow_pickle beside them
    return write_bytes(path, buffer.getvalue())


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays at `path`, by name.

    Raises:
        KitError: The file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, zlib, struct, tokenize and numpy each have their own
        raise KitError(f"cannot read {path}: {error}") from error


# ---------------------------------------------------------------------------------- locks and lists


@contextlib.contextmanager
def lock_folder(folder: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold `folder` for this process.

    The operating system lets go when its owner dies, however it dies. `waiting` is called once if
    somebody else holds it. Network file systems keep this promise only as far as their flock does.

    Raises:
        KitError: The folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / ".lock", "w")  # noqa: SIM115 - held for the whole context
    except OSError as error:
        raise KitError(
            f"cannot write to {folder}: {error.strerror or error}. Choose another with KIT_HOME"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def quarantine(path: Path) -> Path:
    """Move a damaged file out of the way and keep it: `<name>.damaged-<time>`."""
    kept = path.with_name(f"{path.name}.damaged-{int(time.time() * 1000)}")
    os.replace(path, kept)
    return kept
