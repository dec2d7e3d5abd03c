"""Compare backbones, adapters and decoders: the engine's `study`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingOutputNumber,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
)

from .base import EngineAlgorithm

COUNTS = {"RUNS": "runs", "FAILED": "failed"}
COUNT_TITLES = {"RUNS": "Runs that are done", "FAILED": "Runs that failed"}

ADAPTERS = ("frozen", "lora", "full")
BASELINES = ("random-forest", "scratch_unet")


class StudyAlgorithm(EngineAlgorithm):
    """Labels of two regions in, a table and a page of many trainings out."""

    JOB = "study"
    STAGE_ENDS = {"labels": 1.0, "label raster": 1.0, "study": 100.0}
    TITLE = "Compare ways to train (study)"
    TAGS = ("backbone", "adapter", "decoder", "LoRA", "fine-tune", "benchmark", "foundation model", "experiment")
    SUFFIXES = {"TABLE": (".csv",), "PAGE": (".html", ".htm")}
    HELP = (
        "Trains every combination of backbones, adapters and decoders on the labels of one region, beside a random "
        "forest and a UNet from scratch, and judges each on held-out labels there and on those of an <b>unseen "
        "region</b>. This takes hours; a study that was stopped goes on from its table.\n\n"
        "The <b>table</b> has a row for each run: accuracy, values that are trained, time, memory. The <b>page</b> "
        "has means and deviations, plots, and what the runs say of the claims of a published study "
        "(arXiv 2504.17397).\n\n"
        "Several names are written with commas between them. <b>Shares of the labels</b>, such as 0.1, 1, tell how "
        "much more labels would help. The learning rate of each way is the best of <b>factors</b> in a short run; "
        "with one factor nothing is searched."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: N802
        """Declares parameters and outputs."""
        any_shape = [QgsProcessing.SourceType.TypeVectorAnyGeometry]
        polygons = [QgsProcessing.SourceType.TypeVectorPolygon]
        whole = QgsProcessingParameterNumber.Type.Integer
        self.add_rasters()
        self.add_labels()
        title, kind = self.tr("Rasters of the unseen region"), QgsProcessing.SourceType.TypeRaster
        self.addParameter(QgsProcessingParameterMultipleLayers("UNSEEN_RASTERS", title, kind))
        title = self.tr("Labels of the unseen region")
        self.addParameter(QgsProcessingParameterFeatureSource("UNSEEN_LABELS", title, any_shape))
        self.add_text("BACKBONES", self.tr("Backbones"), "auto")
        self.add_text("ADAPTERS", self.tr("Adapters"), ", ".join(ADAPTERS))
        self.add_text("DECODERS", self.tr("Decoders"), "unet")
        title = self.tr("Runs of each way, with other seeds")
        self.addParameter(QgsProcessingParameterNumber("SEEDS", title, whole, 5, minValue=1, maxValue=100))
        self.add_text("FRACTIONS", self.tr("Shares of the labels that teach (above 0, up to 1)"), "1")
        self.add_text("METADATA", self.tr("Time and place: off, on, or both"), "off", advanced=True)
        self.add_text("BASELINES", self.tr("Baselines"), ", ".join(BASELINES), advanced=True)
        self.add_text("RATES", self.tr("Factors of the learning rates to choose from"), "0.3, 1, 3", advanced=True)
        self.add_text("BACKGROUND", self.tr("Background class, made of the unlabelled pixels"), advanced=True)
        for name, title in (
            ("AREA", self.tr("Area of the background class")),
            ("UNSEEN_AREA", self.tr("Area of the background class in the unseen region")),
        ):
            self.add_advanced(QgsProcessingParameterFeatureSource(name, title, polygons, optional=True))
        self.add_text("BANDS", self.tr("Bands, by name or number, with commas"), advanced=True)
        self.add_line_width()
        self.add_whole_number("STEPS", self.tr("Training steps (0: chosen from the labels)"), 0, 1_000_000)
        self.add_whole_number("SEED", self.tr("Random seed"), 0, 2**31 - 1)
        title = self.tr("Runs at the same time")
        self.add_advanced(QgsProcessingParameterNumber("PROCESSES", title, whole, 1, minValue=1, maxValue=64))
        self.add_scheduler()
        self.add_device()
        csv, html = self.tr("CSV (*.csv)"), self.tr("HTML (*.html)")
        self.addParameter(QgsProcessingParameterFileDestination("TABLE", self.tr("Table of the runs"), csv))
        self.addParameter(QgsProcessingParameterFileDestination("PAGE", self.tr("Page of the study"), html))
        self.add_figures()
        for name in COUNTS:
            self.addOutput(QgsProcessingOutputNumber(name, self.tr(COUNT_TITLES[name])))

    def inputs(self, parameters: dict[str, Any], context: QgsProcessingContext, folder: Path) -> dict[str, Any]:
        """Rasters, labels and areas of both regions, as files."""
        fields = self._label_fields(parameters, context, folder)
        # Both regions' classes are matched by their values.
        fields.pop("classes")
        fields["rasters"] = self._rasters(parameters, "RASTERS", context)
        fields["unseen_rasters"] = self._rasters(parameters, "UNSEEN_RASTERS", context)
        name = fields.get("class_field", "")
        unseen = self._snapshot(parameters, "UNSEEN_LABELS", context, name, folder / "unseen.gpkg")
        fields["unseen_labels"] = unseen.spec
        for key in ("AREA", "UNSEEN_AREA"):
            area = self._shapes(parameters, key, context, folder)
            if area:
                fields[key.lower()] = area
        return fields

    def choices(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """What is compared, and where table and page go."""
        names = ("BACKBONES", "ADAPTERS", "DECODERS", "METADATA", "BASELINES")
        numbers = ("FRACTIONS", "RATES")
        return {
            **{name.lower(): self._parts(parameters, name, context) for name in names},
            **{name.lower(): self._numbers(parameters, name, context) for name in numbers},
            **{
                name.lower(): self.parameterAsInt(parameters, name, context)
                for name in ("SEEDS", "STEPS", "SEED", "PROCESSES")
            },
            "out": self.parameterAsFileOutput(parameters, "TABLE", context),
            "report": self.parameterAsFileOutput(parameters, "PAGE", context),
            "json_file": self.parameterAsFileOutput(parameters, "FIGURES", context),
            "scheduler": self._scheduler(parameters, context),
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
        """Table and page, and how many runs there are."""
        counts = {name: outputs[key] for name, key in COUNTS.items()}
        files = {"TABLE": outputs["table"], "PAGE": outputs["report"], "FIGURES": job["json_file"] or None}
        return {**files, **counts}

    def _numbers(self, parameters: dict[str, Any], name: str, context: QgsProcessingContext) -> list[float]:
        parts = self._parts(parameters, name, context)
        try:
            return [float(part) for part in parts]
        except ValueError as error:
            text = self.tr("{text} are not numbers. Write them with a point, and commas between them: 0.3, 1, 3.")
            raise QgsProcessingException(text.format(text=", ".join(parts))) from error
