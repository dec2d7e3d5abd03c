"""The labels in the dock: which layer, its classes, the drawing tools, and what is still missing."""

from __future__ import annotations

import html
from typing import Any, Optional

from qgis.core import QgsProject, QgsRasterLayer, QgsVectorLayer, QgsWkbTypes
from qgis.PyQt import sip
from qgis.PyQt.QtCore import QLocale, Qt, QTimer, pyqtSignal
from qgis.PyQt.QtWidgets import QCheckBox, QLabel, QVBoxLayout, QWidget

from ..label_classes import LabelClasses
from ..label_counts import LabelCounts, hints
from ..label_layer import create_label_layer, new_label_path
from ..label_shapes import raster_grid
from ..label_style import MAX_CLASSES, default_classes
from ..layers import LayerError
from .class_table import ClassTable
from .label_choice import LabelChoice
from .label_editor import PICK, LabelEditor
from .label_toolbar import LabelToolbar
from .notices import notify

SELECT_LINK = "select"
NOTICE_S = 8


class LabelPanel(QWidget):
    """Where labels are drawn.

    Signals: `changed` when `missing` may be another, or another layer, field, class or width is used; `edited` when
    shapes, their classes or the classes' colours were changed, so that whatever learns from them is out of date.

    Args:
        iface: QGIS's window; None in tests.
        canvas: where to draw; None: the window's.
    """

    changed = pyqtSignal()
    edited = pyqtSignal()

    def __init__(self, iface: Any = None, canvas: Any = None, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self.setObjectName("GeopeftLabelPanel")
        self._iface = iface
        self._raster: Optional[QgsRasterLayer] = None
        self._layer: Optional[QgsVectorLayer] = None
        self._classes: Optional[LabelClasses] = None
        self._background = False
        self._missing = ""
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.timeout.connect(self._show_state)
        self._ended = False
        if canvas is None and iface is not None:
            canvas = iface.mapCanvas()
        self.editor = LabelEditor(iface, canvas, self)
        self.counts = LabelCounts(self)
        self.choice = LabelChoice()
        self.toolbar = LabelToolbar(self.editor)
        self.table = ClassTable()
        self._arrange()
        self._connect()
        self._chosen()

    # What is chosen

    def layer(self) -> Optional[QgsVectorLayer]:
        """The label layer; None: none is chosen."""
        return self.choice.layer

    def class_field(self) -> str:
        """The field with the class."""
        return self.choice.field

    def class_names(self) -> list[str]:
        """The names of the classes, in the order of the table."""
        return [row.name for row in self._classes.rows] if self._classes is not None else []

    def selected_only(self) -> bool:
        """True where only the selected labels are to be learned from."""
        return bool(self.selected_box.isChecked())

    def line_width_px(self) -> float:
        """Width of lines and points, in pixels of the raster."""
        return self.toolbar.width_px

    def set_layer(self, layer: Optional[QgsVectorLayer]) -> None:
        """Chooses a layer of the project."""
        self.choice.set_layer(layer)

    def set_raster(self, layer: Optional[QgsRasterLayer]) -> None:
        """The raster whose pixels are counted."""
        if layer is not self._raster:
            self._raster = layer
            self._follow()

    def set_background(self, background: bool) -> None:
        """Whether unlabelled pixels make a class of their own."""
        self._background = background
        self._show_state()

    def missing(self) -> str:
        """What has to be done before training is possible; empty when nothing is missing."""
        if self.layer() is None:
            return self.tr("Press 'New label layer', or choose a layer with labels.")
        if not self.class_field():
            return self.tr("Choose the field with the class.")
        summary = self.counts.summary
        if summary.too_many_classes:
            text = self.tr(
                "The field '{field}' has more than {number} different values. Choose the field with the class."
            )
            return text.format(field=self.class_field(), number=MAX_CLASSES)
        if not summary.complete or summary.shapes:
            return ""
        if summary.without_class:
            return self.tr("No shape has a class. Select them and choose one, or choose another field.")
        return self.tr("Double-click a class to name it, then take a drawing tool and draw a few shapes of each class.")

    def hint(self) -> str:
        """What would make the labels better, in a sentence or two; empty where nothing comes to mind."""
        return " ".join(self._hints())

    def _hints(self) -> list[str]:
        if self._classes is None or self.missing():
            return []
        names = {row.key: row.name for row in self._classes.rows}
        return hints(self.counts.summary, names, self._background)[:2]

    def end(self) -> None:
        """Takes tools and rubber bands away and lets go of all layers; for when the plugin goes away."""
        if self._ended:
            return
        self._ended = True
        self.choice.end()
        self._soon.stop()
        self.editor.end()
        self.counts.end()
        self._leave_layer()
        self._set_classes(None)
        self._raster = None

    def adopt_style(self) -> None:
        """Shows the table's colours in a layer that has no style of its own, so that map and preview have them too."""
        if self._classes is not None:
            self._classes.adopt()

    def new_layer(self) -> None:
        """Makes a label layer, adds it to the project and chooses it."""
        try:
            layer = create_label_layer(new_label_path(), self._raster, default_classes())
        except LayerError as error:
            self._say(str(error))
            return
        project = QgsProject.instance()
        project.addMapLayer(layer, False)
        node = project.layerTreeRoot().insertLayer(0, layer)
        # The tree's window folds a new layer whatever the node says; only a change makes it look again.
        node.setExpanded(False)
        node.setExpanded(True)
        self.set_layer(layer)
        if self._raster is not None and not self._raster.crs().isValid():
            text = self.tr("The raster has no coordinate reference system: the labels use the project's, {crs}.")
            self._say(text.format(crs=layer.crs().authid()), "info")

    # Following layer and raster

    def _chosen(self) -> None:
        """Another layer or field is used."""
        self._leave_layer()
        layer, field = self.layer(), self.class_field()
        self._layer = layer
        if layer is not None:
            for signal in self._signals(layer):
                signal.connect(self._show_soon)
        usable = layer if field else None
        self.editor.set_layer(usable, field)
        self._set_classes(LabelClasses(layer, field, parent=self) if usable is not None else None)
        self._follow()
        self.changed.emit()

    def _signals(self, layer: QgsVectorLayer) -> list[Any]:
        """What may make another button possible."""
        return [
            layer.editingStarted,
            layer.editingStopped,
            layer.layerModified,
            layer.selectionChanged,
            layer.afterCommitChanges,
            layer.undoStack().indexChanged,
        ]

    def _leave_layer(self) -> None:
        if self._layer is not None and not sip.isdeleted(self._layer):
            for signal in self._signals(self._layer):
                signal.disconnect(self._show_soon)
        self._layer = None

    def _set_classes(self, classes: Optional[LabelClasses]) -> None:
        before, self._classes = self._classes, classes
        self.table.set_classes(classes)
        if classes is not None:
            classes.changed.connect(self._classes_changed)
        if before is not None:
            before.end()
        self._current_changed()

    def _follow(self) -> None:
        """Counts anew."""
        grid = raster_grid(self._raster)
        self.editor.set_grid(grid)
        layer = self._layer if self._classes is not None else None
        self.counts.follow(layer, self.class_field(), grid, self.line_width_px())
        self._show_state()

    def _counted(self) -> None:
        summary = self.counts.summary
        if self._classes is not None and summary.complete and not summary.too_many_classes:
            self._classes.learn(summary.values)
        self.table.set_summary(summary)
        self._show_state()

    def _classes_changed(self) -> None:
        self._current_changed()
        self._show_state()
        self.edited.emit()
        self.changed.emit()

    def _current_changed(self) -> None:
        self.editor.set_class(self.table.current_class)
        if self._classes is not None:
            self._classes.set_current(self.table.current)

    def _width_changed(self) -> None:
        if self._layer is not None and self._layer.geometryType() != QgsWkbTypes.GeometryType.PolygonGeometry:
            self._follow()
            self.edited.emit()
        self.changed.emit()

    def _key_pressed(self, number: int) -> None:
        self.table.choose(number - 1)
        if self.editor.kind == PICK:
            self.editor.give_class()

    def _link_pressed(self, _: str) -> None:
        if self._layer is not None and self._classes is not None:
            self._layer.selectByIds(self._classes.without_class())
            self.editor.start(PICK)

    # What is seen

    def _show_soon(self, *_: Any) -> None:
        """Once, after a thousand shapes that are pasted."""
        self._soon.start(0)

    def _show_state(self) -> None:
        self.body.setVisible(self._layer is not None)
        self.toolbar.refresh(self._layer, self.table.current >= 0)
        self._show_hints(self._without_class() + [html.escape(hint, quote=False) for hint in self._hints()])
        missing = self.missing()
        if missing != self._missing:
            self._missing = missing
            self.changed.emit()

    def _without_class(self) -> list[str]:
        number = self.counts.summary.without_class
        if not number:
            return []
        text = self.tr("Shapes without class, left out: {number}.").format(number=QLocale().toString(number))
        return [f'{text} <a href="{SELECT_LINK}">{self.tr("Select them")}</a>']

    def _show_hints(self, lines: list[str]) -> None:
        self.hint_label.setText("<br>".join(lines))
        self.hint_label.setVisible(bool(lines))

    def _say(self, text: str, level: str = "warning") -> None:
        notify(self._iface, level, text, NOTICE_S)
        if self._iface is None:
            self._show_hints([html.escape(text, quote=False)])

    # What is in it

    def _connect(self) -> None:
        self.choice.chosen.connect(self._chosen)
        self.choice.new_pressed.connect(self.new_layer)
        self.toolbar.width_changed.connect(self._width_changed)
        self.table.current_changed.connect(self._current_changed)
        self.table.said.connect(self._say)
        self.table.sketch_key.connect(self.editor.key)
        self.editor.class_key.connect(self._key_pressed)
        self.editor.said.connect(self._say)
        self.editor.about_to_draw.connect(self.adopt_style)
        self.counts.changed.connect(self._counted)
        self.counts.edited.connect(self.edited)
        self.hint_label.linkActivated.connect(self._link_pressed)

    def _arrange(self) -> None:
        self.selected_box = QCheckBox(self.tr("Selected labels only"))
        self.selected_box.setObjectName("GeopeftSelectedOnly")
        self.selected_box.setToolTip(self.tr("Learn from the shapes that are selected in the layer, not from all."))
        self.hint_label = QLabel()
        self.hint_label.setObjectName("GeopeftLabelHint")
        self.hint_label.setWordWrap(True)
        self.hint_label.setTextFormat(Qt.TextFormat.RichText)
        self.hint_label.setVisible(False)
        for button in (self.toolbar.undo_button, self.toolbar.delete_button, self.toolbar.save_button):
            self.table.buttons.addWidget(button)
        self.body = QWidget()
        body = QVBoxLayout(self.body)
        body.setContentsMargins(0, 0, 0, 0)
        body.setSpacing(4)
        body.addWidget(self.toolbar)
        body.addWidget(self.table)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        column.addWidget(self.choice)
        column.addWidget(self.body)
        column.addWidget(self.hint_label)
