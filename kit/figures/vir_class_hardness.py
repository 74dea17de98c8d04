"""VIR s. 4.1: are the classes that natural training finds hard harder still for AT?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from kit.evaluation.accuracy import evaluate
from kit.evaluation.statistics import bootstrap_interval, pearson, share_with_interval
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData
from kit.figures.run_outputs import describe_setting
from kit.papers.claim_verdict import Estimate

#: Of a share: itself, and the ends of its interval.
PARTS = ("share", "low", "high")


def compute_class_hardness(runs: Mapping[str, Run]) -> FigureData:
    """Clean error of each class under natural training and under AT, the same test images.

    `correlation` is that over classes between STD's error and what AT adds to it, with the 95 %
    interval of a bootstrap over images. What AT adds contains STD's error with a minus sign, so on
    the same images chance alone would make it negative. So a class's hardness is read on one half
    of its images and what AT adds on the other, both ways round.
    """
    first = next(iter(runs.values()))
    classes = first.record["classes"]
    wrong, y = {}, np.array([])
    for method in ("std", "at"):
        examples = evaluate(runs[method], ["natural"], quiet=True).attrs["examples"]["natural"]
        wrong[method], y = examples["broken"], examples["y"]
    errors = {
        method: [share_with_interval(found[y == k]) for k in range(len(classes))]
        for method, found in wrong.items()
    }

    half = number_within_class(y) % 2 == 1

    def correlation(rows: np.ndarray) -> float:
        hard, added = [], []
        for part in (rows[half[rows]], rows[~half[rows]]):
            std, at = (_class_errors(wrong[m][part], y[part], len(classes)) for m in ("std", "at"))
            hard.append(std)
            added.append(at - std)
        return float(np.mean([_correlate(a, b) for a, b in zip(hard, added[::-1], strict=True)]))

    facts = {
        "n": len(y),
        "errors": errors,
        "worst": {
            method: classes[int(np.argmax([one["share"] for one in found]))]
            for method, found in errors.items()
        },
        "correlation": bootstrap_interval(correlation, len(y)),
    }
    return FigureData(facts, describe_setting(first), extras={"classes": classes})


def number_within_class(y: np.ndarray) -> np.ndarray:
    """(n,) the place of each image among those of its class, from 0."""
    places = np.zeros(len(y), dtype=int)
    for label in np.unique(y):
        places[y == label] = np.arange((y == label).sum())
    return places


def _correlate(hard: np.ndarray, added: np.ndarray) -> float:
    """Pearson's correlation over the classes that have images in both halves."""
    known = np.isfinite(hard) & np.isfinite(added)
    return pearson(hard[known], added[known])


def _class_errors(wrong: np.ndarray, y: np.ndarray, classes: int) -> np.ndarray:
    """(classes,) share of each class's images that are wrong; NaN where there is none."""
    count = np.bincount(y, minlength=classes)
    with np.errstate(invalid="ignore"):
        return np.bincount(y, weights=wrong, minlength=classes) / count


def draw_class_hardness(data: FigureData) -> Drawing:
    """Draw each class by its error under natural training (across) and under AT (up).

    The light bars are 95 % intervals: a class has few images, and most of them are right. Classes
    at one point share a label.
    """
    drawing = Drawing(5.0, 4.2)
    axes = drawing.subplots()
    std, at = (
        100 * np.array([[one[key] for key in PARTS] for one in data.facts["errors"][method]])
        for method in ("std", "at")
    )
    reach = 1.04 * max(float(std.max()), float(at.max()), 1.0)
    axes.plot([0, reach], [0, reach], color=s.BLACK, linewidth=0.8, linestyle="--", zorder=1)
    axes.annotate(
        "equal error",
        (0.9 * reach, 0.9 * reach),
        xytext=(-3, 3),
        textcoords="offset points",
        ha="right",
        fontsize=7.5,
    )
    axes.errorbar(
        std[:, 0],
        at[:, 0],
        xerr=[std[:, 0] - std[:, 1], std[:, 2] - std[:, 0]],
        yerr=[at[:, 0] - at[:, 1], at[:, 2] - at[:, 0]],
        fmt="none",
        ecolor=s.PALE,
        elinewidth=0.8,
        zorder=0,
    )
    axes.plot(std[:, 0], at[:, 0], "o", color=s.colour("at"), markersize=5)
    axes.set(
        xlabel="clean error under natural training / %",
        ylabel="clean error under AT / %",
        title=f"Clean error of each class, n = {data.facts['n']:,}",
        xlim=(-0.03 * reach, reach),
        ylim=(-0.03 * reach, reach),
    )
    _name_points(axes, data.extras["classes"], std[:, 0], at[:, 0])
    return drawing


def _name_points(axes: Axes, classes: Sequence[str], across: np.ndarray, up: np.ndarray) -> None:
    """Write the classes' names beside their points, those of one point in one label."""
    labels: dict[tuple[float, float], list[str]] = {}
    for name, x, y in zip(classes, across, up, strict=True):
        labels.setdefault((float(x), float(y)), []).append(str(name))
    s.name_points(axes, {point: ", ".join(names) for point, names in labels.items()})


def decide_class_hardness(data: FigureData) -> list[Claim]:
    """Decide whether AT adds more errors to the classes in which STD makes more."""
    middle, low, high = data.facts["correlation"]
    worst = data.facts["worst"]
    return [
        Claim(
            "AT adds most errors to the classes that natural training finds hard (VIR s. 4.1)",
            "in words",
            f"correlation over classes {middle:+.2f} [{low:+.2f}, {high:+.2f}], hardest "
            f"{worst['std']} for STD and {worst['at']} for AT",
            (Estimate("correlation of STD's error and what AT adds", "> 0", middle, low, high),)
            if np.isfinite([middle, low, high]).all()
            else (),
            number=96,
        )
    ]


def describe_class_hardness(data: FigureData) -> str:
    """The caption: the hardest classes and the correlation."""
    middle, low, high = data.facts["correlation"]
    worst = data.facts["worst"]
    return (
        "VIR says that what natural training finds hard, adversarial training makes harder. "
        f"{data.setting}, clean test images: the hardest class is {worst['std']} under STD and "
        f"{worst['at']} under AT; over classes, STD's error and what AT adds to it correlate with "
        f"{middle:+.2f} [{low:+.2f}, {high:+.2f}], each read on other images. Bars: 95 % (Wilson)."
    )
