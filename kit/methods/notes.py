"""Where papers and code disagree about a method, and what its numbers may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

#: (patterns of method names, where paper and code disagree or leave something open, and what is
#: taken here).
NOTES = (
    (
        "trades trades-awp *-trades",
        "TRADES's code passes the clean images twice through the batch norms in train mode, MAIL's "
        "version of it once, as here; the running statistics differ.",
    ),
    (
        "mart *-mart",
        "Three small constants that keep logarithms finite (1.0001, 1e-12, 1.0000001) are in "
        "MART's code and in no formula of the paper.",
    ),
    (
        "mail-*",
        "Paper: weights divided by their sum over the batch, times M, which is not defined. Code, "
        "since its first release: times 3, nothing divided. mail-at-printed is the former.",
    ),
    (
        "mail-* clir*",
        "MAIL's rows multiply by 3 and CLIRAT's have batch mean 1, so CLIRAT against MAIL-AT sets "
        "two normalisers against each other as well as two criteria. The rows -mean (for AT: "
        "mail-at-printed) and -x3 complete the square.",
    ),
    (
        "mail-*",
        "Burn-in ends with epoch 74 in the text (mail-at-burn-in-74) and with the 76th in the "
        "code (the -released rows); CLIRAT, MR and VIR's text say 75, as here. The first release "
        "went on from a plain network of 70 epochs and stopped after 100.",
    ),
    (
        "mail-*",
        "The algorithm prints start noise from U(0, 1), far outside the ball (mail-at-unit-noise); "
        "the code has 0.001 N(0, 1). The code attacks with eps 0.031 and step 0.007, the paper "
        "with 8/255 and 2/255.",
    ),
    (
        "mail-at-dif",
        "MAIL says that PM_dif lies in [0, 1]; a step can raise p_y, so it is [-1, 1]. No code, γ "
        "or β is given.",
    ),
    (
        "mail-trades*",
        "Eq. 10 prints KL(p̂ ‖ p) (mail-trades-eq10), the code computes KL(p ‖ p̂) like all other "
        "papers. Its attack was on the cross-entropy until 2022-04 (mail-trades-2021), since then "
        "on the KL.",
    ),
    (
        "mail-mart* clir-mart* gair-mart",
        "Only the boosted cross-entropy is weighted, as in MAIL's code; MAIL's own description is "
        "in an appendix that was not available.",
    ),
    (
        "gair*",
        "κ counts the attack's points that are still classified correctly (code); the paper speaks "
        "of the least number of steps, which MAIL calls LPS (gairat-lps). The two differ where an "
        "attack's path crosses the boundary more than once.",
    ),
    (
        "gairat*",
        "The code's later branches of the stepwise λ cannot be reached and its linear λ starts at "
        "infinity, which gives NaN; gairat-piecewise and gairat-linear are what they seem to mean.",
    ),
    (
        "gair-*",
        "No paper prints this form: gair-trades is the code's GAIR_RST, gair-mart weighs as "
        "MAIL-MART does, a guess.",
    ),
    (
        "clirat clirat-printed clirat-from-x clirat-x3 clir-*",
        "No code exists. Algorithm 1 as printed normalises after burn-in has set w = 1 and so "
        "cancels it (that is clirat-printed); the line is read as the else branch. It also "
        "starts its attack at x itself (clirat-from-x).",
    ),
    (
        "clirat clirat-printed clirat-from-x clirat-x3 clir-*",
        'M is said to be "the number of batches"; read as the batch size, so that weights average '
        "1 and the loss "
        "keeps its scale. The ascent step is printed with the gradient of θ; that of x is meant.",
    ),
    (
        "clirat-drop-*",
        "The paper leaves out S_sig or S_mul, which differ in size; -matched and -random are "
        "controls for that.",
    ),
    (
        "mr-*",
        "Eq. 4 prints the margin as p_2 - p_y; with Eqs. 15-16 safe examples would then weigh most "
        "(mr-mail-literal, mr-wmmr-literal). Taken: p_y - p_2. Algorithm 1 has another sign before "
        "β, with which all weights are nearly equal (mr-mail-alg1).",
    ),
    (
        "mr-*",
        "Where p_y = 1 the ratio p_2/(1 - p_y) is 0/0; its lower end is taken, and the similarity "
        "is 0 there anyway.",
    ),
    (
        "wmmr wmmr-trades",
        "The authors' code attacks the weighted loss in the plain version and keeps the gradient "
        "of the weight; MR, "
        "which compares with it, speaks of a weight only (wmmr-mr: detached, plain PGD, factor 3).",
    ),
    (
        "wmmr-mr mr-wmmr*",
        "MR's version of WMMR: α is 2 in its baseline and dropped beside the reweighted margin; "
        "the authors' code has 0.5 on CIFAR-10 and no burn-in.",
    ),
    (
        "ewat",
        "Only the abstract was available: offset, logarithm base, normalisation, burn-in and base "
        "loss are guesses.",
    ),
    (
        "vir-* at-scaled trades-scaled",
        "Weights begin after epoch 76 (algorithm) or with it (text, as here). Of S_d the paper "
        "says that its value "
        "alone is used, of S_v nothing; no gradient runs through either. No code.",
    ),
    (
        "vir-* at-scaled trades-scaled",
        "Weights are not normalised, so most are far below 1: after burn-in VIR-AT also takes "
        "smaller steps. at-scaled and trades-scaled have the mean weight alone, -mean the weights "
        "with mean 1.",
    ),
    (
        "vir-*",
        "Algorithm 1 steps from x instead of from the last iterate, which would be a single step; "
        "a slip.",
    ),
    ("vir-trades*", "The inner attack is not named; TRADES's own, on the KL, is taken."),
    (
        "fat",
        "Unweighted: an example leaves the attack τ steps after it is first wrong. GAIR-FAT, built "
        "on it, mixes up images and labels in its code and is no row here.",
    ),
    (
        "at-awp trades-awp",
        "Unweighted. The papers that report AWP do not say which version they ran; γ and warm-up "
        "are its code's.",
    ),
    (
        "csa* cse-adv*",
        "The public code is older than the paper: it trains on FGSM against the cost-sensitive "
        "loss with Adam. The paper's text says PGD, its Eqs. 5-7 print FGSM on the cross-entropy "
        "(csa-fgsm), and it does not say whether the class costs are inside Eq. 4's maximum. They "
        "are, here; csa-ce leaves them out.",
    ),
    (
        "csa csa-attack-first csa-ce csa-fgsm csa-l2 cse-adv",
        "Algorithm 1 makes a batch's adversarial images before its clean step, so they belong to a "
        "network that is one step older than the one trained on them (csa-attack-first). Here they "
        "are made for the network that is trained on them.",
    ),
    (
        "csa-halves cse-adv-halves",
        "On MNIST the paper trains the first half of the epochs on clean images and the second on "
        "adversarial ones: Table II's CSA and CSE+ADV are these rows.",
    ),
    (
        "csa* cse*",
        "With cost 1 a term 1 - p_y stays, which is not quite the plain training that the paper "
        "calls it. eps counts "
        "in standardised units there, 0.3 being 0.092 of the pixel range on MNIST.",
    ),
    (
        "csa-l2",
        "Eq. 7 adds the norm of all parameters with coefficient 1, with which a small network "
        "learns nothing; the code's is 0.01 times the sum over tensors.",
    ),
    (
        "cse*",
        "Eq. 9 makes a zero weight the fuzziest (ρ = ½; the text says 1), so minimising it makes "
        "all weights grow, against the text. Steps and step size are given nowhere.",
    ),
    (
        "cse cse-adv cse-adv-halves",
        "γ is given nowhere. The row takes, of 1, 20 and 200, the largest with which networks "
        "learn digits and MNIST as they do without the term: with 200 the one LeNet that was tried "
        "on MNIST learned nothing. The figure fuzziness-strength shows the sweep on digits. How "
        "much γ does grows with the rate and the number of steps, and falls with the number of "
        "parameters, of which Eq. 8 is a mean.",
    ),
    (
        "cse*",
        "The public code has no fuzziness: it has ‖W‖₁ - ‖W‖₂ of the first convolutions "
        "(cse-l1l2), or their kurtosis computed without a gradient (cse-kurtosis, here with it).",
    ),
)


#: {quantity: its lowest and highest value}, from its parameters; KL is drawn up to 1 nat, entropy
#: and counts for 10 classes.
RANGES: Mapping[str, Callable[[Mapping], tuple[float, float]]] = {
    **{
        name: lambda _: (-1.0, 1.0)
        for name in (
            "probabilistic_margin",
            "margin_difference",
            "confused_label_margin",
            "geometry_value",
        )
    },
    "confused_labels": lambda _: (0.0, 9.0),
    "least_steps_value": lambda _: (-1.0, 1.0),
    "logit_margin": lambda _: (-10.0, 10.0),
    # lowest where p_2 = min(1, τ/2) and p_y = 0
    "reweighted_margin": lambda p: (
        1 - p["tau"] if p["tau"] >= 2 else -(p["tau"] ** 2) / 4,
        0.15 * p["tau"] if p["similarity"] else p["tau"],
    ),
    "vulnerability": lambda p: (0.0, p["alpha"]),
    "discrepancy": lambda _: (0.0, 1.0),
    "vulnerability_discrepancy": lambda p: (0.0, p["alpha"]),
    "entropy": lambda _: (0.0, math.log(10)),
}


def allowed_values(annotation: object) -> str:
    """Say in words what an annotation allows.

    Of a union it is what the first member allows, as `check_value` has it.
    """
    kind, inner = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return f"{'a whole number, ' if inner[0] is int else ''}{inner[1]}"
    if kind in (Union, UnionType):
        return allowed_values(inner[0])
    if kind is Literal:
        return "one of " + ", ".join(map(str, inner))
    words: dict[object, str] = {
        bool: "True or False",
        int: "a whole number",
        float: "a number",
        str: "text",
    }
    return words.get(annotation, str(annotation))
