"""What attacks, evaluation, audit and adoption make of models and images of every kind.

One table of models by one of entry points: each pair works, or is refused in one sentence.
"""

from __future__ import annotations

import copy
import re
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kit
from kit.attacks.contract import check_inputs
from kit.attacks.fast_gradient_sign import fgsm
from kit.attacks.friendly_pgd_attack import friendly_pgd
from kit.attacks.projected_gradient_descent import pgd
from kit.attacks.table import ATTACKS
from kit.attacks.tracker import rounding_of
from kit.core import tensors
from kit.core.errors import KitError
from kit.core.files import home
from kit.core.random_streams import Streams
from kit.core.threat import Threat
from kit.data.own_images import split_of
from kit.evaluation.robustness_audit import AUDIT_STEPS
from kit.experiments.runs import run_folders

THREAT, COUNT = Threat("linf", 0.1), 12


class Net(nn.Module):
    """Logits of 8x8 images; what is to be wrong with it is done in `answer`."""

    def __init__(self, classes: int = 10):
        super().__init__()
        torch.manual_seed(0)
        self.flat, self.line = nn.Flatten(), nn.Linear(64, classes)

    def forward(self, x):
        return self.answer(x)

    def answer(self, x):
        return 5 * self.line(self.flat(x))


def made(answer, classes: int = 10) -> Net:
    """A `Net` whose forward is `answer(net, x)`."""
    kind = type("Made", (Net,), {"answer": answer})
    return kind(classes)


Output = namedtuple("Output", "logits aux")


def writes(net, x):
    x.sub_(0.5)
    return Net.answer(net, x)


def without_gradient(net, x):
    with torch.no_grad():
        return Net.answer(net, x)


def inference(net, x):
    with torch.inference_mode():
        return Net.answer(net, x)


def hooked() -> Net:
    net = Net()
    net.line.register_forward_hook(lambda module, inputs, output: output + 0)
    return net


def jittery(net, x):
    return Net.answer(net, x) + 0.5 * torch.randn(len(x), 10, generator=net.draw)


def random_net() -> Net:
    net = made(jittery)
    net.draw = torch.Generator().manual_seed(0)
    net.__class__.__deepcopy__ = lambda self, memo: random_net()
    return net


GRADIENT = "no gradient leads from the network's output back"
LOGITS = "expected a tensor of logits"

#: Model: (makes it, the words of the refusal; "" where it works). The second word is of attacks
#: that need a gradient alone.
KINDS = {
    "plain": (Net, ""),
    "in training mode": (lambda: Net().train(), ""),
    "with hooks": (hooked, ""),
    "in DataParallel": (lambda: nn.DataParallel(Net()), ""),
    "scripted": (lambda: torch.jit.script(nn.Sequential(Net().flat, Net().line)), ""),
    "random": (random_net, ""),
    "1000 classes": (lambda: Net(1000), ""),
    "frozen": (lambda: Net().requires_grad_(False), ""),
    "1 class": (lambda: Net(1), r"expected logits \(N, K\)"),
    "tuple": (lambda: made(lambda net, x: (Net.answer(net, x), 0)), f"returned a tuple; {LOGITS}"),
    "named tuple": (
        lambda: made(lambda net, x: Output(Net.answer(net, x), 0)),
        f"returned a Output; {LOGITS}",
    ),
    "dict": (
        lambda: made(lambda net, x: {"logits": Net.answer(net, x)}),
        f"returned a dict; {LOGITS}",
    ),
    "probabilities": (
        lambda: made(lambda net, x: Net.answer(net, x).softmax(dim=1)),
        "returns probabilities",
    ),
    "NaN": (lambda: made(lambda net, x: Net.answer(net, x) * torch.nan), "NaN or infinite logits"),
    "float64 weights": (lambda: Net().double(), "cannot take images of shape.*float32"),
    "half weights": (lambda: Net().half(), "cannot take images of shape.*float32"),
    "another size": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, 10)), "cannot take images"),
    "writes into its input": (lambda: made(writes), "changes the images"),
    "no_grad": (lambda: made(without_gradient), GRADIENT),
    "inference mode": (lambda: made(inference), GRADIENT),
    "function": (lambda: Net().forward, r"the model is a function; expected a network"),
    "state dict": (lambda: Net().state_dict(), r"of type OrderedDict; expected a network"),
}

#: Settings that make the costly attacks quick; what is not there is quick enough.
SHORT = {
    "square": {"queries": 20},
    "spsa100": {"steps": 2, "samples": 8},
    "cw-l2": {"steps": 5, "search_steps": 1},
    "pgd100": {"steps": 4},
    "cw100": {"steps": 4},
    "fmn100": {"steps": 5},
    "mia": {"steps": 3},
    "lm-pgd50": {"steps": 3},
    "apgd-ce": {"steps": 5},
    "apgd-dlr": {"steps": 5},
    "apgd-t": {"steps": 3, "targets": 2},
    "fab-t": {"steps": 3, "targets": 2},
    "md": {"steps": 4, "change_point": 2},
    "mdmt": {"steps": 4, "change_point": 2},
}

#: Attacks that ask the network for logits alone.
BLACK_BOXES = {"natural", "square", "spsa100"}

#: Ensembles run the same members.
ALONE = [name for name in ATTACKS if not name.startswith("aa") and name != "mde"]


def short(name: str):
    known = ATTACKS[name].defaults
    return ATTACKS[name].but(**{k: v for k, v in SHORT.get(name, {}).items() if k in known})


def images(dtype: torch.dtype = torch.float32, n: int = COUNT):
    draw = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 8, 8, generator=draw).to(dtype), torch.arange(n) % 10


def attack_with(name: str):
    def enter(model, x, y):
        attack = short(name)
        return attack.fn(model, x, y, THREAT, **attack.settings)

    return enter


def evaluate_in(model, x, y):
    return kit.evaluate(model, ["natural", "fgsm"], data=(x, y), threat=THREAT, quiet=True)


def audit_in(model, x, y):
    return kit.audit(model, data=(x, y), threat=THREAT, budget=1e-9, quiet=True)


def adopt_in(model, x, y):
    """As a run, with two attack steps; of a network that is refused nothing is kept."""
    before = kept_by_adopt()
    try:
        run = kit.adopt(model, data=(x, y), threat=THREAT, name="of-a-kind",
                        overrides={"steps": 2}, quiet=True)  # fmt: skip
    except KitError:
        assert kept_by_adopt() == before, "something was kept of a network that was refused"
        raise
    return run


def kept_by_adopt() -> tuple:
    return run_folders(), sorted((home() / "data" / "own").glob("*")), dict(kit.MODELS)


TRAINED_ON = {"fgsm": fgsm, "pgd": pgd, "friendly_pgd": friendly_pgd}
ENTRIES = {
    **{name: attack_with(name) for name in ALONE},
    **{
        f"{name}()": lambda model, x, y, fn=fn: fn(model, x, y, THREAT)
        for name, fn in TRAINED_ON.items()
    },
    "evaluate": evaluate_in,
    "audit": audit_in,
    "adopt": adopt_in,
}


def state_of(model) -> dict:
    """{what an entry must leave: as it is}; of what is no network nothing."""
    if not isinstance(model, nn.Module):
        return {}
    modules, parameters = list(model.modules()), list(model.parameters())
    return {
        "modes": [m.training for m in modules],
        "hooks": [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in modules],
        "gradients": [(p.requires_grad, p.grad is None) for p in parameters],
        "weights": [value.numpy().tobytes() for value in model.state_dict().values()],
    }


def changed_parts(model, before: dict) -> list[str]:
    after = state_of(model)
    return [part for part in before if before[part] != after[part]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_works_or_is_refused_in_one_sentence(kind, fresh_home):
    """At every entry; nothing of the model, the images or the global random state is changed."""
    make, refusal = KINDS[kind]
    x, _ = images()
    y = Net(1000 if kind == "1000 classes" else 10)(x).argmax(dim=1)  # what it gets right
    given, state, wrong = x.clone(), torch.get_rng_state(), []
    for entry, enter in ENTRIES.items():
        model = make()
        if kind == "NaN" and entry == "audit":
            continue  # there it is a finding
        needs_gradient = entry.removesuffix("()") not in BLACK_BOXES
        expected = refusal if needs_gradient or refusal != GRADIENT else ""
        before = state_of(model)
        torch.set_rng_state(state)  # making a model drew from it
        try:
            enter(model, x, y)
            said = ""
        except KitError as error:
            said = str(error)
        if bool(said) != bool(expected) or "\n" in said:
            wrong.append(f"{entry}: {said or 'works'}")
        elif not re.search(expected, said):
            wrong.append(f"{entry}: {said}")
        wrong += [f"{entry} changed the model's {part}" for part in changed_parts(model, before)]
        if not torch.equal(x, given):
            wrong.append(f"{entry} changed the images")
            x = given.clone()
        if not torch.equal(torch.get_rng_state(), state):
            wrong.append(f"{entry} drew from the global random state")
    assert not wrong, "\n".join(wrong)


def test_a_changed_forward_pass_is_not_taken_for_the_network_of_the_same_weights(fresh_home):
    """Weights and name decide a run's key; a network that answers otherwise does not open it."""
    x, _ = images()
    y = Net()(x).argmax(dim=1)
    key = adopt_in(Net(), x, y).key
    assert adopt_in(hooked(), x, y).key == adopt_in(random_net(), x, y).key == key
    bent = made(lambda net, x: Net.answer(net, x) - 2 * x.flatten(1)[:, :10])
    with pytest.raises(KitError, match=r"answers otherwise.*Choose another name"):
        adopt_in(bent, x, y)
    assert adopt_in(Net(), x, y).key == key


def test_the_table_is_complete():
    """Every attack that is no ensemble of others is an entry, and every kind of model a row."""
    assert len(KINDS) == 22 and len(ENTRIES) == len(ALONE) + len(TRAINED_ON) + 3
    assert {step.attack for step in AUDIT_STEPS} <= set(ENTRIES)


# ----------------------------------------------------------------------------------- number formats


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.int64])
@pytest.mark.parametrize(
    "entry", [name for name in ENTRIES if name not in ("evaluate", "audit", "adopt")]
)
def test_images_in_coarse_numbers_are_refused(entry, dtype):
    x, y = images(dtype)
    with pytest.raises(KitError, match=r"images have dtype torch"):
        ENTRIES[entry](Net(), x, y)


def true_verdicts(net: nn.Module, x, y, result, threat: Threat) -> tuple[np.ndarray, np.ndarray]:
    """(misclassified, inside the ball and the box), (N,) bool each, in float64."""
    wide = copy.deepcopy(net).double()
    found, clean = result.x_adv.double(), x.double()
    with torch.no_grad():
        wrong = wide(found).argmax(dim=1) != y
    size = tensors.norm(found - clean, threat.norm)
    inside = (size <= threat.eps + rounding_of(x, threat.norm)) & (found.flatten(1) >= 0).all(1)
    return wrong.numpy(), (inside & (found.flatten(1) <= 1).all(1)).numpy()


CASES = {
    "attack": st.sampled_from(["fgsm", "pgd10", "square", "apgd-ce", "md", "mia"]),
    "dtype": st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    "norm": st.sampled_from(["linf", "l2"]),
    "eps": st.floats(1e-4, 0.9),
    "seed": st.integers(0, 2**31),
    "extreme": st.booleans(),
}


def check_case(attack, dtype, norm, eps, seed, extreme):
    """No verdict differs from what float64 says of the image that was found."""
    draw, net = torch.Generator().manual_seed(seed), Net()
    x = torch.rand(6, 1, 8, 8, generator=draw, dtype=torch.float64)
    x = (x.round() if extreme else x).to(dtype)
    y, threat = torch.randint(0, 10, (6,), generator=draw), Threat(norm, eps)
    net = net.to(dtype) if dtype in (torch.float32, torch.float64) else net
    try:
        result = short(attack)(net, *checked(net, x, y), threat, Streams(torch.arange(6), seed))
    except KitError as error:
        assert dtype in (torch.float16, torch.bfloat16) and "too coarse" in str(error)
        return
    assert dtype in (torch.float32, torch.float64)
    wrong, inside = true_verdicts(net, x, y, result, threat)
    sure = result.margin.abs().numpy() > 1e-4  # nearer the boundary roundings decide
    assert np.array_equal(result.broken.numpy()[sure], wrong[sure])
    assert inside.all()


def checked(net, x, y):
    check_inputs(net, x, y)
    return x, y


@settings(max_examples=150, deadline=None, derandomize=True)
@given(**CASES)
def test_no_number_format_gives_a_wrong_verdict(**case):
    check_case(**case)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(**CASES)
def test_no_number_format_gives_a_wrong_verdict_in_2000_cases(**case):
    check_case(**case)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 224, 224)])
def test_a_projection_counts_as_inside_at_every_image_size(shape):
    draw, threat = torch.Generator().manual_seed(0), Threat("l2", 2.0)
    x = torch.rand(8, *shape, generator=draw)
    far = x + torch.randn(x.shape, generator=draw)
    size = tensors.norm(tensors.project(far, x, threat) - x, "l2")
    assert bool((size <= threat.eps + rounding_of(x, "l2")).all())
    half_unit = 2.0**-24 * x[0].numel() ** 0.5  # of each pixel, in the same direction
    assert rounding_of(x, "l2") == pytest.approx(max(1e-6, half_unit)) and half_unit < 3e-5
    assert rounding_of(x, "linf") == 1e-6


# --------------------------------------------------------------------------------------- one's data


def test_data_in_every_form_is_the_same_images():
    """As bytes, floats, arrays, a Dataset, a DataLoader: one table."""
    x, y = images()
    pixels = (x * 255).round().to(torch.uint8)
    floats, net = pixels.float() / 255, Net()
    tables = [
        kit.evaluate(net, "pgd10", data=data, threat=THREAT, quiet=True)
        for data in (
            (pixels, y),
            (floats, y),
            [floats.numpy(), y.numpy()],
            TensorDataset(floats, y),
            DataLoader(TensorDataset(floats, y), batch_size=5),
            split_of((pixels, y)),
        )
    ]
    for table in tables:
        margin = table.attrs["examples"]["pgd10"]["margin"]
        np.testing.assert_allclose(margin, tables[0].attrs["examples"]["pgd10"]["margin"])
        assert table.attrs["classes"] == [str(k) for k in range(10)] and len(margin) == COUNT
    assert len(split_of(DataLoader(TensorDataset(floats, y), batch_size=5), 7)) == 7


def test_data_that_is_none_is_refused():
    x, y = images()
    for data, words in {
        "images": (7, "data is of type int"),
        "labels": ((x, y[:3]), "images of shape .12, 1, 8, 8. and labels of shape .3,"),
        "flat": ((x.flatten(1), y), "expected .x, y."),
        "255": ((x * 255, y), "pixels run from"),
        "half": ((x.half(), y), "too coarse"),
        "float labels": ((x, y.float()), "torch.float32; expected"),
        "words": ((x, ["cat"] * COUNT), "that are not numbers|labels of shape"),
        "none": ((x[:0], y[:0]), "holds no images"),
        "unlike": ((x, y + 100), "labels run from 100"),
        "no transform": (DataLoader([("picture", 1)], batch_size=None), "ToTensor"),
    }.values():
        with pytest.raises(KitError, match=words):
            kit.evaluate(Net(), "natural", data=data, threat=THREAT, quiet=True)
    for missing in ({}, {"data": (x, y)}, {"threat": THREAT}):
        with pytest.raises(KitError, match="has neither images nor a threat"):
            kit.evaluate(Net(), "natural", **missing)
        with pytest.raises(KitError, match="has neither images nor a threat"):
            kit.audit(Net(), **missing)
    with pytest.warns(UserWarning), pytest.raises(KitError, match="Is 8/255 meant"):
        kit.audit(Net(), data=(x, y), threat=Threat("linf", 8))
