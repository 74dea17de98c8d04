"""What would decide an undecided claim: as much evidence as a planted effect takes, and no less."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kit.evaluation.statistics import combine_seeds
from kit.papers.claim_verdict import Estimate, decide
from kit.papers.evidence_wanted import evidence_factor, find_wanted


def statement(*estimates, verdict="undecided", seeds=3, text="a statement", **more):
    records = [estimate.record() for estimate in estimates]
    return {"statement": text, "verdict": verdict, "seeds": seeds, "estimates": records, **more}


def test_with_so_much_more_evidence_the_interval_ends_at_the_bound():
    """Simulated: as many times the seeds, each on as many times the images."""
    rng = np.random.default_rng(0)
    gap, over_seeds, over_images, begun = 0.01, 0.05, 0.02, 400

    def interval_of(times):
        values = gap + over_seeds * rng.standard_normal(round(begun * times))
        values += gap - values.mean()  # "if the numbers stay"
        half = 1.96 * over_images / times**0.5
        return combine_seeds([(value, value - half, value + half) for value in values])

    now = Estimate("gap", "> 0", *interval_of(1))
    assert now.low < 0 < now.high
    times = evidence_factor(now)
    assert interval_of(times)[1] == pytest.approx(0, abs=0.05 * gap)
    assert interval_of(2 * times)[1] > 0 > interval_of(times / 2)[1]


@pytest.mark.parametrize("together", [1, 4, 20])
def test_to_fail_among_several_takes_more(together):
    """An interval narrowed by the factor decides, one narrowed by less does not."""
    wide = Estimate("gap", "> 0", -0.1, -0.3, 0.1)
    times = evidence_factor(wide, together)
    verdicts = [
        decide([[Estimate("gap", "> 0", -0.1, -0.1 - half, -0.1 + half)]], 3, together)
        for half in (0.2 / (1.05 * times) ** 0.5, 0.2 / (0.95 * times) ** 0.5)
    ]
    assert verdicts == ["fails", "undecided"]
    for_it = Estimate("gap", "> 0", 0.1, -0.1, 0.3)
    assert evidence_factor(for_it, together) == pytest.approx(4)


def test_one_statement_against_fails_a_claim_and_it_takes_all_to_hold():
    near = Estimate("near", "> 0", 0.1, -0.1, 0.3)
    far = Estimate("far", "> 0", 0.1, -0.5, 0.7)
    against = Estimate("against", "< 0", 0.1, -0.9, 1.1)
    settled = Estimate("settled", "> 0", 0.3, 0.2, 0.4)
    done = statement(settled, verdict="holds")
    wanted = find_wanted([statement(near), statement(far, settled), done])
    assert wanted.verdict == "holds" and wanted.times == pytest.approx(36)
    assert "far 0.1 [-0.5, 0.7], expected > 0" in wanted.words
    assert wanted.words.startswith("about 36 times the seeds and test images")
    wanted = find_wanted([statement(near), statement(far), statement(against), done])
    assert wanted.verdict == "fails" and "against" in wanted.what and wanted.times > 100
    assert "more than 100 times" in wanted.words


@pytest.mark.parametrize(
    ("statements", "words"),
    [
        ([statement(Estimate("gap", "> 0", 0.1, 0.05, 0.15), seeds=1)], "3 seeds; it has one seed"),
        (
            [
                statement(Estimate("gap", "> 0", 0.1, 0.05, 0.15), verdict="holds"),
                {"statement": "other", "verdict": "not run", "why": "needs a file"},
            ],
            "runs for other: needs a file",
        ),
        ([statement(Estimate("gap", "> 0", *[math.nan] * 3))], "a number for a statement"),
        ([statement(Estimate("gap", "> 0", 0.0, -0.1, 0.1))], "off its bound"),
        (
            [statement(Estimate("", "> 8", 3, 1, 4), text="most of 16: a - b > 0 (4 run)")],
            "a clearer sign",
        ),
        ([statement(seeds=0)], "learned nothing"),
    ],
)
def test_where_more_of_the_same_does_not_help(statements, words):
    assert words in find_wanted(statements).words


def test_a_record_of_a_table_is_read_like_one_of_a_figure():
    numbers = {"expected": "> 0", "value": 2.0, "low": -2.0, "high": 6.0}
    by_table = {"statement": "a - b", "verdict": "undecided", "seeds": 3, **numbers}
    assert find_wanted([by_table]).times == pytest.approx(4)
