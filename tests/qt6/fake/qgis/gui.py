"""qgis.gui: windows with the Qt classes that they have in QGIS, and strict: what is not here is not taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PyQt6.QtCore import QObject, pyqtSignal
from PyQt6.QtGui import QColor
from PyQt6.QtWidgets import (
    QComboBox,
    QDialog,
    QDockWidget,
    QDoubleSpinBox,
    QFrame,
    QGraphicsView,
    QGroupBox,
    QHBoxLayout,
    QLineEdit,
    QSpinBox,
    QToolButton,
    QWidget,
)

from .anything import make


class QgsDockWidget(QDockWidget):
    """A dock that can be shown behind another one."""

    closed = pyqtSignal()
    opened = pyqtSignal()

    def setUserVisible(self, visible: bool) -> None:
        self.setVisible(visible)

    def isUserVisible(self) -> bool:
        return self.isVisible()

    def setToggleVisibilityAction(self, action: Any) -> None:
        action.toggled.connect(self.setUserVisible)


class QgsMapLayerComboBox(QComboBox):
    """A choice of layers, of which there are none."""

    layerChanged = pyqtSignal(object)

    def setFilters(self, filters: Any) -> None: ...

    def setAllowEmptyLayer(self, allow: bool, text: str = "") -> None: ...

    def setShowCrs(self, show: bool) -> None: ...

    def setExceptedLayerList(self, layers: list[Any]) -> None: ...

    def setProject(self, project: Any) -> None: ...

    def setLayer(self, layer: Any) -> None: ...

    def currentLayer(self) -> Any:
        return None

    def layer(self, index: int) -> Any:
        return None


class QgsFieldComboBox(QComboBox):
    """A choice of fields, of which there are none."""

    fieldChanged = pyqtSignal(str)

    def setLayer(self, layer: Any) -> None: ...

    def setField(self, name: str) -> None: ...

    def setFilters(self, filters: Any) -> None: ...

    def setAllowEmptyFieldName(self, allow: bool) -> None: ...

    def currentField(self) -> str:
        return ""


class QgsFileWidget(QWidget):
    """A line for a path."""

    StorageMode = make("StorageMode", __name__)
    fileChanged = pyqtSignal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._line = QLineEdit()
        QHBoxLayout(self).addWidget(self._line)
        self._line.textChanged.connect(self.fileChanged)

    def lineEdit(self) -> QLineEdit:
        return self._line

    def filePath(self) -> str:
        return self._line.text()

    def setFilePath(self, path: str) -> None:
        self._line.setText(path)

    def setStorageMode(self, mode: Any) -> None: ...

    def setFilter(self, text: str) -> None: ...

    def setDialogTitle(self, text: str) -> None: ...

    def setDefaultRoot(self, path: str) -> None: ...

    def setUseLink(self, use: bool) -> None: ...

    def setReadOnly(self, is_read_only: bool) -> None:
        self._line.setReadOnly(is_read_only)


class QgsCollapsibleGroupBox(QGroupBox):
    """A box that folds."""

    collapsedStateChanged = pyqtSignal(bool)

    def setCollapsed(self, is_collapsed: bool) -> None:
        self.collapsedStateChanged.emit(is_collapsed)

    def isCollapsed(self) -> bool:
        return False

    def setSaveCollapsedState(self, save: bool) -> None: ...

    def setSettingGroup(self, name: str) -> None: ...


QgsCollapsibleGroupBoxBasic = QgsCollapsibleGroupBox


class QgsOptionsPageWidget(QWidget):
    """A page in the options."""

    def apply(self) -> None: ...

    def helpKey(self) -> str:
        return ""


class QgsOptionsWidgetFactory(QObject):
    """Makes such a page."""

    def __init__(self, title: str = "", icon: Any = None, key: str = "") -> None:
        super().__init__()


class QgsMessageBarItem(QFrame):
    """One notice."""


class QgsMessageBar(QFrame):
    """Keeps what it was told."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.told: list[str] = []

    def pushMessage(self, *arguments: Any, **named: Any) -> None:
        self.told.append(" ".join(str(argument) for argument in arguments[:2]))

    def pushWidget(self, widget: QWidget, level: Any = None, duration: int = 0) -> QgsMessageBarItem:
        return QgsMessageBarItem(self)

    def pushItem(self, item: Any) -> None: ...

    def popWidget(self, item: Any = None) -> bool:
        return True

    def createMessage(self, *arguments: Any) -> QgsMessageBarItem:
        return QgsMessageBarItem(self)


class QgsColorButton(QToolButton):
    """A button with a colour."""

    colorChanged = pyqtSignal(QColor)

    def __init__(self, parent: QWidget | None = None, *arguments: Any) -> None:
        super().__init__(parent)
        self._color = QColor("#808080")

    def color(self) -> QColor:
        return self._color

    def setColor(self, color: QColor) -> None:
        self._color = color
        self.colorChanged.emit(color)


class QgsMapCanvas(QGraphicsView):
    """An empty map."""

    extentsChanged = pyqtSignal()
    mapToolSet = pyqtSignal(object, object)
    currentLayerChanged = pyqtSignal(object)
    destinationCrsChanged = pyqtSignal()
    renderComplete = pyqtSignal(object)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return make(name, __name__)()


class QgsMapTool(QObject):
    """A tool on the map."""

    activated = pyqtSignal()
    deactivated = pyqtSignal()

    def __init__(self, canvas: Any = None, *arguments: Any) -> None:
        super().__init__()
        self._canvas = canvas

    def canvas(self) -> Any:
        return self._canvas

    def activate(self) -> None:
        self.activated.emit()

    def deactivate(self) -> None:
        self.deactivated.emit()

    def setAction(self, action: Any) -> None: ...

    def setCursor(self, cursor: Any) -> None: ...

    def setToolName(self, name: str) -> None: ...

    def toMapCoordinates(self, place: Any) -> Any:
        return make("QgsPointXY", __name__)()


class QgsFilterLineEdit(QLineEdit):
    """A line with a button that clears it."""

    def setShowClearButton(self, show: bool) -> None: ...

    def setShowSearchIcon(self, show: bool) -> None: ...

    def setNullValue(self, text: str) -> None: ...


class QgsSpinBox(QSpinBox):
    """A number that can be cleared."""

    def setClearValue(self, value: int, text: str = "") -> None: ...

    def setShowClearButton(self, show: bool) -> None: ...


class QgsDoubleSpinBox(QDoubleSpinBox):
    """A number that can be cleared."""

    def setClearValue(self, value: float, text: str = "") -> None: ...

    def setShowClearButton(self, show: bool) -> None: ...


class QgsCustomDropHandler(QObject):
    """Takes files that are dropped on the window."""


class QgsDialog(QDialog):
    """A dialog with buttons."""


if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...

else:

    def __getattr__(name: str) -> Any:
        made = globals()[name] = make(name, __name__)
        return made
