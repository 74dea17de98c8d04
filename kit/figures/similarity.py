"""MR's figures on what one margin leaves open:

the true class's probability (Fig. 2) and the similarity (Figs. 3, 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from torch import Tensor

from kit.core.errors import KitError, unknown_name
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing
from kit.figures.reading import probabilities, setting
from kit.methods.criteria import probabilistic_margin, true_class_similarity

KINDS = {"nat": "without attack", "adv": "under attack"}

SPLITS = ("train", "test")

WIDTH = 0.05  # of a margin bin


def bootstrap(statistic: Callable[[np.ndarray], float], n: int) -> tuple[float, float, float]:
    """(`statistic` of all rows, low, high): 95 % interval over 1,000 draws of n rows with
    replacement from a fixed seed.

    NaN for fewer than three rows, and where the statistic is no number.
    """
    if n < 3:
        return float("nan"), float("nan"), float("nan")
    random = np.random.default_rng(0)
    draws = [statistic(random.integers(0, n, n)) for _ in range(1000)]
    found = [value for value in draws if np.isfinite(value)] or [float("nan")]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(statistic(np.arange(n))), float(low), float(high)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation; NaN where either is constant."""
    apart = a.std() * b.std()
    return float(((a - a.mean()) * (b - b.mean())).mean() / apart) if apart > 0 else float("nan")


def correlation(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """(Pearson's r, low, high), see `bootstrap`."""
    return bootstrap(lambda rows: pearson(a[rows], b[rows]), len(a))


def read(run: Run, split: str, which: str) -> tuple[Tensor, Tensor]:
    """Probabilities (n, K) and labels (n,) of a split's images, natural or under the training
    attack.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    if which not in KINDS:
        raise unknown_name("kind of image", which, KINDS)
    return probabilities(run.final, f"{split}_logits_{which}")


# ------------------------------------------------------------------------------------------- Fig. 2


def margin_by_probability(
    run: Run, *, which: Literal["nat", "adv"] = "adv", split: Literal["train", "test"] = "test"
) -> Drawing:
    """Margin p_2 - p_y (MR Eq. 4 as printed) against p_y between the bounds of any softmax; and p_y
    in bins of the margin.

    The paper does not say whether its examples are natural or adversarial, nor of which set.
    """
    probs, y = read(run, split, which)
    k = probs.shape[1]
    p_y, margin = (
        probs.gather(1, y[:, None]).squeeze(1).numpy(),
        -probabilistic_margin(probs, y).numpy(),
    )
    drawing = Drawing(7.6, 3.4)
    left, right = drawing.subplots(1, 2, width_ratios=(6, 5))
    grid = np.linspace(0, 1, 201)
    lowest, highest = np.maximum((1 - grid) / (k - 1), 0) - grid, 1 - 2 * grid
    left.fill_between(grid, lowest, highest, color="#EEF0F2", linewidth=0, zorder=0)
    for correct, tint, words, place in (
        (True, s.BLUE, "right", (0.86, -0.40)),
        (False, s.ORANGE, "wrong", (0.50, 0.42)),
    ):
        mine = (margin < 0) == correct
        left.scatter(p_y[mine], margin[mine], s=9, color=tint, alpha=0.6, linewidth=0)
        left.annotate(f"{words} ({mine.sum()})", place, color=tint, fontsize=8.5, ha="center")
    for words, place, angle in (
        ("one rival class", (0.225, 0.67), -39),
        ("rest even", (0.42, -0.49), -24),
    ):
        left.annotate(
            words, place, rotation=angle, fontsize=7.5, color="#555555", ha="center", va="center"
        )
    left.axhspan(-2.5 * WIDTH, 2.5 * WIDTH, color=s.GREEN, alpha=0.12, linewidth=0, zorder=0)
    left.set(
        xlabel="$p_y$",
        ylabel="margin $p_2 - p_y$ (Eq. 4)",
        xlim=(-0.02, 1.02),
        ylim=(-1.05, 1.05),
        title=f"a  {s.label(run.method)}, {split} images {KINDS[which]}",
    )
    bins = _bins(p_y, margin, k)
    _bin_rows(right, bins)
    middle = (p_y >= 0.2) & (p_y <= 0.6)
    drawing.facts = {
        "n": len(y),
        "which": which,
        "split": split,
        "bins": bins,
        "share_02_06": float(middle.mean()),
        "pearson": correlation(p_y, margin),
        "outside_band": int(
            ((margin < (1 - p_y) / (k - 1) - p_y - 1e-9) | (margin > 1 - 2 * p_y + 1e-9)).sum()
        ),
    }
    fullest = max(bins, key=lambda b: b["n"])
    drawing.claims = [_one_margin(fullest)]
    r = drawing.facts["pearson"]
    drawing.caption = (
        f"MR Fig. 2 claims that examples with p_y from 0.2 to 0.6 can have about the same margin. "
        f"{s.label(run.method)} on "
        f"{setting(run)}, {len(y)} {split} images {KINDS[which]}, {middle.mean():.0%} of them with "
        f"such a p_y: where the "
        f"margin is within {WIDTH / 2:g} of {fullest['centre']:g} (n = {fullest['n']}), p_y has "
        f"{_spread(fullest)}. Overall "
        f"margin and p_y have r = {r[0]:.3f} [{r[1]:.3f}, {r[2]:.3f}]. Grey: all that a softmax "
        f"over {k} classes allows; "
        f"p_y = 0.6 asks for a margin of at most -0.2, p_y = 0.2 for one of at least "
        f"{0.8 / (k - 1) - 0.2:+.2f}."
    )
    return drawing


def _bins(p_y: np.ndarray, margin: np.ndarray, k: int) -> list[dict]:
    """Of five bins of the margin around 0:

    n, range, SD and middle 90 % of p_y, and what a softmax allows at the centre.
    """
    found = []
    for centre in np.arange(-2, 3) * WIDTH:
        mine = p_y[(margin >= centre - WIDTH / 2) & (margin < centre + WIDTH / 2)]
        entry = {
            "centre": float(centre),
            "n": len(mine),
            "allowed": (
                (1 - (k - 1) * centre) / k if centre < 1 / (k - 1) else 0.0,
                (1 - centre) / 2,
            ),
        }
        if len(mine):
            span = bootstrap(
                lambda rows, mine=mine: float(np.subtract(*np.percentile(mine[rows], [95, 5]))),
                len(mine),
            )
            entry |= {
                "low": float(mine.min()),
                "high": float(mine.max()),
                "mean": float(mine.mean()),
                "span": span,
                "sd": float(mine.std(ddof=1)) if len(mine) > 1 else 0.0,
            }
        found.append(entry)
    return found


def _bin_rows(axes, bins: list[dict]) -> None:
    """A row per bin: what a softmax allows (grey), range (thin), mean and SD (thick) of p_y."""
    axes.axvspan(0.2, 0.6, color=s.GREEN, alpha=0.12, linewidth=0, zorder=0)
    for b in bins:
        low, high = b["allowed"]
        axes.barh(b["centre"], high - low, left=low, height=0.6 * WIDTH, color="#DCDFE3")
        if b["n"]:
            axes.hlines(b["centre"], b["low"], b["high"], color=s.BLACK, linewidth=1)
            axes.hlines(
                b["centre"], b["mean"] - b["sd"], b["mean"] + b["sd"], color=s.BLUE, linewidth=4
            )
            axes.plot(b["mean"], b["centre"], "o", color="white", markersize=3)
        axes.annotate(
            f"n = {b['n']}",
            (1, b["centre"]),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 0),
            textcoords="offset points",
            fontsize=7.5,
            ha="right",
            va="center",
        )
    axes.annotate(
        "the paper's 0.2 to 0.6",
        (0.4, 2.5 * WIDTH),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=7.5,
        color=s.GREEN,
    )
    axes.annotate(
        "grey: all that a softmax allows",
        (0.03, 0.02),
        xycoords="axes fraction",
        fontsize=7.5,
        color="#555555",
    )
    axes.set(
        xlabel="$p_y$: mean ± SD (thick), range (thin)",
        ylabel="margin, bins of 0.05",
        xlim=(0, 0.78),
        yticks=[b["centre"] for b in bins],
        ylim=(-3.1 * WIDTH, 3.1 * WIDTH),
        title="b  At one margin",
    )


def _spread(b: dict) -> str:
    if b["n"] < 3:
        return "too few examples to say"
    low, high = b["span"][1:]
    return (
        f"SD {b['sd']:.3f}, range {b['low']:.2f} to {b['high']:.2f}, middle 90 % over "
        f"{b['span'][0]:.2f} "
        f"[{low:.2f}, {high:.2f}]"
    )


def _one_margin(b: dict) -> Claim:
    """With a single rival class a bin's width lets p_y vary by 0.025; more than 0.1 is no matter of
    rounding.
    """
    enough = b["n"] >= 10
    return Claim(
        "examples of about equal margin differ in p_y: 90 % of them by more than 0.1 (MR s. 3.1, "
        "Fig. 2)",
        "p_y from 0.2 to 0.6",
        f"margin near {b['centre']:g}, n = {b['n']}: {_spread(b)}",
        holds=enough and b["span"][1] > 0.1,
        fails=enough and b["span"][2] < 0.1,
    )


# ------------------------------------------------------------------------------------ Figs. 3 and 4


def similarity_pair(
    run: Run,
    *,
    low: int = -1,
    high: int = -1,
    which: Literal["nat", "adv"] = "adv",
    split: Literal["train", "test"] = "test",
) -> Drawing:
    """Bars of p and of p' (its true entry masked) for an unsure and a sure example, with the cosine
    c of the two.

    `low` and `high` are image ids to show instead of those with p_y nearest to 0.2 and to 0.95.
    """
    probs, y = read(run, split, which)
    ids, c = run.final[f"{split}_ids"], true_class_similarity(probs, y).numpy()
    p_y = probs.gather(1, y[:, None]).squeeze(1).numpy()
    rows = {"low": _row(ids, low, p_y, 0.2, split), "high": _row(ids, high, p_y, 0.95, split)}
    classes, count = run.record["classes"], probs.shape[1]
    drawing = Drawing(7.6, 3.0)
    panels = drawing.subplots(1, 2, sharey=True)
    for panel, (name, row), letter in zip(panels, rows.items(), "ab", strict=True):
        p, truth, place = probs[row].numpy(), int(y[row]), np.arange(count)
        panel.bar(
            place - 0.2, p, width=0.4, color=np.where(place == truth, s.VERMILLION, "#C9CDD2")
        )
        panel.bar(place + 0.2, np.where(place == truth, 0, p), width=0.4, color=s.BLUE)
        panel.set(
            xlabel=f"class (image {ids[row]}, true class {classes[truth]}, $p_y$ = {p[truth]:.2f})",
            ylim=(0, 1.08),
            title=f"{letter}  {name.title()} confidence: c = {c[row]:.2f}",
        )
        panel.set_xticks(range(count) if count <= 20 else [])
        if count <= 20:
            panel.set_xticklabels(classes, rotation=0 if len(str(classes[0])) < 3 else 45)
    panels[0].set_ylabel(f"probability, {KINDS[which]}")
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
    found = {
        name: {
            "id": int(ids[row]),
            "y": int(y[row]),
            "p_y": float(p_y[row]),
            "c": float(c[row]),
            "p": probs[row].numpy(),
        }
        for name, row in rows.items()
    }
    order = p_y.argsort(kind="stable")
    tenth = max(1, len(y) // 10)
    drop = bootstrap(lambda draw: _lowest_minus_highest(p_y[draw], c[draw], tenth), len(y))
    drawing.facts = {
        "n": len(y),
        "which": which,
        "split": split,
        "examples": found,
        "drop": drop,
        "median_low": float(np.median(c[order[:tenth]])),
        "median_high": float(np.median(c[order[-tenth:]])),
    }
    f = drawing.facts
    drawing.claims = [
        Claim(
            "similarity is large at low and small at high confidence (MR s. 3.3, Fig. 3)",
            "two examples, no numbers",
            f"median c {f['median_low']:.2f} in the tenth of lowest p_y, {f['median_high']:.2f} in "
            f"that of highest; difference "
            f"{drop[0]:+.2f} [{drop[1]:+.2f}, {drop[2]:+.2f}], n = {len(y)}",
            holds=drop[1] > 0.5,
            fails=drop[2] < 0.5,
        )
    ]
    drawing.caption = (
        "MR Fig. 3 claims that p and p' (p without its true entry) are similar at low confidence "
        "and not at high. "
        f"{s.label(run.method)} on {setting(run)}, two {split} images {KINDS[which]}: c = "
        f"{found['low']['c']:.2f} at p_y = "
        f"{found['low']['p_y']:.2f}, c = {found['high']['c']:.2f} at p_y = "
        f"{found['high']['p_y']:.2f}. Of all {len(y)} the "
        f"tenth with the lowest p_y has median c = {f['median_low']:.2f}, that with the highest "
        f"{f['median_high']:.2f}."
    )
    return drawing


def _row(ids: np.ndarray, asked: int, p_y: np.ndarray, near: float, split: str) -> int:
    """The row of the image that was asked for, or of the one with p_y nearest to `near`."""
    if asked < 0:
        return int(np.abs(p_y - near).argmin())
    if asked not in ids:
        raise KitError(
            f"there is no {split} image {asked} in this run; its ids are {ids.min()} to "
            f"{ids.max()}, such as "
            f"{', '.join(map(str, ids[:3]))}. Leave it out to have one chosen"
        )
    return int(np.flatnonzero(ids == asked)[0])


def _lowest_minus_highest(p_y: np.ndarray, c: np.ndarray, tenth: int) -> float:
    """Median c of the `tenth` examples with the lowest p_y minus that of those with the highest."""
    order = p_y.argsort(kind="stable")
    return float(np.median(c[order[:tenth]]) - np.median(c[order[-tenth:]]))


def bounds(p_y: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(lowest, highest) similarity c that a softmax over k classes can have at p_y: the rest even,
    or in one class.

    From c² = R / (p_y² + R), where R, the squares of the other entries, lies between (1-p_y)²/(k-1)
    and (1-p_y)².
    """
    q = 1 - p_y
    return q / np.sqrt((k - 1) * p_y**2 + q**2), q / np.sqrt(p_y**2 + q**2)


def _follows_error(which: str, r: tuple[float, float, float], n: int) -> Claim:
    """r = 0.98 was printed; 0.95 and more counts as confirmed."""
    return Claim(
        f"similarity follows the incorrect rate, images {KINDS[which]} (MR App. D, Eq. 23, Fig. 4)",
        "r = 0.98",
        f"r = {r[0]:.3f} [{r[1]:.3f}, {r[2]:.3f}], n = {n}",
        holds=r[1] >= 0.95,
        fails=r[2] < 0.95,
    )


def similarity_by_error(run: Run, *, split: Literal["train", "test"] = "test") -> Drawing:
    """Similarity c against the incorrect rate 1 - p_y, natural and under attack, between the bounds
    of any softmax.
    """
    drawing = Drawing(7.4, 3.5)
    panels, grid, facts = drawing.subplots(1, 2, sharey=True), np.linspace(0, 1, 201), {}
    for panel, (which, words), letter in zip(panels, KINDS.items(), "ab", strict=True):
        probs, y = read(run, split, which)
        p_y, c = (
            probs.gather(1, y[:, None]).squeeze(1).numpy(),
            true_class_similarity(probs, y).numpy(),
        )
        k, r = probs.shape[1], correlation(1 - p_y, c)
        lowest, highest = bounds(1 - grid, k)
        panel.fill_between(grid, lowest, highest, color="#EEF0F2", linewidth=0, zorder=0)
        for curve in (lowest, highest):
            panel.plot(grid, curve, color=s.GREY, linewidth=1)
        panel.scatter(1 - p_y, c, s=9, color=s.BLUE, alpha=0.5, linewidth=0, zorder=2)
        panel.annotate(
            "one rival class",
            (0.20, 0.245),
            xytext=(0.03, 0.55),
            fontsize=7.5,
            color="#555555",
            arrowprops={"arrowstyle": "-", "color": s.GREY, "linewidth": 0.7},
        )
        panel.annotate(
            "rest even",
            (grid[140], lowest[140]),
            xytext=(0.78, 0.36),
            fontsize=7.5,
            color="#555555",
            arrowprops={"arrowstyle": "-", "color": s.GREY, "linewidth": 0.7},
        )
        panel.annotate(
            f"$r$ = {r[0]:.3f}\n[{r[1]:.3f}, {r[2]:.3f}]",
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
            title=f"{letter}  {s.label(run.method)}, {words}, n = {len(y)}",
        )
        low, high = bounds(p_y, k)
        facts[which] = {
            "n": len(y),
            "pearson": r,
            "outside": int(((c < low - 1e-9) | (c > high + 1e-9)).sum()),
            "on_the_bounds": {
                "rest even": pearson(1 - p_y, low),
                "one rival": pearson(1 - p_y, high),
            },
        }
    panels[0].set_ylabel("similarity $c$ (Eq. 11)")
    drawing.facts = {"split": split, "kinds": facts}
    drawing.claims = [_follows_error(which, f["pearson"], f["n"]) for which, f in facts.items()]
    forced = [value for f in facts.values() for value in f["on_the_bounds"].values()]
    drawing.caption = (
        f"MR Fig. 4 claims r = 0.98 between 1 - p_y and the similarity c. {s.label(run.method)} on "
        f"{setting(run)}, {split} "
        "images: "
        + "; ".join(
            f"{KINDS[which]} r = {f['pearson'][0]:.3f} [{f['pearson'][1]:.3f}, "
            f"{f['pearson'][2]:.3f}], "
            f"n = {f['n']}"
            for which, f in facts.items()
        )
        + ". 0.95 counts as confirmed. Grey: all that a softmax allows; with every image on an "
        "edge of it, r would be "
        f"{min(forced):.2f} to {max(forced):.2f}, so the definition of c alone makes it large."
    )
    return drawing
