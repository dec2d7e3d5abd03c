"""Applies a model to many rasters: choose them, see how each fares, get the maps."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from qgis.core import QgsMapLayer, QgsProject, QgsRasterLayer
from qgis.gui import QgsFileWidget
from qgis.PyQt.QtCore import QSize, Qt, QTimer, pyqtSignal
from qgis.PyQt.QtGui import QShowEvent
from qgis.PyQt.QtWidgets import (
    QCheckBox,
    QFormLayout,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from .. import settings
from ..engine_process import WRITTEN
from ..layers import LayerError
from ..results import load_result, style_class_raster
from .apply_area import AreaChoice
from .apply_run import ApplyRun
from .model_catalogue import Entry
from .model_view import header_html
from .notices import log, notify
from .raster_box import RasterBox
from .raster_list import CANCELED, DONE, FAILED, QUEUED, RUNNING, UNTRIED

NOTICE_S = 15
# Names in the one line that sums up a run; the list has them all.
MAX_NAMED = 3
LAST_FOLDER = "maps_folder"


class ApplyPanel(QWidget):
    """Where a model is applied to any number of rasters.

    Signals: `model_wanted` when the user wants to choose another model, `busy_changed` when a run begins or ends.

    Args:
        iface: QGIS's window, for its map and message bar; None in tests.
    """

    model_wanted = pyqtSignal()
    busy_changed = pyqtSignal(bool)

    def __init__(self, iface: Any = None, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self._iface = iface
        self._model: Optional[Entry] = None
        self._run: Optional[ApplyRun] = None
        self._rasters: list[str] = []
        self._maps: list[dict[str, Any]] = []
        self._failures: dict[str, str] = {}
        self._waiting: list[dict[str, Any]] = []
        self._is_same_project = True
        self._proposed_folder = ""
        self.setObjectName("GeopeftApply")
        self._build()
        QgsProject.instance().cleared.connect(self._project_cleared)
        QgsProject.instance().homePathChanged.connect(self._propose_folder)
        self._propose_folder()
        self._refresh()

    @property
    def is_busy(self) -> bool:
        """True from the press of the button until all maps are in the project."""
        return self._run is not None or bool(self._waiting)

    def set_model(self, entry: Optional[Entry]) -> None:
        """Chooses the model that is applied; does nothing during a run."""
        if self.is_busy:
            return
        self._model = entry
        self.rasters.list.set_model(entry.summary if entry is not None else None)
        layer = self._iface.activeLayer() if self._iface is not None else None
        self.rasters.list.choose_only(layer if isinstance(layer, QgsRasterLayer) else None)
        self.summary_label.clear()
        self.reasons_label.clear()
        self._refresh()

    def start(self) -> None:
        """The Apply button."""
        if self.is_busy or self._model is None:
            return
        self._rasters = self.rasters.list.chosen()
        self._maps, self._failures, self._waiting = [], {}, []
        self._is_same_project = True
        try:
            parameters = self._parameters()
        except LayerError as error:
            self._end_with(str(error), "error")
            return
        if parameters["OUTPUT"] != self._proposed_folder:
            settings.put(LAST_FOLDER, parameters["OUTPUT"])
        for path in self._rasters:
            self.rasters.list.set_state(path, QUEUED)
        self.summary_label.clear()
        self.reasons_label.clear()
        self.stage_label.setText(self.tr("Starting the engine …"))
        self.progress.setValue(0)
        self._run = ApplyRun(parameters, self._rasters, self)
        self._run.running.connect(self._running)
        self._run.mapped.connect(self._mapped)
        self._run.failed.connect(self._failed)
        self._run.progressed.connect(lambda percent: self.progress.setValue(round(percent * 10)))
        self._run.stepped.connect(self.stage_label.setText)
        self._run.said.connect(log)
        self._run.ended.connect(self._ended)
        self._refresh()
        self.busy_changed.emit(True)
        self._run.start()

    def cancel(self) -> None:
        """The Cancel button; maps that are finished stay."""
        if self._run is not None:
            self.stage_label.setText(self.tr("Canceling …"))
            self.cancel_button.setEnabled(False)
            self._run.cancel()

    def end(self) -> None:
        """Ends what runs and waits for it; for when the plugin goes away."""
        if self._run is not None:
            self._run.end()
            self._run = None
        self._waiting = []
        self.rasters.list.end()
        QgsProject.instance().cleared.disconnect(self._project_cleared)
        QgsProject.instance().homePathChanged.disconnect(self._propose_folder)

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(340, 640)

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802
        super().showEvent(event)
        self._refresh()

    # What is in the panel

    def _build(self) -> None:
        self.model_label = QLabel()
        self.model_label.setObjectName("GeopeftChosenModel")
        self.model_label.setWordWrap(True)
        self.model_button = QPushButton(self.tr("Models …"))
        self.model_button.setObjectName("GeopeftChooseModel")
        self.model_button.setToolTip(self.tr("Choose another model"))
        self.model_button.clicked.connect(lambda *_: self.model_wanted.emit())
        self.rasters = RasterBox()
        self.rasters.changed.connect(self._refresh)
        self.folder = QgsFileWidget()
        self.folder.setObjectName("GeopeftMapsFolder")
        self.folder.setStorageMode(QgsFileWidget.StorageMode.GetDirectory)
        self.folder.setToolTip(self.tr("Each raster becomes NAME_map.tif here; a map of that name is replaced"))
        self.confidence_box = self._box("apply_confidence", self.tr("Confidence"), False)
        self.confidence_box.setToolTip(self.tr("Also write how sure the model is of each pixel, in percent"))
        self.entropy_box = self._box("apply_entropy", self.tr("Entropy"), False)
        self.entropy_box.setToolTip(self.tr("Also write how undecided the model is between the classes, in percent"))
        self.outside_box = self._box("apply_outside", self.tr("Outside what the model has seen"), False)
        self.outside_box.setToolTip(
            self.tr("Also write how unlike the labels each pixel is, in percent; above 100 do not trust the map")
        )
        self.unknown_box = self._unknown_box()
        self.polygons_box = self._box("apply_polygons", self.tr("Polygons"), False)
        self.polygons_box.setToolTip(self.tr("Also write the maps as polygons with class, area and confidence"))
        self.load_box = self._box("apply_load", self.tr("Add the maps to the project"), True)
        self.area = AreaChoice(self._iface)
        self.apply_button = QPushButton(self.tr("Apply"))
        self.apply_button.setObjectName("GeopeftApplyNow")
        self.apply_button.setMinimumHeight(36)
        font = self.apply_button.font()
        font.setBold(True)
        self.apply_button.setFont(font)
        self.apply_button.clicked.connect(lambda *_: self.start())
        self.cancel_button = QPushButton(self.tr("Cancel"))
        self.cancel_button.setObjectName("GeopeftCancelApply")
        self.cancel_button.setMinimumHeight(36)
        self.cancel_button.setToolTip(self.tr("Stop after asking the engine; maps that are finished stay"))
        self.cancel_button.clicked.connect(lambda *_: self.cancel())
        self.progress = QProgressBar()
        self.progress.setRange(0, 1000)
        self.stage_label, self.summary_label = _text_label(), _text_label()
        self.summary_label.setObjectName("GeopeftApplySummary")
        self.summary_label.setFont(font)
        self.reasons_label = _text_label()
        self.reasons_label.setObjectName("GeopeftApplyReasons")
        self._arrange()

    def _box(self, name: str, text: str, default: bool) -> QCheckBox:
        """A box that is as the user left it."""
        box = QCheckBox(text)
        box.setObjectName(f"Geopeft_{name}")
        box.setChecked(settings.get(name, "yes" if default else "no") == "yes")
        box.toggled.connect(lambda checked: settings.put(name, "yes" if checked else "no"))
        return box

    def _unknown_box(self) -> QSpinBox:
        """The least confidence of what gets a class, as the user left it."""
        box = QSpinBox()
        box.setObjectName("Geopeft_apply_unknown")
        box.setRange(0, 99)
        box.setSuffix(self.tr(" %"))
        box.setSpecialValueText(self.tr("never"))
        box.setToolTip(self.tr("Pixels that the model is less sure of are mapped as a class of their own, unknown"))
        kept = settings.get("apply_unknown", "0")
        box.setValue(int(kept) if kept.isdecimal() else 0)
        box.valueChanged.connect(lambda value: settings.put("apply_unknown", str(value)))
        return box

    def _arrange(self) -> None:
        head = QHBoxLayout()
        head.addWidget(self.model_label, 1)
        head.addWidget(self.model_button, 0, Qt.AlignmentFlag.AlignTop)
        # Two beside each other: in some languages three are wider than the dock.
        extras = QGridLayout()
        extras.addWidget(self.confidence_box, 0, 0)
        extras.addWidget(self.polygons_box, 0, 1)
        extras.addWidget(self.entropy_box, 1, 0)
        extras.addWidget(self.outside_box, 2, 0, 1, 2)
        extras.setColumnStretch(1, 1)
        self.options = QWidget()
        form = QFormLayout(self.options)
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        form.addRow(self.tr("Maps go to"), self.folder)
        form.addRow(self.tr("Also write"), extras)
        form.addRow(self.tr("Unknown below"), self.unknown_box)
        form.addRow(self.tr("Area"), self.area)
        form.addRow("", self.load_box)
        buttons = QHBoxLayout()
        buttons.addWidget(self.apply_button, 3)
        buttons.addWidget(self.cancel_button, 1)
        content = QWidget()
        column = QVBoxLayout(content)
        column.addLayout(head)
        column.addWidget(self.rasters, 1)
        column.addWidget(self.options)
        column.addLayout(buttons)
        for widget in (self.progress, self.stage_label, self.summary_label, self.reasons_label):
            column.addWidget(widget)
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setFrameShape(QScrollArea.Shape.NoFrame)
        scroll.setWidget(content)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.addWidget(scroll)

    def _refresh(self) -> None:
        """Brings buttons and hints up to date."""
        is_running = self._run is not None
        if self._model is None:
            self.model_label.setText(self.tr("No model is chosen."))
        else:
            self.model_label.setText(header_html(self._model))
            self.model_label.setToolTip(self._model.path)
        hint = self._missing()
        self.rasters.lock(is_running)
        for widget in (self.options, self.model_button):
            widget.setEnabled(not is_running)
        self.apply_button.setEnabled(not self.is_busy and not hint)
        self.apply_button.setToolTip(hint or self.tr("Map the chosen rasters with this model"))
        self.cancel_button.setVisible(is_running)
        self.cancel_button.setEnabled(is_running)
        self.progress.setVisible(is_running)
        if not is_running:
            self.stage_label.setText("" if self.summary_label.text() else hint)
        self.stage_label.setVisible(bool(self.stage_label.text()) or is_running)
        for label in (self.summary_label, self.reasons_label):
            label.setVisible(bool(label.text()))

    def _missing(self) -> str:
        """What the user has to do before rasters can be mapped; empty when nothing is missing."""
        if self._model is None:
            return self.tr("Choose a model.")
        if self._model.summary is None:
            return self.tr("This model cannot be used. Choose another one.")
        if not self.rasters.list.chosen():
            return self.tr("Choose the rasters to map, or add files or a folder.")
        return ""

    def _propose_folder(self) -> None:
        """Beside the project, unless the user has chosen another folder."""
        current = self.folder.filePath().strip()
        if current and current != self._proposed_folder:
            return
        home = QgsProject.instance().homePath()
        beside = Path(home) if home else settings.models_folder().parent
        self._proposed_folder = ("" if home else settings.get(LAST_FOLDER)) or str(beside / "maps")
        self.folder.setFilePath(self._proposed_folder)

    # A run

    def _parameters(self) -> dict[str, Any]:
        """Of the algorithm; LayerError where something cannot be used."""
        folder = self.folder.filePath().strip()
        if not folder:
            raise LayerError(self.tr("No folder for the maps is chosen. Choose one."))
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            text = self.tr("The folder {folder} cannot be made ({reason}). Choose another one for the maps.")
            raise LayerError(text.format(folder=folder, reason=error.strerror)) from error
        area = self.area.value()
        return {
            "MODEL": self._model.path if self._model is not None else "",
            "FILES": self._rasters,
            "CONFIDENCE": self.confidence_box.isChecked(),
            "ENTROPY": self.entropy_box.isChecked(),
            "OUTSIDE": self.outside_box.isChecked(),
            "UNKNOWN_BELOW": self.unknown_box.value(),
            "POLYGONS": self.polygons_box.isChecked(),
            "DEVICE": settings.device(),
            "OUTPUT": folder,
            **({"AOI": area} if area is not None else {}),
        }

    def _running(self, place: int, percent: float) -> None:
        self.rasters.list.set_state(self._rasters[place], RUNNING, percent=percent)

    def _mapped(self, place: int, entry: dict[str, Any]) -> None:
        self._maps.append(entry)
        sentence = self.tr("Map: {path}").format(path=entry.get("class_raster", ""))
        self.rasters.list.set_state(self._rasters[place], DONE, sentence)

    def _failed(self, place: int, sentence: str) -> None:
        self._failures[self._rasters[place]] = sentence
        self.rasters.list.set_state(self._rasters[place], FAILED, sentence)

    def _ended(self, error: str, canceled: bool) -> None:
        self._run = None
        for path in self._rasters:
            if self.rasters.list.state(path) in (QUEUED, RUNNING):
                self.rasters.list.set_state(path, CANCELED if canceled else UNTRIED)
        if self.load_box.isChecked() and self._is_same_project:
            # Each goes to the top, so that the first one has to come last.
            self._waiting = self._maps[::-1]
        text, level = self._summary(error, canceled)
        self._end_with(text, level)
        self.busy_changed.emit(False)
        self._load_next()

    def _summary(self, error: str, canceled: bool) -> tuple[str, str]:
        """The run in one line, and how good the news is."""
        parts = [self.tr("Rasters mapped: {count}.").format(count=len(self._maps))]
        if self._failures:
            names = ", ".join(self.rasters.list.names(list(self._failures)[:MAX_NAMED]))
            more = ", …" if len(self._failures) > MAX_NAMED else ""
            text = self.tr("Failed: {count} ({names}).")
            parts.append(text.format(count=len(self._failures), names=f"{names}{more}"))
        if canceled:
            return " ".join([self.tr("Canceled."), *parts]), "warning"
        if error and not self._maps:
            return error, "error"
        if error:
            return " ".join([error, *parts]), "error"
        return " ".join(parts), "warning" if self._failures else "success"

    def _end_with(self, text: str, level: str) -> None:
        self.summary_label.setText(text)
        self.reasons_label.setText(self._reasons())
        self._refresh()
        log(level, text)
        # QGIS announces the end of the task by itself; this comes after it, so that it is what the user sees.
        QTimer.singleShot(300, lambda: notify(self._iface, level, text, NOTICE_S))

    def _reasons(self) -> str:
        """Why rasters failed, a line each; the log has them all."""
        failed = list(self._failures)[:MAX_NAMED]
        names = self.rasters.list.names(failed)
        return "\n".join(f"{name}: {self._failures[path]}" for name, path in zip(names, failed))

    # The maps

    def _load_next(self) -> None:
        """Adds the maps to the project one by one, so that the window stays alive."""
        if not self._waiting:
            self._refresh()
            return
        entry = self._waiting.pop(0)
        model = self._model.path if self._model is not None else ""
        try:
            if not _reload(entry):
                name = f"{Path(str(entry.get('raster'))).stem}, {Path(model).stem}"
                load_result({"rasters": [entry]}, QgsProject.instance(), name, model)
        except LayerError as error:
            log("warning", str(error))
        QTimer.singleShot(0, self._load_next)

    def _project_cleared(self) -> None:
        """Maps of a run do not go into another project than the one it was started in."""
        self._is_same_project = False
        self._waiting = []


def _reload(entry: Mapping[str, Any]) -> bool:
    """Shows the new content of maps that are in the project already; False where one of them is not."""
    classes = entry.get("classes") or []
    files = [entry[kind] for kind in WRITTEN if entry.get(kind)]
    layers = {file: _layers_of(file) for file in files}
    if not all(layers.values()):
        return False
    for layer in (layer for found in layers.values() for layer in found):
        layer.reload()
        if layer in layers[files[0]]:
            style_class_raster(layer, classes)
        layer.triggerRepaint()
    return True


def _layers_of(file: str) -> list[QgsMapLayer]:
    wanted = os.path.normcase(os.path.abspath(file))
    layers = QgsProject.instance().mapLayers().values()
    return [x for x in layers if os.path.normcase(os.path.abspath(x.source().split("|")[0])) == wanted]


def _text_label() -> QLabel:
    label = QLabel()
    label.setWordWrap(True)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label
