"""The preview: while labels are drawn, the visible part of the raster shows what they teach so far."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Optional

from qgis.core import (
    QgsApplication,
    QgsCoordinateTransform,
    QgsCsException,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.PyQt import sip
from qgis.PyQt.QtCore import QObject, QTimer, pyqtSignal

from .. import settings
from ..engine_process import PROTOCOL, EngineCanceled, EngineCrashed, EngineError, EngineFailed
from ..engine_worker import EngineWorker
from ..label_snapshot import LabelSnapshot
from ..layers import LabelFile, LayerError, raster_path
from .preview_layer import PreviewLayer

DEBOUNCE_MS, LOOK_MS = 200, 25
# Of the options, what goes into the job as it is.
OPTIONS = ("background", "area", "bands", "radiometry", "line_width_px", "max_pixels")
FORGOTTEN_AFTER_S = 7 * 24 * 3600


class Preview(QObject):
    """Asks a warm engine for a map of what is visible whenever labels, view or sources change, and shows it.

    Signals: `said` level and text for the log; `status` a short line on how it stands.

    Args:
        canvas: the map canvas; None: the whole raster is mapped.
    """

    said = pyqtSignal(str, str)
    status = pyqtSignal(str)

    def __init__(self, canvas: Any = None, parent: Optional[QObject] = None) -> None:
        super().__init__(parent)
        self._canvas = canvas
        self._raster: Optional[QgsRasterLayer] = None
        self._labels: Optional[QgsVectorLayer] = None
        self._class_field = ""
        self._options: dict[str, Any] = {}
        # Ids, since a layer that goes cannot be asked any more.
        self._sources: tuple[Any, ...] = ("", "", "", {})
        self._enabled = False
        self._watched: list[tuple[Any, Any]] = []
        self._number = 0
        self._changed_at: Optional[float] = None
        self._labels_changed = True
        self._snapshot: Optional[LabelSnapshot] = None
        self._label_file: Optional[LabelFile] = None
        self._said: set[str] = set()
        self._folder: Optional[Path] = None
        self._worker: Optional[EngineWorker] = None
        self._shown = PreviewLayer(self.tr("GeoPEFT preview"))
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(DEBOUNCE_MS)
        self._soon.timeout.connect(self._refresh)
        self._look = QTimer(self)
        self._look.setInterval(LOOK_MS)
        self._look.timeout.connect(self._poll)

    @property
    def layer(self) -> Optional[QgsRasterLayer]:
        """The layer with the map, while there is one."""
        return self._shown.layer

    def set_sources(
        self,
        raster: Optional[QgsRasterLayer],
        labels: Optional[QgsVectorLayer],
        class_field: str,
        options: Optional[Mapping[str, Any]] = None,
    ) -> None:
        """What is mapped, and what is learned from.

        Args:
            options: fields of the engine's preview job: background, area, bands, radiometry, line_width_px, max_pixels.
        """
        chosen = {name: value for name, value in (options or {}).items() if name in OPTIONS}
        old, new = self._sources, (_id(raster), _id(labels), class_field, chosen)
        if old == new:
            return
        self._sources = new
        if old[0] != new[0]:
            self._shown.remove(amid_changes=raster is None)
        if old[1:3] != new[1:3]:
            self._forget_labels()
        self._raster, self._labels, self._class_field, self._options = raster, labels, class_field, chosen
        self._said.clear()
        if self._enabled:
            self._watch()
            self._change()

    def set_enabled(self, enabled: bool) -> None:
        """Switches the preview on or off; off, its layer goes and its engine ends."""
        if enabled == self._enabled:
            return
        self._enabled = enabled
        if enabled:
            self._labels_changed = True
            self._said.clear()
            self._watch()
            self._change()
            return
        self._soon.stop()
        self._unwatch()
        self._shown.remove()
        if self._worker is not None:
            self._worker.stop()
            self._look.start()
        self.status.emit("")

    def end(self) -> None:
        """Ends everything and leaves nothing behind; waits for the engine, at most five seconds."""
        self.set_enabled(False)
        self._look.stop()
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        if self._snapshot is not None:
            self._snapshot.wait(2.0)
            self._snapshot = None
        self._shown.end()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    # What is watched

    def _watch(self) -> None:
        self._unwatch()
        if self._canvas is not None:
            self._connect(self._canvas.extentsChanged, self._change)
            self._connect(self._canvas.destinationCrsChanged, self._change)
        if self._raster is not None:
            self._connect(self._raster.willBeDeleted, self._raster_goes)
            self._connect(self._raster.dataSourceChanged, self._change)
        labels = self._labels
        if labels is None:
            return
        self._connect(labels.willBeDeleted, self._labels_go)
        for signal in (
            labels.featureAdded,
            labels.featuresDeleted,
            labels.geometryChanged,
            labels.attributeValueChanged,
            labels.afterRollBack,
            labels.afterCommitChanges,
            labels.subsetStringChanged,
            labels.updatedFields,
            labels.styleChanged,
            labels.crsChanged,
            labels.dataSourceChanged,
        ):
            self._connect(signal, self._labels_change)

    def _connect(self, signal: Any, slot: Any) -> None:
        signal.connect(slot)
        self._watched.append((signal, slot))

    def _unwatch(self) -> None:
        watched, self._watched = self._watched, []
        for signal, slot in watched:
            try:
                signal.disconnect(slot)
            except (TypeError, RuntimeError):
                pass  # its layer has gone

    def _labels_change(self, *_: Any) -> None:
        self._labels_changed = True
        self._change()

    def _change(self, *_: Any) -> None:
        if self._changed_at is None:
            self._changed_at = time.monotonic()
        self._soon.start()

    def _raster_goes(self) -> None:
        self.set_sources(None, self._labels, self._class_field, self._options)

    def _labels_go(self) -> None:
        self.set_sources(self._raster, None, self._class_field, self._options)

    # From a change to a job

    def _refresh(self) -> None:
        """After a change has settled: the labels are written, then the engine is asked."""
        if not self._enabled:
            return
        problem = self._problem()
        if problem:
            self._no_map(problem)
        elif not self._labels_changed and self._label_file is not None:
            self._submit(self._label_file)
        elif self._snapshot is None:
            self._labels_changed = False
            path = self._next_path("labels", ".gpkg")
            self._snapshot = LabelSnapshot(self._labels, self._class_field, path)
        self._look.start()

    def _problem(self) -> str:
        """Why there can be no map; empty where there can."""
        if self._raster is None or sip.isdeleted(self._raster):
            return self.tr("Preview: choose a raster.")
        if self._labels is None or sip.isdeleted(self._labels):
            return self.tr("Preview: choose a layer with labels.")
        if not self._class_field:
            return self.tr("Preview: choose the field with the class.")
        try:
            raster_path(self._raster)
        except LayerError as error:
            return str(error)
        return ""

    def _poll(self) -> None:
        """A look at what goes on elsewhere."""
        if self._snapshot is not None and self._snapshot.done:
            snapshot, self._snapshot = self._snapshot, None
            self._labels_written(snapshot)
        if self._worker is not None:
            self._worker.poll()
        if self._snapshot is None and (self._worker is None or not self._worker.active):
            self._look.stop()

    def _labels_written(self, snapshot: LabelSnapshot) -> None:
        old, self._label_file = self._label_file, None
        if old is not None:
            _delete(old.spec.rpartition(":")[0])
        try:
            self._label_file = snapshot.result()
        except LayerError as error:
            if not self._labels_changed:
                self._no_map(str(error))
                return
        if self._enabled:
            self._refresh()

    def _forget_labels(self) -> None:
        self._labels_changed = True
        self._label_file = None

    def _submit(self, labels: LabelFile) -> None:
        extent = self._extent()
        if extent is None:
            self._no_map(self.tr("Preview: the raster is outside the view."), keep_layer=True)
            return
        out = self._next_path("map", ".tif")
        job = preview_job(raster_path(self._raster), labels, extent, out, self._options)
        asked_at, self._changed_at = self._changed_at or time.monotonic(), None
        folder = out.with_suffix("")
        if self._worker is None:
            self._worker = EngineWorker(_engine_command, out.parent)
        self.status.emit(self.tr("Preview: updating ..."))
        try:
            self._worker.submit(job, folder, self._heard, partial(self._done, folder, asked_at))
        except OSError as error:
            text = self.tr("Preview: {folder} cannot be written ({reason}).")
            self._no_map(text.format(folder=folder, reason=error.strerror))

    def _extent(self) -> Optional[QgsRectangle]:
        """The visible part of the raster in its own CRS, None where there is none."""
        raster = self._raster
        if raster is None:
            return None
        whole = raster.extent()
        if self._canvas is None:
            return whole
        seen, system = self._canvas.extent(), self._canvas.mapSettings().destinationCrs()
        if system.isValid() and raster.crs().isValid() and system != raster.crs():
            context = QgsProject.instance().transformContext()
            there = QgsCoordinateTransform(system, raster.crs(), context)
            try:
                seen = there.transformBoundingBox(seen)
            except QgsCsException:  # the view is larger than the raster's CRS reaches
                return whole
        part = whole.intersect(seen)
        return part if not part.isEmpty() and part.width() > 0 and part.height() > 0 else None

    # From the engine to the layer

    def _heard(self, event: dict[str, Any]) -> None:
        if event["event"] == "message":
            self._say(str(event.get("level") or "info"), str(event.get("text") or ""))

    def _done(
        self, folder: Path, asked_at: float, outputs: Optional[dict[str, Any]], error: Optional[Exception]
    ) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, EngineCanceled) or not self._enabled:
            return
        if outputs is None:
            self._failed(error)
            return
        old = self._shown.layer.source() if self._shown.layer is not None else ""
        if self._raster is None or not self._shown.show(outputs["class_raster"], outputs["classes"], self._raster):
            self._no_map(self.tr("Preview: the map cannot be opened."))
            return
        _delete(old)
        seconds = time.monotonic() - asked_at
        text = self.tr("Preview: {seconds:.1f} s")
        if outputs.get("factor", 1) > 1:
            text = self.tr("Preview: {seconds:.1f} s, coarse (zoom in for detail)")
        self.status.emit(text.format(seconds=seconds))

    def _failed(self, error: Optional[Exception]) -> None:
        code = getattr(error, "code", "")
        known = {
            "LABELS_ONE_CLASS": self.tr("Preview: label a second class."),
            "LABELS_EMPTY": self.tr("Preview: label two classes where the raster has data."),
            "LABELS_OUTSIDE": self.tr("Preview: the labels lie outside the raster."),
            "LABELS_TOO_SMALL": self.tr("Preview: zoom in; from this far the labels run together."),
            "RASTER_CHANGED": self.tr("Preview: the raster is being written."),
        }
        if code in known:
            self._no_map(known[code])
            return
        if isinstance(error, EngineCrashed):
            self._say("log", error.log_tail)
        self._say("warning", str(error))
        message = error.message if isinstance(error, EngineError) else str(error)
        self._no_map(self.tr("Preview: {reason}").format(reason=message))

    def _no_map(self, text: str, keep_layer: bool = False) -> None:
        """Nothing to show now: a map that the labels no longer bear out would mislead."""
        self._changed_at = None
        if self._worker is not None:
            self._worker.cancel()
        if not keep_layer:
            self._shown.remove()
        self.status.emit(text)

    def _say(self, level: str, text: str) -> None:
        """The same sentence once, not at every label."""
        if text and text not in self._said:
            self._said.add(text)
            self.said.emit(level, text)

    def _next_path(self, name: str, suffix: str) -> Path:
        if self._folder is None:
            self._folder = _new_folder()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._number += 1
        return self._folder / f"{name}-{self._number}{suffix}"


def preview_job(
    raster: str, labels: LabelFile, extent: QgsRectangle, out: Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The engine's job for a preview."""
    return {
        "job": "preview",
        "protocol": PROTOCOL,
        "raster": raster,
        "labels": labels.spec,
        "class_field": labels.class_field,
        "classes": labels.classes,
        "extent": [extent.xMinimum(), extent.yMinimum(), extent.xMaximum(), extent.yMaximum()],
        "out": str(out),
        **options,
    }


def _engine_command() -> Sequence[str]:
    try:
        return settings.engine_command()
    except settings.EngineMissing as error:
        raise EngineFailed("ENGINE_MISSING", str(error)) from error


def _id(layer: Any) -> str:
    return "" if layer is None or sip.isdeleted(layer) else str(layer.id())


def _delete(path: str) -> None:
    """A file that is not needed any more; one that is still open goes with the folder."""
    for name in (path, f"{path}.aux.xml", f"{path}-wal", f"{path}-shm") if path else ():
        try:
            Path(name).unlink(missing_ok=True)
        except OSError:
            pass


def _new_folder() -> Path:
    """A folder in the profile: QGIS asks about layers of its temporary folder when it is closed."""
    parent = Path(QgsApplication.qgisSettingsDirPath()) / "geopeft" / "preview"
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.iterdir():  # a QGIS that was killed has left them
        if old.is_dir() and time.time() - old.stat().st_mtime > FORGOTTEN_AFTER_S:
            shutil.rmtree(old, ignore_errors=True)
    number = 1
    while True:
        folder = parent / str(number)
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
