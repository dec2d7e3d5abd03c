"""Make one model of several offices' models: the engine's `average`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingOutputNumber,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterMultipleLayers,
)

from .base import MODEL_FILTER, EngineAlgorithm


class AverageAlgorithm(EngineAlgorithm):
    """Model packages with one make in, their average out."""

    JOB = "average"
    STAGE_ENDS = {"average": 100.0}
    TITLE = "Average models"
    TAGS = ("federated", "merge", "combine", "ensemble", "confidential", "privacy", "offices", "deep learning")
    HELP = (
        "Makes one model of the models of several offices, so that imagery and labels stay where they are. What "
        "travels is the model files.\n\n"
        "All models must have the same settings, bands and classes, and their training must have <b>started from the "
        "same model</b>: one office trains the first, all others start their training from it. Then average, send the "
        "average to all, let each train again from it, and average again: two or three rounds are usual.\n\n"
        "A model counts as many times as it has labelled places, or what <b>weights</b> say, one for each model in "
        "their order. Nobody has measured the accuracy of the average: evaluate it on labels that have taught none of "
        "the models."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: N802
        """Declares parameters and outputs."""
        kind = QgsProcessing.SourceType.TypeFile
        models = QgsProcessingParameterMultipleLayers("MODELS", self.tr("Models"), kind)
        models.setMinimumNumberInputs(2)
        self.addParameter(models)
        self.add_text("WEIGHTS", self.tr("What each model counts, with commas"), advanced=True)
        self.addParameter(
            QgsProcessingParameterFileDestination("OUTPUT", self.tr("Average"), fileFilter=self.tr(MODEL_FILTER))
        )
        self.add_figures()
        self.addOutput(QgsProcessingOutputNumber("LOST", self.tr("Share of low-rank updates lost by the average")))

    def checkParameterValues(  # noqa: N802
        self, parameters: dict[str, Any], context: QgsProcessingContext
    ) -> tuple[bool, str]:
        """Weights are numbers."""
        for text in self._parts(parameters, "WEIGHTS", context):
            try:
                ok = float(text) > 0
            except ValueError:
                ok = False
            if not ok:
                return False, self.tr("The weight {text} is no number above 0.").format(text=text)
        return super().checkParameterValues(parameters, context)

    def inputs(self, parameters: dict[str, Any], context: QgsProcessingContext, folder: Path) -> dict[str, Any]:
        """Nothing comes from layers."""
        return {}

    def choices(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """The models, what they count, and the file to write."""
        return {
            "models": [os.path.abspath(path) for path in self.parameterAsFileList(parameters, "MODELS", context)],
            "weights": [float(text) for text in self._parts(parameters, "WEIGHTS", context)],
            "out": self.parameterAsFileOutput(parameters, "OUTPUT", context),
            "json_file": self.parameterAsFileOutput(parameters, "FIGURES", context),
        }

    def results(
        self,
        outputs: Mapping[str, Any],
        job: Mapping[str, Any],
        parameters: dict[str, Any],
        context: QgsProcessingContext,
    ) -> dict[str, Any]:
        """The average."""
        lost = (outputs.get("figures") or {}).get("lost_by_cut")
        return {"OUTPUT": outputs["model"], "FIGURES": job["json_file"] or None, "LOST": lost}
