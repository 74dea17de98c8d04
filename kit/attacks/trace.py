"""What happened along an attack: a `watch` that keeps three numbers per example, and no iterate."""

from __future__ import annotations

import torch
from torch import Tensor


class AttackTrace:
    """Watches one attack call of `steps` evaluation points on labels `y`.

    kappa (N,): points classified correctly, 0..steps (GAIRAT). lps (N,): first misclassified point,
    `steps` where none was (the least perturbation steps of MAIL's text). The two differ where a
    path crosses back. p_flip (N,): p_y at that point; NaN where none was.
    """

    def __init__(self, y: Tensor, steps: int):
        self.y, self.steps = y, steps
        self.kappa = torch.zeros_like(y)
        self.lps = torch.full_like(y, steps)
        self.p_flip: Tensor | None = None

    def __call__(self, t: int, x_t: Tensor, logits: Tensor) -> None:
        p_true = logits.softmax(dim=1).gather(1, self.y[:, None]).squeeze(1)
        right = (
            logits.argmax(dim=1) == self.y
        ) & p_true.isfinite()  # NaN anywhere makes every probability NaN
        self.kappa += right
        if self.p_flip is None:
            self.p_flip = torch.full_like(p_true, torch.nan)
        crossing = ~right & (self.lps == self.steps)
        self.p_flip = p_true.where(crossing, self.p_flip)
        self.lps = self.lps.masked_fill(crossing, t)
