"""The gallery and the scoreboard, made from the record and from what finished notebooks drew.

`python -m kit record` writes a scale's rows into figures/measured.csv, copies its pictures with
their provenance to figures/<scale>/, and makes figures/README.md and README's scoreboard from
these. Nothing on those pages is typed.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from kit.core.errors import KitError
from kit.core.files import CHECKOUT, home, read_json, write_bytes, write_json
from kit.evaluation.coverage import measure_coverage
from kit.evaluation.result_tables import count_seeds
from kit.experiments.runs import output_folder, stored_seeds
from kit.figures.base import plain
from kit.figures.claim_board import draw_claim_board
from kit.figures.table import FIGURES
from kit.papers.claim_verdict import NOT_RUN, VERDICT_GLYPHS
from kit.papers.findings import write_findings
from kit.papers.measured_cells import PaperTable, measured
from kit.papers.printed_data import PAPERS, read_table
from kit.papers.record import (
    RECORD,
    measure_scale,
    open_claims,
    read_record,
    scoreboard,
    write_record,
)
from kit.papers.rule_checks import (
    check_against,
    check_rules,
    check_stability,
    report_changes,
    report_rules,
)
from kit.papers.table_runs import chosen_tables

#: The scoreboard's picture, and the page of a scale's printed tables.
BOARD_PICTURE, TABLES_PAGE = "scoreboard.png", "tables.md"

#: A bar within a cell of a table.
BAR = "\\|"

#: The page of the claims that no scale decides.
OPEN_PAGE = "undecided.md"

#: What the checks of a scale's verdicts came to.
CHECKS = "checks.json"

#: The folder of a scale with the verdicts of other installs, as `compare --json` writes them.
INSTALLS = "installs"

#: Where README's scoreboard stands.
BEGIN, END = "<!-- scoreboard: made by `python -m kit record` -->", "<!-- end of scoreboard -->"


def write_gallery(recipe: str, root: Path = CHECKOUT, **options: Any) -> list[Path]:
    """Bring the record, the pictures and the pages up to what is finished on a recipe.

    `options` are those of `kit.papers.compare`.

    Returns:
        The files that were written.

    Raises:
        KitError: Nothing is finished on the recipe.
    """
    write_record(measure_scale(recipe, **options), root / "figures" / RECORD.name)
    written = [root / "figures" / RECORD.name, *copy_pictures(recipe, root)]
    written += [*write_tables(recipe, root, **options), write_checks(recipe, root, **options)]
    return written + write_pages(root)


def write_checks(recipe: str, root: Path = CHECKOUT, **options: Any) -> Path:
    """Check the rules, the intervals and the verdicts of a scale, and write what came of it.

    Verdicts are decided again with disjoint halves of the seeds, where there are enough, and set
    beside those of other installs, which lie in the folder `INSTALLS` of the scale.
    """
    covered = measure_coverage()["coverage"]
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "rules": report_rules(check_rules()).splitlines()[0],
        "coverage": {"cases": len(covered), "least": covered.min(), "most": covered.max()},
        "stability": [],
        "installs": [
            report_changes(check_against(path, recipe, **options)).splitlines()
            for path in sorted((scale_folder(recipe, root) / INSTALLS).glob("*.json"))
        ],
    }
    with contextlib.suppress(KitError):  # too few seeds for two halves
        found["stability"] = report_changes(check_stability(recipe, **options)).splitlines()
    path = scale_folder(recipe, root) / CHECKS
    write_json(path, plain(found))
    return path


def write_pages(root: Path = CHECKOUT) -> list[Path]:
    """Make the gallery, the scoreboard and its picture anew from what is committed."""
    board = draw_claim_board(scoreboard(root / "figures" / RECORD.name))
    payloads = {
        root / "figures" / BOARD_PICTURE: board.png(),
        root / "figures" / "README.md": gallery(root).encode(),
        root / "figures" / OPEN_PAGE: open_page(root).encode(),
        root / "README.md": with_scoreboard((root / "README.md").read_text(), root).encode(),
    }
    for path, payload in payloads.items():
        write_bytes(path, payload)
    return list(payloads)


def scale_folder(recipe: str, root: Path) -> Path:
    """Return the folder of a scale's committed pictures."""
    return root / "figures" / folder_name(recipe)


def folder_name(recipe: str) -> str:
    """Return a recipe's name as that of a folder."""
    return re.sub(r"[^\w.-]+", "-", recipe).strip("-")


def copy_pictures(recipe: str, root: Path) -> list[Path]:
    """Copy each figure's picture and record, that of the least seed where there are several.

    Data in this machine's home are named relative to it, as every other machine finds its own.
    """
    source, written, here = output_folder(recipe), [], f"{home().resolve()}/".encode()
    for name in FIGURES:
        found = [source / f"{name}.json", *sorted(source.glob(f"seed-*/{name}.json"))]
        for record in [path for path in found if path.exists()][:1]:
            for ending in ("json", "png"):
                target = scale_folder(recipe, root) / f"{name}.{ending}"
                payload = record.with_suffix(f".{ending}").read_bytes()
                write_bytes(target, payload.replace(here, b"") if ending == "json" else payload)
                written.append(target)
    return written


def write_tables(recipe: str, root: Path, **options: Any) -> list[Path]:
    """Write the page of the printed tables beside what was measured of them on a recipe.

    Its runs are those of `options`, or of the recipe's own settings where those were not run.

    Returns:
        The page, or nothing where no cell of any table was measured.
    """
    for given in (options, {**options, "overrides": {}}):
        tables = measured_tables(recipe, **given)
        if ran := {name: table for name, table in tables.items() if table.runs}:
            break
    else:
        return []
    path = scale_folder(recipe, root) / TABLES_PAGE
    missing = ", ".join(name for name in tables if name not in ran)
    lines = [
        f"# Printed tables beside measured ones, {recipe}",
        "",
        "Each cell is as printed / as measured here, ± standard deviations. What was not run says "
        f"so. LaTeX: `python -m kit tables {next(iter(ran))} --recipe {recipe} --latex`. This page "
        "is made by `python -m kit record`.",
    ]
    for name, table in ran.items():
        lines += ["", f"## {name}", "", table.markdown().rstrip()]
    lines += ["", f"No cell was measured of {missing}."] if missing else []
    write_bytes(path, ("\n".join(lines) + "\n").encode())
    return [path]


def measured_tables(recipe: str, names: str = "all", **options: Any) -> dict[str, PaperTable]:
    """Set printed tables, named such as "vir-1", beside what is finished on a recipe.

    `options` are those of `kit.papers.measured`. The seeds are all that are there, if not given.

    Raises:
        KitError: There is no such table or recipe.
    """
    options = {"seeds": stored_seeds(recipe), **options}
    return {
        f"{paper}-{name[1:]}": measured(paper, name, recipe=recipe, **options)
        for paper, name in chosen_tables(names)
    }


# ------------------------------------------------------------------------------------- the gallery


def gallery(root: Path = CHECKOUT) -> str:
    """Make the gallery: every figure of every scale with caption, verdicts and picture."""
    record = read_record(root / "figures" / RECORD.name)
    lines = [
        "# Gallery",
        "",
        "Every figure of the five papers, and the kit's own, with what the record says of each "
        "statement. A verdict is over all seeds of the record; a picture shows one seed where its "
        "caption names one. The JSON beside each picture names the runs, settings, versions and "
        "numbers behind it. This page is made by `python -m kit record`.",
        "",
        "Intervals are of 95 %. Where a claim has several statements, one of them fails only at a "
        "stricter level, so that chance makes none of them fail. A statement may therefore be "
        "undecided though its interval lies on the other side of what is expected.",
    ]
    for scale in dict.fromkeys(record["scale"]):
        mine = record[record["scale"] == scale]
        folder = scale_folder(scale, root)
        lines += ["", f"# {scale}"]
        for name in FIGURES:
            drawn = folder / f"{name}.json"
            if drawn.exists():
                lines += ["", *_figure_lines(name, read_json(drawn), mine, scale)]
        lines += _missing_lines(scale, folder)
        if (folder / TABLES_PAGE).exists():
            link = f"{folder_name(scale)}/{TABLES_PAGE}"
            lines += [
                "",
                f"The papers' printed tables beside those measured here: [{link}]({link}).",
            ]
    return "\n".join(lines) + "\n"


def _missing_lines(scale: str, folder: Path) -> list[str]:
    """Name the figures that were not drawn at a scale, and what draws them."""
    drawn_in = {row.figure: row.notebook for row in read_table("drawings").itertuples()}
    missing = [name for name in FIGURES if not (folder / f"{name}.json").exists()]
    if not missing:
        return []
    listed = ", ".join(f"{name} (`--only {drawn_in[name]}`)" for name in missing)
    return ["", f"Not drawn at this scale: {listed}; `python -m kit reproduce --recipe {scale}`."]


def _figure_lines(
    name: str, drawn: Mapping[str, Any], record: pd.DataFrame, scale: str
) -> Iterator[str]:
    row = FIGURES[name]
    source = f" ({row.source})" if row.source else ""
    yield from (f"## {name}: {row.title}{source}", "", drawn["caption"], "")
    for claim in drawn["claims"]:
        yield _statement_line(claim, record[record["statement"] == claim["claim"]])
    if drawn["claims"]:
        yield ""
    yield f"![{row.title}]({folder_name(scale)}/{name}.png)"


def _statement_line(claim: Mapping[str, Any], rows: pd.DataFrame) -> str:
    """One statement: its verdict over seeds with the numbers, and what this picture shows."""
    here = f"Printed: {claim['printed']}. This picture: {claim['here']}."
    if rows.empty:
        return f"- **{VERDICT_GLYPHS[NOT_RUN]} no verdict**: {claim['claim']}. {here}"
    verdict, seeds = rows.iloc[0]["verdict"], rows.iloc[0]["seeds"]
    numbers = "; ".join(
        f"{row['estimate']} {_short(row['value'])} [{_short(row['low'])}, {_short(row['high'])}], "
        f"expected {row['expected']}"
        for row in rows.to_dict("records")
        if row["value"]
    )
    over = f"over {count_seeds(int(seeds))}"
    if seeds == "0":
        over = "by arithmetic" if claim["exact"] is not None else _why_no_seed(claim)
    said = f" Over all seeds: {numbers}." if numbers else ""
    return f"- **{VERDICT_GLYPHS[verdict]} {verdict}** {over}: {claim['claim']}.{said} {here}"


def _short(number: str) -> str:
    """A number of the record with three digits that count."""
    return f"{float(number):.3g}" if number else "?"


def _why_no_seed(claim: Mapping[str, Any]) -> str:
    """Why a statement that takes seeds has none that could be judged."""
    if claim["dead"]:
        return "over no seed: networks that learned nothing are left out"
    return "over no seed: there is no estimate"


# ---------------------------------------------------------------------------------- the scoreboard


def scoreboard_page(root: Path = CHECKOUT) -> str:
    """Make README's scoreboard as Markdown: picture, findings, counts, and each claim."""
    record = root / "figures" / RECORD.name
    board = scoreboard(record)
    scales = [name for name in board.columns if name not in ("paper", "claim", "printed")]
    lines = [
        BEGIN,
        "",
        ", ".join(f"{mark} {word}" for word, mark in VERDICT_GLYPHS.items())
        + ". A verdict is about its scale and no other.",
        "",
        f"![Every claim's verdict on each scale; the table below has them in words]"
        f"(figures/{BOARD_PICTURE})",
        "",
        "What is most worth knowing, with 95 % intervals over seeds and images:",
        "",
        *(f"* {sentence}" for sentence in write_findings(read_record(record))),
        "",
        f"| paper | claims | {' | '.join(scales)} |",
        f"|---|---:|{'---|' * len(scales)}",
    ]
    for paper, group in board.groupby("paper", sort=False):
        counts = [_counted(group[scale]) for scale in scales]
        lines.append(f"| {PAPERS[str(paper)].label} | {len(group)} | {' | '.join(counts)} |")
    lines += ["", "<details><summary>Claim by claim</summary>", ""]
    lines += [f"| | claim | printed numbers | {' | '.join(scales)} |"]
    lines += [f"|---:|---|---|{':---:|' * len(scales)}"]
    for number, row in board.iterrows():
        marks = " | ".join(VERDICT_GLYPHS[row[scale]] for scale in scales)
        claim = f"{PAPERS[row['paper']].label}: {row['claim']}".replace("|", BAR)
        lines.append(f"| {number} | {claim} | {row['printed']} | {marks} |")
    lines += [
        "",
        "</details>",
        "",
        f"[What would decide the claims that are undecided](figures/{OPEN_PAGE}).",
    ]
    for scale in scales:
        lines += _check_lines(scale, scale_folder(scale, root) / CHECKS)
    return "\n".join([*lines, END])


def open_page(root: Path = CHECKOUT) -> str:
    """Make the page of the claims that no scale decides, each with what would decide it."""
    path = root / "figures" / RECORD.name
    listed, everything = open_claims(path), len(scoreboard(path))
    tried = listed[listed["scale"] != ""]
    lines = [
        "# What would decide the claims that are undecided",
        "",
        f"Of {everything} claims, {everything - len(listed)} are decided on at least one scale. "
        f"{len(tried)} were run, and no scale decides them. Each of these stands at the scale "
        "where the least additional evidence would decide it. "
        f"{len(listed) - len(tried)} were not run: no scale here has their network or data set, or "
        "their runs were not made yet.",
        "",
        "An interval shrinks with the square root of the evidence: four times the seeds, each on "
        "four times the test images, halve it. The numbers are rough. Student's t falls with more "
        "seeds, so large ones are too high where few seeds were run. Those near 1 may be too low, "
        "and so are those of `min of` and `max of`, which rest on the most extreme of several "
        "differences. Where an attack already uses all test images, as most do on digits, only "
        "seeds can be added. Choose how much to add before looking: to add until a verdict comes "
        "out makes it wrong more often than the 5 % that are meant. This page is made by "
        "`python -m kit record`.",
        "",
        "| | claim | nearest on | times the evidence | the claim then | the number that decides, "
        "if it stays |",
        "|---:|---|---|---|---|---|",
    ]
    for number, row in listed.iterrows():
        wanted, claim = row["wanted"], f"{PAPERS[row['paper']].label}: {row['claim']}"
        cells = [claim, row["scale"] or "–", wanted.how_often, wanted.verdict, wanted.what]
        lines.append(f"| {number} | {' | '.join(cell.replace('|', BAR) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _check_lines(scale: str, path: Path) -> list[str]:
    """What the checks of a scale's verdicts came to, and the commands that make them again."""
    if not path.exists():
        return []
    found = read_json(path)
    covered = found["coverage"]
    shares = f"{covered['least']:.1%} to {covered['most']:.1%}"
    lines = [
        "",
        f"How far to trust these verdicts on {scale} ({found['date']}):",
        "",
        f"* Rules (`python -m kit compare --self-check`): {found['rules']}",
        f"* Intervals (`python -m kit compare --coverage`): {covered['cases']} kinds of 95 % "
        f"interval hold the truth in {shares} of simulations.",
    ]
    command = f"python -m kit compare --recipe {scale} --stability"
    changes = _joined(found["stability"] or ["not tried, the seeds are too few for two halves"])
    lines.append(f"* Seeds (`{command}`): {changes}.")
    for report in found["installs"]:
        command = f"python -m kit compare --recipe {scale} --against FILE"
        lines.append(f"* Another install (`{command}`): {_joined(report)}.")
    return [*lines, ""]


def _joined(report: Sequence[str]) -> str:
    """A report of changes in one sentence."""
    first, *changes = report
    return f"{first}: {'; '.join(change.strip() for change in changes)}" if changes else first


def _counted(verdicts: pd.Series) -> str:
    tally = Counter(verdicts)
    return " ".join(f"{tally[word]} {mark}" for word, mark in VERDICT_GLYPHS.items() if tally[word])


def with_scoreboard(page: str, root: Path = CHECKOUT) -> str:
    """Put today's scoreboard between its markers on a page.

    Raises:
        KitError: The page does not have the two markers once.
    """
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    if len(re.findall(pattern, page, flags=re.DOTALL)) != 1:
        raise KitError(f"README.md must hold {BEGIN} and {END} once, where the scoreboard goes")
    return re.sub(pattern, lambda _: scoreboard_page(root), page, flags=re.DOTALL)
