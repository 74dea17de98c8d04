"""`kit.explain`: a method's formula, parts, numbers and weights; where paper and code disagree."""

from __future__ import annotations

import base64
import html
import inspect
import textwrap
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property

import torch

from kit.core.parts import Part, list_hyper_parameters
from kit.experiments.runs import Run
from kit.figures.base import Drawing
from kit.figures.style import colour, dash, label, styled
from kit.methods.criteria import Criterion
from kit.methods.formulas import NOTATION, SYMBOLS, Formula, axis_symbol, formula, plain_text
from kit.methods.notes import NOTES, RANGES, allowed_values
from kit.methods.table import METHODS, PART_NAMES, Method

EPOCHS = 120  # of the papers' runs; burn-in is a share of the epochs

ORDER = (
    "attack",
    "second_attack",
    "stages",
    "reads",
    "criterion",
    "weight",
    "normaliser",
    "burn-in",
    "select",
    "gradient",
    "loss",
    "regulariser",
    "perturb",
    "schedule",
)


@dataclass(frozen=True)
class Explanation:
    """A row of METHODS in words.

    It prints as text, and in a notebook as formula, picture and table.
    """

    name: str
    method: Method

    @property
    def formula(self) -> Formula:
        """Its loss and weights, with the burn-in in epochs of the papers' runs."""
        return formula(self.method, epochs=EPOCHS)

    @property
    def parts(self) -> dict[str, str]:
        """{what it is: in words} of its parts, in the order in which a training step runs them."""
        m = self.method
        found = {
            slot: _wrap_words(chosen)
            for slot in PART_NAMES
            if (chosen := getattr(m, slot)) is not None
        }
        found["reads"] = ", ".join(sorted(m.reads))
        if m.reweights:
            first = f"{m.burn_in:.1%} of the epochs, {round(m.burn_in * EPOCHS)} of {EPOCHS}"
            found["burn-in"] = f"every weight is 1 in the first {first}" if m.burn_in else "none"
            found["gradient"] = "stops at the weights" if m.detach else "runs through the weights"
        if not m.weight:
            found.pop("normaliser")
        return {slot.replace("_", " "): found[slot] for slot in ORDER if slot in found}

    @property
    def hyper_parameters(self) -> dict[str, tuple[object, str]]:
        """{dotted name, as overrides take it: (value, in words)}.

        The words are its letter, what is allowed, and whether the row sets it.
        """
        found = {}
        for path, value in self.method.hyper_parameters().items():
            slot, _, name = path.partition(".")
            chosen = getattr(self.method, slot)
            part = chosen.quantity if isinstance(chosen, Criterion) else chosen
            annotation, default = list_hyper_parameters(part.fn)[name]
            letter = SYMBOLS.get(part.name, {}).get(name)
            origin = (
                f"default of {part.name}"
                if value == default
                else f"set in this row; default of {part.name}: {default}"
            )
            found[path] = (
                value,
                "; ".join(
                    [*([plain_text(letter)] if letter else []), allowed_values(annotation), origin]
                ),
            )
        return found

    @property
    def notes(self) -> list[str]:
        """Where paper and code disagree about this method."""
        return [
            text
            for patterns, text in NOTES
            if any(fnmatch(self.name, pattern) for pattern in patterns.split())
        ]

    @cached_property
    def picture(self) -> Drawing | None:
        """The weight, before the normaliser, over the range of the paper's own quantity.

        None where nothing is weighted.
        """
        criterion = self.method.criterion
        if self.method.weight is None or criterion is None:
            return None
        low, high = RANGES.get(criterion.quantity.name, lambda _: (-1.0, 1.0))(
            criterion.quantity.params
        )
        value = torch.linspace(low, high, 401, dtype=torch.float64)
        with styled():
            drawing = Drawing(5.2, 2.8)
            axes = drawing.add_subplot()
            for i, (words, weight) in enumerate(_weights_in_time(self.method).items()):
                axes.plot(
                    value,
                    weight(-criterion.safe_end * value),
                    color=colour(self.name),
                    label=words,
                    linestyle=dash(self.name) if not words else ("-", "--", ":")[i],
                )
            safer = "larger is safer" if criterion.safe_end > 0 else "larger is more vulnerable"
            axes.set(
                xlabel=f"{criterion.symbol}  ({safer})",
                ylabel="weight before the normaliser",
                title=label(self.name),
                xlim=(low, high),
                ylim=(0, None),
            )
            if len(axes.lines) > 1:
                axes.legend()
        drawing.caption = (
            f"{self.name}: {self.method.weight} against {plain_text(axis_symbol(criterion))} from "
            f"{low:g} to {high:.3g} ({safer}), before the normaliser."
        )
        return drawing

    @cached_property
    def _png(self) -> str:
        return base64.b64encode(self.picture.png()).decode() if self.picture else ""

    @property
    def sections(self) -> dict[str, list[tuple[str, str]]]:
        """{heading: rows} of all that is printed below the formula."""
        numbers = [
            (path, f"{value}  ({words})") for path, (value, words) in self.hyper_parameters.items()
        ]
        picture = (
            self.picture.caption
            if self.picture
            else "none: this method has no weight function to draw"
        )
        notes = [(f"{i}", text) for i, text in enumerate(self.notes, 1)]
        return {
            "parts": list(self.parts.items()),
            "hyper-parameters": numbers or [("none", "")],
            "picture": [("weight", picture)],
            "paper and code": notes or [("none", "")],
        }

    def __repr__(self) -> str:
        lines = [f"{self.name}: {self.method.title}", f"source: {self.method.source}"]
        shown = {
            "formula": [
                (plain_text(left), f"= {plain_text(right)}") for left, right in self.formula.lines
            ]
        } | self.sections
        for heading, rows in shown.items():
            width = max(len(name) for name, _ in rows)
            lines += [
                "",
                heading,
                *(
                    textwrap.fill(
                        f"{name:<{width}}  {text}".rstrip(),
                        118,
                        initial_indent="  ",
                        subsequent_indent=" " * (width + 4),
                    )
                    for name, text in rows
                ),
            ]
            if heading == "formula":
                lines.append(
                    textwrap.fill(NOTATION, 118, initial_indent="  ", subsequent_indent="  ")
                )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        e, left = html.escape, "style='text-align:left;vertical-align:top'"
        body = "".join(
            f"<tr><th colspan='2' {left}>{e(heading)}</th></tr>"
            + "".join(
                f"<tr><td {left}>{e(name)}</td><td {left}>{e(text)}</td></tr>"
                for name, text in rows
            )
            for heading, rows in self.sections.items()
        )
        alt = e(self.picture.caption, quote=True) if self.picture else ""
        image = (
            f"<img width='520' alt='{alt}' src='data:image/png;base64,{self._png}'/>"
            if self._png
            else ""
        )
        return (
            f"<div><p><b>{e(self.name)}</b>: {e(self.method.title)}<br/>source: "
            f"{e(self.method.source)}</p>"
            f"<div style='overflow-x:auto'>$${e(self.formula.latex)}$$</div><p>{e(NOTATION)}</p>"
            f"{image}<table><tbody>{body}</tbody></table></div>"
        )

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        # Front ends take HTML: it has the picture.
        return {"text/plain": repr(self), "text/html": self._repr_html_()} | (
            {"image/png": self._png} if self._png else {}
        )


def explain(method: str | Run) -> Explanation:
    """Explain a row of METHODS by its name, or the method of a run with that run's settings.

    Raises:
        KitError: There is no such row.
    """
    if isinstance(method, Run):
        return Explanation(method.method, method.plan.method)
    return Explanation(method, METHODS[method])


def _weights_in_time(method: Method) -> dict[str, Part]:
    """{epoch in words: weight function}, early, in the middle and at the end.

    One alone where no schedule changes it.
    """
    first = round(method.burn_in * EPOCHS) + 1
    found: dict[str, Part] = {}
    for epoch in (first, (first + EPOCHS) // 2, EPOCHS):
        weight = method.at(epoch, EPOCHS).weight
        assert weight is not None, "a schedule changes numbers and takes no part away"
        if weight not in found.values():
            found[f"epoch {epoch} of {EPOCHS}"] = weight
    return found if len(found) > 1 else {"": next(iter(found.values()))}


def _wrap_words(chosen: Part | Criterion) -> str:
    if not isinstance(chosen, Criterion):
        about = inspect.getdoc(chosen.fn) or "of one's own"
        return f"{chosen.name}: {' '.join(about.split(chr(10) * 2)[0].split())}"
    name = plain_text(axis_symbol(chosen))
    end = "safer" if chosen.safe_end > 0 else "more vulnerable"
    sign = "-" if chosen.safe_end > 0 else ""
    return f"score s = {sign}{name}; {chosen.title}, {chosen.source}; larger {name} is {end}"
