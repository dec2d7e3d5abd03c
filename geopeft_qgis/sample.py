"""The sample scene: a first map in a few clicks, on data that everybody has."""

from __future__ import annotations

import shutil
from typing import NamedTuple

from qgis.core import (
    QgsCategorizedSymbolRenderer,
    QgsContrastEnhancement,
    QgsFillSymbol,
    QgsMultiBandColorRenderer,
    QgsProject,
    QgsRasterLayer,
    QgsRasterMinMaxOrigin,
    QgsRendererCategory,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QCoreApplication

from . import settings
from .layers import LayerError

RED_GREEN_BLUE = (3, 2, 1)
LABELS = "train"


class Sample(NamedTuple):
    """The sample's layers in the project."""

    raster: QgsRasterLayer
    labels: QgsVectorLayer


def open_sample(project: QgsProject) -> Sample:
    """Adds the sample scene and its labels, styled; the labels are a copy that may be edited.

    Raises LayerError where the copy cannot be made or read.
    """
    folder = settings.models_folder().parent / "sample"
    labels_file = folder / "labels.gpkg"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("itaipu_landsat8.tif", "itaipu_landsat8.tif.aux.xml", "labels.gpkg"):
            if not (folder / name).exists():
                shutil.copyfile(settings.resource("sample", name), folder / name)
    except OSError as error:
        text = QCoreApplication.translate(
            "GeoPEFT", "The sample cannot be copied to {folder} ({reason}). Free space there, then try again."
        )
        raise LayerError(text.format(folder=folder, reason=error.strerror)) from error
    scene = str(folder / "itaipu_landsat8.tif")
    raster = QgsRasterLayer(scene, "Itaipu, Landsat 8")  # not shown: a name that is the same in every language
    title = QCoreApplication.translate("GeoPEFT", "Itaipu labels")
    labels = QgsVectorLayer(f"{labels_file}|layername={LABELS}", title, "ogr")
    if not (raster.isValid() and labels.isValid()):
        text = QCoreApplication.translate(
            "GeoPEFT", "The sample in {folder} is damaged. Delete that folder, try again."
        )
        raise LayerError(text.format(folder=folder))
    _style_raster(raster)
    _style_labels(labels)
    project.addMapLayer(raster)
    project.addMapLayer(labels)
    return Sample(raster, labels)


def _style_raster(layer: QgsRasterLayer) -> None:
    layer.setRenderer(QgsMultiBandColorRenderer(layer.dataProvider(), *RED_GREEN_BLUE))
    layer.setContrastEnhancement(
        QgsContrastEnhancement.ContrastEnhancementAlgorithm.StretchToMinimumMaximum,
        QgsRasterMinMaxOrigin.Limits.CumulativeCut,
    )


def _style_labels(layer: QgsVectorLayer) -> None:
    """Outlines in the colours that the labels carry, so that the image stays in sight."""
    colors: dict[str, str] = {}
    for feature in layer.getFeatures():
        colors.setdefault(str(feature["class"]), str(feature["color"]))
    categories = []
    for value, color in sorted(colors.items()):
        look = {"color": color, "outline_color": color, "outline_width": "0.5", "style": "no"}
        symbol = QgsFillSymbol.createSimple(look)
        categories.append(QgsRendererCategory(value, symbol, value.replace("_", " ")))
    layer.setRenderer(QgsCategorizedSymbolRenderer("class", categories))
