"""CSA/CSE's overview, with real images:

what is attacked, what a mistake costs, and what CSE adds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.axes import Axes

from kit.core.errors import KitError
from kit.core.random_streams import Streams
from kit.core.tensors import per_example_cross_entropy
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Drawing
from kit.figures.reading import setting
from kit.methods.regularisers import conv_weights, cost_matrix, fuzziness
from kit.training.step import Batch, attack_batch

BATCH = 64


def walk_through(runs: Mapping[str, Run], *, count: int = 6) -> Drawing:
    """One mini-batch of the CSA run: clean images, what its attack makes of them, and the loss that
    each then brings, in cross-entropy and expected cost; the cost matrix; and the fuzziness of the
    CSE run's layers before and after training.
    """
    if not 2 <= count <= 10:
        raise KitError(f"count={count} must be 2 to 10 images")
    csa, cse = runs["csa"], runs["cse"]
    settings = csa.plan.method.loss.params
    protected, cost = int(settings.get("protected", 0)), float(settings.get("cost", 10.0))
    batch, logits_nat, logits_adv = _attacked(csa)
    losses = _terms(logits_adv, batch.y, protected, cost)
    rows = _telling(batch.y, logits_adv.argmax(dim=1), protected, count)
    classes = csa.record["classes"]
    drawing = Drawing(7.6, 4.0)
    left, right = drawing.subfigures(1, 2, width_ratios=(1.75, 1))
    _stages(left, batch, rows, logits_nat, logits_adv, losses, classes, protected)
    top, bottom = right.subplots(2, 1, height_ratios=(1.35, 1))
    _costs(top, len(classes), protected, cost, classes)
    layers = _fuzziness(bottom, cse)
    mine = (batch.y == protected) | (logits_adv.argmax(dim=1) == protected)
    mean = {name: float(values.mean()) for name, values in losses.items()}
    involved = float(losses["cost"][mine].mean()) if bool(mine.any()) else float("nan")
    drawing.facts = {
        "n": len(batch.y),
        "protected": classes[protected],
        "cost": cost,
        "mean": mean,
        "loss": mean["ce"] + mean["cost"],
        "cost_involving_protected": involved,
        "cost_of_others": float(losses["cost"][~mine].mean()),
        "fuzziness": layers,
        "misclassified": int((logits_adv.argmax(dim=1) != batch.y).sum()),
    }
    drawing.caption = (
        f"CSA/CSE Fig. 1 draws the scheme; this is it at work on {len(rows)} of {len(batch.y)} "
        f"training images "
        f"({setting(csa)}). CSA minimises "
        f"the mean of cross-entropy and expected cost, here {mean['ce']:.2f} + {mean['cost']:.2f}; "
        f"mistakes with class "
        f"{classes[protected]} cost "
        f"{cost:g}. CSE minimises cross-entropy plus the fuzziness of its convolutions, which Eq. "
        f"8 makes largest, ln 2, "
        "where all "
        "parameters are 0."
    )
    return drawing


def _attacked(run: Run):
    """A mini-batch of training images, attacked as the run's last epoch was; clean and attacked
    logits.
    """
    epochs = run.plan.recipe.epochs
    images = run.data().train.take(slice(0, BATCH))
    model, method = run.model(), run.plan.method.at(epochs, epochs)
    streams = Streams(images.ids, run.spec.seed, "figure")
    batch = attack_batch(model, method, Batch(images.x(), images.y, streams), run.plan.recipe)
    with torch.no_grad():
        return batch, model(batch.x), model(batch.x_adv)


def _terms(
    logits: torch.Tensor, y: torch.Tensor, protected: int, cost: float
) -> dict[str, torch.Tensor]:
    """Per example: cross-entropy, and Σ_i p_i C(i, y). CSA Eq. 4."""
    costs = cost_matrix(logits.shape[1], protected, cost).to(logits)
    return {
        "ce": per_example_cross_entropy(logits, y),
        "cost": (logits.softmax(dim=1) * costs[:, y].T).sum(dim=1),
    }


def _telling(y: torch.Tensor, predicted: torch.Tensor, protected: int, count: int) -> list[int]:
    """Images to show:

    of the protected class, taken for it, wrong otherwise, right; as many of each as come by turns.
    """
    wrong = predicted != y
    kinds = [
        y == protected,
        wrong & (predicted == protected),
        wrong & (y != protected) & (predicted != protected),
        ~wrong & (y != protected),
    ]
    queues, chosen = [kind.nonzero().flatten().tolist() for kind in kinds], []
    while len(chosen) < min(count, len(y)):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return chosen


def _stages(
    figure, batch, rows: list[int], logits_nat, logits_adv, losses, classes, protected: int
) -> None:
    grid = figure.add_gridspec(3, len(rows), height_ratios=(1, 1, 1.25))
    shown = ((batch.x, logits_nat, "1  clean"), (batch.x_adv, logits_adv, "2  attacked"))
    for line, (images, logits, name) in enumerate(shown):
        given = logits.argmax(dim=1)
        for place, i in enumerate(rows):
            axes = figure.add_subplot(grid[line, place])
            image = images[i].permute(1, 2, 0).squeeze().numpy()
            axes.imshow(np.clip(image, 0, 1), cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            right = given[i] == batch.y[i]
            axes.set_xlabel(
                f"as {classes[given[i]]}",
                fontsize=7.5,
                color=s.BLACK if right else s.VERMILLION,
                labelpad=2,
            )
            if place == 0:
                axes.set_ylabel(name, fontsize=8.5, fontweight="bold")
            if line == 0:
                own = " (protected)" if batch.y[i] == protected else ""
                axes.set_title(
                    f"{classes[batch.y[i]]}{own}", fontsize=7.5, fontweight="normal", loc="center"
                )
    axes = figure.add_subplot(grid[2, :])
    ce, cost = (losses[name][rows].numpy() for name in ("ce", "cost"))
    axes.bar(range(len(rows)), ce, color=s.BLUE, width=0.55)
    axes.bar(range(len(rows)), cost, bottom=ce, color=s.ORANGE, width=0.55)
    top = float((ce + cost).max())
    axes.set(xlim=(-0.5, len(rows) - 0.5), xticks=[], ylim=(0, 1.4 * top), xlabel="the same images")
    axes.set_ylabel("3  loss", fontsize=8.5, fontweight="bold")
    axes.text(
        0.01,
        0.97,
        "expected cost $\\Sigma_i\\,p_i\\,C(i,y)$",
        color="#9A6A00",
        fontsize=8,
        transform=axes.transAxes,
        va="top",
    )
    axes.text(
        0.01, 0.83, "cross-entropy", color=s.BLUE, fontsize=8, transform=axes.transAxes, va="top"
    )


def _costs(axes: Axes, num_classes: int, protected: int, cost: float, classes) -> None:
    matrix = cost_matrix(num_classes, protected, cost).numpy()
    axes.imshow(matrix, cmap="YlOrBr", vmin=0, vmax=cost * 1.3)
    few = num_classes <= 12
    axes.set(
        title=f"CSA: cost $C(i, y)$, c = {cost:g}",
        xlabel="true class $y$",
        ylabel="predicted $i$",
        xticks=range(num_classes) if few else [protected],
        yticks=range(num_classes) if few else [protected],
    )
    axes.tick_params(length=0, labelsize=6.5)
    names = [str(name)[:8] for name in classes] if few else [str(classes[protected])[:8]]
    axes.set_xticklabels(names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticklabels(names)
    if few:
        for i in range(num_classes):
            for j in range(num_classes):
                if protected in (i, j) or i == j:
                    axes.text(j, i, f"{matrix[i, j]:g}", ha="center", va="center", fontsize=5.5)


def _fuzziness(axes: Axes, run: Run) -> dict[str, dict[str, float]]:
    with torch.no_grad():
        before, after = (
            {name: float(fuzziness(w)) for name, w in conv_weights(run.model(which)).items()}
            for which in ("initial", "last")
        )
    for place, name in enumerate(before):
        axes.plot([place, place], [before[name], after[name]], color=s.PURPLE, linewidth=1.2)
    axes.plot(
        range(len(before)),
        list(before.values()),
        "o",
        color="white",
        markeredgecolor=s.PURPLE,
        markersize=6,
    )
    axes.plot(range(len(after)), list(after.values()), "o", color=s.PURPLE, markersize=6)
    axes.axhline(np.log(2), color="#999999", linewidth=0.9, linestyle=":")
    axes.annotate(
        "ln 2",
        (1, np.log(2)),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=7.5,
        color="#666666",
    )
    axes.set(
        title="CSE: fuzziness",
        ylabel="○ at first  ● trained",
        xlim=(-0.6, len(before) - 0.4),
        xticks=range(len(before)),
        ylim=(min(0.6, 0.98 * min(after.values())), 0.72),
    )
    axes.set_xticklabels(
        [f"conv{place + 1}" for place in range(len(before))]
        if len(before) < 6
        else [str(place + 1) for place in range(len(before))],
        fontsize=7,
    )
    return {name: {"initial": before[name], "last": after[name]} for name in before}
