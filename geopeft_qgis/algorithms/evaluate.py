"""Evaluate a model: the engine's `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingOutputNumber,
    QgsProcessingParameterFeatureSource,
)

from .base import EngineAlgorithm, figure

# Output -> the figure's name and part in the engine's report.
NUMBERS = {
    "MIOU": ("miou", "value"),
    "MIOU_LOW": ("miou", "low"),
    "MIOU_HIGH": ("miou", "high"),
    "OVERALL_ACCURACY": ("overall_accuracy", "value"),
    "F1": ("f1_macro", "value"),
}
NUMBER_TITLES = {
    "MIOU": "mIoU",
    "MIOU_LOW": "mIoU, lower end of the 95 % interval",
    "MIOU_HIGH": "mIoU, upper end of the 95 % interval",
    "OVERALL_ACCURACY": "Overall accuracy",
    "F1": "F1, mean of the classes",
}


class EvaluateAlgorithm(EngineAlgorithm):
    """A model package and labels that it has not seen in, figures out."""

    JOB = "evaluate"
    STAGE_ENDS = {"labels": 5.0, "label raster": 5.0, "download": 15.0, "evaluate": 100.0}
    TITLE = "Evaluate a model"
    TAGS = ("accuracy", "assessment", "confusion matrix", "IoU", "F1", "validation")
    HELP = (
        "Compares a model's map with labels that it has not been trained on: mIoU, overall accuracy and F1 with their "
        "95 % intervals, every class, and the confusion matrix, as numbers and as a JSON file."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: N802
        """Declares parameters and outputs."""
        polygons = [QgsProcessing.SourceType.TypeVectorPolygon]
        self.add_model_file()
        self.add_rasters()
        self.add_labels()
        self.add_text("BACKGROUND", self.tr("Background class, made of the unlabelled pixels"))
        area_title = self.tr("Area of the background class")
        self.add_advanced(QgsProcessingParameterFeatureSource("AREA", area_title, polygons, optional=True))
        self.add_text("BANDS", self.tr("Bands, by name or number, with commas"), advanced=True)
        self.add_line_width()
        self.add_device()
        self.add_figures(by_default=True)
        self.add_report()
        for name in NUMBERS:
            self.addOutput(QgsProcessingOutputNumber(name, self.tr(NUMBER_TITLES[name])))

    def inputs(self, parameters: dict[str, Any], context: QgsProcessingContext, folder: Path) -> dict[str, Any]:
        """Rasters, labels and the area, as files."""
        labels = self._label_fields(parameters, context, folder)
        # The model knows its classes; only their values are compared.
        labels.pop("classes")
        fields = {"rasters": self._rasters(parameters, "RASTERS", context), **labels}
        area = self._shapes(parameters, "AREA", context, folder)
        return {**fields, "area": area} if area else fields

    def choices(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """The model, and how to read the labels."""
        return {
            "model": self.parameterAsFile(parameters, "MODEL", context),
            "json_file": self.parameterAsFileOutput(parameters, "FIGURES", context),
            "report": self.parameterAsFileOutput(parameters, "REPORT", context),
            **self._reading_fields(parameters, context),
            **self._device_fields(parameters, context),
        }

    def results(
        self,
        outputs: Mapping[str, Any],
        job: Mapping[str, Any],
        parameters: dict[str, Any],
        context: QgsProcessingContext,
    ) -> dict[str, Any]:
        """The figures as a file and as numbers."""
        numbers = {name: figure(outputs, key, part) for name, (key, part) in NUMBERS.items()}
        return {"FIGURES": job["json_file"] or None, "REPORT": outputs.get("report"), **numbers}
