"""Margin decomposition: MD and its multi-targeted form MDMT.

They attack one term of the margin before the whole. Where one term of z_j - z_y has a much larger
gradient than the other, the margin's gradient misleads; so a first stage ascends a single term.

Source: Ma et al., "Imbalanced Gradients: a subtle cause of overestimated adversarial robustness"
(2023).
"""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor, nn

from kit.attacks.projected_gradient_descent import start_point
from kit.attacks.tracker import AttackResult, AttackTracker, track_attack
from kit.core import tensors
from kit.core.errors import KitError
from kit.core.parameters import Count, check_value
from kit.core.progress import followed
from kit.core.random_streams import Streams
from kit.core.threat import Threat


def md(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    generator: Streams | None = None,
    validate: bool = True,
    steps: Count = 50,
    change_point: Count = 20,
    dlr: bool = False,
) -> AttackResult:
    """Margin decomposition attack: two runs of `steps` steps, each from a start drawn in the ball.

    A run first raises z_y for one step, then until step `change_point` ascends one term of the
    margin, -z_y in the first run and max_{j≠y} z_j in the second, and from there on the margin z_j
    - z_y. The step size falls as a cosine from 2 eps and is set back at the change (MDAttack's
    code). An example stops where it breaks. x (N, C, H, W) in [0, 1], y (N,) int64.

    `dlr` divides the second stage's margin by the sum of all logits, which is MDAttack's "DLR": not
    auto-attack's difference of the first and the third, and where the sum is negative the second
    stage descends. With two classes it is the margin. The code knows L-inf only; in L2 the kit
    takes normalised gradients of the same lengths. Its starts may leave [0, 1], ours are clipped.

    Raises:
        KitError: Settings are out of range, change_point >= steps, or `check_inputs` refuses the
            inputs.

    Source: Ma et al. (2023).
    """
    check_value("dlr", dlr, bool)
    _check_stages(steps, change_point)
    with track_attack(model, x, y, threat, validate=validate) as tracker:
        divided = dlr and tracker.num_classes >= 3
        if dlr:
            tracker.notes.append(
                "MD's DLR divides the margin by the sum of the logits, as MDAttack's code does"
                if divided
                else "DLR needs three classes; "
                "with two, MD's second stage ascends the margin itself"
            )
        streams = tracker.streams(generator, "md")
        for raise_rival in (False, True):
            x_0 = start_point(x, threat, "uniform", streams)
            ascended = partial(
                stage_objective, raise_rival=raise_rival, change_point=change_point, dlr=divided
            )
            decompose(tracker, x_0, ascended, steps, change_point)
        return tracker.result("md")


def mdmt(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    generator: Streams | None = None,
    validate: bool = True,
    steps: Count = 50,
    change_point: Count = 20,
) -> AttackResult:
    """Multi-targeted margin decomposition: MD's two runs against each of min(10, K) targets.

    One target follows the other. See `md`; a target's logit takes the place of max_{j≠y} z_j. The
    targets are those of MDAttack's code: the classes of rank 9, 8, ..., 1 in the clean logits, then
    the least likely one (with K < 10 classes ranks K - 1 to 1 and the last). Where the target is
    the label itself, as rank 1 is for whatever is classified correctly, only the first stage moves.

    Raises:
        KitError: As in `md`.

    Source: Ma et al. (2023).
    """
    _check_stages(steps, change_point)
    with track_attack(model, x, y, threat, validate=validate) as tracker:
        ascending = tracker.logits_nat.argsort(dim=1)
        if (count := min(10, tracker.num_classes)) < 10:
            tracker.notes.append(
                f"MDMT has {count} targets, not 10: the network knows {count} classes"
            )
        streams = tracker.streams(generator, "mdmt")
        for rank in range(count - 1, -1, -1):
            target = ascending[:, -rank]  # rank 0 is index 0, the least likely class
            for raise_rival in (False, True):
                x_0 = start_point(x, threat, "uniform", streams)
                ascended = partial(
                    stage_objective,
                    raise_rival=raise_rival,
                    change_point=change_point,
                    target=target,
                )
                decompose(tracker, x_0, ascended, steps, change_point)
        return tracker.result("mdmt")


def decompose(
    tracker: AttackTracker, x_t: Tensor, ascended: partial, steps: int, change_point: int
) -> None:
    """Run once from the points `x_t` (N, C, H, W), on the examples that still hold.

    The last point is evaluated, too.
    """
    rows = tracker.unbroken()
    x_t = x_t[rows]
    for t in followed(range(steps), "step"):
        if not len(rows):
            return
        gradient, _, _ = tracker.gradient(x_t, rows, partial(ascended, rows=rows, t=t))
        on = ~tracker.broken[rows]
        rows, step = rows[on], step_length(t, steps, change_point, tracker.threat.eps)
        x_t = tensors.project(
            x_t[on] + step * tensors.ascent_direction(gradient[on], tracker.threat.norm),
            tracker.x[rows],
            tracker.threat,
        )
    if len(rows):
        tracker.logits(x_t, rows)


def step_length(t: int, steps: int, change_point: int, eps: float) -> float:
    """The step length eps (1 + cos π(t - 1) / (steps - change_point)).

    t is counted anew after the change point; at the change point it is still the old count.
    """
    since = t - change_point if t > change_point else t
    return eps * (1 + math.cos(math.pi * (since - 1) / (steps - change_point)))


def stage_objective(
    logits: Tensor,
    y: Tensor,
    *,
    rows: Tensor,
    t: int,
    raise_rival: bool,
    change_point: int,
    target: Tensor | None = None,
    dlr: bool = False,
) -> Tensor:
    """What step `t` ascends, (n,).

    `target` (N,) are classes for the whole batch; None means the strongest other class.
    """
    true, rival = tensors.true_and_top_other(logits, y)
    if target is not None:
        rival = logits.gather(1, target[rows, None]).squeeze(1)
    if t == 0:
        return true
    if t < change_point:
        return rival if raise_rival else -true
    return (rival - true) / (logits.sum(dim=1) + 1e-12) if dlr else rival - true


def _check_stages(steps: int, change_point: int) -> None:
    check_value("steps", steps, Count)
    check_value("change_point", change_point, Count)
    if change_point >= steps:
        raise KitError(
            f"change_point={change_point} leaves no step of {steps} for the margin; it must be "
            "below steps"
        )
