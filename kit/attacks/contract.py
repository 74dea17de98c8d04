"""What every attack promises: it leaves the model and the random state as it found them.

`AttackTrace` is what an attack can be asked to tell of its way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import isroutine

import torch
from torch import Tensor, nn

from kit.core import tensors
from kit.core.errors import KitError
from kit.models.architectures import folded_once
from kit.models.input_gradients import fast_input_gradients


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Within, the model is in eval mode and without parameter gradients.

    Each module's own mode and flags come back.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for p in wanted:
        p.requires_grad_(False)
    try:
        with fast_input_gradients(model), folded_once():
            yield model
    finally:
        for module, training in modes:
            module.training = training
        for p in wanted:
            p.requires_grad_(True)


def check_inputs(model: nn.Module, x: Tensor, y: Tensor) -> tuple[str, ...]:
    """Refuse images, labels and models that would give a wrong number.

    It returns notes: what is no error and yet must be known, such as a network that answers
    differently each time, or alike to everything.

    Raises:
        KitError: There are no images or another number of labels, the model is no network, does not
            take these images or writes into them, or a check of `kit.core.tensors` fails.
    """
    tensors.check_images(x)
    if len(x) != len(y):
        raise KitError(f"{len(x)} images came with {len(y)} labels")
    if len(x) == 0:
        raise KitError("there are no images to attack")
    check_is_network(model)
    with frozen(model), torch.no_grad():
        logits, again = pass_copy(model, x[:256]), pass_copy(model, x[:16])
    tensors.check_logits(logits, len(x[:256]))
    tensors.check_labels(y, logits.shape[1])
    notes = []
    tolerance = 1e-3 * max(1.0, float(logits.abs().max()))  # rounding stays far below
    if float((again - logits[:16]).abs().max()) > tolerance:
        notes.append(
            "the network answers the same images differently each time, and one pass may miss what "
            "another finds: attack it with AutoAttack's version rand, or average its logits"
        )
    given = logits.argmax(dim=1)
    if len(y) > 1 and bool((given == given[0]).all()) and not bool((y[:256] == y[0]).all()):
        notes.append(
            f"the network gives every image class {int(given[0])}: its accuracy is the share of "
            "that class, and no attack can lower it"
        )
    return tuple(notes)


def check_is_network(model: object) -> None:
    """Refuse what is no network.

    Raises:
        KitError: It is a function, a state dict or something else.
    """
    if not isinstance(model, nn.Module):
        kind = "a function" if isroutine(model) else f"of type {type(model).__name__}"
        raise KitError(
            f"the model is {kind}; expected a network (torch.nn.Module), whose mode and parameters "
            "can be kept still. Put a function into a module's forward"
        )


def pass_copy(model: nn.Module, x: Tensor) -> Tensor:
    """Pass a copy of the images (n, C, H, W) through the model, and return what it answers.

    Raises:
        KitError: The model fails on such images, or writes into them.
    """
    given = x.clone()
    try:
        logits = model(given)
    except torch.OutOfMemoryError:
        raise
    except KitError:
        raise
    except Exception as error:  # a network's own code may raise anything
        why = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        raise KitError(
            f"the model cannot take images of shape {tuple(x.shape)}, {x.dtype} on {x.device}: "
            f"{why}. Look at channels, size, and the type and device of its weights"
        ) from error
    if not torch.equal(given, x):
        raise KitError(
            "the model changes the images that it is given, so its next pass would see others. "
            "Begin its forward pass with x = x.clone(), or replace x.sub_(...) and the like by "
            "x - ..."
        )
    return logits


@dataclass
class AttackTrace:
    """A `watch` of one attack call: it keeps three numbers per example and no iterate.

    The attack has `steps` evaluation points and attacks the labels `y` (N,).

    kappa (N,): points classified correctly, 0..steps (GAIRAT). lps (N,): first misclassified point,
    `steps` where none was (the least perturbation steps of MAIL's text). The two differ where a
    path crosses back. p_flip (N,): p_y at that point; NaN where none was. All three are None before
    the first evaluation point.
    """

    y: Tensor
    steps: int
    kappa: Tensor | None = None
    lps: Tensor | None = None
    p_flip: Tensor | None = None

    def __call__(self, t: int, x_t: Tensor, logits: Tensor) -> None:
        """Take in the evaluation point `t`: images (N, C, H, W) and their logits (N, K)."""
        p_true = logits.softmax(dim=1).gather(1, self.y[:, None]).squeeze(1)
        if self.kappa is None or self.lps is None or self.p_flip is None:
            self.kappa, self.lps = torch.zeros_like(self.y), torch.full_like(self.y, self.steps)
            self.p_flip = torch.full_like(p_true, torch.nan)
        # NaN anywhere makes every probability NaN, which equals nothing
        right = (logits.argmax(dim=1) == self.y) & (p_true == p_true)
        self.kappa += right
        crossing = ~right & (self.lps == self.steps)
        self.p_flip = p_true.where(crossing, self.p_flip)
        self.lps = self.lps.masked_fill(crossing, t)

    def take(self, rows: slice) -> AttackTrace:
        """Return the trace of some of the examples."""
        values = self.kappa, self.lps, self.p_flip
        return AttackTrace(
            self.y[rows], self.steps, *(None if value is None else value[rows] for value in values)
        )

    def flip_probability(self, logits_adv: Tensor) -> Tensor:
        """Return p_y at the first misclassified point, (N,); at x_adv itself where none was."""
        assert self.lps is not None and self.p_flip is not None  # an attack has called this watch
        p_last = logits_adv.detach().softmax(dim=1).gather(1, self.y[:, None]).squeeze(1)
        return self.p_flip.where(self.lps < self.steps, p_last)
