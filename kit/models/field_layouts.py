"""How the names in other projects' checkpoints fit a network of the kit.

Both are brought, by rule, to one set of names: those of the ResNets in the repositories of
robustness papers, such as layer2.0.conv1.weight. Then names are matched and shapes compared.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kit.core.errors import KitError
from kit.models.architectures import (
    MODELS,
    BasicBlock,
    PreActBlock,
    build_network,
    find_builder,
)

#: From a file's names to the common ones, one rule after the other.
RENAMING = (
    (re.compile(r"^block(\d+)\.layer\."), r"layer\1."),  # wide ResNets
    (re.compile(r"\.convShortcut\."), ".shortcut.0."),
    (re.compile(r"\.downsample\."), ".shortcut."),  # torchvision
    (re.compile(r"^bn\."), "bn1."),  # pre-activation ResNets
    (re.compile(r"^linear(\d*)\."), r"fc\1."),
)

#: What some repositories build and never use, and counters that a fixed momentum does not read.
UNUSED = re.compile(r"^sub_block1\.|num_batches_tracked$")

#: What wrappers put before every name: DataParallel, torch.compile, a module that holds another.
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")

#: Buffers by which a network of another project normalises its images.
MEAN_NAME, STD_NAME = re.compile(r"(?:^|\.)(mean|mu)$"), re.compile(r"(?:^|\.)(std|sigma)$")

#: Networks of other packages that a file is compared with where it fits none of the kit.
OTHER_NETWORKS = ("torchvision:resnet18", "torchvision:resnet34", "torchvision:resnet50")


@dataclass(frozen=True)
class SavedNetwork:
    """A file's tensors without the prefixes of wrappers, and how it normalises images.

    `mean` and `std` are (C,), or None where the file holds none.
    """

    tensors: dict[str, Tensor]
    mean: Tensor | None = None
    std: Tensor | None = None


def unwrap_state(state: Mapping[str, Tensor]) -> SavedNetwork:
    """Take off the prefixes that all names share, and take out the normalisation."""
    mean = next((value for name, value in state.items() if MEAN_NAME.search(name)), None)
    std = next((value for name, value in state.items() if STD_NAME.search(name)), None)
    both = mean is not None and std is not None
    rest = {
        name: value
        for name, value in state.items()
        if not (both and (MEAN_NAME.search(name) or STD_NAME.search(name)))
    }
    wrappers = (*WRAPPERS, "1.") if both else WRAPPERS  # a sequence of normalisation and network
    while rest and (
        prefix := next((w for w in wrappers if all(n.startswith(w) for n in rest)), "")
    ):
        rest = {name.removeprefix(prefix): value for name, value in rest.items()}
    if mean is None or std is None:
        return SavedNetwork(rest)
    if "0.mean" in state and all(re.match(r"\d+\.", name) for name in rest):
        # a sequence whose first layer normalises: the others are counted without it
        rest = {re.sub(r"^\d+", lambda m: str(int(m[0]) - 1), n): v for n, v in rest.items()}
    return SavedNetwork(rest, mean.float().flatten(), std.float().flatten())


def common_name(name: str) -> str:
    """Return the common name of a name in a file."""
    for pattern, new in RENAMING:
        name = pattern.sub(new, name)
    return name


def common_names(net: nn.Module) -> dict[str, str]:
    """Return {name in the network's state dict: common name}, without its normalisation."""
    prefixes: dict[str, str] = {}
    counts = {nn.Conv2d: 0, nn.Linear: 0}
    linears = sum(isinstance(child, nn.Linear) for child in net.children())
    for place, child in net.named_children() if isinstance(net, nn.Sequential) else ():
        if isinstance(child, nn.Conv2d):
            counts[nn.Conv2d] += 1
            prefixes[place] = f"conv{counts[nn.Conv2d]}"
        elif isinstance(child, nn.Linear):
            counts[nn.Linear] += 1
            prefixes[place] = f"fc{counts[nn.Linear]}" if linears > 1 else "fc"
        elif isinstance(child, nn.BatchNorm2d):
            prefixes[place] = "bn1"
        elif isinstance(child, nn.Sequential):
            prefixes |= _block_names(place, child)
    found = {}
    for name in net.state_dict():
        within = next((p for p in prefixes if name.startswith(f"{p}.")), "")
        if UNUSED.search(name) or MEAN_NAME.search(name) or STD_NAME.search(name):
            continue
        if within:
            inner = name.removeprefix(f"{within}.")
            # a pre-activation block's shortcut is one convolution
            inner = re.sub(r"^shortcut\.(?=weight)", "shortcut.0.", inner)
            found[name] = f"{prefixes[within]}.{inner}"
        else:
            found[name] = common_name(name)
    return found


def _block_names(place: str, blocks: nn.Sequential) -> dict[str, str]:
    """Return {place of a block: layerS.B}; a stage begins where the resolution is halved."""
    names, stage, first = {}, 1, 0
    for i, block in enumerate(blocks):
        if isinstance(block, (BasicBlock, PreActBlock)) and i and block.conv1.stride != (1, 1):
            stage, first = stage + 1, i
        names[f"{place}.{i}"] = f"layer{stage}.{i - first}"
    return names


@dataclass(frozen=True)
class Fit:
    """How a file fits an architecture.

    `tensors` have the network's own names; `problem` is "" or the first thing that differs; `share`
    is how much of the network is there, 0 to 1.
    """

    architecture: str
    tensors: dict[str, Tensor]
    problem: str
    share: float


def fit_network(
    saved: SavedNetwork, architecture: str, shape: tuple[int, int, int], num_classes: int
) -> Fit:
    """Match a file's names with those of an architecture, and compare shapes.

    Raises:
        KitError: The architecture is unknown, or takes no images of that shape.
    """
    with torch.device("meta"):
        net = build_network(architecture, shape, num_classes)
    wanted = {name: value for name, value in net.state_dict().items() if not UNUSED.search(name)}
    there = {name: value for name, value in saved.tensors.items() if not UNUSED.search(name)}
    names = {name: name for name in wanted}
    if there.keys() != wanted.keys():
        names = common_names(net)
        there = {common_name(name): value for name, value in there.items()}
    pairs = {name: there[common] for name, common in names.items() if common in there}
    fitting = {name for name, value in pairs.items() if value.shape == wanted[name].shape}
    problem = ""
    if differing := next((name for name in pairs if name not in fitting), ""):
        problem = (
            f"{names[differing]} is {tuple(pairs[differing].shape)} in the file and "
            f"{tuple(wanted[differing].shape)} in {architecture}"
        )
    elif missing := next((names[name] for name in names if name not in pairs), ""):
        problem = f"the file has no {missing}, which {architecture} has"
    elif extra := next((name for name in there if name not in names.values()), ""):
        problem = f"the file has {extra}, which {architecture} has not"
    either = set(names.values()) | there.keys()
    return Fit(architecture, pairs, problem, len(fitting) / max(1, len(either)))


def guessed_wide_resnet(saved: SavedNetwork) -> list[str]:
    """Return the name of the wide ResNet whose depth and width a file's blocks have, if any."""
    names = {common_name(name): value for name, value in saved.tensors.items()}
    blocks = [int(m[1]) for name in names if (m := re.match(r"layer1\.(\d+)\.conv1\.", name))]
    first = names.get("layer1.0.conv1.weight")
    if not blocks or first is None or "layer4.0.conv1.weight" in names or len(first) < 16:
        return []
    return [f"wrn-{6 * (max(blocks) + 1) + 4}-{len(first) // 16}"]


def guessed_classes(saved: SavedNetwork) -> int:
    """Return the number of outputs of a file's last layer: the rows of its last matrix.

    Raises:
        KitError: No tensor is a matrix.
    """
    matrices = [value for value in saved.tensors.values() if value.dim() == 2]
    if not matrices:
        raise KitError(
            "the checkpoint has no linear layer, so its number of classes is unknown; pass the "
            "network itself in place of the file"
        )
    return len(matrices[-1])


def choose_fit(
    saved: SavedNetwork, architecture: str, shape: tuple[int, int, int], num_classes: int
) -> Fit:
    """Return how a file fits the architecture, or the first that it fits where none is given.

    Raises:
        KitError: It does not fit; the error names the nearest architecture and what differs first.
    """
    if architecture:
        find_builder(architecture)
        fit = fit_network(saved, architecture, shape, num_classes)
        if not fit.problem:
            return fit
    others = [name for name in [*MODELS, *guessed_wide_resnet(saved)] if name != architecture]
    fits = _possible_fits(saved, others, shape, num_classes)
    if all(found.problem for found in fits):
        more = [name for name in OTHER_NETWORKS if name != architecture]
        fits += _possible_fits(saved, more, shape, num_classes)
    best = max(fits, key=lambda found: (not found.problem, found.share))
    if not architecture:
        if not best.problem:
            return best
        raise KitError(
            f"the checkpoint fits no architecture for {num_classes} classes and images "
            f"{tuple(shape)}{_nearest(best)}. {_way_to_fit(saved, shape, num_classes)}"
        )
    hint = f"It fits {best.architecture}; pass that as architecture"
    if best.problem:
        nearer = best.share > fit.share
        hint = (
            f"The nearest is {best.architecture}, yet {best.problem}"
            if nearer
            else "No other architecture is nearer; look at the recipe's classes and image size"
        )
    raise KitError(f"the checkpoint is not a {architecture}: {fit.problem}. {hint}")


def _nearest(best: Fit) -> str:
    """Say what the nearest architecture is, if any tensor of a file fits it."""
    return f"; the nearest is {best.architecture}: {best.problem}" if best.share else ""


def _way_to_fit(saved: SavedNetwork, shape: tuple[int, int, int], num_classes: int) -> str:
    """Say what to do about a file that fits no architecture: its images and classes come first."""
    matrices = [len(value) for value in saved.tensors.values() if value.dim() == 2]
    kernels = [value.shape[1] for value in saved.tensors.values() if value.dim() == 4]
    other = []
    if kernels and kernels[0] in (1, 3) and kernels[0] != shape[0]:
        other.append(f"its first layer takes {kernels[0]} channel(s)")
    if matrices and matrices[-1] != num_classes:
        other.append(f"its last layer has {matrices[-1]} outputs")
    if other:
        words = " and ".join(other)
        return f"{words[0].upper()}{words[1:]}, so take the recipe or the data of its images"
    return (
        "Name its architecture: wrn-D-W, torchvision:NAME, timm:NAME, or a row of kit.MODELS, "
        "where one of your own has its place"
    )


def _possible_fits(
    saved: SavedNetwork, names: Iterable[str], shape: tuple[int, int, int], num_classes: int
) -> list[Fit]:
    """Return how a file fits the architectures; one that takes no such images is left out."""
    found = []
    for name in names:
        with contextlib.suppress(KitError):
            found.append(fit_network(saved, name, shape, num_classes))
    return found


def load_fit(fit: Fit, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Build the network that a file fits, with the file's weights; it takes images as they come."""
    net = build_network(fit.architecture, shape, num_classes)
    net.load_state_dict(fit.tensors, strict=False)  # counters alone may be missing
    return net
