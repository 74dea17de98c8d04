"""How often is the network right, under which attack, and how sure is that? Counted per example and kept.

An attack's verdicts are stored in the run's folder under a key of their own: asking again costs nothing, and a new
attack retrains nothing. Random starts depend on the example's id, so batch size and order change no result.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pandas as pd
import torch
from torch import nn

from kit import store
from kit.attacks import ATTACKS, Attack, check_inputs, frozen
from kit.data import Split
from kit.progress import Progress
from kit.runs import Run, is_done, spare_threads, threads_for
from kit.runs import device as pick_device
from kit.sidebyside import side_by_side, still_wanted
from kit.types import KitError, Streams, Threat, unknown

BATCH = {"cpu": 256, "cuda": 2048, "mps": 512}
#: What an evaluation keeps that is not per example.
OF_ALL = ("seconds", "settings", "run", "notes")


def wilson(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    share, square = successes / n, z * z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def measure(model: nn.Module, split: Split, threat: Threat, attack: Attack, *, seed: int = 0, partial: Path | None = None,
            progress: Progress | None = None) -> dict[str, np.ndarray]:
    """Attack every image of `split`. -> per example (n,): the fields of `AttackResult` but x_adv, and y and ids; and notes,
    words on what `check_inputs` found odd.

    With a folder `partial`, finished batches are kept there and an interrupted call does the others; random starts
    depend on an example's id alone, so the result is the same. Where a device's memory runs out, batches are halved. A small
    network's batches go through copies of it in `spare_threads` side by side.
    Errors: `KitError` for a model that returns probabilities or NaN, or labels that it does not know.
    """
    notes = check_inputs(model, split.x(slice(0, 256)), split.y[:256])
    pieces, gaps = _kept(partial, split.ids.cpu().numpy())
    size = min(BATCH[split.y.device.type], -(-len(split) // spare_threads()))

    def batches() -> Iterator[tuple[int, int]]:
        for begin, end in gaps:
            while begin < end:
                yield begin, (begin := min(begin + size, end))

    def attacked(network: nn.Module, begin: int, end: int) -> list[tuple[int, dict[str, np.ndarray]]]:
        nonlocal size
        rows = torch.arange(begin, end, device=split.y.device)
        try:
            piece = _measure_batch(network, split, rows, threat, attack, seed)
        except torch.OutOfMemoryError:
            if end - begin == 1:
                raise KitError("one image alone does not fit into the device's memory; take device=cpu") from None
        else:
            if partial:
                store.save_arrays(partial / f"{begin:06d}.npz", piece)
            return [(begin, piece)]
        size = (end - begin) // 2
        print(f"out of memory; going on with {size} images at a time", flush=True)
        return attacked(network, begin, begin + size) + attacked(network, begin + size, end)

    threads, networks = spare_threads(), SimpleQueue()
    for _ in range(threads):
        networks.put(model if threads == 1 else copy.deepcopy(model))

    def work(begin: int, end: int) -> list[tuple[int, dict[str, np.ndarray]]]:
        network = networks.get()
        hook = network.register_forward_pre_hook(still_wanted)
        try:
            return attacked(network, begin, end)
        finally:
            hook.remove()
            networks.put(network)

    for found in side_by_side(work, batches(), threads):
        pieces |= dict(found)
        if progress is not None:
            progress.update(sum(len(piece["y"]) for piece in pieces.values()))
    ordered = [pieces[begin] for begin in sorted(pieces)]
    return {name: np.concatenate([piece[name] for piece in ordered]) for name in ordered[0]} | {
        "notes": np.array(notes, dtype="U300")}


def _kept(partial: Path | None, ids: np.ndarray) -> tuple[dict[int, dict[str, np.ndarray]], list[tuple[int, int]]]:
    """({place: piece} of the whole pieces in `partial`, [(begin, end)] of the images in none of them)."""
    pieces, gaps, reached = {}, [], 0
    for path in sorted(partial.glob("[0-9]*.npz")) if partial else ():
        with contextlib.suppress(KitError):
            piece, begin = store.load_arrays(path), int(path.stem)
            if np.array_equal(piece.get("ids"), ids[begin:][:len(piece.get("ids", ()))]):
                pieces[begin] = piece
    for begin in sorted(pieces):
        if begin > reached:
            gaps.append((reached, begin))
        reached = begin + len(pieces[begin]["y"])
    return pieces, [*gaps, (reached, len(ids))]


def _measure_batch(model: nn.Module, split: Split, rows: torch.Tensor, threat: Threat, attack: Attack,
                   seed: int) -> dict[str, np.ndarray]:
    streams = Streams(split.ids[rows], "evaluate", seed, json.dumps(attack.config(), sort_keys=True))
    with frozen(model):
        result = attack(model, split.x(rows), split.y[rows], threat, streams)
    names = ("prediction", "broken", "step", "margin", "size", "forwards", "backwards")
    arrays = {name: getattr(result, name).cpu().numpy() for name in names}
    return arrays | {"by": np.array(result.by, dtype="U24"), "y": split.y[rows].cpu().numpy(),
                     "ids": split.ids[rows].cpu().numpy()}


class Examples(dict):
    """{attack: per-example arrays} as a table's attribute. pandas compares and copies attributes at will; these are equal to
    themselves alone, and shared."""

    __hash__ = dict.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __deepcopy__(self, memo: dict) -> Examples:
        return self


def evaluate(run: Run, attacks: Sequence[str] = ("natural", "fgsm", "pgd20", "cw20"), *, split: str = "test", n: int = 0,
             which: str | int = "last", device: str = "auto", quiet: bool = False) -> pd.DataFrame:
    """Accuracy of a run under attacks, one row each, with the run's own threat.

    Columns: accuracy (no iterate of any restart misclassified; the stricter count), low and high (its Wilson 95 %
    interval), last_iterate (accuracy as most papers count: only the last iterate can break an image), forwards and
    backwards (images passed through the network, and gradients, per image), n, seconds.
    `.attrs` holds the per-example arrays: "examples"[attack] with prediction, broken, by (the attack that broke it), step
    (passes until it was broken), margin, size of the perturbation, forwards, backwards, y and ids. "notes" says where
    numbers must be read with care: a network that answers differently each time, or gives all images one class.

    split: train, validation or test; n: only the first n images (0 = all); which: last or best network, or that of
    an epoch in `run.snapshots`.
    Errors: `KitError` for unknown names, an empty split, or a network that cannot be evaluated.
    """
    names = [attacks] if isinstance(attacks, str) else list(attacks)
    for name in names:
        ATTACKS[name]
    if split not in ("train", "validation", "test"):
        raise unknown("split", split, ("train", "validation", "test"))
    if not isinstance(n, int) or n < 0:
        raise KitError(f"n={n!r} must be a whole number of images, or 0 for all")
    if not is_done(run.folder):
        raise KitError(f"{run.spec} is not trained to its end; an evaluation would be kept as that of the finished network. "
                       "Train it first")
    where = pick_device(device)
    model, images = None, None
    rows, examples, notes = {}, Examples(), {}
    for name in names:
        attack = ATTACKS[name]
        settings, path = kept_at(run, name, split=split, n=n, which=which)
        if not path.exists():
            if model is None:
                model = run.model(which, where)
                images = getattr(run.data(), split).take(slice(0, n or None)).to(where)
                if not len(images):
                    raise KitError(f"{run.spec} holds out no {split} images; choose another split")
            progress, started = Progress(f"{name} on {run.spec}", len(images), quiet=quiet), time.monotonic()
            partial = path.with_suffix(".partial")
            with threads_for(run.plan.recipe.model, where):
                arrays = measure(model, images, run.plan.recipe.threat, attack, partial=partial, progress=progress)
            seconds = time.monotonic() - started
            store.save_arrays(path, arrays | {"seconds": np.asarray(seconds), "settings": np.asarray(json.dumps(settings)),
                                              "run": np.asarray(run.key)})
            shutil.rmtree(partial, ignore_errors=True)
            for note in () if quiet else arrays["notes"]:
                print(f"WARNING: {run.spec}: {note}", flush=True)
            progress.close(f"{1 - arrays['broken'].mean():.1%} of {len(images)} in {seconds:.1f} s")
        arrays = read_evaluation(path, run.key)
        count, right = len(arrays["y"]), int((~arrays["broken"]).sum())
        low, high = wilson(right, count)
        rows[name] = {"accuracy": right / count, "low": low, "high": high,
                      "last_iterate": float((arrays["prediction"] == arrays["y"]).mean()), "n": count,
                      "forwards": float(arrays["forwards"].mean()), "backwards": float(arrays["backwards"].mean()),
                      "seconds": float(arrays["seconds"])}
        examples[name] = {key: values for key, values in arrays.items() if key not in OF_ALL}
        notes |= {str(note): None for note in arrays.get("notes", ())}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("attack")
    table.attrs = {"run": run.key, "examples": examples, "classes": run.record["classes"], "notes": list(notes)}
    return table


def kept_at(run: Run, attack: str, *, split: str = "test", n: int = 0, which: str | int = "last") -> tuple[dict, Path]:
    """(all that decides an evaluation, the file that keeps it once it is made)."""
    settings = {"attack": ATTACKS[attack].config(), "threat": str(run.plan.recipe.threat), "split": split, "n": n,
                "which": which}
    return settings, run.folder / "evaluations" / f"{_named(settings)}.npz"


def _named(settings: dict) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def read_evaluation(path: Path, key: str) -> dict[str, np.ndarray]:
    """What `evaluate` kept at `path` of the run with that key. `KitError` if it is damaged or of something else."""
    try:
        arrays = store.load_arrays(path)
    except KitError as error:
        raise KitError(f"{error}. Delete it to evaluate again") from error
    if str(arrays.get("run")) != key or _named(json.loads(str(arrays["settings"]))) != path.stem:
        raise KitError(f"{path} is not the evaluation that belongs there; delete it to evaluate again")
    return arrays


def per_class(table: pd.DataFrame, attack: str) -> pd.DataFrame:
    """Accuracy, interval and n of each class under one attack of an `evaluate` table."""
    examples = _examples(table, attack)
    rows = []
    for label, name in enumerate(table.attrs["classes"]):
        mine = examples["y"] == label
        right = int((~examples["broken"][mine]).sum())
        low, high = wilson(right, int(mine.sum()))
        rows.append({"class": name, "accuracy": right / max(int(mine.sum()), 1), "low": low, "high": high,
                     "n": int(mine.sum())})
    return pd.DataFrame(rows).set_index("class")


def confusion(table: pd.DataFrame, attack: str) -> np.ndarray:
    """(K, K) counts, rows true and columns predicted, of the last iterates under one attack. The sum is n.

    A prediction that is no number (-1) is counted in no column; `measure` refuses networks that make them.
    """
    examples, k = _examples(table, attack), len(table.attrs["classes"])
    matrix = np.zeros((k, k), dtype=np.int64)
    known = examples["prediction"] >= 0
    np.add.at(matrix, (examples["y"][known], examples["prediction"][known]), 1)
    return matrix


def protected_table(runs: Mapping[str, Run], attacks: Sequence[str] = ("natural", "fgsm", "pgd20")) -> pd.DataFrame:
    """Accuracy of the protected class and of all classes, per method and attack, with n and Wilson intervals.

    The protected class is that of the first run whose loss has one (class 0 where none does).
    """
    losses = [run.plan.method.loss.params for run in runs.values()]
    protected = next((int(params["protected"]) for params in losses if "protected" in params), 0)
    rows = {}
    for method, run in runs.items():
        table = evaluate(run, attacks, quiet=True)
        for attack in attacks:
            mine, total = per_class(table, attack).iloc[protected], table.loc[attack]
            rows[(method, attack)] = {
                f"class {table.attrs['classes'][protected]}": mine["accuracy"],
                "interval": f"[{mine['low']:.2f}, {mine['high']:.2f}]", "n": int(mine["n"]),
                "all classes": total["accuracy"],
                "interval, all": f"[{total['low']:.2f}, {total['high']:.2f}]", "n, all": int(total["n"])}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["method", "attack"]).round(3)


def _examples(table: pd.DataFrame, attack: str) -> dict[str, np.ndarray]:
    if "examples" not in table.attrs:
        raise KitError("this table has no per-example arrays: pandas drops them where tables of different calls are joined; "
                       "ask a table as kit.evaluate returned it")
    found = table.attrs["examples"]
    if attack not in found:
        raise unknown("attack in this table", attack, found)
    return found[attack]


def paired_difference(broken_a: np.ndarray, broken_b: np.ndarray) -> tuple[float, float, float]:
    """(accuracy of b minus accuracy of a, low, high) on the same images, 95 % (normal, of the paired differences)."""
    difference = broken_a.astype(float) - broken_b.astype(float)
    half = 1.959964 * difference.std(ddof=1) / math.sqrt(len(difference))
    return float(difference.mean()), float(difference.mean() - half), float(difference.mean() + half)
