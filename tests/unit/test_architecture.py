"""The house stands as it is drawn: floors, names and habits, checked on the source itself."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from itertools import combinations

import pytest

from tests.helpers.floors import FLOOR_OF, FLOORS
from tests.helpers.layout import PARTS, enclose, with_made_parts
from tests.helpers.settings import ROOT
from tests.helpers.source import (
    circles,
    defined_names,
    exported_names,
    front_door_uses,
    identifiers,
    imported_modules,
    kit_modules,
    lazy_places,
    private_uses,
    too_alike,
    top_level_names,
)

MODULES = kit_modules()
FLAT = {"__init__.py", "__main__.py"}
#: Names that mean the same wherever they are defined.
EVERYWHERE = {"main", "__all__", "__getattr__", "__dir__", "_PLACES"}
#: Words that the field does not use, and what it says instead (DESIGN of the house, "Words").
OLD_WORDS = {
    "strike": "attack_batch",
    "see": "forward",
    "judge": "compute_loss",
    "those": "select_rows",
    "either": "where",
    "crew": "stack",
    "company": "stack_key",
    "companies": "group_for_stacking",
    "together": "stacked",
    "arithmetic": "flops",
    "bring": "import_runs",
    "set_aside": "quarantine",
    "roomy": "padded batch sizes",
    "few_sizes": "padded batch sizes",
    "zoo": "masked networks",
    "Oracle": "AttackTracker",
    "oracle": "tracker",
    "look": "tracker",
    "leads": "is_main",
    "meet": "barrier",
    "agreed": "broadcast",
    "whole": "gather",
    "trunk": "shared burn-in",
    "branch": "shared burn-in",
    "sidebyside": "threads",
    "side_by_side": "threads",
    "pooled": "run_locally",
    "scattered": "run_on_ray",
    "climb": "audit steps",
    "rung": "audit step",
    "ladder": "audit steps",
    "seen": "StepOutputs",
    "whatif": "counterfactual weights",
}
#: Plain English as the name of something local ("the whole table"); as the name of a function, a
#: record, a module or a field it would be the old word.
PLAIN_ENGLISH = {"agreed", "branch", "bring", "climb", "either", "leads", "look", "meet", "pooled"}
PLAIN_ENGLISH |= {"scattered", "see", "those", "together", "whole"}
#: A compound with one of these in it is an old word, too.
IN_COMPOUNDS = {"crew", "company", "companies", "oracle", "zoo", "trunk", "rung", "ladder"}


def test_only_the_front_door_lies_flat():
    assert {path.name for path in (ROOT / "kit").glob("*.py")} == FLAT


def test_every_package_has_a_floor():
    found = {module.package for module in MODULES.values()} - {""}
    assert found == set(FLOOR_OF) and len(FLOOR_OF) == len(FLOORS)


def test_imports_run_downwards():
    """Also those within functions: what is imported late stands on it no less."""
    wrong = []
    for module in MODULES.values():
        if not module.package:
            continue
        for other in imported_modules(module, MODULES):
            package = other.split(".")[1]
            if package != module.package and FLOOR_OF[package] >= FLOOR_OF[module.package]:
                floors = f"{FLOOR_OF[module.package]} -> {FLOOR_OF[package]}"
                wrong.append(f"{module.name} imports {other} (floors {floors})")
    assert not wrong, "\n".join(sorted(wrong))


def test_only_the_top_floor_uses_the_front_door():
    """`import kit` within the kit would reach every floor unseen; packages are named."""
    top = max(FLOOR_OF.values())
    wrong = [
        f"{module.name}:{line} takes {name} from kit"
        for module in MODULES.values()
        if module.package and FLOOR_OF[module.package] < top
        for name, line in front_door_uses(module)
        if name not in FLOOR_OF
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", FLOOR_OF)
def test_no_circles_within_a_package(package):
    inside = {name: module for name, module in MODULES.items() if module.package == package}
    graph = {
        name: imported_modules(module, MODULES) & set(inside) for name, module in inside.items()
    }
    front = f"kit.{package}"
    for place in lazy_places(MODULES[front]).values():
        graph[front] |= {f"{front}.{place.partition(':')[0]}"} & set(inside)
    assert circles(graph) == []


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_no_name_is_defined_in_two_modules():
    places = defaultdict(set)
    for module in MODULES.values():
        for name in top_level_names(module):
            places[name].add(module.name)
    twice = {
        name: sorted(modules)
        for name, modules in places.items()
        if len(modules) > 1 and name not in EVERYWHERE
    }
    assert not twice, "\n".join(f"{name}: {modules}" for name, modules in sorted(twice.items()))


def test_nobody_uses_anothers_private_names():
    wrong = [
        f"{module.name}:{line} uses {name}"
        for module in MODULES.values()
        for name, line in private_uses(module, MODULES)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_two_modules_have_names_that_are_easily_mistaken():
    stems = {module.stem for module in MODULES.values()} - {"__init__", "__main__"}
    alike = [pair for pair in combinations(sorted(stems), 2) if too_alike(*pair)]
    assert not alike


def test_likeness_of_names():
    for pair in (("reading", "readings"), ("confused", "confusion"), ("panel", "panels")):
        assert too_alike(*pair) and too_alike(*reversed(pair)), pair
    for pair in (("curves", "carves"), ("step", "stop"), ("run", "runs")):
        assert too_alike(*pair), pair
    for pair in (("step", "stacked_step"), ("files", "threads"), ("table", "table"), ("a", "bcd")):
        assert not too_alike(*pair), pair


@pytest.mark.parametrize("package", ["", *FLOOR_OF])
def test_no_public_name_hides_a_module(package):
    front = f"kit.{package}".removesuffix(".")
    inside = {
        name.removeprefix(front + ".")
        for name in MODULES
        if name.startswith(front + ".") and "." not in name.removeprefix(front + ".")
    }
    own = {  # the front door offers packages as themselves
        name
        for name, place in lazy_places(MODULES[front]).items()
        if place == f"{name}:" and name in inside
    }
    assert (exported_names(MODULES[front]) & inside) - own == set()


def test_none_of_the_old_words_is_left():
    """`kit.whatif` and `kit.widgets.whatif` are public names, and stay."""
    wrong = defaultdict(set)
    for module in MODULES.values():
        defined = set(defined_names(module))
        for name, line in identifiers(module):
            found = {name} | set(name.lower().split("_")) & IN_COMPOUNDS
            if (name in PLAIN_ENGLISH and (name, line) not in defined) or (
                name == "whatif" and module.package == "widgets"
            ):
                continue
            for word in found & set(OLD_WORDS):
                wrong[f"{module.path.relative_to(ROOT)}: {name} (say {OLD_WORDS[word]})"].add(line)
    lines = [f"{words}, lines {sorted(at)}" for words, at in sorted(wrong.items())]
    assert not wrong, "\n".join(lines)


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.strip().splitlines()[-1]


def test_importing_kit_loads_no_torch():
    """Nor anything else that takes a second."""
    heavy = "{'torch', 'numpy', 'pandas', 'matplotlib', 'seaborn', 'ipywidgets', 'IPython'}"
    assert run_python(f"import sys, kit; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_help_of_the_command_line_loads_no_torch():
    code = (
        "import runpy, sys; sys.argv = ['kit', '--help']\n"
        "try: runpy.run_module('kit', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    assert run_python(code) == "False"


def test_training_loads_neither_figures_nor_widgets():
    """A worker that trains takes only what it needs; torchvision alone costs a second."""
    code = (
        "import sys, kit; kit.run, kit.evaluate, kit.METHODS, kit.RECIPES\n"
        "upper = {'kit.figures', 'kit.widgets', 'kit.notebook', 'kit.jobs', 'matplotlib'}\n"
        "heavy = {'torchvision', 'seaborn', 'ipywidgets', 'anywidget', 'papermill', 'IPython'}\n"
        "print(sorted((upper | heavy) & set(sys.modules)))"
    )
    assert run_python(code) == "[]"


def test_the_readme_shows_the_floors():
    page = (ROOT / "README.md").read_text()
    assert with_made_parts(page) == page, "python -m tests.helpers.layout writes it"
    assert all(f"| {p.floor} | `kit/{p.name}/` |" in page for p in FLOORS)
    with pytest.raises(ValueError, match="once"):
        with_made_parts("# A page without markers")
    old, made = (
        "\n".join(["a", *(enclose(name, text()) for name, text in texts.items()), "b"])
        for texts in (dict.fromkeys(PARTS, lambda: "old"), PARTS)
    )
    assert with_made_parts(old) == made
