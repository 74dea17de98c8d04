"""The plain training step, which `kit.training.step` must equal: eager, channels first, nothing
folded, skipped or cached.

Weights, losses and regularisers are the kit's, which have second implementations of their own
elsewhere; attack, passes and update are written out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core.random_streams import Streams
from kit.experiments.recipes import Recipe
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import Method
from kit.models import architectures


@contextlib.contextmanager
def nothing_folded() -> Iterator[None]:
    before = architectures.conv_norm
    architectures.conv_norm = lambda conv, norm, x: norm(conv(x))
    try:
        yield
    finally:
        architectures.conv_norm = before


def kl(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    return F.kl_div(logits_q.log_softmax(1), logits_p.softmax(1), reduction="none").sum(1)


def cw(logits: Tensor, y: Tensor) -> Tensor:
    mine = F.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(mine, -torch.inf).max(1).values - logits[mine]


def attack(
    net: nn.Module,
    part,
    method: Method,
    recipe: Recipe,
    x: Tensor,
    y: Tensor,
    streams: Streams,
    reweighted: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(x_adv, {kappa, lps, p_flip}) of a method's attack; a friendly one holds what has stopped
    where it stands.
    """
    wanted, eps, step_size = part.params.get("loss", "own"), recipe.eps, recipe.step * recipe.eps
    steps, init = recipe.steps, part.params.get("init", "none")
    friendly = part.name == "friendly_pgd"
    if part.name == "one_step_fgsm":
        wanted, steps, step_size = "ce", 1, eps
    noise = {
        "uniform": lambda: eps * (2 * streams.uniform(x) - 1),
        "gaussian": lambda: 0.001 * streams.normal(x),
        "unit": lambda: streams.uniform(x),
        "none": lambda: 0 * x,
    }[init]()
    x_t = (x + noise).clamp(0, 1) if friendly or init == "uniform" else x + noise
    found = {
        "kappa": torch.zeros_like(y),
        "lps": torch.full_like(y, recipe.steps),
        "p_flip": torch.full(y.shape, torch.nan),
    }
    patience, stopped = torch.full_like(y, part.params.get("tau", 0)), torch.zeros_like(y).bool()
    for t in range(steps):
        x_t = x_t.detach().requires_grad_()
        logits = net(x_t)
        losses: dict[str, Callable[[], Tensor]] = {
            "ce": lambda z=logits: F.cross_entropy(z, y, reduction="none"),
            "margin": lambda z=logits: cw(z, y),
            "kl": lambda z=logits: kl(net(x).detach(), z),
            "own": lambda z=logits: method.trained_loss(z, y, reweighted=reweighted),
        }
        (gradient,) = torch.autograd.grad(losses[wanted]().sum(), x_t)
        right, p_true = logits.argmax(1) == y, logits.softmax(1)[torch.arange(len(y)), y].detach()
        crossing = ~right & (found["lps"] == recipe.steps)
        found = {
            "kappa": found["kappa"] + right,
            "lps": torch.where(crossing, t, found["lps"]),
            "p_flip": torch.where(crossing, p_true, found["p_flip"]),
        }
        step = step_size * gradient.sign()
        if friendly and part.params["omega"]:
            step = step + part.params["omega"] * streams.normal(x)
        moved = (x + (x_t.detach() + step - x).clamp(-eps, eps)).clamp(0, 1)
        if friendly:
            stopped = stopped | (~right & (patience == 0))
            patience = patience - (~right).long()
            if bool(stopped.all()):
                return x_t.detach(), found
        x_t = torch.where(stopped[:, None, None, None], x_t.detach(), moved)
    return x_t, found


def plain_step(
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
) -> tuple[Tensor, Tensor]:
    """-> loss, and the outer pass's logits of the images trained on."""
    seen: dict[str, Tensor] = {}
    x_train = x_second = x
    if attacked:
        net.eval()
        x_train, path = attack(net, method.attack, method, recipe, x, y, streams, reweighted)
        if method.second_attack:
            x_second, _ = attack(
                net, method.second_attack, method, recipe, x, y, streams, reweighted
            )
        seen = path
    net.train()

    def objective() -> tuple[Tensor, Tensor]:
        logits_nat = net(x) if method.reads_clean and attacked else None
        logits = net(x_train)
        second = net(x_second) if method.second_attack and attacked else None
        given = dict(seen)
        if attacked:
            last = logits.detach().softmax(1)[torch.arange(len(y)), y]
            given["p_flip"] = torch.where(given["lps"] < recipe.steps, given["p_flip"], last)
        view = StepOutputs(
            y,
            logits,
            logits_nat if attacked else logits,
            steps=recipe.steps if attacked else 0,
            streams=streams,
            logits_second=second,
            **given,
        )
        weights = method.weigh(view) if reweighted else torch.ones(len(y))
        weighted, plain = method.loss(view)
        loss = (weights * weighted + plain).sum() / len(y)
        return loss + method.regulariser(net) if method.regulariser else loss, logits.detach()

    with (
        method.perturb(net, lambda: objective()[0]) if method.perturb else contextlib.nullcontext()
    ):
        loss, logits = objective()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.detach(), logits
