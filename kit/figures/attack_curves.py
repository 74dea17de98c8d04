"""Accuracy against the radius of the ball, attack by attack."""

from __future__ import annotations

import numpy as np

from kit.evaluation.accuracy import evaluate
from kit.evaluation.statistics import paired_difference, wilson
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.attacked_images import (
    NORM_LABELS,
    attack_and_norm_label,
    attack_images,
    count_broken,
    count_wrong_when_clean,
    first_images,
    parse_attacks,
    parse_radii,
    resolve_attack,
)
from kit.figures.base import Claim, Drawing, FigureData, format_points
from kit.figures.run_outputs import describe_setting
from kit.papers.claim_verdict import Estimate

#: (colour, dash, marker) of the attacks, in their order.
_ATTACK_LOOKS = (
    (s.GREY, "-", "o"),
    (s.BLUE, "-", "s"),
    (s.ORANGE, "-", "^"),
    (s.GREEN, "-", "v"),
    (s.GREEN, "--", "D"),
    (s.PURPLE, "--", "P"),
    (s.VERMILLION, "-", "X"),
    (s.SKY, "-", "<"),
    (s.YELLOW, "-", ">"),
    (s.BLACK, "-", "*"),
)


def compute_attack_curves(
    run: Run, *, attacks: str = "fgsm pgd20 mia bia bia:l2 cw-l2", eps: str = "", n: int = 100
) -> FigureData:
    """Accuracy on the first `n` test images against the radius, per attack.

    `attacks` as in `compute_attack_gallery`; `eps`: radii in the run's norm ("": up to twice the
    run's, in quarters of it). FGSM against PGD-20 is on up to 1,000 test images.
    """
    own, names = run.plan.recipe.threat, parse_attacks(attacks)
    model, images = first_images(run, n)
    radii = parse_radii(eps, [own.eps * k / 4 for k in (1, 2, 3, 4, 6, 8)])
    found = attack_images(model, images, own.norm, names, radii)
    clean = n - count_wrong_when_clean(found)
    facts = {
        "n": n,
        "eps": radii,
        "norm": own.norm,
        "clean": clean / n,
        "broken": count_broken(found),
        "settings": {name: resolve_attack(name, own.norm)[0].config() for name in names},
    }
    table = evaluate(run, ["fgsm", "pgd20"], n=1000, quiet=True)
    broken = {name: table.attrs["examples"][name]["broken"] for name in ("fgsm", "pgd20")}
    extras = {"own": own.eps, "right_when_clean": clean, "one_and_many": broken}
    return FigureData(facts, describe_setting(run), run.method, extras)


def draw_attack_curves(data: FigureData) -> Drawing:
    """Draw a curve per attack with Wilson's intervals, moved a little sideways."""
    n, radii, clean = data.facts["n"], data.facts["eps"], data.extras["right_when_clean"]
    counted = data.facts["broken"]
    drawing = Drawing(6.4, 3.5)
    axes = drawing.subplots()
    step = 0.012 * radii[-1]
    for place, ((name, counts), (tint, line, marker)) in enumerate(
        zip(counted.items(), _ATTACK_LOOKS * len(counted), strict=False)
    ):
        x = np.array([0.0, *radii]) + step * (place - (len(counted) - 1) / 2)
        right = np.array([clean / n] + [1 - count["share"] for count in counts])
        ends = [wilson(clean, n)] + [(1 - count["high"], 1 - count["low"]) for count in counts]
        axes.plot(
            x,
            right,
            color=tint,
            linestyle=line,
            marker=marker,
            markersize=4,
            linewidth=1.4,
            label=attack_and_norm_label(name),
        )
        axes.vlines(x, *np.array(ends).T, color=tint, linewidth=0.9, alpha=0.6)
    axes.axvline(data.extras["own"], color=s.BLACK, linewidth=0.8, linestyle=":")
    axes.annotate(
        "trained with",
        (data.extras["own"], 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 2),
        textcoords="offset points",
        fontsize=7.5,
        ha="center",
    )
    axes.set(
        xlabel=f"eps ({NORM_LABELS[data.facts['norm']]}; the other norm: the ball of equal volume)",
        ylim=(0, 1.02),
        ylabel=f"accuracy, n = {n}, 95 %",
    )
    axes.set_title(f"{s.label(data.method)}: accuracy as the ball grows", pad=15)
    s.share_axis(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return drawing


def decide_attack_curves(data: FigureData) -> list[Claim]:
    """Decide whether FGSM leaves more images right than PGD-20, paired."""
    one, many = (data.extras["one_and_many"][name] for name in ("fgsm", "pgd20"))
    interval = paired_difference(many, one)
    return [
        Claim(
            "one step of FGSM leaves more images right than PGD at the same eps (VIR T1)",
            "AT 57.88 % under FGSM, 51.58 % under PGD-100",
            f"{1 - one.mean():.1%} under FGSM, {1 - many.mean():.1%} under PGD-20 on {len(one)} "
            f"images, paired {format_points(interval, ' points')}",
            (Estimate("FGSM - PGD-20", "> 0", *interval),),
        )
    ]


def describe_attack_curves(data: FigureData) -> str:
    """The caption: accuracy under each attack in the largest ball."""
    facts = data.facts
    words = ", ".join(
        f"{attack_and_norm_label(name)} {1 - counts[-1]['share']:.0%}"
        for name, counts in facts["broken"].items()
    )
    return (
        f"{s.label(data.method)} on {data.setting}, first {facts['n']} test images, "
        f"{facts['clean']:.0%} right when clean. Right at eps {facts['eps'][-1]:.3g}: {words}. "
        "Points are moved a little sideways. Where one attack stays above another in the same "
        "ball, it has missed images that can be broken."
    )
