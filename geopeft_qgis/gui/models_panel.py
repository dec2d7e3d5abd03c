"""The list of model packages, and what can be done with one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Optional

from qgis.core import QgsApplication
from qgis.gui import QgsFilterLineEdit
from qgis.PyQt.QtCore import QPoint, QSize, Qt, QUrl, pyqtSignal
from qgis.PyQt.QtGui import QDesktopServices, QDragEnterEvent, QDropEvent, QKeySequence, QShowEvent
from qgis.PyQt.QtWidgets import (
    QAbstractItemView,
    QApplication,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QListWidget,
    QListWidgetItem,
    QMenu,
    QPushButton,
    QSplitter,
    QStackedLayout,
    QTextBrowser,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from .. import settings
from .model_catalogue import Entry, ModelCatalogue
from .model_view import ENTRY_ROLE, ModelDelegate, details_html
from .notices import log, notify
from .package_drop import is_package
from .run_row import RunRow

try:
    from qgis.PyQt.QtGui import QAction
except ImportError:  # Qt 5
    from qgis.PyQt.QtWidgets import QAction

# How the list can be sorted, in the order of the box.
NEWEST, BY_NAME, MOST_ACCURATE = range(3)
NOTICE_S = 10


class ModelsPanel(QWidget):
    """Lists model packages and shows what each says of itself.

    Signals: `apply_requested` and `report_wanted` with the path of a model; `selected` with that of the current one,
    empty for none.

    Args:
        iface: QGIS's window, for its message bar; None in tests.
        catalogue: the models to list; None: a catalogue of its own.
    """

    apply_requested = pyqtSignal(str)
    report_wanted = pyqtSignal(str)
    selected = pyqtSignal(str)

    def __init__(
        self, iface: Any = None, catalogue: Optional[ModelCatalogue] = None, parent: Optional[QWidget] = None
    ) -> None:
        super().__init__(parent)
        self._iface = iface
        self._wanted = ""
        self.catalogue = catalogue or ModelCatalogue(self)
        self.setObjectName("GeopeftModels")
        self.setAcceptDrops(True)
        self._build()
        self.catalogue.changed.connect(self._fill)
        self.catalogue.finished.connect(self._tell_wanted)
        self.catalogue.refresh()
        self._fill()

    def open_model(self, path: str) -> None:
        """Adds a file to the list and shows it; a file that is no model is told in the message bar."""
        self._wanted = os.path.abspath(path)
        self.catalogue.add(path)
        self.filter_edit.clear()
        self._fill()

    def current(self) -> Optional[Entry]:
        """The chosen model, damaged or not."""
        item = self.list.currentItem()
        entry = item.data(ENTRY_ROLE) if item is not None else None
        return entry if isinstance(entry, Entry) else None

    def end(self) -> None:
        """Ends what runs; for when the plugin goes away."""
        self.export_row.end()
        self.catalogue.end()

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802
        super().showEvent(event)
        self.catalogue.refresh()

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802
        if any(is_package(url.toLocalFile()) for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802
        for url in event.mimeData().urls():
            if is_package(url.toLocalFile()):
                self.open_model(url.toLocalFile())
        event.acceptProposedAction()

    # What is in the panel

    def _build(self) -> None:
        self.filter_edit = QgsFilterLineEdit()
        self.filter_edit.setObjectName("GeopeftModelFilter")
        self.filter_edit.setPlaceholderText(self.tr("Find by name, class or band"))
        self.filter_edit.textChanged.connect(self._fill)
        self.sort_box = QComboBox()
        self.sort_box.setObjectName("GeopeftModelOrder")
        self.sort_box.setToolTip(self.tr("Order of the list"))
        self.sort_box.addItems([self.tr("Newest"), self.tr("Name"), self.tr("Accuracy")])
        self.sort_box.currentIndexChanged.connect(self._fill)
        self.list = QListWidget()
        self.list.setObjectName("GeopeftModelList")
        self.list.setItemDelegate(ModelDelegate(self.list))
        self.list.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.list.setAlternatingRowColors(True)
        self.list.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        self.list.customContextMenuRequested.connect(self._show_menu)
        self.list.currentItemChanged.connect(self._show_details)
        self.list.itemActivated.connect(self._apply)
        self.empty_label = QLabel()
        self.empty_label.setObjectName("GeopeftNoModels")
        self.empty_label.setWordWrap(True)
        self.empty_label.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.empty_label.setMargin(16)
        self.details = QTextBrowser()
        self.details.setObjectName("GeopeftModelDetails")
        # Nothing in a file may make QGIS load something.
        self.details.setOpenLinks(False)
        self._make_actions()
        self._arrange()

    def _make_actions(self) -> None:
        self.apply_button = QPushButton(self.tr("Apply …"))
        self.apply_button.setObjectName("GeopeftApplyModel")
        self.apply_button.setToolTip(self.tr("Map rasters with this model"))
        font = self.apply_button.font()
        font.setBold(True)
        self.apply_button.setFont(font)
        self.apply_button.clicked.connect(self._apply)
        self.open_button = QPushButton(self.tr("Open model …"))
        self.open_button.setObjectName("GeopeftOpenModel")
        self.open_button.setToolTip(self.tr("Add a .geopeft file to the list. You can also drop it on QGIS."))
        self.open_button.clicked.connect(self._choose_file)
        self.menu = QMenu(self)
        self.folder_action = self._action(self.tr("Show in folder"), "/mIconFolderOpen.svg", self._show_in_folder)
        self.copy_action = self._action(self.tr("Copy path"), "/mActionEditCopy.svg", self._copy_path)
        self.export_action = self._action(self.tr("Export to ONNX …"), "/mActionSharingExport.svg", self._choose_export)
        self.report_action = self._action(self.tr("Accuracy report"), "/mActionReport.svg", self._report)
        self.menu.addSeparator()
        self.remove_action = self._action(
            self.tr("Remove from list (the file stays)"), "/mActionRemove.svg", self._remove
        )
        for action, keys in (
            (self.copy_action, QKeySequence(QKeySequence.StandardKey.Copy)),
            (self.remove_action, QKeySequence(QKeySequence.StandardKey.Delete)),
        ):
            action.setShortcut(keys)
            action.setShortcutContext(Qt.ShortcutContext.WidgetShortcut)
            self.list.addAction(action)
        self.more_button = QToolButton()
        self.more_button.setObjectName("GeopeftMoreForModel")
        self.more_button.setText(self.tr("More"))
        self.more_button.setToolTip(self.tr("More to do with this model"))
        self.more_button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.more_button.setMenu(self.menu)

    def _action(self, text: str, icon: str, done: Any) -> QAction:
        action = QAction(QgsApplication.getThemeIcon(icon), text, self)
        action.triggered.connect(lambda *_: done())
        self.menu.addAction(action)
        return action

    def _arrange(self) -> None:
        upper = QHBoxLayout()
        upper.addWidget(self.filter_edit, 1)
        upper.addWidget(self.sort_box)
        lists = QWidget()
        self._pages = QStackedLayout(lists)
        self._pages.addWidget(self.list)
        self._pages.addWidget(self.empty_label)
        splitter = QSplitter(Qt.Orientation.Vertical)
        splitter.setChildrenCollapsible(False)
        splitter.addWidget(lists)
        splitter.addWidget(self.details)
        splitter.setSizes([260, 300])
        lower = QHBoxLayout()
        lower.addWidget(self.apply_button, 2)
        lower.addWidget(self.open_button, 2)
        lower.addWidget(self.more_button)
        self.export_row = RunRow("GeopeftExport")
        self.export_row.ended.connect(self._exported)
        column = QVBoxLayout(self)
        column.addLayout(upper)
        column.addWidget(splitter, 1)
        column.addLayout(lower)
        column.addWidget(self.export_row)

    # The list

    def _fill(self, *_: Any) -> None:
        """Lists the models that fit the filter; the current one stays current."""
        current = self.current()
        chosen = self._wanted or (current.path if current is not None else "")
        words = self.filter_edit.text().casefold().split()
        entries = sorted(
            (entry for entry in self.catalogue.entries() if all(word in _searched(entry) for word in words)),
            key=(_newest, _by_name, _most_accurate)[self.sort_box.currentIndex()],
        )
        self.list.blockSignals(True)
        self.list.clear()
        for entry in entries:
            item = QListWidgetItem()
            item.setData(ENTRY_ROLE, entry)
            item.setData(Qt.ItemDataRole.AccessibleTextRole, entry.name)
            item.setToolTip(entry.error or entry.path)
            self.list.addItem(item)
        self.list.blockSignals(False)
        rows = [row for row, entry in enumerate(entries) if _same(entry.path, chosen)]
        self.list.setCurrentRow(rows[0] if rows else 0 if entries else -1)
        if rows and self._wanted:
            self.list.scrollToItem(self.list.item(rows[0]))
        self._show_empty(len(entries))
        self._show_details()

    def _tell_wanted(self) -> None:
        """Once the file that was opened has been read: whether it can be used."""
        entry = self.catalogue.entry(self._wanted) if self._wanted else None
        self._wanted = ""
        self._show_empty(self.list.count())
        if entry is not None and entry.error:
            # The details have the whole path; the bar has one line.
            self._tell("warning", entry.error.replace(entry.path, os.path.basename(entry.path)))

    def _show_empty(self, count: int) -> None:
        if self.catalogue.is_reading():
            self.empty_label.setText(self.tr("Looking for models …"))
        elif self.filter_edit.text() and self.catalogue.entries():
            self.empty_label.setText(self.tr("No model fits this filter."))
        else:
            text = self.tr("No models yet. Train one, open a .geopeft file, or drop one here.")
            self.empty_label.setText(text)
        self._pages.setCurrentWidget(self.list if count else self.empty_label)

    def _show_details(self, *_: Any) -> None:
        entry = self.current()
        self.details.setHtml(details_html(entry) if entry else "")
        is_usable = entry is not None and entry.summary is not None
        self.apply_button.setEnabled(is_usable)
        self.report_action.setEnabled(is_usable)
        self.export_action.setEnabled(is_usable and not self.export_row.is_busy)
        self.more_button.setEnabled(entry is not None)
        self.selected.emit(entry.path if entry is not None else "")

    def _show_menu(self, where: QPoint) -> None:
        if self.list.itemAt(where) is not None:
            self.menu.popup(self.list.viewport().mapToGlobal(where))

    # Actions

    def _apply(self, *_: Any) -> None:
        entry = self.current()
        if entry is not None and entry.summary is not None:
            self.apply_requested.emit(entry.path)

    def _report(self) -> None:
        entry = self.current()
        if entry is not None:
            self.report_wanted.emit(entry.path)

    def _choose_file(self) -> None:
        entry = self.current()
        folder = os.path.dirname(entry.path) if entry else str(settings.models_folder())
        title, kinds = self.tr("Open a model"), self.tr("GeoPEFT model (*.geopeft)")
        path, _ = QFileDialog.getOpenFileName(self, title, folder, kinds)
        if path:
            self.open_model(path)

    def _show_in_folder(self) -> None:
        entry = self.current()
        if entry is not None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(os.path.dirname(entry.path)))

    def _copy_path(self) -> None:
        entry = self.current()
        if entry is not None:
            QApplication.clipboard().setText(os.path.normpath(entry.path))

    def _remove(self) -> None:
        entry = self.current()
        if entry is not None:
            self.catalogue.remove(entry.path)

    # Export

    def _choose_export(self) -> None:
        entry = self.current()
        if entry is None:
            return
        title, kinds = self.tr("Export to ONNX"), self.tr("ONNX (*.onnx)")
        path, _ = QFileDialog.getSaveFileName(self, title, str(Path(entry.path).with_suffix(".onnx")), kinds)
        if path:
            self.export(entry.path, path if path.lower().endswith(".onnx") else f"{path}.onnx")

    def export(self, model: str, target: str) -> None:
        """Writes a model as ONNX, in a task."""
        title = self.tr("Exporting {name}").format(name=Path(model).stem)
        self.export_row.start(title, "geopeft:export", {"MODEL": model, "ONNX": target})
        self._show_details()

    def _exported(self, results: dict[str, Any], error: str, canceled: bool) -> None:
        self._show_details()
        if error:
            self._tell("error", error)
        elif not canceled:
            self._tell("success", self.tr("Exported to {path}").format(path=results["ONNX"]))

    # Saying

    def _tell(self, level: str, text: str) -> None:
        log(level, text)
        notify(self._iface, level, text, NOTICE_S)

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(340, 640)


def _searched(entry: Entry) -> str:
    """What the filter looks at."""
    parts = [entry.name]
    if entry.summary is not None:
        model = entry.summary
        parts += [row.name for row in model.classes]
        parts += [f"{band.name} {band.common}" for band in model.bands]
        parts += [model.backbone, model.licence]
    return " ".join(parts).casefold()


def _newest(entry: Entry) -> tuple[bool, list[int], str]:
    """The latest training first; ISO dates sort like text."""
    created = entry.summary.created if entry.summary is not None else ""
    return not created, [-ord(sign) for sign in created], entry.name.casefold()


def _by_name(entry: Entry) -> tuple[bool, str]:
    return False, entry.name.casefold()


def _most_accurate(entry: Entry) -> tuple[float, str]:
    return -entry.accuracy, entry.name.casefold()


def _same(path: str, other: str) -> bool:
    return bool(other) and os.path.normcase(os.path.abspath(path)) == os.path.normcase(os.path.abspath(other))
