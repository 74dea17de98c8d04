"""FGSM and PGD: signed or normalised gradient steps, projected back into the threat's ball."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from kit import functional as f
from kit.attacks.contract import check_inputs, frozen
from kit.types import Count, KitError, Natural, NonNegative, Streams, Threat, check_value, draw

Watch = Callable[[int, Tensor, Tensor], None]


def ce_objective(logits: Tensor, y: Tensor, logits_nat: Tensor | None) -> Tensor:
    return f.cross_entropy(logits, y)


def kl_objective(logits: Tensor, y: Tensor, logits_nat: Tensor) -> Tensor:
    """KL(p(x) ‖ p(x_t)), TRADES' inner loss; the clean side is constant and computed once."""
    return f.kl(logits_nat, logits)


def margin_objective(logits: Tensor, y: Tensor, logits_nat: Tensor | None) -> Tensor:
    """max_{j≠y} z_j - z_y, the "CW loss" of the robustness papers, never clamped.

    MAIL's and GAIRAT's clamp at a confidence of 50 is only reached where the example is already wrong by more
    than 50 logits.
    """
    return -f.margin(logits, y)


OBJECTIVES = {"ce": ce_objective, "kl": kl_objective, "margin": margin_objective}


def fgsm(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *,
         generator: Streams | torch.Generator | None = None, watch: Watch | None = None,
         validate: bool = True) -> Tensor:
    """One step of length eps from the clean image (Goodfellow et al., 2015). Draws nothing. -> x_adv (N, C, H, W)."""
    return pgd(model, x, y, threat, watch=watch, steps=1, step_size=threat.eps, init="none", validate=validate)


def pgd(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *,
        generator: Streams | torch.Generator | None = None, watch: Watch | None = None,
        steps: Count = 10, step_size: NonNegative | None = None, validate: bool = True,
        loss: Literal["ce", "kl", "margin"] | Callable = "ce",
        init: Literal["none", "uniform", "gaussian"] | Tensor = "uniform") -> Tensor:
    """Projected gradient ascent (Madry et al., 2018). -> the last iterate x_adv, in the ball and in [0, 1].

    x (N, C, H, W) in [0, 1]; y (N,) int64; `step_size` in pixels (default 2.5 eps / steps). `loss`: a name, or a
    function (logits, y, clean logits or None) -> (N,) to ascend. `init`: none (x),
    uniform (in the ball, then clipped), gaussian (x + 0.001 N(0, 1), not clipped before the first gradient, as the
    TRADES family's code does), or a start perturbation shaped like x. `watch(t, x_t, logits_t)` is called at the
    `steps` evaluation points, the start included and the returned point not: that one has had no forward pass.

    The model is attacked in eval mode and handed back as it was. Errors: `KitError` for images outside [0, 1],
    labels the model does not know, NaN logits, or a model that returns probabilities (`validate=False` for a
    caller that has checked its data once, as the training loop has).
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
        x_t = start(x, threat, init, generator)
        for t in range(steps):
            x_t = x_t.detach().requires_grad_(True)
            with torch.enable_grad():
                logits = model(x_t)
                # summed, not averaged: an example's gradient must not depend on its batch's size
                (gradient,) = torch.autograd.grad(objective(logits, y, logits_nat).sum(), x_t)
            x_t = x_t.detach()
            if watch is not None:
                watch(t, x_t, logits.detach())
            x_t = f.project(x_t + step_size * f.ascent_direction(gradient, threat.norm), x, threat)
    return x_t


def own_loss_pgd(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, own: Callable[[Tensor, Tensor], Tensor],
                 init: Literal["none", "uniform", "gaussian"] | Tensor = "uniform", **supplied) -> Tensor:
    """PGD on the loss that is trained, `own` (logits, y) -> (N,), with its weights or class costs. See `pgd`.

    WMMR's code maximises exp(-α PM) CE; CSA Eq. 4 may be read so that the maximum covers the class costs, too.
    """
    return pgd(model, x, y, threat, loss=lambda logits, labels, _: own(logits, labels), init=init, **supplied)


def friendly_pgd(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *,
                 generator: Streams | torch.Generator | None = None, watch: Watch | None = None, steps: Count = 10,
                 step_size: NonNegative | None = None, validate: bool = True, tau: Natural = 0, omega: NonNegative = 0.001,
                 loss: Literal["ce", "kl", "margin"] = "ce",
                 init: Literal["none", "uniform", "gaussian"] | Tensor = "uniform") -> Tensor:
    """PGD in which an example stops where it has been misclassified at τ + 1 evaluation points, the start included. FAT.

    Every start is clipped to [0, 1], and each step adds ω N(0, 1) before the projection. Examples keep their places
    (FAT's code returns them in the order in which they stop); one that has stopped costs no more passes. See `pgd`.
    """
    if validate:
        check_inputs(model, x, y)
    step_size = 2.5 * threat.eps / steps if step_size is None else step_size
    with frozen(model):
        with torch.no_grad():
            logits_nat = model(x) if loss == "kl" else None
        x_t, patience = start(x, threat, init, generator).clamp(0, 1), torch.full_like(y, tau)
        rows, seen = torch.arange(len(y), device=y.device), None
        for t in range(steps):
            active = x_t[rows].detach().requires_grad_(True)
            with torch.enable_grad():
                logits = model(active)
                clean = None if logits_nat is None else logits_nat[rows]
                (gradient,) = torch.autograd.grad(OBJECTIVES[loss](logits, y[rows], clean).sum(), active)
            seen = logits.detach() if seen is None else seen.index_copy(0, rows, logits.detach())
            if watch is not None:
                watch(t, x_t, seen)
            wrong = logits.argmax(dim=1) != y[rows]
            goes_on = ~wrong | (patience[rows] > 0)
            patience[rows] -= wrong.long()
            noise = omega * draw(generator, "normal", x)[rows] if omega else 0.0
            step = step_size * f.ascent_direction(gradient, threat.norm) + noise
            moved = f.project(active.detach() + step, x[rows], threat)
            rows = rows[goes_on]
            x_t = x_t.detach().index_copy(0, rows, moved[goes_on])
            if not len(rows):
                break
    return x_t


def start(x: Tensor, threat: Threat, init: str | Tensor, source: Streams | torch.Generator | None) -> Tensor:
    """The first iterate; see `pgd`."""
    if isinstance(init, Tensor):
        if init.shape != x.shape:
            raise KitError(f"the start perturbation has shape {tuple(init.shape)}, the images {tuple(x.shape)}")
        return x + init
    if init == "none":
        return x
    if init == "gaussian":
        return x + 0.001 * draw(source, "normal", x)
    if init != "uniform":
        raise KitError(f"init={init!r} is none of: none, uniform, gaussian, or a tensor")
    if threat.norm == "linf":
        return (x + threat.eps * (2 * draw(source, "uniform", x) - 1)).clamp(0, 1)
    direction = draw(source, "normal", x)
    radius = draw(source, "uniform", x.flatten(1)[:, :1]).squeeze(1) ** (1 / x[0].numel())
    return (x + threat.eps * f.per_example(radius, x) * f.ascent_direction(direction, "l2")).clamp(0, 1)
