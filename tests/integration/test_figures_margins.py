"""Figures about margins:

MR's four, MAIL's Figs. 1b, 1c and 3; every number recounted from logits in plain Python.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

import kit
from kit.attacks.table import ATTACKS
from kit.core.errors import KitError
from kit.evaluation.statistics import correlation_interval
from kit.figures import mr_margin_by_probability, mr_similarity
from kit.figures.base import FigureData
from kit.figures.mail_attack_steps import find_critical
from kit.figures.mail_pgd_against_cw import decide_pgd_against_cw
from kit.figures.mr_same_margin import sweep_top2_ratio
from kit.figures.simplex import weigh
from kit.figures.style import spread_labels
from kit.figures.table import FIGURES, NUMBERS
from kit.methods.table import METHODS
from tests.helpers.intervals import paired
from tests.helpers.settings import TINY


@pytest.fixture
def run(tiny_run):
    return tiny_run("at")


@pytest.fixture
def quick_aa(monkeypatch):
    """What stands for AutoAttack here: what is counted does not depend on it, and seconds do."""
    monkeypatch.setitem(ATTACKS, "aa", ATTACKS["apgd-t"])


def softmax(logits) -> list[float]:
    top = max(logits)
    powers = [math.exp(float(z) - float(top)) for z in logits]
    return [power / sum(powers) for power in powers]


def others(p: list[float], y: int) -> list[float]:
    return [q for j, q in enumerate(p) if j != y]


def stored(run, split: str, which: str) -> list[tuple[list[float], int]]:
    """[(p, y)] of a split's images, from the stored logits."""
    logits, labels = run.final[f"{split}_logits_{which}"], run.final[f"{split}_y"]
    return [(softmax(row), int(y)) for row, y in zip(logits, labels, strict=True)]


def cosine(p: list[float], y: int) -> float:
    """MR Eq. 11 from its definition: the angle between p and p with its true entry masked."""
    masked = [0.0 if j == y else q for j, q in enumerate(p)]
    return sum(a * b for a, b in zip(p, masked, strict=True)) / (
        math.hypot(*p) * math.hypot(*masked)
    )


def mr_weight(p: list[float], y: int, tau: float) -> float:
    """3 σ(-10 (m̃ + 0.5)), m̃ = (p_y - p_2)(τ - p_2/(1-p_y)) c:

    MR Eqs. 7, 11, 14-16 and MAIL's factor.
    """
    p_2 = max(others(p, y))
    reweighted = (p[y] - p_2) * (tau - p_2 / sum(others(p, y))) * cosine(p, y)
    return 3 / (1 + math.exp(10 * (reweighted + 0.5)))


def mail_weight(p: list[float], y: int) -> float:
    return 3 / (1 + math.exp(10 * (p[y] - max(others(p, y)) + 0.5)))


def pm(p: list[float], y: int) -> float:
    return p[y] - max(others(p, y))


def random_softmaxes(n: int = 300, k: int = 6) -> list[tuple[list[float], int]]:
    random = np.random.default_rng(1)
    return [
        (softmax(random.normal(0, random.uniform(0, 6), k)), int(random.integers(k)))
        for _ in range(n)
    ]


def test_the_papers_numbers_are_names():
    assert {
        number: NUMBERS[number]
        for number in ("mr-1", "mr-2", "mr-3", "mr-4", "mail-3", "mail-1b", "mail-1c")
    } == {
        "mr-1": "same-margin",
        "mr-2": "margin-by-probability",
        "mr-3": "similarity-pair",
        "mr-4": "similarity-by-error",
        "mail-3": "margin-regions",
        "mail-1b": "critical-lps",
        "mail-1c": "pgd-against-cw",
    }


# ---------------------------------------------------------------------------------- MR Figs. 2 to 4


@pytest.mark.parametrize(("which", "split"), [("nat", "train"), ("adv", "test")])
def test_margin_by_probability_is_recounted(run, which, split):
    facts = FIGURES["margin-by-probability"].make(run, which=which, split=split).facts
    pairs = stored(run, split, which)
    p_y, margin = [p[y] for p, y in pairs], [-pm(p, y) for p, y in pairs]
    assert facts["n"] == len(pairs) and facts["outside_band"] == 0
    assert facts["share_02_06"] == pytest.approx(sum(0.2 <= p <= 0.6 for p in p_y) / len(p_y))
    assert facts["pearson"][0] == pytest.approx(stats.pearsonr(p_y, margin).statistic)
    assert [b["centre"] for b in facts["bins"]] == pytest.approx([-0.1, -0.05, 0, 0.05, 0.1])
    assert sum(b["n"] for b in facts["bins"]) == sum(-0.125 <= m < 0.125 for m in margin) > 0
    for b in facts["bins"]:
        mine = [
            p
            for p, m in zip(p_y, margin, strict=True)
            if b["centre"] - 0.025 <= m < b["centre"] + 0.025
        ]
        assert b["n"] == len(mine)
        if len(mine) > 1:
            assert (b["low"], b["high"], b["sd"]) == pytest.approx(
                (min(mine), max(mine), np.std(mine, ddof=1))
            )
            low, high = b["allowed"]
            assert low - 1e-9 <= b["low"] <= b["high"] <= high + 1e-9, "no softmax leaves the band"
            assert b["quartiles"] == pytest.approx(np.quantile(mine, [0.25, 0.5, 0.75]))


@pytest.mark.parametrize("k", [2, 3, 10, 100])
def test_what_a_softmax_allows_in_a_bin_of_the_margin(k):
    """The ends of the interval of p_y, at the bin's upper and lower edge:

    there p_2 meets its bounds (1-p_y)/(K-1), or p_y = 0, and 1-p_y.
    """
    for b in mr_margin_by_probability.bin_margins(np.zeros(0), np.zeros(0), k):
        low, high = b["allowed"]
        assert low >= 0 and high + b["centre"] - 0.025 == pytest.approx(1 - high)
        p_2 = low + b["centre"] + 0.025
        assert p_2 == pytest.approx((1 - low) / (k - 1)) or (low == 0 and p_2 >= 1 / (k - 1))
        assert b["n"] == 0 and "span" not in b


def test_bounds_hold_and_are_met():
    """c of 300 random softmaxes lies between the bounds; one rival class and an even rest lie on
    them.
    """
    for p, y in random_softmaxes():
        low, high = mr_similarity.similarity_bounds(np.array([p[y]]), len(p))
        assert low[0] - 1e-12 <= cosine(p, y) <= high[0] + 1e-12
    for p_y in (0.1, 0.4, 0.9):
        low, high = mr_similarity.similarity_bounds(np.array([p_y]), 5)
        assert low[0] == pytest.approx(cosine([p_y] + [(1 - p_y) / 4] * 4, 0))
        assert high[0] == pytest.approx(cosine([p_y, 1 - p_y, 0, 0, 0], 0))


def test_similarity_by_error_is_recounted(run):
    kinds = FIGURES["similarity-by-error"].make(run).facts["kinds"]
    for which in ("nat", "adv"):
        facts, pairs = kinds[which], stored(run, "test", which)
        wrong, c = [1 - p[y] for p, y in pairs], [cosine(p, y) for p, y in pairs]
        r, low, high = facts["pearson"]
        assert (
            r == pytest.approx(stats.pearsonr(wrong, c).statistic)
            and low < r < high
            and facts["outside"] == 0
        )
        upper = [q / math.hypot(1 - q, q) for q in wrong]
        assert facts["on_the_bounds"]["one rival"] == pytest.approx(
            stats.pearsonr(wrong, upper).statistic
        )


def test_verdicts_on_similarity_and_on_one_margin():
    """r against 0.95; and the middle 90 % of p_y in the fullest bin against 0.1, of ten examples or
    more.
    """
    for r, verdict in (
        ((0.98, 0.97, 0.99), "holds"),
        ((0.9, 0.85, 0.94), "fails"),
        ((0.96, 0.94, 0.97), "undecided"),
    ):
        assert mr_similarity.decide_correlation("nat", r, 9).reading == verdict
    random = np.random.default_rng(0)
    for width, count, verdict in ((0.4, 40, "holds"), (0.05, 40, "fails"), (0.4, 9, "undecided")):
        p_y = random.uniform(0.3 - width / 2, 0.3 + width / 2, count)
        middle = mr_margin_by_probability.bin_margins(p_y, np.zeros(count), 10)[2]
        assert middle["n"] == count and middle["span"][0] == pytest.approx(
            np.quantile(p_y, 0.95) - np.quantile(p_y, 0.05)
        )
        (claim,) = mr_margin_by_probability.decide_margin_by_probability(
            FigureData({"bins": [middle]})
        )
        assert claim.reading == verdict


def test_correlation_interval_is_near_fishers():
    """On 400 points of a normal distribution the bootstrap agrees with Fisher's z; few or constant
    values say nothing.
    """
    a, noise = np.random.default_rng(0).normal(size=(2, 400))
    r, low, high = correlation_interval(a, a + noise)
    expected = stats.pearsonr(a, a + noise)
    fisher = expected.confidence_interval()
    assert r == pytest.approx(expected.statistic)
    assert (low, high) == pytest.approx((fisher.low, fisher.high), abs=0.02)
    assert all(map(math.isnan, correlation_interval(a[:2], noise[:2])))
    assert all(map(math.isnan, correlation_interval(a, np.ones(400))))


def test_similarity_pair_shows_what_it_says(run):
    facts = FIGURES["similarity-pair"].make(run).facts
    pairs = dict(zip(run.final["test_ids"].tolist(), stored(run, "test", "adv"), strict=True))
    for name, near in (("low", 0.2), ("high", 0.95)):
        shown = facts["examples"][name]
        p, y = pairs[shown["id"]]
        assert (
            shown["y"] == y
            and shown["p"] == pytest.approx(p)
            and shown["c"] == pytest.approx(cosine(p, y))
        )
        assert abs(shown["p_y"] - near) == pytest.approx(
            min(abs(q[t] - near) for q, t in pairs.values())
        )
    ranked = sorted(pairs.values(), key=lambda pair: pair[0][pair[1]])
    tenth = len(ranked) // 10
    assert facts["median_low"] == pytest.approx(
        np.median([cosine(*pair) for pair in ranked[:tenth]])
    )
    assert facts["drop"][0] == pytest.approx(facts["median_low"] - facts["median_high"])
    chosen = (
        FIGURES["similarity-pair"]
        .make(run, low=facts["examples"]["high"]["id"], which="nat")
        .facts["examples"]["low"]
    )
    assert chosen["id"] == facts["examples"]["high"]["id"]
    natural = dict(zip(run.final["test_ids"].tolist(), stored(run, "test", "nat"), strict=True))
    assert chosen["p"] == pytest.approx(natural[chosen["id"]][0])


# ---------------------------------------------------------------------------------------- MR Fig. 1


@pytest.mark.parametrize("tau", [2.0, 3.5])
def test_weights_are_the_formulas(tau):
    """MAIL's and MR's weights of 300 random softmaxes against the formulas, float64."""
    pairs = random_softmaxes()
    probs, y = (
        torch.tensor([p for p, _ in pairs], dtype=torch.float64),
        torch.tensor([y for _, y in pairs]),
    )
    mr = METHODS["mr-mail"].override("criterion.tau", tau)
    assert weigh(mr, probs, y) == pytest.approx([mr_weight(p, t, tau) for p, t in pairs], rel=1e-9)
    assert weigh(METHODS["mail-at"], probs, y) == pytest.approx(
        [mail_weight(p, t) for p, t in pairs], rel=1e-9
    )


def test_same_margin_facts(run):
    facts = FIGURES["same-margin"].make(run, tau=3.0, n=200).facts
    pairs = dict(
        zip(run.final["train_ids"][:200].tolist(), stored(run, "train", "adv")[:200], strict=True)
    )
    assert facts["n"] == 200
    for shown in facts["pair"]:
        p, y = pairs[shown["id"]]
        p_2 = max(others(p, y))
        o = p_2 / (1 - p[y])
        expected = {"m": p[y] - p_2, "o": o, "s": 3 - o, "c": cosine(p, y), "p_y": p[y], "y": y}
        assert {name: shown[name] for name in expected} == pytest.approx(expected)
        assert shown["m_tilde"] == pytest.approx(expected["m"] * expected["s"] * expected["c"])
        assert shown["weights"] == pytest.approx(
            {"MAIL": mail_weight(p, y), "MR": mr_weight(p, y, 3.0)}
        )
    first, second = facts["pair"]
    assert (
        abs(first["m"] - second["m"]) < 0.1
        and first["m"] < 0
        and first["weights"]["MR"] > second["weights"]["MR"]
    )
    wrong = [pair for pair in pairs.values() if pm(*pair) < 0]
    gain = max(
        mr_weight(*a, 3.0) - mr_weight(*b, 3.0) - 20 * abs(pm(*a) - pm(*b))
        for a in wrong
        for b in wrong
    )
    assert gain == pytest.approx(
        first["weights"]["MR"] - second["weights"]["MR"] - 20 * abs(first["m"] - second["m"])
    )
    asked = (
        FIGURES["same-margin"]
        .make(run, n=200, first=second["id"], second=first["id"])
        .facts["pair"]
    )
    assert [shown["id"] for shown in asked] == [second["id"], first["id"]]


@pytest.mark.parametrize("k", [3, 10])
def test_the_sweep_keeps_the_margin(k):
    """Each line of the sweep, built anew from m and o:

    a softmax of that margin and ratio, and its weights; MAIL's stay.
    """
    lines = sweep_top2_ratio({"MAIL": METHODS["mail-at"], "MR": METHODS["mr-mail"]}, k)
    for m, line in lines.items():
        for o, mail, mr in list(
            zip(line["o"], line["weights"]["MAIL"], line["weights"]["MR"], strict=True)
        )[::20]:
            p_y = (o + m) / (1 + o)  # from p_2 = o (1 - p_y) and m = p_y - p_2
            p = [p_y, o * (1 - p_y)] + [(1 - p_y) * (1 - o) / (k - 2)] * (k - 2)
            assert (
                min(p) > -1e-12 and sum(p) == pytest.approx(1) and max(p[1:]) == pytest.approx(p[1])
            )
            assert (mail, mr) == pytest.approx((mail_weight(p, 0), mr_weight(p, 0, 2.0)), rel=1e-6)
        steps = list(np.diff(line["weights"]["MR"]))
        assert line["grows"]["MR"] == pytest.approx(
            sum(step < -1e-12 for step in steps) / len(steps)
        )
        assert line["grows"]["MAIL"] == 0, "equal margins, equal weights"


def test_which_side_of_the_boundary(run):
    """MR's weight grows as o falls where m < 0 and not where m > 0:

    by the formula, in a sweep finer than the figure's.
    """
    assert [claim.reading for claim in FIGURES["same-margin"].make(run).claims] == [
        "holds",
        "fails",
    ]
    for m in (-0.7, -0.3, -0.05, 0.05, 0.3):
        rising = [
            mr_weight(
                [(o + m) / (1 + o), o * (1 - m) / (1 + o)] + [(1 - m) * (1 - o) / (1 + o) / 8] * 8,
                0,
                2.0,
            )
            for o in np.linspace(1, max(1 / 9, -m) + 1e-9, 400)
        ]
        assert all(b > a if m < 0 else b < a for a, b in pairwise(rising))


# ----------------------------------------------------------------------------- MAIL Figs. 3, 1b, 1c


@pytest.mark.parametrize("counted", ["frozen", "on the fly"])
def test_regions_are_recounted(run, counted):
    facts = FIGURES["margin-regions"].make(run, near=0.05, counted=counted).facts
    labels = run.final["train_y"]
    for i, epoch in enumerate(facts["epochs"]):
        arrays = run.epoch(int(epoch))
        which, y = ("seen", arrays["seen_y"]) if counted == "frozen" else ("train", labels)
        values = [
            pm(softmax(row), int(t))
            for row, t in zip(arrays[f"{which}_logits_adv"], y, strict=True)
        ]
        expected = {
            "safe": sum(v > 0.05 for v in values),
            "wrong": sum(v < -0.05 for v in values),
            "boundary": sum(-0.05 <= v <= 0.05 for v in values),
        }
        assert {name: count[i] for name, count in facts["counts"].items()} == expected
        assert sum(expected.values()) == facts["n"] == len(values)
        assert facts["misclassified"][i] == sum(v < 0 for v in values)
        for name, count in expected.items():
            band = facts["bands"][name]
            assert band["share"][i] == pytest.approx(count / len(values))
            assert band["low"][i] <= band["share"][i] <= band["high"][i]
    assert facts["points"] == pytest.approx({(0.4, 0.6): -0.2, (0.5, 0.5): 0, (0.6, 0.4): 0.2})
    assert len(set(map(tuple, zip(*facts["counts"].values(), strict=True)))) > 1, (
        "training moves the images"
    )


def test_region_labels_stay_apart():
    moved = spread_labels([0.5, 0.48, 0.1], 0.07)
    assert moved == pytest.approx([0.525, 0.455, 0.1])
    assert spread_labels([0.1, 0.5, 0.9], 0.07) == [0.1, 0.5, 0.9]


def test_critical_definitions(run, quick_aa):
    """Among the survivors of every step:

    AutoAttack's on its subset, PM under attack, PM after one step made by hand.
    """
    facts = FIGURES["critical-lps"].make(run, aa=20).facts["critical"]
    survivors = run.final["test_lps"] == TINY["steps"]
    broken = kit.evaluate(run, ["aa"], n=20, quiet=True).attrs["examples"]["aa"]["broken"]
    assert facts["broken by AutoAttack"]["n"] == survivors[:20].sum() > 0
    assert facts["broken by AutoAttack"]["k"] == (broken & survivors[:20]).sum()
    under_attack = [pm(p, y) < 0.1 for p, y in stored(run, "test", "adv")]
    assert facts["PM under attack below 0.1"]["k"] == (np.array(under_attack) & survivors).sum()
    model, test, step = run.model(), run.data().test, run.plan.recipe.step * TINY["eps"]
    k = 0
    for row in np.flatnonzero(survivors)[:60]:
        x = test.x(slice(int(row), int(row) + 1)).requires_grad_(True)
        y = int(test.y[row])
        (gradient,) = torch.autograd.grad(model(x).logsumexp(dim=1) - model(x)[:, y], x)
        k += pm(softmax(model((x + step * gradient.sign()).clamp(0, 1))[0].tolist()), y) < 0.1
    mine = find_critical(run, 20)["PM after one step below 0.1"]
    assert mine[np.flatnonzero(survivors)[:60]].sum() == k
    assert facts["PM after one step below 0.1"]["k"] == (mine & survivors).sum()


def test_pgd_against_cw_is_paired(tiny_run, quick_aa):
    runs = {method: tiny_run(method) for method in ("at", "gairat")}
    drawing = FIGURES["pgd-against-cw"].make(runs, aa=20)
    facts, right = drawing.facts, {}
    for method, run in runs.items():
        tables = {
            name: kit.evaluate(run, [name], n=n, quiet=True) for name, n in facts["n"].items()
        }
        right[method] = {
            name: ~table.attrs["examples"][name]["broken"] for name, table in tables.items()
        }
    assert facts["n"] == {"natural": 497, "pgd100": 497, "cw20": 497, "aa": 20}
    for name in facts["n"]:
        difference = [
            int(g) - int(a) for g, a in zip(right["gairat"][name], right["at"][name], strict=True)
        ]
        assert facts["gain"][name] == pytest.approx(paired(difference))
        assert all(
            facts["accuracy"][method][name][0] == pytest.approx(right[method][name].mean())
            for method in runs
        )
    for other, n in (("cw20", 497), ("aa", 20)):
        gain = {
            name: [
                int(g) - int(a)
                for g, a in zip(right["gairat"][name][:n], right["at"][name][:n], strict=True)
            ]
            for name in ("pgd100", other)
        }
        each = [
            under_pgd - under_other
            for under_pgd, under_other in zip(gain["pgd100"], gain[other], strict=True)
        ]
        assert facts["interaction"][other] == pytest.approx(paired(each))
    assert facts["printed"] == pytest.approx((54.81 - 48.91) - (39.86 - 51.61))


def test_claims_about_gain_follow_their_intervals():
    """All four signs and the interaction:

    beyond 0 the claim's way, beyond 0 the other way, across 0.
    """
    n = {"pgd100": 9, "cw20": 9, "aa": 9}
    above, below, across = (0.1, 0.05, 0.15), (-0.1, -0.15, -0.05), (0.01, -0.05, 0.07)
    for gains, verdicts in (
        ((above, below, below, above), ["holds"] * 4),
        ((below, above, above, below), ["fails"] * 4),
        ((across,) * 4, ["undecided"] * 4),
    ):
        gain = dict(zip(("pgd100", "cw20", "aa"), gains[:3], strict=True))
        facts = {"gain": gain, "interaction": {"cw20": gains[3]}, "n": n}
        claims = decide_pgd_against_cw(FigureData(facts))
        assert [claim.reading for claim in claims] == verdicts


# -------------------------------------------------------------------------------------- wrong words


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mr-1", {"tau": 0.5}, "at least 1"),
        ("mr-1", {"n": 0}, "at least 1"),
        ("mr-1", {"first": 999_999}, "not among the 300"),
        ("mr-2", {"which": "both"}, "Choices: adv, nat"),
        ("mr-2", {"split": "validation"}, "Choices: test, train"),
        ("mr-3", {"low": 999_999}, "no test image 999999"),
        ("mr-4", {"split": "all"}, "Choices: test, train"),
        ("mail-3", {"near": 0.0}, "above 0"),
        ("mail-3", {"counted": "once"}, "frozen, on the fly"),
        ("mail-1b", {"aa": 0}, "at least 1"),
        ("mail-1b", {"counted": "steps"}, "kappa, lps"),
    ],
)
def test_wrong_words_are_refused(run, name, options, words, tmp_path):
    with pytest.raises(KitError, match=words):
        kit.draw(name, run, folder=tmp_path, **options)


def test_two_classes_have_no_top2_ratio(tmp_path, home):
    run = kit.run(
        "at",
        recipe="mixture",
        overrides={
            "epochs": 2,
            "milestones": [1],
            "train_size": 200,
            "validation": 50,
            "probe": 50,
        },
        quiet=True,
    )
    with pytest.raises(KitError, match="two classes, where the margin says all"):
        kit.draw("mr-1", run, folder=tmp_path)
    facts = kit.draw("mr-4", run, folder=tmp_path).facts["kinds"]["nat"]
    assert facts["outside"] == 0 and facts["on_the_bounds"]["one rival"] == pytest.approx(
        facts["pearson"][0]
    )
