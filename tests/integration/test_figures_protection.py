"""Protection, the origin of Min-Max, hard classes and scores along paths, computed twice."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import kit
from kit.evaluation.statistics import paired_difference
from kit.figures import vir_class_hardness
from kit.figures.base import FigureData
from kit.figures.csa_cse_protection import decide_class_protection, decide_min_max_origin
from kit.figures.score_paths import (
    compare_starts,
    decide_score_paths,
    describe_score_paths,
    draw_score_paths,
    measure_jumps,
)
from kit.figures.table import FIGURES
from kit.figures.vir_class_hardness import decide_class_hardness

UP, DOWN, NONE = (0.3, 0.1, 0.5), (-0.3, -0.5, -0.1), (0.0, -0.2, 0.2)


# --------------------------------------------------------------------------- the protected class


def protection(steps, natural, attacked):
    """Facts of a figure in which CSA and CSE differ alike from STD."""
    return FigureData(
        {
            "attack": "pgd20",
            "steps": dict(zip(("CSA+L2 - ADV", "CSA - CSA+L2"), steps, strict=True)),
            "above_std": {
                method: {"natural": natural, "pgd20": attacked} for method in ("csa", "cse")
            },
        }
    )


@pytest.mark.parametrize(
    "steps, verdict",
    [((UP, UP), "holds"), ((UP, DOWN), "fails"), ((UP, NONE), "undecided")],
)
def test_protection_must_rise_at_each_step(steps, verdict):
    claims = decide_class_protection(protection(steps, NONE, UP))
    assert [c.reading for c in claims if c.number in (74, 104)] == [verdict, verdict]


@pytest.mark.parametrize(
    "natural, attacked, verdict",
    [
        ((0.0, -0.004, 0.004), UP, "holds"),
        ((0.0, -0.006, 0.004), UP, "undecided"),
        (DOWN, UP, "fails"),
        (UP, DOWN, "fails"),
    ],
)
def test_unharmed_is_half_a_point_and_better_is_above_0(natural, attacked, verdict):
    claims = decide_class_protection(protection((UP, UP), natural, attacked))
    assert [c.reading for c in claims if c.number == 88] == [verdict, verdict]


def test_facts_of_protection_are_those_of_the_evaluations(tiny_run):
    runs = {method: tiny_run(method) for method in FIGURES["class-protection"].methods}
    facts = FIGURES["class-protection"].make(runs).facts
    broken, y = {}, None
    for method, run in runs.items():
        found = kit.evaluate(run, ["natural", "pgd20"], quiet=True).attrs["examples"]
        broken[method] = {name: found[name]["broken"] for name in found}
        y = found["natural"]["y"]
    mine = y == 0
    assert facts["protected"] == "0" and facts["n_protected"] == mine.sum()
    assert facts["steps"]["CSA - CSA+L2"] == paired_difference(
        broken["csa-l2"]["pgd20"][mine], broken["csa"]["pgd20"][mine]
    )
    gain = broken["std"]["natural"].mean() - broken["cse"]["natural"].mean()
    assert facts["above_std"]["cse"]["natural"][0] == pytest.approx(gain)
    assert facts["accuracy"]["pgd20"]["all"]["adv"]["share"] == pytest.approx(
        1 - broken["adv"]["pgd20"].mean()
    )


# --------------------------------------------------------------------- where Min-Max comes from


def test_the_origin_of_min_max_compares_networks_of_one_start(tiny_run):
    runs = {method: tiny_run(method) for method in ("std", "adv")}
    drawing = FIGURES["min-max-origin"].make(runs)
    for which, run, moment in (
        ("initial", "adv", "initial"),
        ("std", "std", "last"),
        ("adv", "adv", "last"),
    ):
        w = runs[run].model(moment).state_dict()["0.weight"].double().abs()
        found = drawing.facts["networks"][which]
        assert found["below_0.05"] == pytest.approx(float((w < 0.05).double().mean()))
        assert found["max"] == pytest.approx(float(w.max()))


@pytest.mark.parametrize("near, largest", [(0.1, 0.5), (-0.1, 0.5), (0.1, -0.5)])
def test_min_max_is_more_near_zero_and_a_larger_maximum(near, largest):
    networks = {
        "initial": {"below_0.05": 0.3, "max": 1.0},
        "std": {"below_0.05": 0.3, "max": 1.0},
        "adv": {"below_0.05": 0.3 + near, "max": 1.0 + largest},
    }
    claims = decide_min_max_origin(FigureData({"networks": networks}))
    assert [c.reading for c in claims] == ["holds" if d > 0 else "fails" for d in (near, largest)]


# ------------------------------------------------------------------------------ hard classes


def test_errors_by_class_and_their_correlation(tiny_run):
    runs = {method: tiny_run(method) for method in ("std", "at")}
    facts = FIGURES["class-hardness"].make(runs).facts
    errors = {}
    for method, run in runs.items():
        found = kit.evaluate(run, ["natural"], quiet=True).attrs["examples"]["natural"]
        errors[method] = np.array([found["broken"][found["y"] == k].mean() for k in range(10)])
        assert [e["share"] for e in facts["errors"][method]] == pytest.approx(list(errors[method]))
    found = {m: kit.evaluate(r, ["natural"], quiet=True) for m, r in runs.items()}
    halves = {method: [[], []] for method in runs}
    for method, table in found.items():
        examples = table.attrs["examples"]["natural"]
        for k in range(10):
            mine = examples["broken"][examples["y"] == k]
            for part in (0, 1):
                halves[method][part].append(mine[part::2].mean())
    std, at = (np.array(halves[method]) for method in ("std", "at"))
    crossed = [np.corrcoef(std[i], (at - std)[1 - i])[0, 1] for i in (0, 1)]
    assert facts["correlation"][0] == pytest.approx(np.mean(crossed))


def test_chance_alone_makes_no_class_harder_or_easier(monkeypatch, tiny_run):
    """AT and STD err alike on every class, at random: on the same images that would correlate."""
    drawn = iter(np.random.default_rng(k) for k in range(10**6))
    y = np.repeat(np.arange(10), 50)

    def evaluate(run, attacks, quiet):
        broken = next(drawn).random(len(y)) < 0.2
        return SimpleNamespace(attrs={"examples": {"natural": {"broken": broken, "y": y}}})

    monkeypatch.setattr(vir_class_hardness, "evaluate", evaluate)
    monkeypatch.setattr(vir_class_hardness, "bootstrap_interval", lambda f, n: f(np.arange(n)))
    runs = {method: tiny_run(method) for method in ("std", "at")}
    found = [
        vir_class_hardness.compute_class_hardness(runs).facts["correlation"] for _ in range(200)
    ]
    assert abs(np.mean(found)) < 4 * np.std(found) / len(found) ** 0.5


@pytest.mark.parametrize("found, verdict", [(UP, "holds"), (DOWN, "fails"), (NONE, "undecided")])
def test_harder_still_is_a_correlation_above_0(found, verdict):
    facts = {"correlation": found, "worst": {"std": "3", "at": "5"}}
    [claim] = decide_class_hardness(FigureData(facts))
    assert claim.reading == verdict


# ---------------------------------------------------------------------------- along a path


def test_a_smooth_score_halves_its_jumps_and_a_staircase_keeps_them():
    t = np.linspace(0, 1, 129)[:, None]
    slopes = np.linspace(1, 3, 20)
    smooth = np.sin(t * slopes)
    stairs = np.floor(t * slopes * 3)
    assert measure_jumps(smooth)["ratio"][0] == pytest.approx(0.5, abs=0.01)
    assert measure_jumps(stairs)["ratio"][0] == 1 and measure_jumps(stairs)["largest"] == 1
    still = measure_jumps(np.ones((129, 5)))
    assert (still["n"], still["ratio"]) == (0, None)


def test_order_over_starts_is_compared_with_that_of_lps():
    values = np.random.default_rng(0).random((2, 60))
    starts = [{"lps": v, "pm": values[0], "vir": values[0]} for v in values]
    found = compare_starts(starts)
    assert found["pm"] == pytest.approx(1) and abs(found["lps"]) < 0.4
    assert found["vir less lps"][1] > 0
    constant = compare_starts([{"lps": np.ones(60), "pm": v, "vir": v} for v in values])
    assert constant["vir less lps"] is None and constant["lps"] is None
    assert set(found["intervals"]) == {"lps", "pm", "vir"}
    for name, (middle, low, high) in found["intervals"].items():
        assert low <= middle <= high and middle == pytest.approx(found[name])


def test_scores_that_never_vary_are_drawn_and_decide_nothing():
    """A network that no attack breaks: one LPS, no jump, no order."""
    still = {"n": 0, "ratio": None, "largest": 0.0}
    ranks = {"n": 9, "lps": None, "pm": 0.0, "vir": None, "vir less lps": None}
    ranks["intervals"] = {"pm": (0.0, -0.1, 0.1)}
    facts = {"n": 9, "points": 2, "steps": 10, "ranks": ranks, "image": {"row": 0, "id": 0}}
    smooth = {"n": 9, "ratio": (0.5, 0.4, 0.6), "largest": 0.1}
    extras = {"pm": np.ones(5), "lps": np.full(5, 10)}
    data = FigureData(facts | {"jumps": {"pm": smooth, "lps": still}}, "toy", "at", extras)
    assert [claim.reading for claim in decide_score_paths(data)] == ["undecided", "undecided"]
    assert draw_score_paths(data).png() and "0.00 for PM" in describe_score_paths(data)


@pytest.mark.parametrize(
    "pm, lps, vir, verdicts",
    [
        ((0.5, 0.4, 0.6), (1.0, 0.9, 1.0), UP, ["holds", "holds"]),
        ((1.0, 0.9, 1.0), (1.0, 0.9, 1.0), DOWN, ["fails", "fails"]),
        ((0.7, 0.6, 0.8), (1.0, 0.9, 1.0), NONE, ["undecided", "undecided"]),
    ],
)
def test_continuity_and_independence(pm, lps, vir, verdicts):
    jumps = {"pm": {"n": 9, "ratio": pm}, "lps": {"n": 9, "ratio": lps}}
    ranks = {"n": 9, "lps": 0.5, "vir": 0.8, "vir less lps": vir}
    claims = decide_score_paths(FigureData({"jumps": jumps, "ranks": ranks}))
    assert [c.reading for c in claims] == verdicts


def test_lps_along_a_path_is_that_of_each_point(tiny_run):
    """The ends of the path by hand: the clean image, and what PGD makes of it."""
    run = tiny_run("at")
    drawing = FIGURES["score-paths"].make(run, n=6, points=2)
    model, test = run.model(), run.data().test
    x, y = test.x(slice(0, 6)), test.y[:6]
    row = drawing.facts["image"]["row"]
    with torch.no_grad():
        p = model(x).double().softmax(dim=1)
    rest = p.clone()
    rest[torch.arange(6), y] = -1
    margin = (p[torch.arange(6), y] - rest.max(dim=1).values)[row]
    [along, _] = (line for line in drawing.axes[0].lines[:1] + drawing.axes[1].lines[:1])
    assert along.get_ydata()[0] == pytest.approx(float(margin))
