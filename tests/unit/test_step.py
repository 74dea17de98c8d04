"""The training step against the plain one of `reference.py`, and with an attack in bf16."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

import kit
from kit.core.errors import KitError
from kit.core.random_streams import Streams
from kit.experiments.recipes import RECIPES
from kit.methods.table import METHODS
from kit.models import architectures
from kit.training.precision import resolve_precision
from tests.helpers.reference import nothing_folded, plain_step
from tests.helpers.settings import TINY
from tests.helpers.stepping import attacked_batch, take_step

#: Three PGD steps on 8x8 images, of three channels where the network has a batch norm.
RECIPE = RECIPES["digits"].override(steps=3, eps=0.05)
CPU = torch.device("cpu")
BF16 = resolve_precision("auto", CPU) == "fp32" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def deep() -> nn.Module:
    """A stem and two blocks with batch norms, one that halves the image, in channels_last as
    `kit.models.architectures.build_network` has it.
    """
    return architectures.Layers(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        architectures.BasicBlock(8, 16, 2),
        architectures.PreActBlock(16, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    ).to(memory_format=torch.channels_last)


def small() -> nn.Module:
    return architectures.build_network("cnn", (1, 8, 8), 10, seed=1)


def shaken(net: nn.Module, seed: int) -> nn.Module:
    """Random parameters and running statistics that no fresh network has."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=draw)
                value.copy_(
                    value.abs() + 0.5 * noise.abs() + 0.3
                    if "running_var" in name
                    else value + 0.2 * noise
                )
    return net


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_the_plain_step(name):
    """100 random steps, from random networks with and without batch norms, both steps beginning
    alike each time. In float64 loss, parameters, running statistics and momenta agree to 1e-9. In
    fp32, where a rounding can turn a gradient's sign, exactly the same examples are misclassified
    and the loss agrees to 1 %.
    """
    method, steps = METHODS[name].at(30, 40), 0
    for make, dtype, trial in itertools.product(
        (small, deep), (torch.float64, torch.float32), range(5)
    ):
        torch.manual_seed(trial)
        net = shaken(make(), trial).to(dtype)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
        for number in range(5):
            x = torch.rand(12, net[0].in_channels, 8, 8, dtype=dtype)
            y, streams = (
                torch.randint(0, 10, (12,)),
                [Streams(torch.arange(12), trial, number) for _ in range(2)],
            )
            steps += 1
            for attacked in method.stages(30, 40):
                words = {"attacked": attacked, "reweighted": number % 2 == 0 and method.reweights}
                twin = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
                plain = torch.optim.SGD(twin.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
                plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                done = take_step(net, optimizer, method, RECIPE, x, y, streams[0], **words)
                with nothing_folded():
                    loss, logits = plain_step(
                        twin, plain, method, RECIPE, x, y, streams[1], **words
                    )
                assert torch.equal(done.outputs.logits_adv.argmax(1) == y, logits.argmax(1) == y)
                close = (
                    {"rtol": 1e-9, "atol": 1e-9}
                    if dtype == torch.float64
                    else {"rtol": 0.01, "atol": 1e-4}
                )
                torch.testing.assert_close(done.loss, loss, **close)
                if dtype == torch.float64:
                    torch.testing.assert_close(
                        dict(net.state_dict()), dict(twin.state_dict()), **close
                    )
                    momenta = [
                        [state["momentum_buffer"] for state in o.state.values()]
                        for o in (optimizer, plain)
                    ]
                    torch.testing.assert_close(*momenta, **close)
    assert steps == 100


def test_the_plain_step_is_another():
    """The test above can fail:

    a step with another number of attack steps, step length, or statistics is told apart.
    """
    method, x, y = (
        METHODS["at"],
        torch.rand(12, 3, 8, 8, dtype=torch.float64),
        torch.arange(12) % 10,
    )
    losses = []
    for recipe in (
        RECIPE,
        RECIPE.override(steps=2),
        RECIPE.override(step=0.2),
        RECIPE.override(eps=0.03),
    ):
        torch.manual_seed(0)
        net = shaken(deep(), 0).double()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        with nothing_folded():
            losses.append(
                float(
                    plain_step(net, optimizer, method, recipe, x, y, Streams(torch.arange(12), 0))[
                        0
                    ]
                )
            )
    assert len({round(loss, 6) for loss in losses}) == 4


def test_folding_follows_the_network():
    """In eval mode a convolution and its batch norm are one, and right after every update; in train
    mode the norm's own.
    """
    net, x = shaken(deep(), 3).double(), torch.rand(5, 3, 8, 8, dtype=torch.float64)
    for _ in range(2):
        net.eval()
        folded = net(x)
        with nothing_folded():
            torch.testing.assert_close(folded, net(x), rtol=1e-11, atol=1e-11)
        net.train()
        before = net[1].running_mean.clone()
        net(x).sum().backward()
        assert not torch.equal(before, net[1].running_mean)
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.01 * p.grad


# ----------------------------------------------------------------------------------- number formats


@pytest.mark.skipif(not BF16, reason="this CPU computes no bf16")
@pytest.mark.parametrize("make", [small, deep])
def test_bf16_is_the_attack_s_alone(make):
    """x_adv moves a little and stays in the ball; logits arrive in fp32; the update is the fp32
    update on that x_adv.
    """
    net, method = shaken(make(), 0), METHODS["at"]
    x, y = torch.rand(32, net[0].in_channels, 8, 8), torch.arange(32) % 10
    batches = {
        p: attacked_batch(
            net, method, RECIPE.override(precision=p), x, y, Streams(torch.arange(32), 1)
        )
        for p in ("fp32", "bf16", "auto")
    }
    assert torch.equal(batches["auto"].x_adv, batches["fp32"].x_adv)
    moved = (batches["bf16"].x_adv - batches["fp32"].x_adv).abs()
    assert 0 < float((moved > 1e-6).float().mean()) < 0.7
    assert float((batches["bf16"].x_adv - x).abs().max()) <= RECIPE.eps + 1e-6
    assert batches["bf16"].x_adv.dtype == batches["bf16"].trace.p_flip.dtype == torch.float32
    net.eval()
    with torch.no_grad():
        ce = {
            p: float(nn.functional.cross_entropy(net(batch.x_adv), y))
            for p, batch in batches.items()
        }
        clean = float(nn.functional.cross_entropy(net(x), y))
    assert ce["bf16"] - clean > 0.9 * (ce["fp32"] - clean) > 0, "hardly a weaker attack"
    assert not net._forward_hooks
    twin = copy.deepcopy(net)
    optimizers = [torch.optim.SGD(n.parameters(), lr=0.1) for n in (net, twin)]
    take_step(
        net,
        optimizers[0],
        method,
        RECIPE.override(precision="bf16"),
        x,
        y,
        Streams(torch.arange(32), 1),
    )
    twin.train()
    nn.functional.cross_entropy(twin(batches["bf16"].x_adv), y).backward()
    optimizers[1].step()
    torch.testing.assert_close(dict(net.state_dict()), dict(twin.state_dict()))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name", ["at", "mail-at", "clirat", "trades", "gairat", "vir-at", "mr-mail"]
)
def test_a_step_never_waits_for_the_gpu(name):
    """Nothing in a step asks the device for a number: the host queues the next one meanwhile."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    net = deep().cuda()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, fused=True)
    x, y, ids = (
        torch.rand(16, 3, 8, 8, device="cuda"),
        torch.arange(16, device="cuda") % 10,
        torch.arange(16, device="cuda"),
    )
    take_step(net, optimizer, METHODS[name], RECIPE, x, y, Streams(ids, 0))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        take_step(net, optimizer, METHODS[name], RECIPE, x, y, Streams(ids, 1))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_compiled_passes_are_the_same_up_to_rounding(fresh_home, monkeypatch, capsys):
    """KIT_COMPILE trains the same run and says so in run.json; where no compiler works one line
    says why, and it goes on.
    """
    spec, runs = {**TINY, "epochs": 1, "milestones": []}, {}
    for name in ("eager", "compiled", "broken"):
        monkeypatch.setenv("KIT_HOME", str(fresh_home / name))
        monkeypatch.setenv("KIT_COMPILE", "0" if name == "eager" else "1")
        if name == "broken":

            def fails(*_, **__):
                raise RuntimeError("no compiler\nand more")

            monkeypatch.setattr(nn.Module, "compile", fails)
        runs[name] = kit.run("trades", overrides=spec, quiet=True)
    assert [run.record["compiled"] for run in runs.values()] == [False, True, False]
    assert runs["compiled"].history.loss[0] == pytest.approx(
        runs["eager"].history.loss[0], rel=1e-3
    )
    assert runs["broken"].history.loss[0] == runs["eager"].history.loss[0]
    assert (
        "WARNING: the network is not compiled: RuntimeError: no compiler\n"
        in capsys.readouterr().out
    )
    assert runs["compiled"].key == runs["eager"].key


@pytest.mark.skipif(not BF16, reason="this processor computes no bf16")
@pytest.mark.parametrize("native", [True, False])
def test_the_fastest_format_is_bf16_where_the_processor_multiplies_in_it(monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native, raising=False)
    assert resolve_precision("fastest", CPU) == ("bf16" if native else "fp32")
    assert resolve_precision("auto", CPU) == "fp32"


def test_bf16_where_there_is_none(monkeypatch, home):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    for precision in ("auto", "fastest", "fp32"):
        assert resolve_precision(precision, CPU) == "fp32"
    with pytest.raises(
        KitError, match="precision=bf16: this cpu computes no bf16; take precision=fp32"
    ):
        kit.run("at", overrides={"precision": "bf16"}, device="cpu", quiet=True)
    with pytest.raises(KitError, match="Choices: auto, bf16, fastest, fp32"):
        RECIPE.override(precision="fp16")
