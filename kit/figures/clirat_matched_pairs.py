"""CLIRAT s. 1: at equal PM, are examples with several confused labels deeper in trouble?

Each misclassified training example with several confused labels is paired with one that has a
single confused label and nearly the same PM. Three things are compared within the pairs: how far
the attacked image has to go back to its class, how near the clean image was to the boundary, and
whether the example is right under attack an epoch later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from math import nan

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from kit.attacks.fast_minimum_norm import fmn
from kit.attacks.projected_gradient_descent import pgd
from kit.core import tensors
from kit.core.parameters import Natural, Positive, check_value
from kit.core.threat import Threat
from kit.evaluation.accuracy import evaluate
from kit.evaluation.result_tables import count_seeds
from kit.evaluation.statistics import Interval, bootstrap_over_seeds
from kit.experiments.devices import pick_device
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData, format_points
from kit.figures.run_outputs import (
    check_seeds,
    describe_setting,
    epoch_probabilities,
)
from kit.methods.criteria import confused_label_margin, confused_labels, probabilistic_margin
from kit.papers.claim_verdict import Estimate

IMAGES_AT_ONCE = 256


@dataclass(frozen=True)
class Comparison:
    """One thing that is compared within pairs: its names, its unit, and the side of "deeper".

    `deeper` is +1 where a larger value means deeper in trouble, and -1 where a smaller one does.
    `claim` is the row of claims.csv whose check names it.
    """

    title: str
    words: str
    unit: str
    deeper: int
    claim: int | None


COMPARISONS = {
    "way_back": Comparison(
        "Attacked image: distance back",
        "the attacked image's distance back to its class",
        "distance / eps",
        1,
        4,
    ),
    "boundary": Comparison(
        "Clean image: to the boundary",
        "the clean image's distance to the boundary",
        "distance / eps",
        -1,
        None,
    ),
    "later": Comparison(
        "Right an epoch later",
        "the chance to be right under attack an epoch later",
        "share of examples",
        -1,
        4,
    ),
}


@dataclass(frozen=True)
class MatchedPairs:
    """What the n pairs of one run showed; of two columns, the first has a single confused label.

    An image may be in several pairs where they are of several epochs.
    """

    rows: np.ndarray  # (n, 2) numbers of the training images
    values: np.ndarray  # (n, 2) what is compared
    pm: np.ndarray  # (n, 2)
    cl_pm: np.ndarray  # (n, 2)


# ------------------------------------------------------------------------------------------ pairing


def match_margins(one: np.ndarray, several: np.ndarray, width: float) -> np.ndarray:
    """Pairs (n, 2) of row numbers of `one` and `several` whose values differ by at most `width`.

    Each row is used at most once. Of all ways to pair them, that with the least sum of differences
    is taken, any pair farther apart than `width` counting as `width`.
    """
    from scipy.optimize import linear_sum_assignment

    gap = np.abs(one[:, None] - several[None, :])
    pairs = np.stack(linear_sum_assignment(np.minimum(gap, width)), axis=1)
    return pairs[gap[pairs[:, 0], pairs[:, 1]] <= width]


def match_examples(probs: Tensor, y: Tensor, width: float) -> np.ndarray:
    """Pairs (n, 2) of rows: one confused label, and several, of nearly the same PM."""
    pm, count = probabilistic_margin(probs, y).numpy(), confused_labels(probs, y).numpy()
    one, several = np.flatnonzero(count == 1), np.flatnonzero(count >= 2)
    found = match_margins(pm[one], pm[several], width)
    return np.stack([one[found[:, 0]], several[found[:, 1]]], axis=1)


# ---------------------------------------------------------------------------------------- distances


class OneClassOrNone(nn.Module):
    """A network that says 1 where it would say `label`, and 0 elsewhere.

    A minimal-norm attack on its 0 looks for the nearest image that the network gives to `label`.
    """

    def __init__(self, model: nn.Module, label: int):
        super().__init__()
        self.model, self.label = model, label

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2): of the best other class, and of `label`."""
        logits = self.model(x)
        labels = torch.full((len(x),), self.label, device=x.device)
        own, other = tensors.true_and_top_other(logits, labels)
        return torch.stack([other, own], dim=1)


def measure_way_back(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> np.ndarray:
    """(N,) the threat's norm of the least change after which images x are classified as y.

    It is found by FMN, so it is an upper bound; 0 where x is right already.
    """
    found = np.zeros(len(x))
    for label in y.unique().tolist():
        mine = (y == label).nonzero().flatten()
        target = OneClassOrNone(model, label)
        result = fmn(target, x[mine], torch.zeros_like(mine), threat)
        found[mine.cpu().numpy()] = result.size.cpu().numpy()
    return found


def attack_training_images(run: Run, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """(network, first n training images under the training attack, from themselves; labels)."""
    recipe, device = run.plan.recipe, pick_device()
    model, train = run.model(device=device), run.data().train.take(slice(0, n or None)).to(device)
    attacked = [
        pgd(
            model,
            train.x(rows),
            train.y[rows],
            recipe.threat,
            steps=recipe.steps,
            step_size=recipe.step * recipe.eps,
            init="none",
        )
        for rows in torch.arange(len(train), device=device).split(IMAGES_AT_ONCE)
    ]
    return model, torch.cat(attacked), train.y


# ------------------------------------------------------------------------------------------ compute


def compute_matched_pairs(
    runs: Sequence[Run], *, n: Natural = 0, width: Positive = 0.02
) -> FigureData:
    """Distances and fate of training examples that are paired in PM, of a method's runs.

    `n`: the first n training images, 0 for all. `width`: how far the PM of a pair may differ.
    Distances are those of the finished network. The fate an epoch later is counted over all epochs
    from the end of burn-in, as the images were trained on.

    Raises:
        KitError: The runs are of several methods, or an option is out of range.
    """
    check_value("n", n, Natural)
    check_value("width", width, Positive)
    check_seeds(runs, "the matched pairs")
    found = [pair_distances(run, n, width) | {"later": pair_fates(run, width)} for run in runs]
    facts = {
        "seeds": len(runs),
        "width": width,
        "compared": {
            name: summarise_pairs([pairs[name] for pairs in found], len(runs[0].data().train))
            for name in COMPARISONS
        },
    }
    return FigureData(facts, describe_setting(runs[0], seed=False), runs[0].method)


def pair_distances(run: Run, n: int, width: float) -> dict[str, MatchedPairs]:
    """Both distances, in units of eps, of the pairs of the finished network."""
    threat = run.plan.recipe.threat
    model, x_adv, y = attack_training_images(run, n)
    with torch.no_grad():
        probs = model(x_adv).double().softmax(dim=1)
    rows = match_examples(probs.cpu(), y.cpu(), width)
    used = torch.from_numpy(np.unique(rows)).to(y.device)
    back = np.zeros(len(y))
    back[used.cpu().numpy()] = measure_way_back(model, x_adv[used], y[used], threat)
    clean = evaluate(run, ["fmn100"], split="train", n=n, quiet=True).attrs["examples"]["fmn100"]
    return {
        "way_back": pair_up(rows, back / threat.eps, probs.cpu(), y.cpu()),
        "boundary": pair_up(rows, clean["size"] / threat.eps, probs.cpu(), y.cpu()),
    }


def pair_fates(run: Run, width: float) -> MatchedPairs:
    """Whether both examples of a pair are right under attack an epoch later, over all epochs."""
    parts = []
    for epoch in range(max(run.plan.burn_in, 1), len(run.history)):
        probs, y = epoch_probabilities(run, epoch, "on the fly")
        later, _ = epoch_probabilities(run, epoch + 1, "on the fly")
        right = (later.argmax(dim=1) == y).double().numpy()
        parts.append(pair_up(match_examples(probs, y, width), right, probs, y))
    joined = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(MatchedPairs)
    }
    return MatchedPairs(**joined)


def pair_up(rows: np.ndarray, values: np.ndarray, probs: Tensor, y: Tensor) -> MatchedPairs:
    """Take `values` (N,) and both margins of the pairs of rows (n, 2)."""
    pm, cl_pm = probabilistic_margin(probs, y).numpy(), confused_label_margin(probs, y).numpy()
    return MatchedPairs(rows, values[rows], pm[rows], cl_pm[rows])


def summarise_pairs(found: Sequence[MatchedPairs], n: int) -> dict:
    """Both sides' means, their difference and those of PM and CL-PM, and how many pairs there are.

    Intervals are over seeds and the n training images; those of the differences in value hold
    together at 95 % for all comparisons.
    """

    def interval(quantity: Callable[[MatchedPairs], np.ndarray], statements: int = 1) -> Interval:
        def mean(seed: int, drawn: np.ndarray) -> float:
            # a pair is drawn as often as its first image times as often as its second
            weights = np.bincount(drawn, minlength=n)[found[seed].rows].prod(axis=1)
            return (
                float(np.average(quantity(found[seed]), weights=weights)) if weights.any() else nan
            )

        return bootstrap_over_seeds(mean, len(found), n, statements=statements)

    return {
        "pairs": [len(pairs.rows) for pairs in found],
        "images": [len(np.unique(pairs.rows)) for pairs in found],
        "one": interval(lambda pairs: pairs.values[:, 0]),
        "several": interval(lambda pairs: pairs.values[:, 1]),
        "by_seed": [pairs.values.mean(axis=0) for pairs in found if len(pairs.rows)],
        "difference": interval(lambda pairs: np.diff(pairs.values)[:, 0], len(COMPARISONS)),
        "pm_difference": interval(lambda pairs: np.diff(pairs.pm)[:, 0]),
        "cl_pm_difference": interval(lambda pairs: np.diff(pairs.cl_pm)[:, 0]),
    }


# --------------------------------------------------------------------------------------------- draw


def draw_matched_pairs(data: FigureData) -> Drawing:
    """Draw a panel a comparison: both means with intervals, and a thin line a seed between them."""
    drawing = Drawing(7.8, 3.1)
    panels = drawing.subplots(1, len(COMPARISONS))
    for panel, (name, words) in zip(panels, COMPARISONS.items(), strict=True):
        _draw_comparison(panel, data.facts["compared"][name], words)
    return drawing


def _draw_comparison(panel: Axes, found: dict, words: Comparison) -> None:
    for side in found["by_seed"]:
        panel.plot((0, 1), side, color=s.PALE, linewidth=1.2, marker=".", zorder=1)
    for place, (side, tint) in enumerate((("one", s.ORANGE), ("several", s.GREEN))):
        middle, low, high = found[side]
        panel.errorbar(
            place, middle, yerr=[[middle - low], [high - middle]], fmt="o", color=tint, capsize=4
        )
    highest = np.nanmax([found["one"][2], found["several"][2], 0.0])  # NaN where no pair is
    panel.set(
        xticks=(0, 1),
        xlim=(-0.5, 1.5),
        ylabel=words.unit,
        title=words.title,
        ylim=(0, 1.25 * highest or 1.0),
    )
    panel.annotate(
        f"{sum(found['pairs'])} pairs, difference\n{_write_difference(found, words)}",
        (0.5, 0.98),
        xycoords="axes fraction",
        ha="center",
        va="top",
        fontsize=8,
        color=s.SMALL_PRINT,
    )
    panel.set_xticklabels(["one\nconfused label", "several"])
    if words.unit.startswith("share"):
        s.share_axis(panel)


def _write_difference(found: dict, words: Comparison, *, unit: bool = False) -> str:
    """The difference with its interval, that of shares in points."""
    if words.unit.startswith("share"):
        return format_points(found["difference"], " points")
    middle, low, high = found["difference"]
    return f"{middle:+.3f} [{low:+.3f}, {high:+.3f}]" + f" ({words.unit})" * unit


# ------------------------------------------------------------------------------------------- decide


def decide_matched_pairs(data: FigureData) -> list[Claim]:
    """Decide each comparison: whether the interval of the difference lies on the side of deeper."""
    facts = data.facts
    return [
        _decide_comparison(words, facts["compared"][name], facts["seeds"])
        for name, words in COMPARISONS.items()
    ]


def _decide_comparison(words: Comparison, found: dict, seeds: int) -> Claim:
    middle, low, high = found["difference"]
    side = "larger" if words.deeper > 0 else "smaller"
    return Claim(
        f"at equal PM, several confused labels are deeper in trouble: {words.words} is {side} "
        "(CLIRAT s. 1)",
        "no numbers",
        f"{_write_difference(found, words, unit=True)}, {sum(found['pairs'])} pairs of "
        f"{sum(found['images'])} images, {count_seeds(seeds)}",
        (Estimate(words.words, "> 0" if words.deeper > 0 else "< 0", middle, low, high),),
        number=words.claim,
        seeds=seeds,
    )


def describe_matched_pairs(data: FigureData) -> str:
    """The caption: the three differences, and how well the pairs match."""
    facts = data.facts
    back = facts["compared"]["way_back"]
    pm, cl_pm = back["pm_difference"][0], back["cl_pm_difference"][0]
    differences = "; ".join(
        f"{words.words} {_write_difference(facts['compared'][name], words, unit=True)}, "
        f"{sum(facts['compared'][name]['pairs'])} pairs"
        for name, words in COMPARISONS.items()
    )
    return (
        "CLIRAT holds that at equal PM an example with several confused labels is deeper in "
        f"trouble than one with a single one. {s.label(data.method)} on {data.setting}, "
        f"{count_seeds(facts['seeds'])}, misclassified training images paired within "
        f"{facts['width']:g} of PM; in the pairs of the finished network PM differs by {pm:+.4f} "
        f"on average and CL-PM by {cl_pm:+.3f}. Several less single: {differences}. Distances by "
        "FMN; the three intervals hold together at 95 %, over seeds and images. Grey: one line a "
        "seed."
    )
