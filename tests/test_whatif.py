"""Offline reweighting: numbers of a second computation, contracts over the whole table, readable errors."""

from __future__ import annotations

import math

import numpy as np
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
        shares = frame.attrs["by_class"][2, name]
        assert shares[3] == pytest.approx(sum(v for v, t in zip(w, y, strict=True) if t == 3) / sum(w))
    ids = arrays["seen_ids"]
    tops = [set(sorted(ids, key=lambda i, w=w: -w[list(ids).index(i)])[:6]) for w in (mail, clirat)]
    assert frame.top_overlap.tolist() == pytest.approx([1.0, len(tops[0] & tops[1]) / 6])


def test_every_method_every_epoch(tiny_run):
    frame = kit.whatif(tiny_run("at"), list(kit.METHODS))
    assert len(frame) == 3 * len(kit.METHODS) and frame.attrs["reference"] == next(
        name for name, row in kit.METHODS.items() if row.reweights)
    shares = frame[["effective_sample_share", "top_overlap", "robust_share", "one_label_share", "several_labels_share"]]
    assert ((shares >= 0) & (shares <= 1 + 1e-9)).all().all()
    together = shares.robust_share + shares.one_label_share + shares.several_labels_share
    assert (np.isclose(together, 0) | np.isclose(together, 1)).all(), "right, one or several labels: that is everybody"
    for row in frame.itertuples():
        total = frame.attrs["by_class"][row.epoch, row.method].sum()
        assert total == pytest.approx(1 if row.mean_weight > 0 else 0)
        if not kit.METHODS[row.method].reweights:
            assert row.mean_weight == row.effective_sample_share == 1 and math.isnan(row.spearman)
    literal, mended = (frame[frame.method == name].robust_share.mean() for name in ("mr-mail-literal", "mr-mail"))
    assert literal > mended, "the printed sign puts the weight on the safe"


def test_a_method_does_not_depend_on_its_company(tiny_run):
    run = tiny_run("at")
    alone = kit.whatif(run, ["clirat-drop-random"], reference="clirat-drop-random")
    together = kit.whatif(run, ["clirat-drop-matched", "clirat-drop-random"])
    assert alone.mean_weight.tolist() == together[together.method == "clirat-drop-random"].mean_weight.tolist()


@pytest.mark.parametrize(("arguments", "options", "words"), [
    (["mail"], {}, "no method"), ([], {}, "at least one method"), (["mail-at"], {"epochs": [9]}, "epochs 1 to 3, not 9"),
    (["mail-at"], {"reference": "clirat"}, "no reference among these methods 'clirat'")])
def test_bad_questions(tiny_run, arguments, options, words):
    with pytest.raises(KitError, match=words):
        kit.whatif(tiny_run("at"), arguments, **options)
