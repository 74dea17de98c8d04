"""Square attack: random search over square windows, by the network's answers alone."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

from kit import functional as f
from kit.attacks.oracle import AttackResult, oracle
from kit.types import Count, KitError, Share, Streams, Threat, check_value, draw

#: After each of these queries the windows' share of the image is halved (Andriushchenko et al., 2020, for 10,000 queries).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)

#: Random numbers are drawn for so many queries at once.
BLOCK = 64


def square(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, generator: Streams | None = None,
           validate: bool = True, queries: Count = 5000, share: Share = 0.8) -> AttackResult:
    """Square attack (Andriushchenko et al., 2020, Algorithms 1 to 3) on the margin z_y - max_{j≠y} z_j; no gradients.

    From a random start (L-inf: vertical stripes of ±eps; L2: a grid of bumps) `queries` proposals, each of which changes a
    square window that covers `share` of the image at first (see `window_side`) and is taken where it lowers the margin. An
    example leaves where it breaks. x (N, C, H, W) in [0, 1], y (N,) int64. The defaults are auto-attack's, whose schedule of
    windows is not rescaled to `queries`.

    Each example has windows and signs of its own, drawn from its own stream; in auto-attack's code all images of a batch
    share one window a query. Windows reach the last row and column as the paper has it; the code's never do.
    Errors: `KitError` for settings out of range or images that are not (N, C, H, W), and those of `check_inputs`.
    """
    check_value("queries", queries, Count)
    check_value("share", share, Share)
    if x.dim() != 4:
        raise KitError(f"images have shape {tuple(x.shape)}; Square needs (N, C, H, W), for its windows have two sides")
    with oracle(model, x, y, threat, validate=validate) as look:
        streams, rows = look.streams(generator, "square"), look.unbroken()
        best_x = (stripes if threat.norm == "linf" else bumps)(x, threat, streams)[rows]
        propose = repaint if threat.norm == "linf" else shift_mass
        best = look.margins(best_x, rows)
        for query in range(queries):
            if query % BLOCK == 0:      # drawn for every example, that none may see what became of its mates
                drawn = draw(streams, "uniform", x.new_empty(len(x), BLOCK, 5 + x.shape[1]))[rows]
            on = ~look.broken[rows]
            if not bool(on.all()):
                rows, best_x, best, drawn = rows[on], best_x[on], best[on], drawn[on]
            if not len(rows):
                break
            tried = propose(best_x, x[rows], window_side(query, x, share), drawn[:, query % BLOCK], threat.eps)
            margin = look.margins(tried, rows)
            lower = margin < best
            best = margin.where(lower, best)
            best_x[lower] = tried[lower]
        return look.result("square")


def window_side(query: int, x: Tensor, share: float) -> int:
    """The side in pixels of the windows of proposal 0, 1, ...: they cover `share` of the image, halved at `HALVINGS`."""
    height, width = x.shape[2:]
    covered = share / 2 ** sum(query > edge for edge in HALVINGS)
    return min(max(round(math.sqrt(covered * height * width)), 1), height, width)


def window_at(x: Tensor, side: int, u_row: Tensor, u_column: Tensor) -> tuple[Tensor, ...]:
    """Indices of a window (n, C, side, side) of each image; u (n,) in [0, 1) tell its place."""
    along = torch.arange(side, device=x.device)
    image, channel = torch.arange(len(x), device=x.device), torch.arange(x.shape[1], device=x.device)
    row, column = ((u * (size - side + 1)).long()[:, None] + along
                   for u, size in zip((u_row, u_column), x.shape[2:], strict=True))
    return image[:, None, None, None], channel[:, None, None], row[:, None, :, None], column[:, None, None, :]


def signs(u: Tensor) -> Tensor:
    return 1 - 2 * (u < 0.5).to(u.dtype)


# ---------------------------------------------------------------------------------------------- L-inf

def stripes(x: Tensor, threat: Threat, streams: Streams) -> Tensor:
    """x + eps times a random sign for each channel and column."""
    return (x + threat.eps * signs(draw(streams, "uniform", x[:, :, :1]))).clamp(0, 1)


def repaint(best_x: Tensor, x: Tensor, side: int, u: Tensor, eps: float) -> Tensor:
    """A window at a random place gets x ± eps, the sign drawn for each channel. u (n, 5 + C) in [0, 1).

    Adding ±2 eps to the window and clipping to the ball, as the paper writes it, comes to the same.
    """
    window, tried = window_at(x, side, u[:, 0], u[:, 1]), best_x.clone()
    tried[window] = (x[window] + eps * signs(u[:, 5:])[:, :, None, None]).clamp(0, 1)
    return tried


# ---------------------------------------------------------------------------------------------- L2

def bumps(x: Tensor, threat: Threat, streams: Streams) -> Tensor:
    """A grid of about 5 x 5 patterns (see `pattern`) with random signs and directions, at radius eps."""
    n, channels, height, width = x.shape
    side = max(min(height, width) // 5, 1)
    delta = torch.zeros_like(x)
    for top in range(height % side // 2, height - side + 1, side):
        for left in range(width % side // 2, width - side + 1, side):
            u = draw(streams, "uniform", x.new_empty(n, 1 + channels))
            delta[:, :, top:top + side, left:left + side] = (turned(x, side, u[:, 0])
                                                             * signs(u[:, 1:])[:, :, None, None])
    return at_radius(delta, x, threat.eps)


def shift_mass(best_x: Tensor, x: Tensor, side: int, u: Tensor, eps: float) -> Tensor:
    """Algorithm 3: the mass of a second window, and what the radius has left, goes into a pattern in the first.

    u (n, 5 + C) in [0, 1): the two windows' places, the pattern's direction, its signs. Sides are odd and at least 3.
    """
    side = min(max(side, 3) | 1, *x.shape[2:])
    first, second = (window_at(x, side, u[:, i], u[:, i + 1]) for i in (0, 2))
    delta = best_x - x
    covered = torch.zeros_like(delta)
    covered[first] = covered[second] = 1
    mass = channel_norm(delta * covered) ** 2
    unused = (eps ** 2 - f.per_example(f.norm(delta, "l2"), x) ** 2).clamp_min(0) / x.shape[1]
    old = delta[first]
    new = turned(x, side, u[:, 4]) * signs(u[:, 5:])[:, :, None, None] + old / (channel_norm(old) + 1e-12)
    delta[second] = 0
    delta[first] = new / (channel_norm(new) + 1e-12) * (unused + mass).sqrt()
    return at_radius(delta, x, eps)


def channel_norm(values: Tensor) -> Tensor:
    """L2 norm of each channel, (n, C, 1, 1)."""
    return (values ** 2).sum(dim=(2, 3), keepdim=True).sqrt()


def at_radius(delta: Tensor, x: Tensor, eps: float) -> Tensor:
    return (x + eps * delta / f.per_example(f.norm(delta, "l2"), x).clamp_min(1e-12)).clamp(0, 1)


def turned(x: Tensor, side: int, u: Tensor) -> Tensor:
    """`pattern(side)` (n, 1, side, side) like `x`, transposed where u (n,) is above a half."""
    upright = pattern(side).to(x)
    return torch.where((u > 0.5)[:, None, None, None], upright.T, upright)


@cache
def pattern(side: int) -> Tensor:
    """(side, side) of norm 1: two bumps, one above the other, the lower one negative. Eq. 2 and s. 3.3 of the paper.

    Each bump is highest at its centre: at Chebyshev distance d from there it is Σ 1 / (k + 1)², k from d to the farthest d.
    """
    upper = side // 2
    halves = []
    for height in (upper, side - upper):
        centre_row, centre_column = height // 2, side // 2
        distance = torch.maximum((torch.arange(height) - centre_row).abs()[:, None],
                                 (torch.arange(side) - centre_column).abs()[None, :])
        terms = 1 / (torch.arange(max(centre_row, centre_column) + 1, dtype=torch.float64) + 1) ** 2
        bump = terms.flip(0).cumsum(0).flip(0)[distance]
        halves.append(bump / bump.norm().clamp_min(1e-12))
    both = torch.cat([halves[0], -halves[1]])
    return both / both.norm()
