"""Results come into the project in their colours."""

import hashlib
import html
import importlib
import json
import os
import sys
from pathlib import Path

import pytest
from qgis.core import QgsPalettedRasterRenderer, QgsRasterLayer, QgsSingleBandPseudoColorRenderer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

fake = importlib.import_module("fake_engine")

JOB = {"job": "predict", "confidence": True, "polygons": True}


@pytest.fixture
def outputs(raster_file, tmp_path):
    """What the engine says after a predict job, with its files."""
    return fake.predict({**JOB, "rasters": [str(raster_file)], "out": str(tmp_path / "map.tif")})


@pytest.mark.fault("W15")
def test_a_result_is_a_group_on_top_in_class_colours(outputs, raster_layer, project):
    from geopeft_qgis.results import load_result

    layers = load_result(outputs, project, "forest model", "/models/m.geopeft")
    group = project.layerTreeRoot().children()[0]
    assert group.name() == "forest model"
    assert [node.name() for node in group.findLayers()] == ["map", "polygons", "confidence"]
    assert [node.itemVisibilityChecked() for node in group.findLayers()] == [True, False, False]
    classes = layers[0].renderer().classes()
    assert isinstance(layers[0].renderer(), QgsPalettedRasterRenderer)
    assert [(c.value, c.label, c.color.name()) for c in classes] == [
        (c["value"], c["name"], c["color"]) for c in fake.CLASSES
    ]
    categories = layers[1].renderer().categories()
    assert [(c.value(), c.symbol().color().name()) for c in categories] == [
        (c["name"], c["color"]) for c in fake.CLASSES
    ]
    for layer in layers:
        assert layer.customProperty("geopeft/model") == "/models/m.geopeft"
        assert "m.geopeft" in layer.metadata().history()[0]


@pytest.fixture
def model(tmp_path):
    """A package with an accuracy and a licence."""
    fake.write_package(str(tmp_path / "forest.geopeft"))
    return tmp_path / "forest.geopeft"


def test_the_information_page_tells_model_weights_licence_and_accuracy(outputs, model, project, raster_file):
    from geopeft_qgis.results import load_result

    layers = load_result(outputs, project, "g", str(model))
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    for layer in layers:
        page = html.unescape(layer.htmlMetadata())
        for text in (
            str(model),
            sha256,
            "Weights of fake_net, revision 0bbc532: MIT",
            "mIoU 0.74 (0.66–0.80) at 95 % confidence, measured on blocks of the labels held out",
            "fake_net, tuned by lora",
            "water, Forêt, built up",
            "trained on 2026-11-26T10:00:00+00:00 by GeoPEFT 0.0.0",
            raster_file.name,
            "arXiv 1",
        ):
            assert text in page, text
        found = {name: layer.customProperty(f"geopeft/{name}") for name in ("model", "model_sha256", "weights_licence")}
        assert found == {"model": str(model), "model_sha256": sha256, "weights_licence": "MIT"}
        assert (layer.customProperty("geopeft/miou"), layer.customProperty("geopeft/miou_low")) == (0.74, 0.66)
    abstracts = [layer.metadata().abstract() for layer in layers]
    assert [text.split(" of ")[0] for text in abstracts] == ["A map", "The map", "How sure the GeoPEFT model forest is"]
    assert [layer.metadata().title() for layer in layers] == ["forest: map", "forest: polygons", "forest: confidence"]


def test_a_model_that_is_gone_is_named_all_the_same(outputs, project):
    from geopeft_qgis.results import load_result

    layer = load_result(outputs, project, "g", "/gone/m.geopeft")[0]
    assert "/gone/m.geopeft" in layer.htmlMetadata() and not layer.metadata().licenses()


def test_an_accuracy_that_was_not_measured_is_not_made_up(model):
    from geopeft_qgis.model_package import read_manifest, summary
    from geopeft_qgis.result_metadata import accuracy_sentence

    manifest = read_manifest(model)
    manifest["metrics"] = {"miou": {"value": None, "low": None, "high": None}, "split": "no labels held out"}
    assert "not known" in accuracy_sentence(summary(manifest))


def test_a_model_is_read_again_only_when_its_file_changes(model, monkeypatch):
    from geopeft_qgis import result_metadata

    read = []
    sha256 = result_metadata._sha256
    monkeypatch.setattr(result_metadata, "_sha256", lambda path: (read.append(path), sha256(path))[1])
    first = result_metadata.model_facts(str(model))
    assert result_metadata.model_facts(str(model)) is first and len(read) == 1
    os.utime(model, (1, 1))
    assert result_metadata.model_facts(str(model)).sha256 == first.sha256 and len(read) == 2


def test_confidence_is_a_ramp_from_0_to_100_and_255_is_nothing(outputs, project):
    from geopeft_qgis.results import load_result

    layer = load_result(outputs, project, "g")[2]
    renderer = layer.renderer()
    assert isinstance(renderer, QgsSingleBandPseudoColorRenderer)
    assert (renderer.classificationMin(), renderer.classificationMax()) == (0, 100)
    items = renderer.shader().rasterShaderFunction().colorRampItemList()
    assert (items[0].value, items[-1].value) == (0, 100)
    provider = layer.dataProvider()
    assert provider.sourceNoDataValue(1) == 255 or provider.userNoDataValues(1)[0].contains(255)


def test_outside_what_was_seen_changes_its_colour_at_100_percent(raster_file, tmp_path, project):
    from geopeft_qgis.results import load_result

    job = {"job": "predict", "entropy": True, "outside": True, "unknown_below": 60}
    outputs = fake.predict({**job, "rasters": [str(raster_file)], "out": str(tmp_path / "map.tif")})
    layers = load_result(outputs, project, "g")
    assert [layer.name() for layer in layers] == ["map", "entropy", "outside what the model has seen"]
    assert [c.label for c in layers[0].renderer().classes()][-1] == "unknown"
    ramps = [layer.renderer().shader().rasterShaderFunction() for layer in layers[1:]]
    inside, outside = (ramps[1].shade(percent)[1:4] for percent in (99, 102))
    assert inside[2] > inside[0] and outside[0] > outside[2], "blue inside, red outside"
    assert ramps[0].maximumValue() == 100 and ramps[1].maximumValue() == 250


def test_a_class_raster_by_itself_shows_the_names_that_it_carries(raster_file, tmp_path, project):
    from osgeo import gdal

    from geopeft_qgis.results import style_class_raster

    path = str(tmp_path / "own.tif")
    target = gdal.GetDriverByName("GTiff").Create(path, 4, 4, 1, gdal.GDT_Byte)
    table = gdal.ColorTable()
    table.SetColorEntry(1, (59, 125, 216, 255))
    table.SetColorEntry(2, (47, 143, 78, 255))
    target.GetRasterBand(1).SetRasterColorTable(table)
    target.GetRasterBand(1).SetRasterCategoryNames(["", "water", "forest"])
    target.GetRasterBand(1).SetNoDataValue(0)
    target.FlushCache()
    del target
    layer = style_class_raster(QgsRasterLayer(path, "own"), [])
    assert [(c.value, c.label, c.color.name()) for c in layer.renderer().classes()] == [
        (1, "water", "#3b7dd8"),
        (2, "forest", "#2f8f4e"),
    ]


def test_a_result_that_cannot_be_opened_is_told_and_adds_nothing(outputs, project, tmp_path):
    from geopeft_qgis.layers import LayerError
    from geopeft_qgis.results import load_result

    broken = json.loads(json.dumps(outputs))
    broken["rasters"][0]["confidence"] = str(tmp_path / "gone.tif")
    with pytest.raises(LayerError, match="gone.tif"):
        load_result(broken, project, "g")
    assert not project.mapLayers() and not project.layerTreeRoot().children()


def test_a_result_moves_with_what_belongs_to_it(tmp_path):
    from geopeft_qgis.algorithms.predict import move

    for suffix in ("", ".aux.xml", ".ovr"):
        (tmp_path / f"a.tif{suffix}").write_text(suffix)
    move(tmp_path / "a.tif", tmp_path / "b.tif")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.tif", "b.tif.aux.xml", "b.tif.ovr"]


def test_a_result_moves_to_another_disk(tmp_path, monkeypatch):
    from geopeft_qgis.algorithms import predict

    real, refused = predict.os.replace, []

    def replace(source, target):
        if not refused:
            refused.append(source)
            raise OSError(18, "Invalid cross-device link")
        real(source, target)

    monkeypatch.setattr(predict.os, "replace", replace)
    (tmp_path / "a.tif").write_text("x")
    predict.move(tmp_path / "a.tif", tmp_path / "b.tif")
    assert [p.name for p in tmp_path.iterdir()] == ["b.tif"] and refused
