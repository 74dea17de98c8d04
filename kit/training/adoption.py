"""`adopt`: a network that was trained elsewhere becomes a run.

Every figure of one network, evaluation, audit, what-if and the widgets take it. It is observed on a
recipe's images as a trained run is at its end, and stored like one, under a key of its weights.
Nothing is stored of a network that does not fit.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from inspect import isroutine
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kit.attacks.clean_images import predict
from kit.attacks.contract import check_inputs, frozen
from kit.core.errors import KitError
from kit.core.files import (
    home,
    load_arrays,
    lock_folder,
    save_arrays,
    save_checkpoint,
    write_sealed_json,
)
from kit.core.parameters import Count, check_value
from kit.core.progress import Progress, format_duration
from kit.core.tensors import image_gradient
from kit.core.threat import Threat
from kit.data.own_images import data_set_of, keep_own_images, split_of
from kit.data.splits import DataSet, Split
from kit.experiments.devices import pick_device, threads_for
from kit.experiments.recipes import find_recipe
from kit.experiments.runs import (
    Run,
    is_done,
    observed_images,
    open_dataset,
    run_folder,
    run_of,
)
from kit.experiments.specification import Plan, RunSpec, resolve
from kit.methods.table import METHODS
from kit.models.architectures import MODELS, Normalise, put_normalisation_first
from kit.models.field_layouts import choose_fit, guessed_classes, load_fit, unwrap_state
from kit.models.saved_states import read_saved_state
from kit.training.checkpoint import TrainingState, write_run_record
from kit.training.loop import final_pass, observe_probes
from kit.training.observation import accuracies

#: Test images on which a network's accuracy is looked at before anything is stored.
FIRST_LOOK = 200

#: Test images on which a network that is adopted again must answer as it did.
RECOGNISED_BY_IMAGES = 16

#: Whether a network normalises its images: as its file says (None), not, or by these numbers.
Normalisation = bool | tuple[Any, Any] | None


def adopt(
    model_or_path: nn.Module | Path | str,
    recipe: str = "",
    *,
    data: Any = None,
    threat: Threat | None = None,
    name: str = "",
    architecture: str = "",
    normalise: Normalisation = None,
    n: int = 2000,
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> Run:
    """Make a run of a network that was trained elsewhere; asking again opens it.

    model_or_path: a network, or a checkpoint: a state dict of `torch.save`, bare or inside a dict,
    or safetensors. architecture: a name of `kit.MODELS`, wrn-D-W, torchvision:NAME or timm:NAME;
    by default a file's is the one that it fits, and a network is taken as it is. Such a network is
    known in this process alone; a row of `kit.MODELS` that builds it makes it known in others.

    recipe: its images, threat and attack steps (by default digits, and with `data` what CIFAR-10
    has); `overrides` changes its fields, say {"steps": 20}. data: images and labels in place of the
    recipe's: (x, y), with x (N, C, H, W) uint8 or floats in [0, 1], a torch Dataset or DataLoader
    (its first `n`), or an .npz with arrays x and y. They are kept once in `data/own/`, and stand
    for training and test images alike. threat: in place of the recipe's; data without a recipe
    needs it. n: images of each split that are observed.

    normalise: whether the network gets (x - mean) / std of these images, or (mean, std) themselves;
    by default as the file's buffers say.

    What it was like in training is not known: `run.history` and the figures of it refuse.

    Raises:
        KitError: The file is no safe checkpoint, fits no architecture, classes or image size, the
            data are no such images, the network cannot be attacked, or it is right on no more
            images than chance allows. Then nothing is stored.
    """
    check_value("n", n, Count)
    _check_is_adoptable(model_or_path)
    where = pick_device(device)
    name = _check_name(name or _usual_name(model_or_path))
    changes = dict(overrides or {}) | _threat_settings(threat, overrides or {})
    given: nn.Module | Mapping[str, Tensor] = (
        model_or_path if isinstance(model_or_path, nn.Module) else read_saved_state(model_or_path)
    )
    if data is None:
        recipe = recipe or "digits"
        images = open_dataset(resolve(RunSpec(name, recipe, 0, changes, {"images": n})))
    else:
        images = _own_images(data, n, given)
        recipe, n = _put_in_recipe(images, recipe, changes), len(images.test)
    with _forgotten_if_refused(name):
        if not isinstance(given, nn.Module):
            net, architecture = network_of_state(given, architecture, images)
        elif architecture:
            net, architecture = network_of_state(given.state_dict(), architecture, images)
        else:
            net, architecture = own_network(given, name), name
        # what a network that is taken as it is does inside is its own affair
        before = _normalises(net) and not isinstance(MODELS.get(architecture), KeptNetwork)
        net = put_normalisation(net, normalise, images)
        changes |= {"model": architecture}
        changes |= _normalisation_settings(recipe, changes, inside=before or bool(normalise))
        adopted = {"weights": weights_digest(net), "images": n}
        plan = resolve(RunSpec(name, recipe, 0, changes, adopted))
        folder = run_folder(plan)
        net = net.to(where)
        if is_done(folder):
            check_answers(run_of(plan), net, images, where)
        else:
            look_at_network(net, images, where, name, quiet)
        if data is not None:
            keep_own_images(images, home() / "data")
        if not is_done(folder):
            with lock_folder(folder), threads_for(architecture, where):
                if not is_done(folder):
                    with Progress(f"observing {name}", 0, quiet=quiet):
                        observe_network(plan, net, images, where)
    run = run_of(plan)
    if not quiet:
        print(f"{run} ({format_duration(run.done['seconds'])})", flush=True)
    return run


def _threat_settings(threat: Threat | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a threat as overrides of a recipe."""
    if threat is None:
        return {}
    if not isinstance(threat, Threat):
        raise KitError(f"threat={threat!r} must be a threat, such as kit.Threat('linf', 8 / 255)")
    if both := {"norm", "eps"} & set(overrides):
        raise KitError(f"threat and overrides both set {' and '.join(sorted(both))}; leave one out")
    if threat.doubt:
        raise KitError(threat.doubt)
    return {"norm": threat.norm, "eps": threat.eps}


def _own_images(data: Any, n: int, network: nn.Module | Mapping[str, Tensor]) -> DataSet:
    """Return what the user gave as a data set of as many classes as the network has outputs."""
    given = split_of(data, 0 if isinstance(data, (tuple, list)) else n)
    return data_set_of(given, _count_outputs(network, given), n)


def _put_in_recipe(images: DataSet, recipe: str, changes: dict[str, Any]) -> str:
    """Set a user's images in the changes of the recipe; return the recipe, theirs by default.

    Raises:
        KitError: There is neither a recipe nor a threat.
    """
    if recipe:
        changes["data"] = images.name
    elif "eps" not in changes:
        raise KitError(
            "data has no threat; pass threat=kit.Threat('linf', 8 / 255) (--set eps=0.031), or the "
            "recipe whose threat is meant"
        )
    return recipe or images.name


def _normalisation_settings(
    recipe: str, changes: Mapping[str, Any], *, inside: bool
) -> dict[str, Any]:
    """Return what a recipe must change so that its network normalises as the adopted one does.

    `inside`: whether that one begins with a normalisation; its numbers are among its weights.
    """
    chosen = find_recipe(recipe).override(**changes)
    found: dict[str, Any] = {} if chosen.normalise == inside else {"normalise": inside}
    return found | ({"mean_std": ()} if chosen.mean_std else {})


def _count_outputs(network: nn.Module | Mapping[str, Tensor], images: Split) -> int:
    """Return the number of a network's classes: its outputs, or those of its file's last layer."""
    if not isinstance(network, nn.Module):
        return guessed_classes(unwrap_state(network))
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    one = images.take(slice(0, 1)).to(device)
    x = one.x().float()
    check_inputs(network, x, one.y)
    with frozen(network):
        return network(x).shape[1]


def _check_is_adoptable(model_or_path: object) -> None:
    """Refuse what is neither a network nor a path.

    Raises:
        KitError: It is a state dict, a function or something else.
    """
    if isinstance(model_or_path, (nn.Module, str, Path)):
        return
    kind = "a function" if isroutine(model_or_path) else f"of type {type(model_or_path).__name__}"
    way = "Put a function into a module's forward"
    if isinstance(model_or_path, Mapping):
        way = "Save a state dict with torch.save(state, 'net.pt'), and pass 'net.pt'"
    raise KitError(
        f"the model is {kind}; expected a network (torch.nn.Module) or the path of a checkpoint, "
        f"such as net.pt. {way}"
    )


def _usual_name(model_or_path: nn.Module | Path | str) -> str:
    if isinstance(model_or_path, nn.Module):
        return type(model_or_path).__name__.lower()
    stem = Path(model_or_path).stem.removesuffix(".pth")  # the field writes .pth.tar, too
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "network"


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[\w][\w.-]{0,99}", name):
        raise KitError(
            f"name={name!r} must be letters, digits, dots, dashes and underscores, such as my-net"
        )
    if name in METHODS:
        raise KitError(
            f"name='{name}' is a method of the kit, and its runs are trained here; choose another"
        )
    return name


# ------------------------------------------------------------------------------------- the network


def network_of_state(
    state: Mapping[str, Tensor], architecture: str, data: DataSet
) -> tuple[nn.Module, str]:
    """Build the network with these weights; return it and its architecture.

    Raises:
        KitError: They fit no architecture for the images and classes of `data`.
    """
    saved, classes = unwrap_state(state), len(data.classes)
    net = load_fit(choose_fit(saved, architecture, data.shape, classes), data.shape, classes)
    if saved.mean is not None and saved.std is not None:
        net = put_normalisation_first(net, saved.mean, saved.std)
    return net, architecture or choose_fit(saved, "", data.shape, classes).architecture


def own_network(model: nn.Module, name: str) -> nn.Module:
    """Copy a network and make it known in this process as an architecture of that name.

    Raises:
        KitError: It has no parameters, cannot be copied, or another architecture has the name.
    """
    if not any(True for _ in model.parameters()):
        raise KitError(
            f"{name} has no parameters, and a run is identified by them; use "
            "kit.evaluate(model, ..., data=(x, y), threat=...) and kit.audit"
        )
    try:
        kept = copy_network(model).cpu()
    except Exception as error:  # whatever a module's own __deepcopy__ or a foreign handle raises
        raise KitError(
            f"{name} cannot be copied ({error}); save its state_dict() instead"
        ) from error
    if name in MODELS and not isinstance(MODELS[name], KeptNetwork):
        raise KitError(f"name='{name}' is a row of kit.MODELS; pass it as architecture, too")
    MODELS[name] = KeptNetwork(kept)
    return copy_network(kept)


@contextlib.contextmanager
def _forgotten_if_refused(name: str) -> Iterator[None]:
    """Within, a network may become a row of `MODELS`; an error gives the name its row back."""
    before = MODELS.get(name)
    try:
        yield
    except BaseException:
        if before is not None:
            MODELS[name] = before
        else:
            MODELS.pop(name, None)
        raise


def copy_network(model: nn.Module) -> nn.Module:
    """Copy a network; each parameter of the copy wants a gradient if that of the network does.

    A scripted module copies its parameters by `clone`. With gradients recorded, the copies were
    results of a computation, and nothing could be set on them.
    """
    with torch.no_grad():
        found = copy.deepcopy(model)
    for mine, theirs in zip(found.parameters(), model.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
    return found


class KeptNetwork:
    """A row of `MODELS` for a network that was given as it is: it builds copies of it."""

    title = "a network that was adopted in this process"

    def __init__(self, network: nn.Module):
        self.network = network

    def __call__(self, channels: int, size: int, num_classes: int) -> nn.Module:
        """Return a copy, whatever the sizes are: it was adopted for them."""
        return copy_network(self.network)


def put_normalisation(net: nn.Module, normalise: Normalisation, data: DataSet) -> nn.Module:
    """Put what the caller asks for before the network.

    Raises:
        KitError: It normalises already, or the numbers are not one a channel.
    """
    if normalise is None or normalise is False:
        return net
    if _normalises(net):
        raise KitError(
            "the checkpoint holds its own mean and std, so it normalises by itself; leave "
            "normalise out"
        )
    mean, std = data.mean_std() if normalise is True else map(torch.tensor, normalise)
    if mean.shape != (data.shape[0],) or std.shape != mean.shape or not bool((std > 0).all()):
        raise KitError(
            f"normalise={normalise} must be True or (mean, std) with {data.shape[0]} numbers each, "
            "in units of pixels in [0, 1]"
        )
    return put_normalisation_first(net, mean.float(), std.float())


def _normalises(net: nn.Module) -> bool:
    return isinstance(next(net.children(), None), Normalise)


def weights_digest(net: nn.Module) -> str:
    """Return 16 hex digits of the SHA-256 of a network's names, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(
                value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
            )
    return digest.hexdigest()[:16]


# ----------------------------------------------------------------------------- looking and storing


def look_at_network(
    net: nn.Module, data: DataSet, where: torch.device, name: str, quiet: bool
) -> None:
    """Print the accuracy on a few test images, and warn of what is odd about the network.

    Raises:
        KitError: The network does not take the images, gives no gradient at them, does not know the
            classes, or is right no more often than chance allows.
    """
    few = data.test.take(slice(0, FIRST_LOOK)).to(where)
    x, y, chance = few.x(), few.y, 1 / len(data.classes)
    notes = check_attackable(net, x, y)
    with frozen(net):
        right, count = int((predict(net, x) == y).sum()), len(y)
        outputs = net(x[:1]).shape[1]
    if outputs != len(data.classes):
        raise KitError(
            f"{name} has {outputs} outputs and {data.name} {len(data.classes)} classes; take the "
            "recipe of its data"
        )
    inside = "normalises its images itself" if _normalises(net) else "takes pixels in [0, 1]"
    found = f"{name} {inside}: clean accuracy {right / count:.1%} on {count} test images"
    other = "" if _normalises(net) else _other_way(net, data, x, y)
    if right / count <= chance + 2 * (chance * (1 - chance) / count) ** 0.5:  # standard errors
        raise KitError(
            f"{found}, which is no more than chance ({chance:.1%}). Its training data may "
            f"have been other than {data.name}, its classes may be others or in another order, or "
            f"it may expect its images in another form.{other}"
        )
    if not quiet:
        print(found, flush=True)
        if right / count < min(2 * chance, (1 + chance) / 2):  # twice chance is all of two classes
            print(f"WARNING: that is little more than chance ({chance:.1%}).{other}", flush=True)
        for note in notes:
            print(f"WARNING: {note}", flush=True)


def check_attackable(net: nn.Module, x: Tensor, y: Tensor) -> tuple[str, ...]:
    """Take `check_inputs`, and refuse a network that no gradient leads through.

    Raises:
        KitError: The network cannot be attacked, or does not take the images.
    """
    notes = check_inputs(net, x, y)
    one = x[:1].clone().requires_grad_()
    with frozen(net), torch.enable_grad():
        image_gradient(net(one).sum(), one)
    return notes


def check_answers(run: Run, net: nn.Module, data: DataSet, where: torch.device) -> None:
    """Refuse a network with the name and the weights of a stored run that answers otherwise.

    A forward pass that is changed leaves the weights, and so the run's key, as they were.

    Raises:
        KitError: Its logits are not those that are stored, or it cannot be attacked.
    """
    stored = torch.from_numpy(run.final["test_logits_nat"][:RECOGNISED_BY_IMAGES]).float()
    few = data.test.take(slice(0, len(stored))).to(where)
    x = few.x()
    check_attackable(net, x, few.y)
    with frozen(net), torch.no_grad():
        logits, again = net(x).cpu(), net(x).cpu()
    # logits of many images are stored in half precision, and a random network has its own spread
    near = 1e-2 * max(1.0, float(stored.abs().max())) + 5 * float((logits - again).abs().max())
    apart = float((logits - stored).abs().max())
    if apart > near:
        raise KitError(
            f"{run.method} has the weights of the stored run {run.key}, and answers otherwise: its "
            f"logits differ by up to {apart:.2g}, so its forward pass has changed. Choose another "
            f"name for it or its row of kit.MODELS, or delete {run.folder} to adopt it again"
        )


def _other_way(net: nn.Module, data: DataSet, x: Tensor, y: Tensor) -> str:
    mean, std = (values.to(x.device).view(1, -1, 1, 1) for values in data.mean_std())
    with frozen(net):
        share = float((predict(net, (x - mean) / std) == y).float().mean())
    return f" With normalise=True (--normalise) it is right on {share:.1%}"


def observe_network(plan: Plan, net: nn.Module, data: DataSet, where: torch.device) -> None:
    """Store the network and what it shows of the images, as training does at its end.

    The caller holds the folder's lock.
    """
    folder, started = run_folder(plan), time.monotonic()
    observed = observed_images(plan, data).to(where)
    write_run_record(plan, folder, data, where)
    state = TrainingState(plan, folder, net, torch.optim.SGD(net.parameters(), lr=plan.recipe.lr))
    (probes,) = observe_probes([state], observed)
    probe = {f"{part}_{key}": v for part, arrays in probes.items() for key, v in arrays.items()}
    final_pass([state], observed)
    final = load_arrays(folder / "final.npz")
    shown = {name.removeprefix("test_"): v for name, v in final.items() if name[:5] == "test_"}
    clean, robust = accuracies(shown)
    network = {"model": net.state_dict(), "epoch": 1}
    record = {
        "key": plan.key,
        "epochs": 1,
        "clean": clean,
        "robust": robust,
        "seconds": round(time.monotonic() - started, 2),
        "constant": len(np.unique(shown["logits_nat"].argmax(1))) == 1,
        "files": state.files
        | {
            "epochs/0001.npz": save_arrays(folder / "epochs" / "0001.npz", probe),
            "last.ckpt": save_checkpoint(folder / "last.ckpt", network),
            "best.ckpt": save_checkpoint(folder / "best.ckpt", network),
        },
    }
    write_sealed_json(folder / "done.json", record)
