"""The words that the command line understands: a parser for each command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

#: What `list` shows, beside runs: the tables of `kit` under these names.
TABLES = ("methods", "attacks", "recipes", "models", "criteria", "weights", "figures")

#: The place in the parser where commands are added.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the words that `python -m kit` understands."""
    top = argparse.ArgumentParser(
        prog="python -m kit",
        description="A study kit on instance-reweighted adversarial training",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add_command in (
        add_reproduce,
        add_report,
        add_train,
        add_evaluate,
        add_audit,
        add_draw,
        add_adopt,
        add_list,
        add_runs,
        add_compare,
        add_record,
        add_tables,
        add_bench,
        add_explain,
    ):
        add_command(commands)
    return top


def add_reproduce(commands: Commands) -> None:
    """Add `reproduce`: notebooks, their runs and figures."""
    reproduce = commands.add_parser(
        "reproduce", help="train what is missing, run the notebooks, write the figures"
    )
    reproduce.add_argument(
        "--recipe", help="a name of `list recipes`, or folder:<path> (default: each notebook's own)"
    )
    reproduce.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="NOTEBOOK",
        help="notebooks whose names begin so",
    )
    add_seeds(
        reproduce,
        "one set of figures per seed (default: 0); tables use all of them (default: 0 1 2)",
    )
    add_settings(reproduce, "notebook parameters, or settings of every run")
    reproduce.add_argument(
        "--jobs",
        type=int,
        default=0,
        metavar="N",
        help="processes (default: one a core, at most 8)",
    )
    reproduce.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    reproduce.add_argument(
        "--compile", action="store_true", help="compile the passes of networks: for long runs"
    )
    reproduce.add_argument(
        "--out", type=Path, help="folder for the results (default: figures/out/<recipe>)"
    )
    reproduce.add_argument(
        "--fresh", action="store_true", help="run notebooks that are up to date, too"
    )
    reproduce.add_argument(
        "--plan", action="store_true", help="only say what would run, and for how long"
    )
    reproduce.add_argument(
        "--budget",
        metavar="12m",
        help="within so much time (90s, 12m, 1.5h), the runs that decide the most claims; goes on "
        "where an earlier budget stopped",
    )
    reproduce.add_argument(
        "--on", choices=["ray"], help="where: on a Ray cluster (default: on this machine)"
    )
    reproduce.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="of the Ray cluster's head; local starts one of --jobs CPUs here; auto (default) "
        "finds one",
    )
    reproduce.add_argument(
        "--gpus", type=int, metavar="N", help="GPUs of the cluster that --plan --on ray imagines"
    )


def add_report(commands: Commands) -> None:
    """Add `report`: a page of results."""
    report = commands.add_parser(
        "report", help="one HTML page of a folder of results: pictures, verdicts, runs, commands"
    )
    report.add_argument(
        "folder",
        type=Path,
        nargs="?",
        help="what reproduce wrote (default: the newest of figures/out/)",
    )


def add_train(commands: Commands) -> None:
    """Add `train`: one run."""
    train = commands.add_parser("train", help="train, resume or open one run")
    train.add_argument("method")
    train.add_argument("--recipe", default="digits")
    train.add_argument("--seed", type=int, default=0)
    add_settings(train, "overrides, say weight.slope=5 epochs=30")
    train.add_argument("--device", default="auto")
    train.add_argument(
        "--compile", action="store_true", help="compile the network's passes: for long runs"
    )


def add_evaluate(commands: Commands) -> None:
    """Add `evaluate`: accuracies of a run."""
    evaluate = commands.add_parser("evaluate", help="accuracy of a stored run under attacks")
    evaluate.add_argument("run", help="the run's key, or the beginning of it (see `list runs`)")
    evaluate.add_argument(
        "--attacks", default="natural,fgsm,pgd20,cw20", help="names with commas or spaces between"
    )
    evaluate.add_argument("--split", default="test")
    evaluate.add_argument("--n", type=int, default=0, help="only the first n images")
    evaluate.add_argument("--device", default="auto")


def add_audit(commands: Commands) -> None:
    """Add `audit`: whether a run is as robust as it looks."""
    audit = commands.add_parser(
        "audit",
        help="is a stored run as robust as it looks? attacks in order of strength and ten rules",
    )
    audit.add_argument("run", help="the run's key, or the beginning of it (see `list runs`)")
    audit.add_argument("--n", type=int, default=0, help="only the first n images")
    audit.add_argument(
        "--budget", help="a duration such as 12m: attacks that are not expected to fit are left out"
    )
    audit.add_argument("--device", default="auto")


def add_draw(commands: Commands) -> None:
    """Add `draw`: one figure from stored runs."""
    draw = commands.add_parser("draw", help="one figure from stored runs, as PNG, SVG and JSON")
    draw.add_argument("figure", help="a name of `list figures`, or a paper's number such as mail-4")
    draw.add_argument("run", nargs="+", help="keys, or the beginnings of them (see `list runs`)")
    draw.add_argument("--out", type=Path, help="where it goes (default: figures/out/<recipe>)")
    add_settings(draw, "options of the figure, say n=100")


def add_adopt(commands: Commands) -> None:
    """Add `adopt`: a run of a network that was trained elsewhere."""
    adopt = commands.add_parser(
        "adopt", help="make a run of a network that was trained elsewhere, from its checkpoint"
    )
    adopt.add_argument("file", type=Path, help="a state dict: .pt, .pth, .safetensors, ...")
    adopt.add_argument(
        "--recipe", default="", help="its images, threat and attack steps (default: digits)"
    )
    adopt.add_argument(
        "--data", help="images in place of the recipe's: an .npz, x (N, C, H, W) and y (N,)"
    )
    adopt.add_argument(
        "--architecture", default="", help="a name of `list models` (default: what the file fits)"
    )
    adopt.add_argument("--name", default="", help="what to call it (default: the file's name)")
    adopt.add_argument(
        "--normalise", action="store_true", help="its images are (x - mean) / std of the recipe's"
    )
    adopt.add_argument("--n", type=int, default=2000, help="images of each split that are observed")
    add_settings(adopt, "fields of the recipe, say norm=l2 eps=0.5")
    adopt.add_argument("--device", default="auto")


def add_list(commands: Commands) -> None:
    """Add `list`: what there is to choose from."""
    show = commands.add_parser("list", help="what there is to choose from")
    show.add_argument("what", nargs="?", default="methods", choices=[*TABLES, "runs", "settings"])


def add_runs(commands: Commands) -> None:
    """Add `runs`: verify, export and import."""
    runs = commands.add_parser(
        "runs", help="verify stored runs, export them to an archive, import from one"
    )
    actions = runs.add_subparsers(dest="action", required=True, metavar="ACTION")
    verify = actions.add_parser("verify", help="is every file whole, and does it belong there?")
    export = actions.add_parser("export", help="finished runs as one tar file")
    export.add_argument("file", type=Path)
    for action in (verify, export):
        action.add_argument("run", nargs="*", help="keys, or the beginnings of them (default: all)")
    actions.add_parser("import", help="runs from such a file, each verified before").add_argument(
        "file", type=Path
    )


def add_compare(commands: Commands) -> None:
    """Add `compare`: the papers' claims and their verdicts."""
    compare = commands.add_parser(
        "compare", help="the papers' claims against what finished runs show, each with a verdict"
    )
    compare.add_argument("paper", nargs="?", help="clirat, mail, vir, mr or csa (default: all)")
    compare.add_argument(
        "--recipe", help="a name of `list recipes`, or folder:<path> (default: digits)"
    )
    add_settings(compare, "as given to `reproduce`")
    add_seeds(compare, "the seeds that count (default: all that are there)")
    compare.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write it there, too, every statement with its numbers",
    )
    checks = compare.add_mutually_exclusive_group()
    checks.add_argument(
        "--self-check",
        action="store_true",
        help="try the rules on the printed numbers, on planted effects, and on none",
    )
    checks.add_argument(
        "--coverage",
        action="store_true",
        help="simulate how often each of the kit's 95 %% intervals holds the truth (a minute)",
    )
    checks.add_argument(
        "--stability",
        action="store_true",
        help="decide every claim twice, with disjoint sets of the seeds that are there",
    )
    checks.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="set the verdicts beside those that --json wrote on another install or machine",
    )


def add_record(commands: Commands) -> None:
    """Add `record`: the measured numbers, the gallery and the scoreboard."""
    record = commands.add_parser(
        "record",
        help="write figures/measured.csv, the gallery and the scoreboard from what is done",
    )
    record.add_argument("--recipe", default="digits", help="the scale (default: digits)")
    add_settings(record, "as given to `reproduce`")


def add_tables(commands: Commands) -> None:
    """Add `tables`: printed and measured tables."""
    tables = commands.add_parser(
        "tables", help="the papers' printed tables beside what finished runs measured"
    )
    tables.add_argument(
        "table", nargs="*", help="such as vir-1 mail-2, or a paper (default: all of them)"
    )
    tables.add_argument("--recipe", default="digits", help="the scale (default: digits)")
    add_seeds(tables, "the seeds that count (default: all that are there)")
    add_settings(tables, "settings of the runs (default: the recipe's own)")
    tables.add_argument("--latex", action="store_true", help="tabulars (default: Markdown)")


def add_bench(commands: Commands) -> None:
    """Add `bench`: whose own parser reads its words."""
    commands.add_parser(
        "bench", help="speed here, against the plain step and other libraries (see `bench --help`)"
    )


def add_explain(commands: Commands) -> None:
    """Add `explain`: one method."""
    explain = commands.add_parser(
        "explain", help="a method's formula, parts and numbers, and where paper and code disagree"
    )
    explain.add_argument("method", help="a name of `list methods`")


def add_settings(command: argparse.ArgumentParser, meaning: str) -> None:
    """Add --set NAME=VALUE ..., which may be given several times."""
    command.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help=meaning
    )


def add_seeds(command: argparse.ArgumentParser, meaning: str) -> None:
    """Add --seeds S ..., which may be given several times."""
    command.add_argument("--seeds", nargs="+", action="extend", type=int, metavar="S", help=meaning)
