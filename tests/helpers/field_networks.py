"""Networks as other projects write them: the tests' own code, with those projects' names."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


class _Basic(nn.Module):
    """A block whose shortcut is called `shortcut`, or as torchvision calls it."""

    def __init__(self, before: int, after: int, stride: int, name: str = "shortcut"):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.short = name
        side = nn.Sequential()
        if stride > 1 or before != after:
            side = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )
        setattr(self, name, side)

    def forward(self, x):
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + getattr(self, self.short)(x)).relu()


class _PreAct(nn.Module):
    """A pre-activation block of the ResNets of AWP."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False))

    def forward(self, x):
        out = self.bn1(x).relu()
        side = self.shortcut(out) if hasattr(self, "shortcut") else x
        return self.conv2(self.bn2(self.conv1(out)).relu()) + side


class FieldResNet(nn.Module):
    """ResNet-18 as MAIL and MART write it; `norms` as AWP's pre-activation one."""

    def __init__(self, block: Callable, *, last: str = "linear", norm: str = "bn1", classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.after = norm == "bn"
        setattr(self, norm, nn.BatchNorm2d(512 if self.after else 64))
        width = 64
        for stage in range(4):
            blocks = []
            for i in range(2):
                blocks.append(block(width, 64 * 2**stage, 2 if stage and not i else 1))
                width = 64 * 2**stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.names = last, norm
        setattr(self, last, nn.Linear(512, classes))

    def forward(self, x):
        last, norm = (getattr(self, name) for name in self.names)
        out = self.conv1(x) if self.after else norm(self.conv1(x)).relu()
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        out = norm(out).relu() if self.after else out
        return last(F.avg_pool2d(out, 4).flatten(1))


class _WideBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.same = before == after
        self.convShortcut = None if self.same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x):
        first = self.bn1(x).relu()
        out = self.conv2(self.bn2(self.conv1(first)).relu())
        return (x if self.same else self.convShortcut(first)) + out


class _WideStage(nn.Module):
    def __init__(self, count: int, before: int, after: int, stride: int):
        super().__init__()
        self.layer = nn.Sequential(
            *[
                _WideBlock(before if i == 0 else after, after, stride if i == 0 else 1)
                for i in range(count)
            ]
        )

    def forward(self, x):
        return self.layer(x)


class FieldWideResNet(nn.Module):
    """A WRN of depth 6 count + 4 as TRADES writes it; `unused`: with the stage it never calls."""

    def __init__(self, count: int = 1, width: int = 2, *, unused: bool = False, classes: int = 10):
        super().__init__()
        sizes = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = _WideStage(count, sizes[0], sizes[1], 1)
        if unused:
            self.sub_block1 = _WideStage(count, sizes[0], sizes[1], 1)
        self.block2 = _WideStage(count, sizes[1], sizes[2], 2)
        self.block3 = _WideStage(count, sizes[2], sizes[3], 2)
        self.bn1 = nn.BatchNorm2d(sizes[3])
        self.fc = nn.Linear(sizes[3], classes)

    def forward(self, x):
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.avg_pool2d(self.bn1(out).relu(), 8).flatten(1))


class Standardised(nn.Module):
    """A network behind buffers of mean and standard deviation, under names of one's choice."""

    def __init__(self, net: nn.Module, mean: str, std: str):
        super().__init__()
        self.model, self.words = net, (mean, std)
        self.register_buffer(mean, torch.tensor([0.49, 0.48, 0.45]).view(1, 3, 1, 1))
        self.register_buffer(std, torch.tensor([0.25, 0.24, 0.26]).view(1, 3, 1, 1))

    def forward(self, x):
        mean, std = (getattr(self, word) for word in self.words)
        return self.model((x - mean) / std)


def mail_resnet() -> nn.Module:
    return FieldResNet(_Basic)


def torchvision_names() -> nn.Module:
    return FieldResNet(lambda *sizes: _Basic(*sizes, name="downsample"), last="fc")


def awp_preact() -> nn.Module:
    return FieldResNet(_PreAct, norm="bn")


def moved(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network in eval mode, its batch norms' numbers away from 0 and 1."""
    draw = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.copy_(0.5 + torch.rand(values.shape, generator=draw))
            for values in (module.bias.data, module.running_mean):
                values.copy_(torch.randn(values.shape, generator=draw) / 5)
    return net.eval()
