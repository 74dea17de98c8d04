"""Evaluation:

counts that add up, verdicts that are kept, networks that cannot be judged refused.
"""

from __future__ import annotations

import shutil
import time

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

import kit
from kit.attacks.table import ATTACKS
from kit.core.errors import KitError
from kit.core.threads import run_in_threads, stop_if_abandoned
from kit.core.threat import Threat
from kit.data.splits import Split
from kit.evaluation import accuracy
from kit.evaluation.accuracy import evaluate, evaluation_file, measure_attack
from kit.evaluation.class_tables import confusion, per_class, protected_table
from kit.evaluation.statistics import paired_difference, wilson
from kit.experiments.devices import spare_threads, threads_for


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (1, 7), (480, 1000), (3, 4)])
def test_wilson_is_scipys(k, n):
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)


#: Rows that cost thousands of passes an image.
COSTLY = (
    "cw-l2",
    "spsa100",
    "mdmt",
    "apgd-t",
    "fab-t",
    "square",
    "aa",
    "aa-plus",
    "aa-rand",
    "mde",
)


WORDS = {
    "cw-l2": ["cw-l2"],
    "spsa100": ["spsa"],
    "mdmt": ["mdmt"],
    "fab-t": ["fab"],
    "square": ["square"],
    "apgd-t": ["apgd-t", "apgd"],
    "aa": ["apgd-t", "fab-t", "square"],
    "aa-rand": ["apgd-dlr"],
    "aa-plus": ["apgd-dlr", "fab", "square", "apgd-t", "fab-t"],
    "mde": ["md", "mdmt", "fab-t"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COSTLY)
def test_costly_attacks_on_a_few_images(name, tiny_run):
    table = evaluate(tiny_run("at"), ["natural", name], n=4, quiet=True)
    assert table.accuracy[name] <= table.accuracy["natural"] and table.forwards[name] > 50
    seen = table.attrs["examples"][name]
    assert (
        set(seen["by"][seen["broken"]]) <= {"clean", "apgd-ce", *WORDS[name]}
        and len(seen["size"]) == 4
    )


def test_table_adds_up(tiny_run):
    run = tiny_run("at")
    rows = [name for name in ATTACKS if name not in COSTLY]
    table = evaluate(run, rows, n=120, quiet=True)
    assert list(table.index) == rows and (table.n == 120).all()
    assert ((table.low <= table.accuracy) & (table.accuracy <= table.high)).all()
    assert (table.accuracy <= table.last_iterate + 1e-12)[table.index != "fmn100"].all(), (
        "any iterate is the stricter count"
    )
    assert (
        table.forwards["natural"] == 1
        and table.forwards["pgd20"] == 22
        and table.backwards["pgd20"] == 20
    )
    assert (table.accuracy <= table.accuracy["natural"]).all()
    assert (
        table.accuracy["pgd20x5"] <= table.accuracy["pgd20"]
        and table.accuracy["pgd100"] < table.accuracy["natural"]
    )
    with torch.no_grad():
        predicted = run.model()(run.data().test.x(slice(0, 120))).argmax(1).numpy()
    np.testing.assert_array_equal(table.attrs["examples"]["natural"]["prediction"], predicted)
    for attack in rows:
        matrix, classes = confusion(table, attack), per_class(table, attack)
        assert matrix.sum() == 120 == classes.n.sum()
        assert np.trace(matrix) / 120 == pytest.approx(table.last_iterate[attack])
        assert (classes.accuracy * classes.n).sum() / 120 == pytest.approx(table.accuracy[attack])


def test_verdicts_are_kept_and_separate(tiny_run):
    run = tiny_run("at")
    first = evaluate(run, ["pgd10"], quiet=True)
    files = set((run.folder / "evaluations").iterdir())
    second = evaluate(run, ["pgd10"], quiet=True)
    assert set((run.folder / "evaluations").iterdir()) == files and second.seconds.equals(
        first.seconds
    )
    for options in ({"n": 50}, {"split": "train"}, {"which": "best"}):
        other = evaluate(run, ["pgd10"], quiet=True, **options)
        assert len(set((run.folder / "evaluations").iterdir())) > len(files)
        files = set((run.folder / "evaluations").iterdir())
        assert other.n["pgd10"] == {"n": 50, "split": 600, "which": 497}[next(iter(options))]


def test_result_does_not_depend_on_batches(tiny_run, monkeypatch):
    run = tiny_run("at")
    split, attack = run.data().test.take(slice(0, 90)), ATTACKS["pgd10"]
    whole = measure_attack(run.model(), split, run.plan.recipe.threat, attack)
    monkeypatch.setitem(accuracy.ATTACK_BATCH, "cpu", 17)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    shuffled = measure_attack(run.model(), split.take(order), run.plan.recipe.threat, attack)
    np.testing.assert_array_equal(whole["broken"][order.numpy()], shuffled["broken"])


@pytest.mark.parametrize(
    "make",
    [
        lambda net: nn.Sequential(net, nn.Softmax(dim=1)),
        lambda net: Scaled(net, float("nan")),
        lambda net: Scaled(net, float("inf")),
    ],
    ids=["probabilities", "nan", "inf"],
)
def test_networks_that_cannot_be_judged(tiny_run, make):
    run = tiny_run("at")
    with pytest.raises(KitError, match=r"probabilities|NaN or infinite"):
        measure_attack(
            make(run.model()), run.data().test.take(slice(0, 20)), Threat(eps=0.1), ATTACKS["pgd10"]
        )


class Shaky(nn.Module):
    """A network in training mode's spirit: dropout that never sleeps."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x):
        return nn.functional.dropout(self.net(x), 0.3, training=True)


def test_what_is_odd_is_said(tiny_run, capsys, monkeypatch):
    """By evaluate, each attack's result, and AutoAttack; nothing of the kind about an honest
    network.
    """
    from kit.experiments.runs import Run

    run, odd = (
        tiny_run("at"),
        {"differently each time": Shaky, "gives every image class": lambda net: Scaled(net, 0.0)},
    )
    split, plain = run.data().test.take(slice(0, 40)), Run.model
    assert kit.evaluate(run, ["pgd10"], n=7, quiet=True).attrs["notes"] == []
    for words, make in odd.items():
        monkeypatch.setattr(
            Run, "model", lambda self, *which, make=make: make(plain(self, *which)).eval()
        )
        n = 41 + len(words)  # a size that no other test has asked for
        table = kit.evaluate(run, ["natural"], n=n)
        assert len(table.attrs["notes"]) == 1 and words in table.attrs["notes"][0]
        assert (
            f"WARNING: {run.spec}: " in capsys.readouterr().out
            and words in kit.evaluate(run, ["natural"], n=n, quiet=True).attrs["notes"][0]
        ), "also when it is opened again"
        for attack in (ATTACKS["pgd10"].fn, ATTACKS["apgd-ce"].fn):
            assert any(
                words in note
                for note in attack(make(plain(run)), split.x(), split.y, Threat(eps=0.1)).notes
            )


def test_small_networks_take_one_thread_and_give_the_others_back(tiny_run, monkeypatch):
    run, used = tiny_run("at"), []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        forward = nn.Linear.forward
        monkeypatch.setattr(
            nn.Linear,
            "forward",
            lambda self, x: used.append(torch.get_num_threads()) or forward(self, x),
        )
        kit.evaluate(run, ["pgd10"], n=33, quiet=True)
        assert set(used) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


class Scaled(nn.Module):
    def __init__(self, net: nn.Module, factor: float):
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x):
        return self.net(x) * self.factor


def test_nan_for_some_images_is_never_robust(tiny_run):
    """A network that answers NaN beyond the first batch is not counted as right there, whatever
    argmax says.
    """
    run = tiny_run("at")

    class Sick(nn.Module):
        def forward(self, x):
            logits = torch.zeros(len(x), 10)
            return logits.masked_fill(torch.arange(len(x))[:, None] >= 8, float("nan"))

    x = run.data().test.images[:16]
    outcome = ATTACKS["natural"](
        Sick(),
        Split(x, torch.zeros(16).long(), torch.arange(16)).x(),
        torch.zeros(16).long(),
        Threat(),
        None,
    )
    assert (
        outcome.broken.tolist() == [False] * 8 + [True] * 8 and (outcome.prediction[8:] == -1).all()
    )


def test_an_evaluation_is_read_where_it_belongs(tiny_run, copy_of):
    """Verdicts of another attack or another run in its place are refused, and those of an
    unfinished run are not made: they would be kept as the finished network's.
    """
    run, other = copy_of(tiny_run("at")), tiny_run("at", seed=1)
    shutil.rmtree(run.folder / "evaluations", ignore_errors=True)
    evaluate(run, ["natural", "fgsm"], n=10, quiet=True)
    evaluate(other, ["natural"], n=10, quiet=True)
    paths = [evaluation_file(run, name, n=10)[1] for name in ("natural", "fgsm")]
    for wrong in (paths[1], evaluation_file(other, "natural", n=10)[1]):
        shutil.copy(wrong, paths[0])
        with pytest.raises(
            KitError, match="not the evaluation that belongs there; delete it to evaluate again"
        ):
            evaluate(run, ["natural"], n=10, quiet=True)
    paths[0].write_bytes(paths[0].read_bytes()[:-30])
    with pytest.raises(KitError, match="Delete it to evaluate again"):
        evaluate(run, ["natural"], n=10, quiet=True)
    (run.folder / "done.json").unlink()
    with pytest.raises(KitError, match=r"is not trained to its end; .* Train it first"):
        evaluate(run, ["natural"], n=20, quiet=True)


def test_pieces_of_other_images_are_not_taken(tiny_run, tmp_path):
    """Of an interrupted evaluation, only what lies where it was counted."""
    run = tiny_run("at")
    split, options = run.data().test.take(slice(0, 40)), (run.plan.recipe.threat, ATTACKS["fgsm"])
    whole = measure_attack(run.model(), split, *options)
    for place, rows in (
        ("000000", slice(20, 40)),
        ("000020", slice(0, 20)),
        ("strange", slice(0, 20)),
    ):
        np.savez(
            tmp_path / f"{place}.npz", **measure_attack(run.model(), split.take(rows), *options)
        )
    again = measure_attack(run.model(), split, *options, partial=tmp_path)
    assert all(np.array_equal(whole[name], again[name]) for name in whole)


def test_interrupted_evaluation_goes_on(tiny_run, monkeypatch, copy_of):
    """Stopped in the third batch of six:

    the finished ones are not attacked again, and the end is the undisturbed one.
    """
    run, calls = copy_of(tiny_run("at")), []
    monkeypatch.setitem(accuracy.ATTACK_BATCH, "cpu", 20)
    whole = evaluate(run, ["pgd10"], n=110, quiet=True).attrs["examples"]["pgd10"]
    shutil.rmtree(run.folder / "evaluations")
    real = accuracy._measure_batch

    def stopped(model, split, rows, *rest):
        calls.append(int(rows[0]))
        if calls == [0, 20, 40]:
            raise KeyboardInterrupt
        return real(model, split, rows, *rest)

    monkeypatch.setattr(accuracy, "_measure_batch", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, ["pgd10"], n=110, quiet=True)
    again = evaluate(run, ["pgd10"], n=110, quiet=True).attrs["examples"]["pgd10"]
    assert calls == [0, 20, 40, 40, 60, 80, 100]
    assert all(np.array_equal(whole[key], again[key]) for key in whole)
    assert not list((run.folder / "evaluations").glob("*.partial"))


def test_out_of_memory_halves_the_batch(tiny_run, monkeypatch, capsys):
    """And says so; the verdicts are those of whole batches."""
    run = tiny_run("at")
    split, attack = run.data().test.take(slice(0, 60)), ATTACKS["pgd10"]
    whole, real = (
        measure_attack(run.model(), split, run.plan.recipe.threat, attack),
        accuracy._measure_batch,
    )

    def small(model, split, rows, *rest):
        if len(rows) > 20:
            raise torch.OutOfMemoryError("too large")
        return real(model, split, rows, *rest)

    monkeypatch.setattr(accuracy, "_measure_batch", small)
    monkeypatch.setitem(accuracy.ATTACK_BATCH, "cpu", 64)
    pieces = measure_attack(run.model(), split, run.plan.recipe.threat, attack)
    assert (
        np.array_equal(whole["broken"], pieces["broken"])
        and "15 images at a time" in capsys.readouterr().out
    )
    monkeypatch.setattr(accuracy, "_measure_batch", lambda *_: small(None, None, range(99)))
    with pytest.raises(KitError, match="one image alone does not fit"):
        measure_attack(run.model(), split, run.plan.recipe.threat, attack)


def test_several_threads_change_no_verdict(tiny_run):
    """Copies of the network in three threads:

    every field of every example as on one, and the network untouched.
    """
    run = tiny_run("at")
    model, split, attack = run.model(), run.data().test.take(slice(0, 50)), ATTACKS["pgd10"]
    alone = measure_attack(model, split, run.plan.recipe.threat, attack)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with threads_for("cnn", torch.device("cpu")):
            assert spare_threads() == 3 and torch.get_num_threads() == 1
            with threads_for("cnn", torch.device("cpu")):
                assert spare_threads() == 3
            together = measure_attack(model, split, run.plan.recipe.threat, attack)
        with threads_for("resnet18", torch.device("cpu")):
            assert spare_threads() == 1 and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    for key in alone:
        same = (
            np.allclose(alone[key], together[key], atol=1e-5)
            if key in ("margin", "size")
            else np.array_equal(alone[key], together[key])
        )
        assert same, key
    assert spare_threads() == 1 and not model._forward_pre_hooks


def test_who_leaves_early_stops_the_threads():
    """At their next pass, not after the job."""
    passes = []

    def forever(job):
        while job:
            stop_if_abandoned()
            passes.append(1)
            time.sleep(0.02)
        return job

    started = time.monotonic()
    for answer in run_in_threads(forever, [(1,), (0,)], 2):
        assert answer == 0
        break
    seen = len(passes)
    time.sleep(0.1)
    assert time.monotonic() - started < 5 and len(passes) == seen
    stop_if_abandoned()  # the main thread is always wanted


def test_bad_questions(tiny_run):
    run = tiny_run("at")
    for question, words in (
        ({"attacks": ["pdg20"]}, "Did you mean 'pgd20'"),
        ({"split": "tset"}, "Did you mean 'test'"),
        ({"n": -1}, "whole number"),
        ({"which": "worst"}, "last, best, initial"),
        ({"device": "gpu"}, "auto, cpu, cuda, mps"),
    ):
        with pytest.raises(KitError, match=words):
            evaluate(run, **{"attacks": ["natural"], "n": 3, "quiet": True, **question})
    with pytest.raises(KitError, match="holds out no validation"):
        evaluate(tiny_run("at", validation=0), ["natural"], split="validation", quiet=True)
    with pytest.raises(KitError, match="natural"):
        confusion(evaluate(run, ["natural"], quiet=True), "pgd20")


def test_paired_difference_on_known_counts():
    a, b = np.array([1, 1, 0, 0, 0, 1] * 50, bool), np.array([0, 1, 0, 0, 1, 1] * 50, bool)
    mean, low, high = paired_difference(a, b)
    assert mean == pytest.approx(0) and low == pytest.approx(-high)
    mean, low, high = paired_difference(a, np.zeros(300, bool))
    assert mean == pytest.approx(0.5) and high - low == pytest.approx(
        2 * 1.96 * 0.5 / 300**0.5, rel=0.01
    )


def test_protected_table_is_about_the_protected_class(tiny_run):
    runs = {"at": tiny_run("at"), "csa": tiny_run("csa", **{"loss.protected": 3})}
    table = protected_table(runs, ["natural"])
    expected = per_class(evaluate(runs["csa"], ["natural"], quiet=True), "natural").loc["3"]
    row = table.loc[("csa", "natural")]
    assert (
        row["class 3"] == pytest.approx(expected["accuracy"], abs=1e-3)
        and row["n"] == expected["n"]
    )
    assert row["n, all"] == 497
