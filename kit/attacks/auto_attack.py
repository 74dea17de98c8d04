"""AutoAttack, the parameter-free ensemble of APGD, FAB and Square.

It can be interrupted at any time.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kit.attacks.auto_pgd import apgd
from kit.attacks.contract import check_inputs
from kit.attacks.fast_adaptive_boundary import fab
from kit.attacks.margin_decomposition import md, mdmt
from kit.attacks.square_attack import square
from kit.attacks.tracker import AttackResult
from kit.core.errors import KitError
from kit.core.files import load_checkpoint, lock_folder, read_json, save_checkpoint, write_json
from kit.core.parameters import Count, Natural, check_value
from kit.core.parts import Part, part
from kit.core.random_streams import Streams
from kit.core.threat import Threat

#: The attacks of each version in their order; each is given what the ones before it left. "rand" is
#: for randomised networks.
VERSIONS: dict[str, dict[str, Part]] = {
    "standard": {
        "apgd-ce": part(apgd),
        "apgd-t": part(apgd, loss="targeted"),
        "fab-t": part(fab, goal="inside"),
        "square": part(square),
    },
    "plus": {
        "apgd-ce": part(apgd, restarts=5),
        "apgd-dlr": part(apgd, loss="dlr", restarts=5),
        "fab": part(fab, goal="inside", targeted=False, restarts=5),
        "square": part(square),
        "apgd-t": part(apgd, loss="targeted"),
        "fab-t": part(fab, goal="inside"),
    },
    "rand": {"apgd-ce": part(apgd, passes=20), "apgd-dlr": part(apgd, loss="dlr", passes=20)},
    "mde": {
        "apgd-ce": part(apgd),
        "md": part(md),
        "mdmt": part(mdmt),
        "fab-t": part(fab, goal="inside"),
    },
}


#: What an `AttackResult` holds for each example as a tensor.
RESULT_FIELDS = tuple(
    field.name for field in dataclasses.fields(AttackResult) if field.name not in ("by", "notes")
)


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    generator: Streams | None = None,
    validate: bool = True,
    version: Literal["standard", "plus", "rand", "mde"] = "standard",
    batch_size: Count = 250,
    state: Path | str | None = None,
    seed: Natural = 0,
) -> AttackResult:
    """AutoAttack, L-inf or L2: one attack after the other on the examples that still hold.

    The versions (see `VERSIONS`) are:

        standard: APGD on cross-entropy, APGD-T, FAB-T and Square (5,000 queries), 100 steps each.
        plus: five restarts of APGD on cross-entropy and on DLR, five of untargeted FAB, Square,
            APGD-T, FAB-T.
        rand: APGD on both losses, each gradient the mean of 20 passes.
        mde: the ensemble of Ma et al. (2023), with margin decomposition in the place of APGD-T and
            Square.

    x (N, C, H, W) in [0, 1], y (N,) int64. An attack is given at most `batch_size` images at a
    time, and may pass several of each at once. Few classes: see `apgd`. `by` names the attack that
    broke an example; passes are summed over the attacks, each of which evaluates its clean images
    once. No attack knows of its mates or its batch, so neither changes a result, but for the last
    bit of what a network computes on batches of different sizes.

    `state` is a folder where each finished batch of each attack is written. The same call goes on
    there, in another process too, and ends with the result of an uninterrupted one; damaged files
    are computed again. A network is known by its layers' names and sizes, and by the values of its
    parameters and buffers. `seed` names the random streams, one for each example by its place in
    `x`, unless `generator` holds streams with ids of its own.

    Raises:
        KitError: Settings are out of range; the state belongs to another network, images, labels,
            threat, version or streams; or `check_inputs` refuses the inputs.

    Source: Croce and Hein (2020); mde: Ma et al. (2023).
    """
    check_value("version", version, Literal["standard", "plus", "rand", "mde"])
    check_value("batch_size", batch_size, Count)
    check_value("seed", seed, Natural)
    notes = check_inputs(model, x, y) if validate else ()
    streams = (
        Streams(torch.arange(len(x), device=x.device), "autoattack", seed)
        if generator is None
        else generator
    )
    if not isinstance(streams, Streams) or len(streams.ids) != len(x):
        raise KitError(
            f"generator is not a kit.core.random_streams.Streams over these {len(x)} images; "
            "leave it out, or make one with Streams(ids, seed, ...), ids int64 (N,)"
        )
    attacks, total = VERSIONS[version], empty_result(x)
    with open_journal(
        state,
        {
            "network": digest_of(model),
            "images": call_digest(x),
            "labels": call_digest(y),
            "threat": str(threat),
            "radius": threat.eps,
            "attacks": {name: attack.config() for name, attack in attacks.items()},
            "streams": [call_digest(streams.ids), *map(str, streams.parts)],
        },
    ) as pieces:
        for place, (name, attack) in enumerate(attacks.items()):
            left = ~total["broken"]
            batches = left.nonzero().squeeze(1).split(batch_size)
            for piece in pieces.finished(name, x.device):
                add_result(total, piece, place)
                left[piece["rows"]] = False
            for rows in (batch[left[batch]] for batch in batches):
                if len(rows):
                    own = Streams(streams.ids.to(x.device)[rows], *streams.parts, name)
                    result = attack(model, x[rows], y[rows], threat, generator=own, validate=False)
                    piece = {
                        "rows": rows,
                        "notes": list(result.notes),
                        **{key: getattr(result, key) for key in RESULT_FIELDS},
                    }
                    pieces.keep(name, piece)
                    add_result(total, piece, place)
    steps, places = total["step"].tolist(), total["place"].tolist()
    by = tuple(
        "clean" if step == 0 else ("", *attacks)[place + 1]
        for step, place in zip(steps, places, strict=True)
    )
    return AttackResult(
        by=by, notes=(*notes, *total["notes"]), **{key: total[key] for key in RESULT_FIELDS}
    )


def empty_result(x: Tensor) -> dict[str, Any]:
    """The fields of an `AttackResult` before any attack.

    `place` (N,) is the number of the attack that broke an example, or -1.
    """
    zeros = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return {
        "x_adv": x.clone(),
        "broken": zeros.bool(),
        "step": zeros - 1,
        "margin": x.new_full((len(x),), torch.inf),
        "size": x.new_zeros(len(x)),
        "forwards": zeros,
        "backwards": zeros.clone(),
        "prediction": zeros - 1,
        "place": zeros - 1,
        "notes": [],
    }


def add_result(total: dict[str, Any], piece: dict[str, Any], place: int) -> None:
    """Enter what attack number `place` did to the examples piece["rows"]."""
    rows, broken = piece["rows"], piece["broken"]
    fallen, better = rows[broken], broken | (piece["margin"] < total["margin"][rows])
    for key in ("x_adv", "margin", "size", "prediction"):
        total[key][rows[better]] = piece[key][better]
    total["broken"][fallen], total["place"][fallen] = True, place
    total["step"][fallen] = (total["forwards"][rows] + piece["step"])[broken]
    for key in ("forwards", "backwards"):
        total[key][rows] += piece[key]
    total["notes"] += [note for note in piece["notes"] if note not in total["notes"]]


# -------------------------------------------------------------------------------------- the journal


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The finished batches below `folder`, one file each; None: no journal.

    Each is marked with the `key` of what it belongs to.
    """

    folder: Path | None
    key: str

    def finished(self, attack: str, device: torch.device) -> Iterator[dict[str, Any]]:
        """Yield the batches of `attack` that are whole and belong here.

        What does not is computed anew and overwritten.
        """
        for path in sorted((self.folder / attack).glob("*.pt")) if self.folder else ():
            try:
                piece = load_checkpoint(path, device)
            except KitError:
                continue
            if isinstance(piece, dict) and piece.get("key") == self.key:
                yield piece

    def keep(self, attack: str, piece: dict[str, Any]) -> None:
        """Write the finished batch `piece` of `attack`, if there is a journal."""
        if self.folder:
            save_checkpoint(
                self.folder / attack / f"{int(piece['rows'][0]):08d}.pt", {"key": self.key, **piece}
            )


@contextmanager
def open_journal(state: Path | str | None, belongs_to: dict[str, Any]) -> Iterator[Pieces]:
    """Lock the folder `state` and yield the pieces below it.

    Raises:
        KitError: The pieces belong to something else.
    """
    key = hashlib.sha256(repr(belongs_to).encode()).hexdigest()
    if state is None:
        yield Pieces(None, key)
        return
    folder = Path(state)
    with lock_folder(folder):
        if not (folder / "state.json").exists():
            write_json(folder / "state.json", belongs_to)
        there = read_json(folder / "state.json")
        other = [
            name
            for name, value in belongs_to.items()
            if not isinstance(there, dict) or there.get(name) != value
        ]
        if other:
            raise KitError(
                f"the state {folder} belongs to another evaluation: its {', '.join(other)} differ"
                f"{'s' if len(other) == 1 else ''}. Choose another folder, or delete this one to "
                "start afresh"
            )
        yield Pieces(folder, key)


def call_digest(values: Tensor) -> str:
    """16 hex digits over a tensor's type, shape and bytes."""
    plain = values.detach().cpu().contiguous()
    words = f"{plain.dtype} {tuple(plain.shape)}".encode()
    values_bytes = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(words + values_bytes).hexdigest()[:16]


def digest_of(model: nn.Module) -> str:
    """16 hex digits over a network's layers as they print, and its parameters and buffers."""
    values = [
        (name, call_digest(value))
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor)
    ]
    return hashlib.sha256(repr((str(model), values)).encode()).hexdigest()[:16]
