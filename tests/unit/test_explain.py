"""Explanations:

every row of METHODS says what it is made of, in formulas, in words and in a picture of its weights.
"""

from __future__ import annotations

import base64
import functools
import inspect
import io
from dataclasses import replace
from fnmatch import fnmatch
from typing import Annotated, Literal
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

import kit
from kit.core.errors import KitError
from kit.core.parameters import Count, Natural, Positive, Share, check_value
from kit.core.parts import part
from kit.figures.explanation import Explanation, explain
from kit.jobs.command_line import main
from kit.methods.criteria import CRITERIA, Criterion
from kit.methods.formulas import NOTATION, formula, plain_text
from kit.methods.notes import NOTES, RANGES, allowed_values
from kit.methods.regularisers import conv_fuzziness
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import METHODS, PART_NAMES
from kit.methods.weights import sigmoid

explained = functools.cache(explain)  # its picture is drawn once


def squeezed(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", METHODS)
def test_text_says_all_of_a_row(name):
    method, found = METHODS[name], explained(name)
    text = repr(found)
    assert text.startswith(f"{name}: {method.title}\nsource: {method.source}\n")
    assert max(map(len, text.splitlines())) <= 118, "it fits a terminal"
    lines, flat = [line.split() for line in text.splitlines()], squeezed(text)
    for path, value in method.hyper_parameters().items():
        assert any(line[:2] == [path, str(value)] and line[2].startswith("(") for line in lines), (
            path
        )
    for slot in PART_NAMES:
        chosen = getattr(method, slot)
        if slot == "criterion" and chosen is not None:
            assert chosen.title in flat and chosen.source in flat
        elif slot == "normaliser" and method.weight is None:
            assert f"{chosen.name}:" not in flat, "nothing is normalised"
        elif chosen is not None:
            assert (
                f"{chosen.name}: {squeezed(inspect.getdoc(chosen.fn).splitlines()[0])}" in flat
            ), slot
        else:
            assert slot.replace("_", " ") not in found.parts
    assert found.parts["reads"].split(", ") == sorted(method.reads)
    assert (f"first {method.burn_in:.1%} of the epochs" in flat) == (
        method.reweights and method.burn_in > 0
    )
    assert ("runs through the weights" in flat) == (method.reweights and not method.detach)


@pytest.mark.parametrize("name", METHODS)
def test_its_formula_is_in_text_and_page(name):
    text, shown = (
        squeezed(repr(explained(name))),
        "".join(ElementTree.fromstring(explained(name)._repr_html_()).itertext()),
    )
    assert (
        f"$${formula(METHODS[name]).latex}$$" in shown
        and NOTATION in shown
        and squeezed(NOTATION) in text
    )
    for left, right in formula(METHODS[name]).lines:
        assert f"{plain_text(left)} = {plain_text(right)}" in text


@pytest.mark.parametrize("name", METHODS)
def test_html_is_well_formed_and_says_the_same(name):
    found = explained(name)
    root = ElementTree.fromstring(found._repr_html_())
    shown = "\n".join(root.itertext())
    for rows in found.sections.values():
        assert all(left in shown and text in shown for left, text in rows)
    assert METHODS[name].title in shown and METHODS[name].source in shown
    captions = [image.get("alt") for image in root.findall(".//img")]
    assert captions == ([found.picture.caption] if METHODS[name].weight else [])


@pytest.mark.parametrize("name", METHODS)
def test_a_picture_where_there_is_a_weight(name):
    """Over the paper's own quantity with its own sign:

    the curve is the row's weight of the score, which turns the sign.
    """
    method, found = METHODS[name], explained(name)
    if method.weight is None:
        assert found.picture is None and "no weight function to draw" in repr(found)
        return
    (axes,) = found.picture.axes
    for line in axes.lines:
        value, weight = line.get_data()
        assert (np.diff(weight) * method.criterion.safe_end <= 0).all(), "the vulnerable weigh more"
        assert (
            axes.get_xlim() == (value[0], value[-1])
            and axes.get_ylim()[0] == 0 < max(weight) <= axes.get_ylim()[1]
        )
    epoch = 120 if method.schedule else 1
    expected = method.at(epoch, 120).weight(
        -method.criterion.safe_end * torch.as_tensor(np.asarray(value))
    )
    np.testing.assert_allclose(weight, expected, rtol=1e-12)
    assert (len(axes.lines) > 1) == (axes.get_legend() is not None) == bool(method.schedule)
    assert (
        axes.get_xlabel().startswith(method.criterion.symbol)
        and axes.get_ylabel() == "weight before the normaliser"
    )
    assert ("larger is safer" in axes.get_xlabel()) == (method.criterion.safe_end > 0)


@pytest.mark.parametrize(
    "name",
    sorted({"clirat", "gairat-linear", "mr-mail-nosim", "mail-at-dif", "vir-trades", "ewat"}),
)
def test_no_text_is_clipped(name):
    """Every text of the picture lies inside it, from edge to edge."""
    drawing = explain(name).picture
    drawing.png()
    renderer, axes = drawing.canvas.get_renderer(), drawing.axes[0]
    shown = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        shown += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    shown = [text for text in shown if text.get_text()]
    assert len(shown) > 8
    for text in shown:
        box = text.get_window_extent(renderer)
        assert (
            box.x0 >= 0 and box.y0 >= 0 and box.x1 <= drawing.bbox.x1 and box.y1 <= drawing.bbox.y1
        ), text.get_text()


#: Quantities without an end, whose range is cut on purpose.
CUT = ("discrepancy", "vulnerability_discrepancy", "logit_margin")


def test_ranges_hold_the_quantities():
    """Of sharp and flat predictions alike; those that have no end are cut on purpose."""
    draw = torch.Generator().manual_seed(0)
    sharp = 10 ** torch.linspace(-2, 2, 4000, dtype=torch.float64)[:, None]
    nat, adv = (
        sharp * torch.randn(4000, 10, generator=draw, dtype=torch.float64) for _ in range(2)
    )
    seen = StepOutputs(
        torch.randint(10, (4000,), generator=draw),
        adv,
        nat,
        kappa=torch.randint(11, (4000,), generator=draw),
        lps=torch.randint(11, (4000,), generator=draw),
        p_flip=torch.rand(4000, generator=draw, dtype=torch.float64),
        steps=10,
    )
    used = [row.criterion for row in METHODS.values() if row.criterion] + list(CRITERIA.values())
    assert {criterion.quantity.name for criterion in used} == set(RANGES), (
        "add the new quantity's range to RANGES"
    )
    for criterion in used:
        low, high = RANGES[criterion.quantity.name](criterion.quantity.params)
        value = criterion.value(seen).double()
        if criterion.quantity.name not in CUT:
            assert low - 1e-9 <= value.min() and value.max() <= high + 1e-9, criterion
            assert value.max() - value.min() > 0.8 * (high - low), (
                f"{criterion}: drawn far beyond what occurs"
            )


@pytest.mark.parametrize("name", ["mail-at", "at"])
def test_a_notebook_gets_text_html_and_png(name):
    bundle = explain(name)._repr_mimebundle_()
    assert bundle["text/plain"] == repr(explain(name)) and bundle["text/html"].startswith("<div>")
    assert ("image/png" in bundle) == (METHODS[name].weight is not None)
    if "image/png" in bundle:
        pixels = np.asarray(
            Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).convert("L")
        )
        assert (
            pixels.shape[1] > 500
            and (pixels < 200).mean() > 0.005
            and bundle["image/png"] in bundle["text/html"]
        )


def test_the_picture_is_the_paper_s_formula():
    """MAIL's 1 / (1 + exp(10 (PM + 0.5)))."""
    margin, weight = explain("mail-at").picture.axes[0].lines[0].get_data()
    assert margin[0] == -1 and margin[-1] == 1
    np.testing.assert_allclose(
        weight, [1 / (1 + np.exp(10 * (pm + 0.5))) for pm in np.asarray(margin)], rtol=1e-9
    )


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"std", "at", "adv"}))
def test_disagreements_are_noted(name):
    rows = explain(name).sections["paper and code"]
    assert all(len(text) > 60 and text.endswith(".") for _, text in rows), rows
    assert [text for _, text in rows] == [
        text
        for patterns, text in NOTES
        if any(fnmatch(name, pattern) for pattern in patterns.split())
    ]


def test_every_note_is_somebody_s():
    for patterns, text in NOTES:
        for pattern in patterns.split():
            assert any(fnmatch(name, pattern) for name in METHODS), (
                f"no method is called {pattern}: {text}"
            )
    assert explain("std").sections["paper and code"] == [("none", "")]
    assert not [note for note in explain("mr-wmmr").notes if note in explain("vir-at").notes]


def test_html_is_escaped():
    criterion = replace(METHODS["mail-at"].criterion, title="p < q & r")
    odd = METHODS["mail-at"].but("a < b & c", "'quoted' > \"twice\"", criterion=criterion)
    shown = "".join(ElementTree.fromstring(Explanation("<x>", odd)._repr_html_()).itertext())
    assert "p < q & r" in shown
    assert "<x>: a < b & c" in shown and "'quoted' > \"twice\"" in shown


def test_other_numbers_other_explanation():
    """Nothing is read from the table but through the row:

    a changed part is explained as changed.
    """
    changed = METHODS["mail-at"].but(
        "mine", "here", weight=part(sigmoid, slope=2.5), regulariser=part(conv_fuzziness)
    )
    found = Explanation("mail-at", changed)
    assert found.hyper_parameters["weight.slope"] == (
        2.5,
        "γ; above 0; set in this row; default of sigmoid: 10.0",
    )
    assert found.hyper_parameters["weight.bias"] == (-0.5, "β; any number; default of sigmoid")
    assert (
        "regulariser.strength" in repr(found) and "conv_fuzziness: γ" in found.parts["regulariser"]
    )
    assert "γ = 2.5" in found.formula.text


def test_a_selection_alone_has_burn_in_but_no_normaliser():
    method = METHODS["at"].but(
        "mine", "here", select=METHODS["clirat-drop-single"].select, burn_in=0.5
    )
    parts = Explanation("mine", method).parts
    assert "normaliser" not in parts and parts["burn-in"].startswith(
        "every weight is 1 in the first 50.0% of the epochs"
    )
    assert (
        parts["select"].startswith("drop_confused: ")
        and parts["gradient"] == "stops at the weights"
    )


@pytest.mark.parametrize(
    ("annotation", "words", "good", "bad"),
    [
        (Positive, "above 0", 0.1, 0.0),
        (Share, "0 to 1", 1.0, 1.1),
        (Count, "a whole number, at least 1", 1, 0),
        (Natural, "a whole number, at least 0", 0, 0.5),
        (bool, "True or False", True, 1),
        (str, "text", "a", 1),
        (Literal["a", "b"], "one of a, b", "b", "c"),
        (Literal["a"] | np.ndarray, "one of a", "a", "b"),
        (Annotated[float, Positive.__metadata__[0]], "above 0", 2, -1.0),
    ],
)
def test_ranges_in_words_are_the_ranges_checked(annotation, words, good, bad):
    assert allowed_values(annotation) == words
    assert check_value("x", good, annotation) == good
    with pytest.raises(KitError):
        check_value("x", bad, annotation)


def test_parts_of_ones_own_are_explained_by_name():
    """A criterion and a weight function that the kit has never heard of, in formula, words and
    picture.
    """

    def surprise(probs, y, *, power: float = 2.0):
        """(1 - p_y)^power."""
        return (1 - probs.gather(1, y[:, None]).squeeze(1)) ** power

    def steep(score):
        return score.clamp_min(0) ** 3

    own = Criterion(
        "surprise (mine)", part(surprise), ("probs_nat", "y"), -1, r"$\varsigma$", "here"
    )
    found = Explanation(
        "mine", METHODS["mail-at"].but("mine", "here", criterion=own, weight=part(steep))
    )
    assert "varsigma = surprise(p, y, power = 2.0)" in squeezed(repr(found))
    assert "v = steep(score), s = varsigma" in found.formula.text
    assert (
        found.parts["weight"] == "steep: of one's own"
        and "(1 - p_y)^power" not in found.parts["criterion"]
    )
    assert found.hyper_parameters["criterion.power"] == (2.0, "a number; default of surprise")
    assert ElementTree.fromstring(found._repr_html_()).find(".//img") is not None


def test_unknown_name():
    with pytest.raises(KitError, match=r"there is no method 'clira'\. Did you mean 'clirat'"):
        explain("clira")


# ---------------------------------------------------------------------------------- the two ways in


def test_from_python():
    assert repr(kit.explain("clirat")) == repr(explain("clirat"))


def test_from_the_command_line(capsys):
    assert main(["explain", "clirat"]) == 0
    assert capsys.readouterr().out == f"{explain('clirat')!r}\n"
    assert main(["explain", "clira"]) == 2
    assert "Did you mean 'clirat'?" in capsys.readouterr().err


def test_the_list_of_methods_says_how_to_go_on(capsys):
    assert main(["list", "methods"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in rows[: len(METHODS)]] == list(METHODS)
    assert "explain METHOD" in rows[-1]
    main(["list", "criteria"])
    assert "explain" not in capsys.readouterr().out
