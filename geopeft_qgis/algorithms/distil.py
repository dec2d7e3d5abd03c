"""Make a small, fast model of a tuned one: the engine's `distil`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingOutputNumber,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterNumber,
)

from .base import MODEL_FILTER, EngineAlgorithm, figure


class DistilAlgorithm(EngineAlgorithm):
    """A model package and unlabelled rasters in, a small model package out."""

    JOB = "distil"
    STAGE_ENDS = {"labels": 2.0, "download": 5.0, "evaluate": 10.0, "teach": 35.0, "distil": 100.0}
    TITLE = "Make a small, fast model"
    TAGS = ("distillation", "student", "teacher", "speed", "deploy", "large area", "country", "deep learning")
    HELP = (
        "Teaches a small network to map as your model maps, for maps of whole countries and for slow computers. It is "
        "a model like any other: map with it, evaluate it, export it to ONNX.\n\n"
        "It learns from the model's own maps of the <b>rasters</b>, so no labels are needed. Give rasters of all the "
        "regions that it is for, also those that have no labels: what it has not seen there it cannot know.\n\n"
        "How far it agrees with the model that taught it is told for places that were held out. That is not its "
        "accuracy: give <b>labels</b> that the model has not learned from, and both are scored on them."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: N802
        """Declares parameters and outputs."""
        number = QgsProcessingParameterNumber.Type.Double
        self.add_model_file()
        self.add_rasters()
        self.add_labels()
        self.add_text("BACKGROUND", self.tr("Background class, made of the unlabelled pixels"), advanced=True)
        self.add_text("BANDS", self.tr("Bands, by name or number, with commas"), advanced=True)
        self.add_line_width()
        title = self.tr("Time limit in minutes (0: none)")
        self.add_advanced(QgsProcessingParameterNumber("MAX_MINUTES", title, number, 0.0, minValue=0.0))
        title = self.tr("Million pixels to learn from at most")
        self.add_advanced(
            QgsProcessingParameterNumber("MAX_MEGAPIXELS", title, number, 16.0, minValue=0.01, maxValue=10000.0)
        )
        self.add_whole_number("SEED", self.tr("Random seed"), 0, 2**31 - 1)
        self.add_device()
        self.addParameter(
            QgsProcessingParameterFileDestination("OUTPUT", self.tr("Small model"), fileFilter=self.tr(MODEL_FILTER))
        )
        self.add_figures()
        self.addOutput(QgsProcessingOutputNumber("AGREEMENT", self.tr("Share of pixels mapped as the model maps them")))
        self.addOutput(QgsProcessingOutputNumber("MIOU", self.tr("mIoU on the labels, where they are given")))

    def inputs(self, parameters: dict[str, Any], context: QgsProcessingContext, folder: Path) -> dict[str, Any]:
        """Rasters and labels, as files."""
        fields: dict[str, Any] = {"rasters": self._rasters(parameters, "RASTERS", context)}
        if parameters.get("LABELS") or parameters.get("LABEL_RASTER"):
            fields.update(self._label_fields(parameters, context, folder))
            # The model knows its classes.
            fields.pop("classes")
        return fields

    def choices(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """The model, how long it may teach, and where the small one goes."""
        return {
            "model": self.parameterAsFile(parameters, "MODEL", context),
            "out": self.parameterAsFileOutput(parameters, "OUTPUT", context),
            "json_file": self.parameterAsFileOutput(parameters, "FIGURES", context),
            "max_minutes": self.parameterAsDouble(parameters, "MAX_MINUTES", context),
            "max_megapixels": self.parameterAsDouble(parameters, "MAX_MEGAPIXELS", context),
            "seed": self.parameterAsInt(parameters, "SEED", context),
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
        """The small model and how good it is."""
        return {
            "OUTPUT": job["out"],
            "FIGURES": job["json_file"] or None,
            "AGREEMENT": figure(outputs, "agreement", "share"),
            "MIOU": figure(outputs, "miou", "value"),
        }
