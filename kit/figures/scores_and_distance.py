"""How closely do the papers' scores follow an example's distance to the boundary?

The distance is FMN's: the least perturbation of the clean image that changes its class. Two
figures: the rank correlation of each score with it (CLIRAT s. 1, MAIL s. 3.1), and the clean
probability of the true class against it (VIR Definition 4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes

from kit.attacks.table import attack_label
from kit.core import tensors
from kit.core.parameters import Natural, check_value
from kit.evaluation.accuracy import evaluate
from kit.evaluation.result_tables import count_seeds
from kit.evaluation.statistics import (
    Interval,
    bootstrap_over_seeds,
    draw_over_seeds,
    grand_mean,
    interval_of_draws,
    rank_correlation,
    rank_correlations,
)
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData
from kit.figures.run_outputs import (
    check_seeds,
    describe_setting,
    probabilities,
)
from kit.methods.criteria import confused_label_margin, probabilistic_margin
from kit.papers.claim_verdict import Estimate

#: What counts as an error under attack, in the figure of the clean probability.
ATTACK = "pgd20"

#: {(score, the score that it should beat): who says so}.
SCORE_PAIRS = {("PM", "LPS"): "MAIL s. 3.1", ("CL-PM", "PM"): "CLIRAT s. 1"}


@dataclass(frozen=True)
class ScoredImages:
    """The same n test images as one run finds them: scores, distances (n,) in eps, and what fell.

    A score is such that larger is safer. A distance is 0 where the clean image is misclassified,
    and infinite where FMN found nothing.
    """

    scores: dict[str, np.ndarray]
    distance: np.ndarray
    fell: np.ndarray


#: Which of a run's images belong to a group, (n,) bool.
Membership = Callable[[ScoredImages], np.ndarray]

GROUPS: dict[str, Membership] = {
    "all": lambda scored: np.ones_like(scored.fell),
    "fell": lambda scored: scored.fell,
    "survived": lambda scored: ~scored.fell,
}

GROUP_TITLES = {
    "all": "all images",
    "fell": "wrong under attack",
    "survived": "right under attack",
}


def score_test_images(run: Run, n: int) -> ScoredImages:
    """The first n test images (0: all) as the finished network and its training attack see them."""
    arrays = {name: values[: n or None] for name, values in run.final.items() if "test" in name}
    nat, y = probabilities(arrays, "test_logits_nat")
    adv, _ = probabilities(arrays, "test_logits_adv")
    logits = torch.from_numpy(arrays["test_logits_adv"].astype(np.float64))
    scores = {
        "PM": probabilistic_margin(adv, y).numpy(),
        "CL-PM": confused_label_margin(adv, y).numpy(),
        "logit margin": tensors.margin(logits, y).numpy(),
        "LPS": arrays["test_lps"].astype(float),
        "κ": arrays["test_kappa"].astype(float),
        "clean $p_y$": nat.gather(1, y[:, None]).squeeze(1).numpy(),
    }
    nearest = evaluate(run, ["fmn100"], n=n, quiet=True).attrs["examples"]["fmn100"]
    fell = (adv.argmax(dim=1) != y).numpy()
    return ScoredImages(scores, nearest["size"] / run.plan.recipe.eps, fell)


# -------------------------------------------------------------------------------- rank correlations


def compute_score_ranks(runs: Sequence[Run], *, n: Natural = 0) -> FigureData:
    """Spearman's correlation of six scores with FMN's distance, in three groups of test images.

    All but the clean p_y are of the image under the training attack. `n`: the first n test images,
    0 for all. Intervals are a bootstrap over seeds and images.

    Raises:
        KitError: The runs are of several methods, or a seed is there twice.
    """
    check_value("n", n, Natural)
    check_seeds(runs, "the rank correlations")
    scored = [score_test_images(run, n) for run in runs]
    facts = {
        "n": len(scored[0].distance),
        "seeds": len(runs),
        "groups": {group: correlate_scores(scored, belongs) for group, belongs in GROUPS.items()},
    }
    return FigureData(facts, describe_setting(runs[0], seed=False), runs[0].method)


def correlate_scores(scored: Sequence[ScoredImages], belongs: Membership) -> dict:
    """Each score's rank correlation with the distance in a group of images, and differences.

    NaN where all images of the group share one value.
    """
    names = list(scored[0].scores)
    columns = [np.column_stack(list(one.scores.values())) for one in scored]

    def statistic(seed: int, drawn: np.ndarray) -> np.ndarray:
        mine = drawn[belongs(scored[seed])[drawn]]
        return rank_correlations(columns[seed][mine], scored[seed].distance[mine])

    value, draws = draw_over_seeds(statistic, len(scored), len(scored[0].distance))
    found = {name: (value[k], draws[:, k]) for k, name in enumerate(names)}
    return {
        "n": [int(belongs(one).sum()) for one in scored],
        "spearman": {name: interval_of_draws(*found[name]) for name in names},
        "difference": {
            f"{better} - {worse}": interval_of_draws(
                found[better][0] - found[worse][0],
                found[better][1] - found[worse][1],
                statements=len(SCORE_PAIRS),
            )
            for better, worse in SCORE_PAIRS
        },
    }


def draw_score_ranks(data: FigureData) -> Drawing:
    """Draw a panel a group of images: a dot a score, with its interval."""
    drawing = Drawing(7.8, 3.0)
    panels = drawing.subplots(1, len(GROUPS), sharey=True)
    for panel, (group, found) in zip(panels, data.facts["groups"].items(), strict=True):
        _draw_ranks(panel, found["spearman"])
        panel.set(title=f"{GROUP_TITLES[group]}\n{_count(found['n'])}", xlabel="rank correlation")
    names = list(data.facts["groups"]["all"]["spearman"])
    panels[0].set(yticks=range(len(names)), ylim=(len(names) - 0.5, -0.5))
    panels[0].set_yticklabels(names)
    return drawing


def _draw_ranks(panel: Axes, found: dict[str, Interval]) -> None:
    panel.axvline(0, color=s.PALE, linewidth=1, zorder=0)
    panel.set(xlim=(-0.15, 1.03), xticks=(0, 0.5, 1))
    for place, (middle, low, high) in enumerate(found.values()):
        if not np.isfinite(middle):
            panel.annotate("constant", (0.02, place), va="center", fontsize=7.5, color=s.GREY)
            continue
        panel.errorbar(
            middle, place, xerr=[[middle - low], [high - middle]], fmt="o", color=s.BLUE, capsize=3
        )
        panel.annotate(
            f"{middle:.2f}",
            (1.02, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=7.5,
            color=s.SMALL_PRINT,
            annotation_clip=False,
        )


def _count(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"n = {low}" if low == high else f"n = {low} to {high}"


def decide_score_ranks(data: FigureData) -> list[Claim]:
    """Decide whether PM follows the distance, and more closely than LPS; and CL-PM than PM."""
    facts = data.facts
    rank = facts["groups"]["all"]["spearman"]["PM"]
    follows = Claim(
        "the smaller PM, the nearer the boundary (MAIL abstract)",
        "no numbers",
        f"Spearman {rank[0]:+.3f} [{rank[1]:+.3f}, {rank[2]:+.3f}], {facts['n']} test images, "
        f"{count_seeds(facts['seeds'])}",
        (Estimate("ρ of PM", "> 0", *rank),),
        number=94,
        seeds=facts["seeds"],
    )
    orders = [_decide_order(facts, *pair, source) for pair, source in SCORE_PAIRS.items()]
    return [follows, *orders]


def _decide_order(facts: dict, better: str, worse: str, source: str) -> Claim:
    middle, low, high = facts["groups"]["all"]["difference"][f"{better} - {worse}"]
    ranks = facts["groups"]["all"]["spearman"]
    return Claim(
        f"{better} follows the distance to the boundary more closely than {worse} ({source})",
        "no numbers",
        f"Spearman {ranks[better][0]:.3f} and {ranks[worse][0]:.3f}, difference {middle:+.3f} "
        f"[{low:+.3f}, {high:+.3f}], {facts['n']} test images, {count_seeds(facts['seeds'])}",
        (Estimate(f"ρ {better} - ρ {worse}", "> 0", middle, low, high),),
        seeds=facts["seeds"],
    )


def describe_score_ranks(data: FigureData) -> str:
    """The caption: each score's correlation over all images, and PM against LPS in each group."""
    facts = data.facts
    ranks = ", ".join(
        f"{name.replace('$', '')} {_in_words(found)}"
        for name, found in facts["groups"]["all"]["spearman"].items()
    )
    against = ", ".join(
        f"{GROUP_TITLES[group]} {_in_words(found['difference']['PM - LPS'])}"
        for group, found in facts["groups"].items()
        if np.isfinite(found["difference"]["PM - LPS"][0])
    )
    return (
        "Spearman's correlation of each score with the distance to the boundary (FMN), larger "
        f"being safer in both. {s.label(data.method)} on {data.setting}, "
        f"{count_seeds(facts['seeds'])}, {facts['n']} test images: {ranks}. PM's less LPS's: "
        f"{against}. LPS is the attack's first step at which the image is misclassified, κ the "
        "number of the attack's points that are still right. Bootstrap over seeds and images, 95 "
        "%. Images that are wrong without attack have distance 0."
    )


def _in_words(interval: Interval) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*interval)


# --------------------------------------------------------------------------- VIR, Definition 4.1


def compute_clean_probability(runs: Sequence[Run], *, n: Natural = 0) -> FigureData:
    """Clean p_y of test images against FMN's distance, and against the error under PGD-20.

    `n`: the first n test images, 0 for all. The error is shown in five groups of equal size by p_y.

    Raises:
        KitError: The runs are of several methods, or a seed is there twice.
    """
    check_value("n", n, Natural)
    check_seeds(runs, "the clean probabilities")
    p_y, distance, broken = [], [], []
    for run in runs:
        nat, y = probabilities(run.final, "test_logits_nat")
        p_y.append(nat.gather(1, y[:, None]).squeeze(1).numpy()[: n or None])
        found = evaluate(run, ["fmn100", ATTACK], n=n, quiet=True).attrs["examples"]
        distance.append(found["fmn100"]["size"] / run.plan.recipe.eps)
        broken.append(found[ATTACK]["broken"])
    count = len(p_y[0])
    order = np.argsort(np.stack(p_y), axis=1, kind="stable")
    in_order = np.take_along_axis(np.stack(broken), order, axis=1)
    facts = {
        "n": count,
        "seeds": len(runs),
        "distance": bootstrap_over_seeds(
            lambda seed, rows: rank_correlation(p_y[seed][rows], distance[seed][rows]),
            len(runs),
            count,
        ),
        "error": bootstrap_over_seeds(
            lambda seed, rows: rank_correlation(p_y[seed][rows], broken[seed][rows].astype(float)),
            len(runs),
            count,
        ),
        "by_fifth": [grand_mean(part) for part in np.array_split(in_order, 5, axis=1)],
    }
    extras = {"p_y": p_y[0], "distance": distance[0], "seed": runs[0].spec.seed}
    return FigureData(facts, describe_setting(runs[0], seed=False), runs[0].method, extras)


def draw_clean_probability(data: FigureData) -> Drawing:
    """Draw distance against p_y, and the error under attack by fifths of p_y."""
    drawing = Drawing(7.4, 3.1)
    cloud, bars = drawing.subplots(1, 2, width_ratios=(3, 2))
    distance = data.extras["distance"]
    found = np.isfinite(distance)
    cloud.scatter(
        data.extras["p_y"][found], distance[found], s=11, color=s.BLUE, alpha=0.5, linewidth=0
    )
    cloud.axhline(1, color=s.BLACK, linewidth=0.8, linestyle="--")
    cloud.annotate(
        "eps", (0, 1), xytext=(0, 3), textcoords="offset points", fontsize=8, color=s.SMALL_PRINT
    )
    cloud.set(
        xlabel="$p_y$ of the clean image",
        ylabel="distance to the boundary / eps",
        title=f"{s.label(data.method)}, seed {data.extras['seed']}: {found.sum()} test images",
    )
    for place, (middle, low, high) in enumerate(data.facts["by_fifth"]):
        bars.bar(place, middle, color=s.PALE, width=0.75)
        bars.errorbar(
            place, middle, yerr=[[middle - low], [high - middle]], color=s.SMALL_PRINT, capsize=3
        )
    bars.set(
        xticks=range(len(data.facts["by_fifth"])),
        xlabel="fifth of the images by clean $p_y$",
        ylabel=f"wrong under {attack_label(ATTACK)}",
        title=f"Error, {count_seeds(data.facts['seeds'])}",
        ylim=(0, None),
    )
    bars.set_xticklabels(["lowest", "2", "3", "4", "highest"])
    s.share_axis(bars)
    return drawing


def decide_clean_probability(data: FigureData) -> list[Claim]:
    """Decide whether a lower clean p_y goes with a smaller distance and with more errors."""
    facts = data.facts
    claims = []
    for name, words, sign in (
        ("distance", "nearer the boundary", 1),
        ("error", f"more often wrong under {attack_label(ATTACK)}", -1),
    ):
        middle, low, high = facts[name]
        claims.append(
            Claim(
                f"the lower the clean p_y, the more vulnerable: {words} (VIR Def. 4.1)",
                "no numbers",
                f"Spearman {middle:+.3f} [{low:+.3f}, {high:+.3f}], {facts['n']} test images, "
                f"{count_seeds(facts['seeds'])}",
                (Estimate(f"ρ with {name}", "> 0" if sign > 0 else "< 0", middle, low, high),),
                number=54,
                seeds=facts["seeds"],
            )
        )
    return claims


def describe_clean_probability(data: FigureData) -> str:
    """The caption: both correlations, and the error in the lowest and the highest fifth."""
    facts = data.facts
    distance, error = (
        "{:+.2f} [{:+.2f}, {:+.2f}]".format(*facts[name]) for name in ("distance", "error")
    )
    lowest, highest = facts["by_fifth"][0][0], facts["by_fifth"][-1][0]
    return (
        "VIR Definition 4.1 calls an example more vulnerable the lower the clean probability of "
        f"its class. {s.label(data.method)} on {data.setting}, {count_seeds(facts['seeds'])}, "
        f"{facts['n']} test images: Spearman's correlation of p_y with the distance to the "
        f"boundary (FMN) is {distance}, with the error under {attack_label(ATTACK)} {error}; "
        f"wrong are {lowest:.0%} of the fifth with the lowest p_y and {highest:.0%} of that with "
        "the highest."
    )
