"""Exercises that were run: what an answer says is what a student finds, on digits with seed 0.

Each check draws what the exercise changes and compares it with what stands there by default. An
answer names no number, so that another machine's run bears it out, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

import nbformat
import numpy as np
import pytest
from scipy.stats import spearmanr

import kit
from kit.evaluation.masked_networks import quantised_network, saturated_network
from kit.evaluation.robustness_audit import audit_model
from kit.experiments.runs import Run
from kit.notebook import course
from kit.notebook.parameter_cells import check_parameters, notebook_parameters
from tests.helpers.course import course_notebooks


def run(method: str, **overrides) -> Run:
    return kit.run(method, overrides=overrides, quiet=True)


def facts(figure: str, runs, **options) -> dict:
    return kit.draw(figure, runs, **options).facts


def slope_flattens_weights() -> None:
    """The largest and the smallest weight come closer to each other."""
    spreads = []
    for overrides in ({}, {"weight.slope": 2.0}):
        mine = run("clirat", **overrides)
        weights = facts("mini-batch", mine, compare="clirat mail-at")["weights"]
        spreads.append(np.ptp(weights["clirat"]))
        assert f"γ = {overrides.get('weight.slope', 10):g}" in repr(kit.explain(mine))
    assert spreads[1] < spreads[0]


def smaller_radius_confuses_fewer() -> None:
    """Fewer images are misclassified, and fewer of these have several confused labels."""
    names = "share_misclassified", "share_several_of_misclassified"
    usual, small = (
        facts("confused-label-counts", run("mail-at", **overrides))
        for overrides in ({}, {"eps": 0.1})
    )
    assert all(small[name] < usual[name] for name in names)


def finer_steps_still_overlap() -> None:
    """Neighbouring counts share margins, but for the images that survive: theirs are positive."""
    final = run("at", steps=20).final
    probs = np.exp(final["train_logits_adv"] - final["train_logits_adv"].max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    true = probs[np.arange(len(probs)), final["train_y"]]
    probs[np.arange(len(probs)), final["train_y"]] = -1
    margin, lps = true - probs.max(1), final["train_lps"]
    groups = [margin[lps == k] for k in np.unique(lps[lps < 20]) if (lps == k).sum() >= 10]
    assert len(groups) >= 2
    for lower, upper in pairwise(groups):
        assert lower.max() > upper.min()


def fuzziness_makes_parameters_grow() -> None:
    """Fewer of them are near zero, and they are larger on average."""
    near, size = [], []
    for strength in (20.0, 100.0):
        settings = {"eps": 0.1, "lr": 0.02, "milestones": [], "regulariser.strength": strength}
        model = run("cse", **settings).model()
        found = [w.detach().abs() for w in model.parameters() if w.ndim == 4]
        near.append(sum((w < 0.05).sum().item() for w in found))
        size.append(sum(w.sum().item() for w in found))
    assert near[1] < near[0] and size[1] > size[0]


def the_weak_classes_stay_weak() -> None:
    """The recalls under the two attacks are strongly correlated."""
    table = kit.evaluate(run("at"), ["natural", "pgd100", "cw100"], quiet=True)
    recalls = [kit.per_class(table, attack)["accuracy"] for attack in ("pgd100", "cw100")]
    assert spearmanr(*recalls).statistic > 0.7


def a_factor_is_a_setting_of_one_method() -> None:
    """MAIL-AT takes it, and a method of the notebook without it says so."""
    assert run("mail-at", **{"normaliser.scale": 1.0}).plan.method.normaliser is not None
    with pytest.raises(kit.KitError, match="no hyper-parameter"):
        kit.run("at", overrides={"normaliser.scale": 1.0})


def one_step_fails_sooner_on_a_natural_network() -> None:
    """FGSM breaks half at a smaller radius, and PGD is further ahead of it."""
    half, lead = {}, {}
    for name in ("std", "at"):
        drawing = kit.draw("attack-curves", run(name), attacks="fgsm pgd20", n=100)
        found = drawing.facts["broken"]
        half[name] = min(p["radius"] for p in found["fgsm"] if p["share"] >= 0.5)
        lead[name] = drawing.claims[0].estimates[0].value
    assert half["std"] < half["at"] and lead["std"] > lead["at"]


def shorter_steps_count_more() -> None:
    """The median difference in LPS grows; the gap between the two rank correlations shrinks."""
    found = []
    for step in (0.0, 0.05):
        drawing = kit.draw("pgd-against-lmpgd", run("at"), n=400, steps=50, step=step)
        by_claim = {claim.claim: claim.here for claim in drawing.claims}
        crosses = next(here for claim, here in by_claim.items() if "crosses earlier" in claim)
        both = next(here for claim, here in by_claim.items() if "both break" in claim)
        lps, pm = map(float, re.search(r"([\d.]+) for LPS, ([\d.]+) for PM", both).groups())
        found.append((float(re.search(r"difference ([+\d.]+)", crosses)[1]), pm - lps))
    assert found[1][0] > found[0][0] and found[1][1] < found[0][1]


def a_larger_tau_saturates() -> None:
    """By MR's formula: at m = -0.4 both are near 3, at m = -0.1 they part more than at τ = 2."""

    def weight(m: float, o: float, tau: float) -> float:
        """Ten classes; the rest of the probability is spread evenly over the others."""
        true = (m + o) / (1 + o)  # m = p_y - o (1 - p_y)
        others = np.array([o * (1 - true), *[(1 - o) * (1 - true) / 8] * 8])
        c = np.sqrt((others**2).sum()) / np.sqrt((others**2).sum() + true**2)
        return 3 / (1 + np.exp(10 * (m * (tau - o) * c + 0.5)))

    gap = {
        (m, tau): weight(m, 0.4, tau) - weight(m, 1.0, tau) for m in (-0.4, -0.1) for tau in (2, 4)
    }
    assert gap[-0.4, 4] < 0.1 < gap[-0.4, 2] and weight(-0.4, 1.0, 4) > 2.9
    assert gap[-0.1, 4] > gap[-0.1, 2]


def auto_attack_sides_with_cw() -> None:
    """CLIRAT less AT: lowest under AutoAttack, and nearer there to CW than to PGD-20."""
    runs = [run(name) for name in ("at", "mail-at", "mail-at-printed", "clirat")]
    found = facts("learning-curves", runs, n=100, aa=1)["difference"]["clirat - at"]
    aa, cw, pgd = (found[name][0] for name in ("aa", "cw20", "pgd20"))
    assert aa < min(cw, pgd) and abs(aa - cw) < abs(aa - pgd)


def planted_faults_are_found() -> None:
    """Attacks on the cross-entropy are blind on either; Square gets through both."""
    honest = run("at")
    for fault in (saturated_network, quantised_network):
        report = audit_model(
            fault(honest.model()), honest.data().test, honest.plan.recipe.threat, n=40
        )
        robust = report.steps["accuracy"]
        assert robust["square"] < robust["pgd100"]
        if fault is saturated_network:
            assert robust["cw20"] < robust["pgd100"]


def scores_part_at_the_boundary() -> None:
    """LPS is ahead of PM on broken images and PM on the others; a natural network's images all fall
    alike, and the clean probability orders their distances all the same.
    """
    groups = facts("score-ranks", [run("mail-at")])["groups"]
    ahead = {name: group["difference"]["PM - LPS"][0] for name, group in groups.items()}
    assert ahead["fell"] < 0 < ahead["survived"]
    natural = facts("clean-probability", [run("std")])
    fallen = [share for share, *_ in natural["by_fifth"]]
    assert natural["distance"][0] > 0.3 and min(fallen) > 0.8


def noise_costs_robustness() -> None:
    """Robust accuracy falls at least as much as clean accuracy."""
    import torch

    test = run("at").data().test
    x, y = test.x()[:200], test.y[:200]
    noisy = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    model, threat = run("at").model(), kit.Threat("linf", 0.1)
    clean, moved = (
        kit.evaluate(model, ["natural", "pgd20"], data=(images, y), threat=threat, quiet=True)
        for images in (x, noisy)
    )
    fall = clean["accuracy"] - moved["accuracy"]
    assert fall["pgd20"] >= fall["natural"]


#: {notebook: (the parameters that its exercise sets, what its answer says)}
EXERCISES: dict[str, tuple[dict[str, object], Callable[[], None] | None]] = {
    "01_from_scratch": ({}, None),  # its answer is a program, which a test of its own runs
    "01_one_loop": (
        {"method": "clirat", "compare": "clirat mail-at", "overrides": "weight.slope:2"},
        slope_flattens_weights,
    ),
    "02_confused_labels": ({"overrides": "eps:0.1"}, smaller_radius_confuses_fewer),
    "03_margin_or_steps": ({"overrides": "steps:20"}, finer_steps_still_overlap),
    "04_min_max": ({}, fuzziness_makes_parameters_grow),
    "05_class_confusion": ({"attack": "cw100"}, the_weak_classes_stay_weak),
    "06_where_papers_and_code_part": ({}, a_factor_is_a_setting_of_one_method),
    "07_attack_gallery": ({"method": "std"}, one_step_fails_sooner_on_a_natural_network),
    "08_path_dependence": ({"step": 0.05}, shorter_steps_count_more),
    "09_same_margin": ({"tau": 4.0}, a_larger_tau_saturates),
    "10_learning_curves": ({"aa": 1}, auto_attack_sides_with_cw),
    "11_slope_and_offset": (
        {
            "grid": "weight.slope:7,8,9,10,11,12,13 weight.bias:-0.2,-0.3,-0.4,-0.5,-0.6,-0.7",
        },
        None,  # its answer says how to read the table, and nothing of what stands there
    ),
    "12_robust_or_masked": ({}, planted_faults_are_found),
    "13_scores_and_distance": ({"method": "std"}, scores_part_at_the_boundary),
    "14_your_network": ({}, noise_costs_robustness),
    "tables_of_the_papers": ({"tables": "clirat-1", "seeds": "0"}, None),  # by the rule of verdicts
}


@pytest.mark.parametrize("path", course_notebooks(), ids=lambda p: p.stem)
def test_an_exercise_asks_for_what_the_notebook_takes(path):
    """What it sets are parameters, and its text names them as they are given here."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells]
    exercise = "\n".join(cell for cell in cells if "**Exercise.**" in cell)
    assert bool(exercise) == (path.stem in EXERCISES)
    if not exercise:
        return
    assert "<summary>Answer</summary>" in exercise
    given, _ = EXERCISES[path.stem]
    check_parameters(notebook_parameters(path), given)
    for name, value in given.items():
        shown = f'"{value}"' if isinstance(value, str) else f"{value:g}"
        assert f"{name} = {shown}" in exercise


def test_the_answer_of_the_first_exercise_runs():
    """In the notebook's own namespace: every code cell, and then the answer."""
    [path] = [path for path in course_notebooks() if path.stem == "01_from_scratch"]
    book = nbformat.read(path, as_version=4)
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    code = [c for c in code if "study" not in c.replace("kit.begin", "") or "import torch" in c]
    code = [c for c in code if "for epoch in range(epochs)" not in c]
    source = "\n".join(code).replace('study = kit.begin("01_from_scratch", globals())', "")
    [exercise] = [cell.source for cell in book.cells if "**Exercise.**" in cell.source]
    answer = re.search(r"```python\n(.*?)```", exercise, re.DOTALL)[1]
    exec(compile(f"{source}\n{answer}", str(path), "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (_, check) in EXERCISES.items() if check])
def test_what_an_answer_says(name, home):
    assert name in course.LESSONS
    check = EXERCISES[name][1]
    assert check is not None
    check()
