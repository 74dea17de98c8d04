"""README's made parts: the layout from the table of the floors, and all that was measured.

python -m tests.helpers.layout            # writes them into README.md
python -m tests.helpers.layout --check    # says whether README.md has them; writes nothing
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from kit.notebook.course import stopwatch_table
from tests.benchmarks import bench
from tests.helpers import measurements
from tests.helpers.floors import FLOORS
from tests.helpers.settings import ROOT

FOLDERS = {
    "notebooks/": "one subject each, committed without outputs",
    "figures/": "the gallery above with provenance; `out/` is what the batch writes",
    "data/": "data sets and runs; not committed",
    "tests/": "in folders by kind: unit, golden (the authors' own outputs), properties, "
    "integration, notebooks, browser, faults, benchmarks; shared helpers",
}


def layout_table() -> str:
    """Make the layout as Markdown."""
    packages = [f"| {p.floor} | `kit/{p.name}/` | {p.holds} |" for p in FLOORS]
    folders = [f"| | `{name}` | {holds} |" for name, holds in FOLDERS.items()]
    return "\n".join(
        ["| floor | folder | what lives there |", "|---:|---|---|", *packages, *folders]
    )


#: What stands between the markers of each name.
PARTS: dict[str, Callable[[], str]] = {
    "layout": layout_table,
    "minutes": stopwatch_table,
    "speed": lambda: bench.markdown(measurements.read(measurements.SPEED)),
    "key presses": lambda: measurements.latency_words(measurements.read(measurements.LATENCIES)),
    "faults": lambda: measurements.faults_table(measurements.read(measurements.FAULTS)),
}


def enclose(name: str, text: str) -> str:
    """Put the two markers of a part around its text."""
    begin = f"<!-- {name}: made by `python -m tests.helpers.layout` -->"
    return f"{begin}\n{text}\n<!-- end of {name} -->"


def with_made_parts(page: str) -> str:
    """Put the parts of today between the markers of a page.

    Raises:
        ValueError: The page does not have the two markers of each once.
    """
    for name, make in PARTS.items():
        begin, end = enclose(name, "\0").split("\n\0\n")
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        if len(re.findall(pattern, page, flags=re.DOTALL)) != 1:
            raise ValueError(f"README.md must hold {begin} and {end} once")
        made = enclose(name, make())
        page = re.sub(pattern, lambda _, made=made: made, page, flags=re.DOTALL)
    return page


def main() -> int:
    """Write the parts, or with `--check` compare them. -> 0, or 1 where README.md differs."""
    readme = ROOT / "README.md"
    page = readme.read_text()
    wanted = with_made_parts(page)
    if "--check" not in sys.argv[1:]:
        readme.write_text(wanted)
    elif page != wanted:
        print("README.md's made parts are old: python -m tests.helpers.layout writes them")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
