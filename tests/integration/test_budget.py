"""A budget of minutes: the choice, the schedule that says how short it is, and what stops it."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

import kit
from kit.core import threads
from kit.core.errors import KitError
from kit.core.threads import OutOfTime, end_by
from kit.experiments.devices import DeviceLost
from kit.experiments.recipes import find_recipe, is_quick, shortened_name, unshortened_name
from kit.experiments.runs import is_done, run_folder, run_folders
from kit.experiments.specification import RunSpec, resolve
from kit.jobs import budget, command_line
from kit.jobs.budget import parse_duration
from kit.jobs.budget_costs import Rate, reckon_costs
from kit.jobs.budget_questions import (
    CORE_METHODS,
    BudgetQuestion,
    QuestionList,
    choose_questions,
    list_questions,
)
from kit.jobs.forecast import epochs_to_train
from kit.papers.table_runs import Evaluation, grid
from kit.training import loop
from tests.helpers.settings import ROOT, TINY

CPU = torch.device("cpu")
PAPER = "cifar10:paper, 12 of 120 epochs"

# --------------------------------------------------------------------------------------- durations


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("12m", 720), ("12 min", 720), ("1.5h", 5400), (".5m", 30)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "12", "m", "-3m", "0s", "1d", "12m30s", "inf h", "nanm"])
def test_what_is_no_duration_is_refused(text, home, capsys):
    assert command_line.main(["reproduce", f"--budget={text}"]) == 2
    said = capsys.readouterr().err.strip()
    assert "12m" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "words", [["--only", "02"], ["--seeds", "1"], ["--set", "epochs=3"], ["--on", "ray"]]
)
def test_a_budget_chooses_by_itself(words, home, capsys):
    assert command_line.main(["reproduce", "--budget", "1m", *words]) == 2
    assert f"leave out {words[0]}" in capsys.readouterr().err


# -------------------------------------------------------------------------------------- the choice


def asked(title: str, methods: str, worth: float = 1.0, seeds: int = 3) -> BudgetQuestion:
    pairs = frozenset(
        (f"{method}-{seed}", "pgd20") for method in methods.split() for seed in range(seeds)
    )
    return BudgetQuestion(title, pairs, worth, tuple(methods.split()))


def planted_cost(seconds: dict[str, float]):
    """Runs cost what is planted of their method, each once, and their evaluations 1."""

    def cost(needs):
        return sum(seconds[key.split("-")[0]] for key in {key for key, _ in needs}) + len(needs)

    return cost


def chosen(questions, cost, seconds):
    return [question.title for question in choose_questions(questions, cost, seconds)]


def test_most_answers_a_second_come_first():
    cost = planted_cost({"a": 9, "b": 9, "c": 99})
    some = [asked("dear", "a c"), asked("cheap", "a b"), asked("dearer", "b c")]
    assert chosen(some, cost, 60) == ["cheap"]
    assert chosen(some, cost, 1e9) == ["cheap", "dear", "dearer"]
    assert chosen(some, cost, 59) == []


def test_what_is_shared_is_paid_once():
    """b is dear by itself, and cheap beside a, whose runs it needs."""
    cost = planted_cost({"a": 10, "b": 10, "c": 12})
    some = [asked("first", "a"), asked("alone", "c"), asked("with the first", "a b")]
    assert chosen(some, cost, 70) == ["first", "with the first"]


def test_only_what_a_question_adds_counts():
    """Not what was spent before it: that would favour the dear ones."""
    cost = planted_cost({"a": 100, "b": 50, "c": 20})
    some = [asked("first", "a", 99), asked("dear", "b", 2), asked("cheap", "c", 1)]
    assert chosen(some, cost, 1e9) == ["first", "cheap", "dear"]


def test_a_run_that_answers_several_counts_for_all():
    cost = planted_cost({"a": 30, "b": 10})
    some = [asked("one", "b"), *(asked(f"of a, {i}", "a") for i in range(4))]
    assert chosen(some, cost, 100) == ["of a, 0", "of a, 1", "of a, 2", "of a, 3"]


def test_three_seeds_of_a_pair_before_one_seed_of_many(fresh_home):
    """A question is its three seeds: fewer of them decide nothing, and are never bought."""
    found = list_questions("digits")
    for question in found.questions:
        seeds: dict[str, set[int]] = {}
        for key, _ in question.needs:
            spec = found.plans[key].spec
            seeds.setdefault(f"{spec.method} {spec.overrides}", set()).add(spec.seed)
        assert all(own == {0, 1, 2} for own in seeds.values()), question.title


def test_of_equals_the_earlier_is_taken():
    cost = planted_cost({"a": 10, "b": 10})
    assert chosen([asked("1", "a"), asked("2", "b")], cost, 1e9) == ["1", "2"]
    assert chosen([asked("2", "b"), asked("1", "a")], cost, 1e9) == ["2", "1"]
    assert chosen([asked("1", "a", 0.5), asked("2", "b")], cost, 1e9) == ["2", "1"]


def test_core_methods_are_rows_with_their_twins(home):
    assert set(CORE_METHODS) <= set(kit.METHODS)
    found = list_questions("digits")
    titles = " ".join(question.title for question in found.questions)
    assert all(f"claim {number} (" in titles for number in (5, 11, 12, 18, 29, 35))
    assert "criterion or normaliser" in titles
    assert set(found.questions[0].methods) <= set(budget.FIRST_METHODS)


def test_other_networks_and_data_are_no_questions_of_a_short_schedule(home):
    """WRN's rows are not decided by ResNet-18, also where the recipe is shortened or a folder."""
    needs = [need for need in grid("clirat", 2, recipe=PAPER) if need.ask]
    assert needs and all("wrn-32-10" in need.stands_for_another for need in needs)
    needs = [need for need in grid("clirat", 1, recipe=PAPER) if need.ask]
    assert needs and not any(need.stands_for_another for need in needs)


# ---------------------------------------------------------------------------------------- the costs


def planted_clock(epoch: float = 1.0, final: float = 0.0, evaluation: float = 0.0):
    return (lambda plan: Rate(epoch, final)), (lambda plan, ask: evaluation)


def test_burn_ins_are_paid_as_they_are_trained(fresh_home):
    """Seconds of epochs that cost 1 are the epochs that the forecast counts."""
    found = list_questions("digits")
    costs = reckon_costs(found, planted_clock())
    costs.asked = dict.fromkeys(costs.asked, 0.0)
    for methods in (["at", "mail-at", "clirat"], ["at"], ["trades", "mail-trades"], ["vir-at"]):
        plans = [resolve(RunSpec(method, seed=seed)) for method in methods for seed in range(3)]
        needs = frozenset((plan.key, "x") for plan in plans)
        costs.asked |= dict.fromkeys(needs, 0.0)
        assert costs(needs) == sum(epochs for _, epochs in epochs_to_train(plans))


def test_what_is_there_costs_nothing(fresh_home, monkeypatch):
    monkeypatch.setitem(kit.RECIPES, "digits", kit.RECIPES["digits"].override(**TINY))
    run = kit.run("at", quiet=True)
    kit.evaluate(run, ["natural"], quiet=True)
    found = QuestionList("digits")
    found.add("it", [(run.spec, Evaluation("natural")), (run.spec, "pm-by-lps")])
    found.add("more", [(run.spec, Evaluation("pgd20"))])
    costs = reckon_costs(found, planted_clock(evaluation=7.0))
    before = [costs(question.needs) for question in found.questions]
    costs.look_what_is_done()
    assert before[0] > 0
    assert [costs(question.needs) for question in found.questions] == [0, 7]
    assert [q.title for q in budget.BudgetPlan(found, costs).due] == ["more"]


# ------------------------------------------------------------------------------------- the schedule


def test_a_short_schedule_is_short_in_proportion_and_says_so(home):
    full, short = find_recipe("cifar10:paper"), find_recipe(PAPER)
    assert (short.epochs, short.milestones) == (12, (8, 9)) and full.milestones == (75, 90)
    assert (short.lr, short.train_size) == (full.lr, full.train_size)
    spec = RunSpec("mail-at", PAPER)
    assert resolve(spec).burn_in == 8 and "12 of 120 epochs" in str(spec)
    assert shortened_name("cifar10:paper", 12) == PAPER
    assert shortened_name("cifar10:paper", 120) == "cifar10:paper" == unshortened_name(PAPER)
    assert is_quick("digits") and not is_quick("cifar10:paper")
    assert not is_quick("digits, 10 of 40 epochs")


@pytest.mark.parametrize(
    "name", ["digits, 40 of 40 epochs", "digits, 0 of 40 epochs", "digits, 3 of 30 epochs"]
)
def test_no_other_length_is_a_schedule(name, home):
    with pytest.raises(KitError, match="it must be 1 to 39 of 40"):
        find_recipe(name)


def test_every_schedule_keeps_its_order(home):
    for recipe in ("digits", "cifar10:paper", "mnist"):
        names = budget.schedule_names(recipe)
        epochs = [find_recipe(name).epochs for name in names]
        assert names[0] == recipe and epochs == sorted(set(epochs), reverse=True)
        for name in names:
            plan = resolve(RunSpec("mail-at", name))
            assert 0 < plan.burn_in < plan.recipe.epochs
            assert len(plan.recipe.milestones) == len(find_recipe(recipe).milestones)


def few_questions(recipe: str, seeds=range(3)) -> QuestionList:
    """Three questions on two methods."""
    found = QuestionList(recipe)
    for title, method, ask in (
        ("first", "at", Evaluation("natural")),
        ("picture", "mail-at", "confused-labels"),
        ("last", "mail-at", Evaluation("fgsm")),
    ):
        found.add(title, [(RunSpec(method, recipe, seed), ask) for seed in seeds])
    return found


def test_the_longest_schedule_that_fits(fresh_home, monkeypatch):
    """Seconds are epochs here: 3 seeds of AT are 120, those of MAIL-AT beside them 45 more."""
    monkeypatch.setattr(budget, "list_questions", few_questions)
    epochs = []
    for seconds in (1e6, 150, 60, 30):
        plan = budget.plan_budget("digits", seconds, planted_clock())
        epochs.append(find_recipe(plan.recipe).epochs)
        assert plan.chosen and plan.seconds(plan.chosen) <= budget.time_for_work(seconds)
        longer = [n for n in budget.schedule_names("digits") if find_recipe(n).epochs > epochs[-1]]
        if longer and epochs[-1] > budget.LEAST_EPOCHS:
            plan = budget.plan_schedule(longer[-1], seconds, planted_clock())
            assert len(plan.chosen) < 3, "the next longer schedule would have done, too"
    assert epochs[0] == 40 and epochs == sorted(epochs, reverse=True) and epochs[-1] == 8


def test_too_small_a_budget_says_the_least_that_would_do(fresh_home, monkeypatch):
    monkeypatch.setattr(budget, "list_questions", few_questions)
    with pytest.raises(KitError, match="the least that would do is") as refused:
        budget.plan_budget("digits", 5, planted_clock())
    said = str(refused.value)
    enough = float(said.partition("would do is ")[2].partition("s,")[0])
    assert budget.plan_budget("digits", enough, planted_clock()).chosen
    with pytest.raises(KitError):
        budget.plan_budget("digits", enough - 1.5, planted_clock())


# ------------------------------------------------------------------------------------- end to end


@pytest.fixture
def little(fresh_home, monkeypatch):
    """Digits at test size, and three questions on two methods, reckoned at a second or so each."""
    quick = {"epochs": 12, "milestones": [8, 9], "train_size": 200, "steps": 2}
    row = kit.RECIPES["digits"].override(**{**TINY, **quick})
    monkeypatch.setitem(kit.RECIPES, "digits", row)

    monkeypatch.setattr(budget, "list_questions", few_questions)
    monkeypatch.setattr(budget, "timed_clock", lambda device: planted_clock(0.01, 0.1, 0.1))
    monkeypatch.setattr(budget, "PICTURES", ("confused-labels",))
    return fresh_home


def test_it_trains_evaluates_draws_and_goes_on(little, capsys):
    name = budget.spend_budget("digits", 600, CPU)
    assert name == "digits" and "3 of 3 questions" in capsys.readouterr().out
    done = {path: path.stat().st_mtime_ns for path in little.rglob("done.json")}
    assert len(done) == 6 and len(list(little.rglob("confused-labels.png"))) == 3
    assert (little / "figures/out/digits/measured.csv").read_text().startswith("scale,claim")
    budget.spend_budget("digits", 600, CPU)
    assert "3 are answered already" in capsys.readouterr().out
    assert done == {path: path.stat().st_mtime_ns for path in little.rglob("done.json")}


def test_a_short_schedule_is_gone_on_with(little, monkeypatch):
    """The second budget would do for the full one; what was begun is not thrown away."""
    monkeypatch.setattr(budget, "timed_clock", lambda device: planted_clock(10.0, 0.1, 0.1))
    name = budget.spend_budget("digits", 490, CPU)
    assert name.startswith("digits, ") and name.endswith(" of 12 epochs")
    assert budget.spend_budget("digits", 1e5, CPU) == name
    row = next(iter(little.rglob("measured.csv"))).read_text().splitlines()[1]
    assert row.startswith(f'"{name}"'), "the record's rows say how short the schedule was"


def test_only_the_plan(little, capsys):
    budget.spend_budget("digits", 600, CPU, only_plan=True)
    said = capsys.readouterr().out
    assert "the full list on digits: 3 questions, 6 runs of 12 epochs" in said
    assert not list(little.rglob("run.json"))


def test_time_that_is_over_stops_training_and_keeps_epochs(little, monkeypatch, capsys):
    """After two epochs it is suddenly late, on a clock that is planted."""
    late, run_epoch = [], loop.run_epoch
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 1e6 * (len(late) >= 2))
    monkeypatch.setattr(threads, "time", clock)
    monkeypatch.setattr(loop, "run_epoch", lambda *words: late.append(run_epoch(*words)))
    budget.spend_budget("digits", 600, CPU)
    assert "its time is over; finished epochs are kept" in capsys.readouterr().out
    there = [len(list(folder.glob("epochs/*.npz"))) for folder in run_folders()]
    assert there == [2, 2, 2] and not list(little.rglob("evaluations"))


def test_work_ends_by_its_moment(little):
    spec = RunSpec("at")
    with end_by(time.monotonic() - 1), pytest.raises(OutOfTime):
        kit.run(spec, quiet=True)
    with end_by(time.monotonic() + 600), end_by(time.monotonic() + 900):
        assert is_done(kit.run(spec, quiet=True).folder)


# --------------------------------------------------------------------------------- a device is lost


def lose_device(monkeypatch, epoch: int) -> None:
    """Plant CUDA's error in the middle of an epoch."""
    real = loop.train_epoch

    def train(state, split, number, *rest):
        if number == epoch:
            raise RuntimeError("CUDA error: device-side assert triggered\nCompile with ...")
        return real(state, split, number, *rest)

    monkeypatch.setattr(loop, "train_epoch", train)


@pytest.mark.parametrize("many", [False, True])
def test_a_lost_device_is_one_sentence_and_epochs_are_kept(many, little, monkeypatch):
    spec = RunSpec("at", overrides={"epochs": 3, "milestones": []})
    calm = kit.run(spec, quiet=True).history.loss.tolist()
    monkeypatch.setenv("KIT_HOME", str(little / "lost"))
    with monkeypatch.context() as planted, pytest.raises(DeviceLost, match="Finished epochs") as e:
        lose_device(planted, 3)
        kit.run_many([spec], quiet=True) if many else kit.run(spec, quiet=True)
    assert "\n" not in str(e.value)
    assert len(list((run_folder(resolve(spec)) / "epochs").glob("*.npz"))) == 2
    assert kit.run(spec, quiet=True).history.loss.tolist() == calm


def test_a_budget_on_a_lost_device(little, monkeypatch, capsys):
    """One sentence, exit code 1, no traceback; and nothing more is tried."""
    monkeypatch.setattr(loop, "train_epoch_stacked", None)  # small networks of three seeds
    tried = []

    def lost(states, data):
        tried.append(len(states))
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(loop, "run_epoch", lost)
    assert command_line.main(["reproduce", "--budget", "600s", "--device", "cpu"]) == 1
    said = capsys.readouterr().err.strip()
    assert "the device was lost" in said and len(said.splitlines()) == 1 and len(tried) <= 2


def test_other_errors_are_no_lost_device(little, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(loop, "run_epoch", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        kit.run("at", quiet=True)


# ------------------------------------------------------------------------------------- few packages


BLOCKED = "ipywidgets seaborn papermill jupyterlab filelock IPython nbformat nbclient ipykernel "
BLOCKED += "traitlets ray safetensors tqdm psutil"

ALONE = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        there = name.partition(".")[0] not in {set(BLOCKED.split())!r}
        return self.finder.find_spec(name, path, target) if there else None

sys.meta_path = [Without(finder) for finder in sys.meta_path]
import kit
from kit.jobs import budget, command_line
from kit.jobs.budget_questions import list_questions
from tests.benchmarks import gpu_minutes
import tests.conftest

kit.RECIPES["digits"] = kit.RECIPES["digits"].override(**{TINY!r})
runs = kit.run_many([kit.RunSpec(m) for m in ("at", "mail-at")])
kit.evaluate(runs[0], ["natural", "pgd20"])
drawn = budget.write_results("digits", list_questions("digits").questions)
print(len([path for path in drawn if path.suffix == ".png"]), "pictures")
"""


def test_training_evaluating_and_drawing_need_few_packages(fresh_home):
    """Not those of notebooks: a machine that one has for minutes has torch and little else."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1].split()[0]) >= 9, done.stdout


def test_pictures_of_a_budget_pass_no_images(tiny_run, tmp_path, monkeypatch):
    """They are drawn beside the training, from what runs stored: no network is loaded for them."""
    runs = {name: tiny_run(name) for name in ("at", "mail-at", "vir-at", "vir-trades")}
    monkeypatch.setattr(kit.Run, "model", None)
    for name in budget.PICTURES:
        row = kit.FIGURES[name]
        if set(row.methods) <= set(runs) and not row.any:
            kit.draw(name, [runs[method] for method in row.methods], folder=tmp_path)
    assert len(list(tmp_path.glob("*.png"))) >= 9
