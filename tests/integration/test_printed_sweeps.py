"""Printed sweeps of parameters: what is printed, and what runs with another value add to it."""

from __future__ import annotations

import pytest

import kit
from kit.figures.table import FIGURES

SWEEPS = FIGURES["printed-sweeps"]


def sweep_of(facts, method, letter):
    [found] = (x for x in facts["sweeps"] if (x["method"], x["letter"]) == (method, letter))
    return found


def test_without_other_values_the_picture_says_that_it_is_printed_alone(tiny_run):
    drawing = SWEEPS.make([tiny_run("vir-at")])
    assert drawing.facts["measured"] == 0 and "printed numbers alone" in drawing.caption
    assert any("printed numbers alone" in text.get_text() for text in drawing.axes[-1].texts)
    beta = sweep_of(drawing.facts, "vir-at", "β")
    assert (beta["values"], beta["own"], beta["measured"]) == ([0, 0.007, 0.1], 0.007, {})
    assert beta["printed"]["pgd100"] == pytest.approx([57.20 - 56.42, 0, 53.52 - 56.42])
    tau = sweep_of(drawing.facts, "mr-mail", "τ")
    assert tau["values"] == [2, 3, 4] and tau["printed"]["aa"][2] == pytest.approx(42.64 - 44.78)
    assert [len(x["values"]) for x in drawing.facts["sweeps"]] == [6, 5, 3, 3, 6, 4, 3]


def test_runs_of_another_value_stand_beside_what_is_printed(tiny_run):
    own, other = tiny_run("vir-at"), tiny_run("vir-at", **{"criterion.alpha": 1.0})
    unpaired = tiny_run("vir-at", seed=1, **{"criterion.alpha": 2.0})
    drawing = SWEEPS.make([own, other, unpaired], attacks="natural", n=40)
    alpha = sweep_of(drawing.facts, "vir-at", "α")
    right = [
        1 - kit.evaluate(run, ["natural"], n=40, quiet=True).attrs["examples"]["natural"]["broken"]
        for run in (own, other)
    ]
    gain = 100 * (right[1].mean() - right[0].mean())
    assert alpha["measured"] == {"natural": [pytest.approx(gain), None, None, None, 0.0, None]}
    assert (alpha["seeds"], alpha["n"], drawing.facts["measured"]) == (1, 40, 1)
    assert sweep_of(drawing.facts, "vir-at", "γ")["measured"] == {}, "γ was not varied"
    assert "one seed, n = 40" in drawing.caption
