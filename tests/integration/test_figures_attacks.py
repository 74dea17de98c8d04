"""Figures about attacks:

every number recounted with plain loops, paths walked again by hand, wrong words refused.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import kit
from kit.attacks.basic_iterative import bia
from kit.attacks.carlini_wagner import cw_l2
from kit.attacks.table import ATTACKS
from kit.core.errors import KitError
from kit.core.threat import Threat
from kit.data.splits import Split
from kit.evaluation.statistics import median_interval
from kit.figures import attacked_images as gallery
from kit.figures import mail_attack_paths as paths
from kit.figures import mail_decision_plane as plane
from kit.figures.base import FigureData
from kit.figures.csa_cse_attack_gallery import collect_cells, draw_attack_gallery
from kit.figures.table import FIGURES
from tests.helpers.settings import TINY

N = 30


@pytest.fixture
def run(tiny_run):
    return tiny_run("at")


def gradient_of_loss(model, x, y):
    """The gradient of one image's cross-entropy, from its definition."""
    x = x.clone().requires_grad_(True)
    logits = model(x[None])[0]
    loss = logits.exp().sum().log() - logits[y]
    return torch.autograd.grad(loss, x)[0]


def wrong(model, x, y) -> bool:
    logits = model(x[None])[0].tolist()
    return logits.index(max(logits)) != y


# ------------------------------------------------------------------------------- gallery and curves


def test_balls_of_equal_volume():
    """(2 eps)^d against the ball's volume:

    an interval, a disc, a sphere; and there and back again.
    """
    assert gallery.equal_volume(0.3, "linf", "l2", 1) == pytest.approx(0.3)
    assert math.pi * gallery.equal_volume(0.3, "linf", "l2", 2) ** 2 == pytest.approx(0.6**2)
    assert 4 / 3 * math.pi * gallery.equal_volume(0.3, "linf", "l2", 3) ** 3 == pytest.approx(
        0.6**3
    )
    for pixels in (64, 784, 3072):
        there = gallery.equal_volume(0.03, "linf", "l2", pixels)
        assert gallery.equal_volume(there, "l2", "linf", pixels) == pytest.approx(0.03)
        assert gallery.equal_volume(0.03, "l2", "l2", pixels) == 0.03


def test_gallery_counts_fgsm_by_hand(run):
    facts = FIGURES["attack-gallery"].make(run, attacks="fgsm pgd20", eps="0.1 0.3", n=N).facts
    model, test = run.model(), run.data().test
    for eps, count in zip((0.1, 0.3), facts["broken"]["fgsm"], strict=True):
        k = 0
        for image, y in zip(test.x(slice(0, N)), test.y[:N].tolist(), strict=True):
            x_adv = (image + eps * gradient_of_loss(model, image, y).sign()).clamp(0, 1)
            k += wrong(model, image, y) or wrong(model, x_adv, y)
        p, z = k / N, 1.959964
        centre, half = p + z * z / (2 * N), z * math.sqrt(p * (1 - p) / N + z * z / (4 * N * N))
        assert 0 < k < N and count["k"] == k and count["radius"] == eps
        assert [count["low"], count["high"]] == pytest.approx(
            [(centre + sign * half) / (1 + z * z / N) for sign in (-1, 1)]
        )
    assert facts["wrong_when_clean"] == sum(
        wrong(model, image, y)
        for image, y in zip(test.x(slice(0, N)), test.y[:N].tolist(), strict=True)
    )


def test_gallery_example_is_what_it_says(run):
    """Two chosen images:

    label, id, class, p_y and norms at both radii follow from the attack's own images.
    """
    drawing = FIGURES["attack-gallery"].make(
        run, attacks="fgsm bia:l2", eps="0.05 0.1", examples="3 11", n=N
    )
    model, images = gallery.first_images(run, N)
    found = gallery.attack_images(model, images, "linf", ["fgsm", "bia:l2"], [0.05, 0.1])
    assert list(drawing.facts["examples"]) == [3, 11]
    for row, facts in drawing.facts["examples"].items():
        assert facts["id"] == int(images.ids[row]) and facts["y"] == int(images.y[row])
        for name, cells in facts["attacks"].items():
            for cell, (result, _) in zip(cells, found[name], strict=True):
                delta = (result.x_adv[row] - images.x()[row]).flatten().double().tolist()
                z = model(result.x_adv[row][None])[0].tolist()
                assert cell["p_y"] == pytest.approx(
                    math.exp(z[facts["y"]]) / sum(map(math.exp, z)), abs=1e-5
                )
                assert cell["prediction"] == z.index(max(z)) and cell["broken"] == bool(
                    result.broken[row]
                )
                assert cell["linf"] == pytest.approx(max(map(abs, delta)), abs=1e-6)
                assert cell["l2"] == pytest.approx(math.hypot(*delta), abs=1e-6)
    texts = [axes.get_xlabel() for axes in drawing.axes]
    first = drawing.facts["examples"][3]["attacks"]["fgsm"][0]
    assert f"{first['prediction']}, $p_y$ {first['p_y']:.2f}" in texts


def test_attacks_stay_in_their_balls(run):
    """All rows of the default gallery at two radii:

    pixels, norms, flags and the step that grows with the radius.
    """
    model, images = gallery.first_images(run, N)
    names, radii = ["fgsm", "pgd20", "mia", "bia", "bia:l2", "cw-l2"], [0.1, 0.2]
    found = gallery.attack_images(model, images, "linf", names, radii)
    for name, results in found.items():
        for (result, threat), eps in zip(results, radii, strict=True):
            assert threat.eps == (
                eps if threat.norm == "linf" else gallery.equal_volume(eps, "linf", "l2", 64)
            )
            assert float(result.x_adv.min()) >= 0 and float(result.x_adv.max()) <= 1
            if name != "cw-l2":
                assert float(result.size.max()) <= threat.eps + 1e-5
    by_hand = bia(model, images.x(), images.y, Threat("linf", 0.1), step_size=0.025)
    assert torch.equal(found["bia"][0][0].x_adv, by_hand.x_adv)
    nearest = cw_l2(
        model, images.x(), images.y, Threat("l2", 9.0), steps=100, search_steps=8, lr=0.1
    )
    for result, threat in found["cw-l2"]:
        assert result.broken.tolist() == [
            size <= threat.eps + 1e-6 for size in nearest.size.tolist()
        ]


def test_curves_are_the_same_count(run):
    """The curves' facts are the gallery's, and their claim is the paired difference of two
    evaluations.
    """
    drawing = FIGURES["attack-curves"].make(run, attacks="fgsm bia", eps="0.1 0.2", n=N)
    assert (
        drawing.facts["broken"]
        == FIGURES["attack-gallery"]
        .make(run, attacks="fgsm bia", eps="0.1 0.2", n=N)
        .facts["broken"]
    )
    table = kit.evaluate(run, ["fgsm", "pgd20"], quiet=True)
    one, many = (table.attrs["examples"][name]["broken"] for name in ("fgsm", "pgd20"))
    fewer = [int(b) - int(a) for a, b in zip(one, many, strict=True)]
    invented = [*fewer, 1, -1]
    mean, centre = np.mean(fewer), np.mean(invented)
    half = 1.959964 * np.std(invented) / math.sqrt(len(invented))
    claim = drawing.claims[0]
    assert (
        f"paired {100 * mean:+.1f} points [{100 * (centre - half):+.1f}, "
        f"{100 * (centre + half):+.1f}]" in claim.here
    )
    wanted = "holds" if centre > half else "fails" if centre < -half else "undecided"
    assert claim.reading == wanted


def test_fgsm_has_full_length(run):
    claim = FIGURES["attack-gallery"].make(run, attacks="fgsm", n=N).claims[0]
    assert claim.reading == "holds"
    assert f"eps {TINY['eps']:g}: norms 0.1 to 0.1 on {N} images" in claim.here


def test_colour_images():
    """Three channels:

    pictures have the image's pixels, and the perturbation lies around grey at the stated factor.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    images = Split(
        torch.randint(60, 200, (4, 3, 4, 4), dtype=torch.uint8),
        torch.zeros(4).long(),
        torch.arange(4),
    )
    images = Split(
        images.images, model(images.x()).argmax(dim=1), images.ids
    )  # right when clean, so attacks move them
    found = gallery.attack_images(model, images, "linf", ["fgsm", "cw-l2"], [0.05, 0.1])
    extras = {
        "cells": {row: collect_cells(model, images, found, row) for row in (0, 2)},
        "classes": ["cat", "dog", "automobile"],
    }
    drawing = draw_attack_gallery(FigureData({"eps": [0.05, 0.1], "broken": found}, extras=extras))
    shown = [np.asarray(axes.images[0].get_array()) for axes in drawing.axes if axes.images]
    assert len(drawing.axes) == 28 and len(shown) == 16, "CW-L2 has one pair, in columns of its own"
    assert all(picture.shape == (4, 4, 3) for picture in shown)
    assert shown[0] == pytest.approx(images.x()[0].permute(1, 2, 0).numpy())
    x_adv = found["fgsm"][1][0].x_adv[0]
    delta = (x_adv - images.x()[0]).permute(1, 2, 0).numpy()
    assert shown[3] == pytest.approx(x_adv.permute(1, 2, 0).numpy())
    assert (
        shown[4] == pytest.approx(0.5 + delta * 5, abs=1e-5)
        and "×5\nL∞ 0.1" in drawing.axes[4].get_xlabel()
    )


# -------------------------------------------------------------------------------------------- paths


def test_pgd_walked_by_hand(run):
    """LPS, loss and PM of PGD from the clean image, one image and one step at a time."""
    model, images = gallery.first_images(run, 8)
    steps, eps = 6, TINY["eps"]
    walk = paths.record_both_attacks(
        model, images, Threat("linf", eps), steps, 2.5 / steps, follow=2
    )["PGD"]
    for i, (image, y) in enumerate(zip(images.x(), images.y.tolist(), strict=True)):
        x, lps = image, steps
        for t in range(steps):
            z = [float(v) for v in model(x[None])[0].detach().double()]
            p = [math.exp(v) / sum(map(math.exp, z)) for v in z]
            assert walk.loss[t, i] == pytest.approx(-math.log(p[y]), abs=1e-4)
            assert walk.margin[t, i] == pytest.approx(p[y] - max(p[:y] + p[y + 1 :]), abs=1e-4)
            lps = min(lps, t) if z.index(max(z)) != y else lps
            if i == 2:
                assert torch.allclose(walk.points[t], x, atol=1e-6)
            moved = x + 2.5 * eps / steps * gradient_of_loss(model, x, y).sign()
            x = moved.clamp(image - eps, image + eps).clamp(0, 1)
        assert walk.lps[i] == lps
        assert walk.pm[i] == walk.margin[-1, i]


def test_starts_are_recounted(run):
    steps, count = 5, 4
    facts = FIGURES["lps-starts"].make(run, count=count, n=N, steps=steps, examples="4 7").facts
    model, images = gallery.first_images(run, N)
    threat, length = Threat("linf", TINY["eps"]), 0.25 * TINY["eps"]
    lps = [
        paths.record_from_start(model, images, threat, steps, length, i).lps for i in range(count)
    ]
    moved = torn = 0
    for i in range(N):
        values = [int(one[i]) for one in lps]
        moved += max(values) - min(values) >= 2
        torn += steps in values and min(values) < steps
    assert facts["moved"]["k"] == moved and facts["torn"]["k"] == torn and sum(facts["spread"]) == N
    assert list(facts["examples"]) == [4, 7] and facts["examples"][7].tolist() == [
        int(one[7]) for one in lps
    ]
    alone = Split(images.images[7:8], images.y[7:8], images.ids[7:8])
    single = paths.record_from_start(model, alone, threat, steps, length, 1)
    assert single.lps[0] == lps[1][7], "a start depends on the image's id alone"
    assert len({one.tobytes() for one in lps}) > 1, "starts differ"


def test_two_attacks_are_recounted(run):
    steps = 12
    facts = FIGURES["pgd-against-lmpgd"].make(run, n=60, steps=steps).facts
    a, b = (facts["lps"][name].tolist() for name in ("PGD", "LM-PGD"))
    survivors = [y for x, y in zip(a, b, strict=True) if x == steps]
    assert facts["hidden"]["n"] == len(survivors) and facts["hidden"]["k"] == sum(
        y < steps for y in survivors
    )
    others = [x for x, y in zip(a, b, strict=True) if y == steps]
    assert facts["hidden_from_lmpgd"]["n"] == len(others)
    assert facts["hidden_from_lmpgd"]["k"] == sum(x < steps for x in others)
    gaps = sorted(x - y for x, y in zip(a, b, strict=True) if x > 0 and (x < steps or y < steps))
    assert facts["n_either"] == len(gaps) and facts["difference"][0] == np.median(gaps)
    assert facts["change"]["lps"] == pytest.approx(
        sum(abs(x - y) for x, y in zip(a, b, strict=True)) / 60 / steps
    )
    row = facts["example"]["row"]
    assert a[row] - b[row] == max(x - y for x, y in zip(a, b, strict=True))
    model, images = gallery.first_images(run, 60)
    walks = paths.record_both_attacks(model, images, Threat("linf", TINY["eps"]), steps, 0.25)
    assert facts["rank"]["pm"] == pytest.approx(
        stats.spearmanr(walks["PGD"].pm, walks["LM-PGD"].pm).statistic
    )
    assert facts["rank"]["lps"] == pytest.approx(stats.spearmanr(a, b).statistic)
    wrong_clean = [
        wrong(model, image, y) for image, y in zip(images.x(), images.y.tolist(), strict=True)
    ]
    assert [x == 0 for x in a] == [y == 0 for y in b] == wrong_clean, (
        "both start at the clean image"
    )


def test_the_paths_take_the_papers_step_and_say_what_another_does(run):
    """MAIL's 2/255 of 8/255 for both attacks; each other length as if it had been asked for."""
    make = FIGURES["pgd-against-lmpgd"].make
    drawing = make(run, n=40, steps=12)
    facts = drawing.facts
    assert facts["step"] == run.plan.recipe.step == 0.25
    around = facts["by_step"]["around"]
    assert list(around) == [0.05, 0.1, 0.25]
    assert around[0.25]["difference"] == facts["difference"]
    asked = make(run, n=40, steps=12, step=0.05).facts
    assert asked["step"] == 0.05 and list(asked["by_step"]["around"]) == [0.05, 0.1]
    assert asked["difference"] == around[0.05]["difference"]
    model, images = gallery.first_images(run, 40)
    threat = run.plan.recipe.threat
    walks = [
        paths.record_both_attacks(model, images, threat, 12, step, longest=longest)
        for step, longest in ((0.25, 1), (0.25 / 4, 4))
    ]
    assert (walks[0]["LM-PGD"].lps == walks[1]["LM-PGD"].lps).all(), "the search alone is shorter"
    assert facts["by_step"]["up to"][0.25] == paths.compare_lps(walks[0], 12)
    assert "12 steps of 0.25 eps" in drawing.caption and "0.05 eps" in drawing.caption


def test_rank_correlations():
    """Ties as scipy has them; noise in one pair alone shows; nothing is said of constants."""
    random = np.random.default_rng(1)
    lps, pm = random.integers(0, 5, 80), random.normal(size=80)
    found = paths.compare_ranks(
        (lps, random.permutation(lps)), (pm, pm + 0.1 * random.normal(size=80))
    )
    assert found["pm"] > 0.9 > found["lps"] and found["difference"] == pytest.approx(
        found["pm"] - found["lps"]
    )
    assert (
        0 < found["low"] < found["difference"] < found["high"]
        and paths.decide_rank_order("c", found, "images").reading == "holds"
    )
    turned = paths.compare_ranks((pm, pm), (lps, random.permutation(lps)))
    assert (
        turned["lps"] == pytest.approx(1)
        and paths.decide_rank_order("c", turned, "images").reading == "fails"
    )
    same = paths.compare_ranks((lps, lps + 1), (pm, pm))
    assert (
        same["difference"] == pytest.approx(0)
        and paths.decide_rank_order("c", same, "images").reading == "undecided"
    )
    constant = paths.compare_ranks((np.full(80, 3), lps), (pm, pm))
    assert (
        constant["lps"] is None
        and paths.decide_rank_order("c", constant, "images").reading == "undecided"
    )


@pytest.mark.parametrize("n", [6, 7, 10, 25, 60])
def test_median_interval_covers(n):
    """Order statistics k and n + 1 - k bracket the median with probability 1 - 2 P(B < k) >= 95 %;
    k + 1 would not.
    """
    middle, low, high = median_interval(np.arange(1, n + 1))
    k = int(low)
    outside = [2 * sum(math.comb(n, j) for j in range(i)) / 2**n for i in (k, k + 1)]
    assert outside[0] <= 0.05 < outside[1] and high == n + 1 - k and middle == (n + 1) / 2


def test_directions_span_the_plane(run):
    model, images = gallery.first_images(run, 3)
    one = images.take(slice(2, 3))
    walks, x = paths.record_both_attacks(model, one, Threat("linf", 0.1), 8, 0.3), one.x()[0]
    axes_of = plane.find_directions(walks, x, 2)
    assert torch.allclose(axes_of @ axes_of.T, torch.eye(2, dtype=torch.float64), atol=1e-9)
    on, off = plane.project_paths(walks, x, axes_of)
    end = (walks["PGD"].points[-1] - x).flatten().double()
    assert on["PGD"][-1].tolist() == pytest.approx([float(end.norm()), 0], abs=1e-6)
    end = (walks["LM-PGD"].points[-1] - x).flatten().double()
    assert torch.allclose(on["LM-PGD"][-1] @ axes_of, end, atol=1e-6), "the end lies in the plane"
    assert on["PGD"][0].tolist() == [0, 0] and all(0 <= share < 1 for share in off.values())
    collinear = plane.find_directions({"PGD": walks["PGD"], "LM-PGD": walks["PGD"]}, x, 2)
    assert torch.allclose(collinear @ collinear.T, torch.eye(2, dtype=torch.float64), atol=1e-9)
    still = paths.AttackPath(
        walks["PGD"].lps, walks["PGD"].loss, walks["PGD"].margin, x.expand(8, *x.shape)
    )
    with pytest.raises(KitError, match="did not move test image 2"):
        plane.find_directions({"PGD": still, "LM-PGD": walks["LM-PGD"]}, x, 2)


def test_plane_facts(run):
    facts = FIGURES["decision-plane"].make(run, example=5, n=N, steps=8).facts
    classes, test = run.record["classes"], run.data().test
    assert facts["row"] == 5 and facts["id"] == int(test.ids[5]) and facts["y"] == int(test.y[5])
    said = int(run.model()(test.x(slice(5, 6))).argmax())
    assert classes[said] in facts["classes"], "the class of the image itself is in the picture"
    both = FIGURES["pgd-against-lmpgd"].make(run, example=5, n=N, steps=8).facts["example"]
    assert both["lps"] == facts["lps"] and both["row"] == 5
    chosen = FIGURES["decision-plane"].make(run, n=N, steps=8).facts["row"]
    assert chosen == FIGURES["pgd-against-lmpgd"].make(run, n=N, steps=8).facts["example"]["row"]


# -------------------------------------------------------------------------------------- wrong words


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("attack-gallery", {"attacks": "fgsm pdg20"}, "Did you mean 'pgd20'"),
        ("attack-gallery", {"attacks": ""}, "names none. Choices: natural"),
        ("attack-gallery", {"attacks": "bia:l1"}, "no norm 'l1'"),
        ("attack-gallery", {"attacks": "cw-l2:linf"}, "minimises the L2 norm"),
        ("attack-gallery", {"examples": "2 30", "n": N}, "0 to 29"),
        ("attack-gallery", {"examples": "first", "n": N}, "example first must be the number"),
        ("attack-gallery", {"eps": "0.1 big"}, "radii above 0"),
        ("attack-curves", {"eps": "0 0.1"}, "radii above 0"),
        ("attack-curves", {"n": 498}, "has 497 test images"),
        ("attack-curves", {"n": 0}, "at least 1"),
        ("lps-starts", {"count": 1}, "at least 2"),
        ("lps-starts", {"steps": -1}, "at least 0"),
        ("lps-starts", {"examples": "200"}, "0 to 199"),
        ("pgd-against-lmpgd", {"example": 200}, "0 to 199"),
        ("pgd-against-lmpgd", {"example": -2}, "0 to 199"),
        ("pgd-against-lmpgd", {"step": -0.1}, "at least 0"),
        ("decision-plane", {"steps": 0}, "at least 1"),
        ("decision-plane", {"example": 10, "n": 10}, "0 to 9"),
    ],
)
def test_wrong_words_are_refused(run, name, options, words):
    with pytest.raises(KitError, match=words):
        FIGURES[name].make(run, **options)


def test_every_gallery_row_resolves():
    """All of ATTACKS can be asked for in both norms, but CW-L2 in L-inf."""
    for name in ATTACKS:
        attack, norm = gallery.resolve_attack(name, "linf")
        assert attack.fn is ATTACKS[name].fn and norm == ("l2" if name == "cw-l2" else "linf")
        assert gallery.resolve_attack(f"{name}:l2", "linf")[1] == "l2"
    assert (
        gallery.attack_and_norm_label("bia:l2") == "BIA (L2)"
        and gallery.attack_and_norm_label("pgd20") == "PGD-20"
    )
