"""One training step: one network, one batch, the parts of a method in their order.

Several networks at once, several processes and perturbed weights stand beside it, in
`stacked_step`, `distributed_step` and `perturbed_step`; each is tested equal to this one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from kit.attacks.contract import AttackTrace
from kit.attacks.projected_gradient_descent import TrainedLoss
from kit.core.random_streams import Streams
from kit.experiments.recipes import Recipe
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import Method
from kit.training.precision import attack_precision


@dataclass(frozen=True)
class Batch:
    """Images, labels and random streams of a batch; behind its attacks what they made of it."""

    x: Tensor  # (N, C, H, W) in [0, 1]
    y: Tensor  # (N,) int64
    streams: Streams
    x_adv: Tensor | None = None  # None: the step is on the clean images
    x_second: Tensor | None = None  # of a second attack, where the method has one
    trace: AttackTrace | None = None  # of the first attack

    def take(self, rows: slice) -> Batch:
        """Return some of the examples, with what was made of them."""
        x_adv, second, trace = self.x_adv, self.x_second, self.trace
        return Batch(
            self.x[rows],
            self.y[rows],
            self.streams.of(self.streams.ids[rows]),
            None if x_adv is None else x_adv[rows],
            None if second is None else second[rows],
            None if trace is None else trace.take(rows),
        )


@dataclass(frozen=True)
class StepRecord:
    """What one step computed."""

    outputs: StepOutputs
    weights: Tensor  # (N,)
    loss: Tensor  # scalar


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method,
    batch: Batch,
    recipe: Recipe,
    *,
    adversarial: bool = True,
    reweight: bool = True,
) -> StepRecord:
    """Take one optimizer step on a batch.

    `adversarial`: on x_adv, else on x; a batch that was attacked before is not attacked again.
    `reweight`: past burn-in; before it every weight is 1.
    """
    if adversarial and batch.x_adv is None:
        batch = attack_batch(model, method, batch, recipe, reweight=reweight)
    outputs = forward(model, method, batch)
    record = compute_loss(model, method, outputs, reweight=reweight)
    optimizer.zero_grad(set_to_none=True)
    record.loss.backward()
    optimizer.step()
    return replace(record, loss=record.loss.detach())


def attack_batch(
    model: nn.Module,
    method: Method,
    batch: Batch,
    recipe: Recipe,
    *,
    reweight: bool = True,
    trained_loss: TrainedLoss | None = None,
) -> Batch:
    """Run the method's attacks on the clean images, the network in eval mode and frozen.

    `trained_loss` is what an attack on the trained loss ascends, if not the method's own. A method
    without an attack leaves the batch as it is.
    """
    if method.attack is None:
        return batch
    trace = AttackTrace(batch.y, recipe.steps)
    settings = {
        "generator": batch.streams,
        "steps": recipe.steps,
        "step_size": recipe.step * recipe.eps,
        "trained_loss": trained_loss or partial(method.trained_loss, reweighted=reweight),
        "validate": False,
    }
    images = model, batch.x, batch.y, recipe.threat
    with attack_precision(recipe.precision, model, batch.x.device):
        x_adv = method.attack(*images, watch=trace, **settings)
        x_second = method.second_attack(*images, **settings) if method.second_attack else None
    return replace(batch, x_adv=x_adv, x_second=x_second, trace=trace)


def forward(model: nn.Module, method: Method, batch: Batch) -> StepOutputs:
    """Pass the images that the method reads through the network in train mode."""
    model.train()
    y, trace, streams = batch.y, batch.trace, batch.streams
    if batch.x_adv is None:
        logits = model(batch.x)
        return StepOutputs(y, logits, logits if method.reads_clean else None, streams=streams)
    logits_nat = model(batch.x) if method.reads_clean else None
    logits_adv = model(batch.x_adv)
    assert trace is not None  # `attack_batch` sets it together with x_adv
    logits_second = None if batch.x_second is None else model(batch.x_second)
    return StepOutputs(
        y,
        logits_adv,
        logits_nat,
        kappa=trace.kappa,
        lps=trace.lps,
        p_flip=trace.flip_probability(logits_adv),
        steps=trace.steps,
        streams=streams,
        logits_second=logits_second,
    )


def compute_loss(
    model: nn.Module, method: Method, outputs: StepOutputs, *, reweight: bool
) -> StepRecord:
    """Compute what a step minimises: mean(w · weighted + plain) plus the regulariser."""
    weights = method.weigh(outputs) if reweight else torch.ones_like(outputs.logits_adv[:, 0])
    weighted, plain = method.loss(outputs)
    # one weight and one loss an example
    assert weights.shape == weighted.shape == outputs.y.shape, "weights and losses must be (N,)"
    loss = (weights * weighted + plain).mean()
    if method.regulariser is not None:
        loss = loss + method.regulariser(model)
    return StepRecord(outputs, weights.detach(), loss)
