"""MAIL's objection to counting steps:

LPS depends on the path, on its start and on the attack. Figs. 1a and 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from kit.attacks.contract import AttackTrace
from kit.attacks.line_search_pgd import lmpgd
from kit.attacks.projected_gradient_descent import pgd
from kit.core import tensors
from kit.core.errors import KitError
from kit.core.parameters import Count, Natural, Range, check_value
from kit.core.random_streams import Streams
from kit.core.threat import Threat
from kit.data.splits import Split
from kit.evaluation.statistics import wilson
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing
from kit.figures.gallery import chosen, first_images
from kit.figures.reading import setting
from kit.methods.criteria import probabilistic_margin

ATTACKERS = {"PGD": s.BLUE, "LM-PGD": s.VERMILLION}


# -------------------------------------------------------------------------------------------- paths


@dataclass(frozen=True)
class Walk:
    """What one attack did to N images at its `steps` evaluation points, the start included."""

    lps: np.ndarray  # (N,) int64 first misclassified point, `steps` where none was
    loss: np.ndarray  # (steps, N) cross-entropy, nats
    margin: np.ndarray  # (steps, N) PM
    points: Tensor  # (steps, C, H, W) the points of one image

    @property
    def pm(self) -> np.ndarray:
        """(N,) PM at the last point."""
        return self.margin[-1]


def walk(attack: Callable[..., object], y: Tensor, steps: int, follow: int = 0) -> Walk:
    """Run `attack(watch)` on labels `y` (N,) and keep what its watch is shown; `points` are those
    of image `follow`.
    """
    path, loss, margin, points = AttackTrace(y, steps), [], [], []

    def watch(t: int, x_t: Tensor, logits: Tensor) -> None:
        path(t, x_t, logits)
        loss.append(tensors.per_example_cross_entropy(logits, y))
        margin.append(probabilistic_margin(logits.double().softmax(dim=1), y))
        points.append(x_t[follow])

    attack(watch)
    return Walk(
        path.lps.cpu().numpy(),
        torch.stack(loss).cpu().numpy(),
        torch.stack(margin).cpu().numpy(),
        torch.stack(points).cpu(),
    )


def race(
    model: nn.Module, images: Split, threat: Threat, steps: int, follow: int = 0
) -> dict[str, Walk]:
    """PGD and LM-PGD from the clean images, with steps of 2.5 eps / steps (LM-PGD's search tries ¼
    to 4 of that).
    """
    x, y, length = images.x(), images.y, 2.5 * threat.eps / steps
    return {
        "PGD": walk(
            lambda watch: pgd(
                model, x, y, threat, watch=watch, steps=steps, step_size=length, init="none"
            ),
            y,
            steps,
            follow,
        ),
        "LM-PGD": walk(
            lambda watch: lmpgd(model, x, y, threat, watch=watch, steps=steps, step_size=length),
            y,
            steps,
            follow,
        ),
    }


def from_start(
    model: nn.Module, images: Split, threat: Threat, steps: int, step_size: float, number: int
) -> Walk:
    """PGD from random start `number`; what an example draws depends on its id and that number
    alone.
    """
    x, y, streams = images.x(), images.y, Streams(images.ids, "starts", number)
    return walk(
        lambda watch: pgd(
            model, x, y, threat, watch=watch, steps=steps, step_size=step_size, generator=streams
        ),
        y,
        steps,
    )


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """(median, low, high):

    the 95 % interval between order statistics, whatever the distribution; below n = 6 the range.
    """
    ordered, n = np.sort(values), len(values)
    below = int(stats.binom.ppf(0.025, n, 0.5))
    return (
        float(np.median(ordered)),
        float(ordered[max(below - 1, 0)]),
        float(ordered[min(n - below, n - 1)]),
    )


def rank_correlations(
    lps: tuple[np.ndarray, np.ndarray], pm: tuple[np.ndarray, np.ndarray]
) -> dict:
    """Spearman's correlation of two LPS and of two PM of the same n images, and PM's minus LPS's
    with a 95 % interval.

    The interval is a bootstrap over images (1,000 draws from a fixed seed). All None where a
    quantity is constant.
    """

    def rho(pair: tuple[np.ndarray, np.ndarray], rows: np.ndarray) -> float:
        first, second = (stats.rankdata(values[rows]) for values in pair)
        apart = first.std() * second.std()
        return (
            float(((first - first.mean()) * (second - second.mean())).mean() / apart)
            if apart > 0
            else float("nan")
        )

    n = len(lps[0])
    whole, random = np.arange(n), np.random.default_rng(0)
    if n < 3 or not np.isfinite([rho(lps, whole), rho(pm, whole)]).all():
        return dict.fromkeys(("lps", "pm", "difference", "low", "high")) | {"n": n}
    draws = [
        rho(pm, rows) - rho(lps, rows) for rows in (random.integers(0, n, n) for _ in range(1000))
    ]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return {
        "n": n,
        "lps": rho(lps, whole),
        "pm": rho(pm, whole),
        "difference": rho(pm, whole) - rho(lps, whole),
        "low": float(low),
        "high": float(high),
    }


def follows(claim: str, found: dict, over: str) -> Claim:
    """PM keeps the order of the examples better than LPS:

    the difference of their rank correlations lies above 0.
    """
    printed = "one example, no numbers for PM"
    if found["lps"] is None:
        return Claim(
            claim,
            printed,
            f"all {found['n']} {over} have one LPS: no correlation",
            holds=False,
            fails=False,
        )
    return Claim(
        claim,
        printed,
        f"Spearman {found['lps']:.3f} for LPS, {found['pm']:.3f} for PM, difference "
        f"{found['difference']:+.3f} "
        f"[{found['low']:+.3f}, {found['high']:+.3f}], {found['n']} {over}",
        holds=found["low"] > 0,
        fails=found["high"] < 0,
    )


# ------------------------------------------------------------------------------------ random starts


def starts(
    run: Run, *, count: int = 20, examples: str = "", n: int = 200, steps: int = 0
) -> Drawing:
    """LPS of chosen test images over `count` random starts of PGD, and how far it moves over the
    first `n` images.

    `examples`: numbers of images below `n` ("": the six whose LPS moves most). `steps` 0: the
    training attack's; the steps' length is the training attack's share of eps in any case.
    """
    check_value("count", count, Annotated[int, Range(2)])
    check_value("steps", steps, Natural)
    recipe = run.plan.recipe
    model, images = first_images(run, n)
    steps, shown = steps or recipe.steps, chosen(examples, n)
    walks = [
        from_start(model, images, recipe.threat, steps, recipe.step * recipe.eps, i)
        for i in range(count)
    ]
    lps, pm = np.stack([w.lps for w in walks]), np.stack([w.pm for w in walks])
    spread = lps.max(axis=0) - lps.min(axis=0)
    shown = shown or np.argsort(-spread, kind="stable")[:6].tolist()
    drawing = Drawing(7.6, 3.2)
    left, right = drawing.subplots(1, 2, width_ratios=(3, 2))
    _dots(left, lps, shown, steps)
    tally = np.bincount(spread, minlength=3)
    _bars(right, tally)
    moved, torn = (
        _share(spread >= 2),
        _share((lps == steps).any(axis=0) & (lps < steps).any(axis=0)),
    )
    drawing.facts = {
        "n": n,
        "count": count,
        "steps": steps,
        "examples": {row: lps[:, row] for row in shown},
        "spread": tally,
        "moved": moved,
        "torn": torn,
        "rank": rank_correlations((lps[0], lps[1]), (pm[0], pm[1])),
    }
    drawing.claims = [
        Claim(
            "LPS depends on the start: it moves in more than 5 % of the images (MAIL s. 2.2)",
            "no numbers for starts",
            f"moves by 2 steps or more in {_said(moved)} over {count} starts",
            holds=moved["low"] > 0.05,
            fails=moved["high"] < 0.05,
        ),
        follows(
            "PM depends less on the start than LPS does (MAIL s. 3.1)",
            drawing.facts["rank"],
            "images, two starts",
        ),
    ]
    drawing.caption = (
        f"MAIL s. 2.2 claims that LPS depends on the path. {s.label(run.method)} on "
        f"{setting(run)}, PGD-{steps} from "
        f"{count} random starts: LPS moves by 2 steps or more in {_said(moved)} images; "
        f"{_said(torn)} survive every step "
        "from one start and fall from another. Left, size of a dot and number beside it: how many "
        "starts gave that LPS."
    )
    return drawing


def _bars(axes, tally: np.ndarray) -> None:
    """How many images' LPS moves by 0, 1, 2, ... steps; from 2 on in colour."""
    axes.bar(
        range(len(tally)),
        tally,
        color=[s.BLUE if k >= 2 else "#C9CDD2" for k in range(len(tally))],
        width=0.8,
    )
    for k, c in enumerate(tally):
        axes.annotate(
            f"{c}", (k, c), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=7.5
        )
    axes.set(
        xlabel="largest minus smallest LPS",
        ylabel=f"test images (of {tally.sum()})",
        title="How far LPS moves",
        ylim=(0, tally.max() * 1.12),
    )
    axes.xaxis.get_major_locator().set_params(integer=True)


def _dots(axes, lps: np.ndarray, shown: list[int], steps: int) -> None:
    """A column for each image of `shown`:

    the values that LPS (starts, N) took, and from how many starts.
    """
    for place, row in enumerate(shown):
        values, counts = np.unique(lps[:, row], return_counts=True)
        axes.vlines(place, values[0], values[-1], color="#C9CDD2", linewidth=1)
        axes.scatter(
            [place] * len(values),
            values,
            s=14 + 160 * counts / len(lps),
            color=s.BLUE,
            linewidth=0,
            zorder=2,
        )
        for value, times in zip(values, counts, strict=True):
            axes.annotate(
                f"{times}",
                (place, value),
                xytext=(9, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
                color="#555555",
            )
    axes.set(
        xticks=range(len(shown)),
        xlim=(-0.6, len(shown) - 0.3),
        ylim=(-0.6, steps + 0.6),
        xlabel="test image",
        ylabel=f"LPS, {steps} = never",
        title=f"{len(lps)} random starts",
    )
    axes.set_xticklabels(shown)


def _share(hit: np.ndarray) -> dict:
    k, n = int(hit.sum()), len(hit)
    low, high = wilson(k, n)
    return {"k": k, "n": n, "share": k / max(n, 1), "low": low, "high": high}


def _said(share: dict) -> str:
    return f"{share['k']} of {share['n']} ({share['share']:.1%} [{share['low']:.1%}, {share['high']:.1%}])"


# -------------------------------------------------------------------------------------- two attacks


def two_attacks(run: Run, *, example: int = -1, n: int = 200, steps: Count = 50) -> Drawing:
    """PGD and LM-PGD from the clean image: loss along the path of one image, and LPS and PM of the
    first `n` under both.

    `example`: the number of an image below `n`; -1 is the one whose LPS differs most. LPS and PM
    are taken at the attacks' evaluation points, the start included; PM at the last. Steps of 2.5
    eps / `steps`, see `race`.
    """
    check_value("steps", steps, Count)
    model, images = first_images(run, n)
    row = chosen(str(example), n)[0] if example != -1 else -1
    walks = race(model, images, run.plan.recipe.threat, steps)
    a, b = walks["PGD"], walks["LM-PGD"]
    row = row if row >= 0 else widest(walks)
    drawing = Drawing(8.8, 3.0)
    left, middle, right = drawing.subplots(1, 3)
    _along(left, walks, {name: w.loss[:, row] for name, w in walks.items()}, row)
    left.set(ylabel="cross-entropy / nats", title=f"a  Test image {row}", box_aspect=1)
    pairs, counts = np.unique(np.stack([a.lps, b.lps]), axis=1, return_counts=True)
    middle.scatter(*pairs, s=10 + 400 * counts / n, color=s.BLUE, alpha=0.55, linewidth=0)
    middle.annotate(
        f"{counts.max()}", pairs[:, counts.argmax()], ha="center", va="center", fontsize=7
    )
    right.scatter(a.pm, b.pm, s=11, color=s.BLUE, alpha=0.55, linewidth=0)
    for axes, low, high, title in (
        (middle, 0, steps, "b  LPS"),
        (right, -1, 1, "c  PM at the end"),
    ):
        axes.plot([low, high], [low, high], color=s.BLACK, linewidth=0.8, linestyle="--", zorder=0)
        pad = 0.08 * (high - low)
        axes.set(
            xlabel="under PGD",
            ylabel="under LM-PGD",
            title=title,
            box_aspect=1,
            xlim=(low - pad, high + pad),
            ylim=(low - pad, high + pad),
        )
    drawing.facts = compare(walks, steps) | {
        "n": n,
        "steps": steps,
        "example": {
            "row": row,
            "id": int(images.ids[row]),
            "lps": {name: int(w.lps[row]) for name, w in walks.items()},
        },
    }
    drawing.claims = _attack_claims(drawing.facts)
    difference, either = drawing.facts["difference"], drawing.facts["n_either"]
    drawing.caption = (
        f"MAIL Fig. 1a shows an example with LPS 50 under PGD and 14 under LM-PGD. "
        f"{s.label(run.method)} on {setting(run)}, "
        f"{steps} steps from the clean image, first {n} test images: of those that survive every "
        f"PGD step, "
        f"{_said(drawing.facts['hidden'])} fall to LM-PGD. "
        + (
            f"Median LPS under PGD minus LM-PGD, {either} images that either breaks after the "
            f"start: {difference[0]:+g} "
            f"[{difference[1]:+g}, {difference[2]:+g}]. "
            if difference
            else "Neither breaks any after the start. "
        )
        + f"Mean change between the attacks, as a share of the full range: LPS "
        f"{drawing.facts['change']['lps']:.3f}, PM "
        f"{drawing.facts['change']['pm']:.3f}."
    )
    return drawing


def widest(walks: dict[str, Walk]) -> int:
    """The image whose LPS falls most from PGD to LM-PGD; the first of equals."""
    return int((walks["PGD"].lps - walks["LM-PGD"].lps).argmax())


def compare(walks: dict[str, Walk], steps: int) -> dict:
    """What LPS and PM of the same images have in common under two attacks, and how far each moves."""
    a, b = walks["PGD"], walks["LM-PGD"]
    right = a.lps > 0  # both start at the clean image
    either, both = (
        right & ((a.lps < steps) | (b.lps < steps)),
        right & (a.lps < steps) & (b.lps < steps),
    )
    return {
        "lps": {name: w.lps for name, w in walks.items()},
        "hidden": _share((b.lps < steps)[a.lps == steps]),
        "n_either": int(either.sum()),
        "difference": median_interval((a.lps - b.lps)[either]) if either.any() else None,
        "change": {
            "lps": float(np.abs(a.lps - b.lps).mean() / steps),
            "pm": float(np.abs(a.pm - b.pm).mean() / 2),
        },
        "rank": rank_correlations((a.lps, b.lps), (a.pm, b.pm)),
        "rank_both": rank_correlations((a.lps[both], b.lps[both]), (a.pm[both], b.pm[both])),
    }


def _attack_claims(facts: dict) -> list[Claim]:
    hidden, difference = facts["hidden"], facts["difference"]
    words = "none breaks"
    if difference:
        words = f"{difference[0]:+g} [{difference[1]:+g}, {difference[2]:+g}], {facts['n_either']} images that either breaks"
    return [
        Claim(
            "an example that survives every PGD step falls to LM-PGD (MAIL Fig. 1a)",
            "LPS 50 under PGD, 14 (caption) or 15 (text) under LM-PGD",
            f"{_said(hidden)} of PGD's survivors",
            holds=hidden["k"] > 0,
            fails=False,
        ),
        Claim(
            "LPS depends on the path: LM-PGD crosses earlier than PGD (MAIL s. 2.2)",
            "one example",
            f"median difference {words}, of {facts['steps']} steps",
            holds=bool(difference) and difference[1] > 0,
            fails=bool(difference) and difference[2] <= 0,
        ),
        follows(
            "PM depends less on the attack than LPS does: order of all images (MAIL s. 3.1)",
            facts["rank"],
            "images",
        ),
        follows(
            "PM depends less on the attack than LPS does: images that both break (MAIL s. 3.1)",
            facts["rank_both"],
            "images",
        ),
    ]


def _along(axes, walks: dict[str, Walk], values: dict[str, np.ndarray], row: int) -> None:
    """One image's `values` (steps,) at the evaluation points of each attack, with a dot at the
    first misclassified one.
    """
    for (name, w), tint in zip(walks.items(), ATTACKERS.values(), strict=True):
        lps, steps = int(w.lps[row]), len(values[name])
        label = f"{name}, LPS {lps}" + (" = never" if lps == steps else "")
        axes.plot(range(steps), values[name], color=tint, label=label)
        if lps < steps:
            axes.plot(lps, values[name][lps], "o", color=tint, markersize=6)
    axes.set_xlabel("evaluation point")
    axes.legend(loc="best")


# ---------------------------------------------------------------------------------------- the plane


def plane(run: Run, *, example: int = -1, n: int = 200, steps: Count = 50) -> Drawing:
    """The plane through a test image, its PGD end and its LM-PGD end, coloured by class, with both
    paths projected on it; and PM along both paths. `example`, `n` and `steps` as in `two_attacks`.

    Errors: `KitError` where PGD does not move the image, since then there is no plane.
    """
    check_value("steps", steps, Count)
    threat = run.plan.recipe.threat
    model, images = first_images(run, n)
    row = (
        chosen(str(example), n)[0] if example != -1 else widest(race(model, images, threat, steps))
    )
    one = images.take(slice(row, row + 1))
    walks, x = race(model, one, threat, steps), one.x()[0].cpu()
    axes_of = directions(walks, x, row)
    on, off = projected(walks, x, axes_of)
    drawing = Drawing(8.0, 3.5)
    left, right = drawing.subplots(1, 2, width_ratios=(5, 4))
    seen = _regions(
        left,
        model,
        one,
        threat,
        axes_of,
        torch.cat(list(on.values())).numpy(),
        run.record["classes"],
    )
    truth = int(one.y[0])
    for (name, w), tint in zip(walks.items(), ATTACKERS.values(), strict=True):
        along, lps = on[name].numpy(), int(w.lps[0])
        left.plot(*along.T, color=tint, marker=".", markersize=3, linewidth=1.2)
        if lps < steps:
            left.plot(*along[lps], "o", color=tint, markersize=7, markeredgecolor="white")
    left.plot(0, 0, "*", color=s.BLACK, markersize=10)
    left.set(
        xlabel="towards PGD's end (L2, pixels)",
        ylabel="towards LM-PGD's end, at right angles",
        aspect="equal",
        title=f"Test image {row}, class {run.record['classes'][truth]}",
    )
    _along(right, walks, {name: w.margin[:, 0] for name, w in walks.items()}, 0)
    right.axhline(0, color=s.BLACK, linewidth=0.8, linestyle="--")
    right.set(ylabel="PM along the path", title="LPS jumps, PM glides")
    drawing.facts = {
        "row": row,
        "id": int(one.ids[0]),
        "y": truth,
        "steps": steps,
        "classes": seen,
        "off_plane": off,
        "ends": {name: values[-1].tolist() for name, values in on.items()},
        "lps": {name: int(w.lps[0]) for name, w in walks.items()},
        "pm": {name: float(w.pm[0]) for name, w in walks.items()},
    }
    drawing.caption = (
        f"MAIL Fig. 2 as data. {s.label(run.method)} on {setting(run)}, test image {row} (star), "
        f"{steps} steps of PGD and "
        "LM-PGD. Left: the class of each point of the plane through the image and both ends, which "
        "leaves [0, 1] in places; "
        "dashed, the ball; large dots, the first misclassified points. Paths are projected, and "
        "lie off the plane by up to "
        f"{max(off.values()):.0%} of their reach, so a dot may lie in another colour than its "
        f"class. Right: PM at the same "
        "points."
    )
    return drawing


def directions(walks: dict[str, Walk], x: Tensor, row: int) -> Tensor:
    """(2, d) orthonormal: towards PGD's last point, and what is at right angles to it on the way to
    LM-PGD's.

    Where both end on one line through the image, the second direction is random from a fixed seed.
    """
    first, second = ((walks[name].points[-1] - x).flatten().double() for name in ATTACKERS)
    length = float(first.norm())
    if length == 0:
        raise KitError(
            f"PGD did not move test image {row}, so it spans no plane; choose another example"
        )
    first = first / length
    second = second - (second @ first) * first
    if float(second.norm()) < 1e-6 * length:
        second = torch.randn(
            len(first), generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        second = second - (second @ first) * first
    return torch.stack([first, second / second.norm()])


def projected(
    walks: dict[str, Walk], x: Tensor, axes_of: Tensor
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Of each path the coordinates (steps, 2) on the plane, and its largest distance from the plane
    over that from `x`.
    """
    on, off = {}, {}
    for name, w in walks.items():
        delta = (w.points - x).flatten(1).double()
        on[name] = delta @ axes_of.T
        off[name] = float(
            (delta - on[name] @ axes_of).norm(dim=1).max()
            / delta.norm(dim=1).max().clamp_min(1e-12)
        )
    return on, off


def _regions(
    axes,
    model: nn.Module,
    one: Split,
    threat: Threat,
    axes_of: Tensor,
    reach: np.ndarray,
    classes: list[str],
) -> list[str]:
    """Colours the plane around the points `reach` (m, 2) by predicted class, with the ball's edge.

    -> classes that occur.
    """
    from matplotlib.colors import ListedColormap, to_rgb
    from matplotlib.patches import Patch

    low, high = reach.min(axis=0), reach.max(axis=0)
    pad = 0.3 * max(high - low)
    a, b = (np.linspace(low[k] - pad, high[k] + pad, 91) for k in (0, 1))
    grid = torch.from_numpy(np.stack(np.meshgrid(a, b), axis=-1).reshape(-1, 2))
    x = one.x()
    points = (x + (grid @ axes_of).view(-1, *x.shape[1:]).to(x)).split(512)
    with torch.no_grad():
        said = torch.cat([model(chunk).argmax(dim=1) for chunk in points]).cpu().numpy()
        beyond = (
            torch.cat([tensors.norm(chunk - x, threat.norm) for chunk in points]).cpu().numpy()
            - threat.eps
        )
    there, place = np.unique(said, return_inverse=True)
    tints = [s.SKY, s.ORANGE, s.GREEN, s.PURPLE, s.YELLOW, s.GREY]
    others = iter(tints * len(classes))
    pale = [
        "#FFFFFF" if k == int(one.y[0]) else tuple(0.45 + 0.55 * c for c in to_rgb(next(others)))
        for k in there
    ]
    axes.pcolormesh(
        a,
        b,
        place.reshape(len(b), len(a)),
        cmap=ListedColormap(pale),
        vmin=-0.5,
        vmax=len(there) - 0.5,
        rasterized=True,
        shading="nearest",
    )
    axes.contour(
        a,
        b,
        beyond.reshape(len(b), len(a)),
        levels=[0],
        colors=[s.BLACK],
        linewidths=0.8,
        linestyles="--",
    )
    names = [
        Patch(facecolor=tint, edgecolor=s.GREY, label=classes[k])
        for k, tint in zip(there, pale, strict=True)
    ]
    axes.legend(
        handles=names,
        loc="upper left",
        fontsize=7,
        handlelength=1,
        title="class",
        title_fontsize=7,
        frameon=True,
        framealpha=0.8,
    )
    return [classes[k] for k in there]
