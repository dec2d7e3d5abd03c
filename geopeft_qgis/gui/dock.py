"""The dock: raster, labels, one button, and the map."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Optional

from qgis.core import (
    Qgis,
    QgsApplication,
    QgsMapLayerProxyModel,
    QgsMessageLog,
    QgsProcessingFeatureSourceDefinition,
    QgsProject,
)
from qgis.gui import (
    QgsCollapsibleGroupBox,
    QgsDockWidget,
    QgsFieldComboBox,
    QgsFileWidget,
    QgsMapLayerComboBox,
)
from qgis.PyQt.QtCore import Qt, QTimer
from qgis.PyQt.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from .. import settings
from ..algorithms.fit import BACKBONES
from ..layers import LayerError
from ..results import load_result
from .curve import CurveWidget
from .runs import SetupTask, TrainAndMap, TrainingRequest, as_engine_outputs

LEVELS = {
    "info": Qgis.MessageLevel.Info,
    "warning": Qgis.MessageLevel.Warning,
    "error": Qgis.MessageLevel.Critical,
    "success": Qgis.MessageLevel.Success,
}


class GeopeftDock(QgsDockWidget):
    """Where an analyst trains a model and maps a raster with one press.

    Args:
        iface: QGIS's window, for its message bar; None in tests.
    """

    def __init__(self, iface: Any = None, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self._iface = iface
        self._training: Optional[TrainAndMap] = None
        self._setup: Optional[SetupTask] = None
        self._request: Optional[TrainingRequest] = None
        self._suggested_model = ""
        self.setObjectName("GeopeftDock")
        self.setWindowTitle("GeoPEFT")
        self._build()
        self._connect()
        self._labels_changed()
        self._suggest_model()
        self.refresh()

    def refresh(self) -> None:
        """Brings buttons and hints up to date with the engine, the layers and what runs."""
        self._engine_ready = settings.engine_python() is not None
        busy = self._training is not None or self._setup is not None
        hint = self._what_is_missing()
        self.run_button.setText(self.tr("Train and map") if self._engine_ready else self.tr("Set up the engine"))
        self.run_button.setEnabled(not busy and (not self._engine_ready or not hint))
        self.cancel_button.setVisible(busy)
        self.form_box.setEnabled(not busy)
        if not busy and not self.result_label.text():
            self.stage_label.setText(hint)

    def start(self) -> None:
        """The big button: sets up the engine, or trains and maps."""
        if self._training is not None or self._setup is not None:
            return
        self.result_label.clear()
        self.progress.setVisible(True)
        if self._engine_ready:
            self._train()
        else:
            self._set_up()
        self.refresh()

    def cancel(self) -> None:
        """The Cancel button."""
        self.stage_label.setText(self.tr("Canceling ..."))
        if self._training is not None:
            self._training.cancel()
        if self._setup is not None:
            self._setup.cancel()

    def end(self) -> None:
        """Ends whatever runs; for when the plugin goes away."""
        if self._training is not None:
            self._training.end()
            self._training = None
        if self._setup is not None:
            self._setup.ended.disconnect()
            self._setup.said.disconnect()
            self._setup.cancel()
            self._setup = None

    # What is in the dock

    def _build(self) -> None:
        self.raster_box = QgsMapLayerComboBox()
        self.raster_box.setFilters(QgsMapLayerProxyModel.Filter.RasterLayer)
        self.label_box = QgsMapLayerComboBox()
        self.label_box.setFilters(QgsMapLayerProxyModel.Filter.HasGeometry)
        self.selected_box = QCheckBox(self.tr("Selected labels only"))
        self.field_box = QgsFieldComboBox()
        self.backbone_box = QComboBox()
        self.backbone_box.setEditable(True)
        self.backbone_box.addItems(BACKBONES)
        self.backbone_box.setToolTip(self.tr("auto chooses by bands and pixel size; any timm name can be typed."))
        self.background_edit = QLineEdit()
        self.background_edit.setPlaceholderText(self.tr("none"))
        self.background_edit.setToolTip(
            self.tr("Name of a class made of everything without a label inside the labels' extent. Needed where only "
                    "one kind of thing is drawn, such as buildings.")
        )
        self.minutes_box = QSpinBox()
        self.minutes_box.setRange(0, 24 * 60)
        self.minutes_box.setSuffix(self.tr(" min"))
        self.minutes_box.setSpecialValueText(self.tr("none"))
        self.model_file = QgsFileWidget()
        self.model_file.setStorageMode(QgsFileWidget.StorageMode.SaveFile)
        self.model_file.setFilter(self.tr("GeoPEFT model (*.geopeft)"))
        self.run_button = QPushButton()
        self.run_button.setMinimumHeight(36)
        font = self.run_button.font()
        font.setBold(True)
        self.run_button.setFont(font)
        self.cancel_button = QPushButton(self.tr("Cancel"))
        self.cancel_button.setMinimumHeight(36)
        self.progress = QProgressBar()
        self.progress.setRange(0, 1000)
        self.progress.setVisible(False)
        self.stage_label, self.result_label = _text_label(), _text_label()
        self.result_label.setFont(font)
        self.curve = CurveWidget()
        self.messages = QPlainTextEdit()
        self.messages.setReadOnly(True)
        self.messages.setMaximumBlockCount(5000)
        self.messages.setMinimumHeight(110)
        for box in (self.raster_box, self.label_box, self.field_box, self.backbone_box):
            # Long names must not make the dock wider than its place.
            box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            box.setMinimumContentsLength(8)
        self._arrange()

    def _arrange(self) -> None:
        self.form_box = QWidget()
        form = QFormLayout(self.form_box)
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.DontWrapRows)
        for title, widget in (
            (self.tr("Raster"), self.raster_box),
            (self.tr("Labels"), self.label_box),
            ("", self.selected_box),
            (self.tr("Class field"), self.field_box),
            (self.tr("Model type"), self.backbone_box),
            (self.tr("Background"), self.background_edit),
            (self.tr("Time limit"), self.minutes_box),
            (self.tr("Save model as"), self.model_file),
        ):
            form.addRow(title, widget)
        buttons = QHBoxLayout()
        buttons.addWidget(self.run_button, 3)
        buttons.addWidget(self.cancel_button, 1)
        log_box = QgsCollapsibleGroupBox(self.tr("Messages"))
        QVBoxLayout(log_box).addWidget(self.messages)
        log_box.setCollapsed(True)
        content = QWidget()
        column = QVBoxLayout(content)
        column.addWidget(self.form_box)
        column.addLayout(buttons)
        for widget in (self.progress, self.stage_label, self.result_label):
            column.addWidget(widget)
        column.addWidget(self.curve, 1)
        column.addWidget(log_box)
        column.addStretch(0)
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setFrameShape(QScrollArea.Shape.NoFrame)
        scroll.setWidget(content)
        scroll.setMinimumWidth(310)
        self.setWidget(scroll)

    def _connect(self) -> None:
        self.raster_box.layerChanged.connect(self._suggest_model)
        self.raster_box.layerChanged.connect(self.refresh)
        self.label_box.layerChanged.connect(self._labels_changed)
        self.field_box.fieldChanged.connect(self.refresh)
        self.run_button.clicked.connect(self.start)
        self.cancel_button.clicked.connect(self.cancel)
        self.visibilityChanged.connect(self.refresh)

    def _labels_changed(self) -> None:
        layer = self.label_box.currentLayer()
        self.field_box.setLayer(layer)
        if layer is not None:
            names = [field.name() for field in layer.fields()]
            texts = [field.name() for field in layer.fields() if field.typeName().lower() in ("string", "text")]
            wanted = [name for name in names if name.lower() in ("class", "klasse", "label", "category")]
            self.field_box.setField((wanted or texts or names or [""])[0])
        self.refresh()

    def _what_is_missing(self) -> str:
        if not self._engine_ready:
            return self.tr("The engine is a separate environment (about 3 GB to download), set up once.")
        if self.raster_box.currentLayer() is None:
            return self.tr("Add a raster to the project.")
        if self.label_box.currentLayer() is None:
            return self.tr("Add a layer with labels: a few polygons of each class, with a field for the class.")
        if not self.field_box.currentField():
            return self.tr("Choose the field with the class.")
        return ""

    def _suggest_model(self) -> None:
        """A name for the model that is not taken yet, unless the user chose one."""
        if self.model_file.filePath() not in ("", self._suggested_model):
            return
        layer = self.raster_box.currentLayer()
        name = "".join(c if c.isalnum() or c in "-_" else "_" for c in layer.name()) if layer else "model"
        home = QgsProject.instance().homePath()
        folder = Path(home) if home else settings.models_folder()
        self._suggested_model = str(_free(folder / f"{name}-{datetime.now():%Y-%m-%d}.geopeft"))
        self.model_file.setFilePath(self._suggested_model)
        self.model_file.setToolTip(self._suggested_model)

    # Training

    def _train(self) -> None:
        self._suggest_model()
        self.curve.clear()
        self.messages.clear()
        model = Path(self.model_file.filePath().strip())
        model = model if model.suffix == ".geopeft" else model.with_name(model.name + ".geopeft")
        try:
            model.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._failed(self.tr("The folder {folder} cannot be made ({reason}). Choose another one.").format(
                folder=model.parent, reason=error.strerror))
            return
        raster = self.raster_box.currentLayer()
        self._request = TrainingRequest(
            self._fit_parameters(model), raster, model, _free(model.with_name(f"{model.stem}_map.tif"))
        )
        self._training = TrainAndMap(self._request, self)
        self._training.progressed.connect(lambda percent: self.progress.setValue(round(percent * 10)))
        self._training.stepped.connect(self.stage_label.setText)
        self._training.measured.connect(self.curve.add)
        self._training.said.connect(self._say)
        self._training.trained.connect(lambda results: self.result_label.setText(accuracy_text(results)))
        self._training.finished.connect(self._finished)
        self._training.failed.connect(self._failed)
        self._training.canceled.connect(self._canceled)
        self.progress.setValue(0)
        self.stage_label.setText(self.tr("Starting the engine ..."))
        self.stage_label.setToolTip("")
        self._training.start()

    def _fit_parameters(self, model: Path) -> dict[str, Any]:
        labels = self.label_box.currentLayer()
        return {
            "RASTERS": [self.raster_box.currentLayer()],
            "LABELS": QgsProcessingFeatureSourceDefinition(labels.id(), self.selected_box.isChecked()),
            "CLASS_FIELD": self.field_box.currentField(),
            "BACKBONE": self.backbone_box.currentText().strip() or "auto",
            "BACKGROUND": self.background_edit.text().strip(),
            "MAX_MINUTES": self.minutes_box.value(),
            "DEVICE": settings.device(),
            "MODEL": str(model),
        }

    def _finished(self, fit_results: dict[str, Any], predict_results: dict[str, Any]) -> None:
        request = self._request
        self._training = None
        self.progress.setVisible(False)
        self.stage_label.setText(self.tr("Saved {name}").format(name=request.model.name))
        self.stage_label.setToolTip(str(request.model))
        try:
            outputs = as_engine_outputs(predict_results)
            load_result(outputs, QgsProject.instance(), request.model.stem, str(request.model))
        except LayerError as error:
            self._failed(str(error))
            return
        text = accuracy_text(fit_results)
        self.result_label.setText(text)
        # QGIS announces the end of the task by itself; this comes after it, so that it is what the user sees.
        QTimer.singleShot(300, lambda: self._notify(text, "success"))
        self._suggest_model()
        self.refresh()

    def _failed(self, text: str) -> None:
        self._training = None
        self.progress.setVisible(False)
        self.stage_label.clear()
        self.result_label.setText(text)
        self._say("error", text)
        self._notify(text, "error")
        self.refresh()

    def _canceled(self) -> None:
        self._training = None
        self.progress.setVisible(False)
        self.result_label.setText(self.tr("Canceled. Nothing was changed; press the button to run again."))
        self.stage_label.clear()
        self.refresh()

    # Setting up

    def _set_up(self) -> None:
        self.progress.setRange(0, 0)
        self._setup = SetupTask()
        self._setup.said.connect(self.stage_label.setText)
        self._setup.said.connect(lambda text: self._say("info", text))
        self._setup.ended.connect(self._set_up_ended)
        QgsApplication.taskManager().addTask(self._setup)

    def _set_up_ended(self, error: str) -> None:
        self._setup = None
        self.progress.setRange(0, 1000)
        self.progress.setVisible(False)
        self.stage_label.clear()
        if error:
            self._failed(error)
        else:
            self._notify(self.tr("The engine is ready."), "success")
        self.refresh()

    # Saying

    def _say(self, level: str, text: str) -> None:
        if text:
            self.messages.appendPlainText(text if level in ("info", "log") else f"{level}: {text}")
            QgsMessageLog.logMessage(text, "GeoPEFT", LEVELS.get(level, LEVELS["info"]), level == "warning")

    def _notify(self, text: str, level: str) -> None:
        if self._iface is not None:
            seconds = 0 if level == "error" else 10
            self._iface.messageBar().pushMessage("GeoPEFT", text, LEVELS[level], seconds)


def accuracy_text(fit_results: dict[str, Any]) -> str:
    """The accuracy of a training as a sentence."""
    value, low, high = (fit_results.get(name) for name in ("MIOU", "MIOU_LOW", "MIOU_HIGH"))
    if value is None:
        return "The model is trained. There were too few labels to hold some out and measure its accuracy."
    interval = f" ({low:.2f}–{high:.2f})" if low is not None and high is not None else ""
    return f"mIoU {value:.2f}{interval} on held-out labels"


def _free(path: Path) -> Path:
    """The path, or one with a number where it is taken."""
    number, free = 2, path
    while free.exists():
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return free


def _text_label() -> QLabel:
    label = QLabel()
    label.setWordWrap(True)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label
