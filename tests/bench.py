"""Speed against other libraries, on the same network and images. Not a test: run it on a quiet machine.

    python tests/bench.py [--rounds 5] [--images 500] [--threads 2] [--device cpu] [--only aa pgd20] [--json FILE]

Each contestant runs in a process of its own, as its user would; a round runs all of them one after the other, so that a
ratio compares neighbours in time. pyautoattack, torchattacks and foolbox take part where they are installed. The network is
the small convolutional one of tests/golden/autoattack (a third of its MNIST images withstand AutoAttack at eps 0.25).
Robust accuracy, and images passed forwards and backwards through the network, stand beside the seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden/autoattack/mnist.npz"
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
    net = nn.Sequential(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
                        nn.Linear(1568, 64), nn.ReLU(), nn.Linear(64, 10))
    with torch.no_grad():
        for name, layer in zip(("conv1", "conv2", "fc1", "fc2"), (net[0], net[2], net[5], net[7]), strict=True):
            layer.weight.copy_(torch.from_numpy(arrays[f"param_{name}.weight"]))
            layer.bias.copy_(torch.from_numpy(arrays[f"param_{name}.bias"]))
    return net.eval().requires_grad_(False)


def images(count: int) -> tuple[Tensor, Tensor]:
    """The first MNIST test images: the 200 of the golden file, or as many as wanted where data/MNIST is there."""
    if count <= 200:
        arrays = np.load(GOLDEN)
        return torch.from_numpy(arrays["images_u8"][:count]) / 255, torch.from_numpy(arrays["labels"][:count]).long()
    from kit.data import load
    test = load("mnist").test.take(slice(0, count))
    return test.x(), test.y


# ---------------------------------------------------------------------------------------------- contestants

def kit_attack(name: str, **settings: bool) -> Callable:
    """As `kit.evaluate` attacks a small network."""
    def contestant(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], float]:
        from kit.attacks import ATTACKS
        from kit.data import Split
        from kit.evaluate import measure
        from kit.runs import threads_for
        from kit.types import Threat
        split = Split((x * 255).round().to(torch.uint8), y, torch.arange(len(x), device=x.device))

        def call() -> float:
            with threads_for("cnn", x.device):
                broken = measure(net, split, Threat("linf", EPS), ATTACKS[name].but(**settings), seed=SEED)["broken"]
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
        return lambda: right(net, torch.cat([attack(a, b) for a, b in zip(x.split(256), y.split(256), strict=True)]), y)
    return contestant


def foolbox_pgd(steps: int) -> Callable:
    def contestant(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], float]:
        import foolbox
        model = foolbox.PyTorchModel(net, bounds=(0, 1), device=x.device)
        attack = foolbox.attacks.LinfPGD(steps=steps, abs_stepsize=EPS / 10, random_start=True)

        def call() -> float:
            pieces = zip(x.split(256), y.split(256), strict=True)
            return 1 - float(torch.cat([attack(model, a, b, epsilons=EPS)[2] for a, b in pieces]).float().mean())
        return call
    return contestant


def right(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


#: {work: {contestant: (package, maker)}}; the kit is the first of each.
WORK: dict[str, dict[str, tuple[str, Callable]]] = {
    "aa": {"kit": ("kit", kit_attack("aa")), "pyautoattack": ("pyautoattack", pyautoattack)},
    **{f"pgd{steps}": {"kit": ("kit", kit_attack(f"pgd{steps}", stop_early=True)),
                       "torchattacks": ("torchattacks", torchattacks_pgd(steps)),
                       "foolbox": ("foolbox", foolbox_pgd(steps))} for steps in (20, 100)},
}


# ---------------------------------------------------------------------------------------------- the race

def one(work: str, contestant: str, count: int, threads: int, device: str) -> dict:
    """In a process of its own: set up, a small warm-up, one timed call."""
    torch.set_num_threads(threads)
    x, y = (values.to(device) for values in images(count))
    make = WORK[work][contestant][1]
    make(network().to(device), x[:10], y[:10])()
    net = Counted(network().to(device)).eval()
    call = make(net, x, y)
    if device == "cuda":
        torch.cuda.synchronize()
    net.forwards.clear(), net.backwards.clear()
    started, cpu = time.perf_counter(), time.process_time()
    robust = call()
    if device == "cuda":
        torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu, "robust": robust,
            "forwards": sum(net.forwards), "backwards": sum(net.backwards)}


def race(work: str, rounds: int, count: int, threads: int, device: str) -> list[dict]:
    present = [name for name, (package, _) in WORK[work].items() if importlib.util.find_spec(package)]
    results: dict[str, list[dict]] = {name: [] for name in present}
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    for _ in range(rounds):
        for name in present:
            words = [sys.executable, __file__, "--one", work, name, str(count), str(threads), device]
            done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name} failed at {work}:\n{done.stderr[-2000:]}")
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
    kit, rows = results["kit"], []
    for name, mine in results.items():
        ratios = [other["seconds"] / own["seconds"] for other, own in zip(mine, kit, strict=True)]
        rows.append({"work": work, "who": name, "n": rounds,
                     **{key: statistics.median(r[key] for r in mine) for key in mine[0]},
                     "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", choices=list(WORK), default=list(WORK))
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    name = torch.cuda.get_device_name() if words.device == "cuda" else platform.processor() or platform.machine()
    machine = {"torch": torch.__version__, "python": platform.python_version(), "device": words.device, "machine": name,
               "threads": words.threads, "images": words.images, "eps": EPS, "date": time.strftime("%Y-%m-%d")}
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"{'work':8} {'who':14} {'seconds':>8} {'cpu':>8} {'robust':>7} {'forwards':>10} {'backwards':>10}  "
          "times the kit's seconds, n")
    rows = []
    for work in words.only:
        for row in race(work, words.rounds, words.images, words.threads, words.device):
            rows.append(row)
            spread = f"{row['ratio']:.2f}x [{row['low']:.2f}, {row['high']:.2f}], {row['n']}"
            print(f"{work:8} {row['who']:14} {row['seconds']:8.2f} {row['cpu']:8.2f} {row['robust']:7.3f} "
                  f"{row['forwards']:10,} {row['backwards']:10,}  {spread}", flush=True)
    if words.json:
        words.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    if "--one" in sys.argv:
        work, contestant, count, threads, device = sys.argv[2:]
        print(json.dumps(one(work, contestant, int(count), int(threads), device)))
    else:
        main()
