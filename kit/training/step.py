"""One mini-batch through the seven parts of a method: attacked, seen, weighted, learned from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kit.attacks.trace import AttackTrace
from kit.core.distributed import average_tensors, own_rows, process_count, unwrap_distributed
from kit.core.random_streams import JoinedStreams, Streams
from kit.experiments.recipes import Recipe
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import Method
from kit.models.stacking import stack_networks
from kit.training.distributed_step import gather_outputs
from kit.training.precision import attack_precision


@dataclass(frozen=True)
class AttackedBatch:
    """A batch after its attacks. What was not asked for is None."""

    x: Tensor  # (N, C, H, W) in [0, 1]
    y: Tensor  # (N,)
    x_adv: Tensor | None
    x_second: Tensor | None
    path: AttackTrace | None  # of the first attack
    streams: Streams


def attack_batch(
    model: nn.Module,
    method: Method,
    recipe: Recipe,
    x: Tensor,
    y: Tensor,
    streams: Streams,
    *,
    reweighted: bool = True,
    own: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> AttackedBatch:
    """Run the method's attacks on a batch, the network in eval mode. With x_adv None there is
    nothing to attack. `own` is what an attack on the trained loss ascends, if not the method's own.
    """
    path, made = AttackTrace(y, recipe.steps), []
    own = own or partial(method.own_loss, reweighted=reweighted)
    with attack_precision(recipe.precision, model, x.device):
        for attack, watch in ((method.attack, path), (method.second_attack, None)):
            extra = {"own": own} if attack and attack.takes("own") else {}
            made.append(
                attack(
                    model,
                    x,
                    y,
                    recipe.threat,
                    generator=streams,
                    watch=watch,
                    validate=False,
                    steps=recipe.steps,
                    step_size=recipe.step * recipe.eps,
                    **extra,
                )
                if attack
                else None
            )
    return AttackedBatch(x, y, made[0], made[1], path, streams)


@dataclass(frozen=True)
class StepRecord:
    """What one step computed, per example where it can be."""

    outputs: StepOutputs
    weights: Tensor  # (N,)
    loss: Tensor  # scalar, with its graph until the step is taken


def forward(model: nn.Module, method: Method, batch: AttackedBatch) -> StepOutputs:
    """The outer forward passes (train mode) that the method reads:

    clean, attacked, and those of a second attack.
    """
    model.train()
    y, path = batch.y, batch.path
    if batch.x_adv is None:
        logits = model(batch.x)
        return StepOutputs(y, logits, logits if method.reads_clean else None, streams=batch.streams)
    logits_nat = model(batch.x) if method.reads_clean else None
    logits_adv = model(batch.x_adv)
    logits_second = model(batch.x_second) if batch.x_second is not None else None
    p_last = logits_adv.detach().softmax(dim=1).gather(1, y[:, None]).squeeze(1)
    p_flip = path.p_flip.where(path.lps < path.steps, p_last)
    return StepOutputs(
        y,
        logits_adv,
        logits_nat,
        path.kappa,
        path.lps,
        p_flip,
        path.steps,
        batch.streams,
        logits_second,
    )


def compute_loss(
    model: nn.Module, method: Method, outputs: StepOutputs, *, reweighted: bool
) -> StepRecord:
    """What the step minimises, from what was seen:

    mean(w · weighted + plain), plus the regulariser.
    """
    weights = method.weigh(outputs) if reweighted else torch.ones_like(outputs.logits_adv[:, 0])
    weighted, plain = method.loss.read(outputs)
    assert weights.shape == weighted.shape == outputs.y.shape, (
        "weights and losses are per example, (N,)"
    )
    loss = (weights * weighted + plain).mean()
    if method.regulariser is not None:
        loss = loss + method.regulariser(model)
    return StepRecord(outputs, weights.detach(), loss)


def forward_and_loss(
    model: nn.Module, method: Method, batch: AttackedBatch, *, reweighted: bool
) -> StepRecord:
    """`judge` what the network sees of a batch."""
    return compute_loss(model, method, forward(model, method, batch), reweighted=reweighted)


def train_step(
    model: nn.Module,
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
    """One optimizer step on a batch x (N, C, H, W) in [0, 1], y (N,): the seven parts of a method,
    in order.

    `attacked`: on x_adv, else on x. `reweighted`: past burn-in; before it every weight is 1.
    """
    return train_stacked_step(
        [Learner(model, optimizer, method, reweighted)], recipe, x, y, [streams], attacked=attacked
    )[0]


class Learner(NamedTuple):
    """A network and what it learns by in one step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    method: Method
    reweighted: bool


def train_stacked_step(
    learners: Sequence[Learner],
    recipe: Recipe,
    x: Tensor,
    y: Tensor,
    streams: Sequence[Streams],
    *,
    attacked: bool = True,
) -> list[StepRecord]:
    """A step of each of R networks on N images of its own: x (R·N, C, H, W), y (R·N,), those of the
    first network first.

    They are attacked and passed as one program, and must fit together: see
    `kit.experiments.specification.Plan.company`. Where several processes train one network, each
    attacks and passes its share of the N images, and returns what all of them saw.
    """
    first, n, alone = learners[0].method, len(y) // len(learners), len(learners) == 1
    network = stack_networks([learner.model for learner in learners])
    parts = [slice(i * n, (i + 1) * n) for i in range(len(learners))]
    joined = streams[0] if alone else JoinedStreams(streams)
    bare = unwrap_distributed(network)
    if process_count() > 1:
        mine = own_rows(n)
        x, y, joined = x[mine], y[mine], joined.of(joined.ids[mine])

    def own(logits: Tensor, labels: Tensor) -> Tensor:
        return torch.cat(
            [
                learner.method.own_loss(logits[rows], labels[rows], reweighted=learner.reweighted)
                for learner, rows in zip(learners, parts, strict=True)
            ]
        )

    def take(network: nn.Module) -> list[StepRecord]:
        outputs = gather_outputs(forward(network, first, batch), n)
        views = (
            [outputs]
            if alone
            else [outputs.take(rows, mine) for rows, mine in zip(parts, streams, strict=True)]
        )
        return [
            compute_loss(learner.model, learner.method, view, reweighted=learner.reweighted)
            for learner, view in zip(learners, views, strict=True)
        ]

    batch = (
        attack_batch(bare, first, recipe, x, y, joined, own=own)
        if attacked
        else AttackedBatch(x, y, None, None, None, joined)
    )
    with (
        first.perturb(bare, lambda: take(bare)[0].loss)
        if first.perturb
        else contextlib.nullcontext()
    ):
        done = take(network)
        for learner in learners:
            learner.optimizer.zero_grad(set_to_none=True)
        torch.stack(
            [each.loss for each in done]
        ).sum().backward()  # each reaches the parameters of its own network
        for learner in learners:
            learner.optimizer.step()
    average_tensors(list(bare.buffers()))
    return [replace(each, loss=each.loss.detach()) for each in done]
