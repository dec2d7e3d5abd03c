"""What Processing is told of every algorithm of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingOutputLayerDefinition,
)
from qgis.PyQt.QtGui import QIcon

from .. import settings
from ..language import tr as translated

TIF = (".tif", ".tiff")


class NamedAlgorithm(QgsProcessingAlgorithm):
    """An algorithm that knows its texts and which files it writes.

    TITLE, HELP and TAGS are literals, so that they can be translated. SUFFIXES has, for each destination, the ends of
    names that can be written.
    """

    NAME = ""
    TITLE = ""
    HELP = ""
    TAGS: tuple[str, ...] = ()
    SUFFIXES: Mapping[str, tuple[str, ...]] = {}

    def tr(self, text: str) -> str:
        """Text in the user's language."""
        return translated(text)

    def createInstance(self) -> NamedAlgorithm:  # noqa: N802
        return type(self)()

    def name(self) -> str:
        return self.NAME

    def checkParameterValues(  # noqa: N802
        self, parameters: dict[str, Any], context: QgsProcessingContext
    ) -> tuple[bool, str]:
        """Only the formats that are written."""
        for name, suffixes in self.SUFFIXES.items():
            path = destination_text(parameters.get(name), context)
            if path and path != QgsProcessing.TEMPORARY_OUTPUT and Path(path).suffix.lower() not in suffixes:
                text = self.tr("{name} must end with {suffix}, not as in {path}.")
                usual = " / ".join(suffix for suffix in suffixes if suffix != ".tiff")
                return False, text.format(name=name, suffix=usual, path=path)
        return super().checkParameterValues(parameters, context)

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


def destination_text(value: Any, context: QgsProcessingContext) -> str:
    """The text behind the value of a destination parameter."""
    if isinstance(value, QgsProcessingOutputLayerDefinition):
        return value.sink.valueAsString(context.expressionContext())[0]
    return str(value or "")
