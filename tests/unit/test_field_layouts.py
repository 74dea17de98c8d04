"""Checkpoints of other projects: their names and shapes, and files that are not what they seem."""

from __future__ import annotations

import os
import pickle
import zipfile

import pytest
import torch
import torchvision
from torch import nn

from kit.core.errors import KitError
from kit.data.splits import DataSet, Split
from kit.models.architectures import MODELS, build_network
from kit.models.field_layouts import choose_fit, unwrap_state
from kit.models.saved_states import CONTAINERS, read_saved_state
from kit.training.adoption import network_of_state
from tests.helpers.field_networks import (
    FieldWideResNet,
    Standardised,
    awp_preact,
    mail_resnet,
    moved,
    torchvision_names,
)

SHAPE = (3, 32, 32)


def colour_images(classes: int = 10) -> DataSet:
    images = torch.randint(
        0, 256, (4, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    split = Split(images, torch.arange(4), torch.arange(4))
    return DataSet("colour", tuple(map(str, range(classes))), split, split.take(slice(0)), split)


def wide(**settings) -> nn.Module:
    return FieldWideResNet(**settings)


#: Layout: (makes the network, what wraps it, the architecture that it is).
LAYOUTS = {
    "MAIL, MART: ResNet-18": (mail_resnet, lambda net: net, "resnet18"),
    "MAIL, in DataParallel": (mail_resnet, nn.DataParallel, "resnet18"),
    "torchvision's names": (torchvision_names, lambda net: net, "resnet18"),
    "AWP: pre-activation ResNet-18": (awp_preact, lambda net: net, "preact-resnet18"),
    "TRADES, AWP: WRN": (lambda: wide(unused=True), lambda net: net, "wrn-10-2"),
    "MART: WRN of two blocks": (lambda: wide(count=2), nn.DataParallel, "wrn-16-2"),
    "RobustBench: WRN with mu and sigma": (wide, lambda net: Standardised(net, "mu", "sigma"), ""),
    "torchvision's own, in DataParallel": (
        lambda: torchvision.models.resnet18(num_classes=10),
        lambda net: nn.DataParallel(Standardised(net, "mean", "std")),
        "torchvision:resnet18",
    ),
    "normalised outside": (
        mail_resnet,
        lambda net: nn.DataParallel(Standardised(net, "mean", "std")),
        "resnet18",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_gives_the_logits_of_its_own_network(layout):
    """Made in that layout by the tests' own code, read without a word about the architecture."""
    make, wrap, architecture = LAYOUTS[layout]
    torch.manual_seed(0)
    theirs = wrap(moved(make())).eval()
    data = colour_images()
    ours, found = network_of_state(theirs.state_dict(), "", data)
    assert not architecture or found == architecture
    with torch.no_grad():
        x = data.test.x()
        torch.testing.assert_close(ours.eval()(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*MODELS, "wrn-10-1", "torchvision:squeezenet1_1"])
@pytest.mark.parametrize("normalised", [False, True])
def test_a_network_of_the_kit_comes_back_as_it_was(name, normalised):
    data = colour_images()
    numbers = data.mean_std() if normalised else None
    net = moved(build_network(name, SHAPE, 10, seed=3, normalise=numbers))
    back, found = network_of_state(net.state_dict(), "" if name in MODELS else name, data)
    assert found == name
    x = data.test.x()
    with torch.no_grad():
        torch.testing.assert_close(back.eval()(x), net(x), rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_names_the_nearest_and_the_first_difference():
    saved = unwrap_state(moved(mail_resnet()).state_dict())
    with pytest.raises(
        KitError, match=r"not a wrn-10-2: conv1.weight is \(64, 3, 3, 3\).*resnet18"
    ):
        choose_fit(saved, "wrn-10-2", SHAPE, 10)
    hundred = r"fc.weight is \(10, 512\) in the file and \(100, 512\) in resnet18"
    with pytest.raises(KitError, match=r"Its last layer has 10 outputs, so take the recipe"):
        choose_fit(saved, "", SHAPE, 100)
    for architecture in ("", "resnet18"):
        with pytest.raises(KitError, match=hundred):
            choose_fit(saved, architecture, SHAPE, 100)
    lacking = {n: v for n, v in saved.tensors.items() if n != "layer2.0.bn1.weight"}
    with pytest.raises(KitError, match=r"the file has no layer2.0.bn1.weight"):
        choose_fit(unwrap_state(lacking), "resnet18", SHAPE, 10)
    more = saved.tensors | {"head.weight": torch.zeros(3)}
    with pytest.raises(KitError, match=r"the file has head.weight, which resnet18 has not"):
        choose_fit(unwrap_state(more), "resnet18", SHAPE, 10)


# ----------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("container", ["", *CONTAINERS])
def test_a_state_dict_is_found_where_projects_put_it(container, tmp_path):
    state = build_network("cnn", (1, 8, 8), 10).state_dict()
    saved = {container: state, "epoch": 7, "best_acc": 0.5} if container else state
    torch.save(saved, tmp_path / "net.pt")
    read = read_saved_state(tmp_path / "net.pt")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


class Malicious:
    """What is run by whoever unpickles it."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


def test_no_code_of_a_file_is_run(tmp_path):
    path, proof = tmp_path / "evil.pt", tmp_path / "proof"
    torch.save({"state_dict": Malicious(proof)}, path)
    with pytest.raises(KitError, match=r"full pickle.*nothing of it.*state_dict\(\)"):
        read_saved_state(path)
    path.write_bytes(pickle.dumps(Malicious(proof)))
    with pytest.raises(KitError):
        read_saved_state(path)
    torch.save(build_network("cnn", (1, 8, 8), 10), path)
    with pytest.raises(KitError, match="full pickle"):
        read_saved_state(path)
    assert not proof.exists()


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    path = tmp_path / "net.pt"
    torch.save(build_network("cnn", (1, 8, 8), 10).state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(KitError, match="is empty"):
        read_saved_state(path)
    for content in (b"PK", whole[: len(whole) // 2], b"no checkpoint at all"):
        path.write_bytes(content)
        with pytest.raises(KitError, match="damaged, cut short, or not a checkpoint"):
            read_saved_state(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(KitError, match="damaged, cut short, or not a checkpoint"):
        read_saved_state(path)
    with pytest.raises(KitError, match="there is no file"):
        read_saved_state(tmp_path / "elsewhere.pt")
    torch.save({"epoch": 3, "weights": [1.0]}, path)
    with pytest.raises(KitError, match="a dict of epoch, weights"):
        read_saved_state(path)
    torch.jit.script(nn.Linear(2, 2)).save(path)
    with pytest.raises(KitError, match="TorchScript"):
        read_saved_state(path)


def test_a_file_of_other_images_or_classes_is_said_to_be_one():
    """What to do is not to name an architecture; where no tensor fits, none is called nearest."""
    saved = unwrap_state(build_network("resnet8-16", (3, 32, 32), 100).state_dict())
    with pytest.raises(KitError, match=r"Its last layer has 100 outputs, so take the recipe"):
        choose_fit(saved, "", (3, 32, 32), 10)
    with pytest.raises(KitError, match=r"Its first layer takes 3 channel\(s\) and its last layer"):
        choose_fit(saved, "", (1, 32, 32), 10)
    with pytest.raises(KitError, match=r"Name its architecture: .* row of kit.MODELS") as caught:
        choose_fit(unwrap_state({"odd.weight": torch.zeros(10, 7)}), "", (3, 32, 32), 10)
    assert "nearest" not in str(caught.value)
