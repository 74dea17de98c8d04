"""The curve that is drawn:

its numbers by a second computation, its line of Python, and the process that trains it.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

import kit
from kit.core.errors import KitError
from kit.experiments.runs import Run
from kit.experiments.specification import RunSpec, resolve
from kit.methods.step_outputs import StepOutputs
from kit.widgets.child_process import PIPE_CLOSED, start_child
from kit.widgets.drawn_curve import CURVE_POINTS, own_curve, own_curve_named, points
from kit.widgets.race_panel import ENTRANTS, RACE_ATTACKS, race
from tests.helpers.settings import TINY

HILL = (0.0, 0.1, 0.35, 1.0, 0.8, 0.2, 0.0, 0.6)


@pytest.fixture
def run(tiny_run):
    return tiny_run("at")


@pytest.fixture
def panel(run):
    drawn = race(run)
    yield drawn
    if drawn.busy:
        drawn.press("stop")


def draw(panel, heights):
    panel.set(**{f"w{i + 1}": height for i, height in enumerate(heights)})


# --------------------------------------------------------------------------------------- the method


@pytest.mark.parametrize("heights", [HILL, (1.0, 0.0), (0.2, 3.0, 0.5)])
def test_weights_lie_on_the_lines_between_the_points(heights):
    scores = np.concatenate([np.linspace(-1, 1, 401), [-1.2, 1.5]])
    expected = np.interp(scores, np.linspace(-1, 1, len(heights)), heights)
    np.testing.assert_allclose(
        points(torch.from_numpy(scores), heights=heights).numpy(), expected, atol=1e-12
    )


@pytest.mark.parametrize("heights", [(), (1.0,), (0.0,) * 8])
def test_a_curve_that_weighs_nothing_is_refused(heights):
    with pytest.raises(KitError, match="two or more numbers"):
        points(torch.zeros(3), heights=heights)


@pytest.mark.parametrize("heights", [(1.0, -0.1), (1.0, float("nan")), "ab", (1.0, "x")])
def test_heights_are_checked_as_every_hyper_parameter(heights):
    with pytest.raises(KitError, match="heights"):
        own_curve(heights)


def test_a_flat_curve_is_adversarial_training():
    logits, y = torch.randn(20, 5, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 5
    torch.testing.assert_close(own_curve((0.3,) * 8).weigh(StepOutputs(y, logits)), torch.ones(20))


def test_every_curve_has_a_run_of_its_own(monkeypatch):
    monkeypatch.setitem(kit.METHODS, "own-curve", own_curve())

    def key(heights):
        return resolve(RunSpec("own-curve", overrides={"weight.heights": heights})).key

    assert key(list(HILL)) == key(HILL) != key(HILL[::-1])
    monkeypatch.setitem(kit.METHODS, "own-curve", own_curve(HILL))
    assert resolve(RunSpec("own-curve")).key == key(HILL)


def test_the_row_is_named_within_and_the_table_is_put_back(monkeypatch):
    before = list(kit.METHODS)
    with pytest.raises(ZeroDivisionError), own_curve_named():
        assert resolve(RunSpec("own-curve")).method == own_curve()
        raise ZeroDivisionError
    assert list(kit.METHODS) == before
    mine = own_curve(HILL)
    monkeypatch.setitem(kit.METHODS, "own-curve", mine)
    with own_curve_named():
        assert kit.METHODS["own-curve"] == own_curve() != mine
    assert kit.METHODS["own-curve"] is mine, "a row of the reader's own stays"


# ---------------------------------------------------------------------------- what the picture says


def test_effective_size_and_shares_are_those_of_whatif(panel, run, monkeypatch):
    draw(panel, HILL)
    monkeypatch.setitem(kit.METHODS, "own-curve", own_curve(HILL))
    frame = kit.whatif(run, ["own-curve"], counted="final")
    row, shares = frame.iloc[0], frame.attrs["by_class"][f"{TINY['epochs']} own-curve"]
    assert f"{row['n']} training images" in panel.sentence
    assert (
        f"count like {row['n'] * row['effective_sample_share']:.0f} of equal weight"
        in panel.sentence
    )
    assert (
        panel.effective.get_text()
        == f"{row['n']} scores count like {row['n'] * row['effective_sample_share']:.0f}"
    )
    assert f"have {1 - row['robust_share']:.0%} of the weight" in panel.sentence
    np.testing.assert_allclose(panel.by_class.get_data().values, shares, atol=1e-12)
    top = int(np.argmax(shares))
    assert (
        f"class {run.record['classes'][top]} has the largest share, {shares[top]:.0%}"
        in panel.sentence
    )


def test_the_histogram_is_weighted(panel, run):
    draw(panel, HILL)
    logits = run.final["train_logits_adv"].astype(np.float64)
    y = run.final["train_y"].astype(int)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    rows = np.arange(len(y))
    score = np.where(np.arange(10) == y[:, None], -np.inf, p).max(1) - p[rows, y]
    w = np.interp(score, np.linspace(-1, 1, 8), HILL)
    expected = [
        w[(score >= low) & (score < low + 0.1)].sum() / w.sum() for low in np.linspace(-1, 0.9, 20)
    ]
    np.testing.assert_allclose(panel.weighed.get_data().values, expected, atol=1e-9)
    assert panel.weighed.get_data().values.sum() == pytest.approx(1)


def test_equal_weights_leave_the_counts(panel):
    panel.press("flat")
    n = len(panel.scores.y)
    assert (
        set(panel.heights(panel.values)) == {1.0}
        and f"{n} training images of AT count like {n} of" in panel.sentence
    )


def test_buttons_and_points_of_mail(panel):
    draw(panel, HILL)
    panel.press("as MAIL-AT")
    expected = 1 / (1 + np.exp(-10 * (np.linspace(-1, 1, CURVE_POINTS) - 0.5)))
    assert panel.heights(panel.values) == pytest.approx(expected, abs=0.00501)


def test_mouse_and_arrow_keys_lift_a_point(panel):
    panel.press("flat")
    panel.point(panel.curve, -0.4, 0.25, True)
    assert panel.values["w3"] == 0.25 and panel.held == 2
    panel.point(panel.curve, 0.9, 7.0, False)
    assert panel.values["w3"] == 1 and panel.values["w8"] == 1, (
        "the held point follows, however far the mouse goes"
    )
    panel.nudge(2, 0)
    panel.nudge(0, -3)
    assert panel.held == 4 and panel.values["w5"] == 0.85
    panel.nudge(-90, -90)
    assert panel.held == 0 and panel.values["w1"] == 0
    before = dict(panel.values)
    panel.point(panel.weighed.axes, 0.0, 0.5, True)
    assert panel.values == before


def test_a_curve_of_zeros_is_refused_and_the_last_one_stays(panel):
    before = panel.png()
    with pytest.raises(KitError, match="one of them above 0"):
        draw(panel, [0.0] * 8)
    assert panel.png() == before


def test_without_a_run_there_is_the_curve_alone():
    panel = race()
    assert "Without a run there are no scores" in panel.sentence and panel.recipe == "digits"
    panel.set(w8=0.5)
    assert "0.50 for the most wrong" in panel.sentence
    with pytest.raises(KitError, match="one of them above 0"):
        draw(panel, [0.0] * 8)


def test_a_run_without_logits_is_refused(run):
    bare = Run(run.spec, run.folder)
    bare.__dict__["final"] = {
        name: values for name, values in run.final.items() if name != "train_logits_adv"
    }
    with pytest.raises(KitError, match="stored no train_logits_adv"):
        race(bare)


# -------------------------------------------------------------------------------------- training it


def test_the_line_of_python_makes_the_run_that_the_picture_shows(panel, monkeypatch):
    """Pasted elsewhere it trains this curve with these settings; once that is evaluated, the
    picture has its accuracy.
    """
    draw(panel, HILL)
    panel.set(code=True, seed=3)
    assert "Seed 3: nothing is trained yet" in panel.sentence and panel.result("own-curve") is None
    line = panel.sentence.split("As Python: ")[1]
    assert "\n" not in line and "own-curve" not in kit.METHODS
    space = {}
    try:
        exec(line, space)
        table = kit.evaluate(space["run"], RACE_ATTACKS, quiet=True)
    finally:
        kit.METHODS.pop("own-curve", None)
    made = space["run"]
    assert (
        made.plan.method.weight.params["heights"] == HILL
        and made.plan.method.normaliser.name == "batch_mean"
    )
    assert (
        made.plan.recipe == resolve(RunSpec("at", "digits", 3, TINY)).recipe and made.plan.seed == 3
    )
    panel.redraw()
    shown = panel.dots[1].get_offsets()
    assert shown[0, 0] == pytest.approx(table.loc["pgd20", "accuracy"])
    assert f"own curve {table.loc['pgd20', 'accuracy']:.1%} [" in panel.sentence
    ends = panel.intervals[1].get_segments()[0][:, 0]
    assert ends == pytest.approx(table.loc["pgd20", ["low", "high"]].tolist())
    panel.set(w1=0.5)
    assert panel.result("own-curve") is None and panel.absent[0].get_text() == "not trained", (
        "another curve, another run"
    )
    panel.raced = list(HILL)
    panel.redraw()
    assert f"the dashed curve {table.loc['pgd20', 'accuracy']:.1%} [" in panel.sentence
    assert panel.ghost.get_ydata() == list(HILL) and panel.absent[0].get_text() == ""
    panel.set(w1=0.0)
    assert np.isnan(panel.ghost.get_ydata()).all() and "dashed" not in panel.sentence


def test_a_run_that_is_not_evaluated_is_not_shown(panel, tiny_run):
    panel.set(seed=4)
    assert panel.result("at") is None
    run = tiny_run("at", seed=4)
    panel.redraw()
    assert panel.result("at") is None and panel.absent[1].get_text() == "not trained"
    kit.evaluate(run, ["pgd20"], quiet=True)
    assert panel.result("at") is None
    table = kit.evaluate(run, ["natural"], quiet=True)
    panel.redraw()
    assert panel.dots[0].get_offsets()[1, 0] == pytest.approx(table.loc["natural", "accuracy"])


def test_stop_without_a_training_is_refused(panel):
    with pytest.raises(KitError, match="nothing is being trained"):
        panel.press("stop")


def test_the_process_ends_with_its_pipe():
    child = start_child(time.sleep, 60)
    try:
        assert child.alive
        child.process.stdin.close()
        assert child.process.wait(timeout=60) == PIPE_CLOSED
    finally:
        child.stop()


@pytest.mark.slow
def test_a_race_from_the_button_to_the_result(run):
    panel = race(run)
    draw(panel, HILL)
    panel.set(seed=5)
    panel.press("train it")
    with pytest.raises(KitError, match="trained already"):
        panel.press("train it")
    assert "Training own curve, epoch 0 of 3" in panel.sentence
    assert panel.child.process.wait(timeout=300) == 0
    panel.redraw()
    assert not panel.missing() and panel.news() == "" and "own-curve" not in kit.METHODS
    assert all(panel.dots[0].get_offsets()[:, 0] > 0) and len(panel.tables) >= len(ENTRANTS)
    child, accuracy = panel.child, panel.result("own-curve").loc["pgd20", "accuracy"]
    panel.press("train it")
    assert panel.child is child, "nothing is trained twice"
    panel.set(w2=0.7)
    assert panel.raced == list(HILL) and f"the dashed curve {accuracy:.1%} [" in panel.sentence


@pytest.mark.slow
def test_a_stopped_race_keeps_its_epochs_and_goes_on(tiny_run):
    panel = race(tiny_run("at", epochs=40, milestones=[30]))
    panel.set(seed=6)
    panel.press("train it")
    deadline = time.monotonic() + 120
    while "epoch 0 of" in panel.news() and time.monotonic() < deadline:
        time.sleep(0.1)
    panel.press("stop")
    assert (
        panel.sentence.endswith('"train it" goes on from there.')
        and "Stopped at own curve, epoch" in panel.sentence
    )
    reached = int(panel.sentence.split(" of 40;")[0].split()[-1])
    assert 0 < reached < 40
    panel.press("train it")
    assert f"Training own curve, epoch {reached} of 40" in panel.sentence
    panel.press("stop")


@pytest.mark.slow
def test_a_race_that_fails_says_why(run):
    panel = race(run)
    panel.settings |= {"batch_size": 5000}
    panel.press("train it")
    assert panel.child.process.wait(timeout=120) == 1
    panel.redraw()
    assert "Training failed at own curve" in panel.sentence and "batch_size=5000" in panel.sentence
