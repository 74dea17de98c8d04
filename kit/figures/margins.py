"""MAIL's figures on what attack steps (LPS, κ) hide:

from margins, and from attacks on another loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from scipy import stats

from kit.attacks.projected_gradient_descent import pgd
from kit.core.errors import KitError, unknown_name
from kit.core.parameters import Count, check_value
from kit.evaluation.accuracy import evaluate
from kit.evaluation.statistics import paired_difference, wilson
from kit.experiments.devices import pick_device
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing
from kit.figures.reading import probabilities, setting
from kit.figures.similarity import bootstrap
from kit.methods.criteria import probabilistic_margin

_COUNTS = {
    "lps": "LPS: first misclassified step",
    "kappa": "κ: steps classified correctly (GAIRAT)",
}


def critical_lps(run: Run, *, counted: Literal["lps", "kappa"] = "lps", aa: Count = 100) -> Drawing:
    """Test images by LPS; and how many of those that survive every step are critical, by four
    definitions.

    The paper does not define "critical". Shown: broken by the margin-loss attack at the same eps
    (in the bar), broken by AutoAttack (among the first `aa` images), PM under attack below 0.1, and
    PM after one attack step below 0.1.
    """
    if counted not in _COUNTS:
        raise unknown_name("way of counting steps", counted, _COUNTS)
    steps, arrays = run.plan.recipe.steps, run.final
    level, y = arrays[f"test_{counted}"].astype(int), arrays["test_y"]
    definitions = _critical(run, check_value("aa", aa, Count))
    safe = level == steps
    if not safe.any():
        raise KitError(
            f"no test image of {run.spec} survives all {steps} attack steps; lower eps or train "
            f"longer"
        )
    counts = np.bincount(level, minlength=steps + 1)
    drawing = Drawing(7.2, 3.0)
    left, right = drawing.subplots(1, 2, width_ratios=(3, 2))
    hidden = int((definitions["broken by CW (margin loss)"] & safe).sum())
    _count_bars(left, counts, hidden)
    left.set(
        xlabel=f"{_COUNTS[counted]}, {steps} = never",
        ylabel=f"test examples (of {len(y):,})",
        xticks=range(0, steps + 1, max(1, steps // 10)),
        title=f"{s.label(run.method)}",
    )
    facts = {
        "n": len(y),
        "counts": counts,
        "steps": steps,
        "n_safe": int(safe.sum()),
        "critical": {},
    }
    for i, (name, hit) in enumerate(definitions.items()):
        k, n = int((hit & safe[: len(hit)]).sum()), int(safe[: len(hit)].sum())
        low, high = wilson(k, n)
        share = k / max(n, 1)
        facts["critical"][name] = {"share": share, "low": low, "high": high, "k": k, "n": n}
        right.errorbar(
            share,
            i,
            xerr=[[share - low], [high - share]],
            fmt="o",
            color=s.BLUE,
            capsize=3,
            clip_on=False,
        )
    right.set(
        yticks=range(len(definitions)),
        ylim=(len(definitions) - 0.5, -0.5),
        title="Critical among these",
        xlabel="share, 95 % interval",
    )
    right.set_yticklabels(
        [f"{name}\nn = {facts['critical'][name]['n']}" for name in definitions], fontsize=7.5
    )
    right.set_xlim(left=0)
    s.share_axis(right, "x")
    drawing.facts = facts
    cw = facts["critical"]["broken by CW (margin loss)"]
    drawing.claims = [
        Claim(
            "examples with the largest LPS hold critical ones (MAIL Fig. 1b)",
            "a part of the bar, no numbers",
            f"{cw['k']} of {facts['n_safe']}, {cw['share']:.1%} [{cw['low']:.1%}, "
            f"{cw['high']:.1%}], fall to the margin loss",
            holds=cw["low"] > 0.01,
            fails=cw["high"] < 0.01,
        )
    ]
    shares = ", ".join(
        f"{name} {f['share']:.1%} of {f['n']}" for name, f in facts["critical"].items()
    )
    drawing.caption = (
        "MAIL Fig. 1b claims that the examples with the largest LPS hold critical ones too. "
        f"{s.label(run.method)} on {setting(run)}: {facts['n_safe']} of {len(y)} test images "
        f"survive all "
        f"{steps} steps; critical among them are: {shares}."
    )
    return drawing


def _critical(run: Run, aa: int) -> dict[str, np.ndarray]:
    """{definition:

    which test images it calls critical}, of AutoAttack's for the first `aa` images alone.
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
        "broken by CW (margin loss)": cw,
        "broken by AutoAttack": strongest,
        "PM under attack below 0.1": probabilistic_margin(
            *probabilities(arrays, "test_logits_adv")
        ).numpy()
        < 0.1,
        "PM after one step below 0.1": np.concatenate(first) < 0.1,
    }


def _count_bars(axes, counts: np.ndarray, hidden: int) -> None:
    """Images per step count; in the last bar, in colour, the `hidden` critical ones."""
    steps = len(counts) - 1
    axes.bar(range(steps + 1), counts, color="#C9CDD2", width=0.8)
    axes.bar([steps], [hidden], color=s.BLUE, width=0.8)
    for k, c in enumerate(counts):
        axes.annotate(
            f"{c}", (k, c), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=7.5
        )
    axes.annotate(
        f"critical: {hidden}",
        (steps, hidden),
        xytext=(-8, 14),
        textcoords="offset points",
        ha="right",
        color=s.BLUE,
        fontsize=8.5,
        arrowprops={"arrowstyle": "-", "color": s.BLUE},
    )
    axes.set_ylim(0, counts.max() * 1.1)


def pm_by_lps(
    run: Run, *, split: Literal["train", "test"] = "train", margin: Literal["nat", "adv"] = "nat"
) -> Drawing:
    """Box plots of PM within each level of LPS and of κ:

    box quartiles, line median, whiskers 5 % and 95 %.
    """
    if split not in ("train", "test"):
        raise unknown_name("split", split, ("train", "test"))
    if margin not in ("nat", "adv"):
        raise unknown_name("margin", margin, ("nat", "adv"))
    steps, arrays = run.plan.recipe.steps, run.final
    pm = probabilistic_margin(*probabilities(arrays, f"{split}_logits_{margin}")).numpy()
    drawing = Drawing(7.4, 3.3)
    panels = drawing.subplots(1, 2, sharey=True)
    facts = {"n": len(pm), "steps": steps}
    for panel, (counted, title) in zip(panels, _COUNTS.items(), strict=True):
        level = arrays[f"{split}_{counted}"].astype(int)
        groups = {k: pm[level == k] for k in range(steps + 1) if (level == k).any()}
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
                f"{len(values)}",
                (k, 1.0),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="bottom",
                fontsize=6.5,
                color="#555555",
            )
        panel.set_title(title, pad=14)
        panel.set(
            xlabel="steps",
            xticks=range(0, steps + 1, max(1, steps // 10)),
            xlim=(-0.7, steps + 0.7),
        )
        panel.set_xticklabels(range(0, steps + 1, max(1, steps // 10)))
        panel.axhline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
        facts[counted] = _spread(groups, level, pm, steps)
    panels[0].set_ylabel(
        {"nat": r"$\mathrm{PM}^{nat}$", "adv": r"$\mathrm{PM}^{adv}$"}[margin]
        + f" of {split} examples"
    )
    drawing.facts = facts
    f = facts["lps"]
    drawing.claims = [_hardly_differs(f)]
    compared = (
        f"the medians of LPS {f['high']} and {f['low']} differ by {f['median_difference']:+.3f}, "
        f"and an example of "
        f"the larger LPS has the smaller PM with probability {f['overlap']:.2f}"
        if f["median_difference"] is not None
        else f"LPS {steps - 1} and {steps - 3} do not both occur, so the paper's comparison of 9 "
        f"and 7 cannot be made"
    )
    drawing.caption = (
        "MAIL Fig. 4 claims that PM hardly differs between large LPS values while it spreads "
        "widely within "
        f"one. {s.label(run.method)} on {setting(run)}, n = {len(pm)}: {compared}; Spearman "
        f"correlation "
        f"{f['spearman']:.2f}. Numbers above the boxes are n."
    )
    return drawing


def _hardly_differs(f: dict) -> Claim:
    """MAIL compares LPS 9 with 7 of 10.

    Hardly different: by less than either group's interquartile range.
    """
    name, printed = (
        "median PM hardly differs between large LPS values (MAIL Fig. 4)",
        "LPS 9 and 7, no numbers",
    )
    if f["median_difference"] is None:
        return Claim(
            name,
            printed,
            f"LPS {f['high']} and {f['low']} do not both occur",
            holds=False,
            fails=False,
        )
    high, low = (f["levels"][k]["q3"] - f["levels"][k]["q1"] for k in (f["high"], f["low"]))
    n = min(f["levels"][k]["n"] for k in (f["high"], f["low"]))
    difference, apart = abs(f["median_difference"]), min(high, low)
    return Claim(
        name,
        printed,
        f"{f['median_difference']:+.3f}, interquartile ranges {low:.3f} and {high:.3f}, n at least "
        f"{n}",
        holds=n >= 10 and difference < apart,
        fails=n >= 10 and difference >= apart,
    )


def _spread(groups: dict[int, np.ndarray], level: np.ndarray, pm: np.ndarray, steps: int) -> dict:
    """Per level n, median, quartiles, 5 % and 95 % points, outliers; and the paper's comparison of
    K-1 with K-3.
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
        "overlap": float((groups[high][:, None] < groups[low][None, :]).mean()) if both else None,
        "spearman": float(stats.spearmanr(level, pm).statistic)
        if len(groups) > 1
        else float("nan"),
    }


def pgd_against_cw(runs: Mapping[str, Run], *, aa: Count = 100) -> Drawing:
    """AT and GAIRAT on clean images, under PGD-100, CW and AutoAttack (the first `aa` images); and
    the interaction (GAIRAT - AT) under PGD minus the same under CW, paired over images.
    """
    first = next(iter(runs.values()))
    subset = min(check_value("aa", aa, Count), len(first.final["test_y"]))
    attacks = {"natural": 0, "pgd100": 0, "cw20": 0, "aa": subset}
    right = {
        method: {
            name: ~evaluate(run, [name], n=n, quiet=True).attrs["examples"][name]["broken"]
            for name, n in attacks.items()
        }
        for method, run in runs.items()
    }
    drawing = Drawing(7.6, 3.1)
    bars, dots = drawing.subplots(1, 2, width_ratios=(5, 3))
    accuracy = _grouped_bars(bars, right)
    gain = {name: paired_difference(~right["at"][name], ~right["gairat"][name]) for name in attacks}
    interaction = {name: _interaction(right, name) for name in ("cw20", "aa")}
    for i, (mean, low, high) in enumerate(interaction.values()):
        dots.errorbar(
            100 * mean,
            i,
            xerr=[[100 * (mean - low)], [100 * (high - mean)]],
            fmt="o",
            color=s.BLUE,
            capsize=3,
        )
        dots.annotate(
            f"{100 * mean:+.1f}",
            (100 * mean, i),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
        )
    dots.plot(PRINTED, 0, "D", color=s.BLACK, markersize=5)
    dots.annotate(
        f"paper {PRINTED:+.2f}",
        (PRINTED, 0),
        xytext=(0, -13),
        textcoords="offset points",
        ha="center",
        fontsize=7.5,
    )
    dots.axvline(0, color=s.GREY, linewidth=0.8, zorder=0)
    dots.set(
        yticks=range(2),
        ylim=(1.6, -0.6),
        xlabel="points, 95 % interval",
        title="Gain under PGD minus ...",
    )
    dots.set_yticklabels(
        [f"under {s.attack_label(name)}\nn = {len(right['at'][name])}" for name in interaction]
    )
    dots.margins(x=0.15)
    drawing.facts = {
        "n": {name: len(right["at"][name]) for name in attacks},
        "accuracy": accuracy,
        "gain": gain,
        "interaction": interaction,
        "printed": PRINTED,
    }
    drawing.claims = _gain_claims(gain, interaction, drawing.facts["n"])
    mean, low, high = interaction["cw20"]
    drawing.caption = (
        f"MAIL Fig. 1c claims that GAIRAT beats AT under PGD and falls far below it under CW. "
        f"{setting(first)}: GAIRAT "
        "minus AT, paired, 95 %: "
        + "; ".join(
            f"{_attack(name)} {_points(gain[name])}, n = {n}"
            for name, n in drawing.facts["n"].items()
        )
        + f". Gain under PGD-100 minus gain under CW {_points((mean, low, high))}; from the "
        f"paper's Table 2 {PRINTED:+.2f} on "
        "CIFAR-10."
    )
    return drawing


#: MAIL Table 2: (54.81 - 48.91) - (39.86 - 51.61), in points.
PRINTED = 17.65


def _attack(name: str) -> str:
    return name if name == "natural" else s.attack_label(name)


def _points(found: tuple[float, float, float]) -> str:
    return "{:+.1f} points [{:+.1f}, {:+.1f}]".format(*(100 * value for value in found))


def _grouped_bars(axes, right: dict[str, dict[str, np.ndarray]]) -> dict:
    """Accuracy with Wilson's interval, a pair of bars per attack; -> {method:

    {attack: (accuracy, low, high)}}.
    """
    accuracy, width = {}, 0.38
    for side, (method, found) in zip((-0.5, 0.5), right.items(), strict=True):
        accuracy[method] = {
            name: (float(flags.mean()), *wilson(int(flags.sum()), len(flags)))
            for name, flags in found.items()
        }
        share, low, high = np.array(list(accuracy[method].values())).T
        place = np.arange(len(share)) + side * width
        axes.bar(
            place,
            share,
            width * 0.94,
            color=s.colour(method),
            yerr=np.clip([share - low, high - share], 0, None),
            ecolor="#333333",
            error_kw={"linewidth": 1},
            capsize=2,
        )
        for x, value, top in zip(place, share, high, strict=True):
            axes.annotate(
                f"{100 * value:.0f}",
                (x, top),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
            )
        axes.annotate(
            s.label(method),
            (1, 0.97 - 0.09 * (side > 0)),
            xycoords="axes fraction",
            ha="right",
            va="top",
            color=s.colour(method),
            fontsize=9,
            fontweight="bold",
        )
    names = next(iter(right.values()))
    axes.set(
        xticks=range(len(names)),
        ylim=(0, 1.08),
        ylabel="test accuracy, 95 % interval",
        title="AT and GAIRAT",
    )
    axes.set_xticklabels([f"{_attack(name)}\nn = {len(flags)}" for name, flags in names.items()])
    s.share_axis(axes)
    return accuracy


def _interaction(right: dict[str, dict[str, np.ndarray]], other: str) -> tuple[float, float, float]:
    """GAIRAT minus AT under PGD-100 minus the same under `other`, bootstrapped over the images that
    both saw.
    """
    n = len(right["at"][other])
    gain = {
        name: right["gairat"][name][:n].astype(float) - right["at"][name][:n]
        for name in ("pgd100", other)
    }
    difference = gain["pgd100"] - gain[other]
    return bootstrap(lambda rows: float(difference[rows].mean()), n)


def _gain_claims(gain: dict, interaction: dict, n: dict[str, int]) -> list[Claim]:
    """The three signs of the figure and of Table 2, and their interaction."""
    signs = (
        ("GAIRAT beats AT under PGD-100", "pgd100", 1, "54.81 against 48.91"),
        ("GAIRAT falls below AT under CW", "cw20", -1, "39.86 against 51.61"),
        ("GAIRAT falls below AT under AutoAttack", "aa", -1, "33.35 against 44.90"),
    )
    claims = []
    for words, name, sign, printed in signs:
        low, high = sorted((sign * gain[name][1], sign * gain[name][2]))
        claims.append(
            Claim(
                f"{words} (MAIL Fig. 1c, T2)",
                printed,
                f"{_points(gain[name])}, n = {n[name]}",
                holds=low > 0,
                fails=high < 0,
            )
        )
    mean, low, high = interaction["cw20"]
    return [
        *claims,
        Claim(
            "GAIRAT's gain under PGD is not there under CW (MAIL Fig. 1c)",
            f"{PRINTED:+.2f} points",
            f"{_points((mean, low, high))}, n = {n['cw20']}",
            holds=low > 0,
            fails=high < 0,
        ),
    ]
