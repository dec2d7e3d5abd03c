"""Adapt a backbone to your imagery: the engine's `pretrain`."""

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

from .base import EngineAlgorithm

ADAPTERS = ("full", "lora")
BACKBONE_FILTER = "Backbone (*.safetensors)"


class PretrainAlgorithm(EngineAlgorithm):
    """Unlabelled rasters in, a backbone out."""

    JOB = "pretrain"
    STAGE_ENDS = {"download": 10.0, "pretrain": 100.0}
    TITLE = "Adapt a backbone to your imagery"
    TAGS = ("pretraining", "self-supervised", "unlabelled", "deep learning", "foundation model", "domain adaptation")
    HELP = (
        "Lets a pretrained backbone go on learning from rasters without any labels, so that it knows your sensor and "
        "your landscape. Give the resulting file as 'Backbone' of 'Train a model from labels'.\n\n"
        "Squares of the rasters are hidden and rebuilt from what surrounds them, and the backbone keeps close to what "
        "it knew (its teacher). Rasters of several sensors and pixel sizes can be mixed with the backbone "
        "geopeft_small; other backbones use the bands that all rasters have in common.\n\n"
        "This takes many minutes and gains from many rasters. A run that was stopped goes on when it is started again "
        "with the same rasters, settings and file."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: N802
        """Declares parameters and outputs."""
        minutes = QgsProcessingParameterNumber.Type.Double
        self.add_rasters()
        self.add_text("BACKBONE", self.tr("Backbone"), "geopeft_small")
        self.addParameter(
            QgsProcessingParameterNumber(
                "MAX_MINUTES", self.tr("Time limit in minutes (0: none)"), minutes, 30.0, minValue=0.0
            )
        )
        self.add_choice("ADAPTER", self.tr("What is trained"), ADAPTERS, ADAPTERS[0])
        self.add_text("START", self.tr("Start from: published, nothing, or a backbone"), "published", advanced=True)
        self.add_text("TEACHER", self.tr("More teachers, by name, with commas"), advanced=True)
        self.add_text("BANDS", self.tr("Bands, by name or number, with commas"), advanced=True)
        self.add_whole_number("SEED", self.tr("Random seed"), 0, 2**31 - 1)
        self.add_whole_number("STEPS", self.tr("Training steps at most"), 2000, 1_000_000)
        self.add_licence()
        self.add_device()
        self.addParameter(
            QgsProcessingParameterFileDestination(
                "OUTPUT", self.tr("Adapted backbone"), fileFilter=self.tr(BACKBONE_FILTER)
            )
        )
        self.add_figures()
        self.addOutput(QgsProcessingOutputNumber("LOSS", self.tr("Loss on held-out places")))
        self.addOutput(QgsProcessingOutputNumber("STEPS_DONE", self.tr("Training steps done")))

    def inputs(self, parameters: dict[str, Any], context: QgsProcessingContext, folder: Path) -> dict[str, Any]:
        """The rasters, as files."""
        return {"rasters": self._rasters(parameters, "RASTERS", context)}

    def choices(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """How to train, and where the backbone goes."""
        return {
            "out": self.parameterAsFileOutput(parameters, "OUTPUT", context),
            "json_file": self.parameterAsFileOutput(parameters, "FIGURES", context),
            "backbone": self.parameterAsString(parameters, "BACKBONE", context).strip() or "geopeft_small",
            "start": self.parameterAsString(parameters, "START", context).strip() or "published",
            "adapter": self.parameterAsEnumString(parameters, "ADAPTER", context),
            "teacher": self._parts(parameters, "TEACHER", context),
            "bands": self._parts(parameters, "BANDS", context),
            "accept_licence": self.parameterAsBool(parameters, "ACCEPT_LICENCE", context),
            "max_minutes": self.parameterAsDouble(parameters, "MAX_MINUTES", context),
            "seed": self.parameterAsInt(parameters, "SEED", context),
            "steps": max(1, self.parameterAsInt(parameters, "STEPS", context)),
            **self._device_fields(parameters, context),
        }

    def results(
        self,
        outputs: Mapping[str, Any],
        job: Mapping[str, Any],
        parameters: dict[str, Any],
        context: QgsProcessingContext,
    ) -> dict[str, Any]:
        """The file, the figures, and how well it went."""
        figures = outputs.get("figures")
        figures = figures if isinstance(figures, Mapping) else {}
        return {
            "OUTPUT": job["out"],
            "FIGURES": job["json_file"] or None,
            "LOSS": figures.get("best"),
            "STEPS_DONE": figures.get("step"),
        }
