"""Base losses: each returns (weighted, plain), and a method minimises mean(w · weighted + plain).

A loss is a function of a step's outputs and states which of their fields it reads, so that what no
part reads is not computed. Gradients flow through both sides of every KL, as in the authors' code.
"""

from __future__ import annotations

from torch import Tensor

from kit.core import tensors
from kit.core.errors import KitError
from kit.core.parameters import Natural, NonNegative
from kit.core.registry import Registry
from kit.methods.regularisers import cost_matrix
from kit.methods.step_outputs import StepOutputs, reads


@reads("logits_adv", "y")
def cross_entropy(outputs: StepOutputs) -> tuple[Tensor, Tensor]:
    """CE(x_adv): standard training where the stage is clean, AT where it is adversarial.

    Returns (N,), and 0 as the plain part.
    """
    loss = tensors.per_example_cross_entropy(outputs.logits_adv, outputs.y)
    return loss, loss.new_zeros(())


@reads("logits_nat", "logits_adv", "y")
def trades(outputs: StepOutputs, *, beta: NonNegative = 6.0) -> tuple[Tensor, Tensor]:
    """CE(x) + β KL(p(x) ‖ p(x_adv)); a weight multiplies the KL.

    Returns two (N,), in nats.

    Source: TRADES; MAIL-TRADES.
    """
    logits_nat, logits_adv = outputs.logits_nat, outputs.logits_adv
    assert logits_nat is not None  # stated above
    divergence = tensors.kl(logits_nat, logits_adv)
    return beta * divergence, tensors.per_example_cross_entropy(logits_nat, outputs.y)


@reads("logits_nat", "logits_adv", "y")
def trades_reversed(outputs: StepOutputs, *, beta: NonNegative = 5.0) -> tuple[Tensor, Tensor]:
    """CE(x) + β KL(p(x_adv) ‖ p(x)): TRADES with the two sides of its KL exchanged.

    Returns two (N,), in nats; a weight multiplies the KL.

    Source: MAIL Eq. 10 as printed.
    """
    logits_nat, logits_adv = outputs.logits_nat, outputs.logits_adv
    assert logits_nat is not None  # stated above
    divergence = tensors.kl(logits_adv, logits_nat)
    return beta * divergence, tensors.per_example_cross_entropy(logits_nat, outputs.y)


@reads("logits_nat", "logits_adv", "y")
def mart(outputs: StepOutputs, *, beta: NonNegative = 5.0) -> tuple[Tensor, Tensor]:
    """BCE(x_adv) + β KL(p(x) ‖ p(x_adv)) (1 - p_y(x)); a weight multiplies the BCE only.

    Returns two (N,), in nats. The weight is where MAIL's code has it. The three small constants are
    those of MART's code; they keep logarithms finite.

    Source: MART's code; MAIL's code.
    """
    assert outputs.logits_nat is not None  # stated above
    y, probs_adv = outputs.y, outputs.logits_adv.softmax(dim=1)
    _, top_other = tensors.true_and_top_other(probs_adv, y)
    cross_entropy_adv = tensors.per_example_cross_entropy(outputs.logits_adv, y)
    boosted = cross_entropy_adv - (1.0001 - top_other + 1e-12).log()
    log_nat = outputs.logits_nat.log_softmax(dim=1)
    divergence = (log_nat.exp() * (log_nat - (probs_adv + 1e-12).log())).sum(dim=1)
    true_nat = log_nat.gather(1, y[:, None]).squeeze(1).exp()
    return boosted, beta * divergence * (1.0000001 - true_nat)


@reads("logits_nat", "logits_adv", "logits_second", "y")
def gair_trades(outputs: StepOutputs, *, beta: NonNegative = 6.0) -> tuple[Tensor, Tensor]:
    """CE(x) + β [w KL(p(x) ‖ p(x_KL)) + (1-w) KL(p(x) ‖ p(x_CW))], with two attacks.

    Returns two (N,), in nats.

    Source: GAIRAT's code (GAIR_RST).
    """
    logits_nat, logits_second = outputs.logits_nat, outputs.logits_second
    assert logits_nat is not None and logits_second is not None  # stated above
    first = beta * tensors.kl(logits_nat, outputs.logits_adv)
    second = beta * tensors.kl(logits_nat, logits_second)
    plain = tensors.per_example_cross_entropy(logits_nat, outputs.y)
    return first - second, second + plain


@reads("logits_adv", "y")
def cost_sensitive(
    outputs: StepOutputs, *, protected: Natural = 0, cost: NonNegative = 10.0
) -> tuple[Tensor, Tensor]:
    """CE + Σ_i p_i C(i, y): mistakes that involve the protected class cost `cost`, others 1.

    Returns (N,), and 0 as the plain part. With cost = 1 the second term is 1 - p_y, not 0: the
    paper's "degenerates to adversarial training" is inexact.

    Raises:
        KitError: The data set has no class of that number.

    Source: CSA Eq. 4.
    """
    logits, y = outputs.logits_adv, outputs.y
    num_classes = logits.shape[1]
    if protected >= num_classes:
        raise KitError(
            f"loss.protected={protected} names no class: the data set has classes 0 to "
            f"{num_classes - 1}"
        )
    costs = cost_matrix(num_classes, protected, cost).to(logits)
    expected = (logits.softmax(dim=1) * costs[:, y].T).sum(dim=1)
    loss = tensors.per_example_cross_entropy(logits, y) + expected
    return loss, loss.new_zeros(())


LOSSES = Registry(
    "loss",
    {
        fn.__name__: fn
        for fn in (cross_entropy, trades, trades_reversed, mart, gair_trades, cost_sensitive)
    },
)
