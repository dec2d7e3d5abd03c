"""Stack single-band rasters: one file a band, as agencies deliver scenes, becomes one raster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputString,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
)

from ..layers import LayerError, raster_path
from ..sources import STACK_TITLE
from ..stack_bands import StackError, plan, read_bands
from ..stack_file import StackCanceled, write_stack
from .named import TIF
from .source import SourceAlgorithm

EXTENTS = ("intersection", "union")


class StackDestination(QgsProcessingParameterRasterDestination):
    """A raster that is a VRT unless it is called otherwise."""

    def defaultFileExtension(self) -> str:  # noqa: N802
        return "vrt"

    def supportedOutputRasterLayerExtensions(self) -> list[str]:  # noqa: N802
        return ["vrt", "tif"]

    def createFileFilter(self) -> str:  # noqa: N802
        return "VRT (*.vrt);;GeoTIFF (*.tif)"  # not shown

    def clone(self) -> StackDestination:
        return StackDestination(self.name(), self.description())


class StackAlgorithm(SourceAlgorithm):
    """Rasters in, one raster of all their bands out."""

    NAME = "stack"
    TITLE = STACK_TITLE
    TAGS = ("bands", "merge", "composite", "virtual raster", "VRT", "Sentinel-2", "Landsat", "multispectral")
    SUFFIXES = {"OUTPUT": (".vrt", *TIF)}
    HELP = (
        "Makes one raster of rasters with one band each, such as the bands of a Sentinel-2 or Landsat scene, a height "
        "model beside an orthophoto, or the months of a year.\n\n"
        "The bands come in the order of the list and are called as the ends of the file names say (B02, B8A, SR_B4, "
        "nir), so that models find the bands that they need. Scale, offset, nodata and other descriptions are kept. "
        "Where the file names tell several dates, the names end in them (B04 2024-06-12): backbones that take several "
        "dates then see each as one.\n\n"
        "Bands of different pixel sizes get the finest one unless a <b>pixel size</b> is given; they are resampled "
        "bilinearly (means, where pixels get larger), and bands of classes or quality flags by the nearest pixel. "
        "<b>Extent</b>: what all rasters cover, or what any of them covers.\n\n"
        "A <b>.vrt</b> is written in a moment and only points to the rasters, which must stay where they are; a "
        "<b>.tif</b> holds the pixels. Rasters in different coordinate reference systems are brought to that of the "
        "first one, which needs a .tif (written beside the .vrt)."
    )

    def __init__(self) -> None:
        super().__init__()
        self._paths: list[str] = []

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: N802
        """Declares parameters and outputs."""
        number = QgsProcessingParameterNumber.Type.Double
        layers = QgsProcessingParameterMultipleLayers(
            "LAYERS", self.tr("Rasters, in the order of the bands"), QgsProcessing.SourceType.TypeRaster
        )
        layers.setMinimumNumberInputs(2)
        self.addParameter(layers)
        self.addParameter(
            QgsProcessingParameterNumber(
                "RESOLUTION", self.tr("Pixel size (0: that of the finest raster)"), number, 0.0, minValue=0.0
            )
        )
        self.addParameter(
            QgsProcessingParameterEnum(
                "EXTENT", self.tr("Extent"), list(EXTENTS), False, EXTENTS[0], usesStaticStrings=True
            )
        )
        dates = QgsProcessingParameterBoolean(
            "DATES", self.tr("Names of the bands end in the date, where the file names tell several dates"), True
        )
        dates.setFlags(dates.flags() | QgsProcessingParameterDefinition.Flag.FlagAdvanced)
        self.addParameter(dates)
        self.addParameter(StackDestination("OUTPUT", self.tr("Stack")))
        self.addOutput(QgsProcessingOutputString("BANDS", self.tr("Names of the bands, with commas")))

    def prepare(self, parameters: dict[str, Any], context: QgsProcessingContext) -> None:
        """The files behind the layers."""
        layers = self.parameterAsLayerList(parameters, "LAYERS", context)
        if len(layers) < 2:
            raise LayerError(self.tr("Fewer than two rasters are chosen, or they cannot be read. Choose two or more."))
        self._paths = [raster_path(layer) for layer in layers]

    def processAlgorithm(  # noqa: N802
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """In any thread: reads the headers, then writes."""
        path = Path(self.parameterAsOutputLayer(parameters, "OUTPUT", context))
        union = self.parameterAsEnumString(parameters, "EXTENT", context) == EXTENTS[1]

        def progress(percent: float) -> bool:
            feedback.setProgress(percent)
            return not feedback.isCanceled()

        try:
            bands = read_bands(self._paths, self.parameterAsBool(parameters, "DATES", context))
            grid = plan(bands, self.parameterAsDouble(parameters, "RESOLUTION", context), union)
            names = ", ".join(band.name for band in bands)
            text = self.tr("{width} x {height} pixels of {size:.6g}, bands {names}.")
            feedback.pushInfo(text.format(width=grid.size[0], height=grid.size[1], size=grid.pixel[0], names=names))
            for note in write_stack(bands, grid, path, progress):
                feedback.pushInfo(note)
        except StackCanceled:
            return {}
        except StackError as error:
            raise QgsProcessingException(str(error)) from error
        feedback.setProgress(100)
        return {"OUTPUT": str(path), "BANDS": names}
