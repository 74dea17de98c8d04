"""A weighting curve that is drawn by hand, as a method like any other.

`points` is the weight function, `own_curve` the row, and the heights are its hyper-parameters, so
every curve has a run of its own that is trained once. The row stands in no table of the kit:
whoever needs its name enters `own_curve_named`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kit.core.errors import KitError
from kit.core.parameters import NonNegative
from kit.core.parts import part
from kit.experiments.runs import Run, run_folder
from kit.experiments.specification import RunSpec, resolve
from kit.methods.criteria import CRITERIA
from kit.methods.table import METHODS, Method
from kit.methods.weights import batch_mean

#: The name by which runs of a drawn curve are asked for.
OWN_CURVE = "own-curve"

#: How many heights the widget draws.
CURVE_POINTS = 8


def points(score: Tensor, *, heights: tuple[NonNegative, ...] = (1.0,) * CURVE_POINTS) -> Tensor:
    """Weights on straight lines between `heights`, (N,).

    The heights stand evenly from score -1 (safe) to 1 (misclassified). Scores beyond that range
    take the outer heights.

    Raises:
        KitError: there are fewer than two heights, or none is above 0.
    """
    if len(heights) < 2 or not max(heights) > 0:
        raise KitError(
            f"heights={list(heights)} must be two or more numbers of at least 0, one of them "
            "above 0; lift a point"
        )
    table = torch.tensor(heights, dtype=score.dtype, device=score.device)
    place = (score.clamp(-1, 1) + 1) / 2 * (len(heights) - 1)
    left = place.floor().long().clamp(0, len(heights) - 2)
    return table[left] + (place - left) * (table[left + 1] - table[left])


def own_curve(heights: tuple[float, ...] = (1.0,) * CURVE_POINTS) -> Method:
    """The row of a drawn curve: AT with weights `points` of PM under attack, after MAIL's burn-in.

        kit.METHODS["own-curve"] = kit.widgets.own_curve()
        kit.run("own-curve", overrides={"weight.heights": [0, 0, 0, 0.5, 1, 1, 1, 1]})

    Weights have mean 1 over the batch. With equal heights the method is AT.

    Raises:
        KitError: a height is negative or no number.
    """
    return METHODS["at"].but(
        "weights from a curve drawn by hand",
        "-",
        criterion=CRITERIA["pm"],
        weight=part(points, heights=heights),
        normaliser=part(batch_mean),
        burn_in=METHODS["mail-at"].burn_in,
    )


@contextlib.contextmanager
def own_curve_named() -> Iterator[None]:
    """Within, `own-curve` names the row of `own_curve`; afterwards kit.METHODS is as it was."""
    missing = object()
    before = METHODS.get(OWN_CURVE, missing)
    METHODS[OWN_CURVE] = own_curve()
    try:
        yield
    finally:
        if before is missing:
            del METHODS[OWN_CURVE]
        else:
            METHODS[OWN_CURVE] = before


def open_run(spec: RunSpec) -> Run:
    """The handle on a run of a drawn curve or of any row, whether it is trained or not.

    Its plan is fixed here, so that nobody needs the curve's name afterwards.
    """
    with own_curve_named():
        run = Run(spec, run_folder(resolve(spec)))
        _ = run.plan  # resolved, and kept, while the name is known
    return run


def train_entrants(specs: Sequence[dict[str, Any]], attacks: Sequence[str]) -> None:
    """Train the runs that `RunSpec.words` describe, and evaluate each under `attacks`, in order."""
    from kit.evaluation.accuracy import evaluate
    from kit.training.runner import run  # the kernel that only watches need not load it

    with own_curve_named():
        for words in specs:
            evaluate(run(RunSpec(**words), quiet=True), attacks, quiet=True)
