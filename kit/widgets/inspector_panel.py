"""One image under attack, step by step.

What it looks like, what the network says, and what each criterion and weight makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from torch import Tensor

from kit.attacks.contract import AttackTrace
from kit.attacks.line_search_pgd import lmpgd
from kit.attacks.momentum_iterative import mifgsm
from kit.attacks.projected_gradient_descent import pgd
from kit.core.random_streams import Streams
from kit.core.threat import Threat
from kit.experiments.devices import pick_device, threads_for
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.methods.criteria import (
    CRITERIA,
    confused_label_margin,
    confused_labels,
    probabilistic_margin,
)
from kit.methods.step_outputs import StepOutputs
from kit.widgets.controls import Choice, Control, Number
from kit.widgets.inspected_images import (
    BY_NUMBER,
    DISAGREE,
    FAMILIES,
    NEAREST_BOUNDARY,
    SHOWN_CRITERIA,
    Pool,
    batch_relative_weights,
    family_methods,
    select_image,
)
from kit.widgets.notes import Notes
from kit.widgets.panel import Panel

LEAST_WEIGHT, MOST_WEIGHT = 0.01, 100.0  # of the axis, over the mean

#: Tint and strength of the likeliest classes at the end but the true one.
RIVAL_TINTS = ((s.VERMILLION, 0.75), (s.ORANGE, 0.75), (s.YELLOW, 0.6))

#: The attacks that let somebody watch their path. FGSM is the first step, of length eps and from
#: the clean image; it goes on so.
WATCHED_ATTACKS: dict[str, Callable[..., object]] = {
    "PGD": partial(pgd, loss="ce", init="gaussian"),
    "CW (margin loss)": partial(pgd, loss="margin", init="gaussian"),
    "KL (TRADES)": partial(pgd, loss="kl", init="gaussian"),
    "LM-PGD": lmpgd,
    "MIA (momentum)": mifgsm,
    "FGSM": partial(pgd, loss="ce", init="none"),
}


@dataclass(frozen=True)
class WatchedAttack:
    """One image along one attack, at its T + 1 points.

    These are the start, and where each of twice the run's steps led.
    """

    points: Tensor  # (T + 1, C, H, W)
    logits: Tensor  # (T + 1, K) float64
    # how many of the run's evaluation points are right: the start and all steps but the last
    kappa: int
    lps: int  # the first of these that is wrong, the number of steps if none is
    p_flip: float  # p_y at the first wrong one; after the last where none was


# ---------------------------------------------------------------------------------- how it is drawn


def draw_bar_numbers(axes: Axes, count: int, widest: str) -> list[Annotation]:
    """Texts to the right of `count` bars; `widest` keeps the room that the widest one needs."""
    return [
        axes.annotate(
            widest,
            (1, row),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            va="center",
            fontsize=7.5,
            textcoords="offset points",
            annotation_clip=False,
        )
        for row in range(count)
    ]


class Inspect(Panel):
    """The panel of `inspect`."""

    name, title, photo = "inspect", "One image under attack", True
    source = "CLIRAT Fig. 1C, D; MAIL Fig. 1; MR Fig. 1"
    size, rebuilds = (9.0, 4.3), frozenset({"images", "class", "attack", "weights"})

    def __init__(self, run: Run):
        self.run, self.recipe = run, run.plan.recipe
        self.device = pick_device()
        self.model = run.model(device=self.device)
        self.pools: dict[str, Pool] = {}
        self.attack_path = lru_cache(maxsize=512)(self._attack_image)
        super().__init__((run,))

    @property
    def classes(self) -> list[str]:
        """The names of the run's classes."""
        return self.run.record["classes"]

    # ---- its controls

    def controls(self, values: dict) -> list[Control]:
        """Which image, which attack, how far along it, and whose weights."""
        recipe, pool = self.recipe, self.pool(values.get("images", "test"))
        chosen = values.get("class", "any")
        present = tuple(name for k, name in enumerate(self.classes) if bool((pool.y == k).any()))
        count = (
            int((pool.y == self.classes.index(chosen)).sum()) if chosen in present else len(pool.y)
        )
        length = Number("length", recipe.step, 0.05, 2.0, 0.05, "of a step, in eps")
        return [
            Choice("images", "test", ("test", "train"), "the split that they come from"),
            Choice("class", "any", ("any", *present)),
            Choice("order", BY_NUMBER, tuple(pool.order), "how the images are ordered"),
            Number(
                "place", 0, 0, max(count - 1, 1), 1, "place in that order", integer=True, plays=True
            ),
            Choice("attack", "PGD", tuple(WATCHED_ATTACKS)),
            Number("eps", recipe.eps, 0.0, 3 * recipe.eps, recipe.eps / 20, "radius of the ball"),
            *([] if values.get("attack") == "FGSM" else [length]),
            Number(
                "step",
                recipe.steps,
                0,
                2 * recipe.steps,
                1,
                "how far along the attack; 0 is its start",
                integer=True,
                plays=True,
            ),
            Choice("weights", "one of each", tuple(FAMILIES), "whose are drawn"),
        ]

    # ---- numbers

    def pool(self, part: str) -> Pool:
        """The images of a split, "train" or "test", read once."""
        if part not in self.pools:
            self.pools[part] = Pool(self.run, part)
        return self.pools[part]

    def row(self, values: Mapping[str, Any]) -> int:
        """Which image of the pool is meant."""
        pool = self.pool(values["images"])
        rows = pool.order[values["order"]]
        if values["class"] != "any":
            rows = rows[(pool.y == self.classes.index(values["class"])).numpy()[rows]]
        return int(rows[min(values["place"], len(rows) - 1)])

    def _attack_image(
        self, part: str, row: int, attack: str, eps: float, length: float
    ) -> WatchedAttack:
        """Attack one image and keep its path.

        With the run's eps and step PGD does what the run's last pass did.
        """
        pool, recipe = self.pool(part), self.recipe
        one = pool.split.take(slice(row, row + 1)).to(self.device)
        trace, points, logits = AttackTrace(one.y, recipe.steps), [], []

        def watch(t: int, x_t: Tensor, z: Tensor) -> None:
            points.append(x_t.cpu())
            logits.append(z.cpu().double())
            if t < recipe.steps:
                trace(t, x_t, z)

        with threads_for(recipe.model, self.device):
            WATCHED_ATTACKS[attack](
                self.model,
                one.x(),
                one.y,
                Threat(recipe.norm, eps),
                watch=watch,
                validate=False,
                generator=Streams(one.ids, self.run.plan.seed, "final"),
                # The last point is not watched: one more than drawn.
                steps=2 * recipe.steps + 1,
                step_size=length * eps,
            )
        assert trace.kappa is not None and trace.lps is not None and trace.p_flip is not None, (
            "the attack has called its watch"
        )
        p_last = float(logits[recipe.steps].softmax(dim=1)[0, one.y.cpu()])
        return WatchedAttack(
            torch.cat(points),
            torch.cat(logits),
            int(trace.kappa),
            int(trace.lps),
            float(trace.p_flip) if int(trace.lps) < recipe.steps else p_last,
        )

    def notes(self) -> Notes:
        """Whom the methods favour among the test images, and what another attack changes."""
        return Notes(
            (
                self._describe_favourite("most by clirat, least by mail-at", "clirat", "mail-at"),
                self._describe_favourite("most by gairat, least by mail-at", "gairat", "mail-at"),
                self._describe_favourite(DISAGREE, "mail-at", "ewat"),
                self._describe_other_attack(NEAREST_BOUNDARY, "CW (margin loss)"),
            )
        )

    def _describe_favourite(self, order: str, first: str, second: str) -> str:
        """The first image of an order, and what two methods make of it after the run's steps."""
        pool = self.pool("test")
        row = int(pool.order[order][0])
        one = select_image(pool.outputs(), row)
        probs, y = one.probs_adv, one.y
        assert one.kappa is not None, "a pool has it"
        count = int(confused_labels(probs, y))
        return (
            f"First by “{order}”: test image {row}, with {count} confused "
            f"label{'' if count == 1 else 's'}, PM {float(probabilistic_margin(probs, y)):+.2f} "
            f"and κ = {int(one.kappa)} of {one.steps}. {s.label(first)} gives it "
            f"×{pool.weights[first][row]:.2g}, {s.label(second)} ×{pool.weights[second][row]:.2g}."
        )

    def _describe_other_attack(self, order: str, attack: str) -> str:
        """What becomes of an order's first image where another attack takes the place of PGD."""
        row = int(self.pool("test").order[order][0])
        names = ("mail-at", "gairat", "mail-at-nat")
        before, after = (self._weights_under(row, name, names) for name in ("PGD", attack))
        changes = (
            f"{s.label(name)} ×{before[name]:.2g}, then ×{after[name]:.2g}" for name in names
        )
        return (
            f"First by “{order}”: test image {row} under PGD and then under {attack}: "
            f"{'; '.join(changes)}."
        )

    def _weights_under(self, row: int, attack: str, names: Sequence[str]) -> dict[str, float]:
        """{method: an image's weight over the mean} after the run's steps of an attack."""
        recipe = self.recipe
        length = 1.0 if attack == "FGSM" else recipe.step
        path = self.attack_path("test", row, attack, recipe.eps, length)
        outputs = self._outputs_on(path, "test", row, recipe.steps)
        return {name: float(batch_relative_weights(name, outputs)[row]) for name in names}

    def _outputs_on(self, path: WatchedAttack, part: str, row: int, step: int) -> StepOutputs:
        """The pool as one batch, its image `row` as it is at a step of an attack."""
        return self.pool(part).outputs(
            row,
            logits_adv=path.logits[step],
            kappa=path.kappa,
            lps=path.lps,
            p_flip=path.p_flip,
        )

    # ---- what stands still

    def build(self, figure, values: dict) -> list[Artist]:
        """Draw the axes."""
        grid = figure.add_gridspec(2, 5, width_ratios=(15, 15, 15, 13, 13), height_ratios=(12, 10))
        moving = self._build_pictures([figure.add_subplot(grid[0, place]) for place in range(3)])
        moving += self._build_areas(figure.add_subplot(grid[1, :3]))
        moving += self._build_criteria(figure.add_subplot(grid[:, 3]))
        names = family_methods(values["weights"])
        return moving + self._build_weights(figure.add_subplot(grid[:, 4]), names)

    def _build_pictures(self, places: list[Axes]) -> list[Artist]:
        """The clean image, the change and the attacked image."""
        self.pictures, self.titles = [], []
        height, width = self.pool(self.values["images"]).split.images.shape[2:]
        # the frame stands beside the image, which is drawn over it
        pad = 0.5 + 0.02 * max(height, width)
        for axes, colours in zip(places, ("gray_r", "RdBu", "gray_r"), strict=True):
            blank = np.zeros((height, width))
            self.pictures.append(
                axes.imshow(blank, vmin=0, vmax=1, interpolation="nearest", cmap=colours)
            )
            self.titles.append(axes.set_title("Mg", fontsize=8.5))
            axes.set(
                xticks=[], yticks=[], xlim=(-pad, width - 1 + pad), ylim=(height - 1 + pad, -pad)
            )
            axes.spines[:].set(visible=True, linewidth=0.5, color=s.GREY)
        return [*self.pictures, *self.titles]

    def _build_areas(self, axes: Axes) -> list[Artist]:
        """Stacked probabilities and a line at the step.

        The true class comes first, then its strongest rivals, then all others.
        """
        steps = 2 * self.recipe.steps
        count = min(len(self.classes) - 1, len(RIVAL_TINTS))
        tints = [(s.BLUE, 0.8), *RIVAL_TINTS[:count], (s.GREY, 0.3)]
        self.layers = [
            axes.fill_between([0, steps], 0, 0, color=tint, alpha=alpha, linewidth=0)
            for tint, alpha in tints
        ]
        beside: dict[str, Any] = {
            "xytext": (4, 0),
            "textcoords": "offset points",
            "annotation_clip": False,
            "fontsize": 8,
        }
        self.names = [
            axes.annotate(
                "", (steps, 0), va="center", color=tint if alpha > 0.5 else "#555555", **beside
            )
            for tint, alpha in tints
        ]
        # keeps the room that the names need
        widest = max("others ", *(f"{name} true" for name in self.classes), key=len)
        axes.annotate(widest, (steps, 0.5), alpha=0, **beside)
        self.now = axes.axvline(0, color=s.BLACK, linewidth=1.6, clip_on=False)
        axes.axvline(self.recipe.steps, color="white", linewidth=1, linestyle=":")
        axes.set(
            xlim=(0, steps),
            ylim=(0, 1),
            ylabel="probability",
            xlabel=f"step of the attack (in training {self.recipe.steps})",
        )
        s.whole_numbers(axes)
        return [*self.layers, *self.names, self.now]

    def _build_criteria(self, axes: Axes) -> list[Artist]:
        count = len(SHOWN_CRITERIA)
        self.shares = axes.barh(range(count), 1, color="#9AA3AD", height=0.6)
        self.criterion_numbers = draw_bar_numbers(axes, count, "+0.00")
        axes.set(
            xlim=(0, 1),
            ylim=(count - 0.5, -0.5),
            yticks=range(count),
            xlabel="less vulnerable",
            title="Criteria",
            xticks=(0, 0.5, 1),
        )
        short = {"kappa": "κ", "confused-labels": "confused"}
        axes.set_yticklabels([short.get(name, CRITERIA[name].symbol) for name in SHOWN_CRITERIA])
        axes.tick_params(axis="y", length=0)
        s.share_axis(axes, "x")
        return [*self.shares, *self.criterion_numbers]

    def _build_weights(self, axes: Axes, names: tuple[str, ...]) -> list[Artist]:
        tints = [s.colour(name) for name in names]
        self.bars = axes.barh(range(len(names)), 1, color=tints, height=0.6)
        self.weight_numbers = draw_bar_numbers(axes, len(names), "×0.00")
        axes.set(
            xscale="log",
            xlim=(LEAST_WEIGHT, MOST_WEIGHT),
            ylim=(len(names) - 0.5, -0.5),
            yticks=range(len(names)),
            xlabel="over the mean",
            title="Weights",
        )
        axes.set_xticks((0.01, 1, 100), ("0.01", "1", "100"))
        axes.minorticks_off()
        axes.set_yticklabels([name.replace("clirat-drop", "drop") for name in names], fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.axvline(1, color=s.BLACK, linewidth=0.8)
        return [*self.bars, *self.weight_numbers]

    # ---- what moves

    def update(self, values: dict) -> str:
        """Attack the image, and show the point that is chosen."""
        pool, row, step = self.pool(values["images"]), self.row(values), values["step"]
        path = self.attack_path(
            values["images"], row, values["attack"], values["eps"], values.get("length", 1.0)
        )
        y, probs = int(pool.y[row]), path.logits.softmax(dim=1)
        clean = pool.split.x(slice(row, row + 1))[0]
        self._show_pictures(clean, path.points[step], y, probs[step], step)
        self._show_areas(probs.numpy(), y, step)
        outputs = self._outputs_on(path, values["images"], row, step)
        self._show_criteria(pool, select_image(outputs, row))
        weights = self._show_weights(outputs, row, family_methods(values["weights"]))
        return self._describe(values, row, probs[step : step + 1], weights)

    def _describe(self, values: Mapping[str, Any], row: int, p: Tensor, weights: str) -> str:
        """What the picture shows of the image `row`, whose probabilities are p (1, K)."""
        pool = self.pool(values["images"])
        y = pool.y[row : row + 1]
        count, answer = int(confused_labels(p, y)), int(p.argmax())
        return (
            f"{values['images'].capitalize()} image {row} (id {int(pool.ids[row])}, class "
            f"{self.classes[int(y)]}) under {values['attack']}, eps {values['eps']:.3g}, after "
            f"step {values['step']}: {self.classes[answer]} with {float(p.max()):.2f}, the true "
            f"class with {float(p[0, int(y)]):.2f}, {count} confused "
            f"label{'' if count == 1 else 's'}, PM {float(probabilistic_margin(p, y)):+.2f} and "
            f"CL-PM {float(confused_label_margin(p, y)):+.2f}. Weight over the mean of "
            f"{len(pool.y)} images: {weights}."
        )

    def _show_pictures(self, clean: Tensor, now: Tensor, y: int, p: Tensor, step: int) -> None:
        delta = now - clean
        largest = float(delta.abs().max())
        factor = 0.5 / largest if largest > 0 else 1.0
        for picture, image in zip(self.pictures, (clean, 0.5 + factor * delta, now), strict=True):
            pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
            picture.set_data(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        answer = int(p.argmax())
        self.titles[0].set_text(f"class {self.classes[y]}")
        self.titles[1].set_text(f"change ×{factor:.2g}" if largest > 0 else "no change")
        self.titles[2].set_text(f"step {step}: {self.classes[answer]} {float(p[answer]):.0%}")
        self.titles[2].set_color(s.BLACK if answer == y else s.VERMILLION)

    def _show_areas(self, probs: np.ndarray, y: int, step: int) -> None:
        order = np.argsort(-probs[-1], kind="stable")
        rivals = [k for k in order if k != y][: len(self.layers) - 2]
        parts = probs[:, [y, *rivals]].T
        edges = np.vstack([np.zeros(len(probs)), parts.cumsum(axis=0), np.ones(len(probs))])
        words = [f"{self.classes[y]} true", *(self.classes[k] for k in rivals), "others"]
        for k, (layer, text) in enumerate(zip(self.layers, self.names, strict=True)):
            layer.set_data(np.arange(len(probs)), edges[k], edges[k + 1])
            thick = edges[k + 1, -1] - edges[k, -1]
            text.set_text(words[k] if thick > 0.07 else "")
            text.xy = (len(probs) - 1, edges[k, -1] + thick / 2)
        self.now.set_xdata([step, step])

    def _show_criteria(self, pool: Pool, one: StepOutputs) -> None:
        assert one.kappa is not None, "a pool has it"
        kappa = float(one.kappa)
        for name, bar, text in zip(
            SHOWN_CRITERIA, self.shares, self.criterion_numbers, strict=True
        ):
            score, others = float(CRITERIA[name].score(one)), pool.criteria[name]
            bar.set_width(np.searchsorted(others, score - 1e-9) / len(others))
            value = float(CRITERIA[name].value(one))
            # κ is a count, as it is everywhere in the lessons; GAIRAT centres and scales it
            counts = {"confused-labels": value, "kappa": kappa}
            text.set_text(f"{counts[name]:.0f}" if name in counts else f"{value:+.2f}")

    def _show_weights(self, outputs: StepOutputs, row: int, names: tuple[str, ...]) -> str:
        """Move the bars of the weights, and list the weights in words."""
        words = []
        for name, bar, text in zip(names, self.bars, self.weight_numbers, strict=True):
            weight = float(batch_relative_weights(name, outputs)[row])
            end = min(max(weight, LEAST_WEIGHT), MOST_WEIGHT)
            bar.set_x(min(1.0, end))
            bar.set_width(abs(end - 1))
            decimals = sum(weight < end for end in (10, 100))  # three digits have room
            text.set_text(f"×{weight:.{decimals}f}")
            words.append(f"{name} {weight:.2f}")
        return ", ".join(words)


def inspect(run: Run) -> Panel:
    """Show one image of `run` under an attack whose every step can be seen.

    There are the image, the change (signed, magnified, the mid-tone is none) and the attacked
    image; the probabilities of the true class, its three strongest rivals and all others at each
    step; each criterion, and each method's weight for it.

    `place` is the place in an `order`: by number, or by who stands out when the run's last pass
    attacked the first 500 images of the split; "disagree" is by the standard deviation of an
    image's rank over nine methods. `eps` and the `length` of a step (in eps; FGSM's is 1) are any;
    PGD with the run's own is that last pass's attack, so after the run's steps there is what was
    stored. A bar of a criterion is the share of the images that it calls less vulnerable, the
    number its value; a weight is over the mean of the batch that these images are, this one as it
    is at the step. κ and p_flip (pm-dif) are those of the run's number of steps and do not move
    with `step`.

    Raises:
        KitError: the run has no logits of the split, or its data have changed.

    Source: `kit.CRITERIA` and `kit.METHODS`.
    """
    return Inspect(run)
