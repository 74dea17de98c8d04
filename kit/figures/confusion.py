"""VIR's confusion matrices: which classes does adversarial training leave behind?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kit.evaluation.accuracy import evaluate
from kit.evaluation.class_tables import confusion
from kit.evaluation.statistics import wilson
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing
from kit.figures.reading import setting


def matrices(runs: Mapping[str, Run], *, attack: str = "pgd100") -> Drawing:
    """Natural matrix of AT, then one matrix per method under `attack`; rows are true classes, in
    percent.
    """
    import seaborn

    first = next(iter(runs.values()))
    tables = {
        method: evaluate(run, ["natural", attack], quiet=True) for method, run in runs.items()
    }
    panels = {f"{s.label('at')}, natural": confusion(tables["at"], "natural")} | {
        f"{s.label(method)}, {s.attack_label(attack)}": confusion(table, attack)
        for method, table in tables.items()
    }
    classes = first.record["classes"]
    drawing = Drawing(2.55 * len(panels) + 0.5, 3.3)
    axes = drawing.subplots(1, len(panels), sharey=True)
    facts = {}
    for panel, (title, counts) in zip(axes, panels.items(), strict=True):
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        seaborn.heatmap(
            share * 100,
            ax=panel,
            cmap="Blues",
            vmin=0,
            vmax=100,
            cbar=False,
            square=True,
            annot=len(classes) <= 10,
            fmt=".0f",
            annot_kws={"fontsize": 6},
            xticklabels=classes,
            yticklabels=classes,
            linewidths=0.3,
            linecolor="white",
        )
        facts[title] = disparity(counts, classes)
        right, n = int(np.trace(counts)), int(counts.sum())
        panel.set_title(f"{title}\n{right / n:.1%} right", fontsize=8.5)
        panel.set_xlabel("predicted class")
        panel.tick_params(
            labelsize=6.5, length=0, labelrotation=0 if len(str(classes[0])) < 3 else 90
        )
        panel.tick_params(axis="y", labelrotation=0)
    axes[0].set_ylabel("true class")
    drawing.facts = {
        "attack": attack,
        "n": int(next(iter(panels.values())).sum()),
        "panels": facts,
        "natural": facts[f"{s.label('at')}, natural"],
        "attacked": facts[f"{s.label('at')}, {s.attack_label(attack)}"],
    }
    natural, attacked = (
        facts[f"{s.label('at')}, natural"],
        facts[f"{s.label('at')}, {s.attack_label(attack)}"],
    )
    drawing.claims = _claims(facts, natural, attacked)
    drawing.caption = (
        f"VIR Fig. 1 claims that adversarial training serves classes unequally, with one similar "
        f"pair suffering most. "
        f"{setting(first)}, "
        f"n = {drawing.facts['n']} test images: under AT recall spreads by {natural['spread']:.0%} "
        f"between classes on clean "
        "images and "
        f"by {attacked['spread']:.0%} under {s.attack_label(attack)}; lowest is class "
        f"{attacked['lowest']} "
        f"({attacked['lowest_recall']:.0%} "
        f"[{attacked['lowest_low']:.0%}, {attacked['lowest_high']:.0%}]), and the most confused "
        f"pair is "
        f"{' and '.join(attacked['pair'])}. Rows are true classes, cells are percent of the row."
    )
    return drawing


def _claims(panels: dict, natural: dict, attacked: dict) -> list[Claim]:
    """The three statements on Fig.

    1. Beyond chance: a class's interval lies on one side of the mean recall.
    """
    mean = float(np.mean(attacked["recall"]))
    below, above = (
        [name for name, (low, high) in attacked["intervals"].items() if side(low, high)]
        for side in (lambda low, high: high < mean, lambda low, high: low > mean)
    )
    pairs = {
        title.split(",")[0]: " and ".join(panel["pair"])
        for title, panel in panels.items()
        if "natural" not in title
    }
    wider = attacked["spread"] > natural["spread"]
    return [
        Claim(
            "adversarial training serves classes unequally under attack (VIR Fig. 1)",
            "cat 89 to 17 %, ship 96 to 59 %",
            f"recall spreads by {natural['spread']:.0%} clean, {attacked['spread']:.0%} under "
            f"attack",
            holds=wider and bool(below) and bool(above),
            fails=not wider,
        ),
        Claim(
            "the lowest class is low beyond chance (VIR s. 4.1)",
            "class 3 (cat)",
            f"class {attacked['lowest']}: {attacked['lowest_recall']:.0%} "
            f"[{attacked['lowest_low']:.0%}, "
            f"{attacked['lowest_high']:.0%}]; below the mean beyond chance: "
            f"{', '.join(below) or 'none'}",
            holds=attacked["lowest"] in below,
            fails=False,
        ),
        Claim(
            "the same pair of classes is exchanged most under every method (VIR Fig. 1)",
            "classes 3 and 5",
            "; ".join(f"{name} {pair}" for name, pair in pairs.items()),
            holds=len(set(pairs.values())) == 1,
            fails=len(set(pairs.values())) == len(pairs),
        ),
    ]


def disparity(counts: np.ndarray, classes: list[str]) -> dict:
    """Recall per class, its spread, the lowest class with its interval, and the pair most often
    exchanged.
    """
    totals = np.maximum(counts.sum(1), 1)
    recall = np.diag(counts) / totals
    lowest = int(recall.argmin())
    intervals = {name: wilson(int(counts[k, k]), int(totals[k])) for k, name in enumerate(classes)}
    low, high = intervals[classes[lowest]]
    swapped = np.triu((counts / totals[:, None]) + (counts / totals[:, None]).T, k=1)
    i, j = np.unravel_index(swapped.argmax(), swapped.shape)
    return {
        "recall": recall,
        "intervals": intervals,
        "spread": float(recall.max() - recall.min()),
        "variation": float(recall.std() / recall.mean()) if recall.mean() else float("nan"),
        "lowest": classes[lowest],
        "lowest_recall": float(recall[lowest]),
        "lowest_low": low,
        "lowest_high": high,
        "pair": [classes[i], classes[j]],
        "pair_share": float(swapped[i, j]),
        "n_per_class": totals,
    }
