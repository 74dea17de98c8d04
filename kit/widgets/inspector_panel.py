"""One image under attack, step by step: what it looks like, what the network says, what each
criterion and weight makes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from kit.attacks.contract import AttackTrace
from kit.attacks.line_search_pgd import lmpgd
from kit.attacks.momentum_iterative import mifgsm
from kit.attacks.projected_gradient_descent import pgd
from kit.core.errors import KitError
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
from kit.methods.table import METHODS
from kit.widgets.panel import Choice, Control, Number, Panel

POOL = 500  # images of a split at most: the batch by whose mean weights are divided

LEAST, MOST = 0.01, 100.0

RIVALS = (
    (s.VERMILLION, 0.75),
    (s.ORANGE, 0.75),
    (s.YELLOW, 0.6),
)  # the likeliest classes at the end but the true one


#: What is drawn beside the criteria: one method of each kind, or all of a family by the first word
#: of its name.
FAMILIES = {
    "one of each": (),
    "MAIL": ("mail",),
    "CLIRAT": ("clirat", "clir"),
    "GAIRAT, EWAT": ("gairat", "gair", "ewat"),
    "MR, WMMR": ("mr", "wmmr"),
    "VIR": ("vir", "at"),
}

MAIN = (
    "mail-at",
    "clirat",
    "gairat",
    "mr-mail",
    "wmmr",
    "ewat",
    "vir-at",
    "mail-at-nat",
    "mail-at-dif",
)

SHOWN = (
    "pm",
    "cl-pm",
    "confused-labels",
    "mr",
    "entropy",
    "kappa",
    "pm-dif",
    "pm-nat",
    "s-v",
    "s-d",
    "vir",
)


PAIRS = (
    ("clirat", "mail-at"),
    ("mail-at", "clirat"),
    ("gairat", "mail-at"),
    ("vir-at", "mail-at"),
    ("mr-mail", "mail-at"),
)

BY_NUMBER, DISAGREE, CONFUSED, NEAREST = (
    "by number",
    "schemes disagree most",
    "most confused labels",
    "nearest to the boundary",
)


def family(name: str) -> tuple[str, ...]:
    """The reweighting methods of a family, as the table orders them."""
    return (
        MAIN
        if name == "one of each"
        else tuple(
            method
            for method, row in METHODS.items()
            if row.reweights and method.split("-")[0] in FAMILIES[name]
        )
    )


#: Those that let somebody watch their path. FGSM is the first step, of length eps and from the
#: clean image; it goes on so.
ATTACKERS: dict[str, Callable[..., object]] = {
    "PGD": partial(pgd, loss="ce", init="gaussian"),
    "CW (margin loss)": partial(pgd, loss="margin", init="gaussian"),
    "KL (TRADES)": partial(pgd, loss="kl", init="gaussian"),
    "LM-PGD": lmpgd,
    "MIA (momentum)": mifgsm,
    "FGSM": partial(pgd, loss="ce", init="none"),
}


@dataclass(frozen=True)
class Walk:
    """One image along one attack, at its T + 1 points:

    the start, and where each of twice the run's steps led.
    """

    points: Tensor  # (T + 1, C, H, W)
    logits: Tensor  # (T + 1, K) float64
    # how many of the run's evaluation points are right: the start and all steps but the last
    kappa: int
    p_flip: float  # p_y at the first wrong one; after the last where none was


def relative(name: str, seen: StepOutputs) -> np.ndarray:
    """(n,) weights over their mean; ones where all are 0."""
    weights = METHODS[name].weigh(seen).double()
    return (weights / weights.mean()).numpy() if float(weights.sum()) > 0 else np.ones(len(weights))


class Pool:
    """The first images of a split as the run's last pass stored them, and who stands out among
    them.
    """

    def __init__(self, run: Run, part: str):
        if f"{part}_logits_adv" not in run.final:
            raise KitError(
                f"{run.folder.name} stored no logits of its {part} images; it has "
                f"{', '.join(run.final)}"
            )
        stored = {
            name.removeprefix(f"{part}_"): torch.from_numpy(values[:POOL])
            for name, values in run.final.items()
            if name.startswith(part)
        }
        self.run, self.ids, self.y = run, stored["ids"].long(), stored["y"].long()
        self.numbers = {
            name: stored[name].double() for name in ("logits_adv", "logits_nat", "kappa", "p_flip")
        }
        self.split = getattr(run.data(), part).take(slice(0, len(self.y)))
        seen = self.seen()
        self.criteria = {name: np.sort(CRITERIA[name].score(seen).numpy()) for name in SHOWN}
        self.weights = {
            name: relative(name, seen)
            for name in {*MAIN, *(name for pair in PAIRS for name in pair)}
        }
        self.order = self._orders(seen)

    def seen(self, row: int | None = None, **here: float | Tensor) -> StepOutputs:
        """The pool as one batch, image `row` as it is `here`."""
        numbers = dict(self.numbers)
        for name, value in here.items():
            numbers[name] = numbers[name].clone()
            numbers[name][row] = value
        return StepOutputs(
            self.y,
            **numbers,
            steps=self.run.plan.recipe.steps,
            streams=Streams(self.ids, self.run.plan.seed, "inspect"),
        )

    def _orders(self, seen: StepOutputs) -> dict[str, np.ndarray]:
        """{search: rows, the best first}; equals in the order of the images."""
        shares = np.stack([rankdata(self.weights[name]) for name in MAIN]) / len(self.y)
        keys = {
            BY_NUMBER: np.arange(len(self.y)),
            DISAGREE: -shares.std(axis=0),
            CONFUSED: confused_label_margin(seen.probs_adv, self.y).numpy()
            - 10 * confused_labels(seen.probs_adv, self.y).numpy(),
            NEAREST: probabilistic_margin(seen.probs_adv, self.y).abs().numpy(),
        }
        keys |= {f"most by {a}, least by {b}": self.weights[b] - self.weights[a] for a, b in PAIRS}
        return {name: np.argsort(key, kind="stable") for name, key in keys.items()}


class Inspect(Panel):
    name, title, source, photo = (
        "inspect",
        "One image under attack",
        "CLIRAT Fig. 1C, D; MAIL Fig. 1; MR Fig. 1",
        True,
    )
    size, rebuilds = (9.0, 4.3), frozenset({"images", "class", "attack", "weights"})

    def __init__(self, run: Run):
        self.run, self.recipe = run, run.plan.recipe
        self.device = pick_device()
        self.model = run.model(device=self.device)
        self.pools: dict[str, Pool] = {}
        self.walked = lru_cache(maxsize=512)(self._walk)
        super().__init__((run,))

    def controls(self, values: dict) -> list[Control]:
        classes, recipe = self.run.record["classes"], self.recipe
        pool = self.pool(values.get("images", "test"))
        chosen = values.get("class", "any")
        there = tuple(word for k, word in enumerate(classes) if bool((pool.y == k).any()))
        count = len(pool.y) if chosen not in there else int((pool.y == classes.index(chosen)).sum())
        given: list[Control] = [
            Choice("images", "test", ("test", "train"), "the split that they come from"),
            Choice("class", "any", ("any", *there)),
            Choice("order", BY_NUMBER, tuple(pool.order), "how the images are ordered"),
            Number(
                "place", 0, 0, max(count - 1, 1), 1, "place in that order", integer=True, plays=True
            ),
            Choice("attack", "PGD", tuple(ATTACKERS)),
            Number("eps", recipe.eps, 0.0, 3 * recipe.eps, recipe.eps / 20, "radius of the ball"),
        ]
        if values.get("attack") != "FGSM":
            given.append(Number("length", recipe.step, 0.05, 2.0, 0.05, "of a step, in eps"))
        given += [
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
        return given

    # ---- numbers

    def pool(self, part: str) -> Pool:
        if part not in self.pools:
            self.pools[part] = Pool(self.run, part)
        return self.pools[part]

    def row(self, values: dict) -> int:
        """Which image of the pool is meant."""
        pool = self.pool(values["images"])
        rows = pool.order[values["order"]]
        if values["class"] != "any":
            rows = rows[(pool.y == self.run.record["classes"].index(values["class"])).numpy()[rows]]
        return int(rows[min(values["place"], len(rows) - 1)])

    def _walk(self, part: str, row: int, attack: str, eps: float, length: float) -> Walk:
        """Attack one image and keep its path.

        With the run's eps and step PGD does what the run's last pass did.
        """
        pool, recipe = self.pool(part), self.recipe
        one = pool.split.take(slice(row, row + 1)).to(self.device)
        path, points, logits = AttackTrace(one.y, recipe.steps), [], []

        def watch(t: int, x_t: Tensor, z: Tensor) -> None:
            points.append(x_t.cpu())
            logits.append(z.cpu().double())
            if t < recipe.steps:
                path(t, x_t, z)

        with threads_for(
            recipe.model, self.device
        ):  # an attack's last point is not watched: one step more than drawn
            ATTACKERS[attack](
                self.model,
                one.x(),
                one.y,
                Threat(recipe.norm, eps),
                watch=watch,
                validate=False,
                generator=Streams(one.ids, self.run.plan.seed, "final"),
                steps=2 * recipe.steps + 1,
                step_size=length * eps,
            )
        p_last = float(logits[recipe.steps].softmax(dim=1)[0, one.y.cpu()])
        return Walk(
            torch.cat(points),
            torch.cat(logits),
            int(path.kappa),
            float(path.p_flip) if int(path.lps) < recipe.steps else p_last,
        )

    # ---- what stands still

    def build(self, figure, values: dict) -> list:
        grid = figure.add_gridspec(2, 5, width_ratios=(15, 15, 15, 13, 13), height_ratios=(12, 10))
        self.pictures, self.titles = [], []
        height, width = self.pool(values["images"]).split.images.shape[2:]
        for place, look in enumerate(({"cmap": "gray_r"}, {"cmap": "RdBu"}, {"cmap": "gray_r"})):
            axes = figure.add_subplot(grid[0, place])
            self.pictures.append(
                axes.imshow(
                    np.zeros((height, width)), vmin=0, vmax=1, interpolation="nearest", **look
                )
            )
            self.titles.append(axes.set_title("Mg", fontsize=8.5))
            pad = 0.5 + 0.02 * max(
                height, width
            )  # the frame stands beside the image, which is drawn over it
            axes.set(
                xticks=[], yticks=[], xlim=(-pad, width - 1 + pad), ylim=(height - 1 + pad, -pad)
            )
            axes.spines[:].set(visible=True, linewidth=0.5, color=s.GREY)
        areas = self._areas(figure.add_subplot(grid[1, :3]))
        criteria = self._criterion_bars(figure.add_subplot(grid[:, 3]))
        weights = self._weight_bars(figure.add_subplot(grid[:, 4]), family(values["weights"]))
        return [*self.pictures, *self.titles, *areas, *criteria, *weights]

    def _areas(self, axes) -> list:
        """Stacked probabilities:

        the true class, its strongest rivals, all others; and a line at the step.
        """
        steps = 2 * self.recipe.steps
        count = min(len(self.run.record["classes"]) - 1, len(RIVALS))
        looks = [(s.BLUE, 0.8), *RIVALS[:count], (s.GREY, 0.3)]
        self.layers = [
            axes.fill_between([0, steps], 0, 0, color=tint, alpha=alpha, linewidth=0)
            for tint, alpha in looks
        ]
        self.names = [
            axes.annotate(
                "",
                (steps, 0),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                annotation_clip=False,
                color=tint if alpha > 0.5 else "#555555",
            )
            for tint, alpha in looks
        ]
        axes.annotate(
            "others ",
            (steps, 0.5),
            xytext=(4, 0),
            textcoords="offset points",
            annotation_clip=False,
            fontsize=8,
            alpha=0,
        )  # keeps the room that the names need
        self.now = axes.axvline(0, color=s.BLACK, linewidth=1.6, clip_on=False)
        axes.axvline(self.recipe.steps, color="white", linewidth=1, linestyle=":")
        axes.set(
            xlim=(0, steps),
            ylim=(0, 1),
            ylabel="probability",
            xlabel=f"step of the attack (in training {self.recipe.steps})",
        )
        axes.xaxis.get_major_locator().set_params(integer=True)
        return [*self.layers, *self.names, self.now]

    def _criterion_bars(self, axes) -> list:
        self.shares = axes.barh(range(len(SHOWN)), 1, color="#9AA3AD", height=0.6)
        self.values_said = self._numbers(axes, len(SHOWN), "+0.00")
        axes.set(
            xlim=(0, 1),
            ylim=(len(SHOWN) - 0.5, -0.5),
            yticks=range(len(SHOWN)),
            xlabel="less vulnerable",
            title="Criteria",
            xticks=(0, 0.5, 1),
        )
        short = {"kappa": "κ", "confused-labels": "confused"}
        axes.set_yticklabels([short.get(name, CRITERIA[name].symbol) for name in SHOWN])
        axes.tick_params(axis="y", length=0)
        s.share_axis(axes, "x")
        return [*self.shares, *self.values_said]

    def _weight_bars(self, axes, names: tuple[str, ...]) -> list:
        self.bars = axes.barh(
            range(len(names)), 1, color=[s.colour(name) for name in names], height=0.6
        )
        self.weights_said = self._numbers(axes, len(names), "×0.00")
        axes.set(
            xscale="log",
            xlim=(LEAST, MOST),
            ylim=(len(names) - 0.5, -0.5),
            yticks=range(len(names)),
            xlabel="over the mean",
            title="Weights",
        )
        axes.set_xticks((0.01, 0.1, 1, 10, 100), ("0.01", "0.1", "1", "10", "100"))
        axes.minorticks_off()
        axes.set_yticklabels([name.replace("clirat-drop", "drop") for name in names], fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.axvline(1, color=s.BLACK, linewidth=0.8)
        return [*self.bars, *self.weights_said]

    def _numbers(self, axes, count: int, widest: str) -> list:
        """Texts to the right of bars."""
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

    # ---- what moves

    def update(self, values: dict) -> str:
        pool, row, step = self.pool(values["images"]), self.row(values), values["step"]
        walk = self.walked(
            values["images"], row, values["attack"], values["eps"], values.get("length", 1.0)
        )
        y, probs = int(pool.y[row]), walk.logits.softmax(dim=1)
        self._show_pictures(
            pool.split.x(slice(row, row + 1))[0], walk.points[step], y, probs[step], step
        )
        self._show_areas(probs.numpy(), y, step)
        seen = pool.seen(row, logits_adv=walk.logits[step], kappa=walk.kappa, p_flip=walk.p_flip)
        self._show_criteria(pool, seen, row)
        weights = self._show_weights(seen, row, family(values["weights"]))
        p, here, classes = probs[step : step + 1], pool.y[row : row + 1], self.run.record["classes"]
        count, said = int(confused_labels(p, here)), int(p.argmax())
        return (
            f"{values['images'].capitalize()} image {row} (id {int(pool.ids[row])}, class "
            f"{classes[y]}) under "
            f"{values['attack']}, eps {values['eps']:.3g}, after step {step}: {classes[said]} with "
            f"{float(p.max()):.2f}, the true class with {float(p[0, y]):.2f}, {count} confused "
            f"label{'' if count == 1 else 's'}, PM {float(probabilistic_margin(p, here)):+.2f} and "
            f"CL-PM "
            f"{float(confused_label_margin(p, here)):+.2f}. Weight over the mean of {len(pool.y)} "
            f"images: {weights}."
        )

    def _show_pictures(self, clean: Tensor, now: Tensor, y: int, p: Tensor, step: int) -> None:
        classes, delta = self.run.record["classes"], now - clean
        largest = float(delta.abs().max())
        factor = 0.5 / largest if largest > 0 else 1.0
        for picture, image in zip(self.pictures, (clean, 0.5 + factor * delta, now), strict=True):
            pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
            picture.set_data(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        said = int(p.argmax())
        self.titles[0].set_text(f"class {classes[y]}")
        self.titles[1].set_text(f"change ×{factor:.2g}" if largest > 0 else "no change")
        self.titles[2].set_text(f"step {step}: {classes[said]} {float(p[said]):.0%}")
        self.titles[2].set_color(s.BLACK if said == y else s.VERMILLION)

    def _show_areas(self, probs: np.ndarray, y: int, step: int) -> None:
        classes, order = self.run.record["classes"], np.argsort(-probs[-1], kind="stable")
        rivals = [k for k in order if k != y][: len(self.layers) - 2]
        parts = probs[:, [y, *rivals]].T
        edges = np.vstack([np.zeros(len(probs)), parts.cumsum(axis=0), np.ones(len(probs))])
        words = [f"{classes[y]} true", *(classes[k] for k in rivals), "others"]
        for k, (layer, text) in enumerate(zip(self.layers, self.names, strict=True)):
            layer.set_data(np.arange(len(probs)), edges[k], edges[k + 1])
            thick = edges[k + 1, -1] - edges[k, -1]
            text.set_text(words[k] if thick > 0.07 else "")
            text.xy = (len(probs) - 1, edges[k, -1] + thick / 2)
        self.now.set_xdata([step, step])

    def _show_criteria(self, pool: Pool, seen: StepOutputs, row: int) -> None:
        one = StepOutputs(
            seen.y[row : row + 1],
            seen.logits_adv[row : row + 1],
            seen.logits_nat[row : row + 1],
            seen.kappa[row : row + 1],
            p_flip=seen.p_flip[row : row + 1],
            steps=seen.steps,
        )
        for name, bar, text in zip(SHOWN, self.shares, self.values_said, strict=True):
            score, others = float(CRITERIA[name].score(one)), pool.criteria[name]
            bar.set_width(np.searchsorted(others, score - 1e-9) / len(others))
            value = float(CRITERIA[name].value(one))
            text.set_text(f"{value:.0f}" if name == "confused-labels" else f"{value:+.2f}")

    def _show_weights(self, seen: StepOutputs, row: int, names: tuple[str, ...]) -> str:
        said = []
        for name, bar, text in zip(names, self.bars, self.weights_said, strict=True):
            weight = float(relative(name, seen)[row])
            end = min(max(weight, LEAST), MOST)
            bar.set_x(min(1.0, end))
            bar.set_width(abs(end - 1))
            text.set_text(f"×{weight:.2f}" if weight < 100 else f"×{weight:.0f}")
            said.append(f"{name} {weight:.2f}")
        return ", ".join(said)


def inspect(run: Run) -> Panel:
    """One image of `run` under an attack whose every step can be seen: the image, the change
    (signed, magnified, the mid-tone is none), the attacked image; the probabilities of the true
    class, its three strongest rivals and all others at each step; each criterion, and each method's
    weight for it.

    `place` is the place in an `order`: by number, or by who stands out when the run's last pass
    attacked the first 500 images of the split; "disagree" is by the standard deviation of an
    image's rank over nine methods. `eps` and the `length` of a step (in eps; FGSM's is 1) are any;
    PGD with the run's own is that last pass's attack, so after the run's steps there is what was
    stored. A bar of a criterion is the share of the images that it calls less vulnerable, the
    number its value; a weight is over the mean of the batch that these images are, this one as it
    is at the step. κ and p_flip (pm-dif) are those of the run's number of steps and do not move
    with `step`.

    Errors: `KitError` for a run without logits of the split, or changed data. Source: CRITERIA,
    METHODS.
    """
    return Inspect(run)
