"""Labels: from a vector layer or a label raster to class numbers on the pixel grid of each raster.

Only labelled pixels teach. Pixels that shapes of two classes claim, and pixels of features whose class is not known,
are ignored (255), also where unlabelled pixels make a background class.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from geopeft.data.label_classes import IGNORE, ClassTable, LabelClass, choose_color, refuse_class_count
from geopeft.data.label_shapes import TILE_PX, LabelShape, Painted, Painter, grid_windows, row_col_size
from geopeft.data.label_sources import find_source
from geopeft.data.pixel_shapes import PixelShapes
from geopeft.data.raster import RasterInfo
from geopeft.data.raster_frames import raise_outside
from geopeft.data.raster_labels import read_raster_labels
from geopeft.data.vector_features import load_features, place_features
from geopeft.data.vector_labels import read_vector_labels
from geopeft.errors import LabelError
from geopeft.events import Reporter
from geopeft.job import ClassStyle

__all__ = ("IGNORE", "LabelClass", "LabelShape", "Labels", "choose_color", "read_area", "read_labels")


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
        painter: Painter,
        background: int = -1,
        areas: Sequence[PixelShapes] | None = None,
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
            for window in grid_windows(self.extent_px(raster_index), size_px)
            if (self.burn(raster_index, window)[0] == self.background).any()
        ]

    def _add_background(self, painted: Painted, raster_index: int, window: Window) -> None:
        if self.background < 0:
            return
        row, col, height, width = row_col_size(window)
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
    counted: bool = True,
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
        counted: False leaves out the count of the pixels, which a background makes long on a large raster, and with it
            the check of the classes that there are.
        reporter: told what was repaired, left out or ignored.

    Raises:
        LabelError: LABELS_MISSING, LABELS_OPEN, LABELS_LAYER, LABELS_FIELD, LABELS_NO_CRS, LABELS_OUTSIDE,
            LABELS_EMPTY, LABELS_ONE_CLASS, LABELS_MANY_CLASSES or LABELS_NOT_CLASSES.
        RasterError: the label raster is damaged.
    """
    source = find_source(spec, class_field)
    table = ClassTable(classes)
    painter: Painter
    if source.layer is None:
        painter, shapes = read_raster_labels(source.path, rasters, table, reporter)
    else:
        painter, shapes = read_vector_labels(source, class_field, rasters, table, line_width_px, reporter)
    found = table.classes()
    number = -1
    if background:
        number = next((i for i, known in enumerate(found) if background in (known.name, known.value)), len(found))
        if number == len(found):
            found = (*found, LabelClass(background, background, table.background_color()))
    refuse_class_count(spec, len(found))
    areas = read_area(area, rasters, reporter) if area and background else None
    if area and not background:
        reporter.warn("The area has no effect without a background class.")
    labels = Labels(found, shapes, rasters, painter, number, areas)
    if counted:
        labels._count(reporter)
        _check_counts(spec, labels, minimum_classes, reporter, given=bool(classes))
    return labels


def read_area(spec: str, rasters: Sequence[RasterInfo], reporter: Reporter) -> list[PixelShapes]:
    """The polygons of FILE or FILE:layer on the grid of each raster.

    Raises:
        LabelError: LABELS_MISSING, LABELS_OPEN, LABELS_LAYER, LABELS_NO_CRS, LABELS_OUTSIDE or LABELS_EMPTY.
    """
    source = find_source(spec, "", rasters=False)
    features = load_features(source, [], reporter)
    features = features.only(np.isin(shapely.get_type_id(features.geometries), (3, 6)))
    if not len(features.geometries):
        raise LabelError(f"The area {spec} holds no polygons.", "Draw the area as polygons.", "LABELS_EMPTY")
    placed, members = place_features(features, rasters, 1.0)
    if not sum(map(len, members)):
        raise_outside(spec, shapely.total_bounds(features.geometries), features.crs, rasters)
    return placed


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
