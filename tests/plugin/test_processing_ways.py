"""The ways of Processing besides the toolbox: a model of the modeler, a batch, qgis_process."""

import json
import os
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

ROOT = Path(__file__).resolve().parents[2]
QGIS_PROCESS = Path("/usr/bin/qgis_process.bin")


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
    """A profile with the plugin linked in, and an engine that is the fake one."""
    plugin = tmp_path / "profiles" / "default" / "python" / "plugins" / "geopeft_qgis"
    plugin.mkdir(parents=True)
    for path in [*(ROOT / "geopeft_qgis").iterdir(), ROOT / "metadata.txt", ROOT / "resources", ROOT / "engine"]:
        if path.name != "__pycache__":
            (plugin / path.name).symlink_to(path)
    settings = tmp_path / "profiles" / "default" / "QGIS" / "QGIS3.ini"
    settings.parent.mkdir()
    settings.write_text("[PythonPlugins]\ngeopeft_qgis=true\n")
    python = tmp_path / "python.sh"
    fake = ROOT / "tests" / "fake_engine.py"
    python.write_text(f'#!/bin/sh\nshift 5\nexec /usr/bin/python3 -I -u "{fake}" "$GEOPEFT_FAKE_MODE" "$@"\n')
    python.chmod(0o755)
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "QT_QPA_PLATFORM": "offscreen",
        "QGIS_CUSTOM_CONFIG_PATH": str(tmp_path),
        "GEOPEFT_ENGINE_PYTHON": str(python),
        "GEOPEFT_FAKE_MODE": "ok",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def qgis_process(environment, *arguments):
    command = [str(QGIS_PROCESS), "--json", "run", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(not QGIS_PROCESS.is_file(), reason=f"{QGIS_PROCESS} is not here")
def test_qgis_process_trains_and_says_failures(profile, raster_file, tmp_path):
    os.chdir(tmp_path)
    labels = tmp_path / "labels.geojson"
    labels.write_text(
        json.dumps(
            {
                "type": "FeatureCollection",
                "features": [
                    {
                        "type": "Feature",
                        "properties": {"class": name},
                        "geometry": {"type": "Point", "coordinates": [9.001, 48.75]},
                    }
                    for name in ("a", "b")
                ],
            }
        )
    )
    arguments = ("geopeft:fit", "--", f"RASTERS={raster_file}", f"LABELS={labels}", "STEPS=30", "MODEL=m.geopeft")
    done = qgis_process(profile, *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"]["MIOU"] == 0.74
    assert (tmp_path / "m.geopeft").is_file()
    failed = qgis_process({**profile, "GEOPEFT_FAKE_MODE": "fail"}, *arguments)
    assert failed.returncode == 1
    assert "The raster has no band 'nir'. Name the bands." in failed.stderr
