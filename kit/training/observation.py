"""TODO training.observation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from kit.attacks.contract import frozen
from kit.attacks.projected_gradient_descent import pgd
from kit.attacks.trace import AttackTrace
from kit.core.distributed import gather, own_rows
from kit.core.parts import part
from kit.core.random_streams import JoinedStreams, Streams
from kit.data.splits import Split
from kit.experiments.specification import Plan
from kit.methods.step_outputs import StepOutputs
from kit.models.stacking import stack_networks

#: What looks at a network after each epoch, the same for every method: the recipe's steps, from
#: beside the image.
PROBE = part(pgd, loss="ce", init="gaussian")

PROBE_BATCH = 256


def kept_outputs(outputs: StepOutputs) -> dict[str, Tensor]:
    """The fields of `Seen` worth keeping, detached."""
    names = ("logits_adv", "logits_nat", "kappa", "lps", "p_flip")
    return {name: value.detach() for name in names if (value := getattr(outputs, name)) is not None}


def stored_array(values: Tensor) -> np.ndarray:
    """Steps as bytes, and logits of many images in half precision."""
    array = values.cpu().numpy()
    if array.dtype == np.int64:
        return array.astype(np.uint8 if array.max(initial=0) < 256 else np.int32)
    return array.astype(np.float16) if array.nbytes > 4e6 else array


def observe_split(
    models: Sequence[nn.Module], plans: Sequence[Plan], split: Split, purpose: str
) -> list[dict[str, np.ndarray]]:
    """Clean and attacked logits (n, K), kappa, lps, p_flip, y and ids (n,) of a split, with frozen
    networks.

    The attack is `PROBE` with the recipe's threat and steps. Its random start depends on seed,
    purpose and image id.
    """
    recipe, network, n = plans[0].recipe, stack_networks(models), len(split)
    kept: list[list[dict[str, Tensor]]] = [[] for _ in models]
    with frozen(network):
        for rows in torch.arange(n, device=split.y.device)[own_rows(n)].split(PROBE_BATCH):
            x, y = split.x(rows).repeat(len(models), 1, 1, 1), split.y[rows].repeat(len(models))
            streams, path = (
                [Streams(split.ids[rows], plan.seed, purpose) for plan in plans],
                AttackTrace(y, recipe.steps),
            )
            x_adv = PROBE(
                network,
                x,
                y,
                recipe.threat,
                generator=JoinedStreams(streams),
                watch=path,
                validate=False,
                steps=recipe.steps,
                step_size=recipe.step * recipe.eps,
            )
            with torch.no_grad():
                nat, adv = network(x), network(x_adv)
            p_last = adv.softmax(dim=1).gather(1, y[:, None]).squeeze(1)
            p_flip = path.p_flip.where(path.lps < recipe.steps, p_last)
            outputs = StepOutputs(y, adv, nat, kappa=path.kappa, lps=path.lps, p_flip=p_flip)
            for i, mine in enumerate(kept):
                mine.append(
                    kept_outputs(
                        outputs.take(slice(i * len(rows), (i + 1) * len(rows)), streams[i])
                    )
                )
    shared = {"y": stored_array(split.y), "ids": split.ids.cpu().numpy()}
    return [
        {
            name: stored_array(gather(torch.cat([record[name] for record in mine]), n))
            for name in mine[0]
        }
        | shared
        for mine in kept
    ]


def accuracies(arrays: dict[str, np.ndarray]) -> tuple[float, float]:
    """(clean, robust) accuracy of what `observe` returned; a NaN is never correct."""

    def right(logits: np.ndarray) -> float:
        return float(((logits.argmax(1) == arrays["y"]) & np.isfinite(logits).all(1)).mean())

    return right(arrays["logits_nat"]), right(arrays["logits_adv"])
