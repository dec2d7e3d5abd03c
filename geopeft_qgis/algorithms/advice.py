"""What the algorithms share that give advice on labels: labels and rasters in, a layer of ranked places out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingOutputNumber,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterVectorDestination,
)

from ..results import ResultStyler
from .base import EngineAlgorithm


class AdviceAlgorithm(EngineAlgorithm):
    """An algorithm whose job writes polygons with the fields `rank` and `reason`."""

    SUFFIXES = {"OUTPUT": (".gpkg",)}

    def __init__(self) -> None:
        super().__init__()
        self._output = ""

    def add_sources(self, area_title: str) -> None:
        """Rasters, labels, and how to read them."""
        polygons = [QgsProcessing.SourceType.TypeVectorPolygon]
        self.add_rasters()
        self.add_labels()
        self.add_text("BACKGROUND", self.tr("Background class, made of the unlabelled pixels"))
        self.add_advanced(QgsProcessingParameterFeatureSource("AREA", area_title, polygons, optional=True))
        self.add_text("BANDS", self.tr("Bands, by name or number, with commas"), advanced=True)
        self.add_line_width()
        self.add_whole_number("SEED", self.tr("Random seed"), 0, 2**31 - 1)

    def add_places(self, title: str) -> None:
        """The layer of the places, how many there are, and the same as a file."""
        polygon = QgsProcessing.SourceType.TypeVectorPolygon
        self.addParameter(QgsProcessingParameterVectorDestination("OUTPUT", title, polygon))
        self.add_figures()
        self.addOutput(QgsProcessingOutputNumber("COUNT_FOUND", self.tr("Places found")))

    def inputs(self, parameters: dict[str, Any], context: QgsProcessingContext, folder: Path) -> dict[str, Any]:
        """Rasters, labels and the area, as files."""
        fields = {
            "rasters": self._rasters(parameters, "RASTERS", context),
            **self._label_fields(parameters, context, folder),
        }
        area = self._shapes(parameters, "AREA", context, folder)
        return {**fields, "area": area} if area else fields

    def choices(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """How to read the labels, and where the places go."""
        # Asked for once: each time, a temporary output gets another name.
        self._output = self.parameterAsOutputLayer(parameters, "OUTPUT", context)
        return {
            "out": self._output,
            "json_file": self.parameterAsFileOutput(parameters, "FIGURES", context),
            **self._reading_fields(parameters, context),
            "seed": self.parameterAsInt(parameters, "SEED", context),
        }

    def results(
        self,
        outputs: Mapping[str, Any],
        job: Mapping[str, Any],
        parameters: dict[str, Any],
        context: QgsProcessingContext,
    ) -> dict[str, Any]:
        """The layer, styled where Processing loads it, and how many places are in it."""
        ResultStyler.attach(context, self._output, "places", [], "")
        return {"OUTPUT": self._output, "COUNT_FOUND": outputs.get("count"), "FIGURES": job["json_file"] or None}
