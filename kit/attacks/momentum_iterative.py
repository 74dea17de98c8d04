"""MI-FGSM, the momentum iterative attack."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kit.attacks.iterated_steps import iterate_steps
from kit.attacks.projected_gradient_descent import Watch
from kit.attacks.tracker import AttackResult
from kit.core import tensors
from kit.core.parameters import Count, NonNegative, check_value
from kit.core.random_streams import Streams
from kit.core.threat import Threat


def mifgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    generator: Streams | None = None,
    watch: Watch | None = None,
    validate: bool = True,
    steps: Count = 40,
    step_size: NonNegative = 0.01,
    decay: NonNegative = 1.0,
) -> AttackResult:
    """Momentum iterative attack, MI-FGSM or MIA: g ← decay · g + ∇CE / ‖∇CE‖₁.

    x (N, C, H, W) in [0, 1]; y (N,) int64; `step_size` in pixels. Each step follows the steepest
    ascent along g, then projects onto the ball and [0, 1]. The defaults are advertorch's. `watch(t,
    x_t, logits_t)` is called at the `steps` evaluation points, the start included; the point after
    the last step is evaluated, too, but not shown.

    Raises:
        KitError: Settings are out of range, or `check_inputs` refuses the inputs.

    Source: Dong et al. (2018), Eq. 6 to 8.
    """
    check_value("decay", decay, NonNegative)
    momentum = torch.zeros_like(x)

    def move(x_t: Tensor, gradient: Tensor, rows: Tensor) -> Tensor:
        # divided by it first, because the sum of tiny gradients underflows
        largest = tensors.per_example(tensors.norm(gradient, "linf"), x)
        scaled = gradient / largest.where(largest > 0, 1)
        total = tensors.per_example(scaled.flatten(1).abs().sum(dim=1), x)
        momentum[rows] = decay * momentum[rows] + scaled / total.where(total > 0, 1)
        return tensors.project(
            x_t + step_size * tensors.ascent_direction(momentum[rows], threat.norm), x[rows], threat
        )

    return iterate_steps("mifgsm", model, x, y, threat, move, watch, validate, steps, step_size)
