"""Random crops and mirror images, for a whole batch at once."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.core.random_streams import Streams

# ------------------------------------------------------------------------------------- augmentation

Augment = Literal["none", "crop", "crop-flip"]


def augment(x: Tensor, which: Augment, streams: Streams) -> Tensor:
    """Crop each image at random from itself padded by 4 black pixels, and mirror it at random.

    It is done for a whole batch at once. What happens to an image depends on its id and the
    stream's name alone. x (N, C, H, W).
    """
    if which == "none":
        return x
    n, _, height, width = x.shape
    dice = streams.uniform(x.new_empty(n, 3))
    padded = F.pad(x, (4, 4, 4, 4))
    top, left = ((dice[:, i, None] * 9).long() for i in (0, 1))
    rows = top + torch.arange(height, device=x.device)
    columns = left + torch.arange(width, device=x.device)
    if which == "crop-flip":
        columns = columns.flip(1).where(dice[:, 2, None] < 0.5, columns)
    picks = torch.arange(n, device=x.device)[:, None, None]
    return padded[picks, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
