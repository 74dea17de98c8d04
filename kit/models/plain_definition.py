"""A network of the kit as a few lines of PyTorch, which anyone can read and run without the kit."""

from __future__ import annotations

import re

from torch import nn

from kit.core.errors import KitError
from kit.models.architectures import BasicBlock, Normalise, PreActBlock

_HEAD = '''"""{title}

    from network import load
    model = load()          # a torch.nn.Module in eval mode; pixels in [0, 1] to logits
"""

from pathlib import Path

import torch
from torch import nn
'''

#: What builds a network of another package: the import, and the call.
_PACKAGED = {
    "torchvision": (
        "from torchvision import models\n",
        'models.get_model("{name}", weights=None, num_classes={classes})',
    ),
    "timm": (
        "import timm\n",
        'timm.create_model("{name}", num_classes={classes}, in_chans={channels})',
    ),
}

_NORMALISE = '''

class Normalise(nn.Module):
    """(x - mean) / std per channel."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std
'''

_BASIC = '''

class BasicBlock(nn.Module):
    """Convolution, norm, ReLU, twice, plus the shortcut."""

    def __init__(self, width_in, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Identity()
        if stride != 1 or width_in != width:
            side = nn.Conv2d(width_in, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(side, nn.BatchNorm2d(width))

    def forward(self, x):
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + self.shortcut(x)).relu()
'''

_PREACT = '''

class PreActBlock(nn.Module):
    """Norm and ReLU before each convolution; a changed width is projected after the first ReLU."""

    def __init__(self, width_in, width, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        same = stride == 1 and width_in == width
        self.shortcut = None if same else nn.Conv2d(width_in, width, 1, stride, bias=False)

    def forward(self, x):
        out = self.bn1(x).relu()
        side = x if self.shortcut is None else self.shortcut(out)
        return side + self.conv2(self.bn2(self.conv1(out)).relu())
'''

_TAIL = '''

def load(path=Path(__file__).parent / "weights.pt"):
    """The network with its weights."""
    network = build()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()
'''


def plain_definition(
    net: nn.Module, name: str, shape: tuple[int, int, int], num_classes: int, title: str
) -> str:
    """Return Python source of a module that builds the network: its `build()` and `load()`.

    `name`, `shape` (C, H, W) and `num_classes` are what `build_network` made it of; `title` is the
    source's first line. The names of parameters are the network's own. A network of torchvision or
    timm is built by that package.

    Raises:
        KitError: It has a layer that is neither PyTorch's nor of the kit's networks.
    """
    package, _, inner = name.partition(":")
    kinds = {type(module) for module in net.modules()}
    parts = [_HEAD.format(title=title)]
    if package in _PACKAGED:
        needed, call = _PACKAGED[package]
        calls = [call.format(name=inner, classes=num_classes, channels=shape[0])]
        if Normalise in kinds:
            calls.insert(0, f"Normalise({shape[0]})")
        parts[0] = parts[0].replace("from torch import nn\n", f"from torch import nn\n{needed}")
    else:
        calls = [_call(layer) for layer in _sequence(net)]
    for kind, text in ((Normalise, _NORMALISE), (BasicBlock, _BASIC), (PreActBlock, _PREACT)):
        if kind in kinds:
            parts.append(text)
    alone = package in _PACKAGED and len(calls) == 1
    layers = "".join(f"        {call},\n" for call in calls)
    built = calls[0] if alone else f"nn.Sequential(\n{layers}    )"
    parts.append(
        f'\n\ndef build():\n    """The network before its weights are loaded."""\n'
        f"    return {built}\n"
    )
    return "".join([*parts, _TAIL])


def _sequence(net: nn.Module) -> nn.Sequential:
    if not isinstance(net, nn.Sequential):
        package = type(net).__module__.partition(".")[0]
        way = (
            f"adopt it with architecture='{package}:NAME', and {package} builds it"
            if package in _PACKAGED
            else "share that with its state_dict()"
        )
        raise KitError(f"a {type(net).__name__} is defined by its own code; {way}")
    return net


def _call(layer: nn.Module) -> str:
    """Return the call that makes a layer."""
    if isinstance(layer, Normalise):
        return f"Normalise({layer.mean.numel()})"
    if isinstance(layer, (BasicBlock, PreActBlock)):
        first = layer.conv1
        sizes = f"{first.in_channels}, {first.out_channels}, {first.stride[0]}"
        return f"{type(layer).__name__}({sizes})"
    if isinstance(layer, nn.Sequential):
        return f"nn.Sequential({', '.join(_call(inner) for inner in layer)})"
    made = re.sub(r"^(Grey)?", "", repr(layer))  # the kit's quick first layer is a convolution
    if not hasattr(nn, made.partition("(")[0]) or "\n" in made:
        raise KitError(f"a {type(layer).__name__} is not a layer of PyTorch; share its own code")
    return f"nn.{made}"
