"""Iterated gradient steps that remember: momentum (MI-FGSM), the basic iterative attacks, and LM-PGD.

Unlike `kit.attacks.gradient.pgd` they return an `AttackResult`. Each drops an example where it breaks, unless a
`watch` is given: a path is then walked to its end. The start is the clean image; nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kit import functional as f
from kit.attacks.gradient import Watch
from kit.attacks.oracle import AttackResult, Oracle, oracle
from kit.types import Count, NonNegative, Share, Streams, Threat, check_value

#: LM-PGD's line search tries the step size times these.
LINE_SEARCH = (1 / 4, 1 / 2, 1, 2, 4)


def mifgsm(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, generator: Streams | None = None,
           watch: Watch | None = None, validate: bool = True, steps: Count = 40, step_size: NonNegative = 0.01,
           decay: NonNegative = 1.0) -> AttackResult:
    """Momentum iterative attack, MI-FGSM or MIA (Dong et al., 2018, Eq. 6 to 8): g ← decay · g + ∇CE / ‖∇CE‖₁.

    x (N, C, H, W) in [0, 1]; y (N,) int64; `step_size` in pixels. Each step follows the steepest ascent along g, then
    projects onto the ball and [0, 1]. The defaults are advertorch's. `watch(t, x_t, logits_t)` is called at the `steps`
    evaluation points, the start included; the point after the last step is evaluated, too, but not shown. Errors: `KitError`
    for settings out of range and those of `check_inputs`.
    """
    check_value("decay", decay, NonNegative)
    momentum = torch.zeros_like(x)

    def move(x_t: Tensor, gradient: Tensor, rows: Tensor) -> Tensor:
        largest = f.per_example(f.norm(gradient, "linf"), x)     # first, for tiny gradients have a sum that underflows
        scaled = gradient / largest.where(largest > 0, 1)
        total = f.per_example(scaled.flatten(1).abs().sum(dim=1), x)
        momentum[rows] = decay * momentum[rows] + scaled / total.where(total > 0, 1)
        return f.project(x_t + step_size * f.ascent_direction(momentum[rows], threat.norm), x[rows], threat)

    return _iterate("mifgsm", model, x, y, threat, move, watch, validate, steps, step_size)


def bia(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, generator: Streams | None = None,
        watch: Watch | None = None, validate: bool = True, steps: Count = 10, step_size: NonNegative = 0.05,
        l2: bool = False) -> AttackResult:
    """Basic iterative attack (Kurakin et al., 2017), as LinfBIA or L2BIA by the threat's norm. See `mifgsm` for the rest.

    Gradient steps from the clean image. L2BIA clips to [0, 1] first and then shortens the perturbation to the ball, as
    advertorch does; the result lies in both sets, because shortening moves it towards x. The defaults are advertorch's; a
    step of 0.05 is longer than many a radius. With `l2` it is L2BIA under any threat, in the L2 ball whose radius is the
    number eps, as CSA/CSE's tables have it: it hardly leaves the image, and accuracy stays near the clean one.
    """
    check_value("l2", l2, bool)
    threat = Threat("l2", threat.eps) if l2 else threat

    def move(x_t: Tensor, gradient: Tensor, rows: Tensor) -> Tensor:
        moved = x_t + step_size * f.ascent_direction(gradient, threat.norm)
        # PGD projects onto the ball first; in L-inf the order of two clips does not matter
        return f.project(moved.clamp(0, 1), x[rows], threat)

    return _iterate("bia", model, x, y, threat, move, watch, validate, steps, step_size)


def lmpgd(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, generator: Streams | None = None,
          watch: Watch | None = None, validate: bool = True, steps: Count = 50, step_size: NonNegative | None = None,
          momentum: Share = 0.9) -> AttackResult:
    """LM-PGD: PGD with Nesterov momentum and a line search for each example's step. The kit's own definition.

    MAIL (s. 2.2, Fig. 1a) gives no more than "line-searched step and Nesterov momentum". Here the gradient of the
    cross-entropy is taken at the look-ahead point P(x_t + momentum · (x_t - x_{t-1})), P being the projection onto ball and
    [0, 1]; from there each example takes the one of the steps `step_size` · {1/4, 1/2, 1, 2, 4} after which its
    cross-entropy is largest. A step costs six passes and one gradient. `step_size` defaults to 2.5 eps / steps. `watch` is
    told of x_0 = x and of what the line searches chose. See `mifgsm` for the rest.
    """
    check_value("steps", steps, Count)
    check_value("momentum", momentum, Share)
    step_size = 2.5 * threat.eps / steps if step_size is None else check_value("step_size", step_size, NonNegative)
    with oracle(model, x, y, threat, validate=validate) as look:
        rows, x_t, velocity, logits = look.rows, x, torch.zeros_like(x), look.logits_nat
        for t in range(steps):
            if watch is not None:
                watch(t, x_t, logits)
            rows, x_t, velocity = _still_walking(look, watch, rows, x_t, velocity)
            if not len(rows):
                break
            ahead = f.project(x_t + momentum * velocity, x[rows], threat)
            gradient, _, _ = look.gradient(ahead, rows, f.cross_entropy)
            moved, logits = _line_search(look, rows, ahead, f.ascent_direction(gradient, threat.norm), step_size)
            x_t, velocity = moved, moved - x_t
        return look.result("lmpgd")


def _line_search(look: Oracle, rows: Tensor, ahead: Tensor, direction: Tensor, step_size: float) -> tuple[Tensor, Tensor]:
    """(points (n, C, H, W), their logits): of each example the step with the largest cross-entropy; the first of equals."""
    best, x_best, logits_best = torch.full((len(rows),), -torch.inf, dtype=ahead.dtype, device=ahead.device), ahead, None
    for factor in LINE_SEARCH:
        tried = f.project(ahead + factor * step_size * direction, look.x[rows], look.threat)
        logits = look.logits(tried, rows)
        loss = f.cross_entropy(logits, look.y[rows])
        better = loss > best
        best = loss.where(better, best)
        x_best = f.either(better, tried, x_best)
        logits_best = logits if logits_best is None else logits.where(better[:, None], logits_best)
    return x_best, logits_best


def _iterate(name: str, model: nn.Module, x: Tensor, y: Tensor, threat: Threat,
             move: Callable[[Tensor, Tensor, Tensor], Tensor], watch: Watch | None, validate: bool, steps: int,
             step_size: float) -> AttackResult:
    """`steps` times the cross-entropy's gradient and `move(x_t, gradient, rows)`; the last point is evaluated, too."""
    check_value("steps", steps, Count)
    check_value("step_size", step_size, NonNegative)
    with oracle(model, x, y, threat, validate=validate) as look:
        rows, x_t = _still_walking(look, watch, look.rows, x)
        for t in range(steps):
            if not len(rows):
                break
            gradient, _, logits = look.gradient(x_t, rows, f.cross_entropy)
            if watch is not None:
                watch(t, x_t, logits)
            rows, x_t, gradient = _still_walking(look, watch, rows, x_t, gradient)
            x_t = move(x_t, gradient, rows)
        if len(rows):
            look.logits(x_t, rows)
        return look.result(name)


def _still_walking(look: Oracle, watch: Watch | None, rows: Tensor, *along: Tensor) -> tuple[Tensor, ...]:
    """`rows` and what belongs to them, without the broken examples unless somebody watches."""
    if watch is not None:
        return rows, *along
    return f.those(~look.broken[rows], rows, *along)
