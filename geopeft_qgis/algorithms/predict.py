"""Apply a model: the engine's `predict`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterVectorDestination,
)

from ..part_names import part_of
from ..results import ResultStyler, classes_as_text
from .base import EngineAlgorithm
from .named import TIF

# What may be written beside the map; the job and what comes of it have the same names in small letters.
BESIDE = ("CONFIDENCE", "ENTROPY", "OUTSIDE", "POLYGONS")
SIDECARS = (".aux.xml", ".ovr", ".msk")


class PredictAlgorithm(EngineAlgorithm):
    """A model package and a raster in, a class raster out."""

    JOB = "predict"
    STAGE_ENDS = {"download": 15.0, "predict": 95.0, "vectorize": 100.0}
    TITLE = "Apply a model"
    TAGS = ("segmentation", "classification", "map", "deep learning", "inference", "land cover")
    SUFFIXES = {
        "OUTPUT": TIF, "CONFIDENCE": TIF, "ENTROPY": TIF, "OUTSIDE": TIF, "POLYGONS": (".gpkg",),
    }  # fmt: skip
    HELP = (
        "Maps a raster with a model made by 'Train a model from labels'. The class raster has the raster's grid and "
        "comes in the class colours.\n\n"
        "Optional: the <b>confidence</b> in percent, the map as <b>polygons</b>, and an <b>area of interest</b> "
        "outside of which nothing is mapped.\n\n"
        "Where not to trust the map: the <b>entropy</b> in percent is 0 where one class is certain and 100 where all "
        "are alike; <b>outside</b> tells in percent how unlike the labels a pixel is, and above 100 it lies outside "
        "what the model has seen. Pixels less sure than a confidence of your choice can be mapped as <b>unknown</b> "
        "(value 255)."
    )

    def __init__(self) -> None:
        super().__init__()
        self._map = ""

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: N802
        """Declares parameters and outputs."""
        area = [QgsProcessing.SourceType.TypeVectorPolygon]
        polygon = QgsProcessing.SourceType.TypeVectorPolygon
        self.add_model_file(or_onnx=True)
        self.addParameter(QgsProcessingParameterRasterLayer("RASTER", self.tr("Raster")))
        self.addParameter(QgsProcessingParameterFeatureSource("AOI", self.tr("Area of interest"), area, optional=True))
        self.add_text("BANDS", self.tr("Bands, by name or number, with commas"), advanced=True)
        self.add_unknown_below()
        self.add_scheduler()
        self.add_device()
        self.addParameter(QgsProcessingParameterRasterDestination("OUTPUT", self.tr("Class raster")))
        for name, title in (
            ("CONFIDENCE", self.tr("Confidence")),
            ("ENTROPY", self.tr("Entropy")),
            ("OUTSIDE", self.tr("Outside what the model has seen")),
        ):
            self.addParameter(
                QgsProcessingParameterRasterDestination(name, title, optional=True, createByDefault=False)
            )
        self.addParameter(
            QgsProcessingParameterVectorDestination(
                "POLYGONS", self.tr("Polygons"), polygon, optional=True, createByDefault=False
            )
        )
        self.addOutput(QgsProcessingOutputString("CLASSES", self.tr("Classes with their colours, as JSON")))
        outside = self.tr("Part of the map that lies outside what the model has seen, in percent")
        self.addOutput(QgsProcessingOutputNumber("OUTSIDE_PERCENT", outside))
        self.addOutput(
            QgsProcessingOutputNumber("UNKNOWN_PERCENT", self.tr("Part of the map that is unknown, in percent"))
        )

    def inputs(self, parameters: dict[str, Any], context: QgsProcessingContext, folder: Path) -> dict[str, Any]:
        """The raster and the area of interest, as files."""
        fields: dict[str, Any] = {"rasters": self._rasters(parameters, "RASTER", context)}
        area = self._shapes(parameters, "AOI", context, folder)
        return {**fields, "aoi": area} if area else fields

    def choices(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """The model, and what to write."""
        # Asked for once: each time, a temporary output gets another name.
        self._map = self.parameterAsOutputLayer(parameters, "OUTPUT", context)
        return {
            "model": self.parameterAsFile(parameters, "MODEL", context),
            "out": self._map,
            **{name.lower(): bool(parameters.get(name)) for name in BESIDE},
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
        """The layers at the places that were asked for, and their styles."""
        entry = outputs["rasters"][0]
        classes = entry.get("classes") or []
        results: dict[str, Any] = {"OUTPUT": self._map, "CLASSES": classes_as_text(classes)}
        for name in ("OUTSIDE", "UNKNOWN"):
            share = entry.get(f"{name.lower()}_share")
            if isinstance(share, (int, float)):
                results[f"{name}_PERCENT"] = round(100 * share, 2)
        (raster,) = job["rasters"]
        ResultStyler.attach(context, self._map, "class_raster", classes, job["model"], raster)
        for name in BESIDE:
            kind = name.lower()
            if job[kind] and entry.get(kind):
                wanted = self.parameterAsOutputLayer(parameters, name, context)
                try:
                    move(Path(entry[kind]), Path(wanted))
                except OSError as error:
                    text = self.tr("{wanted} cannot be written ({reason}); the result is at {path}.")
                    raise QgsProcessingException(
                        text.format(wanted=wanted, reason=error.strerror, path=entry[kind])
                    ) from error
                ResultStyler.attach(context, wanted, kind, classes, job["model"], raster)
                results[name] = wanted
        return results


def move(source: Path, target: Path) -> None:
    """Moves a file and those that belong to it; on another disk too, the target is whole or untouched."""
    if source.resolve() == target.resolve():
        return
    for suffix in ("", *SIDECARS):
        piece, wanted = Path(f"{source}{suffix}"), Path(f"{target}{suffix}")
        if not piece.exists():
            continue
        try:
            os.replace(piece, wanted)
        except OSError:
            partial = part_of(wanted)
            shutil.copyfile(piece, partial)
            os.replace(partial, wanted)
            piece.unlink()
