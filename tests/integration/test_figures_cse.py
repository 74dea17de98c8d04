"""CSE's γ and Theorem 1, against second implementations and planted facts."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import kit
from kit.core.errors import KitError
from kit.figures.base import FigureData
from kit.figures.csa_cse_cost import count_epochs_to_loss, decide_training_cost, share_of_last_fifth
from kit.figures.csa_cse_min_max import correlate, decide_min_max_robustness, stretch_sizes
from kit.figures.csa_cse_stages import draw_training_stages
from kit.figures.csa_cse_strength import (
    choose_strength,
    decide_fuzziness_strength,
    group_by_strength,
)
from kit.figures.csa_cse_theorem import (
    binary_gradients,
    decide_theorem,
    largest_p,
    uniform_gradients,
)
from kit.figures.style import styled
from kit.figures.table import FIGURES
from tests.helpers.intervals import over_seeds

STRENGTH = "regulariser.strength"

#: Accuracy gained, with its interval.
UP, LITTLE, NONE = (0.4, 0.3, 0.5), (0.1, 0.05, 0.15), (0.0, -0.02, 0.02)


# ------------------------------------------------------------------------------------------------ γ


def test_facts_over_gamma(tiny_run):
    """A γ of 0 and a large one, two seeds: Eq. 8 over all parameters, written out in NumPy."""
    runs = [
        tiny_run("cse", seed=seed, **{STRENGTH: gamma}) for gamma in (300.0, 0.0) for seed in (1, 0)
    ]
    drawing = FIGURES["fuzziness-strength"].make(runs, n=20)
    facts = drawing.facts
    assert (facts["values"], facts["seeds"], facts["n"]) == ([0.0, 300.0], 2, 20)
    for gamma, (found, low, high) in zip(facts["values"], facts["fuzziness"], strict=True):
        blur = []
        for run in runs:
            if run.plan.method.hyper_parameters()[STRENGTH] == gamma:
                state = run.model().state_dict()
                w = np.concatenate([state[f"{i}.weight"].double().ravel() for i in (0, 2)])
                rho = 1 / (1 + np.exp(np.abs(w)))
                blur.append(-(rho * np.log(rho) + (1 - rho) * np.log(1 - rho)).mean())
        assert found == pytest.approx(np.mean(blur), abs=1e-6) and low <= found <= high
    assert facts["fuzziness"][1][0] < facts["fuzziness"][0][0], "the term lowers what it weighs"
    assert facts["gain"]["pgd20"][0][0] == 0 and facts["n_validation"] == 60
    right = {
        (name, gamma): np.array(
            [
                ~kit.evaluate(run, [name], n=20, quiet=True).attrs["examples"][name]["broken"]
                for run in runs
                if run.plan.method.hyper_parameters()[STRENGTH] == gamma
            ],
            dtype=float,
        )
        for name in ("pgd20", "square")
        for gamma in facts["values"]
    }
    gained = {name: right[name, 300.0] - right[name, 0.0] for name in ("pgd20", "square")}
    expected = over_seeds((gained["pgd20"] - gained["square"]).tolist())
    assert facts["pgd20 less square"][1] == pytest.approx(expected)


def test_the_rule_takes_the_largest_gamma_that_costs_nothing():
    worse = (-0.2, -0.3, -0.1)
    wide, alive = (-0.6, -1.0, 0.6), [0, 0, 0, 0]
    assert choose_strength([0, 1, 5, 20], [NONE, NONE, UP, NONE], alive) == 20
    assert choose_strength([0, 1, 5, 20], [NONE, NONE, worse, NONE], alive) == 1, "beyond a loss"
    assert choose_strength([0, 1, 5, 20], [NONE, NONE, wide, NONE], alive) == 20
    assert choose_strength([0, 1, 5, 20], [NONE, NONE, wide, NONE], [0, 0, 1, 0]) == 1, "dead"
    assert choose_strength([0], [NONE], [0]) == 0


@pytest.mark.parametrize(
    "pgd, square, verdict",
    [
        (UP, NONE, "holds"),
        (UP, LITTLE, "holds"),
        (LITTLE, UP, "fails"),
        (UP, UP, "undecided"),
        (NONE, NONE, "undecided"),
        (LITTLE, (0.1, -0.1, 0.3), "undecided"),
    ],
)
def test_hidden_gradients_show_where_no_gradient_is_followed(pgd, square, verdict):
    """Robustness that Square confirms is real; what PGD alone sees is not."""
    zero, middle = (0.0, 0.0, 0.0), pgd[0] - square[0]
    half = math.hypot(pgd[2] - pgd[0], square[2] - square[0])
    facts = {
        "values": [0.0, 5.0],
        "chosen": 5.0,
        "n": 100,
        "seeds": 3,
        "gain": {"pgd20": [zero, pgd], "square": [zero, square]},
        "pgd20 less square": [zero, (middle, middle - half, middle + half)],
    }
    [claim] = decide_fuzziness_strength(FigureData(facts))
    assert (claim.verdict, claim.number) == (verdict, 85)


def test_runs_that_do_not_compare_are_refused(tiny_run):
    cse, other = tiny_run("cse"), tiny_run("cse", seed=1, **{STRENGTH: 2.0})
    for runs, words in (
        ([cse, tiny_run("std")], "such as cse, not of cse, std"),
        ([cse, tiny_run("cse", **{"loss.cost": 2.0})], "differ in more than"),
        ([cse, other], "needs the same seeds"),
    ):
        with pytest.raises(KitError, match=words):
            group_by_strength(runs)


# ---------------------------------------------------------------------------------------- Theorem 1


def gradient_of(weights: torch.Tensor, x: float) -> torch.Tensor:
    """dL/dx (n,) of -log softmax(w x)_1 for weights (n, K), by autograd in float64."""
    leaf = torch.full((len(weights), 1), x, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(
        weights * leaf, torch.zeros(len(weights), dtype=torch.int64), reduction="sum"
    )
    return torch.autograd.grad(loss, leaf)[0].squeeze(1)


@pytest.mark.parametrize(("x", "p_1"), [(0.5, 0.3), (3.0, 0.05), (30.0, 0.5)])
def test_binary_side_is_the_sum_over_all_weights(x, p_1):
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6)), dtype=torch.float64)
    ones = every.sum(dim=1)
    chance, found = p_1**ones * (1 - p_1) ** (6 - ones), gradient_of(every, x)
    assert binary_gradients(6, x, p_1) == pytest.approx(
        (float(chance @ found), float(chance @ found.abs()))
    )


def test_uniform_side_is_a_mean_of_gradients():
    mean, size = uniform_gradients(10, 3.0, 20_000)
    weights = torch.rand(200_000, 10, dtype=torch.float64, generator=torch.manual_seed(5))
    found = gradient_of(weights, 3.0)
    for (middle, low, high), expected in ((mean, found.mean()), (size, found.abs().mean())):
        assert low < middle < high and abs(middle - float(expected)) < 1.5 * (high - low)


def test_where_the_inequality_ends():
    """At p_1 = 0.03 it holds and at 0.05 it does not, for K = 10 and x = 3."""
    uniform = uniform_gradients(10, 3.0, 20_000)[0][0]
    assert binary_gradients(10, 3.0, 0.03)[0] < uniform < binary_gradients(10, 3.0, 0.05)[0]
    assert 0.03 < largest_p(10, 3.0, uniform) < 0.05
    assert largest_p(10, 3.0, math.inf) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "sides, verdict",
    [((0.10, 0.15), "holds"), ((0.10, 0.25), "fails"), ((0.10, 0.20), "undecided")],
)
def test_theorem_holds_only_where_it_holds_at_every_p(sides, verdict):
    facts = {
        "classes": 10,
        "x": 3.0,
        "draws": 9,
        "uniform": (0.2, 0.19, 0.21),
        "at": {0.03: (sides[0], 0.0), 0.05: (sides[1], 0.0)},
    }
    [claim] = decide_theorem(FigureData(facts))
    assert (claim.verdict, claim.number) == (verdict, 91)


# ------------------------------------------------------------------------- cost and convergence


def cost(data="digits", *, passes=(3, 26), epochs=(30, 20), final=(0.3, 0.2), moving=(0.01, 0.01)):
    """Facts of a figure in which (CSE, ADV) cost so many passes, and (CSE, STD) end like this."""
    methods = {
        name: {"epochs_to_level": e, "final_ce": ce, "still_moving": m}
        for name, e, ce, m in zip(("cse", "std"), epochs, final, moving, strict=True)
    }
    methods["cse"]["passes"] = passes[0]
    methods["adv"] = {"passes": passes[1]}
    return decide_training_cost(FigureData({"data": data, "methods": methods, "level": 0.3}))


@pytest.mark.parametrize(
    "planted, faster, longer",
    [
        ({}, "holds", "holds"),
        ({"passes": (26, 3), "epochs": (20, 30)}, "fails", "fails"),
        ({"passes": (3, 3), "epochs": (20, 20)}, "fails", "fails"),
    ],
)
def test_cost_of_a_step_and_epochs_decide(planted, faster, longer):
    """As the paper says, the reverse, and no effect at all."""
    found = [c.reading for c in cost(**planted) if c.number == 89]
    assert found == [faster, longer]


def test_convergence_is_judged_on_the_data_that_the_paper_names():
    worse = {data: [c for c in cost(data) if c.number == 79] for data in ("mnist", "cifar10")}
    assert [c.reading for c in worse["mnist"]] == ["holds"] == [c.reading for c in worse["cifar10"]]
    assert "worse" in worse["mnist"][0].claim and "both converge" in worse["cifar10"][0].claim
    assert not [c for c in cost("digits") if c.number == 79]
    for final in ((0.2, 0.3), (0.2, 0.2)):
        assert [c.reading for c in cost("mnist", final=final) if c.number == 79] == ["fails"]
    assert [c.reading for c in cost("cifar10", moving=(0.01, 0.2)) if c.number == 79] == ["fails"]


def test_epochs_are_counted_to_the_loss_at_which_the_slower_ends():
    falling = np.array([2.0, 1.0, 0.5, 0.2, 0.1])
    assert [count_epochs_to_loss(falling, level) for level in (2.0, 0.5, 0.15, 0.01)] == [
        1,
        3,
        5,
        5,
    ]
    assert share_of_last_fifth(falling, 2.1) == pytest.approx(0.1 / 2.0)
    assert share_of_last_fifth(falling[::-1], 2.1) > 1, "a loss that rises has not converged"
    assert share_of_last_fifth(np.array([3.0]), 2.0) == 1


def test_facts_of_cost_are_those_of_the_runs(tiny_run):
    runs = {method: tiny_run(method) for method in FIGURES["training-cost"].methods}
    facts = FIGURES["training-cost"].make(runs).facts
    passes = {method: found["passes"] for method, found in facts["methods"].items()}
    steps = runs["adv"].plan.recipe.steps
    assert passes == {"std": 3, "cse": 3, "adv": 3 + 2 * steps + 3}
    ends = {method: runs[method].history.ce.iloc[-1] for method in ("std", "cse")}
    assert facts["level"] == max(ends.values())
    slower = max(ends, key=ends.get)
    assert facts["methods"][slower]["epochs_to_level"] >= min(
        found["epochs_to_level"] for found in facts["methods"].values() if "final_ce" in found
    )


# ------------------------------------------------------------------------- Propositions 1 and 2


def shapes(over, along, changed):
    """Facts of a figure with these correlations and this effect of a changed shape."""
    both = {"below_0.05": over, "max": 0.5}
    way = {"below_0.05": along, "max": 0.5}
    effect = {"std": changed, "adv": UP}
    facts = {"over_networks": both, "along_training": way, "more_less_min_max": effect}
    return decide_min_max_robustness(FigureData(facts))


@pytest.mark.parametrize(
    "planted, readings",
    [
        ((0.6, 0.4, UP), ["holds", "holds", "holds"]),
        ((-0.6, -0.4, (-0.4, -0.5, -0.3)), ["fails", "fails", "fails"]),
        ((0.0, 0.0, NONE), ["fails", "fails", "undecided"]),
        ((None, 0.4, UP), ["holds", "holds", "holds"]),
    ],
)
def test_min_max_must_go_with_robustness_and_bring_it(planted, readings):
    claims = shapes(*planted)
    assert [c.reading for c in claims] == readings
    assert [c.number for c in claims] == [90, 90, 105]


def test_a_planted_order_of_networks_is_found():
    found = [{"below_0.05": x, "max": 1 - x, "protected": x**2} for x in (0.1, 0.4, 0.2, 0.9)]
    assert correlate(found, "below_0.05") == pytest.approx(1)
    assert correlate(found, "max") == pytest.approx(-1)
    assert correlate([one | {"max": 1.0} for one in found], "max") is None


def test_stretched_sizes_keep_signs_and_norms_and_are_more_min_max():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(4, 2, 3))
    before = [layer.weight.detach().clone() for layer in model]
    stretch_sizes(model, 2.0)
    for old, layer in zip(before, model, strict=True):
        new = layer.weight.detach()
        assert torch.equal(old.sign(), new.sign()) and torch.isclose(old.norm(), new.norm())
        assert new.abs().median() < old.abs().median() and new.abs().max() > old.abs().max()
        expected = old * old.abs()
        assert torch.allclose(new, expected * (old.norm() / expected.norm()))
    stretch_sizes(model, 0.5)
    assert all(torch.allclose(old, layer.weight) for old, layer in zip(before, model, strict=True))


def test_facts_of_min_max_are_those_of_the_runs(tiny_run):
    runs = {method: tiny_run(method) for method in FIGURES["min-max-robustness"].methods}
    facts = FIGURES["min-max-robustness"].make(runs, n=20).facts
    final = runs["csa"].final
    mine = final["test_y"] == 0
    right = (final["test_logits_adv"][mine].argmax(1) == 0).mean()
    assert facts["ends"]["csa"]["protected"] == pytest.approx(right)
    sizes = np.concatenate(
        [runs["csa"].model().state_dict()[f"{i}.weight"].abs().ravel() for i in (0, 2)]
    )
    assert facts["ends"]["csa"]["max"] == pytest.approx(sizes.max())
    assert facts["ends"]["csa"]["below_0.05"] == pytest.approx((sizes < 0.05).mean())
    assert {len(found) for found in facts["robust"].values()} == {len(facts["exponents"])}


# ---------------------------------------------------------------------------------- training stages


@pytest.mark.parametrize("count", [2, 6, 10])
@pytest.mark.parametrize("names", [[*"0123456789"], ["airplane", "automobile", *"bcdefghi"]])
def test_names_of_classes_that_are_words_do_not_meet(names, count):
    """Of neighbours among the images neither the words above nor those below overlap, and none of
    them reaches into another row.
    """
    y, said = torch.arange(count) % 2, (torch.arange(count) + 1) % 2
    images = torch.zeros(count, 3, 8, 8)
    data = FigureData(
        {"cost": 10.0, "fuzziness": {"conv": {"initial": 0.69, "last": 0.68}}},
        "",
        extras={
            "images": {"1  clean": images, "2  attacked": images},
            "said": {"1  clean": said, "2  attacked": said},
            "y": y,
            "losses": {"ce": np.ones(count), "cost": np.ones(count)},
            "classes": names,
            "protected": 0,
        },
    )
    with styled():
        drawing = draw_training_stages(data)
        drawing.canvas.draw()
    shown = [axes for axes in drawing.axes if axes.get_images()][: 2 * count]
    words = [axes.title for axes in shown[:count]] + [axes.xaxis.label for axes in shown]
    boxes = [word.get_window_extent() for word in words]
    assert all(word.get_text() for word in words) and len(words) == 3 * count
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
