"""Figures read finished runs and draw them; none starts a training.

`kit.draw(name, runs)` is the way in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path

from kit.core.errors import KitError, unknown_name
from kit.core.registry import Registry
from kit.experiments.devices import pick_device, threads_for
from kit.experiments.runs import Run, output_folder
from kit.figures.ablation import slope_and_offset
from kit.figures.audit_steps import black_box, draw_step
from kit.figures.base import Drawing
from kit.figures.classes import by_method, weights
from kit.figures.confused import histogram, leave_out, per_epoch, softmax_pair, two_margins
from kit.figures.confusion import matrices
from kit.figures.curves import COMPARED, learning_curves, learning_curves_each
from kit.figures.gallery import curves, pictures
from kit.figures.margins import critical_lps, pgd_against_cw, pm_by_lps
from kit.figures.minmax import fuzziness_curves, fuzziness_layers, parameters
from kit.figures.oneloop import every_method, every_weight, mini_batch
from kit.figures.paths import plane, starts, two_attacks
from kit.figures.readings import (
    clirat_burn_in,
    fuzziness_force,
    mail_normalisation,
    mr_signs,
    vir_scale,
)
from kit.figures.similarity import margin_by_probability, similarity_by_error, similarity_pair
from kit.figures.simplex import regions, same_margin
from kit.figures.stages import walk_through
from kit.figures.style import styled
from kit.papers.printed_data import figures_by_number


@dataclass(frozen=True)
class FigureRow:
    """`draw(runs, **options)` fills a Drawing from {method:

    Run}; `methods` are those that the paper's figure shows.
    """

    title: str
    source: str
    draw: Callable[..., Drawing]
    methods: tuple[str, ...]
    one: bool = False  # draws any single run, whatever its method
    any: bool = False  # draws whatever runs it is given, several seeds of a method among them


FIGURES = Registry(
    "figure",
    {
        "confused-labels": FigureRow(
            "misclassified training examples with one and with several confused labels",
            "CLIRAT Fig. 1A",
            per_epoch,
            ("mail-at",),
            one=True,
        ),
        "confused-label-counts": FigureRow(
            "how many labels beat the true one", "CLIRAT Fig. 1A", histogram, ("mail-at",), one=True
        ),
        "leave-out": FigureRow(
            "robustness when a set of examples is left out",
            "CLIRAT Fig. 1B",
            leave_out,
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
            softmax_pair,
            ("mail-at",),
            one=True,
        ),
        "pm-and-cl-pm": FigureRow(
            "the margin against the confused-label margin",
            "CLIRAT Fig. 2",
            two_margins,
            ("mail-at",),
            one=True,
        ),
        "critical-lps": FigureRow(
            "examples by attack steps survived, and how many of the safe are critical",
            "MAIL Fig. 1b",
            critical_lps,
            ("at",),
            one=True,
        ),
        "pm-by-lps": FigureRow(
            "probabilistic margin by attack steps survived",
            "MAIL Fig. 4",
            pm_by_lps,
            ("at",),
            one=True,
        ),
        "margin-regions": FigureRow(
            "safe, boundary and wrong region by margin, and the training data in each",
            "MAIL Fig. 3",
            regions,
            ("mail-at",),
            one=True,
        ),
        "pgd-against-cw": FigureRow(
            "AT and GAIRAT under PGD, CW and AutoAttack",
            "MAIL Fig. 1c",
            pgd_against_cw,
            ("at", "gairat"),
        ),
        "same-margin": FigureRow(
            "examples of equal margin, sized by MAIL's and by MR's weight",
            "MR Fig. 1",
            same_margin,
            ("at",),
            one=True,
        ),
        "margin-by-probability": FigureRow(
            "margin against the true class's probability",
            "MR Fig. 2",
            margin_by_probability,
            ("at",),
            one=True,
        ),
        "similarity-pair": FigureRow(
            "softmax with and without its true class, for an unsure and a sure example",
            "MR Fig. 3",
            similarity_pair,
            ("at",),
            one=True,
        ),
        "similarity-by-error": FigureRow(
            "similarity against the incorrect rate",
            "MR Fig. 4",
            similarity_by_error,
            ("at",),
            one=True,
        ),
        "training-stages": FigureRow(
            "one mini-batch through CSA's stages and costs, and CSE's fuzziness",
            "CSA/CSE Fig. 1",
            walk_through,
            ("csa", "cse"),
        ),
        "parameters": FigureRow(
            "first-layer parameters", "CSA/CSE Fig. 3", parameters, ("adv", "csa")
        ),
        "parameters-l2": FigureRow(
            "first-layer parameters with an L2 term",
            "CSA/CSE Fig. 4",
            parameters,
            ("adv", "csa-l2", "csa"),
        ),
        "fuzziness": FigureRow(
            "loss, fuzziness and robustness over training",
            "CSA/CSE Fig. 5",
            fuzziness_curves,
            ("std", "cse"),
        ),
        "fuzziness-layers": FigureRow(
            "fuzziness of every convolution", "CSA/CSE Fig. 6", fuzziness_layers, ("std", "cse")
        ),
        "mini-batch": FigureRow(
            "one mini-batch under attack, and the weights of several methods",
            "-",
            mini_batch,
            ("mail-at",),
            one=True,
        ),
        "every-weight": FigureRow(
            "all methods' weights on the same examples", "-", every_weight, ("mail-at",), one=True
        ),
        "every-method": FigureRow(
            "accuracy of every method, clean and under attack", "-", every_method, (), any=True
        ),
        "mr-signs": FigureRow(
            "MR's weights with the signs as printed and mended",
            "MR Eqs. 4, 14-16, Alg. 1",
            mr_signs,
            ("mail-at",),
            one=True,
        ),
        "fuzziness-force": FigureRow(
            "where minimising fuzziness drives parameters",
            "CSE Eqs. 8-9",
            fuzziness_force,
            ("cse",),
            one=True,
        ),
        "vir-scale": FigureRow(
            "VIR-AT beside AT with VIR's scale alone",
            "VIR Eq. 8",
            vir_scale,
            ("at", "at-scaled", "vir-at"),
        ),
        "clirat-burn-in": FigureRow(
            "CLIRAT with its burn-in and as printed",
            "CLIRAT Alg. 1",
            clirat_burn_in,
            ("clirat", "clirat-printed"),
        ),
        "mail-normalisation": FigureRow(
            "MAIL's weights as printed and as released",
            "MAIL Alg. 1 and its code",
            mail_normalisation,
            ("mail-at", "mail-at-printed"),
        ),
        "attack-gallery": FigureRow(
            "images under each attack at several radii",
            "CSA/CSE Fig. 2",
            pictures,
            ("at",),
            one=True,
        ),
        "attack-curves": FigureRow(
            "accuracy against the radius, per attack", "-", curves, ("at",), one=True
        ),
        "pgd-against-lmpgd": FigureRow(
            "LPS and margin under PGD and LM-PGD", "MAIL Fig. 1a", two_attacks, ("at",), one=True
        ),
        "lps-starts": FigureRow(
            "LPS over random starts", "MAIL Fig. 1a", starts, ("at",), one=True
        ),
        "decision-plane": FigureRow(
            "two attack paths on the plane through their ends",
            "MAIL Fig. 2",
            plane,
            ("at",),
            one=True,
        ),
        "attack-ladder": FigureRow(
            "audits side by side: the ladder of attacks and ten rules",
            "MAIL s. 4.2, VIR s. 5.5",
            draw_step,
            (),
            any=True,
        ),
        "black-box": FigureRow(
            "accuracy without gradients: Square, SPSA, images made for another network",
            "VIR Table 5",
            black_box,
            (),
            any=True,
        ),
        "confusion": FigureRow(
            "confusion matrices, natural and under attack",
            "VIR Fig. 1",
            matrices,
            ("at", "trades", "mart"),
        ),
        "classes-by-method": FigureRow(
            "VIR's confusion matrices, and whom it helps",
            "VIR Fig. 2",
            by_method,
            ("at", "trades", "vir-at", "vir-trades"),
        ),
        "class-weights": FigureRow(
            "the weight that each class gets", "VIR Fig. 3", weights, ("vir-at", "vir-trades")
        ),
        "learning-curves": FigureRow(
            "AT, MAIL-AT and CLIRAT along the way",
            "CLIRAT Fig. 3",
            learning_curves,
            COMPARED,
            any=True,
        ),
        "learning-curves-each": FigureRow(
            "the same, one panel a criterion",
            "CLIRAT Fig. 5",
            learning_curves_each,
            COMPARED,
            any=True,
        ),
        "slope-and-offset": FigureRow(
            "accuracies over gamma and beta",
            "CLIRAT Fig. 4",
            slope_and_offset,
            ("clirat",),
            any=True,
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
    **options,
) -> Drawing:
    """Draw a figure of `FIGURES` from finished runs, and save it as PNG, SVG and JSON provenance in
    `folder`.

    `name` is a row of FIGURES, or a paper's own number, such as mail-4 or clirat-1a. `options` are
    those of the drawing function. -> a matplotlib Figure with .facts, .caption and .files. Errors:
    `KitError` for an unknown figure or option, or runs that are missing, with the command that
    makes them.
    """
    name = NUMBERS.get(name, name)
    row = FIGURES[name]
    given = (
        [runs]
        if isinstance(runs, Run)
        else list(runs.values() if isinstance(runs, Mapping) else runs)
    )
    for run in given:
        if not isinstance(run, Run):
            raise KitError(
                f"draw('{name}', ...) takes runs, such as kit.run(\"{row.methods[0]}\"), "
                f"not {type(run).__name__}"
            )
    by_method = {run.method: run for run in given}
    if not given:
        raise KitError(f"draw('{name}', ...) was given no runs; make one with kit.run(...)")
    if row.one and len(given) != 1:
        raise KitError(f"'{name}' draws exactly one run, it was given {len(given)}")
    if not row.one and not row.any:
        missing = [method for method in row.methods if method not in by_method]
        if missing:
            like = f" --recipe {given[0].spec.recipe} --seed {given[0].spec.seed}" if given else ""
            raise KitError(
                f"'{name}' also needs a run of {', '.join(missing)}: "
                + "; ".join(f"python -m kit train {method}{like}" for method in missing)
            )
    known = {
        p.name for p in signature(row.draw).parameters.values() if p.kind is Parameter.KEYWORD_ONLY
    }
    for option in options:
        if option not in known:
            raise unknown_name(f"option of '{name}'", option, known)
    started = time.monotonic()
    with (
        styled(),
        threads_for(given[0].plan.recipe.model, pick_device("cpu")),
    ):  # some figures attack
        runs = given[0] if row.one else given if row.any else {m: by_method[m] for m in row.methods}
        drawing = row.draw(runs, **options)
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
