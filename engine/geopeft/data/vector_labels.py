"""Labels of a vector layer: the class of each feature, and its pixels."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from geopeft.data.label_classes import IGNORE, ClassTable, refuse_class_count
from geopeft.data.label_shapes import LabelShape, Painted, Painter
from geopeft.data.label_sources import LabelSource
from geopeft.data.pixel_shapes import PixelShapes
from geopeft.data.raster import RasterInfo
from geopeft.data.raster_frames import move_shapes, raise_outside
from geopeft.data.vector_features import Features, load_features, place_features
from geopeft.errors import LabelError
from geopeft.events import Reporter

_ID_FIELDS = frozenset(("fid", "id", "gid", "ogc_fid", "objectid", "osm_id", "uuid", "uid", "pk", "ogr_fid"))
_COLOR_FIELDS = ("color", "colour")


def read_vector_labels(
    source: LabelSource,
    class_field: str,
    rasters: Sequence[RasterInfo],
    table: ClassTable,
    line_width_px: float,
    reporter: Reporter,
) -> tuple[Painter, tuple[LabelShape, ...]]:
    """What paints a vector layer on the grids of `rasters`, and its shapes; the classes found go into the table."""
    name = _choose_field(source, class_field)
    color_field = next((f for f, kind in source.fields.items() if f.lower() in _COLOR_FIELDS and kind == "text"), None)
    features = load_features(source, [name, color_field] if color_field and color_field != name else [name], reporter)
    values = _class_values(features.columns[name], source, name, reporter)
    placed, members = place_features(features, rasters, max(line_width_px, 1.0))
    _report_outside(source, features, placed, members, rasters, reporter)
    here = {values[i] for numbers in members for i in numbers.tolist()} - {None}
    refuse_class_count(source.path, len(here))
    table.learn({value: value for value in here if value is not None})
    if color_field in features.columns and color_field is not None:
        _take_colors(table, values, features.columns[color_field])
    by_value = {value: table.number(value) for value in here if value is not None}
    classes = np.array([by_value.get(value, -1) if value is not None else -1 for value in values], np.int64)
    _report_unlisted(values, classes, here, reporter)
    known = [_some_of(shapes, classes[numbers] >= 0) for shapes, numbers in zip(placed, members, strict=True)]
    blanks = [_some_of(shapes, classes[numbers] < 0) for shapes, numbers in zip(placed, members, strict=True)]
    numbers = [classes[part][classes[part] >= 0] for part in members]
    fids = [features.fids[part][classes[part] >= 0] for part in members]
    if not sum(map(len, numbers)):
        raise LabelError(
            f"No feature of {source.path} on the raster has a usable class in '{name}'.",
            "Fill the class field, or choose another one.",
            "LABELS_EMPTY",
        )
    return _VectorPainter(known, numbers, blanks), _shapes(rasters, known, numbers, fids)


def _choose_field(source: LabelSource, wanted: str) -> str:
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


def _class_values(column: NDArray[Any], source: LabelSource, name: str, reporter: Reporter) -> list[str | None]:
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


def _take_colors(table: ClassTable, values: Sequence[str | None], column: NDArray[Any]) -> None:
    for value, color in zip(values, column.tolist(), strict=True):
        if value and isinstance(color, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", color.strip()):
            row = table.number(value)
            if row >= 0:
                table.field_colors.setdefault(table.value(row), color.strip())


def _report_outside(
    source: LabelSource,
    features: Features,
    placed: Sequence[PixelShapes],
    members: Sequence[NDArray[np.int64]],
    rasters: Sequence[RasterInfo],
    reporter: Reporter,
) -> None:
    inside = np.unique(np.concatenate(members)) if members else np.zeros(0)
    outside = len(features.geometries) - len(inside)
    if not len(inside):
        raise_outside(source.path, shapely.total_bounds(features.geometries), features.crs, rasters)
    if outside:
        reporter.warn(f"{outside} features of {source.path} lie outside the raster{'s' * (len(rasters) > 1)}.")


def _report_unlisted(
    values: Sequence[str | None], classes: NDArray[np.int64], here: set[str | None], reporter: Reporter
) -> None:
    unlisted = Counter(v for v, number in zip(values, classes.tolist(), strict=True) if v in here and number < 0 and v)
    if unlisted:
        named = ", ".join(f"'{value}' ({count})" for value, count in unlisted.most_common(8))
        reporter.warn(f"Left out features whose class is not among the classes in use: {named}.")


def _some_of(shapes: PixelShapes, keep: NDArray[np.bool_]) -> PixelShapes:
    """Some of the shapes of one raster."""
    return PixelShapes(shapes.geometries[keep], shapes.bounds[keep], shapes.size)


def _shapes(
    rasters: Sequence[RasterInfo],
    placed: Sequence[PixelShapes],
    numbers: Sequence[NDArray[np.int64]],
    fids: Sequence[NDArray[np.int64]],
) -> tuple[LabelShape, ...]:
    out: list[LabelShape] = []
    for index, (info, shapes, classes, own) in enumerate(zip(rasters, placed, numbers, fids, strict=True)):
        on_ground = move_shapes(info.geobox.affine, shapes.geometries)
        rows = zip(on_ground, shapes.bounds.tolist(), classes.tolist(), own.tolist(), strict=True)
        for geometry, bounds, number, fid in rows:
            out.append(LabelShape(number, index, geometry, tuple(bounds), fid))
    return tuple(out)


class _VectorPainter:
    """Paints the shapes of a vector layer."""

    def __init__(
        self,
        placed: Sequence[PixelShapes],
        numbers: Sequence[NDArray[np.int64]],
        blanks: Sequence[PixelShapes],
    ) -> None:
        self._placed = placed
        self._numbers = numbers
        self._blanks = blanks
        self._first = np.cumsum([0, *(len(classes) for classes in numbers)]).tolist()

    def paint(self, raster_index: int, window: Window) -> Painted:
        shape = (int(window.height), int(window.width))
        out = Painted(
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
