"""The buttons that draw and edit labels."""

from __future__ import annotations

from typing import Any, Optional

from qgis.core import QgsApplication, QgsVectorLayer
from qgis.PyQt.QtCore import QSize, Qt, pyqtSignal
from qgis.PyQt.QtWidgets import QDoubleSpinBox, QHBoxLayout, QToolButton, QWidget

from ..label_shapes import WIDTH_PX
from .label_editor import FREEHAND, KINDS, PICK, POINT, POLYGON, RECTANGLE, LabelEditor


class LabelToolbar(QWidget):
    """Tools, the width of points and lines, and what can be done with drawn shapes.

    `undo_button`, `delete_button` and `save_button` are for whoever arranges them.

    Signals: `width_changed`.

    Args:
        editor: what the buttons are about.
    """

    width_changed = pyqtSignal()

    def __init__(self, editor: LabelEditor, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self._editor = editor
        self.tool_buttons: dict[str, QToolButton] = {}
        self._build()
        editor.tool_changed.connect(self._show_tool)
        self.width_box.valueChanged.connect(self._width_changed)
        for kind, button in self.tool_buttons.items():
            button.clicked.connect(lambda _, kind=kind: self._tool_pressed(kind))
        self.give_button.clicked.connect(lambda: editor.give_class())
        self.undo_button.clicked.connect(lambda: editor.undo())
        self.delete_button.clicked.connect(lambda: editor.delete())
        self.save_button.clicked.connect(lambda: editor.save())

    @property
    def width_px(self) -> float:
        """Width of points and lines, in pixels of the raster."""
        return float(self.width_box.value())

    def refresh(self, layer: Optional[QgsVectorLayer], has_class: bool) -> None:
        """Enables what is possible now."""
        for kind, button in self.tool_buttons.items():
            button.setEnabled(self._editor.takes(kind))
        self.width_box.setEnabled(layer is not None)
        is_selected = layer is not None and layer.selectedFeatureCount() > 0
        is_open = layer is not None and layer.isEditable()
        self.give_button.setEnabled(is_selected and has_class)
        self.delete_button.setEnabled(is_selected or is_open)
        self.undo_button.setEnabled(layer is not None and is_open and layer.undoStack().canUndo())
        self.save_button.setEnabled(layer is not None and is_open and layer.isModified())

    def _tool_pressed(self, kind: str) -> None:
        if self._editor.kind == kind:
            self._editor.stop()
        else:
            self._editor.start(kind)
        self._show_tool(self._editor.kind)

    def _show_tool(self, kind: str) -> None:
        for name, button in self.tool_buttons.items():
            button.setChecked(name == kind)

    def _width_changed(self, _: Any) -> None:
        self._editor.width_px = self.width_px
        self.width_changed.emit()

    def _build(self) -> None:
        tools = (
            ("mActionCapturePolygon", self.tr("Polygon: click the corners, end with a right click.")),
            ("mActionStreamingDigitize", self.tr("Freehand: draw around the area with the button held down.")),
            ("mActionRectangleExtent", self.tr("Rectangle: drag from corner to corner.")),
            ("mActionCapturePoint", self.tr("Point: a click labels a disc of the width beside.")),
            ("mActionSelect", self.tr("Select: click a shape; 1-9 change its class, Delete deletes it.")),
        )
        keys = self.tr("1-9 choose the class. Esc drops the sketch, Backspace takes its last corner back.")
        for kind, (icon, tooltip) in zip(KINDS, tools):
            button = tool_button(kind, icon, tooltip if kind == PICK else f"{tooltip} {keys}")
            button.setCheckable(True)
            self.tool_buttons[kind] = button
        self.width_box = QDoubleSpinBox()
        self.width_box.setObjectName("GeopeftPointWidth")
        self.width_box.setRange(1, 64)
        self.width_box.setDecimals(0)
        self.width_box.setValue(WIDTH_PX)
        self.width_box.setSuffix(self.tr(" px"))
        self.width_box.setToolTip(self.tr("Width of points and lines, in pixels of the raster."))
        self.give_button = tool_button(
            "give", "mActionMultiEdit", self.tr("Give the selected shapes the current class")
        )
        self.undo_button = tool_button("undo", "mActionUndo", self.tr("Undo the last edit"))
        deletes = self.tr("Delete the selected shapes, or the last one drawn")
        self.delete_button = tool_button("delete", "mActionDeleteSelectedFeatures", deletes)
        saves = self.tr("Save the edits to the layer's file. Training uses edits that are not saved, too.")
        self.save_button = tool_button("save", "mActionSaveEdits", saves)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(1)
        for kind in (POLYGON, FREEHAND, RECTANGLE, POINT):
            row.addWidget(self.tool_buttons[kind])
        row.addWidget(self.width_box)
        row.addStretch(1)
        row.addWidget(self.tool_buttons[PICK])
        row.addWidget(self.give_button)


def tool_button(name: str, icon: str, tooltip: str) -> QToolButton:
    """A flat button with one of QGIS's icons."""
    button = QToolButton()
    button.setObjectName(f"GeopeftLabel_{name}")
    button.setIcon(QgsApplication.getThemeIcon(f"/{icon}.svg"))
    button.setIconSize(QSize(20, 20))
    button.setToolTip(tooltip)
    button.setAccessibleName(tooltip)
    button.setAutoRaise(True)
    button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
    return button
