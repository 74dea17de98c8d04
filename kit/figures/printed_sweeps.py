"""VIR Tables 9 to 12 and MR Table 8: what each parameter does, as printed and as measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from kit.attacks.table import attack_label
from kit.evaluation.result_tables import count_seeds
from kit.experiments.runs import Run
from kit.experiments.specification import parse_overrides
from kit.figures import style as s
from kit.figures.base import Drawing, FigureData
from kit.figures.run_outputs import describe_setting, right_under_attack
from kit.methods.table import METHODS
from kit.papers.printed_attacks import attack_of
from kit.papers.printed_data import results

#: The sweeps: method, setting, its letter, and the printed table.
SWEEPS = (
    ("vir-at", "criterion.alpha", "α", "vir", "T11"),
    ("vir-at", "criterion.gamma", "γ", "vir", "T11"),
    ("vir-at", "weight.offset", "β", "vir", "T9"),
    ("mr-mail", "criterion.tau", "τ", "mr", "T8"),
    ("vir-trades", "criterion.alpha", "α", "vir", "T12"),
    ("vir-trades", "criterion.gamma", "γ", "vir", "T12"),
    ("vir-trades", "weight.offset", "β", "vir", "T10"),
)

#: The data set of the printed cells.
PRINTED_ON = "cifar10"

#: Colours reach their ends where a setting differs from the method's own by so many points.
FULL_COLOUR = 4.0

#: Points above the method's own value at each value of a setting; None where nothing is known.
SweepRow = list[float | None]


def compute_printed_sweeps(
    runs: Sequence[Run], *, attacks: str = "natural pgd20 pgd100 cw20", n: int = 0
) -> FigureData:
    """Points that each value of a parameter adds to the method's own value, under each attack.

    Printed numbers are the papers', of CIFAR-10 and ResNet-18. Beside them stand those of `runs`,
    over the seeds that have both values, where they hold a method of SWEEPS at several values and
    nothing else changed. `attacks` are names of kit.ATTACKS to measure; `n` is the first test
    images, 0 for all.
    """
    for run in runs:
        run.check_trained_here("the numbers that its method was trained with")
    sweeps = [_read_sweep(*sweep) for sweep in SWEEPS]
    names = attacks.split()
    for sweep in sweeps:
        _measure_sweep(sweep, runs, names, n)
    measured = [sweep for sweep in sweeps if sweep["seeds"]]
    facts = {
        "sweeps": sweeps,
        "measured": len(measured),
        "n": max((sweep["n"] for sweep in measured), default=0),
    }
    return FigureData(facts, describe_setting(runs[0], seed=False))


def _read_sweep(method: str, path: str, letter: str, paper: str, table: str) -> dict[str, Any]:
    """What a paper prints of one parameter: points above the method's own value, by attack."""
    cells = results(paper)
    cells = cells[
        (cells["table"] == table) & (cells["row"] == method) & (cells["dataset"] == PRINTED_ON)
    ]
    own = float(METHODS[method].hyper_parameters()[path])
    found: dict[str, dict[float, float]] = {}
    for cell in cells.to_dict("records"):
        given = parse_overrides(cell["overrides"])
        if set(given) <= {path}:
            attack = attack_of(paper, cell["attack"], paper_scale=False)
            found.setdefault(attack, {})[float(given.get(path, own))] = cell["mean"]
    values = sorted({value for row in found.values() for value in row})
    return {
        "method": method,
        "setting": path,
        "letter": letter,
        "source": f"{paper.upper()} {table}",
        "own": own,
        "values": values,
        "printed": {
            attack: [row[value] - row[own] if value in row else None for value in values]
            for attack, row in found.items()
        },
    }


def _measure_sweep(
    sweep: dict[str, Any], runs: Sequence[Run], attacks: Sequence[str], n: int
) -> None:
    """Add what the runs measure of a sweep: "measured" like "printed", "seeds" and "n"."""
    by_value = _group_runs(sweep, runs)
    own = by_value.pop(sweep["own"], {})
    both = {v: sorted(set(mine) & set(own)) for v, mine in by_value.items()}
    measured: dict[str, SweepRow] = {}
    count = 0
    for attack in attacks if any(both.values()) and own else ():
        if attack not in sweep["printed"]:
            continue
        right = {seed: right_under_attack(run, "last", attack, n) for seed, run in own.items()}
        count = len(next(iter(right.values())))
        measured[attack] = [
            0.0 if value == sweep["own"] else _mean_gain(by_value.get(value, {}), right, attack, n)
            for value in sweep["values"]
        ]
    sweep |= {
        "measured": measured,
        "seeds": min((len(seeds) for seeds in both.values() if seeds), default=0),
        "n": count,
    }


def _group_runs(sweep: Mapping[str, Any], runs: Sequence[Run]) -> dict[float, dict[int, Run]]:
    """{value of the sweep's setting: {seed: run}} of the runs whose method's rest is its own."""
    row = METHODS[sweep["method"]].hyper_parameters()
    found: dict[float, dict[int, Run]] = {}
    for run in runs:
        given = run.plan.method.hyper_parameters()
        if run.method == sweep["method"] and all(
            given[path] == value for path, value in row.items() if path != sweep["setting"]
        ):
            found.setdefault(float(given[sweep["setting"]]), {})[run.spec.seed] = run
    return found


def _mean_gain(
    mine: Mapping[int, Run], own: Mapping[int, np.ndarray], attack: str, n: int
) -> float | None:
    """Points above the own value, mean over the seeds that have both; None without any."""
    gains = [
        100 * float(right_under_attack(run, "last", attack, n).mean() - own[seed].mean())
        for seed, run in mine.items()
        if seed in own
    ]
    return float(np.mean(gains)) if gains else None


def draw_printed_sweeps(data: FigureData) -> Drawing:
    """Draw each sweep as a map: a row an attack, a column a value, in points above the own value.

    Where runs measured a sweep, their rows stand below the printed ones. What nobody knows is grey.
    """
    sweeps = data.facts["sweeps"]
    deepest = max(len(sweep["printed"]) + len(sweep["measured"]) for sweep in sweeps)
    drawing = Drawing(9.6, 2.2 + 0.36 * deepest)
    panels = drawing.subplots(2, 4).flat
    for axes, sweep in zip(panels, sweeps, strict=False):
        _draw_printed_sweep(axes, sweep)
    last = list(drawing.axes)[-1]
    last.axis("off")
    last.text(
        0,
        1,
        "points above the method's own\nvalue of the parameter (boxed)\n\n"
        "blue: better, red: worse\n"
        + (
            "here: measured, last rows"
            if data.facts["measured"]
            else "printed numbers alone:\nno runs of other values here"
        ),
        va="top",
        fontsize=8.5,
        transform=last.transAxes,
    )
    return drawing


def _draw_printed_sweep(axes: Axes, sweep: Mapping[str, Any]) -> None:
    names = [_attack_name(name) for name in sweep["printed"]]
    names += [f"{_attack_name(name)}, here" for name in sweep["measured"]]
    rows = [*sweep["printed"].values(), *sweep["measured"].values()]
    points = np.array(rows, dtype=float)  # None becomes NaN
    axes.set_facecolor("#D9D9D9")
    axes.imshow(points, cmap="RdBu", vmin=-FULL_COLOUR, vmax=FULL_COLOUR, aspect="auto")
    for (row, column), value in np.ndenumerate(points):
        if np.isfinite(value):
            pale = abs(value) < 0.6 * FULL_COLOUR
            axes.text(
                column,
                row,
                f"{value:+.1f}" if abs(value) >= 0.05 else "0.0",
                ha="center",
                va="center",
                fontsize=6.5,
                color=s.BLACK if pale else "white",
            )
    place = sweep["values"].index(sweep["own"])
    axes.add_patch(
        Rectangle((place - 0.5, -0.5), 1, len(rows), fill=False, edgecolor=s.BLACK, linewidth=1)
    )
    if sweep["measured"]:
        axes.axhline(len(sweep["printed"]) - 0.5, color=s.BLACK, linewidth=0.8)
    axes.set_xticks(range(len(sweep["values"])), [f"{value:g}" for value in sweep["values"]])
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlabel(sweep["letter"])
    axes.set_title(f"{s.label(sweep['method'])}: {sweep['letter']} ({sweep['source']})")


def _attack_name(name: str) -> str:
    return "NAT" if name == "natural" else attack_label(name)


def describe_printed_sweeps(data: FigureData) -> str:
    """The caption: how far each parameter moves accuracy, in print and here."""
    facts = data.facts
    spans = "; ".join(
        f"{s.label(sweep['method'])} {sweep['letter']} "
        f"{_span(sweep['printed'], -1):+.1f} to {_span(sweep['printed'], 1):+.1f}"
        + (
            f" (here {_span(sweep['measured'], -1):+.1f} to {_span(sweep['measured'], 1):+.1f}, "
            f"{count_seeds(sweep['seeds'])}, n = {sweep['n']})"
            if sweep["seeds"]
            else ""
        )
        for sweep in facts["sweeps"]
    )
    here = (
        f"Measured rows are of {data.setting}."
        if facts["measured"]
        else "Drawn from printed numbers alone: no run here has another value."
    )
    return (
        "Accuracy at each value of a parameter less that at the method's own value, in points, as "
        f"VIR (Tables 9 to 12) and MR (Table 8) print it for CIFAR-10 and ResNet-18. Largest fall "
        f"and rise over all attacks: {spans}. {here}"
    )


def _span(rows: Mapping[str, SweepRow], sign: int) -> float:
    """The largest gain (sign 1) or fall (sign -1) of a sweep in points."""
    known = [value for row in rows.values() for value in row if value is not None]
    return sign * max(sign * value for value in known)


def notice_printed_sweeps(data: FigureData) -> str:
    """Say where PGD and AutoAttack disagree most in the printed numbers."""
    apart = [
        (abs(pgd - aa), sweep, value, pgd, aa)
        for sweep in data.facts["sweeps"]
        for value, pgd, aa in zip(
            sweep["values"], sweep["printed"]["pgd100"], sweep["printed"]["aa"], strict=True
        )
        if pgd is not None and aa is not None
    ]
    _, sweep, value, pgd, aa = max(apart, key=lambda one: one[0])
    return (
        f"PGD-100 and AutoAttack part most for {s.label(sweep['method'])} at {sweep['letter']} = "
        f"{value:g}: {pgd:+.1f} and {aa:+.1f} points, as printed."
    )
