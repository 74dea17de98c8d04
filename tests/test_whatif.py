"""Offline reweighting: numbers of a second computation, contracts over the whole table, readable errors."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import kit
from kit.types import KitError


def softmax(row):
    values = [math.exp(v - max(row)) for v in row.tolist()]
    return [v / sum(values) for v in values]


def test_against_loops(tiny_run):
    """MAIL-AT's and CLIRAT's weights, number by number, and every column computed by hand."""
    run = tiny_run("at")
    frame = kit.whatif(run, "mail-at clirat", epochs=[2])
    arrays = run.epoch(2)
    y, probs = arrays["seen_y"], [softmax(row.astype(np.float64)) for row in arrays["seen_logits_adv"]]
    mail, clirat, labels = [], [], []
    for p, t in zip(probs, y, strict=True):
        above = [v - p[t] for v in p if v > p[t]]
        pm = p[t] - max(v for j, v in enumerate(p) if j != t)
        labels.append(len(above))
        mail.append(3 / (1 + math.exp(10 * (pm + 0.5))))
        clirat.append(1 / (1 + math.exp(10 * ((-sum(above) if above else pm) + 0.5))))
    clirat = [w * len(clirat) / sum(clirat) for w in clirat]
    for name, w in (("mail-at", mail), ("clirat", clirat)):
        row = frame[frame.method == name].iloc[0]
        assert row.mean_weight == pytest.approx(sum(w) / len(w)) and row.n == len(w) == 60
        assert row.effective_sample_share == pytest.approx(sum(w) ** 2 / (60 * sum(v * v for v in w)))
        assert row.several_labels_share == pytest.approx(
            sum(v for v, k in zip(w, labels, strict=True) if k > 1) / sum(w))
        assert row.one_label_share == pytest.approx(sum(v for v, k in zip(w, labels, strict=True) if k == 1) / sum(w))
        assert row.spearman == pytest.approx(spearmanr(w, mail).statistic)
        shares = frame.attrs["by_class"][f"2 {name}"]
        assert shares[3] == pytest.approx(sum(v for v, t in zip(w, y, strict=True) if t == 3) / sum(w))
    ids = arrays["seen_ids"]
    tops = [set(sorted(ids, key=lambda i, w=w: -w[list(ids).index(i)])[:6]) for w in (mail, clirat)]
    assert frame.top_overlap.tolist() == pytest.approx([1.0, len(tops[0] & tops[1]) / 6])


def test_every_method_every_epoch(tiny_run):
    frame = kit.whatif(tiny_run("at"), list(kit.METHODS))
    assert len(frame) == 3 * len(kit.METHODS) and frame.attrs["reference"] == next(
        name for name, row in kit.METHODS.items() if row.reweights)
    shares = frame[["effective_sample_share", "top_overlap", "robust_share", "one_label_share", "several_labels_share"]]
    assert (((shares >= 0) & (shares <= 1 + 1e-9)) | shares.isna()).all().all()
    together = shares.robust_share + shares.one_label_share + shares.several_labels_share
    assert (together.isna() == (frame.mean_weight == 0)).all()
    assert np.allclose(together.dropna(), 1), "right, one or several labels: that is everybody"
    for row in frame.itertuples():
        total = sum(frame.attrs["by_class"][f"{row.epoch} {row.method}"])
        assert total == pytest.approx(1) if row.mean_weight > 0 else math.isnan(total)
        if not kit.METHODS[row.method].reweights:
            assert row.mean_weight == 1 and row.effective_sample_share == pytest.approx(1)
            assert math.isnan(row.spearman) and math.isnan(row.top_overlap), "of equal weights none is the larger"
    literal, mended = (frame[frame.method == name].robust_share.mean() for name in ("mr-mail-literal", "mr-mail"))
    assert literal > mended, "the printed sign puts the weight on the safe"


def test_a_method_does_not_depend_on_its_company(tiny_run):
    run = tiny_run("at")
    alone = kit.whatif(run, ["clirat-drop-random"], reference="clirat-drop-random")
    together = kit.whatif(run, ["clirat-drop-matched", "clirat-drop-random"])
    assert alone.mean_weight.tolist() == together[together.method == "clirat-drop-random"].mean_weight.tolist()


@pytest.mark.parametrize("method", ["mail-at", "clirat-drop-single", "vir-at", "gairat"])
def test_on_the_fly_are_the_weights_that_were_used(method, tiny_run):
    """Where no normaliser looks at the batch, what-if on the fly has the run's own weights of its last epoch."""
    run = tiny_run(method, **({} if method == "vir-at" else {"batch_size": 600} if method == "gairat" else {}))
    used = run.epoch(3)["train_weight"].astype(np.float64)
    row = kit.whatif(run, [method], epochs=[3], counted="on the fly").iloc[0]
    assert row.n == 600 and row.mean_weight == pytest.approx(used.mean(), rel=1e-4)
    assert row.effective_sample_share == pytest.approx(used.sum() ** 2 / (600 * (used ** 2).sum()), rel=1e-3)


def test_final_looks_at_all_images_with_the_finished_network(tiny_run):
    run = tiny_run("at")
    frame = kit.whatif(run, "mail-at vir-at", counted="final")
    assert frame.epoch.tolist() == [3, 3] and (frame.n == 600).all()
    probe = kit.whatif(run, "mail-at vir-at", epochs=[3])
    assert (probe.n == 60).all() and not np.allclose(probe.mean_weight, frame.mean_weight)


def test_ties_at_the_cut_share_their_places():
    """Ten examples, a tenth is one: two tie for it here, one of them is alone there: half of it overlaps."""
    from kit.whatif import _Order, _summary
    reference, tied = np.arange(10.0), np.array([0, 0, 0, 0, 0, 0, 0, 0, 1.0, 1.0])
    assert _summary(tied, _Order(reference), {})["top_overlap"] == 0.5
    assert _summary(reference, _Order(tied), {})["top_overlap"] == 0.5
    assert math.isnan(_summary(np.ones(10), _Order(reference), {})["top_overlap"])
    nothing = _summary(np.zeros(10), _Order(reference), {"robust_share": np.ones(10, bool)})
    assert nothing["mean_weight"] == 0 and math.isnan(nothing["robust_share"])


def test_order_of_examples_does_not_matter():
    from kit.whatif import _Order, _summary
    dice = np.random.default_rng(0)
    w, other, mask = dice.random(50), dice.random(50).round(1), dice.random(50) < 0.5
    plain = _summary(w, _Order(other), {"robust_share": mask})
    order = dice.permutation(50)
    assert _summary(w[order], _Order(other[order]), {"robust_share": mask[order]}) == pytest.approx(plain)


def test_tables_go_together(tiny_run):
    """pandas compares attrs when it puts tables together; both kinds of ours can be put together."""
    run = tiny_run("at")
    frames = [kit.whatif(run, name, epochs=[3]) for name in ("mail-at", "clirat")]
    assert len(pd.concat(frames)) == 2 and len(frames[0].merge(frames[1], on="epoch")) == 1
    tables = [kit.evaluate(run, name, n=20, quiet=True) for name in ("natural", "fgsm")]
    assert len(pd.concat(tables)) == 2 and len(pd.concat([tables[0], tables[0]])) == 2
    assert tables[0].round(2).attrs["examples"]["natural"]["y"].shape == (20,)


@pytest.mark.parametrize(("arguments", "options", "words"), [
    (["mail-at"], {"epochs": [1.5]}, "whole number"), (["mail-at"], {"epochs": 3}, "list of epochs"),
    (["mail-at"], {"epochs": []}, "list of epochs"), (["mail-at"], {"epochs": "last"}, "list of epochs"),
    (["mail-at"], {"counted": "frosen"}, "Did you mean 'frozen'"),
    (["mail-at"], {"counted": "final", "epochs": [1]}, "finished network"),
    (["vir-at"], {"counted": "on the fly"}, "vir-at weighs by logits_nat, which this run did not keep"),
    (["mail"], {}, "no method"), ([], {}, "at least one method"), (["mail-at"], {"epochs": [9]}, "epochs 1 to 3, not 9"),
    (["mail-at"], {"reference": "clirat"}, "no reference among these methods 'clirat'")])
def test_bad_questions(tiny_run, arguments, options, words):
    with pytest.raises(KitError, match=words):
        kit.whatif(tiny_run("at"), arguments, **options)
