"""What changes with the epoch: which steps a batch takes, and hyper-parameters on a schedule.

Epochs count from 1. Papers print epochs of 120, 110 or 200; here they are shares of the run's
length. A schedule states what it controls and returns {dotted name: value} for an epoch. Those
hyper-parameters belong to it and cannot be overridden by themselves.
"""

from __future__ import annotations

from kit.core.parameters import NonNegative, Real, Share
from kit.core.parts import attacks_first, controls


def adversarial(epoch: int, epochs: int) -> tuple[bool, ...]:
    """One step a batch, on x_adv."""
    return (True,)


def clean(epoch: int, epochs: int) -> tuple[bool, ...]:
    """One step a batch, on x."""
    return (False,)


def alternating(epoch: int, epochs: int) -> tuple[bool, ...]:
    """Two steps a batch, first on x, then on x_adv of the network that results.

    Source: CSA Alg. 2, CIFAR-10.
    """
    return (False, True)


@attacks_first
def attacked_then_alternating(epoch: int, epochs: int) -> tuple[bool, ...]:
    """Two steps a batch, on x, then on the x_adv of the network before both steps.

    Source: CSA Alg. 1, whose line that makes x_adv stands before the clean step.
    """
    return (False, True)


def clean_first_half(epoch: int, epochs: int) -> tuple[bool, ...]:
    """One step a batch, on x in the first half of the epochs, then on x_adv.

    Source: CSA s. IV, MNIST.
    """
    return (epoch > epochs // 2,)


# ---------------------------------------------------------------------------------------- schedules


@controls("attack.tau")
def friendlier_first(
    epoch: int, epochs: int, *, first: Share = 50 / 120, second: Share = 90 / 120
) -> dict[str, int]:
    """attack.tau: 0 until `first`, 1 until `second`, then 2.

    Source: FAT's code, with 50 and 90 of 120 epochs.
    """
    return {"attack.tau": (epoch > first * epochs) + (epoch > second * epochs)}


@controls("perturb.gamma")
def warm_up(
    epoch: int, epochs: int, *, until: Share = 10 / 200, gamma: NonNegative = 0.005
) -> dict[str, float]:
    """perturb.gamma: 0 until `until`, then γ.

    Source: TRADES-AWP's code, with epoch 10 of 200.
    """
    return {"perturb.gamma": gamma if epoch > until * epochs else 0.0}


@controls("weight.shift")
def piecewise(
    epoch: int, epochs: int, *, shift: Real = -1.0, second: Real = -2.0, third: Real = -2.5
) -> dict[str, float]:
    """weight.shift: `shift` until 90/120 of the epochs, then `second`, from 110/120 on `third`.

    By default λ, λ - 1 and λ - 1.5.

    Source: GAIRAT's code means this and never gets beyond the first value, because its later
    branches cannot be reached.
    """
    return {
        "weight.shift": shift
        if epoch < 90 / 120 * epochs
        else second
        if epoch < 110 / 120 * epochs
        else third
    }


@controls("weight.shift")
def linear(epoch: int, epochs: int, *, start: Real = 5.0, end: Real = -1.0) -> dict[str, float]:
    """weight.shift: from λ_max (`start`) in a straight line to λ (`end`) over all epochs.

    Source: GAIRAT's code, whose own λ_max is infinite and gives NaN; with 5 nearly all weights
    begin at 1.
    """
    return {"weight.shift": start - epoch / epochs * (start - end)}
