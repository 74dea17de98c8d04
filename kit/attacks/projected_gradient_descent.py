"""PGD: signed or normalised gradient steps, each projected back into the threat's ball."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kit.attacks.contract import check_inputs, frozen
from kit.core import tensors
from kit.core.errors import KitError
from kit.core.parameters import Count, NonNegative, check_value
from kit.core.random_streams import Streams, streams_of
from kit.core.threat import Threat

#: (step, images (N, C, H, W), logits (N, K)) at each evaluation point of an attack.
Watch = Callable[[int, Tensor, Tensor], None]

#: The loss (N,) that a method trains with, of (logits (N, K), labels (N,)).
TrainedLoss = Callable[[Tensor, Tensor], Tensor]


#: What PGD ascends per example, (N,), of (logits of x_t, labels, logits of x). "kl" is TRADES'
#: inner loss KL(p(x) ‖ p(x_t)), whose clean side is constant. "margin" is max_{j≠y} z_j - z_y, the
#: "CW loss" of the robustness papers, never clamped: MAIL's and GAIRAT's clamp at a confidence of
#: 50 is reached only where the example is already wrong by more than 50 logits.
OBJECTIVES: dict[str, Callable[[Tensor, Tensor, Any], Tensor]] = {
    "ce": lambda logits, y, _: tensors.per_example_cross_entropy(logits, y),
    "kl": lambda logits, _, logits_nat: tensors.kl(logits_nat, logits),
    "margin": lambda logits, y, _: -tensors.margin(logits, y),
}


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    generator: Streams | torch.Generator | None = None,
    watch: Watch | None = None,
    steps: Count = 10,
    step_size: NonNegative | None = None,
    validate: bool = True,
    trained_loss: TrainedLoss | None = None,
    loss: Literal["ce", "kl", "margin"] | Callable = "ce",
    init: Literal["none", "uniform", "gaussian", "unit"] | Tensor = "uniform",
) -> Tensor:
    """Projected gradient ascent; returns the last iterate x_adv, in the ball and in [0, 1].

    x (N, C, H, W) in [0, 1]; y (N,) int64; `step_size` in pixels (default 2.5 eps / steps). `loss`:
    a name of `OBJECTIVES`, or a function of the same arguments. `init`: none (x), uniform (in the
    ball, then clipped), gaussian (x + 0.001 N(0, 1), not clipped before the first gradient, as the
    TRADES family's code does), unit (x + U(0, 1), far outside the ball until the first projection,
    as MAIL prints it), or a start perturbation shaped like x. `watch(t, x_t, logits_t)` is
    called at the `steps` evaluation points, the start included and the returned point not: that one
    has had no forward pass. `trained_loss` is what every training attack is handed; this one does
    not use it. The model is attacked in eval mode and handed back as it was. `validate=False` is
    for a caller that has checked its data once, as the training loop has.

    Raises:
        KitError: Images lie outside [0, 1], the model does not know a label, returns NaN or
            probabilities, or a setting is out of its range.

    Source: Madry et al., 2018.
    """
    if validate:
        check_inputs(model, x, y)
        check_value("steps", steps, Count)
        if not callable(loss):
            check_value("loss", loss, Literal["ce", "kl", "margin"])
        if step_size is not None:
            check_value("step_size", step_size, NonNegative)
    step_size = 2.5 * threat.eps / steps if step_size is None else step_size
    objective = loss if callable(loss) else OBJECTIVES[loss]
    with frozen(model):
        logits_nat = None
        if loss == "kl":
            with torch.no_grad():
                logits_nat = model(x)
        x_t = start_point(x, threat, init, streams_of(generator, x))
        project = tensors.projection(x, threat)
        for t in range(steps):
            point = x_t.detach().requires_grad_(True)
            with torch.enable_grad():
                logits = model(point)
                # of the sum: an example's gradient must not depend on its batch's size
                gradient = tensors.image_gradient(objective(logits, y, logits_nat), point)
            if watch is not None:
                watch(t, x_t, logits.detach())
            x_t = project(x_t + step_size * tensors.ascent_direction(gradient, threat.norm))
    return x_t


def trained_loss_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    trained_loss: TrainedLoss,
    init: Literal["none", "uniform", "gaussian", "unit"] | Tensor = "uniform",
    **supplied: Any,
) -> Tensor:
    """PGD on the loss that is trained, with its weights or class costs; see `pgd`.

    WMMR's code maximises exp(-α PM) CE; CSA Eq. 4 may be read so that the maximum covers the class
    costs, too.
    """
    parts = model, x, y, threat
    return pgd(*parts, loss=lambda logits, y, _: trained_loss(logits, y), init=init, **supplied)


def start_point(x: Tensor, threat: Threat, init: str | Tensor, streams: Streams) -> Tensor:
    """Return the first iterate, (N, C, H, W); see `pgd`.

    Raises:
        KitError: `init` is unknown, or a start perturbation has another shape than the images.
    """
    if isinstance(init, Tensor):
        if init.shape != x.shape:
            raise KitError(
                f"the start perturbation has shape {tuple(init.shape)}, the images {tuple(x.shape)}"
            )
        return x + init
    if init == "none":
        return x
    if init == "gaussian":
        return x + 0.001 * streams.normal(x)
    if init == "unit":
        return x + streams.uniform(x)
    if init != "uniform":
        raise KitError(f"init={init!r} is none of: none, uniform, gaussian, unit, or a tensor")
    if threat.norm == "linf":
        return (x + threat.eps * (2 * streams.uniform(x) - 1)).clamp(0, 1)
    direction = streams.normal(x)
    radius = streams.uniform(x.flatten(1)[:, :1]).squeeze(1) ** (1 / x[0].numel())
    return (
        x + threat.eps * tensors.per_example(radius, x) * tensors.ascent_direction(direction, "l2")
    ).clamp(0, 1)
