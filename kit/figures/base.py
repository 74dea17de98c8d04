"""A `Drawing` is a matplotlib Figure that knows what it shows:

facts, caption, and where it came from.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kit.core.errors import KitError
from kit.core.files import write_bytes
from kit.experiments.provenance import git_commit, versions
from kit.experiments.runs import Run
from kit.figures.style import styled


@dataclass(frozen=True)
class Claim:
    """What a paper says, what these runs show, and the rule's verdict; neither `holds` nor `fails`
    is undecided.
    """

    claim: str
    printed: str
    here: str
    holds: bool
    fails: bool

    @property
    def verdict(self) -> str:
        return "holds" if self.holds else "fails" if self.fails else "undecided"

    def record(self) -> dict[str, str]:
        return {
            "claim": self.claim,
            "printed": self.printed,
            "here": self.here,
            "verdict": self.verdict,
        }


class Drawing(Figure):
    """A Figure with `facts` (the numbers that decide the claims), `claims`, `caption`, and `files`
    once it is saved.
    """

    def __init__(self, width: float = 7.0, height: float = 3.0):
        super().__init__(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(self)
        self.facts: dict = {}
        self.claims: list[Claim] = []
        self.caption = ""
        self.files: list[Path] = []

    def png(self) -> bytes:
        buffer = io.BytesIO()
        with styled():
            self.savefig(buffer, format="png", dpi=150, metadata={"Description": self.caption})
        return buffer.getvalue()

    def svg(self) -> bytes:
        buffer = io.BytesIO()
        with styled():
            self.savefig(buffer, format="svg", metadata={"Date": None, "Description": self.caption})
        return buffer.getvalue()

    def slide(self, path: Path | str) -> Path:
        """Save for a dark slide, as PNG or SVG by the path's ending: colours keep their hue, light
        and dark change places.

        Errors: `KitError` for another ending.
        """
        path = Path(path)
        if path.suffix not in (".png", ".svg"):
            raise KitError(f"{path.name} must end in .png or .svg")
        if path.suffix == ".svg":
            text = re.sub(
                r"#[0-9a-f]{6}\b",
                lambda match: _hex(swap_lightness(_rgb(match[0]))),
                self.svg().decode(),
            )
            write_bytes(path, text.encode())
            return path
        with Image.open(io.BytesIO(self.png())) as picture:
            swapped = Image.fromarray(swap_lightness(np.asarray(picture.convert("RGB"))))
        buffer = io.BytesIO()
        swapped.save(buffer, "png", pnginfo=_description(self.caption))
        write_bytes(path, buffer.getvalue())
        return path

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        width = int(self.get_figwidth() * 110)
        return (
            {"image/png": base64.b64encode(self.png()).decode(), "text/plain": self.caption},
            {"image/png": {"width": width, "alt": self.caption}},
        )

    def save(
        self,
        folder: Path,
        name: str,
        runs: Sequence[Run],
        *,
        title: str,
        source: str,
        options: dict,
        seconds: float,
    ) -> None:
        """NAME.png, NAME.svg, and NAME.json with everything needed to know and to make it again."""
        record = {
            "figure": name,
            "title": title,
            "source": source,
            "caption": self.caption,
            "options": options,
            "claims": [claim.record() for claim in self.claims],
            "facts": plain(self.facts),
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "drawn_in_seconds": round(seconds, 2),
            "versions": versions(),
            "commit": git_commit(),
            "runs": [
                {
                    "key": run.key,
                    "spec": run.record["spec"],
                    "config": run.record["config"],
                    "device": run.record["device"],
                    "versions": run.record["versions"],
                    "commit": run.record["commit"],
                    "data_fingerprint": run.record["data_fingerprint"],
                    "trained_in_seconds": run.done["seconds"],
                    "images": {part: len(run.final[f"{part}_y"]) for part in ("train", "test")},
                }
                for run in runs
            ],
        }
        payloads = {
            "png": self.png(),
            "svg": self.svg(),
            "json": (json.dumps(record, indent=1) + "\n").encode(),
        }
        self.files = []
        for ending, payload in payloads.items():
            path = folder / f"{name}.{ending}"
            write_bytes(path, payload)
            self.files.append(path)


def swap_lightness(colours: np.ndarray) -> np.ndarray:
    """RGB (..., 3) uint8 with lightness l turned into 1 - l, hue and saturation kept (HLS); black
    would be #121212.
    """
    wide = colours.astype(np.int16)
    swapped = wide + 255 - wide.max(axis=-1, keepdims=True) - wide.min(axis=-1, keepdims=True)
    return np.round(18 + swapped * (237 / 255)).astype(np.uint8)


def _rgb(code: str) -> np.ndarray:
    return np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.uint8)


def _hex(colour: np.ndarray) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in colour)


def _description(text: str) -> PngInfo:
    info = PngInfo()
    info.add_text("Description", text)
    return info


def plain(value):
    """numpy and pandas values as JSON values."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return None if not np.isfinite(value) else round(value, 6)
    return value
