"""CSA/CSE Fig. 1 with real images: what is attacked, what a mistake costs, and what CSE adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import SubFigure
from matplotlib.ticker import MaxNLocator

from kit.core.errors import KitError
from kit.core.random_streams import Streams
from kit.core.tensors import per_example_cross_entropy
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Drawing, FigureData
from kit.figures.csa_cse_fuzziness import layer_fuzziness
from kit.figures.run_outputs import describe_setting
from kit.methods.regularisers import cost_matrix
from kit.training.step import Batch, attack_batch

BATCH = 64

#: Of the drawing, in inches, and how much wider than the right half of it the left one is.
STAGES_WIDTH, SHARES = 7.6, (1.75, 1)

#: In points: of the words above and below an image where there is room for them.
WORDS_SIZE = 7.5

#: The width of a letter in units of its size, on average; a wide word of few letters has this.
LETTER_WIDTH = 0.6

#: What stands above an image of the class that CSA protects.
PROTECTED = "protected"


def compute_training_stages(runs: Mapping[str, Run], *, count: int = 6) -> FigureData:
    """One mini-batch of the CSA run through its stages, and the CSE run's fuzziness by layer.

    The stages are clean images, what the run's attack makes of them, and the loss that each then
    brings, in cross-entropy and expected cost. `count` images are shown.

    Raises:
        KitError: for fewer than 2 or more than 10 images.
    """
    if not 2 <= count <= 10:
        raise KitError(f"count={count} must be 2 to 10 images")
    csa, cse = runs["csa"], runs["cse"]
    settings = csa.plan.method.loss.params
    protected, cost = int(settings.get("protected", 0)), float(settings.get("cost", 10.0))
    batch, logits_nat, logits_adv = _attack_first_batch(csa)
    predicted, classes = logits_adv.argmax(dim=1), csa.record["classes"]
    losses = _loss_terms(logits_adv, batch.y, protected, cost)
    mine = (batch.y == protected) | (predicted == protected)
    mean = {name: float(values.mean()) for name, values in losses.items()}
    before, after = (layer_fuzziness(cse, which) for which in ("initial", "last"))
    facts = {
        "n": len(batch.y),
        "protected": classes[protected],
        "cost": cost,
        "mean": mean,
        "loss": mean["ce"] + mean["cost"],
        "cost_involving_protected": float(losses["cost"][mine].mean())
        if bool(mine.any())
        else float("nan"),
        "cost_of_others": float(losses["cost"][~mine].mean()),
        "fuzziness": {name: {"initial": before[name], "last": after[name]} for name in before},
        "misclassified": int((predicted != batch.y).sum()),
    }
    rows = _choose_telling_images(batch.y, predicted, protected, count)
    extras = {
        "images": {"1  clean": batch.x[rows], "2  attacked": batch.x_adv[rows]},
        "said": {"1  clean": logits_nat.argmax(dim=1)[rows], "2  attacked": predicted[rows]},
        "y": batch.y[rows],
        "losses": {name: values[rows].numpy() for name, values in losses.items()},
        "classes": classes,
        "protected": protected,
    }
    return FigureData(facts, describe_setting(csa), extras=extras)


def _attack_first_batch(run: Run):
    """(a mini-batch attacked as in the run's last epoch, clean logits, attacked logits)."""
    run.check_trained_here("the attack of its method")
    epochs = run.plan.recipe.epochs
    images = run.data().train.take(slice(0, BATCH))
    model, method = run.model(), run.plan.method.at(epochs, epochs)
    streams = Streams(images.ids, run.spec.seed, "figure")
    batch = attack_batch(model, method, Batch(images.x(), images.y, streams), run.plan.recipe)
    with torch.no_grad():
        return batch, model(batch.x), model(batch.x_adv)


def _loss_terms(
    logits: torch.Tensor, y: torch.Tensor, protected: int, cost: float
) -> dict[str, torch.Tensor]:
    """Per example: cross-entropy, and Σ_i p_i C(i, y). CSA Eq. 4."""
    costs = cost_matrix(logits.shape[1], protected, cost).to(logits)
    return {
        "ce": per_example_cross_entropy(logits, y),
        "cost": (logits.softmax(dim=1) * costs[:, y].T).sum(dim=1),
    }


def _choose_telling_images(
    y: torch.Tensor, predicted: torch.Tensor, protected: int, count: int
) -> list[int]:
    """Images of the protected class, taken for it, wrong otherwise, and right, by turns."""
    wrong = predicted != y
    kinds = [
        y == protected,
        wrong & (predicted == protected),
        wrong & (y != protected) & (predicted != protected),
        ~wrong & (y != protected),
    ]
    queues = [kind.nonzero().flatten().tolist() for kind in kinds]
    chosen: list[int] = []
    while len(chosen) < min(count, len(y)):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return chosen


def draw_training_stages(data: FigureData) -> Drawing:
    """Draw the stages, the cost matrix, and fuzziness before and after training."""
    drawing = Drawing(STAGES_WIDTH, 4.0)
    [[left, right]] = drawing.subfigures(1, 2, squeeze=False, width_ratios=SHARES)
    _draw_stages(left, data.extras)
    top, bottom = right.subplots(2, 1, height_ratios=(1.35, 1))
    _draw_cost_matrix(top, data.extras["classes"], data.extras["protected"], data.facts["cost"])
    _draw_fuzziness_change(bottom, data.facts["fuzziness"])
    return drawing


def fit_class_names(classes: Sequence[str], count: int) -> tuple[str, float]:
    """Find how names of classes stand by `count` images so that neighbours do not meet.

    Returns:
        What stands between "as" and a name, a space or a line's end, and the size in points.
    """
    # a tenth is for the axis' name
    room = 0.9 * 72 * STAGES_WIDTH * SHARES[0] / sum(SHARES) / count
    longest = max(len(str(name)) for name in classes)
    widest = max(longest, len(PROTECTED))
    between = " " if LETTER_WIDTH * WORDS_SIZE * (len("as ") + longest) <= room else "\n"
    return between, min(WORDS_SIZE, room / (LETTER_WIDTH * widest))


def _draw_stages(figure: SubFigure, extras: dict) -> None:
    """Draw the images clean and attacked, with the class that the network says, and the losses."""
    count = len(extras["y"])
    _, size = fit_class_names(extras["classes"], count)
    grid = figure.add_gridspec(3, count, height_ratios=(1, 1, 1.25))
    for line, name in enumerate(extras["images"]):
        for place in range(count):
            axes = figure.add_subplot(grid[line, place])
            _draw_stage_image(axes, extras, name, place)
            if place == 0:
                axes.set_ylabel(name, fontsize=8.5, fontweight="bold")
            if line == 0:
                y = int(extras["y"][place])
                own = f"\n{PROTECTED}" if y == extras["protected"] else ""
                axes.set_title(
                    f"{extras['classes'][y]}{own}", fontsize=size, fontweight="normal", loc="center"
                )
    _draw_loss_bars(figure.add_subplot(grid[2, :]), extras["losses"])


def _draw_stage_image(axes: Axes, extras: dict, name: str, place: int) -> None:
    image = extras["images"][name][place].permute(1, 2, 0).squeeze().numpy()
    axes.imshow(np.clip(image, 0, 1), cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    said = extras["said"][name][place]
    between, size = fit_class_names(extras["classes"], len(extras["y"]))
    axes.set_xlabel(
        f"as{between}{extras['classes'][said]}",
        fontsize=size,
        color=s.BLACK if said == extras["y"][place] else s.VERMILLION,
        labelpad=2,
    )


def _draw_loss_bars(axes: Axes, losses: dict[str, np.ndarray]) -> None:
    ce, cost = losses["ce"], losses["cost"]
    axes.bar(range(len(ce)), ce, color=s.BLUE, width=0.55)
    axes.bar(range(len(ce)), cost, bottom=ce, color=s.ORANGE, width=0.55)
    top = float((ce + cost).max())
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for place, both in enumerate(ce + cost):
        axes.annotate(
            f"{both:.2f}",
            (place, both),
            xytext=(0, 1),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
        )
    axes.set(xlim=(-0.5, len(ce) - 0.5), xticks=[], ylim=(0, 1.7 * top), xlabel="the same images")
    axes.set_ylabel("3 loss", fontsize=8.5, fontweight="bold", labelpad=1)
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


def _draw_cost_matrix(axes: Axes, classes: Sequence[str], protected: int, cost: float) -> None:
    num_classes = len(classes)
    matrix = cost_matrix(num_classes, protected, cost).numpy()
    # the root sets a cost of 1 apart from none
    axes.imshow(matrix, cmap="YlOrBr", norm=PowerNorm(0.5, vmin=0, vmax=max(cost, 1.0) * 1.3))
    few = num_classes <= 12
    axes.set(
        title=f"CSA: cost $C(i, y)$, c = {cost:g}",
        xlabel="true class $y$",
        ylabel="predicted $i$",
        xticks=range(num_classes) if few else [protected],
        yticks=range(num_classes) if few else [protected],
    )
    axes.tick_params(length=0, labelsize=6.5)
    names = [str(name) for name in classes] if few else [str(classes[protected])]
    axes.set_xticklabels(names, rotation=s.class_rotation(names, 90))
    axes.set_yticklabels(names)
    if few:
        for i in range(num_classes):
            for j in range(num_classes):
                tint = "white" if matrix[i, j] > 1 else s.BLACK
                axes.text(
                    j, i, f"{matrix[i, j]:g}", ha="center", va="center", fontsize=5.5, color=tint
                )


def _draw_fuzziness_change(axes: Axes, layers: dict[str, dict[str, float]]) -> None:
    before, after = (
        {name: found[which] for name, found in layers.items()} for which in ("initial", "last")
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
    least = min(0.6, 0.98 * min(after.values()))
    axes.annotate(
        f"the axis starts at {least:.2f}", (0.02, 0.05), xycoords="axes fraction", fontsize=7.5
    )
    axes.set(
        title="CSE: fuzziness",
        ylabel="○ at first  ● trained",
        xlim=(-0.6, len(before) - 0.4),
        xticks=range(len(before)),
        ylim=(least, 0.72),
    )
    axes.set_xticklabels(
        [f"conv{place + 1}" for place in range(len(before))]
        if len(before) < 6
        else [str(place + 1) for place in range(len(before))],
        fontsize=7,
    )


def describe_training_stages(data: FigureData) -> str:
    """The caption: what CSA and CSE minimise, with this batch's numbers."""
    facts = data.facts
    return (
        f"CSA/CSE Fig. 1 draws the scheme; this is it at work on {len(data.extras['y'])} of "
        f"{facts['n']} training images ({data.setting}). CSA minimises the mean of cross-entropy "
        f"and expected cost, {facts['mean']['ce']:.2f} + {facts['mean']['cost']:.2f} over all "
        f"{facts['n']} (the bars are of the {len(data.extras['y'])} that are drawn); "
        f"mistakes with class {facts['protected']} cost {facts['cost']:g}. CSE minimises "
        "cross-entropy plus the fuzziness of its convolutions, which Eq. 8 makes largest, ln 2, "
        "where all parameters are 0."
    )


def notice_training_stages(data: FigureData) -> str:
    """How many images are misclassified, and what the cost adds, and for whom."""
    facts = data.facts
    mine, others = facts["cost_involving_protected"], facts["cost_of_others"]
    share = mine / (mine + others) if mine + others else 0.0
    return (
        f"{facts['misclassified']} of {facts['n']} images are misclassified under the attack. "
        f"Mistakes that involve the protected class are {share:.0%} of the expected cost."
    )
