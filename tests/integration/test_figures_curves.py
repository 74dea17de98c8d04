"""Learning curves, the ablation over gamma and beta, VIR's classes:

facts recounted by hand, rules tried on planted data.
"""

from __future__ import annotations

import math
from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import kit
from kit.core.errors import KitError
from kit.evaluation.class_tables import confusion
from kit.evaluation.statistics import contrast_interval, rank_trend
from kit.figures import clirat_learning_curves as curves
from kit.figures import vir_class_gains, vir_class_weights
from kit.figures.base import Drawing, FigureData
from kit.figures.clirat_slope_and_offset import decide_opposite_trends
from kit.figures.style import name_points, spread_labels
from kit.figures.table import FIGURES
from tests.helpers.intervals import over_seeds, paired

N = 30


@pytest.fixture
def three(tiny_run):
    return [tiny_run(method) for method in curves.COMPARED]


def broken(run, attack: str, which, n: int = N) -> list[bool]:
    return (
        kit.evaluate(run, [attack], n=n, which=which, quiet=True)
        .attrs["examples"][attack]["broken"]
        .tolist()
    )


# ---------------------------------------------------------------------------------- learning curves


def test_one_network_until_burn_in_ends(three):
    """What is evaluated once for all is the same network:

    every parameter and buffer, bit for bit; and no other is.
    """
    begin = curves.burn_in_end(three)
    assert begin == 2 and all(run.snapshots == [1, 2, 3] for run in three)
    first = curves.find_kept_networks(three[0], three)
    for run in three:
        kept = curves.find_kept_networks(run, three)
        assert kept[1] is kept[2] is first[1] and kept[3] is run
        for epoch, keeper in kept.items():
            mine, theirs = run.model(epoch).state_dict(), keeper.model(epoch).state_dict()
            assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    last = [run.model(3).state_dict() for run in three]
    assert not any(
        all(torch.equal(v, b[k]) for k, v in a.items())
        for a, b in ((last[0], last[1]), (last[1], last[2]))
    )


def test_other_seeds_share_nothing(three, tiny_run):
    other = tiny_run("clirat", seed=1)
    assert all(
        keeper is other for keeper in curves.find_kept_networks(other, [*three, other]).values()
    )


def test_natural_curve_by_hand(three):
    """Accuracy of every kept network, image by image, without the kit's evaluation."""
    facts = FIGURES["learning-curves"].make(three, n=N).facts
    assert facts["n"] == N and facts["seeds"] == 1 and facts["burn_in"] == 2
    for run in three:
        test = run.data().test
        for epoch, accuracy in zip(
            (1, 2, 3), facts["methods"][run.method]["natural"]["accuracy"], strict=True
        ):
            right = sum(
                int(run.model(epoch)(test.x(slice(i, i + 1))).argmax()) == int(test.y[i])
                for i in range(N)
            )
            assert accuracy == pytest.approx(right / N)


def test_differences_and_jump_are_paired(three):
    drawing = FIGURES["learning-curves"].make(three, n=N)
    at, mail, control, clirat = three
    for pair, a, b in (
        ("clirat - mail-at-printed", control, clirat),
        ("clirat - mail-at", mail, clirat),
        ("clirat - at", at, clirat),
        ("mail-at - at", at, mail),
    ):
        for attack in ("natural", "pgd20", "pgd100", "apgd-ce", "cw20"):
            d = [
                int(x) - int(y)
                for x, y in zip(broken(a, attack, 3), broken(b, attack, 3), strict=True)
            ]
            assert drawing.facts["difference"][pair][attack] == pytest.approx(paired(d))
    before, after = broken(clirat, "pgd20", 2), broken(clirat, "pgd20", 3)
    assert drawing.facts["jump"]["clirat"]["pgd20"][0] == pytest.approx(
        (sum(before) - sum(after)) / N
    )
    assert drawing.facts["jump_to"] == 3
    assert (
        drawing.facts["methods"]["at"]["pgd100"]["epochs"] == [2, 3]
        and "aa" not in drawing.facts["methods"]["at"]
    )


def test_several_seeds(three, tiny_run):
    """Mean over seeds, and an interval with the variance of the seeds' means and of the images'
    means.
    """
    runs = [*three, *(tiny_run(method, seed=1) for method in curves.COMPARED)]
    facts = FIGURES["learning-curves-each"].make(runs[::-1], n=N).facts
    assert facts["seeds"] == 2
    right = {
        m: np.array(
            [[not b for b in broken(tiny_run(m, seed=seed), "cw20", 3)] for seed in (0, 1)], float
        )
        for m in ("mail-at", "clirat")
    }
    assert facts["methods"]["clirat"]["cw20"]["accuracy"][-1] == pytest.approx(
        right["clirat"].mean()
    )
    d = right["clirat"] - right["mail-at"]
    assert facts["difference"]["clirat - mail-at"]["cw20"] == pytest.approx(over_seeds(d.tolist()))


def test_other_methods_are_drawn_beside(three, tiny_run):
    drawing = FIGURES["learning-curves"].make([*three, tiny_run("gairat")], n=N)
    assert "GAIRAT" in {text.get_text() for panel in drawing.axes for text in panel.texts}
    assert drawing.facts["burn_in"] == 2 and set(drawing.facts["methods"]) == {
        *curves.COMPARED,
        "gairat",
    }


@pytest.mark.slow
def test_autoattack_of_the_last_networks(three):
    drawing = FIGURES["learning-curves"].make(three, n=4, aa=1)
    for run in three:
        aa = drawing.facts["methods"][run.method]["aa"]
        assert aa["epochs"] == [3] and aa["accuracy"][0] == pytest.approx(
            1 - sum(broken(run, "aa", 3, 4)) / 4
        )
    claim = next(claim for claim in drawing.claims if "under AA" in claim.claim)
    assert " AA " in claim.here and "not run" not in claim.here


def judged(gaps: dict, control: tuple = (0, -1, 1)) -> dict[str, str]:
    """{a claim's words: its verdict} where CLIRAT's differences to its control and AT are `gaps`.

    To MAIL-AT, which has another normaliser, they are so large that they would decide otherwise.
    """
    jumps = {method: {"pgd20": (0, -1, 1)} for method in ("at", "clirat")}
    facts = {
        "seeds": 3,
        "difference": {
            "clirat - mail-at-printed": gaps,
            "clirat - mail-at": dict.fromkeys(gaps, (0.5, 0.4, 0.6)),
            "clirat - at": gaps,
        },
        "jump": jumps,
        "clirat - at after the jump": {"pgd20": control},
    }
    found = curves.decide_learning_curves(FigureData(facts))
    assert not any(claim.exact is not None and claim.estimates for claim in found)
    controlled = [claim for claim in found if claim.number in (5, 7)]
    assert all(
        claim.here.startswith(("CLIRAT - MAIL-AT (mean 1)", "AA was not")) for claim in controlled
    ), "the control is named"
    known = ("ends above", "on clean images", "under AA", "no clean", "jumps")
    return {words: claim.verdict for claim in found for words in known if words in claim.claim}


UP, SAME, DOWN = (0.02, 0.01, 0.03), (-0.003, -0.0045, -0.001), (-0.02, -0.03, -0.01)
BLURRED = (0.01, -0.01, 0.03)


@pytest.mark.parametrize(
    ("pgd20", "others", "ends", "loses"),
    [
        (UP, UP, "holds", "holds"),
        (DOWN, DOWN, "fails", "fails"),
        (BLURRED, BLURRED, "undecided", "undecided"),
        (SAME, SAME, "fails", "holds"),
        (BLURRED, UP, "undecided", "holds"),
        (DOWN, UP, "fails", "holds"),
    ],
)
def test_rules_of_the_curves(pgd20, others, ends, loses):
    verdicts = judged(
        dict.fromkeys(("natural", "pgd100", "apgd-ce", "cw20"), others) | {"pgd20": pgd20}
    )
    assert (
        verdicts["ends above"] == ends
        and verdicts["on clean images"] == verdicts["no clean"] == loses
    )
    assert verdicts["under AA"] == "undecided"


def test_rules_of_single_attacks():
    gaps = dict.fromkeys(("pgd20", "pgd100", "apgd-ce"), UP)
    assert judged(gaps | {"natural": UP, "cw20": BLURRED})["on clean images"] == "undecided"
    for aa, verdict in ((UP, "holds"), (SAME, "holds"), (DOWN, "fails"), (BLURRED, "undecided")):
        assert judged(gaps | {"natural": UP, "cw20": UP, "aa": aa})["under AA"] == verdict
    for control, verdict in (
        ((0.1, 0.05, 0.15), "holds"),
        ((-0.1, -0.2, -0.05), "fails"),
        ((0, -1, 1), "undecided"),
    ):
        assert judged(gaps | {"natural": UP, "cw20": UP}, control)["jumps"] == verdict


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0.01, 0.3))
def test_labels_keep_apart(heights, gap):
    moved = spread_labels(heights, gap)
    assert np.argsort(moved).tolist() == np.argsort(heights, kind="stable").tolist()
    heights, moved = sorted(heights), sorted(moved)
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(moved))
    assert sum(moved) == pytest.approx(sum(heights))
    if all(b - a >= gap for a, b in pairwise(heights)):
        assert moved == pytest.approx(heights)


def test_names_beside_points_cover_neither_names_nor_points():
    """Ten classes as they lie on CIFAR-10, pairs of them closer than a name is long."""
    errors = {
        (24, 42): "airplane",
        (17.5, 34.5): "automobile",
        (42.5, 71.5): "bird",
        (54, 93): "cat",
        (32, 77.5): "deer",
        (39.5, 49.5): "dog",
        (18, 24.7): "frog",
        (26.5, 42): "horse",
        (15, 26): "ship",
        (15.2, 41): "truck",
    }
    drawing = Drawing(5.0, 4.2)
    axes = drawing.subplots()
    axes.set(xlim=(0, 100), ylim=(0, 100))
    name_points(axes, errors)
    assert sorted(text.get_text() for text in axes.texts) == sorted(errors.values())
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    shown = axes.transData.transform(list(errors))
    assert not any(box.contains(*point) for box in boxes for point in shown)
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)
    name_points(axes, {(100, 100): "in the corner"})
    corner = axes.texts[-1].get_window_extent()
    assert corner.x1 <= axes.bbox.x1 + 1 and corner.y1 <= axes.bbox.y1 + 1


def test_wrong_words_for_curves(three, tiny_run):
    at, mail, control, clirat = three
    for runs, options, words in (
        (
            [at, control, clirat],
            {},
            "also need a run of mail-at: python -m kit train mail-at --recipe digits",
        ),
        ([*three, tiny_run("at", seed=1)], {}, "once with the same seeds, but at has 0 1"),
        ([*three, clirat], {}, "once with the same seeds"),
        ([at, mail, control, tiny_run("clirat", lr=0.04)], {}, "runs of one recipe"),
        (three, {"n": 1}, "at least 2, or 0"),
        (three, {"n": -3}, "n=-3"),
        (three, {"aa": -1}, "aa=-1"),
    ):
        with pytest.raises(KitError, match=words):
            FIGURES["learning-curves"].make(runs, **options)


def test_runs_without_networks_are_refused(three, copy_of):
    bare = copy_of(three[3])
    for path in (bare.folder / "snapshots").glob("*.ckpt"):
        path.unlink()
    with pytest.raises(KitError, match="kept no networks along the way"):
        curves.group_by_method([*three[:3], bare])


# ----------------------------------------------------------------------------------- gamma and beta


@pytest.fixture
def grid(tiny_run):
    changes = [
        {},
        {"weight.slope": 7.0},
        {"weight.slope": 13.0},
        {"weight.bias": -0.2},
        {"weight.bias": -0.7},
    ]
    return [tiny_run("clirat", **change) for change in changes]


def test_ablation_by_hand(grid):
    facts = (
        FIGURES["slope-and-offset"]
        .make(grid[::-1] + grid[:1], attacks="natural pgd20 cw20", n=N)
        .facts
    )
    for path, held, runs in (
        ("weight.slope", -0.5, [grid[1], grid[0], grid[2]]),
        ("weight.bias", 10.0, [grid[4], grid[0], grid[3]]),
    ):
        found = facts[path]
        assert found["held"] == held and found["values"] == (
            [7, 10, 13] if held < 0 else [-0.7, -0.5, -0.2]
        )
        for attack, trend in found["criteria"].items():
            accuracy = [1 - sum(broken(run, attack, "last")) / N for run in runs]
            assert trend["accuracy"] == pytest.approx(accuracy) and trend["reference"] == 1
            usual, last = (broken(run, attack, "last") for run in (grid[0], runs[2]))
            d = [int(a) - int(b) for a, b in zip(usual, last, strict=True)]
            assert trend["difference"][2] == pytest.approx(paired(d))
            if len({round(value, 9) for value in accuracy}) > 1:
                assert trend["spearman"] == pytest.approx(
                    stats.spearmanr(range(3), accuracy).statistic
                )
            else:
                assert trend["spearman"] is None and trend["p"] == 1


def test_rank_trend_against_all_orders():
    """p of one seed is the share of all orders at least as far from no correlation; seeds' own
    levels do not count.
    """
    random = np.random.default_rng(3)
    x, y = np.arange(5.0), random.normal(size=5)
    y[4] += 1
    far = [abs(stats.spearmanr(x, order).statistic) for order in permutations(y)]
    rho, p = rank_trend(x, y[:, None])
    assert rho == pytest.approx(stats.spearmanr(x, y).statistic)
    assert p == pytest.approx(np.mean([value >= abs(rho) - 1e-9 for value in far]), abs=0.02)
    two = np.stack([y, y + 5], axis=1)
    assert rank_trend(x, two)[0] == pytest.approx(rho) and rank_trend(x, two)[1] <= p
    rising = rank_trend(x, x[:, None])
    assert rising[0] == pytest.approx(1) and rising[1] == pytest.approx(2 / 120, abs=0.01)
    assert rank_trend(x[:2], y[:2, None]) == (None, 1.0) == rank_trend(x, np.ones((5, 1)))


def test_rank_trend_keeps_its_level():
    """Without any effect p is at most 0.05 in about one of twenty, not more."""
    random = np.random.default_rng(5)
    ps = [rank_trend(np.arange(6.0), random.normal(size=(6, 2)))[1] for _ in range(200)]
    assert np.mean([p <= 0.05 for p in ps]) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


@pytest.mark.parametrize(
    ("pgd", "rest", "verdict"),
    [
        (0.9, -0.9, "holds"),
        (0.9, 0.9, "fails"),
        (-0.9, -0.9, "fails"),
        (0.3, 0.9, "undecided"),
        (0.9, -0.3, "undecided"),
        (None, -0.9, "undecided"),
    ],
)
def test_rule_of_opposite_signs(pgd, rest, verdict):
    """Over twelve networks a correlation of 0.9 is beyond chance, one of 0.3 is not."""
    rows = {
        name: {"spearman": pgd if name.startswith("pgd") else rest, "p": 0.01}
        for name in ("natural", "pgd20", "pgd100", "cw20")
    }
    claim = decide_opposite_trends({"values": list(range(12)), "criteria": rows}, "γ", 1)
    assert claim.reading == verdict and "cannot reach" not in claim.here
    assert (
        "cannot reach"
        in decide_opposite_trends({"values": [1, 2, 3], "criteria": rows}, "γ", 1).here
    )
    alone = {"values": [1, 2, 3, 4], "criteria": {"natural": rows["natural"]}}
    assert decide_opposite_trends(alone, "γ", 1).reading == "undecided"


def test_wrong_words_for_the_ablation(grid, tiny_run):
    for runs, options, words in (
        ([tiny_run("at")], {}, "such as clirat or mail-at, not of at"),
        ([*grid, tiny_run("mail-at")], {}, "runs of one method"),
        ([*grid, tiny_run("clirat", lr=0.04)], {}, "differ in more than"),
        ([*grid, tiny_run("clirat", seed=1)], {}, "needs the same seeds, but 7 has 0; 10 has 0 1"),
        (grid, {"attacks": "pgd20 cw20"}, "must name natural and others"),
        (grid, {"attacks": "natural pgd21"}, "Choices: natural, pgd20"),
        (grid, {"attacks": "natural natural"}, "each once"),
    ):
        with pytest.raises(KitError, match=words):
            FIGURES["slope-and-offset"].make(runs, **options)


# ------------------------------------------------------------------------------------ VIR's classes


@pytest.fixture
def four(tiny_run):
    return {method: tiny_run(method) for method in ("at", "trades", "vir-at", "vir-trades")}


def test_class_gains_are_the_diagonals(four):
    facts = FIGURES["classes-by-method"].make(four, attack="pgd10").facts
    share = {}
    for method, run in four.items():
        counts = confusion(kit.evaluate(run, ["pgd10"], quiet=True), "pgd10")
        share[method] = counts.diagonal() / counts.sum(axis=1)
    for method, (base, other) in {
        "vir-at": ("at", "trades"),
        "vir-trades": ("trades", "at"),
    }.items():
        found = facts["methods"][method]
        assert found["recall"] == pytest.approx(share[method]) and found[
            "base_recall"
        ] == pytest.approx(share[base])
        assert [d for d, _, _ in found["difference"]] == pytest.approx(share[method] - share[base])
        hard = [k for k in range(10) if share[other][k] < share[other].mean()]
        assert found["hard"] == [four["at"].record["classes"][k] for k in hard]
        gain = share[method] - share[base]
        assert found["hard_gain"][0] == pytest.approx(np.mean([gain[k] for k in hard]))
        assert found["hard_above_mean"][0] == pytest.approx(
            np.mean([gain[k] for k in hard]) - gain.mean()
        )
        assert found["worst"][1] == pytest.approx(min(share[method]))
        assert found["mean"] == pytest.approx(share[method].mean())


def test_contrast_by_hand():
    a, b = np.array([1.0, 0, 1, 1]), np.array([0.0, -1, 0, 0, 1])
    value, low, high = contrast_interval([a, b], np.array([0.5, -1]))
    (_, low_a, high_a), (_, low_b, high_b) = paired(a), paired(b)
    middle = 0.5 * (low_a + high_a) / 2 - (low_b + high_b) / 2
    half = math.hypot(0.5 * (high_a - low_a) / 2, (high_b - low_b) / 2)
    assert (value, low, high) == pytest.approx((0.375, middle - half, middle + half))
    assert all(math.isnan(v) for v in contrast_interval([a, b[:1]], np.array([1.0, 1.0])))
    assert contrast_interval([a, b[:1]], np.array([1.0, 0.0]))[0] == 0.75


def test_hard_classes_do_not_gain_by_chance():
    """Three networks with the same recall in every class: hard classes chosen by the base method
    would seem to gain, chosen by a third network they gain nothing.
    """
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(10), 20)
    fair, naive = [], []
    for _ in range(300):
        new, base, other = random.random((3, len(y))) < 0.6
        fair.append(
            vir_class_gains.measure_gains(new, base, other, y, list("abcdefghij"))["hard_gain"][0]
        )
        naive.append(
            vir_class_gains.measure_gains(new, base, base, y, list("abcdefghij"))["hard_gain"][0]
        )
    error = np.std(fair, ddof=1) / math.sqrt(300)
    assert abs(np.mean(fair)) < 3.5 * error and np.mean(naive) > 10 * error


def test_verdicts_on_planted_gains():
    y = np.repeat(np.arange(4), 100)
    right = np.tile(np.arange(100) < 50, 4)
    other = np.concatenate([np.arange(100) < n for n in (20, 30, 90, 90)])
    better = right | ((y < 2) & (np.arange(400) % 100 < 80))
    for new, base, verdicts in (
        (better, right, ["holds", "holds"]),
        (right, better, ["fails", "fails"]),
        (right, right, ["undecided", "undecided"]),
    ):
        found = vir_class_gains.measure_gains(new, base, other, y, list("abcd"))
        data = FigureData({"methods": dict.fromkeys(vir_class_gains.BASE_METHODS, found)})
        assert (
            found["hard"] == ["a", "b"]
            and [c.reading for c in vir_class_gains.decide_class_gains(data)] == verdicts * 2
        )


def test_a_class_without_images_is_left_out():
    y = np.repeat([0, 2], 50)
    right = np.arange(100) % 3 > 0
    found = vir_class_gains.measure_gains(right, ~right, np.arange(100) < 20, y, ["a", "b", "c"])
    assert (
        math.isnan(found["recall"][1])
        and found["worst"][0] in "ac"
        and np.isfinite(found["mean_gain"]).all()
    )


def test_class_sums_by_hand(four):
    """Σ w in plain loops over the stored weights of the epochs after burn-in."""
    for method, offset in (("vir-at", 0.007), ("vir-trades", 1.6)):
        run = four[method]
        found = vir_class_weights.sum_class_weights(run)
        y = run.data().train.y.tolist()
        sizes = [y.count(k) for k in range(10)]
        assert found["epochs"] == [3] and list(found["n_per_class"]) == sizes
        sums = [0.0] * 10
        for weight, label in zip(run.epoch(3)["train_weight"].tolist(), y, strict=True):
            sums[label] += weight
        assert found["unscaled"][0] == pytest.approx(sums)
        scaled = [total / size * len(y) / 10 for total, size in zip(sums, sizes, strict=True)]
        assert (
            found["sums"][0] == pytest.approx(scaled) and min(scaled) >= found["from_offset"] - 1e-4
        )
        assert found["from_offset"] == pytest.approx(offset * len(y) / 10)
        assert (
            found["mean_weight"]
            == pytest.approx(sum(sums) / len(y))
            == pytest.approx(run.history.weight[2])
        )
        names = run.record["classes"]
        assert (
            found["largest"] == names[scaled.index(max(scaled))]
            and found["smallest"] == names[scaled.index(min(scaled))]
        )
        logits, truth = run.final["test_logits_adv"], run.final["test_y"]
        error = [
            np.mean([row.argmax() != k for row, t in zip(logits, truth, strict=True) if t == k])
            for k in range(10)
        ]
        assert found["robust_error"] == pytest.approx(error)
        assert found["spearman"] == pytest.approx(stats.spearmanr(scaled, error).statistic)


@pytest.mark.parametrize(
    ("alike", "ranks", "verdicts"),
    [
        (4, (0.9, 0.8), ["holds", "holds", "holds"]),
        (1, (0.9, -0.8), ["fails", "holds", "fails"]),
        (2, (-0.1, 0.8), ["fails", "holds", "fails"]),
    ],
)
def test_rules_of_the_class_weights(alike, ranks, verdicts):
    """Both methods weigh class 3 most in `alike` of 5 epochs, else VIR-TRADES class 8; class 1 has
    least.
    """
    facts = {}
    for method, rho in zip(("vir-at", "vir-trades"), ranks, strict=True):
        sums = np.ones((5, 10))
        sums[:, 1] = 0.5
        most = [3 if method == "vir-at" or epoch < alike else 8 for epoch in range(5)]
        sums[range(5), most] = 2
        facts[method] = {
            "largest": "3",
            "largest_epochs": 5,
            "smallest": "1",
            "smallest_epochs": 5,
            "sums": sums,
            "spearman": rho,
            "p": 0.01,
        }
    data = FigureData({"methods": facts})
    assert [claim.reading for claim in vir_class_weights.decide_class_weights(data)] == verdicts


def test_figures_of_vir_name_every_class(four):
    drawing = FIGURES["class-weights"].make(
        {method: four[method] for method in ("vir-at", "vir-trades")}
    )
    assert all(
        [t.get_text() for t in panel.get_xticklabels()] == four["at"].record["classes"]
        for panel in drawing.axes
    )
    assert drawing.facts["n"] == len(four["at"].final["train_y"])
