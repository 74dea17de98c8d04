"""TODO training.distributed_step."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from kit.core.distributed import gather, process_count
from kit.methods.step_outputs import StepOutputs


def gather_outputs(outputs: StepOutputs, n: int) -> StepOutputs:
    """What all processes together saw of a batch of n."""
    if process_count() == 1:
        return outputs
    fields = {f.name: getattr(outputs, f.name) for f in dataclasses.fields(outputs)}
    fields = {
        name: gather(value, n) if isinstance(value, Tensor) else value
        for name, value in fields.items()
    }
    return StepOutputs(**fields | {"streams": outputs.streams.of(gather(outputs.streams.ids, n))})
