"""What every method makes of one mini-batch: the weights of the same training images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from torch import Tensor

from kit.core.errors import KitError
from kit.core.random_streams import Streams
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Drawing, FigureData
from kit.figures.run_outputs import describe_setting
from kit.methods.criteria import probabilistic_margin
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import METHODS, Method


def last_probe(run: Run, count: int) -> tuple[StepOutputs, Tensor]:
    """The first `count` examples of the last epoch's stored probe, in float64, and their ids."""
    arrays = {
        name.removeprefix("seen_"): torch.from_numpy(values[:count])
        for name, values in run.epoch(run.epochs).items()
        if name.startswith("seen_")
    }
    whole = {name: arrays[name].long() for name in ("y", "kappa", "lps")}
    real = {name: arrays[name].double() for name in ("logits_adv", "logits_nat", "p_flip")}
    streams = Streams(arrays["ids"], "figure")
    return StepOutputs(**whole, **real, steps=run.plan.recipe.steps, streams=streams), arrays["ids"]


def row_of(name: str, run: Run) -> Method:
    """Return the row of a method; that of the run's own method has the run's settings."""
    return run.plan.method if name == run.method else METHODS[name]


# ---------------------------------------------------------------------------------- several methods


def compute_mini_batch(
    run: Run, *, count: int = 12, compare: str = "mail-at clirat gairat vir-at"
) -> FigureData:
    """The weights that `compare` gives to images of one mini-batch, sorted by margin under attack.

    Raises:
        KitError: for a method that never reweights.
    """
    methods = compare.split()
    for method in methods:
        if not METHODS[method].reweights:
            raise KitError(
                f"compare: {method} never reweights; choose methods that do, such as mail-at or "
                "clirat"
            )
    outputs, ids = last_probe(run, count)
    margin = probabilistic_margin(outputs.probs_adv, outputs.y)
    order = margin.argsort()
    train = run.data().train
    images = train.take(torch.cat([(train.ids == i).nonzero()[0] for i in ids[order]])).x()
    weights = {m: row_of(m, run).weigh(outputs)[order].detach().numpy() for m in methods}
    facts = {
        "n": len(order),
        "margin": margin[order].tolist(),
        "weights": {method: values.tolist() for method, values in weights.items()},
    }
    extras = {
        "images": images,
        "y": outputs.y[order],
        "said": outputs.logits_adv.argmax(dim=1)[order],
        "weights": weights,
        "classes": run.record["classes"],
    }
    return FigureData(facts, describe_setting(run), run.method, extras)


def draw_mini_batch(data: FigureData) -> Drawing:
    """Draw the images, least safe first, and a row of bars per method."""
    count, weights = data.facts["n"], data.extras["weights"]
    drawing = Drawing(0.62 * count + 1.2, 1.1 + 0.8 * len(weights))
    grid = drawing.add_gridspec(len(weights) + 1, count, height_ratios=[1.15] + [1] * len(weights))
    for place in range(count):
        _draw_batch_image(drawing.add_subplot(grid[0, place]), data, place)
    for row, (method, values) in enumerate(weights.items(), 1):
        axes = drawing.add_subplot(grid[row, :])
        axes.bar(range(count), values, color=s.colour(method), width=0.7)
        axes.set(xticks=[], xlim=(-0.5, count - 0.5), ylabel="weight")
        axes.set_title(f"{s.label(method)}, mean {values.mean():.2f}", fontsize=8)
    drawing.supxlabel("each row has its own scale", fontsize=8, color=s.SMALL_PRINT)
    return drawing


def _draw_batch_image(axes: Axes, data: FigureData, place: int) -> None:
    """Draw one image with its class and margin; in orange with the class it is taken for."""
    image, y, said = (data.extras[name][place] for name in ("images", "y", "said"))
    classes = data.extras["classes"]
    axes.imshow(image.permute(1, 2, 0).squeeze().numpy(), cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    mistaken = "" if said == y else f"\nas {classes[said]}"
    axes.set_title(
        f"{classes[y]}\nPM {_write_margin(data.facts['margin'][place])}{mistaken}",
        fontsize=6.8,
        fontweight="normal",
        loc="center",
        color=s.BLACK if said == y else s.VERMILLION,
    )


def _write_margin(margin: float) -> str:
    """PM with two digits, and with as many as show its sign where it is near 0."""
    digits = next((k for k in (2, 3) if round(margin, k)), 4)
    return f"{margin:+z.{digits}f}"


def describe_mini_batch(data: FigureData) -> str:
    """The caption: whose images these are, and what the bars show."""
    return (
        f"{data.facts['n']} training images as the network of {data.method} ({data.setting}) sees "
        "them under attack, least safe first; orange is misclassified. Bars: what each "
        "method multiplies the image's loss by; each row has its own scale."
    )


def notice_mini_batch(data: FigureData) -> str:
    """What share of its weight each method gives to the least safe image."""
    first = {
        method: weights[0] / sum(weights) if sum(weights) else 0.0
        for method, weights in data.facts["weights"].items()
    }
    return (
        "The least safe image, the first one, gets this share of all weight: "
        + ", ".join(f"{method} {share:.0%}" for method, share in first.items())
        + f". With equal weights it would be {1 / data.facts['n']:.0%}."
    )


# -------------------------------------------------------------------------------------- all methods


def compute_every_weight(run: Run, *, count: int = 60) -> FigureData:
    """The weights of all reweighting methods on the same examples, by margin under attack."""
    outputs, _ = last_probe(run, count)
    order = probabilistic_margin(outputs.probs_adv, outputs.y).argsort().numpy()
    epochs = run.epochs
    weights = {
        name: row_of(name, run).at(epochs, epochs).weigh(outputs).detach().numpy()[order]
        for name, row in METHODS.items()
        if row.reweights
    }
    robust = (outputs.logits_adv.argmax(dim=1) == outputs.y).numpy()[order]
    facts = {
        "n": len(order),
        "misclassified": int((~robust).sum()),
        "weight_on_robust": {
            name: float(w[robust].sum() / w.sum()) if w.sum() else None
            for name, w in weights.items()
        },
    }
    extras = {"weights": weights, "robust": robust, "moment": run.moment(epochs)}
    return FigureData(facts, describe_setting(run), run.method, extras)


def draw_every_weight(data: FigureData) -> Drawing:
    """Draw a heat map: rows are methods, columns examples, colour is weight over the row's mean.

    Methods that give these examples the same weights share a row.
    """
    rows = _group_alike(data.extras["weights"])
    share = np.stack(list(rows.values()))
    drawing = Drawing(7.4, 0.2 * len(rows) + 1.2)
    axes = drawing.subplots()
    image = axes.imshow(
        np.minimum(share, 4),
        aspect="auto",
        cmap="PuOr_r",
        norm=TwoSlopeNorm(1, 0, 4),
        interpolation="nearest",
    )
    first_right = float(np.argmax(data.extras["robust"])) - 0.5
    axes.axvline(first_right, color=s.BLACK, linewidth=1)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.set_xticks([])
    axes.set_xlabel(
        "training examples, least safe first; right of the line: classified correctly under attack"
    )
    axes.set_title("Weight of each image under each method")
    for edge in axes.spines.values():
        edge.set_visible(False)
    scale = drawing.colorbar(
        image, ax=axes, label="weight / mean weight", ticks=[0, 1, 2, 3, 4], shrink=0.6, pad=0.02
    )
    scale.ax.set_yticklabels(["0", "1", "2", "3", "4 or more"])
    return drawing


def _group_alike(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{label: weight over mean weight}, one row for methods whose rows are equal to the eye."""
    return {_join_names(names): row for names, row in _find_alike(weights)}


def _find_alike(weights: Mapping[str, np.ndarray]) -> list[tuple[list[str], np.ndarray]]:
    """Methods whose rows are equal to the eye, and the row: weight over mean weight."""
    groups: list[tuple[list[str], np.ndarray]] = []
    for name, values in weights.items():
        row = values / values.mean() if values.mean() else values
        alike = next((names for names, other in groups if np.allclose(row, other, atol=0.01)), None)
        if alike is None:
            groups.append(([name], row))
        else:
            alike.append(name)
    return groups


def _join_names(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:2]) + (f" + {len(names) - 2} more" if len(names) > 2 else "")


def describe_every_weight(data: FigureData) -> str:
    """The caption: how many rows and images, of which network."""
    facts = data.facts
    more = "; ".join(
        ", ".join(names) for names, _ in _find_alike(data.extras["weights"]) if len(names) > 2
    )
    unnamed = f" Lines that stand for more than two rows: {more}." if more else ""
    return (
        f"All {len(facts['weight_on_robust'])} reweighting rows, alike ones in one line, on "
        f"{facts['n']} training images of one network ({data.method}, {data.setting}, "
        f"{data.extras['moment']}); "
        f"{facts['misclassified']} of the images are misclassified under attack.{unnamed}"
    )


def notice_every_weight(data: FigureData) -> str:
    """Which rows give most weight to what is already right, and which one gives least."""
    shares = {k: v for k, v in data.facts["weight_on_robust"].items() if v is not None}
    most, least = max(shares, key=shares.__getitem__), min(shares, key=shares.__getitem__)
    over = sum(share > 0.5 for share in shares.values())
    return (
        f"{over} of {len(shares)} rows give more than half of their weight to images that are "
        f"already right under attack. {most} gives them most ({shares[most]:.0%}), {least} least "
        f"({shares[least]:.0%})."
    )
