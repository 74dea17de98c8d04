"""What changes with the epoch: which steps a batch takes, and hyper-parameters on a schedule.

Epochs count from 1; papers print epochs of 120, 110 or 200, here they are shares of the run's
length. A schedule states what it controls and returns {dotted name: value} for an epoch: those hyper-parameters belong to it
and cannot be overridden by themselves.
"""

from __future__ import annotations

from kit.core.parameters import NonNegative, Real, Share
from kit.core.parts import controls


def adversarial(epoch: int, epochs: int) -> tuple[bool, ...]:
    """One step a batch, on x_adv."""
    return (True,)


def clean(epoch: int, epochs: int) -> tuple[bool, ...]:
    """One step a batch, on x."""
    return (False,)


def alternating(epoch: int, epochs: int) -> tuple[bool, ...]:
    """Two steps a batch, first on x, then on x_adv of the network that results.

    CSA Alg. 2, CIFAR-10.
    """
    return (False, True)


def clean_first_half(epoch: int, epochs: int) -> tuple[bool, ...]:
    """One step a batch, on x in the first half of the epochs, then on x_adv. CSA s. IV, MNIST."""
    return (epoch > epochs // 2,)


# ---------------------------------------------------------------------------------------- schedules


@controls("attack.tau")
def friendlier_first(
    epoch: int, epochs: int, *, first: Share = 50 / 120, second: Share = 90 / 120
) -> dict[str, int]:
    """attack.tau: 0 until `first`, 1 until `second`, then 2. FAT's code: 50 and 90 of 120."""
    return {"attack.tau": (epoch > first * epochs) + (epoch > second * epochs)}


@controls("perturb.gamma")
def warm_up(
    epoch: int, epochs: int, *, until: Share = 10 / 200, gamma: NonNegative = 0.005
) -> dict[str, float]:
    """perturb.gamma: 0 until `until`, then γ. TRADES-AWP's code: epoch 10 of 200."""
    return {"perturb.gamma": gamma if epoch > until * epochs else 0.0}


@controls("weight.shift")
def piecewise(
    epoch: int, epochs: int, *, shift: Real = -1.0, second: Real = -2.0, third: Real = -2.5
) -> dict[str, float]:
    """weight.shift: λ until 89/120 of the epochs, then λ - 1, from 110/120 on λ - 1.5. GAIRAT's
    code means this and never gets beyond the first value: its later branches cannot be reached.
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
    """weight.shift: from λ_max (`start`) in a straight line to λ (`end`) over all epochs. GAIRAT's
    code, whose own λ_max is infinite and gives NaN; with 5 nearly all weights begin at 1.
    """
    return {"weight.shift": start - epoch / epochs * (start - end)}
