"""Widgets for teaching: weighting curves, simplexes and examples that are moved by hand.

Each function returns a `Panel`: the last line of a cell shows it. Where nobody is there to move a
slider, the same cell shows the picture of the default setting.
"""

from kit.core.lazy import lazy_exports

_PLACES = {
    "WIDGETS": "table",
    **dict.fromkeys(("Action", "Choice", "Number", "Text", "Toggle"), "controls"),
    **dict.fromkeys(("Panel", "attended"), "panel"),
    "boundary": "boundary_panel",
    "weighting_curves": "weighting_panel",
    "inspect": "inspector_panel",
    "train_live": "live_training_panel",
    "mirage": "mirage_panel",
    "own_curve": "drawn_curve",
    "race": "race_panel",
    **dict.fromkeys(("measured_fall", "printed_fall", "sealed"), "sealed_panel"),
    "simplex": "simplex_panel",
    "whatif": "counterfactual_panel",
}
__all__ = sorted(_PLACES)
__getattr__, __dir__ = lazy_exports(__name__, _PLACES)
