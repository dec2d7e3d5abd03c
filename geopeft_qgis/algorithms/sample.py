"""Draw a random sample of a map: the engine's `sample`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterVectorDestination,
)

from ..results import classes_as_text
from ..sample_points import style_file
from .base import EngineAlgorithm


class SampleAlgorithm(EngineAlgorithm):
    """A class raster in, points to label out."""

    JOB = "sample"
    STAGE_ENDS = {"labels": 5.0, "count": 55.0, "draw": 100.0}
    TITLE = "Draw a random sample for area estimates"
    TAGS = ("area", "accuracy", "stratified random sample", "points", "validation", "Olofsson", "statistics")
    # Only GeoPackages hold the design too.
    SUFFIXES = {"OUTPUT": (".gpkg",)}
    HELP = (
        "Draws points at random from a map of classes, some in every class, for 'Estimate areas from a sample'. "
        "Counted pixels are no areas that can be stood by, since every map errs; a random sample that is labelled says "
        "by how much, and how sure that is (Olofsson et al. 2014).\n\n"
        "Label each point with what is truly there, in the <b>order of the numbers</b>, leave none out, and do not "
        "look at the map: the form offers the classes, and hides what the map says. You may stop early, as the first "
        "points are a random sample too. <b>Do not move, add or delete points</b>, and work in the file itself: a copy "
        "of the layer loses what is known of the design.\n\n"
        "With 0 <b>points</b>, their number follows from the <b>standard error</b> that is wanted of the overall "
        "accuracy."
    )

    def __init__(self) -> None:
        super().__init__()
        self._points = ""

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: N802
        """Declares parameters and outputs."""
        polygon = [QgsProcessing.SourceType.TypeVectorPolygon]
        whole, fraction = QgsProcessingParameterNumber.Type.Integer, QgsProcessingParameterNumber.Type.Double
        self.addParameter(QgsProcessingParameterRasterLayer("MAP", self.tr("Map of classes")))
        title = self.tr("Points in all (0: chosen from the standard error)")
        self.addParameter(QgsProcessingParameterNumber("POINTS", title, whole, 0, minValue=0, maxValue=100_000))
        title = self.tr("Standard error of the overall accuracy that is wanted")
        self.addParameter(
            QgsProcessingParameterNumber("STANDARD_ERROR", title, fraction, 0.02, minValue=0.001, maxValue=0.2)
        )
        title = self.tr("Points of each class at least")
        self.addParameter(QgsProcessingParameterNumber("FEWEST", title, whole, 20, minValue=2, maxValue=10_000))
        title = self.tr("Area of interest")
        self.addParameter(QgsProcessingParameterFeatureSource("AOI", title, polygon, optional=True))
        self.add_whole_number("SEED", self.tr("Seed of everything random"), 0, 2**31 - 1)
        kind = QgsProcessing.SourceType.TypeVectorPoint
        self.addParameter(QgsProcessingParameterVectorDestination("OUTPUT", self.tr("Points to label"), kind))
        self.addOutput(QgsProcessingOutputNumber("COUNT", self.tr("Points")))
        self.addOutput(QgsProcessingOutputString("WHY", self.tr("How many points, and why")))
        self.addOutput(QgsProcessingOutputString("CLASSES", self.tr("Classes with their colours, as JSON")))

    def inputs(self, parameters: dict[str, Any], context: QgsProcessingContext, folder: Path) -> dict[str, Any]:
        """The map and the area of interest, as files."""
        fields: dict[str, Any] = {"map": self._rasters(parameters, "MAP", context)[0]}
        area = self._shapes(parameters, "AOI", context, folder)
        return {**fields, "aoi": area} if area else fields

    def choices(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """How many points, and where they go."""
        # Asked for once: each time, a temporary output gets another name.
        self._points = self.parameterAsOutputLayer(parameters, "OUTPUT", context)
        return {
            "out": self._points,
            "points": self.parameterAsInt(parameters, "POINTS", context),
            "fewest": self.parameterAsInt(parameters, "FEWEST", context),
            "standard_error": self.parameterAsDouble(parameters, "STANDARD_ERROR", context),
            "seed": self.parameterAsInt(parameters, "SEED", context),
        }

    def results(
        self,
        outputs: Mapping[str, Any],
        job: Mapping[str, Any],
        parameters: dict[str, Any],
        context: QgsProcessingContext,
    ) -> dict[str, Any]:
        """The points, with the form to label them in."""
        style_file(self._points, outputs["classes"])
        return {
            "OUTPUT": self._points,
            "COUNT": outputs["points"],
            "WHY": outputs["why"],
            "CLASSES": classes_as_text(outputs["classes"]),
        }
