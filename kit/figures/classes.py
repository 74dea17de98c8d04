"""VIR's figures on classes: whom does it help (Fig. 2), and where does its weight go (Fig. 3)?"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from kit.core.errors import KitError
from kit.evaluation.accuracy import evaluate
from kit.evaluation.class_tables import confusion
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing
from kit.figures.reading import setting

#: Each method of VIR, what it builds on, and the network that says which classes are hard: one that
#: is neither.
PAIRS = {"vir-at": ("at", "trades"), "vir-trades": ("trades", "at")}


def by_method(runs: Mapping[str, Run], *, attack: str = "pgd100") -> Drawing:
    """Confusion matrices of VIR-AT and VIR-TRADES, and beside each the difference in recall to AT
    and TRADES, paired.

    As in the matrices, an image counts as right if the attack's last iterate is. A class is hard if
    its recall under the other base method is below that method's mean: chosen by the method
    compared with, the hard classes would seem to gain by chance alone, as what is low by bad luck
    is less so in the next network.
    """
    first = next(iter(runs.values()))
    classes = first.record["classes"]
    tables = {method: evaluate(run, [attack], quiet=True) for method, run in runs.items()}
    seen = {method: table.attrs["examples"][attack] for method, table in tables.items()}
    y, right = (
        seen["at"]["y"],
        {method: found["prediction"] == found["y"] for method, found in seen.items()},
    )
    drawing = Drawing(7.8, 3.3)
    panels = drawing.subplots(1, 4, sharey=True, width_ratios=(1.25, 0.62, 1.25, 0.62))
    facts = {"attack": attack, "n": len(y), "methods": {}}
    for (method, (base, other)), matrix, gain in zip(
        PAIRS.items(), panels[::2], panels[1::2], strict=True
    ):
        found = facts["methods"][method] = gains(
            right[method], right[base], right[other], y, classes
        )
        _matrix(matrix, confusion(tables[method], attack), classes)
        matrix.set_title(
            f"{s.label(method)}, {s.attack_label(attack)}\n{found['mean']:.1%} a class, "
            f"worst {found['worst'][1]:.0%}",
            fontsize=8.5,
        )
        _gain(gain, found, f"above {s.label(base)}")
    panels[0].set_ylabel("true class")
    limit = max(abs(edge) for gain in panels[1::2] for edge in gain.get_xlim())
    for gain in panels[1::2]:
        gain.set_xlim(-limit, limit)
    drawing.facts = facts
    drawing.claims = [
        claim for method in PAIRS for claim in _helped(method, facts["methods"][method])
    ]
    words = "; ".join(
        f"{s.label(m)} {_points(f['hard_gain'])} on {', '.join(f['hard'])}, "
        f"{_points(f['mean_gain'])} on all"
        for m, f in facts["methods"].items()
    )
    what = f"n = {len(y)} test images, last iterate of {s.attack_label(attack)}"
    drawing.caption = (
        f"VIR Fig. 2 claims that VIR improves the harder classes. {setting(first)}, {what}. Beside "
        f"each matrix (percent of "
        "the row) the difference in recall to the method it builds on, paired, 95 %; filled marks "
        "are hard classes, those "
        f"below the mean under the other base method. Mean over classes, in points: {words}."
    )
    return drawing


def gains(
    new: np.ndarray, base: np.ndarray, other: np.ndarray, y: np.ndarray, classes: list[str]
) -> dict:
    """Per class recall of `new` and its difference to `base`, and the mean difference over hard
    classes, over all, and of the one to the other, each with a paired 95 % interval. All but
    `classes` are (n,), the first three bool.
    """
    labels = range(len(classes))
    d = [new[y == k].astype(float) - base[y == k] for k in labels]
    recall, under_base, under_other = (
        np.array([right[y == k].mean() if (y == k).any() else math.nan for k in labels])
        for right in (new, base, other)
    )
    there = np.isfinite(recall)
    hard = there & (under_other < np.nanmean(under_other))
    everyone, hardest = there / there.sum(), hard / max(hard.sum(), 1)
    worst = int(np.nanargmin(recall))
    return {
        "recall": recall,
        "base_recall": under_base,
        "difference": [contrast(d, one) for one in np.eye(len(classes))],
        "mean": float(np.nanmean(recall)),
        "worst": [classes[worst], float(recall[worst])],
        "hard": [classes[k] for k in labels if hard[k]],
        "is_hard": hard,
        "n_per_class": [len(mine) for mine in d],
        "hard_gain": contrast(d, hardest),
        "mean_gain": contrast(d, everyone),
        "hard_above_mean": contrast(d, hardest - everyone),
    }


def contrast(groups: list[np.ndarray], shares: np.ndarray) -> tuple[float, float, float]:
    """(Σ share x group mean, low, high), 95 % (normal, groups independent); NaN where a group that
    counts has one value.
    """
    used = [(share, group) for share, group in zip(shares, groups, strict=True) if share]
    if any(len(group) < 2 for _, group in used):
        return math.nan, math.nan, math.nan
    value = sum(share * group.mean() for share, group in used)
    half = 1.959964 * math.sqrt(
        sum(share**2 * group.var(ddof=1) / len(group) for share, group in used)
    )
    return float(value), float(value - half), float(value + half)


def _points(row: tuple[float, float, float]) -> str:
    d, low, high = (100 * value for value in row)
    return f"{d:+.1f} [{low:+.1f}, {high:+.1f}]"


def _helped(method: str, found: Mapping) -> list[Claim]:
    """On the hard classes, and there more than on average. A NaN is undecided."""
    rows = (
        (found["hard_gain"], "improves the harder classes", "matrices, no numbers"),
        (
            found["hard_above_mean"],
            "improves the harder classes more than the average one",
            "class 3 (cat) most",
        ),
    )
    return [
        Claim(
            f"{s.label(method)} {words} (VIR s. 5.5, Fig. 2)",
            printed,
            f"{_points(row)} points, hard: {', '.join(found['hard']) or 'none'}",
            holds=bool(found["hard"]) and row[1] > 0,
            fails=bool(found["hard"]) and row[2] < 0,
        )
        for row, words, printed in rows
    ]


def _matrix(panel: Axes, counts: np.ndarray, classes: list[str]) -> None:
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    panel.imshow(share, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    if len(classes) <= 10:
        for (i, j), value in np.ndenumerate(share):
            panel.text(
                j,
                i,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize=6,
                color="white" if value > 55 else s.BLACK,
            )
    panel.set(xlabel="predicted class", xticks=range(len(classes)), yticks=range(len(classes)))
    panel.set_xticklabels(classes, rotation=0 if len(str(classes[0])) < 3 else 90)
    panel.set_yticklabels(classes)
    panel.tick_params(labelsize=6.5, length=0)


def _gain(panel: Axes, found: Mapping, title: str) -> None:
    """A mark for each row of the matrix beside it; filled where the class is hard."""
    for row, ((d, low, high), hard) in enumerate(
        zip(found["difference"], found["is_hard"], strict=True)
    ):
        panel.plot([100 * low, 100 * high], [row, row], color=s.BLUE, linewidth=1)
        panel.plot(
            100 * d,
            row,
            "o",
            markersize=4,
            color=s.BLUE if hard else "white",
            markeredgecolor=s.BLUE,
        )
    panel.axvline(0, color=s.GREY, linewidth=0.8)
    panel.set_title(title, fontsize=8.5, fontweight="normal")
    panel.set_xlabel("points")
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", labelsize=6.5)


def weights(runs: Mapping[str, Run]) -> Drawing:
    """W_c, the sum of the weights of a class's training images, in every epoch since burn-in, for
    VIR-AT and VIR-TRADES.

    Weights are those that trained: counted on the fly, so the network moves within the epoch. Sums
    are scaled to classes of equal size, which CIFAR-10 has: otherwise they would tell first of all
    which class is large.
    """
    drawing = Drawing(7.8, 3.1)
    facts = {method: class_sums(run) for method, run in runs.items()}
    for panel, (method, run) in zip(drawing.subplots(1, len(runs)), runs.items(), strict=True):
        _bars(panel, facts[method], run.record["classes"])
        panel.set_title(s.label(method))
    n = int(sum(next(iter(facts.values()))["n_per_class"]))
    drawing.facts = {"methods": facts, "n": n}
    drawing.claims = _weight_claims(facts)
    words = "; ".join(
        f"{s.label(m)}: most for {f['largest']} (in {f['largest_epochs']} of {len(f['sums'])} "
        f"epochs), least for "
        f"{f['smallest']} (in {f['smallest_epochs']}), mean weight {f['mean_weight']:.3g}"
        for m, f in facts.items()
    )
    drawing.caption = (
        "VIR Fig. 3 claims that class 3 (cat) gets the most weight in total and class 1 the least, "
        "under both methods. "
        f"{setting(next(iter(runs.values())))}, n = {n} training images; bars are means over the "
        f"epochs since burn-in, dots "
        "are epochs, sums are scaled to classes of equal size, and the dashed line is what β alone "
        "gives. "
        f"{words}. The weights are not normalised, so their mean scales the learning rate of what "
        f"they weigh. Error: of "
        "test images under the training attack, at the end."
    )
    return drawing


def _bars(panel: Axes, found: Mapping, classes: list[str]) -> None:
    mean, places = found["sums"].mean(axis=0), range(len(classes))
    tints = np.full(len(classes), "#C9CDD2")
    tints[[mean.argmax(), mean.argmin()]] = s.VERMILLION, s.SKY
    panel.bar(places, mean, color=tints, width=0.8)
    for epoch in found["sums"]:
        panel.plot(places, epoch, ".", color=s.BLACK, markersize=2.5, alpha=0.5)
    panel.axhline(found["from_offset"], color=s.BLACK, linewidth=0.8, linestyle="--")
    panel.annotate(
        "β",
        (1, found["from_offset"]),
        xycoords=("axes fraction", "data"),
        xytext=(2, 0),
        va="center",
        textcoords="offset points",
        fontsize=8,
    )
    panel.set(
        xlabel="class",
        xticks=places,
        ylim=(0, 1.28 * max(found["sums"].max(), found["from_offset"])),
        ylabel=r"$W_c$, sum of the weights of class $c$",
    )
    panel.set_xticklabels(classes, rotation=0 if len(str(classes[0])) < 3 else 90)
    words = f"mean weight {found['mean_weight']:.3g}\nrank correlation with error {found['spearman']:+.2f}"
    panel.annotate(words, (0.02, 0.99), xycoords="axes fraction", va="top", fontsize=7.5)


def class_sums(run: Run) -> dict:
    """W_c per epoch since burn-in, (epochs, K), for classes of equal size, and what follows from
    it; `from_offset` is the part of a W_c that is weight.offset alone. Robust error is that of each
    class's test images in the stored last pass.
    """
    y, classes = run.final["train_y"].astype(int), run.record["classes"]
    k, sizes = len(classes), np.bincount(y, minlength=len(classes))
    epochs = range(run.plan.burn_in + 1, len(run.history) + 1)
    if not epochs:
        raise KitError(
            f"{run.spec} collapsed before its weights began (epoch {run.plan.burn_in + 1}); lower "
            f"lr or eps"
        )
    raw = np.stack(
        [
            np.bincount(y, run.epoch(epoch)["train_weight"].astype(np.float64), minlength=k)
            for epoch in epochs
        ]
    )
    sums = raw / np.maximum(sizes, 1) * len(y) / k
    test, wrong = (
        run.final["test_y"].astype(int),
        run.final["test_logits_adv"].argmax(axis=1) != run.final["test_y"],
    )
    error = np.bincount(test, wrong, minlength=k) / np.maximum(np.bincount(test, minlength=k), 1)
    mean = sums.mean(axis=0)
    rank = stats.spearmanr(mean, error) if np.ptp(mean) > 0 and np.ptp(error) > 0 else None
    return {
        "epochs": list(epochs),
        "sums": sums,
        "unscaled": raw,
        "n_per_class": sizes,
        "robust_error": error,
        "from_offset": float(run.plan.method.hyper_parameters()["weight.offset"]) * len(y) / k,
        "mean_weight": float(raw.sum() / len(raw) / len(y)),
        "largest": classes[int(mean.argmax())],
        "smallest": classes[int(mean.argmin())],
        "largest_epochs": int((sums.argmax(axis=1) == mean.argmax()).sum()),
        "smallest_epochs": int((sums.argmin(axis=1) == mean.argmin()).sum()),
        "spearman": float(rank.statistic) if rank else math.nan,
        "p": float(rank.pvalue) if rank else 1.0,
    }


def _weight_claims(facts: Mapping[str, Mapping]) -> list[Claim]:
    """The same class at each end under both methods, in most epochs; and the weight goes where the
    error is.
    """
    found = []
    for end, printed in (("largest", "class 3 (cat)"), ("smallest", "class 1")):
        names = {f[end] for f in facts.values()}
        steady = all(f[f"{end}_epochs"] > len(f["sums"]) / 2 for f in facts.values())
        here = ", ".join(
            f"{s.label(m)} {f[end]} (in {f[f'{end}_epochs']} of {len(f['sums'])} epochs)"
            for m, f in facts.items()
        )
        found.append(
            Claim(
                f"the class of {end} total weight is the same under both methods (VIR s. 5.5, Fig. "
                f"3)",
                printed,
                here,
                holds=len(names) == 1 and steady,
                fails=len(names) > 1 and steady,
            )
        )
    here = ", ".join(
        f"{s.label(m)} ρ {f['spearman']:+.2f} (p {f['p']:.2g})" for m, f in facts.items()
    )
    found.append(
        Claim(
            "classes of larger robust error get more weight (VIR s. 5.5, Fig. 3)",
            "no numbers",
            here,
            holds=all(f["p"] <= 0.05 and f["spearman"] > 0 for f in facts.values()),
            fails=any(f["p"] <= 0.05 and f["spearman"] < 0 for f in facts.values()),
        )
    )
    return found
