"""Closed-form risks of a network trained on the Gaussian mixture."""

from __future__ import annotations

from typing import Any

import pandas as pd

from kit.data.gaussian_mixture import MIXTURE, MIXTURE_CLASSES, linear_rule, risks


def class_risks(run: Any, which: str = "last") -> pd.DataFrame:
    """Compute the natural and robust risk of each class, in closed form.

    `run` is a `kit.Run` that was trained on `mixture`. Rows are the classes, as in `kit.per_class`,
    whose accuracies are the measured side: 1 - risk is what they estimate under "natural" and
    "pgd20", with the run's own norm and eps.

    Raises:
        KitError: As `linear_rule`.
    """
    w, b = linear_rule(run, which)
    robust = risks(MIXTURE, w, b, run.plan.recipe.eps / MIXTURE.scale, run.plan.recipe.norm)
    return pd.DataFrame(
        {"natural": risks(MIXTURE, w, b), "robust": robust},
        index=pd.Index(MIXTURE_CLASSES, name="class"),
    )
