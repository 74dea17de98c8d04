"""What is kept of a step, and what a frozen network answers on a split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from kit.attacks.contract import AttackTrace, frozen
from kit.attacks.projected_gradient_descent import pgd
from kit.core.parts import part
from kit.core.progress import followed
from kit.core.random_streams import JoinedStreams, Streams
from kit.data.splits import Split
from kit.experiments.specification import Plan
from kit.methods.step_outputs import StepOutputs
from kit.models.stacking import gains_by_stacking, stack_networks

#: The attack on a network after each epoch, the same for every method: the recipe's steps, from
#: beside the image.
PROBE = part(pgd, loss="ce", init="gaussian")

PROBE_BATCH = 256


def kept_outputs(outputs: StepOutputs, n: int | None = None) -> dict[str, Tensor]:
    """Return the fields of a step's outputs that are worth keeping, of its first n images (all)."""
    names = ("logits_adv", "logits_nat", "kappa", "lps", "p_flip")
    found = {name: getattr(outputs, name) for name in names}
    return {name: value.detach()[:n] for name, value in found.items() if value is not None}


def stored_array(values: Tensor) -> np.ndarray:
    """Convert to NumPy: steps as bytes, and logits of many images in half precision."""
    array = values.cpu().numpy()
    if array.dtype == np.int64:
        return array.astype(np.uint8 if array.max(initial=0) < 256 else np.int32)
    return array.astype(np.float16) if array.nbytes > 4e6 else array


def observe_split(
    models: Sequence[nn.Module],
    plans: Sequence[Plan],
    split: Split,
    purpose: str,
    steps: int = 0,
) -> list[dict[str, np.ndarray]]:
    """Pass a split through frozen networks that fit together, clean and attacked.

    Returns for each network logits_adv and logits_nat (n, K), kappa, lps, p_flip, y and ids (n,).
    The attack is `PROBE` with the recipe's threat, and `steps` or else the recipe's. Its random
    start depends on seed, purpose and image id.
    """
    found = observe_rows(models, plans, split, purpose, torch.arange(len(split)), steps)
    labels = {"y": stored_array(split.y), "ids": split.ids.cpu().numpy()}
    return [{name: stored_array(v) for name, v in mine.items()} | labels for mine in found]


def observe_rows(
    models: Sequence[nn.Module],
    plans: Sequence[Plan],
    split: Split,
    purpose: str,
    rows: Tensor,
    steps: int = 0,
) -> list[dict[str, Tensor]]:
    """Return the tensors of `observe_split` for some rows (n,) of the split."""
    if len(models) > 1 and not gains_by_stacking(models[0], split.y.device):
        each = zip(models, plans, strict=True)
        return [observe_rows([m], [p], split, purpose, rows, steps)[0] for m, p in each]
    recipe, network = plans[0].recipe, stack_networks(models)
    steps = steps or recipe.steps
    kept: list[list[dict[str, Tensor]]] = [[] for _ in models]
    with frozen(network):
        batches = rows.to(split.y.device).split(PROBE_BATCH)
        for some in followed(batches, f"{purpose} batch"):
            x = split.x(some).repeat(len(models), 1, 1, 1)
            y = split.y[some].repeat(len(models))
            streams = [Streams(split.ids[some], plan.seed, purpose) for plan in plans]
            trace = AttackTrace(y, steps)
            x_adv = PROBE(
                network,
                x,
                y,
                recipe.threat,
                generator=JoinedStreams(streams),
                watch=trace,
                validate=False,
                steps=steps,
                step_size=recipe.step * recipe.eps,
            )
            with torch.no_grad():
                nat, adv = network(x), network(x_adv)
            flip = trace.flip_probability(adv)
            outputs = StepOutputs(y, adv, nat, kappa=trace.kappa, lps=trace.lps, p_flip=flip)
            for i, mine in enumerate(kept):
                own = slice(i * len(some), (i + 1) * len(some))
                mine.append(kept_outputs(outputs.take(own, streams[i])))
    return [{name: torch.cat([r[name] for r in mine]) for name in mine[0]} for mine in kept]


def accuracies(arrays: dict[str, np.ndarray]) -> tuple[float, float]:
    """Return the (clean, robust) accuracy of what `observe_split` returned.

    A NaN is never correct.
    """

    def right(logits: np.ndarray) -> float:
        return float(((logits.argmax(1) == arrays["y"]) & np.isfinite(logits).all(1)).mean())

    return right(arrays["logits_nat"]), right(arrays["logits_adv"])
