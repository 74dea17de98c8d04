"""What makes attacks quick changes no number:

input gradients the short way, and memory that is kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kit.attacks.contract import frozen
from kit.core.memory import is_glibc
from kit.models.input_gradients import input_convolution


@settings(max_examples=60, deadline=None)
@given(
    channels=st.integers(1, 4),
    size=st.integers(5, 11),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_gradients_are_the_plain_ones(
    channels, size, kernel, stride, padding, dilation, bias, seed
):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Conv2d(channels, 5, kernel, stride, padding, dilation, bias=bias).double()
        x = torch.rand(3, channels, size, size + 1, dtype=torch.float64, requires_grad=True)
        if dilation * (kernel - 1) + 1 > size + 2 * padding:
            return
        plain = layer(x)
        upstream = torch.rand_like(plain)
    (expected,) = torch.autograd.grad(plain, x, upstream)
    with frozen(layer):
        quick = layer(x)
        (gradient,) = torch.autograd.grad(quick, x, upstream)
        assert (quick.grad_fn.name() == "_GreyConvolutionBackward") == (channels == 1)
    torch.testing.assert_close(quick, plain, rtol=0, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 3),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 2),
    padding=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_side_by_side_too(groups, kernel, stride, padding, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(1, 4, kernel, stride, padding).double() for _ in range(groups)]
        x = torch.rand(3, groups, 7, 9, dtype=torch.float64, requires_grad=True)
    each = [layer(x[:, i : i + 1]) for i, layer in enumerate(layers)]
    upstream = torch.rand_like(torch.cat(each, dim=1))
    (expected,) = torch.autograd.grad(torch.cat(each, dim=1), x, upstream)
    weight, bias = (
        torch.cat([getattr(layer, name).detach() for layer in layers])
        for name in ("weight", "bias")
    )
    for memory_format in (torch.contiguous_format, torch.channels_last):
        given = x.detach().contiguous(memory_format=memory_format).requires_grad_(True)
        first = layers[0]
        geometry = first.stride, first.padding, first.dilation
        quick = input_convolution(given, weight, bias, *geometry, groups)
        (gradient,) = torch.autograd.grad(quick, given, upstream)
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(quick, torch.cat(each, dim=1), rtol=1e-12, atol=1e-12)


class Own(nn.Conv2d):
    """A layer with a forward pass of its own."""

    def forward(self, x):
        return super().forward(x) * 2


def test_a_network_is_not_touched_and_answers_the_same():
    layers = {
        "first": nn.Conv2d(1, 4, 3),
        "grouped": nn.Conv2d(2, 4, 3, groups=2),
        "same": nn.Conv2d(1, 4, 3, padding="same"),
        "mirrored": nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"),
        "own": Own(1, 4, 3),
        "wide": nn.Conv2d(8, 4, 3),
    }
    model = nn.ModuleDict(layers).double()
    before = {name: dict(vars(layer)) for name, layer in layers.items()}
    x = {name: torch.rand(2, m.in_channels, 6, 6).double() for name, m in layers.items()}

    def gradient(name: str) -> torch.Tensor:
        images = x[name].clone().requires_grad_(True)
        return torch.autograd.grad(layers[name](images).square().sum(), images)[0]

    expected = {name: gradient(name) for name in layers}
    with pytest.raises(RuntimeError, match="planned"), frozen(model):
        for name in layers:
            assert {k: v for k, v in vars(layers[name]).items() if k != "training"} == {
                k: v for k, v in before[name].items() if k != "training"
            }
            torch.testing.assert_close(gradient(name), expected[name], rtol=1e-10, atol=1e-12)
        raise RuntimeError("planned")
    layers["first"](x["first"].clone().requires_grad_(True)).sum().backward()
    assert layers["first"].weight.grad is not None, "training's gradients are untouched"


def test_a_grey_layer_takes_the_short_way_in_this_thread_alone():
    layer = nn.Conv2d(1, 4, 3)
    x = torch.rand(2, 1, 6, 6, requires_grad=True)
    with frozen(layer):
        names = {"inside": layer(x).grad_fn.name()}
        thread = threading.Thread(target=lambda: names.update(other=layer(x).grad_fn.name()))
        thread.start()
        thread.join()
    names["outside"] = layer(x).grad_fn.name()
    assert "Grey" in names["inside"]
    assert "Grey" not in names["other"] and "Grey" not in names["outside"]


FREED = """
import json, sys, threading, torch
from kit.core.memory import freed_memory_kept
from kit.experiments.devices import threads_for

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4 // 1024

def held_of(tensors):
    filled = [torch.ones(2_500_000) for _ in range(tensors)]
    del filled
    return resident() - before

def within(ready, end):
    with freed_memory_kept():
        ready.set()
        end.wait()

torch.ones(10).relu()
before = resident()
held = {"before": held_of(20)}
if sys.argv[1] == "computing":
    with threads_for("cnn", torch.device("cpu")):
        held["within"] = held_of(10)
elif sys.argv[1] == "nested":
    with freed_memory_kept():
        with freed_memory_kept():
            pass
        held["within"] = held_of(10)
else:
    ready, end = threading.Event(), threading.Event()
    other = threading.Thread(target=within, args=(ready, end))
    with freed_memory_kept():
        other.start()
        ready.wait()
    held["within"] = held_of(10)
    end.set()
    other.join()
held["given back"] = resident() - before
held["after"] = held_of(20)
print(json.dumps(held))
"""


@pytest.mark.skipif(not is_glibc(), reason="the C library is not glibc")
@pytest.mark.parametrize("who", ["computing", "nested", "threaded"])
def test_freed_memory_is_kept_within_and_given_back_after(who):
    """Tensors of 10 MB are filled and freed. The process holds them until the outermost block ends,
    this thread's or another's; where a process computes is such a block, and importing is none.
    Afterwards no more stays than fits into what the heap had grown to.
    """
    done = subprocess.run(
        [sys.executable, "-c", FREED, who], capture_output=True, text=True, check=True
    )
    held = json.loads(done.stdout)  # MiB
    assert held["before"] < 20 and held["within"] > 75, held
    assert held["given back"] < 20 and held["after"] < 140, held
