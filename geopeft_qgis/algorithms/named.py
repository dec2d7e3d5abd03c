"""What Processing is told of every algorithm of ours."""

from __future__ import annotations

from qgis.core import QgsProcessingAlgorithm
from qgis.PyQt.QtGui import QIcon

from .. import settings
from ..language import tr as translated


class NamedAlgorithm(QgsProcessingAlgorithm):
    """An algorithm that knows its texts. TITLE, HELP and TAGS are literals, so that they can be translated."""

    NAME = ""
    TITLE = ""
    HELP = ""
    TAGS: tuple[str, ...] = ()

    def tr(self, text: str) -> str:
        """Text in the user's language."""
        return translated(text)

    def createInstance(self) -> NamedAlgorithm:  # noqa: N802
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
