"""Random numbers that depend on a name and an example's id alone, never on batch or order."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kit.core.errors import KitError

# --------------------------------------------------------------------------------------- randomness


def derive_seed(*parts: object) -> int:
    """Derive a 63-bit seed from anything printable.

    The same words give the same stream on every machine.
    """
    digest = hashlib.sha256("\0".join(map(str, parts)).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def named_generator(*parts: object) -> torch.Generator:
    """A CPU random stream named by `parts`, say (seed, "order", epoch)."""
    return torch.Generator().manual_seed(derive_seed(*parts))


#: Odd multipliers that spread ids and places over 64 bits, as int64.
PER_EXAMPLE, PER_PLACE = 0x9E3779B97F4A7C15 - 2**64, 0xD1B54A32D192ED03 - 2**64

#: Shifts and multipliers of the finaliser of SplitMix64, as int64.
ROUNDS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


def _mix(bits: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014) on int64 tensors; products wrap."""
    for shift, factor in ROUNDS:
        bits = (bits ^ ((bits >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return bits ^ ((bits >> 31) & ((1 << 33) - 1))


class Streams:
    """One random stream per example: what an example draws depends on its id alone.

    Batch size, batch mates, order and device do not matter. Each call draws anew. `ids` is (N,)
    int64.
    """

    def __init__(self, ids: Tensor, *parts: object):
        self.ids, self.parts, self.draws = ids, parts, 0

    def uniform(self, like: Tensor) -> Tensor:
        """Draw U[0, 1) in the shape and dtype of `like` (N, ...), 24 bits each.

        Raises:
            KitError: There are more or fewer ids than examples.
        """
        if len(like) != len(self.ids):
            raise KitError(f"{len(self.ids)} example ids cannot seed a batch of {len(like)}")
        width = math.prod(like.shape[1:])
        self.draws += 1
        start = derive_seed(*self.parts, self.draws)  # 63 bits: fits
        ids = self.ids.to(like.device)
        per_example = _mix(ids * PER_EXAMPLE + start)
        place = torch.arange(1, width + 1, device=like.device) * PER_PLACE
        bits = _mix(per_example[:, None] + place[None, :])
        return (((bits >> 40) & 0xFFFFFF).to(like.dtype) / (1 << 24)).view(like.shape)

    def of(self, ids: Tensor) -> Streams:
        """The same streams, as far as they have been drawn from, of other examples."""
        streams = Streams(ids, *self.parts)
        streams.draws = self.draws
        return streams

    def normal(self, like: Tensor) -> Tensor:
        """Draw N(0, 1) in the shape of `like`, by Box and Muller."""
        radius = (-2 * torch.log1p(-self.uniform(like))).sqrt()
        return radius * torch.cos(2 * math.pi * self.uniform(like))


class JoinedStreams(Streams):
    """The streams of several batches that go through a program as one.

    The first batch's examples come first.
    """

    def __init__(self, several: Sequence[Streams]):
        self.several, self.ids = several, torch.cat([streams.ids for streams in several])

    def uniform(self, like: Tensor) -> Tensor:
        """Draw U[0, 1) like `like` (N, ...), each batch's part from its own streams."""
        parts = like.split([len(streams.ids) for streams in self.several])
        return torch.cat(
            [streams.uniform(part) for streams, part in zip(self.several, parts, strict=True)]
        )


class GeneratorStreams(Streams):
    """A torch generator in the place of streams: what an example draws depends on its batch."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def uniform(self, like: Tensor) -> Tensor:
        """Draw U[0, 1) in the shape and dtype of `like` (N, ...)."""
        return self._draw(torch.rand, like)

    def normal(self, like: Tensor) -> Tensor:
        """Draw N(0, 1) in the shape and dtype of `like` (N, ...)."""
        return self._draw(torch.randn, like)

    def _draw(self, sample: Callable[..., Tensor], like: Tensor) -> Tensor:
        device = self.generator.device
        drawn = sample(like.shape, generator=self.generator, device=device, dtype=like.dtype)
        return drawn.to(like.device)


def streams_of(source: Streams | torch.Generator | None, like: Tensor) -> Streams:
    """Return what the batch `like` (N, ...) draws from: streams, or a generator in their place.

    Without a source they are numbered by place in the batch. torch's global random state is never
    drawn from: two calls without a source draw the same.
    """
    if isinstance(source, torch.Generator):
        return GeneratorStreams(source)
    if source is not None:
        return source
    return Streams(torch.arange(len(like), device=like.device), "noise")
