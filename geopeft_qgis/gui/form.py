"""What the user chooses before pressing the button."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Optional

from qgis.core import QgsMapLayerProxyModel, QgsProcessingFeatureSourceDefinition, QgsProject
from qgis.gui import QgsFieldComboBox, QgsFileWidget, QgsMapLayerComboBox
from qgis.PyQt.QtCore import pyqtSignal
from qgis.PyQt.QtWidgets import QCheckBox, QComboBox, QFormLayout, QLineEdit, QSpinBox, QWidget

from .. import settings
from ..algorithms.fit import BACKBONES
from ..layers import LayerError, raster_path
from .runs import TrainingRequest

CLASS_FIELD_NAMES = ("class", "klasse", "label", "category")


class TrainingForm(QWidget):
    """Raster, labels, class field, model; `changed` when it may have become complete or incomplete."""

    changed = pyqtSignal()

    def __init__(self, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self._suggested_model = ""
        self._typed_model: Optional[Path] = None
        self.raster_box = QgsMapLayerComboBox()
        self.raster_box.setFilters(QgsMapLayerProxyModel.Filter.RasterLayer)
        self.label_box = QgsMapLayerComboBox()
        self.label_box.setFilters(QgsMapLayerProxyModel.Filter.HasGeometry)
        self.selected_box = QCheckBox(self.tr("Selected labels only"))
        self.field_box = QgsFieldComboBox()
        self.backbone_box = QComboBox()
        self.backbone_box.setEditable(True)
        self.backbone_box.addItems(BACKBONES)
        self.backbone_box.setToolTip(self.tr("auto chooses by bands and pixel size; any timm name can be typed."))
        self.background_edit = QLineEdit()
        self.background_edit.setPlaceholderText(self.tr("none"))
        self.background_edit.setToolTip(
            self.tr(
                "Name of a class made of everything without a label inside the labels' extent. Needed where only "
                "one kind of thing is drawn, such as buildings."
            )
        )
        self.minutes_box = QSpinBox()
        self.minutes_box.setRange(0, 24 * 60)
        self.minutes_box.setSuffix(self.tr(" min"))
        self.minutes_box.setSpecialValueText(self.tr("none"))
        self.model_file = QgsFileWidget()
        self.model_file.setStorageMode(QgsFileWidget.StorageMode.SaveFile)
        self.model_file.setFilter(self.tr("GeoPEFT model (*.geopeft)"))
        self._arrange()
        self.raster_box.layerChanged.connect(self._raster_changed)
        self.label_box.layerChanged.connect(self._labels_changed)
        self.field_box.fieldChanged.connect(lambda _: self.changed.emit())
        self._labels_changed()
        self.suggest_model()

    def missing(self) -> str:
        """What the user has to do before training is possible; empty when nothing is missing."""
        if self.raster_box.currentLayer() is None:
            return self.tr("Add a raster to the project.")
        if self.label_box.currentLayer() is None:
            return self.tr("Add a layer with labels: a few polygons of each class, with a field for the class.")
        if not self.field_box.currentField():
            return self.tr("Choose the field with the class.")
        return ""

    def suggest_model(self, after: Optional[Path] = None) -> None:
        """A name for the model that is not taken yet, unless the user typed one.

        Args:
            after: the model that a run has just written; the next one gets another name.
        """
        typed = after if after is not None else Path(self.model_file.filePath())
        is_typed = str(typed) not in ("", ".", self._suggested_model)
        if is_typed and after is None:
            return
        if is_typed:
            self._typed_model = after
        self._suggested_model = str(free_path(self._typed_model or self._default_model()))
        self.model_file.setFilePath(self._suggested_model)
        self.model_file.setToolTip(self._suggested_model)

    def _default_model(self) -> Path:
        layer = self.raster_box.currentLayer()
        name = "".join(c if c.isalnum() or c in "-_" else "_" for c in layer.name()) if layer else "model"
        home = QgsProject.instance().homePath()
        folder = Path(home) if home else settings.models_folder()
        return folder / f"{name}-{datetime.now():%Y-%m-%d}.geopeft"

    def request(self) -> TrainingRequest:
        """What is chosen; LayerError where it cannot be used."""
        self.suggest_model()
        model = Path(self.model_file.filePath().strip())
        model = model if model.suffix == ".geopeft" else model.with_name(model.name + ".geopeft")
        try:
            model.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = self.tr("The folder {folder} cannot be made ({reason}). Choose another one for the model.")
            raise LayerError(text.format(folder=model.parent, reason=error.strerror)) from error
        # Paths and ids: a layer may leave the project while the engine works.
        raster = raster_path(self.raster_box.currentLayer())
        labels = self.label_box.currentLayer().id()
        fit: dict[str, Any] = {
            "RASTERS": [raster],
            "LABELS": QgsProcessingFeatureSourceDefinition(labels, self.selected_box.isChecked()),
            "CLASS_FIELD": self.field_box.currentField(),
            "BACKBONE": self.backbone_box.currentText().strip() or "auto",
            "BACKGROUND": self.background_edit.text().strip(),
            "MAX_MINUTES": self.minutes_box.value(),
            "DEVICE": settings.device(),
            "MODEL": str(model),
        }
        return TrainingRequest(fit, raster, model, free_path(model.with_name(f"{model.stem}_map.tif")))

    def _arrange(self) -> None:
        for box in (self.raster_box, self.label_box, self.field_box, self.backbone_box):
            # Long names must not make the dock wider than its place.
            box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            box.setMinimumContentsLength(8)
        form = QFormLayout(self)
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.DontWrapRows)
        for title, widget in (
            (self.tr("Raster"), self.raster_box),
            (self.tr("Labels"), self.label_box),
            ("", self.selected_box),
            (self.tr("Class field"), self.field_box),
            (self.tr("Model type"), self.backbone_box),
            (self.tr("Background"), self.background_edit),
            (self.tr("Time limit"), self.minutes_box),
            (self.tr("Save model as"), self.model_file),
        ):
            form.addRow(title, widget)

    def _raster_changed(self) -> None:
        self._typed_model = None
        self.suggest_model()
        self.changed.emit()

    def _labels_changed(self) -> None:
        layer = self.label_box.currentLayer()
        self.field_box.setLayer(layer)
        if layer is not None:
            names = [field.name() for field in layer.fields()]
            texts = [field.name() for field in layer.fields() if field.typeName().lower() in ("string", "text")]
            likely = [name for name in names if name.lower() in CLASS_FIELD_NAMES]
            self.field_box.setField((likely or texts or names or [""])[0])
        self.changed.emit()


def free_path(path: Path) -> Path:
    """The path, or one with a number where it is taken."""
    number, free = 2, path
    while free.exists():
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return free
