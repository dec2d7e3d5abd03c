"""The rasters to map, with the buttons that fill and change their list."""

from __future__ import annotations

from typing import Any, Optional

from qgis.core import QgsApplication
from qgis.PyQt.QtCore import Qt, pyqtSignal
from qgis.PyQt.QtGui import QKeySequence
from qgis.PyQt.QtWidgets import QFileDialog, QHBoxLayout, QLabel, QMenu, QToolButton, QVBoxLayout, QWidget

from .. import settings
from .raster_list import RasterList

try:
    from qgis.PyQt.QtGui import QShortcut
except ImportError:  # Qt 5
    from qgis.PyQt.QtWidgets import QShortcut

LAST_FOLDER = "rasters_folder"


class RasterBox(QWidget):
    """A list of rasters under buttons for files, folders, all, none and remove; `changed` when the choice may have."""

    changed = pyqtSignal()

    def __init__(self, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self.list = RasterList()
        self.title = QLabel()
        self.title.setBuddy(self.list)
        self.files_button = self._button(
            self.tr("Files …"), "/mActionAdd.svg", self.tr("Add raster files"), self._choose_files, with_text=True
        )
        self.folder_button = self._button(
            self.tr("Folder …"), "/mIconFolderOpen.svg", self.tr("Add the rasters of a folder"), None, with_text=True
        )
        menu = QMenu(self.folder_button)
        menu.addAction(self.tr("Rasters of a folder …")).triggered.connect(lambda *_: self._choose_folder(False))
        menu.addAction(self.tr("… and of the folders below it")).triggered.connect(lambda *_: self._choose_folder(True))
        self.folder_button.setMenu(menu)
        self.folder_button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        choose = self.list.choose_all
        self.all_button = self._button("", "/mActionSelectAll.svg", self.tr("Choose all"), lambda: choose(True))
        self.none_button = self._button("", "/mActionDeselectAll.svg", self.tr("Choose none"), lambda: choose(False))
        self.remove_button = self._button(
            "", "/symbologyRemove.svg", self.tr("Take the selected rows out of the list"), self.list.remove_selected
        )
        for name, button in (
            ("GeopeftAddFiles", self.files_button),
            ("GeopeftAddFolder", self.folder_button),
            ("GeopeftChooseAll", self.all_button),
            ("GeopeftChooseNone", self.none_button),
            ("GeopeftRemoveRasters", self.remove_button),
        ):
            button.setObjectName(name)
        delete = QShortcut(QKeySequence(QKeySequence.StandardKey.Delete), self.list)
        delete.setContext(Qt.ShortcutContext.WidgetShortcut)
        delete.activated.connect(self.list.remove_selected)
        row = QHBoxLayout()
        row.setSpacing(2)
        for button in (self.files_button, self.folder_button):
            row.addWidget(button)
        row.addStretch(1)
        for button in (self.all_button, self.none_button, self.remove_button):
            row.addWidget(button)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.title)
        column.addWidget(self.list, 1)
        column.addLayout(row)
        self.list.changed.connect(self._list_changed)
        self._list_changed()

    def lock(self, is_locked: bool) -> None:
        """While a run goes on, the choice is not to change, but the list can be read."""
        self.list.lock(is_locked)
        for button in (
            self.files_button,
            self.folder_button,
            self.all_button,
            self.none_button,
            self.remove_button,
        ):
            button.setEnabled(not is_locked)

    def _button(self, text: str, icon: str, tip: str, done: Any, with_text: bool = False) -> QToolButton:
        button = QToolButton()
        button.setIcon(QgsApplication.getThemeIcon(icon))
        button.setToolTip(tip)
        button.setAccessibleName(tip)
        button.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        if with_text:
            button.setText(text)
            button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        if done is not None:
            button.clicked.connect(lambda *_: done())
        return button

    def _list_changed(self) -> None:
        if self.list.is_scanning():
            self.title.setText(self.tr("Rasters to map (searching …)"))
        else:
            self.title.setText(self.tr("Rasters to map: {count}").format(count=len(self.list.chosen())))
        self.changed.emit()

    def _choose_files(self) -> None:
        title, kinds = self.tr("Rasters to map"), self.tr("Rasters (*.tif *.tiff *.vrt *.jp2 *.img);;All files (*)")
        paths, _ = QFileDialog.getOpenFileNames(self, title, settings.get(LAST_FOLDER), kinds)
        if paths:
            settings.put(LAST_FOLDER, paths[0].rpartition("/")[0])
            self.list.add_files(paths)

    def _choose_folder(self, recursive: bool) -> None:
        folder = QFileDialog.getExistingDirectory(self, self.tr("Folder with rasters"), settings.get(LAST_FOLDER))
        if folder:
            settings.put(LAST_FOLDER, folder)
            self.list.add_folder(folder, recursive)
            self._list_changed()
