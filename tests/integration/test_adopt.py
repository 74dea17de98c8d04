"""Networks that were trained elsewhere: runs like others, but for what nobody can know of them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kit
from kit.core.errors import KitError
from kit.core.files import home as home_folder
from kit.data.splits import Split
from kit.evaluation import robustness_audit
from kit.evaluation.accuracy import evaluate
from kit.experiments.runs import cached_dataset, find_run, run_folders
from kit.figures.table import FIGURES
from kit.jobs.archive import verify_run
from kit.jobs.command_line import main
from kit.models.architectures import Normalise, build_network
from kit.models.plain_definition import plain_definition
from tests.helpers.field_networks import moved
from tests.helpers.settings import TINY

#: What an adopted run of these tests is observed on.
FIELDS = {name: TINY[name] for name in ("eps", "steps", "probe", "train_size", "validation")}

#: The architectures that the kit brings.
SHIPPED = tuple(kit.MODELS)

#: Figures of one network whose subject is its training; all others draw an adopted one.
OF_TRAINING = {"confused-labels", "margin-regions", "fuzziness-force"}


@pytest.fixture(scope="module")
def trained(home):
    return kit.run("mail-at", overrides=TINY, quiet=True)


@pytest.fixture(scope="module")
def checkpoint(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("field") / "last-night.pt"
    torch.save({"epoch": 3, "state_dict": trained.model().state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def adopted(checkpoint):
    return kit.adopt(checkpoint, "digits", overrides=FIELDS, n=200, quiet=True)


class Own(nn.Module):
    """A network that the kit has never seen."""

    def __init__(self, size: int = 64, classes: int = 10):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(size, 32), nn.Tanh())
        self.head = nn.Linear(32, classes)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.fixture(scope="module")
def own(trained):
    torch.manual_seed(0)
    net, data = Own(), trained.data().train
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(data.x()), data.y).backward()
        optimizer.step()
    return net


# --------------------------------------------------------------------------- what it has in common


def test_it_is_observed_as_the_trained_one_was(trained, adopted):
    """The same weights, images, attack and random starts give the same numbers."""
    assert adopted.method == "last-night" and adopted.plan.recipe.model == "cnn"
    assert adopted.key != trained.key and adopted.record["kind"] == "adopted"
    assert adopted.record["data_fingerprint"] == trained.record["data_fingerprint"]
    theirs, mine = trained.final, adopted.final
    assert mine.keys() == theirs.keys() and len(mine["train_y"]) == len(mine["test_y"]) == 200
    for name, values in mine.items():
        np.testing.assert_allclose(values, theirs[name][:200], rtol=1e-4, atol=1e-4, err_msg=name)
    last = trained.epoch(trained.epochs)
    for name, values in adopted.epoch(1).items():
        np.testing.assert_allclose(values, last[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_evaluations_and_counterfactual_weights_are_those_of_the_same_weights(trained, adopted):
    tables = [evaluate(run, ["natural", "pgd20"], n=100, quiet=True) for run in (trained, adopted)]
    columns = ["accuracy", "low", "high", "n"]
    assert tables[0][columns].equals(tables[1][columns])
    weights = [kit.whatif(run, "mail-at clirat", counted="final") for run in (adopted,)]
    assert weights[0]["n"].tolist() == [200, 200]
    frozen = [kit.whatif(run, "mail-at clirat", epochs=[run.epochs]) for run in (trained, adopted)]
    shared = [frame.drop(columns="epoch") for frame in frozen]
    assert np.allclose(shared[0].iloc[:, 1:], shared[1].iloc[:, 1:], rtol=1e-4, equal_nan=True)


def test_a_network_that_is_no_run_gets_the_same_numbers(trained, monkeypatch):
    """Of evaluation and audit, on the run's images; nothing is stored, the network as it was."""
    monkeypatch.setattr(robustness_audit, "AUDIT_STEPS", robustness_audit.AUDIT_STEPS[:2])
    model, threat = trained.model().train(), trained.plan.recipe.threat
    before = sorted(trained.folder.rglob("*"))
    table = kit.evaluate(
        model, ["natural", "fgsm"], data=trained.data(), threat=threat, n=60, quiet=True
    )
    report = kit.audit(model, data=trained.data().test, threat=threat, n=60, quiet=True)
    assert model.training and sorted(trained.folder.rglob("*")) == before
    columns = ["accuracy", "low", "high", "last_iterate", "n"]
    stored = evaluate(trained, ["natural", "fgsm"], n=60, quiet=True)
    assert table[columns].equals(stored[columns])
    theirs = kit.audit(trained, n=60, quiet=True)
    assert report.steps["accuracy"].equals(theirs.steps["accuracy"])
    assert [f.light for f in report.findings] == [f.light for f in theirs.findings]
    for ask in (evaluate, kit.audit):
        with pytest.raises(KitError, match="on its own images and threat"):
            ask(trained, threat=threat)


def test_its_folder_is_sealed_and_found_again(adopted, checkpoint):
    assert verify_run(adopted.folder) == []
    found = find_run(adopted.key)
    assert found.spec == adopted.spec and found.is_adopted
    assert "adopted on digits" in repr(found) and f"{found.done['robust']:.1%}" in repr(found)
    before = (adopted.folder / "done.json").stat().st_mtime_ns
    again = kit.adopt(checkpoint, "digits", overrides=FIELDS, n=200, quiet=True)
    assert again.key == adopted.key
    assert (adopted.folder / "done.json").stat().st_mtime_ns == before, "it was observed anew"


def test_another_weight_image_count_or_radius_is_another_run(adopted, checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    state["state_dict"]["0.bias"] += 1e-3
    torch.save(state, tmp_path / "moved.pt")
    keys = {
        adopted.key,
        kit.adopt(tmp_path / "moved.pt", overrides=FIELDS, n=200, quiet=True).key,
        kit.adopt(checkpoint, overrides=FIELDS, n=100, quiet=True).key,
        kit.adopt(checkpoint, overrides=FIELDS | {"eps": 0.05}, n=200, quiet=True).key,
    }
    assert len(keys) == 4


@pytest.mark.parametrize("name", [name for name, row in FIGURES.items() if row.one])
def test_every_figure_of_one_network_draws_it_or_says_what_it_lacks(name, adopted, tmp_path):
    if name in OF_TRAINING:
        with pytest.raises(KitError, match="trained elsewhere"):
            kit.draw(name, adopted, folder=tmp_path)
        return
    drawing = kit.draw(name, adopted, folder=tmp_path)
    assert "after epoch" not in drawing.caption and len(drawing.files) == 3
    plt.close("all")


def test_it_stands_beside_trained_runs(trained, adopted, tmp_path):
    assert kit.draw("black-box", [trained, adopted], folder=tmp_path, n=20).facts
    assert kit.draw("every-method", [trained, adopted], folder=tmp_path).facts


@pytest.mark.parametrize("widget", ["weighting_curves", "simplex", "inspect", "whatif"])
def test_widgets_take_it(widget, adopted):
    words = getattr(kit.widgets, widget)(adopted).figure.caption
    assert words and "fter epoch" not in words


# ----------------------------------------------------------------------------- what nobody can know


@pytest.mark.parametrize(
    "ask",
    [
        lambda run: run.history,
        lambda run: run.model("initial"),
        lambda run: kit.whatif(run, "mail-at", counted="on the fly"),
    ],
)
def test_what_an_adopted_run_cannot_know_is_said_in_one_sentence(ask, adopted):
    with pytest.raises(KitError, match=r"last-night, adopted on digits.*trained elsewhere"):
        ask(adopted)


# --------------------------------------------------------------------------------- one's own images

OWN_THREAT = kit.Threat("linf", 0.15)


@pytest.fixture(scope="module")
def pairs(trained):
    test = trained.data().test
    return test.x(slice(0, 120)), test.y[:120]


@pytest.fixture(scope="module")
def on_own(trained, pairs):
    return kit.adopt(trained.model(), data=pairs, threat=OWN_THREAT, name="on-own", quiet=True)


def test_own_images_stand_for_the_recipes(trained, pairs, on_own):
    """The images are the user's, with their numbers for ids; nothing of a recipe's is read."""
    (x, y), data = pairs, on_own.data()
    assert on_own.plan.recipe.threat == OWN_THREAT and len(data.test) == len(data.train) == 120
    assert sorted(data.test.ids.tolist()) == list(range(120))
    assert torch.equal(data.test.x(), x[data.test.ids]) and torch.equal(
        data.test.y, y[data.test.ids]
    )
    table = kit.evaluate(on_own, ["natural", "pgd20"], quiet=True)
    direct = kit.evaluate(trained.model(), ["natural"], data=pairs, threat=OWN_THREAT, quiet=True)
    assert table.accuracy["natural"] == direct.accuracy["natural"]
    assert verify_run(on_own.folder) == [] and find_run(on_own.key).spec == on_own.spec
    with pytest.raises(KitError, match="No network can be trained on them"):
        kit.run("at", on_own.spec.recipe)


def test_own_images_in_every_form_are_one_run(trained, pairs, on_own, tmp_path):
    x, y = pairs
    pixels = (x * 255).round().to(torch.uint8)
    np.savez(tmp_path / "own.npz", x=pixels.numpy(), y=y.numpy())
    for data in (
        (pixels, y),
        [x.numpy(), y.numpy()],
        (x.double(), y),
        TensorDataset(x, y),
        DataLoader(TensorDataset(x, y), batch_size=32),
        Split(pixels, y, torch.arange(120)),
        tmp_path / "own.npz",
    ):
        run = kit.adopt(trained.model(), data=data, threat=OWN_THREAT, name="on-own", quiet=True)
        assert run.key == on_own.key


@pytest.mark.parametrize("figure", ["pm-by-lps", "every-weight", "attack-curves"])
def test_figures_of_own_images_say_so(figure, on_own, tmp_path):
    caption = kit.draw(figure, on_own, folder=tmp_path).caption
    assert "120 images of one's own" in caption
    plt.close("all")


def test_own_images_are_audited_and_weighed(on_own, monkeypatch):
    monkeypatch.setattr(robustness_audit, "AUDIT_STEPS", robustness_audit.AUDIT_STEPS[:2])
    assert kit.audit(on_own, quiet=True).steps["n"].tolist()[0] == 120
    assert (kit.whatif(on_own, "mail-at clirat")["n"] == 120).all()


def test_own_floats_keep_their_values_and_give_the_normalisation(own):
    """A recipe lends its threat and its name; mean and deviation are those of the images."""
    draw = torch.Generator().manual_seed(0)
    x = 0.2 + 0.3 * torch.rand(60, 1, 8, 8, generator=draw)
    with torch.no_grad():
        y = own(x).argmax(dim=1)
    y[0] = (y[0] + 1) % 10  # two classes, whatever it says of noise
    run = kit.adopt(own, "digits", data=(x, y), name="floats", quiet=True)
    assert run.plan.recipe.eps == kit.RECIPES["digits"].eps
    data = run.data()
    assert torch.equal(data.test.images, x[data.test.ids])
    mean, std = data.mean_std()
    torch.testing.assert_close((mean, std), (x.mean()[None], x.std(correction=0)[None]))


def test_a_sample_of_many_images_holds_every_class(trained):
    split = trained.data().train
    order = split.y.argsort()  # one class after the other
    data = (split.x()[order], split.y[order])
    run = kit.adopt(trained.model(), data=data, threat=OWN_THREAT, n=50, name="sorted", quiet=True)
    assert len(run.data().test) == 50 and run.data().test.y.bincount(minlength=10).min() >= 4


def test_a_file_is_adopted_on_own_images_and_opened_elsewhere(checkpoint, pairs, tmp_path, capsys):
    np.savez(tmp_path / "own.npz", x=pairs[0].numpy(), y=pairs[1].numpy())
    words = ["--data", str(tmp_path / "own.npz"), "--name", "from-file"]
    assert main(["adopt", str(checkpoint), *words]) == 2
    assert "data has no threat" in capsys.readouterr().err
    assert main(["adopt", str(checkpoint), *words, "--set", "eps=0.15"]) == 0
    key = capsys.readouterr().out.rpartition("; ")[2][:12]
    code = f"from kit.experiments.runs import find_run; r = find_run('{key}'); r.model(); r.data()"
    subprocess.run([sys.executable, "-c", code], check=True)
    run = find_run(key)
    kept = home_folder() / "data" / "own" / f"{run.spec.recipe.removeprefix('own:')}.npz"
    aside = kept.rename(tmp_path / "aside.npz")
    cached_dataset.cache_clear()
    with pytest.raises(KitError, match=r"are not here.*adopt it again with the same data"):
        run.data()
    kit.adopt(checkpoint, data=aside.parent / "own.npz", name="from-file", overrides={"eps": 0.15})
    assert kept.read_bytes() == aside.read_bytes() and len(run.data().test) == 120


def test_own_data_that_do_not_fit_are_one_sentence_and_nothing_is_stored(trained, pairs):
    (x, y), net = pairs, trained.model()
    before = run_folders(), sorted((home_folder() / "data").glob("own/*"))
    for words, data in {
        "pixels run from": (x * 255, y),
        "labels run from 100": (x, y + 100),
        "labels run from 1 to 10; the network has 10 outputs": (x, y + 1),
        "cannot take images": (x[:, :, :4, :4], y),
        "are of class 3": (x, y * 0 + 3),
        "no more than chance": (x, y.flip(0)),
        "torch.float32; expected": (x, y.float()),
        "labels of shape .99,": (x, y[:99]),
        "there are no images": (x[:0], y[:0]),
        "data is of type int": 7,
        "there is no file": "nowhere.npz",
        "too coarse": (x.half(), y),
    }.items():
        with pytest.raises(KitError, match=words) as caught:
            kit.adopt(net, data=data, threat=OWN_THREAT, name="unfit", quiet=True)
        assert "\n" not in str(caught.value)
    colour = x.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    with pytest.raises(KitError, match=r"channels seem to come last; expected \(N, C, H, W\)"):
        kit.adopt(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), data=(colour, y), name="last",
                  threat=OWN_THREAT)  # fmt: skip
    with pytest.raises(KitError, match="images of 4x8; a run's are square"):
        kit.adopt(Own(32), data=(x[:, :, :4], y), threat=OWN_THREAT, name="unfit")
    for words, changes in {
        "has no threat": {},
        "both set eps": {"threat": OWN_THREAT, "overrides": {"eps": 0.1}},
        "must be a threat": {"threat": 0.1},
    }.items():
        with pytest.raises(KitError, match=words):
            kit.adopt(net, data=pairs, name="unfit", quiet=True, **changes)
    assert before == (run_folders(), sorted((home_folder() / "data").glob("own/*")))


# -------------------------------------------------------------------------- networks and file names


def test_a_network_is_taken_as_it_is(own, trained):
    before = {name: value.clone() for name, value in own.state_dict().items()}
    own.train()
    run = kit.adopt(own, "digits", name="own", overrides=FIELDS, n=100, quiet=True)
    assert own.training and all(torch.equal(before[n], v) for n, v in own.state_dict().items())
    x = trained.data().test.x(slice(0, 50))
    with torch.no_grad():
        torch.testing.assert_close(run.model()(x), own(x))
        own.head.bias += 1
        assert not torch.allclose(run.model()(x), own(x)), "the run holds the caller's network"
        own.head.bias -= 1
    twice = nn.Sequential(Normalise(torch.zeros(1), torch.ones(1)), own).eval()
    again = kit.adopt(twice, "digits", name="twice", overrides=FIELDS, n=50, quiet=True)
    observed = again.epoch(1)
    assert len(observed["validation_logits_nat"]) == len(observed["test_logits_nat"]) == 50
    with torch.no_grad():
        torch.testing.assert_close(again.model()(x), own(x))
    kit.MODELS["own"] = kit.MODELS["cnn"]
    try:
        with pytest.raises(KitError, match=r"MODELS\['own'\] builds another network"):
            run.model()
    finally:
        del kit.MODELS["own"]
    with pytest.raises(KitError, match=r"there is no model 'own'.*row of kit.MODELS"):
        find_run(run.key).model()


def test_a_registered_architecture_is_trained_and_adopted(own, checkpoint, monkeypatch):
    """Ten lines make it a name in recipes and checkpoints."""
    monkeypatch.setitem(kit.MODELS, "tanh", lambda channels, size, k: Own(channels * size**2, k))
    run = kit.run("mail-at", overrides=TINY | {"model": "tanh", "epochs": 1, "milestones": []})
    assert isinstance(run.model(), Own)
    mine = kit.adopt(own, name="tanh-net", architecture="tanh", overrides=FIELDS, n=50, quiet=True)
    assert mine.plan.recipe.model == "tanh" and isinstance(mine.model(), Own)
    monkeypatch.setitem(kit.MODELS, "broken", lambda channels, size, k: "no network")
    with pytest.raises(KitError, match=r"MODELS\['broken'\] built str"):
        kit.run("at", overrides=TINY | {"model": "broken"})


def test_normalisation_outside_is_asked_for_and_checked(own, trained, capsys):
    """A network for (x - 2) / 0.25: right with these numbers, and refused without."""
    net = copy.deepcopy(own)
    first = net.body[1]
    with torch.no_grad():
        first.bias += 2 * first.weight.sum(dim=1)
        first.weight *= 0.25
    folders = run_folders()
    with pytest.raises(KitError, match=r"far takes pixels in \[0, 1\].*no more than chance"):
        kit.adopt(net, name="far", overrides=FIELDS)
    assert run_folders() == folders, "something was stored of a network that does not fit"
    run = kit.adopt(net, name="far", normalise=([2.0], [0.25]), overrides=FIELDS, n=50)
    assert "far normalises its images itself: clean accuracy" in capsys.readouterr().out
    x = trained.data().test.x()
    with torch.no_grad():
        torch.testing.assert_close(find_run(run.key).model()(x), own(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fields", [{"normalise": True}, {"mean_std": [0.3, 0.4]}])
@pytest.mark.parametrize("inside", [False, True])
def test_a_recipe_that_normalises_otherwise_gives_the_network_back(fields, inside, trained):
    """The papers' recipes have numbers of their own; the network's are the ones that count."""
    net, fields = trained.model(), FIELDS | {"normalise": False} | fields
    numbers = ([0.1], [0.9]) if inside else None
    run = kit.adopt(net, name="otherwise", architecture="cnn", normalise=numbers, n=50,
                    overrides=fields, quiet=True)  # fmt: skip
    x = trained.data().test.x(slice(0, 20))
    with torch.no_grad():
        expected = net((x - 0.1) / 0.9 if inside else x)
        torch.testing.assert_close(find_run(run.key).model()(x), expected, rtol=1e-4, atol=1e-4)


def test_a_name_is_what_a_file_is_called_without_its_endings(checkpoint, tmp_path):
    for ending in (".pt", ".pth.tar"):
        path = tmp_path / f"epoch 12{ending}"
        path.write_bytes(checkpoint.read_bytes())
        assert kit.adopt(path, overrides=FIELDS, n=50, quiet=True).method == "epoch-12"


def test_the_command_line_adopts_and_what_it_made_is_used_by_its_key(checkpoint, tmp_path, capsys):
    words = [f"{name}={json.dumps(value)}" for name, value in FIELDS.items()]
    assert main(["adopt", str(checkpoint), "--architecture", "cnn", "--name", "cli", "--n", "60",
                 "--set", *words]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "cli takes pixels in [0, 1]: clean accuracy" in said and "cli, adopted on digits" in said
    key = said.rpartition("; ")[2][:12]
    assert main(["evaluate", key, "--attacks", "natural", "--n", "20"]) == 0
    assert main(["draw", "pm-by-lps", key[:8], "--out", str(tmp_path)]) == 0
    assert (tmp_path / "pm-by-lps.png").exists() and str(tmp_path) in capsys.readouterr().out
    assert main(["draw", "attack-curves", key, "--out", str(tmp_path), "--set", "m=5"]) == 2
    assert "option of 'attack-curves'" in capsys.readouterr().err
    assert main(["adopt", str(checkpoint), "--architecture", "resnet18"]) == 2
    assert "It fits cnn; pass that as architecture" in capsys.readouterr().err
    assert main(["list", "models"]) == 0 and "resnet18" in capsys.readouterr().out


def test_a_safetensors_file_is_the_same_network(checkpoint, adopted, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="an extra: networks")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    path = tmp_path / "last-night.safetensors"
    safetensors.save_file({name: value.contiguous() for name, value in state.items()}, path)
    assert kit.adopt(path, overrides=FIELDS, n=200, quiet=True).key == adopted.key
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(KitError, match="is damaged, cut short"):
        kit.adopt(path)


def test_timms_networks_are_built_by_name_and_an_unknown_one_is_a_short_error():
    pytest.importorskip("timm", reason="an extra: networks")
    net = build_network("timm:resnet10t", (3, 32, 32), 7).eval()
    with torch.no_grad():
        assert net(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(KitError, match="there is no network in timm 'resnet10s'") as caught:
        build_network("timm:resnet10s", (3, 32, 32), 7)
    assert len(str(caught.value)) < 400


def test_another_process_opens_it(adopted):
    code = (
        f"import kit; from kit.experiments.runs import find_run; print(find_run('{adopted.key}'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr(adopted)


# ---------------------------------------------------------------------------------------- bad input


def test_bad_input_is_one_sentence_and_nothing_is_stored(checkpoint, own, tmp_path):
    (tmp_path / "empty.pt").touch()
    cut = tmp_path / "cut.pt"
    cut.write_bytes(checkpoint.read_bytes()[:4000])
    folders = run_folders()
    for words, ask in {
        r"of type int; expected a network \(torch.nn.Module\) or the path": lambda: kit.adopt(7),
        r"torch.save\(state, 'net.pt'\)": lambda: kit.adopt(own.state_dict(), name="state"),
        "there is no file": lambda: kit.adopt("nowhere.pt"),
        "cut short": lambda: kit.adopt(cut),
        "empty.pt is empty": lambda: kit.adopt(tmp_path / "empty.pt"),
        "is a folder": lambda: kit.adopt(tmp_path),
        "is a method of the kit": lambda: kit.adopt(checkpoint, name="mail-at"),
        "must be letters": lambda: kit.adopt(checkpoint, name="a/b"),
        "there is no model 'resnet19'": lambda: kit.adopt(checkpoint, architecture="resnet19"),
        "there is no recipe": lambda: kit.adopt(checkpoint, "digit"),
        r"(has 10 outputs and mixture|fits no architecture for) 2 classes": lambda: kit.adopt(
            checkpoint, "mixture"
        ),
        "n=0": lambda: kit.adopt(checkpoint, n=0),
        "there is no setting of": lambda: kit.adopt(checkpoint, overrides={"epsilon": 1}),
        "has 12 outputs and digits 10 classes": lambda: kit.adopt(Own(classes=12), name="twelve"),
        "a model with 7 outputs knows 0 to 6": lambda: kit.adopt(Own(classes=7), name="seven"),
        "cannot take images": lambda: kit.adopt(Own(size=100), name="large"),
        "no more than chance": lambda: kit.adopt(Own(), name="fresh"),
        "has no parameters": lambda: kit.adopt(nn.Flatten(), name="flat"),
        "with 1 numbers each": lambda: kit.adopt(
            own, name="own-n", normalise=([0.5, 0.5], [1.0, 1.0])
        ),
    }.items():
        with pytest.raises(KitError, match=words) as caught:
            ask()
        assert "\n" not in str(caught.value)
    assert run_folders() == folders


# ---------------------------------------------------------------------------------- the way round


LOADED_ALONE = """
import sys
sys.modules["kit"] = None
sys.path.insert(0, sys.argv[1])
import torch
from network import load
x = torch.linspace(0, 1, 64).view(1, 1, 8, 8)
print(load()(x).tolist())
"""


def test_an_exported_network_is_loaded_without_the_kit_and_comes_back(trained, tmp_path):
    kit.export_network(trained, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LOADED_ALONE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    x = torch.linspace(0, 1, 64).view(1, 1, 8, 8)
    expected = trained.model()(x).tolist()
    assert np.allclose(json.loads(done.stdout), expected, rtol=1e-4, atol=1e-5)
    back = kit.adopt(tmp_path / "weights.pt", name="back", overrides=FIELDS, n=50, quiet=True)
    assert np.allclose(back.model()(x).tolist(), expected, atol=1e-5)


def test_a_network_of_timm_is_exported_and_comes_back(tmp_path):
    """It is loaded by PyTorch and timm alone, and gives the run's logits."""
    pytest.importorskip("timm", reason="an extra: networks")
    net = moved(build_network("timm:resnet10t", (3, 32, 32), 10)).eval()
    x = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = net(x).argmax(dim=1)
    y[0] = (y[0] + 1) % 10  # two classes, whatever it says of noise
    torch.save({"state_dict": net.state_dict()}, tmp_path / "net.pt")
    run = kit.adopt(tmp_path / "net.pt", data=(x, y), threat=OWN_THREAT, name="of-timm",
                    architecture="timm:resnet10t", overrides={"steps": 1}, quiet=True)  # fmt: skip
    kit.export_network(run, tmp_path / "plain")
    alone = LOADED_ALONE.replace("linspace(0, 1, 64).view(1, 1, 8, 8)",
                                 "linspace(0, 1, 3072).view(1, 3, 32, 32)")  # fmt: skip
    words = [sys.executable, "-c", alone, str(tmp_path / "plain")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    with torch.no_grad():
        expected = net(torch.linspace(0, 1, 3072).view(1, 3, 32, 32)).tolist()
    assert np.allclose(json.loads(done.stdout), expected, rtol=1e-4, atol=1e-5)
    again = kit.adopt(tmp_path / "plain" / "weights.pt", data=(x, y), threat=OWN_THREAT,
                      name="of-timm", architecture="timm:resnet10t", overrides={"steps": 1},
                      quiet=True)  # fmt: skip
    assert again.key == run.key


@pytest.mark.parametrize(
    "name",
    [
        *SHIPPED,
        "wrn-16-2",
        "torchvision:resnet18",
        "torchvision:mobilenet_v3_small",
        "timm:resnet10t",
        "timm:mobilenetv3_small_050",
    ],
)
@pytest.mark.parametrize("normalised", [False, True])
def test_every_architecture_has_a_plain_definition_with_the_same_logits(name, normalised):
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="an extra: networks")
    shape = (3, 32, 32)
    numbers = (torch.rand(3), 0.5 + torch.rand(3)) if normalised else None
    net = moved(build_network(name, shape, 7, normalise=numbers))
    names = {"__file__": "network.py"}
    exec(plain_definition(net, name, shape, 7, "a test"), names)
    plain = names["build"]()
    plain.load_state_dict(net.state_dict())
    assert not [m for m in plain.modules() if type(m).__module__.startswith("kit")]
    x = torch.rand(2, *shape)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(x), net(x), rtol=1e-4, atol=1e-4)


def test_a_network_of_ones_own_code_is_not_defined_for_others(own, tmp_path):
    run = kit.adopt(own, "digits", name="own-code", overrides=FIELDS, n=50, quiet=True)
    with pytest.raises(KitError, match="a Own is defined by its own code"):
        kit.export_network(run, tmp_path)
    assert not list(tmp_path.iterdir())
