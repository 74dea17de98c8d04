"""How far a mini-batch goes: what somebody who debugs a step must walk through."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

import kit
from kit.training import step
from tests.helpers.settings import TINY

PACKAGE = str(Path(kit.__file__).parent) + os.sep


def named(frame) -> tuple[str, str] | None:
    """(file below kit/, function) of a frame of the kit; None for others, lambdas among them."""
    file, name = frame.f_code.co_filename, frame.f_code.co_qualname
    if not file.startswith(PACKAGE) or "<" in name.replace("<locals>", ""):
        return None
    return file.removeprefix(PACKAGE), name


def walk(fresh_home, monkeypatch) -> tuple[list[tuple[str, str]], list[str]]:
    """The functions that the second batch of a mail-trades run passes, in the order of their first
    visit; and the functions that are open when its loss is computed, from `kit.run` on.
    """
    batches, visits, opened = [], {}, []
    compute_loss, take = step.compute_loss, torch.optim.SGD.step

    def watch(frame, event, argument):
        if event == "call" and (place := named(frame)):
            visits.setdefault(place)

    def compute(*given, **named_):
        frame = sys._getframe(1)
        opened.clear()
        while frame is not None:
            if place := named(frame):
                opened.append(place[1])
            frame = frame.f_back
        return compute_loss(*given, **named_)

    def second(optimizer, *given):
        done = take(optimizer, *given)
        batches.append(1)
        sys.setprofile(watch if len(batches) == 1 else None)
        return done

    monkeypatch.setattr(step, "compute_loss", compute)
    monkeypatch.setattr(torch.optim.SGD, "step", second)
    small = {**TINY, "epochs": 1, "milestones": [], "train_size": 40, "burn_in": 0}
    try:
        kit.run("mail-trades", overrides=small, quiet=True)
    finally:
        sys.setprofile(None)
    return list(visits), opened[::-1]


def test_a_batch_passes_few_functions_and_its_loss_is_near(fresh_home, monkeypatch):
    visits, opened = walk(fresh_home, monkeypatch)
    assert "train_step" in [name for _, name in visits], "the walk was not watched"
    assert len(visits) <= 45, visits
    assert len({file for file, _ in visits}) <= 18, visits
    assert opened == ["run", "fit_plans", "run_epoch", "train_epoch", "train_step"], opened
