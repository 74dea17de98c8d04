"""MAIL Figs. 1b and 4: what attack steps survived (LPS, κ) hide of margins and critical images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from matplotlib.axes import Axes

from kit.attacks.projected_gradient_descent import pgd
from kit.core.errors import KitError, unknown_name
from kit.core.parameters import Count, check_value
from kit.evaluation.accuracy import evaluate
from kit.evaluation.statistics import Interval, bootstrap_interval, share_with_interval, spearman
from kit.experiments.devices import pick_device
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData, format_counted
from kit.figures.run_outputs import describe_setting, probabilities
from kit.methods.criteria import probabilistic_margin
from kit.papers.claim_verdict import Estimate

_STEP_COUNTS = {
    "lps": "LPS: first misclassified step",
    "kappa": "κ: steps classified correctly (GAIRAT)",
}

#: The definition of "critical" that the bar and the claim take.
_BROKEN_BY_CW, _BROKEN_BY_AA = "broken by CW (margin loss)", "broken by AutoAttack"


# ------------------------------------------------------------------------------------------ Fig. 1b


def compute_critical_lps(
    run: Run, *, counted: Literal["lps", "kappa"] = "lps", aa: Count = 100
) -> FigureData:
    """Test images by LPS; and how many that survive every step are critical, by four definitions.

    The paper does not define "critical". Here: broken by the margin-loss attack at the same eps (in
    the bar), broken by AutoAttack (among the first `aa` images), PM under attack below 0.1, and PM
    after one attack step below 0.1.

    Raises:
        KitError: for another way of counting, or if no image survives.
    """
    if counted not in _STEP_COUNTS:
        raise unknown_name("way of counting steps", counted, _STEP_COUNTS)
    steps, arrays = run.plan.recipe.steps, run.final
    level = arrays[f"test_{counted}"].astype(int)
    definitions = find_critical(run, check_value("aa", aa, Count))
    safe = level == steps
    if not safe.any():
        raise KitError(
            f"no test image of {run.spec} survives all {steps} attack steps; lower eps or train "
            "longer"
        )
    facts = {
        "n": len(level),
        "counts": np.bincount(level, minlength=steps + 1),
        "steps": steps,
        "n_safe": int(safe.sum()),
        "critical": {
            name: share_with_interval(hit[safe[: len(hit)]]) for name, hit in definitions.items()
        },
    }
    return FigureData(facts, describe_setting(run), run.method, {"counted": counted})


def find_critical(run: Run, aa: int) -> dict[str, np.ndarray]:
    """{definition: which test images it calls critical}, (n,) bool.

    AutoAttack's is of the first `aa` images alone.
    """
    arrays, recipe, test = run.final, run.plan.recipe, run.data().test
    aa = min(aa, len(test))
    cw = evaluate(run, ["cw20"], quiet=True).attrs["examples"]["cw20"]["broken"]
    strongest = evaluate(run, ["aa"], n=aa, quiet=True).attrs["examples"]["aa"]["broken"]
    test, model, first = test.to(pick_device()), run.model(device=pick_device()), []
    for rows in torch.arange(len(test), device=test.y.device).split(256):
        x, y = test.x(rows), test.y[rows]
        x_1 = pgd(
            model, x, y, recipe.threat, steps=1, step_size=recipe.step * recipe.eps, init="none"
        )
        with torch.no_grad():
            first.append(probabilistic_margin(model(x_1).double().softmax(dim=1), y).cpu().numpy())
    return {
        _BROKEN_BY_CW: cw,
        _BROKEN_BY_AA: strongest,
        "PM under attack below 0.1": probabilistic_margin(
            *probabilities(arrays, "test_logits_adv")
        ).numpy()
        < 0.1,
        "PM after one step below 0.1": np.concatenate(first) < 0.1,
    }


def draw_critical_lps(data: FigureData) -> Drawing:
    """Draw a bar per step count, and the share of critical examples by each definition."""
    facts, steps = data.facts, data.facts["steps"]
    drawing = Drawing(7.2, 3.0)
    left, right = drawing.subplots(1, 2, width_ratios=(3, 2))
    _draw_step_bars(left, facts["counts"], facts["critical"][_BROKEN_BY_CW]["k"])
    left.set(
        xlabel=f"{_STEP_COUNTS[data.extras['counted']]}, {steps} = never",
        ylabel=f"test examples (of {facts['n']:,})",
        xticks=range(0, steps + 1, max(1, steps // 10)),
        title=f"{s.label(data.method)}: when images fall to PGD",
    )
    for i, fact in enumerate(facts["critical"].values()):
        share = fact["share"]
        right.errorbar(
            share,
            i,
            xerr=[[share - fact["low"]], [fact["high"] - share]],
            fmt="o",
            color=s.BLUE,
            capsize=3,
            clip_on=False,
        )
    right.set(
        yticks=range(len(facts["critical"])),
        ylim=(len(facts["critical"]) - 0.5, -0.5),
        title="Critical among survivors",
        xlabel="share of the last bar, 95 %",
    )
    right.set_yticklabels(
        [f"{name}\nn = {fact['n']}" for name, fact in facts["critical"].items()], fontsize=7.5
    )
    right.set_xlim(left=0)
    s.share_axis(right, "x")
    return drawing


def _draw_step_bars(axes: Axes, counts: np.ndarray, hidden: int) -> None:
    """Draw images per step count; in the last bar, in colour, the `hidden` critical ones."""
    steps = len(counts) - 1
    axes.bar(range(steps + 1), counts, color=s.PALE, width=0.8)
    axes.bar([steps], [hidden], color=s.BLUE, width=0.8)
    for k, count in enumerate(counts):
        s.write_above(axes, k, count, f"{count}")
    axes.annotate(
        f"broken by CW: {hidden}",
        (steps, hidden),
        xytext=(-8, 14),
        textcoords="offset points",
        ha="right",
        color=s.BLUE,
        fontsize=8.5,
        arrowprops={"arrowstyle": "-", "color": s.BLUE},
    )
    axes.set_ylim(0, counts.max() * 1.1)


def _ends(share: Mapping[str, float]) -> tuple[float, float]:
    return share["low"], share["high"]


def decide_critical_lps(data: FigureData) -> list[Claim]:
    """Decide whether some survivors fall to the margin loss, and some to AutoAttack."""
    critical = data.facts["critical"]
    cw, aa = critical[_BROKEN_BY_CW], critical[_BROKEN_BY_AA]
    return [
        Claim(
            "examples with the largest LPS hold critical ones (MAIL Fig. 1b)",
            "a part of the bar, no numbers",
            f"{format_counted(cw)} fall to the margin loss, {format_counted(aa)} to AutoAttack",
            tuple(
                Estimate(name, "> 0", critical[name]["share"], *_ends(critical[name]))
                for name in (_BROKEN_BY_CW, _BROKEN_BY_AA)
            ),
            number=17,
        )
    ]


def describe_critical_lps(data: FigureData) -> str:
    """The caption: how many survive, and what is critical among them."""
    facts = data.facts
    shares = ", ".join(
        f"{name} {fact['share']:.1%} of {fact['n']}" for name, fact in facts["critical"].items()
    )
    critical = facts["critical"]
    fewer = (
        " AutoAttack takes long, so it sees the first test images alone."
        if critical[_BROKEN_BY_AA]["n"] < critical[_BROKEN_BY_CW]["n"]
        else ""
    )
    return (
        "MAIL Fig. 1b claims that the examples with the largest LPS hold critical ones too. "
        f"{s.label(data.method)} on {data.setting}: {facts['n_safe']} of {facts['n']} test images "
        f"survive all {facts['steps']} steps; critical among them are: {shares}.{fewer}"
    )


# ------------------------------------------------------------------------------------------- Fig. 4


def compute_pm_by_lps(
    run: Run, *, split: Literal["train", "test"] = "train", margin: Literal["nat", "adv"] = "nat"
) -> FigureData:
    """Distribution of PM within each level of LPS and of κ."""
    if split not in ("train", "test"):
        raise unknown_name("split", split, ("train", "test"))
    if margin not in ("nat", "adv"):
        raise unknown_name("margin", margin, ("nat", "adv"))
    steps, arrays = run.plan.recipe.steps, run.final
    pm = probabilistic_margin(*probabilities(arrays, f"{split}_logits_{margin}")).numpy()
    facts: dict = {"n": len(pm), "steps": steps}
    groups = {}
    for counted in _STEP_COUNTS:
        level = arrays[f"{split}_{counted}"].astype(int)
        groups[counted] = {k: pm[level == k] for k in range(steps + 1) if (level == k).any()}
        facts[counted] = summarise_levels(groups[counted], level, pm, steps)
    extras = {"groups": groups, "split": split, "margin": margin}
    return FigureData(facts, describe_setting(run), run.method, extras)


def summarise_levels(
    groups: dict[int, np.ndarray], level: np.ndarray, pm: np.ndarray, steps: int
) -> dict:
    """Per level n, median, quartiles, 5 % and 95 % points, outliers; and K-1 against K-3.

    The latter is the paper's comparison: MAIL's LPS 9 and 7 of K = 10.
    """
    levels = {}
    for k, values in groups.items():
        p5, q1, median, q3, p95 = np.percentile(values, [5, 25, 50, 75, 95])
        levels[k] = {
            "n": len(values),
            "median": median,
            "q1": q1,
            "q3": q3,
            "p5": p5,
            "p95": p95,
            "outliers": int(((values < p5) | (values > p95)).sum()),
        }
    high, low = steps - 1, steps - 3
    both = high in groups and low in groups
    return {
        "levels": levels,
        "high": high,
        "low": low,
        "median_difference": levels[high]["median"] - levels[low]["median"] if both else None,
        "beyond_box": compare_medians(groups[high], groups[low]) if both else None,
        "overlap": float((groups[high][:, None] < groups[low][None, :]).mean()) if both else None,
        "spearman": spearman(level, pm)[0],
    }


def compare_medians(a: np.ndarray, b: np.ndarray) -> Interval:
    """How far apart two medians are, less the narrower interquartile range, 95 % by bootstrap."""
    values, first = np.concatenate([a, b]), np.arange(len(a) + len(b)) < len(a)

    def beyond(rows: np.ndarray) -> float:
        parts = [values[rows][mask] for mask in (first[rows], ~first[rows])]
        if not all(map(len, parts)):
            return math.nan
        (low_a, middle_a, high_a), (low_b, middle_b, high_b) = (
            np.percentile(part, [25, 50, 75]) for part in parts
        )
        return float(abs(middle_a - middle_b) - min(high_a - low_a, high_b - low_b))

    return bootstrap_interval(beyond, len(values))


def draw_pm_by_lps(data: FigureData) -> Drawing:
    """Draw box plots: box quartiles, line median, whiskers 5 % and 95 %."""
    steps, margin = data.facts["steps"], data.extras["margin"]
    drawing = Drawing(7.4, 3.3)
    panels = drawing.subplots(1, 2, sharey=True)
    for panel, (counted, title) in zip(panels, _STEP_COUNTS.items(), strict=True):
        _draw_boxes(panel, data.extras["groups"][counted])
        panel.set_title(title, pad=14)
        ticks = range(0, steps + 1, max(1, steps // 10))
        panel.set(xlabel="steps", xticks=ticks, xlim=(-0.7, steps + 0.7))
        panel.set_xticklabels(ticks)
        panel.axhline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
    panels[0].set_ylabel(
        {"nat": r"$\mathrm{PM}^{nat}$", "adv": r"$\mathrm{PM}^{adv}$"}[margin]
        + f" of {data.extras['split']} examples"
    )
    return drawing


def _draw_boxes(panel: Axes, groups: dict[int, np.ndarray]) -> None:
    """Draw a box per level, with the number of its examples above."""
    panel.boxplot(
        list(groups.values()),
        positions=list(groups),
        whis=(5, 95),
        widths=0.65,
        patch_artist=True,
        boxprops={"facecolor": "#CFE3F1", "edgecolor": s.BLUE, "linewidth": 1},
        medianprops={"color": s.VERMILLION, "linewidth": 1.8},
        whiskerprops={"color": s.BLUE},
        capprops={"color": s.BLUE},
        flierprops={
            "marker": ".",
            "markersize": 3,
            "markeredgecolor": "none",
            "markerfacecolor": "#7A7A7A",
        },
    )
    for k, values in groups.items():
        panel.annotate(
            f"{len(values)}" if len(values) < 10_000 else f"{len(values) / 1000:.0f}k",
            (k, 1.0),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            fontsize=6.5,
            color=s.SMALL_PRINT,
        )


def decide_pm_by_lps(data: FigureData) -> list[Claim]:
    """Decide whether the medians of K-1 and K-3 differ by less than either interquartile range."""
    return [_decide_hardly_different(data.facts["lps"])]


def _decide_hardly_different(f: dict) -> Claim:
    name, printed = (
        "median PM hardly differs between large LPS values (MAIL Fig. 4)",
        "LPS 9 and 7, no numbers",
    )
    if f["median_difference"] is None:
        return Claim(
            name,
            printed,
            f"LPS {f['high']} and {f['low']} do not both occur",
            number=20,
        )
    high, low = (f["levels"][k]["q3"] - f["levels"][k]["q1"] for k in (f["high"], f["low"]))
    n = min(f["levels"][k]["n"] for k in (f["high"], f["low"]))
    return Claim(
        name,
        printed,
        f"{f['median_difference']:+.3f}, interquartile ranges {low:.3f} and {high:.3f}, n at least "
        f"{n}",
        (Estimate("|median difference| - narrower box", "< 0", *f["beyond_box"]),),
        number=20,
    )


def describe_pm_by_lps(data: FigureData) -> str:
    """The caption: the paper's comparison, and the rank correlation."""
    lps, steps = data.facts["lps"], data.facts["steps"]
    compared = (
        f"the medians of LPS {lps['high']} and {lps['low']} differ by "
        f"{lps['median_difference']:+.3f}, and an example of the larger LPS has the smaller PM "
        f"with probability {lps['overlap']:.2f}"
        if lps["median_difference"] is not None
        else f"LPS {steps - 1} and {steps - 3} do not both occur, so the paper's comparison of 9 "
        "and 7 cannot be made"
    )
    return (
        "MAIL Fig. 4 claims that PM hardly differs between large LPS values while it spreads "
        f"widely within one. {s.label(data.method)} on {data.setting}, n = {data.facts['n']}: "
        f"{compared}; Spearman correlation {lps['spearman']:.2f}. Numbers above the boxes "
        "are n (k: thousands); boxes are quartiles, whiskers run from 5 % to 95 %, dots lie beyond."
    )
