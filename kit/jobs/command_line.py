"""The command line: reproduce, train, adopt, evaluate, audit, draw, compare, explain, list.

Each command imports what it needs, so that the help costs nothing. Errors are one line. Exit codes:
0 done, 1 something failed, 2 bad input, 130 stopped by the user.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from kit.core.errors import KitError
from kit.jobs.command_parser import make_parser

#: What `python -m kit` says when no command is given.
FIRST_STEPS = """\
A study kit on instance-reweighted adversarial training. What to do first:
  jupyter lab notebooks/00_start.ipynb          what is here: papers, figures, words; trains nothing
  jupyter lab notebooks/01_from_scratch.ipynb   the whole idea in plain PyTorch; trains nothing
  python -m kit reproduce --only 02 --plan      what one notebook trains, and for how long
  python -m kit reproduce --only 02             train it, run the notebook, save its figures
  python -m kit explain mail-at                 one method: formula, parts, numbers
  python -m kit list methods                    all methods; also attacks, recipes, figures, runs
  python -m kit --help                          every command"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command, and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with _printable_output():
        if not arguments:
            print(FIRST_STEPS)
            return 0
        if arguments[:1] == ["bench"]:
            return _bench(arguments[1:])
        options = make_parser().parse_args(arguments)
        try:
            commands = {
                "reproduce": _reproduce,
                "report": _write_page,
                "train": _train,
                "evaluate": _evaluate,
                "audit": _audit,
                "draw": _draw,
                "adopt": _adopt,
                "list": _list,
                "explain": _explain,
                "compare": _compare,
                "record": _record,
                "tables": _tables,
                "runs": _runs,
            }
            return commands[options.command](options)
        except KitError as error:
            print(f"kit: {error}", file=sys.stderr)
            return 2
        except BrokenPipeError:
            # The reader, say head, has seen enough: nothing is left to say when Python flushes at
            # exit.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            return 0
        except KeyboardInterrupt:
            print(
                "\nkit: stopped. Finished epochs and notebooks are kept; the same command goes on "
                "there.",
                file=sys.stderr,
            )
            return 130


@contextlib.contextmanager
def _printable_output() -> Iterator[None]:
    """Within, a character that stdout's encoding has not is printed as a question mark."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    before = stream.errors
    stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):  # closed, or its reader is gone
            stream.reconfigure(errors=before)


def _given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """{name: value} of --set and --recipe."""
    from kit.experiments.specification import parse_overrides

    given = parse_overrides(" ".join(options.set))
    if options.recipe is not None:
        if "recipe" in given:
            raise KitError(
                f"--recipe {options.recipe} and --set recipe={given['recipe']} both choose the "
                "recipe; give one of them"
            )
        given["recipe"] = options.recipe
    return given


def _reproduce(options: argparse.Namespace) -> int:
    from kit.experiments.devices import pick_device
    from kit.jobs.notebook_jobs import plan_jobs
    from kit.jobs.ray_engine import cluster_place, join_cluster, run_on_ray
    from kit.jobs.reproduction import reproduce, show_plan
    from kit.jobs.tasks import Place

    if options.jobs < 0:
        raise KitError(f"--jobs {options.jobs} must be at least 1, or 0 for one a core")
    if options.on is None and (options.address or options.gpus is not None):
        raise KitError(
            f"--{'address' if options.address else 'gpus'} is about a cluster; add --on ray, or "
            "leave it out"
        )
    if options.gpus is not None and (options.gpus < 0 or not options.plan):
        raise KitError(
            f"--gpus {options.gpus} is for --plan alone, and at least 0; a run takes the GPUs "
            "that the cluster has"
        )
    if options.out and options.out.exists() and not options.out.is_dir():
        raise KitError(f"--out {options.out} is a file; it must be a folder, there or not yet")
    if options.budget is not None:
        return _reproduce_within(options)
    jobs = plan_jobs(
        options.only,
        _given_settings(options),
        options.seeds,
        options.out.resolve() if options.out else None,
    )
    workers = options.jobs or min(8, os.cpu_count() or 1)
    how = {"fresh": options.fresh, "compiled": options.compile}
    if options.on is None:
        here = Place(pick_device(options.device), workers)
        if not options.plan:
            return reproduce(jobs, here, **how)
        show_plan(jobs, here)
        return 0
    if options.plan:
        gpus = options.gpus or 0
        show_plan(jobs, cluster_place(max(workers, 4 * gpus), gpus, options.device))
        return 0
    with join_cluster(options.address or "auto", workers, options.device) as place:
        return reproduce(jobs, place, engine=run_on_ray, **how)


def _reproduce_within(options: argparse.Namespace) -> int:
    started = time.monotonic()  # what is imported now takes its time, too
    from kit.experiments.devices import DeviceLost, pick_device
    from kit.jobs.budget import parse_duration, spend_budget

    chosen = ("only", "set", "seeds", "jobs", "compile", "fresh", "on", "out")
    if given := next((name for name in chosen if getattr(options, name)), None):
        raise KitError(
            f"--budget chooses what is run, and how; leave out --{given}, or leave out --budget"
        )
    seconds, device = parse_duration(options.budget), pick_device(options.device)
    words = options.recipe or "digits", seconds, device
    try:
        spend_budget(*words, started=started, only_plan=options.plan)
    except DeviceLost as error:
        print(f"kit: {error}", file=sys.stderr)
        return 1
    return 0


def _write_page(options: argparse.Namespace) -> int:
    from kit.jobs.report import newest_results, write_report

    print(write_report(options.folder or newest_results()))
    return 0


def _train(options: argparse.Namespace) -> int:
    from kit.core.distributed import is_main, join_processes, process_count
    from kit.experiments.specification import RunSpec, parse_overrides
    from kit.training.distributed_loop import run_distributed
    from kit.training.runner import run

    spec = RunSpec(
        options.method, options.recipe, options.seed, parse_overrides(" ".join(options.set))
    )
    with join_processes(options.device) as device:
        train = run_distributed if process_count() > 1 else run
        trained = train(spec, device=device, compiled=options.compile or None)
        if is_main():
            print(trained)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from kit.core.registry import split_names
    from kit.evaluation.accuracy import evaluate
    from kit.experiments.runs import find_run

    attacks = split_names(options.attacks)
    if not attacks:
        raise KitError(
            f"--attacks {options.attacks!r} names no attack; `python -m kit list attacks` has them"
        )
    run = find_run(options.run)
    table = evaluate(
        run,
        attacks,
        split=options.split,
        n=options.n,
        device=options.device,
    )
    print(run)
    print(table.to_string(float_format=lambda value: f"{value:.4f}"))
    return 0


def _audit(options: argparse.Namespace) -> int:
    from kit.evaluation.robustness_audit import audit
    from kit.experiments.runs import find_run
    from kit.jobs.budget import parse_duration

    budget = None if options.budget is None else parse_duration(options.budget) / 60
    report = audit(find_run(options.run), n=options.n, device=options.device, budget=budget)
    print(report)
    if report.stopped:
        raise KeyboardInterrupt
    return 0


def _draw(options: argparse.Namespace) -> int:
    from kit.experiments.runs import find_run
    from kit.experiments.specification import parse_overrides
    from kit.figures.table import draw

    runs = [find_run(key) for key in options.run]
    settings = parse_overrides(" ".join(options.set))
    drawing = draw(options.figure, runs, folder=options.out, **settings)
    print(drawing.caption)
    print(next(path for path in drawing.files if path.suffix == ".png"))
    return 0


def _adopt(options: argparse.Namespace) -> int:
    from kit.experiments.specification import parse_overrides
    from kit.training.adoption import adopt

    adopt(
        options.file,
        options.recipe,
        data=options.data,
        name=options.name,
        architecture=options.architecture,
        normalise=options.normalise or None,
        n=options.n,
        overrides=parse_overrides(" ".join(options.set)),
        device=options.device,
    )
    return 0


def _list(options: argparse.Namespace) -> int:
    if options.what == "runs":
        _print_runs()
        return 0
    if options.what == "settings":
        _list_settings()
        return 0
    import kit
    from kit.core.registry import describe_row

    table = getattr(kit, options.what.upper())
    width = max(map(len, table))
    for name, row in table.items():
        source = getattr(row, "source", "")
        print(f"{name:<{width}}  {describe_row(row)}{f'  [{source}]' if source else ''}")
    if options.what == "methods":
        print("\npython -m kit explain METHOD shows a method's formula, parts and numbers.")
    return 0


def _print_runs() -> None:
    from kit.experiments.runs import find_run, is_done, run_folders

    for folder in run_folders():
        # One damaged run hides no other.
        try:
            words = str(find_run(folder.name).spec)
        except KitError as error:
            words = str(error)
        print(f"{folder.name}  {'done' if is_done(folder) else 'unfinished':<10}  {words}")


def _list_settings() -> None:
    """Print each printed row of settings, and whether its run has them."""
    from kit.papers.printed_settings import compare_settings

    found = compare_settings()
    for row in found.itertuples():
        name = " ".join(filter(None, (row.paper, row.dataset, row.model, row.method)))
        print(f"{row.status:<11}  {name}{f': {row.why}' if row.why else ''}")
    print(f"\n{found.attrs['caption']}.")


def _runs(options: argparse.Namespace) -> int:
    from kit.jobs.archive import export_runs, import_runs, select_folders, verify_run

    if options.action == "verify":
        folders, bad = select_folders(options.run), 0
        for folder in folders:
            problems = verify_run(folder)
            bad += bool(problems)
            print(f"{folder.name}  {'damaged' if problems else 'whole'}", *problems, sep="\n    ")
        print(f"{len(folders) - bad} of {len(folders)} runs are whole")
        return 1 if bad else 0
    if options.action == "export":
        print(f"{len(export_runs(options.file, options.run))} runs in {options.file}")
        return 0
    for name, state in import_runs(options.file):
        print(f"{name}  {state}")
    return 0


def _bench(words: list[str]) -> int:
    """Run the checkout's benchmark in a process of its own: the kit imports no tests."""
    import subprocess

    from kit.core.files import CHECKOUT

    script = CHECKOUT / "tests" / "benchmarks" / "bench.py"
    if not script.exists():
        print(
            f"kit: bench needs a checkout of the project, whose benchmark is {script}; there is no "
            "such file. Clone the project and run `python -m kit bench` there",
            file=sys.stderr,
        )
        return 2
    try:
        return subprocess.call([sys.executable, str(script), *words])
    except KeyboardInterrupt:
        return 130


def _explain(options: argparse.Namespace) -> int:
    from kit.figures.explanation import explain

    print(explain(options.method))
    return 0


def _tables(options: argparse.Namespace) -> int:
    from kit.experiments.specification import parse_overrides
    from kit.jobs.gallery import measured_tables

    given = {"seeds": options.seeds} if options.seeds else {}
    found = measured_tables(
        options.recipe,
        " ".join(options.table) or "all",
        overrides=parse_overrides(" ".join(options.set)),
        **given,
    )
    for table in found.values():
        print(table.latex() if options.latex else table.markdown())
    return 0


def _record(options: argparse.Namespace) -> int:
    from kit.jobs.gallery import write_gallery
    from kit.jobs.notebook_jobs import plan_jobs

    [job] = plan_jobs(["tables_of_the_papers"], _given_settings(options), None, None)
    given = {k: v for k, v in job.values.table_options.items() if k != "recipe"}
    for path in write_gallery(options.recipe, **given):
        print(path)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from kit.core.files import write_json
    from kit.evaluation.coverage import measure_coverage
    from kit.figures.base import plain
    from kit.jobs.notebook_jobs import plan_jobs
    from kit.papers.rule_checks import (
        check_against,
        check_rules,
        check_stability,
        list_board,
        report_changes,
        report_rules,
    )
    from kit.papers.verdicts import compare, report

    if options.self_check:
        print(report_rules(check_rules(options.paper)))
        return 0
    if options.coverage:
        print(measure_coverage().to_string(index=False, float_format="{:.3f}".format))
        return 0
    [job] = plan_jobs(["tables_of_the_papers"], _given_settings(options), options.seeds, None)
    # These are the runs that reproduce makes.
    values = job.values
    if options.stability:
        print(report_changes(check_stability(**values.table_options)))
        return 0
    if options.against:
        given = {"seeds": options.seeds, **values.table_options}
        print(report_changes(check_against(options.against, **given)))
        return 0
    found = compare(
        options.paper,
        seeds=options.seeds,
        settings=" ".join(options.set),
        **values.table_options,
    )
    print(report(found))
    if options.json:
        write_json(options.json, plain(list_board(found)))
    return 0
