"""Printed tables beside measured ones: each cell has a run or a reason, verdicts are earned."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import kit
from kit.core.errors import KitError
from kit.data.datasets import DATA
from kit.evaluation.statistics import grand_mean
from kit.experiments.specification import resolve
from kit.figures.base import Claim
from kit.jobs import batch_tasks, command_line, notebook_jobs, reproduction
from kit.jobs.tasks import Place
from kit.notebook import parameter_cells
from kit.papers import measured_rules
from kit.papers.claim_verdict import Estimate, combine_verdicts
from kit.papers.measured_cells import is_kept, measured
from kit.papers.measured_rules import (
    Cells,
    MeasuredSum,
    Statement,
    decide_by_rules,
    measure_expression,
    measure_rule,
)
from kit.papers.printed_data import proofs, results
from kit.papers.printed_rules import checks, claims
from kit.papers.printed_settings import row_of_cell
from kit.papers.record import measure_scale, read_record, scoreboard, write_record
from kit.papers.rule_language import parse_bound, parse_expression, read_rules
from kit.papers.table_runs import (
    CLASS_COUNTS,
    STRONG,
    Evaluation,
    asked,
    chosen_tables,
    classes_of,
    grid,
    needs,
)
from kit.papers.verdicts import compare, report
from tests.helpers.settings import TINY

TABLES = chosen_tables("all")
SETTINGS = " ".join(f"{k}={json.dumps(v, separators=(',', ':'))}" for k, v in TINY.items())
ATTACKS = ["natural", "pgd20"]
REASONS = (
    "blank",
    "no row of kit.METHODS",
    "20 million",
    "kit.ATTACKS has no",
    "classes 0 to 9",
    "holds out no images",
    "no recipe tinyimagenet:paper",
)


# ----------------------------------------------------------------------------------------- the grid


@pytest.mark.parametrize("recipe", ["digits", "mnist", "cifar10:paper"])
@pytest.mark.parametrize("paper, table", TABLES)
def test_every_cell_has_a_run_or_a_reason(paper, table, recipe):
    needs, cells = grid(paper, table, recipe=recipe), results(paper).query("table == @table")
    printed = [need for need in needs if not need.cell["attack"].endswith("all classes")]
    assert [need.cell["printed"] for need in printed] == cells["printed"].tolist()
    for need in needs:
        if need.reason:
            assert any(words in need.reason for words in REASONS) and need.ask is None
            continue
        plan = resolve(need.spec(0))
        assert need.method == need.cell["row"] and need.ask.attack in kit.ATTACKS
        assert need.ask.n == (100 if need.ask.attack in STRONG else 0)
        for pair in need.cell["overrides"].split():
            path, _, number = pair.partition("=")
            assert plan.method.hyper_parameters()[path] == float(number)
        if recipe.endswith("paper"):
            assert plan.recipe.data == need.cell["dataset"]
            assert plan.recipe.model.startswith(need.cell["model"])
            row = row_of_cell(need.cell)
            assert plan.recipe.epochs == int(row["epochs"] or 120)
        else:
            assert plan.recipe == kit.RECIPES[recipe]


def test_what_is_left_out_is_what_must_be():
    needs = [need for pair in TABLES for need in grid(*pair) if need.cell["printed"]]
    left = (
        pd.Series([need.reason.split(":")[0] for need in needs if need.reason])
        .value_counts()
        .to_dict()
    )
    assert (
        len(TABLES) == 28
        and len(needs) == 1438
        and left
        == {
            "digits has classes 0 to 9, not 21": 24,
            "digits has classes 0 to 9, not 36": 24,
            "needs 20 million generated images": 16,
        }
    )


def test_cw_is_the_papers_own():
    """CSA's is Carlini and Wagner's inside the ball, the others' is PGD on the margin."""
    cells = {
        (paper, need.ask.attack)
        for paper, table in TABLES
        for need in grid(paper, table)
        if need.cell["attack"] == "cw" and need.ask
    }
    others = {(paper, "cw20") for paper in ("clirat", "mail", "mr", "vir")}
    assert ("csa", "cw-linf") in cells and cells - others == {("csa", "cw-linf")}


def test_slow_and_fast_attacks_see_as_many_images_as_is_said():
    asked = {need.ask for need in grid("vir", 1, strong_n=3, fast_n=7) if need.ask}
    assert {ask.n for ask in asked if ask.attack in STRONG} == {3}
    assert {ask.n for ask in asked if ask.attack not in STRONG} == {7}


def test_needs_of_one_table():
    specs = needs("vir", 9, seeds=[3, 5], overrides={"epochs": 24})
    assert [(s.method, s.recipe, s.seed, s.overrides) for s in specs[:3]] == [
        ("vir-at", "digits", 3, {"epochs": 24, "weight.offset": 0}),
        ("vir-at", "digits", 3, {"epochs": 24}),
        ("vir-at", "digits", 3, {"epochs": 24, "weight.offset": 0.1}),
    ]
    assert [s.seed for s in specs] == [3, 3, 3, 5, 5, 5]
    assert {ask for _, asks in asked(grid("mr", 5), [0]) for ask in asks} == {
        Evaluation("natural", 0, "best"),
        Evaluation("fgsm", 0, "best"),
        Evaluation("pgd100", 0, "best"),
        Evaluation("cw100", 0, "best"),
        Evaluation("apgd-ce", 100, "best"),
        Evaluation("aa", 100, "best"),
    }
    assert [spec.overrides.get("model") for spec in needs("clirat", 2, recipe="cifar10:paper")] == [
        "wrn-32-10"
    ] * 9
    best = grid("mr", 5, recipe="cifar10:paper")
    assert {need.ask.which for need in best} == {"best"}
    none = grid("mr", 5, recipe="cifar10:paper", overrides={"validation": 0})
    assert {need.reason for need in none} == {
        "cifar10:paper holds out no images to choose the best checkpoint by; set validation=1000, "
        "say"
    }


def test_classes_are_counted_without_loading(tmp_path):
    assert set(CLASS_COUNTS) == set(DATA)
    assert all(classes_of(name) == len(DATA[name](tmp_path)[2]) for name in ("digits", "mixture"))
    for part in ("train", "test"):
        for name in "abc":
            (tmp_path / part / name).mkdir(parents=True)
    assert classes_of(f"folder:{tmp_path}") == 3


def test_tables_are_chosen_by_word():
    assert chosen_tables("mail-2, clirat-1 mail-2") == [("mail", "T2"), ("clirat", "T1")]
    assert chosen_tables("csa") == [("csa", "T2"), ("csa", "T3"), ("csa", "T4")]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: chosen_tables(""), ["tables is empty", "clirat-1"]),
        (lambda: chosen_tables("foo-1"), ["no paper 'foo'", "clirat"]),
        (lambda: chosen_tables("clirat-9"), ["table of clirat", "T1, T2"]),
        (lambda: grid("vir", 13), ["table of vir '13'"]),
        (lambda: grid("vir", 1, recipe="cifar"), ["no recipe 'cifar'", "cifar10"]),
        (lambda: grid("vir", 1, strong_n=-1), ["strong_n", "at least 0"]),
        (lambda: grid("vir", 1, fast_n=-1), ["fast_n", "at least 0"]),
        (lambda: measured("x", 1), ["no paper 'x'", "clirat"]),
        (lambda: compare("x"), ["no paper 'x'", "mail"]),
        (lambda: parameter_cells.parse_values({"tables": "vir-99"}), ["table of vir"]),
    ],
)
def test_errors_list_the_choices(call, words):
    with pytest.raises(KitError) as error:
        call()
    assert all(word in str(error.value) for word in words)


# ----------------------------------------------------------------------------------------- measured


@pytest.fixture(scope="module")
def runs(home):
    """Two seeds of two methods, evaluated under two of the attacks of CLIRAT's first table."""
    found = {
        (m, s): kit.run(m, seed=s, overrides=TINY, quiet=True)
        for m in ("at", "clirat")
        for s in (0, 1)
    }
    for run in found.values():
        kit.evaluate(run, ATTACKS, quiet=True)
    return found


def test_measured_cells_are_those_of_evaluate(runs):
    table = measured("clirat", 1, seeds=[0, 1], overrides=TINY)
    right = {
        attack: np.stack(
            [
                ~kit.evaluate(runs["clirat", s], [attack], quiet=True).attrs["examples"][attack][
                    "broken"
                ]
                for s in (0, 1)
            ]
        )
        for attack in ATTACKS
    }
    for attack in ATTACKS:
        cell = table.cells.loc["clirat", attack]
        assert (cell["mean"], cell["low"], cell["high"]) == pytest.approx(
            [100 * v for v in grand_mean(right[attack])]
        )
        assert cell["sd"] == pytest.approx(
            100 * abs(right[attack][0].mean() - right[attack][1].mean()) / 2**0.5
        )
        assert (cell["seeds"], cell["n"]) == (2, 497)
    assert table.cells.loc[("clirat", "pgd20"), "printed"] == "60.31 ± 0.16"
    assert {run.key for run in table.runs} == {run.key for run in runs.values()}


def test_the_evaluation_on_most_images_counts(fresh_home):
    """On as many as asked for, or more; where seeds differ, their first images in common."""
    first, second = (kit.run("clirat", seed=s, overrides=TINY, quiet=True) for s in (0, 1))

    def cell(**options):
        table = measured("clirat", 1, seeds=[0, 1], overrides=TINY, **options)
        return table.cells.loc["clirat", "pgd20"]

    assert cell(fast_n=7)["why"] == "its run is not there yet"
    kit.evaluate(first, ["pgd20"], n=7, quiet=True)
    assert (cell(fast_n=7)["seeds"], cell(fast_n=7)["n"]) == (1, 7)
    kit.evaluate(first, ["pgd20"], n=20, quiet=True)
    kit.evaluate(second, ["pgd20"], n=11, quiet=True)
    assert (cell(fast_n=7)["seeds"], cell(fast_n=7)["n"]) == (2, 11)
    # a seed on fewer images than is asked for takes nothing from the others
    assert (cell(fast_n=20)["seeds"], cell(fast_n=20)["n"]) == (1, 20)
    assert cell()["why"] == "its run is not there yet", "all images are asked for"
    kit.evaluate(second, ["pgd20"], quiet=True)
    assert (cell(fast_n=7)["n"], cell()["seeds"], cell()["n"]) == (20, 1, 497)
    kit.evaluate(first, ["pgd20"], quiet=True)
    assert cell(fast_n=7)["n"] == 497
    rights = [
        ~kit.evaluate(r, ["pgd20"]).attrs["examples"]["pgd20"]["broken"] for r in (first, second)
    ]
    assert cell()["mean"] == pytest.approx(100 * np.mean(rights))
    kit.evaluate(second, ["pgd20"], n=3, which="best", quiet=True)
    assert cell()["n"] == 497, "the best network is another"
    (first.folder / "evaluations" / "0123.npz").write_bytes(b"torn")
    with pytest.raises(KitError, match=r"0123.npz.*Delete it"):
        cell()


def test_what_was_not_run_is_no_number(runs, tmp_path):
    table = measured("clirat", 1, seeds=[0, 1], overrides=TINY)
    gaps = table.cells[table.cells["why"] != ""]
    assert (
        gaps["mean"].isna().all()
        and len(gaps) == 50
        and table.missing == {"its run is not there yet": "50 of 54 cells"}
    )
    assert (
        table.wide.loc["mart", "natural"].endswith("/ not run")
        and table.wide.loc["mart", "half-width"] == ""
    )
    assert table.wide.loc["clirat", "natural"].startswith("83.60 ± ")
    table.save(tmp_path, "clirat-table-1")
    assert {path.suffix for path in table.files} == {".md", ".tex", ".csv", ".json"}
    text = (tmp_path / "clirat-table-1.md").read_text()
    assert (
        "60.31 ± 0.16 / " in text
        and "45.50 ± 0.90 / not run" in text
        and "measured on digits" in text
    )
    assert (
        "not run" in table._repr_html_()
        and (tmp_path / "clirat-table-1.tex").read_text().count("\\\\") == 10
    )
    assert pd.read_csv(tmp_path / "clirat-table-1.csv")["mean"].isna().sum() == 50
    assert len(json.loads((tmp_path / "clirat-table-1.json").read_text())["runs"]) == 4


def test_verdicts_on_rows_that_differ_in_two_things_name_the_controls(fresh_home):
    """MAIL multiplies by 3 and CLIRAT normalises: a difference of the two is not CL-PM's alone."""
    here = compare("clirat", overrides=TINY)["here"]
    for number, pairs in {
        5: {"clirat and mail-at": "mail-at-printed, clirat-x3"},
        8: {
            "clir-trades and mail-trades": "mail-trades-mean, clir-trades-x3",
            "clir-mart and mail-mart": "mail-mart-mean, clir-mart-x3",
        },
        12: {},  # CLIRAT against AT
    }.items():
        assert here[number].count("differ in criterion and normaliser") == len(pairs)
        for pair, controls in pairs.items():
            assert f"{pair} differ in criterion and normaliser" in here[number]
            assert f"controls that differ in one: {controls}" in here[number]


def test_a_network_alone_measures_nothing(runs):
    """An evaluation counts only with the very attack, images and network that the cell asks for."""
    run = runs["at", 0]
    assert (
        is_kept(run, Evaluation("pgd20"))
        and not is_kept(run, Evaluation("pgd20", 100))
        and not is_kept(run, Evaluation("pgd20", 0, "best"))
    )
    assert not is_kept(run, Evaluation("aa", 100))
    before = sorted((run.folder / "evaluations").iterdir())
    measured("mr", 5, overrides=TINY)
    assert sorted((run.folder / "evaluations").iterdir()) == before, "it reads only"


def test_one_class_and_all_classes(fresh_home):
    run = kit.run("std", overrides=TINY, quiet=True)
    table = kit.evaluate(run, ["natural", "fgsm", "pgd20"], quiet=True)
    cells = measured("csa", 2, overrides=TINY).cells
    for k in (0, 7):
        mine = kit.per_class(table, "fgsm").iloc[k]
        cell = cells.loc[f"protected={k} std", "fgsm"]
        assert (cell["mean"], cell["n"]) == (pytest.approx(mine["accuracy"]), mine["n"])
        for attack, name in (("natural", "natural"), ("pgd20", "pgd")):
            everyone = cells.loc[f"protected={k} std", f"{name}, all classes"]
            assert (
                everyone["mean"] == pytest.approx(table.loc[attack, "accuracy"])
                and everyone["printed"] == ""
            )
    assert cells.loc[("protected=0 csa", "fgsm"), "why"] == "its run is not there yet"


# ----------------------------------------------------------------------------------------- verdicts


SEEDS = (0, 1, 2)


def measure(cells, text):
    """An expression on measured cells."""
    return measure_expression(cells, parse_expression(text))


def plant(monkeypatch, accuracy, n=400, seeds=(0,)):
    """`observed` gives, for each need, images of which `accuracy(need, seed)` are right, the first
    ones.
    """

    def observed(need, seed):
        share = None if need.reason else accuracy(need, seed)
        if share is None:
            return None
        return (
            SimpleNamespace(key=f"{need.method}-{seed}"),
            np.arange(n) < round(share * n),
            np.full(n, True),
        )

    monkeypatch.setattr(measured_rules, "observed", observed)


@pytest.fixture
def few_draws(monkeypatch):
    cached = (
        measured_rules._image_weights,
        measured_rules._seed_weights,
        measured_rules._invented_weights,
    )
    for function in cached:
        function.cache_clear()
    monkeypatch.setattr(measured_rules, "DRAWS", 2)
    yield
    for function in cached:
        function.cache_clear()


def test_values_are_those_of_the_rules_on_the_printed_means(few_draws, monkeypatch):
    """With networks right on exactly the printed share of 10,000 images, every sum comes to what
    the printed means give in exact decimals, and every bound is kept or not as there.
    """

    def printed(need, seed):
        share = need.cell["mean"] / (100 if need.cell["unit"] == "percent" else 1)
        flags = None if need.reason else np.arange(10_000) < round(share * 10_000)
        return flags is not None and (SimpleNamespace(key="a"), flags, np.full(10_000, True))

    monkeypatch.setattr(
        Cells, "observed", lambda self, need, seed: printed(need, seed)
    )  # one run, many printed numbers
    found = compare(recipe="cifar10:paper", seeds=SEEDS, overrides={"validation": 1000})
    mine = {
        (number, record["statement"], record["expected"]): record["value"]
        for number, row in found.iterrows()
        for record in row["statements"]
        if "value" in record
    }
    checked = checks().query("of > 0").set_index(["claim", "statement", "expected"])
    checked = checked[~checked.index.duplicated(keep=False)]  # claim 49 words two rules alike
    both = [key for key in mine if key in checked.index]
    assert len(both) > 350
    for key in both:
        assert mine[key] == pytest.approx(checked.loc[key, "from_tables"], abs=1e-6), key
        if key[1].startswith("T"):
            kept = bool(parse_bound(key[2]).keeps(mine[key]))
            assert kept == bool(checked.loc[key, "held"]), key


def test_planted_networks_get_the_verdict_that_they_earn(monkeypatch):
    """CLIRAT ten points above MAIL-AT confirms claim 5, ten below refutes it, one image more
    decides nothing.
    """
    for gap, verdict in (
        (0.1, "holds"),
        (-0.1, "fails"),
        (1 / 400, "undecided"),
        (0, "undecided"),
    ):
        plant(monkeypatch, lambda need, seed, gap=gap: 0.5 + gap * (need.method == "clirat"))
        row = compare("clirat", seeds=SEEDS).loc[5]
        assert row["verdict"] == verdict and row["on"] == "digits" and row["command"] == ""
        assert row["runs"] == [f"{m}-{seed}" for m in ("clirat", "mail-at") for seed in SEEDS]
        assert [record["value"] for record in row["statements"]] == pytest.approx([100 * gap] * 3)
        if verdict != "undecided":
            assert f"{verdict.upper()} on digits" in report(compare("clirat", seeds=SEEDS))


def test_digits_decide_nothing_about_other_data_or_networks(monkeypatch):
    """A quick recipe stands for a paper's first table: not for its WRN, its SVHN, its CIFAR-100."""
    plant(monkeypatch, lambda need, seed: 0.5 + 0.2 * (need.method == "clirat"))
    found = compare(seeds=SEEDS)
    assert found.loc[[5, 6, 13], "verdict"].tolist() == ["holds", "not run", "not run"]
    assert "it is about wrn-32-10 on cifar10; digits stands for" in found.loc[6, "here"]
    for number, row in found.iterrows():
        for record in row["statements"]:
            text = record["statement"]
            if "value" in record and number in (38, 39, 44, 52, 62, 63):
                assert not any(word in text for word in ("cifar100", "svhn", "wrn", "T2")), text
    at_scale = compare("clirat", recipe="cifar10:paper", seeds=SEEDS)
    assert at_scale.loc[6, "verdict"] == "holds"


def test_what_a_scale_does_not_have_is_left_out_save_where_a_claim_is_about_several(monkeypatch):
    """Planted so that all that digits can say for the claims 19, 29 and 52 is true."""
    under_aa = {"gairat": 0.1, "at": 0.4, "mail-at": 0.3, "vir-at": 0.6, "vir-trades": 0.6}
    plant(
        monkeypatch,
        lambda need, seed: under_aa.get(need.method, 0.2) if need.ask.attack == "aa" else 0.5,
    )
    found = compare(seeds=SEEDS)
    assert found.loc[[19, 29], "verdict"].tolist() == ["holds", "holds"]
    assert found.loc[19, "here"].startswith("1 holds of 1; holds: T2 gairat pgd100")
    assert "; 1 more on a network or data set that is not there" in found.loc[19, "here"]
    assert [record.get("elsewhere") for record in found.loc[19, "statements"]] == [None, True]
    assert found.loc[52, "verdict"] == "undecided", "it is about every data set tried"
    assert "runs for T2 vir-trades" in found.loc[52, "wanted"]
    # where the scale has both, both count
    plant(
        monkeypatch,
        lambda need, seed: 0.5 if need.cell["model"] == "wrn-32-10" else under_aa.get(need.method),
    )
    at_scale = compare("mail", recipe="cifar10:paper", seeds=SEEDS)
    assert at_scale.loc[29, "verdict"] != "holds", "the wider networks are equal"


def test_what_is_missing_names_its_command(monkeypatch):
    plant(monkeypatch, lambda need, seed: None if need.method == "clirat" else 0.5)
    row = compare("clirat", seeds=[0, 1], settings="epochs=24").loc[5]
    assert row["verdict"] == "not run" and row["command"] == (
        "python -m kit reproduce --only tables_of_the_papers --seeds 0 1 --set tables=clirat-1 "
        "epochs=24"
    )
    assert parameter_cells.check_parameters(
        parameter_cells.notebook_parameters(
            notebook_jobs.choose_notebooks(["tables_of_the_papers"])[0]
        ),
        {"tables": "clirat-1"},
    )
    plant(monkeypatch, lambda need, seed: 0.5)
    other = compare("clirat", seeds=SEEDS).loc[14]  # T2 less T1: WRN less ResNet
    assert (
        other["verdict"] == "not run" and "one of each" in other["here"] and other["command"] == ""
    )


def test_most_counts_what_was_not_run_both_ways(monkeypatch):
    """Claim 83, CIFAR-10: of 50 cells the ten of one attack are not run. All 40 better: most are,
    whatever the other ten show; 12 better and 28 worse: at most 22 of 50 can be.
    """

    def better_in(*classes):
        def accuracy(need, seed):
            if need.ask.attack == "l2bia":
                return None
            return 0.5 + 0.3 * (need.method == "csa") * (1 if need.protected in classes else -1)

        plant(monkeypatch, accuracy)
        cells = Cells([need for table in (2, 3, 4) for need in grid("csa", table)], SEEDS)
        [statement] = measure_rule(cells, read_rules()[83][0])
        return statement.sum.value, statement.verdict(1), statement.sum.text

    value, verdict, text = better_in(*range(10))
    assert (value, verdict) == (40, "holds") and "(40 run)" in text
    assert better_in(0, 1, 2)[:2] == (12, "fails")
    assert better_in(*range(6))[:2] == (24, "undecided")


def test_verdicts_turn_where_they_say():
    def verdict(keeps: int, of: int) -> str:
        draws = np.arange(2000) < keeps
        return Statement(MeasuredSum("x", seeds=3), "> 0", draws, draws).verdict(of)

    assert [verdict(keeps, 1) for keeps in (1950, 1949, 51, 50, 0)] == [
        "holds",
        "undecided",
        "undecided",
        "fails",
        "fails",
    ]
    assert [verdict(keeps, 10) for keeps in (1950, 6, 5)] == ["holds", "undecided", "fails"]
    assert Statement(MeasuredSum("x"), "> 0").verdict(1) == "not run"


@dataclass(frozen=True)
class PartlyRun:
    """Sums of which the first `run` are there: the first keeps its bound in a fiftieth of draws."""

    run: int
    asked: list[str] = field(default_factory=list)

    def measure(self, expression):
        self.asked.append(expression.text)
        place = len(self.asked) - 1
        if place >= self.run:
            return MeasuredSum(expression.text, why="its runs are not there yet")
        draws = np.where(np.arange(2000) < (40 if place == 0 else 1000), 1.0, -1.0)
        return MeasuredSum(expression.text, -1.0, draws, n=100, seeds=3)


def test_only_statements_that_are_tried_make_each_other_stricter():
    """A fiftieth is too much for one of several that chance may break, and enough for one alone,
    whatever others were not run.
    """
    rules = read_rules()[71]
    one, two = PartlyRun(1), PartlyRun(2)
    assert decide_by_rules(one, rules).verdict == "fails" and len(one.asked) > 20
    assert decide_by_rules(two, rules).verdict == "undecided"


def test_a_handful_of_images_decides_nothing(monkeypatch):
    """Of 400 images four more are right:

    undecided, though none went the other way; twelve more confirm.
    """
    for more, verdict in ((0, "undecided"), (4, "undecided"), (12, "holds")):
        plant(
            monkeypatch, lambda need, seed, more=more: 0.5 + more / 400 * (need.method == "clirat")
        )
        assert compare("clirat", seeds=SEEDS).loc[5, "verdict"] == verdict
    draws = measured_rules.draw_accuracy(np.full((1, 20), True), np.full(20, True), False)
    assert draws.max() <= 1 and draws.mean() == pytest.approx(21 / 22, abs=0.01)


def test_noise_alone_refutes_neither_an_order_nor_a_range(monkeypatch):
    """Networks of equal accuracy, right on different images of 100: VIR-AT's settings neither rise
    nor differ, and their range of several points is no proof that the true one is above 1. One
    network 30 points worse is.
    """

    def observed(need, seed, worse=()):
        dice = np.random.default_rng(
            len(str(need.overrides)) * 100 + int(sum(need.overrides.values()))
        )
        right = dice.random(100) < 0.5
        return (
            SimpleNamespace(key="a"),
            right & ~(np.arange(100) < 60 * (need.overrides in worse)),
            np.full(100, True),
        )

    monkeypatch.setattr(measured_rules, "observed", observed)
    [flat] = measure_rule(Cells(grid("vir", 11), SEEDS), read_rules()[49][2])
    assert flat.sum.value > 1 and flat.parts == 72 and flat.verdict(1) == "undecided"
    monkeypatch.setattr(
        measured_rules,
        "observed",
        lambda need, seed: observed(need, seed, [{"criterion.alpha": 3}]),
    )
    [uneven] = measure_rule(Cells(grid("vir", 11), SEEDS), read_rules()[49][2])
    assert uneven.verdict(1) == "fails"
    plant(monkeypatch, lambda need, seed: 0.5)
    steps = measure_rule(Cells(grid("vir", 11), SEEDS), read_rules()[49][0])
    assert {(step.sum.value, step.verdict(5)) for step in steps} == {(0, "undecided")}


def test_intervals_cover():
    """Of 300 planted pairs with a known difference 95 % intervals hold it about as often as they
    say, with images drawn and one seed, and with three or five seeds drawn as well.
    """
    for seeds, least in ((1, 0.92), (3, 0.93), (5, 0.93)):
        dice, covered, truth = np.random.default_rng(0), 0, None
        for _ in range(300):
            images = dice.normal(0, 1.0, 150)
            shift = dice.normal(0, 0.2 if seeds > 1 else 0, (2, seeds, 1))
            right = (
                images
                + dice.normal(0, 0.5, (2, seeds, 150))
                + shift
                + np.array([0.3, 0.0])[:, None, None]
                > 0
            )
            spread = (1 + 0.25 + (0.04 if seeds > 1 else 0)) ** 0.5
            truth = 0.5 * (1 + math.erf(0.3 / spread / 2**0.5)) - 0.5
            draws = measured_rules.draw_accuracy(
                right[0], np.full(150, True), True
            ) - measured_rules.draw_accuracy(right[1], np.full(150, True), False)
            low, high = np.quantile(draws, (0.025, 0.975))
            covered += low <= truth <= high
        assert covered / 300 > least, (seeds, covered)


def test_sums_share_images_and_seeds(monkeypatch):
    """The difference of a full and a strong attack is taken on the first images; seeds that one
    side lacks are left out.
    """

    def observed(need, seed):
        if need.method == "at" and seed == 2:
            return None
        n = need.ask.n or 300
        return SimpleNamespace(key=need.method), np.arange(n) >= 40, np.full(n, True)

    monkeypatch.setattr(measured_rules, "observed", observed)
    found = measure(Cells(grid("clirat", 1), [0, 1, 2]), "T1 at pgd100 - T1 at aa")
    assert (found.value, found.n, found.seeds) == (0, 100, 2)
    whole = measure(Cells(grid("clirat", 1), [0, 1, 2]), "T1 clirat pgd100 - T1 at pgd20")
    assert (whole.n, whole.seeds, whole.runs) == (300, 2, {"at", "clirat"})
    one_class = [need for need in grid("csa", 2) if need.protected == 4]
    monkeypatch.setattr(
        measured_rules,
        "observed",
        lambda need, seed: (
            SimpleNamespace(key="a"),
            np.full(50, True),
            np.arange(50) % 10 == need.protected,
        ),
    )
    assert (
        measure(
            Cells(one_class, [0]), "T2 csa pgd protected_class=4 - T2 std fgsm protected_class=4"
        ).n
        == 5
    )
    monkeypatch.setattr(measured_rules, "observed", observed)
    assert measure(Cells(grid("clirat", 1), [2]), "T1 at pgd100 - T1 at aa").missing_tables == {
        "clirat-1"
    }


def test_the_larger_of_two_counts(monkeypatch):
    plant(
        monkeypatch, lambda need, seed: {"mail-at": 0.4, "mail-trades": 0.6, "at": 0.5}[need.method]
    )
    assert measure(
        Cells(grid("mail", 2), [0]), "T2 mail-at aa / T2 mail-trades aa - T2 at aa"
    ).value == pytest.approx(10)


# ------------------------------------------------------------------------------ figures and command


def record(number, verdict, here="what was seen", claim="a claim in words"):
    """What a figure records of a claim, as a notebook's stamp carries it."""
    value = {"holds": 0.2, "undecided": 0.0, "fails": -0.2}[verdict]
    estimate = Estimate("gap", "> 0", value, value - 0.1, value + 0.1)
    return Claim(claim, "", here, (estimate,), number=number).record()


def stamp(home, records, *, seeds=SEEDS, **options):
    """Leave the stamps of a notebook that was finished with each of several seeds."""
    for seed in seeds:
        stamp_one(home, records, folder=f"seed-{seed}", seed=seed, **options)


def stamp_one(
    home, records, *, notebook="02_confused_labels", recipe="digits", folder="", **parameters
):
    """Leave the stamp of a finished notebook in the folder of a recipe's results."""
    place = home / "figures" / "out" / recipe.replace(":", "-") / folder
    place.mkdir(parents=True, exist_ok=True)
    content = {
        "notebook": notebook,
        "parameters": {"recipe": recipe, "seed": 0, "overrides": "", **parameters},
        "runs": {"at on digits": f"key-{notebook}{folder}"},
        "verdicts": records,
    }
    (place / f"{notebook}.json").write_text(json.dumps(content))


@pytest.fixture
def figures_alone(monkeypatch):
    """No table has runs, so that what is decided is decided by figures."""
    monkeypatch.setattr(measured_rules, "observed", lambda need, seed: None)


def test_figures_decide_claims_by_number(fresh_home, figures_alone):
    before = compare("clirat")
    assert (before.drop(index=3)["verdict"] == "not run").all()
    assert before.loc[1, "command"] == "python -m kit reproduce --only 02_confused_labels"
    assert before.loc[1, "here"] == "drawn by confused-labels, confused-label-counts"
    records = [
        record(1, "fails", "ratio 0.4"),
        record(2, "holds"),
        record(17, "undecided"),  # a claim of another paper
        record(None, "fails", claim="of no claim that is listed (CLIRAT Fig. 2)"),
    ]
    stamp(fresh_home, records)
    (fresh_home / "figures/out/digits/confused-labels.json").write_text(
        json.dumps({"figure": "confused-labels", "claims": []})
    )
    after = compare()
    assert after.loc[[1, 2, 17], "verdict"].tolist() == ["fails", "holds", "undecided"]
    assert after.drop(index=[1, 2, 17, *proofs()])["verdict"].eq("not run").all()
    keys = [f"key-02_confused_labelsseed-{seed}" for seed in SEEDS]
    assert after.loc[1, "runs"] == keys and after.loc[1, "command"] == ""
    assert after.loc[1, "here"] == (
        "fails (3 seeds): a claim in words: gap -0.2 [-0.3, -0.1], expected > 0"
    )
    [statement] = after.loc[1, "statements"]
    assert statement["seeds"] == 3 and statement["estimates"][0]["value"] == pytest.approx(-0.2)
    four = compare(recipe="digits").loc[4]  # its notebook is not finished
    assert four["here"] == "drawn by matched-pairs"
    stamp(fresh_home, [record(94, "holds")], notebook="13_scores_and_distance")
    four = compare().loc[4]  # and now it is, and said nothing of it
    assert four["command"] == "" and four["here"].endswith("with no verdict on this")
    for path in (fresh_home / "figures/out/digits").rglob("13_scores_and_distance.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "figures": ["score-ranks.png"]}))
    four = compare().loc[4]  # it left this figure out
    assert four["here"] == "drawn by matched-pairs"
    assert "--only 13_scores_and_distance" in four["command"]


def test_what_mathematics_decides_waits_for_no_run_but_lets_a_run_speak(fresh_home, figures_alone):
    alone = compare()
    for number, proof in proofs().items():
        assert alone.loc[number, "verdict"] == proof.verdict
        assert alone.loc[number, "here"].endswith(proof.because)
        assert alone.loc[number, "command"] == ""
    assert alone.loc[105, "verdict"] == "not run", "no proof of it is at hand"
    stamp(fresh_home, [record(53, "fails", claim="a run that contradicts")])
    assert compare().loc[53, "verdict"] != "holds"


def test_no_claim_inherits_the_verdict_of_another(fresh_home, figures_alone):
    """Claims that share a figure, a paragraph and a notebook have each its own verdict."""
    records = [
        record(73, "fails", claim="near-zero parameters (CSA Figs. 3, 4)"),
        record(74, "holds", claim="three orders (CSA Figs. 3, 4)"),
        record(77, "holds", claim="fuzziness starts near 0.7 (CSE Fig. 5b)"),
        record(78, "fails", claim="it falls (CSE Fig. 5b)"),
        record(None, "fails", claim="more robust (CSE Fig. 5c)"),
        record(33, "holds", claim="the hard classes gain (VIR s. 5.5, Fig. 2)"),
    ]
    stamp(fresh_home, records, notebook="04_min_max")
    found = compare()["verdict"]
    assert found[[73, 74, 77, 78, 33]].tolist() == [
        "fails",
        "holds",
        "holds",
        "fails",
        "holds",
    ]
    assert found.drop({73, 74, 77, 78, 33, *proofs()}).eq("not run").all()


def test_seeds_are_combined(fresh_home, figures_alone):
    """Their mean decides, and its interval is as wide as their spread and their images make it."""
    for seed, verdict in enumerate(("holds", "undecided", "holds")):
        stamp(fresh_home, [record(1, verdict)], seeds=[seed])
    found = compare("clirat").loc[1]
    [statement] = found["statements"]
    [estimate] = statement["estimates"]
    assert found["verdict"] == "undecided" and statement["seeds"] == 3
    assert "If the number stays, the claim then holds: a claim in words: gap" in found["wanted"]
    assert estimate["value"] == pytest.approx(0.4 / 3)
    spread = stats.t.ppf(0.975, 2) * np.std([0.2, 0.0, 0.2], ddof=1) / 3**0.5
    assert estimate["low"] == pytest.approx(0.4 / 3 - math.hypot(spread, 0.1))
    assert found["runs"] == [f"key-02_confused_labelsseed-{seed}" for seed in range(3)]
    for seed in range(3, 40):
        stamp(fresh_home, [record(1, "fails")], seeds=[seed])
    assert compare("clirat").loc[1, "verdict"] == "fails"
    assert compare("clirat", seeds=(0, 1, 2)).loc[1, "verdict"] == "undecided"


def test_fewer_than_three_seeds_decide_nothing(fresh_home, figures_alone, monkeypatch):
    stamp(fresh_home, [record(1, "holds")], seeds=[0, 1])
    found = compare("clirat").loc[1]
    assert found["verdict"] == "undecided" and "2 seeds" in found["here"]
    assert found["wanted"] == "3 seeds; it has 2 seeds"
    assert "What would decide it: 3 seeds" in report(compare("clirat"))
    stamp(fresh_home, [record(1, "holds")], seeds=[2])
    assert compare("clirat").loc[1, "verdict"] == "holds"
    # arithmetic needs no seeds
    exact = Claim("by arithmetic", "", "0.3", exact=True, number=3).record()
    stamp(fresh_home, [exact], notebook="01_one_loop", seeds=[0])
    assert compare("clirat").loc[3, "verdict"] == "holds"
    # nor do tables decide by one seed
    plant(monkeypatch, lambda need, seed: 0.5 + 0.2 * (need.method == "clirat"))
    assert compare("clirat", seeds=(0, 1)).loc[5, "verdict"] == "undecided"
    assert compare("clirat", seeds=(0, 1, 2)).loc[5, "verdict"] == "holds"


def test_statements_on_one_claim_share_the_chance_of_error(fresh_home, figures_alone):
    """What fails by itself is undecided as one of nine: of so many one breaks its bound by luck."""
    estimate = Estimate("gap", "> 0", -0.21, -0.41, -0.01)  # 2.06 standard errors below
    ones = [Claim(f"statement {i}", "", "", (estimate,), number=1) for i in range(9)]
    stamp(fresh_home, [ones[0].record()])
    assert compare("clirat").loc[1, "verdict"] == "fails"
    stamp(fresh_home, [one.record() for one in ones])
    found = compare("clirat").loc[1]
    assert [record["verdict"] for record in found["statements"]] == ["undecided"] * 9
    assert found["verdict"] == "undecided"


def test_an_estimate_over_several_seeds_speaks_alone(fresh_home, figures_alone):
    """Three seeds at once decide; those that share its seeds are no further evidence."""
    wide = Claim("a", "", "", (Estimate("gap", "> 0", 0.2, 0.1, 0.3),), number=1, seeds=3)
    stamp(fresh_home, [wide.record()], seeds=[0])
    found = compare("clirat").loc[1]
    assert found["verdict"] == "holds" and "(3 seeds)" in found["here"]
    other = Claim("a", "", "", (Estimate("gap", "> 0", 0.8, 0.7, 0.9),), number=1, seeds=3)
    stamp(fresh_home, [other.record()], seeds=[1])
    [statement] = compare("clirat").loc[1, "statements"]
    assert statement["seeds"] == 3 and statement["estimates"][0]["value"] == pytest.approx(0.2)


def test_the_record_says_what_compare_says(fresh_home, figures_alone, monkeypatch):
    """Claim for claim, with what its runs were trained with."""
    stamp(fresh_home, [record(1, "fails"), record(2, "holds"), record(None, "holds", claim="own")])
    trained = {"versions": {"torch": "2.11"}, "commit": "abc"}
    run = SimpleNamespace(record=trained, check_revision=lambda: None)
    monkeypatch.setattr("kit.papers.record.find_run", lambda key: run)
    path = fresh_home / "measured.csv"
    write_record(measure_scale("digits"), path)
    board, compared = scoreboard(path), compare()
    assert board["digits"].tolist() == compared["verdict"].tolist()
    assert set(read_record(path)["torch"]) == {"2.11"} and len(read_record(path)) == 3


def test_nothing_is_judged_on_a_dead_network(fresh_home, figures_alone):
    """A seed whose run learned nothing is left out, and counted."""
    stamp(fresh_home, [record(1, "holds")], seeds=range(3))
    dead = replace(
        Claim("a claim in words", "", "", (Estimate("gap", "> 0", 9.0, 8.0, 10.0),), number=1),
        dead=("at on digits",),
    )
    assert dead.reading == "undecided"
    stamp(fresh_home, [dead.record()], seeds=[3])
    found = compare("clirat").loc[1]
    assert found["verdict"] == "holds" and "1 that learned nothing left out" in found["here"]
    assert found["statements"][0]["estimates"][0]["value"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    "words, verdict",
    [
        (["holds"], "holds"),
        (["holds", "holds"], "holds"),
        (["holds", "undecided"], "undecided"),
        (["holds", "not run"], "undecided"),
        (["not run", "not run"], "not run"),
        (["undecided", "not run", "fails"], "fails"),
    ],
)
def test_verdicts_are_combined(words, verdict):
    assert combine_verdicts(words) == combine_verdicts(words[::-1]) == verdict


def test_a_claim_about_other_data_or_another_network_is_not_run_here(fresh_home, figures_alone):
    """Claim 87 is about ResNet-18 on CIFAR-100: two convolutions on digits say nothing of it."""
    stamp(fresh_home, [record(87, "holds"), record(78, "holds")], notebook="04_min_max")
    found = compare("csa")
    assert found.loc[[78, 87], "verdict"].tolist() == ["holds", "not run"]
    assert (
        found.loc[87, "here"]
        == "it is about resnet18 on cifar100, and these runs are cnn on digits"
    )
    assert found.loc[87, "runs"] == [] and found.loc[87, "statements"] == []
    assert found.loc[87, "command"] == (
        "python -m kit reproduce --only 04_min_max --recipe cifar100:paper"
    )
    # the data set alone is not enough
    stamp(fresh_home, [record(87, "holds")], notebook="04_min_max", recipe="cifar100")
    assert compare("csa", recipe="cifar100").loc[87, "verdict"] == "not run"
    # nor is another network that was put into the right recipe
    options = {"notebook": "04_min_max", "recipe": "cifar100:paper"}
    stamp(fresh_home, [record(87, "holds")], overrides="model=cnn", **options)
    row = compare("csa", recipe="cifar100:paper").loc[87]
    assert row["verdict"] == "not run" and "--recipe cifar100:paper" in row["command"]
    stamp(fresh_home, [record(87, "holds")], **options)
    assert compare("csa", recipe="cifar100:paper").loc[87, "verdict"] == "holds"
    stamp(
        fresh_home,
        [record(87, "fails")],
        notebook="04_min_max",
        recipe="cifar100",
        overrides="model=resnet18",
    )
    row = compare("csa", recipe="cifar100", overrides={"model": "resnet18"}).loc[87]
    assert row["verdict"] == "fails"


def test_a_network_of_ones_own_decides_no_claim_of_a_paper(fresh_home, figures_alone):
    stamp(fresh_home, [record(1, "holds")])
    for path in (fresh_home / "figures/out/digits").rglob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "adopted": True}))
    assert compare("clirat").loc[1, "verdict"] == "not run"


def test_stamps_of_other_recipes_and_of_older_kits_are_left_out(
    fresh_home, figures_alone, monkeypatch
):
    """KIT_OUT may hold the results of several recipes; a record without number names no claim."""
    monkeypatch.setenv("KIT_OUT", str(fresh_home / "figures" / "out" / "mnist"))
    stamp(fresh_home, [record(1, "holds")], recipe="mnist")
    assert compare("clirat", recipe="mnist").loc[1, "verdict"] == "holds"
    assert compare("clirat").loc[1, "verdict"] == "not run"
    old = {name: value for name, value in record(1, "holds").items() if name != "number"}
    stamp(fresh_home, [old], recipe="mnist")
    row = compare("clirat", recipe="mnist").loc[1]
    assert row["verdict"] == "not run" and row["command"].endswith("--recipe mnist")


def test_commands_name_notebooks_that_exist(fresh_home, figures_alone):
    listed = claims()
    for number, row in compare().iterrows():
        if row["command"] and listed.loc[number, "decided_by"] != "tables":
            only = row["command"].split("--only ")[1].split(" --")[0].split()
            assert [path.stem for path in notebook_jobs.choose_notebooks(only)] == only


def test_the_command(runs, capsys, tmp_path):
    """`compare` finds the runs that `reproduce --only tables_of_the_papers` makes with the same
    words, in 100 columns.
    """
    path = tmp_path / "found.json"
    assert (
        command_line.main(
            [
                "compare",
                "clirat",
                "--seeds",
                "0",
                "1",
                "--set",
                *SETTINGS.split(),
                "--json",
                str(path),
            ]
        )
        == 0
    )
    text = capsys.readouterr().out
    assert all(
        len(line) <= 100 or line.strip().startswith("python -m kit") for line in text.splitlines()
    )
    assert (
        "11 clirat: CLIRAT is more robust at no cost" in text
        and "on digits" in text
        and "printed numbers alone" in text
    )
    [eleven] = [record for record in json.loads(path.read_text()) if record["number"] == 11]
    accuracy = {
        m: np.mean(
            [kit.evaluate(runs[m, s], ["natural"]).loc["natural", "accuracy"] for s in (0, 1)]
        )
        for m in ("clirat", "at")
    }
    first, second = eleven["statements"]
    assert first["value"] == pytest.approx(100 * (accuracy["clirat"] - accuracy["at"]), abs=1e-5)
    assert second["why"].endswith("digits stands for resnet18 on cifar10 alone"), "T2 is WRN's"
    assert sorted(eleven["runs"]) == sorted(run.key for run in runs.values())
    assert command_line.main(["compare", "clir"]) == 2
    assert "clirat, csa, mail, mr, vir" in capsys.readouterr().err


def test_a_batch_knows_what_is_missing(runs):
    [job] = notebook_jobs.plan_jobs(
        ["tables_of_the_papers"], {"tables": "clirat-1", **TINY}, [0, 1], None
    )
    asks = {plan.key: asked for plan, asked in job.values.evaluations}
    assert len(asks) == 18 and asks[runs["at", 1].key] == [
        Evaluation("natural"),
        Evaluation("pgd20"),
        Evaluation("pgd100"),
        Evaluation("cw20"),
        Evaluation("apgd-ce", 100),
        Evaluation("aa", 100),
    ]
    groups = batch_tasks.group_evaluations([job], {})
    missing = {plan.key: some for group in groups.values() for plan, some in group}
    assert len(missing) == 18
    assert missing[runs["at", 1].key] == asks[runs["at", 1].key][2:], "natural, pgd20 are kept"


@pytest.mark.slow
def test_the_notebook(home, tmp_path):
    """Through `reproduce`, from nothing:

    runs and their attacks in workers, tables and stamp by the notebook.
    """
    jobs = notebook_jobs.plan_jobs(
        ["tables_of_the_papers"], {"tables": "clirat-1", "strong_n": 3, **TINY}, [0], tmp_path
    )
    assert reproduction.reproduce(jobs, Place(torch.device("cpu"), 2)) == 0
    stamp = json.loads((tmp_path / "tables_of_the_papers.json").read_text())
    assert len(stamp["runs"]) == 9 and "clirat-table-1.md" in stamp["figures"]
    assert "not run" not in (tmp_path / "clirat-table-1.md").read_text()
