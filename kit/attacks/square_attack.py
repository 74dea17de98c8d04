"""Square attack: random search over square windows, by the network's answers alone."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from kit.attacks.auto_pgd import at_once
from kit.attacks.tracker import AttackResult, AttackTracker, track_attack
from kit.core import tensors
from kit.core.errors import KitError
from kit.core.parameters import Count, Share, check_value
from kit.core.progress import followed
from kit.core.random_streams import Streams
from kit.core.threat import Threat

#: After each of these queries the windows' share of the image is halved (Andriushchenko et al.,
#: 2020, for 10,000 queries).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


#: Random numbers are drawn for so many queries at once.
DRAWN_QUERIES = 256


#: So many proposals of an example go through the network at once, after the first halving.
AHEAD = 4


def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    generator: Streams | None = None,
    validate: bool = True,
    queries: Count = 5000,
    share: Share = 0.8,
) -> AttackResult:
    """Square attack on the margin z_y - max_{j≠y} z_j, which uses no gradients.

    From a random start (L-inf: vertical stripes of ±eps; L2: a grid of bumps) `queries` proposals,
    each of which changes a square window that covers `share` of the image at first (see
    `window_side`) and is taken where it lowers the margin. An example leaves where it breaks. x (N,
    C, H, W) in [0, 1], y (N,) int64. The defaults are auto-attack's, whose schedule of windows is
    not rescaled to `queries`.

    Each example has windows and signs of its own, drawn from its own stream; in auto-attack's code
    all images of a batch share one window a query. Windows reach the last row and column as the
    paper has it; the code's never do. The walk is that of one proposal after the other, but several
    go through the network at once, and those that change no pixel do not.

    Raises:
        KitError: Settings are out of range, images are not (N, C, H, W), or `check_inputs` refuses
            the inputs.

    Source: Andriushchenko et al. (2020), Algorithms 1 to 3.
    """
    check_value("queries", queries, Count)
    check_value("share", share, Share)
    if x.dim() != 4:
        raise KitError(
            f"images have shape {tuple(x.shape)}; Square needs (N, C, H, W), because its windows "
            "have two sides"
        )
    with track_attack(model, x, y, threat, validate=validate) as tracker:
        streams, rows = tracker.streams(generator, "square"), tracker.unbroken()
        if not len(rows):
            return tracker.result("square")
        best_x = (stripes if threat.norm == "linf" else bumps)(x, threat, streams)
        margins = tracker.margins(best_x[rows], rows)
        best = x.new_full((len(x),), torch.inf).index_copy(0, rows, margins)
        edges = {0, queries, *(edge + 1 for edge in HALVINGS), *range(0, queries, DRAWN_QUERIES)}
        blocks = list(pairwise(sorted(edge for edge in edges if edge <= queries)))
        for begin, end in followed(blocks, "block"):
            # drawn for every example, so that none depends on what became of its mates
            drawn = streams.uniform(x.new_empty(len(x), end - begin, 5 + x.shape[1]))
            side, ahead = window_side(begin, x, share), AHEAD if begin else 1
            for some in at_once(tracker.unbroken(rows), ahead):
                search_squares(tracker, some, best_x, best, drawn, side, ahead)
        # once more, because a walk tells the tracker of broken examples alone
        if len(left := tracker.unbroken(rows)):
            tracker.margins(best_x[left], left)
        return tracker.result("square")


def search_squares(
    tracker: AttackTracker,
    rows: Tensor,
    best_x: Tensor,
    best: Tensor,
    drawn: Tensor,
    side: int,
    ahead: int,
) -> None:
    """Try the proposals of one block, with windows of one `side`, for the examples `rows` (n,).

    They are made from the numbers `drawn` (N, proposals, 5 + C) in [0, 1). The search goes on from
    the images `best_x` (N, C, H, W) with the margins `best` (N,), and brings both up to date. The
    tracker is told of what breaks.

    A pass tries the next `ahead` proposals of each example. Most lower no margin; where one does,
    the example moves there, and the ones behind it, which were made for another image, are made and
    tried again.
    """
    propose = repaint if tracker.threat.norm == "linf" else shift_mass
    place = torch.zeros_like(rows)
    while len(rows):
        due = place[:, None] + torch.arange(ahead, device=rows.device)
        who, nth = (due < drawn.shape[1]).nonzero(as_tuple=True)
        tried, new = propose(
            best_x, tracker.x, rows[who], side, drawn[rows[who], due[who, nth]], tracker.threat.eps
        )
        who, nth = who[new], nth[new]
        place = place + ahead
        if len(new):
            its = rows[who]
            logits = tracker.probe(tried, its)
            margin = tracker.margin_of(logits, its)
            lower = (margin < best[its]).nonzero().squeeze(1)
            if len(lower):
                before = who[lower].roll(1)
                before[0] = -1
                # of each example the first proposal that lowers its margin
                first = lower[who[lower] != before]
                best_x[its[first]], best[its[first]] = tried[first], margin[first]
                place[who[first]] += nth[first] + 1 - ahead
                if bool((margin[first] <= 0).any()):
                    tracker.keep(tried[first], logits[first], its[first])
        rows, place = tensors.select_rows(
            ~tracker.broken[rows] & (place < drawn.shape[1]), rows, place
        )


def window_side(query: int, x: Tensor, share: float) -> int:
    """The side in pixels of the windows of proposal 0, 1, ...

    They cover `share` of the image, halved at `HALVINGS`.
    """
    height, width = x.shape[2:]
    covered = share / 2 ** sum(query > edge for edge in HALVINGS)
    return min(max(round(math.sqrt(covered * height * width)), 1), height, width)


def window_at(its: Tensor, x: Tensor, side: int, u_row: Tensor, u_column: Tensor) -> Tensor:
    """Places (n, C, side, side) of windows, one in each of the images `its` (n,).

    The places count all pixels of `x` (N, C, H, W) in their order; `u_row` and `u_column` (n,) in
    [0, 1) tell where the windows lie.
    """
    channels, height, width = x.shape[1:]
    along = torch.arange(side, device=x.device)
    channel = torch.arange(channels, device=x.device)[:, None, None]
    inside = (channel * height + along[:, None]) * width + along
    row = (u_row * (height - side + 1)).long()
    column = (u_column * (width - side + 1)).long()
    return (its * x[0].numel() + row * width + column)[:, None, None, None] + inside


def signs(u: Tensor) -> Tensor:
    """Signs -1 or +1 of the numbers `u` in [0, 1), with equal chance."""
    return 1 - 2 * (u < 0.5).to(u.dtype)


# -------------------------------------------------------------------------------------------- L-inf


def stripes(x: Tensor, threat: Threat, streams: Streams) -> Tensor:
    """Add eps times a random sign for each channel and column to `x`."""
    return (x + threat.eps * signs(streams.uniform(x[:, :, :1]))).clamp(0, 1)


def repaint(
    best_x: Tensor, x: Tensor, its: Tensor, side: int, u: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Give a window at a random place x ± eps, the sign drawn for each channel.

    u (n, 5 + C) in [0, 1), for the examples `its` (n,). It returns (images (m, C, H, W), places
    (m,)) of the ones among the n that change a pixel; small windows often do not.

    Adding ±2 eps to the window and clipping to the ball, as the paper writes it, comes to the same.
    """
    window = window_at(its, x, side, u[:, 0], u[:, 1])
    painted = (x.take(window) + eps * signs(u[:, 5:])[:, :, None, None]).clamp_(0, 1)
    new = (painted != best_x.take(window)).flatten(1).any(dim=1).nonzero().squeeze(1)
    tried, its = best_x.index_select(0, its[new]), its[new]
    moved = (torch.arange(len(new), device=its.device) - its) * x[0].numel()
    tried.view(-1)[window[new] + moved[:, None, None, None]] = painted[new]
    return tried, new


# ---------------------------------------------------------------------------------------------- L2


def bumps(x: Tensor, threat: Threat, streams: Streams) -> Tensor:
    """A grid of about 5 x 5 patterns with random signs and directions, at radius eps.

    See `square_pattern`.
    """
    n, channels, height, width = x.shape
    side = max(min(height, width) // 5, 1)
    delta = torch.zeros_like(x)
    for top in range(height % side // 2, height - side + 1, side):
        for left in range(width % side // 2, width - side + 1, side):
            u = streams.uniform(x.new_empty(n, 1 + channels))
            delta[:, :, top : top + side, left : left + side] = (
                turned(x, side, u[:, 0]) * signs(u[:, 1:])[:, :, None, None]
            )
    return at_radius(delta, x, threat.eps)


def shift_mass(
    best_x: Tensor, x: Tensor, its: Tensor, side: int, u: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Move the mass of a second window, and what the radius has left, into a pattern in the first.

    u (n, 5 + C) in [0, 1): the two windows' places, the pattern's direction, its signs; for the
    examples `its` (n,). Sides are odd and at least 3. It returns (images (n, C, H, W), places (n,))
    as `repaint` does; all change.

    Source: Andriushchenko et al. (2020), Algorithm 3.
    """
    side, places = min(max(side, 3) | 1, *x.shape[2:]), torch.arange(len(its), device=its.device)
    first, second = (window_at(places, x, side, u[:, i], u[:, i + 1]) for i in (0, 2))
    x = x.index_select(0, its)
    delta = best_x.index_select(0, its) - x
    pixels, covered = delta.view(-1), torch.zeros_like(delta)
    covered.view(-1)[first] = covered.view(-1)[second] = 1
    mass = channel_norm(delta * covered) ** 2
    used = tensors.per_example(tensors.norm(delta, "l2"), x) ** 2
    unused = (eps**2 - used).clamp_min(0) / x.shape[1]
    old = pixels[first]
    pattern = turned(x, side, u[:, 4]) * signs(u[:, 5:])[:, :, None, None]
    new = pattern + old / (channel_norm(old) + 1e-12)
    pixels[second] = 0
    pixels[first] = new / (channel_norm(new) + 1e-12) * (unused + mass).sqrt()
    return at_radius(delta, x, eps), places


def channel_norm(values: Tensor) -> Tensor:
    """The L2 norm of each channel, (n, C, 1, 1)."""
    return (values**2).sum(dim=(2, 3), keepdim=True).sqrt()


def at_radius(delta: Tensor, x: Tensor, eps: float) -> Tensor:
    """Images `x` + `delta` scaled to L2 norm `eps`, clipped to [0, 1]."""
    length = tensors.per_example(tensors.norm(delta, "l2"), x).clamp_min(1e-12)
    return (x + eps * delta / length).clamp(0, 1)


def turned(x: Tensor, side: int, u: Tensor) -> Tensor:
    """The pattern of `square_pattern`, (n, 1, side, side), like `x`.

    It is transposed where u (n,) is above a half.
    """
    upright = square_pattern(side).to(x)
    return torch.where((u > 0.5)[:, None, None, None], upright.T, upright)


@cache
def square_pattern(side: int) -> Tensor:
    """The pattern (side, side) of norm 1: two bumps, one above the other, the lower one negative.

    Each bump is highest at its centre: at Chebyshev distance d from there it is Σ 1 / (k + 1)², k
    from d to the farthest d.

    Source: Andriushchenko et al. (2020), Eq. 2 and s. 3.3.
    """
    upper = side // 2
    halves = []
    for height in (upper, side - upper):
        centre_row, centre_column = height // 2, side // 2
        distance = torch.maximum(
            (torch.arange(height) - centre_row).abs()[:, None],
            (torch.arange(side) - centre_column).abs()[None, :],
        )
        terms = 1 / (torch.arange(max(centre_row, centre_column) + 1, dtype=torch.float64) + 1) ** 2
        bump = terms.flip(0).cumsum(0).flip(0)[distance]
        halves.append(bump / bump.norm().clamp_min(1e-12))
    both = torch.cat([halves[0], -halves[1]])
    return both / both.norm()
