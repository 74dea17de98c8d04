"""The images that the inspector shows: what a run stored of them, and who stands out among them."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from kit.core.errors import KitError
from kit.core.random_streams import Streams
from kit.experiments.runs import Run
from kit.methods.criteria import (
    CRITERIA,
    confused_label_margin,
    confused_labels,
    probabilistic_margin,
)
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import METHODS

POOL_SIZE = 500  # images of a split at most: the batch by whose mean weights are divided

#: What is drawn beside the criteria: one method of each kind, or all of a family by the first word
#: of its name.
FAMILIES = {
    "one of each": (),
    "MAIL": ("mail",),
    "CLIRAT": ("clirat", "clir"),
    "GAIRAT, EWAT": ("gairat", "gair", "ewat"),
    "MR, WMMR": ("mr", "wmmr"),
    "VIR": ("vir", "at", "trades"),
}

ONE_OF_EACH = (
    "mail-at",
    "clirat",
    "gairat",
    "mr-mail",
    "wmmr",
    "ewat",
    "vir-at",
    "mail-at-nat",
    "mail-at-dif",
)

SHOWN_CRITERIA = (
    "pm",
    "cl-pm",
    "confused-labels",
    "mr",
    "entropy",
    "kappa",
    "pm-dif",
    "pm-nat",
    "s-v",
    "s-d",
    "vir",
)

#: Images are searched for which the first method's weight exceeds the second's most.
METHOD_PAIRS = (
    ("clirat", "mail-at"),
    ("mail-at", "clirat"),
    ("gairat", "mail-at"),
    ("vir-at", "mail-at"),
    ("mr-mail", "mail-at"),
)

BY_NUMBER = "by number"
DISAGREE = "schemes disagree most"
CONFUSED = "most confused labels"
NEAREST_BOUNDARY = "nearest to the boundary"


def family_methods(name: str) -> tuple[str, ...]:
    """The reweighting methods of a family, as the table orders them."""
    if name == "one of each":
        return ONE_OF_EACH
    return tuple(
        method
        for method, row in METHODS.items()
        if row.reweights and method.split("-")[0] in FAMILIES[name]
    )


def batch_relative_weights(name: str, outputs: StepOutputs) -> np.ndarray:
    """(n,) weights over their mean; ones where all are 0."""
    weights = METHODS[name].weigh(outputs).double()
    return (weights / weights.mean()).numpy() if float(weights.sum()) > 0 else np.ones(len(weights))


class Pool:
    """The first images of a split as the run's last pass stored them, and who stands out there."""

    def __init__(self, run: Run, part: str):
        if f"{part}_logits_adv" not in run.final:
            raise KitError(
                f"{run.folder.name} stored no logits of its {part} images, and this widget needs "
                f"them; it has {', '.join(run.final)}. Delete the run and train it again"
            )
        stored = {
            name.removeprefix(f"{part}_"): torch.from_numpy(values[:POOL_SIZE])
            for name, values in run.final.items()
            if name.startswith(part)
        }
        self.run, self.ids, self.y = run, stored["ids"].long(), stored["y"].long()
        self.numbers = {
            name: stored[name].double()
            for name in ("logits_adv", "logits_nat", "kappa", "lps", "p_flip")
        }
        self.split = getattr(run.data(), part).take(slice(0, len(self.y)))
        outputs = self.outputs()
        self.criteria = {
            name: np.sort(CRITERIA[name].score(outputs).numpy()) for name in SHOWN_CRITERIA
        }
        self.weights = {
            name: batch_relative_weights(name, outputs)
            for name in {*ONE_OF_EACH, *(name for pair in METHOD_PAIRS for name in pair)}
        }
        self.order = self._orders(outputs)

    def outputs(self, row: int | None = None, **here: float | Tensor) -> StepOutputs:
        """The pool as one batch, with the numbers `here` for image `row`."""
        numbers = dict(self.numbers)
        for name, value in here.items():
            numbers[name] = numbers[name].clone()
            numbers[name][row] = value
        return StepOutputs(
            self.y,
            **numbers,
            steps=self.run.plan.recipe.steps,
            streams=Streams(self.ids, self.run.plan.seed, "inspect"),
        )

    def _orders(self, outputs: StepOutputs) -> dict[str, np.ndarray]:
        """{search: rows, the best first}; equals stand in the order of the images."""
        shares = np.stack([rankdata(self.weights[name]) for name in ONE_OF_EACH]) / len(self.y)
        margin = confused_label_margin(outputs.probs_adv, self.y).numpy()
        keys = {
            BY_NUMBER: np.arange(len(self.y)),
            DISAGREE: -shares.std(axis=0),
            CONFUSED: margin - 10 * confused_labels(outputs.probs_adv, self.y).numpy(),
            NEAREST_BOUNDARY: probabilistic_margin(outputs.probs_adv, self.y).abs().numpy(),
        }
        for most, least in METHOD_PAIRS:
            keys[f"most by {most}, least by {least}"] = self.weights[least] - self.weights[most]
        return {name: np.argsort(key, kind="stable") for name, key in keys.items()}


def select_image(outputs: StepOutputs, row: int) -> StepOutputs:
    """One image of a batch, as a batch of its own."""
    here = slice(row, row + 1)
    nat, kappa, lps, p_flip = outputs.logits_nat, outputs.kappa, outputs.lps, outputs.p_flip
    assert nat is not None and kappa is not None, "a pool has them"
    assert lps is not None and p_flip is not None, "a pool has them"
    return StepOutputs(
        outputs.y[here],
        outputs.logits_adv[here],
        nat[here],
        kappa[here],
        lps[here],
        p_flip[here],
        steps=outputs.steps,
    )
