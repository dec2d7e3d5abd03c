"""Train a model: the engine's `fit`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingOutputNumber,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterNumber,
)

from ..model_tables import names, tables
from .base import MODEL_FILTER, EngineAlgorithm, figure

DECODER_SIZES = ("light", "study")


class FitAlgorithm(EngineAlgorithm):
    """Labels and rasters in, a model package out."""

    JOB = "fit"
    STAGE_ENDS = {"labels": 3.0, "label raster": 3.0, "download": 15.0, "fit": 100.0, "folds": 100.0}
    TITLE = "Train a model from labels"
    TAGS = ("segmentation", "classification", "deep learning", "fine-tune", "LoRA", "foundation model", "land cover")
    HELP = (
        "Fine-tunes a pretrained geospatial model on your labels and writes it as one small file, which 'Apply a "
        "model' turns into maps.\n\n"
        "<b>Labels</b> are polygons, lines or points with their class in a text or integer field, or a raster of class "
        "numbers. Edits that are not saved yet count. Only labelled pixels teach; where everything without a label is "
        "one more class (buildings, for example), give that class a name in 'Background class'.\n\n"
        "<b>Backbone</b>: auto chooses by bands and pixel size. Known names: {backbones}, any vision transformer or "
        "CNN that timm knows, and files made by 'Adapt a backbone to your imagery'.\n\n"
        "Part of the labels is held out to measure the accuracy; mIoU comes with its 95 % interval. Where labels are "
        "few, further trainings hold the other parts out in turn, so that every place is judged once; the map itself "
        "learns from all labels. A random forest on the bands is judged on the same places.\n\n"
        "<b>Canceling</b> ends the training without a model. What was learned is kept beside the model's file, in "
        "NAME.geopeft.resume: the same training with the same file goes on from there, also after a crash, and ends as "
        "if it had never been interrupted.\n\n"
        "<b>Start from a model</b>: after drawing more labels, a training that starts from the last model is shorter. "
        "Classes can be added. Places that taught that model are not used to measure the accuracy."
    )

    def shortHelpString(self) -> str:  # noqa: N802
        return super().shortHelpString().format(backbones=", ".join(row.name for row in tables()["backbones"]))

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: N802
        """Declares parameters and outputs."""
        polygons = [QgsProcessing.SourceType.TypeVectorPolygon]
        any_shape = [QgsProcessing.SourceType.TypeVectorAnyGeometry]
        minutes = QgsProcessingParameterNumber.Type.Double
        self.add_rasters()
        self.add_labels()
        self.add_text("BACKBONE", self.tr("Backbone"), "auto")
        self.add_text("BACKGROUND", self.tr("Background class, made of the unlabelled pixels"))
        self.addParameter(
            QgsProcessingParameterNumber(
                "MAX_MINUTES", self.tr("Time limit in minutes (0: none)"), minutes, 0.0, minValue=0.0
            )
        )
        area_title = self.tr("Area of the background class")
        self.add_advanced(QgsProcessingParameterFeatureSource("AREA", area_title, polygons, optional=True))
        held_out = self.tr("Validation labels, instead of a part of the labels")
        self.add_advanced(QgsProcessingParameterFeatureSource("VALIDATION_LABELS", held_out, any_shape, optional=True))
        start = self.tr("Start from a model of an earlier training")
        self.add_advanced(
            QgsProcessingParameterFile("START_MODEL", start, fileFilter=self.tr(MODEL_FILTER), optional=True)
        )
        go_on = self.tr("Go on with this training where it was interrupted")
        self.add_advanced(QgsProcessingParameterBoolean("RESUME", go_on, True))
        adapters, decoders = names("adapters", "lora"), names("decoders", "unet")
        self.add_choice("ADAPTER", self.tr("Adapter"), adapters, adapters[0])
        self.add_choice("DECODER", self.tr("Decoder"), decoders, decoders[0])
        self.add_choice("DECODER_SIZE", self.tr("Width of the decoder"), DECODER_SIZES, DECODER_SIZES[0])
        self._add_strength()
        metadata = self.tr("Tell the backbone when and where the raster was taken")
        self.add_advanced(QgsProcessingParameterBoolean("METADATA", metadata, False))
        self.add_licence()
        self.add_text("BANDS", self.tr("Bands, by name or number, with commas"), advanced=True)
        self.add_line_width()
        self.add_whole_number("SEED", self.tr("Random seed"), 0, 2**31 - 1)
        self.add_whole_number("FOLDS", self.tr("Trainings that judge the map (0: more where labels are few)"), 0, 10)
        unet = self.tr("Judge a UNet from random values too, for comparison")
        self.add_advanced(QgsProcessingParameterBoolean("UNET", unet, False))
        self.add_whole_number("STEPS", self.tr("Training steps (0: chosen from the labels)"), 0, 1_000_000)
        low_memory = self.tr("Train a transformer in less memory and a third more time")
        self.add_advanced(QgsProcessingParameterBoolean("LOW_MEMORY", low_memory, False))
        self.add_device()
        self.addParameter(
            QgsProcessingParameterFileDestination("MODEL", self.tr("Model"), fileFilter=self.tr(MODEL_FILTER))
        )
        self.add_figures()
        self.add_report()
        for name, title in (
            ("MIOU", self.tr("mIoU on held-out labels")),
            ("MIOU_LOW", self.tr("mIoU, lower end of the 95 % interval")),
            ("MIOU_HIGH", self.tr("mIoU, upper end of the 95 % interval")),
        ):
            self.addOutput(QgsProcessingOutputNumber(name, title))

    def _add_strength(self) -> None:
        """How strongly and where an adapter acts."""
        real = QgsProcessingParameterNumber.Type.Double
        self.add_whole_number("RANK", self.tr("Rank of low-rank adapters"), 16, 256, minimum=1)
        alpha = self.tr("Strength of low-rank adapters (alpha; 0: as the rank)")
        self.add_advanced(QgsProcessingParameterNumber("ALPHA", alpha, real, 0.0, minValue=0.0, maxValue=10_000.0))
        targets = self.tr("Layers to adapt, by the ends of their names, with commas (empty: the usual ones)")
        self.add_text("TARGETS", targets, advanced=True)
        self.add_whole_number("LAST_BLOCKS", self.tr("Adapt only so many last blocks (0: all)"), 0, 1000)
        tokens = self.tr("Tokens in front of each block (for the adapter vpt)")
        self.add_whole_number("PROMPT_TOKENS", tokens, 100, 1000, minimum=1)
        rate = self.tr("Factor of the usual learning rates")
        self.add_advanced(QgsProcessingParameterNumber("RATE", rate, real, 1.0, minValue=0.001, maxValue=1000.0))

    def inputs(self, parameters: dict[str, Any], context: QgsProcessingContext, folder: Path) -> dict[str, Any]:
        """Rasters, labels and the area, as files."""
        fields = {
            "rasters": self._rasters(parameters, "RASTERS", context),
            **self._label_fields(parameters, context, folder),
        }
        area = self._shapes(parameters, "AREA", context, folder)
        if area:
            fields["area"] = area
        if parameters.get("VALIDATION_LABELS"):
            class_field = self._class_field(parameters, context)
            path = folder / "validation.gpkg"
            fields["validation_labels"] = self._snapshot(
                parameters, "VALIDATION_LABELS", context, class_field, path
            ).spec
        return fields

    def choices(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """How to train, and where the model goes."""
        return {
            "out": self.parameterAsFileOutput(parameters, "MODEL", context),
            "json_file": self.parameterAsFileOutput(parameters, "FIGURES", context),
            "report": self.parameterAsFileOutput(parameters, "REPORT", context),
            "start": _absolute(self.parameterAsFile(parameters, "START_MODEL", context)),
            "resume": self.parameterAsBool(parameters, "RESUME", context),
            "backbone": self.parameterAsString(parameters, "BACKBONE", context).strip() or "auto",
            "adapter": self.parameterAsEnumString(parameters, "ADAPTER", context),
            "decoder": self.parameterAsEnumString(parameters, "DECODER", context),
            "decoder_size": self.parameterAsEnumString(parameters, "DECODER_SIZE", context),
            "rank": self.parameterAsInt(parameters, "RANK", context),
            "alpha": self.parameterAsDouble(parameters, "ALPHA", context) or None,
            "targets": self._parts(parameters, "TARGETS", context),
            "last_blocks": self.parameterAsInt(parameters, "LAST_BLOCKS", context),
            "prompt_tokens": self.parameterAsInt(parameters, "PROMPT_TOKENS", context),
            "rate": self.parameterAsDouble(parameters, "RATE", context),
            "metadata": self.parameterAsBool(parameters, "METADATA", context),
            "accept_licence": self.parameterAsBool(parameters, "ACCEPT_LICENCE", context),
            **self._reading_fields(parameters, context),
            "max_minutes": self.parameterAsDouble(parameters, "MAX_MINUTES", context),
            "seed": self.parameterAsInt(parameters, "SEED", context),
            "steps": self.parameterAsInt(parameters, "STEPS", context),
            "low_memory": self.parameterAsBool(parameters, "LOW_MEMORY", context),
            "folds": self.parameterAsInt(parameters, "FOLDS", context),
            "baselines": ["random-forest", *(["unet"] if self.parameterAsBool(parameters, "UNET", context) else [])],
            **self._device_fields(parameters, context),
        }

    def results(
        self,
        outputs: Mapping[str, Any],
        job: Mapping[str, Any],
        parameters: dict[str, Any],
        context: QgsProcessingContext,
    ) -> dict[str, Any]:
        """The package, the figures, and the accuracy as numbers."""
        numbers = {f"MIOU{suffix}": figure(outputs, "miou", part) for suffix, part in _INTERVAL}
        return {"MODEL": job["out"], "FIGURES": job["json_file"] or None, "REPORT": outputs.get("report"), **numbers}


def _absolute(path: str) -> str:
    """The engine runs in a folder of its own, where a relative path would mean something else."""
    return os.path.abspath(path) if path else ""


_INTERVAL = (("", "value"), ("_LOW", "low"), ("_HIGH", "high"))
