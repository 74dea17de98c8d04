"""CSA and CSE:

does training push parameters to the extremes (Min-Max), and does fuzziness measure it?
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import matplotlib.ticker
import numpy as np
import torch
from scipy import stats

from kit.core.errors import unknown_name
from kit.evaluation.statistics import wilson
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing
from kit.figures.reading import setting
from kit.methods.regularisers import conv_weights, fuzziness


def layer_weights(run: Run, layer: int) -> tuple[str, np.ndarray]:
    """(name, flat float64 values) of a run's convolution number `layer`."""
    layers = list(conv_weights(run.model()).items())
    if not 0 <= layer < len(layers):
        raise unknown_name("convolution", layer, map(str, range(len(layers))))
    name, weight = layers[layer]
    return name, weight.detach().flatten().double().numpy()


def shape_of(values: np.ndarray) -> dict[str, float]:
    """How Min-Max a set of parameters is: shares near zero, extremes, tail weight."""
    size = np.abs(values)
    return {
        "n": len(values),
        **{f"below_{t}": float((size < t).mean()) for t in (0.01, 0.05, 0.1)},
        "below_5_percent_of_max": float((size < 0.05 * size.max()).mean()),
        "max": float(size.max()),
        "p99": float(np.percentile(size, 99)),
        "kurtosis": float(stats.kurtosis(values, fisher=False)),
    }


def parameters(runs: Mapping[str, Run], *, layer: int = 0) -> Drawing:
    """Distribution of one convolution's parameters (a), and their sizes position by position (b)."""
    values = {method: layer_weights(run, layer)[1] for method, run in runs.items()}
    name = layer_weights(next(iter(runs.values())), layer)[0]
    first = next(iter(runs))
    facts = {method: shape_of(v) for method, v in values.items()}
    order = np.argsort(-np.abs(values[first]))
    drawing = Drawing(7.2, 3.1)
    left, right = drawing.subplots(1, 2)
    reach = max(np.abs(v).max() for v in values.values())
    bins = np.linspace(-reach, reach, 51)
    for method, v in values.items():
        tint = s.colour(method)
        left.hist(v, bins=bins, histtype="stepfilled", alpha=0.10, color=tint)
        left.hist(
            v,
            bins=bins,
            histtype="step",
            linewidth=1.6,
            color=tint,
            label=f"{s.label(method)}  {facts[method]['below_0.05']:.0%} below 0.05, max "
            f"{facts[method]['max']:.2f}",
        )
        right.plot(
            np.abs(v)[order],
            marker=".",
            markersize=4,
            linewidth=0,
            alpha=0.8,
            color=tint,
            label=s.label(method),
        )
    left.set(
        xlabel=f"value of a parameter (convolution {layer + 1}, n = {len(order)})",
        ylabel="parameters",
        title="a  Distribution",
        yscale="symlog",
    )
    left.set_ylim(0, left.get_ylim()[1] ** 1.45)
    left.yaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
    left.legend(loc="upper left", fontsize=7.2, handlelength=1.4)
    right.set(
        xlabel=f"position, sorted by size in {s.label(first)}",
        ylabel="size $|w|$",
        title="b  Size, position by position",
    )
    right.legend(loc="upper right")
    top = order[: max(1, len(order) // 10)]
    rising = np.ones(len(top), dtype=bool)
    methods = list(values)
    for lower, upper in pairwise(methods):
        rising &= np.abs(values[lower])[top] < np.abs(values[upper])[top]
    low, high = wilson(int(rising.sum()), len(top))
    seeds = {m: facts[m]["below_0.05"] for m in methods}
    drawing.facts = {
        "layer": name,
        "methods": facts,
        "near_zero_ratio": _ratio(seeds[methods[-1]], seeds[methods[0]]),
        "max_ratio": _ratio(facts[methods[-1]]["max"], facts[methods[0]]["max"]),
        "order_in_top_tenth": {
            "share": float(rising.mean()),
            "low": low,
            "high": high,
            "n": len(top),
        },
    }
    f = drawing.facts
    names = " < ".join(map(s.label, methods))
    near, largest = ([facts[m][key] for m in methods] for key in ("below_0.05", "max"))
    drawing.claims = [
        Claim(
            f"near-zero parameters: {names} (CSA Figs. 3, 4)",
            "several times as many in CSA as in ADV",
            " / ".join(f"{share:.1%}" for share in near)
            + f" have |w| < 0.05; {f['near_zero_ratio']:.2f} times",
            holds=near == sorted(near) and f["near_zero_ratio"] > 2,
            fails=near != sorted(near),
        ),
        Claim(
            f"largest parameters: {names} (CSA Figs. 3, 4)",
            "larger in CSA than in ADV",
            " / ".join(f"{value:.2f}" for value in largest),
            holds=largest == sorted(largest),
            fails=largest != sorted(largest),
        ),
    ]
    drawing.caption = (
        f"CSA/CSE claims more near-zero and larger extreme parameters in the order "
        f"{', '.join(map(s.label, methods))}. "
        f"{setting(next(iter(runs.values())))}, convolution {layer + 1}: {s.label(methods[-1])} "
        f"has "
        f"{f['near_zero_ratio']:.2f} times {s.label(first)}'s share below 0.05 and "
        f"{f['max_ratio']:.2f} times its largest; "
        f"at the {len(top)} largest positions of {s.label(first)} sizes rise in that order in "
        f"{f['order_in_top_tenth']['share']:.0%} [{low:.0%}, {high:.0%}]."
    )
    return drawing


def _ratio(a: float, b: float) -> float:
    return a / b if b else float("nan")


def protected_accuracy(run: Run, protected: int) -> tuple[np.ndarray, int]:
    """Accuracy of one class under attack after each epoch, from the test probe; and how many images
    that is.
    """
    rows, n = [], 0
    for epoch in range(1, len(run.history) + 1):
        arrays = run.epoch(epoch)
        mine = arrays["test_y"] == protected
        n = int(mine.sum())
        rows.append(
            (arrays["test_logits_adv"][mine].argmax(1) == protected).mean() if n else np.nan
        )
    return np.array(rows), n


def fuzziness_curves(runs: Mapping[str, Run]) -> Drawing:
    """Cross-entropy (a), mean fuzziness of the convolutions (b), robust accuracy (c) per epoch."""
    protected = int(runs["cse"].plan.method.loss.params["protected"])
    name = runs["cse"].record["classes"][protected]
    drawing = Drawing(7.6, 2.9)
    a, b, c = drawing.subplots(1, 3)
    facts = {"protected": protected, "methods": {}}
    for method, run in runs.items():
        look = {"color": s.colour(method), "linestyle": s.dash(method), "label": s.label(method)}
        history = run.history
        blur = history[[column for column in history if column.startswith("fuzziness.")]].mean(
            axis=1
        )
        mine, n_class = protected_accuracy(run, protected)
        a.plot(history.epoch, history.ce, **look)
        b.plot(history.epoch, blur, **look)
        c.plot(history.epoch, history.robust_test, **look)
        c.plot(history.epoch, mine, color=s.colour(method), linewidth=1, alpha=0.45)
        slope = float(np.polyfit(history.epoch, blur, 1)[0])
        first = float(
            np.mean(
                [float(fuzziness(w.detach())) for w in conv_weights(run.model("initial")).values()]
            )
        )
        near_zero = {
            which: float(
                (
                    torch.cat(
                        [w.detach().flatten() for w in conv_weights(run.model(which)).values()]
                    ).abs()
                    < 0.05
                )
                .double()
                .mean()
            )
            for which in ("initial", "last")
        }
        facts["methods"][method] = {
            "initial_fuzziness": first,
            "final_fuzziness": float(blur.iloc[-1]),
            "slope_per_epoch": slope,
            "final_ce": float(history.ce.iloc[-1]),
            "robust_test": float(history.robust_test.iloc[-1]),
            "protected": float(mine[-1]),
            "n_protected": n_class,
            "below_0.05_initially": near_zero["initial"],
            "below_0.05_finally": near_zero["last"],
            "fuzziness_robustness_correlation": float(np.corrcoef(blur, history.robust_test)[0, 1]),
        }
    n = len(next(iter(runs.values())).epoch(1)["test_y"])
    a.set(
        xlabel="epoch", ylabel="cross-entropy in training", title="a  Loss (CE only)", yscale="log"
    )
    b.axhline(math.log(2), color=s.BLACK, linewidth=0.8, linestyle="--")
    b.annotate(
        "ln 2: all weights 0",
        (1, math.log(2)),
        xytext=(0, -10),
        textcoords="offset points",
        fontsize=7.5,
    )
    b.set(xlabel="epoch", ylabel="fuzziness of the convolutions", title="b  Fuzziness")
    c.set(
        xlabel="epoch", ylabel=f"accuracy under attack, n = {n}", title="c  Robustness", ylim=(0, 1)
    )
    c.annotate(
        f"thin: protected class {name}",
        (0.98, 0.97),
        xycoords="axes fraction",
        ha="right",
        va="top",
        fontsize=7.5,
    )
    s.share_axis(c)
    a.legend(loc="upper right")
    cse, std = facts["methods"]["cse"], facts["methods"]["std"]
    drawing.facts = facts | {"n": n}
    drawing.claims = _fuzziness_claims(std, cse, n)
    drawing.caption = (
        "CSE Fig. 5 claims that fuzziness starts near 0.7, falls under CSE and stays under STD, "
        "and that CSE is more "
        f"robust. {setting(runs['cse'])}: it starts at {cse['initial_fuzziness']:.3f}, and ends at "
        f"{cse['final_fuzziness']:.3f} (CSE) and {std['final_fuzziness']:.3f} (STD); accuracy "
        f"under attack ends at "
        f"{cse['robust_test']:.1%} and {std['robust_test']:.1%}. The share of |w| below 0.05 goes "
        f"from "
        f"{cse['below_0.05_initially']:.1%} to {cse['below_0.05_finally']:.1%} under CSE: falling "
        f"fuzziness means fewer "
        "weights near zero, not more."
    )
    return drawing


def _fuzziness_claims(std: dict, cse: dict, n: int) -> list[Claim]:
    """The four statements on Fig. 5, with the rules by which they are judged."""
    start = cse["initial_fuzziness"]
    fall = {
        name: m["initial_fuzziness"] - m["final_fuzziness"]
        for name, m in (("cse", cse), ("std", std))
    }
    before, after = cse["below_0.05_initially"], cse["below_0.05_finally"]
    a, b = cse["robust_test"], std["robust_test"]
    beyond = 2 * math.sqrt((a * (1 - a) + b * (1 - b)) / n)
    return [
        Claim(
            "fuzziness starts near 0.7 (CSE Fig. 5b)",
            "0.7",
            f"{start:.3f}",
            holds=abs(start - 0.7) < 0.05,
            fails=abs(start - 0.7) >= 0.05,
        ),
        Claim(
            "fuzziness falls under CSE and stays under STD (CSE Fig. 5b)",
            "falls / stays",
            f"falls by {fall['cse']:.4f} / {fall['std']:.4f}",
            holds=fall["cse"] > 0 and fall["std"] < 0.25 * fall["cse"],
            fails=fall["cse"] <= 0 or fall["std"] > 0.5 * fall["cse"],
        ),
        Claim(
            "minimising fuzziness puts more parameters near zero (CSE s. III-C)",
            "most near 0, few large",
            f"{before:.1%} before, {after:.1%} after (|w| < 0.05)",
            holds=after > before,
            fails=after <= before,
        ),
        Claim(
            "CSE is more robust than STD (CSE Fig. 5c)",
            "the higher curve",
            f"{a:.1%} and {b:.1%} of n = {n}",
            holds=a - b > beyond,
            fails=b - a > beyond,
        ),
    ]


def fuzziness_layers(runs: Mapping[str, Run]) -> Drawing:
    """Fuzziness of every convolution at the start and the end, layer by layer."""
    drawing = Drawing(6.2, 2.9)
    axes = drawing.subplots()
    facts = {"methods": {}}
    names = []
    for method, run in runs.items():
        layers = {
            name: float(fuzziness(w.detach())) for name, w in conv_weights(run.model()).items()
        }
        start = {
            name: float(fuzziness(w.detach()))
            for name, w in conv_weights(run.model("initial")).items()
        }
        names = list(layers)
        axes.plot(
            range(1, len(names) + 1),
            list(layers.values()),
            marker="o",
            markersize=5,
            color=s.colour(method),
            linestyle=s.dash(method),
            label=f"{s.label(method)}, trained",
        )
        facts["methods"][method] = {"start": start, "end": layers}
    axes.plot(
        range(1, len(names) + 1),
        list(start.values()),
        marker="s",
        markersize=4,
        color=s.BLACK,
        linewidth=0.8,
        linestyle=":",
        label="initial",
    )
    axes.set(
        xlabel="convolution, from the input",
        ylabel="fuzziness",
        xticks=range(1, len(names) + 1),
        title="Layer by layer",
    )
    axes.margins(x=0.15)
    axes.legend()
    apart = [
        abs(facts["methods"]["cse"]["end"][n] - facts["methods"]["std"]["end"][n]) for n in names
    ]
    drawing.facts = facts | {"max_difference": max(apart), "mean_difference": float(np.mean(apart))}
    moved = max(abs(start[n] - facts["methods"]["std"]["end"][n]) for n in names)
    drawing.claims = [
        Claim(
            "fuzziness is nearly the same under STD and CSE, layer by layer (CSE Fig. 6)",
            "almost identical on ResNet-18",
            f"at most {max(apart):.4f} apart over {len(names)} convolutions; training moved it by "
            f"up to {moved:.4f}",
            holds=max(apart) < 0.25 * moved,
            fails=max(apart) > 0.5 * moved,
        )
    ]
    drawing.caption = (
        f"CSE Fig. 6 claims that on a deep network fuzziness is almost the same for STD and CSE. "
        f"{setting(runs['cse'])}, {len(names)} convolutions: largest difference {max(apart):.3f}, "
        f"mean "
        f"{np.mean(apart):.3f}."
    )
    return drawing
