"""The parts of a raster's map: rows that are finished one part after another, and kept until the map is whole.

A part lies in a hidden folder beside the map, under a name that says what it was made from. A job that was killed or
canceled goes on from there: the rows of a part depend on the model, the raster and their place alone, so that the map
is the same, to the last byte.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geopeft import __version__
from geopeft.class_raster import BLOCK_PX, NODATA, PERCENT_LAYERS, PERCENT_NODATA
from geopeft.data.raster import RasterInfo, still_same
from geopeft.errors import OutputError
from geopeft.holding import folder_beside
from geopeft.job import PredictJob
from geopeft.writing import whole_file

SUFFIX, FORMAT = ".resume", "geopeft parts 2"
# A raster of less than two of them is mapped in one go.
PART_PX = 1 << 21
# Parts that nobody has gone on from for so long are taken away by the next job that writes into their folder.
STALE_S = 7 * 24 * 3600.0
# Enough pixels to tell what part of a raster lies outside, and the widest step between them.
ENOUGH_PIXELS, SPARSE_PX = 4000, 8
_FOLDER = re.compile(r"\..+\.[0-9a-f]{8}\.resume", re.DOTALL)
_FILE = re.compile(r"([0-9a-f]{32})-\d{6}\.zip")


@dataclass(frozen=True)
class Order:
    """What is asked of one raster.

    Args:
        info: the raster.
        bands: names of bands to take instead of the model's.
        layers: names in PERCENT_LAYERS of what is drawn beside the classes.
        unknown_below: least confidence, 0 to 1, of what is mapped as a class.
        aoi: polygons outside of which nothing is mapped; empty: none.
        every_px: of every so many-th row and column it is told whether the model has seen the like.
    """

    info: RasterInfo
    bands: tuple[str, ...]
    layers: tuple[str, ...]
    unknown_below: float
    aoi: str
    every_px: int


@dataclass(frozen=True)
class Part:
    """Rows of a map, from `row0` to before `row1`; they begin at a block of the file."""

    number: int
    row0: int
    row1: int


@dataclass(frozen=True)
class Tally:
    """Numbers of pixels.

    Args:
        mapped: with a value in the map.
        unknown: of these, not sure enough.
        judged: of these, compared with what the model has seen.
        outside: of these, outside.
    """

    mapped: int = 0
    unknown: int = 0
    judged: int = 0
    outside: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """The four numbers."""
        return self.mapped, self.unknown, self.judged, self.outside


@dataclass(frozen=True)
class Rows:
    """Finished rows from `row` on: values (1 + layers, h, W) uint8 as they are to be in the files, and their tally."""

    row: int
    values: np.ndarray
    tally: Tally


def order_of(job: PredictJob, info: RasterInfo) -> Order:
    """What a job asks of a raster; polygons need the confidence."""
    layers = tuple(name for name in PERCENT_LAYERS if getattr(job, name) or (name == "confidence" and job.polygons))
    every_px = 1 if job.outside else _sparse_px(info)
    return Order(info, tuple(job.bands), layers, job.unknown_below / 100, job.aoi, every_px)


def _sparse_px(info: RasterInfo) -> int:
    """Rows and columns to step over so that enough pixels, and no more, tell what part of a raster lies outside."""
    return min(max(math.isqrt(info.height * info.width // ENOUGH_PIXELS), 1), SPARSE_PX)


def parts_of(info: RasterInfo) -> tuple[Part, ...]:
    """The parts of a raster's map, from top to bottom; one where it is small."""
    if info.height * info.width < 2 * PART_PX:
        return (Part(0, 0, info.height),)
    rows = max(round(PART_PX / info.width / BLOCK_PX), 1) * BLOCK_PX
    return tuple(
        Part(number, row, min(row + rows, info.height)) for number, row in enumerate(range(0, info.height, rows))
    )


def runs_of(parts: Sequence[Part], count: int) -> list[tuple[Part, ...]]:
    """Parts one below the other, dealt to so many runs, or fewer, of about as many rows."""
    gaps = {n for n in range(1, len(parts)) if parts[n].row0 != parts[n - 1].row1}
    cuts = gaps | {round(n * len(parts) / count) for n in range(1, count)} - {0, len(parts)}
    edges = [0, *sorted(cuts), len(parts)] if parts else [0]
    return [tuple(parts[a:b]) for a, b in zip(edges, edges[1:], strict=False)]


def identity_of(model_sha256: str, order: Order) -> str:
    """A checksum of all that decides the values of a map, but for the machine.

    Args:
        model_sha256: of the model's file.
    """
    asked = [order.bands, order.layers, order.unknown_below, order.every_px]
    known = [FORMAT, __version__, model_sha256, order.info.fingerprint, asked, _checksum(order.aoi)]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _checksum(spec: str) -> str:
    """Of the bytes of FILE or FILE:layer, and of its name."""
    digest = hashlib.sha256(spec.encode("utf-8", "surrogateescape"))
    for name in (spec, spec.rpartition(":")[0]):
        # What cannot be read is told where it is needed.
        with suppress(OSError, ValueError):
            if name and Path(name).is_file():
                digest.update(Path(name).read_bytes())
    return digest.hexdigest()


class PartStore:
    """The parts of one map that are kept.

    Args:
        folder: where; it is made when the first part is written.
        identity: of `identity_of`; parts of another one are not seen.
        layers: how many layers lie beside the classes.
        width: of the raster.
    """

    def __init__(self, folder: Path, identity: str, layers: int, width: int) -> None:
        self.folder, self._identity = folder, identity
        self._layers, self._width = layers, width

    @classmethod
    def beside(cls, target: Path, identity: str, order: Order) -> PartStore:
        """The store of a map that this process holds; what is left of other maps of this name is taken away."""
        store = cls(folder_beside(target, SUFFIX), identity, len(order.layers), order.info.width)
        _drop_stale(target.parent, store.folder)
        if store.folder.is_dir():
            for path in store.folder.iterdir():
                if not path.name.startswith(store._prefix):
                    path.unlink(missing_ok=True)
        return store

    @property
    def _prefix(self) -> str:
        return self._identity[:32]

    def path(self, part: Part) -> Path:
        """Where a part lies."""
        return self.folder / f"{self._prefix}-{part.number:06d}.zip"

    def has(self, part: Part) -> bool:
        """Whether a part is there and whole; one that is damaged is taken away."""
        path = self.path(part)
        if not path.is_file():
            return False
        try:
            for _ in self._read(part):
                pass
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error):
            with suppress(OSError):
                path.unlink()
            return False
        return True

    def rows(self, part: Part) -> Iterator[Rows]:
        """A part, from top to bottom; OutputError where it is not there, or not whole."""
        try:
            yield from self._read(part)
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            message = f"A part of the map that was kept in {self.folder} cannot be read: {error}."
            raise OutputError(message, "Run again: it is then mapped anew.") from error

    def _read(self, part: Part) -> Iterator[Rows]:
        shape = (1 + self._layers, -1, self._width)
        with zipfile.ZipFile(self.path(part)) as file:
            note = json.loads(file.read("part.json"))
            if (note["identity"], note["rows"]) != (self._identity, [part.row0, part.row1]):
                raise ValueError("it belongs to another map")
            row = part.row0
            for number, (height, counts) in enumerate(note["pieces"]):
                body = file.read(f"{number}")
                values = np.frombuffer(body, np.uint8).reshape(shape) if body else nothing(shape[0], height, shape[2])
                if values.shape[1] != height:
                    raise ValueError("it has another size")
                yield Rows(row, values, Tally(*counts))
                row += height
            if row != part.row1:
                raise ValueError("it is not whole")

    @contextmanager
    def writing(self, part: Part) -> Iterator[Callable[[Rows], None]]:
        """Yields what takes a part's rows from top to bottom; then the part is there, whole.

        Raises:
            OutputError: DISK_FULL, NO_PERMISSION or OUTPUT_FAILED.
        """
        pieces: list[tuple[int, tuple[int, ...]]] = []
        with suppress(OSError):  # whole_file tells it better
            self.folder.mkdir(exist_ok=True)
        with whole_file(self.path(part)) as unfinished:
            # Little is gained by pressing harder what is soon deleted.
            with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:

                def add(rows: Rows) -> None:
                    file.writestr(f"{len(pieces)}", rows.values.tobytes() if rows.tally.mapped else b"")
                    pieces.append((rows.values.shape[1], rows.tally.counts))

                yield add
                note = {"identity": self._identity, "rows": [part.row0, part.row1], "pieces": pieces}
                file.writestr("part.json", json.dumps(note))

    def remove(self) -> None:
        """When they are not needed any more."""
        shutil.rmtree(self.folder, ignore_errors=True)


def nothing(bands: int, height: int, width: int) -> np.ndarray:
    """Rows without anything mapped; not to be written to."""
    empty = np.full((bands, 1, 1), PERCENT_NODATA, np.uint8)
    empty[0] = NODATA
    return np.broadcast_to(empty, (bands, height, width))


def _drop_stale(folder: Path, own: Path) -> None:
    """What jobs have left that nobody went on with."""
    with suppress(OSError):
        for path in folder.glob(f".*{SUFFIX}"):
            if path == own or path.is_symlink() or not path.is_dir() or not _FOLDER.fullmatch(path.name):
                continue
            latest = max((inside.stat().st_mtime for inside in path.iterdir()), default=path.stat().st_mtime)
            ours = all(_FILE.fullmatch(inside.name) or ".part" in inside.name for inside in path.iterdir())
            if ours and time.time() - latest > STALE_S:
                shutil.rmtree(path, ignore_errors=True)


def kept(
    store: PartStore, run: Sequence[Part], info: RasterInfo, rows: Iterator[Rows], failures: list[str] | None = None
) -> Iterator[Rows]:
    """The rows of a run; on their way each part is written to the store.

    Args:
        failures: where a part cannot be written, why comes here, and the rows go on without being kept; None: it is
            raised.
    """
    waiting, add = list(run), None
    with ExitStack() as stack:
        for found in rows:
            if waiting:
                try:
                    add = add or stack.enter_context(store.writing(waiting[0]))
                    add(found)
                    if found.row + found.values.shape[1] == waiting[0].row1:
                        # A part is not kept that may hold another raster's values.
                        still_same(info)
                        stack.close()
                        waiting, add = waiting[1:], None
                except OutputError as error:
                    if failures is None:
                        raise
                    failures.append(error.message)
                    with suppress(OutputError):
                        stack.__exit__(type(error), error, error.__traceback__)
                    waiting = []
            yield found


def name_of(raster: str) -> str:
    """A raster's name for people: without its folder, and without what follows a web address, which may be secret."""
    return Path(raster.partition("?")[0]).name or raster
