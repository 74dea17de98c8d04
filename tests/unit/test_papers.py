"""The papers as data: cells as printed, links as ids, verdicts recomputed from printed numbers."""

from __future__ import annotations

import ast
import json
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from kit.core.errors import KitError
from kit.data.datasets import DATA
from kit.figures.table import FIGURES, NUMBERS
from kit.methods.table import METHODS, check_override
from kit.models.architectures import find_builder
from kit.papers import consistency, printed_data, printed_rules
from kit.papers.consistency import copied_cells, resolution, spread, text_against_table
from kit.papers.printed_data import (
    PAPERS,
    figures,
    hyper_parameters,
    read_table,
    results,
    table,
    tables,
    unmatched,
)
from kit.papers.printed_rules import checks, claims, value
from kit.papers.rule_language import (
    REDUCTIONS,
    STEP_BOUNDS,
    TAKES,
    Bound,
    Expression,
    Rule,
    Term,
    fill_expression,
    parse_bound,
    parse_expression,
    parse_rule,
    read_rules,
)
from tests.helpers.settings import ROOT

CELLS = {
    "clirat": {"T1": 54, "T2": 54},
    "mail": {"T1": 27, "T2": 40, "T3": 40},
    "vir": {
        "T1": 49,
        "T2": 49,
        "T3": 42,
        "T4": 21,
        "T5": 14,
        "T6": 24,
        "T7": 24,
        "T8": 16,
        "T9": 12,
        "T10": 12,
        "T11": 40,
        "T12": 36,
    },
    "mr": {"T1": 50, "T2": 50, "T3": 18, "T4": 6, "T5": 84, "T6": 84, "T7": 24, "T8": 36},
    "csa": {"T2": 240, "T3": 240, "T4": 72},
}
TABLES = [(paper, table) for paper, sizes in CELLS.items() for table in sizes]

# Read off the papers' tables by eye: (paper, words that name the cell, mean, standard deviation or
# None).
SPOTS = [
    ("clirat", "T1 at natural", 85.64, 0.25),
    ("clirat", "T1 clirat pgd20", 60.31, 0.16),
    ("clirat", "T1 clirat aa", 45.50, 0.90),
    ("clirat", "T1 mail-mart apgd_ce", 52.43, 1.47),
    ("clirat", "T2 clirat aa", 50.04, 0.10),
    ("clirat", "T2 mail-mart natural", 85.91, 0.10),
    ("clirat", "T2 clir-trades cw", 54.86, 0.15),
    ("clirat", "T2 clirat apgd_ce", 62.45, 0.55),
    ("mail", "T1 mail-at criterion=pm_adv aa", 44.10, 0.21),
    ("mail", "T1 gairat aa", 36.32, 0.57),
    ("mail", "T2 mail-at natural", 84.52, 0.46),
    ("mail", "T2 mail-trades aa", 50.60, 0.22),
    ("mail", "T2 gairat aa", 33.35, 0.57),
    ("mail", "T3 awp natural", 57.55, 0.23),
    ("mail", "T3 fat natural", 89.70, 0.17),
    ("mail", "T3 mail-at pgd100", 58.86, 0.25),
    ("vir", "T1 mail-at natural", 84.32, 0.46),
    ("vir", "T1 vir-at aa", 48.21, 0.08),
    ("vir", "T2 gairat cw", 44.96, 0.2),
    ("vir", "T3 svhn vir-trades aa", 50.06, 0.22),
    ("vir", "T3 cifar100 mail-at pgd100", 27.62, 0.27),
    ("vir", "T4 mart aa", 19.23, 0.23),
    ("vir", "T5 vir-at spsa", 62.59, 0.21),
    ("vir", "T7 component=full natural", 82.03, 0.13),
    ("vir", "T8 vir-at natural", 92.69, 0.25),
    ("vir", "T9 beta=0.1 cw", 52.20, 0.19),
    ("vir", "T11 alpha=7 gamma=10 aa", 48.17, 0.13),
    ("vir", "T12 alpha=2 natural", 82.13, 0.13),
    ("vir", "T12 gamma=4 natural", 81.91, 0.09),
    ("vir", "T12 gamma=4 pgd100", 54.42, 0.13),
    ("vir", "T12 gamma=4 cw", 52.70, 0.07),
    ("vir", "T12 gamma=4 aa", 50.34, 0.11),
    ("mr", "T1 resnet18 mr-mail pgd100", 57.96, 0.13),
    ("mr", "T1 wrn-34-10 wmmr natural", 88.03, 0.12),
    ("mr", "T2 resnet18 mr-mail tau=3 pgd100", 31.23, 0.16),
    ("mr", "T3 cifar10 tau=4 apgd_ce", 62.09, None),
    ("mr", "T5 resnet18 at natural", 83.84, 0.171),
    ("mr", "T5 wrn-34-10 gairat aa", 43.12, 2.42),
    ("mr", "T6 resnet18 mr-mail fgsm", 33.47, 0.11),
    ("mr", "T8 cifar100 tau=3 fgsm", 33.47, 0.11),
    ("csa", "T2 std l2bia protected_class=0", 0.9926, None),
    ("csa", "T2 cse pgd protected_class=9", 0.2096, None),
    ("csa", "T3 cse fgsm protected_class=0", 0.4269, None),
    ("csa", "T3 csa cw protected_class=4", 0.0, None),
    ("csa", "T4 std fgsm protected_class=9", 0.0262, None),
]

# The verdicts that reading the tables by hand came to, where the reading leaves no choice.
VERDICTS = dict.fromkeys(
    (
        5,
        6,
        9,
        18,
        21,
        23,
        27,
        28,
        29,
        30,
        35,
        36,
        37,
        38,
        39,
        40,
        41,
        42,
        43,
        45,
        46,
        47,
        48,
        49,
        51,
        58,
        59,
        60,
        61,
        62,
        63,
        64,
        65,
        66,
        68,
        69,
        72,
        80,
        81,
        82,
        83,
        84,
        86,
    ),
    "holds",
)
VERDICTS |= dict.fromkeys((7, 8, 10, 14, 22, 31, 44, 50, 52, 67, 71), "partly") | {11: "fails"}
# (claim, said, what the tables come to): the slips between text and tables.
SLIPS = {
    (21, "0.14", 0.47),
    (24, "0.55", 0.59),
    (25, "3.11", 2.80),
    (25, "5.70", 32.15),
    (25, "8.45", 8.47),
    (26, "1.63", 2.20),
    (26, "16.68", 17.25),
    (36, "5.0", 4.85),
    (36, "5.0", 4.84),
    (46, "2.97", 2.79),
}


def one(paper: str, words: str) -> pd.Series:
    """The row of `results` that a cell's words name, found without the rules' own look-up."""
    cells = results(paper)
    for word in words.split():
        cells = cells[
            [
                word
                in (
                    c.table,
                    c.method,
                    c.attack,
                    c.dataset,
                    c.model,
                    c.checkpoint,
                    *c.variant.split(),
                )
                for c in cells.itertuples()
            ]
        ]
    assert len(cells) == 1, words
    return cells.iloc[0]


# -------------------------------------------------------------------------------------------- cells


def test_every_cell_is_there_and_there_once():
    cells = results()
    assert {p: cells[cells.paper == p].groupby("table").size().to_dict() for p in PAPERS} == CELLS
    assert len(cells) == 1458 and cells["mean"].notna().sum() == 1438
    assert not cells.duplicated(
        ["paper", "table", "dataset", "model", "checkpoint", "method", "variant", "attack"]
    ).any()
    blank = cells[cells["mean"].isna()]
    assert (
        set(blank["attack"]) == {"cw"}
        and set(blank["table"]) == {"T3"}
        and (blank["printed"] == "").all()
    )
    assert cells.query("unit == 'percent'")["mean"].between(10, 95).all()
    assert cells.query("unit == 'fraction'")["mean"].dropna().between(0, 1).all()
    assert cells.query("paper != 'csa'")["printed"].str.match(r"\d\d\.\d\d( ± \d\.\d+)?$").all()


@pytest.mark.parametrize("paper, words, mean, std", SPOTS)
def test_spot_values(paper, words, mean, std):
    row = one(paper, words)
    assert row["mean"] == mean
    assert std is None or row["std"] == std
    assert float(printed_rules.value(paper, words)) == mean


@pytest.mark.parametrize("paper, name", TABLES)
def test_a_wide_table_is_its_cells(paper, name):
    wide, cells = table(paper, name), results(paper).query("table == @name")
    assert wide.index.is_unique and not wide.isna().any().any()
    assert wide.size == len(cells) == len(wide.attrs["cells"])
    assert sorted(wide.to_numpy().ravel()) == sorted(cells["printed"])
    assert list(wide.columns) == list(cells["attack"].unique())
    where = {tuple(cell[level] for level in wide.index.names): cell for cell in wide.attrs["cells"]}
    for index, cell in where.items():
        assert wide.loc[index if len(index) > 1 else index[0], cell["attack"]] == cell["printed"]


def test_wide_tables_read_as_printed():
    assert table("clirat", 1).loc["clirat", "pgd20"] == "60.31 ± 0.16"
    assert table("mr", "T1").loc[("wrn-34-10", "mr-mail"), "aa"] == "48.92 ± 0.30"
    assert table("mail", 1).loc[("mail-at", "pm_nat"), "pgd100"] == "55.00 ± 0.32"
    assert table("vir", 11).index.names == ["method", "alpha", "gamma"]
    assert table("csa", "III").loc[("7", "cse"), "cw"] == ""
    assert (
        table("vir", 3).loc["svhn"].index.tolist() == table("vir", 3).loc["cifar100"].index.tolist()
    )
    assert (
        table("vir", 3).attrs["caption"]
        == "VIR, T3: resnet18; accuracy as percentage, mean ± standard deviation, as printed"
    )
    assert pd.concat([table("mr", 1), table("mr", 2)]).shape == (20, 5)


@pytest.mark.parametrize("name", [2, "2", "T2", "t2", "II", "Table II"])
def test_a_table_has_many_names(name):
    assert table("csa", name).equals(table("csa", "T2"))


def test_returned_frames_are_the_callers_own():
    before = results("vir")
    for load_again in (results, claims, checks, figures, hyper_parameters):
        frame = load_again("vir")
        frame[frame.columns[0]] = "spoilt"
        assert not (load_again("vir")[frame.columns[0]] == "spoilt").any()
    assert results("vir").equals(before)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: results("virr"), ["virr", "Did you mean 'vir'", "clirat, csa, mail, mr, vir"]),
        (lambda: tables("MAIL-AT"), ["no paper", "clirat"]),
        (lambda: table("vir", 13), ["table of vir '13'", "T12"]),
        (lambda: table("csa", 1), ["table of csa '1'", "T2, T3, T4"]),
        (lambda: table("mail", 1.0), ["table of mail '1.0'", "T1, T2, T3"]),
        (lambda: resolution("mail", "IV"), ["table of mail 'IV'"]),
        (lambda: claims("all"), ["no paper 'all'"]),
        (lambda: figures(1), ["no paper '1'"]),
        (lambda: text_against_table("x"), ["no paper 'x'"]),
        (lambda: value("x", "T1 at aa"), ["no paper 'x'"]),
        (
            lambda: hyper_parameters("vir", "clirat"),
            ["method of vir with settings 'clirat'", "vir-at"],
        ),
        (lambda: hyper_parameters(method="mail"), ["no method with settings 'mail'", "mail-at"]),
        (lambda: spread("vir-at"), ["method that two papers print", "vir-at", "mail-at"]),
        (lambda: value("mail", "T1 mail-at aa"), ["names 2 cells", "variant"]),
        (lambda: value("mail", "T2 mail-at fgsm"), ["names 0 cells"]),
        (lambda: value("csa", "T3 std cw protected_class=9"), ["is blank"]),
    ],
)
def test_errors_say_what_there_is(call, words):
    with pytest.raises(KitError) as error:
        call()
    for word in words:
        assert word in str(error.value)


# ----------------------------------------------------------------------- methods, settings, figures


def test_every_named_row_exists_and_takes_its_overrides():
    cells = results()
    for row, overrides in cells[["row", "overrides"]].drop_duplicates().itertuples(index=False):
        for pair in overrides.split():
            path, _, number = pair.partition("=")
            check_override(METHODS[row], path)
            changed = METHODS[row].override(
                path, int(number) if path.endswith("protected") else float(number)
            )
            assert (
                changed.hyper_parameters()[path]
                == float(number)
                != METHODS[row].hyper_parameters()[path]
            )
        assert not row or row in METHODS


def test_every_printed_row_has_a_row_of_methods():
    """Without one its cells could never be measured, nor the claims on them be confirmed."""
    assert unmatched() == []


def test_a_cell_without_overrides_is_at_the_rows_own_values():
    """VIR's α, γ, β and MR's τ in a cell are what its row computes with, after the overrides."""
    places = {
        "alpha": "criterion.alpha",
        "gamma": "criterion.gamma",
        "beta": "weight.offset",
        "tau": "criterion.tau",
        "protected_class": "loss.protected",
    }
    checked = 0
    for cell in results().query("variant != '' and row != 'std'").itertuples():
        own = METHODS[cell.row].hyper_parameters() if cell.row else {}
        own |= {
            path: float(number)
            for path, _, number in (pair.partition("=") for pair in cell.overrides.split())
        }
        for part, _, number in (pair.partition("=") for pair in cell.variant.split()):
            if part in places:
                assert own[places[part]] == float(number), cell
                checked += 1
    assert checked > 500


def test_settings():
    settings = hyper_parameters()
    assert len(settings) == 174 and set(settings["paper"]) == set(PAPERS)
    named = set(settings["row"]) - {""}
    assert named <= set(METHODS) and named >= {
        "clirat",
        "wmmr-mr",
        "cse-adv",
        "csa-l2",
        "vir-trades",
    }
    clirat = hyper_parameters("clirat", "clirat").query("model == 'resnet18'").iloc[0]
    stated = clirat[["epochs", "lr", "weight_decay", "gamma", "beta"]].tolist()
    assert stated == ["120", "0.01", "3.5e-3", "10", "-0.5"]
    assert set(hyper_parameters("mr", "wmmr-mr")["method"]) == {"wmmr"}
    assert set(hyper_parameters("mr", "at").query("model == 'wrn-34-10'")["weight_decay"]) == {
        "0.5e-4"
    }


# -------------------------------------------------------------------------------------------- links

# What a reader of the papers would ask for, and what the kit draws.
DRAWN = {
    "clirat-1": "confused-labels, confused-label-counts, leave-out, softmax-pair",
    "clirat-2": "pm-and-cl-pm",
    "clirat-3": "learning-curves",
    "clirat-4": "slope-and-offset",
    "clirat-5": "learning-curves-each",
    "mail-1": "critical-lps, pgd-against-cw, pgd-against-lmpgd, lps-starts",
    "mail-2": "decision-plane",
    "mail-3": "margin-regions",
    "mail-4": "pm-by-lps",
    "vir-1": "confusion",
    "vir-2": "classes-by-method",
    "vir-3": "class-weights",
    "mr-1": "same-margin",
    "mr-2": "margin-by-probability",
    "mr-3": "similarity-pair",
    "mr-4": "similarity-by-error",
    "csa-1": "training-stages",
    "csa-2": "attack-gallery",
    "csa-3": "parameters",
    "csa-4": "parameters-l2",
    "csa-5": "fuzziness",
    "csa-6": "fuzziness-layers",
}
PANELS = {
    "clirat-1a": "confused-labels",
    "clirat-1b": "leave-out",
    "clirat-1c": "softmax-pair",
    "clirat-1d": "softmax-pair",
    "mail-1a": "pgd-against-lmpgd",
    "mail-1b": "critical-lps",
    "mail-1c": "pgd-against-cw",
}


def drawn_in_notebooks() -> dict[str, set[str]]:
    """{figure of the kit: the notebooks whose code draws it by that name}."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        for node in ast.walk(ast.parse(code)):
            named = isinstance(node, ast.Call) and ast.unparse(node.func) == "study.draw"
            if named and isinstance(node.args[0], ast.Constant):
                found.setdefault(node.args[0].value, set()).add(path.stem)
    return found


def test_figures_name_the_kits_own():
    listed = figures()
    assert (listed[["shows", "statistic"]] != "").all().all()
    drawn = {f"{row.paper}-{row.figure}": row.drawn_by for row in listed.itertuples()}
    assert drawn == DRAWN
    single = {
        number: name for number, name in DRAWN.items() if number not in ("clirat-1", "mail-1")
    }
    assert dict(NUMBERS) == single | PANELS


def test_drawings_are_the_kits_figures_the_papers_and_the_notebooks():
    """A figure of the kit has its row in drawings.csv, with the notebook that draws it."""
    drawings = read_table("drawings")
    assert set(drawings["figure"]) == set(FIGURES), "every row of kit.FIGURES is in drawings.csv"
    assert drawings["figure"].is_unique
    numbered = set(zip(figures()["paper"], figures()["figure"], strict=True))
    own = drawings["paper"] == ""
    assert set(zip(drawings["paper"][~own], drawings["number"][~own], strict=True)) == numbered
    assert (drawings[own][["number", "panels"]] == "").all().all()
    assert drawings["panels"].str.fullmatch(r"([a-z]( [a-z])*)?").all()
    code = drawn_in_notebooks()
    for row in drawings.itertuples():
        assert row.notebook in code[row.figure], f"{row.notebook} does not draw {row.figure}"


def test_claims_name_tables_figures_data_and_networks():
    listed, names = claims(), {paper: set(tables(paper)) for paper in PAPERS}
    for number, claim in listed.iterrows():
        assert set(claim["figures"].split()) <= set(FIGURES), number
        read = {
            word
            for rule in read_rules().get(number, ())
            for expression in rule.expressions
            for term in expression.terms
            for cell in term.cells
            for word in cell.split()
            if word in names[claim["paper"]]
        }
        assert set(claim["tables"].split()) == read, number
        assert set(claim["datasets"].split()) <= set(DATA), number
        for model in claim["models"].split():
            find_builder(model)
        if claim["decided_by"] == "tables":  # the tables' own cells name data and networks
            assert claim["datasets"] == claim["models"] == "", number
        if claim["decided_by"] == "figure":
            assert claim["figures"], number
    assert (listed["tables"] != "").equals(listed["decided_by"] == "tables")
    assert listed.loc[87, ["datasets", "models"]].tolist() == ["cifar100", "resnet18"]


# ------------------------------------------------------------------------------------------- claims


def test_the_claims():
    listed = claims()
    assert listed.index.tolist() == list(range(1, 106))
    assert listed["decided_by"].value_counts().to_dict() == {
        "tables": 64,
        "figure": 30,
        "mathematics": 7,
        "runs": 4,
    }
    assert ((listed["decided_by"] == "tables") == (listed["verdict"] != "")).all()
    assert (listed[["claim", "where", "check"]] != "").all().all() and listed["claim"].is_unique
    assert claims("mr").index.tolist() == [*range(55, 73), *range(99, 103)]


def test_recomputed_verdicts_are_those_of_reading_by_hand():
    verdict = claims()["verdict"]
    assert {number: verdict[number] for number in VERDICTS} == VERDICTS
    held = claims()["held"]
    assert (held[7], held[8], held[14], held[31], held[61], held[44], held[50]) == (
        "5 of 6",
        "4 of 8",
        "47 of 54",
        "39 of 40",
        "16 of 16",
        "29 of 32",
        "21 of 24",
    )


def test_text_and_tables_part_exactly_where_known():
    compared = text_against_table()
    off = compared[~compared["agrees"]]
    assert {(row.Index, row.said, row.from_tables) for row in off.itertuples()} == SLIPS
    assert set(off["said_by"]) == {"text"} and len(compared) > 150
    assert claims()["numbers"][25] == "5 of 8 agree"
    assert off.loc[46, "differs_by"] == -0.18


def test_single_cell_differences_against_plain_arithmetic():
    """Each statement of the form "cell - cell", recomputed in floats from `results`."""
    plain = checks()[
        lambda c: c["statement"].str.fullmatch(
            r"T[^:/+]+ - T[^:/+-]+( ?[^:/+-]*-[a-z0-9]+)*[^:/+]*"
        )
    ]
    plain = plain[plain["statement"].str.count(" - ") == 1]
    assert len(plain) > 200
    for check in plain.sample(60, random_state=0).itertuples():
        left, right = (one(check.paper, words)["mean"] for words in check.statement.split(" - "))
        assert check.from_tables == pytest.approx(left - right, abs=1e-9)


def rule(**columns: str) -> Rule:
    """A rule as a row of rules.csv would give it."""
    plain = {"claim": "1", "expression": "T1 a", "over": "", "take": "", "expect": ""}
    return parse_rule({**plain, "said": "", "said_by": "", **columns})


def test_a_rule_is_parsed_once_into_a_record():
    assert parse_expression("T2 a aa / T2 b aa - T2 c aa + T1 d") == Expression(
        "T2 a aa / T2 b aa - T2 c aa + T1 d",
        (Term(1, ("T2 a aa", "T2 b aa")), Term(-1, ("T2 c aa",)), Term(1, ("T1 d",))),
    )
    difference = parse_expression("T1 a - T1 b").minus(parse_expression("T1 c"))
    assert difference == parse_expression("T1 a - T1 b - T1 c")
    assert parse_bound(">= -0.30") == Bound(">=", Decimal("-0.30"))
    assert str(parse_bound(">= -0.30")) == ">= -0.30"
    found = rule(expression="{t} x", over="t=A B C", take="rising", said="1 2", said_by="text")
    assert [part.text for part in found.expressions] == ["A x", "B x", "C x"]
    assert [part.text for part in found.steps] == ["B x - A x", "C x - B x"]
    assert (found.claim, found.summary) == (1, "rising of 3: {t} x")
    assert (found.bound, found.said, found.said_by) == (None, ("1", "2"), "text")
    assert fill_expression("{t} {m[0]} - {m[1]}", "t=A B;m=x/y") == ["A x - y", "B x - y"]
    assert sorted(read_rules()) == claims().query("decided_by == 'tables'").index.tolist()
    assert sum(map(len, read_rules().values())) == len(read_table("rules"))


@pytest.mark.parametrize(
    "columns, words",
    [
        ({"take": "median"}, ["way to take", "median", "mean"]),
        ({"expect": "=> 1"}, ["'=> 1' is not a bound", "> >= < <= ="]),
        ({"expect": "> one"}, ["'> one' is not a bound", "'> 0'"]),
        ({"expect": ">0"}, ["'>0' is not a bound", "a space and a number"]),
    ],
)
def test_what_is_not_of_the_language_is_refused(columns, words):
    with pytest.raises(KitError) as error:
        rule(**columns)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "relation, kept", [(">", "001"), (">=", "011"), ("<", "100"), ("<=", "110")]
)
def test_a_bound_is_kept_alike_by_decimals_and_arrays(relation, kept):
    bound = Bound(relation, Decimal("0.1"))
    values = ("-0.2", "0.1", "0.3")
    assert [bool(bound.keeps(Decimal(v))) for v in values] == [k == "1" for k in kept]
    assert bound.keeps(np.array([float(v) for v in values])).tolist() == [k == "1" for k in kept]


def test_no_two_statements_of_a_claim_share_their_words():
    """The record knows a statement by its words, and refuses a scale with two rows for one."""
    for number, rules in read_rules().items():
        words = [
            text
            for rule in rules
            if rule.bound is not None or rule.take in STEP_BOUNDS
            for text in (
                [rule.summary]
                if rule.take in REDUCTIONS or rule.take == "most"
                else [part.text for part in (rule.steps if rule.take else rule.expressions)]
            )
        ]
        assert len(set(words)) == len(words), (number, words)


def test_what_rules_can_say():
    assert str(printed_rules.value("clirat", "T1 clirat aa - T1 at aa")) == "-1.37"
    assert (
        str(
            printed_rules.value("mail", "T2 mail-at aa / T2 mail-trades aa - T2 mart aa + T2 at aa")
        )
        == "47.10"
    )
    values = [Decimal(n) for n in (3, 1, 2)]
    outcomes = {
        take: printed_rules._outcomes(rule(take=take, expect="> 1"), values) for take in TAKES
    }
    assert outcomes == {
        "": [(3, 1, 1), (1, 0, 1), (2, 1, 1)],
        "count": [(2, 2, 3)],
        "most": [(2, 1, 1)],
        "rising": [(1, 1, 2)],
        "falling": [(1, 1, 2)],
        "min": [(1, 0, 1)],
        "max": [(3, 1, 1)],
        "mean": [(2, 1, 1)],
        "range": [(2, 1, 1)],
    }
    assert all(isinstance(number, Decimal) for found in outcomes.values() for number, *_ in found)
    assert printed_rules._outcomes(rule(), values[:1]) == [(3, 0, 0)]
    half = printed_rules._outcomes(rule(take="most", expect="> 1"), values[1:])
    assert half == [(1, 0, 1)]  # half is not most
    for take in ("rising", "falling"):
        still = printed_rules._outcomes(rule(take=take), [values[0], values[0]])
        assert still == [(0, 0, 1)]  # standing still is neither


@pytest.mark.parametrize(
    "said, computed, agrees",
    [
        ("9.6", "9.65", True),
        ("11.1", "11.15", True),
        ("2.5", "2.50", True),
        ("5.0", "4.94", False),
        ("0.33", "0.3312", True),
        ("47", "47", True),
        ("47", "46", False),
        ("-0.32", "-0.32", True),
        ("-0.32", "0.32", False),
    ],
)
def test_said_numbers_are_roundings(said, computed, agrees):
    assert printed_rules._agree(said, Decimal(computed)) is agrees


# --------------------------------------------------------------------------- from the numbers alone


@pytest.mark.parametrize("images", [100, 892, 1000, 2000, 3000, 4000, 5000, 10_000])
def test_which_printed_values_can_occur(images):
    """Against every k / images in exact fractions, rounded up and down at ties."""
    possible = set()
    for k in range(images + 1):
        exact = Fraction(k * consistency.PRINTABLE, images)
        possible |= {
            n for n in (exact.__floor__(), exact.__ceil__()) if abs(exact - n) <= Fraction(1, 2)
        }
    possible.discard(consistency.PRINTABLE)
    fits = consistency._fits(np.arange(consistency.PRINTABLE), images)
    assert set(np.flatnonzero(fits)) == possible
    assert consistency._chance(images) == len(possible) / consistency.PRINTABLE


def test_chances_of_a_random_value():
    assert [consistency._chance(1_000 * seeds) for seeds in (1, 2, 3, 4, 5, 10)] == [
        0.1,
        0.2,
        0.3,
        0.6,
        0.5,
        1.0,
    ]
    for hits in range(10):
        assert consistency._tail([0.3] * 9, hits) == pytest.approx(binom.sf(hits - 1, 9, 0.3))
    assert consistency._tail([0.1, 0.5], 1) == pytest.approx(1 - 0.9 * 0.5)


def test_resolution_of_the_printed_tables():
    first, second, mail = resolution("clirat", 1), resolution("clirat", 2), resolution("mail", 2)
    for attack in ("apgd_ce", "aa"):
        assert first.loc[attack, ["all_fit", "fit", "reading"]].tolist() == [
            "3 x 1,000",
            9,
            "all on 3 x 1,000 images",
        ]
        assert first.loc[attack, "chance_all"] == pytest.approx(0.1**9 + 0.2**9 + 0.3**9)
        assert first.loc[attack, "chance_fit"] == pytest.approx(5 * 0.3**9)  # five candidates
    assert second.loc["apgd_ce", "reading"] == "all on 2 x 1,000 images"
    assert second.loc["aa", ["all_fit", "best", "fit"]].tolist() == [
        "none of these",
        "2 x 1,000",
        8,
    ]  # 50.04
    assert mail.loc["aa", ["best", "fit"]].tolist() == ["1 x 1,000", 6]
    assert (resolution("vir", 2)["reading"] == "no better than chance").all()
    cse = resolution("csa", "III")
    assert (
        "cw" not in cse.index
        and cse["fit"].sum() == 22
        and (cse["reading"] == "no better than chance").all()
    )
    assert resolution("csa", "II")["fit"].sum() == 27 and resolution("csa", "IV")["fit"].sum() == 1


@pytest.mark.parametrize("paper, name", TABLES)
def test_every_table_has_a_resolution(paper, name):
    table = resolution(paper, name)
    assert table.index.is_unique and table[["chance_all", "chance_fit"]].stack().between(0, 1).all()
    assert table["cells"].sum() == (results(paper).query("table == @name")["mean"] > 0).sum()


def test_resolution_tells_1000_images_from_10000():
    """Columns of known origin:

    nine means over three seeds and 1,000 images, and nine over one seed and 10,000.
    """
    draw = np.random.default_rng(0)
    readings = {}
    for images, seeds in ((1_000, 3), (10_000, 1)):
        means = [
            draw.binomial(images * seeds, p) / (images * seeds) * 100
            for p in draw.uniform(0.4, 0.6, 9)
        ]
        column = consistency._column(pd.DataFrame({"mean": np.round(means, 2), "unit": "percent"}))
        readings[images] = column["reading"]
    assert readings == {1_000: "all on 3 x 1,000 images", 10_000: "no better than chance"}


def test_copied_cells_are_the_known_ones():
    copied = copied_cells()
    assert (copied["by_chance"] < 0.05).all()
    odd = copied[copied["kind"] != "same model again"].set_index(["first", "second"])
    assert odd["same"].to_dict() == {
        ("mail T2 resnet18 mail-at", "vir T1 resnet18 mail-at"): "pgd100, cw, aa",
        ("mail T3 wrn-32-10 mail-at", "vir T2 wrn-34-10 mail-at"): "natural, pgd100, cw, aa",
        (
            "clirat T2 wrn-32-10 last mail-trades",
            "clirat T2 wrn-32-10 last mail-mart",
        ): "natural, pgd20",
        (
            "csa T2 lenet std protected_class=9",
            "csa T2 lenet cse protected_class=9",
        ): "pgd, cw, mia, l2bia",
        (
            "vir T9 resnet18 vir-at alpha=7 gamma=10 beta=0.1",
            "vir T11 resnet18 vir-at alpha=7 gamma=10 beta=0.007",
        ): "cw, aa",
    }
    # 2,888 pairs of two methods in a paper on CIFAR-10, 2 of 6 cells; 2 of 3,427 near cells
    # coincide, one added to both
    clirat = copied[copied["first"] == "clirat T2 wrn-32-10 last mail-trades"].iloc[0]
    assert clirat["by_chance"] == pytest.approx(2888 * 15 * (3 / 3428) ** 2)
    again = copied[copied["kind"] == "same model again"]
    assert set(again["differ"]) == {"", "cw, aa"} and set(
        again[again["differ"] != ""]["second"]
    ) == {"vir T11 resnet18 vir-at alpha=7 gamma=10 beta=0.007"}


def test_a_planted_copy_is_found(monkeypatch):
    cells = results()
    source = cells.query(
        "paper == 'mr' and table == 'T5' and model == 'resnet18' and method == 'ewat'"
    )
    target = cells.query("paper == 'vir' and table == 'T2' and method == 'mart'").index
    for index in target[:3]:
        cells.loc[index, "printed"] = source[source["attack"] == cells.loc[index, "attack"]][
            "printed"
        ].iloc[0]
    monkeypatch.setattr(consistency, "results", lambda: cells)
    found = copied_cells()
    planted = found[found["first"].eq("vir T2 wrn-34-10 mart")]
    assert planted[["kind", "second", "same"]].to_numpy().tolist() == [
        ["two papers", "mr T5 resnet18 best ewat", "natural, fgsm, pgd100"]
    ]


def test_spread_against_a_plain_count():
    table = spread("mail-at")
    row = table.loc[("cifar10", "resnet18", "pgd100")]
    assert row[
        ["papers", "cells", "min", "max", "range", "largest_std", "lowest", "highest"]
    ].tolist() == [4, 6, 55.25, 57.63, 2.38, 0.23, "mail T1", "clirat T1"]
    for method, where, expected in (
        ("at", ("cifar10", "resnet18", "aa"), 3.02),
        ("gairat", ("cifar100", "resnet18", "aa"), 7.12),
        ("mail-at", ("cifar100", "resnet18", "natural"), 4.09),
        ("mail-trades", ("cifar10", "wrn-32-10", "apgd_ce"), 4.01),
    ):
        assert spread(method).loc[where, "range"] == expected
    cells = results().query(
        "row == 'trades' and dataset == 'cifar10' and model == 'resnet18' and attack == 'cw'"
    )
    means = cells["mean"].tolist()
    assert spread("trades").loc[("cifar10", "resnet18", "cw"), "range"] == round(
        max(means) - min(means), 2
    )


def test_spread_leaves_out_cells_with_overrides(monkeypatch):
    cells = results()
    cells.loc[(cells["paper"] == "mail") & (cells["row"] == "at"), "overrides"] = "loss.beta=2"
    monkeypatch.setattr(consistency, "results", lambda: cells)
    row = spread("at").loc[("cifar10", "resnet18", "aa")]
    assert row[["papers", "min", "lowest"]].tolist() == [3, 46.38, "mr T1"]  # without MAIL's 44.90


def test_the_package_carries_its_data():
    assert {path.stem for path in printed_data.FOLDER.glob("*.csv")} == {
        "bibliography",
        "results",
        "hyperparameters",
        "claims",
        "figures",
        "drawings",
        "rules",
        "recipes",
        "readings",
        "findings",
        "proofs",
    }
    assert PAPERS["mail"].weighs_by.startswith("PM") and "clirat" in repr(PAPERS)
