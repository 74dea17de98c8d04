"""The cells of the notebooks that are made from `kit.notebook.course`.

    python -m tests.helpers.course            # writes them
    python -m tests.helpers.course --check    # says which are old

A cell is known by its tag.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from kit.notebook import course
from tests.helpers.settings import ROOT

#: {tag of a cell: what makes its text from the notebook's name}
GENERATED: dict[str, Callable[[str], str]] = {
    "navigation": course.head,
    "next": course.tail,
    "papers": lambda name: f"## The five papers\n\n{course.papers_table()}",
    "glossary": lambda name: f"## Glossary\n\n{course.glossary_table()}",
}


def with_made_cells(path: Path) -> str:
    """Return the text of a notebook file with its made cells as they are today."""
    book = json.loads(path.read_text())
    for cell in book["cells"]:
        for tag in set(cell["metadata"].get("tags", [])) & set(GENERATED):
            cell["source"] = GENERATED[tag](path.stem).splitlines(keepends=True)
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


def course_notebooks() -> list[Path]:
    """List the notebook files of the course, in its order."""
    return [ROOT / "notebooks" / f"{name}.ipynb" for name in course.LESSONS]


def main() -> int:
    """Write the cells, or with `--check` compare them. -> 0, or 1 where a notebook is old."""
    old = [path for path in course_notebooks() if path.read_text() != with_made_cells(path)]
    if "--check" in sys.argv[1:]:
        for path in old:
            print(
                f"{path.name}: its made cells are old: python -m tests.helpers.course writes them"
            )
        return bool(old)
    for path in old:
        path.write_text(with_made_cells(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
