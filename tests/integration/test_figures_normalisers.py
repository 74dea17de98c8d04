"""Criterion x normaliser: effects recounted by hand, rules tried on planted facts."""

from __future__ import annotations

import numpy as np
import pytest

import kit
from kit.core.errors import KitError
from kit.figures import clirat_normalisers as square
from kit.figures import print_and_code
from kit.figures.base import FigureData
from kit.figures.table import FIGURES
from kit.methods.table import SQUARES
from tests.helpers.intervals import over_seeds

ROWS = tuple(SQUARES["at"].values())  # PM x 3, PM of mean 1, CL-PM x 3, CL-PM of mean 1
N = 60


@pytest.fixture
def four(tiny_run):
    return [tiny_run(row, seed) for row in ROWS for seed in (0, 1)]


def right(run) -> list[float]:
    table = kit.evaluate(run, ["pgd10"], n=N, quiet=True)
    return [0.0 if broken else 1.0 for broken in table.attrs["examples"]["pgd10"]["broken"]]


def test_effects_by_hand(four, tiny_run):
    """Image by image: half the sum over the other factor, and the variance of seeds and images."""
    facts = FIGURES["criterion-and-normaliser"].make(four[::-1], attack="pgd10", n=N).facts
    assert facts["n"] == N and facts["seeds"] == 2 and list(facts["cells"]) == list(ROWS)
    pm_3, pm_1, cl_3, cl_1 = (
        np.array([right(tiny_run(row, seed)) for seed in (0, 1)]) for row in ROWS
    )
    for name, contrast in {
        "criterion": (cl_3 - pm_3 + cl_1 - pm_1) / 2,
        "normaliser": (pm_1 - pm_3 + cl_1 - cl_3) / 2,
        "interaction": (cl_1 - pm_1) - (cl_3 - pm_3),
        "both": cl_1 - pm_3,
    }.items():
        expected = over_seeds(contrast.tolist())
        assert facts["effects"][name] == pytest.approx(expected, abs=1e-12)
    effects = facts["effects"]
    assert effects["both"][0] == pytest.approx(effects["criterion"][0] + effects["normaliser"][0])
    assert facts["cells"]["clirat"]["mean_weight"] == pytest.approx(1)
    assert facts["cells"]["clirat"]["by_seed"].tolist() == cl_1.mean(axis=1).tolist()


def test_what_the_square_refuses(four, tiny_run):
    one = [run for run in four if run.spec.seed == 0]
    for runs, options, words in (
        (one[:-1], {}, "also needs a run of clirat: python -m kit train clirat --recipe digits"),
        (one, {"base": "trades"}, "also needs a run of mail-trades, mail-trades-mean"),
        ([*one, tiny_run("clirat", 1)], {}, "same seeds, but mail-at has 0; .*clirat has 0 1"),
        ([*one[:-1], tiny_run("clirat", lr=0.04)], {}, "runs of one recipe"),
        (one, {"n": 1}, "at least 2, or 0"),
        (one, {"base": "fat"}, "no value of base 'fat'"),
    ):
        with pytest.raises(KitError, match=words):
            FIGURES["criterion-and-normaliser"].make(runs, **options)


UP, LITTLE, DOWN, BLURRED = (
    (0.05, 0.03, 0.07),
    (0.01, 0.005, 0.015),
    (-0.05, -0.07, -0.03),
    (
        0.0,
        -0.02,
        0.02,
    ),
)


@pytest.mark.parametrize(
    ("both", "criterion", "more", "seeds", "at_equal", "mostly"),
    [
        (UP, UP, UP, 3, "holds", "holds"),
        (UP, BLURRED, DOWN, 3, "undecided", "fails"),
        (UP, LITTLE, DOWN, 3, "holds", "fails"),
        (UP, DOWN, DOWN, 3, "fails", "fails"),
        (UP, UP, BLURRED, 3, "holds", "undecided"),
        (BLURRED, UP, UP, 3, "holds", "undecided"),  # no lead, nothing to share out
        (UP, UP, UP, 2, "undecided", "undecided"),
        (UP, DOWN, DOWN, 1, "undecided", "undecided"),
    ],
)
def test_rules_of_the_square(both, criterion, more, seeds, at_equal, mostly):
    effects = {
        "both": both,
        "criterion": criterion,
        "normaliser": BLURRED,
        "criterion - normaliser": more,
        "interaction": BLURRED,
    }
    claims = square.decide_normalisers(
        FigureData({"effects": effects, "seeds": seeds, "base": "at"})
    )
    assert [claim.verdict for claim in claims] == [at_equal, mostly]
    assert "MAIL-AT (mean 1) and CLIRAT (x 3)" in claims[0].claim, "the control rows are named"


# -------------------------------------------------------------------------------------- VIR's scale


def test_vir_is_set_against_the_control_of_its_scale(tiny_run):
    """Paired over all test images; the pair of mean 1 has that mean in every epoch."""
    runs = {method: tiny_run(method) for method in FIGURES["vir-scale"].methods}
    facts = FIGURES["vir-scale"].make(runs).facts
    hit = {
        m: (run.final["test_logits_adv"].argmax(1) == run.final["test_y"]).astype(float)
        for m, run in runs.items()
    }
    assert set(facts["reweighting"]) == {"vir-at-mean - at", "vir-at - at-scaled"}
    for pair, (mean, _, _) in facts["reweighting"].items():
        row, control = pair.split(" - ")
        assert mean == pytest.approx((hit[row] - hit[control]).mean())
    assert runs["vir-at-mean"].history.weight.tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    ("gain", "verdict"), [(UP, "holds"), (DOWN, "fails"), (BLURRED, "undecided")]
)
def test_vir_gains_where_it_beats_its_control(gain, verdict):
    """Whatever its difference to AT, which has another scale."""
    for total in (UP, DOWN):
        facts = {
            "methods": {m: {"mean_weight": 0.02} for m in FIGURES["vir-scale"].methods},
            "difference": {"vir-at": total},
            "reweighting": {f"{a} - {b}": gain for a, b in print_and_code.SAME_SCALE},
        }
        scale, *gains = print_and_code.decide_vir_scale(FigureData(facts))
        assert scale.reading == "fails" and [claim.reading for claim in gains] == [verdict] * 2


# ------------------------------------------------------------------------------------------ burn-in


@pytest.mark.parametrize(
    "none, short, reading",
    [
        ((-0.1, -0.15, -0.05), (-0.1, -0.15, -0.05), "holds"),
        ((0.1, 0.05, 0.15), (0.1, 0.05, 0.15), "fails"),
        ((-0.1, -0.15, -0.05), (0.0, -0.03, 0.03), "undecided"),
        ((0.0, -0.03, 0.03), (0.0, -0.03, 0.03), "undecided"),
    ],
)
@pytest.mark.parametrize(
    "decide, earlier, number",
    [
        (print_and_code.decide_clirat_burn_in, ("clirat-printed", "clirat-burn-in-30"), 15),
        (print_and_code.decide_vir_burn_in, ("vir-at-burn-in-0", "vir-at-burn-in-30"), 98),
    ],
)
def test_reweighting_earlier_must_cost_robustness_each_time(
    decide, earlier, number, none, short, reading
):
    data = FigureData({"difference": dict(zip(earlier, (none, short), strict=True))})
    [claim] = decide(data)
    assert (claim.reading, claim.number) == (reading, number)


@pytest.mark.parametrize("name, share", [("clirat-burn-in", 0.25), ("vir-burn-in", 0.25)])
def test_runs_of_the_burn_in_figures_differ_in_burn_in_alone(name, share):
    rows = [kit.METHODS[method] for method in FIGURES[name].methods]
    assert sorted(row.burn_in for row in rows) == [0.0, share, 75 / 120]
    assert len({str(row.config()) for row in rows}) == 1
