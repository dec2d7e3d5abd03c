"""Training and mapping in one run, with the fake engine: how it ends, and what may happen to the layers meanwhile."""

import json
import os
import shutil
import sqlite3
import time
from pathlib import Path

import pytest
from qgis.core import QgsProcessingFeatureSourceDefinition, QgsProcessingUtils, QgsProject
from qgis.PyQt.QtCore import QCoreApplication, QObject

from geopeft_qgis import last_models


def wait_until(condition, seconds=60):
    """Lets Qt work until something is so."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        QCoreApplication.processEvents()
        time.sleep(0.01)
    assert condition(), "this did not happen in time"


class Heard:
    """Everything that a run says."""

    def __init__(self, run):
        self.ends, self.steps, self.said, self.trained, self.metrics = [], [], [], [], []
        run.finished.connect(lambda fit, predict: self.ends.append(("finished", fit, predict)))
        run.failed.connect(lambda text: self.ends.append(("failed", text)))
        run.canceled.connect(lambda: self.ends.append(("canceled",)))
        run.stepped.connect(self.steps.append)
        run.said.connect(lambda level, text: self.said.append((level, text)))
        run.trained.connect(self.trained.append)
        run.measured.connect(self.metrics.append)


@pytest.fixture
def train(provider, fake_engine, raster_layer, label_layer, tmp_path, monkeypatch):
    """Starts a run; gives it and what it says."""
    from geopeft_qgis.gui.runs import TrainAndMap, TrainingRequest

    parent, runs = QObject(), []
    last_models.forget_session()

    def start(pause_s=0.0, polygons=False, model="m.geopeft", **more):
        monkeypatch.setenv("GEOPEFT_FAKE_PAUSE_S", str(pause_s))
        fit = {
            "RASTERS": [raster_layer.source()],
            "LABELS": QgsProcessingFeatureSourceDefinition(label_layer.id(), False),
            "CLASS_FIELD": "class",
            "DEVICE": "cpu",
            "MODEL": str(tmp_path / model),
            **more,
        }
        request = TrainingRequest(fit, raster_layer.source(), tmp_path / model, tmp_path / "map.tif", polygons)
        run = TrainAndMap(request, parent)
        runs.append(run)
        heard = Heard(run)
        run.start()
        return run, heard

    yield start
    for run in runs:
        run.end()


def job_folder():
    """The folder of the newest run of the engine."""
    return max(Path(QgsProcessingUtils.tempFolder()).glob("geopeft-*/job.json"), key=lambda p: p.stat().st_mtime).parent


def test_a_stop_keeps_the_model_and_goes_on_to_the_map(train, tmp_path):
    run, heard = train(pause_s=0.1)
    wait_until(lambda: heard.metrics)
    assert run.is_training
    pressed = time.monotonic()
    run.stop()
    wait_until(lambda: heard.trained)
    assert time.monotonic() - pressed < 3
    assert not run.is_training and run.has_model
    run.stop()
    wait_until(lambda: heard.ends)
    assert heard.ends[0][0] == "finished" and len(heard.ends) == 1
    assert Path(heard.ends[0][2]["OUTPUT"]).is_file()
    assert len(heard.metrics) < 20
    assert any("as you asked" in text for _, text in heard.said)


def test_a_stop_before_there_is_anything_to_keep_is_a_cancel(train, fake_engine, tmp_path):
    fake_engine("polite")
    run, heard = train()
    wait_until(lambda: heard.steps)
    run.stop()
    wait_until(lambda: heard.ends)
    assert heard.ends == [("canceled",)]
    assert not run.has_model and not (tmp_path / "map.tif").exists()


def test_a_cancel_ends_the_training_without_a_map(train, tmp_path):
    run, heard = train(pause_s=0.1)
    wait_until(lambda: heard.metrics)
    run.cancel()
    wait_until(lambda: heard.ends)
    assert heard.ends == [("canceled",)]
    assert not (job_folder() / "stop").exists()


@pytest.mark.fault("L32")
def test_what_happens_to_the_labels_meanwhile_does_no_harm(train, label_layer):
    run, heard = train(pause_s=0.05)
    wait_until(lambda: heard.metrics)
    label_layer.startEditing()
    label_layer.deleteFeatures(label_layer.allFeatureIds())
    label_layer.commitChanges()
    labels = json.loads((job_folder() / "job.json").read_text(encoding="utf-8"))["labels"].rsplit(":", 1)[0]
    wait_until(lambda: heard.ends)
    assert heard.ends[0][0] == "finished"
    with sqlite3.connect(labels) as file:
        assert file.execute("select count(*) from labels").fetchone() == (4,), "as they were when it started"


@pytest.mark.parametrize("which", ["raster", "labels", "project"])
@pytest.mark.fault("L32", "P13")
def test_layers_that_leave_the_project_meanwhile_do_no_harm(train, project, raster_layer, label_layer, which):
    run, heard = train(pause_s=0.02)
    wait_until(lambda: heard.metrics)
    if which == "project":
        project.clear()
    else:
        project.removeMapLayer(raster_layer.id() if which == "raster" else label_layer.id())
    wait_until(lambda: heard.ends)
    assert heard.ends[0][0] == "finished"


def test_a_full_disk_at_the_map_is_one_sentence_and_the_model_is_kept(train, fake_engine, tmp_path):
    fake_engine("disk_full")
    run, heard = train()
    wait_until(lambda: heard.ends)
    sentence = f"There is not enough room in {tmp_path}: 3 MiB are free, about 12 MiB are needed."
    assert heard.ends == [("failed", f"{sentence} Free some space or choose another folder.")]
    assert run.has_model and (tmp_path / "m.geopeft").is_file()


@pytest.mark.parametrize("polygons", [False, True])
def test_polygons_come_on_request(train, tmp_path, polygons):
    run, heard = train(polygons=polygons)
    wait_until(lambda: heard.ends)
    results = heard.ends[0][2]
    assert (tmp_path / "map_polygons.gpkg").exists() == polygons == ("POLYGONS" in results)


def test_the_time_left_is_told_in_plain_words(train):
    run, heard = train(pause_s=0.02)
    wait_until(lambda: heard.ends)
    assert any(text.startswith("Training") and "of 60" in text and "s left" in text for text in heard.steps)
    assert any(text.startswith("Mapping") for text in heard.steps)


# The last model of a raster


def test_the_last_model_is_remembered_for_the_next_training(train, raster_layer, tmp_path, project):
    assert last_models.last_model(project, raster_layer.source()) is None
    _, heard = train()
    wait_until(lambda: heard.ends)
    last = last_models.last_model(project, raster_layer.source())
    assert last == (tmp_path / "m.geopeft", ("water", "Forêt", "built up"))
    assert last.suits(["built up", "Forêt", "snow", "water"]) and not last.suits(["water", "Forêt"])
    assert last_models.last_model(project, "/other.tif") is None
    (tmp_path / "m.geopeft").unlink()
    assert last_models.last_model(project, raster_layer.source()) is None


def test_the_background_is_no_class_that_labels_must_have(train, raster_layer, project):
    _, heard = train(BACKGROUND="built up")
    wait_until(lambda: heard.ends)
    assert last_models.last_model(project, raster_layer.source()).classes == ("water", "Forêt")


def test_a_saved_project_knows_its_last_models_wherever_it_is(qgis_app, project, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "scene.tif").touch()
    (first / "m.geopeft").touch()
    assert project.write(str(first / "p.qgs"))
    for classes in (["a"], ["a", "b"]):
        last_models.remember(project, str(first / "scene.tif"), first / "m.geopeft", classes)
    assert project.write()
    project.clear()
    first.rename(second)
    last_models.forget_session()
    assert project.read(str(second / "p.qgs"))
    assert last_models.last_model(project, str(second / "scene.tif")) == (second / "m.geopeft", ("a", "b"))


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 1}', '[{"raster": 1}]', '[{"raster": "r", "model": "m"}]'])
def test_a_project_from_anywhere_is_read_with_care(qgis_app, project, text):
    project.writeEntry(last_models.SCOPE, last_models.KEY, text)
    last_models.forget_session()
    assert last_models.last_model(project, "r") is None


# What a training starts from


@pytest.fixture
def options(qgis_app, project):
    from geopeft_qgis.gui.train_options import TrainOptions

    last_models.forget_session()
    widget = TrainOptions()
    yield widget
    widget.deleteLater()


def test_nothing_is_offered_where_there_is_nothing_to_choose(options, tmp_path):
    options.set_choice("r.tif", ["a"], tmp_path / "m.geopeft")
    assert not options.start_box.isVisibleTo(options) and not options.resume_box.isVisibleTo(options)
    assert options.fit_parameters() == {"START_MODEL": "", "RESUME": True} and not options.polygons


def test_the_last_model_is_started_from_unless_the_labels_lack_its_classes(options, tmp_path):
    model = tmp_path / "m.geopeft"
    model.touch()
    last_models.remember(QgsProject.instance(), "r.tif", model, ["a", "b"])
    options.set_choice("r.tif", ["a", "b", "c"], tmp_path / "next.geopeft")
    assert options.start_box.isVisibleTo(options) and options.start_box.isChecked()
    assert options.fit_parameters()["START_MODEL"] == str(model)
    options.start_box.setChecked(False)
    options.set_choice("r.tif", ["a", "b", "c", "d"], tmp_path / "next.geopeft")
    assert not options.start_box.isChecked(), "what the user chose stays"
    assert options.fit_parameters()["START_MODEL"] == ""
    options.start_box.setChecked(True)
    options.set_choice("r.tif", ["a", "c"], tmp_path / "next.geopeft")
    assert options.start_box.isVisibleTo(options) and not options.start_box.isChecked()
    assert "b" in options.start_box.toolTip()
    options.set_choice("other.tif", ["a", "b"], tmp_path / "next.geopeft")
    assert not options.start_box.isVisibleTo(options) and options.fit_parameters()["START_MODEL"] == ""


def test_an_interrupted_training_can_be_continued(options, tmp_path):
    (tmp_path / "m.geopeft.resume").touch()
    options.set_choice("r.tif", ["a"], tmp_path / "m.geopeft")
    assert options.resume_box.isVisibleTo(options) and options.fit_parameters()["RESUME"] is True
    options.resume_box.setChecked(False)
    assert options.fit_parameters()["RESUME"] is False


def test_the_choices_reach_the_engine(provider, fake_engine, raster_layer, label_layer, project, tmp_path):
    from qgis.core import QgsProcessingContext

    context = QgsProcessingContext()
    context.setProject(project)
    parameters = {"RASTERS": [raster_layer], "LABELS": label_layer, "MODEL": str(tmp_path / "m.geopeft")}
    algorithm = provider.algorithm("fit").create()
    plain = algorithm.job(parameters, context, tmp_path)
    assert (plain["start"], plain["resume"]) == ("", True)
    chosen = algorithm.job({**parameters, "START_MODEL": "last.geopeft", "RESUME": False}, context, tmp_path)
    assert (chosen["start"], chosen["resume"]) == (str(Path("last.geopeft").absolute()), False)


# The real engine

PYTHON = os.environ.get("GEOPEFT_ENGINE_PYTHON", "")
SAMPLE = Path(__file__).resolve().parents[2] / "resources" / "sample"


@pytest.mark.skipif(not PYTHON, reason="GEOPEFT_ENGINE_PYTHON does not name the engine's Python (build.py engine)")
def test_a_real_training_is_stopped_mapped_and_started_from(provider, project, tmp_path):
    from qgis.core import QgsVectorLayer

    from geopeft_qgis.gui.runs import TrainAndMap, TrainingRequest, as_engine_outputs
    from geopeft_qgis.results import load_result

    last_models.forget_session()
    for name in ("itaipu_landsat8.tif", "labels.gpkg"):
        shutil.copy(SAMPLE / name, tmp_path)
    raster = str(tmp_path / "itaipu_landsat8.tif")
    labels = QgsVectorLayer(f"{tmp_path}/labels.gpkg|layername=train", "train", "ogr")
    project.addMapLayer(labels)
    parent = QObject()

    def start(name, **more):
        model = tmp_path / f"{name}.geopeft"
        fit = {"RASTERS": [raster], "LABELS": labels.id(), "CLASS_FIELD": "class", "DEVICE": "cpu", "MODEL": str(model)}
        run = TrainAndMap(TrainingRequest({**fit, **more}, raster, model, tmp_path / f"{name}.tif"), parent)
        heard = Heard(run)
        run.start()
        return run, heard

    run, heard = start("first")
    wait_until(lambda: heard.ends or any(text.startswith("Training") for text in heard.steps), 240)
    run.stop()
    wait_until(lambda: heard.ends, 240)
    kind, fit_results, predict_results = heard.ends[0]
    assert kind == "finished" and 0 < fit_results["MIOU"] <= 1
    assert any("as you asked" in text for _, text in heard.said)
    layer = load_result(as_engine_outputs(predict_results), project, "g", str(tmp_path / "first.geopeft"))[0]
    page = layer.htmlMetadata()
    assert "Apache-2.0" in page and f"mIoU {fit_results['MIOU']:.2f}" in page and "itaipu_landsat8.tif" in page
    last = last_models.last_model(project, raster)
    assert last.path == tmp_path / "first.geopeft" and len(last.classes) == 5
    run, heard = start("second", START_MODEL=str(last.path), STEPS=3)
    wait_until(lambda: heard.ends, 240)
    assert heard.ends[0][0] == "finished"
    assert ("info", "Starts from the model first.geopeft.") in heard.said
