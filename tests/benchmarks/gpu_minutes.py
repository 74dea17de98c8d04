"""All that a few minutes of a GPU can give, by one command, kept as it goes. Not a test.

    python -m tests.benchmarks.gpu_minutes --minutes 11 --out DIR [--data PATH] [--device cuda]
    python -m tests.benchmarks.gpu_minutes --minutes 10 --simulate

First the tests that need a GPU, then the benchmark, then `reproduce --budget` for the rest: at the
papers' settings, on the folder of images PATH if one is given. Each is a process of its own with an
end of its own. This one only watches: every few seconds it writes what must not be lost into DIR,
at most `MOST_FILES` files of at most `MOST_BYTES` bytes, each replaced in one step. Cut off at any
moment, DIR has all but the last minute.

log.txt         what the processes said
summary.json    the machine, each part with its seconds and its end, the table of speed
accuracies.csv  one row an evaluation: scale, method, seed, attack, images, accuracy, interval
record.csv      rows of the record, as in figures/measured.csv
epochs.csv      one row an epoch of a run, finished or not
examples.npz    verdicts per example (packed bits), and logits of the test images in half precision
pictures.zip    pictures with their facts

--simulate trains nothing: it says what the minutes should give on a GPU that nobody has measured
yet, from counted operations, the time that launching one is reckoned with, and the operations that
the chip is reckoned to do (`LAUNCH_SECONDS`, `ACHIEVED_FLOPS`).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import importlib.util
import io
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]

MOST_FILES, MOST_BYTES = 8, 16_000_000

#: Seconds between two looks at what must be kept.
KEPT_EVERY = 10.0

#: Seconds between the end of one drawing of pictures and the beginning of the next.
DRAWN_EVERY = 20.0

#: The parts before the budget: their share of all minutes, and the most of it in seconds.
CHECKS, BENCH = (1 / 11, 60.0), (1.5 / 11, 90.0)

#: The works of the benchmark, those first that a GPU is wanted for.
BENCHED = ("step-resnet18", "many", "step-resnet18-16", "pgd20")

#: How a GPU is imagined: what a launched operation costs at best and at worst, and the operations
#: a second that convolutions reach: 40 % of the 790 TFLOP/s that bf16 products reach.
LAUNCH_SECONDS = (5e-6, 10e-6)
ACHIEVED_FLOPS = 0.4 * 790e12

# ------------------------------------------------------------------------------------ what is kept


class Keeper:
    """It writes what must not be lost into a folder, a file in one step, within the limits."""

    def __init__(self, out: Path, recipe: str):
        self.out, self.recipe = out, recipe
        self.signatures: dict[str, Any] = {}
        out.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, payload: bytes) -> None:
        """Replace one file. What is being written is one file more, so there are never too many."""
        partial = self.out / ".partial"
        with open(partial, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.out / name)

    def write_if_new(self, name: str, signature: Any, make: Callable[[], bytes | None]) -> None:
        """Write a file where what it is made of has changed."""
        if self.signatures.get(name) == signature:
            return
        payload = make()
        if payload is not None and len(payload) <= MOST_BYTES:
            self.write(name, payload)
        self.signatures[name] = signature

    def keep(self, log: Path, summary: Mapping[str, Any]) -> None:
        """Write all that is new."""
        self.write("summary.json", (json.dumps(summary, indent=1) + "\n").encode())
        self.write("log.txt", tail(log, MOST_BYTES // 4))
        runs = stored_runs(self.recipe)
        made = evaluations(runs)
        self.write_if_new("accuracies.csv", _seen(made), lambda: accuracy_rows(runs, made))
        histories = [folder / "history.csv" for folder in runs]
        self.write_if_new("epochs.csv", _seen(histories), lambda: epoch_rows(runs))
        finals = [folder / "final.npz" for folder in runs]
        self.write_if_new("examples.npz", _seen(made + finals), lambda: examples(runs, made))
        drawn = drawn_files(runs)
        self.write_if_new("pictures.zip", _seen(drawn), lambda: pictures(drawn))
        record = [path for path in drawn if path.name == "measured.csv"]
        self.write_if_new("record.csv", _seen(record), lambda: joined_tables(record))


def tail(path: Path, most: int) -> bytes:
    """The end of a file."""
    payload = path.read_bytes() if path.exists() else b""
    return payload[-most:]


def _seen(paths: Iterable[Path]) -> list[tuple[str, int]]:
    return [(str(path), path.stat().st_mtime_ns) for path in paths if path.exists()]


def stored_runs(recipe: str) -> dict[Path, dict[str, Any]]:
    """{folder: what run.json says} of the runs on a recipe, or on one that shortens it."""
    from kit.experiments.recipes import unshortened_name
    from kit.experiments.runs import run_folders

    found = {}
    for folder in run_folders():
        with contextlib.suppress(OSError, ValueError, KeyError):
            record = json.loads((folder / "run.json").read_text())
            if unshortened_name(record["spec"]["recipe"]) == unshortened_name(recipe):
                found[folder] = record
    return found


def evaluations(runs: Iterable[Path]) -> list[Path]:
    """The files of all evaluations."""
    return [path for folder in runs for path in sorted((folder / "evaluations").glob("*.npz"))]


def _name(record: Mapping[str, Any]) -> dict[str, Any]:
    spec = record["spec"]
    settings = " ".join(f"{key}={value}" for key, value in spec["overrides"].items())
    return {
        "scale": spec["recipe"],
        "method": spec["method"],
        "settings": settings,
        "seed": spec["seed"],
        "run": record["key"],
        "device": record["device"],
        "torch": record["versions"]["torch"],
        "commit": record["commit"],
    }


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes | None:
    if not rows:
        return None
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def accuracy_rows(runs: Mapping[Path, Mapping[str, Any]], made: Sequence[Path]) -> bytes | None:
    """A row of each evaluation."""
    from kit.evaluation.statistics import wilson

    rows = []
    for path in made:
        found = _arrays(path)
        settings = json.loads(str(found["settings"]))
        n, right = len(found["y"]), int((~found["broken"]).sum())
        low, high = wilson(right, n)
        rows.append(
            _name(runs[path.parents[1]])
            | {"attack": attack_name(settings["attack"]), "which": settings["which"]}
            | {"n": n, "accuracy": right / n, "low": low, "high": high}
            | {"seconds": round(float(found["seconds"]), 2)}
        )
    return _csv(rows)


@cache
def _attack_names() -> dict[str, str]:
    from kit.attacks.table import ATTACKS

    return {json.dumps(row.config(), sort_keys=True): name for name, row in ATTACKS.items()}


def attack_name(config: Mapping[str, Any]) -> str:
    """The row of the table of attacks with these settings."""
    words = json.dumps(config, sort_keys=True)
    return _attack_names().get(words, words)


def epoch_rows(runs: Mapping[Path, Mapping[str, Any]]) -> bytes | None:
    """A row of each epoch that was finished."""
    rows = []
    for folder, record in runs.items():
        with contextlib.suppress(OSError, ValueError):
            history = csv.DictReader(io.StringIO((folder / "history.csv").read_text()))
            rows += [_name(record) | epoch for epoch in history]
    return _csv(rows)


def examples(runs: Mapping[Path, Mapping[str, Any]], made: Sequence[Path]) -> bytes | None:
    """Verdicts of all evaluations, and logits of as many runs as there is room for.

    Names are <run>/<attack>/<first n, 0 for all>/<network>/broken, packed eight to a byte, and
    <run>/logits_adv, <run>/logits_nat, <run>/y.
    """
    kept: dict[str, np.ndarray] = {}
    for path in made:
        found = _arrays(path)
        settings = json.loads(str(found["settings"]))
        attack = attack_name(settings["attack"])
        place = f"{runs[path.parents[1]]['key']}/{attack}/{settings['n']}/{settings['which']}"
        kept[f"{place}/broken"] = np.packbits(found["broken"])
        kept[f"{place}/n"] = np.array(len(found["y"]))
    for folder, record in runs.items():
        if not (folder / "done.json").exists():
            continue
        final = _arrays(folder / "final.npz")
        mine = {f"{record['key']}/y": final["test_y"].astype(np.uint8)}
        for name in ("logits_adv", "logits_nat"):
            mine[f"{record['key']}/{name}"] = final[f"test_{name}"].astype(np.float16)
        if sum(values.nbytes for values in [*kept.values(), *mine.values()]) < 0.95 * MOST_BYTES:
            kept |= mine
    if not kept:
        return None
    buffer = io.BytesIO()
    np.savez(buffer, **kept)
    return buffer.getvalue()


def drawn_files(runs: Mapping[Path, Mapping[str, Any]]) -> list[Path]:
    """The pictures, facts and records of all scales of some runs."""
    from kit.experiments.runs import output_folder

    scales = dict.fromkeys(record["spec"]["recipe"] for record in runs.values())
    return [
        path
        for scale in scales
        for path in sorted(output_folder(scale).rglob("*"))
        if path.suffix in (".png", ".json", ".csv") and not path.name.startswith(".")
    ]


def pictures(drawn: Sequence[Path]) -> bytes | None:
    """An archive of pictures with their facts, while there is room."""
    buffer, size = io.BytesIO(), 0
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in drawn:
            payload = path.read_bytes()
            size += len(payload)
            if path.suffix in (".png", ".json") and size < 0.95 * MOST_BYTES:
                archive.writestr("/".join(path.parts[-3:]), payload)
    return buffer.getvalue() if size else None


def joined_tables(paths: Sequence[Path]) -> bytes | None:
    """Tables of the same columns as one."""
    lines = [path.read_text().splitlines() for path in paths]
    rows = [*lines[0], *(row for rest in lines[1:] for row in rest[1:])] if lines else []
    return ("\n".join(rows) + "\n").encode() if rows else None


# ------------------------------------------------------------------------------------- the parts


def end_with_parent() -> None:
    """In a new process: be killed when the one that started it is, however that ends (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Watch:
    """It runs the parts one after the other, and keeps what they leave while they run."""

    def __init__(self, out: Path, recipe: str, ends: float, device: str):
        self.ends, self.recipe, self.device = ends, recipe, device
        self.keeper = Keeper(out, recipe)
        self.work = work_folder()
        self.log = self.work / "log.txt"
        self.log.write_bytes(b"")
        self.bench = self.work / "bench.json"
        self.began = time.monotonic()
        self.parts: dict[str, dict[str, Any]] = {}
        self.kept = self.drawn = 0.0
        self.drawing: subprocess.Popen | None = None

    def start(self, words: Sequence[str]) -> subprocess.Popen:
        """Start a process whose words go to the log."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    def run(self, part: str, words: Sequence[str], limit: float) -> int | None:
        """Run a part until it ends or its time is over; its exit code, None if it was stopped."""
        started = time.monotonic()
        self.say(f"{part}: at most {limit:.0f} s")
        self.parts[part] = {"state": "running", "limit": round(limit, 1)}
        process = self.start(words)
        while process.poll() is None and time.monotonic() < started + limit:
            time.sleep(0.2)
            self.look()
        code = process.poll()
        stop(process)
        self.parts[part] |= {
            "state": "stopped at its limit" if code is None else f"ended with {code}",
            "seconds": round(time.monotonic() - started, 1),
        }
        self.say(f"{part}: {self.parts[part]['state']}")
        self.keep()
        return code

    def look(self) -> None:
        """Keep what is new, now and then; and have pictures drawn beside the training."""
        now = time.monotonic()
        if now - self.kept >= KEPT_EVERY:
            self.keep()
        if self.drawing is not None and self.drawing.poll() is not None:
            self.drawing, self.drawn = None, now
        if self.drawing is None and now - self.drawn >= DRAWN_EVERY:
            if done := {
                record["spec"]["recipe"]
                for folder, record in stored_runs(self.recipe).items()
                if (folder / "done.json").exists()
            }:
                words = ["-m", "tests.benchmarks.gpu_minutes", "--draw", *sorted(done)]
                self.drawing = self.start(words)
            self.drawn = now

    def keep(self) -> None:
        """Keep what is new. What cannot be kept is said, and stops nothing."""
        try:
            self.keeper.keep(self.log, self.summary())
        except Exception as error:  # a half-written run must not end the minutes of a GPU
            self.say(f"not kept: {type(error).__name__}: {error}")
        self.kept = time.monotonic()

    def summary(self) -> dict[str, Any]:
        """What is known of the machine, the parts and the speed."""
        bench = json.loads(self.bench.read_text()) if self.bench.exists() else {}
        return {
            "recipe": self.recipe,
            "device": self.device,
            "machine": platform.platform(),
            "date": time.strftime("%Y-%m-%d %H:%M:%S"),
            "seconds": round(time.monotonic() - self.began, 1),
            "parts": self.parts,
            "bench": bench,
        }

    def say(self, line: str) -> None:
        """Say a line here and in the log."""
        words = f"[{time.monotonic() - self.began:6.1f} s] {line}"
        print(words, flush=True)
        with open(self.log, "a") as log:
            log.write(words + "\n")

    def left(self) -> float:
        """Seconds that are left."""
        return self.ends - time.monotonic()

    def close(self) -> None:
        """Stop what still draws, and keep what there is."""
        if self.drawing is not None:
            stop(self.drawing)
        self.keep()


def work_folder() -> Path:
    """A folder for what is not kept as it is."""
    from kit.core.files import home

    folder = home() / ".gpu-minutes"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").unlink(missing_ok=True)
    return folder


def stop(process: subprocess.Popen) -> None:
    """End a process, and those that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def gpu_tests() -> list[str]:
    """The files with tests that need a GPU."""
    mark = "@pytest.mark." + "gpu"
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path) for path in paths if mark in path.read_text()]


def spend_minutes(words: argparse.Namespace, started: float) -> int:
    """Check, bench, and spend the rest on a budget; 0 if the budget came to its end."""
    recipe = words.recipe or (f"folder:{words.data}:paper" if words.data else "cifar10:paper")
    total = 60 * words.minutes
    watch = Watch(words.out, recipe, started + total, words.device)
    watch.say(f"{words.minutes:g} minutes on {words.device}, {recipe}")
    watch.keep()
    if importlib.util.find_spec("pytest"):
        tests = ["-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "-m", "gpu"]
        watch.run("checks", [*tests, *gpu_tests()], min(CHECKS[0] * total, CHECKS[1]))
    else:
        watch.parts["checks"] = {"state": "left out: pytest is not installed"}
    bench_ends = time.monotonic() + min(BENCH[0] * total, BENCH[1])
    for work in BENCHED:
        if (limit := bench_ends - time.monotonic()) > 1:
            script = ["-m", "tests.benchmarks.bench", "--device", words.device, "--rounds", "1"]
            mine = [*script, "--images", "200", "--only", work, "--json", str(watch.bench)]
            watch.run(f"bench {work}", mine, limit)
    code: int | None = 1
    for part in ("budget", "budget again"):  # a second time where the device was lost
        seconds = watch.left() - KEPT_EVERY / 2
        if seconds < 1 or (part != "budget" and (code in (0, 2, None) or seconds < 60)):
            break
        spend = ["-m", "kit", "reproduce", "--budget", f"{seconds:.0f}s", "--recipe", recipe]
        code = watch.run(part, [*spend, "--device", words.device], seconds)
    watch.close()
    watch.say(f"kept in {words.out}: {', '.join(sorted(p.name for p in words.out.iterdir()))}")
    return 0 if code == 0 else 1


def draw_results(recipes: Sequence[str]) -> None:
    """Draw what finished runs of these recipes show, and write their records."""
    from kit.jobs.budget import write_results
    from kit.jobs.budget_questions import list_questions

    os.nice(10)  # the training goes first
    for recipe in recipes:
        write_results(recipe, list_questions(recipe).questions)


# ---------------------------------------------------------------------------------- a GPU imagined


def imagined_clock(launch: float):
    """A clock of a GPU that nobody has measured.

    What it does takes as long as launching its operations, or as computing them, whichever is
    longer.
    """
    import torch

    from kit.attacks.contract import frozen
    from kit.evaluation.accuracy import ATTACK_BATCH
    from kit.jobs.budget_costs import Rate
    from kit.jobs.evaluation_costs import count_attack_passes
    from kit.jobs.flops import count_flops, sample_data
    from kit.models.architectures import build_network
    from kit.training.observation import PROBE_BATCH
    from tests.unit.test_operations import Operations, count_step

    @cache
    def step_operations(method: str, model: str) -> int:
        return count_step(plans[method, model], (3, 32, 32), 2).count.total()

    @cache
    def pass_operations(model: str) -> tuple[int, int]:
        network, x = build_network(model, (3, 32, 32), 10), torch.zeros(2, 3, 32, 32)
        counts = []
        with frozen(network):
            network(x)  # folds its norms
            with Operations() as forward, torch.no_grad():
                network(x)
            image = x.requires_grad_()
            with Operations() as both:
                torch.autograd.grad(network(image).sum(), image)
            counts = [forward.count.total(), both.count.total() - forward.count.total()]
        return counts[0], counts[1]

    plans: dict[tuple[str, str], Any] = {}

    def rate_of(plan) -> Rate:
        plans.setdefault((plan.spec.method, plan.recipe.model), plan)
        flops, (_, sizes) = count_flops(plan), sample_data(plan, 1)
        recipe = plan.recipe
        steps = math.ceil(sizes.train / recipe.own_batch_size)
        forward, backward = pass_operations(recipe.model)
        observed = (recipe.steps + 2) * forward + recipe.steps * backward
        probes = sum(math.ceil(min(recipe.probe, n) / PROBE_BATCH) for n in sizes)
        operations = steps * step_operations(plan.spec.method, recipe.model) + probes * observed
        batches = math.ceil((sizes.train + sizes.test) / PROBE_BATCH)
        return Rate(
            max(launch * operations, flops.epoch / ACHIEVED_FLOPS),
            max(launch * batches * observed, flops.final / ACHIEVED_FLOPS),
        )

    def seconds_of(plan, ask) -> float:
        _, sizes = sample_data(plan, 1)
        flops = count_flops(plan)
        images = min(ask.n or sizes.test, sizes.test)
        batches = math.ceil(images / ATTACK_BATCH["cuda"])
        forwards, backwards = count_attack_passes(ask.attack)
        forward, backward = pass_operations(plan.recipe.model)
        launched = launch * batches * (forwards * forward + backwards * backward)
        passes = flops.final / (sizes.train + sizes.test) / (2 * plan.recipe.steps + 2)
        return max(launched, images * (forwards + backwards) * passes / ACHIEVED_FLOPS)

    return rate_of, seconds_of


def simulate(words: argparse.Namespace) -> int:
    """Print what the minutes should give, at each cost of a launch."""
    from kit.jobs.budget import describe_plan, plan_budget

    recipe = words.recipe or (f"folder:{words.data}:paper" if words.data else "cifar10:paper")
    before = sum(min(share * 60 * words.minutes, most) for share, most in (CHECKS, BENCH))
    budget = 60 * words.minutes - before
    for launch in LAUNCH_SECONDS:
        clock = imagined_clock(launch)
        place = (
            f"an imagined GPU: {launch * 1e6:g} us an operation, "
            f"{ACHIEVED_FLOPS / 1e12:.0f} TFLOP/s; computed, not measured"
        )
        print(describe_plan(plan_budget(recipe, budget, clock), budget, clock, place), flush=True)
    return 0


def main() -> int:
    """Read the words, and spend the minutes."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu_minutes", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--minutes", type=float, default=11.0)
    parser.add_argument("--out", type=Path, default=Path("gpu-minutes"))
    parser.add_argument("--data", type=Path, help="a folder of images: train/<class>, test/<class>")
    parser.add_argument("--recipe", help="in place of the papers' settings on --data or cifar10")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--simulate", action="store_true", help="only say what it should give")
    parser.add_argument("--draw", nargs="+", metavar="RECIPE", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.draw:
        draw_results(words.draw)
        return 0
    return simulate(words) if words.simulate else spend_minutes(words, started)


if __name__ == "__main__":
    sys.exit(main())
