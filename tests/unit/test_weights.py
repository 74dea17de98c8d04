"""Weight functions, normalisers, selections, and what the rows of the table of methods do with
them.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kit
from kit.core import tensors
from kit.core.errors import KitError
from kit.core.parts import list_hyper_parameters, part
from kit.core.random_streams import Streams
from kit.core.threat import Threat
from kit.experiments.specification import RunSpec, resolve
from kit.methods import weights as kit_weights
from kit.methods.criteria import Criterion, confused_labels
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import PART_NAMES, SQUARES, controls_between
from kit.methods.weights import WEIGHTS
from kit.models.architectures import build_network

quick = settings(deadline=None, max_examples=80, derandomize=True, database=None)

#: Each weight function on one number, with any parameters.
LITERAL = {
    "sigmoid": lambda s, slope=10.0, bias=-0.5: 1 / (1 + math.exp(-slope * (s + bias))),
    "tanh": lambda s, shift=-1.0, slope=5.0: (math.tanh(shift + slope * s) + 1) / 2,
    "exponential": lambda s, alpha=0.5: math.exp(alpha * s),
    "affine": lambda s, slope=1.0, offset=0.0: max(0.0, slope * s + offset),
    "proportional": lambda s: max(0.0, s),
}
SCORES = [i / 20 for i in range(-30, 31)]


def choices(annotation: Any) -> st.SearchStrategy:
    """Values of moderate size that an annotation allows."""
    kind, (allowed,) = get_args(annotation)[0], get_args(annotation)[1:]
    assert kind is float
    return st.floats(max(allowed.low, -3), min(allowed.high, 20), exclude_min=allowed.above)


# --------------------------------------------------------------------------------- weight functions


def test_literals_cover_the_table():
    assert set(LITERAL) == set(WEIGHTS)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weight_equals_its_formula(name):
    got = WEIGHTS[name](torch.tensor(SCORES, dtype=torch.float64))
    assert got.tolist() == pytest.approx([LITERAL[name](s) for s in SCORES], rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", WEIGHTS)
@quick
@given(data=st.data())
def test_weight_is_never_negative_and_never_falls(name, data):
    """For any allowed parameters:

    more vulnerable never weighs less. The formula holds away from its defaults too.
    """
    params = {
        k: data.draw(choices(a), label=k)
        for k, (a, _) in list_hyper_parameters(WEIGHTS[name]).items()
    }
    scores = sorted(data.draw(st.lists(st.floats(-3, 3), min_size=1, max_size=8), label="scores"))
    got = part(WEIGHTS[name], **params)(torch.tensor(scores, dtype=torch.float64))
    assert got.shape == (len(scores),) and bool(got.isfinite().all()) and bool((got >= 0).all())
    assert bool((got.diff() >= 0).all())
    assert got.tolist() == pytest.approx(
        [LITERAL[name](s, **params) for s in scores], rel=1e-9, abs=1e-12
    )


def test_sigmoid_is_mails_formula():
    """σ(-γ(PM - β)) with γ 10 and β -0.5, in the paper's own sign."""
    margins = torch.linspace(-1, 1, 41, dtype=torch.float64)
    expected = [1 / (1 + math.exp(10 * (m + 0.5))) for m in margins.tolist()]
    assert kit_weights.sigmoid(-margins, slope=10.0, bias=-0.5).tolist() == pytest.approx(expected)


def test_tanh_is_gairats_table():
    """κ = 0..10 of ten steps, before normalisation:

    0.9997 for an example lost at once, 6e-6 for a survivor.
    """
    got = kit_weights.tanh(-torch.tensor([(k - 5) / 5 for k in range(11)], dtype=torch.float64))
    assert got.tolist() == pytest.approx(
        [(math.tanh(-1 + 5 * (5 - k) / 5) + 1) / 2 for k in range(11)]
    )
    assert got[0].item() == pytest.approx(0.99966, abs=1e-5) and got[10].item() == pytest.approx(
        6.1e-6, rel=0.02
    )


@pytest.mark.parametrize("name", WEIGHTS)
def test_bad_parameters_are_refused(name):
    for parameter, (annotation, _) in list_hyper_parameters(WEIGHTS[name]).items():
        low = get_args(annotation)[1].low
        bad = math.nan if low == -math.inf else low - 1
        with pytest.raises(KitError, match=rf"{name}\.{parameter}=.*out of range"):
            part(WEIGHTS[name], **{parameter: bad})


# -------------------------------------------------------------------------------------- normalisers


@quick
@given(st.lists(st.floats(0, 100, allow_subnormal=False), min_size=1, max_size=12))
def test_batch_mean_has_mean_one_and_keeps_ratios(values):
    weights = torch.tensor(values, dtype=torch.float64)
    got = kit_weights.batch_mean(weights)
    assert got.mean().item() == pytest.approx(1, rel=1e-9)
    if sum(values) > 0:
        assert got.tolist() == pytest.approx(
            [v * len(values) / sum(values) for v in values], rel=1e-9
        )


def test_batch_mean_of_zeros_is_ones():
    assert kit_weights.batch_mean(torch.zeros(4)).tolist() == [1, 1, 1, 1]
    assert kit_weights.batch_mean(torch.tensor([0.0, 0.0, 3.0])).tolist() == [0, 0, 3]


def test_batch_mean_of_vanishing_weights_is_finite():
    """Weights below the smallest normal float (a very steep exponential) still have a mean that can
    be made 1.
    """
    for tiny in (torch.full((4,), 1e-40), torch.exp(torch.tensor([-93.0, -94.0, -200.0]))):
        assert 0 < float(tiny.max()) < torch.finfo(torch.float32).tiny
        got = kit_weights.batch_mean(tiny)
        assert bool(got.isfinite().all()) and float(got.mean()) == pytest.approx(1, rel=1e-3)


def test_factor_and_unnormalised():
    weights = torch.tensor([0.0, 0.25, 200.0])
    assert kit_weights.factor(weights).tolist() == [0, 0.75, 600] and kit_weights.factor(
        weights, scale=0.5
    ).tolist() == [0, 0.125, 100]
    assert torch.equal(kit_weights.unnormalised(weights), weights)


# ---------------------------------------------------------------------------------------- selection

WHICH = ("single", "multiple", "multiple-matched", "random")


def batch_with(counts: list[int], num_classes: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """(probs, y): example i has counts[i] labels above the true one."""
    rows = []
    for count in counts:
        above, below = [2.0 + 0.1 * j for j in range(count)], [0.5] * (num_classes - 1 - count)
        rows.append([1.0, *above, *below])
    probs = torch.tensor(rows, dtype=torch.float64)
    return probs / probs.sum(dim=1, keepdim=True), torch.zeros(len(counts), dtype=torch.int64)


COUNTS = [0, 1, 2, 3, 0, 1, 1, 4, 2, 0, 2, 5, 1, 3, 0, 2]  # 4 of S_sig, 8 of S_mul, 4 correct


def kept(which: str, counts: list[int], ids: list[int], *name: object) -> list[bool]:
    probs, y = batch_with(counts)
    outputs = StepOutputs(y, probs.log(), streams=Streams(torch.tensor(ids), *name))
    mask = kit_weights.drop_confused(outputs, which=which)
    assert mask.dtype == torch.bool and mask.shape == y.shape
    return mask.tolist()


def test_every_choice_is_tested():
    assert get_args(list_hyper_parameters(kit_weights.drop_confused)["which"][0]) == WHICH


def test_single_and_multiple_leave_out_exactly_their_set():
    ids = list(range(len(COUNTS)))
    assert kept("single", COUNTS, ids, 0) == [c != 1 for c in COUNTS]
    assert kept("multiple", COUNTS, ids, 0) == [c < 2 for c in COUNTS]


def test_single_and_multiple_do_not_depend_on_the_batch():
    for which in ("single", "multiple"):
        whole = kept(which, COUNTS, list(range(16)), 0)
        assert whole[3:9] == kept(which, COUNTS[3:9], list(range(100, 106)), "other")
        assert whole[::-1] == kept(which, COUNTS[::-1], list(range(16)), 0)


@quick
@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(0, 50))
def test_sizes_and_pools_of_the_controls(counts, seed):
    """Matched: min(|S_sig|, |S_mul|) of S_mul. Random: |S_mul| of all."""
    ids, several, one = (
        list(range(7, 7 + len(counts))),
        sum(c >= 2 for c in counts),
        sum(c == 1 for c in counts),
    )
    matched = kept("multiple-matched", counts, ids, seed)
    assert matched.count(False) == min(one, several)
    assert all(keep or c >= 2 for keep, c in zip(matched, counts, strict=True))
    assert kept("random", counts, ids, seed).count(False) == several


@pytest.mark.parametrize("which", ["multiple-matched", "random"])
def test_controls_follow_the_ids(which):
    """Same ids and name, same draw; moved with their ids, the same examples are drawn; another name
    draws others.
    """
    ids = [5 * i + 3 for i in range(16)]
    first = kept(which, COUNTS, ids, 0, "attack", 1)
    assert first == kept(which, COUNTS, ids, 0, "attack", 1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3)).tolist()
    moved = kept(which, [COUNTS[i] for i in order], [ids[i] for i in order], 0, "attack", 1)
    assert moved == [first[i] for i in order]
    assert any(kept(which, COUNTS, ids, 0, "attack", epoch) != first for epoch in range(2, 6))


def test_controls_draw_evenly():
    """Over 400 draws the random control hits each of 16 examples half the time, the matched one
    each of S_mul's 8.
    """
    ids, draws = list(range(16)), 400
    for which, share in (
        ("random", [8 / 16] * 16),
        ("multiple-matched", [4 / 8 if c >= 2 else 0 for c in COUNTS]),
    ):
        dropped = (
            torch.tensor([kept(which, COUNTS, ids, seed) for seed in range(draws)])
            .logical_not()
            .double()
            .mean(dim=0)
        )
        assert dropped.tolist() == pytest.approx(share, abs=0.12)  # five standard errors are 0.125


def test_check_weights():
    kit_weights.check_weights(torch.tensor([0.0, 1.0, 5.0]), "mine")
    for bad, words in (
        ([1.0, math.nan], "NaN or infinite"),
        ([1.0, math.inf], "NaN or infinite"),
        ([2.0, -0.5], "negative weights.*-0.5"),
        ([0.0, 0.0], "only zeros for a batch of 2"),
    ):
        with pytest.raises(KitError, match=f"mine returned {words}"):
            kit_weights.check_weights(torch.tensor(bad), "mine")


# ----------------------------------------------------------------------------- the table of methods

STEPS = 10


def seen_of(n: int = 48, *, scale: float = 2.0, requires_grad: bool = False) -> StepOutputs:
    """What a training step might see:

    misclassified examples with one and with several confused labels among them.
    """
    g = torch.Generator().manual_seed(11)
    nat, adv = (scale * torch.randn(n, 10, generator=g) for _ in range(2))
    second = scale * torch.randn(n, 10, generator=torch.Generator().manual_seed(12))
    y = torch.randint(10, (n,), generator=g)
    nat[torch.arange(n), y] += 2 * scale
    adv[torch.arange(n), y] += scale
    kappa = torch.randint(0, STEPS + 1, (n,), generator=g)
    return StepOutputs(
        y,
        adv.requires_grad_(requires_grad),
        nat.requires_grad_(requires_grad),
        kappa,
        kappa,
        torch.rand(n, generator=g),
        STEPS,
        Streams(torch.arange(100, 100 + n), 0, "attack", 1),
        second,
    )


def rearranged(seen: StepOutputs, order: torch.Tensor) -> StepOutputs:
    fields = {f.name: getattr(seen, f.name) for f in dataclasses.fields(seen)}
    fields = {k: v[order] if isinstance(v, torch.Tensor) else v for k, v in fields.items()}
    return StepOutputs(
        **fields | {"streams": Streams(seen.streams.ids[order], *seen.streams.parts)}
    )


@pytest.mark.parametrize("scale", [2.0, 100.0])
@pytest.mark.parametrize("name", kit.METHODS)
def test_weights_of_a_row_are_weights(name, scale):
    """(N,), finite, not negative, without gradient (but in WMMR's own rows) although the logits
    have one; not all equal where it reweights, but in the control that flattens them.
    """
    seen, method = seen_of(scale=scale, requires_grad=True), kit.METHODS[name]
    weights = method.weigh(seen)
    kit_weights.check_weights(weights.detach(), name)
    assert weights.shape == seen.y.shape and weights.dtype == torch.float32
    assert weights.requires_grad == (name in ("wmmr", "wmmr-trades"))
    assert (weights.unique().numel() > 1) == (
        method.reweights and method.normaliser.name != "flattened"
    )
    if not method.reweights:
        assert bool((weights == 1).all())


@pytest.mark.parametrize("name", kit.METHODS)
def test_permuting_the_batch_permutes_the_weights(name):
    """With the ids moved along: the random controls draw by id."""
    order = torch.randperm(48, generator=torch.Generator().manual_seed(2))
    weights = kit.METHODS[name].weigh(seen_of())
    torch.testing.assert_close(
        kit.METHODS[name].weigh(rearranged(seen_of(), order)), weights[order], rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize(
    "name",
    [
        n
        for n, m in kit.METHODS.items()
        if m.weight is not None and m.normaliser.name != "flattened"
    ],
)
def test_weights_rise_with_the_score(name):
    """Among the examples that are kept, the order of weights is the order of vulnerability."""
    method, seen = kit.METHODS[name], seen_of()
    score, weights = method.criterion.score(seen), method.weigh(seen)
    order = score.argsort()
    ranked = weights[order][weights[order] > 0]
    assert len(ranked) > 10 and bool((ranked.diff() >= 0).all()) and ranked[-1] > ranked[0]


@pytest.mark.parametrize(
    "name", [n for n, m in kit.METHODS.items() if m.normaliser.name == "batch_mean"]
)
def test_batch_mean_rows_have_mean_one(name):
    assert kit.METHODS[name].weigh(seen_of()).mean().item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    ("control", "row"), [("at-scaled", "vir-at"), ("trades-scaled", "vir-trades")]
)
def test_a_scaled_control_keeps_the_mean_weight_alone(control, row):
    weights, vir = (kit.METHODS[name].weigh(seen_of()) for name in (control, row))
    assert weights.tolist() == pytest.approx([vir.mean().item()] * 48) and vir.std() > 0
    differing = {
        key: value
        for key, value in kit.METHODS[control].config().items()
        if value != kit.METHODS[row].config()[key]
    }
    assert set(differing) == {"normaliser"}


@pytest.mark.parametrize("base", SQUARES)
def test_a_square_differs_in_criterion_and_normaliser_alone(base):
    """All four rows exist, each is what its place says, and the rest of their settings is equal."""
    square = SQUARES[base]
    assert set(square) == set(itertools.product(("pm", "cl-pm"), ("factor", "batch_mean")))
    rest = []
    for (criterion, normaliser), name in square.items():
        row = kit.METHODS[name]
        assert row.criterion == kit.CRITERIA[criterion] and row.normaliser.name == normaliser
        config = row.config() | {"burn_in": row.burn_in}
        rest.append({k: v for k, v in config.items() if k not in ("criterion", "normaliser")})
    assert all(other == rest[0] for other in rest)
    assert rest[0]["loss"]["fn"] == {"at": "cross_entropy"}.get(base, base)


def test_vir_weights_literally():
    """7 exp(-10 p_y(x)) KL(p(x) ‖ p(x_adv)) + 0.007, number by number, not normalised."""
    seen, expected = seen_of(), []
    nat, adv = (
        logits.double().softmax(1).tolist() for logits in (seen.logits_nat, seen.logits_adv)
    )
    for p, q, y in zip(nat, adv, seen.y.tolist(), strict=True):
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        expected.append(7 * math.exp(-10 * p[y]) * divergence + 0.007)
    assert kit.METHODS["vir-at"].weigh(seen).tolist() == pytest.approx(expected, rel=1e-4)


def test_margin_reweighting_literally_and_its_misprints():
    """3 σ(-10 (m̃ + 0.5)) with m̃ = PM (2 - o) c; with Eq.

    4's sign the safest example weighs most.
    """
    seen, expected = seen_of(), []
    for p, y in zip(seen.logits_adv.double().softmax(1).tolist(), seen.y.tolist(), strict=True):
        other = max(v for j, v in enumerate(p) if j != y)
        cosine = math.sqrt(sum(v * v for j, v in enumerate(p) if j != y) / sum(v * v for v in p))
        expected.append(
            3 / (1 + math.exp(10 * ((p[y] - other) * (2 - other / (1 - p[y])) * cosine + 0.5)))
        )
    assert kit.METHODS["mr-mail"].weigh(seen).tolist() == pytest.approx(
        expected, rel=1e-3, abs=1e-8
    )
    literal = kit.METHODS["mr-mail-literal"].weigh(seen)
    mended = kit.METHODS["mr-mail"].weigh(seen)
    assert (literal.argsort() == mended.argsort().flip(0)).float().mean() > 0.9
    assert kit.METHODS["mr-mail-alg1"].weigh(seen).mean() > mended.mean(), (
        "centred at PM = +0.5, it weighs nearly all"
    )


def test_mail_at_weights_literally():
    """3 σ(-10 (PM + 0.5)) on the attacked logits, number by number."""
    seen = seen_of()
    expected = []
    for p, y in zip(seen.logits_adv.double().softmax(1).tolist(), seen.y.tolist(), strict=True):
        margin = p[y] - max(v for j, v in enumerate(p) if j != y)
        expected.append(3 / (1 + math.exp(10 * (margin + 0.5))))
    assert kit.METHODS["mail-at"].weigh(seen).tolist() == pytest.approx(
        expected, rel=1e-4, abs=1e-8
    )


def test_gairat_weights_literally():
    seen = seen_of()
    raw = [(math.tanh(-1 + 5 * (5 - k) / 5) + 1) / 2 for k in seen.kappa.tolist()]
    expected = [v * len(raw) / sum(raw) for v in raw]
    assert kit.METHODS["gairat"].weigh(seen).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_dropped_examples_weigh_nothing_and_others_as_in_mail_at():
    seen = seen_of()
    count, full = confused_labels(seen.probs_adv, seen.y), kit.METHODS["mail-at"].weigh(seen)
    single, several = count == 1, count >= 2
    assert several.sum() > single.sum() > 0
    for row, out in (("single", single), ("multiple", several)):
        weights = kit.METHODS[f"clirat-drop-{row}"].weigh(seen_of())
        assert bool((weights[out] == 0).all()) and torch.equal(weights[~out], full[~out])
    matched, random = (
        kit.METHODS[f"clirat-drop-{row}"].weigh(seen_of()) == 0 for row in ("matched", "random")
    )
    assert matched.sum() == single.sum() and bool(several[matched].all())
    assert random.sum() == several.sum()


@pytest.mark.parametrize("name", kit.METHODS)
def test_sees_names_what_the_parts_read(name):
    """Without the fields outside `sees` a row still weighs and loses; without one inside it does
    not.
    """
    method, seen = kit.METHODS[name], seen_of()
    needed = {
        {"probs_adv": "logits_adv", "probs_nat": "logits_nat"}.get(n, n) for n in method.reads
    } | {"y", "logits_adv"}
    fields = {f.name: getattr(seen, f.name) for f in dataclasses.fields(seen)}

    def use(keep: set[str]):
        only = StepOutputs(**{k: v if k in keep else None for k, v in fields.items()})
        return method.weigh(only), method.loss(only)

    use(needed)
    for field in needed - {"y", "logits_adv", "streams"}:  # two of the selections draw nothing
        with pytest.raises((AssertionError, AttributeError, TypeError)):
            use(needed - {field})


# ----------------------------------------------------------------------------------------parameters


def others(annotation: Any, value: Any) -> list[Any]:
    """Other allowed values of a hyper-parameter: all of a choice, one of a number."""
    if get_origin(annotation) is Union or "|" in str(annotation):
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Literal:
        return [v for v in get_args(annotation) if v != value]
    if annotation is bool:
        return [not value]
    assert get_origin(annotation) is Annotated
    if get_args(annotation)[0] is int:
        return [value + 1]
    raised = value + max(abs(value), 1.0) / 2
    return [raised if raised in get_args(annotation)[1] else value / 2]


def parts_of(method: kit.methods.table.Method) -> dict:
    chosen = {slot: getattr(method, slot) for slot in PART_NAMES}
    return {
        slot: c.quantity if isinstance(c, Criterion) else c
        for slot, c in chosen.items()
        if c is not None
    }


def timed(method: kit.methods.table.Method) -> set[str]:
    """Hyper-parameters that the row's timetable sets."""
    return set(method.schedule(1, 1)) if method.schedule else set()


def all_changes() -> list:
    return [
        pytest.param(name, f"{slot}.{parameter}", other, id=f"{name}-{slot}.{parameter}={other}")
        for name, method in kit.METHODS.items()
        for slot, chosen in parts_of(method).items()
        for parameter, (annotation, _) in list_hyper_parameters(chosen.fn).items()
        if f"{slot}.{parameter}" not in timed(method)
        for other in others(annotation, chosen.params[parameter])
    ]


@pytest.fixture(scope="module")
def network():
    """A small network in double precision with logits far from linear, and 12 images."""
    net = build_network("cnn", (1, 8, 8), 10, seed=1).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2.5)
    g = torch.Generator().manual_seed(0)
    return (
        net,
        torch.rand(12, 1, 8, 8, generator=g, dtype=torch.float64),
        torch.randint(10, (12,), generator=g),
    )


def effect(method: kit.methods.table.Method, slot: str, network) -> torch.Tensor:
    """What the part of that slot decides:

    the attacked images, the weights, the loss, or the penalty.
    """
    net, x, y = network
    if slot in ("attack", "second_attack"):
        attack = getattr(method, slot)
        own = {"trained_loss": method.trained_loss}
        return attack(
            net,
            x,
            y,
            Threat("linf", 0.2),
            generator=Streams(torch.arange(12), "t"),
            steps=4,
            step_size=0.08,
            **own,
        )
    if slot == "schedule":  # what a run of 120 epochs is like in each of them
        values = [list(method.schedule(epoch, 120).values()) for epoch in range(1, 121)]
        return torch.tensor(values, dtype=torch.float64)
    if slot == "perturb":
        net = copy.deepcopy(net)  # what is added and subtracted again leaves a rounding behind
        with method.perturb(net, lambda: tensors.per_example_cross_entropy(net(x), y).mean()):
            return torch.cat([p.detach().flatten().clone() for p in net.parameters()])
    if slot == "loss":
        return torch.stack([t.expand(48) for t in method.loss(seen_of())])
    if slot == "regulariser":
        return method.regulariser(net)
    return method.weigh(seen_of()).detach()


@pytest.mark.parametrize(("name", "path", "other"), all_changes())
def test_every_hyper_parameter_changes_what_it_should(name, path, other, network):
    method, slot = kit.METHODS[name], path.partition(".")[0]
    before = method.hyper_parameters()
    changed = method.override(path, other)
    assert changed.hyper_parameters() == before | {path: other}
    assert method.hyper_parameters() == before, "the row itself is not touched"
    now, then = (effect(m, slot, network).detach() for m in (changed, method))
    assert bool(now.isfinite().all()) and (now - then).abs().max() > 1e-6
    assert torch.equal(effect(method, slot, network), then), (
        "the difference is the parameter's, not chance"
    )


@pytest.mark.parametrize("name", kit.METHODS)
def test_hyper_parameters_are_complete(name):
    """Dotted names of every parameter of every part, with the values that it runs with."""
    method = kit.METHODS[name]
    expected = {
        f"{slot}.{p}": chosen.params[p]
        for slot, chosen in parts_of(method).items()
        for p in list_hyper_parameters(chosen.fn)
        if f"{slot}.{p}" not in timed(method)
    }
    assert method.hyper_parameters() == expected and (expected or name == "std")


@pytest.mark.parametrize(
    "name",
    [n for n, m in kit.METHODS.items() if not any(any(m.stages(e, 9)) for e in range(1, 10))],
)
def test_rows_that_never_attack_refuse_settings_of_the_attack(name):
    """A setting without any effect is refused, as burn-in is where nothing is reweighted."""
    with pytest.raises(KitError):
        resolve(RunSpec(name, overrides={"attack.loss": "margin"}))


@pytest.mark.parametrize("name", [n for n, m in kit.METHODS.items() if m.schedule])
def test_timetables(name):
    """In each epoch the row has its timetable's values; alone they cannot be overridden, and the
    error says by what.
    """
    method = kit.METHODS[name]
    for path, value in method.schedule(119, 120).items():
        slot, _, parameter = path.partition(".")
        assert getattr(method.at(119, 120), slot).params[parameter] == value
        with pytest.raises(
            KitError, match=rf"{path} follows the timetable {method.schedule.name}.*schedule\."
        ):
            resolve(RunSpec(name, overrides={path: value}))


def test_override_names_what_is_wrong():
    with pytest.raises(KitError, match=r"this method has no weight.*attack\.loss"):
        kit.METHODS["at"].override("weight.slope", 3.0)
    with pytest.raises(KitError, match=r"no parameter of sigmoid 'slop'.*Did you mean 'slope'"):
        kit.METHODS["mail-at"].override("weight.slop", 3.0)
    with pytest.raises(KitError, match=r"sigmoid\.slope=-1\.0 is out of range; it must be above 0"):
        kit.METHODS["mail-at"].override("weight.slope", -1)


def test_configurations_are_json_and_tell_rows_apart():
    texts = {
        name: json.dumps([method.config(), method.burn_in], sort_keys=True)
        for name, method in kit.METHODS.items()
    }
    for name, text in texts.items():
        assert json.loads(text)[0] == kit.METHODS[name].config(), (
            "nothing is lost on the way through JSON"
        )
    same = {text: [n for n, t in texts.items() if t == text] for text in texts.values()}
    assert all(len(names) == 1 for names in same.values()), [
        names for names in same.values() if len(names) > 1
    ]


def test_controls_stand_between_opposite_corners_alone():
    assert controls_between("clirat", "mail-at") == ("mail-at-printed", "clirat-x3")
    assert controls_between("mail-mart", "clir-mart") == ("mail-mart-mean", "clir-mart-x3")
    for pair in (("clirat", "mail-at-printed"), ("clirat", "clirat"), ("clirat", "mail-trades")):
        assert controls_between(*pair) == ()


#: What the papers and their code print, row by row: the hyper-parameters, the epochs of burn-in out
#: of 120, and the passes that one batch takes, clean ones as 0 and attacked ones as 1.
GAUSSIAN, UNIFORM = (
    {"attack.loss": "ce", "attack.init": "gaussian"},
    {"attack.loss": "ce", "attack.init": "uniform"},
)
OWN = {"attack.init": "gaussian"}
KL = {"attack.loss": "kl", "attack.init": "gaussian"}
STEEP = {"weight.slope": 10.0, "weight.bias": -0.5}
FLAT = {"weight.slope": 2.0, "weight.bias": 0.0}
THREE = {"normaliser.scale": 3.0}
COSTS = {"loss.protected": 0, "loss.cost": 10.0}
PLAIN = {"weight.slope": 1.0, "weight.offset": 0.0}
MR = {"criterion.tau": 2.0, "criterion.similarity": True}
VIR, VIR_T = (
    {"criterion.alpha": 7.0, "criterion.gamma": 10.0},
    {"criterion.alpha": 8.0, "criterion.gamma": 3.0},
)
PRINTED = {
    "std": ({}, 0, [0]),
    "at": (GAUSSIAN, 0, [1]),
    "adv": (GAUSSIAN, 0, [0, 1]),
    "trades": (KL | {"loss.beta": 6.0}, 0, [1]),
    "mart": (GAUSSIAN | {"loss.beta": 5.0}, 0, [1]),
    "fat": (
        UNIFORM | {"attack.omega": 0.001, "schedule.first": 50 / 120, "schedule.second": 90 / 120},
        0,
        [1],
    ),
    "at-awp": (UNIFORM | {"schedule.until": 0.0, "schedule.gamma": 0.01}, 0, [1]),
    "trades-awp": (
        KL | {"loss.beta": 6.0, "schedule.until": 10 / 200, "schedule.gamma": 0.005},
        0,
        [1],
    ),
    "gairat-piecewise": (
        UNIFORM
        | {
            "weight.slope": 5.0,
            "schedule.shift": -1.0,
            "schedule.second": -2.0,
            "schedule.third": -2.5,
        },
        59,
        [1],
    ),
    "gairat-linear": (
        UNIFORM | {"weight.slope": 5.0, "schedule.start": 5.0, "schedule.end": -1.0},
        59,
        [1],
    ),
    "mail-at-released": (GAUSSIAN | STEEP | THREE, 76, [1]),
    "mail-trades-released": (KL | FLAT | THREE | {"loss.beta": 5.0}, 76, [1]),
    "mail-mart-released": (GAUSSIAN | FLAT | THREE | {"loss.beta": 6.0}, 76, [1]),
    "gairat": (UNIFORM | {"weight.shift": -1.0, "weight.slope": 5.0}, 59, [1]),
    **dict.fromkeys(("mail-at", "mail-at-nat", "mail-at-dif"), (GAUSSIAN | STEEP | THREE, 75, [1])),
    "mail-trades": (KL | FLAT | THREE | {"loss.beta": 5.0}, 75, [1]),
    "mail-mart": (GAUSSIAN | FLAT | THREE | {"loss.beta": 6.0}, 75, [1]),
    "clirat": (GAUSSIAN | STEEP, 75, [1]),
    "mail-trades-mean": (KL | FLAT | {"loss.beta": 5.0}, 75, [1]),
    "mail-mart-mean": (GAUSSIAN | FLAT | {"loss.beta": 6.0}, 75, [1]),
    "clirat-x3": (GAUSSIAN | STEEP | THREE, 75, [1]),
    "clir-trades-x3": (KL | FLAT | THREE | {"loss.beta": 5.0}, 75, [1]),
    "clir-mart-x3": (GAUSSIAN | FLAT | THREE | {"loss.beta": 6.0}, 75, [1]),
    "mail-trades-nat": (KL | FLAT | THREE | {"loss.beta": 5.0}, 75, [1]),
    "mail-mart-nat": (GAUSSIAN | FLAT | THREE | {"loss.beta": 6.0}, 75, [1]),
    "mail-at-logit": (GAUSSIAN | STEEP | THREE, 75, [1]),
    "mail-at-burn-in-74": (GAUSSIAN | STEEP | THREE, 74, [1]),
    "mail-at-unit-noise": ({"attack.loss": "ce", "attack.init": "unit"} | STEEP | THREE, 75, [1]),
    "mail-trades-eq10": (KL | FLAT | THREE | {"loss.beta": 5.0}, 75, [1]),
    "clirat-from-x": ({"attack.loss": "ce", "attack.init": "none"} | STEEP, 75, [1]),
    "gairat-lps": (UNIFORM | {"weight.shift": -1.0, "weight.slope": 5.0}, 59, [1]),
    "mr-wmmr-literal": (GAUSSIAN | THREE | MR | {"weight.alpha": 1.0}, 75, [1]),
    "vir-at-mean": (GAUSSIAN | VIR | PLAIN | {"weight.offset": 0.007}, 75, [1]),
    **dict.fromkeys(
        ("vir-trades-mean", "trades-scaled"),
        (KL | VIR_T | PLAIN | {"weight.offset": 1.6, "loss.beta": 5.0}, 75, [1]),
    ),
    "clirat-printed": (GAUSSIAN | STEEP, 0, [1]),
    "clirat-burn-in-30": (GAUSSIAN | STEEP, 30, [1]),
    **{
        f"vir-at-burn-in-{epochs}": (GAUSSIAN | VIR | PLAIN | {"weight.offset": 0.007}, epochs, [1])
        for epochs in (0, 30)
    },
    "clir-trades": (KL | FLAT | {"loss.beta": 5.0}, 75, [1]),
    "clir-mart": (GAUSSIAN | FLAT | {"loss.beta": 6.0}, 75, [1]),
    **{
        f"clirat-drop-{name}": (GAUSSIAN | STEEP | THREE | {"select.which": which}, 75, [1])
        for name, which in (
            ("single", "single"),
            ("multiple", "multiple"),
            ("matched", "multiple-matched"),
            ("random", "random"),
        )
    },
    "gairat-sigmoid": (UNIFORM | {"weight.slope": 5.0, "weight.bias": -0.2}, 59, [1]),
    "gairat-discrete": (UNIFORM | {"weight.slope": 5 / 11, "weight.offset": 6 / 11}, 59, [1]),
    "gair-mart": (UNIFORM | {"weight.shift": -1.0, "weight.slope": 5.0, "loss.beta": 6.0}, 59, [1]),
    "gair-trades": (
        KL
        | {
            "second_attack.loss": "margin",
            "second_attack.init": "gaussian",
            "weight.shift": -1.0,
            "weight.slope": 5.0,
            "loss.beta": 6.0,
        },
        59,
        [1],
    ),
    "ewat": (GAUSSIAN, 0, [1]),
    "wmmr": ({"attack.init": "uniform", "weight.alpha": 0.5}, 0, [1]),
    "wmmr-mr": (GAUSSIAN | THREE | {"weight.alpha": 2.0}, 75, [1]),
    "wmmr-trades": (KL | {"weight.alpha": 2.0, "loss.beta": 5.0}, 0, [1]),
    "mr-mail": (GAUSSIAN | STEEP | THREE | MR, 75, [1]),
    "mr-mail-nosim": (GAUSSIAN | STEEP | THREE | MR | {"criterion.similarity": False}, 75, [1]),
    "mr-mail-literal": (GAUSSIAN | STEEP | THREE | MR, 75, [1]),
    "mr-mail-alg1": (GAUSSIAN | STEEP | THREE | MR | {"weight.bias": 0.5}, 75, [1]),
    "mr-wmmr": (GAUSSIAN | THREE | MR | {"weight.alpha": 1.0}, 75, [1]),
    **dict.fromkeys(
        ("vir-at", "at-scaled"), (GAUSSIAN | VIR | PLAIN | {"weight.offset": 0.007}, 75, [1])
    ),
    "vir-at-sv": (GAUSSIAN | VIR | PLAIN, 75, [1]),
    "vir-at-sd": (GAUSSIAN | PLAIN, 75, [1]),
    "vir-trades": (KL | VIR_T | PLAIN | {"weight.offset": 1.6, "loss.beta": 5.0}, 75, [1]),
    "vir-trades-sv": (KL | VIR_T | PLAIN | {"loss.beta": 5.0}, 75, [1]),
    "vir-trades-sd": (KL | PLAIN | {"loss.beta": 5.0}, 75, [1]),
    "mail-at-printed": (GAUSSIAN | STEEP, 75, [1]),
    "mail-trades-2021": (GAUSSIAN | FLAT | THREE | {"loss.beta": 5.0}, 75, [1]),
    "csa-halves": (OWN | COSTS, 0, {1: [0], 60: [0], 120: [1]}),
    "csa-attack-first": (OWN | COSTS, 0, [0, 1]),
    "csa-ce": (GAUSSIAN | COSTS, 0, [0, 1]),
    "csa-fgsm": (COSTS, 0, [0, 1]),
    "cse-adv-halves": (
        OWN | COSTS | {"regulariser.strength": 20.0},
        0,
        {1: [0], 60: [0], 120: [1]},
    ),
    "cse-l1l2": (COSTS | {"regulariser.strength": 0.01, "regulariser.layers": 1}, 0, [0]),
    "cse-kurtosis": (COSTS | {"regulariser.strength": 0.01, "regulariser.layers": 1}, 0, [0]),
    "csa": (OWN | COSTS, 0, [0, 1]),
    "csa-l2": (OWN | COSTS | {"regulariser.strength": 0.01}, 0, [0, 1]),
    "cse": (COSTS | {"regulariser.strength": 20.0}, 0, [0]),
    "cse-adv": (OWN | COSTS | {"regulariser.strength": 20.0}, 0, [0, 1]),
}


@pytest.mark.parametrize("name", kit.METHODS)
def test_settings_are_the_printed_ones(name):
    """All of them, and no more: a row that never attacks has no settings of an attack."""
    assert name in PRINTED, f"add '{name}' to PRINTED: settings, burn-in of 120 epochs, stages"
    method = kit.METHODS[name]
    parameters, burn_in, passes = PRINTED[name]
    assert method.hyper_parameters() == parameters
    assert round(method.burn_in * 120) == burn_in
    for epoch in (1, 60, 120):
        assert list(method.stages(epoch, 120)) == (
            passes[epoch] if isinstance(passes, dict) else passes
        )


#: The quantity that each reweighting row weighs by; MAIL-AT's for the rows that leave examples out.
CRITERION = {
    "gairat": "kappa",
    "mail-at": "pm",
    "mail-at-nat": "pm-nat",
    "mail-at-dif": "pm-dif",
    "mail-trades": "pm",
    "mail-mart": "pm",
    "clirat": "cl-pm",
    **dict.fromkeys(
        ("clirat-printed", "clirat-from-x", "clirat-x3", "clir-trades-x3", "clir-mart-x3"), "cl-pm"
    ),
    **dict.fromkeys(("mail-trades-mean", "mail-mart-mean", "mail-trades-eq10"), "pm"),
    **dict.fromkeys(("mail-at-burn-in-74", "mail-at-unit-noise"), "pm"),
    **dict.fromkeys(("mail-trades-nat", "mail-mart-nat"), "pm-nat"),
    "mail-at-logit": "logit-margin",
    "gairat-lps": "lps",
    "mr-wmmr-literal": "mr-literal",
    "clirat-burn-in-30": "cl-pm",
    **dict.fromkeys(("vir-at-burn-in-0", "vir-at-burn-in-30"), "vir"),
    "vir-at-mean": "vir",
    "clir-trades": "cl-pm",
    "clir-mart": "cl-pm",
    **{f"clirat-drop-{name}": "pm" for name in ("single", "multiple", "matched", "random")},
    **dict.fromkeys(("mail-at-released", "mail-trades-released", "mail-mart-released"), "pm"),
    **dict.fromkeys(("gairat-piecewise", "gairat-linear"), "kappa"),
    **dict.fromkeys(("gairat-sigmoid", "gairat-discrete", "gair-mart", "gair-trades"), "kappa"),
    "ewat": "entropy",
    **dict.fromkeys(
        ("wmmr", "wmmr-mr", "wmmr-trades", "mail-at-printed", "mail-trades-2021"), "pm"
    ),
    **dict.fromkeys(("mr-mail", "mr-mail-alg1", "mr-wmmr"), "mr"),
    "mr-mail-literal": "mr-literal",
    **dict.fromkeys(("vir-at", "at-scaled"), "vir"),
    "vir-at-sv": "s-v",
    "vir-at-sd": "s-d",
    "vir-trades-sd": "s-d",
}
#: Rows that run the criterion with settings of their own.
VARIED = {
    "mr-mail-nosim": ("mr", {"similarity": False}),
    **dict.fromkeys(
        ("vir-trades", "vir-trades-mean", "trades-scaled"), ("vir", {"alpha": 8.0, "gamma": 3.0})
    ),
    "vir-trades-sv": ("s-v", {"alpha": 8.0, "gamma": 3.0}),
}


@pytest.mark.parametrize("name", kit.METHODS)
def test_rows_weigh_by_the_printed_quantity(name):
    """By its score, turned into weights with the row's own functions; a row without one weighs
    nothing.
    """
    method, seen = kit.METHODS[name], seen_of()
    criterion, settings = VARIED.get(name, (CRITERION.get(name), {}))
    assert (method.weight is None) == (criterion is None), f"add '{name}' to CRITERION"
    if criterion is not None:
        score = kit.CRITERIA[criterion].but(**settings).score(seen)
        expected = method.normaliser(method.weight(score))
        if method.select is not None:
            expected = expected * method.select(seen)
        torch.testing.assert_close(method.weigh(seen_of()), expected)


def test_what_a_criterion_reads_and_its_sign_are_settings():
    """Two rows that differ in nothing else are two runs."""
    mail = kit.METHODS["mail-at"]
    turned = dataclasses.replace(mail.criterion, safe_end=-1)
    moved = dataclasses.replace(mail.criterion, reads=("probs_nat", "y"))
    configs = [
        mail.but("t", "s", criterion=criterion).config()
        for criterion in (mail.criterion, turned, moved)
    ]
    assert configs[0] == mail.config() and all(configs.count(config) == 1 for config in configs)


def test_a_title_is_no_setting():
    at = kit.METHODS["at"]
    assert at.but("another title", "another source").config() == at.config()
