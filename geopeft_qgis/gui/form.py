"""What the user chooses before pressing the button."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

from qgis.core import (
    QgsMapLayerProxyModel,
    QgsProcessingFeatureSourceDefinition,
    QgsProject,
    QgsRasterLayer,
    QgsVectorLayer,
)
from qgis.gui import QgsCollapsibleGroupBox, QgsFileWidget, QgsMapLayerComboBox
from qgis.PyQt.QtCore import Qt, pyqtSignal
from qgis.PyQt.QtWidgets import QComboBox, QFormLayout, QHBoxLayout, QLabel, QLineEdit, QSpinBox, QVBoxLayout, QWidget

from .. import settings
from ..label_layer import free_path
from ..layers import LayerError, raster_parameter
from ..model_tables import AUTO, tables
from ..sources import needs_rendering
from . import licence
from .label_panel import LabelPanel
from .runs import TrainingRequest


class TrainingForm(QWidget):
    """Raster, labels, model.

    Signals: `changed` when it may have become complete or incomplete, or other layers are used; `edited` when the
    labels were changed.

    Args:
        iface: QGIS's window, for the map and the message bar; None in tests.
    """

    changed = pyqtSignal()
    edited = pyqtSignal()

    def __init__(self, iface: Any = None, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self._suggested_model = ""
        self._typed_model: Optional[Path] = None
        self.raster_box = QgsMapLayerComboBox()
        self.raster_box.setFilters(QgsMapLayerProxyModel.Filter.RasterLayer)
        self.labels = LabelPanel(iface)
        self.backbone_box = QComboBox()
        self.backbone_box.setEditable(True)
        self.backbone_box.addItem(AUTO)
        for row in tables()["backbones"]:
            self.backbone_box.addItem(row.name)
            self.backbone_box.setItemData(self.backbone_box.count() - 1, row.title, Qt.ItemDataRole.ToolTipRole)
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
        self.labels.changed.connect(self.changed)
        self.labels.edited.connect(self.edited)
        self.background_edit.textChanged.connect(lambda text: self.labels.set_background(bool(text.strip())))
        self.background_edit.editingFinished.connect(self.changed)
        self.labels.set_raster(self.raster())
        self.suggest_model()

    def raster(self) -> Optional[QgsRasterLayer]:
        """The raster that is to be mapped; None: none is chosen."""
        return self.raster_box.currentLayer()

    def set_layers(self, raster: QgsRasterLayer, labels: QgsVectorLayer) -> None:
        """Chooses layers of the project."""
        self.raster_box.setLayer(raster)
        self.labels.set_layer(labels)

    def set_below_raster(self, widget: QWidget) -> None:
        """Puts a row of somebody else's below the choice of the raster."""
        self._column.insertWidget(1, widget)

    def set_busy(self, busy: bool) -> None:
        """While a training runs its choices stay as they are; labels can still be drawn, for the next one."""
        self.raster_box.setEnabled(not busy)
        self.labels.choice.setEnabled(not busy)
        self.advanced.setEnabled(not busy)

    def end(self) -> None:
        """Lets canvas and layers go; for when the plugin goes away."""
        self.labels.end()

    def missing(self) -> str:
        """What the user has to do before training is possible; empty when nothing is missing."""
        if self.raster() is None:
            return self.tr("Add a raster to the project.")
        if needs_rendering(self.raster()):
            return self.tr("Fetch the layer as a raster first.")
        return self.labels.missing()

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
        layer = self.raster()
        name = re.sub(r"[^\w-]+", "_", layer.name()).strip("_") if layer else ""
        home = QgsProject.instance().homePath()
        folder = Path(home) if home else settings.models_folder()
        return folder / f"{name or 'model'}-{datetime.now():%Y-%m-%d}.geopeft"

    def model(self) -> Path:
        """The model package that a training would write."""
        path = Path(self.model_file.filePath().strip() or self._suggested_model)
        return path if path.suffix == ".geopeft" else path.with_name(path.name + ".geopeft")

    def preview_options(self) -> dict[str, Any]:
        """Fields of the preview job."""
        return {"line_width_px": self.labels.line_width_px(), "background": self.background_edit.text().strip()}

    def sources(self) -> dict[str, Any]:
        """Raster and labels as parameters of an algorithm; LayerError where they cannot be used.

        They are paths and ids: a layer may leave the project while the engine works.
        """
        raster = raster_parameter(self.raster())
        labels = self.labels.layer()
        if labels is None:
            raise LayerError(self.missing())
        self.labels.adopt_style()
        return {
            "RASTERS": [raster],
            "LABELS": QgsProcessingFeatureSourceDefinition(labels.id(), self.labels.selected_only()),
            "CLASS_FIELD": self.labels.class_field(),
            "LINE_WIDTH": self.labels.line_width_px(),
            "BACKGROUND": self.background_edit.text().strip(),
        }

    def request(self, more: Optional[dict[str, Any]] = None, polygons: bool = False) -> TrainingRequest:
        """What is chosen; LayerError where it cannot be used.

        Args:
            more: further parameters of `geopeft:fit`.
            polygons: whether the map is wanted as polygons too.
        """
        self.suggest_model()
        model = self.model()
        try:
            model.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = self.tr("The folder {folder} cannot be made ({reason}). Choose another one for the model.")
            raise LayerError(text.format(folder=model.parent, reason=error.strerror)) from error
        sources = self.sources()
        raster = sources["RASTERS"][0]
        fit: dict[str, Any] = {
            **sources,
            "BACKBONE": self.backbone(),
            "ACCEPT_LICENCE": licence.accepted(self.backbone()),
            "MAX_MINUTES": self.minutes_box.value(),
            "DEVICE": settings.device(),
            "MODEL": str(model),
            **(more or {}),
        }
        return TrainingRequest(fit, raster, model, free_path(model.with_name(f"{model.stem}_map.tif")), polygons)

    def backbone(self) -> str:
        """The name of the backbone that is to be tuned."""
        return self.backbone_box.currentText().strip() or AUTO

    def _arrange(self) -> None:
        for box in (self.raster_box, self.backbone_box):
            # Long names must not make the dock wider than its place.
            box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            box.setMinimumContentsLength(8)
        raster_row = QHBoxLayout()
        title = QLabel(self.tr("Raster"))
        for label in (title, self.labels.choice.title_label):
            label.setMinimumWidth(max(title.sizeHint().width(), self.labels.choice.title_label.sizeHint().width()))
        raster_row.addWidget(title)
        raster_row.addWidget(self.raster_box, 1)
        self.advanced = QgsCollapsibleGroupBox(self.tr("Advanced"))
        self.advanced.setObjectName("GeopeftAdvanced")
        form = QFormLayout(self.advanced)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.DontWrapRows)
        form.addRow(self.labels.selected_box)
        for title, widget in (
            (self.tr("Model type"), self.backbone_box),
            (self.tr("Background"), self.background_edit),
            (self.tr("Time limit"), self.minutes_box),
            (self.tr("Save model as"), self.model_file),
        ):
            form.addRow(title, widget)
        self.advanced.setCollapsed(True)
        self._column = column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(raster_row)
        column.addWidget(self.labels)
        column.addWidget(self.advanced)

    def _raster_changed(self) -> None:
        self._typed_model = None
        self.labels.set_raster(self.raster())
        self.suggest_model()
        self.changed.emit()
