"""What a folder of results holds: pictures, tables and notebooks' stamps, read as far as it goes.

Whatever cannot be read is a sentence among the problems. It stops nothing, and it never counts as a
result.
"""

from __future__ import annotations

import base64
import io
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mistune
from PIL import Image

from kit.core.errors import KitError
from kit.core.files import CHECKOUT, read_json
from kit.experiments.specification import split_setting, split_settings
from kit.notebook.parameter_cells import notebook_parameters

#: A picture's endings and their types. The smaller file is shown.
PICTURE_TYPES = {"png": "image/png", "svg": "image/svg+xml"}

#: Notebook parameters whose values hold several settings.
_LISTS = ("grid",)

#: The kinds of record that JSON files hold: the keys that each has, the first says which it is.
RECORD_KEYS: dict[str, dict[str, type]] = {
    "figure": {
        "figure": str,
        "title": str,
        "source": str,
        "caption": str,
        "claims": list,
        "runs": list,
        "made": str,
        "versions": dict,
    },
    "notebook": {
        "notebook": str,
        "parameters": dict,
        "runs": dict,
        "verdicts": list,
        "figures": list,
    },
    "table": {
        "table": str,
        "title": str,
        "caption": str,
        "runs": list,
        "made": str,
        "versions": dict,
    },
}

#: The keys of a statement that a picture makes on a claim, and those that say which run one is.
CLAIM_KEYS = {"number", "claim", "printed", "here"}
SPEC_KEYS = {"method", "recipe", "seed", "overrides"}


@dataclass(frozen=True)
class Picture:
    """One drawn picture: its record, the picture as a data URI, and what makes it again.

    `image` is "" where the file is missing or damaged. `place` is the subfolder that it lies in, ""
    for the folder itself. `marks` say what is wrong with it.
    """

    name: str
    place: str
    record: Mapping[str, Any]
    image: str
    command: str
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredTable:
    """One table of results: its record, its rows as HTML, and what makes it again."""

    name: str
    place: str
    record: Mapping[str, Any]
    html: str
    command: str


@dataclass(frozen=True)
class UsedRun:
    """A run behind the results: what the records say of it, and the command that trains it."""

    key: str
    record: Mapping[str, Any]
    command: str

    @property
    def name(self) -> str:
        """Its method, recipe and seed."""
        spec = self.record["spec"]
        return f"{spec['method']} on {spec['recipe']}, seed {spec['seed']}"


@dataclass
class ResultFolder:
    """All that could be read of a folder, and a sentence for all that could not."""

    folder: Path
    pictures: list[Picture] = field(default_factory=list)
    tables: list[StoredTable] = field(default_factory=list)
    stamps: list[Mapping[str, Any]] = field(default_factory=list)
    runs: dict[str, UsedRun] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def recipes(self) -> list[str]:
        """The recipes of its notebooks, or of its runs where no notebook was finished."""
        of_stamps = [stamp["parameters"].get("recipe", "") for stamp in self.stamps]
        of_runs = [run.record["spec"]["recipe"] for run in self.runs.values()]
        return list(dict.fromkeys(filter(None, of_stamps or of_runs)))


def read_folder(folder: Path) -> ResultFolder:
    """Read what a folder of results holds, with its subfolders.

    Raises:
        KitError: There is no such folder, or no result in it.
    """
    if not folder.is_dir():
        raise KitError(
            f"{folder} is not a folder of results; give one that `python -m kit reproduce` wrote"
        )
    found = ResultFolder(folder)
    records: dict[str, list[tuple[Path, Mapping[str, Any]]]] = {kind: [] for kind in RECORD_KEYS}
    for path in sorted(folder.rglob("*.json")):
        try:
            kind, record = _read_record(path)
        except KitError as error:
            found.problems.append(f"{path.relative_to(folder)} is left out: {error}")
        else:
            records[kind].append((path, record))
    found.stamps = [record for _, record in records["notebook"]]
    found.problems += _unfinished_notebooks(folder, {path for path, _ in records["notebook"]})
    commands = _commands_of_files(records["notebook"])
    for path, record in records["figure"]:
        found.pictures.append(_take_picture(folder, path, record, commands))
    for path, record in records["table"]:
        found.tables.append(_take_table(folder, path, record, commands))
    found.runs = _collect_runs([r for kind in ("figure", "table") for _, r in records[kind]])
    if not found.pictures and not found.tables:
        problems = f" ({'; '.join(found.problems)})" if found.problems else ""
        raise KitError(
            f"{folder} holds no picture and no table with its record{problems}; make some with: "
            "python -m kit reproduce"
        )
    return found


def _read_record(path: Path) -> tuple[str, Mapping[str, Any]]:
    """The kind of a JSON file's record, and the record.

    Raises:
        KitError: It is damaged, or no record of the kit.
    """
    try:
        record = read_json(path)
    except KitError as error:
        raise KitError("it is damaged: it is not JSON") from error
    kind = next((k for k in RECORD_KEYS if isinstance(record, dict) and k in record), None)
    if kind is None:
        raise KitError("it is not a record of the kit")
    wrong = [
        name
        for name, expected in RECORD_KEYS[kind].items()
        if not isinstance(record.get(name), expected)
    ]
    if kind != "notebook" and not wrong and not all(map(_is_run, record["runs"])):
        wrong = ["runs"]
    if not all(isinstance(c, dict) and set(c) >= CLAIM_KEYS for c in record.get("claims", [])):
        wrong = ["claims"]
    if wrong:
        raise KitError(
            f"it is not a complete record of a {kind}: {', '.join(wrong)} is missing or is "
            "not what the kit writes"
        )
    return kind, record


def _is_run(record: Any) -> bool:
    spec = record.get("spec") if isinstance(record, dict) else None
    return (
        isinstance(spec, dict)
        and set(spec) >= SPEC_KEYS
        and isinstance(spec["overrides"], dict)
        and isinstance(record.get("key"), str)
    )


def _unfinished_notebooks(folder: Path, stamped: set[Path]) -> Iterator[str]:
    """Name the notebooks that were begun here and left no stamp: half-finished results."""
    begun = {
        path.with_name(path.name.replace(".partial.ipynb", ".ipynb"))
        for path in folder.rglob("*.ipynb")
    }
    left: dict[str, list[str]] = {}
    for path in sorted(begun):
        if path.with_suffix(".json") not in stamped:
            left.setdefault(path.stem, []).append(path.parent.relative_to(folder).as_posix())
    names = [
        name if places == ["."] else f"{name} (in {', '.join(places)})"
        for name, places in left.items()
    ]
    if names:
        yield (
            f"these notebooks were begun and did not end: {', '.join(names)}. What they drew may "
            "be missing. Repeat the command that ran them, and it goes on from there"
        )


# ------------------------------------------------------------------------------ what makes it again


def _commands_of_files(stamps: Sequence[tuple[Path, Mapping[str, Any]]]) -> dict[Path, str]:
    """{JSON file of a picture or table: the command that runs its notebook again}."""
    return {
        (path.parent / str(name)).with_suffix(".json"): notebook_command(stamp)
        for path, stamp in stamps
        for name in stamp["figures"]
    }


def notebook_command(stamp: Mapping[str, Any]) -> str:
    """Write the command that runs a notebook again with the parameters that its stamp names.

    What the notebook has by itself is left out. Values that `--set` cannot carry go by papermill.
    """
    name, given = stamp["notebook"], dict(stamp["parameters"])
    path = CHECKOUT / "notebooks" / f"{name}.ipynb"
    own = {n: p.default for n, p in notebook_parameters(path).items()} if path.exists() else {}
    changed = {n: value for n, value in given.items() if own.get(n) != value}
    if any(
        " " in str(value) and re.search("[=:]", str(value))
        for n, value in changed.items()
        if n in _LISTS
    ):
        words = " ".join(f"-p {n} {shlex.quote(str(value))}" for n, value in changed.items())
        return f"papermill notebooks/{name}.ipynb out.ipynb {words}"
    seeds = given.get("seeds", given.get("seed"))
    command = f"python -m kit reproduce --only {name}"
    command += f" --recipe {shlex.quote(str(given['recipe']))}" if given.get("recipe") else ""
    command += f" --seeds {str(seeds).replace(',', ' ')}" if seeds is not None else ""
    before, now = (
        list(map(split_setting, split_settings(str(values.get("overrides", "")))))
        for values in (own, given)
    )
    settings = ["=".join(setting) for setting in now if setting not in before]
    settings += [
        f"{n}={','.join(str(value).split())}"
        for n, value in changed.items()
        if n not in ("recipe", "seed", "seeds", "overrides") and str(value)
    ]
    return command + _set_words(settings)


def _train_command(spec: Mapping[str, Any]) -> str:
    recipe = shlex.quote(str(spec["recipe"]))
    if spec.get("adopted"):
        return f"python -m kit adopt FILE --recipe {recipe} --name {spec['method']}"
    changed = [f"{name}={value}" for name, value in spec["overrides"].items()]
    seed = f" --seed {spec['seed']}"
    return f"python -m kit train {spec['method']} --recipe {recipe}{seed}{_set_words(changed)}"


def _set_words(settings: Sequence[str]) -> str:
    """Settings behind --set, each one word of a shell; "" where there are none."""
    return f" --set {' '.join(shlex.quote(word) for word in settings)}" if settings else ""


# --------------------------------------------------------------------------- pictures, tables, runs


def _take_picture(
    folder: Path, path: Path, record: Mapping[str, Any], commands: Mapping[Path, str]
) -> Picture:
    image = _smallest_image(path)
    marks = [] if image else ["its picture is missing or damaged"]
    if len(revisions := revisions_of(record["runs"])) > 1:
        marks.append(f"its runs are of different revisions of the kit: {', '.join(revisions)}")
    made = commands.get(path, "")
    if not made and commands:
        marks.append("no finished notebook names it: it is of an older or an unfinished run")
    place = path.parent.relative_to(folder).as_posix()
    return Picture(
        record["figure"], "" if place == "." else place, record, image, made, tuple(marks)
    )


def _smallest_image(path: Path) -> str:
    """The picture beside a record as a data URI, PNG or SVG; "" where neither can be shown."""
    found = []
    for ending, kind in PICTURE_TYPES.items():
        try:
            payload = path.with_suffix(f".{ending}").read_bytes()
        except OSError:
            continue
        if _is_whole(payload, ending):
            found.append((len(payload), f"data:{kind};base64,{base64.b64encode(payload).decode()}"))
    return min(found)[1] if found else ""


def _is_whole(payload: bytes, ending: str) -> bool:
    if ending == "svg":
        return payload.rstrip().endswith(b"</svg>")
    try:
        with Image.open(io.BytesIO(payload)) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def _take_table(
    folder: Path, path: Path, record: Mapping[str, Any], commands: Mapping[Path, str]
) -> StoredTable:
    """Take a table; its Markdown is what the kit wrote, and HTML in it is shown as text."""
    markdown = path.with_suffix(".md")
    rows = markdown.read_text(errors="replace") if markdown.exists() else ""
    rows = "\n".join(line for line in rows.splitlines() if line.startswith("|"))
    render = mistune.create_markdown(escape=True, plugins=["table"])
    place = path.parent.relative_to(folder).as_posix()
    return StoredTable(
        record["table"],
        "" if place == "." else place,
        record,
        str(render(rows)),
        commands.get(path, ""),
    )


def _collect_runs(records: Sequence[Mapping[str, Any]]) -> dict[str, UsedRun]:
    """{key: run} of all records; what says most of a run counts."""
    found: dict[str, Mapping[str, Any]] = {}
    for run in (run for record in records for run in record["runs"]):
        found[run["key"]] = {**found.get(run["key"], {}), **run}
    runs = [UsedRun(key, run, _train_command(run["spec"])) for key, run in found.items()]
    return {run.key: run for run in sorted(runs, key=lambda run: (run.name, run.key))}


def revisions_of(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the commits that runs were trained with; those that do not say are left out."""
    return sorted({str(run["commit"]) for run in runs if run.get("commit")})
