"""What all algorithms share: parameters that mean the same everywhere, and the run of the engine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeatureSourceDefinition,
    QgsProcessingFeedback,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterField,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingUtils,
    QgsVectorLayer,
)

from .. import engine_state, settings
from ..engine_process import PROTOCOL, EngineCanceled, EngineError, run
from ..layers import LabelFile, LayerError, raster_label_classes, raster_path, write_labels
from .listener import Listener
from .named import NamedAlgorithm

MODEL_FILTER = "GeoPEFT model (*.geopeft)"
PATHS = frozenset(("model", "out", "onnx", "json_file", "weights_dir", "report", "figures"))


class EngineAlgorithm(NamedAlgorithm):
    """An algorithm whose work is one job of the engine.

    A subclass says what layers become which files (`inputs`, in the main thread), what the other parameters mean
    (`choices`), and what Processing gets back (`results`). A feedback object with a method `metric(event)` is told
    the engine's figures as they come, and one with `is_stopping()` can end a training early.
    """

    JOB = ""
    STAGE_ENDS: Mapping[str, float] = {}

    def __init__(self) -> None:
        super().__init__()
        self._inputs: dict[str, Any] = {}
        self._folder = Path()
        self._command: list[str] = []
        self._notes: list[str] = []

    def name(self) -> str:
        return self.NAME or self.JOB

    def inputs(self, parameters: dict[str, Any], context: QgsProcessingContext, folder: Path) -> dict[str, Any]:
        """Fields of the job that come from layers; snapshots go into `folder`."""
        raise NotImplementedError

    def choices(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """The other fields of the job."""
        raise NotImplementedError

    def results(
        self,
        outputs: Mapping[str, Any],
        job: Mapping[str, Any],
        parameters: dict[str, Any],
        context: QgsProcessingContext,
    ) -> dict[str, Any]:
        """What Processing gets back, from the outputs of the engine."""
        raise NotImplementedError

    def job(self, parameters: dict[str, Any], context: QgsProcessingContext, folder: Path) -> dict[str, Any]:
        """The whole job for these parameters."""
        return self._compose(self.inputs(parameters, context, folder), self.choices(parameters, context))

    def prepareAlgorithm(  # noqa: N802
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> bool:
        """In the main thread: everything that touches layers."""
        self._folder = Path(tempfile.mkdtemp(prefix="geopeft-", dir=QgsProcessingUtils.tempFolder()))
        try:
            self._command = settings.engine_command()
            self._inputs = self.inputs(parameters, context, self._folder)
        except (LayerError, settings.EngineMissing) as error:
            raise QgsProcessingException(str(error)) from error
        return True

    def processAlgorithm(  # noqa: N802
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """In any thread: runs the engine and passes on what it says."""
        job = self._compose(self._inputs, self.choices(parameters, context))
        for note in self._notes:
            feedback.pushInfo(note)
        damage = engine_state.damage_before_run(Path(self._command[0]))
        if damage:
            raise QgsProcessingException(damage)
        try:
            outputs = run(
                self._command,
                job,
                self._folder,
                Listener(feedback, self.STAGE_ENDS),
                feedback.isCanceled,
                stop=getattr(feedback, "is_stopping", None),
            )
        except EngineCanceled:
            return {}
        except (EngineError, OSError) as error:
            feedback.pushConsoleInfo(getattr(error, "log_tail", ""))
            feedback.pushConsoleInfo(self.tr("Log of the engine: {path}").format(path=self._folder / "engine.log"))
            raise QgsProcessingException(str(error)) from error
        return self.results(outputs, job, parameters, context)

    def _compose(self, inputs: Mapping[str, Any], choices: Mapping[str, Any]) -> dict[str, Any]:
        job = {"job": self.JOB, "protocol": PROTOCOL, **inputs, **choices}
        # The engine runs in a folder of its own, where a relative path would mean something else.
        return {key: os.path.abspath(value) if value and key in PATHS else value for key, value in job.items()}

    def _rasters(self, parameters: dict[str, Any], name: str, context: QgsProcessingContext) -> list[str]:
        layers = self.parameterAsLayerList(parameters, name, context)
        if not layers:
            raise LayerError(self.tr("No raster is chosen, or it cannot be read. Choose a raster layer or file."))
        return [raster_path(layer) for layer in layers]

    def _label_fields(self, parameters: dict[str, Any], context: QgsProcessingContext, folder: Path) -> dict[str, Any]:
        """`labels`, `class_field` and `classes` from a vector layer, or else from a label raster."""
        if parameters.get("LABELS"):
            class_field = self._class_field(parameters, context)
            labels = self._snapshot(parameters, "LABELS", context, class_field, folder / "labels.gpkg")
            if labels.without_class:
                text = self.tr("Labels without a class, which are left out: {count}")
                self._notes.append(text.format(count=labels.without_class))
            return {"labels": labels.spec, "class_field": labels.class_field, "classes": labels.classes}
        layer = self.parameterAsRasterLayer(parameters, "LABEL_RASTER", context)
        if layer is None:
            raise LayerError(self.tr("No labels are chosen. Choose a label layer, or a label raster."))
        return {"labels": raster_path(layer), "classes": raster_label_classes(layer)}

    def _class_field(self, parameters: dict[str, Any], context: QgsProcessingContext) -> str:
        """The class field; where it was not named, `class`, or the only field besides the id."""
        named = self.parameterAsString(parameters, "CLASS_FIELD", context)
        if named:
            return named
        source = self.parameterAsSource(parameters, "LABELS", context)
        names = [f.name() for f in source.fields()] if source else []
        if "class" in names:
            return "class"
        names = [name for name in names if name.lower() not in ("fid", "id", "ogc_fid")]
        if len(names) == 1:
            return names[0]
        text = self.tr("The class field is not chosen. Choose one of the labels' fields: {names}.")
        raise LayerError(text.format(names=", ".join(names) or self.tr("none")))

    def _snapshot(
        self, parameters: dict[str, Any], name: str, context: QgsProcessingContext, class_field: str, path: Path
    ) -> LabelFile:
        source = self.parameterAsSource(parameters, name, context)
        if source is None:
            text = self.tr("The vector layer of {name} cannot be read. Choose another layer or file.")
            raise LayerError(text.format(name=name))
        layer = self._styled_layer(parameters, name, context)
        return write_labels(source, layer, class_field, path)

    def _styled_layer(
        self, parameters: dict[str, Any], name: str, context: QgsProcessingContext
    ) -> Optional[QgsVectorLayer]:
        """The layer behind a source, for its colours. QGIS 3.22 does not find it behind 'selected features only'."""
        value = parameters.get(name)
        if not isinstance(value, QgsProcessingFeatureSourceDefinition):
            return self.parameterAsVectorLayer(parameters, name, context)
        text, _ = value.source.valueAsString(context.expressionContext())
        layer = QgsProcessingUtils.mapLayerFromString(text, context)
        return layer if isinstance(layer, QgsVectorLayer) else None

    def _shapes(
        self, parameters: dict[str, Any], name: str, context: QgsProcessingContext, folder: Path
    ) -> Optional[str]:
        """FILE:layer of an optional polygon layer, or None where it is not given."""
        if not parameters.get(name):
            return None
        return self._snapshot(parameters, name, context, "", folder / f"{name.lower()}.gpkg").spec

    def _device_fields(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        weights = self.parameterAsString(parameters, "WEIGHTS_DIR", context) or settings.weights_folder()
        return {"device": self.parameterAsEnumString(parameters, "DEVICE", context), "weights_dir": weights}

    def _reading_fields(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """How labels and rasters are read: the background class, the bands, and the width of lines and points."""
        return {
            "background": self.parameterAsString(parameters, "BACKGROUND", context).strip(),
            "bands": self._parts(parameters, "BANDS", context),
            "line_width_px": self.parameterAsDouble(parameters, "LINE_WIDTH", context),
        }

    def _scheduler(self, parameters: dict[str, Any], context: QgsProcessingContext) -> str:
        """What SCHEDULER names; of a file, the whole path."""
        text = self.parameterAsString(parameters, "SCHEDULER", context).strip()
        return os.path.abspath(text) if os.path.isfile(text) else text

    def _parts(self, parameters: dict[str, Any], name: str, context: QgsProcessingContext) -> list[str]:
        """What a text names, between its commas."""
        text = self.parameterAsString(parameters, name, context)
        return [part.strip() for part in text.split(",") if part.strip()]

    def add_advanced(self, parameter: QgsProcessingParameterDefinition) -> None:
        """Adds a parameter that is folded away at first."""
        parameter.setFlags(parameter.flags() | QgsProcessingParameterDefinition.Flag.FlagAdvanced)
        self.addParameter(parameter)

    def add_labels(self) -> None:
        """Vector labels with their class field, or a label raster instead."""
        any_shape = [QgsProcessing.SourceType.TypeVectorAnyGeometry]
        self.addParameter(QgsProcessingParameterFeatureSource("LABELS", self.tr("Labels"), any_shape, optional=True))
        self.addParameter(
            QgsProcessingParameterField(
                "CLASS_FIELD", self.tr("Field with the class"), parentLayerParameterName="LABELS", optional=True
            )
        )
        self.addParameter(
            QgsProcessingParameterRasterLayer("LABEL_RASTER", self.tr("Label raster, instead of labels"), optional=True)
        )

    def add_rasters(self) -> None:
        """One raster or several."""
        kind = QgsProcessing.SourceType.TypeRaster
        self.addParameter(QgsProcessingParameterMultipleLayers("RASTERS", self.tr("Rasters"), kind))

    def add_model_file(self, or_onnx: bool = False) -> None:
        """A model package to read, or an ONNX file."""
        kinds = self.tr("GeoPEFT or ONNX model (*.geopeft *.onnx)") if or_onnx else self.tr(MODEL_FILTER)
        self.addParameter(QgsProcessingParameterFile("MODEL", self.tr("Model"), fileFilter=kinds))

    def add_text(self, name: str, title: str, default: str = "", advanced: bool = False) -> None:
        """A line of text that may be empty."""
        parameter = QgsProcessingParameterString(name, title, defaultValue=default, optional=True)
        self.add_advanced(parameter) if advanced else self.addParameter(parameter)

    def add_choice(self, name: str, title: str, names: Sequence[str], default: str) -> None:
        """One of a few names; scripts give the name itself."""
        self.add_advanced(QgsProcessingParameterEnum(name, title, list(names), False, default, usesStaticStrings=True))

    def add_licence(self) -> None:
        """That the licence of weights whose use it limits is accepted."""
        title = self.tr("I accept the licence of the weights, where it limits their use")
        self.add_advanced(QgsProcessingParameterBoolean("ACCEPT_LICENCE", title, False))

    def add_whole_number(self, name: str, title: str, default: int, maximum: int, minimum: int = 0) -> None:
        """A whole number."""
        kind = QgsProcessingParameterNumber.Type.Integer
        self.add_advanced(QgsProcessingParameterNumber(name, title, kind, default, minValue=minimum, maxValue=maximum))

    def add_scheduler(self) -> None:
        """Which Dask scheduler shares the work out."""
        title = self.tr("Dask scheduler that shares the work out (empty: none)")
        parameter = QgsProcessingParameterString("SCHEDULER", title, defaultValue="", optional=True)
        parameter.setHelp(
            self.tr(
                "local: the cores of this computer; local:N: N of them; tcp://HOST:PORT or a scheduler's file: a "
                "cluster, whose machines find all files under the same names as this one."
            )
        )
        self.add_advanced(parameter)

    def add_figures(self, by_default: bool = False) -> None:
        """A JSON file with the figures.

        Args:
            by_default: whether a dialog proposes to write it.
        """
        self.addParameter(
            QgsProcessingParameterFileDestination(
                "FIGURES", self.tr("Figures"), self.tr("JSON (*.json)"), optional=True, createByDefault=by_default
            )
        )

    def add_report(self) -> None:
        """A page with all that is known of the accuracy."""
        title, kind = self.tr("Accuracy report"), self.tr("HTML (*.html)")
        self.addParameter(
            QgsProcessingParameterFileDestination("REPORT", title, kind, optional=True, createByDefault=False)
        )

    def add_line_width(self) -> None:
        """How wide line and point labels are."""
        kind = QgsProcessingParameterNumber.Type.Double
        title = self.tr("Width of line and point labels (pixels)")
        self.add_advanced(QgsProcessingParameterNumber("LINE_WIDTH", title, kind, 3.0, minValue=0.1, maxValue=64.0))

    def add_unknown_below(self) -> None:
        """From which confidence on a pixel gets a class."""
        kind = QgsProcessingParameterNumber.Type.Double
        title = self.tr("Map as unknown what is less sure than (percent; 0: nothing)")
        self.add_advanced(QgsProcessingParameterNumber("UNKNOWN_BELOW", title, kind, 0.0, minValue=0, maxValue=100))

    def add_device(self) -> None:
        """Where to compute, and where weights are."""
        self.add_choice("DEVICE", self.tr("Device"), settings.DEVICES, settings.device())
        folder = QgsProcessingParameterFile(
            "WEIGHTS_DIR",
            self.tr("Folder with pretrained weights"),
            QgsProcessingParameterFile.Behavior.Folder,
            optional=True,
        )
        self.add_advanced(folder)


def figure(outputs: Mapping[str, Any], name: str, part: str) -> Optional[float]:
    """One figure of outputs["figures"], or None where it is not there."""
    figures = outputs.get("figures")
    value = figures.get(name) if isinstance(figures, Mapping) else None
    value = value.get(part) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, (int, float)) else None
