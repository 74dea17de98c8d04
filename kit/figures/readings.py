"""Where a paper and its code, or two readings of one formula, part:

each difference as an experiment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import matplotlib.ticker
import numpy as np
import torch

from kit.evaluation.statistics import paired_difference
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing
from kit.figures.reading import setting
from kit.methods.criteria import probabilistic_margin
from kit.methods.regularisers import fuzziness, penalised_weights
from kit.methods.step_outputs import StepOutputs
from kit.methods.table import METHODS


def curves(runs: Mapping[str, Run]) -> Drawing:
    """Mean weight (a) and accuracy under attack (b) per epoch; and the paired difference on all
    test images at the end.
    """
    drawing = Drawing(7.4, 3.0)
    left, right = drawing.subplots(1, 2)
    facts: dict = {"methods": {}, "n": len(next(iter(runs.values())).final["test_y"])}
    broken = {}
    for method, run in runs.items():
        look = {"color": s.colour(method), "linestyle": s.dash(method), "label": s.label(method)}
        history = run.history
        left.plot(history.epoch, history.weight, **look)
        right.plot(history.epoch, history.robust_test, **look)
        logits, y = run.final["test_logits_adv"], run.final["test_y"]
        broken[method] = (logits.argmax(1) != y) | ~np.isfinite(logits).all(1)
        facts["methods"][method] = {
            "burn_in": run.plan.burn_in,
            "mean_weight": float(history.weight[run.plan.burn_in :].mean()),
            "robust": float(1 - broken[method].mean()),
            "clean": float((run.final["test_logits_nat"].argmax(1) == y).mean()),
        }
    first, *others = runs
    facts["difference"] = {
        method: paired_difference(broken[first], broken[method]) for method in others
    }
    burn_in = max(run.plan.burn_in for run in runs.values())
    for panel in (left, right):
        panel.axvline(burn_in + 0.5, color=s.GREY, linewidth=0.8, linestyle=":")
        panel.set_xlabel("epoch")
    scales = [value for run in runs.values() for value in run.history.weight if value > 0]
    left.set(
        ylabel="mean weight in the epoch",
        title="a  Scale of the loss",
        yscale="log",
        ylim=(min(0.1, min(scales) / 1.5), max(scales) * 2),
    )
    left.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    left.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    left.annotate(
        "weights begin",
        (burn_in + 0.5, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4, -8),
        textcoords="offset points",
        fontsize=7.5,
        color=s.GREY,
    )
    right.set(
        ylabel=f"accuracy under attack, n = {len(next(iter(runs.values())).epoch(1)['test_y'])}",
        title="b  What it does",
        ylim=(0, 1),
    )
    s.share_axis(right)
    right.legend(loc="lower right")
    drawing.facts = facts
    words = "; ".join(
        f"{s.label(m)} {100 * d:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
        for m, (d, low, high) in facts["difference"].items()
    )
    drawing.caption = (
        f"{setting(next(iter(runs.values())))}. Mean weight once weights have begun: "
        + ", ".join(f"{s.label(m)} {f['mean_weight']:.3f}" for m, f in facts["methods"].items())
        + f". Accuracy of all {facts['n']} test images under the training attack against "
        f"{s.label(first)}, paired, 95 %: "
        f"{words}."
    )
    return drawing


def mail_normalisation(runs: Mapping[str, Run]) -> Drawing:
    """MAIL's weights as printed (mean 1 over the batch) and as released (times 3)."""
    drawing = curves(runs)
    weight = {m: f["mean_weight"] for m, f in drawing.facts["methods"].items()}
    d, low, high = drawing.facts["difference"]["mail-at-printed"]
    drawing.claims = [
        Claim(
            "MAIL's printed weights average 1, its code's do not (Alg. 1, code)",
            "Σw = M in print, 3σ(·) in code",
            f"{weight['mail-at-printed']:.3f} and {weight['mail-at']:.3f}",
            holds=abs(weight["mail-at-printed"] - 1) < 1e-3 < abs(weight["mail-at"] - 1),
            fails=False,
        ),
        Claim(
            "the two normalisations end at the same robustness",
            "not discussed",
            _points(d, low, high, "printed - code"),
            holds=low > -0.05 and high < 0.05,
            fails=low > 0 or high < 0,
        ),
    ]
    return drawing


def clirat_burn_in(runs: Mapping[str, Run]) -> Drawing:
    """CLIRAT with its burn-in, and with Algorithm 1 to the letter, whose last line overwrites it."""
    drawing = curves(runs)
    d, low, high = drawing.facts["difference"]["clirat-printed"]
    drawing.claims = [
        Claim(
            "without burn-in CLIRAT is less robust (CLIRAT s. 4.1; Algorithm 1 as printed has none)",
            "weights begin in epoch 76 of 120",
            _points(d, low, high, "as printed - with burn-in"),
            holds=high < 0,
            fails=low > 0,
        )
    ]
    return drawing


def vir_scale(runs: Mapping[str, Run]) -> Drawing:
    """AT, VIR-AT, and AT with its loss multiplied by VIR's mean weight:

    is VIR more than a smaller step?
    """
    drawing = curves(runs)
    scale = drawing.facts["methods"]["vir-at"]["mean_weight"]
    d, low, high = (
        a - b for a, b in zip(drawing.facts["difference"]["vir-at"], (0, 0, 0), strict=True)
    )
    robust = {m: f["robust"] for m, f in drawing.facts["methods"].items()}
    drawing.claims = [
        Claim(
            "VIR's weights keep the scale of the loss",
            "not stated; no normalisation is printed (VIR Eq. 8)",
            f"mean weight {scale:.3f}",
            holds=0.5 < scale < 2,
            fails=not 0.5 < scale < 2,
        ),
        Claim(
            "VIR-AT gains more over AT than AT with VIR's scale alone",
            "the control is not in the paper",
            f"AT {robust['at']:.1%}, scaled {robust['at-scaled']:.1%}, VIR-AT "
            f"{robust['vir-at']:.1%}; VIR-AT - AT "
            f"{_points(d, low, high, '')}",
            holds=robust["vir-at"] > robust["at-scaled"] and low > 0,
            fails=robust["vir-at"] <= robust["at-scaled"] or high < 0,
        ),
    ]
    return drawing


def _points(d: float, low: float, high: float, what: str) -> str:
    return f"{what} {100 * d:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]".strip()


SIGNS = {
    "mr-mail": "Eqs. 14-16, sign mended",
    "mr-mail-literal": "Eq. 4 as printed",
    "mr-mail-alg1": "Algorithm 1's bias",
    "mail-at": "for comparison",
}


def mr_signs(run: Run) -> Drawing:
    """The weight that each reading of MR gives to the probe's examples, against their margin."""
    arrays = run.epoch(len(run.history))
    seen = StepOutputs(
        torch.from_numpy(arrays["seen_y"].astype(np.int64)),
        torch.from_numpy(arrays["seen_logits_adv"]).double(),
    )
    margin = probabilistic_margin(seen.probs_adv, seen.y).numpy()
    robust = (seen.logits_adv.argmax(dim=1) == seen.y).numpy()
    drawing = Drawing(7.6, 2.7)
    facts: dict = {"n": len(margin), "robust_share": float(robust.mean()), "methods": {}}
    for panel, (method, words) in zip(
        drawing.subplots(1, len(SIGNS), sharey=True), SIGNS.items(), strict=True
    ):
        weight = METHODS[method].weigh(seen).numpy()
        share = float(weight[robust].sum() / weight.sum())
        facts["methods"][method] = {"weight_on_robust": share, "mean_weight": float(weight.mean())}
        for mask, tint in ((robust, s.BLUE), (~robust, s.VERMILLION)):
            panel.scatter(margin[mask], weight[mask], s=9, alpha=0.5, color=tint, linewidth=0)
        panel.axvline(0, color=s.GREY, linewidth=0.8)
        panel.set_title(f"{s.label(method)}\n{words}", fontsize=8)
        panel.set(xlabel=r"$p_y - p_2$ under attack", xlim=(-1.05, 1.05), ylim=(-0.1, 3.15))
        panel.annotate(
            f"{share:.0%} of the weight\non robust examples",
            (0.97, 0.55),
            xycoords="axes fraction",
            ha="right",
            fontsize=7.5,
            color=s.BLUE,
        )
        if method == next(iter(SIGNS)):
            panel.set_ylabel("weight")
    parts = {m: f["weight_on_robust"] for m, f in facts["methods"].items()}
    drawing.facts = facts
    drawing.claims = [
        Claim(
            "MR weighs the vulnerable (MR Eqs. 4, 15 as printed)",
            "larger weights for smaller margins",
            f"{parts['mr-mail-literal']:.0%} of the weight on examples that are right under "
            f"attack, {parts['mr-mail']:.0%} with "
            "the margin's sign turned",
            holds=parts["mr-mail-literal"] < 0.5,
            fails=parts["mr-mail-literal"] >= 0.5,
        )
    ]
    drawing.caption = (
        f"MR prints its margin with two signs. {setting(run)}, {run.method} after epoch "
        f"{len(run.history)}, {len(margin)} "
        f"training images of which {facts['robust_share']:.0%} are right under attack (blue). "
        f"Share of the total weight on "
        "those: " + ", ".join(f"{s.label(m)} {share:.0%}" for m, share in parts.items()) + "."
    )
    return drawing


def fuzziness_force(run: Run) -> Drawing:
    """Fuzziness of one parameter by its size (a), and sizes before and after training (b)."""
    size = torch.linspace(0, 6, 241, dtype=torch.float64)
    printed = torch.stack([fuzziness(w) for w in size])
    rho = (2 / (1 + size.exp())).clamp(1e-12, 1 - 1e-12)
    text = -(rho * rho.log() + (1 - rho) * (1 - rho).log())
    drawing = Drawing(7.2, 3.0)
    left, right = drawing.subplots(1, 2)
    left.plot(size, printed, color=s.PURPLE, label=r"Eq. 9: $\rho = 1/(1+e^{|w|})$, ½ at 0")
    left.plot(
        size,
        text,
        color=s.GREY,
        linestyle="--",
        label=r"its text: $\rho \to 1$ at 0, so $2/(1+e^{|w|})$",
    )
    left.axhline(math.log(2), color=s.BLACK, linewidth=0.8, linestyle=":")
    left.annotate(
        "ln 2",
        (6, math.log(2)),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        fontsize=7.5,
    )
    left.annotate("", (2.4, 0.07), (0.35, 0.07), arrowprops={"arrowstyle": "->", "color": s.PURPLE})
    left.annotate("descent on Eq. 9", (0.4, 0.09), fontsize=7.5, color=s.PURPLE)
    left.set(
        xlabel="size |w| of a parameter",
        ylabel="fuzziness of it",
        title="a  What is minimised",
        ylim=(0, 0.98),
    )
    left.legend(loc="upper right", fontsize=7.5)
    before, after = (
        torch.cat([w.detach().flatten() for w in penalised_weights(run.model(which))]).abs().numpy()
        for which in ("initial", "last")
    )
    edges = np.linspace(0, max(before.max(), after.max()), 40)
    right.hist(
        before,
        edges,
        histtype="step",
        color=s.BLACK,
        linestyle=":",
        label=f"initial, {np.mean(before < 0.05):.0%} below 0.05",
    )
    right.hist(
        after,
        edges,
        histtype="step",
        color=s.PURPLE,
        label=f"trained, {np.mean(after < 0.05):.0%} below 0.05",
    )
    right.set(
        xlabel=f"|w| of the convolutions (n = {len(after)})",
        ylabel="parameters",
        title=f"b  {s.label(run.method)}",
    )
    right.legend(loc="upper right", fontsize=7.5)
    grown = float((after > before).mean())
    drawing.facts = {
        "n": len(after),
        "grown": grown,
        "below_0.05": [float((v < 0.05).mean()) for v in (before, after)],
        "mean_size": [float(v.mean()) for v in (before, after)],
    }
    drawing.claims = [
        Claim(
            "fuzziness is small where parameters are near 0 (CSE s. III-C)",
            "ρ → 1 for w → 0",
            f"Eq. 9 gives ρ = ½ and its maximum ln 2 at 0; the share below 0.05 went from "
            f"{drawing.facts['below_0.05'][0]:.1%} to {drawing.facts['below_0.05'][1]:.1%}",
            holds=False,
            fails=bool(printed.argmax() == 0),
        )
    ]
    drawing.caption = (
        "CSE's text and its Eq. 9 disagree about parameters near 0: by the formula they are the "
        "fuzziest, so minimising "
        f"drives them away. {setting(run)}: {grown:.0%} of {len(after)} convolution parameters "
        f"ended larger than they "
        f"began, mean |w| {drawing.facts['mean_size'][0]:.3f} before and "
        f"{drawing.facts['mean_size'][1]:.3f} after."
    )
    return drawing
