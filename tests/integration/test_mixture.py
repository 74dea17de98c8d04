"""The Gaussian mixture:

closed forms against integrals, samples, attacks and brute force; its images; trained networks.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats
from torch import nn

import kit
from kit.attacks.projected_gradient_descent import pgd
from kit.core.errors import KitError
from kit.core.threat import Threat
from kit.data.bundled import MIXTURE_SIZES
from kit.data.datasets import load_dataset
from kit.data.gaussian_mixture import (
    MIXTURE,
    MIXTURE_CLASSES,
    Mixture,
    best_offset,
    linear_rule,
    mixture_images,
    normal_cdf,
    optimal_risks,
    risks,
    sample_mixture,
)
from kit.evaluation.mixture_risks import class_risks
from kit.experiments.recipes import RECIPE_FIELDS, RECIPES
from kit.figures.table import FIGURES
from kit.methods.criteria import confused_label_margin, confused_labels, probabilistic_margin

quick = settings(max_examples=40, deadline=None)
#: Easy and hard, even and uneven, of several sizes.
MIXTURES = [
    MIXTURE,
    Mixture(ratio=1.0),
    Mixture(16, 0.5, 0.8, 3.0),
    Mixture(9, 1.5, 2.0, 1.2),
    Mixture(4, 0.6, 0.7, 5.0),
]
NORMS = ("linf", "l2")
MIXED = pytest.mark.parametrize("mixture", MIXTURES, ids=str)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rule(mixture: Mixture, seed: int) -> tuple[np.ndarray, float]:
    """Some (w, b): mostly along θ, so that risks are far from 0 and 1."""
    rng = np.random.default_rng(seed)
    w = 1 + 0.6 * rng.standard_normal(mixture.dimension)
    return w, float(0.1 * rng.standard_normal() * w.sum() * mixture.eta)


def fair_eps(mixture: Mixture, norm: str) -> float:
    """Half the way from a mean to the middle, in that norm."""
    return mixture.eta / 2 * (math.sqrt(mixture.dimension) if norm == "l2" else 1)


def mean_risk(mixture: Mixture, b: float, eps: float, norm: str) -> float:
    return float(risks(mixture, np.ones(mixture.dimension), b, eps, norm).mean())


# ------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("z", [-30.0, -8.0, -1.0, 0.0, 0.3, 6.0])
def test_normal_distribution(z):
    assert normal_cdf(z) == pytest.approx(stats.norm.cdf(z), rel=1e-12, abs=0)


@MIXED
@pytest.mark.parametrize("norm", NORMS)
def test_risks_are_an_integral_over_each_class(mixture, norm):
    """The density of ⟨w, x⟩ + b on the wrong side of the perturbed boundary, with every norm
    written out.
    """
    w, b = rule(mixture, 1)
    eps = 0.7 * fair_eps(mixture, norm)
    shift = eps * (sum(abs(v) for v in w) if norm == "linf" else math.sqrt(sum(v * v for v in w)))
    for k, y in ((0, -1), (1, 1)):
        deviation = (
            (mixture.ratio if y == -1 else 1) * mixture.sigma * math.sqrt(sum(v * v for v in w))
        )
        mean = y * mixture.eta * sum(w) + b
        density = stats.norm(mean, deviation).pdf
        wrong = (mean - 12 * deviation, shift) if y == 1 else (-shift, mean + 12 * deviation)
        expected, _ = integrate.quad(density, *wrong, points=[mean], epsabs=1e-13)
        assert risks(mixture, w, b, eps, norm)[k] == pytest.approx(expected, abs=1e-10)


@MIXED
def test_risks_are_what_samples_suffer(mixture):
    """200,000 points, natural and moved to the nearest wrong side: within four standard errors."""
    w, b = rule(mixture, 2)
    n = 200_000
    x, labels = sample_mixture(mixture, n, stream())
    y = 2 * labels.double().numpy() - 1
    for norm, towards in (("linf", np.sign(w)), ("l2", w / np.sqrt((w**2).sum()))):
        for size in (0.0, 0.5 * fair_eps(mixture, norm)):
            wrong = ((x.numpy() - size * y[:, None] * towards) @ w + b) * y <= 0
            for k, risk in enumerate(risks(mixture, w, b, size, norm)):
                assert wrong[labels == k].mean() == pytest.approx(
                    risk, abs=4 * math.sqrt(risk * (1 - risk) / (n / 2))
                )


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_on_a_linear_network_is_the_worst_case(norm):
    """In pixels: the margin that PGD leaves is the one that the dual norm says, and the risks
    follow. A random start would leave L2 PGD 2 % short of it after 20 steps, because it has to
    turn; against L∞ it reaches the corner from anywhere.
    """
    w, b = rule(MIXTURE, 3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    weight = torch.from_numpy(w) / MIXTURE.scale
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([-weight, weight]) / 2)
        net[1].bias.copy_(torch.tensor([-1.0, 1.0]) * (b - float(weight.sum()) / 2) / 2)
    eps, n = fair_eps(MIXTURE, norm), 20_000
    x, labels = sample_mixture(MIXTURE, n, stream(4))
    clean = mixture_images(MIXTURE, x)[:, None].double() / 255
    attacked = pgd(
        net,
        clean,
        labels,
        Threat(norm, eps * MIXTURE.scale),
        generator=stream(5),
        steps=10,
        init="uniform" if norm == "linf" else "none",
    )
    with torch.no_grad():
        before, after = (
            (net(z)[:, 1] - net(z)[:, 0]) * (2 * labels - 1) for z in (clean, attacked)
        )
    lost = eps * np.linalg.norm(w, 1 if norm == "linf" else 2)
    np.testing.assert_allclose(
        (before - after).numpy(), lost, rtol=0.1
    )  # where the border of [0, 1] stops a pixel
    assert float((before - after).mean()) == pytest.approx(lost, rel=1e-4)
    for margins, size in ((before, 0.0), (after, eps)):
        for k, risk in enumerate(risks(MIXTURE, w, b, size, norm)):
            measured = float((margins[labels == k] <= 0).double().mean())
            assert measured == pytest.approx(risk, abs=4 * math.sqrt(risk * (1 - risk) / (n / 2)))


@quick
@given(seed=st.integers(0, 10**6), factor=st.floats(1e-3, 1e3), eps=st.floats(0, 1))
def test_risks_do_not_depend_on_the_rules_scale_and_grow_with_eps(seed, factor, eps):
    w, b = rule(MIXTURE, seed)
    for norm in NORMS:
        plain = risks(MIXTURE, w, b, eps, norm)
        assert risks(MIXTURE, factor * w, factor * b, eps, norm) == pytest.approx(plain, rel=1e-9)
        assert (risks(MIXTURE, w, b, eps + 0.01, norm) > plain).all() and (
            (plain > 0) & (plain < 1)
        ).all()


# -------------------------------------------------------------------------------------- the optimum


@MIXED
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0, 1.9])
def test_the_offset_is_the_best_of_all(mixture, norm, share):
    """Against a grid over everything from "always -1" to "always +1" and a numerical minimiser
    around its best point.
    """
    eps = share * fair_eps(mixture, norm)
    b = best_offset(mixture, eps, norm)
    reach = mixture.dimension * mixture.eta + 4 * mixture.ratio * mixture.sigma * math.sqrt(
        mixture.dimension
    )
    grid = np.linspace(-2 * reach, 2 * reach, 801)
    best = grid[np.argmin([mean_risk(mixture, v, eps, norm) for v in grid])]
    step = grid[1] - grid[0]
    found = optimize.minimize_scalar(
        lambda v: mean_risk(mixture, v, eps, norm),
        bounds=(best - step, best + step),
        method="bounded",
        options={"xatol": 1e-9 * reach},
    )
    assert mean_risk(mixture, b, eps, norm) <= found.fun * (1 + 1e-12)
    assert b == pytest.approx(found.x, abs=1e-4 * reach)


@MIXED
def test_the_optimum_has_the_risks_that_xu_et_al_print(mixture):
    """Their theorem 1 with A = 2 √d η / (σ (K² - 1)), q = 2 ln K / (K² - 1); under attack η - ε
    stands for η.
    """
    if mixture.ratio == 1:
        return
    k, d = mixture.ratio, mixture.dimension
    q = 2 * math.log(k) / (k * k - 1)
    for eps in (0.0, 0.4 * mixture.eta):
        a = 2 / (k * k - 1) * math.sqrt(d) * (mixture.eta - eps) / mixture.sigma
        printed = [
            stats.norm.cdf(-k * a + math.sqrt(a * a + q)),
            stats.norm.cdf(a - k * math.sqrt(a * a + q)),
        ]
        assert risks(mixture, np.ones(d), best_offset(mixture, eps), eps) == pytest.approx(
            printed, rel=1e-9
        )


def test_equal_classes_share_the_middle():
    """K = 1 exactly, and no jump on the way there, where the textbook's formula divides 0 by 0."""
    assert best_offset(Mixture(ratio=1.0)) == 0
    slopes = [best_offset(Mixture(ratio=1 + tiny)) / tiny for tiny in (1e-3, 1e-6, 1e-9, 1e-12)]
    assert slopes == pytest.approx([slopes[0]] * 4, rel=2e-3) and slopes[0] != 0
    table = optimal_risks(Mixture(ratio=1.0), 0.15)
    np.testing.assert_allclose(table.loc["standard"], table.loc["adversarial"], rtol=1e-12)


@quick
@given(
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(NORMS),
    share=st.floats(0, 1.8),
    tilt=st.floats(0.05, 3),
)
def test_no_other_direction_is_better(seed, norm, share, tilt):
    w = 1 + tilt * np.random.default_rng(seed).standard_normal(MIXTURE.dimension)
    eps = share * fair_eps(MIXTURE, norm)
    scan = np.linspace(-3, 3, 61) * np.linalg.norm(w)
    least = min(risks(MIXTURE, w, float(b), eps, norm).mean() for b in scan)
    assert mean_risk(MIXTURE, best_offset(MIXTURE, eps, norm), eps, norm) < least


@pytest.mark.parametrize("mixture", [m for m in MIXTURES if m.ratio > 1], ids=str)
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("norm", NORMS)
def test_adversarial_training_helps_the_easy_class_and_hurts_the_hard_one(mixture, share, norm):
    """Naturally and under attack; the mean risk that each training minimises is the smaller one of
    its column.
    """
    table = optimal_risks(mixture, share * fair_eps(mixture, norm), norm)
    change = table.loc["adversarial"] - table.loc["standard"]
    assert (change.loc["-1"] > 0).all() and (change.loc["+1"] < 0).all()
    means = table.groupby("training").mean()
    assert means.natural.idxmin() == "standard" and means.robust.idxmin() == "adversarial"
    assert table.natural["adversarial", "-1"] > table.natural["adversarial", "+1"]


def test_the_table_of_the_recipe():
    """As printed in the module:

    3.0 and 7.2 %; adversarial training takes the hard class to 12.5 %.
    """
    table = optimal_risks(MIXTURE, MIXTURE.eta / 2)
    assert list(table.index) == [
        (t, c) for t in ("standard", "adversarial") for c in MIXTURE_CLASSES
    ]
    assert table.natural.round(3).tolist() == [0.072, 0.030, 0.125, 0.006]
    assert table.robust.round(3).tolist() == [0.194, 0.249, 0.291, 0.097]


# ------------------------------------------------------------------------------------------- images


@MIXED
def test_samples_have_the_mixtures_moments(mixture):
    n = 40_001
    x, labels = sample_mixture(mixture, n, stream(7))
    assert (
        x.shape == (n, mixture.dimension)
        and x.dtype == torch.float64
        and labels.dtype == torch.int64
    )
    assert labels.bincount().tolist() == [20_001, 20_000]
    for k, (mean, sigma) in enumerate(
        ((-mixture.eta, mixture.ratio * mixture.sigma), (mixture.eta, mixture.sigma))
    ):
        mine = x[labels == k]
        assert float(mine.mean()) == pytest.approx(mean, abs=4 * sigma / math.sqrt(mine.numel()))
        assert float(mine.std()) == pytest.approx(sigma, rel=4 / math.sqrt(2 * mine.numel()))
        between = torch.corrcoef(mine.T) - torch.eye(mixture.dimension)
        assert float(between.abs().max()) < 6 / math.sqrt(len(mine)), "coordinates are independent"


@MIXED
def test_images_are_an_affine_map_to_half_a_level(mixture):
    x, _ = sample_mixture(mixture, 2_000, stream(8))
    shown = mixture_images(mixture, x)
    side = math.isqrt(mixture.dimension)
    assert shown.shape == (2_000, side, side) and shown.dtype == torch.uint8
    back = (shown.double().view(len(x), -1) / 255 - 0.5) / mixture.scale
    inside = (x * mixture.scale).abs() < 0.5
    assert float((back - x)[inside].abs().max()) <= 0.5 / 255 / mixture.scale + 1e-12
    assert mixture_images(
        mixture, torch.zeros(1, mixture.dimension, dtype=torch.float64)
    ).unique().tolist() == [128]
    edges = torch.tensor([[-1e3], [1e3]], dtype=torch.float64).expand(2, mixture.dimension)
    assert mixture_images(mixture, edges).flatten(1).unique(dim=1).flatten().tolist() == [0, 255]


@quick
@given(eta=st.floats(1e-3, 50), sigma=st.floats(1e-3, 50), ratio=st.floats(1, 50))
def test_the_border_touches_few_pixels(eta, sigma, ratio):
    """Fewer than 1 in 10,000, of any mixture:

    the exact share beyond [0, 1], and of the hard class alone.
    """
    mixture = Mixture(eta=eta, sigma=sigma, ratio=ratio)
    reach = 0.5 / mixture.scale
    shares = [
        stats.norm.cdf(-(reach - eta) / s) + stats.norm.cdf(-(reach + eta) / s)
        for s in mixture.sigmas
    ]
    assert max(shares) <= 2 * stats.norm.cdf(-4) * (1 + 1e-9) < 1e-4


def test_few_pixels_of_the_data_set_are_at_the_border():
    shown = load_dataset("mixture").test.images
    assert 0 < float(((shown == 0) | (shown == 255)).double().mean()) < 1e-4


def test_the_data_set_is_the_mixture():
    """Sizes, balance, moments in the mixture's units, and its fingerprint:

    the same on every machine.
    """
    whole = load_dataset("mixture", validation=1000)
    assert (
        (len(whole.train) + len(whole.validation), len(whole.test))
        == tuple(MIXTURE_SIZES.values())
        == (5_000, 10_000)
    )
    assert whole.shape == (1, 8, 8) and whole.classes == MIXTURE_CLASSES == ("-1", "+1")
    assert whole.test.y.bincount().tolist() == [5_000, 5_000]
    for split in (whole.train, whole.test):
        x = (split.x().double().flatten(1) - 0.5) / MIXTURE.scale
        for k, mean in enumerate((-0.3, 0.3)):
            mine = x[split.y == k]
            assert float(mine.mean()) == pytest.approx(
                mean, abs=4 * MIXTURE.sigmas[k] / math.sqrt(mine.numel())
            )
            assert float(mine.std()) == pytest.approx(MIXTURE.sigmas[k], rel=0.01)
    together = torch.cat([whole.train.images, whole.validation.images, whole.test.images]).flatten(
        1
    )
    assert len(together.unique(dim=0)) == 15_000, "no image twice"
    assert (
        whole.fingerprint()
        == load_dataset("mixture", validation=1000).fingerprint()
        == "1aa68aca61d2"
    )


def test_rounding_moves_risks_less_than_chance_does():
    """By the closed form, with σ_y² + δ²/12 for σ_y², and by the same 200,000 points before and
    after rounding.
    """
    level = 1 / (255 * MIXTURE.scale)
    ones, n = np.ones(64), 200_000
    noisy = [Mixture(sigma=math.sqrt(s**2 + level**2 / 12), ratio=1.0) for s in MIXTURE.sigmas]
    for eps, b in itertools.product(
        (0.0, 0.15), (best_offset(MIXTURE), best_offset(MIXTURE, 0.15))
    ):
        for k, risk in enumerate(risks(MIXTURE, ones, b, eps)):
            moved = abs(risks(noisy[k], ones, b, eps)[k] - risk)
            assert 0 < moved < 5e-5 and moved < 0.05 * math.sqrt(risk * (1 - risk) / 5_000)
    x, labels = sample_mixture(MIXTURE, n, stream(9))
    back = (mixture_images(MIXTURE, x).double().flatten(1) / 255 - 0.5) / MIXTURE.scale
    y, b = 2 * labels - 1, best_offset(MIXTURE)
    for k in (0, 1):
        before, after = (
            float((((z.sum(dim=1) + b) * y)[labels == k] <= 0).double().mean()) for z in (x, back)
        )
        assert abs(before - after) < 0.2 * math.sqrt(before * (1 - before) / 5_000)


# --------------------------------------------------------------------------------- trained networks


@pytest.fixture(scope="module")
def trained(home):
    """The recipe in half its epochs, by standard and adversarial training, and against an L2 ball
    of as fair a size.
    """
    short, radius = {"epochs": 6, "milestones": [4, 5]}, fair_eps(MIXTURE, "l2") * MIXTURE.scale
    runs = {
        "std": ("std", short),
        "at": ("at", short),
        "l2": ("at", {"norm": "l2", "eps": radius, "epochs": 2, "milestones": [1]}),
        "raw": ("std", {"normalise": False, "epochs": 2, "milestones": [1]}),
    }
    return {
        name: kit.run(method, "mixture", overrides=changes, quiet=True)
        for name, (method, changes) in runs.items()
    }


@pytest.mark.parametrize("name", ["std", "at", "l2"])
def test_measured_risks_are_the_closed_ones(trained, name):
    """5,000 test images a class, naturally and under PGD-20: within four standard errors."""
    expected = class_risks(trained[name])
    table = kit.evaluate(trained[name], ["natural", "pgd20"], quiet=True)
    assert list(expected.index) == list(MIXTURE_CLASSES) and list(expected.columns) == [
        "natural",
        "robust",
    ]
    for column, attack in (("natural", "natural"), ("robust", "pgd20")):
        measured = kit.per_class(table, attack)
        for label in MIXTURE_CLASSES:
            risk, n = expected[column][label], int(measured.n[label])
            assert n == 5_000
            assert 1 - measured.accuracy[label] == pytest.approx(
                risk, abs=4 * math.sqrt(risk * (1 - risk) / n)
            )
    assert (expected.robust > expected.natural + 0.03).all()


def test_adversarial_training_hurts_the_hard_class_in_practice_too(trained):
    """By the closed form of the trained weights, and measured:

    -1 errs more often than after standard training, +1 less.
    """
    standard, adversarial = class_risks(trained["std"]), class_risks(trained["at"])
    change = adversarial.natural - standard.natural
    assert change["-1"] > 0.01 and change["+1"] < -0.01
    assert (
        adversarial.robust.mean() < standard.robust.mean()
        and adversarial.natural.mean() > standard.natural.mean()
    )
    measured = [
        kit.per_class(kit.evaluate(trained[name], ["natural"], quiet=True), "natural")
        for name in ("std", "at")
    ]
    assert (
        measured[1].high["-1"] < measured[0].low["-1"]
        and measured[1].low["+1"] > measured[0].high["+1"]
    )


def test_no_trained_network_beats_the_optimum(trained):
    """And the one that was trained for it comes near: within 0.025 of the least mean risk."""
    best = optimal_risks(MIXTURE, MIXTURE.eta / 2).groupby("training").mean()
    for name, column, least in (
        ("std", "natural", best.natural["standard"]),
        ("at", "robust", best.robust["adversarial"]),
    ):
        for run in (trained["std"], trained["at"]):
            assert class_risks(run)[column].mean() > least
        assert class_risks(trained[name])[column].mean() < least + 0.025


@pytest.mark.parametrize("name", ["at", "raw"])
def test_the_rule_is_the_networks(trained, name):
    """Against its parameters, taken apart by hand, and on images; with normalisation inside the
    network and without.
    """
    run = trained[name]
    w, b = linear_rule(run)
    state = {key: value.double() for key, value in run.model().state_dict().items()}
    *_, weight, bias = state.values()
    mean, std = (state[key].item() for key in ("0.mean", "0.std")) if name == "at" else (0.0, 1.0)
    per_pixel = (weight[1] - weight[0]) / std
    offset = float(bias[1] - bias[0]) - mean * float(per_pixel.sum())
    assert w == pytest.approx((per_pixel * MIXTURE.scale).numpy(), rel=1e-5)
    assert b == pytest.approx(offset + 0.5 * float(per_pixel.sum()), abs=1e-4)
    test = run.data().test
    x = (test.x().double().flatten(1).numpy() - 0.5) / MIXTURE.scale
    with torch.no_grad():
        logits = run.model()(test.x())
    np.testing.assert_allclose(x @ w + b, (logits[:, 1] - logits[:, 0]).numpy(), atol=1e-4)


def test_each_network_of_a_run_has_its_own_risks(trained):
    tables = [class_risks(trained["at"], which) for which in ("initial", "best", "last")]
    assert tables[0].natural.mean() > tables[2].natural.mean() + 0.1
    assert tables[1].robust.mean() == pytest.approx(tables[2].robust.mean(), abs=0.03)
    with pytest.raises(KitError, match="Choices: last, best, initial"):
        class_risks(trained["at"], "first")


# --------------------------------------------------------------------------------------- the recipe

#: A small version of the recipe, and another value for each of its fields.
SMALL = {
    "epochs": 3,
    "train_size": 200,
    "validation": 60,
    "milestones": [2],
    "probe": 100,
    "batch_size": 20,
}
OTHER = {
    "data": "digits",
    "model": "cnn",
    "epochs": 2,
    "batch_size": 25,
    "lr": 0.1,
    "momentum": 0.5,
    "weight_decay": 0.01,
    "milestones": [1],
    "lr_factor": 0.5,
    "norm": "l2",
    "eps": 0.02,
    "step": 0.3,
    "steps": 5,
    "augment": "crop",
    "normalise": False,
    "validation": 80,
    "train_size": 150,
    "probe": 50,
    "precision": "bf16",
    "optimizer": "adam",
    "nesterov": True,
    "schedule": "cosine",
    "warm_up": 1,
    "mean_std": [0.5, 0.25],
    "selection_steps": 5,
}


def outcome(run: kit.Run) -> tuple[bytes, ...]:
    """Parameters, and all that was seen after the last epoch."""
    arrays = run.epoch(len(run.history))
    return (
        *(value.numpy().tobytes() for value in run.model().state_dict().values()),
        *(arrays[name].tobytes() for name in sorted(arrays)),
    )


@pytest.mark.slow
def test_every_field_of_the_recipe_matters(home):
    """Each one changes the trained network or what is recorded of it."""
    # the share needs generated images: see test_generated_share.py
    assert set(OTHER) | {"generated_share"} == set(RECIPE_FIELDS)
    plain = outcome(kit.run("at", "mixture", overrides=SMALL, quiet=True))
    same = [
        field
        for field, value in OTHER.items()
        if outcome(kit.run("at", "mixture", overrides={**SMALL, field: value}, quiet=True)) == plain
    ]
    assert not same


def test_eps_is_half_of_eta_in_pixels():
    row = RECIPES["mixture"]
    assert (row.data, row.model, row.norm, row.normalise) == ("mixture", "linear", "linf", True)
    assert row.eps / MIXTURE.scale == pytest.approx(
        0.15, rel=1e-12
    ) and row.eps * 255 == pytest.approx(2.3042, abs=1e-4)


def test_with_two_classes_cl_pm_is_pm():
    """As the row's title says: one label at most is confused."""
    assert "CL-PM is PM" in RECIPES["mixture"].title
    probs = torch.randn(4_000, 2, generator=stream(10), dtype=torch.float64).mul(3).softmax(dim=1)
    y = torch.arange(4_000) % 2
    assert sorted(confused_labels(probs, y).unique().tolist()) == [0, 1]
    torch.testing.assert_close(confused_label_margin(probs, y), probabilistic_margin(probs, y))


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"eta": 0}, r"Mixture\.eta=0\.0 is out of range; it must be above 0"),
        ({"eta": -0.3}, r"Mixture\.eta=-0\.3"),
        ({"eta": math.nan}, r"Mixture\.eta=nan"),
        ({"sigma": 0.0}, r"Mixture\.sigma=0\.0 .*above 0"),
        ({"ratio": 0.99}, r"Mixture\.ratio=0\.99 .*at least 1"),
        ({"ratio": math.inf}, r"Mixture\.ratio=inf"),
        ({"dimension": 63}, r"Mixture\.dimension=63 must be a square such as 64"),
        ({"dimension": 0}, r"Mixture\.dimension=0 .*at least 1"),
        ({"dimension": 64.0}, r"Mixture\.dimension=64\.0 is float"),
        ({"eta": "much"}, r"Mixture\.eta='much' is str"),
    ],
)
def test_mixtures_that_are_none(numbers, words):
    with pytest.raises(KitError, match=words):
        Mixture(**numbers)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((np.ones(63), 0.0), r"w of shape \(63,\) must be 64 finite numbers"),
        ((np.ones((8, 8)), 0.0), r"w of shape \(8, 8\)"),
        ((np.zeros(64), 0.0), "not all 0"),
        ((np.full(64, np.nan), 0.0), "finite numbers"),
        ((np.ones(64), math.nan), "b=nan is out of range"),
        ((np.ones(64), 0.0, -0.1), r"eps=-0\.1 is out of range"),
        ((np.ones(64), 0.0, math.inf), "eps=inf"),
        ((np.ones(64), 0.0, 0.1, "l1"), "no value of norm 'l1'.*l2, linf"),
    ],
)
def test_rules_and_threats_that_are_none(arguments, words):
    with pytest.raises(KitError, match=words):
        risks(MIXTURE, *arguments)


def test_an_eps_beyond_the_means_has_no_optimum():
    for eps in (0.3, 0.31):
        with pytest.raises(KitError, match=rf"eps={eps:g} leaves nothing.*below 0\.3 against linf"):
            best_offset(MIXTURE, eps)
    with pytest.raises(KitError, match=r"below 2\.4 against l2"):
        optimal_risks(MIXTURE, 2.5, "l2")
    assert math.isfinite(best_offset(MIXTURE, 0.2999))
    with pytest.raises(KitError, match="no value of norm"):
        best_offset(MIXTURE, 0.1, "linfty")
    with pytest.raises(KitError, match=r"eps=-1\.0"):
        best_offset(MIXTURE, -1)
    with pytest.raises(KitError, match="n=-1"):
        sample_mixture(MIXTURE, -1)


@pytest.mark.parametrize("changes", [{"model": "cnn"}, {"data": "digits"}])
def test_other_runs_have_no_closed_form(changes):
    run = kit.run(
        "std",
        "mixture",
        overrides={**SMALL, "epochs": 1, "milestones": [], "steps": 1, **changes},
        quiet=True,
    )
    for ask in (class_risks, linear_rule):
        with pytest.raises(KitError, match="closed form is known for model=linear on data=mixture"):
            ask(run)


# --------------------------------------------------------------------------------------- the figure


def test_the_figures_risks_are_those_of_the_modules(trained):
    """Each bar and mark recounted; one seed decides nothing but the theorem's closed form."""
    drawing = FIGURES["two-gaussians"].make([trained["std"], trained["at"]])
    best = optimal_risks(MIXTURE, MIXTURE.eta / 2)
    for kind, attack in (("natural", "natural"), ("robust", "pgd20")):
        for training, name in (("standard", "std"), ("adversarial", "at")):
            error = 1 - kit.per_class(kit.evaluate(trained[name], [attack], quiet=True), attack)
            for which, label in (("harder", "-1"), ("easier", "+1")):
                found = drawing.facts["risks"][kind][f"{training}, {which}"]
                assert found["optimum"] == pytest.approx(best.loc[(training, label), kind])
                assert found["weights"] == [class_risks(trained[name]).loc[label, kind]]
                assert found["measured"][0] == pytest.approx(error.accuracy[label])
    assert [claim.verdict for claim in drawing.claims] == ["holds", "undecided", "undecided"]


def test_the_figure_wants_both_trainings_of_each_seed(trained, tiny_run, tmp_path):
    with pytest.raises(KitError, match="runs of std and at with the same seeds"):
        kit.draw("two-gaussians", trained["std"], folder=tmp_path)
    with pytest.raises(KitError, match=r"recipe mixture alone, such as kit\.run"):
        kit.draw("two-gaussians", tiny_run("at"), folder=tmp_path)
