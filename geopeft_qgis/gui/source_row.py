"""Makes a raster of what is chosen or selected but no raster file yet: web layers, and bands in files of their own."""

from __future__ import annotations

import re
from typing import Any, Optional

from qgis.core import Qgis, QgsApplication, QgsLayerTreeLayer, QgsMapLayer, QgsProject, QgsRasterLayer
from qgis.PyQt.QtCore import Qt, pyqtSignal
from qgis.PyQt.QtWidgets import QLabel, QSizePolicy, QVBoxLayout, QWidget

from .. import settings
from ..copy_plan import CopyError
from ..label_layer import free_path
from ..sources import needs_rendering
from .notices import log
from .run_row import RunRow
from .stack_row import StackRow
from .stretch import Stretch, StretchTask, show
from .web_row import WebRow


class SourceRow(QWidget):
    """A row below the choice of the raster, there only while there is something to make a raster of.

    Signals: `fetched` the new layer, which is in the project already; `failed` a sentence.
    """

    fetched = pyqtSignal(QgsRasterLayer)
    failed = pyqtSignal(str)

    def __init__(self, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self._look: Optional[StretchTask] = None
        self._path = ""
        self._neighbour = ""
        self._name = ""
        self._needs_fetching = False
        self._chosen = ""
        self.setObjectName("GeopeftSource")
        self.web = WebRow()
        self.stack = StackRow()
        self.error_label = QLabel()
        self.error_label.setObjectName("GeopeftSourceError")
        self.error_label.setWordWrap(True)
        self.error_label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        self.error_label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.run_row = RunRow("GeopeftFetch")
        self.run_row.ended.connect(self._ended)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (self.web, self.stack, self.error_label, self.run_row):
            column.addWidget(widget)
        self.web.asked.connect(self._fetch)
        self.stack.asked.connect(self._stack)
        self.stack.changed.connect(self._show)
        self._show()

    @property
    def is_busy(self) -> bool:
        """True while a raster is made."""
        return self.run_row.is_busy or self._look is not None

    def set_layer(self, layer: Optional[QgsMapLayer]) -> None:
        """The layer in the raster box; the same one again changes nothing of what was chosen."""
        self._needs_fetching = needs_rendering(layer)
        chosen = layer.id() if layer is not None and self._needs_fetching else ""
        if chosen != self._chosen:
            self._chosen = chosen
            self.web.set_layer(layer if self._needs_fetching else None)
            self.error_label.clear()
        self._show()

    def set_labels(self, layer: Optional[QgsMapLayer]) -> None:
        """The label layer, whose extent can be fetched."""
        self.web.set_labels(layer)

    def set_canvas(self, canvas: Any) -> None:
        """The map, whose extent can be fetched."""
        self.web.set_canvas(canvas)

    def watch(self, view: Any) -> None:
        """The layer tree view, whose selected layers can be stacked."""
        self.stack.watch(view)

    def cancel(self) -> None:
        """Asks what runs to end."""
        self.run_row.cancel()

    def end(self) -> None:
        """Ends what runs and waits for it; for when the plugin goes away."""
        self.web.end()
        self.stack.end()
        self.run_row.end()
        if self._look is not None:
            self._look.measured.disconnect(self._add)
            self._look.cancel()
            self._look = None

    def _fetch(self) -> None:
        try:
            parameters = self.web.parameters()
        except CopyError as error:
            self._fail(str(error))
            return
        title = self.tr("Fetching {name}").format(name=self.web.name())
        self._start(title, "geopeft:renderlayer", parameters, self.web.name(), ".tif", parameters["LAYER"])

    def _stack(self) -> None:
        if self.stack.has_offer():
            parameters = self.stack.parameters()
            title = self.tr("Stacking {name}").format(name=self.stack.name())
            self._start(title, "geopeft:stack", parameters, self.stack.name(), ".vrt", self.stack.first_layer())

    def _start(
        self, title: str, algorithm: str, parameters: dict[str, Any], name: str, suffix: str, neighbour: str
    ) -> None:
        if self.is_busy:
            return
        folder = settings.new_raster_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = self.tr("The folder {folder} cannot be made ({reason}). Save the project in another folder.")
            self._fail(text.format(folder=folder, reason=error.strerror))
            return
        stem = re.sub(r"[^\w.\-]+", "_", name).strip("_.") or "raster"
        path = free_path(folder / f"{stem}{suffix}")
        self._neighbour, self._name = neighbour, name
        self.error_label.clear()
        self.run_row.start(title, algorithm, {**parameters, "OUTPUT": str(path)})
        self._show()

    def _ended(self, results: dict[str, Any], error: str, canceled: bool) -> None:
        if error or canceled:
            if error:
                self._fail(error)
            self._show()
            return
        self._path = str(results["OUTPUT"])
        self._look = StretchTask(self._path)
        self._look.measured.connect(self._add)
        QgsApplication.taskManager().addTask(self._look)

    def _add(self, stretch: Optional[Stretch]) -> None:
        """Shows the raster just above the layer that it was made of."""
        self._look, path = None, self._path
        layer = QgsRasterLayer(path, self._name, "gdal", QgsRasterLayer.LayerOptions(False))
        if not layer.isValid():
            text = self.tr("The raster {path} cannot be opened. Try again, or choose another area.")
            self._fail(text.format(path=path))
            return
        # A picture keeps the colours that the service gave it.
        is_picture = layer.dataProvider().dataType(1) == Qgis.DataType.Byte and layer.bandCount() == 4
        if stretch is not None and not is_picture:
            show(layer, stretch)
        project = QgsProject.instance()
        project.addMapLayer(layer, False)
        node = project.layerTreeRoot().findLayer(self._neighbour)
        parent = node.parent() if node is not None else None
        if parent is None:
            project.layerTreeRoot().addLayer(layer)
        else:
            parent.insertChildNode(parent.children().index(node), QgsLayerTreeLayer(layer))
        log("info", self.tr("{path} is written.").format(path=path))
        self._show()
        self.fetched.emit(layer)

    def _fail(self, sentence: str) -> None:
        self.error_label.setText(sentence)
        log("error", sentence)
        self._show()
        self.failed.emit(sentence)

    def _show(self) -> None:
        is_busy = self.is_busy
        self.web.setVisible(self._needs_fetching and not is_busy)
        self.stack.setVisible(self.stack.has_offer() and not is_busy)
        self.error_label.setVisible(bool(self.error_label.text()) and not is_busy)
        self.run_row.setVisible(is_busy)
        parts = (self._needs_fetching, self.stack.has_offer(), is_busy, bool(self.error_label.text()))
        self.setVisible(any(parts))
