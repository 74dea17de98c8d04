"""The error that a user can mend, and the words that errors share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: An error lists no more names than this; of more it names the nearest.
MOST_CHOICES = 200


class KitError(ValueError):
    """An error that a user can mend: what is wrong, what was expected, what to do."""

    def _render_traceback_(self) -> list[str]:
        # IPython's hook: in a notebook the sentence is enough
        return [f"KitError: {self}"]


def describe_value(value: object) -> str:
    """A value as an error names it: whatever it is, in at most a hundred characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python prints no number of more than 4,300 digits
        text = f"something of type {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def unknown_name(kind: str, name: object, choices: Iterable[str], guess: str = "") -> KitError:
    """The error for a name that does not exist, with the nearest one that does.

    The nearest is the shortest that goes on where `name` ends, else the one that is spelled alike.
    `guess`: the name that is meant, where the caller knows better than spelling does.
    """
    choices = sorted(choices)
    text = name if isinstance(name, str) and len(name) <= 1000 else describe_value(name)
    longer = [choice for choice in choices if len(text) > 2 and choice.startswith(text)]
    near = [guess] if guess else sorted(longer, key=len)[:1]
    near = near or difflib.get_close_matches(text, choices, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    listed = ", ".join(choices) or "none"
    if len(choices) > MOST_CHOICES:
        nearest = difflib.get_close_matches(text, choices, n=10, cutoff=0) if near else choices[:10]
        listed = f"{', '.join(nearest)} and {len(choices) - len(nearest)} more"
    return KitError(f"there is no {kind} '{text}'.{hint} Choices: {listed}")
