"""The list of rasters to map: layers of the project, files and folders, and how each fares."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Optional

from qgis.core import QgsApplication, QgsMapLayer, QgsProject, QgsRasterLayer
from qgis.PyQt.QtCore import QModelIndex, QSize, Qt, QTimer, pyqtSignal
from qgis.PyQt.QtGui import QDragEnterEvent, QDragMoveEvent, QDropEvent, QIcon, QPainter
from qgis.PyQt.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionProgressBar,
    QStyleOptionViewItem,
    QTreeWidget,
    QTreeWidgetItem,
    QWidget,
)

from ..model_match import match
from ..model_package import Summary
from ..result_metadata import MODEL_PROPERTY
from ..sources import describe
from .folder_scan import FolderScan

UNTRIED, QUEUED, RUNNING, DONE, FAILED, CANCELED, UNFIT = range(7)
STATES = {
    UNTRIED: "",
    QUEUED: "queued",
    RUNNING: "running",
    DONE: "done",
    FAILED: "failed",
    CANCELED: "canceled",
    UNFIT: "does not fit",
}
ICONS = {DONE: "/mIconSuccess.svg", FAILED: "/mIconCritical.svg", UNFIT: "/mIconWarning.svg"}
NAME, STATE = range(2)
RASTER_ROLE = Qt.ItemDataRole.UserRole
STATE_ROLE = Qt.ItemDataRole.UserRole + 1
PERCENT_ROLE = Qt.ItemDataRole.UserRole + 2
# Rows that are added before QGIS may breathe again.
AT_ONCE = 50


class Raster(NamedTuple):
    """A raster that may be mapped.

    Args:
        path: what the engine opens; empty where it cannot open it.
        name: for people.
        layer_id: of the layer in the project; empty for files.
        sentence: why the engine cannot open it.
    """

    path: str
    name: str
    layer_id: str
    sentence: str


class RasterList(QTreeWidget):
    """Rasters with a box to choose each, and its state.

    `changed` comes when the choice may be another one.
    """

    changed = pyqtSignal()

    def __init__(self, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self._model: Optional[Summary] = None
        self._is_locked = False
        self._scans: list[FolderScan] = []
        self._rows: dict[str, QTreeWidgetItem] = {}
        self._waiting: list[str] = []
        self._add_next = QTimer(self)
        self._add_next.timeout.connect(self._add_waiting)
        self.setObjectName("GeopeftRasters")
        self.setHeaderLabels([self.tr("Raster"), self.tr("State")])
        self.setRootIsDecorated(False)
        self.setAlternatingRowColors(True)
        self.setUniformRowHeights(True)
        self.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setItemDelegateForColumn(STATE, _StateDelegate(self))
        self.header().setStretchLastSection(False)
        self.header().setSectionResizeMode(NAME, QHeaderView.ResizeMode.Stretch)
        self.header().setSectionResizeMode(STATE, QHeaderView.ResizeMode.Fixed)
        self.header().resizeSection(STATE, self.fontMetrics().horizontalAdvance("m" * 11))
        self.setAcceptDrops(True)
        self.itemChanged.connect(self._item_changed)
        project = QgsProject.instance()
        project.layersAdded.connect(self._layers_added)
        project.layersRemoved.connect(self._layers_removed)
        in_legend = [node.layer() for node in project.layerTreeRoot().findLayers()]
        self._layers_added([layer for layer in in_legend if layer is not None])

    # What is in the list

    def add_files(self, paths: Iterable[str]) -> None:
        """Adds files, chosen; those that are there already are chosen only. Of many, some are added a little later."""
        self._waiting += paths
        self._add_waiting()
        if self._waiting:
            self._add_next.start()

    def add_folder(self, folder: str, recursive: bool) -> None:
        """Adds the rasters of a folder, as they are found."""
        scan = FolderScan(folder, recursive, self)
        scan.found.connect(lambda paths: self._scanned(scan, paths))
        self._scans.append(scan)
        scan.start()

    def remove_selected(self) -> None:
        """Takes the selected rows out of the list; files and layers stay."""
        if not self._is_locked:
            for item in self.selectedItems():
                self._drop(item)
            self.changed.emit()

    def choose_all(self, chosen: bool) -> None:
        """Checks or unchecks all rasters that can be mapped."""
        with self._quietly():
            for item in self._items():
                _check(item, chosen)
        self.changed.emit()

    def chosen(self) -> list[str]:
        """What the engine is to open, in the order of the list."""
        return [_raster(item).path for item in self._items() if item.checkState(NAME) == Qt.CheckState.Checked]

    def state(self, path: str) -> int:
        """How a raster fares; UNTRIED for one that is not in the list."""
        item = self._find(path)
        return int(item.data(STATE, STATE_ROLE)) if item is not None else UNTRIED

    def names(self, paths: Iterable[str]) -> list[str]:
        """The names of rasters, for people."""
        items = [(path, self._find(path)) for path in paths]
        return [_raster(item).name if item is not None else os.path.basename(path) for path, item in items]

    def is_scanning(self) -> bool:
        """True while a folder is searched."""
        return bool(self._scans or self._waiting)

    def choose_only(self, layer: Optional[QgsMapLayer]) -> None:
        """Checks one layer where nothing is checked yet: the obvious choice."""
        fitting = [item for item in self._items() if item.flags() & Qt.ItemFlag.ItemIsUserCheckable]
        wanted = [item for item in fitting if layer is not None and _raster(item).layer_id == layer.id()]
        if not self.chosen() and (wanted or len(fitting) == 1):
            _check((wanted or fitting)[0], True)

    def end(self) -> None:
        """Lets go of the project; for when the plugin goes away."""
        for scan in self._scans:
            scan.end()
        self._scans.clear()
        self._waiting.clear()
        self._add_next.stop()
        project = QgsProject.instance()
        project.layersAdded.disconnect(self._layers_added)
        project.layersRemoved.disconnect(self._layers_removed)

    # How each fares

    def set_model(self, model: Optional[Summary]) -> None:
        """Compares all layers with a model that is to be applied."""
        self._model = model
        if not self._is_locked:
            for item in self._items():
                self._compare(item)
        self.changed.emit()

    def lock(self, is_locked: bool) -> None:
        """While a run goes on, the choice is not to change."""
        if is_locked == self._is_locked:
            return
        self._is_locked = is_locked
        with self._quietly():
            for item in self._items():
                _allow_check(item, not is_locked and item.data(STATE, STATE_ROLE) != UNFIT)

    def set_state(self, path: str, state: int, sentence: str = "", percent: float = 0.0) -> None:
        """Shows how a raster fares; the sentence becomes its tooltip."""
        item = self._find(path)
        if item is None:
            return
        if item.data(STATE, STATE_ROLE) != state:
            self._set_state(item, state, sentence)
            if state == RUNNING:
                self.scrollToItem(item)
        if state == RUNNING:
            item.setData(STATE, PERCENT_ROLE, percent)

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(300, 180)

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802
        if _dropped(event.mimeData()) and not self._is_locked:
            event.acceptProposedAction()

    def dragMoveEvent(self, event: QDragMoveEvent) -> None:  # noqa: N802
        if _dropped(event.mimeData()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802
        paths = _dropped(event.mimeData())
        for folder in (path for path in paths if os.path.isdir(path)):
            self.add_folder(folder, recursive=False)
        self.add_files(path for path in paths if not os.path.isdir(path))
        event.acceptProposedAction()

    def _items(self) -> list[QTreeWidgetItem]:
        items = (self.topLevelItem(row) for row in range(self.topLevelItemCount()))
        return [item for item in items if item is not None]

    def _find(self, path: str) -> Optional[QTreeWidgetItem]:
        return self._rows.get(_key(path)) if path else None

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Without a signal for each row."""
        was_quiet = self.blockSignals(True)
        try:
            yield
        finally:
            self.blockSignals(was_quiet)

    def _add_waiting(self) -> None:
        now, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
        if not self._waiting:
            self._add_next.stop()
        with self._quietly():
            for path in now:
                path = os.path.abspath(path) if os.path.exists(path) else path
                item = self._find(path)
                if item is None:
                    self._add(Raster(path, os.path.basename(path) or path, "", ""), chosen=True)
                else:
                    _check(item, True)
        self.changed.emit()

    def _add(self, raster: Raster, chosen: bool) -> None:
        item = QTreeWidgetItem([raster.name, ""])
        item.setData(NAME, RASTER_ROLE, raster)
        item.setIcon(NAME, QgsApplication.getThemeIcon("/mIconRaster.svg"))
        item.setToolTip(NAME, raster.sentence or raster.path)
        item.setCheckState(NAME, Qt.CheckState.Checked if chosen else Qt.CheckState.Unchecked)
        with self._quietly():
            self.addTopLevelItem(item)
            self._compare(item)
        self._rows[_key(raster.path) or raster.layer_id] = item

    def _drop(self, item: QTreeWidgetItem) -> None:
        self._rows = {key: other for key, other in self._rows.items() if other is not item}
        self.takeTopLevelItem(self.indexOfTopLevelItem(item))

    def _set_state(self, item: QTreeWidgetItem, state: int, sentence: str = "") -> None:
        icon = ICONS.get(state) or ("/mIconWarning.svg" if sentence else "")
        with self._quietly():
            item.setData(STATE, STATE_ROLE, state)
            item.setText(STATE, self.tr(STATES[state]) if state != UNTRIED else "")
            item.setToolTip(STATE, sentence)
            item.setIcon(STATE, QgsApplication.getThemeIcon(icon) if icon else QIcon())

    def _compare(self, item: QTreeWidgetItem) -> None:
        """A layer that the model cannot map is not to be chosen, and says why."""
        raster = _raster(item)
        layer = QgsProject.instance().mapLayer(raster.layer_id)
        found = match(self._model, layer) if self._model and isinstance(layer, QgsRasterLayer) else None
        refusal = raster.sentence or (found.refusal if found else "")
        self._set_state(item, UNFIT if refusal else UNTRIED, refusal or (found.doubt if found else ""))
        with self._quietly():
            if refusal:
                # Without a box and grey: there is nothing to choose.
                item.setData(NAME, Qt.ItemDataRole.CheckStateRole, None)
            elif item.data(NAME, Qt.ItemDataRole.CheckStateRole) is None:
                item.setCheckState(NAME, Qt.CheckState.Unchecked)
            enabled = Qt.ItemFlag.ItemIsEnabled
            item.setFlags(item.flags() & ~enabled if refusal else item.flags() | enabled)
            _allow_check(item, not refusal and not self._is_locked)

    def _layers_added(self, layers: Sequence[QgsMapLayer]) -> None:
        for layer in layers:
            # Maps that a model has made are no rasters to be mapped.
            if isinstance(layer, QgsRasterLayer) and not layer.customProperty(MODEL_PROPERTY):
                source = describe(layer)
                sentence = "" if source.path else source.sentence
                if self._find(source.path) is None:
                    self._add(Raster(source.path, layer.name(), layer.id(), sentence), chosen=False)
        self.changed.emit()

    def _layers_removed(self, ids: Sequence[str]) -> None:
        """Rows that say something of a run stay, and so does everything during one."""
        for item in self._items():
            is_news = item.data(STATE, STATE_ROLE) not in (UNTRIED, UNFIT)
            if _raster(item).layer_id in ids and not is_news and not self._is_locked:
                self._drop(item)
        self.changed.emit()

    def _scanned(self, scan: FolderScan, paths: list[str]) -> None:
        self._scans.remove(scan)
        self.add_files(paths)

    def _item_changed(self, item: QTreeWidgetItem, column: int) -> None:
        if column == NAME:
            self.changed.emit()


class _StateDelegate(QStyledItemDelegate):
    """Paints the state; that of a raster at work as a bar."""

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex) -> None:
        super().paint(painter, option, index)
        if index.data(STATE_ROLE) != RUNNING:
            return
        bar = QStyleOptionProgressBar()
        bar.rect = option.rect.adjusted(2, 2, -2, -2)
        bar.palette = option.palette
        bar.fontMetrics = option.fontMetrics
        bar.state = QStyle.StateFlag.State_Enabled | QStyle.StateFlag.State_Horizontal
        bar.minimum, bar.maximum = 0, 100
        bar.progress = round(index.data(PERCENT_ROLE) or 0)
        bar.text, bar.textVisible = f"{bar.progress} %", True
        bar.textAlignment = Qt.AlignmentFlag.AlignCenter
        style = option.widget.style() if option.widget is not None else QgsApplication.style()
        style.drawControl(QStyle.ControlElement.CE_ProgressBar, bar, painter, option.widget)

    def initStyleOption(self, option: QStyleOptionViewItem, index: QModelIndex) -> None:  # noqa: N802
        super().initStyleOption(option, index)
        if index.data(STATE_ROLE) == RUNNING:
            option.text = ""


def _raster(item: QTreeWidgetItem) -> Raster:
    raster: Raster = item.data(NAME, RASTER_ROLE)
    return raster


def _check(item: QTreeWidgetItem, chosen: bool) -> None:
    if item.flags() & Qt.ItemFlag.ItemIsUserCheckable:
        item.setCheckState(NAME, Qt.CheckState.Checked if chosen else Qt.CheckState.Unchecked)


def _allow_check(item: QTreeWidgetItem, allowed: bool) -> None:
    checkable = Qt.ItemFlag.ItemIsUserCheckable
    item.setFlags(item.flags() | checkable if allowed else item.flags() & ~checkable)


def _key(path: str) -> str:
    return os.path.normcase(os.path.realpath(path)) if os.path.exists(path) else path


def _dropped(mime: Any) -> list[str]:
    return [url.toLocalFile() for url in mime.urls() if url.isLocalFile()]
