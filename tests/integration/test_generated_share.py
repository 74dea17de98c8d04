"""Batches that take a share of generated images, as VIR's appendix B trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kit
from kit.core.errors import KitError
from kit.experiments.recipes import find_recipe
from kit.experiments.runs import open_dataset, run_of
from kit.experiments.specification import RunSpec, resolve
from kit.training.loop import batch_rows, fit_plans, image_order, load_batches
from tests.helpers.settings import TINY

SHORT = {**TINY, "epochs": 2, "milestones": [1], "train_size": 0, "validation": 1100, "steps": 1}


@pytest.fixture
def recipe(home):
    """Digits with 50 generated images beside its own, 1297 less those held out."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 8, 8), dtype=np.uint8)
    np.savez(home / "made.npz", image=images, label=np.arange(50) % 10)
    return f"digits+npz:{home}/made.npz"


def test_every_batch_has_its_share_and_every_own_image_comes_once(recipe):
    overrides = {**SHORT, "generated_share": 0.7, "batch_size": 20}
    plan = resolve(RunSpec("at", recipe, overrides=overrides))
    split = open_dataset(plan).train
    own, made = len(split), len(split.generated)
    assert made == 50 and split.ids.max() < split.generated.ids.min()
    batches = batch_rows(plan, split, image_order(plan, split, 1), 1)
    assert torch.cat([rows.own for rows in batches]).sort().values.tolist() == list(range(own))
    for rows in batches[:-1]:
        assert (len(rows.own), len(rows.generated)) == (6, 14)
    drawn = torch.cat([rows.generated for rows in batches]).bincount(minlength=made)
    assert drawn.max() - drawn.min() <= 1, "all come before one comes again"
    (batch,) = load_batches(plan, split, batches[0], 1, 1)
    assert len(batch.y) == 20 and (batch.streams.ids >= split.generated.ids.min()).sum() == 14
    assert torch.equal(batch.x[6:], split.generated.x(batches[0].generated))
    other = batch_rows(plan, split, image_order(plan, split, 2), 2)
    assert not torch.equal(batches[0].generated, other[0].generated)


def test_appendix_b_is_trained_on_a_small_file(recipe):
    """Nesterov, cosine with a warm-up and the share: arrays are those of the data set's own images,
    and the generated ones are learned from.
    """
    own = {
        **SHORT,
        "generated_share": 0.7,
        "nesterov": True,
        "schedule": "cosine",
        "warm_up": 1,
        "milestones": [],
    }
    run = kit.run("vir-at", recipe, overrides=own, quiet=True)
    n = len(run.data().train)
    assert run.epoch(2)["train_logits_adv"].shape == (n, 10) == run.final["train_logits_adv"].shape
    assert run.history.lr.tolist() == [own["lr"] / 2, own["lr"]]
    without = kit.run("vir-at", recipe, overrides={**own, "generated_share": 0.35}, quiet=True)
    assert run.record["data_fingerprint"] == without.record["data_fingerprint"]
    assert (run.final["train_logits_adv"] != without.final["train_logits_adv"]).any()


def test_many_at_once_are_those_alone(recipe, home, monkeypatch):
    """Two networks in one program, each with its own optimizer and its own draw of images."""
    plans = [
        resolve(
            RunSpec("at", recipe, seed, {**SHORT, "generated_share": 0.5, "optimizer": optimizer})
        )
        for seed, optimizer in ((0, "sgd"), (1, "adam"))
    ]
    assert len({plan.stack_key for plan in plans}) == 1 and plans[0].stack_key
    found = []
    for name, groups in (("stacked", [plans]), ("alone", [[plan] for plan in plans])):
        (home / name).mkdir()
        monkeypatch.setenv("KIT_HOME", str(home / name))
        for group in groups:
            fit_plans(group, torch.device("cpu"), quiet=True)
        found.append([run_of(plan).final["test_logits_nat"] for plan in plans])
    for stacked, alone in zip(*found, strict=True):
        np.testing.assert_allclose(stacked, alone, rtol=1e-3, atol=1e-3)
    assert np.abs(found[0][0] - found[0][1]).max() > 0.1, "they are two networks"


def test_the_recipe_of_appendix_b(recipe, home):
    row = find_recipe("cifar10:generated")
    assert (row.epochs, row.model, row.nesterov, row.schedule) == (400, "wrn-28-10", True, "cosine")
    assert (row.batch_size, row.own_batch_size, row.lr, row.weight_decay) == (512, 154, 0.2, 5e-4)
    found = find_recipe(f"cifar10+npz:{home}/made.npz:generated")
    assert found.config() == {**row.config(), "data": f"cifar10+npz:{home}/made.npz"}


def test_a_share_without_generated_images_is_refused(home):
    with pytest.raises(KitError, match=r"images of both kinds.*of digits 0 are generated.*\+npz"):
        kit.run("at", overrides={**TINY, "generated_share": 0.5}, quiet=True)


def test_printed_numbers_to_normalise_by(home):
    given = {**TINY, "epochs": 1, "milestones": [], "mean_std": [0.5, 0.25]}
    layer = kit.run("at", overrides=given, quiet=True).model()[0]
    assert (layer.mean.item(), layer.std.item()) == (0.5, 0.25)
    with pytest.raises(KitError, match=r"mean_std=\[0\.5\] has 1 numbers.*it must have 2"):
        kit.run("at", overrides={**given, "mean_std": [0.5]}, quiet=True)


def test_the_best_epoch_is_chosen_by_its_own_number_of_steps(home):
    short = {**TINY, "epochs": 1, "milestones": [], "steps": 2}
    run = kit.run("at", overrides={**short, "selection_steps": 9}, quiet=True)
    plain = kit.run("at", overrides=short, quiet=True)
    chosen, usual = run.epoch(1), plain.epoch(1)
    assert chosen["validation_lps"].max() == 9 and usual["validation_lps"].max() == 2
    for name in ("seen_lps", "test_lps", "train_logits_adv"):
        assert (chosen[name] == usual[name]).all()
