"""The table of recipes: data, network, threat and schedule.

`<data>` is quick, `<data>:paper` has the papers' scale. Quick recipes teach on a laptop. Paper
recipes carry the printed schedule, and train on all images for a fixed number of epochs (so there
is no "best" epoch: validation = 0). Images of one's own and generated ones come in by name, see
`find_recipe`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Annotated, Any, Literal, get_type_hints

from kit.core.errors import KitError, unknown_name
from kit.core.parameters import Count, Natural, NonNegative, Positive, Range, check_value
from kit.core.registry import Registry
from kit.core.threat import Norm, Threat
from kit.data.augmentation import Augment
from kit.data.datasets import base_of, check_data_name
from kit.data.gaussian_mixture import MIXTURE
from kit.data.own_images import OWN
from kit.models.architectures import find_builder

Precision = Literal["auto", "fastest", "fp32", "bf16"]
Optimizer = Literal["sgd", "adam"]
Schedule = Literal["milestones", "cosine"]


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
    optimizer: Optimizer = "sgd"
    momentum: Annotated[float, Range(0, 0.9999)] = 0.9  # Adam's first decay rate
    nesterov: bool = False
    weight_decay: NonNegative = 0.0
    schedule: Schedule = "milestones"  # cosine falls to 0 and leaves milestones unread
    milestones: tuple[Count, ...] = ()  # the rate is multiplied by lr_factor after these epochs
    lr_factor: Positive = 0.1
    warm_up: Natural = 0  # epochs in which the rate rises in a straight line
    norm: Norm = "linf"
    eps: NonNegative = 8 / 255
    step: Positive = 0.25  # of the training attack, in units of eps
    steps: Count = 10
    augment: Augment = "none"
    normalise: bool = False  # (x - mean) / std inside the model, of the training images
    mean_std: tuple[
        Positive, ...
    ] = ()  # these instead: a mean a channel, then a deviation a channel
    validation: Natural = 0  # training images held out to choose the best epoch
    selection_steps: Natural = 0  # of the attack that it is chosen by; 0 = steps
    train_size: Natural = 0  # 0 = all
    generated_share: Annotated[float, Range(0, 0.99)] = 0.0  # of each batch; 0 = as they come
    probe: Count = 256  # images of each split attacked after every epoch
    # of the training attack's passes; auto is bf16 on GPUs, fastest on processors with it, too
    precision: Precision = "auto"

    @cached_property
    def threat(self) -> Threat:
        """The norm and radius of its attacks."""
        return Threat(self.norm, self.eps)

    @property
    def own_batch_size(self) -> int:
        """How many images of a batch are not generated ones, where these have a share."""
        return max(1, self.batch_size - round(self.generated_share * self.batch_size))

    def override(self, **changes: Any) -> Recipe:
        """Return the recipe with fields changed and validated.

        Raises:
            KitError: A field is unknown or its value unfit; it names the field and its range.
        """
        checked = {}
        for name, value in changes.items():
            if name not in RECIPE_FIELDS:
                raise unknown_name("field of a recipe", name, RECIPE_FIELDS)
            checked[name] = check_value(name, value, FIELD_TYPES[name])
        changed = replace(self, **checked)
        check_data_name(changed.data)
        find_builder(changed.model)  # refuses an unknown name
        check_schedule(changed)
        return changed

    def config(self) -> dict:
        """Return all fields that change the result, as JSON values.

        A field of `LATER_FIELDS` is left out where it changes nothing.
        """
        values = {name: getattr(self, name) for name in RECIPE_FIELDS}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if name not in LATER_FIELDS or value != DEFAULTS[name]
        }


RECIPE_FIELDS = tuple(f.name for f in fields(Recipe) if f.name != "title")


FIELD_TYPES = get_type_hints(Recipe, include_extras=True)

DEFAULTS = {f.name: f.default for f in fields(Recipe)}

#: Fields that runs were trained without. At their defaults a run keeps the key that it had, so
#: these defaults must stay.
LATER_FIELDS = (
    "optimizer",
    "nesterov",
    "schedule",
    "warm_up",
    "mean_std",
    "selection_steps",
    "generated_share",
)


def check_schedule(recipe: Recipe) -> None:
    """Refuse an optimizer or a schedule of the rate that the run cannot follow.

    Raises:
        KitError: Milestones do not increase or lie beyond the last epoch, the warm-up leaves no
            epoch, or there is no momentum for Nesterov's step.
    """
    epochs, milestones = recipe.epochs, list(recipe.milestones)
    if milestones != sorted(set(milestones)):
        raise KitError(f"milestones={milestones} must be increasing epochs, such as [75, 90]")
    if recipe.schedule == "milestones" and milestones and milestones[-1] > epochs:
        raise KitError(
            f"milestones={milestones} are a schedule longer than the run of {epochs} epochs; set "
            f"epochs to at least {milestones[-1]}, or milestones up to {epochs} ([] for none)"
        )
    if recipe.warm_up >= epochs:
        raise KitError(
            f"warm_up={recipe.warm_up} is longer than the run of {epochs} epochs; it must be 0 to "
            f"{epochs - 1}"
        )
    if recipe.nesterov and (recipe.optimizer != "sgd" or recipe.momentum == 0):
        raise KitError(
            f"nesterov=True needs SGD with momentum, but this is {recipe.optimizer} with "
            f"momentum={recipe.momentum:g}; set optimizer=sgd momentum=0.9, or nesterov=False"
        )


_CIFAR = Recipe(
    "CIFAR-10 on two cores: a small ResNet with an early stride, all images, 8 epochs",
    "cifar10",
    "resnet8-16",
    epochs=8,
    batch_size=128,
    lr=0.1,
    schedule="cosine",
    augment="crop-flip",
    validation=1000,
    precision="fastest",
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

_CIFAR_GENERATED = replace(
    _CIFAR_PAPER,
    title="CIFAR-10 with generated images as VIR's appendix B trains it: WRN-28-10, Nesterov, "
    "cosine, 400 epochs, 70 % generated images a batch; write cifar10+npz:<file>:generated",
    model="wrn-28-10",
    epochs=400,
    batch_size=512,
    lr=0.2,
    nesterov=True,
    weight_decay=5e-4,
    schedule="cosine",
    milestones=(),
    warm_up=10,
    generated_share=0.7,
)

_MNIST_PAPER = Recipe(
    "MNIST as CSA/CSE train it: LeNet of 5 and 16 kernels, 20 epochs; eps 0.3 in units of the "
    "standardised images",
    "mnist",
    "lenet-5-16",
    epochs=20,
    batch_size=256,
    lr=0.01,
    momentum=0.95,
    normalise=True,
    mean_std=(0.1307, 0.3081),
    eps=0.3 * 0.3081,
    probe=1000,
)

_CIFAR_CSA = Recipe(
    "CIFAR-10 as CSA/CSE train it: LeNet of 5 and 16 kernels without padding, Adam, 50 epochs",
    "cifar10",
    "lenet-5-16-unpadded",
    epochs=50,
    batch_size=256,
    lr=0.01,
    optimizer="adam",
    milestones=(10, 20, 30, 40),
    lr_factor=0.5,
    normalise=True,
    mean_std=(0.4914, 0.4822, 0.4465, 0.2023, 0.1994, 0.2010),
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
            _MNIST_PAPER,
            title="Fashion-MNIST with CSA/CSE's MNIST schedule",
            data="fashion-mnist",
            mean_std=(),
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
        "cifar10:generated": _CIFAR_GENERATED,
        "cifar10:csa": _CIFAR_CSA,
        "cifar100": replace(_CIFAR, title="CIFAR-100 on two cores", data="cifar100"),
        "cifar100:paper": replace(
            _CIFAR_PAPER, title="CIFAR-100, the CIFAR-10 schedule", data="cifar100"
        ),
        "cifar100:csa": replace(
            _CIFAR_CSA,
            title="CIFAR-100 as CSA/CSE train it: ResNet-18, 180 epochs, the rate halved every 60",
            data="cifar100",
            model="resnet18",
            epochs=180,
            lr=0.1,
            optimizer="sgd",
            milestones=(60, 120),
            mean_std=(0.5070, 0.4865, 0.4409, 0.2673, 0.2564, 0.2761),
        ),
        "svhn": replace(_CIFAR, title="SVHN on two cores", data="svhn", augment="crop"),
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


#: What stands behind a data set's name in the table.
SCALES = tuple(dict.fromkeys(scale for name in RECIPES if (scale := name.partition(":")[2])))


#: The name of a recipe whose schedule is shortened.
_SHORTENED = re.compile(r"(.+), (\d+) of (\d+) epochs")


def find_recipe(name: str) -> Recipe:
    """Return the row of `RECIPES` of that name, or one made for a folder or generated images.

    folder:<path>[:paper] is CIFAR-10's row on that folder, own:<digest> on a user's images, and
    <data>+npz:<file>[:paper] the row of <data> with the file's generated images. Other scales, such
    as :generated, go likewise. Behind any name ", 12 of 120 epochs" is the same with its schedule
    shortened in proportion.

    Raises:
        KitError: The name is unknown, there is nothing at the path, or the row has another number
            of epochs.
    """
    if words := _SHORTENED.fullmatch(name):
        base, epochs, of = find_recipe(words[1]), int(words[2]), int(words[3])
        if of != base.epochs or not 0 < epochs < of:
            raise KitError(
                f"the recipe '{name}' shortens {of} epochs to {epochs}; {words[1]} has "
                f"{base.epochs}, so it must be 1 to {base.epochs - 1} of {base.epochs}"
            )
        return shorten(base, epochs)
    if not name.startswith(("folder:", OWN)) and "+npz:" not in name:
        if name not in RECIPES:
            raise unknown_name(
                "recipe", name, [*RECIPES, "folder:<path>[:paper]", "<data set>+npz:<file>[:paper]"]
            )
        return RECIPES[name]
    data, scale = name, "quick"
    for ending in ("quick", *SCALES):
        if name.endswith(f":{ending}"):
            data, scale = name.removesuffix(f":{ending}"), ending
    check_data_name(data)
    row = "cifar10" if data.startswith(("folder:", OWN)) else base_of(data)
    base = RECIPES[row if scale == "quick" else f"{row}:{scale}"]
    return replace(base, title=f"{data} with {row}'s {scale} settings", data=data)


def shortened_name(name: str, epochs: int) -> str:
    """Return the name of a recipe with its schedule shortened to `epochs`.

    It is the name itself where it has no more epochs than that.
    """
    of = find_recipe(name).epochs
    return name if epochs >= of else f"{name}, {epochs} of {of} epochs"


def unshortened_name(name: str) -> str:
    """Return the name of the recipe whose schedule this one shortens; its own if it is whole."""
    words = _SHORTENED.fullmatch(name)
    return words[1] if words else name


def is_quick(name: str) -> bool:
    """Say whether a recipe is a quick one at its full length.

    Notebooks make those quicker still; others have the schedule that their name says.
    """
    return name == unshortened_name(name) and name.rpartition(":")[2] not in SCALES


def shorten(recipe: Recipe, epochs: int) -> Recipe:
    """Return a recipe with its epochs, milestones and warm-up shortened in proportion.

    A burn-in is a share of the epochs, and follows. Milestones that fall together count once.
    """
    share = epochs / recipe.epochs
    milestones = sorted({max(1, round(share * epoch)) for epoch in recipe.milestones})
    return replace(
        recipe,
        title=f"{recipe.title}; its schedule shortened to {epochs} of {recipe.epochs} epochs",
        epochs=epochs,
        milestones=tuple(milestones),
        warm_up=min(round(share * recipe.warm_up), epochs - 1),
    )
