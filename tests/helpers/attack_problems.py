"""Small problems for attacks: linear models with a known distance, networks worth attacking, an
AutoAttack of fractions of a second, and a tracker that drops nobody.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from kit.attacks.auto_pgd import apgd
from kit.attacks.square_attack import (
    square,
)
from kit.attacks.tracker import AttackTracker, predicted_classes
from kit.core.parts import part
from kit.core.random_streams import Streams
from kit.core.threat import Threat

NORMS = ("linf", "l2")


def random(*shape: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def streams(n: int, *name: object) -> Streams:
    return Streams(torch.arange(n), "test", *name)


PIXELS = 16


class Linear(nn.Module):
    """Two classes with logits ±g(x)/2 · scale, where g(x) = w · (x - 1/2)."""

    def __init__(self, w: Tensor, scale: float = 1.0):
        super().__init__()
        self.w = nn.Parameter(w)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        g = (x.flatten(1) - 0.5) @ self.w * self.scale
        return torch.stack([g / 2, -g / 2], dim=1)


def linear_problem(
    norm: str, distance: float, dtype=torch.float64, scale: float = 1.0
) -> tuple[Linear, Tensor, Tensor]:
    """A model and 12 images, all correct and at exactly `distance` from the boundary, far from
    pixels of 0 and 1.

    In L-inf that distance is |g| / ‖w‖₁, in L2 it is |g| / ‖w‖₂.
    """
    w = random(PIXELS, seed=1) - 0.5
    v = 0.1 * (random(12, PIXELS, seed=2) - 0.5)
    v = v - (v @ w)[:, None] * w / (w @ w)  # along the boundary
    side = torch.where(torch.arange(12) % 2 == 0, 1.0, -1.0).double()
    margin = distance * (w.abs().sum() if norm == "linf" else w.norm())
    x = (0.5 + v + side[:, None] * margin * w / (w @ w)).view(12, 1, 4, 4)
    assert float(x.min()) > 0.25 and float(x.max()) < 0.75
    return Linear(w.to(dtype), scale), x.to(dtype), (side < 0).long()


DISTANCE = {"linf": 0.05, "l2": 0.12}


class Mixed(nn.Module):
    """Convolutions, batch norm and dropout; sharp enough that attacks matter."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.Dropout(0.5),
        )
        self.head = nn.Linear(8 * 9, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1).tanh())


THREATS = (Threat("linf", 0.03), Threat("l2", 0.2))


def calls_of(network: nn.Module) -> list[Tensor]:
    """Filled with every batch that the network is given from now on."""
    inputs: list[Tensor] = []
    network.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach().clone()))
    return inputs


SHORT = {
    "apgd-ce": part(apgd),
    "apgd-dlr": part(apgd, loss="dlr"),
    "square": part(square, queries=80),
}


def dense(seed: int = 3, classes: int = 10, sharp: float = 3.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Dropout(0.5), nn.Linear(24, classes)
        ).double()
    with torch.no_grad():
        net[1].weight.mul_(sharp)
        net[4].weight.mul_(sharp)
    return net


def predicted(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return predicted_classes(copy.deepcopy(model).eval()(x))


class RunsOn(AttackTracker):
    """Nothing is ever broken, so no example is dropped; keeps what auto-attack returns, the latest
    misclassified image.
    """

    latest = fallen = None

    def keep(self, x_t: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        margin = super().keep(x_t, logits, rows)
        self.broken = torch.zeros_like(self.broken)
        if self.latest is not None:
            wrong = rows[logits.argmax(dim=1) != self.y[rows]]
            self.latest[wrong], self.fallen[wrong] = x_t[logits.argmax(dim=1) != self.y[rows]], True
        return margin


def same_result(ours, theirs) -> bool:
    fields = ("x_adv", "broken", "step", "margin", "size", "forwards", "backwards", "prediction")
    return (
        ours.by == theirs.by
        and ours.notes == theirs.notes
        and all(torch.equal(getattr(ours, field), getattr(theirs, field)) for field in fields)
    )
