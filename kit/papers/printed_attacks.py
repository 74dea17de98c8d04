"""The papers' attacks at evaluation, as rows of `kit.ATTACKS`."""

from __future__ import annotations

from typing import Any

from kit.attacks.table import ATTACKS
from kit.core.registry import Registry

#: Printed attack -> row of `kit.ATTACKS`. CSA states no steps for its PGD; MR's CW-PGD has 100, the
#: others' CW 20.
NAMED = Registry(
    "printed attack",
    {
        "natural": "natural",
        "fgsm": "fgsm",
        "pgd": "pgd20",
        "pgd20": "pgd20",
        "pgd100": "pgd100",
        "lm-pgd": "lm-pgd50",
        "cw": "cw20",
        "cw_pgd": "cw100",
        "apgd_ce": "apgd-ce",
        "aa": "aa",
        "fmn100": "fmn100",
        "mde": "mde",
        "square": "square",
        "spsa": "spsa100",
        "mia": "mia",
        "linfbia": "bia",
        "l2bia": "l2bia",
    },
)

#: Where a paper means another attack by the name. CSA's CW is Carlini and Wagner's own, and it says
#: that all its perturbations are limited to an L-inf ball; unbounded it would break every image,
#: where the paper prints accuracies from 0.24 to 0.91 on MNIST.
BY_PAPER = {("csa", "cw"): "cw-linf"}

#: Where a paper prints another step than the kit's usual one: VIR's is 1/255 at an eps of 8/255.
OWN_STEP = {
    ("vir", "pgd20"): "pgd20-eighth",
    ("vir", "pgd100"): "pgd100-eighth",
    ("vir", "cw"): "cw20-eighth",
}


def attack_of(paper: str, printed: str, *, paper_scale: bool = True) -> str:
    """Return the row of `kit.ATTACKS` that a paper means; at its scale with the step it prints."""
    named = BY_PAPER.get((paper, printed)) or NAMED[printed]
    return OWN_STEP.get((paper, printed), named) if paper_scale else named


def attack_settings(name: str, eps: float) -> dict[str, Any]:
    """Return {eps, step_size, steps} of a row of `kit.ATTACKS`, in pixels; None: it has no such."""
    own = ATTACKS[name].config()
    length = own["step"] * eps if "step" in own else own.get("step_size", own.get("lr"))
    return {"eps": eps, "step_size": length, "steps": own.get("steps", own.get("queries"))}
