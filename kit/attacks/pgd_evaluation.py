"""PGD with restarts as evaluation asks for it, every pass counted."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from kit.attacks.projected_gradient_descent import OBJECTIVES, start_point
from kit.attacks.tracker import AttackResult, predicted_classes, track_attack
from kit.core import tensors
from kit.core.parameters import Count, NonNegative, check_value
from kit.core.progress import followed
from kit.core.random_streams import Streams
from kit.core.threat import Threat


def pgd_search(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    generator: Streams | None = None,
    validate: bool = True,
    steps: Count = 20,
    step: NonNegative = 0.1,
    restarts: Count = 1,
    loss: Literal["ce", "margin"] = "ce",
    init: Literal["none", "uniform", "gaussian"] = "uniform",
    stop_early: bool = False,
) -> AttackResult:
    """PGD as an evaluation: broken if any iterate of any start is misclassified.

    `step` in units of eps. `prediction` is the class of the first start's last iterate, which most
    papers count. With `stop_early` an example leaves where it breaks: the same examples are broken,
    with fewer passes, and `prediction` is the class that it was taken for. x (N, C, H, W) in [0,
    1]; y (N,) int64.

    Raises:
        KitError: Settings are out of range, or `check_inputs` refuses the inputs.
    """
    for name, value, kind in (
        ("steps", steps, Count),
        ("step", step, NonNegative),
        ("restarts", restarts, Count),
        ("loss", loss, Literal["ce", "margin"]),
        ("stop_early", stop_early, bool),
    ):
        check_value(name, value, kind)
    with track_attack(model, x, y, threat, validate=validate) as tracker:
        streams = tracker.streams(generator, "pgd")
        first = None
        for _ in followed(range(restarts), "restart"):
            x_0 = start_point(x, threat, init, streams)
            rows = tracker.unbroken() if stop_early else tracker.rows
            x_t = x_0[rows]
            for _ in followed(range(steps if len(rows) else 0), "step"):
                gradient, _, _ = tracker.gradient(
                    x_t, rows, lambda logits, y: OBJECTIVES[loss](logits, y, None)
                )
                if stop_early:
                    rows, x_t, gradient = tensors.select_rows(
                        ~tracker.broken[rows], rows, x_t, gradient
                    )
                if not len(rows):
                    break
                moved = x_t + step * threat.eps * tensors.ascent_direction(gradient, threat.norm)
                x_t = tensors.project(moved, x.index_select(0, rows), threat)
            logits = tracker.logits(x_t, rows) if len(rows) else None
            first = logits if first is None else first
        if not stop_early and first is not None:
            tracker.prediction = predicted_classes(first)
        return tracker.result("pgd")
