"""The audit:

rules that fire on planted faults and on nothing else, a ladder that adds up, partial results that
say so.
"""

from __future__ import annotations

import html
import json
import math
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import kit
from kit.attacks.table import ATTACKS
from kit.core.errors import KitError
from kit.core.threat import Threat
from kit.data.splits import Split
from kit.evaluation import accuracy, masked_networks, robustness_audit
from kit.evaluation.accuracy import evaluate, measure_attack
from kit.evaluation.audit_passes import attack_unbounded, follow_losses
from kit.evaluation.masking_rules import (
    AUTOATTACK_PARTS,
    BLACK_BOX_GAIN,
    FEWEST,
    LOSS_ROUNDS_TO_0,
    MARGIN_GAP,
    RULES,
    SOFTMAX_UNDERFLOWS,
    Evidence,
    apply_rules,
    light_beyond,
)
from kit.evaluation.robustness_audit import AUDIT_STEPS, PROBES, audit, audit_model
from kit.evaluation.statistics import wilson
from kit.figures.audit_steps import compare_audits, describe_audit_steps, draw_audit_steps
from kit.jobs.command_line import main
from tests.helpers.wording import attack_keys_in

QUICK = ("natural", "fgsm", "pgd20", "pgd100", "cw20", "md", "square")
ORDER = {name: i for i, name in enumerate(RULES)}
STRONGER, BLACK, MARGIN, UNBOUNDED, GRADIENTS, CONVERGED, LOGITS, SQUARE, TWICE, NUMBERS = RULES


@pytest.fixture
def honest(tiny_run):
    """A run that has learnt something, in seconds."""
    return tiny_run("at", epochs=6, train_size=1000, milestones=[4], steps=5)


@pytest.fixture
def quick(monkeypatch):
    """A ladder of seconds: without the costliest, and Square with 150 queries."""
    monkeypatch.setattr(
        robustness_audit, "AUDIT_STEPS", tuple(rung for rung in AUDIT_STEPS if rung.attack in QUICK)
    )
    monkeypatch.setitem(ATTACKS, "square", ATTACKS["square"].but(queries=150))


# ---------------------------------------------------------------------------------- the rules alone


def healthy(n: int = 200) -> Evidence:
    """A network without fault:

    100 % clean, each attack breaks the first images, stronger ones a few more.
    """
    rng, counts = (
        np.random.default_rng(0),
        {
            "natural": 0,
            "fgsm": 40,
            "pgd20": 50,
            "pgd100": 51,
            "cw20": 50,
            "md": 54,
            "apgd-ce": 52,
            "apgd-t": 55,
            "fab-t": 55,
            "square": 53,
            "spsa100": 52,
        },
    )
    y = np.arange(n) % 10
    logits = rng.normal(size=(n, 10)) + 5 * np.eye(10)[y]
    return Evidence(
        ids=1000 + np.arange(n),
        y=y,
        logits=logits,
        again=logits.copy(),
        slope=np.full(n, 0.01),
        broken={name: np.arange(n) < count * n // 200 for name, count in counts.items()},
        losses=np.tile(1 - np.exp(-np.arange(100) / 5), (n, 1)),
        unbounded=np.ones(n, bool),
    )


def broken(seen: Evidence, **changes: np.ndarray) -> Evidence:
    return replace(
        seen,
        broken={
            **seen.broken,
            **{name.replace("_", "-"): values for name, values in changes.items()},
        },
    )


def some(count: int, n: int = 200) -> np.ndarray:
    """The last `count` of n."""
    return np.arange(n) >= n - count


SICK = {
    STRONGER: (lambda s: broken(s, fgsm=s.broken["pgd20"] | some(10)), range(190, 200)),
    BLACK: (lambda s: broken(s, spsa100=some(5)), range(195, 200)),
    MARGIN: (
        lambda s: broken(s, apgd_t=s.broken["pgd100"] | some(45)),
        [*range(51, 55), *range(155, 200)],
    ),
    UNBOUNDED: (lambda s: replace(s, unbounded=~some(40)), range(160, 200)),
    GRADIENTS: (
        lambda s: replace(s, slope=np.where(some(20), [0, 1e-11, np.nan, 1e-12] * 50, 0.1)),
        range(180, 200),
    ),
    CONVERGED: (lambda s: replace(s, losses=np.tile(np.linspace(0, 1, 100), (200, 1))), range(200)),
    LOGITS: (lambda s: replace(s, logits=1e3 * s.logits, again=1e3 * s.again), None),
    SQUARE: (lambda s: broken(s, square=s.broken["square"] | some(4)), range(196, 200)),
    TWICE: (lambda s: replace(s, again=s.logits + 0.1 * some(7)[:, None]), range(193, 200)),
    NUMBERS: (lambda s: replace(s, logits=np.tile(s.logits[:1], (200, 1))), range(200)),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_fault_turns_its_rule_red_and_names_the_images(rule):
    seen = healthy()
    assert {finding.light for finding in apply_rules(seen)} == {"green"}
    make, places = SICK[rule]
    found = apply_rules(make(seen))[ORDER[rule]]
    assert found.rule == rule and found.light == "red"
    if places is not None:
        assert found.ids == tuple(1000 + i for i in places)
    others = {
        finding.rule for finding in apply_rules(make(seen)) if finding.light in ("red", "amber")
    } - {rule}
    related = {BLACK: {SQUARE}, SQUARE: {BLACK}, NUMBERS: {TWICE, LOGITS}}
    assert others <= related.get(rule, set())


@pytest.mark.parametrize("n", [1, 10, FEWEST - 1])
def test_few_images_are_never_green(n):
    assert {finding.light for finding in apply_rules(healthy(n))} <= {"not judged", "amber"}
    assert all(finding.light != "green" for finding in apply_rules(broken(healthy(n))))


def test_rules_without_their_attacks_are_not_judged():
    bare = replace(healthy(), broken={"natural": np.zeros(200, bool)}, losses=None, unbounded=None)
    lights = {finding.rule: finding.light for finding in apply_rules(bare)}
    for rule in (STRONGER, BLACK, MARGIN, UNBOUNDED, CONVERGED, SQUARE):
        assert lights[rule] == "not judged"
    assert {lights[rule] for rule in (GRADIENTS, LOGITS, TWICE, NUMBERS)} == {"green"}
    still = apply_rules(replace(healthy(), losses=np.ones((200, 100))))[ORDER[CONVERGED]]
    assert still.light == "not judged" and "does not rise" in still.sentence
    without_square = {name: v for name, v in healthy().broken.items() if name != "square"}
    found = apply_rules(replace(healthy(), broken=without_square))[ORDER[MARGIN]]
    assert found.light == "green" and "an attack on the margin" in found.sentence


def test_nan_is_a_finding_and_the_only_one():
    seen = healthy()
    seen.logits[3, 2] = np.nan
    findings = apply_rules(seen)
    assert findings[-1].light == "red" and findings[-1].ids == (1003,)
    assert {finding.light for finding in findings[:-1]} == {"not judged"}


def test_sentences_name_attacks_as_papers_do():
    """Whatever a rule finds or misses, a reader sees PGD-100 and not pgd100."""
    seen = healthy()
    bare = replace(seen, broken={}, losses=None, unbounded=None)
    of_each_kind = [bare, seen, *(make(seen) for make, _ in SICK.values())]
    weak = [replace(bare, broken={"pgd20": some(9), name: some(60)}) for name in ("cw20", "fgsm")]
    for evidence in (*of_each_kind, *weak):
        for finding in apply_rules(evidence):
            assert not attack_keys_in(finding.sentence), finding.sentence


def test_printed_gairat_is_red_and_printed_at_is_green():
    """Of 10,000 images:

    GAIRAT 54.8 % under PGD and 33.4 % under AutoAttack, AT 48.86 and 46.38 (MR's Table 1).
    """
    for pgd, aa, light in ((5480, 3340, "red"), (4886, 4638, "green"), (5336, 4750, "green")):
        assert light_beyond(pgd - aa, pgd, MARGIN_GAP) == light


@given(n=st.integers(1, 300), share=st.floats(0.001, 0.5), data=st.data())
def test_beyond_is_an_exact_binomial_test(n, share, data):
    count = data.draw(st.integers(0, n))
    tail = math.fsum(
        math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(count, n + 1)
    )
    if count / n > share and abs(tail - 0.01) > 1e-6:
        few = "not judged" if n < FEWEST else "amber"
        assert light_beyond(count, n, share) == ("red" if tail < 0.01 else few)
    if count / n <= share:
        assert light_beyond(count, n, share) == ("green" if n >= FEWEST else "not judged")


def test_one_image_in_200_is_amber_and_three_are_red():
    assert [light_beyond(count, 200, BLACK_BOX_GAIN) for count in (0, 1, 2, 3)] == [
        "green",
        "amber",
        "amber",
        "red",
    ]
    assert light_beyond(16, 20, 0.5) == "red", "one-sided: 0.006, two-sided: 0.012"


def test_the_saturation_thresholds_are_float32s():
    """Just above the first the cross-entropy is 0, just above the second the other class's
    probability is not normal.
    """
    for gap, zero in ((LOSS_ROUNDS_TO_0 - 0.1, False), (LOSS_ROUNDS_TO_0 + 0.1, True)):
        z = torch.tensor([[gap, 0.0]])
        assert (float(nn.functional.cross_entropy(z, torch.tensor([0]))) == 0) is zero
    smallest = torch.finfo(torch.float32).tiny
    for gap, gone in ((SOFTMAX_UNDERFLOWS - 0.1, False), (SOFTMAX_UNDERFLOWS + 0.1, True)):
        assert (math.exp(-gap) < smallest) is gone


# --------------------------------------------------------------------------------------- the ladder


def test_ladder_adds_up(tiny_run, honest, quick):
    run = tiny_run("at")
    report = audit(run, n=80, transfer=honest, quiet=True)
    table, examples = report.steps, report.examples
    assert (
        list(table.index) == [*QUICK, "transfer", "worst case"]
        and not report.missing
        and not report.stopped
    )
    verdicts = evaluate(run, QUICK, n=80, quiet=True)
    union = np.zeros(80, bool)
    for name in QUICK:
        flags = verdicts.attrs["examples"][name]["broken"]
        np.testing.assert_array_equal(examples[name].to_numpy(dtype=bool), flags)
        assert table.accuracy[name] == verdicts.accuracy[name] and table.n[name] == 80
        assert (table.low[name], table.high[name]) == pytest.approx(wilson(int((~flags).sum()), 80))
        union |= flags
    union |= examples["transfer"].to_numpy(dtype=bool)
    assert table.accuracy["worst case"] == pytest.approx(1 - union.mean())
    np.testing.assert_array_equal((examples["by"] != "").to_numpy(), union)
    split = run.data().test
    assert (examples.index == split.ids[:80].numpy()).all() and (
        examples["y"] == split.y[:80].numpy()
    ).all()
    for above, name in pairwise(QUICK):
        a, b = (examples[which].to_numpy(dtype=bool) for which in (above, name))
        gains, loses = int((b & ~a).sum()), int((a & ~b).sum())
        tail = sum(math.comb(gains + loses, k) for k in range(min(gains, loses) + 1)) / 2 ** (
            gains + loses
        )
        assert (table.gains[name], table.loses[name]) == (gains, loses)
        assert table.p[name] == pytest.approx(min(1.0, 2 * tail))
    for _, row in examples.iterrows():
        assert row["by"] == next((name for name in (*QUICK, "transfer") if row[name]), "")


def test_transfer_counts_what_the_other_network_breaks(honest, quick):
    """From the network itself the images are PGD's own; from one that says the same of all they
    hardly harm.
    """
    run, threat = honest, Threat(eps=0.2)
    split = run.data().test.take(slice(0, 60))
    own = audit_model(run.model(), split, threat, transfer=run.model(), quiet=True)
    assert own.steps.accuracy["transfer"] < own.steps.accuracy["pgd20"] + 0.05
    assert own.steps.accuracy["transfer"] < own.steps.accuracy["natural"] - 0.2
    blind = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)
    blind[1].weight.zero_()
    harmless = audit_model(run.model(), split, threat, transfer=blind, quiet=True)
    assert harmless.steps.accuracy["transfer"] > harmless.steps.accuracy["natural"] - 0.1


def test_aa_is_the_union_and_costly_rungs_take_few_images(tiny_run, monkeypatch):
    cheap = {"apgd-t": {"steps": 2}, "fab-t": {"steps": 1}, "square": {"queries": 5}}
    for name, settings in cheap.items():
        monkeypatch.setitem(ATTACKS, name, ATTACKS[name].but(**settings))
    monkeypatch.setattr(
        robustness_audit,
        "AUDIT_STEPS",
        tuple(
            replace(rung, most=30 if rung.most else 0)
            for rung in AUDIT_STEPS
            if rung.attack in ("natural", "pgd20", *AUTOATTACK_PARTS)
        ),
    )
    run = tiny_run("at")
    report = audit_model(
        run.model(), run.data().test.take(slice(0, 60)), run.plan.recipe.threat, quiet=True
    )
    table, examples = report.steps, report.examples
    assert table.n.to_dict() == {
        "natural": 60,
        "pgd20": 60,
        "apgd-ce": 60,
        "apgd-t": 30,
        "fab-t": 30,
        "square": 30,
        "aa": 30,
        "worst case": 60,
    }
    four = examples[list(AUTOATTACK_PARTS)].iloc[:30].to_numpy(dtype=bool).any(axis=1)
    assert (
        table.accuracy["aa"] == pytest.approx(1 - four.mean())
        and examples["square"].isna().sum() == 30
    )
    assert pd_missing(table, "aa") and not pd_missing(table, "square")


def pd_missing(table, name: str) -> bool:
    return bool(table.loc[name, ["gains", "loses", "p"]].isna().all())


@pytest.mark.parametrize(
    "rungs",
    [
        ("natural", "fgsm", "pgd10", "pgd20", "pgd100", "cw20", "md", "fmn100", "apgd-ce"),
        pytest.param(("apgd-t", "fab-t", "square", "spsa100"), marks=pytest.mark.slow),
    ],
)
def test_no_attack_costs_more_than_its_rung_says(rungs, tiny_run):
    """And an image that nothing breaks costs as much, so that the estimate is about right."""
    run = tiny_run("at")
    costs = {rung.attack: rung for rung in AUDIT_STEPS}
    examples = evaluate(run, rungs, n=8, quiet=True).attrs["examples"]
    for name in rungs:
        passes, said = examples[name]["forwards"].max(), costs[name].forwards
        assert passes == said or (name == "square" and 0.5 * said < passes < said), name
        assert examples[name]["backwards"].max() == costs[name].backwards, name


def test_no_probe_costs_more_than_is_said(tiny_run):
    """Forward passes of an image that nothing breaks are counted where they happen."""
    run, passed = tiny_run("at"), []
    model, split = run.model(), run.data().test.take(slice(0, 8))
    model.register_forward_hook(lambda module, images, out: passed.append(len(out)))
    cost = {probe.attack: probe.forwards for probe in PROBES}
    follow_losses(model, split, run.plan.recipe.threat)
    assert sum(passed) == cost["losses"] * len(split)
    passed.clear()
    attack_unbounded(model, split, run.plan.recipe.threat)
    assert 0 < sum(passed) <= cost["unbounded"] * len(split)  # most are broken early


# ------------------------------------------------------------------------------------ how it prints


def test_it_prints_without_colour_and_as_json(tiny_run, quick):
    report = audit(tiny_run("at"), n=20, quiet=True)
    text, page = repr(report), report._repr_html_()
    for number, finding in enumerate(report.findings, 1):
        assert (
            f"{number:>2} " in text and finding.rule in text and html.escape(finding.rule) in page
        )
    assert "NOT JUDGED" in text and "NOT JUDGED" in page and "95 % interval" in page
    again = json.loads(json.dumps(report.record(), allow_nan=False))
    assert again["light"] == report.light and len(again["findings"]) == 10
    assert again["ladder"]["pgd20"]["n"] == 20 and again["ladder"]["natural"]["p"] is None


def test_the_ladder_draws(tiny_run, honest, quick):
    reports = {
        "at": audit(tiny_run("at"), n=20, quiet=True),
        "trades": audit(honest, n=20, quiet=True),
    }
    data = compare_audits(reports)
    drawing = draw_audit_steps(data)
    upper, lower = drawing.axes
    assert len(upper.containers) == 2 and len(lower.lines) == 20
    heights = np.asarray(upper.containers[0].lines[0].get_ydata(), dtype=float)
    np.testing.assert_array_equal(heights, reports["at"].steps["accuracy"].to_numpy())
    assert upper.get_xticklabels()[2].get_text() == "PGD-20" and "AT" in describe_audit_steps(data)
    assert json.dumps(data.facts) and drawing.svg()
    with pytest.raises(KitError, match="at least one attack"):
        compare_audits({})


# ------------------------------------------------------------------------- stopped, and asked again


def test_stopped_half_way(tiny_run, quick, monkeypatch, copy_of):
    """What is finished is there and kept, the rest is named, and the rules that need it are not
    judged.
    """
    run, real, asked = copy_of(tiny_run("at")), robustness_audit.evaluate, []
    shutil.rmtree(run.folder / "evaluations", ignore_errors=True)

    def stopped(run, names, **options):
        asked.append(names[0])
        if names[0] == "cw20" and asked.count("cw20") == 1:
            raise KeyboardInterrupt
        return real(run, names, **options)

    monkeypatch.setattr(robustness_audit, "evaluate", stopped)
    report = audit(run, n=60, quiet=True)
    assert report.stopped and report.missing == dict.fromkeys(("cw20", "md", "square"), "stopped")
    assert list(report.steps.index) == ["natural", "fgsm", "pgd20", "pgd100", "worst case"]
    assert report.finding(MARGIN).light == report.finding(
        BLACK
    ).light == "not judged" and "Not run: CW-20" in repr(report)
    assert len(list((run.folder / "evaluations").glob("*.npz"))) == 4
    assert not audit(run, n=60, quiet=True).missing


def test_asking_again_attacks_nothing(tiny_run, quick, monkeypatch):
    run = tiny_run("at")
    first = audit(run, n=60, quiet=True)
    monkeypatch.setattr(accuracy, "measure_attack", lambda *_, **__: pytest.fail("attacked again"))
    again = audit(run, n=60, quiet=True)
    assert again.steps.equals(first.steps) and again.findings == first.findings


def test_a_budget_leaves_out_the_costliest(tiny_run, monkeypatch, capsys):
    """Every attack costs a second more than fits but those that cost the least."""
    monkeypatch.setattr(robustness_audit, "seconds_of_a_pass", lambda *_: 1.0)
    run = tiny_run("at")
    split = run.data().test.take(slice(0, 10))
    report = audit_model(
        run.model(), split, run.plan.recipe.threat, budget=(1 + 5 + 32 + 62 + 62) * 10 / 60
    )
    assert list(report.steps.index) == ["natural", "fgsm", "pgd10", "pgd20", "cw20", "worst case"]
    costly = {rung.attack for rung in AUDIT_STEPS} | {probe.attack for probe in PROBES}
    assert set(report.missing) == costly - {
        "natural",
        "fgsm",
        "pgd10",
        "pgd20",
        "cw20",
    }
    assert (
        "over the budget" in report.missing["square"]
        and "at most about 27 min 00 s for 10 images" in capsys.readouterr().out
    )


def test_a_budget_holds_for_all_that_an_audit_passes(tiny_run, monkeypatch):
    """Passes are counted where they happen, those of the probes, too: without attacks that fit,
    nothing but the first looks at the images is left.
    """
    monkeypatch.setattr(robustness_audit, "seconds_of_a_pass", lambda *_: 1.0)
    run, passed = tiny_run("at"), []
    model = run.model()
    model.register_forward_hook(lambda module, images, out: passed.append(len(out)))
    split = run.data().test.take(slice(0, 10))
    report = audit_model(model, split, run.plan.recipe.threat, budget=0.01, quiet=True)
    assert sum(passed) <= 60 and {"losses", "unbounded", "natural"} <= set(report.missing)
    dearest = max(probe.cost for probe in PROBES)
    fitting = sum(10 * step.cost for step in (*AUDIT_STEPS, *PROBES) if step.cost <= dearest)
    report = audit_model(model, split, run.plan.recipe.threat, budget=fitting / 60, quiet=True)
    assert sum(passed) > 1000 and not {"losses", "unbounded"} & set(report.missing)


def test_what_is_stored_costs_nothing_of_a_budget(tiny_run, monkeypatch):
    monkeypatch.setattr(robustness_audit, "seconds_of_a_pass", lambda *_: 1.0)
    run = tiny_run("at")
    evaluate(run, ["md"], n=7, quiet=True)
    report = audit(run, n=7, budget=(1 + 5) * 7 / 60, quiet=True)
    assert list(report.steps.index) == ["natural", "fgsm", "md", "worst case"]


def test_a_large_network_is_timed_on_a_few_images(tiny_run, monkeypatch):
    """Else the forecast would come after minutes."""
    run, seen, seconds = tiny_run("at"), [], iter(range(0, 10_000, 5))
    monkeypatch.setattr(robustness_audit.time, "monotonic", lambda: next(seconds))

    def measure(model, images, *_):
        seen.append(len(images))
        return {name: np.full(len(images), 10) for name in ("forwards", "backwards")}

    monkeypatch.setattr(robustness_audit, "measure_attack", measure)
    split, threat = run.data().test.take(slice(0, 100)), run.plan.recipe.threat
    second = robustness_audit.seconds_of_a_pass(run.model(), split, threat)
    assert seen == [robustness_audit.FEW_IMAGES] and second == 5 / (30 * len(split.y[:8]))
    monkeypatch.setattr(robustness_audit, "LONG_SECONDS", 1e9)
    assert robustness_audit.seconds_of_a_pass(run.model(), split, threat) == 5 / (30 * 100)


def test_rungs_that_the_table_lacks_are_skipped(tiny_run, quick, monkeypatch):
    monkeypatch.delitem(ATTACKS, "square")
    run = tiny_run("at")
    report = audit_model(
        run.model(), run.data().test.take(slice(0, 10)), run.plan.recipe.threat, quiet=True
    )
    assert report.missing == {"square": "no such attack"} and "square" not in report.steps.index


def test_bad_questions(tiny_run, quick):
    run = tiny_run("at")
    split, threat = run.data().test.take(slice(0, 10)), Threat(eps=0.1)
    for question, words in (
        ({"n": -1}, "at least 0"),
        ({"n": 2.5}, "whole number"),
        ({"budget": 0}, "above 0"),
        ({"which": "worst"}, "last, best, initial"),
        ({"device": "gpu"}, "auto, cpu, cuda, mps"),
        ({"transfer": run}, "another run"),
    ):
        with pytest.raises(KitError, match=words):
            audit(run, quiet=True, **question)
    with pytest.raises(KitError, match="no images"):
        audit_model(run.model(), split.take(slice(0, 0)), threat, quiet=True)
    with pytest.raises(KitError, match="probabilities"):
        audit_model(nn.Sequential(run.model(), nn.Softmax(dim=1)), split, threat, quiet=True)
    with pytest.raises(KitError, match="no gradient leads"):
        audit_model(
            nn.Sequential(masked_networks.FunctionLayer(torch.Tensor.detach), run.model()),
            split,
            threat,
            quiet=True,
        )


def test_command(tiny_run, quick, capsys, monkeypatch):
    run = tiny_run("at")
    words = ["audit", run.key, "--n", "20", "--device", "cpu", "--budget", "1h"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert ("at most about" in out or "are stored" in out) and "worst case" in out
    assert STRONGER in out
    assert main(["audit", run.key, "--budget", "soon"]) == 2
    assert "is not a duration" in capsys.readouterr().err
    monkeypatch.setattr(
        robustness_audit, "follow_losses", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert (
        main(["audit", run.key, "--n", "20"]) == 130
        and "Not run: losses (stopped)" in capsys.readouterr().out
    )


# ------------------------------------------------------------------------------------------ the zoo

FAULTS = {"quantised": GRADIENTS, "saturated": LOGITS, "noisy": TWICE, "flat": MARGIN}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_the_zoo_fires_its_rule(fault, honest, quick):
    split, threat, model = honest.data().test.take(slice(0, 100)), Threat(eps=0.2), honest.model()
    report = audit_model(
        getattr(masked_networks, f"{fault}_network")(model), split, threat, quiet=True
    )
    assert report.finding(FAULTS[fault]).light == "red" and report.light == "red"
    if fault != "noisy":
        with torch.no_grad():
            assert torch.equal(
                getattr(masked_networks, f"{fault}_network")(model)(split.x()).argmax(1),
                model(split.x()).argmax(1),
            )
    if fault == "flat":  # beside the same network without the fault
        plain = measure_attack(model, split, threat, ATTACKS["pgd100"])["broken"]
        assert report.steps.accuracy["pgd100"] > 1 - plain.mean() + 0.3
    if fault == "quantised":
        assert report.finding(BLACK).light == report.finding(UNBOUNDED).light == "red"


def test_an_honest_network_fires_nothing(honest, quick):
    report = audit(honest, n=150, quiet=True)
    assert {
        finding.rule for finding in report.findings if finding.light in ("red", "amber")
    } == set()
    assert report.finding(SQUARE).light == "not judged" and report.light == "green"


class Useless(nn.Module):
    """Says class 3 of everything, or NaN."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def forward(self, x):
        return (
            torch.zeros(len(x), 10).index_fill(1, torch.tensor([3]), self.value)
            + 0 * x.sum(dim=(1, 2, 3))[:, None]
        )


def test_useless_networks(quick):
    split = Split(
        torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8),
        torch.arange(60) % 10,
        torch.arange(60),
    )
    constant = audit_model(Useless(2.0), split, Threat(eps=0.1), quiet=True)
    assert (
        constant.finding(NUMBERS).light == "red" and "class 3" in constant.finding(NUMBERS).sentence
    )
    sick = audit_model(Useless(math.nan), split, Threat(eps=0.1), quiet=True)
    assert (
        sick.light == "red"
        and sick.steps.empty
        and repr(sick)
        and "not finite" in sick.missing["pgd20"]
    )
    assert len(sick.finding(NUMBERS).ids) == 60


@pytest.mark.slow
def test_honest_adversarial_training_on_digits_is_green(home):
    """With the whole ladder. Noise may turn the two rules amber that a single image decides."""
    report = audit(kit.run("at", quiet=True), n=120, quiet=True)
    lights = {finding.rule: finding.light for finding in report.findings}
    assert all(
        light == "green" or (light == "amber" and rule in (BLACK, SQUARE))
        for rule, light in lights.items()
    ), report


@pytest.mark.slow
def test_gairat_on_few_steps_fires_the_margin_rule(home, monkeypatch):
    monkeypatch.setattr(
        robustness_audit,
        "AUDIT_STEPS",
        tuple(rung for rung in AUDIT_STEPS if rung.attack in QUICK[:-1]),
    )
    report = audit(kit.run(masked_networks.MASKED_GAIRAT, quiet=True), quiet=True)
    assert report.finding(MARGIN).light == "red" and len(report.finding(MARGIN).ids) > 20
    assert {
        report.finding(rule).light
        for rule in (STRONGER, UNBOUNDED, GRADIENTS, CONVERGED, LOGITS, TWICE)
    } == {"green"}
