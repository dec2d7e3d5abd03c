"""Runs the toolbox's algorithms in tasks, so that no window ever waits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, Optional

from qgis.core import (
    QgsApplication,
    QgsProcessingAlgRunnerTask,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProject,
)
from qgis.PyQt.QtCore import QObject, pyqtSignal

from .. import last_models
from ..model_package import PackageError, read_manifest, summary

END_WAIT_MS = 9000


class TrainingRequest(NamedTuple):
    """What one press of the button asks for.

    Args:
        fit: parameters of `geopeft:fit`.
        raster: what is mapped.
        model, map_file: files to write.
        polygons: the map as polygons too.
    """

    fit: dict[str, Any]
    raster: str
    model: Path
    map_file: Path
    polygons: bool = False


class RunFeedback(QgsProcessingFeedback):
    """Passes on what an algorithm says, from its thread to this object's by signals."""

    said = pyqtSignal(str, str)
    stepped = pyqtSignal(str)
    measured = pyqtSignal(dict)

    def __init__(self) -> None:
        super().__init__(False)
        self.error = ""
        self._stopping = False

    def stop(self) -> None:
        """Asks a training to end early with the best model so far."""
        self._stopping = True

    def is_stopping(self) -> bool:
        """Asked by the algorithms, from their thread."""
        return self._stopping

    def metric(self, event: dict[str, Any]) -> None:
        """Called by the algorithms with each figure."""
        self.measured.emit(event)

    def setProgressText(self, text: str) -> None:  # noqa: N802
        self.stepped.emit(text)

    def pushInfo(self, info: str) -> None:  # noqa: N802
        self.said.emit("info", info)

    def pushWarning(self, warning: str) -> None:  # noqa: N802
        self.said.emit("warning", warning)

    def pushConsoleInfo(self, info: str) -> None:  # noqa: N802
        self.said.emit("log", info)

    def pushDebugInfo(self, info: str) -> None:  # noqa: N802
        self.said.emit("log", info)

    def reportError(self, error: str, fatalError: bool = False) -> None:  # noqa: N802
        self.error = self.error or error
        self.said.emit("error", error)


class AlgorithmRun(QObject):
    """One algorithm in a task. `ended` comes exactly once: results, error text, canceled."""

    ended = pyqtSignal(dict, str, bool)

    def __init__(self, algorithm_id: str, parameters: dict[str, Any], feedback: RunFeedback, parent: QObject) -> None:
        super().__init__(parent)
        self.feedback = feedback
        self._context = QgsProcessingContext()
        self._context.setProject(QgsProject.instance())
        self._context.setFeedback(feedback)
        self._id = algorithm_id
        self._parameters = parameters
        self._task: Optional[QgsProcessingAlgRunnerTask] = None

    def start(self) -> None:
        """Prepares in this thread (labels are read now), then runs in a task."""
        algorithm = QgsApplication.processingRegistry().algorithmById(self._id)
        if algorithm is None:
            self.ended.emit({}, self.tr("Processing is switched off. Switch on its plugin, then run again."), False)
            return
        ok, message = algorithm.checkParameterValues(self._parameters, self._context)
        if not ok:
            self.ended.emit({}, message, False)
            return
        task = QgsProcessingAlgRunnerTask(algorithm, self._parameters, self._context, self.feedback)
        # A task whose preparation failed is canceled already and would never say that it ended.
        if task.isCanceled():
            self.ended.emit({}, self.feedback.error or self.tr("The job could not be prepared."), False)
            return
        task.executed.connect(self._executed)
        self._task = task
        QgsApplication.taskManager().addTask(task)

    def cancel(self) -> None:
        """Asks the run to end."""
        self.feedback.cancel()

    def stop(self) -> None:
        """Asks a training to end early with the best model so far; other runs end without a result."""
        self.feedback.stop()

    def end(self) -> None:
        """Ends the run and waits for it; for when the plugin goes away."""
        self.cancel()
        if self._task is not None:
            self._task.executed.disconnect(self._executed)
            # When its thread has ended, the task finishes in the main thread, which may come after this object is gone.
            held = (self._context, self.feedback)
            self._task.destroyed.connect(lambda *_: held)
            self._task.waitForFinished(END_WAIT_MS)
            self._task = None

    def _executed(self, ok: bool, results: dict[str, Any]) -> None:
        self._task = None
        # A training that is stopped before it has anything to keep ends without results, which is a cancel.
        canceled = self.feedback.isCanceled() or (ok and not results)
        error = "" if ok or canceled else self.feedback.error or self.tr("The job failed without saying why.")
        self.ended.emit(results, error, canceled)


class TrainAndMap(QObject):
    """Trains a model and maps the raster with it, one algorithm after the other.

    Labels are read when it starts, and rasters are known by their files: what becomes of the layers does no harm.

    Signals: `progressed` percent of the whole, `stepped` text with the time left, `measured` metric events, `said`
    level and text, `trained` the fit's results, and one of `finished` (fit's and predict's results), `failed`
    (sentence), `canceled`.
    """

    FIT_SHARE = 0.8

    progressed = pyqtSignal(float)
    stepped = pyqtSignal(str)
    measured = pyqtSignal(dict)
    said = pyqtSignal(str, str)
    trained = pyqtSignal(dict)
    finished = pyqtSignal(dict, dict)
    failed = pyqtSignal(str)
    canceled = pyqtSignal()

    def __init__(self, request: TrainingRequest, parent: QObject) -> None:
        super().__init__(parent)
        self._request = request
        self._fit_results: dict[str, Any] = {}
        self._run: Optional[AlgorithmRun] = None
        self._stage = ""

    @property
    def has_model(self) -> bool:
        """True once the training has written its model."""
        return bool(self._fit_results)

    @property
    def is_training(self) -> bool:
        """True while there is something that `stop` could end early."""
        return self._stage == "fit" and self._run is not None

    def stop(self) -> None:
        """Ends the training early and goes on to the map with the best model so far. Before the first step of the
        training there is none: it is canceled then. The map itself is not stopped by this."""
        if self.is_training and self._run is not None:
            self._run.stop()

    def start(self) -> None:
        """Starts with the training."""
        self._stage = "fit"
        self._start("geopeft:fit", self._request.fit, 0.0, self.FIT_SHARE, self._fit_ended)

    def cancel(self) -> None:
        """Asks whatever runs to end."""
        if self._run is not None:
            self._run.cancel()

    def end(self) -> None:
        """Ends whatever runs and waits for it."""
        if self._run is not None:
            self._run.end()
            self._run = None

    def _start(self, algorithm: str, parameters: dict[str, Any], first: float, share: float, ended: Any) -> None:
        feedback = RunFeedback()
        feedback.said.connect(self.said)
        feedback.stepped.connect(self.stepped)
        feedback.measured.connect(self.measured)
        feedback.progressChanged.connect(lambda percent: self.progressed.emit(first * 100 + share * percent))
        self._run = AlgorithmRun(algorithm, parameters, feedback, self)
        self._run.ended.connect(ended)
        self._run.start()

    def _fit_ended(self, results: dict[str, Any], error: str, canceled: bool) -> None:
        if self._stopped(error, canceled):
            return
        self._stage = "predict"
        self._fit_results = results
        self._remember_model()
        self.trained.emit(results)
        map_file = self._request.map_file
        parameters = {
            "MODEL": str(self._request.model),
            "RASTER": self._request.raster,
            "OUTPUT": str(map_file),
            "CONFIDENCE": str(map_file.with_name(f"{map_file.stem}_confidence.tif")),
            "DEVICE": self._request.fit["DEVICE"],
        }
        if self._request.polygons:
            parameters["POLYGONS"] = str(map_file.with_name(f"{map_file.stem}_polygons.gpkg"))
        self._start("geopeft:predict", parameters, self.FIT_SHARE, 1 - self.FIT_SHARE, self._predict_ended)

    def _predict_ended(self, results: dict[str, Any], error: str, canceled: bool) -> None:
        if not self._stopped(error, canceled):
            self._run = None
            self.finished.emit(self._fit_results, {**results, "RASTER": self._request.raster})

    def _remember_model(self) -> None:
        """For a training that starts from this one. No label is drawn for the background, so it is no class there."""
        try:
            names = [entry.name for entry in summary(read_manifest(self._request.model)).classes]
        except PackageError:
            return
        classes = [name for name in names if name != self._request.fit.get("BACKGROUND")]
        last_models.remember(QgsProject.instance(), self._request.raster, self._request.model, classes)

    def _stopped(self, error: str, canceled: bool) -> bool:
        if canceled or error:
            self._run = None
            self.canceled.emit() if canceled else self.failed.emit(error)
        return bool(canceled or error)


def as_engine_outputs(predict_results: dict[str, Any]) -> dict[str, Any]:
    """The results of `geopeft:predict`, or what `TrainAndMap` finished with, as the engine gives them."""
    entry = {
        "raster": predict_results.get("RASTER"),
        "class_raster": predict_results["OUTPUT"],
        "confidence": predict_results.get("CONFIDENCE"),
        "polygons": predict_results.get("POLYGONS"),
        "classes": json.loads(predict_results.get("CLASSES") or "[]"),
    }
    return {"rasters": [entry]}
