"""A training step of several small networks that are attacked and passed as one program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kit.core.random_streams import JoinedStreams
from kit.experiments.recipes import Recipe
from kit.methods.table import Method
from kit.models.stacking import stack_networks
from kit.training.step import Batch, StepRecord, attack_batch, compute_loss, forward


class Learner(NamedTuple):
    """A network and what it learns by in one step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    method: Method
    reweight: bool


def train_step_stacked(
    learners: Sequence[Learner],
    batches: Sequence[Batch],
    recipe: Recipe,
    *,
    adversarial: bool = True,
) -> list[StepRecord]:
    """Take `train_step` of each of R networks on a batch of its own, all of N images.

    The networks must fit together: see `kit.experiments.specification.Plan.stack_key`. Each draws
    from its own streams and keeps its own weights, loss and optimizer.
    """
    first, n = learners[0].method, len(batches[0].y)
    network = stack_networks([learner.model for learner in learners])
    parts = [slice(i * n, (i + 1) * n) for i in range(len(learners))]
    joined = Batch(
        torch.cat([batch.x for batch in batches]),
        torch.cat([batch.y for batch in batches]),
        JoinedStreams([batch.streams for batch in batches]),
    )

    def trained_loss(logits: Tensor, labels: Tensor) -> Tensor:
        losses = [
            each.method.trained_loss(logits[rows], labels[rows], reweighted=each.reweight)
            for each, rows in zip(learners, parts, strict=True)
        ]
        return torch.cat(losses)

    if adversarial:
        joined = attack_batch(network, first, joined, recipe, trained_loss=trained_loss)
    outputs = forward(network, first, joined)
    records = [
        compute_loss(
            each.model,
            each.method,
            outputs.take(rows, batch.streams),
            reweight=each.reweight,
        )
        for each, rows, batch in zip(learners, parts, batches, strict=True)
    ]
    for learner in learners:
        learner.optimizer.zero_grad(set_to_none=True)
    # each loss reaches the parameters of its own network only
    torch.stack([record.loss for record in records]).sum().backward()
    for learner in learners:
        learner.optimizer.step()
    return [replace(record, loss=record.loss.detach()) for record in records]
