"""Names of a package that are imported when they are first asked for.

`import kit` then costs no more than its errors: a process that trains loads neither figures nor
widgets, and the command line's help loads no PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module


def lazy_exports(package: str, places: Mapping[str, str]) -> tuple[Callable, Callable]:
    """Make (`__getattr__`, `__dir__`) for the package `package`.

    `places`: {public name: "module" or "module:its name there"}, modules below `package`. A name
    whose place ends with ":" is the module itself.
    """

    def get(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        module, colon, inner = places[name].partition(":")
        found = import_module(f"{package}.{module}")
        return found if colon and not inner else getattr(found, inner or name)

    return get, lambda: sorted(places)
