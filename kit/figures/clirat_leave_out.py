"""CLIRAT Fig. 1B: what does it cost to leave a set of examples out of training?"""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes

from kit.evaluation.statistics import paired_difference, wilson
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing, FigureData, format_points
from kit.figures.run_outputs import describe_setting, epoch_probabilities
from kit.methods.criteria import confused_labels
from kit.papers.claim_verdict import Estimate


def compute_leave_out(runs: Mapping[str, Run]) -> FigureData:
    """Test accuracy under the training attack with a set left out, paired with that of MAIL-AT.

    `runs` are mail-at and the four rows clirat-drop-*. Accuracy along the way is that of the probe,
    at the end that of all test images.
    """
    broken = {
        method: run.final["test_logits_adv"].argmax(1) != run.final["test_y"]
        for method, run in runs.items()
    }
    whole, facts = runs["mail-at"], {}
    n = len(broken["mail-at"])
    for method, hit in broken.items():
        right = int((~hit).sum())
        low, high = wilson(right, n)
        facts[method] = {"robust": right / n, "low": low, "high": high}
        if method != "mail-at":
            names = ("difference", "difference_low", "difference_high")
            interval = paired_difference(broken["mail-at"], hit)
            facts[method] |= dict(zip(names, interval, strict=True))
    gap = paired_difference(broken["clirat-drop-single"], broken["clirat-drop-multiple"])
    extras = {
        "later": {m: run.history[run.history.epoch > run.plan.burn_in] for m, run in runs.items()},
        "probe": len(whole.epoch(1)["test_y"]),
        "steps": whole.plan.recipe.steps,
    }
    return FigureData(
        {
            "n": n,
            "runs": facts,
            "drop_mul_minus_drop_sig": gap,
            "matched": count_spared(runs["clirat-drop-matched"]),
        },
        describe_setting(whole),
        extras=extras,
    )


def count_spared(run: Run) -> dict[str, int]:
    """How many of S_mul the matched control met while it reweighted, and how many it spared.

    It cuts S_mul to the size of S_sig batch by batch. Where S_mul is never the larger one, it cuts
    all of it, and is the row without S_mul.
    """
    met = spared = 0
    for epoch in range(run.plan.burn_in + 1, len(run.history) + 1):
        several = confused_labels(*epoch_probabilities(run, epoch, "on the fly")).numpy() >= 2
        met += int(several.sum())
        spared += int((several & (run.epoch(epoch)["train_weight"] > 0)).sum())
    return {"multiple": met, "spared": spared}


def draw_leave_out(data: FigureData) -> Drawing:
    """Draw robust accuracy per epoch since burn-in, and at the end with its interval."""
    drawing = Drawing(7.6, 3.2)
    curves, ends = drawing.subplots(1, 2, width_ratios=(3, 2))
    order = list(data.facts["runs"])
    for method, later in data.extras["later"].items():
        look = {"color": s.colour(method), "linestyle": s.dash(method)}
        curves.plot(later.epoch, later.robust_test, **look)
    for i, (method, fact) in enumerate(data.facts["runs"].items()):
        ends.errorbar(
            fact["robust"],
            i,
            xerr=[[fact["robust"] - fact["low"]], [fact["high"] - fact["robust"]]],
            fmt="o",
            color=s.colour(method),
            capsize=3,
        )
    ends.set(
        yticks=range(len(order)),
        ylim=(len(order) - 0.5, -0.5),
        xlabel=f"robust accuracy, 95 %, n = {data.facts['n']}",
        title="At the end, one seed",
    )
    same = (
        {"clirat-drop-matched": "\n(the same set)"} if not data.facts["matched"]["spared"] else {}
    )
    ends.set_yticklabels([s.label(m) + same.get(m, "") for m in order])
    for tick, method in zip(ends.get_yticklabels(), order, strict=True):
        tick.set_color(s.colour(method))
    _widen_axes(curves, ends, data)
    s.share_axis(ends, "x")
    s.share_axis(curves)
    curves.set(
        xlabel="training epoch",
        ylabel=f"robust test accuracy (probe, n = {data.extras['probe']})",
        title="B  After burn-in",
    )
    s.whole_numbers(curves)
    return drawing


def _widen_axes(curves: Axes, ends: Axes, data: FigureData) -> None:
    """Show the interval of one point of a curve, and no axis that is narrower than some of them."""
    n = data.extras["probe"]
    last = next(iter(data.extras["later"].values()))
    where, middle = float(last.epoch.max()), float(last.robust_test.iloc[-1])
    low, top = wilson(round(middle * n), n)
    for set_limits, limits in (
        (curves.set_ylim, curves.get_ylim()),
        (ends.set_xlim, ends.get_xlim()),
    ):
        spare = max(0.0, 2.2 * (top - low) - (limits[1] - limits[0])) / 2
        set_limits(max(0.0, limits[0] - spare), min(1.0, limits[1] + spare))
    s.show_one_interval(curves, where, float(last.epoch.min()), (middle, low, top))


def decide_leave_out(data: FigureData) -> list[Claim]:
    """Decide which of the two sets costs more to leave out."""
    gap, low, high = data.facts["drop_mul_minus_drop_sig"]
    return [
        Claim(
            "leaving S_mul out costs more than leaving S_sig out (CLIRAT Fig. 1B)",
            "drastically against slightly, no numbers",
            f"difference {format_points((gap, low, high), ' points')}, one seed",
            (Estimate("without S_mul - without S_sig", "< 0", gap, low, high),),
            number=2,
        )
    ]


def describe_leave_out(data: FigureData) -> str:
    """The caption: what both sets cost, and both controls."""
    cost = {
        method: f"{100 * fact['difference']:+z.1f} points"
        for method, fact in data.facts["runs"].items()
        if "difference" in fact
    }
    gap = format_points(data.facts["drop_mul_minus_drop_sig"], " points")
    return (
        "CLIRAT Fig. 1B claims that leaving S_mul out drops robustness drastically and leaving "
        f"S_sig out only slightly. {data.setting}, PGD-{data.extras['steps']}: without S_mul "
        f"{cost['clirat-drop-multiple']} against MAIL-AT, without S_sig "
        f"{cost['clirat-drop-single']}; S_mul minus S_sig {gap}, one seed. As many examples left "
        f"out at random: {cost['clirat-drop-random']}. "
        + _describe_matched(data.facts["matched"], cost["clirat-drop-matched"])
    )


def _describe_matched(matched: Mapping[str, int], cost: str) -> str:
    """What the control that cuts S_mul to the size of S_sig cost, if it cut another set at all."""
    met, spared = matched["multiple"], matched["spared"]
    if not spared:
        return (
            f"S_mul ({met} in all epochs together) is never larger than S_sig in a batch, so "
            "cutting it to that size cuts all of it: that row is the one without S_mul again and "
            "no control."
        )
    return (
        f"S_mul cut to the size of S_sig: {cost}; this spares {spared} of {met} examples of S_mul, "
        "and is the row without S_mul in all others."
    )
