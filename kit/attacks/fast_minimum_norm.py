"""FMN, an attack that searches for the closest adversarial image, however far it is.

Its result keeps the nearest misclassified image found, in or out of the threat's ball; `size` is
its distance, infinite where none was found. It goes on after a success, for a nearer one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kit.attacks.tracker import AttackResult, AttackTracker, track_attack
from kit.core import tensors
from kit.core.parameters import Count, check_value
from kit.core.progress import followed
from kit.core.random_streams import Streams
from kit.core.threat import Threat

#: Below this a gradient or a slope counts as zero when something is divided by it.
TINY_NORM = 1e-30


#: FMN aims this share beyond the linearised boundary, see `fmn`.
OVERSHOOT = 1e-4


# -------------------------------------------------------------------------------- fast minimum norm


def fmn(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    generator: Streams | None = None,
    validate: bool = True,
    steps: Count = 100,
) -> AttackResult:
    """Fast minimum-norm attack in the threat's norm, L-inf or L2; it draws nothing.

    From the clean image, `steps` normalised gradient steps (L2-normalised in both norms) against
    the margin, within a ball whose radius shrinks by γ after a success and grows by γ otherwise;
    before the first success it is the linearised distance to the boundary. Step lengths fall from 1
    to 0.01 and γ from 0.05 to 0.001 as cosines. x (N, C, H, W) in [0, 1]; y (N,) int64. `size` in
    pixels.

    The linearised distance is taken a ten-thousandth longer than printed. Else an example that
    comes to lie on the boundary but for a rounding, as every one may where the network is linear,
    stays there and counts as unbreakable.

    Raises:
        KitError: Settings are out of range, or `check_inputs` refuses the inputs.

    Source: Pintor et al. (2021), Algorithm 1.
    """
    check_value("steps", steps, Count)
    with track_attack(model, x, y, threat, goal="nearest", validate=validate) as tracker:
        # where the clean image is misclassified, it is the nearest there is
        rows = tracker.unbroken()
        x_0, x_t = x[rows], x[rows]
        # [0, 1] bounds every step, so no cap is needed
        radius = x_0.new_full((len(rows),), torch.inf)
        for t in followed(range(steps if len(rows) else 0), "step"):
            falling = (1 + math.cos(math.pi * t / steps)) / 2
            gradient, _, logits = tracker.gradient(
                x_t, rows, lambda logits, labels: -tensors.margin(logits, labels)
            )
            radius = _next_radius(
                tracker, rows, x_t - x_0, gradient, logits, radius, 0.001 + 0.049 * falling
            )
            step = (0.01 + 0.99 * falling) * tensors.ascent_direction(gradient, "l2")
            x_t = (x_0 + _shorten(x_t + step - x_0, radius, threat.norm)).clamp(0, 1)
        return tracker.result("fmn")


def _next_radius(
    tracker: AttackTracker,
    rows: Tensor,
    moved: Tensor,
    gradient: Tensor,
    logits: Tensor,
    radius: Tensor,
    gamma: float,
) -> Tensor:
    """FMN's radius for the next step, (n,)."""
    norm, nearest = tracker.threat.norm, tracker.size[rows]
    # the gradient's dual norm
    steepness = (gradient * tensors.ascent_direction(gradient, norm)).flatten(1).sum(dim=1)
    margin = tensors.margin(logits, tracker.y[rows])
    distance = tensors.norm(moved, norm) + margin.abs() / steepness.clamp_min(TINY_NORM)
    wrong = logits.argmax(dim=1) != tracker.y[rows]
    seeking = (radius * (1 + gamma)).where(nearest.isfinite(), distance * (1 + OVERSHOOT))
    return torch.minimum(radius * (1 - gamma), nearest).where(wrong, seeking)


def _shorten(delta: Tensor, radius: Tensor, norm: str) -> Tensor:
    """`delta` (n, C, H, W) projected onto balls of radii (n,)."""
    radius = tensors.per_example(radius, delta)
    if norm == "linf":
        return delta.clamp(-radius, radius)
    length = tensors.per_example(tensors.norm(delta, "l2"), delta)
    return delta * (radius / length.clamp_min(TINY_NORM)).clamp_max(1)
