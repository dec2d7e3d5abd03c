"""The page in Settings > Options."""

from __future__ import annotations

from pathlib import Path
from typing import Optional
from urllib.parse import urlsplit

from qgis.gui import QgsFileWidget, QgsOptionsPageWidget, QgsOptionsWidgetFactory
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtGui import QIcon
from qgis.PyQt.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFormLayout,
    QGroupBox,
    QLabel,
    QLineEdit,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from .. import device_text, settings
from .setup import SetupPanel
from .setup_tasks import EngineSetup

DEVICE_TITLES = {
    "auto": "Automatic: the GPU where there is one",
    "cpu": "CPU",
    "cuda": "NVIDIA GPU (CUDA)",
    "mps": "Apple GPU (MPS)",
}


class OptionsPage(QgsOptionsPageWidget):
    """The engine, the device, folders, the preview.

    Args:
        setup: the plugin's EngineSetup, so that what is started here goes on when the dialog is closed.
    """

    def __init__(self, parent: Optional[QWidget] = None, setup: Optional[EngineSetup] = None) -> None:
        super().__init__(parent)
        self.setObjectName("GeopeftOptions")
        self.setup = setup or EngineSetup(self)
        self._stored = {name: settings.get(name) for name in ("engine_python", "kit_folder")}
        self._build_engine()
        self._build_computing()
        self._build_folders()
        content = QWidget()
        column = QVBoxLayout(content)
        for group in (self._engine_group(), self._computing_group(), self._folder_group()):
            column.addWidget(group)
        column.addStretch(1)
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QScrollArea.Shape.NoFrame)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(content)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(scroll)
        self.setup.changed.connect(self._sync)
        self.device_box.currentIndexChanged.connect(self._show_device)
        self.setup.check()
        self._show_device()

    # Building

    def _build_engine(self) -> None:
        self.panel = SetupPanel(self.setup, manages=True)
        self.python_file = _path("OptionsPython", settings.get("engine_python"), file=True)
        self.python_file.lineEdit().setPlaceholderText(self.tr("the engine that GeoPEFT sets up"))
        self.python_file.setToolTip(
            self.tr("The Python of an environment of your own with PyTorch and the other packages of the engine.")
        )
        self.python_file.fileChanged.connect(self._show_problems)
        self.kit_folder = _path("OptionsKit", settings.get("kit_folder"))
        self.kit_folder.lineEdit().setPlaceholderText(self.tr("none: packages are downloaded"))
        self.kit_folder.setToolTip(self.tr("Folder made by 'python3 build.py kit', for a machine without a network."))
        self.index_edit = QLineEdit(settings.get("package_index"))
        self.index_edit.setObjectName("OptionsIndex")
        self.index_edit.setPlaceholderText(self.tr("the one that pip and uv use"))
        self.index_edit.setToolTip(
            self.tr("Address of a package index of your company. It is kept in your own settings only.")
        )
        self.index_edit.textChanged.connect(self._show_problems)
        self.problem = QLabel()
        self.problem.setObjectName("OptionsProblem")
        self.problem.setWordWrap(True)
        self.problem.setVisible(False)

    def _build_computing(self) -> None:
        self.device_box = QComboBox()
        self.device_box.setObjectName("OptionsDevice")
        for name in settings.DEVICES:
            self.device_box.addItem(self.tr(DEVICE_TITLES[name]), name)
        self.device_box.setCurrentIndex(self.device_box.findData(settings.device()))
        self.device_box.setToolTip(self.tr("What jobs compute on unless they say otherwise."))
        self.device_label = QLabel()
        self.device_label.setObjectName("OptionsDeviceText")
        self.device_label.setWordWrap(True)
        self.preview_box = QCheckBox(self.tr("Show a first map while I label"))
        self.preview_box.setObjectName("OptionsPreview")
        self.preview_box.setChecked(settings.preview_is_on())
        self.preview_box.setToolTip(self.tr("Needs an engine that stays started, with about 1 GB of memory."))

    def _build_folders(self) -> None:
        self.weights_folder = _path("OptionsWeights", settings.weights_folder())
        self.weights_folder.lineEdit().setPlaceholderText(self.tr("none: weights are downloaded where needed"))
        self.weights_folder.setToolTip(
            self.tr("Folder with pretrained weights, one folder for each backbone; looked into before any download.")
        )
        self.models_folder = _path("OptionsModels", settings.get("models_folder"))
        self.models_folder.lineEdit().setPlaceholderText(str(settings.default_models_folder()))
        self.models_folder.setToolTip(self.tr("Where new models go unless you choose another place."))

    def _engine_group(self) -> QGroupBox:
        group = QGroupBox(self.tr("Engine"))
        column = QVBoxLayout(group)
        column.addWidget(self.panel)
        form = QFormLayout()
        form.addRow(self.tr("Python of your own"), self.python_file)
        form.addRow(self.tr("Offline kit"), self.kit_folder)
        form.addRow(self.tr("Package index"), self.index_edit)
        column.addLayout(form)
        column.addWidget(self.problem)
        return group

    def _computing_group(self) -> QGroupBox:
        group = QGroupBox(self.tr("Computing"))
        form = QFormLayout(group)
        form.addRow(self.tr("Device"), self.device_box)
        form.addRow("", self.device_label)
        form.addRow("", self.preview_box)
        return group

    def _folder_group(self) -> QGroupBox:
        group = QGroupBox(self.tr("Folders"))
        form = QFormLayout(group)
        form.addRow(self.tr("Pretrained weights"), self.weights_folder)
        form.addRow(self.tr("Models"), self.models_folder)
        return group

    # Showing

    def _sync(self) -> None:
        """The panel's buttons change two of the fields, too."""
        for name, field in (("engine_python", self.python_file), ("kit_folder", self.kit_folder)):
            stored = settings.get(name)
            if stored != self._stored[name]:
                self._stored[name] = stored
                field.setFilePath(stored)
        self._show_device()

    def _show_device(self) -> None:
        self.device_label.setText(device_text.summary(self.setup.told, self.device_box.currentData()))

    def _show_problems(self) -> None:
        problem = self.index_problem() or self.python_problem()
        self.problem.setText(problem)
        self.problem.setVisible(bool(problem))

    def index_problem(self) -> str:
        """What is wrong with the package index, or empty."""
        text = self.index_edit.text().strip()
        parts = urlsplit(text)
        if not text or (parts.scheme in ("https", "http", "file") and (parts.netloc or parts.path)):
            return ""
        return self.tr("A package index is an address that begins with https://, and this one is not used.")

    def python_problem(self) -> str:
        """What can be told at once about the Python of the user's own; the rest is found out when it is applied."""
        path = self.python_file.filePath().strip()
        if not path or Path(path).is_file():
            return ""
        return self.tr("There is no Python at {path}.").format(path=path)

    def apply(self) -> None:
        """Stores what was chosen; a Python of the user's own is looked at in the background."""
        if not self.index_problem():
            settings.put("package_index", self.index_edit.text().strip())
        settings.put("kit_folder", self.kit_folder.filePath().strip())
        settings.put("weights_folder", self.weights_folder.filePath().strip())
        settings.put("models_folder", self.models_folder.filePath().strip())
        settings.put("preview", "" if self.preview_box.isChecked() else "off")
        settings.put("device", self.device_box.currentData())
        python = self.python_file.filePath().strip()
        if python != settings.get("engine_python"):
            self.setup.use_own(python)
        else:
            self.setup.changed.emit()


class OptionsFactory(QgsOptionsWidgetFactory):
    """Makes the page when the options are opened."""

    def __init__(self, setup: Optional[EngineSetup] = None) -> None:
        super().__init__("GeoPEFT", QIcon(settings.resource("icons", "geopeft.svg")))
        self._setup = setup

    def createWidget(self, parent: Optional[QWidget] = None) -> OptionsPage:  # noqa: N802
        return OptionsPage(parent, self._setup)


def _path(name: str, value: str, file: bool = False) -> QgsFileWidget:
    """A field for a file or a folder."""
    widget = QgsFileWidget()
    widget.setObjectName(name)
    if not file:
        widget.setStorageMode(QgsFileWidget.StorageMode.GetDirectory)
    widget.setFilePath(value)
    return widget
