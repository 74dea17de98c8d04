"""The simplex and the inspector:

where points lie, what they weigh, which image is found; against second computations.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from kit.core.errors import KitError
from kit.methods.table import METHODS
from kit.widgets.inspected_images import FAMILIES, family_methods
from kit.widgets.inspector_panel import WATCHED_ATTACKS, inspect
from kit.widgets.simplex_panel import READERS, end_of_line, place_examples, simplex


def weight_of(sentence: str, name: str) -> float:
    return float(re.search(rf"{re.escape(name)}'s (?:weight|score) is ([-\d.e]+)", sentence)[1])


# -------------------------------------------------------------------------------------- the simplex


def test_methods_that_read_no_more_than_the_attacked_probabilities():
    assert {"mail-at", "clirat", "mr-mail", "wmmr", "ewat", "mr-mail-literal"} <= set(READERS)
    assert not {
        "at",
        "gairat",
        "vir-at",
        "mail-at-nat",
        "mail-at-dif",
        "clirat-drop-single",
        "at-scaled",
    } & set(READERS)


@pytest.mark.parametrize(
    ("rise", "p"),
    [
        (0.0, (0.35, 0.65, 0.0)),
        (0.5, (1.45 / 6, 3.25 / 6, 1.3 / 6)),
        (1.0, (0.4 / 3, 1.3 / 3, 1.3 / 3)),
    ],
)
def test_a_point_rises_along_the_line_of_equal_margin(rise, p):
    """Weights by hand:

    MAIL σ(-10 (PM + 0.5)), CLIRAT the same of the sum of the gaps, MR of PM (2 - o) c.
    """
    panel = simplex()
    panel.set(margin=-0.3, rise=rise)
    sigma = [
        1 / (1 + math.exp(10 * (m + 0.5))) for m in (-0.3, sum(min(p[0] - q, 0) for q in p[1:]))
    ]
    assert weight_of(panel.sentence, "MAIL-AT") == pytest.approx(sigma[0], rel=6e-3)
    assert weight_of(panel.sentence, "CLIRAT") == pytest.approx(sigma[1], rel=6e-3)
    x, up = (float(values[0]) for values in panel.dots[0].get_data())
    assert x == -0.3 and up == pytest.approx(math.sqrt(3) * p[2])
    panel.set(right="mr-mail")
    ratio, similarity = p[1] / (1 - p[0]), math.hypot(p[1], p[2]) / math.hypot(*p)
    mr = 1 / (1 + math.exp(10 * (-0.3 * (2 - ratio) * similarity + 0.5)))
    assert weight_of(panel.sentence, "MR-MAIL") == pytest.approx(mr, rel=6e-3)


def test_no_margin_method_moves_along_the_line_and_the_others_do():
    panel = simplex()
    panel.set(margin=-0.4)
    for left, moves in (
        ("mail-at", False),
        ("wmmr", False),
        ("mr-mail", True),
        ("clirat", True),
        ("ewat", True),
    ):
        panel.set(left=left)
        heights = panel.curves[0].get_ydata()
        assert (np.ptp(heights) > 1e-3) == moves, left


@pytest.mark.parametrize("k", [3, 4, 10])
@pytest.mark.parametrize("margin", [-0.9, -0.3, 0.0, 0.5])
def test_the_line_ends_where_its_margin_would(k, margin):
    end = end_of_line(margin, k)
    for others, inside in ((end - 1e-6, True), (end + 1e-6, False)):
        p_y, p_2 = (1 - others + margin) / 2, (1 - others - margin) / 2
        assert (p_y >= 0 and p_2 >= others / (k - 2)) == inside


def test_examples_lie_in_the_region_of_their_confused_labels(tiny_run):
    run = tiny_run("mail-at")
    panel = simplex(run)
    found = panel.examples(3)
    arrays = run.epoch(3)
    p = np.exp(arrays["seen_logits_adv"].astype(float))
    p /= p.sum(axis=1, keepdims=True)
    y = arrays["seen_y"].astype(int)
    own = p[np.arange(len(y)), y]
    rivals = np.sort(np.where(np.eye(p.shape[1], dtype=bool)[y], -1, p), axis=1)[:, :-3:-1]
    assert (
        np.array_equal(found.kind, np.minimum((p > own[:, None]).sum(axis=1), 2))
        and len(set(found.kind)) > 1
    )
    at = place_examples(found.probs, found.y, "third class")
    share = np.stack([own, *rivals.T], axis=1) / (own + rivals.sum(axis=1))[:, None]
    assert np.allclose(
        at, np.stack([share[:, 0] - share[:, 1], math.sqrt(3) * share[:, 2]], axis=1)
    )
    third = at[:, 1] / math.sqrt(3)
    right, several = at[:, 0] >= 0, (1 - third + at[:, 0]) / 2 < third  # p_y against p_3
    assert np.array_equal(found.kind, np.where(right, 0, np.where(several, 2, 1)))
    at = place_examples(found.probs, found.y, "all others")
    assert np.allclose(at[:, 0], own - rivals[:, 0]) and np.allclose(
        at[:, 1], math.sqrt(3) * (1 - own - rivals[:, 0])
    )


def test_the_sentence_counts_the_epoch_and_its_weights(tiny_run):
    panel = simplex(tiny_run("mail-at"))
    for epoch in (1, 3):
        panel.set(epoch=epoch)
        found = panel.examples(epoch)
        counts = [int((found.kind == kind).sum()) for kind in range(3)]
        assert (
            f"{counts[0]} have no confused label, {counts[1]} one and {counts[2]} several"
            in panel.sentence
        )
        gaps = (
            (found.probs - found.probs[torch.arange(len(found.y)), found.y][:, None])
            .clamp_min(0)
            .sum(dim=1)
        )
        pm = found.probs[torch.arange(len(found.y)), found.y] - found.probs.scatter(
            1, found.y[:, None], -1
        ).amax(dim=1)
        w = 1 / (1 + np.exp(-10 * (np.where(gaps > 0, gaps, -pm) - 0.5)))
        assert f"{w[found.kind == 2].sum() / w.sum():.1%} of CLIRAT's" in panel.sentence
        assert sum(len(cloud.get_offsets()) for cloud in panel.clouds[1]) == len(found.y)


def test_a_drag_sets_the_point_and_stays_on_the_triangle():
    panel = simplex()
    panel.point(panel.triangles[1], 0.2, math.sqrt(3) * 0.1, True)
    assert panel.values["margin"] == pytest.approx(0.2) and panel.values["rise"] == pytest.approx(
        0.1 * 3 / 0.8, abs=0.01
    )
    panel.point(panel.triangles[0], -5.0, 9.0, False)
    assert panel.values["margin"] == -0.96 and panel.values["rise"] == 1
    panel.nudge(-1, 1)
    assert panel.values["margin"] == -0.96 and panel.values["rise"] == 1
    panel.nudge(3, -2)
    assert panel.values["margin"] == pytest.approx(-0.9) and panel.values["rise"] == pytest.approx(
        0.96
    )


def test_a_run_without_what_it_needs_is_refused(tiny_run, monkeypatch):
    run = tiny_run("mail-at")
    monkeypatch.setattr(type(run), "epoch", lambda self, number: {"seen_y": np.zeros(3)})
    with pytest.raises(KitError, match="stored no seen_logits_adv"):
        simplex(run)
    run.__dict__["final"] = {"train_y": np.zeros(3)}
    with pytest.raises(KitError, match="no logits of its test images"):
        inspect(run)


def test_two_classes_have_no_triangle(tiny_run):
    with pytest.raises(KitError, match="two classes"):
        simplex(tiny_run("at", data="mixture", model="linear"))


# ------------------------------------------------------------------------------------ the inspector


def test_every_reweighting_method_is_in_a_family():
    assert {name for words in FAMILIES for name in family_methods(words)} == {
        name for name, row in METHODS.items() if row.reweights
    }


def test_pgd_with_the_runs_settings_ends_where_its_last_pass_did(tiny_run):
    run = tiny_run("mail-at")
    panel = inspect(run)
    for place in (0, 7):
        panel.set(place=place)
        path = panel.attack_path("test", place, "PGD", run.plan.recipe.eps, run.plan.recipe.step)
        assert np.allclose(
            path.logits[run.plan.recipe.steps], run.final["test_logits_adv"][place], atol=1e-4
        )
        assert path.kappa == run.final["test_kappa"][place]
        assert path.p_flip == pytest.approx(float(run.final["test_p_flip"][place]), abs=1e-4)


def test_weights_are_over_the_mean_of_the_stored_batch(tiny_run):
    run = tiny_run("mail-at")
    panel = inspect(run)
    panel.set(place=3)
    p = torch.from_numpy(run.final["test_logits_adv"][:500]).double().softmax(dim=1)
    y = torch.from_numpy(run.final["test_y"][:500]).long()
    pm = p.gather(1, y[:, None]).squeeze(1) - p.scatter(1, y[:, None], -1).amax(dim=1)
    w = torch.sigmoid(-10 * (pm + 0.5))
    said = float(re.search(r"mail-at ([\d.]+)", panel.sentence)[1])
    assert said == pytest.approx(float(w[3] / w.mean()), abs=0.02)
    assert f"PM {float(pm[3]):+.2f}" in panel.sentence


def test_a_weight_is_that_of_the_image_as_it_is_at_the_step(tiny_run):
    """In a ball three times as large every number is another than the stored one; each is put into
    its row by hand.
    """
    run = tiny_run("mail-at")
    steps, kappa = run.plan.recipe.steps, torch.from_numpy(run.final["test_kappa"][:500]).double()
    row = int((kappa == steps).nonzero()[0])
    panel = inspect(run)
    panel.set(place=row, eps=0.3, step=2)
    path = panel.attack_path("test", row, "PGD", 0.3, run.plan.recipe.step)
    assert path.kappa < steps
    p = torch.from_numpy(run.final["test_logits_adv"][:500]).double().softmax(dim=1)
    y = torch.from_numpy(run.final["test_y"][:500]).long()
    p[row], kappa[row] = path.logits[2].softmax(dim=0), path.kappa
    mail = torch.sigmoid(
        10 * (p.scatter(1, y[:, None], -1).amax(dim=1) - p.gather(1, y[:, None]).squeeze(1) - 0.5)
    )
    gairat = (1 + torch.tanh(-1 - 5 * (kappa - steps // 2) / (steps // 2))) / 2
    for name, w in (("mail-at", mail), ("gairat", gairat)):
        said = float(re.search(rf"(?<![-\w]){name} ([\d.]+)", panel.sentence)[1])
        assert said == pytest.approx(float(w[row] / w.mean()), abs=0.006), name
    assert float(mail[row] / mail.mean()) > 0.02


def test_no_step_leaves_the_ball_or_the_start_behind(tiny_run):
    run = tiny_run("mail-at")
    panel = inspect(run)
    x = run.data().test.x(slice(0, 1))
    for attack in WATCHED_ATTACKS:
        for eps in (0.05, 0.1):
            path = panel.attack_path("test", 0, attack, eps, 1.0 if attack == "FGSM" else 0.5)
            assert len(path.points) == len(path.logits) == 2 * run.plan.recipe.steps + 1
            assert float((path.points[1:] - x).abs().max()) <= eps + 1e-6
            assert float((path.points[0] - x).abs().max()) < 0.01
            with torch.no_grad():
                assert torch.allclose(run.model()(path.points).double(), path.logits, atol=1e-4)
    first = panel.attack_path("test", 0, "FGSM", 0.1, 1.0).points[1] - x[0]
    moved = first.abs()[(x[0] > 0.1) & (x[0] < 0.9)]
    assert bool(((moved - 0.1).abs() < 1e-6).logical_or(moved == 0).all())


def test_searches_find_what_they_say(tiny_run):
    run = tiny_run("mail-at")
    panel = inspect(run)
    p = torch.from_numpy(run.final["test_logits_adv"]).double().softmax(dim=1)
    y = torch.from_numpy(run.final["test_y"]).long()
    counts = (p > p.gather(1, y[:, None])).sum(dim=1)
    panel.set(order="most confused labels")
    assert f"{int(counts.max())} confused label" in panel.sentence
    panel.set(order="nearest to the boundary")
    pm = p.gather(1, y[:, None]).squeeze(1) - p.scatter(1, y[:, None], -1).amax(dim=1)
    assert panel.row(panel.values) == int(pm.abs().argmin())
    panel.set(order="most by clirat, least by mail-at")
    gaps = (p - p.gather(1, y[:, None])).clamp_min(0).sum(dim=1)
    clirat, mail = (torch.sigmoid(10 * (score - 0.5)) for score in (gaps.where(gaps > 0, -pm), -pm))
    assert panel.row(panel.values) == int((clirat / clirat.mean() - mail / mail.mean()).argmax())


def test_a_class_keeps_its_images_alone(tiny_run):
    panel = inspect(tiny_run("mail-at"))
    panel.set(**{"class": "7"})
    last = next(control for control in panel.shown_controls if control.name == "place").high
    assert last + 1 == (panel.pool("test").y == 7).sum()
    for place in (0, int(last)):
        panel.set(place=place)
        assert "class 7)" in panel.sentence
    with pytest.raises(KitError, match="from 0 to"):
        panel.set(place=int(last) + 1)
    with pytest.raises(KitError, match="Choices"):
        panel.set(**{"class": "eleven"})


def test_the_areas_are_the_probabilities(tiny_run):
    panel = inspect(tiny_run("mail-at"))
    path = panel.attack_path("test", 0, "PGD", 0.1, 0.25)
    p, y = path.logits.softmax(dim=1).numpy(), int(panel.pool("test").y[0])
    tops = [layer.get_paths()[0].vertices[:, 1].max() for layer in panel.layers]
    assert tops[0] == pytest.approx(p[:, y].max()) and tops[-1] == 1
    rivals = np.sort(np.delete(p[-1], y))[::-1][:3]
    assert panel.names[1].xy[1] == pytest.approx(p[-1, y] + rivals[0] / 2)


def test_two_classes_can_be_inspected(tiny_run):
    panel = inspect(tiny_run("at", data="mixture", model="linear"))
    panel.set(place=5, step=1)
    assert "confused label" in panel.sentence and len(panel.layers) == 3
