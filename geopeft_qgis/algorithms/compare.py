"""Compare two maps or models: the engine's `compare`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterFile,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterRasterDestination,
)

from ..layers import LayerError, raster_path
from ..results import ResultStyler, classes_as_text
from .base import EngineAlgorithm
from .named import TIF

# Output -> where it is in the engine's answer, and its title.
NUMBERS = {
    "MIOU_FIRST": ("figures", "one", "miou", "value"),
    "MIOU_SECOND": ("figures", "other", "miou", "value"),
    "DIFFERENCE": ("figures", "difference", "miou", "value"),
    "DIFFERENCE_LOW": ("figures", "difference", "miou", "low"),
    "DIFFERENCE_HIGH": ("figures", "difference", "miou", "high"),
    "DIFFERING_SHARE": ("disagreement", "share"),
}
NUMBER_TITLES = {
    "MIOU_FIRST": "mIoU of the first",
    "MIOU_SECOND": "mIoU of the second",
    "DIFFERENCE": "Difference of the mIoU, first less second",
    "DIFFERENCE_LOW": "Difference of the mIoU, lower end of the 95 % interval",
    "DIFFERENCE_HIGH": "Difference of the mIoU, upper end of the 95 % interval",
    "DIFFERING_SHARE": "Share of the area that differs",
}
BETTER = {"one": "first", "other": "second"}


class CompareAlgorithm(EngineAlgorithm):
    """Two model packages or class rasters in, the difference of their accuracy and the map of it out."""

    JOB = "compare"
    STAGE_ENDS = {
        "labels": 5.0, "label raster": 5.0, "download": 10.0, "predict": 45.0, "predict second": 80.0, "judge": 90.0,
        "compare": 100.0,
    }  # fmt: skip
    TITLE = "Compare two maps or models"
    TAGS = ("accuracy", "assessment", "difference", "disagreement", "change", "agreement", "validation", "models")
    SUFFIXES = {"OUTPUT": TIF}
    HELP = (
        "Compares two models, two maps, or a map and a model. A map is a raster of class numbers, from GeoPEFT or from "
        "any other program; a model maps the <b>rasters</b> that are given for it.\n\n"
        "With <b>labels</b> both are judged on the same pixels, and the difference of their accuracy comes with its "
        "95 % interval: where that holds 0, the labels cannot tell the two apart. Use labels that taught neither. "
        "Places that a model has learned from are left out as far as its file tells; of a map nobody can tell.\n\n"
        "The <b>map of disagreement</b> has the grid of the first and a colour for each pair of classes (first → "
        "second), the widest first. Classes are matched by name, or by value where a map has no names."
    )

    def __init__(self) -> None:
        super().__init__()
        self._map = ""

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: N802
        """Declares parameters and outputs."""
        kind, polygons = QgsProcessing.SourceType.TypeRaster, [QgsProcessing.SourceType.TypeVectorPolygon]
        choice = self.tr("Model or map (*.geopeft *.tif *.tiff *.vrt *.img);;All files (*)")
        for name, title in (("FIRST", self.tr("First model or map")), ("SECOND", self.tr("Second model or map"))):
            self.addParameter(QgsProcessingParameterFile(name, title, fileFilter=choice))
        title = self.tr("Rasters that a model maps")
        self.addParameter(QgsProcessingParameterMultipleLayers("RASTERS", title, kind, optional=True))
        self.add_labels()
        self.add_text("BACKGROUND", self.tr("Background class, made of the unlabelled pixels"), advanced=True)
        title = self.tr("Area of the background class")
        self.add_advanced(QgsProcessingParameterFeatureSource("AREA", title, polygons, optional=True))
        self.add_text("BANDS", self.tr("Bands, by name or number, with commas"), advanced=True)
        self.add_line_width()
        self.add_device()
        title = self.tr("Map of disagreement")
        self.addParameter(QgsProcessingParameterRasterDestination("OUTPUT", title, optional=True))
        self.add_figures()
        for name in NUMBERS:
            self.addOutput(QgsProcessingOutputNumber(name, self.tr(NUMBER_TITLES[name])))
        self.addOutput(QgsProcessingOutputString("BETTER", self.tr("Which is better: first, second, or empty")))
        self.addOutput(QgsProcessingOutputString("SENTENCES", self.tr("What was found, in sentences")))
        self.addOutput(QgsProcessingOutputString("CLASSES", self.tr("Classes with their colours, as JSON")))

    def inputs(self, parameters: dict[str, Any], context: QgsProcessingContext, folder: Path) -> dict[str, Any]:
        """Both maps, rasters, labels and the area, as files."""
        fields: dict[str, Any] = {
            "one": self._map_file(parameters, "FIRST", context),
            "other": self._map_file(parameters, "SECOND", context),
        }
        if parameters.get("RASTERS"):
            fields["rasters"] = self._rasters(parameters, "RASTERS", context)
        if parameters.get("LABELS") or parameters.get("LABEL_RASTER"):
            fields.update(self._label_fields(parameters, context, folder))
            # The maps know their classes; only their values are compared.
            fields.pop("classes")
        area = self._shapes(parameters, "AREA", context, folder)
        return {**fields, "area": area} if area else fields

    def choices(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """How to read the labels, and what to write."""
        # Asked for once: each time, a temporary output gets another name.
        self._map = self.parameterAsOutputLayer(parameters, "OUTPUT", context) if parameters.get("OUTPUT") else ""
        return {
            "out": self._map,
            "json_file": self.parameterAsFileOutput(parameters, "FIGURES", context),
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
        """The map of disagreement in its colours, the figures, and what they say."""
        results: dict[str, Any] = {
            "FIGURES": job["json_file"] or None,
            "BETTER": BETTER.get((outputs.get("figures") or {}).get("better") or "", ""),
            "SENTENCES": "\n".join(outputs["sentences"]),
            **{name: _number(outputs, path) for name, path in NUMBERS.items()},
        }
        if self._map:
            classes = outputs["disagreement"]["classes"]
            ResultStyler.attach(context, self._map, "class_raster", classes, "")
            results.update({"OUTPUT": self._map, "CLASSES": classes_as_text(classes)})
        return results

    def _map_file(self, parameters: dict[str, Any], name: str, context: QgsProcessingContext) -> str:
        """The path of a model or map; a layer of the project may be given by its id."""
        text = self.parameterAsFile(parameters, name, context)
        if Path(text).is_file():
            return str(Path(text).absolute())
        layer = context.project().mapLayer(text) if context.project() is not None else None
        if layer is None:
            message = self.tr("There is no file {path}. Choose a model (.geopeft) or a raster of classes.")
            raise LayerError(message.format(path=text))
        return raster_path(layer)


def _number(outputs: Mapping[str, Any], path: tuple[str, ...]) -> Optional[float]:
    """A number deep in the engine's answer, or None where it is not there."""
    found: Any = outputs
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, (int, float)) else None
