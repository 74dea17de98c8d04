"""Speed against the plain way and other libraries, on the same networks and images. Not a test: run
it on a quiet machine.

    python -m kit bench [--rounds 5] [--images 500] [--threads 2] [--device cpu] [--only aa pgd20]
    [--as avx2] [--json FILE]

Each contestant runs in a process of its own, as its user would; a round runs all of them one after
the other, so that a ratio compares neighbours in time. The first of each work is what the others
are compared with. One that cannot run, as bf16 on a processor without it, is a row that says so.
`--as avx2` shows the processor as an older one, whose vectors are half as long, as most laptops'
are; a file has a row for each.

aa, pgd20, pgd100: attacks on the small convolutional network of tests/golden/autoattack (a third of
its MNIST images withstand AutoAttack at eps 0.25), against pyautoattack, torchattacks and foolbox
where they are installed. The result is robust accuracy; passes are images through the network,
forwards and backwards.

step-*: one PGD-10 training step on random images against the plain step of
tests/helpers/reference.py. The result is its loss; "bf16" has its attack in bf16, and "compiled"
compiles its passes, which takes half a minute first. many: one step of each of 40 LeNets. Beside
the seconds: the share of them that the attack takes, multiplications and additions a second as a
share of what one large product of fp32 matrices reaches here, and peak memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/autoattack/mnist.npz"
EPS = 0.25
SEED = 0


class Tally(list):
    """Counts that a network's copies share."""

    def __deepcopy__(self, memo: dict) -> Tally:
        return self


class Counted(nn.Module):
    """A network that counts the images that pass it and its copies, forwards and backwards."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.forwards, self.backwards = inner, Tally(), Tally()

    def forward(self, x: Tensor) -> Tensor:
        self.forwards.append(len(x))
        logits = self.inner(x)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self.backwards.append(len(gradient)))
        return logits


def network() -> nn.Module:
    arrays = np.load(GOLDEN)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    with torch.no_grad():
        for name, layer in zip(
            ("conv1", "conv2", "fc1", "fc2"), (net[0], net[2], net[5], net[7]), strict=True
        ):
            layer.weight.copy_(torch.from_numpy(arrays[f"param_{name}.weight"]))
            layer.bias.copy_(torch.from_numpy(arrays[f"param_{name}.bias"]))
    return net.eval().requires_grad_(False)


def images(count: int) -> tuple[Tensor, Tensor]:
    """The first MNIST test images:

    the 200 of the golden file, or as many as wanted where data/MNIST is there.
    """
    if count <= 200:
        arrays = np.load(GOLDEN)
        return torch.from_numpy(arrays["images_u8"][:count]) / 255, torch.from_numpy(
            arrays["labels"][:count]
        ).long()
    from kit.data.datasets import load_dataset

    test = load_dataset("mnist").test.take(slice(0, count))
    return test.x(), test.y


# -------------------------------------------------------------------------------------- contestants


def kit_attack(name: str, **settings: bool) -> Callable:
    """As `kit.evaluate` attacks a small network."""

    def contestant(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], float]:
        from kit.attacks.table import ATTACKS
        from kit.core.threat import Threat
        from kit.data.splits import Split
        from kit.evaluation.accuracy import measure_attack
        from kit.experiments.devices import threads_for

        split = Split((x * 255).round().to(torch.uint8), y, torch.arange(len(x), device=x.device))

        def call() -> float:
            with threads_for("cnn", x.device):
                broken = measure_attack(
                    net, split, Threat("linf", EPS), ATTACKS[name].but(**settings), seed=SEED
                )["broken"]
            return 1 - float(broken.mean())

        return call

    return contestant


def pyautoattack(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], float]:
    from pyautoattack import AutoAttack

    attack = AutoAttack(net, norm="Linf", eps=EPS, version="standard", device=x.device, seed=SEED)

    def call() -> float:
        x_adv = attack.run_standard_evaluation(x, y, batch_size=250)
        return right(net, x_adv[0] if isinstance(x_adv, tuple) else x_adv, y)

    return call


def torchattacks_pgd(steps: int) -> Callable:
    def contestant(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], float]:
        import torchattacks

        attack = torchattacks.PGD(net, eps=EPS, alpha=EPS / 10, steps=steps, random_start=True)
        return lambda: right(
            net,
            torch.cat([attack(a, b) for a, b in zip(x.split(256), y.split(256), strict=True)]),
            y,
        )

    return contestant


def foolbox_pgd(steps: int) -> Callable:
    def contestant(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], float]:
        import foolbox

        model = foolbox.PyTorchModel(net, bounds=(0, 1), device=x.device)
        attack = foolbox.attacks.LinfPGD(steps=steps, abs_stepsize=EPS / 10, random_start=True)

        def call() -> float:
            pieces = zip(x.split(256), y.split(256), strict=True)
            return 1 - float(
                torch.cat([attack(model, a, b, epsilons=EPS)[2] for a, b in pieces]).float().mean()
            )

        return call

    return contestant


def right(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


# ----------------------------------------------------------------------------------- training steps


def networks() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], int, int]]:
    """{work: (network, image shape, batch, steps timed in a process)}"""
    from kit.models import architectures

    wide = (3, 32, 32)
    return {
        "step-digits": (
            lambda: architectures.build_network("cnn", (1, 8, 8), 10),
            (1, 8, 8),
            64,
            20,
        ),
        "step-lenet": (
            lambda: architectures.build_network("lenet", (1, 28, 28), 10),
            (1, 28, 28),
            128,
            5,
        ),
        "step-resnet18-16": (
            lambda: architectures.resnet18(3, 32, 10, width=16).to(
                memory_format=torch.channels_last
            ),
            wide,
            128,
            3,
        ),
        "step-resnet18": (lambda: architectures.build_network("resnet18", wide, 10), wide, 32, 1),
    }


def as_written(net: nn.Module) -> nn.Module:
    """A network as it is usually written: channels first, and LeNet's ReLUs before its pools."""
    layers = list(net)
    for i in range(len(layers) - 1):
        if isinstance(layers[i], nn.MaxPool2d) and isinstance(layers[i + 1], nn.ReLU):
            layers[i : i + 2] = layers[i + 1], layers[i]
    return type(net)(*layers).to(memory_format=torch.contiguous_format)


def training_step(way: str) -> Callable:
    """A contestant: "plain", "kit", "bf16", "compiled" or "bf16 compiled". Small networks have one
    thread, as in `kit.run`; others all.
    """

    def contestant(work: str, threads: int, device: str) -> dict:
        from kit.core.random_streams import Streams
        from kit.experiments.recipes import RECIPES
        from kit.methods.table import METHODS
        from kit.training.precision import compile_network
        from tests.helpers import reference
        from tests.helpers.stepping import attacked_batch, take_step

        make, shape, batch, times = networks()[work]
        method, small = METHODS["at"], work in ("step-digits", "step-lenet")
        recipe = RECIPES["digits"].override(
            eps=8 / 255, precision="bf16" if "bf16" in way else "fp32"
        )
        torch.set_num_threads(1 if small else threads)
        torch.manual_seed(0)
        net, x, y = (
            make().to(device),
            torch.rand(batch, *shape).to(device),
            torch.randint(0, 10, (batch,)).to(device),
        )
        if way == "plain":
            net = as_written(net)
        if "compiled" in way:
            compile_network(net, x)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        streams = Streams(torch.arange(batch, device=device), 0)

        def take() -> float:
            if way == "plain":
                with reference.nothing_folded():
                    return float(
                        reference.plain_step(net, optimizer, method, recipe, x, y, streams)[0]
                    )
            return float(take_step(net, optimizer, method, recipe, x, y, streams).loss)

        def attack() -> None:
            if way == "plain":
                with reference.nothing_folded():
                    reference.attack(net.eval(), method.attack, method, recipe, x, y, streams, True)
            else:
                attacked_batch(net, method, recipe, x, y, streams)

        take()
        cpu = time.process_time()
        seconds, losses = zip(*(timed(take, device) for _ in range(times)), strict=True)
        cpu = (time.process_time() - cpu) / times
        attacked = statistics.median(timed(attack, device)[0] for _ in range(times))
        middle = statistics.median(seconds)
        passes = (
            2 * recipe.steps + 3
        ) * batch  # a backward pass for the input costs a forward one, for both two
        speed = 2 * multiplications(net, x[:1]) * passes / middle
        return {
            "seconds": middle,
            "cpu": cpu,
            "result": losses[0],
            "forwards": (recipe.steps + 1) * batch,
            "backwards": (recipe.steps + 1) * batch,
            "images a second": batch / middle,
            "attack": attacked / middle,
            "of the bound": speed / bound(device),
            "MiB": peak(device),
        }

    return contestant


def many_networks(way: str, count: int = 40, batch: int = 64) -> Callable:
    """A contestant:

    a step of each of `count` LeNets, "plain" or "kit" one after another, or as "run_many" does it.
    """

    def contestant(work: str, threads: int, device: str) -> dict:
        from kit.core.random_streams import Streams
        from kit.core.threads import run_in_threads
        from kit.experiments.recipes import RECIPES
        from kit.methods.table import METHODS
        from kit.models import architectures
        from kit.training.runner import STACKED_NETWORKS
        from kit.training.stacked_step import Learner, train_step_stacked
        from kit.training.step import Batch
        from tests.helpers import reference
        from tests.helpers.stepping import take_step

        recipe, method = RECIPES["mnist"].override(precision="fp32"), METHODS["at"]
        torch.manual_seed(0)
        nets = [
            architectures.build_network("lenet", (1, 28, 28), 10, seed=i).to(device)
            for i in range(count)
        ]
        nets = list(map(as_written, nets)) if way == "plain" else nets
        learners = [
            Learner(net, torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9), method, False)
            for net in nets
        ]
        x, y = torch.rand(batch, 1, 28, 28).to(device), torch.randint(0, 10, (batch,)).to(device)
        torch.set_num_threads(threads if way == "plain" else 1)

        def streams() -> Streams:
            return Streams(torch.arange(batch, device=device), 0)

        def together(some: list) -> list[float]:
            done = train_step_stacked(some, [Batch(x, y, streams()) for _ in some], recipe)
            return [float(each.loss) for each in done]

        def take() -> float:
            if way == "run_many":
                most = STACKED_NETWORKS[device]
                lists = [(learners[i : i + most],) for i in range(0, count, most)]
                losses = [
                    loss
                    for some in run_in_threads(together, lists, threads if device == "cpu" else 1)
                    for loss in some
                ]
                return sum(losses) / count
            one = (
                reference.plain_step
                if way == "plain"
                else lambda *words: (take_step(*words, reweighted=False).loss,)
            )
            return (
                sum(float(one(*learner[:3], recipe, x, y, streams())[0]) for learner in learners)
                / count
            )

        take()
        cpu = time.process_time()
        seconds, loss = timed(take, device)
        images = count * batch
        return {
            "seconds": seconds,
            "cpu": time.process_time() - cpu,
            "result": loss,
            "forwards": 11 * images,
            "backwards": 11 * images,
            "images a second": images / seconds,
            "MiB": peak(device),
        }

    return contestant


def timed(call: Callable[[], float], device: str) -> tuple[float, float]:
    started = time.perf_counter()
    answer = call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, answer


def multiplications(net: nn.Module, x: Tensor) -> int:
    """Of a forward pass of one image."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return counter.get_total_flops() // 2


def bound(device: str) -> float:
    """Additions and multiplications a second in a product of two fp32 matrices, on the threads that
    there are.
    """
    a = torch.rand(2048, 2048, device=device)
    return 2 * 2048**3 / min(timed(lambda: (a @ a)[0, 0].item(), device)[0] for _ in range(5))


def peak(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


#: {work: {contestant: (package, maker)}}; the first of each that is installed is what the others
#: are compared with.
ATTACKS: dict[str, dict[str, tuple[str, Callable]]] = {
    "aa": {"pyautoattack": ("pyautoattack", pyautoattack), "kit": ("kit", kit_attack("aa"))},
    **{
        f"pgd{steps}": {
            "torchattacks": ("torchattacks", torchattacks_pgd(steps)),
            "foolbox": ("foolbox", foolbox_pgd(steps)),
            "kit": ("kit", kit_attack(f"pgd{steps}", stop_early=True)),
        }
        for steps in (20, 100)
    },
}
STEPS: dict[str, dict[str, tuple[str, Callable]]] = {
    **{
        work: {way: ("kit", training_step(way)) for way in ("plain", "kit")}
        for work in ("step-digits", "step-lenet")
    },
    **{
        work: {
            way: ("kit", training_step(way))
            for way in ("plain", "kit", "bf16", "compiled", "bf16 compiled")
        }
        for work in ("step-resnet18-16", "step-resnet18")
    },
    "many": {way: ("kit", many_networks(way)) for way in ("plain", "kit", "run_many")},
}
WORK = ATTACKS | STEPS

#: {what the processor is shown as: the settings of PyTorch and oneDNN that do it}
SHOWN_AS: dict[str, dict[str, str]] = {
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}


# ----------------------------------------------------------------------------------------- the race


def one(work: str, contestant: str, count: int, threads: int, device: str) -> dict:
    """In a process of its own: set up, warm up, one timed call."""
    make = WORK[work][contestant][1]
    if work in STEPS:
        return make(work, threads, device)
    torch.set_num_threads(threads)
    x, y = (values.to(device) for values in images(count))
    make(network().to(device), x[:10], y[:10])()
    net = Counted(network().to(device)).eval()
    call = make(net, x, y)
    net.forwards.clear(), net.backwards.clear()
    cpu = time.process_time()
    seconds, robust = timed(call, device)
    return {
        "seconds": seconds,
        "cpu": time.process_time() - cpu,
        "result": robust,
        "forwards": sum(net.forwards),
        "backwards": sum(net.backwards),
        "images a second": count / seconds,
        "MiB": peak(device),
    }


def run_alone(
    work: str, name: str, count: int, threads: int, device: str, shown_as: str = "native"
) -> dict:
    """Run a contestant once, in a process of its own, on the processor as a row of `SHOWN_AS`.

    Returns what `one` does, or {"cannot": why} where it fails.
    """
    path = os.pathsep.join([str(ROOT), *sys.path[1:], os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        **SHOWN_AS[shown_as],
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PYTHONPATH": path,
    }
    words = [sys.executable, __file__, "--one", work, name, str(count), str(threads), device]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        return {"cannot": last.removeprefix("kit.core.errors.KitError: ")}
    return json.loads(done.stdout.splitlines()[-1])


def race(
    work: str, rounds: int, count: int, threads: int, device: str, shown_as: str = "native"
) -> list[dict]:
    """Let the contestants that are installed run in turn; returns a row of each.

    One that cannot run is left out of later rounds, and its row says why. The others are compared
    with the first that can.
    """
    results: dict[str, list[dict]] = {
        name: [] for name, (package, _) in WORK[work].items() if importlib.util.find_spec(package)
    }
    failures: dict[str, str] = {}
    for _ in range(rounds):
        for name in [name for name in results if name not in failures]:
            result = run_alone(work, name, count, threads, device, shown_as)
            if "cannot" in result:
                failures[name] = result["cannot"]
            results[name].append(result)
    leader = next((mine for name, mine in results.items() if name not in failures), [])
    rows = []
    for name, mine in results.items():
        row: dict = {"work": work, "who": name, "as": shown_as, "n": rounds}
        if name in failures:
            rows.append(row | {"cannot": failures[name]})
            continue
        pairs = zip(leader, mine, strict=True)
        ratios = [first["seconds"] / own["seconds"] for first, own in pairs]
        middle = {key: statistics.median(r[key] for r in mine) for key in mine[0]}
        spread = {"low": min(ratios), "high": max(ratios)}
        rows.append(row | middle | {"times": statistics.median(ratios)} | spread)
    return rows


def processor() -> str:
    """The processor's name, and the instructions that PyTorch uses of it."""
    name, information = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    for line in information.read_text().splitlines() if information.is_file() else ():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def markdown(record: dict) -> str:
    """The table of a record, for the README: seconds and shares are the native processor's."""
    machine, rows = record["machine"], record["rows"]
    columns = [name for name in SHOWN_AS if any(row["as"] == name for row in rows)]
    cells = {(row["work"], row["who"], row["as"]): row for row in rows}
    contestants = list(dict.fromkeys((row["work"], row["who"]) for row in rows))
    times = " | ".join(f"times as fast [min, max], {name}" for name in columns)
    lines = [
        f"| work | | seconds | {times} | result | images a second | attack's share "
        "| of the bound |",
        f"|---|---|---{'|---' * len(columns)}|---|---|---|---|",
    ]
    for work, who in contestants:
        mine = [cells.get((work, who, name)) for name in columns]
        first = next(row for row in mine if row is not None)
        if "cannot" in first:
            numbers = ["", *map(describe_ratio, mine), "", "", "", ""]
        else:
            shares = [f"{first[k]:.0%}" if k in first else "" for k in ("attack", "of the bound")]
            numbers = [
                f"{first['seconds']:.3g}",
                *map(describe_ratio, mine),
                f"{first['result']:.3f}",
                f"{first['images a second']:,.0f}",
                *shares,
            ]
        lines.append(f"| {work} | {who} | {' | '.join(numbers)} |")
    words = (
        f"{machine['date']}, torch {machine['torch']}, {machine['machine']} ({machine['device']})"
    )
    counts = " and ".join(str(n) for n in sorted({row["n"] for row in rows}))
    return "\n".join([*lines, "", f"{words}, {machine['threads']} threads; medians, n = {counts}."])


def describe(row: dict) -> str:
    """A line of a contestant, for the screen."""
    who = f"{row['work']:16} {row['who']:12}"
    if "cannot" in row:
        return f"{who} cannot run: {row['cannot']}"
    spread = f"{row['times']:.2f}x [{row['low']:.2f}, {row['high']:.2f}], {row['n']}"
    return (
        f"{who} {row['seconds']:8.3f} {row['cpu']:8.3f} {row['result']:7.3f} "
        f"{row['forwards']:10,} {row['backwards']:10,}  {spread}"
    )


def describe_ratio(row: dict | None) -> str:
    """How many times as fast a contestant is as the first, or why it cannot run."""
    if row is None:
        return ""
    if "cannot" in row:
        return f"cannot run: {row['cannot']}"
    return f"{row['times']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m kit bench", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", choices=list(WORK), default=list(WORK))
    parser.add_argument(
        "--as",
        dest="shown_as",
        choices=list(SHOWN_AS),
        default="native",
        help="what the processor is shown as",
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", action="store_true", help="print the README's table, too")
    words = parser.parse_args()
    name = torch.cuda.get_device_name() if words.device == "cuda" else processor()
    machine = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": words.device,
        "machine": name,
        "threads": words.threads,
        "images": words.images,
        "eps": EPS,
        "date": time.strftime("%Y-%m-%d"),
    }
    shown = {} if words.shown_as == "native" else {"shown as": words.shown_as}
    print(", ".join(f"{key} {value}" for key, value in (machine | shown).items()))
    print(
        f"{'work':16} {'who':12} {'seconds':>8} {'cpu':>8} {'result':>7} {'forwards':>10} "
        f"{'backwards':>10}  "
        "times as fast as the first, n"
    )
    rows: list[dict] = []
    if words.json and words.json.exists():
        before = json.loads(words.json.read_text())
        # what is not measured now keeps its rows, if they are of this very machine
        if before["machine"] | {"date": ""} == machine | {"date": ""}:
            rows = before["rows"]
    order = list(WORK), list(SHOWN_AS)
    for work in words.only:
        rows = [row for row in rows if (row["work"], row["as"]) != (work, words.shown_as)]
        rows += race(work, words.rounds, words.images, words.threads, words.device, words.shown_as)
        rows.sort(key=lambda row: (order[0].index(row["work"]), order[1].index(row["as"])))
        record = {"machine": machine, "rows": rows}
        if words.json:  # after each work, so that one that is stopped loses nothing
            words.json.write_text(json.dumps(record, indent=1) + "\n")
        for row in rows:
            if (row["work"], row["as"]) == (work, words.shown_as):
                print(describe(row), flush=True)
    if words.markdown:
        print(markdown(record))


if __name__ == "__main__":
    if "--one" in sys.argv:
        work, contestant, count, threads, device = sys.argv[2:]
        print(json.dumps(one(work, contestant, int(count), int(threads), device)))
    else:
        main()
