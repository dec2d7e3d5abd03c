"""The ways of Processing besides the toolbox: a model of the modeler, a batch, qgis_process."""

import json
import subprocess
from pathlib import Path

import pytest
from qgis.core import (
    QgsProcessingContext,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildAlgorithm,
    QgsProcessingModelChildParameterSource,
    QgsProcessingModelOutput,
    QgsProcessingModelParameter,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterVectorLayer,
)
from qgis_session import Feedback
from qgis_window import QGIS_PROCESS, environment, link_plugin, make_profile

NUMBERS = ["MIOU", "MIOU_LOW", "MIOU_HIGH"]
# Algorithm -> parameters besides the inputs, the outputs that must be files, the outputs that must be numbers.
WAYS = {
    "fit": (["RASTERS={raster}", "LABELS={labels}", "MODEL=new.geopeft", "STEPS=30"], ["MODEL"], NUMBERS),
    "predict": (
        ["MODEL={model}", "RASTER={raster}", "OUTPUT=map.tif", "CONFIDENCE=c.tif"],
        ["OUTPUT", "CONFIDENCE"],
        [],
    ),
    "evaluate": (
        ["MODEL={model}", "RASTERS={raster}", "LABELS={labels}", "FIGURES=f.json"],
        ["FIGURES"],
        [*NUMBERS, "OVERALL_ACCURACY", "F1"],
    ),
    "export": (["MODEL={model}", "ONNX=m.onnx"], ["ONNX"], []),
    "suggest": (["RASTERS={raster}", "LABELS={labels}", "OUTPUT=p.gpkg"], ["OUTPUT"], ["COUNT_FOUND", "WIDTH_M"]),
    "suspects": (["RASTERS={raster}", "LABELS={labels}", "OUTPUT=p.gpkg"], ["OUTPUT"], ["COUNT_FOUND", "JUDGED"]),
    "compare": (
        ["FIRST={raster}", "SECOND={model}", "RASTERS={raster}", "LABELS={labels}", "OUTPUT=d.tif", "FIGURES=f.json"],
        ["OUTPUT", "FIGURES"],
        ["MIOU_FIRST", "MIOU_SECOND", "DIFFERENCE", "DIFFERENCE_LOW", "DIFFERENCE_HIGH", "DIFFERING_SHARE"],
    ),
    "study": (
        [
            "RASTERS={raster}",
            "LABELS={labels}",
            "UNSEEN_RASTERS={raster}",
            "UNSEEN_LABELS={labels}",
            "TABLE=s.csv",
            "PAGE=s.html",
            "FIGURES=f.json",
        ],
        ["TABLE", "PAGE", "FIGURES"],
        ["RUNS", "FAILED"],
    ),
    "pretrain": (["RASTERS={raster}", "OUTPUT=b.safetensors"], ["OUTPUT"], ["LOSS", "STEPS_DONE"]),
    "average": (["MODELS={model}", "MODELS={model}", "OUTPUT=mean.geopeft"], ["OUTPUT"], ["LOST"]),
    "distil": (
        ["MODEL={model}", "RASTERS={raster}", "LABELS={labels}", "OUTPUT=small.geopeft"],
        ["OUTPUT"],
        ["AGREEMENT", "MIOU"],
    ),
}


def train_and_map_model():
    """A model of the modeler: train on a raster and labels, then map the same raster."""
    Source = QgsProcessingModelChildParameterSource
    model = QgsProcessingModelAlgorithm("train and map", "")
    for parameter in (
        QgsProcessingParameterRasterLayer("raster", "R"),
        QgsProcessingParameterVectorLayer("labels", "L"),
    ):
        model.addModelParameter(parameter, QgsProcessingModelParameter(parameter.name()))
    fit = QgsProcessingModelChildAlgorithm("geopeft:fit")
    fit.setChildId("fit")
    fit.addParameterSources("RASTERS", [Source.fromModelParameter("raster")])
    fit.addParameterSources("LABELS", [Source.fromModelParameter("labels")])
    fit.addParameterSources("CLASS_FIELD", [Source.fromStaticValue("class")])
    predict = QgsProcessingModelChildAlgorithm("geopeft:predict")
    predict.setChildId("predict")
    predict.addParameterSources("MODEL", [Source.fromChildOutput("fit", "MODEL")])
    predict.addParameterSources("RASTER", [Source.fromModelParameter("raster")])
    output = QgsProcessingModelOutput("map", "map")
    output.setChildOutputName("OUTPUT")
    output.setChildId("predict")
    predict.setModelOutputs({"map": output})
    model.addChildAlgorithm(fit)
    model.addChildAlgorithm(predict)
    model.updateDestinationParameters()
    return model


def test_in_the_modeler_the_model_of_one_step_feeds_the_next(
    provider, fake_engine, raster_layer, label_layer, project, tmp_path
):
    model = train_and_map_model()
    context, feedback = QgsProcessingContext(), Feedback()
    context.setProject(project)
    # "predict:map" in QGIS 3.22, "map" in 3.40.
    target = next(p.name() for p in model.parameterDefinitions() if p.isDestination())
    parameters = {"raster": raster_layer.id(), "labels": label_layer.id(), target: str(tmp_path / "map.tif")}
    ok, message = model.checkParameterValues(parameters, context)
    assert ok, message
    results, ok = model.run(parameters, context, feedback)
    assert ok, feedback.said
    assert Path(results[target]).is_file()


@pytest.fixture
def profile(tmp_path):
    """The variables of a profile with the plugin linked in, and an engine that is the fake one."""
    link_plugin(make_profile(tmp_path))
    return environment(tmp_path, QT_QPA_PLATFORM="offscreen")


@pytest.fixture
def files(tmp_path, raster_file):
    """What the parameters name: a raster, labels, and something that stands where a model is."""
    points = [
        {"type": "Feature", "properties": {"class": name}, "geometry": {"type": "Point", "coordinates": [9.001, 48.75]}}
        for name in ("a", "b")
    ]
    labels, model = tmp_path / "labels.geojson", tmp_path / "m.geopeft"
    labels.write_text(json.dumps({"type": "FeatureCollection", "features": points}))
    model.write_bytes(b"PK")
    return {"raster": raster_file, "labels": labels, "model": model}


needs_qgis_process = pytest.mark.skipif(not QGIS_PROCESS.is_file(), reason=f"{QGIS_PROCESS} is not here")


def qgis_process(variables, *arguments):
    """Runs an algorithm (its id, "--" and parameters) with JSON as its answer; the finished process."""
    return start(variables, None, "--json", "run", *arguments)


def start(variables, folder, *arguments):
    """Runs qgis_process in a folder; the finished process."""
    command = [str(QGIS_PROCESS), *arguments]
    return subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def run_in(folder, variables, files, name, *options):
    """Runs an algorithm with the parameters of WAYS."""
    parameters = [text.format(**files) for text in WAYS[name][0]]
    return start(variables, folder, *options, "run", f"geopeft:{name}", "--", *parameters)


@needs_qgis_process
@pytest.mark.parametrize("name", WAYS)
def test_qgis_process_answers_with_json(profile, files, tmp_path, name):
    done = run_in(tmp_path, profile, files, name, "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert all((tmp_path / results[path]).is_file() for path in WAYS[name][1])
    assert all(isinstance(results[number], (int, float)) for number in WAYS[name][2])


@needs_qgis_process
@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_qgis_process_answers_with_text(profile, files, tmp_path, name):
    done = run_in(tmp_path, profile, files, name)
    assert done.returncode == 0, done.stderr
    results = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    assert all((tmp_path / results[path].strip()).is_file() for path in WAYS[name][1]), done.stdout
    assert all(float(results[number]) >= 0 for number in WAYS[name][2]), done.stdout
    assert "Engine 0.0.0, device cpu" in done.stdout


@needs_qgis_process
def test_qgis_process_says_a_failure_and_fails(profile, files, tmp_path):
    failed = run_in(tmp_path, {**profile, "GEOPEFT_FAKE_MODE": "fail"}, files, "fit", "--json")
    assert failed.returncode == 1
    assert "The raster has no band 'nir'. Name the bands." in failed.stderr


@needs_qgis_process
def test_qgis_process_shows_the_help_of_an_algorithm(profile, tmp_path):
    shown = start(profile, tmp_path, "help", "geopeft:evaluate").stdout
    for text in ("Evaluate a model", "LABELS", "MIOU_LOW", "Overall accuracy", "confusion matrix"):
        assert text in shown
