"""The set of perturbations that an attack is allowed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

from kit.core.parameters import NonNegative, check_value

Norm = Literal["linf", "l2"]


@dataclass(frozen=True)
class Threat:
    """The set of allowed perturbations: an L-inf or L2 ball of radius `eps` (pixels in [0, 1]).

    An L-inf radius of more than 1 is warned of: it holds every image, and 255ths are meant.
    """

    norm: Norm = "linf"
    eps: NonNegative = 8 / 255

    def __post_init__(self):
        check_value("Threat.norm", self.norm, Norm)
        eps = check_value("Threat.eps", self.eps, NonNegative)
        object.__setattr__(self, "eps", eps)  # a float, of which -0.0 is 0.0
        if self.doubt:
            warnings.warn(self.doubt, stacklevel=3)

    @property
    def doubt(self) -> str:
        """A question about an L-inf radius that holds every image; "" where there is none."""
        if self.norm != "linf" or self.eps <= 1:
            return ""
        return (
            f"eps={self.eps:g} is more than any pixel can change, for pixels are in [0, 1]. Is "
            f"{self.eps:g}/255 meant, {self.eps / 255:.5g}?"
        )

    def __str__(self) -> str:
        name = {"linf": "L∞", "l2": "L2"}[self.norm]
        over_255 = self.eps * 255
        whole = 0 < over_255 < 1e9 and abs(over_255 - round(over_255)) < 1e-9
        return f"{name} eps {f'{round(over_255)}/255' if whole else f'{self.eps:g}'}"
