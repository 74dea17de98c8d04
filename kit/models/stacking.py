"""Several small networks of one kind as one program.

Their weights are side by side in grouped convolutions and batched products. Nothing is shared:
each network gets its own images, and its parameters stay its own, so optimizers, checkpoints and
regularisers need not know.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kit.core.errors import KitError
from kit.models.architectures import Normalise
from kit.models.input_gradients import input_convolution

#: Layers without parameters that treat every image and channel alike.
PARAMETER_FREE = (nn.ReLU, nn.MaxPool2d)


class StackedNetworks(nn.Module):
    """R networks of the same layers as one.

    It maps (R·N, C, H, W), the images of the first network first, to (R·N, K) logits. On a CPU
    grey images come out of networks without pools, and gradients with them, bit for bit as if each
    network were alone.

    Raises:
        KitError: The networks have a layer that cannot be stacked.
    """

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        layers = list(networks[0].children())
        self.pools = any(isinstance(layer, nn.MaxPool2d) for layer in layers)
        for layer in layers:
            if not isinstance(
                layer, (nn.Conv2d, nn.Linear, nn.Flatten, Normalise, *PARAMETER_FREE)
            ):
                raise KitError(f"networks with a {type(layer).__name__} are trained one by one")

    def forward(self, x: Tensor) -> Tensor:
        """(R·N, K) logits of images (R·N, C, H, W), the first network's first."""
        count = len(self.networks)
        n = len(x) // count
        h = x.view(count, n, *x.shape[1:]).transpose(0, 1).flatten(1, 2)  # (N, R·C, H, W)
        # pooling is many times faster with the channels last, 3x3 convolutions are not
        channels_last = self.pools or x.is_cuda
        h = h.contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )
        # a gradient of weights sums over images, in another order where networks are one product
        learns = not channels_last and any(p.requires_grad for p in self.parameters())
        for layers in zip(*self.networks, strict=True):
            layer = layers[0]
            grey = isinstance(layer, nn.Conv2d) and layer.in_channels == 1
            if learns and grey:
                images = (part.contiguous() for part in h.split(1, dim=1))
                h = torch.cat([each(x) for each, x in zip(layers, images, strict=True)], dim=1)
            elif learns and isinstance(layer, nn.Linear):
                h = torch.stack([each(part) for each, part in zip(layers, h, strict=True)])
            elif isinstance(layer, nn.Conv2d):
                weight, bias = (
                    torch.cat([getattr(each, name) for each in layers])
                    for name in ("weight", "bias")
                )
                h = input_convolution(
                    h, weight, bias, layer.stride, layer.padding, layer.dilation, count
                )
            elif isinstance(layer, nn.Flatten):
                h = h.reshape(n, count, -1).transpose(0, 1)  # (R, N, features)
            elif isinstance(layer, nn.Linear):
                weight, bias = (
                    torch.stack([getattr(each, name) for each in layers])
                    for name in ("weight", "bias")
                )
                h = torch.baddbmm(bias[:, None], h, weight.transpose(1, 2))
            elif isinstance(layer, Normalise):
                mean, std = (
                    torch.cat([getattr(each, name) for each in layers], dim=1)
                    for name in ("mean", "std")
                )
                h = (h - mean) / std
            else:
                h = layer(h)
        return h.reshape(count * n, -1)


def gains_by_stacking(network: nn.Module, device: torch.device) -> bool:
    """Say whether large batches pass faster through stacked networks than through one by one.

    They do on GPUs, and where networks pool.
    """
    return device.type != "cpu" or any(isinstance(m, nn.MaxPool2d) for m in network.modules())


def stack_networks(networks: Sequence[nn.Module]) -> nn.Module:
    """Stack the networks as one; a network that is alone is returned itself."""
    return networks[0] if len(networks) == 1 else StackedNetworks(networks)
