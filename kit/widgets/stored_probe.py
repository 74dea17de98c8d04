"""A run's probe after each epoch, and the weights that methods give it: what two widgets share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import StepPatch

from kit.core.errors import KitError
from kit.core.random_streams import Streams
from kit.evaluation.counterfactual import checked_weights, example_groups, stored_outputs
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import Method

LINE_GREY, TEXT_GREY, IMAGES_GREY = "#B5B5B5", "#6E6E6E", "#333333"

NEEDED = {
    f"seen_{name}" for name in ("logits_adv", "logits_nat", "kappa", "lps", "p_flip", "y", "ids")
}


class Probe:
    """What a run stored of its probe after each epoch, read once each."""

    def __init__(self, run: Run):
        self.run, self.epochs = run, run.epochs
        self.read: dict[int, tuple[StepOutputs, dict[str, np.ndarray]]] = {}

    def at(self, epoch: int) -> tuple[StepOutputs, dict[str, np.ndarray]]:
        """The outputs of the probe's n images, and {group: (n,) bool, who is in it}.

        Raises:
            KitError: the run kept no logits after that epoch.
        """
        if epoch not in self.read:
            missing = sorted(NEEDED - self.run.epoch(epoch).keys())
            if missing:
                raise KitError(
                    f"{self.run.folder.name} stored no {', '.join(missing)} after epoch {epoch}, "
                    "and weights are computed from that; delete the run and train it again"
                )
            outputs, ids = stored_outputs(self.run, epoch, "frozen")
            outputs = replace(outputs, streams=Streams(ids, self.run.plan.seed, "whatif", epoch))
            self.read[epoch] = outputs, example_groups(outputs)
        outputs, groups = self.read[epoch]
        assert outputs.streams is not None, "they were given above"
        # Draws begin anew.
        fresh = Streams(outputs.streams.ids, *outputs.streams.parts)
        return replace(outputs, streams=fresh), groups

    def weigh(self, row: Method, epoch: int, name: str) -> np.ndarray:
        """(n,) the weights that the row gives in that epoch, past burn-in.

        `name` is what an error calls the row.
        """
        return checked_weights(
            row.at(epoch, self.epochs), self.at(epoch)[0], f"{name}, epoch {epoch},"
        )


def class_shares(w: np.ndarray, outputs: StepOutputs) -> np.ndarray:
    """(K,) each class's share of the total weight; NaN where all weights are 0."""
    totals = np.bincount(outputs.y.numpy(), w, outputs.logits_adv.shape[1])
    return totals / w.sum() if w.sum() else totals * np.nan


def prepare_class_axes(axes: Axes, classes: list[str], top: float) -> None:
    """Set axes up for shares by class: the names stand along x where there is room for them."""
    s.name_classes(axes, classes, 90)
    axes.tick_params(axis="x", length=0, labelsize=7)
    axes.set(xlim=(-0.6, len(classes) - 0.4), ylim=(0, top))
    s.share_axis(axes)


def draw_class_steps(axes: Axes, count: int, **style: Any) -> StepPatch:
    """Draw an outline, or with fill=True bars, over the classes; still flat."""
    return axes.stairs(np.zeros(count), np.arange(count + 1) - 0.5, **style)
