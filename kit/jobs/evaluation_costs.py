"""How long an evaluation takes: its passes are counted, and a batch's passes are timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache
from statistics import median

import torch

from kit.attacks.contract import frozen
from kit.attacks.table import ATTACKS
from kit.core.random_streams import Streams
from kit.core.threat import Threat
from kit.evaluation.accuracy import ATTACK_BATCH
from kit.experiments.devices import threads_for
from kit.experiments.specification import Plan
from kit.jobs.flops import sample_data
from kit.models.architectures import SMALL, build_network
from kit.papers.table_runs import Evaluation

#: The share of images for which a search runs to its end; those that break leave it early.
WITHSTANDING_SHARE = 0.5

#: Images that passes of deep networks are timed with on a CPU.
TIMED_PASS_IMAGES = 8


class EvaluationClock:
    """A clock that tells an evaluation's seconds on a device.

    It times the passes of each network and size of batch once.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.passes: dict[tuple[str, int], tuple[float, float]] = {}

    def __call__(self, plan: Plan, ask: Evaluation) -> float:
        """Return the seconds of `ask` of a plan's network."""
        _, sizes = sample_data(plan, 1)
        images = min(ask.n or sizes.test, sizes.test)
        batch = min(images, ATTACK_BATCH[self.device.type])
        if (plan.recipe.model, batch) not in self.passes:
            self.passes[plan.recipe.model, batch] = measure_passes(plan, self.device, batch)
        forward, backward = self.passes[plan.recipe.model, batch]
        forwards, backwards = count_attack_passes(ask.attack)
        return math.ceil(images / batch) * (forwards * forward + backwards * backward)


def measure_passes(plan: Plan, device: torch.device, batch: int) -> tuple[float, float]:
    """Time a batch's way forwards, and its gradient beside that, in eval mode, in seconds."""
    few = batch if device.type != "cpu" or plan.recipe.model in SMALL else TIMED_PASS_IMAGES
    host, _ = sample_data(plan, min(batch, few))
    x = host.test.x().to(device)
    network = build_network(plan.recipe.model, host.shape, len(host.classes)).to(device)

    def forward() -> None:
        with torch.no_grad():
            network(x)

    def both() -> None:
        image = x.clone().requires_grad_()
        torch.autograd.grad(network(image).square().sum(), image)

    with threads_for(plan.recipe.model, device), frozen(network):
        one, two = (_median_pass(work, device) * batch / len(x) for work in (forward, both))
    return one, max(0.0, two - one)


def _median_pass(work: Callable[[], None], device: torch.device, times: int = 5) -> float:
    found = []
    for _ in range(times + 1):
        started = time.monotonic()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.monotonic() - started)
    return median(found[1:])


@cache
def count_attack_passes(attack: str) -> tuple[float, float]:
    """Count an attack's passes of an image, forwards and gradients, over those that break early.

    They are counted on a linear network that withstands it; of `WITHSTANDING_SHARE` of the images a
    search takes as many.
    """
    shape, n = (1, 4, 4), 4
    network = build_network("linear", shape, 10).eval()
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = network(x).argmax(1)
    with threads_for("linear", torch.device("cpu")), frozen(network):
        result = ATTACKS[attack](
            network, x, y, Threat("linf", 1e-6), Streams(torch.arange(n), 0, "count")
        )
    forwards, backwards = (float(values.max()) for values in (result.forwards, result.backwards))
    share = WITHSTANDING_SHARE if forwards > 1 else 1.0
    return share * forwards, share * backwards
