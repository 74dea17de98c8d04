"""Notebook parameters: the cell is the schema, and a wrong word never starts a kernel."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch

import kit
from kit.core.errors import KitError
from kit.experiments import specification
from kit.experiments.specification import RunSpec
from kit.figures.base import Claim
from kit.jobs import batch_tasks, forecast, notebook_jobs
from kit.jobs.tasks import Place
from kit.notebook import parameter_cells
from kit.notebook import study as study_module
from kit.notebook.parameter_cells import (
    Parameter,
    check_parameters,
    declared_parameters,
    notebook_parameters,
    parse_values,
)
from kit.notebook.study import Study
from kit.papers.claim_verdict import Estimate
from kit.papers.record import RECORD_COLUMNS, read_record, write_record
from tests.helpers.settings import ROOT, TINY, settings_words

CELL = """method: str = "mail-at"  # the method; a name of kit.METHODS
seed: int = 0  # random seed; at least 0
split: str = "train"  # images; one of train, test
share: float = 0.5  # of the images; 0 to 1
fast: bool = False  # leave things out
overrides: str = ""  # settings
"""
SEVERAL = (
    CELL
    + """seeds: str = "0 1"  # random seeds
attacks: str = "natural pgd20"  # attacks
"""
)


def test_several_seeds_and_all_methods():
    values = check_parameters(declared_parameters(SEVERAL), {"seeds": "3 1", "method": "all"})
    assert [(spec.method, spec.seed) for spec in values.specs] == [
        (m, seed) for seed in (3, 1) for m in kit.METHODS
    ]
    assert values.attacks == ("natural", "pgd20") and parse_values({}).attacks == ()


def test_names_have_spaces_or_commas_between():
    cell = {"methods": "at, clirat", "seeds": "1,2", "attacks": "natural, pgd20"}
    values = parse_values(cell)
    assert [spec.method for spec in values.specs] == ["at", "clirat"] * 2
    assert values.seeds == (1, 2) and values.attacks == ("natural", "pgd20")


def test_listed_runs_are_planned_with_their_own_settings(home):
    """Methods, settings and seeds in this order; a recipe of their own takes no `overrides`."""
    values = parse_values(
        {
            "method": "at",
            "seed": 4,
            "overrides": "epochs=3 milestones=[]",
            "some_runs": "cse regulariser.strength=0,1.5 seed=+0,+1",
            "mixture_runs": "std at recipe=mixture seed=7",
        }
    )
    assert [(s.method, s.seed, s.overrides["regulariser.strength"]) for s in values.specs[1:5]] == [
        ("cse", 4, 0),
        ("cse", 5, 0),
        ("cse", 4, 1.5),
        ("cse", 5, 1.5),
    ]
    assert all(spec.overrides["epochs"] == 3 for spec in values.specs[:5])
    assert values.specs[5:] == [RunSpec(name, "mixture", 7) for name in ("std", "at")]
    assert [plan.spec for plan in values.listed["mixture_runs"]] == values.specs[5:]
    assert [plan.spec for plan in values.plans_of(["at"])] == values.specs[:1], "not the mixture's"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed=1", "names no method"),
        ("at seed=x", "must be a whole number"),
        ("at seed=", "one setting with its values"),
        ("nothing", "Choices"),
        ("at recipe=nothing", "Choices"),
        ("at stride=2", "stride"),
    ],
)
def test_listed_runs_that_cannot_be(text, says):
    with pytest.raises(KitError, match=says):
        parse_values({"method": "at", "some_runs": text})


def test_each_run_is_resolved_once(monkeypatch, home):
    """The text of a cell is parsed once and each of its runs resolved once, on the whole way to a
    plan of a batch, and in the kernel of a notebook.
    """
    counted: dict[str, int] = {}

    def count(name: str) -> None:
        real = getattr(specification, name)

        def counting(*words):
            text = f"{name} {words[0]}"
            counted[text] = counted.get(text, 0) + 1
            return real(*words)

        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith("kit") and name in vars(module):
                monkeypatch.setattr(module, name, counting)

    for name in ("resolve", "parse_overrides"):
        count(name)
    jobs = notebook_jobs.plan_jobs(
        ["02"], {"overrides": "epochs=4 milestones=[] probe=20"}, None, None
    )
    place = Place(torch.device("cpu"), 2)
    lists = batch_tasks.group_trainings(batch_tasks.untrained_runs(jobs).values(), place)
    groups = batch_tasks.group_evaluations(jobs, lists)
    batch_tasks.training_tasks(lists, place)
    batch_tasks.evaluation_tasks(groups, lists, place)
    batch_tasks.notebook_tasks(jobs, lists, groups)
    forecast.epochs_to_train(notebook_jobs.needed_runs(jobs))
    assert len(counted) > 5 and set(counted.values()) == {1}, counted
    counted.clear()
    words = settings_words({**TINY, "epochs": 2})
    study = kit.begin("00_test", namespace(CELL, method="at", overrides=words))
    study.runs("at")
    assert study.run("at").plan is study.values.plans[0]
    assert len(counted) == 2 and set(counted.values()) == {1}, counted


def test_a_cell_declares():
    found = declared_parameters(CELL)
    assert list(found) == ["method", "seed", "split", "share", "fast", "overrides"]
    assert found["seed"] == Parameter("int", 0, "random seed; at least 0")
    assert check_parameters(found, {}).given["share"] == 0.5


@pytest.mark.parametrize(
    "cell",
    ["x = 3", "x: int = f()", "import kit", "x: list = []", "x: int = 3\nprint(x)", "x:", ""],
)
def test_other_cells_declare_nothing(cell):
    assert declared_parameters(cell) == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"metod": "at"}, "Did you mean 'method'"),
        ({"fast": "false"}, "True or False"),
        ({"seed": "three"}, "whole number"),
        ({"seed": -1}, "at least 0"),
        ({"seed": 1.5}, "whole number"),
        ({"seed": True}, "whole number"),
        ({"share": 1.5}, "0 to 1"),
        ({"split": "valid"}, "train"),
        ({"method": "mail-ad"}, "Did you mean 'mail-at'"),
        ({"method": ""}, "empty"),
        ({"seeds": "0 one"}, "different whole numbers"),
        ({"seeds": "0 0"}, "different whole numbers"),
        ({"seeds": "1 01"}, "different whole numbers"),
        ({"seeds": "9" * 5000}, "different whole numbers"),
        ({"seeds": ""}, "different whole numbers"),
        ({"attacks": "pgd20 pgd21"}, "Did you mean 'pgd20'"),
        ({"overrides": "epochs"}, "name=value"),
        ({"overrides": "epochs=0"}, "at least 1"),
        ({"overrides": "weight.slop=3"}, r"Did you mean 'weight\.slope'"),
        ({"overrides": "eps=-1"}, "at least 0"),
        ({"overrides": "eps=big"}, "a number"),
        ({"overrides": "model=resnet19"}, "no model 'resnet19'"),
        ({"overrides": "data=cifar"}, "cifar10"),
        ({"overrides": "burn_in=40"}, "0 to 39"),
    ],
)
def test_wrong_words(given, words):
    with pytest.raises(KitError, match=words):
        check_parameters(
            declared_parameters(SEVERAL if {"seeds", "attacks"} & set(given) else CELL), given
        )


def test_runs_follow_from_the_values():
    specs = parse_values(
        {"method": "at", "leave_out_methods": "at mail-at", "seed": 3, "overrides": "eps=1/8"}
    ).specs
    assert [(s.method, s.seed, s.overrides) for s in specs] == [
        ("at", 3, {"eps": 0.125}),
        ("mail-at", 3, {"eps": 0.125}),
    ]


def test_a_figure_without_methods_is_left_out(home, monkeypatch, tmp_path):
    """None asks for no run; nothing is saved, and the notebook's other checks go on."""
    given = {"method": "at", "leave_out_methods": "none", "seed": 3}
    assert [spec.method for spec in parse_values(given).specs] == ["at"]
    with pytest.raises(KitError, match="none"):
        parse_values({"method": "none"})
    monkeypatch.setenv("KIT_OUT", str(tmp_path))
    study = kit.begin("00_test", namespace(CELL, method="at"))
    drawing = study.draw("leave-out", "none")
    assert drawing.title == "leave-out is left out" and drawing.title in drawing.caption
    assert not drawing.claims and not drawing.files and not list(tmp_path.rglob("leave-out*"))
    assert not study.check(drawing).rows and not study.drawings


def test_a_run_that_is_listed_apart_is_not_offered():
    """A `..._runs` parameter has runs of its own: the refusal of a method does not name them."""
    values = {"methods": "at", "gaussian_runs": "std at recipe=mixture seed=0"}
    with pytest.raises(KitError, match="'std'") as refused:
        Study("00_test", parse_values(values)).run("std")
    assert "Did you mean" not in str(refused.value) and "Choices: at" in str(refused.value)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_none_is_taken_where_a_figure_alone_needs_the_runs(path):
    """A parameter that offers none goes to one drawing and nowhere else; others refuse it."""
    cells = json.loads(path.read_text())["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    for name, parameter in notebook_parameters(path).items():
        if not name.endswith("_methods"):
            continue
        if "none" in parameter.meaning:
            check_parameters({name: parameter}, {name: "none"})
            uses = [line for line in code.splitlines() if name in line and f"{name}:" not in line]
            assert len(uses) == 1 and re.search(rf'study\.draw\("[\w-]+", {name}\b', uses[0])
        else:
            with pytest.raises(KitError, match=f"{name}=none: this notebook needs these runs"):
                check_parameters({name: parameter}, {name: "none"})


def test_a_grid_varies_one_setting_at_a_time():
    values = {"method": "clirat", "grid": "weight.slope=7,8 eps=0.1", "overrides": "epochs=30"}
    points = [{}, {"weight.slope": 7}, {"weight.slope": 8}, {"eps": 0.1}]
    assert [s.overrides for s in parse_values(values).specs] == [
        {"epochs": 30} | point for point in points
    ]
    for grid, words in (
        ("weight.slope", "grid: 'weight.slope'"),
        ("eps=0.1,", "its values"),
        ("eps=1 eps=2", "'eps' is there twice"),
        ("weight.slop=1", "Did you mean"),
    ):
        with pytest.raises(KitError, match=words):
            parse_values({**values, "grid": grid})


def test_notebook_files(tmp_path):
    path = tmp_path / "a.ipynb"
    loose = {"cells": [{"source": ["x = 1"], "metadata": {"tags": ["parameters"]}}]}
    for content, words in (
        ("{", "not a readable notebook"),
        (json.dumps({"cells": []}), "no cell tagged"),
        (json.dumps(loose), "must hold"),
    ):
        path.write_text(content)
        with pytest.raises(KitError, match=words):
            notebook_parameters(path)


def namespace(*cells: str, **values) -> dict:
    """What a notebook's globals() hold: IPython's In, and the variables."""
    return {"In": ["", *cells], **params_values(CELL), **values}


def params_values(cell: str) -> dict:
    return {name: p.default for name, p in parameter_cells.declared_parameters(cell).items()}


def test_begin_reads_the_notebook(capsys, home):
    study = kit.begin("00_test", namespace(CELL, "import kit", method="clirat", seed=2))
    assert [(spec.method, spec.seed) for spec in study.specs] == [("clirat", 2)]
    line = capsys.readouterr().out
    assert "kit 0.1.0" in line and "torch" in line and "seed 2" in line and "clirat" in line


def test_begin_refuses_what_papermill_lets_through(home):
    with pytest.raises(KitError, match="Did you mean 'method'"):
        kit.begin("00_test", namespace(CELL, '# Parameters\nmetod = "at"\n', metod="at"))
    with pytest.raises(KitError, match="True or False"):
        kit.begin("00_test", namespace(CELL, '# Parameters\nfast = "false"\n', fast="false"))
    with pytest.raises(KitError, match="no parameters cell"):
        kit.begin("00_test", {"In": ["", "import kit"]})


def test_the_record_stands_beside_a_run(monkeypatch, tmp_path, capsys):
    """With its verdict, and whether the run is within its interval; a damaged one stops nothing."""
    estimate = Estimate("gap", "> 0", 0.3, 0.2, 0.4)
    row = dict.fromkeys(RECORD_COLUMNS, "") | estimate.record() | {"scale": "digits", "seeds": 3}
    row |= {"statement": "a", "estimate": "gap", "verdict": "holds", "source": "figures"}
    path = tmp_path / "measured.csv"
    write_record([row], path)
    monkeypatch.setattr(study_module, "RECORD", path)
    monkeypatch.setattr(study_module, "read_record", lambda: read_record(path))
    known = study_module.record_of("digits")
    for value, place in ((0.25, "within"), (0.9, "outside")):
        claim = Claim("a", "p", "h", (Estimate("gap", "> 0", value, value, value),))
        beside = study_module._record_beside(claim, known)
        assert beside == f"holds, 3 seeds; this run is {place} the 95 % interval of its mean"
    assert study_module._record_beside(Claim("b", "p", "h"), known) == "not there"
    assert study_module.record_of("mnist") == {}
    path.write_text("scale,claim\ndigits,1\n")
    assert study_module.record_of("digits") == {}
    assert "WARNING: the record is left out: " in capsys.readouterr().out


def test_a_study_keeps_to_its_parameters(home, tiny_run, monkeypatch, tmp_path):
    monkeypatch.setenv("KIT_OUT", str(tmp_path))
    monkeypatch.setenv("KIT_STAMP", "abc")
    words = settings_words(TINY)
    study = kit.begin("00_test", namespace(CELL, method="at", overrides=words))
    assert study.run("at").key == tiny_run("at").key
    with pytest.raises(KitError, match="in this notebook's parameters"):
        study.run("mart")
    state = torch.get_rng_state()
    drawing = study.draw("confused-label-counts", "at")
    assert torch.equal(torch.get_rng_state(), state), "a drawing leaves the random state alone"
    assert {path.suffix for path in drawing.files} == {".png", ".svg", ".json"}
    rows = [
        Claim("a", "p", "<h>", exact=True),
        Claim("b", "p", "h", exact=False),
    ]
    drawing.claims = rows
    study.check(drawing)
    drawing.claims = [Claim("a", "p", "<h2>")]
    table = study.check(drawing)
    assert (
        "undecided" in repr(table)
        and "holds" not in repr(table)
        and "&lt;h2&gt;" in table._repr_html_()
    )
    study.finish()
    record = json.loads((tmp_path / "00_test.json").read_text())
    assert record["stamp"] == "abc" and list(record["runs"].values()) == [tiny_run("at").key]
    assert [v["reading"] for v in record["verdicts"]] == ["fails", "undecided"]
    assert set(record["figures"]) == {path.name for path in drawing.files}
