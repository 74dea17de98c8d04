"""The table of figures, and `kit.draw`, which draws them from finished runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np

from kit.core.errors import KitError, unknown_name
from kit.core.progress import Progress
from kit.core.registry import Registry
from kit.data.datasets import absolute_name
from kit.experiments.devices import pick_device, threads_for
from kit.experiments.runs import Run, output_folder
from kit.figures import (
    attack_curves,
    audit_steps,
    clirat_confused_labels,
    clirat_learning_curves,
    clirat_leave_out,
    clirat_matched_pairs,
    clirat_normalisers,
    clirat_slope_and_offset,
    csa_cse_attack_gallery,
    csa_cse_cost,
    csa_cse_fuzziness,
    csa_cse_min_max,
    csa_cse_parameters,
    csa_cse_protection,
    csa_cse_stages,
    csa_cse_strength,
    csa_cse_theorem,
    every_method,
    mail_attack_paths,
    mail_attack_steps,
    mail_decision_plane,
    mail_margin_regions,
    mail_pgd_against_cw,
    mr_margin_by_probability,
    mr_same_margin,
    mr_signs,
    mr_similarity,
    one_batch,
    print_and_code,
    printed_sweeps,
    score_paths,
    scores_and_distance,
    vir_black_box,
    vir_class_gains,
    vir_class_hardness,
    vir_class_weights,
    vir_confusion,
    vir_two_gaussians,
)
from kit.figures.base import Claim, Drawing, FigureData
from kit.figures.style import label, styled
from kit.methods.table import SQUARES
from kit.papers.printed_data import figures_by_number

#: How the reading of a claim is said.
_SAID = {
    "holds": "These runs agree",
    "fails": "These runs contradict it",
    "undecided": "These runs leave it undecided",
}


def notice_claims(claims: Sequence[Claim]) -> str:
    """Say in two sentences what the claims of a figure are and what the runs at hand show.

    Returns:
        The first claim that the runs decide, and how many there are; "" without claims.
    """
    if not claims:
        return ""
    first = next((claim for claim in claims if claim.reading != "undecided"), claims[0])
    among = f" (one of {len(claims)} statements here)" if len(claims) > 1 else ""
    return f"The statement is: {first.claim}{among}. {_SAID[first.reading]}: {first.here}."


def decide_nothing(data: FigureData) -> list[Claim]:
    """The claims of a figure that decides none."""
    return []


@dataclass(frozen=True)
class FigureRow:
    """A figure: what it computes, how it is drawn, its caption, and what it decides.

    `compute(runs, **options)` takes {method: Run} of `methods`, those that the paper's figure
    shows, and if `beside` then also {name: Run} of adopted networks; a single run if `one`; or a
    list if `any`. What it returns, `draw`, `caption` and `decide` take.
    """

    title: str
    source: str
    compute: Callable[..., FigureData]
    draw: Callable[[FigureData], Drawing]
    caption: Callable[[FigureData], str]
    decide: Callable[[FigureData], list[Claim]]
    methods: tuple[str, ...]
    one: bool = False  # draws any single run, whatever its method
    any: bool = False  # draws whatever runs it is given, several seeds of a method among them
    beside: bool = False  # draws adopted networks beside the runs of its methods
    recipe: str = ""  # the only recipe whose runs it draws; any if empty
    #: what to look at; where there is none, the claims say it
    notice: Callable[[FigureData], str] | None = None

    @property
    def options(self) -> set[str]:
        """The names of what `kit.draw` takes beside the runs."""
        parameters = signature(self.compute).parameters.values()
        return {p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY}

    def make(self, runs: Run | list[Run] | Mapping[str, Run], **options: Any) -> Drawing:
        """The drawing with its facts, claims and caption; nothing is saved."""
        data = self.compute(runs, **options)
        drawing = self.draw(data)
        drawing.facts, drawing.claims = data.facts, self.decide(data)
        drawing.title, drawing.caption = self.title, self.caption(data)
        drawing.notice = self.notice(data) if self.notice else ""
        return drawing


FIGURES = Registry(
    "figure",
    {
        "confused-labels": FigureRow(
            "misclassified training examples with one and with several confused labels",
            "CLIRAT Fig. 1A",
            clirat_confused_labels.compute_confused_labels,
            clirat_confused_labels.draw_confused_labels,
            clirat_confused_labels.describe_confused_labels,
            clirat_confused_labels.decide_confused_labels,
            ("mail-at",),
            one=True,
        ),
        "confused-label-counts": FigureRow(
            "how many labels beat the true one",
            "CLIRAT Fig. 1A",
            clirat_confused_labels.compute_label_counts,
            clirat_confused_labels.draw_label_counts,
            clirat_confused_labels.describe_label_counts,
            decide_nothing,
            ("mail-at",),
            one=True,
            notice=clirat_confused_labels.notice_label_counts,
        ),
        "leave-out": FigureRow(
            "robustness when a set of examples is left out",
            "CLIRAT Fig. 1B",
            clirat_leave_out.compute_leave_out,
            clirat_leave_out.draw_leave_out,
            clirat_leave_out.describe_leave_out,
            clirat_leave_out.decide_leave_out,
            (
                "mail-at",
                "clirat-drop-single",
                "clirat-drop-multiple",
                "clirat-drop-matched",
                "clirat-drop-random",
            ),
        ),
        "softmax-pair": FigureRow(
            "two examples of equal margin, one and several confused labels",
            "CLIRAT Figs. 1C, 1D",
            clirat_confused_labels.compute_softmax_pair,
            clirat_confused_labels.draw_softmax_pair,
            clirat_confused_labels.describe_softmax_pair,
            decide_nothing,
            ("mail-at",),
            one=True,
            notice=clirat_confused_labels.notice_softmax_pair,
        ),
        "pm-and-cl-pm": FigureRow(
            "the margin against the confused-label margin",
            "CLIRAT Fig. 2",
            clirat_confused_labels.compute_two_margins,
            clirat_confused_labels.draw_two_margins,
            clirat_confused_labels.describe_two_margins,
            clirat_confused_labels.decide_two_margins,
            ("mail-at",),
            one=True,
        ),
        "critical-lps": FigureRow(
            "examples by attack steps survived, and how many of the safe are critical",
            "MAIL Fig. 1b",
            mail_attack_steps.compute_critical_lps,
            mail_attack_steps.draw_critical_lps,
            mail_attack_steps.describe_critical_lps,
            mail_attack_steps.decide_critical_lps,
            ("at",),
            one=True,
        ),
        "pm-by-lps": FigureRow(
            "probabilistic margin by attack steps survived",
            "MAIL Fig. 4",
            mail_attack_steps.compute_pm_by_lps,
            mail_attack_steps.draw_pm_by_lps,
            mail_attack_steps.describe_pm_by_lps,
            mail_attack_steps.decide_pm_by_lps,
            ("at",),
            one=True,
        ),
        "margin-regions": FigureRow(
            "safe, boundary and wrong region by margin, and the training data in each",
            "MAIL Fig. 3",
            mail_margin_regions.compute_margin_regions,
            mail_margin_regions.draw_margin_regions,
            mail_margin_regions.describe_margin_regions,
            mail_margin_regions.decide_margin_regions,
            ("mail-at",),
            one=True,
        ),
        "pgd-against-cw": FigureRow(
            "AT and GAIRAT under PGD, CW and AutoAttack",
            "MAIL Fig. 1c",
            mail_pgd_against_cw.compute_pgd_against_cw,
            mail_pgd_against_cw.draw_pgd_against_cw,
            mail_pgd_against_cw.describe_pgd_against_cw,
            mail_pgd_against_cw.decide_pgd_against_cw,
            ("at", "gairat"),
            beside=True,
        ),
        "same-margin": FigureRow(
            "examples of equal margin, sized by MAIL's and by MR's weight",
            "MR Fig. 1",
            mr_same_margin.compute_same_margin,
            mr_same_margin.draw_same_margin,
            mr_same_margin.describe_same_margin,
            mr_same_margin.decide_same_margin,
            ("at",),
            one=True,
        ),
        "margin-by-probability": FigureRow(
            "margin against the true class's probability",
            "MR Fig. 2",
            mr_margin_by_probability.compute_margin_by_probability,
            mr_margin_by_probability.draw_margin_by_probability,
            mr_margin_by_probability.describe_margin_by_probability,
            mr_margin_by_probability.decide_margin_by_probability,
            ("at",),
            one=True,
        ),
        "similarity-pair": FigureRow(
            "softmax with and without its true class, at low and at high p_y",
            "MR Fig. 3",
            mr_similarity.compute_similarity_pair,
            mr_similarity.draw_similarity_pair,
            mr_similarity.describe_similarity_pair,
            mr_similarity.decide_similarity_pair,
            ("at",),
            one=True,
        ),
        "similarity-by-error": FigureRow(
            "similarity against the incorrect rate",
            "MR Fig. 4",
            mr_similarity.compute_similarity_by_error,
            mr_similarity.draw_similarity_by_error,
            mr_similarity.describe_similarity_by_error,
            mr_similarity.decide_similarity_by_error,
            ("at",),
            one=True,
        ),
        "training-stages": FigureRow(
            "one mini-batch through CSA's stages and costs, and CSE's fuzziness",
            "CSA/CSE Fig. 1",
            csa_cse_stages.compute_training_stages,
            csa_cse_stages.draw_training_stages,
            csa_cse_stages.describe_training_stages,
            decide_nothing,
            ("csa", "cse"),
            notice=csa_cse_stages.notice_training_stages,
        ),
        "parameters": FigureRow(
            "first-layer parameters",
            "CSA/CSE Fig. 3",
            csa_cse_parameters.compute_parameters,
            csa_cse_parameters.draw_parameters,
            csa_cse_parameters.describe_parameters,
            csa_cse_parameters.decide_parameters,
            ("adv", "csa"),
            beside=True,
        ),
        "parameters-l2": FigureRow(
            "first-layer parameters with an L2 term",
            "CSA/CSE Fig. 4",
            csa_cse_parameters.compute_parameters,
            csa_cse_parameters.draw_parameters,
            csa_cse_parameters.describe_parameters,
            csa_cse_parameters.decide_parameters,
            ("adv", "csa-l2", "csa"),
            beside=True,
        ),
        "min-max-origin": FigureRow(
            "parameters at the start, after STD and after ADV",
            "CSA s. III",
            csa_cse_protection.compute_min_max_origin,
            csa_cse_protection.draw_min_max_origin,
            csa_cse_protection.describe_min_max_origin,
            csa_cse_protection.decide_min_max_origin,
            ("std", "adv"),
        ),
        "class-protection": FigureRow(
            "the protected class and all classes",
            "CSA Fig. 4, s. III-C; CSA/CSE abstract",
            csa_cse_protection.compute_class_protection,
            csa_cse_protection.draw_class_protection,
            csa_cse_protection.describe_class_protection,
            csa_cse_protection.decide_class_protection,
            ("std", "adv", "csa-l2", "csa", "cse"),
            beside=True,
        ),
        "fuzziness": FigureRow(
            "loss, fuzziness and robustness over training",
            "CSA/CSE Fig. 5",
            csa_cse_fuzziness.compute_fuzziness,
            csa_cse_fuzziness.draw_fuzziness,
            csa_cse_fuzziness.describe_fuzziness,
            csa_cse_fuzziness.decide_fuzziness,
            ("std", "cse"),
        ),
        "fuzziness-layers": FigureRow(
            "fuzziness of every convolution",
            "CSA/CSE Fig. 6",
            csa_cse_fuzziness.compute_fuzziness_layers,
            csa_cse_fuzziness.draw_fuzziness_layers,
            csa_cse_fuzziness.describe_fuzziness_layers,
            csa_cse_fuzziness.decide_fuzziness_layers,
            ("std", "cse"),
        ),
        "fuzziness-strength": FigureRow(
            "fuzziness and accuracies over CSE's γ",
            "CSE Eq. 10",
            csa_cse_strength.compute_fuzziness_strength,
            csa_cse_strength.draw_fuzziness_strength,
            csa_cse_strength.describe_fuzziness_strength,
            csa_cse_strength.decide_fuzziness_strength,
            ("cse",),
            any=True,
        ),
        "min-max-theorem": FigureRow(
            "the gradient of softmax with weights 0 or 1 and with uniform ones",
            "CSE Theorem 1",
            csa_cse_theorem.compute_theorem,
            csa_cse_theorem.draw_theorem,
            csa_cse_theorem.describe_theorem,
            csa_cse_theorem.decide_theorem,
            ("cse",),
            one=True,
        ),
        "mini-batch": FigureRow(
            "one mini-batch under attack, and the weights of several methods",
            "-",
            one_batch.compute_mini_batch,
            one_batch.draw_mini_batch,
            one_batch.describe_mini_batch,
            decide_nothing,
            ("mail-at",),
            one=True,
            notice=one_batch.notice_mini_batch,
        ),
        "every-weight": FigureRow(
            "all methods' weights on the same examples",
            "-",
            one_batch.compute_every_weight,
            one_batch.draw_every_weight,
            one_batch.describe_every_weight,
            decide_nothing,
            ("mail-at",),
            one=True,
            notice=one_batch.notice_every_weight,
        ),
        "every-method": FigureRow(
            "accuracy of every method, clean and under attack",
            "-",
            every_method.compute_every_method,
            every_method.draw_every_method,
            every_method.describe_every_method,
            decide_nothing,
            (),
            any=True,
            notice=every_method.notice_every_method,
        ),
        "mr-signs": FigureRow(
            "MR's weights with the signs as printed and corrected",
            "MR Eqs. 4, 14-16, Alg. 1",
            mr_signs.compute_mr_signs,
            mr_signs.draw_mr_signs,
            mr_signs.describe_mr_signs,
            mr_signs.decide_mr_signs,
            ("mail-at",),
            one=True,
        ),
        "fuzziness-force": FigureRow(
            "where minimising fuzziness drives parameters",
            "CSE Eqs. 8-9",
            csa_cse_fuzziness.compute_fuzziness_force,
            csa_cse_fuzziness.draw_fuzziness_force,
            csa_cse_fuzziness.describe_fuzziness_force,
            csa_cse_fuzziness.decide_fuzziness_force,
            ("cse",),
            one=True,
        ),
        "min-max-robustness": FigureRow(
            "robustness by the shape of the parameters, as trained and changed",
            "CSA/CSE s. III, V, Propositions 1 and 2",
            csa_cse_min_max.compute_min_max_robustness,
            csa_cse_min_max.draw_min_max_robustness,
            csa_cse_min_max.describe_min_max_robustness,
            csa_cse_min_max.decide_min_max_robustness,
            ("std", "adv", "csa-l2", "csa", "cse"),
        ),
        "training-cost": FigureRow(
            "what a training step costs, and epochs to the same loss",
            "CSE s. III-C, IV, Fig. 5",
            csa_cse_cost.compute_training_cost,
            csa_cse_cost.draw_training_cost,
            csa_cse_cost.describe_training_cost,
            csa_cse_cost.decide_training_cost,
            ("std", "cse", "adv"),
        ),
        "vir-scale": FigureRow(
            "VIR-AT beside AT with VIR's scale alone",
            "VIR Eq. 8",
            print_and_code.compute_vir_scale,
            print_and_code.draw_weight_scale,
            print_and_code.describe_weight_scale,
            print_and_code.decide_vir_scale,
            ("at", "at-scaled", "vir-at-mean", "vir-at"),
        ),
        "clirat-burn-in": FigureRow(
            "CLIRAT with its burn-in, a shorter one and as printed",
            "CLIRAT Alg. 1",
            print_and_code.compute_weight_scale,
            print_and_code.draw_weight_scale,
            print_and_code.describe_weight_scale,
            print_and_code.decide_clirat_burn_in,
            ("clirat", "clirat-burn-in-30", "clirat-printed"),
        ),
        "vir-burn-in": FigureRow(
            "VIR-AT with its burn-in, a shorter one and none",
            "VIR s. 4.4",
            print_and_code.compute_weight_scale,
            print_and_code.draw_weight_scale,
            print_and_code.describe_weight_scale,
            print_and_code.decide_vir_burn_in,
            ("vir-at", "vir-at-burn-in-30", "vir-at-burn-in-0"),
        ),
        "mail-normalisation": FigureRow(
            "MAIL's weights as printed and as released",
            "MAIL Alg. 1 and its code",
            print_and_code.compute_weight_scale,
            print_and_code.draw_weight_scale,
            print_and_code.describe_weight_scale,
            print_and_code.decide_mail_normalisation,
            ("mail-at", "mail-at-printed"),
        ),
        "attack-gallery": FigureRow(
            "images under each attack at several radii",
            "CSA/CSE Fig. 2",
            csa_cse_attack_gallery.compute_attack_gallery,
            csa_cse_attack_gallery.draw_attack_gallery,
            csa_cse_attack_gallery.describe_attack_gallery,
            csa_cse_attack_gallery.decide_attack_gallery,
            ("at",),
            one=True,
        ),
        "attack-curves": FigureRow(
            "accuracy against the radius, per attack",
            "-",
            attack_curves.compute_attack_curves,
            attack_curves.draw_attack_curves,
            attack_curves.describe_attack_curves,
            attack_curves.decide_attack_curves,
            ("at",),
            one=True,
        ),
        "pgd-against-lmpgd": FigureRow(
            "LPS and margin under PGD and LM-PGD",
            "MAIL Fig. 1a",
            mail_attack_paths.compute_two_attacks,
            mail_attack_paths.draw_two_attacks,
            mail_attack_paths.describe_two_attacks,
            mail_attack_paths.decide_two_attacks,
            ("at",),
            one=True,
        ),
        "score-paths": FigureRow(
            "PM, LPS and VIR's score along a path and over starts",
            "MAIL abstract; VIR s. 4.3",
            score_paths.compute_score_paths,
            score_paths.draw_score_paths,
            score_paths.describe_score_paths,
            score_paths.decide_score_paths,
            ("at",),
            one=True,
        ),
        "lps-starts": FigureRow(
            "LPS over random starts",
            "MAIL Fig. 1a",
            mail_attack_paths.compute_lps_starts,
            mail_attack_paths.draw_lps_starts,
            mail_attack_paths.describe_lps_starts,
            mail_attack_paths.decide_lps_starts,
            ("at",),
            one=True,
        ),
        "decision-plane": FigureRow(
            "two attack paths on the plane through their ends",
            "MAIL Fig. 2",
            mail_decision_plane.compute_decision_plane,
            mail_decision_plane.draw_decision_plane,
            mail_decision_plane.describe_decision_plane,
            decide_nothing,
            ("at",),
            one=True,
            notice=mail_decision_plane.notice_decision_plane,
        ),
        "attack-ladder": FigureRow(
            "audits side by side: the ladder of attacks and ten rules",
            "MAIL s. 4.2, VIR s. 5.5",
            audit_steps.compute_audit_steps,
            audit_steps.draw_audit_steps,
            audit_steps.describe_audit_steps,
            audit_steps.decide_audit_steps,
            (),
            any=True,
        ),
        "black-box": FigureRow(
            "accuracy without gradients: Square, SPSA, images made for another network",
            "VIR Table 5",
            vir_black_box.compute_black_box,
            vir_black_box.draw_black_box,
            vir_black_box.describe_black_box,
            vir_black_box.decide_black_box,
            (),
            any=True,
        ),
        "confusion": FigureRow(
            "confusion matrices, natural and under attack",
            "VIR Fig. 1",
            vir_confusion.compute_confusion,
            vir_confusion.draw_confusion_matrices,
            vir_confusion.describe_confusion,
            vir_confusion.decide_confusion,
            ("std", "at", "trades", "mart"),
            beside=True,
        ),
        "class-hardness": FigureRow(
            "errors by class under natural training and under AT",
            "VIR s. 4.1",
            vir_class_hardness.compute_class_hardness,
            vir_class_hardness.draw_class_hardness,
            vir_class_hardness.describe_class_hardness,
            vir_class_hardness.decide_class_hardness,
            ("std", "at"),
        ),
        "classes-by-method": FigureRow(
            "VIR's confusion matrices, and whom it helps",
            "VIR Fig. 2",
            vir_class_gains.compute_class_gains,
            vir_class_gains.draw_class_gains,
            vir_class_gains.describe_class_gains,
            vir_class_gains.decide_class_gains,
            ("at", "trades", "vir-at", "vir-trades"),
        ),
        "class-weights": FigureRow(
            "the weight that each class gets",
            "VIR Fig. 3",
            vir_class_weights.compute_class_weights,
            vir_class_weights.draw_class_weights,
            vir_class_weights.describe_class_weights,
            vir_class_weights.decide_class_weights,
            ("vir-at", "vir-trades"),
        ),
        "learning-curves": FigureRow(
            "AT, MAIL-AT and CLIRAT along the way",
            "CLIRAT Fig. 3",
            clirat_learning_curves.compute_learning_curves,
            clirat_learning_curves.draw_learning_curves,
            clirat_learning_curves.describe_learning_curves,
            clirat_learning_curves.decide_learning_curves,
            clirat_learning_curves.COMPARED,
            any=True,
        ),
        "learning-curves-each": FigureRow(
            "the learning curves of AT, MAIL-AT and CLIRAT, one panel a criterion",
            "CLIRAT Fig. 5",
            clirat_learning_curves.compute_learning_curves,
            clirat_learning_curves.draw_learning_curves_each,
            clirat_learning_curves.describe_learning_curves_each,
            decide_nothing,
            clirat_learning_curves.COMPARED,
            any=True,
            notice=clirat_learning_curves.notice_learning_curves_each,
        ),
        "criterion-and-normaliser": FigureRow(
            "PM and CL-PM, each with MAIL's factor 3 and with batch mean 1",
            "CLIRAT Table 1, MAIL's code",
            clirat_normalisers.compute_normalisers,
            clirat_normalisers.draw_normalisers,
            clirat_normalisers.describe_normalisers,
            clirat_normalisers.decide_normalisers,
            tuple(SQUARES["at"].values()),
            any=True,
        ),
        "slope-and-offset": FigureRow(
            "accuracies over gamma and beta",
            "CLIRAT Fig. 4",
            clirat_slope_and_offset.compute_slope_and_offset,
            clirat_slope_and_offset.draw_slope_and_offset,
            clirat_slope_and_offset.describe_slope_and_offset,
            clirat_slope_and_offset.decide_slope_and_offset,
            ("clirat",),
            any=True,
        ),
        "printed-sweeps": FigureRow(
            "what α, β, γ and τ do, as VIR and MR print it",
            "VIR Tables 9 to 12, MR Table 8",
            printed_sweeps.compute_printed_sweeps,
            printed_sweeps.draw_printed_sweeps,
            printed_sweeps.describe_printed_sweeps,
            decide_nothing,
            ("vir-at",),
            any=True,
            notice=printed_sweeps.notice_printed_sweeps,
        ),
        "matched-pairs": FigureRow(
            "one and several confused labels at equal margin: distances, and an epoch later",
            "CLIRAT s. 1",
            clirat_matched_pairs.compute_matched_pairs,
            clirat_matched_pairs.draw_matched_pairs,
            clirat_matched_pairs.describe_matched_pairs,
            clirat_matched_pairs.decide_matched_pairs,
            ("mail-at",),
            any=True,
        ),
        "score-ranks": FigureRow(
            "rank correlation of each score with the distance to the boundary",
            "CLIRAT s. 1, MAIL s. 3.1",
            scores_and_distance.compute_score_ranks,
            scores_and_distance.draw_score_ranks,
            scores_and_distance.describe_score_ranks,
            scores_and_distance.decide_score_ranks,
            ("mail-at",),
            any=True,
        ),
        "clean-probability": FigureRow(
            "clean probability of the true class against the distance to the boundary",
            "VIR Def. 4.1",
            scores_and_distance.compute_clean_probability,
            scores_and_distance.draw_clean_probability,
            scores_and_distance.describe_clean_probability,
            scores_and_distance.decide_clean_probability,
            ("mail-at",),
            any=True,
        ),
        "two-gaussians": FigureRow(
            "two Gaussian classes: risks at the optimum and of trained linear networks",
            "VIR App. A",
            vir_two_gaussians.compute_two_gaussians,
            vir_two_gaussians.draw_two_gaussians,
            vir_two_gaussians.describe_two_gaussians,
            vir_two_gaussians.decide_two_gaussians,
            ("std", "at"),
            any=True,
            recipe="mixture",
        ),
    },
)


#: The papers' own numbers, such as mail-4 or clirat-1a, and the figure that is drawn for each.
NUMBERS = figures_by_number()


def draw(
    name: str,
    runs: Run | Iterable[Run] | Mapping[str, Run],
    *,
    folder: Path | str | None = None,
    **options: Any,
) -> Drawing:
    """Draw a figure from finished runs, and save PNG, SVG and JSON provenance in `folder`.

    `name` is a row of FIGURES, or a paper's own number, such as mail-4 or clirat-1a. `options` are
    those of the row's `compute`. Adopted networks are drawn beside the row's methods where the
    figure has room for them. In a mapping {method: run} an adopted network stands in for that
    method, and the caption says so.

    Returns:
        A matplotlib Figure with .facts, .claims, .caption and .files.

    Raises:
        KitError: A figure or an option is unknown, or runs are missing; it names the command that
            makes them. An adopted network has no place in the figure, or lacks what it needs.
    """
    name = NUMBERS.get(name, name)
    row = FIGURES[name]
    given = (
        [runs]
        if isinstance(runs, Run)
        else list(runs.values() if isinstance(runs, Mapping) else runs)
    )
    _check_runs(name, row, given)
    arranged, stand_ins = _arrange_runs(name, row, runs, given)
    for option in options:
        if option not in row.options:
            raise unknown_name(f"option of '{name}'", option, row.options)
    started = time.monotonic()
    # Some figures attack, so the network's own number of threads is set.
    progress = Progress(f"drawing {name}", 0)
    with progress, styled(), threads_for(given[0].plan.recipe.model, pick_device("cpu")):
        drawing = row.make(arranged, **options)
    if stand_ins:
        words = ", ".join(f"{label(method)} is {run.method}" for method, run in stand_ins.items())
        drawing.caption += f" Networks that were trained elsewhere stand in: {words}."
    dead = tuple(str(run.spec) for run in given if run.learned_nothing)
    drawing.claims = [
        replace(claim, dead=tuple(run for run in dead if run not in claim.left_out))
        for claim in drawing.claims
    ]
    drawing.notice = drawing.notice or notice_claims(drawing.claims)
    drawing.save(
        Path(folder) if folder else output_folder(given[0].spec.recipe),
        name,
        given,
        title=row.title,
        source=row.source,
        options=options,
        seconds=time.monotonic() - started,
    )
    return drawing


def _check_runs(name: str, row: FigureRow, given: list[Run]) -> None:
    """Refuse runs that the figure does not take."""
    for run in given:
        if not isinstance(run, Run):
            raise KitError(
                f"draw('{name}', ...) takes runs, such as kit.run(\"{row.methods[0]}\"), not "
                f"{type(run).__name__}"
            )
        run.check_revision()
    if not given:
        raise KitError(f"draw('{name}', ...) was given no runs; make one with kit.run(...)")
    if row.recipe and any(run.spec.recipe != row.recipe for run in given):
        raise KitError(
            f"'{name}' draws runs of recipe {row.recipe} alone, such as "
            f'kit.run("{row.methods[0]}", "{row.recipe}")'
        )
    if row.one and len(given) != 1:
        raise KitError(f"'{name}' draws exactly one run, it was given {len(given)}")


def _arrange_runs(
    name: str, row: FigureRow, runs: Run | Iterable[Run] | Mapping[str, Run], given: list[Run]
) -> tuple[Run | list[Run] | dict[str, Run], dict[str, Run]]:
    """Return the runs as `row.compute` takes them, and {method: adopted run that stands in}.

    Raises:
        KitError: A method's run is missing, or a run has no place.
    """
    if row.one:
        return given[0], {}
    if row.any:
        return given, {}
    stand_ins = {
        method: run
        for method, run in (runs.items() if isinstance(runs, Mapping) else ())
        if run.is_adopted and method in row.methods
    }
    others = {
        run.method: run
        for run in given
        if run.is_adopted and not any(run is one for one in stand_ins.values())
    }
    by_method = {run.method: run for run in given if not run.is_adopted} | stand_ins
    missing = [method for method in row.methods if method not in by_method]
    if missing:
        like = f" --recipe {given[0].spec.recipe} --seed {given[0].spec.seed}"
        raise KitError(
            f"'{name}' also needs a run of {', '.join(missing)}: "
            + "; ".join(f"python -m kit train {method}{like}" for method in missing)
        )
    if others and not row.beside:
        raise KitError(
            f"'{name}' compares {', '.join(row.methods)} and has no place beside them for "
            f"{', '.join(others)}, trained elsewhere. An adopted network can stand in for a "
            f"method: kit.draw('{name}', {{'{row.methods[-1]}': adopted, ...}})"
        )
    arranged = {method: by_method[method] for method in row.methods} | others
    if stand_ins or others:
        _check_same_images(name, arranged)
    return arranged, stand_ins


def _check_same_images(name: str, runs: Mapping[str, Run]) -> None:
    """Refuse networks that were observed on other test images than the first, or another threat."""
    (first, one), *others = runs.items()
    for method, run in others:
        same = np.array_equal(run.final["test_ids"], one.final["test_ids"])
        if not same or _images_and_threat(run) != _images_and_threat(one):
            raise KitError(
                f"'{name}' compares networks on the same images and under one threat: {first} has "
                f"{_describe_terms(one)}, {method} {_describe_terms(run)}; adopt with the same "
                "recipe and overrides, and with n as large as the test images are many"
            )


def _images_and_threat(run: Run) -> tuple:
    recipe = run.plan.recipe
    return absolute_name(recipe.data), recipe.threat


def _describe_terms(run: Run) -> str:
    recipe = run.plan.recipe
    return f"{len(run.final['test_y'])} test images of {recipe.data} under {recipe.threat}"
