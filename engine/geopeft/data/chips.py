"""Chips for training: arrays cut around labels, from a bounded cache of raster blocks."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
from rasterio.windows import Window

from geopeft.data.acquisition import Chronicle, Whereabouts
from geopeft.data.bands import Band
from geopeft.data.batches import Batch
from geopeft.data.few_windows import Few, few_windows
from geopeft.data.labels import IGNORE, Labels
from geopeft.data.raster import RasterInfo, open_raster

BLOCK_PX = 256
SQUARE_PX = 64
CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Chip:
    """A piece of a raster with its labels.

    Args:
        values: (C, h, w) float32 in raster units, 0 where not valid.
        valid: (h, w) bool.
        class_ids: (h, w) uint8, 255 where unlabelled or not valid.
        shape_ids: (h, w) int32, the label shape that a pixel lies in, -1 for none and for shapes that are cut.
        taken: when and where, for one chip; None where nobody asked for it.
    """

    values: np.ndarray
    valid: np.ndarray
    class_ids: np.ndarray
    shape_ids: np.ndarray
    taken: Whereabouts | None = None


def whereabouts_of(chips: Sequence[Chip]) -> Whereabouts | None:
    """When and where some chips were taken; None where they do not tell."""
    told = [chip.taken for chip in chips if chip.taken is not None]
    if len(told) < len(chips):
        return None
    return Whereabouts(np.concatenate([one.time for one in told]), np.concatenate([one.place for one in told]))


class ChipReader:
    """Reads chips from labelled rasters; blocks of 256 px stay in memory up to a fixed budget.

    Args:
        infos, bands: the rasters, and for each the bands to read in the model's order.
        labels: burned into every chip.
        units: for each raster the (scale, offset), each (C,), that bring its values to the first raster's units.
        chronicle: when and where the rasters were taken, for models that are told; chips then say so.
    """

    def __init__(
        self,
        infos: Sequence[RasterInfo],
        bands: Sequence[Sequence[Band]],
        labels: Labels,
        units: Sequence[tuple[np.ndarray, np.ndarray]] = (),
        chronicle: Chronicle | None = None,
    ) -> None:
        self._units = units
        self._chronicle = chronicle
        self.infos = tuple(infos)
        self.labels = labels
        self._bands = [[band.index for band in chosen] for chosen in bands]
        self._stack = ExitStack()
        self._readers = [
            self._stack.enter_context(open_raster(info, indexes))
            for info, indexes in zip(self.infos, self._bands, strict=True)
        ]
        self._cut = _large_shapes(labels, len(self.infos))
        self._blocks: OrderedDict[tuple[int, int, int], Chip] = OrderedDict()
        self._bytes = 0

    def __enter__(self) -> ChipReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def read(self, raster_index: int, row: int, col: int, height: int, width: int) -> Chip:
        """The chip whose upper left pixel is (row, col); what lies outside the raster is not valid."""
        count = len(self._bands[raster_index])
        chip = Chip(
            np.zeros((count, height, width), np.float32),
            np.zeros((height, width), bool),
            np.full((height, width), IGNORE, np.uint8),
            np.full((height, width), -1, np.int32),
            self._chronicle.of([(raster_index, row, col)], height, width) if self._chronicle is not None else None,
        )
        rows, cols = self.infos[raster_index].geobox.shape
        for block_row in range(max(row, 0) // BLOCK_PX, -(-min(row + height, rows) // BLOCK_PX)):
            for block_col in range(max(col, 0) // BLOCK_PX, -(-min(col + width, cols) // BLOCK_PX)):
                block = self._block(raster_index, block_row, block_col)
                _copy_overlap(block, block_row * BLOCK_PX, block_col * BLOCK_PX, chip, row, col)
        return chip

    def _block(self, raster_index: int, block_row: int, block_col: int) -> Chip:
        key = (raster_index, block_row, block_col)
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return self._blocks[key]
        rows, cols = self.infos[raster_index].geobox.shape
        row, col = block_row * BLOCK_PX, block_col * BLOCK_PX
        window = Window(col, row, min(BLOCK_PX, cols - col), min(BLOCK_PX, rows - row))
        values, valid = self._readers[raster_index].read(window)
        if self._units:
            scale, offset = self._units[raster_index]
            values = np.where(valid, values * scale[:, None, None] + offset[:, None, None], 0).astype(np.float32)
        class_ids, shape_ids = self.labels.burn(raster_index, window)
        shape_ids = np.where(np.isin(shape_ids, self._cut), -1, shape_ids)
        class_ids = np.where(valid, class_ids, IGNORE).astype(np.uint8)
        block = Chip(values, valid, class_ids, np.where(class_ids != IGNORE, shape_ids, -1).astype(np.int32))
        self._blocks[key] = block
        self._bytes += _size(block)
        while self._bytes > CACHE_BYTES and len(self._blocks) > 1:
            self._bytes -= _size(self._blocks.popitem(last=False)[1])
        return block

    def labelled_blocks(self, raster_index: int) -> Iterator[tuple[int, int, Chip]]:
        """(row, col, block) of every block that touches the labels' extent."""
        row0, col0, row1, col1 = self.labels.extent_px(raster_index)
        for block_row in range(max(row0, 0) // BLOCK_PX, -(-row1 // BLOCK_PX)):
            for block_col in range(max(col0, 0) // BLOCK_PX, -(-col1 // BLOCK_PX)):
                row, col = block_row * BLOCK_PX, block_col * BLOCK_PX
                rows, cols = self.infos[raster_index].geobox.shape
                if row < rows and col < cols:
                    yield row, col, self._block(raster_index, block_row, block_col)


def read_around(
    reader: ChipReader, raster_index: int, row: int, col: int, side: int, reach: int
) -> tuple[Chip, int, int]:
    """A square with so much around it as there is of the raster, and the first row and column of what was read."""
    rows, cols = reader.infos[raster_index].geobox.shape
    top, left = max(row - reach, 0), max(col - reach, 0)
    bottom, right = min(row + side + reach, rows), min(col + side + reach, cols)
    return reader.read(raster_index, top, left, bottom - top, right - left), top, left


def _copy_overlap(block: Chip, block_row: int, block_col: int, chip: Chip, row: int, col: int) -> None:
    height, width = block.valid.shape
    top, left = max(block_row, row), max(block_col, col)
    bottom = min(block_row + height, row + chip.valid.shape[0])
    right = min(block_col + width, col + chip.valid.shape[1])
    if bottom <= top or right <= left:
        return
    source = (slice(top - block_row, bottom - block_row), slice(left - block_col, right - block_col))
    target = (slice(top - row, bottom - row), slice(left - col, right - col))
    chip.values[:, *target] = block.values[:, *source]
    chip.valid[target] = block.valid[source]
    chip.class_ids[target] = block.class_ids[source]
    chip.shape_ids[target] = block.shape_ids[source]


def _size(block: Chip) -> int:
    return block.values.nbytes + block.valid.nbytes + block.class_ids.nbytes + block.shape_ids.nbytes


def _large_shapes(labels: Labels, rasters: int) -> np.ndarray:
    """Numbers of the shapes that span more than a quarter of the labels' extent, and 128 px: held out whole, one of
    them would take all that a class has, so they are cut into squares instead."""
    sides = np.zeros(rasters)
    for index in range(rasters):
        row0, col0, row1, col1 = labels.extent_px(index)
        sides[index] = max(row1 - row0, col1 - col0)
    spans = [
        max(shape.bounds_px[2] - shape.bounds_px[0], shape.bounds_px[3] - shape.bounds_px[1]) for shape in labels.shapes
    ]
    least = [max(2 * SQUARE_PX, sides[shape.raster_index] / 4) for shape in labels.shapes]
    return np.flatnonzero(np.array(spans) > np.array(least))


def groups_of(chip: Chip, row: int, col: int) -> np.ndarray:
    """(h, w) int64: which labelled place a pixel belongs to: its shape, or a square of 64 px where there is none.

    Args:
        row, col: of the chip's upper left pixel.
    """
    rows = (np.arange(chip.valid.shape[0]) + row) // SQUARE_PX
    cols = (np.arange(chip.valid.shape[1]) + col) // SQUARE_PX
    squares = -1 - (rows[:, None].astype(np.int64) * 1_000_000 + cols)
    return np.where(chip.shape_ids >= 0, chip.shape_ids, squares)


@dataclass(frozen=True)
class Site:
    """A place that teaches: a labelled pixel's neighbourhood, as block and sample points.

    Args:
        raster_index: which raster.
        group: the shape (or for shapeless classes the block) that it belongs to.
        class_index: its class.
        points: (n, 2) rows and columns of labelled pixels of this class in this group.
        pixels: how many labelled pixels it has; `points` holds a sample of them.
    """

    raster_index: int
    group: int
    class_index: int
    points: np.ndarray
    pixels: int


def labels_digest(reader: ChipReader) -> str:
    """A checksum of what every labelled pixel says, and of where it is."""
    digest = hashlib.sha256()
    for raster_index in range(len(reader.infos)):
        for row, col, block in reader.labelled_blocks(raster_index):
            digest.update(f"{raster_index} {row} {col} ".encode())
            digest.update(block.class_ids.tobytes())
            digest.update(block.shape_ids.tobytes())
    return digest.hexdigest()


def find_sites(reader: ChipReader, max_points: int = 256, seed: int = 0) -> list[Site]:
    """Every labelled shape that has valid pixels, with at most `max_points` of its pixels.

    Pixels of a class without shapes (the background) are grouped by squares of 64 px.
    """
    rng = np.random.default_rng(seed)
    found: dict[tuple[int, int, int], list[np.ndarray]] = {}
    pixels: dict[tuple[int, int, int], int] = {}
    for raster_index in range(len(reader.infos)):
        for row, col, block in reader.labelled_blocks(raster_index):
            rows, cols = np.nonzero(block.class_ids != IGNORE)
            if rows.size == 0:
                continue
            classes = block.class_ids[rows, cols].astype(np.int64)
            groups = groups_of(block, row, col)[rows, cols]
            order = np.lexsort((groups, classes))
            keys = np.stack([classes[order], groups[order]], 1)
            starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(1)])
            points = np.stack([rows[order] + row, cols[order] + col], 1).astype(np.int32)
            for start, end in zip(starts, np.r_[starts[1:], len(order)], strict=True):
                key = (raster_index, int(keys[start, 1]), int(keys[start, 0]))
                part = points[start:end]
                pixels[key] = pixels.get(key, 0) + len(part)
                if len(part) > max_points:
                    part = part[rng.choice(len(part), max_points, replace=False)]
                found.setdefault(key, []).append(part)
    sites = []
    for key, parts in sorted(found.items()):
        raster_index, group, class_index = key
        points = np.concatenate(parts)
        if len(points) > max_points:
            points = points[rng.choice(len(points), max_points, replace=False)]
        sites.append(Site(raster_index, group, class_index, points, pixels[key]))
    return sites


class ChipSampler:
    """Draws training chips: a class, then one of its places, then a pixel of it somewhere in the chip.

    Every class comes equally often, and within it a place by the root of its size, so that neither the largest class
    nor the largest polygon decides what is learned.

    Args:
        reader: where chips come from.
        sites: the places that teach.
        held_out: (raster index, group) of the places whose pixels must not teach.
        size_px: side of the chips.
        few: the first chips come from few windows; None: from anywhere.
    """

    def __init__(
        self,
        reader: ChipReader,
        sites: Sequence[Site],
        held_out: Sequence[tuple[int, int]],
        size_px: int,
        seed: int,
        few: Few | None = None,
    ) -> None:
        self._reader, self._size, self._drawn = reader, size_px, 0
        self._rng = np.random.default_rng(seed)
        self._held = {
            raster: np.array(sorted(g for r, g in held_out if r == raster), np.int64) for raster, _ in held_out
        }
        self._classes = sorted({site.class_index for site in sites})
        self._sites = {c: [site for site in sites if site.class_index == c] for c in self._classes}
        roots = {c: np.sqrt([site.pixels for site in own]) for c, own in self._sites.items()}
        self._odds = {c: root / root.sum() for c, root in roots.items()}
        self._few, self._windows = few, self._find_windows(few.windows) if few is not None else {}

    @property
    def random_state(self) -> dict[str, Any]:
        """Where the drawing is, as JSON can hold it; setting it goes on from there."""
        return {**self._rng.bit_generator.state, "drawn": self._drawn}

    @random_state.setter
    def random_state(self, state: dict[str, Any]) -> None:
        self._drawn = state["drawn"]
        self._rng.bit_generator.state = {name: value for name, value in state.items() if name != "drawn"}

    def draw(self, count: int) -> Batch:
        """So many chips, each turned at random (D4)."""
        if self._few is not None and (self._few.chips is None or self._drawn < self._few.chips):
            marks = [self._known() for _ in range(count)]
        else:
            places = [self._anywhere() for _ in range(count)]
            marks = [
                (*place, int(number)) for place, number in zip(places, self._rng.integers(0, 8, count), strict=True)
            ]
        self._drawn += count
        chips = [self._read(*mark[:3]) for mark in marks]
        turns = [mark[3] for mark in marks]
        return Batch(
            values=np.stack([turn(chip.values, n) for chip, n in zip(chips, turns, strict=True)]),
            valid=np.stack([turn(chip.valid, n) for chip, n in zip(chips, turns, strict=True)]),
            class_ids=np.stack([turn(chip.class_ids, n) for chip, n in zip(chips, turns, strict=True)]),
            taken=whereabouts_of(chips),
            marks=tuple(marks),
        )

    def _site(self) -> tuple[int, int]:
        """A class, and the position of one of its places."""
        class_index = self._classes[self._rng.integers(len(self._classes))]
        return class_index, self._rng.choice(len(self._sites[class_index]), p=self._odds[class_index])

    def _anywhere(self) -> tuple[int, int, int]:
        """Raster index, row and column of a chip."""
        class_index, at = self._site()
        site = self._sites[class_index][at]
        point = site.points[self._rng.integers(len(site.points))]
        row, col = (int(p) - int(self._rng.integers(self._size)) for p in point)
        return self._within(site.raster_index, row, col)

    def _known(self) -> tuple[int, int, int, int]:
        """Mark of one of the few windows."""
        class_index, at = self._site()
        windows = self._windows[class_index][at]
        row, col, number = windows[self._rng.integers(len(windows))].tolist()
        return *self._within(self._sites[class_index][at].raster_index, row, col), number

    def _within(self, raster_index: int, row: int, col: int) -> tuple[int, int, int]:
        rows, cols = self._reader.infos[raster_index].geobox.shape
        return raster_index, _inside(row, self._size, rows), _inside(col, self._size, cols)

    def _find_windows(self, count: int) -> dict[int, list[np.ndarray]]:
        """For each class those of its places."""
        every = [site for c in self._classes for site in self._sites[c]]
        odds = np.concatenate([self._odds[c] for c in self._classes]) / len(self._classes)
        shapes = [info.geobox.shape for info in self._reader.infos]
        points, rasters = [site.points for site in every], [site.raster_index for site in every]
        found = iter(few_windows(points, rasters, odds, shapes, self._size, count))
        return {c: [next(found) for _ in self._sites[c]] for c in self._classes}

    def _read(self, raster_index: int, row: int, col: int) -> Chip:
        """A chip, not turned, that says nothing of places that must not teach."""
        chip = self._reader.read(raster_index, row, col, self._size, self._size)
        held = self._held.get(raster_index)
        if held is not None:
            taught = ~np.isin(groups_of(chip, row, col), held)
            chip = replace(chip, class_ids=np.where(taught, chip.class_ids, IGNORE).astype(np.uint8))
        return chip


def _inside(start: int, size: int, length: int) -> int:
    """Moves a chip into the raster; centres it where the raster is smaller."""
    return (length - size) // 2 if length < size else min(max(start, 0), length - size)


def turn(array: np.ndarray, number: int) -> np.ndarray:
    """One of the eight symmetries of the square (D4) of the last two axes; 0 leaves it as it is."""
    turned = np.rot90(array, number % 4, axes=(-2, -1))
    return np.ascontiguousarray(turned[..., ::-1] if number >= 4 else turned)


def covering_chips(
    reader: ChipReader, sites: Sequence[Site], size_px: int, most: int, seed: int
) -> list[tuple[Chip, tuple[int, int, int]]]:
    """Chips on a grid that together hold the sites' pixels, labelled by nothing but these sites.

    Returns:
        At most `most` chips, drawn at random, each with its place (raster index, row, column).
    """
    wanted: dict[int, set[int]] = {}
    places: set[tuple[int, int, int]] = set()
    for site in sites:
        wanted.setdefault(site.raster_index, set()).add(site.group)
        for row, col in np.unique(site.points // size_px, axis=0):
            places.add((site.raster_index, int(row) * size_px, int(col) * size_px))
    ordered = sorted(places)
    if len(ordered) > most:
        picked = np.random.default_rng(seed).choice(len(ordered), most, replace=False)
        ordered = [ordered[index] for index in sorted(picked)]
    chips = []
    for raster_index, row, col in ordered:
        chip = reader.read(raster_index, row, col, size_px, size_px)
        groups = groups_of(chip, row, col)
        held = np.isin(groups, np.array(sorted(wanted[raster_index]), np.int64))
        class_ids = np.where(held, chip.class_ids, IGNORE).astype(np.uint8)
        chips.append((replace(chip, class_ids=class_ids), (raster_index, row, col)))
    return chips
