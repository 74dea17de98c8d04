"""What a figure is made of: what it computed, what it decides, and the drawing with both."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
from kit.papers.claim_verdict import Estimate, decide, reading


@dataclass(frozen=True)
class FigureData:
    """What a figure computed: the facts, and what its picture and its words need beside them.

    `facts` are the numbers that decide the claims, with n, seeds and intervals; they are saved with
    the picture. `setting` (data, network, threat, seed) and `method` describe the run, or the first
    of several. `extras` are arrays, names and counts that are shown and not saved.
    """

    facts: dict[str, Any]
    setting: str = ""
    method: str = ""
    extras: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """What a paper says, what these runs show, and the numbers that decide it.

    `number` is the claim's row in kit/papers/claims.csv, None for a statement that is not there.
    `estimates` are what must keep its bound for the claim to hold; without any, nothing is decided.
    `exact` is the answer of a statement that arithmetic decides, alike for every run and seed.
    `seeds` is how many seeds the estimates are over. `dead` names the runs among these that have
    learned nothing: nothing is judged by them. `left_out` names those that learned nothing and
    that the estimates do not rest on.
    """

    claim: str
    printed: str
    here: str
    estimates: tuple[Estimate, ...] = ()
    exact: bool | None = None
    number: int | None = None
    seeds: int = 1
    dead: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def reading(self) -> str:
        """What these runs show by themselves: holds, fails or undecided.

        It is no verdict on the claim: that takes several seeds, see `kit.papers.claim_verdict`.
        """
        if self.exact is not None:
            return "holds" if self.exact else "fails"
        if self.dead:
            return "undecided"
        return reading(self.estimates)

    @property
    def verdict(self) -> str:
        """What these runs decide: their reading, if they are of enough seeds or none is needed."""
        if self.exact is not None:
            return self.reading
        return "undecided" if self.dead else decide([self.estimates], self.seeds)

    def record(self) -> dict[str, Any]:
        """The claim with its reading and its estimates, as JSON values."""
        return {
            "number": self.number,
            "claim": self.claim,
            "printed": self.printed,
            "here": self.here,
            "reading": self.reading,
            "exact": self.exact,
            "seeds": self.seeds,
            "dead": list(self.dead),
            "estimates": plain([estimate.record() for estimate in self.estimates]),
        }


#: How a figure looks on a page. In a dark theme light and dark change places, hues stay, and white
#: becomes #121212, as in `swap_lightness`.
FIGURE_STYLE = """
.kit-figure { margin: 0 0 1em; max-width: 56em; break-inside: avoid; }
.kit-figure img { max-width: 100%; height: auto; }
.kit-figure figcaption { font-size: 0.95em; line-height: 1.45; margin-top: 0.3em; }
.kit-figure figcaption p { margin: 0.3em 0; }
@media not print {
  [data-jp-theme-light="false"] .kit-figure img { filter: invert(0.93) hue-rotate(180deg); }
}
"""


class Drawing(Figure):
    """A matplotlib Figure that carries its `facts`, `claims` and `caption`.

    `width` and `height` are inches. `title` names it in a few words, and `notice` says what to look
    at. `files` are the paths that `save` wrote.
    """

    canvas: FigureCanvasAgg

    def __init__(self, width: float = 7.0, height: float = 3.0):
        super().__init__(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(self)
        self.facts: dict = {}
        self.claims: list[Claim] = []
        self.title = ""
        self.caption = ""
        self.notice = ""
        self.files: list[Path] = []

    def png(self) -> bytes:
        """The picture at 150 dots per inch, the caption in its metadata."""
        buffer = io.BytesIO()
        with styled():
            self.savefig(buffer, format="png", dpi=150, metadata={"Description": self.caption})
        return buffer.getvalue()

    def svg(self) -> bytes:
        """The picture with its text as text, the caption in its metadata."""
        buffer = io.BytesIO()
        with styled():
            self.savefig(buffer, format="svg", metadata={"Date": None, "Description": self.caption})
        return buffer.getvalue()

    def slide(self, path: Path | str) -> Path:
        """Save for a dark slide: colours keep their hue, light and dark change places.

        PNG or SVG by the path's ending.

        Raises:
            KitError: for another ending.
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

    def _repr_html_(self) -> str:
        return self._as_html(self.png())

    def _as_html(self, png: bytes) -> str:
        """An HTML figure: the picture, its alternative text, and the caption that one sees."""
        words = [self.caption, f"What to notice: {self.notice}" if self.notice else ""]
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in words if line)
        alt = html.escape(self.title or self.caption, quote=True)
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        return (
            f"<style>{FIGURE_STYLE}</style><figure class='kit-figure'>"
            f"<img alt='{alt}' width='{self._screen_width}' src='{source}'/>"
            f"<figcaption>{lines}</figcaption></figure>"
        )

    @property
    def _screen_width(self) -> int:
        return int(self.get_figwidth() * 110)

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        """The HTML figure, and a picture of 256 colours for front ends that show no HTML.

        Two whole pictures would double a notebook's size; the second one is a third of the first.
        """
        png = self.png()
        return (
            {
                "text/html": self._as_html(png),
                "image/png": base64.b64encode(_reduce_colours(png)).decode(),
                "text/plain": self.caption,
            },
            {"image/png": {"width": self._screen_width, "alt": self.title or self.caption}},
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
        """Write NAME.png, NAME.svg, and NAME.json with all that is needed to make it again."""
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
    """RGB (..., 3) uint8 with lightness l turned into 1 - l, hue and saturation kept (HLS).

    White becomes #121212 instead of black, which is softer on a slide.
    """
    wide = colours.astype(np.int16)
    swapped = wide + 255 - wide.max(axis=-1, keepdims=True) - wide.min(axis=-1, keepdims=True)
    return np.round(18 + swapped * (237 / 255)).astype(np.uint8)


def _reduce_colours(png: bytes) -> bytes:
    """The picture with 256 colours at most, its metadata left out."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "png")
    return buffer.getvalue()


def _rgb(code: str) -> np.ndarray:
    return np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.uint8)


def _hex(colour: np.ndarray) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in colour)


def _description(text: str) -> PngInfo:
    info = PngInfo()
    info.add_text("Description", text)
    return info


def format_points(interval: tuple[float, float, float], unit: str = "") -> str:
    """A difference of shares and its 95 % interval in points, such as "+1.5 [-0.2, +3.1]"."""
    middle, low, high = (100 * value for value in interval)
    return f"{middle:+z.1f}{unit} [{low:+z.1f}, {high:+z.1f}]"  # z: no "-0.0"


def format_counted(share: dict[str, float]) -> str:
    """A counted share with its interval, such as "3 of 20 (15.0% [5.2%, 36.0%])"."""
    interval = f"[{share['low']:.1%}, {share['high']:.1%}]"
    return f"{share['k']} of {share['n']} ({share['share']:.1%} {interval})"


def plain(value: Any) -> Any:
    """Values of NumPy and pandas as JSON values, floats rounded to 6 digits."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return None if not np.isfinite(value) else round(value, 6)
    return value
