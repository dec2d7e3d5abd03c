"""Estimate areas from a labelled sample: the engine's `area`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterField,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterVectorLayer,
)

from ..layers import LayerError
from ..sample_points import sample_file
from .base import EngineAlgorithm

# Output -> the part of the overall accuracy in the engine's figures, and its title.
NUMBERS = {"OVERALL_ACCURACY": "value", "OVERALL_ACCURACY_LOW": "low", "OVERALL_ACCURACY_HIGH": "high"}
NUMBER_TITLES = {
    "OVERALL_ACCURACY": "Overall accuracy, by area",
    "OVERALL_ACCURACY_LOW": "Overall accuracy, lower end of the 95 % interval",
    "OVERALL_ACCURACY_HIGH": "Overall accuracy, upper end of the 95 % interval",
}


class AreaAlgorithm(EngineAlgorithm):
    """A labelled sample in, areas and accuracy out."""

    JOB = "area"
    TITLE = "Estimate areas from a sample"
    TAGS = ("area", "accuracy", "assessment", "error matrix", "hectares", "user's accuracy", "Olofsson", "statistics")
    HELP = (
        "Estimates what each class covers, in hectares with a 95 % interval, and how accurate the map is, from the "
        "points of 'Draw a random sample for area estimates' once they are labelled. What the map counts stands beside "
        "it. The map itself is not needed.\n\n"
        "A class may be given by its name or its value. A class that the map does not have gets an area too. Points "
        "that were moved or added by hand are left out, and a figure that the labels do not support is not given: the "
        "log says why, and which points to label next.\n\n"
        "The estimates are those of Olofsson et al. (2014, Remote Sensing of Environment 148); the intervals are not "
        "symmetric, so that they also hold where a class shows no error."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: N802
        """Declares parameters and outputs."""
        kind = [QgsProcessing.SourceType.TypeVectorPoint]
        self.addParameter(QgsProcessingParameterVectorLayer("POINTS", self.tr("Labelled points"), kind))
        self.addParameter(
            QgsProcessingParameterField(
                "CLASS_FIELD",
                self.tr("Field with the class"),
                "class",
                parentLayerParameterName="POINTS",
                optional=True,
            )
        )
        title = self.tr("Classes that the map does not have, with commas")
        self.add_text("OTHER_CLASSES", title, advanced=True)
        self.addParameter(
            QgsProcessingParameterFileDestination("TABLE", self.tr("Table of the classes"), self.tr("CSV (*.csv)"))
        )
        self.add_figures()
        for name in NUMBERS:
            self.addOutput(QgsProcessingOutputNumber(name, self.tr(NUMBER_TITLES[name])))
        self.addOutput(QgsProcessingOutputString("SENTENCES", self.tr("What was found, in sentences")))

    def inputs(self, parameters: dict[str, Any], context: QgsProcessingContext, folder: Path) -> dict[str, Any]:
        """The file of the points: a copy would not have the design."""
        layer = self.parameterAsVectorLayer(parameters, "POINTS", context)
        if layer is None:
            raise LayerError(self.tr("The points cannot be read. Choose another layer or file."))
        return {"points": sample_file(layer)}

    def choices(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """How the labels are read, and what is written."""
        return {
            "class_field": self.parameterAsString(parameters, "CLASS_FIELD", context) or "class",
            "other_classes": self._parts(parameters, "OTHER_CLASSES", context),
            "out": self.parameterAsFileOutput(parameters, "TABLE", context),
            "json_file": self.parameterAsFileOutput(parameters, "FIGURES", context),
        }

    def results(
        self,
        outputs: Mapping[str, Any],
        job: Mapping[str, Any],
        parameters: dict[str, Any],
        context: QgsProcessingContext,
    ) -> dict[str, Any]:
        """The table, the figures as a file, and the overall accuracy."""
        overall: Mapping[str, Optional[float]] = outputs["overall_accuracy"]
        return {
            "TABLE": job["out"] or None,
            "FIGURES": job["json_file"] or None,
            "SENTENCES": "\n".join([*outputs["sentences"], *outputs["left_out"]]),
            **{name: overall[part] for name, part in NUMBERS.items()},
        }
