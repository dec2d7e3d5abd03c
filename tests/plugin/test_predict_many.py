"""Applying a model to many rasters from the toolbox, with the fake engine and once with the real one."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
from qgis.core import (
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildAlgorithm,
    QgsProcessingModelChildParameterSource,
    QgsProcessingModelOutput,
    QgsProcessingModelParameter,
    QgsProcessingParameterFile,
    QgsProcessingUtils,
    QgsRasterLayer,
)
from qgis_session import Feedback
from test_processing_ways import QGIS_PROCESS, profile, qgis_process  # noqa: F401

ID = "geopeft:predictmany"
SAMPLE = Path(__file__).resolve().parents[2] / "resources" / "sample"
PYTHON = os.environ.get("GEOPEFT_ENGINE_PYTHON", "")


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.geopeft"
    path.write_bytes(b"PK")
    return str(path)


@pytest.fixture
def scenes(raster_file, tmp_path):
    """A folder with two rasters, one that is none, a map of the first, and one raster in a folder below."""
    folder = tmp_path / "scenes"
    (folder / "below").mkdir(parents=True)
    for name in ("tile 2.tif", "tile 10.TIF", "below/deep.tif"):
        shutil.copy(raster_file, folder / name)
    for name in ("broken.tif", "tile 2_map.tif", "tile 2_map_confidence.tif", "notes.txt", ".hidden.tif"):
        (folder / name).write_text("no raster")
    return folder


def run(parameters, feedback=None):
    import processing

    return processing.run(ID, parameters, feedback=feedback or Feedback())


def rows(result):
    with open(result["SUMMARY"], encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def names(paths):
    return [Path(path).name for path in paths]


def test_a_folder_is_mapped_and_a_broken_raster_is_listed(provider, fake_engine, model, scenes, tmp_path):
    feedback = Feedback()
    out = tmp_path / "maps"
    result = run({"MODEL": model, "FOLDER": str(scenes), "OUTPUT": str(out), "CONFIDENCE": True}, feedback)
    assert (result["DONE"], result["FAILED"], result["OUTPUT"]) == (2, 1, str(out))
    assert names(result["MAPS"]) == ["tile 2_map.tif", "tile 10_map.tif"]
    assert all(Path(path).is_file() for path in result["MAPS"])
    assert [c["name"] for c in json.loads(result["CLASSES"])] == ["water", "Forêt", "built up"]
    table = rows(result)
    assert [(Path(row["raster"]).name, row["state"]) for row in table] == [
        ("tile 2.tif", "done"),
        ("tile 10.TIF", "done"),
        ("broken.tif", "failed"),
    ]
    assert Path(table[0]["confidence"]).is_file() and table[0]["polygons"] == ""
    assert table[2]["code"] == "RASTER_OPEN" and table[2]["message"].endswith("Check the file.")
    assert any(text.startswith("warning: broken.tif is left out") for text in feedback.said)
    assert feedback.percents == sorted(feedback.percents) and feedback.percents[-1] == 100
    assert not [name for name in os.listdir(out) if name.endswith(".part")]


def test_layers_and_files_and_a_folder_together_are_each_mapped_once(
    provider, fake_engine, model, scenes, raster_layer, raster_file, tmp_path
):
    parameters = {
        "MODEL": model,
        "RASTERS": [raster_layer],
        "FILES": [str(raster_file), str(scenes / "tile 2.tif")],
        "FOLDER": str(scenes),
        "PATTERN": "TILE*; deep.*; scene*",
        "RECURSIVE": True,
        "OUTPUT": str(scenes / "below" / "maps"),
    }
    result = run(parameters)
    assert names(result["MAPS"]) == ["scene ä_map.tif", "tile 2_map.tif", "deep_map.tif", "tile 10_map.tif"]
    again = run(parameters)
    assert again["MAPS"] == result["MAPS"], "the maps below the folder must not become rasters of the second run"


def test_a_layer_that_is_no_file_does_not_stop_the_others(
    provider, fake_engine, model, raster_layer, project, tmp_path
):
    web = QgsRasterLayer("type=xyz&url=file:///nowhere/%7Bz%7D.png", "web map", "wms")
    project.addMapLayer(web)
    result = run({"MODEL": model, "RASTERS": [web, raster_layer], "OUTPUT": str(tmp_path / "maps")})
    assert (result["DONE"], result["FAILED"]) == (1, 1)
    assert rows(result)[1]["raster"] == "web map" and "web map" in rows(result)[1]["message"]
    with pytest.raises(QgsProcessingException):
        run({"MODEL": model, "RASTERS": [web], "OUTPUT": str(tmp_path / "maps")})


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({}, "No raster is chosen"),
        ({"FOLDER": "/nowhere/at/all"}, "There is no folder /nowhere/at/all"),
        ({"FOLDER": ".", "PATTERN": "*.no"}, "There is no raster to map"),
    ],
)
def test_nothing_to_map_is_said(provider, fake_engine, model, tmp_path, chosen, sentence):
    with pytest.raises(QgsProcessingException, match=sentence):
        run({"MODEL": model, **chosen, "OUTPUT": str(tmp_path / "maps")})


def test_when_every_raster_fails_the_run_fails_with_the_reason(provider, fake_engine, model, scenes, tmp_path):
    with pytest.raises(QgsProcessingException, match=r"broken\.tif cannot be opened as a raster"):
        run({"MODEL": model, "FILES": [str(scenes / "broken.tif")], "OUTPUT": str(tmp_path / "maps")})


def test_an_area_and_a_temporary_folder(provider, fake_engine, model, raster_layer, label_layer):
    result = run({"MODEL": model, "RASTERS": [raster_layer], "AOI": label_layer, "OUTPUT": "TEMPORARY_OUTPUT"})
    assert Path(result["OUTPUT"]).is_dir() and names(result["MAPS"]) == ["scene ä_map.tif"]
    assert Path(QgsProcessingUtils.tempFolder()) in Path(result["OUTPUT"]).parents


@pytest.mark.fault("T05")
def test_a_cancel_ends_the_run_and_keeps_the_finished_maps(provider, fake_engine, model, scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("GEOPEFT_FAKE_PAUSE_S", "0.1")
    feedback = Feedback()
    feedback.progressChanged.connect(lambda percent: percent > 75 and feedback.cancel())
    parameters = {"MODEL": model, "FOLDER": str(scenes), "OUTPUT": str(tmp_path / "maps")}
    results, _ = provider.algorithm("predictmany").run(parameters, QgsProcessingContext(), feedback)
    assert not results.get("MAPS") and not any(text.startswith("error") for text in feedback.said)
    assert (tmp_path / "maps" / "tile 2_map.tif").is_file()
    assert [event["step"] for event in feedback.metrics] == [0, 1, 2]
    assert feedback.metrics[2]["outputs"]["raster"] == str(scenes / "tile 2.tif")


def test_in_the_modeler_a_folder_becomes_maps(provider, fake_engine, model, scenes, project, tmp_path):
    Source = QgsProcessingModelChildParameterSource
    folder = QgsProcessingParameterFile("folder", "F", QgsProcessingParameterFile.Behavior.Folder)
    maker = QgsProcessingModelAlgorithm("map a folder", "")
    maker.addModelParameter(folder, QgsProcessingModelParameter("folder"))
    child = QgsProcessingModelChildAlgorithm(ID)
    child.setChildId("many")
    child.addParameterSources("MODEL", [Source.fromStaticValue(model)])
    child.addParameterSources("FOLDER", [Source.fromModelParameter("folder")])
    output = QgsProcessingModelOutput("maps", "maps")
    output.setChildOutputName("OUTPUT")
    output.setChildId("many")
    child.setModelOutputs({"maps": output})
    maker.addChildAlgorithm(child)
    maker.updateDestinationParameters()
    context, feedback = QgsProcessingContext(), Feedback()
    context.setProject(project)
    target = next(p.name() for p in maker.parameterDefinitions() if p.isDestination())
    parameters = {"folder": str(scenes), target: str(tmp_path / "maps")}
    ok, message = maker.checkParameterValues(parameters, context)
    assert ok, message
    results, ok = maker.run(parameters, context, feedback)
    assert ok, feedback.said
    assert (Path(results[target]) / "tile 10_map.tif").is_file()


@pytest.mark.skipif(not QGIS_PROCESS.is_file(), reason=f"{QGIS_PROCESS} is not here")
def test_qgis_process_maps_files_and_a_folder(profile, model, scenes, raster_file, tmp_path):  # noqa: F811
    arguments = (f"MODEL={model}", f"FOLDER={scenes}", f"FILES={raster_file}", "RECURSIVE=true", "POLYGONS=1",
                 f"OUTPUT={tmp_path / 'maps'}")  # fmt: skip
    done = qgis_process(profile, ID, "--", *arguments)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert (results["DONE"], results["FAILED"]) == (4, 1)
    assert all(row["polygons"].endswith(".gpkg") for row in rows(results) if row["state"] == "done")


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="GEOPEFT_ENGINE_PYTHON does not name the engine's Python (build.py engine)")
def test_the_real_engine_maps_two_rasters_and_lists_a_broken_one(provider, project, tmp_path):
    import processing
    from osgeo import gdal

    model, labels = str(tmp_path / "itaipu.geopeft"), f"{SAMPLE}/labels.gpkg|layername=train"
    scene = str(SAMPLE / "itaipu_landsat8.tif")
    fit = {"RASTERS": [scene], "LABELS": labels, "CLASS_FIELD": "class", "STEPS": 5, "DEVICE": "cpu", "MODEL": model}
    processing.run("geopeft:fit", fit, feedback=Feedback())
    for folder, left in (("a", 0), ("b", 150)):
        (tmp_path / folder).mkdir()
        gdal.Translate(str(tmp_path / folder / "same.tif"), scene, srcWin=[left, 0, 140, 130])
    broken = tmp_path / "broken.tif"
    broken.write_bytes((tmp_path / "a" / "same.tif").read_bytes()[:600])
    files = [str(tmp_path / "a" / "same.tif"), str(broken), str(tmp_path / "b" / "same.tif")]
    feedback = Feedback()
    result = run({"MODEL": model, "FILES": files, "DEVICE": "cpu", "OUTPUT": str(tmp_path / "maps")}, feedback)
    assert (result["DONE"], result["FAILED"]) == (2, 1)
    assert names(result["MAPS"]) == ["same_map.tif", "same_map_2.tif"]
    assert [row["raster"] for row in rows(result) if row["state"] == "failed"] == [str(broken)]
    assert [event["step"] for event in feedback.metrics] == [0, 1, 2, 3]
    assert feedback.metrics[2]["failure"]["message"]
    first = gdal.Open(result["MAPS"][0])
    assert first.GetMetadataItem("GEOPEFT_MODEL") == "itaipu.geopeft"
    assert first.GetMetadataItem("GEOPEFT_ACCURACY").startswith("mIoU 0.")
    assert (first.RasterXSize, first.RasterYSize) == (140, 130)
