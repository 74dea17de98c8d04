"""README's layout, made from the table of the floors.

python -m tests.helpers.layout            # writes it into README.md
python -m tests.helpers.layout --check    # says whether README.md has it; writes nothing
"""

from __future__ import annotations

import re
import sys

from tests.helpers.floors import FLOORS
from tests.helpers.settings import ROOT

BEGIN = "<!-- layout: made by `python -m tests.helpers.layout` -->"
END = "<!-- end of layout -->"
FOLDERS = {
    "notebooks/": "one subject each, committed without outputs",
    "figures/": "the gallery above with provenance; `out/` is what the batch writes",
    "data/": "data sets and runs; not committed",
    "tests/": "in folders by kind: unit, golden (the authors' own outputs), properties, "
    "integration, notebooks, browser, faults, benchmarks; shared helpers",
}


def layout() -> str:
    """Make the layout as Markdown, with the two markers around it."""
    packages = [f"| {p.floor} | `kit/{p.name}/` | {p.holds} |" for p in FLOORS]
    folders = [f"| | `{name}` | {holds} |" for name, holds in FOLDERS.items()]
    table = ["| floor | folder | what lives there |", "|---:|---|---|", *packages, *folders]
    return "\n".join([BEGIN, *table, END])


def with_layout(page: str) -> str:
    """Put the layout of today between the markers of a page.

    Raises:
        ValueError: The page does not have the two markers once each.
    """
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    if len(re.findall(pattern, page, flags=re.DOTALL)) != 1:
        raise ValueError(f"README.md must hold {BEGIN} and {END} once")
    return re.sub(pattern, lambda _: layout(), page, flags=re.DOTALL)


def main() -> int:
    """Write the layout, or with `--check` compare it. -> 0, or 1 where README.md differs."""
    readme = ROOT / "README.md"
    page = readme.read_text()
    wanted = with_layout(page)
    if "--check" not in sys.argv[1:]:
        readme.write_text(wanted)
    elif page != wanted:
        print("README.md's layout is old: python -m tests.helpers.layout writes it")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
