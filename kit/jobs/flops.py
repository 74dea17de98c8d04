"""What a run computes, counted before anything is trained.

Counted are floating-point operations, two to a multiplication and addition, of the layers of
networks in all passes of training, of probes and of the last pass over all images. Random numbers,
losses and optimizers are not counted, nor are evaluations. No image is needed of data sets that are
downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from kit.data.datasets import EXPECTED
from kit.data.splits import DataSet
from kit.experiments.runs import open_dataset
from kit.experiments.specification import Plan
from kit.models.architectures import build_network
from kit.training.step_cost import count_passes, noise_images

#: Shapes of the images that are downloaded.
IMAGE_SHAPES = {
    "mnist": (1, 28, 28),
    "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "cifar100": (3, 32, 32),
    "svhn": (3, 32, 32),
}


class SplitSizes(NamedTuple):
    """How many images the splits have, as they are trained with."""

    train: int
    validation: int
    test: int


def sample_data(plan: Plan, most: int) -> tuple[DataSet, SplitSizes]:
    """Take at most `most` images of each split, and say how many there are.

    The images of data sets that are downloaded are noise.
    """
    recipe = plan.recipe
    if recipe.data in IMAGE_SHAPES:
        train, test = EXPECTED[recipe.data]
        sizes = SplitSizes(
            min(recipe.train_size or train, train - recipe.validation), recipe.validation, test
        )
        classes = 100 if recipe.data == "cifar100" else 10
        parts = [noise_images(min(n, most), IMAGE_SHAPES[recipe.data], classes) for n in sizes]
        return DataSet(recipe.data, tuple(map(str, range(classes))), *parts), sizes
    whole = open_dataset(plan)
    splits = (whole.train, whole.validation, whole.test)
    few = [split.take(slice(0, most)) for split in splits]
    if (made := whole.train.generated) is not None:
        few[0] = replace(few[0], generated=made.take(slice(0, most)))
    return replace(whole, train=few[0], validation=few[1], test=few[2]), SplitSizes(
        *map(len, splits)
    )


# --------------------------------------------------------------------------------------- operations


class RunFlops(NamedTuple):
    """Floating-point operations of a run.

    They are those of an epoch of the last one's kind, and those of the pass over all images.
    """

    epoch: float
    final: float


def count_flops(plan: Plan) -> RunFlops:
    """Count what a run computes."""
    host, sizes = sample_data(plan, 1)
    forward = _forward_flops(plan.recipe.model, host.shape, len(host.classes))
    # The probe's attack, and a pass of each image without and with it.
    observed = (2 * plan.recipe.steps + 2) * forward
    probed = sum(min(plan.recipe.probe, n) for n in sizes)
    # an epoch passes each image of one's own, and the share of generated ones beside it
    passed = sizes.train * plan.recipe.batch_size / plan.recipe.own_batch_size
    return RunFlops(
        passed * count_passes(plan, len(host.classes)) * forward + probed * observed,
        (sizes.train + sizes.test) * observed,
    )


@lru_cache
def _forward_flops(model: str, shape: tuple[int, int, int], classes: int) -> float:
    """Operations of one image's way through a network."""
    network = build_network(model, shape, classes).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *shape))
    return counter.get_total_flops()


def total_flops(left: Iterable[tuple[Plan, int]]) -> float:
    """Add the operations of runs with so many epochs to go; those with none have none."""
    return sum(
        epochs * (mine := count_flops(plan)).epoch + mine.final for plan, epochs in left if epochs
    )
