"""Two Gaussian classes, and what a linear classifier risks on each, in closed form.

One class is harder than the other. VIR's appendix A argues with such a mixture. This is our reading
of it, the construction of Xu et al. (2021, "To be Robust or to be Fair", s. 3; Ma et al., 2022, use
it too), with class -1 as the harder one; VIR calls the harder one +1, which turns x into -x and
changes no risk:

    y = -1 or +1 with equal chance,  x ~ N(yθ, σ_y² I),  θ = (η, ..., η) in R^d,
    σ_+ = σ,  σ_- = Kσ with K >= 1.

y(⟨w, x⟩ + b) is normal with mean ⟨w, θ⟩ + yb and standard deviation σ_y ‖w‖₂, and the worst
perturbation of size ε takes ε‖w‖_* from it: the dual norm, ‖w‖₁ against L∞ and ‖w‖₂ against L2. So
sign(⟨w, x⟩ + b) errs on class y with probability

    R_y = Φ(-(⟨w, θ⟩ + yb - ε‖w‖_*) / (σ_y ‖w‖₂)),   and ε = 0 is the natural risk.

Units: x, θ, σ and ε are the mixture's; images show 1/2 + scale · x. Classes come in the order of
their labels: -1 is 0, the class that cost-sensitive methods protect unless told otherwise, and +1
is 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kit.core.errors import KitError
from kit.core.parameters import Count, Natural, NonNegative, Positive, Range, Real, check_value
from kit.core.threat import Norm

MIXTURE_CLASSES = ("-1", "+1")

DUAL = {"linf": 1, "l2": 2}  # the order of the norm that is dual to the threat's

SPREADS = 4  # how many σ_- beyond the hard class's mean [0, 1] reaches


@dataclass(frozen=True)
class Mixture:
    """The mixture's numbers; `dimension` is a square, so that a point is an image.

    Raises:
        KitError: A number does not fit.
    """

    dimension: Count = 64
    eta: Positive = 0.3
    sigma: Positive = 1.0
    ratio: Annotated[float, Range(1)] = 2.0  # K

    def __post_init__(self):
        for field, hint in get_type_hints(type(self), include_extras=True).items():
            object.__setattr__(
                self, field, check_value(f"Mixture.{field}", getattr(self, field), hint)
            )
        if math.isqrt(self.dimension) ** 2 != self.dimension:
            raise KitError(
                f"Mixture.dimension={self.dimension} must be a square such as 64, for images of "
                "8x8 pixels"
            )

    @property
    def sigmas(self) -> np.ndarray:
        """(σ_-, σ_+), the standard deviations of the two classes."""
        return np.array([self.ratio * self.sigma, self.sigma])

    @property
    def scale(self) -> float:
        """Pixels per unit of x.

        [0, 1] shows |x| <= η + 4σ_-; at most 2Φ(-4) = 0.006 % of all pixels lie beyond.
        """
        return 0.5 / (self.eta + SPREADS * self.ratio * self.sigma)


#: The data set `mixture`: 3.0 % and 7.2 % natural risk at best, and half of η is a fair eps.
MIXTURE = Mixture()


# ------------------------------------------------------------------------------------- closed forms


def normal_cdf(z: float) -> float:
    """Φ(z), accurate in both tails."""
    return math.erfc(-z / math.sqrt(2)) / 2


def risks(
    mixture: Mixture,
    w: np.ndarray,
    b: float,
    eps: float = 0.0,
    norm: Norm = "linf",
) -> np.ndarray:
    """The risks (2,) of sign(⟨w, x⟩ + b) on class -1 and on +1, float64.

    A risk is how often it errs under the worst perturbation of size eps. w (d,) and b in any common
    unit; the perturbation's size eps in the mixture's unit. It holds for any w and K.

    Raises:
        KitError: w has another length or is all zeros, or a value is no number.

    Source: Xu et al. (2021), s. 3.
    """
    w = np.asarray(w, dtype=np.float64)
    check_value("b", b, Real)
    check_mixture_threat(eps, norm)
    if w.shape != (mixture.dimension,) or not np.isfinite(w).all() or not w.any():
        raise KitError(
            f"w of shape {w.shape} must be {mixture.dimension} finite numbers, not all 0"
        )
    safety = w.sum() * mixture.eta + np.array([-b, b]) - eps * np.linalg.norm(w, DUAL[norm])
    return np.array([normal_cdf(-z) for z in safety / (mixture.sigmas * np.linalg.norm(w))])


def best_offset(mixture: Mixture, eps: float = 0.0, norm: Norm = "linf") -> float:
    """The b with the least mean of both classes' risks under eps, for w = (1, ..., 1).

    No other direction beats this w. With m = dη - ε‖w‖_* and s = σ√d, the derivative is 0 where

        φ((m + b) / s) = φ((m - b) / (Ks)) / K,

    a quadratic in b:

        (K² - 1) b² + 2 (K² + 1) m b + (K² - 1) m² - 2 K² s² ln K = 0.

    The larger root is the minimum; it is written below without the difference that cancels near K =
    1. It falls in m: training against eps > 0 raises b, which lowers the easy class's natural risk
    and raises the hard one's.

    Raises:
        KitError: eps moves one mean onto the other or beyond (m <= 0).
    """
    check_mixture_threat(eps, norm)
    ones = np.ones(mixture.dimension)
    s, square = mixture.sigma * float(np.linalg.norm(ones)), mixture.ratio**2
    m = mixture.dimension * mixture.eta - eps * float(np.linalg.norm(ones, DUAL[norm]))
    if m <= 0:
        limit = mixture.dimension * mixture.eta / float(np.linalg.norm(ones, DUAL[norm]))
        raise KitError(
            f"eps={eps:g} leaves nothing between the classes' means; it must be below {limit:g} "
            f"against {norm}"
        )
    spread = s * s * math.log(mixture.ratio)
    root = math.sqrt(m * m + (square - 1) * spread / 2)
    return (2 * square * spread - (square - 1) * m * m) / (
        (square + 1) * m + 2 * mixture.ratio * root
    )


def optimal_risks(mixture: Mixture, eps: float, norm: Norm = "linf") -> pd.DataFrame:
    """Natural and robust risk of each class at the optimum of standard and of adversarial training.

    eps in x's units. Rows (training, class), columns natural and robust.

    Raises:
        KitError: As in `best_offset`.
    """
    rows: dict[tuple[str, str], dict[str, float]] = {}
    ones = np.ones(mixture.dimension)
    for training, trained_eps in (("standard", 0.0), ("adversarial", eps)):
        b = best_offset(mixture, trained_eps, norm)
        natural, robust = risks(mixture, ones, b), risks(mixture, ones, b, eps, norm)
        rows |= {
            (training, name): {"natural": natural[k], "robust": robust[k]}
            for k, name in enumerate(MIXTURE_CLASSES)
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["training", "class"])


def check_mixture_threat(eps: float, norm: str) -> None:
    """Refuse a size of perturbation below 0, or an unknown norm.

    Raises:
        KitError: `eps` or `norm` does not fit.
    """
    check_value("eps", eps, NonNegative)
    check_value("norm", norm, Norm)


# ------------------------------------------------------------------------------------------- images


def sample_mixture(
    mixture: Mixture, n: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw n points and return (x (n, d) float64, labels (n,) int64).

    Both classes have as many points, but class -1 has one more where n is odd.
    """
    check_value("n", n, Natural)
    labels = torch.arange(n) % 2
    noise = torch.randn(n, mixture.dimension, generator=generator, dtype=torch.float64)
    sigmas = torch.from_numpy(mixture.sigmas)[labels][:, None]
    return (2 * labels[:, None] - 1) * mixture.eta + sigmas * noise, labels


def mixture_images(mixture: Mixture, x: Tensor) -> Tensor:
    """Show points x (n, d) as uint8 images (n, √d, √d): 1/2 + scale · x, clipped and rounded.

    Clipped to [0, 1] and rounded to 1/255. Rounding adds noise of variance (1 / (255 scale))² / 12
    to each coordinate. For `MIXTURE` that is 0.04 % of σ² and moves no class's risk by more than
    0.00005; on 5,000 images chance moves the smallest of them by 0.001.
    """
    side = math.isqrt(mixture.dimension)
    levels = ((0.5 + mixture.scale * x).clamp(0, 1) * 255).round()
    return levels.to(torch.uint8).view(len(x), side, side)


# --------------------------------------------------------------------------------- trained networks


def linear_rule(run: Any, which: str = "last") -> tuple[np.ndarray, float]:
    """(w (d,), b) in the mixture's units of the network that `run` (a `kit.Run`) trained.

    The network says +1 where ⟨w, x⟩ + b > 0. x = 0 is the image that is 1/2 everywhere: b is the
    difference of the logits there, and w follows from its gradient.

    Raises:
        KitError: The data are other than `mixture`, or the network is not linear.
    """
    recipe, side = run.plan.recipe, math.isqrt(MIXTURE.dimension)
    if (recipe.data, recipe.model) != ("mixture", "linear"):
        raise KitError(
            f"{run.spec}: a closed form is known for model=linear on data=mixture, not for "
            f"{recipe.model} on {recipe.data}; take recipe=mixture"
        )
    grey = torch.full((1, 1, side, side), 0.5, requires_grad=True)
    minus, plus = run.model(which)(grey).squeeze(0)
    (gradient,) = torch.autograd.grad(plus - minus, grey)
    return MIXTURE.scale * gradient.flatten().double().numpy(), float((plus - minus).detach())
