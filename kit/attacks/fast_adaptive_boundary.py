"""FAB, the fast adaptive boundary attack.

It searches for the closest adversarial image along the linearised boundary.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from kit.attacks.auto_pgd import at_once, targets_of, touching
from kit.attacks.tracker import AttackResult, AttackTracker, predicted_classes, track_attack
from kit.core import tensors
from kit.core.parameters import Count, check_value
from kit.core.progress import followed
from kit.core.random_streams import Streams
from kit.core.threat import Threat

#: Auto-attack's settings: how far beyond the hyperplane, the largest pull towards x, and the way
#: kept after a success.
FAB_OVERSHOOT, PULL, BACK = 1.05, 0.1, 0.9


#: Stands for infinity where infinity times zero would be NaN.
HUGE = 1e30


def fab(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    generator: Streams | None = None,
    validate: bool = True,
    steps: Count = 100,
    restarts: Count = 1,
    targeted: bool = True,
    goal: Literal["nearest", "inside"] = "nearest",
) -> AttackResult:
    """Fast adaptive boundary attack in the threat's norm, with auto-attack's settings.

    `steps` times: linearise the network's decision at x_t, project x_t and x onto that hyperplane
    within [0, 1] (see `to_hyperplane`), and go to a mean of the two, which leans to x's projection
    as far as x_t was from the plane; after a success go a tenth of the way back. `targeted`
    (FAB-T): one search for each of min(9, K - 1) targets, linearising z_t - z_y; else a single
    search, towards the class whose linearised boundary is nearest, at K - 1 passes a step. The
    first of `restarts` searches starts at x, the others at random within eps / 2. The final line
    search of the paper is left out, as in auto-attack's code. x (N, C, H, W) in [0, 1], y (N,)
    int64; `size` in pixels.

    `goal`: "nearest" searches to the end and keeps the closest misclassified image, whatever its
    distance; "inside" is only after the flags: an example leaves once something breaks it inside
    the ball.

    Raises:
        KitError: Settings are out of range, or `check_inputs` refuses the inputs.

    Source: Croce and Hein (2020b), Algorithm 1.
    """
    for name, value, kind in (
        ("steps", steps, Count),
        ("restarts", restarts, Count),
        ("targeted", targeted, bool),
        ("goal", goal, Literal["nearest", "inside"]),
    ):
        check_value(name, value, kind)
    with track_attack(model, x, y, threat, goal=goal, validate=validate) as tracker:
        streams, wanted = tracker.streams(generator, "fab"), tracker.unbroken()
        targets = torch.stack(targets_of(tracker)) if targeted else None
        copies = 1 if targets is None else len(targets)
        for restart in followed(range(restarts), "restart"):
            x_0 = torch.stack(
                [
                    x if restart == 0 else touching(x, Threat(threat.norm, threat.eps / 2), streams)
                    for _ in range(copies)
                ]
            )
            searched = wanted[~tracker.broken[wanted] | (goal == "nearest")]
            for rows in followed(at_once(searched, copies), "part"):
                search_boundary(
                    tracker,
                    x_0[:, rows].flatten(0, 1),
                    rows.repeat(copies),
                    None if targets is None else targets[:, rows].flatten(),
                    steps,
                )
        return tracker.result("fab")


def search_boundary(
    tracker: AttackTracker, x_t: Tensor, rows: Tensor, target: Tensor | None, steps: int
) -> None:
    """Search once from the points `x_t` (n, C, H, W), for the classes `target` (n,).

    The points are images of the examples `rows` (n,), which may be named repeatedly. A step is a
    gradient and a pass that tells whether its end is misclassified. If not, the next gradient is
    taken at the same point; this second pass of it is not saved, as most steps cross the boundary.
    If so, the gradient's pass also tells whether the point gone back to is misclassified:
    auto-attack's code misses such points.
    """
    for _ in followed(range(steps), "step"):
        if not len(rows):
            return
        value, gradient = linearise(tracker, x_t, rows, target)
        x = tracker.x.index_select(0, rows)
        x_t = step_to_boundary(x_t, x, value, gradient, tracker.threat.norm)
        wrong = predicted_classes(tracker.logits(x_t, rows)) != tracker.y[rows]
        x_t = tensors.where(wrong, x + BACK * (x_t - x), x_t)
        if tracker.goal == "inside":
            on = ~tracker.broken[rows]
            target = None if target is None else target[on]
            rows, x_t = tensors.select_rows(on, rows, x_t)


def linearise(
    tracker: AttackTracker, x_t: Tensor, rows: Tensor, target: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(z_t - z_y (n,), its gradient) at `x_t`, for the classes `target` (n,).

    Without a target it is the class whose linearised boundary |z_j - z_y| / ‖gradient‖_dual is
    nearest.
    """
    if target is not None:
        gradient, value, _ = tracker.gradient(
            x_t, rows, lambda z, y: tensors.targeted_margin(z, y, target)
        )
        return value, gradient
    nearest = x_t.new_full((len(rows),), torch.inf)
    value, gradient = torch.zeros_like(nearest), torch.zeros_like(x_t)
    for other in range(1, tracker.num_classes):
        rival = (tracker.y[rows] + other) % tracker.num_classes
        slope, excess, _ = tracker.gradient(
            x_t, rows, partial(tensors.targeted_margin, target=rival)
        )
        dual = (slope * tensors.ascent_direction(slope, tracker.threat.norm)).flatten(1).sum(dim=1)
        distance = excess.abs() / dual.clamp_min(1e-12)
        closer = distance < nearest
        nearest, value = distance.where(closer, nearest), excess.where(closer, value)
        gradient = tensors.where(closer, slope, gradient)
    return value, gradient


def step_to_boundary(x_t: Tensor, x: Tensor, value: Tensor, gradient: Tensor, norm: str) -> Tensor:
    """FAB's next point: (1 - α) (x_t + 1.05 d_t) + α (x + 1.05 d), clipped to [0, 1].

    α = min(‖d_t‖ / (‖d_t‖ + ‖d‖), 0.1).
    """
    at_x = value + (gradient * (x - x_t)).flatten(1).sum(dim=1)  # the linearisation's value at x
    d_t, d = to_hyperplane(x_t, gradient, value, norm), to_hyperplane(x, gradient, at_x, norm)
    length_t, length = (tensors.norm(v, norm).clamp_min(1e-8) for v in (d_t, d))
    pull = tensors.per_example((length_t / (length_t + length)).clamp_max(PULL), x)
    return ((1 - pull) * (x_t + FAB_OVERSHOOT * d_t) + pull * (x + FAB_OVERSHOOT * d)).clamp(0, 1)


def to_hyperplane(points: Tensor, w: Tensor, value: Tensor, norm: str) -> Tensor:
    """The shortest d (n, ...) with value + ⟨w, d⟩ = 0 and points + d in [0, 1].

    Where no d reaches the plane, it leads towards the corner. With u = 1 (L-inf) or |w| (L2), d_i =
    ± min(λ u_i, room_i), room being the way to the wall. What d achieves, Σ |w_i| min(λ u_i,
    room_i), is concave and piecewise linear in λ, so that Newton's method from λ = 0 rises to the
    root and is there after finitely many steps, mostly five. Croce and Hein sort the pixels
    instead, which costs several times as much.
    """
    shape, points, w, value = points.shape, points.flatten(1), w.flatten(1), value.nan_to_num()
    sign, w = w.sign() * (2 * (value < 0).to(w.dtype) - 1)[:, None], w.abs()
    largest = w.amax(dim=1, keepdim=True)
    largest = largest.where(largest > 0, 1)  # else squares of small gradients would vanish
    w, wanted = w / largest, value.abs() / largest.squeeze(1)
    room = (sign / 2).add_(0.5).sub_(points).abs_()  # where w is 0 it is no room, and nothing moves
    most, gain, wall = (w * room, w, room) if norm == "linf" else (w * room, w * w, room / w)
    scale, full, free = torch.zeros_like(wanted), torch.empty_like(w), torch.empty_like(w)
    while True:
        # masks of numbers: `where` is many times slower on CPUs
        torch.le(wall, scale[:, None], out=full)
        torch.gt(wall, scale[:, None], out=free)
        slope = torch.linalg.vecdot(gain, free)
        higher = (wanted - torch.linalg.vecdot(most, full)) / slope
        higher = higher.where(slope > 0, HUGE).clamp(max=HUGE)
        if not bool((higher > scale).any()):
            reach = scale[:, None] if norm == "linf" else scale[:, None] * w
            return torch.minimum(reach, room).mul_(sign).view(shape)
        scale = torch.maximum(scale, higher)
