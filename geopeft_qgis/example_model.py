"""The example for the model designer, as an algorithm of the toolbox."""

from __future__ import annotations

from qgis.core import QgsProcessingModelAlgorithm
from qgis.PyQt.QtCore import QCoreApplication
from qgis.PyQt.QtGui import QIcon

from . import settings


class ExampleModel(QgsProcessingModelAlgorithm):
    """Trains, maps and draws polygons, as the file resources/models/geopeft_example.model3 says."""

    def __init__(self) -> None:
        super().__init__()
        self.fromFile(settings.resource("models", "geopeft_example.model3"))

    def name(self) -> str:
        """Stable, whatever the file calls it."""
        return "example"

    def displayName(self) -> str:  # noqa: N802
        return QCoreApplication.translate("GeoPEFT", "Train, map and polygons (example model)")

    def group(self) -> str:
        return QCoreApplication.translate("GeoPEFT", "Models")

    def groupId(self) -> str:  # noqa: N802
        return "models"

    def createInstance(self) -> ExampleModel:  # noqa: N802
        return ExampleModel()

    def helpUrl(self) -> str:  # noqa: N802
        return settings.HOMEPAGE

    def icon(self) -> QIcon:
        return QIcon(settings.resource("icons", "geopeft.svg"))

    def svgIconPath(self) -> str:  # noqa: N802
        return settings.resource("icons", "geopeft.svg")
