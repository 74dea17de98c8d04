"""One mini-batch through the loop, and what every method would have made of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kit.core.errors import KitError
from kit.core.random_streams import Streams
from kit.evaluation.result_tables import ResultTable, result_table
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Drawing
from kit.figures.reading import setting
from kit.methods.criteria import probabilistic_margin
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import METHODS


def probe(run: Run, count: int) -> tuple[StepOutputs, torch.Tensor]:
    """The first `count` examples of the last epoch's stored probe, in float64, and their ids."""
    arrays = {
        name.removeprefix("seen_"): torch.from_numpy(values[:count])
        for name, values in run.epoch(len(run.history)).items()
        if name.startswith("seen_")
    }
    whole = {name: arrays[name].long() for name in ("y", "kappa", "lps")}
    real = {name: arrays[name].double() for name in ("logits_adv", "logits_nat", "p_flip")}
    return StepOutputs(
        **whole, **real, steps=run.plan.recipe.steps, streams=Streams(arrays["ids"], "figure")
    ), arrays["ids"]


def mini_batch(
    run: Run, *, count: int = 12, compare: str = "mail-at clirat gairat vir-at"
) -> Drawing:
    """Images of one mini-batch, sorted by margin under attack, and the weight that methods give to
    each.
    """
    methods = compare.split()
    for method in methods:
        if not METHODS[method].reweights:
            raise KitError(
                f"compare: {method} never reweights; choose methods that do, such as mail-at or "
                f"clirat"
            )
    outputs, ids = probe(run, count)
    margin = probabilistic_margin(outputs.probs_adv, outputs.y)
    order = margin.argsort()
    train = run.data().train
    images = train.take(torch.cat([(train.ids == i).nonzero()[0] for i in ids[order]])).x()
    predicted = outputs.logits_adv.argmax(dim=1)[order]
    drawing = Drawing(0.62 * len(order) + 1.2, 1.1 + 0.8 * len(methods))
    grid = drawing.add_gridspec(
        len(methods) + 1, len(order), height_ratios=[1.15] + [1] * len(methods)
    )
    for place, (image, y, p, m) in enumerate(
        zip(images, outputs.y[order], predicted, margin[order], strict=True)
    ):
        axes = drawing.add_subplot(grid[0, place])
        axes.imshow(image.permute(1, 2, 0).squeeze(), cmap="gray_r", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        mistaken = "" if p == y else f"\nas {run.record['classes'][p]}"
        axes.set_title(
            f"{run.record['classes'][y]}\nPM {m:+.2f}{mistaken}",
            fontsize=6.8,
            fontweight="normal",
            loc="center",
            color=s.BLACK if p == y else s.VERMILLION,
        )
    facts = {"n": len(order), "margin": margin[order].tolist(), "weights": {}}
    for row, method in enumerate(methods, 1):
        weights = METHODS[method].weigh(outputs)[order].detach().numpy()
        axes = drawing.add_subplot(grid[row, :])
        axes.bar(range(len(order)), weights, color=s.colour(method), width=0.7)
        axes.set(xticks=[], xlim=(-0.5, len(order) - 0.5), ylabel="weight")
        axes.set_title(f"{s.label(method)}, mean {weights.mean():.2f}", fontsize=8)
        facts["weights"][method] = weights.tolist()
    drawing.facts = facts
    drawing.caption = (
        f"{len(order)} training images as the network of {run.method} ({setting(run)}) sees them "
        f"under "
        "attack, least safe first; red is misclassified. Bars: what each method multiplies the "
        "image's loss "
        "with."
    )
    return drawing


def every_weight(run: Run, *, count: int = 60) -> Drawing:
    """All reweighting methods on the same examples: rows are methods, columns examples, colour is
    weight over the row's mean.
    """
    from matplotlib.colors import TwoSlopeNorm

    outputs, _ = probe(run, count)
    margin = probabilistic_margin(outputs.probs_adv, outputs.y)
    order = margin.argsort().numpy()
    epochs = len(run.history)
    rows = {
        name: row.at(epochs, epochs).weigh(outputs).detach().numpy()[order]
        for name, row in METHODS.items()
        if row.reweights
    }
    share = np.stack([w / w.mean() if w.mean() else w for w in rows.values()])
    robust = (outputs.logits_adv.argmax(dim=1) == outputs.y).numpy()[order]
    first_right = float(np.argmax(robust)) - 0.5
    drawing = Drawing(7.4, 0.135 * len(rows) + 1.2)
    axes = drawing.subplots()
    image = axes.imshow(
        np.minimum(share, 4),
        aspect="auto",
        cmap="PuOr_r",
        norm=TwoSlopeNorm(1, 0, 4),
        interpolation="nearest",
    )
    axes.axvline(first_right, color=s.BLACK, linewidth=1)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=6.5)
    axes.set_xticks([])
    axes.set_xlabel(
        "training examples, least safe first; right of the line: classified correctly under attack"
    )
    axes.set_title("Who counts?")
    for edge in axes.spines.values():
        edge.set_visible(False)
    scale = drawing.colorbar(
        image, ax=axes, label="weight / mean weight", ticks=[0, 1, 2, 3, 4], shrink=0.6, pad=0.02
    )
    scale.ax.set_yticklabels(["0", "1", "2", "3", "4 or more"])
    drawing.facts = {
        "n": len(order),
        "misclassified": int((~robust).sum()),
        "weight_on_robust": {
            name: float(w[robust].sum() / w.sum()) if w.sum() else None for name, w in rows.items()
        },
    }
    drawing.caption = (
        f"All {len(rows)} reweighting rows on {len(order)} training images of one network "
        f"({run.method}, "
        f"{setting(run)}, after epoch {epochs}); {int((~robust).sum())} of the images are "
        f"misclassified "
        "under attack."
    )
    return drawing


def every_method(runs: Sequence[Run], *, attacks: str = "natural pgd100 cw20") -> Drawing:
    """Accuracy of every method with 95 % intervals:

    clean, under PGD and under the margin attack.
    """
    table: ResultTable = result_table("", runs, attacks.split())
    names = attacks.split()
    means = table.cells["mean"].unstack(sort=False)
    order = means[names[-1]].sort_values().index
    drawing = Drawing(7.2, max(2.4, 0.17 * len(order) + 1.0))
    axes = drawing.subplots()
    looks = dict(
        zip(
            names,
            ((s.GREY, "o"), (s.BLUE, "s"), (s.VERMILLION, "D"), (s.GREEN, "^"), (s.PURPLE, "v")),
            strict=False,
        )
    )
    for attack, (tint, marker) in looks.items():
        rows = table.cells.xs(attack, level="attack").loc[order]
        axes.hlines(
            range(len(order)), rows["low"], rows["high"], color=tint, linewidth=1, alpha=0.6
        )
        axes.plot(
            rows["mean"],
            range(len(order)),
            marker,
            color=tint,
            markersize=3.5,
            linewidth=0,
            label=s.attack_label(attack),
        )
    axes.set_yticks(range(len(order)), order, fontsize=6.5)
    axes.set(xlabel="accuracy", xlim=(0, 1.0), ylim=(-1, len(order)), title="Every method")
    axes.grid(axis="y", linewidth=0.4)
    s.share_axis(axes, "x")
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=len(looks), fontsize=7.5
    )
    drawing.facts = {
        method: {
            attack: [float(table.cells.loc[(method, attack)][k]) for k in ("mean", "low", "high")]
            for attack in names
        }
        for method in order
    }
    drawing.caption = (
        f"{setting(runs[0]).rsplit(', seed', 1)[0]}. {table.caption.lstrip('. ')} "
        f"Sorted by {s.attack_label(names[-1])}."
    )
    return drawing
