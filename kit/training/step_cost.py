"""What a training step costs an image, counted in passes through the network.

The count is the same on every machine, unlike seconds.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from kit.core.random_streams import Streams
from kit.data.splits import Split
from kit.experiments.specification import Plan
from kit.models.architectures import build_network
from kit.training.perturbed_step import train_step_perturbed
from kit.training.step import Batch, train_step


def count_passes(plan: Plan, classes: int = 10) -> float:
    """Count how many forward passes' operations a training step costs an image.

    A pass forwards is one, its gradient in an attack one more, and in an update, where the
    parameters have theirs, two more. They are counted on a tiny network.
    """
    shape, recipe = (1, 4, 4), plan.recipe
    count: list[int] = []
    network = build_network("cnn", shape, classes)

    def counted(module: torch.nn.Module, images: tuple, logits: torch.Tensor) -> None:
        count.append(len(logits))
        if logits.requires_grad:
            logits.register_hook(
                lambda gradient: count.append(len(gradient) * (1 + module.training))
            )

    network.register_forward_hook(counted)
    method, images = plan.method.at(recipe.epochs, recipe.epochs), noise_images(8, shape, classes)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    recipe = replace(recipe, precision="fp32")
    batch = Batch(images.x(), images.y, Streams(images.ids, 0, "count"))
    take_step = train_step_perturbed if method.perturb else train_step
    for adversarial in method.stages(recipe.epochs, recipe.epochs):
        parts = network, optimizer, method, batch, recipe
        take_step(*parts, adversarial=adversarial, reweight=method.reweights)
    return sum(count) / len(images)


def noise_images(n: int, shape: tuple[int, int, int], classes: int) -> Split:
    """Return n images (n, C, H, W) of noise, their classes in turn."""
    images = torch.randint(
        256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return Split(images, torch.arange(n) % classes, torch.arange(n))
