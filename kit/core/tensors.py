"""Per-example mathematics of logits and of perturbations.

Everything returns shape (N,) or an image batch. Cross-entropy and KL stay in log space: a softmax
that underflows costs no gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.core.errors import KitError
from kit.core.threat import Threat


def per_example_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y, (N,) nats."""
    return F.cross_entropy(logits, y, reduction="none")


def kl(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """KL(p ‖ q) of two softmaxes, (N,) nats; gradients flow through both arguments."""
    log_p, log_q = logits_p.log_softmax(dim=1), logits_q.log_softmax(dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def true_and_top_other(values: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(v_y, max_{j≠y} v_j), each (N,), of logits or probabilities (N, K)."""
    true = values.gather(1, y[:, None]).squeeze(1)
    other = values.scatter(1, y[:, None], -torch.inf).amax(dim=1)
    return true, other


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - max_{j≠y} z_j, (N,): negative where the example is misclassified."""
    true, other = true_and_top_other(logits, y)
    return true - other


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """-(z_y - max_{j≠y} z_j) / (z_(1) - z_(3)), (N,) to ascend; K >= 3.

    z_(k) is the k-th largest logit. Shifting or scaling the logits changes nothing. 1e-12 is added
    to the denominator, as in auto-attack.

    Source: Croce and Hein (2020), Eq. 6.
    """
    top = logits.topk(3, dim=1).values
    return -margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_t - z_y, (N,) to ascend: positive where class `target` (N,) beats the label."""
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2), (N,) to ascend; K >= 4.

    See `dlr`.

    Source: Croce and Hein (2020), Eq. 7.
    """
    top = logits.topk(4, dim=1).values
    return targeted_margin(logits, y, target) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def image_gradient(value: Tensor, x: Tensor) -> Tensor:
    """Return the gradient (N, C, H, W) of `value`, or of the sum of several, at the images `x`.

    Raises:
        KitError: None leads back to them.
    """
    if not value.requires_grad:
        raise KitError(
            "no gradient leads from the network's output back to its images. Only attacks without "
            "gradients (square, spsa100) can attack it. Look for no_grad, inference_mode, "
            "detach or whole numbers in its forward pass"
        )
    (gradient,) = torch.autograd.grad(value, x, torch.ones_like(value))
    return gradient


# ----------------------------------------------------------------------------------------- geometry


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """Reshape values (N,) to (N, 1, 1, 1), so that they broadcast over the images `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))


def norm(delta: Tensor, which: str) -> Tensor:
    """L-inf or L2 norm per example, (N,)."""
    flat = delta.flatten(1)
    return flat.abs().amax(dim=1) if which == "linf" else flat.norm(dim=1)


def project(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Pull `x_adv` back into the threat's ball around `x`, then into [0, 1].

    Both sets are convex and hold `x`; the clip to [0, 1] only shortens an L-inf or L2 perturbation,
    so the result lies in both.
    """
    if threat.norm == "linf":
        near = torch.maximum(x_adv, x - threat.eps).minimum(x + threat.eps)
    else:
        delta = x_adv - x
        near = x + delta * per_example(
            (threat.eps / norm(delta, "l2").clamp_min(1e-12)).clamp_max(1), x
        )
    return near.clamp_(0, 1)


def projection(x: Tensor, threat: Threat) -> Callable[[Tensor], Tensor]:
    """`project` as a function of x_adv alone; of an L-inf ball the bounds are computed once."""
    if threat.norm != "linf":
        return lambda x_adv: project(x_adv, x, threat)
    low, high = (x - threat.eps).clamp_(0, 1), (x + threat.eps).clamp_(0, 1)
    return lambda x_adv: x_adv.clamp(low, high)


def where(which: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The images `a` where `which` (N,) bool holds, else the images `b`; both must be finite.

    `torch.where` takes several times as long on CPUs.
    """
    return b.lerp(a, per_example(which.to(a.dtype), a))


def select_rows(which: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Select from each of `values` (N, ...) the places where `which` (N,) bool holds.

    Where that is everywhere, the values themselves are returned.
    """
    places = which.nonzero().squeeze(1)
    return (
        values
        if len(places) == len(which)
        else tuple(each.index_select(0, places) for each in values)
    )


def ascent_direction(gradient: Tensor, which: str) -> Tensor:
    """The steepest ascent of unit length in the norm.

    It is the gradient's sign (L-inf) or the normalised gradient (L2).
    """
    if which == "linf":
        return gradient.sign()
    largest = per_example(norm(gradient, "linf"), gradient)
    # a confident network's gradients would vanish when squared
    scaled = gradient / largest.where(largest > 0, 1)
    length = per_example(norm(scaled, "l2"), gradient)
    return scaled / length.where(length > 0, 1)


def adam_step(gradient: Tensor, moments: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """Return (direction to subtract, new moments) of Adam's step t = 1, 2, ...

    `moments` (2, N, ...) start as zeros. A function and no optimizer, so that an attack can drop
    examples on the way.

    Source: Kingma and Ba (2015), Algorithm 1.
    """
    moments = torch.stack(
        [0.9 * moments[0] + 0.1 * gradient, 0.999 * moments[1] + 0.001 * gradient**2]
    )
    return moments[0] / (1 - 0.9**t) / ((moments[1] / (1 - 0.999**t)).sqrt() + 1e-8), moments


# ------------------------------------------------------------------------------------------- checks


def check_labels(y: Tensor, num_classes: int) -> None:
    """Refuse labels that are not int64 (N,) or not below `num_classes`.

    Raises:
        KitError: The labels do not fit.
    """
    if y.dtype != torch.int64 or y.dim() != 1:
        raise KitError(
            f"labels have dtype {y.dtype} and shape {tuple(y.shape)}; expected int64 (N,)"
        )
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < num_classes:
        raise KitError(
            f"labels run from {int(y.min())} to {int(y.max())}; a model with {num_classes} outputs "
            f"knows 0 to {num_classes - 1}"
        )


def check_images(x: Tensor) -> None:
    """Refuse images that are not float32 or float64 (N, C, H, W) in [0, 1].

    In half precision an eps of a few 255ths is a few steps of a pixel, and verdicts would be wrong.

    Raises:
        KitError: The images do not fit.
    """
    if not isinstance(x, Tensor):
        raise KitError(f"images are of type {type(x).__name__}; expected a tensor (N, C, H, W)")
    if not x.is_floating_point() or x.dim() < 2:
        raise KitError(
            f"images have dtype {x.dtype} and shape {tuple(x.shape)}; expected floats (N, C, H, W)"
        )
    if x.dtype not in (torch.float32, torch.float64):
        raise KitError(
            f"images have dtype {x.dtype}, too coarse for such perturbations; pass x.float()"
        )
    if len(x) and not (float(x.min()) >= 0 and float(x.max()) <= 1):  # NaN fails both comparisons
        raise KitError(
            f"pixels run from {float(x.min()):g} to {float(x.max()):g}; attacks and models take "
            "[0, 1]. Scale the images, and put any normalisation inside the model"
        )


def check_logit_shape(logits: Tensor, n: int) -> None:
    """Refuse a model's output that is no batch (N, K), K >= 2.

    Raises:
        KitError: The output is no tensor, or has another shape.
    """
    if not isinstance(logits, Tensor):
        raise KitError(
            f"the model returned a {type(logits).__name__}; expected a tensor of logits (N, K). "
            "Put it into a module whose forward returns the logits alone"
        )
    if logits.dim() != 2 or logits.shape[0] != n or logits.shape[1] < 2:
        raise KitError(
            f"the model returned shape {tuple(logits.shape)} for {n} images; expected logits (N, K)"
        )


def check_logits(logits: Tensor, n: int) -> None:
    """Refuse a model's output that is no finite batch of logits (N, K), K >= 2.

    Raises:
        KitError: The output has another shape, is not finite, or holds probabilities.
    """
    check_logit_shape(logits, n)
    if not bool(logits.isfinite().all()):
        bad = int((~logits.isfinite().all(dim=1)).sum())
        raise KitError(
            f"the model returned NaN or infinite logits for {bad} of {n} images; it cannot be "
            "evaluated. Look for a diverged training run or a faulty checkpoint"
        )
    if n > 1 and float(logits.min()) >= 0 and bool(((logits.sum(dim=1) - 1).abs() < 1e-4).all()):
        raise KitError(
            "the model returns probabilities (rows are non-negative and sum to 1); attacks need "
            "logits. Remove its last softmax"
        )
