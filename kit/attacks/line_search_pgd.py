"""LM-PGD: PGD with Nesterov momentum and a line search."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kit.attacks.iterated_steps import drop_broken
from kit.attacks.projected_gradient_descent import Watch
from kit.attacks.tracker import AttackResult, AttackTracker, track_attack
from kit.core import tensors
from kit.core.parameters import Count, NonNegative, Share, check_value
from kit.core.random_streams import Streams
from kit.core.threat import Threat

#: LM-PGD's line search tries the step size times these.
LINE_SEARCH = (1 / 4, 1 / 2, 1, 2, 4)


def lmpgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    generator: Streams | None = None,
    watch: Watch | None = None,
    validate: bool = True,
    steps: Count = 50,
    step_size: NonNegative | None = None,
    momentum: Share = 0.9,
) -> AttackResult:
    """LM-PGD: PGD with Nesterov momentum and a line search for each example's step.

    This is the kit's own definition; MAIL gives no more than "line-searched step and Nesterov
    momentum". Here the gradient of the cross-entropy is taken at the point ahead, P(x_t + momentum
    · (x_t - x_{t-1})), P being the projection onto ball and [0, 1]; from there each example takes
    the one of the steps `step_size` · {1/4, 1/2, 1, 2, 4} after which its cross-entropy is largest.
    A step costs six passes and one gradient. `step_size` defaults to 2.5 eps / steps. `watch` is
    told of x_0 = x and of what the line searches chose. See `mifgsm` for the rest.

    Raises:
        KitError: Settings are out of range, or `check_inputs` refuses the inputs.

    Source: MAIL, s. 2.2 and Fig. 1a.
    """
    check_value("steps", steps, Count)
    check_value("momentum", momentum, Share)
    step_size = (
        2.5 * threat.eps / steps
        if step_size is None
        else check_value("step_size", step_size, NonNegative)
    )
    with track_attack(model, x, y, threat, validate=validate) as tracker:
        rows, x_t, velocity, logits = tracker.rows, x, torch.zeros_like(x), tracker.logits_nat
        for t in range(steps):
            if watch is not None:
                watch(t, x_t, logits)
            rows, x_t, velocity = drop_broken(tracker, watch, rows, x_t, velocity)
            if not len(rows):
                break
            ahead = tensors.project(x_t + momentum * velocity, x[rows], threat)
            gradient, _, _ = tracker.gradient(ahead, rows, tensors.per_example_cross_entropy)
            moved, logits = _line_search(
                tracker, rows, ahead, tensors.ascent_direction(gradient, threat.norm), step_size
            )
            x_t, velocity = moved, moved - x_t
        return tracker.result("lmpgd")


def _line_search(
    tracker: AttackTracker, rows: Tensor, ahead: Tensor, direction: Tensor, step_size: float
) -> tuple[Tensor, Tensor]:
    """(points (n, C, H, W), their logits) after the steps with the largest cross-entropy.

    Each example has a step of its own; the first of equals counts.
    """
    best = torch.full((len(rows),), -torch.inf, dtype=ahead.dtype, device=ahead.device)
    x_best = ahead
    logits_best: Tensor | None = None
    for factor in LINE_SEARCH:
        tried = tensors.project(
            ahead + factor * step_size * direction, tracker.x[rows], tracker.threat
        )
        logits = tracker.logits(tried, rows)
        loss = tensors.per_example_cross_entropy(logits, tracker.y[rows])
        better = loss > best
        best = loss.where(better, best)
        x_best = tensors.where(better, tried, x_best)
        logits_best = logits if logits_best is None else logits.where(better[:, None], logits_best)
    assert logits_best is not None  # LINE_SEARCH is not empty
    return x_best, logits_best
