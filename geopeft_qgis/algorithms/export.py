"""Export a model: the engine's `export`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qgis.core import QgsProcessingContext, QgsProcessingParameterFile, QgsProcessingParameterFileDestination

from .. import settings
from .base import EngineAlgorithm


class ExportAlgorithm(EngineAlgorithm):
    """A model package in, an ONNX file out."""

    JOB = "export"
    STAGE_ENDS = {"download": 30.0, "export": 100.0}
    TITLE = "Export a model to ONNX"
    TAGS = ("onnx", "deploy", "share", "deep learning")
    HELP = (
        "Writes a model as an ONNX file for other programs. The file is kept only if it gives the same result as the "
        "model."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: N802
        """Declares parameters and outputs."""
        self.add_model_file()
        folder = QgsProcessingParameterFile.Behavior.Folder
        title = self.tr("Folder with pretrained weights")
        self.add_advanced(QgsProcessingParameterFile("WEIGHTS_DIR", title, folder, optional=True))
        self.addParameter(
            QgsProcessingParameterFileDestination("ONNX", self.tr("ONNX file"), fileFilter=self.tr("ONNX (*.onnx)"))
        )

    def inputs(self, parameters: dict[str, Any], context: QgsProcessingContext, folder: Path) -> dict[str, Any]:
        """No layers."""
        return {}

    def choices(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """The model and the file to write."""
        weights = self.parameterAsString(parameters, "WEIGHTS_DIR", context) or settings.weights_folder()
        return {
            "model": self.parameterAsFile(parameters, "MODEL", context),
            "onnx": self.parameterAsFileOutput(parameters, "ONNX", context),
            "weights_dir": weights,
        }

    def results(
        self,
        outputs: Mapping[str, Any],
        job: Mapping[str, Any],
        parameters: dict[str, Any],
        context: QgsProcessingContext,
    ) -> dict[str, Any]:
        """The ONNX file."""
        return {"ONNX": job["onnx"]}
