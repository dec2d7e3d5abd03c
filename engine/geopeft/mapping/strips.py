"""A raster mapped in windows: read, looked at by the model, blended where they overlap; finished pixels come out.

What is kept of the probabilities is the rows that the next windows see as well, so that memory is bounded whatever the
raster's height. A pixel's values depend on the raster and its place alone, not on the rows at which the work began.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from rasterio.windows import Window

from geopeft.data.acquisition import Chronicle
from geopeft.data.raster import RasterInfo, RasterReader, open_raster
from geopeft.events import Reporter
from geopeft.mapper import Mapper
from geopeft.mapping.pipeline import abreast
from geopeft.mapping.windows import Axis

Wanted: TypeAlias = Callable[[Window], bool]


@dataclass(frozen=True)
class Strip:
    """Finished pixels of a map.

    Args:
        row: first row in the raster.
        probabilities: (K, h, w) float32, 0 where nothing was mapped.
        mapped: (h, w) bool, False at nodata and outside the wanted windows.
        dissimilarity: (h, w) float32, above 1 outside what the model has seen, NaN where that was not asked; None:
            nowhere.
        col: first column in the raster.
    """

    row: int
    probabilities: np.ndarray
    mapped: np.ndarray
    dissimilarity: np.ndarray | None = None
    col: int = 0


@dataclass(frozen=True)
class Finished:
    """All pixels of the rows before this one have come."""

    row: int


@dataclass(frozen=True)
class Batch:
    """Windows of one row of windows that hold data.

    Args:
        row: number of the row of windows.
        columns: their numbers in the row.
        values: (n, C, h, w) float32, in the units of the model.
        valid: (n, h, w) bool.
        until: so many windows of the row are done with, those without data among them.
    """

    row: int
    columns: tuple[int, ...]
    values: np.ndarray
    valid: np.ndarray
    until: int


@dataclass(frozen=True)
class Seen:
    """What the model says of a batch.

    Args:
        batch: what it was shown.
        probabilities: (n, K, h, w) float32.
        dissimilarities: for each window that of the pixels of its own that were asked, (rows, columns).
    """

    batch: Batch
    probabilities: np.ndarray
    dissimilarities: list[np.ndarray]


class Mapping:
    """One raster before one model.

    Args:
        runtime: the model.
        info: the raster.
        override: names of bands to take instead of the model's.
        every_px: the dissimilarity is found of the pixels of every so many-th row and column; 0: of none.
    """

    def __init__(
        self, runtime: Mapper, info: RasterInfo, override: Sequence[str], reporter: Reporter, every_px: int = 0
    ) -> None:
        self.runtime, self.info = runtime, info
        self.every_px = every_px if runtime.seen is not None else 0
        bands = runtime.bands_of(info, override)
        self._indexes = [band.index for band in bands]
        self._scale, self._offset = (a[:, None, None] for a in runtime.to_model_units(info, bands, reporter))
        self._as_is = bool((self._scale == 1).all() and (self._offset == 0).all())
        self._chronicle: Chronicle | None = runtime.chronicle_of(info, bands, reporter)
        self.rows, self.columns = axes_of(runtime, (info.height, info.width))
        self.classes = runtime.manifest.spec.num_classes

    def read(self, windows: range, wanted: Wanted | None = None) -> Generator[Batch, None, None]:
        """The windows of these rows of windows; each row ends with a batch, perhaps an empty one."""
        with open_raster(self.info, self._indexes) as reader:
            for row in windows:
                yield from self._read_row(reader, row, wanted)

    def look(self, batch: Batch) -> Seen:
        """What the model says of the windows."""
        if not batch.columns:
            return Seen(batch, np.zeros((0, self.classes, *batch.valid.shape[1:]), np.float32), [])
        taken = None
        if self._chronicle is not None:
            places = [(0, self.rows.starts[batch.row], self.columns.starts[column]) for column in batch.columns]
            taken = self._chronicle.of(places, *batch.values.shape[-2:])
        asked = [self._asked(batch.row, column) for column in batch.columns] if self.every_px else []
        return Seen(batch, *self.runtime.look(batch.values, batch.valid, asked, taken))

    def looked_at(self, batches: Iterator[Batch]) -> Generator[Seen, None, None]:
        """What the model says of each, in their order; several are looked at beside each other, in other threads."""
        with self.runtime.abreast() as threads:
            yield from abreast(self.look, batches, threads)

    def blend(self, first: int, last: int) -> Blend:
        """What brings the windows that touch the rows from `first` to before `last` together."""
        return Blend(self.rows, self.columns, self.classes, self.every_px, first, last)

    def _read_row(self, reader: RasterReader, row: int, wanted: Wanted | None) -> Iterator[Batch]:
        top, height, width = self.rows.starts[row], self.rows.window_px, self.columns.window_px
        chips: list[tuple[int, np.ndarray, np.ndarray]] = []
        before: _Read | None = None
        for column, left in enumerate(self.columns.starts):
            window = Window(left, top, width, height)
            if reader.is_missing(window) or (wanted is not None and not wanted(window)):
                continue
            before = _read_on(reader, window, before)
            if before.valid.any():
                chips.append((column, before.values, before.valid))
            if len(chips) == self.runtime.batch and column + 1 < len(self.columns):
                yield self._batch(row, chips, column + 1)
                chips = []
        yield self._batch(row, chips, len(self.columns))

    def _batch(self, row: int, chips: Sequence[tuple[int, np.ndarray, np.ndarray]], until: int) -> Batch:
        shape = (self.rows.window_px, self.columns.window_px)
        values = np.zeros((len(chips), len(self._indexes), *shape), np.float32)
        valid = np.zeros((len(chips), *shape), bool)
        for number, (_, own_values, own_valid) in enumerate(chips):
            values[number], valid[number] = own_values, own_valid
        if not self._as_is:
            values = values * self._scale + self._offset
        return Batch(row, tuple(column for column, _, _ in chips), values, valid, until)

    def _asked(self, row: int, column: int) -> tuple[slice, slice]:
        """Rows and columns within a window of those pixels asked that it finishes."""
        rows, columns = (
            slice(_on_grid(axis.begin(number), self.every_px) - start, axis.final(number) - start, self.every_px)
            for axis, number in ((self.rows, row), (self.columns, column))
            for start in (axis.starts[number],)
        )
        return rows, columns


def axes_of(runtime: Mapper, shape: tuple[int, int]) -> tuple[Axis, Axis]:
    """The windows along the rows and columns of a raster of this shape."""
    rows, columns = (Axis.of(length, runtime.window_px, runtime.overlap_px, runtime.grain_px) for length in shape)
    return rows, columns


def map_raster(
    runtime: Mapper,
    info: RasterInfo,
    override: Sequence[str],
    reporter: Reporter,
    wanted: Wanted | None = None,
    stage: str = "predict",
    every_px: int = 0,
) -> Iterator[Strip]:
    """Maps a raster, in strips of its whole width; all in the thread that asks for them.

    Args:
        wanted: windows to map; None maps all.
        stage: name in the progress events.
        every_px: the dissimilarity is found of the pixels of every so many-th row and column; 0: of none.
    """
    mapping = Mapping(runtime, info, override, reporter, every_px)
    rows, columns = mapping.rows, mapping.columns
    blend = mapping.blend(0, info.height)
    waiting: list[Strip] = []
    first = 0
    for batch in mapping.read(range(len(rows)), wanted):
        for found in blend.add(mapping.look(batch)):
            if isinstance(found, Strip):
                waiting.append(found)
                continue
            yield _whole(first, found.row, info.width, mapping, waiting)
            first, waiting = found.row, []
        reporter.progress(stage, batch.row * len(columns) + batch.until, len(rows) * len(columns))


def _whole(first: int, last: int, width: int, mapping: Mapping, parts: Sequence[Strip]) -> Strip:
    """Strips side by side, and nothing where there are none."""
    shape = (last - first, width)
    probabilities, mapped = np.zeros((mapping.classes, *shape), np.float32), np.zeros(shape, bool)
    unlike = np.full(shape, np.nan, np.float32) if mapping.every_px else None
    for part in parts:
        place = slice(part.col, part.col + part.mapped.shape[1])
        probabilities[:, :, place], mapped[:, place] = part.probabilities, part.mapped
        if unlike is not None and part.dissimilarity is not None:
            unlike[:, place] = part.dissimilarity
    return Strip(first, probabilities, mapped, unlike)


@dataclass(frozen=True)
class _Read:
    """A window as it is in the raster: values (C, h, w) and valid (h, w)."""

    window: Window
    values: np.ndarray
    valid: np.ndarray


def _read_on(reader: RasterReader, window: Window, before: _Read | None) -> _Read:
    """A window of a row; what the one read before it shares with it is not read again."""
    end = int(before.window.col_off + before.window.width) if before is not None else 0
    shared = end - int(window.col_off)
    if before is None or shared <= 0:
        return _Read(window, *reader.read(window))
    rest = reader.read(Window(end, window.row_off, window.width - shared, window.height))
    parts = ((before.values, rest[0]), (before.valid, rest[1]))
    values, valid = (np.concatenate([old[..., -shared:], new], -1) for old, new in parts)
    return _Read(window, values, valid)


class Blend:
    """Adds windows up, row by row from left to right, and gives what no further window touches.

    Args:
        rows, columns: the windows.
        classes: K.
        every_px: as of `Mapping`.
        first, last: rows that come out: from `first` to before `last`.
    """

    def __init__(self, rows: Axis, columns: Axis, classes: int, every_px: int, first: int, last: int) -> None:
        self._rows, self._columns, self._every_px = rows, columns, every_px
        self._first, self._last = first, last
        self._row = rows.touching(first, last).start
        self._column = 0
        # The sums of earlier rows of windows and, behind them, of their weights; and where there are any.
        shared = max(rows.end(n) - rows.final(n) for n in range(len(rows)))
        self._carry = np.zeros((classes + 1, max(shared, 0), columns.length), np.float32)
        self._is_carried = np.zeros(columns.length, bool)
        self._edge: np.ndarray | None = None

    def add(self, seen: Seen) -> Iterator[Strip | Finished]:
        """The next batch, in the order in which `Mapping.read` gives them."""
        batch = seen.batch
        for number, column in enumerate(batch.columns):
            yield from self._skip(column)
            unlike = seen.dissimilarities[number] if self._every_px else None
            yield from self._add(seen.probabilities[number], batch.valid[number], unlike)
        yield from self._skip(batch.until)
        if batch.until == len(self._columns):
            self._column, self._edge = 0, None
            row = self._row
            self._row += 1
            if self._rows.final(row) > self._first:
                yield Finished(min(self._rows.final(row), self._last))

    def _skip(self, until: int) -> Iterator[Strip]:
        """Windows without data: only what others have left there is finished."""
        if self._edge is None and not self._is_carried.any():
            self._column = max(self._column, until)
        while self._column < until:
            yield from self._add(None, None, None)

    def _add(
        self, probabilities: np.ndarray | None, valid: np.ndarray | None, unlike: np.ndarray | None
    ) -> Iterator[Strip]:
        column = self._column
        self._column += 1
        top, end, final = self._rows.begin(self._row), self._rows.end(self._row), self._rows.final(self._row)
        left, right, done = self._columns.begin(column), self._columns.end(column), self._columns.final(column)
        edge_px = self._edge.shape[-1] if self._edge is not None else 0
        fresh = slice(left + edge_px, right)
        if probabilities is None and self._edge is None and not self._is_carried[fresh].any():
            return
        total = self._weighted(column, probabilities, valid)
        if self._edge is not None:
            total[:, :, :edge_px] += self._edge
        if self._is_carried[fresh].any():
            shared = min(self._carry.shape[1], end - top)
            total[:, :shared, edge_px:] += self._carry[:, :shared, fresh]
        self._keep(total[:, final - top :, : done - left], slice(left, done))
        rest = total[:, :, done - left :]
        self._edge = rest.copy() if rest.size and rest[-1].any() else None
        first, last = max(top, self._first), min(final, self._last)
        block = total[:, first - top : last - top, : done - left]
        if first < last and block[-1].any():
            yield self._strip(first, left, block, unlike)

    def _weighted(self, column: int, probabilities: np.ndarray | None, valid: np.ndarray | None) -> np.ndarray:
        """(K + 1, h, w): the part of a window that counts, times its weights, and these; 0 where nothing is valid."""
        top, left = self._rows.starts[self._row], self._columns.starts[column]
        rows = slice(self._rows.begin(self._row) - top, self._rows.end(self._row) - top)
        columns = slice(self._columns.begin(column) - left, self._columns.end(column) - left)
        total = np.zeros((len(self._carry), rows.stop - rows.start, columns.stop - columns.start), np.float32)
        if probabilities is not None and valid is not None:
            weights = self._rows.weights(self._row)[rows, None] * self._columns.weights(column)[columns]
            np.multiply(weights, valid[rows, columns], out=total[-1])
            np.multiply(probabilities[:, rows, columns], total[-1], out=total[:-1])
        return total

    def _keep(self, rows: np.ndarray, columns: slice) -> None:
        """For the next row of windows. Where nothing is carried, the sums are 0 in all rows."""
        there = rows[-1].any(0)
        if there.any() or self._is_carried[columns].any():
            self._carry[:, : rows.shape[1], columns] = rows
            self._carry[:, rows.shape[1] :, columns] = 0
        self._is_carried[columns] = there

    def _strip(self, row: int, col: int, total: np.ndarray, unlike: np.ndarray | None) -> Strip:
        mapped = total[-1] > 0
        probabilities = total[:-1] / np.where(mapped, total[-1], 1)
        if not self._every_px:
            return Strip(row, probabilities, mapped, None, col)
        far = np.full(mapped.shape, np.nan, np.float32)
        if unlike is not None:
            own_row, own_col = self._rows.begin(self._row), col
            skipped = (_on_grid(row, self._every_px) - _on_grid(own_row, self._every_px)) // self._every_px
            where = tuple(slice(_on_grid(at, self._every_px) - at, None, self._every_px) for at in (row, own_col))
            far[where] = unlike[skipped : skipped + len(far[where])]
        return Strip(row, probabilities, mapped, far, col)


def _on_grid(at: int, every_px: int) -> int:
    """The first multiple of `every_px` from `at` on."""
    return -(-at // every_px) * every_px
