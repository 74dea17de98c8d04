"""Every widget by the name of its function."""

from kit.core.registry import Registry
from kit.widgets.boundary_panel import boundary
from kit.widgets.counterfactual_panel import whatif
from kit.widgets.inspector_panel import inspect
from kit.widgets.live_training_panel import train_live
from kit.widgets.mirage_panel import mirage
from kit.widgets.race_panel import race
from kit.widgets.sealed_panel import sealed
from kit.widgets.simplex_panel import simplex
from kit.widgets.weighting_panel import weighting_curves

#: Those that need runs take them first.
WIDGETS = Registry(
    "widget",
    {
        "inspect": inspect,
        "simplex": simplex,
        "boundary": boundary,
        "race": race,
        "train-live": train_live,
        "mirage": mirage,
        "sealed": sealed,
        "weighting-curves": weighting_curves,
        "whatif": whatif,
    },
)
