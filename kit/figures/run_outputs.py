"""What figures read from a finished run: probabilities, labels, and its setting in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kit.core.errors import KitError, unknown_name
from kit.data.own_images import is_own
from kit.evaluation.accuracy import evaluate
from kit.experiments.runs import Run
from kit.methods.criteria import confused_labels

#: CLIRAT's names of what it measures. APGD is APGD on cross-entropy, CW is PGD-20 on the margin
#: loss.
CRITERION_LABELS = {
    "natural": "NAT",
    "pgd20": "PGD-20",
    "pgd100": "PGD-100",
    "apgd-ce": "APGD",
    "cw20": "CW",
    "aa": "AA",
}


def probabilities(arrays: dict[str, np.ndarray], which: str) -> tuple[Tensor, Tensor]:
    """(softmax (n, K) float64, labels (n,)) of stored logits named, say, "train_logits_adv".

    Raises:
        KitError: if the run did not store them.
    """
    part = which.split("_")[0]
    if which not in arrays:
        raise KitError(f"this run stored no {which}; it has {', '.join(sorted(arrays))}")
    logits = torch.from_numpy(arrays[which].astype(np.float64))
    return logits.softmax(dim=1), torch.from_numpy(arrays[f"{part}_y"].astype(np.int64))


#: Kinds of stored images: natural ones, and those under the training attack.
IMAGE_KINDS = {"nat": "without attack", "adv": "under attack"}


def image_probabilities(run: Run, split: str, which: str) -> tuple[Tensor, Tensor]:
    """Probabilities (n, K) and labels (n,) of a split's images, natural or under attack.

    Raises:
        KitError: for another split, or another kind of image than `IMAGE_KINDS` has.
    """
    if split not in ("train", "test"):
        raise unknown_name("split", split, ("train", "test"))
    if which not in IMAGE_KINDS:
        raise unknown_name("kind of image", which, IMAGE_KINDS)
    return probabilities(run.final, f"{split}_logits_{which}")


def epoch_probabilities(run: Run, epoch: int, counted: str) -> tuple[Tensor, Tensor]:
    """(probabilities (n, K) under attack, labels (n,)) of training images in an epoch.

    `counted`: "on the fly" (all images, as the moving network saw them) or "frozen" (the probe,
    after the epoch).

    Raises:
        KitError: if nothing was attacked on the fly.
    """
    arrays = run.epoch(epoch)
    if counted == "frozen":
        return probabilities(arrays, "seen_logits_adv")
    run.check_trained_here("what training computed on the fly")
    if "train_kappa" not in arrays:
        raise KitError(
            f"{run.method} trained on clean images in epoch {epoch}, so nothing was attacked on "
            "the fly; take "
            'counted="frozen"'
        )
    logits = torch.from_numpy(arrays["train_logits_adv"].astype(np.float64))
    return logits.softmax(dim=1), torch.from_numpy(run.final["train_y"].astype(np.int64))


def protected_class(run: Run) -> int:
    """Return the class that a run's costs protect.

    Raises:
        KitError: The run was adopted, so that its costs are unknown.
    """
    run.check_trained_here("the class that its costs protect")
    return int(run.plan.method.loss.params["protected"])


def count_confused(probs: Tensor, y: Tensor) -> np.ndarray:
    """Number of examples that have 0, 1, ..., K-1 confused labels, (K,)."""
    return np.bincount(confused_labels(probs, y).numpy(), minlength=probs.shape[1])


def check_seeds(runs: Sequence[Run], what: str) -> None:
    """Refuse runs that are not one method's, alike but for their seeds.

    Raises:
        KitError: They differ in their method or settings, or a seed is there twice.
    """
    settings = {(run.method, run.plan.recipe) for run in runs}
    seeds = [run.spec.seed for run in runs]
    if len(settings) > 1 or len(set(seeds)) < len(seeds):
        have = ", ".join(str(run.spec) for run in runs)
        raise KitError(
            f"{what} need runs of one method with the same settings and different seeds, but they "
            f"were given {have}"
        )


def describe_setting(run: Run, *, seed: bool = True) -> str:
    """Data, network, threat and seed of a run, for captions."""
    recipe = run.plan.recipe
    data = recipe.data
    if is_own(data):
        data = f"{len(run.final['test_y'])} images of one's own for training and test images"
    words = f"{data}, {recipe.model}, {recipe.threat}"
    return f"{words}, seed {run.spec.seed}" if seed and not run.is_adopted else words


def right_under_attack(run: Run, which: str | int, attack: str, n: int) -> np.ndarray:
    """(n,) bool: which of the first n test images a network of the run gets right under attack.

    `which` names the network, as in `kit.evaluate`; n = 0 takes all test images.
    """
    table = evaluate(run, [attack], n=n, which=which, quiet=True)
    return ~table.attrs["examples"][attack]["broken"]
