"""Is this network as robust as it seems? Attacks in order of strength, and ten rules.

All attacks are on the same images; the rules judge what they show. `audit` takes a run and keeps
every verdict with it, as `evaluate` does; `audit_model` takes any network. The rules are in
`kit.evaluation.masking_rules`, networks that break them in `kit.evaluation.masked_networks`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from kit.attacks.contract import check_is_network
from kit.attacks.table import ATTACKS
from kit.core.errors import KitError
from kit.core.parameters import Natural, Positive, check_value
from kit.core.progress import Progress, followed, format_duration, silenced
from kit.core.threat import Threat
from kit.data.splits import Split
from kit.evaluation.accuracy import ATTACK_BATCH, evaluate, evaluation_file, measure_attack
from kit.evaluation.audit_passes import (
    attack_unbounded,
    follow_losses,
    pass_images,
    transfer_images,
)
from kit.evaluation.audit_report import STOPPED, Audit, audit_label, examples_table, step_table
from kit.evaluation.masking_rules import (
    Evidence,
    apply_rules,
)
from kit.evaluation.own_data import attacked_images
from kit.experiments.devices import pick_device, threads_for
from kit.experiments.runs import Run


@dataclass(frozen=True)
class AuditStep:
    """An attack of the audit, and its cost.

    `forwards` and `backwards`: passes of an image that nothing breaks, at ten classes (Square's one
    for each proposal, about); `most`: images that it is run on, 0 = all.
    """

    attack: str
    forwards: int
    backwards: int
    most: int = 0

    @property
    def cost(self) -> int:
        """In forward passes; a gradient costs two more."""
        return self.forwards + 2 * self.backwards


#: In the order of their strength, gradients first; those that are not in `ATTACKS` are left out.
#: AutoAttack's four run on all images they are given instead of on what the one before left, so
#: that they can be compared; their union is AutoAttack.
AUDIT_STEPS = (
    AuditStep("natural", 1, 0),
    AuditStep("fgsm", 3, 1),
    AuditStep("pgd10", 12, 10),
    AuditStep("pgd20", 22, 20),
    AuditStep("pgd100", 102, 100),
    AuditStep("cw20", 22, 20),
    AuditStep("md", 103, 100),
    AuditStep("fmn100", 101, 100),
    AuditStep("apgd-ce", 102, 101),
    AuditStep("apgd-t", 910, 909, most=200),
    AuditStep("fab-t", 1801, 900, most=200),
    AuditStep("square", 5002, 0, most=200),
    AuditStep("spsa100", 51_301, 0, most=20),
)


#: A batch that would take PGD-10 longer than these seconds is timed on this many images.
FEW_IMAGES, LONG_SECONDS = 8, 5.0


#: Images on which the loss is followed along PGD-100, and which are attacked without a bound.
PROBED_IMAGES = 200

#: What these two cost. Their results are never stored.
PROBES = (
    AuditStep("losses", 102, 100, PROBED_IMAGES),
    AuditStep("unbounded", 102, 100, PROBED_IMAGES),
)


#: (attack, number of images) -> the arrays of `measure_attack`.
AttackImages = Callable[[str, int], Mapping[str, np.ndarray]]


# ---------------------------------------------------------------------------------- the two ways in


def audit(
    run: Run | nn.Module,
    *,
    n: int = 0,
    which: str = "last",
    data: Any = None,
    threat: Threat | None = None,
    device: str = "auto",
    budget: float | None = None,
    transfer: Run | nn.Module | None = None,
    quiet: bool = False,
) -> Audit:
    """Attack a run's test images in steps of rising strength, and judge the results by ten rules.

    n: only the first n images (0 = all); the costly attacks take at most 200 of them, SPSA 20 (see
    `AUDIT_STEPS`). which: last or best network. budget: minutes; attacks and probes that are
    not expected to fit, the costliest first, are left out. transfer: another run on the same data,
    whose adversarial images are tried on this one. The expected time is printed first. Verdicts are
    kept by `evaluate`: asking again is quick, and after Ctrl-C, which gives what is there by then,
    it goes on.

    Any network can take the place of the run, with data=(x, y) and a threat, as in `evaluate`; a
    transfer is then a network, too, and nothing is kept.

    Raises:
        KitError: A setting is out of range, the transfer is from another data set or from the run
            itself, or `evaluate` refuses. NaN logits are not refused: they are a finding.
    """
    if not isinstance(run, Run):
        return _audit_network(run, n, data, threat, device, budget, transfer, quiet)
    if data is not None or threat is not None:
        raise KitError(
            "a run is audited on its own images and threat; pass run.model() in its place, or "
            "adopt it with overrides"
        )
    if transfer is not None and not isinstance(transfer, Run):
        raise KitError(
            f"transfer={type(transfer).__name__} must be another run; its images are transferred"
        )
    _check_settings(n, budget)
    if transfer is not None and (
        transfer.plan.recipe.data != run.plan.recipe.data or transfer.key == run.key
    ):
        raise KitError(
            f"transfer={transfer.spec}: images are transferred from another run on "
            f"{run.plan.recipe.data}, with another method, seed or setting"
        )
    where = pick_device(device)
    with silenced(quiet):
        split = run.data().test.to(where)

    def ask(name: str, count: int) -> Mapping[str, np.ndarray]:
        table = evaluate(
            run,
            [name],
            n=0 if count == len(split) else count,
            which=which,
            device=device,
            quiet=quiet,
        )
        return table.attrs["examples"][name]

    def is_stored(name: str, count: int) -> bool:
        n = 0 if count == len(split) else count
        return evaluation_file(run, name, n=n, which=which)[1].exists()

    source = None if transfer is None else transfer.model("last", where)
    with threads_for(run.plan.recipe.model, where):
        return _run_audit(
            str(run.spec),
            run.model(which, where),
            split,
            run.plan.recipe.threat,
            ask,
            n,
            budget,
            source,
            quiet,
            is_stored,
        )


def _audit_network(
    model: object,
    n: int,
    data: Any,
    threat: Threat | None,
    device: str,
    budget: float | None,
    transfer: object,
    quiet: bool,
) -> Audit:
    """Take `audit` of a network that is no run."""
    _check_settings(n, budget)
    source = transfer.model() if isinstance(transfer, Run) else transfer
    for network in (model, source) if source is not None else (model,):
        check_is_network(network)
    assert isinstance(model, nn.Module) and (source is None or isinstance(source, nn.Module))
    split, threat = attacked_images(model, data, threat, n, device)
    if source is not None:
        source = source.to(split.y.device)
    return audit_model(
        model,
        split,
        threat,
        budget=budget,
        transfer=source,
        title=type(model).__name__,
        quiet=quiet,
    )


def audit_model(
    model: nn.Module,
    split: Split,
    threat: Threat,
    *,
    n: int = 0,
    budget: float | None = None,
    transfer: nn.Module | None = None,
    title: str = "a network",
    quiet: bool = False,
) -> Audit:
    """Take `audit` of any network on the images of `split`, on the device that both are on.

    Nothing is kept. See `audit`.

    Raises:
        KitError: A setting is out of range, or the network cannot be attacked.
    """
    _check_settings(n, budget)

    def ask(name: str, count: int) -> Mapping[str, np.ndarray]:
        with Progress(f"{name} on {title}", count, quiet=quiet) as progress:
            images = split.take(slice(0, count))
            arrays = measure_attack(model, images, threat, ATTACKS[name], progress=progress)
        progress.close(f"{1 - arrays['broken'].mean():.1%} of {count}")
        return arrays

    return _run_audit(title, model, split, threat, ask, n, budget, transfer, quiet)


def _check_settings(n: int, budget: float | None) -> None:
    check_value("n", n, Natural)
    if budget is not None:
        check_value("budget", budget, Positive)


def _run_audit(
    title: str,
    model: nn.Module,
    split: Split,
    threat: Threat,
    ask: AttackImages,
    n: int,
    budget: float | None,
    transfer: nn.Module | None,
    quiet: bool,
    is_stored: Callable[[str, int], bool] = lambda name, count: False,
) -> Audit:
    """Do the audit itself; `ask` attacks, which costs nothing where `is_stored` says so."""
    started, split = time.monotonic(), split.take(slice(0, n or None))
    evidence = pass_images(model, split)
    todo: dict[str, Callable] = {
        "losses": lambda: follow_losses(model, split.take(slice(0, PROBED_IMAGES)), threat),
        "unbounded": lambda: attack_unbounded(model, split.take(slice(0, PROBED_IMAGES)), threat),
    }
    if not np.isfinite(evidence["logits"]).all():
        missing = dict.fromkeys(
            [*todo, *(step.attack for step in AUDIT_STEPS)], "the logits are not finite"
        )
        return _report(title, threat, evidence, {}, missing, started)
    steps, missing = choose_steps(model, split, threat, budget, quiet, is_stored)
    todo = {name: work for name, work in todo.items() if name not in missing}
    for step in steps:
        todo[step.attack] = lambda step=step: ask(
            step.attack, min(step.most or len(split), len(split))
        )
    if transfer is not None:
        todo["transfer"] = lambda: transfer_images(transfer, model, split, threat)
    done: dict = {}
    try:
        for name, work in followed(list(todo.items()), "attack"):
            done[name] = work()
    except KeyboardInterrupt:
        missing |= dict.fromkeys((name for name in todo if name not in done), STOPPED)
    evidence |= {name: done.pop(name) for name in ("losses", "unbounded") if name in done}
    return _report(title, threat, evidence, done, missing, started)


# -------------------------------------------------------------------------------- what it will cost


def choose_steps(
    model: nn.Module,
    split: Split,
    threat: Threat,
    budget: float | None,
    quiet: bool,
    is_stored: Callable[[str, int], bool],
) -> tuple[list[AuditStep], dict[str, str]]:
    """Return the steps to take, and {step or probe left out: why}.

    Prints what it will cost: passes, times images, times a pass's measured time; what is stored
    costs nothing.
    """
    there = [step for step in AUDIT_STEPS if step.attack in ATTACKS]
    missing = {step.attack: "no such attack" for step in AUDIT_STEPS if step.attack not in ATTACKS}
    counts = {step.attack: min(step.most or len(split), len(split)) for step in there}
    new = [step for step in there if not is_stored(step.attack, counts[step.attack])]
    second = seconds_of_a_pass(model, split, threat) if new or budget is not None else 0.0
    counts |= {probe.attack: min(probe.most, len(split)) for probe in PROBES}
    expected = {step.attack: second * step.cost * counts[step.attack] for step in (*new, *PROBES)}
    total, fits = 0.0, []
    for name in sorted(expected, key=expected.__getitem__):
        total += expected[name]
        if budget is None or total <= 60 * budget:
            fits.append(name)
        else:
            missing[name] = f"over the budget of {budget:g} min"
    if not (quiet or new):
        print("the verdicts of all attacks are stored", flush=True)
    elif fits and not quiet:
        parts = ", ".join(
            f"{audit_label(name)} {format_duration(expected[name])}" for name in fits[:-4:-1]
        )
        total_time = format_duration(sum(expected[name] for name in fits))
        print(
            f"at most about {total_time} for {len(split)} images ({parts}, ...); what breaks early "
            "takes less",
            flush=True,
        )
    return [step for step in there if step.attack not in missing], missing


def seconds_of_a_pass(model: nn.Module, split: Split, threat: Threat) -> float:
    """Measure the seconds of a forward pass of one image, attack and all, from PGD-10 on a batch.

    A gradient counts two more. Where a batch would take long, a few images are enough.
    """
    batch = split.take(slice(0, ATTACK_BATCH[split.y.device.type]))
    few = batch.take(slice(0, FEW_IMAGES))
    for some in (few, batch, batch):  # a size's first warms up
        started = time.monotonic()
        arrays = measure_attack(model, some, threat, ATTACKS["pgd10"])
        taken = time.monotonic() - started
        if taken * len(batch) > LONG_SECONDS * len(some):
            break
    return taken / float(arrays["forwards"].sum() + 2 * arrays["backwards"].sum())


# ------------------------------------------------------------------------------------ laying it out


def _report(
    title: str,
    threat: Threat,
    arrays: dict[str, np.ndarray],
    done: Mapping[str, Mapping[str, np.ndarray]],
    missing: dict[str, str],
    started: float,
) -> Audit:
    broken = {name: arrays["broken"] for name, arrays in done.items()}
    evidence = Evidence(**arrays, broken=broken)
    return Audit(
        title,
        threat,
        step_table(evidence, done),
        apply_rules(evidence),
        examples_table(evidence),
        missing,
        time.monotonic() - started,
    )
