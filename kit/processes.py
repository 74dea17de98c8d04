"""One network trained by several processes, of one machine or many, with PyTorch's DistributedDataParallel.

    torchrun --nproc-per-node 2 -m kit train vir-trades --recipe cifar10:paper

Each process attacks and passes its share of every batch. What was seen is then put together again, so that criterion,
weights and loss are those of the whole batch, as in one process, and every process has them. The first process leads: it
alone reads checkpoints and writes files. In one process all of this does nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kit.types import KitError, Seen

#: A leader may wait long for a run that somebody else trains.
PATIENCE = timedelta(days=7)


@contextlib.contextmanager
def joined(device: str) -> Iterator[str]:
    """Join the processes that torchrun started, if it did. -> the device of this one.

    `KitError` where torchrun started more processes than there are GPUs to train on.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    place, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cuda":
        if place >= gpus:
            raise KitError(f"process {place + 1} of this machine has no GPU of its own: there are {gpus}; start torchrun "
                           f"with --nproc-per-node {gpus or 1}, or pass --device cpu")
        device = f"cuda:{place}"
        torch.cuda.set_device(place)
    elif device != "cpu":
        raise KitError(f"device={device}: several processes train on cpu or cuda")
    own = torch.device(device) if device.startswith("cuda") else None
    dist.init_process_group("nccl" if own else "gloo", timeout=PATIENCE, device_id=own)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def leads() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def meet() -> None:
    """Wait here until all processes have come."""
    if count() > 1:
        dist.barrier()


@contextlib.contextmanager
def leader_first() -> Iterator[None]:
    """The leader goes through the block before the others: it downloads, they find the files."""
    if not leads():
        meet()
    yield
    if leads():
        meet()


def agreed(value: Any, device: torch.device | str = "cpu") -> Any:
    """The leader's value in every process: tensors, which come to `device`, numbers, text, lists and dicts."""
    if count() == 1:
        return value
    buffer = io.BytesIO()
    torch.save(value if leads() else None, buffer)
    box = [buffer.getvalue()]
    dist.broadcast_object_list(box)
    return torch.load(io.BytesIO(box[0]), map_location=device, weights_only=True)


# ---------------------------------------------------------------------------------------------- a batch in shares

def share(n: int) -> slice:
    """The rows of n that are this process's; shares differ by one row at most."""
    if count() == 1:
        return slice(0, n)
    return _shares(n)[dist.get_rank()]


def _shares(n: int) -> list[slice]:
    ends = [n * (i + 1) // count() for i in range(count())]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def whole(values: Tensor, n: int) -> Tensor:
    """(n, ...) of all processes from each one's share, in order.

    A gradient reaches this process's rows alone, `count()` times as large: the mean over processes, which
    DistributedDataParallel takes, is then the gradient of the whole batch.
    """
    if count() == 1:
        return values
    shares = _shares(n)
    padded = values.new_zeros(max(rows.stop - rows.start for rows in shares), *values.shape[1:])
    padded[:len(values)] = values.detach()
    gathered = [torch.empty_like(padded) for _ in shares]
    dist.all_gather(gathered, padded)
    parts = [each[:rows.stop - rows.start] for each, rows in zip(gathered, shares, strict=True)]
    if values.requires_grad:
        parts[dist.get_rank()] = mine = values.clone()
        mine.register_hook(lambda gradient: gradient * count())
    return torch.cat(parts)


def whole_view(seen: Seen, n: int) -> Seen:
    """What all processes together saw of a batch of n."""
    if count() == 1:
        return seen
    fields = {f.name: getattr(seen, f.name) for f in dataclasses.fields(seen)}
    fields = {name: whole(value, n) if isinstance(value, Tensor) else value for name, value in fields.items()}
    return Seen(**fields | {"streams": seen.streams.of(whole(seen.streams.ids, n))})


# ---------------------------------------------------------------------------------------------- one network

def spread(model: nn.Module) -> nn.Module:
    """The network behind DistributedDataParallel, which averages its gradients in every backward pass. Batch norms use each
    process's images; their running statistics are averaged by `average`."""
    if count() == 1:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)      # newer versions have another name for it, older ones do not
        return DistributedDataParallel(model, broadcast_buffers=False)


def bare(network: nn.Module) -> nn.Module:
    """Without DistributedDataParallel: for passes whose gradients are not the parameters'."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def average(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Each tensor's mean over processes, in place; whole numbers are left alone. -> tensors."""
    if count() > 1:
        for tensor in filter(torch.is_floating_point, tensors):
            dist.all_reduce(tensor)
            tensor /= count()
    return tensors
