"""Networks; all map pixels in [0, 1] to logits.

Where a recipe normalises its data, the model does it inside. `linear` is for the Gaussian mixture,
`cnn` and the `lenet`s are for digits and MNIST (`lenet-5-16` has CSA/CSE's kernels, and an
`-unpadded` one is CIFAR-10's); `resnet18`, `preact-resnet18` and `wrn-D-W` have the CIFAR stem
(3x3, stride 1, no pool). All but the first two keep their weights in channels_last. In eval mode,
which attacks use, a convolution and the batch norm behind it are one convolution. Up to rounding
both give the same numbers, sooner.

A network of one's own is a row of `MODELS`, a function (channels, size, num_classes) that builds
it. torchvision:NAME and timm:NAME build what those packages call by that name.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core.errors import KitError, unknown_name
from kit.core.random_streams import derive_seed
from kit.core.registry import Registry
from kit.models.input_gradients import GreyConv2d

#: So small that one thread is fastest, and two runs side by side use two cores.
SMALL = (
    "linear",
    "cnn",
    "lenet",
    "lenet-unpadded",
    "lenet-5-16",
    "lenet-5-16-unpadded",
)


_ONE_AT_A_TIME = threading.Lock()


class Normalise(nn.Module):
    """(x - mean) / std per channel, so that attacks and data stay in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__()
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        self.register_buffer("std", std.view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise pixels (N, C, H, W)."""
        return (x - self.mean) / self.std


def linear_network(channels: int, size: int, num_classes: int) -> nn.Sequential:
    """One linear layer on all pixels: what `kit.data.gaussian_mixture` has closed forms for."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, num_classes))


def cnn(channels: int, size: int, num_classes: int) -> nn.Sequential:
    """Two 3x3 convolutions (16 and 32 channels, the second with stride 2) and two linear layers."""
    half = (size + 1) // 2
    return nn.Sequential(
        GreyConv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * half * half, 64),
        nn.ReLU(),
        nn.Linear(64, num_classes),
    )


def lenet(
    channels: int, size: int, num_classes: int, kernels: int = 6, padding: int = 2
) -> nn.Sequential:
    """LeNet with two layers of 5x5 convolutions and hidden layers of 120 and 84.

    The first layer has `kernels` kernels and is padded by `padding`, the second has 16 kernels.
    LeNet-5 has 6 kernels; CSA/CSE print 5. A ReLU comes after its pool and not before. Numbers and
    gradients are the same, and it works on a quarter of the pixels.

    Raises:
        KitError: The images have fewer pixels than the convolutions need.

    Source: CSA/CSE s. IV.
    """
    side = ((size + 2 * padding - 4) // 2 - 4) // 2
    if side < 1:
        least = 16 - 2 * padding
        raise KitError(
            f"lenet needs images of at least {least}x{least} pixels, these are {size}x{size}; use "
            "model=cnn"
        )
    return nn.Sequential(
        GreyConv2d(channels, kernels, 5, padding=padding),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(kernels, 16, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * side * side, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )


#: {(convolution, norm): their weight and bias as one convolution} within `folded_once`.
_folded_here: ContextVar[dict[tuple[nn.Module, nn.Module], Folded] | None] = ContextVar(
    "folded", default=None
)


class Folded(NamedTuple):
    """A convolution and the batch norm behind it as one convolution, and what it was made of."""

    weight: Tensor
    bias: Tensor
    made_of: list[tuple[Tensor, int]]  # with the version that it had

    def is_of(self, parts: list[Tensor]) -> bool:
        """Are these the tensors that it was made of, and are they as they were?"""
        pairs = zip(parts, self.made_of, strict=True)
        return all(new is old and new._version == version for new, (old, version) in pairs)


@contextlib.contextmanager
def folded_once() -> Iterator[None]:
    """Within, frozen convolutions and norms are folded once and not in every pass."""
    token = _folded_here.set({}) if _folded_here.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _folded_here.reset(token)


def conv_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Compute norm(conv(x)); in eval mode as one convolution.

    It is folded anew in each pass, or once where nothing of it has changed (`folded_once`), so it
    is never out of date.
    """
    if norm.training:
        return norm(conv(x))
    kept = None if torch.compiler.is_compiling() else _folded_here.get()
    if kept is None:
        return conv._conv_forward(x, *fold(conv, norm))
    named = conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var
    parts = [part for part in named if part is not None]
    folded = kept.get((conv, norm))
    if folded is None or not folded.is_of(parts):
        folded = Folded(*fold(conv, norm), [(part, part._version) for part in parts])
        if not folded.weight.requires_grad:
            kept[conv, norm] = folded
    return conv._conv_forward(x, folded.weight, folded.bias)


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The weight and bias of the one convolution that is norm(conv(x)) in eval mode."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None  # the kit's batch norms track both
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return conv.weight * scale.view(-1, 1, 1, 1), norm.bias - mean * scale


class Layers(nn.Sequential):
    """Layers one after the other.

    A convolution and the batch norm behind it go through `conv_norm`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pass `x` through the layers."""
        waiting = None
        for layer in self:
            if isinstance(layer, nn.BatchNorm2d) and waiting is not None:
                x, waiting = conv_norm(waiting, layer, x), None
                continue
            if waiting is not None:
                x = waiting(x)
            waiting = layer if isinstance(layer, nn.Conv2d) else None
            if waiting is None:
                x = layer(x)
        return x if waiting is None else waiting(x)


class BasicBlock(nn.Module):
    """Convolution, norm, ReLU, twice, plus the shortcut (He et al., 2016a)."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.shortcut = Layers(
                nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, width_in, H, W) to (N, width, H / stride, W / stride)."""
        out = conv_norm(self.conv2, self.bn2, F.relu(conv_norm(self.conv1, self.bn1, x)))
        return F.relu(out + self.shortcut(x))


class PreActBlock(nn.Module):
    """Norm and ReLU before each convolution (He et al., 2016b).

    A changed width is projected after the ReLU.
    """

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        same = stride == 1 and width_in == width
        self.shortcut = None if same else nn.Conv2d(width_in, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width_in, H, W) to (N, width, H / stride, W / stride)."""
        out = F.relu(self.bn1(x))
        residual = x if self.shortcut is None else self.shortcut(out)
        return residual + self.conv2(F.relu(conv_norm(self.conv1, self.bn2, out)))


def build_stages(
    block: type[nn.Module], width_in: int, widths: list[int], blocks: int
) -> nn.Sequential:
    """Stages of `blocks` blocks; every stage but the first halves the resolution."""
    layers = []
    for stage, width in enumerate(widths):
        for i in range(blocks):
            layers.append(block(width_in, width, 2 if stage > 0 and i == 0 else 1))
            width_in = width
    return nn.Sequential(*layers)


def resnet18(channels: int, size: int, num_classes: int, width: int = 64) -> nn.Sequential:
    """ResNet-18 with the CIFAR stem; 11,173,962 parameters for 3 channels and 10 classes."""
    return Layers(
        GreyConv2d(channels, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        build_stages(BasicBlock, width, [width, 2 * width, 4 * width, 8 * width], 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, num_classes),
    )


def resnet8(channels: int, size: int, num_classes: int, width: int = 16) -> nn.Sequential:
    """ResNet of three stages with a block each, behind a 3x3 convolution of stride 2.

    The early stride leaves a quarter of the pixels, so that two cores train it on CIFAR-10.
    """
    return Layers(
        GreyConv2d(channels, width, 3, 2, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        build_stages(BasicBlock, width, [width, 2 * width, 4 * width], 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )


def preact_resnet18(channels: int, size: int, num_classes: int, width: int = 64) -> nn.Sequential:
    """ResNet-18 of pre-activation blocks with the CIFAR stem, as AWP's authors train it.

    A batch norm and a ReLU stand before the pool.
    """
    return Layers(
        GreyConv2d(channels, width, 3, 1, 1, bias=False),
        build_stages(PreActBlock, width, [width, 2 * width, 4 * width, 8 * width], 2),
        nn.BatchNorm2d(8 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, num_classes),
    )


def wide_resnet(
    channels: int, size: int, num_classes: int, depth: int, width: int
) -> nn.Sequential:
    """WRN-depth-width, of depth 6n+4 with three stages of n pre-activation blocks.

    Depth 6n+2 is the same network in the counting that leaves the shortcut convolutions out: the
    WRN-32-10 of the robustness papers has n = 5, like WRN-34-10.

    Source: Zagoruyko and Komodakis (2016).
    """
    n = next((depth - extra) // 6 for extra in (4, 2) if (depth - extra) % 6 == 0)
    top = 64 * width
    net = nn.Sequential(
        GreyConv2d(channels, 16, 3, 1, 1, bias=False),
        build_stages(PreActBlock, 16, [16 * width, 32 * width, top], n),
        nn.BatchNorm2d(top),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(top, num_classes),
    )
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def torchvision_network(name: str, channels: int, size: int, num_classes: int) -> nn.Module:
    """Build torchvision's network of that name, without weights.

    Raises:
        KitError: torchvision has no such classifier, or the images are not in colour.
    """
    from torchvision import models

    classifiers = models.list_models(module=models)  # not those for detection or video
    if name not in classifiers:
        raise unknown_name("classifier in torchvision", name, classifiers)
    if channels != 3:
        raise KitError(
            f"torchvision:{name} takes images of 3 channels, these have {channels}; choose another "
            "architecture"
        )
    return models.get_model(name, weights=None, num_classes=num_classes)


def timm_network(name: str, channels: int, size: int, num_classes: int) -> nn.Module:
    """Build timm's network of that name, without weights.

    Raises:
        KitError: timm cannot be imported, or has no such network.
    """
    try:
        import timm
    except ImportError as error:
        raise KitError(
            f"timm:{name} needs the package timm, which cannot be imported here ({error}); "
            "`pip install timm`"
        ) from error
    if name not in timm.list_models():
        raise unknown_name("network in timm", name, timm.list_models())
    return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=channels)


#: Builds a network from channels, size and number of classes.
Builder = Callable[[int, int, int], nn.Module]

MODELS: Registry = Registry(
    "model",
    {
        "linear": linear_network,
        "cnn": cnn,
        "lenet": lenet,
        "lenet-unpadded": partial(lenet, padding=0),
        "lenet-5-16": partial(lenet, kernels=5),
        "lenet-5-16-unpadded": partial(lenet, kernels=5, padding=0),
        "resnet8-16": resnet8,
        "resnet8-32": partial(resnet8, width=32),
        "resnet18": resnet18,
        "preact-resnet18": preact_resnet18,
    },
)

#: Names that are made by rule: what stands before the colon, and who builds what stands behind it.
PACKAGES = {"torchvision": torchvision_network, "timm": timm_network}


def find_builder(name: str) -> Builder:
    """Return what builds the network of that name.

    Raises:
        KitError: The name is unknown, or depth or width of a `wrn-D-W` is impossible.
    """
    if name in MODELS:
        return MODELS[name]
    package, _, inner = name.partition(":")
    if package in PACKAGES and inner:
        return partial(PACKAGES[package], inner)
    wide = re.fullmatch(r"wrn-([1-9][0-9]{0,3})-(0|[1-9][0-9]{0,3})", name)
    if wide is None:
        by_rule = "wrn-D-W (say wrn-34-10), torchvision:NAME, timm:NAME"
        raise KitError(
            f"there is no model '{name}'. Choices: {', '.join(MODELS)}, {by_rule}. One of your own "
            "is a row of kit.MODELS, a function (channels, size, num_classes)"
        )
    depth, width = int(wide[1]), int(wide[2])
    if depth < 8 or width < 1 or depth % 6 not in (4, 2):
        raise KitError(
            f"model '{name}': depth must be 6n+4 or 6n+2 with n >= 1 (10, 16, 28, 32, 34, ...) "
            "and width at least 1"
        )
    return partial(wide_resnet, depth=depth, width=width)


def put_normalisation_first(net: nn.Module, mean: Tensor, std: Tensor) -> nn.Sequential:
    """Return a network of the same layers that normalises its images by `mean` and `std`, (C,)."""
    if isinstance(net, nn.Sequential) and type(net) in (nn.Sequential, Layers):
        return type(net)(Normalise(mean, std), *net)  # stays one sequence, as stacking needs it
    return Layers(Normalise(mean, std), net)


def build_network(
    name: str,
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    seed: int = 0,
    normalise: tuple[Tensor, Tensor] | None = None,
) -> nn.Module:
    """Build a freshly initialised network for images of `shape` (C, H, W).

    The same name, shape and seed give the same initial parameters. The global random state is left
    alone.

    Raises:
        KitError: The name is unknown, the images are too small or not square, or what a row of
            `MODELS` built is no network.
    """
    build = find_builder(name)
    channels, height, width = shape
    if height != width:
        raise KitError(f"models take square images, these are {height}x{width}")
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):  # threads share the global random state
        torch.manual_seed(derive_seed(seed, "model", name))
        net = build(channels, height, num_classes)
    if not isinstance(net, nn.Module):
        raise KitError(f"kit.MODELS['{name}'] built {type(net).__name__}; it must build a network")
    if normalise is not None:
        net = put_normalisation_first(net, *normalise)
    return net if name in ("linear", "cnn") else net.to(memory_format=torch.channels_last)
