"""What the drawing functions read from a run: probabilities, counts, intervals."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kit.core.errors import KitError
from kit.evaluation.statistics import wilson
from kit.experiments.runs import Run
from kit.methods.criteria import confused_labels


def probabilities(arrays: dict[str, np.ndarray], which: str) -> tuple[Tensor, Tensor]:
    """(softmax (n, K) float64, labels (n,)) of stored logits named, say, "train_logits_adv"."""
    part = which.split("_")[0]
    if which not in arrays:
        raise KitError(f"this run stored no {which}; it has {', '.join(sorted(arrays))}")
    logits = torch.from_numpy(arrays[which].astype(np.float64))
    return logits.softmax(dim=1), torch.from_numpy(arrays[f"{part}_y"].astype(np.int64))


def epoch_probabilities(run: Run, epoch: int, counted: str) -> tuple[Tensor, Tensor]:
    """Adversarial probabilities of training images in an epoch: "on the fly" (all images, moving
    network) or "frozen" (the probe, after the epoch).
    """
    arrays = run.epoch(epoch)
    if counted == "frozen":
        return probabilities(arrays, "seen_logits_adv")
    if "train_kappa" not in arrays:
        raise KitError(
            f"{run.method} trained on clean images in epoch {epoch}, so nothing was attacked on "
            f"the fly; take "
            'counted="frozen"'
        )
    return torch.from_numpy(arrays["train_logits_adv"].astype(np.float64)).softmax(
        dim=1
    ), torch.from_numpy(run.final["train_y"].astype(np.int64))


def count_confused(probs: Tensor, y: Tensor) -> np.ndarray:
    """How many examples have 0, 1, ..., K-1 confused labels, (K,)."""
    return np.bincount(confused_labels(probs, y).numpy(), minlength=probs.shape[1])


def ratio_interval(several: int, one: int) -> tuple[float, float, float]:
    """several / one with its 95 % interval, from Wilson's for the share; NaN and (0, inf) for 0 of
    0.
    """
    n = several + one
    if n == 0:
        return float("nan"), 0.0, float("inf")
    low, high = wilson(several, n)
    odds = [
        share / (1 - share) if share < 1 else float("inf") for share in (several / n, low, high)
    ]
    return odds[0], odds[1], odds[2]


def setting(run: Run) -> str:
    """Data, seed and threat of a run, for captions."""
    return f"{run.plan.recipe.data}, {run.plan.recipe.model}, {run.plan.recipe.threat}, seed {run.spec.seed}"
