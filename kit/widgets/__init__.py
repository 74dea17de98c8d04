"""Widgets for teaching: weighting curves, simplexes and examples that move under the hand.

Each function returns a `Panel`: the last line of a cell shows it. Where nobody is there to move a slider, the same cell
shows the picture of the default setting.
"""

from kit.widgets.panel import Action, Choice, Number, Panel, Text, Toggle, live

__all__ = ["Action", "Choice", "Number", "Panel", "Text", "Toggle", "live"]
