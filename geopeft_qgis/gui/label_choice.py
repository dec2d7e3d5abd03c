"""Which layer the labels are in, and which of its fields has the class."""

from __future__ import annotations

from typing import Any, Optional

from qgis.core import QgsApplication, QgsMapLayerProxyModel, QgsProject, QgsVectorLayer
from qgis.gui import QgsFieldComboBox, QgsMapLayerComboBox
from qgis.PyQt import sip
from qgis.PyQt.QtCore import pyqtSignal
from qgis.PyQt.QtWidgets import QComboBox, QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from ..label_style import CLASS_FIELD, is_label_layer
from ..result_metadata import MODEL_PROPERTY
from ..sample_points import is_sample

CLASS_FIELD_NAMES = ("class", "klasse", "label", "category")


class LabelChoice(QWidget):
    """Layer and class field.

    Signals: `chosen` another layer or field is used; `new_pressed` a new layer is wanted.
    """

    chosen = pyqtSignal()
    new_pressed = pyqtSignal()

    def __init__(self, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self._layer: Optional[QgsVectorLayer] = None
        self._field = ""
        # Before the box hears of it, which would move on to any other layer.
        QgsProject.instance().layersWillBeRemoved.connect(self._layers_go)
        self._build()
        QgsProject.instance().layersAdded.connect(self._layers_came)
        self.layer_box.layerChanged.connect(self._layer_chosen)
        self.field_box.activated.connect(lambda _: self.set_field(self.field_box.currentField()))
        for button in (self.new_button, self.first_button):
            button.clicked.connect(lambda: self.new_pressed.emit())
        self._choose_likely()
        self._show()

    @property
    def layer(self) -> Optional[QgsVectorLayer]:
        """The label layer; None: none is chosen."""
        return self._layer

    @property
    def field(self) -> str:
        """The field with the class; empty: none is chosen."""
        return self._field

    def set_layer(self, layer: Optional[QgsVectorLayer]) -> None:
        """Chooses a layer of the project."""
        self.layer_box.setLayer(layer)

    def set_field(self, field: str) -> None:
        """Chooses a field of the layer; one that it does not have is none."""
        layer = self._layer
        self._field = field if layer is not None and layer.fields().lookupField(field) >= 0 else ""
        self.field_box.setField(self._field)
        self._show()
        self.chosen.emit()

    def end(self) -> None:
        """Lets layer and project go."""
        self.layer_box.layerChanged.disconnect(self._layer_chosen)
        QgsProject.instance().layersWillBeRemoved.disconnect(self._layers_go)
        QgsProject.instance().layersAdded.disconnect(self._layers_came)
        self._leave()

    def _layer_chosen(self, layer: Optional[QgsVectorLayer]) -> None:
        if layer is self._layer:
            return
        self._leave()
        self._layer = layer
        self.field_box.setLayer(layer)
        if layer is not None:
            layer.updatedFields.connect(self._fields_updated)
        self.set_field(likely_field(layer) if layer is not None else "")

    def _leave(self) -> None:
        if self._layer is not None and not sip.isdeleted(self._layer):
            self._layer.updatedFields.disconnect(self._fields_updated)
        self._layer = None

    def _fields_updated(self) -> None:
        """The box starts anew when anything about the fields is changed; the field that was chosen stays."""
        if self._layer is None:
            return
        if self._layer.fields().lookupField(self._field) >= 0:
            self.field_box.setField(self._field)
        else:
            self.set_field(likely_field(self._layer))

    def _layers_go(self, ids: list[str]) -> None:
        if self._layer is not None and self._layer.id() in ids:
            self.layer_box.setLayer(None)

    def _layers_came(self, _: Any) -> None:
        if self._layer is None:
            self._choose_likely()

    def _choose_likely(self) -> None:
        """A layer of ours, else one with a class field; never just any layer that happens to have shapes."""
        layers = [self.layer_box.layer(row) for row in range(self.layer_box.count())]
        # Maps as polygons have a class field too, and so have the points that a map is judged by.
        found = [
            layer
            for layer in layers
            if layer is not None and not layer.customProperty(MODEL_PROPERTY) and not is_sample(layer)
        ]
        ours = [layer for layer in found if is_label_layer(layer)]
        named = [layer for layer in found if any(f.name().lower() in CLASS_FIELD_NAMES for f in layer.fields())]
        self.layer_box.setLayer((ours or named or [None])[0])

    def _show(self) -> None:
        is_chosen = self._layer is not None
        is_ours = is_label_layer(self._layer) and self._field == CLASS_FIELD
        self.new_button.setVisible(is_chosen)
        self.first_button.setVisible(not is_chosen)
        self.field_row.setVisible(is_chosen and not is_ours)

    def _build(self) -> None:
        self.layer_box = QgsMapLayerComboBox()
        self.layer_box.setObjectName("GeopeftLabelLayer")
        self.layer_box.setFilters(QgsMapLayerProxyModel.Filter.HasGeometry)
        self.layer_box.setAllowEmptyLayer(True)
        self.layer_box.setLayer(None)
        self.layer_box.setToolTip(self.tr("Polygons, lines or points with a field for the class."))
        self.field_box = QgsFieldComboBox()
        self.field_box.setObjectName("GeopeftClassField")
        self.field_box.setToolTip(self.tr("The field with the class: text or whole numbers."))
        for box in (self.layer_box, self.field_box):
            # Long names must not make the dock wider than its place.
            box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            box.setMinimumContentsLength(8)
        icon = QgsApplication.getThemeIcon("/mActionNewVectorLayer.svg")
        self.new_button = QPushButton(icon, self.tr("New"))
        self.new_button.setObjectName("GeopeftNewLabels")
        self.first_button = QPushButton(icon, self.tr("New label layer"))
        self.first_button.setObjectName("GeopeftFirstLabels")
        for button in (self.new_button, self.first_button):
            button.setToolTip(self.tr("Makes a GeoPackage to draw labels into, beside the project."))
        self.title_label = QLabel(self.tr("Labels"))
        self.title_label.setBuddy(self.layer_box)
        field_title = QLabel(self.tr("Class field"))
        field_title.setBuddy(self.field_box)
        layer_row = QHBoxLayout()
        layer_row.addWidget(self.title_label)
        layer_row.addWidget(self.layer_box, 1)
        layer_row.addWidget(self.new_button)
        self.field_row = QWidget()
        field_row = QHBoxLayout(self.field_row)
        field_row.setContentsMargins(0, 0, 0, 0)
        field_row.addWidget(field_title)
        field_row.addWidget(self.field_box, 1)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        column.addLayout(layer_row)
        column.addWidget(self.field_row)
        column.addWidget(self.first_button)


def likely_field(layer: QgsVectorLayer) -> str:
    """The field that holds the class, by its name, else by its type."""
    names = [field.name() for field in layer.fields()]
    texts = [field.name() for field in layer.fields() if field.typeName().lower() in ("string", "text")]
    likely = [name for name in names if name.lower() in CLASS_FIELD_NAMES]
    return (likely or texts or names or [""])[0]
