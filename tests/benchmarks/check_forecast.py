"""Does `reproduce --plan` foretell how long the trainings take? Not a test: run it on a quiet
machine.

    python -m tests.benchmarks.check_forecast [--only 02 05] [--jobs 2] [--rounds 3]
        [--set NAME=VALUE ...]

Each round forecasts the trainings of some notebooks and then does them, from nothing, in a home
that is gone afterwards.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

from kit.experiments.devices import pick_device
from kit.experiments.specification import parse_overrides
from kit.jobs import batch_tasks, notebook_jobs
from kit.jobs.forecast import forecast_seconds
from kit.jobs.local_engine import run_locally
from kit.jobs.tasks import Place, simulate_tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=["02", "05"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", nargs="+", default=[])
    options = parser.parse_args()
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as home:
            os.environ["KIT_HOME"] = home
            jobs = notebook_jobs.plan_jobs(
                options.only, parse_overrides(" ".join(options.set)), None, None
            )
            place = Place(pick_device(), options.jobs)
            lists = batch_tasks.group_trainings(batch_tasks.untrained_runs(jobs).values(), place)
            tasks = batch_tasks.training_tasks(lists, place)
            began = time.monotonic()
            each = forecast_seconds(lists, place)
            forecast, took = simulate_tasks(tasks, place, each), time.monotonic() - began
            real, began = {}, time.monotonic()
            run_locally(
                tasks,
                place,
                lambda running: None,
                lambda name, error, seconds, real=real: real.update({name: seconds}),
            )
            actual = time.monotonic() - began
        for name in lists:
            print(f"  {name}: forecast {each[name]:.1f} s, took {real[name]:.1f} s")
        print(
            f"forecast {forecast:.1f} s (in {took:.1f} s), took {actual:.1f} s: "
            f"{forecast / actual - 1:+.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
