"""The algorithms as Processing runs them, with the fake engine."""

import json
from pathlib import Path

import model_files
import pytest
from qgis.core import QgsProcessingContext, QgsProcessingException
from qgis_session import Feedback


def run(name, parameters, feedback=None, context=None):
    import processing

    return processing.run(name, parameters, feedback=feedback or Feedback(), context=context)


def test_provider_lists_the_algorithms(provider):
    assert sorted(a.id() for a in provider.algorithms()) == [
        "geopeft:area",
        "geopeft:average",
        "geopeft:compare",
        "geopeft:distil",
        "geopeft:evaluate",
        "geopeft:example",
        "geopeft:export",
        "geopeft:fit",
        "geopeft:predict",
        "geopeft:predictmany",
        "geopeft:pretrain",
        "geopeft:renderlayer",
        "geopeft:report",
        "geopeft:sample",
        "geopeft:stack",
        "geopeft:study",
        "geopeft:suggest",
        "geopeft:suspects",
    ]
    for algorithm in provider.algorithms():
        assert algorithm.shortHelpString() and algorithm.helpUrl().startswith("https://")
        assert "{" not in algorithm.shortHelpString()
        assert algorithm.displayName()[0].isupper()
        assert not algorithm.icon().isNull()


def test_fit_gives_model_figures_and_events(provider, fake_engine, raster_layer, label_layer, tmp_path):
    feedback = Feedback()
    parameters = {
        "RASTERS": [raster_layer],
        "LABELS": label_layer,
        "CLASS_FIELD": "class",
        "MODEL": str(tmp_path / "m.geopeft"),
        "FIGURES": str(tmp_path / "f.json"),
        "REPORT": str(tmp_path / "r.html"),
    }
    result = run("geopeft:fit", parameters, feedback)
    assert "Accuracy report" in Path(result["REPORT"]).read_text(encoding="utf-8")
    assert Path(result["MODEL"]).is_file()
    assert (result["MIOU"], result["MIOU_LOW"], result["MIOU_HIGH"]) == (0.74, 0.66, 0.80)
    assert json.loads(Path(result["FIGURES"]).read_text())["miou"]["value"] == 0.74
    assert "warning: 2 labels are outside the raster." in feedback.said
    assert len(feedback.metrics) == 20 and feedback.metrics[-1]["step"] == 60
    assert feedback.percents == sorted(feedback.percents) and feedback.percents[-1] == 100


def test_a_failure_is_a_sentence_with_a_next_step(provider, fake_engine, raster_layer, label_layer, tmp_path):
    fake_engine("fail")
    parameters = {"RASTERS": [raster_layer], "LABELS": label_layer, "MODEL": str(tmp_path / "m.geopeft")}
    with pytest.raises(QgsProcessingException, match="The raster has no band 'nir'. Name the bands."):
        run("geopeft:fit", parameters)


def test_an_engine_that_is_not_set_up_is_said_before_anything_runs(provider, raster_layer, label_layer, monkeypatch):
    from geopeft_qgis import settings

    monkeypatch.delenv("GEOPEFT_ENGINE_PYTHON", raising=False)
    monkeypatch.setattr(settings, "engine_python", lambda: None)
    feedback = Feedback()
    with pytest.raises(QgsProcessingException):
        run("geopeft:fit", {"RASTERS": [raster_layer], "LABELS": label_layer, "MODEL": "TEMPORARY_OUTPUT"}, feedback)
    assert any("Set up the engine" in text for text in feedback.said)


def test_predict_puts_every_output_where_it_was_asked_for(provider, fake_engine, raster_layer, tmp_path):
    (tmp_path / "other").mkdir()
    model = tmp_path / "m.geopeft"
    model.write_bytes(b"PK")
    result = run(
        "geopeft:predict",
        {
            "MODEL": str(model),
            "RASTER": raster_layer,
            "OUTPUT": str(tmp_path / "map.tif"),
            "CONFIDENCE": str(tmp_path / "other" / "c.tif"),
            "ENTROPY": str(tmp_path / "other" / "e.tif"),
            "OUTSIDE": str(tmp_path / "other" / "o.tif"),
            "POLYGONS": str(tmp_path / "other" / "p.gpkg"),
            "UNKNOWN_BELOW": 60,
        },
    )
    assert {p.name for p in tmp_path.iterdir()} >= {"map.tif", "map.tif.aux.xml", "m.geopeft"}
    assert {p.name for p in (tmp_path / "other").iterdir()} == {"c.tif", "e.tif", "o.tif", "p.gpkg"}
    assert not list(tmp_path.glob("map_*"))
    assert result["CONFIDENCE"].endswith("c.tif") and result["POLYGONS"].endswith("p.gpkg")
    assert (result["OUTSIDE_PERCENT"], result["UNKNOWN_PERCENT"]) == (12.5, 25)
    assert [c["name"] for c in json.loads(result["CLASSES"])] == ["water", "Forêt", "built up", "unknown"]


def test_predict_writes_no_confidence_unless_asked(provider, fake_engine, raster_layer, tmp_path):
    model = tmp_path / "m.geopeft"
    model.write_bytes(b"PK")
    result = run("geopeft:predict", {"MODEL": str(model), "RASTER": raster_layer, "OUTPUT": "TEMPORARY_OUTPUT"})
    assert Path(result["OUTPUT"]).is_file()
    assert "CONFIDENCE" not in result and not list(Path(result["OUTPUT"]).parent.glob("*_confidence*"))


def test_results_that_processing_loads_are_styled(provider, fake_engine, raster_layer, project, tmp_path):
    import processing

    model = tmp_path / "m.geopeft"
    model_files.write(model, model_files.members())
    result = processing.runAndLoadResults(
        "geopeft:predict",
        {
            "MODEL": str(model),
            "RASTER": raster_layer,
            "OUTPUT": "TEMPORARY_OUTPUT",
            "CONFIDENCE": "TEMPORARY_OUTPUT",
            "OUTSIDE": "TEMPORARY_OUTPUT",
            "POLYGONS": "TEMPORARY_OUTPUT",
        },
    )
    loaded = {layer.source().split("|")[0]: layer for layer in project.mapLayers().values()}
    layers = {name: loaded[result[name]] for name in ("OUTPUT", "CONFIDENCE", "OUTSIDE", "POLYGONS")}
    assert [(c.value, c.label, c.color.name()) for c in layers["OUTPUT"].renderer().classes()] == [
        (1, "water", "#3b7dd8"),
        (2, "Forêt", "#2f8f4e"),
        (3, "built up", "#c0392b"),
    ]
    assert layers["CONFIDENCE"].renderer().classificationMax() == 100
    assert layers["OUTSIDE"].renderer().classificationMax() == 250
    assert [c.value() for c in layers["POLYGONS"].renderer().categories()] == ["water", "Forêt", "built up"]
    for layer in layers.values():
        assert layer.customProperty("geopeft/model") == str(model)
        assert layer.customProperty("geopeft/raster") == raster_layer.source()


@pytest.mark.parametrize("name", ["suggest", "suspects"])
def test_advice_on_labels_is_loaded_with_its_rank_beside_each_place(
    provider, fake_engine, raster_layer, label_layer, project, tmp_path, name
):
    import processing

    parameters = {"RASTERS": [raster_layer], "LABELS": label_layer, "OUTPUT": str(tmp_path / "p.gpkg")}
    result = processing.runAndLoadResults(f"geopeft:{name}", parameters)
    assert (result["COUNT_FOUND"], result.get("WIDTH_M"), result.get("JUDGED")) == (
        (3, 80.0, None) if name == "suggest" else (3, None, 20)
    )
    (layer,) = [one for one in project.mapLayers().values() if one.source().startswith(result["OUTPUT"])]
    assert layer.featureCount() == 3 and layer.labelsEnabled()
    assert layer.labeling().settings().fieldName == "rank"
    assert layer.renderer().symbol().color().alpha() == 0


@pytest.mark.parametrize("name", ["suggest", "suspects"])
def test_advice_on_labels_is_a_geopackage(provider, fake_engine, raster_layer, label_layer, tmp_path, name):
    parameters = {"RASTERS": [raster_layer], "LABELS": label_layer, "OUTPUT": str(tmp_path / "p.shp")}
    with pytest.raises(QgsProcessingException, match="must end with .gpkg"):
        run(f"geopeft:{name}", parameters)


def test_only_geotiff_is_taken_as_output(provider, fake_engine, raster_layer, tmp_path):
    model = tmp_path / "m.geopeft"
    model.write_bytes(b"PK")
    with pytest.raises(QgsProcessingException, match="must end with .tif"):
        run("geopeft:predict", {"MODEL": str(model), "RASTER": raster_layer, "OUTPUT": str(tmp_path / "map.png")})


def test_evaluate_and_export_give_their_files_and_numbers(provider, fake_engine, raster_layer, label_layer, tmp_path):
    model = tmp_path / "m.geopeft"
    model.write_bytes(b"PK")
    result = run(
        "geopeft:evaluate",
        {"MODEL": str(model), "RASTERS": [raster_layer], "LABELS": label_layer, "FIGURES": str(tmp_path / "f.json")},
    )
    assert (result["MIOU"], result["OVERALL_ACCURACY"], result["F1"]) == (0.74, 0.85, 0.81)
    assert Path(result["FIGURES"]).is_file()
    result = run("geopeft:export", {"MODEL": str(model), "ONNX": str(tmp_path / "m.onnx")})
    assert Path(result["ONNX"]).is_file()


def test_cancel_ends_the_run_without_an_error(provider, fake_engine, raster_layer, label_layer, tmp_path):
    fake_engine("polite")
    feedback = Feedback()
    feedback.progressChanged.connect(lambda _: feedback.cancel())
    algorithm = provider.algorithm("fit")
    parameters = {"RASTERS": [raster_layer], "LABELS": label_layer, "MODEL": str(tmp_path / "m.geopeft")}
    results, ok = algorithm.run(parameters, QgsProcessingContext(), feedback)
    assert results.get("MODEL") is None
    assert not any(text.startswith("error") for text in feedback.said)


def test_selected_labels_only(provider, fake_engine, raster_layer, label_layer, tmp_path):
    from qgis.core import QgsProcessingFeatureSourceDefinition

    label_layer.selectByExpression("\"class\" = 'forest' or \"class\" = 'built up'")
    context = QgsProcessingContext()
    from qgis.core import QgsProject

    context.setProject(QgsProject.instance())
    source = QgsProcessingFeatureSourceDefinition(label_layer.id(), True)
    parameters = {"RASTERS": [raster_layer.id()], "LABELS": source, "CLASS_FIELD": "class", "MODEL": "m.geopeft"}
    job = provider.algorithm("fit").create().job(parameters, context, tmp_path)
    assert [c["value"] for c in job["classes"]] == ["forest", "built up"]
    assert job["classes"][0]["color"] == "#2f8f4e"


def test_pretrain_gives_the_backbone_and_its_loss(provider, fake_engine, raster_layer, tmp_path):
    feedback = Feedback()
    parameters = {
        "RASTERS": [raster_layer],
        "OUTPUT": str(tmp_path / "b.safetensors"),
        "FIGURES": str(tmp_path / "f.json"),
    }
    result = run("geopeft:pretrain", parameters, feedback)
    assert Path(result["OUTPUT"]).is_file() and Path(result["FIGURES"]).is_file()
    assert (result["LOSS"], result["STEPS_DONE"]) == (1.25, 60)
    assert feedback.percents[-1] == 100


@pytest.mark.parametrize("has_labels", [False, True])
def test_a_small_model_has_an_accuracy_only_where_labels_are_given(
    provider, fake_engine, raster_layer, label_layer, tmp_path, has_labels
):
    model, feedback = tmp_path / "m.geopeft", Feedback()
    model.write_bytes(b"PK")
    parameters = {"MODEL": str(model), "RASTERS": [raster_layer], "OUTPUT": str(tmp_path / "small.geopeft")}
    result = run("geopeft:distil", {**parameters, **({"LABELS": label_layer} if has_labels else {})}, feedback)
    assert Path(result["OUTPUT"]).is_file() and result["FIGURES"] is None
    assert (result["AGREEMENT"], result["MIOU"]) == (0.97, 0.74 if has_labels else None)
    assert feedback.percents[-1] == 100


def test_a_report_needs_only_a_model(provider, fake_engine, tmp_path):
    model = tmp_path / "m.geopeft"
    model.write_bytes(b"PK")
    result = run("geopeft:report", {"MODEL": str(model), "REPORT": str(tmp_path / "r.html")})
    assert result["REPORT"] == str(tmp_path / "r.html")
    assert "Accuracy report" in Path(result["REPORT"]).read_text(encoding="utf-8")


def test_compare_gives_the_difference_and_a_layer_with_a_colour_for_each_pair(
    provider, fake_engine, raster_layer, label_layer, project, tmp_path
):
    import processing

    parameters = {
        "FIRST": raster_layer.source(),
        "SECOND": raster_layer.id(),
        "LABELS": label_layer,
        "OUTPUT": "TEMPORARY_OUTPUT",
        "FIGURES": str(tmp_path / "f.json"),
    }
    result = processing.runAndLoadResults("geopeft:compare", parameters)
    assert (result["DIFFERENCE"], result["DIFFERENCE_LOW"], result["DIFFERENCE_HIGH"]) == (0.05, 0.01, 0.09)
    assert (result["MIOU_FIRST"], result["BETTER"], result["DIFFERING_SHARE"]) == (0.74, "first", 0.04)
    assert result["SENTENCES"] == "The maps agree nearly everywhere." and Path(result["FIGURES"]).is_file()
    (layer,) = [one for one in project.mapLayers().values() if one.source() == result["OUTPUT"]]
    assert [entry.label for entry in layer.renderer().classes()] == ["both agree", "water → Forêt"]


def test_compare_without_labels_has_no_figures(provider, fake_engine, raster_layer, tmp_path):
    parameters = {"FIRST": raster_layer.source(), "SECOND": raster_layer.source(), "OUTPUT": str(tmp_path / "d.tif")}
    result = run("geopeft:compare", parameters)
    assert (result["MIOU_FIRST"], result["DIFFERENCE"], result["BETTER"]) == (None, None, "")
    assert Path(result["OUTPUT"]).is_file()


def test_a_map_that_is_not_there_is_said_before_the_engine_is_started(provider, fake_engine, raster_layer, tmp_path):
    parameters = {"FIRST": raster_layer.source(), "SECOND": str(tmp_path / "none.tif"), "OUTPUT": "TEMPORARY_OUTPUT"}
    feedback = Feedback()
    with pytest.raises(QgsProcessingException):
        run("geopeft:compare", parameters, feedback)
    assert any("none.tif. Choose a model (.geopeft) or a raster of classes." in text for text in feedback.said)


def test_average_gives_the_model_and_what_was_lost(provider, fake_engine, tmp_path):
    models = [tmp_path / "a.geopeft", tmp_path / "b.geopeft"]
    for model in models:
        model.write_bytes(b"PK")
    parameters = {"MODELS": [str(model) for model in models], "OUTPUT": str(tmp_path / "mean.geopeft")}
    result = run("geopeft:average", parameters)
    assert Path(result["OUTPUT"]).is_file() and result["LOST"] == 0.02
    with pytest.raises(QgsProcessingException, match="The weight two is no number above 0"):
        run("geopeft:average", {**parameters, "WEIGHTS": "1, two"})
    with pytest.raises(QgsProcessingException):
        run("geopeft:average", {**parameters, "MODELS": [str(models[0])]})
