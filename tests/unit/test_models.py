"""Networks: their published sizes, shapes at every image size, seeds, and normalisation inside."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kit.core.errors import KitError
from kit.models.architectures import (
    MODELS,
    BasicBlock,
    Normalise,
    PreActBlock,
    build_network,
    find_builder,
)

NAMES = [*MODELS, "wrn-10-1", "wrn-16-2"]
#: (name, image shape): every network at sizes that the recipes use, and at odd and small ones.
SHAPES = [
    (name, shape)
    for name in NAMES
    for shape in ((1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 13, 13))
    if not (name.startswith("lenet") and shape[1] < (16 if name.endswith("unpadded") else 12))
] + [("lenet", (1, 12, 12)), ("cnn", (1, 1, 1))]


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def images(n: int, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


# -------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("name", "shape", "classes", "parameters"),
    [
        ("resnet18", (3, 32, 32), 10, 11_173_962),
        ("wrn-34-10", (3, 32, 32), 10, 46_160_474),
        ("wrn-28-10", (3, 32, 32), 10, 36_479_194),
        ("wrn-16-4", (3, 32, 32), 10, 2_748_890),  # the 2.7 M of the Wide ResNet paper's table
        ("wrn-40-4", (3, 32, 32), 10, 8_949_210),  # its 8.9 M
        ("linear", (1, 8, 8), 2, 64 * 2 + 2),
        ("linear", (3, 32, 32), 10, 3072 * 10 + 10),
        ("lenet", (1, 28, 28), 10, 61_706),
        ("lenet", (3, 28, 28), 10, 61_706 + 2 * 6 * 25),
        ("lenet-5-16", (1, 28, 28), 10, 61_706 - 26 - 16 * 25),  # one kernel and its reader less
        ("lenet-unpadded", (3, 32, 32), 10, 61_706 + 2 * 6 * 25),  # the padding only moves borders
        ("lenet-5-16-unpadded", (3, 32, 32), 10, 61_706 + 2 * 5 * 25 - 26 - 16 * 25),
        ("cnn", (1, 8, 8), 10, (9 + 1) * 16 + (16 * 9 + 1) * 32 + (32 * 16 + 1) * 64 + 65 * 10),
    ],
)
def test_number_of_parameters(name, shape, classes, parameters):
    with torch.device("meta"):
        assert count(build_network(name, shape, classes)) == parameters


def test_classes_change_only_the_last_layer():
    for name in NAMES:
        with torch.device("meta"):
            ten, hundred = (build_network(name, (3, 32, 32), k) for k in (10, 100))
        width = [m for m in ten.modules() if isinstance(m, nn.Linear)][-1].in_features
        assert count(hundred) - count(ten) == 90 * (width + 1)


def test_wrn_32_10_counts_differently_what_34_10_is():
    """The robustness papers' WRN-32-10 leaves the shortcut convolutions out of its depth:

    layer for layer the same.
    """
    with torch.device("meta"):
        shapes = [
            [
                (n, tuple(p.shape))
                for n, p in build_network(name, (3, 32, 32), 10).named_parameters()
            ]
            for name in ("wrn-32-10", "wrn-34-10", "wrn-28-10")
        ]
    assert shapes[0] == shapes[1] != shapes[2]


@pytest.mark.parametrize(
    ("name", "convolutions"), [("resnet18", 17), ("wrn-10-1", 7), ("wrn-34-10", 31)]
)
def test_depth_is_what_the_name_says(name, convolutions):
    """3x3 convolutions on the path from the pixels to the classes (1x1 shortcuts aside)."""
    with torch.device("meta"):
        net = build_network(name, (3, 32, 32), 10)
    assert (
        sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in net.modules())
        == convolutions
    )


@pytest.mark.parametrize("block", [BasicBlock, PreActBlock])
def test_a_block_that_adds_nothing_hands_its_input_on(block):
    """The shortcut is the identity where width and resolution stay; the first kind has a ReLU."""
    same = block(4, 4, 1).eval()
    last = same.bn2 if block is BasicBlock else same.conv2
    with torch.no_grad():
        last.weight.zero_()
        x = 2 * images(2, (4, 6, 6)) - 1
        torch.testing.assert_close(same(x), x.relu() if block is BasicBlock else x)
        assert block(4, 6, 2).eval()(x).shape == (2, 6, 3, 3)


def test_wide_networks_start_at_hes_scale():
    """Standard deviation √(2 / (k² · channels out)), so that gradients keep their size on the way
    back.
    """
    for module in build_network("wrn-16-4", (3, 32, 32), 10).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            expected = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(("name", "side"), [("resnet18", 4), ("wrn-16-2", 8)])
def test_resolution_at_the_pool(name, side):
    """The CIFAR stem keeps 32x32; each later stage halves it."""
    with torch.device("meta"):
        net, found = build_network(name, (3, 32, 32), 10), []
        pool = next(m for m in net.modules() if isinstance(m, nn.AdaptiveAvgPool2d))
        pool.register_forward_pre_hook(lambda module, args: found.append(tuple(args[0].shape[2:])))
        net(torch.empty(1, 3, 32, 32))
    assert found == [(side, side)]


# ----------------------------------------------------------------------------- shapes and gradients


@pytest.mark.parametrize(("name", "shape"), SHAPES)
@pytest.mark.parametrize("classes", [2, 10])
def test_logits_have_their_shape(name, shape, classes):
    net = build_network(name, shape, classes).eval()
    with torch.no_grad():
        logits = net(images(3, shape))
    assert (
        logits.shape == (3, classes)
        and logits.dtype == torch.float32
        and bool(logits.isfinite().all())
    )
    assert bool((logits.sum(dim=1) - 1).abs().max() > 1e-3), "logits, not probabilities"


@pytest.mark.parametrize("name", ["wrn-34-10", "wrn-28-10", "resnet18"])
def test_large_networks_have_their_shape(name):
    """Without memory or work: shapes alone."""
    with torch.device("meta"):
        assert build_network(name, (3, 32, 32), 100)(torch.empty(5, 3, 32, 32)).shape == (5, 100)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_and_pixel_matters(name):
    """A gradient reaches all of them: nothing is built and left out of the forward pass."""
    shape = (3, 16, 16)
    net, x = build_network(name, shape, 10, seed=1), images(8, shape).requires_grad_(True)
    net(x).square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in net.parameters())
    assert bool((x.grad != 0).any(dim=0).all())


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_does_not_depend_on_batch_mates(name):
    net, x = build_network(name, (1, 16, 16), 10).eval().double(), images(6, (1, 16, 16)).double()
    with torch.no_grad():
        torch.testing.assert_close(net(x)[2:3], net(x[2:3]), rtol=1e-9, atol=1e-9)


# -------------------------------------------------------------------------------------------- seeds


def parameters(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_names_an_initialisation(name):
    first, again, other = (
        parameters(build_network(name, (1, 16, 16), 10, seed=seed)) for seed in (4, 4, 5)
    )
    assert torch.equal(first, again) and float((first == other).double().mean()) < 0.5
    assert bool(first.isfinite().all())


def test_names_have_their_own_streams():
    """wrn-32-10 and wrn-34-10 are one architecture; a name is still part of the seed."""
    a, b = (
        parameters(build_network(name, (1, 8, 8), 2, seed=0)) for name in ("wrn-8-1", "wrn-10-1")
    )
    assert a.shape == b.shape and not torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_building_leaves_the_global_random_state_alone(name):
    torch.manual_seed(12)
    before = torch.get_rng_state()
    build_network(name, (1, 16, 16), 10, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(
        parameters(build_network(name, (1, 16, 16), 10)),
        parameters(build_network(name, (1, 16, 16), 10)),
    ), "nor reads it"


# ------------------------------------------------------------------------------------ normalisation


@pytest.mark.parametrize("name", NAMES)
def test_normalising_inside_equals_normalising_by_hand(name):
    shape, mean, std = (3, 16, 16), torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
    inside = build_network(name, shape, 10, seed=2, normalise=(mean, std)).eval()
    outside, x = build_network(name, shape, 10, seed=2).eval(), images(4, shape)
    by_hand = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(inside(x), outside(by_hand))
        assert not torch.allclose(inside(x), outside(x), atol=1e-3)


def test_normalisation_is_stored_but_not_trained():
    net = build_network("cnn", (1, 8, 8), 10, normalise=(torch.tensor([0.25]), torch.tensor([0.5])))
    assert count(net) == count(build_network("cnn", (1, 8, 8), 10))
    stored = [name for name in net.state_dict() if name.endswith(("mean", "std"))]
    assert len(stored) == 2
    assert (
        Normalise(torch.tensor([0.25]), torch.tensor([0.5]))(torch.tensor([[[[0.75]]]])).item() == 1
    )


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet50", "no model 'resnet50'.*linear, cnn, lenet, .*resnet18, .*wrn-D-W"),
        ("", "no model ''"),
        ("wrn-34", "no model 'wrn-34'"),
        ("WRN-34-10", "no model 'WRN-34-10'"),
        ("wrn-34-10-2", "no model"),
        ("wrn-33-10", r"'wrn-33-10': depth must be 6n\+4 or 6n\+2"),
        ("wrn-12-1", "depth must be"),
        ("wrn-4-1", "depth must be"),
        ("wrn-2-1", "depth must be"),
        ("wrn-34-0", "width at least 1"),
        ("wrn-034-10", "no model 'wrn-034-10'"),
        ("wrn-３４-10", "no model"),
        (f"wrn-{'9' * 5000}-1", "no model"),
    ],
)
def test_unknown_names_and_depths_are_refused(name, words):
    for refuse in (find_builder, lambda n: build_network(n, (3, 32, 32), 10)):
        with pytest.raises(KitError, match=words):
            refuse(name)


@pytest.mark.parametrize("name", [*NAMES, "wrn-8-1", "wrn-32-10", "wrn-28-10"])
def test_known_names_pass(name):
    assert callable(find_builder(name))


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(
        KitError, match=r"lenet needs images of at least 12x12 pixels, these are 8x8.*model=cnn"
    ):
        build_network("lenet", (1, 8, 8), 10)
    with pytest.raises(KitError, match="at least 12x12"):
        build_network("lenet", (1, 11, 11), 10)
    with pytest.raises(KitError, match="at least 16x16"):
        build_network("lenet-unpadded", (1, 15, 15), 10)
    for name in NAMES:
        with pytest.raises(KitError, match=r"square images, these are 16x20"):
            build_network(name, (3, 16, 20), 10)


def test_lenet_is_lenet():
    """ReLU after the pool is ReLU before it:

    the same logits and gradients, bit for bit, ties on flat ground included.
    """
    net = build_network("lenet", (1, 28, 28), 10)
    usual = nn.Sequential(*[net[i] for i in (0, 2, 1, 3, 5, 4, *range(6, len(net)))])
    kinds = [nn.Conv2d, nn.ReLU, nn.MaxPool2d] * 2
    assert all(isinstance(layer, kind) for layer, kind in zip(usual, kinds, strict=False))
    x = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    x[:, :, :, :14] = 0.3
    found = []
    for model in (net, usual):
        given = x.clone().requires_grad_(True)
        logits = model(given)
        found.append(
            (
                logits,
                *torch.autograd.grad(logits.logsumexp(dim=1).sum(), [given, *model.parameters()]),
            )
        )
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
