"""One mini-batch through the seven parts of a method: attacked, seen, weighted, learned from."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from kit.attacks import Path
from kit.methods import Method
from kit.precision import attacked_in
from kit.recipes import Recipe
from kit.types import Seen, Streams


@dataclass(frozen=True)
class Batch:
    """A batch after its attacks. What was not asked for is None."""

    x: Tensor                  # (N, C, H, W) in [0, 1]
    y: Tensor                  # (N,)
    x_adv: Tensor | None
    x_second: Tensor | None
    path: Path | None          # of the first attack
    streams: Streams


def strike(model: nn.Module, method: Method, recipe: Recipe, x: Tensor, y: Tensor, streams: Streams, *,
           reweighted: bool = True) -> Batch:
    """Run the method's attacks on a batch, the network in eval mode. With x_adv None there is nothing to attack."""
    path, made = Path(y, recipe.steps), []
    with attacked_in(recipe.precision, model, x.device):
        for attack, watch in ((method.attack, path), (method.second_attack, None)):
            own = {"own": partial(method.own_loss, reweighted=reweighted)} if attack and attack.takes("own") else {}
            made.append(attack(model, x, y, recipe.threat, generator=streams, watch=watch, validate=False,
                               steps=recipe.steps, step_size=recipe.step * recipe.eps, **own) if attack else None)
    return Batch(x, y, made[0], made[1], path, streams)


@dataclass(frozen=True)
class Step:
    """What one step computed, per example where it can be."""

    seen: Seen
    weights: Tensor   # (N,)
    loss: Tensor      # scalar, with its graph until the step is taken


def see(model: nn.Module, method: Method, batch: Batch) -> Seen:
    """The outer forward passes (train mode) that the method reads: clean, attacked, and those of a second attack."""
    model.train()
    y, path = batch.y, batch.path
    if batch.x_adv is None:
        logits = model(batch.x)
        return Seen(y, logits, logits if method.reads_clean else None, streams=batch.streams)
    logits_nat = model(batch.x) if method.reads_clean else None
    logits_adv = model(batch.x_adv)
    logits_second = model(batch.x_second) if batch.x_second is not None else None
    p_last = logits_adv.detach().softmax(dim=1).gather(1, y[:, None]).squeeze(1)
    p_flip = path.p_flip.where(path.lps < path.steps, p_last)
    return Seen(y, logits_adv, logits_nat, path.kappa, path.lps, p_flip, path.steps, batch.streams, logits_second)


def objective(model: nn.Module, method: Method, batch: Batch, *, reweighted: bool) -> Step:
    """What the step minimises: mean(w · weighted + plain), plus the regulariser."""
    seen = see(model, method, batch)
    weights = method.weigh(seen) if reweighted else torch.ones_like(seen.logits_adv[:, 0])
    weighted, plain = method.loss.read(seen)
    assert weights.shape == weighted.shape == batch.y.shape, "weights and losses are per example, (N,)"
    loss = (weights * weighted + plain).mean()
    if method.regulariser is not None:
        loss = loss + method.regulariser(model)
    return Step(seen, weights.detach(), loss)


def step(model: nn.Module, optimiser: torch.optim.Optimizer, method: Method, recipe: Recipe, x: Tensor, y: Tensor,
         streams: Streams, *, attacked: bool = True, reweighted: bool = True) -> Step:
    """One optimiser step on a batch x (N, C, H, W) in [0, 1], y (N,): the seven parts of a method, in order.

    `attacked`: on x_adv, else on x. `reweighted`: past burn-in; before it every weight is 1.
    """
    batch = (strike(model, method, recipe, x, y, streams, reweighted=reweighted) if attacked else
             Batch(x, y, None, None, None, streams))
    take = partial(objective, model, method, batch, reweighted=reweighted)
    with method.perturb(model, lambda: take().loss) if method.perturb else contextlib.nullcontext():
        done = take()
        optimiser.zero_grad(set_to_none=True)
        done.loss.backward()
        optimiser.step()
    return replace(done, loss=done.loss.detach())
