"""The pages that are made of the committed record: gallery, scoreboard and its picture.

    python -m tests.helpers.pages           # writes those that are old
    python -m tests.helpers.pages --check   # names them

`python -m kit record` measures, too. A claim or a figure that was added changes the pages alone.
"""

from __future__ import annotations

import sys

from PIL import Image

from kit.figures.claim_board import describe_claim_board
from kit.jobs.gallery import (
    BOARD_PICTURE,
    OPEN_PAGE,
    gallery,
    open_page,
    with_scoreboard,
    write_pages,
)
from kit.papers.record import scoreboard
from tests.helpers.settings import ROOT


def old_pages() -> list[str]:
    """Name the files that are not those of the record."""
    readme = (ROOT / "README.md").read_text()
    with Image.open(ROOT / "figures" / BOARD_PICTURE) as picture:
        described = picture.info["Description"]
    current = {
        "figures/README.md": (ROOT / "figures" / "README.md").read_text() == gallery(ROOT),
        f"figures/{OPEN_PAGE}": (ROOT / "figures" / OPEN_PAGE).read_text() == open_page(ROOT),
        "README.md": readme == with_scoreboard(readme, ROOT),
        f"figures/{BOARD_PICTURE}": described == describe_claim_board(scoreboard()),
    }
    return [name for name, is_current in current.items() if not is_current]


def main() -> int:
    """Write the pages, or with `--check` compare them. -> 0, or 1 where one is old."""
    old = old_pages()
    if "--check" in sys.argv[1:]:
        for name in old:
            print(f"{name} is not of the record: python -m tests.helpers.pages writes it")
        return bool(old)
    if old:
        write_pages(ROOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
