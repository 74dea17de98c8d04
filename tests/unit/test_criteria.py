"""Criteria:

each against a loop over one example's plain numbers, their ranges, their safe end, and the table's
wiring.
"""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import settings

from kit.core.errors import KitError
from kit.methods import criteria
from kit.methods.criteria import CRITERIA
from kit.methods.step_outputs import StepOutputs

quick = settings(deadline=None, max_examples=80, derandomize=True, database=None)


# ----------------------------------------------------------------------------- one example, by hand


def softmax(z: list[float]) -> list[float]:
    powers = [math.exp(v - max(z)) for v in z]
    return [v / sum(powers) for v in powers]


def rest(p: list[float], y: int) -> list[float]:
    return [v for j, v in enumerate(p) if j != y]


def pm(p: list[float], y: int) -> float:
    return p[y] - max(rest(p, y))


def count(p: list[float], y: int) -> int:
    return sum(v > p[y] for v in p)


def cl_pm(p: list[float], y: int) -> float:
    gaps = [p[y] - v for v in p if v > p[y]]
    return sum(gaps) if gaps else pm(p, y)


def ratio(p: list[float], y: int) -> float:
    mass = sum(rest(p, y))
    return max(rest(p, y)) / mass if mass > 0 else 1 / (len(p) - 1)


def cosine(p: list[float], y: int) -> float:
    """Between p and p with its true entry zeroed; 0 where the second is the zero vector."""
    zeroed = [0.0 if j == y else v for j, v in enumerate(p)]
    dot = sum(a * b for a, b in zip(p, zeroed, strict=True))
    lengths = math.sqrt(sum(v * v for v in p)) * math.sqrt(sum(v * v for v in zeroed))
    return dot / lengths if lengths else 0.0


def mr(p: list[float], y: int, tau: float = 2.0, similarity: bool = True) -> float:
    return pm(p, y) * (tau - ratio(p, y)) * (cosine(p, y) if similarity else 1)


def entropy(p: list[float]) -> float:
    return -sum(v * math.log(v) for v in p if v > 0)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def geometry(kappa: int, steps: int) -> float:
    return (kappa - steps // 2) / (steps // 2)


#: The value of each row for example i of a `Seen` given as lists: nat, adv, y, kappa, p_flip,
#: steps.
LITERAL = {
    "pm": lambda e: pm(e.adv, e.y),
    "pm-nat": lambda e: pm(e.nat, e.y),
    "pm-dif": lambda e: e.nat[e.y] - e.p_flip,
    "cl-pm": lambda e: cl_pm(e.adv, e.y),
    "confused-labels": lambda e: count(e.adv, e.y),
    "kappa": lambda e: geometry(e.kappa, e.steps),
    "lps": lambda e: geometry(e.lps, e.steps),
    "logit-margin": lambda e: math.log(e.adv[e.y]) - math.log(max(rest(e.adv, e.y))),
    "mr": lambda e: mr(e.adv, e.y),
    "s-v": lambda e: 7.0 * math.exp(-10.0 * e.nat[e.y]),
    "s-d": lambda e: kl(e.nat, e.adv),
    "vir": lambda e: 7.0 * math.exp(-10.0 * e.nat[e.y]) * kl(e.nat, e.adv),
    "mr-literal": lambda e: mr(e.adv, e.y),
    "entropy": lambda e: entropy(e.adv),
}


@dataclasses.dataclass
class Example:
    nat: list[float]
    adv: list[float]
    y: int
    kappa: int
    lps: int
    p_flip: float
    steps: int


def seen_of(
    num_classes: int, n: int = 40, seed: int = 0, scale: float = 2.0, dtype=torch.float64
) -> StepOutputs:
    """Random logits of every sort; the first rows hold ties:

    all equal, the true one level with the top, two others.
    """
    g = torch.Generator().manual_seed(seed)
    nat, adv = (scale * torch.randn(n, num_classes, generator=g, dtype=dtype) for _ in range(2))
    y = torch.randint(num_classes, (n,), generator=g)
    for logits in (nat, adv):
        logits[0] = 0.5
        logits[1, :2], y[1] = logits[1].max() + 1, 1
        logits[2, -2:], y[2] = logits[2].max() + 1, 0
    kappa = torch.randint(0, 11, (n,), generator=g)
    return StepOutputs(
        y,
        adv,
        nat,
        kappa=kappa,
        lps=10 - kappa,
        p_flip=torch.rand(n, generator=g, dtype=dtype),
        steps=10,
    )


def examples_of(seen: StepOutputs) -> list[Example]:
    return [
        Example(softmax(nat), softmax(adv), y, k, lps, p, seen.steps)
        for nat, adv, y, k, lps, p in zip(
            seen.logits_nat.tolist(),
            seen.logits_adv.tolist(),
            seen.y.tolist(),
            seen.kappa.tolist(),
            seen.lps.tolist(),
            seen.p_flip.tolist(),
            strict=True,
        )
    ]


def one_hot_logits(
    num_classes: int, gap: float, dtype=torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits, y) of two rows: all mass on the true class, then all on another."""
    logits = torch.zeros(2, num_classes, dtype=dtype)
    logits[0, 0], logits[1, 1] = gap, gap
    return logits, torch.tensor([0, 0])


# ---------------------------------------------------------------------------------------- every row


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("name", CRITERIA)
def test_row_equals_a_loop_over_examples(name, num_classes):
    """The row reads the right fields in the right order and computes the formula."""
    seen = seen_of(num_classes)
    expected = [LITERAL[name](example) for example in examples_of(seen)]
    got = CRITERIA[name].value(seen)
    assert got.shape == (len(expected),)
    assert got.tolist() == pytest.approx(
        expected, rel=1e-6 if name in ("kappa", "lps") else 1e-10, abs=1e-12
    )


def test_literals_cover_the_table():
    for table in (LITERAL, SAFER):
        assert set(table) == set(CRITERIA), "each criterion has an entry in LITERAL and in SAFER"


@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.parametrize("name", CRITERIA)
def test_score_is_finite_for_saturated_softmaxes(name, num_classes):
    """Probabilities of exactly 0 and 1 in single precision, on either side of the attack."""
    right, y = one_hot_logits(num_classes, 200.0)
    for nat, adv in (
        (right, right),
        (right, right.flip(0)),
        (right.flip(0), right),
        (right.flip(0), right.flip(0)),
    ):
        seen = StepOutputs(
            y,
            adv,
            nat,
            kappa=torch.tensor([0, 10]),
            lps=torch.tensor([0, 10]),
            p_flip=torch.tensor([0.0, 1.0]),
            steps=10,
        )
        score = CRITERIA[name].score(seen)
        assert score.shape == (2,) and bool(score.isfinite().all())


@pytest.mark.parametrize("name", CRITERIA)
def test_permuting_the_batch_permutes_the_scores(name):
    seen = seen_of(10)
    order = torch.randperm(len(seen.y), generator=torch.Generator().manual_seed(1))
    fields = {f.name: getattr(seen, f.name) for f in dataclasses.fields(seen)}
    moved = StepOutputs(
        **{k: v[order] if isinstance(v, torch.Tensor) else v for k, v in fields.items()}
    )
    score = CRITERIA[name].score(seen)
    assert score.unique().numel() > 1
    assert torch.equal(CRITERIA[name].score(moved), score[order])


def mixed(p_true: float) -> list[float]:
    """Four classes, the true one first:

    p_true, and the rest shared 5:3:1, so that labels are overtaken one by one.
    """
    return [p_true, *((1 - p_true) * share / 9 for share in (5, 3, 1))]


def along(p_true: list[float], side: str, other: list[float]) -> StepOutputs:
    """A batch whose p_y rises from row to row on one side of the attack; the other side stays at
    `other`.
    """
    moving = torch.tensor([mixed(p) for p in p_true], dtype=torch.float64).log()
    fixed = torch.tensor([other] * len(p_true), dtype=torch.float64).log()
    adv, nat = (moving, fixed) if side == "adv" else (fixed, moving)
    y = torch.zeros(len(p_true), dtype=torch.int64)
    return StepOutputs(
        y,
        adv,
        nat,
        kappa=torch.arange(len(y)),
        lps=torch.arange(len(y)),
        p_flip=torch.full((len(y),), 0.2, dtype=torch.float64),
        steps=len(y) - 1,
    )


RISING = [0.02, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9, 0.99]
WRONG = [0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35]
#: For each row a batch that gets safer from one example to the next.
SAFER = {
    "pm": along(RISING, "adv", mixed(0.5)),
    "pm-nat": along(RISING, "nat", mixed(0.5)),
    "pm-dif": along(RISING, "nat", mixed(0.5)),  # more probability to lose until 0.2
    "cl-pm": along(RISING, "adv", mixed(0.5)),
    "confused-labels": along(
        [0.05, 0.15, 0.3, 0.7], "adv", mixed(0.5)
    ),  # three, two, one, no label above
    "kappa": along(RISING, "adv", mixed(0.5)),  # survived 0, 1, 2, ... steps
    "lps": along(RISING, "adv", mixed(0.5)),  # first wrong at step 0, 1, 2, ...
    "logit-margin": along(RISING, "adv", mixed(0.5)),
    "mr": along(WRONG, "adv", mixed(0.5)),  # by design not monotone where correct: c falls to 0
    "s-v": along(RISING, "nat", mixed(0.5)),
    "s-d": along(RISING, "adv", mixed(0.99)),  # the attacked prediction comes back to the clean one
    "vir": along(RISING, "adv", mixed(0.99)),
    "mr-literal": along(
        WRONG[::-1], "adv", mixed(0.5)
    ),  # the sign as printed calls the safe vulnerable
    "entropy": along([0.5, 0.6, 0.8, 0.95], "adv", mixed(0.5)),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_score_falls_towards_the_safe_end(name):
    """Whatever its paper's sign, a score is vulnerability:

    a strictly safer example scores strictly lower.
    """
    score = CRITERIA[name].score(SAFER[name]).tolist()
    assert all(a > b for a, b in pairwise(score)), score


def test_parameters_of_a_row_can_be_varied_and_are_checked():
    seen = seen_of(10)
    changed = CRITERIA["s-v"].but(alpha=3.0)
    torch.testing.assert_close(changed.score(seen), CRITERIA["s-v"].score(seen) * 3 / 7)
    with pytest.raises(KitError, match=r"tau=0\.5 is out of range"):
        CRITERIA["mr"].but(tau=0.5)
    with pytest.raises(KitError, match="no parameter of probabilistic_margin 'tau'"):
        CRITERIA["pm"].but(tau=3.0)


# ------------------------------------------------------------------------------------- known points


def test_points_a_and_b_of_clirat():
    """Equal margins, one confused label in A and two in B: only CL-PM tells them apart."""
    probs = torch.tensor([[0.25, 0.45, 0.15, 0.15], [0.20, 0.40, 0.30, 0.10]], dtype=torch.float64)
    y = torch.tensor([0, 0])
    assert criteria.probabilistic_margin(probs, y).tolist() == pytest.approx([-0.2, -0.2])
    assert criteria.confused_label_margin(probs, y).tolist() == pytest.approx([-0.2, -0.3])
    assert criteria.confused_labels(probs, y).tolist() == [1, 2]


def test_ties_confuse_nobody():
    """A label level with the true one is not above it: PM = CL-PM = 0 and no confused label."""
    probs = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.4, 0.4, 0.1, 0.1]], dtype=torch.float64)
    y = torch.tensor([2, 0])
    for value in (
        criteria.probabilistic_margin,
        criteria.confused_label_margin,
        criteria.confused_labels,
    ):
        assert value(probs, y).tolist() == [0, 0]


def test_certain_and_true():
    """p_y = 1: nothing is left to share out, and 0/0 takes its documented end."""
    for k in (2, 3, 10, 100):
        probs, y = torch.eye(k, dtype=torch.float64), torch.arange(k)
        assert criteria.top2_ratio(probs, y).tolist() == pytest.approx([1 / (k - 1)] * k)
        assert criteria.true_class_similarity(probs, y).tolist() == [0] * k
        assert criteria.probabilistic_margin(probs, y).tolist() == [1] * k
        assert criteria.confused_label_margin(probs, y).tolist() == [1] * k
        assert criteria.reweighted_margin(probs, y).tolist() == [0] * k
        assert criteria.entropy(probs).tolist() == [0] * k


def test_certain_and_wrong():
    probs, y = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64), torch.tensor([0])
    assert (
        criteria.probabilistic_margin(probs, y).item()
        == criteria.confused_label_margin(probs, y).item()
        == -1
    )
    assert (
        criteria.top2_ratio(probs, y).item() == criteria.true_class_similarity(probs, y).item() == 1
    )
    assert criteria.confused_labels(probs, y).item() == 1
    assert criteria.reweighted_margin(probs, y, tau=3.0).item() == -2


def test_geometry_value_runs_from_minus_one_to_one():
    kappa = torch.arange(11)
    assert criteria.geometry_value(kappa, 10).tolist() == pytest.approx(
        [(k - 5) / 5 for k in range(11)]
    )
    assert criteria.geometry_value(torch.arange(8), 7).tolist() == pytest.approx(
        [(k - 3) / 3 for k in range(8)]
    )
    assert bool(criteria.geometry_value(torch.arange(2), 1).isfinite().all())


def test_entropy_of_a_uniform_prediction_is_log_k():
    for k in (2, 3, 10, 100):
        assert criteria.entropy(
            torch.full((1, k), 1 / k, dtype=torch.float64)
        ).item() == pytest.approx(math.log(k))


def test_reweighted_margin_without_similarity_and_other_tau():
    seen = seen_of(10)
    for tau, similarity in ((2.0, False), (3.0, True), (4.5, False)):
        got = criteria.reweighted_margin(seen.probs_adv, seen.y, tau=tau, similarity=similarity)
        expected = [mr(e.adv, e.y, tau, similarity) for e in examples_of(seen)]
        assert got.tolist() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_vulnerability_takes_its_parameters():
    seen = seen_of(3)
    got = criteria.vulnerability(seen.probs_nat, seen.y, alpha=8.0, gamma=3.0)
    assert got.tolist() == pytest.approx([8 * math.exp(-3 * e.nat[e.y]) for e in examples_of(seen)])
