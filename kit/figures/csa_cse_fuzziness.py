"""CSE Figs. 5 and 6, Eqs. 8 and 9: does fuzziness measure how Min-Max a network is?"""

from __future__ import annotations

import math
from collections.abc import Mapping

import matplotlib.ticker
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import nn

from kit.evaluation.statistics import paired_difference
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData
from kit.figures.run_outputs import describe_setting, protected_class
from kit.methods.regularisers import conv_weights, fuzziness, penalised_weights
from kit.papers.claim_verdict import Estimate, exactly


def layer_fuzziness(run: Run, which: str) -> dict[str, float]:
    """{convolution: its fuzziness} of one of a run's networks, "initial" or "last"."""
    return {
        name: float(fuzziness(w.detach())) for name, w in conv_weights(run.model(which)).items()
    }


def network_fuzziness(model: nn.Module) -> float:
    """Eq. 8 on all convolutions of a network together: every parameter counts alike."""
    return float(fuzziness(torch.cat([w.detach().flatten() for w in penalised_weights(model)])))


def fuzziness_by_epoch(run: Run) -> np.ndarray:
    """Eq. 8 on all convolutions (epochs,), from what training kept of each.

    Eq. 8 is a mean over parameters, so that of a network is the mean over its layers, weighted by
    how many parameters each has.
    """
    sizes = {name: w.numel() for name, w in conv_weights(run.model("last")).items()}
    columns = np.stack([run.history[f"fuzziness.{name}"] for name in sizes], axis=1)
    return np.average(columns, axis=1, weights=list(sizes.values()))


# ------------------------------------------------------------------------------------------- Fig. 5


def compute_fuzziness(runs: Mapping[str, Run]) -> FigureData:
    """Cross-entropy, fuzziness of all convolutions (Eq. 8) and robust accuracy per epoch."""
    protected = protected_class(runs["cse"])
    methods, curves = {}, {}
    for method, run in runs.items():
        history = run.history
        blur = fuzziness_by_epoch(run)
        mine, n_class = protected_accuracy(run, protected)
        methods[method] = {
            "initial_fuzziness": network_fuzziness(run.model("initial")),
            "final_fuzziness": float(blur[-1]),
            "slope_per_epoch": float(np.polyfit(history.epoch, blur, 1)[0]),
            "final_ce": float(history.ce.iloc[-1]),
            "robust_test": float(history.robust_test.iloc[-1]),
            "protected": float(mine[-1]),
            "n_protected": n_class,
            "below_0.05_initially": _near_zero_share(run, "initial"),
            "below_0.05_finally": _near_zero_share(run, "last"),
            "fuzziness_robustness_correlation": float(np.corrcoef(blur, history.robust_test)[0, 1]),
        }
        curves[method] = {"history": history, "fuzziness": blur, "protected": mine}
    n = len(next(iter(runs.values())).epoch(1)["test_y"])
    extras = {
        "curves": curves,
        "protected": runs["cse"].record["classes"][protected],
        "parameters": sum(w.numel() for w in conv_weights(runs["cse"].model("last")).values()),
    }
    cse_less_std = paired_difference(
        _broken_at_the_end(runs["std"]), _broken_at_the_end(runs["cse"])
    )
    facts = {
        "protected": protected,
        "methods": methods,
        "n": n,
        "cse_less_std": cse_less_std,
        "near_zero_cse_less_std": methods["cse"]["below_0.05_finally"]
        - methods["std"]["below_0.05_finally"],
    }
    return FigureData(facts, describe_setting(runs["cse"]), extras=extras)


def _broken_at_the_end(run: Run) -> np.ndarray:
    """Which images of the test probe the attack breaks after the last epoch, (n,) bool."""
    arrays = run.epoch(len(run.history))
    return arrays["test_logits_adv"].argmax(1) != arrays["test_y"]


def _near_zero_share(run: Run, which: str) -> float:
    """The share of a network's convolution parameters with |w| < 0.05."""
    weights = conv_weights(run.model(which)).values()
    sizes = torch.cat([w.detach().flatten() for w in weights]).abs()
    return float((sizes < 0.05).double().mean())


def protected_accuracy(run: Run, protected: int) -> tuple[np.ndarray, int]:
    """(accuracy (epochs,) of one class under attack, number of its images), from the test probe."""
    rows, n = [], 0
    for epoch in range(1, len(run.history) + 1):
        arrays = run.epoch(epoch)
        mine = arrays["test_y"] == protected
        n = int(mine.sum())
        rows.append(
            (arrays["test_logits_adv"][mine].argmax(1) == protected).mean() if n else np.nan
        )
    return np.array(rows), n


def draw_fuzziness(data: FigureData) -> Drawing:
    """Draw cross-entropy (a), fuzziness (b) and robust accuracy (c) per epoch, and near zeros (d).

    Those are the shares of small parameters at the start and after each training: STD minimises no
    fuzziness, so what CSE's term does is the difference to STD.
    """
    drawing = Drawing(9.4, 2.9)
    a, b, c, d = drawing.subplots(1, 4, width_ratios=(1, 1, 1, 0.75))
    for method, found in data.extras["curves"].items():
        look = {"color": s.colour(method), "linestyle": s.dash(method), "label": s.label(method)}
        history = found["history"]
        a.plot(history.epoch, history.ce, **look)
        start = data.facts["methods"][method]["initial_fuzziness"]
        b.plot(history.epoch, 100 * (np.asarray(found["fuzziness"]) / start - 1), **look)
        c.plot(history.epoch, history.robust_test, **look)
        c.plot(history.epoch, found["protected"], color=s.colour(method), linewidth=1, alpha=0.45)
    a.set(
        xlabel="epoch", ylabel="cross-entropy in training", title="a  Loss (CE only)", yscale="log"
    )
    b.set(xlabel="epoch", title="b  Fuzziness")
    b.set_ylabel("change since the start")
    b.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g%%"))
    start = data.facts["methods"]["cse"]["initial_fuzziness"]
    b.annotate(
        f"start: {start:.3f}\nall weights 0: {math.log(2):.3f}",
        (0.03, 0.03),
        xycoords="axes fraction",
        va="bottom",
        fontsize=7.5,
    )
    c.set(
        xlabel="epoch",
        ylabel=f"accuracy under attack, n = {data.facts['n']}",
        title="c  Robustness",
        ylim=(0, 1),
    )
    c.annotate(
        f"thin: protected class {data.extras['protected']},\n"
        f"n = {data.facts['methods']['cse']['n_protected']}",
        (0.98, 0.03),
        xycoords="axes fraction",
        ha="right",
        va="bottom",
        fontsize=7.5,
    )
    s.share_axis(c)
    for panel in (a, b, c):
        s.whole_numbers(panel)
    a.legend(loc="upper right")
    _draw_near_zero(d, data)
    return drawing


def _draw_near_zero(axes: Axes, data: FigureData) -> None:
    """Draw the share of parameters near zero at the start, and after STD and CSE."""
    methods = data.facts["methods"]
    shares = {"start": (methods["cse"]["below_0.05_initially"], s.BLACK)} | {
        s.label(method): (found["below_0.05_finally"], s.colour(method))
        for method, found in methods.items()
    }
    for place, (share, tint) in enumerate(shares.values()):
        axes.bar(place, share, width=0.6, color=tint)
        s.write_above(axes, place, share, f"{share:.1%}")
    axes.set(
        xticks=range(len(shares)),
        xticklabels=list(shares),
        ylabel=f"share of n = {data.extras['parameters']}",
        title="d  |w| < 0.05",
        ylim=(0, 1.15 * max(share for share, _ in shares.values()) or 1),
    )
    s.share_axis(axes)


#: STD starts from the same network and minimises no fuzziness. Training alone takes parameters away
#: from zero, so CSE after less CSE before would count that as well.
NEAR_ZERO = "share near 0 after training, CSE - STD"


def decide_fuzziness(data: FigureData) -> list[Claim]:
    """Decide the four statements on Fig. 5, on fuzziness, small parameters and robustness."""
    cse, std, n = data.facts["methods"]["cse"], data.facts["methods"]["std"], data.facts["n"]
    start = cse["initial_fuzziness"]
    fall = {
        name: m["initial_fuzziness"] - m["final_fuzziness"]
        for name, m in (("cse", cse), ("std", std))
    }
    small = {name: m["below_0.05_finally"] for name, m in (("cse", cse), ("std", std))}
    added = data.facts["near_zero_cse_less_std"]
    a, b = cse["robust_test"], std["robust_test"]
    return [
        Claim(
            "fuzziness starts near 0.7 (CSE Fig. 5b)",
            "0.7",
            f"{start:.3f}",
            (exactly("|start - 0.7|", abs(start - 0.7), "< 0.05"),),
            number=77,
        ),
        Claim(
            "fuzziness falls under CSE and stays under STD (CSE Fig. 5b)",
            "falls / stays",
            f"falls by {fall['cse']:.4f} / {fall['std']:.4f}",
            (
                exactly("fall under CSE", fall["cse"], "> 0"),
                exactly("fall under STD - a quarter", fall["std"] - 0.25 * fall["cse"], "< 0"),
            ),
            number=78,
        ),
        Claim(
            "minimising fuzziness puts more parameters near zero (CSE s. III-C)",
            "most near 0, few large",
            f"{small['cse']:.1%} with fuzziness (CSE), {small['std']:.1%} without (STD), "
            f"{cse['below_0.05_initially']:.1%} before (|w| < 0.05)",
            (exactly(NEAR_ZERO, added, "> 0"),),
            number=76,
        ),
        Claim(
            "CSE is more robust than STD (CSE Fig. 5c)",
            "the higher curve",
            f"{a:.1%} and {b:.1%} of n = {n}",
            (Estimate("CSE - STD", "> 0", *data.facts["cse_less_std"]),),
        ),
    ]


def describe_fuzziness(data: FigureData) -> str:
    """The caption: where fuzziness starts and ends, and what becomes of small parameters."""
    cse, std = data.facts["methods"]["cse"], data.facts["methods"]["std"]
    return (
        "CSE Fig. 5 claims that fuzziness starts near 0.7, falls under CSE and stays under STD, "
        f"and that CSE is more robust. {data.setting}: it starts at "
        f"{cse['initial_fuzziness']:.3f}, and ends at {cse['final_fuzziness']:.3f} (CSE) and "
        f"{std['final_fuzziness']:.3f} (STD); accuracy under attack ends at "
        f"{cse['robust_test']:.1%} and {std['robust_test']:.1%}. The share of |w| below 0.05 goes "
        f"from {cse['below_0.05_initially']:.1%} to {cse['below_0.05_finally']:.1%} under CSE, and "
        f"to {std['below_0.05_finally']:.1%} under STD, which minimises no fuzziness: CSE less STD "
        f"{100 * data.facts['near_zero_cse_less_std']:+.1f} points."
    )


# ------------------------------------------------------------------------------------------- Fig. 6


def compute_fuzziness_layers(runs: Mapping[str, Run]) -> FigureData:
    """Fuzziness of every convolution at the start and the end."""
    methods = {
        method: {"start": layer_fuzziness(run, "initial"), "end": layer_fuzziness(run, "last")}
        for method, run in runs.items()
    }
    std, cse = methods["std"]["end"], methods["cse"]["end"]
    differences = [abs(cse[name] - std[name]) for name in cse]
    facts = {
        "methods": methods,
        "max_difference": max(differences),
        "mean_difference": float(np.mean(differences)),
    }
    return FigureData(facts, describe_setting(runs["cse"]))


def draw_fuzziness_layers(data: FigureData) -> Drawing:
    """Draw fuzziness layer by layer, trained and initial."""
    drawing = Drawing(6.2, 2.9)
    axes = drawing.subplots()
    for method, found in data.facts["methods"].items():
        places = range(1, len(found["end"]) + 1)
        axes.plot(
            places,
            list(found["end"].values()),
            marker="o",
            markersize=5,
            color=s.colour(method),
            linestyle=s.dash(method),
            label=f"{s.label(method)}, trained",
        )
    axes.plot(
        places,
        list(found["start"].values()),
        marker="s",
        markersize=4,
        color=s.BLACK,
        linewidth=0.8,
        linestyle=":",
        label="initial",
    )
    few = len(places) < 4
    axes.set(
        xlabel="convolution, from the input",
        ylabel="fuzziness (the axis does not start at 0)",
        xticks=places,
        title=f"Fuzziness of each of {len(places)} convolutions; CSE Fig. 6 has ResNet-18"
        if few
        else "Fuzziness of each convolution",
    )
    if few:  # a line would promise layers between, and equal values would hide one another
        for line, shift in zip(axes.lines, np.linspace(-0.06, 0.06, len(axes.lines)), strict=True):
            line.set(linestyle="", markersize=8, xdata=np.array(places) + shift)
    axes.margins(x=0.15)
    axes.legend()
    return drawing


def decide_fuzziness_layers(data: FigureData) -> list[Claim]:
    """Decide whether STD and CSE differ by less than a quarter of what training moved.

    It fails beyond half of that. What training moved is the largest change of STD's from the start.
    """
    facts, std, cse = data.facts, data.facts["methods"]["std"], data.facts["methods"]["cse"]
    most = facts["max_difference"]
    moved = max(abs(cse["start"][name] - std["end"][name]) for name in std["end"])
    return [
        Claim(
            "fuzziness is nearly the same under STD and CSE, layer by layer (CSE Fig. 6)",
            "almost identical on ResNet-18",
            f"at most {most:.4f} apart over {len(std['end'])} convolutions; training moved it by "
            f"up to {moved:.4f}",
            (exactly("difference - a quarter of training's", most - 0.25 * moved, "< 0"),),
            number=87,
        )
    ]


def describe_fuzziness_layers(data: FigureData) -> str:
    """The caption: the largest and the mean difference over layers."""
    facts = data.facts
    return (
        "CSE Fig. 6 claims that on a deep network fuzziness is almost the same for STD and CSE. "
        f"{data.setting}, {len(facts['methods']['cse']['end'])} convolutions: largest difference "
        f"{facts['max_difference']:.3f}, mean {facts['mean_difference']:.3f}."
    )


# ------------------------------------------------------------------------------------- Eqs. 8 and 9


def compute_fuzziness_force(run: Run) -> FigureData:
    """Fuzziness of one parameter by its size, and sizes before and after training."""
    size = torch.linspace(0, 6, 241, dtype=torch.float64)
    rho = (2 / (1 + size.exp())).clamp(1e-12, 1 - 1e-12)
    before, after = (
        torch.cat([w.detach().flatten() for w in penalised_weights(run.model(which))]).abs().numpy()
        for which in ("initial", "last")
    )
    facts = {
        "n": len(after),
        "grown": float((after > before).mean()),
        "below_0.05": [float((v < 0.05).mean()) for v in (before, after)],
        "mean_size": [float(v.mean()) for v in (before, after)],
    }
    extras = {
        "size": size.numpy(),
        "by_formula": torch.stack([fuzziness(w) for w in size]).numpy(),
        "by_text": -(rho * rho.log() + (1 - rho) * (1 - rho).log()).numpy(),
        "before": before,
        "after": after,
    }
    return FigureData(facts, describe_setting(run), run.method, extras)


def draw_fuzziness_force(data: FigureData) -> Drawing:
    """Draw the formula beside its text (a), and the sizes before and after training (b)."""
    drawing = Drawing(7.2, 3.0)
    left, right = drawing.subplots(1, 2)
    _draw_formula_and_text(left, data.extras)
    _draw_growth(right, data.extras["before"], data.extras["after"])
    right.set_title(f"b  Sizes before and after {s.label(data.method)}")
    return drawing


def _draw_formula_and_text(axes: Axes, extras: dict) -> None:
    axes.plot(
        extras["size"],
        extras["by_formula"],
        color=s.PURPLE,
        label=r"Eq. 9: $\rho = 1/(1+e^{|w|})$, ½ at 0",
    )
    axes.plot(
        extras["size"],
        extras["by_text"],
        color=s.GREY,
        linestyle="--",
        label=r"its text: $\rho \to 1$ at 0, so $2/(1+e^{|w|})$",
    )
    axes.axhline(math.log(2), color=s.BLACK, linewidth=0.8, linestyle=":")
    axes.annotate(
        "ln 2",
        (6, math.log(2)),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        fontsize=7.5,
    )
    axes.annotate("", (2.4, 0.07), (0.35, 0.07), arrowprops={"arrowstyle": "->", "color": s.PURPLE})
    axes.annotate("descent on Eq. 9", (0.4, 0.09), fontsize=7.5, color=s.PURPLE)
    axes.set(
        xlabel="size |w| of a parameter",
        ylabel="fuzziness of one parameter",
        title="a  What is minimised",
        ylim=(0, 0.98),
    )
    axes.legend(loc="upper right", fontsize=7.5)


def _draw_growth(axes: Axes, before: np.ndarray, after: np.ndarray) -> None:
    edges = np.linspace(0, max(before.max(), after.max()), 40).tolist()
    axes.hist(
        before,
        edges,
        histtype="step",
        color=s.BLACK,
        linestyle=":",
        label=f"initial, {np.mean(before < 0.05):.0%} below 0.05",
    )
    axes.hist(
        after,
        edges,
        histtype="step",
        color=s.PURPLE,
        label=f"trained, {np.mean(after < 0.05):.0%} below 0.05",
    )
    axes.set(
        xlabel=f"|w| of the convolutions (n = {len(after)})",
        ylabel="parameters",
    )
    axes.legend(loc="upper right", fontsize=7.5)


def decide_fuzziness_force(data: FigureData) -> list[Claim]:
    """Decide whether fuzziness is largest at 0, against the text of CSE s. III-C."""
    before, after = data.facts["below_0.05"]
    return [
        Claim(
            "fuzziness is small where parameters are near 0 (CSE s. III-C)",
            "ρ → 1 for w → 0",
            "Eq. 9 gives ρ = ½ and its maximum ln 2 at 0; the share below 0.05 went from "
            f"{before:.1%} to {after:.1%}",
            exact=bool(data.extras["by_formula"].argmax() != 0),
            number=76,
        )
    ]


def describe_fuzziness_force(data: FigureData) -> str:
    """The caption: how many parameters grew, and their mean size before and after."""
    facts = data.facts
    before, after = facts["mean_size"]
    return (
        "CSE's text and its Eq. 9 disagree about parameters near 0: by the formula they are the "
        f"fuzziest, so minimising drives them away. {data.setting}: {facts['grown']:.0%} of "
        f"{facts['n']} convolution parameters ended larger than they began, mean |w| {before:.3f} "
        f"before and {after:.3f} after. Training without the term makes parameters grow, too: what "
        "the term adds to STD, the figure fuzziness shows."
    )
