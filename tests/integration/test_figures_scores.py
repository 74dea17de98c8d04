"""Scores against the distance to the boundary, and pairs of equal margin.

Pairings and distances are found again by brute force, and the rules tried on planted data.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import kit
from kit.core.errors import KitError
from kit.core.threat import Threat
from kit.figures import clirat_matched_pairs as pairs
from kit.figures import scores_and_distance as scores
from kit.figures.base import FigureData
from kit.figures.table import FIGURES

N = 60


# ------------------------------------------------------------------------------------ matched pairs


@pytest.mark.parametrize("seed", range(5))
def test_no_pairing_is_closer(seed):
    """Against every way to pair five with four, those farther apart than the width left out."""
    random = np.random.default_rng(seed)
    one, several, width = random.random(5), random.random(4), 0.2
    found = pairs.match_margins(one, several, width)

    def cost(pairing) -> float:
        return sum(min(abs(one[i] - several[j]), width) for i, j in pairing)

    best = min(
        cost(zip(chosen, range(4), strict=True)) for chosen in itertools.permutations(range(5), 4)
    )
    assert cost(found) + width * (4 - len(found)) == pytest.approx(best)
    assert len(set(found[:, 0])) == len(set(found[:, 1])) == len(found)
    assert all(abs(one[i] - several[j]) <= width for i, j in found)


def test_nobody_to_pair_with():
    assert pairs.match_margins(np.array([]), np.array([0.1]), 0.5).shape == (0, 2)
    assert pairs.match_margins(np.array([0.0]), np.array([0.9]), 0.5).shape == (0, 2)


def test_pairs_have_one_and_several_confused_labels():
    """Recounted with plain loops."""
    logits = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)).double()
    probs, y = logits.softmax(dim=1), torch.arange(200) % 6
    found = pairs.match_examples(probs, y, 0.05)
    assert len(found) > 10
    for one, several in found.tolist():
        p, q = probs[one].tolist(), probs[several].tolist()
        above = [sum(v > r[y[i]] for v in r) for r, i in ((p, one), (q, several))]
        assert above[0] == 1 and above[1] >= 2
        gaps = [r[y[i]] - max(v for v in r if v != r[y[i]]) for r, i in ((p, one), (q, several))]
        assert abs(gaps[0] - gaps[1]) <= 0.05


def test_the_way_back_of_a_linear_network_is_its_dual_distance():
    """Three classes, no border near: the distance to the nearest point of the class's region.

    To the half space of one rival it is (z_j - z_y) / ‖w_j - w_y‖₁; with several rivals it is found
    by linear programming.
    """
    from scipy.optimize import linprog

    weights = 0.05 * torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        net[1].weight.copy_(weights)
        net[1].bias.zero_()
    x = 0.5 + 0.1 * torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    y = torch.arange(40) % 3
    found = pairs.measure_way_back(net, x, y, Threat("linf", 0.1))
    z = net(x).detach().double()
    for i in range(40):
        label = int(y[i])
        if z[i].argmax() == label:
            assert found[i] == 0
            continue
        rivals = [j for j in range(3) if j != label]
        # least t such that some |δ| <= t brings z_y above both rivals, within [0, 1]
        rows = [[*(weights[j] - weights[label]).tolist(), 0.0] for j in rivals]
        bounds = [float(z[i, label] - z[i, j]) for j in rivals]
        for pixel, side in itertools.product(range(4), (1.0, -1.0)):
            rows.append([side * (k == pixel) for k in range(4)] + [-1.0])
            bounds.append(0.0)
        pixels = x[i].flatten().tolist()
        box = [(-v, 1 - v) for v in pixels] + [(0, None)]
        least = linprog([0, 0, 0, 0, 1], A_ub=rows, b_ub=bounds, bounds=box)
        if least.success and np.isfinite(found[i]):
            assert least.fun <= found[i] + 1e-6 and found[i] <= least.fun * 1.1 + 1e-3


def test_pair_facts_are_recounted(tiny_run):
    """Means of both sides by plain loops over the stored logits; a seed more makes more pairs."""
    run = tiny_run("mail-at")
    fates = pairs.pair_fates(run, 0.02)
    y = run.data().train.y.numpy()
    burn_in = run.plan.burn_in
    right = np.stack(
        [run.epoch(e)["train_logits_adv"].argmax(1) == y for e in range(burn_in + 1, 4)]
    )
    assert len(right) == 1 and len(fates.rows) > 5
    assert (fates.values == right[0][fates.rows]).all()
    assert np.abs(np.diff(fates.pm)).max() <= 0.02 and (np.diff(fates.cl_pm) <= 0.02).all()
    facts = FIGURES["matched-pairs"].make([run], n=300).facts
    later, back = facts["compared"]["later"], facts["compared"]["way_back"]
    assert later["several"][0] == pytest.approx(fates.values[:, 1].mean())
    assert later["difference"][0] == pytest.approx(later["several"][0] - later["one"][0])
    low, high = later["difference"][1:]
    assert low <= later["difference"][0] <= high and facts["seeds"] == 1
    assert back["pairs"] == facts["compared"]["boundary"]["pairs"]
    # the clean image is right and at most eps away, or FMN did not find the way
    assert 0 < back["one"][0] <= 1.2


def planted(difference: float, seeds: int = 3) -> FigureData:
    """Facts of three comparisons whose difference points to "deeper" by so much, ± 0.1."""
    compared = {
        name: {
            "pairs": [50] * seeds,
            "images": [80] * seeds,
            "difference": tuple(
                sorted(words.deeper * (difference + shift) for shift in (-0.1, 0, 0.1))
            ),
        }
        for name, words in pairs.COMPARISONS.items()
    }
    for found in compared.values():
        low, middle, high = found["difference"]
        found["difference"] = (middle, low, high)
    return FigureData({"seeds": seeds, "compared": compared})


@pytest.mark.parametrize(
    ("difference", "seeds", "verdict"),
    [
        (0.2, 3, "holds"),
        (-0.2, 3, "fails"),
        (0.05, 3, "undecided"),
        (0.2, 2, "undecided"),
        (-0.2, 1, "undecided"),
    ],
)
def test_the_rule_of_the_pairs(difference, seeds, verdict):
    """Each comparison has its own side, and fewer than three seeds decide nothing."""
    claims = pairs.decide_matched_pairs(planted(difference, seeds))
    assert [claim.verdict for claim in claims] == [verdict] * 3
    assert [claim.number for claim in claims] == [4, None, 4], "those that the claim's check names"


# -------------------------------------------------------------------------------- rank correlations


def test_score_ranks_are_scipys(tiny_run):
    """One seed: each correlation over the images, distances taken from the evaluation."""
    run = tiny_run("mail-at")
    facts = FIGURES["score-ranks"].make([run], n=N).facts
    table = kit.evaluate(run, ["fmn100"], n=N, quiet=True)
    size = table.attrs["examples"]["fmn100"]["size"]
    logits, y = run.final["test_logits_adv"][:N].astype(float), run.final["test_y"][:N]
    margin = [row[t] - max(np.delete(row, t)) for row, t in zip(logits, y, strict=True)]
    found = facts["groups"]["all"]["spearman"]
    assert found["logit margin"][0] == pytest.approx(stats.spearmanr(margin, size).statistic)
    levels = run.final["test_lps"][:N]
    assert found["LPS"][0] == pytest.approx(stats.spearmanr(levels, size).statistic)
    fell = logits.argmax(1) != y
    mine = facts["groups"]["fell"]
    assert mine["n"] == [fell.sum()]
    assert mine["spearman"]["logit margin"][0] == pytest.approx(
        stats.spearmanr(np.array(margin)[fell], size[fell]).statistic
    )
    pm, lps = found["PM"], found["LPS"]
    assert facts["groups"]["all"]["difference"]["PM - LPS"][0] == pytest.approx(pm[0] - lps[0])
    assert all(low <= middle <= high for middle, low, high in found.values())


def test_clean_probability_facts(tiny_run):
    """Two seeds: the mean of both correlations, and the errors of each fifth recounted."""
    runs = [tiny_run("at"), tiny_run("at", seed=1)]
    facts = FIGURES["clean-probability"].make(runs, n=N).facts
    ranks, wrong = [], []
    for run in runs:
        logits = run.final["test_logits_nat"][:N].astype(float)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        p_y = p[np.arange(N), run.final["test_y"][:N]]
        found = kit.evaluate(run, ["fmn100", "pgd20"], n=N, quiet=True).attrs["examples"]
        ranks.append(stats.spearmanr(p_y, found["fmn100"]["size"]).statistic)
        wrong.append(found["pgd20"]["broken"][np.argsort(p_y)[: N // 5]].mean())
    assert facts["seeds"] == 2 and facts["n"] == N
    assert facts["distance"][0] == pytest.approx(np.mean(ranks))
    assert facts["by_fifth"][0][0] == pytest.approx(np.mean(wrong))


@pytest.mark.parametrize(
    ("sign", "seeds", "verdict"),
    [(1, 3, "holds"), (-1, 3, "fails"), (1, 2, "undecided"), (0, 3, "undecided")],
)
def test_the_rules_of_the_ranks(sign, seeds, verdict):
    def interval(middle: float) -> tuple[float, float, float]:
        return middle, middle - 0.1, middle + 0.1

    facts = {
        "seeds": seeds,
        "n": 50,
        "distance": interval(0.5 * sign),
        "error": interval(-0.5 * sign),
        "groups": {
            "all": {
                "spearman": {name: interval(0.5 * sign) for name in ("PM", "LPS", "CL-PM")},
                "difference": {
                    f"{better} - {worse}": interval(0.2 * sign)
                    for better, worse in scores.SCORE_PAIRS
                },
            }
        },
    }
    for decide, count in ((scores.decide_score_ranks, 3), (scores.decide_clean_probability, 2)):
        assert [claim.verdict for claim in decide(FigureData(facts))] == [verdict] * count


@pytest.mark.parametrize("name", ["matched-pairs", "score-ranks", "clean-probability"])
def test_runs_that_differ_in_more_than_their_seed_are_refused(name, tiny_run):
    at = tiny_run("at")
    for others in ([tiny_run("mail-at")], [at], [tiny_run("at", seed=1, epochs=2)]):
        with pytest.raises(KitError, match="one method with the same settings and different seeds"):
            FIGURES[name].make([at, *others])
