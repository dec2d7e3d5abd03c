"""Results of the engine as styled layers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from qgis.core import (
    Qgis,
    QgsCategorizedSymbolRenderer,
    QgsColorRampShader,
    QgsFillSymbol,
    QgsLayerTree,
    QgsLayerTreeGroup,
    QgsLayerTreeLayer,
    QgsMapLayer,
    QgsPalettedRasterRenderer,
    QgsPalLayerSettings,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingLayerPostProcessorInterface,
    QgsProject,
    QgsRasterLayer,
    QgsRasterRange,
    QgsRasterShader,
    QgsRendererCategory,
    QgsSingleBandPseudoColorRenderer,
    QgsSingleSymbolRenderer,
    QgsTextBufferSettings,
    QgsTextFormat,
    QgsVectorLayer,
    QgsVectorLayerSimpleLabeling,
)
from qgis.PyQt.QtGui import QColor

from .language import tr
from .layers import LayerError
from .result_metadata import describe, model_facts

PERCENT_NODATA = 255
PLACE_COLOR = "#e6007e"
# Light where the map is sure, dark where a look is worth it: percent -> colour (from the viridis ramp). Outside what
# the model has seen begins at 100, where the colour jumps.
RAMPS = {
    "confidence": ((0, "#440154"), (25, "#3b528b"), (50, "#21918c"), (75, "#5ec962"), (100, "#fde725")),
    "entropy": ((0, "#fde725"), (25, "#5ec962"), (50, "#21918c"), (75, "#3b528b"), (100, "#440154")),
    "outside": ((0, "#f7fbff"), (50, "#c6dbef"), (100, "#6baed6"), (101, "#fb6a4a"), (250, "#67000d")),
}


def load_result(outputs: Mapping[str, Any], project: QgsProject, group_name: str, model: str = "") -> list[QgsMapLayer]:
    """Adds what a predict job wrote to the project, styled, in a group of its own.

    The group goes to the top, but below vector layers that are there, so that labels stay in sight.

    Args:
        outputs: the outputs of the engine's predict job.
        project: where the layers go.
        group_name: name of the group in the layer tree.
        model: path of the model package; what it says of itself goes into the layers' metadata.

    Returns:
        The layers, the first class raster first. LayerError where a file cannot be read.
    """
    layers: list[QgsMapLayer] = []
    for entry in outputs["rasters"]:
        prefix = f"{Path(entry['class_raster']).stem} " if len(outputs["rasters"]) > 1 else ""
        classes = entry.get("classes") or []
        found = {"class_raster": style_class_raster(_raster(entry["class_raster"], prefix + tr("map")), classes)}
        if entry.get("polygons"):
            found["polygons"] = style_polygons(_vector(entry["polygons"], prefix + tr("polygons")), classes)
        for kind, name in _percent_names().items():
            if entry.get(kind):
                found[kind] = style_percent(_raster(entry[kind], prefix + name), kind)
        for kind, layer in found.items():
            describe(layer, kind, model, str(entry.get("raster") or ""))
        layers += found.values()
    group = QgsLayerTreeGroup(group_name)
    for layer in layers:
        project.addMapLayer(layer, False)
        _show_in(group, layer)
    root = project.layerTreeRoot()
    root.insertChildNode(_leading_vectors(root), group)
    # The tree's window folds a new group whatever the group says; only a change makes it look again.
    group.setExpanded(False)
    group.setExpanded(True)
    return layers


def _leading_vectors(root: QgsLayerTree) -> int:
    count = 0
    for node in root.children():
        if not (isinstance(node, QgsLayerTreeLayer) and isinstance(node.layer(), QgsVectorLayer)):
            break
        count += 1
    return count


def _show_in(group: QgsLayerTreeGroup, layer: QgsMapLayer) -> None:
    node = group.addLayer(layer)
    is_class_raster = isinstance(layer.renderer(), QgsPalettedRasterRenderer)
    node.setItemVisibilityChecked(is_class_raster)
    node.setExpanded(is_class_raster)


def _raster(path: str, name: str) -> QgsRasterLayer:
    options = QgsRasterLayer.LayerOptions(False)
    layer = QgsRasterLayer(path, name, "gdal", options)
    if not layer.isValid():
        text = tr("The result {path} cannot be opened as a raster. Run again with another output file.")
        raise LayerError(text.format(path=path))
    return layer


def _vector(path: str, name: str) -> QgsVectorLayer:
    layer = QgsVectorLayer(path, name, "ogr")
    if not layer.isValid():
        text = tr("The result {path} cannot be opened as polygons. Run again with another output file.")
        raise LayerError(text.format(path=path))
    return layer


def style_class_raster(layer: QgsRasterLayer, classes: Sequence[Mapping[str, Any]]) -> QgsRasterLayer:
    """Gives a class raster its colours and names; without `classes` those that the file itself carries."""
    provider = layer.dataProvider()
    if classes:
        legend = [QgsPalettedRasterRenderer.Class(int(c["value"]), QColor(c["color"]), str(c["name"])) for c in classes]
    else:
        table = QgsPalettedRasterRenderer.colorTableToClassData(provider.colorTable(1))
        legend = [entry for entry in table if entry.value > 0 and entry.label not in ("", f"{entry.value:g}")]
    if legend:
        layer.setRenderer(QgsPalettedRasterRenderer(provider, 1, legend))
    return layer


def _percent_names() -> dict[str, str]:
    """The rasters in percent, by their names in the engine's outputs, with those for people."""
    return {"confidence": tr("confidence"), "entropy": tr("entropy"), "outside": tr("outside what the model has seen")}


def style_percent(layer: QgsRasterLayer, kind: str) -> QgsRasterLayer:
    """Percent on the ramp of its kind, one of RAMPS; 255 is nodata."""
    provider = layer.dataProvider()
    if not provider.sourceHasNoDataValue(1):
        provider.setUserNoDataValue(1, [QgsRasterRange(PERCENT_NODATA, PERCENT_NODATA)])
    stops = RAMPS[kind]
    most = stops[-1][0]
    ramp = QgsColorRampShader(0, most)
    ramp.setColorRampType(QgsColorRampShader.Type.Interpolated)
    ramp.setColorRampItemList(
        [QgsColorRampShader.ColorRampItem(percent, QColor(color), f"{percent} %") for percent, color in stops]
    )
    shader = QgsRasterShader(0, most)
    shader.setRasterShaderFunction(ramp)
    renderer = QgsSingleBandPseudoColorRenderer(provider, 1, shader)
    renderer.setClassificationMin(0)
    renderer.setClassificationMax(most)
    layer.setRenderer(renderer)
    return layer


def style_polygons(layer: QgsVectorLayer, classes: Sequence[Mapping[str, Any]]) -> QgsVectorLayer:
    """Gives polygons with a field `class` the class colours."""
    if classes:
        layer.setRenderer(QgsCategorizedSymbolRenderer("class", [_category(c) for c in classes]))
    return layer


def style_places(layer: QgsVectorLayer) -> QgsVectorLayer:
    """Gives places to look at, a field `rank` each, an outline that shows on any image, and their rank beside it."""
    symbol = QgsFillSymbol.createSimple(
        {"color": "255,255,255,0", "outline_color": PLACE_COLOR, "outline_width": "0.7"}
    )
    layer.setRenderer(QgsSingleSymbolRenderer(symbol))
    looks = QgsTextFormat()
    looks.setColor(QColor(PLACE_COLOR))
    looks.setSize(11)
    buffer = QgsTextBufferSettings()
    buffer.setEnabled(True)
    looks.setBuffer(buffer)
    labels = QgsPalLayerSettings()
    labels.fieldName = "rank"
    labels.setFormat(looks)
    labels.placement = QgsPalLayerSettings.Placement.OutsidePolygons
    _show_all(labels)
    layer.setLabeling(QgsVectorLayerSimpleLabeling(labels))
    layer.setLabelsEnabled(True)
    return layer


def _show_all(labels: QgsPalLayerSettings) -> None:
    """Labels are drawn even where they lie on each other."""
    if hasattr(labels, "setPlacementSettings"):  # QGIS 3.26
        placement = labels.placementSettings()
        placement.setOverlapHandling(Qgis.LabelOverlapHandling.AllowOverlapIfRequired)
        labels.setPlacementSettings(placement)
    else:
        labels.displayAll = True


def _category(style: Mapping[str, Any]) -> QgsRendererCategory:
    fill = QColor(style["color"])
    outline = fill.darker(150).name()
    symbol = QgsFillSymbol.createSimple(
        {"color": f"{fill.red()},{fill.green()},{fill.blue()},150", "outline_color": outline, "outline_width": "0.2"}
    )
    return QgsRendererCategory(str(style["name"]), symbol, str(style["name"]))


class ResultStyler(QgsProcessingLayerPostProcessorInterface):
    """Styles a layer when Processing has loaded it into the project."""

    # Processing does not own post-processors: they must live until their layer is there.
    _waiting: dict[str, ResultStyler] = {}

    def __init__(self, kind: str, classes: Sequence[Mapping[str, Any]], model: str, raster: str) -> None:
        super().__init__()
        self._kind, self._classes = kind, classes
        self._model, self._raster = model, raster

    @classmethod
    def attach(
        cls,
        context: QgsProcessingContext,
        path: str,
        kind: str,
        classes: Sequence[Mapping[str, Any]],
        model: str,
        raster: str = "",
    ) -> None:
        """Styles the layer of `path` if Processing is going to load it; kind: class_raster, confidence, polygons,
        places."""
        # Here, in the algorithm's thread, a large model may be read; the main thread finds it done.
        model_facts(model)
        if context.willLoadLayerOnCompletion(path):
            styler = cls(kind, classes, model, raster)
            cls._waiting[path] = styler
            context.layerToLoadOnCompletionDetails(path).setPostProcessor(styler)

    def postProcessLayer(  # noqa: N802, Qt's style of names
        self, layer: QgsMapLayer, context: QgsProcessingContext, feedback: Optional[QgsProcessingFeedback]
    ) -> None:
        """Called by Processing in the main thread."""
        if self._kind == "places" and isinstance(layer, QgsVectorLayer):
            style_places(layer)
        elif self._kind == "polygons" and isinstance(layer, QgsVectorLayer):
            style_polygons(layer, self._classes)
        elif self._kind in RAMPS and isinstance(layer, QgsRasterLayer):
            style_percent(layer, self._kind)
        elif isinstance(layer, QgsRasterLayer):
            style_class_raster(layer, self._classes)
        describe(layer, self._kind, self._model, self._raster)
        layer.triggerRepaint()


def classes_as_text(classes: Sequence[Mapping[str, Any]]) -> str:
    """Classes as JSON text, the form in which they leave an algorithm."""
    return json.dumps(list(classes), ensure_ascii=False)
