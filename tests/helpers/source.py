"""The kit's source as data: modules, what they import, define and name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.helpers.settings import ROOT


@dataclass(frozen=True)
class Module:
    """A file of the kit, parsed."""

    name: str  # "kit.attacks.table"; a package is its `__init__.py`
    path: Path
    tree: ast.Module = field(repr=False)

    @property
    def package(self) -> str:
        """Its folder in kit/, "" for the files that lie flat."""
        return self.name.split(".")[1] if self.path.parent != ROOT / "kit" else ""

    @property
    def stem(self) -> str:
        return self.path.stem


@cache
def kit_modules() -> dict[str, Module]:
    """Parse every file of the kit. -> {dotted name: module}"""
    found = {}
    for path in sorted((ROOT / "kit").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        found[name] = Module(name, path, ast.parse(path.read_text()))
    return found


def imported_modules(module: Module, modules: dict[str, Module]) -> set[str]:
    """List the kit's modules that a module imports, wherever in it.

    A name that is taken from a package is an import of the package, unless it is one of its
    modules. An import of `kit` itself names none.
    """
    found = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in modules}
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:  # from . import x
                base = module.name.split(".")
                base = base if module.stem == "__init__" else base[:-1]
                base = base[: len(base) - node.level + 1]
                source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                if inner in modules:
                    found.add(inner)
                elif source in modules:
                    found.add(source)
    return found - {"kit", module.name}


def front_door_uses(module: Module) -> Iterator[tuple[str, int]]:
    """List what a module takes from `kit` itself, with the line; `import kit` counts as "kit"."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (("kit", node.lineno) for alias in node.names if alias.name == "kit")
        elif isinstance(node, ast.ImportFrom) and node.module == "kit" and not node.level:
            yield from ((alias.name, node.lineno) for alias in node.names)


def lazy_places(module: Module) -> dict[str, str]:
    """{public name: "module" or "module:name"} of a package's lazy exports; {} if it has none."""
    for node in module.tree.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "_PLACES"
        ):
            return eval(compile(ast.Expression(node.value), str(module.path), "eval"), {})
    return {}


def exported_names(module: Module) -> set[str]:
    """List what a package's `__init__.py` offers: lazily, by an import, or defined there."""
    names = set(lazy_places(module)) | set(top_level_names(module))
    for node in module.tree.body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def top_level_names(module: Module) -> Iterator[str]:
    """List the names that a module defines at its top level."""
    for node in module.tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))


def defined_names(module: Module) -> Iterator[tuple[str, int]]:
    """List what a module offers by name, with the line: its own name, its functions, classes and
    what lies at its top level, the fields and methods of its classes.
    """
    yield module.stem, 1
    yield from ((name, 1) for name in top_level_names(module))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                    yield member.target.id, member.lineno


def identifiers(module: Module) -> Iterator[tuple[str, int]]:
    """List every identifier of a module with its line: what it defines, local names, parameters,
    keywords.
    """
    yield from defined_names(module)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg) or (isinstance(node, ast.keyword) and node.arg):
            yield node.arg, node.lineno


def private_uses(module: Module, modules: dict[str, Module]) -> Iterator[tuple[str, int]]:
    """List the private names of other modules of the kit that a module uses, with the line."""
    bound = {}  # {name here: module of the kit}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kit":
            for alias in node.names:
                if is_private(alias.name):
                    yield f"{node.module}.{alias.name}", node.lineno
                if f"{node.module}.{alias.name}" in modules:
                    bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname and alias.name in modules:
                    bound[alias.asname] = alias.name
    for node in ast.walk(module.tree):
        if (
            isinstance(node, ast.Attribute)
            and is_private(node.attr)
            and isinstance(node.value, ast.Name)
            and node.value.id in bound
        ):
            yield f"{bound[node.value.id]}.{node.attr}", node.lineno


def is_private(name: str) -> bool:
    """Is it `_name`, and not `__name__`?"""
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Find the groups of two and more nodes that reach each other, each sorted."""

    def reach(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for other in graph.get(todo.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        return seen

    reached = {node: reach(node) for node in graph}
    groups = {
        tuple(sorted({node} | {o for o in reached[node] if node in reached.get(o, ())}))
        for node in graph
    }
    return sorted(list(group) for group in groups if len(group) > 1)


ENDINGS = re.compile(r"(?<=...)(?:ings?|ions?|ed|es|s|ers?|e)$")


def too_alike(one: str, other: str) -> bool:
    """Do two names differ by a letter (put in, left out or replaced) or by an ending?"""
    if one == other:
        return False
    if ENDINGS.sub("", one) == ENDINGS.sub("", other):
        return True
    short, long = sorted((one, other), key=len)
    if len(long) - len(short) > 1:
        return False
    same = next((i for i, letter in enumerate(short) if letter != long[i]), len(short))
    rest = same + 1 if len(long) == len(short) else same
    return short[rest:] == long[same + 1 :]
