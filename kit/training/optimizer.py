"""The optimizer of a run, and its learning rate in each epoch."""

from __future__ import annotations

import math

import torch
from torch import nn

from kit.experiments.recipes import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """Make the recipe's optimizer of a network that is on `device`."""
    if recipe.optimizer == "adam":
        return torch.optim.Adam(
            model.parameters(),
            lr=recipe.lr,
            betas=(recipe.momentum, 0.999),
            weight_decay=recipe.weight_decay,
            fused=device.type == "cuda",
        )
    return torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=device.type == "cuda",
        foreach=device.type == "cpu",  # all parameters in one call, too; the numbers are the same
    )


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Return the rate of an epoch, which counts from 1: warm-up times schedule.

    The warm-up rises in a straight line to the full rate in the epoch behind it. `milestones`
    multiplies by lr_factor after each of them; `cosine` falls from there along half a cosine, which
    would be at 0 after the last epoch.
    """
    warm = min(1, epoch / (recipe.warm_up + 1))
    if recipe.schedule == "cosine":
        passed = max(0, epoch - 1 - recipe.warm_up) / (recipe.epochs - recipe.warm_up)
        fallen = (1 + math.cos(math.pi * passed)) / 2
    else:
        fallen = recipe.lr_factor ** sum(epoch > milestone for milestone in recipe.milestones)
    return recipe.lr * fallen * warm
