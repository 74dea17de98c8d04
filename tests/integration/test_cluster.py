"""On a Ray cluster: the same plan, the same bits, a node lost on the way, and errors in words."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from kit.core import files
from kit.core.errors import KitError
from kit.experiments.runs import is_done
from kit.experiments.specification import RunSpec, resolve
from kit.jobs import ray_engine
from kit.jobs.tasks import Task
from tests.helpers.processes import PATIENCE, alive, wait_until, working_in
from tests.helpers.run_files import contents
from tests.helpers.settings import ROOT, TINY

T = TypeVar("T")

#: Long enough for a node to be lost in the middle of several runs.
LONG = {**TINY, "epochs": 10, "milestones": [5]}
LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}  # as `kit.jobs.ray_engine` sets it

#: Minutes for what Ray gives seconds, and no worker before there is a task.
SLOWLY = {
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_gcs_server_port_wait_time_s": "600",
    "RAY_gcs_server_request_timeout_seconds": "600",
    "RAY_health_check_timeout_ms": "600000",
    "RAY_raylet_start_wait_time_s": "60",
    "RAY_worker_register_timeout_seconds": "600",
}

#: How often Ray is started if it is too slow. A node gives its own helpers 15 seconds to start, and
#: has no setting for it.
TRIES = 5


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """Ray reads its settings when it is imported, which no other module does."""
    paths = [str(ROOT / "tests/helpers/light"), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**SLOWLY, "PYTHONPATH": os.pathsep.join(paths)}.items():
            patch.setenv(name, value)
        yield


def reproduce(home: Path, *words: str, **settings) -> subprocess.Popen:
    """`python -m kit reproduce` of a notebook with five runs at test size, two tasks at a time."""
    command = [
        sys.executable,
        "-m",
        "kit",
        "reproduce",
        "--only",
        "05",
        "--jobs",
        "2",
        *words,
        "--set",
        *(f"{name}={value}".replace(" ", "") for name, value in settings.items()),
    ]
    paths = f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"
    environment = {**os.environ, **LOOPBACK, "KIT_HOME": str(home), "PYTHONPATH": paths}
    return subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # ignored in the background


def in_tries(home: Path, start: Callable[[], T]) -> T:
    """What `start` returns, which starts Ray in `home`; once more if Ray says that it timed out."""
    for left in reversed(range(TRIES)):
        try:
            return start()
        except Exception as error:  # Ray raises no more special one
            if not left or "timed out" not in str(error).lower():
                raise
            for process in working_in(home):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


def folders(home: Path) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in (home / "data/runs").glob("*/run.json")}


# -------------------------------------------------------------------------------- without a cluster


def test_ray_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(
            KitError, match=r"Ray is not installed; pip install -r requirements-cluster\.txt"
        ),
        ray_engine.join_cluster("local", 1),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (
            "127.0.0.1:1",
            r"no Ray cluster at 127\.0\.0\.1:1: .*refused.*`ray start --head --port 1`",
        ),
        ("nowhere", "Choices: auto, local, HOST:PORT"),
        ("http://here:80", "Choices: auto, local, HOST:PORT"),
    ],
)
def test_nobody_answers(address, words, monkeypatch):
    pytest.importorskip("ray")
    for asked in (address, "auto"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(KitError, match=words), ray_engine.join_cluster(asked, 1):
            pass


def test_what_a_cluster_offers():
    """A task takes a CPU, and a quarter of a GPU or a whole one, where there are GPUs."""
    cpus = ray_engine.cluster_place(6, 0)
    assert (cpus.device.type, cpus.slots, cpus.gpus) == ("cpu", 6, 0)
    assert [getattr(ray_engine.cluster_place(64, 2), name) for name in ("slots", "gpus")] == [8, 2]
    assert (
        ray_engine.cluster_place(3, 2).slots == 3
        and ray_engine.cluster_place(3, 2).device.type == "cuda"
    )
    assert ray_engine.cluster_place(6, 2, "cpu") == cpus
    for cpus, device, words in (
        (0, "auto", "no CPU"),
        (2, "cuda", "no GPU"),
        (2, "cuda:1", "Choices: auto, cpu, cuda"),
    ):
        with pytest.raises(KitError, match=words):
            ray_engine.cluster_place(cpus, 0, device)


# ----------------------------------------------------------------------------------------- with one


@pytest.fixture
def two_nodes(tmp_path, monkeypatch) -> Iterator:
    """A head and another node, of a CPU each, that nobody outside this machine can reach."""
    home = tmp_path / "nodes"
    for name, value in {**LOOPBACK, "KIT_HOME": str(home)}.items():
        monkeypatch.setenv(name, value)
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    words = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}

    def started() -> tuple[Cluster, Any]:
        nodes = Cluster(initialize_head=True, head_node_args=words)
        try:
            return nodes, nodes.add_node(**words)
        except BaseException:
            nodes.shutdown()
            raise

    nodes, other = in_tries(home, started)
    yield nodes, other
    nodes.shutdown()


def results(folder: Path) -> dict[str, Any]:
    """Of a run and its evaluations, bit for bit, but how long they took."""
    return {
        name: {key: value for key, value in found.items() if key != "seconds"}
        if isinstance(found, dict)
        else found
        for name, found in contents(folder).items()
    }


def company_of(folder: Path) -> str:
    """Runs of one company are one task here, and each node does one task at a time."""
    return resolve(RunSpec(**files.read_json(folder / "run.json")["spec"])).stack_key


def listening(home: Path) -> set[str]:
    """Where processes that work in `home` wait for connections: addresses in hexadecimal."""
    inodes = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"KIT_HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0"):
                inodes |= {os.readlink(link) for link in (process / "fd").iterdir()}
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {
        words[1].split(":")[0]
        for words in lines
        if words[3] == "0A" and f"socket:[{words[9]}]" in inodes
    }


@pytest.mark.slow
def test_a_lost_node(two_nodes, tmp_path):
    """One of two nodes is killed while both train: all is made, bit for bit as on one machine, what
    was finished is not touched, and only the kit speaks.
    """
    nodes, lost = two_nodes
    calm = reproduce(tmp_path / "calm", **LONG)
    words, errors = calm.communicate()
    assert calm.returncode == 0, words + errors

    home, finished, busy = tmp_path / "lost", {}, set()
    work = reproduce(home, "--on", "ray", "--address", nodes.address, **LONG)
    while work.poll() is None and not (finished and len(busy) == 2):
        there = folders(home).values()
        finished = {
            folder: (folder / "done.json").stat().st_mtime_ns for folder in there if is_done(folder)
        }
        busy = {
            company_of(folder)
            for folder in there
            if folder not in finished and (folder / "last.ckpt").exists()
        }
        time.sleep(0.02)
    assert work.poll() is None, work.communicate()
    nodes.remove_node(lost, allow_graceful=False)
    words, errors = work.communicate()
    assert work.returncode == 0, words + errors
    assert {f: (f / "done.json").stat().st_mtime_ns for f in finished} == finished
    assert (
        "[12/12]" in words and "FAILED" not in words and "raylet" not in words and errors == ""
    ), words + errors
    mine, theirs = folders(tmp_path / "calm"), folders(home)
    # six on digits, and six on the mixture, which notebook 05 trains itself
    assert mine.keys() == theirs.keys() and len(mine) == 12
    for name in mine:
        assert results(mine[name]) == results(theirs[name])


@pytest.mark.slow
def test_tasks_and_their_errors(fresh_home):
    """What fails in words fails once and in those words; what is killed is tried again."""
    pytest.importorskip("ray")
    ended, marks = {}, fresh_home

    def fine(value: float) -> float:
        return value

    def mark(name: str) -> int:
        with open(marks / name, "a") as file:
            file.write("x")
        return (marks / name).stat().st_size

    def refuse() -> float:
        mark("refused")
        raise KitError("no such thing")

    def die_once() -> float:
        if mark("died") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return 3.0

    tasks = {
        "fine": Task(fine, (1.0,)),
        "bad": Task(refuse),
        "killed": Task(die_once),
        "behind": Task(fine, (2.0,), after=frozenset({"bad"})),
    }
    with contextlib.ExitStack() as stack:
        cluster = ray_engine.join_cluster
        place = in_tries(fresh_home, lambda: stack.enter_context(cluster("local", 2)))
        assert place.slots == 2
        ray_engine.run_on_ray(
            tasks, place, lambda running: None, lambda name, *end: ended.__setitem__(name, end)
        )
    assert str(ended.pop("bad")[0]) == "no such thing" and (marks / "refused").read_text() == "x"
    assert ended == {"fine": (None, 1.0), "killed": (None, 3.0), "behind": (None, 2.0)}


@pytest.mark.slow
def test_ctrl_c(tmp_path):
    """Nobody outside this machine can connect; at Ctrl-C workers and Ray itself go, and the same
    command goes on there.
    """
    pytest.importorskip("ray")

    def started() -> subprocess.Popen:
        work = reproduce(tmp_path, "--on", "ray", "--address", "local", **{**LONG, "epochs": 400})
        wait_until(lambda: work.poll() is not None or any(tmp_path.rglob("epochs/0001.npz")))
        if work.poll() is not None:
            raise AssertionError("".join(work.communicate()))
        return work

    work = in_tries(tmp_path, started)
    assert any(tmp_path.rglob("epochs/0001.npz")), "it stands still"
    assert listening(tmp_path) == {"0100007F", "0000000000000000FFFF00000100007F"}
    os.killpg(work.pid, signal.SIGINT)
    _, errors = work.communicate(timeout=PATIENCE)
    assert (
        work.returncode == 130
        and "the same command goes on there" in errors
        and "Traceback" not in errors
    )
    assert wait_until(lambda: not alive(tmp_path)), "orphans"
    assert not any(tmp_path.rglob("done.json")), "they went before their work was done"
