"""Attacks are functions `(model, x, y, threat, ...) -> x_adv`; the table `ATTACKS` gives them their settings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kit.attacks.contract import check_inputs, frozen
from kit.attacks.gradient import fgsm, pgd
from kit.attacks.path import Path
from kit.types import Part, Streams, Table, Threat, part

__all__ = ["ATTACKS", "Attack", "Outcome", "Path", "check_inputs", "fgsm", "frozen", "pgd", "predict"]


@dataclass(frozen=True)
class Outcome:
    """What an attack did to a batch, per example."""

    prediction: Tensor      # (N,) class given to the first restart's last iterate: what the papers count
    broken: Tensor          # (N,) bool: misclassified at any iterate of any restart, or clean already


@dataclass(frozen=True)
class Attack:
    """A gradient attack with settings. `step` is in units of eps; `attack` None looks at the clean images."""

    title: str
    source: str
    attack: Part | None = None
    steps: int = 0
    step: float = 0.0
    restarts: int = 1

    def config(self) -> dict:
        part_config = self.attack.config() if self.attack else None
        return {"attack": part_config, "steps": self.steps, "step": self.step, "restarts": self.restarts}

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, streams: Streams) -> Outcome:
        """Attack one batch of a frozen model; the inputs have passed `check_inputs`."""
        prediction = predict(model, x)
        broken = prediction != y
        for restart in range(self.restarts if self.attack else 0):
            path = Path(y, self.steps)
            x_adv = self.attack(model, x, y, threat, generator=streams, watch=path, validate=False,
                                steps=self.steps, step_size=self.step * threat.eps)
            last = predict(model, x_adv)
            broken = broken | (path.kappa < self.steps) | (last != y)
            if restart == 0:
                prediction = last
        return Outcome(prediction, broken)


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """(N,) class of each image, -1 where the logits are not finite: such an example is never correct."""
    logits = model(x)
    return logits.argmax(dim=1).where(logits.isfinite().all(dim=1), -1)


PGD = part(pgd, loss="ce", init="uniform")
CW = part(pgd, loss="margin", init="uniform")

ATTACKS = Table("attack", {
    "natural": Attack("clean images", "-"),
    "fgsm": Attack("one step of length eps, no random start", "Goodfellow et al. 2015",
                   part(pgd, loss="ce", init="none"), steps=1, step=1.0),
    "pgd10": Attack("PGD-10 on cross-entropy, steps of eps/4 (the training attack's)", "VIR s. 5", PGD, 10, 1 / 4),
    "pgd20": Attack("PGD-20 on cross-entropy, steps of eps/10", "MAIL's code", PGD, 20, 1 / 10),
    "pgd100": Attack("PGD-100 on cross-entropy, steps of eps/10", "MAIL's code", PGD, 100, 1 / 10),
    "pgd20x5": Attack("PGD-20 with five random starts", "the strongest start counts", PGD, 20, 1 / 10, restarts=5),
    "cw20": Attack("PGD-20 on the margin loss, steps of eps/10 (the papers' CW)", "MAIL's code", CW, 20, 1 / 10),
    "cw100": Attack("PGD-100 on the margin loss, steps of eps/10", "MR s. 4", CW, 100, 1 / 10),
})
