"""Rasters as the classical classifier sees them, in one set of units, and the pixels of every labelled shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from geopeft.data.bands import Band, resolve_bands, select_bands
from geopeft.data.labels import IGNORE, Labels, read_labels
from geopeft.data.raster import RasterInfo, RasterReader, describe, open_raster
from geopeft.data.scattered import scattered
from geopeft.events import Reporter
from geopeft.forest import Pixels
from geopeft.job import AdviceJob
from geopeft.models.backbones import BACKBONES
from geopeft.models.choose import input_bands
from geopeft.models.spec import InputBand
from geopeft.prepare import pooled_units, whole_bands
from geopeft.texture_tiles import TILE_PX, TextureTiles, View, make_view
from geopeft.writing import whole_file

# Labelled tiles that are looked at, over all rasters: some ten seconds' work at most.
MOST_TILES = 1500
# Of a shape, or of the unlabelled pixels, tiles that are looked at.
TILES_OF_A_SHAPE, TILES_OF_BACKGROUND = 4, 100


class UnitReader(RasterReader):
    """Reads a raster in the units of the first one."""

    def __init__(self, reader: RasterReader, scale: np.ndarray, offset: np.ndarray) -> None:
        self._reader, self._scale, self._offset = reader, scale[:, None, None], offset[:, None, None]

    def read(self, window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        values, valid = self._reader.read(window)
        return np.where(valid, values * self._scale + self._offset, 0).astype(np.float32), valid


@dataclass(frozen=True, eq=False)
class Sight:
    """A raster that is open, seen at its own pixel size."""

    view: View
    reader: RasterReader

    @property
    def info(self) -> RasterInfo:
        """The raster."""
        return self.view.info


@dataclass(frozen=True, eq=False)
class Ground:
    """Rasters and labels of a job that gives advice on labels, and how the rasters come to features.

    Args:
        infos, bands, units: the rasters; for each its bands and the (scale, offset) to the first one's units.
        labels: on all of them.
        inputs: the bands with their constants.
    """

    infos: tuple[RasterInfo, ...]
    bands: tuple[tuple[Band, ...], ...]
    labels: Labels
    inputs: tuple[InputBand, ...]
    units: tuple[tuple[np.ndarray, np.ndarray], ...]


def describe_ground(job: AdviceJob, minimum_classes: int, reporter: Reporter) -> Ground:
    """Reads what is there; what the values are taken for is said.

    Raises:
        RasterError, BandError, LabelError: as `prepare.prepare`.
    """
    infos = tuple(describe(path) for path in job.rasters)
    chosen = select_bands(infos[0], job.bands) if job.bands else whole_bands(infos[0], reporter)
    bands = (chosen, *(resolve_bands(info, chosen, job.bands) for info in infos[1:]))
    labels = read_labels(
        job.labels,
        job.class_field,
        infos,
        classes=job.classes,
        background=job.background,
        area=job.area,
        line_width_px=job.line_width_px,
        minimum_classes=minimum_classes,
        reporter=reporter,
    )
    statistics, radiometry, units = pooled_units(infos, bands, job.radiometry, reporter)
    reporter.message(radiometry.sentence)
    inputs, _ = input_bands(BACKBONES["scratch_unet"], {}, chosen, statistics, radiometry)
    return Ground(infos, bands, labels, inputs, units)


@contextmanager
def open_sights(ground: Ground) -> Iterator[list[Sight]]:
    """All rasters with the same features; RasterError where one cannot be read."""
    with ExitStack() as stack:
        sights: list[Sight] = []
        for number, (info, bands, units) in enumerate(zip(ground.infos, ground.bands, ground.units, strict=True)):
            indexes = tuple(band.index for band in bands)
            reader = UnitReader(stack.enter_context(open_raster(info, indexes)), *units)
            view = make_view(f"{number} {info.fingerprint}", info, 1, ground.inputs, indexes, reader)
            if sights:
                view = replace(view, texture=sights[0].view.texture)
            sights.append(Sight(view, reader))
        yield sights


@dataclass(frozen=True, eq=False)
class ShapePixels:
    """A sample of the labelled pixels.

    Args:
        pixels: with their places, which are positions in the other two. A place is what a shape has of one class.
        shapes: (p,) the shape of each place, -1 for squares of the background.
        middles: (p, 3) raster, and mean row and column of the place's sampled pixels.
    """

    pixels: Pixels
    shapes: np.ndarray
    middles: np.ndarray


def gather_shapes(
    sights: Sequence[Sight],
    labels: Labels,
    tiles: TextureTiles,
    per_place: int,
    most_pixels: int,
    before_run: Callable[[], None],
) -> ShapePixels:
    """A sample of the pixels of every labelled shape: every class weighs the same, within it a place by its root.

    Args:
        per_place: pixels of a place at most.
        most_pixels: pixels at most; where shapes are many, fewer of each are taken.
        before_run: as in `TextureTiles.row`.
    """
    per_place = max(8, min(per_place, most_pixels // max(len(labels.shapes), 1)))
    features = [np.zeros((0, sights[0].view.texture.count), np.float32)]
    # Of each pixel: place as group * 256 + class, how many of the place its tile holds, raster, row, column.
    told = [np.zeros((0, 5), np.int64)]
    for raster, row, col in _labelled_tiles(sights, labels):
        sight = sights[raster]
        tile = tiles.row(sight.view, sight.reader, row, col, 1, before_run)[0]
        classes, shapes = labels.burn(raster, tile_window(sight.info, row, col))
        rows, cols = np.nonzero((classes != IGNORE) & tile.valid)
        # Pixels without a shape, the background, belong to their tile.
        square = -1 - ((raster * 1_000_000 + row) * 1_000_000 + col)
        keys = np.where(shapes >= 0, shapes.astype(np.int64), square)[rows, cols] * 256 + classes[rows, cols]
        kept, counts = _first_of_each(keys, scattered(rows + row * TILE_PX, cols + col * TILE_PX), per_place)
        rows, cols = rows[kept], cols[kept]
        where = np.full_like(rows, raster), rows + row * TILE_PX, cols + col * TILE_PX
        told.append(np.stack([keys[kept], counts[kept], *where], 1).astype(np.int64))
        features.append(tile.features[rows, cols].float().numpy())
    return _as_places(np.concatenate(features), np.concatenate(told), per_place)


def tile_window(info: RasterInfo, row: int, col: int) -> Window:
    """The window of a tile, cut at the raster's edges."""
    top, left = row * TILE_PX, col * TILE_PX
    return Window(left, top, min(TILE_PX, info.width - left), min(TILE_PX, info.height - top))


def _labelled_tiles(sights: Sequence[Sight], labels: Labels) -> list[tuple[int, int, int]]:
    """(raster, row, column) of tiles that hold labels; where there are too many, shapes that are drawn at random."""
    found: set[tuple[int, int, int]] = set()
    for number in np.random.default_rng(0).permutation(len(labels.shapes)).tolist():
        shape = labels.shapes[number]
        found.update((shape.raster_index, *at) for at in _some_tiles(shape.bounds_px, TILES_OF_A_SHAPE))
        if len(found) >= MOST_TILES:
            break
    if labels.background >= 0:
        for raster in range(len(sights)):
            bounds = labels.extent_px(raster)
            found.update((raster, *at) for at in _some_tiles(bounds, TILES_OF_BACKGROUND // len(sights) + 1))
    return sorted(found)


def _some_tiles(bounds_px: tuple[int, int, int, int], most: int) -> list[tuple[int, int]]:
    """About `most` of the tiles that a box touches, spread evenly."""
    row0, col0, row1, col1 = bounds_px
    rows, cols = (range(low // TILE_PX, -(-high // TILE_PX)) for low, high in ((row0, row1), (col0, col1)))
    step = max(1, math.ceil(math.sqrt(len(rows) * len(cols) / most)))
    return list(product(rows[::step], cols[::step]))


def _first_of_each(keys: np.ndarray, order: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the first `most` of each key in this order, and for every position how many its key has."""
    _, numbers, counts = np.unique(keys, return_inverse=True, return_counts=True)
    sequence = np.lexsort((order, numbers))
    rank = np.arange(len(keys)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(sequence[rank < most]), counts[numbers]


def _as_places(features: np.ndarray, told: np.ndarray, per_place: int) -> ShapePixels:
    kept, _ = _first_of_each(told[:, 0], scattered(told[:, 3], told[:, 4]), per_place)
    keys, site, taken = np.unique(told[kept, 0], return_inverse=True, return_counts=True)
    # Of each tile a place counts all its pixels, once.
    _, firsts = np.unique(told[:, [0, 2, 3, 4]] // np.array([1, 1, TILE_PX, TILE_PX]), axis=0, return_index=True)
    sizes = np.bincount(np.searchsorted(keys, told[firsts, 0]), told[firsts, 1], len(keys))
    classes, shapes = keys % 256, np.maximum(keys // 256, -1)
    weights = (np.sqrt(sizes) / taken)[site]
    weights /= np.bincount(classes[site], weights)[classes[site]]
    middles = np.stack([np.bincount(site, told[kept, at], len(keys)) / taken for at in (2, 3, 4)], 1)
    deep = np.zeros((len(kept), 0), np.float32)
    pixels = Pixels(features[kept], deep, classes[site], weights * len(kept) / max(weights.sum(), 1e-9), site)
    return ShapePixels(pixels, shapes, middles)


def in_first_crs(geometry: BaseGeometry, ground: Ground, raster_index: int) -> BaseGeometry:
    """A geometry in a raster's CRS in that of the first one."""
    source, target = ground.infos[raster_index].crs, ground.infos[0].crs
    if source == target:
        return geometry
    turn = Transformer.from_crs(source.to_wkt(), target.to_wkt(), always_xy=True)
    return shapely.transform(geometry, lambda xy: np.stack(turn.transform(xy[:, 0], xy[:, 1]), 1))


def write_places(
    path: Path, layer: str, fields: Mapping[str, type], rows: Sequence[Mapping[str, Any]], ground: Ground
) -> None:
    """Writes rows of these fields and `geometry` (in the first raster's CRS) as a GeoPackage; None is null."""
    columns, masks = [], []
    for name, kind in fields.items():
        values = [row[name] for row in rows]
        missing = np.array([value is None for value in values], np.bool_)
        empty = kind()
        dtype: Any = object if kind is str else kind
        columns.append(np.array([empty if value is None else value for value in values], dtype))
        masks.append(missing if missing.any() else None)
    geometries = np.array([_multi(row["geometry"]) for row in rows], object)
    with whole_file(path) as part:
        pyogrio.raw.write(
            part,
            shapely.to_wkb(geometries) if len(rows) else np.array([], object),
            columns,
            list(fields),
            field_mask=masks,
            layer=layer,
            driver="GPKG",
            geometry_type="MultiPolygon",
            crs=ground.infos[0].crs.to_wkt(),
        )


def _multi(geometry: BaseGeometry) -> BaseGeometry:
    """The same as a multipolygon: QGIS shows a layer of no stated kind as several, or as none where it is empty."""
    parts = shapely.get_parts(geometry)
    return shapely.MultiPolygon([part for part in parts if part.geom_type == "Polygon"])
