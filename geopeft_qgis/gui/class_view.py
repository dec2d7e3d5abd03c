"""How classes are listed: a model of classes with their counts, and its view."""

from __future__ import annotations

from typing import Any, Optional

from qgis.PyQt.QtCore import QAbstractTableModel, QLocale, QModelIndex, QSize, Qt, pyqtSignal
from qgis.PyQt.QtGui import QColor, QIcon, QKeyEvent, QPainter, QPalette
from qgis.PyQt.QtWidgets import QStyledItemDelegate, QStyleOptionViewItem, QTableView, QWidget

from ..label_counts import EMPTY, Summary
from ..label_style import LabelClass

COLOR, NAME, KEY, SHAPES, PIXELS = range(5)
KEYS = (
    Qt.Key.Key_1,
    Qt.Key.Key_2,
    Qt.Key.Key_3,
    Qt.Key.Key_4,
    Qt.Key.Key_5,
    Qt.Key.Key_6,
    Qt.Key.Key_7,
    Qt.Key.Key_8,
    Qt.Key.Key_9,
)
MIN_ROWS, MAX_ROWS = 3, 8


class ClassModel(QAbstractTableModel):
    """Classes and their counts for a view. `named` asks for another name: row, text."""

    named = pyqtSignal(int, str)

    def __init__(self, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self._rows: tuple[LabelClass, ...] = ()
        self._summary = EMPTY
        self._titles = (self.tr("Colour"), self.tr("Class"), self.tr("Key"), self.tr("Shapes"), self.tr("Pixels"))

    def set_rows(self, rows: tuple[LabelClass, ...]) -> None:
        """Shows these classes; a name that is being typed stays where the number of classes stays."""
        if len(rows) != len(self._rows):
            self.beginResetModel()
            self._rows = rows
            self.endResetModel()
        elif rows != self._rows:
            self._rows = rows
            self._all_changed(COLOR)

    def set_summary(self, summary: Summary) -> None:
        """Shows these counts."""
        self._summary = summary
        self._all_changed(SHAPES)

    def rowCount(self, parent: QModelIndex = QModelIndex()) -> int:  # noqa: N802, B008, Qt's signature
        return 0 if parent.isValid() else len(self._rows)

    def columnCount(self, parent: QModelIndex = QModelIndex()) -> int:  # noqa: N802, B008, Qt's signature
        return 0 if parent.isValid() else len(self._titles)

    def headerData(self, section: int, orientation: Any, role: int = Qt.ItemDataRole.DisplayRole) -> Any:  # noqa: N802
        if orientation == Qt.Orientation.Horizontal and role == Qt.ItemDataRole.DisplayRole:
            return self._titles[section] if section != COLOR else ""
        if orientation == Qt.Orientation.Horizontal and role == Qt.ItemDataRole.TextAlignmentRole:
            return _alignment(section)
        return None

    def flags(self, index: QModelIndex) -> Any:
        flags = Qt.ItemFlag.ItemIsSelectable | Qt.ItemFlag.ItemIsEnabled
        return flags | Qt.ItemFlag.ItemIsEditable if index.column() == NAME else flags

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        row, column = self._rows[index.row()], index.column()
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.EditRole):
            return self._text(index.row(), column)
        if role == Qt.ItemDataRole.DecorationRole and column == COLOR:
            return QColor(row.color)
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return _alignment(column)
        if role == Qt.ItemDataRole.ToolTipRole:
            return self._tooltip(row, column)
        return None

    def setData(self, index: QModelIndex, value: Any, role: int = Qt.ItemDataRole.EditRole) -> bool:  # noqa: N802
        if role != Qt.ItemDataRole.EditRole or index.column() != NAME:
            return False
        self.named.emit(index.row(), str(value))
        return True

    def _text(self, row: int, column: int) -> str:
        if column == NAME:
            return self._rows[row].name
        if column == KEY:
            return str(row + 1) if row < len(KEYS) else ""
        count = self._summary.classes.get(self._rows[row].key)
        if column == SHAPES:
            return QLocale().toString(count.shapes if count else 0)
        if column == PIXELS and count is not None:
            return QLocale().toString(round(count.pixels)) if count.pixels is not None else "–"
        return "0" if column == PIXELS else ""

    def _tooltip(self, row: LabelClass, column: int) -> str:
        if column == COLOR:
            return self.tr("Click to choose another colour.")
        if column == NAME:
            value = "" if row.key == row.name else self.tr("\nValue in the layer: {value}").format(value=row.key)
            return self.tr("{name}: double-click to rename.").format(name=row.name) + value
        if column == KEY:
            return self.tr("This key chooses the class while you draw.")
        if column == PIXELS:
            return self.tr("Pixels of the raster that the shapes cover.")
        return ""

    def _all_changed(self, first: int) -> None:
        if self._rows:
            self.dataChanged.emit(self.index(0, first), self.index(len(self._rows) - 1, PIXELS))


class SwatchDelegate(QStyledItemDelegate):
    """Paints a class's colour, also where its row is selected."""

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex) -> None:
        super().paint(painter, option, index)
        painter.save()
        painter.setPen(option.palette.color(QPalette.ColorRole.Mid))
        painter.setBrush(QColor(index.data(Qt.ItemDataRole.DecorationRole)))
        painter.drawRect(option.rect.adjusted(5, 4, -6, -5))
        painter.restore()

    def initStyleOption(self, option: QStyleOptionViewItem, index: QModelIndex) -> None:  # noqa: N802
        super().initStyleOption(option, index)
        option.icon = QIcon()


class ClassView(QTableView):
    """The view; digits choose a class, Enter renames it, and sketch keys are passed on to whoever draws."""

    digit = pyqtSignal(int)
    sketch_key = pyqtSignal(QKeyEvent)

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        number = digit_of(event)
        if number:
            self.digit.emit(number)
        elif event.key() in (Qt.Key.Key_Escape, Qt.Key.Key_Backspace):
            self.sketch_key.emit(event)
        elif event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self.edit(self.currentIndex().siblingAtColumn(NAME))
        else:
            super().keyPressEvent(event)

    def sizeHint(self) -> QSize:  # noqa: N802
        rows = min(max(self.model().rowCount() if self.model() else 0, MIN_ROWS), MAX_ROWS)
        frame = 2 * self.frameWidth()
        height = self.horizontalHeader().sizeHint().height() + rows * self.verticalHeader().defaultSectionSize() + frame
        return QSize(super().sizeHint().width(), height)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        return QSize(100, self.sizeHint().height())


def digit_of(event: QKeyEvent) -> int:
    """1 to 9 where that key was pressed alone, on the keyboard's number pad too; else 0."""
    keypad = Qt.KeyboardModifier.KeypadModifier
    if event.modifiers() not in (Qt.KeyboardModifier.NoModifier, keypad):
        return 0
    return KEYS.index(event.key()) + 1 if event.key() in KEYS else 0


def _alignment(column: int) -> Any:
    side = Qt.AlignmentFlag.AlignLeft if column in (COLOR, NAME) else Qt.AlignmentFlag.AlignRight
    if column == KEY:
        side = Qt.AlignmentFlag.AlignHCenter
    return side | Qt.AlignmentFlag.AlignVCenter
