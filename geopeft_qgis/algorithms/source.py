"""What the algorithms share that make a raster file and need no engine."""

from __future__ import annotations

from typing import Any, Optional

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsRasterLayer,
)

from ..layers import LayerError
from .named import NamedAlgorithm


class SourceAlgorithm(NamedAlgorithm):
    """An algorithm that prepares rasters."""

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
