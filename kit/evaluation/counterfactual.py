"""What would another method have weighed?

Any method's weights are computed from a run's stored logits; nothing is trained again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

from kit.core.errors import KitError, unknown_name
from kit.core.parameters import Natural, check_value
from kit.core.random_streams import Streams
from kit.experiments.runs import Run
from kit.methods.criteria import confused_labels
from kit.methods.step_outputs import StepOutputs, fields_read_by
from kit.methods.table import METHODS, Method
from kit.methods.weights import check_weights

COUNTED = ("frozen", "on the fly", "final")


def counterfactual_weights(
    run: Run,
    methods: Iterable[str] | str,
    *,
    epochs: Sequence[int] | None = None,
    reference: str = "",
    counted: Literal["frozen", "on the fly", "final"] = "frozen",
) -> pd.DataFrame:
    """Tabulate the weights that `methods` would have given to training images of `run`.

    There is one row per epoch and method. counted: "frozen", the probe with the network as it stood
    after each epoch; "on the fly", all images as the training steps of the epoch computed them;
    "final", all images with the finished network (epoch is then the last).

    Columns: mean_weight; effective_sample_share, (Σw)²/(n Σw²); spearman, the rank correlation with
    the weights of `reference` (by default the first method that reweights); top_overlap, the share
    of the reference's most-weighted tenth that is in this method's (equal weights at the cut share
    its places; both are NaN where all weights are equal, and weights are equal that single
    precision, in which training holds them, cannot tell apart); robust_share, one_label_share and
    several_labels_share, the shares of the total weight on examples that are right under attack,
    have one, and have several confused labels; n. Where all weights are 0 shares are NaN.
    `.attrs["by_class"]` is {"epoch method": [K shares of the total weight]}.

    What it cannot know: under other weights the network would have become another one. Batch
    normalisers get all images as one batch.

    Raises:
        KitError: A method is unknown, an epoch is not stored, the reference is not among the
            methods, a method needs what the source lacks, say clean logits on the fly where
            training never took them, or weights are no finite numbers >= 0.
    """
    rows = _method_rows(methods)
    reference = reference or next(
        (name for name, row in rows.items() if row.reweights), next(iter(rows))
    )
    if reference not in rows:
        raise unknown_name("reference among these methods", reference, rows)
    if counted not in COUNTED:
        raise unknown_name("way of counting", counted, COUNTED)
    table, by_class, total_epochs = [], {}, run.plan.recipe.epochs
    for epoch in _check_epochs(run, epochs, counted):
        outputs, ids = stored_outputs(run, epoch, counted)
        weights = {}
        for name, row in rows.items():
            _check_stored(name, row, outputs, f"'{counted}' in epoch {epoch}")
            # of its own: no method's draws depend on another
            streams = Streams(ids, run.plan.seed, "whatif", epoch)
            drawn = replace(outputs, streams=streams)
            weights[name] = checked_weights(
                row.at(epoch, total_epochs), drawn, f"{name}, epoch {epoch},"
            )
        groups, compared = example_groups(outputs), WeightOrder(weights[reference])
        for name, w in weights.items():
            table.append({"epoch": epoch, "method": name, **summarise_weights(w, compared, groups)})
            shares = np.bincount(outputs.y.numpy(), w, outputs.logits_adv.shape[1])
            by_class[f"{epoch} {name}"] = (
                shares / w.sum() if w.sum() else shares * np.nan
            ).tolist()
    frame = pd.DataFrame(table)
    frame.attrs = {
        "by_class": by_class,
        "classes": run.record["classes"],
        "run": run.key,
        "reference": reference,
        "counted": counted,
    }
    return frame


def _method_rows(methods: Iterable[str] | str) -> dict[str, Method]:
    names = (
        methods.split()
        if isinstance(methods, str)
        else list(methods)
        if isinstance(methods, Iterable)
        else [methods]
    )
    if not names:
        raise KitError(f"whatif needs at least one method. Choices: {', '.join(METHODS)}")
    for name in names:
        if not isinstance(name, str):
            raise unknown_name("method", name, METHODS)
    return {name: METHODS[name] for name in names}


def _check_epochs(run: Run, epochs: Sequence[int] | None, counted: str) -> list[int]:
    """Return the epochs asked for, checked.

    By default they are all, and the last alone where only the finished network counts.
    """
    last = run.epochs
    if epochs is None:
        return [last] if counted == "final" else list(range(1, last + 1))
    asked = epochs.tolist() if isinstance(epochs, (np.ndarray, pd.Series)) else epochs
    if not isinstance(asked, (list, tuple, range)) or not asked:
        raise KitError(
            f"epochs={epochs!r} must be a list of epochs such as [1, {last}], or left out for all"
        )
    chosen = [
        check_value("epochs", int(e) if isinstance(e, np.integer) else e, Natural) for e in asked
    ]
    if counted == "final" and chosen != [last]:
        raise KitError(
            f"epochs={chosen}: 'final' is of the finished network, epoch {last}; leave epochs out"
        )
    return chosen


def stored_outputs(run: Run, epoch: int, counted: str) -> tuple[StepOutputs, torch.Tensor]:
    """Load what was stored of the images, and their ids (n,).

    All numbers are float64, whole numbers too. What was not stored is None.

    Raises:
        KitError: The file lacks the images, or a value in it is not finite.
    """
    if counted == "on the fly":
        run.check_trained_here("what training computed on the fly")
    prefix = "seen_" if counted == "frozen" else "train_"
    arrays = run.final if counted == "final" else run.epoch(epoch)
    stored = {
        name.removeprefix(prefix): torch.from_numpy(values)
        for name, values in arrays.items()
        if name.startswith(prefix)
    }
    if counted == "on the fly":
        # the last pass has the same images in the same order; asking the data set would hash all
        # pixels in each epoch
        stored |= {name: torch.from_numpy(run.final[f"train_{name}"]) for name in ("y", "ids")}
    if "y" not in stored or "logits_adv" not in stored:
        raise KitError(
            f"{run.folder.name}, epoch {epoch} keeps no images '{counted}': its file was changed. "
            "Delete the folder to train the run afresh"
        )
    names = ("logits_adv", "logits_nat", "kappa", "lps", "p_flip")
    numbers: dict[str, Any] = {name: stored[name].double() for name in names if name in stored}
    if not all(bool(values.isfinite().all()) for values in numbers.values()):
        raise KitError(
            f"{run.folder.name}, epoch {epoch}: what it kept '{counted}' is not finite (half "
            "precision ends at 65,504), so no weight can be computed; take another epoch or "
            "another way of counting"
        )
    # without κ nothing was attacked: what trained the network were the clean images
    if "kappa" not in stored:
        numbers = {"logits_adv": None, "logits_nat": numbers["logits_adv"]}
    # the second attack's images are not stored; no method's weights read them
    outputs = StepOutputs(stored["y"].long(), **numbers, steps=run.plan.recipe.steps)
    return outputs, stored["ids"].long()


def _check_stored(name: str, row: Method, outputs: StepOutputs, source: str) -> None:
    """Refuse a row whose weights, or the table's groups, read what is not there."""
    names = set() if row.criterion is None else set(row.criterion.reads)
    if row.select is not None:
        names |= fields_read_by(row.select.func)
    needed = {field.replace("probs", "logits") for field in names} | {"logits_adv"}
    missing = sorted(field for field in needed - {"streams"} if getattr(outputs, field) is None)
    if missing:
        raise KitError(
            f"{name} needs {', '.join(missing)}, which this run did not keep {source}: its own "
            'method did not compute it in training. Take counted="frozen" or "final", where '
            "everything is kept"
        )


def checked_weights(row: Method, outputs: StepOutputs, name: str) -> np.ndarray:
    """Compute the row's weights, (n,) float64.

    Raises:
        KitError: They are not one finite number >= 0 an image.
    """
    weights = row.weigh(outputs).double()
    if weights.shape != outputs.y.shape:
        raise KitError(
            f"{name} gave weights of shape {tuple(weights.shape)}; criterion and weight function "
            f"must return one number an image, ({len(outputs.y)},)"
        )
    if bool((weights != 0).any()):  # zeros alone are an answer here, if a poor one
        check_weights(weights, name)
    return weights.numpy()


def example_groups(outputs: StepOutputs) -> dict[str, np.ndarray]:
    """Return {name: mask (n,) bool} of three groups of examples.

    They are right under attack, or wrong with one, or with several confused labels.
    """
    count = confused_labels(outputs.probs_adv, outputs.y).numpy()
    right = (outputs.logits_adv.argmax(dim=1) == outputs.y).numpy()
    return {
        "robust_share": right,
        "one_label_share": ~right & (count <= 1),
        "several_labels_share": ~right & (count >= 2),
    }


class WeightOrder:
    """The ranks of weights (n,) and who is in their top tenth.

    They are computed once where many are compared with one.
    """

    def __init__(self, w: np.ndarray):
        # vectorised kernels round the last bit by where a number lies
        w = (w / (w.max() or 1.0)).astype(np.float32)
        self.constant = bool(np.ptp(w) == 0)
        ranks = rankdata(w)
        self.centred = ranks - ranks.mean()
        tenth = max(1, len(w) // 10)
        cut = np.partition(w, -tenth)[-tenth]
        above, equal = w > cut, w == cut
        # of equals at the cut each has a share
        self.inside = above + equal * ((tenth - above.sum()) / equal.sum())
        self.tenth = tenth


def summarise_weights(
    w: np.ndarray, reference: WeightOrder, groups: dict[str, np.ndarray]
) -> dict[str, float]:
    """Compute a row of the table of `counterfactual_weights` from weights (n,)."""
    total, n, own = w.sum(), len(w), WeightOrder(w)
    blank = own.constant or reference.constant
    shares = w / total if total else w * np.nan
    lengths = np.sqrt((own.centred**2).sum() * (reference.centred**2).sum())
    return {
        "mean_weight": total / n,
        "effective_sample_share": 1 / (n * (shares**2).sum()),
        "spearman": np.nan if blank else (own.centred * reference.centred).sum() / lengths,
        "top_overlap": np.nan
        if blank
        else np.minimum(own.inside, reference.inside).sum() / own.tenth,
        **{name: shares[mask].sum() for name, mask in groups.items()},
        "n": n,
    }
