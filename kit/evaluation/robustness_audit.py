"""Is this network as robust as it seems? Attacks in order of strength, and ten rules.

All attacks are on the same images; the rules judge what they show. `audit` takes a run and keeps
every verdict with it, as `evaluate` does; `audit_model` takes any network. The rules are in
`kit.evaluation.masking_rules`, networks that break them in `kit.evaluation.masked_networks`.
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from kit.attacks.clean_images import predict
from kit.attacks.contract import check_inputs, check_is_network, frozen, pass_copy
from kit.attacks.projected_gradient_descent import pgd
from kit.attacks.table import ATTACKS, Attack, attack_label
from kit.core import tensors
from kit.core.errors import KitError
from kit.core.parameters import Natural, Positive, check_value
from kit.core.progress import Progress, followed, format_duration, silenced
from kit.core.random_streams import Streams
from kit.core.threat import Threat
from kit.data.splits import Split
from kit.evaluation.accuracy import (
    ATTACK_BATCH,
    evaluate,
    evaluation_file,
    measure_attack,
)
from kit.evaluation.masking_rules import (
    AUTOATTACK_PARTS,
    FEWEST,
    Evidence,
    Finding,
    Light,
    apply_rules,
    worst_light,
)
from kit.evaluation.own_data import attacked_images
from kit.evaluation.statistics import wilson
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


#: Transferred images come from PGD on the other network: steps, and their size in units of eps.
TRANSFER_PGD = (50, 0.1)


#: (attack, number of images) -> the arrays of `measure_attack`.
AttackImages = Callable[[str, int], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Audit:
    """What `audit` found; print it, or read its parts.

    steps: a row an attack, in order of strength: accuracy, low and high (Wilson, 95 %), n; gains
    and loses, images that it breaks and the attack above does not, and the other way round; p of
    that difference (McNemar, exact, two-sided). "aa" is the union of AutoAttack's four, "worst
    case" of all attacks, on the images on which all but the costliest were run. findings: the ten
    rules. examples: a row an image (by id): y, broken by ("" where nothing breaks it), and each
    attack's verdict (missing where it was not asked). missing: what was not run, and why.
    """

    title: str
    threat: Threat
    steps: pd.DataFrame
    findings: tuple[Finding, ...]
    examples: pd.DataFrame
    missing: dict[str, str]
    seconds: float

    @property
    def light(self) -> Light:
        """The most serious light of all rules."""
        return worst_light([finding.light for finding in self.findings])

    @property
    def stopped(self) -> bool:
        """Tell whether it was interrupted."""
        return STOPPED in self.missing.values()

    def finding(self, rule: str) -> Finding:
        """Return the finding of the rule whose name begins with `rule`."""
        return next(finding for finding in self.findings if finding.rule.startswith(rule))

    @cached_property
    def caption(self) -> str:
        """Network, threat, the most serious light, time, and what was not run, in one line."""
        left = "".join(f" Not run: {_label(name)} ({why})." for name, why in self.missing.items())
        took = format_duration(self.seconds)
        return f"{self.title}, {self.threat}: {WORDS[self.light]}. {took}.{left}"

    def record(self) -> dict:
        """Return all of it but the table of examples, as JSON values."""
        rows = {
            name: {key: None if pd.isna(value) else value for key, value in row.items()}
            for name, row in self.steps.astype(object).to_dict("index").items()
        }
        return {
            "title": self.title,
            "threat": str(self.threat),
            "light": self.light,
            "ladder": rows,
            "findings": [finding.record() for finding in self.findings],
            "missing": self.missing,
            "seconds": round(self.seconds, 1),
        }

    def __repr__(self) -> str:
        lines = [self.caption, "", self._table().to_string(), ""]
        for number, finding in enumerate(self.findings, 1):
            lines += [
                f"{number:>2} {MARKS[finding.light]} {finding.rule}",
                f"{'':16}{finding.sentence}{_some_ids(finding)}",
            ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{number}</td>"
            f"<td style='background:{COLOURS[finding.light]};color:#fff;white-space:nowrap'>"
            f"<b>{MARKS[finding.light].strip()}</b></td>"
            f"<td style='text-align:left'><b>{html.escape(finding.rule)}</b><br>"
            f"{html.escape(finding.sentence + _some_ids(finding))}</td></tr>"
            for number, finding in enumerate(self.findings, 1)
        )
        return (
            f"<p>{html.escape(self.caption)}</p>{self._table().to_html(border=0)}<table><thead>"
            "<tr><th>rule</th><th>light</th><th>finding</th></tr>"
            f"</thead><tbody>{rows}</tbody></table>"
        )

    def _table(self) -> pd.DataFrame:
        table = self.steps
        return pd.DataFrame(
            {
                "accuracy": [f"{value:.1%}" for value in table["accuracy"]],
                "95 % interval": [
                    f"{low:.1%} to {high:.1%}"
                    for low, high in zip(table["low"], table["high"], strict=True)
                ],
                "n": table["n"].to_numpy(),
                **{
                    name: [_or_dash(value, digits) for value in table[name]]
                    for name, digits in (
                        ("gains", ".0f"),
                        ("loses", ".0f"),
                        ("p", ".2g"),
                        ("forwards", ".0f"),
                        ("backwards", ".0f"),
                    )
                },
            },
            index=[_label(name) for name in table.index],
        )


STOPPED = "stopped"

WORDS = {
    "red": "red: it looks more robust than it is, or these attacks cannot tell",
    "amber": "amber: look closer",
    "green": "green: no sign of masking",
    "not judged": "nothing could be judged",
}

MARKS = {
    "red": "✗ RED       ",
    "amber": "! AMBER     ",
    "green": "✓ GREEN     ",
    "not judged": "? NOT JUDGED",
}

#: Okabe and Ito's, darkened where white letters stand on them; the marks say the same without
#: colour.
COLOURS = {"red": "#B34700", "amber": "#8F6200", "green": "#00694D", "not judged": "#595959"}


def _some_ids(finding: Finding) -> str:
    """Name the first few ids behind a warning, in words."""
    ids = finding.ids
    if not ids or finding.light not in ("red", "amber"):
        return ""
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return f" Ids: {', '.join(map(str, ids[:5]))}{more}."


def _label(name: str) -> str:
    """Name an attack for a reader; other parts of the audit keep their names."""
    return attack_label(name) if name in ATTACKS else name


def _or_dash(value: float, digits: str) -> str:
    return "-" if pd.isna(value) else format(value, digits)


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
    `AUDIT_STEPS`). which: last or best network. budget: minutes; attacks that are not expected to
    fit, the costliest first, are left out. transfer: another run on the same data, whose
    adversarial images are tried on this one. The expected time is printed first. Verdicts are kept
    by `evaluate`: asking again is quick, and after Ctrl-C, which gives what is there by then, it
    goes on.

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
            f"transfer={type(transfer).__name__}: images are transferred to a run from another run"
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
    """Return the steps to take, and {step left out: why}.

    Prints what it will cost: passes, times images, times a pass's measured time; what is stored
    costs nothing.
    """
    there = [step for step in AUDIT_STEPS if step.attack in ATTACKS]
    missing = {step.attack: "no such attack" for step in AUDIT_STEPS if step.attack not in ATTACKS}
    counts = {step.attack: min(step.most or len(split), len(split)) for step in there}
    new = [step for step in there if not is_stored(step.attack, counts[step.attack])]
    second = seconds_of_a_pass(model, split, threat) if new else 0.0
    expected = {step.attack: second * step.cost * counts[step.attack] for step in new}
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
            f"{_label(name)} {format_duration(expected[name])}" for name in fits[:-4:-1]
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


# --------------------------------------------------------------------------- looking at the network


def _batches(split: Split) -> tuple[Tensor, ...]:
    return torch.arange(len(split), device=split.y.device).split(ATTACK_BATCH[split.y.device.type])


def pass_images(model: nn.Module, split: Split) -> dict[str, np.ndarray]:
    """Pass clean images twice through the network, once with a gradient.

    Returns ids and y (n,), logits and again (n, K) of two passes, and slope (n,): the largest |∂
    cross-entropy / ∂ pixel|.

    Raises:
        KitError: There are no images, the labels or a shape do not fit, or no gradient leads back
            from the output.
    """
    if not len(split):
        raise KitError("there are no images to audit; choose another split")
    pieces: dict[str, list[Tensor]] = {"logits": [], "again": [], "slope": []}
    with frozen(model):
        with torch.no_grad():
            few = split.x(slice(0, 16))
            tensors.check_logit_shape(pass_copy(model, few), len(few))
        for rows in _batches(split):
            x = split.x(rows).requires_grad_(True)
            with torch.enable_grad():
                logits = model(x)
                if not logits.requires_grad:
                    raise KitError(
                        "no gradient leads from the network's output back to its input, so nothing "
                        "but black boxes could attack it. Look for no_grad, detach or whole "
                        "numbers in its forward pass"
                    )
                if bool(logits.isfinite().all()):
                    check_inputs(model, x.detach(), split.y[rows])
                (gradient,) = torch.autograd.grad(
                    tensors.per_example_cross_entropy(logits, split.y[rows]).sum(),
                    x,
                    materialize_grads=True,
                )
            pieces["logits"].append(logits.detach())
            pieces["slope"].append(tensors.norm(gradient, "linf"))
            with torch.no_grad():
                pieces["again"].append(model(x.detach()))
    arrays = {name: torch.cat(parts).cpu().numpy() for name, parts in pieces.items()}
    return {"ids": split.ids.cpu().numpy(), "y": split.y.cpu().numpy(), **arrays}


def follow_losses(model: nn.Module, split: Split, threat: Threat) -> np.ndarray:
    """Return the cross-entropy at PGD-100's points, (n, 100) in nats, the start first.

    Its settings are those of the audit's step.
    """
    steps, step = (ATTACKS["pgd100"].settings[name] for name in ("steps", "step"))
    along: list[Tensor] = []
    for rows in _batches(split):
        y = split.y[rows]
        path: list[Tensor] = []

        def watch(
            t: int, x_t: Tensor, logits: Tensor, y: Tensor = y, path: list[Tensor] = path
        ) -> None:
            path.append(tensors.per_example_cross_entropy(logits, y))

        pgd(
            model,
            split.x(rows),
            y,
            threat,
            generator=Streams(split.ids[rows], "audit", "losses"),
            watch=watch,
            steps=steps,
            step_size=step * threat.eps,
        )
        along.append(torch.stack(path, dim=1))
    return torch.cat(along).cpu().numpy()


def attack_unbounded(model: nn.Module, split: Split, threat: Threat) -> np.ndarray:
    """Run PGD-100 in the ball of the threat's norm that holds every image.

    Returns (n,) bool: broken.
    """
    unbounded = Threat(
        threat.norm, 1.0 if threat.norm == "linf" else split.images[0].numel() ** 0.5
    )
    stronger: Attack = ATTACKS["pgd100"].but(stop_early=True)
    return measure_attack(model, split, unbounded, stronger)["broken"]


def transfer_images(
    source: nn.Module, model: nn.Module, split: Split, threat: Threat
) -> dict[str, np.ndarray]:
    """Try the last iterates of PGD against `source` on `model`.

    Returns (n,) arrays: broken, forwards, backwards. The clean image counts, too.
    """
    check_inputs(source, split.x(slice(0, 256)), split.y[:256])
    steps, step = TRANSFER_PGD
    broken = []
    for rows in _batches(split):
        x, y = split.x(rows), split.y[rows]
        x_adv = pgd(
            source,
            x,
            y,
            threat,
            generator=Streams(split.ids[rows], "audit", "transfer"),
            steps=steps,
            step_size=step * threat.eps,
        )
        with frozen(model):
            broken.append((predict(model, x_adv) != y) | (predict(model, x) != y))
    passes = np.full(len(split), 2)
    return {"broken": torch.cat(broken).cpu().numpy(), "forwards": passes, "backwards": 0 * passes}


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


def step_table(evidence: Evidence, done: Mapping[str, Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """Build `Audit.steps`; the unions stand below the attacks and are compared with none."""
    rows, before = {}, None
    for name, broken in evidence.broken.items():
        rows[name] = (
            _accuracy(broken)
            | _mcnemar(before, broken)
            | {key: float(done[name][key].mean()) for key in ("forwards", "backwards")}
        )
        before = broken
    if all(name in evidence.broken for name in AUTOATTACK_PARTS):
        rows["aa"] = _accuracy(evidence.any_of(AUTOATTACK_PARTS, evidence.common(AUTOATTACK_PARTS)))
    if len(evidence.broken) > 1:
        wide = [
            name
            for name, broken in evidence.broken.items()
            if len(broken) >= min(FEWEST, len(evidence.ids))
        ]
        rows["worst case"] = _accuracy(worst_case(evidence, evidence.common(tuple(wide))))
    columns = ["accuracy", "low", "high", "n", "gains", "loses", "p", "forwards", "backwards"]
    return (
        pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("attack")
        if rows
        else pd.DataFrame(columns=columns).rename_axis("attack")
    )


def worst_case(evidence: Evidence, count: int) -> np.ndarray:
    """Return (count,) bool: broken by any attack that was run on the image."""
    broken = np.zeros(count, dtype=bool)
    for verdicts in evidence.broken.values():
        broken[: len(verdicts)] |= verdicts[:count]
    return broken


def _accuracy(broken: np.ndarray) -> dict[str, float]:
    right = int((~broken).sum())
    low, high = wilson(right, len(broken))
    return {"accuracy": right / len(broken), "low": low, "high": high, "n": len(broken)}


def _mcnemar(before: np.ndarray | None, broken: np.ndarray) -> dict[str, float]:
    """Compare `broken` with the attack before, on the images of both: gains, loses and p."""
    if before is None:
        return {}
    n = min(len(before), len(broken))
    gains, loses = int((broken[:n] & ~before[:n]).sum()), int((before[:n] & ~broken[:n]).sum())
    return {
        "gains": gains,
        "loses": loses,
        "p": float(binomtest(gains, gains + loses).pvalue) if gains + loses else 1.0,
    }


def examples_table(evidence: Evidence) -> pd.DataFrame:
    """Build `Audit.examples`; "by" is the first attack, in their order, that breaks the image."""
    table = pd.DataFrame({"y": evidence.y, "by": ""}, index=pd.Index(evidence.ids, name="id"))
    for name, broken in evidence.broken.items():
        table[name] = pd.array(
            [*broken.tolist(), *[None] * (len(evidence.ids) - len(broken))], dtype="boolean"
        )
        first = table[name].fillna(False).to_numpy(dtype=bool) & (table["by"] == "").to_numpy()
        table.loc[first, "by"] = name
    return table
