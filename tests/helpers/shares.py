"""What test_processes.py has torchrun start.

shares.py steps OUT               two steps of every method in float64; OUT, an .npz, gets of each
                                  its parameters and buffers, and what the last step saw
shares.py until EPOCH train ...   a command of the kit whose processes all die once that epoch is
                                  saved
"""

from __future__ import annotations

import os
import sys

import numpy as np
import torch

from kit.core import distributed
from kit.core.random_streams import Streams
from kit.experiments.recipes import RECIPES
from kit.jobs.command_line import main
from kit.methods.table import METHODS
from kit.models import architectures
from kit.training import distributed_loop
from kit.training.distributed_step import train_step_distributed
from kit.training.loop import attack_ahead
from kit.training.step import Batch
from tests.helpers.stepping import step_of

BATCH = 21  # not even, so that shares differ


def states(
    names: list[str], model: str = "cnn", size: int = 8, channels: int = 1
) -> dict[str, np.ndarray]:
    recipe, found = RECIPES["digits"].override(steps=3, eps=0.1), {}
    for name in names:
        draw = torch.Generator().manual_seed(0)
        net = architectures.build_network(model, (channels, size, size), 10, seed=1).double()
        method = METHODS[name].at(30, 40)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        several = distributed.process_count() > 1
        take_step = train_step_distributed if several else step_of(method)
        wrapped = distributed.wrap_distributed(net)
        for number in range(2):
            x = torch.rand(BATCH, channels, size, size, generator=draw, dtype=torch.float64)
            y = torch.randint(0, 10, (BATCH,), generator=draw)
            stages = method.stages(30, 40)
            batches = [Batch(x, y, Streams(torch.arange(BATCH), number)) for _ in stages]
            if method.attacks_first:
                batches = attack_ahead(wrapped, method, stages, batches, recipe, reweight=False)
            for attacked, batch in zip(stages, batches, strict=True):
                done = take_step(
                    wrapped,
                    optimizer,
                    method,
                    batch,
                    recipe,
                    adversarial=attacked,
                    reweight=METHODS[name].reweights,
                )
        found |= {f"{name} {key}": value.numpy() for key, value in net.state_dict().items()}
        found |= {
            f"{name} loss": done.loss.numpy(),
            f"{name} weights": done.weights.numpy(),
            f"{name} logits": done.outputs.logits_adv.detach().numpy(),
        }
        if done.outputs.kappa is not None:
            found |= {
                f"{name} kappa": done.outputs.kappa.numpy(),
                f"{name} lps": done.outputs.lps.numpy(),
            }
    return found


def main_steps(out: str) -> None:
    with distributed.join_processes("cpu"):
        mine = states(list(METHODS)) | {
            f"norms {key}": v for key, v in states(["trades-awp"], "resnet18", 8, 3).items()
        }
        for name, values in mine.items():  # all processes end with the same network
            theirs = distributed.broadcast(torch.from_numpy(values)).numpy()
            np.testing.assert_array_equal(values, theirs, err_msg=name)
        if distributed.is_main():
            np.savez(out, **mine)


def main_until(epoch: int, words: list[str]) -> None:
    save_epoch = distributed_loop.save_epoch

    def save_and_die(state, kept):
        save_epoch(state, kept)
        if state.epoch == epoch:
            os._exit(9)

    distributed_loop.save_epoch = save_and_die
    main(words)


if __name__ == "__main__":
    main_steps(sys.argv[2]) if sys.argv[1] == "steps" else main_until(
        int(sys.argv[2]), sys.argv[3:]
    )
