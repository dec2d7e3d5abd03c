"""Labels of a label raster.

Its shapes are the pixels of one class in one square cell of the raster, since a connected area may span all of it.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyproj
import rasterio.shutil
import shapely
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from geopeft.data.label_classes import IGNORE, MAX_CLASSES, ClassTable, refuse_class_count
from geopeft.data.label_lookup import LabelLookup
from geopeft.data.label_shapes import TILE_PX, LabelShape, Painted, Painter, grid_windows, row_col_size
from geopeft.data.raster import RasterInfo, apply_affine, describe, gdal_env
from geopeft.data.raster_frames import frame_bounds, move_shapes, raise_outside, transform_bounds
from geopeft.errors import LabelError, RasterError
from geopeft.events import Reporter

CELL_PX = 64
MAX_CELLS = 20_000
STORED_PX = 1 << 26  # label rasters up to this size are kept in memory as class numbers
_UNLABELLED_WORDS = frozenset(
    (
        "",
        "not labelled",
        "not labeled",
        "unlabelled",
        "unlabeled",
        "no label",
        "none",
        "nodata",
        "no data",
        "ignore",
        "ignored",
        "void",
        "unclassified",
        "not classified",
        "n/a",
        "null",
    )
)


def read_raster_labels(
    path: str, rasters: Sequence[RasterInfo], table: ClassTable, reporter: Reporter
) -> tuple[Painter, tuple[LabelShape, ...]]:
    """What paints a label raster on the grids of `rasters`, and its shapes; the classes found go into the table."""
    try:
        info = describe(path, classes=True)
    except RasterError as error:
        if error.code == "RASTER_NO_CRS":
            raise LabelError(error.message, error.hint, "LABELS_NO_CRS") from error
        raise
    names, colors = raster_classes(info)
    lookup = LabelLookup(info, rasters)
    frames = [covered(info, raster) for raster in rasters]
    if all(row1 <= row0 or col1 <= col0 for row0, col0, row1, col1 in frames):
        raise_outside(path, frame_bounds(info, 0), pyproj.CRS.from_wkt(info.crs.to_wkt()), rasters)
    counts = _value_counts(path, lookup, frames, reporter)
    for value in unlabelled_values(info, names, table.given_values):
        counts.pop(value, None)
    if not counts:
        raise LabelError(f"{path} labels no pixel of the raster.", "Check the label raster.", "LABELS_EMPTY")
    refuse_class_count(path, len(counts))
    table.learn({str(value): names.get(value, str(value)) for value in counts})
    numbers = {value: table.number(str(value), names.get(value, "")) for value in counts}
    for value, number in numbers.items():
        if number >= 0 and value in colors:
            table.field_colors.setdefault(table.value(number), colors[value])
    unlisted = {value: counts[value] for value, number in numbers.items() if number < 0}
    if unlisted:
        named = ", ".join(f"{value} ({count} pixels)" for value, count in sorted(unlisted.items())[:8])
        reporter.warn(f"Ignored values of {path} that are not among the classes in use: {named}.")
    if len(unlisted) == len(numbers):
        raise LabelError(f"{path} holds none of the classes in use.", "Check the label raster.", "LABELS_EMPTY")
    lookup.set_classes(numbers)
    return _paint_cells(lookup, rasters, frames)


def raster_classes(info: RasterInfo) -> tuple[dict[int, str], dict[int, str]]:
    """Names and colours by value: from the tag CLASSES (of the band, else the dataset), else the category names."""
    with gdal_env(sidecars=True), rasterio.open(info.path) as dataset:
        band = info.bands[0].index
        tags = {key.lower(): text for key, text in (dataset.tags() | dataset.tags(band)).items()}
        try:
            colormap = dataset.colormap(band)
        except ValueError:
            colormap = {}
        names = _parse_classes(tags.get("classes", "")) or _category_names(dataset)
    return names, {value: f"#{r:02x}{g:02x}{b:02x}" for value, (r, g, b, _) in colormap.items() if r or g or b}


def _parse_classes(text: str) -> dict[int, str]:
    """Names of values from {"1": "water"} or 1 water,2 trees (also 1: water; 2=trees)."""
    try:
        parsed = json.loads(text)
        if isinstance(parsed, dict):
            return {int(key): str(name) for key, name in parsed.items()}
    except ValueError:
        pass
    matches = [re.fullmatch(r"\s*(-?\d+)\s*[:= ]\s*(.+?)\s*", part) for part in re.split(r"[,;\n]", text)]
    return {int(match[1]): match[2] for match in matches if match}


def _category_names(dataset: Any) -> dict[int, str]:
    """GDAL's category names, which rasterio does not give: a VRT copy holds them as text."""
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "categories.vrt")
        try:
            rasterio.shutil.copy(dataset, copy, driver="VRT")
            with open(copy, encoding="utf-8") as file:
                text = file.read()
        except (RasterioError, OSError, ValueError):
            return {}
    block = re.search(r"<CategoryNames>(.*?)</CategoryNames>", text, re.DOTALL)
    names = re.findall(r"<Category>(.*?)</Category>|<Category ?/>", block[1], re.DOTALL) if block else []
    return {value: html.unescape(name) for value, name in enumerate(names) if name}


def unlabelled_values(info: RasterInfo, names: Mapping[int, str], given: set[str]) -> set[int]:
    """0, 255 and the nodata value, unless they are named as a class.

    0 is a class also where another nodata value is declared and no value has a name.
    """
    classes = {value for value, name in names.items() if name.strip().lower() not in _UNLABELLED_WORDS}
    classes |= {int(value) for value in given if re.fullmatch(r"-?\d+", value)}
    nodata = info.nodata
    out = {value for value, name in names.items() if name.strip().lower() in _UNLABELLED_WORDS} | {255}
    if nodata is not None and float(nodata).is_integer():
        out.add(int(nodata))
    if nodata is None or nodata == 0 or names:
        out.add(0)
    return out - classes


def covered(labels: RasterInfo, raster: RasterInfo) -> tuple[int, int, int, int]:
    """The rectangle of `raster` within which `labels` lies: (row0, col0, row1, col1), empty where they do not meet."""
    own, target = pyproj.CRS.from_wkt(labels.crs.to_wkt()), pyproj.CRS.from_wkt(raster.crs.to_wkt())
    left, bottom, right, top = transform_bounds(own, target, frame_bounds(labels, 1)).tolist()
    if not all(map(math.isfinite, (left, bottom, right, top))) or left > right:
        return (0, 0, raster.height, raster.width)
    corners = [apply_affine(~raster.geobox.affine, x, y) for x in (left, right) for y in (bottom, top)]
    cols, rows = zip(*corners, strict=True)
    row0, col0 = max(math.floor(min(rows)), 0), max(math.floor(min(cols)), 0)
    return (row0, col0, min(math.ceil(max(rows)), raster.height), min(math.ceil(max(cols)), raster.width))


def _value_counts(
    path: str, lookup: LabelLookup, frames: Sequence[tuple[int, int, int, int]], reporter: Reporter
) -> dict[int, int]:
    counts: Counter[int] = Counter()
    windows = [(index, window) for index, frame in enumerate(frames) for window in grid_windows(frame, TILE_PX)]
    for number, (index, window) in enumerate(windows):
        row, col, height, width = row_col_size(window)
        values, valid = lookup.values(index, row, col, row + height, col + width)
        found, times = np.unique(values[valid], return_counts=True)
        counts.update(dict(zip(found.tolist(), times.tolist(), strict=True)))
        if len(counts) > 4 * MAX_CLASSES:
            raise LabelError(
                f"{path} holds more than {4 * MAX_CLASSES} different values: it is no label raster.",
                "Choose a raster of class numbers.",
                "LABELS_NOT_CLASSES",
            )
        reporter.progress("label raster", number + 1, len(windows))
    return dict(counts)


# Shapes of its cells


@dataclass(frozen=True, eq=False)
class _Cells:
    """Numbers of the shapes of one raster: keys ((cell row * cells across + cell col) * 256 + class), sorted."""

    side_px: int
    across: int
    keys: NDArray[np.int64]
    numbers: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class _Coverage:
    """Where a label raster covers a raster: (row0, col0, row1, col1), and the class numbers there if they are kept."""

    bounds: tuple[int, int, int, int]
    classes: NDArray[np.uint8] | None


class _RasterPainter:
    """Paints a label raster."""

    def __init__(self, lookup: LabelLookup, coverage: Sequence[_Coverage], cells: Sequence[_Cells]) -> None:
        self._lookup = lookup
        self._coverage = coverage
        self._cells = cells

    def paint(self, raster_index: int, window: Window) -> Painted:
        row, col, height, width = row_col_size(window)
        shape = (height, width)
        classes = np.full(shape, IGNORE, np.uint8)
        shapes = np.full(shape, -1, np.int32)
        coverage = self._coverage[raster_index]
        row0, col0, row1, col1 = coverage.bounds
        top, left, bottom, right = max(row, row0), max(col, col0), min(row + height, row1), min(col + width, col1)
        if bottom > top and right > left:
            where = (slice(top - row, bottom - row), slice(left - col, right - col))
            if coverage.classes is not None:
                classes[where] = coverage.classes[top - row0 : bottom - row0, left - col0 : right - col0]
            else:
                classes[where] = self._lookup.classes(raster_index, top, left, bottom, right)
            shapes[where] = self._numbers(self._cells[raster_index], classes[where], top, left)
        nothing = np.zeros(shape, np.bool_)
        return Painted(classes, shapes, nothing, nothing.copy())

    @staticmethod
    def _numbers(cells: _Cells, classes: NDArray[np.uint8], top: int, left: int) -> NDArray[np.int32]:
        numbers = np.full(classes.shape, -1, np.int32)
        rows = (np.arange(classes.shape[0], dtype=np.int64) + top) // cells.side_px
        cols = (np.arange(classes.shape[1], dtype=np.int64) + left) // cells.side_px
        keys = (rows[:, None] * cells.across + cols[None, :]) * 256 + classes
        known = classes != IGNORE
        if len(cells.keys):
            numbers[known] = cells.numbers[np.searchsorted(cells.keys, keys[known])]
        return numbers


def _paint_cells(
    lookup: LabelLookup, rasters: Sequence[RasterInfo], frames: Sequence[tuple[int, int, int, int]]
) -> tuple[_RasterPainter, tuple[LabelShape, ...]]:
    pixels = sum(max(row1 - row0, 0) * max(col1 - col0, 0) for row0, col0, row1, col1 in frames)
    side = CELL_PX
    while pixels / side**2 > MAX_CELLS:
        side *= 2
    shapes: list[LabelShape] = []
    coverage, cells = [], []
    for index, (info, frame) in enumerate(zip(rasters, frames, strict=True)):
        row0, col0, row1, col1 = frame
        kept = np.full((max(row1 - row0, 0), max(col1 - col0, 0)), IGNORE, np.uint8) if pixels <= STORED_PX else None
        across = -(-info.width // side)
        keys: list[int] = []
        first = len(shapes)
        for cell in grid_windows(frame, side, aligned=True):
            row, col, height, width = row_col_size(cell)
            classes = lookup.classes(index, row, col, row + height, col + width)
            if kept is not None:
                kept[row - row0 : row - row0 + height, col - col0 : col - col0 + width] = classes
            for number in np.unique(classes[classes != IGNORE]).tolist():
                keys.append((row // side * across + col // side) * 256 + number)
                shapes.append(_cell_shape(info, index, number, classes == number, row, col))
        order = np.argsort(np.array(keys, np.int64))
        cells.append(_Cells(side, across, np.array(keys, np.int64)[order], (order + first).astype(np.int32)))
        coverage.append(_Coverage(frame, kept))
    return _RasterPainter(lookup, coverage, cells), tuple(shapes)


def _cell_shape(
    info: RasterInfo, raster_index: int, number: int, mask: NDArray[np.bool_], row: int, col: int
) -> LabelShape:
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    bounds = (row + int(rows[0]), col + int(cols[0]), row + int(rows[-1]) + 1, col + int(cols[-1]) + 1)
    box = np.array([shapely.box(bounds[1], bounds[0], bounds[3], bounds[2])], np.object_)
    return LabelShape(number, raster_index, move_shapes(info.geobox.affine, box)[0], bounds)
