"""CSA/CSE Fig. 2: images under each attack at several radii, and the perturbations."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from kit.attacks.fast_gradient_sign import fgsm
from kit.attacks.table import ATTACKS
from kit.attacks.tracker import ROUNDING
from kit.core import tensors
from kit.core.threat import Threat
from kit.data.splits import Split
from kit.experiments.runs import Run
from kit.figures import style as s
from kit.figures.attacked_images import (
    NORM_LABELS,
    AttackedImages,
    attack_and_norm_label,
    attack_images,
    count_broken,
    count_wrong_when_clean,
    finds_nearest,
    first_images,
    parse_attacks,
    parse_image_numbers,
    parse_radii,
    resolve_attack,
)
from kit.figures.base import Claim, Drawing, FigureData
from kit.figures.run_outputs import describe_setting


def compute_attack_gallery(
    run: Run,
    *,
    attacks: str = "fgsm pgd20 mia bia bia:l2 cw-l2",
    eps: str = "",
    examples: str = "",
    n: int = 100,
) -> FigureData:
    """Attack test images at several radii; and count how many of the first `n` each attack breaks.

    `attacks`: names of ATTACKS, with :l2 or :linf behind them for another norm than the run's, in
    the ball of equal volume. `eps`: radii in the run's norm (half, once and twice the run's);
    `examples`: numbers of test images below `n` to show ("": one on which the attacks part).
    """
    own, names = run.plan.recipe.threat, parse_attacks(attacks)
    model, images = first_images(run, n)
    radii = parse_radii(eps, [own.eps / 2, own.eps, 2 * own.eps])
    rows = parse_image_numbers(examples, n)
    found = attack_images(model, images, own.norm, names, radii)
    rows = rows or [_find_parting_image(found)]
    facts = {
        "n": n,
        "eps": radii,
        "norm": own.norm,
        "wrong_when_clean": count_wrong_when_clean(found),
        "broken": count_broken(found),
        "settings": {name: resolve_attack(name, own.norm)[0].config() for name in names},
        "examples": {row: _describe_example(model, images, found, row) for row in rows},
    }
    extras = {
        "cells": {row: collect_cells(model, images, found, row) for row in rows},
        "classes": run.record["classes"],
        "middle": radii.index(own.eps) if own.eps in radii else len(radii) // 2,
        "fgsm": measure_fgsm(model, images, own) if own.norm == "linf" else None,
    }
    return FigureData(facts, describe_setting(run), run.method, extras)


def _find_parting_image(found: AttackedImages) -> int:
    """An image right when clean that is broken in as near to half of all attacks as any is.

    Every radius counts; of equals it is the first.
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


def _describe_example(model: nn.Module, images: Split, found: AttackedImages, row: int) -> dict:
    """Label and id of one image, and per attack and radius its class, p_y and perturbation."""
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
                    **{norm: float(tensors.norm(x_adv - x, norm)[0]) for norm in NORM_LABELS},
                }
            )
    return facts


def collect_cells(model: nn.Module, images: Split, found: AttackedImages, row: int) -> dict:
    """What the gallery shows of one image: itself and its perturbed copies, with the answers.

    An answer is (class that the network says, p_y, is it right?). An attack that looks for the
    nearest adversarial image has one for all radii.
    """
    y, clean = int(images.y[row]), images.x(slice(row, row + 1))
    lines = {}
    for name, results in found.items():
        nearest = _is_nearest(name)
        lines[name] = [
            (result.x_adv[row : row + 1].cpu(), _answer(model, result.x_adv[row : row + 1], y))
            for result, _ in (results[:1] if nearest else results)
        ]
    return {"clean": (clean.cpu(), _answer(model, clean, y)), "lines": lines}


def _answer(model: nn.Module, x: Tensor, y: int) -> tuple[int, float, bool]:
    """What the network says of one image (1, C, H, W): (class, p_y, is it right?)."""
    with torch.no_grad():
        probs = model(x).softmax(dim=1)[0]
    said = int(probs.argmax())
    return said, float(probs[y]), said == y


def measure_fgsm(model: nn.Module, images: Split, threat: Threat) -> dict[str, float]:
    """The L-inf norms of FGSM's perturbations, and the share of pixels that move by all of eps."""
    delta = fgsm(model, images.x(), images.y, threat) - images.x()
    norms = tensors.norm(delta, "linf")
    return {
        "eps": threat.eps,
        "n": len(norms),
        "low": float(norms.min()),
        "high": float(norms.max()),
        "off": float((norms - threat.eps).abs().max()),
        "moved": float(((delta.abs() - threat.eps).abs() < ROUNDING).double().mean()),
    }


def draw_attack_gallery(data: FigureData) -> Drawing:
    """Draw a line for each image and attack: the image, then what comes out at every radius.

    What looks for the nearest adversarial image keeps to no radius, and has columns of its own.
    """
    shown, radii = data.extras["cells"], data.facts["eps"]
    attacks = len(data.facts["broken"])
    own = any(map(_is_nearest, data.facts["broken"]))
    columns = 1 + 2 * (len(radii) + own)
    drawing = Drawing(1.0 * columns + 0.5, 1.36 * attacks * len(shown) + 0.4)
    grid = drawing.subplots(attacks * len(shown), columns, squeeze=False)
    for number, (row, cells) in enumerate(shown.items()):
        lines = grid[number * attacks : (number + 1) * attacks]
        for line, (name, results) in zip(lines, cells["lines"].items(), strict=True):
            _draw_gallery_line(line, name, cells["clean"], results, data.extras["classes"])
        lines[0, 0].set_title(f"image {row}", fontsize=8)
        for radius, axes in zip(radii, lines[0, 1 : 1 + 2 * len(radii) : 2], strict=True):
            axes.set_title(f"eps {radius:.3g}", fontsize=8)
    return drawing


def _is_nearest(name: str) -> bool:
    """Whether an attack, named with its norm, looks for the nearest adversarial image."""
    return finds_nearest(ATTACKS[name.partition(":")[0]])


def _draw_gallery_line(line, name: str, clean: tuple, results: list, classes: list[str]) -> None:
    """Draw one image under one attack: itself, then image and perturbation at every radius."""
    first, *cells = line
    image, answer = clean
    _draw_image(first, image[0], _answer_words(answer, classes))
    first.set_ylabel(attack_and_norm_label(name), fontsize=8)
    begin = 0
    if _is_nearest(name):
        begin = len(cells) - 2
        cells[begin].set_title("nearest", fontsize=8)
    for at, (x_adv, answer) in enumerate(results):
        _draw_image(cells[begin + 2 * at], x_adv[0], _answer_words(answer, classes))
        _draw_perturbation(cells[begin + 2 * at + 1], x_adv - image)
    for axes in (*cells[:begin], *cells[begin + 2 * len(results) :]):
        axes.set_axis_off()


def _answer_words(answer: tuple[int, float, bool], classes: list[str]) -> tuple[str, str]:
    """The class and p_y in words, and the colour to write them in: orange if it is wrong."""
    said, p_y, right = answer
    return f"{classes[said]}, $p_y$ {p_y:.2f}", s.BLACK if right else s.VERMILLION


def _draw_image(axes: Axes, image: Tensor, words: tuple[str, str], **style: Any) -> None:
    """Draw one image (C, H, W) without ticks, and what is said of it below."""
    settings: dict[str, Any] = {"cmap": "gray_r", "vmin": 0, "vmax": 1} | style
    pixels = image.cpu().permute(1, 2, 0).numpy()
    # imshow wants one channel as (H, W).
    axes.imshow(pixels[..., 0] if len(image) == 1 else pixels, **settings)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, linewidth=0.5, color=s.GREY)
    axes.set_xlabel(words[0], color=words[1], fontsize=6.8, labelpad=2)


def _draw_perturbation(axes: Axes, delta: Tensor) -> None:
    """Draw a perturbation (1, C, H, W), 0 in the mid-tone, its largest entry in full colour."""
    largest = float(delta.abs().max())
    factor = 0.5 / largest if largest > 0 else 1.0
    words = (
        f"×{factor:.2g}\nL∞ {largest:.2g}, L2 {float(tensors.norm(delta, 'l2')[0]):.2g}"
        if largest > 0
        else "unchanged"
    )
    _draw_image(axes, (0.5 + factor * delta[0]).clamp(0, 1), (words, s.BLACK), cmap="RdBu")


def decide_attack_gallery(data: FigureData) -> list[Claim]:
    """Decide whether FGSM moves some pixel by all of eps, and none by more, in L-inf."""
    found = data.extras["fgsm"]
    if not found:
        return []
    return [
        Claim(
            "FGSM's perturbation has the L∞ norm eps (CSA/CSE Fig. 2)",
            "eps 0.3 on MNIST, 0.03 on CIFAR-10",
            f"eps {found['eps']:g}: norms {found['low']:.4g} to {found['high']:.4g} on "
            f"{found['n']} images; {found['moved']:.0%} of the pixels move that far, others meet 0 "
            "or 1",
            exact=found["off"] < ROUNDING,
        )
    ]


def describe_attack_gallery(data: FigureData) -> str:
    """The caption: how to read the picture, and how many images each attack breaks."""
    facts, middle = data.facts, data.extras["middle"]
    words = ", ".join(
        f"{attack_and_norm_label(name)} {counts[middle]['k']} [{counts[middle]['low']:.0%}, "
        f"{counts[middle]['high']:.0%}]"
        for name, counts in facts["broken"].items()
    )
    return (
        f"{s.label(data.method)} on {data.setting}. Test images under attack: what each attack "
        "found, and the perturbation, scaled ×k (the mid-tone is no change), with its norms. "
        "Orange below an image: misclassified. Balls in another norm have the volume of the "
        f"{NORM_LABELS[facts['norm']]} ball. Of the first {facts['n']} test images "
        f"{facts['wrong_when_clean']} are wrong when clean; these included, broken at eps "
        f"{facts['eps'][middle]:.3g}: {words}."
    )
