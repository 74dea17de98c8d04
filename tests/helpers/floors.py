"""The floors of the house: which package stands on which, and what lives in each.

One table: the architecture's test checks the imports against it, and README's layout is made from
it (`python -m tests.helpers.layout`).
"""

from __future__ import annotations

from typing import NamedTuple


class Package(NamedTuple):
    """A package of the kit. It imports from packages of lower floors only."""

    floor: int
    name: str
    holds: str


FLOORS = (
    Package(
        1,
        "core",
        "errors, tables of named rows, parts and their ranges, random streams, threat, tensor "
        "operations, files, progress",
    ),
    Package(
        2,
        "data",
        "data sets, image folders, generated images, augmentation, the Gaussian mixture",
    ),
    Package(
        2,
        "models",
        "architectures, input gradients, several networks stacked as one program",
    ),
    Package(3, "attacks", "one file an attack; the tracker, the contract, the table `ATTACKS`"),
    Package(
        4,
        "methods",
        "criteria, weights, losses, regularisers, schedules; the table `METHODS`, its formulas and "
        "notes",
    ),
    Package(5, "experiments", "recipes, run specifications, the run and its folder"),
    Package(
        6,
        "training",
        "the step, the loop, checkpoints; stacked and distributed training beside them",
    ),
    Package(
        6,
        "evaluation",
        "accuracy, statistics, audit and masking rules, counterfactual weights, result tables",
    ),
    Package(7, "papers", "printed results, settings and claims as data; rules; verdicts"),
    Package(8, "figures", "style and base; the figures, and what they share"),
    Package(9, "widgets", "the panel, its controls, one file a widget"),
    Package(10, "notebook", "what a notebook calls, and its parameter cells"),
    Package(
        11,
        "jobs",
        "plan, engines (local, Ray), forecast, archive, the command line; reads the notebooks' "
        "parameter cells",
    ),
)
FLOOR_OF = {package.name: package.floor for package in FLOORS}
