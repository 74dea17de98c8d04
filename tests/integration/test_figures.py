"""Every figure draws: facts from stored logits, claims with their rows, files with their source."""

from __future__ import annotations

import colorsys
import json
import math
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import kit
from kit.core.errors import KitError
from kit.core.random_streams import Streams
from kit.evaluation.statistics import ratio_interval
from kit.experiments.recipes import RECIPES
from kit.figures import clirat_confused_labels, style
from kit.figures.base import Drawing, FigureData, plain, swap_lightness
from kit.figures.csa_cse_parameters import measure_shape
from kit.figures.style import name_classes, share_axis
from kit.figures.table import FIGURES, NUMBERS, output_folder
from kit.papers.printed_data import PAPERS, read_table
from kit.training.step import compute_loss, forward
from tests.helpers.settings import TINY
from tests.helpers.stepping import attacked_batch

#: A figure's own recipe in seconds.
BRIEF = {"epochs": 2, "milestones": [1], "train_size": 1000, "validation": 60, "probe": 60}

#: {figure: rows of claims.csv that its claims decide} on the tiny runs.
CLAIMED = {
    "confused-labels": {1},
    "leave-out": {2},
    "pm-and-cl-pm": {3},
    "matched-pairs": {4},
    "learning-curves": {5, 7, 11},
    "slope-and-offset": {13},
    "clirat-burn-in": {15},
    "pgd-against-lmpgd": {16, 93},
    "lps-starts": {16, 93},
    "score-ranks": {94},
    "same-margin": {99},
    "similarity-pair": {100},
    "critical-lps": {17},
    "pgd-against-cw": {18},
    "pm-by-lps": {20},
    "confusion": {32},
    "two-gaussians": {53},
    "classes-by-method": {33},
    "class-weights": {34},
    "clean-probability": {54},
    "margin-by-probability": {55},
    "similarity-by-error": {57},
    "parameters": {73},
    "parameters-l2": {74},
    "fuzziness-force": {76},
    "fuzziness": {76, 77, 78},
    "fuzziness-layers": {87},
    "fuzziness-strength": {85},
    "min-max-theorem": {91},
    "min-max-origin": {103},
    "class-protection": {74, 88, 104},
    "score-paths": {92, 97},
    "class-hardness": {96},
    "training-cost": {89},
    "min-max-robustness": {90, 105},
    "vir-burn-in": {98},
}

_PAPER_OF = {
    "CLIRAT": "clirat",
    "MAIL": "mail",
    "VIR": "vir",
    "MR": "mr",
    "CSA": "csa",
    "CSE": "csa",
}


def global_state() -> tuple:
    """What a drawing must leave as it was: looks, and the random numbers of others."""
    numbers = np.random.get_state()[1].tobytes(), torch.random.get_rng_state().numpy().tobytes()
    return dict(matplotlib.rcParams), *numbers


@pytest.fixture
def runs(tiny_run):
    def make(row):
        if row.recipe:
            return {
                method: kit.run(method, row.recipe, overrides=BRIEF, quiet=True)
                for method in row.methods
            }
        return {method: tiny_run(method) for method in row.methods or ("at", "mail-at")}

    return make


@pytest.fixture
def brief(monkeypatch):
    """The costliest attacks in fractions of a second; what they break is counted in other tests."""
    for name, settings in {
        "square": {"queries": 50},
        "spsa100": {"steps": 2, "samples": 4},
        "fab-t": {"steps": 5},
    }.items():
        monkeypatch.setitem(kit.ATTACKS, name, kit.ATTACKS[name].but(**settings))
    monkeypatch.setitem(kit.ATTACKS, "aa", kit.ATTACKS["apgd-ce"])


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_draws_and_says_where_it_came_from(name, runs, tmp_path, brief):
    row = FIGURES[name]
    given = runs(row)
    before = global_state()
    drawing = kit.draw(name, given, folder=tmp_path)
    assert global_state() == before, "nothing global is changed"
    assert {claim.number for claim in drawing.claims} - {None} == CLAIMED.get(name, set())
    assert isinstance(drawing, Figure) and drawing.facts and len(drawing.caption) > 60
    with Image.open(tmp_path / f"{name}.png") as picture:
        width, height = picture.size
        pixels = np.asarray(picture.convert("L"))
    assert width > 600 and height > 300 and (pixels < 128).mean() > 0.002, "something is drawn"
    texts = " ".join(
        "".join(node.itertext())
        for node in ElementTree.parse(tmp_path / f"{name}.svg").iter()
        if node.tag.endswith("text")
    )
    titles = [axes.get_title(loc="left") for axes in drawing.axes]
    assert all(title.split()[-1].split("$")[-1] in texts for title in titles if title) and any(
        titles
    ), "SVG text is text"
    assert all(
        axes.get_xlabel() or axes.get_ylabel()
        for axes, title in zip(drawing.axes, titles, strict=True)
        if title and not title.startswith(("Points A and B", "Critical"))
    ), "axes are labelled"
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert {r["key"] for r in record["runs"]} == {run.key for run in given.values()}
    eps, images = (RECIPES[row.recipe].eps, 10_000) if row.recipe else (TINY["eps"], 497)
    for entry in record["runs"]:
        assert entry["config"]["recipe"]["eps"] == eps and entry["images"]["test"] == images
        assert entry["versions"]["torch"]
    assert record["source"] == row.source and record["facts"]
    assert record["claims"] == [claim.record() for claim in drawing.claims]
    assert not any(claim.exact is not None and claim.estimates for claim in drawing.claims)


#: Figures of several networks that draw an adopted one beside the trained ones.
BESIDE = {
    "pgd-against-cw",
    "parameters",
    "parameters-l2",
    "class-protection",
    "every-method",
    "confusion",
    "attack-ladder",
    "black-box",
}


@pytest.fixture(scope="module")
def adopted(home):
    network = kit.run("trades", overrides=TINY, quiet=True).model()
    fields = {name: TINY[name] for name in ("eps", "steps", "probe", "train_size", "validation")}
    return kit.adopt(network, "digits", name="from-elsewhere", overrides=fields, quiet=True)


@pytest.mark.parametrize("name", [name for name, row in FIGURES.items() if not row.one])
def test_an_adopted_network_is_drawn_beside_others_or_told_why_not(
    name, runs, adopted, tmp_path, brief
):
    row, given = FIGURES[name], list(runs(FIGURES[name]).values())
    if name in BESIDE:
        alone = kit.draw(name, given, folder=tmp_path)
        both = kit.draw(name, [*given, adopted], folder=tmp_path)
        assert "from-elsewhere" in (tmp_path / f"{name}.json").read_text()
        if row.beside:
            assert [c.estimates for c in both.claims] == [c.estimates for c in alone.claims]
            assert "from-elsewhere" in (tmp_path / f"{name}.svg").read_text()
    else:
        with pytest.raises(KitError) as caught:
            kit.draw(name, [*given, adopted], folder=tmp_path)
        said = str(caught.value)
        assert "\n" not in said and re.search("elsewhere|of recipe mixture alone", said), said


#: Methods of a figure for which an adopted network can stand in.
STAND_INS = {
    "pgd-against-cw": {"at", "gairat"},
    "parameters": {"adv", "csa"},
    "parameters-l2": {"adv", "csa-l2", "csa"},
    "min-max-origin": {"adv"},
    "class-protection": {"std", "adv", "csa-l2", "cse"},
    "confusion": {"std", "at", "trades", "mart"},
    "class-hardness": {"std", "at"},
    "classes-by-method": {"at", "trades", "vir-at", "vir-trades"},
}


@pytest.mark.parametrize("name", [n for n, row in FIGURES.items() if not (row.one or row.any)])
def test_an_adopted_network_stands_in_for_a_method_or_is_told_why_not(
    name, runs, adopted, tmp_path, brief
):
    row, given = FIGURES[name], runs(FIGURES[name])
    for method in row.methods:
        if method in STAND_INS.get(name, ()):
            drawing = kit.draw(name, {**given, method: adopted}, folder=tmp_path)
            assert f"stand in: {style.label(method)} is from-elsewhere." in drawing.caption
        else:
            with pytest.raises(KitError, match="adopted network was trained elsewhere") as caught:
                kit.draw(name, {**given, method: adopted}, folder=tmp_path)
            assert "\n" not in str(caught.value)


def test_an_adopted_network_is_compared_on_the_same_images_and_under_one_threat(
    runs, adopted, tmp_path
):
    given = list(runs(FIGURES["class-hardness"]).values())
    fields, net = dict(adopted.spec.overrides), adopted.model()
    del fields["model"]
    for words, other in {
        "100 test images of digits": {"n": 100},
        "under L∞ eps 0.05": {"overrides": fields | {"eps": 0.05}},
    }.items():
        run = kit.adopt(net, "digits", name="other", quiet=True, **{"overrides": fields, **other})
        with pytest.raises(KitError, match=f"the same images and under one threat.*{words}"):
            kit.draw("class-hardness", {"std": given[0], "at": run}, folder=tmp_path)


def test_claims_name_the_rows_of_their_own_papers(tiny_run, tmp_path, brief):
    """Each claim with a number names the paper of that row; every row for a figure has a claim."""
    rows = read_table("claims").astype({"number": int}).set_index("number")
    decided = set(rows.index[rows["decided_by"] == "figure"])
    assert decided - set().union(*CLAIMED.values()) == {79}, "it is about MNIST and CIFAR-10"
    gap = [tiny_run(method) for method in ("at", "gairat")]
    for name, given in (
        ("attack-ladder", gap),
        ("black-box", gap),
        ("pgd-against-cw", gap),
        ("fuzziness", [tiny_run(method) for method in ("std", "cse")]),
        ("parameters-l2", [tiny_run(method) for method in ("adv", "csa-l2", "csa")]),
        ("classes-by-method", [tiny_run(m) for m in FIGURES["classes-by-method"].methods]),
    ):
        numbered = [c for c in kit.draw(name, given, folder=tmp_path).claims if c.number]
        assert numbered
        for claim in numbered:
            label = re.search(r"\((\w+)[^()]*\)$", claim.claim)[1]
            assert rows.loc[claim.number, "paper"] == _PAPER_OF[label], claim.claim


@pytest.mark.parametrize("name", ["confused-labels", "pm-by-lps", "mr-signs", "parameters"])
def test_facts_claims_and_caption_need_no_canvas(name, runs):
    """They follow from what was computed, and drawing it twice changes none of it."""
    row = FIGURES[name]
    given = runs(row)
    data = row.compute(next(iter(given.values())) if row.one else given)
    facts, words = plain(data.facts), row.caption(data)
    verdicts = [claim.reading for claim in row.decide(data)]
    first, second = row.draw(data).png(), row.draw(data).png()
    assert first == second
    assert facts == plain(data.facts) and words == row.caption(data)
    assert verdicts == [claim.reading for claim in row.decide(data)] and len(verdicts) > 0


def test_a_papers_own_number_is_a_name(tiny_run, tmp_path):
    drawing = kit.draw("mail-4", tiny_run("at"), folder=tmp_path)
    assert {path.name for path in drawing.files} == {
        f"pm-by-lps.{ending}" for ending in ("png", "svg", "json")
    }
    assert set(NUMBERS.values()) <= set(FIGURES) and all(
        name.partition("-")[0] in PAPERS for name in NUMBERS
    )


def test_clean_training_is_not_counted_as_attacked(tiny_run, tmp_path):
    with pytest.raises(KitError, match=r"std trained on clean images in epoch .*frozen"):
        kit.draw("confused-labels", tiny_run("std"), first_epoch=1, folder=tmp_path)
    assert (
        kit.draw(
            "confused-labels", tiny_run("std"), first_epoch=1, counted="frozen", folder=tmp_path
        ).facts["n"]
        == 60
    )


def test_a_slide_is_dark_and_keeps_its_hues(tiny_run, tmp_path):
    """White becomes nearly black, orange stays orange, text in the SVG stays text; the drawing
    itself is as it was.
    """
    drawing = kit.draw("pm-by-lps", tiny_run("at"), folder=tmp_path)
    before = drawing.png()
    with (
        Image.open(drawing.slide(tmp_path / "dark.png")) as picture,
        Image.open(tmp_path / "pm-by-lps.png") as bright,
    ):
        dark, light = np.asarray(picture.convert("L")), np.asarray(bright.convert("L"))
        assert dark.shape == light.shape and np.median(dark) < 30 and np.median(light) > 240
        assert "MAIL Fig. 4" in picture.info["Description"]
    svg = drawing.slide(tmp_path / "dark.svg").read_text()
    assert "#ffffff" not in svg.split("</defs>")[0]
    assert svg.count("<text") == (tmp_path / "pm-by-lps.svg").read_text().count("<text")
    assert drawing.png() == before
    for name in (style.BLUE, style.VERMILLION, style.GREEN, style.PURPLE, style.BLACK):
        r, g, b = (int(name[i : i + 2], 16) / 255 for i in (1, 3, 5))
        hue, lightness, _ = colorsys.rgb_to_hls(r, g, b)
        swapped = (
            swap_lightness(np.array([round(255 * c) for c in (r, g, b)], dtype=np.uint8)) / 255
        )
        new_hue, new_lightness, _ = colorsys.rgb_to_hls(*swapped)
        assert (
            min(abs(new_hue - hue), 1 - abs(new_hue - hue)) < 0.02
            and abs(new_lightness - (0.07 + 0.93 * (1 - lightness))) < 0.02
        )
    with pytest.raises(KitError, match=r"must end in .png or .svg"):
        drawing.slide(tmp_path / "dark.pdf")


def test_training_stages_add_up(tiny_run, tmp_path):
    """The two parts of the loss that are drawn make the loss that the step minimises, on the same
    attacked images.
    """
    csa = tiny_run("csa")
    facts = kit.draw("csa-1", {"csa": csa, "cse": tiny_run("cse")}, folder=tmp_path).facts
    images, epochs = csa.data().train.take(slice(0, facts["n"])), csa.plan.recipe.epochs
    model, method = csa.model(), csa.plan.method.at(epochs, epochs)
    batch = attacked_batch(
        model,
        method,
        csa.plan.recipe,
        images.x(),
        images.y,
        Streams(images.ids, csa.spec.seed, "figure"),
    )
    assert facts["loss"] == pytest.approx(
        compute_loss(model, method, forward(model, method, batch), reweight=False).loss.item(),
        rel=1e-5,
    )
    assert facts["protected"] == csa.record["classes"][0] and facts["cost"] == 10
    assert all(0 < layer["last"] < math.log(2) for layer in facts["fuzziness"].values())


def test_same_run_same_picture(tiny_run, tmp_path):
    for folder in ("a", "b"):
        kit.draw("confused-labels", tiny_run("mail-at"), folder=tmp_path / folder)
    for ending in ("png", "svg"):
        first, second = (
            (tmp_path / folder / f"confused-labels.{ending}").read_bytes() for folder in "ab"
        )
        assert first == second


def test_confused_labels_counts_are_the_definition(tiny_run, tmp_path):
    """n_sig and n_mul recounted with plain loops over the stored logits, both ways of counting."""
    run = tiny_run("mail-at")
    labels = run.data().train.y.numpy()
    for counted, key, truth in (
        ("on the fly", "train_logits_adv", labels),
        ("frozen", "seen_logits_adv", labels[:60]),
    ):
        facts = kit.draw(
            "confused-labels", run, counted=counted, first_epoch=1, folder=tmp_path
        ).facts
        for i, epoch in enumerate((1, 2, 3)):
            logits = run.epoch(epoch)[key]
            above = [sum(z > row[y] for z in row) for row, y in zip(logits, truth, strict=True)]
            assert facts["n_sig"][i] == above.count(1)
            assert facts["n_mul"][i] == sum(a >= 2 for a in above)
            assert facts["n_err"][i] == facts["n_sig"][i] + facts["n_mul"][i]
        assert facts["n"] == len(truth)


def test_histogram_and_margins_agree(tiny_run, tmp_path):
    run = tiny_run("mail-at")
    counts = kit.draw("confused-label-counts", run, folder=tmp_path).facts
    scatter = kit.draw("pm-and-cl-pm", run, folder=tmp_path).facts
    assert sum(counts["counts"]) == 600 and scatter["n"] == 600 - counts["counts"][0]
    assert scatter["cl_pm_above_pm"] == 0 and scatter["equal_iff_one"]
    assert scatter["toy"]["A"] == pytest.approx((-0.2, -0.2)) and scatter["toy"][
        "B"
    ] == pytest.approx((-0.2, -0.3))


def test_softmax_pair_shows_what_it_says(tiny_run, tmp_path):
    run = tiny_run("mail-at")
    facts = kit.draw("softmax-pair", run, folder=tmp_path).facts
    for name, expected in (("single", lambda k: k == 1), ("multiple", lambda k: k >= 2)):
        f = facts[name]
        above = sum(p > f["p"][f["y"]] for p in f["p"])
        assert expected(above) and above == f["confused_labels"]
        assert f["pm"] == pytest.approx(
            f["p"][f["y"]] - max(p for j, p in enumerate(f["p"]) if j != f["y"])
        )
    again = kit.draw("softmax-pair", run, single=facts["single"]["id"], folder=tmp_path).facts
    assert again["single"]["id"] == facts["single"]["id"]
    with pytest.raises(KitError, match="does not have exactly one confused label"):
        kit.draw("softmax-pair", run, single=facts["multiple"]["id"], folder=tmp_path)


def test_the_softmax_pair_is_one_that_cl_pm_tells_apart(monkeypatch):
    """Of two examples of about equal PM, the one whose second label is well above the true one."""
    rows = [[0.2, 0.6, 0.1, 0.1], [0.19, 0.59, 0.191, 0.029], [0.1, 0.49, 0.4, 0.01]]
    final = {
        "train_logits_adv": np.log(rows),
        "train_y": np.zeros(3, int),
        "train_ids": np.arange(3),
    }
    run = SimpleNamespace(final=final, record={"classes": "abcd"}, method="mail-at")
    monkeypatch.setattr(clirat_confused_labels, "describe_setting", lambda run: "")
    facts = clirat_confused_labels.compute_softmax_pair(run).facts
    assert (facts["single"]["id"], facts["multiple"]["id"]) == (0, 2)


def test_box_plot_numbers(tiny_run, tmp_path):
    run = tiny_run("at")
    facts = kit.draw("pm-by-lps", run, folder=tmp_path).facts
    logits, y = run.final["train_logits_nat"].astype(np.float64), run.final["train_y"]
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    pm = [row[t] - max(np.delete(row, t)) for row, t in zip(probs, y, strict=True)]
    for counted in ("lps", "kappa"):
        levels = run.final[f"train_{counted}"]
        assert sum(level["n"] for level in facts[counted]["levels"].values()) == len(pm) == 600
        for k, level in facts[counted]["levels"].items():
            mine = [m for m, at in zip(pm, levels, strict=True) if at == k]
            assert level["n"] == len(mine) and level["median"] == pytest.approx(np.median(mine))


def test_critical_examples_are_counted_among_the_survivors(tiny_run, tmp_path):
    run = tiny_run("at")
    facts = kit.draw("critical-lps", run, folder=tmp_path).facts
    cw = kit.evaluate(run, ["cw20"], quiet=True).attrs["examples"]["cw20"]
    survivors = run.final["test_lps"] == TINY["steps"]
    assert facts["n_safe"] == survivors.sum() and sum(facts["counts"]) == 497
    assert facts["critical"]["broken by CW (margin loss)"]["k"] == (survivors & cw["broken"]).sum()


def test_leave_out_difference_is_paired(tiny_run, runs, tmp_path):
    facts = kit.draw("leave-out", runs(FIGURES["leave-out"]), folder=tmp_path).facts
    right = {
        m: (tiny_run(m).final["test_logits_adv"].argmax(1) == tiny_run(m).final["test_y"])
        for m in facts["runs"]
    }
    for method, f in facts["runs"].items():
        assert (
            f["robust"] == pytest.approx(right[method].mean())
            and f["low"] < f["robust"] < f["high"]
        )
    gap = facts["drop_mul_minus_drop_sig"][0]
    assert gap == pytest.approx(
        right["clirat-drop-multiple"].mean() - right["clirat-drop-single"].mean()
    )
    met, spared = facts["matched"]["multiple"], facts["matched"]["spared"]
    assert 0 <= spared <= met and met > 0


def test_a_percent_axis_reads_what_its_ticks_are():
    """87.5 % is not written 88 %; whole percents have no decimals."""
    axes = Drawing().subplots()
    share_axis(axes, "x")
    for ticks, words in (
        ((0.875, 0.9, 0.925), ["87.5%", "90.0%", "92.5%"]),
        ((0.57, 0.58, 0.59), ["57%", "58%", "59%"]),
        ((0.0, 0.0125), ["0.00%", "1.25%"]),
    ):
        axes.set_xticks(ticks)
        axes.figure.canvas.draw()
        assert [label.get_text() for label in axes.get_xticklabels()] == words


@pytest.mark.parametrize(
    ("spared", "words"), [(0, "no control"), (3, "spares 3 of 40 examples of S_mul")]
)
def test_a_control_that_cuts_the_same_set_is_called_none(spared, words):
    fact = {"difference": -0.0001}
    names = ("single", "multiple", "random", "matched")
    facts = {
        "runs": {f"clirat-drop-{name}": fact for name in names},
        "drop_mul_minus_drop_sig": (-0.0001, -0.01, 0.01),
        "matched": {"multiple": 40, "spared": spared},
    }
    caption = FIGURES["leave-out"].caption(FigureData(facts, extras={"steps": 10}))
    assert words in caption and "-0.0 " not in caption and "points" in caption


def test_parameter_facts(tiny_run, tmp_path):
    runs = {m: tiny_run(m) for m in ("adv", "csa")}
    facts = kit.draw("parameters", runs, folder=tmp_path).facts
    w = np.abs(runs["csa"].model()[0].weight.detach().numpy().ravel().astype(np.float64))
    assert facts["methods"]["csa"]["below_0.05"] == pytest.approx(sum(v < 0.05 for v in w) / len(w))
    assert facts["methods"]["csa"]["max"] == pytest.approx(max(w))
    normal = np.random.default_rng(0).normal(size=200_000)
    assert measure_shape(normal)["kurtosis"] == pytest.approx(3, abs=0.1)


def test_fuzziness_facts(tiny_run, tmp_path):
    runs = {m: tiny_run(m) for m in ("std", "cse")}
    facts = kit.draw("fuzziness", runs, folder=tmp_path).facts["methods"]["cse"]
    state = runs["cse"].model().state_dict()
    w = np.abs(np.concatenate([state[f"{name}.weight"].double().ravel() for name in ("0", "2")]))
    rho = 1 / (1 + np.exp(w))
    expected = -(rho * np.log(rho) + (1 - rho) * np.log(1 - rho)).mean()  # over all parameters
    assert facts["final_fuzziness"] == pytest.approx(expected, abs=1e-6)
    assert 0.6 < facts["initial_fuzziness"] < math.log(2)


def test_confusion_facts(runs, tiny_run, tmp_path):
    facts = kit.draw("confusion", runs(FIGURES["confusion"]), attack="pgd10", folder=tmp_path).facts
    table = kit.evaluate(tiny_run("at"), ["pgd10"], quiet=True)
    matrix = kit.confusion(table, "pgd10")
    assert facts["attacked"]["recall"] == pytest.approx(np.diag(matrix) / matrix.sum(1))
    naturally = kit.confusion(kit.evaluate(tiny_run("std"), ["natural"], quiet=True), "natural")
    shown = facts["panels"]["STD, natural"]["recall"]
    assert shown == pytest.approx(np.diag(naturally) / naturally.sum(1))
    assert set(facts["panels"]) == {"STD, natural", "AT, PGD-10", "TRADES, PGD-10", "MART, PGD-10"}


def test_ratio_interval():
    middle, low, high = ratio_interval(30, 20)
    assert low < middle < high and middle == pytest.approx(1.5)
    assert ratio_interval(0, 0)[1:] == (0.0, math.inf) and math.isinf(ratio_interval(3, 0)[0])


def test_bad_questions(tiny_run, tmp_path):
    run = tiny_run("at")
    for arguments, options, words in (
        (("confused-label", run), {}, "Did you mean 'confused-labels'"),
        (("confused-labels", run), {"epochs": 3}, "option of 'confused-labels'"),
        (("confused-labels", run), {"first_epoch": 99}, "must be 1 to 3"),
        (("confused-labels", run), {"counted": "twice"}, "on the fly, |frozen"),
        (("confused-labels", [run, run]), {}, "exactly one run"),
        (("confused-labels", "at"), {}, "takes runs"),
        (("parameters", {"at": run}), {}, r"python -m kit train adv --recipe digits --seed 0"),
        (("pm-by-lps", run), {"split": "all"}, "train"),
    ):
        with pytest.raises(KitError, match=words):
            kit.draw(*arguments, folder=tmp_path, **options)
    with pytest.raises(KitError, match="convolution"):
        kit.draw("parameters", {m: tiny_run(m) for m in ("adv", "csa")}, layer=7, folder=tmp_path)


def test_every_method_has_a_look_of_its_own():
    looks = {method: (style.colour(method), str(style.dash(method))) for method in kit.METHODS}
    assert all(colour != style.BLACK for colour, _ in looks.values())
    for group in (
        ["at", "trades", "mart", "gairat", "mail-at", "clirat", "std"],
        ["adv", "csa", "csa-l2", "cse", "std"],
        FIGURES["leave-out"].methods,
    ):
        assert len({looks[method] for method in group}) == len(group)


def test_output_folder(monkeypatch, tmp_path, home):
    assert output_folder("folder:/a/b c:paper") == home / "figures/out/folder-a-b-c-paper"
    monkeypatch.setenv("KIT_OUT", str(tmp_path))
    assert output_folder("digits") == tmp_path


def test_names_of_classes_that_are_words_end_at_their_ticks():
    """However long a word is; short names stand level, and of many classes some numbers do."""
    words = ("cat", "automobile", "airplane", "ship")
    for classes in (words, words[::-1], ("no", "positive", "unknown", "x")):
        drawing = Drawing(3.0, 2.5)
        axes = drawing.subplots()
        name_classes(axes, classes)
        drawing.canvas.draw()
        labels = axes.get_xticklabels()
        assert tuple(label.get_text() for label in labels) == classes
        ticks = axes.transData.transform([(place, 0) for place in range(len(classes))])[:, 0]
        away = np.array([label.get_window_extent().x1 for label in labels]) - ticks
        assert np.ptp(away) < 2 and abs(away).max() < 15, away
    axes = Drawing().subplots()
    name_classes(axes, [str(k) for k in range(10)])
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {0.0}
    name_classes(axes, [f"class {k}" for k in range(100)])
    assert len(axes.get_xticks()) == 10
