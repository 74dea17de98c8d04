"""What CSA and CSE add to the loss: a matrix of class costs, and penalties on the parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kit.core.errors import KitError
from kit.core.parameters import Count, NonNegative
from kit.core.registry import Registry


def cost_matrix(num_classes: int, protected: int, c: float) -> Tensor:
    """C[predicted, true]: 0 on the diagonal, `c` in the protected row and column, else 1.

    Returns (K, K) float64.

    Raises:
        KitError: There is no class of that number.

    Source: CSA Eq. 3.
    """
    if not 0 <= protected < num_classes:
        raise KitError(f"protected class {protected} is not one of 0 to {num_classes - 1}")
    matrix = torch.ones(num_classes, num_classes, dtype=torch.float64)
    matrix[protected, :] = c
    matrix[:, protected] = c
    return matrix.fill_diagonal_(0)


def fuzziness(weights: Tensor) -> Tensor:
    """-mean[ρ ln ρ + (1-ρ) ln(1-ρ)] with ρ = 1/(1+e^|w|).

    Returns a scalar in (0, ln 2]. It is largest, ln 2 = 0.693, where every weight is 0 (there ρ =
    ½; the paper's text says 1) and falls as |w| grows: minimising it drives all weights *away* from
    zero.

    Source: CSE Eqs. 8-9, as printed.
    """
    size = weights.abs()
    rho = torch.sigmoid(-size)
    # ln ρ = -softplus(|w|) and ln(1-ρ) = |w| - softplus(|w|), so that no logarithm of 0 is taken
    log_one_plus = nn.functional.softplus(size)
    return (rho * log_one_plus + (1 - rho) * (log_one_plus - size)).mean()


def conv_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return {layer name: weight} of the convolutions.

    Their order is that in which modules are registered, which is that of the forward pass.
    """
    return {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    }


def penalised_weights(model: nn.Module, layers: int | None = None) -> list[Tensor]:
    """Return the weights of the first `layers` convolutions, or of all.

    Raises:
        KitError: The network has no convolution.
    """
    chosen = list(conv_weights(model).values())[:layers]
    if not chosen:
        raise KitError(
            "CSE penalises convolutions, and this network has none; take model=cnn or another with "
            "convolutions"
        )
    return chosen


def conv_fuzziness(model: nn.Module, *, strength: NonNegative = 1.0) -> Tensor:
    """γ · fuzziness of all convolutional weights together.

    Returns a scalar.

    Raises:
        KitError: The network has no convolution.

    Source: CSE Eq. 10; the paper states no γ.
    """
    return strength * fuzziness(torch.cat([w.flatten() for w in penalised_weights(model)]))


def weight_norms(model: nn.Module, *, strength: NonNegative = 0.01) -> Tensor:
    """γ · Σ ‖W‖₂ over the parameters named "weight", not squared.

    Returns a scalar; γ is `strength`, and the scales of batch norms count. CSA Eq. 7 prints the
    norm of all parameters together with coefficient 1; a small network then learns nothing, because
    shrinking to zero pays more than any class.

    Source: CSA's code, with 0.01.
    """
    return (
        strength
        * torch.stack(
            [p.norm() for name, p in model.named_parameters() if name.endswith("weight")]
        ).sum()
    )


def conv_l1_minus_l2(model: nn.Module, *, strength: NonNegative = 1.0, layers: Count = 1) -> Tensor:
    """γ · Σ (‖W‖₁ - ‖W‖₂) over the first `layers` convolutions.

    Returns a scalar, small where few weights are large; γ is `strength`.

    Raises:
        KitError: The network has no convolution.

    Source: CSE's released code has it in the place of the fuzziness (1 layer on MNIST, 2 on
    CIFAR-10).
    """
    return (
        strength
        * torch.stack([w.abs().sum() - w.norm() for w in penalised_weights(model, layers)]).sum()
    )


def conv_kurtosis(model: nn.Module, *, strength: NonNegative = 1.0, layers: Count = 1) -> Tensor:
    """-γ · Σ (E[(w - w̄)⁴] / E[(w - w̄)²]² - 3) over the first `layers` convolutions.

    Returns a scalar, small where tails are heavy; γ is `strength`.

    Raises:
        KitError: The network has no convolution.

    Source: CSE's code has it as a second choice, computed outside the graph: there it changes the
    printed loss and no parameter. Here the gradient flows.
    """

    def kurtosis(weights: Tensor) -> Tensor:
        deviation = weights - weights.mean()
        return (deviation**4).mean() / (deviation**2).mean() ** 2 - 3

    return -strength * torch.stack([kurtosis(w) for w in penalised_weights(model, layers)]).sum()


REGULARISERS = Registry(
    "regulariser",
    {fn.__name__: fn for fn in (conv_fuzziness, weight_norms, conv_l1_minus_l2, conv_kurtosis)},
)
