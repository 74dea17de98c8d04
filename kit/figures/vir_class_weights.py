"""VIR Fig. 3: where does VIR's weight go, class by class?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from kit.core.errors import KitError
from kit.evaluation.statistics import spearman
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData
from kit.figures.run_outputs import describe_setting
from kit.papers.claim_verdict import exactly


def compute_class_weights(runs: Mapping[str, Run]) -> FigureData:
    """W_c, the sum of the weights of a class's training images, in every epoch since burn-in.

    For VIR-AT and VIR-TRADES. Weights are those that trained: counted on the fly, so the network
    moves within the epoch. Sums are scaled to classes of equal size, which CIFAR-10 has: otherwise
    they would tell first of all which class is large.
    """
    first = next(iter(runs.values()))
    methods = {method: sum_class_weights(run) for method, run in runs.items()}
    n = int(sum(next(iter(methods.values()))["n_per_class"]))
    return FigureData(
        {"methods": methods, "n": n},
        describe_setting(first),
        extras={"classes": first.record["classes"]},
    )


def sum_class_weights(run: Run) -> dict:
    """W_c per epoch since burn-in, (epochs, K), for classes of equal size, and what follows.

    `from_offset` is the part of a W_c that is weight.offset alone. Robust error is that of each
    class's test images in the stored last pass.

    Raises:
        KitError: if the run collapsed before its weights began.
    """
    y, classes = run.final["train_y"].astype(int), run.record["classes"]
    k, sizes = len(classes), np.bincount(y, minlength=len(classes))
    epochs = range(run.plan.burn_in + 1, len(run.history) + 1)
    if not epochs:
        raise KitError(
            f"{run.spec} collapsed before its weights began (epoch {run.plan.burn_in + 1}); lower "
            "lr or eps"
        )
    raw = np.stack(
        [
            np.bincount(y, run.epoch(epoch)["train_weight"].astype(np.float64), minlength=k)
            for epoch in epochs
        ]
    )
    sums = raw / np.maximum(sizes, 1) * len(y) / k
    test = run.final["test_y"].astype(int)
    wrong = run.final["test_logits_adv"].argmax(axis=1) != run.final["test_y"]
    error = np.bincount(test, wrong, minlength=k) / np.maximum(np.bincount(test, minlength=k), 1)
    mean = sums.mean(axis=0)
    rho, p = spearman(mean, error)
    return {
        "epochs": list(epochs),
        "sums": sums,
        "unscaled": raw,
        "n_per_class": sizes,
        "robust_error": error,
        "from_offset": float(run.plan.method.hyper_parameters()["weight.offset"]) * len(y) / k,
        "mean_weight": float(raw.sum() / len(raw) / len(y)),
        "largest": classes[int(mean.argmax())],
        "smallest": classes[int(mean.argmin())],
        "largest_epochs": int((sums.argmax(axis=1) == mean.argmax()).sum()),
        "smallest_epochs": int((sums.argmin(axis=1) == mean.argmin()).sum()),
        "spearman": rho,
        "p": p,
    }


def draw_class_weights(data: FigureData) -> Drawing:
    """Draw a bar per class, its epochs as dots, for both methods."""
    methods = data.facts["methods"]
    drawing = Drawing(7.8, 3.1)
    for panel, (method, found) in zip(
        drawing.subplots(1, len(methods)), methods.items(), strict=True
    ):
        _draw_class_weights(panel, found, data.extras["classes"])
        panel.set_title(s.label(method))
    return drawing


def _draw_class_weights(panel: Axes, found: Mapping, classes: list[str]) -> None:
    mean, places = found["sums"].mean(axis=0), range(len(classes))
    tints = np.full(len(classes), s.PALE)
    tints[[mean.argmax(), mean.argmin()]] = s.VERMILLION, s.SKY
    panel.bar(places, mean, color=tints, width=0.8)
    for epoch in found["sums"]:
        panel.plot(places, epoch, ".", color=s.BLACK, markersize=2.5, alpha=0.5)
    panel.axhline(found["from_offset"], color=s.BLACK, linewidth=0.8, linestyle="--")
    panel.annotate(
        "β",
        (1, found["from_offset"]),
        xycoords=("axes fraction", "data"),
        xytext=(2, 0),
        va="center",
        textcoords="offset points",
        fontsize=8,
    )
    panel.set(
        xlabel="class",
        ylim=(0, 1.28 * max(found["sums"].max(), found["from_offset"])),
        ylabel=r"$W_c$, sum of the weights of class $c$",
    )
    s.name_classes(panel, classes, 90)
    words = (
        f"mean weight {found['mean_weight']:.3g}\n"
        f"rank correlation with error {found['spearman']:+.2f} (p {found['p']:.2g})"
    )
    panel.annotate(words, (0.02, 0.99), xycoords="axes fraction", va="top", fontsize=7.5)


def decide_class_weights(data: FigureData) -> list[Claim]:
    """Decide whether both methods weigh the same class most, the same least, and error most.

    A class counts where it is first, or last, in most epochs.
    """
    facts, found = data.facts["methods"], []
    for end, printed in (("largest", "class 3 (cat)"), ("smallest", "class 1")):
        here = ", ".join(
            f"{s.label(m)} {f[end]} (in {f[f'{end}_epochs']} of {len(f['sums'])} epochs)"
            for m, f in facts.items()
        )
        found.append(
            Claim(
                f"the class of {end} total weight is the same under both methods (VIR s. 5.5, "
                "Fig. 3)",
                printed,
                here,
                (exactly(f"epochs of one {end} class", _share_alike(facts, end), "> 0.5"),),
                number=34,
            )
        )
    here = ", ".join(
        f"{s.label(m)} ρ {f['spearman']:+.2f} (p {f['p']:.2g})" for m, f in facts.items()
    )
    found.append(
        Claim(
            "classes of larger robust error get more weight (VIR s. 5.5, Fig. 3)",
            "no numbers",
            here,
            tuple(exactly(f"ρ, {m}", f["spearman"], "> 0") for m, f in facts.items()),
            number=34,
        )
    )
    return found


def _share_alike(facts: Mapping, end: str) -> float:
    """In which share of the epochs both methods give the most, or least, weight to one class."""
    place = {"largest": np.argmax, "smallest": np.argmin}[end]
    first, second = (place(np.asarray(found["sums"]), axis=1) for found in facts.values())
    return float((first == second).mean())


def describe_class_weights(data: FigureData) -> str:
    """The caption: the classes of most and of least weight, and how to read the bars."""
    words = "; ".join(
        f"{s.label(m)}: most for {f['largest']} (in {f['largest_epochs']} of {len(f['sums'])} "
        f"epochs), least for {f['smallest']} (in {f['smallest_epochs']}), mean weight "
        f"{f['mean_weight']:.3g}"
        for m, f in data.facts["methods"].items()
    )
    return (
        "VIR Fig. 3 claims that class 3 (cat) gets the most weight in total and class 1 the least, "
        f"under both methods. {data.setting}, n = {data.facts['n']} training images; bars are "
        "means over the epochs since burn-in, dots are epochs, sums are scaled to classes of equal "
        f"size, and the dashed line is what β alone gives. Orange is the class of most weight, "
        f"blue that of least. {words}. The weights are not "
        "normalised, so their mean scales the learning rate of what they weigh. Error: of test "
        "images under the training attack, at the end."
    )
