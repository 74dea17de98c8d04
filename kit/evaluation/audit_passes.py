"""What an audit sees of a network beside its attacks: passes, losses, transferred images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from kit.attacks.clean_images import predict
from kit.attacks.contract import check_inputs, frozen, pass_copy
from kit.attacks.projected_gradient_descent import pgd
from kit.attacks.table import ATTACKS, Attack
from kit.core import tensors
from kit.core.errors import KitError
from kit.core.random_streams import Streams
from kit.core.threat import Threat
from kit.data.splits import Split
from kit.evaluation.accuracy import ATTACK_BATCH, measure_attack

#: Transferred images come from PGD on the other network: steps, and their size in units of eps.
TRANSFER_PGD = (50, 0.1)


# --------------------------------------------------------------------------- looking at the network


def _batches(split: Split) -> tuple[Tensor, ...]:
    return torch.arange(len(split), device=split.y.device).split(ATTACK_BATCH[split.y.device.type])


def pass_images(model: nn.Module, split: Split) -> dict[str, np.ndarray]:
    """Pass clean images twice through the network, once with a gradient.

    Returns ids and y (n,), logits and again (n, K) of two passes, and slope (n,): the largest |∂
    cross-entropy / ∂ pixel|.

    Raises:
        KitError: There are no images, the labels or a shape do not fit, or no gradient leads back
            from the output.
    """
    if not len(split):
        raise KitError("there are no images to audit; choose another split")
    pieces: dict[str, list[Tensor]] = {"logits": [], "again": [], "slope": []}
    with frozen(model):
        with torch.no_grad():
            few = split.x(slice(0, 16))
            tensors.check_logit_shape(pass_copy(model, few), len(few))
        for rows in _batches(split):
            x = split.x(rows).requires_grad_(True)
            with torch.enable_grad():
                logits = model(x)
                if not logits.requires_grad:
                    raise KitError(
                        "no gradient leads from the network's output back to its input. Only black "
                        "boxes could attack it. Look for no_grad, detach or whole numbers in its "
                        "forward pass"
                    )
                if bool(logits.isfinite().all()):
                    check_inputs(model, x.detach(), split.y[rows])
                (gradient,) = torch.autograd.grad(
                    tensors.per_example_cross_entropy(logits, split.y[rows]).sum(),
                    x,
                    materialize_grads=True,
                )
            pieces["logits"].append(logits.detach())
            pieces["slope"].append(tensors.norm(gradient, "linf"))
            with torch.no_grad():
                pieces["again"].append(model(x.detach()))
    arrays = {name: torch.cat(parts).cpu().numpy() for name, parts in pieces.items()}
    return {"ids": split.ids.cpu().numpy(), "y": split.y.cpu().numpy(), **arrays}


def follow_losses(model: nn.Module, split: Split, threat: Threat) -> np.ndarray:
    """Return the cross-entropy at PGD-100's points, (n, 100) in nats, the start first.

    Its settings are those of the audit's step.
    """
    steps, step = (ATTACKS["pgd100"].settings[name] for name in ("steps", "step"))
    along: list[Tensor] = []
    for rows in _batches(split):
        y = split.y[rows]
        path: list[Tensor] = []

        def watch(
            t: int, x_t: Tensor, logits: Tensor, y: Tensor = y, path: list[Tensor] = path
        ) -> None:
            path.append(tensors.per_example_cross_entropy(logits, y))

        pgd(
            model,
            split.x(rows),
            y,
            threat,
            generator=Streams(split.ids[rows], "audit", "losses"),
            watch=watch,
            steps=steps,
            step_size=step * threat.eps,
        )
        along.append(torch.stack(path, dim=1))
    return torch.cat(along).cpu().numpy()


def attack_unbounded(model: nn.Module, split: Split, threat: Threat) -> np.ndarray:
    """Run PGD-100 in the ball of the threat's norm that holds every image.

    Returns (n,) bool: broken.
    """
    unbounded = Threat(
        threat.norm, 1.0 if threat.norm == "linf" else split.images[0].numel() ** 0.5
    )
    stronger: Attack = ATTACKS["pgd100"].but(stop_early=True)
    return measure_attack(model, split, unbounded, stronger)["broken"]


def transfer_images(
    source: nn.Module, model: nn.Module, split: Split, threat: Threat
) -> dict[str, np.ndarray]:
    """Try the last iterates of PGD against `source` on `model`.

    Returns (n,) arrays: broken, forwards, backwards. The clean image counts, too.
    """
    check_inputs(source, split.x(slice(0, 256)), split.y[:256])
    steps, step = TRANSFER_PGD
    broken = []
    for rows in _batches(split):
        x, y = split.x(rows), split.y[rows]
        x_adv = pgd(
            source,
            x,
            y,
            threat,
            generator=Streams(split.ids[rows], "audit", "transfer"),
            steps=steps,
            step_size=step * threat.eps,
        )
        with frozen(model):
            broken.append((predict(model, x_adv) != y) | (predict(model, x) != y))
    passes = np.full(len(split), 2)
    return {"broken": torch.cat(broken).cpu().numpy(), "forwards": passes, "backwards": 0 * passes}
