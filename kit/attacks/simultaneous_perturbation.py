"""SPSA, an attack that uses no gradient of the network.

It estimates one from the network's answers along random signs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kit.attacks.tracker import AttackResult, AttackTracker, track_attack
from kit.core import tensors
from kit.core.parameters import Count, Positive, check_value
from kit.core.progress import followed
from kit.core.random_streams import Streams
from kit.core.threat import Threat

#: An estimate is summed over blocks of this many directions, whatever the batch, and a pass takes
#: at most so many images.
DIRECTIONS, IMAGES_PER_PASS = 16, 2048


def spsa(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    generator: Streams | None = None,
    validate: bool = True,
    steps: Count = 100,
    delta: Positive = 0.001,
    lr: Positive = 0.01,
    samples: Count = 256,
) -> AttackResult:
    """Simultaneous perturbation stochastic approximation: Adam on an estimated gradient.

    From the clean image, `steps` steps of Adam (rate `lr`, in pixels) that lower the margin z_y -
    max_{j≠y} z_j, each followed by the projection onto the ball and [0, 1]. The gradient is the
    mean over `samples` random sign patterns v of v · (margin(x_t + delta v) - margin(x_t - delta
    v)) / (2 delta): 2 · `samples` passes a step, and one of x_t itself, which ends the search where
    it is misclassified. The probes x_t ± delta v may lie off the ball and off [0, 1]; they are
    counted and never returned. x (N, C, H, W) in [0, 1]; y (N,) int64. The defaults are VIR's.

    Each example has its own directions, drawn from its own stream; advertorch's batch mates share
    theirs. The original knows L-inf only; in L2 the projection alone differs.

    Raises:
        KitError: Settings are out of range, or `check_inputs` refuses the inputs.

    Source: Uesato et al. (2018).
    """
    for name, value, kind in (
        ("steps", steps, Count),
        ("delta", delta, Positive),
        ("lr", lr, Positive),
        ("samples", samples, Count),
    ):
        check_value(name, value, kind)
    with track_attack(model, x, y, threat, validate=validate) as tracker:
        streams = tracker.streams(generator, "spsa")
        rows = tracker.unbroken()
        x_t, moments = x[rows], x.new_zeros(2, *x[rows].shape)
        for t in followed(range(1, steps + 1), "step"):
            parts = torch.arange(len(rows), device=x.device).split(
                IMAGES_PER_PASS // (2 * DIRECTIONS)
            )
            gradient = torch.cat(
                [
                    estimate(tracker, x_t[part], rows[part], streams, t, delta, samples)
                    for part in parts
                ]
            )
            step, moments = tensors.adam_step(gradient, moments, t)
            x_t = tensors.project(x_t - lr * step, x[rows], threat)
            tracker.logits(x_t, rows)
            on = ~tracker.broken[rows]
            rows, x_t, moments = rows[on], x_t[on], moments[:, on]
            if not len(rows):
                break
        return tracker.result("spsa")


def estimate(
    tracker: AttackTracker,
    x_t: Tensor,
    rows: Tensor,
    streams: Streams,
    t: int,
    delta: float,
    samples: int,
) -> Tensor:
    """Estimate the gradient of the margin at `x_t` (n, C, H, W) in step `t`.

    `x_t` are images of the examples `rows` (n,).
    """
    own = Streams(streams.ids.to(rows.device)[rows], *streams.parts, "directions", t)
    total, shape = torch.zeros_like(x_t), x_t.shape[1:]
    for first in range(0, samples, DIRECTIONS):
        block = min(DIRECTIONS, samples - first)
        # (n, block, C, H, W)
        signs = 1 - 2 * own.uniform(x_t[:, None].expand(-1, block, *shape)).round()
        sides = torch.stack([x_t[:, None] + delta * signs, x_t[:, None] - delta * signs])
        asked = rows[:, None].expand(-1, block).flatten().repeat(2)
        margin = tensors.margin(tracker.probe(sides.flatten(0, 2), asked), tracker.y[asked])
        above, below = margin.view(2, len(rows), block)
        # a NaN beside x_t must not spread to x_t
        slope = ((above - below) / (2 * delta)).nan_to_num(0, 0, 0)
        total += (slope.view(*slope.shape, *[1] * len(shape)) * signs).sum(dim=1)
    return total / samples
