"""Save a web layer as a raster: pixels that only QGIS can get become a GeoTIFF."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputNumber,
    QgsProcessingParameterExtent,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsRasterDataProvider,
    QgsRectangle,
)

from ..copy_plan import CopyError, Grid, megabytes, plan
from ..layers import LayerError
from ..raster_copy import CopyCanceled, copy
from ..server_answers import ServerAnswers
from ..sources import RENDER_TITLE, UNUSABLE, describe, is_picture
from .named import TIF
from .source import SourceAlgorithm


class RenderLayerAlgorithm(SourceAlgorithm):
    """A layer of any provider in, a GeoTIFF of a part of it out."""

    NAME = "renderlayer"
    TITLE = RENDER_TITLE
    TAGS = ("WMS", "WMTS", "XYZ", "WCS", "ArcGIS", "tiles", "basemap", "download", "export", "orthophoto")
    SUFFIXES = {"OUTPUT": TIF}
    HELP = (
        "Writes a part of a layer that comes from a service (WMS, WMTS, XYZ tiles, WCS, ArcGIS, a database) to a "
        "GeoTIFF, so that models can be trained on it and applied to it.\n\n"
        "A web map becomes a picture of red, green and blue, transparent where the service has nothing. Services that "
        "hand out values (WCS, databases) keep their bands, type and nodata. The raster has the layer's own coordinate "
        "reference system and, at a zoom level's pixel size, the service's own pixels.\n\n"
        "<b>Pixel size</b> is in units of the layer's coordinate reference system. 0 takes the finest zoom level that "
        "keeps the raster below about 4000 x 4000 pixels, and the own grid of services that hand out values. Choose "
        "what shows your classes well: 0.3 to 0.6 for buildings and trees, 5 to 10 for fields. At most 268 million "
        "pixels are written.\n\n"
        "Look at the terms of the service first: not every provider allows copies of its map."
    )

    def __init__(self) -> None:
        super().__init__()
        self._provider: Optional[QgsRasterDataProvider] = None
        self._answers: Optional[ServerAnswers] = None
        self._crs = QgsCoordinateReferenceSystem()
        self._extent = QgsRectangle()

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: N802
        """Declares parameters and outputs."""
        number = QgsProcessingParameterNumber.Type.Double
        self.addParameter(QgsProcessingParameterRasterLayer("LAYER", self.tr("Layer")))
        self.addParameter(
            QgsProcessingParameterExtent("EXTENT", self.tr("Extent (needed for web maps)"), optional=True)
        )
        self.addParameter(
            QgsProcessingParameterNumber(
                "RESOLUTION", self.tr("Pixel size in units of the layer (0: chosen)"), number, 0.0, minValue=0.0
            )
        )
        self.addParameter(QgsProcessingParameterRasterDestination("OUTPUT", self.tr("Raster")))
        self.addOutput(QgsProcessingOutputNumber("WIDTH", self.tr("Columns")))
        self.addOutput(QgsProcessingOutputNumber("HEIGHT", self.tr("Rows")))

    def prepare(self, parameters: dict[str, Any], context: QgsProcessingContext) -> None:
        """Copies the layer's provider, so that the layer may go while the work is done."""
        layer = self.raster_layer(self.parameterAsRasterLayer(parameters, "LAYER", context))
        source = describe(layer)
        if source.kind == UNUSABLE:
            raise LayerError(source.sentence)
        if not layer.crs().isValid():
            text = self.tr("The layer '{name}' has no coordinate reference system. Set it in the layer's properties.")
            raise LayerError(text.format(name=layer.name()))
        self._provider = layer.dataProvider().clone()
        self._answers = ServerAnswers(layer.source())
        self._crs = layer.crs()
        self._extent = self.parameterAsExtent(parameters, "EXTENT", context, self._crs)
        if self._extent.isNull() or self._extent.isEmpty():
            if is_picture(self._provider):
                text = self.tr("The layer '{name}' needs an extent: it may cover the world. Choose one.")
                raise LayerError(text.format(name=layer.name()))
            self._extent = self._provider.extent()

    def processAlgorithm(  # noqa: N802
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """In any thread: copies piece by piece."""
        provider, answers = self._provider, self._answers or ServerAnswers("")
        path = self.parameterAsOutputLayer(parameters, "OUTPUT", context)
        try:
            grid = plan(provider, self._extent, self.parameterAsDouble(parameters, "RESOLUTION", context))
            feedback.pushInfo(self._said(grid, megabytes(provider, grid.width, grid.height)))
            for note in copy(provider, self._crs, grid, Path(path), feedback, answers):
                feedback.pushWarning(note)
        except CopyCanceled:
            return {}
        except CopyError as error:
            raise QgsProcessingException(str(error)) from error
        finally:
            self._provider = None
            answers.end()
        return {"OUTPUT": path, "WIDTH": grid.width, "HEIGHT": grid.height}

    def _said(self, grid: Grid, size_mb: float) -> str:
        text = self.tr("{width} x {height} pixels of {size:.6g}, {megabytes:,.0f} MB before compression.")
        return text.format(width=grid.width, height=grid.height, size=grid.pixel_width, megabytes=size_mb)
