"""The mirage meter against a second count of the stored verdicts; the sealed prediction, sealed and
open.
"""

from __future__ import annotations

import numpy as np
import pytest

from kit.core.errors import KitError
from kit.evaluation.accuracy import evaluate
from kit.evaluation.robustness_audit import audit
from kit.evaluation.statistics import wilson
from kit.widgets.controls import Action
from kit.widgets.mirage_panel import (
    LOGIT_RULES,
    STEP_ATTACKS,
    VERDICT_RULES,
    WARNINGS,
    apply_few_rules,
    light_of,
    mirage,
)
from kit.widgets.sealed_panel import Scale, printed_fall, sealed
from tests.helpers.wording import attack_keys_in

CHEAP = ["natural", "fgsm", "pgd20", "pgd100", "cw20"]


@pytest.fixture
def pair(tiny_run):
    """Two runs, evaluated on the cheap steps for n=60."""
    runs = [tiny_run(method) for method in ("at", "mail-at")]
    for run in runs:
        evaluate(run, CHEAP, n=60, quiet=True)
    return runs


# ------------------------------------------------------------------------------------------- mirage


def test_bars_are_the_stored_verdicts(pair):
    panel = mirage(pair, n=60)
    for step, name in enumerate(CHEAP):
        for union in (False, True):
            panel.set(step=step, **{"any attack so far": union})
            for place, run in enumerate(pair):
                examples = evaluate(run, CHEAP, n=60, quiet=True).attrs["examples"]
                right = sum(
                    not any(
                        examples[attack]["broken"][i]
                        for attack in (CHEAP[: step + 1] if union else [name])
                    )
                    for i in range(60)
                )
                low, high = wilson(right, 60)
                assert panel.bars[place].get_height() == pytest.approx(right / 60)
                assert list(panel.stems[place].get_ydata()) == pytest.approx([low, high])
                assert (
                    f"{run.method.upper()} {right / 60:.0%} ({low:.0%} to {high:.0%}) of 60"
                    in panel.sentence
                )


def test_a_step_that_was_not_run_is_named_with_its_command_and_computes_nothing(pair):
    files = [sorted((run.folder / "evaluations").iterdir()) for run in pair]
    panel = mirage(pair, n=60)
    panel.set(step=len(STEP_ATTACKS) - 1)
    for run in pair:
        assert (
            f"python -m kit evaluate {run.key} --attacks apgd-ce,apgd-t,fab-t,square --n 60"
            in panel.sentence
        )
    assert [number.get_text() for number in panel.numbers] == ["not run"] * 2
    other = mirage(pair, n=59)
    assert "was not run under natural" in other.sentence, "another n is another evaluation"
    assert files == [sorted((run.folder / "evaluations").iterdir()) for run in pair]


def test_autoattack_is_the_union_of_its_four(pair):
    panel = mirage({"at": pair[0]}, n=60)
    panel.broken["at"] |= {
        name: np.arange(60) % 12 == place for place, name in enumerate(STEP_ATTACKS["aa"])
    }
    panel.set(step=len(STEP_ATTACKS) - 1)
    assert panel.bars[0].get_height() == pytest.approx(1 - 4 * 5 / 60)


def test_a_light_judges_what_was_run_up_to_its_step(pair, monkeypatch):
    run, none = pair[0], np.zeros(60, dtype=bool)
    assert light_of(apply_few_rules(run, {}, 60)) == "not judged", "logits alone make nothing green"
    assert light_of(apply_few_rules(run, {"fgsm": none, "pgd20": none}, 60)) == "green"
    assert light_of(apply_few_rules(run, {"fgsm": ~none, "pgd20": none}, 60)) == "red", (
        "the weaker attack finds more"
    )
    margin = apply_few_rules(run, {"pgd20": none, "cw20": ~none}, 60)
    assert light_of(margin) == "red" and [f.rule for f in margin if f.light == "red"] == [
        VERDICT_RULES[2]
    ]
    panel = mirage(pair, n=60)
    panel.broken["at"] |= {"fgsm": none, "pgd20": none, "pgd100": none, "cw20": ~none}
    panel.set(step=3)
    assert "AT is" not in panel.sentence
    panel.set(step=4)
    assert (
        "AT is red: CW breaks 60 images that PGD-100 left. Of 60 images that PGD-100 leaves, an "
        "attack on the margin breaks 60 (100%" in panel.sentence
    )
    assert panel.lines[0].get_text() == "AT: red\nCW breaks 60 images that PGD-100 left"
    assert panel.marks[0].get_marker() == "X", "not by its colour alone"


def test_notes_count_what_the_picture_shows(pair):
    """The sentences of the lesson are made from the verdicts on the screen."""
    panel, falls = mirage(pair, n=60), np.arange(60) < 9
    panel.broken["at"] |= {"pgd100": falls & False, "cw20": falls}
    panel.broken["at"] |= dict.fromkeys(STEP_ATTACKS["aa"], falls)
    first, second = panel.notes().lines
    assert first.startswith(
        "AT: PGD-100 leaves 100% of 60 images, AutoAttack 85%. AutoAttack breaks 9 of the 60 that "
        "PGD-100 left."
    )
    assert second.startswith("MAIL-AT: PGD-100 or AutoAttack was not run.")
    colours = [panel.findings(pair[0], step) for step in range(len(STEP_ATTACKS))]
    for light in ("amber", "red"):
        steps = [step for step, found in enumerate(colours) if light_of(found) == light]
        assert (f"(step {steps[0]})" in first) if steps else (light not in first)


def test_sentences_name_attacks_as_papers_do(pair):
    """At each step, whatever was run: PGD-100 and not pgd100, outside a command."""
    panel, none = mirage(pair, n=60), np.zeros(60, dtype=bool)
    panel.broken["at"] = dict.fromkeys(panel.broken["at"], none) | {"cw20": ~none}
    for step in range(len(STEP_ATTACKS)):
        for union in (False, True):
            panel.set(step=step, **{"any attack so far": union})
            shown = [panel.sentence, panel.attack.get_text()]
            shown += [line.get_text() for line in panel.lines]
            assert not set().union(*map(attack_keys_in, shown)), shown
    assert not attack_keys_in(" ".join(panel.notes().lines))


def test_every_rule_that_can_warn_has_its_words():
    assert set(WARNINGS) == {*VERDICT_RULES, *LOGIT_RULES}


def test_lights_are_the_audit_s(tiny_run):
    """The same rules on the same verdicts give the same findings as the audit."""
    run = tiny_run("mail-at")
    report = audit(run, n=20, budget=0.02, quiet=True)
    broken = {
        name: report.examples[name].to_numpy(dtype=bool)
        for name in report.examples
        if name not in ("y", "by") and report.examples[name].notna().all()
    }
    for finding in apply_few_rules(run, broken, 20):
        assert (
            finding.rule in (*VERDICT_RULES, *LOGIT_RULES)
            and report.finding(finding.rule) == finding
        )


def test_mirage_refuses(pair, tiny_run):
    for runs, words in (
        ([], "given none"),
        ([pair[0], pair[0]], "different methods"),
        ([pair[0], tiny_run("trades", train_size=500)], "different data"),
    ):
        with pytest.raises(KitError, match=words):
            mirage(runs, n=60)
    with pytest.raises(KitError, match="n=-1"):
        mirage(pair, n=-1)


# ------------------------------------------------------------------------------------------- sealed


@pytest.fixture
def kernel(monkeypatch):
    """A kernel in which nothing is sealed yet, and somebody watches."""
    monkeypatch.setattr(Scale, "seals", {})
    monkeypatch.setattr(Scale, "closed_yet", {})
    monkeypatch.setenv("KIT_WIDGETS", "1")


def test_a_seal_cannot_be_moved_and_outlives_its_cell(kernel):
    first = sealed("How many?", 0, 200, "images", paper=120)
    first.set(prediction=80)
    assert "80 images, not sealed yet" in first.sentence and "120" not in first.sentence
    first.press("seal")
    assert first.shown_controls == () and "The prediction 80 images is sealed" in first.sentence
    with pytest.raises(KitError, match="no control of sealed 'prediction'"):
        first.set(prediction=100)
    first.seal()
    again = sealed("How many?", 0, 200, "images", paper=120)
    assert again.shown_controls == () and again.sealed == 80, "the cell above was run again"
    assert sealed("How many others?", 0, 200, "images").sealed is None


def test_a_result_is_closed_until_the_seal_and_then_opens_by_itself(kernel):
    panel = sealed("How many points?", 0, 50, "points", paper=21.46)
    panel.set(prediction=30)
    result = panel.reveal(own=12.3, low=4, high=20.5, n=50)
    assert (
        "closed" in result.sentence
        and "12.3" not in result.sentence
        and "21.46" not in result.sentence
    )
    assert not result.figure.axes[0].containers, "nothing is drawn"
    rerun = sealed("How many points?", 0, 50, "points", paper=21.46)
    rerun.set(prediction=15)
    assert [c.name for c in rerun.shown_controls if isinstance(c, Action)] == ["seal"]
    rerun.press("seal")
    assert result.sentence == (
        "The prediction was 15 points, inside the interval. This run: 12.3 points (95 % interval 4 "
        "to 20.5, n = 50). The paper prints 21.46 points."
    )
    run_bar, paper_bar = result.figure.axes[0].containers
    assert run_bar.lines[0].get_xdata()[0] == 12.3 and paper_bar.lines[0].get_xdata()[0] == 21.46
    assert [float(x) for x in run_bar.lines[2][0].get_segments()[0][:, 0]] == [4, 20.5]
    assert (
        "9.3 too low" in sealed_at(3).reveal(12.3).sentence
        and "2.7 too high" in sealed_at(15).reveal(12.3).sentence
    )


def test_nothing_suggests_a_prediction(kernel):
    panel = sealed("How many?", 0, 200, "images")
    assert panel.values["prediction"] == "" and not len(panel.mark.get_xdata())
    with pytest.raises(KitError, match="no prediction yet"):
        panel.press("seal")
    for wrong in ("many", "201"):
        with pytest.raises(KitError, match="from 0 to 200"):
            panel.set(prediction=wrong)
    assert panel.sealed is None


def test_the_class_is_shown_on_one_scale(kernel, tmp_path, monkeypatch):
    """Each kernel keeps a file of its own; the result reads all that ask the same."""
    for prediction in (3, 12, 14):
        monkeypatch.setattr(Scale, "seals", {})
        panel = sealed("How many?", 0, 50, "points", folder=tmp_path / "class")
        panel.set(prediction=prediction)
        panel.press("seal")
    other = sealed("How many others?", 0, 50, "points", folder=tmp_path / "class")
    other.set(prediction=40)
    other.press("seal")
    files = list((tmp_path / "class").iterdir())
    assert len(files) == 4
    (tmp_path / "class" / "prediction-torn.json").write_text("{")
    result = panel.reveal(12, low=10, high=20, n=100)
    assert sorted(result.predictions) == [3, 12, 14]
    assert "The class sealed 3 predictions: 2 inside the interval, median 12 points." in (
        result.sentence
    )
    files[0].unlink()
    result.press("show the class")
    assert len(result.predictions) in (2, 3)


def test_printed_falls_are_the_table_s():
    assert (printed_fall("gairat"), printed_fall("at"), printed_fall("csa")) == (21.46, 4.01, None)


def sealed_at(value: float) -> Scale:
    panel = sealed(f"Sealed at {value}", 0, 50, "points")
    panel.set(prediction=value)
    panel.press("seal")
    return panel


def test_headless_invents_no_prediction(kernel, monkeypatch):
    monkeypatch.setenv("KIT_WIDGETS", "0")
    panel = sealed("How many?", 0, 10, "images", paper=7)
    assert "skipped, nobody was here to predict" in panel.sentence and not len(
        panel.mark.get_xdata()
    )
    result = panel.reveal(6)
    assert result.sentence == (
        "No prediction was made: nobody was here to predict. This run: 6 images. "
        "The paper prints 7 images."
    )
    assert not len(result.mark.get_xdata()) and not Scale.seals


def test_sealed_refuses(kernel):
    for wrong, words in (
        ({"question": " "}, "empty"),
        ({"low": 5, "high": 5}, "must be below"),
        ({"low": "a"}, "low"),
        ({"paper": float("nan")}, "paper"),
    ):
        with pytest.raises(KitError, match=words):
            sealed(**{"question": "What?", **wrong})
    panel = sealed("What?")
    with pytest.raises(KitError, match="outside its interval"):
        panel.reveal(50, low=60, high=70)
    with pytest.raises(KitError, match="own"):
        panel.reveal(float("nan"))
