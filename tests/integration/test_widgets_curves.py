"""Weighting curves and what-if:

their numbers against a second computation, their presets against the papers' tables.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import kit
from kit.core.errors import KitError
from kit.experiments.specification import RunSpec
from kit.methods.table import METHODS
from kit.widgets.counterfactual_panel import whatif
from kit.widgets.method_controls import (
    CURVED,
    parameter_controls,
    presets,
    round_up,
    weight_parameters,
)
from kit.widgets.panel_view import PanelView
from kit.widgets.weighting_panel import normalise_curve, weighting_curves


@pytest.fixture(scope="module")
def runs(home):
    def make(method):
        from tests.helpers.settings import TINY

        return kit.run(method, overrides=TINY, quiet=True)

    return make


@pytest.fixture(scope="module")
def run(runs):
    return runs("mail-at")


@pytest.fixture
def panel(run):
    return weighting_curves(run)


def stored(run, epoch):
    """(p (n, K), y) of the probe under attack, by hand."""
    arrays = run.epoch(epoch)
    logits = arrays["seen_logits_adv"].astype(np.float64)
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True), arrays["seen_y"].astype(int)


def margins(p, y):
    """PM, by hand."""
    others = p.copy()
    others[np.arange(len(y)), y] = -1
    return p[np.arange(len(y)), y] - others.max(1)


# ------------------------------------------------------------------------------ sliders and presets


@pytest.mark.parametrize("name", CURVED)
def test_every_number_of_a_row_has_a_control_that_holds_it(name):
    given = {control.name: control for control in parameter_controls(name)}
    assert set(given) == {
        path
        for path in METHODS[name].hyper_parameters()
        if path.split(".")[0] in ("criterion", "weight", "normaliser", "schedule")
    }
    for path, control in given.items():
        assert control.check(control.value) == METHODS[name].hyper_parameters()[path]
        for end in ("low", "high"):
            if hasattr(control, end):
                METHODS[name].override(
                    path, getattr(control, end)
                )  # what a slider offers, the part takes
    for values in presets(name, 120).values():
        for path, value in values.items():
            if path != "burn_in":
                given[path].check(value)


def test_rows_without_a_curve_are_left_out():
    assert not {"at", "csa", "clirat-drop-single", "mart"} & set(CURVED)
    assert {"gairat", "mail-at", "clirat", "mr-mail", "vir-at", "wmmr", "ewat"} <= set(CURVED)


def test_presets_are_what_the_papers_print():
    mail = presets("mail-at", 120)
    assert mail["row mail-at = MR"] == {
        "weight.slope": 10,
        "weight.bias": -0.5,
        "normaliser.scale": 3,
        "burn_in": 75,
    }
    assert mail["row mail-at-burn-in-74 = MAIL"] == {**mail["row mail-at = MR"], "burn_in": 74}
    assert mail["row mail-at-released"]["burn_in"] == 76
    assert (
        presets("vir-at", 115)["row vir-at"]["burn_in"] == 72
    )  # 75 of 120; the paper: 75 of its 115
    assert presets("vir-at", 115)["VIR, cifar10"] == {
        "criterion.alpha": 7,
        "criterion.gamma": 10,
        "weight.slope": 1,
        "weight.offset": 0.007,
        "burn_in": 75,
    }
    assert presets("vir-at", 120)["VIR, tinyimagenet"]["criterion.gamma"] == 3
    assert presets("mr-mail", 120)["MR, cifar100"]["criterion.tau"] == 3
    assert presets("vir-at", 120)["VIR T9: weight.offset=0.1"]["weight.offset"] == 0.1
    assert "= CLIRAT" in next(iter(presets("clirat", 120)))


@pytest.mark.parametrize(
    ("value", "above"), [(0, 1), (0.0175, 0.02), (1, 1), (1.01, 2), (25, 30), (0.3, 0.3), (51, 100)]
)
def test_round_up(value, above):
    assert round_up(value) == pytest.approx(above)


def test_a_preset_brings_its_numbers_and_own_numbers_are_no_preset(panel):
    own = panel.values["preset"]
    panel.set(preset="row mail-trades")
    assert (
        panel.values["weight.slope"] == 2
        and panel.values["weight.bias"] == 0
        and "row mail-trades" in panel.sentence
    )
    panel.set(**{"weight.slope": 3})
    assert panel.values["preset"] == "own numbers" and "your own" in panel.sentence
    panel.set(preset=own)
    assert panel.values["weight.slope"] == 10 and panel.values["weight.bias"] == -0.5


def test_a_slider_that_answers_off_by_a_rounding_changes_nothing(run):
    """The page's slider sends back what it was given as a sum of steps; the preset stays."""
    panel = weighting_curves(run)
    view = panel.view = PanelView(panel)
    panel.set(preset="row mail-trades")
    view.show()
    _, slider = view.fields["weight.slope"]
    before = dict(panel.values)
    slider.value = 1.9999999999999996
    assert panel.values == before and before["preset"] == "row mail-trades"
    panel.set(**{"weight.slope": 1.9999999999999996})
    assert panel.values == before
    slider.value = 3.0
    assert panel.values["weight.slope"] == 3 and panel.values["preset"] == "own numbers"


def test_another_method_begins_with_its_own_numbers_and_what_is_refused_changes_nothing(panel):
    panel.set(epoch=2, **{"weight.slope": 7})
    panel.set(method="gairat")
    assert (
        panel.values["weight.slope"] == 5
        and panel.values["weight.shift"] == -1
        and panel.values["epoch"] == 2
    )
    before = dict(panel.values)
    with pytest.raises(KitError, match="from"):
        panel.set(method="mail-at", **{"weight.bias": 99})
    assert panel.values == before and "GAIRAT" in panel.sentence


# ---------------------------------------------------------------------------------------- the curve


def test_the_curve_is_the_formula(panel):
    panel.set(burn_in=0, **{"weight.slope": 4, "weight.bias": 0.2, "normaliser.scale": 2})
    x = np.array(panel.line.get_xdata())
    assert x[0] == -1 and x[-1] == 1
    assert np.allclose(panel.line.get_ydata(), 2 / (1 + np.exp(-4 * (x + 0.2))))


def test_flat_while_burning(panel):
    panel.set(burn_in=2, epoch=2)
    assert (panel.line.get_ydata() == 1).all() and "still 1" in panel.sentence
    assert panel.counted[0].get_text() == "60.0 of 60"
    panel.set(epoch=3)
    assert np.ptp(panel.line.get_ydata()) > 1


FEW = (
    "mail-at",
    "clirat",
    "gairat-linear",
    "mr-mail",
    "vir-at",
    "at-scaled",
    "ewat",
)  # one of each kind of part


@pytest.mark.parametrize(
    "name",
    [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in CURVED if name not in FEW)],
)
def test_every_image_lies_on_its_curve(name, panel):
    """The weights of the images are those of Method.weigh; the curve runs through them, whatever
    the normaliser.
    """
    panel.set(method=name, burn_in=0)
    seen, _ = panel.probe.at(3)
    row = METHODS[name].at(3, 3)
    assert np.allclose(panel.known_facts.images.w, row.weigh(seen).numpy(), rtol=1e-12)
    raw = row.weight(row.criterion.score(seen))
    assert np.allclose(
        normalise_curve(row.normaliser, raw, raw).numpy(),
        panel.known_facts.images.w,
        rtol=1e-6,
        atol=1e-9,
    )
    score, x = row.criterion.score(seen).numpy(), np.array(panel.line.get_xdata())
    inside = (score > x[0]) & (score < x[-1])
    along = np.interp(score[inside], x, panel.line.get_ydata())
    assert inside.any() and np.allclose(
        along,
        panel.known_facts.images.w[inside],
        # the points of the curve lie further apart where the score has no bounds
        atol=(2e-2 if name == "mail-at-logit" else 2e-3) * panel.known_facts.images.w.max() + 1e-3,
    )


@pytest.mark.parametrize("weights", [[0.5, 0.5, 0.5], [0.0, 0.0], [0.2, 0.9, 0.4], [3.0]])
@pytest.mark.parametrize("name", ["mail-at", "mail-at-printed", "at-scaled", "vir-at"])
def test_a_normaliser_of_equal_or_few_weights(name, weights):
    normaliser, batch = METHODS[name].normaliser, torch.tensor(weights, dtype=torch.float64)
    if len(set(weights)) > 1 or (
        name in ("mail-at", "vir-at") and len(weights) > 1 and weights[0] > 0
    ):
        raw = torch.tensor([0.1, 0.7], dtype=torch.float64)
        factor = {
            "mail-at": 3,
            "vir-at": 1,
            "mail-at-printed": 1 / np.mean(weights),
            "at-scaled": 0,
        }[name]
        wanted = factor * raw.numpy() + (np.mean(weights) if name == "at-scaled" else 0)
        assert np.allclose(normalise_curve(normaliser, batch, raw).numpy(), wanted, rtol=1e-6)
    assert np.allclose(
        normalise_curve(normaliser, batch, batch).numpy(), normaliser(batch).numpy(), rtol=1e-5
    )


def test_changed_numbers_are_those_of_an_overridden_row(panel, run):
    """Sentence and bars against weights from the formula, literally."""
    panel.set(epoch=2, burn_in=0, **{"weight.slope": 4, "weight.bias": -0.1, "normaliser.scale": 2})
    p, y = stored(run, 2)
    margin = margins(p, y)
    w = 2 / (1 + np.exp(-4 * (-margin - 0.1)))
    right = p.argmax(1) == y
    assert np.allclose(panel.known_facts.images.w, w, rtol=1e-9)
    effective = w.sum() ** 2 / (w**2).sum()
    assert panel.counted[0].get_text() == f"{effective:.1f} of {len(w)}"
    assert panel.meters[1].get_width() == pytest.approx(w[right].sum() / w.sum())
    assert np.allclose(
        panel.by_class[0].get_data()[0], [w[y == k].sum() / w.sum() for k in range(10)]
    )
    assert (
        f"effective sample size {effective:.1f}" in panel.sentence
        and f"mean weight is {w.mean():.3g}" in panel.sentence
    )
    counts = np.histogram(-margin, 40, (-1, 1))[0]
    assert np.allclose(panel.bins[0].get_data()[0], 0.3 * counts / counts.max())
    assert np.allclose(
        panel.bins[1].get_data()[0],
        0.3 * np.histogram(-margin[right], 40, (-1, 1))[0] / counts.max(),
    )


def test_numbers_equal_the_table_of_kit_whatif(panel, run):
    for name in ("clirat", "gairat-piecewise", "vir-trades", "ewat"):
        table = kit.whatif(run, name, epochs=[3])
        panel.set(method=name, epoch=3, burn_in=0)
        assert panel.known_facts.images.summary["effective_sample_share"] == pytest.approx(
            table["effective_sample_share"][0]
        )
        assert panel.meters[1].get_width() == pytest.approx(table["robust_share"][0])
        assert np.allclose(panel.by_class[0].get_data()[0], table.attrs["by_class"][f"3 {name}"])


def test_timetables_follow_the_epoch():
    panel = weighting_curves()
    panel.set(method="gairat-linear", epoch=60, burn_in=0)
    x, early = np.array(panel.line.get_xdata()), np.array(panel.line.get_ydata())
    raw = (1 + np.tanh(5 - 0.5 * 6 + 5 * x)) / 2
    assert np.allclose(early, raw / raw.mean())
    panel.set(epoch=120)
    assert panel.line.get_ydata()[120] < early[120]


def test_without_a_run():
    panel = weighting_curves()
    assert (
        "no run is given" in panel.sentence
        and panel.values["epoch"] == 120
        and panel.values["burn_in"] == 75
    )
    assert len(panel.figure.axes) == 1
    panel.set(method="vir-at")
    assert panel.axes.get_xlim() == (0, 7)
    panel.set(**{"criterion.alpha": 3.0})
    assert panel.axes.get_xlim() == (0, 3)


def test_the_other_rows_share_the_score(panel):
    panel.set(method="clirat")
    names = [words for words, _ in panel.others]
    assert names == ["CLIRAT +3", "CLIR-TRADES +1", "CLIRAT (x 3)", "CLIR-TRADES (x 3) +1"]
    panel.set(method="mail-at")
    rows = {id(row) for _, row in panel.others}
    assert all(row.criterion == METHODS["mail-at"].criterion for _, row in panel.others) and len(
        rows
    ) == len(panel.others)
    assert np.allclose(panel.lines[0].get_ydata(), panel.line.get_ydata()), (
        "the row's own numbers come first"
    )


def test_compare_keeps_a_curve_and_clear_removes_it(panel):
    panel.set(burn_in=0, **{"weight.slope": 5})
    before = np.array(panel.line.get_ydata())
    panel.press("compare")
    with pytest.raises(KitError, match="kept already"):
        panel.press("compare")
    panel.set(**{"weight.slope": 20})
    assert np.array_equal(panel.lines[-1].get_ydata(), before) and not np.array_equal(
        panel.line.get_ydata(), before
    )
    assert "Kept: MAIL-AT, slope 5." in panel.sentence
    panel.set(method="gairat")
    assert "Kept" not in panel.sentence, "another score has another axis"
    panel.set(method="mail-at")
    for slope in (6, 7, 8):
        panel.values["weight.slope"] = slope
        panel.pin()
    panel.values["weight.slope"] = 9
    with pytest.raises(KitError, match="clear them first"):
        panel.press("compare")
    panel.press("clear")
    assert "Kept" not in panel.sentence
    with pytest.raises(KitError, match="no curve is kept"):
        panel.press("clear")


def test_axes_follow_and_the_picture_is_the_same_either_way(panel, run):
    """A slider that makes the weights outgrow the axes draws them anew; the way there does not
    matter.
    """
    panel.set(burn_in=0, **{"normaliser.scale": 9})
    assert panel.axes.get_ylim()[1] == 10
    panel.set(**{"normaliser.scale": 3})
    other = weighting_curves(run)
    other.set(burn_in=0)
    assert panel.axes.get_ylim() == other.axes.get_ylim() and panel.png() == other.png()


def test_a_run_without_logits_is_refused(run, copy_of):
    damaged = copy_of(run)
    path = damaged.folder / "epochs" / "0003.npz"
    (damaged.folder / "done.json").unlink()  # it knows every file of a finished run
    arrays = {
        name: values for name, values in damaged.epoch(3).items() if name != "seen_logits_adv"
    }
    np.savez(path, **arrays)
    for widget in (weighting_curves, whatif):
        with pytest.raises(KitError, match="logits"):
            widget(damaged)
    path.unlink()
    for widget in (weighting_curves, whatif):
        with pytest.raises(KitError, match="cannot read"):
            widget(damaged)


# ------------------------------------------------------------------------------------------ what if


def test_whatif_is_the_table_of_kit_whatif(run):
    panel = whatif(run)
    assert (panel.values["a"], panel.values["b"]) == ("mail-at", "clirat")
    for a, b, epoch in (
        ("gairat", "mail-at", 2),
        ("clirat-drop-multiple", "vir-at", 3),
        ("mr-mail", "clirat", 1),
    ):
        panel.set(a=a, b=b, epoch=epoch)
        table = kit.whatif(run, [a, b], epochs=[epoch], reference=b)
        row = table.set_index("method").loc[a]
        facts = panel.known_facts.summary["a"]
        for key in ("spearman", "top_overlap", "effective_sample_share", "robust_share"):
            assert facts[key] == pytest.approx(row[key], nan_ok=True), (a, key)
        for side, name in (("a", a), ("b", b)):
            assert np.allclose(
                panel.known_facts.shares[side], table.attrs["by_class"][f"{epoch} {name}"]
            )


def test_whatif_with_changed_numbers_literally(run):
    panel = whatif(run)
    panel.set(a="mail-at", b="mail-trades", epoch=2, **{"weight.slope": 6, "weight.bias": 0.3})
    p, y = stored(run, 2)
    margin = margins(p, y)
    w = {"a": 1 / (1 + np.exp(-6 * (-margin + 0.3))), "b": 1 / (1 + np.exp(2 * margin))}
    groups = {"robust_share": p.argmax(1) == y}
    groups["several_labels_share"] = (p > p[np.arange(len(y)), y][:, None]).sum(1) >= 2
    for place, group in ((0, "robust_share"), (2, "several_labels_share")):
        x, up = panel.dots[place].get_data()
        assert np.allclose(x, (w["b"] / w["b"].mean())[groups[group]])
        assert np.allclose(up, (w["a"] / w["a"].mean())[groups[group]])
    tenth = len(y) // 10
    assert panel.cuts[0].get_ydata()[0] == pytest.approx(np.sort(w["a"])[-tenth] / w["a"].mean())
    assert "rank correlation is 1.000" in panel.sentence, "one score, one order, however steep"
    effective = [v.sum() ** 2 / (v**2).sum() for v in w.values()]
    assert [
        float(v) for v in re.search(r"size ([\d.]+) and ([\d.]+);", panel.sentence).groups()
    ] == [round(v, 1) for v in effective]


def test_whatif_against_a_constant(run):
    panel = whatif(run)
    panel.set(a="mail-at", b="at-scaled")
    assert "no order to compare" in panel.sentence and "nan" not in panel.sentence
    panel.set(b="mail-at")
    assert "MAIL-AT (a)" in panel.sentence and "1.000" in panel.sentence


@pytest.mark.slow
@pytest.mark.parametrize("a", [name for name, row in METHODS.items() if row.reweights])
def test_whatif_takes_every_row_that_weighs(a, run):
    panel = whatif(run)
    panel.set(a=a)
    assert "nan" not in panel.sentence and not panel.trouble
    for path in weight_parameters(a, ("criterion", "weight")):
        assert path in panel.values


def test_a_run_of_a_method_that_does_not_weigh(runs):
    assert weighting_curves(runs("std")).values["method"] == "mail-at"
    assert whatif(runs("std")).values["a"] == "mail-at"
    assert RunSpec("std").method not in {
        control.value for control in whatif(runs("std")).shown_controls if hasattr(control, "value")
    }


def test_two_methods_at_once_are_drawn_once(run, monkeypatch):
    """Also where a number of the new method is set; what is refused leaves all as it was."""
    panel, drawn = whatif(run), []
    build = panel.build
    monkeypatch.setattr(panel, "build", lambda *given: drawn.append(1) or build(*given))
    panel.set(**{"a": "clirat", "b": "gairat", "weight.slope": 3.0})
    assert len(drawn) == 1 and panel.sentence.count("GAIRAT") and panel.values["a"] == "clirat"
    before = panel.sentence
    with pytest.raises(KitError):
        panel.set(**{"a": "mail-at", "b": "mr-mail", "weight.slope": 1e9})
    assert (panel.values["a"], panel.values["b"]) == ("clirat", "gairat")
    assert panel.sentence == before
