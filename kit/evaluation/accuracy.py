"""How often is the network right, under which attack, and how sure is that?

It is counted per example and kept. An attack's verdicts are stored in the run's folder under a key
of their own: asking again costs nothing, and a new attack retrains nothing. Random starts depend on
the example's id, so batch size and order change no result.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from kit.attacks.contract import check_inputs, check_is_network, frozen
from kit.attacks.table import ATTACKS, Attack
from kit.core.errors import KitError, unknown_name
from kit.core.files import load_arrays, save_arrays
from kit.core.progress import Progress, silenced
from kit.core.random_streams import Streams
from kit.core.threads import run_in_threads, stop_if_abandoned
from kit.core.threat import Threat
from kit.data.splits import Split
from kit.evaluation.own_data import attacked_images
from kit.evaluation.statistics import wilson
from kit.experiments.devices import lost_device_told, pick_device, spare_threads, threads_for
from kit.experiments.runs import Run, is_done

ATTACK_BATCH = {"cpu": 256, "cuda": 2048, "mps": 512}

#: {first image: arrays of a batch that begins there}.
BatchArrays = dict[int, dict[str, np.ndarray]]

#: What an evaluation keeps that is not per example.
NOT_PER_EXAMPLE = ("seconds", "settings", "run", "notes")


def measure_attack(
    model: nn.Module,
    split: Split,
    threat: Threat,
    attack: Attack,
    *,
    seed: int = 0,
    partial: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Attack every image of `split`, and return what the attack found per example.

    The arrays (n,) are the fields of `AttackResult` but x_adv, and y and ids; "notes" are words on
    what `check_inputs` found odd. With a folder `partial`, finished batches are kept there and an
    interrupted call does the others; random starts depend on an example's id alone, so the result
    is the same. Where a device's memory runs out, batches are halved. A small network's batches go
    through copies of it in `spare_threads` side by side.

    Raises:
        KitError: The model returns probabilities or NaN, or there are labels that it does not know.
    """
    notes = check_inputs(model, split.x(slice(0, 256)), split.y[:256])
    pieces, gaps = _kept_pieces(partial, split.ids.cpu().numpy())
    threads = spare_threads()
    size = min(ATTACK_BATCH[split.y.device.type], -(-len(split) // threads))
    task = _AttackTask(split, threat, attack, seed, partial, size)
    networks: SimpleQueue[nn.Module] = SimpleQueue()
    for _ in range(threads):
        networks.put(model if threads == 1 else copy.deepcopy(model))

    def work(begin: int, end: int) -> BatchArrays:
        network = networks.get()
        scripted = isinstance(network, torch.jit.ScriptModule)  # it takes no hooks
        hook = None if scripted else network.register_forward_pre_hook(stop_if_abandoned)
        try:
            return _attack_range(task, network, begin, end)
        finally:
            if hook is not None:
                hook.remove()
            networks.put(network)

    for found in run_in_threads(work, _batch_ranges(task, gaps), threads):
        pieces |= found
        if progress is not None:
            done = sum(len(piece["y"]) for piece in pieces.values())
            progress.update(done, f"{done} of {len(split)} images")
    ordered = [pieces[begin] for begin in sorted(pieces)]
    return {name: np.concatenate([piece[name] for piece in ordered]) for name in ordered[0]} | {
        "notes": np.array(notes, dtype="U300")
    }


@dataclass
class _AttackTask:
    """What an evaluation attacks, and the size of its batches, which halves where memory ends."""

    split: Split
    threat: Threat
    attack: Attack
    seed: int
    partial: Path | None
    batch_size: int


def _batch_ranges(task: _AttackTask, gaps: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of each batch; the size is read anew for each of them."""
    for begin, end in gaps:
        while begin < end:
            yield begin, (begin := min(begin + task.batch_size, end))


def _attack_range(task: _AttackTask, network: nn.Module, begin: int, end: int) -> BatchArrays:
    """Attack the images begin to end; by halves, again and again, where memory runs out."""
    rows = torch.arange(begin, end, device=task.split.y.device)
    try:
        piece = _measure_batch(network, task.split, rows, task.threat, task.attack, task.seed)
    except torch.OutOfMemoryError:
        if end - begin == 1:
            raise KitError(
                "one image alone does not fit into the device's memory; take device=cpu"
            ) from None
    else:
        if task.partial:
            save_arrays(task.partial / f"{begin:06d}.npz", piece)
        return {begin: piece}
    size = task.batch_size = (end - begin) // 2
    print(f"out of memory; going on with {size} images at a time", flush=True)
    first = _attack_range(task, network, begin, begin + size)
    return first | _attack_range(task, network, begin + size, end)


def _kept_pieces(
    partial: Path | None, ids: np.ndarray
) -> tuple[BatchArrays, list[tuple[int, int]]]:
    """Return the whole pieces that are kept in `partial`, and the gaps between them.

    They are {first image: piece}, and [(begin, end)] of the images in none of them.
    """
    pieces: BatchArrays = {}
    gaps: list[tuple[int, int]] = []
    reached = 0
    for path in sorted(partial.glob("[0-9]*.npz")) if partial else ():
        with contextlib.suppress(KitError):
            piece, begin = load_arrays(path), int(path.stem)
            kept = piece.get("ids")
            if kept is not None and np.array_equal(kept, ids[begin:][: len(kept)]):
                pieces[begin] = piece
    for begin in sorted(pieces):
        if begin > reached:
            gaps.append((reached, begin))
        reached = begin + len(pieces[begin]["y"])
    return pieces, [*gaps, (reached, len(ids))]


def _measure_batch(
    model: nn.Module, split: Split, rows: torch.Tensor, threat: Threat, attack: Attack, seed: int
) -> dict[str, np.ndarray]:
    streams = Streams(
        split.ids[rows], "evaluate", seed, json.dumps(attack.config(), sort_keys=True)
    )
    with frozen(model):
        result = attack(model, split.x(rows), split.y[rows], threat, streams)
    names = ("prediction", "broken", "step", "margin", "size", "forwards", "backwards")
    arrays = {name: getattr(result, name).cpu().numpy() for name in names}
    return arrays | {
        "by": np.array(result.by, dtype="U24"),
        "y": split.y[rows].cpu().numpy(),
        "ids": split.ids[rows].cpu().numpy(),
    }


class ExampleArrays(dict):
    """{attack: per-example arrays} as a table's attribute.

    pandas compares and copies attributes at will; these are equal to themselves alone, and shared.
    """

    __hash__ = dict.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __deepcopy__(self, memo: dict) -> ExampleArrays:
        return self


def evaluate(
    run: Run | nn.Module,
    attacks: Sequence[str] = ("natural", "fgsm", "pgd20", "cw20"),
    *,
    split: str = "test",
    n: int = 0,
    which: str | int = "last",
    data: Any = None,
    threat: Threat | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> pd.DataFrame:
    """Measure the accuracy of a run under attacks, one row each, with the run's own threat.

    Columns: accuracy (no iterate of any restart misclassified; the stricter count), low and high
    (its Wilson 95 % interval), last_iterate (accuracy as most papers count: only the last iterate
    can break an image), forwards and backwards (images passed through the network, and gradients,
    per image), n, seconds. `.attrs` holds the per-example arrays: "examples"[attack] with
    prediction, broken, by (the attack that broke it), step (passes until it was broken), margin,
    size of the perturbation, forwards, backwards, y and ids. "notes" says where numbers must be
    read with care: a network that answers differently each time, or gives all images one class.

    split: train, validation or test; n: only the first n images (0 = all); which: last or best
    network, or that of an epoch in `run.snapshots`.

    Any network can take the place of the run, with data=(x, y) and a threat: x (N, C, H, W), uint8
    or floats in [0, 1], y (N,) whole numbers; also a torch Dataset or DataLoader. Nothing is then
    kept.

    Raises:
        KitError: A name is unknown, the split is empty, the network cannot be evaluated, or the
            device was lost.
    """
    names = [attacks] if isinstance(attacks, str) else list(attacks)
    for name in names:
        ATTACKS[name]
    if not isinstance(n, int) or n < 0:
        raise KitError(f"n={n!r} must be a whole number of images, or 0 for all")
    if not isinstance(run, Run):
        return _evaluate_network(run, names, data, threat, n, device, quiet)
    if data is not None or threat is not None:
        raise KitError(
            "a run is evaluated on its own images and threat; pass run.model() in its place, or "
            "adopt it with overrides"
        )
    if split not in ("train", "validation", "test"):
        raise unknown_name("split", split, ("train", "validation", "test"))
    if not is_done(run.folder):
        raise KitError(
            f"{run.spec} is not trained to its end; an evaluation would be kept as that of the "
            "finished network. Train it first"
        )
    where = pick_device(device)
    model: nn.Module | None = None
    images: Split | None = None
    measured = {}
    for name in names:
        settings, path = evaluation_file(run, name, split=split, n=n, which=which)
        if not path.exists():
            if model is None or images is None:
                model = run.model(which, where)
                with silenced(quiet):
                    images = getattr(run.data(), split).take(slice(0, n or None)).to(where)
                if not len(images):
                    raise KitError(f"{run.spec} holds out no {split} images; choose another split")
            partial = path.with_suffix(".partial")
            with threads_for(run.plan.recipe.model, where), lost_device_told():
                arrays = _measure_named(
                    name, model, images, run.plan.recipe.threat, str(run.spec), partial, quiet
                )
            kept = {"settings": np.asarray(json.dumps(settings)), "run": np.asarray(run.key)}
            save_arrays(path, arrays | kept)
            shutil.rmtree(partial, ignore_errors=True)
        measured[name] = read_evaluation(path, run.key)
    return _evaluation_table(measured, run.key, run.record["classes"])


def _evaluate_network(
    model: object,
    names: list[str],
    data: Any,
    threat: Threat | None,
    n: int,
    device: str,
    quiet: bool,
) -> pd.DataFrame:
    """Take `evaluate` of a network that is no run; nothing is kept."""
    check_is_network(model)
    assert isinstance(model, nn.Module)
    images, threat = attacked_images(model, data, threat, n, device)
    if not len(images):
        raise KitError("data holds no images")
    title = type(model).__name__
    measured = {
        name: _measure_named(name, model, images, threat, title, None, quiet) for name in names
    }
    with frozen(model), torch.no_grad():
        classes = model(images.x(slice(0, 1))).shape[1]
    return _evaluation_table(measured, "", [str(k) for k in range(classes)])


def _measure_named(
    name: str,
    model: nn.Module,
    images: Split,
    threat: Threat,
    title: str,
    partial: Path | None,
    quiet: bool,
) -> dict[str, np.ndarray]:
    """Take `measure_attack`, say so, and return its arrays and "seconds"."""
    started = time.monotonic()
    with Progress(f"{name} on {title}", len(images), quiet=quiet) as progress:
        arrays = measure_attack(
            model, images, threat, ATTACKS[name], partial=partial, progress=progress
        )
    seconds = time.monotonic() - started
    for note in () if quiet else arrays["notes"]:
        print(f"WARNING: {title}: {note}", flush=True)
    progress.close(f"{1 - arrays['broken'].mean():.1%} of {len(images)} in {seconds:.1f} s")
    return arrays | {"seconds": np.asarray(seconds)}


def _evaluation_table(
    measured: dict[str, dict[str, np.ndarray]], key: str, classes: list[str]
) -> pd.DataFrame:
    """Lay out what was measured under each attack, as `evaluate` returns it."""
    rows, examples = {}, ExampleArrays()
    notes: dict[str, None] = {}
    for name, arrays in measured.items():
        count, right = len(arrays["y"]), int((~arrays["broken"]).sum())
        low, high = wilson(right, count)
        rows[name] = {
            "accuracy": right / count,
            "low": low,
            "high": high,
            "last_iterate": float((arrays["prediction"] == arrays["y"]).mean()),
            "n": count,
            "forwards": float(arrays["forwards"].mean()),
            "backwards": float(arrays["backwards"].mean()),
            "seconds": float(arrays["seconds"]),
        }
        examples[name] = {
            key: values for key, values in arrays.items() if key not in NOT_PER_EXAMPLE
        }
        notes |= {str(note): None for note in arrays.get("notes", ())}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("attack")
    table.attrs = {"run": key, "examples": examples, "classes": classes, "notes": list(notes)}
    return table


def evaluation_file(
    run: Run, attack: str, *, split: str = "test", n: int = 0, which: str | int = "last"
) -> tuple[dict, Path]:
    """Return all that decides an evaluation, and the file that keeps it once it is made."""
    settings = {
        "attack": ATTACKS[attack].config(),
        "threat": str(run.plan.recipe.threat),
        "split": split,
        "n": n,
        "which": which,
    }
    return settings, run.folder / "evaluations" / f"{_settings_digest(settings)}.npz"


def widest_evaluation(
    run: Run, attack: str, *, n: int = 0, which: str | int = "last"
) -> int | None:
    """Return the `n` of the kept evaluation on most test images, at least `n` (0 = all).

    None if there is none on so many.

    Raises:
        KitError: A file among the run's evaluations is damaged.
    """
    folder = run.folder / "evaluations"
    if not folder.exists():
        return None
    wanted = _settings_digest(evaluation_file(run, attack, which=which)[0])
    found = [
        settings["n"] or math.inf
        for settings in _kept_settings(folder, folder.stat().st_mtime_ns)
        if _settings_digest({**settings, "n": 0}) == wanted
    ]
    most = max(found, default=0)
    if most < (n or math.inf):
        return None
    return 0 if most == math.inf else int(most)


@lru_cache(maxsize=1000)
def _kept_settings(folder: Path, changed: int) -> list[dict[str, Any]]:
    """The settings of all evaluations in a folder, read again whenever it has `changed`."""
    found = []
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as archive:
                found.append(json.loads(str(archive["settings"])))
        except Exception as error:  # zipfile, zlib, json and numpy each have their own
            raise KitError(f"cannot read {path}: {error}. Delete it to evaluate again") from error
    return found


def _settings_digest(settings: dict) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def read_evaluation(path: Path, key: str) -> dict[str, np.ndarray]:
    """Read what `evaluate` kept at `path` of the run with that key.

    Raises:
        KitError: The file is damaged or of something else.
    """
    try:
        arrays = load_arrays(path)
    except KitError as error:
        raise KitError(f"{error}. Delete it to evaluate again") from error
    if (
        str(arrays.get("run")) != key
        or _settings_digest(json.loads(str(arrays["settings"]))) != path.stem
    ):
        raise KitError(
            f"{path} is not the evaluation that belongs there; delete it to evaluate again"
        )
    return arrays
