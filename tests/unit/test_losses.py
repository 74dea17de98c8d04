"""Losses and regularisers:

each against plain numbers, their gradients, and what their parameters mean.
"""

from __future__ import annotations

import itertools
import math

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kit.core.errors import KitError
from kit.core.parts import part
from kit.methods import losses
from kit.methods.losses import LOSSES
from kit.methods.regularisers import (
    REGULARISERS,
    conv_fuzziness,
    conv_weights,
    cost_matrix,
    fuzziness,
    weight_norms,
)
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import METHODS
from kit.models.architectures import build_network

quick = settings(deadline=None, max_examples=80, derandomize=True, database=None)


# ----------------------------------------------------------------------------- one example, by hand


def softmax(z: list[float]) -> list[float]:
    powers = [math.exp(v - max(z)) for v in z]
    return [v / sum(powers) for v in powers]


def ce(z: list[float], y: int) -> float:
    return max(z) + math.log(sum(math.exp(v - max(z)) for v in z)) - z[y]


def kl(p: list[float], q: list[float], plus: float = 0.0) -> float:
    return sum(a * (math.log(a) - math.log(b + plus)) for a, b in zip(p, q, strict=True) if a > 0)


def cross_entropy(nat: list[float], adv: list[float], y: int) -> tuple[float, float]:
    return ce(adv, y), 0.0


def trades(nat: list[float], adv: list[float], y: int, beta: float = 6.0) -> tuple[float, float]:
    return beta * kl(softmax(nat), softmax(adv)), ce(nat, y)


def mart(nat: list[float], adv: list[float], y: int, beta: float = 5.0) -> tuple[float, float]:
    p, q = softmax(nat), softmax(adv)
    wrong = max(v for j, v in enumerate(q) if j != y)
    return ce(adv, y) - math.log(1.0001 - wrong + 1e-12), beta * kl(p, q, 1e-12) * (
        1.0000001 - p[y]
    )


def cost_sensitive(
    nat: list[float], adv: list[float], y: int, protected: int = 0, cost: float = 10.0
) -> tuple[float, float]:
    price = sum(
        p * (0 if j == y else cost if protected in (j, y) else 1)
        for j, p in enumerate(softmax(adv))
    )
    return ce(adv, y) + price, 0.0


def gair_trades(
    nat: list[float], adv: list[float], y: int, beta: float = 6.0
) -> tuple[float, float]:
    first, second = (beta * kl(softmax(nat), softmax(z)) for z in (adv, [-v for v in adv]))
    return first - second, ce(nat, y) + second


def with_second(y: torch.Tensor, adv: torch.Tensor, nat: torch.Tensor) -> StepOutputs:
    """A `Seen` whose second attack found the mirror image of the first one's logits."""
    return StepOutputs(y, adv, nat, logits_second=-adv)


def trades_reversed(
    nat: list[float], adv: list[float], y: int, beta: float = 5.0
) -> tuple[float, float]:
    return beta * kl(softmax(adv), softmax(nat)), ce(nat, y)


LITERAL = {
    "cross_entropy": cross_entropy,
    "trades": trades,
    "trades_reversed": trades_reversed,
    "mart": mart,
    "cost_sensitive": cost_sensitive,
    "gair_trades": gair_trades,
}
#: Other parameters than the defaults, for the same comparison.
VARIANTS = [
    ("cross_entropy", {}),
    ("trades", {}),
    ("trades", {"beta": 0.5}),
    ("trades", {"beta": 0.0}),
    ("trades_reversed", {}),
    ("trades_reversed", {"beta": 0.5}),
    ("mart", {}),
    ("mart", {"beta": 6.0}),
    ("mart", {"beta": 0.0}),
    ("cost_sensitive", {}),
    ("cost_sensitive", {"cost": 0.0}),
    ("cost_sensitive", {"protected": 1, "cost": 3.5}),
    ("gair_trades", {}),
    ("gair_trades", {"beta": 0.5}),
]


def seen_of(
    num_classes: int, n: int = 30, seed: int = 0, requires_grad: bool = False
) -> StepOutputs:
    """Random logits, some nearly flat, some steep, each label at least once where K allows it."""
    g = torch.Generator().manual_seed(seed)
    steep = torch.linspace(0.1, 6, n, dtype=torch.float64)[:, None]
    nat, adv = (
        steep * torch.randn(n, num_classes, generator=g, dtype=torch.float64) for _ in range(2)
    )
    return with_second(
        torch.arange(n) % num_classes,
        adv.requires_grad_(requires_grad),
        nat.requires_grad_(requires_grad),
    )


def literal(name: str, seen: StepOutputs, **params) -> tuple[list[float], list[float]]:
    rows = zip(seen.logits_nat.tolist(), seen.logits_adv.tolist(), seen.y.tolist(), strict=True)
    weighted, plain = zip(
        *(LITERAL[name](nat, adv, y, **params) for nat, adv, y in rows), strict=True
    )
    return list(weighted), list(plain)


def ids(variant) -> str:
    return str(variant).replace(" ", "") if isinstance(variant, dict) else variant


def test_literals_cover_the_table():
    assert set(LITERAL) == {name for name, _ in VARIANTS} == set(LOSSES)


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize(("name", "params"), VARIANTS, ids=ids)
def test_loss_equals_a_loop_over_examples(name, params, num_classes):
    """What a weight multiplies, and what it does not; both for every example or a zero that
    broadcasts.
    """
    seen = seen_of(num_classes)
    weighted, plain = part(LOSSES[name], **params)(seen)
    expected = literal(name, seen, **params)
    assert weighted.shape == seen.y.shape
    assert weighted.tolist() == pytest.approx(expected[0], rel=1e-9, abs=1e-12)
    assert plain.expand(len(seen.y)).tolist() == pytest.approx(expected[1], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("name", "params"), VARIANTS, ids=ids)
def test_gradients_are_those_of_the_formula(name, params):
    """Against central differences of the hand-written loss:

    nothing is detached, on either side of a KL.
    """
    seen = seen_of(3, n=4, seed=1, requires_grad=True)
    weighted, plain = part(LOSSES[name], **params)(seen)
    total = (0.7 * weighted + plain).sum()
    got = torch.autograd.grad(total, (seen.logits_nat, seen.logits_adv), allow_unused=True)

    def value(nat: torch.Tensor, adv: torch.Tensor) -> float:
        heavy, light = literal(name, with_second(seen.y, adv, nat), **params)
        return 0.7 * sum(heavy) + sum(light)

    for side, gradient in enumerate(got):
        for i, j in itertools.product(range(4), range(3)):
            ends = []
            for step in (1e-5, -1e-5):
                both = [seen.logits_nat.detach().clone(), seen.logits_adv.detach().clone()]
                both[side][i, j] += step
                ends.append(value(*both))
            slope = (ends[0] - ends[1]) / 2e-5
            assert (0.0 if gradient is None else gradient[i, j].item()) == pytest.approx(
                slope, rel=1e-5, abs=1e-7
            )


@pytest.mark.parametrize("gap", [40.0, 200.0])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_where_a_softmax_underflows(name, gap):
    """Single precision, logits apart by `gap`:

    true, other or no class on top, on either side of the attack.
    """
    tops = torch.tensor(list(itertools.product((0, 1, 2), repeat=2)))
    nat, adv = (
        (gap * nn.functional.one_hot(tops[:, side], 4).float()).requires_grad_(True)
        for side in (0, 1)
    )
    weighted, plain = part(LOSSES[name])(with_second(torch.zeros(9, dtype=torch.int64), adv, nat))
    assert bool(weighted.isfinite().all()) and bool(plain.isfinite().all())
    (weighted + plain).sum().backward()
    gradients = [logits.grad for logits in (nat, adv) if logits.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    # a softmax that has underflowed on the left of a KL is flat
    learned = gradients if name == "trades_reversed" else [adv.grad]
    assert sum(float(gradient.abs().sum()) for gradient in learned) > 0


@pytest.mark.parametrize("name", ["trades", "trades_reversed", "mart"])
def test_equal_predictions_leave_no_divergence(name):
    """Where the attack changed nothing, the KL term is 0 (MART's small constants aside)."""
    seen = seen_of(10)
    same = with_second(seen.y, seen.logits_nat, seen.logits_nat)
    weighted, plain = part(LOSSES[name])(same)
    divergence = plain if name == "mart" else weighted
    assert divergence.tolist() == pytest.approx([0] * 30, abs=1e-9)


# -------------------------------------------------------------------------------------- class costs


def test_cost_of_one_still_adds_the_probability_of_being_wrong():
    """With all costs 1 the extra term is 1 - p_y, so the paper's "becomes adversarial training" is
    not exact.
    """
    seen = seen_of(10)
    with_cost, _ = losses.cost_sensitive(seen, protected=3, cost=1.0)
    plain, _ = losses.cross_entropy(seen)
    expected = [
        1 - softmax(z)[y] for z, y in zip(seen.logits_adv.tolist(), seen.y.tolist(), strict=True)
    ]
    assert (with_cost - plain).tolist() == pytest.approx(expected)


def test_only_mistakes_with_the_protected_class_cost_more():
    """Doubling the cost raises the loss exactly where the true class is protected or mistaken for
    it.
    """
    logits = torch.tensor(
        [[0.0, 0, -800, 0], [0, 0, -800, -800], [0, 0, 0, 0]], dtype=torch.float64
    )
    seen = StepOutputs(torch.tensor([2, 0, 1]), logits)
    low, high = (losses.cost_sensitive(seen, protected=2, cost=c)[0] for c in (10.0, 20.0))
    assert (high - low).tolist() == pytest.approx([10, 0, 10 / 4])


@pytest.mark.parametrize("num_classes", [2, 10])
def test_protected_class_must_exist(num_classes):
    seen = StepOutputs(torch.tensor([0, 1]), torch.zeros(2, num_classes))
    losses.cost_sensitive(seen, protected=num_classes - 1)
    with pytest.raises(
        KitError, match=rf"protected={num_classes} names no class.*0 to {num_classes - 1}"
    ):
        losses.cost_sensitive(seen, protected=num_classes)
    for bad in (-1, num_classes):
        with pytest.raises(
            KitError, match=rf"protected class {bad} is not one of 0 to {num_classes - 1}"
        ):
            cost_matrix(num_classes, bad, 10.0)


@pytest.mark.parametrize(
    ("num_classes", "protected", "c"), [(2, 0, 10.0), (10, 3, 10.0), (10, 9, 0.5), (4, 1, 0.0)]
)
def test_cost_matrix_entry_by_entry(num_classes, protected, c):
    got = cost_matrix(num_classes, protected, c)
    assert got.shape == (num_classes, num_classes)
    for predicted, true in itertools.product(range(num_classes), repeat=2):
        expected = 0 if predicted == true else c if protected in (predicted, true) else 1
        assert got[predicted, true].item() == expected


def test_costs_raise_the_protected_class_in_the_methods_table():
    """Every row with class costs protects class 0 at a cost of 10 unless told otherwise."""
    rows = {
        name: method for name, method in METHODS.items() if method.loss.name == "cost_sensitive"
    }
    assert set(rows) == {
        "csa",
        "csa-halves",
        "csa-attack-first",
        "csa-ce",
        "csa-fgsm",
        "csa-l2",
        "cse",
        "cse-l1l2",
        "cse-kurtosis",
        "cse-adv",
        "cse-adv-halves",
    }
    seen = seen_of(10)
    for method in rows.values():
        assert method.loss(seen)[0].tolist() == pytest.approx(literal("cost_sensitive", seen)[0])


# ---------------------------------------------------------------------------------------- fuzziness


def fuzzy(values: list[float]) -> float:
    """-mean[ρ ln ρ + (1-ρ) ln(1-ρ)] with ρ = 1/(1+e^|w|), as printed."""
    total = 0.0
    for v in values:
        rho = 1 / (1 + math.exp(abs(v)))
        total -= rho * math.log(rho) + (1 - rho) * math.log(1 - rho)
    return total / len(values)


@quick
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=8))
def test_fuzziness_equals_its_formula(values):
    got = fuzziness(torch.tensor(values, dtype=torch.float64))
    assert got.shape == () and got.item() == pytest.approx(fuzzy(values), rel=1e-6, abs=1e-8)


def test_fuzziness_is_largest_at_zero_and_falls_with_size():
    assert fuzziness(torch.zeros(7, dtype=torch.float64)).item() == pytest.approx(math.log(2))
    sizes = torch.linspace(0, 30, 301, dtype=torch.float64)
    for sign in (1, -1):
        values = torch.stack([fuzziness(sign * size) for size in sizes])
        assert bool((values.diff() < 0).all())


def test_fuzziness_pushes_weights_away_from_zero():
    weights = torch.tensor([0.3, -0.3, 2.0, -5.0], requires_grad=True)
    fuzziness(weights).backward()
    assert torch.equal(weights.grad.sign(), -weights.sign()), (
        "a step down the gradient makes every |w| larger"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fuzziness_is_stable_for_huge_weights(dtype):
    """At |w| = 1000 ρ underflows, and no logarithm of 0 is taken."""
    weights = torch.tensor([1000.0, -1000.0, 100.0, 0.0], dtype=dtype, requires_grad=True)
    value = fuzziness(weights)
    value.backward()
    assert value.item() == pytest.approx(math.log(2) / 4, rel=1e-5)
    assert bool(weights.grad.isfinite().all())


# ---------------------------------------------------------------------------------------- penalties


def flat(tensors) -> list[float]:
    return [v for t in tensors for v in t.detach().flatten().tolist()]


def cnn() -> nn.Module:
    return build_network("cnn", (1, 8, 8), 10, seed=3).double()


def conv_fuzziness_by_hand(net: nn.Module) -> float:
    return fuzzy(flat(p for name, p in net.named_parameters() if name in ("0.weight", "2.weight")))


def weight_norms_by_hand(net: nn.Module) -> float:
    tensors = [p for name, p in net.named_parameters() if name.endswith("weight")]
    return sum(math.sqrt(sum(v * v for v in flat([p]))) for p in tensors)


def l1_minus_l2_by_hand(net: nn.Module) -> float:
    values = flat([net.state_dict()["0.weight"]])
    return sum(map(abs, values)) - math.sqrt(sum(v * v for v in values))


def kurtosis_by_hand(net: nn.Module) -> float:
    return -float(scipy.stats.kurtosis(flat([net.state_dict()["0.weight"]])))


BY_HAND = {
    "conv_fuzziness": (conv_fuzziness_by_hand, 1.0),
    "weight_norms": (weight_norms_by_hand, 0.01),
    "conv_l1_minus_l2": (l1_minus_l2_by_hand, 1.0),
    "conv_kurtosis": (kurtosis_by_hand, 1.0),
}


@pytest.mark.parametrize("name", REGULARISERS)
def test_penalty_equals_its_formula_and_scales_with_its_strength(name):
    """All convolution weights together in one mean; the norms of all weights, biases left out."""
    by_hand, strength = BY_HAND[name]
    net = cnn()
    assert REGULARISERS[name](net).item() == pytest.approx(strength * by_hand(net), rel=1e-9)
    assert REGULARISERS[name](net, strength=0.37).item() == pytest.approx(
        0.37 * by_hand(net), rel=1e-9
    )
    assert REGULARISERS[name](net, strength=0.0).item() == 0


@pytest.mark.parametrize("name", REGULARISERS)
def test_penalty_reaches_exactly_its_weights(name):
    """Fuzziness trains the convolutions alone, the norms every weight, batch norm's scales among
    them; neither a bias.
    """
    net = build_network("resnet18", (1, 8, 8), 10)
    REGULARISERS[name](net).backward()
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d) if name == "weight_norms" else (nn.Conv2d,)
    expected = {f"{m}.weight" for m, module in net.named_modules() if isinstance(module, kinds)}
    expected = (
        {"0.weight"} if name in ("conv_l1_minus_l2", "conv_kurtosis") else expected
    )  # the first convolution alone
    reached = {
        n for n, p in net.named_parameters() if p.grad is not None and bool((p.grad != 0).any())
    }
    assert reached == expected
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", REGULARISERS)
def test_negative_strength_is_refused(name):
    with pytest.raises(
        KitError, match=rf"{name}\.strength=-1\.0 is out of range; it must be at least 0"
    ):
        part(REGULARISERS[name], strength=-1.0)


@pytest.mark.parametrize("name", [name for name in REGULARISERS if name.startswith("conv_")])
def test_a_network_without_convolutions_is_refused(name):
    with pytest.raises(KitError, match="this network has none; take model=cnn"):
        REGULARISERS[name](build_network("linear", (1, 8, 8), 2))


def test_conv_weights_are_named_in_order():
    """A layer's name leads to the very parameter, first layer first."""
    net = build_network("lenet", (1, 28, 28), 10)
    found = conv_weights(net)
    assert [tuple(w.shape) for w in found.values()] == [(6, 1, 5, 5), (16, 6, 5, 5)]
    assert all(net.get_submodule(name).weight is w for name, w in found.items())
    assert list(conv_weights(nn.Sequential(nn.Linear(2, 2)))) == []


def test_mean_of_fuzziness_is_over_weights_not_layers():
    """A small and a large layer: the large one counts by its number of weights."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 3, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.fill_(8.0)
        net[1].weight.fill_(0.0)
    assert conv_fuzziness(net).item() == pytest.approx(
        0.25 * fuzzy([8.0]) + 0.75 * math.log(2), rel=1e-6
    )
    assert weight_norms(net, strength=1.0).item() == pytest.approx(8)
