"""MAIL's abstract and VIR s. 4.3: how scores change along a path, and with an attack's start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from kit.attacks.contract import AttackTrace
from kit.attacks.projected_gradient_descent import pgd
from kit.core.parameters import Count, Range, check_value
from kit.core.random_streams import Streams
from kit.evaluation.statistics import bootstrap_interval, mean_interval, rank_correlation
from kit.experiments.recipes import Recipe
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.attacked_images import first_images
from kit.figures.base import Claim, Drawing, FigureData
from kit.figures.run_outputs import describe_setting
from kit.methods.criteria import CRITERIA, probabilistic_margin
from kit.methods.step_outputs import StepOutputs
from kit.papers.claim_verdict import Estimate

#: A largest jump that shrinks by less than this where a path has twice as many points is a jump.
SHRINKS = 0.75

#: The scores whose order over two starts is compared, by their rows of CRITERIA.
SCORE_NAMES = {"lps": "LPS", "pm": "PM", "vir": "VIR"}

TINTS = {"lps": s.VERMILLION, "pm": s.BLUE, "vir": s.GREEN}

PATH_BATCH = 1024


def compute_score_paths(
    run: Run, *, n: int = 100, points: Annotated[int, Range(2)] = 32
) -> FigureData:
    """PM and LPS at points of the straight path from each image to what PGD makes of it.

    Both are taken of the point as an image of its own: PM without an attack, LPS by PGD from there.
    A path has `points` steps, and then twice as many: a jump stays, a steep rise halves. Beside it
    stands how well LPS, PM and VIR's score keep the order of the images over two random starts.
    """
    points = check_value("points", points, Annotated[int, Range(2)])
    check_value("n", n, Count)
    model, images = first_images(run, n)
    recipe = run.plan.recipe
    x, y = images.x(), images.y
    x_adv, _ = _attack(model, x, y, recipe, None)
    shares = torch.linspace(0, 1, 2 * points + 1, device=x.device).view(-1, 1, 1, 1, 1)
    path = x + shares * (x_adv - x)  # (points, n, C, H, W)
    pm, lps = _score_points(model, path.flatten(0, 1), y.repeat(len(path)), recipe)
    scores = {"pm": pm.view(-1, n).cpu().numpy(), "lps": lps.view(-1, n).cpu().numpy()}
    jumps = {name: measure_jumps(values) for name, values in scores.items()}
    ranks = compare_starts(
        [score_from_start(model, x, y, recipe, Streams(images.ids, "starts", k)) for k in (0, 1)]
    )
    shown = int(np.argmax(scores["lps"].max(axis=0) - scores["lps"].min(axis=0)))
    facts = {
        "n": n,
        "points": points,
        "steps": recipe.steps,
        "jumps": jumps,
        "ranks": ranks,
        "image": {"row": shown, "id": int(images.ids[shown])},
    }
    extras = {name: values[:, shown] for name, values in scores.items()}
    return FigureData(facts, describe_setting(run), run.method, extras)


def _attack(
    model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, streams: Streams | None
) -> tuple[Tensor, AttackTrace]:
    """PGD as the run is trained with it, and its trace; without streams it starts at the image."""
    trace = AttackTrace(y, recipe.steps)
    start: dict = {"init": "none"} if streams is None else {"generator": streams}
    x_adv = pgd(
        model,
        x,
        y,
        recipe.threat,
        watch=trace,
        steps=recipe.steps,
        step_size=recipe.step * recipe.eps,
        **start,
    )
    return x_adv, trace


def _score_points(model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """(PM, LPS) of images (N, C, H, W) as they are, each (N,)."""
    margins, steps = [], []
    for some, labels in zip(x.split(PATH_BATCH), y.split(PATH_BATCH), strict=True):
        _, trace = _attack(model, some, labels, recipe, None)
        with torch.no_grad():
            margins.append(probabilistic_margin(model(some).double().softmax(dim=1), labels))
        assert trace.lps is not None  # the attack has called its watch
        steps.append(trace.lps)
    return torch.cat(margins), torch.cat(steps)


def measure_jumps(values: np.ndarray) -> dict:
    """The largest change of a score between neighbours on a path, (2 points + 1, n) values.

    `ratio` is that on the whole path over that on every other point: a half for a score that is
    smooth, 1 for one that jumps. It is a mean over the images whose score changes at all.
    """
    fine = np.abs(np.diff(values, axis=0)).max(axis=0)
    coarse = np.abs(np.diff(values[::2], axis=0)).max(axis=0)
    moves = coarse > 0
    ratio = mean_interval(fine[moves] / coarse[moves]) if moves.any() else None
    return {"n": int(moves.sum()), "ratio": ratio, "largest": float(fine.max())}


def score_from_start(
    model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, streams: Streams
) -> dict[str, np.ndarray]:
    """{criterion: its scores (N,)} of images as attacked from a random start."""
    x_adv, trace = _attack(model, x, y, recipe, streams)
    with torch.no_grad():
        outputs = StepOutputs(
            y,
            model(x_adv).double(),
            model(x).double(),
            kappa=trace.kappa,
            lps=trace.lps,
            steps=recipe.steps,
        )
    return {name: CRITERIA[name].score(outputs).cpu().double().numpy() for name in SCORE_NAMES}


def compare_starts(starts: list[Mapping[str, np.ndarray]]) -> dict:
    """Spearman's correlation of each score over two starts, and its difference to that of LPS.

    The differences' 95 % intervals are bootstraps over images. A score that is the same for all
    images has no order: None.
    """
    first, second = starts
    n = len(first["lps"])
    found: dict = {"n": n}
    for name in SCORE_NAMES:
        rank = rank_correlation(first[name], second[name]) if n >= 3 else float("nan")
        found[name] = rank if np.isfinite(rank) else None
    found["intervals"] = {
        name: bootstrap_interval(_rank(first, second, name), n)
        for name in SCORE_NAMES
        if found[name] is not None
    }
    for name in ("pm", "vir"):
        known = found[name] is not None and found["lps"] is not None
        difference = _rank_difference(first, second, name)
        found[f"{name} less lps"] = bootstrap_interval(difference, n) if known else None
    return found


def _rank(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], name: str
) -> Callable[[np.ndarray], float]:
    """How well a score keeps the order of some images."""
    return lambda rows: rank_correlation(first[name][rows], second[name][rows])


def _rank_difference(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], name: str
) -> Callable[[np.ndarray], float]:
    """By how much a score keeps the order of some images better than LPS does."""

    def difference(rows: np.ndarray) -> float:
        mine, lps = (rank_correlation(first[k][rows], second[k][rows]) for k in (name, "lps"))
        return mine - lps

    return difference


def draw_score_paths(data: FigureData) -> Drawing:
    """Draw one image's path (a), how jumps shrink on a finer one (b), and order over starts (c)."""
    facts, drawing = data.facts, Drawing(9.0, 2.9)
    a, b, c = drawing.subplots(1, 3, width_ratios=(1.5, 1, 1))
    _draw_one_path(a, data)
    _draw_bars(
        b,
        {name: facts["jumps"][name]["ratio"] for name in ("lps", "pm")},
        {name: facts["jumps"][name]["n"] for name in ("lps", "pm")},
        title="b  Largest jumps",
        ylabel="ratio, finer to coarser path, 95 %",
    )
    b.axhline(0.5, color=s.BLACK, linewidth=0.8, linestyle="--", label="0.5: no jump")
    b.set(ylim=(0, 1.35))
    b.legend(loc="upper right", fontsize=7.5)
    ranks = facts["ranks"]["intervals"]
    _draw_bars(
        c,
        ranks,
        dict.fromkeys(ranks, facts["ranks"]["n"]),
        title="c  Order over two starts",
        ylabel="rank correlation, 95 %",
    )
    c.set(ylim=(min([0.0, *(low for _, low, _ in ranks.values())]), 1.15))
    return drawing


def _draw_one_path(axes: Axes, data: FigureData) -> None:
    along = np.linspace(0, 1, len(data.extras["pm"]))
    steps = axes.twinx()
    axes.plot(along, data.extras["pm"], color=TINTS["pm"], label="PM")
    steps.step(along, data.extras["lps"], where="mid", color=TINTS["lps"], label="LPS")
    axes.set(
        xlabel="from the clean image (0) to the attacked one (1)",
        ylim=(-1.05, 1.05),
        title=f"a  Both scores on one path, image {data.facts['image']['row']}",
    )
    axes.set_ylabel("PM", color=TINTS["pm"])
    steps.set_ylabel(f"LPS of {data.facts['steps']}", color=TINTS["lps"])
    steps.set_ylim(-0.5, data.facts["steps"] + 0.5)


def _draw_bars(
    axes: Axes, values: Mapping, n: Mapping[str, int], *, title: str, ylabel: str
) -> None:
    known = {name: value for name, value in values.items() if value is not None}
    for place, (name, (middle, low, high)) in enumerate(known.items()):
        axes.bar(place, middle, color=TINTS[name], alpha=0.75, width=0.65)
        axes.plot([place, place], [low, high], color=s.BLACK, linewidth=1)
        s.write_above(axes, place, max(middle, high), f"{middle:.2f}")
    axes.set(xticks=range(len(known)), title=title, ylabel=ylabel)
    axes.set_xticklabels([f"{SCORE_NAMES[name]}\nn = {n[name]}" for name in known])


def decide_score_paths(data: FigureData) -> list[Claim]:
    """Decide whether PM is continuous where LPS jumps, and whether VIR's score keeps its order."""
    facts = data.facts
    ratios = {name: facts["jumps"][name]["ratio"] for name in ("pm", "lps")}
    words_of_jumps = ", ".join(
        f"{SCORE_NAMES[name]} {ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}], "
        f"{facts['jumps'][name]['n']} images"
        for name, ratio in ratios.items()
        if ratio
    )
    expected = {"pm": f"< {SHRINKS}", "lps": f"> {SHRINKS}"}
    found = facts["ranks"]["vir less lps"]
    words = "one of the scores is the same for all images"
    if found:
        words = (
            f"Spearman {facts['ranks']['vir']:.3f} for VIR, {facts['ranks']['lps']:.3f} for LPS, "
            f"difference {found[0]:+.3f} [{found[1]:+.3f}, {found[2]:+.3f}]"
        )
    return [
        Claim(
            "along a path PM changes continuously and LPS in jumps: where a path has twice as many "
            "points, PM's largest change shrinks and LPS's does not (MAIL abstract)",
            "in words",
            f"finer over coarser: {words_of_jumps}",
            tuple(
                Estimate(f"{SCORE_NAMES[name]}, finer / coarser", expected[name], *ratio)
                for name, ratio in ratios.items()
            )
            if all(ratios.values())
            else (),
            number=92,
        ),
        Claim(
            "VIR's score depends less on the start of the attack than LPS does (VIR s. 4.3)",
            "in words",
            f"{words}, {facts['ranks']['n']} images",
            (Estimate("ρ of VIR - ρ of LPS", "> 0", *found),) if found else (),
            number=97,
        ),
    ]


def describe_score_paths(data: FigureData) -> str:
    """The caption: how jumps shrink on a finer path, and how orders agree over starts."""
    facts = data.facts
    ratios = " and ".join(
        f"{SCORE_NAMES[name]}'s by a factor of {facts['jumps'][name]['ratio'][0]:.2f}"
        for name in ("pm", "lps")
        if facts["jumps"][name]["ratio"]
    )
    ranks = ", ".join(
        f"{facts['ranks'][name]:.2f} for {SCORE_NAMES[name]}"
        for name in SCORE_NAMES
        if facts["ranks"][name] is not None
    )
    counts = " and ".join(
        f"{facts['jumps'][name]['n']} for {SCORE_NAMES[name]}" for name in ("lps", "pm")
    )
    ahead = facts["ranks"]["vir less lps"]
    lead = (
        f"; VIR less LPS {ahead[0]:+.3f} [{ahead[1]:+.3f}, {ahead[2]:+.3f}], paired"
        if ahead
        else ""
    )
    return (
        "MAIL calls PM continuous and LPS discrete; VIR calls its score independent of the path. "
        f"{s.label(data.method)} on {data.setting}, {facts['n']} test images, straight paths from "
        f"the clean image to that of PGD-{facts['steps']}: with {2 * facts['points']} points in "
        f"place of {facts['points']}, the largest jump changes: {ratios or 'no score moves'}; "
        "dashed, a half: what a score does that does not jump. Only images whose score moves on "
        f"the path count: {counts}. Over two random starts the rank correlation is "
        f"{ranks or 'none: no score varies'}{lead}."
    )
