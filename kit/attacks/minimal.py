"""Attacks that look for the closest adversarial image, however far it is: FMN and CW-L2.

Their results keep the nearest misclassified image found, in or out of the threat's ball; `size` is its distance, infinite
where none was found. They go on after a success, for a nearer one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kit import functional as f
from kit.attacks.oracle import AttackResult, Oracle, oracle
from kit.types import Count, Positive, Streams, Threat, check_value

#: Below this a gradient or a slope counts as zero when something is divided by it.
TINY = 1e-30

#: FMN aims this share beyond the linearised boundary, see `fmn`.
OVERSHOOT = 1e-4


# ---------------------------------------------------------------------------------------------- fast minimum norm

def fmn(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, generator: Streams | None = None,
        validate: bool = True, steps: Count = 100) -> AttackResult:
    """Fast minimum-norm attack (Pintor et al., 2021, Algorithm 1) in the threat's norm, L-inf or L2. Draws nothing.

    From the clean image, `steps` normalised gradient steps (L2-normalised in either norm) against the margin, within a ball
    whose radius shrinks by γ after a success and grows by γ otherwise; before the first success it is the linearised
    distance to the boundary. Step lengths fall from 1 to 0.01 and γ from 0.05 to 0.001 as cosines. x (N, C, H, W) in
    [0, 1]; y (N,) int64. `size` in pixels. Errors: `KitError` for settings out of range, and those of `check_inputs`.

    The linearised distance is taken a ten-thousandth longer than printed. Else an example that comes to lie on the boundary
    but for a rounding, as every one may where the network is linear, stays there and counts as unbreakable.
    """
    check_value("steps", steps, Count)
    with oracle(model, x, y, threat, goal="nearest", validate=validate) as look:
        rows = look.unbroken()      # the clean image is the nearest there is where it is misclassified
        x_0, x_t = x[rows], x[rows]
        radius = x_0.new_full((len(rows),), torch.inf)      # [0, 1] bounds every step, so no cap is needed
        for t in range(steps if len(rows) else 0):
            falling = (1 + math.cos(math.pi * t / steps)) / 2
            gradient, _, logits = look.gradient(x_t, rows, lambda logits, labels: -f.margin(logits, labels))
            radius = _next_radius(look, rows, x_t - x_0, gradient, logits, radius, 0.001 + 0.049 * falling)
            step = (0.01 + 0.99 * falling) * f.ascent_direction(gradient, "l2")
            x_t = (x_0 + _shorten(x_t + step - x_0, radius, threat.norm)).clamp(0, 1)
        return look.result("fmn")


def _next_radius(look: Oracle, rows: Tensor, moved: Tensor, gradient: Tensor, logits: Tensor, radius: Tensor,
                 gamma: float) -> Tensor:
    """FMN's radius for the next step, (n,)."""
    norm, nearest = look.threat.norm, look.size[rows]
    steepness = (gradient * f.ascent_direction(gradient, norm)).flatten(1).sum(dim=1)       # the gradient's dual norm
    distance = f.norm(moved, norm) + f.margin(logits, look.y[rows]).abs() / steepness.clamp_min(TINY)
    wrong = logits.argmax(dim=1) != look.y[rows]
    seeking = (radius * (1 + gamma)).where(nearest.isfinite(), distance * (1 + OVERSHOOT))
    return torch.minimum(radius * (1 - gamma), nearest).where(wrong, seeking)


def _shorten(delta: Tensor, radius: Tensor, norm: str) -> Tensor:
    """`delta` (n, C, H, W) projected onto balls of radii (n,)."""
    radius = f.per_example(radius, delta)
    if norm == "linf":
        return delta.clamp(-radius, radius)
    return delta * (radius / f.per_example(f.norm(delta, "l2"), delta).clamp_min(TINY)).clamp_max(1)


# ---------------------------------------------------------------------------------------------- Carlini and Wagner

def cw_l2(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, generator: Streams | None = None,
          validate: bool = True, steps: Count = 10_000, search_steps: Count = 9, lr: Positive = 0.01,
          initial_const: Positive = 0.001, abort_early: bool = True) -> AttackResult:
    """Carlini and Wagner's L2 attack (2017, s. VI-D) at confidence 0. Draws nothing.

    Minimises ‖x' - x‖² + c max(z_y - max_{j≠y} z_j, 0) by Adam (rate `lr`) over w with x' = (tanh w + 1) / 2; c starts at
    `initial_const` and in `search_steps` rounds of `steps` steps is bisected, or multiplied by 10 until something breaks.
    `abort_early` ends an example's round when its loss has not fallen in a tenth of the steps; the decision is each
    example's own, where Carlini's and advertorch's look at the sum over the batch. x (N, C, H, W) in [0, 1]; y (N,) int64.

    The distance is L2 whatever the threat is: so is `size`, and the nearest image is the nearest in L2. `broken` always
    means that a misclassified image inside the given ball was met on the way. With an L-inf threat that is no measure of
    robustness, as nothing looks for such images; a note says so. Errors: `KitError` for settings out of range, and those
    of `check_inputs`.
    """
    for name, value, kind in (("steps", steps, Count), ("search_steps", search_steps, Count), ("lr", lr, Positive),
                              ("initial_const", initial_const, Positive), ("abort_early", abort_early, bool)):
        check_value(name, value, kind)
    with oracle(model, x, y, threat, goal="nearest", norm="l2", validate=validate) as look:
        if threat.norm != "l2":
            look.notes.append("CW-L2 minimises the L2 norm and its sizes are L2 norms; that it met no image within "
                              f"{threat} does not mean that there is none")
        rows = look.unbroken()
        const = x.new_full((len(rows),), initial_const)
        low, high = torch.zeros_like(const), torch.full_like(const, torch.inf)
        for _ in range(search_steps if len(rows) else 0):
            found = _descend(look, rows, const, steps, lr, abort_early)
            low, high = low.where(found, const), const.where(found, high)
            const = ((low + high) / 2).where(high.isfinite(), 10 * const)
        return look.result("cw-l2")


def _descend(look: Oracle, rows: Tensor, const: Tensor, steps: int, lr: float, abort_early: bool) -> Tensor:
    """One round with the constants `const` (n,). -> (n,) bool: was anything misclassified?"""
    found = torch.zeros_like(rows, dtype=torch.bool)
    w_0 = torch.atanh((2 * look.x[rows] - 1) * 0.999999)      # else pixels of 0 and 1 would be at infinity
    w, x_0, moments = w_0, (w_0.tanh() + 1) / 2, torch.zeros_like(torch.stack([w_0, w_0]))
    before, active = torch.full_like(const, torch.inf), torch.arange(len(rows), device=rows.device)
    for t in range(steps):
        tanh = w.tanh()
        x_t = (tanh + 1) / 2
        gradient, hinge, logits = look.gradient(x_t, rows[active], lambda logits, y: f.margin(logits, y).clamp_min(0))
        found[active] |= logits.argmax(dim=1) != look.y[rows[active]]
        loss = const[active] * hinge + f.norm(x_t - x_0[active], "l2") ** 2
        # d x_t / d w = (1 - tanh²) / 2
        downhill = (f.per_example(const[active], x_t) * gradient + 2 * (x_t - x_0[active])) * (1 - tanh ** 2) / 2
        step, moments = f.adam_step(downhill, moments, t + 1)
        w = w - lr * step
        if abort_early and t % max(steps // 10, 1) == 0:
            on = loss <= 0.999999 * before
            active, w, moments, before = active[on], w[on], moments[:, on], loss[on]
            if not len(active):
                break
    return found
