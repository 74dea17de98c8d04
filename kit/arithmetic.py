"""What a run computes, counted before anything is trained: floating-point operations, two to a multiplication and addition.

Counted are the layers of networks in all passes of training, probes and the last look; random numbers, losses and optimisers
are not, nor are evaluations. No image is needed of data sets that are downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from kit import models
from kit.data import EXPECTED, DataSet, Split
from kit.minibatch import Learner, steps
from kit.runs import dataset
from kit.spec import Plan
from kit.types import Streams

#: Shapes of the images that are downloaded.
SHAPES = {"mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32),
          "svhn": (3, 32, 32)}


class Sizes(NamedTuple):
    """How many images the splits have, as they are trained with."""

    train: int
    validation: int
    test: int


def sample(plan: Plan, most: int) -> tuple[DataSet, Sizes]:
    """At most `most` images of each split, and how many there are. Of data sets that are downloaded the images are noise."""
    recipe = plan.recipe
    if recipe.data in SHAPES:
        train, test = EXPECTED[recipe.data]
        sizes = Sizes(min(recipe.train_size or train, train - recipe.validation), recipe.validation, test)
        classes = 100 if recipe.data == "cifar100" else 10
        parts = [_noise(min(n, most), SHAPES[recipe.data], classes) for n in sizes]
        return DataSet(recipe.data, tuple(map(str, range(classes))), *parts), sizes
    whole = dataset(plan)
    splits = (whole.train, whole.validation, whole.test)
    few = [split.take(slice(0, most)) for split in splits]
    return replace(whole, train=few[0], validation=few[1], test=few[2]), Sizes(*map(len, splits))


def _noise(n: int, shape: tuple[int, int, int], classes: int) -> Split:
    images = torch.randint(256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Split(images, torch.arange(n) % classes, torch.arange(n))


# ---------------------------------------------------------------------------------------------- operations

class Work(NamedTuple):
    """Floating-point operations of a run: an epoch of the last one's kind, and the pass over all images."""

    epoch: float
    final: float


def work(plan: Plan) -> Work:
    """What a run computes."""
    host, sizes = sample(plan, 1)
    forward = _forward(plan.recipe.model, host.shape, len(host.classes))
    look = (2 * plan.recipe.steps + 2) * forward       # the probe's attack, and a pass of each image without and with it
    probed = sum(min(plan.recipe.probe, n) for n in sizes)
    return Work(sizes.train * passes(plan, len(host.classes)) * forward + probed * look, (sizes.train + sizes.test) * look)


@lru_cache
def _forward(model: str, shape: tuple[int, int, int], classes: int) -> float:
    """Operations of one image's way through a network."""
    network = models.build(model, shape, classes).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *shape))
    return counter.get_total_flops()


def passes(plan: Plan, classes: int = 10) -> float:
    """How many forward passes' operations a training step costs an image: a pass forwards is one, its gradient in an attack
    one more, and in an update, where the parameters have theirs, two more. Counted on a tiny network."""
    shape, recipe, count = (1, 4, 4), plan.recipe, []
    network = models.build("cnn", shape, classes)

    def counted(module: torch.nn.Module, images: tuple, logits: torch.Tensor) -> None:
        count.append(len(logits))
        if logits.requires_grad:
            logits.register_hook(lambda gradient: count.append(len(gradient) * (1 + module.training)))

    network.register_forward_hook(counted)
    method, images = plan.method.at(recipe.epochs, recipe.epochs), _noise(8, shape, classes)
    learner = Learner(network, torch.optim.SGD(network.parameters(), lr=0.0), method, method.reweights)
    for attacked in method.stages(recipe.epochs, recipe.epochs):
        steps([learner], replace(recipe, precision="fp32"), images.x(), images.y, [Streams(images.ids, 0, "count")],
              attacked=attacked)
    return sum(count) / len(images)


def total(left: Iterable[tuple[Plan, int]]) -> float:
    """Operations of runs with so many epochs to go; of those with none, nothing."""
    return sum(epochs * (mine := work(plan)).epoch + mine.final for plan, epochs in left if epochs)
