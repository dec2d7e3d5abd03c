"""One algorithm in a task, with a bar that shows how far it is and a button that ends it."""

from __future__ import annotations

from typing import Any, Optional

from qgis.PyQt.QtCore import Qt, pyqtSignal
from qgis.PyQt.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QPushButton, QSizePolicy, QWidget

from .notices import log
from .runs import AlgorithmRun, RunFeedback


class RunRow(QWidget):
    """A row that is there while something runs.

    Signals: `said` level and text of the algorithm's messages; `ended` once for each run: its results, the error as a
    sentence, and whether it was canceled.
    """

    said = pyqtSignal(str, str)
    ended = pyqtSignal(dict, str, bool)

    def __init__(self, name: str, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self._run: Optional[AlgorithmRun] = None
        self.setObjectName(name)
        self.label = QLabel()
        # A long name must not make the panel wider than its place.
        self.label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.bar = QProgressBar()
        self.bar.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.cancel_button = QPushButton(self.tr("Cancel"))
        self.cancel_button.setObjectName(f"{name}Cancel")
        self.cancel_button.setToolTip(self.tr("Stop; no file is written"))
        self.cancel_button.clicked.connect(self.cancel)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.label, 2)
        row.addWidget(self.bar, 2)
        row.addWidget(self.cancel_button)
        self.setVisible(False)

    @property
    def is_busy(self) -> bool:
        """True while an algorithm runs."""
        return self._run is not None

    def start(self, title: str, algorithm: str, parameters: dict[str, Any]) -> None:
        """Runs an algorithm of the toolbox, unless one runs already.

        Args:
            title: what is being done, for the user.
        """
        if self._run is not None:
            return
        feedback = RunFeedback()
        feedback.said.connect(log)
        feedback.said.connect(self.said)
        feedback.progressChanged.connect(lambda percent: self.bar.setValue(round(percent)))
        self._run = AlgorithmRun(algorithm, parameters, feedback, self)
        self._run.ended.connect(self._ended)
        self.label.setText(title)
        self.label.setToolTip(title)
        self.bar.setValue(0)
        self.cancel_button.setEnabled(True)
        self.setVisible(True)
        self._run.start()

    def cancel(self) -> None:
        """Asks the run to end."""
        self.cancel_button.setEnabled(False)
        if self._run is not None:
            self._run.cancel()

    def end(self) -> None:
        """Ends the run and waits for it; for when the plugin goes away."""
        if self._run is not None:
            self._run.end()
            self._run = None

    def _ended(self, results: dict[str, Any], error: str, canceled: bool) -> None:
        self._run = None
        self.setVisible(False)
        self.ended.emit(results, error, canceled)
