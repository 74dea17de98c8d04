"""The table of methods: a row states how a method differs from another.

A method is seven choices, and no code branches on its name: the inner attack, what a step computes
of each example, the criterion, the weight function, the normaliser and burn-in, the loss, the step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kit.attacks.fast_gradient_sign import one_step_fgsm
from kit.attacks.friendly_pgd_attack import friendly_pgd
from kit.attacks.projected_gradient_descent import pgd, trained_loss_pgd
from kit.core.errors import KitError, unknown_name
from kit.core.parameters import Share
from kit.core.parts import Part, controlled_by, part
from kit.core.registry import Registry
from kit.methods.criteria import CRITERIA, Criterion
from kit.methods.losses import (
    cost_sensitive,
    cross_entropy,
    gair_trades,
    mart,
    trades,
    trades_reversed,
)
from kit.methods.regularisers import conv_fuzziness, conv_kurtosis, conv_l1_minus_l2, weight_norms
from kit.methods.schedules import (
    adversarial,
    alternating,
    attacked_then_alternating,
    clean,
    clean_first_half,
    friendlier_first,
    linear,
    piecewise,
    warm_up,
)
from kit.methods.step_outputs import StepOutputs, fields_read_by
from kit.methods.weight_perturbation import perturb_weights
from kit.methods.weights import (
    affine,
    batch_mean,
    drop_confused,
    exponential,
    factor,
    flattened,
    proportional,
    sigmoid,
    tanh,
    unnormalised,
)


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Its parts state which fields of `StepOutputs` they read; others are not computed.
    """

    title: str
    source: str
    loss: Part = part(cross_entropy)  # noqa: RUF009 - parts are immutable
    attack: Part | None = None  # eps, steps and step come from the recipe
    second_attack: Part | None = None  # where the loss reads logits_second
    stages: Part = part(adversarial)  # noqa: RUF009 - (epoch, epochs) -> attacked?, per step
    criterion: Criterion | None = None
    weight: Part | None = None
    normaliser: Part = part(unnormalised)  # noqa: RUF009
    select: Part | None = None
    detach: bool = True  # False: the loss's gradient runs through the weight, too
    burn_in: Share = 0.0  # share of the epochs in which every weight is 1
    regulariser: Part | None = None
    perturb: Part | None = None  # shifts the parameters before each step
    schedule: Part | None = None  # (epoch, epochs) -> {"weight.shift": -1.0, ...}

    def but(self, title: str, source: str, **changes: Any) -> Method:
        """Return a row that differs from this one in `changes`, under its own title and source."""
        return replace(self, title=title, source=source, **changes)

    @property
    def reweights(self) -> bool:
        """Tell whether it weighs or selects examples at all."""
        return self.weight is not None or self.select is not None

    @property
    def reads(self) -> frozenset[str]:
        """Fields of `StepOutputs` that its loss, criterion and selection read."""
        names = fields_read_by(self.loss.func)
        if self.criterion is not None:
            names |= frozenset(self.criterion.reads)
        if self.select is not None:
            names |= fields_read_by(self.select.func)
        return names

    @property
    def attacks_first(self) -> bool:
        """Tell whether a batch is attacked before its first step, not just before its own."""
        return getattr(self.stages.func, "attacks_first", False)

    @cached_property
    def reads_clean(self) -> bool:
        """Tell whether a part needs the outer pass of the clean images."""
        return bool({"logits_nat", "probs_nat"} & self.reads)

    @property
    def scheduled(self) -> tuple[str, ...]:
        """Dotted names of the hyper-parameters that its schedule controls."""
        return controlled_by(self.schedule) if self.schedule else ()

    def weigh(self, outputs: StepOutputs) -> Tensor:
        """Compute the weights (N,) past burn-in, without gradient unless the row says otherwise."""
        outputs = outputs.detach() if self.detach else outputs
        weights = torch.ones_like(outputs.logits_adv[:, 0])
        if self.weight is not None:
            assert self.criterion is not None  # a weight is a function of its score
            weights = self.normaliser(self.weight(self.criterion.score(outputs)))
        if self.select is not None:
            weights = weights * self.select(outputs)
        return weights

    def trained_loss(self, logits: Tensor, y: Tensor, *, reweighted: bool = True) -> Tensor:
        """Return the loss (N,) of images with these logits, for attacks that ascend it."""
        outputs = StepOutputs(y, logits)
        weighted, plain = self.loss(outputs)
        return (self.weigh(outputs) if reweighted else 1) * weighted + plain

    def at(self, epoch: int, epochs: int) -> Method:
        """Return the row as it is in one epoch of a run: the values of its schedule put in."""
        method = self
        for path, value in (self.schedule(epoch, epochs) if self.schedule else {}).items():
            method = method.override(path, value)
        return method

    def override(self, path: str, value: object) -> Method:
        """Return this row with one hyper-parameter changed.

        It is named as `part.parameter`, say weight.slope.

        Raises:
            KitError: The row has no such part or parameter, or the value is out of its range.
        """
        slot, _, name = path.partition(".")
        chosen = getattr(self, slot)
        if chosen is None:
            raise KitError(
                f"{path}={value}: this method has no {slot}. It takes: "
                f"{', '.join(self.hyper_parameters())}"
            )
        return replace(self, **{slot: chosen.but(**{name: value})})

    def hyper_parameters(self) -> dict[str, Any]:
        """Return {dotted name: value} of every hyper-parameter that can be overridden."""
        found: dict[str, Any] = {}
        for slot in PART_NAMES:
            chosen = getattr(self, slot)
            if chosen is not None:
                params = (chosen.quantity if isinstance(chosen, Criterion) else chosen).keywords
                found |= {f"{slot}.{name}": value for name, value in params.items()}
        return {path: value for path, value in found.items() if path not in self.scheduled}

    def config(self) -> dict:
        """Return all that decides what it computes, as JSON values.

        Burn-in is not among it: it is resolved with the recipe.
        """
        parts = {slot: getattr(self, slot) for slot in PART_NAMES if slot != "criterion"}
        record = {slot: chosen.config() if chosen else None for slot, chosen in parts.items()} | {
            "detach": self.detach
        }
        if self.criterion is not None:
            record["criterion"] = {
                **self.criterion.quantity.config(),
                "reads": list(self.criterion.reads),
                "safe_end": self.criterion.safe_end,
            }
        return record


PART_NAMES = (
    "attack",
    "second_attack",
    "stages",
    "criterion",
    "weight",
    "normaliser",
    "select",
    "loss",
    "regulariser",
    "perturb",
    "schedule",
)


STD = Method("standard training on clean images", "-", stages=part(clean))

AT = Method(
    "adversarial training", "Madry et al. 2018", attack=part(pgd, loss="ce", init="gaussian")
)

TRADES = AT.but(
    "clean loss plus KL to the adversarial prediction",
    "Zhang et al. 2019",
    loss=part(trades, beta=6.0),
    attack=part(pgd, loss="kl", init="gaussian"),
)

MART = AT.but("boosted loss, KL weighted by 1 - p_y", "Wang et al. 2020", loss=part(mart, beta=5.0))

GAIRAT = AT.but(
    "weights from the attack steps survived",
    "Zhang et al. 2021; its code",
    criterion=CRITERIA["kappa"],
    weight=part(tanh),
    normaliser=part(batch_mean),
    burn_in=59 / 120,
    attack=part(pgd, loss="ce", init="uniform"),
)

MAIL_AT = AT.but(
    "weights from the probabilistic margin",
    "MAIL Alg. 1; factor 3 as in its code",
    criterion=CRITERIA["pm"],
    weight=part(sigmoid, slope=10.0, bias=-0.5),
    normaliser=part(factor),
    burn_in=75 / 120,
)

MAIL_TRADES = MAIL_AT.but(
    "TRADES with weights on the KL",
    "MAIL Eq. 10; KL order as in its code",
    weight=part(sigmoid, slope=2.0, bias=0.0),
    loss=part(trades, beta=5.0),
    attack=TRADES.attack,
)

MAIL_MART = MAIL_AT.but(
    "MART with weights on the boosted loss",
    "MAIL's code",
    weight=part(sigmoid, slope=2.0, bias=0.0),
    loss=part(mart, beta=6.0),
)

ADV = AT.but(
    "a clean and an adversarial step per batch, plain loss",
    "CSA s. III-C, Figs. 3, 4",
    stages=part(alternating),
)

CSA = ADV.but(
    "a clean and an adversarial step, with class costs in loss and attack",
    "CSA Eq. 4, Alg. 2",
    loss=part(cost_sensitive),
    attack=part(trained_loss_pgd, init="gaussian"),
)

CSA_CE = CSA.but(
    "CSA attacked on the cross-entropy alone",
    "CSA Eq. 4, the cost outside its maximum",
    attack=AT.attack,
)

CSE = STD.but(
    "clean images, class costs and the fuzziness of the convolutions",
    "CSE Eq. 10; γ not stated, chosen by a rule",
    loss=part(cost_sensitive),
    regulariser=part(conv_fuzziness, strength=20.0),
)

CSE_ADV = CSE.but(
    "CSE with a clean and an adversarial step per batch",
    "CSE s. IV",
    stages=part(alternating),
    attack=CSA.attack,
)


WMMR = AT.but(
    "weights exp(-α PM) with their gradient, and an attack on the weighted loss",
    "Zeng et al. 2021, its code",
    attack=part(trained_loss_pgd),
    criterion=CRITERIA["pm"],
    weight=part(exponential, alpha=0.5),
    detach=False,
)

WMMR_MR = MAIL_AT.but(
    "WMMR as MR uses it: detached, plain PGD, factor 3",
    "MR App. C, Alg. 1",
    weight=part(exponential, alpha=2.0),
)

MR_MAIL = MAIL_AT.but(
    "MAIL-AT on the reweighted margin",
    "MR Eqs. 14-16, the margin's sign corrected",
    criterion=CRITERIA["mr"],
)

VIR_AT = AT.but(
    "weights from vulnerability times discrepancy",
    "VIR Eqs. 5-6, 8; not normalised",
    criterion=CRITERIA["vir"],
    weight=part(affine, slope=1.0, offset=0.007),
    burn_in=75 / 120,
)

VIR_TRADES = VIR_AT.but(
    "TRADES with VIR's weights on the KL",
    "VIR Eq. 9; inner attack not stated, KL taken",
    criterion=CRITERIA["vir"].but(alpha=8.0, gamma=3.0),
    weight=part(affine, slope=1.0, offset=1.6),
    loss=part(trades, beta=5.0),
    attack=TRADES.attack,
)

BARE = part(affine, slope=1.0, offset=0.0)  # VIR Tables 6-7: the factor alone, without β


def _clir(base: Method, title: str) -> Method:
    return base.but(
        title, "CLIRAT Eq. 7, Alg. 1", criterion=CRITERIA["cl-pm"], normaliser=part(batch_mean)
    )


CLIRAT = _clir(MAIL_AT, "weights from the confused-label margin")
CLIR_TRADES = _clir(MAIL_TRADES, "TRADES with confused-label weights on the KL")
CLIR_MART = _clir(MAIL_MART, "MART with confused-label weights on the boosted loss")


def _by_mean(row: Method, title: str) -> Method:
    return row.but(title, "one difference: the batch mean", normaliser=part(batch_mean))


def _by_three(row: Method, title: str) -> Method:
    return row.but(title, "one difference: MAIL's factor 3", normaliser=part(factor))


def _without(which: str, title: str) -> Method:
    return MAIL_AT.but(title, "CLIRAT Fig. 1B", select=part(drop_confused, which=which))


METHODS = Registry(
    "method",
    {
        "std": STD,
        "at": AT,
        "adv": ADV,
        "trades": TRADES,
        "mart": MART,
        "fat": AT.but(
            "adversarial training on attacks that stop soon after they succeed",
            "Zhang et al. 2020, its code",
            attack=part(friendly_pgd),
            schedule=part(friendlier_first),
        ),
        "at-awp": AT.but(
            "AT where the parameters are perturbed, too",
            "Wu et al. 2020, its code",
            perturb=part(perturb_weights),
            attack=part(pgd, loss="ce", init="uniform"),
            schedule=part(warm_up, until=0.0, gamma=0.01),
        ),
        "trades-awp": TRADES.but(
            "TRADES where the parameters are perturbed, too",
            "Wu et al. 2020, its code",
            perturb=part(perturb_weights, gamma=0.005),
            schedule=part(warm_up),
        ),
        "gairat": GAIRAT,
        "mail-at": MAIL_AT,
        "mail-at-nat": MAIL_AT.but(
            "MAIL-AT on the clean margin", "MAIL Table 1", criterion=CRITERIA["pm-nat"]
        ),
        "mail-at-dif": MAIL_AT.but(
            "MAIL-AT on the margin lost until the flip",
            "MAIL Table 1, Eq. 7",
            criterion=CRITERIA["pm-dif"],
        ),
        "mail-trades": MAIL_TRADES,
        "mail-mart": MAIL_MART,
        # Criterion x normaliser: SQUARES below names the four rows of each base.
        "mail-at-printed": MAIL_AT.but(
            "MAIL-AT with weights normalised over the batch",
            "MAIL Alg. 1 as printed",
            normaliser=part(batch_mean),
        ),
        "mail-trades-mean": _by_mean(MAIL_TRADES, "MAIL-TRADES with weights of mean 1"),
        "mail-mart-mean": _by_mean(MAIL_MART, "MAIL-MART with weights of mean 1"),
        "clirat": CLIRAT,
        "clir-trades": CLIR_TRADES,
        "clir-mart": CLIR_MART,
        "clirat-x3": _by_three(CLIRAT, "CLIRAT with weights times 3"),
        "clir-trades-x3": _by_three(CLIR_TRADES, "CLIR-TRADES with weights times 3"),
        "clir-mart-x3": _by_three(CLIR_MART, "CLIR-MART with weights times 3"),
        "mail-trades-nat": MAIL_TRADES.but(
            "MAIL-TRADES on the clean margin", "MAIL Table 1", criterion=CRITERIA["pm-nat"]
        ),
        "mail-mart-nat": MAIL_MART.but(
            "MAIL-MART on the clean margin", "MAIL Table 1", criterion=CRITERIA["pm-nat"]
        ),
        "mail-at-logit": MAIL_AT.but(
            "MAIL-AT on the margin before the softmax",
            "MAIL s. 3.1",
            criterion=CRITERIA["logit-margin"],
        ),
        "mail-at-burn-in-74": MAIL_AT.but(
            "MAIL-AT with the 74 epochs of burn-in of its text", "MAIL s. 4", burn_in=74 / 120
        ),
        "mail-at-unit-noise": MAIL_AT.but(
            "MAIL-AT whose attack starts from x + U(0, 1)",
            "MAIL Alg. 1 as printed",
            attack=part(pgd, loss="ce", init="unit"),
        ),
        "mail-trades-eq10": MAIL_TRADES.but(
            "MAIL-TRADES with the KL from the attacked to the clean prediction",
            "MAIL Eq. 10 as printed",
            loss=part(trades_reversed, beta=5.0),
        ),
        "clirat-from-x": CLIRAT.but(
            "CLIRAT whose attack starts at x itself",
            "CLIRAT Alg. 1 as printed",
            attack=part(pgd, loss="ce", init="none"),
        ),
        "clirat-printed": CLIRAT.but(
            "CLIRAT without burn-in, which its last line overwrites",
            "CLIRAT Alg. 1 to the letter",
            burn_in=0.0,
        ),
        "clirat-burn-in-30": CLIRAT.but(
            "CLIRAT with 30 epochs of burn-in",
            "CLIRAT s. 4.1: is burn-in needed?",
            burn_in=30 / 120,
        ),
        "clirat-drop-single": _without("single", "MAIL-AT without examples of one confused label"),
        "clirat-drop-multiple": _without(
            "multiple", "MAIL-AT without examples of several confused labels"
        ),
        "clirat-drop-matched": _without(
            "multiple-matched", "MAIL-AT without as many of S_mul as S_sig has (control)"
        ),
        "clirat-drop-random": _without(
            "random", "MAIL-AT without as many random examples as S_mul has (control)"
        ),
        "gairat-lps": GAIRAT.but(
            "GAIRAT by the first misclassified step in place of κ",
            "MAIL s. 2.2",
            criterion=CRITERIA["lps"],
        ),
        "gairat-sigmoid": GAIRAT.but(
            "GAIRAT with its sigmoid", "its code", weight=part(sigmoid, slope=5.0, bias=-0.2)
        ),
        "gairat-discrete": GAIRAT.but(
            "GAIRAT with (K+1-κ)/(K+1), for K = 10",
            "its code",
            weight=part(affine, slope=5 / 11, offset=6 / 11),
        ),
        "gairat-piecewise": GAIRAT.but(
            "GAIRAT with λ in three steps", "its code as it is meant", schedule=part(piecewise)
        ),
        "gairat-linear": GAIRAT.but(
            "GAIRAT with λ falling in a line", "its code, λ_max made finite", schedule=part(linear)
        ),
        "gair-mart": GAIRAT.but(
            "MART with GAIRAT's weights on the boosted loss",
            "no code exists; as MAIL-MART does it",
            loss=part(mart, beta=6.0),
        ),
        "gair-trades": GAIRAT.but(
            "TRADES between a KL and a CW attack, mixed by GAIRAT's weight",
            "its code, GAIR_RST",
            loss=part(gair_trades),
            normaliser=part(unnormalised),
            attack=TRADES.attack,
            second_attack=part(pgd, loss="margin", init="gaussian"),
        ),
        "ewat": AT.but(
            "weights from the entropy of the adversarial prediction",
            "its abstract; offset and norm are guesses",
            criterion=CRITERIA["entropy"],
            weight=part(proportional),
            normaliser=part(batch_mean),
        ),
        "wmmr": WMMR,
        "wmmr-mr": WMMR_MR,
        "wmmr-trades": TRADES.but(
            "TRADES with exp(-α PM) on the KL, with its gradient",
            "Zeng et al. 2021, its code",
            criterion=CRITERIA["pm"],
            weight=part(exponential, alpha=2.0),
            detach=False,
            loss=part(trades, beta=5.0),
        ),
        "mr-mail": MR_MAIL,
        "mr-mail-nosim": MR_MAIL.but(
            "MR-MAIL without the similarity",
            "MR Tables 4, 7",
            criterion=CRITERIA["mr"].but(similarity=False),
        ),
        "mr-mail-literal": MR_MAIL.but(
            "MR-MAIL with Eq. 4's sign as printed: weighs the safe",
            "MR Eqs. 4, 15 as printed",
            criterion=CRITERIA["mr-literal"],
        ),
        "mr-mail-alg1": MR_MAIL.but(
            "MR-MAIL with Algorithm 1's sign of the bias",
            "MR Alg. 1 l. 10",
            weight=part(sigmoid, slope=10.0, bias=0.5),
        ),
        "mr-wmmr": WMMR_MR.but(
            "WMMR on the reweighted margin, α dropped",
            "MR s. 3.4, Eqs. 14-16",
            criterion=CRITERIA["mr"],
            weight=part(exponential, alpha=1.0),
        ),
        "mr-wmmr-literal": WMMR_MR.but(
            "MR-WMMR with Eq. 4's sign as printed: weighs the safe",
            "MR Eqs. 4, 15 as printed",
            criterion=CRITERIA["mr-literal"],
            weight=part(exponential, alpha=1.0),
        ),
        "vir-at": VIR_AT,
        "vir-at-sv": VIR_AT.but(
            "VIR-AT with vulnerability alone", "VIR Table 6", criterion=CRITERIA["s-v"], weight=BARE
        ),
        "vir-at-sd": VIR_AT.but(
            "VIR-AT with discrepancy alone", "VIR Table 6", criterion=CRITERIA["s-d"], weight=BARE
        ),
        "vir-trades": VIR_TRADES,
        "vir-trades-sv": VIR_TRADES.but(
            "VIR-TRADES with vulnerability alone",
            "VIR Table 7",
            weight=BARE,
            criterion=CRITERIA["s-v"].but(alpha=8.0, gamma=3.0),
        ),
        "vir-trades-sd": VIR_TRADES.but(
            "VIR-TRADES with discrepancy alone",
            "VIR Table 7",
            criterion=CRITERIA["s-d"],
            weight=BARE,
        ),
        "vir-at-burn-in-0": VIR_AT.but(
            "VIR-AT without burn-in", "VIR s. 4.4: is burn-in needed?", burn_in=0.0
        ),
        "vir-at-burn-in-30": VIR_AT.but(
            "VIR-AT with 30 epochs of burn-in", "VIR s. 4.4: is burn-in needed?", burn_in=30 / 120
        ),
        "vir-at-mean": _by_mean(VIR_AT, "VIR-AT with weights of mean 1"),
        "vir-trades-mean": _by_mean(VIR_TRADES, "VIR-TRADES with weights of mean 1"),
        "trades-scaled": VIR_TRADES.but(
            "TRADES with the KL scaled by VIR's mean weight (control)",
            "is VIR more than a smaller KL?",
            normaliser=part(flattened),
        ),
        "at-scaled": VIR_AT.but(
            "AT with the loss scaled by VIR's mean weight (control)",
            "is VIR more than a smaller step?",
            normaliser=part(flattened),
        ),
        "mail-at-released": MAIL_AT.but(
            "MAIL-AT with the 76 epochs of burn-in of its code", "MAIL's code", burn_in=76 / 120
        ),
        "mail-trades-released": MAIL_TRADES.but(
            "MAIL-TRADES with the 76 epochs of burn-in of its code", "MAIL's code", burn_in=76 / 120
        ),
        "mail-mart-released": MAIL_MART.but(
            "MAIL-MART with the 76 epochs of burn-in of its code", "MAIL's code", burn_in=76 / 120
        ),
        "mail-trades-2021": MAIL_TRADES.but(
            "MAIL-TRADES attacked with cross-entropy, as first released",
            "MAIL's code until 2022-04",
            attack=AT.attack,
        ),
        "csa": CSA,
        "csa-halves": CSA.but(
            "CSA: clean in the first half of training, then adversarial",
            "CSA s. IV-A, MNIST",
            stages=part(clean_first_half),
        ),
        "csa-attack-first": CSA.but(
            "CSA whose attack is made before the batch's clean step",
            "CSA Alg. 1 as printed",
            stages=part(attacked_then_alternating),
        ),
        "csa-ce": CSA_CE,
        "csa-fgsm": CSA_CE.but(
            "CSA attacked by one step on the cross-entropy",
            "CSA Eqs. 5-7",
            attack=part(one_step_fgsm),
        ),
        "csa-l2": CSA.but(
            "CSA plus the norms of the weight tensors",
            "CSA Eq. 7; coefficient as in its code",
            regulariser=part(weight_norms),
        ),
        "cse": CSE,
        "cse-l1l2": CSE.but(
            "CSE with ‖W‖₁ - ‖W‖₂ in the fuzziness's place",
            "CSE's code; its 1 is too much for digits",
            regulariser=part(conv_l1_minus_l2, strength=0.01),
        ),
        "cse-kurtosis": CSE.but(
            "CSE with the kurtosis in the fuzziness's place",
            "CSE's code, where it has no gradient",
            regulariser=part(conv_kurtosis, strength=0.01),
        ),
        "cse-adv": CSE_ADV,
        "cse-adv-halves": CSE_ADV.but(
            "CSE+ADV: clean in the first half of training, then adversarial",
            "CSE s. IV-A, MNIST",
            stages=part(clean_first_half),
        ),
    },
)


#: Criterion x normaliser: {base: {(criterion, normaliser): row of METHODS}}. Within a base the four
#: rows differ in these two alone, so that an effect of one is told from an effect of the other.
#: MAIL's own rows multiply by 3, CLIRAT's own have batch mean 1.
SQUARES: dict[str, dict[tuple[str, str], str]] = {
    "at": {
        ("pm", "factor"): "mail-at",
        ("pm", "batch_mean"): "mail-at-printed",
        ("cl-pm", "factor"): "clirat-x3",
        ("cl-pm", "batch_mean"): "clirat",
    },
    "trades": {
        ("pm", "factor"): "mail-trades",
        ("pm", "batch_mean"): "mail-trades-mean",
        ("cl-pm", "factor"): "clir-trades-x3",
        ("cl-pm", "batch_mean"): "clir-trades",
    },
    "mart": {
        ("pm", "factor"): "mail-mart",
        ("pm", "batch_mean"): "mail-mart-mean",
        ("cl-pm", "factor"): "clir-mart-x3",
        ("cl-pm", "batch_mean"): "clir-mart",
    },
}


def controls_between(one: str, other: str) -> tuple[str, ...]:
    """Name the rows that differ from `one` and from `other` in a single thing each.

    They are the two other corners of a square where the names are opposite corners of it, which
    differ in criterion and normaliser; else there are none.
    """
    for square in SQUARES.values():
        places = {row: place for place, row in square.items()}
        if {one, other} <= set(places) and not set(places[one]) & set(places[other]):
            return tuple(row for row in places if row not in (one, other))
    return ()


def check_override(method: Method, path: str) -> None:
    """Refuse a dotted name of which the row takes no hyper-parameter.

    Raises:
        KitError: The name is unknown, or its value follows the row's schedule.
    """
    if method.schedule is not None and path in method.scheduled:
        own = [name for name in method.hyper_parameters() if name.startswith("schedule.")]
        raise KitError(
            f"{path} follows the timetable {method.schedule.name}; change that: {', '.join(own)}"
        )
    if path not in method.hyper_parameters():
        raise unknown_name("hyper-parameter", path, method.hyper_parameters())
