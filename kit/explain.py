"""What exactly is this method? Formula, parts, numbers, where paper and code disagree, and a picture of its weights."""

from __future__ import annotations

import base64
import html
import inspect
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import torch

from kit.criteria import Criterion
from kit.figures.drawing import Drawing
from kit.figures.style import colour, dash, label, styled
from kit.formulas import NOTATION, SYMBOLS, Formula, formula, plain, symbol
from kit.methods import METHODS, SLOTS, Method
from kit.types import Part, hyper_parameters

EPOCHS = 120     # of the papers' runs; burn-in is a share of the epochs

#: (patterns of method names, where paper and code disagree or leave something open, and what is taken here).
NOTES = (
    ("trades trades-awp *-trades",
     "TRADES's code passes the clean images twice through the batch norms in train mode, MAIL's version of it "
     "once, as here; the running statistics differ."),
    ("mart *-mart",
     "Three small constants that keep logarithms finite (1.0001, 1e-12, 1.0000001) are in MART's code and in no "
     "formula of the paper."),
    ("mail-*",
     "Paper: weights divided by their sum over the batch, times M, which is not defined. Code, since its first "
     "release: times 3, nothing divided. mail-at-printed is the former."),
    ("mail-*",
     "Burn-in ends with epoch 74 in the text and with the 76th in the code (the -released rows); CLIRAT, MR and "
     "VIR's text say 75, as here. The first release went on from a plain network of 70 epochs and stopped after "
     "100."),
    ("mail-*",
     "The algorithm prints start noise from U(0, 1), far outside the ball; the code has 0.001 N(0, 1). The code "
     "attacks with eps 0.031 and step 0.007, the paper with 8/255 and 2/255."),
    ("mail-at-dif",
     "MAIL says that PM_dif lies in [0, 1]; a step can raise p_y, so it is [-1, 1]. No code, γ or β is given."),
    ("mail-trades*",
     "Eq. 10 prints KL(p̂ ‖ p), the code computes KL(p ‖ p̂) like all other papers. Its attack was on the cross-"
     "entropy until 2022-04 (mail-trades-2021), since then on the KL."),
    ("mail-mart* clir-mart gair-mart",
     "Only the boosted cross-entropy is weighted, as in MAIL's code; MAIL's own description is in an appendix that "
     "was not available."),
    ("gair*",
     "κ counts the attack's points that are still classified correctly (code); the paper speaks of the least "
     "number of steps. The two differ where an attack's path crosses the boundary more than once."),
    ("gairat*",
     "The code's later branches of the stepwise λ cannot be reached and its linear λ starts at infinity, which "
     "gives NaN; gairat-piecewise and gairat-linear are what they seem to mean."),
    ("gair-*",
     "No paper prints this form: gair-trades is the code's GAIR_RST, gair-mart weighs as MAIL-MART does, a guess."),
    ("clirat clirat-printed clir-*",
     "No code exists. Algorithm 1 as printed normalises after burn-in has set w = 1 and so cancels it (that is "
     "clirat-printed); the line is read as the else branch."),
    ("clirat clirat-printed clir-*",
     "M is said to be \"the number of batches\"; read as the batch size, so that weights average 1 and the loss "
     "keeps its scale. The ascent step is printed with the gradient of θ; that of x is meant."),
    ("clirat-drop-*",
     "The paper leaves out S_sig or S_mul, which differ in size; -matched and -random are controls for that."),
    ("mr-*",
     "Eq. 4 prints the margin as p_2 - p_y; with Eqs. 15-16 safe examples would then weigh most (mr-mail-literal). "
     "Taken: p_y - p_2. Algorithm 1 has another sign before β, with which all weights are nearly equal (mr-mail-"
     "alg1)."),
    ("mr-*",
     "Where p_y = 1 the ratio p_2/(1 - p_y) is 0/0; its lower end is taken, and the similarity is 0 there anyway."),
    ("wmmr wmmr-trades",
     "The authors' code attacks the weighted loss in the plain version and keeps the gradient of the weight; MR, "
     "which compares with it, speaks of a weight only (wmmr-mr: detached, plain PGD, factor 3)."),
    ("wmmr-mr mr-wmmr",
     "MR's version of WMMR: α is 2 in its baseline and dropped beside the reweighted margin; the authors' code has "
     "0.5 on CIFAR-10 and no burn-in."),
    ("ewat",
     "Only the abstract was available: offset, logarithm base, normalisation, burn-in and base loss are guesses."),
    ("vir-* at-scaled",
     "Weights begin after epoch 76 (algorithm) or with it (text, as here). Of S_d the paper says that its value "
     "alone is used, of S_v nothing; no gradient runs through either. No code."),
    ("vir-* at-scaled",
     "Weights are not normalised, so most are far below 1: after burn-in VIR-AT also takes smaller steps. at-"
     "scaled is AT with its mean weight."),
    ("vir-*",
     "Algorithm 1 steps from x instead of from the last iterate, which would be a single step; a slip."),
    ("vir-trades*",
     "The inner attack is not named; TRADES's own, on the KL, is taken."),
    ("fat",
     "Unweighted: an example leaves the attack τ steps after it is first wrong. GAIR-FAT, built on it, mixes up "
     "images and labels in its code and is no row here."),
    ("at-awp trades-awp",
     "Unweighted. The papers that report AWP do not say which version they ran; γ and warm-up are its code's."),
    ("csa* cse-adv",
     "The public code is older than the paper: it trains on FGSM against the cost-sensitive loss with Adam; the "
     "paper says PGD and does not say whether the class costs are inside the maximum. They are, here."),
    ("csa* cse*",
     "With cost 1 a term 1 - p_y stays, which is not quite the plain training that the paper calls it. eps counts "
     "in standardised units there, 0.3 being 0.092 of the pixel range on MNIST."),
    ("csa-l2",
     "Eq. 7 adds the norm of all parameters with coefficient 1, with which a small network learns nothing; the "
     "code's is 0.01 times the sum over tensors."),
    ("cse*",
     "Eq. 9 makes a zero weight the fuzziest (ρ = ½; the text says 1), so minimising it makes all weights grow, "
     "against the text. γ, steps and step size are given nowhere."),
    ("cse*",
     "The public code has no fuzziness: it has ‖W‖₁ - ‖W‖₂ of the first convolutions (cse-l1l2), or their kurtosis "
     "computed without a gradient (cse-kurtosis, here with it)."),
)

#: {quantity: its lowest and highest value}, from its parameters; KL is drawn up to 1 nat, entropy and counts for 10 classes.
RANGES: Mapping[str, Callable[[Mapping], tuple[float, float]]] = {
    **{name: lambda _: (-1.0, 1.0) for name in ("probabilistic_margin", "margin_difference", "confused_label_margin",
                                                "geometry_value")},
    "confused_labels": lambda _: (0.0, 9.0),
    "reweighted_margin": lambda p: (1 - p["tau"], 0.15 * p["tau"] if p["similarity"] else p["tau"]),
    "vulnerability": lambda p: (0.0, p["alpha"]),
    "discrepancy": lambda _: (0.0, 1.0),
    "vulnerability_discrepancy": lambda p: (0.0, p["alpha"]),
    "entropy": lambda _: (0.0, math.log(10)),
}
ORDER = ("attack", "second_attack", "stages", "reads", "criterion", "weight", "normaliser", "burn-in", "select", "gradient",
         "loss", "regulariser", "perturb", "schedule")


@dataclass(frozen=True)
class Explanation:
    """A row of METHODS in words; it prints as text, and in a notebook as formula, picture and table."""

    name: str
    method: Method

    @property
    def formula(self) -> Formula:
        return formula(self.method, epochs=EPOCHS)

    @property
    def parts(self) -> dict[str, str]:
        """{what it is: in words} of the parts that it has, in the order in which a training step comes to them."""
        m = self.method
        found = {slot: _words(chosen) for slot in SLOTS if (chosen := getattr(m, slot)) is not None}
        found["reads"] = ", ".join(sorted(m.sees))
        if m.reweights:
            first = f"{m.burn_in:.1%} of the epochs, {round(m.burn_in * EPOCHS)} of {EPOCHS}"
            found["burn-in"] = f"every weight is 1 in the first {first}" if m.burn_in else "none"
            found["gradient"] = "stops at the weights" if m.detach else "runs through the weights"
        if not m.weight:
            found.pop("normaliser")
        return {slot.replace("_", " "): found[slot] for slot in ORDER if slot in found}

    @property
    def hyper_parameters(self) -> dict[str, tuple[object, str]]:
        """{dotted name, as overrides take it: (value, its letter, what is allowed and whether the row sets it)}."""
        found = {}
        for path, value in self.method.hyper_parameters().items():
            slot, _, name = path.partition(".")
            chosen = getattr(self.method, slot)
            part = chosen.quantity if isinstance(chosen, Criterion) else chosen
            annotation, default = hyper_parameters(part.fn)[name]
            letter = SYMBOLS.get(part.name, {}).get(name)
            origin = f"default of {part.name}" if value == default else f"set in this row; default of {part.name}: {default}"
            found[path] = value, "; ".join([*([plain(letter)] if letter else []), allowed(annotation), origin])
        return found

    @property
    def notes(self) -> list[str]:
        """Where paper and code disagree about this method."""
        return [text for patterns, text in NOTES if any(fnmatch(self.name, pattern) for pattern in patterns.split())]

    @cached_property
    def picture(self) -> Drawing | None:
        """The weight, before the normaliser, over the range of the paper's own quantity; None where nothing is weighted."""
        if self.method.weight is None:
            return None
        criterion = self.method.criterion
        low, high = RANGES.get(criterion.quantity.name, lambda _: (-1.0, 1.0))(criterion.quantity.params)
        value = torch.linspace(low, high, 401, dtype=torch.float64)
        with styled():
            drawing = Drawing(5.2, 2.8)
            axes = drawing.add_subplot()
            for i, (words, weight) in enumerate(_weights_in_time(self.method).items()):
                axes.plot(value, weight(-criterion.safe_end * value), color=colour(self.name), label=words,
                          linestyle=dash(self.name) if not words else ("-", "--", ":")[i])
            safer = "larger is safer" if criterion.safe_end > 0 else "larger is more vulnerable"
            axes.set(xlabel=f"{criterion.symbol}  ({safer})", ylabel="weight before the normaliser", title=label(self.name),
                     xlim=(low, high), ylim=(0, None))
            if len(axes.lines) > 1:
                axes.legend()
        drawing.caption = (f"{self.name}: {self.method.weight} against {plain(symbol(criterion))} from {low:g} to "
                           f"{high:.3g} ({safer}), before the normaliser.")
        return drawing

    @cached_property
    def _png(self) -> str:
        return base64.b64encode(self.picture.png()).decode() if self.picture else ""

    @property
    def sections(self) -> dict[str, list[tuple[str, str]]]:
        """{heading: rows} of all that is printed below the formula."""
        numbers = [(path, f"{value}  ({words})") for path, (value, words) in self.hyper_parameters.items()]
        picture = self.picture.caption if self.picture else "none: this method has no weight function to draw"
        notes = [(f"{i}", text) for i, text in enumerate(self.notes, 1)]
        return {"parts": list(self.parts.items()), "hyper-parameters": numbers or [("none", "")],
                "picture": [("weight", picture)], "paper and code": notes or [("none", "")]}

    def __repr__(self) -> str:
        lines = [f"{self.name}: {self.method.title}", f"source: {self.method.source}"]
        shown = {"formula": [(plain(left), f"= {plain(right)}") for left, right in self.formula.lines]} | self.sections
        for heading, rows in shown.items():
            width = max(len(name) for name, _ in rows)
            lines += ["", heading, *(textwrap.fill(f"{name:<{width}}  {text}".rstrip(), 118, initial_indent="  ",
                                                   subsequent_indent=" " * (width + 4)) for name, text in rows)]
            if heading == "formula":
                lines.append(textwrap.fill(NOTATION, 118, initial_indent="  ", subsequent_indent="  "))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        e, left = html.escape, "style='text-align:left;vertical-align:top'"
        body = "".join(f"<tr><th colspan='2' {left}>{e(heading)}</th></tr>" + "".join(
            f"<tr><td {left}>{e(name)}</td><td {left}>{e(text)}</td></tr>" for name, text in rows)
            for heading, rows in self.sections.items())
        alt = e(self.picture.caption, quote=True) if self.picture else ""
        image = f"<img width='520' alt='{alt}' src='data:image/png;base64,{self._png}'/>" if self._png else ""
        return (f"<div><p><b>{e(self.name)}</b>: {e(self.method.title)}<br/>source: {e(self.method.source)}</p>"
                f"<div style='overflow-x:auto'>$${e(self.formula.latex)}$$</div><p>{e(NOTATION)}</p>"
                f"{image}<table><tbody>{body}</tbody></table></div>")

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:   # front ends take HTML: it has the picture
        return {"text/plain": repr(self), "text/html": self._repr_html_()} | ({"image/png": self._png} if self._png else {})


def explain(name: str) -> Explanation:
    """The row `name` of METHODS: formula, words and a picture. `KitError` for a name that is not there."""
    return Explanation(name, METHODS[name])


def allowed(annotation: object) -> str:
    """What an annotation allows, in words; of a union its first member, as `check_value` has it."""
    kind, inner = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return f"{'a whole number, ' if inner[0] is int else ''}{inner[1]}"
    if kind in (Union, UnionType):
        return allowed(inner[0])
    if kind is Literal:
        return "one of " + ", ".join(map(str, inner))
    return {bool: "True or False", int: "a whole number", float: "a number", str: "text"}.get(annotation, str(annotation))


def _weights_in_time(method: Method) -> dict[str, Part]:
    """{epoch in words: weight function}, one where no timetable changes it, else early, in the middle and at the end."""
    first = round(method.burn_in * EPOCHS) + 1
    found: dict[str, Part] = {}
    for epoch in (first, (first + EPOCHS) // 2, EPOCHS):
        weight = method.at(epoch, EPOCHS).weight
        if weight not in found.values():
            found[f"epoch {epoch} of {EPOCHS}"] = weight
    return found if len(found) > 1 else {"": method.at(first, EPOCHS).weight}


def _words(chosen: Part | Criterion) -> str:
    if not isinstance(chosen, Criterion):
        about = inspect.getdoc(chosen.fn) or "of one's own"
        return f"{chosen.name}: {' '.join(about.split(chr(10) * 2)[0].split())}"
    name, end = plain(symbol(chosen)), "safer" if chosen.safe_end > 0 else "more vulnerable"
    return f"score s = {'-' if chosen.safe_end > 0 else ''}{name}; {chosen.title}, {chosen.source}; larger {name} is {end}"
