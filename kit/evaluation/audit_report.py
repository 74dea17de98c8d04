"""What an audit found: its tables, its findings, and how they are printed."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from kit.attacks.table import ATTACKS, attack_label
from kit.core.progress import format_duration
from kit.core.threat import Threat
from kit.evaluation.masking_rules import (
    AUTOATTACK_PARTS,
    FEWEST,
    Evidence,
    Finding,
    Light,
    worst_light,
)
from kit.evaluation.statistics import wilson


@dataclass(frozen=True)
class Audit:
    """What `audit` found; print it, or read its parts.

    steps: a row an attack, in order of strength: accuracy, low and high (Wilson, 95 %), n; gains
    and loses, images that it breaks and the attack above does not, and the other way round; p of
    that difference (McNemar, exact, two-sided). "aa" is the union of AutoAttack's four, "worst
    case" of all attacks, on the images on which all but the costliest were run. findings: the ten
    rules. examples: a row an image (by id): y, broken by ("" where nothing breaks it), and each
    attack's verdict (missing where it was not asked). missing: what was not run, and why.
    """

    title: str
    threat: Threat
    steps: pd.DataFrame
    findings: tuple[Finding, ...]
    examples: pd.DataFrame
    missing: dict[str, str]
    seconds: float

    @property
    def light(self) -> Light:
        """The most serious light of all rules."""
        return worst_light([finding.light for finding in self.findings])

    @property
    def stopped(self) -> bool:
        """Tell whether it was interrupted."""
        return STOPPED in self.missing.values()

    def finding(self, rule: str) -> Finding:
        """Return the finding of the rule whose name begins with `rule`."""
        return next(finding for finding in self.findings if finding.rule.startswith(rule))

    @cached_property
    def caption(self) -> str:
        """Network, threat, the most serious light, time, and what was not run, in one line."""
        left = "".join(
            f" Not run: {audit_label(name)} ({why})." for name, why in self.missing.items()
        )
        took = format_duration(self.seconds)
        return f"{self.title}, {self.threat}: {WORDS[self.light]}. {took}.{left}"

    def record(self) -> dict:
        """Return all of it but the table of examples, as JSON values."""
        rows = {
            name: {key: None if pd.isna(value) else value for key, value in row.items()}
            for name, row in self.steps.astype(object).to_dict("index").items()
        }
        return {
            "title": self.title,
            "threat": str(self.threat),
            "light": self.light,
            "ladder": rows,
            "findings": [finding.record() for finding in self.findings],
            "missing": self.missing,
            "seconds": round(self.seconds, 1),
        }

    def __repr__(self) -> str:
        lines = [self.caption, "", self._table().to_string(), ""]
        for number, finding in enumerate(self.findings, 1):
            lines += [
                f"{number:>2} {MARKS[finding.light]} {finding.rule}",
                f"{'':16}{finding.sentence}{_some_ids(finding)}",
            ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{number}</td>"
            f"<td style='background:{COLOURS[finding.light]};color:#fff;white-space:nowrap'>"
            f"<b>{MARKS[finding.light].strip()}</b></td>"
            f"<td style='text-align:left'><b>{html.escape(finding.rule)}</b><br>"
            f"{html.escape(finding.sentence + _some_ids(finding))}</td></tr>"
            for number, finding in enumerate(self.findings, 1)
        )
        return (
            f"<p>{html.escape(self.caption)}</p>{self._table().to_html(border=0)}<table><thead>"
            "<tr><th>rule</th><th>light</th><th>finding</th></tr>"
            f"</thead><tbody>{rows}</tbody></table>"
        )

    def _table(self) -> pd.DataFrame:
        table = self.steps
        return pd.DataFrame(
            {
                "accuracy": [f"{value:.1%}" for value in table["accuracy"]],
                "95 % interval": [
                    f"{low:.1%} to {high:.1%}"
                    for low, high in zip(table["low"], table["high"], strict=True)
                ],
                "n": table["n"].to_numpy(),
                **{
                    name: [_or_dash(value, digits) for value in table[name]]
                    for name, digits in (
                        ("gains", ".0f"),
                        ("loses", ".0f"),
                        ("p", ".2g"),
                        ("forwards", ".0f"),
                        ("backwards", ".0f"),
                    )
                },
            },
            index=[audit_label(name) for name in table.index],
        )


STOPPED = "stopped"

WORDS = {
    "red": "red: it looks more robust than it is, or these attacks cannot tell",
    "amber": "amber: look closer",
    "green": "green: no sign of masking",
    "not judged": "nothing could be judged",
}

MARKS = {
    "red": "✗ RED       ",
    "amber": "! AMBER     ",
    "green": "✓ GREEN     ",
    "not judged": "? NOT JUDGED",
}

#: Okabe and Ito's, darkened where white letters stand on them; the marks say the same without
#: colour.
COLOURS = {"red": "#B34700", "amber": "#8F6200", "green": "#00694D", "not judged": "#595959"}


def _some_ids(finding: Finding) -> str:
    """Name the first few ids behind a warning, in words."""
    ids = finding.ids
    if not ids or finding.light not in ("red", "amber"):
        return ""
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return f" Ids: {', '.join(map(str, ids[:5]))}{more}."


def audit_label(name: str) -> str:
    """Name an attack for a reader; other parts of the audit keep their names."""
    return attack_label(name) if name in ATTACKS else name


def _or_dash(value: float, digits: str) -> str:
    return "-" if pd.isna(value) else format(value, digits)


# ------------------------------------------------------------------------------------- its tables


def step_table(evidence: Evidence, done: Mapping[str, Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """Build `Audit.steps`; the unions stand below the attacks and are compared with none."""
    rows, before = {}, None
    for name, broken in evidence.broken.items():
        rows[name] = (
            _accuracy(broken)
            | _mcnemar(before, broken)
            | {key: float(done[name][key].mean()) for key in ("forwards", "backwards")}
        )
        before = broken
    if all(name in evidence.broken for name in AUTOATTACK_PARTS):
        rows["aa"] = _accuracy(evidence.any_of(AUTOATTACK_PARTS, evidence.common(AUTOATTACK_PARTS)))
    if len(evidence.broken) > 1:
        wide = [
            name
            for name, broken in evidence.broken.items()
            if len(broken) >= min(FEWEST, len(evidence.ids))
        ]
        rows["worst case"] = _accuracy(worst_case(evidence, evidence.common(tuple(wide))))
    columns = ["accuracy", "low", "high", "n", "gains", "loses", "p", "forwards", "backwards"]
    return (
        pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("attack")
        if rows
        else pd.DataFrame(columns=columns).rename_axis("attack")
    )


def worst_case(evidence: Evidence, count: int) -> np.ndarray:
    """Return (count,) bool: broken by any attack that was run on the image."""
    broken = np.zeros(count, dtype=bool)
    for verdicts in evidence.broken.values():
        broken[: len(verdicts)] |= verdicts[:count]
    return broken


def _accuracy(broken: np.ndarray) -> dict[str, float]:
    right = int((~broken).sum())
    low, high = wilson(right, len(broken))
    return {"accuracy": right / len(broken), "low": low, "high": high, "n": len(broken)}


def _mcnemar(before: np.ndarray | None, broken: np.ndarray) -> dict[str, float]:
    """Compare `broken` with the attack before, on the images of both: gains, loses and p."""
    if before is None:
        return {}
    n = min(len(before), len(broken))
    gains, loses = int((broken[:n] & ~before[:n]).sum()), int((before[:n] & ~broken[:n]).sum())
    return {
        "gains": gains,
        "loses": loses,
        "p": float(binomtest(gains, gains + loses).pvalue) if gains + loses else 1.0,
    }


def examples_table(evidence: Evidence) -> pd.DataFrame:
    """Build `Audit.examples`; "by" is the first attack, in their order, that breaks the image."""
    table = pd.DataFrame({"y": evidence.y, "by": ""}, index=pd.Index(evidence.ids, name="id"))
    for name, broken in evidence.broken.items():
        table[name] = pd.array(
            [*broken.tolist(), *[None] * (len(evidence.ids) - len(broken))], dtype="boolean"
        )
        first = table[name].fillna(False).to_numpy(dtype=bool) & (table["by"] == "").to_numpy()
        table.loc[first, "by"] = name
    return table
