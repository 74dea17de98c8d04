"""Methods as printed beside the same as released or controlled: scale of the loss and effect.

MAIL's normalisation, CLIRAT's burn-in and VIR's scale, each difference as an experiment.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes

from kit.evaluation.statistics import paired_difference, wilson
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData, format_points
from kit.figures.explanation import EPOCHS
from kit.figures.run_outputs import describe_setting
from kit.papers.claim_verdict import Estimate, exactly


def compute_weight_scale(runs: Mapping[str, Run]) -> FigureData:
    """Mean weight once weights have begun, and the paired difference in accuracy under attack.

    The difference is to the first of `runs`, on all test images at the end.
    """
    methods, broken = {}, {}
    for method, run in runs.items():
        logits, y = run.final["test_logits_adv"], run.final["test_y"]
        broken[method] = (logits.argmax(1) != y) | ~np.isfinite(logits).all(1)
        methods[method] = {
            "burn_in": run.plan.burn_in,
            "mean_weight": float(run.history.weight[run.plan.burn_in :].mean()),
            "robust": float(1 - broken[method].mean()),
            "clean": float((run.final["test_logits_nat"].argmax(1) == y).mean()),
            "learned_nothing": run.learned_nothing,
        }
    first, *others = runs
    facts = {
        "methods": methods,
        "n": len(broken[first]),
        "difference": {
            method: paired_difference(broken[first], broken[method]) for method in others
        },
    }
    extras = {
        "broken": broken,
        "histories": {method: run.history for method, run in runs.items()},
        "probe": len(runs[first].epoch(1)["test_y"]),
    }
    return FigureData(facts, describe_setting(runs[first]), extras=extras)


#: VIR's weights against equal weights of the same mean: exactly 1 in both rows of the first pair;
#: in the second the control has the mean that VIR's weights would have on its own network.
SAME_SCALE = (("vir-at-mean", "at"), ("vir-at", "at-scaled"))


def compute_vir_scale(runs: Mapping[str, Run]) -> FigureData:
    """What `compute_weight_scale` computes, and the paired differences of `SAME_SCALE`."""
    data = compute_weight_scale(runs)
    broken = data.extras["broken"]
    data.facts["reweighting"] = {
        f"{row} - {control}": paired_difference(broken[control], broken[row])
        for row, control in SAME_SCALE
    }
    return data


def draw_weight_scale(data: FigureData) -> Drawing:
    """Draw mean weight (a) and accuracy under attack (b) per epoch.

    A mean weight that never changes is said in the title. A cross ends the curves of a network that
    learned nothing, and a grey bar is the interval of one point.
    """
    histories, methods = data.extras["histories"], data.facts["methods"]
    scales = [weight for history in histories.values() for weight in history.weight]
    varies = max(scales) > 1.01 * min(scales)
    drawing = Drawing(7.4 if varies else 5.6, 3.3)
    *scale, right = drawing.subplots(1, 1 + varies, squeeze=False)[0]
    # a control that never reweights has 0, too
    begins = {method: fact["burn_in"] for method, fact in methods.items()}
    apart = len(set(begins.values()) - {0}) > 1
    for method, history in histories.items():
        words = s.label(method)
        if apart:
            since = f"after epoch {begins[method]}" if begins[method] else "from epoch 1"
            words += f": weights {since}"
        dead = methods[method]["learned_nothing"]
        look = {
            "color": s.colour(method),
            "linestyle": s.dash(method),
            "label": words + ", learned nothing (×)" * dead,
            **({"marker": "x", "markevery": [-1], "markeredgewidth": 1.5} if dead else {}),
        }
        right.plot(history.epoch, history.robust_test, **look)
        for panel in scale:
            panel.plot(history.epoch, history.weight, **look)
    for panel in (*scale, right):
        _name_burn_ins(panel, set(begins.values()) - {0})
        panel.set_xlabel("epoch")
    for panel in scale:
        _finish_scale(panel, histories)
    right.set(
        ylabel=f"accuracy under attack, n = {data.extras['probe']}",
        title="b  Accuracy under attack"
        if varies
        else f"Accuracy under attack; the mean weight is {max(scales):.2g} throughout",
        ylim=(0, 1),
    )
    _show_interval(right, data)
    s.share_axis(right)
    drawing.legend(
        *right.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=1 if apart else len(histories),
        handlelength=3.2,
    )
    return drawing


def _show_interval(axes: Axes, data: FigureData) -> None:
    """Show how wide the interval of one point is: that of the first method at the end."""
    history, n = next(iter(data.extras["histories"].values())), data.extras["probe"]
    middle = float(history.robust_test.iloc[-1])
    interval = (middle, *wilson(round(middle * n), n))
    s.show_one_interval(axes, float(history.epoch.max()), float(history.epoch.min()), interval)


def _finish_scale(axes: Axes, histories: Mapping) -> None:
    scales = [value for history in histories.values() for value in history.weight if value > 0]
    axes.set(
        ylabel="mean weight in the epoch",
        title="a  Scale of the loss",
        yscale="log",
        ylim=(min(0.1, min(scales) / 1.5), max(scales) * 2),
    )
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _name_burn_ins(axes: Axes, burn_ins: set[int]) -> None:
    """Draw a dotted line where weights begin, and say so at each, one below the other."""
    for place, epochs in enumerate(sorted(burn_ins)):
        axes.axvline(epochs + 0.5, color=s.GREY, linewidth=0.8, linestyle=":")
        axes.annotate(
            "weights begin",
            (epochs + 0.5, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -8 - 10 * place),
            textcoords="offset points",
            fontsize=7.5,
            color=s.GREY,
        )


def describe_weight_scale(data: FigureData) -> str:
    """The caption: mean weights, and the paired differences."""
    facts = data.facts
    first = next(iter(facts["methods"]))
    scales = ", ".join(f"{s.label(m)} {f['mean_weight']:.3f}" for m, f in facts["methods"].items())
    words = "; ".join(
        f"{s.label(m)} {format_points(row, ' points')}" for m, row in facts["difference"].items()
    )
    named = (
        f" Burn-ins in names count epochs of the papers' {EPOCHS}; these runs have "
        f"{len(next(iter(data.extras['histories'].values())))}."
        if any(f"burn-in-{EPOCHS // 4}" in method for method in facts["methods"])
        else ""
    )
    return (
        f"{data.setting}.{named} Mean weight once weights have begun: {scales}. Accuracy of all "
        f"{facts['n']} test images under the training attack against {s.label(first)}, paired, 95 "
        f"%: {words}.{_describe_unlearned(facts['methods'])}"
    )


def _describe_unlearned(methods: Mapping[str, Mapping]) -> str:
    """The sentences on networks that learned nothing; "" where all learned."""
    return "".join(
        f" {s.label(method)} learned nothing: it gives every image one class, so its difference "
        "says nothing about robustness."
        for method, found in methods.items()
        if found["learned_nothing"]
    )


def decide_mail_normalisation(data: FigureData) -> list[Claim]:
    """Decide how MAIL's weights as printed (mean 1 over the batch) and as released (3 σ) differ."""
    printed, code = (
        data.facts["methods"][method]["mean_weight"] for method in ("mail-at-printed", "mail-at")
    )
    difference = data.facts["difference"]["mail-at-printed"]
    return [
        Claim(
            "MAIL's printed weights average 1, its code's do not (Alg. 1, code)",
            "Σw = M in print, 3σ(·) in code",
            f"{printed:.3f} and {code:.3f}",
            (
                exactly("|mean as printed - 1|", abs(printed - 1), "< 0.001"),
                exactly("|mean as released - 1|", abs(code - 1), "> 0.001"),
            ),
        ),
        Claim(
            "the two normalisations end at the same robustness",
            "not discussed",
            f"printed - code {format_points(difference, ' points')}",
            (
                Estimate("printed - code", "> -0.05", *difference),
                Estimate("printed - code, above", "< 0.05", *difference),
            ),
        ),
    ]


def decide_clirat_burn_in(data: FigureData) -> list[Claim]:
    """Decide what earlier weights cost CLIRAT: a shorter burn-in, and none, as Algorithm 1 has it.

    The algorithm to the letter overwrites its burn-in in its last line.
    """
    return [
        _compare_burn_ins(
            data,
            "without burn-in, or with a shorter one, CLIRAT is less robust (CLIRAT s. 4.1; "
            "Algorithm 1 as printed has none)",
            "weights begin in epoch 76 of 120",
            {
                "clirat-printed": "as printed - with burn-in",
                "clirat-burn-in-30": "burn-in of 30 - of 75",
            },
            number=15,
        )
    ]


def decide_vir_burn_in(data: FigureData) -> list[Claim]:
    """Decide what earlier weights cost VIR-AT: a shorter burn-in, and none."""
    return [
        _compare_burn_ins(
            data,
            "without burn-in, or with a shorter one, VIR-AT is less robust (VIR s. 4.4)",
            "weights begin in epoch 76 of 115",
            {
                "vir-at-burn-in-0": "no burn-in - burn-in of 75",
                "vir-at-burn-in-30": "burn-in of 30 - of 75",
            },
            number=98,
        )
    ]


def _compare_burn_ins(
    data: FigureData, text: str, printed: str, names: Mapping[str, str], *, number: int
) -> Claim:
    """The claim that each method of `names`, which reweights earlier, ends less robust."""
    difference = data.facts["difference"]
    return Claim(
        text,
        printed,
        ", ".join(
            f"{name} {format_points(difference[method], ' points')}"
            for method, name in names.items()
        ),
        tuple(Estimate(name, "< 0", *difference[method]) for method, name in names.items()),
        number=number,
    )


def decide_vir_scale(data: FigureData) -> list[Claim]:
    """Decide whether VIR's weights keep the loss's scale, and gain at an equal scale.

    A gain by reweighting is one over the control of the same scale, not over AT.
    """
    means = {method: fact["mean_weight"] for method, fact in data.facts["methods"].items()}
    scale = means["vir-at"]
    total = format_points(data.facts["difference"]["vir-at"], " points")
    claims = [
        Claim(
            "VIR's weights keep the scale of the loss",
            "not stated; no normalisation is printed (VIR Eq. 8)",
            f"mean weight {scale:.3f}",
            (
                exactly("mean weight", scale, "> 0.5"),
                exactly("mean weight, above", scale, "< 2"),
            ),
        )
    ]
    for row, control in SAME_SCALE:
        gain = data.facts["reweighting"][f"{row} - {control}"]
        claims.append(
            Claim(
                f"VIR's reweighting gains at an equal scale ({s.label(row)}, control "
                f"{s.label(control)})",
                "the control is not in the paper",
                f"{s.label(row)} - {s.label(control)} {format_points(gain, ' points')}, mean "
                f"weights {means[row]:.3f} and {means[control]:.3f}; VIR-AT - AT {total}",
                (Estimate(f"{row} - {control}", "> 0", *gain),),
            )
        )
    return claims
