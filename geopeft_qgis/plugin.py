"""The plugin: what QGIS shows of it, and takes away again."""

from __future__ import annotations

from typing import Any, Optional

from qgis.core import QgsApplication
from qgis.PyQt import sip
from qgis.PyQt.QtCore import QCoreApplication, Qt
from qgis.PyQt.QtGui import QIcon
from qgis.PyQt.QtWidgets import QMenu

try:
    from qgis.PyQt.QtGui import QAction
except ImportError:  # Qt 5
    from qgis.PyQt.QtWidgets import QAction

from . import settings, translator
from .provider import GeopeftProvider

MENU = "&GeoPEFT"


class GeopeftPlugin:
    """Adds the provider, the dock and its action; `unload` undoes `initGui` line by line.

    Args:
        iface: QGIS's window; None under qgis_process, which calls `initProcessing` only.
    """

    def __init__(self, iface: Any) -> None:
        self._iface = iface
        self._provider: Optional[GeopeftProvider] = None
        self._dock: Any = None
        self._action: Optional[QAction] = None
        self._options: Any = None
        self._setup: Any = None
        self._drop: Any = None
        self._translator: Any = None

    def initProcessing(self) -> None:  # noqa: N802
        """Adds the algorithms, in QGIS's language."""
        self._translator = translator.install()
        self._provider = GeopeftProvider()
        QgsApplication.processingRegistry().addProvider(self._provider)

    def initGui(self) -> None:  # noqa: N802
        """Adds the algorithms and everything that is seen."""
        from .gui.dock import GeopeftDock
        from .gui.options import OptionsFactory
        from .gui.package_drop import PackageDropHandler
        from .gui.setup_tasks import EngineSetup

        self.initProcessing()
        window = self._iface.mainWindow()
        self._setup = EngineSetup()
        self._dock = GeopeftDock(self._iface, self._setup, window)
        self._iface.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, self._dock)
        self._dock.setUserVisible(settings.get("dock") == "open")
        icon = QIcon(settings.resource("icons", "geopeft.svg"))
        self._action = QAction(icon, QCoreApplication.translate("GeoPEFT", "Train and map"), window)
        self._action.setCheckable(True)
        self._action.setObjectName("GeopeftAction")
        self._dock.setToggleVisibilityAction(self._action)
        self._iface.addToolBarIcon(self._action)
        self._iface.addPluginToRasterMenu(MENU, self._action)
        self._options = OptionsFactory(self._setup)
        self._iface.registerOptionsWidgetFactory(self._options)
        self._drop = PackageDropHandler(self._dock.open_model)
        self._iface.registerCustomDropHandler(self._drop)

    def unload(self) -> None:
        """Takes everything away, newest first."""
        if self._drop is not None:
            self._iface.unregisterCustomDropHandler(self._drop)
            self._drop = None
        if self._options is not None:
            self._iface.unregisterOptionsWidgetFactory(self._options)
            self._options = None
        if self._action is not None:
            self._iface.removePluginRasterMenu(MENU, self._action)
            # QGIS takes its submenu out of the menu, but keeps it.
            for menu in self._iface.mainWindow().findChildren(QMenu, MENU.replace("&", "")):
                menu.deleteLater()
            self._iface.removeToolBarIcon(self._action)
            self._action.deleteLater()
            self._action = None
        if self._dock is not None:
            settings.put("dock", "open" if self._dock.isUserVisible() else "")
            self._dock.end()
            self._iface.removeDockWidget(self._dock)
            # At once: while it waits to be deleted, Python lets go of its slots, and a signal of the project that still
            # reaches one of them would end QGIS.
            sip.delete(self._dock)
            self._dock = None
        if self._setup is not None:
            self._setup.end()
            self._setup.deleteLater()
            self._setup = None
        if self._provider is not None:
            QgsApplication.processingRegistry().removeProvider(self._provider)
            self._provider = None
        translator.remove(self._translator)
        self._translator = None
