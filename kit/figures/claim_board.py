"""The scoreboard as a picture: every claim on every scale, one glyph each, with counts."""

from __future__ import annotations

from collections import Counter

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from kit.figures.base import Drawing
from kit.figures.style import GREEN, VERMILLION, styled
from kit.papers.claim_verdict import NOT_RUN, VERDICT_GLYPHS
from kit.papers.printed_data import PAPERS

#: Claims in one line; a paper with more of them has several.
PER_LINE = 13

#: {verdict: colour of its cell and of its glyph}.
CELL_COLOURS = {
    "holds": (GREEN, "white"),
    "fails": (VERMILLION, "white"),
    "undecided": ("#F3E3A2", "black"),
    NOT_RUN: ("#ECEEF0", "#6B7280"),
}


def draw_claim_board(board: pd.DataFrame) -> Drawing:
    """Draw a scoreboard, as `kit.papers.scoreboard` lists it.

    Above each line of a paper's claims are their numbers, in brackets where mathematics decides,
    and below it is a row a scale; the counts stand on the right. The caption names every claim's
    verdict, so that it can stand for the picture.
    """
    exact = set(board.attrs.get("exact", ()))
    scales = [name for name in board.columns if name not in ("paper", "claim", "printed")]
    lines = [
        (str(paper), scale, claims.index[start : start + PER_LINE], start == 0)
        for paper, claims in board.groupby("paper", sort=False)
        for start in range(0, len(claims), PER_LINE)
        for scale in scales
    ]
    with styled():
        drawing = Drawing(7.0, 0.7 + 0.34 * len(lines) + 0.2 * len(lines) / max(len(scales), 1))
        axes = drawing.add_subplot()
        y = 0.0
        for paper, scale, numbers, first in lines:
            if scale == scales[0]:
                y += 0.75 if first else 0.6
                for column, number in enumerate(numbers):
                    shown = f"({number})" if number in exact else number
                    axes.text(column, y - 0.62, shown, ha="center", va="center", fontsize=7)
                weight, ink = ("bold", "black") if first else ("normal", CELL_COLOURS[NOT_RUN][1])
                label = PAPERS[paper].label
                axes.text(-4.6, y, label, va="center", weight=weight, color=ink, fontsize=11)
            _draw_line(axes, y, [board.loc[number, scale] for number in numbers])
            axes.text(-0.8, y, scale, va="center", ha="right", fontsize=9)
            if first:
                _write_counts(axes, y, Counter(board[board["paper"] == paper][scale]))
            y += 1
        axes.set(xlim=(-4.7, PER_LINE + 3.9), ylim=(y - 0.3, -0.35), aspect="equal")
        axes.axis("off")
        drawing.legend(
            title="Which claims hold, by paper and scale\n"
            "A number in brackets: mathematics decides, on every scale alike",
            title_fontsize=10,
            handles=[
                Patch(color=CELL_COLOURS[word][0], label=f"{glyph} {word}")
                for word, glyph in VERDICT_GLYPHS.items()
            ],
            loc="outside upper center",
            ncols=len(CELL_COLOURS),
            frameon=False,
            fontsize=10,
        )
    drawing.caption = describe_claim_board(board)
    return drawing


def _draw_line(axes: Axes, y: float, verdicts: list[str]) -> None:
    for column, verdict in enumerate(verdicts):
        ground, ink = CELL_COLOURS[verdict]
        axes.add_patch(Rectangle((column - 0.46, y - 0.42), 0.92, 0.84, color=ground, lw=0))
        glyph = VERDICT_GLYPHS[verdict]
        axes.text(column, y, glyph, color=ink, ha="center", va="center", fontsize=12)


def _write_counts(axes: Axes, y: float, counts: Counter[str]) -> None:
    words = [f"{counts[word]} {glyph}" for word, glyph in VERDICT_GLYPHS.items() if counts[word]]
    axes.text(PER_LINE - 0.1, y, "  ".join(words), va="center", fontsize=9)


def describe_claim_board(board: pd.DataFrame) -> str:
    """Name every verdict of a scoreboard in words: by scale and verdict, the claims' numbers."""
    scales = [name for name in board.columns if name not in ("paper", "claim", "printed")]
    sentences = []
    for scale in scales:
        parts = [
            f"{word} {', '.join(map(str, board.index[board[scale] == word]))}"
            for word in VERDICT_GLYPHS
            if (board[scale] == word).any()
        ]
        sentences.append(f"{scale}: {'; '.join(parts)}.")
    exact = ", ".join(map(str, board.attrs.get("exact", ())))
    if exact:
        sentences.append(f"Mathematics decides, on every scale alike: {exact}.")
    return f"{len(board)} claims of five papers, by their numbers. {' '.join(sentences)}"
