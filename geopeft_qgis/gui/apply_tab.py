"""Everything about finished models in one tab: their list, and the page where one is applied."""

from __future__ import annotations

from typing import Any, Optional

from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtWidgets import QPushButton, QStackedWidget, QVBoxLayout, QWidget

from .apply_panel import ApplyPanel
from .model_catalogue import read_entry
from .models_panel import ModelsPanel


class ApplyTab(QWidget):
    """The models, and behind the Apply button of one the rasters that it is applied to.

    Args:
        iface: QGIS's window, for its map and message bar; None in tests.
    """

    def __init__(self, iface: Any = None, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self.setObjectName("GeopeftApplyTab")
        self.models = ModelsPanel(iface)
        self.apply = ApplyPanel(iface)
        self.back_to_run_button = QPushButton(self.tr("Show the rasters that are being mapped"))
        self.back_to_run_button.setObjectName("GeopeftShowRun")
        self.back_to_run_button.setVisible(False)
        first = QWidget()
        column = QVBoxLayout(first)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.models, 1)
        column.addWidget(self.back_to_run_button)
        self.pages = QStackedWidget()
        self.pages.addWidget(first)
        self.pages.addWidget(self.apply)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.addWidget(self.pages)
        self.models.apply_requested.connect(self.apply_model)
        self.apply.model_wanted.connect(lambda: self.pages.setCurrentIndex(0))
        self.apply.busy_changed.connect(self.back_to_run_button.setVisible)
        self.back_to_run_button.clicked.connect(lambda *_: self.pages.setCurrentIndex(1))

    @property
    def is_busy(self) -> bool:
        """True while rasters are mapped."""
        return self.apply.is_busy

    def open_model(self, path: str) -> None:
        """Shows a model in the list; for files that are dropped on QGIS, and for a model just trained."""
        self.pages.setCurrentIndex(0)
        self.models.open_model(path)

    def apply_model(self, path: str) -> None:
        """Goes to the rasters that a model is to be applied to; during a run, to those of the run."""
        self.apply.set_model(self.models.catalogue.entry(path) or read_entry(path))
        self.pages.setCurrentIndex(1)

    def end(self) -> None:
        """Ends what runs and waits for it; for when the plugin goes away."""
        self.apply.end()
        self.models.end()

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(340, 640)
