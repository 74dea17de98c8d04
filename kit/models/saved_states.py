"""Checkpoints as they are found in the field: a file to named tensors, and no code is run.

Read are what `torch.save` wrote of a state dict, bare or inside a dict, safetensors where that
package is installed, and checkpoints of the kit's own runs.
"""

from __future__ import annotations

import importlib.util
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kit.core.errors import KitError
from kit.core.files import MAGIC, load_checkpoint, locate

#: Keys under which a checkpoint keeps its state dict; the first that is there is taken.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "ema", "ema_state_dict")

#: How files begin that `torch.save` or `pickle` wrote.
PICKLES = (b"PK\x03\x04", b"\x80")


def read_saved_state(path: Path | str) -> dict[str, Tensor]:
    """Read the state dict of the file at `path`, on the CPU.

    Raises:
        KitError: The file is missing, damaged, a full pickle, or holds no state dict.
    """
    place = locate(str(path))
    if place.is_dir():
        raise KitError(f"{place} is a folder; expected a checkpoint in it, such as model.pt")
    if not place.is_file():
        raise KitError(f"there is no file {place}; expected a checkpoint such as model.pt")
    return find_state(_read_tensors(place), place)


def find_state(saved: Any, place: Path) -> dict[str, Tensor]:
    """Return the state dict in what a file holds: itself, or what lies under `CONTAINERS`.

    Raises:
        KitError: There is none.
    """
    if isinstance(saved, Mapping):
        if saved and all(isinstance(value, Tensor) for value in saved.values()):
            return {str(name): value for name, value in saved.items()}
        for key in CONTAINERS:
            if isinstance(saved.get(key), Mapping):
                return find_state(saved[key], place)
    held = (
        f"a dict of {', '.join(map(str, list(saved)[:8])) or 'nothing'}"
        if isinstance(saved, Mapping)
        else type(saved).__name__
    )
    raise KitError(
        f"{place} holds no state dict: it is {held}. Expected are named tensors, bare or under "
        f"{', '.join(CONTAINERS)}"
    )


def _read_tensors(place: Path) -> Any:
    """What the file holds: tensors, numbers, text, lists and dicts."""
    if place.suffix == ".safetensors":
        return _read_safetensors(place)
    with open(place, "rb") as file:
        start = file.read(len(MAGIC))
    if start == MAGIC:
        return load_checkpoint(place)
    if not start:
        raise KitError(f"{place} is empty. Copy or download it again")
    try:
        with warnings.catch_warnings(action="ignore"):  # what torch warns of is refused in words
            return torch.load(place, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not start.startswith(PICKLES):
            raise _damaged(place, error) from error
        raise KitError(
            f"{place} is a full pickle: loading it would run code from the file, so nothing of it "
            "was read. If you trust it, load it with its own project and save its weights "
            "alone: torch.save(model.state_dict(), 'weights.pt')"
        ) from error
    except Exception as error:  # zip, torch and the decoding of names each have their own
        if "TorchScript" in str(error):
            raise KitError(
                f"{place} is a TorchScript program, not a state dict. Load it with torch.jit.load "
                "and save its state_dict()"
            ) from error
        raise _damaged(place, error) from error


def _damaged(place: Path, error: Exception) -> KitError:
    first = re.split(r"\n|\. ", str(error).strip())[0][:150]
    why = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return KitError(
        f"{place} is damaged, cut short, or not a checkpoint of PyTorch ({why}). Copy or "
        "download it again"
    )


def _read_safetensors(place: Path) -> dict[str, Tensor]:
    if importlib.util.find_spec("safetensors") is None:
        raise KitError(
            f"{place.name} needs the package safetensors, which is not installed; `pip install "
            "safetensors`"
        )
    from safetensors.torch import load_file

    try:
        return load_file(place)
    except Exception as error:  # its own error, and those of the operating system
        raise _damaged(place, error) from error
