"""The part of the rasters that is to be mapped."""

from __future__ import annotations

from typing import Any, Optional

from qgis.core import (
    QgsFeature,
    QgsGeometry,
    QgsMapLayer,
    QgsMapLayerProxyModel,
    QgsPointXY,
    QgsProcessingFeatureSourceDefinition,
    QgsVectorLayer,
)
from qgis.gui import QgsMapLayerComboBox
from qgis.PyQt.QtCore import pyqtSignal
from qgis.PyQt.QtWidgets import QCheckBox, QComboBox, QVBoxLayout, QWidget

from ..layers import LayerError

WHOLE, VISIBLE, POLYGONS = range(3)
# A straight edge in the project's CRS is bent in a raster's: enough vertices follow it.
VERTICES_PER_EDGE = 20


class AreaChoice(QWidget):
    """Whole rasters, what the map shows, or the polygons of a layer.

    Args:
        iface: QGIS's window, for its map; None in tests, which leaves out what the map shows.
    """

    changed = pyqtSignal()

    def __init__(self, iface: Any = None, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self._canvas: Any = iface.mapCanvas() if iface is not None else None
        self.setObjectName("GeopeftArea")
        self.kind_box = QComboBox()
        self.kind_box.setObjectName("GeopeftAreaKind")
        self.kind_box.setToolTip(self.tr("Nothing is mapped outside of this area"))
        for kind, text in (
            (WHOLE, self.tr("Whole rasters")),
            (VISIBLE, self.tr("Visible extent of the map")),
            (POLYGONS, self.tr("Polygons of a layer")),
        ):
            if kind != VISIBLE or self._canvas is not None:
                self.kind_box.addItem(text, kind)
        self.layer_box = QgsMapLayerComboBox()
        self.layer_box.setObjectName("GeopeftAreaLayer")
        self.layer_box.setFilters(QgsMapLayerProxyModel.Filter.PolygonLayer)
        self.layer_box.setToolTip(self.tr("Layer with the polygons inside of which is mapped"))
        for box in (self.kind_box, self.layer_box):
            # Long names must not make the panel wider than its place.
            box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            box.setMinimumContentsLength(8)
        self.selected_box = QCheckBox(self.tr("Selected polygons only"))
        self.selected_box.setObjectName("GeopeftAreaSelected")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (self.kind_box, self.layer_box, self.selected_box):
            column.addWidget(widget)
        self.kind_box.currentIndexChanged.connect(self._kind_changed)
        self.layer_box.layerChanged.connect(self.changed)
        self._kind_changed()

    def value(self) -> Any:
        """The area as a value for Processing, None for whole rasters; LayerError where it cannot be used."""
        kind = self.kind_box.currentData()
        if kind == VISIBLE:
            return self._visible()
        if kind != POLYGONS:
            return None
        layer: Optional[QgsMapLayer] = self.layer_box.currentLayer()
        if not isinstance(layer, QgsVectorLayer):
            raise LayerError(self.tr("There is no layer with polygons. Add one, or map whole rasters."))
        is_selection = self.selected_box.isChecked()
        if is_selection and not layer.selectedFeatureCount():
            text = self.tr("No polygon of '{name}' is selected. Select some, or switch off 'Selected polygons only'.")
            raise LayerError(text.format(name=layer.name()))
        return QgsProcessingFeatureSourceDefinition(layer.id(), is_selection)

    def _visible(self) -> QgsVectorLayer:
        """What the map shows, turned or not, as a layer of one polygon."""
        settings = self._canvas.mapSettings()
        corners = QgsGeometry.fromPolygonXY([[QgsPointXY(corner) for corner in settings.visiblePolygon()]])
        longest = max(settings.visibleExtent().width(), settings.visibleExtent().height())
        if not longest > 0:
            raise LayerError(self.tr("The map shows nothing. Zoom to what is to be mapped, or map whole rasters."))
        layer = QgsVectorLayer("Polygon", "visible extent", "memory")  # not shown
        layer.setCrs(settings.destinationCrs())
        feature = QgsFeature()
        feature.setGeometry(corners.densifyByDistance(longest / VERTICES_PER_EDGE))
        layer.dataProvider().addFeatures([feature])
        layer.updateExtents()
        return layer

    def _kind_changed(self, *_: Any) -> None:
        is_layer = self.kind_box.currentData() == POLYGONS
        self.layer_box.setVisible(is_layer)
        self.selected_box.setVisible(is_layer)
        self.changed.emit()
