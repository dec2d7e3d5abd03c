"""From a label layer in QGIS through the real engine to a styled layer."""

import os
import shutil
from pathlib import Path

import pytest
from qgis.core import QgsPalettedRasterRenderer, QgsRasterLayer, QgsVectorLayer

SAMPLE = Path(__file__).resolve().parents[2] / "resources" / "sample"
PYTHON = os.environ.get("GEOPEFT_ENGINE_PYTHON", "")
STEPS = 10


@pytest.mark.skipif(not PYTHON, reason="GEOPEFT_ENGINE_PYTHON does not name the engine's Python (build.py engine)")
def test_labels_become_a_styled_map(provider, project, tmp_path):
    import processing

    from geopeft_qgis.layers import category_styles

    for name in ("itaipu_landsat8.tif", "labels.gpkg"):
        shutil.copy(SAMPLE / name, tmp_path)
    raster = QgsRasterLayer(str(tmp_path / "itaipu_landsat8.tif"), "itaipu")
    labels = QgsVectorLayer(f"{tmp_path}/labels.gpkg|layername=train", "train", "ogr")
    unseen = QgsVectorLayer(f"{tmp_path}/labels.gpkg|layername=unseen", "unseen", "ogr")
    assert raster.isValid() and labels.isValid() and unseen.isValid()
    project.addMapLayers([raster, labels, unseen])
    colors = give_colors(labels)
    model = str(tmp_path / "itaipu.geopeft")
    fit = processing.run(
        "geopeft:fit",
        {
            "RASTERS": [raster],
            "LABELS": labels,
            "CLASS_FIELD": "class",
            "STEPS": STEPS,
            "DEVICE": "cpu",
            "MODEL": model,
        },
    )
    assert Path(model).is_file() and 0 <= fit["MIOU_LOW"] <= fit["MIOU"] <= fit["MIOU_HIGH"] <= 1
    result = processing.runAndLoadResults(
        "geopeft:predict",
        {
            "MODEL": model,
            "RASTER": raster,
            "DEVICE": "cpu",
            "OUTPUT": str(tmp_path / "map.tif"),
            "CONFIDENCE": str(tmp_path / "sure.tif"),
            "POLYGONS": str(tmp_path / "map.gpkg"),
        },
    )
    loaded = {layer.source().split("|")[0]: layer for layer in project.mapLayers().values()}
    map_layer = loaded[result["OUTPUT"]]
    assert isinstance(map_layer.renderer(), QgsPalettedRasterRenderer)
    assert {c.label: c.color.name() for c in map_layer.renderer().classes()} == colors
    assert set(category_styles(loaded[result["POLYGONS"]], "class")) <= set(colors)
    assert loaded[result["CONFIDENCE"]].renderer().classificationMax() == 100
    assert (map_layer.width(), map_layer.height(), map_layer.crs()) == (raster.width(), raster.height(), raster.crs())
    assert map_layer.extent() == raster.extent()
    figures = processing.run(
        "geopeft:evaluate",
        {"MODEL": model, "RASTERS": [raster], "LABELS": unseen, "CLASS_FIELD": "class", "DEVICE": "cpu"},
    )
    assert figures["MIOU"] > 0.3, "by chance it would be about 0.1"


def give_colors(labels):
    """Colours that no default has, so that those of the map can only come from this layer."""
    from qgis.core import QgsCategorizedSymbolRenderer, QgsFillSymbol, QgsRendererCategory

    index = labels.fields().lookupField("class")
    colors = {
        name: f"#{40 + 30 * i:02x}{200 - 20 * i:02x}7b" for i, name in enumerate(sorted(labels.uniqueValues(index)))
    }
    categories = [
        QgsRendererCategory(name, QgsFillSymbol.createSimple({"color": color}), name) for name, color in colors.items()
    ]
    labels.setRenderer(QgsCategorizedSymbolRenderer("class", categories))
    return colors
