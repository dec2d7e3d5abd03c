"""The dock: the engine where it has to be set up, and tabs to train, to check and to apply."""

from __future__ import annotations

from typing import Any, Optional

from qgis.gui import QgsDockWidget
from qgis.PyQt.QtCore import QTimer
from qgis.PyQt.QtWidgets import QLabel, QTabWidget, QVBoxLayout, QWidget

from .. import diagnostics, settings
from .apply_tab import ApplyTab
from .check_panel import CheckPanel
from .notices import log, notify
from .setup import SetupPanel
from .setup_tasks import EngineSetup
from .train_panel import TrainPanel

NOTICE_S, LOOK_AFTER_MS = 10, 1000


class GeopeftDock(QgsDockWidget):
    """Where an analyst trains a model, maps a raster, and applies models to others.

    Args:
        iface: QGIS's window, for its map and message bar; None in tests.
        setup: the engine, shared with the options page; None makes one that ends with the dock.
    """

    def __init__(
        self, iface: Any = None, setup: Optional[EngineSetup] = None, parent: Optional[QWidget] = None
    ) -> None:
        super().__init__(parent)
        self._iface = iface
        self._setup = setup
        self.setObjectName("GeopeftDock")
        self.setWindowTitle("GeoPEFT")
        self.setup_panel = SetupPanel(setup)
        self.train = TrainPanel(iface)
        self.apply = ApplyTab(iface)
        self.check = CheckPanel(self.train.form, self.apply.models.catalogue, iface)
        self.tabs = QTabWidget()
        self.tabs.setObjectName("GeopeftTabs")
        self.tabs.setDocumentMode(True)
        self.tabs.addTab(self.train, self.tr("Train"))
        self.tabs.addTab(self.check, self.tr("Check"))
        self.tabs.addTab(self.apply, self.tr("Apply"))
        content = QWidget()
        column = QVBoxLayout(content)
        column.setContentsMargins(4, 4, 4, 4)
        column.addWidget(self.setup_panel)
        column.addWidget(self.tabs, 1)
        self.device_label = QLabel()
        self.device_label.setObjectName("GeopeftDevice")
        self.device_label.setWordWrap(True)
        self.device_label.setEnabled(False)
        column.addWidget(self.device_label)
        self.setWidget(content)
        self.setup_panel.said.connect(self._say)
        self.setup_panel.setup.changed.connect(self.refresh)
        self.setup_panel.setup.about_to_change.connect(self._let_engine_go)
        self.train.said.connect(self._log)
        self.train.noticed.connect(self._notify)
        self.train.trained.connect(self.apply.models.catalogue.add)
        self.train.trained.connect(self.check.set_model)
        self.train.report_wanted.connect(self._report)
        self.apply.models.report_wanted.connect(self._report)
        self.check.noticed.connect(self._say)
        # A look at the engine takes a second or two, in a thread; the window is to be there first.
        self._look = QTimer(self)
        self._look.setSingleShot(True)
        self._look.timeout.connect(self.setup_panel.setup.check)
        self._look.start(LOOK_AFTER_MS)
        self.refresh()

    @property
    def busy(self) -> bool:
        """True while anything runs."""
        return self.train.busy or self.check.is_busy or self.apply.is_busy or self.setup_panel.busy

    def refresh(self) -> None:
        """Shows the setup where there is no engine that fits, and tells the others whether there is one."""
        ready = settings.engine_python() is not None and not self.setup_panel.busy
        self.setup_panel.setVisible(not ready)
        self.train.set_engine_ready(ready)
        self.check.set_engine_ready(ready)
        self.device_label.setText(self.setup_panel.setup.device if ready else "")
        self.device_label.setVisible(bool(self.device_label.text()))

    def open_model(self, path: str) -> None:
        """Shows a model package, for a file that was dropped on QGIS."""
        self.setUserVisible(True)
        self.tabs.setCurrentWidget(self.apply)
        self.apply.open_model(path)

    def end(self) -> None:
        """Ends whatever runs; for when the plugin goes away."""
        self._look.stop()
        self.check.end()
        self.train.end()
        self.apply.end()
        self.setup_panel.end()

    def _report(self, model: str) -> None:
        self.tabs.setCurrentWidget(self.check)
        self.check.report(model)

    def _let_engine_go(self) -> None:
        """Before the engine is replaced: a warm one would hold its files."""
        self.train.set_engine_ready(False)

    def _say(self, level: str, text: str) -> None:
        self._log(level, text)
        if level != "info":
            self._notify(level, text)

    def _log(self, level: str, text: str) -> None:
        log(level, text, level == "warning")

    def _notify(self, level: str, text: str) -> None:
        if level == "error":
            diagnostics.note_error(text)
            if settings.engine_python() is None:
                # The look before a run has found it damaged.
                self.setup_panel.setup.changed.emit()
        notify(self._iface, level, text, NOTICE_S)
