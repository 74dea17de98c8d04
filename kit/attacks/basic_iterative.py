"""The basic iterative attacks, L-inf and L2."""

from __future__ import annotations

from torch import Tensor, nn

from kit.attacks.iterated_steps import iterate_steps
from kit.attacks.projected_gradient_descent import Watch
from kit.attacks.tracker import AttackResult
from kit.core import tensors
from kit.core.parameters import Count, NonNegative, check_value
from kit.core.random_streams import Streams
from kit.core.threat import Threat


def bia(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    generator: Streams | None = None,
    watch: Watch | None = None,
    validate: bool = True,
    steps: Count = 10,
    step_size: NonNegative = 0.05,
    l2: bool = False,
) -> AttackResult:
    """Basic iterative attack, as LinfBIA or L2BIA by the threat's norm.

    Gradient steps from the clean image. L2BIA clips to [0, 1] first and then shortens the
    perturbation to the ball, as advertorch does; the result lies in both sets, because shortening
    moves it towards x. The defaults are advertorch's; a step of 0.05 is longer than many a radius.
    With `l2` it is L2BIA under any threat, in the L2 ball whose radius is the number eps, as
    CSA/CSE's tables have it: it hardly leaves the image, and accuracy stays near the clean one.
    See `mifgsm` for the rest.

    Raises:
        KitError: Settings are out of range, or `check_inputs` refuses the inputs.

    Source: Kurakin et al. (2017).
    """
    check_value("l2", l2, bool)
    threat = Threat("l2", threat.eps) if l2 else threat

    def move(x_t: Tensor, gradient: Tensor, rows: Tensor) -> Tensor:
        moved = x_t + step_size * tensors.ascent_direction(gradient, threat.norm)
        # PGD projects onto the ball first; in L-inf the order of two clips does not matter
        return tensors.project(moved.clamp(0, 1), x[rows], threat)

    return iterate_steps("bia", model, x, y, threat, move, watch, validate, steps, step_size)
