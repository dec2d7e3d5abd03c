"""What a student learns from: pieces of rasters with the teacher's probabilities, each pixel of them asked for once.

A piece, a sheet, is mapped as `predict` maps a raster: in overlapping windows that are blended. It stays in memory at
half precision, its probabilities as bytes, and all sheets together within a fixed budget.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rasterio.windows import Window

from geopeft.data.bands import Band
from geopeft.data.normalize import OUTLIER
from geopeft.data.raster import RasterInfo, open_raster
from geopeft.errors import RasterError
from geopeft.events import Reporter
from geopeft.mapping.strips import Batch, Blend, Seen, Strip, axes_of
from geopeft.models.spec import InputBand
from geopeft.runtime import Runtime

SHEET_PX = 512
# Chips for training; a smaller sheet is filled up to this side with pixels that are not valid.
CHIP_PX = 128
SQUARE_PX = 64
# Beside the squares that choose the step there are those that judge the result.
HELD_OUT_SHARE, FEWEST_SQUARES = 1 / 6, 8
MOST_HELD_OUT = 128
CACHE_BYTES = 768 << 20
# Part of the time budget in which the teacher may speak.
TEACHER_SHARE = 1 / 3
TRAINS, CHOOSES, JUDGES = 0, 1, 2


@dataclass(frozen=True)
class Source:
    """A raster to learn from, its bands in the model's order, and what brings its values to the model's units."""

    info: RasterInfo
    bands: tuple[Band, ...]
    scale: np.ndarray
    offset: np.ndarray


@dataclass(frozen=True, eq=False)
class Sheet:
    """A piece of a raster.

    Args:
        values: (C, h, w) float16, standardised as the network sees them, 0 where not valid.
        probabilities: (K, h, w) uint8, the teacher's in 255ths.
        valid: (h, w) bool.
        role: (h, w) uint8, TRAINS, CHOOSES or JUDGES.
    """

    values: np.ndarray
    probabilities: np.ndarray
    valid: np.ndarray
    role: np.ndarray


def read_sheets(
    teacher: Runtime,
    sources: Sequence[Source],
    most_px: float,
    seed: int,
    reporter: Reporter,
    budget_s: float = math.inf,
    count: int = 0,
) -> list[Sheet]:
    """Sheets drawn evenly over the rasters, with a part of their squares held out.

    Args:
        most_px: pixels in all; fewer where memory or the teacher's part of `budget_s` end first.
        count: of a run that goes on: exactly so many sheets, whatever the time; 0: a new run.

    Raises:
        RasterError: too few squares have data.
    """
    spec = teacher.manifest.spec
    rng = np.random.default_rng((seed, 0))
    places = _places([source.info for source in sources], rng)
    room_px = min(most_px, CACHE_BYTES / (2 * len(spec.bands) + spec.num_classes + 2))
    sizes = np.cumsum([window.width * window.height for _, window in places])
    chosen = places[: max(1, int((sizes <= room_px).sum()))]
    sheets: list[Sheet] = []
    begun = time.monotonic()
    for number, (index, window) in enumerate(chosen):
        reporter.progress("teach", number, len(chosen))
        found = _sheet(teacher, sources[index], window, reporter)
        if found is not None:
            sheets.append(found)
        late = not count and time.monotonic() - begun > budget_s * TEACHER_SHARE
        if sheets and (late or len(sheets) == count):
            break
    reporter.progress("teach", len(chosen), len(chosen))
    _hold_out(sheets, rng)
    return sheets


def _places(infos: Sequence[RasterInfo], rng: np.random.Generator) -> list[tuple[int, Window]]:
    """(raster, window) of all sheets: one of each raster, then the next of each, and so on."""
    queues = []
    for index, info in enumerate(infos):
        rows, cols = (_parts(length) for length in (info.height, info.width))
        cells = [(r, c) for r in rows for c in cols]
        order = rng.permutation(len(cells))
        queues.append([(index, Window(cells[at][1][0], cells[at][0][0], cells[at][1][1], cells[at][0][1]))
                       for at in order.tolist()])  # fmt: skip
    longest = max(map(len, queues))
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]


def _parts(length: int) -> list[tuple[int, int]]:
    """(start, size) of nearly equal parts of at most SHEET_PX."""
    ends = np.linspace(0, length, -(-length // SHEET_PX) + 1).round().astype(int).tolist()
    return [(start, end - start) for start, end in zip(ends[:-1], ends[1:], strict=True)]


def _sheet(teacher: Runtime, source: Source, window: Window, reporter: Reporter) -> Sheet | None:
    """One sheet, mapped; None where it holds no data."""
    with open_raster(source.info, [band.index for band in source.bands]) as reader:
        values, valid = reader.read(window)
    if not valid.any():
        return None
    values = values * source.scale[:, None, None] + source.offset[:, None, None]
    probabilities = _mapped(teacher, source, window, values, valid, reporter)
    standardised = standardise(values, teacher.manifest.spec.bands)
    fill = [(0, max(0, CHIP_PX - side)) for side in valid.shape]
    return Sheet(
        np.pad(np.where(valid, standardised, 0).astype(np.float16), [(0, 0), *fill]),
        np.pad(np.rint(probabilities * 255).astype(np.uint8), [(0, 0), *fill]),
        np.pad(valid, fill),
        np.zeros([side + after for side, (_, after) in zip(valid.shape, fill, strict=True)], np.uint8),
    )


def standardise(values: np.ndarray, bands: Sequence[InputBand]) -> np.ndarray:
    """(C, h, w) values in the model's units as its network sees them."""

    def column(name: str) -> np.ndarray:
        return np.array([getattr(band, name) for band in bands], np.float64)[:, None, None]

    canonical = values * column("scale") + column("offset")
    limited: np.ndarray = np.clip((canonical - column("mean")) / column("std"), -OUTLIER, OUTLIER)
    return limited


def _mapped(
    teacher: Runtime, source: Source, window: Window, values: np.ndarray, valid: np.ndarray, reporter: Reporter
) -> np.ndarray:
    """(K, h, w) probabilities of the teacher, blended over its windows as in a map."""
    rows, columns = axes_of(teacher, valid.shape)
    blend = Blend(rows, columns, teacher.manifest.spec.num_classes, 0, 0, rows.length)
    mixed = np.zeros((teacher.manifest.spec.num_classes, *valid.shape), np.float32)
    chronicle = teacher.chronicle_of(source.info, source.bands, Reporter())
    size = rows.window_px, columns.window_px
    for row, top in enumerate(rows.starts):
        for begin in range(0, len(columns), teacher.batch):
            reporter.check_canceled()
            lefts = columns.starts[begin : begin + teacher.batch]
            cuts = [(slice(top, top + size[0]), slice(left, left + size[1])) for left in lefts]
            places = [(0, int(window.row_off) + top, int(window.col_off) + left) for left in lefts]
            chips, there = np.stack([values[:, *cut] for cut in cuts]), np.stack([valid[cut] for cut in cuts])
            said, _ = teacher.look(chips, there, (), chronicle.of(places, *size) if chronicle is not None else None)
            until = begin + len(lefts)
            for found in blend.add(Seen(Batch(row, tuple(range(begin, until)), chips, there, until), said, [])):
                if isinstance(found, Strip):
                    height, width = found.mapped.shape
                    mixed[:, found.row : found.row + height, found.col : found.col + width] = found.probabilities
    return mixed


def _hold_out(sheets: Sequence[Sheet], rng: np.random.Generator) -> None:
    """Marks squares of the sheets that are held out: every other one chooses, the rest judge."""
    squares = [
        (number, row, col)
        for number, sheet in enumerate(sheets)
        for row in range(0, sheet.valid.shape[0], SQUARE_PX)
        for col in range(0, sheet.valid.shape[1], SQUARE_PX)
        if sheet.valid[row : row + SQUARE_PX, col : col + SQUARE_PX].mean() > 0.5
    ]
    if len(squares) < FEWEST_SQUARES:
        raise RasterError(
            f"The rasters hold data in {len(squares)} squares of {SQUARE_PX} px, too few to learn from.",
            f"Give more or larger rasters: at least {FEWEST_SQUARES} such squares.",
            "RASTER_TOO_SMALL",
        )
    count = min(MOST_HELD_OUT, max(2, round(HELD_OUT_SHARE * len(squares))))
    for turn, at in enumerate(rng.permutation(len(squares))[:count].tolist()):
        number, row, col = squares[at]
        role = CHOOSES if turn % 2 == 0 else JUDGES
        sheets[number].role[row : row + SQUARE_PX, col : col + SQUARE_PX] = role
