"""Export a model: the engine's `export`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterMultipleLayers,
)

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
        "model. The plugin Deepness opens it too.\n\n"
        "<b>In eight bits</b> it is smaller and, with rasters to calibrate on, somewhat faster; the log says how many "
        "pixels keep their class."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: N802
        """Declares parameters and outputs."""
        self.add_model_file()
        self.add_advanced(QgsProcessingParameterBoolean("INT8", self.tr("Network in eight bits"), False))
        title, kind = self.tr("Rasters to calibrate eight bits on"), QgsProcessing.SourceType.TypeRaster
        self.add_advanced(QgsProcessingParameterMultipleLayers("RASTERS", title, kind, optional=True))
        folder = QgsProcessingParameterFile.Behavior.Folder
        title = self.tr("Folder with pretrained weights")
        self.add_advanced(QgsProcessingParameterFile("WEIGHTS_DIR", title, folder, optional=True))
        self.addParameter(
            QgsProcessingParameterFileDestination("ONNX", self.tr("ONNX file"), fileFilter=self.tr("ONNX (*.onnx)"))
        )

    def inputs(self, parameters: dict[str, Any], context: QgsProcessingContext, folder: Path) -> dict[str, Any]:
        """Rasters to calibrate on."""
        if not self.parameterAsLayerList(parameters, "RASTERS", context):
            return {}
        return {"rasters": self._rasters(parameters, "RASTERS", context)}

    def choices(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """The model and the file to write."""
        weights = self.parameterAsString(parameters, "WEIGHTS_DIR", context) or settings.weights_folder()
        return {
            "model": self.parameterAsFile(parameters, "MODEL", context),
            "onnx": self.parameterAsFileOutput(parameters, "ONNX", context),
            "int8": self.parameterAsBool(parameters, "INT8", context),
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
