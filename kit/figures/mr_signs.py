"""MR Eqs. 4 and 14 to 16, Algorithm 1: its weights with the signs as printed and corrected."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes

from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData
from kit.figures.run_outputs import describe_setting
from kit.methods.criteria import probabilistic_margin
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import METHODS
from kit.papers.claim_verdict import Estimate

SIGN_VARIANTS = {
    "mr-mail": "Eqs. 14-16, sign corrected",
    "mr-mail-literal": "Eq. 4 as printed",
    "mr-mail-alg1": "Algorithm 1's bias",
    "mail-at": "for comparison",
}


def compute_mr_signs(run: Run) -> FigureData:
    """The weight that each variant gives to the last probe's examples, and to the robust ones."""
    arrays = run.epoch(run.epochs)
    outputs = StepOutputs(
        torch.from_numpy(arrays["seen_y"].astype(np.int64)),
        torch.from_numpy(arrays["seen_logits_adv"]).double(),
    )
    margin = probabilistic_margin(outputs.probs_adv, outputs.y).numpy()
    robust = (outputs.logits_adv.argmax(dim=1) == outputs.y).numpy()
    weights = {method: METHODS[method].weigh(outputs).numpy() for method in SIGN_VARIANTS}
    facts = {
        "n": len(margin),
        "robust_share": float(robust.mean()),
        "methods": {
            method: {
                "weight_on_robust": float(weight[robust].sum() / weight.sum()),
                "mean_weight": float(weight.mean()),
            }
            for method, weight in weights.items()
        },
    }
    moment = run.moment(run.epochs)
    extras = {"margin": margin, "robust": robust, "weights": weights, "moment": moment}
    return FigureData(facts, describe_setting(run), run.method, extras)


def draw_mr_signs(data: FigureData) -> Drawing:
    """Draw weight against margin, a panel for each variant."""
    drawing = Drawing(7.6, 2.7)
    panels = drawing.subplots(1, len(SIGN_VARIANTS), sharey=True)
    for panel, (method, words) in zip(panels, SIGN_VARIANTS.items(), strict=True):
        share = data.facts["methods"][method]["weight_on_robust"]
        _draw_weight_by_margin(panel, data.extras, method, share)
        panel.set_title(f"{s.label(method)}\n{words}", fontsize=8)
    panels[0].set_ylabel("weight")
    return drawing


def _draw_weight_by_margin(panel: Axes, extras: dict, method: str, share: float) -> None:
    margin, robust, weight = extras["margin"], extras["robust"], extras["weights"][method]
    for mask, tint in ((robust, s.BLUE), (~robust, s.VERMILLION)):
        panel.scatter(margin[mask], weight[mask], s=9, alpha=0.5, color=tint, linewidth=0)
    panel.axvline(0, color=s.GREY, linewidth=0.8)
    panel.set(xlabel=r"$p_y - p_2$ under attack", xlim=(-1.05, 1.05), ylim=(-0.1, 3.15))
    panel.annotate(
        f"{share:.0%} of\nthe weight\non robust\nexamples",
        (0.98, 0.5),
        xycoords="axes fraction",
        ha="right",
        fontsize=7,
        color=s.BLUE,
    )


def decide_mr_signs(data: FigureData) -> list[Claim]:
    """Decide whether MR as printed gives most of the weight to the vulnerable."""
    parts = {m: fact["weight_on_robust"] for m, fact in data.facts["methods"].items()}
    return [
        Claim(
            "MR weighs the vulnerable (MR Eqs. 4, 15 as printed)",
            "larger weights for smaller margins",
            f"{parts['mr-mail-literal']:.0%} of the weight on examples that are right under "
            f"attack, {parts['mr-mail']:.0%} with the margin's sign turned",
            (Estimate("weight on robust examples", "< 0.5", *(parts["mr-mail-literal"],) * 3),),
        )
    ]


def describe_mr_signs(data: FigureData) -> str:
    """The caption: the share of the weight on robust examples, by variant."""
    facts = data.facts
    parts = ", ".join(
        f"{s.label(m)} {fact['weight_on_robust']:.0%}" for m, fact in facts["methods"].items()
    )
    return (
        f"MR prints its margin with two signs. {data.setting}, {data.method} "
        f"{data.extras['moment']}, {facts['n']} training images of which "
        f"{facts['robust_share']:.0%} are right under attack (blue). Share of the total weight on "
        f"those: {parts}."
    )
