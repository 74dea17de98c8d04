"""Iterated gradient steps with a memory of their own: MI-FGSM, the basic iterative attacks, LM-PGD.

Unlike `kit.attacks.projected_gradient_descent.pgd` they return an `AttackResult`. Each drops an
example where it breaks, unless a `watch` is given: a path is then walked to its end. The start is
the clean image; nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from kit.attacks.projected_gradient_descent import Watch
from kit.attacks.tracker import AttackResult, AttackTracker, track_attack
from kit.core import tensors
from kit.core.parameters import Count, NonNegative, check_value
from kit.core.threat import Threat


def iterate_steps(
    name: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    move: Callable[[Tensor, Tensor, Tensor], Tensor],
    watch: Watch | None,
    validate: bool,
    steps: int,
    step_size: float,
) -> AttackResult:
    """Take the cross-entropy's gradient and `move(x_t, gradient, rows)`, `steps` times.

    The last point is evaluated, too.

    Raises:
        KitError: Settings are out of range, or `check_inputs` refuses the inputs.
    """
    check_value("steps", steps, Count)
    check_value("step_size", step_size, NonNegative)
    with track_attack(model, x, y, threat, validate=validate) as tracker:
        rows, x_t = drop_broken(tracker, watch, tracker.rows, x)
        for t in range(steps):
            if not len(rows):
                break
            gradient, _, logits = tracker.gradient(x_t, rows, tensors.per_example_cross_entropy)
            if watch is not None:
                watch(t, x_t, logits)
            rows, x_t, gradient = drop_broken(tracker, watch, rows, x_t, gradient)
            x_t = move(x_t, gradient, rows)
        if len(rows):
            tracker.logits(x_t, rows)
        return tracker.result(name)


def drop_broken(
    tracker: AttackTracker, watch: Watch | None, rows: Tensor, *along: Tensor
) -> tuple[Tensor, ...]:
    """`rows` and what belongs to them, without the broken examples unless somebody watches."""
    if watch is not None:
        return rows, *along
    return tensors.select_rows(~tracker.broken[rows], rows, *along)
