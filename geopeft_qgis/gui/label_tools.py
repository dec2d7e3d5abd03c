"""Map tools that draw labels: polygon, freehand, rectangle and point; and one that picks labels."""

from __future__ import annotations

from typing import Any, Callable, Optional

from qgis.core import (
    QgsApplication,
    QgsCsException,
    QgsFeatureRequest,
    QgsGeometry,
    QgsPointXY,
    QgsRectangle,
    QgsVectorLayer,
    QgsWkbTypes,
)
from qgis.gui import QgsMapCanvas, QgsMapMouseEvent, QgsMapTool, QgsRubberBand
from qgis.PyQt import sip
from qgis.PyQt.QtCore import QPoint, Qt, pyqtSignal
from qgis.PyQt.QtGui import QColor, QKeyEvent

from ..label_shapes import outline_polygon, transform_to
from .class_view import digit_of

POLYGON = QgsWkbTypes.GeometryType.PolygonGeometry
LINE = QgsWkbTypes.GeometryType.LineGeometry
POINT = QgsWkbTypes.GeometryType.PointGeometry
# A freehand outline keeps what the eye can see: half a pixel of the screen.
SIMPLIFY_PX = 0.5
MIN_DRAG_PX = 3
PICK_PX = 4


class SketchTool(QgsMapTool):
    """What the drawing tools share: a rubber band in the class's colour, and keys.

    Signals: `drawn` a shape in the canvas's CRS, `refused` a sentence, `class_key` a digit, `delete_pressed`.

    Args:
        canvas: where to draw.
        shape: the geometry type that the label layer takes.
    """

    drawn = pyqtSignal(QgsGeometry)
    refused = pyqtSignal(str)
    class_key = pyqtSignal(int)
    delete_pressed = pyqtSignal()

    def __init__(self, canvas: QgsMapCanvas, shape: Any = POLYGON) -> None:
        super().__init__(canvas)
        self._canvas = canvas
        self._shape = shape
        self._color = QColor()
        self._points: list[QgsPointXY] = []
        self._band: Optional[QgsRubberBand] = None
        self.setCursor(QgsApplication.getThemeCursor(QgsApplication.Cursor.CapturePoint))
        canvas.destinationCrsChanged.connect(self.clear)

    def set_color(self, color: str) -> None:
        """Draws in this colour from now on."""
        self._color = QColor(color)
        if self._band is not None:
            self._paint(self._band)

    @property
    def is_drawing(self) -> bool:
        """True while a sketch has begun."""
        return bool(self._points)

    def clear(self) -> None:
        """Drops the sketch."""
        self._points = []
        if self._band is not None:
            if not sip.isdeleted(self._band):
                self._canvas.scene().removeItem(self._band)
            self._band = None

    def end(self) -> None:
        """Takes the tool away for good."""
        self.clear()
        self._canvas.destinationCrsChanged.disconnect(self.clear)
        self._canvas.unsetMapTool(self)
        self.deleteLater()

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """Digits choose the class; Esc drops the sketch, Backspace its last corner, Delete the last shape."""
        number = digit_of(event)
        if number:
            self.class_key.emit(number)
        elif event.key() == Qt.Key.Key_Escape:
            self.clear()
        elif event.key() in (Qt.Key.Key_Backspace, Qt.Key.Key_Delete):
            if event.key() == Qt.Key.Key_Backspace and self.is_drawing:
                self.drop_last()
            elif event.key() == Qt.Key.Key_Delete and not self.is_drawing:
                self.delete_pressed.emit()
            # Where a tool accepts these two, QGIS deletes what is selected in its active layer.
            event.ignore()
        else:
            event.ignore()

    def drop_last(self) -> None:
        """Takes back the last corner."""
        self.clear()

    def _band_of(self, shape: Any) -> QgsRubberBand:
        if self._band is None or sip.isdeleted(self._band):
            self._band = QgsRubberBand(self._canvas, shape)
            self._paint(self._band)
        return self._band

    def _paint(self, band: QgsRubberBand) -> None:
        fill = QColor(self._color)
        fill.setAlpha(70)
        band.setFillColor(fill)
        band.setStrokeColor(self._color)
        # A light seam keeps the outline in sight on imagery of the class's own colour.
        band.setSecondaryStrokeColor(QColor(255, 255, 255, 170))
        band.setWidth(2)
        band.update()

    def _show(self, points: list[QgsPointXY]) -> None:
        self._band_of(self._shape).setToGeometry(self._geometry(points))

    def _geometry(self, points: list[QgsPointXY]) -> QgsGeometry:
        if self._shape == POLYGON and len(points) > 2:
            return QgsGeometry.fromPolygonXY([points])
        return QgsGeometry.fromPolylineXY(points)

    def _finish(self, points: list[QgsPointXY], too_small: str) -> None:
        self.clear()
        distinct = [point for place, point in enumerate(points) if place == 0 or point != points[place - 1]]
        if self._shape == LINE:
            shape = QgsGeometry.fromPolylineXY(distinct) if len(distinct) > 1 else QgsGeometry()
        else:
            shape = outline_polygon(distinct)
        if shape.isNull():
            self.refused.emit(too_small)
        else:
            self.drawn.emit(shape)


class PolygonTool(SketchTool):
    """A click for each corner; a right click, a double click or Enter ends the shape."""

    def __init__(self, canvas: QgsMapCanvas, shape: Any = POLYGON) -> None:
        super().__init__(canvas, shape)
        self._ended_by_double_click = False
        self._cursor_at: Optional[QgsPointXY] = None

    def canvasReleaseEvent(self, event: QgsMapMouseEvent) -> None:  # noqa: N802
        if event.button() == Qt.MouseButton.RightButton:
            self.finish()
        elif event.button() == Qt.MouseButton.LeftButton and not self._ended_by_double_click:
            self._points.append(event.mapPoint())
            self._show_sketch(event.mapPoint())
        self._ended_by_double_click = False

    def canvasDoubleClickEvent(self, event: QgsMapMouseEvent) -> None:  # noqa: N802
        if event.button() == Qt.MouseButton.LeftButton:
            self._ended_by_double_click = True
            self.finish()

    def canvasMoveEvent(self, event: QgsMapMouseEvent) -> None:  # noqa: N802
        if self._points:
            self._show_sketch(event.mapPoint())

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and self._points:
            self.finish()
            event.accept()
            return
        super().keyPressEvent(event)

    def finish(self) -> None:
        """Ends the shape with the corners so far."""
        if self._points:
            line, area = self.tr("A line needs two corners."), self.tr("A polygon needs three corners.")
            self._finish(self._points, line if self._shape == LINE else area)

    def drop_last(self) -> None:
        self._points.pop()
        if not self._points:
            self.clear()
        elif self._cursor_at is not None:
            self._show_sketch(self._cursor_at)

    def _show_sketch(self, cursor: QgsPointXY) -> None:
        self._cursor_at = cursor
        self._show([*self._points, cursor])


class FreehandTool(SketchTool):
    """The outline is drawn with the button held down."""

    def canvasPressEvent(self, event: QgsMapMouseEvent) -> None:  # noqa: N802
        self.clear()
        if event.button() == Qt.MouseButton.LeftButton:
            self._points = [event.mapPoint()]

    def canvasMoveEvent(self, event: QgsMapMouseEvent) -> None:  # noqa: N802
        if self._points:
            self._points.append(event.mapPoint())
            self._show(self._points)

    def canvasReleaseEvent(self, event: QgsMapMouseEvent) -> None:  # noqa: N802
        if event.button() != Qt.MouseButton.LeftButton or not self._points:
            return
        points = [*self._points, event.mapPoint()]
        thinned = QgsGeometry.fromPolylineXY(points).simplify(SIMPLIFY_PX * self._canvas.mapUnitsPerPixel())
        kept = thinned.asPolyline() if not thinned.isNull() else []
        self._finish(kept, self.tr("Hold the mouse button down while you draw around the area."))


class RectangleTool(SketchTool):
    """A rectangle along the edges of the map window, from corner to corner."""

    def __init__(self, canvas: QgsMapCanvas, shape: Any = POLYGON) -> None:
        super().__init__(canvas, shape)
        self._from = QPoint()

    def canvasPressEvent(self, event: QgsMapMouseEvent) -> None:  # noqa: N802
        self.clear()
        if event.button() == Qt.MouseButton.LeftButton:
            self._from = event.pixelPoint()
            self._points = [event.mapPoint()]

    def canvasMoveEvent(self, event: QgsMapMouseEvent) -> None:  # noqa: N802
        if self._points:
            self._show(self._corners(event.pixelPoint()))

    def canvasReleaseEvent(self, event: QgsMapMouseEvent) -> None:  # noqa: N802
        if event.button() != Qt.MouseButton.LeftButton or not self._points:
            return
        size = event.pixelPoint() - self._from
        is_dragged = min(abs(size.x()), abs(size.y())) >= MIN_DRAG_PX
        corners = self._corners(event.pixelPoint()) if is_dragged else []
        self._finish(corners, self.tr("Drag from one corner of the rectangle to the opposite one."))

    def _corners(self, to: QPoint) -> list[QgsPointXY]:
        """Corners in map coordinates; the window may be rotated against the map."""
        start, end = self._from, to
        pixels = ((start.x(), start.y()), (end.x(), start.y()), (end.x(), end.y()), (start.x(), end.y()))
        return [self.toMapCoordinates(QPoint(x, y)) for x, y in pixels]


class PointTool(SketchTool):
    """A click sets a point; in a layer of polygons it is a disc, which is shown at the cursor.

    Args:
        disc: map point -> the disc in the canvas's CRS, a null geometry where it cannot be placed.
    """

    def __init__(self, canvas: QgsMapCanvas, shape: Any, disc: Callable[[QgsPointXY], QgsGeometry]) -> None:
        super().__init__(canvas, shape)
        self._disc = disc

    def canvasMoveEvent(self, event: QgsMapMouseEvent) -> None:  # noqa: N802
        if self._shape == POLYGON:
            self._band_of(POLYGON).setToGeometry(self._disc(event.mapPoint()))

    def canvasReleaseEvent(self, event: QgsMapMouseEvent) -> None:  # noqa: N802
        if event.button() != Qt.MouseButton.LeftButton:
            return
        point = event.mapPoint()
        shape = self._disc(point) if self._shape == POLYGON else QgsGeometry.fromPointXY(point)
        if shape.isNull():
            self.refused.emit(self.tr("There is no place for a label here. Click on the raster."))
        else:
            self.drawn.emit(shape)


class PickTool(SketchTool):
    """A click selects the label below it, with Shift one more; a digit then gives it that class, Delete deletes it.

    Args:
        layer: the labels; None: there are none.
    """

    def __init__(self, canvas: QgsMapCanvas, layer: Callable[[], Optional[QgsVectorLayer]]) -> None:
        super().__init__(canvas)
        self._layer = layer
        self.setCursor(QgsApplication.getThemeCursor(QgsApplication.Cursor.Select))

    def canvasReleaseEvent(self, event: QgsMapMouseEvent) -> None:  # noqa: N802
        layer = self._layer()
        if layer is None or event.button() != Qt.MouseButton.LeftButton:
            return
        picked = self._smallest_at(layer, event.mapPoint())
        if event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
            if picked in layer.selectedFeatureIds():
                layer.deselect(picked)
            elif picked is not None:
                layer.select(picked)
        else:
            layer.selectByIds([picked] if picked is not None else [])

    def _smallest_at(self, layer: QgsVectorLayer, point: QgsPointXY) -> Optional[int]:
        """Where labels lie on top of each other, the smallest is the one that cannot be reached otherwise."""
        reach = PICK_PX * self._canvas.mapUnitsPerPixel()
        box = QgsRectangle(point.x() - reach, point.y() - reach, point.x() + reach, point.y() + reach)
        here = QgsGeometry.fromRect(box)
        try:
            here.transform(transform_to(self._canvas.mapSettings().destinationCrs(), layer.crs()))
        except QgsCsException:
            return None
        found: Optional[int] = None
        smallest = float("inf")
        for feature in layer.getFeatures(QgsFeatureRequest().setFilterRect(here.boundingBox())):
            geometry = feature.geometry()
            if geometry.intersects(here) and geometry.area() < smallest:
                found, smallest = feature.id(), geometry.area()
        return found
