"""What it takes to measure a printed cell, or why it cannot be measured.

It takes a run, an attack, how many images, which network. At quick scale every data set and network
of the papers is the recipe's own: vir-at on SVHN and on CIFAR-10 are one run. A recipe of the
papers' scale, say cifar10:paper, stands for all of them: each cell takes its own data set, and
`kit.papers.settings` of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, cached_property
from typing import Any, NamedTuple

import pandas as pd

from kit.attacks.table import ATTACKS
from kit.core.errors import KitError, unknown_name
from kit.core.parameters import Natural, check_value
from kit.data.datasets import DATA, base_of, folder_path
from kit.experiments.recipes import RECIPES, find_recipe, unshortened_name
from kit.experiments.specification import RunSpec, parse_overrides, resolve
from kit.papers.printed_attacks import attack_of
from kit.papers.printed_data import (
    PAPERS,
    cell_tags,
    cells_of,
    main_setting,
    table_name,
    tables,
)
from kit.papers.printed_settings import KEYS, recipe_of, row_of_cell, settings_of_row

#: These cost seconds to minutes a run; they see the first `strong_n` images only.
STRONG = {"apgd-ce", "aa", "fmn100", "mde", "square", "spsa100"}

CLASS_COUNTS = {"cifar100": 100, "mixture": 2} | dict.fromkeys(
    set(DATA) - {"cifar100", "mixture"}, 10
)

#: It stands behind the attacks that are added to tables of one class's accuracy.
OF_ALL_ROWS = ", all classes"


class Evaluation(NamedTuple):
    """One evaluation of a run, as arguments of `kit.evaluate`."""

    attack: str
    n: int = 0
    which: str = "last"


@dataclass(frozen=True)
class Need:
    """One cell, and what measures it; or the `reason` why nothing does, and no `ask`.

    `cell` has its columns and the parts of its variant as text; `protected` is the class whose
    images count, None for all.
    """

    cell: Mapping[str, Any]
    method: str = ""
    recipe: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    ask: Evaluation | None = None
    protected: int | None = None
    reason: str = ""

    def spec(self, seed: int) -> RunSpec:
        """Return the run that measures it with one seed."""
        return RunSpec(self.method, self.recipe, seed, self.overrides)

    @property
    def stands_for_another(self) -> str:
        """Why no claim may be decided by it; "" if one may.

        A quick recipe has one data set and one network, and so have a shortened one and a folder.
        It stands for those of the paper's first table, and says nothing of the others. Images that
        the kit cannot load itself are one's own.
        """
        data, model = main_setting(self.cell["paper"])
        mine = self.cell["dataset"], self.cell["model"]
        has_both = self.recipe in RECIPES and ":" in self.recipe
        if has_both or mine == (data, model) or recipe_of(self.cell["paper"], mine[0])[1]:
            return ""
        return (
            f"it is about {mine[1]} on {mine[0]}; {self.recipe} stands for {model} on {data} alone"
        )

    @cached_property
    def tags(self) -> frozenset[str]:
        """The words that name it in a rule."""
        return cell_tags(self.cell)


def grid(
    paper: str,
    table: str | int,
    *,
    recipe: str = "digits",
    overrides: Mapping[str, Any] | None = None,
    strong_n: int = 100,
    fast_n: int = 0,
) -> list[Need]:
    """List what measures each cell of a printed table, in its order.

    Tables that print one class's accuracy get two columns more, natural and PGD over all classes:
    they show what protecting one class costs the others. `overrides` are settings of every run;
    `strong_n` is how many images slow attacks see, `fast_n` how many the others (0 = all).

    Raises:
        KitError: There is no such paper, table or recipe.
    """
    find_recipe(recipe)
    check_value("strong_n", strong_n, Natural)
    check_value("fast_n", fast_n, Natural)
    cells = cells_of(paper, table)
    records = cells.to_dict("records")
    if "protected_class" in cells:
        rows = cells.drop_duplicates(["method", "variant"]).to_dict("records")
        records += [
            {
                **row,
                "attack": f"{attack}{OF_ALL_ROWS}",
                "metric": "accuracy",
                "printed": "",
                "mean": float("nan"),
                "std": float("nan"),
            }
            for row in rows
            for attack in ("natural", "pgd")
        ]
    settings = cache(_printed_overrides)  # the cells of a row share theirs
    given = dict(overrides or {})
    return [_need(cell, recipe, given, strong_n, fast_n, settings) for cell in records]


def _need(
    cell: dict[str, Any],
    name: str,
    overrides: dict[str, Any],
    strong_n: int,
    fast_n: int,
    settings: Callable[..., dict[str, Any]],
) -> Need:
    row = row_of_cell(cell)
    known, images = recipe_of(cell["paper"], row["dataset"] if row else cell["dataset"])
    with_own_images = bool(images) and fnmatchcase(name, re.sub("<.*?>", "*", images))
    paper_scale = with_own_images or (name in RECIPES and name.endswith(":paper"))
    printed, here = cell["attack"].removesuffix(OF_ALL_ROWS), name
    attack = attack_of(cell["paper"], printed, paper_scale=paper_scale)
    if paper_scale and not with_own_images:
        here = f"{cell['dataset']}:paper" if images else known
    reason = _obstacle(cell, attack, here)
    if reason:
        return Need(cell, reason=reason)
    if paper_scale and row is not None:
        # a burn-in is printed for the printed number of epochs; of another its share is kept
        unread = {"burn_in"} if "epochs" in overrides else set()
        printed_here = settings(*(cell[key] for key in KEYS), cell["row"], here)
        overrides = {k: v for k, v in printed_here.items() if k not in unread} | overrides
    n = strong_n if attack in STRONG else fast_n
    ask = Evaluation(attack, n, cell["checkpoint"] or "last")
    protected = (
        int(cell["protected_class"]) if cell["metric"] == "protected_class_accuracy" else None
    )
    need = Need(
        cell, cell["row"], here, overrides | parse_overrides(cell["overrides"]), ask, protected
    )
    if ask.which == "best" and not resolve(need.spec(0)).recipe.validation:
        return Need(
            cell,
            reason=f"{here} holds out no images to choose the best checkpoint by; set "
            "validation=1000, say",
        )
    return need


def _printed_overrides(
    paper: str, dataset: str, model: str, method: str, row: str, recipe: str
) -> dict[str, Any]:
    """Return the overrides that make a run on `recipe` the one whose settings a paper prints."""
    printed = row_of_cell(dict(zip(KEYS, (paper, dataset, model, method), strict=True)))
    assert printed is not None  # `_need` asks for such rows alone
    return dict(settings_of_row(printed, row, own_recipe=recipe).spec.overrides)


def _obstacle(cell: dict[str, Any], attack: str, here: str) -> str:
    """Why a cell cannot be measured on the recipe `here`; "" if it can."""
    if cell["printed"] == "" and not cell["attack"].endswith(OF_ALL_ROWS):
        return "the paper leaves it blank"
    if not cell["row"]:
        printed = " ".join(filter(None, (cell["method"], cell["variant"])))
        return f"no row of kit.METHODS computes {printed}"
    if "extra_data" in cell["variant"] and "+npz:" not in here:
        return "needs 20 million generated images"
    if attack not in ATTACKS:
        return f"kit.ATTACKS has no {attack}: evaluation keeps to the norm of the run's own threat"
    whole = unshortened_name(here)
    if whole not in RECIPES and not whole.startswith("folder:") and "+npz:" not in whole:
        return f"there is no recipe {here}; its images can come in as recipe=folder:<path>:paper"
    count = classes_of(here)
    if int(cell.get("protected_class") or 0) >= count:
        return f"{here} has classes 0 to {count - 1}, not {cell['protected_class']}"
    return ""


def classes_of(name: str) -> int:
    """Count the classes of a recipe's data set, without loading it."""
    data = base_of(find_recipe(name).data)
    if data.startswith("folder:"):
        return sum(path.is_dir() for path in (folder_path(data) / "train").iterdir())
    return CLASS_COUNTS[data]


def needs(
    paper: str,
    table: str | int,
    *,
    recipe: str = "digits",
    seeds: Sequence[int] = (0,),
    overrides: Mapping[str, Any] | None = None,
) -> list[RunSpec]:
    """List the runs that a printed table takes on a recipe, each once, in the table's order.

    Raises:
        KitError: There is no such paper, table or recipe.
    """
    return [
        spec for spec, _ in asked(grid(paper, table, recipe=recipe, overrides=overrides), seeds)
    ]


def asked(planned: Sequence[Need], seeds: Sequence[int]) -> list[tuple[RunSpec, list[Evaluation]]]:
    """List the runs of some cells, each once, with their evaluations, each once."""
    found: dict[str, tuple[RunSpec, list[Evaluation]]] = {}
    for seed in seeds:
        for need in planned:
            if need.ask is not None:
                spec = need.spec(seed)
                asks = found.setdefault(str(spec), (spec, []))[1]
                asks += [need.ask] if need.ask not in asks else []
    return list(found.values())


def chosen_tables(text: str) -> list[tuple[str, str]]:
    """Read which tables a text such as "clirat-1 mail-2" names, spaces or commas between.

    A paper's name stands for all its tables, "all" for all tables.

    Returns:
        Pairs (paper, table), such as ("clirat", "T1").

    Raises:
        KitError: The text is empty, or there is no such paper or table.
    """
    words = text.replace(",", " ").split()
    if not words:
        raise KitError(
            'tables is empty; it must name printed tables, such as "clirat-1 mail-2", papers, or '
            "all"
        )
    pairs = []
    for word in PAPERS if words == ["all"] else words:
        paper, _, number = word.partition("-")
        if paper not in PAPERS:
            raise unknown_name("paper", paper, PAPERS)
        pairs += (
            [(paper, table_name(paper, number))]
            if number
            else [(paper, name) for name in tables(paper)]
        )
    return list(dict.fromkeys(pairs))


def cell_label(cell: Mapping[str, Any], index: Sequence[str]) -> str:
    """Name a row in one line, by what tells it from the table's other rows.

    It is such as "resnet18 mr-mail tau=3".
    """
    plain = ("method", "dataset", "model", "checkpoint")
    return " ".join(
        str(cell[key]) if key in plain else f"{key.replace('_class', '')}={cell[key]}"
        for key in index
        if not pd.isna(cell.get(key)) and cell[key] != ""
    )
