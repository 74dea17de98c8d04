"""Decoded images, kept on the disk: a file of an image folder is decoded once on this machine.

One file a folder, `data/decoded/<name>-<digits of its path>/images`:

    header      JSON in 512 bytes: the folder's fingerprint, the images' number and shape
    checks      (N,) uint64: 2**32 + CRC-32 of an image's pixels; 0 while it is not decoded
    pixels      (N, C, H, W) uint8; an image lies at its place in the folder's list of files

An image counts as kept if its pixels have the checksum that is kept of them, so a process may be
killed while it writes, or two may write at once: what is not whole is decoded again. The file is
read at the places of the images that are asked for and not mapped into memory, because a mapped
file that another process cuts short ends this one without a word.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kit.core.errors import KitError
from kit.core.files import lock_folder

KIND = "irat-kit decoded images 1"

HEADER_BYTES = 512
BLOCK_BYTES = 2**20  # read at a time
THERE = 1 << 32  # tells the checksum 0 from no checksum


@dataclass
class DecodedImages:
    """The file of one folder's decoded images.

    `folder`: where the file lies. `fingerprint`: changes whenever a file of the image folder does.
    `count`: all images of the image folder. Reading and writing never raise: where the disk is full
    or cannot be written to, that is said once, and images are decoded again at the next start.
    """

    folder: Path
    fingerprint: str
    count: int
    given_up: bool = field(default=False, init=False)  # once nothing can be kept
    said: set[str] = field(default_factory=set, init=False)

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / "images"

    def shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of an image where the file is this folder's and whole, else None."""
        try:
            with open(self.path, "rb") as file:
                return self._shape_in(file.fileno())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._give_up(error)
            return None

    def _shape_in(self, source: int) -> tuple[int, int, int] | None:
        try:
            found = json.loads(os.pread(source, HEADER_BYTES, 0))
            channels, height, width = map(int, found["shape"])
            shape = channels, height, width
            ours = found["kind"] == KIND
        except (ValueError, KeyError, TypeError):
            ours = False
        if not ours:
            self._say("is no file of decoded images; it is made anew")
        elif found != self._header(shape):
            pass  # an image was added, removed or changed: nothing to speak of
        elif os.fstat(source).st_size != self._size(shape):
            self._say("is cut short; it is made anew")
        else:
            return shape
        return None

    @contextlib.contextmanager
    def held(self, shape: tuple[int, int, int]) -> Iterator[None]:
        """Hold the file for this process while it decodes; it is made where it is not there."""
        if self.given_up:
            yield
            return
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock_folder(self.folder, self._wait))
                if self.shape() != shape:
                    self._create(shape)
            except (KitError, OSError) as error:
                self._give_up(error)
            yield

    def read(self, rows: np.ndarray, images: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Read the image `rows[place]` into `images[place]` for each of the `places`.

        `rows` (n,), `images` (n, C, H, W). Returns the places of those that are not kept, or not
        as they were written.
        """
        try:
            with open(self.path, "rb") as file:
                source = file.fileno()
                if self._shape_in(source) != images.shape[1:]:
                    return places
                checks = np.frombuffer(os.pread(source, 8 * self.count, HEADER_BYTES), np.uint64)
                is_kept = checks[rows[places]] > 0
                bad = [places[~is_kept]]
                for block in _split_by_block(rows, places[is_kept], images[0].nbytes):
                    sums = self._read_block(source, rows[block], images, block)
                    bad.append(block[sums != checks[rows[block]]])
        except (OSError, IndexError, ValueError):  # not there, or changed under our hands
            return places
        return np.sort(np.concatenate(bad))

    def _read_block(
        self, source: int, rows: np.ndarray, images: np.ndarray, places: np.ndarray
    ) -> np.ndarray:
        """Read the images `rows` (n,), in order and close together; returns their checks (n,)."""
        first, last = int(rows[0]), int(rows[-1])
        block = np.empty((last - first + 1, *images.shape[1:]), np.uint8)
        os.preadv(source, [block.data], self._pixels_at() + first * images[0].nbytes)
        images[places] = block[rows - first]
        sums = [zlib.crc32(block[row]) + THERE for row in (rows - first).tolist()]
        return np.asarray(sums, dtype=np.uint64)

    def write(self, rows: np.ndarray, images: np.ndarray) -> None:
        """Keep the decoded `images` (n, C, H, W) of `rows` (n,), in a file that is `held`."""
        if self.given_up:
            return
        step, first = images[0].nbytes, self._pixels_at()
        try:
            with open(self.path, "r+b", buffering=0) as file:
                for row, image in zip(rows.tolist(), images, strict=True):
                    check = np.uint64(zlib.crc32(image) + THERE)
                    _write_at(file.fileno(), image.tobytes(), first + row * step)
                    _write_at(file.fileno(), check.tobytes(), HEADER_BYTES + 8 * row)
        except OSError as error:
            self._give_up(error)

    def _create(self, shape: tuple[int, int, int]) -> None:
        """Put an empty file in the place of whatever is there; its pixels take no room yet."""
        temporary = self.path.with_name(f".images.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(json.dumps(self._header(shape)).encode().ljust(HEADER_BYTES))
                file.truncate(self._size(shape))
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def _header(self, shape: tuple[int, int, int]) -> dict:
        return {
            "kind": KIND,
            "fingerprint": self.fingerprint,
            "count": self.count,
            "shape": list(shape),
        }

    def _pixels_at(self) -> int:
        return HEADER_BYTES + 8 * self.count

    def _size(self, shape: tuple[int, int, int]) -> int:
        return self._pixels_at() + self.count * int(np.prod(shape))

    def _wait(self) -> None:
        print(f"another process decodes the images of {self.path}; waiting for it", flush=True)

    def _give_up(self, error: Exception) -> None:
        self.given_up = True
        self._say(f"cannot be used ({_reason(error)}); the images are decoded without it")

    def _say(self, what: str) -> None:
        """Say what is wrong, once."""
        if what not in self.said:
            print(f"WARNING: {self.path} {what}", flush=True)
        self.said.add(what)


def _split_by_block(rows: np.ndarray, places: np.ndarray, step: int) -> list[np.ndarray]:
    """The `places` in the order of their `rows`, in groups whose images lie within one block."""
    ordered = places[rows[places].argsort(kind="stable")]
    block = rows[ordered] // max(1, BLOCK_BYTES // step)
    return np.split(ordered, np.flatnonzero(np.diff(block)) + 1) if len(ordered) else []


def _write_at(target: int, payload: bytes, place: int) -> None:
    written = os.pwrite(target, payload, place)
    if written != len(payload):  # a full disk takes a part before it refuses
        os.pwrite(target, payload[written:], place + written)


def _reason(error: BaseException) -> str:
    """The operating system's words where there are any."""
    cause = error.__cause__ or error
    return getattr(cause, "strerror", None) or str(cause)
