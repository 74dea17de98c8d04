"""What a searching attack sees of a network: it asks for logits and gradients, and every answer is
noted.

An attack that looks through an `Oracle` need not count its passes, remember what broke, or guard
against NaN. It may drop examples whose search is over (`unbroken`): the examples of a batch never
influence each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kit.attacks.contract import check_inputs, frozen
from kit.attacks.padded_batches import padded_batch_sizes
from kit.core import tensors
from kit.core.errors import KitError
from kit.core.random_streams import Streams
from kit.core.threat import Threat

#: x + δ - x differs from δ by a rounding, so a perturbation may be this much larger than eps and
#: count as inside.
ROUNDING = 1e-6


#: What an infinite gradient counts as: differences of two are still finite.
STEEP = 1e30


Objective = Callable[[Tensor, Tensor], Tensor]  # (logits (n, K), labels (n,)) -> (n,) to ascend


@dataclass(frozen=True)
class AttackResult:
    """What an attack did, per example. `x_adv` is misclassified where an adversarial example was
    found, else the most harmful image that was tried; only a minimal-norm attack's may lie outside
    the ball.
    """

    x_adv: Tensor  # (N, C, H, W) in [0, 1]
    broken: Tensor  # (N,) bool: misclassified inside the threat's ball, the clean image included
    by: tuple[str, ...]  # (N,) the attack that broke it first; "clean" or "" (nothing did)
    # (N,) int64 passes after the clean one until it was first misclassified: 0 clean, -1 never
    step: Tensor
    margin: Tensor  # (N,) z_y - max_{j≠y} z_j at x_adv
    # (N,) norm of x_adv - x, in the threat's norm (CW-L2: always L2); inf: nothing found
    size: Tensor
    forwards: Tensor  # (N,) int64 images of it that were passed through the network
    backwards: Tensor  # (N,) int64 gradients taken
    prediction: Tensor  # (N,) int64 class given to x_adv; -1 where the logits are not finite
    notes: tuple[
        str, ...
    ] = ()  # departures that a reader must know of, say fewer targets than usual

    @property
    def robust(self) -> Tensor:
        """(N,) bool."""
        return ~self.broken


class AttackTracker:
    """Wraps a frozen network, images and labels for one attack call. Make one with `oracle`.

    goal "inside": of each example the image with the lowest margin is kept. goal "nearest": the
    closest misclassified one, wherever it lies; `norm` is what its distance and all sizes are
    measured in. Rows are int64 indices into the batch, and may name an example repeatedly: several
    images of it are then tried in one pass.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        goal: Literal["inside", "nearest"],
        norm: Literal["linf", "l2"],
    ):
        self.model, self.x, self.y, self.threat, self.goal, self.norm = (
            model,
            x,
            y,
            threat,
            goal,
            norm,
        )
        n, zeros = len(x), torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.rows = torch.arange(n, device=x.device)
        self.forwards, self.backwards, self.step = zeros, zeros.clone(), zeros - 1
        self.x_adv, self.margin = x.clone(), x.new_full((n,), torch.inf)
        self.size = x.new_zeros(n) if goal == "inside" else x.new_full((n,), torch.inf)
        self.broken = torch.zeros(n, dtype=torch.bool, device=x.device)
        self.prediction = zeros - 1
        self.notes: list[str] = []
        self.logits_nat = self.logits(x, self.rows)
        self.prediction = predicted_classes(self.logits_nat)

    @property
    def num_classes(self) -> int:
        return self.logits_nat.shape[1]

    def streams(self, given: Streams | None, name: str) -> Streams:
        """`given`, or streams named `name` that are numbered by place in the batch."""
        if given is None:
            return Streams(self.rows, name)
        if not isinstance(given, Streams) or len(given.ids) != len(self.rows):
            raise KitError(
                f"generator is no kit.core.random_streams.Streams over these {len(self.rows)} "
                f"images; make one with "
                "Streams(ids, seed, ...), ids int64 (N,)"
            )
        return given

    def unbroken(self, rows: Tensor | None = None) -> Tensor:
        """Those of `rows` (all) that are still classified correctly inside the ball."""
        rows = self.rows if rows is None else rows
        return rows[~self.broken[rows]]

    def logits(self, x_t: Tensor, rows: Tensor) -> Tensor:
        """(n, K) logits of `x_t` (n, C, H, W), images of the examples `rows` (n,)."""
        logits = self.probe(x_t, rows)
        self.keep(x_t, logits, rows)
        return logits

    def margins(self, x_t: Tensor, rows: Tensor) -> Tensor:
        """(n,) margins z_y - max_{j≠y} z_j of `x_t`, -inf where a logit is not finite."""
        return self.keep(x_t, self.probe(x_t, rows), rows)

    def probe(self, x_t: Tensor, rows: Tensor) -> Tensor:
        """Logits of images that may lie anywhere; they are counted and, unless an attack hands them
        to `keep`, forgotten.
        """
        self.forwards.index_add_(0, rows, torch.ones_like(rows))
        with torch.no_grad():
            return self.model(x_t)

    def gradient(
        self, x_t: Tensor, rows: Tensor, objective: Objective, passes: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(gradient of the objective with respect to `x_t`, the objective (n,), logits (n, K));
        none carries a graph.

        All three are means over `passes` passes, for networks that answer differently each time;
        the mean logits decide what is broken. A gradient's NaN counts as 0 and its infinity as
        `STEEP`, else the example would be lost and called robust.
        """
        x_t, sums = x_t.detach().requires_grad_(True), None
        for _ in range(passes):
            with torch.enable_grad():
                logits = self.model(x_t)
                values = objective(logits, self.y[rows])
                # summed, not averaged: an example's gradient must not depend on its batch's size
                (gradient,) = torch.autograd.grad(values.sum(), x_t)
            answers = (gradient, values.detach(), logits.detach())
            sums = (
                answers
                if sums is None
                else [total + more for total, more in zip(sums, answers, strict=True)]
            )
        gradient, values, logits = sums if passes == 1 else [total / passes for total in sums]
        once = torch.ones_like(rows)
        self.backwards.index_add_(0, rows, once, alpha=passes)
        self.forwards.index_add_(0, rows, once, alpha=passes)
        self.keep(x_t.detach(), logits, rows)
        return gradient.nan_to_num(0.0, STEEP, -STEEP), values, logits

    def margin_of(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(n,) margins, -inf where a logit is not finite."""
        margin = tensors.margin(logits, self.y[rows]).to(self.margin.dtype)
        if math.isfinite(float(logits.sum())):
            return margin
        return margin.where(logits.isfinite().all(dim=1), -torch.inf)

    def keep(self, x_t: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """Keep what images found whose pass has been counted. -> margins (n,), as `margin_of`."""
        margin = self.margin_of(logits, rows)
        # most passes find nothing new, and only what might be new is measured; a margin of 0 may be
        # wrong, so <=
        found = (margin <= (self.margin[rows] if self.goal == "inside" else 0)).nonzero().squeeze(1)
        if len(found):
            self._keep(*(values.index_select(0, found) for values in (x_t, logits, margin, rows)))
        return margin

    def _keep(self, x_t: Tensor, logits: Tensor, margin: Tensor, rows: Tensor) -> None:
        given, whole = predicted_classes(logits), self.x.index_select(0, rows)
        wrong, broken = given != self.y[rows], self.broken[rows]
        size = tensors.norm(x_t - whole, self.norm)
        within = (
            size if self.norm == self.threat.norm else tensors.norm(x_t - whole, self.threat.norm)
        )
        inside = within <= self.threat.eps + ROUNDING
        if (
            self.goal == "inside"
        ):  # an adversarial image never gives way to one that is classified correctly
            key, better = margin, inside & (margin < self.margin[rows]) & (wrong | ~broken)
        else:
            key, better = size, wrong & (size < self.size[rows])
        first = rows[wrong & inside & ~broken]
        best = best_of_each(rows, key.where(better, torch.inf), len(self.rows))
        best = best[better[best]]
        kept = rows[best]
        self.x_adv[kept] = x_t.index_select(0, best)
        self.margin[kept], self.size[kept], self.prediction[kept] = (
            margin[best],
            size[best],
            given[best],
        )
        if len(first):
            self.step[first] = self.forwards[first] - 1
            self.broken[first] = True

    def result(self, name: str) -> AttackResult:
        """What was noted so far; `name` is the attack's."""
        by = tuple(
            "clean" if step == 0 else name if broken else ""
            for step, broken in zip(self.step.tolist(), self.broken.tolist(), strict=True)
        )
        return AttackResult(
            self.x_adv,
            self.broken,
            by,
            self.step,
            self.margin,
            self.size,
            self.forwards,
            self.backwards,
            self.prediction,
            tuple(self.notes),
        )


def best_of_each(rows: Tensor, key: Tensor, count: int) -> Tensor:
    """Of the places (n,) that name the same one of `count` examples the one with the least `key`,
    the first if they tie.
    """
    place = torch.arange(len(rows), device=rows.device)
    if bool((rows[1:] > rows[:-1]).all()):  # each is named once
        return place
    order = key.argsort(stable=True)
    first = place.new_full((count,), len(rows)).scatter_reduce(0, rows[order], place, "amin")
    return order[first[first < len(rows)]]


def predicted_classes(logits: Tensor) -> Tensor:
    """(N,) most likely class, -1 where a logit is not finite: such an example is never correct."""
    return logits.argmax(dim=1).where(logits.isfinite().all(dim=1), -1)


@contextmanager
def track_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    goal: Literal["inside", "nearest"] = "inside",
    norm: Literal["linf", "l2"] | None = None,
    validate: bool = True,
) -> Iterator[AttackTracker]:
    """An `Oracle` over the model in eval mode without parameter gradients; the model is handed back
    as it was.

    Errors: those of `check_inputs`, unless `validate` is False.
    """
    notes = check_inputs(model, x, y) if validate else ()
    with frozen(model), padded_batch_sizes(model):
        tracker = AttackTracker(model, x, y, threat, goal, norm or threat.norm)
        tracker.notes += notes
        yield tracker
