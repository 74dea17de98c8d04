"""MR Figs. 3 and 4: the similarity of a softmax and itself without its true class."""

from __future__ import annotations

from typing import Literal

import numpy as np
from matplotlib.axes import Axes

from kit.core.errors import KitError
from kit.evaluation.statistics import bootstrap_interval, correlation_interval, pearson
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData
from kit.figures.run_outputs import IMAGE_KINDS, describe_setting, image_probabilities
from kit.methods.criteria import true_class_similarity
from kit.papers.claim_verdict import Estimate

# ------------------------------------------------------------------------------------------- Fig. 3


def compute_similarity_pair(
    run: Run,
    *,
    low: int = -1,
    high: int = -1,
    which: Literal["nat", "adv"] = "adv",
    split: Literal["train", "test"] = "test",
) -> FigureData:
    """The similarity c of p and p' (its true entry masked), at low and at high p_y.

    `low` and `high` are image ids to show instead of those with p_y nearest to 0.2 and to 0.95. The
    drop is that of the median c from the tenth of lowest p_y to that of highest.
    """
    probs, y = image_probabilities(run, split, which)
    ids, c = run.final[f"{split}_ids"], true_class_similarity(probs, y).numpy()
    p_y = probs.gather(1, y[:, None]).squeeze(1).numpy()
    rows = {
        "low": _find_row(ids, low, p_y, 0.2, split),
        "high": _find_row(ids, high, p_y, 0.95, split),
    }
    order, tenth = p_y.argsort(kind="stable"), max(1, len(y) // 10)
    facts = {
        "n": len(y),
        "which": which,
        "split": split,
        "examples": {
            name: {
                "id": int(ids[row]),
                "y": int(y[row]),
                "p_y": float(p_y[row]),
                "c": float(c[row]),
                "p": probs[row].numpy(),
            }
            for name, row in rows.items()
        },
        "drop": bootstrap_interval(
            lambda draw: _lowest_minus_highest(p_y[draw], c[draw], tenth), len(y)
        ),
        "median_low": float(np.median(c[order[:tenth]])),
        "median_high": float(np.median(c[order[-tenth:]])),
    }
    return FigureData(facts, describe_setting(run), run.method, {"classes": run.record["classes"]})


def _find_row(ids: np.ndarray, asked: int, p_y: np.ndarray, near: float, split: str) -> int:
    """The row of the image that was asked for, or of the one with p_y nearest to `near`."""
    if asked < 0:
        return int(np.abs(p_y - near).argmin())
    if asked not in ids:
        raise KitError(
            f"there is no {split} image {asked} in this run; its ids are {ids.min()} to "
            f"{ids.max()}, such as {', '.join(map(str, ids[:3]))}. Leave it out to have one chosen"
        )
    return int(np.flatnonzero(ids == asked)[0])


def _lowest_minus_highest(p_y: np.ndarray, c: np.ndarray, tenth: int) -> float:
    """Median c of the `tenth` examples with the lowest p_y minus that of those with the highest."""
    order = p_y.argsort(kind="stable")
    return float(np.median(c[order[:tenth]]) - np.median(c[order[-tenth:]]))


def draw_similarity_pair(data: FigureData) -> Drawing:
    """Draw bars of p and of p' for both examples."""
    drawing = Drawing(7.6, 3.0)
    panels = drawing.subplots(1, 2, sharey=True)
    examples = data.facts["examples"]
    for panel, (name, example), letter in zip(panels, examples.items(), "ab", strict=True):
        _draw_masked_bars(panel, example, data.extras["classes"])
        panel.set_title(f"{letter}  c = {example['c']:.2f} at {name} $p_y$")
    panels[0].set_ylabel(f"probability, {IMAGE_KINDS[data.facts['which']]}")
    for height, (tint, words) in enumerate(
        (
            (s.BLUE, "$p'$: true class masked"),
            ("#777777", "$p$, others"),
            (s.VERMILLION, "$p$, true class"),
        )
    ):
        panels[0].annotate(
            words,
            (0.97, 0.74 + 0.08 * height),
            xycoords="axes fraction",
            ha="right",
            color=tint,
            fontsize=8.5,
        )
    return drawing


def _draw_masked_bars(panel: Axes, example: dict, classes: list[str]) -> None:
    p, truth = example["p"], example["y"]
    place = np.arange(len(p))
    panel.bar(place - 0.2, p, width=0.4, color=np.where(place == truth, s.VERMILLION, s.PALE))
    panel.bar(place + 0.2, np.where(place == truth, 0, p), width=0.4, color=s.BLUE)
    words = f"image {example['id']}, true class {classes[truth]}, $p_y$ = {p[truth]:.2f}"
    panel.set(xlabel=f"class ({words})", ylim=(0, 1.08))
    s.name_classes(panel, classes)


def decide_similarity_pair(data: FigureData) -> list[Claim]:
    """Decide whether the median c drops by more than 0.5 from low to high confidence."""
    facts = data.facts
    drop, low, high = facts["drop"]
    return [
        Claim(
            "similarity is large at low and small at high confidence (MR s. 3.3, Fig. 3)",
            "two examples, no numbers",
            f"median c {facts['median_low']:.2f} in the tenth of lowest p_y, "
            f"{facts['median_high']:.2f} in that of highest; difference {drop:+.2f} [{low:+.2f}, "
            f"{high:+.2f}], n = {facts['n']}",
            (Estimate("drop of the median c", "> 0.5", drop, low, high),),
            number=100,
        )
    ]


def describe_similarity_pair(data: FigureData) -> str:
    """The caption: c of both examples, and the medians of both tenths."""
    facts = data.facts
    low, high = facts["examples"]["low"], facts["examples"]["high"]
    return (
        "MR Fig. 3 claims that p and p' (p without its true entry) are similar at low confidence "
        f"and not at high. {s.label(data.method)} on {data.setting}, two {facts['split']} images "
        f"{IMAGE_KINDS[facts['which']]}: c = {low['c']:.2f} at p_y = {low['p_y']:.2f}, c = "
        f"{high['c']:.2f} at p_y = {high['p_y']:.2f}. Of all {facts['n']} the tenth with the "
        f"lowest p_y has median c = {facts['median_low']:.2f}, that with the highest "
        f"{facts['median_high']:.2f}."
    )


# ------------------------------------------------------------------------------------------- Fig. 4


def similarity_bounds(p_y: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(lowest, highest) similarity c that a softmax over k classes can have at p_y.

    The rest is even at the lowest, and in one class at the highest.
    From c² = R / (p_y² + R), where R, the squares of the other entries, lies between (1-p_y)²/(k-1)
    and (1-p_y)².
    """
    q = 1 - p_y
    return q / np.sqrt((k - 1) * p_y**2 + q**2), q / np.sqrt(p_y**2 + q**2)


def compute_similarity_by_error(
    run: Run, *, split: Literal["train", "test"] = "test"
) -> FigureData:
    """Similarity c against the incorrect rate 1 - p_y, natural and under attack."""
    kinds, clouds = {}, {}
    for which in IMAGE_KINDS:
        probs, y = image_probabilities(run, split, which)
        p_y = probs.gather(1, y[:, None]).squeeze(1).numpy()
        c, k = true_class_similarity(probs, y).numpy(), probs.shape[1]
        low, high = similarity_bounds(p_y, k)
        kinds[which] = {
            "n": len(y),
            "pearson": correlation_interval(1 - p_y, c),
            "outside": int(((c < low - 1e-9) | (c > high + 1e-9)).sum()),
            "on_the_bounds": {
                "rest even": pearson(1 - p_y, low),
                "one rival": pearson(1 - p_y, high),
            },
        }
        clouds[which] = {"error": 1 - p_y, "c": c}
    extras = {"clouds": clouds, "num_classes": k}
    return FigureData({"split": split, "kinds": kinds}, describe_setting(run), run.method, extras)


def draw_similarity_by_error(data: FigureData) -> Drawing:
    """Draw both clouds between the bounds of any softmax."""
    drawing = Drawing(7.4, 3.5)
    panels = drawing.subplots(1, 2, sharey=True)
    for panel, (which, words), letter in zip(panels, IMAGE_KINDS.items(), "ab", strict=True):
        fact = data.facts["kinds"][which]
        _draw_similarity_bounds(panel, data.extras["num_classes"])
        cloud = data.extras["clouds"][which]
        panel.scatter(
            cloud["error"], cloud["c"], s=9, color=s.BLUE, alpha=0.5, linewidth=0, zorder=2
        )
        r, low, high = fact["pearson"]
        panel.annotate(
            f"$r$ = {r:.3f}\n[{low:.3f}, {high:.3f}]",
            (0.97, 0.06),
            xycoords="axes fraction",
            ha="right",
            fontsize=9.5,
            color=s.BLUE,
        )
        panel.set(
            xlabel="incorrect rate $1 - p_y$",
            xlim=(-0.02, 1.02),
            ylim=(-0.02, 1.04),
            box_aspect=1,
            title=f"{letter}  {s.label(data.method)}, {words}, n = {fact['n']}",
        )
    panels[0].set_ylabel("similarity $c$ (Eq. 11)")
    return drawing


def _draw_similarity_bounds(panel: Axes, k: int) -> None:
    """Draw what a softmax over k classes allows, with its two edges named."""
    grid = np.linspace(0, 1, 201)
    lowest, highest = similarity_bounds(1 - grid, k)
    panel.fill_between(grid, lowest, highest, color="#EEF0F2", linewidth=0, zorder=0)
    for curve in (lowest, highest):
        panel.plot(grid, curve, color=s.GREY, linewidth=1)
    for words, point, place in (
        ("one rival class", (0.20, 0.245), (0.03, 0.55)),
        ("rest even", (grid[140], lowest[140]), (0.78, 0.36)),
    ):
        panel.annotate(
            words,
            point,
            xytext=place,
            fontsize=7.5,
            color=s.SMALL_PRINT,
            arrowprops={"arrowstyle": "-", "color": s.GREY, "linewidth": 0.7},
        )


def decide_similarity_by_error(data: FigureData) -> list[Claim]:
    """Decide for both kinds of images whether similarity follows the incorrect rate."""
    return [
        decide_correlation(which, fact["pearson"], fact["n"])
        for which, fact in data.facts["kinds"].items()
    ]


def decide_correlation(which: str, r: tuple[float, float, float], n: int) -> Claim:
    """Decide whether r is 0.95 or more, which counts as the printed 0.98."""
    return Claim(
        f"similarity follows the incorrect rate, images {IMAGE_KINDS[which]} (MR App. D, Eq. 23, "
        "Fig. 4)",
        "r = 0.98",
        f"r = {r[0]:.3f} [{r[1]:.3f}, {r[2]:.3f}], n = {n}",
        (Estimate("r", ">= 0.95", *r),),
        number=57,
    )


def describe_similarity_by_error(data: FigureData) -> str:
    """The caption: r of both kinds, and what the definition of c alone would give."""
    kinds = data.facts["kinds"]
    forced = [value for fact in kinds.values() for value in fact["on_the_bounds"].values()]
    found = "; ".join(
        f"{IMAGE_KINDS[which]} r = {fact['pearson'][0]:.3f} [{fact['pearson'][1]:.3f}, "
        f"{fact['pearson'][2]:.3f}], n = {fact['n']}"
        for which, fact in kinds.items()
    )
    return (
        f"MR Fig. 4 claims r = 0.98 between 1 - p_y and the similarity c. {s.label(data.method)} "
        f"on {data.setting}, {data.facts['split']} images: {found}. 0.95 counts as that. "
        "Grey: all that a softmax allows; with every image on an edge of it, r would be "
        f"{min(forced):.2f} to {max(forced):.2f}, so the definition of c alone makes it large."
    )
