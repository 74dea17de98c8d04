"""How near is this example to being misclassified? Each paper's own quantity, and one sign for all.

The functions return the paper's quantity under its own name and sign. A `Criterion` row says which
sign is the safe one, and `Criterion.score` turns it round where needed: a score is always
*vulnerability*, larger should weigh more. So the papers' clashing signs cannot enter the rest of
the code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from torch import Tensor

from kit.core import tensors
from kit.core.parameters import Positive, Range
from kit.core.parts import Part, part
from kit.core.registry import Registry
from kit.methods.step_outputs import StepOutputs, check_fields


def probabilistic_margin(probs: Tensor, y: Tensor) -> Tensor:
    """PM = p_y - max_{j≠y} p_j.

    Returns (N,) in [-1, 1] from probabilities (N, K).

    Source: MAIL Eq. 4.
    """
    true, other = tensors.true_and_top_other(probs, y)
    return true - other


def margin_difference(probs_nat: Tensor, y: Tensor, p_flip: Tensor) -> Tensor:
    """PM_dif = p_y(x) - p_y(x + δ^t) at the first misclassified step t.

    Returns (N,) in [-1, 1]; `p_flip` (N,) is the second term. Small means that little probability
    had to be moved. The paper gives the range [0, 1]; an attack step can also raise p_y, so it is
    [-1, 1].

    Source: MAIL Eq. 7.
    """
    return probs_nat.gather(1, y[:, None]).squeeze(1) - p_flip


def confused_labels(probs: Tensor, y: Tensor) -> Tensor:
    """Number of labels with p_j > p_y.

    Returns (N,) int64: 0 where the prediction is correct, else 1 to K-1.

    Source: CLIRAT section 1.
    """
    return (probs > probs.gather(1, y[:, None])).sum(dim=1)


def confused_label_margin(probs: Tensor, y: Tensor) -> Tensor:
    """CL-PM = PM where no label beats y, else Σ_{j: p_j > p_y} (p_y - p_j).

    Returns (N,) in [-1, 1].

    Source: CLIRAT Eq. 7.
    """
    gaps = (probs.gather(1, y[:, None]) - probs).clamp_max(0).sum(dim=1)
    return gaps.where(gaps < 0, probabilistic_margin(probs, y))


def geometry_value(kappa: Tensor, steps: int) -> Tensor:
    """(κ - ⌊K/2⌋) / ⌊K/2⌋: GAIRAT's κ of K attack steps, centred and scaled.

    Returns (N,) float64, in [-1, 1] for even K. κ counts the attack's evaluation points (the start
    included, the end not) that are still classified correctly. It is not the step of the first
    crossing, which is LPS.

    Source: GAIRAT; VIR Eq. 2.
    """
    half = max(steps // 2, 1)
    return (kappa.double() - half) / half


def least_steps_value(lps: Tensor, steps: int) -> Tensor:
    """(LPS - ⌊K/2⌋) / ⌊K/2⌋: MAIL's name for what GAIRAT weighs by, centred and scaled as κ is.

    Returns (N,) float64, in [-1, 1] for even K. LPS is the first misclassified step, K if there is
    none. Where a path crosses the boundary once it is κ.

    Source: MAIL s. 2.2.
    """
    return geometry_value(lps, steps)


def logit_margin(logits_adv: Tensor, y: Tensor) -> Tensor:
    """z_y - max_{j≠y} z_j: the margin before the softmax.

    Returns (N,), unbounded, from the logits (N, K) of x_adv.

    Source: MAIL s. 3.1, which takes probabilities instead.
    """
    return tensors.margin(logits_adv, y)


def top2_ratio(probs: Tensor, y: Tensor) -> Tensor:
    """Ratio o = p_2 / (1 - p_y): 1 when one class takes all the error mass.

    Returns (N,) in [1/(K-1), 1]. Where p_y = 1 the ratio is 0/0 and its lower end 1/(K-1) is
    returned.

    Source: MR Eq. 7.
    """
    _, other = tensors.true_and_top_other(probs, y)
    rest = probs.scatter(1, y[:, None], 0).sum(dim=1)
    return (other / rest.where(rest > 0, 1)).where(rest > 0, 1 / (probs.shape[1] - 1))


def true_class_similarity(probs: Tensor, y: Tensor) -> Tensor:
    """Cosine c of p and p with its true entry zeroed: ‖p_{-y}‖ / ‖p‖.

    Returns (N,) in [0, 1].

    Source: MR Eq. 11.
    """
    return probs.scatter(1, y[:, None], 0).norm(dim=1) / probs.norm(dim=1)


def reweighted_margin(
    probs: Tensor, y: Tensor, *, tau: Annotated[float, Range(1)] = 2.0, similarity: bool = True
) -> Tensor:
    """m̃ = PM · (τ - o) · c, or without c.

    Returns (N,). The margin's sign is that of p_y - p_2: Eq. 4 prints it with the other sign, and
    with Eqs. 15-16 that would give safe examples the large weight. τ is at least 1, so that the
    scale is not negative; with τ = 1 (Eq. 9) it is 0 where one class has all the error mass.

    Source: MR Eq. 14.
    """
    scale = tau - top2_ratio(probs, y)
    if similarity:
        scale = scale * true_class_similarity(probs, y)
    return probabilistic_margin(probs, y) * scale


def vulnerability(
    probs_nat: Tensor, y: Tensor, *, alpha: Positive = 7.0, gamma: Positive = 10.0
) -> Tensor:
    """S_v = α exp(-γ p_y(x)).

    Returns (N,) in (0, α].

    Source: VIR Eq. 5.
    """
    return alpha * (-gamma * probs_nat.gather(1, y[:, None]).squeeze(1)).exp()


def discrepancy(probs_nat: Tensor, probs_adv: Tensor) -> Tensor:
    """S_d = KL(p(x) ‖ p(x_adv)).

    Returns (N,) >= 0, in nats.

    Source: VIR Eq. 6.
    """
    tiny = 1e-37  # 0 log 0 = 0; a q that underflows counts as 1e-37
    log_ratio = probs_nat.clamp_min(tiny).log() - probs_adv.clamp_min(tiny).log()
    return (probs_nat * log_ratio).sum(dim=1)


def vulnerability_discrepancy(
    probs_nat: Tensor,
    probs_adv: Tensor,
    y: Tensor,
    *,
    alpha: Positive = 7.0,
    gamma: Positive = 10.0,
) -> Tensor:
    """S_v S_d; the paper's β is the weight function's offset.

    Returns (N,) >= 0.

    Source: VIR Eqs. 5-6.
    """
    return vulnerability(probs_nat, y, alpha=alpha, gamma=gamma) * discrepancy(probs_nat, probs_adv)


def entropy(probs: Tensor) -> Tensor:
    """H(p) = -Σ_j p_j log p_j.

    Returns (N,) in [0, log K], in nats.

    Source: EWAT, as its abstract describes it.
    """
    return -(probs * probs.clamp_min(1e-37).log()).sum(dim=1)


@dataclass(frozen=True)
class Criterion:
    """A quantity, the fields of `StepOutputs` it is computed from, and which end is the safe one.

    Raises:
        KitError: `reads` names a field that a step does not compute.
    """

    title: str
    quantity: Part
    reads: tuple[str, ...]  # fields of StepOutputs, in the order the function takes them
    safe_end: Literal[1, -1]  # +1: larger is safer; -1: larger is more vulnerable
    symbol: str  # as the paper writes it, for axes
    source: str

    def __post_init__(self) -> None:
        check_fields(self.title, self.reads)

    def value(self, outputs: StepOutputs) -> Tensor:
        """Compute the paper's own quantity, (N,), in the precision of the logits."""
        arguments = [getattr(outputs, name) for name in self.reads]
        return self.quantity(*arguments).to(outputs.logits_adv.dtype)

    def score(self, outputs: StepOutputs) -> Tensor:
        """Compute the vulnerability, (N,): larger should weigh more."""
        return -self.safe_end * self.value(outputs)

    def but(self, **changes: Any) -> Criterion:
        """Return this row with some hyper-parameters of its quantity changed.

        Raises:
            KitError: A name is unknown or a value is out of its range.
        """
        return replace(self, quantity=self.quantity.but(**changes))


CRITERIA = Registry(
    "criterion",
    {
        "pm": Criterion(
            "probabilistic margin of the adversarial example (MAIL)",
            part(probabilistic_margin),
            ("probs_adv", "y"),
            +1,
            r"$\mathrm{PM}^{adv}$",
            "MAIL Eq. 4 on x_adv",
        ),
        "pm-nat": Criterion(
            "probabilistic margin of the clean example (MAIL)",
            part(probabilistic_margin),
            ("probs_nat", "y"),
            +1,
            r"$\mathrm{PM}^{nat}$",
            "MAIL Eq. 4 on x",
        ),
        "pm-dif": Criterion(
            "probability lost until the first misclassified step (MAIL)",
            part(margin_difference),
            ("probs_nat", "y", "p_flip"),
            +1,
            r"$\mathrm{PM}^{dif}$",
            "MAIL Eq. 7",
        ),
        "cl-pm": Criterion(
            "confused-label probabilistic margin (CLIRAT)",
            part(confused_label_margin),
            ("probs_adv", "y"),
            +1,
            r"$\mathrm{CL\!-\!PM}$",
            "CLIRAT Eq. 7",
        ),
        "confused-labels": Criterion(
            "number of labels above the true one (CLIRAT)",
            part(confused_labels),
            ("probs_adv", "y"),
            -1,
            "confused labels",
            "CLIRAT section 1",
        ),
        "kappa": Criterion(
            "attack steps survived, centred and scaled (GAIRAT)",
            part(geometry_value),
            ("kappa", "steps"),
            +1,
            r"$(\kappa-\lfloor K/2\rfloor)/\lfloor K/2\rfloor$",
            "GAIRAT; VIR Eq. 2",
        ),
        "lps": Criterion(
            "first misclassified attack step, centred and scaled (GAIRAT as MAIL describes it)",
            part(least_steps_value),
            ("lps", "steps"),
            +1,
            r"$(\mathrm{LPS}-\lfloor K/2\rfloor)/\lfloor K/2\rfloor$",
            "MAIL s. 2.2",
        ),
        "logit-margin": Criterion(
            "margin of the adversarial example before the softmax (MAIL)",
            part(logit_margin),
            ("logits_adv", "y"),
            +1,
            r"$z_y - z_2$",
            "MAIL s. 3.1 on x_adv",
        ),
        "mr": Criterion(
            "reweighted margin (MR)",
            part(reweighted_margin),
            ("probs_adv", "y"),
            +1,
            r"$\tilde m$",
            "MR Eq. 14",
        ),
        "s-v": Criterion(
            "vulnerability of the clean example (VIR)",
            part(vulnerability),
            ("probs_nat", "y"),
            -1,
            r"$S_v$",
            "VIR Eq. 5",
        ),
        "s-d": Criterion(
            "clean-adversarial discrepancy (VIR)",
            part(discrepancy),
            ("probs_nat", "probs_adv"),
            -1,
            r"$S_d$",
            "VIR Eq. 6",
        ),
        "vir": Criterion(
            "vulnerability times discrepancy (VIR)",
            part(vulnerability_discrepancy),
            ("probs_nat", "probs_adv", "y"),
            -1,
            r"$S_v S_d$",
            "VIR Eqs. 5-6",
        ),
        "mr-literal": Criterion(
            "reweighted margin with Eq. 4's sign: calls safe examples vulnerable (MR)",
            part(reweighted_margin),
            ("probs_adv", "y"),
            -1,
            r"$\tilde m$",
            "MR Eqs. 4, 14 as printed",
        ),
        "entropy": Criterion(
            "entropy of the adversarial prediction (EWAT)",
            part(entropy),
            ("probs_adv",),
            -1,
            r"$H(p)$",
            "EWAT abstract",
        ),
    },
)
