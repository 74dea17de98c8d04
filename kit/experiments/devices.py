"""Where a run computes: its device, and the threads of this process."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import torch

from kit.core.errors import KitError
from kit.core.memory import freed_memory_kept
from kit.models.architectures import SMALL


def pick_device(name: str = "auto") -> torch.device:
    """Pick the device of that name.

    auto is CUDA where there is one, then Apple's MPS, then the CPU.

    Raises:
        KitError: The name is unknown, or this machine has no such device.
    """
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if there[kind]))
    kind = name.split(":")[0]
    if kind not in there:
        raise KitError(f"there is no device '{name}'. Choices: auto, cpu, cuda, mps")
    if not there[kind]:
        raise KitError(
            f"device={name}: this machine has no {kind} that PyTorch can use; take cpu or auto"
        )
    return torch.device(name)


class DeviceLost(KitError):
    """The device does not answer any more, and this process cannot have it back."""


@contextlib.contextmanager
def lost_device_told() -> Iterator[None]:
    """Within, what PyTorch raises of a device that is lost becomes one sentence.

    Raises:
        DeviceLost: The device was lost.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        first = str(error).partition("\n")[0].strip()
        # Of older versions of PyTorch the message alone tells.
        of_device = isinstance(error, getattr(torch, "AcceleratorError", ()))
        if not (of_device or first.startswith("CUDA error")):
            raise
        raise DeviceLost(
            f"the device was lost in mid-run ({first}). Finished epochs and evaluations are kept; "
            "the same command goes on there once the device is back, or with --device cpu"
        ) from error


@contextlib.contextmanager
def threads_for(model_name: str, device: torch.device) -> Iterator[None]:
    """Compute small networks on one thread inside, where they run fastest.

    Then their results do not depend on how many threads there are. See `spare_threads`. Freed
    memory is kept for the next pass.
    """
    before = torch.get_num_threads()
    alone = device.type == "cpu" and model_name in SMALL
    token = _SPARE_THREADS.set(max(before, _SPARE_THREADS.get()) if alone else 1)
    if alone:
        torch.set_num_threads(1)
    try:
        with freed_memory_kept():
            yield
    finally:
        _SPARE_THREADS.reset(token)
        torch.set_num_threads(before)


_SPARE_THREADS: contextvars.ContextVar[int] = contextvars.ContextVar("spare_threads", default=1)


def spare_threads() -> int:
    """Return how many threads may work side by side.

    That is as many as PyTorch had where `threads_for` took it down to one, else 1.
    """
    return _SPARE_THREADS.get()
