"""A training step of one network in several processes, each with its share of the batch."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kit.core.distributed import average_tensors, gather, own_rows, unwrap_distributed
from kit.experiments.recipes import Recipe
from kit.methods.step_outputs import FIELD_NAMES, StepOutputs
from kit.methods.table import Method
from kit.training.step import Batch, StepRecord, attack_batch, compute_loss, forward


def train_step_distributed(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method,
    batch: Batch,
    recipe: Recipe,
    *,
    adversarial: bool = True,
    reweight: bool = True,
) -> StepRecord:
    """Take `train_step` of a network behind DistributedDataParallel on a whole batch of N images.

    Every process is given the whole batch, attacks and passes its share of it, and has the record
    of the whole: criterion, weights and loss are those of one process.
    """
    n, bare = len(batch.y), unwrap_distributed(network)
    share = batch.take(own_rows(n))
    if adversarial and share.x_adv is None:
        share = attack_batch(bare, method, share, recipe, reweight=reweight)

    def compute(model: nn.Module) -> StepRecord:
        outputs = gather_outputs(forward(model, method, share), n)
        return compute_loss(network, method, outputs, reweight=reweight)

    perturb = method.perturb
    with perturb(bare, lambda: compute(bare).loss) if perturb else contextlib.nullcontext():
        record = compute(network)
        optimizer.zero_grad(set_to_none=True)
        record.loss.backward()
        optimizer.step()
    average_tensors(list(bare.buffers()))
    return replace(record, loss=record.loss.detach())


def gather_outputs(outputs: StepOutputs, n: int) -> StepOutputs:
    """Put together what all processes computed of a batch of n."""
    values = {name: getattr(outputs, name) for name in FIELD_NAMES}
    gathered: dict[str, Any] = {
        name: gather(value, n) for name, value in values.items() if isinstance(value, Tensor)
    }
    streams = outputs.streams
    assert streams is not None  # `forward` gives the batch's
    return replace(outputs, **gathered, streams=streams.of(gather(streams.ids, n)))
