"""Each claim that mathematics decides is tried on numbers, by a second way in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import binom, norm
from torch import Tensor

from kit.core.tensors import per_example_cross_entropy
from kit.methods.criteria import confused_label_margin, confused_labels, probabilistic_margin
from kit.methods.losses import cost_sensitive
from kit.methods.regularisers import conv_weights, fuzziness
from kit.methods.step_outputs import StepOutputs
from kit.models.architectures import build_network
from kit.papers import claims
from kit.papers.printed_data import proofs


def draw_probs(n: int = 5000, classes: int = 6) -> tuple[Tensor, Tensor]:
    """Softmax vectors from sharp to flat, with labels."""
    source = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.1, 8, n, dtype=torch.float64)[:, None]
    logits = scale * torch.randn(n, classes, generator=source, dtype=torch.float64)
    return logits.softmax(1), torch.randint(classes, (n,), generator=source)


def confused_labels_are_told_apart() -> bool:
    """CL-PM <= PM, equal exactly where at most one label is above the true one, within [-1, 1]."""
    probs, y = draw_probs()
    pm, cl_pm = probabilistic_margin(probs, y), confused_label_margin(probs, y)
    one = confused_labels(probs, y) <= 1
    apart = (pm - cl_pm) > 1e-12
    return bool((apart == ~one).all() and (cl_pm <= pm + 1e-12).all() and cl_pm.min() >= -1)


def larger_variance_has_the_larger_risk() -> bool:
    """N(-1, s²) against N(1, (K s)²), at the threshold of least mean error."""
    found = []
    for sigma, ratio in itertools.product((0.3, 1.0, 3.0), (1.01, 1.5, 3.0, 10.0)):

        def risks(b: float, sigma: float = sigma, ratio: float = ratio) -> np.ndarray:
            return np.array([norm.sf((1 - b) / sigma), norm.sf((1 + b) / (ratio * sigma))])

        starts = np.linspace(-1, 3 * ratio * sigma + 3, 4001)
        best = starts[np.argmin([risks(b).mean() for b in starts])]
        b = minimize_scalar(lambda b: risks(b).mean(), bracket=(best - 1e-3, best + 1e-3)).x
        easy, hard = risks(b)
        found.append(hard > easy)
    return all(found)


def the_ratio_grows_at_equal_margin() -> bool:
    """p_y and its strongest rival at margin m: the smaller of the two over the larger one."""
    found = []
    for m in (-0.6, -0.2, 0.2, 0.6):
        p_y = np.linspace(max(m, 0) + 0.01, (1 + m) / 2, 50)
        rival = p_y - m
        ratio = np.minimum(p_y, rival) / np.maximum(p_y, rival)
        found.append((np.diff(ratio) > 0).all())
    return bool(all(found))


def cost_one_is_cross_entropy() -> bool:
    """Whether CSA's loss at c = 1 has the gradient of the cross-entropy."""
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 10, generator=source, dtype=torch.float64, requires_grad=True)
    y = torch.randint(10, (20,), generator=source)
    loss, _ = cost_sensitive(StepOutputs(y, logits), cost=1.0)
    mine = torch.autograd.grad(loss.sum(), logits)[0]
    plain = torch.autograd.grad(per_example_cross_entropy(logits, y).sum(), logits)[0]
    return torch.allclose(mine, plain, atol=1e-3)


def least_fuzziness_makes_parameters_small() -> bool:
    """Whether a step down its gradient brings a parameter nearer to 0."""
    w = torch.tensor([-2.0, -0.5, -0.01, 0.01, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(fuzziness(w), w)
    return bool(((w - 0.01 * gradient).abs() < w.abs()).all())


def it_starts_near_seven_tenths() -> bool:
    """LeNet's convolutions before the first step."""
    torch.manual_seed(0)
    first = conv_weights(build_network("lenet", (1, 28, 28), 10)).values()
    return all(abs(float(fuzziness(weight.detach())) - 0.7) < 0.02 for weight in first)


def zero_one_weights_have_the_smaller_mean_gradient() -> bool:
    """Theorem 1's inequality at K = 10, x = 3, p_1 = 0.05; the other side by a product rule."""
    classes, x, p_1 = 10, 3.0, 0.05
    others = np.arange(classes)
    chance = binom.pmf(others, classes - 1, p_1)
    binary = 0.0
    for own, probability in ((0, 1 - p_1), (1, p_1)):
        ones = (others + own) * math.exp(x)
        binary += probability * float(chance @ (ones / (ones + classes - others - own) - own))
    weights = np.random.default_rng(1).random((400_000, classes))
    exponent = np.exp(x * weights)
    uniform = ((weights * exponent).sum(1) / exponent.sum(1) - weights[:, 0]).mean()
    return abs(binary) <= abs(float(uniform))


#: {claim: whether what it says is found}.
TRIED = {
    3: confused_labels_are_told_apart,
    53: larger_variance_has_the_larger_risk,
    56: the_ratio_grows_at_equal_margin,
    75: cost_one_is_cross_entropy,
    76: least_fuzziness_makes_parameters_small,
    77: it_starts_near_seven_tenths,
    91: zero_one_weights_have_the_smaller_mean_gradient,
}


def test_every_proof_is_of_a_claim_that_mathematics_decides_and_is_tried():
    listed = claims()
    assert set(proofs()) == set(TRIED)
    assert (listed.loc[list(TRIED), "decided_by"] == "mathematics").all()
    assert {proof.verdict for proof in proofs().values()} <= {"holds", "fails"}


@pytest.mark.parametrize("number", sorted(TRIED))
def test_numbers_agree_with_the_proof(number):
    assert proofs()[number].verdict == ("holds" if TRIED[number]() else "fails")
