"""The example model: whole, findable, and it runs where people run models."""

import json
from pathlib import Path

import pytest
from process_runs import QGIS_PROCESS, qgis_process
from qgis.core import (
    Qgis,
    QgsApplication,
    QgsProcessingContext,
    QgsProcessingModelAlgorithm,
    QgsVectorFileWriter,
    QgsVectorLayer,
)
from qgis_session import ROOT, Feedback
from test_processing_ways import profile  # noqa: F401

FILE = ROOT / "resources" / "models" / "geopeft_example.model3"


def test_the_designer_finds_nothing_missing(provider):
    """If this fails after an algorithm got a parameter: tests/plugin/make_example_model.py makes the file anew."""
    model = QgsProcessingModelAlgorithm()
    assert model.fromFile(str(FILE))
    assert model.validate() == (True, [])
    assert {child.algorithmId() for child in model.childAlgorithms().values()} == {"geopeft:fit", "geopeft:predict"}


@pytest.mark.skipif(Qgis.QGIS_VERSION_INT >= 32300, reason="the file is made by QGIS 3.22, so that all can read it")
def test_the_file_is_what_its_maker_makes(provider, tmp_path):
    from make_example_model import make

    kept, made = QgsProcessingModelAlgorithm(), QgsProcessingModelAlgorithm()
    assert make().toFile(str(tmp_path / "made.model3"))
    assert kept.fromFile(str(FILE)) and made.fromFile(str(tmp_path / "made.model3"))
    assert kept.toVariant() == made.toVariant()


def test_it_stands_in_the_toolbox_with_its_outputs(provider):
    model = QgsApplication.processingRegistry().algorithmById("geopeft:example")
    assert model.displayName() == "Train, map and polygons (example model)" and model.group() == "Models"
    assert "model designer" in model.shortHelpString()
    for listed in (model, model.create()):
        assert [p.name() for p in listed.parameterDefinitions() if p.isDestination()] == [
            "fit:Model",
            "predict:Map",
            "predict:Polygons",
        ]


def test_it_trains_maps_and_draws_polygons(provider, fake_engine, raster_layer, label_layer, project, tmp_path):
    import processing

    context = QgsProcessingContext()
    context.setProject(project)
    targets = {
        "fit:Model": tmp_path / "m.geopeft",
        "predict:Map": tmp_path / "map.tif",
        "predict:Polygons": tmp_path / "p.gpkg",
    }
    parameters = {"raster": raster_layer.id(), "labels": label_layer.id(), "class_field": "class", "minutes": 1}
    parameters.update({name: str(path) for name, path in targets.items()})
    feedback = Feedback()
    results = processing.run("geopeft:example", parameters, context=context, feedback=feedback)
    assert {name: Path(results[name]) for name in targets} == targets
    assert QgsVectorLayer(str(targets["predict:Polygons"]), "p", "ogr").featureCount() == 3
    assert targets["predict:Map"].is_file() and targets["fit:Model"].is_file()


@pytest.mark.skipif(not QGIS_PROCESS.is_file(), reason=f"{QGIS_PROCESS} is not here")
def test_qgis_process_runs_it(profile, raster_file, label_layer, tmp_path):  # noqa: F811
    options = QgsVectorFileWriter.SaveVectorOptions()
    labels = str(tmp_path / "labels.gpkg")
    QgsVectorFileWriter.writeAsVectorFormatV3(label_layer, labels, QgsProcessingContext().transformContext(), options)
    out = {"fit:Model": "m.geopeft", "predict:Map": "map.tif", "predict:Polygons": "p.gpkg"}
    arguments = [f"raster={raster_file}", f"labels={labels}", "class_field=class", "minutes=1"]
    arguments += [f"{name}={tmp_path / file}" for name, file in out.items()]
    done = qgis_process(profile, "geopeft:example", "--", *arguments)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    for name, file in out.items():
        assert (tmp_path / file).is_file() and results[name].endswith(file)
