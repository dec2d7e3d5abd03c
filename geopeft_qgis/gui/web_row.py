"""What is to be fetched of a layer that only QGIS can read: the size of a pixel and the extent."""

from __future__ import annotations

import math
from typing import Any, Optional

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsCsException,
    QgsDistanceArea,
    QgsMapLayer,
    QgsPointXY,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsReferencedRectangle,
)
from qgis.PyQt import sip
from qgis.PyQt.QtCore import Qt, QTimer, pyqtSignal
from qgis.PyQt.QtWidgets import QComboBox, QGridLayout, QLabel, QPushButton, QSizePolicy, QWidget

from ..copy_plan import CopyError, megabytes, native_sizes, plan, proposed_size
from ..sources import is_picture
from .pixel_size import PixelSizeBox

VISIBLE, LABELS, WHOLE = "visible", "labels", "whole"
SETTLE_MS = 250
# Around labels a model wants to see some of their surroundings.
MARGIN_PX = 64


class WebRow(QWidget):
    """Asks for pixel size and extent; `asked` when the button is pressed."""

    asked = pyqtSignal()

    def __init__(self, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self._layer: Optional[QgsRasterLayer] = None
        self._labels: Optional[QgsMapLayer] = None
        self._canvas: Any = None
        self._is_typed = False
        self.setObjectName("GeopeftWebLayer")
        self.text_label = QLabel()
        self.text_label.setWordWrap(True)
        self.size_box = PixelSizeBox()
        self.size_box.setObjectName("GeopeftPixelSize")
        self.size_box.setToolTip(
            self.tr(
                "What a pixel covers. The arrows go from zoom level to zoom level. "
                "Buildings and trees need 0.3 to 0.6 m, fields 5 to 10 m."
            )
        )
        self.area_box = QComboBox()
        self.area_box.setObjectName("GeopeftFetchArea")
        self.area_box.setToolTip(self.tr("Which part of the layer becomes a raster"))
        self.area_box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.area_box.setMinimumContentsLength(8)
        self.estimate_label = QLabel()
        self.estimate_label.setObjectName("GeopeftFetchSize")
        self.estimate_label.setWordWrap(True)
        self.button = QPushButton(self.tr("Fetch as raster"))
        self.button.setObjectName("GeopeftFetch")
        self.button.setToolTip(
            self.tr("Saves this part as a GeoTIFF and adds it to the project. Mind the terms of the map's provider.")
        )
        self._arrange()
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE_MS)
        self._settle.timeout.connect(self._propose)
        self.size_box.valueChanged.connect(self._typed)
        self.area_box.currentIndexChanged.connect(lambda *_: self._propose())
        self.button.clicked.connect(lambda *_: self.asked.emit())

    def set_layer(self, layer: Optional[QgsRasterLayer]) -> None:
        """The layer to fetch from; None: none."""
        self._layer = layer
        self._is_typed = False
        provider = self._provider()
        if layer is None or provider is None:
            return
        if is_picture(provider):
            self.text_label.setText(self.tr("This is a web map. Fetch the part that you work on as a raster file."))
        else:
            self.text_label.setText(self.tr("Only QGIS can read this layer. Fetch it as a raster file."))
        self.size_box.blockSignals(True)
        self.size_box.set_source(layer.crs(), native_sizes(provider), is_picture(provider))
        self.size_box.blockSignals(False)
        self._offer_areas(provider)
        self._propose()

    def set_labels(self, layer: Optional[QgsMapLayer]) -> None:
        """The label layer, whose extent can be fetched."""
        is_same, self._labels = layer is self._labels, layer
        provider = self._provider()
        if provider is not None and is_same:
            self._estimate()
        elif provider is not None:
            self._offer_areas(provider)
            self._propose()

    def set_canvas(self, canvas: Any) -> None:
        """The map, whose extent can be fetched; None: none."""
        if self._canvas is not None and not sip.isdeleted(self._canvas):
            self._canvas.extentsChanged.disconnect(self._settle.start)
        self._canvas = canvas
        if canvas is not None:
            canvas.extentsChanged.connect(self._settle.start)
            self._settle.start()

    def end(self) -> None:
        """Lets the map and the layers go."""
        self._settle.stop()
        self.set_canvas(None)
        self._layer = self._labels = None

    def parameters(self) -> dict[str, Any]:
        """Of the algorithm, but for the output. CopyError where there is nothing to fetch."""
        layer, provider = self._layer, self._provider()
        if layer is None or provider is None:
            raise CopyError(self.tr("The raster layer is not in the project any more. Choose another one."))
        extent = self._extent(layer)
        plan(provider, extent, self.size_box.size())
        return {
            "LAYER": layer.id(),
            "EXTENT": QgsReferencedRectangle(extent, layer.crs()),
            "RESOLUTION": self.size_box.size() if is_picture(provider) or self._is_typed else 0.0,
        }

    def name(self) -> str:
        """What the raster is to be called."""
        if self._layer is None:
            return ""
        size = self.tr("{name} {size:.3g} {unit}")
        return size.format(name=self._layer.name(), size=self.size_box.size(), unit=self.size_box.suffix().strip())

    def _arrange(self) -> None:
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        size_title, area_title = QLabel(self.tr("Pixel size")), QLabel(self.tr("Area"))
        size_title.setBuddy(self.size_box)
        area_title.setBuddy(self.area_box)
        grid.addWidget(self.text_label, 0, 0, 1, 2)
        grid.addWidget(area_title, 1, 0)
        grid.addWidget(self.area_box, 1, 1)
        grid.addWidget(size_title, 2, 0)
        grid.addWidget(self.size_box, 2, 1)
        grid.addWidget(self.estimate_label, 3, 1)
        grid.addWidget(self.button, 4, 1)
        grid.setColumnStretch(1, 1)
        for label in (self.text_label, self.estimate_label):
            label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
            label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)

    def _provider(self) -> Any:
        if self._layer is None or sip.isdeleted(self._layer) or not self._layer.isValid():
            return None
        return self._layer.dataProvider()

    def _offer_areas(self, provider: Any) -> None:
        wanted = self.area_box.currentData()
        self.area_box.blockSignals(True)
        self.area_box.clear()
        self.area_box.addItem(self.tr("Visible area"), VISIBLE)
        if self._labels is not None and not sip.isdeleted(self._labels):
            self.area_box.addItem(self.tr("Labels' extent"), LABELS)
        if not is_picture(provider):
            self.area_box.addItem(self.tr("Whole layer"), WHOLE)
        self.area_box.setCurrentIndex(max(0, self.area_box.findData(wanted)))
        self.area_box.blockSignals(False)

    def _typed(self) -> None:
        self._is_typed = True
        self._estimate()

    def _propose(self) -> None:
        """A new size of a pixel unless the user chose one, then what the raster would be like."""
        layer, provider = self._layer, self._provider()
        if layer is None or provider is None:
            return
        if not self._is_typed:
            self.size_box.blockSignals(True)
            try:
                self.size_box.setValue(proposed_size(provider, self._extent(layer), self._seen(layer)))
            except CopyError:
                pass
            self.size_box.blockSignals(False)
        self._estimate()

    def _estimate(self) -> None:
        layer, provider = self._layer, self._provider()
        if layer is None or provider is None:
            return
        try:
            extent = self._extent(layer)
            grid = plan(provider, extent, self.size_box.size())
        except CopyError as error:
            self.estimate_label.setText(str(error))
            self.button.setEnabled(False)
            return
        text = self.tr("{width} x {height} pixels, {megabytes} MB")
        size_mb = max(1, math.ceil(megabytes(provider, grid.width, grid.height)))
        parts = [text.format(width=grid.width, height=grid.height, megabytes=size_mb)]
        ground = _ground_size(layer.crs(), grid.extent.center(), grid.pixel_width)
        if ground and abs(ground / grid.pixel_width - 1) > 0.02:
            parts.append(self.tr("{size:.2g} m on the ground").format(size=ground))
        self.estimate_label.setText("\n".join(parts))
        self.button.setEnabled(True)

    def _extent(self, layer: QgsRasterLayer) -> QgsRectangle:
        """What is to be fetched, in the layer's CRS; CopyError where that is nowhere."""
        area = self.area_box.currentData()
        if area == WHOLE:
            return layer.extent()
        if area == LABELS and self._labels is not None and not sip.isdeleted(self._labels):
            extent = self._moved(layer, self._labels.extent(), self._labels.crs())
            margin = max(MARGIN_PX * self.size_box.size(), 0.1 * max(extent.width(), extent.height()))
            return extent.buffered(margin) if not extent.isNull() else extent
        if self._canvas is None or sip.isdeleted(self._canvas):
            return QgsRectangle()
        return self._moved(layer, self._canvas.extent(), self._canvas.mapSettings().destinationCrs())

    def _seen(self, layer: QgsRasterLayer) -> float:
        """Size of a pixel of the map, in the layer's CRS; 0 where that is unknown."""
        if self._canvas is None or sip.isdeleted(self._canvas) or self._canvas.width() < 1:
            return 0.0
        try:
            extent = self._moved(layer, self._canvas.extent(), self._canvas.mapSettings().destinationCrs())
        except CopyError:
            return 0.0
        return float(extent.width()) / self._canvas.width()

    def _moved(self, layer: QgsRasterLayer, extent: QgsRectangle, crs: QgsCoordinateReferenceSystem) -> QgsRectangle:
        """An extent in the layer's CRS."""
        if extent.isNull() or not crs.isValid():
            return QgsRectangle(extent)
        try:
            transform = QgsCoordinateTransform(crs, layer.crs(), QgsProject.instance())
            return transform.transformBoundingBox(extent)
        except QgsCsException as error:
            raise CopyError(
                self.tr("The area lies where the layer has no coordinates. Choose another area.")
            ) from error


def _ground_size(crs: QgsCoordinateReferenceSystem, center: QgsPointXY, size: float) -> float:
    """Metres on the ground of a length in a CRS's units; 0 where that cannot be told."""
    measure = QgsDistanceArea()
    measure.setSourceCrs(crs, QgsProject.instance().transformContext())
    measure.setEllipsoid("WGS84")
    ends = [QgsPointXY(center.x() + part * size, center.y()) for part in (-50, 50)]
    try:
        return float(measure.measureLine(ends)) / 100
    except QgsCsException:
        return 0.0
