"""Label shapes: from a sketch on the map to a feature, and how many pixels of the raster it covers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Optional

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsCsException,
    QgsGeometry,
    QgsPointXY,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorLayer,
    QgsVectorLayerUtils,
    QgsWkbTypes,
)
from qgis.PyQt.QtGui import QTransform

from .language import tr
from .layers import LayerError

# What the engine gives lines and points unless told otherwise.
WIDTH_PX = 3.0
DISC_SEGMENTS = 8


class Grid(NamedTuple):
    """The pixels of a raster: its CRS, the size of a pixel in that CRS's units, and its extent."""

    crs: QgsCoordinateReferenceSystem
    pixel_width: float
    pixel_height: float
    extent: QgsRectangle


class Measure(NamedTuple):
    """A shape on a grid: pixels that it covers, (left, bottom, right, top) in the grid's CRS; None outside of it."""

    pixels: float
    box: Optional[tuple[float, float, float, float]]


def raster_grid(layer: Optional[QgsRasterLayer]) -> Optional[Grid]:
    """The grid of a raster layer; None without one, and for services, which have no pixels of their own."""
    if layer is None or not layer.isValid() or layer.width() <= 0 or layer.height() <= 0:
        return None
    extent = layer.extent()
    return Grid(layer.crs(), extent.width() / layer.width(), extent.height() / layer.height(), extent)


def transform_to(source: QgsCoordinateReferenceSystem, target: QgsCoordinateReferenceSystem) -> QgsCoordinateTransform:
    """A transform that does nothing where one of the two is unknown."""
    return QgsCoordinateTransform(source, target, QgsProject.instance())


def transformed(geometry: QgsGeometry, transform: QgsCoordinateTransform) -> QgsGeometry:
    """A copy in another CRS; a null geometry where that is not possible."""
    copy = QgsGeometry(geometry)
    if transform.isShortCircuited() or not transform.isValid():
        return copy
    try:
        copy.transform(transform)
    except QgsCsException:
        return QgsGeometry()
    return copy


def measure(geometry: QgsGeometry, to_grid: QgsCoordinateTransform, grid: Grid, width_px: float) -> Measure:
    """Pixels of the raster that a shape covers; lines and points have a width in pixels, as in training."""
    shape = transformed(geometry, to_grid)
    if shape.isNull() or shape.isEmpty():
        return Measure(0.0, None)
    bounds = shape.boundingBox()
    if not grid.extent.intersects(bounds):
        return Measure(0.0, None)
    box = (bounds.xMinimum(), bounds.yMinimum(), bounds.xMaximum(), bounds.yMaximum())
    kind = shape.type()
    disc = math.pi / 4 * width_px**2
    if kind == QgsWkbTypes.GeometryType.PointGeometry:
        return Measure(disc * shape.constGet().partCount(), box)
    if not grid.extent.contains(bounds):
        shape = shape.clipped(grid.extent)
    if kind == QgsWkbTypes.GeometryType.LineGeometry:
        return Measure(shape.length() / math.sqrt(grid.pixel_width * grid.pixel_height) * width_px + disc, box)
    return Measure(shape.area() / (grid.pixel_width * grid.pixel_height), box)


def disc(
    center: QgsPointXY, crs: QgsCoordinateReferenceSystem, grid: Optional[Grid], width_px: float, pixel: float
) -> QgsGeometry:
    """A point with its width, in the CRS of the centre; a null geometry where it cannot be placed.

    Args:
        center: the point.
        crs: of the centre.
        grid: the width is in pixels of this raster.
        width_px: diameter.
        pixel: size of a pixel in units of `crs`, used where there is no grid.
    """
    to_grid = transform_to(crs, grid.crs if grid is not None else crs)
    place = transformed(QgsGeometry.fromPointXY(center), to_grid)
    if place.isNull():
        return place
    size = (grid.pixel_width, grid.pixel_height) if grid is not None else (pixel, pixel)
    circle = QgsGeometry.fromPointXY(QgsPointXY(0, 0)).buffer(width_px / 2, DISC_SEGMENTS)
    middle = place.asPoint()
    circle.transform(QTransform(size[0], 0, 0, size[1], middle.x(), middle.y()))
    back = transform_to(grid.crs if grid is not None else crs, crs)
    return transformed(circle, back)


def outline_polygon(points: Iterable[QgsPointXY]) -> QgsGeometry:
    """The area that an outline surrounds, also where it crosses itself; a null geometry where there is none."""
    ring = list(points)
    if len(ring) < 3:
        return QgsGeometry()
    polygon = QgsGeometry.fromPolygonXY([ring])
    if not polygon.isGeosValid():
        polygon = polygon.makeValid()
        # What an outline runs around twice is inside, not a hole.
        polygon = QgsGeometry.unaryUnion(
            [part.removeInteriorRings() for part in polygon.asGeometryCollection() if part.area() > 0]
        )
    return polygon if not polygon.isNull() and polygon.area() > 0 else QgsGeometry()


def start_editing(layer: QgsVectorLayer) -> None:
    """Puts a layer into edit mode; LayerError where it cannot be edited."""
    if not layer.isEditable() and not layer.startEditing():
        text = tr("The layer '{name}' cannot be edited. Press 'New' for a label layer of your own.")
        raise LayerError(text.format(name=layer.name()))


@contextmanager
def edit_command(layer: QgsVectorLayer, title: str) -> Iterator[None]:
    """One step of the layer's undo stack; what was done so far is taken back where an exception passes."""
    start_editing(layer)
    layer.beginEditCommand(title)
    try:
        yield
    except BaseException:
        layer.destroyEditCommand()
        raise
    layer.endEditCommand()
    layer.triggerRepaint()


def add_shape(layer: QgsVectorLayer, field: str, value: Any, geometry: QgsGeometry) -> int:
    """Adds a shape as one step of the layer's undo stack; its id. LayerError where the layer does not take it.

    Args:
        layer: is put into edit mode.
        field: the field with the class.
        value: the class, as stored.
        geometry: in the layer's CRS.
    """
    refused = tr("The layer '{name}' does not take this shape. Draw another kind.")
    parts = geometry.coerceToType(layer.wkbType()) if geometry.type() == layer.geometryType() else []
    if not parts:
        raise LayerError(refused.format(name=layer.name()))
    with edit_command(layer, tr("Add label")):
        index = layer.fields().lookupField(field)
        feature = QgsVectorLayerUtils.createFeature(layer, parts[0], {index: value})
        if not layer.addFeature(feature):
            raise LayerError(refused.format(name=layer.name()))
    return int(feature.id())


def set_class(layer: QgsVectorLayer, field: str, value: Any, ids: Iterable[int]) -> None:
    """Gives features a class, as one step of the layer's undo stack; LayerError where the layer cannot be edited."""
    index = layer.fields().lookupField(field)
    with edit_command(layer, tr("Change class")):
        for fid in ids:
            layer.changeAttributeValue(fid, index, value)


def delete_shapes(layer: QgsVectorLayer, ids: Iterable[int]) -> None:
    """Deletes features, as one step of the layer's undo stack; LayerError where the layer cannot be edited."""
    with edit_command(layer, tr("Delete labels")):
        layer.deleteFeatures(list(ids))
