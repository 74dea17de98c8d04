"""Base losses. Each returns (weighted, plain), both (N,): a method's loss is mean(w · weighted +
plain).

The arguments name the fields of `kit.methods.step_outputs.StepOutputs` that the loss reads, so a
loss that needs the clean logits says so by asking for them. Gradients flow through both sides of
every KL, as in the authors' code.
"""

from __future__ import annotations

from torch import Tensor

from kit.core import tensors
from kit.core.errors import KitError
from kit.core.parameters import Natural, NonNegative
from kit.core.registry import Registry
from kit.methods.regularisers import cost_matrix


def cross_entropy(logits_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """CE(x_adv): standard training where the stage is clean, AT where it is adversarial."""
    loss = tensors.per_example_cross_entropy(logits_adv, y)
    return loss, loss.new_zeros(())


def trades(
    logits_nat: Tensor, logits_adv: Tensor, y: Tensor, *, beta: NonNegative = 6.0
) -> tuple[Tensor, Tensor]:
    """CE(x) + β KL(p(x) ‖ p(x_adv)); a weight multiplies the KL. TRADES; MAIL-TRADES."""
    return beta * tensors.kl(logits_nat, logits_adv), tensors.per_example_cross_entropy(
        logits_nat, y
    )


def mart(
    logits_nat: Tensor, logits_adv: Tensor, y: Tensor, *, beta: NonNegative = 5.0
) -> tuple[Tensor, Tensor]:
    """BCE(x_adv) + β KL(p(x) ‖ p(x_adv)) (1 - p_y(x)); a weight multiplies the BCE only, as in
    MAIL's code.

    The three small constants are those of MART's code; they keep logarithms finite.
    """
    probs_adv = logits_adv.softmax(dim=1)
    _, top_other = tensors.true_and_top_other(probs_adv, y)
    boosted = tensors.per_example_cross_entropy(logits_adv, y) - (1.0001 - top_other + 1e-12).log()
    log_nat = logits_nat.log_softmax(dim=1)
    divergence = (log_nat.exp() * (log_nat - (probs_adv + 1e-12).log())).sum(dim=1)
    true_nat = log_nat.gather(1, y[:, None]).squeeze(1).exp()
    return boosted, beta * divergence * (1.0000001 - true_nat)


def gair_trades(
    logits_nat: Tensor,
    logits_adv: Tensor,
    logits_second: Tensor,
    y: Tensor,
    *,
    beta: NonNegative = 6.0,
) -> tuple[Tensor, Tensor]:
    """CE(x) + β [w KL(p(x) ‖ p(x_KL)) + (1-w) KL(p(x) ‖ p(x_CW))], with two attacks.

    GAIRAT's code (GAIR_RST).
    """
    first, second = (
        beta * tensors.kl(logits_nat, logits_adv),
        beta * tensors.kl(logits_nat, logits_second),
    )
    return first - second, second + tensors.per_example_cross_entropy(logits_nat, y)


def cost_sensitive(
    logits_adv: Tensor, y: Tensor, *, protected: Natural = 0, cost: NonNegative = 10.0
) -> tuple[Tensor, Tensor]:
    """CE + Σ_i p_i C(i, y): mistakes that involve the protected class cost `cost`, others 1. CSA
    Eq. 4.

    With cost = 1 the second term is 1 - p_y, not 0: the paper's "degenerates to adversarial
    training" is inexact.
    """
    num_classes = logits_adv.shape[1]
    if protected >= num_classes:
        raise KitError(
            f"loss.protected={protected} names no class: the data set has classes 0 to "
            f"{num_classes - 1}"
        )
    costs = cost_matrix(num_classes, protected, cost).to(logits_adv)
    expected = (logits_adv.softmax(dim=1) * costs[:, y].T).sum(dim=1)
    loss = tensors.per_example_cross_entropy(logits_adv, y) + expected
    return loss, loss.new_zeros(())


LOSSES = Registry(
    "loss", {fn.__name__: fn for fn in (cross_entropy, trades, mart, gair_trades, cost_sensitive)}
)
