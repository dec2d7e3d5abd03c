"""Apply a model to many rasters: the engine's `predict`, with a folder as output."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingOutputFile,
    QgsProcessingOutputMultipleLayers,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterFile,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterMultipleLayers,
)

from ..layers import LayerError, raster_path
from ..part_names import part_of
from ..raster_files import PATTERNS, split_patterns, walk, without_maps
from ..results import classes_as_text
from .base import EngineAlgorithm
from .predict import BESIDE

SUMMARY_FILE = "geopeft_summary.csv"
COLUMNS: tuple[str, ...] = (
    "raster",
    "state",
    "class_raster",
    "confidence",
    "entropy",
    "outside",
    "polygons",
    "mapped_share",
    "unknown_share",
    "outside_share",
    "seconds",
    "code",
    "message",
)


class PredictManyAlgorithm(EngineAlgorithm):
    """A model package and any number of rasters in, a folder with their class rasters out."""

    NAME, JOB = "predictmany", "predict"
    # Vectorizing belongs to its raster, whose windows are what is counted.
    STAGE_ENDS = {"predict": 100.0}
    TITLE = "Apply a model to many rasters"
    TAGS = ("segmentation", "classification", "map", "deep learning", "inference", "land cover", "batch", "folder")
    HELP = (
        "Maps any number of rasters with a model made by 'Train a model from labels': layers, files, and the files of "
        "a folder. Every raster becomes NAME_map.tif in the output folder, on its own grid and in the class colours; "
        "a map that is there already is replaced. The file tells which model made it, how accurate that is, and the "
        "licence of its weights.\n\n"
        "A raster that cannot be mapped does not stop the others: the log says why, and the <b>summary</b> (CSV) in "
        "the output folder lists every raster. The run fails only when no raster could be mapped. A cancel keeps the "
        "maps that are finished.\n\n"
        "Optional: the <b>confidence</b> in percent, the maps as <b>polygons</b>, and an <b>area of interest</b> "
        "outside of which nothing is mapped. Where not to trust the maps: the <b>entropy</b> in percent, how far a "
        "pixel lies <b>outside what the model has seen</b> (from 100 % on), and a confidence below which a pixel is "
        "mapped as <b>unknown</b> (value 255); the summary gives the shares.\n\n"
        "In a <b>folder</b>, files whose names fit the pattern are taken, but no maps of rasters that are there too."
    )

    def __init__(self) -> None:
        super().__init__()
        self._chosen: list[str] = []
        self._left_out: list[dict[str, str]] = []

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: N802
        """Declares parameters and outputs."""
        rasters, files = QgsProcessing.SourceType.TypeRaster, QgsProcessing.SourceType.TypeFile
        area = [QgsProcessing.SourceType.TypeVectorPolygon]
        folder = QgsProcessingParameterFile.Behavior.Folder
        self.add_model_file(or_onnx=True)
        for name, title, kind in (
            ("RASTERS", self.tr("Raster layers"), rasters),
            ("FILES", self.tr("Raster files, which are not loaded into QGIS"), files),
        ):
            self.addParameter(QgsProcessingParameterMultipleLayers(name, title, kind, optional=True))
        self.addParameter(QgsProcessingParameterFile("FOLDER", self.tr("Folder with rasters"), folder, optional=True))
        self.add_text("PATTERN", self.tr("Names of the files in the folder"), PATTERNS)
        self.addParameter(QgsProcessingParameterBoolean("RECURSIVE", self.tr("Also in the folders below it"), False))
        self.addParameter(QgsProcessingParameterFeatureSource("AOI", self.tr("Area of interest"), area, optional=True))
        self.addParameter(QgsProcessingParameterBoolean("CONFIDENCE", self.tr("Confidence"), False))
        self.addParameter(QgsProcessingParameterBoolean("ENTROPY", self.tr("Entropy"), False))
        outside = self.tr("Outside what the model has seen")
        self.addParameter(QgsProcessingParameterBoolean("OUTSIDE", outside, False))
        self.addParameter(QgsProcessingParameterBoolean("POLYGONS", self.tr("Polygons"), False))
        self.add_text("BANDS", self.tr("Bands, by name or number, with commas"), advanced=True)
        self.add_unknown_below()
        self.add_scheduler()
        self.add_device()
        self.addParameter(QgsProcessingParameterFolderDestination("OUTPUT", self.tr("Folder for the maps")))
        self.addOutput(QgsProcessingOutputMultipleLayers("MAPS", self.tr("Class rasters")))
        self.addOutput(QgsProcessingOutputNumber("DONE", self.tr("Number of rasters that were mapped")))
        self.addOutput(QgsProcessingOutputNumber("FAILED", self.tr("Number of rasters that failed")))
        self.addOutput(QgsProcessingOutputFile("SUMMARY", self.tr("Summary of all rasters (CSV)")))
        self.addOutput(QgsProcessingOutputString("CLASSES", self.tr("Classes with their colours, as JSON")))

    def checkParameterValues(  # noqa: N802
        self, parameters: dict[str, Any], context: QgsProcessingContext
    ) -> tuple[bool, str]:
        """Some raster must be chosen, in one of the three ways."""
        if not any(parameters.get(name) for name in ("RASTERS", "FILES", "FOLDER")):
            return False, self.tr("No raster is chosen. Choose raster layers, raster files or a folder.")
        return super().checkParameterValues(parameters, context)

    def inputs(self, parameters: dict[str, Any], context: QgsProcessingContext, folder: Path) -> dict[str, Any]:
        """The layers as files, and the area of interest. A layer that is no file is left out, and why is kept."""
        self._chosen, self._left_out = [], []
        for layer in self.parameterAsLayerList(parameters, "RASTERS", context) if parameters.get("RASTERS") else []:
            try:
                self._chosen.append(raster_path(layer))
            except LayerError as error:
                self._left_out.append({"raster": layer.name(), "code": "LAYER_UNUSABLE", "message": str(error)})
                self._notes.append(str(error))
        if self._left_out and not self._chosen and not parameters.get("FILES") and not parameters.get("FOLDER"):
            raise LayerError(self._left_out[0]["message"])
        area = self._shapes(parameters, "AOI", context, folder)
        return {"aoi": area} if area else {}

    def choices(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """The model, the files, and what to write."""
        out = self.parameterAsString(parameters, "OUTPUT", context)
        out = os.path.abspath(out or self.parameterAsFileOutput(parameters, "OUTPUT", context))
        files = self.parameterAsFileList(parameters, "FILES", context) if parameters.get("FILES") else []
        rasters = unique([*self._chosen, *map(engine_path, files), *self._in_folder(parameters, context, out)])
        if not rasters:
            text = self.tr("There is no raster to map. Choose other rasters, or correct the folder and the pattern.")
            raise QgsProcessingException(text)
        return {
            "rasters": rasters,
            "model": self.parameterAsFile(parameters, "MODEL", context),
            "out": out,
            **{name.lower(): self.parameterAsBoolean(parameters, name, context) for name in BESIDE},
            "unknown_below": self.parameterAsDouble(parameters, "UNKNOWN_BELOW", context),
            "bands": self._parts(parameters, "BANDS", context),
            "scheduler": self._scheduler(parameters, context),
            **self._device_fields(parameters, context),
        }

    def results(
        self,
        outputs: Mapping[str, Any],
        job: Mapping[str, Any],
        parameters: dict[str, Any],
        context: QgsProcessingContext,
    ) -> dict[str, Any]:
        """The maps, and the summary as a file and as numbers."""
        done, failures = list(outputs["rasters"]), [*self._left_out, *outputs.get("failures", [])]
        summary = Path(job["out"]) / SUMMARY_FILE
        try:
            write_summary(summary, done, failures)
        except OSError as error:
            text = self.tr("The maps are in {folder}, but the summary cannot be written there ({reason}).")
            raise QgsProcessingException(text.format(folder=job["out"], reason=error.strerror)) from error
        return {
            "OUTPUT": job["out"],
            "MAPS": [entry["class_raster"] for entry in done],
            "DONE": len(done),
            "FAILED": len(failures),
            "SUMMARY": str(summary),
            "CLASSES": classes_as_text(done[0].get("classes") or [] if done else []),
        }

    def _in_folder(self, parameters: dict[str, Any], context: QgsProcessingContext, out: str) -> list[str]:
        folder = self.parameterAsString(parameters, "FOLDER", context)
        if not folder:
            return []
        folder = os.path.abspath(folder)
        if not os.path.isdir(folder):
            text = self.tr("There is no folder {folder}. Choose the folder with the rasters.")
            raise QgsProcessingException(text.format(folder=folder))
        patterns = split_patterns(self.parameterAsString(parameters, "PATTERN", context))
        recursive = self.parameterAsBoolean(parameters, "RECURSIVE", context)
        return without_maps(walk(folder, patterns, recursive, leave_out=out))


def engine_path(path: str) -> str:
    """What the engine opens for a path or a web address that somebody gave."""
    if path.lower().startswith(("http://", "https://")):
        return f"/vsicurl/{path}"
    return os.path.abspath(path) if os.path.exists(path) else path


def unique(paths: Iterable[str]) -> list[str]:
    """Each file once, by its first name."""
    found: dict[str, str] = {}
    for path in paths:
        found.setdefault(os.path.normcase(os.path.realpath(path)) if os.path.exists(path) else path, path)
    return list(found.values())


def write_summary(path: Path, done: Iterable[Mapping[str, Any]], failures: Iterable[Mapping[str, Any]]) -> None:
    """A table of all rasters; the file is whole or as it was. OSError where it cannot be written."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for entry in done:
        table.writerow({**{key: "" if value is None else value for key, value in entry.items()}, "state": "done"})
    for failure in failures:
        sentence = f"{failure.get('message', '')} {failure.get('hint', '')}".strip()
        table.writerow({**failure, "state": "failed", "message": sentence})
    partial = part_of(path)
    partial.write_text(text.getvalue(), encoding="utf-8")
    os.replace(partial, path)
