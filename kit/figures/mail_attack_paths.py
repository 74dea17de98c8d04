"""MAIL Fig. 1a: attack steps survived (LPS) depend on the start and on the attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from kit.attacks.contract import AttackTrace
from kit.attacks.line_search_pgd import LINE_SEARCH, lmpgd
from kit.attacks.projected_gradient_descent import pgd
from kit.core import tensors
from kit.core.parameters import Count, Natural, NonNegative, Range, check_value
from kit.core.random_streams import Streams
from kit.core.threat import Threat
from kit.data.splits import Split
from kit.evaluation.statistics import (
    bootstrap_interval,
    median_interval,
    rank_correlation,
    share_with_interval,
)
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.attacked_images import first_images, parse_image_numbers
from kit.figures.base import Claim, Drawing, FigureData, format_counted
from kit.figures.run_outputs import describe_setting
from kit.methods.criteria import probabilistic_margin
from kit.papers.claim_verdict import Estimate

#: Lengths of steps, as shares of eps, that are compared with the paper's.
OTHER_STEPS = (1 / 20, 1 / 10)

#: {where LM-PGD looks for a step: its longest, in steps of PGD}.
SEARCHES = {"around": max(LINE_SEARCH), "up to": 1}

PATH_COLOURS = {"PGD": s.BLUE, "LM-PGD": s.VERMILLION}


# -------------------------------------------------------------------------------------------- paths


@dataclass(frozen=True)
class AttackPath:
    """What one attack did to N images at its `steps` evaluation points, the start included."""

    lps: np.ndarray  # (N,) int64 first misclassified point, `steps` where none was
    loss: np.ndarray  # (steps, N) cross-entropy, nats
    margin: np.ndarray  # (steps, N) PM
    points: Tensor  # (steps, C, H, W) the points of one image

    @property
    def pm(self) -> np.ndarray:
        """(N,) PM at the last point."""
        return self.margin[-1]


def record_path(
    attack: Callable[..., object], y: Tensor, steps: int, follow: int = 0
) -> AttackPath:
    """Run `attack(watch)` on labels `y` (N,) and keep what its watch is shown.

    The points are those of image `follow`.
    """
    path = AttackTrace(y, steps)
    loss: list[Tensor] = []
    margin: list[Tensor] = []
    points: list[Tensor] = []

    def watch(t: int, x_t: Tensor, logits: Tensor) -> None:
        path(t, x_t, logits)
        loss.append(tensors.per_example_cross_entropy(logits, y))
        margin.append(probabilistic_margin(logits.double().softmax(dim=1), y))
        points.append(x_t[follow])

    attack(watch)
    assert path.lps is not None, "the attack has called its watch"
    return AttackPath(
        path.lps.cpu().numpy(),
        torch.stack(loss).cpu().numpy(),
        torch.stack(margin).cpu().numpy(),
        torch.stack(points).cpu(),
    )


def record_both_attacks(
    model: nn.Module,
    images: Split,
    threat: Threat,
    steps: int,
    step: float,
    *,
    follow: int = 0,
    longest: float = max(LINE_SEARCH),
) -> dict[str, AttackPath]:
    """Run PGD and LM-PGD from the clean images, PGD with steps of `step` eps.

    LM-PGD's search tries steps of up to `longest` times PGD's; at 4 it tries ¼ to 4 of it.
    """
    x, y, length = images.x(), images.y, step * threat.eps
    search = length * longest / max(LINE_SEARCH)
    return {
        "PGD": record_path(
            lambda watch: pgd(
                model, x, y, threat, watch=watch, steps=steps, step_size=length, init="none"
            ),
            y,
            steps,
            follow,
        ),
        "LM-PGD": record_path(
            lambda watch: lmpgd(model, x, y, threat, watch=watch, steps=steps, step_size=search),
            y,
            steps,
            follow,
        ),
    }


def record_from_start(
    model: nn.Module, images: Split, threat: Threat, steps: int, step_size: float, number: int
) -> AttackPath:
    """Run PGD from random start `number`.

    What an example draws depends on its id and that number alone.
    """
    x, y, streams = images.x(), images.y, Streams(images.ids, "starts", number)
    return record_path(
        lambda watch: pgd(
            model, x, y, threat, watch=watch, steps=steps, step_size=step_size, generator=streams
        ),
        y,
        steps,
    )


def compare_ranks(
    lps: tuple[np.ndarray, np.ndarray], pm: tuple[np.ndarray, np.ndarray]
) -> dict[str, float | None]:
    """Spearman's correlation of two LPS and of two PM of the same n images, and the difference.

    The difference is PM's minus LPS's, its 95 % interval a bootstrap over images. All None where a
    quantity is constant.
    """

    def difference(rows: np.ndarray) -> float:
        of_pm, of_lps = (rank_correlation(pair[0][rows], pair[1][rows]) for pair in (pm, lps))
        return of_pm - of_lps

    n = len(lps[0])
    of_lps, of_pm = (rank_correlation(*pair) if n >= 3 else float("nan") for pair in (lps, pm))
    if not np.isfinite([of_lps, of_pm]).all():
        return dict.fromkeys(("lps", "pm", "difference", "low", "high")) | {"n": n}
    middle, low, high = bootstrap_interval(difference, n)
    return {"n": n, "lps": of_lps, "pm": of_pm, "difference": middle, "low": low, "high": high}


def decide_rank_order(claim: str, found: dict, over: str) -> Claim:
    """Decide whether PM keeps the order of the examples better than LPS does.

    The difference of their rank correlations, see `compare_ranks`, must lie above 0.
    """
    printed = "one example, no numbers for PM"
    if found["lps"] is None:
        return Claim(
            claim,
            printed,
            f"all {found['n']} {over} have one LPS: no correlation",
            number=93,
        )
    return Claim(
        claim,
        printed,
        f"Spearman {found['lps']:.3f} for LPS, {found['pm']:.3f} for PM, difference "
        f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}], {found['n']} "
        f"{over}",
        (Estimate("ρ of PM - ρ of LPS", "> 0", found["difference"], found["low"], found["high"]),),
        number=93,
    )


# ------------------------------------------------------------------------------------ random starts


def compute_lps_starts(
    run: Run, *, count: int = 20, examples: str = "", n: int = 200, steps: int = 0
) -> FigureData:
    """LPS over `count` random starts of PGD, and how far it moves over the first `n` test images.

    `examples`: numbers of images below `n` to show ("": the six whose LPS moves most). `steps` 0:
    the training attack's; the steps' length is the training attack's share of eps in any case.
    """
    check_value("count", count, Annotated[int, Range(2)])
    check_value("steps", steps, Natural)
    recipe = run.plan.recipe
    model, images = first_images(run, n)
    steps, chosen = steps or recipe.steps, parse_image_numbers(examples, n)
    length = recipe.step * recipe.eps
    paths = [
        record_from_start(model, images, recipe.threat, steps, length, i) for i in range(count)
    ]
    lps, pm = np.stack([path.lps for path in paths]), np.stack([path.pm for path in paths])
    spread = lps.max(axis=0) - lps.min(axis=0)
    shown = chosen or np.argsort(-spread, kind="stable")[:6].tolist()
    facts = {
        "n": n,
        "count": count,
        "steps": steps,
        "examples": {row: lps[:, row] for row in shown},
        "spread": np.bincount(spread, minlength=3),
        "moved": share_with_interval(spread >= 2),
        "torn": share_with_interval((lps == steps).any(axis=0) & (lps < steps).any(axis=0)),
        "rank": compare_ranks((lps[0], lps[1]), (pm[0], pm[1])),
    }
    return FigureData(facts, describe_setting(run), run.method, {"chosen": bool(chosen)})


def draw_lps_starts(data: FigureData) -> Drawing:
    """Draw the LPS of chosen images over the starts, and a bar for how far LPS moves."""
    drawing = Drawing(7.6, 3.2)
    left, right = drawing.subplots(1, 2, width_ratios=(3, 2))
    which = "chosen images" if data.extras["chosen"] else "images that move most"
    title = f"LPS over {data.facts['count']} random starts: {which}"
    _draw_start_dots(left, data.facts["examples"], data.facts["steps"], title)
    _draw_lps_moves(right, data.facts["spread"])
    return drawing


def _draw_lps_moves(axes: Axes, tally: np.ndarray) -> None:
    """Draw how many images' LPS moves by 0, 1, 2, ... steps; from 2 on in colour."""
    axes.bar(
        range(len(tally)),
        tally,
        color=[s.BLUE if k >= 2 else s.PALE for k in range(len(tally))],
        width=0.8,
    )
    for k, count in enumerate(tally):
        s.write_above(axes, k, count, f"{count}")
    axes.set(
        xlabel="largest minus smallest LPS",
        ylabel=f"test images (of {tally.sum()})",
        title="How far LPS moves",
        ylim=(0, tally.max() * 1.12),
    )
    s.whole_numbers(axes)


def _draw_start_dots(axes: Axes, examples: dict[int, np.ndarray], steps: int, title: str) -> None:
    """Draw a column for each image: the values that its LPS took, and from how many starts."""
    starts = len(next(iter(examples.values())))
    for place, lps in enumerate(examples.values()):
        values, counts = np.unique(lps, return_counts=True)
        axes.vlines(place, values[0], values[-1], color=s.PALE, linewidth=1)
        axes.scatter(
            [place] * len(values),
            values,
            s=14 + 160 * counts / starts,
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
                color=s.SMALL_PRINT,
            )
    axes.set(
        xticks=range(len(examples)),
        xlim=(-0.6, len(examples) - 0.3),
        ylim=(-0.6, steps + 0.6),
        xlabel="test image",
        ylabel=f"LPS, {steps} = never",
        title=title,
    )
    axes.set_xticklabels([str(number) for number in examples])


def decide_lps_starts(data: FigureData) -> list[Claim]:
    """Decide whether LPS depends on the start, and PM less."""
    moved = data.facts["moved"]
    return [
        Claim(
            "LPS depends on the start: it moves in more than 5 % of the images (MAIL s. 2.2)",
            "no numbers for starts",
            f"moves by 2 steps or more in {format_counted(moved)} over {data.facts['count']} "
            "starts",
            (Estimate("share moved", "> 0.05", moved["share"], moved["low"], moved["high"]),),
            number=16,
        ),
        decide_rank_order(
            "PM depends less on the start than LPS does (MAIL s. 3.1)",
            data.facts["rank"],
            "images, two starts",
        ),
    ]


def describe_lps_starts(data: FigureData) -> str:
    """The caption: how many images' LPS moves."""
    facts = data.facts
    chosen = "images by choice" if data.extras["chosen"] else "the images whose LPS moves most"
    return (
        f"MAIL s. 2.2 claims that LPS depends on the path. {s.label(data.method)} on "
        f"{data.setting}, PGD-{facts['steps']} from {facts['count']} random starts: LPS moves by 2 "
        f"steps or more in {format_counted(facts['moved'])} images; "
        f"{format_counted(facts['torn'])} survive every step from one start and fall from another. "
        f"Left, {chosen}; size of a dot and number beside it: how many starts gave that LPS. "
        "Right, blue: LPS moves by 2 steps or more."
    )


# -------------------------------------------------------------------------------------- two attacks


def compute_two_attacks(
    run: Run, *, example: int = -1, n: int = 200, steps: Count = 50, step: NonNegative = 0.0
) -> FigureData:
    """LPS and PM of the first `n` test images under PGD and LM-PGD, and the loss along one path.

    `example`: the number of an image below `n`; -1 is the one whose LPS differs most. LPS and PM
    are taken at the attacks' evaluation points, the start included; PM at the last. `step`: the
    length of a step of both attacks as a share of eps; 0 is the training attack's, which in MAIL is
    2/255 of 8/255. Beside it stand steps of other lengths, and LM-PGD with a search that ends at
    PGD's step.
    """
    check_value("steps", steps, Count)
    step = check_value("step", step, NonNegative) or run.plan.recipe.step
    model, images = first_images(run, n)
    row = parse_image_numbers(str(example), n)[0] if example != -1 else -1
    threat, lengths = run.plan.recipe.threat, sorted({*OTHER_STEPS, step})
    walked = {
        (search, length): record_both_attacks(model, images, threat, steps, length, longest=longest)
        for search, longest in SEARCHES.items()
        for length in lengths
    }
    paths = walked["around", step]
    row = row if row >= 0 else find_widest(paths)
    facts = compare_paths(paths, steps) | {
        "n": n,
        "steps": steps,
        "step": step,
        "by_step": {
            search: {length: compare_lps(walked[search, length], steps) for length in lengths}
            for search in SEARCHES
        },
        "example": {
            "row": row,
            "id": int(images.ids[row]),
            "lps": {name: int(path.lps[row]) for name, path in paths.items()},
        },
    }
    extras = {
        "loss": {name: path.loss[:, row] for name, path in paths.items()},
        "pm": {name: path.pm for name, path in paths.items()},
    }
    return FigureData(facts, describe_setting(run), run.method, extras)


def find_widest(paths: dict[str, AttackPath]) -> int:
    """The image whose LPS falls most from PGD to LM-PGD; the first of equals."""
    return int((paths["PGD"].lps - paths["LM-PGD"].lps).argmax())


def compare_lps(paths: dict[str, AttackPath], steps: int) -> dict:
    """How much earlier LM-PGD crosses than PGD, and how many of PGD's survivors it breaks.

    The difference is a median over the images that are right at the start and that either breaks.
    """
    a, b = paths["PGD"].lps, paths["LM-PGD"].lps
    either = (a > 0) & ((a < steps) | (b < steps))
    return {
        "hidden": share_with_interval((b < steps)[a == steps]),
        "hidden_from_lmpgd": share_with_interval((a < steps)[b == steps]),
        "n_either": int(either.sum()),
        "difference": median_interval((a - b)[either]) if either.any() else None,
    }


def compare_paths(paths: dict[str, AttackPath], steps: int) -> dict:
    """How LPS and PM of the same images agree under two attacks, and how far each moves."""
    a, b = paths["PGD"], paths["LM-PGD"]
    both = (a.lps > 0) & (a.lps < steps) & (b.lps < steps)  # both start at the clean image
    return compare_lps(paths, steps) | {
        "lps": {name: path.lps for name, path in paths.items()},
        "change": {
            "lps": float(np.abs(a.lps - b.lps).mean() / steps),
            "pm": float(np.abs(a.pm - b.pm).mean() / 2),
        },
        "rank": compare_ranks((a.lps, b.lps), (a.pm, b.pm)),
        "rank_both": compare_ranks((a.lps[both], b.lps[both]), (a.pm[both], b.pm[both])),
    }


def draw_two_attacks(data: FigureData) -> Drawing:
    """Draw the loss along one image's paths, and LPS and PM under one attack against the other."""
    facts, steps, example = data.facts, data.facts["steps"], data.facts["example"]
    drawing = Drawing(7.0, 6.4)
    left, middle, right, lengths = drawing.subplots(2, 2).ravel()
    draw_along_paths(left, data.extras["loss"], example["lps"])
    left.set(
        ylabel="cross-entropy / nats", title=f"a  Loss along the paths of image {example['row']}"
    )
    lps = np.stack([facts["lps"][name] for name in PATH_COLOURS])
    pairs, counts = np.unique(lps, axis=1, return_counts=True)
    size = 10 + 400 * counts / facts["n"]
    middle.scatter(*pairs, s=size, color=s.BLUE, alpha=0.55, linewidth=0)
    middle.annotate(
        f"{counts.max()}", pairs[:, counts.argmax()], ha="center", va="center", fontsize=7
    )
    pm = (data.extras["pm"][name] for name in PATH_COLOURS)
    right.scatter(*pm, s=11, color=s.BLUE, alpha=0.55, linewidth=0)
    for axes, low, high, title in (
        (middle, 0, steps, f"b  LPS of {facts['n']} images, {steps} = never"),
        (right, -1, 1, f"c  PM at the end, {facts['n']} images"),
    ):
        axes.plot([low, high], [low, high], color=s.BLACK, linewidth=0.8, linestyle="--", zorder=0)
        pad = 0.08 * (high - low)
        axes.set(
            xlabel="under PGD",
            ylabel="under LM-PGD",
            title=title,
            xlim=(low - pad, high + pad),
            ylim=(low - pad, high + pad),
        )
    _draw_step_lengths(lengths, facts)
    return drawing


def _draw_step_lengths(axes: Axes, facts: dict) -> None:
    """Draw the median difference in LPS by the steps' length, for each way of searching."""
    axes.axhline(0, color=s.BLACK, linewidth=0.8, linestyle="--", zorder=0)
    shift = 0.008 * max(facts["by_step"]["around"])  # bars at one length would hide each other
    for (search, found), tint, side in zip(
        facts["by_step"].items(), (s.BLUE, s.ORANGE), (-shift, shift), strict=True
    ):
        known = {length: one["difference"] for length, one in found.items() if one["difference"]}
        if not known:
            continue
        middle, low, high = np.array(list(known.values())).T
        axes.errorbar(
            np.array(list(known)) + side,
            middle,
            yerr=[middle - low, high - middle],
            fmt="o-",
            markersize=4,
            color=tint,
            capsize=3,
            label={"around": "LM-PGD's step up to 4 of PGD's", "up to": "up to 1 of PGD's"}[search],
        )
    shown = list(facts["by_step"]["around"])
    axes.set(
        xlabel="PGD's step / eps",
        ylabel="LPS, PGD less LM-PGD: median, 95 %",
        title="d  How much earlier LM-PGD crosses",
        xticks=shown,
        xlim=(0, 1.15 * max(shown)),
    )
    axes.set_xticklabels([f"{length:.2g}" for length in shown])
    axes.legend(loc="upper right", fontsize=7)


def draw_along_paths(axes: Axes, values: dict[str, np.ndarray], lps: dict[str, int]) -> None:
    """Draw one image's `values` (steps,) along each path, with a dot at the first wrong point."""
    for (name, along), tint in zip(values.items(), PATH_COLOURS.values(), strict=True):
        first, steps = lps[name], len(along)
        words = f"{name}, LPS {first}" + (" = never" if first == steps else "")
        axes.plot(range(steps), along, color=tint, label=words)
        if first < steps:
            axes.plot(first, along[first], "o", color=tint, markersize=6)
    axes.set_xlabel("evaluation point")
    axes.legend(loc="best")


def decide_two_attacks(data: FigureData) -> list[Claim]:
    """Decide whether LPS depends on the attack, and PM less."""
    facts = data.facts
    hidden, difference = facts["hidden"], facts["difference"]
    words = "none breaks"
    if difference:
        words = (
            f"{difference[0]:+g} [{difference[1]:+g}, {difference[2]:+g}], {facts['n_either']} "
            "images that either breaks"
        )
    return [
        Claim(
            "an example that survives every PGD step falls to LM-PGD (MAIL Fig. 1a)",
            "LPS 50 under PGD, 14 (caption) or 15 (text) under LM-PGD",
            f"{format_counted(hidden)} of PGD's survivors; the other way round "
            f"{format_counted(facts['hidden_from_lmpgd'])} of LM-PGD's fall to PGD",
            (Estimate("survivors broken", "> 0", hidden["share"], hidden["low"], hidden["high"]),)
            if hidden["n"]
            else (),
            number=16,
        ),
        Claim(
            "LPS depends on the path: LM-PGD crosses earlier than PGD (MAIL s. 2.2)",
            "one example",
            f"median difference {words}, of {facts['steps']} steps of {facts['step']:g} eps",
            (Estimate("median difference in LPS", "> 0", *difference),) if difference else (),
            number=16,
        ),
        decide_rank_order(
            "PM depends less on the attack than LPS does: order of all images (MAIL s. 3.1)",
            facts["rank"],
            "images",
        ),
        decide_rank_order(
            "PM depends less on the attack than LPS does: images that both break (MAIL s. 3.1)",
            facts["rank_both"],
            "images",
        ),
    ]


def describe_two_attacks(data: FigureData) -> str:
    """The caption: how many survivors fall to LM-PGD, and how far LPS and PM move."""
    facts = data.facts
    difference, either, steps = facts["difference"], facts["n_either"], facts["steps"]
    others = {
        search: ", ".join(
            f"{one['difference'][0]:+g} with steps of {length:g} eps"
            for length, one in found.items()
            if one["difference"] and (search, length) != ("around", facts["step"])
        )
        for search, found in facts["by_step"].items()
    }
    median = (
        f"Median LPS under PGD minus LM-PGD, {either} images that either breaks after the start: "
        f"{difference[0]:+g} [{difference[1]:+g}, {difference[2]:+g}]. "
        if difference
        else "Neither breaks any after the start. "
    )
    return (
        "MAIL Fig. 1a shows an example with LPS 50 under PGD and 14 under LM-PGD. "
        f"{s.label(data.method)} on {data.setting}, {steps} steps of {facts['step']:g} eps from "
        f"the clean image, LM-PGD's search up to four times that, first {facts['n']} test images: "
        f"of those that survive every PGD step, {format_counted(facts['hidden'])} fall to LM-PGD; "
        f"of those that survive LM-PGD, {format_counted(facts['hidden_from_lmpgd'])} fall to PGD. "
        f"{median}Else it is {others['around']}; where LM-PGD may take no longer steps than PGD, "
        f"{others['up to']}. Bars: 95 % of the median. Mean change between the "
        f"attacks, as a share of the full range: LPS {facts['change']['lps']:.3f}, PM "
        f"{facts['change']['pm']:.3f}."
    )
