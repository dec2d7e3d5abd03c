"""The panel that turns labels into a map: what to map, the preview, one button, the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from qgis.core import QgsProject
from qgis.gui import QgsCollapsibleGroupBox
from qgis.PyQt.QtCore import Qt, QTimer, pyqtSignal
from qgis.PyQt.QtGui import QHideEvent, QShowEvent
from qgis.PyQt.QtWidgets import (
    QCheckBox,
    QHBoxLayout,
    QLabel,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from .. import settings
from ..language import tr
from ..layers import LayerError, raster_parameter
from ..results import load_result
from ..sample import open_sample
from .curve import CurveWidget
from .form import TrainingForm
from .licence import may_use
from .preview import Preview
from .runs import TrainAndMap, as_engine_outputs
from .source_row import SourceRow
from .train_options import TrainOptions, is_interrupted

AFTER_TASK_MS = 300
# An interval of the mIoU that says little.
WIDE = 0.3


class TrainPanel(QScrollArea):
    """Labels in, map out, with one press.

    Signals: `said` level and text for the log, `noticed` level and text for the message bar, `trained` with the path of
    a model package that was just written, `report_wanted` with that of one to be reported on.

    Args:
        iface: QGIS's window; None in tests.
    """

    said = pyqtSignal(str, str)
    noticed = pyqtSignal(str, str)
    trained = pyqtSignal(str)
    report_wanted = pyqtSignal(str)

    def __init__(self, iface: Any = None, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self._iface = iface
        self._training: Optional[TrainAndMap] = None
        self._model = Path()
        # The model that the last line of the panel is about.
        self._reported = Path()
        self._engine_ready = self._ended = False
        # QGIS announces the end of a task by itself; ours comes after it, so that it is what the user sees.
        self._after_task = QTimer(self)
        self._after_task.setSingleShot(True)
        self._after_task.setInterval(AFTER_TASK_MS)
        self._after_task.timeout.connect(lambda: self.noticed.emit("success", self.result_label.text()))
        self.setObjectName("GeopeftTrainPanel")
        self._build()
        self._connect()
        self.refresh()

    @property
    def busy(self) -> bool:
        """True while a training runs."""
        return self._training is not None

    def set_engine_ready(self, ready: bool) -> None:
        """Without an engine labels can be drawn, but nothing learns from them."""
        self._engine_ready = ready
        self.refresh()

    def refresh(self) -> None:
        """Brings buttons and hints up to date with the engine, the layers and what runs."""
        missing = self.form.missing()
        self.run_button.setEnabled(self._engine_ready and not self.busy and not missing)
        self.run_button.setVisible(not self.busy)
        self.stop_button.setVisible(self.busy)
        self.cancel_button.setVisible(self.busy)
        self.form.set_busy(self.busy)
        self.options.setEnabled(not self.busy)
        self.options.set_choice(self._raster_path(), self.form.labels.class_names(), self.form.model())
        self.source_row.set_layer(self.form.raster())
        self.source_row.set_labels(self.form.labels.layer())
        self.report_button.setVisible(self._reported != Path() and not self.busy)
        self.sample_button.setVisible(self.form.raster() is None and not self.busy)
        if not self.busy and not self.result_label.text():
            self.stage_label.setText(missing)
        self._follow_preview()

    def _raster_path(self) -> str:
        try:
            return raster_parameter(self.form.raster())
        except LayerError:
            return ""

    def start(self) -> None:
        """The big button."""
        if self.busy or not self._engine_ready or not may_use(self.form.backbone(), self):
            return
        self.result_label.clear()
        self._reported = Path()
        self.curve.clear()
        self.messages.clear()
        try:
            request = self.form.request(self.options.fit_parameters(), self.options.polygons)
        except LayerError as error:
            self._failed(str(error))
            return
        self._model = request.model
        self._training = training = TrainAndMap(request, self)
        training.progressed.connect(lambda percent: self.progress.setValue(round(percent * 10)))
        training.stepped.connect(self.stage_label.setText)
        training.measured.connect(self.curve.add)
        training.said.connect(self._say)
        training.trained.connect(lambda results: self.result_label.setText(accuracy_text(results)))
        training.finished.connect(self._finished)
        training.failed.connect(self._failed)
        training.canceled.connect(self._canceled)
        self.progress.setValue(0)
        self.progress.setVisible(True)
        self.curve.setVisible(True)
        self.stage_label.setText(self.tr("Starting the engine ..."))
        self.stage_label.setToolTip("")
        self.stop_button.setEnabled(True)
        self.refresh()
        training.start()

    def stop(self) -> None:
        """Ends the training early and maps with the best model so far."""
        if self._training is not None:
            self.stop_button.setEnabled(False)
            self.stage_label.setText(self.tr("Stopping; the best model so far is kept ..."))
            self._training.stop()

    def cancel(self) -> None:
        """Ends the run without a map."""
        if self._training is not None:
            self.stage_label.setText(self.tr("Canceling ..."))
            self._training.cancel()

    def end(self) -> None:
        """Ends whatever runs and lets go of the project's layers; for when the plugin goes away."""
        if self._ended:
            return
        self._ended = True
        if self._training is not None:
            self._training.end()
            self._training = None
        self.preview.end()
        self.source_row.end()
        self.form.end()

    def open_sample(self) -> None:
        """Opens the sample scene, ready to be trained on."""
        try:
            sample = open_sample(QgsProject.instance())
        except LayerError as error:
            self._failed(str(error))
            return
        self.form.set_layers(sample.raster, sample.labels)
        if self._iface is not None:
            canvas = self._iface.mapCanvas()
            canvas.setExtent(canvas.mapSettings().layerExtentToOutputExtent(sample.raster, sample.raster.extent()))
            canvas.refresh()
        self.refresh()

    # What is in the panel

    def _build(self) -> None:
        self.form = TrainingForm(self._iface)
        self.preview_box = QCheckBox(self.tr("Preview while drawing"))
        self.preview_box.setObjectName("GeopeftPreviewBox")
        self.preview_box.setToolTip(
            self.tr("A first map of the visible area from a quick model, made anew with every label.")
        )
        self.preview_box.setChecked(settings.preview_is_on())
        self.preview_label = _text_label()
        self.preview_label.setVisible(False)
        self.preview = Preview(self._iface.mapCanvas() if self._iface is not None else None, self)
        self.source_row = SourceRow()
        self.options = TrainOptions()
        if self._iface is not None:
            self.source_row.set_canvas(self._iface.mapCanvas())
            self.source_row.watch(self._iface.layerTreeView())
        self.form.set_below_raster(self.source_row)
        self.sample_button = _button(self.tr("Open the sample scene"), "GeopeftSampleButton")
        self.sample_button.setToolTip(self.tr("A Landsat scene with labels, ready for a first map."))
        self.run_button = _button(self.tr("Train and map"), "GeopeftRunButton", bold=True)
        self.stop_button = _button(self.tr("Stop and keep"), "GeopeftStopButton")
        self.stop_button.setToolTip(self.tr("Ends the training now and maps with the best model so far."))
        self.cancel_button = _button(self.tr("Cancel"), "GeopeftCancelButton")
        self.progress = QProgressBar()
        self.progress.setRange(0, 1000)
        self.progress.setVisible(False)
        self.stage_label, self.result_label = _text_label(), _text_label()
        font = self.result_label.font()
        font.setBold(True)
        self.result_label.setFont(font)
        self.report_button = _button(self.tr("Accuracy report"), "GeopeftReportOfRun")
        self.report_button.setToolTip(self.tr("All that is known of the model's accuracy as one page."))
        self.curve = CurveWidget()
        self.curve.setVisible(False)
        self.messages = QPlainTextEdit()
        self.messages.setReadOnly(True)
        self.messages.setMaximumBlockCount(5000)
        self.messages.setMinimumHeight(110)
        self._arrange()

    def _arrange(self) -> None:
        buttons = QHBoxLayout()
        buttons.addWidget(self.run_button, 3)
        buttons.addWidget(self.stop_button, 2)
        buttons.addWidget(self.cancel_button, 1)
        log_box = QgsCollapsibleGroupBox(self.tr("Messages"))
        QVBoxLayout(log_box).addWidget(self.messages)
        log_box.setCollapsed(True)
        content = QWidget()
        column = QVBoxLayout(content)
        column.addWidget(self.sample_button)
        column.addWidget(self.form)
        column.addWidget(self.preview_box)
        column.addWidget(self.preview_label)
        column.addWidget(self.options)
        column.addLayout(buttons)
        for widget in (self.progress, self.stage_label, self.result_label, self.report_button):
            column.addWidget(widget)
        column.addWidget(self.curve, 1)
        column.addWidget(log_box)
        column.addStretch(0)
        self.setWidgetResizable(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFrameShape(QScrollArea.Shape.NoFrame)
        self.setWidget(content)
        self.setMinimumWidth(310)

    def _connect(self) -> None:
        self.form.changed.connect(self.refresh)
        self.source_row.fetched.connect(self.form.raster_box.setLayer)
        self.source_row.failed.connect(lambda text: self.noticed.emit("error", text))
        self.run_button.clicked.connect(self.start)
        self.stop_button.clicked.connect(self.stop)
        self.cancel_button.clicked.connect(self.cancel)
        self.sample_button.clicked.connect(self.open_sample)
        self.report_button.clicked.connect(lambda *_: self.report_wanted.emit(str(self._reported)))
        self.preview_box.toggled.connect(self._preview_toggled)
        self.preview.said.connect(self._say)
        self.preview.status.connect(self._show_preview_status)

    def _show_preview_status(self, text: str) -> None:
        self.preview_label.setText(text)
        self.preview_label.setVisible(bool(text))

    def _preview_toggled(self, on: bool) -> None:
        settings.put("preview", "" if on else "off")
        if on:
            # The map has the colours of the table, so the labels get them too.
            self.form.labels.adopt_style()
        self._follow_preview()

    def _follow_preview(self) -> None:
        """The preview shows what is drawn while the panel is seen; a training has the processor to itself."""
        self.preview.set_sources(
            self.form.raster(), self.form.labels.layer(), self.form.labels.class_field(), self.form.preview_options()
        )
        on = self.preview_box.isChecked() and self._engine_ready and self.isVisible() and not self.busy
        self.preview.set_enabled(on and not self.form.missing())

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802
        super().showEvent(event)
        self.refresh()

    def hideEvent(self, event: QHideEvent) -> None:  # noqa: N802
        super().hideEvent(event)
        self._follow_preview()

    # How a training ends

    def _finished(self, fit_results: dict[str, Any], predict_results: dict[str, Any]) -> None:
        self._training = None
        self.progress.setVisible(False)
        self.stage_label.setText(self.tr("Saved {name}").format(name=self._model.name))
        self.stage_label.setToolTip(str(self._model))
        try:
            outputs = as_engine_outputs(predict_results)
            load_result(outputs, QgsProject.instance(), self._model.stem, str(self._model))
        except LayerError as error:
            self._failed(str(error))
            return
        self.result_label.setText(accuracy_text(fit_results))
        self._after_task.start()
        self._reported = self._model
        self.form.suggest_model(after=self._model)
        self.trained.emit(str(self._model))
        self.refresh()

    def _failed(self, text: str) -> None:
        text = f"{text} {self._kept()}".strip()
        self._stopped(text)
        self._say("error", text)
        self.noticed.emit("error", text)

    def _canceled(self) -> None:
        kept = self._kept() or self._interrupted() or self.tr("Nothing was changed.")
        self._stopped(self.tr("Canceled. {kept}").format(kept=kept))

    def _kept(self) -> str:
        """What is there although the run did not come to its end."""
        if self._training is None or not self._training.has_model:
            return ""
        self.form.suggest_model(after=self._model)
        text = self.tr("The model is kept: {path}. The tab 'Apply' can use it.")
        return text.format(path=self._model)

    def _interrupted(self) -> str:
        """That the training can go on, where a checkpoint is kept."""
        if not is_interrupted(self._model):
            return ""
        return self.tr("What it has learned is kept: start it again to go on.")

    def _stopped(self, text: str) -> None:
        self._training = None
        self.progress.setVisible(False)
        self.curve.setVisible(bool(self.curve.lines("loss")))
        self.stage_label.clear()
        self.result_label.setText(text)
        self.refresh()

    def _say(self, level: str, text: str) -> None:
        if text:
            self.messages.appendPlainText(text if level in ("info", "log") else f"{level}: {text}")
            self.said.emit(level, text)


def accuracy_text(fit_results: dict[str, Any]) -> str:
    """The accuracy of a training as a sentence."""
    value, low, high = (fit_results.get(name) for name in ("MIOU", "MIOU_LOW", "MIOU_HIGH"))
    if value is None:
        return tr("The model is trained. There were too few labels to hold some out and measure its accuracy.")
    if low is None or high is None:
        return tr("mIoU {value} on held-out labels").format(value=f"{value:.2f}")
    text = tr("mIoU {value} on held-out labels").format(value=f"{value:.2f} ({low:.2f}–{high:.2f})")
    return f"{text}. {tr('Labels in more places make the interval narrower.')}" if high - low > WIDE else text


def _button(text: str, name: str, bold: bool = False) -> QPushButton:
    button = QPushButton(text)
    button.setObjectName(name)
    button.setMinimumHeight(34 if bold else 28)
    font = button.font()
    font.setBold(bold)
    button.setFont(font)
    return button


def _text_label() -> QLabel:
    label = QLabel()
    label.setWordWrap(True)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label
