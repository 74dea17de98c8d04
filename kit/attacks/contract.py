"""What every attack promises: the model and the random state are left as they were found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kit import functional as f
from kit.attacks.inputs import quick_input_gradients
from kit.types import KitError


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode and without parameter gradients; each module's own mode and flags come back."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for p in wanted:
        p.requires_grad_(False)
    try:
        with quick_input_gradients(model):
            yield model
    finally:
        for module, training in modes:
            module.training = training
        for p in wanted:
            p.requires_grad_(True)


def check_inputs(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Refuses images, labels and models that would give a wrong number: see the errors of `kit.functional`."""
    f.check_images(x)
    if len(x) != len(y):
        raise KitError(f"{len(x)} images came with {len(y)} labels")
    if len(x) == 0:
        raise KitError("there are no images to attack")
    with frozen(model), torch.no_grad():
        logits = model(x[:256])
    f.check_logits(logits, len(x[:256]))
    f.check_labels(y, logits.shape[1])
