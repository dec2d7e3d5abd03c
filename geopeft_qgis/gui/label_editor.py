"""From sketches on the map to edits of the label layer: owns the tools, the panel only presses the buttons."""

from __future__ import annotations

from typing import Any, Optional

from qgis.core import QgsGeometry, QgsPointXY, QgsVectorLayer, QgsWkbTypes
from qgis.gui import QgsMapCanvas, QgsMapTool
from qgis.PyQt import sip
from qgis.PyQt.QtCore import QObject, pyqtSignal
from qgis.PyQt.QtGui import QKeyEvent

from ..label_shapes import (
    WIDTH_PX,
    Grid,
    add_shape,
    delete_shapes,
    disc,
    set_class,
    start_editing,
    transform_to,
    transformed,
)
from ..label_style import LabelClass
from ..layers import LayerError
from .label_tools import FreehandTool, PickTool, PointTool, PolygonTool, RectangleTool, SketchTool

POLYGON, FREEHAND, RECTANGLE, POINT, PICK = "polygon", "freehand", "rectangle", "point", "pick"
KINDS = (POLYGON, FREEHAND, RECTANGLE, POINT, PICK)
_TAKES = {
    QgsWkbTypes.GeometryType.PolygonGeometry: KINDS,
    QgsWkbTypes.GeometryType.LineGeometry: (POLYGON, FREEHAND, PICK),
    QgsWkbTypes.GeometryType.PointGeometry: (POINT, PICK),
}


class LabelEditor(QObject):
    """Draws into one layer at a time.

    Signals: `tool_changed` the kind that is active, empty for none; `class_key` a digit was pressed; `said` a sentence;
    `about_to_draw` before a shape is added.

    Args:
        iface: QGIS's window; its active layer becomes the labels, so that QGIS's undo is the labels'. None in tests.
        canvas: where to draw; None: nowhere.
    """

    tool_changed = pyqtSignal(str)
    class_key = pyqtSignal(int)
    said = pyqtSignal(str)
    about_to_draw = pyqtSignal()

    def __init__(self, iface: Any, canvas: Optional[QgsMapCanvas], parent: Optional[QObject] = None) -> None:
        super().__init__(parent)
        self._iface = iface
        self._canvas: Any = canvas  # tools are made only where there is one
        self._layer: Optional[QgsVectorLayer] = None
        self._field = ""
        self._class: Optional[LabelClass] = None
        self._grid: Optional[Grid] = None
        self._tool: Optional[SketchTool] = None
        self._kind = ""
        self._previous: Optional[QgsMapTool] = None
        self._last: list[int] = []
        self.width_px = WIDTH_PX
        if canvas is not None:
            canvas.mapToolSet.connect(self._tool_set)

    def set_layer(self, layer: Optional[QgsVectorLayer], field: str) -> None:
        """Draws into this layer from now on; another one ends the tool."""
        if layer is not self._layer:
            self.stop()
            self._last = []
        self._layer, self._field = layer, field

    def set_grid(self, grid: Optional[Grid]) -> None:
        """The raster whose pixels give points their width."""
        self._grid = grid

    def set_class(self, chosen: Optional[LabelClass]) -> None:
        """What is drawn from now on is of this class."""
        self._class = chosen
        if self._tool is not None and chosen is not None:
            self._tool.set_color(chosen.color)

    def takes(self, kind: str) -> bool:
        """True where the layer can hold what this tool draws."""
        return (
            self._canvas is not None and self._layer is not None and kind in _TAKES.get(self._layer.geometryType(), ())
        )

    @property
    def kind(self) -> str:
        """The tool that is active; empty for none."""
        return self._kind

    def start(self, kind: str) -> None:
        """Takes a tool; the one that was active comes back at the end."""
        if self._canvas is None or self._layer is None or not self.takes(kind):
            return
        if kind != PICK:
            try:
                start_editing(self._layer)
            except LayerError as error:
                self.said.emit(str(error))
                return
        before = self._canvas.mapTool()
        if not isinstance(before, SketchTool):
            self._previous = before
        old, self._tool, self._kind = self._tool, self._make(kind, self._layer.geometryType()), kind
        if self._class is not None:
            self._tool.set_color(self._class.color)
        if self._iface is not None:
            self._iface.setActiveLayer(self._layer)
        self._canvas.setMapTool(self._tool)
        self._canvas.setFocus()
        if old is not None:
            old.end()
        self.tool_changed.emit(kind)

    def stop(self) -> None:
        """Puts the tool away and takes the previous one again."""
        tool, self._tool, self._kind = self._tool, None, ""
        if tool is None or self._canvas is None:
            return
        is_active = self._canvas.mapTool() is tool
        tool.end()
        if is_active and self._previous is not None and not sip.isdeleted(self._previous):
            self._canvas.setMapTool(self._previous)
        self._previous = None
        self.tool_changed.emit("")

    def end(self) -> None:
        """Lets canvas and layer go."""
        self.stop()
        if self._canvas is not None and not sip.isdeleted(self._canvas):
            self._canvas.mapToolSet.disconnect(self._tool_set)
        self._canvas = self._layer = None

    def key(self, event: QKeyEvent) -> None:
        """A key that was pressed in the panel is the tool's."""
        if self._tool is not None:
            self._tool.keyPressEvent(event)

    # What the buttons do

    def delete(self) -> None:
        """Deletes the selected shapes, or the one that was drawn last."""
        layer = self._layer
        if layer is None:
            return
        ids = layer.selectedFeatureIds() or self._last_drawn(layer)
        if not ids:
            self.said.emit(self.tr("Select a shape with the arrow first."))
            return
        try:
            delete_shapes(layer, ids)
        except LayerError as error:
            self.said.emit(str(error))

    def give_class(self) -> None:
        """Gives the selected shapes the current class."""
        layer, chosen = self._layer, self._class
        if layer is None or chosen is None or not layer.selectedFeatureCount():
            return
        try:
            set_class(layer, self._field, chosen.value, layer.selectedFeatureIds())
        except LayerError as error:
            self.said.emit(str(error))

    def undo(self) -> None:
        """Takes back the last edit, as QGIS's own undo does."""
        if self._layer is not None:
            self._layer.undoStack().undo()
            self._layer.triggerRepaint()

    def save(self) -> None:
        """Writes the edits into the layer's source and goes on editing."""
        layer = self._layer
        if layer is not None and layer.isEditable() and not layer.commitChanges(False):
            text = self.tr("The labels cannot be saved: {reason}. They are still here; save them as another file.")
            self.said.emit(text.format(reason=" ".join(layer.commitErrors())))

    # Tools

    def _make(self, kind: str, shape: Any) -> SketchTool:
        tool: SketchTool
        if kind == PICK:
            tool = PickTool(self._canvas, lambda: self._layer)
        elif kind == POINT:
            tool = PointTool(self._canvas, shape, self._disc)
        else:
            tool = {POLYGON: PolygonTool, FREEHAND: FreehandTool, RECTANGLE: RectangleTool}[kind](self._canvas, shape)
        tool.drawn.connect(self._drawn)
        tool.refused.connect(self.said)
        tool.class_key.connect(self.class_key)
        tool.delete_pressed.connect(self.delete)
        return tool

    def _tool_set(self, new: Optional[QgsMapTool], _: Optional[QgsMapTool] = None) -> None:
        """Another tool was taken in QGIS: ours is put away, and the other stays."""
        if self._tool is not None and new is not self._tool:
            tool, self._tool, self._kind = self._tool, None, ""
            self._previous = None
            tool.end()
            self.tool_changed.emit("")

    def _disc(self, point: QgsPointXY) -> QgsGeometry:
        if self._canvas is None:
            return QgsGeometry()
        crs = self._canvas.mapSettings().destinationCrs()
        return disc(point, crs, self._grid, self.width_px, self._canvas.mapUnitsPerPixel())

    def _drawn(self, shape: QgsGeometry) -> None:
        layer, chosen = self._layer, self._class
        if layer is None or self._canvas is None:
            return
        if chosen is None:
            self.said.emit(self.tr("Add a class first, then draw."))
            return
        to_layer = transform_to(self._canvas.mapSettings().destinationCrs(), layer.crs())
        moved = transformed(shape, to_layer)
        if moved.isNull():
            self.said.emit(self.tr("This place does not exist in the label layer's coordinate system."))
            return
        self.about_to_draw.emit()
        try:
            self._last.append(add_shape(layer, self._field, chosen.value, moved))
        except LayerError as error:
            self.said.emit(str(error))

    def _last_drawn(self, layer: QgsVectorLayer) -> list[int]:
        while self._last:
            fid = self._last.pop()
            if layer.getFeature(fid).isValid():
                return [fid]
        return []
