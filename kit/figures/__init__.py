"""Figures read finished runs and draw them; none starts a training.

`kit.draw(name, runs)` is the way in.
"""

from kit.core.lazy import lazy_exports

_PLACES = {"FIGURES": "table", "Figure": "base:Drawing", "draw": "table", "explain": "explanation"}
__all__ = sorted(_PLACES)
__getattr__, __dir__ = lazy_exports(__name__, _PLACES)
