"""The order of the notebooks, what each is for, and the texts that follow from it.

    from kit.notebook import course
    course.figure_map("digits")         # paper's figure -> notebook -> runs and minutes
    course.summarise_scoreboard()       # what the record says, paper by paper

`LESSONS` is the only place that says which notebook follows which. The cells with links, goals and
times that stand at the head and the end of the notebooks are made from it by
`python -m tests.helpers.course`.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from kit.core.errors import KitError
from kit.core.files import CHECKOUT, read_json
from kit.core.progress import format_duration
from kit.core.registry import Registry
from kit.experiments.runs import output_folder
from kit.notebook.parameter_cells import check_parameters, notebook_parameters
from kit.papers.claim_verdict import NOT_RUN
from kit.papers.printed_data import PAPERS, read_table
from kit.papers.record import scoreboard

#: How long the notebooks took, as `python -m tests.benchmarks.stopwatch` wrote it.
MINUTES = CHECKOUT / "figures" / "minutes.csv"

#: Where every term is explained.
GLOSSARY_LINK = "[glossary](00_start.ipynb#Glossary)"


class Markdown(str):
    """A text that a notebook shows as Markdown."""

    def _repr_markdown_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Lesson:
    """One notebook of the course: its papers, what one can do after it, and what it needs.

    `goals` complete the sentence "After this notebook you can ...".
    """

    title: str
    papers: tuple[str, ...]
    goals: tuple[str, ...]
    needs: str


LESSONS = Registry(
    "lesson",
    {
        "00_start": Lesson(
            "Start here",
            (),
            (
                "find the notebook for a paper's figure, and say how long it takes",
                "look up every term",
                "say which of the papers' claims hold here",
            ),
            "nothing",
        ),
        "01_from_scratch": Lesson(
            "From scratch",
            ("mail",),
            (
                "write PGD, a margin, a weight and a reweighted step in plain PyTorch",
                "say what each of the kit's parts computes",
            ),
            "some PyTorch: tensors, gradients, an optimizer",
        ),
        "01_one_loop": Lesson(
            "One loop, every method",
            tuple(PAPERS),
            (
                "name the seven parts of a method",
                "read from a picture which images a method counts",
            ),
            "[from scratch](01_from_scratch.ipynb), or adversarial training known from elsewhere",
        ),
        "02_confused_labels": Lesson(
            "Confused labels",
            ("clirat",),
            (
                "tell PM from CL-PM",
                "say whether several confused labels are more common than one, on these data",
                "say why an experiment that leaves images out needs controls",
            ),
            "margin and weight, from chapter 1",
        ),
        "03_margin_or_steps": Lesson(
            "Margin or steps",
            ("mail",),
            (
                "tell LPS from κ",
                "say what a count of steps hides and a margin shows",
            ),
            "margin and weight, from chapter 1",
        ),
        "04_min_max": Lesson(
            "Min-Max parameters",
            ("csa",),
            (
                "say what fuzziness rewards, and what the paper hopes that it rewards",
                "choose a strength without looking at an attack",
            ),
            "cross-entropy and convolutions; no other notebook",
        ),
        "05_class_confusion": Lesson(
            "Class by class",
            ("vir",),
            (
                "tell a class that is left behind from one that is low by chance",
                "say what two Gaussian classes explain about robust training",
            ),
            "margin and weight, from chapter 1",
        ),
        "06_where_papers_and_code_part": Lesson(
            "Where papers and code part",
            ("mr", "csa", "vir", "clirat", "mail"),
            (
                "find what a formula's sign or scale changes in a trained network",
                "choose the control that separates two effects",
            ),
            "[one loop](01_one_loop.ipynb)",
        ),
        "07_attack_gallery": Lesson(
            "A gallery of attacks",
            ("csa",),
            (
                "tell six attacks by what they do to an image",
                "compare balls of different norms",
            ),
            "PGD, from chapter 1",
        ),
        "08_path_dependence": Lesson(
            "Does LPS depend on the path?",
            ("mail",),
            (
                "say how much LPS depends on the start, the step and the attack",
                "compare two scores by the order that they give",
            ),
            "LPS, from [notebook 03](03_margin_or_steps.ipynb)",
        ),
        "09_same_margin": Lesson(
            "What one margin leaves open",
            ("mr",),
            (
                "say what a margin does not tell of a prediction",
                "tell a correlation that was found from one that had to come out",
            ),
            "PM, from chapter 1",
        ),
        "10_learning_curves": Lesson(
            "Learning curves",
            ("clirat",),
            (
                "separate the effect of a criterion from that of a normaliser",
                "say what one seed can and cannot show",
            ),
            "CL-PM, from [notebook 02](02_confused_labels.ipynb), and normalisers, from "
            "[notebook 06](06_where_papers_and_code_part.ipynb)",
        ),
        "11_slope_and_offset": Lesson(
            "Slope and offset",
            ("clirat",),
            (
                "say what γ and β do to a weight",
                "test a trade-off between two accuracies",
            ),
            "CL-PM, from [notebook 02](02_confused_labels.ipynb)",
        ),
        "12_robust_or_masked": Lesson(
            "Robust or masked?",
            ("mail", "vir"),
            (
                "read an audit: attacks in order of strength, and ten rules",
                "say why a network that resists PGD may still not be robust",
            ),
            "PGD, from chapter 1",
        ),
        "13_scores_and_distance": Lesson(
            "Scores and distance",
            ("clirat", "mail", "vir"),
            (
                "say which score follows the distance to the boundary, and for which images",
                "read a comparison of matched pairs",
            ),
            "PM, CL-PM and LPS, from notebooks [02](02_confused_labels.ipynb) and "
            "[03](03_margin_or_steps.ipynb)",
        ),
        "14_your_network": Lesson(
            "Your network",
            (),
            (
                "put a network of your own through the figures and the audit",
                "say which of its images the methods would have given more weight",
            ),
            "a checkpoint; without one, a run of the kit takes its place",
        ),
        "tables_every_method": Lesson(
            "Every method, several seeds",
            tuple(PAPERS),
            ("compare all methods on the same images, with intervals",),
            "time: it trains every method with three seeds",
        ),
        "tables_of_the_papers": Lesson(
            "Every printed table",
            tuple(PAPERS),
            (
                "set a printed table beside measured cells",
                "say what a verdict rests on",
            ),
            "time: it trains every method that a table prints, with three seeds",
        ),
    },
)


# -------------------------------------------------------------------------------------------- texts


def head(name: str) -> str:
    """Make the cell below a notebook's title: links, papers, goals, what it needs and takes."""
    lesson, names = LESSONS[name], list(LESSONS)
    place = names.index(name)
    links = [_link(names[place - 1], "← ")] if place else []
    links += [_link(names[place + 1], "", " →")] if place + 1 < len(names) else []
    lines = [" · ".join([*links, GLOSSARY_LINK])]
    if len(lesson.papers) == len(PAPERS):
        lines.append("**Papers:** [all five](00_start.ipynb#The-five-papers)")
    elif lesson.papers:
        lines.append("\n".join(f"* {cite(paper)}" for paper in lesson.papers))
    goals = "; ".join(lesson.goals)
    lines.append(f"**After this notebook you can** {goals}.")
    lines.append(f"**It needs** {lesson.needs}. **It takes** {describe_time(name)}.")
    return "\n\n".join(lines)


def tail(name: str) -> str:
    """Make the last cell of a notebook: where to go on."""
    names = list(LESSONS)
    place = names.index(name)
    back = "[Start](00_start.ipynb)"
    if place + 1 == len(names):
        return f"This was the last notebook. {back} lists all of them."
    return f"**Next:** {_link(names[place + 1])}. {back} lists all notebooks."


def _link(name: str, before: str = "", after: str = "") -> str:
    return f"[{before}{LESSONS[name].title}{after}]({name}.ipynb)"


def cite(paper: str) -> str:
    """Cite a paper in one line of Markdown: label, first author, title, place and year."""
    [row] = _bibliography(paper)
    authors = row["authors"].split(", ")
    who = "anonymous authors" if "anonymous" in row["authors"] else f"{authors[0]} et al."
    title = f"[*{row['title']}*]({row['link']})"
    return f"**{PAPERS[paper].label}**: {who}, {title}, {row['published']} ({row['year']})"


def papers_table() -> Markdown:
    """The five papers: authors, title, year, place, and what each weighs examples by."""
    lines = ["| | authors | title | year | where | weighs by |", "|---|---|---|---|---|---|"]
    for paper in PAPERS:
        [row] = _bibliography(paper)
        lines.append(
            f"| **{PAPERS[paper].label}** | {row['authors']} | [{row['title']}]({row['link']}) | "
            f"{row['year']} | {row['published']} | {PAPERS[paper].weighs_by} |"
        )
    return Markdown("\n".join(lines))


def _bibliography(paper: str) -> list[dict[str, Any]]:
    PAPERS[paper]  # refuses a paper that is not there
    table = read_table("bibliography")
    return table[table["paper"] == paper].to_dict("records")


@cache
def glossary() -> pd.DataFrame:
    """Read the glossary: a term, its meaning, and the notebook that introduces it."""
    path = Path(__file__).parent / "glossary.csv"
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def glossary_table() -> Markdown:
    """The glossary as a table, each term with a link to its notebook."""
    lines = ["| term | meaning | first in |", "|---|---|---|"]
    lines += [
        f"| **{row.term}** | {row.meaning} | {_link(row.notebook)} |"
        for row in glossary().itertuples()
    ]
    return Markdown("\n".join(lines))


# --------------------------------------------------------------------------------------------- time


#: In the table of times: the notebook draws no figure, and shows no table of results and no widget.
NO_PICTURE = "none"

#: In the table of times: the row of what a fresh kernel imports before any notebook begins.
IMPORTS = "imports"


@dataclass(frozen=True)
class Timing:
    """How long a notebook took: its own seconds, and those of its trainings, each on one core.

    `first_picture` says in seconds when its first picture or widget was there, its runs being
    trained: NO_PICTURE if it has none, "" if that was not timed.
    """

    notebook: float
    training: float
    where: str
    first_picture: str = ""

    @property
    def from_nothing(self) -> float:
        """Seconds from nothing on two cores, computed: half of the trainings runs on each."""
        return self.notebook + self.training / 2

    def describe_first_picture(self) -> str:
        """Say when the first picture was there, in a few words."""
        if self.first_picture in ("", NO_PICTURE):
            return "no picture" if self.first_picture else "not timed yet"
        return format_duration(float(self.first_picture))

    def describe(self) -> str:
        """Say it in words, for trained runs and from nothing on two cores."""
        ready = format_duration(self.notebook)
        if not self.training:
            return f"about {ready} ({self.where})"
        whole = format_duration(self.from_nothing)
        return (
            f"about {ready} where its runs are trained, about {whole} from nothing on two cores "
            f"({self.where})"
        )


def measure_time(name: str, recipe: str) -> Timing | None:
    """Take what a notebook's last run on this machine took from its stamp; None without one."""
    try:
        stamp = read_json(output_folder(recipe) / f"{name}.json")
    except KitError:
        return None
    if "training_seconds" not in stamp:
        return None
    return Timing(
        stamp["seconds"], stamp["training_seconds"], f"measured here, {os.cpu_count()} cores"
    )


def printed_time(name: str) -> Timing | None:
    """Read what the committed table of times says of a notebook on digits; None if nothing."""
    if not MINUTES.exists():
        return None
    table = pd.read_csv(MINUTES, dtype=str, keep_default_na=False).set_index("notebook")
    if name not in table.index:
        return None
    row = table.loc[name]
    return Timing(
        float(row["seconds"]),
        float(row["training_seconds"]),
        row["measured"],
        row.get("first_picture_seconds", ""),
    )


def describe_time(name: str) -> str:
    """Say how many runs a notebook trains and how long it takes, from the committed table."""
    count = count_runs(name)
    runs = f"{count} trained run{'s' if count > 1 else ''}" if count else "no trained run"
    timing = printed_time(name)
    return f"{runs}; {timing.describe()}" if timing else f"{runs}; it was not timed yet"


@cache
def count_runs(name: str) -> int:
    """Count the runs that a notebook's own parameters ask for."""
    path = CHECKOUT / "notebooks" / f"{name}.ipynb"
    return len(check_parameters(notebook_parameters(path), {}).plans)


def widget_lessons() -> list[str]:
    """Return the names of the notebooks for the classroom, which hold widgets."""
    return sorted(path.stem for path in (CHECKOUT / "notebooks").glob("teach_*.ipynb"))


def stopwatch_table() -> str:
    """Tabulate how long every notebook takes, from the committed table of times."""
    lines = [
        "| notebook | runs | first picture, with its runs | whole, with its runs | from nothing, "
        "two cores (computed) | measured |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name in (*LESSONS, *widget_lessons()):
        timing = printed_time(name)
        cells = "not timed yet | | | |"
        if timing:
            ready, whole = format_duration(timing.notebook), format_duration(timing.from_nothing)
            first = timing.describe_first_picture()
            cells = f"{first} | {ready} | {whole} | {timing.where} |"
        lines.append(f"| [{name}](notebooks/{name}.ipynb) | {count_runs(name)} | {cells}")
    imports = printed_time(IMPORTS)
    took = f": {imports.notebook:.1f} s ({imports.where})" if imports else ", not timed yet"
    return "\n".join(
        [
            *lines,
            "",
            "A picture is a figure, a table of results or a widget. All times begin behind the "
            f"imports of PyTorch and the kit. A fresh kernel needs them once{took}.",
        ]
    )


# ---------------------------------------------------------------------------------------------- map


def figure_map(recipe: str = "digits") -> Markdown:
    """Map each figure of the papers to its notebook, and say what that takes.

    A time is that of this machine where the notebook was run here, else the committed one.
    """
    lines = [
        "| paper | figure | notebook | runs | runs trained | from nothing |",
        "|---|---|---|---:|---:|---:|",
    ]
    drawings = read_table("drawings")
    for paper in PAPERS:
        mine = drawings[(drawings["paper"] == paper) & (drawings["number"] != "")]
        for (number, name), rows in mine.groupby(["number", "notebook"]):
            panels = " ".join(sorted({p for cell in rows["panels"] for p in cell.split()}))
            lines.append(
                f"| {PAPERS[paper].label} | {number}{f' ({panels})' if panels else ''} | "
                f"{_link(name)} | {_time_cells(name, recipe)} |"
            )
    own = sorted(set(drawings["notebook"]) - set(drawings[drawings["number"] != ""]["notebook"]))
    lines += [
        f"| - | the kit's own | {_link(name)} | {_time_cells(name, recipe)} |" for name in own
    ]
    return Markdown("\n".join(lines))


def _time_cells(name: str, recipe: str) -> str:
    timing = measure_time(name, recipe) or printed_time(name)
    if timing is None:
        return f"{count_runs(name)} | ? | ?"
    ready, whole = format_duration(timing.notebook), format_duration(timing.from_nothing)
    return f"{count_runs(name)} | {ready} | {whole}"


def summarise_scoreboard() -> Markdown:
    """Count the verdicts of the record by paper and scale, and say it in one sentence."""
    try:
        board = scoreboard()
    except KitError as error:
        return Markdown(f"There is no scoreboard: {error}")
    scales = [name for name in board.columns if name not in ("paper", "claim", "printed")]
    lines = []
    for scale in scales:
        counts = Counter(board[scale])
        lines.append(
            f"On **{scale}**, of {len(board)} claims {counts['holds']} hold, {counts['fails']} "
            f"fail, {counts['undecided']} are undecided and {counts[NOT_RUN]} were not run."
        )
    table = [
        "| paper | scale | hold | fail | undecided | not run |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for paper in PAPERS:
        for scale in scales:
            counts = Counter(board.loc[board["paper"] == paper, scale])
            cells = [counts[word] for word in ("holds", "fails", "undecided", NOT_RUN)]
            table.append(f"| {PAPERS[paper].label} | {scale} | {' | '.join(map(str, cells))} |")
    return Markdown("\n".join([*lines, "", *table]))
