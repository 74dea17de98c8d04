"""The table of recipes: data, network, threat and schedule.

`<data>` is quick, `<data>:paper` has the papers' scale. Quick recipes teach on a laptop. Paper
recipes carry the printed schedule, and train on all images for a fixed number of epochs (so there
is no "best" epoch: validation = 0). Images of one's own and generated ones come in by name, see
`find_recipe`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Annotated, Any, Literal, get_type_hints

from kit.core.errors import KitError, unknown_name
from kit.core.parameters import Count, Natural, NonNegative, Positive, Range, check_value
from kit.core.registry import Registry
from kit.core.threat import Threat
from kit.data.augmentation import Augment
from kit.data.datasets import base_of, check_data_name
from kit.data.gaussian_mixture import MIXTURE
from kit.models.architectures import check_model_name

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Recipe:
    """What a run needs beside its method; every field changes the result.

    Pixels are in [0, 1], and `eps` counts in their units.
    """

    title: str
    data: str
    model: str
    epochs: Count
    batch_size: Count
    lr: Positive
    momentum: Annotated[float, Range(0, 0.9999)] = 0.9
    weight_decay: NonNegative = 0.0
    milestones: tuple[Count, ...] = ()  # the rate is multiplied by lr_factor after these epochs
    lr_factor: Positive = 0.1
    norm: Literal["linf", "l2"] = "linf"
    eps: NonNegative = 8 / 255
    step: Positive = 0.25  # of the training attack, in units of eps
    steps: Count = 10
    augment: Augment = "none"
    normalise: bool = False  # (x - mean) / std inside the model
    validation: Natural = 0  # training images held out to choose the best epoch
    train_size: Natural = 0  # 0 = all
    probe: Count = 256  # images of each split attacked after every epoch
    # of the training attack's passes; auto is bf16 on GPUs, else fp32
    precision: Precision = "auto"

    @cached_property
    def threat(self) -> Threat:
        """The norm and radius of its attacks."""
        return Threat(self.norm, self.eps)

    def override(self, **changes: Any) -> Recipe:
        """Return the recipe with fields changed and validated.

        Raises:
            KitError: A field is unknown or its value unfit; it names the field and its range.
        """
        hints = get_type_hints(type(self), include_extras=True)
        checked = {}
        for name, value in changes.items():
            if name not in RECIPE_FIELDS:
                raise unknown_name("field of a recipe", name, RECIPE_FIELDS)
            checked[name] = check_value(name, value, hints[name])
        changed = replace(self, **checked)
        check_data_name(changed.data)
        check_model_name(changed.model)
        if list(changed.milestones) != sorted(set(changed.milestones)):
            raise KitError(
                f"milestones={list(changed.milestones)} must be increasing epochs, such as [75, 90]"
            )
        return changed

    def config(self) -> dict:
        """Return all fields that change the result, as JSON values."""
        return {
            name: list(v) if isinstance(v := getattr(self, name), tuple) else v
            for name in RECIPE_FIELDS
        }


RECIPE_FIELDS = tuple(f.name for f in fields(Recipe) if f.name != "title")


_CIFAR = Recipe(
    "CIFAR-10 in minutes: a small network on 10,000 images",
    "cifar10",
    "cnn",
    epochs=16,
    batch_size=128,
    lr=0.05,
    milestones=(10, 12),
    augment="crop-flip",
    validation=1000,
    train_size=10_000,
)

_CIFAR_PAPER = Recipe(
    "CIFAR-10 as CLIRAT, MAIL and MR train it: ResNet-18, 120 epochs; folder:<path>:paper is this "
    "on any folder of images, TinyImageNet's too",
    "cifar10",
    "resnet18",
    epochs=120,
    batch_size=128,
    lr=0.01,
    weight_decay=3.5e-3,
    milestones=(75, 90),
    augment="crop-flip",
    probe=1000,
)

_MNIST = Recipe(
    "MNIST in minutes: LeNet on 10,000 images",
    "mnist",
    "lenet",
    epochs=12,
    batch_size=64,
    lr=0.05,
    milestones=(8, 10),
    eps=0.1,
    validation=1000,
    train_size=10_000,
)

_MNIST_PAPER = Recipe(
    "MNIST as CSA/CSE train it: LeNet, 20 epochs; eps 0.3 in units of the standardised images",
    "mnist",
    "lenet",
    epochs=20,
    batch_size=256,
    lr=0.01,
    momentum=0.95,
    normalise=True,
    eps=0.3 * 0.3081,
    probe=1000,
)


RECIPES = Registry(
    "recipe",
    {
        "digits": Recipe(
            "8x8 digits inside scikit-learn: seconds on one core",
            "digits",
            "cnn",
            epochs=40,
            batch_size=64,
            lr=0.05,
            milestones=(25, 30),
            eps=0.2,
            validation=130,
            probe=200,
        ),
        "mnist": _MNIST,
        "mnist:paper": _MNIST_PAPER,
        "fashion-mnist": replace(
            _MNIST, title="Fashion-MNIST in minutes", data="fashion-mnist", eps=0.05
        ),
        "fashion-mnist:paper": replace(
            _MNIST_PAPER, title="Fashion-MNIST with CSA/CSE's MNIST schedule", data="fashion-mnist"
        ),
        "cifar10": _CIFAR,
        "cifar10:paper": _CIFAR_PAPER,
        "cifar10:released": replace(
            _CIFAR_PAPER,
            title="CIFAR-10 as in MAIL's released code: eps 0.031, a third rate drop",
            eps=0.031,
            step=0.007 / 0.031,
            milestones=(75, 90, 100),
        ),
        "cifar100": replace(_CIFAR, title="CIFAR-100 in minutes", data="cifar100"),
        "cifar100:paper": replace(
            _CIFAR_PAPER, title="CIFAR-100, the CIFAR-10 schedule", data="cifar100"
        ),
        "svhn": replace(_CIFAR, title="SVHN in minutes", data="svhn", augment="crop"),
        "svhn:paper": replace(
            _CIFAR_PAPER, title="SVHN, the CIFAR-10 schedule", data="svhn", augment="crop"
        ),
        "mixture": Recipe(
            "two Gaussian classes with closed-form risks: seconds; with two classes CL-PM is PM",
            "mixture",
            "linear",
            epochs=12,
            batch_size=64,
            lr=0.05,
            milestones=(8, 10),
            eps=MIXTURE.scale * MIXTURE.eta / 2,
            normalise=True,
            validation=1000,
        ),
    },
)


def find_recipe(name: str) -> Recipe:
    """Return the row of `RECIPES` of that name, or one made for a folder or generated images.

    folder:<path>[:paper] is CIFAR-10's row on that folder, and <data>+npz:<file>[:paper] the row of
    <data> with the file's generated images.

    Raises:
        KitError: The name is unknown, or there is nothing at the path.
    """
    if not name.startswith("folder:") and "+npz:" not in name:
        if name not in RECIPES:
            raise unknown_name(
                "recipe", name, [*RECIPES, "folder:<path>[:paper]", "<data set>+npz:<file>[:paper]"]
            )
        return RECIPES[name]
    data, scale = name, "quick"
    for ending in ("quick", "paper"):
        if name.endswith(f":{ending}"):
            data, scale = name.removesuffix(f":{ending}"), ending
    check_data_name(data)
    row = "cifar10" if data.startswith("folder:") else base_of(data)
    base = RECIPES[row if scale == "quick" else f"{row}:{scale}"]
    return replace(base, title=f"{data} with {row}'s {scale} settings", data=data)
