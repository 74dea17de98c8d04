"""A training step that is taken where the loss around the parameters is worst (AWP)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from kit.experiments.recipes import Recipe
from kit.methods.table import Method
from kit.training.step import Batch, StepRecord, attack_batch, compute_loss, forward


def train_step_perturbed(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method,
    batch: Batch,
    recipe: Recipe,
    *,
    adversarial: bool = True,
    reweight: bool = True,
) -> StepRecord:
    """Take `train_step` with the weights shifted by `method.perturb` from its loss to its update.

    A method whose perturbation is 0 takes exactly `train_step`.
    """
    if adversarial and batch.x_adv is None:
        batch = attack_batch(model, method, batch, recipe, reweight=reweight)

    def compute() -> StepRecord:
        return compute_loss(model, method, forward(model, method, batch), reweight=reweight)

    assert method.perturb is not None  # this step is for methods that have it
    with method.perturb(model, lambda: compute().loss):
        record = compute()
        optimizer.zero_grad(set_to_none=True)
        record.loss.backward()
        optimizer.step()
    return replace(record, loss=record.loss.detach())
