"""Widgets for teaching: weighting curves, simplexes and examples that move under the hand.

Each function returns a `Panel`: the last line of a cell shows it. Where nobody is there to move a slider, the same cell
shows the picture of the default setting.
"""

from kit.types import Table
from kit.widgets.panel import Action, Choice, Number, Panel, Text, Toggle, live

#: Every widget by the name of its function. Those that need runs take them first.
WIDGETS = Table("widget", {})

__all__ = ["WIDGETS", "Action", "Choice", "Number", "Panel", "Text", "Toggle", "live"]
