"""How the points of a random sample look, and the form in which they are labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsCategorizedSymbolRenderer,
    QgsEditorWidgetSetup,
    QgsMarkerSymbol,
    QgsPalLayerSettings,
    QgsProviderRegistry,
    QgsRendererCategory,
    QgsTextBufferSettings,
    QgsTextFormat,
    QgsVectorLayer,
    QgsVectorLayerSimpleLabeling,
)

from .label_style import CLASS_FIELD, class_symbol
from .language import tr
from .layers import LayerError, vanished_file

LAYER = "sample"
STYLE_NAME = "sample"
# What the map says at a point must not be seen by the one who labels it.
HIDDEN_FIELDS = ("fid", "stratum", "weight")


def style_file(path: str, classes: Sequence[Mapping[str, Any]]) -> None:
    """Keeps the style and the form in the file of a sample, so that they come along wherever it is opened.

    Args:
        path: GeoPackage that the engine's `sample` wrote.
        classes: name and colour of each class that a point may be.
    """
    layer = QgsVectorLayer(f"{path}|layername={LAYER}", Path(path).stem, "ogr")
    if layer.isValid():
        style_sample(layer, classes)
        layer.saveStyleToDatabase(STYLE_NAME, "", True, "")


def is_sample(layer: QgsVectorLayer) -> bool:
    """Whether these are the points of a random sample, which judge a map and teach nothing."""
    return {"number", "stratum", "weight", CLASS_FIELD} <= set(layer.fields().names())


def style_sample(layer: QgsVectorLayer, classes: Sequence[Mapping[str, Any]]) -> None:
    """Points in the colour of what they were labelled as, with their numbers; the class is chosen from a list."""
    kind = layer.geometryType()
    categories = [QgsRendererCategory(c["name"], class_symbol(kind, c["color"]), c["name"]) for c in classes]
    todo = QgsMarkerSymbol.createSimple(
        {"name": "circle", "color": "0,0,0,0", "outline_color": "255,0,255,255", "outline_width": "0.6", "size": "4"}
    )
    categories.append(QgsRendererCategory(None, todo, tr("not labelled yet")))
    layer.setRenderer(QgsCategorizedSymbolRenderer(CLASS_FIELD, categories))
    layer.setLabeling(QgsVectorLayerSimpleLabeling(_numbers()))
    layer.setLabelsEnabled(True)
    _set_form(layer, [str(c["name"]) for c in classes])


def _numbers() -> QgsPalLayerSettings:
    """The numbers of the points that are still to be labelled, legible on imagery."""
    buffer = QgsTextBufferSettings()
    buffer.setEnabled(True)
    buffer.setSize(0.8)
    text = QgsTextFormat()
    text.setSize(9)
    text.setBuffer(buffer)
    labels = QgsPalLayerSettings()
    labels.fieldName = f"if(coalesce(trim(\"{CLASS_FIELD}\"), '') = '', \"number\", '')"
    labels.isExpression = True
    labels.setFormat(text)
    return labels


def _set_form(layer: QgsVectorLayer, names: Sequence[str]) -> None:
    fields = layer.fields()
    for name in HIDDEN_FIELDS:
        if fields.lookupField(name) >= 0:
            layer.setEditorWidgetSetup(fields.lookupField(name), QgsEditorWidgetSetup("Hidden", {}))
    values = [{name: name} for name in names]
    layer.setEditorWidgetSetup(fields.lookupField(CLASS_FIELD), QgsEditorWidgetSetup("ValueMap", {"map": values}))
    form = layer.editFormConfig()
    form.setReadOnly(fields.lookupField("number"), True)
    layer.setEditFormConfig(form)
    table = layer.attributeTableConfig()
    table.update(fields)
    columns = table.columns()
    for column in columns:
        column.hidden = column.hidden or column.name in HIDDEN_FIELDS
    table.setColumns(columns)
    layer.setAttributeTableConfig(table)


def sample_file(layer: QgsVectorLayer) -> str:
    """The file of a sample, as it was last saved.

    Raises:
        LayerError: there are edits that are not saved, or the layer has no file of its own.
    """
    if layer.isEditable() and layer.isModified():
        text = tr("The layer '{name}' has edits that are not saved. Save them, then run again.")
        raise LayerError(text.format(name=layer.name()))
    gone = vanished_file(layer)
    if gone:
        text = tr(
            "The file of the layer '{name}' is not there any more ({file}). Bring it back, or choose another one."
        )
        raise LayerError(text.format(name=layer.name(), file=gone))
    path = str(QgsProviderRegistry.instance().decodeUri(layer.providerType(), layer.source()).get("path") or "")
    if layer.providerType() != "ogr" or not Path(path).is_file():
        text = tr("'{name}' is no file of a sample. Choose the layer that 'Draw a random sample' has written.")
        raise LayerError(text.format(name=layer.name()))
    return path
