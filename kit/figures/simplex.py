"""Triangles of three probabilities, as MAIL Fig. 3, MR Fig. 1 and two widgets draw them.

A point (p_y, p_2, rest) that sums to 1 is drawn at x = p_y - p_2 and height √3 · rest, so that the
sides are equal and every line of equal margin is upright.
"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Polygon
from torch import Tensor

from kit.figures import style as s
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import Method

HEIGHT = math.sqrt(3)

CORNERS = np.array([(1, 0), (-1, 0), (0, HEIGHT)])


def weigh(method: Method, probs: Tensor, y: Tensor) -> np.ndarray:
    """(N,) what a method multiplies the losses with, from probabilities (N, K) under attack alone.

    The method must read nothing else.
    """
    return method.weigh(StepOutputs(y, probs.log())).numpy()


def triangle(axes: Axes) -> Polygon:
    """Draw the frame of a simplex on bare axes, and return its outline, to clip with."""
    outline = Polygon(
        CORNERS, closed=True, facecolor="none", edgecolor=s.BLACK, linewidth=0.9, zorder=3
    )
    axes.add_patch(outline)
    axes.set(xlim=(-1.12, 1.12), ylim=(-0.04, HEIGHT + 0.14), aspect="equal", yticks=[])
    for edge in axes.spines.values():
        edge.set_visible(False)
    return outline


def signed(value: float) -> str:
    """A number as an axis prints it, with a minus sign in place of a hyphen."""
    return f"{value:+.1f}".replace("-", "−") if abs(value) > 1e-9 else "0"
