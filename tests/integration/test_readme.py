"""What the README shows works:

its Python is run, its commands exist, its pictures and notebooks are there.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

import kit
from kit.experiments.specification import RunSpec, resolve
from kit.jobs.command_parser import make_parser
from tests.helpers.settings import ROOT, TINY

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def tiny_digits(monkeypatch, tmp_path, home):
    """The digits recipe at test size, and tables that forget what a block adds."""
    monkeypatch.setitem(kit.RECIPES, "digits", kit.RECIPES["digits"].override(**TINY))
    monkeypatch.setenv("KIT_OUT", str(tmp_path))
    for table in (kit.CRITERIA, kit.METHODS):
        for name, row in list(table.items()):
            monkeypatch.setitem(table, name, row)


def test_the_tour(tiny_digits):
    scope = {}
    exec(BLOCKS[0], scope)
    run, facts = scope["run"], scope["figure"].facts
    labels, ratios = run.data().train.y.numpy()[:, None], []
    for epoch in facts["epochs"]:
        logits = run.epoch(int(epoch))["train_logits_adv"]
        confused = (logits > np.take_along_axis(logits, labels, axis=1)).sum(axis=1)
        ratios.append((confused > 1).sum() / (confused == 1).sum())
    assert facts["n"] == 600 and facts["min_ratio"] == pytest.approx(min(ratios), abs=1e-9)
    assert list(scope["table"].index) == ["natural", "fgsm", "pgd20", "cw20"]


def test_an_attack_by_itself(tiny_digits, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tiny_run("at")
    images = run.data().test.take(slice(0, 6))
    scope = {"kit": kit, "model": run.model(), "x": images.x(), "y": images.y}
    exec(BLOCKS[1], scope)
    assert scope["result"].robust.shape == (6,) and (tmp_path / "aa-state").is_dir()


def test_adding_a_criterion(tiny_digits):
    assert len(BLOCKS[2].strip().splitlines()) <= 15
    scope = {}
    try:
        exec(BLOCKS[2], scope)
        run = scope["run"]
        assert run.plan.method.criterion.quantity.params["power"] == 4.0
        assert (run.epoch(3)["train_weight"] != 1).any()
        key = resolve(RunSpec("smooth-at", overrides={"criterion.power": 4.0})).key
        assert key == run.key
        # another function of the same name is another method
        exec(BLOCKS[2].replace("true - (", "true - 2 * (").split("run = ")[0], scope)
        assert resolve(RunSpec("smooth-at", overrides={"criterion.power": 4.0})).key != key
    finally:
        kit.CRITERIA.pop("smooth", None)
        kit.METHODS.pop("smooth-at", None)


def test_a_network_of_ones_own(tiny_digits, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(tiny_run("at").model().state_dict(), "net.pt")
    scope = {}
    exec(BLOCKS[3], scope)
    assert scope["mine"].method == "my-net" and scope["figure"].facts
    assert list(scope["table"].index) == ["natural", "pgd20"]


def test_an_architecture_of_ones_own(tiny_digits, monkeypatch):
    assert len(BLOCKS[4].strip().splitlines()) <= 10
    scope = {}
    try:
        exec(BLOCKS[4], scope)
        assert type(next(scope["run"].model().children())).__name__ == "Flatten"
    finally:
        kit.MODELS.pop("two-layers", None)


def test_commands_parse(capsys):
    commands = re.findall(
        r"python -m kit ((?:reproduce|report|record|train|adopt|evaluate|list|audit|draw|compare|"
        r"tables|runs)[^`#\n]*)",
        README,
    )
    assert len(commands) >= 5
    for command in commands:
        make_parser().parse_args(command.split())


def test_links_and_gallery():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) >= 8
    for link in links:
        assert (ROOT / link).exists(), link
    of_runs = [
        link for link in links if link.endswith(".png") and link.startswith("figures/digits/")
    ]
    assert len(of_runs) >= 5
    for picture in of_runs:
        record = json.loads((ROOT / picture).with_suffix(".json").read_text())
        assert (
            record["figure"] in kit.FIGURES
            and record["runs"]
            and record["facts"]
            and record["caption"]
        )


def test_project_speaks_of_itself_alone():
    for path in [
        ROOT / "README.md",
        ROOT / "figures/README.md",
        *ROOT.glob("figures/**/[!0]*.json"),
    ]:
        assert not re.search(r"/work/|/root/|/tmp/", path.read_text()), path
