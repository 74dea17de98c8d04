"""Tables of classes: accuracy per class, confusion, and the protected class beside all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from kit.core.errors import KitError, unknown_name
from kit.evaluation.accuracy import evaluate
from kit.evaluation.statistics import wilson
from kit.experiments.runs import Run


def per_class(table: pd.DataFrame, attack: str) -> pd.DataFrame:
    """Tabulate accuracy, interval and n of each class under one attack of an `evaluate` table.

    Raises:
        KitError: The table lacks the per-example arrays, or has no such attack.
    """
    examples = _attack_examples(table, attack)
    rows = []
    for label, name in enumerate(table.attrs["classes"]):
        mine = examples["y"] == label
        right = int((~examples["broken"][mine]).sum())
        low, high = wilson(right, int(mine.sum()))
        rows.append(
            {
                "class": name,
                "accuracy": right / max(int(mine.sum()), 1),
                "low": low,
                "high": high,
                "n": int(mine.sum()),
            }
        )
    return pd.DataFrame(rows).set_index("class")


def confusion(table: pd.DataFrame, attack: str) -> np.ndarray:
    """Count the last iterates under one attack: (K, K), rows true and columns predicted.

    The sum is n. A prediction that is no number (-1) is counted in no column; `measure_attack`
    refuses networks that make them.

    Raises:
        KitError: The table lacks the per-example arrays, or has no such attack.
    """
    examples, k = _attack_examples(table, attack), len(table.attrs["classes"])
    matrix = np.zeros((k, k), dtype=np.int64)
    known = examples["prediction"] >= 0
    np.add.at(matrix, (examples["y"][known], examples["prediction"][known]), 1)
    return matrix


def protected_table(
    runs: Mapping[str, Run], attacks: Sequence[str] = ("natural", "fgsm", "pgd20")
) -> pd.DataFrame:
    """Tabulate the accuracy of the protected class and of all classes, per method and attack.

    n and Wilson intervals stand beside them. The protected class is that of the first run whose
    loss has one (class 0 where none does).
    """
    losses = [run.plan.method.loss.params for run in runs.values()]
    protected = next((int(params["protected"]) for params in losses if "protected" in params), 0)
    rows = {}
    for method, run in runs.items():
        table = evaluate(run, attacks, quiet=True)
        for attack in attacks:
            mine, total = per_class(table, attack).iloc[protected], table.loc[attack]
            rows[(method, attack)] = {
                f"class {table.attrs['classes'][protected]}": mine["accuracy"],
                "interval": f"[{mine['low']:.2f}, {mine['high']:.2f}]",
                "n": int(mine["n"]),
                "all classes": total["accuracy"],
                "interval, all": f"[{total['low']:.2f}, {total['high']:.2f}]",
                "n, all": int(total["n"]),
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["method", "attack"]).round(3)


def _attack_examples(table: pd.DataFrame, attack: str) -> dict[str, np.ndarray]:
    if "examples" not in table.attrs:
        raise KitError(
            "this table has no per-example arrays: pandas drops them when tables of different "
            "calls are joined. Take a table as kit.evaluate returned it"
        )
    found = table.attrs["examples"]
    if attack not in found:
        raise unknown_name("attack in this table", attack, found)
    return found[attack]
