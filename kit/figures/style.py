"""One look for all figures, colour-blind safe, and what several of them draw alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox

from kit.methods.table import METHODS

# Okabe and Ito (2008); their yellow (#F0E442) is darkened, for lines on white
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#A89600",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)

GREY = "#8A8A8A"

#: Bars and marks that stand behind what a picture is about, and small print.
PALE, SMALL_PRINT = "#C9CDD2", "#555555"


#: The same method has the same colour and dash in every figure (AT, MAIL-AT and CLIRAT near CLIRAT
#: Fig. 3's).
_METHODS: dict[str, tuple[str, str | tuple]] = {
    "std": (GREY, "-"),
    "at": (VERMILLION, "-"),
    "adv": (VERMILLION, "--"),
    "trades": (ORANGE, "-"),
    "mart": (SKY, "-"),
    "gairat": (PURPLE, "-"),
    "mail-at": (GREEN, "-"),
    "mail-trades": (GREEN, "--"),
    "mail-mart": (GREEN, ":"),
    "clirat": (BLUE, "-"),
    "clir-trades": (BLUE, "--"),
    "clir-mart": (BLUE, ":"),
    "csa": (BLUE, "-"),
    "csa-l2": (GREEN, "-"),
    "cse": (PURPLE, "-"),
    "cse-adv": (PURPLE, "--"),
    "mail-at-nat": (GREEN, "-."),
    "mail-at-dif": (GREEN, (0, (1, 2))),
    "gairat-sigmoid": (PURPLE, "--"),
    "gairat-discrete": (PURPLE, ":"),
    "gair-mart": (PURPLE, "-."),
    "gair-trades": (PURPLE, (0, (1, 2))),
    "ewat": (ORANGE, "--"),
    "wmmr": (SKY, "--"),
    "wmmr-mr": (SKY, ":"),
    "wmmr-trades": (SKY, "-."),
    "mr-mail": (VERMILLION, ":"),
    "mr-mail-nosim": (VERMILLION, "-."),
    "mr-mail-literal": (VERMILLION, (0, (1, 2))),
    "mr-mail-alg1": (VERMILLION, (0, (5, 1, 1, 1))),
    "mr-wmmr": (SKY, (0, (1, 2))),
    "vir-at": (YELLOW, "-"),
    "vir-at-sv": (YELLOW, "--"),
    "vir-at-sd": (YELLOW, ":"),
    "vir-trades": (YELLOW, "-."),
    "vir-trades-sv": (YELLOW, (0, (1, 2))),
    "vir-trades-sd": (YELLOW, (0, (5, 1, 1, 1))),
    "at-scaled": (GREY, ":"),
    "mail-at-printed": (PURPLE, (0, (5, 1, 1, 1))),
    "mail-trades-mean": (GREEN, (0, (5, 1, 2, 1))),
    "mail-mart-mean": (GREEN, (0, (2, 1, 1, 1))),
    "mail-trades-nat": (GREEN, (0, (6, 2, 1, 2))),
    "mail-mart-nat": (GREEN, (0, (1, 3))),
    "mail-at-logit": (GREEN, (0, (4, 2, 1, 2))),
    "mail-at-burn-in-74": (GREEN, (0, (2, 2))),
    "mail-at-unit-noise": (GREEN, (0, (6, 3))),
    "mail-trades-eq10": (GREEN, (0, (8, 2))),
    "clirat-x3": (BLUE, (0, (5, 1, 1, 1))),
    "clir-trades-x3": (BLUE, (0, (5, 1, 2, 1))),
    "clir-mart-x3": (BLUE, (0, (2, 1, 1, 1))),
    "clirat-from-x": (BLUE, (0, (6, 3))),
    "gairat-lps": (PURPLE, (0, (8, 2))),
    "mr-wmmr-literal": (SKY, (0, (5, 1, 1, 1))),
    "vir-at-mean": (PURPLE, (0, (4, 1))),
    "vir-trades-mean": (YELLOW, (0, (2, 1, 1, 1))),
    "trades-scaled": (GREY, (0, (1, 2))),
    "mail-trades-2021": (GREEN, (0, (5, 1))),
    "csa-halves": (BLUE, "-."),
    "cse-l1l2": (PURPLE, (0, (5, 1))),
    "clirat-drop-single": (ORANGE, "-"),
    "clirat-drop-multiple": (BLUE, "-"),
    "clirat-printed": (VERMILLION, "-."),
    "clirat-burn-in-30": (GREEN, "--"),
    "vir-at-burn-in-0": (VERMILLION, (0, (1, 3))),
    "vir-at-burn-in-30": (GREEN, (0, (8, 2))),
    "fat": (YELLOW, (0, (3, 1, 1, 1))),
    "at-awp": (VERMILLION, (0, (5, 1))),
    "trades-awp": (ORANGE, (0, (5, 1))),
    "gairat-piecewise": (PURPLE, (0, (3, 1, 1, 1))),
    "gairat-linear": (PURPLE, (0, (5, 2, 1, 2))),
    "mail-at-released": (GREEN, (0, (3, 1, 1, 1))),
    "mail-trades-released": (GREEN, (0, (3, 2))),
    "mail-mart-released": (GREEN, (0, (1, 1))),
    "cse-kurtosis": (PURPLE, (0, (1, 1))),
    "clirat-drop-matched": (SKY, "--"),
    "clirat-drop-random": (GREY, "--"),
    "csa-attack-first": (BLUE, (0, (1, 2))),
    "csa-ce": (BLUE, (0, (5, 1))),
    "csa-fgsm": (BLUE, (0, (5, 2, 1, 2))),
    "cse-adv-halves": (PURPLE, (0, (3, 2))),
}


_NAMES = {
    "std": "STD",
    "clirat-drop-single": "without $S_{sig}$",
    "clirat-drop-multiple": "without $S_{mul}$",
    "clirat-drop-matched": "without $|S_{sig}|$ of $S_{mul}$",
    "csa-l2": "CSA+L2",
    "cse-adv": "CSE+ADV",
    "cse-adv-halves": "CSE+ADV-HALVES",
    "clirat-drop-random": "without $|S_{mul}|$ at random",
    "mail-at-printed": "MAIL-AT (mean 1)",
    "mail-trades-mean": "MAIL-TRADES (mean 1)",
    "mail-mart-mean": "MAIL-MART (mean 1)",
    "clirat-x3": "CLIRAT (x 3)",
    "clir-trades-x3": "CLIR-TRADES (x 3)",
    "clir-mart-x3": "CLIR-MART (x 3)",
    "at-scaled": "AT (VIR's scale)",
    "trades-scaled": "TRADES (VIR's scale)",
    "vir-at-mean": "VIR-AT (mean 1)",
    "vir-trades-mean": "VIR-TRADES (mean 1)",
    "clirat-printed": "CLIRAT (no burn-in)",
    "clirat-burn-in-30": "CLIRAT (burn-in 30)",
    "vir-at-burn-in-0": "VIR-AT (no burn-in)",
    "vir-at-burn-in-30": "VIR-AT (burn-in 30)",
    "mail-at-nat": "MAIL-AT (PM nat)",
    "mail-at-dif": "MAIL-AT (PM dif)",
}


_RC: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.grid": False,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "irat-kit",
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "savefig.dpi": 150,
}


@contextmanager
def styled() -> Iterator[None]:
    """The kit's look inside, the user's own untouched outside."""
    with matplotlib.rc_context(_RC):
        yield


# -------------------------------------------------------------------------------- names and colours


def colour(method: str) -> str:
    """The method's colour, the same in every figure; black for a method of one's own."""
    return _METHODS.get(method, (BLACK, "-"))[0]


def dash(method: str) -> str | tuple:
    """The method's line style, the same in every figure."""
    return _METHODS.get(method, (BLACK, "-"))[1]


def label(method: str) -> str:
    """The name as the papers print it; that of an adopted network is its own."""
    return _NAMES.get(method, method.upper() if method in METHODS else method)


#: With more classes there is no room for their names.
MOST_NAMED_CLASSES = 20


def class_rotation(classes: Sequence[str], long: int) -> int:
    """The angle of the classes' names along an axis: `long` degrees where one has 3 letters."""
    return long if max(len(str(name)) for name in classes) > 2 else 0


def name_classes(axes: Axes, classes: Sequence[str], long: int = 45) -> None:
    """Write the classes' names along x, words at an angle of `long` degrees.

    A slanting word ends at its tick, so that neighbours do not meet. Of many classes every tenth
    number is written.
    """
    if len(classes) > MOST_NAMED_CLASSES:
        axes.set_xticks(range(0, len(classes), 10))
        return
    angle = class_rotation(classes, long)
    slanting: dict[str, Any] = {"ha": "right", "rotation_mode": "anchor"} if 0 < angle < 90 else {}
    axes.set_xticks(range(len(classes)), map(str, classes), rotation=angle, **slanting)


# ------------------------------------------------------------------------------- parts of a picture


def share_axis(axes: Axes, name: str = "y") -> None:
    """Write percent on an axis that runs in shares."""
    axis = axes.yaxis if name == "y" else axes.xaxis
    axis.set_major_formatter(ExactPercent())


class ExactPercent(matplotlib.ticker.Formatter):
    """Write shares as percent, with as many decimals as the ticks have: 88 % is not 87.5 %."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """One share as percent."""
        return self.format_ticks([x])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """All ticks with the same number of decimals, three at most."""
        ticks = [100 * float(value) for value in values]
        exact = (k for k in range(3) if all(abs(tick - round(tick, k)) < 1e-6 for tick in ticks))
        decimals = next(exact, 3)
        return [f"{tick:z.{decimals}f}%" for tick in ticks]


def whole_numbers(axes: Axes) -> None:
    """Put ticks along x at whole numbers alone, such as epochs."""
    locator = axes.xaxis.get_major_locator()
    assert isinstance(locator, matplotlib.ticker.MaxNLocator), "x is linear and has no fixed ticks"
    locator.set_params(integer=True)


def write_above(
    axes: Axes, x: float, y: float, text: str, *, offset: float = 2, size: float = 7.5
) -> None:
    """Write `text` centred above a point, `offset` points higher."""
    axes.annotate(
        text,
        (x, y),
        xytext=(0, offset),
        textcoords="offset points",
        ha="center",
        fontsize=7.5,
    )


def show_one_interval(axes: Axes, last: float, first: float, interval: Sequence[float]) -> None:
    """Draw the 95 % interval (middle, low, high) of one point of a curve, right of its last epoch.

    A band along every curve would hide the others.
    """
    middle, low, high = interval
    axes.errorbar(
        last + 0.05 * (last - first),
        middle,
        yerr=[[middle - low], [high - middle]],
        color=GREY,
        capsize=2,
        elinewidth=1,
    )
    axes.annotate(
        "grey bar: 95 % interval of one point",
        (0.98, 0.02),
        xycoords="axes fraction",
        ha="right",
        fontsize=7.5,
        color=SMALL_PRINT,
    )


def legend_patch(tint: str, text: str) -> Patch:
    """A filled square for a legend."""
    return Patch(facecolor=tint, label=text)


#: Where a name may stand beside its point: offset in points, and its alignment.
_BESIDE = (
    ((5, 3), "left", "bottom"),
    ((5, -3), "left", "top"),
    ((-5, 3), "right", "bottom"),
    ((-5, -3), "right", "top"),
    ((0, 7), "center", "bottom"),
    ((0, -7), "center", "top"),
)


def name_points(axes: Axes, names: Mapping[tuple[float, float], str]) -> None:
    """Write a name beside each point, where it covers least of other names and points.

    The axes have their limits already: names are measured as they will be drawn.
    """
    shown = [axes.transData.transform(point) for point in names]
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in shown]
    for point, name in names.items():
        tried = []
        for offset, across, up in _BESIDE:
            text = axes.annotate(
                name,
                point,
                xytext=offset,
                textcoords="offset points",
                ha=across,
                va=up,
                fontsize=7.5,
            )
            box = text.get_window_extent()
            shared = [Bbox.intersection(box, other) for other in [*taken, *_outside(axes, box)]]
            covered = sum(part.width * part.height for part in shared if part is not None)
            tried.append((covered, text, box))
            if not covered:
                break
        best = min(tried, key=lambda item: item[0])
        for _, text, _ in tried:
            if text is not best[1]:
                text.remove()
        taken.append(best[2])


def _outside(axes: Axes, box: Bbox) -> list[Bbox]:
    """What of a box lies outside of the axes, as boxes."""
    frame = axes.bbox
    parts = [
        Bbox.from_extents(box.x0, box.y0, frame.x0, box.y1),
        Bbox.from_extents(frame.x1, box.y0, box.x1, box.y1),
        Bbox.from_extents(box.x0, box.y0, box.x1, frame.y0),
        Bbox.from_extents(box.x0, frame.y1, box.x1, box.y1),
    ]
    return [part for part in parts if part.width > 0 and part.height > 0]


def spread_labels(heights: Sequence[float], gap: float) -> list[float]:
    """The heights moved as little as keeps neighbours `gap` apart, their order kept.

    Labels that touch become a stack around their mean.
    """
    order = np.argsort(heights, kind="stable")
    stacks: list[list[float]] = []
    for place in order:
        stacks.append([heights[place]])
        while len(stacks) > 1 and _touch(stacks[-2], stacks[-1], gap):
            stacks[-2:] = [stacks[-2] + stacks[-1]]
    spread = [
        _mean(stack) + gap * (i - (len(stack) - 1) / 2)
        for stack in stacks
        for i in range(len(stack))
    ]
    moved = [0.0] * len(spread)
    for place, height in zip(order, spread, strict=True):
        moved[place] = height
    return moved


def _touch(below: list[float], above: list[float], gap: float) -> bool:
    return _mean(above) - _mean(below) < gap * (len(above) + len(below)) / 2


def _mean(stack: list[float]) -> float:
    return sum(stack) / len(stack)


def draw_confusion(
    panel: Axes, counts: np.ndarray, classes: Sequence[str], *, square: bool = True
) -> None:
    """Draw a confusion matrix, true classes down, in percent of the row.

    Numbers are written in the cells of up to 10 classes.
    """
    import seaborn  # it takes a second to import, and two figures need it

    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    seaborn.heatmap(
        share * 100,
        ax=panel,
        cmap="Blues",
        vmin=0,
        vmax=100,
        cbar=False,
        square=square,
        annot=len(classes) <= 10,
        fmt=".0f",
        annot_kws={"fontsize": 6},
        xticklabels=classes,
        yticklabels=classes,
        linewidths=0.3,
        linecolor="white",
    )
    panel.set_xlabel("predicted class")
    panel.tick_params(labelsize=6.5, length=0, labelrotation=class_rotation(classes, 90))
    panel.tick_params(axis="y", labelrotation=0)
