"""The layers of the design hold: a module imports only from layers strictly below its own."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.helpers.settings import ROOT

LAYERS = [
    {"types"},
    {
        "functional",
        "memory",
        "store",
        "progress",
        "mixture",
        "sidebyside",
        "precision",
        "processes",
        "workers",
    },
    {
        "attacks",
        "criteria",
        "regularisers",
        "perturbation",
        "schedules",
        "models",
        "data",
        "cluster",
    },
    {"weights", "losses", "together"},
    {"methods", "recipes"},
    {"spec", "formulas"},
    {"runs"},
    {"evaluate", "whatif", "minibatch", "masking"},
    {"tables", "audit", "zoo", "state", "archive", "arithmetic"},
    {"train", "figures"},
    {"explain", "papers", "forecast"},
    {"params", "widgets"},
    {"study"},
    {"batch"},
    {"cli"},
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
OUTSIDE = {ROOT / "kit/__init__.py", ROOT / "kit/__main__.py"}
FILES = sorted(set((ROOT / "kit").rglob("*.py")) - OUTSIDE)


def module_of(path) -> str:
    return path.relative_to(ROOT / "kit").parts[0].removesuffix(".py")


def imported(path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "kit":
            found |= (
                {node.module.split(".")[1]}
                if "." in node.module
                else {alias.name for alias in node.names}
            )
        if isinstance(node, ast.Import):
            found |= {
                alias.name.split(".")[1] for alias in node.names if alias.name.startswith("kit.")
            }
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_the_layers(path):
    own = module_of(path)
    assert own in LEVEL, f"{own} has no layer yet"
    wrong = {name for name in imported(path) if name != own and LEVEL.get(name, 99) >= LEVEL[own]}
    assert not wrong, f"{path.name} (layer {LEVEL[own]}) imports {wrong}"


def test_files_stay_readable():
    long = {
        str(path.relative_to(ROOT)): n
        for path in FILES
        if (n := len(path.read_text().splitlines())) > 400
    }
    assert not long


def test_importing_kit_loads_no_heavy_friends():
    """torchvision, seaborn, ipywidgets and the Jupyter packages cost seconds and are not needed to
    train.
    """
    code = (
        "import sys, kit; heavy = {'torchvision', 'seaborn', 'ipywidgets', 'anywidget', "
        "'papermill', 'IPython', "
        "'jupyterlab'}; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_lint():
    command = [sys.executable, "-m", "ruff", "check", "kit", "tests", "notebooks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
