"""Names, values, parts, threats, random streams, and the way from a user's words to a plan."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import warnings
from functools import partial
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kit
from kit.core import parameters
from kit.core.errors import KitError, unknown_name
from kit.core.parameters import (
    Count,
    Natural,
    NonNegative,
    Positive,
    Range,
    Real,
    Share,
    check_value,
)
from kit.core.parts import function_digest, list_hyper_parameters, part
from kit.core.random_streams import Streams, derive_seed, named_generator, streams_of
from kit.core.registry import Registry, describe_row
from kit.core.threat import Threat
from kit.experiments.recipes import RECIPE_FIELDS, RECIPES, Recipe, find_recipe
from kit.experiments.specification import RunSpec, parse_overrides, parse_value, resolve
from kit.methods.criteria import Criterion
from kit.methods.losses import LOSSES
from kit.methods.regularisers import REGULARISERS
from kit.methods.step_outputs import READABLE, StepOutputs, fields_read_by, reads
from kit.methods.table import METHODS
from kit.methods.weights import drop_confused
from tests.helpers.settings import ROOT

quick = settings(deadline=None, max_examples=80, derandomize=True, database=None)

TABLES = {
    "method": METHODS,
    "recipe": RECIPES,
    "attack": kit.ATTACKS,
    "criterion": kit.CRITERIA,
    "weight function": kit.WEIGHTS,
    "figure": kit.FIGURES,
    "loss": LOSSES,
    "regulariser": REGULARISERS,
}


# ------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("kind", TABLES)
def test_an_unknown_name_is_answered_with_the_nearest(kind):
    table = TABLES[kind]
    name = max(table, key=len)
    with pytest.raises(
        KitError, match=rf"there is no {kind} '{name}x'\. Did you mean '{name}'\?"
    ) as caught:
        table[f"{name}x"]
    assert all(other in str(caught.value) for other in table), "and with all that there are"
    with pytest.raises(KitError) as caught:
        table["§§§"]
    assert "Did you mean" not in str(caught.value), "nothing is near"


def test_the_beginning_of_a_name_is_answered_with_the_shortest_that_goes_on_there():
    """Two letters are no beginning: they stand in front of too much."""
    names = ["mr-mail", "mail-at-printed", "mail-at", "vir"]
    assert "Did you mean 'mail-at'?" in str(unknown_name("method", "mail", names))
    assert "Did you mean" not in str(unknown_name("method", "ma", names))


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_prints_every_row_with_a_line_about_it(kind):
    table = TABLES[kind]
    text, page = repr(table), table._repr_html_()
    assert len(text.splitlines()) == len(table)
    for name, line in zip(table, text.splitlines(), strict=True):
        assert line.startswith(name) and len(line.removeprefix(name).strip()) > 8
        assert f">{name}<" in page
    assert page.count("<tr>") == len(table)


def test_an_empty_table_still_answers():
    with pytest.raises(KitError, match=r"no toy 'x'.*Choices: none"):
        Registry("toy", {})["x"]


# ------------------------------------------------------------------------------------------- values

Two = Literal["one", "two"]
GOOD = [
    (Real, 3, 3.0),
    (Real, -2.5, -2.5),
    (Positive, 1e-9, 1e-9),
    (NonNegative, 0, 0.0),
    (Share, 1, 1.0),
    (Count, 1, 1),
    (Natural, 0, 0),
    (float, 7, 7.0),
    (int, -7, -7),
    (str, "text", "text"),
    (bool, True, True),
    (Two, "two", "two"),
    (Two | torch.Tensor, "one", "one"),
    (Union[Two, None], "two", "two"),  # noqa: UP007
    (tuple[Count, ...], [3, 5], (3, 5)),
    (tuple[Count, ...], (), ()),
    (tuple[float, ...], (1, 2.5), (1.0, 2.5)),
    (Annotated[float, Range(2)], 2, 2.0),
    (Annotated[int, Range(high=5)], 5, 5),
]
BAD = [
    (Real, math.nan, "out of range"),
    (Real, math.inf, "out of range.*any number"),
    (Real, "3", "is str; it must be a number"),
    (Real, True, "is bool; it must be a number"),
    (Positive, 0, "out of range; it must be above 0"),
    (Positive, -1, "above 0"),
    (NonNegative, -1e-9, "at least 0"),
    (Share, 1.01, "0 to 1"),
    (Share, -0.01, "0 to 1"),
    (Count, 0, "at least 1"),
    (Count, 2.0, "is float; it must be a whole number"),
    (Count, True, "is bool; it must be a whole number"),
    (Count, "2", "is str; it must be a whole number"),
    (Natural, -1, "at least 0"),
    (Natural, None, "is NoneType; it must be a whole number"),
    (Natural, [1], "is list; it must be a whole number"),
    (bool, 1, "is int; it must be True or False"),
    (bool, "True", "is str; it must be True or False"),
    (str, 5, "is int; it must be text"),
    (str, True, "is bool; it must be text"),
    (Two, "tow", "no value of x 'tow'. Did you mean 'two'"),
    (Two, 1, "no value of x '1'"),
    (Two, None, "no value of x"),
    (Two | torch.Tensor, "three", "no value of x 'three'"),
    (tuple[Count, ...], 3, r"must be a list such as \[10, 20\]"),
    (tuple[Count, ...], "3", "must be a list"),
    (tuple[Count, ...], [3, 0], r"x\[1\]=0 is out of range"),
    (tuple[Count, ...], [3, True], r"x\[1\]=True is bool"),
    (Annotated[float, Range(0, 1, above=True)], 0.0, "above 0 to 1"),
    (Annotated[int, Range(high=5)], 6, "at most 5"),
    (Real, 10**400, "x="),
    (Positive, {"a": 1}, "is dict"),
    (str, None, "it must be text"),
]


@pytest.mark.parametrize(("annotation", "value", "expected"), GOOD, ids=str)
def test_a_fit_value_passes_in_its_own_type(annotation, value, expected):
    got = check_value("x", value, annotation)
    assert got == expected and type(got) is type(expected)
    assert not isinstance(got, tuple) or [type(v) for v in got] == [type(v) for v in expected]


@pytest.mark.parametrize(("annotation", "value", "words"), BAD, ids=lambda v: str(v)[:40])
def test_an_unfit_value_is_named_with_what_would_fit(annotation, value, words):
    with pytest.raises(KitError, match=words) as caught:
        check_value("x", value, annotation)
    assert "x" in str(caught.value)


@quick
@given(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from(["Real", "Positive", "NonNegative", "Share"]),
)
def test_ranges_hold_what_they_say(value, name):
    fits = {
        "Real": True,
        "Positive": value > 0,
        "NonNegative": value >= 0,
        "Share": 0 <= value <= 1,
    }[name]
    if fits and math.isfinite(value):
        assert check_value("x", value, getattr(parameters, name)) == value
    else:
        with pytest.raises(KitError, match="out of range"):
            check_value("x", value, getattr(parameters, name))


def test_a_kit_error_is_one_sentence_in_a_notebook():
    error = KitError("mend this")
    assert isinstance(error, ValueError) and error._render_traceback_() == ["KitError: mend this"]


# -------------------------------------------------------------------------------------------- parts


def scaled(
    x: float, *, factor: Positive = 2.0, mode: Literal["up", "down"] = "up", generator=None
) -> float:
    """A toy part. It has a second line."""
    return x * factor if mode == "up" else x / factor


def test_a_part_runs_with_its_parameters():
    toy = part(scaled, factor=3)
    assert toy(2.0) == 6.0 and toy.but(mode="down")(6.0) == 2.0 and part(scaled)(2.0) == 4.0
    assert toy(2.0, generator=None) == 6.0, "what the loop supplies is handed on"
    assert (
        toy.name == "scaled"
        and toy.config().items() >= {"fn": "scaled", "factor": 3.0, "mode": "up"}.items()
    )
    assert str(toy) == "scaled(factor=3.0, mode=up)"
    assert describe_row(toy) == "A toy part. It has a second line."


def test_a_function_with_chosen_arguments_says_which_function_and_which_arguments():
    chosen = partial(scaled, factor=3, mode="down")
    assert describe_row(chosen) == "A toy part. It has a second line; factor 3, mode down."


def test_a_part_is_never_changed_in_place():
    toy = part(scaled)
    toy.but(factor=9)
    assert toy.params == {"factor": 2.0, "mode": "up"}
    with pytest.raises(TypeError):
        toy.params["factor"] = 5.0
    with pytest.raises(AttributeError):
        toy.fn = abs


def test_unknown_and_unfit_parameters_of_a_part():
    with pytest.raises(
        KitError, match=r"no parameter of scaled 'factr'\. Did you mean 'factor'.*factor, mode"
    ):
        part(scaled, factr=2)
    with pytest.raises(KitError, match=r"scaled\.factor=0\.0 is out of range; it must be above 0"):
        part(scaled).but(factor=0)
    with pytest.raises(KitError, match=r"no value of scaled\.mode 'sideways'"):
        part(scaled).but(mode="sideways")
    for supplied in ("generator", "x"):
        with pytest.raises(KitError, match=f"no parameter of scaled '{supplied}'"):
            part(scaled, **{supplied: 1})


class Recorded:
    """A step's outputs that note which of their fields are asked for."""

    def __init__(self, outputs: StepOutputs):
        self.outputs, self.asked = outputs, set()

    def __getattr__(self, name: str):
        self.asked.add(name)
        return getattr(self.outputs, name)


@pytest.mark.parametrize("fn", [*LOSSES.values(), drop_confused], ids=lambda fn: fn.__name__)
def test_a_part_reads_what_it_states(fn):
    """What it does not state is None in training; what it states in vain is computed in vain."""
    draw = torch.Generator().manual_seed(0)
    logits = [torch.randn(6, 4, generator=draw) for _ in range(3)]
    y, streams = torch.arange(6) % 4, Streams(torch.arange(6), 0)
    outputs = StepOutputs(y, logits[0], logits[1], streams=streams, logits_second=logits[2])
    recorded = Recorded(outputs)
    fn(recorded, **({"which": "random"} if fn is drop_confused else {}))
    assert recorded.asked == fields_read_by(fn)


def test_a_function_that_states_nothing_is_given_everything():
    assert fields_read_by(lambda outputs: outputs.kappa) == set(READABLE)


def test_unknown_fields_are_refused():
    with pytest.raises(
        KitError, match=r"reads 'logits_clean', which a step does not compute.*kappa"
    ):
        reads("logits_clean")(lambda outputs: outputs)
    with pytest.raises(KitError, match="mine reads 'p'"):
        Criterion("mine", part(scaled), ("p",), +1, "q", "")


@pytest.mark.parametrize(
    "name", [name for name, method in METHODS.items() if method.schedule is not None]
)
def test_a_schedule_controls_what_it_states(name):
    schedule = METHODS[name].schedule
    for epoch in range(1, 21):
        assert tuple(schedule(epoch, 20)) == METHODS[name].scheduled != ()


def test_what_is_seen_is_detached_with_all_its_fields():
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    seen = StepOutputs(
        torch.tensor([0, 1, 0]), logits, 2 * logits, steps=7, streams=Streams(torch.arange(3))
    )
    assert seen.probs_adv.requires_grad and seen.probs_nat.sum(dim=1).tolist() == pytest.approx(
        [1] * 3
    )
    quiet = seen.detach()
    assert not quiet.probs_adv.requires_grad and not quiet.probs_nat.requires_grad
    assert (
        torch.equal(quiet.logits_nat, 2 * logits)
        and quiet.steps == 7
        and quiet.streams is seen.streams
    )
    assert quiet.kappa is None


# ------------------------------------------------------------------------------------------ threats


@pytest.mark.parametrize(
    ("norm", "eps", "text"),
    [
        ("linf", 8 / 255, "L∞ eps 8/255"),
        ("linf", 0.2, "L∞ eps 51/255"),
        ("linf", 0.23, "L∞ eps 0.23"),
        ("linf", 0, "L∞ eps 0"),
        ("l2", 0.5, "L2 eps 0.5"),
        ("l2", 128 / 255, "L2 eps 128/255"),
        ("linf", 0.031, "L∞ eps 0.031"),
        ("linf", 1, "L∞ eps 255/255"),
    ],
)
def test_a_threat_reads_as_it_is_written_in_papers(norm, eps, text):
    assert str(Threat(norm, eps)) == text


def test_a_radius_in_255ths_is_asked_about():
    with pytest.warns(UserWarning, match=r"eps=8 is more than any pixel.*Is 8/255 meant, 0.031373"):
        Threat("linf", 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not (Threat("linf", 1.0).doubt or Threat("l2", 8.0).doubt)


def test_threats_are_checked_and_compared_by_value():
    assert str(Threat(eps=1e308)) == "L∞ eps 1e+308" and math.copysign(1, Threat(eps=-0.0).eps) == 1
    assert (
        Threat() == Threat("linf", 8 / 255)
        and Threat("l2", 1).eps == 1.0
        and type(Threat("l2", 1).eps) is float
    )
    for norm, eps, words in (
        ("l1", 0.1, r"no value of Threat\.norm 'l1'.*l2, linf"),
        ("linf", -0.1, r"Threat\.eps=-0\.1.*at least 0"),
        ("linf", math.inf, "out of range"),
        ("linf", "8/255", "it must be a number"),
    ):
        with pytest.raises(KitError, match=words):
            Threat(norm, eps)


# ----------------------------------------------------------------------------------- random streams

N, WIDTH = 3000, 8


def uniform(ids: torch.Tensor, *name: object, draws: int = 1, width: int = WIDTH) -> torch.Tensor:
    source = Streams(ids, *name)
    like = torch.empty(len(ids), width, dtype=torch.float64)
    return [source.uniform(like) for _ in range(draws)][-1]


def test_uniform_numbers_are_uniform():
    """In [0, 1), mean 1/2, variance 1/12, and every sixteenth as full as the others."""
    values = uniform(torch.arange(N), 0, "test")
    n = values.numel()
    assert 0 <= float(values.min()) < 1e-3 and 0.999 < float(values.max()) < 1
    assert float(values.mean()) == pytest.approx(0.5, abs=5 / math.sqrt(12 * n))
    assert float(values.var()) == pytest.approx(1 / 12, rel=0.02)
    counts = torch.histc(values, 16, 0, 1)
    assert (
        float(((counts - n / 16) ** 2 / (n / 16)).sum()) < 40
    )  # χ² with 15 degrees of freedom: p = 5e-4
    assert values.unique().numel() > 0.99 * n
    single = Streams(torch.arange(N), 0, "test").uniform(torch.empty(N, WIDTH))
    assert single.dtype == torch.float32 and float(single.max()) < 1
    assert torch.equal(single.double(), values), "the same numbers in single precision"


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_neighbours_are_independent():
    """Ids, places, draws and names next to each other:

    no correlation above five standard errors.
    """
    ids = torch.arange(N)
    first = uniform(ids, 0, "a")
    limit = 5 / math.sqrt(N * (WIDTH - 1))
    pairs = {
        "ids": (first[:-1], first[1:]),
        "places": (first[:, :-1], first[:, 1:]),
        "draws": (first, uniform(ids, 0, "a", draws=2)),
        "names": (first, uniform(ids, 0, "b")),
        "seeds": (first, uniform(ids, 1, "a")),
        "far ids": (first, uniform(ids + 10**12, 0, "a")),
    }
    for what, (a, b) in pairs.items():
        assert abs(correlation(a, b)) < limit, what
    assert abs(correlation(first[:-1, 0], first[1:, 1])) < 5 / math.sqrt(N), "nor along a diagonal"


def test_an_id_always_draws_the_same():
    """Among other mates, in another order, alone, and as the same place of a wider batch of one."""
    ids = torch.tensor([5, 0, 10**9, 7, 3])
    whole = uniform(ids, 4, "attack", 2)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.equal(uniform(ids[order], 4, "attack", 2), whole[order])
    assert torch.equal(
        torch.cat([uniform(ids[i : i + 1], 4, "attack", 2) for i in range(5)]), whole
    )
    assert torch.equal(uniform(torch.cat([ids, ids + 11]), 4, "attack", 2)[:5], whole)
    assert whole.flatten().unique().numel() == 5 * WIDTH, "and different ids draw differently"


def test_name_and_draw_tell_streams_apart():
    ids = torch.arange(4)
    found = [
        uniform(ids, *name)
        for name in ((0, "attack", 1), (0, "attack", 2), (1, "attack", 1), (0, "augment", 1), (0,))
    ]
    found += [uniform(ids, 0, "attack", 1, draws=n) for n in (2, 3)]
    for i, a in enumerate(found):
        assert all(not bool((a == b).any()) for b in found[i + 1 :])


def test_no_stream_is_another_one_moved_along():
    """Numbers of 800 ids under four names:

    24 bits each, so that a dozen of 25,600 meet by chance.
    """
    ids = torch.arange(-400, 400)
    numbers = torch.cat(
        [uniform(ids, *name).flatten() for name in ((0,), (1,), (0, "attack"), (2**40, "attack"))]
    )
    assert len(numbers) == 25_600 and len(numbers) - numbers.unique().numel() < 60


def test_shapes_follow_the_example():
    source = Streams(torch.arange(3), "s")
    for shape in ((3,), (3, 1), (3, 2, 4, 5)):
        for kind in ("uniform", "normal"):
            got = getattr(source, kind)(torch.empty(shape, dtype=torch.float32))
            assert got.shape == shape and got.dtype == torch.float32 and bool(got.isfinite().all())
    with pytest.raises(KitError, match="3 example ids cannot seed a batch of 2"):
        source.uniform(torch.empty(2, 4))


def test_normal_numbers_have_normal_moments():
    values = (
        Streams(torch.arange(N), "normal")
        .normal(torch.empty(N, WIDTH, dtype=torch.float64))
        .flatten()
    )
    n = len(values)
    for power, moment, width in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert float((values**power).mean()) == pytest.approx(moment, abs=5 * math.sqrt(width / n))
    for reach, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        assert float((values.abs() < reach).double().mean()) == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_noise_comes_from_streams_or_a_generator_and_never_from_torchs_own(kind):
    like = torch.empty(4, 5, dtype=torch.float64)

    def draw(source: Streams | torch.Generator | None) -> torch.Tensor:
        return getattr(streams_of(source, like), kind)(like)

    by_stream = draw(Streams(torch.arange(4), "d"))
    assert torch.equal(by_stream, getattr(Streams(torch.arange(4), "d"), kind)(like))
    a, b = (draw(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b) and a.dtype == like.dtype and not torch.equal(a, by_stream)
    sample = {"uniform": torch.rand, "normal": torch.randn}[kind]
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(a, sample(4, 5, generator=generator, dtype=like.dtype))
    numbered = streams_of(None, like)
    c, d = (getattr(numbered, kind)(like) for _ in range(2))
    assert not torch.equal(c, d), "one source gives the same twice"
    assert torch.equal(c, draw(None)), "two calls without a source draw the same"


def test_streams_leave_the_global_state_alone():
    before = torch.get_rng_state()
    uniform(torch.arange(5), "x")
    named_generator("x").manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before)


WORDS = [
    (0, "order", 1),
    (0, "order", 2),
    (1, "order", 0),
    ("0", "orde", "r1"),
    (0, "order"),
    ("order", 0),
]
#: A function as a reader of the kit might write it: its constants hold a set of words.
OWN = """
def own(score, *, mode: str = "soft"):
    'A weight of the reader.'
    return score * (2.0 if mode in {"soft", "hard", "none", "odd", "even"} else 3.0)

def twice(base):
    def closed(score):
        return 2 * base(score)
    return closed
"""
ELSEWHERE = f"""
import json
from kit.experiments.specification import RunSpec, resolve
from kit.core.parts import function_digest, part; from kit.core.random_streams import derive_seed
from kit.methods.weights import sigmoid
exec({OWN!r})
print(json.dumps([[derive_seed(*words) for words in {WORDS!r}],
                  resolve(RunSpec("clirat", "cifar10", 2, {{"eps": 0.1}})).key,
                  function_digest(own), function_digest(twice(sigmoid)),
                  function_digest(twice(part(sigmoid)))]))
"""


@pytest.fixture(scope="module")
def elsewhere() -> list[list]:
    """Seeds, a key and a digest as two other processes compute them, which hash words otherwise."""
    found = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        found.append(json.loads(done.stdout))
    return found


def test_derived_seeds_are_the_same_in_every_process(elsewhere):
    """And differ with every word, its place and its end."""
    seeds = [derive_seed(*words) for words in WORDS]
    assert len(set(seeds)) == len(WORDS) and all(0 <= seed < 2**63 for seed in seeds)
    assert [seeds, seeds] == [found[0] for found in elsewhere]
    a, b = (torch.rand(3, generator=named_generator(0, "order", epoch)) for epoch in (1, 1))
    assert torch.equal(a, b) and not torch.equal(
        a, torch.rand(3, generator=named_generator(0, "order", 2))
    )


def test_a_key_is_the_same_in_every_process(elsewhere):
    key = resolve(RunSpec("clirat", "cifar10", 2, {"eps": 0.1})).key
    assert [key, key] == [found[1] for found in elsewhere]


# --------------------------------------------------------------------------- functions from outside


def defined(source: str, name: str = "own"):
    space: dict = {}
    exec(source, space)
    return space[name]


def test_the_digest_of_a_function_is_the_same_in_every_process(elsewhere):
    """Or the same notebook would train its runs again each time."""
    digest = function_digest(defined(OWN))
    assert [digest, digest] == [found[2] for found in elsewhere]


@pytest.mark.parametrize(
    ("place", "base"),
    [(3, kit.WEIGHTS["sigmoid"]), (4, part(kit.WEIGHTS["sigmoid"]))],
    ids=["function", "part"],
)
def test_so_is_that_of_a_function_which_closes_over_one_of_the_kit(place, base, elsewhere):
    """What it closes over is known by what it is, not by where it lies in memory."""
    digest = function_digest(defined(OWN, "twice")(base))
    assert [digest, digest] == [found[place] for found in elsewhere]


def test_a_function_from_outside_is_known_by_its_code():
    """Where it stands does not matter, what it computes does; functions of the kit go by their
    name.
    """

    def digest(source: str) -> str:
        return part(defined(source)).config()["code"]

    assert digest(OWN) == digest("\n\n\n" + OWN) and len(digest(OWN)) == 12
    for old, new in (
        ("2.0", "2.5"),
        ("score *", "score +"),
        ('"odd"', '"off"'),
        ("mode in", "mode not in"),
    ):
        assert digest(OWN.replace(old, new)) != digest(OWN), (old, new)
    nested = "def own(score):\n    return [v * 2 for v in (lambda s: [s])(score)]"
    assert (
        digest(nested)
        != digest(nested.replace("[s]", "[s, s]"))
        != digest(nested.replace("* 2", "* 3"))
    )
    assert "code" not in METHODS["mail-at"].weight.config()


def test_what_a_function_closes_over_is_part_of_it():
    """Two functions from one factory compute different things, so they must not share a run."""

    def powers(exponent: float):
        def own(score):
            return score**exponent

        return part(own)

    assert powers(2.0).config() == powers(2.0).config() != powers(3.0).config()


# ---------------------------------------------------------------------------------- words to values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        ("0.5/255", 0.5 / 255),
        ("-1/4", -0.25),
        ("+3/4", 0.75),
        ("12", 12),
        ("-3", -3),
        ("1e-3", 1e-3),
        (".5", 0.5),
        ("5.", 5.0),
        ("True", True),
        ("False", False),
        ("true", True),
        ("[75,90]", [75, 90]),
        ("[]", []),
        ("[0.5]", [0.5]),
        ("linf", "linf"),
        ("wrn-34-10", "wrn-34-10"),
        ("folder:/a/b", "folder:/a/b"),
        ("a/b", "a/b"),
        ("1/2/3", "1/2/3"),
        ("", ""),
        ('"none"', "none"),
    ],
)
def test_a_text_becomes_the_value_it_looks_like(text, value):
    got = parse_value(text)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("text", ["1/0", "0.5/00", "-3/0"])
def test_division_by_zero_is_refused(text):
    with pytest.raises(KitError, match="divides by zero"):
        parse_value(text)


def test_overrides_are_words_with_equals_signs():
    assert parse_overrides("") == {} and parse_overrides("  \n ") == {}
    got = parse_overrides(
        "weight.slope=5 eps=8/255  milestones=[75,90]\nnormalise=True model=cnn data=folder:/x=y"
    )
    assert got == {
        "weight.slope": 5,
        "eps": 8 / 255,
        "milestones": [75, 90],
        "normalise": True,
        "model": "cnn",
        "data": "folder:/x=y",
    }


@pytest.mark.parametrize(
    "text", ["epochs", "epochs=", "=3", "epochs 30", "epochs=3 ,lr=1 x", "epochs= 3"]
)
def test_anything_else_is_refused(text):
    with pytest.raises(KitError, match="is not a setting; write name=value"):
        parse_overrides(text)


@quick
@given(st.text(max_size=12))
def test_no_text_is_a_traceback(text):
    """Whatever a user types: a value that a plan accepts, or a KitError."""
    try:
        overrides = parse_overrides(f"lr={text}")
        plan = resolve(RunSpec("at", overrides=overrides))
    except KitError as error:
        assert str(error)
    else:
        assert plan.recipe.lr > 0


# ----------------------------------------------------------------------------------- specs to plans


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (RunSpec("mail-att"), r"no method 'mail-att'\. Did you mean 'mail-at'"),
        (RunSpec("at", "digit"), r"no recipe 'digit'\. Did you mean 'digits'"),
        (RunSpec("at", "folder:/no/such"), "no folder /no/such"),
        (RunSpec("at", seed=-1), "seed=-1 is out of range; it must be at least 0"),
        (RunSpec("at", seed=0.5), r"seed=0\.5 is float"),
        (RunSpec("at", seed=True), "seed=True is bool"),
        (
            RunSpec("at", overrides={"epoch": 3}),
            r"no setting of at on digits 'epoch'\. Did you mean 'epochs'",
        ),
        (RunSpec("at", overrides={"title": "x"}), "no setting of at on digits 'title'"),
        (
            RunSpec("at", overrides={"weight.slope": 3}),
            r"no hyper-parameter 'weight\.slope'.*attack\.init, attack\.loss",
        ),
        (
            RunSpec("mail-at", overrides={"weight.slop": 3}),
            r"no hyper-parameter 'weight\.slop'\. Did you mean 'weight\.slope'",
        ),
        (
            RunSpec("mail-at", overrides={"weigth.slope": 3}),
            r"no setting of mail-at.*Did you mean 'weight\.slope'",
        ),
        (RunSpec("mail-at", overrides={"weight": 3}), r"no setting of mail-at on digits 'weight'"),
        (
            RunSpec("mail-at", overrides={"weight.slope": 0}),
            r"sigmoid\.slope=0\.0 is out of range; it must be above 0",
        ),
        (
            RunSpec("mail-at", overrides={"weight.slope": "steep"}),
            r"sigmoid\.slope='steep' is str; it must be a number",
        ),
        (
            RunSpec("mail-at", overrides={"stages.x": 1}),
            r"no (setting|hyper-parameter).*'stages\.x'",
        ),
        (RunSpec("at", overrides={"epochs": 0}), "epochs=0 is out of range; it must be at least 1"),
        (RunSpec("at", overrides={"epochs": 2.5}), r"epochs=2\.5 is float"),
        (RunSpec("at", overrides={"lr": -0.1}), r"lr=-0\.1 is out of range; it must be above 0"),
        (
            RunSpec("at", overrides={"momentum": 1}),
            "momentum=1.0 is out of range; it must be 0 to 0.9999",
        ),
        (RunSpec("at", overrides={"norm": "l1"}), "no value of norm 'l1'"),
        (RunSpec("at", overrides={"augment": "flip"}), "no value of augment 'flip'"),
        (RunSpec("at", overrides={"data": "mnst"}), "no data set 'mnst'. Did you mean 'mnist'"),
        (RunSpec("at", overrides={"model": "vgg"}), "no model 'vgg'"),
        (
            RunSpec("at", overrides={"milestones": [30, 25]}),
            r"milestones=\[30, 25\] must be increasing",
        ),
        (
            RunSpec("at", overrides={"milestones": [25, 25]}),
            r"milestones=\[25, 25\] must be increasing",
        ),
        (RunSpec("at", overrides={"milestones": 25}), "milestones=25 must be a list"),
        (
            RunSpec("mail-at", overrides={"burn_in": 40}),
            "burn_in=40 leaves no epoch of 40 to reweight; it must be 0 to 39",
        ),
        (RunSpec("mail-at", overrides={"burn_in": -1}), "burn_in=-1 is out of range"),
        (RunSpec("mail-at", overrides={"burn_in": 0.5}), "burn_in=0.5 is float"),
        (
            RunSpec("mail-at", overrides={"burn_in": 12, "epochs": 12, "milestones": []}),
            "burn_in=12 leaves no epoch of 12",
        ),
        (
            RunSpec("at", overrides={"burn_in": 3}),
            "burn_in=3: at never reweights, so it has no burn-in; leave it out",
        ),
        (RunSpec("csa", overrides={"burn_in": 1}), "csa never reweights"),
    ],
    ids=str,
)
def test_a_spec_that_cannot_be_run_says_why(spec, words):
    with pytest.raises(KitError, match=words):
        resolve(spec)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("row", RECIPES)
def test_every_method_resolves_on_every_recipe(name, row):
    """Burn-in is the row's share of the epochs, and leaves some to reweight."""
    plan = resolve(RunSpec(name, row, seed=3))
    assert plan.recipe == RECIPES[row] and plan.method == METHODS[name] and plan.seed == 3
    if plan.method.reweights:
        assert plan.burn_in == pytest.approx(METHODS[name].burn_in * plan.recipe.epochs, abs=0.5)
        assert plan.burn_in < plan.recipe.epochs
    else:
        assert plan.burn_in == 0
    assert json.loads(json.dumps(plan.config())) == plan.config()
    assert (
        len(plan.key) == 12
        and int(plan.key, 16) >= 0
        and plan.folder_name == f"{plan.recipe.data}-{plan.key}"
    )


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 120])
def test_a_burn_in_that_nobody_asked_for_never_stands_in_the_way(epochs):
    """Every row can be run for any number of epochs, and has one left to reweight."""
    for name in METHODS:
        plan = resolve(RunSpec(name, overrides={"epochs": epochs, "milestones": []}))
        assert 0 <= plan.burn_in < epochs


def test_paper_burn_ins():
    """MAIL reweights from epoch 76 of 120, GAIRAT from epoch 60."""
    assert resolve(RunSpec("mail-at", "cifar10:paper")).burn_in == 75
    assert resolve(RunSpec("gairat", "cifar10:paper")).burn_in == 59


def test_overrides_reach_the_plan():
    plan = resolve(
        RunSpec(
            "mail-at",
            overrides={
                "weight.slope": 5,
                "epochs": 12,
                "milestones": [6, 9],
                "eps": 8 / 255,
                "norm": "l2",
                "burn_in": 4,
                "attack.init": "none",
            },
        )
    )
    changed = {"weight.slope": 5.0, "attack.init": "none"}
    assert plan.method.hyper_parameters() == METHODS["mail-at"].hyper_parameters() | changed
    assert (plan.recipe.epochs, plan.recipe.milestones, plan.burn_in) == (12, (6, 9), 4)
    assert plan.recipe.threat == Threat("l2", 8 / 255)
    assert METHODS["mail-at"].weight.params["slope"] == 10 and RECIPES["digits"].epochs == 40, (
        "the tables stay"
    )
    assert resolve(RunSpec("mail-at", overrides={"burn_in": 0})).burn_in == 0
    assert resolve(RunSpec("at", overrides={"burn_in": 0})).burn_in == 0, "0 is what it has"


def test_an_int_is_the_float_it_stands_for():
    assert (
        resolve(RunSpec("at", overrides={"lr": 1})).key
        == resolve(RunSpec("at", overrides={"lr": 1.0})).key
    )


# --------------------------------------------------------------------------------------------- keys

#: Another allowed value for each field of a recipe, starting from digits.
OTHER = {
    "data": "mnist",
    "model": "resnet18",
    "epochs": 41,
    "batch_size": 65,
    "lr": 0.11,
    "momentum": 0.8,
    "weight_decay": 1e-4,
    "milestones": [26, 30],
    "lr_factor": 0.2,
    "norm": "l2",
    "eps": 0.21,
    "step": 0.3,
    "steps": 11,
    "augment": "crop",
    "normalise": True,
    "validation": 131,
    "train_size": 500,
    "probe": 201,
    "precision": "bf16",
    "optimizer": "adam",
    "nesterov": True,
    "schedule": "cosine",
    "warm_up": 1,
    "mean_std": [0.5, 0.25],
    "selection_steps": 5,
    "generated_share": 0.5,
}


def test_every_field_has_another_value():
    assert (
        set(OTHER) == set(RECIPE_FIELDS) == {f.name for f in dataclasses.fields(Recipe)} - {"title"}
    )


def test_a_changed_field_changes_the_key():
    """All keys differ, from the plain one and from each other."""
    keys = {
        field: resolve(RunSpec("mail-at", overrides={field: OTHER[field], "burn_in": 20})).key
        for field in RECIPE_FIELDS
    }
    keys["none"] = resolve(RunSpec("mail-at", overrides={"burn_in": 20})).key
    keys["burn_in"] = resolve(RunSpec("mail-at", overrides={"burn_in": 21})).key
    keys["seed"] = resolve(RunSpec("mail-at", seed=1, overrides={"burn_in": 20})).key
    assert len(set(keys.values())) == len(RECIPE_FIELDS) + 3


def another(annotation: Any, value: Any) -> Any:
    if get_origin(annotation) is Union or "|" in str(annotation):
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Literal:
        return next(v for v in get_args(annotation) if v != value)
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return (not value) if kind is bool else value + 1 if kind is int else value + 0.125


@pytest.mark.parametrize("name", METHODS)
def test_a_changed_hyper_parameter_changes_the_key(name):
    """Every one of the row, from the plain key and from each other."""
    method, keys = METHODS[name], {"none": resolve(RunSpec(name)).key}
    for path, value in method.hyper_parameters().items():
        slot, _, parameter = path.partition(".")
        chosen = getattr(method, slot)
        annotation = list_hyper_parameters(getattr(chosen, "quantity", chosen).fn)[parameter][0]
        try:
            keys[path] = resolve(RunSpec(name, overrides={path: another(annotation, value)})).key
        except KitError:
            assert slot == "attack" and not any(any(method.stages(e, 9)) for e in range(1, 10)), (
                path
            )
    assert len(set(keys.values())) == len(keys)


def test_rows_have_keys_of_their_own():
    """At the papers' 120 epochs; in fewer, a burn-in of 75 and one of 76 may be the same."""
    assert len({resolve(RunSpec(name, "cifar10:paper")).key for name in METHODS}) == len(METHODS)
    assert len({resolve(RunSpec("at", row)).key for row in RECIPES}) == len(RECIPES)


def test_a_key_does_not_depend_on_names(monkeypatch):
    """Two names for the same settings share a run:

    an alias, a default spelled out, a row reached by overrides.
    """
    plain = resolve(RunSpec("mail-at"))
    monkeypatch.setitem(METHODS, "alias", METHODS["mail-at"].but("another title", "another source"))
    monkeypatch.setitem(
        RECIPES, "alias", dataclasses.replace(RECIPES["digits"], title="another title")
    )
    assert resolve(RunSpec("alias", "alias")).key == plain.key
    spelled = {
        **METHODS["mail-at"].hyper_parameters(),
        **RECIPES["digits"].config(),
        "burn_in": plain.burn_in,
    }
    assert resolve(RunSpec("mail-at", overrides=spelled)).key == plain.key
    single, multiple = (
        resolve(RunSpec(f"clirat-drop-{which}")).key for which in ("single", "multiple")
    )
    assert (
        resolve(RunSpec("clirat-drop-single", overrides={"select.which": "multiple"})).key
        == multiple
        != single
    )
    differing = {
        k: v
        for k, v in RECIPES["fashion-mnist"].config().items()
        if v != RECIPES["mnist"].config()[k]
    }
    assert "data" in differing
    fashion = resolve(RunSpec("at", "mnist", overrides=differing))
    assert fashion.key == resolve(RunSpec("at", "fashion-mnist")).key


@quick
@given(st.permutations(["epochs", "eps", "weight.slope", "burn_in", "milestones", "attack.init"]))
def test_a_key_does_not_depend_on_the_order_of_overrides(order):
    values = {
        "epochs": 30,
        "eps": 0.1,
        "weight.slope": 7,
        "burn_in": 3,
        "milestones": [9],
        "attack.init": "none",
    }
    plan = resolve(RunSpec("mail-at", overrides={name: values[name] for name in order}))
    assert plan.key == resolve(RunSpec("mail-at", overrides=values)).key


def test_a_folder_is_known_by_its_place(fresh_home, monkeypatch, tmp_path_factory):
    """However it is written:

    relative, absolute, with a detour or a slash; and another place is another run.
    """
    for name in ("pets", "cats"):
        (fresh_home / "data" / name).mkdir(parents=True)
    monkeypatch.chdir(fresh_home)
    place = fresh_home / "data/pets"
    ways = [
        f"folder:{place}",
        "folder:data/pets",
        "folder:./data/../data/pets",
        f"folder:{place}/",
        f"folder:{place}:quick",
    ]
    plans = [resolve(RunSpec("at", way)) for way in ways]
    assert len({plan.key for plan in plans}) == 1 and all(
        plan.folder_name == f"pets-{plans[0].key}" for plan in plans
    )
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert resolve(RunSpec("at", "folder:data/pets")).key == plans[0].key, "found at home"
    assert (
        resolve(RunSpec("at", f"folder:{place}:paper")).recipe.epochs
        == find_recipe("cifar10:paper").epochs
    )
    assert resolve(RunSpec("at", f"folder:{fresh_home}/data/cats")).key != plans[0].key


def test_a_spec_reads_as_a_sentence():
    assert str(RunSpec("at")) == "at on digits, seed 0"
    assert (
        str(RunSpec("mail-at", "mnist", 2, {"weight.slope": 5}))
        == "mail-at on mnist, seed 2, weight.slope=5"
    )
