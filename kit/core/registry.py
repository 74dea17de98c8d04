"""Tables of named rows, and names as a user lists them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from kit.core.errors import unknown_name


def split_names(text: str) -> list[str]:
    """The names in a user's text, with spaces, commas or both between them."""
    return text.replace(",", " ").split()


class Registry(dict):
    """A dict of named rows: an unknown name says which exist, and it prints as a table."""

    def __init__(self, kind: str, rows: Mapping[str, Any]):
        super().__init__(rows)
        self.kind = kind

    def __missing__(self, name: object):
        raise unknown_name(self.kind, name, self)

    def rows(self) -> list[tuple[str, str]]:
        """List (name, one line about it) of each row."""
        return [(name, describe_row(row)) for name, row in self.items()]

    def __repr__(self) -> str:
        width = max((len(name) for name in self), default=0)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in self.rows())

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th style='text-align:left'>{n}</th><td style='text-align:left'>{t}</td></tr>"
            for n, t in self.rows()
        )
        return f"<table>{cells}</table>"


def describe_row(row: Any) -> str:
    """One line about a row of a table: its title, or the first line of its docstring.

    A function with some arguments chosen is described by the function, and by these.
    """
    if type(row) is partial:
        chosen = ", ".join(f"{name} {value}" for name, value in row.keywords.items())
        return f"{describe_row(row.func).removesuffix('.')}; {chosen}."
    text = getattr(row, "title", None) or inspect.getdoc(getattr(row, "fn", row)) or ""
    return text.split("\n")[0]
