"""Carlini and Wagner's L2 attack."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kit.attacks.tracker import AttackResult, AttackTracker, track_attack
from kit.core import tensors
from kit.core.parameters import Count, Positive, check_value
from kit.core.progress import followed
from kit.core.random_streams import Streams
from kit.core.threat import Threat

# ------------------------------------------------------------------------------- Carlini and Wagner


def cw_l2(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    generator: Streams | None = None,
    validate: bool = True,
    steps: Count = 10_000,
    search_steps: Count = 9,
    lr: Positive = 0.01,
    initial_const: Positive = 0.001,
    abort_early: bool = True,
    box: Literal["pixels", "ball"] = "pixels",
) -> AttackResult:
    """Carlini and Wagner's L2 attack at confidence 0; it draws nothing.

    It minimises ‖x' - x‖² + c max(z_y - max_{j≠y} z_j, 0) by Adam (rate `lr`) over w with x' =
    a + (b - a) (tanh w + 1) / 2. The box [a, b] is that of all pixels, [0, 1], or with `box` "ball"
    the part of it with pixels within eps of x's: x' then never leaves an L-inf ball. c starts at
    `initial_const` and in `search_steps` rounds of `steps` steps is bisected, or multiplied by 10
    until something breaks. `abort_early` ends an example's round when its loss has not fallen in a
    tenth of the steps; the decision is each example's own, where Carlini's and advertorch's code
    decides by the sum over the batch. x (N, C, H, W) in [0, 1]; y (N,) int64.

    The distance is L2 whatever the threat is: so is `size`, and the nearest image is the nearest in
    L2. `broken` always means that a misclassified image inside the given ball was found on the way.
    With an L-inf threat and the box of all pixels that is no measure of robustness, as nothing
    searches for such images; a note says so.

    Raises:
        KitError: Settings are out of range, or `check_inputs` refuses the inputs.

    Source: Carlini and Wagner (2017), s. VI-D; the bounded box is the kit's own, for CSA/CSE s. IV,
    which limits all perturbations to an L-inf ball and does not say how.
    """
    for name, value, kind in (
        ("steps", steps, Count),
        ("search_steps", search_steps, Count),
        ("lr", lr, Positive),
        ("initial_const", initial_const, Positive),
        ("abort_early", abort_early, bool),
        ("box", box, Literal["pixels", "ball"]),
    ):
        check_value(name, value, kind)
    with track_attack(model, x, y, threat, goal="nearest", norm="l2", validate=validate) as tracker:
        if threat.norm != "l2" and box == "pixels":
            tracker.notes.append(
                "CW-L2 minimises the L2 norm and its sizes are L2 norms; that it met no image "
                f"within {threat} does not mean that there is none"
            )
        radius = threat.eps if box == "ball" else 1.0
        bounds = (x - radius).clamp(0, 1), (x + radius).clamp(0, 1)
        rows = tracker.unbroken()
        const = x.new_full((len(rows),), initial_const)
        low, high = torch.zeros_like(const), torch.full_like(const, torch.inf)
        for _ in followed(range(search_steps if len(rows) else 0), "round"):
            found = _descend(tracker, bounds, rows, const, steps, lr, abort_early)
            low, high = low.where(found, const), const.where(found, high)
            const = ((low + high) / 2).where(high.isfinite(), 10 * const)
        return tracker.result("cw-l2")


def _descend(
    tracker: AttackTracker,
    bounds: tuple[Tensor, Tensor],
    rows: Tensor,
    const: Tensor,
    steps: int,
    lr: float,
    abort_early: bool,
) -> Tensor:
    """Run one round with the constants `const` (n,): was anything misclassified, (n,) bool?"""
    found = torch.zeros_like(rows, dtype=torch.bool)
    low, half = bounds[0][rows], (bounds[1] - bounds[0])[rows] / 2
    # without the factor, pixels on the box's sides would be at infinity; a box may be a point
    w_0 = torch.atanh(((tracker.x[rows] - low) / half.clamp_min(1e-12) - 1) * 0.999999)
    w, x_0 = w_0, low + half * (w_0.tanh() + 1)
    moments = torch.zeros_like(torch.stack([w_0, w_0]))
    before, active = torch.full_like(const, torch.inf), torch.arange(len(rows), device=rows.device)
    for t in followed(range(steps), "step"):
        tanh = w.tanh()
        x_t = low[active] + half[active] * (tanh + 1)
        gradient, hinge, logits = tracker.gradient(
            x_t, rows[active], lambda logits, y: tensors.margin(logits, y).clamp_min(0)
        )
        found[active] |= logits.argmax(dim=1) != tracker.y[rows[active]]
        loss = const[active] * hinge + tensors.norm(x_t - x_0[active], "l2") ** 2
        # d x_t / d w = (1 - tanh²) (b - a) / 2
        slope = tensors.per_example(const[active], x_t) * gradient + 2 * (x_t - x_0[active])
        downhill = slope * (1 - tanh**2) * half[active]
        step, moments = tensors.adam_step(downhill, moments, t + 1)
        w = w - lr * step
        if abort_early and t % max(steps // 10, 1) == 0:
            on = loss <= 0.999999 * before
            active, w, moments, before = active[on], w[on], moments[:, on], loss[on]
            if not len(active):
                break
    return found
