"""qgis.core, as far as windows need it to be more than a name."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

from PyQt6.QtCore import QObject, pyqtSignal
from PyQt6.QtGui import QColor, QCursor, QIcon
from PyQt6.QtWidgets import QApplication

from .anything import Anything, make

NULL: Any = None
_FOLDER = tempfile.mkdtemp(prefix="geopeft-qt6-")


class Qgis(Anything):
    """The version, and the enums of whoever asks for them."""

    QGIS_VERSION_INT = 40000
    QGIS_VERSION = "4.0.0-Fake"


class QgsSettings:
    """Settings of this process only."""

    _values: dict[str, Any] = {}

    def value(self, key: str, default: Any = None, type: Any = None, section: Any = None) -> Any:
        found = self._values.get(key, default)
        return found if type is None or found is None else type(found)

    def setValue(self, key: str, value: Any, section: Any = None) -> None:
        self._values[key] = value

    def remove(self, key: str, section: Any = None) -> None:
        self._values.pop(key, None)

    def contains(self, key: str, section: Any = None) -> bool:
        return key in self._values

    def allKeys(self) -> list[str]:
        return sorted(self._values)


class QgsProcessingProvider(QObject):
    """Keeps its algorithms."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._algorithms: list[Any] = []

    def addAlgorithm(self, algorithm: Any) -> bool:
        algorithm.initAlgorithm()
        self._algorithms.append(algorithm)
        return True

    def algorithms(self) -> list[Any]:
        return self._algorithms

    def load(self) -> bool:
        self.refreshAlgorithms()
        return True

    def refreshAlgorithms(self) -> None:
        self._algorithms = []
        self.loadAlgorithms()

    def id(self) -> str:
        return ""

    def loadAlgorithms(self) -> None: ...


class QgsProcessingRegistry(QObject):
    """Keeps the providers."""

    providerAdded = pyqtSignal(str)
    providerRemoved = pyqtSignal(str)

    def __init__(self) -> None:
        super().__init__()
        self._providers: list[Any] = []

    def addProvider(self, provider: Any) -> bool:
        provider.load()
        self._providers.append(provider)
        self.providerAdded.emit(provider.id())
        return True

    def removeProvider(self, provider: Any) -> bool:
        self._providers.remove(provider)
        return True

    def providers(self) -> list[Any]:
        return self._providers

    def algorithmById(self, name: str) -> Any:
        return None


class QgsTask(QObject):
    """A task that nobody runs."""

    Flag = make("Flag", __name__)
    progressChanged = pyqtSignal(float)
    taskCompleted = pyqtSignal()
    taskTerminated = pyqtSignal()

    def __init__(self, description: str = "", flags: Any = None) -> None:
        super().__init__()

    def isCanceled(self) -> bool:
        return False

    def cancel(self) -> None: ...

    def setProgress(self, percent: float) -> None:
        self.progressChanged.emit(percent)

    def waitForFinished(self, timeout: int = 30000) -> bool:
        return True


class QgsTaskManager(QObject):
    """Takes tasks, and runs none."""

    def addTask(self, task: Any, priority: int = 0) -> int:
        return 1

    def countActiveTasks(self) -> int:
        return 0


class QgsProcessingFeedback(QObject):
    """Somebody to talk to."""

    progressChanged = pyqtSignal(float)
    canceled = pyqtSignal()

    def __init__(self, logFeedback: bool = True) -> None:
        super().__init__()
        self._is_canceled = False

    def isCanceled(self) -> bool:
        return self._is_canceled

    def cancel(self) -> None:
        self._is_canceled = True
        self.canceled.emit()

    def setProgress(self, percent: float) -> None:
        self.progressChanged.emit(percent)

    def setProgressText(self, text: str) -> None: ...

    def pushInfo(self, info: str) -> None: ...

    def pushWarning(self, warning: str) -> None: ...

    def pushConsoleInfo(self, info: str) -> None: ...

    def pushDebugInfo(self, info: str) -> None: ...

    def pushCommandInfo(self, info: str) -> None: ...

    def reportError(self, error: str, fatalError: bool = False) -> None: ...


class QgsProject(QObject):
    """The project, without layers."""

    _instance: Any = None

    layersAdded = pyqtSignal(list)
    layersRemoved = pyqtSignal(list)
    layersWillBeRemoved = pyqtSignal(list)
    layerWillBeRemoved = pyqtSignal(str)
    readProject = pyqtSignal(object)
    cleared = pyqtSignal()
    aboutToBeCleared = pyqtSignal()
    crsChanged = pyqtSignal()

    @classmethod
    def instance(cls) -> Any:
        cls._instance = cls._instance or cls()
        return cls._instance

    def homePath(self) -> str:
        return ""

    def fileName(self) -> str:
        return ""

    def mapLayers(self) -> dict[str, Any]:
        return {}

    def mapLayer(self, layer_id: str) -> Any:
        return None

    def mapLayersByName(self, name: str) -> list[Any]:
        return []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return Anything()


class QgsApplication(QApplication):
    """The application; none is made of it, so that there is no instance of QGIS's own."""

    Cursor = make("Cursor", __name__)
    _registry: Any = None
    _tasks: Any = None

    @staticmethod
    def instance() -> Any:
        return None

    @staticmethod
    def locale() -> str:
        return "en"

    @staticmethod
    def qgisSettingsDirPath() -> str:
        return _FOLDER + "/"

    @classmethod
    def processingRegistry(cls) -> Any:
        cls._registry = cls._registry or QgsProcessingRegistry()
        return cls._registry

    @classmethod
    def taskManager(cls) -> Any:
        cls._tasks = cls._tasks or QgsTaskManager()
        return cls._tasks

    @staticmethod
    def getThemeIcon(name: str, *colors: QColor) -> QIcon:
        return QIcon()

    @staticmethod
    def getThemeCursor(cursor: Any) -> QCursor:
        return QCursor()

    @staticmethod
    def authManager() -> Any:
        return Anything()

    @staticmethod
    def prefixPath() -> str:
        return ""

    @staticmethod
    def iconPath(name: str) -> str:
        return ""


class QgsException(Exception):
    """As in QGIS."""


class QgsProcessingException(QgsException):
    """As in QGIS."""


if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...

else:

    def __getattr__(name: str) -> Any:
        made = globals()[name] = make(name, __name__)
        return made
