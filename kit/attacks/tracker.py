"""The tracker that a searching attack asks for logits and gradients; it notes every answer.

An attack that asks an `AttackTracker` need not count its passes, remember what broke, or guard
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
from kit.core.threat import Norm, Threat

#: x + δ - x differs from δ by a rounding, so a perturbation may be this much larger than eps and
#: count as inside; see `rounding_of`.
ROUNDING = 1e-6


#: What an infinite gradient counts as: differences of two are still finite.
STEEP = 1e30


#: What to ascend, (n,), of (logits (n, K), labels (n,)).
Objective = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AttackResult:
    """What an attack did, per example.

    `x_adv` is misclassified where an adversarial example was found, else the most harmful image
    that was tried; only a minimal-norm attack's may lie outside the ball.
    """

    #: (N, C, H, W) in [0, 1]
    x_adv: Tensor
    #: (N,) bool: misclassified inside the threat's ball, the clean image included
    broken: Tensor
    #: (N,) the attack that broke it first; "clean" or "" (nothing did)
    by: tuple[str, ...]
    #: (N,) int64 passes after the clean one until it was first misclassified: 0 clean, -1 never
    step: Tensor
    #: (N,) z_y - max_{j≠y} z_j at x_adv
    margin: Tensor
    #: (N,) norm of x_adv - x, in the threat's norm (CW-L2: always L2); inf: nothing found
    size: Tensor
    #: (N,) int64 images of it that were passed through the network
    forwards: Tensor
    #: (N,) int64 gradients taken
    backwards: Tensor
    #: (N,) int64 class given to x_adv; -1 where the logits are not finite
    prediction: Tensor
    #: departures that a reader must know of, say fewer targets than usual
    notes: tuple[str, ...] = ()

    @property
    def robust(self) -> Tensor:
        """(N,) bool: nothing broke the example."""
        return ~self.broken


class AttackTracker:
    """A frozen network, images and labels for one attack call. Make one with `track_attack`.

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
        norm: Norm,
    ):
        self.model, self.x, self.y = model, x, y
        self.threat, self.goal, self.norm = threat, goal, norm
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
        """The number of classes that the network knows."""
        return self.logits_nat.shape[1]

    def streams(self, given: Streams | None, name: str) -> Streams:
        """`given`, or streams named `name` that are numbered by place in the batch.

        Raises:
            KitError: `given` are no streams over these images.
        """
        if given is None:
            return Streams(self.rows, name)
        if not isinstance(given, Streams) or len(given.ids) != len(self.rows):
            raise KitError(
                f"generator is not a kit.core.random_streams.Streams over these {len(self.rows)} "
                "images; make one with Streams(ids, seed, ...), ids int64 (N,)"
            )
        return given

    def unbroken(self, rows: Tensor | None = None) -> Tensor:
        """The rows among `rows` (all) that are still classified correctly inside the ball."""
        rows = self.rows if rows is None else rows
        return rows[~self.broken[rows]]

    def logits(self, x_t: Tensor, rows: Tensor) -> Tensor:
        """The logits (n, K) of `x_t` (n, C, H, W), images of the examples `rows` (n,)."""
        logits = self.probe(x_t, rows)
        self.keep(x_t, logits, rows)
        return logits

    def margins(self, x_t: Tensor, rows: Tensor) -> Tensor:
        """The margins z_y - max_{j≠y} z_j (n,) of `x_t`, -inf where a logit is not finite."""
        return self.keep(x_t, self.probe(x_t, rows), rows)

    def probe(self, x_t: Tensor, rows: Tensor) -> Tensor:
        """The logits (n, K) of images that may lie anywhere.

        They are counted and, unless an attack hands them to `keep`, forgotten.
        """
        self.forwards.index_add_(0, rows, torch.ones_like(rows))
        with torch.no_grad():
            return self.model(x_t)

    def gradient(
        self, x_t: Tensor, rows: Tensor, objective: Objective, passes: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(gradient of the objective with respect to `x_t`, the objective (n,), logits (n, K)).

        None carries a graph. All three are means over `passes` passes, for networks that answer
        differently each time; the mean logits decide what is broken. A gradient's NaN counts as 0
        and its infinity as `STEEP`, else the example would be lost and called robust.
        """
        x_t = x_t.detach().requires_grad_(True)
        sums: list[Tensor] = []
        for _ in range(passes):
            with torch.enable_grad():
                logits = self.model(x_t)
                values = objective(logits, self.y[rows])
                # summed, not averaged: an example's gradient must not depend on its batch's size
                gradient = tensors.image_gradient(values.sum(), x_t)
            answers = [gradient, values.detach(), logits.detach()]
            if sums:
                answers = [total + more for total, more in zip(sums, answers, strict=True)]
            sums = answers
        gradient, values, logits = sums if passes == 1 else [total / passes for total in sums]
        once = torch.ones_like(rows)
        self.backwards.index_add_(0, rows, once, alpha=passes)
        self.forwards.index_add_(0, rows, once, alpha=passes)
        self.keep(x_t.detach(), logits, rows)
        return gradient.nan_to_num(0.0, STEEP, -STEEP), values, logits

    def margin_of(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The margins (n,) of logits, -inf where a logit is not finite."""
        margin = tensors.margin(logits, self.y[rows]).to(self.margin.dtype)
        if math.isfinite(float(logits.sum())):
            return margin
        return margin.where(logits.isfinite().all(dim=1), -torch.inf)

    def keep(self, x_t: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """Keep what images found whose pass has been counted, and return their margins (n,).

        See `margin_of`.
        """
        margin = self.margin_of(logits, rows)
        # Most passes find nothing new, and only what might be new is measured.
        # A margin of 0 may be wrong, so <=.
        found = (margin <= (self.margin[rows] if self.goal == "inside" else 0)).nonzero().squeeze(1)
        if len(found):
            self._keep(*(values.index_select(0, found) for values in (x_t, logits, margin, rows)))
        return margin

    def _keep(self, x_t: Tensor, logits: Tensor, margin: Tensor, rows: Tensor) -> None:
        given, x = predicted_classes(logits), self.x.index_select(0, rows)
        wrong, broken = given != self.y[rows], self.broken[rows]
        size = tensors.norm(x_t - x, self.norm)
        same_norm = self.norm == self.threat.norm
        within = size if same_norm else tensors.norm(x_t - x, self.threat.norm)
        inside = within <= self.threat.eps + rounding_of(self.x, self.threat.norm)
        if self.goal == "inside":
            # an adversarial image never gives way to one that is classified correctly
            key, better = margin, inside & (margin < self.margin[rows]) & (wrong | ~broken)
        else:
            key, better = size, wrong & (size < self.size[rows])
        first = rows[wrong & inside & ~broken]
        best = best_of_each(rows, key.where(better, torch.inf), len(self.rows))
        best = best[better[best]]
        kept = rows[best]
        self.x_adv[kept] = x_t.index_select(0, best)
        self.margin[kept], self.size[kept] = margin[best], size[best]
        self.prediction[kept] = given[best]
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


def rounding_of(x: Tensor, norm: str) -> float:
    """Return by how much the norm of a perturbation of images like `x` may exceed eps by rounding.

    A pixel in [0, 1] is rounded by at most half a unit in its last place, so in L2 all together by
    the square root of their number times that.
    """
    if norm == "linf":
        return ROUNDING
    return max(ROUNDING, torch.finfo(x.dtype).eps / 2 * math.sqrt(x[0].numel()))


def best_of_each(rows: Tensor, key: Tensor, count: int) -> Tensor:
    """Of the places (n,) that name the same of `count` examples, the one with the least `key`.

    The first counts if they tie.
    """
    place = torch.arange(len(rows), device=rows.device)
    if bool((rows[1:] > rows[:-1]).all()):  # each is named once
        return place
    order = key.argsort(stable=True)
    first = place.new_full((count,), len(rows)).scatter_reduce(0, rows[order], place, "amin")
    return order[first[first < len(rows)]]


def predicted_classes(logits: Tensor) -> Tensor:
    """The most likely class (N,), -1 where a logit is not finite.

    An example without finite logits is never correct.
    """
    return logits.argmax(dim=1).where(logits.isfinite().all(dim=1), -1)


@contextmanager
def track_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    goal: Literal["inside", "nearest"] = "inside",
    norm: Norm | None = None,
    validate: bool = True,
) -> Iterator[AttackTracker]:
    """Yield an `AttackTracker` over the model in eval mode without parameter gradients.

    The model is handed back as it was.

    Raises:
        KitError: `check_inputs` refuses the inputs; it is not asked where `validate` is False.
    """
    notes = check_inputs(model, x, y) if validate else ()
    with frozen(model), padded_batch_sizes(model):
        tracker = AttackTracker(model, x, y, threat, goal, norm or threat.norm)
        tracker.notes += notes
        yield tracker
