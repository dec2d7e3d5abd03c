"""Labels: from a vector layer or a label raster to class numbers on the pixel grid of each raster.

Only labelled pixels teach. A pixel belongs to a shape if its centre is inside; a shape that holds no centre gets the
pixel under its representative point. Pixels that shapes of two classes claim, and pixels of features whose class is
not known, are ignored (255), also where unlabelled pixels make a background class.

Vector shapes live in pixel coordinates (col, row) of each raster, so that rotated grids and line widths in pixels need
no special case. A label raster is looked up at the centre of each pixel (nearest); its shapes are the pixels of one
class in one square cell of the raster, since a connected area may span all of it.
"""

from __future__ import annotations

import colorsys
import html
import json
import math
import os
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Protocol

import numpy as np
import pyogrio
import pyproj
import rasterio.features
import rasterio.shutil
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj.exceptions import CRSError, ProjError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from geopeft.data.raster import RasterInfo, apply_affine, describe, gdal_env, open_raster, printable
from geopeft.errors import LabelError, RasterError
from geopeft.events import Reporter
from geopeft.job import ClassStyle

IGNORE = 255
MAX_CLASSES = 254
TILE_PX = 512
CELL_PX = 64
MAX_CELLS = 20_000
CACHED_MASK_PX = 1 << 18  # largest shape (of its bounding box) whose mask is kept
CACHE_PX = 1 << 26
STORED_PX = 1 << 26  # label rasters up to this size are kept in memory as class numbers
FEW_PX = 1 << 10
CENTRE = 0.5 + 1e-7  # off the edges of shapes drawn on half pixels, so that such a centre belongs to one side
LOOKUP_PX = 1 << 24  # most pixels of a label raster read at once

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
_ID_FIELDS = frozenset(("fid", "id", "gid", "ogc_fid", "objectid", "osm_id", "uuid", "uid", "pk", "ogr_fid"))
_COLOR_FIELDS = ("color", "colour")

PALETTE = (
    "#4e79a7",
    "#f28e2b",
    "#59a14f",
    "#e15759",
    "#b07aa1",
    "#edc948",
    "#76b7b2",
    "#ff9da7",
    "#9c755f",
    "#86bcb6",
    "#d37295",
    "#a0cbe8",
    "#8cd17d",
    "#b6992d",
    "#499894",
    "#fabfd2",
)
BACKGROUND_COLOR = "#c8c8c8"
_NAMED_COLORS: tuple[tuple[str, str], ...] = (
    ("#9ad0e6", "flooded flood wetland wetlands marsh swamp"),
    ("#2f7fc1", "water river lake sea ocean reservoir pond wasser"),
    ("#e8f1f8", "snow ice glacier"),
    ("#b9c0c8", "cloud clouds"),
    ("#1f7a3d", "forest forests tree trees wood woods woodland wald"),
    ("#8fbf5a", "shrub shrubs shrubland scrub bush"),
    ("#b7d66b", "grass grassland meadow pasture rangeland herbaceous low_vegetation vegetation cleared"),
    ("#e9c46a", "crop crops cropland agriculture field fields farmland arable"),
    ("#c8553d", "built building buildings urban developed roof roofs village settlement built_up city house houses"),
    ("#7d7d7d", "road roads pavement asphalt street sealed"),
    ("#c9a27e", "bare soil sand barren rock dryout sediment beach desert dry fallen_dry"),
    (BACKGROUND_COLOR, "background other rest not_tree not_water not_building"),
)


@dataclass(frozen=True)
class LabelClass:
    """A class: its value in the class field or label raster (as text), its name, and its colour #rrggbb."""

    value: str
    name: str
    color: str


@dataclass(frozen=True, eq=False)
class LabelShape:
    """A labelled place on one raster.

    Args:
        class_index: position in `Labels.classes`.
        raster_index: position in the list of rasters.
        geometry: polygon in the raster's CRS (lines and points with their width; of a label raster, the box).
        bounds_px: (row0, col0, row1, col1) inside the raster, row1 and col1 excluded.
    """

    class_index: int
    raster_index: int
    geometry: BaseGeometry
    bounds_px: tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class _Painted:
    """A window without background: class numbers, shape numbers, and what must stay unlabelled. All (h, w)."""

    classes: NDArray[np.uint8]
    shapes: NDArray[np.int32]
    clash: NDArray[np.bool_]
    blank: NDArray[np.bool_]


class _Painter(Protocol):
    def paint(self, raster_index: int, window: Window) -> _Painted: ...


class Labels:
    """Labels on the grids of some rasters. Can be pickled; reads no file unless a label raster is very large.

    Attributes:
        classes: by number; sorted by name unless they were given; the background last.
        shapes: labelled places, by shape number; background is none.
        background: number of the background class, -1 where there is none.
    """

    def __init__(
        self,
        classes: tuple[LabelClass, ...],
        shapes: tuple[LabelShape, ...],
        rasters: Sequence[RasterInfo],
        painter: _Painter,
        background: int = -1,
        areas: Sequence[_PixelShapes] | None = None,
    ) -> None:
        self.classes = classes
        self.shapes = shapes
        self.background = background
        self._sizes = [(info.height, info.width) for info in rasters]
        self._painter = painter
        self._areas = areas
        self._bounds = _bounds_by_raster(shapes, len(rasters))
        area_bounds = [area.bounds for area in areas] if areas is not None else [boxes[:0] for boxes in self._bounds]
        self._extents = [_hull(np.concatenate(pair)) for pair in zip(self._bounds, area_bounds, strict=True)]
        self._counts: list[int] | None = None
        self._clashing = 0

    def burn(self, raster_index: int, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Class numbers (h, w), 255 where nothing is known, and shape numbers (h, w), -1 where there is none.

        The window may reach beyond the raster: nothing is known there.
        """
        painted = self._painter.paint(raster_index, window)
        self._add_background(painted, raster_index, window)
        return painted.classes, painted.shapes

    def pixel_counts(self) -> list[int]:
        """Labelled pixels of each class, over all rasters."""
        if self._counts is None:
            self._count(Reporter())
        return list(self._counts or [])

    @property
    def clashing_pixels(self) -> int:
        """Pixels that shapes of two classes claim, over all rasters."""
        self.pixel_counts()
        return self._clashing

    def extent_px(self, raster_index: int) -> tuple[int, int, int, int]:
        """(row0, col0, row1, col1) that holds all labelled pixels, background too; empty where there are none.

        Without an area, all unlabelled pixels in it count as background; with one, those inside its polygons.
        """
        return self._extents[raster_index]

    def background_windows(self, raster_index: int, size_px: int) -> list[Window]:
        """Windows of `size_px` side on a grid over the extent that hold background pixels; cut at the extent's edge."""
        if self.background < 0:
            return []
        return [
            window
            for window in _grid(self.extent_px(raster_index), size_px)
            if (self.burn(raster_index, window)[0] == self.background).any()
        ]

    def _add_background(self, painted: _Painted, raster_index: int, window: Window) -> None:
        if self.background < 0:
            return
        row, col, height, width = _ints(window)
        top, left, bottom, right = self.extent_px(raster_index)
        inside = np.zeros((height, width), np.bool_)
        if self._areas is None:
            inside[max(top - row, 0) : max(bottom - row, 0), max(left - col, 0) : max(right - col, 0)] = True
        else:
            for _, where, mask in self._areas[raster_index].masks(window):
                inside[where] |= mask
        inside &= (painted.classes == IGNORE) & ~painted.clash & ~painted.blank
        painted.classes[inside] = self.background

    def _count(self, reporter: Reporter) -> None:
        counts = np.zeros(256, np.int64)
        windows = [(index, window) for index in range(len(self._sizes)) for window in self._busy_windows(index)]
        for number, (index, window) in enumerate(windows):
            painted = self._painter.paint(index, window)
            self._add_background(painted, index, window)
            counts += np.bincount(painted.classes.ravel(), minlength=256)
            self._clashing += int(painted.clash.sum())
            reporter.progress("labels", number + 1, len(windows))
        self._counts = counts[: len(self.classes)].tolist()

    def _busy_windows(self, raster_index: int) -> list[Window]:
        """The tiles that hold shapes, or the whole extent where there is a background."""
        height, width = self._sizes[raster_index]
        top, left, bottom, right = self._extents[raster_index]
        tiles: set[tuple[int, int]] = set()
        boxes = [[top, left, bottom, right]] if self.background >= 0 else self._bounds[raster_index].tolist()
        for row0, col0, row1, col1 in boxes:
            tiles.update(
                product(range(row0 // TILE_PX, -(-row1 // TILE_PX)), range(col0 // TILE_PX, -(-col1 // TILE_PX)))
            )
        return [
            Window(col, row, min(TILE_PX, width - col), min(TILE_PX, height - row))
            for row, col in ((row * TILE_PX, col * TILE_PX) for row, col in sorted(tiles))
        ]


def read_labels(
    spec: str,
    class_field: str,
    rasters: Sequence[RasterInfo],
    *,
    classes: Sequence[ClassStyle] = (),
    background: str = "",
    area: str = "",
    line_width_px: float = 3.0,
    minimum_classes: int = 2,
    reporter: Reporter,
) -> Labels:
    """The labels of some rasters. Each feature counts on every raster it touches.

    Args:
        spec: FILE or FILE:layer of a vector layer, or a label raster.
        class_field: text or integer field; empty: `class`, else the only one there is. Not used for label rasters.
        rasters: described rasters; they may differ in CRS and grid.
        classes: values, order, names and colours; what is not among them is ignored. Empty: all values there are.
        background: name of a class made of the unlabelled pixels inside the labels' extent or the area.
        area: polygons (FILE or FILE:layer) that bound the background class.
        line_width_px: width of line labels and diameter of point labels, in pixels; at least 1 is used.
        minimum_classes: how many classes must have labelled pixels: 2 to learn, 1 to evaluate.
        reporter: told what was repaired, left out or ignored.

    Raises:
        LabelError: LABELS_MISSING, LABELS_OPEN, LABELS_LAYER, LABELS_FIELD, LABELS_NO_CRS, LABELS_OUTSIDE,
            LABELS_EMPTY, LABELS_ONE_CLASS, LABELS_MANY_CLASSES or LABELS_NOT_CLASSES.
        RasterError: the label raster is damaged.
    """
    source = _find_source(spec, class_field)
    table = _ClassTable(classes)
    painter: _Painter
    if source.layer is None:
        painter, shapes = _read_label_raster(source.path, rasters, table, reporter)
    else:
        painter, shapes = _read_vector(source, class_field, rasters, table, line_width_px, reporter)
    found = table.classes()
    number = -1
    if background:
        number = next((i for i, known in enumerate(found) if background in (known.name, known.value)), len(found))
        if number == len(found):
            found = (*found, LabelClass(background, background, table.background_color()))
    _refuse_class_count(spec, len(found))
    areas = _read_area(area, rasters, reporter) if area and background else None
    if area and not background:
        reporter.warn("The area has no effect without a background class.")
    labels = Labels(found, shapes, rasters, painter, number, areas)
    labels._count(reporter)
    _check_counts(spec, labels, minimum_classes, reporter, given=bool(classes))
    return labels


def _check_counts(spec: str, labels: Labels, minimum: int, reporter: Reporter, *, given: bool) -> None:
    counts = labels.pixel_counts()
    if labels.clashing_pixels:
        reporter.warn(
            f"{labels.clashing_pixels} pixels are claimed by labels of two classes; they are ignored. "
            "Correct the overlaps to use them."
        )
    if not sum(counts):
        raise LabelError(
            f"{spec} labels no pixel of the raster.",
            "Draw larger shapes on the raster, or correct their overlaps.",
            "LABELS_EMPTY",
        )
    absent = [known.name for known, count in zip(labels.classes, counts, strict=True) if not count]
    if len(counts) - len(absent) < minimum:
        only = next(known.name for known, count in zip(labels.classes, counts, strict=True) if count)
        raise LabelError(
            f"{spec} labels one class only: '{only}'.",
            "Draw a second class, or make the unlabelled pixels a class with --background NAME.",
            "LABELS_ONE_CLASS",
        )
    if absent:
        reporter.message(f"Without a labelled pixel here: {', '.join(absent[:12])}.", "info" if given else "warning")


# Where the labels are


@dataclass(frozen=True)
class _Source:
    """A file, and its vector layer; None: a label raster."""

    path: str
    layer: str | None
    fields: Mapping[str, str] = field(default_factory=dict)


def _find_source(spec: str, class_field: str, *, rasters: bool = True) -> _Source:
    path, layer = _split_spec(spec)
    try:
        listed = [(str(name), kind) for name, kind in pyogrio.list_layers(path).tolist()]
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ValueError, UnicodeError) as error:
        if rasters and not layer and _opens_as_raster(path):
            return _Source(path, None)
        size = " (it has 0 bytes)" if os.path.isfile(path) and os.path.getsize(path) == 0 else ""
        raise LabelError(
            f"{path} is neither a vector layer nor a raster GDAL can read{size}.",
            "Choose a layer that opens in QGIS.",
            "LABELS_OPEN",
        ) from error
    with_geometry = [name for name, kind in listed if kind is not None]
    if not with_geometry and rasters and not layer and _opens_as_raster(path):
        return _Source(path, None)
    name = _choose_layer(path, layer, with_geometry, class_field)
    if pyogrio.read_info(path, layer=name)["features"] == 0:
        raise LabelError(f"{path} has no features.", "Draw labels and save them.", "LABELS_EMPTY")
    return _Source(path, name, _fields(path, name))


def _split_spec(spec: str) -> tuple[str, str]:
    """(path, layer) of FILE or FILE:layer. A file that is called so wins; layers may hold ':'; C: is no file."""
    if not spec:
        raise LabelError("No labels are named.", "Name a label layer or a label raster.", "LABELS_MISSING")
    if printable(spec) != spec:
        message = f"The path {printable(spec)} holds bytes that are no text."
        raise LabelError(message, "Rename the file or folder.", "PATH_ENCODING")
    if os.path.exists(spec):
        return spec, ""
    for position in range(len(spec) - 1, 1, -1):
        if spec[position] == ":" and os.path.exists(spec[:position]):
            return spec[:position], spec[position + 1 :]
    if spec.startswith("/vsi"):
        return spec, ""
    raise LabelError(f"There are no labels at '{spec}'.", "Check the path; a layer is FILE:layer.", "LABELS_MISSING")


def _opens_as_raster(path: str) -> bool:
    try:
        with gdal_env(), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as dataset:
                return bool(dataset.count)
    except (RasterioError, OSError, ValueError):
        return False


def _choose_layer(path: str, wanted: str, layers: Sequence[str], class_field: str) -> str:
    if wanted:
        exact = [name for name in layers if name == wanted] or [n for n in layers if n.lower() == wanted.lower()]
        if exact:
            return exact[0]
        raise LabelError(
            f"{path} has no layer '{wanted}' with geometries.",
            f"It has: {', '.join(layers) or 'none'}.",
            "LABELS_LAYER",
        )
    if not layers:
        raise LabelError(f"{path} has no layer with geometries.", "Choose another file.", "LABELS_LAYER")
    if len(layers) == 1:
        return layers[0]
    field_name = (class_field or "class").lower()
    fitting = [name for name in layers if field_name in map(str.lower, _fields(path, name))]
    if len(fitting) == 1:
        return fitting[0]
    raise LabelError(
        f"{path} has several layers: {', '.join(layers)}.",
        f"Name one: {path}:{(fitting or layers)[0]}.",
        "LABELS_LAYER",
    )


def _fields(path: str, layer: str) -> dict[str, str]:
    """Field names and their kinds: text, integer, number, bool or other."""
    info = pyogrio.read_info(path, layer=layer)
    kinds = {}
    for name, dtype, ogr in zip(info["fields"], info["dtypes"], info["ogr_types"], strict=True):
        kind = {"i": "integer", "u": "integer", "f": "number", "b": "bool"}.get(_dtype_kind(str(dtype)), "other")
        kinds[str(name)] = "text" if ogr == "OFTString" else kind
    return kinds


def _dtype_kind(name: str) -> str:
    try:
        return np.dtype(name).kind
    except TypeError:
        return "O"


# The classes


class _ClassTable:
    """Turns values of the class field into class numbers."""

    def __init__(self, given: Sequence[ClassStyle]) -> None:
        self._given = tuple(given)
        self._rows = [LabelClass(style.value, style.name, style.color) for style in given]
        self.field_colors: dict[str, str] = {}

    @property
    def given_values(self) -> set[str]:
        return {style.value for style in self._given}

    def learn(self, named: Mapping[str, str]) -> None:
        """Takes the classes (value -> name) from the labels where none were given."""
        if not self._given:
            rows = [LabelClass(value, name, "") for value, name in named.items()]
            self._rows = sorted(rows, key=lambda row: (*_natural(row.name), row.value))

    def number(self, value: str, name: str = "") -> int:
        """Number of the class with this value, else with this name; -1 where there is none."""
        for key in ("value", "name"):
            for wanted in (value, name):
                hits = [i for i, row in enumerate(self._rows) if wanted and getattr(row, key) == wanted]
                if hits:
                    return hits[0]
        return -1

    def value(self, number: int) -> str:
        return self._rows[number].value

    def classes(self) -> tuple[LabelClass, ...]:
        colors: list[str] = []
        for row in self._rows:
            colors.append(self.field_colors.get(row.value) or row.color or "")
        for position, row in enumerate(self._rows):
            if not colors[position]:
                colors[position] = choose_color(row.name, colors)
        return tuple(replace(row, color=color.lower()) for row, color in zip(self._rows, colors, strict=True))

    def background_color(self) -> str:
        used = [row.color for row in self.classes()]
        return BACKGROUND_COLOR if BACKGROUND_COLOR not in used else choose_color("", used)


def choose_color(name: str, used: Sequence[str]) -> str:
    """A colour for a class: by what its name means, else the next of the palette that is not in use."""
    words = [name.lower().replace(" ", "_").replace("-", "_"), *re.findall(r"[^\W\d_]+", name.lower())]
    if {"not", "non", "no"} & set(words):
        words = ["background"]
    for word in words:
        for color, meanings in _NAMED_COLORS:
            if word in meanings.split() and color not in used:
                return color
    for color in PALETTE:
        if color not in used:
            return color
    hue = len(used) * 0.618034 % 1
    red, green, blue = colorsys.hls_to_rgb(hue, 0.45 + 0.15 * (len(used) % 3), 0.55)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def _natural(text: str) -> tuple[int, float, str]:
    """Sorts numbers by size and before words."""
    return (0, float(text), "") if re.fullmatch(r"-?\d+", text) else (1, 0.0, text)


def _refuse_class_count(spec: str, count: int) -> None:
    if count > MAX_CLASSES:
        raise LabelError(
            f"{spec} has {count} classes; at most {MAX_CLASSES} are possible.",
            "Check that the class field holds classes, not numbers of features.",
            "LABELS_MANY_CLASSES",
        )


# Shapes in pixel coordinates


class _PixelShapes:
    """Polygons in the pixel coordinates (col, row) of one raster, and their masks on its grid."""

    def __init__(self, geometries: NDArray[np.object_], bounds: NDArray[np.int64], size: tuple[int, int]) -> None:
        self.geometries = geometries
        self.bounds = bounds
        self.size = size
        boxes = shapely.box(bounds[:, 1], bounds[:, 0], bounds[:, 3], bounds[:, 2]) if len(bounds) else []
        self._tree = shapely.STRtree(boxes)
        self._cache: dict[int, NDArray[np.bool_]] = {}
        self._cached_px = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}, "_cached_px": 0}

    def masks(self, window: Window) -> Iterator[tuple[int, tuple[slice, slice], NDArray[np.bool_]]]:
        """(shape, where in the window, which of those pixels) of each shape that touches it, by rising number."""
        row, col, height, width = _ints(window)
        touching = np.sort(self._tree.query(shapely.box(col, row, col + width, row + height)))
        for number in touching.tolist():
            row0, col0, row1, col1 = self.bounds[number].tolist()
            top, left = max(row, row0), max(col, col0)
            bottom, right = min(row + height, row1), min(col + width, col1)
            if bottom <= top or right <= left:
                continue
            where = (slice(top - row, bottom - row), slice(left - col, right - col))
            if (row1 - row0) * (col1 - col0) <= CACHED_MASK_PX:
                whole = self._whole(number)
                yield number, where, whole[top - row0 : bottom - row0, left - col0 : right - col0]
            else:
                yield number, where, _rasterize(self.geometries[number], top, left, bottom, right)

    def _whole(self, number: int) -> NDArray[np.bool_]:
        mask = self._cache.get(number)
        if mask is None:
            row0, col0, row1, col1 = self.bounds[number].tolist()
            mask = _rasterize(self.geometries[number], row0, col0, row1, col1)
            if not mask.any():
                inside = shapely.clip_by_rect(self.geometries[number], 0, 0, self.size[1], self.size[0])
                point = shapely.point_on_surface(inside if not inside.is_empty else self.geometries[number])
                row = min(max(math.floor(point.y), row0), row1 - 1)
                col = min(max(math.floor(point.x), col0), col1 - 1)
                mask[row - row0, col - col0] = True
            if self._cached_px + mask.size > CACHE_PX:
                self._cache, self._cached_px = {}, 0
            self._cache[number] = mask
            self._cached_px += mask.size
        return mask


def _rasterize(geometry: BaseGeometry, top: int, left: int, bottom: int, right: int) -> NDArray[np.bool_]:
    """Pixels whose centre is inside, of a rectangle of the grid. Of shapes that share an edge, one gets its centres."""
    if (bottom - top) * (right - left) <= FEW_PX:
        # GDAL takes 0.3 ms to begin: with many small labels that is most of the time.
        shapely.prepare(geometry)
        cols, rows = np.meshgrid(np.arange(left, right) + CENTRE, np.arange(top, bottom) + CENTRE)
        return np.asarray(shapely.contains_xy(geometry, cols, rows), np.bool_)
    # Cut first: turning all the vertices of a country's outline into a mapping takes longer than burning a window.
    near = shapely.clip_by_rect(geometry, left - 1, top - 1, right + 1, bottom + 1)
    if near.is_empty:
        return np.zeros((bottom - top, right - left), np.bool_)
    burned = rasterio.features.rasterize(
        [(near, 1)], out_shape=(bottom - top, right - left), transform=Affine.translation(left, top), dtype="uint8"
    )
    mask: NDArray[np.bool_] = burned.astype(np.bool_)
    return mask


class _VectorPainter:
    """Paints the shapes of a vector layer."""

    def __init__(
        self,
        placed: Sequence[_PixelShapes],
        numbers: Sequence[NDArray[np.int64]],
        blanks: Sequence[_PixelShapes],
    ) -> None:
        self._placed = placed
        self._numbers = numbers
        self._blanks = blanks
        self._first = np.cumsum([0, *(len(classes) for classes in numbers)]).tolist()

    def paint(self, raster_index: int, window: Window) -> _Painted:
        shape = (int(window.height), int(window.width))
        out = _Painted(
            np.full(shape, IGNORE, np.uint8),
            np.full(shape, -1, np.int32),
            np.zeros(shape, np.bool_),
            np.zeros(shape, np.bool_),
        )
        classes = self._numbers[raster_index]
        for number, where, mask in self._placed[raster_index].masks(window):
            there, index = out.classes[where], classes[number]
            free = there == IGNORE
            out.clash[where] |= mask & ~free & (there != index)
            there[mask & free] = index
            out.shapes[where][mask & free] = self._first[raster_index] + number
        out.classes[out.clash] = IGNORE
        out.shapes[out.clash] = -1
        for _, where, mask in self._blanks[raster_index].masks(window):
            out.blank[where] |= mask
        return out


# Vector layers


@dataclass(frozen=True, eq=False)
class _Features:
    """Valid geometries of a layer, with their numbers in the file."""

    geometries: NDArray[np.object_]
    fids: NDArray[np.int64]
    crs: pyproj.CRS
    columns: Mapping[str, NDArray[Any]]

    def only(self, keep: NDArray[np.bool_]) -> _Features:
        columns = {name: column[keep] for name, column in self.columns.items()}
        return _Features(self.geometries[keep], self.fids[keep], self.crs, columns)


def _read_vector(
    source: _Source,
    class_field: str,
    rasters: Sequence[RasterInfo],
    table: _ClassTable,
    line_width_px: float,
    reporter: Reporter,
) -> tuple[_Painter, tuple[LabelShape, ...]]:
    name = _choose_field(source, class_field)
    color_field = next((f for f, kind in source.fields.items() if f.lower() in _COLOR_FIELDS and kind == "text"), None)
    features = _load(source, [name, color_field] if color_field and color_field != name else [name], reporter)
    values = _class_values(features.columns[name], source, name, reporter)
    placed, members = _place_all(features, rasters, max(line_width_px, 1.0))
    _report_outside(source, features, placed, members, rasters, reporter)
    here = {values[i] for numbers in members for i in numbers.tolist()} - {None}
    _refuse_class_count(source.path, len(here))
    table.learn({value: value for value in here if value is not None})
    if color_field in features.columns and color_field is not None:
        _take_colors(table, values, features.columns[color_field])
    by_value = {value: table.number(value) for value in here if value is not None}
    classes = np.array([by_value.get(value, -1) if value is not None else -1 for value in values], np.int64)
    _report_unlisted(values, classes, here, reporter)
    known = [_some_of(shapes, classes[numbers] >= 0) for shapes, numbers in zip(placed, members, strict=True)]
    blanks = [_some_of(shapes, classes[numbers] < 0) for shapes, numbers in zip(placed, members, strict=True)]
    numbers = [classes[part][classes[part] >= 0] for part in members]
    if not sum(map(len, numbers)):
        raise LabelError(
            f"No feature of {source.path} on the raster has a usable class in '{name}'.",
            "Fill the class field, or choose another one.",
            "LABELS_EMPTY",
        )
    return _VectorPainter(known, numbers, blanks), _shapes(rasters, known, numbers)


def _some_of(shapes: _PixelShapes, keep: NDArray[np.bool_]) -> _PixelShapes:
    """Some of the shapes of one raster."""
    return _PixelShapes(shapes.geometries[keep], shapes.bounds[keep], shapes.size)


def _shapes(
    rasters: Sequence[RasterInfo], placed: Sequence[_PixelShapes], numbers: Sequence[NDArray[np.int64]]
) -> tuple[LabelShape, ...]:
    out: list[LabelShape] = []
    for index, (info, shapes, classes) in enumerate(zip(rasters, placed, numbers, strict=True)):
        on_ground = _apply(info.geobox.affine, shapes.geometries)
        for geometry, bounds, number in zip(on_ground, shapes.bounds.tolist(), classes.tolist(), strict=True):
            out.append(LabelShape(number, index, geometry, tuple(bounds)))
    return tuple(out)


def _choose_field(source: _Source, wanted: str) -> str:
    listed = ", ".join(source.fields) or "none"
    for name in [wanted] if wanted else ["class"]:
        exact = [f for f in source.fields if f == name] or [f for f in source.fields if f.lower() == name.lower()]
        if exact and source.fields[exact[0]] != "other":
            return exact[0]
        if wanted:
            what = "is neither text nor a number" if exact else "is not there"
            message = f"The class field '{wanted}' {what} in {source.path}."
            raise LabelError(message, f"Fields: {listed}.", "LABELS_FIELD")
    usable = [f for f, kind in source.fields.items() if kind in ("text", "integer") and f.lower() not in _COLOR_FIELDS]
    for candidates in ([f for f in usable if f.lower() not in _ID_FIELDS], usable):
        if len(candidates) == 1:
            return candidates[0]
    message = f"It is not clear which field of {source.path} holds the class."
    if not usable:
        message = f"No field of {source.path} can hold a class: it has to be text or integer."
    raise LabelError(message, f"Name it: {listed}." if usable else f"Fields: {listed}.", "LABELS_FIELD")


def _load(source: _Source, columns: Sequence[str], reporter: Reporter) -> _Features:
    """The features of a layer that can be used; what had to be repaired or left out is said."""
    try:
        meta, fids, blobs, data = pyogrio.raw.read(
            source.path, layer=source.layer, columns=list(columns), force_2d=True, return_fids=True
        )
    except (
        pyogrio.errors.DataSourceError,
        pyogrio.errors.FeatureError,
        pyogrio.errors.GeometryError,
        ValueError,
        RuntimeError,
    ) as error:
        raise LabelError(f"{source.path} cannot be read: {error}.", "Export the layer again.", "LABELS_OPEN") from error
    crs = _label_crs(source.path, meta["crs"])
    named = {str(name): column for name, column in zip(meta["fields"], data, strict=True)}
    with np.errstate(invalid="ignore"):  # coordinates that are no numbers are looked for in _repair
        geometries = np.asarray(shapely.from_wkb(blobs, on_invalid="ignore"), np.object_).reshape(-1)
    features = _Features(geometries, np.asarray(fids, np.int64), crs, named)
    return _repair(features, source.path, reporter)


def _label_crs(path: str, text: str | None) -> pyproj.CRS:
    hint = "Set its CRS (Layer > Set CRS of Layer(s)), then save it again."
    if not text:
        raise LabelError(f"{path} has no coordinate reference system.", hint, "LABELS_NO_CRS")
    try:
        crs = pyproj.CRS.from_user_input(text)
    except CRSError as error:
        raise LabelError(f"The coordinate reference system of {path} is not known.", hint, "LABELS_NO_CRS") from error
    if not (crs.is_projected or crs.is_geographic or crs.is_bound):
        raise LabelError(f"{path} has a local coordinate system only: {crs.name}.", hint, "LABELS_NO_CRS")
    return crs


def _repair(features: _Features, path: str, reporter: Reporter) -> _Features:
    geometries = features.geometries.copy()
    empty = shapely.is_missing(geometries) | shapely.is_empty(geometries)
    coordinates, owner = shapely.get_coordinates(geometries, return_index=True)
    broken = np.zeros(len(geometries), np.bool_)
    broken[owner[~np.isfinite(coordinates).all(axis=1)]] = True
    invalid = ~empty & ~broken & ~shapely.is_valid(geometries)
    for at in np.flatnonzero(invalid).tolist():
        geometries[at] = _make_valid(geometries[at])
    lost = broken | (invalid & (shapely.is_missing(geometries) | shapely.is_empty(geometries)))
    repaired = invalid & ~lost
    if repaired.any():
        reporter.message(f"Repaired the geometry of {_named(features.fids[repaired])} in {path}.")
    if lost.any():
        reporter.warn(f"Left out {_named(features.fids[lost])} of {path}: the geometry cannot be repaired.")
    if empty.any():
        reporter.warn(f"Left out {_named(features.fids[empty])} of {path}: no geometry.")
    good = ~(empty | lost)
    if not good.any():
        raise LabelError(f"No feature of {path} has a usable geometry.", "Draw the labels again.", "LABELS_EMPTY")
    return replace(features, geometries=geometries).only(good)


def _make_valid(geometry: BaseGeometry) -> BaseGeometry | None:
    """The same area as a valid geometry: the structure method keeps overlapping parts, which others drop."""
    try:
        return shapely.make_valid(geometry, method="structure", keep_collapsed=False)
    except shapely.errors.GEOSException:
        return None


def _named(fids: NDArray[np.int64]) -> str:
    listed = ", ".join(str(fid) for fid in fids[:10].tolist())
    return f"{len(fids)} feature{'s' if len(fids) > 1 else ''} (fid {listed}{', ...' if len(fids) > 10 else ''})"


def _class_values(column: NDArray[Any], source: _Source, name: str, reporter: Reporter) -> list[str | None]:
    """The class of each feature as text; None where there is none."""
    values = [_class_value(value) for value in column.tolist()]
    nulls = sum(value == "" for value in values)
    odd = sum(value is None for value in values)
    if nulls:
        reporter.warn(f"{nulls} features of {source.path} have no class in '{name}'; they are left out.")
    if odd:
        reporter.warn(f"{odd} features of {source.path} have a fraction as class in '{name}'; they are left out.")
    return [value or None for value in values]


def _class_value(value: object) -> str | None:
    """Text of a class value, "" for none, None for what cannot be a class."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else None
    return str(value).strip()


def _take_colors(table: _ClassTable, values: Sequence[str | None], column: NDArray[Any]) -> None:
    for value, color in zip(values, column.tolist(), strict=True):
        if value and isinstance(color, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", color.strip()):
            row = table.number(value)
            if row >= 0:
                table.field_colors.setdefault(table.value(row), color.strip())


def _report_unlisted(
    values: Sequence[str | None], classes: NDArray[np.int64], here: set[str | None], reporter: Reporter
) -> None:
    unlisted = Counter(v for v, number in zip(values, classes.tolist(), strict=True) if v in here and number < 0 and v)
    if unlisted:
        named = ", ".join(f"'{value}' ({count})" for value, count in unlisted.most_common(8))
        reporter.warn(f"Left out features whose class is not among the classes in use: {named}.")


# From the layer's CRS to each raster's pixels


def _place_all(
    features: _Features, rasters: Sequence[RasterInfo], line_width_px: float
) -> tuple[list[_PixelShapes], list[NDArray[np.int64]]]:
    """For each raster the shapes that touch it, and which features they are."""
    placed, members = [], []
    for info in rasters:
        shapes, numbers = _place(features, info, line_width_px)
        placed.append(shapes)
        members.append(numbers)
    return placed, members


def _place(features: _Features, info: RasterInfo, line_width_px: float) -> tuple[_PixelShapes, NDArray[np.int64]]:
    size = (info.height, info.width)
    numbers, on_ground = _near_raster(features, info, line_width_px)
    pixels = _apply(~info.geobox.affine, on_ground)
    for at, geometry in enumerate(pixels):
        pixels[at] = _as_polygons(geometry, line_width_px / 2)
    keep = np.array([geometry is not None for geometry in pixels], np.bool_)
    pixels, numbers = pixels[keep], numbers[keep]
    frame = shapely.box(0, 0, info.width, info.height)
    shapely.prepare(frame)
    hit = shapely.intersects(frame, pixels) & ~shapely.touches(frame, pixels)
    pixels, numbers = pixels[hit], numbers[hit]
    bounds = shapely.bounds(pixels).reshape(-1, 4)
    low = np.floor(np.maximum(bounds[:, [1, 0]], 0)).astype(np.int64)
    high = np.ceil(np.minimum(bounds[:, [3, 2]], size)).astype(np.int64)
    return _PixelShapes(pixels, np.hstack([low, np.maximum(high, low + 1)]), size), numbers


def _near_raster(
    features: _Features, info: RasterInfo, line_width_px: float
) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    """The features whose box meets the raster's, in the raster's CRS, with long edges bent as the CRS asks."""
    target = pyproj.CRS.from_wkt(info.crs.to_wkt())
    same = bool(features.crs.equals(target, ignore_axis_order=True))
    box = _frame_bounds(info, line_width_px + 1)
    if not same:
        box = _transform_bounds(target, features.crs, box)
    bounds = shapely.bounds(features.geometries)
    near = np.ones(len(bounds), np.bool_)
    if np.isfinite(box).all() and box[0] <= box[2]:
        near = (bounds[:, 0] <= box[2]) & (bounds[:, 2] >= box[0]) & (bounds[:, 1] <= box[3]) & (bounds[:, 3] >= box[1])
    numbers = np.flatnonzero(near)
    geometries = features.geometries[near].copy()
    if same or not len(geometries):
        return numbers, geometries
    geometries = _cut_far(geometries, bounds[near], box)
    step = max(box[2] - box[0], box[3] - box[1]) / 256 if np.isfinite(box).all() and box[2] > box[0] else 1.0
    geometries = shapely.segmentize(geometries, step)
    geometries = _transform(features.crs, target, geometries)
    finite = np.isfinite(shapely.bounds(geometries)).all(axis=1)
    return numbers[finite], geometries[finite]


def _cut_far(
    geometries: NDArray[np.object_], bounds: NDArray[np.float64], box: NDArray[np.float64]
) -> NDArray[np.object_]:
    """Cuts shapes that reach far beyond the raster (a country, the world), which may leave the CRS's domain."""
    if not np.isfinite(box).all() or box[0] >= box[2]:
        return geometries
    size = np.array([box[2] - box[0], box[3] - box[1]])
    low, high = box[:2] - size, box[2:] + size
    far = (bounds[:, :2] < low).any(axis=1) | (bounds[:, 2:] > high).any(axis=1)
    geometries[far] = shapely.intersection(geometries[far], shapely.box(*low, *high))
    return geometries


def _as_polygons(geometry: BaseGeometry, half_width_px: float) -> BaseGeometry | None:
    """Polygons as they are, lines and points with their width, collections part by part; None where nothing is left."""
    if geometry.geom_type == "GeometryCollection":
        parts = [_as_polygons(part, half_width_px) for part in geometry.geoms]
        geometry = shapely.union_all([part for part in parts if part is not None])
    elif geometry.geom_type not in ("Polygon", "MultiPolygon"):
        geometry = shapely.buffer(geometry, half_width_px)
    if not geometry.is_valid:
        repaired = _make_valid(geometry)
        if repaired is None:
            return None
        geometry = repaired
    return None if geometry.is_empty or geometry.area == 0 else geometry


def _frame_bounds(info: RasterInfo, pad_px: float) -> NDArray[np.float64]:
    """(left, bottom, right, top) of the raster in its CRS, padded."""
    affine = info.geobox.affine
    xs, ys = zip(
        *(
            apply_affine(affine, col, row)
            for col in (-pad_px, info.width + pad_px)
            for row in (-pad_px, info.height + pad_px)
        ),
        strict=True,
    )
    return np.array([min(xs), min(ys), max(xs), max(ys)], np.float64)


def _transform_bounds(source: pyproj.CRS, target: pyproj.CRS, box: NDArray[np.float64]) -> NDArray[np.float64]:
    try:
        transformer = pyproj.Transformer.from_crs(source, target, always_xy=True)
        left, bottom, right, top = box.tolist()
        return np.array(transformer.transform_bounds(left, bottom, right, top, densify_pts=21), np.float64)
    except ProjError:
        return np.full(4, np.inf)


def _transform(source: pyproj.CRS, target: pyproj.CRS, geometries: NDArray[np.object_]) -> NDArray[np.object_]:
    transformer = pyproj.Transformer.from_crs(source, target, always_xy=True)

    def moved(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[Any, Any]:
        return transformer.transform(x, y)

    return np.asarray(shapely.transform(geometries, moved, interleaved=False), np.object_)


def _apply(affine: Affine, geometries: NDArray[np.object_]) -> NDArray[np.object_]:
    a, b, c, d, e, f = affine[:6]
    matrix = np.array([[a, b], [d, e]])
    return np.asarray(shapely.transform(geometries, lambda xy: xy @ matrix.T + (c, f)), np.object_)


def _report_outside(
    source: _Source,
    features: _Features,
    placed: Sequence[_PixelShapes],
    members: Sequence[NDArray[np.int64]],
    rasters: Sequence[RasterInfo],
    reporter: Reporter,
) -> None:
    inside = np.unique(np.concatenate(members)) if members else np.zeros(0)
    outside = len(features.geometries) - len(inside)
    if not len(inside):
        _raise_outside(source.path, shapely.total_bounds(features.geometries), features.crs, rasters)
    if outside:
        reporter.warn(f"{outside} features of {source.path} lie outside the raster{'s' * (len(rasters) > 1)}.")


def _raise_outside(path: str, bounds: NDArray[np.float64], crs: pyproj.CRS, rasters: Sequence[RasterInfo]) -> None:
    distances = [_distance_m(bounds, crs, info) for info in rasters]
    nearest = min((d for d in distances if math.isfinite(d)), default=math.inf)
    where = f"about {nearest / 1000:,.3g} km away" if math.isfinite(nearest) else "at coordinates its CRS does not have"
    raster_crs = " or ".join(dict.fromkeys(pyproj.CRS.from_wkt(info.crs.to_wkt()).name for info in rasters))
    raise LabelError(
        f"The labels of {path} lie outside the raster{'s' * (len(rasters) > 1)}, {where} "
        f"(labels: {crs.name}; raster: {raster_crs}).",
        "Choose the raster that the labels were drawn on; or the layer may have the wrong CRS assigned.",
        "LABELS_OUTSIDE",
    )


def _distance_m(bounds: NDArray[np.float64], crs: pyproj.CRS, info: RasterInfo) -> float:
    """Metres between the boxes of labels and raster; infinite where the labels have no place on the globe."""
    degrees = pyproj.CRS.from_epsg(4326)
    labels = _transform_bounds(crs, degrees, bounds)
    raster = _transform_bounds(pyproj.CRS.from_wkt(info.crs.to_wkt()), degrees, _frame_bounds(info, 0))
    if not (np.isfinite(labels).all() and np.isfinite(raster).all() and abs(labels[[1, 3]]).max() <= 90):
        return math.inf

    def nearest(axis: int) -> tuple[float, float]:
        if labels[axis] > raster[axis + 2]:
            return float(labels[axis]), float(raster[axis + 2])
        if labels[axis + 2] < raster[axis]:
            return float(labels[axis + 2]), float(raster[axis])
        shared = float(max(labels[axis], raster[axis]))
        return shared, shared

    (lon0, lon1), (lat0, lat1) = nearest(0), nearest(1)
    return float(pyproj.Geod(ellps="WGS84").inv(lon0, lat0, lon1, lat1)[2])


def _read_area(spec: str, rasters: Sequence[RasterInfo], reporter: Reporter) -> list[_PixelShapes]:
    source = _find_source(spec, "", rasters=False)
    features = _load(source, [], reporter)
    features = features.only(np.isin(shapely.get_type_id(features.geometries), (3, 6)))
    if not len(features.geometries):
        raise LabelError(f"The area {spec} holds no polygons.", "Draw the area as polygons.", "LABELS_EMPTY")
    placed, members = _place_all(features, rasters, 1.0)
    if not sum(map(len, members)):
        _raise_outside(spec, shapely.total_bounds(features.geometries), features.crs, rasters)
    return placed


# Label rasters


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

    def __init__(self, lookup: _LabelLookup, coverage: Sequence[_Coverage], cells: Sequence[_Cells]) -> None:
        self._lookup = lookup
        self._coverage = coverage
        self._cells = cells

    def paint(self, raster_index: int, window: Window) -> _Painted:
        row, col, height, width = _ints(window)
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
        return _Painted(classes, shapes, nothing, nothing.copy())

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


class _LabelLookup:
    """Values of a label raster at the pixel centres of other rasters (nearest)."""

    def __init__(self, info: RasterInfo, rasters: Sequence[RasterInfo]) -> None:
        self._info = replace(info, nodatas=(None,) * len(info.bands))
        self._affines = [raster.geobox.affine for raster in rasters]
        self._wkts = [raster.crs.to_wkt() for raster in rasters]
        own = pyproj.CRS.from_wkt(info.crs.to_wkt())
        self._same = [bool(own.equals(pyproj.CRS.from_wkt(wkt), ignore_axis_order=True)) for wkt in self._wkts]
        self._values: NDArray[np.int64] = np.zeros(0, np.int64)
        self._numbers: NDArray[np.uint8] = np.zeros(0, np.uint8)

    def set_classes(self, numbers: Mapping[int, int]) -> None:
        """Which class each value is; other values are unlabelled."""
        known = sorted(value for value, number in numbers.items() if number >= 0)
        self._values = np.array(known, np.int64)
        self._numbers = np.array([numbers[value] for value in known], np.uint8)

    def classes(self, raster_index: int, top: int, left: int, bottom: int, right: int) -> NDArray[np.uint8]:
        values, valid = self.values(raster_index, top, left, bottom, right)
        at = np.minimum(np.searchsorted(self._values, values), len(self._values) - 1)
        known = valid & (self._values[at] == values)
        return np.where(known, self._numbers[at], IGNORE).astype(np.uint8)

    def values(
        self, raster_index: int, top: int, left: int, bottom: int, right: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Values and whether there are any, (h, w), of a rectangle of a raster's grid."""
        rows, cols = self._positions(raster_index, top, left, bottom, right)
        inside = (rows >= 0) & (rows < self._info.height) & (cols >= 0) & (cols < self._info.width)
        if not inside.any():
            return np.zeros(inside.shape, np.int64), inside
        row0, row1 = int(rows[inside].min()), int(rows[inside].max()) + 1
        col0, col1 = int(cols[inside].min()), int(cols[inside].max()) + 1
        if (row1 - row0) * (col1 - col0) > LOOKUP_PX and max(bottom - top, right - left) > 1:
            return self._in_halves(raster_index, top, left, bottom, right)
        with open_raster(self._info, [self._info.bands[0].index]) as reader:
            native, good = reader.read_native(Window(col0, row0, col1 - col0, row1 - row0))
        whole = _whole_numbers(native[0], good[0], self._info.path)
        rows, cols = np.clip(rows - row0, 0, row1 - row0 - 1), np.clip(cols - col0, 0, col1 - col0 - 1)
        return whole[rows, cols], inside & good[0][rows, cols]

    def _in_halves(
        self, raster_index: int, top: int, left: int, bottom: int, right: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        if bottom - top >= right - left:
            middle, axis = (top + bottom) // 2, 0
            halves = ((top, left, middle, right), (middle, left, bottom, right))
        else:
            middle, axis = (left + right) // 2, 1
            halves = ((top, left, bottom, middle), (top, middle, bottom, right))
        parts = [self.values(raster_index, *half) for half in halves]
        return np.concatenate([p[0] for p in parts], axis=axis), np.concatenate([p[1] for p in parts], axis=axis)

    def _positions(
        self, raster_index: int, top: int, left: int, bottom: int, right: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(rows, cols) in the label raster of the pixel centres of a rectangle, each (h, w)."""
        col, row = np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5)
        x, y = apply_affine(self._affines[raster_index], col, row)
        if not self._same[raster_index]:
            to_own = pyproj.Transformer.from_crs(self._wkts[raster_index], self._info.crs.to_wkt(), always_xy=True)
            x, y = to_own.transform(x, y)
        col, row = apply_affine(~self._info.geobox.affine, x, y)
        # A centre may fall on the edge of two finer pixels: the nudge makes the choice the same everywhere.
        rows, cols = np.floor(row + 1e-6), np.floor(col + 1e-6)
        far = ~(np.isfinite(rows) & np.isfinite(cols))
        rows[far], cols[far] = -1, -1
        return rows.astype(np.int64), cols.astype(np.int64)


def _whole_numbers(values: NDArray[Any], good: NDArray[np.bool_], path: str) -> NDArray[np.int64]:
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    if (values[good] != np.floor(values[good])).any():
        odd = float(values[good][values[good] != np.floor(values[good])][0])
        raise LabelError(
            f"{path} holds fractions such as {odd:g}: it is no label raster.",
            "Choose a raster of class numbers.",
            "LABELS_NOT_CLASSES",
        )
    return np.where(good, values, 0).astype(np.int64)


def _read_label_raster(
    path: str, rasters: Sequence[RasterInfo], table: _ClassTable, reporter: Reporter
) -> tuple[_Painter, tuple[LabelShape, ...]]:
    try:
        info = describe(path, classes=True)
    except RasterError as error:
        if error.code == "RASTER_NO_CRS":
            raise LabelError(error.message, error.hint, "LABELS_NO_CRS") from error
        raise
    names, colors = _raster_classes(info)
    lookup = _LabelLookup(info, rasters)
    frames = [_covered(info, raster) for raster in rasters]
    if all(row1 <= row0 or col1 <= col0 for row0, col0, row1, col1 in frames):
        _raise_outside(path, _frame_bounds(info, 0), pyproj.CRS.from_wkt(info.crs.to_wkt()), rasters)
    counts = _value_counts(path, lookup, frames, reporter)
    for value in _unlabelled_values(info, names, table.given_values):
        counts.pop(value, None)
    if not counts:
        raise LabelError(f"{path} labels no pixel of the raster.", "Check the label raster.", "LABELS_EMPTY")
    _refuse_class_count(path, len(counts))
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


def _raster_classes(info: RasterInfo) -> tuple[dict[int, str], dict[int, str]]:
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


def _unlabelled_values(info: RasterInfo, names: Mapping[int, str], given: set[str]) -> set[int]:
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


def _covered(labels: RasterInfo, raster: RasterInfo) -> tuple[int, int, int, int]:
    """The rectangle of `raster` within which `labels` lies: (row0, col0, row1, col1), empty where they do not meet."""
    own, target = pyproj.CRS.from_wkt(labels.crs.to_wkt()), pyproj.CRS.from_wkt(raster.crs.to_wkt())
    left, bottom, right, top = _transform_bounds(own, target, _frame_bounds(labels, 1)).tolist()
    if not all(map(math.isfinite, (left, bottom, right, top))) or left > right:
        return (0, 0, raster.height, raster.width)
    corners = [apply_affine(~raster.geobox.affine, x, y) for x in (left, right) for y in (bottom, top)]
    cols, rows = zip(*corners, strict=True)
    row0, col0 = max(math.floor(min(rows)), 0), max(math.floor(min(cols)), 0)
    return (row0, col0, min(math.ceil(max(rows)), raster.height), min(math.ceil(max(cols)), raster.width))


def _value_counts(
    path: str, lookup: _LabelLookup, frames: Sequence[tuple[int, int, int, int]], reporter: Reporter
) -> dict[int, int]:
    counts: Counter[int] = Counter()
    windows = [(index, window) for index, frame in enumerate(frames) for window in _grid(frame, TILE_PX)]
    for number, (index, window) in enumerate(windows):
        row, col, height, width = _ints(window)
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


def _paint_cells(
    lookup: _LabelLookup, rasters: Sequence[RasterInfo], frames: Sequence[tuple[int, int, int, int]]
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
        for cell in _grid(frame, side, aligned=True):
            row, col, height, width = _ints(cell)
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
    return LabelShape(number, raster_index, _apply(info.geobox.affine, box)[0], bounds)


# Windows


def _grid(bounds: tuple[int, int, int, int], side: int, *, aligned: bool = False) -> list[Window]:
    """Windows of `side` px that cover a rectangle; aligned: cut at multiples of `side` of the whole raster."""
    row0, col0, row1, col1 = bounds
    row_first, col_first = (row0 // side * side, col0 // side * side) if aligned else (row0, col0)
    windows = []
    for row, col in product(range(row_first, row1, side), range(col_first, col1, side)):
        top, left = max(row, row0), max(col, col0)
        windows.append(Window(left, top, min(col + side, col1) - left, min(row + side, row1) - top))
    return windows


def _ints(window: Window) -> tuple[int, int, int, int]:
    return int(window.row_off), int(window.col_off), int(window.height), int(window.width)


def _bounds_by_raster(shapes: Sequence[LabelShape], count: int) -> list[NDArray[np.int64]]:
    boxes: list[list[tuple[int, int, int, int]]] = [[] for _ in range(count)]
    for shape in shapes:
        boxes[shape.raster_index].append(shape.bounds_px)
    return [np.array(part, np.int64).reshape(-1, 4) for part in boxes]


def _hull(boxes: NDArray[np.int64]) -> tuple[int, int, int, int]:
    if not len(boxes):
        return (0, 0, 0, 0)
    low, high = boxes.min(axis=0), boxes.max(axis=0)
    return (int(low[0]), int(low[1]), int(high[2]), int(high[3]))
