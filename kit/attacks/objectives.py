"""TODO attacks.objectives."""

from __future__ import annotations

from torch import Tensor

from kit.core import tensors


def ce_objective(logits: Tensor, y: Tensor, logits_nat: Tensor | None) -> Tensor:
    return tensors.per_example_cross_entropy(logits, y)


def kl_objective(logits: Tensor, y: Tensor, logits_nat: Tensor) -> Tensor:
    """KL(p(x) ‖ p(x_t)), TRADES' inner loss; the clean side is constant and computed once."""
    return tensors.kl(logits_nat, logits)


def margin_objective(logits: Tensor, y: Tensor, logits_nat: Tensor | None) -> Tensor:
    """max_{j≠y} z_j - z_y, the "CW loss" of the robustness papers, never clamped.

    MAIL's and GAIRAT's clamp at a confidence of 50 is only reached where the example is already
    wrong by more than 50 logits.
    """
    return -tensors.margin(logits, y)


OBJECTIVES = {"ce": ce_objective, "kl": kl_objective, "margin": margin_objective}
