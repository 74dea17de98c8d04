"""The papers' claims held against measured numbers: the same rules as in `rules`, on what finished
runs show, with a test.

Cells are accuracies on the same images, so what is tested are differences in pairs: images are
drawn anew (Poisson weights) and so are seeds, one fewer than there are (Rao and Wu 1988); with one
seed, other seeds stay out of view. Each cell gets two invented images, one for what the rule
expects and one against it, as Agresti and Min (2005) do for paired proportions, so that a handful
of images decides nothing. A statement is confirmed if it keeps its bound in 97.5 % of the draws;
one of m statements is refuted if it keeps it in at most 2.5 % / m.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pandas as pd

from kit.core.files import CHECKOUT, read_json
from kit.figures.table import FIGURES, output_folder
from kit.papers.consistency import copied_cells, resolution, text_against_table
from kit.papers.measured_cells import NOT_RUN, observed
from kit.papers.printed_data import read_table, tables
from kit.papers.printed_rules import _filled, claims
from kit.papers.table_runs import Need, chosen_tables, grid

DRAWS, LEVEL = 2000, 0.025

PAPER_LABELS = {
    "CLIRAT": "clirat",
    "MAIL": "mail",
    "VIR": "vir",
    "MR": "mr",
    "CSA": "csa",
    "CSE": "csa",
    "CSA/CSE": "csa",
}

VERDICTS = {"holds": "confirmed", "fails": "refuted", "undecided": "undecided"}

KEEPS: dict[str, Callable] = {
    ">": np.greater,
    ">=": np.greater_equal,
    "<": np.less,
    "<=": np.less_equal,
    "=": np.equal,
}

REDUCED: dict[str, Callable] = {
    "min": partial(np.min, axis=0),
    "max": partial(np.max, axis=0),
    "mean": partial(np.mean, axis=0),
    "range": partial(np.ptp, axis=0),
}


@dataclass(frozen=True)
class Sum:
    """An expression of a rule on measured cells: its value, the value in each draw, what it rests
    on; or why it was not run. `open` are the tables whose runs are still to be made.
    """

    text: str
    value: float = float("nan")
    draws: np.ndarray | None = None
    n: int = 0
    seeds: int = 0
    runs: frozenset[str] = frozenset()
    why: str = ""
    open: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Statement:
    """A sum and its bound. `sure`, `possible` (DRAWS,): is the bound kept whatever the cells that
    were not run would show, and could it be? None where nothing was run. `possible` may be the
    worst of several `parts`.
    """

    sum: Sum
    expected: str
    sure: np.ndarray | None = None
    possible: np.ndarray | None = None
    parts: int = 1

    def verdict(self, of: int) -> str:
        """confirmed, refuted, undecided or not run, as one of so many statements."""
        if self.sure is None:
            return NOT_RUN
        return (
            "confirmed"
            if self.sure.mean() >= 1 - LEVEL
            else "refuted"
            if self.possible.mean() <= LEVEL / of
            else "undecided"
        )


@dataclass
class Cells:
    """A paper's cells on a recipe: what measures each, and what was seen, read once."""

    needs: list[Need]
    seeds: Sequence[int]
    seen: dict[tuple, tuple | None] = field(default_factory=dict)

    def find(self, words: str) -> Need:
        """The cell that carries all `words`:

        there is one, or the rule would not have passed on the printed tables.
        """
        wanted = set(words.split())
        return next(need for need in self.needs if need.tags >= wanted)

    def observed(self, need: Need, seed: int) -> tuple | None:
        key = (str(need.spec(seed)), need.ask, need.protected)
        if key not in self.seen:
            self.seen[key] = observed(need, seed)
        return self.seen[key]


@cache
def _image_weights(n: int) -> np.ndarray:
    """(DRAWS, n) how often each image is drawn; an image's draws are the same whatever n."""
    return np.random.default_rng(0).poisson(1.0, (n, DRAWS)).astype(np.float32).T


@cache
def _seed_weights(seeds: int) -> np.ndarray:
    """(DRAWS, seeds) shares of the seeds."""
    size = max(1, seeds - 1)
    return np.random.default_rng(1).multinomial(size, [1 / seeds] * seeds, DRAWS) / size


@cache
def _invented() -> np.ndarray:
    """(DRAWS, 2) how often the invented image for, and that against, is drawn."""
    return np.random.default_rng(2).poisson(1.0, (DRAWS, 2))


def _drawn(right: np.ndarray, counts: np.ndarray, favourable: bool) -> np.ndarray:
    """(DRAWS,) accuracy of one cell. right: (seeds, n); counts: (n,) which images matter;
    favourable: does the rule's sum grow with the cell?
    """
    weights, extra = _image_weights(len(counts))[:, counts], _invented()
    hits = weights @ right[:, counts].T.astype(np.float32) + extra[:, [0 if favourable else 1]]
    total = np.maximum(weights.sum(axis=1) + extra.sum(axis=1), 1)
    return (hits * _seed_weights(len(right))).sum(axis=1) / total


def parsed(expression: str) -> list[tuple[int, list[str]]]:
    """[(sign, cells of which the larger counts)] of an expression such as "T1 clirat aa - T1 at
    aa".
    """
    first, *rest = re.split(r" ([+-]) ", expression)
    return [
        (1, first.split(" / ")),
        *(
            (1 if sign == "+" else -1, term.split(" / "))
            for sign, term in zip(rest[::2], rest[1::2], strict=True)
        ),
    ]


def evaluated(cells: Cells, expression: str) -> Sum:
    """An expression on measured cells, on the images and seeds that all of its cells share."""
    terms = [
        (sign, [cells.find(words) for words in choices]) for sign, choices in parsed(expression)
    ]
    needs = [need for _, choices in terms for need in choices]
    if why := next((need.reason for need in needs if need.reason), "") or _same_run(terms):
        return Sum(expression, why=why)
    seeds = [seed for seed in cells.seeds if all(cells.observed(need, seed) for need in needs)]
    if not seeds:
        missing = {
            f"{need.cell['paper']}-{need.cell['table'][1:]}"
            for need in needs
            if not any(cells.observed(need, seed) for seed in cells.seeds)
        }
        return Sum(expression, why="its runs are not there yet", open=frozenset(missing))
    n = min(len(cells.observed(need, seeds[0])[1]) for need in needs)
    value, draws, runs, images = 0.0, np.zeros(DRAWS), set(), []
    for sign, choices in terms:
        points, drawn = [], []
        for need in choices:
            found = [cells.observed(need, seed) for seed in seeds]
            right, counts = np.stack([flags[:n] for _, flags, _ in found]), found[0][2][:n]
            if not counts.any():
                return Sum(
                    expression, why=f"no image of class {need.protected} is among the first {n}"
                )
            images.append(int(counts.sum()))
            scale = 100 if need.cell["unit"] == "percent" else 1
            points.append(scale * float(right[:, counts].mean()))
            drawn.append(scale * _drawn(right, counts, sign > 0))
            runs |= {run.key for run, *_ in found}
        value, draws = value + sign * max(points), draws + sign * np.max(drawn, axis=0)
    return Sum(expression, round(value, 6), draws, min(images), len(seeds), frozenset(runs))


def _same_run(terms: list[tuple[int, list[Need]]]) -> str:
    """Why a difference says nothing:

    a network against itself, where a recipe has one network and data set for both.
    """
    single = [
        (sign, (str(need.spec(0)), need.ask, need.protected))
        for sign, (need, *others) in terms
        if not others
    ]
    if {key for sign, key in single if sign > 0} & {key for sign, key in single if sign < 0}:
        return "compares two networks or data sets, and this recipe has one of each: --recipe cifar10:paper has both"
    return ""


def statements(cells: Cells, rule: Mapping[str, str]) -> list[Statement]:
    """What one row of rules.csv states of measured cells; a rule that only gives a number states
    nothing.
    """
    texts, take, expect = _filled(rule["expression"], rule["over"]), rule["take"], rule["expect"]
    if take in ("rising", "falling"):
        steps = [evaluated(cells, f"{b} - {a}") for a, b in pairwise(texts)]
        return [_bounded(step, "> 0" if take == "rising" else "< 0") for step in steps]
    if not expect:
        return []
    sums = [evaluated(cells, text) for text in texts]
    if take == "most":
        return [_most(f"most of {len(sums)}: {rule['expression']}", sums, expect)]
    if take in REDUCED:
        whole = _bounded(
            _combined(f"{take} of {len(sums)}: {rule['expression']}", sums, REDUCED[take]), expect
        )
        parts = (
            [evaluated(cells, f"{a} - {b}") for a, b in permutations(texts, 2)]
            if take == "range"
            else sums
        )
        return [whole if take == "mean" else _by_parts(whole, parts)]
    return [_bounded(part, expect) for part in sums]


def _combined(text: str, sums: Sequence[Sum], function: Callable) -> Sum:
    """One number of several sums, if all of them were run."""
    if gaps := [part for part in sums if part.why]:
        return Sum(text, why=gaps[0].why, open=frozenset().union(*(part.open for part in gaps)))
    value = round(float(function(np.array([part.value for part in sums]))), 6)
    return Sum(
        text,
        value,
        function(np.stack([part.draws for part in sums])),
        min(part.n for part in sums),
        min(part.seeds for part in sums),
        frozenset().union(*(part.runs for part in sums)),
    )


def _bounded(part: Sum, expect: str) -> Statement:
    if part.why:
        return Statement(part, expect)
    relation, bound = expect.split()
    kept = KEEPS[relation](np.round(part.draws, 6), float(bound))
    return Statement(part, expect, kept, kept)


def _by_parts(whole: Statement, parts: Sequence[Sum]) -> Statement:
    """An extreme of noisy values lies further out than that of the true ones: a bound on it is
    refuted only where a single value, or the difference of a single pair, breaks it.
    """
    if whole.sure is None:
        return whole
    worst = min((_bounded(part, whole.expected).possible for part in parts), key=np.mean)
    return replace(whole, possible=worst, parts=len(parts))


def _most(text: str, sums: Sequence[Sum], expect: str) -> Statement:
    """Do more than half keep the bound? What was not run might or might not."""
    ran = [part for part in sums if not part.why]
    gaps = [part for part in sums if part.why]
    still_open = frozenset().union(*(part.open for part in gaps))
    if not ran:
        return Statement(
            Sum(text, why=gaps[0].why, open=still_open), f"> {len(sums) / 2:g} with {expect}"
        )
    relation, bound = expect.split()
    kept = sum(KEEPS[relation](np.round(part.draws, 6), float(bound)).astype(int) for part in ran)
    count = sum(int(KEEPS[relation](part.value, float(bound))) for part in ran)
    whole = Sum(
        f"{text} ({len(ran)} run)" if gaps else text,
        float(count),
        kept,
        min(part.n for part in ran),
        min(part.seeds for part in ran),
        frozenset().union(*(part.runs for part in ran)),
        open=still_open,
    )
    return Statement(
        whole,
        f"> {len(sums) / 2:g} with {expect}",
        2 * kept > len(sums),
        2 * (kept + len(gaps)) > len(sums),
    )


def compare(
    paper: str | None = None,
    *,
    recipe: str = "digits",
    seeds: Sequence[int] = (0,),
    overrides: Mapping[str, Any] | None = None,
    strong_n: int = 100,
    settings: str | None = None,
) -> pd.DataFrame:
    """The claims of a paper, or of all, with a verdict from what was measured on a recipe; reads
    what is finished.

    Columns: paper, claim, decided_by, printed (the verdict of the papers' own numbers), verdict
    (confirmed, refuted, undecided, not run), on (the recipe), here (in words), statements (a list
    of records), runs (keys that it rests on), command (what makes the runs that are missing, "" if
    none are; `settings` is what it puts behind --set, the overrides if not given). A claim of
    several statements is refuted if one is, and confirmed if all are. Claims that figures decide
    take the verdicts that finished notebooks wrote. Errors: `KitError` for an unknown paper or
    recipe.
    """
    if settings is None:
        settings = " ".join(
            f"{name}={value}".replace(" ", "") for name, value in (overrides or {}).items()
        )
    listed, rules = claims(paper), of_rules()
    options = {"recipe": recipe, "overrides": overrides, "strong_n": strong_n}
    cells = {
        name: Cells(
            [need for _, table in chosen_tables(name) for need in grid(name, table, **options)],
            seeds,
        )
        for name in dict.fromkeys(listed["paper"])
    }
    rows = {}
    for number, claim in listed.iterrows():
        if claim["decided_by"] == "tables":
            found = [
                part for rule in rules[number] for part in statements(cells[claim["paper"]], rule)
            ]
            outcome, missing = _judged(found)
            only = ["tables_of_the_papers"] if missing else []
        else:
            (outcome, only), missing = _from_figures(claim, recipe), []
        command = _command(
            only, recipe, seeds, [f"tables={','.join(missing)}"] * bool(missing) + settings.split()
        )
        rows[number] = {
            "paper": claim["paper"],
            "claim": claim["claim"],
            "decided_by": claim["decided_by"],
            "printed": claim["verdict"],
            "on": recipe,
            **outcome,
            "command": command,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("number")


@cache
def of_rules() -> dict[int, list[dict[str, str]]]:
    """{number of a claim: its rows of rules.csv}."""
    found: dict[int, list[dict[str, str]]] = {}
    for rule in read_table("rules").to_dict("records"):
        found.setdefault(int(rule["claim"]), []).append(rule)
    return found


def _judged(found: Sequence[Statement]) -> tuple[dict[str, Any], list[str]]:
    """The verdict on a claim of these statements and what it rests on, and the tables whose runs
    are missing.
    """
    verdicts = [part.verdict(len(found)) for part in found]
    tally = Counter(verdicts)
    verdict = (
        "refuted"
        if tally["refuted"]
        else NOT_RUN
        if tally[NOT_RUN] == len(found)
        else "confirmed"
        if tally["confirmed"] == len(found)
        else "undecided"
    )
    records = [_record(part, word) for part, word in zip(found, verdicts, strict=True)]
    runs = frozenset().union(*(part.sum.runs for part in found))
    missing = frozenset().union(*(part.sum.open for part in found))
    return (
        {
            "verdict": verdict,
            "here": _words(records, tally),
            "statements": records,
            "runs": sorted(runs),
        },
        sorted(missing),
    )


def _record(part: Statement, verdict: str) -> dict[str, Any]:
    record = {"statement": part.sum.text, "expected": part.expected, "verdict": verdict}
    if part.sure is None:
        return record | {"why": part.sum.why}
    low, high = np.quantile(part.sum.draws, (LEVEL, 1 - LEVEL))
    return record | {
        "value": part.sum.value,
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "n": part.sum.n,
        "seeds": part.sum.seeds,
    }


def _words(records: Sequence[Mapping[str, Any]], tally: Counter) -> str:
    """How many statements came out how, and the one that says most about the verdict."""
    counts = ", ".join(
        f"{tally[word]} {word}"
        for word in ("confirmed", "refuted", "undecided", NOT_RUN)
        if tally[word]
    )
    telling = next(
        record
        for word in ("refuted", "undecided", "confirmed", NOT_RUN)
        for record in records
        if record["verdict"] == word
    )
    if "why" in telling:
        return f"{counts} of {len(records)}: {telling['why']}"
    interval = f"{telling['value']:.4g} [{telling['low']:.4g}, {telling['high']:.4g}]"
    return (
        f"{counts} of {len(records)}; {telling['verdict']}: {telling['statement']} "
        f"{telling['expected']}: {interval}, "
        f"n = {telling['n']}, {telling['seeds']} seed(s)"
    )


# ------------------------------------------------------------------------------ what figures decide


def places(text: str, paper: str = "") -> set[tuple[str, str, str]]:
    """(paper, number, letter) of the figures that a text names:

    "CLIRAT Figs. 1C, 1D", or of `paper`, "s. 1, Fig. 2".
    """
    found = re.findall(r"(?:([A-Z]+(?:/[A-Z]+)?) )?Figs?\. ((?:\d+[A-Za-z]?(?:, )?)+)", text)
    return {
        (PAPER_LABELS.get(label, paper), number, letter.lower())
        for label, listed in found
        for number, letter in re.findall(r"(\d+)([A-Za-z]?)", listed)
    }


def _meet(ours: set[tuple[str, str, str]], theirs: set[tuple[str, str, str]]) -> bool:
    """Do two texts name one figure? A figure without a letter is all of its panels."""
    return any(
        a[:2] == b[:2] and (a[2] == b[2] or not (a[2] and b[2])) for a in ours for b in theirs
    )


def _from_figures(claim: pd.Series, recipe: str) -> tuple[dict[str, Any], list[str]]:
    """The verdict that finished notebooks wrote on what the claim's figure shows; or the notebooks
    that draw it.
    """
    where = places(claim["where"], claim["paper"])
    found, runs, stamps = [], set(), _stamps(recipe)
    for stamp in stamps:
        mine = [record for record in stamp["verdicts"] if _meet(where, places(record["claim"]))]
        found += [
            {"notebook": stamp["notebook"], **record} for record in mine if record not in found
        ]
        runs |= set(stamp["runs"].values()) if mine else set()
    if found:
        kinds = {VERDICTS[record["verdict"]] for record in found}
        verdict = (
            "refuted" if "refuted" in kinds else kinds.pop() if len(kinds) == 1 else "undecided"
        )
        here = "; ".join(
            f"{VERDICTS[record['verdict']]}: {record['claim']}: {record['here']}"
            for record in found
        )
        return {"verdict": verdict, "here": here, "statements": found, "runs": sorted(runs)}, []
    figures = [name for name, row in FIGURES.items() if _meet(where, places(row.source))]
    done = {stamp["notebook"].split("_")[0] for stamp in stamps}
    notebooks = sorted({book for name in figures if (book := _notebook_of(name))} - done)
    drawn = f"drawn by {', '.join(figures)}{'' if notebooks else ', with no verdict on this'}"
    here = (
        drawn
        if figures
        else f"decided by mathematics: {claim['remark']}"
        if claim["decided_by"] == "mathematics"
        else f"no table and no figure of the kit decides it: {claim['check']}"
    )
    return {"verdict": NOT_RUN, "here": here, "statements": [], "runs": []}, notebooks


def _stamps(recipe: str) -> list[dict[str, Any]]:
    """The stamps of finished notebooks in a recipe's folder of results, those of single seeds
    included.
    """
    folder = output_folder(recipe)
    records = [
        read_json(path)
        for pattern in ("*.json", "seed-*/*.json")
        for path in sorted(folder.glob(pattern))
    ]
    return [
        record
        for record in records
        if isinstance(record, dict) and {"notebook", "verdicts", "runs"} <= set(record)
    ]


def _notebook_of(figure: str) -> str:
    """The notebook that draws a figure, by its number; "" if none does."""
    folder = CHECKOUT / "notebooks"
    return next(
        (
            path.stem.split("_")[0]
            for path in sorted(folder.glob("[0-9]*.ipynb"))
            if f'\\"{figure}\\"' in path.read_text()
        ),
        "",
    )


def _command(
    only: Sequence[str], recipe: str, seeds: Sequence[int], settings: Sequence[str]
) -> str:
    if not only:
        return ""
    where = f" --recipe {recipe}" if recipe != "digits" else ""
    which = f" --seeds {' '.join(map(str, seeds))}" if list(seeds) != [0] else ""
    words = f" --set {' '.join(settings)}" if settings else ""
    return f"python -m kit reproduce --only {' '.join(only)}{where}{which}{words}"


# ----------------------------------------------------------------------------------------- in words


def report(compared: pd.DataFrame, width: int = 100) -> str:
    """What `compare` found, for reading:

    each claim with its verdict, then what the printed numbers alone say.
    """
    recipe = compared["on"].iloc[0]
    lines = _folded(
        f"Claims of the papers, measured on {recipe}. A verdict is about {recipe} and these runs: "
        f"whether a "
        "claim holds at the papers' own scale, only runs at that scale can say. At quick scale all "
        "of the "
        "papers' networks and data sets are the recipe's own, so two tables may be one measurement.",
        "",
        width,
    )
    for number, row in compared.iterrows():
        printed = f" [printed numbers: {row['printed']}]" if row["printed"] else ""
        lines += [
            "",
            *_folded(f"{number:>2} {row['paper']}: {row['claim']}{printed}", "   ", width),
        ]
        place = f" on {recipe}" if row["verdict"] != NOT_RUN else ""
        lines += _folded(f"   {row['verdict'].upper()}{place}: {row['here']}", "      ", width)
        lines += [f"      {row['command']}"] if row["command"] else []
    tally = Counter(compared["verdict"])
    lines += [
        "",
        f"{len(compared)} claims: "
        f"{', '.join(f'{n} {word} on {recipe}' for word, n in tally.most_common())}",
    ]
    for paper in dict.fromkeys(compared["paper"]):
        lines += _folded(f"{paper}, printed numbers alone: {aside(paper)}", "   ", width)
    return "\n".join(lines)


def _folded(text: str, indent: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False)


def aside(paper: str) -> str:
    """One sentence on what follows from a paper's printed numbers:

    images behind them, copies, slips.
    """
    readings = Counter(
        reading for table in tables(paper) for reading in resolution(paper, table)["reading"]
    )
    images = ", ".join(f"{count} {reading}" for reading, count in readings.items())
    copies = copied_cells()
    mine = copies[
        (copies["first"].str.startswith(paper) | copies["second"].str.startswith(paper))
        & (copies["kind"] != "same model again")
    ]
    slips = text_against_table(paper)
    return (
        f"columns by the images behind them: {images}; {len(mine)} pairs of rows share more cells "
        f"than chance; "
        f"{int((~slips['agrees']).sum())} of {len(slips)} numbers given elsewhere are off."
    )
