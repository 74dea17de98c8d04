"""The lessons: which runs they need, and that their buttons do what the text says."""

from __future__ import annotations

import ast
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from kit.evaluation.masking_rules import AUTOATTACK_PARTS
from kit.evaluation.robustness_audit import AUDIT_STEPS
from kit.experiments.specification import RunSpec, resolve
from kit.jobs.notebook_jobs import needed_runs, plan_jobs
from kit.notebook.parameter_cells import notebook_parameters
from kit.widgets.race_panel import ENTRANTS
from tests.helpers.settings import ROOT
from tests.integration.test_widgets_all import MAKERS

LESSONS = sorted((ROOT / "notebooks").glob("teach_*.ipynb"))


@pytest.fixture(scope="module")
def trained_before():
    """The keys of the runs that `python -m kit reproduce` trains."""
    return {plan.key for plan in needed_runs(plan_jobs([], {}, None, None))}


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_reproduce_trains_what_a_lesson_opens(path, trained_before):
    (job,) = plan_jobs([path.stem], {}, None, None)
    late = [str(plan.spec) for plan in needed_runs([job]) if plan.key not in trained_before]
    assert not late, f"a class waits for {late}"


def test_reproduce_trains_the_rivals_of_the_race(trained_before):
    for method in set(ENTRANTS) - {"own-curve"}:
        assert resolve(RunSpec(method, "digits", 0)).key in trained_before, method


@pytest.mark.parametrize("name", ["teach_mirage", "teach_lecture", "teach_sealed"])
def test_the_audit_attacks_what_a_lesson_shows(name):
    """Notebook 12 keeps its verdicts on as many images as the lessons take, so nothing is attacked
    in class; and a plan attacks nothing that a lesson does not show.
    """
    (job,) = plan_jobs([name], {}, None, None)
    assert not any(asks for _, asks in job.values.evaluations)
    folder = ROOT / "notebooks"
    mine = notebook_parameters(folder / f"{name}.ipynb")
    audited = notebook_parameters(folder / "12_robust_or_masked.ipynb")["images"].default
    assert mine["images"].default == audited
    shown = ["pgd100", *AUTOATTACK_PARTS]
    if "meter_attacks" in mine:
        shown += mine["meter_attacks"].default.split()
    most = {step.attack: step.most for step in AUDIT_STEPS}
    for attack in shown:
        assert attack in most and (not most[attack] or audited <= most[attack]), attack


def offers(path) -> list[tuple[str, list[dict]]]:
    """[(widget, its settings)] of every `.offer(...)` in a notebook's code."""
    code = "\n".join(
        "".join(cell["source"])
        for cell in json.loads(path.read_text())["cells"]
        if cell["cell_type"] == "code"
    )
    tree = ast.parse(code)
    widgets = {
        node.targets[0].id: found[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and (found := re.findall(r"kit\.widgets\.(\w+)\(", ast.unparse(node.value)))
    }
    return [
        (
            widgets[ast.unparse(node.func.value)].replace("_", "-"),
            [ast.literal_eval(argument) for argument in node.args],
        )
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "offer"
    ]


WITH_BUTTONS = [path for path in LESSONS if ".offer(" in path.read_text()]


def test_most_lessons_have_buttons():
    assert len(WITH_BUTTONS) >= 8


#: What a lesson does with its widget before it shows it.
OPENED = {"race": lambda panel: panel.evaluate_trained()}

#: The share of a picture's pixels that must change by `VISIBLE` of 255 levels in some colour, for a
#: person to see it: the smallest change of today, a moved point, is twice as large.
LEAST_CHANGE = 0.001
VISIBLE = 40


def pixels(panel) -> np.ndarray:
    """The panel's picture, (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(panel.png())).convert("RGB"), dtype=int)


def changed_share(before: np.ndarray, after: np.ndarray) -> float:
    """The share of the pixels that have visibly changed."""
    assert before.shape == after.shape
    return float((np.abs(after - before).max(axis=2) > VISIBLE).mean())


@pytest.mark.parametrize("path", WITH_BUTTONS, ids=lambda path: path.stem)
def test_every_try_sets_the_widget_and_changes_its_picture(path, home, tiny_run):
    """Pressed in order, each button shows something else than what stood there: the first one
    something else than the widget opens with.
    """
    for widget, settings in offers(path):
        panel = MAKERS[widget](tiny_run).offer(*settings)
        OPENED.get(widget, lambda panel: panel)(panel)
        before = pixels(panel)
        for number, wanted in enumerate(settings, 1):
            panel.press(f"Try {number}")
            assert {name: panel.values[name] for name in wanted} == wanted and not panel.trouble
            after = pixels(panel)
            changed = changed_share(before, after)
            assert changed > LEAST_CHANGE, f"{widget}, Try {number}: {changed:.5f} has changed"
            before = after
