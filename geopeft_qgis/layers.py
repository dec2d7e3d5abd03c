"""Between QGIS layers and files: rasters and labels for the engine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

from qgis.core import (
    NULL,
    Qgis,
    QgsCategorizedSymbolRenderer,
    QgsFeature,
    QgsFeatureRequest,
    QgsFeatureSink,
    QgsFeatureSource,
    QgsField,
    QgsFields,
    QgsGeometry,
    QgsMapLayer,
    QgsPalettedRasterRenderer,
    QgsProcessingFeatureSource,
    QgsProject,
    QgsProviderRegistry,
    QgsRasterLayer,
    QgsVectorFileWriter,
    QgsVectorLayer,
    QgsWkbTypes,
)
from qgis.PyQt import sip
from qgis.PyQt.QtCore import QMetaType, QVariant

from .language import tr
from .sources import describe

STRING = QMetaType.Type.QString if Qgis.QGIS_VERSION_INT >= 33800 else QVariant.String
RESERVED_FIELDS = ("fid", "ogc_fid", "geom", "color")


class LayerError(Exception):
    """A layer cannot be handed to the engine; the text is a sentence with a next step."""


class LabelFile(NamedTuple):
    """Labels as a file: `spec` is FILE:layer, `classes` are the engine's ClassStyle rows."""

    spec: str
    class_field: str
    classes: list[dict[str, str]]
    features: int
    without_class: int


def raster_path(layer: Optional[QgsMapLayer]) -> str:
    """What the engine opens for a raster layer: a path, a part of a file, or /vsicurl/ and an http(s) address.

    Raises:
        LayerError: says why it cannot be used, and which algorithm makes a file of it.
    """
    source = describe(layer)
    if source.path:
        return source.path
    raise LayerError(source.sentence)


def raster_parameter(layer: Optional[QgsMapLayer]) -> str:
    """What a parameter of an algorithm takes for a raster layer: the path of a file, so that the layer may go.

    QGIS 3.22 knows parts of files, archives and addresses only as layers of the project, so for those it is the id.

    Raises:
        LayerError: as `raster_path`.
    """
    path = raster_path(layer)
    is_known = layer is not None and QgsProject.instance().mapLayer(layer.id()) is not None
    return layer.id() if layer is not None and is_known and not os.path.isfile(path) else path


def write_labels(
    source: QgsFeatureSource, layer: Optional[QgsVectorLayer], class_field: str, path: Path, selected_only: bool = False
) -> LabelFile:
    """Writes labels to a GeoPackage as the user sees them: with unsaved edits, filtered, in the layer's colours.

    Args:
        source: the features; a layer, or what Processing makes of one.
        layer: where the colours come from; None: the engine chooses them.
        class_field: the field with the class; empty writes the shapes alone.
        path: the GeoPackage to write; its stem is also the layer's name.
        selected_only: only selected features, where `source` is a layer.
    """
    index = _class_index(source, layer, class_field)
    styles = category_styles(layer, class_field) if layer is not None and class_field else {}
    written_field = class_field if class_field.lower() not in RESERVED_FIELDS else "class"
    request = QgsFeatureRequest()
    request.setSubsetOfAttributes([index] if index >= 0 else [])
    values: dict[str, None] = {}
    counts = {"written": 0, "without_class": 0, "without_shape": 0}

    def rows(fields: QgsFields) -> Iterator[QgsFeature]:
        for feature in _features(source, request, selected_only):
            text = class_text(feature.attribute(index)) if index >= 0 else ""
            geometry = feature.geometry()
            if geometry.isNull() or geometry.isEmpty():
                counts["without_shape"] += 1
                continue
            if index >= 0 and not text:
                counts["without_class"] += 1
                continue
            row = QgsFeature(fields)
            row.setGeometry(_plain_geometry(geometry))
            if index >= 0:
                values.setdefault(text)
                row.setAttributes([text, styles.get(text, {}).get("color", "")])
            counts["written"] += 1
            yield row

    _write(path, source, written_field if index >= 0 else "", rows)
    if not counts["written"]:
        raise LayerError(_nothing_written(layer, class_field, counts["without_class"], counts["without_shape"]))
    return LabelFile(
        spec=f"{path}:{path.stem}",
        class_field=written_field if index >= 0 else "",
        classes=_class_rows(values, styles),
        features=counts["written"],
        without_class=counts["without_class"],
    )


def _class_index(source: QgsFeatureSource, layer: Optional[QgsVectorLayer], class_field: str) -> int:
    """Number of the class field, -1 where none is asked for; LayerError where the features cannot be labels."""
    if isinstance(source, QgsVectorLayer) and sip.isdeleted(source):
        raise LayerError(tr("The label layer is not in the project any more. Choose another one."))
    name = layer.name() if layer is not None else source.sourceName()
    if source.wkbType() == QgsWkbTypes.Type.NoGeometry:
        raise LayerError(tr("'{name}' is a table without shapes. Choose a layer with shapes.").format(name=name))
    if not source.sourceCrs().isValid():
        text = tr(
            "The label layer '{name}' has no coordinate reference system, so its place on the raster is not known. "
            "Set it with Layer > Layer CRS > Set CRS of Layer(s); for labels drawn on the raster, the raster's."
        )
        raise LayerError(text.format(name=name))
    index = int(source.fields().lookupField(class_field)) if class_field else -1
    if class_field and index < 0:
        text = tr("The labels have no field '{field}'. Choose one of their fields: {names}.")
        names = ", ".join(field.name() for field in source.fields()) or tr("none")
        raise LayerError(text.format(field=class_field, names=names))
    return index


def _nothing_written(layer: Optional[QgsVectorLayer], class_field: str, without_class: int, without_shape: int) -> str:
    """Why there is not one label."""
    file = vanished_file(layer)
    if file:
        text = tr(
            "The file of the layer '{name}' is not there any more ({file}). Bring it back, or choose another one."
        )
        return text.format(name=layer.name() if layer else "", file=file)
    if without_class:
        text = tr("No label has a class: the field '{field}' is empty in all of them ({count}). Give each its class.")
        return text.format(field=class_field, count=without_class)
    if without_shape:
        return tr("No label has a shape. Draw some labels and give each its class, then run again.")
    return tr("There is no labelled feature. Draw some labels and give each its class, then run again.")


def vanished_file(layer: Optional[QgsMapLayer]) -> str:
    """The path of a layer's file where that has gone since the layer was added; else empty."""
    if layer is None or sip.isdeleted(layer):
        return ""
    parts = QgsProviderRegistry.instance().decodeUri(layer.providerType(), layer.source())
    file = str(parts.get("path") or "")
    is_file = layer.providerType() in ("ogr", "gdal", "spatialite", "delimitedtext") and os.path.isabs(file)
    return file if is_file and not file.startswith("/vsi") and not os.path.exists(file) else ""


def raster_label_classes(layer: QgsRasterLayer) -> list[dict[str, str]]:
    """Classes of a label raster as the engine's ClassStyle rows, from a paletted renderer."""
    renderer = layer.renderer()
    if not isinstance(renderer, QgsPalettedRasterRenderer):
        return []
    return [_style(class_text(c.value), c.label, c.color.name()) for c in renderer.classes()]


def category_styles(layer: QgsVectorLayer, class_field: str) -> dict[str, dict[str, str]]:
    """Value -> ClassStyle row from a categorized renderer on that field; empty for any other style."""
    renderer = layer.renderer()
    if not isinstance(renderer, QgsCategorizedSymbolRenderer):
        return {}
    if renderer.classAttribute().strip().strip('"').lower() != class_field.lower():
        return {}
    styles: dict[str, dict[str, str]] = {}
    for category in renderer.categories():
        listed = category.value()
        for value in listed if isinstance(listed, list) else [listed]:
            text = class_text(value)
            if text and category.symbol() is not None:
                name = category.label() if not isinstance(listed, list) else text
                styles.setdefault(text, _style(text, name, category.symbol().color().name()))
    return styles


def class_text(value: Any) -> str:
    """A class value as text; empty where there is none."""
    if value is None or value == NULL:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _style(value: str, name: str, color: str) -> dict[str, str]:
    return {"value": value, "name": name.strip() or value, "color": color}


def _class_rows(values: Iterable[str], styles: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    """The classes that the labels have: first in the order of the legend, then the others by number or name."""
    present = set(values)
    known = [style for value, style in styles.items() if value in present]
    others = [value for value in present if value not in styles]
    numeric = all(value.lstrip("-").isdigit() for value in others)
    others.sort(key=int if numeric else str)
    return known + [_style(value, value, "") for value in others]


def _features(source: QgsFeatureSource, request: QgsFeatureRequest, selected_only: bool) -> Iterator[QgsFeature]:
    # The engine repairs geometry without losing area, so Processing need not refuse it.
    if isinstance(source, QgsProcessingFeatureSource):
        return iter(source.getFeatures(request, QgsProcessingFeatureSource.Flag.FlagSkipGeometryValidityChecks))
    if selected_only and isinstance(source, QgsVectorLayer):
        return iter(source.getSelectedFeatures(request))
    return iter(source.getFeatures(request))


def _plain_geometry(geometry: QgsGeometry) -> QgsGeometry:
    """Straight segments in two dimensions: what every reader of a GeoPackage understands."""
    if geometry.isNull():
        return geometry
    abstract = geometry.constGet()
    plain = abstract.segmentize() if QgsWkbTypes.isCurvedType(abstract.wkbType()) else abstract.clone()
    plain.dropZValue()
    plain.dropMValue()
    return QgsGeometry(plain)


def _write(path: Path, source: QgsFeatureSource, class_field: str, rows: Any) -> None:
    """Only the class and its colour are written: a copied fid clashes with that of features not saved yet."""
    fields = QgsFields()
    if class_field:
        fields.append(QgsField(class_field, STRING))
        fields.append(QgsField("color", STRING))
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName = "GPKG"
    options.layerName = path.stem
    flat = QgsWkbTypes.flatType(QgsWkbTypes.linearType(source.wkbType()))
    kind = flat if flat == QgsWkbTypes.Type.Unknown else QgsWkbTypes.multiType(flat)
    context = QgsProject.instance().transformContext()
    writer = QgsVectorFileWriter.create(str(path), fields, kind, source.sourceCrs(), context, options)
    failed = writer.hasError() != QgsVectorFileWriter.WriterError.NoError
    if not failed:
        failed = (
            not all(writer.addFeature(row, QgsFeatureSink.Flag.FastInsert) for row in rows(fields))
            or not writer.flushBuffer()
        )
    message = writer.errorMessage()
    del writer
    if failed:
        text = tr("The labels cannot be written to {path}: {reason}. Free space on that disk and run again.")
        raise LayerError(text.format(path=path, reason=message))
