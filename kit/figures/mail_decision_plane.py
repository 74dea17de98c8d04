"""MAIL Fig. 2: two attack paths on the plane through their ends."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.patches import Patch
from torch import Tensor, nn

from kit.core import tensors
from kit.core.errors import KitError
from kit.core.parameters import Count, NonNegative, check_value
from kit.core.threat import Threat
from kit.data.splits import Split
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.attacked_images import first_images, parse_image_numbers
from kit.figures.base import Drawing, FigureData
from kit.figures.mail_attack_paths import (
    PATH_COLOURS,
    AttackPath,
    draw_along_paths,
    find_widest,
    record_both_attacks,
)
from kit.figures.run_outputs import describe_setting


def compute_decision_plane(
    run: Run, *, example: int = -1, n: int = 200, steps: Count = 50, step: NonNegative = 0.0
) -> FigureData:
    """Classes on the plane through a test image, its PGD end and its LM-PGD end, and both paths.

    `example`, `n`, `steps` and `step` as in `compute_two_attacks`.

    Raises:
        KitError: where PGD does not move the image, since then there is no plane.
    """
    check_value("steps", steps, Count)
    step = check_value("step", step, NonNegative) or run.plan.recipe.step
    threat, classes = run.plan.recipe.threat, run.record["classes"]
    model, images = first_images(run, n)
    row = (
        parse_image_numbers(str(example), n)[0]
        if example != -1
        else find_widest(record_both_attacks(model, images, threat, steps, step))
    )
    one = images.take(slice(row, row + 1))
    paths, x = record_both_attacks(model, one, threat, steps, step), one.x()[0].cpu()
    directions = find_directions(paths, x, row)
    on, off = project_paths(paths, x, directions)
    grid = classify_plane(model, one, threat, directions, torch.cat(list(on.values())).numpy())
    facts = {
        "row": row,
        "id": int(one.ids[0]),
        "y": int(one.y[0]),
        "steps": steps,
        "step": step,
        "classes": [classes[k] for k in np.unique(grid["said"])],
        "off_plane": off,
        "ends": {name: values[-1].tolist() for name, values in on.items()},
        "lps": {name: int(path.lps[0]) for name, path in paths.items()},
        "pm": {name: float(path.pm[0]) for name, path in paths.items()},
    }
    extras = {
        "grid": grid,
        "on": {name: values.numpy() for name, values in on.items()},
        "margin": {name: path.margin[:, 0] for name, path in paths.items()},
        "classes": classes,
    }
    return FigureData(facts, describe_setting(run), run.method, extras)


def find_directions(paths: dict[str, AttackPath], x: Tensor, row: int) -> Tensor:
    """(2, d) orthonormal: towards PGD's last point, and at right angles to it towards LM-PGD's.

    Where both end on one line through the image, the second direction is random from a fixed seed.
    """
    first, second = ((paths[name].points[-1] - x).flatten().double() for name in PATH_COLOURS)
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


def project_paths(
    paths: dict[str, AttackPath], x: Tensor, directions: Tensor
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Of each path the coordinates (steps, 2) on the plane, and how far off it lies.

    That is its largest distance from the plane, over its largest distance from `x`.
    """
    on, off = {}, {}
    for name, path in paths.items():
        delta = (path.points - x).flatten(1).double()
        on[name] = delta @ directions.T
        off[name] = float(
            (delta - on[name] @ directions).norm(dim=1).max()
            / delta.norm(dim=1).max().clamp_min(1e-12)
        )
    return on, off


def classify_plane(
    model: nn.Module, one: Split, threat: Threat, directions: Tensor, reach: np.ndarray
) -> dict[str, np.ndarray]:
    """Predict classes on a grid of the plane around the points `reach` (m, 2).

    Returns:
        `a`, `b` (91,) the grid's coordinates, `said` (91, 91) classes, `beyond` (91, 91) how far
        outside the ball a point lies.
    """
    low, high = reach.min(axis=0), reach.max(axis=0)
    pad = 0.3 * max(high - low)
    a, b = (np.linspace(low[k] - pad, high[k] + pad, 91) for k in (0, 1))
    grid = torch.from_numpy(np.stack(np.meshgrid(a, b), axis=-1).reshape(-1, 2))
    x = one.x()
    points = (x + (grid @ directions).view(-1, *x.shape[1:]).to(x)).split(512)
    with torch.no_grad():
        said = torch.cat([model(chunk).argmax(dim=1) for chunk in points]).cpu().numpy()
        distance = torch.cat([tensors.norm(chunk - x, threat.norm) for chunk in points])
    beyond, shape = distance.cpu().numpy() - threat.eps, (len(b), len(a))
    return {"a": a, "b": b, "said": said.reshape(shape), "beyond": beyond.reshape(shape)}


def draw_decision_plane(data: FigureData) -> Drawing:
    """Draw the plane coloured by class with both paths on it, and PM along both paths."""
    facts, classes = data.facts, data.extras["classes"]
    drawing = Drawing(8.0, 3.5)
    left, right = drawing.subplots(1, 2, width_ratios=(5, 4))
    _draw_plane(left, data.extras["grid"], facts["y"], classes)
    for (name, along), tint in zip(data.extras["on"].items(), PATH_COLOURS.values(), strict=True):
        lps = facts["lps"][name]
        left.plot(*along.T, color=tint, marker=".", markersize=3, linewidth=1.2)
        if lps < facts["steps"]:
            left.plot(*along[lps], "o", color=tint, markersize=7, markeredgecolor="white")
    left.plot(0, 0, "*", color=s.BLACK, markersize=10)
    left.set(
        xlabel="towards PGD's end (distance in pixel values, L2)",
        ylabel="towards LM-PGD's end, at right angles",
        aspect="equal",
        title=f"Classes around test image {facts['row']} (class {classes[facts['y']]})",
    )
    draw_along_paths(right, data.extras["margin"], facts["lps"])
    right.axhline(0, color=s.BLACK, linewidth=0.8, linestyle="--")
    right.set(ylabel="PM along the path", title="PM at each point of both paths")
    return drawing


def _lighten(tint: str) -> tuple[float, float, float]:
    red, green, blue = (0.45 + 0.55 * part for part in to_rgb(tint))
    return red, green, blue


def _draw_plane(axes: Axes, grid: dict[str, np.ndarray], truth: int, classes: list[str]) -> None:
    """Colour the plane by predicted class, the true one white, and draw the ball's edge."""
    a, b = grid["a"], grid["b"]
    there, place = np.unique(grid["said"], return_inverse=True)
    tints = [s.SKY, s.ORANGE, s.GREEN, s.PURPLE, s.YELLOW, s.GREY]
    others = iter(tints * len(classes))
    pale = ["#FFFFFF" if k == truth else _lighten(next(others)) for k in there]
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
        a, b, grid["beyond"], levels=[0], colors=[s.BLACK], linewidths=0.8, linestyles="--"
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


def describe_decision_plane(data: FigureData) -> str:
    """The caption: what the picture shows, and how far the paths lie off the plane."""
    facts = data.facts
    crossed = [name for name, at in facts["lps"].items() if at < facts["steps"]]
    dots = {
        0: "neither path crosses",
        1: f"the large dot, the first misclassified point of {crossed[0] if crossed else ''}",
        2: "large dots, the first misclassified points",
    }[len(crossed)]
    return (
        f"MAIL Fig. 2 as data. {s.label(data.method)} on {data.setting}, test image {facts['row']} "
        f"(star), {facts['steps']} steps of PGD and LM-PGD. Left: the class of each point of the "
        "plane through the image and both ends, which leaves [0, 1] in places; dashed, the ball; "
        f"{dots}. Paths are projected, and lie off the plane by "
        f"up to {max(facts['off_plane'].values()):.0%} of their reach, so a dot may lie in another "
        "colour than its class. Right: PM at the same points, 0 on the boundary."
    )


def notice_decision_plane(data: FigureData) -> str:
    """At which step each path crosses, and how close the two ends are by PM."""
    lps, pm = data.facts["lps"], data.facts["pm"]
    count = data.facts["steps"]
    steps = ", ".join(
        f"{'after no step' if at >= count else f'at step {at}'} under {name}"
        for name, at in lps.items()
    )
    return (
        f"The image is first misclassified {steps}, of {count}. At the ends of the two paths PM "
        f"differs by {max(pm.values()) - min(pm.values()):.3f}."
    )
