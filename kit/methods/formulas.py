"""What a method computes, as formulas: LaTeX for a notebook, one line of Unicode for a terminal.

The papers' notations differ; `NOTATION` is the one for all of them. The numbers after a line belong
to that line: papers give the same letter to different things. A test evaluates every formula and
compares it with the code, so a formula here keeps to the LaTeX that the test's evaluator knows.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from kit.core.parameters import Count, check_value
from kit.core.parts import Part
from kit.methods.criteria import Criterion
from kit.methods.step_outputs import fields_read_by
from kit.methods.table import Method

NOTATION = (
    "p is the prediction (softmax) for the clean x, p̂ for the image trained on, p̃ for a second "
    "attack's; y is the label; j runs over classes, i over the m examples of a batch, t over T "
    "epochs; κ of K attack steps are survived; s is the vulnerability (larger weighs more), v its "
    "weight, w what multiplies the loss, ℓ the loss of an example. The numbers after a line are "
    "that line's."
)


_KL = r"\sum_{j} p_j \log \frac{p_j}{\hat p_j}"

_REVERSED_KL = r"\sum_{j} \hat p_j \log \frac{\hat p_j}{p_j}"

_MARGIN = r"q_y - \max_{j \ne y} q_j"

_RATIO = r"\frac{\max_{j \ne y} q_j}{1 - q_y}"

_COSINE = r"\frac{\sqrt{\sum_{j \ne y} q_j^2}}{\sqrt{\sum_{j} q_j^2}}"

_V = r"\alpha \exp(-\gamma p_y)"


#: {function: formula}; a pair (parameter, {value: formula}) where a parameter chooses. Past a comma
#: stand definitions and words. q is the prediction that a criterion's row hands over as `probs`.
FORMULAS: dict[str, str | tuple[str, Mapping]] = {
    # criteria
    "probabilistic_margin": _MARGIN,
    "margin_difference": r"p_y - p_y(x + \delta^{(t)}),\quad \text{at the first misclassified step "
    r"} t",
    "confused_labels": r"\sum_{j} \mathbf 1[q_j > q_y]",
    "confused_label_margin": rf"\begin{{cases}} \sum_{{j : q_j > q_y}} (q_y - q_j) & \text{{if }} "
    rf"q_y < \max_{{j \ne y}} q_j \\ {_MARGIN} & \text{{otherwise}} \end{{cases}}",
    "geometry_value": r"\frac{\kappa}{\max(1, \lfloor K/2 \rfloor)} - 1",
    "least_steps_value": r"\frac{\mathrm{LPS}}{\max(1, \lfloor K/2 \rfloor)} - 1",
    "logit_margin": r"\log \hat p_y - \max_{j \ne y} \log \hat p_j",
    "top2_ratio": _RATIO,
    "true_class_similarity": _COSINE,
    "reweighted_margin": (
        "similarity",
        {
            True: rf"({_MARGIN}) \left( \tau - {_RATIO} \right) {_COSINE}",
            False: rf"({_MARGIN}) \left( \tau - {_RATIO} \right)",
        },
    ),
    "vulnerability": _V,
    "discrepancy": _KL,
    "vulnerability_discrepancy": rf"{_V} {_KL}",
    "entropy": r"-\sum_{j} q_j \log q_j",
    # weight functions of s
    "sigmoid": r"\sigma(\gamma (s + \beta))",
    "tanh": r"\frac{1 + \tanh(\lambda + \gamma s)}{2}",
    "exponential": r"\exp(\alpha s)",
    "affine": r"\max(0, a s + \beta)",
    "proportional": r"\max(0, s)",
    # normalisers of v
    "batch_mean": r"\frac{m v}{\sum_{i} v_i}",
    "factor": r"M v",
    "unnormalised": r"v",
    "flattened": r"\frac{1}{m} \sum_{i} v_i",
    # selections, in words
    "drop_confused": (
        "which",
        {
            "single": r"\text{0 where exactly one label is confused, else 1}",
            "multiple": r"\text{0 where two or more labels are confused, else 1}",
            "multiple-matched": r"\text{0 for random examples with two or more confused labels, as "
            r"many as have one, else 1}",
            "random": r"\text{0 for random examples, as many as have two or more confused labels, "
            r"else 1}",
        },
    ),
    # regularisers
    "conv_fuzziness": r"-\gamma \operatorname{mean}(\rho \log \rho + (1 - \rho) \log(1 - "
    r"\rho)),\quad \rho = \frac{1}{1 + \exp(|W|)},\quad \text{over all convolutions}",
    "weight_norms": r"\gamma \sum_{l} \lVert W_l \rVert_2,\quad \text{over all tensors named "
    r"weight}",
    "conv_l1_minus_l2": r"\gamma \sum_{l \le n} (\lVert W_l \rVert_1 - \lVert W_l \rVert_2),\quad "
    r"\text{over convolutions}",
    "conv_kurtosis": r"-\gamma \sum_{l \le n} \left( \frac{\operatorname{mean}((W_l - \bar W_l)^4)}"
    r"{(\operatorname{mean}((W_l - \bar W_l)^2))^2} - 3 \right),\quad \text{over convolutions}",
    # perturbation of the parameters, g the gradient
    "perturb_weights": r"W + \gamma_W \lVert W \rVert_2 \frac{g}{\lVert g \rVert_2},\quad \text{"
    r"for every weight tensor; its step is taken there}",
    # schedules
    "friendlier_first": r"\mathbf 1[t > t_1 T] + \mathbf 1[t > t_2 T]",
    "warm_up": r"\gamma_0 \mathbf 1[t > t_0 T]",
    "piecewise": r"\begin{cases} \lambda_1 & \text{if } t < \frac{90}{120} T \\ \lambda_2 & "
    r"\text{if } t < \frac{110}{120} T \\ \lambda_3 & \text{otherwise} \end{cases}",
    "linear": r"\lambda_0 - \frac{t}{T} (\lambda_0 - \lambda_1)",
    # what \hat p belongs to, in words
    "clean": r"x",
    "adversarial": r"\hat x",
    "alternating": r"x \text{, then, after a step, for } \hat x",
    "attacked_then_alternating": r"x \text{, then, after a step, for the } \hat x \text{ from "
    r"before that step}",
    "clean_first_half": r"x \text{ in the first half of the epochs, then for } \hat x",
    "pgd": (
        "loss",
        {
            "ce": r"\text{PGD on the cross-entropy}",
            "kl": r"\text{PGD on the KL to } p",
            "margin": r"\text{PGD on the CW loss}",
        },
    ),
    "one_step_fgsm": r"\text{FGSM on the cross-entropy}",
    "trained_loss_pgd": r"\text{PGD on the loss that is trained}",
    "friendly_pgd": (
        "loss",
        {
            name: rf"\text{{PGD on the {words} until wrong at }} "
            r"\tau + 1 \text{ points, noise } \omega"
            for name, words in {"ce": "cross-entropy", "kl": "KL", "margin": "CW loss"}.items()
        },
    ),
}


#: {loss: (its part that a weight multiplies, its plain part or "")}.
LOSS_FORMULAS: dict[str, tuple[str, str]] = {
    "cross_entropy": (r"-\log \hat p_y", ""),
    "trades": (rf"\beta_{{\mathrm{{KL}}}} {_KL}", r"-\log p_y"),
    "trades_reversed": (rf"\beta_{{\mathrm{{KL}}}} {_REVERSED_KL}", r"-\log p_y"),
    "mart": (
        r"-\log \hat p_y - \log(1.0001 - \max_{j \ne y} \hat p_j + 10^{-12})",
        r"\beta_{\mathrm{KL}} (1.0000001 - p_y) \sum_{j} p_j \log \frac{p_j}{\hat p_j + 10^{-12}}",
    ),
    "gair_trades": (
        r"\beta_{\mathrm{KL}} \sum_{j} p_j \log \frac{\tilde p_j}{\hat p_j}",
        r"\beta_{\mathrm{KL}} \sum_{j} p_j \log \frac{p_j}{\tilde p_j} - \log p_y",
    ),
    "cost_sensitive": (
        r"-\log \hat p_y + \sum_{j \ne y} (1 + (c - 1) \mathbf 1[j = r \lor y = r]) \hat p_j",
        "",
    ),
}


#: {function: {parameter: letter in its formula}}.
SYMBOLS: dict[str, dict[str, str]] = {
    "reweighted_margin": {"tau": r"\tau"},
    **{
        name: {"alpha": r"\alpha", "gamma": r"\gamma"}
        for name in ("vulnerability", "vulnerability_discrepancy")
    },
    "sigmoid": {"slope": r"\gamma", "bias": r"\beta"},
    "tanh": {"shift": r"\lambda", "slope": r"\gamma"},
    "exponential": {"alpha": r"\alpha"},
    "affine": {"slope": "a", "offset": r"\beta"},
    "factor": {"scale": "M"},
    **{
        name: {"beta": r"\beta_{\mathrm{KL}}"}
        for name in ("trades", "trades_reversed", "mart", "gair_trades")
    },
    "cost_sensitive": {"protected": "r", "cost": "c"},
    **{name: {"strength": r"\gamma"} for name in ("conv_fuzziness", "weight_norms")},
    **{
        name: {"strength": r"\gamma", "layers": "n"}
        for name in ("conv_l1_minus_l2", "conv_kurtosis")
    },
    "perturb_weights": {"gamma": r"\gamma_W"},
    "friendly_pgd": {"tau": r"\tau", "omega": r"\omega"},
    "friendlier_first": {"first": "t_1", "second": "t_2"},
    "warm_up": {"until": "t_0", "gamma": r"\gamma_0"},
    "piecewise": {"shift": r"\lambda_1", "second": r"\lambda_2", "third": r"\lambda_3"},
    "linear": {"start": r"\lambda_0", "end": r"\lambda_1"},
}


#: Letters of quantities whose symbol on an axis is an expression or words.
LETTERS = {"geometry_value": "g", "least_steps_value": "g", "confused_labels": "n", "entropy": "H"}

PREDICTIONS = {"probs_nat": "p", "probs_adv": r"\hat p", "probs": "q"}


@dataclass(frozen=True)
class Formula:
    """A method's formulas, (left side, right side) each; `latex` and `text` show them."""

    lines: tuple[tuple[str, str], ...]

    @property
    def latex(self) -> str:
        """One aligned block, without dollars."""
        body = " \\\\\n".join(f"{left} &= {right}" for left, right in self.lines)
        return f"\\begin{{aligned}}\n{body}\n\\end{{aligned}}"

    @property
    def text(self) -> str:
        """One line of Unicode."""
        return "; ".join(f"{plain_text(left)} = {plain_text(right)}" for left, right in self.lines)

    def _repr_latex_(self) -> str:
        return f"$${self.latex}$$"

    def __repr__(self) -> str:
        return self.text


def formula(method: Method, *, epochs: Count = 120) -> Formula:
    """Write down the formulas of a row of METHODS with its numbers.

    Burn-in is shown for a run of `epochs` (the papers' 120). A part that the tables above do not
    have, say a criterion of one's own, appears as its function's name.

    Raises:
        KitError: `epochs` is no whole number above 0.
    """
    check_value("epochs", epochs, Count)
    timed = method.scheduled

    def numbered(slot: str, text: str) -> str:
        """Add the numbers of the slot's part to `text`, without those that follow a schedule."""
        chosen = getattr(method, slot)
        part = chosen.quantity if isinstance(chosen, Criterion) else chosen
        names = (
            SYMBOLS.get(part.name, {})
            if part.name in FORMULAS | LOSS_FORMULAS and _ours(part)
            else {}
        )
        return text + "".join(
            rf",\quad {letter} = {format_number(part.params[name])}"
            for name, letter in names.items()
            if f"{slot}.{name}" not in timed
        )

    lines = _prediction_lines(method, numbered)
    if method.schedule:
        controlled = numbered("schedule", part_formula(method.schedule))
        for slot, _, name in (path.partition(".") for path in timed):
            lines.append((SYMBOLS[getattr(method, slot).name][name], controlled))
    lines += _weight_lines(method, numbered, epochs)
    lines.append((r"\ell", numbered("loss", _loss_lines(method))))
    if method.regulariser:
        lines.append(("R", numbered("regulariser", part_formula(method.regulariser))))
    lines.append(
        (r"\mathcal L", r"\frac{1}{m} \sum_{i} \ell_i" + (" + R" if method.regulariser else ""))
    )
    if method.perturb:
        lines.append(("W'", numbered("perturb", part_formula(method.perturb))))
    return Formula(tuple(lines))


def part_formula(part: Part) -> str:
    """Return the formula of one part in general letters.

    For a function that FORMULAS does not have it is the function's name and arguments.
    """
    found = FORMULAS.get(part.name) if _ours(part) else None
    if found is None:
        return _function_name(part)
    return found if isinstance(found, str) else found[1][part.params[found[0]]]


def criterion_formula(criterion: Criterion) -> str:
    """Return a criterion's quantity in the predictions that its row hands over."""
    pairs = zip(argument_names(criterion.quantity.fn), criterion.reads, strict=True)
    letters = {
        PREDICTIONS[name]: PREDICTIONS[field] for name, field in pairs if name in PREDICTIONS
    }
    return re.sub(
        r"\\hat p|(?<![A-Za-z\\])[pq](?![A-Za-z])",
        lambda found: letters.get(found[0], found[0]),
        part_formula(criterion.quantity),
    )


def axis_symbol(criterion: Criterion) -> str:
    """Return the quantity's letter, as LaTeX."""
    if criterion.quantity.name in LETTERS:
        return LETTERS[criterion.quantity.name]
    return (
        criterion.symbol.strip("$")
        if criterion.symbol.startswith("$")
        else rf"\text{{{criterion.symbol}}}"
    )


def format_number(value: float) -> str:
    """Write a number in LaTeX, exactly.

    It becomes a short decimal, a fraction of small numbers, or a power of ten.
    """
    shortest = f"{value:g}" if float(f"{value:g}") == value else repr(value)
    ratio = Fraction(value).limit_denominator(999)
    if len(shortest) > 8 and float(ratio) == value:
        return rf"{'-' if ratio < 0 else ''}\frac{{{abs(ratio.numerator)}}}{{{ratio.denominator}}}"
    mantissa, _, exponent = shortest.partition("e")
    return rf"{mantissa} \cdot 10^{{{int(exponent)}}}" if exponent else mantissa


def _prediction_lines(method: Method, numbered: Callable[[str, str], str]) -> list[tuple[str, str]]:
    """Say which images the letters stand for, in words."""
    text = rf"\text{{prediction for }} {part_formula(method.stages)}"
    if method.attack and r"\hat x" in text:
        text += rf" \text{{, found by }} {numbered('attack', part_formula(method.attack))}"
    found = [(r"\hat p", text)]
    if method.second_attack:
        second = part_formula(method.second_attack)
        found.append(
            (r"\tilde p", rf"\text{{prediction for }} \tilde x \text{{, found by }} {second}")
        )
    return found


def _weight_lines(
    method: Method, numbered: Callable[[str, str], str], epochs: int
) -> list[tuple[str, str]]:
    """Write the lines from the quantity to the weight past burn-in, and how long burn-in lasts."""
    lines, weight = [], ""
    if method.weight:
        assert method.criterion is not None  # a weight is a function of its score
        name = axis_symbol(method.criterion)
        lines = [
            (name, numbered("criterion", criterion_formula(method.criterion))),
            (
                "v",
                part_formula(method.weight)
                + rf",\quad s = {'-' if method.criterion.safe_end > 0 else ''}{name}"
                + numbered("weight", ""),
            ),
        ]
        weight = part_formula(method.normaliser)
    if method.select:
        lines.append(("k", part_formula(method.select)))
        weight += " k" if weight else "k"
    if not lines:
        return []
    weight = numbered("normaliser", weight) if method.weight else weight
    weight += "" if method.detach else r",\quad \text{with its gradient}"
    first = min(round(method.burn_in * epochs), epochs - 1)
    weight += rf",\quad \text{{but 1 in the first {first} of {epochs} epochs}}" if first else ""
    return [*lines, ("w", weight)]


def _loss_lines(method: Method) -> str:
    """Write the loss of one example: the part that a weight multiplies, then the plain one."""
    weighted, bare = (
        LOSS_FORMULAS.get(method.loss.name, ("", "")) if _ours(method.loss) else ("", "")
    )
    weighted = weighted or _function_name(method.loss)
    if method.reweights:
        weighted = rf"w \left( {weighted} \right)" if weighted.startswith("-") else f"w {weighted}"
    sign, rest = ("-", bare[1:]) if bare.startswith("-") else ("+", bare)
    return f"{weighted} {sign} {rest}" if bare else weighted


def _ours(part: Part) -> bool:
    """Tell whether it is the kit's function, and not a user's that happens to have its name."""
    return (part.fn.__module__ or "").split(".")[0] == "kit"


def argument_names(fn: Callable) -> tuple[str, ...]:
    """Return what a function is computed from, for display.

    That is its positional parameters; of a function of a step's outputs, the fields it reads.
    """
    parameters = inspect.signature(fn).parameters.values()
    names = tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
    return tuple(sorted(fields_read_by(fn))) if names == ("outputs",) else names


def _function_name(part: Part) -> str:
    arguments = [PREDICTIONS.get(name, name) for name in argument_names(part.fn)] + [
        f"{k} = {v}" for k, v in part.params.items()
    ]
    escaped = [text if "\\" in text else rf"\text{{{text}}}" for text in arguments]
    return rf"\text{{{part.name}}}({', '.join(escaped)})"


# ------------------------------------------------------------------------------------------ as text

_WORDS = {
    r"\left": "",
    r"\right": "",
    r"\quad": "",
    r"\cdot": "·",
    r"\ne": "≠",
    r"\le": "≤",
    r"\lor": "or",
    r"\sigma": "σ",
    r"\alpha": "α",
    r"\beta": "β",
    r"\gamma": "γ",
    r"\lambda": "λ",
    r"\tau": "τ",
    r"\rho": "ρ",
    r"\kappa": "κ",
    r"\delta": "δ",
    r"\omega": "ω",
    r"\ell": "ℓ",
    r"\sum": "Σ",
    r"\lfloor": "⌊",
    r"\rfloor": "⌋",
    r"\lVert": "‖",
    r"\rVert": "‖",
    r"\mathbf": "",
    r"\mathcal": "",
    r"\operatorname": "",
    r"\exp": "exp",
    r"\log": "log",
    r"\tanh": "tanh",
    r"\max": "max",
    r"\!": "",
}

_ACCENTS = {"hat": "\u0302", "tilde": "\u0303", "bar": "\u0304"}


def plain_text(latex: str) -> str:
    """Write the kit's LaTeX as one line of Unicode.

    Subscripts of several letters keep their braces.
    """
    text = re.sub(r"\\(hat|tilde|bar) ?(\w)", lambda found: found[2] + _ACCENTS[found[1]], latex)
    text = (
        text.replace(r"\begin{cases}", "⟦")
        .replace(r"\end{cases}", "⟧")
        .replace(r"\\", ";")
        .replace("&", "")
    )
    rules = (
        (r"\\(?:text|mathrm|operatorname)\{([^{}]*)\}", r"\1"),
        (r"([_^])\{(\w+)\}", r"\1\2"),
        (r"([_^])\{([^{}]*)\}", r"\1⟦\2⟧"),
        (r"\\sqrt\{([^{}]*)\}", r"√(\1)"),
        (r"(\\log )?\\frac\{([^{}]*)\}\{([^{}]*)\}", _quotient),
    )
    before = None
    while before != text:
        before = text
        for pattern, replacement in rules:
            text = re.sub(pattern, replacement, text)
    text = re.sub(r"\\(?:[A-Za-z]+|!)", lambda found: _WORDS.get(found[0], found[0][1:]), text)
    text = re.sub(r"\s+", " ", text.translate(str.maketrans("⟦⟧", "{}")))
    return re.sub(r"(?<=[(⌊]) | (?=[),;⌋])|(?<=‖) (?=\w)|(?<=\w) (?=‖_)", "", text).strip()


def _quotient(found: re.Match) -> str:
    quotient = "/".join(
        text if re.fullmatch(r"\\?\w+[\u0300-\u0304]?(_\w)?", text.strip()) else f"({text})"
        for text in (found[2], found[3])
    )
    return rf"\log ({quotient})" if found[1] else quotient
