"""No attack: what a network says of the clean images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kit.attacks.tracker import AttackResult, predicted_classes, track_attack
from kit.core.random_streams import Streams
from kit.core.threat import Threat


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """(N,) class of each image, -1 where the logits are not finite."""
    return predicted_classes(model(x))


def natural(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    generator: Streams | None = None,
    validate: bool = True,
) -> AttackResult:
    """No attack: who is right on the clean images?

    Raises:
        KitError: `check_inputs` refuses the inputs.
    """
    with track_attack(model, x, y, threat, validate=validate) as tracker:
        return tracker.result("natural")
