"""CLIRAT Figs. 1A, 1C, 1D and 2: which misclassified examples have several confused labels?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from kit.core.errors import KitError, unknown_name
from kit.evaluation.statistics import ratio_interval, wilson
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData
from kit.figures.run_outputs import (
    count_confused,
    describe_setting,
    epoch_probabilities,
    probabilities,
)
from kit.methods.criteria import confused_label_margin, confused_labels, probabilistic_margin
from kit.papers.claim_verdict import Estimate

# --------------------------------------------------------------------------- Fig. 1A, over training


def compute_confused_labels(
    run: Run, *, counted: Literal["on the fly", "frozen"] = "on the fly", first_epoch: int = 0
) -> FigureData:
    """Count S_sig, S_mul and their ratio per epoch.

    `first_epoch` 0 is the first reweighted one (the paper's 76th), or the middle of a run that
    never reweights. The paper does not say how it counts: "on the fly" takes every image as it was
    trained on, "frozen" the probe after each epoch.
    """
    if counted not in ("on the fly", "frozen"):
        raise unknown_name("way of counting", counted, ("on the fly", "frozen"))
    epochs = len(run.history)
    first = first_epoch or (run.plan.burn_in or epochs // 2) + 1
    if not 1 <= first <= epochs:
        raise KitError(
            f"first_epoch={first_epoch} must be 1 to {epochs}, or 0 for the first reweighted one"
        )
    shown = np.arange(first, epochs + 1)
    counts = np.stack([count_confused(*epoch_probabilities(run, int(e), counted)) for e in shown])
    one, several = counts[:, 1], counts[:, 2:].sum(1)
    ratios = np.array([ratio_interval(int(m), int(o)) for m, o in zip(several, one, strict=True)])
    known = np.isfinite(ratios[:, 0]).any()
    facts = {
        "epochs": shown,
        "n": int(counts[0].sum()),
        "n_err": one + several,
        "n_sig": one,
        "n_mul": several,
        "ratio": ratios[:, 0],
        "ratio_low": ratios[:, 1],
        "ratio_high": ratios[:, 2],
        "min_ratio": float(np.nanmin(ratios[:, 0])) if known else float("nan"),
        "epochs_above_1": int((ratios[:, 1] > 1).sum()),
        "epochs_below_1": int((ratios[:, 2] < 1).sum()),
        "counted": counted,
    }
    return FigureData(facts, describe_setting(run), run.method)


def draw_confused_labels(data: FigureData) -> Drawing:
    """Draw bars of all misclassified, S_sig and S_mul per epoch, and the ratio S_mul / S_sig."""
    drawing = Drawing(7.2, 3.0)
    left, right = drawing.subplots(1, 2, width_ratios=(3, 2))
    _draw_label_bars(left, data)
    _draw_label_ratio(right, data)
    return drawing


def _draw_label_bars(axes, data: FigureData) -> None:
    facts, shown = data.facts, data.facts["epochs"]
    axes.bar(shown, facts["n_err"], width=0.86, color="#DCE6EE", label="all misclassified")
    axes.bar(
        shown - 0.2,
        facts["n_sig"],
        width=0.36,
        color=s.ORANGE,
        label="$S_{sig}$: one confused label",
    )
    axes.bar(shown + 0.2, facts["n_mul"], width=0.36, color=s.GREEN, label="$S_{mul}$: two or more")
    axes.set(
        xlabel="training epoch",
        ylabel=f"training examples (of {facts['n']:,})",
        title=f"A  {s.label(data.method)}",
    )
    axes.set_ylim(0, max(facts["n_err"].max(), 1) * 1.28)
    axes.legend(ncols=3, loc="upper left", fontsize=7, columnspacing=1.0, handlelength=1.2)
    s.whole_numbers(axes)


def _draw_label_ratio(axes, data: FigureData) -> None:
    facts, shown = data.facts, data.facts["epochs"]
    ratios = np.stack([facts[name] for name in ("ratio", "ratio_low", "ratio_high")], axis=1)
    high = np.minimum(ratios[:, 2], 1e6)
    axes.fill_between(shown, ratios[:, 1], high, color=s.GREEN, alpha=0.18, linewidth=0)
    axes.plot(shown, ratios[:, 0], color=s.GREEN, marker="o", markersize=3)
    axes.axhline(1, color=s.BLACK, linewidth=1, linestyle="--")
    axes.annotate(
        "the paper's claim: above 1",
        (shown[-1], 1),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )
    largest = float(np.nanmax(np.where(np.isfinite(ratios), ratios, np.nan), initial=0))
    axes.set(
        xlabel="training epoch",
        ylabel="$|S_{mul}|\\,/\\,|S_{sig}|$  (95 % interval)",
        ylim=(0, min(max(1.3, largest * 1.15), 10)),
        title="Ratio",
    )
    s.whole_numbers(axes)


def decide_confused_labels(data: FigureData) -> list[Claim]:
    """Decide whether S_mul is more than half of both sets in the epoch where it is least."""
    above, below = data.facts["epochs_above_1"], data.facts["epochs_below_1"]
    count = len(data.facts["epochs"])
    return [
        Claim(
            "S_mul outnumbers S_sig in every reweighted epoch (CLIRAT Fig. 1A)",
            "conspicuously larger, no numbers",
            f"ratio at least {data.facts['min_ratio']:.2f}; above 1 in {above} and below 1 in "
            f"{below} of {count} epochs",
            (_least_share(data.facts),) if np.sum(data.facts["n_err"]) else (),
            number=1,
        )
    ]


def _least_share(facts: Mapping) -> Estimate:
    """S_mul's share of both sets where it is least, with Wilson's interval."""
    several, both = np.asarray(facts["n_mul"]), np.asarray(facts["n_err"])
    k = int(np.argmin(np.where(both > 0, several / np.maximum(both, 1), np.inf)))
    low, high = wilson(int(several[k]), int(both[k]))
    return Estimate("least S_mul / (S_mul + S_sig)", "> 0.5", several[k] / both[k], low, high)


def describe_confused_labels(data: FigureData) -> str:
    """The caption: where the ratio runs, and how often it is clear of 1."""
    facts = data.facts
    return (
        "CLIRAT Fig. 1A claims that misclassified training examples with several confused labels "
        f"outnumber those with one. {s.label(data.method)} on {data.setting}, counted "
        f"{facts['counted']}: the ratio runs from {facts['min_ratio']:.2f} to "
        f"{np.nanmax(facts['ratio']):.2f}; its interval lies above 1 in {facts['epochs_above_1']} "
        f"and below 1 in {facts['epochs_below_1']} of {len(facts['epochs'])} epochs."
    )


# -------------------------------------------------------------------------- Fig. 1A, at the end


def compute_label_counts(run: Run, *, split: Literal["train", "test"] = "train") -> FigureData:
    """Count the labels that beat the true one over a split's images, with the finished network."""
    if split not in ("train", "test"):
        raise unknown_name("split", split, ("train", "test"))
    probs, y = probabilities(run.final, f"{split}_logits_adv")
    counts, n = count_confused(probs, y), len(y)
    several = int(counts[2:].sum())
    facts = {
        "counts": counts,
        "n": n,
        "share_several": several / n,
        "share_misclassified": 1 - counts[0] / n,
        "share_several_of_misclassified": several / max(1, n - int(counts[0])),
    }
    shown = np.arange(1, min(len(counts), max(4, int(np.flatnonzero(counts).max()) + 1)))
    low, high = np.array([wilson(int(c), n) for c in counts[shown]]).T * n
    extras = {"split": split, "shown": shown, "low": low, "high": high}
    return FigureData(facts, describe_setting(run), run.method, extras)


def draw_label_counts(data: FigureData) -> Drawing:
    """Draw a bar for each number of confused labels, with Wilson's interval."""
    counts, n = data.facts["counts"], data.facts["n"]
    shown, low, high = (data.extras[name] for name in ("shown", "low", "high"))
    drawing = Drawing(5.2, 3.0)
    axes = drawing.subplots()
    axes.bar(
        shown,
        counts[shown],
        color=[s.ORANGE if k == 1 else s.GREEN for k in shown],
        width=0.7,
        yerr=np.clip([counts[shown] - low, high - counts[shown]], 0, None),
        ecolor=s.SMALL_PRINT,
        capsize=3,
    )
    for k, top, count in zip(shown, high, counts[shown], strict=True):
        s.write_above(axes, k, top, f"{count}", offset=3, size=8)
    axes.set_ylim(0, high.max() * 1.12)
    axes.set(
        xlabel="confused labels ($p_j > p_y$)",
        ylabel=f"{data.extras['split']} examples (of {n:,})",
        xticks=shown,
        title=f"{s.label(data.method)}: {counts[0]:,} of {n:,} have none",
    )
    return drawing


def describe_label_counts(data: FigureData) -> str:
    """The caption: how many have none, one, and two or more."""
    counts, n = data.facts["counts"], data.facts["n"]
    return (
        f"{s.label(data.method)} on {data.setting}: of {n} {data.extras['split']} images under the "
        f"training attack {counts[0]} are right, {counts[1]} have one confused label and "
        f"{int(counts[2:].sum())} have two or more. Bars with Wilson 95 % intervals."
    )


def notice_label_counts(data: FigureData) -> str:
    """How many of the misclassified have several confused labels, and what the claim needs."""
    share = data.facts["share_several_of_misclassified"]
    return (
        f"The bars from 2 on hold {share:.0%} of the misclassified images. CLIRAT's claim needs "
        "more than half of them there."
    )


# ------------------------------------------------------------------------------------ Figs. 1C, 1D


def compute_softmax_pair(run: Run, *, single: int = -1, multiple: int = -1) -> FigureData:
    """Choose two misclassified training examples: one confused label, several, PM about equal.

    Of such pairs it is one that CL-PM tells apart: a second label hardly above the true one is
    confused, too, and changes nothing. `single` and `multiple` are image ids to show instead.
    """
    probs, y = probabilities(run.final, "train_logits_adv")
    ids = run.final["train_ids"]
    pm, cl_pm = probabilistic_margin(probs, y), confused_label_margin(probs, y)
    count = confused_labels(probs, y)
    ones = _rows_to_show(ids, single, count == 1, "exactly one confused label")
    severals = _rows_to_show(ids, multiple, count >= 2, "several confused labels")
    differences = (pm[ones][:, None] - pm[severals][None, :]).abs()
    favour = 0.05 * (pm - cl_pm)[severals].clamp_max(0.4)[None, :]
    best = int((differences - favour).argmin())
    pair = ones[best // len(severals)], severals[best % len(severals)]
    facts = {
        name: {
            "id": int(ids[row]),
            "y": int(y[row]),
            "pm": float(pm[row]),
            "cl_pm": float(cl_pm[row]),
            "confused_labels": int(count[row]),
            "p": probs[row].numpy(),
        }
        for name, row in zip(("single", "multiple"), pair, strict=True)
    }
    extras = {"classes": run.record["classes"]}
    return FigureData(facts, describe_setting(run), run.method, extras)


def _rows_to_show(ids: np.ndarray, chosen: int, allowed: torch.Tensor, what: str) -> np.ndarray:
    """Rows of the `allowed` images, or that of the image with the id `chosen` alone."""
    rows = np.flatnonzero(allowed.numpy())
    if chosen >= 0:
        rows = rows[ids[rows] == chosen]
        if not len(rows):
            raise KitError(
                f"training image {chosen} does not have {what} in this run; leave it out to "
                "have one chosen"
            )
    if not len(rows):
        raise KitError(f"no training image has {what} in this run; raise eps, or train less long")
    return rows


def draw_softmax_pair(data: FigureData) -> Drawing:
    """Draw both examples' probabilities, with the confused labels in colour."""
    drawing = Drawing(7.2, 2.9)
    axes = drawing.subplots(1, 2, sharey=True)
    for panel, example, letter in zip(axes, data.facts.values(), "CD", strict=True):
        _draw_confused_bars(panel, example, letter, data.extras["classes"])
    axes[0].set_ylabel("probability under attack")
    handles = [
        *_label_patches(),
        Line2D([], [], color=s.BLUE, linewidth=1, linestyle=":", label="$p_y$"),
    ]
    highest = max(float(example["p"].max()) for example in data.facts.values())
    axes[0].set_ylim(top=1.3 * highest)  # room above the bars
    axes[1].legend(
        handles=handles, loc="upper center", ncols=4, columnspacing=0.8, handlelength=1.0
    )
    return drawing


def _draw_confused_bars(panel, example: dict, letter: str, classes: list[str]) -> None:
    p, truth = example["p"], example["y"]
    tints = [
        s.BLUE if k == truth else s.VERMILLION if p[k] > p[truth] else s.PALE for k in range(len(p))
    ]
    panel.bar(range(len(p)), p, color=tints)
    panel.axhline(p[truth], color=s.BLUE, linewidth=1, linestyle=":")
    count = example["confused_labels"]
    name = "one confused label" if letter == "C" else f"{count} confused labels"
    panel.set(
        title=f"{letter}  {name}\nPM {example['pm']:+.2f}, CL-PM {example['cl_pm']:+.2f}",
        xlabel="class",
    )
    s.name_classes(panel, classes)


def describe_softmax_pair(data: FigureData) -> str:
    """The caption: PM and CL-PM of both images."""
    one, several = data.facts["single"], data.facts["multiple"]
    return (
        f"Two training images of {data.setting} under attack, {s.label(data.method)}. PM is "
        f"{one['pm']:+.2f} and {several['pm']:+.2f}, hardly different; CL-PM is "
        f"{one['cl_pm']:+.2f} and {several['cl_pm']:+.2f}."
    )


def notice_softmax_pair(data: FigureData) -> str:
    """How far the two images lie apart by either margin."""
    one, several = data.facts["single"], data.facts["multiple"]
    return (
        f"By PM the two images are {abs(one['pm'] - several['pm']):.2f} apart, by CL-PM "
        f"{abs(one['cl_pm'] - several['cl_pm']):.2f}. CL-PM also counts the other labels that the "
        f"network finds likelier than the true one: the second image has "
        f"{several['confused_labels']} such labels."
    )


# ------------------------------------------------------------------------------------------- Fig. 2

#: i, j, k and the rest: PM = p_i - p_j = -0.2 in both; in B also p_i - p_k = -0.1.
TOY_POINTS = {"A": (0.25, 0.45, 0.15, 0.15), "B": (0.20, 0.40, 0.30, 0.10)}


def compute_two_margins(run: Run, *, split: Literal["train", "test"] = "train") -> FigureData:
    """PM and CL-PM of the paper's two toy points and of every misclassified example of a run."""
    probs, y = probabilities(run.final, f"{split}_logits_adv")
    count = confused_labels(probs, y)
    wrong = count > 0
    pm = probabilistic_margin(probs, y)[wrong].numpy()
    cl_pm = confused_label_margin(probs, y)[wrong].numpy()
    counts = count[wrong].numpy()
    truth, toy = torch.tensor([0]), {}
    for name, values in TOY_POINTS.items():
        p = torch.tensor([values])
        toy[name] = float(probabilistic_margin(p, truth)), float(confused_label_margin(p, truth))
    gap = (pm - cl_pm)[counts >= 2]
    facts = {
        "toy": toy,
        "n": int(wrong.sum()),
        "cl_pm_above_pm": int((cl_pm > pm + 1e-9).sum()),
        "equal_iff_one": bool(((np.abs(cl_pm - pm) < 1e-9) == (counts == 1)).all()),
        "mean_gap_several": float(gap.mean()) if len(gap) else float("nan"),
        "lowest_cl_pm": float(cl_pm.min()) if len(cl_pm) else float("nan"),
    }
    extras = {"split": split, "pm": pm, "cl_pm": cl_pm, "count": counts}
    return FigureData(facts, describe_setting(run), run.method, extras)


def draw_two_margins(data: FigureData) -> Drawing:
    """Draw the toy points as bars, and CL-PM against PM."""
    drawing = Drawing(7.2, 3.2)
    toy, cloud = drawing.subplots(1, 2)
    _draw_toy_points(toy, data.facts["toy"])
    _draw_margin_cloud(cloud, data)
    return drawing


def _draw_toy_points(axes, values: dict[str, tuple[float, float]]) -> None:
    for i, (name, (pm, cl_pm)) in enumerate(values.items()):
        tints = [s.BLUE, s.VERMILLION, s.VERMILLION if name == "B" else s.PALE, s.PALE]
        p = np.array(TOY_POINTS[name], dtype=np.float32)
        axes.bar(np.arange(4) + i * 5, p, color=tints)
        words = f"{name}\nPM {pm:+.1f}\nCL-PM {cl_pm:+.1f}"
        axes.annotate(words, (i * 5 + 1.5, 0.47), ha="center", fontsize=8.5)
    axes.set(
        xticks=[0, 1, 2, 3, 5, 6, 7, 8],
        xticklabels=["i", "j", "k", "rest"] * 2,
        xlabel="class",
        ylim=(0, 0.72),
        ylabel="probability",
        title="Points A and B of the paper, true class i",
    )
    axes.legend(
        handles=_label_patches(), loc="upper center", ncols=3, columnspacing=0.8, handlelength=1.0
    )


def _label_patches() -> list[Patch]:
    """What the colours of probabilities' bars mean, for a legend."""
    return [
        s.legend_patch(s.BLUE, "true class"),
        s.legend_patch(s.VERMILLION, "confused label"),
        s.legend_patch(s.PALE, "others"),
    ]


def _draw_margin_cloud(axes, data: FigureData) -> None:
    pm, cl_pm, count = (data.extras[name] for name in ("pm", "cl_pm", "count"))
    for several, tint, text in (
        (False, s.ORANGE, "one confused label"),
        (True, s.GREEN, "two or more"),
    ):
        mine = (count >= 2) == several
        axes.scatter(
            pm[mine],
            cl_pm[mine],
            s=11,
            color=tint,
            alpha=0.65,
            linewidth=0,
            label=f"{text} ({mine.sum()})",
        )
    reach = min(-0.2, float(cl_pm.min(initial=0)) * 1.05)
    axes.plot([reach, 0], [reach, 0], color=s.BLACK, linewidth=0.8, linestyle="--")
    axes.set(
        xlabel="PM",
        ylabel="CL-PM",
        xlim=(reach, 0.02),
        ylim=(reach, 0.02),
        title=f"{s.label(data.method)}: misclassified {data.extras['split']} images",
    )
    axes.legend(loc="upper left")


def decide_two_margins(data: FigureData) -> list[Claim]:
    """Decide whether CL-PM is at most PM, and equal exactly with one confused label."""
    facts = data.facts
    above, (pm, cl_pm) = facts["cl_pm_above_pm"], facts["toy"]["B"]
    exact = above == 0 and facts["equal_iff_one"]
    return [
        Claim(
            "CL-PM is at most PM, and equal to it exactly with one confused label (CLIRAT Fig. 2)",
            "-0.2 and -0.3 for point B",
            f"{pm:.1f} and {cl_pm:.1f}; above PM in {above} of {facts['n']} images",
            exact=exact,
            number=3,
        )
    ]


def describe_two_margins(data: FigureData) -> str:
    """The caption: the toy points, and how far CL-PM lies below PM."""
    facts = data.facts
    return (
        "CLIRAT Fig. 2: at equal PM, CL-PM is lower where several labels are confused (A "
        f"{facts['toy']['A'][1]:+.1f}, B {facts['toy']['B'][1]:+.1f}). Of {facts['n']} "
        f"misclassified {data.extras['split']} images of {data.setting}, CL-PM lies above PM in "
        f"{facts['cl_pm_above_pm']}, and below it by {facts['mean_gap_several']:.2f} on average "
        "where two or more labels are confused."
    )
