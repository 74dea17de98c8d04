"""CLIRAT's figures:

which misclassified examples have several confused labels, and do they matter?
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch

from kit.core.errors import KitError, unknown_name
from kit.evaluation.statistics import paired_difference, wilson
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing
from kit.figures.reading import (
    count_confused,
    epoch_probabilities,
    probabilities,
    ratio_interval,
    setting,
)
from kit.methods.criteria import confused_label_margin, confused_labels, probabilistic_margin


def per_epoch(
    run: Run, *, counted: Literal["on the fly", "frozen"] = "on the fly", first_epoch: int = 0
) -> Drawing:
    """Bars of all, S_sig and S_mul per epoch, and the ratio S_mul / S_sig with its interval.

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
    one, several, total = counts[:, 1], counts[:, 2:].sum(1), counts[0].sum()
    ratios = np.array([ratio_interval(int(m), int(o)) for m, o in zip(several, one, strict=True)])

    drawing = Drawing(7.2, 3.0)
    left, right = drawing.subplots(1, 2, width_ratios=(3, 2))
    left.bar(shown, one + several, width=0.86, color="#DCE6EE", label="all misclassified")
    left.bar(shown - 0.2, one, width=0.36, color=s.ORANGE, label="$S_{sig}$: one confused label")
    left.bar(shown + 0.2, several, width=0.36, color=s.GREEN, label="$S_{mul}$: two or more")
    left.set(
        xlabel="training epoch",
        ylabel=f"training examples (of {total:,})",
        title=f"A  {s.label(run.method)}",
    )
    left.set_ylim(0, max((one + several).max(), 1) * 1.28)
    left.legend(ncols=3, loc="upper left", fontsize=7, columnspacing=1.0, handlelength=1.2)
    left.xaxis.get_major_locator().set_params(integer=True)

    high = np.minimum(ratios[:, 2], 1e6)
    right.fill_between(shown, ratios[:, 1], high, color=s.GREEN, alpha=0.18, linewidth=0)
    right.plot(shown, ratios[:, 0], color=s.GREEN, marker="o", markersize=3)
    right.axhline(1, color=s.BLACK, linewidth=1, linestyle="--")
    right.annotate(
        "the paper's claim: above 1",
        (shown[-1], 1),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )
    top = max(
        1.3, float(np.nanmax(np.where(np.isfinite(ratios), ratios, np.nan), initial=0)) * 1.15
    )
    right.set(
        xlabel="training epoch",
        ylabel="$|S_{mul}|\\,/\\,|S_{sig}|$  (95 % interval)",
        ylim=(0, min(top, 10)),
        title="Ratio",
    )
    right.xaxis.get_major_locator().set_params(integer=True)

    lowest = float(np.nanmin(ratios[:, 0])) if np.isfinite(ratios[:, 0]).any() else float("nan")
    drawing.facts = {
        "epochs": shown,
        "n": int(total),
        "n_err": one + several,
        "n_sig": one,
        "n_mul": several,
        "ratio": ratios[:, 0],
        "ratio_low": ratios[:, 1],
        "ratio_high": ratios[:, 2],
        "min_ratio": lowest,
        "epochs_above_1": int((ratios[:, 1] > 1).sum()),
        "epochs_below_1": int((ratios[:, 2] < 1).sum()),
        "counted": counted,
    }
    above, below = drawing.facts["epochs_above_1"], drawing.facts["epochs_below_1"]
    drawing.claims = [
        Claim(
            "S_mul outnumbers S_sig in every reweighted epoch (CLIRAT Fig. 1A)",
            "conspicuously larger, no numbers",
            f"ratio at least {lowest:.2f}; above 1 in {above} and below 1 in {below} of "
            f"{len(shown)} epochs",
            holds=above == len(shown),
            fails=below > 0,
        )
    ]
    drawing.caption = (
        f"CLIRAT Fig. 1A claims that misclassified training examples with several confused labels "
        f"outnumber those with "
        f"one. {s.label(run.method)} on {setting(run)}, counted {counted}: the ratio runs from "
        f"{lowest:.2f} to "
        f"{np.nanmax(ratios[:, 0]):.2f}; its interval lies above 1 in {above} and below 1 in "
        f"{below} of {len(shown)} "
        "epochs."
    )
    return drawing


def histogram(run: Run, *, split: Literal["train", "test"] = "train") -> Drawing:
    """How many labels beat the true one, over all images of a split, with the finished network."""
    if split not in ("train", "test"):
        raise unknown_name("split", split, ("train", "test"))
    probs, y = probabilities(run.final, f"{split}_logits_adv")
    counts, n = count_confused(probs, y), len(y)
    shown = np.arange(1, min(len(counts), max(4, int(np.flatnonzero(counts).max()) + 1)))
    low, high = np.array([wilson(int(c), n) for c in counts[shown]]).T * n
    drawing = Drawing(5.2, 3.0)
    axes = drawing.subplots()
    tints = [s.ORANGE if k == 1 else s.GREEN for k in shown]
    axes.bar(
        shown,
        counts[shown],
        color=tints,
        width=0.7,
        yerr=np.clip([counts[shown] - low, high - counts[shown]], 0, None),
        ecolor="#555555",
        capsize=3,
    )
    for k, top, c in zip(shown, high, counts[shown], strict=True):
        axes.annotate(
            f"{c}", (k, top), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set_ylim(0, high.max() * 1.12)
    axes.set(
        xlabel="confused labels ($p_j > p_y$)",
        ylabel=f"{split} examples (of {n:,})",
        xticks=shown,
        title=f"{s.label(run.method)}: {counts[0]:,} of {n:,} have none",
    )
    several = int(counts[2:].sum())
    drawing.facts = {
        "counts": counts,
        "n": n,
        "share_several": several / n,
        "share_misclassified": 1 - counts[0] / n,
        "share_several_of_misclassified": several / max(1, n - int(counts[0])),
    }
    drawing.caption = (
        f"{s.label(run.method)} on {setting(run)}: of {n} {split} images under the training attack "
        f"{counts[0]} are right, {counts[1]} have one confused label and {several} have two or "
        f"more. Bars "
        "with Wilson 95 % intervals."
    )
    return drawing


def softmax_pair(run: Run, *, single: int = -1, multiple: int = -1) -> Drawing:
    """Two real misclassified training examples: one confused label (C), several (D), of as equal a
    PM as there is.

    `single` and `multiple` are image ids to show instead.
    """
    probs, y = probabilities(run.final, "train_logits_adv")
    ids = run.final["train_ids"]
    pm, cl_pm, count = (
        probabilistic_margin(probs, y),
        confused_label_margin(probs, y),
        confused_labels(probs, y),
    )

    def rows_of(chosen: int, allowed: torch.Tensor, what: str) -> np.ndarray:
        rows = np.flatnonzero(allowed.numpy())
        if chosen >= 0:
            rows = rows[ids[rows] == chosen]
            if not len(rows):
                raise KitError(
                    f"training image {chosen} has not {what} in this run; leave it out to have one "
                    f"chosen"
                )
        if not len(rows):
            raise KitError(
                f"no training image has {what} in this run; raise eps, or train less long"
            )
        return rows

    ones, severals = (
        rows_of(single, count == 1, "exactly one confused label"),
        rows_of(multiple, count >= 2, "several confused labels"),
    )
    apart = (pm[ones][:, None] - pm[severals][None, :]).abs() - 0.05 * pm[severals].neg().clamp_max(
        0.4
    )[None, :]
    best = int(apart.argmin())
    pair = ones[best // len(severals)], severals[best % len(severals)]

    drawing = Drawing(7.2, 2.9)
    axes = drawing.subplots(1, 2, sharey=True)
    classes = run.record["classes"]
    for panel, row, letter in zip(axes, pair, "CD", strict=True):
        p, truth = probs[row].numpy(), int(y[row])
        tints = [
            s.BLUE if k == truth else s.VERMILLION if p[k] > p[truth] else "#C9CDD2"
            for k in range(len(p))
        ]
        panel.bar(range(len(p)), p, color=tints)
        panel.axhline(p[truth], color=s.BLUE, linewidth=1, linestyle=":")
        name = "one confused label" if letter == "C" else f"{int(count[row])} confused labels"
        panel.set(
            title=f"{letter}  {name}\nPM {pm[row]:+.2f}, CL-PM {cl_pm[row]:+.2f}",
            xlabel="class",
            xticks=range(len(p)),
        )
        panel.set_xticklabels(
            classes if len(p) <= 20 else range(len(p)),
            rotation=0 if len(str(classes[0])) < 3 else 45,
        )
    axes[0].set_ylabel("probability under attack")
    handles = [
        matplotlib_patch(s.BLUE, "true class"),
        matplotlib_patch(s.VERMILLION, "confused label"),
        matplotlib_patch("#C9CDD2", "others"),
    ]
    axes[0].set_ylim(top=1.3 * float(probs[list(pair)].max()))  # room above the bars
    axes[1].legend(
        handles=handles, loc="upper center", ncols=3, columnspacing=1.0, handlelength=1.0
    )
    drawing.facts = {
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
    drawing.caption = (
        f"Two training images of {setting(run)} under attack, {s.label(run.method)}. PM is "
        f"{pm[pair[0]]:+.2f} and {pm[pair[1]]:+.2f}, hardly different; CL-PM is "
        f"{cl_pm[pair[0]]:+.2f} and "
        f"{cl_pm[pair[1]]:+.2f}."
    )
    return drawing


def matplotlib_patch(tint: str, text: str):
    from matplotlib.patches import Patch

    return Patch(facecolor=tint, label=text)


def two_margins(run: Run, *, split: Literal["train", "test"] = "train") -> Drawing:
    """The paper's two toy points, then CL-PM against PM for every misclassified example of a run."""
    probs, y = probabilities(run.final, f"{split}_logits_adv")
    count = confused_labels(probs, y)
    wrong = count > 0
    pm, cl_pm = (
        probabilistic_margin(probs, y)[wrong].numpy(),
        confused_label_margin(probs, y)[wrong].numpy(),
    )
    count = count[wrong].numpy()
    drawing = Drawing(7.2, 3.2)
    toy, data = drawing.subplots(1, 2)
    # i, j, k and the rest: PM = p_i - p_j = -0.2 in both; in B also p_i - p_k = -0.1
    points = {
        "A": torch.tensor([[0.25, 0.45, 0.15, 0.15]]),
        "B": torch.tensor([[0.20, 0.40, 0.30, 0.10]]),
    }
    values = {}
    for i, (name, p) in enumerate(points.items()):
        truth = torch.tensor([0])
        values[name] = float(probabilistic_margin(p, truth)), float(confused_label_margin(p, truth))
        tints = [s.BLUE, s.VERMILLION, s.VERMILLION if name == "B" else "#C9CDD2", "#C9CDD2"]
        toy.bar(np.arange(4) + i * 5, p[0].numpy(), color=tints)
        toy.annotate(
            f"PM {values[name][0]:+.1f}\nCL-PM {values[name][1]:+.1f}",
            (i * 5 + 1.5, 0.49),
            ha="center",
            fontsize=8.5,
        )
    toy.set(
        xticks=[0, 1, 2, 3, 5, 6, 7, 8],
        xticklabels=["i", "j", "k", "rest"] * 2,
        ylim=(0, 0.6),
        ylabel="probability",
        title="Points A and B of the paper, true class i",
    )
    for several, tint, text in (
        (False, s.ORANGE, "one confused label"),
        (True, s.GREEN, "two or more"),
    ):
        mine = (count >= 2) == several
        data.scatter(
            pm[mine],
            cl_pm[mine],
            s=11,
            color=tint,
            alpha=0.65,
            linewidth=0,
            label=f"{text} ({mine.sum()})",
        )
    reach = min(-0.2, float(cl_pm.min(initial=0)) * 1.05)
    data.plot([reach, 0], [reach, 0], color=s.BLACK, linewidth=0.8, linestyle="--")
    data.set(
        xlabel="PM",
        ylabel="CL-PM",
        xlim=(reach, 0.02),
        ylim=(reach, 0.02),
        title=f"{s.label(run.method)}: misclassified {split} images",
    )
    data.legend(loc="upper left")
    above = int((cl_pm > pm + 1e-9).sum())
    drawing.facts = {
        "toy": values,
        "n": int(wrong.sum()),
        "cl_pm_above_pm": above,
        "equal_iff_one": bool(((np.abs(cl_pm - pm) < 1e-9) == (count == 1)).all()),
        "mean_gap_several": float((pm - cl_pm)[count >= 2].mean())
        if (count >= 2).any()
        else float("nan"),
        "lowest_cl_pm": float(cl_pm.min()) if len(cl_pm) else float("nan"),
    }
    exact = above == 0 and drawing.facts["equal_iff_one"]
    drawing.claims = [
        Claim(
            "CL-PM is at most PM, and equal to it exactly with one confused label (CLIRAT Fig. 2)",
            "-0.2 and -0.3 for point B",
            f"{values['B'][0]:.1f} and {values['B'][1]:.1f}; above PM in {above} of "
            f"{int(wrong.sum())} images",
            holds=exact,
            fails=not exact,
        )
    ]
    drawing.caption = (
        f"CLIRAT Fig. 2: at equal PM, CL-PM is lower where several labels are confused (A "
        f"{values['A'][1]:+.1f}, "
        f"B {values['B'][1]:+.1f}). Of {int(wrong.sum())} misclassified {split} images of "
        f"{setting(run)}, CL-PM "
        f"lies above PM in {above}, and below it by {drawing.facts['mean_gap_several']:.2f} on "
        f"average where "
        "two or more labels are confused."
    )
    return drawing


def leave_out(runs: Mapping[str, Run]) -> Drawing:
    """Test accuracy under the training attack with a set left out:

    per epoch (the probe), and at the end (all images).
    """
    whole = runs["mail-at"]
    drawing = Drawing(7.6, 3.2)
    curves, ends = drawing.subplots(1, 2, width_ratios=(3, 2))
    broken, facts = {}, {}
    for method, run in runs.items():
        arrays = run.final
        broken[method] = arrays["test_logits_adv"].argmax(1) != arrays["test_y"]
        later = run.history[run.history.epoch > run.plan.burn_in]
        curves.plot(
            later.epoch, later.robust_test, color=s.colour(method), linestyle=s.dash(method)
        )
    n = len(broken["mail-at"])
    order = list(runs)
    for i, method in enumerate(order):
        right = int((~broken[method]).sum())
        low, high = wilson(right, n)
        facts[method] = {"robust": right / n, "low": low, "high": high}
        if method != "mail-at":
            (
                facts[method]["difference"],
                facts[method]["difference_low"],
                facts[method]["difference_high"],
            ) = paired_difference(broken["mail-at"], broken[method])
        ends.errorbar(
            right / n,
            i,
            xerr=[[right / n - low], [high - right / n]],
            fmt="o",
            color=s.colour(method),
            capsize=3,
        )
    ends.set(
        yticks=range(len(order)),
        ylim=(len(order) - 0.5, -0.5),
        xlabel=f"robust accuracy, n = {n}",
        title="At the end, 95 % interval",
    )
    ends.set_yticklabels([s.label(m) for m in order])
    for tick, method in zip(ends.get_yticklabels(), order, strict=True):
        tick.set_color(s.colour(method))
    s.share_axis(ends, "x")
    s.share_axis(curves)
    seen = len(whole.epoch(1)["test_y"])
    curves.set(
        xlabel="training epoch",
        ylabel=f"robust test accuracy (probe, n = {seen})",
        title="B  After burn-in",
    )
    curves.xaxis.get_major_locator().set_params(integer=True)
    mul, sig = facts["clirat-drop-multiple"], facts["clirat-drop-single"]
    drawing.facts = {
        "n": n,
        "runs": facts,
        "drop_mul_minus_drop_sig": paired_difference(
            broken["clirat-drop-single"], broken["clirat-drop-multiple"]
        ),
    }
    gap = drawing.facts["drop_mul_minus_drop_sig"]
    drawing.claims = [
        Claim(
            "leaving S_mul out costs more than leaving S_sig out (CLIRAT Fig. 1B)",
            "drastically against slightly, no numbers",
            f"difference {gap[0]:+.1%} [{gap[1]:+.1%}, {gap[2]:+.1%}], one seed",
            holds=gap[2] < 0,
            fails=gap[1] > 0,
        )
    ]
    drawing.caption = (
        f"CLIRAT Fig. 1B claims that leaving S_mul out drops robustness drastically and leaving "
        f"S_sig out only slightly. "
        f"{setting(whole)}, PGD-{whole.plan.recipe.steps}: without S_mul {mul['difference']:+.1%} "
        f"against MAIL-AT, without "
        f"S_sig {sig['difference']:+.1%}; S_mul minus S_sig {gap[0]:+.1%} [{gap[1]:+.1%}, "
        f"{gap[2]:+.1%}], one seed. As many "
        f"examples left out at random: {facts['clirat-drop-random']['difference']:+.1%}; S_mul cut "
        f"to the size of S_sig: "
        f"{facts['clirat-drop-matched']['difference']:+.1%}."
    )
    return drawing
