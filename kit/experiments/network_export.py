"""A run's network for people without the kit: plain weights, and a few lines that define it."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from kit.core.errors import KitError
from kit.core.files import write_bytes
from kit.experiments.runs import Run
from kit.models.plain_definition import plain_definition

#: Test images on which both give their logits.
COMPARED_IMAGES = 16


def export_network(run: Run, folder: Path | str, which: str | int = "last") -> list[Path]:
    """Write weights.pt and network.py into `folder`; `network.load()` needs PyTorch alone.

    A network of torchvision or timm needs that package, too. Before anything is written the
    definition is run, and its logits on test images are compared with the run's. `which` is as in
    `Run.model`.

    Returns:
        The two paths.

    Raises:
        KitError: The network is defined by code of its own, or a file cannot be written.
    """
    folder, model = Path(folder), run.model(which)
    data, title = run.data(), f"{run.spec}: a network of irat-kit, without it."
    source = plain_definition(model, run.plan.recipe.model, data.shape, len(data.classes), title)
    names: dict = {"__file__": str(folder / "network.py")}
    exec(compile(source, "network.py", "exec"), names)
    plain = names["build"]()
    plain.load_state_dict(model.state_dict())
    x = data.test.x(slice(0, COMPARED_IMAGES))
    with torch.no_grad():
        ours, theirs = model(x), plain.eval()(x)
    if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4):
        raise KitError(
            f"{run.spec}: the plain definition gives other logits than the network, by up to "
            f"{float((ours - theirs).abs().max()):.2g}; nothing was written"
        )
    buffer = io.BytesIO()
    torch.save({name: value.contiguous() for name, value in model.state_dict().items()}, buffer)
    paths = [folder / "weights.pt", folder / "network.py"]
    for path, content in zip(paths, (buffer.getvalue(), source.encode()), strict=True):
        write_bytes(path, content)
    return paths
