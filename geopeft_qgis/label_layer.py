"""A new label layer: the file that an analyst draws into."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from qgis.core import (
    QgsEditFormConfig,
    QgsField,
    QgsFields,
    QgsProject,
    QgsRasterLayer,
    QgsVectorFileWriter,
    QgsVectorLayer,
    QgsWkbTypes,
)

from . import settings
from .label_classes import LabelClasses
from .label_style import CLASS_FIELD, LABELS_PROPERTY, LabelClass
from .language import tr
from .layers import STRING, LayerError


def free_path(path: Path) -> Path:
    """The path, or one with a number where it is taken."""
    number, free = 2, path
    while free.exists():
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return free


def new_label_path() -> Path:
    """Where a new label layer goes: beside the project, or in the user's folder where there is none."""
    home = QgsProject.instance().homePath()
    return free_path((Path(home) if home else settings.models_folder().parent / "labels") / "labels.gpkg")


def create_label_layer(
    path: Path, raster_layer: Optional[QgsRasterLayer], classes: Sequence[LabelClass]
) -> QgsVectorLayer:
    """Makes a GeoPackage to draw labels into; it is not added to the project.

    Its layer holds polygons: a point is kept as a disc, so that what is drawn is what teaches. Class names and colours
    are in the layer's style, which the file carries too once edits are saved.

    Args:
        path: the file; its folder is made.
        raster_layer: gives the CRS; without one, or where it has none, the project's is used.
        classes: what can be drawn at once.

    Raises:
        LayerError: there is no CRS, or the file cannot be written.
    """
    crs = raster_layer.crs() if raster_layer is not None else QgsProject.instance().crs()
    crs = crs if crs.isValid() else QgsProject.instance().crs()
    if not crs.isValid():
        raise LayerError(
            tr("Neither the raster nor the project has a coordinate reference system. Set the raster's and try again.")
        )
    fields = QgsFields()
    fields.append(QgsField(CLASS_FIELD, STRING))
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName = "GPKG"
    options.layerName = "labels"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        reason = ""
    except OSError as error:
        reason = str(error.strerror)
    if not reason:
        context = QgsProject.instance().transformContext()
        kind = QgsWkbTypes.Type.MultiPolygon
        writer = QgsVectorFileWriter.create(str(path), fields, kind, crs, context, options)
        reason = writer.errorMessage()
        del writer  # closes the file
    layer = QgsVectorLayer(f"{path}|layername=labels", path.stem, "ogr") if not reason else None
    if layer is None or not layer.isValid():
        text = tr("The label layer cannot be made in {folder} ({reason}). Save the project in a folder of yours.")
        raise LayerError(text.format(folder=path.parent, reason=reason or "GeoPackage"))
    layer.setCustomProperty(LABELS_PROPERTY, True)
    form = layer.editFormConfig()
    form.setSuppress(QgsEditFormConfig.FeatureFormSuppress.SuppressOn)
    layer.setEditFormConfig(form)
    LabelClasses(layer, CLASS_FIELD, list(classes)).end()
    return layer
