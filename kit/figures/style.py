"""One look for all figures:

colour-blind safe, readable on a slide and in a column, SVG text as text.
"""

from __future__ import annotations

import re
from contextlib import contextmanager

import matplotlib
import matplotlib.ticker
from matplotlib.axes import Axes

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


#: The same method has the same colour and dash in every figure (AT, MAIL-AT and CLIRAT near CLIRAT
#: Fig. 3's).
_METHODS = {
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
    "mail-at-printed": (GREEN, (0, (5, 1, 1, 1))),
    "mail-trades-2021": (GREEN, (0, (5, 1))),
    "csa-halves": (BLUE, "-."),
    "cse-l1l2": (PURPLE, (0, (5, 1))),
    "clirat-drop-single": (ORANGE, "-"),
    "clirat-drop-multiple": (BLUE, "-"),
    "clirat-printed": (BLUE, "-."),
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
}


_NAMES = {
    "std": "STD",
    "clirat-drop-single": "without $S_{sig}$",
    "clirat-drop-multiple": "without $S_{mul}$",
    "clirat-drop-matched": "without $|S_{sig}|$ of $S_{mul}$",
    "csa-l2": "CSA+L2",
    "cse-adv": "CSE+ADV",
    "clirat-drop-random": "without $|S_{mul}|$ at random",
    "mail-at-nat": "MAIL-AT (PM nat)",
    "mail-at-dif": "MAIL-AT (PM dif)",
}


_RC = {
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
def styled():
    """The kit's look inside, the user's own untouched outside."""
    with matplotlib.rc_context(_RC):
        yield


def colour(method: str) -> str:
    return _METHODS.get(method, (BLACK, "-"))[0]


def dash(method: str):
    return _METHODS.get(method, (BLACK, "-"))[1]


def label(method: str) -> str:
    """The name as the papers print it."""
    return _NAMES.get(method, method.upper())


def share_axis(axes: Axes, name: str = "y") -> None:
    """Percent on an axis that runs in shares."""
    axis = axes.yaxis if name == "y" else axes.xaxis
    axis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))


def attack_label(name: str) -> str:
    """PGD-100 for pgd100, CW-20 for cw20, FGSM for fgsm; natural stays as it is."""
    if name == "natural":
        return name
    match = re.fullmatch(r"([a-z]+)(\d+)(x\d+)?", name)
    return f"{match[1].upper()}-{match[2]}{match[3] or ''}" if match else name.upper()
