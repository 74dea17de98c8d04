"""What a training step asks of a GPU: few operations, and no answer before it is over.

Counted on the CPU, by what PyTorch dispatches. Each operation costs the host some microseconds; a
question to the host, such as a tensor's number or the places of a mask, costs the whole queue.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kit
from kit.attacks.contract import frozen
from kit.core.random_streams import Streams
from kit.experiments.specification import Plan, RunSpec, resolve
from kit.models.architectures import build_network, conv_norm
from tests.helpers.stepping import take_step

#: Operations whose result's value or size the host must know to go on.
QUESTIONS = {
    "aten._local_scalar_dense",
    "aten.equal",
    "aten.is_nonzero",
    "aten.masked_select",
    "aten.nonzero",
    "aten._unique2",
    "aten.unique_dim",
}


class Operations(TorchDispatchMode):
    """Counts what is dispatched, by name; masks that are used as indices have a name of their own.

    They ask for their places.
    """

    def __init__(self):
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        name = str(call.overloadpacket)
        masks = name.startswith("aten.index") and isinstance(args[1], (list, tuple))
        if masks and any(i is not None and i.dtype == torch.bool for i in args[1]):
            name += " by mask"
        self.count[name] += 1
        return call(*args, **(kwargs or {}))

    def questions(self) -> set[str]:
        return {name for name in self.count if name in QUESTIONS or name.endswith("by mask")}


def count_step(plan: Plan, shape: tuple[int, int, int], n: int) -> Operations:
    """The operations of one of the plan's last steps, when schedules have reached their ends."""
    method = plan.method.at(plan.recipe.epochs, plan.recipe.epochs)
    net = build_network(plan.recipe.model, shape, 10, normalise=(torch.zeros(3), torch.ones(3)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, foreach=True)
    rng = torch.Generator().manual_seed(0)
    x, y = torch.rand(n, *shape, generator=rng), torch.arange(n) % 10
    for _ in range(2):  # the first step makes the optimizer's buffers
        with Operations() as operations:
            parts = x, y, Streams(torch.arange(n), 0, "attack", 1)
            take_step(net, optimizer, method, plan.recipe, *parts)
    return operations


@pytest.mark.parametrize("method", sorted(kit.METHODS))
def test_no_step_asks_the_host(method):
    plan = resolve(RunSpec(method, "digits"))
    assert count_step(plan, (3, 8, 8), 12).questions() == set()


def test_questions_are_seen():
    values = torch.arange(4.0)
    with Operations() as operations:
        assert float(values.sum()) == 6
        values[values > 1] = 0
        values.nonzero()
    assert operations.questions() == {
        "aten._local_scalar_dense",
        "aten.index_put_ by mask",
        "aten.nonzero",
    }


def test_a_step_of_resnet18_is_few_operations():
    """Of adversarial training, at the papers' ten attack steps; batch size changes nothing."""
    plan = resolve(RunSpec("at", "cifar10:paper"))
    assert plan.recipe.steps == 10
    assert count_step(plan, (3, 32, 32), 1).count.total() <= 2300


def test_norms_are_folded_once_an_attack():
    """And again as soon as one of them is another."""
    rng = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4)).eval()
    conv, norm = net
    x = torch.rand(2, 3, 5, 5, generator=rng)
    with frozen(net):
        torch.testing.assert_close(conv_norm(conv, norm, x), net(x))
        with Operations() as again, frozen(net):
            conv_norm(conv, norm, x)
        assert again.count["aten.rsqrt"] == 0
        for changed in (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var):
            with torch.no_grad():
                changed.mul_(1.5).add_(0.1)
            torch.testing.assert_close(conv_norm(conv, norm, x), net(x))
        norm.running_mean = torch.full((4,), 0.7)
        torch.testing.assert_close(conv_norm(conv, norm, x), net(x))
    with Operations() as outside, torch.no_grad():
        conv_norm(conv, norm, x)
    assert outside.count["aten.rsqrt"] == 1
