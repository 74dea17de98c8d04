"""What follows from the printed numbers alone.

On how many images they can rest, which cells repeat, where they disagree. What a table prints is a
fact, and so is arithmetic on it. How many images were used, or that cells were taken over, is an
inference: columns that say so (`reading`, `kind`) stand beside the chance of seeing as much in
tables with no such cause.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import combinations
from math import comb, prod

import numpy as np
import pandas as pd

from kit.core.errors import unknown_name
from kit.papers.printed_data import cells_of, results
from kit.papers.printed_rules import checks

#: Percentages with two decimals and fractions with four both have this many printable values.
PRINTABLE = 10_000

#: Products of test images and seeds that leave traces in two decimals; with 10,000 any printed
#: value can occur.
GRIDS = {f"{seeds} x 1,000": seeds * 1_000 for seeds in range(1, 6)}

#: Test images of a class, for tables that print the accuracy of one class (MNIST's classes 0 to 9;
#: the rest are equal).
CLASS_SIZES = {
    "mnist": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    "cifar10": (1_000,),
    "cifar100": (100,),
}

#: Chances below this are read as a trace. Of 176 printed columns, each tried twice, 0.35 at most
#: get there by accident.
UNLIKELY = 1e-3

#: Two cells are near within half a point; CSA's tables are fractions.
NEAR = {"accuracy": 0.5, "protected_class_accuracy": 0.005}

PAIR_KINDS = ("two papers", "two methods", "two settings", "same model again")


def _fits(steps: np.ndarray | int, images: int) -> np.ndarray | bool:
    """Say whether a printed value is a rounding, either way at a tie, of some k / images.

    The value is in units of its last decimal.
    """
    off = 2 * steps * images % (2 * PRINTABLE)
    return np.minimum(off, 2 * PRINTABLE - off) <= images


@cache
def _chance(images: int) -> float:
    """The share of all printable values that fit."""
    return float(np.mean(_fits(np.arange(PRINTABLE, dtype=np.int64), images)))


def _tail(chances: list[float], hits: int) -> float:
    """The chance of at least `hits` successes in independent trials with these chances."""
    distribution = np.ones(1)
    for chance in chances:
        distribution = np.convolve(distribution, [1 - chance, chance])
    return float(min(1.0, distribution[hits:].sum()))


def _candidates(cells: pd.DataFrame) -> dict[str, list[int]]:
    """{number of images in words: that number for each cell} of what a column may rest on."""
    if "protected_class" not in cells:
        return {name: [images] * len(cells) for name, images in GRIDS.items()}
    classes = cells["protected_class"].astype(int)
    sizes = [CLASS_SIZES[data] for data in cells["dataset"]]
    return {"the class's": [size[k % len(size)] for size, k in zip(sizes, classes, strict=True)]}


def _column(cells: pd.DataFrame) -> dict[str, object]:
    """One row of `resolution`."""
    scale = 100 if cells["unit"].iloc[0] == "percent" else PRINTABLE
    steps = (cells["mean"] * scale).round().astype(int).tolist()
    found = []
    for name, images in _candidates(cells).items():
        hits = sum(bool(_fits(step, n)) for step, n in zip(steps, images, strict=True))
        chances = [_chance(n) for n in images]
        found.append((name, hits, _tail(chances, hits), prod(chances)))
    first = next((i for i, (_, hits, *_) in enumerate(found) if hits == len(cells)), None)
    by_accident = (
        1.0 if first is None else min(1.0, sum(everything for *_, everything in found[: first + 1]))
    )
    all_fit = "none of these" if first is None else found[first][0]
    best, hits, tail, _ = min(found, key=lambda candidate: candidate[2])
    tail = min(1.0, tail * len(found))
    reading = (
        f"all on {all_fit} images"
        if by_accident < UNLIKELY
        else f"most on {best} images"
        if tail < UNLIKELY
        else "no better than chance"
    )
    return {
        "cells": len(cells),
        "all_fit": all_fit,
        "chance_all": by_accident,
        "best": best,
        "fit": hits,
        "chance_fit": tail,
        "reading": reading,
    }


def resolution(paper: str, table: str | int) -> pd.DataFrame:
    """List on how many images a table's columns can rest, by which means are printed.

    One row a column. A mean over n images and s seeds is a multiple of 1/(n s). Facts: `all_fit`,
    the smallest n s, given as "seeds x 1,000", with which all means of the column agree; `best`,
    the one that the most telling number of means (`fit`) agree with. Only the product shows: 2 x
    1,000 may be one seed on 2,000. `chance_all` and `chance_fit`: at most so likely is as good a
    fit, to any candidate, for means that are random in their last two digits. `reading` is the
    inference, drawn where that is below 0.001. Tables of one class are held against that class's
    test images; cells that are 0 fit all and are left out.

    Raises:
        KitError: There is no such paper or table.
    """
    cells = cells_of(paper, table).query("mean > 0")
    keys = [
        "attack",
        *(key for key in ("dataset", "model", "checkpoint") if cells[key].nunique() > 1),
    ]
    columns = {
        key if len(keys) > 1 else key[0]: _column(group)
        for key, group in cells.groupby(keys, sort=False)
    }
    frame = pd.DataFrame.from_dict(columns, orient="index")
    frame.index = (
        pd.Index(columns, name="attack")
        if len(keys) == 1
        else pd.MultiIndex.from_tuples(columns, names=keys)
    )
    return frame


def _rows() -> list[tuple[dict, dict[str, str]]]:
    """What every row of every table is, and {attack: its cell as printed}.

    Cells that are 0 are left out.
    """
    keys = [
        "paper",
        "table",
        "dataset",
        "model",
        "checkpoint",
        "method",
        "variant",
        "row",
        "overrides",
        "metric",
    ]
    return [
        (
            dict(zip(keys, key, strict=True)),
            dict(zip(group["attack"], group["printed"], strict=True)),
        )
        for key, group in results().query("mean > 0").groupby(keys, sort=False)
    ]


def _coincidence(pairs: list) -> dict[str, float]:
    """{metric: how often near cells of different methods print the same}, one added for safety."""
    tally: dict[str, list[int]] = {}
    for (a, a_cells), (b, b_cells) in pairs:
        same, near = tally.setdefault(a["metric"], [0, 0])
        for attack in (a_cells.keys() & b_cells.keys()) if a["method"] != b["method"] else ():
            gap = abs(float(a_cells[attack].split()[0]) - float(b_cells[attack].split()[0]))
            near += gap <= NEAR[a["metric"]]
            same += a_cells[attack] == b_cells[attack]
        tally[a["metric"]] = [same, near]
    return {metric: (same + 1) / (near + 1) for metric, (same, near) in tally.items()}


def _pair_kind(a: dict, b: dict) -> str:
    if a["paper"] != b["paper"]:
        return "two papers"
    if a["row"] != b["row"] or a["method"] != b["method"]:
        return "two methods"
    alike = all(a[key] == b[key] for key in ("model", "checkpoint", "overrides"))
    return "same model again" if alike else "two settings"


def _row_name(row: dict) -> str:
    return " ".join(
        filter(
            None,
            (row[key] for key in ("paper", "table", "model", "checkpoint", "method", "variant")),
        )
    )


def copied_cells() -> pd.DataFrame:
    """List pairs of printed rows that share more cells than chance would let them.

    A cell is shared if mean and deviation are the same to the digit. Facts: `first`, `second`,
    `same` and `differ` (attacks where the two print the same and not the same), `data`. `kind`
    sorts them: "two papers", "two methods", "two settings" of one method, or "same model again",
    where a paper repeats a row of its own, as it may: but see what differs. `by_chance` is the
    number of such pairs to expect among all of that kind and data set, if all their cells were near
    each other (half a point) and then coincided as often as near cells of different methods do;
    copies are counted in that rate, which makes it cautious. Listed are pairs of two cells or more
    where it is below 0.05. That cells were copied, and from where, is an inference that the reader
    may draw.
    """
    pairs = [
        (a, b)
        for a, b in combinations(_rows(), 2)
        if (a[0]["dataset"], a[0]["metric"]) == (b[0]["dataset"], b[0]["metric"])
    ]
    rate = _coincidence(pairs)
    compared = Counter((a["dataset"], _pair_kind(a, b)) for (a, _), (b, _) in pairs)
    found = []
    for (a, a_cells), (b, b_cells) in pairs:
        shared = [attack for attack in a_cells if attack in b_cells]
        same = [attack for attack in shared if a_cells[attack] == b_cells[attack]]
        kind = _pair_kind(a, b)
        expected = (
            compared[a["dataset"], kind]
            * comb(len(shared), len(same))
            * rate[a["metric"]] ** len(same)
        )
        if len(same) > 1 and expected < 0.05:
            found.append(
                {
                    "kind": kind,
                    "data": a["dataset"],
                    "first": _row_name(a),
                    "second": _row_name(b),
                    "same": ", ".join(same),
                    "differ": ", ".join(x for x in shared if x not in same),
                    "by_chance": expected,
                }
            )
    return pd.DataFrame(sorted(found, key=lambda pair: PAIR_KINDS.index(pair["kind"])))


def spread(method: str) -> pd.DataFrame:
    """List how far papers disagree on one method, by data set, model and attack.

    One row each that two papers or more print. `method` is a row of `kit.METHODS` (or a printed
    name without one); only cells at that row's own hyper-parameters count. `range` is largest less
    smallest mean, in points, beside the largest printed deviation; last and best checkpoints both
    enter. WRN-32-10 and WRN-34-10 are two models, and a name such as "cw" need not be one attack in
    all papers.

    Raises:
        KitError: No two papers print the method for the same data, model and attack.
    """
    cells = results().dropna(subset="mean").query("overrides == ''")
    cells["key"] = cells["row"].where(cells["row"] != "", cells["method"])
    found = []
    for key, group in cells.groupby(["key", "dataset", "model", "attack"], sort=False):
        if group["paper"].nunique() > 1:
            low, high = group.loc[group["mean"].idxmin()], group.loc[group["mean"].idxmax()]
            found.append(
                dict(zip(("method", "dataset", "model", "attack"), key, strict=True))
                | {
                    "papers": group["paper"].nunique(),
                    "cells": len(group),
                    "min": low["mean"],
                    "max": high["mean"],
                    "range": round(high["mean"] - low["mean"], 2),
                    "largest_std": group["std"].max(),
                    "lowest": f"{low['paper']} {low['table']}",
                    "highest": f"{high['paper']} {high['table']}",
                }
            )
    frame = pd.DataFrame(found)
    if method not in set(frame["method"]):
        raise unknown_name(
            "method that two papers print for the same data set, model and attack",
            method,
            set(frame["method"]),
        )
    return (
        frame[frame["method"] == method]
        .drop(columns="method")
        .set_index(["dataset", "model", "attack"])
    )


def text_against_table(paper: str | None = None) -> pd.DataFrame:
    """List every number given for an arithmetic claim beside what the printed means come to.

    The index is the claim's number. `said_by` "text": the paper's prose gives it; "record": the
    kit's list of claims does. `agrees` is False where the number is not a rounding of
    `from_tables`; `differs_by` is that less what is said. It is arithmetic only: which of the two
    is the slip, nothing here can say.

    Raises:
        KitError: There is no such paper.
    """
    given = checks(paper).query("said != ''").copy()
    given["differs_by"] = (given["from_tables"] - given["said"].astype(float)).round(2)
    given["agrees"] = given["agrees"].astype(bool)
    return given.set_index("claim")[
        ["paper", "statement", "said", "said_by", "from_tables", "differs_by", "agrees"]
    ]
