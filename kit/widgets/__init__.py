"""Widgets for teaching: weighting curves, simplexes and examples that move under the hand.

Each function returns a `Panel`: the last line of a cell shows it. Where nobody is there to move a slider, the same cell
shows the picture of the default setting.
"""

from kit.types import Table
from kit.widgets.boundary import boundary
from kit.widgets.curves import weighting_curves
from kit.widgets.inspect import inspect
from kit.widgets.live import train_live
from kit.widgets.mirage import mirage
from kit.widgets.panel import Action, Choice, Number, Panel, Text, Toggle, attended
from kit.widgets.race import own_curve, race
from kit.widgets.sealed import sealed
from kit.widgets.simplexes import simplex
from kit.widgets.whatif import whatif

#: Every widget by the name of its function. Those that need runs take them first.
WIDGETS = Table("widget", {"inspect": inspect, "simplex": simplex, "boundary": boundary, "race": race,
                          "train-live": train_live, "mirage": mirage, "sealed": sealed,
                          "weighting-curves": weighting_curves, "whatif": whatif})

__all__ = ["WIDGETS", "Action", "Choice", "Number", "Panel", "Text", "Toggle", "attended", "boundary", "inspect", "mirage",
           "own_curve", "race", "sealed", "simplex", "train_live", "weighting_curves", "whatif"]
