"""The authors' stored numbers, and the small networks that they were computed on.

Where they are from is said in tests/golden/README.md.
"""

from __future__ import annotations

import re
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor, nn

from kit.core.random_streams import Streams
from kit.core.threat import Threat
from kit.experiments.recipes import RECIPES
from kit.experiments.specification import Plan, RunSpec
from kit.methods.table import Method
from tests.helpers.settings import ROOT

FOLDER = ROOT / "tests/golden"


RTOL, ATOL = 1e-6, 1e-9


class Golden:
    """The arrays of the files `<stem>*.npz` as tensors, floats as float64; remembers which were
    read.
    """

    def __init__(self, stem: str):
        self.arrays = {
            f"{path.name}:{key}": array
            for path in sorted(FOLDER.glob(f"{stem}*.npz"))
            for key, array in np.load(path).items()
        }
        self.places = {place.partition(":")[2]: place for place in self.arrays}
        assert len(self.places) == len(self.arrays) > 0, f"{stem}: no arrays, or two of one name"
        self.read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def __getitem__(self, key: str) -> Tensor:
        self.read.add(self.places[key])
        values = torch.from_numpy(np.asarray(self.arrays[self.places[key]]))
        return values.double() if values.is_floating_point() else values

    def keys(self, pattern: str) -> list[str]:
        """The keys that the whole pattern matches; none would be a test that never runs."""
        found = [key for key in self.places if re.fullmatch(pattern, key)]
        assert found, f"nothing stored under {pattern}"
        return found

    def starting(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): self[key] for key in self.keys(re.escape(prefix) + ".*")}


LOGITS, GAIRAT = Golden("logits"), Golden("gairat")


MODELS = {"M": Golden("model_M"), "C": Golden("model_C")}


def close(ours: Tensor, official: Tensor, rtol: float = RTOL, atol: float = ATOL) -> None:
    """Assert that our numbers are the official ones, compared in float64."""
    torch.testing.assert_close(ours.detach().double(), official.double(), rtol=rtol, atol=atol)


def load_arrays(name: str) -> dict[str, Tensor]:
    """The arrays of `tests/golden/<name>.npz` as tensors, in their stored types."""
    with np.load(FOLDER / f"{name}.npz") as archive:
        return {key: torch.from_numpy(np.asarray(archive[key])) for key in archive.files}


def layers_m() -> list[tuple[str, nn.Module]]:
    return [
        ("conv1", nn.Conv2d(1, 8, 4, stride=2, padding=1)),
        ("relu1", nn.ReLU()),
        ("conv2", nn.Conv2d(8, 16, 4, stride=2, padding=1)),
        ("relu2", nn.ReLU()),
        ("flatten", nn.Flatten()),
        ("fc1", nn.Linear(784, 32)),
        ("relu3", nn.ReLU()),
        ("fc2", nn.Linear(32, 10)),
    ]


def layers_c() -> list[tuple[str, nn.Module]]:
    return [
        ("conv1", nn.Conv2d(3, 8, 3, padding=1, bias=False)),
        ("bn1", nn.BatchNorm2d(8)),
        ("relu1", nn.ReLU()),
        ("pool1", nn.AvgPool2d(2)),
        ("conv2", nn.Conv2d(8, 16, 3, padding=1, bias=False)),
        ("bn2", nn.BatchNorm2d(16)),
        ("relu2", nn.ReLU()),
        ("pool2", nn.AvgPool2d(4)),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(256, 10)),
    ]


class Bench:
    """One of the two networks, its images, and the sizes of the attack on it."""

    def __init__(self, which: str):
        self.golden = MODELS[which]
        self.x, self.y = self.golden["x"], self.golden["y"]
        self.eps, self.step_size = float(self.golden["eps"]), float(self.golden["step_size"])
        self.threat = Threat("linf", self.eps)
        self.net = nn.Sequential(OrderedDict({"M": layers_m, "C": layers_c}[which]())).double()
        self.net.load_state_dict(self.golden.starting("param_"))
        self.net.eval()

    def plan(self, method: Method) -> Plan:
        recipe = RECIPES["cifar10:paper"].override(
            eps=self.eps, step=self.step_size / self.eps, steps=10
        )
        return Plan(RunSpec("at"), method, recipe, burn_in=0)

    def recorded(self, name: str) -> Recorded:
        return Recorded(self.golden[f"{name}_noise"], self.eps)

    def compare_delta(self, name: str, x_adv: Tensor) -> None:
        """One wrong sign in one step would be off by thousands of times the tolerance."""
        close(x_adv - self.x, self.golden[f"{name}_delta"], rtol=0, atol=1e-6)

    def compare_gradient_norms(self, name: str) -> None:
        for parameter, values in self.net.named_parameters():
            close(values.grad.norm(), self.golden[f"{name}_gradnorm_{parameter}"])


class Recorded(Streams):
    """Hands out the official code's own draw:

    N(0, 1) as it is, U(-eps, eps) as the U(0, 1) that we scale.
    """

    def __init__(self, noise: Tensor, eps: float):
        self.noise, self.eps = noise, eps

    def normal(self, like: Tensor) -> Tensor:
        return self.noise

    def uniform(self, like: Tensor) -> Tensor:
        return (self.noise / self.eps + 1) / 2
