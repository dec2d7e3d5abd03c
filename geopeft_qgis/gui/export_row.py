"""Exports a model to ONNX in a task, and shows how far it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from qgis.PyQt.QtCore import Qt, pyqtSignal
from qgis.PyQt.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QPushButton, QSizePolicy, QWidget

from .notices import log
from .runs import AlgorithmRun, RunFeedback


class ExportRow(QWidget):
    """A row that is there while a model is exported.

    Signals: `ended` once for each export: the file that was written (empty: none) and the error as a sentence; both
    are empty after a cancel.
    """

    ended = pyqtSignal(str, str)

    def __init__(self, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self._run: Optional[AlgorithmRun] = None
        self.setObjectName("GeopeftExport")
        self.label = QLabel()
        # A long name must not make the panel wider than its place.
        self.label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.bar = QProgressBar()
        self.bar.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.cancel_button = QPushButton(self.tr("Cancel"))
        self.cancel_button.setObjectName("GeopeftCancelExport")
        self.cancel_button.setToolTip(self.tr("Stop the export; no file is written"))
        self.cancel_button.clicked.connect(self.cancel)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.label, 2)
        row.addWidget(self.bar, 2)
        row.addWidget(self.cancel_button)
        self.setVisible(False)

    @property
    def is_busy(self) -> bool:
        """True while an export runs."""
        return self._run is not None

    def start(self, model: str, target: str) -> None:
        """Writes the model as the ONNX file `target`."""
        if self._run is not None:
            return
        feedback = RunFeedback()
        feedback.said.connect(log)
        feedback.progressChanged.connect(lambda percent: self.bar.setValue(round(percent)))
        self._run = AlgorithmRun("geopeft:export", {"MODEL": model, "ONNX": target}, feedback, self)
        self._run.ended.connect(self._ended)
        self.label.setText(self.tr("Exporting {name}").format(name=Path(model).stem))
        self.bar.setValue(0)
        self.cancel_button.setEnabled(True)
        self.setVisible(True)
        self._run.start()

    def cancel(self) -> None:
        """Asks the export to end."""
        self.cancel_button.setEnabled(False)
        if self._run is not None:
            self._run.cancel()

    def end(self) -> None:
        """Ends the export and waits for it; for when the plugin goes away."""
        if self._run is not None:
            self._run.end()
            self._run = None

    def _ended(self, results: dict[str, Any], error: str, canceled: bool) -> None:
        self._run = None
        self.setVisible(False)
        self.ended.emit("" if error or canceled else str(results.get("ONNX") or ""), error)
