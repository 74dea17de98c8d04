"""Auto-PGD: projected gradient ascent with momentum and a step size of each example's own.

The step size follows the example's progress.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from kit.attacks.tracker import AttackResult, AttackTracker, track_attack
from kit.core import tensors
from kit.core.parameters import Count, check_value
from kit.core.progress import followed
from kit.core.random_streams import Streams
from kit.core.threat import Threat

#: A targeted attack aims at the classes of rank 2 to 10 in the clean logits, or at all but the
#: first if there are fewer.
TARGETS = 9


#: A step size stays while the loss rose in more than this share of the steps since the last
#: checkpoint.
RISING = 0.75


def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    generator: Streams | None = None,
    validate: bool = True,
    steps: Count = 100,
    loss: Literal["ce", "dlr", "targeted"] = "ce",
    restarts: Count = 1,
    passes: Count = 1,
) -> AttackResult:
    """Auto-PGD with auto-attack's settings: `restarts` runs of `steps` steps.

    Each run starts at a random point that touches the ball, with steps of 2 eps, and halves an
    example's step at the checkpoints where its loss does not rise (see `ascend_targets`). x (N, C,
    H, W) in [0, 1], y (N,) int64.

    `loss`: "ce", cross-entropy; "dlr", the difference of logits ratio; "targeted", the targeted DLR
    (APGD-T), `restarts` runs for each of min(9, K - 1) targets. Where DLR (K < 3) or its targeted
    form (K < 4) is undefined, the margin takes its place and a note says so. `passes`: the passes
    that a gradient is averaged over, for randomised networks (EOT, Athalye et al., 2018).

    An example leaves with the first image that breaks it, and no later run includes it; auto-attack
    runs on and keeps the last one. All targets run at once (auto-attack: one after the other),
    which is quicker and finds the same examples. With `passes` above 1 the mean of the logits must
    be wrong, where auto-attack evaluates one pass.

    Raises:
        KitError: Settings are out of range, or `check_inputs` refuses the inputs.

    Source: Croce and Hein (2020), Algorithm 1.
    """
    for name, value, kind in (
        ("steps", steps, Count),
        ("loss", loss, Literal["ce", "dlr", "targeted"]),
        ("restarts", restarts, Count),
        ("passes", passes, Count),
    ):
        check_value(name, value, kind)
    with track_attack(model, x, y, threat, validate=validate) as tracker:
        streams, objective = tracker.streams(generator, "apgd"), apgd_objective(tracker, loss)
        targets = torch.stack(targets_of(tracker) if loss == "targeted" else [tracker.y])
        for _ in followed(range(restarts), "restart"):
            x_0 = torch.stack([touching(x, threat, streams) for _ in targets])
            for rows in followed(at_once(tracker.unbroken(), len(targets)), "part"):
                ascend_targets(
                    tracker,
                    x_0[:, rows].flatten(0, 1),
                    rows.repeat(len(targets)),
                    objective,
                    targets[:, rows].flatten(),
                    steps,
                    passes,
                )
        return tracker.result("apgd")


def at_once(rows: Tensor, copies: int) -> tuple[Tensor, ...]:
    """Split `rows` into pieces, so that `copies` images of each fit into one pass.

    A pass is quickest on a few hundred images on CPUs, on thousands on GPUs.
    """
    return rows.split(max(1, (324 if rows.device.type == "cpu" else 4500) // copies))


def ascend_targets(
    tracker: AttackTracker,
    x_t: Tensor,
    rows: Tensor,
    objective: Callable[[Tensor, Tensor, Tensor], Tensor],
    target: Tensor,
    steps: int,
    passes: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run once from the points `x_t` (n, ...) of the examples `rows`, towards the classes `target`.

    It returns (rows, best loss, its image) of the examples that still hold.

    `objective(logits, y, target)` is ascended, `target` (n,). An example may have several runs at
    once, which differ in their targets and starts, and all end where one succeeds. A step is x + α
    d + the momentum's 0.25 (x_t - x_{t-1}), see `next_iterate`. At a checkpoint α is halved, and
    the example goes back to its best image, where (1) the loss rose in no more than 0.75 of the
    steps since the last checkpoint, or (2) the best loss is what it was there and α was not halved
    then.

    Quirks of auto-attack's code, kept: the first step's loss is compared with 0, rises count where
    single precision tells them, rule (2) never acts at the first checkpoint, and x_{t-1} stays as
    it was when an example goes back.

    The function is long, because all that is known of an example lives here and is packed anew
    whenever examples break.
    """

    def evaluate_gradient(x_t: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        gradient, loss, _ = tracker.gradient(
            x_t, rows, lambda logits, y: objective(logits, y, target), passes
        )
        return gradient, loss

    if not len(rows):
        return rows, x_t.new_zeros(0), x_t
    gradient, loss = evaluate_gradient(x_t, rows)
    step = tensors.per_example(torch.full_like(loss, 2 * tracker.threat.eps), x_t)
    x_old, x_best, gradient_best, best, best_then = x_t, x_t, gradient, loss, loss
    before, rises = torch.zeros_like(loss), torch.zeros_like(rows)
    halved = torch.ones_like(rows, dtype=torch.bool)
    interval, since = max(int(0.22 * steps), 1), 0
    for t in followed(range(steps), "step"):
        (
            rows,
            target,
            x_t,
            x_old,
            x_best,
            gradient,
            gradient_best,
            step,
            best,
            best_then,
            before,
            rises,
            halved,
        ) = tensors.select_rows(
            ~tracker.broken[rows],
            rows,
            target,
            x_t,
            x_old,
            x_best,
            gradient,
            gradient_best,
            step,
            best,
            best_then,
            before,
            rises,
            halved,
        )
        if not len(rows):
            break
        x, share = tracker.x.index_select(0, rows), 0.75 if t else 1.0
        x_t, x_old = next_iterate(x_t, x_old, x, gradient, step, tracker.threat, share), x_t
        gradient, loss = evaluate_gradient(x_t, rows)
        better = loss > best
        best, x_best = loss.where(better, best), tensors.where(better, x_t, x_best)
        gradient_best = tensors.where(better, gradient, gradient_best)
        rises, before, since = rises + (loss.float() > before.float()), loss, since + 1
        if since == interval:
            halved = (rises <= RISING * interval) | (~halved & (best_then >= best))
            step = step * tensors.per_example(1 - 0.5 * halved.to(step.dtype), step)
            x_t = tensors.where(halved, x_best, x_t)
            gradient = tensors.where(halved, gradient_best, gradient)
            best_then, rises, since = best, torch.zeros_like(rises), 0
            interval = max(interval - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    rows, best, x_best = tensors.select_rows(~tracker.broken[rows], rows, best, x_best)
    return rows, best, x_best


def next_iterate(
    x_t: Tensor,
    x_old: Tensor,
    x: Tensor,
    gradient: Tensor,
    step: Tensor,
    threat: Threat,
    share: float,
) -> Tensor:
    """P(x_t + share · (P(x_t + step · direction) - x_t) + (1 - share) · (x_t - x_old)).

    P is the projection onto ball and [0, 1].
    """
    ahead = tensors.project(x_t + step * tensors.ascent_direction(gradient, threat.norm), x, threat)
    return tensors.project(x_t + share * (ahead - x_t) + (1 - share) * (x_t - x_old), x, threat)


def touching(x: Tensor, threat: Threat, source: Streams) -> Tensor:
    """Random points (N, C, H, W) at distance eps before they are clipped to [0, 1].

    Their direction is that of a scaled box or a Gaussian one.
    """
    direction = 2 * source.uniform(x) - 1 if threat.norm == "linf" else source.normal(x)
    length = tensors.per_example(tensors.norm(direction, threat.norm), x).clamp_min(1e-12)
    return (x + threat.eps * direction / length).clamp(0, 1)


def targets_of(tracker: AttackTracker) -> list[Tensor]:
    """The target classes, (N,) each: rank 2, 3, ... in the clean logits."""
    ranked = tracker.logits_nat.argsort(dim=1, descending=True)
    count = min(TARGETS, tracker.num_classes - 1)
    if count < TARGETS:
        tracker.notes.append(
            f"{count} targets, not {TARGETS}: the network knows {tracker.num_classes} classes"
        )
    return [ranked[:, rank] for rank in range(1, count + 1)]


def apgd_objective(tracker: AttackTracker, loss: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What `loss` ascends, as a function of (logits, y, target) that returns (n,).

    It depends on how many classes the network knows.
    """
    fewest = {"ce": 2, "dlr": 3, "targeted": 4}[loss]
    if tracker.num_classes < fewest:
        tracker.notes.append(
            f"{'targeted ' if loss == 'targeted' else ''}DLR needs {fewest} classes; with "
            f"{tracker.num_classes} the margin takes its place"
        )
        loss = f"{loss} margin"
    return {
        "ce": lambda logits, y, target: tensors.per_example_cross_entropy(logits, y),
        "dlr": lambda logits, y, target: tensors.dlr(logits, y),
        "dlr margin": lambda logits, y, target: -tensors.margin(logits, y),
        "targeted": tensors.targeted_dlr,
        "targeted margin": tensors.targeted_margin,
    }[loss]
