"""MAIL's figures on what attack steps (LPS, κ) hide and the probabilistic margin shows."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import stats

from kit.criteria import probabilistic_margin
from kit.evaluate import evaluate, wilson
from kit.figures import style as s
from kit.figures.drawing import Claim, Drawing
from kit.figures.reading import probabilities, setting
from kit.runs import Run
from kit.types import KitError, unknown

_COUNTS = {"lps": "LPS: first misclassified step", "kappa": "κ: steps classified correctly (GAIRAT)"}


def critical_lps(run: Run, *, counted: Literal["lps", "kappa"] = "lps") -> Drawing:
    """Test images by LPS; and how many of those that survive every step are critical, by three definitions.

    The paper does not define "critical". Shown: broken by the margin-loss attack at the same eps (in the bar), PM
    under attack below 0.1, and broken by a single step of length eps.
    """
    if counted not in _COUNTS:
        raise unknown("way of counting steps", counted, _COUNTS)
    steps, arrays = run.plan.recipe.steps, run.final
    level, y = arrays[f"test_{counted}"].astype(int), arrays["test_y"]
    table = evaluate(run, ["cw20", "fgsm"], quiet=True)
    pm = probabilistic_margin(*probabilities(arrays, "test_logits_adv")).numpy()
    definitions = {"broken by CW (margin loss)": table.attrs["examples"]["cw20"]["broken"],
                   "PM under attack below 0.1": pm < 0.1,
                   "broken by one step of length eps": table.attrs["examples"]["fgsm"]["broken"]}
    safe = level == steps
    if not safe.any():
        raise KitError(f"no test image of {run.spec} survives all {steps} attack steps; lower eps or train longer")
    counts = np.bincount(level, minlength=steps + 1)
    drawing = Drawing(7.2, 3.0)
    left, right = drawing.subplots(1, 2, width_ratios=(3, 2))
    left.bar(range(steps + 1), counts, color="#C9CDD2", width=0.8)
    hidden = int((definitions["broken by CW (margin loss)"] & safe).sum())
    left.bar([steps], [hidden], color=s.BLUE, width=0.8)
    for k, c in enumerate(counts):
        left.annotate(f"{c}", (k, c), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=7.5)
    left.annotate(f"critical: {hidden}", (steps, hidden), xytext=(-8, 14), textcoords="offset points", ha="right",
                  color=s.BLUE, fontsize=8.5, arrowprops={"arrowstyle": "-", "color": s.BLUE})
    left.set_ylim(0, counts.max() * 1.1)
    left.set(xlabel=f"{_COUNTS[counted]}, {steps} = never", ylabel=f"test examples (of {len(y):,})",
             xticks=range(0, steps + 1, max(1, steps // 10)), title=f"{s.label(run.method)}")
    facts = {"n": len(y), "counts": counts, "steps": steps, "n_safe": int(safe.sum()), "critical": {}}
    for i, (name, hit) in enumerate(definitions.items()):
        k, n = int((hit & safe).sum()), int(safe.sum())
        low, high = wilson(k, n)
        facts["critical"][name] = {"share": k / n, "low": low, "high": high, "k": k}
        right.errorbar(k / n, i, xerr=[[k / n - low], [high - k / n]], fmt="o", color=s.BLUE, capsize=3)
    right.set(yticks=range(3), ylim=(2.5, -0.5), title=f"Critical among these {int(safe.sum())}",
              xlabel="share, 95 % interval")
    right.set_yticklabels([name.replace(" (", "\n(").replace(" below", "\nbelow").replace(" of", "\nof")
                           for name in definitions])
    right.set_xlim(left=0)
    s.share_axis(right, "x")
    drawing.facts = facts
    cw = facts["critical"]["broken by CW (margin loss)"]
    drawing.claims = [Claim(
        "examples with the largest LPS hold critical ones (MAIL Fig. 1b)", "a part of the bar, no numbers",
        f"{cw['k']} of {facts['n_safe']}, {cw['share']:.1%} [{cw['low']:.1%}, {cw['high']:.1%}], fall to the margin loss",
        holds=cw["low"] > 0.01, fails=cw["high"] < 0.01)]
    shares = ", ".join(f"{name} {f['share']:.1%}" for name, f in facts["critical"].items())
    drawing.caption = (f"MAIL Fig. 1b claims that the examples with the largest LPS hold critical ones too. {s.label(run.method)} on "
                       f"{setting(run)}: {facts['n_safe']} of {len(y)} test images survive all {steps} steps; critical among them "
                       f"are: {shares}.")
    return drawing


def pm_by_lps(run: Run, *, split: Literal["train", "test"] = "train", margin: Literal["nat", "adv"] = "nat") -> Drawing:
    """Box plots of PM within each level of LPS and of κ: box quartiles, line median, whiskers 5 % and 95 %."""
    if split not in ("train", "test"):
        raise unknown("split", split, ("train", "test"))
    if margin not in ("nat", "adv"):
        raise unknown("margin", margin, ("nat", "adv"))
    steps, arrays = run.plan.recipe.steps, run.final
    pm = probabilistic_margin(*probabilities(arrays, f"{split}_logits_{margin}")).numpy()
    drawing = Drawing(7.4, 3.3)
    panels = drawing.subplots(1, 2, sharey=True)
    facts = {"n": len(pm), "steps": steps}
    for panel, (counted, title) in zip(panels, _COUNTS.items(), strict=True):
        level = arrays[f"{split}_{counted}"].astype(int)
        groups = {k: pm[level == k] for k in range(steps + 1) if (level == k).any()}
        panel.boxplot(list(groups.values()), positions=list(groups), whis=(5, 95), widths=0.65, patch_artist=True,
                      boxprops={"facecolor": "#CFE3F1", "edgecolor": s.BLUE, "linewidth": 1},
                      medianprops={"color": s.VERMILLION, "linewidth": 1.8}, whiskerprops={"color": s.BLUE},
                      capprops={"color": s.BLUE},
                      flierprops={"marker": ".", "markersize": 3, "markeredgecolor": "none", "markerfacecolor": "#7A7A7A"})
        for k, values in groups.items():
            panel.annotate(f"{len(values)}", (k, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom",
                           fontsize=6.5, color="#555555")
        panel.set_title(title, pad=14)
        panel.set(xlabel="steps", xticks=range(0, steps + 1, max(1, steps // 10)), xlim=(-0.7, steps + 0.7))
        panel.set_xticklabels(range(0, steps + 1, max(1, steps // 10)))
        panel.axhline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
        facts[counted] = _spread(groups, level, pm, steps)
    panels[0].set_ylabel({"nat": r"$\mathrm{PM}^{nat}$", "adv": r"$\mathrm{PM}^{adv}$"}[margin] + f" of {split} examples")
    drawing.facts = facts
    f = facts["lps"]
    drawing.claims = [_hardly_differs(f)]
    compared = (f"the medians of LPS {f['high']} and {f['low']} differ by {f['median_difference']:+.3f}, and an example of the "
                f"larger LPS has the smaller PM with probability {f['overlap']:.2f}"
                if f["median_difference"] is not None else
                f"LPS {steps - 1} and {steps - 3} do not both occur, so the paper's comparison of 9 and 7 cannot be made")
    drawing.caption = (f"MAIL Fig. 4 claims that PM hardly differs between large LPS values while it spreads widely within one. "
                       f"{s.label(run.method)} on {setting(run)}, n = {len(pm)}: {compared}; Spearman correlation "
                       f"{f['spearman']:.2f}. Numbers above the boxes are n.")
    return drawing


def _hardly_differs(f: dict) -> Claim:
    """MAIL compares LPS 9 with 7 of 10. Hardly different: by less than either group's interquartile range."""
    name, printed = "median PM hardly differs between large LPS values (MAIL Fig. 4)", "LPS 9 and 7, no numbers"
    if f["median_difference"] is None:
        return Claim(name, printed, f"LPS {f['high']} and {f['low']} do not both occur", holds=False, fails=False)
    high, low = (f["levels"][k]["q3"] - f["levels"][k]["q1"] for k in (f["high"], f["low"]))
    n = min(f["levels"][k]["n"] for k in (f["high"], f["low"]))
    difference, apart = abs(f["median_difference"]), min(high, low)
    return Claim(name, printed, f"{f['median_difference']:+.3f}, interquartile ranges {low:.3f} and {high:.3f}, n at least {n}",
                 holds=n >= 10 and difference < apart, fails=n >= 10 and difference >= apart)


def _spread(groups: dict[int, np.ndarray], level: np.ndarray, pm: np.ndarray, steps: int) -> dict:
    """Per level n, median, quartiles, 5 % and 95 % points, outliers; and the paper's comparison of K-1 with K-3."""
    levels = {}
    for k, values in groups.items():
        p5, q1, median, q3, p95 = np.percentile(values, [5, 25, 50, 75, 95])
        levels[k] = {"n": len(values), "median": median, "q1": q1, "q3": q3, "p5": p5, "p95": p95,
                     "outliers": int(((values < p5) | (values > p95)).sum())}
    high, low = steps - 1, steps - 3
    both = high in groups and low in groups
    return {"levels": levels, "high": high, "low": low,
            "median_difference": levels[high]["median"] - levels[low]["median"] if both else None,
            "overlap": float((groups[high][:, None] < groups[low][None, :]).mean()) if both else None,
            "spearman": float(stats.spearmanr(level, pm).statistic) if len(groups) > 1 else float("nan")}
