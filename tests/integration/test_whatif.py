"""Offline reweighting:

numbers of a second computation, contracts over the whole table, readable errors.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import kit
from kit.core import files
from kit.core.errors import KitError
from kit.core.parts import part
from kit.experiments.runs import Run
from kit.methods.criteria import Criterion


def softmax(row):
    values = [math.exp(v - max(row)) for v in row.tolist()]
    return [v / sum(values) for v in values]


def test_against_loops(tiny_run):
    """MAIL-AT's and CLIRAT's weights, number by number, and every column computed by hand."""
    run = tiny_run("at")
    frame = kit.whatif(run, "mail-at clirat", epochs=[2])
    arrays = run.epoch(2)
    y, probs = (
        arrays["seen_y"],
        [softmax(row.astype(np.float64)) for row in arrays["seen_logits_adv"]],
    )
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
        assert row.effective_sample_share == pytest.approx(
            sum(w) ** 2 / (60 * sum(v * v for v in w))
        )
        assert row.several_labels_share == pytest.approx(
            sum(v for v, k in zip(w, labels, strict=True) if k > 1) / sum(w)
        )
        assert row.one_label_share == pytest.approx(
            sum(v for v, k in zip(w, labels, strict=True) if k == 1) / sum(w)
        )
        assert row.spearman == pytest.approx(spearmanr(w, mail).statistic)
        shares = frame.attrs["by_class"][f"2 {name}"]
        assert shares[3] == pytest.approx(
            sum(v for v, t in zip(w, y, strict=True) if t == 3) / sum(w)
        )
    ids = arrays["seen_ids"]
    tops = [set(sorted(ids, key=lambda i, w=w: -w[list(ids).index(i)])[:6]) for w in (mail, clirat)]
    assert frame.top_overlap.tolist() == pytest.approx([1.0, len(tops[0] & tops[1]) / 6])


def test_every_method_every_epoch(tiny_run):
    frame = kit.whatif(tiny_run("at"), list(kit.METHODS))
    assert len(frame) == 3 * len(kit.METHODS) and frame.attrs["reference"] == next(
        name for name, row in kit.METHODS.items() if row.reweights
    )
    shares = frame[
        [
            "effective_sample_share",
            "top_overlap",
            "robust_share",
            "one_label_share",
            "several_labels_share",
        ]
    ]
    assert (((shares >= 0) & (shares <= 1 + 1e-9)) | shares.isna()).all().all()
    together = shares.robust_share + shares.one_label_share + shares.several_labels_share
    assert (together.isna() == (frame.mean_weight == 0)).all()
    assert np.allclose(together.dropna(), 1), "right, one or several labels: that is everybody"
    for row in frame.itertuples():
        total = sum(frame.attrs["by_class"][f"{row.epoch} {row.method}"])
        assert total == pytest.approx(1) if row.mean_weight > 0 else math.isnan(total)
        if not kit.METHODS[row.method].reweights:
            assert row.mean_weight == 1 and row.effective_sample_share == pytest.approx(1)
            assert math.isnan(row.spearman) and math.isnan(row.top_overlap), (
                "of equal weights none is the larger"
            )
    literal, mended = (
        frame[frame.method == name].robust_share.mean() for name in ("mr-mail-literal", "mr-mail")
    )
    assert literal > mended, "the printed sign puts the weight on the safe"


def test_a_method_does_not_depend_on_its_company(tiny_run):
    run = tiny_run("at")
    alone = kit.whatif(run, ["clirat-drop-random"], reference="clirat-drop-random")
    together = kit.whatif(run, ["clirat-drop-matched", "clirat-drop-random"])
    assert (
        alone.mean_weight.tolist()
        == together[together.method == "clirat-drop-random"].mean_weight.tolist()
    )


@pytest.mark.parametrize("method", ["mail-at", "clirat-drop-single", "vir-at", "gairat"])
def test_on_the_fly_are_the_weights_that_were_used(method, tiny_run):
    """Where no normaliser looks at the batch, what-if on the fly has the run's own weights of its
    last epoch.
    """
    run = tiny_run(
        method, **({} if method == "vir-at" else {"batch_size": 600} if method == "gairat" else {})
    )
    used = run.epoch(3)["train_weight"].astype(np.float64)
    row = kit.whatif(run, [method], epochs=[3], counted="on the fly").iloc[0]
    assert row.n == 600 and row.mean_weight == pytest.approx(used.mean(), rel=1e-4)
    assert row.effective_sample_share == pytest.approx(
        used.sum() ** 2 / (600 * (used**2).sum()), rel=1e-3
    )
    y = run.data().train.y.numpy()
    right = run.epoch(3)["train_logits_adv"].argmax(1) == y
    assert row.robust_share == pytest.approx(used[right].sum() / used.sum(), rel=1e-3)
    shares = kit.whatif(run, [method], epochs=[3], counted="on the fly").attrs["by_class"][
        f"3 {method}"
    ]
    assert shares == pytest.approx([used[y == k].sum() / used.sum() for k in range(10)], rel=1e-3)


def test_on_the_fly_asks_for_no_pixels(tiny_run, monkeypatch):
    """Hashing a large data set in each epoch would take longer than all else."""
    run = tiny_run("trades")
    monkeypatch.setattr(
        type(run), "data", lambda self: pytest.fail("labels and ids are kept with the run")
    )
    assert (kit.whatif(run, "mail-at vir-at", counted="on the fly").n == 600).all()


@pytest.mark.parametrize("method", ["std", "csa-halves"])
def test_clean_images_are_not_taken_for_attacked_ones(method, tiny_run):
    """Where a run trained on clean images, nothing was attacked on the fly; its other sources know
    all.
    """
    run = tiny_run(method)
    for asked in ("mail-at", "at"):
        with pytest.raises(
            KitError,
            match=f"{asked} needs logits_adv.* did not keep 'on the fly' in epoch 1.*final",
        ):
            kit.whatif(run, asked, counted="on the fly")
    assert (
        len(kit.whatif(run, "mail-at vir-at")) == 6
        and len(kit.whatif(run, "mail-at vir-at", counted="final")) == 2
    )
    if method == "csa-halves":
        assert len(kit.whatif(run, "mail-at", counted="on the fly", epochs=[2, 3])) == 2


def test_timetables_are_followed(tiny_run):
    """gairat-linear: λ falls by 2 an epoch here, from 3 after the first to -1 after the third."""
    run = tiny_run("at")
    frame = kit.whatif(run, "gairat-linear gairat")
    for row in frame[frame.method == "gairat-linear"].itertuples():
        shift = 5 - row.epoch / 3 * 6
        w = [
            (1 + math.tanh(shift + 5 * (2 - int(k)) / 2)) / 2
            for k in run.epoch(row.epoch)["seen_kappa"]
        ]
        assert row.effective_sample_share == pytest.approx(
            sum(w) ** 2 / (60 * sum(v * v for v in w))
        )


@pytest.fixture
def row_of(monkeypatch):
    """`row_of(function)` makes MAIL-AT with that weight function, or with that criterion, a method
    named "own".
    """

    def make(function, reads=()):
        own = part(function)
        change = (
            {"criterion": Criterion("own", own, reads, -1, "own", "own")}
            if reads
            else {"weight": own}
        )
        monkeypatch.setitem(kit.METHODS, "own", kit.METHODS["mail-at"].but("own", "own", **change))
        return "own"

    return make


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (lambda score: score / 0, "own, epoch 3, returned NaN or infinite"),
        (lambda score: score * 0 - 1, "returned negative"),
        (lambda score: score.mean(), r"shape \(\); .* \(60,\)"),
        (lambda score: score[:, None].abs(), r"shape \(60, 1\)"),
    ],
)
def test_weights_that_are_none(weight, words, row_of, tiny_run):
    with pytest.raises(KitError, match=words):
        kit.whatif(tiny_run("at"), row_of(weight), epochs=[3])


def test_whole_numbers_are_computed_with_in_double_precision(row_of, tiny_run):
    """A quotient of steps: in single precision a third would be off by 1e-8."""
    run = tiny_run("at")
    name = row_of(
        lambda kappa, lps, steps: (kappa + lps + 1) / (3 * steps), ("kappa", "lps", "steps")
    )
    arrays = run.epoch(3)
    scores = [
        (int(k) + int(t) + 1) / 12
        for k, t in zip(arrays["seen_kappa"], arrays["seen_lps"], strict=True)
    ]
    exact = sum(3 / (1 + math.exp(-10 * (score - 0.5))) for score in scores) / 60
    assert kit.whatif(run, name, epochs=[3]).mean_weight[0] == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize("unit", [1.0, 1e-200, 1e-307])
def test_tiny_weights_have_the_shares_of_large_ones(unit, row_of, tiny_run):
    run = tiny_run("at")
    row = kit.whatif(
        run, ["mail-at", row_of(lambda score: unit * (1.5 + score).clamp_min(0))], epochs=[3]
    ).iloc[1]
    ones = kit.whatif(
        run, ["mail-at", row_of(lambda score: (1.5 + score).clamp_min(0))], epochs=[3]
    ).iloc[1]
    columns = [name for name in ones.index if name not in ("epoch", "method", "mean_weight")]
    assert row[columns].tolist() == pytest.approx(ones[columns].tolist(), rel=1e-9)


def test_weights_that_underflow_have_no_shares(row_of, tiny_run):
    frame = kit.whatif(
        tiny_run("at"), ["mail-at", row_of(lambda score: (score * 0 - 1e4).exp())], epochs=[3]
    )
    row = frame.iloc[1]
    assert (
        row.mean_weight == 0
        and row[
            [
                "effective_sample_share",
                "spearman",
                "top_overlap",
                "robust_share",
                "one_label_share",
                "several_labels_share",
            ]
        ]
        .isna()
        .all()
    )
    assert np.isnan(frame.attrs["by_class"]["3 own"]).all()


def test_what_is_not_finite_is_refused(tiny_run, copy_of):
    run = copy_of(tiny_run("at"))
    (run.folder / "done.json").unlink()  # it knows every file of a finished run
    arrays = files.load_arrays(run.folder / "epochs" / "0002.npz")
    arrays["seen_logits_adv"][7, 3] = np.inf
    files.save_arrays(run.folder / "epochs" / "0002.npz", arrays)
    with pytest.raises(KitError, match="epoch 2: what it kept 'frozen' is not finite"):
        kit.whatif(run, "at")
    assert len(kit.whatif(run, "at", epochs=[1, 3])) == 2


def test_order_of_stored_images_does_not_matter(tiny_run, copy_of):
    """All methods on 597 images, which fill no whole number of a processor's vectors, and on the
    same in another order; an image twice, as ties.
    """
    run, frames = copy_of(tiny_run("at")), []
    final = {name: values for name, values in run.final.items() if name.startswith("train_")}
    (run.folder / "done.json").unlink()
    twice = np.arange(597) // 2
    for rows in (twice, np.random.default_rng(3).permutation(twice)):
        arrays = {name: values[rows] for name, values in final.items()}
        files.save_arrays(run.folder / "final.npz", arrays)
        frames.append(kit.whatif(Run(run.spec, run.folder), list(kit.METHODS), counted="final"))
    first, second = (frame.set_index("method").drop(index=RANDOM) for frame in frames)
    pd.testing.assert_frame_equal(first, second, rtol=1e-9, check_exact=False)
    for key, shares in frames[0].attrs["by_class"].items():
        if key.split()[1] not in RANDOM:
            assert shares == pytest.approx(frames[1].attrs["by_class"][key], nan_ok=True)


#: They draw by image id, and an image that is there twice has one id.
RANDOM = ["clirat-drop-matched", "clirat-drop-random"]


def literal(w, other, right):
    """Every column in loops over Python's own numbers, ties resolved by averaging over all who
    might be in.
    """
    n, tenth = len(w), max(1, len(w) // 10)

    def inside(values):
        above = [sum(v > mine for v in values) for mine in values]
        equal = [sum(v == mine for v in values) for mine in values]
        return [min(1.0, max(0.0, (tenth - a) / e)) for a, e in zip(above, equal, strict=True)]

    total = math.fsum(w)
    constant = len(set(w)) == 1 or len(set(other)) == 1
    overlap = sum(min(a, b) for a, b in zip(inside(w), inside(other), strict=True)) / tenth
    return {
        "mean_weight": total / n,
        "effective_sample_share": total**2 / (n * math.fsum(v * v for v in w)),
        "spearman": math.nan if constant else spearmanr(w, other).statistic,
        "top_overlap": math.nan if constant else overlap,
        "robust_share": math.fsum(v for v, r in zip(w, right, strict=True) if r) / total,
        "n": n,
    }


@pytest.mark.parametrize("n", [2, 9, 10, 11, 25, 99])
@pytest.mark.parametrize("levels", [1, 2, 3, 7, 1000])
def test_columns_against_loops_with_ties(n, levels):
    from kit.evaluation.counterfactual import WeightOrder, summarise_weights

    dice = np.random.default_rng(n * levels)
    for _ in range(5):
        w, other = (dice.integers(1, levels + 1, n) / 8 for _ in range(2))
        right = dice.random(n) < 0.5
        expected = literal(w.tolist(), other.tolist(), right.tolist())
        assert summarise_weights(w, WeightOrder(other), {"robust_share": right}) == pytest.approx(
            expected, nan_ok=True
        )


def test_the_last_bit_breaks_no_tie():
    """Vectorised kernels may round equal numbers differently by where they lie."""
    from kit.evaluation.counterfactual import WeightOrder, summarise_weights

    flat = np.full(20, 0.7)
    flat[3] = np.nextafter(0.7, 1)
    assert math.isnan(summarise_weights(flat, WeightOrder(np.arange(20.0)), {})["spearman"])
    stairs = np.repeat(np.arange(1.0, 5.0), 5)
    shaken = stairs * np.where(np.arange(20) % 3, 1, 1 + 2.3e-16)
    assert (shaken != stairs).any()
    assert summarise_weights(shaken, WeightOrder(stairs), {})["spearman"] == pytest.approx(
        1, abs=1e-14
    )
    assert WeightOrder(shaken).inside.tolist() == WeightOrder(stairs).inside.tolist()


def test_final_looks_at_all_images_with_the_finished_network(tiny_run):
    run = tiny_run("at")
    frame = kit.whatif(run, "mail-at vir-at", counted="final")
    assert frame.epoch.tolist() == [3, 3] and (frame.n == 600).all()
    probe = kit.whatif(run, "mail-at vir-at", epochs=[3])
    assert (probe.n == 60).all() and not np.allclose(probe.mean_weight, frame.mean_weight)


def test_ties_at_the_cut_share_their_places():
    """Ten examples, a tenth is one:

    two tie for it here, one of them is alone there: half of it overlaps.
    """
    from kit.evaluation.counterfactual import WeightOrder, summarise_weights

    reference, tied = np.arange(10.0), np.array([0, 0, 0, 0, 0, 0, 0, 0, 1.0, 1.0])
    assert summarise_weights(tied, WeightOrder(reference), {})["top_overlap"] == 0.5
    assert summarise_weights(reference, WeightOrder(tied), {})["top_overlap"] == 0.5
    assert math.isnan(summarise_weights(np.ones(10), WeightOrder(reference), {})["top_overlap"])
    nothing = summarise_weights(
        np.zeros(10), WeightOrder(reference), {"robust_share": np.ones(10, bool)}
    )
    assert nothing["mean_weight"] == 0 and math.isnan(nothing["robust_share"])


def test_order_of_examples_does_not_matter():
    from kit.evaluation.counterfactual import WeightOrder, summarise_weights

    dice = np.random.default_rng(0)
    w, other, mask = dice.random(50), dice.random(50).round(1), dice.random(50) < 0.5
    plain = summarise_weights(w, WeightOrder(other), {"robust_share": mask})
    order = dice.permutation(50)
    assert summarise_weights(
        w[order], WeightOrder(other[order]), {"robust_share": mask[order]}
    ) == pytest.approx(plain)


def test_tables_go_together(tiny_run):
    """pandas compares attrs when it puts tables together; both kinds of ours can be."""
    run = tiny_run("at")
    frames = [kit.whatif(run, name, epochs=[3]) for name in ("mail-at", "clirat")]
    assert len(pd.concat(frames)) == 2 and len(frames[0].merge(frames[1], on="epoch")) == 1
    tables = [kit.evaluate(run, name, n=20, quiet=True) for name in ("natural", "fgsm")]
    assert len(pd.concat(tables)) == 2 and len(pd.concat([tables[0], tables[0]])) == 2
    assert tables[0].round(2).attrs["examples"]["natural"]["y"].shape == (20,)
    with pytest.raises(KitError, match="no per-example arrays: pandas drops them"):
        kit.per_class(pd.concat(tables), "natural")


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (["mail-at"], {"epochs": [1.5]}, "whole number"),
        (["mail-at"], {"epochs": 3}, "list of epochs"),
        (["mail-at"], {"epochs": []}, "list of epochs"),
        (["mail-at"], {"epochs": "last"}, "list of epochs"),
        (["mail-at"], {"counted": "frosen"}, "Did you mean 'frozen'"),
        (["mail-at"], {"counted": "final", "epochs": [1]}, "finished network"),
        (
            ["vir-at"],
            {"counted": "on the fly"},
            "vir-at needs logits_nat, which this run did not keep 'on the fly' in epoch 1",
        ),
        (["mail-at"], {"epochs": 1.5}, "list of epochs"),
        (["mail-at"], {"epochs": np.array(3)}, "list of epochs"),
        (["mail-at"], {"epochs": [True]}, "whole number"),
        (["mail-at"], {"epochs": [[1]]}, "whole number"),
        (None, {}, "no method 'None'"),
        (3, {}, "no method '3'"),
        ([["at"]], {}, "Did you mean 'at'"),
        (["mail"], {}, "no method"),
        ([], {}, "at least one method"),
        (["mail-at"], {"epochs": [9]}, "epochs 1 to 3, not 9"),
        (["mail-at"], {"reference": "clirat"}, "no reference among these methods 'clirat'"),
    ],
)
def test_bad_questions(tiny_run, arguments, options, words):
    with pytest.raises(KitError, match=words):
        kit.whatif(tiny_run("at"), arguments, **options)


def test_an_epoch_without_its_images(tiny_run, copy_of):
    """A file that lacks what it should hold is named; no KeyError from the depths."""
    run = copy_of(tiny_run("at"))
    (run.folder / "done.json").unlink()
    path = run.folder / "epochs/0001.npz"
    files.save_arrays(
        path,
        {
            name: values
            for name, values in files.load_arrays(path).items()
            if "logits_adv" not in name
        },
    )
    with pytest.raises(KitError, match="epoch 1 keeps no images 'frozen'"):
        kit.whatif(run, ["at"], epochs=[1])
