"""Weight functions, normalisers and selections: from a vulnerability score (N,) to weights (N,).

Every weight function is non-decreasing in the score (larger = more vulnerable) and non-negative. A
normaliser maps a batch of weights to weights; a selection says which examples stay in the loss at
all.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kit.core.errors import KitError
from kit.core.parameters import NonNegative, Positive, Real
from kit.core.registry import Registry
from kit.methods.criteria import confused_labels
from kit.methods.step_outputs import StepOutputs, reads


def sigmoid(score: Tensor, *, slope: Positive = 10.0, bias: Real = -0.5) -> Tensor:
    """σ(γ (score + β)), with slope γ and bias β.

    Returns (N,) in (0, 1). It is MAIL's σ(-γ(PM - β)), since the score is -PM.

    Source: MAIL Alg. 1.
    """
    return (slope * (score + bias)).sigmoid()


def tanh(score: Tensor, *, shift: Real = -1.0, slope: Positive = 5.0) -> Tensor:
    """(1 + tanh z) / 2 with z = λ + γ score, shift λ and slope γ (the papers' 5).

    Returns (N,) in (0, 1). The score is (⌊K/2⌋ - κ)/⌊K/2⌋.

    Source: GAIRAT; VIR Eq. 2.
    """
    return (1 + (shift + slope * score).tanh()) / 2


def exponential(score: Tensor, *, alpha: Positive = 0.5) -> Tensor:
    """Exponential weights exp(α score).

    Returns (N,) > 0.

    Source: WMMR, with score = -PM.
    """
    return (alpha * score).exp()


def affine(score: Tensor, *, slope: Positive = 1.0, offset: NonNegative = 0.0) -> Tensor:
    """max(0, slope · score + offset).

    Returns (N,) >= 0.

    Source: VIR, as S_v S_d + β.
    """
    return (slope * score + offset).clamp_min(0)


def proportional(score: Tensor) -> Tensor:
    """max(0, score), for scores that are weights already and are normalised afterwards.

    Returns (N,) >= 0.

    Source: EWAT, as its abstract has it.
    """
    return score.clamp_min(0)


WEIGHTS = Registry(
    "weight function",
    {fn.__name__: fn for fn in (sigmoid, tanh, exponential, affine, proportional)},
)


# -------------------------------------------------------------------------------------- normalisers


def batch_mean(weights: Tensor) -> Tensor:
    """Weights w · m / Σw: mean 1 over the batch, so that the loss keeps its scale.

    Takes and returns (N,); a batch of zeros becomes one of ones. No gradient runs through the sum,
    as in WMMR's code, whose weights have one.

    Source: GAIRAT's code, MAIL's paper.
    """
    largest = weights.detach().max()
    # first to at most 1: sums of tiny weights would vanish
    shares = weights / largest.where(largest > 0, 1)
    return (shares * (len(weights) / shares.detach().sum())).where(
        largest > 0, torch.ones_like(weights)
    )


def factor(weights: Tensor, *, scale: Positive = 3.0) -> Tensor:
    """Weights times `scale`, whatever the batch.

    Takes and returns (N,).

    Source: MAIL's code (3 since its first release) and MR's constant M.
    """
    return scale * weights


def unnormalised(weights: Tensor) -> Tensor:
    """The weights (N,) as they are.

    Source: VIR, WMMR.
    """
    return weights


def flattened(weights: Tensor) -> Tensor:
    """The batch's mean weight for everybody, (N,).

    That is what is left of a reweighting when it only scales the loss (a control).
    """
    return weights.mean().expand_as(weights)


# ---------------------------------------------------------------------------------------- selection


@reads("probs_adv", "y", "streams")
def drop_confused(
    outputs: StepOutputs,
    *,
    which: Literal["single", "multiple", "multiple-matched", "random"] = "single",
) -> Tensor:
    """Mask (N,) bool of the examples to keep: a set of a batch's adversarial examples is left out.

    single: S_sig (exactly one confused label); multiple: S_mul (two or more). Two controls that the
    paper lacks: multiple-matched is a random subset of S_mul of the size of S_sig (all of S_mul
    where that is smaller), random is a random set of all examples of the size of S_mul.

    Source: CLIRAT Fig. 1B.
    """
    count = confused_labels(outputs.probs_adv, outputs.y)
    single, multiple = count == 1, count >= 2
    if which == "single":
        return ~single
    if which == "multiple":
        return ~multiple
    pool, size = (
        (multiple, single.sum())
        if which == "multiple-matched"
        else (torch.ones_like(single), multiple.sum())
    )
    assert outputs.streams is not None  # stated above
    # outside the pool: never among the first
    lottery = outputs.streams.uniform(outputs.probs_adv[:, 0]).where(pool, 2.0)
    rank = lottery.argsort().argsort()
    return ~(pool & (rank < size))


def check_weights(weights: Tensor, name: str) -> None:
    """Refuse what no loss can be weighted with.

    Raises:
        KitError: A weight of `weights` is NaN, infinite or negative, or all are zero.
    """
    if not bool(weights.isfinite().all()):
        raise KitError(
            f"{name} returned NaN or infinite weights; a weight function takes a score (N,) and "
            "returns finite numbers >= 0"
        )
    if bool((weights < 0).any()):
        raise KitError(
            f"{name} returned negative weights (down to {float(weights.min()):g}); an example can "
            "have weight 0, but not less"
        )
    if not bool((weights > 0).any()):
        raise KitError(
            f"{name} returned only zeros for a batch of {len(weights)}; nothing would be learned. "
            "Lower the slope or move the bias"
        )
