"""Sentences that a widget makes from its runs, for the cell below it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Notes:
    """What to notice in a picture: one sentence or two a line, each with the run's own numbers."""

    lines: tuple[str, ...]

    def __repr__(self) -> str:
        return "\n".join(self.lines)

    def _repr_markdown_(self) -> str:
        return "\n".join(f"* {line}" for line in self.lines)


def count_images(count: int) -> str:
    """A number of images in words."""
    return f"{count} image" if count == 1 else f"{count} images"
