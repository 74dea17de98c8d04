"""Steps as tests take them: images, labels and streams in a row, and the step for the method."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kit.core.random_streams import Streams
from kit.experiments.recipes import Recipe
from kit.methods.table import Method
from kit.training.perturbed_step import train_step_perturbed
from kit.training.step import Batch, StepRecord, attack_batch, train_step


def step_of(method: Method) -> Callable[..., StepRecord]:
    return train_step_perturbed if method.perturb else train_step


def take_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method,
    recipe: Recipe,
    x: Tensor,
    y: Tensor,
    streams: Streams,
    *,
    attacked: bool = True,
    reweighted: bool = True,
) -> StepRecord:
    batch = Batch(x, y, streams)
    return step_of(method)(
        net, optimizer, method, batch, recipe, adversarial=attacked, reweight=reweighted
    )


def attacked_batch(
    net: nn.Module, method: Method, recipe: Recipe, x: Tensor, y: Tensor, streams: Streams
) -> Batch:
    return attack_batch(net, method, Batch(x, y, streams), recipe)
