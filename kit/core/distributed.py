"""One network trained by several processes, on one machine or on many.

PyTorch's DistributedDataParallel connects them:

    torchrun --nproc-per-node 2 -m kit train vir-trades --recipe cifar10:paper

Each process attacks its share of every batch and passes it through the network. What the processes
computed is then gathered, so that every process has the criterion, weights and loss of the whole
batch, as in one process. The main process alone reads checkpoints and writes files. In one process
all of this does nothing.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kit.core.environment import launched_process
from kit.core.errors import KitError

#: The main process may wait long for a run that somebody else trains.
JOIN_TIMEOUT = timedelta(days=7)


@contextlib.contextmanager
def join_processes(device: str) -> Iterator[str]:
    """Join the processes that torchrun started, if it did, and yield the device of this one.

    Raises:
        KitError: torchrun started more processes than there are GPUs to train on, or `device` is
            neither "auto", "cpu" nor "cuda".
    """
    count, place = launched_process()
    if count == 1:
        yield device
        return
    gpus = torch.cuda.device_count()
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cuda":
        if place >= gpus:
            raise KitError(
                f"process {place + 1} of this machine has no GPU of its own: there are {gpus}; "
                f"start torchrun with --nproc-per-node {gpus or 1}, or pass --device cpu"
            )
        device = f"cuda:{place}"
        torch.cuda.set_device(place)
    elif device != "cpu":
        raise KitError(f"device={device} must be cpu or cuda where several processes train")
    own = torch.device(device) if device.startswith("cuda") else None
    dist.init_process_group("nccl" if own else "gloo", timeout=JOIN_TIMEOUT, device_id=own)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def process_count() -> int:
    """The number of processes that train together; 1 where torchrun started none."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Is this the main process, the one that reads checkpoints and writes files?"""
    return not dist.is_initialized() or dist.get_rank() == 0


def barrier() -> None:
    """Wait here until all processes have come."""
    if process_count() > 1:
        dist.barrier()


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block first: it downloads, and the others find the files."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def broadcast(value: Any, device: torch.device | str = "cpu") -> Any:
    """Return the main process's value in every process.

    `value`: tensors, which come to `device`, numbers, text, lists and dicts.
    """
    if process_count() == 1:
        return value
    buffer = io.BytesIO()
    torch.save(value if is_main() else None, buffer)
    box = [buffer.getvalue()]
    dist.broadcast_object_list(box)
    return torch.load(io.BytesIO(box[0]), map_location=device, weights_only=True)


# -------------------------------------------------------------------------------- a batch in shares


def own_rows(n: int) -> slice:
    """The rows of n that are this process's; shares differ by one row at most."""
    if process_count() == 1:
        return slice(0, n)
    return _split_rows(n)[dist.get_rank()]


def _split_rows(n: int) -> list[slice]:
    ends = [n * (i + 1) // process_count() for i in range(process_count())]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def gather(values: Tensor, n: int) -> Tensor:
    """Gather the shares of all processes, in order, as one tensor (n, ...).

    A gradient reaches this process's rows alone, `process_count()` times as large. The mean over
    processes, which DistributedDataParallel takes, is then the gradient of the whole batch.
    """
    if process_count() == 1:
        return values
    shares = _split_rows(n)
    padded = values.new_zeros(max(rows.stop - rows.start for rows in shares), *values.shape[1:])
    padded[: len(values)] = values.detach()
    gathered = [torch.empty_like(padded) for _ in shares]
    dist.all_gather(gathered, padded)
    parts = [each[: rows.stop - rows.start] for each, rows in zip(gathered, shares, strict=True)]
    if values.requires_grad:
        parts[dist.get_rank()] = mine = values.clone()
        mine.register_hook(lambda gradient: gradient * process_count())
    return torch.cat(parts)


# -------------------------------------------------------------------------------------- one network


def wrap_distributed(model: nn.Module) -> nn.Module:
    """Wrap the network in DistributedDataParallel.

    It averages the network's gradients in every backward pass. Batch norms use each process's
    images; their running statistics are averaged by `average_tensors`.
    """
    if process_count() == 1:
        return model
    with warnings.catch_warnings():
        # newer versions have another name for it, older ones do not
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False)


def unwrap_distributed(network: nn.Module) -> nn.Module:
    """The network without DistributedDataParallel.

    It is for passes whose gradients are not the parameters'.
    """
    return network.module if isinstance(network, DistributedDataParallel) else network


def average_tensors(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Replace each tensor by its mean over processes, in place, and return the tensors.

    Whole numbers are left alone.
    """
    if process_count() > 1:
        for tensor in filter(torch.is_floating_point, tensors):
            dist.all_reduce(tensor)
            tensor /= process_count()
    return tensors
