"""What the algorithms share that make a raster file and need no engine."""

from __future__ import annotations

from typing import Any, Optional

from qgis.core import (
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsRasterLayer,
)
from qgis.PyQt.QtCore import QCoreApplication
from qgis.PyQt.QtGui import QIcon

from .. import settings
from ..layers import LayerError


class SourceAlgorithm(QgsProcessingAlgorithm):
    """An algorithm that prepares rasters. TITLE, HELP and TAGS are literals, so that they can be translated."""

    NAME = ""
    TITLE = ""
    HELP = ""
    TAGS: tuple[str, ...] = ()

    def prepareAlgorithm(  # noqa: N802
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> bool:
        """In the main thread: everything that touches layers."""
        try:
            self.prepare(parameters, context)
        except LayerError as error:
            raise QgsProcessingException(str(error)) from error
        return True

    def prepare(self, parameters: dict[str, Any], context: QgsProcessingContext) -> None:
        """Takes from the layers what the work needs; LayerError where they cannot be used."""
        raise NotImplementedError

    def raster_layer(self, layer: Optional[QgsRasterLayer]) -> QgsRasterLayer:
        """The layer of a parameter; LayerError where there is none."""
        if layer is None:
            raise LayerError(self.tr("No raster is chosen, or it cannot be read. Choose a raster layer or file."))
        return layer

    def tr(self, text: str) -> str:
        """Text in the user's language."""
        return QCoreApplication.translate("GeoPEFT", text)

    def createInstance(self) -> SourceAlgorithm:  # noqa: N802
        return type(self)()

    def name(self) -> str:
        return self.NAME

    def displayName(self) -> str:  # noqa: N802
        return self.tr(self.TITLE)

    def shortHelpString(self) -> str:  # noqa: N802
        return self.tr(self.HELP)

    def helpUrl(self) -> str:  # noqa: N802
        return settings.HOMEPAGE

    def tags(self) -> list[str]:
        return [self.tr(tag) for tag in self.TAGS]

    def icon(self) -> QIcon:
        return QIcon(settings.resource("icons", "geopeft.svg"))

    def svgIconPath(self) -> str:  # noqa: N802
        return settings.resource("icons", "geopeft.svg")
