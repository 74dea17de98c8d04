"""VIR Table 5 as a figure: accuracy under attacks without gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from kit.core.errors import KitError
from kit.core.parameters import Count, Natural, check_value
from kit.evaluation.accuracy import evaluate
from kit.evaluation.audit_passes import transfer_images
from kit.evaluation.statistics import Interval, difference_interval, share_with_interval
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData
from kit.figures.run_outputs import describe_setting
from kit.papers.claim_verdict import Estimate

#: (colour, marker, words) of each attack.
_LOOKS = {
    "pgd100": (s.BLACK, "o", "PGD-100, white box"),
    "square": (s.BLUE, "s", "Square"),
    "spsa100": (s.ORANGE, "D", "SPSA"),
    "transfer": (s.GREEN, "^", "images made for another run"),
}


def compute_black_box(runs: Sequence[Run], *, n: int = 100, spsa: int = 20) -> FigureData:
    """Accuracy of each run under PGD-100, and under attacks that see no gradients of it.

    Square and SPSA ask for logits alone; the last attack takes images made for the next of the
    runs. A network that is weaker there than under PGD-100 hides its gradients. All on the first
    `n` test images (0 = all), SPSA on `spsa`.

    Raises:
        KitError: for a single run, which has no other to take images from, or a size below 1.
    """
    if len(runs) < 2:
        raise KitError(
            "black-box needs at least two runs: each is attacked with images made for another"
        )
    check_value("n", n, Natural)
    check_value("spsa", spsa, Count)
    facts = {}
    for run, other in zip(runs, [*runs[1:], runs[0]], strict=True):
        broken = _attack_without_gradients(run, other, n, spsa)
        difference = difference_interval(broken["pgd100"].astype(float) - broken["square"])
        facts[run.method] = {
            "source": other.method,
            **{name: _robust_share(values) for name, values in broken.items()},
            "square_less_pgd": list(difference),
        }
    return FigureData(facts, describe_setting(runs[0]))


def _attack_without_gradients(run: Run, other: Run, n: int, spsa: int) -> dict[str, np.ndarray]:
    """{attack: which test images it breaks}."""
    sizes = {"pgd100": n, "square": n, "spsa100": spsa}
    broken = {
        name: evaluate(run, [name], n=size, quiet=True).attrs["examples"][name]["broken"]
        for name, size in sizes.items()
    }
    images = run.data().test.take(slice(0, n or None))
    found = transfer_images(other.model(), run.model(), images, run.plan.recipe.threat)
    return broken | {"transfer": found["broken"]}


def _robust_share(broken: np.ndarray) -> list:
    """[accuracy, low, high, n]."""
    fact = share_with_interval(~broken)
    return [fact["share"], fact["low"], fact["high"], fact["n"]]


def draw_black_box(data: FigureData) -> Drawing:
    """Draw a row per run with a mark per attack."""
    facts = data.facts
    drawing = Drawing(7.2, 1.6 + 0.42 * len(facts))
    axes = drawing.subplots()
    for line, fact in enumerate(facts.values()):
        _draw_attacked_row(axes, line, fact)
    for name, (tint, marker, words) in _LOOKS.items():
        sizes = sorted({fact[name][3] for fact in facts.values()})
        label = f"{words}\nn = {', '.join(map(str, sizes))}"
        axes.plot([], [], marker, color=tint, label=label, markersize=4.5)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=4,
        fontsize=8,
        borderaxespad=0.2,
        handletextpad=0.2,
    )
    axes.set(
        yticks=range(len(facts)),
        ylim=(len(facts) - 0.5, -0.5),
        xlim=(0, 1),
        xlabel="accuracy, 95 % interval",
    )
    axes.set_yticklabels([s.label(method) for method in facts])
    s.share_axis(axes, "x")
    axes.set_title("PGD-100 and attacks without gradients", pad=34)
    return drawing


def _draw_attacked_row(axes: Axes, line: int, fact: dict) -> None:
    for place, (name, (tint, marker, _)) in enumerate(_LOOKS.items()):
        share, low, high, _ = fact[name]
        axes.errorbar(
            share,
            line + 0.17 * (place - 1.5),
            xerr=[[share - low], [high - share]],
            fmt=marker,
            color=tint,
            markersize=4.5,
            elinewidth=1,
            capsize=0,
        )


def decide_black_box(data: FigureData) -> list[Claim]:
    """Decide whether GAIRAT is weaker without gradients than under PGD-100, and AT is not."""
    return [
        _decide_hidden_gradients(method, fact["square_less_pgd"], fact["square"][3])
        for method, fact in data.facts.items()
        if method in ("at", "gairat")
    ]


def _decide_hidden_gradients(method: str, difference: Interval, n: int) -> Claim:
    mean, low, high = (100 * value for value in difference)
    here = f"Square less PGD-100 {mean:+.1f} points [{low:+.1f}, {high:+.1f}], n = {n}"
    if method == "gairat":
        return Claim(
            "GAIRAT is weaker under black-box attacks than under PGD-100 (VIR s. 5.5, Tables 2, 5)",
            "51.97 against 57.09",
            here,
            (Estimate("Square - PGD-100, gairat", "< 0", *difference),),
            number=41,
        )
    return Claim(
        "AT is not weaker under black-box attacks than under PGD-100 (VIR Tables 2, 5)",
        "60.12 against 54.45",
        here,
        (Estimate("Square - PGD-100, at", "> 0", *difference),),
    )


def describe_black_box(data: FigureData) -> str:
    """The caption: accuracy of each run under each attack."""
    words = "; ".join(
        f"{s.label(method)} {fact['pgd100'][0]:.1%} under PGD-100, {fact['square'][0]:.1%} under "
        f"Square, {fact['spsa100'][0]:.1%} under SPSA, {fact['transfer'][0]:.1%} on images made "
        f"for {s.label(fact['source'])}"
        for method, fact in data.facts.items()
    )
    last = list(data.facts.values())[-1]
    return (
        "VIR Table 5 attacks without gradients, and finds GAIRAT weaker there (51.97 % under "
        f"Square on WRN-34-10) than under PGD-100 (57.09 %). {data.setting}, n = "
        f"{last['square'][3]}, SPSA {last['spsa100'][3]}: {words}."
    )
