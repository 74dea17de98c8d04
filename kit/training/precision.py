"""How a network computes in training: its attack's number format, and whether it is compiled.

The format is that of the attack's passes; the update is always fp32. run.json says which it was
where a recipe leaves it to the device. Compiling changes roundings only, so it is no part of a
run's settings; run.json has both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kit.core.errors import KitError


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return fp32 or bf16 for `precision` on a device.

    auto is bf16 on GPUs that have it; fastest is bf16 on processors, too, whose vector units
    multiply in it. Elsewhere both are fp32. Roundings turn the signs of many small gradients:
    x_adv differs, and is hardly weaker.

    Raises:
        KitError: bf16 is asked for, and the device does not compute it.
    """
    there = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "cpu": lambda: (
            torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        ),
    }.get(device.type, lambda: False)()
    if precision == "bf16" and not there:
        raise KitError(
            f"precision=bf16: this {device.type} computes no bf16; take precision=fp32, or auto"
        )
    if precision == "auto":
        return "bf16" if there and device.type == "cuda" else "fp32"
    if precision == "fastest" and device.type == "cpu":  # others emulate it, which is slower
        there = there and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "bf16" if there and precision != "fp32" else "fp32"


@contextmanager
def attack_precision(precision: str, model: nn.Module, device: torch.device) -> Iterator[None]:
    """Compute the network's convolutions and products, inside, in the chosen format.

    Logits have the images' type.
    """
    if resolve_precision(precision, device) == "fp32":
        yield
        return
    handle = model.register_forward_hook(lambda _, images, logits: logits.to(images[0].dtype))
    try:
        with torch.autocast(device.type, torch.bfloat16):
            yield
    finally:
        handle.remove()


def compile_network(model: nn.Module, x: Tensor) -> bool:
    """Compile the network's passes where it is, for batches like `x` (N, C, H, W).

    Returns whether it could be. Where it cannot be, one line says why, and it computes as before.
    It takes half a minute, so it pays for long runs of deep networks.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        # each batch size, mode and set of gradients is a program of its own
        torch._dynamo.config.recompile_limit = 64
        model.compile(dynamic=False)
        with torch.no_grad():
            model.eval()(x)
    except Exception as error:  # whatever a compiler may raise
        model._compiled_call_impl = None
        print(
            f"WARNING: the network is not compiled: {type(error).__name__}: "
            f"{str(error).splitlines()[0]}",
            flush=True,
        )
        return False
    finally:
        for module, training in modes:
            module.training = training
    return True
