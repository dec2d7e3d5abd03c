"""The layer that shows the preview: in the project while it is looked at, and never saved with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Optional

from qgis.core import QgsDataProvider, QgsLayerTreeGroup, QgsMapLayer, QgsProject, QgsRasterLayer
from qgis.PyQt import sip
from qgis.PyQt.QtCore import QTimer
from qgis.PyQt.QtXml import QDomDocument

from ..results import style_class_raster

OPACITY = 0.7
PROPERTY = "geopeft/preview"


class PreviewLayer:
    """One raster layer, right above the raster that is mapped; its file changes, the layer stays.

    It is private, so that no list of layers offers it, and the project does not count as changed because of it.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._layer: Optional[QgsRasterLayer] = None
        self._raster_id = ""
        self._project = QgsProject.instance()
        self._project.writeProject.connect(self._leave_out)

    @property
    def layer(self) -> Optional[QgsRasterLayer]:
        """The layer, while there is one."""
        if self._layer is not None and sip.isdeleted(self._layer):
            self._layer = None
        return self._layer

    def show(self, path: str, classes: Sequence[Mapping[str, Any]], raster: QgsRasterLayer) -> bool:
        """Shows a class raster above its raster; False where it cannot be read."""
        was_dirty = self._project.isDirty()
        layer = self.layer
        if layer is None:
            layer = QgsRasterLayer(path, self._title, "gdal", QgsRasterLayer.LayerOptions(False))
        else:
            layer.setDataSource(path, self._title, "gdal", QgsDataProvider.ProviderOptions())
        if not layer.isValid():
            self.remove()
            return False
        style_class_raster(layer, classes)
        layer.setOpacity(OPACITY)
        if layer.crs() != raster.crs():
            layer.setCrs(raster.crs())  # the user may have corrected the raster's
        if self._layer is None:
            layer.setFlags(layer.flags() | QgsMapLayer.LayerFlag.Private)
            layer.setCustomProperty(PROPERTY, True)
            self._layer = layer
        self._raster_id = raster.id()
        if self._project.mapLayer(layer.id()) is None:
            self._add(layer)
        layer.triggerRepaint()
        self._leave_dirty(was_dirty)
        return True

    def remove(self, amid_changes: bool = False) -> None:
        """Takes the layer away.

        Args:
            amid_changes: the project is being changed by someone else, and does not count as changed yet.
        """
        layer, self._layer = self.layer, None
        if layer is not None and self._project.mapLayer(layer.id()) is not None:
            was_dirty = self._project.isDirty()
            # It must outlive this call: the project may be going through its layers just now to remove them all, and
            # would come upon one that has gone.
            self._project.takeMapLayer(layer)
            QTimer.singleShot(0, partial(id, layer))
            self._leave_dirty(was_dirty or amid_changes)

    def end(self) -> None:
        """Takes the layer away for good."""
        self.remove()
        try:
            self._project.writeProject.disconnect(self._leave_out)
        except TypeError:
            pass  # it has ended before

    def _add(self, layer: QgsRasterLayer) -> None:
        self._project.addMapLayer(layer, False)
        root = self._project.layerTreeRoot()
        node = root.findLayer(self._raster_id)
        group: QgsLayerTreeGroup = node.parent() if node is not None else root
        above = group.children().index(node) if node is not None else len(group.children())
        group.insertLayer(above, layer).setExpanded(False)

    def _leave_out(self, document: QDomDocument) -> None:
        """Keeps the layer out of a project that is being written: its file will be gone when that is opened again.

        At this moment the tree has been written and the layers have not.
        """
        layer = self.layer
        if layer is None or self._project.mapLayer(layer.id()) is None:
            return
        for tag, attribute in (("layer-tree-layer", "id"), ("legendlayerfile", "layerid"), ("layer", "id")):
            _drop(document, tag, lambda element, name=attribute: element.attribute(name) == layer.id())
        _drop(document, "item", lambda element: element.text() == layer.id())
        self._project.takeMapLayer(layer)
        QTimer.singleShot(0, self._return)

    def _return(self) -> None:
        layer = self.layer
        if layer is not None and self._project.mapLayer(self._raster_id) is not None:
            was_dirty = self._project.isDirty()
            self._add(layer)
            self._leave_dirty(was_dirty)

    def _leave_dirty(self, was_dirty: bool) -> None:
        """The project is as changed as it was; the canvas calls it changed a moment later, when it gets the layer."""
        if not was_dirty:
            QTimer.singleShot(0, partial(self._project.setDirty, False))


def _drop(document: QDomDocument, tag: str, wanted: Any) -> None:
    elements = document.elementsByTagName(tag)
    for element in [elements.at(number).toElement() for number in range(elements.count())]:
        if wanted(element):
            element.parentNode().removeChild(element)
