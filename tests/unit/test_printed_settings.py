"""The papers' printed settings: each row is what its run resolves to, or departs with a reason."""

from __future__ import annotations

from fractions import Fraction

import pytest

import kit
from kit.core.errors import KitError
from kit.experiments.specification import RunSpec, resolve
from kit.jobs.notebook_jobs import needed_runs, plan_jobs
from kit.methods.table import METHODS
from kit.papers import printed_settings
from kit.papers.printed_data import read_table
from kit.papers.printed_settings import (
    COLUMNS,
    KEYS,
    STATUSES,
    compare_settings,
    find_reading,
    recipe_of,
    settings,
    training_rows,
)
from kit.papers.table_runs import grid, needs

ROWS = training_rows()


def run_of(row):
    recipe, images = recipe_of(row["paper"], row["dataset"])
    return printed_settings.settings_of_row(row, own_recipe=recipe if images else None)


def plain_number(text: str) -> float | None:
    try:
        return float(Fraction(text))
    except ValueError:
        return None


def read_plainly(plan) -> dict[str, float | None]:
    """The run's numbers, read off the plan by hand."""
    recipe, numbers = plan.recipe, plan.method.hyper_parameters()
    named = {
        "gamma": numbers.get("criterion.gamma", numbers.get("weight.slope")),
        "beta": numbers.get("weight.bias", numbers.get("weight.offset")),
        "alpha": numbers.get("criterion.alpha", numbers.get("weight.alpha")),
        "tau": numbers.get("criterion.tau"),
        "lambda_tradeoff": numbers.get("loss.beta", numbers.get("weight.shift")),
        "cost_c": numbers.get("loss.cost"),
    }
    return named | {
        "epochs": recipe.epochs,
        "batch": recipe.batch_size,
        "lr": recipe.lr,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
        "lr_factor": recipe.lr_factor,
        "eps": recipe.eps,
        "step_size": recipe.step * recipe.eps,
        "steps": recipe.steps,
        "burn_in_epochs": plan.burn_in,
    }


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: f"{row['line']} {'-'.join(row[k] for k in KEYS)}"
)
def test_a_printed_row_is_what_its_run_resolves_to(row):
    found = run_of(row)
    plan = resolve(found.spec)
    reasons = {r.column: r for r in found.readings if r.kind != "words"}
    numbers = read_plainly(plan)
    compared = 0
    for column, value in numbers.items():
        printed = plain_number(row[column])
        if printed is None or (column in reasons and reasons[column].why):
            continue
        compared += 1
        assert value == pytest.approx(printed, rel=1e-9), column
    assert compared >= 3
    if (epochs := row["lr_milestones"].split(";"))[0].isdecimal():
        assert plan.recipe.milestones == tuple(map(int, epochs))
    assert plan.recipe.optimizer == ("adam" if row["optimizer"] == "Adam" else "sgd")
    assert plan.recipe.nesterov == ("Nesterov" in row["optimizer"])
    assert found.status in STATUSES[:3], found.unexplained


def test_every_row_is_equal_or_has_a_reason():
    found = compare_settings()
    counts = found["status"].value_counts().to_dict()
    assert len(found) == len(read_table("hyperparameters")) and "unexplained" not in counts
    assert (found["why"] != "").sum() == counts["read"] + counts["departs"]
    for status, words in (("equal", "equal;"), ("departs", "depart with a reason")):
        assert f"{counts[status]} {words}" in found.attrs["caption"]


def test_every_reading_is_used_and_says_why():
    """A line that no printed cell needs would be a claim about nothing."""
    used = set()
    lines = list(read_table("readings").itertuples(index=False))
    for row in [*ROWS, *read_table("hyperparameters").to_dict("records")]:
        for column in [*COLUMNS, "row"]:
            row = {**row, "row": ""}
            if (reading := find_reading(row, column)) is not None:
                used.add((reading.printed, reading.kind, reading.why))
    for line in lines:
        assert (line.printed, line.kind, line.why) in used, line
        assert line.kind in ("words", "choice", "silent", "departure"), line
        assert bool(line.why) == (line.kind != "words"), line


def test_a_changed_print_would_be_noticed():
    """The comparison can fail: another number, none, or one that the method does not have."""
    row = next(r for r in ROWS if r["method"] == "vir-at")
    assert run_of({**row, "lr": "0.02"})["lr"] == 0.02
    silent = run_of({**row, "batch": ""})
    assert silent.status == "unexplained" and silent.unexplained == ("batch",)
    std = run_of({**row, "row": "std", "method": "std"})
    assert "gamma" in std.unexplained, "a number is printed that the method has not"


def test_known_settings_by_hand():
    """What was wrong before the print reached the runs."""
    wrn = settings("clirat", model="wrn-32-10", method="clirat")
    assert (wrn["lr"], wrn["weight_decay"], wrn["model"]) == (0.1, 7e-4, "wrn-32-10")
    assert settings("mr", data="cifar10", model="wrn-34-10", method="at")["weight_decay"] == 0.5e-4
    vir = settings("vir", data="cifar10", model="resnet18", method="vir-at")
    assert (vir["epochs"], vir["burn_in_epochs"], vir["init"]) == (115, 75, "gaussian")
    mr = settings("mr", data="cifar100", model="resnet18", method="mr-mail", table=6)
    assert mr["lr_milestones"] == [75, 90, 100] and mr["tau"] == 3
    assert (mr["selection_steps"], mr["validation"]) == (20, 1000)
    assert settings("vir", table=1, method="trades")["lambda_tradeoff"] == 4
    assert settings("vir", table=2, method="trades")["lambda_tradeoff"] == 6
    assert settings("mail", table=2, method="gairat")["burn_in_epochs"] == 74
    csa = settings("csa", data="cifar10", method="csa")
    assert [csa[c] for c in ("optimizer", "lr", "epochs", "batch", "lr_factor")] == [
        "adam",
        0.01,
        50,
        256,
        0.5,
    ]
    assert csa["lr_milestones"] == [10, 20, 30, 40] and csa["model"] == "lenet-5-16-unpadded"
    hundred = settings("csa", data="cifar100", method="cse")
    assert (hundred["epochs"], hundred["lr"], hundred["lr_milestones"]) == (180, 0.1, [60, 120])
    assert "sign" in settings("mr", table=8, data="cifar10", method="mr-mail").departures["beta"]


def test_a_run_without_differences_is_the_recipes_own():
    """No override is there for its own sake, so that runs are shared."""
    assert settings("csa", data="mnist", method="std").spec == RunSpec("std", "mnist:paper")
    assert set(settings("clirat", model="resnet18", method="at").spec.overrides) == {"attack.init"}


def test_images_of_ones_own(tmp_path):
    for part in ("train", "test"):
        (tmp_path / "tiny" / part / "cat").mkdir(parents=True)
    name = f"folder:{tmp_path}/tiny:paper"
    vir = settings("vir", table=4, method="vir-at", recipe=name)
    assert vir.spec.recipe == name and (vir["gamma"], vir["epochs"]) == (3, 115)
    made = [need for need in grid("vir", 4, recipe=name) if need.method == "vir-at"]
    assert made and all(need.spec(0) == vir.spec for need in made)
    assert {need.ask.attack for need in made} >= {"pgd20-eighth"}


def test_tables_at_paper_scale_take_the_printed_settings():
    for paper, table, column, values in (
        ("vir", 1, "epochs", {115}),
        ("mr", 1, "milestones", {(75, 90, 100)}),
        ("mail", 3, "lr", {0.1}),
        ("csa", 3, "optimizer", {"adam"}),
    ):
        plans = [resolve(spec) for spec in needs(paper, table, recipe="cifar10:paper")]
        assert {getattr(plan.recipe, column) for plan in plans} == values
    bare = next(s for s in needs("vir", 6, recipe="cifar10:paper") if s.method == "vir-at-sv")
    assert resolve(bare).method == METHODS["vir-at-sv"], "the factor alone keeps its own numbers"
    short = needs("vir", 1, recipe="cifar10:paper", overrides={"epochs": 96})
    burn_in = {resolve(spec).burn_in for spec in short if spec.method == "vir-at"}
    assert burn_in == {60}, "of another number of epochs the share is kept"


def test_reproduce_trains_a_table_at_paper_scale_with_the_printed_settings():
    """The notebook's own overrides, which shorten quick runs, stay out; those asked for do not."""
    given = {"recipe": "cifar10:paper", "tables": "vir-1"}
    for extra, epochs, probe in (
        ({}, 115, 1000),
        ({"probe": 7}, 115, 7),
        ({"epochs": 99}, 99, 1000),
    ):
        jobs = plan_jobs(["tables_of_the_papers"], given | extra, [0], None)
        recipes = [plan.recipe for plan in needed_runs(jobs)]
        assert {(recipe.epochs, recipe.probe) for recipe in recipes} == {(epochs, probe)}
    (job,) = plan_jobs(["tables_of_the_papers"], {"tables": "vir-1"}, [0], None)
    assert job.values.overrides, "a quick recipe keeps the notebook's"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"paper": "virr"}, "no paper 'virr'"),
        ({"paper": "vir", "table": 13}, "table of vir '13'.*T12"),
        ({"paper": "vir", "data": "mnist"}, "no data set of vir.*'mnist'.*cifar100, svhn"),
        ({"paper": "vir", "data": "svhn", "model": "wrn-34-10"}, "no network of vir.*: resnet18"),
        ({"paper": "vir", "table": 1, "model": "lenet"}, "no network of vir, table 1"),
        ({"paper": "vir", "data": "svhn", "method": "clirat"}, "no method of vir.*vir-trades"),
        ({"paper": "vir", "data": "svhn"}, "several methods; give method=, one of: at"),
        ({"paper": "mr", "method": "at"}, "several data sets; give data=, one of: cifar10"),
        ({"paper": "vir", "table": 4, "method": "at"}, "no images of vir's tiny.*folder:<path>"),
        ({"paper": "vir", "table": 8, "method": "at"}, r"recipe=cifar10\+npz:<file>:generated"),
    ],
)
def test_what_a_paper_does_not_have_is_named(asked, words):
    with pytest.raises(KitError, match=words) as caught:
        kit.papers.settings(**asked)
    assert "\n" not in str(caught.value)


def test_they_are_listed(capsys):
    from kit.jobs.command_line import main

    assert main(["list", "settings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(read_table("hyperparameters")) + 2
    assert lines[-1].endswith("0 unexplained.")
