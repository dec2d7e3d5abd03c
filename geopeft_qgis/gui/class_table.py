"""The table of classes: colour, name, key, shapes and pixels."""

from __future__ import annotations

from typing import Any, Optional

from qgis.core import QgsApplication
from qgis.gui import QgsColorDialog
from qgis.PyQt.QtCore import QItemSelectionModel, QLocale, QModelIndex, Qt, pyqtSignal
from qgis.PyQt.QtGui import QColor, QKeyEvent
from qgis.PyQt.QtWidgets import (
    QAbstractItemView,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QPushButton,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from ..label_classes import LabelClasses
from ..label_counts import EMPTY, Summary
from ..label_style import LabelClass
from ..layers import LayerError
from .class_view import COLOR, KEY, NAME, PIXELS, SHAPES, ClassModel, ClassView, SwatchDelegate


class ClassTable(QWidget):
    """The classes of a layer, editable; the selected row is the class that is drawn.

    Signals: `current_changed` another class is drawn, `said` a sentence for the user, `sketch_key` a key for the
    drawing tool.
    """

    current_changed = pyqtSignal()
    said = pyqtSignal(str)
    sketch_key = pyqtSignal(QKeyEvent)

    def __init__(self, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self.setObjectName("GeopeftClassTable")
        self._classes: Optional[LabelClasses] = None
        self._summary = EMPTY
        self._dialog: Optional[QgsColorDialog] = None
        self._build()

    def set_classes(self, classes: Optional[LabelClasses]) -> None:
        """Shows the classes of another layer; None: there is no layer."""
        self.close_questions()
        if self._classes is not None:
            self._classes.changed.disconnect(self._rows_changed)
        self._classes = classes
        if classes is not None:
            classes.changed.connect(self._rows_changed)
        self._rows_changed()
        self.choose(0)

    def set_summary(self, summary: Summary) -> None:
        """Shows new counts."""
        self._summary = summary
        self.model.set_summary(summary)

    @property
    def current(self) -> int:
        """Row of the class that is drawn; -1 without one."""
        return int(self.view.currentIndex().row())

    @property
    def current_class(self) -> Optional[LabelClass]:
        """The class that is drawn."""
        rows = self._classes.rows if self._classes is not None else ()
        return rows[self.current] if 0 <= self.current < len(rows) else None

    def choose(self, row: int) -> None:
        """Draws this class from now on, where there is one."""
        if 0 <= row < self.model.rowCount():
            whole_row = QItemSelectionModel.SelectionFlag.ClearAndSelect | QItemSelectionModel.SelectionFlag.Rows
            index = self.model.index(row, NAME)
            self.view.selectionModel().setCurrentIndex(index, whole_row)
            self.view.scrollTo(index)

    def close_questions(self) -> None:
        """Closes the colour dialog and the question below the table."""
        if self._dialog is not None:
            self._dialog.close()
        self.question.setVisible(False)

    # What the buttons do

    def add(self) -> None:
        """Adds a class and lets the user type its name."""
        if self._classes is None:
            return
        try:
            row = self._classes.add()
        except LayerError as error:
            self.said.emit(str(error))
            return
        self.choose(row)
        self.view.edit(self.model.index(row, NAME))

    def remove(self) -> None:
        """Removes the current class; one that has shapes only after a second press."""
        row = self.current_class
        if row is None or self._classes is None:
            return
        shapes = len(self._classes.shapes_of(self.current))
        if not shapes:
            self._remove()
            return
        text = self.tr("Shapes of '{name}': {number}. Remove them too?")
        self.question_label.setText(text.format(name=row.name, number=QLocale().toString(shapes)))
        self.question.setVisible(True)
        self.keep_button.setFocus()

    def _remove(self) -> None:
        self.question.setVisible(False)
        row = self.current
        if self._classes is None or row < 0:
            return
        try:
            self._classes.remove(row)
        except LayerError as error:
            self.said.emit(str(error))
        self.choose(min(row, self.model.rowCount() - 1))

    def move(self, by: int) -> None:
        """Moves the current class up or down."""
        if self._classes is not None and self.current >= 0:
            self.choose(self._classes.move(self.current, by))

    def _rename(self, row: int, name: str) -> None:
        try:
            if self._classes is not None:
                self._classes.rename(row, name)
        except LayerError as error:
            self.said.emit(str(error))

    def _clicked(self, index: QModelIndex) -> None:
        if index.column() == COLOR:
            self.edit_color(index.row())

    def edit_color(self, row: int) -> None:
        """Opens a dialog that recolours a class as long as it is open; the window stays usable."""
        self.close_questions()
        classes = self._classes
        if classes is None:
            return
        key = classes.rows[row].key
        dialog = QgsColorDialog(self, Qt.WindowType.Dialog, QColor(classes.rows[row].color))
        dialog.setModal(False)
        dialog.setTitle(self.tr("Colour of '{name}'").format(name=classes.rows[row].name))
        dialog.setAllowOpacity(False)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)

        def recolor(color: QColor) -> None:
            keys = [other.key for other in classes.rows]
            if self._classes is classes and key in keys and color.isValid():
                classes.recolor(keys.index(key), color)

        dialog.currentColorChanged.connect(recolor)
        dialog.finished.connect(self._dialog_gone)
        self._dialog = dialog
        dialog.show()

    def _dialog_gone(self, _: int) -> None:
        self._dialog = None

    def _rows_changed(self) -> None:
        """Keeps the current class current, wherever it is now."""
        before = self.current
        self.model.set_rows(self._classes.rows if self._classes is not None else ())
        self.view.updateGeometry()
        if self.model.rowCount():
            self.choose(min(max(before, 0), self.model.rowCount() - 1))
        self.setEnabled(self._classes is not None)
        self._current_changed()

    def _current_changed(self) -> None:
        row, count = self.current, self.model.rowCount()
        self.remove_button.setEnabled(row >= 0)
        self.up_button.setEnabled(row > 0)
        self.down_button.setEnabled(0 <= row < count - 1)
        self.question.setVisible(False)
        self.current_changed.emit()

    # What is in it

    def _build(self) -> None:
        self.model = ClassModel(self)
        self.model.named.connect(self._rename)
        self.view = view = ClassView()
        view.setObjectName("GeopeftClassView")
        view.setModel(self.model)
        view.setItemDelegateForColumn(COLOR, SwatchDelegate(view))
        view.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        view.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        view.setEditTriggers(QAbstractItemView.EditTrigger.DoubleClicked | QAbstractItemView.EditTrigger.EditKeyPressed)
        view.setTabKeyNavigation(False)
        view.setShowGrid(False)
        view.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        view.setWordWrap(False)
        view.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        view.verticalHeader().hide()
        view.verticalHeader().setDefaultSectionSize(view.fontMetrics().height() + 8)
        header = view.horizontalHeader()
        header.setHighlightSections(False)
        header.setMinimumSectionSize(24)
        for column in (KEY, SHAPES, PIXELS):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(NAME, QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(COLOR, QHeaderView.ResizeMode.Fixed)
        header.resizeSection(COLOR, 30)
        view.digit.connect(lambda number: self.choose(number - 1))
        view.sketch_key.connect(self.sketch_key)
        view.clicked.connect(self._clicked)
        view.selectionModel().currentRowChanged.connect(lambda *_: self._current_changed())
        self.add_button = self._button("symbologyAdd", self.tr("Add a class"), self.add)
        self.remove_button = self._button("symbologyRemove", self.tr("Remove the class"), self.remove)
        self.up_button = self._button("mActionArrowUp", self.tr("Move the class up"), lambda: self.move(-1))
        self.down_button = self._button("mActionArrowDown", self.tr("Move the class down"), lambda: self.move(1))
        self._build_question()
        self._arrange()

    def _build_question(self) -> None:
        self.question = QWidget()
        self.question_label = QLabel()
        self.question_label.setWordWrap(True)
        self.remove_all_button = QPushButton(self.tr("Remove"))
        self.remove_all_button.setToolTip(self.tr("Removes the class with its shapes; undo brings them back."))
        self.keep_button = QPushButton(self.tr("Keep"))
        self.remove_all_button.clicked.connect(self._remove)
        self.keep_button.clicked.connect(lambda: self.question.setVisible(False))
        row = QHBoxLayout()
        row.addStretch(1)
        row.addWidget(self.remove_all_button)
        row.addWidget(self.keep_button)
        column = QVBoxLayout(self.question)
        column.setContentsMargins(0, 0, 0, 4)
        column.setSpacing(2)
        column.addWidget(self.question_label)
        column.addLayout(row)
        self.question.setVisible(False)

    def _arrange(self) -> None:
        self.buttons = QHBoxLayout()
        self.buttons.setSpacing(0)
        for button in (self.add_button, self.remove_button, self.up_button, self.down_button):
            self.buttons.addWidget(button)
        self.buttons.addStretch(1)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)
        column.addWidget(self.view)
        column.addWidget(self.question)
        column.addLayout(self.buttons)

    def _button(self, icon: str, tooltip: str, slot: Any) -> QToolButton:
        button = QToolButton()
        button.setObjectName(f"Geopeft_{icon}")
        button.setIcon(QgsApplication.getThemeIcon(f"/{icon}.svg"))
        button.setToolTip(tooltip)
        button.setAutoRaise(True)
        button.clicked.connect(lambda: slot())
        return button
