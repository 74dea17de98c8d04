"""VIR Fig. 1: which classes does adversarial training leave behind?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from kit.attacks.table import attack_label
from kit.evaluation.accuracy import evaluate
from kit.evaluation.class_tables import confusion
from kit.evaluation.statistics import Interval, normal_point, wilson
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData
from kit.figures.run_outputs import describe_setting
from kit.methods.table import METHODS
from kit.papers.claim_verdict import Estimate, exactly

#: The method of the first panel, which sees no attack in training.
NATURAL_TRAINING = "std"


def compute_confusion(runs: Mapping[str, Run], *, attack: str = "pgd100") -> FigureData:
    """Confusion matrix of natural training on clean images, then one per network under `attack`.

    Adopted networks have panels, and no part in the claims. AT's own matrix on clean images is not
    drawn. It is among the facts, because the claim compares AT under attack with AT on clean
    images, so that training is the same on both sides.
    """
    first = next(iter(runs.values()))
    classes = first.record["classes"]
    defended = {method: run for method, run in runs.items() if method != NATURAL_TRAINING}
    tables = {
        method: evaluate(run, ["natural", attack], quiet=True) for method, run in defended.items()
    }
    naturally = evaluate(runs[NATURAL_TRAINING], ["natural"], quiet=True)
    under = attack_label(attack)
    first_panel = f"{s.label(NATURAL_TRAINING)}, natural"
    counts = {first_panel: confusion(naturally, "natural")} | {
        f"{s.label(method)}, {under}": confusion(table, attack) for method, table in tables.items()
    }
    shown = {title: measure_disparity(found, classes) for title, found in counts.items()}
    adopted = {f"{s.label(name)}, {under}" for name in defended if name not in METHODS}
    panels = {title: found for title, found in shown.items() if title not in adopted}
    facts = {
        "attack": attack,
        "n": int(counts[first_panel].sum()),
        "panels": panels,
        "beside": {title: found for title, found in shown.items() if title in adopted},
        "natural training": panels[first_panel],
        "natural": measure_disparity(confusion(tables["at"], "natural"), classes),
        "attacked": panels[f"{s.label('at')}, {under}"],
    }
    return FigureData(facts, describe_setting(first), extras={"counts": counts, "classes": classes})


def measure_disparity(counts: np.ndarray, classes: list[str]) -> dict:
    """Recall per class, its spread, the lowest class, and the pair most often exchanged.

    Intervals are Wilson's, 95 %; that of the lowest class is wider, as the lowest of so many
    classes was looked for (Bonferroni).
    """
    totals = np.maximum(counts.sum(1), 1)
    recall = np.diag(counts) / totals
    lowest = int(recall.argmin())
    intervals = {name: wilson(int(counts[k, k]), int(totals[k])) for k, name in enumerate(classes)}
    strict = normal_point(1 - 0.05 / len(classes))
    low, high = wilson(int(counts[lowest, lowest]), int(totals[lowest]), strict)
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


def draw_confusion_matrices(data: FigureData) -> Drawing:
    """Draw one matrix per panel; rows are true classes, in percent."""
    panels = data.extras["counts"]
    drawing = Drawing(2.55 * len(panels) + 0.5, 3.3)
    axes = drawing.subplots(1, len(panels), sharey=True)
    for panel, (title, counts) in zip(axes, panels.items(), strict=True):
        s.draw_confusion(panel, counts, data.extras["classes"])
        right, n = int(np.trace(counts)), int(counts.sum())
        panel.set_title(f"{title}\n{right / n:.1%} right", fontsize=8.5)
    axes[0].set_ylabel("true class")
    return drawing


def _below_mean(attacked: Mapping) -> Interval:
    """The recall of the lowest class less the mean recall, with the class's own interval."""
    mean = float(np.mean(attacked["recall"]))
    recall, low, high = (attacked[f"lowest_{name}"] - mean for name in ("recall", "low", "high"))
    return recall, low, high


def decide_confusion(data: FigureData) -> list[Claim]:
    """Decide whether classes differ, the lowest is low beyond chance, and one pair suffers most.

    Beyond chance: a class's interval lies on one side of the mean recall.
    """
    panels, natural, attacked = (data.facts[name] for name in ("panels", "natural", "attacked"))
    mean = float(np.mean(attacked["recall"]))
    below = [name for name, (_, high) in attacked["intervals"].items() if high < mean]
    pairs = {
        title.split(",")[0]: " and ".join(panel["pair"])
        for title, panel in panels.items()
        if "natural" not in title
    }
    spread = attacked["spread"] - natural["spread"]
    alike = Counter(pairs.values()).most_common(1)[0][1] / len(pairs)
    return [
        Claim(
            "adversarial training serves classes unequally under attack (VIR Fig. 1)",
            "cat 89 to 17 %, ship 96 to 59 %",
            f"AT's recall spreads by {_points(natural)} clean, {_points(attacked)} under "
            f"attack; natural training's by {_points(data.facts['natural training'])} clean",
            (exactly("spread under attack - clean", spread, "> 0"),),
            number=32,
        ),
        Claim(
            "the lowest class is low beyond chance (VIR s. 4.1)",
            "class 3 (cat)",
            f"class {attacked['lowest']}: {attacked['lowest_recall']:.0%} "
            f"[{attacked['lowest_low']:.0%}, {attacked['lowest_high']:.0%}]; below the mean "
            f"beyond chance: {', '.join(below) or 'none'}",
            (Estimate("lowest recall - mean", "< 0", *_below_mean(attacked)),),
            number=32,
        ),
        Claim(
            "the same pair of classes is exchanged most under every method (VIR Fig. 1)",
            "classes 3 and 5",
            "; ".join(f"{name} {pair}" for name, pair in pairs.items()),
            (exactly("methods that exchange the commonest pair", alike, ">= 1"),),
            number=32,
        ),
    ]


def _points(panel: Mapping) -> str:
    """By how much recall spreads over the classes of a matrix."""
    return f"{100 * panel['spread']:.0f} points"


def describe_confusion(data: FigureData) -> str:
    """The caption: how far recall spreads, the lowest class, and the most confused pair."""
    facts, natural, attacked = data.facts, data.facts["natural"], data.facts["attacked"]
    counts = attacked["n_per_class"]
    return (
        "VIR Fig. 1 claims that adversarial training serves classes unequally, with one similar "
        f"pair suffering most. {data.setting}, n = {facts['n']} test images, "
        f"{min(counts)} to {max(counts)} a class: recall spreads by "
        f"{_points(facts['natural training'])} between classes after natural training on clean "
        f"images, after AT by {_points(natural)} on clean images and by {_points(attacked)} under "
        f"{attack_label(facts['attack'])}; lowest is class "
        f"{attacked['lowest']} ({attacked['lowest_recall']:.0%} [{attacked['lowest_low']:.0%}, "
        f"{attacked['lowest_high']:.0%}]), and the most confused pair is "
        f"{' and '.join(attacked['pair'])}. Rows are true classes, cells are percent of the row."
    )
