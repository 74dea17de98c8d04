"""Audits side by side and attacks without gradients: numbers are evaluate's, claims paired."""

from __future__ import annotations

import numpy as np
import pytest

import kit
from kit.core.errors import KitError
from kit.evaluation.masking_rules import RULES
from kit.evaluation.robustness_audit import audit
from kit.evaluation.statistics import mean_interval
from tests.helpers.intervals import paired


@pytest.fixture
def quick(monkeypatch):
    """Attacks of fractions of a second."""
    from kit.attacks.table import ATTACKS

    for name, settings in {
        "square": {"queries": 60},
        "spsa100": {"steps": 2, "samples": 4},
        "fab-t": {"steps": 4},
        "apgd-t": {"steps": 8},
        "apgd-ce": {"steps": 8},
        "md": {"steps": 8, "change_point": 3},
        "fmn100": {"steps": 8},
        "pgd100": {"steps": 12},
        "pgd20": {"steps": 5},
    }.items():
        monkeypatch.setitem(ATTACKS, name, ATTACKS[name].but(**settings))


def test_the_gap_is_counted_image_by_image(quick, tiny_run, tmp_path):
    runs = [tiny_run(method, seed=1) for method in ("at", "gairat", "mail-at")]
    drawing = kit.draw("attack-ladder", runs, folder=tmp_path, n=30)
    gaps = {}
    for run in runs:
        seen = kit.evaluate(
            run, ["pgd100", "apgd-ce", "apgd-t", "fab-t", "square"], n=30, quiet=True
        ).attrs["examples"]
        aa = (
            seen["apgd-ce"]["broken"]
            | seen["apgd-t"]["broken"]
            | seen["fab-t"]["broken"]
            | seen["square"]["broken"]
        )
        gaps[run.method] = aa.astype(int) - seen["pgd100"]["broken"].astype(int)
        fact = drawing.facts["gap"][run.method]
        assert (
            fact["mean"] == pytest.approx(gaps[run.method].mean())
            and fact["low"] <= fact["mean"] <= fact["high"]
        )
        expected = audit(run, n=30, quiet=True).record()
        assert {**drawing.facts[run.method], "seconds": 0} == {**expected, "seconds": 0}
    upper, lower = drawing.axes
    named = [" ".join(label.get_text().split()) for label in lower.get_xticklabels()]
    assert named == list(RULES)
    fewer = [label.get_text() for label in upper.get_xticklabels() if "n = " in label.get_text()]
    assert all("n = 30" not in words for words in fewer) and "n = 30" in upper.get_title("left")
    assert [claim.claim.split()[0] for claim in drawing.claims] == ["GAIRAT", "MAIL-AT"]
    for claim, method in zip(drawing.claims, ("gairat", "mail-at"), strict=True):
        difference = gaps[method] - gaps["at"]
        assert f"{100 * difference.mean():+.1f} points" in claim.here and "n = 30" in claim.here
        _, low, high = paired(difference)
        assert claim.reading == ("holds" if low > 0 else "fails" if high < 0 else "undecided")
    alone = kit.draw("attack-ladder", runs[1:2], folder=tmp_path, n=30)
    assert alone.claims == [] and set(alone.facts) == {"gairat", "gap"}


def test_black_box_counts_what_evaluate_counts(quick, tiny_run, tmp_path):
    runs = [tiny_run(method, seed=1) for method in ("at", "gairat")]
    drawing = kit.draw("black-box", runs, folder=tmp_path, n=40, spsa=10)
    for run, other in zip(runs, runs[::-1], strict=True):
        table, fact = (
            kit.evaluate(run, ["pgd100", "square"], n=40, quiet=True),
            drawing.facts[run.method],
        )
        for attack in ("pgd100", "square"):
            assert fact[attack][:3] == pytest.approx(
                [table.accuracy[attack], table.low[attack], table.high[attack]]
            )
        assert fact["spsa100"][3] == 10 and fact["source"] == other.method
        transfer = audit(run, n=40, transfer=other, quiet=True).steps.loc["transfer"]
        assert fact["transfer"][0] == pytest.approx(transfer["accuracy"])
        broken = {
            name: table.attrs["examples"][name]["broken"].astype(float)
            for name in ("pgd100", "square")
        }
        assert fact["square_less_pgd"][0] == pytest.approx(
            (broken["pgd100"] - broken["square"]).mean()
        )
    assert [claim.claim.split()[0] for claim in drawing.claims] == ["AT", "GAIRAT"]
    legend = [text.get_text() for text in drawing.axes[0].get_legend().get_texts()]
    assert [words.split("n = ")[1] for words in legend] == ["40", "40", "10", "40"]


def test_black_box_refuses_what_it_cannot_draw(tiny_run, tmp_path):
    with pytest.raises(KitError, match="at least two runs"):
        kit.draw("black-box", tiny_run("at"), folder=tmp_path)
    two = [tiny_run("at"), tiny_run("mail-at")]
    for options, words in (
        ({"n": -1}, "n="),
        ({"spsa": 0}, "spsa="),
        ({"images": 3}, "no option of 'black-box'"),
    ):
        with pytest.raises(KitError, match=words):
            kit.draw("black-box", two, folder=tmp_path, **options)


def test_mean_interval():
    values = np.array([1.0, 0, 0, -1, 1, 1, 0, 0])
    mean, low, high = mean_interval(values)
    half = 2.364624 * values.std(ddof=1) / 8**0.5  # the t of seven degrees of freedom
    assert mean == 0.25 and high - mean == pytest.approx(half)
    assert mean - low == pytest.approx(high - mean)
    assert mean_interval(np.array([1.0]))[1:] == (-float("inf"), float("inf"))


def test_rows_of_every_weight_stand_for_all_methods(tiny_run, tmp_path):
    """Methods whose weights are alike share a row, and none is lost."""
    drawing = kit.draw("every-weight", tiny_run("at"), folder=tmp_path)
    labels = [label.get_text() for label in drawing.axes[0].get_yticklabels()]
    more = [int(words.split(" + ")[1].split()[0]) for words in labels if " + " in words]
    named = [name for words in labels for name in words.split(" + ")[0].split(", ")]
    methods = drawing.facts["weight_on_robust"]
    assert len(named) + sum(more) == len(methods) > len(labels)
    assert set(named) <= set(methods) and len(set(named)) == len(named)


def test_every_method_says_who_takes_two_steps(tiny_run, tmp_path):
    runs = [tiny_run("at"), tiny_run("csa")]
    drawing = kit.draw("every-method", runs, folder=tmp_path, attacks="natural fgsm")
    labels = {label.get_text() for label in drawing.axes[0].get_yticklabels()}
    assert labels == {"at", "csa (2 steps a batch)"}
