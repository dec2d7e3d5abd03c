"""Accuracy report of a model: the engine's `report`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterField,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterMultipleLayers,
)

from .base import EngineAlgorithm

PAGE_FILTER = "HTML (*.html)"


class ReportAlgorithm(EngineAlgorithm):
    """A model package in, a page for a browser out."""

    JOB = "report"
    STAGE_ENDS = {"labels": 5.0, "label raster": 5.0, "download": 15.0, "report": 100.0}
    TITLE = "Accuracy report"
    TAGS = ("accuracy", "assessment", "confusion matrix", "calibration", "IoU", "F1", "HTML", "model card")
    HELP = (
        "Writes what is known of a model as one HTML file, to read in a browser, print or send: its accuracy with 95 % "
        "intervals and what they do not cover, every class, the confusion matrix, whether the confidence can be "
        "believed, simpler maps beside it, what was assumed about bands and values, the licence of the weights, and "
        "how to repeat the training. The file needs no network and holds no folder names.\n\n"
        "With <b>rasters</b> it shows the map and its confidence where most labels are; the labels are outlined.\n\n"
        "<b>Figures of other labels</b>, a file of 'Evaluate a model', take the place of those of the training: they "
        "are the stronger proof."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: N802
        """Declares parameters and outputs."""
        any_shape = [QgsProcessing.SourceType.TypeVectorAnyGeometry]
        kind = QgsProcessing.SourceType.TypeRaster
        self.add_model_file()
        self.addParameter(
            QgsProcessingParameterMultipleLayers("RASTERS", self.tr("Rasters to show"), kind, optional=True)
        )
        self.addParameter(
            QgsProcessingParameterFeatureSource("LABELS", self.tr("Labels to outline"), any_shape, optional=True)
        )
        self.addParameter(
            QgsProcessingParameterField(
                "CLASS_FIELD", self.tr("Field with the class"), parentLayerParameterName="LABELS", optional=True
            )
        )
        self.add_advanced(
            QgsProcessingParameterFile(
                "OTHER_FIGURES",
                self.tr("Figures of other labels"),
                fileFilter=self.tr("JSON (*.json)"),
                optional=True,
            )
        )
        self.add_text("BANDS", self.tr("Bands, by name or number, with commas"), advanced=True)
        self.add_line_width()
        self.add_device()
        self.addParameter(
            QgsProcessingParameterFileDestination("REPORT", self.tr("Report"), fileFilter=self.tr(PAGE_FILTER))
        )

    def inputs(self, parameters: dict[str, Any], context: QgsProcessingContext, folder: Path) -> dict[str, Any]:
        """Rasters and labels, as files."""
        fields: dict[str, Any] = {}
        if self.parameterAsLayerList(parameters, "RASTERS", context):
            fields["rasters"] = self._rasters(parameters, "RASTERS", context)
        if parameters.get("LABELS"):
            class_field = self._class_field(parameters, context)
            labels = self._snapshot(parameters, "LABELS", context, class_field, folder / "labels.gpkg")
            fields.update(labels=labels.spec, class_field=labels.class_field)
        return fields

    def choices(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """The model, and where the page goes."""
        return {
            "model": self.parameterAsFile(parameters, "MODEL", context),
            "out": self.parameterAsFileOutput(parameters, "REPORT", context),
            "figures": self.parameterAsFile(parameters, "OTHER_FIGURES", context),
            "bands": self._parts(parameters, "BANDS", context),
            "line_width_px": self.parameterAsDouble(parameters, "LINE_WIDTH", context),
            **self._device_fields(parameters, context),
        }

    def results(
        self,
        outputs: Mapping[str, Any],
        job: Mapping[str, Any],
        parameters: dict[str, Any],
        context: QgsProcessingContext,
    ) -> dict[str, Any]:
        """The page."""
        return {"REPORT": outputs["report"]}
