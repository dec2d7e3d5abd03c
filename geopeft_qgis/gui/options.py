"""The page in Settings > Options."""

from __future__ import annotations

from typing import Optional

from qgis.gui import QgsFileWidget, QgsOptionsPageWidget, QgsOptionsWidgetFactory
from qgis.PyQt.QtGui import QIcon
from qgis.PyQt.QtWidgets import QComboBox, QFormLayout, QWidget

from .. import settings


class OptionsPage(QgsOptionsPageWidget):
    """The engine's Python, the weights folder, the device."""

    def __init__(self, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self.python_file = QgsFileWidget()
        self.python_file.setFilePath(settings.get("engine_python"))
        self.python_file.lineEdit().setPlaceholderText(self.tr("the engine that the plugin sets up"))
        self.weights_folder = QgsFileWidget()
        self.weights_folder.setStorageMode(QgsFileWidget.StorageMode.GetDirectory)
        self.weights_folder.setFilePath(settings.weights_folder())
        self.device_box = QComboBox()
        self.device_box.addItems(settings.DEVICES)
        self.device_box.setCurrentText(settings.device())
        form = QFormLayout(self)
        form.addRow(self.tr("Python of an engine of your own"), self.python_file)
        form.addRow(self.tr("Folder with pretrained weights"), self.weights_folder)
        form.addRow(self.tr("Device"), self.device_box)

    def apply(self) -> None:
        """Stores what was chosen."""
        settings.put("engine_python", self.python_file.filePath().strip())
        settings.put("weights_folder", self.weights_folder.filePath().strip())
        settings.put("device", self.device_box.currentText())


class OptionsFactory(QgsOptionsWidgetFactory):
    """Makes the page when the options are opened."""

    def __init__(self) -> None:
        super().__init__("GeoPEFT", QIcon(settings.resource("icons", "geopeft.svg")))

    def createWidget(self, parent: Optional[QWidget] = None) -> OptionsPage:  # noqa: N802
        return OptionsPage(parent)
