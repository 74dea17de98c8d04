"""What attacks do to images:

side by side at several radii, and how accuracy falls with the radius. CSA/CSE Fig. 2.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor, nn

from kit.attacks.carlini_wagner import cw_l2
from kit.attacks.fast_adaptive_boundary import fab
from kit.attacks.fast_gradient_sign import fgsm
from kit.attacks.fast_minimum_norm import fmn
from kit.attacks.table import ATTACKS, Attack
from kit.attacks.tracker import ROUNDING, AttackResult
from kit.core import tensors
from kit.core.errors import KitError, unknown_name
from kit.core.parameters import Count, Positive, check_value
from kit.core.random_streams import Streams
from kit.core.threat import Threat
from kit.data.splits import Split
from kit.evaluation.accuracy import evaluate
from kit.evaluation.statistics import paired_difference, wilson
from kit.experiments.devices import pick_device
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.base import Claim, Drawing
from kit.figures.reading import setting

#: Attacks that look for the nearest adversarial image: one search answers for every radius.
NEAREST = (cw_l2, fmn, fab)


#: CW-L2's 1,000 steps a round take minutes; with few long steps its distances are 2 % larger on
#: average, 17 % at worst (20 digits).
SHORT = {cw_l2: {"steps": 100, "search_steps": 8, "lr": 0.1}}


NORMS = {"linf": "L∞", "l2": "L2"}

LOOKS = (
    (s.GREY, "-", "o"),
    (s.BLUE, "-", "s"),
    (s.ORANGE, "-", "^"),
    (s.GREEN, "-", "v"),
    (s.GREEN, "--", "D"),
    (s.PURPLE, "--", "P"),
    (s.VERMILLION, "-", "X"),
    (s.SKY, "-", "<"),
    (s.YELLOW, "-", ">"),
    (s.BLACK, "-", "*"),
)


# ------------------------------------------------------------------------------------ what is asked


def first_images(run: Run, n: int) -> tuple[nn.Module, Split]:
    """The run's network and its first `n` test images, on the kit's device."""
    check_value("n", n, Count)
    test = run.data().test
    if n > len(test):
        raise KitError(
            f"n={n}: {run.plan.recipe.data} has {len(test)} test images; take at most as many"
        )
    return run.model(device=pick_device()), test.take(slice(0, n)).to(pick_device())


def chosen(examples: str, n: int) -> list[int]:
    """The numbers of test images in `examples`, "" for none.

    Errors: `KitError` for one that is not 0 to n - 1.
    """
    for word in examples.split():
        if not word.isdecimal() or int(word) >= n:
            raise KitError(
                f"example {word} must be the number of one of the {n} test images looked at, 0 to "
                f"{n - 1}"
            )
    return [int(word) for word in examples.split()]


def radii_of(eps: str, default: list[float]) -> list[float]:
    """The numbers in `eps`, increasing; `default` where it is empty."""
    try:
        radii = [check_value("eps", float(word), Positive) for word in eps.split()]
    except ValueError as error:
        raise KitError(
            f'eps={eps!r} must be radii above 0 with spaces between, such as "0.1 0.2" ({error})'
        ) from None
    return sorted(set(radii)) or default


def names_of(attacks: str) -> list[str]:
    """The words of `attacks`, each once and each one that `named` knows."""
    names = list(dict.fromkeys(attacks.split()))
    if not names:
        raise KitError(f"attacks={attacks!r} names none. Choices: {', '.join(ATTACKS)}")
    for name in names:
        named(name, "linf")
    return names


def named(name: str, own: str) -> tuple[Attack, str]:
    """(attack, its norm) of a row of ATTACKS, or of one with another norm than the run's `own`:

    say bia:l2.
    """
    row, _, norm = name.partition(":")
    attack = ATTACKS[row]
    if norm and norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    if attack.fn is cw_l2:
        if norm == "linf":
            raise KitError(f"{row} minimises the L2 norm; write {row} or {row}:l2")
        norm = "l2"
    return attack.but(**SHORT.get(attack.fn, {})), norm or own


def equal_volume(eps: float, own: str, norm: str, pixels: int) -> float:
    """The radius of the `norm` ball of the same volume as the `own` ball of radius `eps`; [0, 1] is
    left out of account.

    An L-inf ball of d pixels has volume (2 eps)^d, an L2 ball π^(d/2) r^d / Γ(d/2 + 1).
    """
    if norm == own:
        return eps
    ratio = 2 * math.exp(math.lgamma(pixels / 2 + 1) / pixels) / math.sqrt(math.pi)  # r / eps
    return eps * ratio if norm == "l2" else eps / ratio


def attacked(
    model: nn.Module, images: Split, own: str, names: list[str], radii: list[float]
) -> dict[str, list[tuple[AttackResult, Threat]]]:
    """Every attack at every radius, as if these were the run's eps. -> {name: [(result, its threat)
    of each radius]}.

    Steps that a row gives in pixels would reach too short in a large ball and too far in a small
    one: here they are 2.5 radius / steps, PGD's default.
    """
    x, y, found = images.x(), images.y, {}
    pixels = x[0].numel()
    for name in names:
        attack, norm = named(name, own)
        threats = [Threat(norm, equal_volume(eps, own, norm, pixels)) for eps in radii]

        def search(threat: Threat, attack: Attack = attack, name: str = name) -> AttackResult:
            if attack.defaults.get("step_size"):
                steps = {**attack.defaults, **attack.settings}["steps"]
                attack = attack.but(step_size=2.5 * threat.eps / steps)
            return attack(model, x, y, threat, Streams(images.ids, "gallery", name))

        if attack.fn in NEAREST:
            nearest = search(threats[-1])
            found[name] = [
                (dataclasses.replace(nearest, broken=nearest.size <= threat.eps + ROUNDING), threat)
                for threat in threats
            ]
        else:
            found[name] = [(search(threat), threat) for threat in threats]
    return found


def label(name: str) -> str:
    """BIA (L2) for bia:l2."""
    row, _, norm = name.partition(":")
    return s.attack_label(row) + (f" ({NORMS[norm]})" if norm else "")


def shares(found: dict[str, list[tuple[AttackResult, Threat]]]) -> dict[str, list[dict]]:
    """Per attack and radius: how many images are broken, of how many, with Wilson's interval."""
    facts = {}
    for name, results in found.items():
        facts[name] = []
        for result, threat in results:
            k, n = int(result.broken.sum()), len(result.broken)
            low, high = wilson(k, n)
            facts[name].append(
                {
                    "norm": threat.norm,
                    "radius": threat.eps,
                    "k": k,
                    "share": k / n,
                    "low": low,
                    "high": high,
                }
            )
    return facts


def wrong_when_clean(found: dict[str, list[tuple[AttackResult, Threat]]]) -> int:
    """How many images need no attack."""
    result, _ = next(iter(found.values()))[0]
    return sum(by == "clean" for by in result.by)


# ----------------------------------------------------------------------------------------- pictures


def pictures(
    run: Run,
    *,
    attacks: str = "fgsm pgd20 mia bia bia:l2 cw-l2",
    eps: str = "",
    examples: str = "",
    n: int = 100,
) -> Drawing:
    """Test images under each attack (rows) at several radii: what comes out, and the perturbation,
    signed and magnified.

    `attacks`: names of ATTACKS, with :l2 or :linf behind them for another norm than the run's, in
    the ball of equal volume. `eps`: radii in the run's norm (half, once and twice the run's);
    `examples`: numbers of test images below `n` ("": one on which the attacks part). The facts
    count how many of the first `n` test images each attack breaks at each radius.
    """
    own, names = run.plan.recipe.threat, names_of(attacks)
    model, images = first_images(run, n)
    radii = radii_of(eps, [own.eps / 2, own.eps, 2 * own.eps])
    rows = chosen(examples, n)
    found = attacked(model, images, own.norm, names, radii)
    rows = rows or [_parting(found)]
    drawing = _grid(model, images, found, rows, radii, run.record["classes"])
    counted, wrong = shares(found), wrong_when_clean(found)
    drawing.facts = {
        "n": n,
        "eps": radii,
        "norm": own.norm,
        "wrong_when_clean": wrong,
        "broken": counted,
        "settings": {name: named(name, own.norm)[0].config() for name in names},
        "examples": {row: _example(model, images, found, row) for row in rows},
    }
    drawing.claims = [_full_length(model, images, own)] if own.norm == "linf" else []
    middle = radii.index(own.eps) if own.eps in radii else len(radii) // 2
    words = ", ".join(
        f"{label(name)} {counts[middle]['k']} [{counts[middle]['low']:.0%}, "
        f"{counts[middle]['high']:.0%}]"
        for name, counts in counted.items()
    )
    drawing.caption = (
        f"{s.label(run.method)} on {setting(run)}. Test images under attack: what each attack "
        f"found, and the perturbation, "
        "magnified ×k (the mid-tone is no change), with its norms. Red below an image: "
        "misclassified. Balls in another norm "
        f"have the volume of the {NORMS[own.norm]} ball. Of the first {n} test images {wrong} are "
        f"wrong when clean; these "
        f"included, broken at eps {radii[middle]:.3g}: {words}."
    )
    return drawing


def _grid(
    model: nn.Module,
    images: Split,
    found: dict[str, list[tuple[AttackResult, Threat]]],
    rows: list[int],
    radii: list[float],
    classes: list[str],
) -> Drawing:
    """For each image of `rows` and each attack a line:

    the image, then at every radius what comes out and the difference.
    """
    drawing = Drawing(1.0 * (1 + 2 * len(radii)) + 0.5, 1.36 * len(found) * len(rows) + 0.4)
    grid = drawing.subplots(len(found) * len(rows), 1 + 2 * len(radii), squeeze=False)
    for place, (row, name) in enumerate((row, name) for row in rows for name in found):
        first, *cells = grid[place]
        clean = images.x(slice(row, row + 1))
        _show(first, clean[0], _answer(model, clean, int(images.y[row]), classes))
        first.set_ylabel(label(name), fontsize=8)
        nearest = ATTACKS[name.partition(":")[0]].fn in NEAREST
        for at, (result, _) in enumerate(found[name]):
            adversarial, difference = cells[2 * at : 2 * at + 2]
            if nearest and at:
                adversarial.set_axis_off()
                difference.set_axis_off()
                continue
            _show(
                adversarial,
                result.x_adv[row],
                _answer(model, result.x_adv[row : row + 1], int(images.y[row]), classes),
            )
            _difference(
                difference, result.x_adv[row : row + 1] - clean, " (nearest)" if nearest else ""
            )
    for number, row in enumerate(rows):
        grid[number * len(found), 0].set_title(f"image {row}", fontsize=8)
        for radius, axes in zip(radii, grid[number * len(found), 1::2], strict=True):
            axes.set_title(f"eps {radius:.3g}", fontsize=8)
    return drawing


def _parting(found: dict[str, list[tuple[AttackResult, Threat]]]) -> int:
    """An image right when clean that comes nearest to being broken in half of all attacks and
    radii; the first of equals.
    """
    broken = (
        torch.stack([result.broken for results in found.values() for result, _ in results])
        .double()
        .mean(dim=0)
    )
    clean = torch.tensor(
        [by == "clean" for by in next(iter(found.values()))[0][0].by], device=broken.device
    )
    return int(((broken - 0.5).abs() + clean.double()).argmin())


def _answer(model: nn.Module, x: Tensor, y: int, classes: list[str]) -> tuple[str, str]:
    """What the network says of one image (1, C, H, W):

    "class, p_y" and the colour to write it in.
    """
    with torch.no_grad():
        probs = model(x).softmax(dim=1)[0]
    said = int(probs.argmax())
    return f"{classes[said]}, $p_y$ {float(probs[y]):.2f}", s.BLACK if said == y else s.VERMILLION


def _show(axes, image: Tensor, words: tuple[str, str], **look) -> None:
    """One image (C, H, W) without ticks, and what is said of it below."""
    pixels = image.cpu().permute(1, 2, 0).numpy()  # imshow wants one channel as (H, W)
    axes.imshow(
        pixels[..., 0] if len(image) == 1 else pixels,
        **({"cmap": "gray_r", "vmin": 0, "vmax": 1} | look),
    )
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, linewidth=0.5, color=s.GREY)
    axes.set_xlabel(words[0], color=words[1], fontsize=6.8, labelpad=2)


def _difference(axes, delta: Tensor, more: str) -> None:
    """A perturbation (1, C, H, W), 0 in the mid-tone, magnified so that its largest entry has full
    colour.
    """
    largest = float(delta.abs().max())
    factor = 0.5 / largest if largest > 0 else 1.0
    words = (
        f"×{factor:.2g}{more}\nL∞ {largest:.2g}, L2 {float(tensors.norm(delta, 'l2')[0]):.2g}"
        if largest > 0
        else "unchanged"
    )
    _show(axes, (0.5 + factor * delta[0]).clamp(0, 1), (words, s.BLACK), cmap="RdBu")


def _example(
    model: nn.Module, images: Split, found: dict[str, list[tuple[AttackResult, Threat]]], row: int
) -> dict:
    """Label, id, and per attack and radius the class, p_y and the norms of the perturbation of one
    image.
    """
    x, y = images.x(slice(row, row + 1)), int(images.y[row])
    facts: dict = {"id": int(images.ids[row]), "y": y, "attacks": {}}
    for name, results in found.items():
        facts["attacks"][name] = []
        for result, _ in results:
            x_adv = result.x_adv[row : row + 1]
            with torch.no_grad():
                probs = model(x_adv).softmax(dim=1)[0]
            facts["attacks"][name].append(
                {
                    "prediction": int(probs.argmax()),
                    "p_y": float(probs[y]),
                    "broken": bool(result.broken[row]),
                    **{norm: float(tensors.norm(x_adv - x, norm)[0]) for norm in NORMS},
                }
            )
    return facts


def _full_length(model: nn.Module, images: Split, threat: Threat) -> Claim:
    """FGSM moves some pixel by all of eps, and none by more:

    the norms of its perturbations are eps.
    """
    delta = fgsm(model, images.x(), images.y, threat) - images.x()
    norms = tensors.norm(delta, "linf")
    off = float((norms - threat.eps).abs().max())
    moved = float(((delta.abs() - threat.eps).abs() < ROUNDING).double().mean())
    return Claim(
        "FGSM's perturbation has the L∞ norm eps (CSA/CSE Fig. 2)",
        "eps 0.3 on MNIST, 0.03 on CIFAR-10",
        f"eps {threat.eps:g}: norms {float(norms.min()):.4g} to {float(norms.max()):.4g} on "
        f"{len(norms)} images; "
        f"{moved:.0%} of the pixels move that far, others meet 0 or 1",
        holds=off < ROUNDING,
        fails=off >= ROUNDING,
    )


# ------------------------------------------------------------------------------------------- curves


def curves(
    run: Run, *, attacks: str = "fgsm pgd20 mia bia bia:l2 cw-l2", eps: str = "", n: int = 100
) -> Drawing:
    """Accuracy on the first `n` test images against the radius, per attack, with Wilson intervals.

    `attacks` as in `pictures`; `eps`: radii in the run's norm ("": up to twice the run's, in
    quarters of it).
    """
    own, names = run.plan.recipe.threat, names_of(attacks)
    model, images = first_images(run, n)
    radii = radii_of(eps, [own.eps * k / 4 for k in (1, 2, 3, 4, 6, 8)])
    found = attacked(model, images, own.norm, names, radii)
    counted, clean = shares(found), n - wrong_when_clean(found)
    drawing = Drawing(6.4, 3.5)
    axes = drawing.subplots()
    apart = 0.012 * radii[-1]
    for place, ((name, counts), (tint, line, marker)) in enumerate(
        zip(counted.items(), LOOKS * len(names), strict=False)
    ):
        x = np.array([0.0, *radii]) + apart * (place - (len(names) - 1) / 2)
        right = np.array([clean / n] + [1 - count["share"] for count in counts])
        ends = np.array(
            [wilson(clean, n)] + [(1 - count["high"], 1 - count["low"]) for count in counts]
        ).T
        axes.plot(
            x,
            right,
            color=tint,
            linestyle=line,
            marker=marker,
            markersize=4,
            linewidth=1.4,
            label=label(name),
        )
        axes.vlines(x, *ends, color=tint, linewidth=0.9, alpha=0.6)
    axes.axvline(own.eps, color=s.BLACK, linewidth=0.8, linestyle=":")
    axes.annotate(
        "trained with",
        (own.eps, 1.0),
        xytext=(3, -2),
        textcoords="offset points",
        fontsize=7.5,
        va="top",
    )
    axes.set(
        xlabel=f"eps ({NORMS[own.norm]}; the other norm: the ball of equal volume)",
        ylim=(0, 1.02),
        ylabel=f"accuracy, n = {n}, 95 %",
        title=f"{s.label(run.method)}: accuracy as the ball grows",
    )
    s.share_axis(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    drawing.facts = {
        "n": n,
        "eps": radii,
        "norm": own.norm,
        "clean": clean / n,
        "broken": counted,
        "settings": {name: named(name, own.norm)[0].config() for name in names},
    }
    drawing.claims = [_one_step(run)]
    drawing.caption = (
        f"{s.label(run.method)} on {setting(run)}, first {n} test images, {clean / n:.0%} right "
        f"when clean. Right at eps "
        f"{radii[-1]:.3g}: "
        + ", ".join(
            f"{label(name)} {1 - counts[-1]['share']:.0%}" for name, counts in counted.items()
        )
        + ". Points are moved a little sideways. Where one attack stays above another in the same "
        "ball, it has missed images "
        "that can be broken."
    )
    return drawing


def _one_step(run: Run) -> Claim:
    """FGSM against PGD-20 on up to 1,000 test images, paired."""
    table = evaluate(run, ["fgsm", "pgd20"], n=1000, quiet=True)
    one, many = (table.attrs["examples"][name]["broken"] for name in ("fgsm", "pgd20"))
    difference, low, high = paired_difference(many, one)
    return Claim(
        "one step of FGSM leaves more images right than PGD at the same eps (VIR T1)",
        "AT 57.88 % under FGSM, 51.58 % under PGD-100",
        f"{1 - one.mean():.1%} under FGSM, {1 - many.mean():.1%} under PGD-20 on {len(one)} "
        f"images, paired "
        f"{100 * difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]",
        holds=low > 0,
        fails=high < 0,
    )
