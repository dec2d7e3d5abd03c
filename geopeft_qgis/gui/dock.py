"""The dock: raster, labels, one button, and the map."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from qgis.core import Qgis, QgsApplication, QgsMessageLog, QgsProject
from qgis.gui import QgsCollapsibleGroupBox, QgsDockWidget
from qgis.PyQt.QtCore import Qt, QTimer
from qgis.PyQt.QtWidgets import (
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
from ..layers import LayerError
from ..results import load_result
from .curve import CurveWidget
from .form import TrainingForm
from .runs import END_WAIT_MS, SetupTask, TrainAndMap, as_engine_outputs

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
        self._model = Path()
        self.setObjectName("GeopeftDock")
        self.setWindowTitle("GeoPEFT")
        self._build()
        self.form.changed.connect(self.refresh)
        self.run_button.clicked.connect(self.start)
        self.cancel_button.clicked.connect(self.cancel)
        self.visibilityChanged.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Brings buttons and hints up to date with the engine, the layers and what runs."""
        self._engine_ready = settings.engine_python() is not None
        busy = self._training is not None or self._setup is not None
        set_up = self.tr("The engine is a separate environment (about 3 GB to download), set up once.")
        hint = self.form.missing() if self._engine_ready else set_up
        self.run_button.setText(self.tr("Train and map") if self._engine_ready else self.tr("Set up the engine"))
        self.run_button.setEnabled(not busy and (not self._engine_ready or not hint))
        self.cancel_button.setVisible(busy)
        self.form.setEnabled(not busy)
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
            self._setup.waitForFinished(END_WAIT_MS)
            self._setup = None

    # What is in the dock

    def _build(self) -> None:
        self.form = TrainingForm()
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
        self._arrange()

    def _arrange(self) -> None:
        buttons = QHBoxLayout()
        buttons.addWidget(self.run_button, 3)
        buttons.addWidget(self.cancel_button, 1)
        log_box = QgsCollapsibleGroupBox(self.tr("Messages"))
        QVBoxLayout(log_box).addWidget(self.messages)
        log_box.setCollapsed(True)
        content = QWidget()
        column = QVBoxLayout(content)
        column.addWidget(self.form)
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

    # Training

    def _train(self) -> None:
        self.curve.clear()
        self.messages.clear()
        try:
            request = self.form.request()
        except LayerError as error:
            self._failed(str(error))
            return
        self._model = request.model
        self._training = TrainAndMap(request, self)
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
        text = accuracy_text(fit_results)
        self.result_label.setText(text)
        # QGIS announces the end of the task by itself; this comes after it, so that it is what the user sees.
        QTimer.singleShot(300, lambda: self._notify(text, "success"))
        self.form.suggest_model(after=self._model)
        self.refresh()

    def _failed(self, text: str) -> None:
        text = f"{text} {self._kept()}".strip()
        self._stopped(text)
        self._say("error", text)
        self._notify(text, "error")

    def _canceled(self) -> None:
        kept = self._kept() or self.tr("Nothing was changed.")
        self._stopped(self.tr("Canceled. {kept}").format(kept=kept))

    def _kept(self) -> str:
        """What is there although the run did not come to its end."""
        if self._training is None or not self._training.has_model:
            return ""
        self.form.suggest_model(after=self._model)
        text = self.tr("The model is kept: {path}. 'Apply a model' in the toolbox can use it.")
        return text.format(path=self._model)

    def _stopped(self, text: str) -> None:
        self._training = None
        self.progress.setVisible(False)
        self.stage_label.clear()
        self.result_label.setText(text)
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


def _text_label() -> QLabel:
    label = QLabel()
    label.setWordWrap(True)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label
